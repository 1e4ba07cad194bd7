// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"net/netip"
	"strings"
	"testing"
)

// CA-13: RFC 5280, Section 4.2.1.6: a NUL or control character in a name is refused, not cut at.
func TestRFC5280_4_2_1_6_NULInNames(t *testing.T) {
	t.Parallel()
	checks := map[string]func(string) error{
		"client id": CheckClientID, "trust domain": CheckTrustDomain, "DNS name": CheckDNSName, "URI": CheckURI,
	}
	for kind, check := range checks {
		for _, name := range []string{
			"a.example\x00.evil", "https://a.example\x00.evil", "a\n", "https://a.example/\n", "\x7f", "a\u200b",
		} {
			if check(name) == nil {
				t.Errorf("%s: %q accepted", kind, name)
			}
		}
	}
}

func TestCheckClientID(t *testing.T) {
	t.Parallel()
	check(t, CheckClientID,
		[]string{"a", "0", "payments", "pay.ments-1_2", strings.Repeat("a", 63)},
		[]string{
			"", ".a", "-a", "_a", "A", "pay ments", "pay/ments", "ext:a", "ä", strings.Repeat("a", 64), "spiffe://x/y",
			"a\x00", "a%2f", "../a",
		})
}

func TestCheckTrustDomain(t *testing.T) {
	t.Parallel()
	check(t, CheckTrustDomain,
		[]string{"certbound.internal", "abcdefgh.issuer.example", "a_b-c", "x"},
		[]string{"", ".", "a.", ".a", "a..b", "A.example", "a:1", "a/b", "u@a", "ä.example", strings.Repeat("a.", 128) + "a"})
}

func TestCheckDNSName(t *testing.T) {
	t.Parallel()
	check(t, CheckDNSName,
		[]string{"localhost", "a.example", "xn--bcher-kva.example", "1a.example", "9.example"},
		[]string{
			"", ".", "a.", ".a", "a..b", "*.example", "a.*", "A.example", "a_b.example", "-a.example", "a-.example",
			"127.0.0.1", "1.2.3.4", "a.1", "::1", "a:1", "a/b", "user@a.example", "https://a", strings.Repeat("a", 64),
			strings.Repeat("a.", 127) + "aa",
		})
}

func TestCheckURI(t *testing.T) {
	t.Parallel()
	check(t, CheckURI,
		[]string{"https://a.example/x", "urn://a/b", "ldap://a.example/o=x"},
		[]string{
			"", "/x", "a.example", "HTTPS://a.example/", "https:///x", "https://u@a", "https://a#f", "https://a b", "mailto:a@b",
			"spiffe://other/client/x", "SPIFFE://other/x", "https://a/" + strings.Repeat("x", 2048), "https://a/ä",
		})
}

func TestCheckIP(t *testing.T) {
	t.Parallel()
	if CheckIP(netip.MustParseAddr("10.0.0.1")) != nil || CheckIP(netip.MustParseAddr("::1")) != nil {
		t.Error("a good address is refused")
	}
	if CheckIP(netip.Addr{}) == nil || CheckIP(netip.MustParseAddr("fe80::1%eth0")) == nil {
		t.Error("a bad address is accepted")
	}
}

func check(t *testing.T, f func(string) error, good, bad []string) {
	t.Helper()
	for _, s := range good {
		if err := f(s); err != nil {
			t.Errorf("%q refused: %v", s, err)
		}
	}
	for _, s := range bad {
		if f(s) == nil {
			t.Errorf("%q accepted", s)
		}
	}
}

func TestParseReason(t *testing.T) {
	t.Parallel()
	for _, r := range Reasons() {
		got, err := ParseReason(r.String())
		if err != nil || got != r {
			t.Errorf("%s: got %v, %v", r, got, err)
		}
	}
	if r, err := ParseReason("keycompromise"); err != nil || r != KeyCompromise {
		t.Errorf("lower case: got %v, %v", r, err)
	}
	for _, s := range []string{"", "certificateHold", "removeFromCRL", "cACompromise", "1", "reason(7)"} {
		if _, err := ParseReason(s); err == nil {
			t.Errorf("%q accepted", s)
		}
	}
	if s := Reason(7).String(); s != "reason(7)" {
		t.Error(s)
	}
}
