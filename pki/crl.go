// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// MaxCRLSize is the greatest size of a revocation list that is read, in bytes of DER.
const MaxCRLSize = 16 << 20

// ErrNotCovered is returned by [CRL.Revoked] for a certificate of another issuer: the list says nothing about it.
var ErrNotCovered = errors.New("revocation list: of another issuer than the certificate")

// Revoked is one revoked certificate.
type Revoked struct {
	// Serial is the certificate's serial number.
	Serial *big.Int
	// At is when it was revoked; fractions of a second are cut off.
	At time.Time
	// Reason is why.
	Reason Reason
}

// CreateCRL writes a full revocation list (RFC 5280, Section 5) in DER. It covers everything the issuer signed,
// so it has no issuing distribution point. The number must be greater than that of every list before it
// (Section 5.2.3), which the caller's counter sees to; next is when the list goes stale. The finished list is
// verified before it is returned.
func CreateCRL(
	issuer *x509.Certificate, key crypto.Signer, number *big.Int, now, next time.Time, revoked []Revoked,
) ([]byte, error) {
	if number == nil || number.Sign() <= 0 {
		return nil, errors.New("revocation list: the number must be positive") // x509 bounds its length
	}
	if !seconds(next).After(seconds(now)) {
		return nil, errors.New("revocation list: it would be stale at birth")
	}
	tmpl := &x509.RevocationList{Number: number, ThisUpdate: seconds(now), NextUpdate: seconds(next)}
	for _, r := range revoked {
		if r.Serial == nil || r.Serial.Sign() <= 0 || !r.Reason.valid() {
			return nil, errors.New("revocation list: an entry has no serial number or an unknown reason")
		}
		tmpl.RevokedCertificateEntries = append(tmpl.RevokedCertificateEntries, x509.RevocationListEntry{
			SerialNumber: r.Serial, RevocationTime: seconds(r.At), ReasonCode: int(r.Reason),
		})
	}
	der, err := x509.CreateRevocationList(rand.Reader, tmpl, issuer, key)
	if err != nil {
		return nil, fmt.Errorf("sign revocation list: %w", err)
	}
	crl, err := ParseCRL(der)
	if err != nil {
		return nil, err
	}
	return der, crl.Check(issuer, now)
}

// CRL is a parsed revocation list. It is immutable and safe for concurrent use. Nothing it says counts before
// [CRL.Check] has accepted it.
type CRL struct {
	list    *x509.RevocationList
	revoked map[string]Revoked // by the serial number's decimal form
}

// ParseCRL reads a revocation list in DER. It refuses lists that cannot be understood completely: without number
// or nextUpdate (RFC 5280, Sections 5.1.2.5 and 5.2.3), with an unknown critical extension or a doubled one, on
// the list or on an entry (Sections 5.2 and 5.3), delta lists, and lists limited by an issuing distribution point,
// which would not say all that they seem to say.
func ParseCRL(der []byte) (*CRL, error) {
	if len(der) > MaxCRLSize {
		return nil, fmt.Errorf("revocation list: longer than %d bytes", MaxCRLSize)
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, fmt.Errorf("revocation list: %w", err)
	}
	if list.Number == nil || list.NextUpdate.IsZero() {
		return nil, errors.New("revocation list: without number or nextUpdate")
	}
	if err := checkCRLExtensions(list.Extensions, crlExtension); err != nil {
		return nil, err
	}
	crl := &CRL{list: list, revoked: make(map[string]Revoked, len(list.RevokedCertificateEntries))}
	for _, e := range list.RevokedCertificateEntries {
		if err := checkCRLExtensions(e.Extensions, crlEntryExtension); err != nil {
			return nil, err
		}
		crl.revoked[e.SerialNumber.String()] = Revoked{e.SerialNumber, e.RevocationTime, Reason(e.ReasonCode)}
	}
	return crl, nil
}

// Number returns the list's number; a later list of the same issuer has a greater one.
func (c *CRL) Number() *big.Int { return new(big.Int).Set(c.list.Number) }

// NextUpdate returns when the list goes stale.
func (c *CRL) NextUpdate() time.Time { return c.list.NextUpdate }

// Len returns how many certificates are on the list.
func (c *CRL) Len() int { return len(c.revoked) }

// Check decides whether the list may be believed now: it names this issuer, by name and key identifier, is signed
// by it, the issuer may sign lists (cRLSign), and thisUpdate ≤ now ≤ nextUpdate (RFC 5280, Section 6.3.3). An
// error means that the list says nothing; whether that is fatal is the caller's policy, and should be.
func (c *CRL) Check(issuer *x509.Certificate, now time.Time) error {
	if !bytes.Equal(c.list.RawIssuer, issuer.RawSubject) || !sameKeyID(c.list.AuthorityKeyId, issuer.SubjectKeyId) {
		return errors.New("revocation list: of another issuer")
	}
	// An issuer without a key usage extension is refused as well: authorities must have one (Section 4.2.1.3).
	if !issuer.IsCA || issuer.KeyUsage&x509.KeyUsageCRLSign == 0 {
		return errors.New("revocation list: its issuer may not sign revocation lists")
	}
	if !isGoodSignature(c.list.SignatureAlgorithm) {
		return errors.New("revocation list: signed with an algorithm that is not accepted")
	}
	if err := c.list.CheckSignatureFrom(issuer); err != nil {
		return fmt.Errorf("revocation list: %w", err)
	}
	now = seconds(now)
	if now.Before(c.list.ThisUpdate) {
		return errors.New("revocation list: not yet valid")
	}
	if now.After(c.list.NextUpdate) {
		return errors.New("revocation list: stale")
	}
	return nil
}

// Revoked looks a certificate up by issuer and serial number. The error is [ErrNotCovered] when another issuer
// signed the certificate: its serial number means nothing here.
func (c *CRL) Revoked(cert *x509.Certificate) (Revoked, bool, error) {
	if !bytes.Equal(c.list.RawIssuer, cert.RawIssuer) || !sameKeyID(c.list.AuthorityKeyId, cert.AuthorityKeyId) {
		return Revoked{}, false, ErrNotCovered
	}
	r, ok := c.revoked[cert.SerialNumber.String()]
	return r, ok, nil
}

// sameKeyID compares two key identifiers; one that is missing contradicts nothing.
func sameKeyID(a, b []byte) bool { return len(a) == 0 || len(b) == 0 || bytes.Equal(a, b) }

type extensionRule int

const (
	extensionUnknown extensionRule = iota
	extensionKnown
	extensionRefused
)

// crlExtension rules over the extensions of a list (RFC 5280, Section 5.2).
func crlExtension(id string) extensionRule {
	switch id {
	case "2.5.29.35", "2.5.29.20": // authorityKeyIdentifier, cRLNumber
		return extensionKnown
	case "2.5.29.27", "2.5.29.28": // deltaCRLIndicator, issuingDistributionPoint
		return extensionRefused
	}
	return extensionUnknown
}

// crlEntryExtension rules over the extensions of an entry (RFC 5280, Section 5.3).
func crlEntryExtension(id string) extensionRule {
	switch id {
	case "2.5.29.21", "2.5.29.24": // reasonCode, invalidityDate
		return extensionKnown
	case "2.5.29.29": // certificateIssuer: the entry is of another issuer
		return extensionRefused
	}
	return extensionUnknown
}

func checkCRLExtensions(exts []pkix.Extension, rule func(id string) extensionRule) error {
	seen := make(map[string]bool, len(exts))
	for _, ext := range exts {
		id := ext.Id.String()
		if seen[id] {
			return fmt.Errorf("revocation list: extension %s twice", id)
		}
		seen[id] = true
		r := rule(id)
		if r == extensionRefused || r == extensionUnknown && ext.Critical {
			return fmt.Errorf("revocation list: extension %s is not supported", id)
		}
	}
	return nil
}
