// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
)

// Journal is what operators may look at of the journal of decisions.
type Journal interface {
	// Search returns one page of records, what is sealed opened.
	Search(ctx context.Context, q audit.Query) (*audit.Page, error)
	// Checkpoint returns the newest checkpoint that is durable; false when there is none yet.
	Checkpoint() (audit.Anchor, bool)
	// Known returns where the database knows the journals of all replicas to stand.
	Known(ctx context.Context) ([]audit.Anchor, error)
}

// AuditPage answers GET /audit: records as the journal has them, oldest first.
//
// The parameters are those of audit.Filter: client, actor, thumbprint, jti, serial, event, outcome, reason, correlation,
// since and until (RFC 3339), refusals=true, and limit. With after=N the page begins behind record N and Next is the
// after of the next one; without it the page ends with the newest record, or before=N, and Next is the before of the page
// that comes before this one.
type AuditPage struct {
	Records []json.RawMessage `json:"records"`
	Next    uint64            `json:"next"`
	// Done says that there is nothing more there now. A page may be empty and not the last.
	Done bool `json:"done"`
}

// AuditHeads answers GET /audit/heads: how far each journal of the service is signed and on the disk. Whoever keeps them
// can tell later whether what they cover is still there.
type AuditHeads struct {
	Heads []audit.Anchor `json:"heads"`
	// Known is what the database was told of the journals of all replicas, gone ones too. It is not signed.
	Known []audit.Anchor `json:"known"`
}

// eventRead records that somebody looked through the journal, which discloses what concerns persons.
const eventRead = "audit.read"

// readAgain is how long the same operator may go on with the same search under one record of it.
const readAgain = 10 * time.Minute

// maxReads bounds the searches that are remembered.
const maxReads = 1000

// reads remembers who searched for what, so that the pages of one search, or following the journal, are one record.
type reads struct {
	mu   sync.Mutex
	last map[[sha256.Size]byte]time.Time // by the hash of who asked and what
}

// begun says whether a search has been recorded lately, and forgets what was long ago.
func (r *reads) begun(key [sha256.Size]byte, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	at, ok := r.last[key]
	return ok && now.Sub(at) < readAgain && !now.Before(at)
}

func (r *reads) begin(key [sha256.Size]byte, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last == nil || len(r.last) >= maxReads {
		r.last = make(map[[sha256.Size]byte]time.Time)
	}
	r.last[key] = now
}

func (a *api) auditHeads(r *http.Request) (any, error) {
	heads := AuditHeads{Heads: []audit.Anchor{}, Known: []audit.Anchor{}}
	if a.cfg.Journal == nil {
		return heads, nil
	}
	if head, ok := a.cfg.Journal.Checkpoint(); ok {
		heads.Heads = append(heads.Heads, head)
	}
	known, err := a.cfg.Journal.Known(r.Context())
	if err != nil {
		return nil, unavailable(fmt.Errorf("reading the heads of the journals: %w", err))
	}
	heads.Known = append(heads.Known, known...)
	return heads, nil
}

// searchAudit answers a page of the journal, once it is recorded who asked for what.
func (a *api) searchAudit(r *http.Request) (any, error) {
	query, err := parameters(r, "client", "actor", "thumbprint", "jti", "serial", "event", "outcome", "reason", "correlation",
		"since", "until", "refusals", "after", "before", "limit")
	if err != nil {
		return nil, err
	}
	q, err := auditQuery(query)
	if err != nil {
		return nil, err
	}
	if a.cfg.Journal == nil {
		return nil, unavailable(errors.New("no journal was given"))
	}
	if err := a.recordRead(r.Context(), query); err != nil {
		return nil, unavailable(fmt.Errorf("recording %s: %w", eventRead, err))
	}
	page, err := a.cfg.Journal.Search(r.Context(), q)
	if err != nil {
		return nil, unavailable(err)
	}
	answer := AuditPage{Records: make([]json.RawMessage, len(page.Entries)), Next: page.Next, Done: page.Done}
	for i, e := range page.Entries {
		answer.Records[i] = e.Line
	}
	return answer, nil
}

// recordRead records a search, what it looks for included, unless that cannot be a name, an id or a time.
func (a *api) recordRead(ctx context.Context, query url.Values) error {
	detail := map[string]string{}
	asked := url.Values{}
	for name, values := range query {
		if slices.Contains([]string{"after", "before", "limit"}, name) {
			continue
		}
		asked[name] = values
		value, all := values[0], false
		if name == "event" {
			value, all = strings.CutSuffix(value, "*")
		}
		switch {
		case nameable(value) != value || value == "" && !all:
			value = "(not a name)"
		case all:
			value += "*"
		}
		detail[name] = value
	}
	event := a.by(ctx, audit.Event{Class: audit.Decision, Name: eventRead, Outcome: audit.Granted, Detail: detail})
	// What was asked, not what is recorded of it: two searches that cannot be named are two.
	key := sha256.Sum256([]byte(event.Actor + "\n" + asked.Encode()))
	if a.reads.begun(key, event.Time) {
		return nil
	}
	if err := a.cfg.Recorder.Record(context.WithoutCancel(ctx), event); err != nil {
		return err
	}
	a.reads.begin(key, event.Time)
	return nil
}

// auditQuery reads the parameters of a search.
func auditQuery(query url.Values) (audit.Query, error) {
	q := audit.Query{Filter: audit.Filter{
		Client: query.Get("client"), Actor: query.Get("actor"), Thumbprint: query.Get("thumbprint"), TokenID: query.Get("jti"),
		Serial: query.Get("serial"), Event: query.Get("event"), Outcome: query.Get("outcome"), Reason: query.Get("reason"),
		Correlation: query.Get("correlation"),
	}}
	var err error
	number := func(name string) (n uint64) {
		if raw := query.Get(name); raw != "" && err == nil {
			if n, err = strconv.ParseUint(raw, 10, 64); err != nil {
				err = invalidRequest(name+" is not a number", "it is the next of the page before", err)
			}
		}
		return n
	}
	moment := func(name string) (t time.Time) {
		if raw := query.Get(name); raw != "" && err == nil {
			if t, err = time.Parse(time.RFC3339, raw); err != nil {
				err = invalidRequest(name+" is not a time", "write it as 2026-11-23T12:00:00Z", err)
			}
		}
		return t
	}
	q.After, q.Before, q.Forward = number("after"), number("before"), query.Has("after")
	q.Since, q.Until = moment("since"), moment("until")
	limit := number("limit")
	switch refusals := query.Get("refusals"); {
	case err != nil:
		return q, err
	case refusals != "" && refusals != "true" && refusals != "false":
		return q, invalidRequest("refusals is true or false", "leave it out", nil)
	case query.Has("after") && query.Has("before"):
		return q, invalidRequest("after and before exclude each other", "leave one of them out", nil)
	case query.Has("limit") && (limit < 1 || limit > audit.MaxPage):
		return q, invalidRequest("limit is not a number from 1 to "+strconv.Itoa(audit.MaxPage), "leave it out", nil)
	}
	q.Refusals, q.Limit = query.Get("refusals") == "true", int(limit)
	return q, nil
}
