// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"context"
	"encoding/base64"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/internal/jose"
)

// introspectedBytes bounds the memory for tokens that were found good, so that their signatures are not verified again:
// some twenty thousand.
const introspectedBytes = 16 << 20

// Media types of introspection's answers (RFC 7662, Section 2.2; RFC 9701, Section 4).
const (
	typeJSON           = "application/json"
	typeIntrospection  = "token-introspection+jwt" // also the "typ" of a signed answer
	mediaIntrospection = "application/" + typeIntrospection
)

// inactive is all that is said about a token that is not active, or not for the caller (RFC 7662, Section 2.2).
const inactive = `{"active":false}`

// IntrospectionHandler returns the introspection endpoint of RFC 7662, for the listener that asks for certificates. It
// tells a client about a token of this server if the client runs a resource server that the token is for, and if the token
// is good now; about everything else the answer is the same. A caller that accepts application/token-introspection+jwt no
// less than JSON gets the answer signed (RFC 9701). Requests are those of RFC 7662, Section 2.1, with the client_id of the
// caller, which authenticates as at the token endpoint; token_type_hint has no effect.
func (s *Server) IntrospectionHandler() http.Handler { return s.forClients(s.serveIntrospection) }

func (s *Server) serveIntrospection(w http.ResponseWriter, r *http.Request, c *call) {
	media := chooseMedia(r.Header["Accept"], typeJSON, mediaIntrospection)
	if media == "" {
		writeError(w, r, http.StatusNotAcceptable, refusal(tokens.CodeInvalidRequest, "accept",
			"answers are "+typeJSON+" or "+mediaIntrospection))
		return
	}
	key, err := s.keys.Signing() // before the passage, since it may block; and before ownToken
	if err != nil {
		s.refuseCall(w, r, c, unavailable("no_signing_key", err))
		return
	}
	answer, passage, refused := s.answerAbout(r.Context(), c)
	if refused != nil {
		s.refuseCall(w, r, c, refused)
		return
	}
	leave := func() {
		if p := passage; p != nil {
			passage = nil
			p.Leave()
		}
	}
	defer leave() // also when answering panics
	body := answer.appendJSON(make([]byte, 0, 512))
	if media == mediaIntrospection {
		if body, refused = s.signIntrospection(key, c.client.ID, body); refused != nil {
			leave()
			s.refuseCall(w, r, c, refused)
			return
		}
	}
	s.events.TokenIntrospected(answer != nil)
	deliver(w, r, passage, media, body)
}

// refuseCall refuses what a client asked, which had authenticated before.
func (s *Server) refuseCall(w http.ResponseWriter, r *http.Request, c *call, refused *tokens.Error) {
	d := authenticating(callerContext(r), c.client.ID, c.peer, s.now())
	d.Authenticated = refused.Code != tokens.CodeInvalidClient // else not any more
	WriteError(w, r, s.issuer, s.refuse(r.Context(), d, refused))
}

// answerAbout returns the answer and, with a Gate, the passage under which it was decided. Nothing is recorded but
// refusals: to know about a token gives no authority.
func (s *Server) answerAbout(ctx context.Context, c *call) (*introspection, Passage, *tokens.Error) {
	t := s.ownToken(c.token)
	answer, refused := s.tell(ctx, c.client, t)
	if refused != nil {
		return nil, nil, refused
	}
	passage, answer, refused := s.tellAgain(ctx, c, t, answer)
	if refused != nil {
		return nil, nil, refused
	}
	if answer != nil {
		s.keep(c.token, t)
	}
	return answer, passage, nil
}

// tellAgain decides again under a passage of the Gate, about the caller as well: what was in force when the passage began
// counts. Everything comes from memory, which the first time has filled. Without a Gate the first decision stands.
func (s *Server) tellAgain(ctx context.Context, c *call, t *ownToken, first *introspection) (
	_ Passage, answer *introspection, refused *tokens.Error,
) {
	if s.gate == nil {
		return nil, first, nil
	}
	passage, err := s.gate.Pass()
	if err != nil {
		return nil, nil, unavailable(noLease, err)
	}
	held := false
	defer func() {
		if !held { // also when the Registry panics: a passage that nobody leaves closes the Gate for good
			passage.Leave()
		}
	}()
	client, _, _, refused := s.authenticate(ctx, proof{id: c.client.ID, assertion: c.assertion, peer: c.peer}, s.now())
	if refused != nil {
		return nil, nil, refused
	}
	if answer, refused = s.tell(ctx, client, t); refused != nil {
		return nil, nil, refused
	}
	held = true
	return passage, answer, nil
}

// introspection is what a client is told about a token; nil is that it is not active. Of a token for several resources,
// each learns its own part.
type introspection struct {
	claims   *tokens.Claims
	audience []string
	scope    []string
}

// tell decides what the client learns about the token, of which nil is none of ours. Everything is looked at whatever the
// rest says, so that the time tells little about why there is no answer.
func (s *Server) tell(ctx context.Context, client *Client, t *ownToken) (*introspection, *tokens.Error) {
	if t == nil || s.servers == nil {
		return nil, nil
	}
	reason, refused := s.standing(ctx, t, s.now())
	answer := &introspection{claims: &t.claims, audience: t.claims.Audience, scope: t.claims.Scope}
	var served []string
	for _, resource := range t.claims.Audience {
		serves, err := s.servers.Serves(ctx, client.ID, resource)
		if err != nil {
			return nil, unavailable("registry_failed", err)
		}
		if serves {
			served = append(served, resource)
		}
	}
	if len(served) == 0 { // also when it cannot be known how the token stands: that it is one is not told either
		return nil, nil
	}
	if refused != nil {
		return nil, refused
	}
	if reason != "" {
		return nil, nil
	}
	if len(served) < len(t.claims.Audience) {
		answer.audience = served
		if answer.scope, refused = s.scopeAt(ctx, t, served); refused != nil {
			return nil, refused
		}
	}
	return answer, nil
}

// scopeAt returns the part of a token's scope that is meant for these resources. No token has a scope that two of its
// resources share, and what the client does not hold there any more is left out.
func (s *Server) scopeAt(ctx context.Context, t *ownToken, resources []string) ([]string, *tokens.Error) {
	client, err := s.registry.Client(ctx, t.claims.ClientID)
	if err != nil {
		return nil, unavailable("registry_failed", err)
	}
	var scope []string
	for _, name := range t.claims.Scope {
		if slices.ContainsFunc(client.Grants, func(g Grant) bool {
			return slices.Contains(resources, g.Resource) && slices.Contains(g.Scopes, name)
		}) {
			scope = append(scope, name)
		}
	}
	return scope, nil
}

// appendJSON writes the answer of RFC 7662, Section 2.2, with the binding of RFC 8705, Section 3.2.
func (i *introspection) appendJSON(b []byte) []byte {
	if i == nil {
		return append(b, inactive...)
	}
	c := i.claims
	b = append(b, `{"active":true,"iss":`...)
	b = appendString(b, c.Issuer)
	b = append(b, `,"sub":`...)
	b = appendString(b, c.Subject)
	b = append(b, `,"client_id":`...)
	b = appendString(b, c.ClientID)
	b = append(b, `,"aud":`...)
	b = appendAudience(b, i.audience)
	b = append(b, `,"iat":`...)
	b = strconv.AppendInt(b, c.IssuedAt.Unix(), 10)
	b = append(b, `,"exp":`...)
	b = strconv.AppendInt(b, c.Expires.Unix(), 10)
	b = append(b, `,"jti":`...)
	b = appendString(b, c.ID)
	b = appendScope(b, i.scope)
	b = append(b, `,"token_type":"`...)
	b = append(b, tokenType...)
	b = append(b, `","cnf":{"x5t#S256":"`...)
	b = base64.RawURLEncoding.AppendEncode(b, c.Thumbprint[:])
	return append(b, `"}}`...)
}

// signIntrospection wraps an answer for one caller (RFC 9701, Section 5). There is no exp, sub or scope beside
// token_introspection, so that the answer is never taken for a token.
func (s *Server) signIntrospection(key SigningKey, clientID string, answer []byte) ([]byte, *tokens.Error) {
	b := append(make([]byte, 0, len(answer)+len(s.issuer)+len(clientID)+96), `{"iss":`...)
	b = appendString(b, s.issuer)
	b = append(b, `,"aud":`...)
	b = appendString(b, clientID)
	b = append(b, `,"iat":`...)
	b = strconv.AppendInt(b, s.now().Truncate(time.Second).Unix(), 10)
	b = append(b, `,"token_introspection":`...)
	b = append(append(b, answer...), '}')
	header := jose.Header{Algorithm: jose.Algorithm(key.Algorithm), KeyID: key.ID, Type: typeIntrospection}
	signed, err := jose.Sign(header, b, key.Signer)
	if err != nil {
		return nil, &tokens.Error{
			Code: tokens.CodeServerError, Reason: "signing_failed", Description: failedDescription, Err: err,
		}
	}
	return []byte(signed), nil
}
