// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"fmt"
)

// TransactAt is Transact, and returns the version from which on what f made, or found made already, holds: that of the
// transaction, or when f touched nothing the newest one, which is no older than any row that f has seen.
func (s *Store) TransactAt(ctx context.Context, f func(tx *Store) error) (version int64, err error) {
	var made *change
	err = s.change(ctx, func(c *change) error {
		made = c
		tx := &Store{core: s.core, read: c.tx, write: c.tx, tx: c}
		if err := f(tx); err != nil || len(c.touched) > 0 {
			return err
		}
		version, err = tx.Version(c.ctx)
		return err
	})
	if err != nil {
		return 0, err
	}
	if len(made.touched) > 0 {
		version = made.what.Version
	}
	return version, nil
}

// Server returns the kind of the database, "sqlite" or "postgresql", and the version of what serves it.
func (s *Store) Server(ctx context.Context) (kind, version string, err error) {
	kind, query := "sqlite", "SELECT sqlite_version()"
	if s.Dialect() == "postgres" {
		kind, query = "postgresql", "SHOW server_version"
	}
	if err := s.read.QueryRowContext(ctx, query).Scan(&version); err != nil {
		return kind, "", fmt.Errorf("ask for the database's version: %w", err)
	}
	return kind, version, nil
}

// Reconnect gives up the connections that there are: no statement that begins from now on uses one of them. It is for
// whoever has seen that another server took the database's place, while the former one may still answer.
func (s *Store) Reconnect() { s.dialect.reconnect() }
