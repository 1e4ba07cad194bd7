// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// testCA is one authority that signs whatever it is told, right or wrong.
type testCA struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newCA(tb testing.TB, change func(*x509.Certificate)) *testCA {
	tb.Helper()
	key := newKey(tb)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Test CA"},
		NotBefore: testNow().Add(-time.Hour), NotAfter: testNow().Add(240 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	change(tmpl)
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return &testCA{cert, key}
}

func plainCA(tb testing.TB) *testCA { return newCA(tb, func(*x509.Certificate) {}) }

func (ca *testCA) sign(tb testing.TB, tmpl *x509.Certificate, pub crypto.PublicKey) *x509.Certificate {
	tb.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, pub, ca.key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return cert
}

func testNow() time.Time { return time.Date(2030, 5, 6, 7, 8, 9, 0, time.UTC) }

func testProfile() Profile {
	return Profile{
		ClientID: "payments", TrustDomain: "abc.certbound.internal",
		DNSNames: []string{"payments.example", "b.example"}, URIs: []string{"https://payments.example/"},
		IPs:   []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("2001:db8::1")},
		Usage: UsageClient, CRLURL: "http://crl.example/crl",
		NotBefore: testNow(), NotAfter: testNow().Add(24 * time.Hour),
	}
}

// template is the certificate that satisfies testProfile.
func template(tb testing.TB) *x509.Certificate {
	tb.Helper()
	var uris []*url.URL
	for _, s := range testProfile().AllURIs() {
		u, err := url.Parse(s)
		if err != nil {
			tb.Fatal(err)
		}
		uris = append(uris, u)
	}
	return &x509.Certificate{
		SerialNumber: new(big.Int).Lsh(big.NewInt(1), 120), Subject: pkix.Name{CommonName: "payments"},
		NotBefore: testNow(), NotAfter: testNow().Add(24 * time.Hour),
		DNSNames: []string{"b.example", "payments.example"}, URIs: uris,
		IPAddresses:           []net.IP{net.ParseIP("2001:db8::1"), net.ParseIP("10.0.0.1")},
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		SubjectKeyId:          []byte{1, 2, 3, 4},
		CRLDistributionPoints: []string{"http://crl.example/crl"},
	}
}

// EC-05: RFC 5280, Sections 4.2.1.1 to 4.2.1.12: key usage digitalSignature and critical, the extended key usage
// that was registered, both key identifiers, the registered names; one thing more or less and it is refused.
func TestRFC5280_4_2_1_ProfileIsExact(t *testing.T) {
	t.Parallel()
	ca, key := plainCA(t), newKey(t)
	if err := testProfile().Check(ca.sign(t, template(t), key.Public()), key.Public()); err != nil {
		t.Fatalf("the exact certificate: %v", err)
	}
	other, err := url.Parse("spiffe://abc.certbound.internal/client/admin")
	if err != nil {
		t.Fatal(err)
	}
	ext := func(der []byte, critical bool, id ...int) []pkix.Extension {
		return []pkix.Extension{{Id: id, Critical: critical, Value: der}}
	}
	keyUsage := []byte{3, 2, 7, 0x80}
	policy, err := x509.OIDFromInts([]uint64{1, 2, 3})
	if err != nil {
		t.Fatal(err)
	}
	changes := map[string]func(*x509.Certificate){
		"other CN":         func(c *x509.Certificate) { c.Subject.CommonName = "admin" },
		"no CN":            func(c *x509.Certificate) { c.Subject.CommonName = "" },
		"organisation too": func(c *x509.Certificate) { c.Subject.Organization = []string{"x"} },
		"unknown attribute": func(c *x509.Certificate) {
			c.Subject.ExtraNames = []pkix.AttributeTypeAndValue{{Type: asn1.ObjectIdentifier{1, 2, 3}, Value: "x"}}
		},
		"second CN": func(c *x509.Certificate) {
			c.Subject.ExtraNames = []pkix.AttributeTypeAndValue{{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "payments"}, {Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "admin"}}
		},
		"second SPIFFE ID":  func(c *x509.Certificate) { c.URIs = append(c.URIs, other) },
		"other SPIFFE ID":   func(c *x509.Certificate) { c.URIs[0] = other },
		"no URI":            func(c *x509.Certificate) { c.URIs = nil },
		"URI twice":         func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) },
		"DNS name more":     func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "admin.example") },
		"DNS name fewer":    func(c *x509.Certificate) { c.DNSNames = c.DNSNames[:1] },
		"DNS name twice":    func(c *x509.Certificate) { c.DNSNames[1] = c.DNSNames[0] },
		"DNS name with NUL": func(c *x509.Certificate) { c.DNSNames[0] = "b.example\x00.evil" },
		"IP more":           func(c *x509.Certificate) { c.IPAddresses = append(c.IPAddresses, net.IP{127, 0, 0, 1}) },
		"IP fewer":          func(c *x509.Certificate) { c.IPAddresses = c.IPAddresses[:1] },
		"e-mail":            func(c *x509.Certificate) { c.EmailAddresses = []string{"a@b.example"} },
		"CA":                func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true },
		"certSign":          func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign },
		"encipherment":      func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageKeyEncipherment },
		"no key usage":      func(c *x509.Certificate) { c.KeyUsage = 0 },
		"uncritical KU":     func(c *x509.Certificate) { c.ExtraExtensions = ext(keyUsage, false, 2, 5, 29, 15) },
		"server usage":      func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} },
		"both usages":       func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) },
		"any usage":         func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} },
		"no usage":          func(c *x509.Certificate) { c.ExtKeyUsage = nil },
		"unknown usage too": func(c *x509.Certificate) { c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{1, 2, 3}} },
		"starts earlier":    func(c *x509.Certificate) { c.NotBefore = c.NotBefore.Add(-time.Second) },
		"ends later":        func(c *x509.Certificate) { c.NotAfter = c.NotAfter.Add(time.Second) },
		"ends earlier":      func(c *x509.Certificate) { c.NotAfter = c.NotAfter.Add(-time.Second) },
		"small serial":      func(c *x509.Certificate) { c.SerialNumber = big.NewInt(1 << 60) },
		"long serial": func(c *x509.Certificate) {
			c.SerialNumber = new(big.Int).Lsh(big.NewInt(1), 159-1)
			c.SerialNumber.Lsh(c.SerialNumber, 1)
		},
		"no CRL point":    func(c *x509.Certificate) { c.CRLDistributionPoints = nil },
		"other CRL point": func(c *x509.Certificate) { c.CRLDistributionPoints[0] = "http://evil.example/crl" },
		"two CRL points": func(c *x509.Certificate) {
			c.CRLDistributionPoints = append(c.CRLDistributionPoints, "http://evil.example/")
		},
		"OCSP":               func(c *x509.Certificate) { c.OCSPServer = []string{"http://evil.example/"} },
		"AIA":                func(c *x509.Certificate) { c.IssuingCertificateURL = []string{"http://evil.example/"} },
		"policy":             func(c *x509.Certificate) { c.Policies = []x509.OID{policy} },
		"unknown extension":  func(c *x509.Certificate) { c.ExtraExtensions = ext([]byte{5, 0}, false, 1, 2, 3) },
		"critical extension": func(c *x509.Certificate) { c.ExtraExtensions = ext([]byte{5, 0}, true, 1, 2, 3) },
		"name constraints":   func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"example"} },
		"no SKI":             func(c *x509.Certificate) { c.SubjectKeyId = nil },
		"otherName":          func(c *x509.Certificate) { c.ExtraExtensions = ext(withOtherName(t, c), false, 2, 5, 29, 17) },
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tmpl := template(t)
			change(tmpl)
			cert := ca.sign(t, tmpl, key.Public())
			if testProfile().Check(cert, key.Public()) == nil {
				t.Error("accepted")
			}
		})
	}
}

// withOtherName is the SAN extension of the template with a name of a kind that x509 passes over.
func withOtherName(t *testing.T, c *x509.Certificate) []byte {
	t.Helper()
	var names []asn1.RawValue
	for _, n := range c.DNSNames {
		names = append(names, asn1.RawValue{Class: 2, Tag: 2, Bytes: []byte(n)})
	}
	for _, u := range c.URIs {
		names = append(names, asn1.RawValue{Class: 2, Tag: 6, Bytes: []byte(u.String())})
	}
	for _, ip := range c.IPAddresses {
		if v4 := ip.To4(); v4 != nil {
			ip = v4
		}
		names = append(names, asn1.RawValue{Class: 2, Tag: 7, Bytes: ip})
	}
	names = append(names, asn1.RawValue{Class: 2, Tag: 8, Bytes: []byte{0x88, 1, 1}}) // registeredID
	der, err := asn1.Marshal(names)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestProfileCheckKey(t *testing.T) {
	t.Parallel()
	ca, key, other := plainCA(t), newKey(t), newKey(t)
	cert := ca.sign(t, template(t), key.Public())
	if testProfile().Check(cert, other.Public()) == nil || testProfile().Check(cert, nil) == nil {
		t.Error("accepted for another key")
	}
	if testProfile().Check(nil, key.Public()) == nil || testProfile().Check(template(t), key.Public()) == nil {
		t.Error("accepted what is no finished certificate")
	}
}

// A certificate whose issuer has no key identifier carries none of its own issuer either.
func TestProfileCheckNeedsAuthorityKeyID(t *testing.T) {
	t.Parallel()
	ca, key := plainCA(t), newKey(t)
	ca.cert.SubjectKeyId = nil
	if testProfile().Check(ca.sign(t, template(t), key.Public()), key.Public()) == nil {
		t.Error("accepted without authority key identifier")
	}
	self := template(t)
	self.AuthorityKeyId = self.SubjectKeyId
	if testProfile().Check(ca.sign(t, self, key.Public()), key.Public()) == nil {
		t.Error("accepted with equal key identifiers")
	}
}

func TestProfileServerCertificate(t *testing.T) {
	t.Parallel()
	p := Profile{
		CommonName: "Certbound server", DNSNames: []string{"localhost"}, IPs: []netip.Addr{netip.MustParseAddr("::ffff:127.0.0.1")},
		Usage: UsageServer, NotBefore: testNow(), NotAfter: testNow().Add(time.Hour),
	}
	key := newKey(t)
	tmpl := &x509.Certificate{
		SerialNumber: new(big.Int).Lsh(big.NewInt(1), 120), Subject: pkix.Name{CommonName: "Certbound server"},
		NotBefore: p.NotBefore, NotAfter: p.NotAfter, DNSNames: p.DNSNames, IPAddresses: []net.IP{{127, 0, 0, 1}},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		SubjectKeyId: []byte{1},
	}
	if err := p.Check(plainCA(t).sign(t, tmpl, key.Public()), key.Public()); err != nil {
		t.Error(err)
	}
}

func TestProfileValidate(t *testing.T) {
	t.Parallel()
	if err := testProfile().Validate(); err != nil {
		t.Fatal(err)
	}
	server := func(p *Profile) { p.ClientID, p.TrustDomain, p.CommonName = "", "", "server" }
	changes := map[string]func(*Profile){
		"bad id":             func(p *Profile) { p.ClientID = "Payments" },
		"id with NUL":        func(p *Profile) { p.ClientID = "a\x00b" },
		"no trust domain":    func(p *Profile) { p.TrustDomain = "" },
		"trust domain, NUL":  func(p *Profile) { p.TrustDomain = "a\x00b" },
		"other common name":  func(p *Profile) { p.CommonName = "admin" },
		"no name at all":     func(p *Profile) { server(p); p.URIs, p.DNSNames, p.IPs = nil, nil, nil },
		"no subject":         func(p *Profile) { server(p); p.CommonName = "" },
		"long common name":   func(p *Profile) { server(p); p.CommonName = strings.Repeat("a", 65) },
		"common name, NUL":   func(p *Profile) { server(p); p.CommonName = "a\x00b" },
		"spiffe URI":         func(p *Profile) { p.URIs = []string{"spiffe://other/client/x"} },
		"wildcard":           func(p *Profile) { p.DNSNames = []string{"*.example"} },
		"DNS name, NUL":      func(p *Profile) { p.DNSNames = []string{"a\x00.example"} },
		"invalid IP":         func(p *Profile) { p.IPs = []netip.Addr{{}} },
		"no usage":           func(p *Profile) { p.Usage = "" },
		"unknown usage":      func(p *Profile) { p.Usage = "ca" },
		"ends before begins": func(p *Profile) { p.NotAfter = p.NotBefore.Add(-time.Second) },
		"no dates":           func(p *Profile) { p.NotBefore, p.NotAfter = time.Time{}, time.Time{} },
		"year 10000":         func(p *Profile) { p.NotAfter = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) },
	}
	for name, change := range changes {
		p := testProfile()
		change(&p)
		if p.Validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestParseUsage(t *testing.T) {
	t.Parallel()
	for _, u := range []Usage{UsageClient, UsageServer, UsageBoth} {
		if got, err := ParseUsage(string(u)); err != nil || got != u || len(u.ExtKeyUsages()) == 0 {
			t.Errorf("%s: %v, %v", u, got, err)
		}
	}
	for _, s := range []string{"", "Client", "any", "ca"} {
		if _, err := ParseUsage(s); err == nil {
			t.Errorf("%q accepted", s)
		}
	}
}

func TestProfileNames(t *testing.T) {
	t.Parallel()
	p := testProfile()
	want := []string{"spiffe://abc.certbound.internal/client/payments", "https://payments.example/"}
	if got := p.AllURIs(); !slices.Equal(got, want) || p.Subject() != "payments" {
		t.Errorf("got %v, %q", got, p.Subject())
	}
	p.ClientID, p.CommonName = "", "server"
	if got := p.AllURIs(); !slices.Equal(got, want[1:]) || p.Subject() != "server" {
		t.Errorf("got %v, %q", got, p.Subject())
	}
}
