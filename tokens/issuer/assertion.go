// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/internal/jose"
)

// PrivateKeyJWT is the value of Client.AuthMethod for clients that sign an assertion with a key that they registered
// (RFC 7523, Section 2.2). Their tokens are bound to the certificate of the connection as everybody's are (RFC 8705,
// Section 3): without one they are refused. Any certificate binds that is valid now, of an acceptable key that is not
// blocked; only one of our own CA must be in the inventory as this client's.
const PrivateKeyJWT = "private_key_jwt"

// assertionType is the only client_assertion_type that is accepted (RFC 7523, Section 2.2).
const assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

// Bounds of an assertion, besides those of package jose.
const (
	maxAssertionBytes = 4 << 10
	maxAssertionID    = 256 // bytes of a jti
	// maxAssertionLife is how far ahead its exp may lie, for as long is its jti remembered. The clocks of client and
	// server may differ by maxAssertionAhead.
	maxAssertionLife  = 10 * time.Minute
	maxAssertionAhead = time.Minute
	maxAssertionKeys  = 20 // that a client may register by value
)

// ErrUsed is what Assertions answers for an assertion that was used before.
var ErrUsed = errors.New("the assertion was used before")

// Assertions remembers which assertions were used, for all servers that share an issuer identifier.
type Assertions interface {
	// Use notes that the assertion with this digest was used, and that nobody needs to know after until. It returns nil
	// once that is committed where every server will find it, and ErrUsed when it was noted before. Any other error, also
	// when it is not known whether it was committed, refuses the request with temporarily_unavailable. Of concurrent calls
	// with one digest, at most one gets nil.
	Use(ctx context.Context, digest [sha256.Size]byte, until time.Time) error
}

// assertionAlgorithms are those that an assertion may be signed with, all that FAPI 2.0, Section 5.4, has. RS256 is none.
func assertionAlgorithms() []string { return []string{tokens.ES256, tokens.PS256, tokens.EdDSA} }

// ParseAssertionKeys reads the JSON Web Key Set that a client registers for PrivateKeyJWT, 1 to 20 keys. Unlike a set that
// is fetched, it must have nothing that is of no use: every entry is a public key for ES256, PS256 or EdDSA with an id of
// its own. The error says what is wrong and holds nothing of a key.
func ParseAssertionKeys(data []byte) (tokens.StaticKeys, error) {
	set, _ := jose.DecodeObject(data) // no set has no keys
	entries, _ := set["keys"].([]any)
	if len(entries) == 0 || len(entries) > maxAssertionKeys {
		return nil, fmt.Errorf("a JSON Web Key Set of 1 to %d keys is needed", maxAssertionKeys)
	}
	for i, entry := range entries {
		if members, _ := entry.(jose.Object); jose.HasPrivatePart(members) {
			return nil, fmt.Errorf("key %d has its private part: make another, for this one is no longer yours alone", i)
		} else if id, _ := members["kid"].(string); id == "" {
			return nil, fmt.Errorf("key %d has no kid, by which each assertion names the key that signed it", i)
		}
	}
	keys, _ := PublishedAssertionKeys(data) // what cannot be read is left out
	if len(keys) != len(entries) {
		return nil, errors.New("every key must be one for ES256, PS256 or EdDSA, with a kid of its own")
	}
	return keys, nil
}

// PublishedAssertionKeys reads the JSON Web Key Set at a client's jwks_uri. Keys that cannot sign an assertion are left
// out; the result may be empty.
func PublishedAssertionKeys(data []byte) (tokens.StaticKeys, error) {
	published, err := jose.ParseKeySet(data)
	if err != nil {
		return nil, err
	}
	var keys tokens.StaticKeys
	for _, k := range published {
		if slices.Contains(assertionAlgorithms(), string(k.Algorithm)) {
			keys = append(keys, tokens.PublicKey{ID: k.ID, Algorithm: string(k.Algorithm), Key: k.Key})
		}
	}
	return keys, nil
}

// assertion is one that authenticated a client, and was not used before as far as this request knows.
type assertion struct {
	digest [sha256.Size]byte
	until  time.Time // when nobody needs to remember it any more
	// unlisted says that the certificate beside it is not in the inventory.
	unlisted bool
}

// judgeAssertion returns nil when raw is an assertion by which the client authenticates here and now (RFC 7523,
// Section 3). What is refused has been stored nowhere.
func (s *Server) judgeAssertion(ctx context.Context, c *Client, raw string, now time.Time) (*assertion, *tokens.Error) {
	signed, refused := readAssertion(raw)
	if refused != nil {
		return nil, refused
	}
	header := signed.Header()
	if !assertionTyp(header.Type) {
		return nil, badAssertion("assertion_type", nil)
	}
	if !slices.Contains(assertionAlgorithms(), string(header.Algorithm)) {
		return nil, badAssertion("assertion_algorithm", nil)
	}
	key, refused := s.assertionKey(ctx, c, header.KeyID)
	if refused != nil {
		return nil, refused
	}
	// Libraries write either form of an ES256 signature; what is used once is known by its jti.
	data, err := signed.VerifyAnyForm(jose.PublicKey{ID: key.ID, Algorithm: jose.Algorithm(key.Algorithm), Key: key.Key})
	if err != nil {
		return nil, badAssertion("assertion_signature", err)
	}
	claims, err := jose.DecodeObject(data)
	if err != nil {
		return nil, badAssertion("assertion_claims", err)
	}
	return s.judgeClaims(c, claims, now)
}

// readAssertion reads the header of an assertion and verifies nothing.
func readAssertion(raw string) (*jose.Signed, *tokens.Error) {
	if len(raw) > maxAssertionBytes {
		return nil, badAssertion("assertion_too_large", nil)
	}
	signed, err := jose.Parse(raw)
	if err != nil {
		return nil, badAssertion("assertion_malformed", err)
	}
	return signed, nil
}

// assertionKey finds the key of the client that an assertion names. Nothing of a key that was reported compromised is
// believed.
func (s *Server) assertionKey(ctx context.Context, c *Client, id string) (tokens.PublicKey, *tokens.Error) {
	if id == "" {
		return tokens.PublicKey{}, badAssertion("assertion_key_missing", nil)
	}
	if c.Keys == nil {
		return tokens.PublicKey{}, badAssertion("assertion_key_unknown", nil)
	}
	key, err := c.Keys.Key(ctx, id)
	if errors.Is(err, tokens.ErrUnknownKey) {
		return tokens.PublicKey{}, badAssertion("assertion_key_unknown", err)
	}
	if err != nil {
		return tokens.PublicKey{}, unavailable("assertion_keys_unavailable", err)
	}
	if s.keyBlocked == nil {
		return key, nil
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Key)
	if err != nil {
		return tokens.PublicKey{}, badAssertion("assertion_key_unknown", err)
	}
	blocked, err := s.keyBlocked(ctx, sha256.Sum256(spki))
	if err != nil {
		return tokens.PublicKey{}, unavailable("registry_failed", err)
	}
	if blocked {
		return tokens.PublicKey{}, badAssertion("assertion_key_blocked", nil)
	}
	return key, nil
}

// assertionTyp judges "typ": none, JWT, or the one that says what it is for. Every other kind of JWT that the key may have
// signed is none of ours (RFC 8725, Section 3.11).
func assertionTyp(typ string) bool {
	typ = strings.ToLower(typ)
	switch strings.TrimPrefix(typ, "application/") {
	case "jwt", "client-authentication+jwt":
		return true
	}
	return typ == ""
}

// judgeClaims holds an assertion whose signature is good to RFC 7523, Section 3, and FAPI 2.0, Section 5.3.2.1.
func (s *Server) judgeClaims(c *Client, claims jose.Object, now time.Time) (*assertion, *tokens.Error) {
	id, _ := claims["jti"].(string)
	expires, _ := assertionDate(claims, "exp") // one that cannot be read is none
	issued, ok := assertionDate(claims, "iat")
	notBefore, ok2 := assertionDate(claims, "nbf")
	latest := now.Add(maxAssertionAhead)
	switch {
	case claims["iss"] != c.ID:
		return nil, badAssertion("assertion_issuer", nil)
	case claims["sub"] != c.ID:
		return nil, badAssertion("assertion_subject", nil)
	case claims["aud"] != s.issuer: // a string, never a list: else another server could use what it was sent
		return nil, badAssertion("assertion_audience", nil)
	case id == "" || len(id) > maxAssertionID:
		return nil, badAssertion("assertion_id", nil)
	case !ok || !ok2 || expires.IsZero():
		return nil, badAssertion("assertion_dates", nil)
	case !now.Before(expires):
		return nil, badAssertion("assertion_expired", nil)
	case expires.After(latest.Add(maxAssertionLife)):
		return nil, badAssertion("assertion_lives_too_long", nil)
	case issued.After(latest) || notBefore.After(latest):
		return nil, badAssertion("assertion_not_yet_valid", nil)
	}
	// Another server's clock may be behind, where the assertion is still good.
	return &assertion{digest: assertionDigest(c.ID, id), until: expires.Add(maxAssertionAhead)}, nil
}

// assertionDigest names what may be used once: the jti of this client.
func assertionDigest(clientID, id string) [sha256.Size]byte {
	text := append(binary.AppendUvarint(nil, uint64(len(clientID))), clientID...)
	return sha256.Sum256(append(text, id...))
}

// assertionDate reads a NumericDate of whole seconds; the zero time when there is none. As in access tokens, at most 12
// digits leave no room for numbers that overflow or round.
func assertionDate(claims jose.Object, name string) (date time.Time, ok bool) {
	member, present := claims[name]
	if !present {
		return time.Time{}, true
	}
	number, _ := member.(json.Number)
	if len(number) > 12 || strings.Trim(string(number), "0123456789") != "" {
		return time.Time{}, false
	}
	seconds, err := strconv.ParseInt(string(number), 10, 64)
	if err != nil {
		return time.Time{}, false
	}
	return time.Unix(seconds, 0), true
}

// use notes that the assertion was used. A nil assertion, of a client that needs none, costs nothing.
func (s *Server) use(ctx context.Context, a *assertion) *tokens.Error {
	if a == nil {
		return nil
	}
	err := s.assertions.Use(ctx, a.digest, a.until)
	switch {
	case errors.Is(err, ErrUsed):
		return badAssertion("assertion_used", nil)
	case err != nil:
		return unavailable("assertions_unavailable", err)
	}
	return nil
}

// badAssertion tells no more than that the assertion is not accepted: whose it is and what was wrong goes to the log.
func badAssertion(reason string, err error) *tokens.Error {
	return &tokens.Error{Code: tokens.CodeInvalidClient, Reason: reason, Description: assertedDescription, Err: err}
}

// assertedDescription is the one answer to whoever sent an assertion and is not authenticated.
const assertedDescription = "the assertion and the certificate of this connection do not authenticate the client"

// settleMethod decides what the form's client_assertion is: an assertion, where this server takes any and it is of the one
// type, and otherwise another method like a secret.
func (s *Server) settleMethod(f *form) *tokens.Error {
	if f.assertion == "" && f.assertionType == "" {
		return nil
	}
	if s.assertions == nil {
		f.secret, f.assertion = true, ""
		return nil
	}
	switch {
	case f.assertion == "" || f.assertionType == "":
		return refusal(tokens.CodeInvalidRequest, "assertion_incomplete",
			"client_assertion and client_assertion_type belong together")
	case f.assertionType != assertionType:
		return refusal(tokens.CodeInvalidClient, "assertion_type", "the client_assertion_type is not supported")
	}
	if f.clientID != "" {
		return nil
	}
	var refused *tokens.Error
	f.clientID, refused = assertedClient(f.assertion) // RFC 7521, Section 4.2: the assertion names the client
	return refused
}

// assertedClient is whom an assertion says that it is of, "" when it names nobody; one that cannot be read is refused as
// it is beside a client_id. Nothing is believed of it: it only stands where client_id was left out.
func assertedClient(raw string) (string, *tokens.Error) {
	signed, refused := readAssertion(raw)
	if refused != nil {
		return "", refused
	}
	_, payload := signed.Unverified()
	claims, _ := jose.DecodeObject(payload) // what is no object has no members
	subject, _ := claims["sub"].(string)
	return strings.Clone(subject), nil
}

// judgeHolder judges the certificate that the tokens of a PrivateKeyJWT client will be bound to. Its chain and its names
// say nothing about the client, but for one that is of our own CA: that counts for whom it was issued to alone.
func (c *Client) judgeHolder(peer *mtls.Peer, entry *Certificate, now time.Time) *tokens.Error {
	if mtls.CheckPublicKey(peer.Certificate().PublicKey) != nil {
		return unauthenticated(peer, "key_unacceptable")
	}
	if entry == nil { // nobody is ours where there are no anchors
		if _, err := peer.ChainTo(c.Anchors, now); err == nil {
			return unauthenticated(peer, "certificate_unknown")
		}
	}
	return nil
}
