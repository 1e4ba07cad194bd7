// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/config"
)

// limitedConfig is testConfig with limits that hold on loopback too.
func limitedConfig(tb testing.TB, change func(*config.Limits)) config.Config {
	tb.Helper()
	cfg := testConfig(tb, tb.TempDir())
	cfg.Limits.Exempt = nil
	change(&cfg.Limits)
	return cfg
}

// dialing is client with every connection made by dial.
func (in *instance) dialing(cert *tls.Certificate, dial func(context.Context, string, string) (net.Conn, error), change ...func(*tls.Config)) *http.Client {
	in.tb.Helper()
	c := in.client(cert, change...)
	c.Transport.(*http.Transport).DialContext = dial
	return c
}

// anonymousToken asks for a token without a certificate.
func (in *instance) anonymousToken(c *http.Client) tokenAnswer { return in.token(c, "payments") }

// A flood of refused requests is answered with 429 from one point on, and with nothing in the journal. The client that
// shares its address goes on, on its connection and on new ones, and so do operators.
func TestRefusedFlood(t *testing.T) {
	t.Parallel()
	for _, protocol := range []string{"http/1.1", "h2"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			speaks := func(c *tls.Config) {
				if protocol != "h2" {
					c.NextProtos = []string{protocol}
				}
			}
			in := start(t, limitedConfig(t, func(l *config.Limits) { l.AnonymousRate = 1 }))
			in.addLedger()
			cert := in.enrolled("payments")
			known := in.client(&cert, speaks)
			wantToken(t, in.token(known, "payments"))
			stranger := in.client(nil, speaks)
			var answer tokenAnswer
			for range 12 {
				if answer = in.anonymousToken(stranger); answer.Status != http.StatusUnauthorized {
					break
				}
			}
			if answer.Status != http.StatusTooManyRequests || answer.Error != "temporarily_unavailable" || answer.Header.Get("Retry-After") == "" {
				t.Fatalf("got %d %s, %v; want 429 with Retry-After", answer.Status, answer.Error, answer.Header)
			}
			recorded := len(in.journal())
			for range 5 {
				if got := in.anonymousToken(stranger).Status; got != http.StatusTooManyRequests {
					t.Errorf("got %d, want 429", got)
				}
			}
			if len(in.journal()) != recorded {
				t.Error("a request that nobody judged is in the journal")
			}
			for range 20 {
				wantToken(t, in.token(known, "payments"))
			}
			wantToken(t, in.token(in.client(&cert, speaks), "payments"))
			in.mustOperate(http.MethodGet, "/clients/payments", nil, nil)
			metrics := in.awaitMetric(`certbound_requests_limited_total{limit="anonymous_rate"} `)
			if strings.Contains(metrics, `{limit="anonymous_rate"} 0`) || strings.Contains(metrics, "certbound_connections 0") {
				t.Error("the metrics tell of no refusal, or of no connection")
			}
		})
	}
}

// Who asks who he is has proved it, and stays known: in a flood that is when one asks. Who is nobody's client does not.
func TestWhoamiAuthenticates(t *testing.T) {
	t.Parallel()
	in := start(t, limitedConfig(t, func(l *config.Limits) { l.AnonymousRate = 1 }))
	in.addLedger()
	cert := in.enrolled("payments")
	wantToken(t, in.token(in.client(&cert), "payments"))
	ask := func(c *http.Client) int {
		res, err := c.Get(in.mtls + pathWhoami)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		return res.StatusCode
	}
	stranger := in.client(nil)
	status := http.StatusOK
	for range 12 {
		status = ask(stranger)
	}
	if status != http.StatusTooManyRequests {
		t.Fatalf("a stranger got %d, want 429", status)
	}
	for range 3 {
		client := in.client(&cert)
		for range 3 {
			if got := ask(client); got != http.StatusOK {
				t.Errorf("the client got %d", got)
			}
		}
	}
	wantToken(t, in.token(in.client(&cert), "payments"))
}

// A client that was disabled is a stranger, on the connection that it had.
func TestDisabledClientIsLimited(t *testing.T) {
	t.Parallel()
	in := start(t, limitedConfig(t, func(l *config.Limits) { l.AnonymousRate = 1 }))
	in.addLedger()
	cert := in.enrolled("payments")
	client := in.client(&cert)
	wantToken(t, in.token(client, "payments"))
	in.mustOperate(http.MethodPost, "/clients/payments/disable", nil, nil)
	var answer tokenAnswer
	for range 12 {
		if answer = in.token(client, "payments"); answer.Status != http.StatusUnauthorized {
			break
		}
	}
	if answer.Status != http.StatusTooManyRequests {
		t.Errorf("got %d, want 429", answer.Status)
	}
}

// One client has a rate only if it is configured; then also over several connections.
func TestClientRate(t *testing.T) {
	t.Parallel()
	in := start(t, limitedConfig(t, func(l *config.Limits) { l.ClientRate = 1 }))
	in.addLedger()
	cert := in.enrolled("payments")
	for i := range 12 {
		answer := in.token(in.client(&cert), "payments")
		if answer.Status == http.StatusTooManyRequests && i >= 10 && answer.Header.Get("Retry-After") != "" {
			return
		}
		wantToken(t, answer)
	}
	t.Error("12 tokens at once with a rate of one a second")
}

// What we fail to answer is not held against the address of who asked.
func TestOurFailureIsSpared(t *testing.T) {
	t.Parallel()
	s := built(t, t.TempDir(), func(s *service) {
		s.cfg.Limits.Exempt, s.cfg.Limits.AnonymousRate = nil, 1
	})
	status := http.StatusServiceUnavailable
	h := s.limits.Handler(s.entry("mtls", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })))
	server := httptest.NewUnstartedServer(h)
	server.Config.ConnContext = s.limits.ConnContext
	server.Listener = s.limits.Listener(server.Listener)
	server.Start()
	defer server.Close()
	ask := func() int {
		t.Helper()
		res, err := http.Get(server.URL)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		_, _ = io.Copy(io.Discard, res.Body)
		return res.StatusCode
	}
	for range 30 {
		if got := ask(); got != status {
			t.Fatalf("got %d, want %d", got, status)
		}
	}
	status = http.StatusNotFound
	for range 12 {
		if ask() == http.StatusTooManyRequests {
			return
		}
	}
	t.Error("requests for nothing are not counted")
}

// Unknown networks run out of handshakes on either listener, and a network where a client authenticated does not.
func TestHandshakeFlood(t *testing.T) {
	t.Parallel()
	in := start(t, limitedConfig(t, func(l *config.Limits) { l.HandshakeTotal = 1 }))
	in.addLedger()
	cert := in.enrolled("payments")
	wantToken(t, in.token(in.client(&cert), "payments"))
	from := func(address string) *net.Dialer {
		return &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}, Timeout: 10 * time.Second}
	}
	for i, listener := range []string{in.mtls, in.issuer} {
		u, err := url.Parse(listener)
		if err != nil {
			t.Fatal(err)
		}
		refused := false
		for range 600 {
			c, err := tls.DialWithDialer(from(fmt.Sprintf("127.2.%d.1", i)), "tcp", u.Host, &tls.Config{RootCAs: in.roots(), MaxVersion: tls.VersionTLS12})
			if err != nil {
				refused = true
				break
			}
			_ = c.Close()
		}
		if !refused {
			t.Errorf("%s: 600 handshakes of an unknown network", listener)
		}
	}
	wantToken(t, in.token(in.client(&cert), "payments"))
	in.awaitMetric(`certbound_connections_refused_total{limit="handshake_total"} `)
}

// proxyHeader is a header of the PROXY protocol, version 2, for a connection from an address.
func proxyHeader(address string) []byte {
	h := append([]byte("\r\n\r\n\x00\r\nQUIT\n"), 0x21, 0x11, 0, 12)
	h = append(h, netip.MustParseAddr(address).AsSlice()...)
	h = append(h, 203, 0, 113, 9)
	h = binary.BigEndian.AppendUint16(h, 4711)
	return binary.BigEndian.AppendUint16(h, 9443)
}

// through dials from a local address and begins with a header.
func through(proxy string, header []byte) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(proxy)}}).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		if _, err := c.Write(header); err != nil {
			return nil, errors.Join(err, c.Close())
		}
		return c, nil
	}
}

// Behind a listed proxy the journal and the limits see the client's address; nobody else can claim one.
func TestProxy(t *testing.T) {
	t.Parallel()
	cfg := limitedConfig(t, func(l *config.Limits) { l.AnonymousRate = 1 })
	cfg.Proxy.Trusted = []string{"127.0.0.2", "192.0.2.0/24"}
	in := start(t, cfg)
	in.addLedger()
	cert := in.enrolled("payments")
	wantToken(t, in.token(in.dialing(&cert, through("127.0.0.2", proxyHeader("198.51.100.7"))), "payments"))
	recorded := false
	for _, e := range in.events() {
		recorded = recorded || e.Event == "token" && e.Outcome == "granted" && e.Client == "payments" && e.Address == "198.51.100.7"
	}
	if !recorded && !strings.Contains(in.journal(), `"address":"198.51.100.7"`) {
		t.Errorf("no token for 198.51.100.7 in the journal:\n%s", in.journal())
	}
	// Two clients behind one proxy: one floods, the other is served.
	flood, other := in.dialing(nil, through("127.0.0.2", proxyHeader("198.51.100.8"))), in.dialing(nil, through("127.0.0.2", proxyHeader("198.51.100.9")))
	var answer tokenAnswer
	for range 12 {
		if answer = in.anonymousToken(flood); answer.Status == http.StatusTooManyRequests {
			break
		}
	}
	if got := in.anonymousToken(other).Status; answer.Status != http.StatusTooManyRequests || got != http.StatusUnauthorized {
		t.Errorf("the flood was answered %d, another client of the proxy %d; want 429 and 401", answer.Status, got)
	}
	for name, tt := range map[string]struct {
		from   string
		header []byte
	}{
		"a header from an unlisted peer": {"127.0.0.3", proxyHeader("192.0.2.1")},
		"none from a listed one":         {"127.0.0.2", nil},
		"a damaged one":                  {"127.0.0.2", bytes.Replace(proxyHeader("192.0.2.1"), []byte("QUIT"), []byte("QUIz"), 1)},
	} {
		for _, address := range []string{in.mtls + pathWhoami, in.issuer + pathKeys} {
			res, err := in.dialing(&cert, through(tt.from, tt.header)).Get(address)
			if err == nil {
				_ = res.Body.Close()
				t.Errorf("%s: %s answered %d", name, address, res.StatusCode)
			}
		}
	}
	in.get(in.issuer + pathKeys) // and without a proxy it works as ever
}

// A client that does not read its answers is hung up on, whichever protocol it speaks: what was decided for it must not
// wait to be sent for as long as it likes.
func TestUnreadAnswers(t *testing.T) {
	t.Parallel()
	for protocol, script := range map[string]func(string, io.Writer) error{"http/1.1": pipelined, "h2": framed} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			cfg := testConfig(t, t.TempDir())
			cfg.HTTP.WriteTimeout, cfg.HTTP.ReadTimeout = time.Second, time.Minute
			in := start(t, cfg)
			u, err := url.Parse(in.issuer)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := net.Dial("tcp", u.Host)
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			c := tls.Client(raw, &tls.Config{RootCAs: in.roots(), ServerName: "localhost", NextProtos: []string{protocol}})
			if err := c.HandshakeContext(t.Context()); err != nil {
				t.Fatal(err)
			}
			sent := make(chan error, 1)
			go func() { sent <- script(u.Host, c) }()
			// Asked of the service: when a client that is full believes a reset is its kernel's affair.
			for end := time.Now().Add(2 * time.Minute); !strings.Contains(in.awaitMetric("certbound_connections"), "\ncertbound_connections 0\n"); {
				if time.Now().After(end) {
					t.Fatal("the connection stays open")
				}
				time.Sleep(20 * time.Millisecond)
			}
			_ = raw.Close()
			if err := <-sent; err == nil {
				t.Error("all was answered, though nobody read")
			}
		})
	}
}

// maxUnread is how many requests are tried at most; a few megabytes of answers fill what lies between the two ends.
const maxUnread = 2_000_000

// pipelined sends requests one behind the other.
func pipelined(host string, w io.Writer) error {
	request := []byte(strings.Repeat("GET "+pathKeys+" HTTP/1.1\r\nHost: "+host+"\r\n\r\n", 10))
	for range maxUnread / 10 {
		if _, err := w.Write(request); err != nil {
			return err
		}
	}
	return nil
}

// framed sends requests as HTTP/2 frames (RFC 9113, Section 4.1), of a kind whose answers no flow control holds back.
func framed(host string, w io.Writer) error {
	block := []byte{0x87, 0x04, byte(len(pathKeys))} // https, and a path (RFC 7541, Appendix A)
	block = append(block, pathKeys...)
	block = append(block, 0x02, 4)
	block = append(block, "HEAD"...)
	block = append(block, 0x01, byte(len(host)))
	block = append(block, host...)
	frames := []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
	for stream := uint32(1); stream < 2*maxUnread; stream += 2 {
		frames = append(frames, 0, 0, byte(len(block)), 0x1, 0x5)
		frames = binary.BigEndian.AppendUint32(frames, stream)
		frames = append(frames, block...)
		if stream%20 != 1 {
			continue
		}
		if _, err := w.Write(frames); err != nil {
			return err
		}
		frames = frames[:0]
	}
	return nil
}
