// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens/issuer"
)

// TLS-07, TLS-08, TLS-09, CA-25: RFC 8705, Section 2: a client's state is judged anew at every request: between two requests on
// one connection, and on a session that resumes one from before, over TLS 1.2 and 1.3, HTTP/1.1 and HTTP/2.
// Whatever takes the certificate's authority away answers 401 invalid_client as JSON.
func TestRFC8705_2_StateIsJudgedPerRequest(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	in.addLedger()
	takeAway := map[string]func(id string, cert tls.Certificate){
		"revoked": func(_ string, cert tls.Certificate) {
			in.mustOperate(http.MethodPost, "/certificates/revoke", map[string]any{"x5t#S256": thumbprint(cert)}, nil)
		},
		"disabled": func(id string, _ tls.Certificate) {
			in.mustOperate(http.MethodPost, "/clients/"+id+"/disable", nil, nil)
		},
		"removed": func(id string, _ tls.Certificate) {
			in.mustOperate(http.MethodDelete, "/clients/"+id, nil, nil)
		},
	}
	for what, act := range takeAway {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			for _, protocol := range []string{"http/1.1", "h2"} {
				id := strings.ToLower(fmt.Sprintf("%s-%x-%s", what, version, strings.TrimPrefix(protocol, "http/")))
				t.Run(id, func(t *testing.T) {
					cert := in.enrolled(id)
					cache := tls.NewLRUClientSessionCache(4)
					with := func(c *tls.Config) {
						c.MinVersion, c.MaxVersion, c.ClientSessionCache = version, version, cache
						if protocol == "http/1.1" {
							c.NextProtos = []string{"http/1.1"}
						}
					}
					open := in.client(&cert, with)
					wantToken(t, in.token(open, id))
					act(id, cert)
					answer := in.token(open, id) // the same connection
					wantRefused(t, answer)
					resumed := in.token(in.client(&cert, with), id) // another one, resuming the session
					wantRefused(t, resumed)
					if !resumed.Reused {
						t.Error("the second connection did not resume the session: this test shows nothing")
					}
				})
			}
		}
	}
}

// TLS-09: RFC 5280, Section 4.1.2.5: a certificate that expires while its connection is open gets nothing more on it.
func TestRFC8705_2_ExpiryOnAnOpenConnection(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t, t.TempDir())
	in := start(t, cfg)
	in.addLedger()
	if err := in.stop(); err != nil {
		t.Fatal(err)
	}
	cfg.Certificate.Lifetime = 4 * time.Second
	in = start(t, cfg)
	cert := in.enrolled("payments")
	open := in.client(&cert)
	first := in.token(open, "payments")
	wantToken(t, first)
	deadline := time.Now().Add(20 * time.Second)
	for time.Now().Before(deadline) {
		if answer := in.token(open, "payments"); answer.Status != http.StatusOK {
			wantRefused(t, answer)
			if now := time.Now(); now.Before(cert.Leaf.NotAfter.Add(-1100 * time.Millisecond)) {
				t.Errorf("refused at %s, before the certificate ended at %s", now, cert.Leaf.NotAfter)
			}
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Error("an expired certificate went on getting tokens")
}

// A hundred thousand tokens leave no row anywhere: the database file keeps its size.
func TestTokensLeaveTheDatabaseAlone(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	in.addLedger()
	cert := in.enrolled("payments")
	if err := in.stop(); err != nil {
		t.Fatal(err)
	}
	s := &service{cfg: testConfig(t, in.data), log: discard()}
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	if err := s.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.build(t.Context()); err != nil {
		t.Fatal(err)
	}
	request := issuer.Request{GrantType: issuer.ClientCredentials, ClientID: "payments", Peer: mtls.NewPeer(cert.Leaf)}
	if _, err := s.issuer.Issue(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	before := databaseSize(t, in.data)
	for range manyTokens {
		if _, err := s.issuer.Issue(t.Context(), request); err != nil {
			t.Fatal(err)
		}
	}
	if after := databaseSize(t, in.data); after != before {
		t.Errorf("the database grew from %d to %d bytes over %d tokens", before, after, manyTokens)
	}
}

// databaseSize counts the database with everything beside it.
func databaseSize(tb testing.TB, data string) (total int64) {
	tb.Helper()
	names, err := filepath.Glob(filepath.Join(data, "certbound.db*"))
	if err != nil || len(names) == 0 {
		tb.Fatalf("no database in %s: %v", data, err)
	}
	for _, name := range names {
		info, err := os.Stat(name)
		if err != nil {
			tb.Fatal(err)
		}
		total += info.Size()
	}
	return total
}

// A decision that cannot be recorded gives nothing: with the journal gone there is no token, and the
// answer is the registered one for a server that cannot decide now.
func TestNothingUnrecorded(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	in.addLedger()
	cert := in.enrolled("payments")
	if err := in.stop(); err != nil {
		t.Fatal(err)
	}
	s := &service{cfg: testConfig(t, in.data), log: discard()}
	t.Cleanup(func() { _ = s.close() }) // the journal is closed already, which is the point
	if err := s.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.build(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.folder.journal.Close(); err != nil {
		t.Fatal(err)
	}
	res, err := s.issuer.Issue(t.Context(), issuer.Request{
		GrantType: issuer.ClientCredentials, ClientID: "payments", Peer: mtls.NewPeer(cert.Leaf),
	})
	if err == nil || res != nil {
		t.Fatalf("a token without a record: %v", err)
	}
	if _, err := s.authority.IssueDirectly(t.Context(), "payments"); err == nil {
		t.Error("a certificate without a record")
	}
}

// A restart keeps clients, certificates, keys and ports.
func TestRestartKeepsEverything(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t, t.TempDir())
	in := start(t, cfg)
	in.addLedger()
	cert := in.enrolled("payments")
	before := in.get(in.issuer + pathKeys)
	issuerBefore, mtlsBefore := in.issuer, in.mtls
	if err := in.stop(); err != nil {
		t.Fatal(err)
	}
	in = start(t, cfg)
	if in.issuer != issuerBefore || in.mtls != mtlsBefore {
		t.Errorf("issuer %s then %s, mtls %s then %s", issuerBefore, in.issuer, mtlsBefore, in.mtls)
	}
	if after := in.get(in.issuer + pathKeys); after != before {
		t.Error("the signing keys changed over a restart")
	}
	wantToken(t, in.token(in.client(&cert), "payments"))
	in.mustOperate(http.MethodGet, "/clients/payments", nil, nil)
}

func (in *instance) get(address string) string {
	in.tb.Helper()
	res, err := in.client(nil).Get(address)
	if err != nil {
		in.tb.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		in.tb.Fatalf("GET %s: status %d, %v", address, res.StatusCode, err)
	}
	return string(body)
}

// What a start relies on and finds missing, damaged or another's is refused, and the file is named.
func TestStartIsRefused(t *testing.T) {
	t.Parallel()
	first := testConfig(t, t.TempDir())
	in := start(t, first)
	if err := in.stop(); err != nil {
		t.Fatal(err)
	}
	other := start(t, testConfig(t, t.TempDir()))
	if err := other.stop(); err != nil {
		t.Fatal(err)
	}
	foreign, err := os.ReadFile(filepath.Join(other.data, "ca", "root.pem"))
	if err != nil {
		t.Fatal(err)
	}
	foreignKEK, err := os.ReadFile(filepath.Join(other.data, "kek"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"ca/root.pem", "ca/issuing.pem", "kek", "certbound.db", "admin/profile.json", "admin/cert.pem", "admin/key.pem", "admin/roots.pem"} {
		path := filepath.Join(first.Data, file)
		original, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		damage := map[string][]byte{"empty": {}, "truncated": original[:len(original)/3]}
		switch file {
		case "ca/root.pem", "ca/issuing.pem", "admin/cert.pem":
			damage["another's"] = foreign
		case "kek":
			damage["another's"] = foreignKEK
		}
		if file != "certbound.db" { // a folder without a database is a first start, unless the rest says otherwise
			damage["missing"] = nil
		}
		for kind, content := range damage {
			name := file + " " + kind
			target, err := filepath.EvalSymlinks(path)
			if err != nil {
				t.Fatal(err)
			}
			if content == nil {
				err = os.Rename(target, target+".away")
			} else {
				err = os.WriteFile(target, content, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			_, startErr := tryStart(t, first)
			if startErr == nil {
				t.Errorf("%s: the service started", name)
			} else if !strings.Contains(startErr.Error(), named(file)) {
				t.Errorf("%s: the error does not name the file: %v", name, startErr)
			}
			_ = os.Remove(target + ".away")
			if err := os.WriteFile(target, original, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	issuer := "https://other.example"
	changed := testConfigWith(t, first.Data, issuer)
	if _, err := tryStart(t, changed); err == nil || !strings.Contains(err.Error(), issuer) {
		t.Errorf("another issuer on the same data: %v", err)
	}
	in = start(t, first)
	if _, err := tryStart(t, first); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second service on the same data: %v", err)
	}
	in.mustOperate(http.MethodGet, "/clients", nil, nil)
}

// named is what an error about the file must say: its name, or for a profile that is not there its folder.
func named(file string) string {
	if file == "admin/profile.json" {
		return "admin"
	}
	return filepath.Base(file)
}

// held is a connection whose writes wait, once hold is called, until release is closed.
type held struct {
	net.Conn
	held    atomic.Bool
	release chan struct{}
}

func (h *held) Write(p []byte) (int, error) {
	if h.held.Swap(true) { // the first is the ClientHello
		<-h.release
	}
	return h.Conn.Write(p)
}

// A connection whose handshake ends after the stop began, and which stays open without a request, does not hold the stop up.
func TestStopTellsLateConnections(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t, t.TempDir())
	cfg.HTTP.ShutdownTimeout = 20 * time.Second
	in := start(t, cfg)
	address := strings.TrimPrefix(in.issuer, "https://")
	tcp, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	h := &held{Conn: tcp, release: make(chan struct{})}
	c := tls.Client(h, &tls.Config{RootCAs: in.roots(), ServerName: "localhost", NextProtos: []string{"h2"}})
	shaken := make(chan error, 1)
	go func() { shaken <- c.HandshakeContext(t.Context()) }()
	eventually(t, 20*time.Second, "the ClientHello is on its way", h.held.Load)
	in.awaitMetric("go_goroutines") // and the connection, which came first, is taken in
	stopped := make(chan error, 1)
	go func() { stopped <- in.stop() }()
	eventually(t, 20*time.Second, "no connection is taken any more", func() bool {
		other, err := net.Dial("tcp", address)
		if err == nil {
			other.Close()
		}
		return err != nil
	})
	close(h.release)
	if err := <-shaken; err != nil {
		t.Fatal(err)
	}
	// The preface and empty SETTINGS (RFC 9113, Section 3.4): then it is idle.
	if _, err := c.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, c); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
	if err := <-stopped; err != nil {
		t.Errorf("stopping: %v", err)
	}
}

// SIGTERM's way down: requests under way finish, new connections are refused, the ready file is gone.
func TestStopLetsRequestsFinish(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	in.addLedger()
	cert := in.enrolled("payments")
	c := in.client(&cert, func(cfg *tls.Config) { cfg.NextProtos = []string{"http/1.1"} })
	// The body is asked for by who reads it: from then on the request is under way. One whose header comes after the stop
	// has begun is not answered.
	c.Transport.(*http.Transport).ExpectContinueTimeout = time.Minute

	body, slow := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, in.mtls+pathToken, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Expect", "100-continue")
	type result struct {
		status int
		err    error
	}
	answered := make(chan result, 1)
	go func() {
		res, err := c.Do(req)
		if err != nil {
			answered <- result{err: err}
			return
		}
		res.Body.Close()
		answered <- result{status: res.StatusCode}
	}()
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {"payments"}}.Encode()
	if _, err := io.WriteString(slow, form[:10]); err != nil {
		t.Fatal(err)
	}
	in.awaitMetric(`go_goroutines`) // the service is answering others meanwhile
	stopped := make(chan error, 1)
	go func() { stopped <- in.stop() }()
	probe := in.client(nil)
	deadline := time.Now().Add(10 * time.Second)
	for {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, in.issuer+pathKeys, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := probe.Do(r)
		cancel()
		if err != nil {
			break
		}
		res.Body.Close()
		probe.CloseIdleConnections()
		if time.Now().After(deadline) {
			t.Fatal("the service goes on accepting connections after it was told to stop")
		}
	}
	if _, err := io.WriteString(slow, form[10:]); err != nil {
		t.Fatal(err)
	}
	slow.Close()
	if got := <-answered; got.err != nil || got.status != http.StatusOK {
		t.Errorf("the request under way: status %d, %v", got.status, got.err)
	}
	if err := <-stopped; err != nil {
		t.Errorf("stopping: %v", err)
	}
	if _, err := os.Stat(filepath.Join(in.data, "serve.json")); !os.IsNotExist(err) {
		t.Errorf("serve.json after the stop: %v", err)
	}
}

// awaitMetric waits until /metrics has a name.
func (in *instance) awaitMetric(name string) string {
	in.tb.Helper()
	res, err := http.Get("http://" + in.debug + "/metrics")
	if err != nil {
		in.tb.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		in.tb.Fatal(err)
	}
	if !strings.Contains(string(body), name) {
		in.tb.Errorf("no %s in the metrics", name)
	}
	return string(body)
}

// Health, readiness and metrics are there for monitoring; no token, code, key or client id is in a metric,
// a log line or the journal.
func TestMonitoringTellsNoSecrets(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	in.addLedger()
	code := in.addClient("payments")
	key := newKey(t)
	_, res := in.redeem(code, key)
	cert := pair(t, res, key)
	issued := in.token(in.client(&cert), "payments")
	wantToken(t, issued)
	wantRefused(t, in.token(in.client(&cert), "nobody"))

	for _, path := range []string{"/healthz", "/readyz"} {
		res, err := http.Get("http://" + in.debug + path)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusOK {
			t.Errorf("%s: status %d", path, res.StatusCode)
		}
	}
	text := in.awaitMetric("certbound_tokens_issued_total")
	for _, want := range []string{
		`certbound_token_refusals_total{error="invalid_client"`, `certbound_certificate_requests_total{kind="enroll",outcome="granted"} 1`,
		`certbound_certificate_not_after_seconds{certificate="server"}`, `certbound_http_requests_total{listener="mtls",route="token",status="200"}`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in the metrics", want)
		}
	}
	if strings.Contains(text, "payments") || strings.Contains(text, "nobody") {
		t.Error("a client id in the metrics")
	}
	if err := in.stop(); err != nil {
		t.Fatal(err)
	}
	seed := code.String()
	for where, written := range map[string]string{"metrics": text, "log": in.logs.String(), "journal": in.journal()} {
		if where != "metrics" && !strings.Contains(written, "nobody") {
			t.Errorf("the %s says nothing of the client: this test shows nothing", where)
		}
		signature := issued.Token[strings.LastIndexByte(issued.Token, '.')+1:]
		for _, secret := range []string{issued.Token, signature, seed, "PRIVATE KEY"} {
			if strings.Contains(written, secret) {
				t.Errorf("a secret in the %s", where)
			}
		}
	}
}

// The service's own certificate is replaced while it runs, without a restart and without a cut connection.
func TestOwnCertificateRenewsItself(t *testing.T) {
	t.Parallel()
	s := &service{cfg: testConfig(t, t.TempDir()), log: discard()}
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	if err := s.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.build(t.Context()); err != nil {
		t.Fatal(err)
	}
	first := s.own.Current().Leaf
	if s.ownDue(first, time.Now()) {
		t.Fatal("a fresh certificate is due already")
	}
	if !s.ownDue(first, halfLife(first).Add(time.Second)) {
		t.Error("a certificate past half its life is not due")
	}
	if err := s.renewOwnOnce(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !s.own.Current().Leaf.Equal(first) {
		t.Error("a certificate that was not due was replaced")
	}
	// A name that the certificate lacks makes it due at once, as the passing of time would.
	s.cfg.Hosts = []string{"tokens.example"}
	if err := s.renewOwnOnce(t.Context()); err != nil {
		t.Fatal(err)
	}
	second := s.own.Current().Leaf
	if second.Equal(first) || second.VerifyHostname("tokens.example") != nil {
		t.Error("the certificate was not replaced")
	}
	if second.VerifyHostname("localhost") != nil || second.VerifyHostname("127.0.0.1") != nil {
		t.Errorf("the new certificate lost names: %v %v", second.DNSNames, second.IPAddresses)
	}
}

// The operator's profile in the data folder is kept fresh, and brought back when it lapsed.
func TestOperatorProfileComesBack(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t, t.TempDir())
	cfg.Certificate.Lifetime = time.Second
	in := start(t, cfg)
	if err := in.stop(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1200 * time.Millisecond) // the profile's certificate, of one second, has expired now
	cfg.Certificate.Lifetime = time.Hour
	in = start(t, cfg)
	in.mustOperate(http.MethodGet, "/clients", nil, nil)
}
