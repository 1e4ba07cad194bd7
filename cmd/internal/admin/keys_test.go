// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"crypto/rand"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/store"
)

// pocket is a signing service whose keys are as short as their names.
type pocket struct {
	mu       sync.Mutex
	prepared int
	failed   error
}

const anHour = time.Hour

func (p *pocket) SigningKeys(ctx context.Context, db *store.Store) ([]SigningKey, error) {
	rows, err := db.Keys(ctx, "signing")
	var list []SigningKey
	for _, row := range rows {
		key := SigningKey{ID: row.ID, Algorithm: row.Algorithm, State: row.State, CreatedAt: row.CreatedAt, Since: row.Since}
		if !row.Until.IsZero() {
			key.Until = &row.Until
		}
		list = append(list, key)
	}
	return list, err
}

func (p *pocket) PrepareKey(context.Context, *store.Store) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.prepared++
	return p.failed
}

func (p *pocket) put(ctx context.Context, tx *store.Store, state string, until time.Time) (audit.Event, error) {
	key := store.Key{ID: rand.Text(), Purpose: "signing", State: state, Algorithm: "ES256", Private: []byte("x"), Until: until}
	return audit.Event{Name: "key.create", Detail: map[string]string{"kid": key.ID}}, tx.PutKey(ctx, key)
}

func (p *pocket) AnnounceKey(ctx context.Context, tx *store.Store) ([]audit.Event, error) {
	e, err := p.put(ctx, tx, "announced", time.Now().Add(anHour))
	return []audit.Event{e}, err
}

func (p *pocket) ReplaceKeys(ctx context.Context, tx *store.Store) ([]audit.Event, error) {
	rows, err := tx.Keys(ctx, "signing")
	if err != nil {
		return nil, err
	}
	var events []audit.Event
	for _, row := range rows {
		if err := tx.DeleteKey(ctx, "signing", row.ID); err != nil {
			return nil, err
		}
		events = append(events, audit.Event{Name: "key.retire", Detail: map[string]string{"kid": row.ID}})
	}
	e, err := p.put(ctx, tx, "active", time.Time{})
	return append(events, e), err
}

// signing puts an active key there, and returns its id.
func (b *bench) signing() string {
	b.Helper()
	b.must(b.store.PutKey(b.Context(), store.Key{ID: "first", Purpose: "signing", State: "active", Algorithm: "ES256", Private: []byte("x")}))
	return "first"
}

func TestKeys(t *testing.T) {
	b := newBench(t)
	first := b.signing()
	var list KeyList
	b.do(http.MethodGet, "/keys", "", http.StatusOK, &list)
	if len(list.Keys) != 1 || list.Keys[0].ID != first || list.Keys[0].State != "active" || list.Keys[0].Until != nil {
		t.Errorf("the keys are %+v", list)
	}
	var done Rotation
	b.post("/keys/rotate", "{}", http.StatusOK, &done)
	if len(done.Keys) != 2 || len(done.Removed) != 0 || done.AcceptedUntil != nil {
		t.Errorf("rotated: %+v", done)
	}
	if e := b.journal.last(t); e.Name != "key.create" || e.Actor != "alice" || e.Outcome != audit.Granted || e.Class != audit.Decision {
		t.Errorf("recorded %+v", e)
	}
	b.refused(http.MethodPost, "/keys/rotate", "{}", http.StatusConflict, codeRequest, "--emergency")
	b.scopes = []string{ScopeRead, ScopeRevoke}
	b.refused(http.MethodPost, "/keys/rotate", `{"emergency":true}`, http.StatusForbidden, codeInsufficient, "")
	b.scopes = []string{ScopeKeys}
	before := b.journal.count()
	b.post("/keys/rotate", `{"emergency":true}`, http.StatusOK, &done)
	if len(done.Keys) != 1 || len(done.Removed) != 2 || done.FreshSeconds != 300 || done.StaleSeconds != 600 || done.AcceptedUntil == nil {
		t.Errorf("in an emergency: %+v", done)
	}
	if n := b.journal.count() - before; n != 3 {
		t.Errorf("%d records, want 3", n)
	}
	if e := b.journal.last(t); e.Name != "key.create" || e.Detail["emergency"] != "true" || e.Class != audit.Takeaway || e.Actor != "alice" {
		t.Errorf("recorded %+v", e)
	}
}

// A5: announcing a key waits for a second operator where two are asked for; an emergency waits for nobody.
func TestKeys_TwoOperators(t *testing.T) {
	b := newBenchWith(t, Config{Approvals: 2}, New)
	first := b.signing()
	b.enlist("bob", ScopeAdmin)
	b.certify("alice", "801")
	b.certify("bob", "802")
	held := b.held(http.MethodPost, "/keys/rotate", `{}`)
	if held.Kind != keyRotate || !slices.Equal(held.Needs, []string{ScopeKeys}) {
		t.Errorf("it waits as %+v", held)
	}
	b.as("bob", ScopeKeys)
	var done Rotation
	b.post("/approvals/"+held.ID+"/confirm", "", http.StatusOK, &done)
	if len(done.Keys) != 2 {
		t.Errorf("confirmed: %+v", done)
	}
	if e := b.journal.last(t); e.Name != "key.create" || e.Actor != "bob" || e.Detail["requested_by"] != "alice" || e.Detail["approval"] != held.ID {
		t.Errorf("recorded %+v", e)
	}
	b.as("alice", ScopeKeys)
	b.post("/keys/rotate", `{"emergency":true}`, http.StatusOK, &done)
	if len(done.Keys) != 1 || done.Keys[0].ID == first || len(done.Removed) != 2 {
		t.Errorf("in an emergency: %+v", done)
	}
}

// A3, A4: an emergency works while the journal takes nothing, through the API and through the socket; an announcement does not,
// but through the socket.
func TestKeys_JournalFull(t *testing.T) {
	for name, test := range map[string]struct {
		build  func(Config) (http.Handler, error)
		status int // of an announcement
	}{"API": {New, http.StatusServiceUnavailable}, "break-glass": {NewBreakGlass, http.StatusOK}} {
		t.Run(name, func(t *testing.T) {
			b := newBenchWith(t, Config{ResetTickets: func() {}}, test.build)
			b.signing()
			b.journal.fill(true)
			b.post("/keys/rotate", "{}", test.status, nil)
			var done Rotation
			b.post("/keys/rotate", `{"emergency":true}`, http.StatusOK, &done)
			if len(done.Keys) != 1 || !slices.Contains(done.Removed, "first") || !done.AuditPending {
				t.Errorf("in an emergency: %+v", done)
			}
		})
	}
}

// What cannot be made is not announced, and says so.
func TestKeys_Fail(t *testing.T) {
	b := newBenchWith(t, Config{Keys: &pocket{failed: errors.New("no randomness")}}, New)
	b.signing()
	b.refused(http.MethodPost, "/keys/rotate", "{}", http.StatusServiceUnavailable, "temporarily_unavailable", "")
	if list := b.contents(); strings.Contains(list, "announced") {
		t.Error("a key was announced")
	}
}
