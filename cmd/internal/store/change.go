// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"
)

// The wait of a transaction for its turn, while other replicas write.
const (
	patience = 8 * time.Second
	breath   = 20 * time.Millisecond // between two attempts
)

// change is one transaction that decides something.
type change struct {
	ctx     context.Context
	tx      *sql.Tx
	touched []string // tables with rows that have no version yet
	what    Change
	wrote   bool  // rows that carry no version
	forget  bool  // what was deleted must leave the files
	noted   int   // entries of the outbox
	failed  error // of a part: then nothing may be committed

	isUnique func(error) bool // the dialect's
	core     *core
	denials  int64 // the position of the last denial, once there is one in this transaction
}

// Transact runs f in one transaction: what f does through tx, whose reading methods see it too, is committed together
// when f returns nil, and else nothing is. What tx refuses cannot be ignored: then nothing is committed, whatever f
// returns. f must not use the Store that it was called on, nor the CA library: they would wait for each other.
//
// The wait for the turn to write obeys ctx; a caller that leaves later does not keep the transaction from being
// committed. An error of the commit itself leaves it unknown whether it was.
func (s *Store) Transact(ctx context.Context, f func(tx *Store) error) error {
	return s.change(ctx, func(c *change) error {
		return f(&Store{core: s.core, read: c.tx, write: c.tx, tx: c})
	})
}

// Touched reports whether the transaction has changed something. It is false outside of one.
func (s *Store) Touched() bool { return s.tx != nil && (len(s.tx.touched) > 0 || s.tx.wrote) }

// NextVersion is the version that the state will have once the transaction, which must have touched something, is
// committed: nobody else writes meanwhile.
func (s *Store) NextVersion(ctx context.Context) (int64, error) {
	if s.tx == nil {
		return 0, errors.New("the next version is known in a transaction only")
	}
	v, err := s.Version(context.WithoutCancel(ctx))
	return v + 1, err
}

// change runs f in a transaction that ends with the next version of the state, stamped on every row it touched, and
// tells those who registered with OnChange before it returns. When f touched nothing, nothing is written.
//
// The wait for the turn to write obeys ctx. From then on the transaction does not: a caller that leaves must not make
// the outcome of a commit unknown.
//
// In a transaction, f is a part of that.
func (s *Store) change(ctx context.Context, f func(*change) error) error {
	if s.tx != nil {
		return s.tx.part(f)
	}
	if err := s.broken(); err != nil {
		return err
	}
	return s.judge(s.transact(ctx, f))
}

// part runs f as a part of the transaction. What f has done before it failed must not be committed.
func (c *change) part(f func(*change) error) error {
	if c.failed != nil {
		return c.failed
	}
	if err := f(c); err != nil {
		c.failed = err
		return err
	}
	return c.failed // of a part within, which f did not pass on
}

func (s *Store) transact(ctx context.Context, f func(*change) error) error {
	conn, tx, done, err := s.begin(ctx)
	if err != nil {
		return err
	}
	// The connection is held until the listeners have returned: they are told in the order of the versions, one at a time.
	defer done()
	c := &change{ctx: tx.ctx, tx: tx.Tx, isUnique: s.dialect.isUnique, core: s.core}
	if err := c.part(f); err != nil {
		return err
	}
	if len(c.touched) == 0 && !c.wrote {
		return nil
	}
	if len(c.touched) > 0 || len(c.what.AuditSubjects) > 0 || c.what.Tickets || c.what.Journals {
		if err := c.stamp(); err != nil {
			return err
		}
	}
	if err := s.dialect.commit(conn, true, tx.Commit); err != nil {
		// Whether it was committed is unknown: whoever remembers an older state must look again.
		s.announce(c.what)
		return fmt.Errorf("commit: %w", err)
	}
	s.announce(c.what)
	if c.forget {
		if err := s.dialect.forget(tx.ctx, conn); err != nil {
			s.logger.ErrorContext(tx.ctx, "deleted keys may still be in the database's files", "error", err)
		}
	}
	return nil
}

// transaction is one that has its turn, with the context that bounds it, whoever waits for it.
type transaction struct {
	*sql.Tx
	ctx context.Context
}

// begin waits until it is this transaction's turn, which obeys ctx and has an end, and begins it. done ends it, unless it was
// committed, and gives the connection back.
func (s *Store) begin(ctx context.Context) (_ *sql.Conn, _ transaction, done func(), err error) {
	// Those before it may wait for a database that says nothing, each for as long as it may. Who waits is told before it gives up.
	ctx, stop := context.WithTimeout(ctx, patience)
	defer stop()
	for began := time.Now(); ; {
		conn, tx, done, err := s.tryBegin(ctx)
		if err == nil {
			return conn, tx, done, nil
		}
		if !s.dialect.again(err) || time.Since(began) > patience {
			return nil, transaction{}, nil, err
		}
		select {
		case <-ctx.Done():
			return nil, transaction{}, nil, ctx.Err()
		case <-time.After(breath):
		}
	}
}

func (s *Store) tryBegin(ctx context.Context) (_ *sql.Conn, _ transaction, done func(), err error) {
	conn, err := s.writer.Conn(ctx)
	if err != nil {
		return nil, transaction{}, nil, fmt.Errorf("wait for the database: %w", err)
	}
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	if err := ctx.Err(); err != nil {
		return nil, transaction{}, nil, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.dialect.limit())
	tx, err := conn.BeginTx(ctx, &sql.TxOptions{})
	if err != nil {
		cancel()
		return nil, transaction{}, nil, fmt.Errorf("begin a transaction: %w", err)
	}
	if err := s.dialect.turn(ctx, tx); err != nil {
		tx.Rollback()
		cancel()
		return nil, transaction{}, nil, fmt.Errorf("wait for other writers: %w", err)
	}
	return conn, transaction{tx, ctx}, func() {
		tx.Rollback() // after a commit it does nothing
		cancel()
		conn.Close()
	}, nil
}

// direct runs f, one statement that writes and has no version, on its own or as a part of the transaction. The wait for
// a connection obeys ctx; the statement has a context of its own, for a caller that leaves must not make the outcome of a
// commit unknown.
func (s *Store) direct(ctx context.Context, f func(ctx context.Context, w conn) error) error {
	if s.tx != nil {
		return s.tx.part(func(c *change) error {
			c.wrote = true
			return f(c.ctx, c.tx)
		})
	}
	if err := s.broken(); err != nil {
		return err
	}
	return s.judge(s.alone(ctx, f))
}

func (s *Store) alone(ctx context.Context, f func(ctx context.Context, w conn) error) error {
	for began := time.Now(); ; {
		err := s.tryAlone(ctx, f)
		if err == nil || !s.dialect.again(err) || time.Since(began) > patience {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(breath):
		}
	}
}

func (s *Store) tryAlone(ctx context.Context, f func(ctx context.Context, w conn) error) error {
	conn, err := s.side.Conn(ctx)
	if err != nil {
		return fmt.Errorf("wait for the database: %w", err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.dialect.limit())
	defer cancel()
	return s.dialect.commit(conn, false, func() error { return f(ctx, conn) })
}

// broken is why nothing may be written any more, or nil.
func (s *Store) broken() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// judge gives errors of the disk their sentinels. A failed sync is final: the pages count as clean from then on, so that
// the next sync would succeed and keep nothing.
func (s *Store) judge(err error) error {
	if err == nil {
		return nil
	}
	if err = s.dialect.judge(err); !errors.Is(err, ErrSync) {
		return err
	}
	s.mu.Lock()
	first := s.failed == nil
	if first {
		s.failed = err
	}
	s.mu.Unlock()
	if first && s.fatal != nil {
		s.fatal(err)
	}
	return err
}

// stamp bumps the version, last of all so that its row is locked for the shortest time: the order of the commits is
// then the order of the versions.
func (c *change) stamp() error {
	if err := c.countDenials(); err != nil {
		return err
	}
	err := c.tx.QueryRowContext(c.ctx, bumpVersion).Scan(&c.what.Version)
	if errors.Is(err, sql.ErrNoRows) {
		err = noVersion(c.ctx, c.tx)
	}
	if err != nil {
		return fmt.Errorf("bump the version: %w", err)
	}
	for _, table := range c.touched {
		if _, err := c.tx.ExecContext(c.ctx, stampQuery(table), c.what.Version); err != nil {
			return fmt.Errorf("stamp %s: %w", table, err)
		}
	}
	return c.log()
}

// noVersion is why there is no next version: whoever still serves on a database that was put out of service has not noticed
// yet, and what it would change here would be missing where the database was moved to.
func noVersion(ctx context.Context, r conn) error {
	found, err := readCondition(ctx, r)
	switch {
	case err != nil:
		return err
	case found == nil:
		return fmt.Errorf("%w: it has no version", ErrDamaged)
	}
	return &ConditionError{*found}
}

// exec runs a statement that changes rows of table, and returns how many.
func (c *change) exec(table, query string, args ...any) (int64, error) {
	result, err := c.tx.ExecContext(c.ctx, query, args...)
	if err != nil {
		if c.isUnique(err) {
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
		c.what.Keys = c.what.Keys || table == "sealed_keys"
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
