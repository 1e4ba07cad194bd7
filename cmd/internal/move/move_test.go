// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package move

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/restore"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/scripts/postgres"
)

var kek = bytes.Repeat([]byte{7}, 32)

// many is how many clients an installation has that is moved.
const many = 40

// world is an installation that is to be moved.
type world struct {
	*testing.T
	dir      string
	from, to store.Config
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) is(err, sentinel error) {
	w.Helper()
	if !errors.Is(err, sentinel) {
		w.Fatalf("the error is %v, not %v", err, sentinel)
	}
}

// directions are the pairs of databases, as newWorld takes them.
var directions = []string{"sqlite to postgres", "postgres to sqlite", "sqlite to sqlite", "postgres to postgres"}

func newWorld(t *testing.T, direction string) *world {
	t.Helper()
	w := &world{T: t, dir: t.TempDir()}
	from, to, _ := strings.Cut(direction, " to ")
	w.from, w.to = w.place(from, "from.db"), w.place(to, "to.db")
	w.fill(w.from, many)
	return w
}

func (w *world) place(kind, name string) store.Config {
	at := store.Config{KEK: kek}
	if kind == "postgres" {
		at.URL = postgres.ForTest(w.T).Database(w.T)
	} else {
		at.Path = filepath.Join(w.dir, name)
	}
	return at
}

// fill makes a database with n clients.
func (w *world) fill(at store.Config, n int) {
	w.Helper()
	db, err := store.Open(w.Context(), at)
	w.must(err)
	w.must(db.Transact(w.Context(), func(tx *store.Store) error {
		for i := range n {
			id := fmt.Sprintf("c%d", i)
			if _, err := tx.AddClient(w.Context(), store.Client{ID: id, AuthMethod: "tls_client_auth", DNS: []string{id + ".example"}}, nil); err != nil {
				return err
			}
		}
		return nil
	}))
	w.must(db.Close())
}

func (w *world) config() Config { return Config{From: w.from, To: w.to, Program: "v1", Replica: "r1"} }

// served is how many clients a database serves: none when it is not to be served, or not there.
func (w *world) served(at store.Config) int64 {
	w.Helper()
	found, err := store.Exists(w.Context(), at)
	w.must(err)
	if !found {
		return 0
	}
	db, err := store.Open(w.Context(), at)
	if errors.Is(err, store.ErrNotServable) {
		return 0
	}
	w.must(err)
	defer db.Close()
	stats, err := db.Stats(w.Context())
	w.must(err)
	return stats.Clients
}

// state demands that one of the two is served, or none while the move is not finished.
func (w *world) state(from, to int64) {
	w.Helper()
	if f, t := w.served(w.from), w.served(w.to); f != from || t != to {
		w.Fatalf("the old database serves %d clients and the new one %d, not %d and %d", f, t, from, to)
	}
}

// moved demands that the new database is whole, and that its journal will say so once.
func (w *world) moved() {
	w.Helper()
	w.state(0, many)
	db, err := store.Open(w.Context(), store.Config{Path: w.to.Path, URL: w.to.URL, KEK: kek, Replica: "r1"})
	w.must(err)
	defer db.Close()
	entries, err := db.Outbox(w.Context(), 10)
	w.must(err)
	if len(entries) != 1 || !bytes.Contains(entries[0].Body, []byte(`"store.migrate"`)) {
		w.Errorf("%d entries wait: %+v", len(entries), entries)
	}
	files, err := filepath.Glob(filepath.Join(w.dir, "*.draft*"))
	w.must(err)
	if len(files) > 0 {
		w.Errorf("%v are left", files)
	}
}

func everyDirection(t *testing.T, run func(t *testing.T, direction string)) {
	t.Parallel()
	for _, direction := range directions {
		t.Run(direction, func(t *testing.T) {
			t.Parallel()
			run(t, direction)
		})
	}
}

func TestRun(t *testing.T) {
	everyDirection(t, func(t *testing.T, direction string) {
		w := newWorld(t, direction)
		report, err := Run(t.Context(), w.config())
		w.must(err)
		if !report.Retired || report.Resumed || report.From != store.Place(w.from) || report.To != store.Place(w.to) {
			t.Errorf("the report is %+v", report)
		}
		w.moved()
		// Once more it says the same and does nothing; to another place it does not go.
		again, err := Run(t.Context(), w.config())
		w.must(err)
		if !again.Resumed || !again.Retired || again.Version != report.Version || !slices.Contains(again.Tables, store.TableCount{Table: "clients", Rows: many}) {
			t.Errorf("the second report is %+v, the first %+v", again, report)
		}
		elsewhere := w.config()
		elsewhere.To = w.place("sqlite", "elsewhere.db")
		_, err = Run(t.Context(), elsewhere)
		w.is(err, store.ErrNotServable)
		_, err = Cancel(t.Context(), w.config())
		w.is(err, store.ErrNotServable)
		w.moved()
	})
}

// killedVariable says at which step the process of TestKilled kills itself.
const killedVariable = "CERTBOUND_TEST_MOVE_KILLED"

// killedAt runs the test again as a process that kills itself at a step, or is killed after a while.
func (w *world) killedAt(step string, after time.Duration) {
	w.Helper()
	cmd := exec.CommandContext(w.Context(), os.Args[0], "-test.run=^TestKilled$", "-test.count=1")
	cmd.Env = append(os.Environ(), killedVariable+"="+strings.Join([]string{step, w.from.Path, w.from.URL, w.to.Path, w.to.URL}, "\n"))
	w.must(cmd.Start())
	if after > 0 {
		time.Sleep(after)
		_ = cmd.Process.Kill() // it may have ended
	}
	_ = cmd.Wait()
	if signal := cmd.ProcessState.Sys().(syscall.WaitStatus).Signal(); after == 0 && signal != syscall.SIGKILL {
		w.Fatalf("it ended with %v", cmd.ProcessState)
	}
}

// Killed anywhere, at most one of the two is served, and the next run ends with the new one served and whole.
func TestKilled(t *testing.T) {
	if text, is := os.LookupEnv(killedVariable); is {
		part := strings.Split(text, "\n")
		cfg := Config{From: store.Config{Path: part[1], URL: part[2], KEK: kek}, To: store.Config{Path: part[3], URL: part[4], KEK: kek}, Replica: "r1"}
		cfg.reached = func(step string) {
			if step == part[0] {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		}
		_, _ = Run(context.Background(), cfg)
		return
	}
	everyDirection(t, func(t *testing.T, direction string) {
		arrived := func(step string) bool { return step == "copied" || step == "finished" }
		for _, step := range []string{"begun", "filled", "copied", "finished"} {
			w := newWorld(t, direction)
			w.killedAt(step, 0)
			if arrived(step) {
				w.state(0, many)
			} else {
				w.state(0, 0)
			}
			report, err := Run(t.Context(), w.config())
			w.must(err)
			if report.Resumed != arrived(step) {
				t.Errorf("%s: the report is %+v", step, report)
			}
			w.moved()

			// Given up it is served again, unless everything has arrived.
			w = newWorld(t, direction)
			w.killedAt(step, 0)
			_, err = Cancel(t.Context(), w.config())
			switch step {
			case "copied":
				w.is(err, ErrArrived)
				w.state(0, many)
			case "finished":
				w.is(err, store.ErrNotServable)
				w.state(0, many)
			default:
				w.must(err)
				w.state(many, 0)
				_, err = Cancel(t.Context(), w.config())
				w.is(err, ErrNotMoving)
			}
			if !arrived(step) {
				_, err := Run(t.Context(), w.config())
				w.must(err)
				w.state(0, many)
			}
		}
	})
}

// Killed at any moment, again and again, with the same end.
func TestKilledSometime(t *testing.T) {
	everyDirection(t, func(t *testing.T, direction string) {
		for i := range 6 {
			w := newWorld(t, direction)
			for n := range 2 {
				w.killedAt("", time.Duration(20+60*i+17*n)*time.Millisecond)
				if f, to := w.served(w.from), w.served(w.to); f > 0 && to > 0 || f != 0 && f != many || to != 0 && to != many {
					t.Fatalf("the old database serves %d clients and the new one %d", f, to)
				}
			}
			_, err := Run(t.Context(), w.config())
			w.must(err)
			w.moved()
		}
	})
}

// What fails before anything can have arrived leaves the old database in service.
func TestFailed(t *testing.T) {
	everyDirection(t, func(t *testing.T, direction string) {
		w := newWorld(t, direction)
		ctx, cancel := context.WithCancel(t.Context())
		cfg := w.config()
		cfg.reached = func(step string) {
			if step == "filled" {
				cancel()
			}
		}
		_, err := Run(ctx, cfg)
		if unfinished, is := errors.AsType[*UnfinishedError](err); is { // it was not told in time that nothing was committed
			if !strings.Contains(unfinished.Hint(), "--to "+store.Place(w.to)) {
				t.Error(unfinished.Hint())
			}
			w.state(0, 0)
			_, err = Cancel(t.Context(), w.config())
			w.must(err)
		} else if err == nil || direction == "sqlite to postgres" { // there the commit itself was given up
			t.Fatalf("the error is %v", err)
		}
		w.state(many, 0)

		// What is there already is refused before anything is done, and untouched.
		w.fill(w.to, 3)
		_, err = Run(t.Context(), w.config())
		if !errors.Is(err, store.ErrNotEmpty) && !errors.Is(err, fs.ErrExist) {
			t.Fatalf("the error is %v", err)
		}
		w.state(many, 3)
	})
}

// What was put in the place of what is being moved there is refused, and so is another place; then it can be given up.
func TestOtherPlace(t *testing.T) {
	everyDirection(t, func(t *testing.T, direction string) {
		w := newWorld(t, direction)
		w.killedAt("begun", 0)
		_, kind, _ := strings.Cut(direction, " to ")
		cfg := w.config()
		cfg.To = w.place(kind, "elsewhere.db")
		for _, f := range []func(context.Context, Config) (*Report, error){Run, Cancel} {
			_, err := f(t.Context(), cfg)
			w.is(err, ErrElsewhere)
			if !strings.Contains(err.Error(), store.Place(w.to)) {
				t.Error(err)
			}
		}
		if direction == "postgres to sqlite" { // the same name may be another file
			cfg = w.config()
			cfg.Replica = "r2"
			_, err := Cancel(t.Context(), cfg)
			w.is(err, ErrElsewhere)
		}
		w.fill(w.to, 3)
		_, err := Run(t.Context(), w.config())
		w.is(err, ErrForeignTarget)
		w.state(0, 3)
		_, err = Cancel(t.Context(), w.config())
		w.must(err)
		w.state(many, 3)
	})
}

// A target that cannot be reached proves nothing: neither does an error put the old database into service, nor whoever
// gives up.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "sqlite to postgres")
	w.killedAt("begun", 0)
	db, err := store.Open(t.Context(), store.Config{Path: w.from.Path, KEK: kek, AnyCondition: true})
	w.must(err)
	condition, err := db.Condition(t.Context())
	w.must(err)
	m, err := db.Move(t.Context())
	w.must(err)
	nowhere := store.Config{URL: "postgres://u@127.0.0.1:1/gone?sslmode=disable", KEK: kek}
	w.must(m.Cancel(t.Context(), condition.ID, ""))
	_, err = m.Begin(t.Context(), store.Place(nowhere), "r1", time.Now())
	w.must(err)
	w.must(errors.Join(m.Close(), db.Close()))
	cfg := w.config()
	cfg.To = nowhere
	_, err = Cancel(t.Context(), cfg)
	w.is(err, store.ErrUnavailable)
	_, err = Run(t.Context(), cfg)
	w.is(err, store.ErrUnavailable)
	if _, is := errors.AsType[*UnfinishedError](err); !is {
		t.Errorf("the error is %v", err)
	}
	w.state(0, 0)

	// Nobody is told to go on to a place that it is not being moved to, or was not.
	cfg.To.URL = "postgres://u@127.0.0.1:1/mistyped?sslmode=disable"
	_, err = Run(t.Context(), cfg)
	w.is(err, ErrElsewhere)
	w = newWorld(t, "sqlite to sqlite")
	_, err = Run(t.Context(), w.config())
	w.must(err)
	moved := w.config()
	moved.To = cfg.To
	_, err = Run(t.Context(), moved)
	if refused, is := errors.AsType[*store.ConditionError](err); !is || refused.Condition.State != store.ConditionMoved {
		t.Errorf("the error is %v", err)
	}
}

// A database that somebody serves on is not moved; one that moves it meanwhile is waited for by nobody.
func TestHeld(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "postgres to postgres")
	db, err := store.Open(t.Context(), w.from)
	w.must(err)
	defer db.Close()
	w.must(db.BeginLease(t.Context(), store.Lease{Replica: "a", Incarnation: 1}))
	done, stop := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			if _, err := db.RenewLease(context.Background(), store.LeaseRenewal{Replica: "a", Incarnation: 1}); err != nil {
				t.Error(err)
			}
			select {
			case <-stop:
				return
			case <-time.After(200 * time.Millisecond):
			}
		}
	}()
	_, err = Run(t.Context(), w.config())
	close(stop)
	<-done
	w.is(err, restore.ErrServing)
	w.state(many, 0)

	m, err := db.Move(t.Context())
	w.must(err)
	for _, f := range []func(context.Context, Config) (*Report, error){Run, Cancel} {
		_, err = f(t.Context(), w.config())
		w.is(err, store.ErrMoving)
	}
	w.must(m.Close())
	began := time.Now()
	cfg := w.config()
	cfg.reached = func(step string) { // a replica that was paused comes back
		if step == "begun" {
			_, err := db.RenewLease(context.Background(), store.LeaseRenewal{Replica: "a", Incarnation: 1})
			w.is(err, store.ErrNotServable)
		}
	}
	_, err = Run(t.Context(), cfg)
	w.must(err)
	if took := time.Since(began); took < 5*time.Second { // 2.5 s to see nobody serve, and 3 s until no lease can be in force
		t.Errorf("it took %s", took)
	}
	w.moved()
}
