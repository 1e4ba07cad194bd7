// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// expiredWindow is among how many rows, and those that expired in the same instant as the last of them, dispensable ones
// are looked for at once.
const expiredWindow = 1000

// Expired is a walk over the certificates that expired before a time, the oldest first, which finds those that the
// inventory can do without. Two kinds it cannot: a client's newest certificate, since whose its key and its id are is told
// by it, and the one that a family of renewals begins with, as long as anything is left of the family, since revoking it
// takes the rest. It is for one goroutine.
type Expired struct {
	s         *Store
	before    int64 // all three in microseconds since 1970
	from, end int64 // of the window; an end before its beginning is none
	window    int
}

// Expired returns a walk over what expired before a time.
func (s *Store) Expired(before time.Time) *Expired {
	return &Expired{s: s, before: before.UnixMicro(), end: -1, window: expiredWindow}
}

// Next returns at most limit thumbprints for DropExpired, and whether there may be more. Those that are not dropped are
// returned again. It waits for nobody who writes.
func (e *Expired) Next(ctx context.Context, limit int) (list [][32]byte, more bool, err error) {
	if list, err = e.next(ctx, limit); err != nil {
		return nil, false, fmt.Errorf("look for expired certificates: %w", err)
	}
	return list, e.from < e.before, nil
}

func (e *Expired) next(ctx context.Context, limit int) ([][32]byte, error) {
	if e.end < e.from {
		err := e.s.read.QueryRowContext(ctx, queryExpiredEnd, e.from, e.before, e.window).Scan(&e.end)
		if errors.Is(err, sql.ErrNoRows) {
			e.end, err = e.before-1, nil
		}
		if err != nil {
			return nil, err
		}
	}
	rows, err := e.s.read.QueryContext(ctx, queryExpired, e.from, e.end, limit)
	list, err := all(rows, err, func(r row) (t [32]byte, err error) { return t, r.Scan((*digest)(&t)) })
	if err == nil && len(list) < limit {
		e.from = e.end + 1
	}
	return list, err
}

// DropExpired deletes those of the certificates that expired before a time and that the inventory can do without, see
// Expired, for as long as it may hold others up, and returns how many. What was renewed from one of them counts as
// renewed from the one before it: so who revokes that takes what was renewed since, as before.
func (s *Store) DropExpired(ctx context.Context, thumbprints [][32]byte, before time.Time, atMost time.Duration) (int, error) {
	dropped := 0
	err := s.change(ctx, func(c *change) error {
		began := time.Now()
		for _, t := range thumbprints {
			if dropped > 0 && time.Since(began) > atMost {
				return nil
			}
			did, err := c.dropExpired(t, before)
			if err != nil {
				return err
			}
			if did {
				dropped++
			}
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("delete expired certificates: %w", err)
	}
	return dropped, nil
}

// dropExpired judges again, since the thumbprint was found outside of the transaction.
func (c *change) dropExpired(thumbprint [32]byte, before time.Time) (bool, error) {
	var parent digest
	err := c.tx.QueryRowContext(c.ctx, queryDispensable, digest(thumbprint), moment(before)).Scan(&parent)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if _, err := c.exec("certificates", setParent, digest(thumbprint), parent); err != nil {
		return false, err
	}
	n, err := c.exec("certificates", deleteCertificate, digest(thumbprint))
	if n > 0 {
		c.what.Thumbprints = append(c.what.Thumbprints, thumbprint)
	}
	return n > 0, err
}
