// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package replica

import (
	"bytes"
	"context"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/store"
)

func openStore(t *testing.T) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Path: filepath.Join(t.TempDir(), "certbound.db"), KEK: bytes.Repeat([]byte{7}, 32)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// eventually waits until what is expected holds, at most ten seconds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for range 1000 {
		if holds() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s: not within ten seconds", what)
}

// start begins and runs a replica until the test ends, and returns how to stop it.
func start(t *testing.T, cfg Config) (*Replica, func() error) {
	t.Helper()
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	var ended atomic.Bool
	stop := func() error {
		cancel()
		ended.Store(true)
		return <-done
	}
	t.Cleanup(func() {
		if !ended.Load() {
			_ = stop()
		}
	})
	return r, stop
}

// Two replicas on one real database: a change is in force at both when Effective returns, soon; a decision on its way out
// holds it up; one that stops is not waited for.
func TestTwoReplicasOnAStore(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	a, _ := start(t, Config{Database: s, Name: "a", Incarnation: 1})
	b, stop := start(t, Config{Database: s, Name: "b", Incarnation: 1})
	for _, r := range []*Replica{a, b} {
		eventually(t, "a lease", func() bool { return r.Live() == nil })
		// Before that the database is not known for long enough to believe its rows.
		eventually(t, "the database is known", func() bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.known && r.rules.steady(r.clock.Boot(), r.movedAt)
		})
	}
	change := func() int64 {
		if err := s.AddResource(t.Context(), store.Resource{URI: "https://" + time.Now().Format("150405.000000000") + ".example", Scopes: []string{"x"}}); err != nil {
			t.Fatal(err)
		}
		v, err := s.Version(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return v
	}

	v := change()
	e, err := a.Effective(t.Context(), v)
	if err != nil || !e.Early || !e.SingleNode || e.Took > 2*time.Second {
		t.Errorf("effect %+v, %v", e, err)
	}
	if got := b.Status(); got.Applied < v || got.Remaining <= 0 || got.Reason != "" {
		t.Errorf("the other replica: %+v", got)
	}

	p, err := b.Pass()
	if err != nil {
		t.Fatal(err)
	}
	v = change()
	waiting := make(chan Effect, 1)
	go func() {
		e, _ := a.Effective(t.Context(), v)
		waiting <- e
	}()
	eventually(t, "the change is applied", func() bool { return b.Status().Applied >= v })
	select {
	case e := <-waiting:
		t.Errorf("in force while a decision of before was on its way out: %+v", e)
	case <-time.After(300 * time.Millisecond):
	}
	if got := b.Status(); got.Passages != 1 || got.Acknowledged >= v {
		t.Errorf("the other replica: %+v", got)
	}
	p.Leave()
	if e := <-waiting; !e.Early {
		t.Errorf("effect %+v", e)
	}

	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if rows, err := s.Leases(t.Context()); err != nil || len(rows) != 1 {
		t.Errorf("leases %+v, %v", rows, err)
	}
	if b.Live() == nil {
		t.Error("a lease after the end")
	}
	if e, err := a.Effective(t.Context(), change()); err != nil || !e.Early {
		t.Errorf("effect %+v, %v", e, err)
	}
}
