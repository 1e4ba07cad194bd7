// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/client"
	"github.com/certbound/certbound/tokens/mldsa"
)

// Reasons of an inspection besides those of the verifier.
const (
	// ReasonUnverified says that there was no profile to verify with.
	ReasonUnverified = "unverified"
	// ReasonMalformed says that it is not a signed token at all.
	ReasonMalformed = "malformed"
)

// Inspection is what was found out about a token. Claims are what the token says of itself: believe them only when
// Valid is true. Reason says why it is not, in one snake_case word, and Explanation in sentences whose token it is and why
// the certificate may or may not use it; it is printable.
type Inspection struct {
	Valid       bool           `json:"valid"`
	Reason      string         `json:"reason,omitempty"`
	Explanation string         `json:"explanation,omitempty"`
	Claims      map[string]any `json:"claims,omitempty"`
	Certificate *Identity      `json:"certificate,omitempty"`
}

// Identity describes a certificate. Serial is decimal.
type Identity struct {
	Thumbprint string    `json:"x5t#S256"`
	Subject    string    `json:"subject"`
	Serial     string    `json:"serial"`
	NotBefore  time.Time `json:"not_before"`
	NotAfter   time.Time `json:"not_after"`
}

// IdentityOf describes a certificate; nil for none.
func IdentityOf(cert *x509.Certificate) *Identity {
	if cert == nil {
		return nil
	}
	return &Identity{
		Thumbprint: mtls.ThumbprintOf(cert).String(), Subject: cert.Subject.String(), Serial: cert.SerialNumber.String(),
		NotBefore: cert.NotBefore.UTC(), NotAfter: cert.NotAfter.UTC(),
	}
}

// ReadCertificate returns the first certificate of a PEM file.
func ReadCertificate(path string) (*x509.Certificate, error) {
	certs, err := readCertificates(path)
	if err != nil {
		return nil, &Error{Message: err.Error(), Hint: "name a PEM file whose first certificate is the one to judge", Err: err}
	}
	return certs[0], nil
}

// Inspect takes a token apart and says whether the certificate may use it and why not, by the keys of the profile's
// issuer and for the token's own audience, since whoever inspects a token is none of them. Without a profile it verifies
// nothing. The profile is not renewed: that would change the very certificate that the token is held against.
//
// An error means that it could not be found out. Inspect blocks for two requests to the issuer, until ctx is done.
func Inspect(ctx context.Context, p *Profile, raw string, cert *x509.Certificate) (*Inspection, error) {
	found := &Inspection{Certificate: IdentityOf(cert)}
	token, err := tokens.ParseUnverified(raw)
	if err != nil {
		found.Reason = ReasonMalformed
		return found, nil
	}
	if found.Claims, err = plain(token.Claims); err != nil {
		return nil, err
	}
	if p == nil {
		found.Reason = ReasonUnverified
		found.Explanation = found.explanation(nil, cert, time.Now())
		return found, nil
	}
	found.Reason, err = p.verify(ctx, raw, audienceOf(found.Claims), mtls.NewPeer(cert))
	if err != nil {
		return nil, err
	}
	found.Valid = found.Reason == ""
	found.Explanation = found.explanation(p, cert, time.Now())
	return found, nil
}

// verify returns why the token is no good on a connection of this peer, or "".
func (p *Profile) verify(ctx context.Context, raw, audience string, peer *mtls.Peer) (reason string, err error) {
	if audience == "" {
		return "malformed_claims", nil // as the verifier would say of a token for nobody
	}
	hc := httpClient(mtls.ClientConfig(nil, p.Roots()))
	defer hc.CloseIdleConnections()
	metadata, err := client.Discover(ctx, hc, p.Issuer())
	if err != nil {
		return "", unreachable(p.Issuer(), err)
	}
	keys, err := tokens.NewKeySet(tokens.KeySetConfig{URL: metadata.JWKSURI, Client: hc, KeyTypes: mldsa.Types()})
	if err != nil {
		return "", unexpected(p.Issuer(), err)
	}
	verifier, err := tokens.NewVerifier(tokens.VerifierConfig{Issuer: p.Issuer(), Audience: audience, Keys: keys,
		Algorithms: []string{tokens.ES256, tokens.EdDSA, tokens.PS256, tokens.RS256, tokens.MLDSA44, tokens.MLDSA65}})
	if err != nil {
		return "", fmt.Errorf("inspect: %w", err)
	}
	_, err = verifier.Verify(ctx, raw, peer)
	refused, ok := errors.AsType[*tokens.Error](err)
	switch {
	case err == nil:
		return "", nil
	case ok && refused.Code == tokens.CodeInvalidToken:
		return refused.Reason, nil
	}
	return "", unreachable(metadata.JWKSURI, err)
}

// plain is claims in the types of encoding/json alone, with numbers as they were written.
func plain(claims map[string]any) (map[string]any, error) {
	encoded, err := json.Marshal(claims)
	if err != nil {
		return nil, fmt.Errorf("inspect: %w", err)
	}
	decoder := json.NewDecoder(bytes.NewReader(encoded))
	decoder.UseNumber()
	var decoded map[string]any
	if err := decoder.Decode(&decoded); err != nil {
		return nil, fmt.Errorf("inspect: %w", err)
	}
	return decoded, nil
}

// audienceOf is the first audience of a token, or "".
func audienceOf(claims map[string]any) string {
	audience := claims["aud"]
	if list, ok := audience.([]any); ok && len(list) > 0 {
		audience = list[0]
	}
	one, _ := audience.(string)
	return one
}
