// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// start makes a cluster for one test that does harm to it.
func start(t *testing.T, config Config) *Cluster {
	t.Helper()
	c, err := New(t.Context(), config)
	if errors.Is(err, ErrNotFound) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(c.LastWords())
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func query(t *testing.T, s *Server, statements string) string {
	t.Helper()
	got, err := s.Query(t.Context(), "postgres", statements)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// What was committed is there after every way to end, at the same port.
func TestRestart(t *testing.T) {
	t.Parallel()
	c := start(t, Config{Settings: []string{"log_statement=ddl"}})
	query(t, &c.Server, "CREATE TABLE t (n int)")
	address, want := c.Address(), 0
	for name, end := range map[string]func() error{
		"fast":      func() error { return c.Restart(t.Context(), Fast) },
		"immediate": func() error { return c.Restart(t.Context(), Immediate) },
		"killed": func() error {
			c.Kill()
			if c.Running() {
				t.Error("it is running after SIGKILL")
			}
			return c.Start(t.Context())
		},
	} {
		query(t, &c.Server, "INSERT INTO t VALUES (1)")
		want++
		if err := end(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := query(t, &c.Server, "SELECT count(*) FROM t"); got != strconv.Itoa(want) || c.Address() != address {
			t.Errorf("%s: %s rows, want %d, at %s, was %s", name, got, want, c.Address(), address)
		}
	}
	if err := c.Start(t.Context()); err == nil {
		t.Error("a running cluster was started")
	}
	if words := c.LastWords(); !strings.Contains(words, "ready to accept connections") {
		t.Errorf("last words: %s", words)
	}
}

// A backend's death ends every session, and the cluster recovers by itself.
func TestKillBackend(t *testing.T) {
	t.Parallel()
	c := start(t, Config{})
	done := make(chan error, 1)
	go func() {
		_, err := c.Query(t.Context(), "postgres", "SELECT pg_sleep(20)")
		done <- err
	}()
	for deadline := time.Now().Add(10 * time.Second); ; {
		killed, err := c.KillBackend(func(n int) int { return n - 1 })
		if err != nil {
			t.Fatal(err)
		}
		if killed {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no backend was found")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := <-done; err == nil {
		t.Error("the session went on")
	}
	if err := c.until(t.Context(), "SELECT true"); err != nil {
		t.Error(err)
	}
}

// Who knows the address does not get in without the password, and only this machine knows the address.
func TestPassword(t *testing.T) {
	t.Parallel()
	c := start(t, Config{})
	other := newServer(c.bin, c.port, "guess")
	if _, err := other.Query(t.Context(), "postgres", "SELECT 1"); err == nil || !strings.Contains(err.Error(), "password authentication failed") {
		t.Errorf("with another password: %v", err)
	}
	if got := query(t, &c.Server, "SHOW listen_addresses"); got != "127.0.0.1" {
		t.Errorf("it listens on %s", got)
	}
	info, err := os.Stat(c.root)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("its folder is %v, %v", info.Mode(), err)
	}
	if got := query(t, &c.Server, "SELECT string_agg(x, '' ORDER BY x) FROM (VALUES ('a'), ('B'), ('c')) v (x)"); got != "aBc" && got != "Bac" {
		t.Errorf("order %s", got)
	}
}

// A promoted standby has every row whose commit waited for it, though the primary is dead; and a primary whose
// synchronous standby is gone commits nothing.
func TestSynchronousStandby(t *testing.T) {
	t.Parallel()
	c := start(t, Config{})
	query(t, &c.Server, "CREATE TABLE t (n int)")
	standby, err := c.Standby(t.Context(), "second", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = standby.Close() })
	if err := c.Synchronous(t.Context(), "second"); err != nil {
		t.Fatal(err)
	}
	if got := query(t, &standby.Server, "SELECT pg_is_in_recovery()"); got != "t" {
		t.Fatal("the standby is none")
	}
	for n := range 20 {
		query(t, &c.Server, fmt.Sprintf("INSERT INTO t VALUES (%d)", n))
	}
	c.Kill()
	if err := standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := query(t, &standby.Server, "SELECT count(*) FROM t"); got != "20" {
		t.Errorf("%s rows survived, want 20", got)
	}
	query(t, &standby.Server, "INSERT INTO t VALUES (20)")
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The old primary comes back and still wants its standby, which does not follow it any more: a commit waits.
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if got, err := c.Query(ctx, "postgres", "INSERT INTO t VALUES (21)"); err == nil {
		t.Errorf("it committed alone: %q", got)
	}
}

// A process that is killed takes its cluster and the folder with it.
func TestEndsWithUs(t *testing.T) {
	t.Parallel()
	if os.Getenv("POSTGRES_TEST_CHILD") != "" {
		c, err := New(t.Context(), Config{})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(os.Getenv("POSTGRES_TEST_CHILD"), []byte(c.root+"\n"+c.Address()), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		select {}
	}
	if _, err := Find(); err != nil && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	told := filepath.Join(t.TempDir(), "told")
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestEndsWithUs$")
	cmd.Env = append(os.Environ(), "POSTGRES_TEST_CHILD="+told)
	out, err := cmd.CombinedOutput()
	data, read := os.ReadFile(told)
	if read != nil {
		t.Fatalf("%v %v\n%s", err, read, out)
	}
	folder, address, _ := strings.Cut(string(data), "\n")
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		_, there := os.Stat(folder)
		if err != nil && errors.Is(there, os.ErrNotExist) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still there: connecting to %s: %v; %s: %v", address, err, folder, there)
		}
	}
}

// reports is a test that notes what it is told.
type reports struct {
	TB
	skipped, failed string
	cleanup         []func()
}

func (r *reports) Helper()                           {}
func (r *reports) Cleanup(f func())                  { r.cleanup = append(r.cleanup, f) }
func (r *reports) Logf(string, ...any)               {}
func (r *reports) Skipf(format string, args ...any)  { r.skipped = fmt.Sprintf(format, args...) }
func (r *reports) Fatalf(format string, args ...any) { r.failed = fmt.Sprintf(format, args...) }

// Tests share a server, have databases of their own, and leave none behind.
func TestForTest(t *testing.T) {
	t.Parallel()
	s := ForTest(t)
	if ForTest(t) != s {
		t.Error("two servers for one binary")
	}
	r := &reports{}
	one, two := s.Database(r), s.Database(r)
	if one == two || r.failed != "" {
		t.Fatalf("databases are the same, or there is none: %s", r.failed)
	}
	name := func(text string) string {
		_, name, _ := strings.Cut(text, "/test_")
		name, _, _ = strings.Cut(name, "?")
		return "test_" + name
	}
	if _, err := s.Query(t.Context(), name(one), "CREATE TABLE t (n int); INSERT INTO t VALUES (7)"); err != nil {
		t.Fatal(err)
	}
	copied := s.DatabaseFrom(r, name(one))
	if got, err := s.Query(t.Context(), name(copied), "SELECT n FROM t"); err != nil || got != "7" {
		t.Errorf("the copy holds %q, %v", got, err)
	}
	for _, clean := range r.cleanup {
		clean()
	}
	if got := query(t, s, "SELECT count(*) FROM pg_database WHERE datname IN ('"+name(one)+"', '"+name(two)+"', '"+name(copied)+"')"); got != "0" {
		t.Errorf("%s databases are left", got)
	}
}

// A URL that cannot be used is refused without repeating it: it may hold a password.
func TestGiven(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"mysql://u:secret@h/d", "postgres://", "postgres://u:secret@h:x y/d", "secret"} {
		if _, err := given(text); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", text, err)
		}
	}
}
