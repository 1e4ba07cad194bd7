// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"net/http"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/internal/jose"
)

// maxCallBytes bounds the body of a request about a token: as much as one to the token endpoint may have, and any token.
const maxCallBytes = MaxBodyBytes + jose.MaxTokenBytes

// call is a request about a token, whose sender has authenticated.
type call struct {
	form
	client *Client
	peer   *mtls.Peer
}

// forClients is the frame of every endpoint but the token endpoint that clients ask something about a token (RFC 7662,
// Section 2.1; RFC 7009, Section 2.1). serve gets only what was read and authenticated by the token endpoint's rules.
func (s *Server) forClients(serve func(w http.ResponseWriter, r *http.Request, c *call)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer, _ := mtls.PeerFromRequest(r) // without one it is still answered, as invalid_client (RFC 8705, Section 2)
		s.serveCall(w, r, peer, serve)
	})
}

func (s *Server) serveCall(w http.ResponseWriter, r *http.Request, peer *mtls.Peer,
	serve func(w http.ResponseWriter, r *http.Request, c *call)) {
	if r.Method != http.MethodPost {
		writeMethodNotAllowed(w, r, "POST")
		return
	}
	c, err := s.caller(w, r, peer)
	if err != nil {
		WriteError(w, r, s.issuer, err)
		return
	}
	serve(w, r, c)
}

// caller is the only way from a request to the client that sent it, but for the token endpoint, which has the same rules
// of what a request may be and the same authentication. Refusals have been recorded; they are *tokens.Error.
func (s *Server) caller(w http.ResponseWriter, r *http.Request, peer *mtls.Peer) (*call, error) {
	ctx := r.Context()
	if Address(ctx) == "" {
		ctx = WithAddress(ctx, r.RemoteAddr)
	}
	f, refused := s.readForm(w, r, maxCallBytes)
	if refused == nil {
		refused = f.checkCall(peer)
	}
	if refused != nil {
		// The client_id is left out of the record: it is no more than text.
		return nil, s.refuse(ctx, authenticating(ctx, "", peer, s.now()), refused)
	}
	client, err := s.authenticateOnce(ctx, proof{id: f.clientID, assertion: f.assertion, peer: peer})
	if err != nil {
		return nil, err
	}
	if s.authenticated != nil {
		s.authenticated(ctx, client.ID, peer.Thumbprint())
	}
	return &call{form: f, client: client, peer: peer}, nil
}

// checkCall refuses a form that says nothing about a token, or from nobody.
func (f *form) checkCall(peer *mtls.Peer) *tokens.Error {
	if refused := f.checkMethod(peer); refused != nil {
		return refused
	}
	if f.token == "" { // RFC 7662, Section 2.1; RFC 7009, Section 2.1
		return refusal(tokens.CodeInvalidRequest, "token_missing", "token is missing")
	}
	return f.checkClient()
}
