// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/admin"
	"github.com/certbound/certbound/cmd/internal/admission"
	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/tokens/issuer"
)

func openStore(t *testing.T) *store.Store {
	t.Helper()
	db, err := store.Open(t.Context(), store.Config{Path: filepath.Join(t.TempDir(), "certbound.db"), KEK: make([]byte, 32)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func TestJournalKeys(t *testing.T) {
	t.Parallel()
	db := openStore(t)
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	k := newJournalKeys(db, 30*24*time.Hour)
	k.now = func() time.Time { return now }
	day := func(name string) []byte {
		t.Helper()
		key, err := k.Day(t.Context(), name)
		if err != nil || len(key) != 32 {
			t.Fatalf("the key of %s: %x, %v", name, key, err)
		}
		return key
	}
	today := day("2026-11-23")
	if !bytes.Equal(today, day("2026-11-23")) || !bytes.Equal(today, must(k.StoredDay(t.Context(), "2026-11-23"))(t)) {
		t.Error("a day has two keys")
	}
	if _, err := k.Day(t.Context(), "2026-10-23"); !errors.Is(err, audit.ErrErased) {
		t.Errorf("a day before the retention: %v", err)
	}
	if _, err := k.StoredSubject(t.Context(), "payments"); !errors.Is(err, audit.ErrErased) {
		t.Errorf("a subject without a secret: %v", err)
	}
	secret := must(k.Subject(t.Context(), "payments"))(t)
	if !bytes.Equal(secret, must(k.StoredSubject(t.Context(), "payments"))(t)) {
		t.Error("a subject has two secrets")
	}
	for i := range 20 {
		day(fmt.Sprintf("2026-11-%02d", 1+i))
		if len(k.days) > maxDays {
			t.Fatalf("%d days are kept", len(k.days))
		}
	}
	// Once a day is behind the retention its key is of no use, in memory neither.
	day("2026-11-23")
	now = now.AddDate(0, 0, 31)
	if n, err := k.deleteBefore(t.Context(), "2026-11-24"); err != nil || n != 21 {
		t.Errorf("%d keys were deleted, %v", n, err)
	}
	if len(k.days) > 0 {
		t.Error("deleted keys are in memory")
	}
	if _, err := k.Day(t.Context(), "2026-11-23"); !errors.Is(err, audit.ErrErased) {
		t.Errorf("the deleted day: %v", err)
	}
	if _, err := k.StoredDay(t.Context(), "2026-11-23"); !errors.Is(err, audit.ErrErased) {
		t.Errorf("the deleted day: %v", err)
	}
	forever := newJournalKeys(db, 0)
	if _, err := forever.Day(t.Context(), "2020-01-01"); err != nil {
		t.Errorf("where nothing is deleted: %v", err)
	}
}

// must returns a value, and fails the test when there is an error.
func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// At the end of the retention the keys of the days go, whatever is left of their records, and the process that has used
// them does not go on with them; the secret of a subject that is erased is forgotten in the same way.
func TestRetain(t *testing.T) {
	t.Parallel()
	s := built(t, t.TempDir(), func(s *service) { s.cfg.Audit.Retention = 48 * time.Hour })
	opener := audit.NewOpener(s.journalKeys)
	at := time.Now()
	find := func() (audit.Personal, error) {
		t.Helper()
		reader := audit.Reader{Dir: filepath.Join(s.cfg.Data, journalFolder)}
		page, err := reader.Search(t.Context(), audit.Query{Filter: audit.Filter{Client: "payments"}, Limit: 1})
		if err != nil || len(page.Entries) != 1 {
			t.Fatalf("%+v, %v", page, err)
		}
		e := page.Entries[0]
		return opener.Open(t.Context(), e.Sealed, e.Time, e.Client, e.Actor)
	}
	record := func() {
		t.Helper()
		e := audit.Event{Time: at, Name: "token.issue", Outcome: audit.Granted, Client: "payments", Address: "192.0.2.1"}
		if err := s.folder.journal.Record(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	record()
	if p, err := find(); err != nil || p.Address != "192.0.2.1" {
		t.Fatalf("%+v, %v", p, err)
	}
	if err := s.folder.store.DeleteAuditSubject(t.Context(), "payments"); err != nil {
		t.Fatal(err)
	}
	if _, err := find(); !errors.Is(err, audit.ErrErased) {
		t.Errorf("after the erasure: %v", err)
	}
	record() // under a new secret, or the old one would still be in memory
	if p, err := find(); err != nil || p.Address != "192.0.2.1" {
		t.Errorf("after the erasure, of what came then: %+v, %v", p, err)
	}
	if err := s.retain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := find(); err != nil {
		t.Errorf("within the retention: %v", err)
	}
	s.journalKeys.now = func() time.Time { return at.Add(96 * time.Hour) }
	if err := s.retain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := find(); !errors.Is(err, audit.ErrErased) {
		t.Errorf("after the retention: %v", err)
	}
	// What is that old cannot be recorded under a key that should be gone.
	e := audit.Event{Time: at, Name: "token.issue", Outcome: audit.Granted, Client: "payments", Address: "192.0.2.1"}
	if err := s.folder.journal.Record(t.Context(), e); !errors.Is(err, audit.ErrErased) {
		t.Errorf("recorded under a deleted key: %v", err)
	}
}

// While the journal is full no token is given, but one with which an operator can take authority away: who is not at the
// machine could revoke nothing otherwise. It is on record like any other.
func TestOperatorsTokensOnAFullDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	reserve := must(audit.OpenReserve(audit.ReserveConfig{Dirs: []string{dir}, Bytes: 1 << 50}))(t) // no disk has so much
	t.Cleanup(func() { _ = reserve.Close() })
	if !errors.Is(reserve.Full(), audit.ErrFull) {
		t.Fatal("the disk is not full")
	}
	log := must(audit.Open(t.Context(), audit.Config{Dir: filepath.Join(dir, "audit"), Reserve: reserve}))(t)
	t.Cleanup(func() {
		if err := log.Close(); err != nil {
			t.Error(err)
		}
	})
	limits := must(admission.New(admission.Config{Connections: 1, AddressConnections: 1, Handshakes: 1, HeaderTimeout: time.Second}))(t)
	const operators = "https://certbound.example/admin/v1"
	r := tokenRecorder{log, limits, operators}
	for _, tt := range []struct {
		audience, scope []string
		want            error
	}{
		{[]string{operators}, []string{admin.ScopeAdmin}, nil},
		{[]string{operators}, []string{admin.ScopeRead, admin.ScopeRevoke}, nil},
		{[]string{operators}, []string{admin.ScopeRead}, audit.ErrFull},
		{[]string{operators}, []string{admin.ScopeGrant, admin.ScopeEnroll, admin.ScopeRegistry}, audit.ErrFull},
		{[]string{"https://ledger.example"}, []string{"ledger:write"}, audit.ErrFull},
		{[]string{"https://ledger.example"}, []string{admin.ScopeRevoke}, audit.ErrFull},
		{[]string{operators, "https://ledger.example"}, []string{admin.ScopeRevoke}, audit.ErrFull},
		{nil, []string{admin.ScopeRevoke}, audit.ErrFull},
	} {
		records := log.Stats().Records
		err := r.Record(t.Context(), issuer.Decision{
			Event: issuer.EventToken, Granted: true, Authenticated: true, ClientID: "alice", Audience: tt.audience, Scope: tt.scope,
		})
		if !errors.Is(err, tt.want) || (log.Stats().Records > records) != (tt.want == nil) {
			t.Errorf("%q for %q: %v, want %v; %d records more", tt.scope, tt.audience, err, tt.want, log.Stats().Records-records)
		}
	}
}
