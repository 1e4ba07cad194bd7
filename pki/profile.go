// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"
)

// Usage says what a certificate is for.
type Usage string

// The usages and the extended key usages (RFC 5280, Section 4.2.1.12) that they stand for.
const (
	UsageClient Usage = "client" // clientAuth
	UsageServer Usage = "server" // serverAuth
	UsageBoth   Usage = "both"   // serverAuth and clientAuth
)

// ParseUsage reads a usage by its name.
func ParseUsage(s string) (Usage, error) {
	switch u := Usage(s); u {
	case UsageClient, UsageServer, UsageBoth:
		return u, nil
	}
	return "", fmt.Errorf("unknown usage %s: client, server or both", quote(s))
}

// ExtKeyUsages returns the extended key usages, nil for an unknown usage.
func (u Usage) ExtKeyUsages() []x509.ExtKeyUsage {
	switch u {
	case UsageClient:
		return []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	case UsageServer:
		return []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	case UsageBoth:
		return []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	return nil
}

// Profile is what a certificate shall say, exactly: everything in it is in the certificate and nothing else is.
// It comes from the registry, never from a request or an older certificate.
type Profile struct {
	// ClientID is the registered client; it becomes the common name and, with TrustDomain, the SPIFFE ID. Empty
	// for the service's own server certificate, which has neither.
	ClientID string
	// TrustDomain is the installation's trust domain; required with ClientID.
	TrustDomain string
	// CommonName is the common name when there is no ClientID, 1 to 64 printable ASCII characters.
	CommonName string
	// URIs are further URI names beside the SPIFFE ID; see [CheckURI].
	URIs []string
	// DNSNames are the DNS names; see [CheckDNSName].
	DNSNames []string
	// IPs are the addresses. IPv4 mapped into IPv6 counts as IPv4.
	IPs []netip.Addr
	// Usage is what the certificate is for.
	Usage Usage
	// NotBefore and NotAfter are the first and the last second of validity (RFC 5280, Section 4.1.2.5); fractions
	// of a second are cut off.
	NotBefore, NotAfter time.Time
	// CRLURL is the one CRL distribution point, empty for none. The authority sets it.
	CRLURL string
}

// Subject returns the common name.
func (p Profile) Subject() string {
	if p.ClientID != "" {
		return p.ClientID
	}
	return p.CommonName
}

// AllURIs returns the URI names, the SPIFFE ID first.
func (p Profile) AllURIs() []string {
	if p.ClientID == "" {
		return slices.Clone(p.URIs)
	}
	return append([]string{ClientURI(p.TrustDomain, p.ClientID)}, p.URIs...)
}

// Validate refuses a profile that no certificate should have: bad names, none at all, an unknown usage, dates in
// the wrong order.
func (p Profile) Validate() error {
	if err := p.validateSubject(); err != nil {
		return err
	}
	if err := p.validateNames(); err != nil {
		return err
	}
	if p.Usage.ExtKeyUsages() == nil {
		return fmt.Errorf("unknown usage %s", quote(string(p.Usage)))
	}
	if seconds(p.NotAfter).Before(seconds(p.NotBefore)) {
		return errors.New("the certificate would end before it begins")
	}
	if p.NotBefore.UTC().Year() < 1950 || p.NotAfter.UTC().Year() > 9999 {
		return errors.New("the dates cannot be written in a certificate") // RFC 5280, Section 4.1.2.5
	}
	return nil
}

func (p Profile) validateSubject() error {
	if p.ClientID != "" {
		if p.CommonName != "" && p.CommonName != p.ClientID {
			return errors.New("a client's common name is its id")
		}
		if err := CheckClientID(p.ClientID); err != nil {
			return err
		}
		return CheckTrustDomain(p.TrustDomain)
	}
	// ub-common-name is 64 (RFC 5280, Appendix A.1).
	if p.CommonName == "" || len(p.CommonName) > 64 {
		return errors.New("a common name of 1 to 64 characters is needed")
	}
	for i := range len(p.CommonName) {
		if p.CommonName[i] < ' ' || p.CommonName[i] >= 0x7f {
			return errors.New("the common name may hold printable ASCII only")
		}
	}
	return nil
}

func (p Profile) validateNames() error {
	for _, name := range p.DNSNames {
		if err := CheckDNSName(name); err != nil {
			return err
		}
	}
	for _, uri := range p.URIs {
		if err := CheckURI(uri); err != nil {
			return err
		}
	}
	for _, ip := range p.IPs {
		if err := CheckIP(ip); err != nil {
			return err
		}
	}
	if len(p.DNSNames)+len(p.IPs)+len(p.AllURIs()) == 0 {
		return errors.New("a certificate needs at least one name")
	}
	return nil
}

// CheckTemplate judges what is about to be signed: names, usages, dates and the absence of authority. What only a
// finished certificate has (serial number, key identifiers, encodings) is left to [Profile.Check].
func (p Profile) CheckTemplate(cert *x509.Certificate) error {
	if err := p.Validate(); err != nil {
		return err
	}
	if err := p.checkNames(cert); err != nil {
		return err
	}
	if err := p.checkUsage(cert); err != nil {
		return err
	}
	if !cert.NotBefore.Equal(seconds(p.NotBefore)) || !cert.NotAfter.Equal(seconds(p.NotAfter)) {
		return errors.New("certificate: the dates are not those of the profile")
	}
	return nil
}

// Check judges a finished certificate: it is exactly this profile, for exactly this key, and no more. It does not
// verify who signed it.
func (p Profile) Check(cert *x509.Certificate, publicKey crypto.PublicKey) error {
	if cert == nil || len(cert.Raw) == 0 {
		return errors.New("certificate: none given")
	}
	if err := p.CheckTemplate(cert); err != nil {
		return err
	}
	if err := checkSerial(cert); err != nil {
		return err
	}
	if err := p.checkExtensions(cert); err != nil {
		return err
	}
	key, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || publicKey == nil || !key.Equal(publicKey) {
		return errors.New("certificate: another key than the request's")
	}
	return CheckPublicKey(cert.PublicKey)
}

func (p Profile) checkNames(cert *x509.Certificate) error {
	if err := p.checkSubject(cert); err != nil {
		return err
	}
	var uris []string
	for _, u := range cert.URIs {
		uris = append(uris, u.String())
	}
	if !sameSet(uris, p.AllURIs()) {
		return errors.New("certificate: URI names differ from the profile")
	}
	if !sameSet(cert.DNSNames, p.DNSNames) {
		return errors.New("certificate: DNS names differ from the profile")
	}
	if !sameSet(addresses(cert.IPAddresses), unmapped(p.IPs)) {
		return errors.New("certificate: IP addresses differ from the profile")
	}
	if len(cert.EmailAddresses) > 0 {
		return errors.New("certificate: an e-mail name, which no profile has")
	}
	return nil
}

// checkSubject wants the common name and no other attribute. The raw subject, where there is one, says more than
// the fields, which drop what they have no place for.
func (p Profile) checkSubject(cert *x509.Certificate) error {
	rdns := cert.Subject.ToRDNSequence()
	if len(cert.RawSubject) > 0 {
		if _, err := asn1.Unmarshal(cert.RawSubject, &rdns); err != nil {
			return errors.New("certificate: the subject cannot be read")
		}
	}
	if len(rdns) != 1 || len(rdns[0]) != 1 {
		return errors.New("certificate: the subject is not one common name")
	}
	commonName := asn1.ObjectIdentifier{2, 5, 4, 3}
	value, ok := rdns[0][0].Value.(string)
	if !ok || !rdns[0][0].Type.Equal(commonName) || value != p.Subject() {
		return errors.New("certificate: the common name is not that of the profile")
	}
	return nil
}

func (p Profile) checkUsage(cert *x509.Certificate) error {
	if cert.IsCA {
		return errors.New("certificate: it would be an authority")
	}
	if cert.KeyUsage != x509.KeyUsageDigitalSignature {
		return errors.New("certificate: the key usage is not digitalSignature alone")
	}
	if !sameSet(cert.ExtKeyUsage, p.Usage.ExtKeyUsages()) || len(cert.UnknownExtKeyUsage) > 0 {
		return errors.New("certificate: the extended key usage is not that of the profile")
	}
	var points []string
	if p.CRLURL != "" {
		points = []string{p.CRLURL}
	}
	if !slices.Equal(cert.CRLDistributionPoints, points) {
		return errors.New("certificate: the CRL distribution point is not that of the profile")
	}
	if len(cert.OCSPServer)+len(cert.IssuingCertificateURL)+len(cert.PolicyIdentifiers)+len(cert.Policies) > 0 {
		return errors.New("certificate: carries addresses or policies that no profile has")
	}
	return nil
}

// checkSerial wants a positive number of at most 20 octets (RFC 5280, Section 4.1.2.2) and at least 64 bits.
func checkSerial(cert *x509.Certificate) error {
	n := cert.SerialNumber
	if n == nil || n.Sign() <= 0 || n.BitLen() < 64 || n.BitLen()/8+1 > 20 {
		return errors.New("certificate: the serial number is not positive, of 64 bits at least and 20 octets at most")
	}
	return nil
}

// checkExtensions wants each extension of the profile, with its criticality, and no other. x509 refuses doubled
// ones when it parses.
func (p Profile) checkExtensions(cert *x509.Certificate) error {
	const (
		optional = 1 << iota
		critical
	)
	rules := map[string]int{
		"2.5.29.14": 0,                   // subjectKeyIdentifier
		"2.5.29.15": critical,            // keyUsage
		"2.5.29.17": 0,                   // subjectAltName; the subject is never empty
		"2.5.29.19": optional | critical, // basicConstraints
		"2.5.29.35": 0,                   // authorityKeyIdentifier
		"2.5.29.37": 0,                   // extKeyUsage
	}
	if p.CRLURL != "" {
		rules["2.5.29.31"] = 0 // cRLDistributionPoints
	}
	for _, ext := range cert.Extensions {
		id := ext.Id.String()
		rule, ok := rules[id]
		if !ok {
			return fmt.Errorf("certificate: extension %s, which no profile has", id)
		}
		if ext.Critical != (rule&critical != 0) {
			return fmt.Errorf("certificate: extension %s has the wrong criticality", id)
		}
		if id == "2.5.29.17" && !hasOnlyKnownNames(ext.Value, cert) {
			return errors.New("certificate: a name of a kind that no profile has")
		}
		delete(rules, id)
	}
	for id, rule := range maps.All(rules) {
		if rule&optional == 0 {
			return fmt.Errorf("certificate: extension %s is missing", id)
		}
	}
	if len(cert.SubjectKeyId) == 0 || len(cert.AuthorityKeyId) == 0 || bytes.Equal(cert.SubjectKeyId, cert.AuthorityKeyId) {
		return errors.New("certificate: the key identifiers are missing or equal")
	}
	return nil
}

// hasOnlyKnownNames counts the names in the extension: x509 passes over kinds that it does not know (directoryName,
// otherName), so more names than it parsed means one that nobody judged (RFC 5280, Section 4.2.1.6).
func hasOnlyKnownNames(value []byte, cert *x509.Certificate) bool {
	var names []asn1.RawValue
	rest, err := asn1.Unmarshal(value, &names)
	known := len(cert.DNSNames) + len(cert.URIs) + len(cert.IPAddresses) + len(cert.EmailAddresses)
	return err == nil && len(rest) == 0 && len(names) == known
}

// seconds cuts off what a certificate cannot say.
func seconds(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }

func addresses(ips []net.IP) []netip.Addr {
	var out []netip.Addr
	for _, ip := range ips {
		addr, _ := netip.AddrFromSlice(ip) // an impossible length gives the invalid address, which matches none
		out = append(out, addr.Unmap())
	}
	return out
}

func unmapped(ips []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, ip := range ips {
		out = append(out, ip.Unmap())
	}
	return out
}

// sameSet compares without regard to order. A member that stands twice on the left is one too many.
func sameSet[T comparable](got, want []T) bool {
	set := make(map[T]bool, len(want))
	for _, w := range want {
		set[w] = true
	}
	if len(got) != len(set) {
		return false
	}
	for _, g := range got {
		if !set[g] {
			return false
		}
		delete(set, g)
	}
	return true
}
