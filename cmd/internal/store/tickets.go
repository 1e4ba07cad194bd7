// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"time"
)

// The life of a shared key of session tickets.
const (
	// ticketHour is how long it seals.
	ticketHour = time.Hour
	// TicketLife is how long after its start it is accepted.
	TicketLife = 2 * ticketHour
	// ticketSkew is how far ahead the clock of who made a key may be.
	ticketSkew = time.Minute
)

// ticketPurpose is what the seal of the keys says they are for.
const ticketPurpose = "ticket"

// TicketKey is a key that seals the TLS session tickets of one listener. Whoever has it can resume as any client whose
// certificate he has seen, so it leaves the database sealed only, and the process never.
type TicketKey struct {
	StartedAt time.Time // a full hour; the key is worth nothing TicketLife later
	Key       [32]byte
}

func ticketPlace(listener string, started time.Time, version int64) place {
	return place{table: "ticket_keys", id: fmt.Sprintf("%s|%d", listener, started.UnixMicro()), purpose: ticketPurpose, version: version}
}

// TicketKeys returns the keys of a listener's session tickets that all servers share now, the one to seal with first. Of
// the servers that ask in a new hour the first makes its key, and deletes what is too old. A key that does not open under
// the key-encryption key, or lies at another listener or hour than it was made for, is an error, never skipped.
func (s *Store) TicketKeys(ctx context.Context, listener string, now time.Time) ([]TicketKey, error) {
	keys, err := s.ticketKeys(ctx, s.read, listener, now)
	if err == nil && !slices.ContainsFunc(keys, startedIn(now)) {
		err = s.change(ctx, func(c *change) error {
			if keys, err = s.ticketKeys(ctx, c.tx, listener, now); err != nil || slices.ContainsFunc(keys, startedIn(now)) {
				return err
			}
			if err := s.addTicketKey(c, listener, now.Truncate(ticketHour)); err != nil {
				return err
			}
			keys, err = s.ticketKeys(ctx, c.tx, listener, now)
			return err
		})
	}
	if err != nil {
		return nil, fmt.Errorf("keys of session tickets at %s: %w", listener, err)
	}
	return keys, nil
}

// startedIn reports which key is that of the hour.
func startedIn(now time.Time) func(TicketKey) bool {
	return func(k TicketKey) bool { return k.StartedAt.Equal(now.Truncate(ticketHour)) }
}

func (s *Store) ticketKeys(ctx context.Context, db conn, listener string, now time.Time) ([]TicketKey, error) {
	// The first that still counts began less than TicketLife ago.
	rows, err := db.QueryContext(ctx, queryTicketKeys, listener, moment(now.Add(-TicketLife)), moment(now.Add(ticketSkew)))
	return all(rows, err, func(r row) (TicketKey, error) {
		var k TicketKey
		var sealed []byte
		var version int64
		if err := r.Scan((*moment)(&k.StartedAt), &sealed, &version); err != nil {
			return k, err
		}
		plain, err := s.sealer.open(ticketPlace(listener, k.StartedAt, version), sealed)
		if err == nil && len(plain) != len(k.Key) {
			err = errUnseal
		}
		copy(k.Key[:], plain)
		return k, err
	})
}

// addTicketKey adds the key of an hour. No server needs to know of it: each asks for itself when its hour begins.
func (s *Store) addTicketKey(c *change, listener string, hour time.Time) error {
	var key [32]byte
	_, _ = rand.Read(key[:]) // never fails: it ends the process before it would
	sealed, err := s.sealer.seal(ticketPlace(listener, hour, sealVersion), key[:])
	if err != nil {
		return err
	}
	c.wrote, c.forget = true, true
	if _, err := c.link(deleteTicketKeys, moment(hour.Add(ticketHour-TicketLife))); err != nil {
		return err
	}
	_, err = c.link(insertTicketKey, listener, moment(hour), sealed, sealVersion)
	return err
}

// ResetTicketKeys deletes all shared keys of session tickets: what was sealed under them resumes nothing at any server that
// has applied the change. It has a version also where there was none.
func (s *Store) ResetTicketKeys(ctx context.Context) error {
	if err := s.change(ctx, (*change).dropTickets); err != nil {
		return fmt.Errorf("reset the keys of session tickets: %w", err)
	}
	return nil
}

func (c *change) dropTickets() error {
	c.wrote, c.forget, c.what.Tickets = true, true, true
	_, err := c.link(resetTicketKeys)
	return err
}
