// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
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

// filled makes a closed database with some rows in it and returns its path.
func filled(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "certbound.db")
	s, err := Open(t.Context(), Config{Path: path, KEK: testKEK})
	ok(t, err)
	for i := range 100 {
		_, err := s.AddClient(t.Context(), Client{ID: fmt.Sprintf("client-%d", i), Scopes: []string{strings.Repeat("x", 100)}}, nil)
		ok(t, err)
	}
	ok(t, s.PutKey(t.Context(), Key{ID: "k", Purpose: "signing", Private: []byte("the private key of the service")}))
	ok(t, s.Close())
	return path
}

// reopen opens path, closes it if that worked, and returns the error.
func reopen(t *testing.T, path string, kek []byte) error {
	t.Helper()
	s, err := Open(t.Context(), Config{Path: path, KEK: kek})
	if err != nil {
		if !strings.Contains(err.Error(), path) {
			t.Errorf("error %q does not name the file", err)
		}
		return err
	}
	return s.Close()
}

func contents(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	ok(t, err)
	return b
}

func TestReopen(t *testing.T) {
	t.Parallel()
	path := filled(t)
	s := openAt(t, filepath.Dir(path), time.Now)
	clients, err := s.Clients(t.Context(), "", 1000)
	ok(t, err)
	if len(clients) != 100 {
		t.Errorf("%d clients", len(clients))
	}
	checkStamps(t, s)
}

func TestPragmas(t *testing.T) {
	t.Parallel()
	s := openAt(t, t.TempDir(), time.Now)
	for name, db := range map[string]*sql.DB{"write": s.writer, "read": s.reader, "shared": s.shared} {
		for pragma, want := range map[string]string{
			"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "busy_timeout": "10000",
		} {
			var got string
			if err := db.QueryRowContext(t.Context(), "PRAGMA "+pragma).Scan(&got); err != nil || got != want {
				t.Errorf("%s: %s is %s, %v, want %s", name, pragma, got, err, want)
			}
		}
	}
	if _, err := s.read.ExecContext(t.Context(), "DELETE FROM clients"); err == nil {
		t.Error("the read pool can write")
	}
}

func TestFileModes(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "new", "data")
	s := openAt(t, dir, time.Now)
	_, err := s.AddClient(t.Context(), Client{ID: "x"}, nil)
	ok(t, err)
	check := func() {
		t.Helper()
		err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err == nil && info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s has mode %v", name, info.Mode())
			}
			return err
		})
		ok(t, err)
	}
	check()
	path := filled(t)
	ok(t, os.Chmod(path, 0o644))
	ok(t, reopen(t, path, testKEK))
	dir = filepath.Dir(path)
	ok(t, os.Chmod(dir, 0o700))
	check()
}

// A file that is not ours, not whole, or newer is refused by name, and not one byte of it changes.
func TestRefusedDatabases(t *testing.T) {
	t.Parallel()
	exec := func(statements ...string) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			db, err := pool(path, createPragmas, 1)
			ok(t, err)
			for _, statement := range statements {
				_, err = db.ExecContext(t.Context(), statement)
				ok(t, err)
			}
			ok(t, db.Close())
		}
	}
	truncate := func(size func(whole int64) int64) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			info, err := os.Stat(path)
			ok(t, err)
			ok(t, os.Truncate(path, size(info.Size())))
		}
	}
	overwrite := func(offset int, with string) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			b := contents(t, path)
			copy(b[offset:], with)
			ok(t, os.WriteFile(path, b, 0o600))
		}
	}
	for _, test := range []struct {
		name  string
		spoil func(*testing.T, string)
		want  error
	}{
		{"empty", truncate(func(int64) int64 { return 0 }), ErrDamaged},
		{"half a header", truncate(func(int64) int64 { return 50 }), ErrDamaged},
		{"header only", truncate(func(int64) int64 { return 100 }), ErrDamaged},
		{"half", truncate(func(n int64) int64 { return n / 2 }), ErrDamaged},
		{"a page short", truncate(func(n int64) int64 { return n - 4096 }), ErrDamaged},
		{"a page overwritten", overwrite(3*4096, strings.Repeat("\xa5", 4096)), ErrDamaged},
		{"text", func(t *testing.T, path string) { ok(t, os.WriteFile(path, bytes.Repeat([]byte("text"), 100), 0o600)) }, ErrForeign},
		{"a database of another application", exec("PRAGMA application_id = 7"), ErrForeign},
		{"a database without application", exec("PRAGMA application_id = 0"), ErrForeign},
		{"a newer schema", exec("UPDATE schema_version SET version = 1000, oldest = 1000"), ErrNewerSchema},
		{"no schema version", exec("DELETE FROM schema_version"), ErrDamaged},
		{"no state", exec("DELETE FROM state"), ErrDamaged},
		{"a folder", func(t *testing.T, path string) {
			ok(t, os.Remove(path))
			ok(t, os.Mkdir(path, 0o700))
		}, ErrForeign},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			path := filled(t)
			test.spoil(t, path)
			before, _ := os.ReadFile(path) // a folder cannot be read
			want(t, reopen(t, path, testKEK), test.want)
			after, _ := os.ReadFile(path)
			if !bytes.Equal(before, after) {
				t.Error("the file was changed")
			}
		})
	}
}

func TestLogWithoutDatabase(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "certbound.db")
	ok(t, os.WriteFile(path+"-wal", []byte("x"), 0o600))
	want(t, reopen(t, path, testKEK), ErrDamaged)
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a database was made")
	}
}

// A crash in the middle of the first start leaves a draft, which the next start throws away.
func TestDraftOfACrash(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "certbound.db")
	ok(t, os.WriteFile(path+".new", []byte("half"), 0o600))
	ok(t, os.WriteFile(path+".new-journal", []byte("half"), 0o600))
	ok(t, reopen(t, path, testKEK))
	names, err := filepath.Glob(path + "*")
	ok(t, err)
	if !slices.Equal(names, []string{path}) {
		t.Errorf("files are %v", names)
	}
}

func TestWrongKEK(t *testing.T) {
	t.Parallel()
	path := filled(t)
	before := contents(t, path)
	want(t, reopen(t, path, bytes.Repeat([]byte{8}, kekSize)), ErrWrongKEK)
	if !bytes.Equal(before, contents(t, path)) {
		t.Error("the file was changed")
	}
	if reopen(t, path, testKEK[:16]) == nil {
		t.Error("a short key was accepted")
	}
	ok(t, reopen(t, path, testKEK))
}

// A sealed key opens in its own row only, and the file does not hold it in the clear.
func TestSealing(t *testing.T) {
	t.Parallel()
	path := filled(t)
	if bytes.Contains(contents(t, path), []byte("the private key")) {
		t.Error("the private key is in the file")
	}
	s := openAt(t, filepath.Dir(path), time.Now)
	for _, statement := range []string{
		"UPDATE sealed_keys SET id = 'other'", "UPDATE sealed_keys SET id = 'k', purpose = 'root'",
		"UPDATE sealed_keys SET purpose = 'signing', seal_version = 2",
	} {
		_, err := s.write.ExecContext(t.Context(), statement)
		ok(t, err)
		for _, purpose := range []string{"signing", "root"} {
			keys, err := s.Keys(t.Context(), purpose)
			if len(keys) != 0 || (err != nil && !errors.Is(err, errUnseal)) {
				t.Errorf("after %s: %v, %v", statement, keys, err)
			}
		}
	}
	_, err := s.write.ExecContext(t.Context(), "UPDATE sealed_keys SET seal_version = 1")
	ok(t, err)
	if keys, err := s.Keys(t.Context(), "signing"); err != nil || len(keys) != 1 {
		t.Errorf("%v, %v", keys, err)
	}
	a, b := place{table: "a", id: "bc", purpose: "d"}, place{table: "ab", id: "c", purpose: "d"}
	if bytes.Equal(a.additional(), b.additional()) {
		t.Error("two places have the same additional data")
	}
	_, err = s.write.ExecContext(t.Context(), "UPDATE sealed_keys SET chain = x'00000009'")
	ok(t, err)
	if _, err := s.Keys(t.Context(), "signing"); err == nil {
		t.Error("a chain that is cut off was accepted")
	}
}

func TestTableForTheCALibrary(t *testing.T) {
	everyDatabase(t, func(t *testing.T, open opener) {
		s := open(t, time.Now)
		_, err := s.DB().ExecContext(t.Context(), "INSERT INTO ca_kv (bucket, nkey, nvalue) VALUES ($1, $2, $3)", "b", []byte("k"), []byte("v"))
		ok(t, err)
		var created int64
		ok(t, s.DB().QueryRowContext(t.Context(), "SELECT created_at FROM ca_kv").Scan(&created))
		if age := time.Since(time.Unix(created, 0)); age < -time.Minute || age > time.Minute {
			t.Errorf("created %v ago", age)
		}
	})
}

// A commit that fails leaves the outcome unknown: listeners look again, and the next change works.
func TestFailedCommit(t *testing.T) {
	t.Parallel()
	s := openAt(t, t.TempDir(), time.Now)
	told := 0
	s.OnChange(func(Change) { told++ })
	err := s.change(t.Context(), func(c *change) error {
		if _, err := c.tx.ExecContext(c.ctx, "PRAGMA defer_foreign_keys = 1"); err != nil {
			return err
		}
		return s.addCode(c, Code{ID: codeIDOf(1), PublicKey: []byte("x"), ClientID: "nobody", ExpiresAt: start})
	})
	if err == nil || !strings.HasPrefix(err.Error(), "commit: ") || told != 1 {
		t.Errorf("error is %v, listeners were told %d times", err, told)
	}
	_, err = s.AddClient(t.Context(), Client{ID: "x"}, nil)
	ok(t, err)
	_, err = s.Code(t.Context(), codeIDOf(1))
	want(t, err, ErrNotFound)
}

func TestClosedStore(t *testing.T) {
	everyDatabase(t, func(t *testing.T, open opener) {
		s := open(t, time.Now)
		ok(t, s.Close())
		if _, err := s.AddClient(t.Context(), Client{ID: "x"}, nil); err == nil {
			t.Error("a closed store was written to")
		}
		if _, err := s.Client(t.Context(), "x"); err == nil || errors.Is(err, ErrNotFound) {
			t.Errorf("error is %v", err)
		}
		if _, err := s.RenewLease(t.Context(), LeaseRenewal{Replica: "a"}); err == nil || errors.Is(err, ErrLeaseLost) {
			t.Errorf("error is %v", err)
		}
	})
}

func TestLock(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	first, err := Lock(dir)
	ok(t, err)
	_, err = Lock(dir)
	want(t, err, ErrLocked)
	if !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("error %q names neither folder nor process", err)
	}
	// Deleting what looks like a stale file lets nobody in.
	ok(t, os.Remove(filepath.Join(dir, "lock")))
	_, err = Lock(dir)
	want(t, err, ErrLocked)
	ok(t, first.Unlock())
	second, err := Lock(dir)
	ok(t, err)
	// Who is refused leaves the file alone, and who leaves the folder as it was removes only what it has made.
	_, err = Lock(dir)
	want(t, err, ErrLocked)
	files := func(n int) {
		t.Helper()
		entries, err := os.ReadDir(dir)
		ok(t, err)
		same(t, len(entries), n)
	}
	files(1)
	ok(t, second.Leave())
	files(0)
	for range 2 {
		third, err := Lock(dir)
		ok(t, err)
		ok(t, third.Unlock())
		files(1)
		fourth, err := Lock(dir)
		ok(t, err)
		ok(t, fourth.Leave())
		files(1)
		fifth, err := Lock(dir)
		ok(t, err)
		ok(t, os.Remove(filepath.Join(dir, "lock")))
		ok(t, fifth.Leave())
	}
}

func TestLoadKEK(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	db := filepath.Join(dir, "certbound.db")
	name := filepath.Join(dir, "kek")
	key, err := LoadKEK(dir, db, KEKSource{})
	ok(t, err)
	if len(key) != kekSize || key == nil || bytes.Equal(key, make([]byte, kekSize)) {
		t.Errorf("key is %x", key)
	}
	if info, err := os.Stat(name); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	again, err := LoadKEK(dir, db, KEKSource{})
	ok(t, err)
	if !bytes.Equal(key, again) {
		t.Error("the second call has another key")
	}
	fromFile, err := LoadKEK(t.TempDir(), db, KEKSource{File: name})
	ok(t, err)
	fromValue, err := LoadKEK(t.TempDir(), db, KEKSource{Value: base64.StdEncoding.EncodeToString(key), File: "/nonexistent"})
	ok(t, err)
	if !bytes.Equal(key, fromFile) || !bytes.Equal(key, fromValue) {
		t.Error("the sources have other keys")
	}

	// Without a key beside a database, none is made.
	ok(t, os.WriteFile(db, []byte("x"), 0o600))
	ok(t, os.Remove(name))
	if _, err := LoadKEK(dir, db, KEKSource{}); err == nil || !strings.Contains(err.Error(), name) {
		t.Errorf("error is %v", err)
	}
	if _, err := os.Stat(name); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a key was made beside a database")
	}
}

func TestBadKEK(t *testing.T) {
	t.Parallel()
	whole := base64.StdEncoding.EncodeToString(testKEK)
	for name, test := range map[string]struct {
		text string
		mode os.FileMode
	}{
		"empty": {"", 0o600}, "blank": {" \n", 0o600}, "truncated": {whole[:20], 0o600}, "too long": {whole + whole, 0o600},
		"huge": {strings.Repeat("A", 1000), 0o600}, "no base64": {strings.Repeat("!", 44), 0o600}, "url alphabet": {strings.Repeat("-", 43) + "=", 0o600},
		"group": {whole, 0o640}, "others": {whole, 0o604},
	} {
		dir := t.TempDir()
		file := filepath.Join(dir, "kek")
		ok(t, os.WriteFile(file, []byte(test.text), 0o600))
		ok(t, os.Chmod(file, test.mode))
		for _, src := range []KEKSource{{}, {File: file}} {
			_, err := LoadKEK(dir, filepath.Join(dir, "certbound.db"), src)
			if err == nil || !strings.Contains(err.Error(), file) || len(test.text) > 10 && strings.Contains(err.Error(), test.text) {
				t.Errorf("%s: error is %v", name, err)
			}
			if told, ok := errors.AsType[*KEKError](err); !ok || told.Hint == "" {
				t.Errorf("%s: error %v has no hint", name, err)
			}
		}
		if got := contents(t, file); string(got) != test.text {
			t.Errorf("%s: the file was changed", name)
		}
		if test.mode != 0o600 || test.text == "" {
			continue
		}
		if _, err := LoadKEK(dir, "", KEKSource{Value: test.text}); err == nil || strings.Contains(err.Error(), test.text) {
			t.Errorf("%s in the environment: error is %v", name, err)
		}
	}
	dir := t.TempDir()
	ok(t, os.WriteFile(filepath.Join(dir, "kek"), nil, 0o600))
	if _, err := LoadKEK(dir, "", KEKSource{}); err == nil || !strings.Contains(err.Error(), "empty") {
		t.Errorf("error is %v", err)
	}
	if _, err := LoadKEK(t.TempDir(), "", KEKSource{File: "/nonexistent/kek"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error is %v", err)
	}
}

func BenchmarkCertificate(b *testing.B) {
	s, err := Open(b.Context(), Config{Path: filepath.Join(b.TempDir(), "certbound.db"), KEK: testKEK})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	client, err := s.AddClient(b.Context(), Client{ID: "payments"}, nil)
	if err != nil {
		b.Fatal(err)
	}
	der := make([]byte, 600)
	cert := Certificate{
		Thumbprint: sha256.Sum256(der), Serial: "1", ClientID: client.ID, Generation: client.Generation,
		NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour), KeyHash: keyOf(1), DER: der,
	}
	if err := s.AddCertificate(b.Context(), cert); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Certificate(b.Context(), cert.Thumbprint); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	cfg := Config{Path: filepath.Join(b.TempDir(), "certbound.db"), KEK: testKEK}
	for b.Loop() {
		s, err := Open(b.Context(), cfg)
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
