// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens"
)

// TokenHandler returns the token endpoint of RFC 6749, Section 3.2, for the listener that asks for certificates. It
// answers POST only, reads parameters from the form body only, and takes the client's certificate from the TLS
// connection only. It sends no CORS headers: its callers are services.
func (s *Server) TokenHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Without a certificate the request is still answered, as invalid_client (RFC 8705, Section 2).
		peer, err := mtls.PeerFromRequest(r)
		if err != nil {
			peer = nil
		}
		s.serveToken(w, r, peer)
	})
}

func (s *Server) serveToken(w http.ResponseWriter, r *http.Request, peer *mtls.Peer) {
	if r.Method != http.MethodPost {
		writeMethodNotAllowed(w, r, "POST")
		return
	}
	request, refused := s.readTokenRequest(w, r, peer)
	if refused != nil {
		WriteError(w, r, s.issuer, s.refuse(r.Context(), request.malformed(s.now()), refused))
		return
	}
	response, err := s.Issue(r.Context(), request)
	if err != nil {
		WriteError(w, r, s.issuer, err)
		return
	}
	defer response.Done() // also when answering panics
	deliver(w, r, response.passage, "application/json",
		response.appendJSON(make([]byte, 0, 128+len(response.AccessToken))))
}

// malformed is the record of a request that Issue never saw. Its client_id is left out: it is no more than text.
func (r *Request) malformed(now time.Time) Decision {
	return Decision{
		Time: now, Event: EventToken, Thumbprint: r.Peer.Thumbprint(), Address: r.Address,
		CorrelationID: r.CorrelationID,
	}
}

// readTokenRequest reads what RFC 6749, Sections 2.3, 3.2 and 4.4.2, allow a request to be. The returned Request has
// its Peer, Address and CorrelationID also when it is refused.
func (s *Server) readTokenRequest(w http.ResponseWriter, r *http.Request, peer *mtls.Peer) (Request, *tokens.Error) {
	request := Request{Peer: peer, Address: callerAddress(r), CorrelationID: CorrelationID(r.Context())}
	f, refused := s.readForm(w, r, MaxBodyBytes)
	if refused == nil {
		refused = f.check(peer)
	}
	if refused != nil {
		return request, refused
	}
	request.GrantType, request.ClientID, request.Assertion = f.grantType, f.clientID, f.assertion
	request.Scope, request.Resources = f.scopeTokens(), f.resources
	return request, nil
}

// readForm reads the form, of at most so many bytes, of a request to any endpoint for clients, which has nothing outside of
// it that could be meant for us.
func (s *Server) readForm(w http.ResponseWriter, r *http.Request, most int64) (form, *tokens.Error) {
	// A URL ends up in logs; nothing is taken from it, and we refuse rather than ignore what was meant for us.
	if r.URL.RawQuery != "" {
		return form{}, refusal(tokens.CodeInvalidRequest, "query_parameters",
			"parameters belong into the body; this endpoint takes no query")
	}
	if len(r.Header["Authorization"]) > 0 {
		return form{}, refusal(tokens.CodeInvalidClient, "authorization_header",
			"clients authenticate with the certificate of the connection; no Authorization header is accepted")
	}
	if !isForm(r.Header["Content-Type"]) {
		return form{}, refusal(tokens.CodeInvalidRequest, "content_type",
			"the content type must be application/x-www-form-urlencoded")
	}
	body, refused := readBody(w, r, most)
	if refused != nil {
		return form{}, refused
	}
	f, refused := parseForm(body)
	if refused == nil {
		refused = s.settleMethod(&f)
	}
	return f, refused
}

// check refuses a form that Issue could make nothing of.
func (f *form) check(peer *mtls.Peer) *tokens.Error {
	if refused := f.checkMethod(peer); refused != nil {
		return refused
	}
	if f.grantType == "" {
		return refusal(tokens.CodeInvalidRequest, "grant_type_missing", "grant_type is missing")
	}
	return f.checkClient()
}

// checkMethod refuses every way to authenticate that lies in the form.
func (f *form) checkMethod(peer *mtls.Peer) *tokens.Error {
	switch {
	case f.secret && peer.Certificate() != nil: // RFC 6749, Section 2.3: not more than one method
		return refusal(tokens.CodeInvalidRequest, "two_methods",
			"the certificate already authenticates the client; send no client_secret and no client_assertion")
	case f.secret:
		return refusal(tokens.CodeInvalidClient, "secret_instead_of_certificate",
			"clients authenticate with a certificate; client_secret and client_assertion are not accepted")
	}
	return nil
}

// checkClient refuses a form that names nobody (RFC 8705, Section 2).
func (f *form) checkClient() *tokens.Error {
	switch {
	case f.clientID == "":
		return refusal(tokens.CodeInvalidRequest, "client_id_missing", "client_id is missing")
	case !isClientID(f.clientID):
		return refusal(tokens.CodeInvalidRequest, "client_id_malformed", "client_id is not printable ASCII, or too long")
	}
	return nil
}

func isForm(contentType []string) bool {
	const form = "application/x-www-form-urlencoded"
	if len(contentType) != 1 {
		return false
	}
	if contentType[0] == form {
		return true
	}
	media, parameters, err := mime.ParseMediaType(contentType[0])
	charset, given := parameters["charset"]
	return err == nil && media == form &&
		(!given || strings.EqualFold(charset, "utf-8"))
}

// readBody reads at most so many bytes; a body that announces more is refused unread.
func readBody(w http.ResponseWriter, r *http.Request, most int64) ([]byte, *tokens.Error) {
	var tooLarge *http.MaxBytesError
	if r.ContentLength > most {
		w.Header().Set("Connection", "close")
		return nil, bodyTooLarge(&http.MaxBytesError{Limit: most})
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, most))
	if errors.As(err, &tooLarge) {
		return nil, bodyTooLarge(tooLarge)
	}
	if err != nil {
		return nil, &tokens.Error{
			Code: tokens.CodeInvalidRequest, Reason: "body_unreadable", Description: "the body could not be read", Err: err,
		}
	}
	return body, nil
}

func bodyTooLarge(err *http.MaxBytesError) *tokens.Error {
	return &tokens.Error{
		Code: tokens.CodeInvalidRequest, Reason: "body_too_large", Description: "the body is too large", Err: err,
	}
}

func callerAddress(r *http.Request) string {
	if a := Address(r.Context()); a != "" {
		return a
	}
	return r.RemoteAddr
}

// appendJSON writes the response of RFC 6749, Section 5.1. There is never a refresh token (Section 4.4.3).
func (r *Response) appendJSON(b []byte) []byte {
	b = append(b, `{"access_token":"`...)
	b = append(b, r.AccessToken...) // base64url and dots: nothing to escape in its many bytes
	b = append(b, `","token_type":`...)
	b = appendString(b, r.TokenType)
	b = append(b, `,"expires_in":`...)
	b = strconv.AppendInt(b, int64(r.ExpiresIn/time.Second), 10)
	b = appendScope(b, r.Scope)
	return append(b, "}\n"...)
}

// MisdirectedHandler stands at the path of an endpoint for clients, on the listener that does not ask for certificates: a
// client that came there cannot authenticate, and is told where it can.
func (s *Server) MisdirectedHandler(path string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			writeMethodNotAllowed(w, r, "POST")
			return
		}
		d := Decision{
			Time: s.now(), Event: EventAuthenticate, Address: callerAddress(r), CorrelationID: CorrelationID(r.Context()),
		}
		if path == TokenPath {
			d.Event = EventToken
		}
		WriteError(w, r, s.issuer, s.refuse(r.Context(), d, refusal(tokens.CodeInvalidClient, "wrong_listener",
			"this address asks for no client certificate; the endpoint is "+s.mtlsURL+path)))
	})
}

// WriteError answers a request with an error in the form of RFC 6749, Section 5.2: JSON, not to be cached, with the
// code and the description of the *tokens.Error in err and nothing else of it. Any other error is ours and shows as
// server_error. The status is the code's own, except for a body that was too large (err wraps *http.MaxBytesError):
// 413. A 401 carries a challenge with the realm: Bearer, or the scheme that the request tried in its Authorization
// header. A 503 carries Retry-After when the cause has a method RetryAfter() time.Duration, or was a closed Gate.
func WriteError(w http.ResponseWriter, r *http.Request, realm string, err error) {
	var (
		e        *tokens.Error
		tooLarge *http.MaxBytesError
	)
	if !errors.As(err, &e) {
		e = &tokens.Error{Code: tokens.CodeServerError, Description: failedDescription, Err: err}
	}
	status := e.Status()
	if status == http.StatusBadRequest && errors.As(err, &tooLarge) {
		status = http.StatusRequestEntityTooLarge
	}
	if status == http.StatusUnauthorized { // RFC 9110, Section 15.5.2
		w.Header().Set("WWW-Authenticate", triedScheme(r)+" realm="+quote(realm))
	}
	if status == http.StatusServiceUnavailable {
		setRetryAfter(w.Header(), e, err)
	}
	writeError(w, r, status, e)
}

func writeError(w http.ResponseWriter, r *http.Request, status int, e *tokens.Error) {
	b := append(make([]byte, 0, 192), `{"error":`...)
	b = appendString(b, e.Code)
	if e.Description != "" {
		b = append(b, `,"error_description":`...)
		b = appendString(b, cleanDescription(e.Description))
	}
	writeJSON(w, r, status, append(b, "}\n"...))
}

func writeMethodNotAllowed(w http.ResponseWriter, r *http.Request, allow string) {
	w.Header().Set("Allow", allow)
	writeError(w, r, http.StatusMethodNotAllowed,
		refusal(tokens.CodeInvalidRequest, "method", "the method is not allowed here; allowed: "+allow))
}

func writeJSON(w http.ResponseWriter, r *http.Request, status int, body []byte) {
	writeUnkept(w, r, status, "application/json", body)
}

// writeUnkept writes an answer that nobody may keep (RFC 6749, Section 5.1).
func writeUnkept(w http.ResponseWriter, r *http.Request, status int, contentType string, body []byte) {
	values := [...]string{"no-store", "no-cache"}
	h := w.Header()
	h["Cache-Control"] = values[0:1:1]
	h["Pragma"] = values[1:2:2]
	write(w, r, status, contentType, body)
}

func write(w http.ResponseWriter, r *http.Request, status int, contentType string, body []byte) {
	// In one piece, and under names in canonical form already: this runs for every token.
	values := [...]string{contentType, "nosniff", strconv.Itoa(len(body)), CorrelationID(r.Context())}
	h := w.Header()
	h["Content-Type"] = values[0:1:1]
	h["X-Content-Type-Options"] = values[1:2:2]
	h["Content-Length"] = values[2:3:3]
	if values[3] != "" {
		h[CorrelationHeader] = values[3:4:4]
	}
	w.WriteHeader(status)
	_, _ = w.Write(body) // net/http drops it for HEAD; a caller that went away needs no answer
}

// cleanDescription keeps to the characters that RFC 6749, Section 5.2, allows in error_description.
func cleanDescription(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || r == '"' || r == '\\' {
			return -1
		}
		return r
	}, s)
}

// triedScheme returns the authentication scheme of the request's Authorization header when it has the form of one, so
// that the challenge matches it (RFC 6749, Section 5.2), and Bearer otherwise.
func triedScheme(r *http.Request) string {
	scheme, _, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	if !ok || scheme == "" || len(scheme) > 32 {
		return "Bearer"
	}
	for i := range len(scheme) {
		if c := scheme[i]; c >= 0x80 || !isLetterOrDigit(c) && !strings.ContainsRune("-._~!#$%&'*+^`|", rune(c)) {
			return "Bearer"
		}
	}
	return scheme
}

func isLetterOrDigit(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// quote makes a quoted-string of RFC 9110, Section 5.6.4.
func quote(s string) string {
	b := append(make([]byte, 0, len(s)+2), '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c < ' ' || c > '~':
			continue
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		default:
			b = append(b, c)
		}
	}
	return string(append(b, '"'))
}
