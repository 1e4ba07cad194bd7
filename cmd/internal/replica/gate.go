// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package replica

import (
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/certbound/certbound/tokens/issuer"
)

// lease is a lease that holds. It is not changed: each renewal makes a new one.
type lease struct {
	until  time.Duration // of the boot clock
	offset time.Duration // the wall clock's lead over the boot clock when it was granted
}

// generation counts the decisions that passed the gate while one version was the newest applied one. It is the passage of
// each of them, so that passing needs no memory.
type generation struct {
	version int64
	in      atomic.Int64
	retired atomic.Bool // there is a newer one
	wake    chan<- struct{}
}

// Leave says that one decision is out.
func (g *generation) Leave() {
	if g.in.Add(-1) == 0 && g.retired.Load() {
		wake(g.wake)
	}
}

// Live returns nil while the lease holds, and else a *NoLeaseError. It does not block.
func (r *Replica) Live() error {
	l := r.gate.lease.Load()
	if l == nil {
		return r.refusal()
	}
	// The boot clock is read last: what it says is the moment of the decision.
	wall := r.clock.Wall().UnixNano()
	boot := r.clock.Boot()
	if boot >= l.until {
		return &NoLeaseError{Reason: "it was not renewed in time"}
	}
	if off := time.Duration(wall) - boot - l.offset; off > clockSlack || off < -clockSlack {
		return r.jumped(l)
	}
	return nil
}

// Pass registers a decision and then asks whether the lease holds. What is announced after Pass returned is acknowledged to
// nobody before the passage was left. It does not block.
func (r *Replica) Pass() (issuer.Passage, error) {
	g := r.gate.enter()
	r.at(stepEnter)
	if err := r.Live(); err != nil {
		g.Leave()
		return nil, err
	}
	r.at(stepPassed)
	return g, nil
}

// enter registers a decision under the newest generation.
func (t *gate) enter() *generation {
	for {
		if g := t.current.Load(); t.join(g) {
			return g
		}
	}
}

// join registers a decision under a generation, and reports false when that was retired meanwhile. It counts only once the
// generation is seen to be the newest one still: whoever retires one, and then sees nobody in it, may rely on nobody ever
// deciding under it again.
func (t *gate) join(g *generation) bool {
	g.in.Add(1)
	if t.current.Load() == g {
		return true
	}
	g.Leave()
	return false
}

// install has decisions rest on a version from now on: every change up to it was announced. r.mu is held.
func (r *Replica) install(version int64) {
	g := &generation{version: version, wake: r.wakeRenewer}
	old := r.gate.current.Swap(g)
	old.retired.Store(true)
	r.older = append(r.drained(), old)
	r.applied = version
	r.grant()
	wake(r.wakeRenewer)
}

// drained returns the older generations that somebody is still in. There are never more of them than passages. r.mu is held.
func (r *Replica) drained() []*generation {
	r.older = slices.DeleteFunc(r.older, func(g *generation) bool { return g.in.Load() == 0 })
	return r.older
}

// quiet returns the newest version that nobody in an older generation can fall short of.
func quiet(older []*generation, now *generation) int64 {
	for _, g := range older {
		if g.in.Load() != 0 {
			return g.version
		}
	}
	return now.version
}

// acknowledgeable returns the version that others may be told is applied. r.mu is held.
func (r *Replica) acknowledgeable() int64 {
	return r.rules.quiet(r.drained(), r.gate.current.Load())
}

// grant extends the lease by what renewals promised whose version is applied now. r.mu is held.
func (r *Replica) grant() {
	if r.closed {
		return
	}
	now := r.clock.Boot()
	r.waiting = slices.DeleteFunc(r.waiting, func(p promise) bool {
		if p.version > r.applied {
			return p.at+Term <= now
		}
		l := &lease{until: p.at + Term, offset: p.offset}
		held := r.gate.lease.Load()
		if held == nil || held.until < l.until {
			if r.reason == "" && held != nil && held.until <= now {
				r.reason = r.unrenewed(now, p)
			}
			r.lapse(now)
			r.gate.lease.Store(l)
			if !r.live && l.until > now {
				r.live, r.reason = true, ""
				r.cfg.Logger.Info("the lease holds")
			}
		}
		return true
	})
}

// lapse notes that the lease has ended, where it has. r.mu is held.
func (r *Replica) lapse(now time.Duration) {
	if l := r.gate.lease.Load(); !r.live || l != nil && l.until > now {
		return
	}
	r.live = false
	if r.closed {
		return
	}
	r.lapses++
	r.cfg.Logger.Warn("the lease has ended: nothing is decided here until there is a new one", "reason", r.reason)
}

// stood is how long this process may have done nothing, by the renewals that it did not try; 0 where it tried each in time.
// r.mu is held.
func (r *Replica) stood(now time.Duration) time.Duration {
	if stood := max(r.pause, now-r.sentAt); stood > tryEvery {
		return stood
	}
	return 0
}

// unrenewed is why a lease ended before the next renewal, which was no failure, was of use. r.mu is held.
func (r *Replica) unrenewed(now time.Duration, p promise) string {
	switch stood := r.stood(now); {
	case stood > 0:
		return fmt.Sprintf("this process stood still for about %s: it was stopped, or its machine was, or others took all of the processor's time",
			stood.Round(100*time.Millisecond))
	case now-p.at > r.took+clockSlack:
		return "changes were not applied in time"
	}
	return "it was not renewed in time"
}

// void ends the lease, and all that renewals promised. r.mu is held.
func (r *Replica) void(reason string) {
	r.gate.lease.Store(nil)
	r.waiting = nil
	r.reason = reason
	r.lapse(0)
}

func (r *Replica) refusal() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return &NoLeaseError{Reason: r.reason}
}

// jumped judges a lease under which the wall clock seems to have jumped. It looks again first: this process may have stood
// still between two readings.
func (r *Replica) jumped(l *lease) error {
	if m := read(r.clock); m.ok && near(m.offset, l.offset, clockSlack) {
		if m.boot >= l.until {
			return &NoLeaseError{Reason: "it was not renewed in time"}
		}
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gate.lease.Load() == l {
		r.void("the wall clock jumped")
		wake(r.wakeRenewer)
	}
	return &NoLeaseError{Reason: "the wall clock jumped"}
}
