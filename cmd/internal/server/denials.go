// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/outbox"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/issuer"
)

const (
	// denialsTimeout bounds reading what is denied, denialsAgain how long a failure of that stands.
	denialsTimeout = 2 * time.Second
	denialsAgain   = 250 * time.Millisecond
	// denialsPage is how many are read at once.
	denialsPage = 5000
	// pruneInterval is how often what has ended is forgotten. memorySlack is how much longer it stays in memory than any
	// clock that we serve under can make a difference.
	pruneInterval = time.Minute
	memorySlack   = time.Minute
)

// denials is what this server knows to be denied. After a change, here or at another replica, what is new is read before
// any token is judged; when that cannot be, no token is.
type denials struct {
	store interface {
		Denials(ctx context.Context, after int64, limit int) ([]store.Denied, int64, error)
	}
	epoch  atomic.Uint64 // counts changes
	loaded atomic.Uint64 // the change up to which list is whole
	list   tokens.DenyList

	position atomic.Int64  // up to which they were read
	doubts   atomic.Uint64 // counts how often anything may have changed: positions too, where commits were lost

	mu       sync.Mutex // held while they are read
	doubted  uint64     // of doubts, those since which they were all read
	failed   error      // of the last time, if it failed
	failedAt time.Time
}

// loadDenials reads all that is denied.
func loadDenials(ctx context.Context, db *store.Store) (*denials, error) {
	d := &denials{store: db}
	d.epoch.Store(1)
	db.OnChange(d.forget) // before they are read, so that no change is missed
	return d, d.current(ctx)
}

// forget has what is new read after a change.
func (d *denials) forget(c store.Change) {
	if c.Full {
		d.doubts.Add(1)
	}
	if c.Denials || c.Full {
		d.epoch.Add(1)
	}
}

// Denied reports whether a token with these claims, signed by that key, was revoked. It blocks only after a change. An
// error means that it cannot be known now.
func (d *denials) Denied(ctx context.Context, c *tokens.Claims, keyID string) (bool, error) {
	if err := d.current(ctx); err != nil {
		return false, again{err}
	}
	return d.list.Denies(c, keyID), nil
}

// head is the position of the newest denial that was read.
func (d *denials) head() int64 { return d.position.Load() }

// current reads what is new, if anything may be.
func (d *denials) current(ctx context.Context) error {
	if d.loaded.Load() == d.epoch.Load() {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	epoch := d.epoch.Load()
	if d.loaded.Load() == epoch {
		return nil
	}
	if d.failed != nil && time.Since(d.failedAt) < denialsAgain {
		return d.failed
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), denialsTimeout)
	defer cancel()
	if d.failed = d.read(ctx); d.failed != nil {
		d.failedAt = time.Now()
		return d.failed
	}
	d.loaded.Store(epoch) // a change meanwhile has it read once more
	return nil
}

// read reads what is behind the position, or everything where that may be another than it was. What is remembered stays: it
// was denied once.
func (d *denials) read(ctx context.Context) error {
	doubts, after := d.doubts.Load(), d.position.Load()
	anew := doubts != d.doubted
	if anew {
		after = 0
	}
	for {
		list, upTo, err := d.store.Denials(ctx, after, denialsPage)
		if err != nil {
			return fmt.Errorf("reading what is denied: %w", err)
		}
		for i := range list {
			if err := d.list.Add(list[i].Denial); err != nil {
				return fmt.Errorf("remembering what is denied: %w", err)
			}
		}
		after = max(after, upTo)
		if !anew {
			d.position.Store(after)
		}
		if len(list) < denialsPage {
			break
		}
	}
	d.position.Store(after)
	d.doubted = doubts
	return nil
}

// keepDenials forgets what has ended, until ctx is done.
func (s *service) keepDenials(ctx context.Context) {
	tick := time.NewTicker(pruneInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			s.forgetDenials(ctx, now)
		}
	}
}

// forgetDenials forgets what has ended by now.
func (s *service) forgetDenials(ctx context.Context, now time.Time) {
	if !s.mayForget() {
		return
	}
	s.denials.list.Prune(now.Add(-memorySlack))
	if _, err := s.folder.store.PruneDenials(ctx, now); err != nil && ctx.Err() == nil {
		s.log.Warn("denials that have ended could not be deleted", "error", err)
	}
	if err := s.folder.store.PruneFollowers(ctx, now.Add(-time.Hour)); err != nil && ctx.Err() == nil {
		s.log.Warn("resource servers that follow no more could not be forgotten", "error", err)
	}
}

// revoker implements issuer.Revoker.
type revoker struct {
	box interface {
		Change(ctx context.Context, class audit.Class, f func(tx *store.Store) ([]audit.Event, error)) (bool, error)
	}
}

// Revoke denies one token, with its record, and waits until that is in force at every replica. What was revoked before is
// waited for again, and makes neither a row nor a record.
func (r revoker) Revoke(ctx context.Context, d issuer.Decision) error {
	e := audit.Event{
		Name: d.Event, Time: d.Time, Outcome: audit.Granted, Client: d.ClientID, Thumbprint: d.Thumbprint.String(),
		Address: d.Address, Correlation: d.CorrelationID, TokenID: d.TokenID, Expires: d.Expires,
	}
	_, err := r.box.Change(ctx, audit.Takeaway, func(tx *store.Store) ([]audit.Event, error) {
		done, err := tx.RevokeToken(ctx, d.ClientID, d.TokenID, d.Expires)
		if err != nil || done == store.RevokedBefore {
			return nil, err
		}
		made := e
		if done == store.RevokedAll {
			made.Detail = map[string]string{"changed": "all"}
		}
		return []audit.Event{made}, nil
	})
	if unsettled, ok := errors.AsType[*outbox.UnsettledError](err); ok {
		return later{err, time.Until(unsettled.By)}
	}
	if err != nil {
		return again{err}
	}
	return nil
}

// later is an error that will be gone after a while.
type later struct {
	error
	wait time.Duration
}

// Unwrap returns the error.
func (l later) Unwrap() error { return l.error }

// RetryAfter is when to come back.
func (l later) RetryAfter() time.Duration { return l.wait }
