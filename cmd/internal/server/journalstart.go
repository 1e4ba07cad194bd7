// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/store"
)

// journalRegister keeps in the database what whoever holds the journal's files must not rewrite.
type journalRegister struct{ store *store.Store }

// Last implements audit.Registrar.
func (r journalRegister) Last(ctx context.Context, replica string) (audit.Incarnation, error) {
	j, err := r.store.LastJournal(ctx, replica)
	if errors.Is(err, store.ErrNotFound) {
		return audit.Incarnation{}, nil
	}
	if err != nil {
		return audit.Incarnation{}, err
	}
	return audit.Incarnation{
		Identity: audit.Identity{Replica: replica, Incarnation: j.Incarnation}, Key: j.FirstKey,
		Previous: audit.Head{Seq: j.PreviousSeq, Chain: j.PreviousChain}, Started: j.StartedAt,
	}, nil
}

// Begin implements audit.Registrar.
func (r journalRegister) Begin(ctx context.Context, i audit.Incarnation) error {
	return r.store.BeginJournal(ctx, store.Journal{
		Replica: i.Replica, Incarnation: i.Incarnation, FirstKey: i.Key,
		PreviousSeq: i.Previous.Seq, PreviousChain: i.Previous.Chain, StartedAt: i.Started,
	})
}

// openJournal goes on with the journal.
func (s *service) openJournal(ctx context.Context, db *store.Store) (*audit.Log, error) {
	s.journalTimes = newJournalTimes()
	s.journalKeys = newJournalKeys(db, s.cfg.Audit.Retention)
	cfg := audit.Config{
		Installation: s.replica.Installation, Replica: s.replica.Replica,
		Dir: filepath.Join(s.cfg.Data, journalFolder), Reserve: s.reserve, Registrar: journalRegister{db}, Keys: s.journalKeys,
		SyncInterval: s.cfg.Audit.SyncInterval, SegmentBytes: int64(s.cfg.Audit.SegmentSize), SegmentAge: s.cfg.Audit.SegmentAge,
		RefusalBytes: int64(s.cfg.Audit.RefusalQuota),
		InFlight:     s.pace.expected,
		Fatal:        s.mustEnd,
		Synced:       s.journalTimes.observe, Logger: s.log,
	}
	if s.cfg.Audit.Sync == "interval" {
		cfg.Sync = audit.Interval
	}
	journal, err := audit.Open(ctx, cfg)
	if damage, ok := errors.AsType[*audit.DamageError](err); ok {
		return nil, &StartError{
			Message: damage.Error(),
			Hint:    "nothing was touched: find out who or what changed it (certbound audit verify), and put the segment back from a copy",
		}
	}
	return journal, err
}
