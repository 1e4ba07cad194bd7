// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"time"
)

// dialect is what only one kind of database knows. Everything else is SQL that SQLite and PostgreSQL both read.
type dialect interface {
	// name is "sqlite" or "postgres", which is also the folder of its migrations.
	name() string
	// place names the database in errors and logs, without a password.
	place() string

	// exists reports whether there is a database that prepare would not make.
	exists(ctx context.Context) (bool, error)
	// prepare judges the database that is there, before anything writes to it, or makes a new one.
	prepare(ctx context.Context, s *Store, steps []step) error
	// connect opens the pools, without waiting for a connection.
	connect() (pools, error)
	// upgrade brings an older schema up to date, after prepare has judged the database.
	upgrade(ctx context.Context, db *sql.DB, steps []step) error

	// limit bounds a transaction once it has begun, so that a stuck database cannot queue writers for ever.
	limit() time.Duration
	// turn waits, at the beginning of a transaction that decides, until no other one is open, in whatever process.
	turn(ctx context.Context, tx *sql.Tx) error
	// again reports whether what failed did nothing, and may succeed if it is tried once more.
	again(err error) bool
	// commit runs write, which commits on a connection: a transaction, or one statement on its own. The error is
	// ErrUnknown when it is not known to have been committed, or not to have been.
	commit(conn *sql.Conn, transaction bool, write func() error) error
	// forget makes what was deleted leave the files, as far as the database can.
	forget(ctx context.Context, conn *sql.Conn) error

	// isUnique reports whether err says that a row with this key exists.
	isUnique(err error) bool
	// judge gives an error of the database its sentinel: ErrFull, ErrSync, ErrDamaged or ErrUnavailable.
	judge(err error) error

	beginLease(ctx context.Context, w conn, l Lease, now time.Time) (sql.Result, error)
	renewLease(ctx context.Context, w conn, r LeaseRenewal, now time.Time) (Renewed, error)
	// witnessed is Store.Witnessed, by the database's clock where it has one.
	witnessed(ctx context.Context, w conn, replica string, incarnation uint64, within time.Duration, now time.Time) (witnessed, others bool, err error)
	durability(ctx context.Context, w conn) (Durability, error)
	listen(ctx context.Context, s *Store, f func())
	// reconnect has no statement begun from now on use a connection of before.
	reconnect()
}

// pools are the connections of a Store. Two of them may be the same.
type pools struct {
	writer *sql.DB // one connection, for transactions that decide: they queue fairly
	side   *sql.DB // for what is written without a version, one statement at a time
	reader *sql.DB
	shared *sql.DB // handed out by DB
}

// step is a migration of the schema.
type step struct {
	text string
	// oldest is the schema of the oldest program that may run on the database after this step.
	oldest int
}
