// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	// maxTokenBytes bounds the token response.
	maxTokenBytes = 64 << 10
	// maxAccessToken bounds the token itself: it must fit into a request header of any resource server.
	maxAccessToken = 16 << 10
	// assumedLifetime is used when the issuer does not say expires_in, which RFC 6749, Section 5.1 permits.
	assumedLifetime = time.Minute
	// maxLifetime caps what an issuer may claim, so that a forged or mistaken figure is not kept for years.
	maxLifetime = 24 * time.Hour
	// fetchTimeout bounds one token request, connection included.
	fetchTimeout = 30 * time.Second
	// maxRetryAfter caps the pause an issuer may demand.
	maxRetryAfter = 5 * time.Minute
)

// Token is an access token and what the issuer said of it. It prints without the secret part.
type Token struct {
	// AccessToken is the bearer part: a secret as far as the certificate's key is one.
	AccessToken string
	// TokenType as the issuer spelled it; always "Bearer" but for upper and lower case.
	TokenType string
	// Expires is the local time after which the token is not used: the issuer's expires_in counted from before the
	// request was sent, never later than the end of the certificate. Without expires_in it is one minute.
	Expires time.Time
	// Scope as granted; nil when the issuer did not say, which means as asked (RFC 6749, Section 5.1).
	Scope []string
	// Raw is the issuer's JSON response, access token included.
	Raw json.RawMessage
}

// String names the token without revealing it.
func (t Token) String() string {
	return fmt.Sprintf("%s token until %s", t.TokenType, t.Expires.UTC().Format(time.RFC3339))
}

// GoString is String, so that %#v reveals no more.
func (t Token) GoString() string { return t.String() }

// LogValue is String, so that a logger reveals no more.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// Error is a refusal by the token endpoint (RFC 6749, Section 5.2).
type Error struct {
	// Status is the HTTP status.
	Status int
	// Code is the registered error code, empty when the answer was no OAuth error.
	Code string
	// Description and Hint are for humans, cut and free of control characters.
	Description, Hint string
	// RetryAfter is what the answer's Retry-After asks for, at most five minutes.
	RetryAfter time.Duration
}

// Error says what the issuer said.
func (e *Error) Error() string {
	text := fmt.Sprintf("the token endpoint answered %d", e.Status)
	if e.Code != "" {
		text += " " + e.Code
	}
	if e.Description != "" {
		text += ": " + e.Description
	}
	return text
}

// fetch asks the token endpoint once, over the generation's own connections, so that the token is bound to the
// certificate it will travel with (RFC 8705, Section 3). Redirects are not followed.
func (t *Transport) fetch(ctx context.Context, g *generation, want request) (Token, error) {
	if !time.Now().Before(g.notAfter) {
		return Token{}, fmt.Errorf("the client certificate expired at %s", g.notAfter.UTC().Format(time.RFC3339))
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	req, err := t.tokenRequest(ctx, want)
	if err != nil {
		return Token{}, err
	}
	sent := time.Now()
	resp, err := g.pool.RoundTrip(req)
	if err != nil {
		return Token{}, fmt.Errorf("token request: %w", err)
	}
	defer resp.Body.Close()
	token, err := parseTokenResponse(resp, sent)
	if err != nil {
		return Token{}, err
	}
	if token.Expires.After(g.notAfter) {
		token.Expires = g.notAfter
	}
	return token, nil
}

// tokenRequest is the client credentials request (RFC 6749, Section 4.4.2) with client_id (RFC 8705, Section 2) and
// resource indicators (RFC 8707, Section 2). There is no secret to send.
func (t *Transport) tokenRequest(ctx context.Context, want request) (*http.Request, error) {
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {t.config.ClientID}}
	if len(want.scopes) > 0 {
		form.Set("scope", strings.Join(want.scopes, " "))
	}
	for _, r := range want.resources {
		form.Add("resource", r)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.endpoint, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, fmt.Errorf("token request: %w", err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	return req, nil
}

func parseTokenResponse(resp *http.Response, sent time.Time) (Token, error) {
	if resp.StatusCode != http.StatusOK {
		return Token{}, parseError(resp)
	}
	body, err := readJSON(resp, maxTokenBytes)
	if err != nil {
		return Token{}, fmt.Errorf("token response: %w", err)
	}
	token, err := parseToken(body, sent)
	if err != nil {
		return Token{}, fmt.Errorf("token response: %w", err)
	}
	return token, nil
}

// parseToken reads a successful response (RFC 6749, Section 5.1). Errors never quote the answer: it holds a token.
func parseToken(body []byte, sent time.Time) (Token, error) {
	members, err := object(body)
	if err != nil {
		return Token{}, err
	}
	t := Token{Raw: body}
	var scope string
	fill(members, map[string]*string{
		"access_token": &t.AccessToken, "token_type": &t.TokenType, "scope": &scope,
	})
	if !isBearerToken(t.AccessToken) {
		return Token{}, errors.New("access_token is missing or not of the form of RFC 6750, Section 2.1")
	}
	// RFC 6749, Section 7.1: a client must not use a token whose type it does not understand.
	if !strings.EqualFold(t.TokenType, "Bearer") {
		return Token{}, fmt.Errorf("token_type %q is not Bearer", printable(t.TokenType, 32))
	}
	lifetime, err := parseLifetime(members)
	if err != nil {
		return Token{}, err
	}
	t.Expires = sent.Add(lifetime)
	if scope != "" {
		t.Scope = strings.Fields(scope)
	}
	return t, nil
}

// parseLifetime reads expires_in: whole seconds above zero, capped. The exponent form is a number too.
func parseLifetime(members map[string]json.RawMessage) (time.Duration, error) {
	raw, ok := members["expires_in"]
	if !ok {
		return assumedLifetime, nil
	}
	var seconds float64
	if err := json.Unmarshal(raw, &seconds); err != nil || string(raw) == "null" || seconds < 1 ||
		seconds != math.Trunc(seconds) {
		return 0, errors.New("expires_in is not a positive number of seconds")
	}
	return time.Duration(min(seconds, maxLifetime.Seconds())) * time.Second, nil
}

// isBearerToken checks the syntax b64token of RFC 6750, Section 2.1, so that what is put into a header cannot be
// anything but one token.
func isBearerToken(s string) bool {
	body := strings.TrimRight(s, "=")
	if body == "" || len(s) > maxAccessToken {
		return false
	}
	for i := range len(body) {
		c := body[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~+/", c) >= 0) {
			return false
		}
	}
	return true
}

// parseError reads a refusal; an answer that is no OAuth error keeps its status only.
func parseError(resp *http.Response) *Error {
	e := &Error{Status: resp.StatusCode, RetryAfter: retryAfter(resp.Header.Get("Retry-After"))}
	body, err := readJSON(resp, maxTokenBytes)
	if err != nil {
		return e
	}
	members, err := object(body)
	if err != nil {
		return e
	}
	fill(members, map[string]*string{"error": &e.Code, "error_description": &e.Description, "hint": &e.Hint})
	e.Code = printable(e.Code, 64)
	e.Description, e.Hint = printable(e.Description, 512), printable(e.Hint, 512)
	return e
}

// retryAfter reads the seconds form of Retry-After (RFC 9110, Section 10.2.3); the date form counts as absent.
func retryAfter(value string) time.Duration {
	seconds, err := strconv.ParseUint(value, 10, 32)
	if err != nil {
		return 0
	}
	return min(time.Duration(seconds)*time.Second, maxRetryAfter)
}
