// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/sha256"
	"errors"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens/issuer"
)

const testAdmin = "https://auth.test/admin/v1"

// slowRows is the store with a gap after each read, in which a test lets others write.
type slowRows struct {
	*store.Store
	gap func() // once
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
		got := r.grants(store.Client{ID: "c", Scopes: tc.scopes, Resources: tc.named}, resources)
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
		keep(m, i, i)
	}
	if _, newest := m[cacheSize+9]; len(m) != cacheSize || !newest {
		t.Errorf("%d entries, the newest among them %t; want %d", len(m), newest, cacheSize)
	}
}
