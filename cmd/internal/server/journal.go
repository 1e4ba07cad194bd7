// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/store"
)

// journalKeys are the keys of what the journal seals, in the database. A day's key is kept in memory while it is in use;
// what is made of a subject's secret the journal keeps.
type journalKeys struct {
	store     *store.Store
	retention time.Duration // how long a day's key is kept; 0: for ever
	now       func() time.Time

	mu   sync.Mutex
	days map[string][]byte
	// ahead returns a subject's secret that somebody has just read, or nil and who is to be told it; may be nil.
	ahead func(id string) (secret []byte, learned func(secret []byte))
}

// maxDays bounds the keys of days that are in memory.
const maxDays = 8

func newJournalKeys(db *store.Store, retention time.Duration) *journalKeys {
	return &journalKeys{store: db, retention: retention, now: time.Now, days: make(map[string][]byte)}
}

// oldest is the first day whose key has not been deleted; any day when none ever is.
func (k *journalKeys) oldest() string {
	if k.retention <= 0 {
		return ""
	}
	return audit.Day(k.now().Add(-k.retention))
}

// Day implements audit.Keys.
func (k *journalKeys) Day(ctx context.Context, day string) ([]byte, error) {
	k.mu.Lock()
	key := k.days[day]
	k.mu.Unlock()
	oldest := k.oldest()
	if key != nil && day >= oldest {
		return key, nil
	}
	ctx, cancel := context.WithTimeout(ctx, readTime)
	defer cancel()
	key, err := k.store.AuditDay(ctx, day, oldest)
	if err != nil {
		return nil, erased(err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.days) >= maxDays {
		clear(k.days)
	}
	k.days[day] = key
	return key, nil
}

// forget drops the days' keys from memory.
func (k *journalKeys) forget() {
	k.mu.Lock()
	defer k.mu.Unlock()
	clear(k.days)
}

// Subject implements audit.Keys.
func (k *journalKeys) Subject(ctx context.Context, id string) ([]byte, error) {
	k.mu.Lock()
	ahead := k.ahead
	k.mu.Unlock()
	learned := func([]byte) {}
	if ahead != nil {
		var secret []byte
		if secret, learned = ahead(id); secret != nil {
			return secret, nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, readTime)
	defer cancel()
	secret, err := k.store.AuditSubject(ctx, id)
	if err == nil {
		learned(secret)
	}
	return secret, err
}

// lookAhead has f asked for subjects' secrets before the database is, and told those that the database was asked for.
func (k *journalKeys) lookAhead(f func(id string) (secret []byte, learned func(secret []byte))) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ahead = f
}

// StoredDay implements audit.StoredKeys.
func (k *journalKeys) StoredDay(ctx context.Context, day string) ([]byte, error) {
	key, err := k.store.StoredAuditDay(ctx, day)
	return key, erased(err)
}

// StoredSubject implements audit.StoredKeys.
func (k *journalKeys) StoredSubject(ctx context.Context, id string) ([]byte, error) {
	key, err := k.store.StoredAuditSubject(ctx, id)
	return key, erased(err)
}

// deleteBefore deletes the keys of the days before one.
func (k *journalKeys) deleteBefore(ctx context.Context, day string) (int64, error) {
	n, err := k.store.DeleteAuditDays(ctx, day)
	k.forget()
	return n, err
}

// erased is how the journal calls a key that is not there.
func erased(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("%w: %w", audit.ErrErased, err)
	}
	return err
}

// openReserve makes room for the day when a disk is full, before anything else is opened: a service that cannot start
// takes nothing away.
func (s *service) openReserve() error {
	dirs := []string{s.cfg.Data}
	if journal := filepath.Join(s.cfg.Data, journalFolder); isFolder(journal) {
		dirs = append(dirs, journal) // it may be a file system of its own
	}
	reserve, err := audit.OpenReserve(audit.ReserveConfig{Dirs: dirs, Logger: s.log})
	if err != nil {
		return err
	}
	s.onClose(reserve.Close)
	s.reserve = reserve
	return nil
}

func isFolder(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.IsDir()
}

// retentionInterval is how often the journal is looked at for what is too old.
const retentionInterval = time.Hour

// keepRetention removes from the journal what is too old, now and then every hour, until ctx ends.
func (s *service) keepRetention(ctx context.Context) {
	tick := time.NewTicker(retentionInterval)
	defer tick.Stop()
	for {
		if err := s.retain(ctx); err != nil && ctx.Err() == nil {
			s.log.ErrorContext(ctx, "what is too old could not be removed from the journal", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// retain removes old segments, which are recorded first, and then the keys of their days, which makes unreadable what is
// left of those days. Cut short anywhere, it is finished by the next one.
func (s *service) retain(ctx context.Context) error {
	if s.cfg.Audit.Retention == 0 {
		return s.folder.journal.Retain(ctx, time.Time{})
	}
	if !s.mayForget() {
		return nil // what is too old stays until the next time: nobody can bring it back
	}
	before := s.journalKeys.now().Add(-s.cfg.Audit.Retention)
	if err := s.folder.journal.Retain(ctx, before); err != nil {
		return err
	}
	n, err := s.journalKeys.deleteBefore(ctx, audit.Day(before))
	if err != nil {
		return err
	}
	s.folder.journal.ForgetBefore(before)
	if n > 0 {
		s.log.InfoContext(ctx, "keys of the journal were deleted: what they sealed cannot be read any more", "days", n, "before", audit.Day(before))
	}
	return nil
}

// forgetErased drops what is in memory of secrets that were deleted.
func (s *service) forgetErased(c store.Change) {
	for _, id := range c.AuditSubjects {
		s.folder.journal.Forget(id)
	}
	if c.Full {
		s.journalKeys.forget()
		s.folder.journal.ForgetBefore(time.Now().AddDate(1, 0, 0)) // all of them
	}
}
