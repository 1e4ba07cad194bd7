// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql/driver"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/certbound/certbound/scripts/postgres"
)

// testKEK is a key-encryption key for tests.
var testKEK = bytes.Repeat([]byte{7}, kekSize)

// openAt opens the database in dir with a clock, and closes it at the end of the test.
func openAt(t *testing.T, dir string, now func() time.Time) *Store {
	t.Helper()
	s, err := Open(t.Context(), Config{Path: filepath.Join(dir, "certbound.db"), KEK: testKEK, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// openSQLite opens an empty database.
func openSQLite(t *testing.T, now func() time.Time) *Store { return openAt(t, t.TempDir(), now) }

// template is a database of PostgreSQL with the schema and testKEK's check in it, of which each test gets a copy.
var template struct {
	once   sync.Once
	server *postgres.Server
	name   string
	err    error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if template.server != nil {
		if err := template.server.DropDatabase(context.Background(), template.name); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	os.Exit(code)
}

// pgDatabase makes a database with the schema in it, and returns its URL.
func pgDatabase(t *testing.T) string {
	t.Helper()
	server := postgres.ForTest(t)
	template.once.Do(func() {
		template.name = "template_" + strings.ToLower(rand.Text())
		if template.err = server.CreateDatabase(t.Context(), template.name, ""); template.err != nil {
			return
		}
		template.server = server
		s, err := Open(t.Context(), Config{URL: server.URL(template.name), KEK: testKEK})
		if err == nil {
			err = s.Close()
		}
		template.err = err
	})
	ok(t, template.err)
	return server.DatabaseFrom(t, template.name)
}

// openURL opens a database of PostgreSQL, and closes it at the end of the test.
func openURL(t *testing.T, url string, now func() time.Time) *Store {
	t.Helper()
	s, err := Open(t.Context(), Config{URL: url, KEK: testKEK, Now: now, MaxConnections: leastConnections})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// openPostgres opens an empty database.
func openPostgres(t *testing.T, now func() time.Time) *Store { return openURL(t, pgDatabase(t), now) }

// everyDatabase runs a test on each kind of database.
func everyDatabase(t *testing.T, run func(t *testing.T, open opener)) {
	t.Parallel()
	for name, open := range map[string]opener{"sqlite": openSQLite, "postgres": openPostgres} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, open)
		})
	}
}

// TestStore runs the conformance suite.
func TestStore(t *testing.T) { everyDatabase(t, testStore) }

// CA-24: RFC 8705, Section 2.2: a registered certificate, and its public key, identifies one client and no second one.
func TestRFC8705_2_2_CertificateOfOneClient(t *testing.T) {
	everyDatabase(t, func(t *testing.T, open opener) { testRegisteredCertificates(newFixture(t, open)) })
}

// DR-07: RFC 8705, Section 2.1.2: what a certificate of one CA is recognised by names one client and no second one.
func TestRFC8705_2_1_2_SubjectOfOneClient(t *testing.T) {
	everyDatabase(t, func(t *testing.T, open opener) { testSubjects(newFixture(t, open)) })
}

// Whoever searches gets the answer to what they asked, however many ask at once, and none of a database that is closed.
func TestHolder_InParallel(t *testing.T) {
	t.Parallel()
	f := newFixture(t, openSQLite)
	for i := range byte(20) {
		f.client(fmt.Sprintf("client%d", i), i)
	}
	var group sync.WaitGroup
	for i := range 20 {
		id := fmt.Sprintf("client%d", i)
		cert := f.enroll(id, 1, byte(i), i)
		group.Go(func() {
			for range 20 {
				h, err := f.Holder(f.ctx(), id, cert.Thumbprint)
				if err != nil || h.Client.ID != id || h.Certificate.ClientID != id || h.Certificate.Thumbprint != cert.Thumbprint {
					t.Errorf("%s: %+v, %v", id, h, err)
				}
				if _, err := f.Holder(f.ctx(), "nobody", cert.Thumbprint); !errors.Is(err, ErrNotFound) {
					t.Errorf("nobody: %v", err)
				}
			}
		})
	}
	group.Wait()
	ok(t, f.Close())
	if h, err := f.Holder(t.Context(), "client1", [32]byte{}); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("a closed database answers %+v, %v", h, err)
	}
}

// What a token is decided by is read from indexes, which have all of it, and not from rows besides.
func TestHolder_ReadsNoRow(t *testing.T) {
	t.Parallel()
	f := newFixture(t, openSQLite)
	rows, err := f.reader.QueryContext(f.ctx(), "EXPLAIN QUERY PLAN "+queryHolderIndexed, "payments", []byte{1})
	plan, err := all(rows, err, func(r row) (line string, err error) {
		var id, parent, unused int
		return line, r.Scan(&id, &parent, &unused, &line)
	})
	ok(t, err)
	same(t, len(plan), 3)
	for i, want := range []string{"COVERING INDEX clients_standing (id=?)", "COVERING INDEX certificates_standing (thumbprint=?)", "PRIMARY KEY (id=?)"} {
		if !strings.Contains(plan[i], want) {
			t.Errorf("%q is not a search of %s", plan[i], want)
		}
	}
}

// A row of the driver is taken apart by its types, and what is of another type is an error and never zero.
func TestColumns(t *testing.T) {
	t.Parallel()
	c := columns{values: []driver.Value{int64(7), "a", []byte{1}, int64(1_000_000), nil, nil, nil, nil}}
	same(t, c.integer(), int64(7))
	same(t, c.text(), "a")
	same(t, c.bytes(), []byte{1})
	same(t, c.time(), time.Unix(1, 0).UTC())
	same(t, c.integer(), int64(0))
	same(t, c.text(), "")
	same(t, len(c.bytes()), 0)
	same(t, c.time(), time.Time{})
	ok(t, c.err)
	for name, read := range map[string]func(*columns){
		"integer": func(c *columns) { c.integer() }, "text": func(c *columns) { c.text() }, "bytes": func(c *columns) { c.bytes() }, "time": func(c *columns) { c.time() },
	} {
		c := columns{values: []driver.Value{true}}
		if read(&c); c.err == nil {
			t.Errorf("a truth is taken for %s", name)
		}
	}
	one := searcher{lists: map[string][]string{}}
	for i := range mostLists + 1 {
		text := fmt.Sprintf(`["s%d"]`, i)
		for range 2 {
			same(t, one.list(&columns{values: []driver.Value{text}}), []string{fmt.Sprint("s", i)})
		}
	}
	same(t, len(one.lists), 1)
	c = columns{values: []driver.Value{"no list"}}
	if one.list(&c); c.err == nil {
		t.Error("what is no list is taken for one")
	}
}

// Who waits behind a transaction that does not end is told so before the caller's own time is up, and may try again.
func TestTurnHasAnEnd(t *testing.T) {
	t.Parallel()
	f := newFixture(t, openSQLite)
	f.client("payments", 1)
	held, release := make(chan struct{}), make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		ok(t, f.Transact(f.ctx(), func(*Store) error {
			close(held)
			<-release
			return nil
		}))
	})
	<-held
	began := time.Now()
	err := f.DisableClient(f.ctx(), "payments")
	if waited := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || waited < patience || waited > 2*patience {
		t.Errorf("after %v: %v", waited, err)
	}
	close(release)
	group.Wait()
	ok(t, f.DisableClient(f.ctx(), "payments"))
}
