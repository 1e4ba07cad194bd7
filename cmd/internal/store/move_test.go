// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/certbound/certbound/tokens"
)

// A database that was put out of service gives no lease, whoever still serves on it; in service again it does.
func TestMoveEndsLeases(t *testing.T) {
	everyDatabase(t, func(t *testing.T, open opener) {
		f := newFixture(t, open)
		ctx := t.Context()
		f.client("before", 1)
		ok(t, f.BeginLease(ctx, Lease{Replica: "a", Incarnation: 1}))
		renew := func() error {
			_, err := f.RenewLease(ctx, LeaseRenewal{Replica: "a", Incarnation: 1, HeadSeq: 1})
			return err
		}
		ok(t, renew())
		m, err := f.Move(ctx)
		ok(t, err)
		defer m.Close()
		c, err := m.Begin(ctx, "there", "r", f.clock.now())
		ok(t, err)
		for what, err := range map[string]error{
			"renewed": renew(),
			"begun":   f.BeginLease(ctx, Lease{Replica: "b", Incarnation: 1}),
			"taken":   f.BeginLease(ctx, Lease{Replica: "a", Incarnation: 2}),
		} {
			refused, is := errors.AsType[*ConditionError](err)
			if !is || refused.Condition.State != ConditionMoving || errors.Is(err, ErrLeaseLost) {
				t.Errorf("a lease was %s: %v", what, err)
			}
		}
		// Nor does it take a change, of which the copy would know nothing: also of who was cut off and needs no lease for it.
		version, err := f.Version(ctx)
		ok(t, err)
		for what, err := range map[string]error{
			"disabled": f.DisableClient(ctx, "before"),
			"denied": f.Transact(ctx, func(tx *Store) error {
				_, err := tx.Deny(ctx, tokens.Denial{TokenID: "t", Until: f.in(time.Hour)})
				return err
			}),
		} {
			refused, is := errors.AsType[*ConditionError](err)
			if !is || refused.Condition.State != ConditionMoving || !errors.Is(err, ErrNotServable) {
				t.Errorf("it was %s: %v", what, err)
			}
		}
		now, err := f.Version(ctx)
		ok(t, err)
		same(t, now, version)
		same(t, f.count("denials"), 0)
		leases, err := f.Leases(ctx)
		ok(t, err)
		if len(leases) != 1 || leases[0].Renewals != 1 {
			t.Errorf("leases are %+v", leases)
		}
		ok(t, m.Cancel(ctx, c.ID, ""))
		ok(t, renew())
		ok(t, f.DisableClient(ctx, "before"))
		ok(t, f.BeginLease(ctx, Lease{Replica: "b", Incarnation: 1}))
		_, err = f.RenewLease(ctx, LeaseRenewal{Replica: "c", Incarnation: 1})
		want(t, err, ErrLeaseLost)
	})
}

// Each step of a move follows the one before it, of the same move.
func TestMoveSteps(t *testing.T) {
	everyDatabase(t, func(t *testing.T, open opener) {
		f := newFixture(t, open)
		ctx := t.Context()
		m, err := f.Move(ctx)
		ok(t, err)
		condition := func() Condition {
			t.Helper()
			c, err := f.Condition(ctx)
			ok(t, err)
			if c == nil {
				return Condition{}
			}
			return *c
		}
		want(t, m.Finish(ctx, "", "there", f.clock.now()), errOtherMove)
		want(t, m.Cancel(ctx, "", ""), errOtherMove)
		same(t, condition(), Condition{})
		first, err := m.Begin(ctx, "there", "r", f.clock.now())
		ok(t, err)
		same(t, first, Condition{State: ConditionMoving, Since: f.clock.now(), To: "there", By: "r", ID: first.ID})
		same(t, condition(), first)
		again, err := m.Begin(ctx, "elsewhere", "s", f.clock.now())
		ok(t, err)
		same(t, again, first)
		for _, id := range []string{"", "other"} {
			want(t, m.Finish(ctx, id, "there", f.clock.now()), errOtherMove)
			want(t, m.Cancel(ctx, id, ""), errOtherMove)
		}
		same(t, condition(), first)
		ok(t, m.Cancel(ctx, first.ID, "r", Entry{ID: "given up", Body: []byte("{}")}))
		same(t, condition(), Condition{})
		same(t, f.count("outbox"), 1)
		checkStamps(t, f.Store)
		m.Named = "'there?as=is'"
		second, err := m.Begin(ctx, "there", "r", f.clock.now())
		ok(t, err)
		named := func(state string) {
			t.Helper()
			c := condition()
			hint := (&ConditionError{c}).Hint()
			if c.State != state || c.To != "there" || c.Named != m.Named || !strings.Contains(hint, m.Named) || strings.Contains(hint, "there ") {
				t.Errorf("%+v: %s", c, hint)
			}
		}
		named(ConditionMoving)
		if len(second.ID) < 20 || second.ID == first.ID {
			t.Errorf("the ids are %q and %q", first.ID, second.ID)
		}
		ok(t, m.Finish(ctx, second.ID, "there", f.clock.now()))
		ok(t, m.Finish(ctx, second.ID, "there", f.clock.now()))
		named(ConditionMoved)
		want(t, m.Cancel(ctx, second.ID, ""), errOtherMove)
		_, err = m.Begin(ctx, "there", "r", f.clock.now())
		want(t, err, ErrNotServable)
		same(t, condition().State, ConditionMoved)

		if f.Dialect() == postgresKind {
			_, err = f.Move(ctx)
			want(t, err, ErrMoving)
		}
		ok(t, m.Close())
		m, err = f.Move(ctx)
		ok(t, err)
		ok(t, m.Close())
	})
}

// Who does not hold the database any more, because the connection was lost, neither changes its condition nor copies it.
func TestMoveLost(t *testing.T) {
	t.Parallel()
	f := newFixture(t, openPostgres)
	ctx := t.Context()
	m, err := f.Move(ctx)
	ok(t, err)
	c, err := m.Begin(ctx, "there", "r", f.clock.now())
	ok(t, err)
	var pid int
	ok(t, m.hold.QueryRowContext(ctx, "SELECT pg_backend_pid()").Scan(&pid))
	_, err = f.writer.ExecContext(ctx, "SELECT pg_terminate_backend($1)", pid)
	ok(t, err)
	target := Config{Path: filepath.Join(t.TempDir(), "to.db"), KEK: testKEK}
	if err := m.Cancel(ctx, c.ID, ""); err == nil {
		t.Error("given up")
	}
	if _, err := m.Copy(ctx, target, c.ID, CopyConfig{KEK: testKEK}); err == nil {
		t.Error("copied")
	}
	entries, err := os.ReadDir(filepath.Dir(target.Path))
	ok(t, err)
	same(t, len(entries), 0)
	_ = m.Close() // its connection is gone
}

// The file of a copy that is not whole is not opened, whatever its name; that of one that is, is.
func TestDraft(t *testing.T) {
	t.Parallel()
	f := newFixture(t, openSQLite)
	furnish(f)
	file := filepath.Join(t.TempDir(), "copy.db")
	stolen := filepath.Join(t.TempDir(), "certbound.db")
	cut := errors.New("cut short")
	cfg := CopyConfig{KEK: testKEK, Ending: func(context.Context) error {
		return errors.Join(os.WriteFile(stolen, contents(t, file+".draft"), 0o600), cut) // as a process leaves it that is killed here
	}}
	_, err := f.CopyInto(t.Context(), Config{Path: file}, cfg)
	want(t, err, cut)
	for _, readOnly := range []bool{true, false} {
		_, err = Open(t.Context(), Config{Path: stolen, KEK: testKEK, AnyCondition: true, ReadOnly: readOnly})
		want(t, err, ErrDraft)
	}
	arrival, err := Arrived(t.Context(), Config{Path: stolen, KEK: testKEK}, "id")
	if !errors.Is(err, ErrDraft) || arrival == ArrivedNothing {
		t.Errorf("it arrived: %v, %v", arrival, err)
	}
	_, err = f.CopyInto(t.Context(), Config{Path: file}, CopyConfig{KEK: testKEK})
	ok(t, err)
	s, err := Open(t.Context(), Config{Path: file, KEK: testKEK})
	ok(t, err)
	same(t, digests(t, s), digests(t, f.Store))
	ok(t, s.Close())
}

// What is said of a database that is being moved names the place and the way on.
func TestMovingWords(t *testing.T) {
	t.Parallel()
	err := &ConditionError{Condition{State: ConditionMoving, To: "postgres://u@db:5432/name"}}
	for _, text := range []string{"--to postgres://u@db:5432/name", "certbound store migrate", "--cancel"} {
		if !strings.Contains(err.Hint(), text) {
			t.Errorf("the hint has no %q: %s", text, err.Hint())
		}
	}
	if !strings.Contains(err.Error(), "is being moved to postgres://u@db:5432/name") {
		t.Error(err)
	}
}

// What is on its way is waited for: the server may be committing what a process has sent that was killed.
func TestArrivedWaits(t *testing.T) {
	t.Parallel()
	url := pgDatabase(t)
	s := openURL(t, url, nil)
	writing, release, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		done <- s.whole(context.Background(), func(tx *sql.Tx) error {
			close(writing)
			<-release
			return setMovedFrom(context.Background(), tx, "id")
		})
	}()
	<-writing
	time.AfterFunc(1500*time.Millisecond, func() { close(release) }) // longer than one wait for the lock
	arrival, err := Arrived(t.Context(), Config{URL: url, KEK: testKEK}, "id")
	ok(t, err)
	same(t, arrival, ArrivedWhole)
	ok(t, <-done)
	arrival, err = Arrived(t.Context(), Config{URL: url, KEK: testKEK}, "another")
	ok(t, err)
	same(t, arrival, ArrivedOther)
}
