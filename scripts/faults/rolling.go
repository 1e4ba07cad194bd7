// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// rolling restarts two replicas behind a balancer, one after the other, under the load of clients that ask once more when
// a connection was closed on them. None of them may be refused or fail.
func rolling(ctx context.Context, dir, certbound string, rounds int) error {
	const asking = 8
	f, err := newFleet(ctx, dir, certbound, 2, false)
	defer f.end()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	b := newBook()
	b.several = true
	l := &load{service: f.front, book: b, stopped: make(chan struct{}), around: []*service{f.front}}
	if l.roots, err = f.front.roots(); err != nil {
		return err
	}
	r := &roll{load: l}
	for i := range asking {
		client := fmt.Sprintf("load-%d", i%loadClients)
		c, err := f.front.caller(client)
		if err != nil {
			return err
		}
		l.running.Go(func() { r.ask(ctx, c, client, i%4 == 3) })
	}
	var downs, ups []time.Duration
	for range rounds {
		for _, s := range f.replicas {
			pause(ctx, time.Second)
			begin := time.Now()
			if err = s.stop(); err != nil {
				break
			}
			downs = append(downs, time.Since(begin))
			begin = time.Now()
			if err = s.start(ctx); err != nil {
				break
			}
			if err = s.awaitReadiness(ctx, http.StatusOK, recovers); err != nil {
				break
			}
			ups = append(ups, time.Since(begin))
		}
	}
	pause(ctx, 500*time.Millisecond)
	close(l.stopped)
	l.running.Wait()
	if err != nil {
		return err
	}
	say("%d restarts under load: stopping took %s; starting %s", len(downs), quantiles(downs), quantiles(ups))
	say("%d requests, %d of them once more after their connection was closed; answers: %s", len(r.answers), r.again, quantiles(r.answers))
	if len(b.problems) > 0 {
		return fmt.Errorf("%d requests failed, the first: %s", len(b.problems), b.problems[0])
	}
	return f.conclude(ctx, b)
}

// A roll is what clients see of a rolling restart.
type roll struct {
	*load
	mu      sync.Mutex
	answers []time.Duration
	again   int
}

// ask takes one token after the other and notes as a problem whatever is none.
func (r *roll) ask(ctx context.Context, c *caller, client string, anew bool) {
	defer c.close()
	for r.goesOn(ctx) {
		sent := time.Now()
		a, err := c.askToken(ctx, r.service.tokenURL(), client, resource)
		closed := err != nil
		if closed {
			a, err = c.askToken(ctx, r.service.tokenURL(), client, resource)
		}
		if err == nil {
			err = r.note(a, c, client, sent)
		}
		if err != nil {
			r.book.problem(fmt.Sprintf("a token for %s: %v", client, err))
		}
		r.mu.Lock()
		r.answers = append(r.answers, time.Since(sent))
		if closed {
			r.again++
		}
		r.mu.Unlock()
		if anew {
			c.close()
		}
		pause(ctx, 10*time.Millisecond)
	}
}
