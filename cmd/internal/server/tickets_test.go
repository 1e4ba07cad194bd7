// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/certbound/certbound/cmd/internal/config"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
)

// sharer is one server that shares tickets, with a clock.
type sharer struct {
	*sharedTickets
	public, mtls tls.Config
}

// ticketWorld is a database, opened once by each of two servers, and the time.
type ticketWorld struct {
	stores []*store.Store
	path   string

	mu  sync.Mutex
	now time.Time
}

func newTicketWorld(t *testing.T) *ticketWorld {
	t.Helper()
	w := &ticketWorld{path: filepath.Join(t.TempDir(), "certbound.db"), now: time.Date(2030, 1, 1, 12, 20, 0, 0, time.UTC)}
	for range 2 {
		db, err := store.Open(t.Context(), store.Config{Path: w.path, KEK: make([]byte, 32)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		})
		w.stores = append(w.stores, db)
	}
	return w
}

func (w *ticketWorld) clock() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

func (w *ticketWorld) advance(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

func noScope() (string, error) { return "", nil }

// server is one that goes by what db says.
func (w *ticketWorld) server(t *testing.T, db ticketStore, scope func() (string, error)) *sharer {
	t.Helper()
	s := &sharer{}
	s.sharedTickets = newSharedTickets(db, scope, slog.New(slog.DiscardHandler), w.clock,
		map[string]*mtls.Tickets{"public": mtls.NewTickets(&s.public), "mtls": mtls.NewTickets(&s.mtls)})
	return s
}

// sealed is a ticket of a session that begins now.
func sealed(t *testing.T, cfg *tls.Config) []byte {
	t.Helper()
	state, err := tls.ParseSessionState(slices.Concat(
		[]byte{3, 4, 1, 0x13, 1}, make([]byte, 8), []byte{1, 's'}, make([]byte, 3+2), make([]byte, 3+3), // nothing in it
	))
	if err != nil {
		t.Fatal(err)
	}
	ticket, err := cfg.EncryptTicket(tls.ConnectionState{}, state)
	if err != nil {
		t.Fatal(err)
	}
	return ticket
}

func wantResumes(t *testing.T, what string, cfg *tls.Config, ticket []byte, want bool) {
	t.Helper()
	state, err := cfg.DecryptTicket(ticket, tls.ConnectionState{})
	if err != nil {
		t.Fatal(err)
	}
	if got := state != nil; got != want {
		t.Errorf("%s: resumes %t, want %t", what, got, want)
	}
}

// A1: a session that began at one server resumes at the other, at the same listener only, and for two hours at most.
func TestSharedTickets(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	w := newTicketWorld(t)
	one, two := w.server(t, w.stores[0], noScope), w.server(t, w.stores[1], noScope)
	alone := sealed(t, &one.mtls)
	wantResumes(t, "before anything is shared", &two.mtls, alone, false)
	one.refresh(ctx)
	two.refresh(ctx)
	wantResumes(t, "from before", &one.mtls, alone, false)
	ticket := sealed(t, &one.mtls)
	wantResumes(t, "at once", &two.mtls, ticket, true)
	wantResumes(t, "at the other listener", &one.public, ticket, false)
	wantResumes(t, "at the other's other listener", &two.public, ticket, false)
	wantResumes(t, "a public one", &two.public, sealed(t, &one.public), true)

	refresh := func(d time.Duration) {
		w.advance(d)
		two.refresh(ctx)
		one.refresh(ctx)
	}
	refresh(40 * time.Minute) // 13:00
	later := sealed(t, &two.mtls)
	wantResumes(t, "in the next hour", &two.mtls, ticket, true)
	wantResumes(t, "of the next hour", &one.mtls, later, true)
	refresh(59*time.Minute + 59*time.Second)
	wantResumes(t, "just before two hours", &one.mtls, ticket, true)
	refresh(time.Second) // 14:00
	for _, s := range []*sharer{one, two} {
		wantResumes(t, "after two hours", &s.mtls, ticket, false)
		wantResumes(t, "of the hour before", &s.mtls, later, true)
	}
}

// A1: who has the database and not the key-encryption key resumes nothing: no 32 bytes in it are a key.
func TestDatabaseWithoutTheKEKResumesNothing(t *testing.T) {
	t.Parallel()
	w := newTicketWorld(t)
	one := w.server(t, w.stores[0], noScope)
	one.refresh(t.Context())
	ticket := sealed(t, &one.mtls)
	keys, err := w.stores[0].TicketKeys(t.Context(), "mtls", w.clock())
	if err != nil {
		t.Fatal(err)
	}
	var with tls.Config
	mtls.NewTickets(&with).Set(keys[0].Key)
	wantResumes(t, "with the key", &with, ticket, true) // or this test shows nothing
	if _, err := store.Open(t.Context(), store.Config{Path: w.path, KEK: []byte(strings.Repeat("x", 32))}); !errors.Is(err, store.ErrWrongKEK) {
		t.Errorf("opened with another key-encryption key: %v", err)
	}
	rows, err := w.stores[0].DB().QueryContext(t.Context(), `SELECT sealed FROM ticket_keys`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	n := 0
	for rows.Next() {
		var row []byte
		if err := rows.Scan(&row); err != nil {
			t.Fatal(err)
		}
		for i := range len(row) - 31 {
			var without tls.Config
			mtls.NewTickets(&without).Set([32]byte(row[i:]))
			wantResumes(t, "with what lies in the database", &without, ticket, false)
			n++
		}
	}
	if err := rows.Err(); err != nil || n < 20 {
		t.Fatalf("tried %d keys, %v", n, err)
	}
}

// A1: a reset anywhere, and a change of trust, end at once what was sealed before, here; and elsewhere as soon as the
// change is known. What was read before it does not bring it back.
func TestSharedTicketsAreReset(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	w := newTicketWorld(t)
	slow := &slowTickets{ticketStore: w.stores[1]}
	one, two := w.server(t, w.stores[0], noScope), w.server(t, slow, noScope)
	refresh := func() {
		one.refresh(ctx)
		two.refresh(ctx)
	}
	for name, reset := range map[string]func() error{
		"reset": func() error { return w.stores[0].ResetTicketKeys(ctx) },
		"trust": func() error {
			return w.stores[0].AddTrust(ctx, store.Trust{Name: "one", Anchors: [][]byte{[]byte("a")}, Revocation: "off"})
		},
	} {
		refresh()
		ticket := sealed(t, &one.mtls)
		wantResumes(t, name+": before", &two.mtls, ticket, true)
		if err := reset(); err != nil {
			t.Fatal(err)
		}
		wantResumes(t, name+": here", &one.mtls, ticket, false)
		for _, c := range []store.Change{{}, {Trusts: true, Keys: true, ClientIDs: []string{"x"}}} {
			w.stores[1].Announce(c)
		}
		wantResumes(t, name+": elsewhere, unknown yet", &two.mtls, ticket, true)
		// It becomes known while the keys of before are being read.
		slow.meanwhile = func() { w.stores[1].Announce(store.Change{Tickets: true}) }
		slow.stale = two.listeners[0].held
		if two.listeners[0].name != "mtls" {
			slow.stale = two.listeners[1].held
		}
		two.refresh(ctx)
		wantResumes(t, name+": elsewhere", &two.mtls, ticket, false)
		wantResumes(t, name+": elsewhere, what is sealed then", &one.mtls, sealed(t, &two.mtls), false)
		refresh()
		wantResumes(t, name+": after", &two.mtls, ticket, false)
		wantResumes(t, name+": what is sealed after", &two.mtls, sealed(t, &one.mtls), true)
	}
	ticket := sealed(t, &one.mtls)
	w.stores[1].Announce(store.Change{Full: true})
	wantResumes(t, "anything may have changed", &two.mtls, ticket, false)
	select {
	case <-two.wake:
	default:
		t.Error("nobody is told to read again")
	}
}

// A server that shares no keys makes new ones of its own when those of all were reset, and when it was behind for so long that
// nobody remembers what was changed.
func TestOwnTicketsAreReset(t *testing.T) {
	t.Parallel()
	s := &service{}
	cfg := new(tls.Config)
	s.tickets = []*mtls.Tickets{mtls.NewTickets(cfg)}
	for name, c := range map[string]store.Change{"reset": {Tickets: true}, "anything may have changed": {Full: true}} {
		ticket := sealed(t, cfg)
		s.forgetTickets(store.Change{Trusts: true, Keys: true, Denials: true})
		wantResumes(t, name+": before", cfg, ticket, true)
		s.forgetTickets(c)
		wantResumes(t, name, cfg, ticket, false)
	}
	s.ticketing = &sharedTickets{} // it sees to it itself
	ticket := sealed(t, cfg)
	s.forgetTickets(store.Change{Tickets: true, Full: true})
	wantResumes(t, "shared", cfg, ticket, true)
}

// slowTickets lets something happen, once, when keys have been read and before they are returned.
type slowTickets struct {
	ticketStore
	meanwhile func()
	stale     []store.TicketKey
	err       error
}

func (s *slowTickets) TicketKeys(ctx context.Context, listener string, now time.Time) ([]store.TicketKey, error) {
	if s.err != nil {
		return nil, s.err
	}
	if act := s.meanwhile; act != nil && listener == "mtls" {
		s.meanwhile = nil
		act()
		return s.stale, nil
	}
	return s.ticketStore.TicketKeys(ctx, listener, now)
}

// While the database cannot be read, keys live no longer than they may; then a listener has its own, which live no longer
// either.
func TestSharedTicketsWithoutTheDatabase(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	w := newTicketWorld(t)
	db := &slowTickets{ticketStore: w.stores[0]}
	one, two := w.server(t, db, noScope), w.server(t, w.stores[1], noScope)
	one.refresh(ctx)
	two.refresh(ctx)
	db.err = errors.New("down")
	ticket := sealed(t, &one.mtls)
	step := func(d time.Duration) { w.advance(d); one.refresh(ctx) }
	step(time.Hour)
	wantResumes(t, "after an hour", &one.mtls, ticket, true)
	wantResumes(t, "after an hour, elsewhere", &two.mtls, sealed(t, &one.mtls), true)
	step(39*time.Minute + 59*time.Second) // 13:59:59
	wantResumes(t, "just before two", &one.mtls, ticket, true)
	step(time.Second)
	wantResumes(t, "after two", &one.mtls, ticket, false)
	own := sealed(t, &one.mtls)
	step(59 * time.Minute)
	wantResumes(t, "a key of its own", &one.mtls, own, true)
	wantResumes(t, "a key of its own, elsewhere", &two.mtls, own, false)
	step(time.Minute)
	wantResumes(t, "a key of its own, after an hour", &one.mtls, own, false)
	db.err = nil
	one.refresh(ctx)
	two.refresh(ctx)
	wantResumes(t, "when it is back", &two.mtls, sealed(t, &one.mtls), true)
}

// Servers whose files hold other authorities share nothing; nor does one share with what it was before they changed.
func TestTicketScope(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, content string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	of := func(trusts ...config.Trust) string {
		t.Helper()
		scope, err := ticketScope(trusts)()
		if err != nil {
			t.Fatal(err)
		}
		return scope
	}
	a, b := file("a", "one"), file("b", "two")
	scopes := []string{
		of(), of(config.Trust{Name: "x", CAFile: a}), of(config.Trust{Name: "y", CAFile: a}), of(config.Trust{Name: "x", CAFile: b}),
		of(config.Trust{Name: "x", CAFile: a}, config.Trust{Name: "y", CAFile: b}),
	}
	if slices.Sort(scopes); len(slices.Compact(slices.Clone(scopes))) != len(scopes) || scopes[0] != "" {
		t.Errorf("scopes %q", scopes)
	}
	x := config.Trust{Name: "x", CAFile: a}
	before := of(x)
	if of(x) != before {
		t.Error("the same files, another scope")
	}
	file("a", "three")
	if of(x) == before {
		t.Error("other contents, the same scope")
	}
	if _, err := ticketScope([]config.Trust{{Name: "x", CAFile: filepath.Join(dir, "none")}})(); err == nil {
		t.Error("a file that is not there")
	}

	ctx := t.Context()
	w := newTicketWorld(t)
	scope := "/1"
	var failed error
	one := w.server(t, w.stores[0], func() (string, error) { return "/1", nil })
	two := w.server(t, w.stores[1], func() (string, error) { return scope, failed })
	one.refresh(ctx)
	two.refresh(ctx)
	ticket := sealed(t, &one.mtls)
	wantResumes(t, "one scope", &two.mtls, ticket, true)
	failed = errors.New("unreadable")
	two.refresh(ctx)
	wantResumes(t, "a scope that is not known", &two.mtls, ticket, true)
	failed, scope = nil, "/2"
	two.refresh(ctx)
	wantResumes(t, "another scope", &two.mtls, ticket, false)
	wantResumes(t, "of another scope", &one.mtls, sealed(t, &two.mtls), false)
}

// countedTickets counts readings, with keys of its own making.
type countedTickets struct{ reads atomic.Int64 }

func (c *countedTickets) OnChange(func(store.Change)) {}

func (c *countedTickets) TicketKeys(_ context.Context, _ string, now time.Time) ([]store.TicketKey, error) {
	c.reads.Add(1)
	return []store.TicketKey{{StartedAt: now.Truncate(time.Hour), Key: [32]byte{1, byte(now.Hour())}}}, nil
}

// The keys are read when a new hour begins, when they were reset, and each minute, until the service stops.
func TestSharedTicketsRun(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(30 * time.Second) // off the full minute
		db := &countedTickets{}
		var cfg tls.Config
		s := newSharedTickets(db, noScope, slog.New(slog.DiscardHandler), time.Now, map[string]*mtls.Tickets{"mtls": mtls.NewTickets(&cfg)})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { s.run(ctx); close(done) }()
		synctest.Wait()
		if db.reads.Load() != 1 {
			t.Errorf("read %d times at the start", db.reads.Load())
		}
		s.forget(store.Change{Tickets: true})
		synctest.Wait()
		if db.reads.Load() != 2 {
			t.Errorf("read %d times after a reset", db.reads.Load())
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if db.reads.Load() != 12 {
			t.Errorf("read %d times in ten minutes", db.reads.Load())
		}
		time.Sleep(time.Until(time.Now().Truncate(time.Hour).Add(time.Hour)) - time.Nanosecond)
		synctest.Wait()
		ticket, before := sealed(t, &cfg), db.reads.Load()
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if db.reads.Load() != before+1 {
			t.Error("not read when the hour began")
		}
		wantResumes(t, "when a new key has come", &cfg, ticket, false)
		cancel()
		<-done
	})
}

// A1: a restarted service resumes what it began before only if it shares its tickets; a reset ends that too.
func TestSharedTicketsOfTheService(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{false, true} {
		cfg := testConfig(t, t.TempDir())
		cfg.TLS.SharedTickets = shared
		in := start(t, cfg)
		in.addLedger()
		cert := in.enrolled("payments")
		cache := tls.NewLRUClientSessionCache(4)
		connect := func() bool {
			t.Helper()
			conn, err := tls.Dial("tcp", strings.TrimPrefix(in.mtls, "https://"), &tls.Config{
				RootCAs: in.roots(), ServerName: "localhost", Certificates: []tls.Certificate{cert}, ClientSessionCache: cache,
			})
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := io.WriteString(conn, "GET "+pathRoots+" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, conn); err != nil {
				t.Fatal(err)
			}
			return conn.ConnectionState().DidResume
		}
		if connect() || !connect() {
			t.Fatal("the second connection did not resume: this test shows nothing")
		}
		_ = in.stop()
		in = start(t, cfg)
		if got := connect(); got != shared {
			t.Errorf("shared %t: resumed %t after a restart", shared, got)
		}
		if !connect() {
			t.Fatal("the second connection did not resume")
		}
		reset := func() {
			t.Helper()
			res, err := in.socketClient().Post("http://certbound/admin/v1/tickets/reset", "", nil)
			if err != nil {
				t.Fatal(err)
			}
			_ = res.Body.Close()
			if res.StatusCode != http.StatusOK {
				t.Errorf("shared %t: status %d of a reset", shared, res.StatusCode)
			}
		}
		if reset(); connect() {
			t.Errorf("shared %t: resumed after a reset", shared)
		}
		reset()
		_ = in.stop()
		in = start(t, cfg)
		if connect() {
			t.Errorf("shared %t: resumed after a reset and a restart", shared)
		}
		_ = in.stop()
	}
}
