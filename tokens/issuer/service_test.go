// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/tokens"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// registry is the Registry of the tests: maps that may be changed between two requests.
type registry struct {
	mu           sync.Mutex
	clients      map[string]Client
	certificates map[mtls.Thumbprint]Certificate
	clientErr    error
	inventoryErr error
	lookups      int
}

func (r *registry) Client(_ context.Context, id string) (*Client, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lookups++
	if r.clientErr != nil {
		return nil, r.clientErr
	}
	c, ok := r.clients[id]
	if !ok {
		return nil, ErrNotFound
	}
	return &c, nil
}

func (r *registry) Certificate(_ context.Context, t mtls.Thumbprint) (*Certificate, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lookups++
	if r.inventoryErr != nil {
		return nil, r.inventoryErr
	}
	c, ok := r.certificates[t]
	if !ok {
		return nil, ErrNotFound
	}
	return &c, nil
}

func (r *registry) change(f func(r *registry)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(r)
}

func (r *registry) changeClient(id string, f func(c *Client)) {
	r.change(func(r *registry) {
		c := r.clients[id]
		f(&c)
		r.clients[id] = c
	})
}

func (r *registry) changeCertificate(cert tls.Certificate, f func(c *Certificate)) {
	r.change(func(r *registry) {
		t := mtls.ThumbprintOf(cert.Leaf)
		c := r.certificates[t]
		f(&c)
		r.certificates[t] = c
	})
}

// journal is the Recorder of the tests.
type journal struct {
	mu        sync.Mutex
	decisions []Decision
	err       error
}

func (j *journal) Record(_ context.Context, d Decision) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return j.err
	}
	j.decisions = append(j.decisions, d)
	return nil
}

func (j *journal) fail(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.err = err
}

func (j *journal) last(t *testing.T) Decision {
	t.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.decisions) == 0 {
		t.Fatal("nothing was recorded")
	}
	return j.decisions[len(j.decisions)-1]
}

func (j *journal) count() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.decisions)
}

// keyring is the Keys of the tests.
type keyring struct {
	signing   SigningKey
	published []tokens.PublicKey
	err       error
}

func (k *keyring) Signing() (SigningKey, error)  { return k.signing, k.err }
func (k *keyring) Published() []tokens.PublicKey { return k.published }

func newKeyring(tb testing.TB) *keyring {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	id, err := tokens.KeyID(key.Public())
	if err != nil {
		tb.Fatal(err)
	}
	return &keyring{
		signing:   SigningKey{ID: id, Algorithm: tokens.ES256, Signer: key},
		published: []tokens.PublicKey{{ID: id, Algorithm: tokens.ES256, Key: key.Public()}},
	}
}

// counters is the Events of the tests.
type counters struct {
	issued, refused, active, inactive atomic.Int64
}

func (c *counters) TokenIssued(time.Duration) { c.issued.Add(1) }
func (c *counters) TokenRefused(_, _ string)  { c.refused.Add(1) }
func (c *counters) TokenIntrospected(active bool) {
	if active {
		c.active.Add(1)
	} else {
		c.inactive.Add(1)
	}
}

// servers is the Servers of the tests: the resources of each client.
type servers struct {
	mu  sync.Mutex
	of  map[string][]string
	err error
}

func (s *servers) Serves(_ context.Context, clientID, resource string) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.of[clientID], resource), s.err
}

func (s *servers) change(f func(s *servers)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s)
}

// denials is the Denials of the tests.
type denials struct {
	tokens.DenyList
	err atomic.Pointer[error]
}

func (d *denials) Denied(_ context.Context, c *tokens.Claims, keyID string) (bool, error) {
	if err := d.err.Load(); err != nil {
		return false, *err
	}
	return d.Denies(c, keyID), nil
}

const (
	ledger  = "https://ledger.example/api"
	reports = "https://reports.example/"
	admin   = "https://auth.example/admin/v1"
)

// service is a Server behind two real listeners, one that asks for certificates and one that does not.
type service struct {
	*Server
	registry *registry
	journal  *journal
	keys     *keyring
	events   *counters
	servers  *servers
	denied   *denials
	ca       *mtlstest.CA
	partner  *mtlstest.CA // an authority that is not ours
	mtlsURL  string
	public   string
	ahead    atomic.Int64 // nanoseconds that the server's clock is ahead
}

func (s *service) clock() time.Time        { return time.Now().Add(time.Duration(s.ahead.Load())) }
func (s *service) advance(d time.Duration) { s.ahead.Add(int64(d)) }

func newService(tb testing.TB, edit ...func(*Config)) *service {
	tb.Helper()
	s := &service{
		registry: &registry{clients: map[string]Client{}, certificates: map[mtls.Thumbprint]Certificate{}},
		journal:  &journal{}, keys: newKeyring(tb), events: &counters{}, ca: mtlstest.NewCA(tb, "ours"),
		partner: mtlstest.NewCA(tb, "partner"), servers: &servers{of: map[string][]string{}}, denied: &denials{},
	}
	listen := func(cc mtls.ClientCertificates, h func() http.Handler) string {
		cert := s.ca.Issue(tb, mtlstest.ServerLeaf())
		return mtlstest.Server(tb, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h().ServeHTTP(w, r) }),
			cert, cc).URL
	}
	var onMTLS, onPublic http.ServeMux
	s.mtlsURL = listen(mtls.ClientCertificatesRequested, func() http.Handler { return &onMTLS })
	s.public = listen(mtls.ClientCertificatesIgnored, func() http.Handler { return &onPublic })
	c := Config{
		Issuer: s.public, MTLSURL: s.mtlsURL, Registry: s.registry, Keys: s.keys, Recorder: s.journal, Events: s.events,
		Servers: s.servers, Denials: s.denied,
		Scopes: func() []string { return []string{"write", "read", "read"} }, Now: s.clock,
	}
	for _, e := range edit {
		e(&c)
	}
	var err error
	if s.Server, err = New(c); err != nil {
		tb.Fatal(err)
	}
	onMTLS.Handle(TokenPath, s.TokenHandler())
	onMTLS.Handle(IntrospectPath, s.IntrospectionHandler())
	if c.Revoker != nil {
		onMTLS.Handle(RevokePath, s.RevocationHandler())
	}
	onPublic.Handle(IntrospectPath, s.MisdirectedHandler(IntrospectPath))
	onPublic.Handle(TokenPath, s.MisdirectedHandler(TokenPath))
	onPublic.Handle(KeysPath, s.KeysHandler())
	for _, p := range s.MetadataPaths() {
		onPublic.Handle(p, s.MetadataHandler())
	}
	return s
}

// enrol registers a client of our own CA with two resources, and returns its certificate.
func (s *service) enrol(tb testing.TB, id string, edit ...func(*mtlstest.Leaf)) tls.Certificate {
	tb.Helper()
	uri := "spiffe://test.example/client/" + id
	subject, err := mtls.ParseSubject(mtls.SANURI, uri)
	if err != nil {
		tb.Fatal(err)
	}
	leaf := mtlstest.Leaf{CommonName: id, URIs: []string{uri}}
	for _, e := range edit {
		e(&leaf)
	}
	cert := s.ca.Issue(tb, leaf)
	client := Client{
		ID: id, Generation: 1, AuthMethod: TLSClientAuth, Subject: subject, Anchors: s.ca.Anchors(tb), Inventory: true,
		Grants: []Grant{{Resource: ledger, Scopes: []string{"read", "write"}}},
	}
	entry := Certificate{ClientID: id, Generation: 1, NotAfter: cert.Leaf.NotAfter}
	s.registry.change(func(r *registry) {
		r.clients[id], r.certificates[mtls.ThumbprintOf(cert.Leaf)] = client, entry
	})
	return cert
}

// grant replaces what the client may ask for.
func (s *service) grant(id string, grants ...Grant) {
	s.registry.changeClient(id, func(c *Client) { c.Grants = grants })
}

// client returns an HTTP client that shows this certificate, or none.
func (s *service) client(tb testing.TB, cert *tls.Certificate) *http.Client {
	tb.Helper()
	return mtlstest.Client(tb, s.ca.Pool(), cert)
}

// answer is what came back from an endpoint.
type answer struct {
	status int
	proto  string
	header http.Header
	body   string
	Token  string `json:"access_token"`
	Type   string `json:"token_type"`
	Expiry *int64 `json:"expires_in"`
	Scope  string `json:"scope"`
	Code   string `json:"error"`
	Text   string `json:"error_description"`
}

// do sends a request and holds the answer to what RFC 6749, Sections 5.1 and 5.2, ask of every one.
func do(tb testing.TB, hc *http.Client, r *http.Request) answer {
	tb.Helper()
	res, err := hc.Do(r)
	if err != nil {
		tb.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		tb.Fatal(err)
	}
	a := answer{status: res.StatusCode, proto: res.Proto, header: res.Header, body: string(body)}
	a.check(tb)
	return a
}

func (a *answer) check(tb testing.TB) {
	tb.Helper()
	if got := a.header.Get("Content-Type"); got != "application/json" {
		tb.Errorf("Content-Type = %q, want application/json", got)
	}
	if a.header.Get("Cache-Control") != "no-store" || a.header.Get("Pragma") != "no-cache" {
		tb.Errorf("cacheable: Cache-Control %q, Pragma %q", a.header.Get("Cache-Control"), a.header.Get("Pragma"))
	}
	if err := json.Unmarshal([]byte(a.body), a); err != nil {
		tb.Fatalf("body %q: %v", a.body, err)
	}
	if (a.Token == "") == (a.Code == "") || (a.status == http.StatusOK) != (a.Token != "") {
		tb.Errorf("status %d with body %s", a.status, a.body)
	}
	if (a.status == http.StatusUnauthorized) != (a.header.Get("WWW-Authenticate") != "") {
		tb.Errorf("status %d with WWW-Authenticate %q", a.status, a.header.Get("WWW-Authenticate"))
	}
	if strings.ContainsFunc(a.Text, func(r rune) bool { return r < ' ' || r > '~' || r == '"' || r == '\\' }) {
		tb.Errorf("error_description %q leaves the characters of RFC 6749, Section 5.2", a.Text)
	}
}

// want fails the test unless the answer is this error.
func (a answer) want(tb testing.TB, status int, code string) {
	tb.Helper()
	if a.status != status || a.Code != code {
		tb.Errorf("answer = %d %s, want %d %s", a.status, strings.TrimSpace(a.body), status, code)
	}
}

// wantToken fails the test unless the answer is a token, and returns its claims.
func (a answer) wantToken(tb testing.TB) map[string]any {
	tb.Helper()
	if a.status != http.StatusOK {
		tb.Fatalf("answer = %d %s, want a token", a.status, strings.TrimSpace(a.body))
	}
	return part(tb, a.Token, 1)
}

// part decodes the header (0) or the claims (1) of a token.
func part(tb testing.TB, token string, i int) map[string]any {
	tb.Helper()
	raw, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[i])
	if err != nil {
		tb.Fatal(err)
	}
	d := json.NewDecoder(strings.NewReader(string(raw)))
	d.UseNumber()
	var m map[string]any
	if err := d.Decode(&m); err != nil {
		tb.Fatalf("%s: %v", raw, err)
	}
	return m
}

// ask returns the body of an ordinary token request; further parameters come as name, value, name, value.
func ask(id string, more ...string) string {
	v := url.Values{"grant_type": {ClientCredentials}, "client_id": {id}}
	for i := 0; i < len(more); i += 2 {
		v.Add(more[i], more[i+1])
	}
	return v.Encode()
}

func request(tb testing.TB, target, body string, edit ...func(*http.Request)) *http.Request {
	tb.Helper()
	r, err := http.NewRequestWithContext(tb.Context(), http.MethodPost, target, strings.NewReader(body))
	if err != nil {
		tb.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for _, e := range edit {
		e(r)
	}
	return r
}

// post sends a body to the token endpoint.
func (s *service) post(tb testing.TB, cert *tls.Certificate, body string, edit ...func(*http.Request)) answer {
	tb.Helper()
	return do(tb, s.client(tb, cert), request(tb, s.mtlsURL+TokenPath, body, edit...))
}

// golden compares got with a file, which -update rewrites.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

var errDown = errors.New("down")

func formPair(name, value string) string { return url.QueryEscape(name) + "=" + url.QueryEscape(value) }

func jsonNumber(n int64) json.Number { return json.Number(strconv.FormatInt(n, 10)) }
