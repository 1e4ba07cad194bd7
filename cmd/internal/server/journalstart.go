// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/store"
)

// journalRegister keeps in the database what whoever holds the journal's files must not rewrite.
type journalRegister struct {
	store  *store.Store
	shared bool // with other replicas
}

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
		Head: audit.Head{Seq: j.HeadSeq, Chain: j.HeadChain}, HeadAt: j.HeadAt,
	}, nil
}

// Begin implements audit.Registrar. The journals of the other replicas are asked to speak of this one.
func (r journalRegister) Begin(ctx context.Context, i audit.Incarnation) error {
	err := r.store.BeginJournal(ctx, store.Journal{
		Replica: i.Replica, Incarnation: i.Incarnation, FirstKey: i.Key,
		PreviousSeq: i.Previous.Seq, PreviousChain: i.Previous.Chain, StartedAt: i.Started,
	})
	if err != nil || !r.shared {
		return err
	}
	return r.store.AskWitness(ctx)
}

// openJournal goes on with the journal.
func (s *service) openJournal(ctx context.Context, db *store.Store) (*audit.Log, error) {
	s.journalTimes = newJournalTimes()
	s.journalKeys = newJournalKeys(db, s.cfg.Audit.Retention)
	cfg := audit.Config{
		Installation: s.replica.Installation, Replica: s.replica.Replica,
		Dir: filepath.Join(s.cfg.Data, journalFolder), Reserve: s.reserve, Registrar: journalRegister{db, s.shares()}, Keys: s.journalKeys,
		SyncInterval: s.cfg.Audit.SyncInterval, SegmentBytes: int64(s.cfg.Audit.SegmentSize), SegmentAge: s.cfg.Audit.SegmentAge,
		RefusalBytes: int64(s.cfg.Audit.RefusalQuota),
		InFlight:     s.pace.expected,
		Fatal:        s.mustEnd,
		Synced:       s.journalTimes.observe, Logger: s.log,
		AcceptLoss: s.acceptLoss,
	}
	if s.cfg.Audit.Sync == "interval" {
		cfg.Sync = audit.Interval
	}
	journal, err := audit.Open(ctx, cfg)
	if damage, ok := errors.AsType[*audit.DamageError](err); ok {
		return nil, &StartError{Message: damage.Error(), Hint: s.damageHint(damage)}
	}
	return journal, err
}

// damageHint says what to do about a journal that is not what was written.
func (s *service) damageHint(d *audit.DamageError) string {
	const found = "nothing was touched: find out who or what changed it (certbound audit verify), and "
	if d.Lost == 0 {
		const back = "put the segment back from a copy; if a copy of this data folder ran meanwhile, that one's folder " + journalFolder + " is the journal"
		if s.shares() {
			return found + back + "; if nothing has it any more, go on as a new replica, in an empty data folder with the same key-encryption key"
		}
		return found + back
	}
	return found + fmt.Sprintf("put the newest copy of the folder back; if those records are lost for good, certbound serve --accept-journal-loss %d "+
		"goes on without them, and the journal says so", d.Lost)
}

// eventLoss is on record when the service went on without records that its journal had.
const eventLoss = "audit.loss"

// recordLoss puts a loss that was accepted on record for those who look for it by name; the first record of this run has
// it as well, which nothing can keep from being there.
func (s *service) recordLoss(ctx context.Context) {
	loss := s.folder.journal.Loss()
	if loss == nil {
		return
	}
	s.record(ctx, audit.Event{Name: eventLoss, Outcome: audit.Granted, Detail: map[string]string{
		"run":         strconv.FormatUint(loss.Incarnation, 10),
		"known":       strconv.FormatUint(loss.Known.Seq, 10),
		"known_at":    loss.KnownAt,
		"known_chain": base64.RawURLEncoding.EncodeToString(loss.Known.Chain[:]),
		"found":       strconv.FormatUint(loss.Found.Seq, 10),
		"found_chain": base64.RawURLEncoding.EncodeToString(loss.Found.Chain[:]),
	}})
}
