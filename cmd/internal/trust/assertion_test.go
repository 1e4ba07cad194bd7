// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package trust_test

import (
	"crypto/sha256"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/cmd/internal/trust"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/issuer"
)

// asserter is a client that publishes the keys of its assertions.
type asserter struct {
	*world
	keys tokens.Keys
}

func newAsserter(t *testing.T) *asserter {
	t.Helper()
	w := newWorld(t)
	return &asserter{world: w, keys: w.Keys(store.Client{ID: "reports", Generation: 1, AuthMethod: issuer.PrivateKeyJWT, JWKSURI: w.site.url})}
}

// expect asks twice, since what a first question sets off counts at the second.
func (a *asserter) expect(t *testing.T, what, id string, want bool, fetches int64) {
	t.Helper()
	_, _ = a.keys.Key(t.Context(), id)
	set, ok := a.keys.(issuer.CertificateSet)
	if !ok {
		t.Fatal("the keys are no set of the manager's")
	}
	trust.Settle(set)
	key, err := a.keys.Key(t.Context(), id)
	if (err == nil) != want || err != nil && !errors.Is(err, tokens.ErrUnknownKey) || err == nil && key.ID != id {
		t.Errorf("%s: %v, %v", what, key, err)
	}
	if n := a.site.hits.Load(); n != fetches {
		t.Errorf("%s: %d fetches, want %d", what, n, fetches)
	}
}

// signing is a certificate's key as a key of assertions.
func signing(t *testing.T, id string, change func(map[string]any)) map[string]any {
	t.Helper()
	key := jwk(t, mtlstest.SelfSigned(t, mtlstest.Leaf{}).Leaf)
	delete(key, "x5c")
	key["kid"] = id
	if change != nil {
		change(key)
	}
	return key
}

// CA-19, CA-20: RFC 7523, Section 3: the keys at a client's jwks_uri count from the next attempt after they were published,
// and no longer when they were taken back, or when they cannot be fetched for ten minutes. A made-up id costs no more than
// one fetch in thirty seconds, and never a wait; keys of no use are left out.
func TestRFC7523_3_PublishedKeys(t *testing.T) {
	t.Parallel()
	a := newAsserter(t)
	first, second := signing(t, "first", nil), signing(t, "second", nil)
	leaked := signing(t, "leaked", func(k map[string]any) { k["d"] = "AAAA" })
	other := signing(t, "other", func(k map[string]any) { k["use"] = "enc" })
	a.site.show(jwks(t, first, leaked, other, map[string]any{"kty": "future"}))
	a.expect(t, "published", "first", true, 1)
	a.expect(t, "leaked", "leaked", false, 1)
	a.expect(t, "for encryption", "other", false, 1)
	for range 100 {
		a.expect(t, "made up", "x", false, 1)
	}
	if a.changes.Load() != 1 {
		t.Errorf("%d changes were announced, want 1", a.changes.Load())
	}
	a.clock.move(31 * time.Second)
	a.site.show(jwks(t, first, second))
	a.expect(t, "added", "second", true, 2)
	if a.changes.Load() != 2 {
		t.Errorf("%d changes were announced, want 2", a.changes.Load())
	}
	a.clock.move(31 * time.Second)
	a.expect(t, "the same again", "x", false, 3)
	if a.changes.Load() != 2 {
		t.Errorf("%d changes were announced for the same keys", a.changes.Load())
	}
	// Another key under the id of the first.
	a.clock.move(5*time.Minute + time.Second)
	a.site.show(jwks(t, signing(t, "first", nil)))
	a.expect(t, "taken back", "second", false, 4)
	if a.changes.Load() != 3 {
		t.Errorf("%d changes were announced, want 3", a.changes.Load())
	}
	a.site.fail()
	a.clock.move(9 * time.Minute)
	a.expect(t, "not fetched", "first", true, 5)
	a.clock.move(2 * time.Minute)
	a.expect(t, "not fetched for long", "first", false, 6)
	if got := a.Health()["jwks:reports"]; got == "ok" || got == "" {
		t.Errorf("health %q", got)
	}
	a.site.show([]byte("no set"))
	a.clock.move(time.Minute)
	a.expect(t, "no set", "first", false, 7)
	a.site.show(jwks(t, first))
	a.clock.move(time.Minute)
	a.expect(t, "back", "first", true, 8)
}

// CA-29: RFC 5280, Section 5.3.1: what a client got by a key of its jwks_uri is found by that key, once it is compromised.
func TestRFC5280_5_3_1_PublishedKeyOfAssertions(t *testing.T) {
	t.Parallel()
	a := newAsserter(t)
	cert := mtlstest.SelfSigned(t, mtlstest.Leaf{})
	mine := jwk(t, cert.Leaf) // with x5c, which says nothing here
	mine["kid"] = "mine"
	a.site.show(jwks(t, signing(t, "first", nil), mine))
	hash := sha256.Sum256(cert.Leaf.RawSubjectPublicKeyInfo)
	if got := a.Holding([][sha256.Size]byte{hash}); len(got) != 0 {
		t.Errorf("before the first fetch: %+v", got)
	}
	a.expect(t, "published", "mine", true, 1)
	if got := a.Holding([][sha256.Size]byte{{1}, hash}); !slices.Equal(got, []tokens.Denial{{ClientID: "reports"}}) {
		t.Errorf("found %+v", got)
	}
	if got := a.Holding([][sha256.Size]byte{{1}}); len(got) != 0 {
		t.Errorf("for another key: %+v", got)
	}
}

// Keys that were registered by value are those, and a row that somebody damaged has none.
func TestRFC7523_3_RegisteredKeys(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	row := store.Client{ID: "reports", Generation: 1, AuthMethod: issuer.PrivateKeyJWT, JWKS: string(jwks(t, signing(t, "first", nil)))}
	if key, err := w.Keys(row).Key(t.Context(), "first"); err != nil || key.Algorithm != tokens.ES256 {
		t.Errorf("%v, %v", key, err)
	}
	if _, err := w.Keys(row).Key(t.Context(), "second"); !errors.Is(err, tokens.ErrUnknownKey) {
		t.Error(err)
	}
	row.JWKS = row.JWKS[1:]
	if _, err := w.Keys(row).Key(t.Context(), "first"); !errors.Is(err, tokens.ErrUnknownKey) {
		t.Error(err)
	}
	if w.site.hits.Load() != 0 {
		t.Error("something was fetched")
	}
}
