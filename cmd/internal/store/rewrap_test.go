// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// anotherKEK is what tests seal anew under.
var anotherKEK = bytes.Repeat([]byte{8}, kekSize)

// under has the store read with another key-encryption key, as another process would.
func under(t *testing.T, s *Store, kek []byte) {
	t.Helper()
	seal, err := newSealer(kek)
	ok(t, err)
	s.sealer = seal
}

// A15: everything that is sealed opens under the new key-encryption key, and under the old one nothing does.
func TestRewrap(t *testing.T) {
	everyDatabase(t, func(t *testing.T, open opener) {
		f := newFixture(t, open)
		furnish(f)
		ctx := t.Context()
		for i := range 2*rewrapPage + 1 { // pages
			_, err := f.AuditSubject(ctx, fmt.Sprintf("s%d", i))
			ok(t, err)
			if i == 3 && f.Dialect() == postgresKind {
				break // it need not be shown twice
			}
		}
		tickets, err := f.TicketKeys(ctx, "mtls", f.clock.now())
		ok(t, err)
		day, err := f.AuditDay(ctx, "2026-03-01", "")
		ok(t, err)
		subjects := make(map[string][]byte)
		for _, id := range []string{"a", "s0", "s3"} {
			subjects[id], err = f.AuditSubject(ctx, id)
			ok(t, err)
		}
		keys, err := f.Keys(ctx, "signing")
		ok(t, err)
		waiting, err := f.Outbox(ctx, 100)
		ok(t, err)
		version, err := f.Version(ctx)
		ok(t, err)

		_, err = f.Rewrap(ctx, anotherKEK[1:], nil, f.replica, nil)
		if err == nil {
			t.Error("a key that is too short")
		}
		same(t, f.checkKEK(ctx, f.read), nil)
		made, err := f.Rewrap(ctx, anotherKEK, nil, f.replica, []Entry{{ID: "rewrapped", Body: []byte("{}")}})
		ok(t, err)
		for _, table := range made.Tables {
			var n int64
			ok(t, f.read.QueryRowContext(ctx, "SELECT count(*) FROM "+table.Table).Scan(&n))
			if n != table.Rows || n == 0 {
				t.Errorf("table %s: %d rows of %d", table.Table, table.Rows, n)
			}
		}
		want(t, f.checkKEK(ctx, f.read), ErrWrongKEK)
		for name, read := range map[string]func() error{
			"keys":     func() error { _, err := f.Keys(ctx, "signing"); return err },
			"outbox":   func() error { _, err := f.Outbox(ctx, 100); return err },
			"days":     func() error { _, err := f.StoredAuditDay(ctx, "2026-03-01"); return err },
			"subjects": func() error { _, err := f.StoredAuditSubject(ctx, "a"); return err },
		} {
			if err := read(); !errors.Is(err, errUnseal) {
				t.Errorf("%s under the old key: %v", name, err)
			}
		}
		under(t, f.Store, anotherKEK)
		same(t, f.checkKEK(ctx, f.read), nil)
		again, err := f.Keys(ctx, "signing")
		ok(t, err)
		same(t, again, keys)
		got, err := f.StoredAuditDay(ctx, "2026-03-01")
		ok(t, err)
		same(t, got, day)
		for id, secret := range subjects {
			got, err := f.StoredAuditSubject(ctx, id)
			ok(t, err)
			same(t, got, secret)
		}
		entries, err := f.Outbox(ctx, 100)
		ok(t, err)
		if len(entries) != len(waiting)+1 || !slices.ContainsFunc(entries, func(e Entry) bool { return e.ID == "rewrapped" }) {
			t.Errorf("%d entries wait, %d did", len(entries), len(waiting))
		}
		fresh, err := f.TicketKeys(ctx, "mtls", f.clock.now())
		ok(t, err)
		if fresh[0].Key == tickets[0].Key {
			t.Error("sessions of before resume")
		}
		if now, err := f.Version(ctx); err != nil || now <= version {
			t.Errorf("the version is %d, was %d: %v", now, version, err)
		}
		checkStamps(t, f.Store)
	})
}

// What does not open is not skipped, and then nothing is changed.
func TestRewrap_Damaged(t *testing.T) {
	everyDatabase(t, func(t *testing.T, open opener) {
		f := newFixture(t, open)
		furnish(f)
		_, err := f.writer.ExecContext(t.Context(), "UPDATE audit_subjects SET sealed = $1 WHERE id = 'a'", []byte("x"))
		ok(t, err)
		if _, err := f.Rewrap(t.Context(), anotherKEK, nil, f.replica, nil); !errors.Is(err, errUnseal) || !strings.Contains(err.Error(), "audit_subjects") {
			t.Errorf("a row that does not open: %v", err)
		}
		ok(t, f.checkKEK(t.Context(), f.read))
		_, err = f.Keys(t.Context(), "signing")
		ok(t, err)
	})
}

// Whoever may remove the new key is told when something may be sealed under it: a commit that failed may have been made.
func TestRewrap_FailedCommit(t *testing.T) {
	everyDatabase(t, func(t *testing.T, open opener) {
		f := newFixture(t, open)
		furnish(f)
		statements := []string{
			"CREATE TABLE nowhere (id INTEGER REFERENCES missing (id) DEFERRABLE INITIALLY DEFERRED)",
			"CREATE TABLE missing (id INTEGER PRIMARY KEY)",
			"CREATE TRIGGER last AFTER UPDATE OF kek_check ON state BEGIN INSERT INTO nowhere VALUES (1); END",
		}
		if f.Dialect() == postgresKind {
			statements = []string{
				"CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''not now''; END'",
				"CREATE CONSTRAINT TRIGGER last AFTER UPDATE ON state DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fail()",
			}
		}
		for _, statement := range statements {
			_, err := f.writer.ExecContext(t.Context(), statement)
			ok(t, err)
		}
		_, err := f.Rewrap(t.Context(), anotherKEK, nil, f.replica, nil)
		want(t, err, ErrUnknown)
		ok(t, f.checkKEK(t.Context(), f.read))

		_, err = f.writer.ExecContext(t.Context(), "UPDATE audit_subjects SET sealed = $1 WHERE id = 'a'", []byte("x"))
		ok(t, err)
		if _, err = f.Rewrap(t.Context(), anotherKEK, nil, f.replica, nil); !errors.Is(err, errUnseal) || errors.Is(err, ErrUnknown) {
			t.Errorf("a row that does not open: %v", err)
		}
	})
}

// A replica that took or renewed its lease since it was looked at keeps everything as it is. With SQLite nobody can: who
// changes has the data folder's lock.
func TestRewrap_Serving(t *testing.T) {
	t.Parallel()
	s := openPostgres(t, time.Now)
	ctx := t.Context()
	ok(t, s.BeginLease(ctx, Lease{Replica: "r", Incarnation: 1, StartedAt: time.Now()}))
	seen, err := s.Leases(ctx)
	ok(t, err)
	_, err = s.Rewrap(ctx, anotherKEK, nil, "r", nil)
	want(t, err, ErrServing)
	_, err = s.RenewLease(ctx, LeaseRenewal{Replica: "r", Incarnation: 1})
	ok(t, err)
	_, err = s.Rewrap(ctx, anotherKEK, seen, "r", nil)
	want(t, err, ErrServing)
	ok(t, s.checkKEK(ctx, s.read))
	seen, err = s.Leases(ctx)
	ok(t, err)
	_, err = s.Rewrap(ctx, anotherKEK, seen, "r", nil)
	ok(t, err)
}

// Every column that is sealed is known: those of copied tables by name, and what else the schema has of that name.
func TestRewrapKnowsTheSchema(t *testing.T) {
	everyDatabase(t, func(t *testing.T, open opener) {
		s := open(t, time.Now)
		query := "SELECT m.name || '.' || c.name FROM sqlite_master m, pragma_table_info(m.name) c WHERE m.type = 'table' AND c.name LIKE '%seal%'"
		if s.Dialect() == postgresKind {
			query = "SELECT table_name || '.' || column_name FROM information_schema.columns WHERE table_schema = current_schema() AND column_name LIKE '%seal%'"
		}
		rows, err := s.read.QueryContext(t.Context(), query)
		got, err := all(rows, err, func(r row) (name string, err error) { return name, r.Scan(&name) })
		ok(t, err)
		known := []string{"ticket_keys.sealed", "ticket_keys.seal_version"} // deleted
		for _, table := range sealedTables() {
			known = append(known, table.name+"."+table.column)
			if table.version != "" {
				known = append(known, table.name+"."+table.version)
			}
		}
		for _, name := range got {
			if !slices.Contains(known, name) {
				t.Errorf("%s is neither sealed anew nor left out: see sealedTables", name)
			}
		}
		if len(got) < 6 {
			t.Errorf("the schema has %v", got)
		}
	})
}

// A new key's file is made once, is held by one, and is removed by nobody but who has made it.
func TestOpenNewKEK(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	name := filepath.Join(dir, "fresh")
	k, err := OpenNewKEK(name)
	ok(t, err)
	if got, err := readKEK(name); err != nil || !bytes.Equal(got, k.Key) {
		t.Fatalf("the file holds another key, or none: %v", err)
	}
	_, err = OpenNewKEK(name)
	want(t, err, ErrKEKHeld)
	ok(t, k.Discard())
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("a discarded one left %v, %v", entries, err)
	}
	ok(t, k.Discard())

	// Who has made it is slow, and another has taken its place meanwhile.
	other, err := OpenNewKEK(name)
	ok(t, err)
	ok(t, k.Discard())
	ok(t, k.Close())
	ok(t, other.Close())
	again, err := OpenNewKEK(name)
	ok(t, err)
	same(t, again.Key, other.Key)
	ok(t, again.Discard())
	ok(t, again.Close())
	if _, err := readKEK(name); err != nil {
		t.Errorf("a file that was there is gone: %v", err)
	}
	link := filepath.Join(t.TempDir(), "link")
	ok(t, os.Symlink(name, link))
	linked, err := OpenNewKEK(link)
	ok(t, err)
	same(t, linked.Key, other.Key)
	ok(t, linked.Close())

	ok(t, os.WriteFile(name, []byte("half of o"), 0o600))
	_, err = OpenNewKEK(name)
	if refused, is := errors.AsType[*KEKError](err); !is || !strings.Contains(refused.Hint, "name another file") {
		t.Errorf("half of a key: %v", err)
	}
	if text := string(contents(t, name)); text != "half of o" {
		t.Errorf("what was there is %q", text)
	}
	_, err = OpenNewKEK(filepath.Join(dir, "mistyped", "fresh"))
	if no, is := errors.AsType[*FolderError](err); !is || no.Dir != filepath.Join(dir, "mistyped") {
		t.Errorf("a folder that is not there: %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("the folder has %v, %v", entries, err)
	}
}

// The new key takes the old one's place whole, the old one is kept, and to do it again does nothing.
func TestInstallKEK(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	name := filepath.Join(dir, "kek")
	old, err := LoadKEK(dir, filepath.Join(dir, FileName), KEKSource{})
	ok(t, err)
	at := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	kept, err := InstallKEK(dir, anotherKEK, at)
	ok(t, err)
	same(t, kept, name+".until-20261123-120000")
	for file, key := range map[string][]byte{name: anotherKEK, kept: old} {
		if got, err := readKEK(file); err != nil || !bytes.Equal(got, key) {
			t.Errorf("%s holds another key, or none: %v", file, err)
		}
	}
	kept, err = InstallKEK(dir, anotherKEK, at)
	ok(t, err)
	same(t, kept, "")
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("the folder has %v, %v", entries, err)
	}
	kept, err = InstallKEK(dir, old, at) // and back, in the same second
	ok(t, err)
	same(t, kept, name+".until-20261123-120001")
	if got, err := readKEK(kept); err != nil || !bytes.Equal(got, anotherKEK) {
		t.Errorf("%s holds another key, or none: %v", kept, err)
	}
	if _, err := InstallKEK(t.TempDir(), anotherKEK, at); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("where there is no key: %v", err)
	}
}
