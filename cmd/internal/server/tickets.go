// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/certbound/certbound/cmd/internal/config"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
)

const (
	// ticketLook is how often the shared keys of session tickets are read, besides at each full hour.
	ticketLook = time.Minute
	// ticketPatience bounds one reading.
	ticketPatience = 5 * time.Second
	// ticketComplaint is how long nothing is logged after a reading that failed.
	ticketComplaint = 10 * time.Minute
)

// ticketStore is what of the store the sharing needs.
type ticketStore interface {
	TicketKeys(ctx context.Context, listener string, now time.Time) ([]store.TicketKey, error)
	OnChange(func(store.Change))
}

// sharedTickets has the listeners of this server seal session tickets under the keys that all servers of the database
// share. What it cannot read, and what was reset, it does not go by: then a listener has keys of its own, as it has without
// sharing.
type sharedTickets struct {
	store ticketStore
	scope func() (string, error) // what keys are shared within, besides the listener
	now   func() time.Time
	log   *slog.Logger
	wake  chan struct{}

	mu        sync.Mutex
	epoch     int // of resets
	listeners []*sharedListener
	complain  time.Time
}

// sharedListener is one listener and the shared keys that it has.
type sharedListener struct {
	name    string
	tickets *mtls.Tickets
	held    []store.TicketKey // none: the keys are its own
	own     time.Time         // since when
}

// newSharedTickets takes over the tickets of listeners, by their names. Nothing is shared before refresh.
func newSharedTickets(db ticketStore, scope func() (string, error), log *slog.Logger, now func() time.Time, listeners map[string]*mtls.Tickets) *sharedTickets {
	t := &sharedTickets{store: db, scope: scope, now: now, log: log, wake: make(chan struct{}, 1)}
	for name, tickets := range listeners {
		t.listeners = append(t.listeners, &sharedListener{name: name, tickets: tickets, own: now()})
	}
	db.OnChange(t.forget)
	return t
}

// forget drops all shared keys at once when they were reset, here or at another server. The new ones are read after that.
func (t *sharedTickets) forget(c store.Change) {
	if !c.Tickets && !c.Full {
		return
	}
	t.mu.Lock()
	t.epoch++
	for _, l := range t.listeners {
		l.reset(t.now())
	}
	t.mu.Unlock()
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

func (l *sharedListener) reset(now time.Time) {
	l.held, l.own = nil, now
	l.tickets.Reset()
}

// expire drops the keys whose time is over, of whatever origin.
func (t *sharedTickets) expire() {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	for _, l := range t.listeners {
		over := func(k store.TicketKey) bool { return now.Sub(k.StartedAt) >= store.TicketLife }
		switch {
		case slices.ContainsFunc(l.held, over):
			l.hold(slices.DeleteFunc(slices.Clone(l.held), over), now)
		case len(l.held) == 0 && now.Sub(l.own) >= ticketLife:
			l.reset(now)
		}
	}
}

func (l *sharedListener) hold(keys []store.TicketKey, now time.Time) {
	if len(keys) == 0 {
		l.reset(now)
		return
	}
	l.held = keys
	set := make([][32]byte, len(keys))
	for i, k := range keys {
		set[i] = k.Key
	}
	l.tickets.Set(set...)
}

// refresh reads the keys of all listeners. What cannot be read leaves a listener with those that it has, for as long as
// they are good.
func (t *sharedTickets) refresh(ctx context.Context) {
	t.expire()
	ctx, cancel := context.WithTimeout(ctx, ticketPatience)
	defer cancel()
	scope, err := t.scope()
	for _, l := range t.listeners {
		if err == nil {
			err = t.read(ctx, l, l.name+scope)
		}
	}
	if err != nil && ctx.Err() == nil || ctx.Err() == context.DeadlineExceeded {
		t.failed(ctx, err)
	}
}

func (t *sharedTickets) read(ctx context.Context, l *sharedListener, name string) error {
	t.mu.Lock()
	epoch := t.epoch
	t.mu.Unlock()
	now := t.now()
	keys, err := t.store.TicketKeys(ctx, name, now)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.epoch == epoch && !slices.Equal(keys, l.held) { // else they were reset while they were read, and are read again
		l.hold(keys, now)
	}
	return nil
}

func (t *sharedTickets) failed(ctx context.Context, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now := t.now(); now.Sub(t.complain) >= ticketComplaint {
		t.complain = now
		t.log.ErrorContext(ctx, "the shared keys of session tickets cannot be read: clients make full handshakes", "error", err)
	}
}

// run reads the keys until ctx is done: at each full hour, when they were reset, and now and then.
func (t *sharedTickets) run(ctx context.Context) {
	for {
		t.refresh(ctx)
		now := t.now()
		timer := time.NewTimer(min(ticketLook, now.Truncate(ticketLife).Add(ticketLife).Sub(now)))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-t.wake:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// ticketScope tells servers apart whose files hold other foreign authorities: a session that began under one trust is not
// resumed under another, neither elsewhere nor after the files have changed. Those in the database are the same for all.
func ticketScope(trusts []config.Trust) func() (string, error) {
	return func() (string, error) {
		if len(trusts) == 0 {
			return "", nil
		}
		hash := sha256.New()
		for _, trust := range trusts {
			content, err := os.ReadFile(trust.CAFile)
			if err != nil {
				return "", fmt.Errorf("the authorities of trust %q: %w", trust.Name, err)
			}
			sum := sha256.Sum256(content)
			_, _ = io.WriteString(hash, trust.Name+"\n") // a hash takes everything
			_, _ = hash.Write(sum[:])
		}
		return "/" + base64.RawURLEncoding.EncodeToString(hash.Sum(nil)), nil
	}
}
