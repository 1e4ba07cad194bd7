// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Package resource guards an http.Handler with certificate-bound access tokens (RFC 6750, RFC 8705). It is for
// servers that are called with tokens, on TLS that asks for a client certificate without demanding one:
//
//	v, err := tokens.NewVerifier(tokens.VerifierConfig{Issuer: issuer, Audience: audience, Keys: keys})
//	g, err := resource.New(resource.Config{Verifier: v})
//	http.Handle("/", g.Protect(api, "orders:read"))
//
// It refuses with the registered codes: a request without a token, one with a token in the query or with two, a
// token that is not valid on this connection, a token without the scope. Tokens in a request's body are never
// looked at. What was wrong goes to the log; a token never does.
package resource

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strings"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens"
)

// CorrelationHeader is the response header of a refusal that names its line in the log. A middleware around the
// Guard may set it first; otherwise the Guard does.
const CorrelationHeader = "X-Correlation-Id"

// maxCredentials bounds the Authorization header in bytes. No acceptable token is as long.
const maxCredentials = 20 << 10

// Events is told what was decided about each request. Its methods are called from many goroutines.
type Events interface {
	RequestAllowed()
	RequestRefused(code, reason string) // code is empty where a request had no token
}

// Config says what a Guard accepts.
type Config struct {
	Verifier *tokens.Verifier // required

	// Realm is the realm of the challenge, printable ASCII without quotes and backslashes; the Verifier's
	// audience when it is empty.
	Realm string

	// Logger gets one line for each refusal; nil means none are written.
	Logger *slog.Logger

	// Certificate returns the certificate that the caller has proved to hold; nil means mtls.PeerFromRequest.
	// After an error the request is refused as one without certificate.
	Certificate func(*http.Request) (*mtls.Peer, error)

	// Authorize is asked last about each request whose token is good, for a server that knows more than the
	// token says, for example that the client has been disabled. It returns nil or an *tokens.Error. Another
	// error refuses the request as temporarily_unavailable. May be nil.
	Authorize func(context.Context, *tokens.Claims, *mtls.Peer) error

	Events Events // may be nil

	// Refused is told of each refusal before its answer leaves, for a server that keeps a record of them; the response
	// header CorrelationHeader is set by then. It must not write to the response. May be nil.
	Refused func(r *http.Request, refusal *tokens.Error, correlationID string)

	// Metadata makes Protect answer requests for the protected resource metadata of RFC 9728 without a token, and every
	// challenge name its URL. The Verifier's audience must then pass CheckIdentifier, and the metadata be served at its
	// host: by a Protect that sees all paths, or by MetadataHandler at MetadataPath. Nil publishes nothing.
	Metadata *Metadata

	// Denials ends requests that are under way when their token is revoked, streams above all: the request's context is
	// cancelled with the cause ErrDenied, its connection closed, or its HTTP/2 stream reset. It is what the Verifier's
	// Denied asks: a *tokens.DenyFeed or a *tokens.DenyList, which then keeps the Guard. A handler that hijacks its
	// connection must end with its context, and not return before. A feed that is stale ends none: what it has not heard it
	// cannot know, and hears as soon as it follows again. Nil lets each request come to its end.
	Denials Denials
}

// Guard refuses requests that do not carry a token bound to their connection. Safe for concurrent use.
type Guard struct {
	verifier    *tokens.Verifier
	realm       string
	logger      *slog.Logger
	certificate func(*http.Request) (*mtls.Peer, error)
	authorize   func(context.Context, *tokens.Claims, *mtls.Peer) error
	events      Events
	refused     func(*http.Request, *tokens.Error, string)
	metadata    *published // nil when there is none
	open        *opened    // nil when nothing ends a request
}

// New returns a Guard. The error says which field cannot be used.
func New(c Config) (*Guard, error) {
	if c.Verifier == nil {
		return nil, errors.New("resource: no verifier")
	}
	g := &Guard{
		verifier:    c.Verifier,
		realm:       c.Realm,
		logger:      c.Logger,
		certificate: c.Certificate,
		authorize:   c.Authorize,
		events:      c.Events,
		refused:     c.Refused,
	}
	if g.realm == "" {
		g.realm = c.Verifier.Audience()
	}
	if g.realm != quotable(g.realm) {
		return nil, errors.New("resource: the realm is not printable ASCII without quotes and backslashes")
	}
	if g.logger == nil {
		g.logger = slog.New(slog.DiscardHandler)
	}
	if g.certificate == nil {
		g.certificate = mtls.PeerFromRequest
	}
	if c.Metadata != nil {
		var err error
		if g.metadata, err = newPublished(c.Metadata, c.Verifier); err != nil {
			return nil, err
		}
	}
	if c.Denials != nil {
		g.open = newOpened(c.Denials, g.logger)
	}
	return g, nil
}

// Protect returns a handler that calls next only for requests with a valid token that carries all of the scopes;
// next finds what the token says with Claims. It panics when a scope is malformed (RFC 6749, Section 3.3).
func (g *Guard) Protect(next http.Handler, scopes ...string) http.Handler {
	for _, scope := range scopes {
		if !tokens.ValidScope(scope) {
			panic("resource: malformed scope " + scope)
		}
	}
	needed := slices.Clone(scopes)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if g.metadata.at(r) {
			g.metadata.ServeHTTP(w, r)
			return
		}
		claims, keyID, err := g.check(r, needed)
		if err != nil {
			g.refuse(w, r, err)
			return
		}
		ctx := context.WithValue(r.Context(), claimsKey{}, claims)
		if g.open != nil {
			g.serveOpen(next, w, r.WithContext(ctx), &open{claims: claims, keyID: keyID})
			return
		}
		g.allowed()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

func (g *Guard) allowed() {
	if g.events != nil {
		g.events.RequestAllowed()
	}
}

// check is the whole decision about one request. Its error is an *tokens.Error, with an empty Code when the request
// had no credentials. keyID is the key that signed the token.
func (g *Guard) check(r *http.Request, needed []string) (claims *tokens.Claims, keyID string, err error) {
	raw, err := bearer(r)
	if err != nil {
		return nil, "", err
	}
	peer, noPeer := g.certificate(r)
	if noPeer != nil {
		peer = nil // whatever came with the error
	}
	claims, keyID, err = g.verifier.VerifyKey(r.Context(), raw, peer)
	if err != nil {
		return nil, "", because(err, noPeer)
	}
	if g.authorize != nil {
		if err := g.authorize(r.Context(), claims, peer); err != nil {
			return nil, "", judged(err)
		}
	}
	for _, scope := range needed {
		if !claims.HasScope(scope) {
			return nil, "", insufficient(needed)
		}
	}
	return claims, keyID, nil
}

// bearer takes the token out of the Authorization header, the only place where we accept one (RFC 6750,
// Sections 2.1 and 5.3).
func bearer(r *http.Request) (string, error) {
	headers := r.Header.Values("Authorization")
	if len(headers) > 1 {
		return "", malformed("several_credentials", "more than one Authorization header")
	}
	if r.URL.Query().Has("access_token") { // an error on its own, and a second method beside the header
		return "", malformed("token_in_query", "an access token in the query is not accepted")
	}
	if len(headers) == 0 {
		return "", &tokens.Error{Reason: "no_credentials"}
	}
	if len(headers[0]) > maxCredentials {
		return "", malformed("credentials_too_large", "the Authorization header is too large")
	}
	scheme, token, _ := strings.Cut(headers[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return "", &tokens.Error{Reason: "other_scheme"}
	}
	if !isB64Token(token) {
		return "", malformed("malformed_credentials", "the credentials are not one token after one space")
	}
	return token, nil
}

// isB64Token reports whether s follows b64token of RFC 6750, Section 2.1.
func isB64Token(s string) bool {
	body := strings.TrimRight(s, "=")
	for i := range len(body) {
		c := body[i]
		letter := 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' || '0' <= c && c <= '9'
		if !letter && strings.IndexByte("-._~+/", c) < 0 {
			return false
		}
	}
	return body != ""
}

func malformed(reason, description string) *tokens.Error {
	return &tokens.Error{Code: tokens.CodeInvalidRequest, Description: description, Reason: reason}
}

func insufficient(needed []string) *tokens.Error {
	return &tokens.Error{
		Code:        tokens.CodeInsufficientScope,
		Description: "the access token lacks a scope that this request needs",
		Reason:      "insufficient_scope",
		Scope:       strings.Join(needed, " "),
	}
}

// because adds to a refusal why there was no certificate, for the log.
func because(err, noPeer error) error {
	refusal, ok := errors.AsType[*tokens.Error](err)
	if !ok || noPeer == nil {
		return err
	}
	told := *refusal
	told.Err = noPeer
	return &told
}

// judged turns the answer of Authorize into a refusal. A check that could not be made refuses too.
func judged(err error) error {
	if refusal, ok := errors.AsType[*tokens.Error](err); ok && refusal != nil {
		return refusal
	}
	return &tokens.Error{
		Code:        tokens.CodeTemporarilyUnavailable,
		Description: "the request cannot be authorized at present",
		Reason:      "authorize_failed",
		Err:         err,
	}
}

// refuse answers as RFC 6750, Section 3 says. A request without credentials is told no more than that they are
// needed.
func (g *Guard) refuse(w http.ResponseWriter, r *http.Request, err error) {
	refusal, ok := errors.AsType[*tokens.Error](err)
	if !ok {
		refusal = &tokens.Error{Code: tokens.CodeServerError, Reason: "unexpected", Err: err}
	}
	status := http.StatusUnauthorized
	if refusal.Code != "" {
		status = refusal.Status()
	}
	header := w.Header()
	if header.Get(CorrelationHeader) == "" {
		header.Set(CorrelationHeader, rand.Text())
	}
	g.logger.LogAttrs(r.Context(), slog.LevelInfo, "request refused",
		slog.Int("status", status), slog.String("code", refusal.Code), slog.String("reason", refusal.Reason),
		slog.Any("cause", refusal.Err), slog.String("method", r.Method), slog.String("remote", r.RemoteAddr),
		slog.String("correlation_id", header.Get(CorrelationHeader)))
	if g.events != nil {
		g.events.RequestRefused(refusal.Code, refusal.Reason)
	}
	if g.refused != nil {
		g.refused(r, refusal, header.Get(CorrelationHeader))
	}
	if status < http.StatusInternalServerError {
		header.Set("WWW-Authenticate", g.challenge(refusal))
	}
	if status == http.StatusServiceUnavailable {
		header.Set("Retry-After", "1")
	}
	header.Set("Cache-Control", "no-store")
	writeBody(w, status, refusal)
}

// challenge writes the WWW-Authenticate header. Error attributes are for requests that tried (RFC 6750,
// Section 3.1).
func (g *Guard) challenge(e *tokens.Error) string {
	challenge := `Bearer realm="` + g.realm + `"`
	if e.Code != "" {
		challenge += `, error="` + quotable(e.Code) + `"`
	}
	if e.Description != "" {
		challenge += `, error_description="` + quotable(e.Description) + `"`
	}
	if e.Scope != "" {
		challenge += `, scope="` + quotable(e.Scope) + `"`
	}
	if g.metadata != nil { // RFC 9728, Section 5.1
		challenge += `, resource_metadata="` + g.metadata.url + `"`
	}
	return challenge
}

// writeBody repeats code and description as JSON for clients that do not parse challenges. Without a code there
// is nothing to say.
func writeBody(w http.ResponseWriter, status int, e *tokens.Error) {
	if e.Code == "" {
		w.WriteHeader(status)
		return
	}
	body, _ := json.Marshal(struct { // two strings cannot fail
		Error       string `json:"error"`
		Description string `json:"error_description,omitempty"`
	}{e.Code, quotable(e.Description)})
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // the client may have gone; there is nobody to tell
}

// quotable replaces what must not stand in error attributes (RFC 6750, Section 3).
func quotable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r > 0x7e || r == '"' || r == '\\' {
			return '?'
		}
		return r
	}, s)
}

type claimsKey struct{}

// Claims returns what the token of a request says, within a handler that Protect guards; ok is false elsewhere.
// The claims are shared by all that handle the request and must not be changed.
func Claims(ctx context.Context) (claims *tokens.Claims, ok bool) {
	claims, ok = ctx.Value(claimsKey{}).(*tokens.Claims)
	return claims, ok
}
