// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package stepca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"go.step.sm/crypto/x509util"
)

const (
	rootYears    = 10
	issuingYears = 5
	// backdate lets a certificate begin a little before the authority was made, for clocks that run behind.
	backdate = 5 * time.Minute
)

// Hierarchy is a new root and the issuing authority under it, with their private keys. The root key is needed
// only to sign another issuing authority.
type Hierarchy struct {
	Root, Issuing       *x509.Certificate
	RootKey, IssuingKey crypto.Signer
}

// NewHierarchy makes a hierarchy of ECDSA P-256 keys: a root of ten years and an issuing authority of five that may
// sign no further authorities (path length 0). name, 1 to 40 characters, begins both common names.
func NewHierarchy(name string, now time.Time) (*Hierarchy, error) {
	if name == "" || len(name) > 40 {
		return nil, errors.New("certificate authority: a name of 1 to 40 characters is needed")
	}
	now = now.UTC().Truncate(time.Second)
	var h Hierarchy
	var err error
	h.Root, h.RootKey, err = newAuthority(name+" Root CA", x509util.DefaultRootTemplate, now, now.AddDate(rootYears, 0, 0), nil)
	if err != nil {
		return nil, fmt.Errorf("make the root certificate: %w", err)
	}
	h.Issuing, h.IssuingKey, err = newAuthority(
		name+" Issuing CA", x509util.DefaultIntermediateTemplate, now, now.AddDate(issuingYears, 0, 0), &h)
	if err != nil {
		return nil, fmt.Errorf("make the issuing certificate: %w", err)
	}
	return &h, checkHierarchy(h.Root, h.Issuing, h.IssuingKey)
}

// newAuthority makes one authority; without a parent it signs itself.
func newAuthority(
	cn, template string, now, end time.Time, parent *Hierarchy,
) (*x509.Certificate, crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	csr, err := x509util.CreateCertificateRequest(cn, nil, key)
	if err != nil {
		return nil, nil, err
	}
	data := x509util.CreateTemplateData(cn, nil)
	draft, err := x509util.NewCertificate(csr, x509util.WithTemplate(template, data))
	if err != nil {
		return nil, nil, err
	}
	tmpl := draft.GetCertificate()
	tmpl.NotBefore, tmpl.NotAfter = now.Add(-backdate), end
	issuer, signer := tmpl, crypto.Signer(key)
	if parent != nil {
		issuer, signer = parent.Root, parent.RootKey
	}
	cert, err := x509util.CreateCertificate(tmpl, issuer, key.Public(), signer)
	return cert, key, err
}
