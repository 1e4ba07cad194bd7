// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package tokens_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"io"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/tokenstest"
)

// RS-03, RS-04, RS-05, RS-06, RS-07, RS-08, RS-09, RS-10, RS-11, RS-12, RS-13, RS-14, RS-21, RS-22, RS-25, RS-26, RS-27,
// AT-02: RFC 9068, Section 4: every token of the museum is refused for its one defect, those that only look wrong are
// not, and no token at all is good for whoever holds another certificate or none.
func TestRFC9068_4_Museum(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for _, e := range tokenstest.Museum(t, f.issuer, f.peer) {
		t.Run(e.Name, func(t *testing.T) {
			t.Parallel()
			v := e.Verifier(t)
			refused(t, v, e.Raw, nil, "no_certificate")
			if e.Reason == "" {
				if claims := accepted(t, v, e.Raw, f.peer); !claims.Thumbprint.Equal(f.peer.Thumbprint()) || !claims.ForClient() {
					t.Errorf("%s: %+v", e.Clause, claims)
				}
				refused(t, v, e.Raw, f.thief, "thumbprint_mismatch")
				return
			}
			refused(t, v, e.Raw, f.peer, e.Reason)
			if claims, err := v.Verify(t.Context(), e.Raw, f.thief); claims != nil || err == nil {
				t.Errorf("%s: accepted from the thief: %+v", e.Clause, claims)
			}
		})
	}
}

// RS-09, RS-22: RFC 8725, Section 3.10: a key is asked for by a plain kid and by nothing else, once, and only after
// form, type and algorithm were found good.
func TestRFC8725_3_10_MuseumAsksForKeys(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for _, e := range tokenstest.Museum(t, f.issuer, f.peer) {
		t.Run(e.Name, func(t *testing.T) {
			t.Parallel()
			var asked []string
			v, err := tokens.NewVerifier(tokens.VerifierConfig{
				Issuer: tokenstest.URL, Audience: tokenstest.Audience,
				Keys: keysFunc(func(ctx context.Context, id string) (tokens.PublicKey, error) {
					asked = append(asked, id)
					return e.Keys.Key(ctx, id)
				}),
			})
			if err != nil {
				t.Fatal(err)
			}
			_, _ = v.Verify(t.Context(), e.Raw, f.peer) // judged above
			early := slices.Contains([]string{"malformed", "wrong_type", "algorithm_not_allowed"}, e.Reason)
			if early != (len(asked) == 0) || len(asked) > 1 {
				t.Errorf("%s: asked for %q", e.Clause, asked)
			}
		})
	}
}

// RS-28: RFC 6750, Section 5.1: no refusal holds a piece of the token it refuses.
func TestRFC6750_5_1_MuseumLeavesNoTrace(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for _, e := range tokenstest.Museum(t, f.issuer, f.peer) {
		_, err := e.Verifier(t).Verify(t.Context(), e.Raw, f.peer)
		for ; err != nil; err = errors.Unwrap(err) {
			for at := 0; at+16 <= len(e.Raw) && at < 1024; at += 8 {
				if piece := e.Raw[at : at+16]; strings.Contains(err.Error(), piece) {
					t.Errorf("%s: %q holds %q", e.Name, err, piece)
				}
			}
		}
	}
}

// ParseUnverified takes apart what it can and never fails in another way than by an Error.
func TestParseUnverifiedMuseum(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for _, e := range tokenstest.Museum(t, f.issuer, f.peer) {
		got, err := tokens.ParseUnverified(e.Raw)
		if refusal, ok := errors.AsType[*tokens.Error](err); (err != nil) != (got == nil) || err != nil && !ok {
			t.Errorf("%s: %v, %v", e.Name, got, refusal)
		}
		if (err != nil) != (e.Reason == "malformed" || got == nil) {
			t.Errorf("%s: shown though its form is wrong", e.Name)
		}
	}
}

// notary is a key that knows what it has signed.
type notary struct {
	*ecdsa.PrivateKey
	signed map[string]bool // digest and signature, as a token has it
}

func (n *notary) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	der, err := n.PrivateKey.Sign(random, digest, opts)
	if err != nil {
		return nil, err
	}
	var pair struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &pair); err != nil {
		return nil, err
	}
	if other := new(big.Int).Sub(n.Params().N, pair.S); other.Cmp(pair.S) < 0 {
		pair.S = other
	}
	raw := pair.S.FillBytes(make([]byte, 64))
	pair.R.FillBytes(raw[:32])
	n.signed[string(digest)+base64.RawURLEncoding.EncodeToString(raw)] = true
	return der, nil
}

// has reports whether the token is byte for byte one that was signed.
func (n *notary) has(token string) bool {
	dot := strings.LastIndexByte(token, '.')
	digest := sha256.Sum256([]byte(token[:max(dot, 0)]))
	return n.signed[string(digest[:])+token[dot+1:]]
}

// FuzzVerifyMuseum: RFC 7515, Section 5.2: whatever a token of the museum is changed into, it is accepted only if it is byte
// for byte one that the issuer signed, and only from the one certificate.
func FuzzVerifyMuseum(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	signer := &notary{key, make(map[string]bool)}
	fix := newFixtureOf(f, tokenstest.NewWithKey(f, signer))
	var museum []string // keys differ between the processes that fuzz, so that a seed says which token and not what it is
	kinds := map[string]bool{}
	for _, e := range tokenstest.Museum(f, fix.issuer, fix.peer) {
		if len(e.Raw) > 20<<10 {
			continue // refused for the size before anything is read
		}
		if kind := e.Clause + e.Reason; !kinds[kind] { // one of each is seed enough; the fuzzer finds the others by number
			kinds[kind] = true
			f.Add(uint16(len(museum)), uint16(0), uint16(0), "")
		}
		museum = append(museum, e.Raw)
	}
	f.Fuzz(func(t *testing.T, which, from, length uint16, insert string) {
		raw := museum[int(which)%len(museum)]
		start := int(from) % (len(raw) + 1)
		changed := raw[:start] + insert + raw[min(start+int(length), len(raw)):]
		claims, err := fix.verifier.Verify(t.Context(), changed, fix.peer)
		if (claims == nil) == (err == nil) {
			t.Fatalf("claims %v beside %v", claims, err)
		}
		if err == nil && !signer.has(changed) {
			t.Fatalf("accepted %q", changed)
		}
		if claims, err := fix.verifier.Verify(t.Context(), changed, fix.thief); err == nil || claims != nil {
			t.Fatalf("accepted from the thief: %q", changed)
		}
	})
}
