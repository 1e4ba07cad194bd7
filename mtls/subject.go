// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package mtls

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// maxSubject bounds the text of an expectation, in bytes.
const maxSubject = 4096

// SubjectKind names what of a certificate is compared: one of the five client metadata members of RFC 8705,
// Section 2.1.2, spelled as these are.
type SubjectKind string

// The five kinds of RFC 8705, Section 2.1.2.
const (
	SubjectDN SubjectKind = "tls_client_auth_subject_dn" // the whole subject, in the string form of RFC 4514
	SANDNS    SubjectKind = "tls_client_auth_san_dns"    // a dNSName
	SANURI    SubjectKind = "tls_client_auth_san_uri"    // a uniformResourceIdentifier
	SANIP     SubjectKind = "tls_client_auth_san_ip"     // an iPAddress, as "192.0.2.1" or "2001:db8::1"
	SANEmail  SubjectKind = "tls_client_auth_san_email"  // an rfc822Name
)

// Tags of GeneralName (RFC 5280, Section 4.2.1.6).
const (
	tagEmail = 1
	tagDNS   = 2
	tagURI   = 6
	tagIP    = 7
)

// Subject is what a client of the method tls_client_auth registered to be recognised by (RFC 8705, Section 2.1.2):
// exactly one name. It is immutable. The zero value matches nothing.
type Subject struct {
	kind  SubjectKind
	value string
	dn    distinguishedName
	ip    []byte
}

// ParseSubject reads the expectation that member kind has the given value. It refuses an unknown kind, an empty value,
// control characters, and what could never match by the rules of Matches.
func ParseSubject(kind SubjectKind, value string) (Subject, error) {
	s := Subject{kind: kind, value: value}
	if len(value) > maxSubject {
		return Subject{}, fmt.Errorf("mtls: %s is longer than %d bytes", kind, maxSubject)
	}
	var err error
	switch kind {
	case SubjectDN:
		s.dn, err = parseDN(value)
	case SANDNS, SANURI:
		err = checkIA5(value)
	case SANEmail:
		if err = checkIA5(value); err == nil && !isAddress(value) {
			err = errors.New("want local-part@host")
		}
	case SANIP:
		s.ip, err = parseIP(value)
	default:
		return Subject{}, fmt.Errorf("mtls: unknown subject member %q", kind)
	}
	if err != nil {
		return Subject{}, fmt.Errorf("mtls: %s: %w", kind, err)
	}
	return s, nil
}

// SubjectFromMetadata reads the expectation from client metadata, of which exactly one of the five members must be
// there (RFC 8705, Section 2.1.2). Other members are ignored.
func SubjectFromMetadata(members map[string]string) (Subject, error) {
	var kinds []SubjectKind
	for _, k := range []SubjectKind{SubjectDN, SANDNS, SANURI, SANIP, SANEmail} {
		if _, ok := members[string(k)]; ok {
			kinds = append(kinds, k)
		}
	}
	if len(kinds) != 1 {
		return Subject{}, fmt.Errorf("mtls: %d of the tls_client_auth_ subject members given, want exactly one", len(kinds))
	}
	return ParseSubject(kinds[0], members[string(kinds[0])])
}

// Kind returns which member this is, empty for the zero Subject.
func (s Subject) Kind() SubjectKind { return s.kind }

// Value returns the text as it was given to ParseSubject.
func (s Subject) Value() string { return s.value }

// Canonical returns the member and its value in one form for all spellings that Matches the same certificates: for a
// registry that must not let two clients be recognised by one name. It is not for showing. The zero Subject has none.
func (s Subject) Canonical() string {
	value := s.value
	switch s.kind {
	case SubjectDN:
		value = s.dn.canonical()
	case SANDNS:
		value = lower(value)
	case SANEmail:
		at := strings.LastIndexByte(value, '@') + 1
		value = value[:at] + lower(value[at:])
	case SANIP:
		value = hex.EncodeToString(s.ip)
	}
	return string(s.kind) + "=" + value
}

// lower maps ASCII letters only, as the comparison does.
func lower(s string) string {
	b := []byte(s)
	for i := range b {
		b[i] = lowerASCII(b[i])
	}
	return string(b)
}

// IsZero reports whether s is the zero value, which matches nothing.
func (s Subject) IsZero() bool { return s.kind == "" }

// Matches reports whether cert bears the expected name. It says nothing of who issued cert. A zero s and a nil cert
// match nothing.
//
// The subject is compared attribute by attribute in the order of the certificate, case and white space included; see
// ParseSubject. Of the alternative names any one of the expected type may match, and never one of another type nor the
// common name: a DNS name in whatever ASCII case, without wildcards in either direction; a URI octet by octet (RFC
// 3986, Section 6.2.1); an address by its octets, so that an IPv4 address is not its IPv6-mapped form; an e-mail
// address with its host in whatever ASCII case and its local part exactly.
func (s Subject) Matches(cert *x509.Certificate) bool {
	if cert == nil {
		return false
	}
	switch s.kind {
	case SubjectDN:
		dn, err := parseRawDN(cert.RawSubject)
		return err == nil && len(s.dn) > 0 && s.dn.equal(dn)
	case SANDNS:
		return anyName(cert, tagDNS, func(name []byte) bool { return equalFoldASCII(string(name), s.value) })
	case SANURI:
		return anyName(cert, tagURI, func(name []byte) bool { return string(name) == s.value })
	case SANIP:
		return anyName(cert, tagIP, func(name []byte) bool { return bytes.Equal(name, s.ip) })
	case SANEmail:
		return anyName(cert, tagEmail, func(name []byte) bool { return equalAddress(string(name), s.value) })
	default:
		return false
	}
}

// anyName reports whether match holds for one alternative name of the given type. It reads the octets of the extension
// itself: x509 hands out URIs parsed and would print them differently.
func anyName(cert *x509.Certificate, tag int, match func([]byte) bool) bool {
	oid := asn1.ObjectIdentifier{2, 5, 29, 17}
	for _, ext := range cert.Extensions {
		if !ext.Id.Equal(oid) {
			continue
		}
		var names []asn1.RawValue
		rest, err := asn1.Unmarshal(ext.Value, &names)
		if err != nil || len(rest) > 0 {
			return false
		}
		return slices.ContainsFunc(names, func(n asn1.RawValue) bool {
			return n.Class == asn1.ClassContextSpecific && n.Tag == tag && !n.IsCompound && match(n.Bytes)
		})
	}
	return false
}

// checkIA5 demands printable ASCII without spaces. Names in other scripts have an ASCII form, which is what a
// certificate holds (RFC 5280, Section 7). What is refused here can never be matched in a certificate either, so a NUL
// does not end a name.
func checkIA5(s string) error {
	if s == "" {
		return errors.New("empty")
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return errors.New("want ASCII without spaces and control characters")
		}
	}
	return nil
}

func isAddress(s string) bool {
	local, host, ok := cutAddress(s)
	return ok && local != "" && host != ""
}

// cutAddress cuts at the last @, since a quoted local part may hold one (RFC 5321, Section 4.1.2).
func cutAddress(s string) (local, host string, ok bool) {
	i := strings.LastIndexByte(s, '@')
	if i < 0 {
		return "", "", false
	}
	return s[:i], s[i+1:], true
}

// equalAddress compares as RFC 5280, Section 7.5 says: the local part exactly, the host in whatever ASCII case.
func equalAddress(a, b string) bool {
	localA, hostA, okA := cutAddress(a)
	localB, hostB, okB := cutAddress(b)
	return okA && okB && localA == localB && equalFoldASCII(hostA, hostB)
}

// equalFoldASCII is not strings.EqualFold, for which U+212A is a k.
func equalFoldASCII(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if lowerASCII(a[i]) != lowerASCII(b[i]) {
			return false
		}
	}
	return true
}

func lowerASCII(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + ('a' - 'A')
	}
	return c
}

// parseIP returns the 4 or 16 octets that an iPAddress holds. The mapped form "::ffff:192.0.2.1" has 16.
func parseIP(s string) ([]byte, error) {
	addr, err := netip.ParseAddr(s)
	if err != nil || addr.Zone() != "" {
		return nil, errors.New("want an IPv4 or IPv6 address")
	}
	return addr.AsSlice(), nil
}
