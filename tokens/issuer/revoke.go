// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/internal/jose"
)

// EventRevoke is the Decision.Event of a token that its client gave back.
const EventRevoke = "token.revoke"

// RevokePath is where the revocation endpoint lies; it does not move when the issuer identifier has a path.
const RevokePath = "/oauth2/revoke"

// maxVerifierLeeway is how long after its end a token may still be accepted somewhere, whatever the clocks.
const maxVerifierLeeway = 2 * time.Minute

// Revoker ends tokens before their time.
type Revoker interface {
	// Revoke has the token d.TokenID refused until after d.Expires. When it returns nil that is kept whatever happens, is
	// recorded or will be, and is in force at every server of this issuer; a token that was revoked before is no error, and
	// is waited for all the same. An error with a method RetryAfter() time.Duration says when to come back. It must not give
	// up because ctx is cancelled once it has begun to change something.
	Revoke(ctx context.Context, d Decision) error
}

// RevocationHandler returns the revocation endpoint of RFC 7009, Section 2, for the listener that asks for certificates. A
// client authenticates as at the token endpoint, and can revoke what was issued to itself. Whatever else it sends as a
// token, another client's or none of ours, is answered as if it were revoked and changes nothing (RFC 7009, Section 2.2):
// so the answer tells nobody what is a token. It is 503 when the revocation could not be kept. Without Config.Revoker it
// must not be served.
func (s *Server) RevocationHandler() http.Handler {
	return s.forClients(func(w http.ResponseWriter, r *http.Request, c *call) {
		if err := s.revoke(callerContext(r), c); err != nil {
			WriteError(w, r, s.issuer, err)
			return
		}
		h := w.Header()
		h.Set("Cache-Control", "no-store")
		h.Set("Pragma", "no-cache")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Content-Length", "0")
		if id := CorrelationID(r.Context()); id != "" {
			h.Set(CorrelationHeader, id)
		}
		w.WriteHeader(http.StatusOK)
	})
}

// callerContext is the request's context with the address of its caller.
func callerContext(r *http.Request) context.Context {
	ctx := r.Context()
	if Address(ctx) == "" {
		ctx = WithAddress(ctx, r.RemoteAddr)
	}
	return ctx
}

func (s *Server) revoke(ctx context.Context, c *call) error {
	d := Decision{
		Time: s.now(), Event: EventRevoke, ClientID: c.client.ID, Authenticated: true, Thumbprint: c.peer.Thumbprint(),
		Address: Address(ctx), CorrelationID: CorrelationID(ctx),
	}
	if _, err := s.keys.Signing(); err != nil { // ownToken might take a token for none of ours
		return s.refused(ctx, d, unavailable("no_signing_key", err))
	}
	t := s.ownToken(c.token)
	if t == nil || t.claims.ClientID != c.client.ID || !d.Time.Before(t.claims.Expires.Add(maxVerifierLeeway)) {
		s.logger.LogAttrs(ctx, slog.LevelDebug, "nothing to revoke", slog.String("client_id", d.ClientID),
			slog.String("correlation_id", d.CorrelationID))
		return nil
	}
	d.Granted, d.TokenID, d.Expires = true, t.claims.ID, t.claims.Expires
	if err := s.revoker.Revoke(ctx, d); err != nil {
		return s.refused(ctx, d, unavailable("not_revoked", err))
	}
	return nil
}

// DeniedPath is where the deny feed lies.
const DeniedPath = "/oauth2/denied"

// SignDenyPage signs a page of the deny feed with the key that signs tokens now. The page's issuer and time are set here.
// An error means that nothing can be signed at present.
func (s *Server) SignDenyPage(p tokens.DenyPage) (string, error) {
	key, err := s.keys.Signing()
	if err != nil {
		return "", unavailable("no_signing_key", err)
	}
	p.Issuer, p.IssuedAt = s.issuer, s.now()
	header := jose.Header{Algorithm: jose.Algorithm(key.Algorithm), KeyID: key.ID, Type: tokens.DenyType}
	signed, err := jose.Sign(header, p.AppendJSON(make([]byte, 0, 512+128*len(p.Entries))), key.Signer)
	if err != nil {
		return "", &tokens.Error{
			Code: tokens.CodeServerError, Reason: "signing_failed", Description: failedDescription, Err: err,
		}
	}
	return signed, nil
}
