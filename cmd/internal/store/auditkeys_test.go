// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

func testAuditKeys(f *fixture) {
	before, err := f.Version(f.ctx())
	ok(f.t, err)
	_, err = f.StoredAuditDay(f.ctx(), "2026-03-01")
	want(f.t, err, ErrNotFound)
	_, err = f.StoredAuditSubject(f.ctx(), "payments")
	want(f.t, err, ErrNotFound)
	_, err = f.AuditDay(f.ctx(), "2026-02-28", "2026-03-01") // its key may have been deleted
	want(f.t, err, ErrNotFound)

	keys := map[string][]byte{}
	for _, day := range []string{"2026-03-01", "2026-03-02", "2026-03-03"} {
		keys[day], err = f.AuditDay(f.ctx(), day, "2026-03-01")
		ok(f.t, err)
	}
	for _, id := range []string{"payments", "orders", "2026-03-01"} {
		keys["s"+id], err = f.AuditSubject(f.ctx(), id)
		ok(f.t, err)
	}
	seen := map[string]bool{}
	for name, key := range keys {
		if len(key) != 32 || bytes.Equal(key, make([]byte, 32)) || seen[string(key)] {
			f.t.Errorf("the key of %s is %x", name, key)
		}
		seen[string(key)] = true
	}
	again, err := f.AuditDay(f.ctx(), "2026-03-01", "2026-03-03") // not made, but there
	ok(f.t, err)
	same(f.t, again, keys["2026-03-01"])
	again, err = f.AuditSubject(f.ctx(), "payments")
	ok(f.t, err)
	same(f.t, again, keys["spayments"])

	n, err := f.DeleteAuditDays(f.ctx(), "2026-03-03")
	ok(f.t, err)
	same(f.t, n, int64(2))
	_, err = f.StoredAuditDay(f.ctx(), "2026-03-02")
	want(f.t, err, ErrNotFound)
	again, err = f.StoredAuditDay(f.ctx(), "2026-03-03")
	ok(f.t, err)
	same(f.t, again, keys["2026-03-03"])

	ok(f.t, f.DeleteAuditSubject(f.ctx(), "payments"))
	want(f.t, f.DeleteAuditSubject(f.ctx(), "payments"), ErrNotFound)
	_, err = f.StoredAuditSubject(f.ctx(), "payments")
	want(f.t, err, ErrNotFound)
	again, err = f.AuditSubject(f.ctx(), "payments") // a live one goes on under another
	ok(f.t, err)
	if bytes.Equal(again, keys["spayments"]) {
		f.t.Error("the erased secret is back")
	}
	again, err = f.StoredAuditSubject(f.ctx(), "orders")
	ok(f.t, err)
	same(f.t, again, keys["sorders"])
	after, err := f.Version(f.ctx())
	ok(f.t, err)
	same(f.t, after, before+1) // they decide nothing, but a secret that was deleted is forgotten everywhere
	changes, err := f.ChangesSince(f.ctx(), before, 10)
	ok(f.t, err)
	same(f.t, changes, []Change{{AuditSubjects: []string{"payments"}, Version: after}})
}

func testAuditKeysRace(f *fixture) {
	var wg sync.WaitGroup
	got := make([][]byte, 20)
	for i := range got {
		wg.Go(func() {
			var err error
			if got[i], err = f.AuditSubject(f.ctx(), "payments"); err != nil {
				f.t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, key := range got {
		same(f.t, key, got[0])
	}
}

// Keys are deleted in a transaction as a whole, and whoever listens is told.
func testAuditKeysTransact(f *fixture) {
	var told []string
	f.OnChange(func(c Change) { told = append(told, c.AuditSubjects...) })
	for _, id := range []string{"payments", "orders"} {
		_, err := f.AuditSubject(f.ctx(), id)
		ok(f.t, err)
	}
	failed := errors.New("no")
	err := f.Transact(f.ctx(), func(tx *Store) error {
		return errors.Join(tx.DeleteAuditSubject(f.ctx(), "payments"), failed)
	})
	want(f.t, err, failed)
	_, err = f.StoredAuditSubject(f.ctx(), "payments")
	ok(f.t, err)
	same(f.t, len(told), 0)
	ok(f.t, f.Transact(f.ctx(), func(tx *Store) error { return tx.DeleteAuditSubject(f.ctx(), "payments") }))
	_, err = f.StoredAuditSubject(f.ctx(), "payments")
	want(f.t, err, ErrNotFound)
	ok(f.t, f.DeleteAuditSubject(f.ctx(), "orders"))
	same(f.t, told, []string{"payments", "orders"})
}

// A sealed key copied to another row does not open, and a deleted one is in no file of the database any more.
func TestAuditKeysAtRest(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "certbound.db")
	s, err := Open(t.Context(), Config{Path: path, KEK: make([]byte, kekSize)})
	ok(t, err)
	t.Cleanup(func() { ok(t, s.Close()) })
	for _, id := range []string{"payments", "orders"} {
		_, err = s.AuditSubject(t.Context(), id)
		ok(t, err)
	}
	var sealed []byte
	ok(t, s.read.QueryRowContext(t.Context(), `SELECT sealed FROM audit_subjects WHERE id = 'payments'`).Scan(&sealed))
	onDisk := func() (found bool) {
		names, err := filepath.Glob(path + "*")
		ok(t, err)
		for _, name := range names {
			data, err := os.ReadFile(name)
			ok(t, err)
			found = found || bytes.Contains(data, sealed)
		}
		return found
	}
	if !onDisk() {
		t.Fatal("the sealed secret is not where it is looked for")
	}
	_, err = s.write.ExecContext(t.Context(), `UPDATE audit_subjects SET sealed = $1 WHERE id = 'orders'`, sealed)
	ok(t, err)
	if _, err := s.StoredAuditSubject(t.Context(), "orders"); err == nil {
		t.Error("another subject's secret opens")
	}
	ok(t, s.DeleteAuditSubject(t.Context(), "orders"))
	ok(t, s.Transact(t.Context(), func(tx *Store) error { return tx.DeleteAuditSubject(t.Context(), "payments") }))
	if onDisk() {
		t.Error("the deleted secret is still in the database's files")
	}
}
