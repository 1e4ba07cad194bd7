// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/config"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/cmd/internal/trust"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/pki"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/issuer"
)

func certificatePEM(cert *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
}

// CA-15, EC-08: RFC 5280, Section 4.2.1.12: a certificate for servers only authenticates no client and gets no
// token, but it renews itself: the renewal is the CA's own business and gives no more than there was.
func TestRFC5280_4_2_1_12_ServerOnlyCertificate(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	in.addLedger()
	var added struct {
		Code string `json:"code"`
	}
	in.mustOperate(http.MethodPost, "/clients",
		map[string]any{"client_id": "ledger", "scope": write, "usage": "server", "dns_names": []string{"ledger.internal"}}, &added)
	code, err := pki.ParseCode(added.Code)
	if err != nil {
		t.Fatal(err)
	}
	key := newKey(t)
	status, res := in.redeem(code, key)
	if status != http.StatusOK {
		t.Fatalf("enrolment: status %d", status)
	}
	cert := pair(t, res, key)
	wantRefused(t, in.token(in.client(&cert), "ledger"))
	status, res = in.certify(in.client(&cert), in.mtls+pathRenew, pki.NewRenewRequest(newCSR(t, key)))
	if status != http.StatusOK {
		t.Fatalf("renewal: status %d, want 200", status)
	}
	child := pair(t, res, key)
	if len(child.Leaf.ExtKeyUsage) != 1 || child.Leaf.ExtKeyUsage[0] != x509.ExtKeyUsageServerAuth {
		t.Errorf("the renewed certificate is for %v", child.Leaf.ExtKeyUsage)
	}
	wantRefused(t, in.token(in.client(&child), "ledger"))
	in.mustOperate(http.MethodPost, "/certificates/revoke", map[string]any{"client_id": "ledger"}, nil)
	if status, _ := in.certify(in.client(&child), in.mtls+pathRenew, pki.NewRenewRequest(newCSR(t, key))); status != http.StatusUnauthorized {
		t.Errorf("renewal of a revoked server's certificate: status %d, want 401", status)
	}
}

// A2: two live children of one certificate with different keys are the trace of a theft: an event, a metric, and
// where the operator chose so the client's suspension. A renewal repeated with the same key is no fork.
func TestRenewalForkIsNoticed(t *testing.T) {
	t.Parallel()
	for _, policy := range []string{"alarm", "suspend"} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			cfg := testConfig(t, t.TempDir())
			cfg.Certificate.OnFork = policy
			in := start(t, cfg)
			in.addLedger()
			cert := in.enrolled("payments")
			c := in.client(&cert)
			again := pki.NewRenewRequest(newCSR(t, newKey(t)))
			for range 2 {
				if status, _ := in.certify(c, in.mtls+pathRenew, again); status != http.StatusOK {
					t.Fatalf("renewal: status %d", status)
				}
			}
			if strings.Contains(in.journal(), `"renew.fork"`) {
				t.Fatal("a repeated renewal raised the alarm")
			}
			status, _ := in.certify(c, in.mtls+pathRenew, pki.NewRenewRequest(newCSR(t, newKey(t))))
			if !strings.Contains(in.journal(), `"renew.fork"`) {
				t.Error("no renew.fork in the journal")
			}
			in.awaitMetric("certbound_renewal_forks_total 1")
			if policy == "alarm" {
				if status != http.StatusOK {
					t.Errorf("the second key: status %d, want 200 where a fork is only an alarm", status)
				}
				wantToken(t, in.token(c, "payments"))
				return
			}
			if status != http.StatusUnauthorized {
				t.Errorf("the second key: status %d, want 401 where a fork suspends", status)
			}
			wantRefused(t, in.token(c, "payments"))
		})
	}
}

// GET /whoami tells the caller about its own certificate and nothing about anybody else's client.
func TestWhoamiTellsOnlyTheOwner(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	in.addLedger()
	payments, billing := in.enrolled("payments"), in.enrolled("billing")
	stranger := mtlstest.SelfSigned(t, mtlstest.Leaf{CommonName: "payments", DNSNames: []string{"payments"}})

	ask := func(cert *tls.Certificate, query string) whoamiAnswer {
		t.Helper()
		res, err := in.client(cert).Get(in.mtls + pathWhoami + query)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		var answer whoamiAnswer
		if err := json.NewDecoder(res.Body).Decode(&answer); err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("status %d, %v", res.StatusCode, err)
		}
		if answer.CorrelationID == "" || answer.CorrelationID != res.Header.Get("X-Correlation-Id") {
			t.Errorf("correlation id %q in the body, %q in the header", answer.CorrelationID, res.Header.Get("X-Correlation-Id"))
		}
		return answer
	}
	if a := ask(nil, ""); a.Certificate != nil || a.Client != nil || a.Hint == "" {
		t.Errorf("without a certificate: %+v", a)
	}
	own := ask(&payments, "")
	if own.Certificate == nil || own.Certificate.Thumbprint != thumbprint(payments) || own.Certificate.Chain != "ok" {
		t.Errorf("own certificate: %+v", own.Certificate)
	}
	if own.Client == nil || own.Client.ID != "payments" || !own.Client.Authenticates || own.Client.Reason != "" {
		t.Errorf("own client: %+v", own.Client)
	}
	// Naming another client tells nothing of it: whether it exists, or why the certificate is not its.
	if a := ask(&payments, "?client_id=billing"); a.Client == nil || a.Client.ID != "payments" {
		t.Errorf("payments naming billing: %+v", a.Client)
	}
	for _, id := range []string{"billing", "nobody"} {
		a := ask(&stranger, "?client_id="+id)
		if a.Client != nil || a.Certificate == nil || a.Certificate.Chain != "untrusted" {
			t.Errorf("a stranger naming %s: client %+v, certificate %+v", id, a.Client, a.Certificate)
		}
	}
	in.mustOperate(http.MethodPost, "/certificates/revoke", map[string]any{"x5t#S256": thumbprint(billing)}, nil)
	if a := ask(&billing, ""); a.Client == nil || a.Client.Authenticates || a.Client.Reason != "certificate_revoked" {
		t.Errorf("a revoked certificate: %+v", a.Client)
	}
}

// socketClient speaks to the break-glass socket.
func (in *instance) socketClient() *http.Client {
	name := filepath.Join(in.data, socketName)
	t := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", name)
	}}
	in.tb.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t, Timeout: 10 * time.Second}
}

// A4: the break-glass socket works without token, certificate or operator, answers what takes away and what brings
// an operator back, records its caller, and is the service's own user's.
func TestBreakGlass(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	in.addLedger()
	cert, victim := in.enrolled("payments"), in.enrolled("billing")
	if info, err := os.Stat(filepath.Join(in.data, socketName)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket's mode: %v, %v", info, err)
	}
	c := in.socketClient()
	call := func(method, path, body string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://certbound/admin/v1"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if body != "" {
			req.Header.Set("Content-Type", "application/json")
		}
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		answer, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(answer)
	}
	if status, body := call(http.MethodGet, "/status", ""); status != http.StatusOK || !strings.Contains(body, in.issuer) {
		t.Errorf("status: %d %s", status, body)
	}
	for _, path := range []string{"/clients", "/resources", "/certificates"} {
		if status, _ := call(http.MethodGet, path, ""); status == http.StatusOK {
			t.Errorf("GET %s: %d; the socket is not a way round the operators' API", path, status)
		}
	}
	if status, body := call(http.MethodPost, "/clients", `{"client_id":"mallory"}`); status < 400 {
		t.Errorf("adding a client: %d %s", status, body)
	}
	if status, body := call(http.MethodPost, "/certificates/revoke", `{"x5t#S256":"`+thumbprint(victim)+`"}`); status != http.StatusOK {
		t.Errorf("revoke: %d %s", status, body)
	}
	wantRefused(t, in.token(in.client(&victim), "billing"))
	if status, body := call(http.MethodPost, "/clients/payments/disable", ""); status != http.StatusOK {
		t.Errorf("disable: %d %s", status, body)
	}
	wantRefused(t, in.token(in.client(&cert), "payments"))
	if status, _ := call(http.MethodPost, "/clients/payments/invite", ""); status < 400 {
		t.Errorf("inviting a client that is no operator: %d", status)
	}
	status, body := call(http.MethodPost, "/clients/operator/invite", "")
	var invited struct {
		Code string `json:"code"`
	}
	if err := json.Unmarshal([]byte(body), &invited); err != nil || status != http.StatusCreated {
		t.Fatalf("a fresh operator's code: %d %s", status, body)
	}
	code, err := pki.ParseCode(invited.Code)
	if err != nil {
		t.Fatal(err)
	}
	if status, _ := in.redeem(code, newKey(t)); status != http.StatusOK {
		t.Errorf("redeeming the operator's code: %d", status)
	}
	if !strings.Contains(in.journal(), `break-glass:`) {
		t.Error("the journal does not say who came through the socket")
	}
	if err := in.stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(in.data, socketName)); !os.IsNotExist(err) {
		t.Errorf("the socket after the stop: %v", err)
	}
}

// Whoever is neither the service's user nor root is refused, and so is a caller of whom the kernel says nothing.
func TestBreakGlassIsForOurself(t *testing.T) {
	t.Parallel()
	journal, err := audit.Open(t.Context(), audit.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := journal.Close(); err != nil {
			t.Error(err)
		}
	})
	s := &service{log: discard(), folder: &folder{journal: journal}}
	reached := false
	h := s.onlyOurself(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
	for name, tc := range map[string]struct {
		uid  any
		want bool
	}{"ourself": {os.Geteuid(), true}, "root": {0, true}, "another user": {os.Geteuid() + 4711, false}, "unknown": {nil, false}} {
		reached = false
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/admin/v1/status", nil)
		if tc.uid != nil {
			r = r.WithContext(context.WithValue(r.Context(), callerUIDKey{}, tc.uid))
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if reached != tc.want || !tc.want && w.Code != http.StatusForbidden {
			t.Errorf("%s: let through %t, status %d", name, reached, w.Code)
		}
	}
}

// TLS-07, A1: RFC 8446, Section 2.2: a ticket of one listener resumes nothing on the other, and after a reset no
// ticket resumes anything.
func TestRFC8446_2_2_TicketsOfTheService(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	in.addLedger()
	cert := in.enrolled("payments")
	host := func(address string) string { return strings.TrimPrefix(address, "https://") }
	cache := tls.NewLRUClientSessionCache(4)
	connect := func(address string) bool {
		t.Helper()
		// One name for both listeners, so that the cache offers either the other's ticket.
		conn, err := tls.Dial("tcp", host(address), &tls.Config{
			RootCAs: in.roots(), ServerName: "localhost", Certificates: []tls.Certificate{cert}, ClientSessionCache: cache,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		// A TLS 1.3 ticket comes behind the handshake: an answer brings it along.
		if _, err := io.WriteString(conn, "GET "+pathRoots+" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, conn); err != nil {
			t.Fatal(err)
		}
		return conn.ConnectionState().DidResume
	}
	if connect(in.mtls) || !connect(in.mtls) {
		t.Fatal("the second connection to one listener did not resume: this test shows nothing")
	}
	if connect(in.issuer) {
		t.Error("a ticket of the mtls listener resumed on the public one")
	}
	if connect(in.mtls) {
		t.Error("a ticket of the public listener resumed on the mtls one")
	}
	if !connect(in.mtls) {
		t.Fatal("a fresh ticket did not resume")
	}
	res, err := in.socketClient().Post("http://certbound/admin/v1/tickets/reset", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		t.Fatalf("reset: status %d", res.StatusCode)
	}
	if connect(in.mtls) {
		t.Error("a ticket from before the reset resumed")
	}
}

// S5: a trust file that is damaged while the service runs keeps the last good anchors, raises an alarm, and is named
// in readiness; at a start it is refused. A repaired file is taken up.
func TestTrustFileOfTheConfiguration(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "partner")
	file := filepath.Join(t.TempDir(), "partner.pem")
	good := []byte(certificatePEM(ca.Certificate()))
	if err := os.WriteFile(file, good, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := testConfig(t, t.TempDir())
	cfg.Trust = []config.Trust{{Name: "partner", CAFile: file}}
	in := start(t, cfg)
	in.addLedger()
	in.mustOperate(http.MethodPost, "/clients", map[string]any{
		"client_id": "feed", "trust": "partner", "tls_client_auth_san_dns": "feed.partner.example", "scope": write,
	}, nil)
	cert := ca.Issue(t, mtlstest.Leaf{CommonName: "feed", DNSNames: []string{"feed.partner.example"}})
	wantToken(t, in.token(in.client(&cert), "feed"))
	twin := mtlstest.NewCA(t, "partner")
	other := twin.Issue(t, mtlstest.Leaf{CommonName: "feed", DNSNames: []string{"feed.partner.example"}})
	wantRefused(t, in.token(in.client(&other), "feed"))

	in.awaitReady(`"trust:partner":"ok"`)
	if err := os.WriteFile(file, good[:len(good)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	in.awaitReady(file)
	wantToken(t, in.token(in.client(&cert), "feed"))
	in.awaitMetric("certbound_trust_alarms_total")
	// The twin's certificate is another CA's, whatever it is called: from now on it is the one that counts.
	if err := os.WriteFile(file, []byte(certificatePEM(twin.Certificate())), 0o600); err != nil {
		t.Fatal(err)
	}
	in.awaitReady(`"trust:partner":"ok"`)
	wantRefused(t, in.token(in.client(&cert), "feed"))
	wantToken(t, in.token(in.client(&other), "feed"))
	if err := in.stop(); err != nil {
		t.Fatal(err)
	}
	// Our own root as a foreign one would be a way round the inventory.
	own, err := os.ReadFile(filepath.Join(in.data, "ca", "root.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, own, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := tryStart(t, cfg); err == nil {
		t.Error("the service started with its own root as a foreign one")
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := tryStart(t, cfg); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a start with an empty trust file: %v", err)
	}
}

// awaitReady waits until readiness says something, and is still ready.
func (in *instance) awaitReady(want string) {
	in.tb.Helper()
	deadline := time.Now().Add(20 * time.Second)
	var body []byte
	for time.Now().Before(deadline) {
		res, err := http.Get("http://" + in.debug + "/readyz")
		if err != nil {
			in.tb.Fatal(err)
		}
		body, err = io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != http.StatusOK {
			in.tb.Fatalf("readiness: status %d, %v: %s", res.StatusCode, err, body)
		}
		if bytes.Contains(body, []byte(want)) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	in.tb.Fatalf("readiness does not say %s: %s", want, body)
}

// CA-16, CA-20: RFC 8705, Section 2.2: a self-signed client is its registered certificates, several while it rotates;
// one that was taken off stops at once, also on a connection that is open.
func TestRFC8705_2_2_RotationOfRegisteredCertificates(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	in.addLedger()
	leaf := mtlstest.Leaf{CommonName: "feed"}
	first, second := mtlstest.SelfSigned(t, leaf), mtlstest.SelfSigned(t, leaf)
	in.mustOperate(http.MethodPost, "/clients", map[string]any{
		"client_id": "feed", "scope": write, "certificates": []string{certificatePEM(first.Leaf)},
	}, nil)
	open := in.client(&first)
	wantToken(t, in.token(open, "feed"))
	wantRefused(t, in.token(in.client(&second), "feed"))
	in.mustOperate(http.MethodPut, "/clients/feed/certificates", map[string]any{
		"certificates": []string{certificatePEM(first.Leaf), certificatePEM(second.Leaf)},
	}, nil)
	wantToken(t, in.token(open, "feed"))
	wantToken(t, in.token(in.client(&second), "feed"))
	in.mustOperate(http.MethodPut, "/clients/feed/certificates", map[string]any{"certificates": []string{certificatePEM(second.Leaf)}}, nil)
	wantRefused(t, in.token(open, "feed"))
	wantToken(t, in.token(in.client(&second), "feed"))
	// Nothing of ours is renewed for it.
	if status, _ := in.certify(in.client(&second), in.mtls+pathRenew, pki.NewRenewRequest(newCSR(t, newKey(t)))); status != http.StatusUnauthorized {
		t.Errorf("renewing a foreign certificate: status %d, want 401", status)
	}
}

// The registry judges each kind of client by what vouches for it and by nothing else.
func TestRegistryOfEachKind(t *testing.T) {
	t.Parallel()
	anchors := mtlstest.NewCA(t, "own").Anchors(t)
	r := &registry{foreign: nobodyForeign{}, anchors: anchors, trustDomain: "test.internal", loaded: true, grantSets: make(map[string][]issuer.Grant)}
	own, err := r.client(t.Context(), &store.Client{ID: "payments", AuthMethod: "tls_client_auth"}, 0)
	if err != nil || !own.Inventory || own.Anchors != anchors || own.Subject.Value() != "spiffe://test.internal/client/payments" {
		t.Errorf("own CA: %+v, %v", own, err)
	}
	if _, err := r.client(t.Context(), &store.Client{ID: "feed", AuthMethod: "tls_client_auth", Trust: "gone", SubjectKind: string(mtls.SANDNS), SubjectValue: "feed.example"}, 0); err == nil {
		t.Error("a client of an unknown trust became one of ours")
	}
	pinned, err := r.client(t.Context(), &store.Client{ID: "feed", AuthMethod: "self_signed_tls_client_auth"}, 0)
	if err != nil || pinned.Inventory || pinned.Anchors != nil || !pinned.Subject.IsZero() {
		t.Errorf("self-signed: %+v, %v", pinned, err)
	}
}

// nobodyForeign vouches for nobody.
type nobodyForeign struct{}

func (nobodyForeign) Anchors(context.Context, string) (*mtls.Anchors, issuer.Revocation, error) {
	return nil, nil, trust.ErrUnknown
}
func (nobodyForeign) Certificates(store.Client) issuer.CertificateSet { return nil }
func (nobodyForeign) Keys(store.Client) tokens.Keys                   { return nil }
