// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/certbound/certbound/cmd/internal/config"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/pki"
)

// desk is a service with a client, a token of its for the ledger, and the client that runs the ledger.
type desk struct {
	*instance
	id       string // payments, unless a test takes another
	payments tls.Certificate
	guard    tls.Certificate
	token    string
}

func newDesk(t *testing.T, cfg config.Config) *desk {
	t.Helper()
	d := &desk{instance: start(t, cfg)}
	var added struct {
		Code string `json:"code"`
	}
	d.mustOperate(http.MethodPost, "/clients", map[string]any{"client_id": "guard"}, &added)
	code, err := pki.ParseCode(added.Code)
	if err != nil {
		t.Fatal(err)
	}
	key := newKey(t)
	_, res := d.redeem(code, key)
	d.guard = pair(t, res, key)
	d.mustOperate(http.MethodPost, "/resources", map[string]any{"resource": ledger, "scope": write, "servers": []string{"guard"}}, nil)
	d.take("payments")
	return d
}

// take has a client enrolled and takes a token of its.
func (d *desk) take(id string) {
	d.tb.Helper()
	d.id, d.payments = id, d.enrolled(id)
	a := d.instance.token(d.client(&d.payments), id)
	wantToken(d.tb, a)
	d.token = a.Token
}

// introspect asks about a token and returns status and body.
func (in *instance) introspect(c *http.Client, id, token, accept string) (int, string) {
	in.tb.Helper()
	r, err := http.NewRequestWithContext(in.tb.Context(), http.MethodPost, in.mtls+pathIntrospect,
		strings.NewReader(url.Values{"client_id": {id}, "token": {token}}.Encode()))
	if err != nil {
		in.tb.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if accept != "" {
		r.Header.Set("Accept", accept)
	}
	res, err := c.Do(r)
	if err != nil {
		in.tb.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		in.tb.Fatal(err)
	}
	return res.StatusCode, string(body)
}

func (d *desk) wantActive(want bool) {
	d.tb.Helper()
	status, body := d.introspect(d.client(&d.guard), "guard", d.token, "")
	var got struct {
		Active   bool   `json:"active"`
		ClientID string `json:"client_id"`
		Binding  struct {
			Thumbprint string `json:"x5t#S256"`
		} `json:"cnf"`
	}
	if err := json.Unmarshal([]byte(body), &got); err != nil || status != http.StatusOK || got.Active != want || !want && body != `{"active":false}` ||
		want && (got.ClientID != d.id || got.Binding.Thumbprint != thumbprint(d.payments)) {
		d.tb.Errorf("%d %s, %v; want active %v", status, body, err, want)
	}
}

// IN-06, CB-04: RFC 7662, Section 2.2: what operators take away is not active from the moment that their call returns, also
// after a restart.
func TestRFC7662_2_2_OperatorsTakeAway(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t, t.TempDir())
	d := newDesk(t, cfg)
	d.wantActive(true)
	before := strings.Count(d.journal(), "\n")
	for range 5 {
		d.wantActive(true)
	}
	if after := strings.Count(d.journal(), "\n"); after-before >= 5 {
		t.Errorf("%d lines of the journal for 5 questions", after-before)
	}

	d.mustOperate(http.MethodPost, "/certificates/revoke", map[string]any{"x5t#S256": thumbprint(d.payments)}, nil)
	d.wantActive(false)

	d.take("removed")
	d.wantActive(true)
	d.mustOperate(http.MethodDelete, "/clients/removed", nil, nil)
	d.wantActive(false)

	d.take("disabled")
	d.wantActive(true)
	d.mustOperate(http.MethodPost, "/clients/disabled/disable", nil, nil)
	d.wantActive(false)

	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	d.instance = start(t, testConfig(t, d.data))
	d.wantActive(false)

	d.mustOperate(http.MethodPost, "/clients/guard/disable", nil, nil)
	if status, body := d.introspect(d.client(&d.guard), "guard", d.token, ""); status != http.StatusUnauthorized {
		t.Errorf("a disabled caller: %d %s", status, body)
	}
	text := d.awaitMetric("certbound_introspections_total")
	if !strings.Contains(text, `certbound_introspections_total{active="false"} 1`) || !strings.Contains(text, `route="introspect",status="401"`) {
		t.Error("the answers are not counted")
	}
	if strings.Contains(d.journal(), d.token) || strings.Contains(d.logs.String(), d.token) || strings.Contains(text, d.token) {
		t.Error("the token is in the journal, the log or the metrics")
	}
}

// IN-02, CA-22: RFC 8705, Section 2: nobody is answered by name alone, nor on the listener that asks for no certificate.
func TestRFC8705_2_IntrospectionByNameAlone(t *testing.T) {
	t.Parallel()
	d := newDesk(t, testConfig(t, t.TempDir()))
	for name, c := range map[string]*http.Client{"no certificate": d.client(nil), "another client's": d.client(&d.payments)} {
		if status, body := d.introspect(c, "guard", d.token, ""); status != http.StatusUnauthorized || strings.Contains(body, "active") {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
	res, err := d.client(&d.guard).PostForm(d.issuer+pathIntrospect, url.Values{"client_id": {"guard"}, "token": {d.token}})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusUnauthorized || res.Header.Get("WWW-Authenticate") == "" || !strings.Contains(string(body), d.mtls+pathIntrospect) {
		t.Errorf("on the public listener: %s %s, %v", res.Status, body, err)
	}
}

// IN-09, IN-10: RFC 9701, Section 5: the running service signs an answer with the key that it publishes, also about what is
// not active.
func TestRFC9701_5_SignedByThePublishedKey(t *testing.T) {
	t.Parallel()
	d := newDesk(t, testConfig(t, t.TempDir()))
	for _, token := range []string{d.token, "x"} {
		status, body := d.introspect(d.client(&d.guard), "guard", token, "application/token-introspection+jwt")
		parts := strings.Split(body, ".")
		if status != http.StatusOK || len(parts) != 3 {
			t.Fatalf("%d %s", status, body)
		}
		header, claims := decoded(t, parts[0]), decoded(t, parts[1])
		if header["typ"] != "token-introspection+jwt" || claims["iss"] != d.issuer || claims["aud"] != "guard" ||
			claims["token_introspection"].(map[string]any)["active"] != (token == d.token) {
			t.Errorf("%v, %v", header, claims)
		}
		keys := d.get(d.issuer + pathKeys)
		if !strings.Contains(keys, `"kid":"`+header["kid"].(string)+`"`) {
			t.Errorf("key %v is not in %s", header["kid"], keys)
		}
	}
}

func decoded(t *testing.T, part string) map[string]any {
	t.Helper()
	var m map[string]any
	raw, err := base64.RawURLEncoding.DecodeString(part)
	if err == nil {
		err = json.Unmarshal(raw, &m)
	}
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// IN-14: RFC 7662, Section 4: who asks about one token after the other is held to its client's rate, as at the token
// endpoint; until then all answers are the same.
func TestRFC7662_4_ScanningIsLimited(t *testing.T) {
	t.Parallel()
	cfg := limitedConfig(t, func(l *config.Limits) { l.ClientRate = 2 })
	d := newDesk(t, cfg)
	for i := range 200 {
		status, body := d.introspect(d.client(&d.guard), "guard", d.token[:len(d.token)-1-i], "")
		if status == http.StatusTooManyRequests && i > 0 {
			return
		}
		if status != http.StatusOK || body != `{"active":false}` {
			t.Fatalf("%d %s", status, body)
		}
	}
	t.Error("200 tokens at once with a rate of two a second")
}

// A caller that authenticates at introspection counts against no limit of its address.
func TestIntrospectionAuthenticates(t *testing.T) {
	t.Parallel()
	d := newDesk(t, limitedConfig(t, func(l *config.Limits) { l.AnonymousRate = 1 }))
	c := d.client(&d.guard)
	for range 30 {
		if status, body := d.introspect(c, "guard", "x", ""); status != http.StatusOK {
			t.Fatalf("%d %s", status, body)
		}
	}
}

// Who serves which resource is as the store has it, from the call that changes it on; and what cannot be read is no answer.
func TestRegistry_Serves(t *testing.T) {
	t.Parallel()
	r, db := testRegistry(t)
	want := func(id, resource string, want bool) {
		t.Helper()
		for range 2 {
			if got, err := r.Serves(t.Context(), id, resource); err != nil || got != want {
				t.Errorf("%s serves %s: %v, %v; want %v", id, resource, got, err, want)
			}
		}
	}
	want("payments", ledger, false)
	want("", ledger, false)
	want("payments", "", false)
	const stock = "https://stock.test"
	if err := db.AddResource(t.Context(), store.Resource{URI: stock, Scopes: []string{write}, Servers: []string{"alice", "payments"}}); err != nil {
		t.Fatal(err)
	}
	want("payments", stock, true)
	want("alice", stock, true)
	want("pay", stock, false)
	want("payments", ledger, false)
	want("alice", testAdmin, false)
	if err := db.RemoveResource(t.Context(), stock); err != nil {
		t.Fatal(err)
	}
	want("payments", stock, false)
	done, cancel := context.WithCancel(t.Context())
	cancel()
	r.forget(store.Change{Full: true})
	if serves, err := r.Serves(done, "payments", ledger); err == nil || serves {
		t.Errorf("resources that cannot be read: %v, %v", serves, err)
	}
}

// allocationsOfIntrospection is how much an answer about a token that was seen before may allocate between net/http and
// the answer, everything on.
const allocationsOfIntrospection = 32

// An answer about a token that was seen before, on a connection that is kept, costs a bounded number of allocations.
func TestIntrospectionAllocations(t *testing.T) {
	data := t.TempDir()
	s := built(t, data, func(s *service) { s.cfg.Audit.Sync = "interval" })
	operators, err := s.adminHandler()
	if err != nil {
		t.Fatal(err)
	}
	h := s.limits.Handler(s.mtlsRouter(operators))
	leaf := operatorPair(t, filepath.Join(data, "admin")).Leaf
	request := func(path string, form url.Values) *http.Request {
		form.Set("client_id", operatorID)
		r := httptest.NewRequestWithContext(mtls.ConnContext(t.Context(), nil), http.MethodPost, path, strings.NewReader(form.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.TLS = &tls.ConnectionState{HandshakeComplete: true, PeerCertificates: []*x509.Certificate{leaf}}
		return r
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, request(pathToken, url.Values{"grant_type": {"client_credentials"}, "resource": {s.adminResource()}}))
	var issued tokenAnswer
	if err := json.Unmarshal(w.Body.Bytes(), &issued); err != nil || issued.Token == "" {
		t.Fatalf("%s, %v", w.Body, err)
	}
	// The operator asks about its own token, as if it ran the operators' API.
	s.registry.mu.Lock()
	s.registry.servers[s.adminResource()] = []string{operatorID}
	s.registry.mu.Unlock()
	form := url.Values{"token": {issued.Token}}
	r := request(pathIntrospect, form)
	text := form.Encode()
	body := strings.NewReader(text)
	r.Body = io.NopCloser(body)
	whole := r.Body
	sink := &answerSink{header: make(http.Header)}
	got := testing.AllocsPerRun(300, func() {
		body.Reset(text)
		r.Body, sink.status = whole, 0
		clear(sink.header)
		if h.ServeHTTP(sink, r); sink.status != http.StatusOK {
			t.Fatalf("status %d", sink.status)
		}
	})
	t.Logf("an answer takes %v allocations", got)
	if got > allocationsOfIntrospection+allocationsOfRace {
		t.Errorf("an answer takes %v allocations, want at most %d", got, allocationsOfIntrospection+allocationsOfRace)
	}
	w = httptest.NewRecorder()
	h.ServeHTTP(w, request(pathIntrospect, form))
	if !strings.Contains(w.Body.String(), `"active":true`) {
		t.Errorf("what was measured is the answer %s", w.Body)
	}
}
