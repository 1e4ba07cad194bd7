// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/internal/jose"
)

// Request asks for a token.
type Request struct {
	// GrantType is ClientCredentials.
	GrantType string
	// ClientID is whom the caller claims to be.
	ClientID string
	// Assertion is the client_assertion of RFC 7523, Section 2.2; empty when none was sent.
	Assertion string
	// Peer is the certificate of the connection; nil when none was presented.
	Peer *mtls.Peer
	// Scope holds the scope-tokens asked for; empty asks for all that the client has at the resource.
	Scope []string
	// Resources are the resource identifiers of RFC 8707, Section 2; empty asks for the only one that fits.
	Resources []string
	// Address and CorrelationID go into the record.
	Address       string
	CorrelationID string

	unlisted bool // as in proof
}

// tokenType is how a token is shown; the binding is in the token (RFC 8705, Section 3).
const tokenType = "Bearer"

// Response is a token as RFC 6749, Section 5.1, hands it out. Scope is shared and must not be modified.
type Response struct {
	AccessToken string
	TokenType   string // always "Bearer"
	ExpiresIn   time.Duration
	Scope       []string

	passage Passage // nil without a Gate, and when it was left
}

// Issue decides about one request and returns the token, or a *tokens.Error. Every decision is recorded before Issue
// returns; a grant that could not be recorded is refused. So is one that does not hold any more when its record has been
// written: a revocation that returned meanwhile is in force. The record of that refusal names the token that was dropped.
// With a Gate, the Response must be told by Done when its answer has been written; what enters while the Gate is closed is
// refused without a record. Issue blocks on the Registry, the Recorder, and a client's CertificateSet only.
func (s *Server) Issue(ctx context.Context, r Request) (*Response, error) {
	d := Decision{
		Time: s.now(), Event: EventToken, ClientID: r.ClientID, Thumbprint: r.Peer.Thumbprint(),
		Address: r.Address, CorrelationID: r.CorrelationID,
	}
	if refused := s.live(); refused != nil {
		return nil, s.refuseUnrecorded(ctx, d, refused)
	}
	if r.GrantType != ClientCredentials { // RFC 6749, Section 5.2
		return nil, s.refuse(ctx, d, refusal(tokens.CodeUnsupportedGrantType, "unsupported_grant_type",
			"only client_credentials is supported"))
	}
	client, notAfter, asserted, refused := s.authenticate(ctx, r.proof(), d.Time) // RFC 8705, Section 2.1
	if refused != nil {
		return nil, s.refuse(ctx, d, refused)
	}
	d.Authenticated, r.unlisted = true, asserted != nil && asserted.unlisted
	t, refused := narrow(client.Grants, r.Resources, r.Scope) // RFC 6749, Section 3.3; RFC 8707, Section 2
	if refused != nil {
		return nil, s.refuse(ctx, d, refused)
	}
	issued, expires, refused := s.lifespan(d.Time, notAfter, client.TokenLifetime, t.maxLifetime)
	if refused != nil {
		return nil, s.refuse(ctx, d, refused)
	}
	if refused := s.use(ctx, asserted); refused != nil { // RFC 7523, Section 3
		d.Authenticated = false
		return nil, s.refuse(ctx, d, refused)
	}
	c := claims{
		issuer: s.issuer, clientID: client.ID, audience: t.audience, scope: t.scope, id: newTokenID(),
		issued: issued.Unix(), expires: expires.Unix(), thumbprint: d.Thumbprint,
	}
	token, refused := s.sign(&c) // RFC 9068, Section 2; RFC 8705, Section 3.1
	if refused != nil {
		return nil, s.refuse(ctx, d, refused)
	}
	granted := d
	granted.Granted, granted.TokenID, granted.Expires = true, c.id, expires
	granted.Scope, granted.Audience = t.scope, t.audience
	if err := s.recorder.Record(ctx, granted); err != nil {
		// Not recorded again as a refusal: the journal has just failed, and the token is dropped here.
		return nil, s.refused(ctx, d, unavailable("record_failed", err))
	}
	now := s.now()
	passage, refused := s.pass(ctx, &r, client, &t, now)
	if refused != nil {
		d.TokenID = c.id
		return nil, s.refuse(ctx, d, refused)
	}
	s.events.TokenIssued(now.Sub(d.Time))
	return &Response{
		AccessToken: token, TokenType: tokenType, ExpiresIn: expires.Sub(issued), Scope: t.scope, passage: passage,
	}, nil
}

// proof is all that a request brings to be authenticated by.
type proof struct {
	id        string // whom the caller claims to be
	assertion string // empty when none was sent
	peer      *mtls.Peer
	// unlisted says that the inventory was found not to have the certificate, for a client that needs no entry. One that our
	// own CA issues meanwhile is another, so it is not looked for again while others wait for the Gate.
	unlisted bool
	// byToken says that a token of ours, verified as bound to the peer, stands for the assertion that it was issued for.
	byToken bool
}

func (r *Request) proof() proof {
	return proof{id: r.ClientID, assertion: r.Assertion, peer: r.Peer, unlisted: r.unlisted}
}

// Authenticate is the one place where a certificate becomes a client: Issue calls it, and so must every other endpoint
// that a client may use. Clients that sign assertions are refused here. It judges everything anew at each call, because a
// connection outlives decisions. The client is shared and must not be modified. Refusals are recorded under
// EventAuthenticate, with the caller's address and correlation id from ctx, and returned as *tokens.Error: invalid_client,
// the same for an unknown client and for a wrong certificate, or temporarily_unavailable when the Registry, or the client's
// CertificateSet, could not answer, or when the Gate is closed, which is not recorded.
func (s *Server) Authenticate(ctx context.Context, clientID string, peer *mtls.Peer) (*Client, error) {
	return s.authenticateOnce(ctx, proof{id: clientID, peer: peer})
}

// StillHolds is Authenticate for a client whose token, one of ours, was just verified as bound to the peer: it judges what
// may have changed since the token was issued, for clients of every method. The assertion of a client that signs some was
// judged when the token was issued.
func (s *Server) StillHolds(ctx context.Context, claims *tokens.Claims, peer *mtls.Peer) (*Client, error) {
	return s.authenticateOnce(ctx, proof{id: claims.ClientID, peer: peer, byToken: true})
}

// authenticateOnce is Authenticate for whatever the request brings; an assertion is used up by it.
func (s *Server) authenticateOnce(ctx context.Context, cr proof) (*Client, error) {
	now := s.now()
	if refused := s.live(); refused != nil {
		return nil, s.refuseUnrecorded(ctx, authenticating(ctx, cr.id, cr.peer, now), refused)
	}
	client, _, asserted, refused := s.authenticate(ctx, cr, now)
	if refused == nil {
		refused = s.use(ctx, asserted)
	}
	if refused != nil {
		return nil, s.refuse(ctx, authenticating(ctx, cr.id, cr.peer, now), refused)
	}
	return client, nil
}

func authenticating(ctx context.Context, clientID string, peer *mtls.Peer, now time.Time) Decision {
	return Decision{
		Time: now, Event: EventAuthenticate, ClientID: clientID, Thumbprint: peer.Thumbprint(),
		Address: Address(ctx), CorrelationID: CorrelationID(ctx),
	}
}

// Explain makes the decision of Authenticate and tells its machine-readable reason, "" when the certificate
// authenticates the client; nothing is recorded, counted or logged. The client is nil unless it authenticates; it is
// shared and must not be modified. A reason speaks of the named client, so it is for operators, and for the client
// once it has authenticated; to a stranger it would tell who is registered and how.
func (s *Server) Explain(ctx context.Context, clientID string, peer *mtls.Peer) (*Client, string) {
	client, _, _, refused := s.authenticate(ctx, proof{id: clientID, peer: peer}, s.now())
	if refused != nil {
		return nil, refused.Reason
	}
	return client, ""
}

// authenticate also returns when the certificate ends, by its own word or by the inventory's, and the assertion that was
// good, which nobody has used yet.
func (s *Server) authenticate(ctx context.Context, cr proof, now time.Time) (
	*Client, time.Time, *assertion, *tokens.Error,
) {
	client, notAfter, refused := s.authenticatePeer(ctx, &cr, now)
	var asserted *assertion
	if refused == nil && client.AuthMethod == PrivateKeyJWT && !cr.byToken {
		asserted, refused = s.judgeAssertion(ctx, client, cr.assertion, now)
	}
	if refused == nil {
		if asserted != nil {
			asserted.unlisted = cr.unlisted
		}
		return client, notAfter, asserted, nil
	}
	if cr.assertion != "" && cr.peer.Certificate() != nil && refused.Code == tokens.CodeInvalidClient {
		refused.Description = assertedDescription // the same for every client, and for none
	}
	return nil, time.Time{}, nil, refused
}

// authenticatePeer is all of authenticate but for the assertion.
func (s *Server) authenticatePeer(ctx context.Context, cr *proof, now time.Time) (*Client, time.Time, *tokens.Error) {
	id, peer := cr.id, cr.peer
	client, err := s.registry.Client(ctx, id)
	known := err == nil && client != nil && client.ID == id
	if !known && err != nil && !errors.Is(err, ErrNotFound) {
		return nil, time.Time{}, unavailable("registry_failed", err)
	}
	var entry *Certificate
	if peer.Certificate() != nil && (!known || client.Inventory || client.AuthMethod == PrivateKeyJWT && !cr.unlisted) {
		// An unknown client costs this look-up too, so that it takes as long as a known one.
		entry, err = s.registry.Certificate(ctx, peer.Thumbprint())
		if err != nil && !errors.Is(err, ErrNotFound) {
			return nil, time.Time{}, unavailable("registry_failed", err)
		}
	}
	if !known {
		return nil, time.Time{}, unauthenticated(peer, "unknown_client")
	}
	cr.unlisted = entry == nil
	if (client.AuthMethod == PrivateKeyJWT) != (cr.assertion != "") && !cr.byToken { // RFC 6749, Section 2.3
		return nil, time.Time{}, unauthenticated(peer, "method_mismatch")
	}
	if refused := client.judge(ctx, peer, entry, now); refused != nil {
		return nil, time.Time{}, refused
	}
	if s.keyBlocked != nil {
		blocked, err := s.keyBlocked(ctx, sha256.Sum256(peer.Certificate().RawSubjectPublicKeyInfo))
		if err != nil {
			return nil, time.Time{}, unavailable("registry_failed", err)
		}
		if blocked {
			return nil, time.Time{}, unauthenticated(peer, "key_blocked")
		}
	}
	notAfter := peer.Certificate().NotAfter
	if entry != nil && !entry.NotAfter.IsZero() && entry.NotAfter.Before(notAfter) {
		notAfter = entry.NotAfter
	}
	return client, notAfter, nil
}

// judge returns nil when the peer is this client, and otherwise why not. entry is nil when the inventory does not have
// the certificate.
func (c *Client) judge(ctx context.Context, peer *mtls.Peer, entry *Certificate, now time.Time) *tokens.Error {
	switch {
	case c.Disabled:
		return unauthenticated(peer, "client_disabled")
	case c.AuthMethod != TLSClientAuth && c.AuthMethod != SelfSignedTLSClientAuth && c.AuthMethod != PrivateKeyJWT:
		return unauthenticated(peer, "method_mismatch")
	case peer.Certificate() == nil:
		return unauthenticated(peer, "no_certificate")
	}
	if err := peer.CheckValidity(now); err != nil {
		if errors.Is(err, mtls.ErrNotYetValid) {
			return unauthenticated(peer, "certificate_not_yet_valid")
		}
		return unauthenticated(peer, "certificate_expired")
	}
	if reason := c.judgeEntry(entry, now); reason != "" {
		return unauthenticated(peer, reason)
	}
	switch c.AuthMethod {
	case SelfSignedTLSClientAuth:
		return c.judgeRegistered(ctx, peer)
	case PrivateKeyJWT:
		return c.judgeHolder(peer, entry, now)
	}
	return c.judgeVouched(peer, now)
}

// judgeRegistered demands the very certificate that was registered; its chain has no say (RFC 8705, Section 2.2).
func (c *Client) judgeRegistered(ctx context.Context, peer *mtls.Peer) *tokens.Error {
	if c.Certificates == nil {
		return unauthenticated(peer, "certificate_not_registered")
	}
	// A connection is held to this already, but a peer need not come from one.
	if mtls.CheckPublicKey(peer.Certificate().PublicKey) != nil {
		return unauthenticated(peer, "key_unacceptable")
	}
	registered, err := c.Certificates.Contains(ctx, peer.Thumbprint())
	if err != nil {
		return unavailable("certificates_unavailable", err)
	}
	if !registered {
		return unauthenticated(peer, "certificate_not_registered")
	}
	return nil
}

// judgeVouched demands a chain to the client's own authorities, of which nothing is revoked, and the name that was
// registered (RFC 8705, Section 2.1).
func (c *Client) judgeVouched(peer *mtls.Peer, now time.Time) *tokens.Error {
	if c.Anchors == nil {
		return unauthenticated(peer, "certificate_untrusted")
	}
	chain, err := peer.ChainTo(c.Anchors, now)
	if err != nil {
		return because(unauthenticated(peer, "certificate_untrusted"), err)
	}
	if refused := c.judgeRevocation(peer, chain, now); refused != nil {
		return refused
	}
	if !peer.Matches(c.Subject) { // the zero value matches nothing
		return unauthenticated(peer, "subject_mismatch")
	}
	return nil
}

// judgeRevocation refuses what is revoked, and also what cannot be known not to be (RFC 5280, Section 6.3).
func (c *Client) judgeRevocation(peer *mtls.Peer, chain []*x509.Certificate, now time.Time) *tokens.Error {
	if c.Revocation == nil {
		return nil
	}
	err := c.Revocation.Check(chain, now)
	if err == nil {
		return nil
	}
	reason := "revocation_unknown"
	if errors.Is(err, ErrRevoked) {
		reason = "certificate_revoked"
	}
	return because(unauthenticated(peer, reason), err)
}

// judgeEntry holds the certificate to the inventory: clients of our own CA, and others that show a certificate of it.
func (c *Client) judgeEntry(entry *Certificate, now time.Time) string {
	switch {
	case !c.Inventory && entry == nil: // it is looked for where it may matter
		return ""
	case entry == nil:
		return "certificate_unknown"
	case entry.ClientID != c.ID:
		return "certificate_of_another_client"
	case entry.Generation != c.Generation:
		return "certificate_of_another_generation"
	case entry.Revoked:
		return "certificate_revoked"
	case !entry.NotAfter.IsZero() && now.After(entry.NotAfter):
		return "certificate_expired"
	}
	return ""
}

// lifespan returns the whole seconds between which a token lives: never beyond its certificate, nor beyond any bound.
func (s *Server) lifespan(now, notAfter time.Time, wanted, bound time.Duration) (
	issued, expires time.Time, refused *tokens.Error,
) {
	if notAfter.Sub(now) < time.Second {
		return issued, expires, refusal(tokens.CodeInvalidClient, "certificate_expiring", "the certificate is about to expire")
	}
	life := s.lifetime
	if wanted > 0 {
		life = wanted
	}
	life = min(life, s.maxLifetime)
	if bound > 0 {
		life = min(life, bound)
	}
	issued = now.Truncate(time.Second)
	expires = issued.Add(life)
	if notAfter.Before(expires) {
		expires = notAfter
	}
	expires = expires.Truncate(time.Second)
	if !expires.After(issued) {
		return issued, expires, &tokens.Error{
			Code: tokens.CodeServerError, Reason: "lifetime_below_one_second", Description: failedDescription,
		}
	}
	return issued, expires, nil
}

// sign writes the token of RFC 9068, Section 2.
func (s *Server) sign(c *claims) (string, *tokens.Error) {
	key, err := s.keys.Signing()
	if err != nil {
		return "", unavailable("no_signing_key", err)
	}
	token, err := jose.Sign(header(key.Algorithm, key.ID), c.appendJSON(make([]byte, 0, c.size())), key.Signer)
	if err != nil {
		return "", &tokens.Error{
			Code: tokens.CodeServerError, Reason: "signing_failed", Description: failedDescription, Err: err,
		}
	}
	return token, nil
}

// newTokenID returns 128 random bits, so that a token is never taken for another one (RFC 6749, Section 10.10).
func newTokenID() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails: the program ends when the system has no randomness
	var text [22]byte
	base64.RawURLEncoding.Encode(text[:], id[:])
	return string(text[:])
}

const (
	failedDescription      = "the server failed"
	unavailableDescription = "the server cannot decide at the moment; try again"
)

func refusal(code, reason, description string) *tokens.Error {
	return &tokens.Error{Code: code, Reason: reason, Description: description}
}

func unavailable(reason string, err error) *tokens.Error {
	return &tokens.Error{
		Code: tokens.CodeTemporarilyUnavailable, Reason: reason, Description: unavailableDescription, Err: err,
	}
}

// unauthenticated tells the caller nothing about the client that it named: only whether a certificate was seen, which
// the caller knows.
func unauthenticated(peer *mtls.Peer, reason string) *tokens.Error {
	if peer.Certificate() == nil {
		return refusal(tokens.CodeInvalidClient, reason, "no client certificate was presented on this connection")
	}
	return refusal(tokens.CodeInvalidClient, reason, "the certificate of this connection does not authenticate the client")
}

// because adds what happened, for the log.
func because(e *tokens.Error, err error) *tokens.Error {
	e.Err = err
	return e
}

// refuse records a refusal and returns it. A refusal that cannot be recorded stands all the same: it gives nothing away.
func (s *Server) refuse(ctx context.Context, d Decision, e *tokens.Error) error {
	d.Reason = e.Reason
	if !d.Authenticated {
		d.ClientID = claimed(d.ClientID)
	}
	if err := s.recorder.Record(ctx, d); err != nil {
		s.logger.Log(ctx, s.failureLevel(d, "refusal not recorded"), "refusal not recorded", slog.String("reason", e.Reason),
			slog.Any("error", err), slog.String("correlation_id", d.CorrelationID))
	}
	return s.refused(ctx, d, e)
}

// refused counts and logs a refusal and returns it.
func (s *Server) refused(ctx context.Context, d Decision, e *tokens.Error) error {
	if d.Event == EventToken {
		s.events.TokenRefused(e.Code, e.Reason)
	}
	level := slog.LevelDebug // strangers must not be able to fill a log; the journal has the refusal
	if e.Status() >= 500 {
		level = s.failureLevel(d, e.Reason)
	}
	if s.logger.Enabled(ctx, level) {
		s.logger.LogAttrs(ctx, level, "request refused", slog.String("event", d.Event), slog.String("error", e.Code),
			slog.String("reason", e.Reason), slog.String("client_id", d.ClientID),
			slog.String("thumbprint", thumbprintText(d.Thumbprint)), slog.String("address", d.Address),
			slog.String("correlation_id", d.CorrelationID), slog.Any("cause", e.Err))
	}
	return e
}

// failureLevel is where a failure of ours is logged: as an error, but while it lasts only once in failureInterval for all
// strangers together, since any of them may ask as often as it likes.
func (s *Server) failureLevel(d Decision, what string) slog.Level {
	if d.Authenticated || s.failures.isNews(what, s.now()) {
		return slog.LevelError
	}
	return slog.LevelDebug
}

// failureInterval is how often one kind of failure is logged as an error while strangers meet it.
const failureInterval = time.Minute

// failures remembers when each kind of failure that strangers may set off was last logged; there are few kinds.
type failures struct {
	mu   sync.Mutex
	last map[string]time.Time
}

func (f *failures) isNews(what string, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if since := now.Sub(f.last[what]); since >= 0 && since < failureInterval { // the zero time is long ago
		return false
	}
	f.last[what] = now
	return true
}

func thumbprintText(t mtls.Thumbprint) string {
	if t.IsZero() {
		return ""
	}
	return t.String()
}
