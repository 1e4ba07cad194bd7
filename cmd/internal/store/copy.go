// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
)

// ErrNotEmpty says that a database was to be filled and has something in it.
var ErrNotEmpty = errors.New("the database is not empty")

// The size of one statement of a copy.
const (
	maxCopiedRows  = 256
	maxCopiedBytes = 1 << 20
)

// TableCount is how many rows of a table were copied.
type TableCount struct {
	Table string `json:"table"`
	Rows  int64  `json:"rows"`
}

// Finish ends a copy, in its transactions.
type Finish func(ctx context.Context, source, target *sql.Tx) error

// Copied is what a copy took.
type Copied struct {
	Version int64        `json:"version"` // of the state
	Tables  []TableCount `json:"tables"`
}

// Copy copies everything of from into to, which must be empty: both open, of whatever kind, sealed under the same
// key-encryption key. What it reads is one state of from, where others go on writing meanwhile; what it writes is one
// transaction. Before that is committed every table is read back, and has to have the same rows. then, if not nil, changes
// what was copied, in the same transaction, and may read the source in the state that was copied. It blocks as long as it takes and needs the same memory for any number of rows.
//
// Errors: ErrNotEmpty; with any error, nothing was written.
func Copy(ctx context.Context, from, to *Store, then Finish) (Copied, error) {
	source, err := from.snapshot(ctx)
	if err != nil {
		return Copied{}, fmt.Errorf("copy the database: %w", err)
	}
	defer source.Rollback()
	out, err := copyFrom(ctx, source, to, then)
	if err != nil {
		return Copied{}, fmt.Errorf("copy the database: %w", err)
	}
	return out, nil
}

// snapshot begins a transaction that reads one state of the database and keeps nobody from writing.
func (s *Store) snapshot(ctx context.Context) (*sql.Tx, error) {
	options := &sql.TxOptions{ReadOnly: true}
	if s.Dialect() == postgresKind {
		options.Isolation = sql.LevelRepeatableRead
	}
	tx, err := s.reader.BeginTx(ctx, options)
	if err != nil {
		return nil, err
	}
	if err := s.unhurried(ctx, tx); err != nil {
		return nil, errors.Join(err, tx.Rollback())
	}
	return tx, nil
}

// unhurried lifts the bounds of time from a transaction that is as long as the database is large.
func (s *Store) unhurried(ctx context.Context, tx *sql.Tx) error {
	if s.Dialect() != postgresKind {
		return nil
	}
	for _, bound := range []string{"statement_timeout", "idle_in_transaction_session_timeout"} {
		if _, err := tx.ExecContext(ctx, "SET LOCAL "+bound+" = 0"); err != nil {
			return err
		}
	}
	return nil
}

func copyFrom(ctx context.Context, source *sql.Tx, to *Store, then Finish) (Copied, error) {
	var out Copied
	err := to.whole(ctx, func(tx *sql.Tx) error {
		if err := checkEmpty(ctx, tx); err != nil {
			return err
		}
		if to.Dialect() == postgresKind {
			if _, err := tx.ExecContext(ctx, "SET CONSTRAINTS ALL DEFERRED"); err != nil {
				return err
			}
		} else if _, err := tx.ExecContext(ctx, "PRAGMA defer_foreign_keys = ON"); err != nil {
			return err // a certificate may refer to one that comes later
		}
		indexes, err := to.dropIndexes(ctx, tx)
		if err != nil {
			return err
		}
		for _, t := range copiedTables() {
			rows, err := t.copy(ctx, source, tx, to.Dialect() == postgresKind)
			if err != nil {
				return fmt.Errorf("table %s: %w", t.name, err)
			}
			out.Tables = append(out.Tables, TableCount{t.name, rows})
		}
		for _, statement := range indexes {
			if _, err := tx.ExecContext(ctx, statement); err != nil {
				return err
			}
		}
		if err := tx.QueryRowContext(ctx, queryVersion).Scan(&out.Version); err != nil {
			return err
		}
		if then != nil {
			return then(ctx, source, tx)
		}
		return nil
	})
	return out, err
}

// dropIndexes drops the indexes of a file that is to be filled, since making them at the end takes a fraction of the time,
// and returns the statements that make them.
func (s *Store) dropIndexes(ctx context.Context, tx *sql.Tx) ([]string, error) {
	if s.Dialect() == postgresKind {
		return nil, nil
	}
	rows, err := tx.QueryContext(ctx, "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
	indexes, err := all(rows, err, func(r row) (index [2]string, err error) { return index, r.Scan(&index[0], &index[1]) })
	if err != nil {
		return nil, err
	}
	var statements []string
	for _, index := range indexes {
		if _, err := tx.ExecContext(ctx, "DROP INDEX "+index[0]); err != nil {
			return nil, err
		}
		statements = append(statements, index[1])
	}
	return statements, nil
}

// whole runs f in one transaction that takes as long as it takes, while nobody else writes.
func (s *Store) whole(ctx context.Context, f func(tx *sql.Tx) error) error {
	if err := s.broken(); err != nil {
		return err
	}
	conn, err := s.writer.Conn(ctx)
	if err != nil {
		return s.judge(err)
	}
	defer conn.Close()
	tx, err := conn.BeginTx(ctx, &sql.TxOptions{})
	if err != nil {
		return s.judge(err)
	}
	defer tx.Rollback() // after a commit it does nothing
	if err := s.dialect.turn(ctx, tx); err != nil {
		return s.judge(fmt.Errorf("wait for other writers: %w", err))
	}
	if err := s.unhurried(ctx, tx); err != nil {
		return s.judge(err)
	}
	if err := f(tx); err != nil {
		return s.judge(err)
	}
	return s.judge(s.dialect.commit(conn, true, tx.Commit))
}

// checkEmpty refuses a database that anything was ever stored in.
func checkEmpty(ctx context.Context, tx *sql.Tx) error {
	for _, t := range copiedTables() {
		query := "SELECT count(*) FROM (SELECT 1 FROM " + t.name + " LIMIT 1) AS one"
		if t.name == "state" {
			query = "SELECT count(*) FROM state WHERE version <> 0 OR crl_number <> 0"
		}
		var n int
		if err := tx.QueryRowContext(ctx, query).Scan(&n); err != nil {
			return fmt.Errorf("table %s: %w", t.name, err)
		}
		if n > 0 {
			return fmt.Errorf("%w: there are rows in its table %s", ErrNotEmpty, t.name)
		}
	}
	return nil
}

// copy copies the rows of a table, reads them back, and returns how many there are.
func (t *table) copy(ctx context.Context, source, target *sql.Tx, numbered bool) (int64, error) {
	if t.name == "state" {
		if _, err := target.ExecContext(ctx, "DELETE FROM state"); err != nil {
			return 0, err
		}
	}
	w := writer{ctx: ctx, tx: target, table: t, numbered: numbered}
	read, err := t.read(ctx, source, w.add)
	if err == nil {
		err = w.flush()
	}
	if err != nil {
		return 0, err
	}
	written, err := t.read(ctx, target, nil)
	if err != nil {
		return 0, err
	}
	if read != written {
		return 0, fmt.Errorf("what was written is not what was read: %d rows with the digest %x, not %d with %x",
			written.rows, written.sum, read.rows, read.sum)
	}
	return read.rows, nil
}

func (t *table) names() string {
	names := make([]string, len(t.columns))
	for i, c := range t.columns {
		names[i] = c.name
	}
	return strings.Join(names, ", ")
}

// read gives every row to take, in no order. The values are the reader's own until take returns.
func (t *table) read(ctx context.Context, tx *sql.Tx, take func([]any) error) (digestSum, error) {
	var sum digestSum
	rows, err := tx.QueryContext(ctx, "SELECT "+t.names()+" FROM "+t.name)
	if err != nil {
		return sum, err
	}
	defer rows.Close()
	values, into := make([]any, len(t.columns)), make([]any, len(t.columns))
	for i := range into {
		into[i] = &values[i]
	}
	var scratch []byte
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return sum, err
		}
		scratch = scratch[:0]
		for i, c := range t.columns {
			if values[i], err = c.normal(values[i]); err != nil {
				return sum, fmt.Errorf("column %s: %w", c.name, err)
			}
			scratch = appendValue(scratch, values[i])
		}
		sum.add(scratch)
		if take == nil {
			continue
		}
		if err := take(values); err != nil {
			return sum, err
		}
	}
	return sum, rows.Err()
}

// normal is a value as every database takes it: nil, int64, string, []byte or bool.
func (c *column) normal(v any) (any, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case int64:
		switch c.kind {
		case integer:
			return v, nil
		case truth:
			return v != 0, nil
		}
	case bool:
		if c.kind == truth {
			return v, nil
		}
	case string:
		switch c.kind {
		case text:
			return v, nil
		case blob:
			return []byte(v), nil
		}
	case []byte:
		switch c.kind {
		case text:
			return string(v), nil
		case blob:
			return append([]byte{}, v...), nil // an empty one is not NULL
		}
	}
	return nil, fmt.Errorf("it holds a %T", v)
}

// appendValue appends a value so that no two rows look alike.
func appendValue(b []byte, v any) []byte {
	switch v := v.(type) {
	case int64:
		return binary.BigEndian.AppendUint64(append(b, 'i'), uint64(v))
	case bool:
		if v {
			return append(b, 'y')
		}
		return append(b, 'n')
	case string:
		return append(binary.BigEndian.AppendUint32(append(b, 't'), uint32(len(v))), v...)
	case []byte:
		return append(binary.BigEndian.AppendUint32(append(b, 'b'), uint32(len(v))), v...)
	}
	return append(b, '0')
}

// digestSum is a digest of rows in whatever order: the sum of their SHA-256, modulo 2^256, and their number.
type digestSum struct {
	rows int64
	sum  [4]uint64
}

func (d *digestSum) add(row []byte) {
	h := sha256.Sum256(row)
	var carry uint64
	for i := range d.sum {
		d.sum[i], carry = bits.Add64(d.sum[i], binary.LittleEndian.Uint64(h[8*i:]), carry)
	}
	d.rows++
}

// writer inserts rows, many at a time.
type writer struct {
	ctx   context.Context
	tx    *sql.Tx
	table *table
	args  []any
	bytes int
	full  *sql.Stmt // of as many rows as there usually are

	numbered bool // the database wants its values numbered
}

func (w *writer) add(values []any) error {
	for _, v := range values {
		switch v := v.(type) {
		case string:
			w.bytes += len(v)
		case []byte:
			w.bytes += len(v)
		}
	}
	w.args = append(w.args, values...)
	if len(w.args) >= w.most()*len(w.table.columns) || w.bytes > maxCopiedBytes {
		return w.flush()
	}
	return nil
}

// most is how many rows are inserted at once: databases bound the values of a statement.
func (w *writer) most() int { return min(maxCopiedRows, 8192/len(w.table.columns)) }

func (w *writer) flush() error {
	n := len(w.args) / len(w.table.columns)
	if n == 0 {
		return nil
	}
	var err error
	if n == w.most() {
		if w.full == nil {
			if w.full, err = w.tx.PrepareContext(w.ctx, w.table.insert(n, w.numbered)); err != nil {
				return err
			}
		}
		_, err = w.full.ExecContext(w.ctx, w.args...)
	} else {
		_, err = w.tx.ExecContext(w.ctx, w.table.insert(n, w.numbered), w.args...)
	}
	w.args, w.bytes = w.args[:0], 0
	return err
}

// insert is the statement that inserts so many rows. SQLite takes a number for a name, and looks for each among all of them:
// it is given none.
func (t *table) insert(rows int, numbered bool) string {
	var b strings.Builder
	b.WriteString("INSERT INTO " + t.name + " (" + t.names() + ") VALUES ")
	n := 0
	for r := range rows {
		if r > 0 {
			b.WriteByte(',')
		}
		b.WriteByte('(')
		for i := range t.columns {
			if i > 0 {
				b.WriteByte(',')
			}
			if !numbered {
				b.WriteByte('?')
				continue
			}
			n++
			b.WriteByte('$')
			b.WriteString(strconv.Itoa(n))
		}
		b.WriteByte(')')
	}
	return b.String()
}
