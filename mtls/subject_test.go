// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package mtls_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
)

// CA-04: RFC 8705, Section 2.1.2: of the five subject members a client has exactly one.
func TestRFC8705_2_1_2_ExactlyOneSubject(t *testing.T) {
	t.Parallel()
	all := []mtls.SubjectKind{mtls.SubjectDN, mtls.SANDNS, mtls.SANURI, mtls.SANIP, mtls.SANEmail}
	values := []string{"CN=a", "a.example", "https://a.example", "192.0.2.1", "a@a.example"}
	if _, err := mtls.SubjectFromMetadata(map[string]string{"client_name": "a"}); err == nil {
		t.Error("no member was accepted")
	}
	for i, kind := range all {
		one := map[string]string{string(kind): values[i], "client_name": "a"}
		s, err := mtls.SubjectFromMetadata(one)
		if err != nil || s.Kind() != kind || s.Value() != values[i] || s.IsZero() {
			t.Errorf("%s: got %q %q, %v", kind, s.Kind(), s.Value(), err)
		}
		if _, err := mtls.SubjectFromMetadata(map[string]string{string(kind): ""}); err == nil {
			t.Errorf("%s: an empty value was accepted", kind)
		}
		for j, other := range all {
			if i == j {
				continue
			}
			two := map[string]string{string(kind): values[i], string(other): ""}
			if s, err := mtls.SubjectFromMetadata(two); err == nil || !s.IsZero() {
				t.Errorf("%s with %s was accepted", kind, other)
			}
		}
	}
}

func TestParseSubjectRefuses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		kind  mtls.SubjectKind
		value string
	}{
		"unknown kind":      {"tls_client_auth_subject", "CN=a"},
		"no kind":           {"", "a"},
		"too long":          {mtls.SANDNS, strings.Repeat("a", 5000)},
		"dns empty":         {mtls.SANDNS, ""},
		"dns with NUL":      {mtls.SANDNS, "a.example\x00.evil"},
		"dns not ascii":     {mtls.SANDNS, "\u212aelvin.example"},
		"dns with space":    {mtls.SANDNS, "a.example "},
		"uri with newline":  {mtls.SANURI, "https://a\n"},
		"ip is a name":      {mtls.SANIP, "localhost"},
		"ip is a network":   {mtls.SANIP, "192.0.2.0/24"},
		"ip with zone":      {mtls.SANIP, "fe80::1%eth0"},
		"ip with port":      {mtls.SANIP, "192.0.2.1:443"},
		"ip leading zero":   {mtls.SANIP, "192.0.2.01"},
		"email no host":     {mtls.SANEmail, "a@"},
		"email no local":    {mtls.SANEmail, "@a"},
		"email no at":       {mtls.SANEmail, "a"},
		"dn empty":          {mtls.SubjectDN, ""},
		"dn spaces":         {mtls.SubjectDN, "  "},
		"dn commas":         {mtls.SubjectDN, ",,"},
		"dn trailing comma": {mtls.SubjectDN, "CN=a,"},
		"dn leading comma":  {mtls.SubjectDN, ",CN=a"},
		"dn trailing plus":  {mtls.SubjectDN, "CN=a+"},
		"dn no type":        {mtls.SubjectDN, "=a"},
		"dn no value":       {mtls.SubjectDN, "CN="},
		"dn only spaces":    {mtls.SubjectDN, "CN=  "},
		"dn no equals":      {mtls.SubjectDN, "a"},
		"dn unknown type":   {mtls.SubjectDN, "FOO=a"},
		"dn oid garbage":    {mtls.SubjectDN, "2.5.4.x=a"},
		"dn oid trailing":   {mtls.SubjectDN, "2.5.4.=a"},
		"dn oid zeros":      {mtls.SubjectDN, "2.5.4.03=a"},
		"dn NUL":            {mtls.SubjectDN, "CN=a\x00b"},
		"dn escaped NUL":    {mtls.SubjectDN, `CN=a\00b`},
		"dn escaped C1":     {mtls.SubjectDN, `CN=a\C2\85b`},
		"dn bad UTF-8":      {mtls.SubjectDN, `CN=\C3\28`},
		"dn semicolon":      {mtls.SubjectDN, "CN=a;O=b"},
		"dn quotes":         {mtls.SubjectDN, `CN="a"`},
		"dn angle":          {mtls.SubjectDN, "CN=<a>"},
		"dn bad escape":     {mtls.SubjectDN, `CN=\a`},
		"dn cut escape":     {mtls.SubjectDN, `CN=a\`},
		"dn cut hex pair":   {mtls.SubjectDN, `CN=a\4`},
		"dn odd hex":        {mtls.SubjectDN, "CN=#0C016"},
		"dn hex empty":      {mtls.SubjectDN, "CN=#"},
		"dn hex garbage":    {mtls.SubjectDN, "CN=#zz"},
		"dn hex two values": {mtls.SubjectDN, "CN=#0C01610C0161"},
		"dn hex truncated":  {mtls.SubjectDN, "CN=#0C0261"},
		"dn hex NUL":        {mtls.SubjectDN, "CN=#0C0100"},
		"dn hex no text":    {mtls.SubjectDN, "CN=#0C00"},
		"dn type twice":     {mtls.SubjectDN, "CN=a+2.5.4.3=b"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if s, err := mtls.ParseSubject(tc.kind, tc.value); err == nil || !s.IsZero() {
				t.Errorf("ParseSubject(%q, %q) was accepted", tc.kind, tc.value)
			}
		})
	}
}

func TestZeroSubjectMatchesNothing(t *testing.T) {
	t.Parallel()
	var zero mtls.Subject
	empty := &x509.Certificate{RawSubject: []byte{0x30, 0}}
	if zero.Matches(nil) || zero.Matches(empty) || zero.Matches(appendixA(t)) {
		t.Error("the zero subject matches")
	}
	if subject(t, mtls.SubjectDN, "CN=a").Matches(nil) || subject(t, mtls.SubjectDN, "CN=a").Matches(empty) {
		t.Error("no certificate or an empty name matches")
	}
}

func subject(tb testing.TB, kind mtls.SubjectKind, value string) mtls.Subject {
	tb.Helper()
	s, err := mtls.ParseSubject(kind, value)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// attr is one attribute of a subject built by hand: its type, and its value as a tag and octets.
type attr struct {
	oid   asn1.ObjectIdentifier
	tag   int
	value string
}

var (
	oidCN = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidO  = asn1.ObjectIdentifier{2, 5, 4, 10}
	oidOU = asn1.ObjectIdentifier{2, 5, 4, 11}
)

func cn(tag int, value string) []attr { return []attr{{oidCN, tag, value}} }
func o(tag int, value string) []attr  { return []attr{{oidO, tag, value}} }
func ou(tag int, value string) []attr { return []attr{{oidOU, tag, value}} }

// name returns the DER of a Name with the given RDNs, most significant first.
func name(tb testing.TB, rdns ...[]attr) []byte {
	tb.Helper()
	var sets []byte
	for _, rdn := range rdns {
		var encoded [][]byte
		for _, a := range rdn {
			oid := marshal(tb, a.oid)
			value := marshal(tb, asn1.RawValue{Tag: a.tag, Bytes: []byte(a.value)})
			encoded = append(encoded, constructed(tb, asn1.TagSequence, slices.Concat(oid, value)))
		}
		slices.SortFunc(encoded, slices.Compare)
		sets = append(sets, constructed(tb, asn1.TagSet, slices.Concat(encoded...))...)
	}
	return constructed(tb, asn1.TagSequence, sets)
}

func constructed(tb testing.TB, tag int, content []byte) []byte {
	tb.Helper()
	return marshal(tb, asn1.RawValue{Tag: tag, IsCompound: true, Bytes: content})
}

func marshal(tb testing.TB, v any) []byte {
	tb.Helper()
	der, err := asn1.Marshal(v)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

// CA-06: RFC 8705, Section 2.1.2 and RFC 4514: the subject is compared as a distinguished name, attribute by attribute
// in its order, whatever string type and escapes stand for the characters.
func TestRFC8705_2_1_2_SubjectDN(t *testing.T) {
	t.Parallel()
	const (
		utf8  = asn1.TagUTF8String
		print = asn1.TagPrintableString
		ia5   = asn1.TagIA5String
		num   = asn1.TagNumericString
		t61   = asn1.TagT61String
		bmp   = asn1.TagBMPString
	)
	custom := asn1.ObjectIdentifier{1, 2, 3, 4, 5}
	dc := asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 25}
	for _, tc := range []struct {
		name     string
		expected string
		cert     []byte
		want     bool
	}{
		{"same", "CN=a,O=b", name(t, o(utf8, "b"), cn(utf8, "a")), true},
		{"spaces around separators", " CN = a , O = b ", name(t, o(utf8, "b"), cn(utf8, "a")), true},
		{"other order", "CN=a,O=b", name(t, cn(utf8, "a"), o(utf8, "b")), false},
		{"printable", "CN=a,O=b", name(t, o(print, "b"), cn(utf8, "a")), true},
		{"all printable", "CN=a,O=b", name(t, o(print, "b"), cn(print, "a")), true},
		{"ia5", "DC=a", name(t, []attr{{dc, ia5, "a"}}), true},
		{"numeric", "serialNumber=123", name(t, []attr{{asn1.ObjectIdentifier{2, 5, 4, 5}, num, "123"}}), true},
		{"bmp", "CN=a\u20ac", name(t, cn(bmp, "\x00a\x20\xac")), true},
		{"bmp of other characters", "CN=a", name(t, cn(bmp, "a\x00")), false},
		{"bmp odd", "CN=a", name(t, cn(bmp, "\x00a\x00")), false},
		{"bmp surrogates", "CN=\U0001F600", name(t, cn(bmp, "\xd8\x3d\xde\x00")), false},
		{"bmp surrogates are not replaced", "CN=\ufffd\ufffd", name(t, cn(bmp, "\xd8\x3d\xde\x00")), false},
		{"printable beyond ASCII", "CN=\u00e9", name(t, cn(print, "\u00e9")), false},
		{"not UTF-8", "CN=\ufffd", name(t, cn(utf8, "\xff")), false},
		{"empty RDN", "CN=a", name(t, cn(utf8, "a"), nil), false},
		{"teletex is not text", "CN=a", name(t, cn(t61, "a")), false},
		{"teletex by its DER", "CN=#140161", name(t, cn(t61, "a")), true},
		{"escaped comma", `O=b\, c`, name(t, o(utf8, "b, c")), true},
		{"comma in hexadecimal", `O=b\2C c`, name(t, o(utf8, "b, c")), true},
		{"escaped comma, two attributes", `O=b\, c`, name(t, o(utf8, "c"), o(utf8, "b")), false},
		{"comma that would inject", `CN=a,O=b`, name(t, cn(utf8, "a,O=b")), false},
		{"escaped specials", `CN=\"\#\+\,\;\<\=\>\\\ `, name(t, cn(utf8, `"#+,;<=>\ `)), true},
		{"equals in value", "CN=a=b", name(t, cn(utf8, "a=b")), true},
		{"hash inside", "CN=a#b", name(t, cn(utf8, "a#b")), true},
		{"leading space", `CN=\ a`, name(t, cn(utf8, " a")), true},
		{"leading space unescaped", `CN= a`, name(t, cn(utf8, " a")), false},
		{"trailing space escaped", `CN=a\20`, name(t, cn(utf8, "a ")), true},
		{"trailing space in certificate", "CN=a", name(t, cn(utf8, "a ")), false},
		{"inner double space", "CN=a b", name(t, cn(utf8, "a  b")), false},
		{"no-break space is no space", "CN=a b", name(t, cn(utf8, "a\u00a0b")), false},
		{"UTF-8 escapes", `CN=Lu\C4\8Di\C4\87`, name(t, cn(utf8, "Lučić")), true},
		{"composed and decomposed differ", "CN=\u00e9", name(t, cn(utf8, "e\u0301")), false},
		{"extra RDN", "CN=a,O=b", name(t, o(utf8, "b"), ou(utf8, "x"), cn(utf8, "a")), false},
		{"extra RDN first", "CN=a,O=b", name(t, ou(utf8, "x"), o(utf8, "b"), cn(utf8, "a")), false},
		{"extra RDN last", "CN=a,O=b", name(t, o(utf8, "b"), cn(utf8, "a"), ou(utf8, "x")), false},
		{"missing RDN", "CN=a,O=b", name(t, cn(utf8, "a")), false},
		{"multi-valued", "CN=a+OU=x", name(t, slices.Concat(cn(utf8, "a"), ou(utf8, "x"))), true},
		{"multi-valued, any order", "OU=x+CN=a", name(t, slices.Concat(cn(utf8, "a"), ou(utf8, "x"))), true},
		{"multi-valued is not two", "CN=a+OU=x", name(t, ou(utf8, "x"), cn(utf8, "a")), false},
		{"two are not multi-valued", "CN=a,OU=x", name(t, slices.Concat(cn(utf8, "a"), ou(utf8, "x"))), false},
		{"multi-valued with more", "CN=a", name(t, slices.Concat(cn(utf8, "a"), ou(utf8, "x"))), false},
		{"oid form", "2.5.4.3=a", name(t, cn(print, "a")), true},
		{"lower-case name", "cn=a,o=b", name(t, o(utf8, "b"), cn(utf8, "a")), true},
		{"long name", "commonName=a", name(t, cn(utf8, "a")), true},
		{"other type", "OU=a", name(t, cn(utf8, "a")), false},
		{"unknown oid by its DER", "1.2.3.4.5=#0C0161", name(t, []attr{{custom, utf8, "a"}}), true},
		{"unknown oid by its text", "1.2.3.4.5=a", name(t, []attr{{custom, utf8, "a"}}), true},
		{"DER of the other string type", "CN=#130161", name(t, cn(utf8, "a")), true},
		{"DER of no string", "1.2.3.4.5=#0201FF", name(t, []attr{{custom, asn1.TagInteger, "\xff"}}), true},
		{"DER of no string is no text", "1.2.3.4.5=a", name(t, []attr{{custom, asn1.TagOctetString, "a"}}), false},
		{"octet string by its DER", "1.2.3.4.5=#040161", name(t, []attr{{custom, asn1.TagOctetString, "a"}}), true},
		{"text that looks like DER", `CN=\#0C0161`, name(t, cn(utf8, "a")), false},
		{"repeated", "CN=a,CN=a", name(t, cn(utf8, "a"), cn(utf8, "a")), true},
		{"repeated less", "CN=a", name(t, cn(utf8, "a"), cn(utf8, "a")), false},
		{"empty subject", "CN=a", name(t), false},
		{"trailing octets", "CN=a", append(name(t, cn(utf8, "a")), 0), false},
		{"not a name", "CN=a", []byte{2, 1, 1}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			cert := &x509.Certificate{RawSubject: tc.cert}
			if got := subject(t, mtls.SubjectDN, tc.expected).Matches(cert); got != tc.want {
				t.Errorf("%q matches: %t, want %t", tc.expected, got, tc.want)
			}
		})
	}
}

// An attribute with something after its value is malformed, whatever a lenient decoder makes of it.
func TestSubjectDNTrailingInAttribute(t *testing.T) {
	t.Parallel()
	value := marshal(t, asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte("a")})
	pair := constructed(t, asn1.TagSequence, slices.Concat(marshal(t, oidCN), value, value))
	der := constructed(t, asn1.TagSequence, constructed(t, asn1.TagSet, pair))
	if subject(t, mtls.SubjectDN, "CN=a").Matches(&x509.Certificate{RawSubject: der}) {
		t.Error("a malformed attribute matches")
	}
}

// What is tagged as something else is no attribute type and no text, whatever its octets are.
func TestSubjectDNTags(t *testing.T) {
	t.Parallel()
	expected := subject(t, mtls.SubjectDN, "CN=a")
	typ := func(tag int) []byte { return marshal(t, asn1.RawValue{Tag: tag, Bytes: []byte{0x55, 4, 3}}) }
	value := func(class int, compound bool) []byte {
		return marshal(t, asn1.RawValue{Class: class, Tag: asn1.TagUTF8String, IsCompound: compound, Bytes: []byte("a")})
	}
	universal, private := asn1.ClassUniversal, asn1.ClassPrivate
	for name, tc := range map[string]struct {
		typ, value []byte
		want       bool
	}{
		"right":             {typ(asn1.TagOID), value(universal, false), true},
		"type no OID":       {typ(asn1.TagOctetString), value(universal, false), false},
		"value private":     {typ(asn1.TagOID), value(private, false), false},
		"value constructed": {typ(asn1.TagOID), value(universal, true), false},
	} {
		pair := constructed(t, asn1.TagSequence, slices.Concat(tc.typ, tc.value))
		der := constructed(t, asn1.TagSequence, constructed(t, asn1.TagSet, pair))
		if got := expected.Matches(&x509.Certificate{RawSubject: der}); got != tc.want {
			t.Errorf("%s: matches: %t, want %t", name, got, tc.want)
		}
	}
}

// CA-06: the same on certificates that went through a CA and the parser, with what Go would print of the subject.
func TestRFC8705_2_1_2_SubjectDNOfIssuedCertificate(t *testing.T) {
	t.Parallel()
	subjectName := pkix.Name{
		Country: []string{"DE"}, Organization: []string{"Büro, Söhne & Co."}, CommonName: " payments+1 ",
		ExtraNames: []pkix.AttributeTypeAndValue{{Type: asn1.ObjectIdentifier{2, 5, 4, 97}, Value: "PSDDE-BAFIN-1"}},
	}
	cert := mtlstest.SelfSigned(t, mtlstest.Leaf{Subject: &subjectName})
	const want = `organizationIdentifier=PSDDE-BAFIN-1,CN=\ payments\+1\ ,O=Büro\, Söhne & Co.,C=DE`
	if !subject(t, mtls.SubjectDN, want).Matches(cert.Leaf) {
		t.Errorf("%s does not match %s", want, cert.Leaf.Subject)
	}
	if !subject(t, mtls.SubjectDN, "CN=mtls").Matches(appendixA(t)) {
		t.Error("CN=mtls does not match the certificate of RFC 8705, Appendix A")
	}
}

// CA-07: RFC 4514 leaves equality to the attribute's rule; ours is exact: letter case counts, in every locale.
func TestRFC4514_CaseRule(t *testing.T) {
	t.Parallel()
	for expected, cert := range map[string]string{"CN=A": "a", "CN=a": "A", "CN=I": "\u0131", "CN=i": "\u0130", "CN=k": "\u212a"} {
		der := name(t, cn(asn1.TagUTF8String, cert))
		if subject(t, mtls.SubjectDN, expected).Matches(&x509.Certificate{RawSubject: der}) {
			t.Errorf("%s matches CN=%s", expected, cert)
		}
	}
}

// general returns the extension subjectAltName with one GeneralName of the given tag and octets for each pair.
func general(tb testing.TB, names ...asn1.RawValue) []pkix.Extension {
	tb.Helper()
	return []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: marshal(tb, names)}}
}

func san(tag int, octets string) asn1.RawValue {
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, Bytes: []byte(octets)}
}

const (
	sanEmail = 1
	sanDNS   = 2
	sanURI   = 6
	sanIP    = 7
)

type sanCase struct {
	name     string
	expected string
	leaf     mtlstest.Leaf
	want     bool
}

func testSAN(t *testing.T, kind mtls.SubjectKind, cases []sanCase) {
	t.Helper()
	ca := mtlstest.NewCA(t, "ca")
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			cert := ca.Issue(t, tc.leaf)
			if got := subject(t, kind, tc.expected).Matches(cert.Leaf); got != tc.want {
				t.Errorf("%q matches: %t, want %t", tc.expected, got, tc.want)
			}
		})
	}
}

// CA-08: RFC 8705, Section 2.1.2: a dNSName is equal or not, in whatever ASCII case; a wildcard has no meaning on
// either side, and the common name is never looked at.
func TestRFC8705_2_1_2_SANDNS(t *testing.T) {
	t.Parallel()
	dns := func(names ...string) mtlstest.Leaf { return mtlstest.Leaf{DNSNames: names} }
	testSAN(t, mtls.SANDNS, []sanCase{
		{"equal", "a.example", dns("a.example"), true},
		{"case", "A.Example", dns("a.eXAMPLE"), true},
		{"wildcard in certificate", "a.example", dns("*.example"), false},
		{"wildcard registered", "*.example", dns("b.example"), false},
		{"subdomain", "a.example", dns("b.a.example"), false},
		{"parent", "b.a.example", dns("a.example"), false},
		{"trailing dot", "a.example.", dns("a.example"), false},
		{"common name", "a.example", mtlstest.Leaf{CommonName: "a.example"}, false},
		{"common name beside another", "a.example", mtlstest.Leaf{CommonName: "a.example", DNSNames: []string{"b.example"}}, false},
	})
}

// CA-09: RFC 8705, Section 2.1.2 and RFC 3986, Section 6.2.1: a URI is compared octet by octet, the scheme's case
// included.
func TestRFC8705_2_1_2_SANURI(t *testing.T) {
	t.Parallel()
	uri := func(names ...string) mtlstest.Leaf { return mtlstest.Leaf{URIs: names} }
	raw := mtlstest.Leaf{ExtraExtensions: general(t, san(sanURI, "HTTPS://x/a"))}
	testSAN(t, mtls.SANURI, []sanCase{
		{"equal", "https://x/a", uri("https://x/a"), true},
		{"spiffe", "spiffe://td/client/a", uri("spiffe://td/client/a"), true},
		{"slash", "https://x/a", uri("https://x/a/"), false},
		{"scheme case", "https://x/a", raw, false},
		{"scheme case equal", "HTTPS://x/a", raw, true},
		{"path case", "https://x/a", uri("https://x/A"), false},
		{"prefix", "spiffe://td/client/a", uri("spiffe://td/client/ab"), false},
		{"percent", "https://x/%61", uri("https://x/a"), false},
		{"default port", "https://x:443/a", uri("https://x/a"), false},
	})
}

// CA-10: RFC 8705, Section 2.1.2: an address is compared in binary; IPv4 is not the mapped form of IPv6.
func TestRFC8705_2_1_2_SANIP(t *testing.T) {
	t.Parallel()
	ip := func(s string) mtlstest.Leaf { return mtlstest.Leaf{IPs: []net.IP{net.ParseIP(s)}} }
	v4 := mtlstest.Leaf{ExtraExtensions: general(t, san(sanIP, "\xc0\x00\x02\x01"))}
	mapped := mtlstest.Leaf{ExtraExtensions: general(t, san(sanIP, "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xc0\x00\x02\x01"))}
	testSAN(t, mtls.SANIP, []sanCase{
		{"v4", "192.0.2.1", ip("192.0.2.1"), true},
		{"v4 other", "192.0.2.1", ip("192.0.2.2"), false},
		{"v6 spelled otherwise", "2001:db8:0:0::1", ip("2001:db8::1"), true},
		{"v6 upper case", "2001:DB8::1", ip("2001:db8::1"), true},
		{"v4 registered, mapped in certificate", "192.0.2.1", mapped, false},
		{"mapped registered, v4 in certificate", "::ffff:192.0.2.1", v4, false},
		{"mapped registered, mapped in certificate", "::ffff:192.0.2.1", mapped, true},
		{"as a DNS name", "192.0.2.1", mtlstest.Leaf{DNSNames: []string{"192.0.2.1"}}, false},
	})
}

// CA-11: RFC 8705, Section 2.1.2 and RFC 5280, Section 7.5: of an rfc822Name the local part is compared exactly, the
// host in whatever ASCII case.
func TestRFC8705_2_1_2_SANEmail(t *testing.T) {
	t.Parallel()
	email := func(names ...string) mtlstest.Leaf { return mtlstest.Leaf{Emails: names} }
	testSAN(t, mtls.SANEmail, []sanCase{
		{"equal", "a@x.example", email("a@x.example"), true},
		{"local part case", "A@x.example", email("a@x.example"), false},
		{"host case", "a@X.example", email("a@x.eXample"), true},
		{"other host", "a@x.example", email("a@y.example"), false},
		{"only host", "a@x.example", mtlstest.Leaf{ExtraExtensions: general(t, san(sanEmail, "x.example"))}, false},
		{"in the subject", "a@x.example", mtlstest.Leaf{Subject: &pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{
			{Type: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}, Value: "a@x.example"}}}}, false},
	})
}

// CA-12: RFC 8705, Section 2.1.2: of several entries of the expected type any one may match, of another type none.
func TestRFC8705_2_1_2_AnyEntryOfTheType(t *testing.T) {
	t.Parallel()
	mixed := mtlstest.Leaf{ExtraExtensions: general(t, san(sanURI, "a.example"), san(sanEmail, "a.example"),
		san(sanDNS, "x.example"), san(sanURI, "https://a"))}
	testSAN(t, mtls.SANDNS, []sanCase{
		{"second", "a.example", mtlstest.Leaf{DNSNames: []string{"x", "a.example"}}, true},
		{"after other types", "x.example", mixed, true},
		{"held by other types", "a.example", mixed, false},
	})
	testSAN(t, mtls.SANURI, []sanCase{
		{"after others", "https://a", mixed, true},
		{"held by a DNS name", "x.example", mixed, false},
	})
	// The same number with another class or constructed form is another type.
	for _, n := range []asn1.RawValue{
		{Class: asn1.ClassPrivate, Tag: sanDNS, Bytes: []byte("a.example")},
		{Class: asn1.ClassContextSpecific, Tag: sanDNS, IsCompound: true, Bytes: []byte("a.example")},
	} {
		if subject(t, mtls.SANDNS, "a.example").Matches(&x509.Certificate{Extensions: general(t, n)}) {
			t.Errorf("class %d, constructed %t matches", n.Class, n.IsCompound)
		}
	}
}

// CA-13: RFC 8705, Section 7.4: a NUL or control character in a name of a certificate does not end it.
func TestRFC8705_7_4_EmbeddedNUL(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"a.example\x00.evil", "a.example\x00", "\x00a.example", "a.example\n", "\ta.example"} {
		leaf := mtlstest.Leaf{ExtraExtensions: general(t, san(sanDNS, s), san(sanEmail, "a@"+s)),
			RawSubject: name(t, cn(asn1.TagUTF8String, s))}
		cert := mtlstest.SelfSigned(t, leaf).Leaf
		for kind, value := range map[mtls.SubjectKind]string{
			mtls.SANDNS: "a.example", mtls.SANEmail: "a@a.example", mtls.SubjectDN: "CN=a.example",
		} {
			if subject(t, kind, value).Matches(cert) {
				t.Errorf("%s %q matches %q", kind, value, s)
			}
		}
	}
}

func TestSANMalformed(t *testing.T) {
	t.Parallel()
	good := general(t, san(sanDNS, "a.example"))[0]
	for name, value := range map[string][]byte{
		"empty": nil, "truncated": good.Value[:len(good.Value)-1], "trailing": append(slices.Clone(good.Value), 0),
		"not a sequence": {2, 1, 1},
	} {
		cert := &x509.Certificate{Extensions: []pkix.Extension{{Id: good.Id, Value: value}}}
		if subject(t, mtls.SANDNS, "a.example").Matches(cert) {
			t.Errorf("%s: matches", name)
		}
	}
}

// DR-07: RFC 4514: spellings of one name, and of no other, have one canonical form, so that a registry can tell that two
// clients would be recognised by the same certificate.
func TestRFC4514_CanonicalSubject(t *testing.T) {
	t.Parallel()
	seen := make(map[string]string)
	for _, group := range [][][2]string{
		{{"tls_client_auth_subject_dn", "CN=a,O=b"}, {"tls_client_auth_subject_dn", "2.5.4.3=a, o = b"}, {"tls_client_auth_subject_dn", "commonName=\\61,O=b"}},
		{{"tls_client_auth_subject_dn", "O=b,CN=a"}},
		{{"tls_client_auth_subject_dn", "CN=A,O=b"}},
		{{"tls_client_auth_subject_dn", "CN=a+O=b"}, {"tls_client_auth_subject_dn", "O=b+CN=a"}},
		{{"tls_client_auth_subject_dn", "CN=a\\,O=b"}},
		{{"tls_client_auth_san_dns", "a.example"}, {"tls_client_auth_san_dns", "A.Example"}},
		{{"tls_client_auth_san_uri", "https://a.example"}},
		{{"tls_client_auth_san_uri", "HTTPS://a.example"}},
		{{"tls_client_auth_san_ip", "2001:db8::1"}, {"tls_client_auth_san_ip", "2001:DB8:0:0::1"}},
		{{"tls_client_auth_san_email", "a@x.example"}, {"tls_client_auth_san_email", "a@X.example"}},
		{{"tls_client_auth_san_email", "A@x.example"}},
	} {
		first := ""
		for _, member := range group {
			subject, err := mtls.ParseSubject(mtls.SubjectKind(member[0]), member[1])
			if err != nil {
				t.Fatal(err)
			}
			if first == "" {
				first = subject.Canonical()
			}
			if got := subject.Canonical(); got != first {
				t.Errorf("%s %q: %s, want %s as %q", member[0], member[1], got, first, group[0][1])
			}
		}
		if other, ok := seen[first]; ok {
			t.Errorf("%q and %q have one form", group[0][1], other)
		}
		seen[first] = group[0][1]
	}
}
