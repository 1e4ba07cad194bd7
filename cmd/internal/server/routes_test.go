// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/pki"
	"github.com/certbound/certbound/tokens/issuer"
)

// bareService has what entry and the router need.
func bareService(tb testing.TB) (*service, *syncBuffer) {
	tb.Helper()
	logs := &syncBuffer{}
	ca := &x509.Certificate{}
	s := &service{log: newLog(logs), identity: identity{issuer: "https://auth.test"}, metrics: newMetrics("test", &hierarchy{root: ca, issuing: ca})}
	return s, logs
}

// built is a service with everything but its listeners serving.
func built(tb testing.TB, data string, change ...func(*service)) *service {
	tb.Helper()
	s := &service{cfg: testConfig(tb, data), log: discard()}
	for _, f := range change {
		f(s)
	}
	tb.Cleanup(func() {
		if err := s.close(); err != nil {
			tb.Error(err)
		}
	})
	if err := s.open(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	if err := s.build(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	return s
}

// Each listener answers its own paths and no others; what is refused is JSON, and says which methods there are.
func TestRoutes(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	c, plain := in.client(nil), http.DefaultClient
	debug := "http://" + in.debug
	const get, post = "GET, HEAD", "POST"
	for _, tc := range []struct {
		method, address string
		client          *http.Client
		want            int
		allow           string
	}{
		{"GET", in.issuer + "/", c, 404, ""},
		{"GET", in.mtls + "/", c, 404, ""},
		{"GET", debug + "/", plain, 404, ""},
		{"GET", in.issuer + "/pki/../crl", c, 404, ""},
		{"GET", in.issuer + pathCRL + "/", c, 404, ""},
		{"POST", in.issuer + pathRenew, c, 404, ""},
		{"GET", in.issuer + "/admin/v1/clients", c, 404, ""},
		{"GET", in.issuer + "/metrics", c, 404, ""},
		{"GET", in.mtls + "/metrics", c, 404, ""},
		{"GET", in.mtls + pathKeys, c, 404, ""},
		{"POST", debug + pathEnroll, plain, 404, ""},
		{"GET", in.mtls + "/admin/v1/clients", c, 401, ""},
		{"GET", in.issuer + pathEnroll, c, 405, post},
		{"PUT", in.mtls + pathEnroll, c, 405, post},
		{"DELETE", in.mtls + pathRenew, c, 405, post},
		{"GET", in.mtls + pathIntrospect, c, 405, post},
		{"GET", in.issuer + pathIntrospect, c, 405, post},
		{"POST", in.issuer + pathRoots, c, 405, get},
		{"PUT", in.issuer + pathCRL, c, 405, get},
		{"DELETE", in.issuer + pathKeys, c, 405, get},
		{"POST", debug + "/healthz", plain, 405, get},
		{"HEAD", in.issuer + pathCRL, c, 200, ""},
		{"GET", in.issuer + pathRoots, c, 200, ""},
		{"GET", in.mtls + pathCRL, c, 200, ""},
		{"GET", in.issuer + "/.well-known/oauth-authorization-server", c, 200, ""},
	} {
		req, err := http.NewRequestWithContext(t.Context(), tc.method, tc.address, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := tc.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != tc.want || res.Header.Get("Allow") != tc.allow {
			t.Errorf("%s %s: status %d, Allow %q, %v; want %d, %q", tc.method, tc.address, res.StatusCode, res.Header.Get("Allow"), err, tc.want, tc.allow)
		}
		if tc.want >= 404 && (!json.Valid(body) || res.Header.Get("Content-Type") != "application/json" || res.Header.Get("Cache-Control") != "no-store") {
			t.Errorf("%s %s: not a JSON refusal: %q %v", tc.method, tc.address, body, res.Header)
		}
		if len(res.Header.Get(issuer.CorrelationHeader)) != 16 {
			t.Errorf("%s %s: correlation id %q", tc.method, tc.address, res.Header.Get(issuer.CorrelationHeader))
		}
	}
	if text := in.awaitMetric("certbound_http_requests_total"); !strings.Contains(text, `{listener="public",route="unknown",status="404"}`) ||
		!strings.Contains(text, `{listener="public",route="crl",status="405"}`) || strings.Contains(text, "..") {
		t.Error("refusals are not counted by route")
	}
}

// A good request in too large a body is refused, whether the excess comes before it or after it.
func TestEnroll_BodyIsBounded(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	in.addLedger()
	request, err := json.Marshal(pki.NewEnrollRequest(in.addClient("payments"), in.issuer, newCSR(t, newKey(t))))
	if err != nil {
		t.Fatal(err)
	}
	excess := strings.Repeat(" ", 65<<10)
	c := in.client(nil)
	for _, tc := range []struct {
		name, body, contentType string
		want                    int
	}{
		{"excess before", excess + string(request), "application/json", 400},
		{"excess after", string(request) + excess, "application/json", 400},
		{"another object after", string(request) + "{}", "application/json", 400},
		{"unknown member", strings.Replace(string(request), "{", `{"scope":"certbound:admin",`, 1), "application/json", 400},
		{"not JSON by name", string(request), "text/plain", 400},
		{"as it should be", string(request) + "\n", "application/json; charset=utf-8", 200},
	} {
		res, err := c.Post(in.issuer+pathEnroll, tc.contentType, strings.NewReader(tc.body))
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != tc.want {
			t.Errorf("%s: status %d, want %d", tc.name, res.StatusCode, tc.want)
		}
	}
}

// The first of our handlers bounds every body, names every request, and answers a panic without telling of it; an
// answer that has begun is cut instead, so that half of one never looks whole.
func TestEntry(t *testing.T) {
	t.Parallel()
	s, logs := bareService(t)
	serve := func(h http.HandlerFunc, body string) (w *httptest.ResponseRecorder, panicked any) {
		w = httptest.NewRecorder()
		defer func() { panicked = recover() }()
		s.entry("public", h).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/x", strings.NewReader(body)))
		return w, nil
	}

	var seen, address string
	w, _ := serve(func(_ http.ResponseWriter, r *http.Request) {
		seen, address = issuer.CorrelationID(r.Context()), issuer.Address(r.Context())
	}, "")
	if got := w.Header().Get(issuer.CorrelationHeader); got != seen || len(seen) != 16 || address != "192.0.2.1" {
		t.Errorf("correlation %q in the context, %q in the answer; address %q", seen, got, address)
	}

	var n int64
	var err error
	_, _ = serve(func(_ http.ResponseWriter, r *http.Request) { n, err = io.Copy(io.Discard, r.Body) }, strings.Repeat("x", maxBody+1))
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); !tooLarge || n != maxBody {
		t.Errorf("read %d bytes, %v", n, err)
	}

	w, panicked := serve(func(http.ResponseWriter, *http.Request) { panic("secret detail") }, "")
	var answer struct {
		Error string `json:"error"`
	}
	if err := json.Unmarshal(w.Body.Bytes(), &answer); panicked != nil || err != nil || w.Code != http.StatusInternalServerError || answer.Error != "server_error" {
		t.Errorf("a panic: %v, status %d, %s", panicked, w.Code, w.Body)
	}
	if strings.Contains(w.Body.String(), "secret detail") || !strings.Contains(logs.String(), "secret detail") {
		t.Errorf("a panic: answered %s, logged %s", w.Body, logs)
	}
	counted := func() string {
		w := httptest.NewRecorder()
		s.metrics.handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
		_, rest, _ := strings.Cut(w.Body.String(), "\ncertbound_panics_total ")
		count, _, _ := strings.Cut(rest, "\n")
		return count
	}
	if got := counted(); got != "1" {
		t.Errorf("%s panics counted, want 1", got)
	}

	for name, h := range map[string]http.HandlerFunc{
		"status": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted); panic("x") },
		"body":   func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "half"); panic("x") },
	} {
		w, panicked = serve(h, "")
		if panicked != http.ErrAbortHandler || strings.Contains(w.Body.String(), "error") {
			t.Errorf("a panic after the %s: %v, %q", name, panicked, w.Body)
		}
	}
	before := counted()
	if _, panicked := serve(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, ""); panicked != http.ErrAbortHandler {
		t.Errorf("an abort became %v", panicked)
	}
	if counted() != before {
		t.Error("an abort was counted as a panic")
	}
}

// Readiness says what is wrong: while stopping, without the database, and with an expired certificate.
func TestReady(t *testing.T) {
	t.Parallel()
	s := built(t, t.TempDir())
	ask := func() (int, string) {
		w := httptest.NewRecorder()
		s.ready(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/readyz", nil))
		return w.Code, w.Body.String()
	}
	if status, body := ask(); status != http.StatusOK {
		t.Fatalf("status %d %s", status, body)
	}
	s.draining.Store(true)
	if status, body := ask(); status != http.StatusServiceUnavailable || !strings.Contains(body, `"serving":"stopping"`) {
		t.Errorf("stopping: status %d %s", status, body)
	}
	s.draining.Store(false)
	expired := mtlstest.SelfSigned(t, mtlstest.Leaf{NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)})
	own := s.own
	var err error
	if s.own, err = mtls.NewKeyPair(expired); err != nil {
		t.Fatal(err)
	}
	if status, body := ask(); status != http.StatusServiceUnavailable || !strings.Contains(body, `"certificate":"expired"`) {
		t.Errorf("expired: status %d %s", status, body)
	}
	s.own = own
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	if status, body := ask(); status != http.StatusServiceUnavailable || !strings.Contains(body, `"database":"unreachable"`) {
		t.Errorf("without a database: status %d %s", status, body)
	}
}

// While it stops, the service says that it is not ready as long as a request is under way.
func TestReady_WhileStopping(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	c := in.client(nil, func(cfg *tls.Config) { cfg.NextProtos = []string{"http/1.1"} })
	c.Transport.(*http.Transport).ExpectContinueTimeout = time.Minute // the request is under way once its body is asked for
	body, slow := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, in.issuer+pathEnroll, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Expect", "100-continue")
	req.Header.Set("Content-Type", "application/json")
	answered := make(chan error, 1)
	go func() {
		res, err := c.Do(req)
		if err == nil {
			err = res.Body.Close()
		}
		answered <- err
	}()
	if _, err := io.WriteString(slow, `{"id":`); err != nil {
		t.Fatal(err)
	}
	keep := &http.Transport{}
	defer keep.CloseIdleConnections()
	monitor := &http.Client{Transport: keep, Timeout: 5 * time.Second}
	ask := func() int {
		res, err := monitor.Get("http://" + in.debug + "/readyz")
		if err != nil {
			t.Fatalf("readiness while a request is under way: %v", err)
		}
		res.Body.Close()
		return res.StatusCode
	}
	if status := ask(); status != http.StatusOK {
		t.Errorf("before: status %d", status)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- in.stop() }()
	for deadline := time.Now().Add(10 * time.Second); ask() != http.StatusServiceUnavailable; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Error("ready while stopping")
			break
		}
	}
	slow.Close()
	if err := errors.Join(<-answered, <-stopped); err != nil {
		t.Error(err)
	}
}

// A renewal that is refused before any client is known is on record all the same, with what was presented.
func TestRenew_RefusalsAreRecorded(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	foreign := mtlstest.SelfSigned(t, mtlstest.Leaf{URIs: []string{"spiffe://test/client/operator"}})
	for _, cert := range []*tls.Certificate{nil, &foreign} { // in this order, by which the second record is waited for
		name := "foreign"
		if cert == nil {
			name = "none"
		}
		request, err := json.Marshal(pki.NewRenewRequest(newCSR(t, newKey(t))))
		if err != nil {
			t.Fatal(err)
		}
		res, err := in.client(cert).Post(in.mtls+pathRenew, "application/json", bytes.NewReader(request))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != http.StatusUnauthorized || res.Header.Get("WWW-Authenticate") == "" || !bytes.Contains(body, []byte("invalid_client")) {
			t.Errorf("%s: status %d %s, %v", name, res.StatusCode, body, err)
		}
		// Refusals that are alike are counted together until they are recorded.
		want := `"` + issuer.EventAuthenticate + `"`
		if cert != nil {
			want = thumbprint(foreign)
		}
		if !in.recorded(want) {
			t.Errorf("%s: not on record", name)
		}
	}
	if n := strings.Count(in.journal(), `"`+issuer.EventAuthenticate+`"`); n != 2 {
		t.Errorf("%d refusals on record, want 2", n)
	}
}

// The renewal answers with a failure of its own, not with a refusal, when the inventory cannot be read.
func TestRenew_InventoryCannotBeRead(t *testing.T) {
	t.Parallel()
	s := built(t, t.TempDir())
	cert := mtlstest.SelfSigned(t, mtlstest.Leaf{})
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, pathRenew, nil)
	r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert.Leaf}}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err := s.authenticateByCertificate(r.WithContext(ctx))
	if err == nil || !strings.Contains(err.Error(), "temporarily_unavailable") {
		t.Errorf("%v", err)
	}
}

func newLog(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }
