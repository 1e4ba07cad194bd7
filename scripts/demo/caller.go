// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/certbound/certbound/mtls"
)

const maxAnswer = 64 << 10

// A caller makes requests over connections of one certificate, the one that was in the profile when it was made.
type caller struct {
	who    string // on the screen
	client *http.Client
}

// An answer is what came back, and over which connection.
type answer struct {
	status    int
	challenge string // WWW-Authenticate
	body      string
	reused    bool   // over a connection that an earlier request had used
	local     string // our end of the connection, which tells two connections apart
}

// newCaller returns a caller that shows the certificate of a profile folder, or none.
func newCaller(profile string, certificate bool) (*caller, error) {
	pem, err := os.ReadFile(filepath.Join(profile, "roots.pem"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s/roots.pem holds no certificate", profile)
	}
	c := &caller{who: "nobody (no certificate)"}
	var keyPair *mtls.KeyPair
	if certificate {
		c.who = filepath.Base(profile)
		keyPair, err = mtls.LoadKeyPair(filepath.Join(profile, "cert.pem"), filepath.Join(profile, "key.pem"))
		if err != nil {
			return nil, err
		}
	}
	c.client = &http.Client{
		Timeout:   10 * time.Second,
		Transport: &http.Transport{TLSClientConfig: mtls.ClientConfig(keyPair, roots), ForceAttemptHTTP2: true},
	}
	return c, nil
}

func (c *caller) close() { c.client.CloseIdleConnections() }

// post sends a form, with a bearer token unless that is empty.
func (c *caller) post(ctx context.Context, to, token string, form url.Values) (answer, error) {
	return c.do(ctx, http.MethodPost, to, token, strings.NewReader(form.Encode()))
}

func (c *caller) do(ctx context.Context, method, to, token string, body io.Reader) (answer, error) {
	var a answer
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		a.reused, a.local = info.Reused, info.Conn.LocalAddr().String()
	}})
	r, err := http.NewRequestWithContext(ctx, method, to, body)
	if err != nil {
		return answer{}, err
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := c.client.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return answer{}, err
	}
	a.status, a.challenge, a.body = resp.StatusCode, resp.Header.Get("WWW-Authenticate"), strings.TrimSpace(string(text))
	return a, nil
}

// code returns the registered error code of a refusal: from the challenge as a resource server answers (RFC 6750,
// Section 3), else from the body as the token endpoint does (RFC 6749, Section 5.2).
func (a answer) code() string {
	if _, rest, ok := strings.Cut(a.challenge, `error="`); ok {
		code, _, _ := strings.Cut(rest, `"`)
		return code
	}
	var body struct {
		Error string `json:"error"`
	}
	_ = json.Unmarshal([]byte(a.body), &body) // no JSON, no code
	return body.Error
}

// metadata is where the challenge says that a resource's metadata is (RFC 9728, Section 5.1); empty when it does not say.
func (a answer) metadata() string {
	_, rest, _ := strings.Cut(a.challenge, `resource_metadata="`)
	place, _, _ := strings.Cut(rest, `"`)
	return place
}

// shown returns the answer as the screen shows it, without a token.
func (a answer) shown() string {
	text := a.body
	var token struct {
		AccessToken string `json:"access_token"`
	}
	if json.Unmarshal([]byte(a.body), &token) == nil && token.AccessToken != "" {
		text = strings.Replace(text, token.AccessToken, token.AccessToken[:12]+"…", 1)
	}
	if a.challenge != "" {
		text = strings.TrimSpace(text + "\nWWW-Authenticate: " + a.challenge)
	}
	return fmt.Sprintf("%d %s", a.status, text)
}

// want reports an error unless the answer is of this status and, for a refusal, of this registered code.
func (a answer) want(status int, code string) error {
	if a.status == status && a.code() == code {
		return nil
	}
	return fmt.Errorf("want %d %s, got %s", status, code, a.shown())
}
