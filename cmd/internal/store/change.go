// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"time"
)

// commitTimeout bounds a transaction once it has begun, so that a stuck disk cannot queue writers for ever.
const commitTimeout = 30 * time.Second

// change is one transaction that decides something.
type change struct {
	ctx     context.Context
	tx      *sql.Tx
	touched []string // tables with rows that have no version yet
	what    Change
}

// change runs f in a transaction that ends with the next version of the state, stamped on every row it touched, and
// tells those who registered with OnChange before it returns. When f touched nothing, nothing is written.
//
// The wait for the turn to write obeys ctx. From then on the transaction does not: a caller that leaves must not make
// the outcome of a commit unknown.
func (s *Store) change(ctx context.Context, f func(*change) error) error {
	conn, err := s.write.Conn(ctx)
	if err != nil {
		return fmt.Errorf("wait for the database: %w", err)
	}
	// Held until the listeners have returned: they are told in the order of the versions, one at a time.
	defer conn.Close()
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin a transaction: %w", err)
	}
	defer tx.Rollback() // after a commit it does nothing
	c := &change{ctx: ctx, tx: tx}
	if err := f(c); err != nil {
		return err
	}
	if len(c.touched) == 0 {
		return nil
	}
	if err := c.stamp(); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		// Whether it was committed is unknown: whoever remembers an older state must look again.
		s.announce(c.what)
		return fmt.Errorf("commit: %w", err)
	}
	s.announce(c.what)
	return nil
}

// stamp bumps the version, last of all so that its row is locked for the shortest time: the order of the commits is
// then the order of the versions.
func (c *change) stamp() error {
	if err := c.tx.QueryRowContext(c.ctx, bumpVersion).Scan(&c.what.Version); err != nil {
		return fmt.Errorf("bump the version: %w", err)
	}
	for _, table := range c.touched {
		if _, err := c.tx.ExecContext(c.ctx, stampQuery(table), c.what.Version); err != nil {
			return fmt.Errorf("stamp %s: %w", table, err)
		}
	}
	return nil
}

// exec runs a statement that changes rows of table, and returns how many.
func (c *change) exec(table, query string, args ...any) (int64, error) {
	result, err := c.tx.ExecContext(c.ctx, query, args...)
	if err != nil {
		if isUnique(err) {
			return 0, fmt.Errorf("%s: %w", table, ErrExists)
		}
		return 0, fmt.Errorf("write to %s: %w", table, err)
	}
	n, err := result.RowsAffected()
	if err != nil {
		return 0, err
	}
	if n > 0 && !slices.Contains(c.touched, table) {
		c.touched = append(c.touched, table)
	}
	return n, nil
}

// link runs a statement on a table whose rows carry no version, because they live and die with a client's.
func (c *change) link(query string, args ...any) (int64, error) {
	result, err := c.tx.ExecContext(c.ctx, query, args...)
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

// changedClient notes a client for the listeners.
func (c *change) changedClient(id string) {
	if !slices.Contains(c.what.ClientIDs, id) {
		c.what.ClientIDs = append(c.what.ClientIDs, id)
	}
}

// OnChange registers f to be called after each committed change, before the method that wrote returns. Calls come one
// at a time in the order of their versions. f is also called when a commit failed, because what then holds is unknown:
// it must look again, not believe. f may read from the Store; a write from within f would wait for itself.
func (s *Store) OnChange(f func(Change)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onChange = append(s.onChange, f)
}

func (s *Store) announce(what Change) {
	s.mu.Lock()
	listeners := slices.Clone(s.onChange)
	s.mu.Unlock()
	for _, f := range listeners {
		f(what)
	}
}

// row is what both *sql.Row and *sql.Rows can do.
type row interface{ Scan(dest ...any) error }

// all scans every row of a result.
func all[T any](rows *sql.Rows, err error, scan func(row) (T, error)) ([]T, error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, rows.Err()
}
