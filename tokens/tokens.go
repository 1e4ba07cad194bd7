// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Package tokens says what the peer of a connection may do, and that the token it shows is its own. It verifies
// JWT access tokens (RFC 9068) that are bound to a client certificate by their cnf claim (RFC 8705, Section 3).
//
// It is for resource servers. Package tokens/resource puts it in front of an http.Handler in three lines; a server
// of another protocol calls Verifier.Verify itself:
//
//	v, err := tokens.NewVerifier(tokens.VerifierConfig{Issuer: issuer, Audience: audience, Keys: keys})
//	claims, err := v.Verify(ctx, raw, peer)
//
// There is no way to verify a token without the certificate of the connection it came on. Tokens that are not
// bound, are bound by another method, or are bound to another certificate are refused, and whoever shows one
// cannot tell these cases from a bad signature. Keys come from one issuer; when they cannot be had, nothing is
// accepted.
package tokens

import (
	"context"
	"crypto"
	"errors"
	"fmt"

	"github.com/certbound/certbound/tokens/internal/jose"
)

// Signature algorithms, by their names in the "alg" member (RFC 7518, Section 3.1; RFC 8037, Section 3.1).
const (
	ES256 = string(jose.ES256) // ES256 is ECDSA on P-256 with SHA-256.
	EdDSA = string(jose.EdDSA) // EdDSA is Ed25519.
	PS256 = string(jose.PS256) // PS256 is RSASSA-PSS with SHA-256.
	RS256 = string(jose.RS256) // RS256 is RSASSA-PKCS1-v1_5 with SHA-256; accepted only where it is listed.
)

// The algorithms of RFC 9964, whose code is in package tokens/mldsa; accepted only where they are listed.
const (
	MLDSA44 = string(jose.MLDSA44) // MLDSA44 is ML-DSA-44 of FIPS 204.
	MLDSA65 = string(jose.MLDSA65) // MLDSA65 is ML-DSA-65.
)

// KeyType reads public keys of an algorithm that this package has no code for.
type KeyType interface {
	// JWA returns the name of the algorithm, MLDSA44 or MLDSA65.
	JWA() string
	// ParsePublicKey reads the member "pub" of a JSON Web Key of the type AKP (RFC 9964, Section 4).
	ParsePublicKey(pub []byte) (crypto.PublicKey, error)
}

// PublicKey is a key that verifies the signatures of one issuer, with one algorithm and no other
// (RFC 8725, Section 3.1).
type PublicKey struct {
	ID        string           // the "kid"; an opaque string
	Algorithm string           // ES256, EdDSA, PS256, RS256, MLDSA44 or MLDSA65
	Key       crypto.PublicKey // *ecdsa.PublicKey on P-256, ed25519.PublicKey, *rsa.PublicKey of 2048 to 4096 bits, or *mldsa.PublicKey
}

// KeyID returns the RFC 7638 thumbprint (SHA-256, base64url, 43 characters) of a public key, which is the key id
// of our own signing keys. The error says that the key is of no supported kind.
func KeyID(pub crypto.PublicKey) (string, error) { return jose.KeyID(pub) }

// Errors of Keys.
var (
	// ErrUnknownKey reports that the issuer has no usable key with this id. The token is then refused.
	ErrUnknownKey = errors.New("tokens: unknown key id")
	// ErrKeysUnavailable reports that the issuer's keys cannot be had at present, or only from too long ago.
	// Nothing can be accepted then, and nothing is known against the token.
	ErrKeysUnavailable = errors.New("tokens: the issuer's keys are unavailable")
)

// Keys are the signature keys of one issuer. Key returns the key with exactly this id, or an error that wraps
// ErrUnknownKey; any other error counts as ErrKeysUnavailable. It is called for every token, from many goroutines,
// with an id that anybody may have made up. It may block until ctx is done.
type Keys interface {
	Key(ctx context.Context, id string) (PublicKey, error)
}

// StaticKeys are keys known beforehand. Nothing removes one but a new Verifier.
type StaticKeys []PublicKey

// Key returns the key with this id, or ErrUnknownKey when there is none or more than one.
func (s StaticKeys) Key(_ context.Context, id string) (PublicKey, error) {
	found := -1
	for i := range s {
		if s[i].ID != id {
			continue
		}
		if found >= 0 {
			return PublicKey{}, fmt.Errorf("%w: used twice", ErrUnknownKey)
		}
		found = i
	}
	if found < 0 {
		return PublicKey{}, ErrUnknownKey
	}
	return s[found], nil
}
