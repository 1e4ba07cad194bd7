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

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// This file holds all that only SQLite knows. Everything else is SQL that PostgreSQL reads as well.

const (
	driverName       = "sqlite"
	migrationsFolder = "migrations/sqlite"

	// forUpdate follows a SELECT whose rows the transaction will judge by. SQLite has one writer at a time
	// (_txlock=immediate), so it needs nothing; PostgreSQL needs " FOR UPDATE".
	forUpdate = ""

	// applicationID marks our files in SQLite's header: "CBND".
	applicationID       = 0x43424e44
	applicationIDOffset = 68
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
	common         = "_pragma=busy_timeout(10000)&_pragma=foreign_keys(1)"
	writePragmas   = "_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=secure_delete(1)&" + common + "&_txlock=immediate"
	readPragmas    = writePragmas + "&_pragma=query_only(1)"
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

// forgetDeleted overwrites what was deleted: secure_delete has zeroed it in the pages, and the log that still holds the
// former ones is moved into the database and cut off. While somebody reads an older state the log stays: the next one to
// be cut off is then the one that SQLite itself cuts.
func forgetDeleted(ctx context.Context, conn *sql.Conn) error {
	_, err := conn.ExecContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)")
	return err
}

// isUnique reports whether err says that a row with this key exists.
func isUnique(err error) bool {
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
	var version int
	if err := db.QueryRowContext(ctx, querySchemaVersion).Scan(&version); err != nil {
		if errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("%w: it has no schema version", ErrDamaged)
		}
		return damaged(err)
	}
	if version > newest {
		return fmt.Errorf("%w: schema %d, this program knows up to %d; start the newer program", ErrNewerSchema, version, newest)
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
	if id := binary.BigEndian.Uint32(header[applicationIDOffset:]); id != applicationID {
		return 0, fmt.Errorf("%w: its application id is %#x", ErrForeign, id)
	}
	return info.Size(), nil
}
