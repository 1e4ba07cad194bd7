// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package mtls_test

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"os"
	"strings"
	"testing"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
)

const appendixAThumbprint = "A4DtL2JmUMhAsvJj5tKyn64SqzmuXbMrJa0n761y5v0"

func appendixA(tb testing.TB) *x509.Certificate {
	tb.Helper()
	data, err := os.ReadFile("testdata/rfc8705_appendix_a.pem")
	if err != nil {
		tb.Fatal(err)
	}
	certs, err := mtls.ParseCertificates(data)
	if err != nil {
		tb.Fatal(err)
	}
	return certs[0]
}

// CB-01: RFC 8705, Section 3.1 and Appendix A: the thumbprint is the unpadded base64url of the SHA-256 of the leaf's
// DER, and the certificate of the appendix has the thumbprint that the appendix gives.
func TestRFC8705_A_Thumbprint(t *testing.T) {
	t.Parallel()
	got := mtls.ThumbprintOf(appendixA(t))
	if got.String() != appendixAThumbprint {
		t.Fatalf("thumbprint = %s, want %s", got, appendixAThumbprint)
	}
	want, err := mtls.ParseThumbprint(appendixAThumbprint)
	if err != nil {
		t.Fatal(err)
	}
	if !got.Equal(want) || !want.Matches(appendixA(t)) {
		t.Error("the parsed thumbprint does not match the certificate")
	}
}

// CB-02: RFC 8705, Section 3.1: what is hashed are the octets that were received, not a re-encoding of what they mean,
// nor the PEM form, nor the public key.
func TestRFC8705_3_1_HashOfReceivedOctets(t *testing.T) {
	t.Parallel()
	cert := mtlstest.SelfSigned(t, mtlstest.Leaf{DNSNames: []string{"a.example"}})
	got := mtls.ThumbprintOf(cert.Leaf)
	if got != sha256.Sum256(cert.Certificate[0]) {
		t.Error("thumbprint is not the hash of the DER")
	}
	if got == sha256.Sum256(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})) ||
		got == sha256.Sum256(cert.Leaf.RawSubjectPublicKeyInfo) || got == sha256.Sum256(cert.Leaf.RawTBSCertificate) {
		t.Error("thumbprint is the hash of another form")
	}
	// What was parsed may be changed by somebody; the thumbprint stays that of the wire.
	changed := *cert.Leaf
	changed.DNSNames = nil
	if mtls.ThumbprintOf(&changed) != got {
		t.Error("thumbprint depends on parsed fields")
	}
}

// RS-04: RFC 8705, Section 3.1: only base64url of 32 octets without padding is a thumbprint; what is padded,
// hexadecimal, of another length, in the other base64 alphabet or with stray bits is refused.
func TestRFC8705_3_1_MalformedThumbprint(t *testing.T) {
	t.Parallel()
	sum := mtls.ThumbprintOf(appendixA(t))
	withDash := mtls.Thumbprint{0xfb, 0xef, 0xff}
	for name, s := range map[string]string{
		"empty":           "",
		"padded":          appendixAThumbprint + "=",
		"hexadecimal":     hex.EncodeToString(sum[:]),
		"short":           appendixAThumbprint[:42],
		"long":            appendixAThumbprint + "A",
		"sha-1":           base64.RawURLEncoding.EncodeToString(sum[:20]),
		"base64":          base64.RawStdEncoding.EncodeToString(withDash[:]),
		"trailing bits":   appendixAThumbprint[:42] + "1",
		"line break":      appendixAThumbprint[:20] + "\n" + appendixAThumbprint[21:],
		"line break more": appendixAThumbprint[:20] + "\n" + appendixAThumbprint[20:],
		"31 octets":       "B" + strings.Repeat("A", 20) + "\n" + strings.Repeat("A", 21),
		"carriage return": appendixAThumbprint[:42] + "\r",
		"space":           " " + appendixAThumbprint[1:],
		"zero":            strings.Repeat("A", 43),
		"not ascii":       strings.Repeat("é", 21) + "A",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := mtls.ParseThumbprint(s)
			if err == nil || !got.IsZero() {
				t.Errorf("ParseThumbprint(%q) = %v, %v; want an error", s, got, err)
			}
		})
	}
}

func TestThumbprintLetterCase(t *testing.T) {
	t.Parallel()
	other, err := mtls.ParseThumbprint("a" + appendixAThumbprint[1:])
	if err != nil {
		t.Fatal(err)
	}
	if other.Matches(appendixA(t)) {
		t.Error("a thumbprint that differs in the case of a letter matches")
	}
}

func TestThumbprintZeroMatchesNothing(t *testing.T) {
	t.Parallel()
	var zero mtls.Thumbprint
	if zero.Equal(zero) {
		t.Error("zero equals itself")
	}
	if zero.Matches(nil) || zero.Matches(&x509.Certificate{}) || zero.Matches(appendixA(t)) {
		t.Error("zero matches")
	}
	if mtls.ThumbprintOf(appendixA(t)).Matches(nil) {
		t.Error("a thumbprint matches no certificate")
	}
	if !zero.IsZero() || mtls.ThumbprintOf(appendixA(t)).IsZero() {
		t.Error("IsZero is wrong")
	}
	var certificate tls.Certificate
	if p := mtlstest.PeerOf(certificate); !p.Thumbprint().Equal(zero) && !p.Thumbprint().IsZero() {
		t.Error("no certificate has a thumbprint")
	}
}

// FuzzParseThumbprint: what is accepted prints back identical, and what is printed of any hash is accepted as that.
func FuzzParseThumbprint(f *testing.F) {
	f.Add(appendixAThumbprint)
	f.Add(appendixAThumbprint + "=")
	f.Add(appendixAThumbprint[:42] + "1")
	f.Add(strings.Repeat("A", 43))
	f.Add(appendixAThumbprint[:42] + "\n")
	f.Fuzz(func(t *testing.T, s string) {
		got, err := mtls.ParseThumbprint(s)
		if err == nil && got.String() != s {
			t.Errorf("ParseThumbprint(%q) prints as %q", s, got)
		}
		if (err == nil) == got.IsZero() {
			t.Errorf("ParseThumbprint(%q) = %v, %v", s, got, err)
		}
		want := mtls.Thumbprint(sha256.Sum256([]byte(s)))
		if got, err := mtls.ParseThumbprint(want.String()); err != nil || got != want {
			t.Errorf("ParseThumbprint(%q) = %v, %v", want, got, err)
		}
	})
}
