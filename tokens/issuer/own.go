// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/internal/jose"
)

// accessToken is the "typ" of our tokens (RFC 9068, Section 2.1). It tells them from everything else that our keys sign.
const accessToken = "at+jwt"

// header is that of our tokens.
func header(algorithm, keyID string) jose.Header {
	return jose.Header{Algorithm: jose.Algorithm(algorithm), KeyID: keyID, Type: accessToken}
}

// ownToken is a token whose signature is this server's. Its claims are shared and never modified.
type ownToken struct {
	claims    tokens.Claims
	notBefore time.Time // 1970 without "nbf"
	key       tokens.PublicKey
	kept      atomic.Bool // found good, and so remembered by its bytes
}

// ownToken reads a token that this server issued, with a key that it still publishes. It returns nil for anything else,
// whatever it may be. Nothing but key and signature has been judged. Published may give what it was once: where that is not
// good enough, Signing must have answered without an error before.
func (s *Server) ownToken(raw string) *ownToken {
	published := s.keys.Published()
	if t, ok := s.introspected.Get(raw); ok && slices.ContainsFunc(published, t.signedBy) {
		return t
	}
	for _, key := range published {
		signed, err := jose.ParseWritten(raw, header(key.Algorithm, key.ID))
		if err != nil { // for one of another key, by its header
			continue
		}
		payload, err := signed.Verify(jose.PublicKey{ID: key.ID, Algorithm: jose.Algorithm(key.Algorithm), Key: key.Key})
		if err != nil {
			return nil
		}
		return s.readOwn(payload, key)
	}
	return nil
}

// keep has the token remembered by its bytes, so that its signature is not verified again.
func (s *Server) keep(raw string, t *ownToken) {
	if t.kept.CompareAndSwap(false, true) {
		s.introspected.Put(raw, t, t.bytes())
	}
}

// signedBy reports whether k is the key that signed the token.
func (t *ownToken) signedBy(k tokens.PublicKey) bool {
	key, ok := t.key.Key.(interface{ Equal(crypto.PublicKey) bool })
	return k.ID == t.key.ID && k.Algorithm == t.key.Algorithm && ok && key.Equal(k.Key)
}

// readOwn reads the claims that appendJSON wrote. It returns nil for what this server would not have written.
func (s *Server) readOwn(payload []byte, key tokens.PublicKey) *ownToken {
	var c struct {
		Issuer    string   `json:"iss"`
		Subject   string   `json:"sub"`
		ClientID  string   `json:"client_id"`
		Audience  audience `json:"aud"`
		ID        string   `json:"jti"`
		Scope     string   `json:"scope"`
		IssuedAt  int64    `json:"iat"`
		NotBefore int64    `json:"nbf"`
		Expires   int64    `json:"exp"`
		Binding   struct {
			Thumbprint string `json:"x5t#S256"`
		} `json:"cnf"`
	}
	if err := json.Unmarshal(payload, &c); err != nil || c.Issuer != s.issuer {
		return nil
	}
	bound, err := mtls.ParseThumbprint(c.Binding.Thumbprint)
	if err != nil {
		return nil
	}
	scope, err := tokens.ParseScope(c.Scope)
	if err != nil {
		return nil
	}
	return &ownToken{key: key, notBefore: time.Unix(c.NotBefore, 0), claims: tokens.Claims{
		Issuer: c.Issuer, Subject: c.Subject, ClientID: c.ClientID, ID: c.ID, Audience: c.Audience, Scope: scope,
		IssuedAt: time.Unix(c.IssuedAt, 0), Expires: time.Unix(c.Expires, 0), Thumbprint: bound,
	}}
}

// audience is "aud": a string or an array of strings (RFC 7519, Section 4.1.3).
type audience []string

// UnmarshalJSON implements json.Unmarshaler.
func (a *audience) UnmarshalJSON(data []byte) error {
	if data[0] == '"' {
		data = slices.Concat([]byte{'['}, data, []byte{']'})
	}
	return json.Unmarshal(data, (*[]string)(a))
}

// standing says why a token of ours is not good any more, wherever it may be shown; "" when it is. It judges everything
// anew at each call, as authenticate does: times, what was denied, the client, and the certificate that the token is bound
// to as far as its thumbprint tells. An error says that this cannot be known now.
func (s *Server) standing(ctx context.Context, t *ownToken, now time.Time) (string, *tokens.Error) {
	if s.denials != nil {
		denied, err := s.denials.Denied(ctx, &t.claims, t.key.ID)
		if err != nil {
			return "", unavailable("denials_failed", err)
		}
		if denied {
			return "denied", nil
		}
	}
	if reason := t.outsideLife(now); reason != "" {
		return reason, nil
	}
	client, err := s.registry.Client(ctx, t.claims.ClientID)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return "", unavailable("registry_failed", err)
	}
	if err != nil || client == nil || client.ID != t.claims.ClientID {
		return "unknown_client", nil
	}
	return s.standingOf(ctx, client, t.claims.Thumbprint, now)
}

// outsideLife is exact: the clock is ours. One that was set back, or that of another replica, may make a token that was
// issued lately seem to come from the future.
func (t *ownToken) outsideLife(now time.Time) string {
	const ahead = time.Minute
	switch {
	case !now.Before(t.claims.Expires):
		return "expired"
	case now.Before(t.notBefore):
		return "not_yet_valid"
	case t.claims.IssuedAt.After(now.Add(ahead)):
		return "issued_in_future"
	}
	return ""
}

// standingOf says why the certificate with this thumbprint is not the client's any more, for all that can be said without
// the certificate: of one that a foreign authority vouches for, that is nothing.
func (s *Server) standingOf(ctx context.Context, c *Client, t mtls.Thumbprint, now time.Time) (string, *tokens.Error) {
	switch {
	case c.Disabled:
		return "client_disabled", nil
	case c.AuthMethod == SelfSignedTLSClientAuth:
		return s.standingOfRegistered(ctx, c, t)
	case c.AuthMethod != TLSClientAuth && c.AuthMethod != PrivateKeyJWT:
		return "method_mismatch", nil
	}
	var entry *Certificate
	if c.Inventory || c.AuthMethod == PrivateKeyJWT { // as in authenticate
		var err error
		if entry, err = s.registry.Certificate(ctx, t); err != nil && !errors.Is(err, ErrNotFound) {
			return "", unavailable("registry_failed", err)
		}
	}
	return c.judgeEntry(entry, now), nil
}

func (s *Server) standingOfRegistered(ctx context.Context, c *Client, t mtls.Thumbprint) (string, *tokens.Error) {
	if c.Certificates == nil {
		return "certificate_not_registered", nil
	}
	registered, err := c.Certificates.Contains(ctx, t)
	if err != nil {
		return "", unavailable("certificates_unavailable", err)
	}
	if !registered {
		return "certificate_not_registered", nil
	}
	keys, ok := c.Certificates.(interface {
		KeyHash(t mtls.Thumbprint) (key [sha256.Size]byte, known bool)
	})
	if !ok || s.keyBlocked == nil {
		return "", nil
	}
	key, known := keys.KeyHash(t)
	if !known { // it was taken back just now
		return "certificate_not_registered", nil
	}
	blocked, err := s.keyBlocked(ctx, key)
	if err != nil {
		return "", unavailable("registry_failed", err)
	}
	if blocked {
		return "key_blocked", nil
	}
	return "", nil
}

// bytes is about how much memory t takes.
func (t *ownToken) bytes() int {
	const (
		ownBytes  = 320 // of the struct
		textBytes = 16  // of a string beside what it says
	)
	c := &t.claims
	n := ownBytes + len(c.Issuer) + len(c.Subject) + len(c.ClientID) + len(c.ID)
	for _, list := range [][]string{c.Audience, c.Scope} {
		for _, s := range list {
			n += textBytes + len(s)
		}
	}
	return n
}
