// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/certbound/certbound/scripts/postgres"
)

// newCluster starts a cluster that this test may harm.
func newCluster(t *testing.T) *postgres.Cluster {
	t.Helper()
	postgres.ForTest(t) // which says what to do where there is none
	c, err := postgres.New(t.Context(), postgres.Config{})
	ok(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

func settings(t *testing.T, c *postgres.Cluster, statements ...string) {
	t.Helper()
	for _, statement := range append(statements, "SELECT pg_reload_conf()") {
		_, err := c.Query(t.Context(), "postgres", statement)
		ok(t, err)
	}
}

// until waits until a query of the cluster yields a text.
func until(t *testing.T, c *postgres.Cluster, query, want string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		got, err := c.Query(t.Context(), "postgres", query)
		ok(t, err)
		if got == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is still %s", query, got)
		}
	}
}

// A commit that did not wait for its standbys, or whose answer was lost, is no success: nobody knows whether it holds.
func TestUnknownCommit(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	s := openURL(t, c.URL("postgres"), time.Now)
	durability := func(want Durability) {
		t.Helper()
		got, err := s.Durability(t.Context())
		ok(t, err)
		same(t, got, want)
	}
	durability(SingleNode)
	ok(t, s.BeginLease(t.Context(), Lease{Replica: "a", Incarnation: 1}))
	var mu sync.Mutex
	var told []Change
	s.OnChange(func(c Change) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, c)
	})
	// From now on commits wait for a standby that there is not.
	settings(t, c, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
	until(t, c, "SHOW synchronous_standby_names", "nobody")
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if got, err := s.Durability(t.Context()); err != nil || got == Quorum {
			break // the sessions have heard of it, too
		}
	}
	durability(Quorum)
	for _, function := range []string{"pg_cancel_backend", "pg_terminate_backend"} {
		for name, write := range map[string]func() error{
			"change": func() error {
				_, err := s.AddClient(t.Context(), Client{ID: function}, nil)
				return err
			},
			"renewal": func() error {
				_, err := s.RenewLease(t.Context(), LeaseRenewal{Replica: "a", Incarnation: 1, Applied: 1})
				return err
			},
			"begin": func() error { return s.BeginLease(t.Context(), Lease{Replica: function, Incarnation: 1}) },
			"setting": func() error {
				_, err := s.SetOnce(t.Context(), function, "x")
				return err
			},
		} {
			mu.Lock()
			told = nil
			mu.Unlock()
			done := make(chan error)
			go func() { done <- write() }()
			until(t, c, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'", "1")
			_, err := c.Query(t.Context(), "postgres", "SELECT "+function+"(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
			ok(t, err)
			err = <-done
			want(t, err, ErrUnknown)
			if err != nil && strings.Contains(err.Error(), "%!") {
				t.Errorf("error reads %q", err)
			}
			mu.Lock()
			if name == "change" && (len(told) != 1 || len(told[0].ClientIDs) != 1) {
				t.Errorf("%s: caches were told %+v", function, told)
			}
			mu.Unlock()
		}
	}
	// A caller that leaves while the lease is renewed does not know either.
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := s.RenewLease(ctx, LeaseRenewal{Replica: "a", Incarnation: 1, Applied: 1})
	want(t, err, ErrUnknown)

	settings(t, c, "ALTER SYSTEM RESET synchronous_standby_names")
	until(t, c, "SHOW synchronous_standby_names", "")
	until(t, c, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'", "0")
	_, err = s.RenewLease(t.Context(), LeaseRenewal{Replica: "a", Incarnation: 1, Applied: 1})
	ok(t, err)
	_, err = s.AddClient(t.Context(), Client{ID: "afterwards"}, nil)
	ok(t, err)
	for _, id := range []string{"pg_cancel_backend", "pg_terminate_backend"} {
		_, err := s.Client(t.Context(), id)
		ok(t, err) // they were committed here, as it happened
	}
	checkStamps(t, s)
}

// A commit that the server refuses counts as unknown too: nothing less can be trusted to be told apart.
func TestRefusedCommit(t *testing.T) {
	t.Parallel()
	at := pgDatabase(t)
	s := openURL(t, at, time.Now)
	on(t, at, "ALTER TABLE codes ALTER CONSTRAINT codes_client_id_fkey DEFERRABLE INITIALLY DEFERRED")
	told := 0
	s.OnChange(func(Change) { told++ })
	err := s.change(t.Context(), func(c *change) error {
		return s.addCode(c, Code{ID: codeIDOf(1), PublicKey: []byte("x"), ClientID: "nobody", ExpiresAt: start})
	})
	want(t, err, ErrUnknown)
	same(t, told, 1)
	_, err = s.AddClient(t.Context(), Client{ID: "x"}, nil)
	ok(t, err)
	_, err = s.Code(t.Context(), codeIDOf(1))
	want(t, err, ErrNotFound)
}

// A statement that the server refused was surely not done, even if the connection ended with it.
func TestRefusedIsNotUnknown(t *testing.T) {
	t.Parallel()
	at := pgDatabase(t)
	s := openURL(t, at, time.Now)
	ok(t, s.BeginJournal(t.Context(), Journal{Replica: "a", Incarnation: 1, FirstKey: "k", StartedAt: start}))
	err := s.BeginJournal(t.Context(), Journal{Replica: "a", Incarnation: 1, FirstKey: "k", StartedAt: start})
	want(t, err, ErrExists)
	if errors.Is(err, ErrUnknown) {
		t.Errorf("error is %v", err)
	}
	_, err = s.RenewLease(t.Context(), LeaseRenewal{Replica: "a", Incarnation: 1})
	if !errors.Is(err, ErrLeaseLost) || errors.Is(err, ErrUnknown) {
		t.Errorf("error is %v", err)
	}
}

// A connection that the server has ended while nobody used it is replaced, and no write fails by it.
func TestLostConnections(t *testing.T) {
	t.Parallel()
	at := pgDatabase(t)
	s := openURL(t, at, time.Now)
	ok(t, s.BeginLease(t.Context(), Lease{Replica: "a", Incarnation: 1}))
	for i := range 5 {
		_, err := s.AddClient(t.Context(), Client{ID: fmt.Sprint("c", i)}, nil)
		ok(t, err)
		_, err = s.RenewLease(t.Context(), LeaseRenewal{Replica: "a", Incarnation: 1})
		ok(t, err)
		on(t, at, "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
	}
}

// The service goes on after its server was killed, by itself; meanwhile it says that it cannot.
func TestServerKilled(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	s := openURL(t, c.URL("postgres"), time.Now)
	_, err := s.AddClient(t.Context(), Client{ID: "before"}, nil)
	ok(t, err)
	ok(t, s.BeginLease(t.Context(), Lease{Replica: "a", Incarnation: 1}))
	first, err := s.RenewLease(t.Context(), LeaseRenewal{Replica: "a", Incarnation: 1})
	ok(t, err)
	c.Kill()
	tries := []func() error{
		func() error { _, err := s.Client(t.Context(), "before"); return err },
		func() error { return s.DisableClient(t.Context(), "before") },
		func() error { _, err := s.Version(t.Context()); return err },
		func() error {
			_, err := s.RenewLease(t.Context(), LeaseRenewal{Replica: "a", Incarnation: 1})
			return err
		},
		func() error { _, err := s.ChangesSince(t.Context(), 0, 10); return err },
	}
	// Processes that serve connections outlive the first one for a moment.
	failed := 0
	for deadline := time.Now().Add(10 * time.Second); failed < len(tries) && time.Now().Before(deadline); {
		failed = 0
		for _, try := range tries {
			began := time.Now()
			err := try()
			if err != nil {
				failed++
			}
			if err != nil && !Unavailable(err) && !errors.Is(err, ErrUnknown) || errors.Is(err, ErrNotFound) {
				t.Errorf("error is %v", err)
			}
			if since := time.Since(began); since > patience {
				t.Errorf("told after %v", since)
			}
		}
	}
	same(t, failed, len(tries))
	ok(t, c.Start(t.Context()))
	again, err := s.RenewLease(t.Context(), LeaseRenewal{Replica: "a", Incarnation: 1})
	ok(t, err)
	if again.System.System != first.System.System || again.System.Timeline != first.System.Timeline || again.System.System == "" ||
		!again.System.StartedAt.After(first.System.StartedAt) {
		t.Errorf("the database is %+v, was %+v", again.System, first.System)
	}
	_, err = s.AddClient(t.Context(), Client{ID: "after"}, nil)
	ok(t, err)
	_, err = s.Client(t.Context(), "before")
	ok(t, err)
}

// When a standby takes the primary's place the service follows it, loses nothing that it was told is kept, and sees at once
// that it is on another timeline.
func TestFailover(t *testing.T) {
	t.Parallel()
	primary := newCluster(t)
	at := primary.URL("postgres")
	ok(t, openPG(t, at))
	standby, err := primary.Standby(t.Context(), "second", "")
	ok(t, err)
	t.Cleanup(func() { standby.Close() })
	ok(t, primary.Synchronous(t.Context(), "second"))
	u, err := url.Parse(at)
	ok(t, err)
	password, _ := u.User.Password()
	s := openURL(t, strings.Replace(at, primary.Address(), standby.Address()+","+primary.Address(), 1), time.Now)
	if strings.Contains(s.dialect.place(), password) || !strings.Contains(s.dialect.place(), standby.Address()+","+primary.Address()) {
		t.Errorf("the place is %s", s.dialect.place())
	}
	d, err := s.Durability(t.Context())
	ok(t, err)
	same(t, d, Quorum)
	ok(t, s.BeginLease(t.Context(), Lease{Replica: "a", Incarnation: 1}))
	before, err := s.RenewLease(t.Context(), LeaseRenewal{Replica: "a", Incarnation: 1})
	ok(t, err)
	same(t, before.System.Timeline, int64(1))
	for i := range 20 {
		_, err := s.AddClient(t.Context(), Client{ID: fmt.Sprint("c", i)}, nil)
		ok(t, err)
	}
	primary.Kill()
	ok(t, standby.Promote(t.Context()))
	after, err := s.RenewLease(t.Context(), LeaseRenewal{Replica: "a", Incarnation: 1})
	ok(t, err)
	if after.System.Timeline != 2 || after.System.System != before.System.System || after.System.StartedAt.Equal(before.System.StartedAt) || after.Version != 20 {
		t.Errorf("after the promotion it is %+v, before it was %+v", after, before)
	}
	clients, err := s.Clients(t.Context(), "", 100)
	ok(t, err)
	same(t, len(clients), 20)
	_, err = s.AddClient(t.Context(), Client{ID: "after"}, nil)
	ok(t, err)
	d, err = s.Durability(t.Context())
	ok(t, err)
	same(t, d, SingleNode)
	// A standby alone is no database to work on.
	second, err := standby.Standby(t.Context(), "third", "")
	ok(t, err)
	t.Cleanup(func() { second.Close() })
	want(t, openPG(t, second.URL("postgres")), ErrUnavailable)
}

// Once a lease was renewed on a newer timeline no fresh connection is to a former primary, though that takes writes and is
// the only server there is.
func TestFormerPrimary(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	s := openURL(t, c.URL("postgres"), time.Now)
	ok(t, s.BeginLease(t.Context(), Lease{Replica: "a", Incarnation: 1}))
	renewed, err := s.RenewLease(t.Context(), LeaseRenewal{Replica: "a", Incarnation: 1})
	ok(t, err)
	p := s.dialect.(*postgresql)
	same(t, p.timeline.Load(), renewed.System.Timeline)
	s.Reconnect()
	_, err = s.Version(t.Context())
	ok(t, err)

	p.timeline.Add(1) // as a renewal at the other server has it
	s.Reconnect()
	if _, err = s.Version(t.Context()); !Unavailable(err) || !strings.Contains(err.Error(), "former primary") {
		t.Errorf("a former primary answers: %v", err)
	}
	if _, err = s.AddClient(t.Context(), Client{ID: "x"}, nil); !Unavailable(err) {
		t.Errorf("a former primary is written to: %v", err)
	}
}
