// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/pki"
)

const (
	resource = "https://faults.example"
	scope    = "work"

	requestTimeout = 20 * time.Second
	maxAnswer      = 1 << 20
)

// A caller makes requests over one kept-alive connection at a time.
type caller struct {
	pair *mtls.KeyPair
	http *http.Client
}

// newCaller returns a caller that shows the certificate of pair, or none.
func newCaller(pair *mtls.KeyPair, roots *x509.CertPool) *caller {
	return &caller{pair: pair, http: &http.Client{
		Timeout:   requestTimeout,
		Transport: &http.Transport{TLSClientConfig: mtls.ClientConfig(pair, roots), MaxConnsPerHost: 1},
	}}
}

func (c *caller) close() { c.http.CloseIdleConnections() }

func (c *caller) thumbprint() string { return mtls.ThumbprintOf(c.pair.Current().Leaf).String() }

// An answer is one that arrived whole.
type answer struct {
	status      int
	correlation string
	retryAfter  string
	body        []byte
}

func (a answer) String() string {
	return fmt.Sprintf("%d %s", a.status, bytes.TrimSpace(a.body[:min(len(a.body), 500)]))
}

// decode reads a JSON answer of status 200 or 201.
func (a answer) decode(into any) error {
	if a.status != http.StatusOK && a.status != http.StatusCreated {
		return errors.New("answered " + a.String())
	}
	return json.Unmarshal(a.body, into)
}

// do makes one request. Its error says that no answer arrived, so that nobody knows what was done.
func (c *caller) do(ctx context.Context, method, to, media, bearer string, body []byte) (answer, error) {
	r, err := http.NewRequestWithContext(ctx, method, to, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	if media != "" {
		r.Header.Set("Content-Type", media)
	}
	if bearer != "" {
		r.Header.Set("Authorization", "Bearer "+bearer)
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	a := answer{status: resp.StatusCode, correlation: resp.Header.Get("X-Correlation-Id"), retryAfter: resp.Header.Get("Retry-After")}
	a.body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	return a, err
}

func (c *caller) postJSON(ctx context.Context, to, bearer string, in any) (answer, error) {
	body, err := json.Marshal(in)
	if err != nil {
		return answer{}, err
	}
	return c.do(ctx, http.MethodPost, to, "application/json", bearer, body)
}

// askToken asks for a token for a resource.
func (c *caller) askToken(ctx context.Context, endpoint, client, forResource string) (answer, error) {
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {client}, "resource": {forResource}}
	return c.do(ctx, http.MethodPost, endpoint, "application/x-www-form-urlencoded", "", []byte(form.Encode()))
}

// claims are what of a token is held against the journal.
type claims struct {
	ID           string `json:"jti"`
	Client       string `json:"client_id"`
	IssuedAt     int64  `json:"iat"`
	Confirmation struct {
		Thumbprint string `json:"x5t#S256"`
	} `json:"cnf"`
}

// token reads the answer to askToken. Nobody verifies the signature here: resource servers have tests for that.
func (a answer) token() (text string, _ claims, _ error) {
	var got struct {
		AccessToken string `json:"access_token"`
	}
	if err := a.decode(&got); err != nil {
		return "", claims{}, err
	}
	parts := strings.Split(got.AccessToken, ".")
	if len(parts) != 3 {
		return "", claims{}, errors.New("the answer holds no token")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "", claims{}, fmt.Errorf("payload of the token: %w", err)
	}
	var c claims
	err = json.Unmarshal(payload, &c)
	return got.AccessToken, c, err
}

// An enrolment is a code with the key that it is redeemed for. The same request may be made again.
type enrolment struct {
	request pki.EnrollRequest
	key     *ecdsa.PrivateKey
}

func newEnrolment(text, issuer string) (*enrolment, error) {
	code, err := pki.ParseCode(strings.TrimSpace(text))
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	csr, err := pki.CreateRequest(key)
	if err != nil {
		return nil, err
	}
	return &enrolment{request: pki.NewEnrollRequest(code, issuer, csr), key: key}, nil
}

// certificate reads the answer to an enrolment or a renewal.
func (a answer) certificate(key *ecdsa.PrivateKey) (*mtls.KeyPair, error) {
	var got pki.EnrollResponse
	if err := a.decode(&got); err != nil {
		return nil, err
	}
	chain, err := mtls.ParseCertificates([]byte(got.Certificate))
	if err != nil {
		return nil, err
	}
	pair := tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, cert := range chain {
		pair.Certificate = append(pair.Certificate, cert.Raw)
	}
	return mtls.NewKeyPair(pair)
}
