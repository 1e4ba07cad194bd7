// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"context"
	"crypto/tls"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/certbound/certbound/scripts/postgres"
)

// openPG opens a database with testKEK and closes it at once, and returns the error.
func openPG(t *testing.T, url string) error {
	t.Helper()
	s, err := Open(t.Context(), Config{URL: url, KEK: testKEK})
	if err != nil {
		return err
	}
	return s.Close()
}

// on runs statements in a database, as its superuser.
func on(t *testing.T, at string, statements ...string) string {
	t.Helper()
	u, err := url.Parse(at)
	ok(t, err)
	out, err := postgres.ForTest(t).Query(t.Context(), strings.TrimPrefix(u.Path, "/"), strings.Join(statements, ";"))
	ok(t, err)
	return out
}

// restrict are lines of a dump that differ each time.
var restrict = regexp.MustCompile(`(?m)^\\(un)?restrict .*$`)

// pgDump is all that is in a database.
func pgDump(t *testing.T, url string) string {
	t.Helper()
	bin, err := postgres.Find()
	ok(t, err)
	out, err := exec.CommandContext(t.Context(), filepath.Join(bin, "pg_dump"), "--dbname="+url).Output()
	ok(t, err)
	return restrict.ReplaceAllString(string(out), "")
}

// Replicas that start at once on an empty database make one of it.
func TestFirstStartsRace(t *testing.T) {
	t.Parallel()
	url := postgres.ForTest(t).Database(t)
	found, err := Exists(t.Context(), Config{URL: url})
	if found || err != nil {
		t.Errorf("an empty database: %v, %v", found, err)
	}
	stores := make([]*Store, 4)
	var wg sync.WaitGroup
	for i := range stores {
		wg.Go(func() { stores[i] = openURL(t, url, time.Now) })
	}
	wg.Wait()
	for i, s := range stores {
		_, err := s.AddClient(t.Context(), Client{ID: fmt.Sprint("c", i)}, nil)
		ok(t, err)
	}
	clients, err := stores[0].Clients(t.Context(), "", 10)
	ok(t, err)
	same(t, len(clients), len(stores))
	found, err = Exists(t.Context(), Config{URL: url})
	if !found || err != nil {
		t.Errorf("a database of ours: %v, %v", found, err)
	}
}

// What is not ours, not whole or newer is refused, and nothing of it changes.
func TestRefusedPostgres(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name       string
		ours       bool
		statements []string
		want       error
	}{
		{"another application's", false, []string{"CREATE TABLE users (id INT)"}, ErrForeign},
		{"another application's view", false, []string{"CREATE VIEW users AS SELECT 1"}, ErrForeign},
		{"another application's schema_version", false, []string{"CREATE TABLE schema_version (version INT, oldest INT)", "INSERT INTO schema_version VALUES (1, 1)"}, ErrForeign},
		{"another mark", true, []string{"UPDATE schema_version SET application = 7"}, ErrForeign},
		{"a newer schema", true, []string{"UPDATE schema_version SET version = 1000, oldest = 1000"}, ErrNewerSchema},
		{"no schema version", true, []string{"DELETE FROM schema_version"}, ErrDamaged},
		{"no state", true, []string{"DELETE FROM state"}, ErrDamaged},
		{"no table of the state", true, []string{"DROP TABLE state"}, ErrDamaged},
		{"another key", true, []string{`UPDATE state SET kek_check = '\x0011'`}, ErrWrongKEK},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			at := postgres.ForTest(t).Database(t)
			if test.ours {
				at = pgDatabase(t)
			}
			on(t, at, test.statements...)
			before := pgDump(t, at)
			err := openPG(t, at)
			want(t, err, test.want)
			if err != nil && !strings.Contains(err.Error(), strings.SplitN(at, "/", 4)[3][:10]) {
				t.Errorf("error %q does not name the database", err)
			}
			if pgDump(t, at) != before {
				t.Error("the database was changed")
			}
		})
	}
	t.Run("wrong key", func(t *testing.T) {
		t.Parallel()
		at := pgDatabase(t)
		before := pgDump(t, at)
		_, err := Open(t.Context(), Config{URL: at, KEK: bytes.Repeat([]byte{8}, kekSize)})
		want(t, err, ErrWrongKEK)
		if pgDump(t, at) != before {
			t.Error("the database was changed")
		}
	})
	t.Run("another schema of the database", func(t *testing.T) {
		t.Parallel()
		at := postgres.ForTest(t).Database(t)
		on(t, at, "CREATE TABLE users (id INT)", "CREATE SCHEMA own")
		ok(t, openPG(t, at+"&search_path=own"))
		same(t, on(t, at, "SELECT count(*) FROM own.state"), "1")
		if err := openPG(t, at+"&search_path=nowhere"); err == nil || !strings.Contains(err.Error(), "search_path") {
			t.Errorf("without a schema: %v", err)
		}
	})
	t.Run("not UTF-8", func(t *testing.T) {
		t.Parallel()
		at := postgres.ForTest(t).Database(t)
		u, err := url.Parse(at)
		ok(t, err)
		name := strings.TrimPrefix(u.Path, "/")
		_, err = postgres.ForTest(t).Query(t.Context(), "postgres", "DROP DATABASE "+name)
		ok(t, err)
		_, err = postgres.ForTest(t).Query(t.Context(), "postgres", "CREATE DATABASE "+name+" TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
		ok(t, err)
		if err := openPG(t, at); err == nil || !strings.Contains(err.Error(), "LATIN1") {
			t.Errorf("error is %v", err)
		}
	})
}

// A newer program has been here that says that this one may still run: it does, and leaves the schema alone.
func TestNewerSchemaThatMayRun(t *testing.T) {
	everyDatabase(t, func(t *testing.T, open opener) {
		s := open(t, time.Now)
		_, err := s.writer.ExecContext(t.Context(), "UPDATE schema_version SET version = 1000, oldest = 1")
		ok(t, err)
		ok(t, s.dialect.prepare(t.Context(), s, testSteps(t, s)))
		ok(t, s.dialect.upgrade(t.Context(), s.writer, testSteps(t, s)))
		_, err = s.AddClient(t.Context(), Client{ID: "x"}, nil)
		ok(t, err)
		var got schema
		ok(t, s.reader.QueryRowContext(t.Context(), querySchema).Scan(&got.version, &got.oldest))
		same(t, []int{got.version, got.oldest}, []int{1000, 1})
		_, err = s.writer.ExecContext(t.Context(), "UPDATE schema_version SET oldest = $1", len(testSteps(t, s))+1)
		ok(t, err)
		want(t, s.dialect.prepare(t.Context(), s, testSteps(t, s)), ErrNewerSchema)
	})
}

func testSteps(t *testing.T, s *Store) []step {
	t.Helper()
	steps, err := schemaSteps(s.Dialect())
	ok(t, err)
	return steps
}

// An older schema is brought up to date, once, however many replicas start, and says who may run on it then.
func TestUpgrade(t *testing.T) {
	everyDatabase(t, func(t *testing.T, open opener) {
		s := open(t, time.Now)
		steps := testSteps(t, s)
		n := len(steps)
		steps = append(steps, step{"CREATE TABLE one (id BIGINT); INSERT INTO one VALUES (1)", 1}, step{"CREATE TABLE two (id BIGINT)", n + 1})
		replicas := 1
		if s.Dialect() == "postgres" {
			replicas = 4
		}
		var wg sync.WaitGroup
		for range replicas {
			wg.Go(func() {
				p, err := s.dialect.connect()
				if err == nil {
					defer p.writer.Close()
					defer p.reader.Close()
					defer p.shared.Close()
					err = s.dialect.upgrade(t.Context(), p.writer, steps)
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		var got schema
		ok(t, s.reader.QueryRowContext(t.Context(), querySchema).Scan(&got.version, &got.oldest))
		same(t, []int{got.version, got.oldest}, []int{n + 2, n + 1})
		var rows int
		ok(t, s.reader.QueryRowContext(t.Context(), "SELECT count(*) FROM one").Scan(&rows))
		same(t, rows, 1)
		// A step that fails leaves nothing behind.
		steps = append(steps, step{"CREATE TABLE three (id BIGINT); SELECT nothing", 1})
		if s.dialect.upgrade(t.Context(), s.writer, steps) == nil {
			t.Error("a step without sense was applied")
		}
		if s.reader.QueryRowContext(t.Context(), "SELECT count(*) FROM three").Scan(&rows) == nil {
			t.Error("half a step was applied")
		}
	})
}

// The two schemas are one: the same columns, nullable alike, and the same indexes, but for the one that only SQLite is told
// to use; what is compared is compared by bytes.
func TestSchemasAreAlike(t *testing.T) {
	t.Parallel()
	lite, pg := openSQLite(t, time.Now), openPostgres(t, time.Now)
	read := func(s *Store, query string) []string {
		t.Helper()
		rows, err := s.reader.QueryContext(t.Context(), query)
		list, err := all(rows, err, func(r row) (line string, err error) { return line, r.Scan(&line) })
		ok(t, err)
		slices.Sort(list)
		return list
	}
	same(t, read(pg, `SELECT table_name || '.' || column_name || ' ' || CASE is_nullable WHEN 'NO' THEN 'needed' ELSE '' END FROM information_schema.columns
			WHERE table_schema = current_schema() AND table_name <> 'schema_version'`),
		read(lite, `SELECT m.name || '.' || c.name || ' ' || CASE WHEN c."notnull" OR c.pk THEN 'needed' ELSE '' END FROM sqlite_master m, pragma_table_info(m.name) c
			WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%' AND m.name <> 'schema_version'`))
	same(t, read(pg, `SELECT indexname FROM pg_indexes i WHERE schemaname = current_schema() AND NOT EXISTS
			(SELECT 1 FROM pg_constraint WHERE conname = i.indexname)`),
		read(lite, `SELECT name FROM sqlite_master WHERE type = 'index' AND name NOT LIKE 'sqlite_%' AND name NOT LIKE '%_standing'`))
	same(t, read(pg, `SELECT count(*)::text FROM pg_constraint WHERE contype IN ('p', 'u') AND connamespace = current_schema()::regnamespace`),
		read(lite, `SELECT cast((SELECT count(DISTINCT m.name) FROM sqlite_master m, pragma_table_info(m.name) c WHERE m.type = 'table' AND c.pk > 0) +
			(SELECT count(*) FROM sqlite_master m, pragma_index_list(m.name) l WHERE m.type = 'table' AND l.origin = 'u') AS TEXT)`))
	same(t, len(read(pg, `SELECT table_name || '.' || column_name FROM information_schema.columns
		WHERE table_schema = current_schema() AND data_type = 'text' AND collation_name IS DISTINCT FROM 'C'`)), 0)
}

// Whatever is wrong with a URL or behind it, its password is in no error and no log, and the answer comes soon.
func TestPasswordIsNotShown(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	closed := l.Addr().String()
	ok(t, l.Close())
	right, err := url.Parse(pgDatabase(t))
	ok(t, err)
	const password = "s3cr3t%2Fp%40ss"
	for _, bad := range []string{
		"postgres://user:" + password + "@" + closed + "/db", "postgres://user:" + password + "@" + right.Host + right.Path + "?sslmode=disable",
		"postgres://user:" + password + "@host:port/db", "postgres://user:" + password + "@[::1/db", "postgres://user:" + password + "@a b/db",
		"postgres://user:" + password + "@" + closed + "/db?sslmode=so", "postgres://user:" + password + "%@x/db", "postgres://" + closed + "/db?user=u&password=" + password + "&connect_timeout=x",
		"postgres://" + closed + "/db?user=u&password=" + password, "mysql://user:" + password + "@x/db", "user=u password=" + password + " host=x",
		"postgres://user:" + password + "@" + closed + "/db?sslmode=verify-full&sslrootcert=/nonexistent/ca.pem",
	} {
		var log bytes.Buffer
		_, err := Open(t.Context(), Config{URL: bad, KEK: testKEK, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		if err == nil {
			t.Fatalf("%s was opened", bad)
		}
		for _, secret := range []string{"s3cr3t", "p@ss", "p%40ss"} {
			if strings.Contains(err.Error(), secret) || strings.Contains(log.String(), secret) || strings.Contains(Place(Config{URL: bad}), secret) {
				t.Errorf("the password of %s is in %q or %q", bad, err, log.String())
			}
		}
		if _, err := Exists(t.Context(), Config{URL: bad}); err == nil || strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("%s: %v", bad, err)
		}
	}
	same(t, Place(Config{URL: "postgres://user:x@a:1,b:2/db?sslmode=require"}), "postgres://user@a:1,b:2/db")
	_, err = Open(t.Context(), Config{URL: "postgres://u@" + closed + "/db", KEK: testKEK})
	want(t, err, ErrUnavailable)
}

// What the role and the server have set does not matter: every connection is made safe.
func TestSessions(t *testing.T) {
	t.Parallel()
	at := pgDatabase(t)
	s := openURL(t, at+"&options=-csynchronous_commit%3Doff%20-cclient_min_messages%3Derror%20-cdefault_transaction_isolation%3Dserializable", time.Now)
	for name, db := range map[string]*sql.DB{"writer": s.writer, "side": s.side, "reader": s.reader, "shared": s.shared} {
		for setting, want := range map[string]string{
			"lock_timeout": "1s", "idle_in_transaction_session_timeout": "5s", "statement_timeout": "15s", "synchronous_commit": "on",
			"client_min_messages": "warning", "default_transaction_isolation": "read committed", "application_name": "certbound",
		} {
			var got string
			if err := db.QueryRowContext(t.Context(), "SELECT current_setting($1)", setting).Scan(&got); err != nil || got != want {
				t.Errorf("%s: %s is %s, %v, want %s", name, setting, got, err, want)
			}
		}
	}
	// A transaction sets them again, for a pooler may have given it another session.
	for _, setting := range []string{"synchronous_commit = off", "lock_timeout = 0", "idle_in_transaction_session_timeout = 0"} {
		_, err := s.writer.ExecContext(t.Context(), "SET "+setting)
		ok(t, err)
	}
	ok(t, s.change(t.Context(), func(c *change) error {
		var got string
		err := c.tx.QueryRowContext(c.ctx, `SELECT current_setting('synchronous_commit') || current_setting('lock_timeout') ||
			current_setting('idle_in_transaction_session_timeout')`).Scan(&got)
		same(t, got, "on1s5s")
		return err
	}))
	s = openURL(t, at+"&options=-csynchronous_commit%3Dremote_apply", time.Now)
	var got string
	ok(t, s.side.QueryRowContext(t.Context(), "SHOW synchronous_commit").Scan(&got))
	same(t, got, "remote_apply")
	total := s.writer.Stats().MaxOpenConnections + s.side.Stats().MaxOpenConnections + s.reader.Stats().MaxOpenConnections + s.shared.Stats().MaxOpenConnections
	same(t, total, leastConnections-1)
}

// A role that may not do what is needed is told what to grant.
func TestMissingRights(t *testing.T) {
	t.Parallel()
	at := postgres.ForTest(t).Database(t)
	name := "role_" + strings.ToLower(strings.TrimPrefix(t.Name(), "Test"))
	on(t, at, "CREATE ROLE "+name+" LOGIN PASSWORD 'x'", "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
	t.Cleanup(func() { postgres.ForTest(t).Query(context.Background(), "postgres", "DROP ROLE "+name) })
	u, err := url.Parse(at)
	ok(t, err)
	u.User = url.UserPassword(name, "x")
	if err := openPG(t, u.String()); err == nil || !strings.Contains(err.Error(), "GRANT CREATE ON SCHEMA") {
		t.Errorf("without a schema to write to: %v", err)
	}
	on(t, at, "CREATE SCHEMA own AUTHORIZATION "+name, "ALTER ROLE "+name+" SET search_path = own")
	ok(t, openPG(t, u.String())) // which needs no more than that
	on(t, at, "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
	if err := openPG(t, u.String()); err == nil || !strings.Contains(err.Error(), "GRANT EXECUTE ON FUNCTION pg_control_system()") {
		t.Errorf("without the right to ask: %v", err)
	}
	on(t, at, "GRANT EXECUTE ON FUNCTION pg_control_system() TO "+name)
	ok(t, openPG(t, u.String()))
	on(t, at, "DROP OWNED BY "+name)
}

// holdForSession takes the writers' turn in a session that is none of a Store's, and that nothing ends, until release is
// called.
func holdForSession(t *testing.T, s *Store) (release func()) {
	t.Helper()
	db := s.dialect.(*postgresql).open(1)
	t.Cleanup(func() { db.Close() })
	_, err := db.ExecContext(t.Context(), "SELECT pg_advisory_lock($1)", int64(applicationID))
	ok(t, err)
	return func() { db.Close() }
}

// A turn that does not come in time is waited for again, and until the caller leaves. What needs no turn does not wait.
func TestWaitForTurn(t *testing.T) {
	t.Parallel()
	s := openPostgres(t, time.Now)
	ok(t, s.BeginLease(t.Context(), Lease{Replica: "a", Incarnation: 1}))
	release := holdForSession(t, s)
	began := time.Now()
	done := make(chan error, 1)
	go func() {
		_, err := s.AddClient(t.Context(), Client{ID: "x"}, nil)
		done <- err
	}()
	// Meanwhile leases are renewed, and everything is read.
	_, err := s.RenewLease(t.Context(), LeaseRenewal{Replica: "a", Incarnation: 1})
	ok(t, err)
	_, err = s.Client(t.Context(), "x")
	want(t, err, ErrNotFound)
	_, err = s.Leases(t.Context())
	ok(t, err)
	_, err = s.NextCRLNumber(t.Context())
	ok(t, err)
	select {
	case err := <-done:
		t.Errorf("it did not wait: %v", err)
	case <-time.After(time.Until(began.Add(2500 * time.Millisecond))): // more than a lock is waited for
	}
	release()
	ok(t, <-done)

	release = holdForSession(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began = time.Now()
	want(t, s.DisableClient(ctx, "x"), context.DeadlineExceeded)
	if since := time.Since(began); since > patience-time.Second {
		t.Errorf("it waited %v for a caller who had left", since)
	}
	release()

	// Whoever holds it and does nothing is thrown out by the server, before others give up.
	p := s.dialect.(*postgresql)
	db := p.open(1)
	t.Cleanup(func() { db.Close() })
	tx, err := db.BeginTx(t.Context(), nil)
	ok(t, err)
	defer tx.Rollback()
	ok(t, p.turn(t.Context(), tx))
	ok(t, s.DisableClient(t.Context(), "x"))
}

// The wait for a turn has an end.
func TestTurnNeverComes(t *testing.T) {
	t.Parallel()
	s := openPostgres(t, time.Now)
	holdForSession(t, s)
	began := time.Now()
	_, err := s.AddClient(t.Context(), Client{ID: "x"}, nil)
	want(t, err, ErrUnavailable)
	if since := time.Since(began); since < patience || since > patience+6*time.Second {
		t.Errorf("it gave up after %v", since)
	}
	if errors.Is(err, ErrUnknown) || !Unavailable(err) {
		t.Errorf("error is %v", err)
	}
}

// Each start of a version is heard of by those who listen, however often the connection breaks.
func TestListen(t *testing.T) {
	t.Parallel()
	at := pgDatabase(t)
	a, b := openURL(t, at, time.Now), openURL(t, at, time.Now)
	ctx, cancel := context.WithCancel(t.Context())
	heard := make(chan struct{}, 1000)
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.Listen(ctx, func() { heard <- struct{}{} })
	}()
	await := func(what string) {
		t.Helper()
		select {
		case <-heard:
		case <-time.After(10 * time.Second):
			t.Fatalf("%s was not heard of", what)
		}
	}
	await("that it listens")
	for i := range 3 {
		_, err := b.AddClient(t.Context(), Client{ID: fmt.Sprint("c", i)}, nil)
		ok(t, err)
		await("a version")
		_, err = b.NextCRLNumber(t.Context()) // no version
		ok(t, err)
		same(t, on(t, at, "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND query = 'LISTEN certbound'"), "1")
		await("the new connection")
	}
	cancel()
	<-done
	same(t, len(heard), 0)
}

// Where there is nothing to listen to, nothing fails.
func TestListenToNothing(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	defer l.Close()
	p, err := newPostgres(Config{URL: "postgres://u:s3cr3t@" + l.Addr().String() + "/db"})
	ok(t, err)
	var log bytes.Buffer
	s := &Store{core: &core{dialect: p, logger: slog.New(slog.NewTextHandler(&log, nil))}}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	s.Listen(ctx, func() { t.Error("something was heard") })
	if !strings.Contains(log.String(), "not told of changes") || strings.Contains(log.String(), "s3cr3t") {
		t.Errorf("log is %s", log.String())
	}
	lite := openSQLite(t, time.Now)
	ctx, cancel = context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	lite.Listen(ctx, func() { t.Error("something was heard") })
}

// What warns is any way to a server on another machine that is not verified; nothing warns of one on this machine.
func TestDoubt(t *testing.T) {
	t.Parallel()
	for text, doubted := range map[string]bool{
		"":                          false,
		"postgres://u@db.example/n": true,
		"postgres://u@db.example/n?sslmode=prefer":                true,
		"postgres://u@db.example/n?sslmode=disable":               true,
		"postgres://u@db.example/n?sslmode=require":               true,
		"postgres://u@db.example/n?sslmode=verify-ca":             true,
		"postgres://u@db.example/n?sslmode=verify-full":           false,
		"postgres://u@127.0.0.1/n":                                false,
		"postgres://u@localhost/n":                                false,
		"postgres://u@[::1]/n?sslmode=disable":                    false,
		"postgres:///n?host=/run/postgresql&user=u":               false,
		"postgres://u@localhost,db.example/n":                     true,
		"postgres://u@localhost,db.example/n?sslmode=verify-full": false,
		"postgres://u@192.0.2.1/n?sslmode=allow":                  true,
		"postgres://u:w0rd@db.example/n?sslmode=nonsense":         false, // refused elsewhere
	} {
		why := Doubt(Config{URL: text})
		if (why != "") != doubted {
			t.Errorf("%s: %q", text, why)
		}
		if doubted && !strings.Contains(why, "sslmode=verify-full") {
			t.Errorf("%s: %q does not name the parameter", text, why)
		}
	}
}

// The hint names the trouble that the server's answer tells, and the server.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	for words, err := range map[string]error{
		"refuses the login":       fmt.Errorf("%w: %w", ErrUnavailable, &pgconn.PgError{Code: "28P01"}),
		"CREATE DATABASE":         fmt.Errorf("%w: %w", ErrUnavailable, &pgconn.PgError{Code: "3D000"}),
		"does not take this":      fmt.Errorf("%w: %w", ErrUnavailable, &pgconn.PgError{Code: "57P03"}),
		"sslrootcert":             fmt.Errorf("%w: %w", ErrUnavailable, &tls.CertificateVerificationError{Err: errors.New("unknown")}),
		"nobody waits for it":     fmt.Errorf("%w: %w", ErrUnavailable, syscall.ECONNREFUSED),
		"empty and its own":       fmt.Errorf("%w: tables", ErrForeign),
		"certbound store restore": fmt.Errorf("%w: no version", ErrDamaged),
	} {
		e := &PlaceError{Doing: "open the database", Place: "postgres://u@h:5432/n", Server: true, Err: err}
		hint := e.Hint()
		if !strings.Contains(hint, words) || errors.Is(err, ErrUnavailable) && !strings.Contains(hint, "postgres://u@h:5432/n") {
			t.Errorf("%v: the hint is %q", err, hint)
		}
		e.Server = false
		if e.Hint() != "" {
			t.Errorf("%v: a file has the hint %q", err, e.Hint())
		}
	}
}
