// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package outbox

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/store"
)

// What takes authority away waits until its version is in force everywhere, also when it was made already, and what gives
// it is never refused for that.
func TestEffective(t *testing.T) {
	b := newBench(t)
	var waited []int64
	var failing error
	b.cfg.Effective = func(ctx context.Context, version int64) error {
		waited = append(waited, version)
		if len(b.journal.names()) == 0 {
			t.Error("it waits before the record is written")
		}
		return failing
	}
	b.reopen()
	b.must(b.box.Flush(t.Context()))
	want := func(versions ...int64) {
		t.Helper()
		if !slices.Equal(waited, versions) {
			t.Errorf("waited for the versions %v, want %v", waited, versions)
		}
		waited = nil
	}
	at := func() int64 {
		t.Helper()
		v, err := b.store.Version(t.Context())
		b.must(err)
		return v
	}
	_, err := b.add(audit.Takeaway, "urn:a", "one")
	b.must(err)
	want(at())
	before := at()
	_, err = b.nothing(audit.Takeaway, "again")
	b.must(err)
	want(before)
	_, err = b.add(audit.Decision, "urn:b", "two")
	b.must(err)
	want()
	courteous := Courteous{b.box}
	add := func(uri string) error {
		_, err := courteous.Change(t.Context(), audit.Decision, func(tx *store.Store) ([]audit.Event, error) {
			return []audit.Event{{Name: uri}}, tx.AddResource(t.Context(), store.Resource{URI: uri})
		})
		return err
	}
	b.must(add("urn:c"))
	want(at())

	failing = &UnsettledError{By: time.Unix(9, 0)}
	b.must(add("urn:d"))
	want(at())
	pending, err := b.add(audit.Takeaway, "urn:e", "three")
	b.is(err, ErrUnsettled)
	b.same(pending, false)
	if e, ok := errors.AsType[*UnsettledError](err); !ok || !e.By.Equal(time.Unix(9, 0)) {
		t.Errorf("effective by: %v", err)
	}
	want(at())
	_, err = b.nothing(audit.Takeaway, "again")
	b.is(err, ErrUnsettled)
	want(at())
	b.must(b.box.Flush(t.Context()))
	b.state("urn:a urn:b urn:c urn:d urn:e", 0, "one", "again", "two", "urn:c", "urn:d", "three", "again")

	// That there is nothing to take away any more holds everywhere too when it is said.
	refuse := func(class audit.Class) error {
		_, err := b.box.Change(t.Context(), class, func(*store.Store) ([]audit.Event, error) { return nil, errUndone })
		return err
	}
	b.is(refuse(audit.Takeaway), ErrUnsettled)
	want(at())
	b.is(refuse(audit.Decision), errUndone)
	want()
	failing = nil
	b.is(refuse(audit.Takeaway), errUndone)
	want(at())
}

var errUndone = errors.New("undone")

// The rows of a replica that serves no more are recorded by another, those of one that does are not.
func TestAdopt(t *testing.T) {
	b := newBench(t)
	path := filepath.Join(t.TempDir(), "shared.db")
	open := func(replica string) *store.Store {
		t.Helper()
		db, err := store.Open(t.Context(), store.Config{Path: path, KEK: make([]byte, 32), Replica: replica})
		b.must(err)
		t.Cleanup(func() { b.must(db.Close()) })
		return db
	}
	alive := open("alive")
	for _, name := range []string{"dead", "living"} {
		db := open(name)
		box, err := New(Config{Store: db, Journal: &journal{fails: func(string) error { return errUndone }}})
		b.must(err)
		_, err = box.Change(t.Context(), audit.Takeaway, func(tx *store.Store) ([]audit.Event, error) {
			return []audit.Event{{Name: name}}, tx.AddResource(t.Context(), store.Resource{URI: "urn:" + name})
		})
		b.must(err)
	}
	b.must(alive.BeginLease(t.Context(), store.Lease{Replica: "living", Incarnation: 1}))
	b.must(alive.BeginLease(t.Context(), store.Lease{Replica: "alive", Incarnation: 1}))
	b.cfg.Store = alive
	b.reopen()
	b.must(b.box.Flush(t.Context()))
	b.same(b.journal.names(), []string{})
	b.must(b.box.AdoptLeft(t.Context()))
	b.must(b.box.Flush(t.Context()))
	b.same(b.journal.names(), []string{"dead"})
	b.must(b.box.AdoptLeft(t.Context()))
	b.must(b.box.Flush(t.Context()))
	b.same(b.journal.names(), []string{"dead"})
}
