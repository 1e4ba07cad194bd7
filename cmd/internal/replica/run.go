// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package replica

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/certbound/certbound/cmd/internal/store"
)

// Run renews the lease, follows what others change, acknowledges it, and removes the rows of replicas that are long gone.
// It returns nil after ctx has ended: nothing is granted any more from then on, the decisions that had passed the gate are
// waited for, and the row is removed last, so that nobody waits for this replica in vain. It returns an error when the
// replica can never serve again: store.ErrLeaseLost when a later incarnation has taken its name, store.ErrNotServable when
// the database was put out of service, ErrOtherDatabase, ErrRegressed. Everything else heals by itself.
func (r *Replica) Run(ctx context.Context) error {
	r.mu.Lock()
	if !r.begun || r.running || r.closed {
		r.mu.Unlock()
		return errors.New("replica: Run is called once, after Begin")
	}
	r.running = true
	r.mu.Unlock()

	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	group.Go(func() { r.follow(ctx) })
	group.Go(func() { r.keep(ctx) })
	failed := r.renewAlways(ctx)
	r.close(failed)
	cancel()
	group.Wait()
	if failed != nil {
		return failed
	}
	r.at(stepEnd)
	return r.end(context.WithoutCancel(ctx))
}

// close ends the lease for good.
func (r *Replica) close(failed error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed, r.failed = true, failed
	reason := "the service is stopping"
	if failed != nil {
		reason = failed.Error()
	}
	r.void(reason)
}

// end removes the row once nobody is at the gate any more. While somebody is, the row stays: others wait for it until its
// lease is over, and remove it later.
func (r *Replica) end(ctx context.Context) error {
	bound := time.NewTimer(leaveTimeout)
	defer bound.Stop()
	r.mu.Lock()
	last := r.gate.current.Load()
	last.retired.Store(true) // so that the last to leave wakes us
	r.mu.Unlock()
	for r.passages() > 0 {
		select {
		case <-r.wakeRenewer:
		case <-bound.C:
			r.cfg.Logger.WarnContext(ctx, "an answer was not written in time: the lease's row is left to the other replicas")
			return nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	if err := r.cfg.Database.EndLease(ctx, r.cfg.Name, r.cfg.Incarnation); err != nil {
		r.cfg.Logger.WarnContext(ctx, "the lease's row is left to the other replicas", "error", err)
	}
	return nil
}

func (r *Replica) passages() (n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, g := range append(r.drained(), r.gate.current.Load()) {
		n += g.in.Load()
	}
	return n
}

// renewAlways renews each second, and at once when there is something to acknowledge or somebody waits for it.
func (r *Replica) renewAlways(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	tried := true
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-r.wakeRenewer:
		}
		if wait := r.untilRenewal(tried); wait > 0 {
			timer.Reset(wait)
			continue
		}
		err := r.renew(ctx)
		tried = err == nil
		if final(err) && ctx.Err() == nil {
			r.cfg.Logger.ErrorContext(ctx, "this replica can serve no more", "error", err)
			return err
		}
		if err != nil {
			r.fail(ctx, err)
		}
		timer.Reset(r.untilRenewal(tried))
	}
}

func final(err error) bool {
	return errors.Is(err, store.ErrLeaseLost) || errors.Is(err, ErrOtherDatabase) || errors.Is(err, ErrRegressed) ||
		errors.Is(err, store.ErrNotServable)
}

// untilRenewal returns how long the next renewal has time.
func (r *Replica) untilRenewal(succeeded bool) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.renewal.at == 0 && r.sentAt == 0 {
		return 0
	}
	every := renewEvery
	switch {
	case !succeeded || r.gate.lease.Load() == nil && len(r.waiting) == 0 && !r.held:
		every = retryEvery
	case r.wanted > 0 || r.acknowledgeable() > r.acked:
		every = spacing
	}
	return max(0, r.sentAt+every-r.clock.Boot())
}

func (r *Replica) fail(ctx context.Context, err error) {
	r.warn(ctx, "the lease was not renewed", "error", err)
	now := r.clock.Boot()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failures++
	if l := r.gate.lease.Load(); l != nil && l.until <= now {
		r.reason = "it cannot be renewed"
		if r.stood(now) > 0 {
			r.reason = r.unrenewed(now, r.renewal)
		}
		r.lapse(now)
	}
}

// renew writes one renewal and judges what the database answered. Only a write that is known to be committed, by the
// database that this replica began on, while the clocks agree, promises anything.
func (r *Replica) renew(ctx context.Context) error {
	before := read(r.clock)
	r.mu.Lock()
	ack, newest := r.acknowledgeable(), r.newest
	r.pause = 0
	if r.sentAt > 0 {
		r.pause = before.boot - r.sentAt
	}
	r.sentAt, r.wanted = before.boot, 0
	r.mu.Unlock()
	seq, chain := r.cfg.Head()
	r.at(stepRenew)

	within, cancel := context.WithTimeout(ctx, renewTimeout)
	got, err := r.rules.renew(within, r.cfg.Database, store.LeaseRenewal{
		Replica: r.cfg.Name, Incarnation: r.cfg.Incarnation, Applied: ack, HeadSeq: seq, HeadChain: chain,
	})
	cancel()
	after := read(r.clock)
	r.at(stepRenewed)
	if errors.Is(err, store.ErrLeaseLost) {
		return r.rejoin(ctx)
	}
	if err != nil {
		return err
	}
	moved, err := r.identify(got, newest, after)
	if err != nil {
		return err
	}
	if moved {
		r.move(ctx, got.System)
	}
	if !r.promise(ctx, got, ack, before, after) {
		s := r.Status()
		r.warn(ctx, "the lease was renewed in vain: the clocks do not agree", "drift", s.Drift, "database_lead", s.DatabaseLead)
	}
	return nil
}

// rejoin writes the row anew when somebody removed it: other replicas do once this one was cut off for long. The lease
// then ended long ago. When a later incarnation has taken the name, that is store.ErrLeaseLost.
func (r *Replica) rejoin(ctx context.Context) error {
	r.mu.Lock()
	r.void("its row was removed")
	r.acked = 0
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	return r.insert(ctx)
}

// insert writes the row. The error is store.ErrLeaseLost when another process has it, for good; that there is one of this
// incarnation may only say that an earlier try was committed after all.
func (r *Replica) insert(ctx context.Context) error {
	r.mu.Lock()
	again := r.inserted
	r.inserted = true
	r.mu.Unlock()
	err := r.cfg.Database.BeginLease(ctx, r.row())
	if !again || !errors.Is(err, store.ErrLeaseLost) {
		return err
	}
	rows, listed := r.cfg.Database.Leases(ctx)
	if listed != nil {
		return listed
	}
	for _, row := range rows {
		if row.Replica == r.cfg.Name && row.Incarnation == r.cfg.Incarnation {
			return nil
		}
		if row.Replica == r.cfg.Name && row.Incarnation > r.cfg.Incarnation {
			return err
		}
	}
	return errors.New("the row of the lease came and went")
}

// identify judges which database has answered. newest is the version that was known before it was asked.
func (r *Replica) identify(got store.Renewed, newest int64, after reading) (moved bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.known && got.System.System != r.system.System:
		return false, fmt.Errorf("%w: its system identifier is %q, it was %q", ErrOtherDatabase, got.System.System, r.system.System)
	case r.known && got.System.Timeline < r.system.Timeline:
		// A former primary that still takes writes: what it says is no news.
		r.void("the database's former server answered")
		return false, fmt.Errorf("the server of timeline %d answered, after one of timeline %d", got.System.Timeline, r.system.Timeline)
	case got.Version < newest:
		return false, fmt.Errorf("%w: it is at version %d and was at %d", ErrRegressed, got.Version, newest)
	}
	same := r.known && got.System.Timeline == r.system.Timeline && got.System.StartedAt.Equal(r.system.StartedAt)
	if same {
		return false, nil
	}
	moved = r.known
	r.known, r.system, r.movedAt = true, got.System, after.boot
	r.moves++
	return moved, nil
}

// move forgets what was read from the database's former life.
func (r *Replica) move(ctx context.Context, to store.SystemID) {
	r.cfg.Logger.WarnContext(ctx, "the database's server was restarted or replaced", "timeline", to.Timeline, "started", to.StartedAt)
	r.at(stepMoved)
	if r.cfg.Moved != nil {
		r.cfg.Moved(to)
	}
	r.mu.Lock()
	applied := r.applied
	r.mu.Unlock()
	r.cfg.Database.Announce(store.Change{Full: true, Version: applied})
	r.mu.Lock()
	r.install(max(applied, r.applied)) // the follower may have been quicker
	r.mu.Unlock()
	wake(r.wakeKeeper)
}

// promise notes a renewal that was committed, and grants the lease when its version is applied already. It reports whether
// the clocks agree: where they do not, the renewal promises nothing.
func (r *Replica) promise(ctx context.Context, got store.Renewed, ack int64, before, after reading) (right bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := promise{at: r.rules.stamp(before.boot, after.boot), version: got.Version, offset: after.offset}
	r.see(got.Version)
	r.took, r.acked = after.boot-before.boot, max(r.acked, ack)
	right = r.judgeClocks(ctx, got, before, after)
	r.renewal = p
	if right {
		r.waiting = append(r.waiting, p)
		if r.gate.lease.Load() == nil {
			r.reason = "changes are not applied yet"
		}
		r.grant()
	}
	if got.Version > r.applied {
		wake(r.wakeFollower)
	}
	return right
}

// judgeClocks reports whether the wall clock agrees with the boot clock and with the database's. Where it is off by more
// than a second the lease is void; after more than five, nothing is issued until it was right for a term. r.mu is held.
func (r *Replica) judgeClocks(ctx context.Context, got store.Renewed, before, after reading) bool {
	drift := after.offset - before.offset
	if r.renewal.at > 0 {
		drift = after.offset - r.offset
	}
	r.drift, r.offset = drift, after.offset
	// The database took its time while the request was under way.
	r.lead = max(0, got.Now.Sub(after.wall)) + min(0, got.Now.Sub(before.wall))
	off := max(drift.Abs(), r.lead.Abs(), (after.offset - before.offset).Abs())
	switch {
	case !before.ok || !after.ok:
		r.void("the clocks could not be read together")
	case off > clockSlack:
		r.void("the wall clock is off by " + off.Round(time.Millisecond).String())
	}
	if off > clockAlarm && !r.held {
		r.held = true
		r.cfg.Logger.ErrorContext(ctx, "the wall clock is far off: nothing is issued until it is right", "drift", drift, "database_lead", r.lead)
	}
	right := before.ok && after.ok && off <= clockSlack
	if !r.held {
		return right
	}
	if right && !r.right {
		r.rightFrom = before.boot
	}
	r.right = right
	if right && before.boot-r.rightFrom >= Term {
		r.held, r.right = false, false
		r.cfg.Logger.InfoContext(ctx, "the wall clock is right again")
		return true
	}
	r.reason = "the wall clock was far off and has not been right for long enough"
	return false
}
