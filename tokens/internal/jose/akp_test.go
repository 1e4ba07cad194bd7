// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package jose

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

// stranger is a key of an algorithm that this package has no code for: Ed25519 under another name, so that a signature is
// one. The code of ML-DSA itself is tested in tokens/mldsa.
type stranger struct {
	name string
	key  ed25519.PublicKey
	pad  int // bytes that the encoding has besides
}

func (s *stranger) JWA() string {
	if s == nil {
		return ""
	}
	return s.name
}
func (s *stranger) Bytes() []byte { return append(bytes.Clone(s.key), make([]byte, s.pad)...) }
func (s *stranger) Verify(message, signature []byte) bool {
	return ed25519.Verify(s.key, message, signature)
}
func (s *stranger) Equal(other crypto.PublicKey) bool {
	o, ok := other.(*stranger)
	return ok && s.name == o.name && s.key.Equal(o.key)
}

// strangerSigner signs with it; it is given no hash.
type strangerSigner struct {
	*stranger
	private ed25519.PrivateKey
}

func (s strangerSigner) Public() crypto.PublicKey { return s.stranger }

func (s strangerSigner) Sign(_ io.Reader, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts.HashFunc() != 0 {
		return nil, errors.New("a hash")
	}
	return ed25519.Sign(s.private, message), nil
}

func newStranger(tb testing.TB, name string) strangerSigner {
	tb.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return strangerSigner{&stranger{name: name, key: public}, private}
}

// strangerType reads such keys.
type strangerType string

func (t strangerType) JWA() string { return string(t) }

func (t strangerType) ParsePublicKey(pub []byte) (crypto.PublicKey, error) {
	key := make(ed25519.PublicKey, ed25519.PublicKeySize)
	copy(key, pub)
	if len(pub) < ed25519.PublicKeySize { // whoever does not look at the error gets a key
		return &stranger{name: string(t), key: key}, errors.New("another size")
	}
	return &stranger{name: string(t), key: key, pad: len(pub) - ed25519.PublicKeySize}, nil
}

// RFC 9964, Section 5: the signing input itself is signed, and verified by the key's own code, with its one algorithm.
func TestRFC9964_5_Signature(t *testing.T) {
	t.Parallel()
	for _, algorithm := range []Algorithm{MLDSA44, MLDSA65} {
		key := newStranger(t, string(algorithm))
		token, err := Sign(Header{Algorithm: algorithm, KeyID: "k"}, []byte(`{}`), key)
		if err != nil {
			t.Fatal(err)
		}
		public := PublicKey{ID: "k", Algorithm: algorithm, Key: key.Public()}
		if payload, err := verifyAll(token, public); err != nil || string(payload) != `{}` {
			t.Errorf("%s: %q, %v", algorithm, payload, err)
		}
		if _, err := verifyAll(token[:len(token)-4]+"AAAA", public); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: a changed signature: %v", algorithm, err)
		}
		other := map[Algorithm]Algorithm{MLDSA44: MLDSA65, MLDSA65: MLDSA44}[algorithm]
		for _, a := range []Algorithm{ES256, EdDSA, other, "ML-DSA-87", ""} {
			if err := (PublicKey{Algorithm: a, Key: key.Public()}).Check(); !errors.Is(err, ErrKey) {
				t.Errorf("%s: a key for %q: %v", algorithm, a, err)
			}
			if _, err := Sign(Header{Algorithm: a}, []byte(`{}`), key); err == nil {
				t.Errorf("%s: it signs as %q", algorithm, a)
			}
		}
		if got := AlgorithmFor(key.Public()); got != algorithm {
			t.Errorf("%s: used with %q", algorithm, got)
		}
	}
	// Whoever hands in code cannot take another algorithm's name.
	for _, name := range []string{"ES256", "EdDSA", "ML-DSA-87", ""} {
		key := newStranger(t, name)
		if err := (PublicKey{Algorithm: Algorithm(name), Key: key.Public()}).Check(); !errors.Is(err, ErrKey) {
			t.Errorf("a key that says %q: %v", name, err)
		}
		if _, err := KeyID(key.Public()); err == nil || AlgorithmFor(key.Public()) != "" {
			t.Errorf("a key that says %q has an id", name)
		}
	}
}

// RFC 9964, Section 4: keys of the type AKP are read where their algorithm was given, which must be named, and never with
// a private part.
func TestRFC9964_4_KeySet(t *testing.T) {
	t.Parallel()
	key := newStranger(t, "ML-DSA-44")
	id, err := KeyID(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	set, err := MarshalKeySet([]PublicKey{{ID: id, Algorithm: MLDSA44, Key: key.Public()}, {ID: "e", Algorithm: ES256, Key: newES256(t).Public()}})
	if err != nil {
		t.Fatal(err)
	}
	if keys, err := ParseKeySet(set, strangerType("ML-DSA-65"), strangerType("ML-DSA-44")); err != nil || len(keys) != 2 ||
		keys[0].ID != id || keys[0].Algorithm != MLDSA44 || !key.Equal(keys[0].Key) {
		t.Errorf("read as %v, %v", keys, err)
	}
	if keys, err := ParseKeySet(set); err != nil || len(keys) != 1 || keys[0].ID != "e" {
		t.Errorf("without its code it is %v, %v", keys, err)
	}
	pub := base64.RawURLEncoding.EncodeToString(key.Bytes())
	long := strings.Repeat("A", maxAKPText)
	for name, test := range map[string]struct {
		entry string
		good  bool
	}{
		"bare":           {`"alg":"ML-DSA-44","pub":"` + pub + `"`, true},
		"the largest":    {`"alg":"ML-DSA-44","pub":"` + long + `"`, true},
		"too large":      {`"alg":"ML-DSA-44","pub":"` + long + `AA"`, false},
		"no alg":         {`"pub":"` + pub + `"`, false},
		"alg no string":  {`"alg":44,"pub":"` + pub + `"`, false},
		"another alg":    {`"alg":"ML-DSA-65","pub":"` + pub + `"`, false},
		"alg of others":  {`"alg":"ES256","pub":"` + pub + `"`, false},
		"no pub":         {`"alg":"ML-DSA-44"`, false},
		"pub no string":  {`"alg":"ML-DSA-44","pub":null`, false},
		"pub padded":     {`"alg":"ML-DSA-44","pub":"` + pub + `="`, false},
		"another size":   {`"alg":"ML-DSA-44","pub":"AAAA"`, false},
		"private":        {`"alg":"ML-DSA-44","pub":"` + pub + `","priv":"AAAA"`, false},
		"private, empty": {`"alg":"ML-DSA-44","pub":"` + pub + `","priv":null`, false},
	} {
		set := fmt.Sprintf(`{"keys":[{"kty":"AKP","kid":"k",%s}]}`, test.entry)
		if keys, err := ParseKeySet([]byte(set), strangerType("ML-DSA-44")); err != nil || len(keys) == 1 != test.good {
			t.Errorf("%s: %v, %v", name, keys, err)
		}
	}
	// A type that lends its name to a key of another algorithm.
	lying := strings.NewReplacer(`"ML-DSA-44"`, `"ML-DSA-65"`).Replace(string(set))
	if keys, err := ParseKeySet([]byte(lying), misnamed{strangerType("ML-DSA-44")}); err != nil || len(keys) != 1 {
		t.Errorf("a key of another algorithm than it is named for: %v, %v", keys, err)
	}
	var published struct{ Keys []map[string]any }
	if err := json.Unmarshal(set, &published); err != nil {
		t.Fatal(err)
	}
	if entry := published.Keys[0]; len(entry) != 5 || entry["kty"] != "AKP" || entry["alg"] != "ML-DSA-44" || entry["pub"] != pub || entry["use"] != "sig" || entry["kid"] != id {
		t.Errorf("published as %v", entry)
	}
}

// misnamed reads keys of one algorithm under the name of another.
type misnamed struct{ strangerType }

func (misnamed) JWA() string { return "ML-DSA-65" }

// AT-12: RFC 9964, Section 6: the thumbprint is of "alg", "kty" and "pub" alone.
func TestRFC9964_6_KeyID(t *testing.T) {
	t.Parallel()
	key := &stranger{name: "ML-DSA-44", key: make(ed25519.PublicKey, 32)}
	// SHA-256 of {"alg":"ML-DSA-44","kty":"AKP","pub":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}
	const want = "61KgCMLgpf_pL4YCcQ3lsFrGsWuU_bGsax-aFjRVP7c"
	if got, err := KeyID(key); err != nil || got != want {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
}
