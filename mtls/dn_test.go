// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package mtls

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"slices"
	"strings"
	"testing"
)

// encode returns the DER of dn, with all text as UTF8String.
func encode(t *testing.T, dn distinguishedName) []byte {
	t.Helper()
	raw := func(class, tag int, compound bool, content []byte) []byte {
		der, err := asn1.Marshal(asn1.RawValue{Class: class, Tag: tag, IsCompound: compound, Bytes: content})
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	var sets []byte
	for _, rdn := range dn {
		var set []byte
		for _, a := range rdn {
			value := []byte(a.value)
			if a.text {
				value = raw(0, asn1.TagUTF8String, false, value)
			}
			set = append(set, raw(0, asn1.TagSequence, true, slices.Concat(raw(0, asn1.TagOID, false, []byte(a.oid)), value))...)
		}
		sets = append(sets, raw(0, asn1.TagSet, true, set)...)
	}
	return raw(0, asn1.TagSequence, true, sets)
}

func TestEmptyNameMatchesNothing(t *testing.T) {
	t.Parallel()
	empty := &x509.Certificate{RawSubject: encode(t, nil)}
	if (Subject{kind: SubjectDN}).Matches(empty) {
		t.Error("an expectation without a name matches a certificate without one")
	}
}

// FuzzDN: what is accepted matches a certificate with the name it was understood as, and matches no longer once
// anything is added to that name or taken away; and its DER spelled in hexadecimal is the same name.
func FuzzDN(f *testing.F) {
	for _, s := range []string{
		"CN=a,O=b", `CN=a\, b+OU=x,C=DE`, "2.5.4.3=a", "1.2.3=#0C0161", "CN=#0201FF", `CN=\ a\ `, `O=\C3\A9`, "CN=a ,O= b",
		"", ",", "CN=", "CN=a,,O=b", `CN=a\`, "CN=#", "CN=a+CN=b", "UID=1+DC=x,DC=y", "CN=\u20ac", "CN=#1E02FFFF",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		subject, err := ParseSubject(SubjectDN, s)
		if err != nil {
			if !subject.IsZero() {
				t.Fatalf("%q: an error and a subject", s)
			}
			return
		}
		der := encode(t, subject.dn)
		if !subject.Matches(&x509.Certificate{RawSubject: der}) {
			t.Fatalf("%q does not match its own name %x", s, der)
		}
		extra := relativeName{{oid: "\x55\x04\x2e", text: true, value: "x"}}
		for _, dn := range []distinguishedName{
			subject.dn[1:], subject.dn[:len(subject.dn)-1],
			append(slices.Clone(subject.dn), extra), append(distinguishedName{extra}, subject.dn...),
		} {
			if subject.Matches(&x509.Certificate{RawSubject: encode(t, dn)}) {
				t.Fatalf("%q matches another name", s)
			}
		}
		if again, err := parseDN(spell(subject.dn)); err != nil || !again.equal(subject.dn) {
			t.Fatalf("%q spelled as %q is not the same: %v", s, spell(subject.dn), err)
		}
	})
}

// spell writes dn with object identifiers and with every octet of text escaped.
func spell(dn distinguishedName) string {
	var rdns []string
	for _, rdn := range slices.Backward(dn) {
		var attributes []string
		for _, a := range rdn {
			var oid x509.OID
			if err := oid.UnmarshalBinary([]byte(a.oid)); err != nil {
				return err.Error()
			}
			value := "#" + hex.EncodeToString([]byte(a.value))
			if a.text {
				value = ""
				for _, b := range []byte(a.value) {
					value += `\` + hex.EncodeToString([]byte{b})
				}
			}
			attributes = append(attributes, oid.String()+"="+value)
		}
		rdns = append(rdns, strings.Join(attributes, "+"))
	}
	return strings.Join(rdns, ",")
}

// FuzzRawDN: whatever DER a certificate holds, reading it ends, and what Go prints of a name that holds nothing but
// text is read as that name.
func FuzzRawDN(f *testing.F) {
	f.Add([]byte{0x30, 0})
	f.Add([]byte("\x30\x0d\x31\x0b\x30\x09\x06\x03\x55\x04\x03\x0c\x02a,"))
	f.Fuzz(func(t *testing.T, der []byte) {
		dn, err := parseRawDN(der)
		if err != nil {
			return
		}
		if again, err := parseRawDN(encode(t, dn)); err != nil || !again.equal(dn) {
			t.Fatalf("%x is read as something else after encoding: %v", der, err)
		}
		var sequence pkix.RDNSequence
		if rest, err := asn1.Unmarshal(der, &sequence); err != nil || len(rest) > 0 {
			return
		}
		for _, rdn := range dn {
			if slices.ContainsFunc(rdn, func(a attribute) bool { return !a.text }) {
				return
			}
		}
		if printed, err := parseDN(sequence.String()); err == nil && !printed.equal(dn) {
			t.Fatalf("%q, as Go prints %x, is read as something else", sequence, der)
		}
	})
}
