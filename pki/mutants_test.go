// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"crypto/x509"
	"math/big"
	"strings"
	"testing"
)

// The tests of this file stand for checks that no other test missed when they were deleted (scripts/mutate).

// A code of the greatest length is made and read, and none that is longer.
func TestLongestCode(t *testing.T) {
	t.Parallel()
	longest := 0
	for n := range MaxCodeLength {
		url := "https://a/" + strings.Repeat("a", n)
		c, err := NewCode([32]byte{1}, url)
		if length := len(rawCode(1, url)); (err == nil) != (length <= MaxCodeLength) {
			t.Fatalf("a code of %d bytes: %v", length, err)
		}
		if err != nil {
			break
		}
		longest = len(c.String())
		if _, err := ParseCode(c.String()); err != nil {
			t.Fatalf("a code of %d bytes: %v", longest, err)
		}
	}
	if longest < MaxCodeLength-1 {
		t.Errorf("the longest code has %d bytes", longest)
	}
}

// RFC 4648, Section 4: a character too many, which adds no byte, makes it another code.
func TestRFC4648_4_CharacterTooMany(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"https://a", "https://ab", "https://abc"} {
		for _, more := range []string{"A", "AA", "AAA", "=", "\n"} {
			if c, err := ParseCode(rawCode(1, url) + more); err == nil {
				t.Errorf("%q and %q: %v", url, more, c.URL)
			}
		}
	}
}

// RFC 3986, Section 2: what no URL may hold is in none of ours.
func TestRFC3986_2_CodeURLCharacters(t *testing.T) {
	t.Parallel()
	for s, ok := range map[string]bool{
		"https://a/~!": true, "https://a/ b": false, "https://a/\x1f": false, "https://a/\x7f": false, "https://a/é": false, "": false,
	} {
		if err := checkCodeURL(s); (err == nil) != ok {
			t.Errorf("%q: %v", s, err)
		}
	}
}

// RFC 5280, Sections 5.2 and 6.3.3: key identifiers contradict each other only where both are there, and the extensions
// of a list are known or not.
func TestRFC5280_5_2_ListExtensions(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		a, b string
		want bool
	}{{"", "", true}, {"a", "", true}, {"", "a", true}, {"a", "a", true}, {"a", "b", false}} {
		if got := sameKeyID([]byte(tc.a), []byte(tc.b)); got != tc.want {
			t.Errorf("%q, %q: %v", tc.a, tc.b, got)
		}
	}
	for id, want := range map[string]extensionRule{
		"2.5.29.35": extensionKnown, "2.5.29.20": extensionKnown, "2.5.29.27": extensionRefused, "2.5.29.28": extensionRefused,
		"2.5.29.21": extensionUnknown, "1.2.3": extensionUnknown,
	} {
		if got := crlExtension(id); got != want {
			t.Errorf("list, %s: %v", id, got)
		}
	}
	for id, want := range map[string]extensionRule{
		"2.5.29.21": extensionKnown, "2.5.29.24": extensionKnown, "2.5.29.29": extensionRefused, "2.5.29.35": extensionUnknown,
	} {
		if got := crlEntryExtension(id); got != want {
			t.Errorf("entry, %s: %v", id, got)
		}
	}
	for size, want := range map[int]bool{MaxCRLSize: false, MaxCRLSize + 1: true} {
		_, err := ParseCRL(make([]byte, size))
		if err == nil || strings.Contains(err.Error(), "longer") != want {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

// RFC 5280, Section 4.1.2.2: a serial number is positive, of 64 bits at least and 20 octets at most.
func TestRFC5280_4_1_2_2_SerialBounds(t *testing.T) {
	t.Parallel()
	power := func(bits uint) *big.Int { return new(big.Int).Lsh(big.NewInt(1), bits) }
	for name, tc := range map[string]struct {
		serial *big.Int
		ok     bool
	}{
		"none": {nil, false}, "0": {new(big.Int), false}, "negative": {new(big.Int).Neg(power(100)), false},
		"63 bits": {power(62), false}, "64 bits": {power(63), true}, "159 bits": {power(158), true}, "160 bits": {power(159), false},
	} {
		if err := checkSerial(&x509.Certificate{SerialNumber: tc.serial}); (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// RFC 2986, Section 4.1: the empty subject is the two bytes of the empty SEQUENCE and no others.
func TestRFC2986_4_1_EmptySubject(t *testing.T) {
	t.Parallel()
	for der, want := range map[string]bool{"\x30\x00": true, "\x31\x00": false, "\x30\x01": false, "\x30\x00\x00": false, "\x30": false, "": false} {
		if isEmptySequence([]byte(der)) != want {
			t.Errorf("%x: %v", der, !want)
		}
	}
}

// RFC 8017 and RFC 5758: every signature with SHA-2 is accepted and none with less.
func TestSignatureAlgorithms(t *testing.T) {
	t.Parallel()
	for a := range x509.PureEd25519 + 2 {
		name := a.String()
		want := strings.Contains(name, "SHA256") || strings.Contains(name, "SHA384") || strings.Contains(name, "SHA512") || a == x509.PureEd25519
		if want = want && !strings.HasPrefix(name, "DSA"); isGoodSignature(a) != want {
			t.Errorf("%v: %v", a, !want)
		}
	}
}
