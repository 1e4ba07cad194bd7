// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package replica

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/certbound/certbound/cmd/internal/store"
)

// follow applies what was changed, when it hears of it and each 150 ms, until ctx ends.
func (r *Replica) follow(ctx context.Context) {
	pause := pollEvery
	timer := time.NewTimer(0)
	defer timer.Stop()
	hints := r.cfg.Hints
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-r.wakeFollower:
		case _, ok := <-hints:
			if !ok {
				hints = nil
			}
		}
		err := r.catchUp(ctx)
		if err == nil {
			pause = pollEvery
		} else {
			pause = min(2*pause, pollAtMost)
			r.warn(ctx, "changes cannot be followed", "error", err)
		}
		timer.Reset(pause)
	}
}

// catchUp applies every change that there is.
func (r *Replica) catchUp(ctx context.Context) error {
	for {
		r.mu.Lock()
		from := r.applied
		r.mu.Unlock()
		r.at(stepFollow)
		within, cancel := context.WithTimeout(ctx, pollTimeout)
		list, err := r.cfg.Database.ChangesSince(within, from, batch)
		cancel()
		if err != nil || len(list) == 0 {
			return err
		}
		if err := r.apply(from, list); err != nil {
			return err
		}
	}
}

// apply announces changes, and only then has decisions rest on the last of them.
func (r *Replica) apply(from int64, list []store.Change) error {
	at := from
	for _, c := range list {
		if c.Version <= at {
			return fmt.Errorf("the changes after version %d are out of order: %d after %d", from, c.Version, at)
		}
		at = c.Version
	}
	r.at(stepAnnounce)
	for _, c := range list {
		r.cfg.Database.Announce(c)
	}
	r.at(stepAnnounced)
	r.mu.Lock()
	r.see(at)
	r.install(at)
	r.mu.Unlock()
	r.at(stepApplied)
	return nil
}

// sighting is the row of another replica as it was first seen.
type sighting struct {
	row   store.Lease
	since time.Duration
}

// keep removes the rows of replicas that are long gone, and asks now and then what a commit survives.
func (r *Replica) keep(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	asked, moves := time.Duration(-1), uint64(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-r.wakeKeeper:
		}
		r.mu.Lock()
		moved := r.moves != moves
		moves = r.moves
		r.mu.Unlock()
		if now := r.clock.Boot(); asked < 0 || moved || now-asked >= durableEvery {
			r.askDurable(ctx)
			asked = now
		}
		if err := r.reap(ctx); err != nil {
			r.warn(ctx, "rows of replicas that are gone cannot be removed", "error", err)
		}
		timer.Reset(lookEvery)
	}
}

func (r *Replica) askDurable(ctx context.Context) {
	durable := false
	if r.cfg.Durable != nil {
		within, cancel := context.WithTimeout(ctx, pollTimeout)
		answer, err := r.cfg.Durable(within)
		cancel()
		durable = answer && err == nil
	}
	r.mu.Lock()
	r.durable = durable
	r.mu.Unlock()
}

// reap removes rows that were seen unchanged for ten terms on this machine's clock. While nobody looked, for instance since
// the database was away, nobody could have renewed either: the count begins anew.
func (r *Replica) reap(ctx context.Context) error {
	if r.Live() != nil {
		return nil
	}
	within, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	began := r.clock.Boot()
	rows, err := r.cfg.Database.Leases(within)
	if err != nil {
		return err
	}
	if r.cfg.Peers != nil {
		r.cfg.Peers(rows)
	}
	for _, row := range r.sight(rows, began) {
		r.cfg.Logger.WarnContext(ctx, "a replica is gone: its row is removed", "replica", row.Replica, "incarnation", row.Incarnation)
		if err := r.cfg.Database.ReapLease(within, row); err != nil {
			return err
		}
	}
	return nil
}

// Reset removes the rows of other replicas that do not renew them, without the patience of Run, and returns their names.
// It blocks for a little more than a term: after that a replica whose row has not changed has no lease, by its own clock
// too, and nobody need wait for it. It works without a lease of this replica's own.
func (r *Replica) Reset(ctx context.Context) (removed []string, err error) {
	before, err := r.cfg.Database.Leases(ctx)
	if err != nil {
		return nil, err
	}
	for until := r.clock.Boot() + Settled; r.clock.Boot() < until; {
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(until - r.clock.Boot()):
		}
	}
	after, err := r.cfg.Database.Leases(ctx)
	if err != nil {
		return nil, err
	}
	for _, row := range after {
		same := slices.ContainsFunc(before, func(b store.Lease) bool {
			return b.Replica == row.Replica && b.Incarnation == row.Incarnation && b.Renewals == row.Renewals
		})
		if !same || row.Replica == r.cfg.Name {
			continue
		}
		if err := r.cfg.Database.ReapLease(ctx, row); err != nil {
			return removed, err
		}
		removed = append(removed, row.Replica)
	}
	return removed, nil
}

// sight notes rows that were read after now, and returns those that have not changed for long.
func (r *Replica) sight(rows []store.Lease, now time.Duration) (gone []store.Lease) {
	r.mu.Lock()
	defer r.mu.Unlock()
	peers := make(map[string]sighting, len(rows))
	for _, row := range rows {
		if row.Replica == r.cfg.Name {
			continue
		}
		seen, ok := r.peers[row.Replica]
		if !ok || now-r.looked > 2*lookEvery || seen.row.Incarnation != row.Incarnation || seen.row.Renewals != row.Renewals {
			// It may have changed until it was read.
			seen = sighting{row: row, since: r.clock.Boot()}
		}
		peers[row.Replica] = seen
		if now-seen.since >= reapAfter {
			gone = append(gone, row)
		}
	}
	r.peers, r.looked = peers, now
	return gone
}
