// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package client

import (
	"net/http"
	"strings"
)

// RoundTrip sends the request with a token when its origin is listed in Config.Origins, and without one otherwise or
// when it follows a redirect from another origin. The request is not modified and its body is always closed.
//
// When the resource server answers 401 with invalid_token (RFC 6750, Section 3.1), the token is taken out of use; if
// the request can be sent again (no body, or GetBody set) it is, once, with a new token. If there is no new token the
// first response is returned untouched.
//
// RoundTrip blocks for a token fetch when no usable token is there, until the request's context ends.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if !t.mayBear(req) {
		g, err := t.enter()
		if err != nil {
			closeBody(req)
			return nil, err
		}
		return g.send(req)
	}
	resp, g, token, err := t.attempt(req)
	if err != nil || !refusesToken(resp) || !t.stale(g, t.want, token) {
		return resp, err
	}
	again, ok := rewound(req)
	if !ok {
		return resp, nil
	}
	// Obtain the new token before giving up the first answer, which is all the caller gets if that fails.
	if _, err := t.Token(req.Context()); err != nil {
		closeBody(again)
		return resp, nil
	}
	resp.Body.Close()
	resp, _, _, err = t.attempt(again)
	return resp, err
}

// attempt sends the request once, with a token and a connection of one generation: it is chosen once, before the
// token, and both come from it, whatever becomes of the certificate meanwhile.
func (t *Transport) attempt(req *http.Request) (*http.Response, *generation, Token, error) {
	g, err := t.enter()
	if err != nil {
		closeBody(req)
		return nil, nil, Token{}, err
	}
	token, err := t.token(req.Context(), g, t.want)
	if err != nil {
		g.leave()
		closeBody(req)
		return nil, nil, Token{}, err
	}
	bearing := req.WithContext(req.Context())
	bearing.Header = req.Header.Clone()
	if bearing.Header == nil {
		bearing.Header = http.Header{}
	}
	// RFC 6750, Section 2.1: in the header, never in the query or the body.
	bearing.Header.Set("Authorization", "Bearer "+token.AccessToken)
	resp, err := g.send(bearing)
	if err != nil {
		return nil, nil, Token{}, err
	}
	// Whoever logs a response's request shall not log the token.
	resp.Request = req
	return resp, g, token, nil
}

// mayBear says whether the request may carry the token: its origin is listed, and every redirect that led to it came
// from that same origin. A server could otherwise send our token, and what the caller wrote, to another listed one.
func (t *Transport) mayBear(req *http.Request) bool {
	if req.URL == nil {
		return false
	}
	origin := originOf(req.URL)
	if !t.origins[origin] {
		return false
	}
	for r := req.Response; r != nil && r.Request != nil; r = r.Request.Response {
		if originOf(r.Request.URL) != origin {
			return false
		}
	}
	return true
}

func closeBody(req *http.Request) {
	if req.Body != nil {
		req.Body.Close()
	}
}

// rewound returns a copy of the request with its body from the start, if that can be had.
func rewound(req *http.Request) (*http.Request, bool) {
	again := req.WithContext(req.Context())
	if req.Body == nil || req.Body == http.NoBody {
		return again, true
	}
	if req.GetBody == nil {
		return nil, false
	}
	body, err := req.GetBody()
	if err != nil {
		return nil, false
	}
	again.Body = body
	return again, true
}

// refusesToken recognises 401 with a Bearer challenge whose error is invalid_token (RFC 6750, Section 3).
func refusesToken(resp *http.Response) bool {
	if resp.StatusCode != http.StatusUnauthorized {
		return false
	}
	for _, header := range resp.Header.Values("WWW-Authenticate") {
		if bearerError(header) == "invalid_token" {
			return true
		}
	}
	return false
}

// bearerError finds the error parameter of the Bearer challenge in one WWW-Authenticate field, which may hold several
// challenges (RFC 9110, Section 11.6.1). What it cannot read counts as no error.
func bearerError(header string) string {
	scheme := ""
	for rest := header; ; {
		rest = strings.TrimLeft(rest, " \t,=") // the equals signs end a token68
		word, after := nextWord(rest)
		if word == "" {
			return ""
		}
		after = strings.TrimLeft(after, " \t")
		if !strings.HasPrefix(after, "=") {
			scheme, rest = word, after
			continue
		}
		value, after := parameter(strings.TrimLeft(after[1:], " \t"))
		if strings.EqualFold(scheme, "Bearer") && strings.EqualFold(word, "error") {
			return value
		}
		rest = after
	}
}

// nextWord splits off the leading token or token68 (RFC 9110, Sections 5.6.2 and 11.2).
func nextWord(s string) (word, rest string) {
	i := strings.IndexAny(s, " \t,=\"")
	if i < 0 {
		return s, ""
	}
	return s[:i], s[i:]
}

// parameter splits off a token or quoted-string (RFC 9110, Section 5.6.4).
func parameter(s string) (value, rest string) {
	if !strings.HasPrefix(s, `"`) {
		return nextWord(s)
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			return b.String(), s[i+1:]
		case c == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", ""
}
