// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package mtlstest

import (
	"crypto"
	"crypto/md5"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"net"
	"net/url"
	"slices"
	"time"

	"github.com/certbound/certbound/mtls"
)

// sound shows what is accepted, so that the others are known to be refused for their defect.
func (m *museum) sound() {
	const clause = "RFC 5280, Section 6.1"
	sub := m.below(m.root, "sub")
	m.add(Exhibit{Name: "no defect", Clause: clause, Must: Accepted, Chain: m.issue(m.root)})
	m.add(Exhibit{Name: "no defect, behind an intermediate", Clause: clause, Must: Accepted, Chain: m.issue(sub)})
	m.add(Exhibit{Name: "no defect, two intermediates", Clause: clause, Must: Accepted,
		Chain: m.issue(m.below(sub, "subsub"))})
	m.add(Exhibit{Name: "intermediate missing", Clause: clause, Must: RefusedByAnchors, Chain: behind(m.issue(sub))})
	m.add(Exhibit{Name: "extension unknown, not critical", Clause: "XP-04: RFC 5280, Section 4.2", Must: Accepted,
		Chain: m.issue(m.root, poisoned(false))})
}

// dates is XP-01, the part of RFC 5280, Section 6.1.3 (a)(2).
func (m *museum) dates() {
	const clause = "XP-01: RFC 5280, Section 6.1.3 (a)(2)"
	past := func(t *x509.Certificate) { t.NotBefore, t.NotAfter = m.now.Add(-time.Hour), m.now.Add(-time.Minute) }
	future := func(t *x509.Certificate) { t.NotBefore, t.NotAfter = m.now.Add(time.Minute), m.now.Add(time.Hour) }
	m.add(Exhibit{Name: "expired", Clause: clause, Must: RefusedByAnchors, Err: mtls.ErrExpired,
		Chain: m.issue(m.root, past)})
	m.add(Exhibit{Name: "not yet valid", Clause: clause, Must: RefusedByAnchors, Err: mtls.ErrNotYetValid,
		Chain: m.issue(m.root, future)})
	m.add(Exhibit{Name: "ends before it begins", Clause: clause, Must: RefusedByAnchors, Err: mtls.ErrNotYetValid,
		Chain: m.forged(m.root, func(b *body) {
			b.Validity = asn1.RawValue{FullBytes: marshal(m.tb, []time.Time{m.now.Add(time.Hour).UTC(), m.now.Add(-time.Hour).UTC()})}
		})})
	m.add(Exhibit{Name: "issuer expired", Clause: clause, Must: RefusedByAnchors,
		Chain: m.issue(m.below(m.root, "sub", past))})
	m.add(Exhibit{Name: "issuer not yet valid", Clause: clause, Must: RefusedByAnchors,
		Chain: m.issue(m.below(m.root, "sub", future))})
	old := m.rootWith("old", NewKey(m.tb), past)
	m.add(Exhibit{Name: "root expired", Clause: "XP-01: RFC 5280, Section 6.1: a root counts as a certificate here",
		Must:  RefusedByAnchors,
		Chain: m.issue(old), Anchors: m.trusting(old.cert)})
}

// signatures is XP-01 and XP-15: who signed, and with what.
func (m *museum) signatures() {
	const clause, weak = "XP-01: RFC 5280, Section 6.1.3 (a)(1)", "XP-15: RFC 9325, Section 4.5"
	good := m.issue(m.root)
	broken := slices.Clone(good.Leaf.Raw)
	broken[len(broken)-1] ^= 1
	m.add(Exhibit{Name: "signature broken", Clause: clause, Must: RefusedByAnchors, Chain: m.first(good, broken)})
	other := m.issue(m.root, func(t *x509.Certificate) { t.Subject.CommonName = "mallory" })
	altered := envelope(m.tb, good.Leaf.RawTBSCertificate, algorithmOf(m, other.Leaf), other.Leaf.Signature)
	m.add(Exhibit{Name: "signature of another certificate", Clause: clause, Must: RefusedByAnchors,
		Chain: m.first(good, altered)})
	m.add(Exhibit{Name: "signature empty", Clause: clause, Must: RefusedByAnchors,
		Chain: m.first(good, envelope(m.tb, good.Leaf.RawTBSCertificate, algorithmOf(m, good.Leaf), nil))})
	m.add(Exhibit{Name: "signed by a stranger in the issuer's name", Clause: clause, Must: RefusedByAnchors,
		Chain: m.first(good, forge(m.tb, good.Leaf, sealedBy(NewKey(m.tb)), func(*body) {}))})
	m.add(Exhibit{Name: "issuer's signature under another issuer's name", Clause: "XP-01: RFC 5280, Section 6.1.3 (a)(4)",
		Must: RefusedByAnchors, Chain: m.forged(m.root, func(b *body) { b.Issuer = asn1.RawValue{FullBytes: m.other.cert.RawSubject} })})

	rsaRoot := m.rootWith("rsa", newToyRSA(m.tb, 9))
	trust := m.trusting(rsaRoot.cert)
	m.add(Exhibit{Name: "no defect, signed with RSA", Clause: weak, Must: Accepted,
		Chain: m.issue(rsaRoot), Anchors: trust})
	m.add(Exhibit{Name: "signed with RSA and SHA-1", Clause: weak, Must: RefusedByAnchors, Anchors: trust,
		Chain: m.issue(rsaRoot, func(t *x509.Certificate) { t.SignatureAlgorithm = x509.SHA1WithRSA })})
	m.add(Exhibit{Name: "signed with ECDSA and SHA-1", Clause: weak, Must: RefusedByAnchors,
		Chain: m.issue(m.root, func(t *x509.Certificate) { t.SignatureAlgorithm = x509.ECDSAWithSHA1 })})
	signMD5 := func(tbs []byte) ([]byte, error) {
		digest := md5.Sum(tbs)
		return rsaRoot.key.Sign(nil, digest[:], crypto.MD5)
	}
	withMD5 := m.issue(rsaRoot)
	m.add(Exhibit{Name: "signed with RSA and MD5", Clause: weak, Must: RefusedByAnchors, Anchors: trust,
		Chain: m.first(withMD5, forge(m.tb, withMD5.Leaf, signMD5, func(b *body) {
			b.Signature = algorithm(m, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 4}, asn1.NullBytes)
		}))})
	m.add(Exhibit{Name: "signature algorithm unknown", Clause: "XP-16: RFC 5280, Section 4.1.1.2", Must: RefusedByAnchors,
		Chain: m.forged(m.root, func(b *body) { b.Signature = algorithm(m, oidPoison, nil) })})
	m.add(Exhibit{Name: "signature algorithms inside and outside differ", Clause: "XP-16: RFC 5280, Section 4.1.1.2",
		Must: RefusedInHandshake,
		Chain: m.first(good, envelope(m.tb, good.Leaf.RawTBSCertificate,
			algorithm(m, asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}, nil), good.Leaf.Signature))})
}

// algorithmOf returns the AlgorithmIdentifier within cert.
func algorithmOf(m *museum, cert *x509.Certificate) asn1.RawValue {
	var b body
	if _, err := asn1.Unmarshal(cert.RawTBSCertificate, &b); err != nil {
		m.tb.Fatalf("mtlstest: take a certificate apart: %v", err)
	}
	return b.Signature
}

func algorithm(m *museum, oid asn1.ObjectIdentifier, parameters []byte) asn1.RawValue {
	return asn1.RawValue{FullBytes: sequence(m.tb, marshal(m.tb, oid), parameters)}
}

// poisoned adds an extension that nobody knows.
func poisoned(critical bool) edit {
	return with(extension(oidPoison, critical, asn1.NullBytes))
}

func with(extensions ...pkix.Extension) edit {
	return func(t *x509.Certificate) { t.ExtraExtensions = append(t.ExtraExtensions, extensions...) }
}

// issuers is XP-02, XP-03 and XP-04: who may issue, and what nobody understands.
func (m *museum) issuers() {
	const bit, sign, length = "XP-02: RFC 5280, Section 6.1.4 (k)", "XP-02: RFC 5280, Section 6.1.4 (n)", "XP-03: RFC 5280, Section 6.1.4 (m)"
	for _, tc := range []struct {
		name, clause string
		edit         edit
	}{
		{"issuer is a client", bit, func(t *x509.Certificate) {
			t.IsCA, t.KeyUsage, t.ExtKeyUsage = false, x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		}},
		{"issuer without the CA bit", bit, func(t *x509.Certificate) { t.IsCA = false }},
		{"issuer without basic constraints", bit, func(t *x509.Certificate) { t.IsCA, t.BasicConstraintsValid = false, false }},
		{"issuer that may sign only lists", sign, func(t *x509.Certificate) { t.KeyUsage = x509.KeyUsageCRLSign }},
		{"issuer with an unknown critical extension", "XP-04: RFC 5280, Section 4.2", poisoned(true)},
	} {
		m.add(Exhibit{Name: tc.name, Clause: tc.clause, Must: RefusedByAnchors,
			Chain: m.issue(m.below(m.root, "sub", tc.edit))})
	}
	old := m.below(m.root, "sub")
	v1 := forge(m.tb, old.cert, sealedBy(m.root.key), func(b *body) { b.Version, b.Extensions = 0, nil })
	m.add(Exhibit{Name: "issuer of version 1", Clause: bit, Must: RefusedByAnchors, Chain: behind(m.issue(old), v1)})
	victim := m.issue(m.root)
	mallory := &CA{cert: victim.Leaf, key: victim.PrivateKey.(crypto.Signer), chain: victim.Certificate, root: m.root.root}
	m.add(Exhibit{Name: "issued by a client's own certificate, in the name of another", Clause: bit,
		Must: RefusedByAnchors, Chain: m.issue(mallory)})

	pathLength := func(n int) edit { return func(t *x509.Certificate) { t.MaxPathLen, t.MaxPathLenZero = n, true } }
	m.add(Exhibit{Name: "path length just kept", Clause: length, Must: Accepted,
		Chain: m.issue(m.below(m.below(m.root, "a", pathLength(1)), "b"))})
	m.add(Exhibit{Name: "path length exceeded", Clause: length, Must: RefusedByAnchors,
		Chain: m.issue(m.below(m.below(m.root, "a", pathLength(0)), "b"))})
	short := m.rootWith("short", NewKey(m.tb), pathLength(0))
	m.add(Exhibit{Name: "path length of the root exceeded", Clause: length, Must: RefusedByAnchors,
		Chain: m.issue(m.below(short, "sub")), Anchors: m.trusting(short.cert)})

	m.add(Exhibit{Name: "unknown critical extension", Clause: "XP-04: RFC 5280, Section 4.2", Must: RefusedByAnchors,
		Chain: m.issue(m.root, poisoned(true))})
	odd := m.rootWith("odd", NewKey(m.tb), poisoned(true))
	m.add(Exhibit{Name: "root with an unknown critical extension", Clause: "XP-04: RFC 5280, Section 4.2: a root counts as a certificate here",
		Must: RefusedByAnchors, Chain: m.issue(odd), Anchors: m.trusting(odd.cert)})
	demanding := m.below(m.root, "demanding", with(extension([]int{2, 5, 29, 36}, true, []byte{0x30, 3, 0x80, 1, 0})))
	m.add(Exhibit{Name: "policy demanded and not asserted", Clause: "XP-07: RFC 5280, Section 6.1.5 (g)",
		Must: RefusedByAnchors, Chain: m.issue(demanding)})
	m.add(Exhibit{Name: "policy demanded and not asserted, any usage", Clause: "XP-07: RFC 5280, Section 6.1.5 (g)",
		Must:  RefusedByAnchors,
		Chain: m.issue(demanding, usage(x509.ExtKeyUsageAny))})
	m.add(Exhibit{Name: "policy demanded and asserted", Clause: "XP-07: RFC 5280, Section 6.1.5 (g)", Must: Accepted,
		Chain: m.issue(m.below(m.root, "demanding", with(extension([]int{2, 5, 29, 36}, true, []byte{0x30, 3, 0x80, 1, 0}), policy(m))), with(policy(m)))})
}

// policy is the extension certificatePolicies with one policy.
func policy(m *museum) pkix.Extension {
	return extension([]int{2, 5, 29, 32}, false, sequence(m.tb, sequence(m.tb, marshal(m.tb, oidPoison))))
}

// nameConstraints is XP-05. None of them is all that stands between two clients here: their anchors are their own.
func (m *museum) nameConstraints() {
	const clause = "XP-05: RFC 5280, Section 4.2.1.10"
	critical := func(set edit) edit {
		return func(t *x509.Certificate) { t.PermittedDNSDomainsCritical = true; set(t) }
	}
	dns := func(names ...string) edit { return func(t *x509.Certificate) { t.DNSNames = names } }
	mail := func(name string) edit { return func(t *x509.Certificate) { t.EmailAddresses = []string{name} } }
	ip := func(name string) edit {
		return func(t *x509.Certificate) { t.IPAddresses = []net.IP{net.ParseIP(name)} }
	}
	permitDNS := func(t *x509.Certificate) { t.PermittedDNSDomains = []string{"good.example"} }
	excludeDNS := func(t *x509.Certificate) { t.ExcludedDNSDomains = []string{"BAD.example"} }
	permitIP := func(t *x509.Certificate) { t.PermittedIPRanges = []*net.IPNet{network("10.0.0.0/8")} }
	excludeIP := func(t *x509.Certificate) { t.ExcludedIPRanges = []*net.IPNet{network("2001:db8::/32")} }
	permitMail := func(t *x509.Certificate) { t.PermittedEmailAddresses = []string{"good.example"} }
	excludeMail := func(t *x509.Certificate) { t.ExcludedEmailAddresses = []string{"a@BAD.example"} }
	permitURI := func(t *x509.Certificate) { t.PermittedURIDomains = []string{".good.example"} }
	excludeURI := func(t *x509.Certificate) { t.ExcludedURIDomains = []string{".bad.example"} }
	for _, tc := range []struct {
		name       string
		constraint edit
		leaf       edit
		must       Verdict
	}{
		{"DNS name within its constraint", permitDNS, dns("a.good.example"), Accepted},
		{"DNS name outside its constraint", permitDNS, dns("bad.example"), RefusedByAnchors},
		{"DNS name that only ends like its constraint", permitDNS, dns("notgood.example"), RefusedByAnchors},
		{"DNS name outside its constraint behind one within", permitDNS, dns("a.good.example", "bad.example"), RefusedByAnchors},
		{"DNS name excluded, in other case", excludeDNS, dns("www.bad.EXAMPLE"), RefusedByAnchors},
		{"DNS wildcard over an excluded name", func(t *x509.Certificate) { t.ExcludedDNSDomains = []string{"www.bad.example"} },
			dns("*.bad.example"), RefusedByAnchors},
		{"address within its constraint", permitIP, ip("10.1.2.3"), Accepted},
		{"address outside its constraint", permitIP, ip("192.0.2.1"), RefusedByAnchors},
		{"address excluded", excludeIP, ip("2001:db8::1"), RefusedByAnchors},
		{"e-mail within its constraint", permitMail, mail("a@good.example"), Accepted},
		{"e-mail outside its constraint", permitMail, mail("a@bad.example"), RefusedByAnchors},
		{"e-mail excluded, in other case", excludeMail, mail("a@bad.EXAMPLE"), RefusedByAnchors},
		{"URI within its constraint", permitURI, m.uris("spiffe://a.good.example/x"), Accepted},
		{"URI outside its constraint", permitURI, m.uris("spiffe://bad.example/x"), RefusedByAnchors},
		{"URI excluded", excludeURI, m.uris("https://a.bad.example/"), RefusedByAnchors},
		{"URI without a host under a constraint", permitURI, m.uris("urn:good.example"), RefusedByAnchors},
		{"URI with an address under a constraint", permitURI, m.uris("https://10.0.0.1/"), RefusedByAnchors},
		{"constraint on directory names, which nobody here judges",
			func(t *x509.Certificate) { with(m.directoryConstraint())(t) }, func(*x509.Certificate) {}, RefusedByAnchors},
	} {
		sub := m.below(m.root, "constrained", critical(tc.constraint))
		m.add(Exhibit{Name: tc.name, Clause: clause, Must: tc.must, Chain: m.issue(sub, tc.leaf)})
	}
	above := m.below(m.below(m.root, "constrained", critical(permitDNS)), "sub")
	m.add(Exhibit{Name: "DNS name outside a constraint two above", Clause: clause, Must: RefusedByAnchors,
		Chain: m.issue(above, dns("bad.example"))})
}

func network(s string) *net.IPNet {
	_, n, _ := net.ParseCIDR(s)
	return n
}

// directoryConstraint permits CN=client only.
func (m *museum) directoryConstraint() pkix.Extension {
	name := distinguishedName(m.tb, []attribute{{oidCN, asn1.TagPrintableString, "client"}})
	return extension([]int{2, 5, 29, 30}, true, sequence(m.tb, tagged(m.tb, 0, true, sequence(m.tb, tagged(m.tb, 4, true, name)))))
}

func (m *museum) uris(values ...string) edit {
	m.tb.Helper()
	return func(t *x509.Certificate) {
		for _, v := range values {
			u, err := url.Parse(v)
			if err != nil {
				m.tb.Fatalf("mtlstest: parse URI: %v", err)
			}
			t.URIs = append(t.URIs, u)
		}
	}
}

func usage(u ...x509.ExtKeyUsage) edit {
	return func(t *x509.Certificate) { t.ExtKeyUsage = u }
}

// usages is XP-06, XP-07, and what a client's own certificate must be.
func (m *museum) usages() {
	const clause, nest = "CA-15: RFC 5280, Section 4.2.1.12", "XP-06: RFC 5280, Section 4.2.1.12"
	m.add(Exhibit{Name: "usage for servers only", Clause: clause, Must: RefusedByAnchors,
		Chain: m.issue(m.root, usage(x509.ExtKeyUsageServerAuth))})
	m.add(Exhibit{Name: "usage for e-mail only", Clause: clause, Must: RefusedByAnchors,
		Chain: m.issue(m.root, usage(x509.ExtKeyUsageEmailProtection))})
	m.add(Exhibit{Name: "usage unknown", Clause: clause, Must: RefusedByAnchors,
		Chain: m.issue(m.root, usage(), func(t *x509.Certificate) {
			t.UnknownExtKeyUsage = []asn1.ObjectIdentifier{oidPoison}
		})})
	m.add(Exhibit{Name: "usage for servers and clients", Clause: clause, Must: Accepted,
		Chain: m.issue(m.root, usage(x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth))})
	m.add(Exhibit{Name: "usage not named", Clause: clause, Must: Accepted, Chain: m.issue(m.root, usage())})
	m.add(Exhibit{Name: "usage any", Clause: "XP-07: RFC 5280, Section 4.2.1.12", Must: Accepted,
		Chain: m.issue(m.root, usage(x509.ExtKeyUsageAny))})
	m.add(Exhibit{Name: "issuer for servers only", Clause: nest, Must: RefusedByAnchors,
		Chain: m.issue(m.below(m.root, "sub", usage(x509.ExtKeyUsageServerAuth)))})
	m.add(Exhibit{Name: "issuer for servers only, two above", Clause: nest, Must: RefusedByAnchors,
		Chain: m.issue(m.below(m.below(m.root, "sub", usage(x509.ExtKeyUsageServerAuth)), "subsub"))})
	m.add(Exhibit{Name: "issuer for servers only, usage any below", Clause: nest, Must: RefusedByAnchors,
		Chain: m.issue(m.below(m.root, "sub", usage(x509.ExtKeyUsageServerAuth)), usage(x509.ExtKeyUsageAny))})
	m.add(Exhibit{Name: "issuer for clients only", Clause: nest, Must: Accepted,
		Chain: m.issue(m.below(m.root, "sub", usage(x509.ExtKeyUsageClientAuth)))})

	m.add(Exhibit{Name: "client that is an authority", Clause: "CA-15: RFC 5280, Section 4.2.1.9", Must: RefusedByAnchors,
		Chain: m.issue(m.root, func(t *x509.Certificate) { t.IsCA = true })})
	m.add(Exhibit{Name: "client that may not make digital signatures", Clause: "CA-15: RFC 8446, Section 4.4.2.3",
		Must:  RefusedByAnchors,
		Chain: m.issue(m.root, func(t *x509.Certificate) { t.KeyUsage = x509.KeyUsageKeyEncipherment })})
	m.add(Exhibit{Name: "key usage not named", Clause: "CA-15: RFC 8446, Section 4.4.2.3", Must: Accepted,
		Chain: m.issue(m.root, func(t *x509.Certificate) { t.KeyUsage = 0 })})
	root := m.rootWith("root as client", NewKey(m.tb), func(t *x509.Certificate) { t.Subject.CommonName = "client" })
	rootChain := m.issue(root)
	rootChain.Certificate, rootChain.PrivateKey, rootChain.Leaf = [][]byte{root.cert.Raw}, root.key, root.cert
	m.add(Exhibit{Name: "the trusted root itself as client", Clause: "CA-15: RFC 5280, Section 4.2.1.9",
		Must:  RefusedByAnchors,
		Chain: rootChain, Anchors: m.trusting(root.cert)})
}

// strangers is XP-08, XP-09, XP-10: names and keys that are not whose they seem.
func (m *museum) strangers() {
	const trust, same, loop = "XP-10: RFC 5280, Section 6.1", "XP-08: RFC 5280, Section 6.1", "XP-09: RFC 5280, Section 6.1"
	self := SelfSigned(m.tb, Leaf{CommonName: "client"})
	m.add(Exhibit{Name: "self-signed", Clause: "CA-14: RFC 8705, Section 2.1", Must: RefusedByAnchors, Chain: self})
	m.add(Exhibit{Name: "another authority", Clause: "CA-14: RFC 8705, Section 7.4", Must: RefusedByAnchors,
		Chain: m.issue(m.other)})
	m.add(Exhibit{Name: "own root sent along", Clause: trust, Must: RefusedByAnchors,
		Chain: behind(m.issue(m.other), m.other.cert.Raw)})
	m.add(Exhibit{Name: "the right root sent along", Clause: trust, Must: Accepted,
		Chain: behind(m.issue(m.root), m.root.cert.Raw)})
	m.add(Exhibit{Name: "the trusted root behind a stranger's client", Clause: trust, Must: RefusedByAnchors,
		Chain: behind(m.issue(m.other), m.root.cert.Raw)})

	twin := NewCA(m.tb, "root")
	m.add(Exhibit{Name: "issuer of the root's name with another key", Clause: same, Must: RefusedByAnchors,
		Chain: m.issue(twin)})
	m.add(Exhibit{Name: "issuer of the root's name with another key, sent along", Clause: same, Must: RefusedByAnchors,
		Chain: behind(m.issue(twin), twin.cert.Raw)})
	m.add(Exhibit{Name: "issuer of the root's name with another key, no key identifiers", Clause: same,
		Must: RefusedByAnchors,
		Chain: m.forged(twin, func(b *body) {
			b.Extensions = slices.DeleteFunc(b.Extensions, func(e pkix.Extension) bool { return e.Id.Equal([]int{2, 5, 29, 35}) })
		})})
	m.add(Exhibit{Name: "two trusted roots of one name", Clause: same, Must: Accepted,
		Chain: m.issue(twin), Anchors: m.trusting(m.root.cert, twin.cert)})
	renamed := m.rootWith("renamed", m.root.key)
	m.add(Exhibit{Name: "issuer of the root's key with another name", Clause: same, Must: RefusedByAnchors,
		Chain: behind(m.issue(renamed), renamed.cert.Raw)})
	renewed := m.rootWith("root", m.root.key)
	m.add(Exhibit{Name: "the root's name and key in another certificate", Clause: same + ": the chain ends in the pinned one", Must: Accepted,
		Chain: behind(m.issue(renewed), renewed.cert.Raw)})

	crossed := m.below(m.root, "crossed")
	byOther := m.belowWith(m.other, "crossed", crossed.key)
	m.add(Exhibit{Name: "cross-signed, only the way to another root sent", Clause: loop, Must: RefusedByAnchors,
		Chain: behind(m.issue(crossed), byOther.cert.Raw)})
	m.add(Exhibit{Name: "cross-signed, both ways sent", Clause: loop, Must: Accepted,
		Chain: behind(m.issue(crossed), byOther.cert.Raw, crossed.cert.Raw)})
	a, b := NewCA(m.tb, "a"), NewCA(m.tb, "b")
	aByB, bByA := m.belowWith(b, "a", a.key), m.belowWith(a, "b", b.key)
	m.add(Exhibit{Name: "cross-signed loop", Clause: loop, Must: RefusedByAnchors,
		Chain: behind(m.issue(a), aByB.cert.Raw, bByA.cert.Raw)})
	m.add(Exhibit{Name: "cross-signed loop with a way out", Clause: loop, Must: Accepted,
		Chain: behind(m.issue(a), aByB.cert.Raw, bByA.cert.Raw, m.belowWith(m.root, "b", b.key).cert.Raw)})

	victim := m.issue(m.root, func(t *x509.Certificate) { t.Subject.CommonName = "victim" })
	mine := m.issue(m.root)
	const second = "CA-14: RFC 8446, Section 4.4.2: only the first certificate is the client's"
	m.add(Exhibit{Name: "leaf of another client behind mine", Clause: second, Must: RefusedBySubject,
		Chain: behind(mine, victim.Leaf.Raw), Subject: m.subject(mtls.SubjectDN, "CN=victim")})
	m.add(Exhibit{Name: "leaf of another client before mine", Clause: second + ", which must show its key",
		Must:  RefusedInHandshake,
		Chain: m.first(behind(mine, mine.Leaf.Raw), victim.Leaf.Raw), Subject: m.subject(mtls.SubjectDN, "CN=victim")})
	stolen := victim
	stolen.PrivateKey = NewKey(m.tb)
	m.add(Exhibit{Name: "certificate of another client without its key", Clause: "CB-01: RFC 8705, Section 3",
		Must:  RefusedInHandshake,
		Chain: stolen, Subject: m.subject(mtls.SubjectDN, "CN=victim")})
	m.add(Exhibit{Name: "key of another client, name of mine", Clause: "CA-14: RFC 8705, Section 2.1.2",
		Must:  RefusedBySubject,
		Chain: m.issueTo(m.root, mine.PrivateKey.(crypto.Signer)), Subject: m.subject(mtls.SubjectDN, "CN=victim")})
}

// sizes is TLS-12 and what path building may be made to do.
func (m *museum) sizes() {
	const clause = "TLS-12: RFC 8446, Section 4.4.2"
	deep := m.root
	for range 100 {
		deep = m.below(deep, "deep")
	}
	m.add(Exhibit{Name: "a hundred intermediates", Clause: "XP-09: RFC 5280, Section 6.1", Must: RefusedInHandshake,
		Chain: m.issue(deep)})
	four := behind(m.issue(m.root), slices.Repeat([][]byte{m.root.cert.Raw}, 4)...)
	m.add(Exhibit{Name: "five certificates", Clause: clause, Must: RefusedInHandshake, Chain: four})
	names := func(n int) edit {
		return func(t *x509.Certificate) { t.DNSNames = slices.Repeat([]string{"a.example"}, n) }
	}
	m.add(Exhibit{Name: "ten thousand alternative names", Clause: clause, Must: RefusedInHandshake,
		Chain: m.issue(m.root, names(10_000))})
	m.add(Exhibit{Name: "five hundred alternative names", Clause: clause, Must: Accepted,
		Chain: m.issue(m.root, names(500))})
	junk := func(n int) edit { return with(extension(oidPoison, false, marshal(m.tb, make([]byte, n)))) }
	m.add(Exhibit{Name: "9 KiB", Clause: clause, Must: RefusedInHandshake, Chain: m.issue(m.root, junk(9<<10))})
	m.add(Exhibit{Name: "60 KiB", Clause: clause, Must: RefusedInHandshake, Chain: m.issue(m.root, junk(60<<10))})
	m.add(Exhibit{Name: "7 KiB", Clause: clause, Must: Accepted, Chain: m.issue(m.root, junk(7<<10))})
}
