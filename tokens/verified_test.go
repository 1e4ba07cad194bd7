// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package tokens_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/tokenstest"
)

// changing is Keys whose answer a test changes.
type changing struct {
	mu    sync.Mutex
	keys  tokens.Keys
	asked int
}

func (c *changing) Key(ctx context.Context, id string) (tokens.PublicKey, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked++
	return c.keys.Key(ctx, id)
}

func (c *changing) set(keys tokens.Keys) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keys = keys
}

// warm is a verifier that has accepted a token, with keys and a clock that can be changed.
type warm struct {
	*fixture
	keys     *changing
	original tokens.Keys
	ahead    atomic.Int64
	verifier *tokens.Verifier
	raw      string
}

func newWarm(t *testing.T, issuer *tokenstest.Issuer) *warm {
	t.Helper()
	w := &warm{fixture: newFixtureOf(t, issuer)}
	w.original = w.issuer.Keys()
	w.keys = &changing{keys: w.original}
	var err error
	w.verifier, err = tokens.NewVerifier(tokens.VerifierConfig{
		Issuer: tokenstest.URL, Audience: tokenstest.Audience, Keys: w.keys,
		Now: func() time.Time { return time.Now().Add(time.Duration(w.ahead.Load())) },
	})
	if err != nil {
		t.Fatal(err)
	}
	w.raw = w.issuer.Token(t, w.peer, "orders:read", "orders:write")
	accepted(t, w.verifier, w.raw, w.peer)
	return w
}

// A token that was accepted is refused on every other connection, also when it comes again: with another certificate,
// with none, and with the same key in another certificate.
func TestRFC8705_3_BindingOfAKnownToken(t *testing.T) {
	t.Parallel()
	w := newWarm(t, tokenstest.New(t))
	refused(t, w.verifier, w.raw, w.thief, "thumbprint_mismatch")
	refused(t, w.verifier, w.raw, nil, "no_certificate")
	accepted(t, w.verifier, w.raw, w.peer)
}

// A token that was accepted is judged by the clock of the time when it comes again.
func TestRFC7519_4_1_4_DatesOfAKnownToken(t *testing.T) {
	t.Parallel()
	w := newWarm(t, tokenstest.New(t))
	w.ahead.Store(int64(-10 * time.Minute))
	refused(t, w.verifier, w.raw, w.peer, "issued_in_future")
	w.ahead.Store(int64(366 * 24 * time.Hour))
	refused(t, w.verifier, w.raw, w.peer, "expired")
	w.ahead.Store(0)
	accepted(t, w.verifier, w.raw, w.peer)
}

// A token that was accepted is refused once its issuer has no such key any more, or another one of that id, and while the
// keys cannot be had; and the same key, fetched again, verifies it.
func TestRFC7517_5_KeyOfAKnownToken(t *testing.T) { // not parallel: it counts allocations
	w := newWarm(t, tokenstest.New(t))
	w.keys.set(tokens.StaticKeys{})
	refused(t, w.verifier, w.raw, w.peer, "unknown_key")

	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]tokens.PublicKey{
		"another key":         {Algorithm: tokens.ES256, Key: other.Public()},
		"no key":              {Algorithm: tokens.ES256, Key: (*ecdsa.PublicKey)(nil)},
		"another algorithm":   {Algorithm: tokens.EdDSA, Key: ed25519.PublicKey(make([]byte, 32))},
		"an algorithm's name": {Algorithm: tokens.PS256, Key: mustKey(t, w.original, w.raw).Key},
	} {
		w.keys.set(keysFunc(func(_ context.Context, id string) (tokens.PublicKey, error) {
			key.ID = id
			return key, nil
		}))
		if _, err := w.verifier.Verify(t.Context(), w.raw, w.peer); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}

	w.keys.set(keysFunc(func(ctx context.Context, id string) (tokens.PublicKey, error) {
		key, err := w.original.Key(ctx, id)
		return key, errors.Join(err, errors.New("down")) // the right key is none beside an error
	}))
	_, err = w.verifier.Verify(t.Context(), w.raw, w.peer)
	if e, ok := errors.AsType[*tokens.Error](err); !ok || e.Code != tokens.CodeTemporarilyUnavailable {
		t.Errorf("without keys: %v", err)
	}

	w.keys.set(keysFunc(func(ctx context.Context, id string) (tokens.PublicKey, error) {
		key, err := w.original.Key(ctx, id)
		if public, ok := key.Key.(*ecdsa.PublicKey); ok {
			again := *public
			key.Key = &again
		}
		return key, err
	}))
	if n := testing.AllocsPerRun(10, func() { accepted(t, w.verifier, w.raw, w.peer) }); n > 15 {
		t.Errorf("%v allocations with the same key fetched again: its signature is verified once more", n)
	}
}

func mustKey(t *testing.T, keys tokens.Keys, raw string) tokens.PublicKey {
	t.Helper()
	u, err := tokens.ParseUnverified(raw)
	if err != nil {
		t.Fatal(err)
	}
	key, err := keys.Key(t.Context(), u.Header["kid"].(string))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// Keys of every kind are told apart: another one of the same kind under the same id does not stand for the first, nor does
// the first with another algorithm.
func TestRFC8725_3_1_KindOfKeyOfAKnownToken(t *testing.T) {
	t.Parallel()
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, otherEdwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	modulus, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		key   crypto.Signer
		other tokens.PublicKey
	}{
		{edwards, tokens.PublicKey{Algorithm: tokens.EdDSA, Key: otherEdwards.Public()}},
		{modulus, tokens.PublicKey{Algorithm: tokens.RS256, Key: modulus.Public()}},
	} {
		w := newWarm(t, tokenstest.NewWithKey(t, c.key))
		w.keys.set(keysFunc(func(_ context.Context, id string) (tokens.PublicKey, error) {
			c.other.ID = id
			return c.other, nil
		}))
		refused(t, w.verifier, w.raw, w.peer, "bad_signature")
		w.keys.set(w.original)
		accepted(t, w.verifier, w.raw, w.peer)
	}
}

// A long token takes its length of the room.
func TestKnownTokensAreBoundedInBytes(t *testing.T) { // not parallel: it counts allocations
	f := newFixture(t)
	const room = 2 * 4 << 10 // either half has room for four short tokens or for none of 4 KiB
	for claim, long := range map[string]any{
		"sub": strings.Repeat("x", 4<<10), "client_id": strings.Repeat("x", 4<<10), "jti": strings.Repeat("x", 4<<10),
		"scope": strings.Repeat("x", 4<<10), "aud": []string{tokenstest.Audience, strings.Repeat("x", 4<<10)},
		"unknown": strings.Repeat("x", 4<<10),
	} {
		v, err := tokens.NewVerifier(tokens.VerifierConfig{
			Issuer: tokenstest.URL, Audience: tokenstest.Audience, Keys: f.issuer.Keys(), CacheBytes: room,
		})
		if err != nil {
			t.Fatal(err)
		}
		raw := f.with(t, claim, long)
		n := testing.AllocsPerRun(5, func() { accepted(t, v, raw, f.peer) })
		if known := n <= 5; known != (claim == "unknown") { // what nobody reads is not kept
			t.Errorf("%s of 4 KiB: %v allocations", claim, n)
		}
	}
	// Many scopes take more than their text.
	v, err := tokens.NewVerifier(tokens.VerifierConfig{
		Issuer: tokenstest.URL, Audience: tokenstest.Audience, Keys: f.issuer.Keys(), CacheBytes: room,
	})
	if err != nil {
		t.Fatal(err)
	}
	raw := f.with(t, "scope", strings.TrimSuffix(strings.Repeat("x ", 250), " "))
	if n := testing.AllocsPerRun(5, func() { accepted(t, v, raw, f.peer) }); n <= 5 {
		t.Errorf("250 scopes: %v allocations", n)
	}
}

// What a token says is each caller's own: what one does to it, another does not see.
func TestKnownTokenIsNobodysToChange(t *testing.T) {
	t.Parallel()
	w := newWarm(t, tokenstest.New(t))
	first := accepted(t, w.verifier, w.raw, w.peer)
	want := *first
	want.Scope, want.Audience = []string{"orders:read", "orders:write"}, []string{tokenstest.Audience}
	first.Scope[0], first.Audience[0], first.ClientID, first.Thumbprint = "admin", "x", "y", mtls.Thumbprint{}
	if diff := cmp.Diff(&want, accepted(t, w.verifier, w.raw, w.peer)); diff != "" {
		t.Errorf("changed (-want +got):\n%s", diff)
	}
}

// What was refused is not remembered: it is accepted on the connection that it belongs to, and the other way round.
func TestRefusedTokenIsNotRemembered(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	raw := f.issuer.Token(t, f.peer, "orders:read")
	refused(t, f.verifier, raw, f.thief, "thumbprint_mismatch")
	accepted(t, f.verifier, raw, f.peer)

	foreign := tokenstest.New(t).Token(t, f.peer)
	for range 2 {
		refused(t, f.verifier, foreign, f.peer, "unknown_key")
	}
}

// A token that comes again is spared its signature, unless the Verifier remembers nothing; its key is asked for all the
// same.
func TestKnownTokenIsCheap(t *testing.T) { // not parallel: it counts allocations
	for _, bytes := range []int{0, -1} {
		f := newFixture(t)
		keys := &changing{keys: f.issuer.Keys()}
		v, err := tokens.NewVerifier(tokens.VerifierConfig{Issuer: tokenstest.URL, Audience: tokenstest.Audience, Keys: keys, CacheBytes: bytes})
		if err != nil {
			t.Fatal(err)
		}
		raw := f.issuer.Token(t, f.peer, "orders:read", "orders:write")
		accepted(t, v, raw, f.peer)
		const again = 20
		n := testing.AllocsPerRun(again-1, func() { accepted(t, v, raw, f.peer) }) // and once to warm up
		if known := n <= 5; known != (bytes == 0) {
			t.Errorf("%v allocations with CacheBytes %d", n, bytes)
		}
		if keys.asked != again+1 {
			t.Errorf("the key was asked for %d times in %d verifications", keys.asked, again+1)
		}
	}
}

// BenchmarkVerifyKnown is BenchmarkVerify for a token that comes again, in which nothing of it is read.
func BenchmarkVerifyKnown(b *testing.B) {
	f := newFixture(b)
	raw := f.issuer.Token(b, f.peer, "orders:read", "orders:write")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := f.verifier.Verify(b.Context(), raw, f.peer); err != nil {
			b.Fatal(err)
		}
	}
}
