// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/certbound/certbound/mtls"
)

const (
	// patience is how long somebody asks several replicas before it is a fault that there is no answer but failures.
	patience = time.Minute
	// catchUp is how long a replica may take to learn that somebody was given authority. It is a courtesy that the answer
	// waits for it, so a refusal within this time is noted and no fault.
	catchUp = 10 * time.Second
	// chase is the greatest pause between two askings of who is to lose authority.
	chase = 120 * time.Millisecond
)

// beside returns the load at another place, chosen at random.
func (l *load) beside() *load {
	other := l.around[rand.IntN(len(l.around))]
	for other == l.service {
		other = l.around[rand.IntN(len(l.around))]
	}
	return &load{service: other, book: l.book, roots: l.roots, stopped: l.stopped, around: l.around, sending: l.sending}
}

// A hunt is who asks for tokens with certificates that are about to lose their authority: at every replica on a
// kept-alive connection, and on a new one each time through what is before them, until refused.
type hunt struct {
	client string
	lost   atomic.Bool // whether it has been asked for that authority be taken away
	asking sync.WaitGroup
	mu     sync.Mutex
	wrong  []error
}

// hunt begins one. It is empty when there is but one service.
func (l *load) hunt(ctx context.Context, client string, pairs ...*mtls.KeyPair) *hunt {
	h := &hunt{client: client}
	for i, place := range l.around {
		c := newCaller(pairs[i%len(pairs)], l.roots)
		h.asking.Go(func() {
			defer c.close()
			if err := h.ask(ctx, l, place, c, i == 0); err != nil && ctx.Err() == nil {
				h.mu.Lock()
				defer h.mu.Unlock()
				h.wrong = append(h.wrong, fmt.Errorf("at place %d: %w", i, err))
			}
		})
	}
	return h
}

// ask asks one place until it refuses.
func (h *hunt) ask(ctx context.Context, l *load, place *service, c *caller, anew bool) error {
	begin, failing := time.Now(), time.Time{}
	for pause(ctx, time.Duration(rand.Int64N(int64(chase)))) {
		if anew {
			c.close()
		}
		asked := h.lost.Load()
		sent := time.Now()
		a, err := c.askToken(ctx, place.tokenURL(), h.client, resource)
		if err == nil && a.status == http.StatusOK {
			failing = time.Time{}
			if err := l.note(a, c, h.client, sent); err != nil {
				return err
			}
			continue
		}
		if err == nil && a.status == http.StatusUnauthorized {
			if h.lost.Load() {
				return nil
			}
			if l.book.refusedEarly(); !asked && time.Since(begin) > catchUp {
				return errors.New("who has authority is answered " + a.String())
			}
			continue
		}
		if err == nil && a.status != http.StatusServiceUnavailable {
			return errors.New("answered " + a.String())
		}
		if failing.IsZero() {
			failing = time.Now()
		}
		if time.Since(failing) > patience {
			return fmt.Errorf("nothing but failures for %v, the last: %v, %v", patience, a, err)
		}
	}
	return ctx.Err()
}

// loses says that authority is about to be taken away.
func (h *hunt) loses() { h.lost.Store(true) }

// refused waits until everybody was refused. That authority is gone must have been answered before.
func (h *hunt) refused() error {
	h.asking.Wait()
	return errors.Join(h.wrong...)
}
