// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"slices"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/replica"
)

const (
	// headInterval is how often the journal's head is left in the database when it has moved.
	headInterval = 3 * time.Second
	// watchInterval is how often it is looked where the other replicas' journals stand; each is recorded less often.
	watchInterval = 10 * time.Second
	// maxJournals bounds how many replicas' journals are watched: those that moved last.
	maxJournals = 256
	// witnessTimeout bounds the wait for another replica's journal to speak of this one. One that serves does so in some
	// milliseconds, and where it only polls within 150 of them.
	witnessTimeout = 2 * time.Second
	// lastWrite bounds the last one, when the service stops.
	lastWrite = 5 * time.Second
)

// keepHead leaves in the database where the journal stands, signed and durable, until ctx ends: the next start is held to
// it. Where replicas share the database it rides in the renewal of the lease.
func (s *service) keepHead(ctx context.Context) {
	if s.shares() {
		return
	}
	tick := time.NewTicker(headInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := s.leaveHead(ctx); err != nil && ctx.Err() == nil {
			s.log.ErrorContext(ctx, "where the journal stands could not be left in the database", "error", err)
		}
	}
}

// leaveHead writes the head, if it has moved since.
func (s *service) leaveHead(ctx context.Context) error {
	s.head.Lock()
	defer s.head.Unlock()
	seq, chain := s.folder.journal.SignedHead()
	if seq <= s.head.left {
		return nil
	}
	if err := s.folder.store.AdvanceHead(ctx, s.replica.Replica, s.folder.journal.Incarnation(), seq, chain); err != nil {
		return err
	}
	s.head.left = seq
	return nil
}

// closeJournal ends the journal, and leaves its last head in the database.
func (s *service) closeJournal() error {
	err := s.folder.journal.Close()
	ctx, cancel := context.WithTimeout(context.Background(), lastWrite)
	defer cancel()
	if err := s.leaveHead(ctx); err != nil { // nothing is lost: the one before is there
		s.log.Warn("where the journal ended could not be left in the database", "error", err)
	}
	return err
}

// watchJournals has the journal say where those of the other replicas stand, of those that are gone too, until ctx ends, and
// at once that another one was begun. In a database that is this process' alone nothing of them changes.
func (s *service) watchJournals(ctx context.Context) {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	var begun chan struct{}
	if s.member != nil {
		begun = s.member.begun
	}
	var w watch
	for {
		err := s.witness(ctx, &w)
		switch {
		case err == nil && !s.shares():
			return
		case err != nil && ctx.Err() == nil:
			s.log.WarnContext(ctx, "where the other replicas' journals stand could not be read", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-begun:
		case <-tick.C:
		}
	}
}

// watch is what whoever watches the other replicas' journals remembers.
type watch struct {
	said []string          // alarms that were raised
	told map[string]uint64 // incarnations, by replica, of which the database knows that this journal speaks of them
}

// witness has the journal speak of those of the other replicas, and tells those that were begun of it once the disk has it.
func (s *service) witness(ctx context.Context, w *watch) error {
	heads, err := s.otherHeads(ctx)
	if err != nil {
		return err
	}
	begun, err := s.otherBegun(ctx)
	if err != nil {
		return err
	}
	_, alarms := s.folder.journal.Witness(slices.Concat(heads, begun))
	for _, alarm := range alarms {
		if !slices.Contains(w.said, alarm) {
			s.log.ErrorContext(ctx, "the database says less of another replica's journal than it did: it was put back, or that journal was", "alarm", alarm)
		}
	}
	w.said = alarms
	told := make(map[string]uint64, len(begun))
	for _, b := range begun {
		if w.told[b.Replica] != b.Incarnation {
			if !s.folder.journal.Witnesses(b.Identity) {
				continue
			}
			if err := s.folder.store.SetWitnessed(ctx, b.Replica, b.Incarnation); err != nil {
				return err
			}
		}
		told[b.Replica] = b.Incarnation
	}
	w.told = told
	return nil
}

// awaitWitness waits, before anything is decided here, until the journal of another live replica says that this one was
// begun: else nobody would miss it were this replica lost before its head is known elsewhere, and a restore without it would
// give back what it took away. Where there is no other live replica nobody can. One that does not answer is waited for no
// longer than witnessTimeout: a start must not depend on it.
func (s *service) awaitWitness(ctx context.Context) error {
	incarnation := s.folder.journal.Incarnation()
	if incarnation == 0 { // it has no journal yet, and gives nothing until then; the others are asked when it has
		return nil
	}
	const pause = 20 * time.Millisecond
	var w watch
	for end := time.Now().Add(witnessTimeout); ; time.Sleep(pause) {
		// Those that begin now wait for this one in the same way.
		if err := s.witness(ctx, &w); err != nil {
			return err
		}
		witnessed, others, err := s.folder.store.Witnessed(ctx, s.replica.Replica, incarnation, replica.Term)
		switch {
		case err != nil || witnessed || !others:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case time.Now().After(end):
			s.log.WarnContext(ctx, "no other replica's journal speaks of this one yet: were this one lost now, nobody would miss it", "waited", witnessTimeout)
			return nil
		}
	}
}

// otherBegun are other replicas' journals that were begun, and of which no head is known yet.
func (s *service) otherBegun(ctx context.Context) ([]audit.Anchor, error) {
	journals, err := s.folder.store.BegunJournals(ctx, maxJournals)
	if err != nil {
		return nil, err
	}
	begun := make([]audit.Anchor, 0, len(journals))
	for _, j := range journals {
		if j.Replica == s.replica.Replica {
			continue
		}
		begun = append(begun, audit.Anchor{
			Identity: audit.Identity{Installation: s.replica.Installation, Replica: j.Replica, Incarnation: j.Incarnation},
			FirstKey: j.FirstKey, Seen: &audit.Sighting{By: audit.ByDatabase, Time: j.StartedAt},
		})
	}
	return begun, nil
}

// otherHeads are the heads that the database knows of other replicas' journals.
func (s *service) otherHeads(ctx context.Context) ([]audit.Anchor, error) {
	heads, err := s.knownHeads(ctx)
	if err != nil {
		return nil, err
	}
	others := heads[:0]
	for _, h := range heads {
		if h.Replica != s.replica.Replica {
			others = append(others, h)
		}
	}
	return others, nil
}

// knownHeads are all that the database knows.
func (s *service) knownHeads(ctx context.Context) ([]audit.Anchor, error) {
	journals, err := s.folder.store.JournalHeads(ctx, maxJournals)
	if err != nil {
		return nil, err
	}
	heads := make([]audit.Anchor, 0, len(journals))
	for _, j := range journals {
		heads = append(heads, audit.Anchor{
			Identity: audit.Identity{Installation: s.replica.Installation, Replica: j.Replica, Incarnation: j.Incarnation},
			FirstKey: j.FirstKey,
			Seen:     &audit.Sighting{By: audit.ByDatabase, Head: audit.Head{Seq: j.HeadSeq, Chain: j.HeadChain}, Time: j.HeadAt},
		})
	}
	return heads, nil
}
