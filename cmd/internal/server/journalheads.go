// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"slices"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
)

const (
	// headInterval is how often the journal's head is left in the database when it has moved.
	headInterval = 3 * time.Second
	// watchInterval is how often it is looked where the other replicas' journals stand; each is recorded less often.
	watchInterval = 10 * time.Second
	// maxJournals bounds how many replicas' journals are watched: those that moved last.
	maxJournals = 256
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

// watchJournals has the journal say where those of the other replicas stand, of those that are gone too, until ctx ends. In
// a database that is this process' alone nothing of them changes.
func (s *service) watchJournals(ctx context.Context) {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	var said []string
	for {
		heads, err := s.otherHeads(ctx)
		switch {
		case err == nil:
			_, alarms := s.folder.journal.Witness(heads)
			for _, alarm := range alarms {
				if slices.Contains(said, alarm) {
					continue
				}
				s.log.ErrorContext(ctx, "the database says less of another replica's journal than it did: it was put back, or that journal was", "alarm", alarm)
			}
			said = alarms
		case ctx.Err() == nil:
			s.log.WarnContext(ctx, "where the other replicas' journals stand could not be read", "error", err)
		}
		if err == nil && !s.shares() {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
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
