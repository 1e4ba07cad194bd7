// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
)

// The keys under which the journal seals what concerns a person: one a day and one a subject. They decide nothing, so
// they have no version and tell no listener, but for one: that a subject's secret is deleted must reach every replica.

// auditKeySize is the length of such a key.
const auditKeySize = 32

// auditKeys is one of the two tables of them.
type auditKeys struct {
	table, what           string
	insert, query, remove string
}

func auditDays() auditKeys {
	return auditKeys{"audit_days", "day", insertAuditDay, queryAuditDay, deleteAuditDays}
}

func auditSubjects() auditKeys {
	return auditKeys{"audit_subjects", "subject", insertAuditSubject, queryAuditSubject, deleteAuditSubject}
}

func (k auditKeys) place(id string, version int64) place {
	return place{table: k.table, id: id, purpose: "audit", version: version}
}

// AuditDay returns the key of a day such as "2026-11-23", made when it has none and the day is not before oldest. Else
// it is ErrNotFound: the key was deleted, and must not come back as another one.
func (s *Store) AuditDay(ctx context.Context, day, oldest string) ([]byte, error) {
	if day < oldest {
		return s.StoredAuditDay(ctx, day)
	}
	return s.auditKey(ctx, auditDays(), day)
}

// StoredAuditDay returns the key of a day, or ErrNotFound.
func (s *Store) StoredAuditDay(ctx context.Context, day string) ([]byte, error) {
	return s.storedAuditKey(ctx, auditDays(), day)
}

// DeleteAuditDays deletes the keys of the days before one, for good, and returns how many there were.
func (s *Store) DeleteAuditDays(ctx context.Context, before string) (int64, error) {
	return s.deleteAuditKeys(ctx, auditDays(), before)
}

// AuditSubject returns the secret of a subject, made when it has none.
func (s *Store) AuditSubject(ctx context.Context, id string) ([]byte, error) {
	return s.auditKey(ctx, auditSubjects(), id)
}

// StoredAuditSubject returns the secret of a subject, or ErrNotFound.
func (s *Store) StoredAuditSubject(ctx context.Context, id string) ([]byte, error) {
	return s.storedAuditKey(ctx, auditSubjects(), id)
}

// DeleteAuditSubject deletes the secret of a subject, for good, or returns ErrNotFound.
func (s *Store) DeleteAuditSubject(ctx context.Context, id string) error {
	n, err := s.deleteAuditKeys(ctx, auditSubjects(), id)
	if err == nil && n == 0 {
		err = fmt.Errorf("audit subject %q: %w", id, ErrNotFound)
	}
	return err
}

// auditKey returns a key, made when there is none: the first who stores one wins.
func (s *Store) auditKey(ctx context.Context, k auditKeys, id string) ([]byte, error) {
	key, err := s.storedAuditKey(ctx, k, id)
	if !errors.Is(err, ErrNotFound) {
		return key, err
	}
	sealed, err := s.newAuditKey(k, id)
	if err != nil {
		return nil, err
	}
	err = s.direct(ctx, func(ctx context.Context, w conn) error {
		_, err := w.ExecContext(ctx, k.insert, id, sealed, sealVersion)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make the audit key of %s %q: %w", k.what, id, err)
	}
	return s.storedAuditKey(ctx, k, id)
}

// newAuditKey returns a fresh key, sealed for its row.
func (s *Store) newAuditKey(k auditKeys, id string) ([]byte, error) {
	fresh := make([]byte, auditKeySize)
	if _, err := rand.Read(fresh); err != nil {
		return nil, err
	}
	return s.sealer.seal(k.place(id, sealVersion), fresh)
}

func (s *Store) storedAuditKey(ctx context.Context, k auditKeys, id string) ([]byte, error) {
	var sealed []byte
	var version int64
	err := s.read.QueryRowContext(ctx, k.query, id).Scan(&sealed, &version)
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("audit key of %s %q: %w", k.what, id, err)
	}
	return s.openAuditKey(k, id, sealed, version)
}

// openAuditKey unseals the key of a row.
func (s *Store) openAuditKey(k auditKeys, id string, sealed []byte, version int64) ([]byte, error) {
	key, err := s.sealer.open(k.place(id, version), sealed)
	if err == nil && len(key) != auditKeySize {
		err = fmt.Errorf("%w: it has %d bytes", ErrDamaged, len(key))
	}
	if err != nil {
		return nil, fmt.Errorf("audit key of %s %q: %w", k.what, id, err)
	}
	return key, nil
}

// deleteAuditKeys deletes keys, and sees to it that their bytes leave the database's files once that is committed.
func (s *Store) deleteAuditKeys(ctx context.Context, k auditKeys, arg string) (n int64, err error) {
	err = s.change(ctx, func(c *change) error {
		if n, err = c.link(k.remove, arg); err != nil || n == 0 {
			return err
		}
		c.wrote, c.forget = true, true
		if k.table == auditSubjects().table {
			c.what.AuditSubjects = append(c.what.AuditSubjects, arg)
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("delete audit keys of %s %q: %w", k.what, arg, err)
	}
	return n, nil
}
