// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
)

// world is a server behind a limiter, as the service has it.
type world struct {
	limiter *Limiter
	address string
	client  *tls.Config
	keys    atomic.Int64 // handshakes that came so far as to ask for the server's key
}

func newWorld(t *testing.T, c Config) *world {
	t.Helper()
	ca := mtlstest.NewCA(t, "ca")
	kp, err := mtls.NewKeyPair(ca.Issue(t, mtlstest.Leaf{
		CommonName: "server", DNSNames: []string{"localhost"}, Usage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{limiter: newLimiter(t, c)}
	cfg := mtls.ServerConfig(kp, mtls.ClientCertificatesRequested)
	current := cfg.GetCertificate
	cfg.GetCertificate = func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		w.keys.Add(1)
		return current(h)
	}
	w.limiter.ConfigureTLS(cfg)
	mtls.NewTickets(cfg)
	server := &http.Server{
		Handler:     w.limiter.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })),
		ConnContext: w.limiter.ConnContext,
	}
	mtls.ConfigureServer(server, cfg)
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(mtls.NewListener(w.limiter.Listener(inner), cfg))
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-served
	})
	w.address = inner.Addr().String()
	w.client = mtls.ClientConfig(nil, ca.Pool())
	w.client.ServerName = "localhost"
	return w
}

func (w *world) dial(t *testing.T, cfg *tls.Config) (*tls.Conn, error) {
	t.Helper()
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", w.address, cfg)
	if err == nil {
		t.Cleanup(func() { _ = c.Close() })
	}
	return c, err
}

// A handshake over the limit ends before the server's key is asked for, whatever the version, and without an answer.
func TestHandshakeIsJudgedBeforeKeys(t *testing.T) {
	t.Parallel()
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			t.Parallel()
			c := roomy()
			c.HandshakeTotal = 1
			w := newWorld(t, c)
			w.client.MinVersion, w.client.MaxVersion = version, version
			if _, err := w.dial(t, w.client); err != nil || w.keys.Load() != 1 {
				t.Fatalf("within the limit: %v, %d keys asked for", err, w.keys.Load())
			}
			// This one is accepted while there is room, and sends its ClientHello when there is none.
			late, err := net.Dial("tcp", w.address)
			if err != nil {
				t.Fatal(err)
			}
			defer late.Close()
			for w.limiter.Stats().Connections != 2 {
				time.Sleep(time.Millisecond)
			}
			w.limiter.mu.Lock()
			w.limiter.strangers.SetBurst(0)
			w.limiter.mu.Unlock()
			err = tls.Client(late, w.client).HandshakeContext(t.Context())
			if alert, ok := errors.AsType[*net.OpError](err); err == nil || ok && alert.Op == "remote error" {
				t.Errorf("error is %v, want a reset connection", err)
			}
			if w.keys.Load() != 1 || refusals(w.limiter, HandshakeTotal) != 1 {
				t.Errorf("%d keys asked for, counted %+v", w.keys.Load(), w.limiter.Stats())
			}
			for w.limiter.Stats().Connections != 1 { // the refused one is given back
				time.Sleep(time.Millisecond)
			}
		})
	}
}

// Judging handshakes changes nothing about sessions: they resume, under the ticket keys of the configuration itself.
func TestSessionsResume(t *testing.T) {
	t.Parallel()
	w := newWorld(t, roomy())
	w.client.NextProtos = []string{"http/1.1"}
	for _, resumed := range []bool{false, true} {
		c, err := w.dial(t, w.client)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 512)); err != nil { // and with the answer the ticket
			t.Fatal(err)
		}
		if got := c.ConnectionState().DidResume; got != resumed {
			t.Errorf("resumed: %t, want %t", got, resumed)
		}
	}
	if s := w.limiter.Stats(); s.Handshakes != 0 || s.Connections != 2 {
		t.Errorf("%+v: connections that brought requests still count as handshakes", s)
	}
}

// What was configured before is still asked.
func TestConfigureTLSKeepsWhatWasThere(t *testing.T) {
	t.Parallel()
	other := &tls.Config{}
	cfg := &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return other, nil }}
	newLimiter(t, roomy()).ConfigureTLS(cfg)
	got, err := cfg.GetConfigForClient(&tls.ClientHelloInfo{Conn: from("192.0.2.1")})
	if got != other || err != nil {
		t.Errorf("got %p, %v, want %p", got, err, other)
	}
}
