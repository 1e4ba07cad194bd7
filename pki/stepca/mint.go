// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package stepca

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"time"

	"github.com/smallstep/certificates/authority/provisioner"
	"go.step.sm/crypto/jose"

	"github.com/certbound/certbound/pki"
)

const (
	provisionerName = "certbound"
	// audienceHost is never resolved or dialled: the token's audience is a name, and only this process reads it.
	audienceHost  = "ca.certbound.internal"
	audience      = "https://" + audienceHost + "/1.0/sign"
	tokenLifetime = time.Minute
	// libraryLeeway is how far the library stretches a token's life.
	libraryLeeway = time.Minute

	// template takes everything from the token and nothing from the request: .Insecure is never read.
	template = `{
	"subject": {"commonName": {{ toJson .Subject.CommonName }}},
	"sans": {{ toJson .SANs }},
	"keyUsage": ["digitalSignature"],
	"extKeyUsage": {{ toJson .Token.certbound.usages }},
	"crlDistributionPoints": {{ toJson .Token.certbound.crls }}
}`
)

// mint makes the one-time tokens that the library wants for each signing. Its key is made at start, lives in memory
// and signs nothing else; no token leaves the process.
type mint struct {
	public jose.JSONWebKey
	signer jose.Signer
}

// tokenClaims are the claims of the library's JWK provisioner, and ours for the template.
type tokenClaims struct {
	jose.Claims
	SANs         []string      `json:"sans"`
	Confirmation confirmation  `json:"cnf"`
	Certbound    templateFacts `json:"certbound"`
}

type confirmation struct {
	// Fingerprint pins the token to one certificate request.
	Fingerprint string `json:"x5rt#S256"`
}

type templateFacts struct {
	Usages []string `json:"usages"`
	CRLs   []string `json:"crls"`
}

func newMint() (*mint, error) {
	key, err := jose.GenerateJWK("EC", "P-256", jose.ES256, "sig", "", 0)
	if err != nil {
		return nil, fmt.Errorf("make the token key: %w", err)
	}
	opts := new(jose.SignerOptions).WithType("JWT").WithHeader("kid", key.KeyID)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key.Key}, opts)
	if err != nil {
		return nil, fmt.Errorf("make the token key: %w", err)
	}
	return &mint{public: key.Public(), signer: signer}, nil
}

// provisioner is the library's half: it knows the public key.
func (m *mint) provisioner() *provisioner.JWK {
	return &provisioner.JWK{
		Type:    "JWK",
		Name:    provisionerName,
		Key:     &m.public,
		Options: &provisioner.Options{X509: &provisioner.X509Options{Template: template}},
	}
}

// token makes a token for one signing: these names, this request, this minute. Its id is random, because the
// library takes whoever knows the id for the one who used it.
func (m *mint) token(csr *x509.CertificateRequest, p pki.Profile, now time.Time) (string, error) {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	fingerprint := sha256.Sum256(csr.Raw)
	claims := tokenClaims{
		Claims: jose.Claims{
			ID:        base64.RawURLEncoding.EncodeToString(id[:]),
			Issuer:    provisionerName,
			Subject:   p.Subject(),
			Audience:  jose.Audience{audience},
			IssuedAt:  jose.NewNumericDate(now),
			NotBefore: jose.NewNumericDate(now),
			Expiry:    jose.NewNumericDate(now.Add(tokenLifetime)),
		},
		SANs:         names(p),
		Confirmation: confirmation{base64.RawURLEncoding.EncodeToString(fingerprint[:])},
		Certbound:    templateFacts{Usages: usages(p.Usage), CRLs: []string{}},
	}
	if p.CRLURL != "" {
		claims.Certbound.CRLs = []string{p.CRLURL}
	}
	token, err := jose.Signed(m.signer).Claims(claims).CompactSerialize()
	if err != nil {
		return "", fmt.Errorf("mint the one-time token: %w", err)
	}
	return token, nil
}

// names lists the profile's names as the library sorts them out again: addresses, then what has a scheme, then DNS
// names. Whatever it makes of them is compared with the profile before and after the signing.
func names(p pki.Profile) []string {
	list := append(p.AllURIs(), p.DNSNames...)
	for _, ip := range p.IPs {
		list = append(list, ip.Unmap().String())
	}
	return list
}

// usages are the names of the extended key usages in the library's templates.
func usages(u pki.Usage) []string {
	var list []string
	for _, eku := range u.ExtKeyUsages() {
		switch eku {
		case x509.ExtKeyUsageServerAuth:
			list = append(list, "serverAuth")
		case x509.ExtKeyUsageClientAuth:
			list = append(list, "clientAuth")
		}
	}
	return list
}
