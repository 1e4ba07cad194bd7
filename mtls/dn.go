// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package mtls

import (
	"cmp"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// distinguishedName is a name in the order of its DER, most significant first; the string form of RFC 4514,
// Section 2.1 has the opposite order.
type distinguishedName []relativeName

// relativeName is one RDN: a set, kept sorted so that it can be compared.
type relativeName []attribute

// attribute is a type with its value. Values of the character string types are kept as text, so that the same
// characters are equal whatever type they are encoded in; all others are kept as DER.
type attribute struct {
	oid   string // the content octets of the DER
	text  bool
	value string
}

func (d distinguishedName) equal(e distinguishedName) bool {
	return slices.EqualFunc(d, e, func(a, b relativeName) bool { return slices.Equal(a, b) })
}

// canonical writes what equal compares: two names are equal if and only if these are.
func (d distinguishedName) canonical() string {
	var b strings.Builder
	for _, rdn := range d {
		for _, a := range rdn {
			fmt.Fprintf(&b, "%x:%t:%q+", a.oid, a.text, a.value)
		}
		b.WriteByte(',')
	}
	return b.String()
}

func compareAttributes(a, b attribute) int {
	return cmp.Or(strings.Compare(a.oid, b.oid), strings.Compare(a.value, b.value))
}

// shortNames are the descriptors that may stand for an attribute type, in lower case: those that RFC 4514, Section 3
// demands and, of RFC 4519 and X.520, those seen in certificates of clients.
func shortNames(name string) (string, bool) {
	oid, ok := map[string]string{
		"cn": "2.5.4.3", "commonname": "2.5.4.3",
		"l": "2.5.4.7", "localityname": "2.5.4.7",
		"st": "2.5.4.8", "stateorprovincename": "2.5.4.8",
		"o": "2.5.4.10", "organizationname": "2.5.4.10",
		"ou": "2.5.4.11", "organizationalunitname": "2.5.4.11",
		"c": "2.5.4.6", "countryname": "2.5.4.6",
		"street": "2.5.4.9", "streetaddress": "2.5.4.9",
		"dc": "0.9.2342.19200300.100.1.25", "domaincomponent": "0.9.2342.19200300.100.1.25",
		"uid": "0.9.2342.19200300.100.1.1", "userid": "0.9.2342.19200300.100.1.1",
		"sn": "2.5.4.4", "surname": "2.5.4.4",
		"serialnumber":           "2.5.4.5",
		"title":                  "2.5.4.12",
		"description":            "2.5.4.13",
		"businesscategory":       "2.5.4.15",
		"postalcode":             "2.5.4.17",
		"name":                   "2.5.4.41",
		"givenname":              "2.5.4.42",
		"initials":               "2.5.4.43",
		"generationqualifier":    "2.5.4.44",
		"dnqualifier":            "2.5.4.46",
		"pseudonym":              "2.5.4.65",
		"organizationidentifier": "2.5.4.97",
		"emailaddress":           "1.2.840.113549.1.9.1",
	}[strings.ToLower(name)]
	return oid, ok
}

// parseDN reads the string form of RFC 4514. Beyond its grammar, spaces around separators are skipped, as RFC 2253,
// Section 4 has it: a value cannot begin or end with a space that is not escaped. Refused are the empty name, empty
// values, control characters, one attribute type twice in an RDN, and names of types that are not known.
//
// Comparison is exact: case and white space count, and nothing is normalised. RFC 4518 would fold both for most
// attributes; what is exact never matches more than was meant, and does not hang on a version of Unicode.
func parseDN(s string) (distinguishedName, error) {
	p := dnParser{rest: s}
	var dn distinguishedName
	for {
		rdn, err := p.relativeName()
		if err != nil {
			return nil, err
		}
		dn = append(dn, rdn)
		if p.rest == "" {
			slices.Reverse(dn)
			return dn, nil
		}
		p.rest = p.rest[1:] // the comma
	}
}

type dnParser struct {
	rest string
}

// relativeName reads up to a comma, which it leaves, or to the end.
func (p *dnParser) relativeName() (relativeName, error) {
	var rdn relativeName
	for {
		a, err := p.attribute()
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(rdn, func(b attribute) bool { return a.oid == b.oid }) {
			return nil, errors.New("one attribute type twice in a relative name")
		}
		rdn = append(rdn, a)
		if p.rest == "" || p.rest[0] == ',' {
			slices.SortFunc(rdn, compareAttributes)
			return rdn, nil
		}
		p.rest = p.rest[1:] // the plus
	}
}

// attribute reads type=value up to a comma or plus, which it leaves, or to the end.
func (p *dnParser) attribute() (attribute, error) {
	name, value, ok := strings.Cut(p.rest, "=")
	if !ok {
		return attribute{}, errors.New("want TYPE=VALUE, separated by commas")
	}
	oid, err := parseAttributeType(strings.Trim(name, " "))
	if err != nil {
		return attribute{}, err
	}
	p.rest = strings.TrimLeft(value, " ")
	var a attribute
	if strings.HasPrefix(p.rest, "#") {
		a, err = p.hexValue()
	} else {
		a, err = p.textValue()
	}
	a.oid = oid
	return a, err
}

// parseAttributeType returns the content octets of the DER of an object identifier, given as such or by a short name.
func parseAttributeType(name string) (string, error) {
	dotted, ok := shortNames(name)
	if !ok {
		dotted = name
	}
	oid, err := x509.ParseOID(dotted)
	if err != nil || oid.String() != dotted { // leading zeros are not in the grammar
		return "", fmt.Errorf("unknown attribute type %q: use its object identifier", name)
	}
	der, err := oid.MarshalBinary()
	if err != nil {
		return "", fmt.Errorf("attribute type %q: %w", name, err)
	}
	return string(der), nil
}

// hexValue reads # and the hexadecimal form of a value's DER (RFC 4514, Section 2.4).
func (p *dnParser) hexValue() (attribute, error) {
	digits := p.rest[1:]
	if i := strings.IndexAny(digits, ",+"); i >= 0 {
		digits = digits[:i]
	}
	p.rest = p.rest[1+len(digits):]
	der, err := hex.DecodeString(strings.TrimRight(digits, " "))
	if err != nil {
		return attribute{}, errors.New("want hexadecimal digits after #")
	}
	var raw asn1.RawValue
	if rest, err := asn1.Unmarshal(der, &raw); err != nil || len(rest) > 0 {
		return attribute{}, errors.New("want the DER of one value after #")
	}
	a := decodeValue(raw)
	if a.text {
		return a, checkText(a.value)
	}
	return a, nil
}

// textValue reads a value with its escapes (RFC 4514, Section 3).
func (p *dnParser) textValue() (attribute, error) {
	var value []byte
	kept := 0 // length up to the last octet that is not an unescaped space
	for p.rest != "" && p.rest[0] != ',' && p.rest[0] != '+' {
		c, n, err := nextOctet(p.rest)
		if err != nil {
			return attribute{}, err
		}
		p.rest = p.rest[n:]
		value = append(value, c)
		if c != ' ' || n > 1 {
			kept = len(value)
		}
	}
	text := string(value[:kept])
	return attribute{text: true, value: text}, checkText(text)
}

// nextOctet returns the octet that s, not empty, begins with, and how many octets of s stand for it.
func nextOctet(s string) (byte, int, error) {
	if strings.IndexByte(`";<>`, s[0]) >= 0 {
		return 0, 0, fmt.Errorf("character %q must be escaped by a backslash", s[0])
	}
	if s[0] != '\\' {
		return s[0], 1, nil
	}
	if len(s) >= 2 && strings.IndexByte(` "#+,;<=>\`, s[1]) >= 0 {
		return s[1], 2, nil
	}
	if len(s) >= 3 {
		if b, err := hex.DecodeString(s[1:3]); err == nil {
			return b[0], 3, nil
		}
	}
	return 0, 0, errors.New("want a special character or two hexadecimal digits after a backslash")
}

// checkText refuses what no honest name holds. Since an expectation cannot hold a control character, none in a
// certificate ever matches.
func checkText(s string) error {
	if s == "" {
		return errors.New("empty attribute value")
	}
	if !utf8.ValidString(s) {
		return errors.New("attribute value is not UTF-8")
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || 0x7f <= r && r < 0xa0 }) {
		return errors.New("control character in an attribute value")
	}
	return nil
}

// parseRawDN reads a Name in DER (RFC 5280, Section 4.1.2.4).
func parseRawDN(der []byte) (distinguishedName, error) {
	var sets []asn1.RawValue
	if rest, err := asn1.Unmarshal(der, &sets); err != nil || len(rest) > 0 {
		return nil, errors.New("malformed name")
	}
	dn := make(distinguishedName, 0, len(sets))
	for _, set := range sets {
		rdn, err := parseRawSet(set.FullBytes)
		if err != nil {
			return nil, err
		}
		dn = append(dn, rdn)
	}
	return dn, nil
}

// rawSET has a name ending in SET, by which encoding/asn1 knows the type.
type rawSET []asn1.RawValue

func parseRawSet(der []byte) (relativeName, error) {
	var set rawSET
	if rest, err := asn1.Unmarshal(der, &set); err != nil || len(rest) > 0 {
		return nil, errors.New("malformed relative name")
	}
	rdn := make(relativeName, 0, len(set))
	for _, raw := range set {
		a, err := parseRawAttribute(raw.FullBytes)
		if err != nil {
			return nil, err
		}
		rdn = append(rdn, a)
	}
	slices.SortFunc(rdn, compareAttributes)
	return rdn, nil
}

// parseRawAttribute reads into a slice and not into a struct, for which encoding/asn1 ignores what follows.
func parseRawAttribute(der []byte) (attribute, error) {
	var pair []asn1.RawValue
	if rest, err := asn1.Unmarshal(der, &pair); err != nil || len(rest) > 0 || len(pair) != 2 {
		return attribute{}, errors.New("malformed attribute")
	}
	if pair[0].Class != asn1.ClassUniversal || pair[0].Tag != asn1.TagOID {
		return attribute{}, errors.New("malformed attribute type")
	}
	a := decodeValue(pair[1])
	a.oid = string(pair[0].Bytes)
	return a, nil
}

// decodeValue returns an attribute without its type. TeletexString and UniversalString are not taken for text: what
// characters the former holds depends on who is asked, and nobody issues the latter.
func decodeValue(raw asn1.RawValue) attribute {
	der := attribute{value: string(raw.FullBytes)}
	if raw.Class != asn1.ClassUniversal || raw.IsCompound {
		return der
	}
	switch raw.Tag {
	case asn1.TagUTF8String:
		return attribute{text: true, value: string(raw.Bytes)} // what is not UTF-8 is never expected
	case asn1.TagPrintableString, asn1.TagIA5String, asn1.TagNumericString:
		if slices.ContainsFunc(raw.Bytes, func(b byte) bool { return b >= utf8.RuneSelf }) {
			return der
		}
		return attribute{text: true, value: string(raw.Bytes)}
	case asn1.TagBMPString:
		text, ok := decodeBMP(raw.Bytes)
		if !ok {
			return der
		}
		return attribute{text: true, value: text}
	default:
		return der
	}
}

// decodeBMP reads UCS-2, big endian, which has no surrogates.
func decodeBMP(b []byte) (string, bool) {
	if len(b)%2 != 0 {
		return "", false
	}
	var text strings.Builder
	for i := 0; i < len(b); i += 2 {
		r := rune(b[i])<<8 | rune(b[i+1])
		if utf16.IsSurrogate(r) {
			return "", false
		}
		text.WriteRune(r)
	}
	return text.String(), true
}
