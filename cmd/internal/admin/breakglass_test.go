// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/pki"
)

// newGlass is a bench of the break-glass API; resets counts what it did to the session tickets.
func newGlass(t *testing.T) (b *bench, resets *int) {
	t.Helper()
	resets = new(int)
	// Neither scopes nor a second operator can be had where nothing else works.
	b = newBenchWith(t, Config{Approvals: 2, ResetTickets: func() { *resets++ }}, NewBreakGlass)
	b.as("break-glass:1000")
	return b, resets
}

func TestBreakGlass(t *testing.T) {
	b, resets := newGlass(t)
	b.enlist("bob", ScopeRead)
	b.certify("bob", "7")
	var status Status
	b.do(http.MethodGet, "/status", "", http.StatusOK, &status)
	if status.Certificates != 1 {
		t.Errorf("status %+v", status)
	}
	var revoked Revocation
	b.post("/certificates/revoke", `{"serial":"7","reason":"keyCompromise"}`, http.StatusOK, &revoked)
	if e := b.journal.last(t); len(revoked.Revoked) != 1 || e.Name != "cert.revoke" || e.Actor != "break-glass:1000" {
		t.Errorf("answer %+v, recorded %+v", revoked, e)
	}
	b.post("/clients/bob/disable", "", http.StatusOK, nil)
	if e := b.journal.last(t); e.Name != "client.disable" || e.Actor != "break-glass:1000" || e.Client != "bob" {
		t.Errorf("recorded %+v", e)
	}
	var made Invitation
	b.post("/clients/alice/invite", "", http.StatusCreated, &made)
	if _, err := pki.ParseCode(made.Code); err != nil || made.ClientID != "alice" {
		t.Errorf("answer %+v, %v", made, err)
	}
	if e := b.journal.last(t); e.Name != "client.invite" || e.Actor != "break-glass:1000" || e.Client != "alice" {
		t.Errorf("recorded %+v", e)
	}
	var done Change
	b.post("/tickets/reset", "", http.StatusOK, &done)
	if e := b.journal.last(t); *resets != 1 || e.Name != "tickets.reset" || e.Actor != "break-glass:1000" || done.Done == "" {
		t.Errorf("%d resets, recorded %+v", *resets, e)
	}
}

// Nothing else is answered: no route of the operators' API but the four, and no invitation of anybody but operators.
func TestBreakGlassIsSmall(t *testing.T) {
	b, resets := newGlass(t)
	var got []string
	for _, rt := range new(api).breakGlassRoutes() {
		got = append(got, rt.method+" "+rt.path)
	}
	want := []string{"GET /status", "GET /audit/heads", "POST /certificates/revoke", "POST /clients/{id}/disable", "POST /clients/{id}/invite", "POST /tickets/reset", "POST /leases/reset",
		"GET /keys", "POST /keys/rotate"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, rt := range new(api).routes() {
		if slices.Contains(want, rt.method+" "+rt.path) {
			continue
		}
		if w := b.ask(rt.method, rt.path); w.Code != http.StatusNotFound && w.Code != http.StatusMethodNotAllowed {
			t.Errorf("%s %s: %d", rt.method, rt.path, w.Code)
		}
	}
	b.enlist("payments")
	b.refused(http.MethodPost, "/clients/payments/invite", "", http.StatusForbidden, "invalid_request", "enrol as an operator")
	b.refused(http.MethodPost, "/clients/nobody/invite", "", http.StatusNotFound, "invalid_request", "")
	b.refused(http.MethodPost, "/clients/alice/disable", "", http.StatusConflict, "invalid_request", "certbound:grant")
	b.refused(http.MethodPost, "/tickets/reset", `{"x":1}`, http.StatusBadRequest, "invalid_request", "")
	if *resets != 0 {
		t.Error("reset by a bad request")
	}
}

// All of it works while the journal is full, an operator's fresh code included, and says that the record waits.
func TestBreakGlassWithoutTheRecord(t *testing.T) {
	b, resets := newGlass(t)
	b.enlist("bob")
	b.certify("bob", "7")
	b.journal.fill(true)
	var done Change
	b.post("/tickets/reset", "", http.StatusOK, &done)
	if !done.AuditPending || *resets != 1 {
		t.Errorf("answer %+v", done)
	}
	var revoked Revocation
	b.post("/certificates/revoke", `{"client_id":"bob"}`, http.StatusOK, &revoked)
	if !revoked.AuditPending || len(revoked.Revoked) != 1 {
		t.Errorf("answer %+v", revoked)
	}
	done = Change{}
	b.post("/clients/bob/disable", "", http.StatusOK, &done)
	if !done.AuditPending {
		t.Errorf("answer %+v", done)
	}
	var invited Invitation
	b.post("/clients/alice/invite", "", http.StatusCreated, &invited)
	if !invited.AuditPending || invited.Code == "" {
		t.Errorf("pending is %v, a code is there: %v", invited.AuditPending, invited.Code != "")
	}
	recorded := b.journal.count()
	b.journal.fill(false)
	b.must(b.box.Flush(t.Context()))
	if e := b.journal.last(t); b.journal.count() <= recorded || e.Outcome != audit.Granted {
		t.Errorf("%d records came later, the last %+v", b.journal.count()-recorded, e)
	}
}

// Leases that nobody renews can be removed, and who has none is told; why it could not be done is not "done".
func TestBreakGlass_Leases(t *testing.T) {
	for name, test := range map[string]struct {
		reset  func(context.Context) ([]string, error)
		status int
		done   string
		detail map[string]string
	}{
		"one process": {nil, http.StatusOK, "no replicas share this database: there are no leases", nil},
		"all renew":   {func(context.Context) ([]string, error) { return nil, nil }, http.StatusOK, "every replica renews its lease: none was removed", nil},
		"two are gone": {func(context.Context) ([]string, error) { return []string{"a", "b"}, nil }, http.StatusOK,
			"leases removed of replicas that are gone: a, b", map[string]string{"replicas": "a, b"}},
		"not reachable": {func(context.Context) ([]string, error) { return nil, errors.New("no database") }, http.StatusServiceUnavailable, "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBenchWith(t, Config{ResetLeases: test.reset, ResetTickets: func() {}}, NewBreakGlass)
			b.as("break-glass:1000")
			if test.status != http.StatusOK {
				b.refused(http.MethodPost, "/leases/reset", "", test.status, "temporarily_unavailable", "")
				return
			}
			var done Change
			b.post("/leases/reset", "", test.status, &done)
			if done.Done != test.done {
				t.Errorf("done: %q, want %q", done.Done, test.done)
			}
			if e := b.journal.last(t); e.Name != "leases.reset" || e.Outcome != audit.Granted || e.Detail["replicas"] != test.detail["replicas"] {
				t.Errorf("recorded: %+v", e)
			}
		})
	}
}

// The operators' API does not reset tickets.
func TestOnlyBreakGlassResetsTickets(t *testing.T) {
	resets := 0
	b := newBenchWith(t, Config{ResetTickets: func() { resets++ }}, New)
	b.trust("p", mtlstest.NewCA(t, "p"))
	if w := b.ask(http.MethodPost, "/tickets/reset"); w.Code != http.StatusNotFound || resets != 0 {
		t.Errorf("%d, %d resets", w.Code, resets)
	}
}

// Where servers share their tickets, a reset takes the shared keys too, at all of them, also while the journal is full.
func TestResetOfSharedTickets(t *testing.T) {
	resets := 0
	b := newBenchWith(t, Config{SharedTickets: true, ResetTickets: func() { resets++ }}, NewBreakGlass)
	var told []store.Change
	b.store.OnChange(func(c store.Change) { told = append(told, c) })
	for _, full := range []bool{false, true} {
		before, err := b.store.TicketKeys(t.Context(), "mtls", time.Now())
		b.must(err)
		resets, told = 0, nil
		b.journal.fill(full)
		var done Change
		b.post("/tickets/reset", "", http.StatusOK, &done)
		b.journal.fill(false)
		if resets == 0 || done.Done == "" || done.AuditPending != full {
			t.Errorf("journal full %t: %d resets here, answer %+v", full, resets, done)
		}
		if len(told) == 0 || !told[0].Tickets {
			t.Errorf("journal full %t: told %+v", full, told)
		}
		after, err := b.store.TicketKeys(t.Context(), "mtls", time.Now())
		b.must(err)
		if after[0].Key == before[0].Key {
			t.Errorf("journal full %t: the key is still there", full)
		}
		b.must(b.box.Flush(t.Context()))
		if e := b.journal.last(t); e.Name != "tickets.reset" || e.Outcome != audit.Granted {
			t.Errorf("recorded %+v", e)
		}
	}
}
