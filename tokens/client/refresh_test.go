// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package client

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
)

// pipes is a network without sockets, so that a synctest bubble can tell when everybody waits.
type pipes struct {
	listeners map[string]*pipeListener
}

type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error   { close(l.done); return nil }
func (l *pipeListener) Addr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }

func (p *pipes) dial(ctx context.Context, _, address string) (net.Conn, error) {
	l, ok := p.listeners[address]
	if !ok {
		return nil, errors.New("no such address: " + address)
	}
	near, far := net.Pipe()
	select {
	case l.conns <- buffered(far):
		return buffered(near), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// bufferedConn lets Write return before the other side reads: both ends of a TLS connection may write at once, and on
// a bare net.Pipe they would wait for each other.
type bufferedConn struct {
	net.Conn
	queue chan []byte
	done  chan struct{}
	close func()
}

func buffered(c net.Conn) *bufferedConn {
	b := &bufferedConn{Conn: c, queue: make(chan []byte, 1024), done: make(chan struct{})}
	b.close = sync.OnceFunc(func() { close(b.done) })
	go b.pump()
	return b
}

func (b *bufferedConn) pump() {
	defer b.Conn.Close()
	for {
		select {
		case data := <-b.queue:
			if _, err := b.Conn.Write(data); err != nil {
				return
			}
		case <-b.done:
			return
		}
	}
}

func (b *bufferedConn) Write(data []byte) (int, error) {
	select {
	case b.queue <- bytes.Clone(data):
		return len(data), nil
	case <-b.done:
		return 0, net.ErrClosed
	}
}

func (b *bufferedConn) Close() error {
	b.close()
	return b.Conn.Close()
}

func (b *bufferedConn) SetDeadline(t time.Time) error    { return b.SetReadDeadline(t) }
func (b *bufferedConn) SetWriteDeadline(time.Time) error { return nil }

func (p *pipes) serve(tb testing.TB, ca *mtlstest.CA, name string, cc mtls.ClientCertificates, h http.HandlerFunc) *mtlstest.Running {
	tb.Helper()
	leaf := mtlstest.ServerLeaf()
	leaf.DNSNames, leaf.NotAfter = []string{name}, time.Now().AddDate(1, 0, 0)
	kp, err := mtls.NewKeyPair(ca.Issue(tb, leaf))
	if err != nil {
		tb.Fatal(err)
	}
	l := &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
	p.listeners[name+":443"] = l
	srv := &http.Server{Handler: h, ErrorLog: log.New(io.Discard, "", 0)}
	cfg := mtls.ServerConfig(kp, cc)
	mtls.ConfigureServer(srv, cfg)
	go func() { _ = srv.Serve(mtls.NewListener(l, cfg)) }()
	tb.Cleanup(func() { _ = srv.Close() })
	return &mtlstest.Running{URL: "https://" + name, Addr: name + ":443"}
}

func newQuietWorld(tb testing.TB) *world {
	tb.Helper()
	w := &world{ca: mtlstest.NewCA(tb, "root")}
	p := &pipes{listeners: map[string]*pipeListener{}}
	w.dial = p.dial
	w.public = p.serve(tb, w.ca, "issuer.test", mtls.ClientCertificatesIgnored, w.metadata)
	w.token = p.serve(tb, w.ca, "token.test", mtls.ClientCertificatesRequested, w.tokenEndpoint)
	w.resource = p.serve(tb, w.ca, "resource.test", mtls.ClientCertificatesRequested, w.resourceServer)
	return w
}

// longLived gives the client a certificate that does not end before the test does.
func longLived(tb testing.TB, w *world) Config {
	tb.Helper()
	c := w.config(tb)
	if err := c.KeyPair.Replace(w.ca.Issue(tb, mtlstest.Leaf{NotAfter: time.Now().AddDate(1, 0, 0)})); err != nil {
		tb.Fatal(err)
	}
	return c
}

// CL-06: RFC 6749, Section 5.1: a token is used from the cache and renewed before it ends; the old one serves until
// the new one is there, and no request ever carries an expired one.
func TestRFC6749_5_1_RefreshBeforeExpiry(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newQuietWorld(t)
		release := make(chan struct{})
		w.respond = func(rw http.ResponseWriter, r *http.Request, issued string) {
			if w.fetches() == 2 {
				<-release
			}
			answer(600)(rw, r, issued)
		}
		tr := start(t, longLived(t, w))
		get := func() string {
			token, err := tr.Token(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return token.AccessToken
		}
		first := get()
		time.Sleep(7*time.Minute - time.Second) // 70 % of ten minutes
		if get() != first || w.fetches() != 1 {
			t.Error("refreshed too early")
		}
		time.Sleep(91 * time.Second) // past 85 %
		if get() != first {
			t.Error("the old token was not used while the new one was under way")
		}
		synctest.Wait()
		if n := w.fetches(); n != 2 {
			t.Fatalf("%d token requests, want 2", n)
		}
		if get() != first || w.fetches() != 2 {
			t.Error("a second fetch beside the one under way")
		}
		close(release)
		synctest.Wait()
		second := get()
		if second == first {
			t.Error("the new token is not used")
		}
		time.Sleep(10*time.Minute - skew) // the whole life of an idle client's token
		if get() == second {
			t.Error("a token was used within its last ten seconds")
		}
		tr.Close()
	})
}

// CL-06: RFC 6749, Section 5.1: without expires_in a token is kept for a minute.
func TestRFC6749_5_1_MissingExpiresIn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newQuietWorld(t)
		w.respond = func(rw http.ResponseWriter, _ *http.Request, issued string) {
			writeJSON(rw, http.StatusOK, map[string]any{"access_token": issued, "token_type": "Bearer"})
		}
		tr := start(t, longLived(t, w))
		for range 2 {
			if _, err := tr.Token(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if n := w.fetches(); n != 1 {
			t.Errorf("%d token requests at once, want 1", n)
		}
		time.Sleep(assumedLifetime)
		if _, err := tr.Token(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := w.fetches(); n != 2 {
			t.Errorf("%d token requests after a minute, want 2", n)
		}
		tr.Close()
	})
}

func TestFailedRefreshBacksOffAndShows(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newQuietWorld(t)
		var out bytes.Buffer
		c := longLived(t, w)
		c.Logger = slog.New(slog.NewTextHandler(&out, nil))
		tr := start(t, c)
		first, err := tr.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		w.mu.Lock()
		w.respond = func(rw http.ResponseWriter, _ *http.Request, _ string) {
			writeJSON(rw, http.StatusServiceUnavailable, map[string]any{"error": "temporarily_unavailable"})
		}
		w.mu.Unlock()
		time.Sleep(9 * time.Minute)
		for range 45 { // a request a second, while the old token lives
			token, err := tr.Token(t.Context())
			if err != nil || token.AccessToken != first.AccessToken {
				t.Fatalf("the old token does not serve: %v", err)
			}
			time.Sleep(time.Second)
		}
		// 1, 2, 4, 8, 16 and 32 s, halved at most: 6 to 8 attempts, not 45.
		if n := w.fetches() - 1; n < 4 || n > 8 {
			t.Errorf("%d attempts in 45 s", n)
		}
		if refused, ok := errors.AsType[*Error](tr.Err()); !ok || refused.Code != "temporarily_unavailable" {
			t.Errorf("Err: %v", tr.Err())
		}
		if !strings.Contains(out.String(), "temporarily_unavailable") || strings.Contains(out.String(), first.AccessToken) {
			t.Errorf("log: %s", out.String())
		}
		time.Sleep(15 * time.Second)
		if _, err := tr.Token(t.Context()); err == nil {
			t.Error("an expired token was given out")
		}
		w.mu.Lock()
		w.respond = nil
		w.mu.Unlock()
		time.Sleep(maxBackoff)
		if token, err := tr.Token(t.Context()); err != nil || token.AccessToken == first.AccessToken {
			t.Errorf("after recovery: %v", err)
		}
		if err := tr.Err(); err != nil {
			t.Errorf("Err after recovery: %v", err)
		}
		tr.Close()
	})
}

func TestRetryAfterIsHonoured(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newQuietWorld(t)
		w.respond = func(rw http.ResponseWriter, _ *http.Request, _ string) {
			rw.Header().Set("Retry-After", "120")
			rw.WriteHeader(http.StatusTooManyRequests)
		}
		tr := start(t, longLived(t, w))
		for range 119 {
			if _, err := tr.Token(t.Context()); err == nil {
				t.Fatal("a token")
			}
			time.Sleep(time.Second)
		}
		if n := w.fetches(); n != 1 {
			t.Errorf("%d attempts before the time, want 1", n)
		}
		time.Sleep(time.Second)
		_, _ = tr.Token(t.Context())
		if n := w.fetches(); n != 2 {
			t.Errorf("%d attempts after the time, want 2", n)
		}
		tr.Close()
	})
}

// A refused token may be replaced again once ten seconds have passed.
func TestStaleIntervalEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newQuietWorld(t)
		w.serve = func(rw http.ResponseWriter, _ *http.Request, _ bool) { refuse(rw) }
		tr := start(t, longLived(t, w))
		for _, want := range []int{2, 2, 3} {
			do(t, tr, http.MethodGet, w.resource.URL, nil)
			if n := w.fetches(); n != want {
				t.Errorf("%d token requests, want %d", n, want)
			}
			time.Sleep(minStaleInterval / 2)
		}
		tr.Close()
	})
}

// A certificate renewed while a fetch is under way: the fetch ends in its own generation, the next request starts anew.
func TestRenewalDuringFetch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newQuietWorld(t)
		release := make(chan struct{})
		w.respond = func(rw http.ResponseWriter, r *http.Request, issued string) {
			if w.fetches() == 1 {
				<-release
			}
			answer(600)(rw, r, issued)
		}
		c := longLived(t, w)
		tr := start(t, c)
		slow := make(chan int)
		go func() { slow <- do(t, tr, http.MethodGet, w.resource.URL, nil) }()
		synctest.Wait()
		if err := c.KeyPair.Replace(w.ca.Issue(t, mtlstest.Leaf{})); err != nil {
			t.Fatal(err)
		}
		if got := do(t, tr, http.MethodGet, w.resource.URL, nil); got != http.StatusNoContent {
			t.Errorf("on the new generation: %d", got)
		}
		close(release)
		if got := <-slow; got != http.StatusNoContent {
			t.Errorf("on the old generation: %d", got)
		}
		if len(w.violations) > 0 || w.fetches() != 2 {
			t.Errorf("%d fetches, violations %v", w.fetches(), w.violations)
		}
		tr.Close()
	})
}

func TestBackoffIsBounded(t *testing.T) {
	t.Parallel()
	for failures := range 100 {
		pause := backoff(failures, errors.New("x"))
		if pause < minBackoff/2 || pause > maxBackoff {
			t.Errorf("after %d failures: %s", failures, pause)
		}
	}
	if pause := backoff(0, &Error{RetryAfter: time.Minute}); pause != time.Minute {
		t.Errorf("Retry-After of a minute: %s", pause)
	}
}
