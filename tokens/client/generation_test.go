// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
)

// CL-05: RFC 8705, Section 3: a thousand requests while the certificate is renewed fifty times; not one token travels
// on a connection with another certificate.
func TestRFC8705_3_NoTokenOfAnotherGeneration(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.config(t)
	certs := make([]tls.Certificate, 50)
	for i := range certs {
		certs[i] = w.ca.Issue(t, mtlstest.Leaf{CommonName: "payments"})
	}
	tr := start(t, c)
	const requests = 1000
	var sent atomic.Int32
	var done sync.WaitGroup
	for range 20 {
		done.Go(func() {
			for range requests / 20 {
				if got := do(t, tr, http.MethodGet, w.resource.URL, nil); got != http.StatusNoContent {
					t.Errorf("status %d", got)
				}
				sent.Add(1)
			}
		})
	}
	done.Go(func() {
		for i, cert := range certs {
			// Spread over the run, with progress for a clock.
			for sent.Load() < int32(i*requests/len(certs)) {
				time.Sleep(100 * time.Microsecond)
			}
			if err := c.KeyPair.Replace(cert); err != nil {
				t.Error(err)
			}
		}
	})
	done.Wait()
	if len(w.violations) > 0 {
		t.Errorf("%d tokens on foreign connections", len(w.violations))
	}
	if n := w.fetches(); n < 25 {
		t.Errorf("only %d token requests: the certificate did not change under the requests", n)
	}
}

// The reason for the generation's own session cache: with a cache that outlives the certificate, the new
// configuration resumes, and the server sees the certificate that was given up. TLS 1.2 and 1.3 alike.
func TestSharedSessionCacheWouldPresentTheOldCertificate(t *testing.T) {
	t.Parallel()
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.serve = func(rw http.ResponseWriter, r *http.Request, _ bool) {
				peer, err := mtls.PeerFromRequest(r)
				if err != nil {
					t.Error(err)
				}
				_, _ = io.WriteString(rw, peer.Thumbprint().String())
			}
			shown := func(cache tls.ClientSessionCache, kp *mtls.KeyPair) string {
				cfg := mtls.ClientConfig(kp, w.ca.Pool())
				cfg.MaxVersion = version
				if cache != nil {
					cfg.ClientSessionCache = cache
				}
				pool := newPool(cfg, nil)
				defer pool.CloseIdleConnections()
				resp, err := pool.RoundTrip(mustRequest(t, w.resource.URL))
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				text, err := io.ReadAll(resp.Body)
				if err != nil {
					t.Fatal(err)
				}
				return string(text)
			}
			older, newer := w.keyPair(t), w.keyPair(t)
			thumbprint := func(kp *mtls.KeyPair) string { return mtls.ThumbprintOf(kp.Current().Leaf).String() }
			shared := tls.NewLRUClientSessionCache(8)
			if got := shown(shared, older); got != thumbprint(older) {
				t.Fatalf("first connection shows %s", got)
			}
			if got := shown(shared, newer); got != thumbprint(older) {
				t.Errorf("with the shared cache the new certificate was presented: the reason for generations is gone")
			}
			if got := shown(nil, newer); got != thumbprint(newer) {
				t.Errorf("with a cache of its own the generation shows %s", got)
			}
		})
	}
}

func TestGenerationsShareNoSessions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.config(t)
	tr := start(t, c)
	first := tr.current
	w.rotate(t, c.KeyPair)
	if err := tr.Renewed(); err != nil {
		t.Fatal(err)
	}
	if tr.current == first {
		t.Fatal("Renewed did not make a new generation")
	}
	a, b := first.pool.TLSClientConfig, tr.current.pool.TLSClientConfig
	if a.ClientSessionCache == b.ClientSessionCache || a.ClientSessionCache == nil {
		t.Error("two generations have one session cache")
	}
	if first.thumbprint == tr.current.thumbprint {
		t.Error("the generation kept the old thumbprint")
	}
	// The same certificate read again, as a watcher of files does, is no reason to throw tokens away.
	second := tr.current
	if err := c.KeyPair.Replace(*c.KeyPair.Current()); err != nil {
		t.Fatal(err)
	}
	if err := tr.Renewed(); err != nil {
		t.Fatal(err)
	}
	if tr.current != second {
		t.Error("a new generation though the certificate is the same")
	}
}

// A request under way finishes on the old generation; then, and not before, its connection is closed.
func TestOldGenerationFinishesAndCloses(t *testing.T) {
	t.Parallel()
	for _, h2 := range []bool{true, false} {
		name := map[bool]string{true: "HTTP/2", false: "HTTP/1.1"}[h2]
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			if !h2 {
				w.resource.Config.NextProtos = []string{"http/1.1"}
			}
			arrived, release := make(chan struct{}), make(chan struct{})
			w.serve = func(rw http.ResponseWriter, r *http.Request, authorized bool) {
				if !authorized {
					t.Error("a token on a foreign connection")
				}
				if r.ProtoAtLeast(2, 0) != h2 {
					t.Errorf("request over %s", r.Proto)
				}
				if r.URL.Path == "/slow" {
					rw.WriteHeader(http.StatusOK)
					_ = http.NewResponseController(rw).Flush()
					close(arrived)
					<-release
				}
				_, _ = io.WriteString(rw, "whole")
			}
			open := &connections{closed: make(chan struct{}, 8)}
			c := w.config(t)
			c.DialContext = open.dial
			tr := start(t, c)
			<-open.closed // that for the metadata
			resp, err := tr.RoundTrip(mustRequest(t, w.resource.URL+"/slow"))
			if err != nil {
				t.Fatal(err)
			}
			<-arrived
			w.rotate(t, c.KeyPair)
			do(t, tr, http.MethodGet, w.resource.URL, nil)
			<-open.closed // the old generation's connection to the token endpoint, idle at the swap
			if n := open.count(); n != 3 {
				t.Errorf("%d connections open, want 3: the slow one and the two new ones", n)
			}
			close(release)
			text, err := io.ReadAll(resp.Body)
			if err != nil || string(text) != "whole" {
				t.Errorf("request under way: %q, %v", text, err)
			}
			resp.Body.Close()
			<-open.closed
			if n := open.count(); n != 2 {
				t.Errorf("%d connections open, want the two new ones", n)
			}
		})
	}
}

// connections counts what a client has open.
type connections struct {
	mu     sync.Mutex
	open   int
	closed chan struct{}
}

func (c *connections) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.open++
	c.mu.Unlock()
	return &countedConn{Conn: conn, close: sync.OnceFunc(func() {
		c.mu.Lock()
		c.open--
		c.mu.Unlock()
		c.closed <- struct{}{}
	})}, nil
}

func (c *connections) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.open
}

type countedConn struct {
	net.Conn
	close func()
}

func (c *countedConn) Close() error {
	err := c.Conn.Close()
	c.close()
	return err
}

// An upgraded connection keeps its Write method and does not hold its generation.
func TestUpgradedConnection(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.resource.Config.NextProtos = []string{"http/1.1"}
	w.serve = func(rw http.ResponseWriter, r *http.Request, _ bool) {
		conn, both, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		line, _ := both.ReadString('\n')
		_, _ = io.WriteString(conn, line)
	}
	tr := start(t, w.config(t))
	req := mustRequest(t, w.resource.URL)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "echo")
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	stream, ok := resp.Body.(io.ReadWriteCloser)
	if !ok {
		t.Fatal("the upgraded body cannot be written to")
	}
	if _, err := io.WriteString(stream, "ping\n"); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(stream); string(got) != "ping\n" {
		t.Errorf("echo %q, %v", got, err)
	}
	if n := tr.current.requests; n != 0 {
		t.Errorf("%d requests hold the generation", n)
	}
}

func TestCloseEndsEverything(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	entered := make(chan struct{})
	w.respond = func(rw http.ResponseWriter, r *http.Request, _ string) {
		close(entered)
		<-r.Context().Done()
	}
	tr := start(t, w.config(t))
	failed := make(chan error)
	go func() {
		_, err := tr.Token(t.Context())
		failed <- err
	}()
	<-entered
	begun := time.Now()
	tr.Close()
	if err := <-failed; !errors.Is(err, ErrClosed) {
		t.Errorf("a waiting Token: %v", err)
	}
	if took := time.Since(begun); took > fetchTimeout/2 {
		t.Errorf("Close waited %s for the fetch instead of ending it", took)
	}
	if _, err := tr.Token(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Token after Close: %v", err)
	}
	if err := tr.Renewed(); !errors.Is(err, ErrClosed) {
		t.Errorf("Renewed after Close: %v", err)
	}
	tr.Close()
	tr.CloseIdleConnections()
}

func TestWaiterGivesUpAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	entered, release := make(chan struct{}), make(chan struct{})
	w.respond = func(rw http.ResponseWriter, r *http.Request, issued string) {
		close(entered)
		<-release
		answer(600)(rw, r, issued)
	}
	tr := start(t, w.config(t))
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error)
	go func() {
		_, err := tr.Token(ctx)
		failed <- err
	}()
	<-entered
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("the one who gave up: %v", err)
	}
	close(release)
	if _, err := tr.Token(t.Context()); err != nil {
		t.Errorf("the next one: %v", err)
	}
	if n := w.fetches(); n != 1 {
		t.Errorf("%d token requests, want the one that went on", n)
	}
}

// A certificate that is over its date gets no token: say so without asking.
func TestExpiredCertificate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.config(t)
	old := w.ca.Issue(t, mtlstest.Leaf{NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)})
	if err := c.KeyPair.Replace(old); err != nil {
		t.Fatal(err)
	}
	_, err := start(t, c).Token(t.Context())
	if err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("error %v", err)
	}
	if n := w.fetches(); n != 0 {
		t.Errorf("%d token requests", n)
	}
}

// The token is not used after its certificate has ended, whatever the issuer said.
func TestTokenEndsWithCertificate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.config(t)
	short := w.ca.Issue(t, mtlstest.Leaf{NotAfter: time.Now().Add(5 * time.Minute)})
	if err := c.KeyPair.Replace(short); err != nil {
		t.Fatal(err)
	}
	token, err := start(t, c).Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !token.Expires.Equal(short.Leaf.NotAfter) {
		t.Errorf("token until %s, certificate until %s", token.Expires, short.Leaf.NotAfter)
	}
	if !bytes.Contains(token.Raw, []byte("600")) {
		t.Errorf("Raw is not the issuer's answer")
	}
}
