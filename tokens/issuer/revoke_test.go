// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/internal/jose"
)

// revocations is the Revoker of the tests.
type revocations struct {
	mu   sync.Mutex
	done []Decision
	err  error
}

func (r *revocations) Revoke(_ context.Context, d Decision) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return r.err
	}
	r.done = append(r.done, d)
	return nil
}

// taken returns what was revoked since the last call.
func (r *revocations) taken() []Decision {
	r.mu.Lock()
	defer r.mu.Unlock()
	done := r.done
	r.done = nil
	return done
}

// revoking is a service with a revocation endpoint.
type revoking struct {
	*service
	revocations *revocations
	url         string
}

func newRevoking(tb testing.TB) *revoking {
	tb.Helper()
	r := &revoking{revocations: &revocations{}}
	r.service = newService(tb, func(c *Config) { c.Revoker = r.revocations })
	r.url = r.mtlsURL + RevokePath
	return r
}

// revoke asks for a token to be revoked; further parameters come as name, value. An empty token is left out.
func (r *revoking) revoke(tb testing.TB, cert *tls.Certificate, id, token string, more ...string) (*http.Response, string) {
	tb.Helper()
	v := url.Values{}
	for i, name := range []string{"client_id", "token"} {
		if value := []string{id, token}[i]; value != "" {
			v.Set(name, value)
		}
	}
	for i := 0; i < len(more); i += 2 {
		v.Add(more[i], more[i+1])
	}
	res, err := r.client(tb, cert).Do(request(tb, r.url, v.Encode()))
	if err != nil {
		tb.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		tb.Fatal(err)
	}
	if res.Header.Get("Cache-Control") != "no-store" || res.Header.Get("Pragma") != "no-cache" {
		tb.Errorf("cacheable: %v", res.Header)
	}
	return res, string(body)
}

// wantRevoke fails the test unless the answer has this status and error code.
func (r *revoking) wantRevoke(tb testing.TB, status int, code string, cert *tls.Certificate, id, token string, more ...string) {
	tb.Helper()
	res, body := r.revoke(tb, cert, id, token, more...)
	if res.StatusCode != status || !strings.Contains(body, code) || code == "" && body != "" {
		tb.Errorf("%s %s, want %d %s", res.Status, body, status, code)
	}
	if res.StatusCode == http.StatusUnauthorized && res.Header.Get("WWW-Authenticate") == "" {
		tb.Error("401 without a challenge")
	}
}

func (r *revoking) tokenOf(tb testing.TB, cert *tls.Certificate, id string) string {
	tb.Helper()
	a := r.post(tb, cert, ask(id))
	a.wantToken(tb)
	return a.Token
}

// RV-01: RFC 7009, Section 2.2: what is no token of ours, or no longer one, is answered as if it had been revoked: twice the
// same is twice 200.
func TestRFC7009_2_2_UnknownToken(t *testing.T) {
	t.Parallel()
	r := newRevoking(t)
	cert := r.enrol(t, "payments")
	token := r.tokenOf(t, &cert, "payments")
	for range 2 {
		r.wantRevoke(t, http.StatusOK, "", &cert, "payments", token)
		got := r.revocations.taken()
		if len(got) != 1 || got[0].TokenID != part(t, token, 1)["jti"] || !got[0].Granted || got[0].Event != EventRevoke ||
			got[0].ClientID != "payments" || !got[0].Authenticated || got[0].Thumbprint != mtls.ThumbprintOf(cert.Leaf) ||
			jsonNumber(got[0].Expires.Unix()) != part(t, token, 1)["exp"] || got[0].Address == "" {
			t.Errorf("revoked: %+v", got)
		}
	}
	parts := strings.Split(token, ".")
	signed := func(keys *keyring, change func(h *jose.Header, claims string) string) string {
		h := jose.Header{Algorithm: jose.ES256, KeyID: r.keys.signing.ID, Type: tokens.TokenType}
		payload, err := jose.Sign(h, []byte(change(&h, `{"iss":"`+r.Server.issuer+`","jti":"x","client_id":"payments","exp":4000000000,"cnf":{"x5t#S256":"`+mtls.ThumbprintOf(cert.Leaf).String()+`"}}`)), keys.signing.Signer)
		if err != nil {
			t.Fatal(err)
		}
		return payload
	}
	same := func(_ *jose.Header, claims string) string { return claims }
	edit := func(old, new string) func(*jose.Header, string) string {
		return func(_ *jose.Header, claims string) string { return strings.Replace(claims, old, new, 1) }
	}
	typed, err := jose.Sign(jose.Header{Algorithm: jose.ES256, KeyID: r.keys.signing.ID, Type: "JWT"},
		[]byte(`{"iss":"`+r.Server.issuer+`","jti":"x","client_id":"payments","exp":4000000000,"cnf":{"x5t#S256":"`+mtls.ThumbprintOf(cert.Leaf).String()+`"}}`), r.keys.signing.Signer)
	if err != nil {
		t.Fatal(err)
	}
	stranger := newKeyring(t)
	for name, odd := range map[string]string{
		"no JWT":            "abc",
		"cut":               parts[0] + "." + parts[1] + ".",
		"another signature": parts[0] + "." + parts[1] + "." + strings.Repeat("A", len(parts[2])),
		"another key":       signed(stranger, same),
		"another type":      typed,
		"another issuer":    signed(r.keys, edit(r.Server.issuer, "https://other.example")),
		"no client":         signed(r.keys, edit(`"payments"`, `7`)),
		"no end":            signed(r.keys, edit(`4000000000`, `"soon"`)),
		"long expired":      signed(r.keys, edit(`4000000000`, `1000000000`)),
		"no claims":         signed(r.keys, func(*jose.Header, string) string { return "[]" }),
		"huge":              strings.Repeat("a", 12<<10),
	} {
		r.wantRevoke(t, http.StatusOK, "", &cert, "payments", odd)
		if got := r.revocations.taken(); len(got) != 0 {
			t.Errorf("%s: revoked %+v", name, got)
		}
	}
	r.wantRevoke(t, http.StatusOK, "", &cert, "payments", signed(r.keys, same))
	if got := r.revocations.taken(); len(got) != 1 { // else the cases above show nothing
		t.Errorf("a token of ours: %+v", got)
	}
	// A verifier whose clock is late may still take it for a while.
	r.advance(11 * time.Minute)
	r.wantRevoke(t, http.StatusOK, "", &cert, "payments", token)
	if got := r.revocations.taken(); len(got) != 1 {
		t.Errorf("a minute after its end: %+v", got)
	}
	r.advance(2 * time.Minute)
	r.wantRevoke(t, http.StatusOK, "", &cert, "payments", token)
	if got := r.revocations.taken(); len(got) != 0 {
		t.Errorf("three minutes after its end: %+v", got)
	}
}

// RV-02: RFC 7009, Section 2.1: only the client that a token was issued to can revoke it. Another's is answered as what is
// no token at all, and stays alive.
func TestRFC7009_2_1_TokenOfAnotherClient(t *testing.T) {
	t.Parallel()
	r := newRevoking(t)
	a, b := r.enrol(t, "payments"), r.enrol(t, "billing")
	token := r.tokenOf(t, &a, "payments")
	r.wantRevoke(t, http.StatusOK, "", &b, "billing", token)
	if got := r.revocations.taken(); len(got) != 0 {
		t.Errorf("billing revoked %+v", got)
	}
	r.wantRevoke(t, http.StatusUnauthorized, "invalid_client", &b, "payments", token)
	if got := r.revocations.taken(); len(got) != 0 {
		t.Errorf("billing, as payments, revoked %+v", got)
	}
	r.wantRevoke(t, http.StatusOK, "", &a, "payments", token)
	if got := r.revocations.taken(); len(got) != 1 {
		t.Errorf("its own client revoked %+v", got)
	}
}

// RV-03: RFC 7009, Section 2.1; RFC 8705, Section 2: the client authenticates with its certificate, by the method it is
// registered with, as at the token endpoint.
func TestRFC7009_2_1_Authentication(t *testing.T) {
	t.Parallel()
	r := newRevoking(t)
	cert := r.enrol(t, "payments")
	token := r.tokenOf(t, &cert, "payments")
	r.wantRevoke(t, http.StatusUnauthorized, "invalid_client", nil, "payments", token)
	other := r.partner.Issue(t, mtlstest.Leaf{CommonName: "payments", URIs: []string{"spiffe://test.example/client/payments"}})
	r.wantRevoke(t, http.StatusUnauthorized, "invalid_client", &other, "payments", token)
	r.wantRevoke(t, http.StatusUnauthorized, "invalid_client", nil, "payments", token, "client_secret", "s")
	r.wantRevoke(t, http.StatusBadRequest, "invalid_request", &cert, "payments", token, "client_secret", "s")
	r.wantRevoke(t, http.StatusBadRequest, "invalid_request", &cert, "", token)
	r.registry.changeClient("payments", func(c *Client) { c.Disabled = true })
	r.wantRevoke(t, http.StatusUnauthorized, "invalid_client", &cert, "payments", token)
	if got := r.revocations.taken(); len(got) != 0 {
		t.Errorf("revoked %+v", got)
	}
	// The alias is the endpoint itself (RFC 8705, Section 5), and the public listener names it.
	m := r.document(t)
	aliases, _ := m["mtls_endpoint_aliases"].(map[string]any)
	if m["revocation_endpoint"] != r.url || aliases["revocation_endpoint"] != r.url {
		t.Errorf("metadata: %v, alias %v", m["revocation_endpoint"], aliases)
	}
	if methods, _ := m["revocation_endpoint_auth_methods_supported"].([]any); len(methods) != 2 || methods[0] != TLSClientAuth {
		t.Errorf("methods: %v", m["revocation_endpoint_auth_methods_supported"])
	}
	w := httptest.NewRecorder()
	r.MisdirectedHandler(RevokePath).ServeHTTP(w, request(t, r.url, "token=x&client_id=payments"))
	if w.Code != http.StatusUnauthorized || !strings.Contains(w.Body.String(), r.url) {
		t.Errorf("at the public listener: %d %s", w.Code, w.Body)
	}
	if plain := newService(t).document(t); plain["revocation_endpoint"] != nil || plain["revocation_endpoint_auth_methods_supported"] != nil {
		t.Errorf("without a Revoker: %v", plain)
	}
}

// RV-04: RFC 7009, Sections 2.1 and 2.2.1: a request without a token is invalid; a hint, right, wrong or unknown, changes
// nothing, and no type of token is unsupported.
func TestRFC7009_2_1_Parameters(t *testing.T) {
	t.Parallel()
	r := newRevoking(t)
	cert := r.enrol(t, "payments")
	token := r.tokenOf(t, &cert, "payments")
	r.wantRevoke(t, http.StatusBadRequest, "invalid_request", &cert, "payments", "")
	r.wantRevoke(t, http.StatusBadRequest, "invalid_request", &cert, "payments", "", "token", token, "token", token)
	for _, hint := range []string{"access_token", "refresh_token", "id_token", "saml2"} {
		r.wantRevoke(t, http.StatusOK, "", &cert, "payments", token, "token_type_hint", hint)
		if got := r.revocations.taken(); len(got) != 1 {
			t.Errorf("hint %s: revoked %+v", hint, got)
		}
	}
	hc := r.client(t, &cert)
	do(t, hc, request(t, r.url+"?token="+token, "client_id=payments")).want(t, http.StatusBadRequest, "invalid_request")
	do(t, hc, request(t, r.url, "client_id=payments&token="+token, func(q *http.Request) { q.Method = http.MethodGet })).
		want(t, http.StatusMethodNotAllowed, "invalid_request")
	if got := r.revocations.taken(); len(got) != 0 {
		t.Errorf("revoked %+v", got)
	}
}

// inAMinute is an error that says when to come back.
type inAMinute struct{ error }

func (inAMinute) RetryAfter() time.Duration { return time.Minute }

// RV-08: RFC 7009, Section 2.2.1: what could not be kept is 503 with Retry-After, never 200.
func TestRFC7009_2_2_1_NotKept(t *testing.T) {
	t.Parallel()
	r := newRevoking(t)
	cert := r.enrol(t, "payments")
	token := r.tokenOf(t, &cert, "payments")
	r.revocations.err = inAMinute{errors.New("disk")}
	res, body := r.revoke(t, &cert, "payments", token)
	if res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") != "60" || strings.Contains(body, "disk") {
		t.Errorf("%s, Retry-After %q, %s", res.Status, res.Header.Get("Retry-After"), body)
	}
	r.revocations.err = nil
	// Without the keys of now nobody knows whose token it is.
	r.keys.err = errDown
	if res, _ := r.revoke(t, &cert, "payments", token); res.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("without keys: %s", res.Status)
	}
	r.keys.err = nil
	r.wantRevoke(t, http.StatusOK, "", &cert, "payments", token)
	if got := r.revocations.taken(); len(got) != 1 {
		t.Errorf("revoked %+v", got)
	}
}

// onceWritten notes how often an answer was begun.
type onceWritten struct {
	http.ResponseWriter
	begun int
}

func (w *onceWritten) WriteHeader(status int) {
	w.begun++
	w.ResponseWriter.WriteHeader(status)
}

// The answer to a revocation is one, under the request's correlation id if it has one, and the record has the address that
// the server found for the caller.
func TestRevocationCaller(t *testing.T) {
	t.Parallel()
	r := newRevoking(t)
	cert := r.enrol(t, "payments")
	token := r.tokenOf(t, &cert, "payments")
	var id string
	server := mtlstest.Server(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		once := &onceWritten{ResponseWriter: w}
		r.RevocationHandler().ServeHTTP(once, req.WithContext(WithCaller(req.Context(), "192.0.2.1", id)))
		if once.begun != 1 {
			t.Errorf("%d answers", once.begun)
		}
	}), r.ca.Issue(t, mtlstest.ServerLeaf()), mtls.ClientCertificatesRequested)
	r.url = server.URL
	for _, id = range []string{"", "c-1"} {
		res, body := r.revoke(t, &cert, "payments", token)
		values := res.Header.Values(CorrelationHeader)
		if res.StatusCode != http.StatusOK || body != "" || len(values) != len(id)/3 || id != "" && values[0] != id {
			t.Errorf("%s %s, correlation %q", res.Status, body, values)
		}
		if got := r.revocations.taken(); len(got) != 1 || got[0].Address != "192.0.2.1" || got[0].CorrelationID != id {
			t.Errorf("revoked %+v", got)
		}
	}
	r.revocations.err = errors.New("disk")
	r.wantRevoke(t, http.StatusServiceUnavailable, "temporarily_unavailable", &cert, "payments", token)
}

// A page of the deny feed is signed with the key of now under the feed's own type, or not at all.
func TestSignDenyPage(t *testing.T) {
	t.Parallel()
	s := newService(t)
	raw, err := s.SignDenyPage(tokens.DenyPage{Audience: "x"})
	if err != nil {
		t.Fatal(err)
	}
	if h := part(t, raw, 0); h["typ"] != tokens.DenyType || h["kid"] != s.keys.signing.ID {
		t.Errorf("header: %v", h)
	}
	if c := part(t, raw, 1); c["iss"] != s.Server.issuer || c["aud"] != "x" {
		t.Errorf("claims: %v", c)
	}
	refused := func(code, reason string) {
		t.Helper()
		raw, err := s.SignDenyPage(tokens.DenyPage{})
		if e, ok := errors.AsType[*tokens.Error](err); !ok || e.Code != code || e.Reason != reason || raw != "" {
			t.Errorf("%q, %v", raw, err)
		}
	}
	s.keys.err = errDown
	refused(tokens.CodeTemporarilyUnavailable, "no_signing_key")
	s.keys.err = nil
	s.keys.signing.Algorithm = "none"
	refused(tokens.CodeServerError, "signing_failed")
}
