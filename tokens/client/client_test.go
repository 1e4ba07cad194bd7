// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package client

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
)

// world is an issuer and a resource server on one CA, over real TLS. Its tokens say whose they are:
// THUMBPRINT.NUMBER, so that the resource server sees at once when one travels on a foreign connection.
type world struct {
	ca       *mtlstest.CA
	public   *mtlstest.Running
	token    *mtlstest.Running
	resource *mtlstest.Running
	dial     func(context.Context, string, string) (net.Conn, error) // nil: sockets

	mu         sync.Mutex
	forms      []url.Values
	headers    []http.Header
	bearers    []string // Authorization of every request to the resource server
	violations []string

	respond func(w http.ResponseWriter, r *http.Request, issued string)   // the token endpoint; nil: ten minutes
	serve   func(w http.ResponseWriter, r *http.Request, authorized bool) // the resource; nil: 204 or 401
}

func newWorld(tb testing.TB) *world {
	tb.Helper()
	w := &world{ca: mtlstest.NewCA(tb, "root")}
	server := func(h http.HandlerFunc, cc mtls.ClientCertificates) *mtlstest.Running {
		return mtlstest.Server(tb, h, w.ca.Issue(tb, mtlstest.ServerLeaf()), cc)
	}
	w.public = server(w.metadata, mtls.ClientCertificatesIgnored)
	w.token = server(w.tokenEndpoint, mtls.ClientCertificatesRequested)
	w.resource = server(w.resourceServer, mtls.ClientCertificatesRequested)
	return w
}

func (w *world) metadata(rw http.ResponseWriter, r *http.Request) {
	writeJSON(rw, http.StatusOK, map[string]any{
		"issuer": w.public.URL, "token_endpoint": w.token.URL + "/oauth2/token",
	})
}

func (w *world) tokenEndpoint(rw http.ResponseWriter, r *http.Request) {
	peer, err := mtls.PeerFromRequest(r)
	if err != nil {
		writeJSON(rw, http.StatusUnauthorized, map[string]any{"error": "invalid_client"})
		return
	}
	_ = r.ParseForm()
	w.mu.Lock()
	w.forms = append(w.forms, r.PostForm)
	w.headers = append(w.headers, r.Header)
	issued := fmt.Sprintf("%s.%d", peer.Thumbprint(), len(w.forms))
	respond := w.respond
	w.mu.Unlock()
	if respond == nil {
		respond = answer(600)
	}
	respond(rw, r, issued)
}

// answer is a token endpoint that gives tokens of so many seconds.
func answer(seconds int) func(http.ResponseWriter, *http.Request, string) {
	return func(rw http.ResponseWriter, _ *http.Request, issued string) {
		writeJSON(rw, http.StatusOK, map[string]any{"access_token": issued, "token_type": "Bearer", "expires_in": seconds})
	}
}

func (w *world) resourceServer(rw http.ResponseWriter, r *http.Request) {
	bearer := r.Header.Get("Authorization")
	thumbprint, _, bound := strings.Cut(strings.TrimPrefix(bearer, "Bearer "), ".")
	authorized := false
	w.mu.Lock()
	w.bearers = append(w.bearers, bearer)
	if bound {
		peer, err := mtls.PeerFromRequest(r)
		authorized = err == nil && peer.Thumbprint().String() == thumbprint
		if !authorized {
			w.violations = append(w.violations, bearer)
		}
	}
	serve := w.serve
	w.mu.Unlock()
	switch {
	case serve != nil:
		serve(rw, r, authorized)
	case authorized:
		rw.WriteHeader(http.StatusNoContent)
	default:
		refuse(rw)
	}
}

func refuse(rw http.ResponseWriter) {
	rw.Header().Set("WWW-Authenticate", `Bearer realm="x", error="invalid_token"`)
	rw.WriteHeader(http.StatusUnauthorized)
}

func (w *world) fetches() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.forms)
}

func (w *world) seen() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.bearers)
}

func writeJSON(rw http.ResponseWriter, status int, v any) {
	rw.Header().Set("Content-Type", "application/json")
	rw.WriteHeader(status)
	_ = json.NewEncoder(rw).Encode(v)
}

func (w *world) keyPair(tb testing.TB) *mtls.KeyPair {
	tb.Helper()
	kp, err := mtls.NewKeyPair(w.ca.Issue(tb, mtlstest.Leaf{CommonName: "payments"}))
	if err != nil {
		tb.Fatal(err)
	}
	return kp
}

func (w *world) config(tb testing.TB) Config {
	return Config{
		Issuer: w.public.URL, ClientID: "payments", KeyPair: w.keyPair(tb), Roots: w.ca.Pool(),
		Origins: []string{w.resource.URL}, DialContext: w.dial,
	}
}

func start(tb testing.TB, c Config) *Transport {
	tb.Helper()
	tr, err := New(tb.Context(), c)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(tr.Close)
	return tr
}

// do sends one request and returns the status.
func do(tb testing.TB, tr http.RoundTripper, method, location string, content io.Reader) int {
	tb.Helper()
	req, err := http.NewRequestWithContext(tb.Context(), method, location, content)
	if err != nil {
		tb.Fatal(err)
	}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		tb.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	return resp.StatusCode
}

func TestRequestCarriesBoundToken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tr := start(t, w.config(t))
	for range 3 {
		if got := do(t, tr, http.MethodGet, w.resource.URL+"/x", nil); got != http.StatusNoContent {
			t.Fatalf("status %d", got)
		}
	}
	if n := w.fetches(); n != 1 {
		t.Errorf("%d token requests for three calls, want 1", n)
	}
	if err := tr.Err(); err != nil {
		t.Errorf("Err: %v", err)
	}
}

func TestRoundTripperContract(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tr := start(t, w.config(t))
	send := func(location string) (*http.Request, error) {
		content := watched("hello")
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, location, content)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := tr.RoundTrip(req)
		if err == nil {
			if resp.Request != req {
				t.Error("the response's request is not the caller's: it would show the token to whoever logs it")
			}
			resp.Body.Close()
		}
		select {
		case <-content.done:
		case <-time.After(10 * time.Second):
			t.Fatal("the request's body was not closed")
		}
		return req, err
	}
	req, err := send(w.resource.URL)
	if err != nil {
		t.Fatal(err)
	}
	if len(req.Header) != 0 {
		t.Errorf("the request was modified: %v", req.Header)
	}

	w.mu.Lock()
	w.respond = func(rw http.ResponseWriter, _ *http.Request, _ string) { rw.WriteHeader(http.StatusTeapot) }
	w.mu.Unlock()
	w.rotate(t, tr.config.KeyPair)
	if _, err = send(w.resource.URL); err == nil {
		t.Error("no error without a token")
	}
	tr.Close()
	if _, err = send(w.resource.URL); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if _, err = send("https://elsewhere.invalid/"); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close, other origin: %v", err)
	}
}

// closeWatcher has no GetBody, so a request with it cannot be sent again. A pool may close it after RoundTrip returned.
type closeWatcher struct {
	io.Reader
	done  chan struct{}
	close func()
}

func watched(content string) *closeWatcher {
	c := &closeWatcher{Reader: strings.NewReader(content), done: make(chan struct{})}
	c.close = sync.OnceFunc(func() { close(c.done) })
	return c
}

func (c *closeWatcher) Close() error {
	c.close()
	return nil
}

func TestNewRefusesBadConfig(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	good := w.config(t)
	good.Metadata = &Metadata{Issuer: w.public.URL, TokenEndpoint: w.token.URL}
	tests := map[string]func(*Config){
		"no client id":        func(c *Config) { c.ClientID = "" },
		"no key pair":         func(c *Config) { c.KeyPair = nil },
		"no issuer":           func(c *Config) { c.Issuer = "" },
		"issuer with query":   func(c *Config) { c.Issuer += "?a=b" },
		"issuer with hash":    func(c *Config) { c.Issuer += "#" },
		"issuer with user":    func(c *Config) { c.Issuer = "https://u@h" },
		"origin with path":    func(c *Config) { c.Origins = []string{"https://h/path"} },
		"origin with user":    func(c *Config) { c.Origins = []string{"https://u@h"} },
		"origin with query":   func(c *Config) { c.Origins = []string{"https://h?x"} },
		"origin without host": func(c *Config) { c.Origins = []string{"https://:8443"} },
	}
	for name, spoil := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := good
			spoil(&c)
			if tr, err := New(t.Context(), c); err == nil {
				tr.Close()
				t.Error("accepted")
			}
		})
	}
}

func TestTokenHidesItself(t *testing.T) {
	t.Parallel()
	token := Token{AccessToken: "secret", TokenType: "Bearer", Raw: []byte("secret")}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if got := fmt.Sprintf(format, token); strings.Contains(got, "secret") || got == "" {
			t.Errorf("%s prints %s", format, got)
		}
	}
	if got := token.LogValue().String(); strings.Contains(got, "secret") {
		t.Errorf("LogValue is %s", got)
	}
}

// rotate gives the key pair a new certificate.
func (w *world) rotate(tb testing.TB, kp *mtls.KeyPair) tls.Certificate {
	tb.Helper()
	next := w.ca.Issue(tb, mtlstest.Leaf{CommonName: "payments"})
	if err := kp.Replace(next); err != nil {
		tb.Fatal(err)
	}
	return next
}

func TestCacheKeyDistinguishes(t *testing.T) {
	t.Parallel()
	type tuple struct {
		issuer, client    string
		thumbprint        mtls.Thumbprint
		scopes, resources []string
	}
	key := func(u tuple) cacheKey {
		return newCacheKey(u.issuer, u.client, u.thumbprint, newRequest(u.scopes, u.resources))
	}
	// Neighbours that a key by mere concatenation would confuse, and every part varied by itself.
	tuples := []tuple{
		{"i", "c", mtls.Thumbprint{1}, []string{"a", "b"}, nil},
		{"i", "c", mtls.Thumbprint{2}, []string{"a", "b"}, nil},
		{"i", "c", mtls.Thumbprint{1}, []string{"a b"}, nil},
		{"i", "c", mtls.Thumbprint{1}, []string{"ab"}, nil},
		{"i", "c", mtls.Thumbprint{1}, []string{"a"}, []string{"b"}},
		{"i", "c", mtls.Thumbprint{1}, nil, []string{"a", "b"}},
		{"i", "c", mtls.Thumbprint{1}, nil, nil},
		{"i", "c", mtls.Thumbprint{1}, []string{""}, nil},
		{"ic", "", mtls.Thumbprint{1}, nil, nil},
		{"", "ic", mtls.Thumbprint{1}, nil, nil},
		{"i", "d", mtls.Thumbprint{1}, []string{"a", "b"}, nil},
		{"j", "c", mtls.Thumbprint{1}, []string{"a", "b"}, nil},
	}
	seen := map[cacheKey]int{}
	for i, u := range tuples {
		if j, twice := seen[key(u)]; twice {
			t.Errorf("tuples %d and %d have one key", i, j)
		}
		seen[key(u)] = i
	}
	same := tuple{"i", "c", mtls.Thumbprint{1}, []string{"b", "a", "b"}, nil}
	if key(same) != key(tuples[0]) {
		t.Error("order and repetition of scopes make another key")
	}
}

func TestTokensAreKeptApart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tr := start(t, w.config(t))
	get := func(scopes, resources []string) string {
		token, err := tr.TokenFor(t.Context(), scopes, resources)
		if err != nil {
			t.Fatal(err)
		}
		return token.AccessToken
	}
	a, b := get([]string{"read"}, nil), get([]string{"read", "write"}, nil)
	c := get([]string{"read"}, []string{"https://api.example"})
	if a == b || a == c || b == c {
		t.Errorf("one token for different requests: %s %s %s", a, b, c)
	}
	if again := get([]string{"write", "read"}, nil); again != b {
		t.Error("the cache did not find the token of the same scopes")
	}
	forms := make([]string, 0, 3)
	w.mu.Lock()
	for _, f := range w.forms {
		forms = append(forms, cmp.Or(f.Get("scope"), "-")+" "+cmp.Or(f.Get("resource"), "-"))
	}
	w.mu.Unlock()
	if want := []string{"read -", "read write -", "read https://api.example"}; !slices.Equal(forms, want) {
		t.Errorf("token requests %q, want %q", forms, want)
	}
}

func TestCacheIsBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tr := start(t, w.config(t))
	for i := range maxCachedTokens + 8 {
		if _, err := tr.TokenFor(t.Context(), []string{fmt.Sprint("s", i)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	tr.current.mu.Lock()
	defer tr.current.mu.Unlock()
	if n := len(tr.current.tokens); n > maxCachedTokens {
		t.Errorf("%d tokens kept, want at most %d", n, maxCachedTokens)
	}
}
