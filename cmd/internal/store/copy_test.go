// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/certbound/certbound/tokens"
)

// furnish puts something into every table that a copy takes.
func furnish(f *fixture) {
	ok(f.t, f.UseAssertion(f.ctx(), [32]byte{9}, f.in(time.Hour)))
	ctx, t := f.ctx(), f.t
	f.client("a", 1)
	first := f.enroll("a", 1, 1, 1)
	f.clock.advance(-time.Hour) // a clock that was set back: the child seems older than its parent
	f.renew(first, 2)
	f.clock.advance(time.Hour)
	_, err := f.Revoke(ctx, Selection{Thumbprints: [][32]byte{first.Thumbprint}, Only: true}, keyCompromise, f.clock.now())
	ok(t, err)
	_, err = f.AddClient(ctx, Client{ID: "b", AuthMethod: "tls_client_auth", DNS: []string{"b.example"}, Scopes: []string{"s"}, Resources: []string{"urn:r"}}, nil)
	ok(t, err)
	ok(t, f.AddResource(ctx, Resource{URI: "urn:r", Scopes: []string{"s"}, Servers: []string{"a"}}))
	ok(t, f.AddTrust(ctx, Trust{Name: "t", Anchors: [][]byte{[]byte("anchor")}, Revocation: "off"}))
	ok(t, f.PutKey(ctx, Key{ID: "k", Purpose: "signing", State: "active", Private: []byte("private")}))
	_, err = f.SetOnce(ctx, "colour", "blå")
	ok(t, err)
	_, err = f.AddPending(ctx, Pending{Kind: "client.add", Payload: []byte{0, 1}, RequestedBy: "a"})
	ok(t, err)
	ok(t, f.Transact(ctx, func(tx *Store) error { return tx.Note(Entry{ID: "e", Body: []byte("{}")}) }))
	_, err = f.AuditDay(ctx, "2026-03-01", "")
	ok(t, err)
	_, err = f.AuditSubject(ctx, "a")
	ok(t, err)
	ok(t, f.BeginJournal(ctx, Journal{Replica: "r", Incarnation: 3, FirstKey: "f", PreviousSeq: 8, StartedAt: f.clock.now()}))
	_, err = f.DB().ExecContext(ctx, "INSERT INTO ca_kv (bucket, nkey, nvalue) VALUES ('x', $1, $2)", []byte{0}, []byte{})
	ok(t, err)
	_, err = f.NextCRLNumber(ctx)
	ok(t, err)
	f.deny(1, tokens.Denial{ClientID: "a", IssuedBefore: f.clock.now()})
	_, err = f.writer.ExecContext(ctx, "INSERT INTO client_certificates (thumbprint, client_id, key_hash, not_before, not_after) VALUES ($1, 'a', $2, 1, 2)",
		bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32))
	ok(t, err)
}

// digests are of every table that a copy takes.
func digests(t *testing.T, s *Store) map[string]string {
	t.Helper()
	tx, err := s.snapshot(t.Context())
	ok(t, err)
	defer tx.Rollback()
	sums := make(map[string]string)
	for _, table := range copiedTables() {
		sum, err := table.read(t.Context(), tx, nil)
		ok(t, err)
		sums[table.name] = fmt.Sprintf("%d rows, %x", sum.rows, sum.sum)
	}
	return sums
}

func TestCopy(t *testing.T) {
	everyDatabase(t, func(t *testing.T, from opener) {
		for _, to := range []opener{openSQLite, openPostgres} {
			f := newFixture(t, from)
			furnish(f)
			want := digests(t, f.Store)
			for name, sum := range want {
				if strings.HasPrefix(sum, "0 ") {
					t.Errorf("the test has no row in %s", name)
				}
			}
			target := to(t, f.clock.now)
			got, err := Copy(t.Context(), f.Store, target, nil)
			ok(t, err)
			same(t, digests(t, target), want)
			version, err := f.Version(t.Context())
			ok(t, err)
			same(t, got.Version, version)
			keys, err := target.Keys(t.Context(), "signing")
			ok(t, err)
			same(t, string(keys[0].Private), "private")
			// It goes on from there.
			ok(t, target.DisableClient(t.Context(), "b"))
			checkStamps(t, target)
			if _, err = Copy(t.Context(), f.Store, target, nil); !errors.Is(err, ErrNotEmpty) {
				t.Errorf("copied into what is not empty: %v", err)
			}
		}
	})
}

// A copy that is not what was read is none: nothing stays of it.
func TestCopyIsVerified(t *testing.T) {
	t.Parallel()
	f := newFixture(t, openSQLite)
	furnish(f)
	target := openSQLite(t, f.clock.now)
	_, err := target.writer.ExecContext(t.Context(), `CREATE TRIGGER forge AFTER INSERT ON certificates BEGIN
		UPDATE certificates SET revoked_at = NULL WHERE thumbprint = NEW.thumbprint; END`)
	ok(t, err)
	if _, err = Copy(t.Context(), f.Store, target, nil); err == nil || !strings.Contains(err.Error(), "certificates") {
		t.Fatalf("the error is %v", err)
	}
	for _, c := range []string{"clients", "settings", "certificates"} {
		var n int
		ok(t, target.reader.QueryRowContext(t.Context(), "SELECT count(*) FROM "+c).Scan(&n))
		same(t, n, 0)
	}
}

// What a copy takes and what it leaves is all there is: whoever adds a table or a column has to say which it is.
func TestCopyKnowsTheSchema(t *testing.T) {
	everyDatabase(t, func(t *testing.T, open opener) {
		s := open(t, time.Now)
		query := `SELECT m.name || '.' || c.name FROM sqlite_master m, pragma_table_info(m.name) c WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%'`
		if s.Dialect() == postgresKind {
			query = `SELECT table_name || '.' || column_name FROM information_schema.columns WHERE table_schema = current_schema()`
		}
		rows, err := s.reader.QueryContext(t.Context(), query)
		got, err := all(rows, err, func(r row) (name string, err error) { return name, r.Scan(&name) })
		ok(t, err)
		got = slices.DeleteFunc(got, func(name string) bool {
			table, _, _ := strings.Cut(name, ".")
			return leftOut()[table] != ""
		})
		var known []string
		for _, table := range copiedTables() {
			for _, c := range table.columns {
				known = append(known, table.name+"."+c.name)
			}
		}
		slices.Sort(got)
		slices.Sort(known)
		for _, name := range got {
			if !slices.Contains(known, name) {
				t.Errorf("%s is neither copied nor left out: see copytables.go", name)
			}
		}
		for _, name := range known {
			if !slices.Contains(got, name) {
				t.Errorf("%s is copied and not in the schema", name)
			}
		}
	})
}

func TestBackup(t *testing.T) {
	everyDatabase(t, func(t *testing.T, open opener) {
		f := newFixture(t, open)
		furnish(f)
		_, err := f.SetOnce(t.Context(), settingInstallation, "here")
		ok(t, err)
		file := filepath.Join(t.TempDir(), "backup")
		ok(t, os.WriteFile(file+".draft", []byte("of a run that was cut short"), 0o600))
		cfg := CopyConfig{KEK: testKEK, Program: "v1", Now: f.clock.now}
		tag, _, err := f.Backup(t.Context(), file, cfg)
		ok(t, err)
		version, err := f.Version(t.Context())
		ok(t, err)
		same(t, tag, BackupTag{ID: tag.ID, Installation: "here", Program: "v1", MadeAt: f.clock.now(), Version: version,
			Journals: []BackupHead{{Replica: "r", Incarnation: 3, Serving: f.Dialect() != postgresKind}}})
		entries, err := os.ReadDir(filepath.Dir(file))
		ok(t, err)
		info, err := os.Stat(file)
		ok(t, err)
		if len(entries) != 1 || info.Mode() != 0o600 {
			t.Errorf("%d files, mode %v", len(entries), info.Mode())
		}
		if _, _, err := f.Backup(t.Context(), file, cfg); !errors.Is(err, fs.ErrExist) {
			t.Errorf("a file was replaced: %v", err)
		}
		missing := filepath.Join(t.TempDir(), "mistyped")
		for name, want := range map[string]FolderError{
			filepath.Join(missing, "backup"):      {Dir: missing, Missing: true},
			filepath.Join(missing, "in", "file"):  {Dir: filepath.Join(missing, "in"), Missing: true},
			filepath.Join(file, "backup"):         {Dir: file},
			filepath.Join(file, "in", "the-file"): {Dir: filepath.Join(file, "in")},
		} {
			_, _, err := f.Backup(t.Context(), name, cfg)
			if no, is := errors.AsType[*FolderError](err); !is || *no != want {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := os.Lstat(missing); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a folder was made: %v", err)
		}
		if bytes.Contains(contents(t, file), testKEK) {
			t.Error("the key-encryption key is in the backup")
		}

		// It is not served, nor touched by whoever tries.
		before := sha256.Sum256(contents(t, file))
		_, err = Open(t.Context(), Config{Path: file, KEK: testKEK})
		refused, is := errors.AsType[*ConditionError](err)
		if !is || !errors.Is(err, ErrNotServable) || refused.Condition.State != ConditionBackup || refused.Hint() == "" {
			t.Fatalf("a backup was opened: %v", err)
		}
		if sha256.Sum256(contents(t, file)) != before {
			t.Error("the backup was touched")
		}
		b, err := Open(t.Context(), Config{Path: file, KEK: testKEK, AnyCondition: true, ReadOnly: true})
		ok(t, err)
		rows, err := b.reader.QueryContext(t.Context(), "SELECT count(*) FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL UNION ALL SELECT count(*) FROM pragma_foreign_key_check")
		counts, err := all(rows, err, func(r row) (n int, err error) { return n, r.Scan(&n) })
		ok(t, err)
		if counts[0] < 15 || counts[1] != 0 {
			t.Errorf("%d indexes, %d references to nothing", counts[0], counts[1])
		}
		want := digests(t, f.Store)
		got := digests(t, b)
		delete(want, "settings")
		delete(got, "settings")
		same(t, got, want)
		ok(t, b.Close())
		if sha256.Sum256(contents(t, file)) != before {
			t.Error("the backup was touched")
		}
		// Who made the backup is not disturbed.
		ok(t, f.DisableClient(t.Context(), "b"))
	})
}

// A backup made while others write is one state of the database.
func TestBackupOfOneState(t *testing.T) {
	everyDatabase(t, func(t *testing.T, open opener) {
		f := newFixture(t, open)
		stop, done := make(chan struct{}), make(chan int, 1)
		ended := sync.OnceValue(func() int { close(stop); return <-done })
		t.Cleanup(func() { ended() })
		go func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					done <- n
					return
				default:
				}
				id := fmt.Sprintf("c%04d", n)
				if _, err := f.AddClient(context.Background(), Client{ID: id, AuthMethod: "tls_client_auth", DNS: []string{id + ".example"}, Scopes: []string{"s"}}, nil); err != nil {
					t.Error(err)
				}
			}
		}()
		for i := range 5 {
			file := filepath.Join(t.TempDir(), "backup")
			_, made, err := f.Backup(t.Context(), file, CopyConfig{KEK: testKEK})
			ok(t, err)
			rows := make(map[string]int64)
			for _, table := range made.Tables {
				rows[table.Table] = table.Rows
			}
			if rows["clients"] != rows["client_names"] || rows["clients"] != rows["client_refs"] || rows["clients"] != made.Version {
				t.Errorf("backup %d: version %d, %v", i, made.Version, rows)
			}
		}
		if ended() == 0 {
			t.Error("nothing was written meanwhile")
		}
	})
}

// A column's value that no database of ours has is no row to copy.
func TestCopyRefusesOddValues(t *testing.T) {
	t.Parallel()
	for kind, values := range map[columnKind][]any{integer: {"1", true, []byte("1"), 1.5}, text: {int64(1)}, blob: {int64(1)}, truth: {"t"}} {
		c := column{"c", kind}
		for _, v := range values {
			if got, err := c.normal(v); err == nil {
				t.Errorf("%c took %T: %v", kind, v, got)
			}
		}
	}
}

// Rows that differ only in where a value ends or whether there is one have different digests.
func TestCopyDigest(t *testing.T) {
	t.Parallel()
	seen := make(map[digestSum]string)
	for _, row := range [][]any{{"a", "b"}, {"ab", ""}, {"", "ab"}, {"ab", nil}, {nil, "ab"}, {[]byte("ab"), ""}, {int64(0), nil}, {false, nil}, {true, nil}, {nil, nil}} {
		var b []byte
		for _, v := range row {
			b = appendValue(b, v)
		}
		var sum digestSum
		sum.add(b)
		if other, is := seen[sum]; is {
			t.Errorf("%v and %s have one digest", row, other)
		}
		seen[sum] = fmt.Sprint(row)
	}
	var one, two digestSum
	one.add([]byte("a"))
	one.add([]byte("b"))
	two.add([]byte("b"))
	two.add([]byte("a"))
	if one != two {
		t.Errorf("the order matters: %v, %v", one, two)
	}
}

// What a restore ends: open codes, requests that wait, the revocation list and the keys of session tickets.
func TestReplayEnds(t *testing.T) {
	everyDatabase(t, func(t *testing.T, open opener) {
		f := newFixture(t, open)
		f.client("c", 9)
		furnish(f)
		for _, query := range []string{
			"INSERT INTO ticket_keys (listener, started_at, sealed, seal_version) VALUES ('mtls', 1, $1, 1)",
			"INSERT INTO revocation_list (id, number, covers, made_at, der) VALUES (1, 1, 1, 1, $1)",
		} {
			_, err := f.writer.ExecContext(t.Context(), query, []byte{1})
			ok(t, err)
		}
		before, err := f.Version(t.Context())
		ok(t, err)
		ok(t, f.SetRestoring(t.Context(), f.clock.now()))
		failed := errors.New("no")
		want(t, f.Replay(t.Context(), func(*Replay) ([]Entry, error) { return nil, failed }), failed)
		c, err := f.Condition(t.Context())
		ok(t, err)
		same(t, c.State, ConditionRestoring)
		ok(t, f.Replay(t.Context(), func(r *Replay) ([]Entry, error) {
			return []Entry{{ID: "restored", Body: []byte("{}")}}, r.Saw(before + 1000)
		}))
		for _, table := range []string{"ticket_keys", "revocation_list", "pending_requests"} {
			same(t, f.count(table), 0)
		}
		code, err := f.Code(t.Context(), codeIDOf(9))
		ok(t, err)
		same(t, code.Void, true)
		after, err := f.Version(t.Context())
		ok(t, err)
		same(t, after, before+1000+restoredAhead)
		checkStamps(t, f.Store)
		c, err = f.Condition(t.Context())
		ok(t, err)
		if c != nil {
			t.Errorf("still %+v", c)
		}
		entries, err := f.Outbox(t.Context(), 10)
		ok(t, err)
		same(t, entries[len(entries)-1].ID, "restored")
	})
}
