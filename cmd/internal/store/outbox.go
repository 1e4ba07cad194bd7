// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// maxEntry bounds the body of an entry: no record is longer.
const maxEntry = 1 << 20

// errOutside says that the outbox was to be written outside of a transaction.
var errOutside = errors.New("entries are noted in the transaction of their change only")

func entryPlace(id string) place {
	return place{table: "outbox", id: id, purpose: "event", version: sealVersion}
}

// Note puts entries into the outbox, in the transaction that s is: they are there exactly when its change is. Their order
// is kept. The bodies are sealed under the key-encryption key, for records name people. The error is ErrExists for an id
// that waits already.
func (s *Store) Note(entries ...Entry) error {
	if s.tx == nil {
		return errOutside
	}
	return s.tx.part(func(c *change) error {
		for _, e := range entries {
			if err := s.note(c, e); err != nil {
				return fmt.Errorf("note an entry: %w", err)
			}
		}
		return nil
	})
}

func (s *Store) note(c *change, e Entry) error { return s.noteAs(c, s.replica, e) }

func (s *Store) noteAs(c *change, replica string, e Entry) error {
	if e.ID == "" || len(e.Body) == 0 || len(e.Body) > maxEntry {
		return fmt.Errorf("an entry needs an id and a body of at most %d bytes", maxEntry)
	}
	sealed, err := s.sealer.seal(entryPlace(e.ID), e.Body)
	if err != nil {
		return err
	}
	_, err = c.exec("outbox", insertNoted, e.ID, replica, sealed, moment(s.now()), c.noted)
	c.noted++
	return err
}

// Outbox lists the replica's entries that wait, in the order of their changes, at most limit. One that does not open is an error,
// never skipped.
func (s *Store) Outbox(ctx context.Context, limit int) ([]Entry, error) {
	rows, err := s.read.QueryContext(ctx, queryNoted, s.replica, limit)
	entries, err := all(rows, err, func(r row) (e Entry, err error) {
		if err := r.Scan(&e.ID, &e.Body, (*moment)(&e.NotedAt)); err != nil {
			return e, err
		}
		if e.Body, err = s.sealer.open(entryPlace(e.ID), e.Body); err != nil {
			return e, fmt.Errorf("entry %q: %w", e.ID, err)
		}
		return e, nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the outbox: %w", err)
	}
	return entries, nil
}

// AdoptOutbox makes the entries of replicas that have no lease this replica's, and returns how many. Their records may be in
// the journals of those replicas already: an event has one id, and is one event however often it is on record.
func (s *Store) AdoptOutbox(ctx context.Context) (n int64, err error) {
	err = s.change(context.WithoutCancel(ctx), func(c *change) error {
		n, err = c.link(adoptNoted, s.replica)
		c.wrote = c.wrote || n > 0
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("adopt the outbox of others: %w", err)
	}
	return n, nil
}

// Waiting counts the replica's entries of the outbox, and says since when the oldest waits: zero when none does.
func (s *Store) Waiting(ctx context.Context) (n int64, oldest time.Time, err error) {
	if err := s.read.QueryRowContext(ctx, queryWaiting, s.replica).Scan(&n, (*moment)(&oldest)); err != nil {
		return 0, time.Time{}, fmt.Errorf("count the outbox: %w", err)
	}
	return n, oldest, nil
}

// DropOutbox deletes entries, those that are there, in one transaction that ctx does not end.
func (s *Store) DropOutbox(ctx context.Context, ids ...string) error {
	err := s.change(context.WithoutCancel(ctx), func(c *change) error {
		for _, id := range ids {
			n, err := c.link(deleteNoted, id)
			if err != nil {
				return err
			}
			c.wrote = c.wrote || n > 0
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("empty the outbox: %w", err)
	}
	return nil
}
