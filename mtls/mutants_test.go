// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package mtls

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// The tests of this file stand for checks that no other test missed when they were deleted (scripts/mutate).

// RFC 5280, Section 6.1.4 (k): each single thing that makes a certificate no authority's is enough.
func TestRFC5280_6_1_4_NoAuthority(t *testing.T) {
	t.Parallel()
	authority, _ := issue(t, time.Now())
	for name, spoil := range map[string]func(*x509.Certificate){
		"no basic constraints": func(c *x509.Certificate) { c.BasicConstraintsValid = false },
		"cA false":             func(c *x509.Certificate) { c.IsCA = false },
		"no bytes":             func(c *x509.Certificate) { c.Raw = nil },
	} {
		spoilt := *authority
		spoil(&spoilt)
		if _, err := NewAnchors(AnchorsConfig{Roots: []*x509.Certificate{&spoilt}}); err == nil {
			t.Errorf("%s: an anchor", name)
		}
		if _, err := NewAnchors(AnchorsConfig{
			Roots: []*x509.Certificate{authority}, Intermediates: []*x509.Certificate{&spoilt},
		}); err == nil {
			t.Errorf("%s: an intermediate", name)
		}
	}
}

// No anchors are the same as no anchors, and as nothing else.
func TestNilAnchorsEqual(t *testing.T) {
	t.Parallel()
	authority, _ := issue(t, time.Now())
	a, err := NewAnchors(AnchorsConfig{Roots: []*x509.Certificate{authority}})
	if err != nil {
		t.Fatal(err)
	}
	var none *Anchors
	if !none.Equal(nil) || none.Equal(a) || a.Equal(none) || !a.Equal(a) {
		t.Error("nil anchors compare otherwise")
	}
}

// A peer remembers one chain for each anchors, the last one.
func TestRemembersTheLastChain(t *testing.T) {
	t.Parallel()
	authority, leaf := issue(t, time.Now())
	p, a, b := NewPeer(leaf), new(Anchors), new(Anchors)
	p.remember(a, []*x509.Certificate{leaf})
	p.remember(b, []*x509.Certificate{leaf, authority})
	p.remember(a, []*x509.Certificate{authority})
	if got := p.remembered(a); len(got) != 1 || got[0] != authority {
		t.Errorf("remembers %d certificates", len(got))
	}
	if got := p.remembered(b); len(got) != 2 || len(p.memo) != 2 {
		t.Errorf("remembers %d certificates, %d chains", len(got), len(p.memo))
	}
}

// A certificate without bytes has the thumbprint that matches nothing.
func TestThumbprintOfNothing(t *testing.T) {
	t.Parallel()
	for _, c := range []*x509.Certificate{nil, {}} {
		if got := ThumbprintOf(c); !got.IsZero() {
			t.Error(got)
		}
	}
}

// RFC 4514, Sections 2.4 and 3: hexadecimal values end at a separator and are nothing but digits, and the bounds of what
// is a control character.
func TestRFC4514_2_4_HexValues(t *testing.T) {
	t.Parallel()
	for s, ok := range map[string]bool{
		"2.5.4.10=#0c0141,CN=b":    true,
		"2.5.4.10=#0c0141+CN=b":    true,
		"2.5.4.10=#0c0141 , CN=b":  true,
		"2.5.4.10=#0c0141zz":       false,
		"2.5.4.10=#0c01411":        false,
		"2.5.4.10=#0c0141 00":      false,
		"2.5.4.10=#":               false,
		"2.5.4.10=#,CN=b":          false,
		`CN=a\zz`:                  false,
		`CN=a\4z`:                  false,
		`CN=a\41`:                  true,
		"CN=a\u00a0b":              true,
		"CN=a\u009fb":              false,
		"CN=a\x7fb":                false,
		"CN=a\x1fb":                false,
		"CN":                       false,
		"CN,O=b":                   false,
		"2.5.4.10=#1303410a41":     false,
		"2.5.4.10=#0c0141,2.5.4.3": false,
	} {
		dn, err := parseDN(s)
		if (err == nil) != ok {
			t.Errorf("%q: %v, %v", s, dn, err)
		}
	}
	both, err := parseDN("2.5.4.10=#0c0141,CN=b")
	if err != nil {
		t.Fatal(err)
	}
	plain, err := parseDN("O=A,CN=b")
	if err != nil || !both.equal(plain) {
		t.Errorf("%v, %v, %v", both, plain, err)
	}
}

// RFC 5280, Section 4.1.2.4: what is not a sequence of sets of pairs of a type and a value is an error, and not a name
// with less in it.
func TestRFC5280_4_1_2_4_MalformedNames(t *testing.T) {
	t.Parallel()
	const attribute = "3008" + "0603550403" + "0c0161" // CN=a
	for name, text := range map[string]string{
		"sound":                     "300c" + "310a" + attribute,
		"empty":                     "",
		"cut":                       "300c",
		"a set":                     "310c" + "310a" + attribute,
		"something after":           "300c" + "310a" + attribute + "0500",
		"sequence for set":          "300c" + "300a" + attribute,
		"set cut":                   "3004" + "310a" + "3008",
		"attribute a set":           "300c" + "310a" + "3108" + "0603550403" + "0c0161",
		"attribute of one":          "3009" + "3107" + "3005" + "0603550403",
		"attribute of three":        "300e" + "310c" + "300a" + "0603550403" + "0c0161" + "0500",
		"type context specific":     "300c" + "310a" + "3008" + "8603550403" + "0c0161",
		"type a string":             "300c" + "310a" + "3008" + "0c03550403" + "0c0161",
		"second attribute is wrong": "300e" + "310c" + attribute + "0500",
	} {
		der, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		dn, err := parseRawDN(der)
		if (err == nil) != (name == "sound") {
			t.Errorf("%s: %v, %v", name, dn, err)
		}
	}
}

// pairInFiles writes a key pair into a new folder.
func pairInFiles(t *testing.T) (certFile, keyFile string, certPEM []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	certFile, keyFile = filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	writeFile(t, certFile, certPEM)
	writeFile(t, keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
	return certFile, keyFile, certPEM
}

func writeFile(t *testing.T, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// What could not be read is told as that, and not as something that was read and is bad.
func TestKeyPairFilesNotRead(t *testing.T) {
	t.Parallel()
	certFile, keyFile, certPEM := pairInFiles(t)
	missing, folder := filepath.Join(t.TempDir(), "missing"), t.TempDir()
	for name, files := range map[string][2]string{
		"no certificate": {missing, keyFile}, "no key": {certFile, missing},
		"certificate a folder": {folder, keyFile}, "key a folder": {certFile, folder},
	} {
		var want error = fs.ErrNotExist
		if strings.HasSuffix(name, "folder") {
			want = syscall.EISDIR
		}
		if _, err := LoadKeyPair(files[0], files[1]); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	kp, err := LoadKeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	before := kp.Current()
	writeFile(t, certFile, append(certPEM, "-----BEGIN CERTIFICATE-----\nAAAA"...))
	if err := kp.Reload(); err == nil || kp.Current() != before {
		t.Errorf("a file whose end is missing: %v", err)
	}
	writeFile(t, certFile, append(certPEM, bytes.Repeat([]byte("\n"), maxKeyFile-len(certPEM))...))
	if err := kp.Reload(); err != nil {
		t.Errorf("a file of just the size that is allowed: %v", err)
	}
	writeFile(t, certFile, append(certPEM, bytes.Repeat([]byte("\n"), maxKeyFile-len(certPEM)+1)...))
	if err := kp.Reload(); err == nil {
		t.Error("a larger file was loaded")
	}
}

// A pair without files says so, and is watched in vain without complaint to nobody.
func TestKeyPairWithoutFiles(t *testing.T) {
	t.Parallel()
	certFile, keyFile, _ := pairInFiles(t)
	loaded, err := LoadKeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	kp, err := NewKeyPair(*loaded.Current())
	if err != nil {
		t.Fatal(err)
	}
	if err := kp.Reload(); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		kp.Watch(ctx, time.Second, nil)
	})
}

// RFC 4343, Section 3: only the letters of ASCII have two cases; nothing else that is 32 apart is equal.
func TestRFC4343_3_OnlyLettersFold(t *testing.T) {
	t.Parallel()
	for a := range byte(0x80) {
		for b := range byte(0x80) {
			letter := 'a' <= a|0x20 && a|0x20 <= 'z'
			want := a == b || letter && a|0x20 == b|0x20
			if got := equalFoldASCII(string(a), string(b)); got != want {
				t.Errorf("%q, %q: %v", a, b, got)
			}
		}
	}
}

// The bounds of an expectation: its length, and the characters of a name.
func TestSubjectBounds(t *testing.T) {
	t.Parallel()
	for value, ok := range map[string]bool{
		strings.Repeat("a", maxSubject): true, strings.Repeat("a", maxSubject+1): false,
		"!": true, "~": true, " ": false, "a\x7f": false, "": false,
	} {
		if _, err := ParseSubject(SANDNS, value); (err == nil) != ok {
			t.Errorf("%.10q of %d bytes: %v", value, len(value), err)
		}
	}
}

// The bounds of what a client may present are within them.
func TestPresentedBounds(t *testing.T) {
	t.Parallel()
	_, leaf := issue(t, time.Now())
	for more, ok := range map[int]bool{0: true, 1: false} {
		chain := []*x509.Certificate{leaf, {Raw: make([]byte, MaxChainBytes-len(leaf.Raw)+more)}}
		if err := checkPresented(chain); (err == nil) != ok {
			t.Errorf("%d bytes more: %v", more, err)
		}
	}
	if err := checkPresented([]*x509.Certificate{leaf, leaf, leaf, leaf}); err != nil {
		t.Error(err)
	}
	if err := checkPresented([]*x509.Certificate{leaf, leaf, leaf, leaf, leaf}); err == nil {
		t.Error("five certificates")
	}
}

// The limit on bytes goes when the first request is there, and not before.
func TestLimitIsLiftedByRequests(t *testing.T) {
	t.Parallel()
	for state, lifted := range map[http.ConnState]bool{
		http.StateNew: false, http.StateActive: true, http.StateIdle: true, http.StateHijacked: true, http.StateClosed: false,
	} {
		client, server := net.Pipe()
		lc := newLimitedConn(server)
		ConnState(tls.Server(lc, &tls.Config{}), state)
		if lc.lifted.Load() != lifted {
			t.Errorf("%v: lifted: %v", state, !lifted)
		}
		client.Close()
		server.Close()
	}
}

// What is not of the characters of its string type is not taken for text.
func TestStringTypesHeldToTheirCharacters(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		tag   int
		bytes string
		text  bool
	}{
		"printable":            {asn1.TagPrintableString, "a\x7f", true},
		"printable, not ASCII": {asn1.TagPrintableString, "a\x80", false},
		"IA5, not ASCII":       {asn1.TagIA5String, "\xff", false},
		"BMP":                  {asn1.TagBMPString, "\x00a", true},
		"BMP, half":            {asn1.TagBMPString, "\x00a\x00", false},
		"BMP, surrogate":       {asn1.TagBMPString, "\xd8\x00", false},
		"Teletex":              {asn1.TagT61String, "a", false},
	} {
		a := decodeValue(asn1.RawValue{Tag: tc.tag, Bytes: []byte(tc.bytes), FullBytes: []byte("full")})
		if a.text != tc.text || !tc.text && a.value != "full" {
			t.Errorf("%s: %+v", name, a)
		}
	}
}

// strangeSigner has a public key of a kind of its own.
type strangeSigner struct{ crypto.Signer }

func (strangeSigner) Public() crypto.PublicKey { return struct{}{} }

// A key that cannot be compared with the certificate's is not the certificate's.
func TestKeyPairOfStrangeKey(t *testing.T) {
	t.Parallel()
	certFile, keyFile, _ := pairInFiles(t)
	kp, err := LoadKeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	strange := *kp.Current()
	strange.PrivateKey = strangeSigner{strange.PrivateKey.(crypto.Signer)}
	if err := kp.Replace(strange); err == nil {
		t.Error("replaced")
	}
}
