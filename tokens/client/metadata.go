// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
)

// maxMetadataBytes bounds the metadata document: a few hundred members would fit.
const maxMetadataBytes = 64 << 10

// Metadata is the part of an issuer's metadata (RFC 8414, Section 2) that a client needs.
type Metadata struct {
	Issuer                string    `json:"issuer"`
	TokenEndpoint         string    `json:"token_endpoint"`
	IntrospectionEndpoint string    `json:"introspection_endpoint,omitempty"`
	RevocationEndpoint    string    `json:"revocation_endpoint,omitempty"`
	JWKSURI               string    `json:"jwks_uri,omitempty"`
	Aliases               Endpoints `json:"mtls_endpoint_aliases"`
}

// Endpoints are the mtls_endpoint_aliases (RFC 8705, Section 5): where clients with certificates go instead.
type Endpoints struct {
	TokenEndpoint         string `json:"token_endpoint,omitempty"`
	IntrospectionEndpoint string `json:"introspection_endpoint,omitempty"`
	RevocationEndpoint    string `json:"revocation_endpoint,omitempty"`
}

// MTLSTokenEndpoint is the alias when there is one, else the token endpoint (RFC 8705, Section 5).
func (m *Metadata) MTLSTokenEndpoint() string {
	if m.Aliases.TokenEndpoint != "" {
		return m.Aliases.TokenEndpoint
	}
	return m.TokenEndpoint
}

// check refuses metadata of another issuer (RFC 8414, Section 3.3) and an endpoint that is not https.
func (m *Metadata) check(issuer string) error {
	if m.Issuer != issuer {
		return fmt.Errorf("metadata of issuer %q names the issuer %q", issuer, printable(m.Issuer, 256))
	}
	if err := checkEndpoint(m.MTLSTokenEndpoint()); err != nil {
		return fmt.Errorf("metadata of issuer %q: token endpoint: %w", issuer, err)
	}
	return nil
}

// Discover reads the metadata of an issuer from its well-known place (RFC 8414, Section 3) and checks that it is this
// issuer's. It follows no redirect and blocks until the answer is there or ctx ends. The client decides whom to
// trust; a certificate is not needed. Its fields CheckRedirect and Jar are ignored.
func Discover(ctx context.Context, hc *http.Client, issuer string) (*Metadata, error) {
	if hc == nil {
		return nil, errors.New("discover: no http client")
	}
	location, err := wellKnown(issuer)
	if err != nil {
		return nil, fmt.Errorf("discover: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, location, nil)
	if err != nil {
		return nil, fmt.Errorf("discover: %w", err)
	}
	req.Header.Set("Accept", "application/json")
	direct := &http.Client{Transport: hc.Transport, Timeout: hc.Timeout, CheckRedirect: noRedirect}
	resp, err := direct.Do(req)
	if err != nil {
		return nil, fmt.Errorf("discover: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("discover: %s answered %d", location, resp.StatusCode)
	}
	body, err := readJSON(resp, maxMetadataBytes)
	if err != nil {
		return nil, fmt.Errorf("discover: %s: %w", location, err)
	}
	return parseMetadata(body, issuer)
}

func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// parseMetadata takes the members by their exact names: encoding/json alone would let "Issuer" fill issuer.
func parseMetadata(body []byte, issuer string) (*Metadata, error) {
	members, err := object(body)
	if err != nil {
		return nil, fmt.Errorf("metadata of issuer %q: %w", issuer, err)
	}
	m := &Metadata{}
	fill(members, map[string]*string{
		"issuer":                 &m.Issuer,
		"token_endpoint":         &m.TokenEndpoint,
		"introspection_endpoint": &m.IntrospectionEndpoint,
		"revocation_endpoint":    &m.RevocationEndpoint,
		"jwks_uri":               &m.JWKSURI,
	})
	if raw, ok := members["mtls_endpoint_aliases"]; ok {
		aliases, err := object(raw)
		if err != nil {
			return nil, fmt.Errorf("metadata of issuer %q: mtls_endpoint_aliases: %w", issuer, err)
		}
		fill(aliases, map[string]*string{
			"token_endpoint":         &m.Aliases.TokenEndpoint,
			"introspection_endpoint": &m.Aliases.IntrospectionEndpoint,
			"revocation_endpoint":    &m.Aliases.RevocationEndpoint,
		})
	}
	if err := m.check(issuer); err != nil {
		return nil, err
	}
	return m, nil
}

// fill copies string members; one of another type counts as absent.
func fill(members map[string]json.RawMessage, into map[string]*string) {
	for name, target := range into {
		var s string
		if json.Unmarshal(members[name], &s) == nil {
			*target = s
		}
	}
}

// wellKnown inserts the well-known part between host and path and drops a trailing slash (RFC 8414, Section 3.1).
func wellKnown(issuer string) (string, error) {
	if err := checkIssuer(issuer); err != nil {
		return "", err
	}
	u, err := url.Parse(issuer)
	if err != nil {
		return "", fmt.Errorf("issuer: %w", err)
	}
	path := strings.TrimSuffix(u.EscapedPath(), "/")
	return "https://" + u.Host + "/.well-known/oauth-authorization-server" + path, nil
}

// checkIssuer demands https without query or fragment (RFC 8414, Section 2).
func checkIssuer(issuer string) error {
	u, err := url.Parse(issuer)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.Opaque != "" ||
		strings.ContainsAny(issuer, "?#") {
		return fmt.Errorf("issuer %q is not an https URL without query and fragment", printable(issuer, 256))
	}
	return nil
}

// checkEndpoint demands https (RFC 6749, Section 3.2) and no fragment or user information.
func checkEndpoint(endpoint string) error {
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.Opaque != "" || u.Fragment != "" {
		return fmt.Errorf("%q is not an https URL", printable(endpoint, 256))
	}
	return nil
}

// readJSON reads a body of at most limit bytes that says it is JSON. The limit holds after decompression.
func readJSON(resp *http.Response, limit int64) ([]byte, error) {
	kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil || kind != "application/json" {
		return nil, errors.New("the answer is not application/json")
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	if int64(len(body)) > limit {
		return nil, fmt.Errorf("the answer is longer than %d bytes", limit)
	}
	return body, nil
}

// object reads one JSON object into its members and refuses duplicate names, of which encoding/json would silently
// take the last.
func object(data []byte) (map[string]json.RawMessage, error) {
	if !json.Valid(data) {
		return nil, errors.New("not valid JSON")
	}
	dec := json.NewDecoder(strings.NewReader(string(data)))
	if first, err := dec.Token(); err != nil || first != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	members := map[string]json.RawMessage{}
	for dec.More() {
		token, err := dec.Token()
		name, ok := token.(string)
		if err != nil || !ok {
			return nil, errors.New("not a JSON object")
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, errors.New("not a JSON object")
		}
		if _, twice := members[name]; twice {
			return nil, errors.New("a member occurs twice")
		}
		members[name] = value
	}
	return members, nil
}

// printable makes a foreign text fit for an error message: cut, and without control or non-ASCII characters.
func printable(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit]
	}
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r > 0x7e {
			return -1
		}
		return r
	}, s)
}
