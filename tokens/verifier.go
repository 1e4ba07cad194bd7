// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package tokens

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens/internal/jose"
)

// Bounds on clocks. An "iat" more than maxAhead in the future is refused whatever the leeway (FAPI 2.0 Security
// Profile, Section 5.3.2.1).
const (
	defaultLeeway = 10 * time.Second
	maxLeeway     = 60 * time.Second
	maxAhead      = 60 * time.Second
)

// defaultCacheBytes is enough for some ten thousand tokens.
const defaultCacheBytes = 8 << 20

// VerifierConfig says which tokens a resource server accepts.
type VerifierConfig struct {
	Issuer   string // exactly the "iss" of acceptable tokens; required, an https URL
	Audience string // exactly one of the "aud" of acceptable tokens, the identifier of this server; required
	Keys     Keys   // the signature keys of this issuer and of no other; required

	Algorithms []string         // acceptable algorithms; nil means ES256, PS256 and EdDSA
	Leeway     time.Duration    // clock difference allowed in exp, nbf; 0 means 10 s, at most 60 s
	Now        func() time.Time // nil means time.Now

	// AnySignatureForm accepts both signatures of ES256 that verify, (r, s) and (r, n - s). Certbound writes the one with
	// the lower s and a Verifier refuses the other, so that nobody can make a second token of one. Set it for an issuer
	// whose library writes either, as most do; then nothing may be keyed by a token's bytes.
	AnySignatureForm bool

	// Denied is asked last about each token that is good so far, also about one that was accepted before: a token that
	// was revoked, for example by a DenyList. keyID is the key that signed it. An error means that it cannot be known now:
	// the token is refused as temporarily_unavailable. It is called concurrently and must not change the claims. Nil
	// denies none: a token is then good until it expires.
	Denied func(ctx context.Context, c *Claims, keyID string) (bool, error)

	// CacheBytes bounds the memory for tokens that were accepted, in bytes: 0 means 8 MiB, negative none. A token that
	// comes again byte for byte is spared its signature and nothing else: key, issuer, audience, times, certificate and
	// binding are judged anew. What was refused is not remembered.
	CacheBytes int
}

// Verifier verifies the access tokens of one issuer for one audience. What it accepts never changes; it is safe for
// concurrent use.
type Verifier struct {
	issuer     string
	audience   string
	keys       Keys
	algorithms []string
	leeway     time.Duration
	now        func() time.Time
	anyForm    bool
	denied     func(context.Context, *Claims, string) (bool, error)
	accepted   *jose.Cache[*verified]
}

// verified is a token whose signature verified. It is shared and never modified once others see it.
type verified struct {
	payload // with Thumbprint and without cnf
	key     PublicKey
	unbound error // why the Thumbprint is none
}

// NewVerifier returns a Verifier. The error says which field cannot be used.
func NewVerifier(c VerifierConfig) (*Verifier, error) {
	if err := checkIssuer(c.Issuer); err != nil {
		return nil, err
	}
	if c.Audience == "" {
		return nil, errors.New("tokens: no audience")
	}
	if c.Keys == nil {
		return nil, errors.New("tokens: no keys")
	}
	if c.Leeway < 0 || c.Leeway > maxLeeway {
		return nil, fmt.Errorf("tokens: leeway %v is not within 0 and %v", c.Leeway, maxLeeway)
	}
	algorithms, err := checkAlgorithms(c.Algorithms)
	if err != nil {
		return nil, err
	}
	v := &Verifier{
		issuer:     c.Issuer,
		audience:   c.Audience,
		keys:       c.Keys,
		algorithms: algorithms,
		leeway:     c.Leeway,
		now:        c.Now,
		anyForm:    c.AnySignatureForm,
		denied:     c.Denied,
	}
	if v.leeway == 0 {
		v.leeway = defaultLeeway
	}
	if v.now == nil {
		v.now = time.Now
	}
	if c.CacheBytes == 0 {
		c.CacheBytes = defaultCacheBytes
	}
	v.accepted = jose.NewCache[*verified](c.CacheBytes)
	return v, nil
}

func checkIssuer(issuer string) error {
	u, err := url.Parse(issuer)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("tokens: issuer %q is not an https URL without query and fragment", issuer)
	}
	return nil
}

// checkAlgorithms returns a copy of the list, or what goes without one.
func checkAlgorithms(list []string) ([]string, error) {
	for _, a := range list {
		if !jose.Algorithm(a).Supported() {
			return nil, fmt.Errorf("tokens: unsupported algorithm %q", a)
		}
	}
	if len(list) == 0 {
		return []string{ES256, PS256, EdDSA}, nil
	}
	return slices.Clone(list), nil
}

// Issuer returns the issuer whose tokens are accepted.
func (v *Verifier) Issuer() string { return v.issuer }

// Audience returns the identifier of the resource server.
func (v *Verifier) Audience() string { return v.audience }

// Verify returns the claims of a token that this issuer made for this audience, that is valid now, and that is
// bound to the certificate peer presented on the connection the token came on. Otherwise it returns no claims and
// an *Error: invalid_token, the same from outside whatever was wrong, or temporarily_unavailable when the keys
// cannot be had. A nil peer is refused. The dates of the certificate are judged, its chain is not: possession of
// the bound key is what counts (RFC 8705, Section 6.2), and TLS has proved it.
//
// It blocks as long as Keys does, until ctx is done. A token that it accepted before is cheaper, see
// VerifierConfig.CacheBytes. Safe for concurrent use.
func (v *Verifier) Verify(ctx context.Context, raw string, peer *mtls.Peer) (*Claims, error) {
	c, _, err := v.VerifyKey(ctx, raw, peer)
	return c, err
}

// VerifyKey is Verify, and also returns the id of the key that signed the token, for whoever will ask again whether the
// token is denied: see DenyList.Denies.
func (v *Verifier) VerifyKey(ctx context.Context, raw string, peer *mtls.Peer) (c *Claims, keyID string, err error) {
	p, err := v.verify(ctx, raw, peer)
	if err != nil {
		return nil, "", err
	}
	return p.copied(), p.key.ID, nil
}

func (v *Verifier) verify(ctx context.Context, raw string, peer *mtls.Peer) (*verified, error) {
	if peer.Certificate() == nil { // before any work on what a stranger sent
		return nil, invalid("no_certificate", mtls.ErrNoCertificate)
	}
	p, known := v.known(ctx, raw)
	if !known {
		var err error
		if p, err = v.read(ctx, raw); err != nil {
			return nil, err
		}
	}
	if p.Issuer != v.issuer {
		return nil, invalid("wrong_issuer", nil)
	}
	if !slices.Contains(p.Audience, v.audience) {
		return nil, invalid("wrong_audience", nil)
	}
	now := v.now()
	if reason := v.outsideLife(&p.payload, now); reason != "" {
		return nil, invalid(reason, nil)
	}
	if err := peer.CheckValidity(now); err != nil {
		return nil, invalid("certificate_not_valid", err)
	}
	if p.unbound != nil {
		return nil, invalid("not_bound", p.unbound)
	}
	if !p.Thumbprint.Equal(peer.Thumbprint()) { // constant time
		return nil, invalid("thumbprint_mismatch", nil)
	}
	if err := v.notDenied(ctx, p); err != nil {
		return nil, err
	}
	if !known {
		v.accepted.Put(raw, p, p.bytes())
	}
	return p, nil
}

// notDenied refuses what was revoked, and everything while that cannot be known.
func (v *Verifier) notDenied(ctx context.Context, p *verified) error {
	if v.denied == nil {
		return nil
	}
	denied, err := v.denied(ctx, &p.Claims, p.key.ID)
	if err != nil {
		e := unavailable(err)
		e.Reason = "revocations_unavailable"
		return e
	}
	if denied {
		return invalid("denied", nil)
	}
	return nil
}

// known returns what was made of a token of these very bytes, if it was accepted before and the key that signed it is
// still the issuer's.
func (v *Verifier) known(ctx context.Context, raw string) (*verified, bool) {
	p, ok := v.accepted.Get(raw)
	if !ok {
		return nil, false
	}
	// Without the key it is read anew, and refused as one that never came. Whether another key under the same id signed it
	// shows when the signature is verified.
	key, err := v.keys.Key(ctx, p.key.ID)
	return p, err == nil && sameKey(&key, &p.key)
}

// read reads a token and verifies its signature. Nothing else of it has been judged.
func (v *Verifier) read(ctx context.Context, raw string) (*verified, error) {
	token, err := jose.Parse(raw) // judges the size first
	if err != nil {
		return nil, invalid("malformed", err)
	}
	header := token.Header()
	if !acceptableType(header.Type) {
		return nil, invalid("wrong_type", nil)
	}
	if !slices.Contains(v.algorithms, string(header.Algorithm)) {
		return nil, invalid("algorithm_not_allowed", nil)
	}
	key, err := v.keys.Key(ctx, header.KeyID)
	if errors.Is(err, ErrUnknownKey) {
		return nil, invalid("unknown_key", err)
	}
	if err != nil {
		return nil, unavailable(err)
	}
	data, err := v.open(token, asJOSE(&key))
	if errors.Is(err, jose.ErrSignatureForm) {
		return nil, invalid("signature_form", err)
	}
	if err != nil {
		return nil, invalid("bad_signature", err)
	}
	p, err := decodeClaims(data)
	if err != nil {
		return nil, invalid("malformed_claims", err)
	}
	read := &verified{payload: *p, key: key}
	read.Thumbprint, read.unbound = binding(p.cnf)
	read.cnf = nil
	return read, nil
}

// sameKey reports whether now, which anybody may have made, verifies what then did. A key of a kind that cannot tell is
// like no other.
func sameKey(now, then *PublicKey) bool {
	if now.Algorithm != then.Algorithm || asJOSE(now).Check() != nil {
		return false
	}
	x, _ := now.Key.(*ecdsa.PublicKey)
	y, _ := then.Key.(*ecdsa.PublicKey)
	if x != nil && x == y { // until the keys are fetched again
		return true
	}
	key, ok := then.Key.(interface{ Equal(crypto.PublicKey) bool })
	return ok && key.Equal(now.Key)
}

func asJOSE(k *PublicKey) jose.PublicKey {
	return jose.PublicKey{ID: k.ID, Algorithm: jose.Algorithm(k.Algorithm), Key: k.Key}
}

// copied returns the claims in memory of their own.
func (p *verified) copied() *Claims {
	c := p.Claims
	c.Audience, c.Scope = slices.Clone(c.Audience), slices.Clone(c.Scope)
	return &c
}

// bytes is about how much memory p takes.
func (p *verified) bytes() int {
	const (
		ownBytes  = 384 // of the struct
		textBytes = 16  // of a string beside what it says
	)
	n := ownBytes + len(p.Issuer) + len(p.Subject) + len(p.ClientID) + len(p.ID) + len(p.key.ID)
	for _, list := range [][]string{p.Audience, p.Scope} {
		for _, s := range list {
			n += textBytes + len(s)
		}
	}
	return n
}

// open returns the payload if k signed it, in the form that v asks for.
func (v *Verifier) open(token *jose.Signed, k jose.PublicKey) ([]byte, error) {
	if v.anyForm {
		return token.VerifyAnyForm(k)
	}
	return token.Verify(k)
}

// acceptableType judges "typ", a media type whose "application/" may be left out (RFC 9068, Section 4; RFC 7515,
// Section 4.1.9). Any other kind of JWT of the same issuer is not an access token (RFC 8725, Section 3.11).
func acceptableType(typ string) bool {
	return strings.EqualFold(typ, TokenType) || strings.EqualFold(typ, "application/"+TokenType)
}

// outsideLife returns the reason why the token is not valid at now, or "" (RFC 7519, Sections 4.1.4 to 4.1.6).
func (v *Verifier) outsideLife(p *payload, now time.Time) string {
	switch {
	case !now.Before(p.Expires.Add(v.leeway)):
		return "expired"
	case p.notBefore.After(now.Add(v.leeway)):
		return "not_yet_valid"
	case p.IssuedAt.After(now.Add(maxAhead)):
		return "issued_in_future"
	}
	return ""
}

// invalid is the one refusal of a token. Its description does not depend on the reason: whoever holds a stolen
// token must not learn whether it is genuine.
func invalid(reason string, err error) *Error {
	return &Error{
		Code:        CodeInvalidToken,
		Description: "the access token is not valid on this connection",
		Reason:      reason,
		Err:         err,
	}
}

func unavailable(err error) *Error {
	return &Error{
		Code:        CodeTemporarilyUnavailable,
		Description: "access tokens cannot be verified at present",
		Reason:      "keys_unavailable",
		Err:         err,
	}
}

// Unverified is what a token says of itself. Nobody has vouched for a word of it: it is for showing a token to the
// person who holds it, and has no methods that a decision could use. Numbers are json.Number.
type Unverified struct {
	Header map[string]any
	Claims map[string]any
}

// ParseUnverified takes a token apart without checking its signature. It is as strict about the form as
// Verifier.Verify. The error is an *Error.
func ParseUnverified(raw string) (*Unverified, error) {
	token, err := jose.Parse(raw)
	if err != nil {
		return nil, invalid("malformed", err)
	}
	header, payload := token.Unverified()
	claims, err := jose.DecodeObject(payload)
	if err != nil {
		return nil, invalid("malformed_claims", err)
	}
	return &Unverified{Header: header, Claims: claims}, nil
}
