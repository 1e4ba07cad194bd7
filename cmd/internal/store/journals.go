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

// Journal is one incarnation of a replica's journal, as it is known outside the journal: whoever can rewrite the journal's
// files cannot rewrite this as well. The head is where the journal was last known to stand.
type Journal struct {
	Replica       string
	Incarnation   uint64
	FirstKey      string // public key of the first checkpoint, base64url
	PreviousSeq   uint64 // where the incarnation before it ended
	PreviousChain [32]byte
	StartedAt     time.Time
	HeadSeq       uint64 // zero until it is known
	HeadChain     [32]byte
	HeadAt        time.Time
}

// BeginJournal stores an incarnation, or returns ErrExists: it is never replaced. Its head is not stored.
func (s *Store) BeginJournal(ctx context.Context, j Journal) error {
	err := s.direct(ctx, func(ctx context.Context, w conn) error {
		_, err := w.ExecContext(ctx, insertJournal, j.Replica, j.Incarnation, j.FirstKey,
			j.PreviousSeq, j.PreviousChain[:], moment(j.StartedAt))
		return err
	})
	if s.dialect.isUnique(err) {
		err = ErrExists
	}
	if err != nil {
		return fmt.Errorf("journal %d of %q: %w", j.Incarnation, j.Replica, err)
	}
	return nil
}

// LastJournal returns the newest incarnation of a replica's journal, or ErrNotFound.
func (s *Store) LastJournal(ctx context.Context, replica string) (Journal, error) {
	j := Journal{Replica: replica}
	err := s.read.QueryRowContext(ctx, queryLastJournal, replica).Scan(&j.Incarnation, &j.FirstKey, &j.PreviousSeq,
		(*digest)(&j.PreviousChain), (*moment)(&j.StartedAt), &j.HeadSeq, (*digest)(&j.HeadChain), (*moment)(&j.HeadAt))
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNotFound
	}
	if err != nil {
		return Journal{}, fmt.Errorf("last journal of %q: %w", replica, err)
	}
	return j, nil
}

// AdvanceHead stores where a journal stands now, without a lease to carry it. A head that is not greater than the stored
// one changes nothing.
func (s *Store) AdvanceHead(ctx context.Context, replica string, incarnation, seq uint64, chain [32]byte) error {
	err := s.direct(ctx, func(ctx context.Context, w conn) error {
		_, err := w.ExecContext(ctx, advanceHead, replica, incarnation, seq, chain[:], moment(s.now()))
		return err
	})
	if err != nil {
		return fmt.Errorf("head of journal %d of %q: %w", incarnation, replica, err)
	}
	return nil
}

// JournalHeads lists where the journals of all replicas were last known to stand, one of each replica and its newest that is
// known: at most limit, those that moved last.
func (s *Store) JournalHeads(ctx context.Context, limit int) ([]Journal, error) {
	rows, err := s.read.QueryContext(ctx, queryJournalHeads, limit)
	heads, err := all(rows, err, func(r row) (j Journal, err error) {
		err = r.Scan(&j.Replica, &j.Incarnation, &j.FirstKey, &j.PreviousSeq, (*digest)(&j.PreviousChain), (*moment)(&j.StartedAt),
			&j.HeadSeq, (*digest)(&j.HeadChain), (*moment)(&j.HeadAt))
		return j, err
	})
	if err != nil {
		return nil, fmt.Errorf("heads of the journals: %w", err)
	}
	return heads, nil
}

// AskWitness has the other replicas hear, as of a change, that a journal was begun: theirs are to speak of it.
func (s *Store) AskWitness(ctx context.Context) error {
	err := s.change(ctx, func(c *change) error {
		c.wrote, c.what.Journals = true, true
		return nil
	})
	if err != nil {
		return fmt.Errorf("ask the other replicas for a witness: %w", err)
	}
	return nil
}

// BegunJournals lists those replicas' newest incarnations of which no head is known yet: at most limit, those that began last.
func (s *Store) BegunJournals(ctx context.Context, limit int) ([]Journal, error) {
	rows, err := s.read.QueryContext(ctx, queryBegunJournals, limit)
	begun, err := all(rows, err, func(r row) (j Journal, err error) {
		err = r.Scan(&j.Replica, &j.Incarnation, &j.FirstKey, (*moment)(&j.StartedAt))
		return j, err
	})
	if err != nil {
		return nil, fmt.Errorf("journals that were begun: %w", err)
	}
	return begun, nil
}

// SetWitnessed stores that the journal of another replica speaks of an incarnation, durably. Only the first time counts.
func (s *Store) SetWitnessed(ctx context.Context, replica string, incarnation uint64) error {
	err := s.direct(ctx, func(ctx context.Context, w conn) error {
		_, err := w.ExecContext(ctx, setWitnessed, replica, incarnation, moment(s.now()))
		return err
	})
	if err != nil {
		return fmt.Errorf("witness of journal %d of %q: %w", incarnation, replica, err)
	}
	return nil
}

// Witnessed reports whether the journal of another replica speaks of an incarnation, and whether there is another replica
// that has renewed its lease within a time, by the database's clock.
func (s *Store) Witnessed(ctx context.Context, replica string, incarnation uint64, within time.Duration) (witnessed, others bool, err error) {
	if witnessed, others, err = s.dialect.witnessed(ctx, s.write, replica, incarnation, within, s.now()); err != nil {
		return false, false, fmt.Errorf("witness of journal %d of %q: %w", incarnation, replica, err)
	}
	return witnessed, others, nil
}
