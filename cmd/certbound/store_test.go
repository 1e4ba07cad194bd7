// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/move"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/scripts/postgres"
)

// mover moves an installation with the real program, which is killed at any moment.
type mover struct {
	*node
	from, to []string // how the verbs name the two databases
	goal     string   // of --to
}

// try runs the program and returns the error that it printed as JSON, which is empty when it did what was asked for.
func (m *mover) try(args ...string) (out []byte, refusal struct{ Error, Hint string }, exit int) {
	m.t.Helper()
	m.err.Reset()
	out, err := m.command(append(args, "-o", "json")...).Output()
	if err == nil {
		return out, refusal, 0
	}
	failed, is := errors.AsType[*exec.ExitError](err)
	lines := strings.Split(strings.TrimSpace(m.err.String()), "\n")
	if !is || json.Unmarshal([]byte(lines[len(lines)-1]), &refusal) != nil || refusal.Hint == "" {
		m.t.Fatalf("certbound %s: %v: %s", strings.Join(args, " "), err, m.err.String())
	}
	return nil, refusal, failed.ExitCode()
}

// rows is how many rows each table has of a database that would be served; none, and why, if it is not served, or empty.
func (m *mover) rows(database []string) (tables map[string]int64, refusal string) {
	m.t.Helper()
	if i := len(database) - 1; database[i-1] == "--data" {
		if _, err := os.Stat(filepath.Join(database[i], store.FileName)); err != nil {
			return nil, "missing"
		}
	}
	file := filepath.Join(m.t.TempDir(), "backup")
	out, refused, _ := m.try(append([]string{"store", "backup", file}, database...)...)
	if refused.Error != "" {
		return nil, refused.Error
	}
	var made struct {
		Tables []struct {
			Table string
			Rows  int64
		}
	}
	if err := json.Unmarshal(out, &made); err != nil {
		m.t.Fatal(err)
	}
	tables = make(map[string]int64)
	for _, t := range made.Tables {
		tables[t.Table] = t.Rows
	}
	return tables, ""
}

// clients is how many a database would serve: zero if it is not served, or empty.
func (m *mover) clients(database []string) (n int64, refusal string) {
	m.t.Helper()
	tables, refusal := m.rows(database)
	n, ok := tables["clients"]
	if refusal == "" && !ok {
		m.t.Fatalf("no clients: %v", tables)
	}
	return n, refusal
}

// killed runs the program and kills it after a while. It reports whether it had ended by itself and well.
func (m *mover) killed(after time.Duration, args ...string) bool {
	m.t.Helper()
	cmd := m.command(args...)
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	timer := time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	return cmd.Wait() == nil
}

// later is how much longer a program runs before it is killed the next time: it is met in every part of its work, and not much
// more often where it takes its time, as under the race detector.
func later(after time.Duration) time.Duration { return max(10*time.Millisecond, after/8) }

// populated is how many clients populate leaves: the operator, too.
const populated = 4

func (m *mover) populate() {
	m.t.Helper()
	admin := filepath.Join(m.data, "admin")
	m.run("resource", "add", "urn:r", "--scope", "s", "--server", "operator", "--profile", admin)
	for i := range populated - 1 {
		m.run("client", "add", fmt.Sprintf("c%d", i), "--scope", "s", "--profile", admin)
	}
}

// The real program is killed while it moves an installation, a little later each time: never both databases are served, the
// old one is refused with the way on while it may be that everything has arrived, and the run that ends leaves the new one.
func TestMigrateKilled(t *testing.T) {
	t.Parallel()
	server := postgres.ForTest(t)
	for _, direction := range []string{"sqlite to postgres", "postgres to sqlite", "sqlite to sqlite"} {
		t.Run(direction, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			listen := []string{"--public", "127.0.0.1:0", "--mtls", "127.0.0.1:0", "--debug", "off"}
			m := &mover{node: &node{t: t, data: filepath.Join(dir, "one")}}
			m.from = []string{"--data", m.data}
			next := filepath.Join(dir, "two")
			m.to, m.goal = []string{"--data", next}, filepath.Join(next, "certbound.db")
			switch direction {
			case "sqlite to postgres":
				m.goal = server.Database(t)
				m.to = append(m.from[:2:2], "--database", m.goal)
			case "postgres to sqlite":
				m.from = append(m.from, "--database", server.Database(t))
				m.to, m.goal = []string{"--data", m.data}, filepath.Join(m.data, "certbound.db")
			}
			m.args = append(listen[:len(listen):len(listen)], m.from[2:]...)
			m.start()
			m.populate()
			m.stop()
			if out, err := exec.Command("cp", "-rp", m.data, next).CombinedOutput(); err != nil { // the folder goes with it, where there is another
				t.Fatalf("%v: %s", err, out)
			}
			_ = os.Remove(filepath.Join(next, "certbound.db"))
			migrate := append([]string{"store", "migrate", "--to", m.goal}, m.from...)
			moving := 0
			_, parameters, _ := strings.Cut(m.goal, "?") // of the URL: a hint has them
			for after := 10 * time.Millisecond; ; after += later(after) {
				ended := m.killed(after, migrate...)
				old, why := m.clients(m.from)
				moved, whyNot := m.clients(m.to)
				if old != 0 && moved != 0 || old+moved != 0 && old+moved != populated {
					t.Fatalf("killed after %s: the old database serves %d clients, the new one %d", after, old, moved)
				}
				if old == 0 && why != "not_servable" {
					t.Fatalf("killed after %s: the old database is refused as %q", after, why)
				}
				if ended {
					if moved != populated {
						t.Fatalf("the new database serves %d clients: %s", moved, whyNot)
					}
					break
				}
				if old == 0 && moved == 0 {
					moving++
					_, refusal, exit := m.try(append([]string{"serve"}, append(listen, m.from...)...)...)
					if exit != exitFailed || refusal.Error != "not_servable" || !strings.Contains(refusal.Hint, "certbound store migrate again, with --to") ||
						!strings.Contains(refusal.Hint, parameters) {
						t.Fatalf("serve ended with %d: %+v", exit, refusal)
					}
					if moving%2 == 1 { // given up, it is served again
						m.run(append([]string{"store", "migrate", "--cancel", "--to", m.goal}, m.from...)...)
						if old, _ := m.clients(m.from); old != populated {
							t.Fatalf("given up, the old database serves %d clients", old)
						}
					}
				}
				if after > time.Minute {
					t.Fatal("it does not end")
				}
			}
			t.Logf("%d times neither was served", moving)
			if _, refusal, exit := m.try(append([]string{"serve"}, append(listen, m.from...)...)...); exit != exitFailed || refusal.Error != "not_servable" ||
				!strings.Contains(refusal.Hint, parameters) {
				t.Fatalf("serve ended with %d: %+v", exit, refusal)
			}
			m.data, m.args = m.to[1], append(listen[:len(listen):len(listen)], m.to[2:]...)
			m.start()
			defer m.stop()
			list := m.run("client", "list", "--profile", filepath.Join(m.data, "admin"))
			for _, id := range []string{"c0", "c1", "c2", "operator"} {
				if !strings.Contains(list, id) {
					t.Errorf("%s is not there:\n%s", id, list)
				}
			}
		})
	}
}

// Killed while it copies or backs up, it leaves nothing that passes for what was to be made; run again it makes it. The
// database is served as before.
func TestCopyKilled(t *testing.T) {
	t.Parallel()
	server := postgres.ForTest(t)
	dir := t.TempDir()
	m := &mover{node: &node{t: t, data: filepath.Join(dir, "one"), args: []string{"--public", "127.0.0.1:0", "--mtls", "127.0.0.1:0", "--debug", "off"}}}
	m.from = []string{"--data", m.data}
	m.start()
	m.populate()
	m.stop()
	whole, _ := m.rows(m.from)
	for _, c := range []struct {
		what string
		verb []string
		file bool
	}{
		{"backup", []string{"store", "backup", filepath.Join(dir, "backup")}, true},
		{"copy to a file", []string{"store", "copy", "--to", filepath.Join(dir, "copy")}, true},
		{"copy to a server", []string{"store", "copy", "--to", server.Database(t)}, false},
	} {
		target, left := c.verb[len(c.verb)-1], 0
		for after := 10 * time.Millisecond; ; after += later(after) {
			ended := m.killed(after, append(c.verb, m.from...)...)
			if old, why := m.clients(m.from); old != populated {
				t.Fatalf("%s: the database serves %d clients: %s", c.what, old, why)
			}
			made := false // it may be killed when all is done, and has not ended then
			if c.file {
				_, missing := os.Stat(target)
				if made = missing == nil; ended && !made {
					t.Fatalf("%s: it ended, and there is no file: %v", c.what, missing)
				}
			} else {
				n, why := m.clients([]string{"--data", m.data, "--database", target})
				if made = n == populated; ended && !made || n != 0 && !made {
					t.Fatalf("%s: the copy has %d clients: %s", c.what, n, why)
				}
			}
			if draft, err := os.ReadFile(target + ".draft"); err == nil && !ended {
				left++
				wrong := filepath.Join(t.TempDir(), "data")
				for name, content := range map[string][]byte{"certbound.db": draft, "kek": m.kek()} { // somebody takes it for whole
					if err := errors.Join(os.MkdirAll(wrong, 0o700), os.WriteFile(filepath.Join(wrong, name), content, 0o600)); err != nil {
						t.Fatal(err)
					}
				}
				// There may be nothing in it yet, or all but its name may be done, and then nothing is missing.
				if n, _ := m.rows([]string{"--data", wrong}); n["clients"] != 0 && !maps.Equal(n, whole) {
					t.Fatalf("%s: what was not finished serves %v, and not all of %v", c.what, n, whole)
				}
			}
			if made {
				break
			}
			if after > time.Minute {
				t.Fatalf("%s: it does not end", c.what)
			}
		}
		if _, refusal, exit := m.try(append(c.verb, m.from...)...); exit != exitFailed || !strings.Contains(refusal.Hint, "not there yet") {
			t.Errorf("%s: once more, it ended with %d: %+v", c.what, exit, refusal)
		}
		if files, err := filepath.Glob(target + ".*"); c.file && (err != nil || len(files) > 0) {
			t.Errorf("%s: %v are left: %v", c.what, files, err)
		}
		t.Logf("%s: %d drafts were left", c.what, left)
	}
}

func (m *mover) kek() []byte {
	m.t.Helper()
	key, err := os.ReadFile(filepath.Join(m.data, "kek"))
	if err != nil {
		m.t.Fatal(err)
	}
	return key
}

// A service that goes on, as one does that was paused while its database was moved away, ends by itself, and says why.
func TestServedWhileMoved(t *testing.T) {
	t.Parallel()
	url := postgres.ForTest(t).Database(t)
	m := &mover{node: &node{t: t, data: filepath.Join(t.TempDir(), "data"), args: []string{"--public", "127.0.0.1:0", "--mtls", "127.0.0.1:0", "--debug", "off", "--database", url}}}
	m.start()
	kek, err := store.LoadKEK(m.data, "", store.KEKSource{})
	if err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(t.Context(), store.Config{URL: url, KEK: kek})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	hold, err := db.Move(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	condition, err := hold.Begin(t.Context(), "postgres://u@elsewhere:5432/name", "", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(time.Minute, func() { _ = m.cmd.Process.Kill() })
	defer timer.Stop()
	err = m.cmd.Wait()
	failed, is := errors.AsType[*exec.ExitError](err)
	said := m.err.String()
	if !is || failed.ExitCode() != exitFailed || !strings.Contains(said, "is being moved to postgres://u@elsewhere:5432/name") ||
		!strings.Contains(said, "hint: run certbound store migrate again, with --to postgres://u@elsewhere:5432/name") {
		t.Fatalf("it ended with %v: %s", err, said)
	}
	if err := hold.Cancel(t.Context(), condition.ID, ""); err != nil {
		t.Fatal(err)
	}
	m.start()
	m.stop()
}

// Who moves to a file of another name is told that serve opens it under one name only, and who moves back to where the
// database was before, what to do with what is still there.
func TestMigrateSaysHowToGoOn(t *testing.T) {
	t.Parallel()
	m := &mover{node: &node{t: t, data: filepath.Join(t.TempDir(), "one"), args: []string{"--public", "127.0.0.1:0", "--mtls", "127.0.0.1:0", "--debug", "off"}}}
	m.start()
	m.stop()
	// A folder that had no file named lock has none afterwards.
	lock := filepath.Join(m.data, "lock")
	if err := os.Remove(lock); err != nil {
		t.Fatal(err)
	}
	m.run("store", "copy", "--data", m.data, "--to", filepath.Join(t.TempDir(), "copy.db"))
	if _, err := os.Lstat(lock); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it left %s behind: %v", lock, err)
	}
	old, next := filepath.Join(m.data, "certbound.db"), filepath.Join(m.data, "next.db")
	if out := m.run("store", "migrate", "--data", m.data, "--to", next); !strings.Contains(out, "rename next.db") || !strings.Contains(out, "-wal") {
		t.Errorf("it is not said how next.db is served:\n%s", out)
	}
	_, moved, exit := m.try("serve", "--data", m.data, "--public", "127.0.0.1:0", "--mtls", "127.0.0.1:0", "--debug", "off")
	if exit != exitFailed || moved.Error != "not_servable" || !strings.Contains(moved.Hint, "give "+next+" that name") {
		t.Errorf("exit code %d: %+v", exit, moved)
	}
	aside, other := filepath.Join(t.TempDir(), "certbound.db"), filepath.Join(t.TempDir(), "two")
	if err := os.Rename(old, aside); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, old); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(other, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(aside, filepath.Join(other, "certbound.db")); err != nil {
		t.Fatal(err)
	}
	_, refusal, exit := m.try("store", "migrate", "--data", m.data, "--to", filepath.Join(other, store.FileName))
	if exit != exitFailed || !strings.Contains(refusal.Hint, "put it elsewhere, with its -wal") {
		t.Errorf("exit code %d: %+v", exit, refusal)
	}
	if err := os.Remove(filepath.Join(other, "certbound.db")); err != nil {
		t.Fatal(err)
	}
	if out := m.run("store", "migrate", "--data", m.data, "--to", filepath.Join(other, "certbound.db")); strings.Contains(out, "rename") {
		t.Errorf("a name that serve opens is to be changed:\n%s", out)
	}
}

// What a move says to run next keeps all of the URL but its passwords: how the server is verified most of all.
func TestMigrateKeepsTheParametersOfTheURL(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"postgres://u:pw1@db.example/name?sslmode=verify-full": "'postgres://u@db.example/name?sslmode=verify-full'",
		"postgres://u:pw1@db.example/name?sslmode=verify-full&password=pw1&sslrootcert=/ca.pem&sslpassword=pw1": "'postgres://u@db.example/name?" +
			"sslmode=verify-full&sslrootcert=/ca.pem'",
		"postgres://u@db.example/name?pass%77ord=pw1":               "postgres://u@db.example/name",
		"postgres://u@db.example/name?sslmode=disable;password=pw1": "postgres://u@db.example/name",
		"postgres://u@db.example/name?%zz=pw1":                      "postgres://u@db.example/name",
		"postgres://u@db.example/name#pw1":                          "postgres://u@db.example/name",
		"postgresql://a:1,b:2/name?sslmode=require":                 "'postgresql://a:1,b:2/name?sslmode=require'",
		"postgres://u@db.example/it's":                              "'postgres://u@db.example/it%27s'",
		"postgres://db.example/name":                                "postgres://db.example/name",
	} {
		got := nextStart(store.Config{URL: url})
		if got != "certbound serve --database "+want+", with the same data folder" || strings.Contains(got, "pw1") {
			t.Errorf("%s\n%s\nwant %s", url, got, want)
		}
	}
}

// So does what it says when it was cut short, or refused: run again without its sslmode, it would send everything over a
// connection that is less safe.
func TestMigrateKeepsTheParametersInHints(t *testing.T) {
	t.Parallel()
	cfg := move.Config{To: store.Config{URL: "postgres://u:pw1@db.example/name?sslmode=verify-full&password=pw1"}}
	place := store.Place(cfg.To)
	moving := store.Condition{State: store.ConditionMoving, To: place, ID: "id"}
	moved := store.Condition{State: store.ConditionMoved, To: place, ID: "id"}
	for name, err := range map[string]error{
		"unfinished":  fmt.Errorf("move: %w", &move.UnfinishedError{From: "here", To: place, Err: errors.New("cut")}),
		"foreign":     fmt.Errorf("%s: %w", place, move.ErrForeignTarget),
		"arrived":     fmt.Errorf("%s: %w", place, move.ErrArrived),
		"being moved": fmt.Errorf("here: %w", &store.ConditionError{Condition: moving}),
		"moved":       fmt.Errorf("here: %w", &store.ConditionError{Condition: moved}),
	} {
		failed, is := errors.AsType[*failure](moveFailure(err, cfg))
		if name == "moved" && !strings.HasPrefix(failed.hint, "serve --database '") {
			t.Errorf("it is not said how the new one is served: %s", failed.hint)
		}
		if !is || failed.exit != exitFailed || failed.description != err.Error() ||
			!strings.Contains(failed.hint, "'postgres://u@db.example/name?sslmode=verify-full'") || strings.Contains(failed.hint+failed.description, "pw1") {
			t.Errorf("%s: %+v", name, failed)
		}
	}
	elsewhere := moving
	elsewhere.To = "postgres://u@other.example:5432/name"
	if err := moveFailure(&store.ConditionError{Condition: elsewhere}, cfg); !errors.Is(err, store.ErrNotServable) {
		t.Errorf("the hint of another place is not its own: %v", err)
	}
	if err, is := errors.AsType[*failure](moveFailure(fmt.Errorf("f: %w", move.ErrArrived), move.Config{To: store.Config{Path: "/a/certbound.db"}})); !is ||
		!strings.Contains(err.hint, "--to /a/certbound.db;") {
		t.Errorf("a file: %v", err)
	}
}

// A new key-encryption key that something may be sealed under stays, and the next run goes on with it.
func TestRewrapKeepsTheKeyOfACommitThatFailed(t *testing.T) {
	t.Parallel()
	m := &mover{node: &node{t: t, data: filepath.Join(t.TempDir(), "one"), args: []string{"--public", "127.0.0.1:0", "--mtls", "127.0.0.1:0", "--debug", "off"}}}
	m.start()
	m.stop()
	change := func(statements ...string) {
		t.Helper()
		db, err := sql.Open("sqlite", filepath.Join(m.data, store.FileName))
		for _, statement := range statements {
			if err == nil {
				_, err = db.ExecContext(t.Context(), statement)
			}
		}
		if err = errors.Join(err, db.Close()); err != nil {
			t.Fatal(err)
		}
	}
	change("CREATE TABLE nowhere (id INTEGER REFERENCES missing (id) DEFERRABLE INITIALLY DEFERRED)", "CREATE TABLE missing (id INTEGER PRIMARY KEY)",
		"CREATE TRIGGER last AFTER UPDATE OF kek_check ON state BEGIN INSERT INTO nowhere VALUES (1); END")
	fresh := filepath.Join(t.TempDir(), "fresh")
	rewrap := []string{"keys", "rewrap", "--new-kek", fresh, "--data", m.data}
	_, refusal, exit := m.try(rewrap...)
	made, err := os.ReadFile(fresh)
	if exit != exitFailed || err != nil || !strings.Contains(refusal.Hint, "keep "+fresh+" and run it again") {
		t.Fatalf("exit code %d: %+v, %v", exit, refusal, err)
	}
	change("DROP TRIGGER last")
	m.run(rewrap...)
	if now, err := os.ReadFile(filepath.Join(m.data, "kek")); err != nil || !bytes.Equal(now, made) {
		t.Errorf("the database is under another key, or none: %v", err)
	}
}
