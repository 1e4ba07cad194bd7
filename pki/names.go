// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
)

const (
	maxClientID    = 63
	maxTrustDomain = 255
	maxURI         = 2048
)

// CheckClientID refuses what is not [a-z0-9][a-z0-9._-]{0,62}: short enough for a common name, safe in a path, a
// file name and a SPIFFE ID, and without the ':' of foreign subjects.
func CheckClientID(id string) error {
	if id == "" || len(id) > maxClientID {
		return fmt.Errorf("client id %s: 1 to %d characters", quote(id), maxClientID)
	}
	if !isLowerAlnum(id[0]) {
		return fmt.Errorf("client id %s: must begin with a-z or 0-9", quote(id))
	}
	for i := range len(id) {
		if !isLowerAlnum(id[i]) && !strings.ContainsRune("._-", rune(id[i])) {
			return fmt.Errorf("client id %s: only a-z, 0-9 and . _ -", quote(id))
		}
	}
	return nil
}

// CheckTrustDomain refuses what is not a SPIFFE trust domain of dot-separated labels: lower-case letters, digits,
// '-' and '_', no empty label, at most 255 bytes (SPIFFE-ID, Section 2.1).
func CheckTrustDomain(td string) error {
	if td == "" || len(td) > maxTrustDomain {
		return fmt.Errorf("trust domain %s: 1 to %d characters", quote(td), maxTrustDomain)
	}
	for label := range strings.SplitSeq(td, ".") {
		if label == "" || len(label) > 63 {
			return fmt.Errorf("trust domain %s: a label is empty or longer than 63 characters", quote(td))
		}
	}
	for i := range len(td) {
		if !isLowerAlnum(td[i]) && !strings.ContainsRune("._-", rune(td[i])) {
			return fmt.Errorf("trust domain %s: only a-z, 0-9 and . _ -", quote(td))
		}
	}
	return nil
}

// ClientURI is the SPIFFE ID of a client of our own authority: spiffe://TRUST-DOMAIN/client/ID. It checks nothing;
// both parts must have passed [CheckTrustDomain] and [CheckClientID].
func ClientURI(trustDomain, clientID string) string {
	return "spiffe://" + trustDomain + "/client/" + clientID
}

// CheckDNSName refuses what a certificate's dNSName may not be here: anything but lower-case labels of letters,
// digits and inner hyphens (RFC 1034, Section 3.5; RFC 5280, Section 4.2.1.6), wildcards, a trailing dot, and
// names that read as an IP address. NUL and every other control character fall out with the rest.
func CheckDNSName(name string) error {
	if name == "" || len(name) > 253 {
		return fmt.Errorf("DNS name %s: 1 to 253 characters", quote(name))
	}
	if strings.Contains(name, "*") {
		return fmt.Errorf("DNS name %s: wildcards are refused", quote(name))
	}
	last := ""
	for label := range strings.SplitSeq(name, ".") {
		if !isLabel(label) {
			return fmt.Errorf("DNS name %s: labels are 1 to 63 of a-z, 0-9 and inner hyphens", quote(name))
		}
		last = label
	}
	if strings.Trim(last, "0123456789") == "" {
		return fmt.Errorf("DNS name %s: reads as an IP address", quote(name))
	}
	return nil
}

// CheckURI refuses what may not stand as a further URI beside the client's SPIFFE ID: relative URIs, URIs without
// host, with user or fragment, with characters outside printable ASCII, or that net/url would write differently;
// and every spiffe: URI, because a certificate has exactly one SPIFFE ID (X509-SVID, Section 2).
func CheckURI(uri string) error {
	if uri == "" || len(uri) > maxURI {
		return fmt.Errorf("URI %s: 1 to %d characters", quote(uri), maxURI)
	}
	for i := range len(uri) {
		if uri[i] <= ' ' || uri[i] >= 0x7f {
			return fmt.Errorf("URI %s: only printable ASCII", quote(uri))
		}
	}
	u, err := url.Parse(uri)
	switch {
	case err != nil || u.Scheme == "" || u.Hostname() == "" || u.String() != uri:
		return fmt.Errorf("URI %s: must be absolute, with a host, in normal form", quote(uri))
	case u.User != nil || u.Fragment != "":
		return fmt.Errorf("URI %s: no user and no fragment", quote(uri))
	case u.Scheme == "spiffe":
		return fmt.Errorf("URI %s: the SPIFFE ID is given by the service", quote(uri))
	}
	return nil
}

// CheckIP refuses addresses that cannot stand in a certificate: invalid ones and those with a zone.
func CheckIP(ip netip.Addr) error {
	if !ip.IsValid() || ip.Zone() != "" {
		return errors.New("IP address: not valid, or with a zone")
	}
	return nil
}

func isLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if !isLowerAlnum(s[i]) && s[i] != '-' {
			return false
		}
	}
	return true
}

func isLowerAlnum(b byte) bool { return b >= 'a' && b <= 'z' || b >= '0' && b <= '9' }

// quote shortens and escapes what a stranger wrote, for an error text.
func quote(s string) string {
	const most = 80
	if len(s) > most {
		return fmt.Sprintf("%q…", s[:most])
	}
	return fmt.Sprintf("%q", s)
}
