// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package mtlstest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"slices"

	"github.com/certbound/certbound/mtls"
)

var (
	oidECKey = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
	oidRSA   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidP256  = asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}
)

// keys is TLS-13 and XP-15: keys that are weak, costly, or of no known kind. For those whose private half nobody has,
// the chain's key is another; the server must not get as far as to notice.
func (m *museum) keys() {
	const weak, costly, unknown = "XP-15: RFC 9325, Section 4.5", "TLS-13: RFC 9325, Section 4.5", "XP-16: RFC 5280, Section 4.1.2.7"
	for _, tc := range []struct {
		name, clause   string
		bits, exponent int
	}{
		{"RSA key of 1024 bits", weak, 1024, 65537},
		{"RSA key of 2047 bits", weak, 2047, 65537},
		{"RSA key of 4097 bits", costly, 4097, 65537},
		{"RSA key of 8192 bits", costly, 8192, 65537},
		{"RSA key of 16384 bits", costly, 16384, 65537},
		{"RSA exponent 3", weak, 2048, 3},
		{"RSA exponent even", weak, 2048, 65538},
	} {
		key := NewKey(m.tb)
		leaf := sign(m.tb, m.client(), m.root.cert, fakeRSA(m.tb, tc.bits, tc.exponent), m.root.key)
		m.add(Exhibit{Name: tc.name, Clause: tc.clause, Must: RefusedInHandshake,
			Chain: tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}})
	}
	p224, p384, p521 := m.curve(elliptic.P224()), m.curve(elliptic.P384()), m.curve(elliptic.P521())
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		m.tb.Fatalf("mtlstest: generate key: %v", err)
	}
	m.add(Exhibit{Name: "no defect, P-384", Clause: weak, Must: Accepted, Chain: m.issueTo(m.root, p384)})
	m.add(Exhibit{Name: "no defect, Ed25519", Clause: weak, Must: Accepted, Chain: m.issueTo(m.root, edwards)})
	m.add(Exhibit{Name: "P-224 key", Clause: weak, Must: RefusedInHandshake, Chain: m.issueTo(m.root, p224)})
	m.add(Exhibit{Name: "P-521 key", Clause: costly, Must: RefusedInHandshake, Chain: m.issueTo(m.root, p521)})
	m.add(Exhibit{Name: "issuer with a P-521 key, sent along", Clause: costly, Must: RefusedByAnchors,
		Chain: m.issue(m.belowWith(m.root, "sub", p521))})
	m.add(Exhibit{Name: "issuer with a P-224 key, sent along", Clause: weak, Must: RefusedByAnchors,
		Chain: m.issue(m.belowWith(m.root, "sub", p224))})
	m.add(Exhibit{Name: "issuer with an RSA key below 2048 bits, sent along", Clause: weak, Must: RefusedByAnchors,
		Chain: m.issue(m.belowWith(m.root, "sub", newToyRSA(m.tb, 6)))})

	// What follows cannot be made by crypto/x509, and some of it not be read.
	point := m.point(NewKey(m.tb))
	off := slices.Clone(point)
	off[len(off)-1] ^= 1
	ec := func(parameters, key []byte) asn1.RawValue { return publicKeyInfo(m.tb, oidECKey, parameters, key) }
	rsa2048 := x509.MarshalPKCS1PublicKey(fakeRSA(m.tb, 2048, 65537))
	negative := sequence(m.tb, marshal(m.tb, new(big.Int).Neg(fakeRSA(m.tb, 2048, 65537).N)), marshal(m.tb, 65537))
	named := func(oid ...int) []byte { return marshal(m.tb, asn1.ObjectIdentifier(oid)) }
	for _, tc := range []struct {
		name string
		key  asn1.RawValue
	}{
		{"DSA key", publicKeyInfo(m.tb, asn1.ObjectIdentifier{1, 2, 840, 10040, 4, 1},
			sequence(m.tb, marshal(m.tb, 23), marshal(m.tb, 11), marshal(m.tb, 4)), marshal(m.tb, 8))},
		{"Ed448 key", publicKeyInfo(m.tb, asn1.ObjectIdentifier{1, 3, 101, 113}, nil, make([]byte, 57))},
		{"X25519 key", publicKeyInfo(m.tb, asn1.ObjectIdentifier{1, 3, 101, 110}, nil, bytes.Repeat([]byte{9}, 32))},
		{"ML-DSA-44 key", publicKeyInfo(m.tb, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 3, 17}, nil, make([]byte, 1312))},
		{"RSA-PSS key", publicKeyInfo(m.tb, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 10}, nil, rsa2048)},
		{"key of an unknown kind", publicKeyInfo(m.tb, oidPoison, asn1.NullBytes, []byte{1, 2, 3})},
		{"P-192 key", ec(named(1, 2, 840, 10045, 3, 1, 1), append([]byte{4}, make([]byte, 48)...))},
		{"secp256k1 key", ec(named(1, 3, 132, 0, 10), point)},
		{"ECDSA key with explicit parameters", ec(sequence(m.tb, marshal(m.tb, 1)), point)},
		{"ECDSA key without parameters", ec(nil, point)},
		{"ECDSA key that is not on its curve", ec(marshal(m.tb, oidP256), off)},
		{"ECDSA key at infinity", ec(marshal(m.tb, oidP256), []byte{0})},
		{"ECDSA key compressed", ec(marshal(m.tb, oidP256), append([]byte{2 + point[64]&1}, point[1:33]...))},
		{"RSA key without parameters", publicKeyInfo(m.tb, oidRSA, nil, rsa2048)},
		{"RSA key with a negative modulus", publicKeyInfo(m.tb, oidRSA, asn1.NullBytes, negative)},
		{"Ed25519 key too short", publicKeyInfo(m.tb, asn1.ObjectIdentifier{1, 3, 101, 112}, nil, make([]byte, 31))},
	} {
		m.add(Exhibit{Name: tc.name, Clause: unknown, Must: RefusedInHandshake,
			Chain: m.forged(m.root, func(b *body) { b.PublicKey = tc.key })})
	}
}

func (m *museum) curve(c elliptic.Curve) *ecdsa.PrivateKey {
	m.tb.Helper()
	key, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		m.tb.Fatalf("mtlstest: generate key: %v", err)
	}
	return key
}

// point returns the public key of a P-256 key as an uncompressed point.
func (m *museum) point(key any) []byte {
	m.tb.Helper()
	p, err := key.(*ecdsa.PrivateKey).PublicKey.ECDH()
	if err != nil {
		m.tb.Fatalf("mtlstest: point: %v", err)
	}
	return p.Bytes()
}

// encodings is XP-14 and XP-16: what the DER of a certificate must not be.
func (m *museum) encodings() {
	const clause, serial = "XP-16: RFC 5280, Section 4.1", "XP-14: RFC 5280, Section 4.1.2.2"
	good := m.issue(m.root)
	raw := good.Leaf.Raw
	m.add(Exhibit{Name: "an octet after the certificate", Clause: clause, Must: RefusedInHandshake,
		Chain: m.first(good, append(slices.Clone(raw), 0))})
	m.add(Exhibit{Name: "certificate cut short", Clause: clause, Must: RefusedInHandshake,
		Chain: m.first(good, raw[:len(raw)-1])})
	m.add(Exhibit{Name: "certificate empty", Clause: clause, Must: RefusedInHandshake, Chain: m.first(good, []byte{})})
	m.add(Exhibit{Name: "certificate in PEM", Clause: clause, Must: RefusedInHandshake,
		Chain: m.first(good, []byte("-----BEGIN CERTIFICATE-----"))})
	long := slices.Concat([]byte{0x30, 0x83, 0}, raw[2:4], raw[4:]) // a length in three octets where two do
	m.add(Exhibit{Name: "length not in its shortest form", Clause: "XP-16: X.690, Section 10.1", Must: RefusedInHandshake,
		Chain: m.first(good, long)})
	indefinite := slices.Concat([]byte{0x30, 0x80}, raw[4:], []byte{0, 0})
	m.add(Exhibit{Name: "length indefinite", Clause: "XP-16: X.690, Section 10.1", Must: RefusedInHandshake,
		Chain: m.first(good, indefinite)})
	m.add(Exhibit{Name: "no certificate behind mine", Clause: clause, Must: RefusedInHandshake,
		Chain: behind(good, []byte{0x30, 0})})

	for _, tc := range []struct {
		name   string
		must   Verdict
		change func(*body)
	}{
		{"version 4", RefusedInHandshake, func(b *body) { b.Version = 3 }},
		{"version 1", Accepted, func(b *body) { b.Version, b.Extensions = 0, nil }},
		{"an extension twice", RefusedInHandshake, func(b *body) { b.Extensions = append(b.Extensions, b.Extensions[0]) }},
		{"alternative names twice", RefusedInHandshake, func(b *body) {
			b.Extensions = append(b.Extensions, m.names(dnsName(m, "a.example")), m.names(dnsName(m, "b.example")))
		}},
		{"key usage malformed", RefusedInHandshake, func(b *body) {
			b.Extensions = append(withoutExtension(b.Extensions, 15), extension([]int{2, 5, 29, 15}, true, []byte{5, 0}))
		}},
		{"alternative names malformed", RefusedInHandshake, func(b *body) {
			b.Extensions = append(b.Extensions, extension([]int{2, 5, 29, 17}, false, []byte{0x30, 1}))
		}},
		{"dates in a thirteenth month", RefusedInHandshake, func(b *body) {
			b.Validity = asn1.RawValue{FullBytes: sequence(m.tb, []byte("\x17\x0d991301000000Z"), []byte("\x17\x0d491201000000Z"))}
		}},
		{"dates as text", RefusedInHandshake, func(b *body) {
			b.Validity = asn1.RawValue{FullBytes: sequence(m.tb, marshal(m.tb, "990101000000Z"), marshal(m.tb, "490101000000Z"))}
		}},
		// RFC 5280, Section 4.1.2.5.1 wants seconds; crypto/x509 does not, and nothing is gained by their lack.
		{"dates without seconds", Accepted, func(b *body) {
			b.Validity = asn1.RawValue{FullBytes: sequence(m.tb, []byte("\x17\x0b9901010000Z"), []byte("\x17\x0b4901010000Z"))}
		}},
	} {
		m.add(Exhibit{Name: tc.name, Clause: clause, Must: tc.must, Chain: m.forged(m.root, tc.change)})
	}
	m.add(Exhibit{Name: "version 1 with alternative names", Clause: clause + ": a version without extensions has none",
		Must:    RefusedBySubject,
		Subject: m.subject(mtls.SANDNS, "a.example"), Chain: m.forged(m.root, func(b *body) {
			b.Version, b.Extensions = 0, append(b.Extensions, m.names(dnsName(m, "a.example")))
		})})

	number := func(content ...byte) func(*body) {
		return func(b *body) {
			b.Serial = asn1.RawValue{FullBytes: append([]byte{asn1.TagInteger, byte(len(content))}, content...)}
		}
	}
	m.add(Exhibit{Name: "serial number negative", Clause: serial, Must: RefusedInHandshake,
		Chain: m.forged(m.root, number(0xff))})
	m.add(Exhibit{Name: "serial number not in its shortest form", Clause: serial, Must: RefusedInHandshake,
		Chain: m.forged(m.root, number(0, 1))})
	const nothing = serial + ": nobody is known by a serial number here"
	m.add(Exhibit{Name: "serial number zero", Clause: nothing, Must: Accepted, Chain: m.forged(m.root, number(0))})
	m.add(Exhibit{Name: "serial number of 21 octets", Clause: nothing, Must: Accepted,
		Chain: m.forged(m.root, number(bytes.Repeat([]byte{0x55}, 21)...))})
}

// withoutExtension leaves out the extension id-ce n.
func withoutExtension(extensions []pkix.Extension, n int) []pkix.Extension {
	return slices.DeleteFunc(slices.Clone(extensions), func(e pkix.Extension) bool { return e.Id.Equal([]int{2, 5, 29, n}) })
}

// names is the extension subjectAltName with these GeneralNames.
func (m *museum) names(names ...[]byte) pkix.Extension {
	m.tb.Helper()
	return extension([]int{2, 5, 29, 17}, false, sequence(m.tb, names...))
}

func email(m *museum, s string) []byte   { return tagged(m.tb, 1, false, []byte(s)) }
func dnsName(m *museum, s string) []byte { return tagged(m.tb, 2, false, []byte(s)) }
func uri(m *museum, s string) []byte     { return tagged(m.tb, 6, false, []byte(s)) }
func address(m *museum, b ...byte) []byte {
	return tagged(m.tb, 7, false, b)
}

// alternativeNames is CA-08 to CA-12: what stands in subjectAltName beside what was registered.
func (m *museum) alternativeNames() {
	const clause = "RFC 8705, Section 2.1.2"
	mapped := []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1}
	other := tagged(m.tb, 0, true, slices.Concat(marshal(m.tb, oidPoison), tagged(m.tb, 0, true, marshal(m.tb, "a.example"))))
	const spiffe = "spiffe://a.example/x"
	for _, tc := range []struct {
		name  string
		kind  mtls.SubjectKind
		value string
		must  Verdict
		names [][]byte
	}{
		{"DNS name in other case", mtls.SANDNS, "a.example", Accepted, [][]byte{dnsName(m, "A.Example")}},
		{"DNS name among others", mtls.SANDNS, "a.example", Accepted, [][]byte{other, uri(m, "https://b"), dnsName(m, "b.example"), dnsName(m, "a.example")}},
		{"DNS name of another", mtls.SANDNS, "a.example", RefusedBySubject, [][]byte{dnsName(m, "b.example")}},
		{"DNS name with a NUL", mtls.SANDNS, "a.example", RefusedBySubject, [][]byte{dnsName(m, "a.example\x00.evil.example")}},
		{"DNS name with a dot at the end", mtls.SANDNS, "a.example", RefusedBySubject, [][]byte{dnsName(m, "a.example.")}},
		{"DNS name with a space", mtls.SANDNS, "a.example", RefusedBySubject, [][]byte{dnsName(m, "a.example ")}},
		{"DNS wildcard", mtls.SANDNS, "a.example", RefusedBySubject, [][]byte{dnsName(m, "*.example")}},
		{"DNS wildcard for everything", mtls.SANDNS, "a.example", RefusedBySubject, [][]byte{dnsName(m, "*")}},
		{"DNS name below the registered one", mtls.SANDNS, "a.example", RefusedBySubject, [][]byte{dnsName(m, "b.a.example")}},
		{"DNS name empty", mtls.SANDNS, "a.example", RefusedBySubject, [][]byte{dnsName(m, "")}},
		{"DNS name beyond ASCII", mtls.SANDNS, "a.example", RefusedInHandshake, [][]byte{dnsName(m, "\u00e4.example")}},
		{"DNS name as a URI", mtls.SANDNS, "a.example", RefusedBySubject, [][]byte{uri(m, "a.example")}},
		{"DNS name as another name", mtls.SANDNS, "a.example", RefusedBySubject, [][]byte{other}},
		{"address as a DNS name", mtls.SANIP, "192.0.2.1", RefusedBySubject, [][]byte{dnsName(m, "192.0.2.1")}},
		{"address as such", mtls.SANIP, "192.0.2.1", Accepted, [][]byte{address(m, 192, 0, 2, 1)}},
		{"address mapped to IPv6", mtls.SANIP, "192.0.2.1", RefusedBySubject, [][]byte{address(m, mapped...)}},
		{"address registered as mapped to IPv6", mtls.SANIP, "::ffff:192.0.2.1", RefusedBySubject, [][]byte{address(m, 192, 0, 2, 1)}},
		{"address with a mask", mtls.SANIP, "192.0.2.1", RefusedInHandshake, [][]byte{address(m, 192, 0, 2, 1, 255, 255, 255, 255)}},
		{"address of five octets", mtls.SANIP, "192.0.2.1", RefusedInHandshake, [][]byte{address(m, 192, 0, 2, 1, 0)}},
		{"URI as such", mtls.SANURI, spiffe, Accepted, [][]byte{uri(m, spiffe)}},
		{"URI in other case", mtls.SANURI, spiffe, RefusedBySubject, [][]byte{uri(m, "spiffe://A.example/x")}},
		{"URI with a slash more", mtls.SANURI, spiffe, RefusedBySubject, [][]byte{uri(m, spiffe+"/")}},
		{"URI of which the registered one is the beginning", mtls.SANURI, spiffe, RefusedBySubject, [][]byte{uri(m, spiffe+"y")}},
		{"URI that needs decoding", mtls.SANURI, spiffe, RefusedBySubject, [][]byte{uri(m, "spiffe://a.example/%78")}},
		{"two SPIFFE ids, mine the second", mtls.SANURI, spiffe, Accepted, [][]byte{uri(m, "spiffe://a.example/y"), uri(m, spiffe)}},
		{"e-mail with its host in other case", mtls.SANEmail, "a@b.example", Accepted, [][]byte{email(m, "a@B.Example")}},
		{"e-mail with its local part in other case", mtls.SANEmail, "a@b.example", RefusedBySubject, [][]byte{email(m, "A@b.example")}},
		{"e-mail with a NUL", mtls.SANEmail, "a@b.example", RefusedBySubject, [][]byte{email(m, "a@b.example\x00.evil.example")}},
		{"no alternative name within the extension", mtls.SANDNS, "a.example", RefusedBySubject, nil},
	} {
		m.add(Exhibit{Name: tc.name, Clause: clause, Must: tc.must, Subject: m.subject(tc.kind, tc.value),
			Chain: m.forged(m.root, func(b *body) { b.Extensions = append(b.Extensions, m.names(tc.names...)) })})
	}
	m.add(Exhibit{Name: "DNS name only as the common name", Clause: clause, Must: RefusedBySubject,
		Subject: m.subject(mtls.SANDNS, "a.example"),
		Chain:   m.issue(m.root, func(t *x509.Certificate) { t.Subject.CommonName = "a.example" })})
	m.add(Exhibit{Name: "e-mail only in the subject", Clause: clause, Must: RefusedBySubject,
		Subject: m.subject(mtls.SANEmail, "a@b.example"),
		Chain:   m.subjectOf([]attribute{{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}, asn1.TagIA5String, "a@b.example"}})})
}

// subjectOf returns an honest certificate with a subject of these RDNs, most significant first.
func (m *museum) subjectOf(rdns ...[]attribute) tls.Certificate {
	m.tb.Helper()
	name := distinguishedName(m.tb, rdns...)
	return m.forged(m.root, func(b *body) { b.Subject = asn1.RawValue{FullBytes: name} })
}

// subjects is CA-06 and CA-07: in how many ways a subject is, or is not, CN=a,O=b.
func (m *museum) subjects() {
	const (
		clause    = "CA-06: RFC 8705, Section 2.1.2 and RFC 4514"
		utf8      = asn1.TagUTF8String
		print     = asn1.TagPrintableString
		universal = 28
	)
	one := func(oid asn1.ObjectIdentifier, tag int, value string) []attribute {
		return []attribute{{oid, tag, value}}
	}
	cn, o := one(oidCN, utf8, "a"), one(oidO, utf8, "b")
	for _, tc := range []struct {
		name string
		must Verdict
		rdns [][]attribute
	}{
		{"subject in UTF8String", Accepted, [][]attribute{o, cn}},
		{"subject in PrintableString", Accepted, [][]attribute{one(oidO, print, "b"), one(oidCN, print, "a")}},
		{"subject in BMPString", Accepted, [][]attribute{o, one(oidCN, asn1.TagBMPString, "\x00a")}},
		{"subject in BMPString with a NUL at its end", RefusedBySubject, [][]attribute{o, one(oidCN, asn1.TagBMPString, "\x00a\x00\x00")}},
		{"subject in BMPString, cut", RefusedInHandshake, [][]attribute{o, one(oidCN, asn1.TagBMPString, "\x00a\x00")}},
		{"subject in TeletexString", RefusedBySubject, [][]attribute{o, one(oidCN, asn1.TagT61String, "a")}},
		{"subject in UniversalString", RefusedInHandshake, [][]attribute{o, one(oidCN, universal, "\x00\x00\x00a")}},
		{"subject as octets", RefusedInHandshake, [][]attribute{o, one(oidCN, asn1.TagOctetString, "a")}},
		{"subject not in UTF-8", RefusedInHandshake, [][]attribute{o, one(oidCN, utf8, "\xff")}},
		{"subject with a NUL", RefusedBySubject, [][]attribute{o, one(oidCN, utf8, "a\x00")}},
		{"subject with a NUL in PrintableString", RefusedInHandshake, [][]attribute{o, one(oidCN, print, "a\x00")}},
		{"subject reversed", RefusedBySubject, [][]attribute{cn, o}},
		{"subject in one multi-valued name", RefusedBySubject, [][]attribute{slices.Concat(o, cn)}},
		{"subject in other case", RefusedBySubject, [][]attribute{o, one(oidCN, utf8, "A")}},
		{"subject with a look-alike", RefusedBySubject, [][]attribute{o, one(oidCN, utf8, "\u0430")}},
		{"subject with a space at its end", RefusedBySubject, [][]attribute{o, one(oidCN, utf8, "a ")}},
		{"subject with a comma that would inject", RefusedBySubject, [][]attribute{one(oidCN, utf8, "a,O=b")}},
		{"subject with a name before", RefusedBySubject, [][]attribute{one(oidO, utf8, "c"), o, cn}},
		{"subject with a name behind", RefusedBySubject, [][]attribute{o, cn, one(oidCN, utf8, "c")}},
		{"subject with a name between", RefusedBySubject, [][]attribute{o, one(oidO, utf8, "c"), cn}},
		{"subject with an empty name between", RefusedBySubject, [][]attribute{o, nil, cn}},
		{"subject with an unknown attribute", RefusedBySubject, [][]attribute{o, cn, one(oidPoison, utf8, "c")}},
		{"subject with an unknown type for a known", RefusedBySubject, [][]attribute{o, one(oidPoison, utf8, "a")}},
		{"subject without its organization", RefusedBySubject, [][]attribute{cn}},
		{"subject empty", RefusedBySubject, nil},
	} {
		m.add(Exhibit{Name: tc.name, Clause: clause, Must: tc.must, Subject: m.subject(mtls.SubjectDN, "CN=a,O=b"),
			Chain: m.subjectOf(tc.rdns...)})
	}
	m.add(Exhibit{Name: "subject multi-valued, as registered", Clause: clause, Must: Accepted,
		Subject: m.subject(mtls.SubjectDN, "CN=a+O=b"),
		Chain:   m.subjectOf(slices.Concat(o, cn))})
	m.add(Exhibit{Name: "subject of two names for a multi-valued", Clause: clause, Must: RefusedBySubject,
		Subject: m.subject(mtls.SubjectDN, "CN=a+O=b"),
		Chain:   m.subjectOf(o, cn)})
	m.add(Exhibit{Name: "subject with a type unknown here, as registered", Clause: clause, Must: Accepted,
		Subject: m.subject(mtls.SubjectDN, oidPoison.String()+"=#0C0161"), Chain: m.subjectOf(one(oidPoison, utf8, "a"))})
	m.add(Exhibit{Name: "subject of another client of the same authority", Clause: clause, Must: RefusedBySubject,
		Subject: m.subject(mtls.SubjectDN, "CN=somebody else"), Chain: m.issue(m.root)})
}
