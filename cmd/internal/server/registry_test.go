// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/tokens/issuer"
)

const testAdmin = "https://auth.test/admin/v1"

// slowRows is the store with a gap after each read, in which a test lets others write.
type slowRows struct {
	*store.Store
	gap  func() // once
	held int    // readings of Holder
}

func (s *slowRows) pause() {
	if gap := s.gap; gap != nil {
		s.gap = nil
		gap()
	}
}

// Client implements rows.
func (s *slowRows) Client(ctx context.Context, id string) (store.Client, error) {
	defer s.pause()
	return s.Store.Client(ctx, id)
}

// Certificate implements rows.
func (s *slowRows) Certificate(ctx context.Context, t [32]byte) (store.Certificate, error) {
	defer s.pause()
	return s.Store.Certificate(ctx, t)
}

// Holder implements rows.
func (s *slowRows) Holder(ctx context.Context, id string, t [32]byte) (*store.Holder, error) {
	defer s.pause()
	s.held++
	return s.Store.Holder(ctx, id, t)
}

// Resources implements rows.
func (s *slowRows) Resources(ctx context.Context) ([]store.Resource, error) {
	defer s.pause()
	return s.Store.Resources(ctx)
}

// testRegistry is a registry over a store with the operators' API, one resource, an operator and a client.
func testRegistry(tb testing.TB) (*registry, *slowRows) {
	tb.Helper()
	db, err := store.Open(tb.Context(), store.Config{Path: filepath.Join(tb.TempDir(), "certbound.db"), KEK: make([]byte, 32)})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := db.Close(); err != nil {
			tb.Error(err)
		}
	})
	for _, r := range []store.Resource{{URI: testAdmin, Scopes: []string{scopeAdmin}, BuiltIn: true}, {URI: ledger, Scopes: []string{write, "ledger:read"}}} {
		if err := db.AddResource(tb.Context(), r); err != nil {
			tb.Fatal(err)
		}
	}
	for id, scope := range map[string]string{"alice": scopeAdmin, "payments": write} {
		_, err := db.AddClient(tb.Context(), store.Client{ID: id, AuthMethod: "tls_client_auth", Usage: "client", Scopes: []string{scope}}, nil)
		if err != nil {
			tb.Fatal(err)
		}
	}
	r := newRegistry(db, nil, nil, "test.internal", testAdmin)
	slow := &slowRows{Store: db}
	r.store = slow
	return r, slow
}

// addCertificate puts a certificate of the client into the inventory; nothing here parses it.
func addCertificate(tb testing.TB, db *store.Store, id, der string) mtls.Thumbprint {
	tb.Helper()
	now := time.Now()
	row := store.Certificate{
		Thumbprint: sha256.Sum256([]byte(der)), DER: []byte(der), Serial: strconv.Itoa(len(der)), ClientID: id, Generation: 1,
		NotBefore: now, NotAfter: now.Add(time.Hour), KeyHash: sha256.Sum256([]byte("key of " + der)),
	}
	if err := db.AddCertificate(tb.Context(), row); err != nil {
		tb.Fatal(err)
	}
	return row.Thumbprint
}

// Whatever was changed is in force when the call that changed it returns, though all of it was cached.
func TestRegistry_ChangesAreInForce(t *testing.T) {
	t.Parallel()
	r, db := testRegistry(t)
	client := func() *issuer.Client {
		t.Helper()
		c, err := r.Client(t.Context(), "payments")
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	first := client()
	if client() != first {
		t.Error("the client was not cached: the rest of this test shows nothing")
	}
	if first.ID != "payments" || first.Generation != 1 || first.Disabled || !first.Inventory || first.AuthMethod != "tls_client_auth" ||
		first.Subject.Value() != "spiffe://test.internal/client/payments" || first.Subject.Kind() != mtls.SANURI {
		t.Errorf("the client is %+v", first)
	}
	must(db.DisableClient(t.Context(), "payments"))
	if !client().Disabled {
		t.Error("a disabled client passes for enabled")
	}
	must(db.EnableClient(t.Context(), "payments"))
	if client().Disabled {
		t.Error("an enabled client passes for disabled")
	}
	must(db.AddResource(t.Context(), store.Resource{URI: "https://stock.test", Scopes: []string{write}}))
	if n := len(client().Grants); n != 2 {
		t.Errorf("%d grants after a resource was added, want 2", n)
	}
	if !slices.Equal(r.scopes(), []string{"ledger:read", write}) {
		t.Errorf("advertised scopes %v", r.scopes())
	}
	must(db.AddResource(t.Context(), store.Resource{URI: "https://audit.test", Scopes: []string{"audit:read"}}))
	if !slices.Contains(r.scopes(), "audit:read") {
		t.Errorf("advertised scopes %v after a resource was added", r.scopes())
	}
	must(db.RemoveResource(t.Context(), "https://audit.test"))
	if slices.Contains(r.scopes(), "audit:read") {
		t.Errorf("advertised scopes %v after a resource was removed", r.scopes())
	}

	print := addCertificate(t, db.Store, "payments", "one")
	cert, err := r.Certificate(t.Context(), print)
	if err != nil || cert.ClientID != "payments" || cert.Generation != 1 || cert.Revoked || cert.NotAfter.IsZero() {
		t.Errorf("the certificate is %+v, %v", cert, err)
	}
	if again, _ := r.Certificate(t.Context(), print); again != cert {
		t.Error("the certificate was not cached: the rest of this test shows nothing")
	}
	_, err = db.Revoke(t.Context(), store.Selection{Thumbprints: [][32]byte{print}}, 0, time.Now())
	must(err)
	if cert, err = r.Certificate(t.Context(), print); err != nil || !cert.Revoked {
		t.Errorf("a revoked certificate passes for good: %+v, %v", cert, err)
	}
	must(db.RemoveClient(t.Context(), "payments"))
	for name, err := range map[string]error{
		"a removed client": errorOf(r.Client(t.Context(), "payments")), "an unknown client": errorOf(r.Client(t.Context(), "nobody")),
		"an unknown certificate": errorOf(r.Certificate(t.Context(), mtls.Thumbprint{1})),
	} {
		if !errors.Is(err, issuer.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	done, cancel := context.WithCancel(t.Context())
	cancel()
	if err := errorOf(r.Client(done, "alice")); err == nil || errors.Is(err, issuer.ErrNotFound) {
		t.Errorf("a client that could not be read: %v", err)
	}
	if err := errorOf(r.Certificate(done, mtls.Thumbprint{1})); err == nil || errors.Is(err, issuer.ErrNotFound) {
		t.Errorf("a certificate that could not be read: %v", err)
	}
}

func errorOf[T any](_ *T, err error) error { return err }

// A reader that was overtaken by a change between reading and remembering does not put the old state back.
func TestRegistry_SlowReaderPutsNothingBack(t *testing.T) {
	t.Parallel()
	r, db := testRegistry(t)
	print := addCertificate(t, db.Store, "payments", "one")

	db.gap = func() {
		if err := db.DisableClient(t.Context(), "payments"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.Client(t.Context(), "payments"); err != nil {
		t.Fatal(err)
	}
	if c, err := r.Client(t.Context(), "payments"); err != nil || !c.Disabled {
		t.Errorf("a disabled client passes for enabled: %v", err)
	}
	db.gap = func() {
		if _, err := db.Revoke(t.Context(), store.Selection{Thumbprints: [][32]byte{print}}, 0, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.Certificate(t.Context(), print); err != nil {
		t.Fatal(err)
	}
	if c, err := r.Certificate(t.Context(), print); err != nil || !c.Revoked {
		t.Errorf("a revoked certificate passes for good: %v", err)
	}
	r.forget(store.Change{Resources: true})
	db.gap = func() {
		if err := db.AddResource(t.Context(), store.Resource{URI: "https://audit.test", Scopes: []string{"audit:read"}}); err != nil {
			t.Fatal(err)
		}
	}
	r.scopes()
	if got := r.scopes(); !slices.Contains(got, "audit:read") {
		t.Errorf("advertised scopes %v lack the new resource's", got)
	}
}

// What a client may ask for: its own scopes that a resource declares, at the resources it names or at all. The
// operators' API is never a default and its tokens are short.
func TestRegistry_Grants(t *testing.T) {
	t.Parallel()
	resources := []store.Resource{
		{URI: testAdmin, Scopes: []string{scopeAdmin}},
		{URI: ledger, Scopes: []string{write, "read"}},
		{URI: "https://stock.test", Scopes: []string{"read"}},
	}
	r := &registry{admin: testAdmin}
	operators := issuer.Grant{Resource: testAdmin, Scopes: []string{scopeAdmin}, Explicit: true, MaxLifetime: 2 * time.Minute}
	for name, tc := range map[string]struct {
		scopes, named []string
		want          []issuer.Grant
	}{
		"nothing":             {nil, nil, nil},
		"undeclared scope":    {[]string{"other"}, nil, nil},
		"one scope":           {[]string{write}, nil, []issuer.Grant{{Resource: ledger, Scopes: []string{write}}}},
		"at every resource":   {[]string{"read"}, nil, []issuer.Grant{{Resource: ledger, Scopes: []string{"read"}}, {Resource: "https://stock.test", Scopes: []string{"read"}}}},
		"at the named one":    {[]string{"read", write}, []string{"https://stock.test"}, []issuer.Grant{{Resource: "https://stock.test", Scopes: []string{"read"}}}},
		"unknown resource":    {[]string{"read"}, []string{"https://gone.test"}, nil},
		"operator":            {[]string{scopeAdmin}, nil, []issuer.Grant{operators}},
		"operator elsewhere":  {[]string{scopeAdmin, write}, []string{ledger}, []issuer.Grant{operators, {Resource: ledger, Scopes: []string{write}}}},
		"admin without scope": {[]string{write}, []string{testAdmin}, nil},
	} {
		got := r.grants(&store.Client{ID: "c", Scopes: tc.scopes, Resources: tc.named}, resources)
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", name, diff)
		}
	}
}

// The caches are bounded, whoever asks for whatever.
func TestRegistry_CachesAreBounded(t *testing.T) {
	t.Parallel()
	m := make(map[int]int)
	for i := range cacheSize + 10 {
		keep(m, i, i, cacheSize)
	}
	if _, newest := m[cacheSize+9]; len(m) != cacheSize || !newest {
		t.Errorf("%d entries, the newest among them %t; want %d", len(m), newest, cacheSize)
	}
	r, _ := testRegistry(t)
	for i := range cacheSize + 10 {
		print := mtls.Thumbprint{byte(i), byte(i >> 8), 1}
		keep(r.certificates, print, new(issuer.Certificate), certificatesKept)
		r.remember(&remembered{client: &issuer.Client{ID: strconv.Itoa(i)}, certificate: print})
	}
	if newest := r.clients[strconv.Itoa(cacheSize+9)]; len(r.clients) != cacheSize || len(r.certificates) != cacheSize || newest == nil {
		t.Errorf("%d clients and %d certificates, the newest is %v; want %d, since a certificate goes with its client",
			len(r.clients), len(r.certificates), newest, cacheSize)
	}
	again := &remembered{client: &issuer.Client{ID: strconv.Itoa(cacheSize + 9)}}
	if r.remember(again); r.clients[again.client.ID] != again {
		t.Error("what was read later is not what is remembered")
	}
}

// presented returns the context of a request on a connection with a certificate.
func presented(t *testing.T) (context.Context, mtls.Thumbprint, []byte) {
	t.Helper()
	leaf := mtlstest.NewCA(t, "own").Issue(t, mtlstest.Leaf{CommonName: "payments"}).Leaf
	r := httptest.NewRequestWithContext(mtls.ConnContext(t.Context(), nil), http.MethodPost, "/", nil)
	r.TLS = &tls.ConnectionState{HandshakeComplete: true, PeerCertificates: []*x509.Certificate{leaf}}
	if peer := mtls.SeenPeer(r.Context()); peer != nil {
		t.Error("a peer is seen before anybody asked for it")
	}
	if _, err := mtls.PeerFromRequest(r); err != nil {
		t.Fatal(err)
	}
	return r.Context(), mtls.ThumbprintOf(leaf), leaf.Raw
}

// Of a client that presents a certificate all is read at once, and what is found that way is what would be found otherwise.
func TestRegistry_ReadsAhead(t *testing.T) {
	t.Parallel()
	r, db := testRegistry(t)
	ctx, print, der := presented(t)
	if addCertificate(t, db.Store, "payments", string(der)) != print {
		t.Fatal("another thumbprint")
	}
	secret, err := db.AuditSubject(t.Context(), "payments")
	if err != nil {
		t.Fatal(err)
	}
	plain, err := r.Client(t.Context(), "payments")
	if err != nil {
		t.Fatal(err)
	}
	r.forget(store.Change{Full: true})
	got, err := r.Client(ctx, "payments")
	if err != nil || db.held != 1 {
		t.Fatalf("%v, read at once %d times", err, db.held)
	}
	if diff := cmp.Diff(plain, got, cmp.Exporter(func(reflect.Type) bool { return true }), cmp.Comparer(func(a, b *mtls.Anchors) bool { return a == b })); diff != "" {
		t.Errorf("read by itself (-), at once (+)\n%s", diff)
	}
	db.gap = func() { t.Error("the certificate is read once more") }
	if c, err := r.Certificate(ctx, print); err != nil || c.ClientID != "payments" || c.Generation != 1 || c.Revoked || c.NotAfter.IsZero() {
		t.Errorf("%+v, %v", c, err)
	}
	db.gap = nil
	for range 2 { // for as long as the client is remembered
		if got, _ := r.secret("payments"); !slices.Equal(got, secret) {
			t.Error("the secret is another, or was not kept")
		}
	}
	for _, id := range []string{"nobody", "alice"} { // neither has the certificate
		c, err := r.Client(ctx, id)
		secret, _ := r.secret(id)
		if (id == "nobody") != errors.Is(err, issuer.ErrNotFound) || id == "alice" && (err != nil || c.ID != id || secret != nil) {
			t.Errorf("%s: %+v, %v", id, c, err)
		}
	}
	if c, err := r.Certificate(ctx, print); err != nil || c.ClientID != "payments" {
		t.Errorf("the certificate belongs to %+v now, %v", c, err)
	}
}

// What was read ahead is not kept when it was overtaken by a change.
func TestRegistry_ReadAheadPutsNothingBack(t *testing.T) {
	t.Parallel()
	r, db := testRegistry(t)
	ctx, print, der := presented(t)
	addCertificate(t, db.Store, "payments", string(der))
	if _, err := db.AuditSubject(t.Context(), "payments"); err != nil {
		t.Fatal(err)
	}
	db.gap = func() {
		_, err := db.Revoke(t.Context(), store.Selection{Thumbprints: [][32]byte{print}}, 0, time.Now())
		if err := errors.Join(err, db.DisableClient(t.Context(), "payments"), db.DeleteAuditSubject(t.Context(), "payments")); err != nil {
			t.Error(err)
		}
	}
	if c, err := r.Client(ctx, "payments"); err != nil || c.Disabled {
		t.Fatalf("the gap came too early: %v", err)
	}
	if got, _ := r.secret("payments"); got != nil {
		t.Error("a secret that was deleted is handed out")
	}
	if c, err := r.Client(ctx, "payments"); err != nil || !c.Disabled {
		t.Errorf("a disabled client passes for enabled: %v", err)
	}
	if c, err := r.Certificate(ctx, print); err != nil || !c.Revoked {
		t.Errorf("a revoked certificate passes for good: %v", err)
	}
	// Also one that was kept before.
	if _, err := db.AuditSubject(t.Context(), "alice"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Client(ctx, "alice"); err != nil {
		t.Fatal(err)
	}
	if err := db.DeleteAuditSubject(t.Context(), "alice"); err != nil {
		t.Fatal(err)
	}
	if got, _ := r.secret("alice"); got != nil {
		t.Error("a secret that was deleted since is handed out")
	}
}

// Clients that name the same share what they may ask for, until the resources change; a reader that was overtaken by that
// leaves nothing behind for others.
func TestRegistry_SharedGrants(t *testing.T) {
	t.Parallel()
	r, db := testRegistry(t)
	_, err := db.AddClient(t.Context(), store.Client{ID: "billing", AuthMethod: "tls_client_auth", Usage: "client", Scopes: []string{write}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	grants := func(id string) []issuer.Grant {
		t.Helper()
		c, err := r.Client(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return c.Grants
	}
	if a, b := grants("payments"), grants("billing"); len(a) != 1 || &a[0] != &b[0] {
		t.Errorf("%v and %v are not shared", a, b)
	}
	r.forget(store.Change{Resources: true})
	reads := 0
	var overtake func()
	overtake = func() {
		if reads++; reads == 1 { // after the client's row, before the resources
			db.gap = overtake
			return
		}
		if err := db.AddResource(t.Context(), store.Resource{URI: "https://stock.test", Scopes: []string{write}}); err != nil {
			t.Error(err)
		}
	}
	db.gap = overtake
	if n := len(grants("payments")); n != 1 {
		t.Fatalf("%d grants: the gap came too early", n)
	}
	if n := len(grants("billing")); n != 2 {
		t.Errorf("%d grants after a resource was added, want 2", n)
	}
	for i, key := range []string{
		grantSetKey([]string{"a", "b"}, nil), grantSetKey([]string{"a"}, []string{"b"}), grantSetKey([]string{"a b"}, nil),
		grantSetKey([]string{"a\x01b"}, nil), grantSetKey(nil, []string{"a", "b"}), grantSetKey([]string{"ab"}, nil),
	} {
		r.grantSets[key] = nil
		if len(r.grantSets) < i+2 {
			t.Errorf("key %d, %q, is another's", i, key)
		}
	}
}
