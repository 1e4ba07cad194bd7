// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	sqlite3 "modernc.org/sqlite/lib"
)

// noted returns the ids that wait, in their order.
func (f *fixture) noted() string {
	f.t.Helper()
	entries, err := f.Outbox(f.ctx(), 1000)
	ok(f.t, err)
	var ids []string
	for _, e := range entries {
		ids = append(ids, e.ID)
	}
	return strings.Join(ids, " ")
}

// addNoted adds a client together with entries.
func (f *fixture) addNoted(id string, entries ...string) error {
	return f.Transact(f.ctx(), func(tx *Store) error {
		if _, err := tx.AddClient(f.ctx(), Client{ID: id}, nil); err != nil {
			return err
		}
		for _, e := range entries {
			if err := tx.Note(Entry{ID: e, Body: []byte("body of " + e)}); err != nil {
				return err
			}
		}
		return nil
	})
}

func testOutbox(f *fixture) {
	before, err := f.Version(f.ctx())
	ok(f.t, err)
	ok(f.t, f.addNoted("one", "first"))
	after, err := f.Version(f.ctx())
	ok(f.t, err)
	same(f.t, after, before+1)
	entries, err := f.Outbox(f.ctx(), 10)
	ok(f.t, err)
	same(f.t, entries, []Entry{{ID: "first", Body: []byte("body of first"), NotedAt: start}})

	// What is in the file says nothing of it, and belongs to its own row only.
	var sealed []byte
	ok(f.t, f.read.QueryRowContext(f.ctx(), "SELECT body FROM outbox").Scan(&sealed))
	if bytes.Contains(sealed, []byte("body")) {
		f.t.Error("the body is not sealed")
	}
	_, err = f.write.ExecContext(f.ctx(), "UPDATE outbox SET id = 'other'")
	ok(f.t, err)
	_, err = f.Outbox(f.ctx(), 10)
	want(f.t, err, errUnseal)
	_, err = f.write.ExecContext(f.ctx(), "UPDATE outbox SET id = 'first'")
	ok(f.t, err)

	f.clock.advance(time.Minute)
	ok(f.t, f.addNoted("two", "second"))
	n, oldest, err := f.Waiting(f.ctx())
	ok(f.t, err)
	if n != 2 || !oldest.Equal(start) {
		f.t.Errorf("%d wait since %s", n, oldest)
	}
	version, err := f.Version(f.ctx())
	ok(f.t, err)
	ok(f.t, f.DropOutbox(f.ctx(), "first", "unknown"))
	same(f.t, f.noted(), "second")
	ok(f.t, f.DropOutbox(f.ctx(), "second", "first"))
	n, oldest, err = f.Waiting(f.ctx())
	ok(f.t, err)
	if n != 0 || !oldest.IsZero() {
		f.t.Errorf("%d wait since %s", n, oldest)
	}
	still, err := f.Version(f.ctx())
	ok(f.t, err)
	same(f.t, still, version) // nobody needs to look again
}

func testOutboxOrder(f *fixture) {
	ok(f.t, f.addNoted("one", "z", "y"))
	f.clock.advance(-time.Hour) // a clock that was set back changes no order
	ok(f.t, f.addNoted("two", "b", "a"))
	same(f.t, f.noted(), "z y b a")
	entries, err := f.Outbox(f.ctx(), 3)
	ok(f.t, err)
	same(f.t, len(entries), 3)
}

func testOutboxBounds(f *fixture) {
	want(f.t, f.Note(Entry{ID: "x", Body: []byte("y")}), errOutside)
	for name, e := range map[string]Entry{
		"no id": {Body: []byte("y")}, "no body": {ID: "x"}, "too long": {ID: "x", Body: make([]byte, maxEntry+1)},
	} {
		if f.Transact(f.ctx(), func(tx *Store) error { return tx.Note(e) }) == nil {
			f.t.Error(name)
		}
	}
	ok(f.t, f.addNoted("one", "same"))
	want(f.t, f.addNoted("two", "same"), ErrExists)
	_, err := f.Client(f.ctx(), "two")
	want(f.t, err, ErrNotFound)
}

func testTransact(f *fixture) {
	changes := 0
	f.OnChange(func(Change) { changes++ })
	before, err := f.Version(f.ctx())
	ok(f.t, err)
	ok(f.t, f.Transact(f.ctx(), func(tx *Store) error {
		same(f.t, tx.Touched(), false)
		_, err := tx.AddClient(f.ctx(), Client{ID: "one"}, f.code(1))
		ok(f.t, err)
		same(f.t, tx.Touched(), true)
		// The transaction sees what it did, nobody else does.
		_, err = tx.Client(f.ctx(), "one")
		ok(f.t, err)
		_, err = f.Client(f.ctx(), "one")
		want(f.t, err, ErrNotFound)
		_, err = tx.Redeem(f.ctx(), codeIDOf(1), keyOf(1), f.cert("one", 1, 1), "192.0.2.7", f.clock.now())
		ok(f.t, err)
		return tx.Transact(f.ctx(), func(again *Store) error { return again.DisableClient(f.ctx(), "one") })
	}))
	after, err := f.Version(f.ctx())
	ok(f.t, err)
	if after != before+1 || changes != 1 || !f.disabled("one") || f.count("certificates") != 1 {
		f.t.Errorf("version %d after %d, %d changes", after, before, changes)
	}
	checkStamps(f.t, f.Store)

	refused := errors.New("refused")
	want(f.t, f.Transact(f.ctx(), func(tx *Store) error {
		ok(f.t, tx.EnableClient(f.ctx(), "one"))
		ok(f.t, tx.Note(Entry{ID: "x", Body: []byte("y")}))
		return refused
	}), refused)
	if !f.disabled("one") || f.noted() != "" || changes != 1 {
		f.t.Error("a transaction that was refused left something")
	}
	ok(f.t, f.Transact(f.ctx(), func(tx *Store) error {
		ok(f.t, tx.DisableClient(f.ctx(), "one")) // it is already
		same(f.t, tx.Touched(), false)
		return nil
	}))
	same(f.t, f.Touched(), false)
	same(f.t, changes, 1)
}

// A refusal inside is one of the whole, also when it is not passed on: what came before it may be half of something.
func testTransactFailedPart(f *fixture) {
	f.client("one", 1)
	err := f.Transact(f.ctx(), func(tx *Store) error {
		ok(f.t, tx.DisableClient(f.ctx(), "one"))
		_, err := tx.AddClient(f.ctx(), Client{ID: "one"}, nil)
		want(f.t, err, ErrExists)
		want(f.t, tx.DisableClient(f.ctx(), "one"), ErrExists)
		return nil
	})
	want(f.t, err, ErrExists)
	if f.disabled("one") {
		f.t.Error("half of a transaction was committed")
	}
}

func testTransactUnversioned(f *fixture) {
	ok(f.t, f.Transact(f.ctx(), func(tx *Store) error {
		value, err := tx.SetOnce(f.ctx(), "name", "value")
		same(f.t, value, "value")
		same(f.t, tx.Touched(), true)
		return err
	}))
	ok(f.t, f.Transact(f.ctx(), func(tx *Store) error {
		value, err := tx.SetOnce(f.ctx(), "name", "another")
		same(f.t, value, "value")
		same(f.t, tx.Touched(), false)
		return err
	}))
	value, err := f.Setting(f.ctx(), "name")
	ok(f.t, err)
	same(f.t, value, "value")
	refused := errors.New("refused")
	want(f.t, f.Transact(f.ctx(), func(tx *Store) error {
		_, err := tx.SetOnce(f.ctx(), "other", "value")
		ok(f.t, err)
		n, err := tx.NextCRLNumber(f.ctx())
		ok(f.t, err)
		same(f.t, n, int64(1))
		return refused
	}), refused)
	_, err = f.Setting(f.ctx(), "other")
	want(f.t, err, ErrNotFound)
	n, err := f.NextCRLNumber(f.ctx())
	ok(f.t, err)
	same(f.t, n, int64(1))
}

// TestDiskFull fills the database up to its bound: what is refused then has changed nothing, with its entries, and it
// goes on when there is room.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	f := newFixture(t, openSQLite)
	var pages int
	ok(t, f.read.QueryRowContext(t.Context(), "PRAGMA page_count").Scan(&pages))
	// Of the writing connection, of which there is one.
	_, err := f.write.ExecContext(t.Context(), fmt.Sprintf("PRAGMA max_page_count = %d", pages+2))
	ok(t, err)
	body := bytes.Repeat([]byte("x"), 3000)
	add := func(id string) error {
		return f.Transact(t.Context(), func(tx *Store) error {
			if _, err := tx.AddClient(t.Context(), Client{ID: id}, nil); err != nil {
				return err
			}
			return tx.Note(Entry{ID: id, Body: body})
		})
	}
	added := 0
	for ; added < 100; added++ {
		if err = add(fmt.Sprint("c", added)); err != nil {
			break
		}
	}
	want(t, err, ErrFull)
	if f.count("clients") != added || f.count("outbox") != added {
		t.Errorf("%d clients and %d entries of %d", f.count("clients"), f.count("outbox"), added)
	}
	_, err = f.write.ExecContext(t.Context(), fmt.Sprintf("PRAGMA max_page_count = %d", pages+1000))
	ok(t, err)
	ok(t, add("again"))
	checkStamps(t, f.Store)
}

// brokenDisk is an error of the disk, as SQLite reports it.
type brokenDisk struct{ code int }

func (e *brokenDisk) Error() string { return "disk I/O error" }
func (e *brokenDisk) Code() int     { return e.code }

// TestSyncFailed: a failed sync is final, and told once.
func TestSyncFailed(t *testing.T) {
	t.Parallel()
	for _, code := range []int{sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC} {
		f := newFixture(t, openSQLite)
		told := 0
		f.fatal = func(error) { told++ }
		f.client("one", 1)
		err := f.Transact(t.Context(), func(tx *Store) error {
			ok(t, tx.DisableClient(t.Context(), "one"))
			return fmt.Errorf("commit: %w", &brokenDisk{code})
		})
		want(t, err, ErrSync)
		want(t, f.DisableClient(t.Context(), "one"), ErrSync)
		want(t, f.DropOutbox(t.Context(), "x"), ErrSync)
		_, err = f.SetOnce(t.Context(), "name", "value")
		want(t, err, ErrSync)
		_, err = f.NextCRLNumber(t.Context())
		want(t, err, ErrSync)
		if told != 1 || f.disabled("one") {
			t.Errorf("told %d times", told)
		}
	}
	f := newFixture(t, openSQLite)
	f.fatal = func(err error) { t.Errorf("fatal: %v", err) }
	err := f.Transact(t.Context(), func(*Store) error { return &brokenDisk{sqlite3.SQLITE_IOERR_WRITE} })
	if err == nil || errors.Is(err, ErrSync) {
		t.Errorf("a write that failed: %v", err)
	}
	f.client("one", 1)
}
