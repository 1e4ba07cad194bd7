// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package jose

import (
	"crypto"
	"crypto/sha256"
	"encoding/base64"
	"slices"
)

// The algorithms of RFC 9964, Section 3. This package has no code for them: it knows their names, and how keys of the type
// AKP are written. Whoever links the code hands it in as keys that are VerifyingKeys, and as KeyTypes to read a set with.
const (
	MLDSA44 Algorithm = "ML-DSA-44" // MLDSA44 is ML-DSA of FIPS 204 with the parameter set of that name.
	MLDSA65 Algorithm = "ML-DSA-65" // MLDSA65 is the stronger one.
)

// typeAKP is the "kty" of a key that goes with one algorithm and no other (RFC 9964, Section 4).
const typeAKP = "AKP"

// maxAKPText bounds such a public key, encoded. One of ML-DSA-65 has 2603 characters.
const maxAKPText = 4 << 10

// VerifyingKey is a public key with the code that verifies with it. Its methods are called concurrently.
type VerifyingKey interface {
	// JWA returns the name of its one algorithm, MLDSA44 or MLDSA65; empty for a key that is none.
	JWA() string
	// Bytes returns the key as in the member "pub".
	Bytes() []byte
	// Verify reports whether the signature is the key's, of the message itself and not of a hash of it.
	Verify(message, signature []byte) bool
	// Equal reports whether the other key is the same one.
	Equal(crypto.PublicKey) bool
}

// KeyType reads the public keys of one algorithm that this package has no code for.
type KeyType interface {
	// JWA returns the name of the algorithm.
	JWA() string
	// ParsePublicKey reads the member "pub". The key is a VerifyingKey of the same algorithm.
	ParsePublicKey(pub []byte) (crypto.PublicKey, error)
}

// isForeign reports whether the algorithm is one that this package has no code for.
func (a Algorithm) isForeign() bool { return a == MLDSA44 || a == MLDSA65 }

// foreignKey returns a key of an algorithm that this package has no code for.
func foreignKey(pub crypto.PublicKey) (VerifyingKey, bool) {
	key, ok := pub.(VerifyingKey)
	return key, ok && Algorithm(key.JWA()).isForeign()
}

// akp is such a key as RFC 9964, Section 4 writes it.
type akp struct {
	Use       string `json:"use"`
	Type      string `json:"kty"`
	KeyID     string `json:"kid"`
	Algorithm string `json:"alg"`
	Public    string `json:"pub"`
}

func (k PublicKey) akp(key VerifyingKey) akp {
	return akp{Use: "sig", Type: typeAKP, KeyID: k.ID, Algorithm: key.JWA(), Public: base64.RawURLEncoding.EncodeToString(key.Bytes())}
}

// akpKeyID is KeyID: "alg", "kty" and "pub", in this order and without white space, are what RFC 9964, Section 6 hashes.
func akpKeyID(key VerifyingKey) string {
	sum := sha256.Sum256([]byte(`{"alg":"` + key.JWA() + `","kty":"` + typeAKP + `","pub":"` + base64.RawURLEncoding.EncodeToString(key.Bytes()) + `"}`))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// readAKP reads a key of the type AKP if its type was given; else it is none. "alg" is required.
func readAKP(members Object, types []KeyType) crypto.PublicKey {
	name, _ := members["alg"].(string)
	text, _ := members["pub"].(string)
	i := slices.IndexFunc(types, func(t KeyType) bool { return t.JWA() == name })
	if i < 0 || len(text) > maxAKPText {
		return nil
	}
	pub, err := decodeBase64(text)
	if err != nil {
		return nil
	}
	key, err := types[i].ParsePublicKey(pub)
	if err != nil {
		return nil
	}
	return key
}
