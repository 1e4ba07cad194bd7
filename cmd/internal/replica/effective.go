// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package replica

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/certbound/certbound/cmd/internal/store"
)

// Effect says how a change came into force everywhere.
type Effect struct {
	// Early: every replica has said that it applied the change. Else whoever had not has no lease any more.
	Early bool
	// SingleNode: the commit may not outlive the loss of the database's machine, and then the change does not either.
	SingleNode bool
	// Took is how long that was after the call.
	Took time.Duration
}

const (
	lookFirst  = 2 * time.Millisecond
	lookAtMost = 50 * time.Millisecond
)

// Effective returns when no replica that holds a lease decides on a state before version any more. It is called when the
// commit of version has returned, and again, with the same version, by whoever repeats the request: that a change was made
// before does not say that it is in force. An error of the commit that is store.ErrUnknown is nothing to wait for: the
// request has to be repeated until the commit is known.
//
// It returns early when every row says that its replica has applied the version, as long as the database has had the same
// life for a while. Else, and when the rows cannot be read, it waits a little more than a term, on this machine's clock.
//
// Errors: a *PendingError when ctx ended first; store.ErrUnknown when the database has been seen without the commit.
func (r *Replica) Effective(ctx context.Context, version int64) (Effect, error) {
	began := r.clock.Boot()
	r.at(stepWait)
	by := began + Settled
	wake(r.wakeFollower)
	for pause := lookFirst; ; pause = min(2*pause, lookAtMost) {
		early, err := r.early(ctx, version, began, by)
		if err != nil {
			return Effect{}, err
		}
		now := r.clock.Boot()
		if early || now >= by {
			return r.effect(early, now-began), nil
		}
		select {
		case <-ctx.Done():
			return Effect{}, &PendingError{By: r.clock.Wall().Add(by - r.clock.Boot()), Err: context.Cause(ctx)}
		case <-time.After(min(pause, by-now)):
		}
	}
}

func (r *Replica) effect(early bool, took time.Duration) Effect {
	r.mu.Lock()
	defer r.mu.Unlock()
	return Effect{Early: early, SingleNode: !r.durable, Took: took}
}

// early reports whether every replica has applied the version, according to rows that were read after the commit, from a
// database that was known, after the commit, to have had the same life for long.
func (r *Replica) early(ctx context.Context, version int64, began, by time.Duration) (bool, error) {
	moves, ok, err := r.confirmed(version, began)
	if !ok || err != nil {
		return false, err
	}
	r.at(stepRead)
	left := by - r.clock.Boot()
	if left <= 0 {
		return false, nil
	}
	within, cancel := context.WithTimeout(ctx, left)
	defer cancel()
	rows, err := r.cfg.Database.Leases(within)
	if err != nil || !r.all(rows, version) {
		return false, nil // the time will tell
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.moves == moves && !r.closed, nil
}

// confirmed reports whether a renewal that was sent after began has shown that the database is the one of before. It asks
// for one where there was none yet.
func (r *Replica) confirmed(version int64, began time.Duration) (moves uint64, ok bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	after := r.renewal.at >= began
	switch {
	case errors.Is(r.failed, ErrOtherDatabase) || errors.Is(r.failed, ErrRegressed):
		return 0, false, fmt.Errorf("%w: %w", store.ErrUnknown, r.failed)
	case after && r.renewal.version < version:
		return 0, false, fmt.Errorf("%w: the database was at version %d after version %d had been committed",
			store.ErrUnknown, r.renewal.version, version)
	case r.applied < version:
		wake(r.wakeFollower)
		return 0, false, nil
	case !after:
		r.wanted++
		wake(r.wakeRenewer)
		return 0, false, nil
	}
	return r.moves, r.rules.steady(r.clock.Boot(), r.movedAt), nil
}

// all reports whether every row, this replica's own among them, acknowledges the version.
func (r *Replica) all(rows []store.Lease, version int64) bool {
	own := false
	for _, row := range rows {
		if row.Applied < version {
			return false
		}
		own = own || row.Replica == r.cfg.Name && row.Incarnation == r.cfg.Incarnation
	}
	return own
}
