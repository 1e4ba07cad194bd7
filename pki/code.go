// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Package pki says who gets a certificate from Certbound's own authority and whether one is still good: the
// enrolment code and the proof of its redemption, what a certificate request may carry, the exact profile that an
// issued certificate must meet, and certificate revocation lists, written and judged.
//
// It is for the program that signs (package stepca does the signing), for the client that enrols, and for anyone
// who reads the revocation list. It decides from its arguments alone: no network, no clock, no storage.
//
// It refuses to take any name from a certificate request, to accept weak keys, to call a certificate good that
// carries one name, usage or extension more than was registered, and to use a revocation list that it does not
// understand completely.
package pki

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strconv"
	"strings"
)

const (
	// MaxCodeLength is the greatest length of a written enrolment code in bytes.
	MaxCodeLength = 1024

	codePrefix  = "cb1."
	codeVersion = 1
	// codeFixed counts the bytes around the URL: version, root, id and seed before it, the checksum behind it.
	codeFixed    = 1 + 32 + 8 + 16 + checksumSize
	checksumSize = 4

	// enrollContext separates these signatures and keys from every other use of the same primitives.
	enrollContext = "certbound-enroll-v1"
)

// ErrBadCode is returned by [ParseCode] for everything that is not a well-formed enrolment code. The error says
// what is wrong and never repeats the code.
var ErrBadCode = errors.New("not an enrolment code")

// Code is a one-time enrolment code: everything a new client must know to find the service, to recognise it and
// to prove that it was invited. Its Seed is a secret; [Code.String] writes it out, so a Code belongs into no log
// (slog redacts it by [Code.LogValue]).
type Code struct {
	// Root is the SHA-256 digest of the DER encoding of the root certificate that the service must show.
	Root [32]byte
	// ID names the code at the service. It is not secret.
	ID [8]byte
	// Seed is the secret from which the key pair of [Code.PublicKey] is derived.
	Seed [16]byte
	// URL is the issuer's https URL.
	URL string
}

// NewCode makes a code with a random id and seed for the service at url whose root certificate has the given
// SHA-256 digest. The URL must be https, with a host, without user, query or fragment.
func NewCode(root [32]byte, url string) (Code, error) {
	if err := checkCodeURL(url); err != nil {
		return Code{}, err
	}
	c := Code{Root: root, URL: url}
	// crypto/rand.Read never returns an error: it ends the program when there is no entropy.
	_, _ = rand.Read(c.ID[:])
	_, _ = rand.Read(c.Seed[:])
	if n := len(c.String()); n > MaxCodeLength {
		return Code{}, fmt.Errorf("url too long: the code would have %d bytes, at most %d", n, MaxCodeLength)
	}
	return c, nil
}

// ParseCode reads a code as [Code.String] writes it and accepts nothing else: prefix, base64url alphabet without
// padding or stray trailing bits, version, checksum and URL are all checked. Every error wraps [ErrBadCode].
func ParseCode(s string) (Code, error) {
	if len(s) > MaxCodeLength {
		return Code{}, fmt.Errorf("%w: longer than %d bytes", ErrBadCode, MaxCodeLength)
	}
	body, ok := strings.CutPrefix(s, codePrefix)
	if !ok {
		return Code{}, fmt.Errorf("%w: it must begin with %s", ErrBadCode, codePrefix)
	}
	raw, err := decodeBase64(body)
	if err != nil {
		return Code{}, fmt.Errorf("%w: a character is wrong or missing", ErrBadCode)
	}
	if len(raw) <= codeFixed {
		return Code{}, fmt.Errorf("%w: it is too short", ErrBadCode)
	}
	payload, sum := raw[:len(raw)-checksumSize], raw[len(raw)-checksumSize:]
	if want := codeChecksum(payload); !bytes.Equal(sum, want) {
		return Code{}, fmt.Errorf("%w: the checksum differs, it was not copied completely", ErrBadCode)
	}
	if payload[0] != codeVersion {
		return Code{}, fmt.Errorf("%w: unknown version %d", ErrBadCode, payload[0])
	}
	var c Code
	rest := payload[1:]
	rest = rest[copy(c.Root[:], rest):]
	rest = rest[copy(c.ID[:], rest):]
	rest = rest[copy(c.Seed[:], rest):]
	c.URL = string(rest)
	if err := checkCodeURL(c.URL); err != nil {
		return Code{}, fmt.Errorf("%w: %w", ErrBadCode, err)
	}
	return c, nil
}

// String writes the code, secret included: "cb1." and the base64url encoding of version, root, id, seed, URL and
// a checksum of four bytes that tells a slip of the clipboard from a refusal.
func (c Code) String() string {
	raw := make([]byte, 0, codeFixed+len(c.URL))
	raw = append(raw, codeVersion)
	raw = append(raw, c.Root[:]...)
	raw = append(raw, c.ID[:]...)
	raw = append(raw, c.Seed[:]...)
	raw = append(raw, c.URL...)
	raw = append(raw, codeChecksum(raw)...)
	return codePrefix + base64.RawURLEncoding.EncodeToString(raw)
}

// LogValue keeps the secret out of structured logs: only the id is shown.
func (c Code) LogValue() slog.Value {
	return slog.StringValue(codePrefix + "[id " + base64.RawURLEncoding.EncodeToString(c.ID[:]) + "]")
}

// PublicKey returns the half of the code's key pair that the service stores instead of the code.
func (c Code) PublicKey() ed25519.PublicKey {
	return c.privateKey().Public().(ed25519.PublicKey)
}

// Sign proves possession of the code for this certificate request at this issuer. The signature is worthless for
// any other request, so whoever relays it certifies only the key of the one who made it.
func (c Code) Sign(issuer string, csrDER []byte) []byte {
	return ed25519.Sign(c.privateKey(), redemption(issuer, c.ID, csrDER))
}

// VerifyRedemption reports whether sig was made by the code with this public key and id for this issuer and
// request. A key or signature of the wrong length verifies nothing.
func VerifyRedemption(pub ed25519.PublicKey, issuer string, id [8]byte, csrDER, sig []byte) bool {
	if len(pub) != ed25519.PublicKeySize || len(sig) != ed25519.SignatureSize {
		return false
	}
	return ed25519.Verify(pub, redemption(issuer, id, csrDER), sig)
}

// privateKey derives the key pair: HKDF (RFC 5869) with SHA-256 from the seed gives the private key of RFC 8032,
// Section 5.1.5.
func (c Code) privateKey() ed25519.PrivateKey {
	seed, err := hkdf.Key(sha256.New, c.Seed[:], nil, enrollContext+" key", ed25519.SeedSize)
	if err != nil {
		// Only an impossible output length or a seed below the FIPS minimum gets here; both are constants.
		panic("pki: deriving the key of an enrolment code: " + err.Error())
	}
	return ed25519.NewKeyFromSeed(seed)
}

// redemption is the signed message. Every part carries its length, so that no two tuples have equal bytes.
func redemption(issuer string, id [8]byte, csrDER []byte) []byte {
	digest := sha256.Sum256(csrDER)
	var msg []byte
	for _, part := range [][]byte{[]byte(enrollContext), []byte(issuer), id[:], digest[:]} {
		msg = binary.BigEndian.AppendUint32(msg, uint32(len(part)))
		msg = append(msg, part...)
	}
	return msg
}

func codeChecksum(payload []byte) []byte {
	sum := sha256.Sum256(payload)
	return sum[:checksumSize]
}

func checkCodeURL(s string) error {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return errors.New("the url holds a character that no url may hold")
		}
	}
	u, err := url.Parse(s)
	if err != nil {
		return errors.New("the url cannot be read")
	}
	switch {
	case u.Scheme != "https" || !strings.HasPrefix(s, "https://"):
		return errors.New("the url must begin with https://")
	case u.Hostname() == "":
		return errors.New("the url has no host")
	case u.User != nil || strings.ContainsAny(s, "?#"):
		return errors.New("the url may have no user, query or fragment")
	}
	if port := u.Port(); port != "" || strings.HasSuffix(u.Host, ":") {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return errors.New("the url's port is not a port")
		}
	}
	return nil
}

// decodeBase64 decodes unpadded base64url strictly. The alphabet is checked first because encoding/base64 skips
// line breaks silently, even in strict mode (RFC 4648, Section 3.3).
func decodeBase64(s string) ([]byte, error) {
	for i := range len(s) {
		if !isBase64URL(s[i]) {
			return nil, errors.New("character outside the base64url alphabet")
		}
	}
	return base64.RawURLEncoding.Strict().DecodeString(s)
}

func isBase64URL(b byte) bool {
	return b >= 'A' && b <= 'Z' || b >= 'a' && b <= 'z' || b >= '0' && b <= '9' || b == '-' || b == '_'
}
