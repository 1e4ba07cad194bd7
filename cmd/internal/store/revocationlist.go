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

// The statements about the revocation list, of which there is one row. A list replaces one with a smaller number only, and
// none that knows of more revocations.
const (
	queryRevocationList = `SELECT number, covers, made_at, der FROM revocation_list WHERE id = 1`
	putRevocationList   = `INSERT INTO revocation_list (id, number, covers, made_at, der) VALUES (1, $1, $2, $3, $4)
		ON CONFLICT (id) DO UPDATE SET number = excluded.number, covers = excluded.covers, made_at = excluded.made_at, der = excluded.der
		WHERE revocation_list.number < excluded.number AND revocation_list.covers <= excluded.covers`
)

// RevocationList is the list that is published, of which all replicas give out the same.
type RevocationList struct {
	Number int64 // RFC 5280, Section 5.2.3
	// Covers is a version of the state up to which every revocation is on the list.
	Covers int64
	MadeAt time.Time
	DER    []byte
}

// Revoked is an entry of a revocation list.
type Revoked struct {
	Serial string // decimal
	At     time.Time
	Reason int // RFC 5280, Section 5.3.1
}

// Revoked lists the revoked certificates that expire later than notAfter.
func (s *Store) Revoked(ctx context.Context, notAfter time.Time) ([]Revoked, error) {
	rows, err := s.read.QueryContext(ctx, queryRevoked, moment(notAfter))
	list, err := all(rows, err, func(r row) (e Revoked, err error) {
		err = r.Scan(&e.Serial, (*moment)(&e.At), &e.Reason)
		return e, err
	})
	if err != nil {
		return nil, fmt.Errorf("list what is revoked: %w", err)
	}
	return list, nil
}

// RevocationList returns the list that is published, or ErrNotFound before the first.
func (s *Store) RevocationList(ctx context.Context) (RevocationList, error) {
	var l RevocationList
	err := s.read.QueryRowContext(ctx, queryRevocationList).Scan(&l.Number, &l.Covers, (*moment)(&l.MadeAt), &l.DER)
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNotFound
	}
	if err != nil {
		return RevocationList{}, fmt.Errorf("read the revocation list: %w", err)
	}
	return l, nil
}

// PublishRevocationList stores a list, whose number is one of NextCRLNumber. It returns false, and stores nothing, when
// another with a greater number, or that covers more, is there already: then that is the one to give out.
func (s *Store) PublishRevocationList(ctx context.Context, l RevocationList) (bool, error) {
	var n int64
	err := s.direct(ctx, func(ctx context.Context, w conn) error {
		result, err := w.ExecContext(ctx, putRevocationList, l.Number, l.Covers, moment(l.MadeAt), l.DER)
		if err == nil {
			n, err = result.RowsAffected()
		}
		return err
	})
	if err != nil {
		return false, fmt.Errorf("store the revocation list: %w", err)
	}
	return n > 0, nil
}
