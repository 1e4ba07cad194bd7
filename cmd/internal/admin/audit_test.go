// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/certbound/certbound/cmd/internal/audit"
)

// shelf is a journal to look at that remembers what it was asked.
type shelf struct {
	asked []audit.Query
	fails error
}

func (s *shelf) Search(_ context.Context, q audit.Query) (*audit.Page, error) {
	s.asked = append(s.asked, q)
	if s.fails != nil {
		return nil, s.fails
	}
	return &audit.Page{Entries: []*audit.Entry{{Line: []byte(`{"seq":7,"client":"a"}`)}}, Next: 7, Done: true}, nil
}

func (s *shelf) Checkpoint() (audit.Anchor, bool) {
	return audit.Anchor{Identity: audit.Identity{Installation: "i", Replica: "r", Incarnation: 1}, FirstKey: "k", Checkpoint: audit.Checkpoint{Seq: 6}}, true
}

func (s *shelf) Known(context.Context) ([]audit.Anchor, error) {
	if s.fails != nil {
		return nil, s.fails
	}
	return []audit.Anchor{{Identity: audit.Identity{Installation: "i", Replica: "other", Incarnation: 2}, Seen: &audit.Sighting{By: audit.ByDatabase}}}, nil
}

func TestSearchAudit(t *testing.T) {
	s := &shelf{}
	b := newBenchWith(t, Config{Journal: s}, New)
	var page AuditPage
	b.do(http.MethodGet, "/audit?client=payments&actor=alice&thumbprint=t&jti=j&serial=1&event=client.*&outcome=refused&reason=r&correlation=c"+
		"&since=2026-11-23T12:00:00Z&until=2026-11-24T12:00:00Z&refusals=true&after=5&limit=9", "", http.StatusOK, &page)
	if len(page.Records) != 1 || string(page.Records[0]) != `{"seq":7,"client":"a"}` || page.Next != 7 || !page.Done {
		t.Errorf("%+v", page)
	}
	want := audit.Query{Forward: true, After: 5, Limit: 9, Filter: audit.Filter{
		Client: "payments", Actor: "alice", Thumbprint: "t", TokenID: "j", Serial: "1", Event: "client.*", Outcome: "refused", Reason: "r",
		Correlation: "c", Refusals: true, Since: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC), Until: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC),
	}}
	if diff := cmp.Diff(want, s.asked[0]); diff != "" {
		t.Error(diff)
	}
	e := b.journal.last(t)
	if e.Name != "audit.read" || e.Outcome != audit.Granted || e.Actor != "alice" || e.Detail["client"] != "payments" || e.Detail["after"] != "" {
		t.Errorf("%+v", e)
	}
	for _, query := range []string{"after=x", "before=-1", "limit=0", "limit=1001", "since=today", "refusals=yes", "after=1&before=2", "clients=a", "client=a&client=b"} {
		b.refused(http.MethodGet, "/audit?"+query, "", http.StatusBadRequest, codeRequest, "")
	}
	if len(s.asked) != 1 {
		t.Error("a wrong question was asked")
	}
	b.as("alice", ScopeRevoke)
	b.refused(http.MethodGet, "/audit", "", http.StatusForbidden, codeInsufficient, "")
	b.refused(http.MethodGet, "/audit/heads", "", http.StatusForbidden, codeInsufficient, "")
}

// What is read is recorded before it leaves: once for all pages of a search, anew for another search or another reader.
func TestReadingTheJournalIsRecorded(t *testing.T) {
	s := &shelf{}
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	b := newBenchWith(t, Config{Journal: s, Now: func() time.Time { return now }}, New)
	read := func(query string, records int) {
		t.Helper()
		before := b.journal.count()
		b.do(http.MethodGet, "/audit"+query, "", http.StatusOK, nil)
		if got := b.journal.count() - before; got != records {
			t.Errorf("%s: %d records, want %d", query, got, records)
		}
	}
	read("", 1)
	read("?after=0&limit=5", 0)
	read("?after=7", 0)
	read("?client=payments", 1)
	read("?client=payments&after=7", 0)
	// What begins with a name is recorded with it, and two searches that cannot be named are two.
	for query, want := range map[string]string{
		"client.*": "client.*", "*": "*", "a|b*": "(not a name)", "a|c*": "(not a name)", "a|b": "(not a name)",
	} {
		read("?event="+url.QueryEscape(query), 1)
		if got := b.journal.last(t).Detail["event"]; got != want {
			t.Errorf("%s is recorded as %s", query, got)
		}
		read("?event="+url.QueryEscape(query)+"&after=7", 0)
	}
	now = now.Add(readAgain)
	read("?client=payments&after=7", 1)
	b.enlist("bob", ScopeRead)
	b.as("bob", ScopeRead)
	read("?client=payments&after=7", 1)
	b.do(http.MethodGet, "/audit/heads", "", http.StatusOK, nil)

	asked := len(s.asked)
	b.journal.fill(true)
	b.refused(http.MethodGet, "/audit?client=ledger", "", http.StatusServiceUnavailable, codeUnavailable, "")
	if len(s.asked) != asked {
		t.Error("it was read without a record")
	}
	b.journal.fill(false)
	s.fails = errors.New("no such file")
	b.refused(http.MethodGet, "/audit?client=ledger", "", http.StatusServiceUnavailable, codeUnavailable, "")
}

func TestAuditHeads(t *testing.T) {
	s := &shelf{}
	b := newBenchWith(t, Config{Journal: s}, New)
	var heads AuditHeads
	b.do(http.MethodGet, "/audit/heads", "", http.StatusOK, &heads)
	if len(heads.Heads) != 1 || heads.Heads[0].Checkpoint.Seq != 6 || heads.Heads[0].FirstKey != "k" || heads.Heads[0].Replica != "r" {
		t.Errorf("%+v", heads)
	}
	if len(heads.Known) != 1 || heads.Known[0].Replica != "other" || heads.Known[0].Seen == nil {
		t.Errorf("%+v", heads.Known)
	}
	s.fails = errors.New("the database is away")
	b.refused(http.MethodGet, "/audit/heads", "", http.StatusServiceUnavailable, codeUnavailable, "")
}

func TestBreakGlassShowsHeads(t *testing.T) {
	b := newBenchWith(t, Config{Journal: &shelf{}, ResetTickets: func() {}}, NewBreakGlass)
	var heads AuditHeads
	b.do(http.MethodGet, "/audit/heads", "", http.StatusOK, &heads)
	if len(heads.Heads) != 1 {
		t.Errorf("%+v", heads)
	}
	b.refused(http.MethodGet, "/audit", "", http.StatusNotFound, codeRequest, "")
}
