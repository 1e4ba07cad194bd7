// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Package jose reads and writes the compact JSON Web Signatures and the JSON Web Key Sets that access tokens need,
// and nothing else of JOSE. It is for the packages below tokens; nobody else imports a JOSE library.
//
// It refuses what RFC 7515 leaves to the application and what has broken other implementations: duplicate member
// names, names that differ only in case, base64url with white space, padding or stray bits, critical extensions,
// keys or key locations in a header, encrypted and nested tokens, the algorithms "none" and HMAC, a key used with
// another algorithm than its own, and anything over its size.
package jose

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"errors"
	"fmt"
	"math"
)

// Bounds on what is read. A byte beyond them is refused before it is decoded.
const (
	MaxTokenBytes  = 16 << 10  // MaxTokenBytes bounds a compact serialisation.
	MaxHeaderBytes = 2 << 10   // MaxHeaderBytes bounds its header, encoded.
	MaxKeySetBytes = 256 << 10 // MaxKeySetBytes bounds a key set.
	MaxKeys        = 100       // MaxKeys bounds the members of a key set.
	MaxDepth       = 8         // MaxDepth bounds the nesting of objects and arrays.
	maxKeyIDBytes  = 256
)

// Algorithm names a signature algorithm as in the "alg" member (RFC 7518, Section 3.1; RFC 8037, Section 3.1).
type Algorithm string

// The supported algorithms. All are asymmetric.
const (
	ES256 Algorithm = "ES256" // ES256 is ECDSA on P-256 with SHA-256, the default.
	EdDSA Algorithm = "EdDSA" // EdDSA is Ed25519; Ed448 is not supported.
	PS256 Algorithm = "PS256" // PS256 is RSASSA-PSS with SHA-256 and a salt of 32 bytes.
	RS256 Algorithm = "RS256" // RS256 is RSASSA-PKCS1-v1_5 with SHA-256, for old partners only.
)

// Supported reports whether this package can sign and verify with the algorithm, given a key that can.
func (a Algorithm) Supported() bool {
	switch a {
	case ES256, EdDSA, PS256, RS256:
		return true
	}
	return a.isForeign()
}

// PublicKey is a key that verifies signatures of one algorithm and no other (RFC 8725, Section 3.1).
type PublicKey struct {
	ID        string
	Algorithm Algorithm
	Key       crypto.PublicKey // *ecdsa.PublicKey, ed25519.PublicKey, *rsa.PublicKey or a VerifyingKey
}

// ErrKey reports a key that is of the wrong type, curve or size for its algorithm.
var ErrKey = errors.New("jose: key does not fit the algorithm")

// Check returns an error that wraps ErrKey unless the key is a public key of the kind that its algorithm needs:
// P-256 for ES256, Ed25519 for EdDSA, and RSA of 2048 to 4096 bits with an odd exponent from 65537 to
// 2^31-1; for any other, a VerifyingKey of that algorithm.
func (k PublicKey) Check() error {
	switch key := k.Key.(type) {
	case *ecdsa.PublicKey:
		if k.Algorithm == ES256 && key != nil && key.Curve == elliptic.P256() {
			return nil
		}
	case ed25519.PublicKey:
		if k.Algorithm == EdDSA && len(key) == ed25519.PublicKeySize {
			return nil
		}
	case *rsa.PublicKey:
		if (k.Algorithm == PS256 || k.Algorithm == RS256) && key != nil && goodRSA(key) {
			return nil
		}
	case VerifyingKey:
		if k.Algorithm.isForeign() && string(k.Algorithm) == key.JWA() {
			return nil
		}
	}
	return fmt.Errorf("%w: %q with %T", ErrKey, k.Algorithm, k.Key)
}

// goodRSA bounds the work of a verification from both sides: a small modulus or exponent can be forged, a large
// one costs the verifier.
func goodRSA(key *rsa.PublicKey) bool {
	if key.N == nil || key.E < 65537 || key.E > math.MaxInt32 || key.E%2 == 0 {
		return false
	}
	bits := key.N.BitLen()
	return bits >= 2048 && bits <= 4096
}

// AlgorithmFor returns the algorithm that a public key is used with when nothing else is said: ES256, EdDSA, or
// PS256 for RSA, and for a VerifyingKey its own. It is empty for a key that this package does not support.
func AlgorithmFor(pub crypto.PublicKey) Algorithm {
	if key, ok := foreignKey(pub); ok {
		return Algorithm(key.JWA())
	}
	for _, a := range []Algorithm{ES256, EdDSA, PS256} {
		if (PublicKey{Algorithm: a, Key: pub}).Check() == nil {
			return a
		}
	}
	return ""
}
