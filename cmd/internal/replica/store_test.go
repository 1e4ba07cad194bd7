// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package replica

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/scripts/postgres"
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

// The same on real servers: the primary dies, its synchronous standby takes its place, and both replicas serve again by
// themselves. What was in force stays so, and no row is believed before leases of the former life have ended.
func TestFailoverOfPostgreSQL(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts two servers")
	}
	postgres.ForTest(t) // which says what to do where there is none
	primary, err := postgres.New(t.Context(), postgres.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { primary.Close() })
	at := primary.URL("postgres")
	first := openURL(t, at)
	standby, err := primary.Standby(t.Context(), "second", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { standby.Close() })
	if err := primary.Synchronous(t.Context(), "second"); err != nil {
		t.Fatal(err)
	}
	first.Close()
	at = strings.Replace(at, primary.Address(), standby.Address()+","+primary.Address(), 1)
	var moved atomic.Int64
	replicas := make(map[string]*Replica)
	stores := make(map[string]*store.Store)
	for _, name := range []string{"a", "b"} {
		s := openURL(t, at)
		hints := make(chan struct{}, 1)
		go s.Listen(t.Context(), func() { wake(hints) })
		stores[name] = s
		replicas[name], _ = start(t, Config{
			Database: s, Name: name, Incarnation: 1, Hints: hints,
			Moved: func(store.SystemID) { moved.Add(1); s.Reconnect() },
			Durable: func(ctx context.Context) (bool, error) {
				d, err := s.Durability(ctx)
				return d == store.Quorum, err
			},
		})
	}
	a, b := replicas["a"], replicas["b"]
	known := func() bool {
		for _, r := range replicas {
			r.mu.Lock()
			ok := r.rules.steady(r.clock.Boot(), r.movedAt)
			r.mu.Unlock()
			if !ok || r.Live() != nil {
				return false
			}
		}
		return true
	}
	eventually(t, "both serve, on a database that is known", known)
	revoke := func(name string) (int64, Effect) {
		t.Helper()
		s := stores[name]
		for range 20 {
			_, err := s.AddClient(t.Context(), store.Client{ID: strings.ToLower(rand.Text())}, nil)
			var v int64
			if err == nil {
				v, err = s.Version(t.Context())
			}
			if errors.Is(err, store.ErrUnknown) || store.Unavailable(err) {
				continue // on a connection to the server that died
			}
			if err != nil {
				t.Fatal(err)
			}
			e, err := replicas[name].Effective(t.Context(), v)
			if err != nil {
				t.Fatal(err)
			}
			return v, e
		}
		t.Fatal("no change was committed")
		return 0, Effect{}
	}
	before, e := revoke("a")
	if !e.Early || e.SingleNode || e.Took > time.Second {
		t.Errorf("effect %+v", e)
	}
	if s := b.Status(); s.Applied < before || s.System.Timeline != 1 {
		t.Errorf("the other replica: %+v", s)
	}

	died := time.Now()
	primary.Kill()
	if err := standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	after, e := revoke("b")
	if since := time.Since(died); since < Settled {
		t.Errorf("rows of a database that was promoted within %v were believed: effect %+v", since, e)
	}
	if after <= before {
		t.Errorf("version %d after %d", after, before)
	}
	eventually(t, "both serve again", func() bool { return known() && a.Status().Applied >= after })
	for name, r := range replicas {
		if s := r.Status(); s.System.Timeline != 2 || s.Err != nil || s.Durable {
			t.Errorf("%s: %+v", name, s)
		}
	}
	if n := moved.Load(); n != 4 { // each at the beginning and once more
		t.Errorf("the stores were told %d times that the server is another", n)
	}
	if _, e := revoke("a"); !e.Early || !e.SingleNode {
		t.Errorf("effect %+v", e)
	}
}

func openURL(t *testing.T, url string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{URL: url, KEK: bytes.Repeat([]byte{7}, 32)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}
