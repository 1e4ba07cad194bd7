// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package mldsa_test

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/internal/jose"
	"github.com/certbound/certbound/tokens/mldsa"
	"github.com/certbound/certbound/tokens/tokenstest"
)

func newKey(tb testing.TB, algorithm string) *mldsa.PrivateKey {
	tb.Helper()
	key, err := mldsa.GenerateKey(algorithm)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

// AT-12: RFC 9964, Sections 4 and 6: the private key is a seed, and the thumbprint is that of "alg", "kty" and "pub": the keys
// of the seed of zeros have the ids that the examples of the standard have.
func TestRFC9964_6_Thumbprint(t *testing.T) {
	t.Parallel()
	for algorithm, want := range map[string]string{
		tokens.MLDSA44: "T4xl70S7MT6Zeq6r9V9fPJGVn76wfnXJ21-gyo0Gu6o",
		tokens.MLDSA65: "Suiu29qbfuaBaR4Ats-c6XQBePB_OpAxAwcTR_0KXVM",
	} {
		key, err := mldsa.NewPrivateKey(algorithm, make([]byte, mldsa.SeedSize))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := tokens.KeyID(key.Public()); err != nil || got != want {
			t.Errorf("%s: the key's id is %s, want %s, %v", algorithm, got, want, err)
		}
		again, err := mldsa.NewPrivateKey(algorithm, key.Seed())
		if err != nil || !key.Public().(*mldsa.PublicKey).Equal(again.Public()) {
			t.Errorf("%s: the seed makes another key: %v", algorithm, err)
		}
	}
}

// RFC 9964, Appendix A.1: the example signatures verify, with the key that follows from the seed of zeros and is read from a key
// set; neither verifies when a byte of it is another, nor under the other example's key. Whence they are, and under which licence:
// testdata/README.md.
func TestRFC9964_A_1_Examples(t *testing.T) {
	t.Parallel()
	const payload = "It’s a dangerous business, Frodo, going out your door."
	keys := make(map[string]jose.PublicKey)
	for algorithm, id := range map[string]string{
		tokens.MLDSA44: "T4xl70S7MT6Zeq6r9V9fPJGVn76wfnXJ21-gyo0Gu6o",
		tokens.MLDSA65: "Suiu29qbfuaBaR4Ats-c6XQBePB_OpAxAwcTR_0KXVM",
	} {
		private, err := mldsa.NewPrivateKey(algorithm, make([]byte, mldsa.SeedSize))
		if err != nil {
			t.Fatal(err)
		}
		set, err := json.Marshal(map[string]any{"keys": []any{map[string]string{
			"kid": id, "kty": "AKP", "alg": algorithm, "pub": base64.RawURLEncoding.EncodeToString(private.Public().(*mldsa.PublicKey).Bytes()),
		}}})
		if err != nil {
			t.Fatal(err)
		}
		var types []jose.KeyType
		for _, keyType := range mldsa.Types() {
			types = append(types, keyType)
		}
		read, err := jose.ParseKeySet(set, types...)
		if err != nil || len(read) != 1 {
			t.Fatalf("%d keys, %v", len(read), err)
		}
		keys[algorithm] = read[0]
	}
	for algorithm, key := range keys {
		raw, err := os.ReadFile(filepath.Join("testdata", algorithm+".jws"))
		if err != nil {
			t.Fatal(err)
		}
		example := strings.TrimSuffix(string(raw), "\n")
		signed, err := jose.Parse(example)
		if err != nil {
			t.Fatal(err)
		}
		if h := signed.Header(); string(h.Algorithm) != algorithm || h.KeyID != key.ID {
			t.Errorf("%s: the header is %+v", algorithm, h)
		}
		if got, err := signed.Verify(key); err != nil || string(got) != payload {
			t.Errorf("%s: %q, %v", algorithm, got, err)
		}
		for other := range keys {
			if other == algorithm {
				continue
			}
			if _, err := signed.Verify(keys[other]); err == nil {
				t.Errorf("%s: it verifies under the key of %s", algorithm, other)
			}
		}
		signature := strings.LastIndexByte(example, '.') + 1
		for _, at := range []int{signature, signature + (len(example)-signature)/2} {
			replacement := "A"
			if example[at] == 'A' {
				replacement = "B"
			}
			other, err := jose.Parse(example[:at] + replacement + example[at+1:])
			if err != nil {
				t.Fatal(err)
			}
			if _, err := other.Verify(key); err == nil {
				t.Errorf("%s: it verifies with another byte %d", algorithm, at)
			}
		}
	}
}

// RFC 9964, Sections 3 to 5: a token signed with ML-DSA is accepted by a resource server that was given the code and lists
// the algorithm, its key read from the issuer's key set; and by nobody else.
func TestToken(t *testing.T) {
	t.Parallel()
	peer := mtlstest.PeerOf(mtlstest.NewCA(t, "root").Issue(t, mtlstest.Leaf{CommonName: "payments"}))
	for algorithm, other := range map[string]string{tokens.MLDSA44: tokens.MLDSA65, tokens.MLDSA65: tokens.MLDSA44} {
		t.Run(algorithm, func(t *testing.T) {
			t.Parallel()
			issuer := tokenstest.NewWithKey(t, newKey(t, algorithm))
			server := issuer.KeySetServer(t)
			token := issuer.Token(t, peer)
			if len(token) > 6<<10 {
				t.Errorf("a token of %d bytes", len(token))
			}
			types := mldsa.Types()
			wrong := []tokens.KeyType{types[0]}
			if types[0].JWA() == algorithm {
				wrong = types[1:]
			}
			for name, test := range map[string]struct {
				types      []tokens.KeyType
				algorithms []string
				good       bool
			}{
				"with code and algorithm":   {types, []string{tokens.ES256, algorithm}, true},
				"without the code":          {nil, []string{algorithm}, false},
				"with the other's code":     {wrong, []string{algorithm}, false},
				"the algorithm not listed":  {types, nil, false},
				"the other algorithm alone": {types, []string{other}, false},
			} {
				keys, err := tokens.NewKeySet(tokens.KeySetConfig{URL: server.URL, Client: server.Client, KeyTypes: test.types})
				if err != nil {
					t.Fatal(err)
				}
				v, err := tokens.NewVerifier(tokens.VerifierConfig{
					Issuer: tokenstest.URL, Audience: tokenstest.Audience, Keys: keys, Algorithms: test.algorithms})
				if err != nil {
					t.Fatal(err)
				}
				for range 2 { // remembered or not
					if _, err := v.Verify(t.Context(), token, peer); (err == nil) != test.good {
						t.Errorf("%s: %v", name, err)
					}
				}
				changed := token[:len(token)-10] + strings.Repeat("A", 10)
				if _, err := v.Verify(t.Context(), changed, peer); err == nil {
					t.Errorf("%s: a changed signature is accepted", name)
				}
			}
			// Another key of the same algorithm, under the same id.
			forged := tokenstest.NewWithKey(t, newKey(t, algorithm)).TokenWith(t, peer, func(_, header map[string]any) {
				header["kid"] = issuer.Keys()[0].ID
			})
			v, err := tokens.NewVerifier(tokens.VerifierConfig{
				Issuer: tokenstest.URL, Audience: tokenstest.Audience, Keys: issuer.Keys(), Algorithms: []string{algorithm}})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := v.Verify(t.Context(), forged, peer); err == nil {
				t.Error("a forged token is accepted")
			}
		})
	}
}

// Keys of another size, seeds that are none, ML-DSA-87, hashes, and what is no key are refused.
func TestRefused(t *testing.T) {
	t.Parallel()
	small, large := newKey(t, tokens.MLDSA44), newKey(t, tokens.MLDSA65)
	for algorithm, key := range map[string]*mldsa.PrivateKey{tokens.MLDSA44: large, tokens.MLDSA65: small} {
		if _, err := mldsa.NewPublicKey(algorithm, key.Public().(*mldsa.PublicKey).Bytes()); err == nil {
			t.Errorf("a key of the other size is one of %s", algorithm)
		}
		for _, keyType := range mldsa.Types() {
			if got, err := keyType.ParsePublicKey(make([]byte, 100)); err == nil || got != nil {
				t.Errorf("%s reads what is no key as %v", keyType.JWA(), got)
			}
		}
	}
	for _, seed := range [][]byte{nil, make([]byte, mldsa.SeedSize-1), make([]byte, mldsa.SeedSize+1)} {
		if _, err := mldsa.NewPrivateKey(tokens.MLDSA44, seed); err == nil {
			t.Errorf("a seed of %d bytes", len(seed))
		}
	}
	for _, algorithm := range []string{"ML-DSA-87", tokens.ES256, ""} {
		if _, err := mldsa.GenerateKey(algorithm); err == nil {
			t.Errorf("a key of %q", algorithm)
		}
		if _, err := mldsa.NewPrivateKey(algorithm, make([]byte, mldsa.SeedSize)); err == nil {
			t.Errorf("a seed of %q", algorithm)
		}
		if _, err := mldsa.NewPublicKey(algorithm, small.Public().(*mldsa.PublicKey).Bytes()); err == nil {
			t.Errorf("a public key of %q", algorithm)
		}
	}
	if _, err := small.Sign(rand.Reader, make([]byte, 32), crypto.SHA256); err == nil {
		t.Error("a hash is signed")
	}
	signature, err := small.Sign(rand.Reader, []byte("message"), nil)
	if err != nil {
		t.Fatal(err)
	}
	public := small.Public().(*mldsa.PublicKey)
	if !public.Verify([]byte("message"), signature) || public.Verify([]byte("another"), signature) ||
		newKey(t, tokens.MLDSA44).Public().(*mldsa.PublicKey).Verify([]byte("message"), signature) {
		t.Error("a signature verifies where it must not, or not where it must")
	}
	var none *mldsa.PublicKey
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []crypto.PublicKey{large.Public(), ed, none, nil} {
		if public.Equal(key) {
			t.Errorf("%T is the same key", key)
		}
	}
	if none.Equal(public) || none.JWA() != "" || !public.Equal(small.Public()) {
		t.Error("a key that is none is one, or one is not itself")
	}
	if _, err := tokens.KeyID(none); err == nil {
		t.Error("a key that is none has an id")
	}
	if _, err := tokens.KeyID(new(mldsa.PublicKey)); err == nil {
		t.Error("an empty key has an id")
	}
}

// AT-10: RFC 9964, Section 4: the key set has "kty", "alg" and "pub", an id and the use, and nothing private.
func TestRFC9964_4_PublishedKeys(t *testing.T) {
	t.Parallel()
	key := newKey(t, tokens.MLDSA44)
	server := tokenstest.NewWithKey(t, key).KeySetServer(t)
	response, err := server.Client.Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var set struct{ Keys []map[string]string }
	if err := json.NewDecoder(response.Body).Decode(&set); err != nil {
		t.Fatal(err)
	}
	id, err := tokens.KeyID(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	entry := set.Keys[0]
	pub, err := base64.RawURLEncoding.DecodeString(entry["pub"])
	if err != nil || !bytes.Equal(pub, key.Public().(*mldsa.PublicKey).Bytes()) {
		t.Errorf("another key is published: %v", err)
	}
	if len(set.Keys) != 1 || len(entry) != 5 || entry["kty"] != "AKP" || entry["alg"] != tokens.MLDSA44 || entry["kid"] != id || entry["use"] != "sig" {
		t.Errorf("the set has %d keys, the first %v", len(set.Keys), entry)
	}
}

// inFIPS is set in the process of TestFIPS that runs in FIPS mode.
const inFIPS = "CERTBOUND_TEST_FIPS"

// In FIPS 140-3 mode no key is made or read, and the error says why.
func TestFIPS(t *testing.T) {
	t.Parallel()
	if os.Getenv(inFIPS) == "" {
		if err := mldsa.Allowed(); err != nil {
			t.Skip("everything runs in FIPS mode")
		}
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFIPS$", "-test.count=1")
		cmd.Env = append(os.Environ(), "GODEBUG=fips140=on", inFIPS+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("in FIPS mode: %v\n%s", err, out)
		}
		return
	}
	_, made := mldsa.GenerateKey(tokens.MLDSA44)
	_, read := mldsa.NewPrivateKey(tokens.MLDSA44, make([]byte, mldsa.SeedSize))
	_, public := mldsa.NewPublicKey(tokens.MLDSA44, make([]byte, 1312))
	for _, err := range []error{mldsa.Allowed(), made, read, public} {
		if !errors.Is(err, mldsa.ErrFIPS) {
			t.Errorf("not refused: %v", err)
		}
	}
}
