// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package stepca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/certbound/certbound/pki"
)

// EC-05: RFC 5280, Sections 4.2.1.3 and 4.2.1.9: both authorities say so critically, the issuing one may sign no
// other authority, and each names its issuer's key.
func TestRFC5280_4_2_1_9_Hierarchy(t *testing.T) {
	t.Parallel()
	now := time.Date(2030, 5, 6, 7, 8, 9, 999, time.UTC)
	h := newHierarchy(t, now)
	for name, c := range map[string]struct {
		cert  *x509.Certificate
		years int
	}{"root": {h.Root, 10}, "issuing": {h.Issuing, 5}} {
		if !c.cert.IsCA || !c.cert.BasicConstraintsValid || c.cert.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign {
			t.Errorf("%s: is no proper authority", name)
		}
		if len(c.cert.ExtKeyUsage) != 0 || len(c.cert.SubjectKeyId) == 0 || c.cert.SerialNumber.BitLen() < 64 {
			t.Errorf("%s: usage, key identifier or serial number", name)
		}
		pub, ok := c.cert.PublicKey.(*ecdsa.PublicKey)
		if !ok || pub.Curve != elliptic.P256() {
			t.Errorf("%s: key %T", name, c.cert.PublicKey)
		}
		if want := now.Truncate(time.Second).AddDate(c.years, 0, 0); !c.cert.NotAfter.Equal(want) || c.cert.NotBefore.After(now) {
			t.Errorf("%s: from %v to %v", name, c.cert.NotBefore, c.cert.NotAfter)
		}
		for _, ext := range c.cert.Extensions {
			id := ext.Id.String()
			if must := id == "2.5.29.15" || id == "2.5.29.19"; ext.Critical != must {
				t.Errorf("%s: extension %s critical: %v", name, id, ext.Critical)
			}
		}
	}
	if h.Issuing.MaxPathLen != 0 || !h.Issuing.MaxPathLenZero {
		t.Error("the issuing authority may sign authorities")
	}
	if !bytes.Equal(h.Issuing.AuthorityKeyId, h.Root.SubjectKeyId) || bytes.Equal(h.Issuing.SubjectKeyId, h.Root.SubjectKeyId) {
		t.Error("key identifiers")
	}
	if h.Root.Subject.CommonName != "Certbound test Root CA" || h.Issuing.Subject.CommonName != "Certbound test Issuing CA" {
		t.Errorf("names %v, %v", h.Root.Subject, h.Issuing.Subject)
	}
	other := newHierarchy(t, now)
	if bytes.Equal(other.Root.SubjectKeyId, h.Root.SubjectKeyId) {
		t.Error("two hierarchies share a key")
	}
}

func TestNewHierarchyRefusesName(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", strings.Repeat("a", 41)} {
		if _, err := NewHierarchy(name, time.Now()); err == nil {
			t.Errorf("%q accepted", name)
		}
	}
}

// EC-10: RFC 5280, Section 5: the issuing authority signs a revocation list that its own certificates answer to.
func TestRFC5280_5_RevocationListOfTheIssuer(t *testing.T) {
	t.Parallel()
	c := newConfig(t, time.Now())
	a := newAuthorityFrom(t, c)
	chain, err := a.Sign(t.Context(), request(t, newKey(t)), profile(pki.UsageClient))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	der, err := pki.CreateCRL(c.Issuing, c.IssuingKey, big.NewInt(1), now, now.Add(time.Hour),
		[]pki.Revoked{{Serial: chain[0].SerialNumber, At: now, Reason: pki.KeyCompromise}})
	if err != nil {
		t.Fatal(err)
	}
	crl, err := pki.ParseCRL(der)
	if err != nil {
		t.Fatal(err)
	}
	if err := crl.Check(chain[1], now); err != nil {
		t.Error(err)
	}
	if r, revoked, err := crl.Revoked(chain[0]); err != nil || !revoked || r.Reason != pki.KeyCompromise {
		t.Errorf("got %v, %v, %v", r, revoked, err)
	}
}

// Path length 0 is for others to enforce: an authority under the issuing one is believed by no verifier.
func TestNoAuthorityUnderTheIssuing(t *testing.T) {
	t.Parallel()
	now := time.Now()
	h := newHierarchy(t, now)
	sub := &Hierarchy{Root: h.Issuing, RootKey: h.IssuingKey}
	cert, key, err := newAuthority("Rogue", subordinateTemplate, now, now.Add(time.Hour), sub)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Minute),
		DNSNames: []string{"a.example"},
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, cert, newKey(t).Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(h.Root)
	between.AddCert(h.Issuing)
	between.AddCert(cert)
	if _, err := parsed.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between}); err == nil {
		t.Error("a leaf under a third authority verifies")
	}
}

const subordinateTemplate = `{"subject": {{ toJson .Subject }}, "keyUsage": ["certSign"], "basicConstraints": {"isCA": true, "maxPathLen": 0}}`
