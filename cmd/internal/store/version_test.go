// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"testing"
)

// A change holds from its own version on, and what changed nothing from the newest one that it could have seen.
func TestTransactAt(t *testing.T) {
	everyDatabase(t, func(t *testing.T, open opener) {
		f := newFixture(t, open)
		at := func(work func(tx *Store) error) int64 {
			t.Helper()
			version, err := f.TransactAt(f.ctx(), work)
			ok(t, err)
			return version
		}
		add := func(tx *Store) error { return tx.AddResource(f.ctx(), Resource{URI: "urn:a"}) }
		made := at(add)
		stored, err := f.Version(f.ctx())
		ok(t, err)
		same(t, made, stored)
		same(t, at(func(*Store) error { return nil }), stored)
		same(t, at(func(tx *Store) error { return tx.Note(Entry{ID: "a", Body: []byte("b")}) }) >= stored, true)
		undone := errors.New("undone")
		_, err = f.TransactAt(f.ctx(), func(tx *Store) error { return errors.Join(tx.RemoveResource(f.ctx(), "urn:a"), undone) })
		same(t, errors.Is(err, undone), true)
		same(t, at(func(*Store) error { return nil }) < made+2, true)
	})
}

// The published revocation list is replaced by a newer one only, of those that know no less.
func TestRevocationList(t *testing.T) {
	everyDatabase(t, func(t *testing.T, open opener) {
		f := newFixture(t, open)
		_, err := f.RevocationList(f.ctx())
		same(t, errors.Is(err, ErrNotFound), true)
		first := RevocationList{Number: 5, Covers: 10, MadeAt: f.clock.now(), DER: []byte("first")}
		put := func(l RevocationList, want bool) {
			t.Helper()
			done, err := f.PublishRevocationList(f.ctx(), l)
			ok(t, err)
			same(t, done, want)
		}
		put(first, true)
		put(RevocationList{Number: 5, Covers: 11, MadeAt: first.MadeAt, DER: []byte("same number")}, false)
		put(RevocationList{Number: 4, Covers: 11, MadeAt: first.MadeAt, DER: []byte("smaller number")}, false)
		put(RevocationList{Number: 6, Covers: 9, MadeAt: first.MadeAt, DER: []byte("knows less")}, false)
		list, err := f.RevocationList(f.ctx())
		ok(t, err)
		same(t, string(list.DER), "first")
		same(t, list.Covers, first.Covers)
		put(RevocationList{Number: 6, Covers: 10, MadeAt: first.MadeAt, DER: []byte("second")}, true)
		list, err = f.RevocationList(f.ctx())
		ok(t, err)
		same(t, string(list.DER), "second")
	})
}

// Statements that begin after Reconnect use no connection of before, and what the server is can be told.
func TestReconnect(t *testing.T) {
	everyDatabase(t, func(t *testing.T, open opener) {
		f := newFixture(t, open)
		kind, version, err := f.Server(f.ctx())
		ok(t, err)
		if kind == "" || version == "" {
			t.Errorf("the server is %q %q", kind, version)
		}
		if f.Dialect() != "postgres" {
			f.Reconnect()
			_, err := f.Version(f.ctx())
			ok(t, err)
			return
		}
		pid := func() (pid int) {
			t.Helper()
			ok(t, f.reader.QueryRowContext(f.ctx(), "SELECT pg_backend_pid()").Scan(&pid))
			return pid
		}
		f.reader.SetMaxOpenConns(1)
		before := pid()
		same(t, pid(), before)
		f.Reconnect()
		if after := pid(); after == before {
			t.Error("a connection of before is used once more")
		}
	})
}
