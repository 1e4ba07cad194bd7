// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package resource_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/resource"
	"github.com/certbound/certbound/tokens/tokenstest"
)

// fixture is a guarded resource whose caller presents peer.
type fixture struct {
	issuer  *tokenstest.Issuer
	peer    *mtls.Peer
	config  resource.Config
	log     *lockedBuffer
	events  *events
	handler http.Handler
}

// lockedBuffer is a bytes.Buffer for several goroutines.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// events remembers what it was told, one word for each request.
type events struct {
	mu   sync.Mutex
	told []string
}

func (e *events) RequestAllowed() { e.RequestRefused("", "allowed") }

func (e *events) RequestRefused(code, reason string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.told = append(e.told, code+":"+reason)
}

func newFixture(tb testing.TB, scopes ...string) *fixture {
	tb.Helper()
	f := &fixture{
		issuer: tokenstest.New(tb),
		peer:   mtlstest.PeerOf(mtlstest.SelfSigned(tb, mtlstest.Leaf{CommonName: "payments"})),
		log:    &lockedBuffer{},
		events: &events{},
	}
	f.config = resource.Config{
		Verifier:    f.issuer.Verifier(tb, ""),
		Realm:       "orders",
		Logger:      slog.New(slog.NewJSONHandler(f.log, nil)),
		Certificate: func(*http.Request) (*mtls.Peer, error) { return f.peer, nil },
		Events:      f.events,
	}
	f.handler = f.protect(tb, scopes...)
	return f
}

// protect guards a handler that answers with the client's id.
func (f *fixture) protect(tb testing.TB, scopes ...string) http.Handler {
	tb.Helper()
	g, err := resource.New(f.config)
	if err != nil {
		tb.Fatal(err)
	}
	return g.Protect(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		claims, ok := resource.Claims(r.Context())
		if !ok {
			tb.Error("no claims within a guarded handler")
			return
		}
		_, _ = io.WriteString(w, claims.ClientID)
	}), scopes...)
}

func (f *fixture) do(target string, authorization ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, target, nil)
	for _, a := range authorization {
		r.Header.Add("Authorization", a)
	}
	w := httptest.NewRecorder()
	f.handler.ServeHTTP(w, r)
	return w
}

// refusal is what a client can see of one.
type refusal struct {
	Status    int
	Challenge string
	Error     string
}

func refusalOf(t *testing.T, w *httptest.ResponseRecorder) refusal {
	t.Helper()
	if got := w.Header().Get("Cache-Control"); got != "no-store" {
		t.Errorf("Cache-Control: %q", got)
	}
	if w.Header().Get(resource.CorrelationHeader) == "" {
		t.Error("no correlation id")
	}
	r := refusal{Status: w.Code, Challenge: w.Header().Get("WWW-Authenticate")}
	if w.Body.Len() == 0 {
		return r
	}
	if got := w.Header().Get("Content-Type"); got != "application/json" {
		t.Errorf("Content-Type: %q", got)
	}
	var body map[string]string
	if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
		t.Fatal(err)
	}
	r.Error = body["error"]
	if !strings.Contains(r.Challenge, `error="`+r.Error+`"`) && r.Status < 500 {
		t.Errorf("challenge %q beside error %q", r.Challenge, r.Error)
	}
	return r
}

const notValid = `Bearer realm="orders", error="invalid_token", ` +
	`error_description="the access token is not valid on this connection"`

// RS-15: RFC 6750, Section 3: a request without credentials is told the scheme and the realm, and no error.
func TestRFC6750_3_NoCredentials(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "orders:read")
	for _, authorization := range [][]string{
		nil, {"Basic dXNlcjpwYXNz"}, {"DPoP abc"}, {"Bearertoken"}, {""}, {"Bear er x"},
	} {
		w := f.do("/", authorization...)
		want := refusal{Status: 401, Challenge: `Bearer realm="orders"`}
		if diff := cmp.Diff(want, refusalOf(t, w)); diff != "" || w.Body.Len() != 0 {
			t.Errorf("%q: %s%s", authorization, diff, w.Body)
		}
	}
}

// RS-16: RFC 6750, Section 3.1: a good token without the scope gets 403 and is told which it needs; all of several are
// needed, compared exactly.
func TestRFC6750_3_1_InsufficientScope(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "orders:read", "orders:write")
	for _, scopes := range [][]string{nil, {"orders:read"}, {"orders:write"}, {"orders"}, {"ORDERS:READ", "orders:write"}} {
		w := f.do("/", "Bearer "+f.issuer.Token(t, f.peer, scopes...))
		want := refusal{403, `Bearer realm="orders", error="insufficient_scope", ` +
			`error_description="the access token lacks a scope that this request needs", scope="orders:read orders:write"`,
			"insufficient_scope"}
		if diff := cmp.Diff(want, refusalOf(t, w)); diff != "" {
			t.Errorf("%q: %s", scopes, diff)
		}
	}
	if w := f.do("/", "Bearer "+f.issuer.Token(t, f.peer, "a", "orders:write", "orders:read")); w.Code != 200 {
		t.Errorf("all scopes: %d", w.Code)
	}
	f.handler = f.protect(t)
	if w := f.do("/", "Bearer "+f.issuer.Token(t, f.peer)); w.Code != 200 {
		t.Errorf("no scope needed: %d", w.Code)
	}
}

// RS-16, RS-17: RFC 6750, Sections 2.3, 3.1 and 5.3: a token in the query is not accepted, alone or beside a header;
// two headers are one too many, even when they are the same.
func TestRFC6750_3_1_InvalidRequest(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	token := f.issuer.Token(t, f.peer)
	bearer := "Bearer " + token
	for name, w := range map[string]*httptest.ResponseRecorder{
		"query":              f.do("/?access_token=" + token),
		"header and query":   f.do("/?a=1&access_token="+token, bearer),
		"empty in query":     f.do("/?access_token", bearer),
		"escaped in query":   f.do("/?access%5Ftoken="+token, bearer),
		"two headers":        f.do("/", bearer, bearer),
		"two, first foreign": f.do("/", "Basic eA==", bearer),
		"two, second bad":    f.do("/", bearer, ""),
		"too large":          f.do("/", "Bearer "+strings.Repeat("a", 1<<20)),
	} {
		got := refusalOf(t, w)
		if got.Status != 400 || got.Error != "invalid_request" {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if w := f.do("/?access_tokens=x&x=access_token", bearer); w.Code != 200 {
		t.Errorf("another parameter: %d", w.Code)
	}
}

// RS-17: RFC 6750, Section 2.2: a token in a form is not looked at, so it is no credential.
func TestRFC6750_2_2_FormBodyIsNotRead(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	body := strings.NewReader("access_token=" + f.issuer.Token(t, f.peer))
	size := body.Len()
	r := httptest.NewRequest(http.MethodPost, "/", body)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	w := httptest.NewRecorder()
	f.handler.ServeHTTP(w, r)
	if diff := cmp.Diff(refusal{Status: 401, Challenge: `Bearer realm="orders"`}, refusalOf(t, w)); diff != "" {
		t.Error(diff)
	}
	if body.Len() != size {
		t.Error("the body was read")
	}
}

// RS-18: RFC 9110, Section 11.1; RFC 6750, Section 2.1: the scheme is compared without case, the token follows b64token
// after one space.
func TestRFC6750_2_1_Syntax(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	token := f.issuer.Token(t, f.peer)
	for _, scheme := range []string{"Bearer ", "bEARER ", "bearer ", "BEARER "} {
		if w := f.do("/", scheme+token); w.Code != 200 || w.Body.String() != tokenstest.Client {
			t.Errorf("%q: %d %s", scheme, w.Code, w.Body)
		}
	}
	for _, credentials := range []string{
		"Bearer", "Bearer ", "Bearer  " + token, "Bearer " + token + " ", "Bearer " + token + "," + token, "Bearer x,y",
		"Bearer  x,y", "Bearer =", "Bearer a=b", "Bearer \"" + token + "\"", "Bearer " + token + "\n", "Bearer é", "Bearer a\x00",
		"Bearer token=" + token + "&", "Bearer " + token + " x",
	} {
		if got := refusalOf(t, f.do("/", credentials)); got.Status != 400 || got.Error != "invalid_request" {
			t.Errorf("%.30q: %+v", credentials, got)
		}
	}
	for _, credentials := range []string{"Bearer x", "Bearer a-._~+/==", "Bearer " + token + "=", "Bearer " + token[1:]} {
		if got := refusalOf(t, f.do("/", credentials)); got.Status != 401 || got.Challenge != notValid {
			t.Errorf("%.30q: %+v", credentials, got)
		}
	}
}

// RS-01, RS-02: RFC 6750, Section 3.1; RFC 8705, Section 3: no certificate, another certificate, a bad signature and
// an unbound token look the same from outside, to the byte; the log tells them apart.
func TestRFC8705_3_RefusalsLookTheSame(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	owner := f.peer
	good := f.issuer.Token(t, owner)
	thief := mtlstest.PeerOf(mtlstest.SelfSigned(t, mtlstest.Leaf{CommonName: "thief"}))
	unbound := f.issuer.TokenWith(t, nil, func(_, _ map[string]any) {})
	expired := f.issuer.TokenWith(t, owner, func(claims, _ map[string]any) { claims["exp"] = 1 })
	var first *httptest.ResponseRecorder
	for _, tc := range []struct {
		token  string
		peer   *mtls.Peer
		err    error
		reason string
	}{
		{good, nil, nil, "no_certificate"},
		{good, nil, mtls.ErrNoCertificate, "no_certificate"},
		{good, owner, mtls.ErrNotTLS, "no_certificate"}, // an error counts, whatever comes with it
		{good, thief, nil, "thumbprint_mismatch"},
		{good[:len(good)-8] + "AAAAAAAA", owner, nil, "bad_signature"},
		{unbound, owner, nil, "not_bound"},
		{expired, owner, nil, "expired"},
		{"x", owner, nil, "malformed"},
	} {
		f.config.Certificate = func(*http.Request) (*mtls.Peer, error) { return tc.peer, tc.err }
		f.handler = f.protect(t)
		w := f.do("/", "Bearer "+tc.token)
		if diff := cmp.Diff(refusal{401, notValid, "invalid_token"}, refusalOf(t, w)); diff != "" {
			t.Errorf("%s: %s", tc.reason, diff)
		}
		w.Header().Del(resource.CorrelationHeader)
		if first == nil {
			first = w
		}
		if diff := cmp.Diff(first.Header(), w.Header()); diff != "" || first.Body.String() != w.Body.String() {
			t.Errorf("%s differs: %s %s", tc.reason, diff, w.Body)
		}
		if told := f.events.told; told[len(told)-1] != "invalid_token:"+tc.reason {
			t.Errorf("events: %q, want %s", told[len(told)-1], tc.reason)
		}
		if tc.err != nil && !strings.Contains(f.log.String(), tc.err.Error()) {
			t.Errorf("the log lacks %v", tc.err)
		}
	}
}

// RS-28: RFC 6750, Section 5.1: a token, and what stands in it, never gets into the log or an answer.
func TestRFC6750_5_1_NothingLeaks(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "orders:read")
	marker := func(claims, _ map[string]any) { claims["sub"], claims["iss"] = "secret-marker", "secret-marker" }
	for _, token := range []string{
		f.issuer.Token(t, f.peer), f.issuer.TokenWith(t, f.peer, marker), f.issuer.TokenWith(t, nil, marker), "secret-marker",
		"secret-marker,", "secret-marker.secret-marker.secret-marker",
	} {
		for _, w := range []*httptest.ResponseRecorder{
			f.do("/", "Bearer "+token), f.do("/", "Bearer "+token, "Bearer "+token), f.do("/?access_token=" + token),
			f.do("/", token),
		} {
			if w.Code < 400 {
				t.Errorf("%d", w.Code)
			}
			all := f.log.String() + w.Body.String() + w.Header().Get("WWW-Authenticate")
			if strings.Contains(all, "secret-marker") || strings.Contains(all, token[:12]) {
				t.Errorf("leaked: %s", all)
			}
		}
	}
	if !strings.Contains(f.log.String(), `"reason":"insufficient_scope"`) {
		t.Error("the log has no reasons")
	}
}

// The correlation id of an outer middleware is kept; otherwise each refusal has one of its own, in answer and log.
func TestCorrelationID(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	one, two := f.do("/").Header().Get(resource.CorrelationHeader), f.do("/").Header().Get(resource.CorrelationHeader)
	if one == two || !strings.Contains(f.log.String(), one) || !strings.Contains(f.log.String(), two) {
		t.Errorf("%q, %q", one, two)
	}
	inner := f.handler
	f.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(resource.CorrelationHeader, "outer")
		inner.ServeHTTP(w, r)
	})
	if got := f.do("/").Header().Get(resource.CorrelationHeader); got != "outer" || !strings.Contains(f.log.String(), `"outer"`) {
		t.Errorf("%q", got)
	}
}

// Authorize has the last word about every request, and a check that cannot be made refuses.
func TestAuthorize(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var answer error
	f.config.Authorize = func(_ context.Context, claims *tokens.Claims, peer *mtls.Peer) error {
		if claims.ClientID != tokenstest.Client || peer != f.peer {
			t.Errorf("asked about %+v", claims)
		}
		return answer
	}
	f.handler = f.protect(t)
	bearer := "Bearer " + f.issuer.Token(t, f.peer)
	for _, tc := range []struct {
		answer error
		status int
		code   string
	}{
		{nil, 200, ""},
		{&tokens.Error{Code: "invalid_token", Reason: "client_disabled", Description: "quote\" \r\nX: y é"}, 401, "invalid_token"},
		{&tokens.Error{Code: "insufficient_scope", Scope: "a"}, 403, "insufficient_scope"},
		{errors.New("secret-marker"), 503, "temporarily_unavailable"},
		{(*tokens.Error)(nil), 503, "temporarily_unavailable"},
		{nil, 200, ""},
	} {
		answer = tc.answer
		w := f.do("/", bearer)
		if w.Code != tc.status {
			t.Errorf("%v: %d", tc.answer, w.Code)
		}
		if tc.status == 200 {
			continue
		}
		if got := refusalOf(t, w); got.Error != tc.code || strings.ContainsAny(got.Challenge, "\r\né\\") {
			t.Errorf("%v: %+v", tc.answer, got)
		}
		if strings.Contains(w.Body.String(), "secret-marker") {
			t.Errorf("told %s", w.Body)
		}
	}
	f.config.Authorize = func(context.Context, *tokens.Claims, *mtls.Peer) error {
		t.Error("asked about a bad token")
		return nil
	}
	f.handler = f.protect(t)
	f.do("/", "Bearer x")
}

type noKeys struct{}

func (noKeys) Key(context.Context, string) (tokens.PublicKey, error) {
	return tokens.PublicKey{}, tokens.ErrKeysUnavailable
}

// RS-20: without the issuer's keys nothing is let through; 503 says nothing against the token and has no challenge.
func TestKeysUnavailable(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	v, err := tokens.NewVerifier(tokens.VerifierConfig{Issuer: tokenstest.URL, Audience: tokenstest.Audience, Keys: noKeys{}})
	if err != nil {
		t.Fatal(err)
	}
	f.config.Verifier = v
	f.handler = f.protect(t)
	w := f.do("/", "Bearer "+f.issuer.Token(t, f.peer))
	if diff := cmp.Diff(refusal{503, "", "temporarily_unavailable"}, refusalOf(t, w)); diff != "" {
		t.Error(diff)
	}
	if w.Header().Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
}

// A Guard is not made without a verifier or with a realm that would break its challenge, and does not take a scope
// that would.
func TestNewRefuses(t *testing.T) {
	t.Parallel()
	v := tokenstest.New(t).Verifier(t, "")
	for _, c := range []resource.Config{{}, {Verifier: v, Realm: `a"b`}, {Verifier: v, Realm: "a\r\nX: y"}, {Verifier: v, Realm: "é"}} {
		if g, err := resource.New(c); err == nil || g != nil {
			t.Errorf("%q: no error", c.Realm)
		}
	}
	g, err := resource.New(resource.Config{Verifier: v})
	if err != nil {
		t.Fatal(err)
	}
	for _, scope := range []string{"", "a b", `a"b`, "a\n"} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("scope %q: no panic", scope)
				}
			}()
			g.Protect(http.NotFoundHandler(), scope)
		}()
	}
	w := httptest.NewRecorder()
	g.Protect(http.NotFoundHandler()).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	if got := w.Header().Get("WWW-Authenticate"); got != `Bearer realm="`+tokenstest.Audience+`"` {
		t.Errorf("default realm: %s", got)
	}
	if claims, ok := resource.Claims(t.Context()); ok || claims != nil {
		t.Error("claims out of nothing")
	}
}

// RS-01, RS-02, RS-29: RFC 8705, Sections 3 and 6.2, over real connections: the owner's token works on the owner's
// connection, be its certificate self-signed, and on no other, kept alive or resumed.
func TestRFC8705_3_OverTLS(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "servers")
	issuer := tokenstest.New(t)
	g, err := resource.New(resource.Config{Verifier: issuer.Verifier(t, "")})
	if err != nil {
		t.Fatal(err)
	}
	api := g.Protect(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}), "orders:read")
	server := mtlstest.Server(t, api, ca.Issue(t, mtlstest.ServerLeaf()), mtls.ClientCertificatesRequested)
	owner, thief := mtlstest.SelfSigned(t, mtlstest.Leaf{}), mtlstest.SelfSigned(t, mtlstest.Leaf{})
	token := issuer.Token(t, mtlstest.PeerOf(owner), "orders:read")
	status := func(client *http.Client, token string) (int, string) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+token)
		response, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		_, _ = io.Copy(io.Discard, response.Body)
		return response.StatusCode, response.Header.Get("WWW-Authenticate")
	}
	own, other := mtlstest.Client(t, ca.Pool(), &owner), mtlstest.Client(t, ca.Pool(), &thief)
	for range 3 {
		if got, challenge := status(own, token); got != 200 {
			t.Errorf("owner: %d %s", got, challenge)
		}
		for _, client := range []*http.Client{other, mtlstest.Client(t, ca.Pool(), nil)} {
			if got, challenge := status(client, token); got != 401 || !strings.Contains(challenge, `error="invalid_token"`) {
				t.Errorf("not the owner: %d %s", got, challenge)
			}
		}
		// The thief's own token does not open the door for the stolen one on the same connection.
		if got, _ := status(other, issuer.Token(t, mtlstest.PeerOf(thief), "orders:read")); got != 200 {
			t.Errorf("the other client: %d", got)
		}
		own.CloseIdleConnections()
	}
}

// A resource server links go-jose and no other foreign package: what it compiles is pinned here.
func TestOutsidePackages(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for path := range strings.FieldsSeq(string(out)) {
		if !strings.HasPrefix(path, "github.com/certbound/certbound/") && !strings.HasPrefix(path, "github.com/go-jose/go-jose/v4") {
			t.Errorf("compiles %s", path)
		}
	}
}

func BenchmarkProtect(b *testing.B) {
	f := newFixture(b, "orders:read")
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header.Set("Authorization", "Bearer "+f.issuer.Token(b, f.peer, "orders:read"))
	b.ReportAllocs()
	for b.Loop() {
		w := httptest.NewRecorder()
		if f.handler.ServeHTTP(w, r); w.Code != http.StatusOK {
			b.Fatal(w.Code)
		}
	}
}
