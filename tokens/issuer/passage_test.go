// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/tokens"
)

// turnstile is a Gate that counts who is inside.
type turnstile struct {
	mu      sync.Mutex
	live    error
	pass    error
	passing func() // called within Pass, once it is decided
	passed  int
	left    chan struct{} // gets a value for each Leave
}

func newTurnstile() *turnstile { return &turnstile{left: make(chan struct{}, 16)} }

func (g *turnstile) Live() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.live
}

func (g *turnstile) Pass() (Passage, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.pass != nil {
		return nil, g.pass
	}
	g.passed++
	if g.passing != nil {
		g.passing()
	}
	return g, nil
}

func (g *turnstile) Leave() { g.left <- struct{}{} }

func (g *turnstile) change(f func(g *turnstile)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f(g)
}

// want fails the test unless so many have passed and left.
func (g *turnstile) want(t *testing.T, passed, left int) {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.passed != passed || len(g.left) != left {
		t.Errorf("%d passed and %d left, want %d and %d", g.passed, len(g.left), passed, left)
	}
}

// closedFor is the error of a Gate that knows how long it will be closed.
type closedFor time.Duration

func (c closedFor) Error() string             { return "closed" }
func (c closedFor) RetryAfter() time.Duration { return time.Duration(c) }

// behind returns a service with a turnstile.
func behind(t *testing.T, edit ...func(*Config)) (*service, *turnstile) {
	t.Helper()
	g := newTurnstile()
	return newService(t, append(edit, func(c *Config) { c.Gate = g })...), g
}

// count returns how often somebody was looked up.
func (r *registry) count() (n int) {
	r.change(func(r *registry) { n = r.lookups })
	return n
}

// While the gate is closed nobody is looked up, authenticated or recorded; the answer says when to come back (RFC 9110,
// Section 10.2.3).
func TestGateClosedAtTheEntry(t *testing.T) {
	t.Parallel()
	s, g := behind(t)
	cert := s.enrol(t, "feed")
	s.post(t, &cert, ask("feed")).wantToken(t)
	for name, tc := range map[string]struct {
		err  error
		wait string
	}{
		"says nothing":       {errDown, "1"},
		"says less than one": {closedFor(0), "1"},
		"says no whole ones": {closedFor(1100 * time.Millisecond), "2"},
		"says three":         {closedFor(3 * time.Second), "3"},
	} {
		g.change(func(g *turnstile) { g.live = tc.err })
		records, lookups, refused := s.journal.count(), s.registry.count(), s.events.refused.Load()
		a := s.post(t, &cert, ask("feed"))
		a.want(t, http.StatusServiceUnavailable, tokens.CodeTemporarilyUnavailable)
		if got := a.header.Get("Retry-After"); got != tc.wait {
			t.Errorf("%s: Retry-After %q, want %q", name, got, tc.wait)
		}
		_, err := s.Authenticate(t.Context(), "feed", mtlstest.PeerOf(cert))
		if e, ok := errors.AsType[*tokens.Error](err); !ok || e.Reason != "no_lease" || e.Status() != http.StatusServiceUnavailable {
			t.Errorf("%s: Authenticate: %v", name, err)
		}
		if s.journal.count() != records || s.registry.count() != lookups || s.events.refused.Load() != refused+1 {
			t.Errorf("%s: recorded, looked up, or counted as %d", name, s.events.refused.Load()-refused)
		}
	}
	g.change(func(g *turnstile) { g.live = nil })
	a := s.post(t, &cert, ask("feed"))
	a.wantToken(t)
	if _, err := s.Authenticate(t.Context(), "feed", mtlstest.PeerOf(cert)); err != nil {
		t.Errorf("Authenticate behind an open gate: %v", err)
	}
	<-g.left
	<-g.left
	g.want(t, 2, 0)
	// Other failures do not promise anything.
	s.registry.change(func(r *registry) { r.clientErr = errDown })
	if a := s.post(t, &cert, ask("feed")); a.status != http.StatusServiceUnavailable || a.header.Get("Retry-After") != "" {
		t.Errorf("registry down: %d, Retry-After %q", a.status, a.header.Get("Retry-After"))
	}
}

// What closes while the record of a grant is written drops the token, and the record of that refusal names it.
func TestGateClosedAfterTheRecord(t *testing.T) {
	t.Parallel()
	gate := newTurnstile()
	g := newGated(t, func(s *service) tls.Certificate { return s.enrol(t, "feed") })
	g.gate = gate
	response, err := g.issue(t, func(*gated) { gate.change(func(g *turnstile) { g.pass = errDown }) })
	e, ok := errors.AsType[*tokens.Error](err)
	if response != nil || !ok || e.Code != tokens.CodeTemporarilyUnavailable || e.Reason != "no_lease" || !errors.Is(err, errDown) {
		t.Fatalf("%v, %v", response, err)
	}
	granted, last := g.journal.decisions[0], g.journal.last(t)
	if !granted.Granted || last.Granted || last.Reason != "no_lease" || last.TokenID != granted.TokenID || last.TokenID == "" ||
		!last.Authenticated {
		t.Errorf("recorded %+v after %+v", last, granted)
	}
	gate.want(t, 0, 0)
}

// The registry is read once more when the passage is held, and not before: what was in force before it is found.
func TestRegistryIsReadUnderThePassage(t *testing.T) {
	t.Parallel()
	j := &leftFirst{}
	s, g := behind(t, func(c *Config) { j.journal = c.Recorder.(*journal); c.Recorder = j })
	j.gate = g
	cert := s.enrol(t, "feed")
	request := Request{GrantType: ClientCredentials, ClientID: "feed", Peer: mtlstest.PeerOf(cert)}
	g.change(func(g *turnstile) {
		g.passing = func() { s.registry.changeCertificate(cert, func(c *Certificate) { c.Revoked = true }) }
	})
	response, err := s.Issue(t.Context(), request)
	if e, ok := errors.AsType[*tokens.Error](err); response != nil || !ok || e.Reason != "certificate_revoked" {
		t.Fatalf("%v, %v", response, err)
	}
	if j.held {
		t.Error("a refusal holds the passage while it is recorded")
	}
	g.want(t, 1, 1)
}

// leftFirst is a Recorder that looks whether a refusal still holds its passage.
type leftFirst struct {
	*journal
	gate *turnstile
	held bool
}

func (j *leftFirst) Record(ctx context.Context, d Decision) error {
	j.held = j.held || !d.Granted && len(j.gate.left) == 0
	return j.journal.Record(ctx, d)
}

// A passage is left whatever becomes of the request that holds it.
func TestPassageIsLeft(t *testing.T) {
	t.Parallel()
	s, g := behind(t)
	cert := s.enrol(t, "feed")
	request := Request{GrantType: ClientCredentials, ClientID: "feed", Peer: mtlstest.PeerOf(cert)}

	response, err := s.Issue(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	g.want(t, 1, 0)
	response.Done()
	response.Done()
	g.want(t, 1, 1)
	<-g.left

	// A writer that cannot be given a deadline gets nothing.
	w, r := httptest.NewRecorder(), request0(t, ask("feed"))
	if got := caught(func() { s.serveToken(w, r, request.Peer) }); got != http.ErrAbortHandler || w.Body.Len() != 0 {
		t.Errorf("panicked with %v after writing %q", got, w.Body)
	}
	g.want(t, 2, 1)
	<-g.left

	// A registry that panics holds nobody inside.
	g.change(func(g *turnstile) {
		g.passing = func() { s.Server.registry = nil }
	})
	if got := caught(func() { _, _ = s.Issue(t.Context(), request) }); got == nil {
		t.Fatal("no panic")
	}
	g.want(t, 3, 1)
}

func request0(t *testing.T, body string) *http.Request {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, TokenPath, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return r
}

func caught(f func()) (p any) {
	defer func() { p = recover() }()
	f()
	return nil
}

// dam is a connection whose writes can be held back, as those to a client that does not read are in the end.
type dam struct {
	net.Conn
	pent   atomic.Bool
	waits  chan struct{} // gets a value when a write is held back
	open   chan struct{} // closed to let it go on
	closed chan struct{} // closed by Close
	once   sync.Once

	mu       sync.Mutex
	deadline time.Time // for writing
}

func (d *dam) Write(b []byte) (int, error) {
	if d.pent.Load() {
		d.waits <- struct{}{}
		var late <-chan time.Time
		if at := d.writeDeadline(); !at.IsZero() {
			late = time.After(time.Until(at))
		}
		select {
		case <-d.open:
		case <-d.closed:
			return 0, net.ErrClosed
		case <-late:
			return 0, os.ErrDeadlineExceeded
		}
	}
	return d.Conn.Write(b)
}

func (d *dam) writeDeadline() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.deadline
}

func (d *dam) SetWriteDeadline(at time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.deadline = at
	return d.Conn.SetWriteDeadline(at)
}

func (d *dam) SetDeadline(at time.Time) error {
	return errors.Join(d.SetReadDeadline(at), d.SetWriteDeadline(at))
}

func (d *dam) Close() error {
	d.once.Do(func() { close(d.closed) })
	return d.Conn.Close()
}

// dammed is a listener of one connection that can be held back.
type dammed struct {
	net.Listener
	conns chan *dam // gets each connection
}

func (l *dammed) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	d := &dam{Conn: c, waits: make(chan struct{}, 64), open: make(chan struct{}), closed: make(chan struct{})}
	l.conns <- d
	return d, nil
}

// serveDammed serves the token endpoint of s over connections that can be held back; foreign means a listener that is not
// that of package mtls.
func (s *service) serveDammed(t *testing.T, proto string, foreign bool) (url string, conns <-chan *dam) {
	t.Helper()
	kp, err := mtls.NewKeyPair(s.ca.Issue(t, mtlstest.ServerLeaf()))
	if err != nil {
		t.Fatal(err)
	}
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := mtls.ServerConfig(kp, mtls.ClientCertificatesRequested)
	if proto == "HTTP/1.1" {
		cfg.NextProtos = []string{"http/1.1"}
	}
	srv := &http.Server{Handler: s.TokenHandler(), ErrorLog: log.New(io.Discard, "", 0)}
	mtls.ConfigureServer(srv, cfg)
	l := &dammed{Listener: inner, conns: make(chan *dam, 8)}
	served := mtls.NewListener(l, cfg)
	if foreign {
		served = tls.NewListener(l, cfg)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(served)
	}()
	t.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
	return "https://" + inner.Addr().String() + TokenPath, l.conns
}

// pent makes the gate hold back the connection from the moment a request has passed it.
func (g *turnstile) pent(d *dam) {
	g.change(func(g *turnstile) { g.passing = func() { d.pent.Store(true) } })
}

// arrives waits for c, at most a while.
func arrives(t *testing.T, c <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(20 * time.Second):
		t.Fatal("waited in vain for " + what)
	}
}

// The passage is held until the system has the answer, and the connection keeps nothing of the bound on it.
func TestPassageIsHeldUntilTheAnswerIsOut(t *testing.T) {
	t.Parallel()
	s, g := behind(t)
	cert := s.enrol(t, "feed")
	url, conns := s.serveDammed(t, "HTTP/1.1", false)
	hc := s.client(t, &cert)
	do(t, hc, request(t, url, ask("feed"))).wantToken(t)
	d := <-conns
	arrives(t, g.left, "the first passage's end")

	g.pent(d)
	answered := make(chan answer, 1)
	go func() { answered <- do(t, hc, request(t, url, ask("feed"))) }()
	arrives(t, d.waits, "the answer")
	g.want(t, 2, 0)
	d.pent.Store(false)
	close(d.open)
	(<-answered).wantToken(t)
	arrives(t, g.left, "the passage's end")
	if at := d.writeDeadline(); !at.IsZero() {
		t.Errorf("the connection still has to be written to by %v", at)
	}
	select {
	case <-d.closed:
		t.Error("the connection was closed although its client reads")
	case <-time.After(writeBound + 200*time.Millisecond):
	}
	g.change(func(g *turnstile) { g.passing = nil })
	do(t, hc, request(t, url, ask("feed"))).wantToken(t)
	arrives(t, g.left, "the last passage's end")
	if len(conns) != 0 {
		t.Error("the last request came over a new connection")
	}
}

// RFC 9112, Section 9.6: a client that does not read its answer loses the connection, and after that the passage is left.
func TestClientThatDoesNotReadIsCutOff(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		proto   string
		foreign bool
	}{{"HTTP/1.1", false}, {"HTTP/1.1", true}, {"HTTP/2.0", false}} {
		name := tc.proto
		if tc.foreign {
			name += " on a listener of others"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, g := behind(t)
			cert := s.enrol(t, "feed")
			url, conns := s.serveDammed(t, tc.proto, tc.foreign)
			hc := s.client(t, &cert)
			if a := do(t, hc, request(t, url, ask("feed"))); a.proto != tc.proto {
				t.Fatalf("spoke %s", a.proto)
			}
			d := <-conns
			arrives(t, g.left, "the first passage's end")

			g.pent(d)
			var start time.Time
			failed := make(chan error, 1)
			go func() {
				res, err := hc.Do(request(t, url, ask("feed")))
				if err == nil {
					_, err = io.ReadAll(res.Body)
					_ = res.Body.Close()
				}
				failed <- err
			}()
			arrives(t, d.waits, "the answer")
			start = time.Now()
			arrives(t, g.left, "the passage's end")
			if took := time.Since(start); took > 5*writeBound {
				t.Errorf("left after %v", took)
			}
			if !tc.foreign {
				select {
				case <-d.closed:
				default:
					t.Error("the passage was left before the connection was closed")
				}
			}
			arrives(t, d.closed, "the connection's end")
			if err := <-failed; err == nil {
				t.Error("an answer came over a connection that takes nothing")
			}
			g.want(t, 2, 0)
		})
	}
}

// An answer that an HTTP/2 client does not take on its stream breaks off the connection as well.
func TestStreamThatIsNotReadIsCutOff(t *testing.T) {
	t.Parallel()
	s, g := behind(t)
	cert := s.enrol(t, "feed")
	url, conns := s.serveDammed(t, "HTTP/2.0", false)
	tc, err := tls.Dial("tcp", strings.TrimSuffix(strings.TrimPrefix(url, "https://"), TokenPath), &tls.Config{
		RootCAs: s.ca.Pool(), Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2"}, ServerName: "localhost",
	})
	if err != nil {
		t.Fatal(err)
	}
	defer tc.Close()
	d := <-conns
	// RFC 9113: the preface, SETTINGS with SETTINGS_INITIAL_WINDOW_SIZE 0, HEADERS in literals without a table, DATA.
	frame := func(kind, flags byte, stream byte, payload string) string {
		n := len(payload)
		return string([]byte{byte(n >> 16), byte(n >> 8), byte(n), kind, flags, 0, 0, 0, stream}) + payload
	}
	var fields strings.Builder
	for _, f := range [][2]string{
		{":method", "POST"}, {":scheme", "https"}, {":path", TokenPath}, {":authority", "localhost"},
		{"content-type", "application/x-www-form-urlencoded"},
	} {
		fields.WriteString("\x00" + string(rune(len(f[0]))) + f[0] + string(rune(len(f[1]))) + f[1])
	}
	_, err = io.WriteString(tc, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"+frame(4, 0, 0, "\x00\x04\x00\x00\x00\x00")+
		frame(1, 4, 1, fields.String())+frame(0, 1, 1, ask("feed")))
	if err != nil {
		t.Fatal(err)
	}
	arrives(t, g.left, "the passage's end")
	g.want(t, 1, 0)
	arrives(t, d.closed, "the connection's end")
	_ = tc.SetReadDeadline(time.Now().Add(10 * time.Second))
	if got, _ := io.ReadAll(tc); strings.Contains(string(got), "access_token") {
		t.Error("the token left")
	}
}

// still is a Gate that is always open and costs nothing.
type still struct{}

func (*still) Live() error              { return nil }
func (s *still) Pass() (Passage, error) { return s, nil }
func (*still) Leave()                   {}

// A gate adds nothing to what Issue allocates.
func TestIssueAllocationsWithAGate(t *testing.T) {
	s, r := benchmark(t)
	ctx := t.Context()
	issue := func() {
		response, err := s.Issue(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		response.Done()
	}
	without := testing.AllocsPerRun(200, issue)
	s.gate = &still{}
	if with := testing.AllocsPerRun(200, issue); with > without {
		t.Errorf("Issue allocates %v times with a gate, %v without", with, without)
	}
}

// Without a gate, any writer will do, and nothing is written before the handler returns.
func TestAnswerWithoutAGate(t *testing.T) {
	t.Parallel()
	s := newService(t)
	cert := s.enrol(t, "feed")
	w := httptest.NewRecorder()
	s.serveToken(w, request0(t, ask("feed")), mtlstest.PeerOf(cert))
	if w.Code != http.StatusOK || w.Flushed || strings.Count(w.Body.String(), "access_token") != 1 {
		t.Errorf("%d, flushed %v: %s", w.Code, w.Flushed, w.Body)
	}
}

// torn is a writer whose flush fails.
type torn struct{ *httptest.ResponseRecorder }

func (torn) SetWriteDeadline(time.Time) error { return nil }
func (torn) FlushError() error                { return errDown }

// An answer that could not be written ends its connection, and is not taken for one that was.
func TestAnswerThatFails(t *testing.T) {
	t.Parallel()
	s, g := behind(t)
	cert := s.enrol(t, "feed")
	w := torn{httptest.NewRecorder()}
	if got := caught(func() { s.serveToken(w, request0(t, ask("feed")), mtlstest.PeerOf(cert)) }); got != http.ErrAbortHandler {
		t.Errorf("panicked with %v", got)
	}
	g.want(t, 1, 1)
}

// RFC 9110, Section 10.2.3: only who cannot answer now says when to come back.
func TestRetryAfterOnlyWhenUnavailable(t *testing.T) {
	t.Parallel()
	for code, want := range map[string]string{tokens.CodeTemporarilyUnavailable: "3", tokens.CodeInvalidClient: "", tokens.CodeServerError: ""} {
		w := httptest.NewRecorder()
		WriteError(w, request0(t, ""), "realm", because(refusal(code, "x", ""), closedFor(3*time.Second)))
		if got := w.Header().Get("Retry-After"); got != want {
			t.Errorf("%s: Retry-After %q, want %q", code, got, want)
		}
	}
}
