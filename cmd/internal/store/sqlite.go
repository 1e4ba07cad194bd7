// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// sqliteFile is the dialect of a file of SQLite: one process, one writer at a time.
type sqliteFile struct {
	path     string
	readOnly bool
}

const (
	driverName = "sqlite"

	// applicationID marks our files in SQLite's header: "CBND".
	applicationID       = 0x43424e44
	applicationIDOffset = 68
	draftID             = 0x43424e64 // "CBNd": a copy that is not whole
	headerSize          = 100
	headerMagic         = "SQLite format 3\x00"

	// checkLimit bounds the size of a database that is read through at start.
	checkLimit = 64 << 20

	readers = 4 // connections of the read pool
	callers = 2 // connections of the pool that DB returns
)

// dsn is the data source name of the file at path.
func dsn(path, pragmas string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	u := url.URL{Scheme: "file", Path: abs, RawQuery: pragmas}
	return u.String(), nil
}

// The pragmas of each pool. WAL lets readers pass a writer; synchronous FULL puts a commit on disk before it returns;
// an immediate transaction takes the write lock when it begins, so that what it read cannot have changed when it writes;
// secure_delete overwrites what is deleted, since deleting a key must end it.
const (
	common       = "_pragma=busy_timeout(10000)&_pragma=foreign_keys(1)"
	writePragmas = "_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=secure_delete(1)&" + common + "&_txlock=immediate"
	readPragmas  = writePragmas + "&_pragma=query_only(1)"
	// A searcher's 12 MiB hold what lies above the leaves of what is searched for a token, among a million clients.
	searchPragmas  = readPragmas + "&_pragma=cache_size(-12288)"
	inspectPragmas = "mode=ro&" + common
	// createPragmas make the new file whole in one piece before it gets its name: no log beside it.
	createPragmas = "_pragma=journal_mode(DELETE)&_pragma=synchronous(FULL)&" + common + "&_txlock=immediate"
)

// pool opens a pool of at most n connections.
func pool(path, pragmas string, n int) (*sql.DB, error) {
	name, err := dsn(path, pragmas)
	if err != nil {
		return nil, err
	}
	db, err := sql.Open(driverName, name)
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(n)
	db.SetMaxIdleConns(n)
	return db, nil
}

// exists reports whether there is a database at path. A write-ahead log without its database is an error: the
// database was moved away without it, and a new one in its place would hide that.
func exists(path string) (bool, error) {
	_, err := os.Stat(path)
	if err == nil {
		return true, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if info, err := os.Stat(path + "-wal"); err == nil && info.Size() > 0 {
		return false, fmt.Errorf("%w: %s-wal is there without its database; put %s back or move the log away",
			ErrDamaged, path, path)
	}
	return false, nil
}

// inspect refuses a file that is not ours, not whole or newer than this program, without writing to it.
func inspect(ctx context.Context, path string, newest int) error {
	size, err := inspectHeader(path)
	if err != nil {
		return err
	}
	db, err := pool(path, inspectPragmas, 1)
	if err != nil {
		return err
	}
	defer db.Close()
	var found schema
	if err := db.QueryRowContext(ctx, querySchema).Scan(&found.version, &found.oldest); err != nil {
		if errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("%w: it has no schema version", ErrDamaged)
		}
		return damaged(err)
	}
	if err := found.check(newest); err != nil {
		return err
	}
	if size > checkLimit {
		return nil // reading it all would delay every start; SQLite still checks each page that it uses
	}
	var verdict string
	if err := db.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&verdict); err != nil {
		return damaged(err)
	}
	if verdict != "ok" {
		return fmt.Errorf("%w: %s", ErrDamaged, verdict)
	}
	return nil
}

// inspectHeader checks the first bytes of the file and returns its size.
func inspectHeader(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("%w: not a regular file", ErrForeign)
	}
	header := make([]byte, headerSize)
	n, err := io.ReadFull(f, header)
	if n < headerSize {
		return 0, fmt.Errorf("%w: only %d bytes long", ErrDamaged, n)
	}
	if err != nil {
		return 0, err
	}
	if string(header[:len(headerMagic)]) != headerMagic {
		return 0, fmt.Errorf("%w, or its beginning is damaged", ErrForeign)
	}
	switch id := binary.BigEndian.Uint32(header[applicationIDOffset:]); id {
	case applicationID:
		return info.Size(), nil
	case draftID:
		return 0, ErrDraft
	default:
		return 0, fmt.Errorf("%w: its application id is %#x", ErrForeign, id)
	}
}

func (f *sqliteFile) name() string  { return "sqlite" }
func (f *sqliteFile) place() string { return f.path }

func (f *sqliteFile) exists(context.Context) (bool, error) { return exists(f.path) }

// limit allows for a disk that is slow, not for one that is stuck.
func (f *sqliteFile) limit() time.Duration { return 30 * time.Second }

// turn has nothing to wait for: an immediate transaction has the lock of the file when it has begun.
func (f *sqliteFile) turn(context.Context, *sql.Tx) error { return nil }

func (f *sqliteFile) again(error) bool { return false }

func (f *sqliteFile) commit(_ *sql.Conn, _ bool, write func() error) error { return write() }

// prepare makes the file when there is none, else checks it.
func (f *sqliteFile) prepare(ctx context.Context, s *Store, steps []step) error {
	found, err := exists(f.path)
	if err != nil {
		return err
	}
	if found {
		return s.check(ctx, f.path, len(steps))
	}
	if err := os.MkdirAll(filepath.Dir(f.path), 0o700); err != nil {
		return err
	}
	s.logger.InfoContext(ctx, "making a new database", "path", f.path)
	return s.create(ctx, f.path, steps)
}

// connect opens the pools. Writers queue fairly for one connection instead of polling a busy file.
func (f *sqliteFile) connect() (p pools, err error) {
	if f.readOnly { // and whoever serves on it goes on
		p.reader, err = pool(f.path, inspectPragmas, readers)
		p.writer, p.side, p.shared = p.reader, p.reader, p.reader
		return p, err
	}
	if p.writer, err = pool(f.path, writePragmas, 1); err != nil {
		return p, err
	}
	p.side = p.writer
	if p.reader, err = pool(f.path, readPragmas, readers); err != nil {
		return p, err
	}
	p.shared, err = pool(f.path, writePragmas, callers)
	return p, err
}

// search starts searchers. There are no more than can run at once: each fills a cache of its own, which SQLite empties after
// every write.
func (f *sqliteFile) search(query string) (*searchers, error) {
	n := min(readers, runtime.GOMAXPROCS(0))
	db, err := pool(f.path, searchPragmas, n)
	if err != nil {
		return nil, err
	}
	return newSearchers(db, query, n)
}

func (f *sqliteFile) upgrade(ctx context.Context, db *sql.DB, steps []step) error {
	var found schema
	if err := db.QueryRowContext(ctx, querySchema).Scan(&found.version, &found.oldest); err != nil {
		return err
	}
	return migrate(ctx, db, found.version, steps)
}

// check judges an existing file before anything writes to it.
func (s *Store) check(ctx context.Context, path string, newest int) error {
	if err := inspect(ctx, path, newest); err != nil {
		return err
	}
	db, err := pool(path, inspectPragmas, 1)
	if err != nil {
		return err
	}
	defer db.Close()
	if err := s.checkUse(ctx, db); err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o077 == 0 || s.anyCondition {
		return nil
	}
	s.logger.WarnContext(ctx, "the database could be read by other users: making it private", "path", path)
	return os.Chmod(path, 0o600)
}

// create makes the database beside its place and renames it, so that a crash at the first start leaves either none
// or a whole one.
func (s *Store) create(ctx context.Context, path string, steps []step) error {
	draft := path + ".new"
	for _, name := range []string{draft, draft + "-journal"} {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	f, err := os.OpenFile(draft, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := s.fill(ctx, draft, steps); err != nil {
		return err
	}
	if err := os.Rename(draft, path); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(path))
}

// fill writes the schema and the first rows into an empty file.
func (s *Store) fill(ctx context.Context, path string, steps []step) error {
	db, err := pool(path, createPragmas, 1)
	if err != nil {
		return err
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, fmt.Sprintf("PRAGMA application_id = %d", applicationID)); err != nil {
		return err
	}
	if _, err := db.ExecContext(ctx, createSchemaVersion); err != nil {
		return err
	}
	if _, err := db.ExecContext(ctx, insertSchemaVersion, 0, 1); err != nil {
		return err
	}
	if err := migrate(ctx, db, 0, steps); err != nil {
		return err
	}
	check, err := s.kekCheck()
	if err != nil {
		return err
	}
	if _, err := db.ExecContext(ctx, insertState, check); err != nil {
		return err
	}
	return db.Close()
}

// migrate applies the steps behind version, each in a transaction with its number.
func migrate(ctx context.Context, db *sql.DB, version int, steps []step) error {
	for i := version; i < len(steps); i++ {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback() // after a commit it does nothing
		if err := applyStep(ctx, tx, i+1, steps[i]); err != nil {
			return err
		}
		if err := tx.Commit(); err != nil {
			return fmt.Errorf("schema step %d: %w", i+1, err)
		}
	}
	return nil
}

// forget overwrites what was deleted: secure_delete has zeroed it in the pages, and the log that still holds the
// former ones is moved into the database and cut off. While somebody reads an older state the log stays: the next one to
// be cut off is then the one that SQLite itself cuts.
func (f *sqliteFile) forget(ctx context.Context, conn *sql.Conn) error {
	_, err := conn.ExecContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)")
	return err
}

// isUnique reports whether err says that a row with this key exists.
func (f *sqliteFile) isUnique(err error) bool {
	e, ok := errors.AsType[*sqlite.Error](err)
	if !ok {
		return false
	}
	return e.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || e.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY
}

// damaged adds ErrDamaged to an error by which SQLite says that the file is not whole.
func damaged(err error) error {
	e, ok := errors.AsType[*sqlite.Error](err)
	if !ok {
		return err
	}
	switch e.Code() & 0xff {
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
}

// judge also knows errors that are not SQLite's own but have its codes.
func (f *sqliteFile) judge(err error) error {
	switch {
	case diskFull(err):
		return fmt.Errorf("%w: %w", ErrFull, err)
	case syncFailed(err):
		return fmt.Errorf("%w: %w", ErrSync, err)
	case errors.Is(err, ErrDamaged):
		return err
	}
	return damaged(err)
}

// coded is an error of SQLite.
type coded interface {
	error
	Code() int // extended result code
}

// diskFull reports whether err says that the disk was full.
func diskFull(err error) bool {
	e, ok := errors.AsType[coded](err)
	return ok && e.Code()&0xff == sqlite3.SQLITE_FULL
}

// syncFailed reports whether err says that what was written may not be on the disk.
func syncFailed(err error) bool {
	e, ok := errors.AsType[coded](err)
	return ok && (e.Code() == sqlite3.SQLITE_IOERR_FSYNC || e.Code() == sqlite3.SQLITE_IOERR_DIR_FSYNC)
}

func (f *sqliteFile) beginLease(ctx context.Context, w conn, l Lease, now time.Time) (sql.Result, error) {
	return w.ExecContext(ctx, insertLease, l.Replica, l.Incarnation, l.Applied, l.Program, l.Address, l.MTLSURL, moment(now))
}

func (f *sqliteFile) renewLease(ctx context.Context, w conn, r LeaseRenewal, now time.Time) (Renewed, error) {
	out := Renewed{Now: now}
	err := w.QueryRowContext(ctx, renewLease, r.Replica, r.Incarnation, r.Applied, moment(now)).Scan(&out.Version)
	if err != nil || r.HeadSeq == 0 {
		return out, err
	}
	_, err = w.ExecContext(ctx, advanceHead, r.Replica, r.Incarnation, r.HeadSeq, r.HeadChain[:], moment(now))
	return out, err
}

func (f *sqliteFile) witnessed(ctx context.Context, w conn, replica string, incarnation uint64, within time.Duration, now time.Time) (is, others bool, err error) {
	err = w.QueryRowContext(ctx, queryWitnessed, replica, incarnation, moment(now.Add(-within))).Scan(&is, &others)
	return is, others, err
}

func (f *sqliteFile) durability(context.Context, conn) (Durability, error) { return SingleNode, nil }

// listen has nobody to listen to: one process uses the file.
func (f *sqliteFile) listen(ctx context.Context, _ *Store, _ func()) { <-ctx.Done() }

func (f *sqliteFile) reconnect() {}
