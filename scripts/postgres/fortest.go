// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package postgres

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Variable names the environment's variable with the URL of a server to test against, as its superuser.
const Variable = "CERTBOUND_TEST_POSTGRES"

// TB is what is needed of a testing.TB.
type TB interface {
	Helper()
	Cleanup(func())
	Logf(format string, args ...any)
	Skipf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// shared is the server of this process' tests. That tests share it is what it is for: a cluster takes a second to make.
var shared = sync.OnceValues(func() (*Server, error) {
	if text := os.Getenv(Variable); text != "" {
		return given(text)
	}
	c, err := New(context.Background(), Config{})
	if err != nil {
		return nil, err
	}
	return &c.Server, nil // it ends with the process
})

// given is the server that the environment names. An error does not repeat the URL, which holds a password.
func given(text string) (*Server, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" || u.Host == "" {
		return nil, errors.New(Variable + " holds no URL like postgres://user:password@host:port/postgres")
	}
	psql, err := exec.LookPath("psql")
	if err != nil {
		bin, err := Find()
		if err != nil {
			return nil, err
		}
		psql = filepath.Join(bin, "psql")
	}
	return &Server{address: u, psql: psql}, nil
}

// ForTest returns the server that the tests of this binary share: the one that CERTBOUND_TEST_POSTGRES names, else a
// throwaway cluster that is started once and ends with the process. Where PostgreSQL is not installed the test is skipped,
// but under CI it fails. Each test works in databases of its own: see Database.
func ForTest(tb TB) *Server {
	tb.Helper()
	s, err := shared()
	switch {
	case err == nil:
		return s
	case errors.Is(err, ErrNotFound) && os.Getenv("CI") == "":
		tb.Skipf("needs PostgreSQL: %v", err)
	default:
		tb.Fatalf("needs PostgreSQL: %v", err)
	}
	return nil
}

// Database makes an empty database for a test and returns its URL. It goes with the test.
func (s *Server) Database(tb TB) string {
	tb.Helper()
	return s.DatabaseFrom(tb, "")
}

// DatabaseFrom is Database with a copy of another database, which nobody may be using at that moment.
func (s *Server) DatabaseFrom(tb TB, template string) string {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	name := "test_" + strings.ToLower(rand.Text())
	// Two copies of one template at a time are fine; what disturbs is a session that has not quite gone.
	var err error
	for n := range 50 {
		if err = s.CreateDatabase(ctx, name, template); err == nil || !strings.Contains(err.Error(), "being accessed by other users") {
			break
		}
		time.Sleep(time.Duration(n+1) * 10 * time.Millisecond)
	}
	if err != nil {
		tb.Fatalf("%v", fmt.Errorf("a database for the test: %w", err))
	}
	tb.Cleanup(func() {
		if err := s.DropDatabase(context.Background(), name); err != nil {
			tb.Logf("%v", err) // the next cluster is a new one
		}
	})
	return s.URL(name)
}
