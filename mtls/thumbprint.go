// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package mtls

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"errors"
)

// thumbprintLength is the length of 32 octets in base64url without padding.
const thumbprintLength = 43

var errThumbprint = errors.New("mtls: not a certificate thumbprint: want SHA-256 as 43 characters of base64url without padding")

// Thumbprint is the SHA-256 of a certificate's DER encoding, the value of the confirmation method "x5t#S256"
// (RFC 8705, Section 3.1). It is an array and not a string, so that a hexadecimal digest, a hash of the public key or
// a SHA-1 print cannot take its place. The zero value is no thumbprint: it equals nothing and matches nothing.
type Thumbprint [sha256.Size]byte

// ThumbprintOf returns the thumbprint of cert: the hash of the very octets that were parsed, never of a re-encoding
// (RFC 8705, Section 3.1). It is the zero Thumbprint when cert is nil or was not parsed from DER.
func ThumbprintOf(cert *x509.Certificate) Thumbprint {
	if cert == nil || len(cert.Raw) == 0 {
		return Thumbprint{}
	}
	return sha256.Sum256(cert.Raw)
}

// ParseThumbprint reads the JSON form of a thumbprint: exactly 43 characters of base64url (RFC 7515, Section 2),
// unpadded, without white space and without stray trailing bits, so that one thumbprint has one spelling. The
// thumbprint of all zeros is refused, since it stands for "none".
func ParseThumbprint(s string) (Thumbprint, error) {
	var t Thumbprint
	// The decoder skips line breaks; a text of the right length that holds one yields too few octets.
	if len(s) != thumbprintLength {
		return Thumbprint{}, errThumbprint
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(raw) != len(t) {
		return Thumbprint{}, errThumbprint
	}
	copy(t[:], raw)
	if t.IsZero() {
		return Thumbprint{}, errThumbprint
	}
	return t, nil
}

// String returns the form that ParseThumbprint reads, the value of the member "x5t#S256" (RFC 8705, Section 3.1).
func (t Thumbprint) String() string {
	return base64.RawURLEncoding.EncodeToString(t[:])
}

// IsZero reports whether t is the zero value, which stands for no certificate.
func (t Thumbprint) IsZero() bool {
	return t == Thumbprint{}
}

// Equal reports whether t and u are thumbprints of the same certificate, in time that does not depend on where they
// differ. The zero Thumbprint equals nothing, not even itself: two missing certificates are not the same certificate.
func (t Thumbprint) Equal(u Thumbprint) bool {
	return subtle.ConstantTimeCompare(t[:], u[:]) == 1 && !t.IsZero()
}

// Matches reports whether t is the thumbprint of cert. A zero t and a nil cert match nothing.
func (t Thumbprint) Matches(cert *x509.Certificate) bool {
	return t.Equal(ThumbprintOf(cert))
}
