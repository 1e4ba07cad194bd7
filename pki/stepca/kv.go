// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package stepca

import (
	"context"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/smallstep/nosql/database"
)

const (
	bucketTokens   = "used_ott"
	bucketCerts    = "x509_certs"
	bucketCertData = "x509_certs_data"

	// statementTimeout bounds every statement, since the library's calls carry no context.
	statementTimeout = 30 * time.Second
	// purgeBatch is how many certificates Purge reads at a time.
	purgeBatch = 500
)

// kv is the library's key-value storage in one table of a shared SQL database. The library's own SQL drivers are not
// used: with theirs, one token can be spent twice when two callers race for it, because they lock a row that does
// not exist yet.
type kv struct {
	db       *sql.DB
	postgres bool
}

func newKV(sqlDB *sql.DB, dialect string) (*kv, error) {
	if sqlDB == nil {
		return nil, errors.New("certificate authority: a database is needed")
	}
	if dialect != "sqlite" && dialect != "postgres" {
		return nil, fmt.Errorf("certificate authority: unknown SQL dialect %q", dialect)
	}
	k := &kv{db: sqlDB, postgres: dialect == "postgres"}
	if _, err := k.Get([]byte(bucketTokens), []byte("probe")); err != nil && !database.IsErrNotFound(err) {
		return nil, fmt.Errorf("certificate authority: the table ca_kv cannot be read: %w", err)
	}
	return k, nil
}

// queryer is what *sql.DB and *sql.Tx have in common.
type queryer interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// bind writes the placeholders of the dialect: queries here use ?, PostgreSQL wants $1, $2.
func (k *kv) bind(query string) string {
	if !k.postgres {
		return query
	}
	var b strings.Builder
	n := 0
	for _, r := range query {
		if r != '?' {
			b.WriteRune(r)
			continue
		}
		n++
		b.WriteString("$" + strconv.Itoa(n))
	}
	return b.String()
}

func statementContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), statementTimeout)
}

// Open implements nosql.DB; the database is open already.
func (k *kv) Open(string, ...database.Option) error { return nil }

// Close implements nosql.DB; the database is the caller's to close.
func (k *kv) Close() error { return nil }

// CreateTable implements nosql.DB; all buckets share one table.
func (k *kv) CreateTable([]byte) error { return nil }

// DeleteTable implements nosql.DB: it empties the bucket.
func (k *kv) DeleteTable(bucket []byte) error {
	ctx, cancel := statementContext()
	defer cancel()
	return k.exec(ctx, k.db, "DELETE FROM ca_kv WHERE bucket = ?", string(bucket))
}

// Get implements nosql.DB.
func (k *kv) Get(bucket, key []byte) ([]byte, error) {
	ctx, cancel := statementContext()
	defer cancel()
	return k.get(ctx, k.db, "", bucket, key)
}

// Set implements nosql.DB.
func (k *kv) Set(bucket, key, value []byte) error {
	ctx, cancel := statementContext()
	defer cancel()
	return k.set(ctx, k.db, bucket, key, value)
}

// Del implements nosql.DB.
func (k *kv) Del(bucket, key []byte) error {
	ctx, cancel := statementContext()
	defer cancel()
	return k.del(ctx, k.db, bucket, key)
}

// CmpAndSwap implements nosql.DB. An absent row and an empty value are the same old value. One statement decides,
// so of two callers racing for an absent row exactly one wins.
func (k *kv) CmpAndSwap(bucket, key, oldValue, newValue []byte) ([]byte, bool, error) {
	ctx, cancel := statementContext()
	defer cancel()
	query, args := "UPDATE ca_kv SET nvalue = ? WHERE bucket = ? AND nkey = ? AND nvalue = ?",
		[]any{blob(newValue), string(bucket), blob(key), blob(oldValue)}
	if len(oldValue) == 0 {
		query = "INSERT INTO ca_kv (bucket, nkey, nvalue) VALUES (?, ?, ?) " +
			"ON CONFLICT (bucket, nkey) DO UPDATE SET nvalue = excluded.nvalue WHERE length(ca_kv.nvalue) = 0"
		args = []any{string(bucket), blob(key), blob(newValue)}
	}
	result, err := k.db.ExecContext(ctx, k.bind(query), args...)
	if err != nil {
		return nil, false, fmt.Errorf("ca_kv: swap in %s: %w", bucket, err)
	}
	changed, err := result.RowsAffected()
	if err != nil {
		return nil, false, fmt.Errorf("ca_kv: swap in %s: %w", bucket, err)
	}
	if changed == 1 {
		return newValue, true, nil
	}
	current, err := k.get(ctx, k.db, "", bucket, key)
	if err != nil && !database.IsErrNotFound(err) {
		return nil, false, err
	}
	return current, false, nil
}

// List implements nosql.DB. It reads the whole bucket into memory.
func (k *kv) List(bucket []byte) ([]*database.Entry, error) {
	ctx, cancel := statementContext()
	defer cancel()
	rows, err := k.db.QueryContext(ctx, k.bind("SELECT nkey, nvalue FROM ca_kv WHERE bucket = ? ORDER BY nkey"), string(bucket))
	if err != nil {
		return nil, fmt.Errorf("ca_kv: list %s: %w", bucket, err)
	}
	defer rows.Close()
	var entries []*database.Entry
	for rows.Next() {
		e := &database.Entry{Bucket: bucket}
		if err := rows.Scan(&e.Key, &e.Value); err != nil {
			return nil, fmt.Errorf("ca_kv: list %s: %w", bucket, err)
		}
		entries = append(entries, e)
	}
	return entries, rows.Err()
}

// Update implements nosql.DB: all operations in one transaction, or none. Comparing operations are not supported;
// the library has no use for them.
func (k *kv) Update(tx *database.Tx) error {
	ctx, cancel := statementContext()
	defer cancel()
	sqlTx, err := k.db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("ca_kv: begin: %w", err)
	}
	for _, op := range tx.Operations {
		if err := k.apply(ctx, sqlTx, op); err != nil {
			return errors.Join(err, sqlTx.Rollback())
		}
	}
	if err := sqlTx.Commit(); err != nil {
		return fmt.Errorf("ca_kv: commit: %w", err)
	}
	return nil
}

func (k *kv) apply(ctx context.Context, tx *sql.Tx, op *database.TxEntry) (err error) {
	switch op.Cmd {
	case database.CreateTable:
		return nil
	case database.DeleteTable:
		return k.exec(ctx, tx, "DELETE FROM ca_kv WHERE bucket = ?", string(op.Bucket))
	case database.Get:
		lock := ""
		if k.postgres {
			// Without the lock two transactions could both read, and then both delete, the same one-time value.
			// SQLite needs none: its transactions begin immediate, one writer at a time.
			lock = " FOR UPDATE"
		}
		op.Result, err = k.get(ctx, tx, lock, op.Bucket, op.Key)
		return err
	case database.Set:
		return k.set(ctx, tx, op.Bucket, op.Key, op.Value)
	case database.Delete:
		return k.del(ctx, tx, op.Bucket, op.Key)
	}
	return fmt.Errorf("ca_kv: %s: %w", op.Cmd, database.ErrOpNotSupported)
}

func (k *kv) get(ctx context.Context, q queryer, lock string, bucket, key []byte) ([]byte, error) {
	query := k.bind("SELECT nvalue FROM ca_kv WHERE bucket = ? AND nkey = ?" + lock)
	var value []byte
	err := q.QueryRowContext(ctx, query, string(bucket), blob(key)).Scan(&value)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("ca_kv: %s: %w", bucket, database.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("ca_kv: read %s: %w", bucket, err)
	}
	return value, nil
}

func (k *kv) set(ctx context.Context, q queryer, bucket, key, value []byte) error {
	return k.exec(ctx, q, "INSERT INTO ca_kv (bucket, nkey, nvalue) VALUES (?, ?, ?) "+
		"ON CONFLICT (bucket, nkey) DO UPDATE SET nvalue = excluded.nvalue", string(bucket), blob(key), blob(value))
}

func (k *kv) del(ctx context.Context, q queryer, bucket, key []byte) error {
	return k.exec(ctx, q, "DELETE FROM ca_kv WHERE bucket = ? AND nkey = ?", string(bucket), blob(key))
}

func (k *kv) exec(ctx context.Context, q queryer, query string, args ...any) error {
	if _, err := q.ExecContext(ctx, k.bind(query), args...); err != nil {
		return fmt.Errorf("ca_kv: write: %w", err)
	}
	return nil
}

// blob keeps nil out of columns that are NOT NULL.
func blob(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// Purge removes what the library keeps for ever: spent one-time tokens, which it stores whole, written before
// olderThan, and its copies of certificates that expired before olderThan. Tokens that could still be presented
// are kept whatever olderThan says.
func (a *Authority) Purge(ctx context.Context, olderThan time.Time) error {
	tokens := olderThan
	if youngest := time.Now().Add(-2 * (tokenLifetime + libraryLeeway)); tokens.After(youngest) {
		tokens = youngest
	}
	if err := a.kv.purgeTokens(ctx, tokens); err != nil {
		return fmt.Errorf("purge one-time tokens: %w", err)
	}
	removed, err := a.kv.purgeCertificates(ctx, olderThan)
	if err != nil {
		return fmt.Errorf("purge certificates: %w", err)
	}
	a.logger.DebugContext(ctx, "purged the certificate authority's storage", "certificates", removed)
	return nil
}

// purgeTokens removes tokens in batches, so that no transaction keeps others from writing for long.
func (k *kv) purgeTokens(ctx context.Context, olderThan time.Time) error {
	query := k.bind("DELETE FROM ca_kv WHERE bucket = ? AND nkey IN (SELECT nkey FROM ca_kv WHERE bucket = ? AND created_at < ?" +
		" ORDER BY created_at LIMIT " + strconv.Itoa(purgeBatch) + ")")
	for {
		result, err := k.db.ExecContext(ctx, query, bucketTokens, bucketTokens, olderThan.Unix())
		if err != nil {
			return err
		}
		if n, err := result.RowsAffected(); err != nil || n < purgeBatch {
			return err
		}
	}
}

// purgeCertificates walks the bucket in batches by age; nothing is held while a batch is judged.
func (k *kv) purgeCertificates(ctx context.Context, olderThan time.Time) (removed int, err error) {
	for after := (walked{key: []byte{}}); ; {
		n, last, expired, err := k.certificateBatch(ctx, after, olderThan)
		if err != nil {
			return removed, err
		}
		if err := k.removeCertificates(ctx, expired); err != nil {
			return removed, err
		}
		removed += len(expired)
		if n < purgeBatch {
			return removed, nil
		}
		after = last
	}
}

// removeCertificates removes what the library keeps of certificates, in one transaction.
func (k *kv) removeCertificates(ctx context.Context, keys [][]byte) error {
	if len(keys) == 0 {
		return nil
	}
	tx, err := k.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // after a commit it does nothing
	for _, key := range keys {
		for _, bucket := range []string{bucketCertData, bucketCerts} {
			if err := k.del(ctx, tx, []byte(bucket), key); err != nil {
				return err
			}
		}
	}
	return tx.Commit()
}

// walked says how far a walk has come.
type walked struct {
	created int64
	key     []byte
}

// certificateBatch reads the next of the certificates that were written before olderThan, the oldest first.
func (k *kv) certificateBatch(ctx context.Context, after walked, olderThan time.Time) (n int, last walked, expired [][]byte, err error) {
	query := k.bind("SELECT created_at, nkey, nvalue FROM ca_kv WHERE bucket = ? AND created_at < ? AND (created_at, nkey) > (?, ?)" +
		" ORDER BY created_at, nkey LIMIT " + strconv.Itoa(purgeBatch))
	rows, err := k.db.QueryContext(ctx, query, bucketCerts, olderThan.Unix(), after.created, after.key)
	if err != nil {
		return 0, walked{}, nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var row walked
		var der []byte
		if err := rows.Scan(&row.created, &row.key, &der); err != nil {
			return 0, walked{}, nil, err
		}
		n, last = n+1, row
		// What cannot be read was not written by the library and is not ours to remove.
		if cert, err := x509.ParseCertificate(der); err == nil && cert.NotAfter.Before(olderThan) {
			expired = append(expired, row.key)
		}
	}
	return n, last, expired, rows.Err()
}
