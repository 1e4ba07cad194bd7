// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/tokens"
)

// Keys are the token signing keys. The methods that change them do so in a transaction and return the complete outcome's
// records, oldest first: their names, and details.
type Keys interface {
	// SigningKeys lists the keys, oldest first, as that store or transaction has them.
	SigningKeys(ctx context.Context, db *store.Store) ([]SigningKey, error)
	// PrepareKey makes the next key before a transaction; it may take seconds.
	PrepareKey(ctx context.Context, db *store.Store) error
	// AnnounceKey announces the next key. No records: one is announced already.
	AnnounceKey(ctx context.Context, tx *store.Store) ([]audit.Event, error)
	// ReplaceKeys removes every key at once and makes a new one that signs.
	ReplaceKeys(ctx context.Context, tx *store.Store) ([]audit.Event, error)
}

// keysTrusted is how long a resource server goes by the keys that it has read, when it cannot read them anew either.
const keysTrusted = tokens.DefaultMaxAge + tokens.DefaultStaleWhileError

var errNoKeys = errors.New("the signing keys are not served here")

func (a *api) listKeys(r *http.Request) (any, error) {
	if a.cfg.Keys == nil {
		return nil, unavailable(errNoKeys)
	}
	keys, err := a.cfg.Keys.SigningKeys(r.Context(), a.db(r.Context()))
	if err != nil {
		return nil, unavailable(err)
	}
	return KeyList{Keys: keys}, nil
}

// rotateKeys has the next signing key announced, to sign later, which waits for a second operator like any change of keys.
// In an emergency it removes them all and waits for nobody: what was signed with them is refused sooner or later, and
// nobody gets anything by it.
func (a *api) rotateKeys(ctx context.Context, _ string, in *RotateRequest) (*proposal, error) {
	if a.cfg.Keys == nil {
		return nil, unavailable(errNoKeys)
	}
	if !isWithin(ctx) {
		if err := a.cfg.Keys.PrepareKey(ctx, a.db(ctx)); err != nil {
			return nil, unavailable(err)
		}
	}
	p := &proposal{event: audit.Event{}, needs: []string{ScopeKeys}, waits: !in.Emergency}
	if in.Emergency {
		p.takes, p.do = true, a.replaceKeys
		p.again = "certbound keys list shows the keys; repeating it removes the new one too"
		return p, nil
	}
	keys, err := a.cfg.Keys.SigningKeys(ctx, a.db(ctx))
	if err != nil {
		return nil, unavailable(err)
	}
	for _, key := range keys {
		if key.State == "announced" && key.Until != nil {
			return nil, conflict(codeRequest, "the next key, "+key.ID+", is announced already and signs from "+key.Until.UTC().Format(time.RFC3339)+" on",
				"wait for that; if the present keys are in the wrong hands: certbound keys rotate --emergency")
		}
	}
	p.shown.Present = digest(keys)
	p.again = "certbound keys list shows the keys"
	p.do = a.announceKey
	return p, nil
}

func (a *api) announceKey(ctx context.Context, tx *store.Store) (*outcome, error) {
	events, err := a.cfg.Keys.AnnounceKey(ctx, tx)
	if err != nil {
		return nil, unavailable(err)
	}
	if len(events) == 0 {
		return nil, conflict(codeRequest, "the next key is announced already", "certbound keys list shows it")
	}
	return a.rotated(ctx, tx, events, new(Rotation))
}

func (a *api) replaceKeys(ctx context.Context, tx *store.Store) (*outcome, error) {
	events, err := a.cfg.Keys.ReplaceKeys(ctx, tx)
	if err != nil {
		return nil, unavailable(err)
	}
	answer := &Rotation{FreshSeconds: int64(tokens.DefaultMaxAge / time.Second), StaleSeconds: int64(keysTrusted / time.Second)}
	for i := range events {
		events[i].Detail["emergency"] = "true"
		if events[i].Name == "key.retire" {
			answer.Removed = append(answer.Removed, events[i].Detail["kid"])
		}
	}
	until := a.cfg.Now().Add(keysTrusted).UTC()
	answer.AcceptedUntil = &until
	// Who could read the keys could read those of the session tickets.
	if err := tx.ResetTicketKeys(ctx); err != nil {
		return nil, unavailable(err)
	}
	return a.rotated(ctx, tx, events, answer)
}

// rotated is the outcome of a change of keys. Its records are several, of different names; the last is the new key's.
func (a *api) rotated(ctx context.Context, tx *store.Store, events []audit.Event, answer *Rotation) (*outcome, error) {
	keys, err := a.cfg.Keys.SigningKeys(ctx, tx)
	if err != nil {
		return nil, unavailable(err)
	}
	answer.Keys = keys
	last := len(events) - 1
	done := &outcome{answer: answer, name: events[last].Name, events: events[last:]}
	for _, e := range events[:last] {
		done.before = append(done.before, a.granted(ctx, e.Name, []audit.Event{e})...)
	}
	return done, nil
}
