// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package jose

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// Header is what we write into, and use of, a JOSE header (RFC 7515, Section 4.1).
type Header struct {
	Algorithm Algorithm
	KeyID     string
	Type      string // "typ", for example "at+jwt" (RFC 9068, Section 2.1); may be empty
}

// ErrToken reports a token that is not a compact JWS as this package reads it. ErrSignature reports a signature
// that the key does not verify, or a key that must not be used with the token's algorithm.
// ErrSignatureForm reports a signature of ES256 that may verify, but is not the one of its two forms that Sign writes.
var (
	ErrToken         = errors.New("jose: not an acceptable compact JWS")
	ErrSignature     = errors.New("jose: signature does not verify")
	ErrSignatureForm = errors.New("jose: signature is in the other of its two forms")
)

var errAnotherHeader = fmt.Errorf("%w: another header", ErrToken)

// Sign returns the compact serialisation of the payload signed by s (RFC 7515, Section 7.1). Type and KeyID must
// be printable ASCII without quotes and backslashes. The signer must suit the algorithm: a mismatch is an error.
// A signature of ES256 has the low one of the two s that verify. Safe for concurrent use as far as s is.
func Sign(h Header, payload []byte, s crypto.Signer) (string, error) {
	protected, err := h.appendTo(make([]byte, 0, headerBytes))
	if err != nil {
		return "", err
	}
	return SignSerialized(protected, h.Algorithm, payload, s)
}

// headerBytes is enough for the headers that appendTo writes for our own keys.
const headerBytes = 128

// appendTo appends the header as Sign writes it.
func (h Header) appendTo(b []byte) ([]byte, error) {
	if !plain(h.Type) || !plain(h.KeyID) || !plain(string(h.Algorithm)) {
		return nil, errors.New("jose: header value is not plain ASCII")
	}
	b = append(append(b, `{"alg":"`...), h.Algorithm...)
	if h.Type != "" {
		b = append(append(b, `","typ":"`...), h.Type...)
	}
	if h.KeyID != "" {
		b = append(append(b, `","kid":"`...), h.KeyID...)
	}
	return append(b, `"}`...), nil
}

// SignSerialized is Sign with a header that the caller serialised, taken as it is: it is how bad tokens are made
// for tests. The signature is of algorithm a whatever the header says.
func SignSerialized(header []byte, a Algorithm, payload []byte, s crypto.Signer) (string, error) {
	encoded := base64.RawURLEncoding
	size := encoded.EncodedLen(len(header)) + 1 + encoded.EncodedLen(len(payload))
	token := make([]byte, 0, size+1+encoded.EncodedLen(signatureBytes(s)))
	token = encoded.AppendEncode(token, header)
	token = append(token, '.')
	token = encoded.AppendEncode(token, payload)
	signature, err := sign(a, token, s)
	if err != nil {
		return "", fmt.Errorf("jose: sign: %w", err)
	}
	token = append(token, '.')
	token = encoded.AppendEncode(token, signature)
	return string(token), nil
}

// plain reports whether s needs no escaping within a JSON string.
func plain(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e || s[i] == '"' || s[i] == '\\' {
			return false
		}
	}
	return true
}

func signatureBytes(s crypto.Signer) int {
	if key, ok := s.Public().(*rsa.PublicKey); ok {
		return key.Size()
	}
	return 64
}

func sign(a Algorithm, input []byte, s crypto.Signer) ([]byte, error) {
	if err := (PublicKey{Algorithm: a, Key: s.Public()}).Check(); err != nil {
		return nil, err
	}
	if a == EdDSA || a.isForeign() {
		return s.Sign(rand.Reader, input, crypto.Hash(0))
	}
	digest := sha256.Sum256(input)
	switch a {
	case ES256:
		der, err := s.Sign(rand.Reader, digest[:], crypto.SHA256)
		if err != nil {
			return nil, err
		}
		signature, err := rawSignature(der)
		if err != nil {
			return nil, err
		}
		lowerS(signature)
		return signature, nil
	case PS256:
		return s.Sign(rand.Reader, digest[:], pssOptions)
	default:
		return s.Sign(rand.Reader, digest[:], crypto.SHA256)
	}
}

// pssOptions fixes the salt to the size of the hash (RFC 7518, Section 3.5).
var pssOptions = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}

// rawSignature turns the DER form that crypto.Signer returns into the fixed R || S of RFC 7518, Section 3.4.
func rawSignature(der []byte) ([]byte, error) {
	raw := make([]byte, 64)
	if len(der) < 2 || der[0] != 0x30 || int(der[1]) != len(der)-2 {
		return nil, errors.New("malformed ECDSA signature")
	}
	rest, ok := takeInteger(der[2:], raw[:32])
	if !ok {
		return nil, errors.New("malformed ECDSA signature")
	}
	rest, ok = takeInteger(rest, raw[32:])
	if !ok || len(rest) != 0 {
		return nil, errors.New("malformed ECDSA signature")
	}
	return raw, nil
}

// derSignature undoes rawSignature: it writes 64 bytes R || S as crypto/ecdsa reads them (RFC 3279, Section 2.2.3).
func derSignature(raw []byte) []byte {
	der := append(make([]byte, 0, 72), 0x30, 0)
	der = appendInteger(appendInteger(der, raw[:32]), raw[32:])
	der[1] = byte(len(der) - 2)
	return der
}

// appendInteger appends 32 bytes, big-endian, as a DER INTEGER: as short as can be, with its sign.
func appendInteger(der, value []byte) []byte {
	value = bytes.TrimLeft(value, "\x00")
	sign := len(value) == 0 || value[0] >= 0x80
	n := len(value)
	if sign {
		n++
	}
	der = append(der, 0x02, byte(n))
	if sign {
		der = append(der, 0)
	}
	return append(der, value...)
}

// takeInteger reads one DER INTEGER of at most 33 bytes into the 32 bytes of to, right-aligned.
func takeInteger(der, to []byte) (rest []byte, ok bool) {
	if len(der) < 2 || der[0] != 0x02 || int(der[1]) > len(der)-2 {
		return nil, false
	}
	value, rest := der[2:2+int(der[1])], der[2+int(der[1]):]
	if len(value) == len(to)+1 && value[0] == 0 {
		value = value[1:]
	}
	if len(value) == 0 || len(value) > len(to) {
		return nil, false
	}
	copy(to[len(to)-len(value):], value)
	return rest, true
}

// order is the order n of P-256 (SP 800-186, Section 3.2.1.3), halfOrder is n/2, rounded down; both big-endian.
const (
	order = "\xff\xff\xff\xff\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff" +
		"\xbc\xe6\xfa\xad\xa7\x17\x9e\x84\xf3\xb9\xca\xc2\xfc\x63\x25\x51"
	halfOrder = "\x7f\xff\xff\xff\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff" +
		"\xde\x73\x7d\x56\xd3\x8b\xcf\x42\x79\xdc\xe5\x61\x7e\x31\x92\xa8"
)

// highS reports whether s of R || S, 64 bytes, is above n/2. For every (r, s) of a message (r, n - s) verifies as well, so that
// whoever has a token can make another one of it; of such a pair exactly one s is low.
func highS(signature []byte) bool {
	return string(signature[32:]) > halfOrder
}

// lowerS replaces a high s by n - s, in place. Half of all signatures need it. A signature is no secret: the time may
// depend on it.
func lowerS(signature []byte) {
	if !highS(signature) {
		return
	}
	s, borrow := signature[32:], 0
	for i := len(s) - 1; i >= 0; i-- {
		digit := int(order[i]) - int(s[i]) - borrow
		s[i], borrow = byte(digit), 0
		if digit < 0 {
			borrow = 1
		}
	}
}

// Signed is a parsed token whose signature has not been checked yet. Its payload comes out of Verify.
type Signed struct {
	header    Header
	members   Object // nil after ParseWritten
	input     string // the first two parts with their dot
	payload   []byte
	signature []byte
}

// refused are header members that would let the token choose its own key, or change what the signature or the
// payload means. We understand no extension, so any "crit" is one we do not (RFC 7515, Sections 4.1.2 to 4.1.11;
// RFC 7797; RFC 8725, Sections 3.10 and 3.11).
var refused = [...]string{"crit", "b64", "jwk", "jku", "x5u", "x5c", "zip", "enc", "epk", "cty"}

// Parse reads a compact serialisation without using a key: exactly three parts of strict base64url, a header that
// is a strict object with a supported algorithm. The size is judged before anything is decoded. The error wraps
// ErrToken and holds nothing of the token.
func Parse(raw string) (*Signed, error) { return ParseUpTo(raw, MaxTokenBytes) }

// ParseUpTo is Parse for a document that is no token, of at most so many bytes.
func ParseUpTo(raw string, limit int) (*Signed, error) {
	if len(raw) > limit {
		return nil, fmt.Errorf("%w: too large", ErrToken)
	}
	if strings.Count(raw, ".") != 2 {
		return nil, fmt.Errorf("%w: not three parts", ErrToken)
	}
	first := strings.IndexByte(raw, '.')
	if first > MaxHeaderBytes {
		return nil, fmt.Errorf("%w: header too large", ErrToken)
	}
	header, err := decodeBase64(raw[:first])
	if err != nil {
		return nil, fmt.Errorf("%w: header: %w", ErrToken, err)
	}
	signed := &Signed{}
	if err := signed.decodeAfter(raw, first); err != nil {
		return nil, err
	}
	if signed.members, err = DecodeObject(header); err != nil {
		return nil, fmt.Errorf("%w: header: %w", ErrToken, err)
	}
	if signed.header, err = readHeader(signed.members); err != nil {
		return nil, err
	}
	return signed, nil
}

// ParseWritten is Parse for a token that Sign wrote with the header h. The header is compared and not read: a token with any
// other bytes there is refused, whatever they may mean.
func ParseWritten(raw string, h Header) (*Signed, error) {
	if len(raw) > MaxTokenBytes {
		return nil, fmt.Errorf("%w: too large", ErrToken)
	}
	protected, err := h.appendTo(make([]byte, 0, headerBytes))
	if err != nil {
		return nil, err
	}
	encoded := base64.RawURLEncoding.AppendEncode(make([]byte, 0, 2*headerBytes), protected)
	if !strings.HasPrefix(raw, string(append(encoded, '.'))) {
		return nil, errAnotherHeader
	}
	signed := &Signed{header: h}
	if err := signed.decodeAfter(raw, len(encoded)); err != nil {
		return nil, err
	}
	return signed, nil
}

// decodeAfter reads what follows the header, which ends before the dot at first.
func (s *Signed) decodeAfter(raw string, first int) error {
	payload, signature, ok := strings.Cut(raw[first+1:], ".")
	if !ok {
		return fmt.Errorf("%w: not three parts", ErrToken)
	}
	s.input = raw[:first+1+len(payload)]
	var err error
	if s.payload, err = decodeBase64(payload); err != nil {
		return fmt.Errorf("%w: payload: %w", ErrToken, err)
	}
	if s.signature, err = decodeBase64(signature); err != nil { // nor is there another dot
		return fmt.Errorf("%w: signature: %w", ErrToken, err)
	}
	return nil
}

func readHeader(members Object) (Header, error) {
	for _, name := range refused {
		if _, present := members[name]; present {
			return Header{}, fmt.Errorf("%w: header member %q", ErrToken, name)
		}
	}
	algorithm, ok := members["alg"].(string)
	if !ok || !Algorithm(algorithm).Supported() {
		return Header{}, fmt.Errorf("%w: algorithm", ErrToken)
	}
	kid, ok := optionalString(members, "kid")
	if !ok || len(kid) > maxKeyIDBytes {
		return Header{}, fmt.Errorf("%w: kid", ErrToken)
	}
	typ, ok := optionalString(members, "typ")
	if !ok {
		return Header{}, fmt.Errorf("%w: typ", ErrToken)
	}
	return Header{Algorithm: Algorithm(algorithm), KeyID: kid, Type: typ}, nil
}

// optionalString returns a string member, or "" when there is none; ok is false when it has another type.
func optionalString(members Object, name string) (value string, ok bool) {
	member, present := members[name]
	if !present {
		return "", true
	}
	value, ok = member.(string)
	return value, ok
}

// Header returns the header, which nobody has authenticated yet. KeyID is an opaque string.
func (s *Signed) Header() Header { return s.header }

// Unverified returns all header members that Parse read and the payload without any check of the signature. It is for
// showing a token to a person, never for a decision.
func (s *Signed) Unverified() (header Object, payload []byte) { return s.members, s.payload }

// Verify returns the payload if k signed it. The token's algorithm must be the key's own (RFC 8725, Section 3.1), and
// the signature the only one that can be made of the signer's: an s of ES256 above n/2 is refused. The error wraps
// ErrSignature, ErrSignatureForm or ErrKey.
func (s *Signed) Verify(k PublicKey) ([]byte, error) {
	payload, err := s.VerifyAnyForm(k)
	if err == nil && k.Algorithm == ES256 && highS(s.signature) {
		return nil, ErrSignatureForm
	}
	return payload, err
}

// VerifyAnyForm is Verify for tokens of signers that write either s.
func (s *Signed) VerifyAnyForm(k PublicKey) ([]byte, error) {
	if s.header.Algorithm != k.Algorithm {
		return nil, fmt.Errorf("%w: algorithm is not the key's", ErrSignature)
	}
	if err := k.Check(); err != nil {
		return nil, err
	}
	if !verify(k, []byte(s.input), s.signature) {
		return nil, ErrSignature
	}
	return s.payload, nil
}

// verify expects a checked key.
func verify(k PublicKey, input, signature []byte) bool {
	digest := sha256.Sum256(input)
	switch key := k.Key.(type) {
	case *ecdsa.PublicKey:
		if len(signature) != 64 { // R || S, never DER (RFC 7518, Section 3.4)
			return false
		}
		return ecdsa.VerifyASN1(key, digest[:], derSignature(signature))
	case ed25519.PublicKey:
		return ed25519.Verify(key, input, signature)
	case *rsa.PublicKey:
		if k.Algorithm == PS256 {
			return rsa.VerifyPSS(key, crypto.SHA256, digest[:], signature, pssOptions) == nil
		}
		return rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], signature) == nil
	case VerifyingKey:
		return key.Verify(input, signature)
	}
	return false
}
