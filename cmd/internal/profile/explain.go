// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/certbound/certbound/mtls"
)

// explanation says in words whose token it is and why this certificate may or may not use it; p may be nil. What a
// stranger wrote into the token is quoted where it could do harm.
func (i *Inspection) explanation(p *Profile, cert *x509.Certificate, now time.Time) string {
	switch i.Reason {
	case ReasonMalformed, "wrong_type", "algorithm_not_allowed":
		return ""
	case "unknown_key", "bad_signature", "signature_form", ReasonUnverified, "malformed_claims", "wrong_issuer":
		return sentences("Nobody vouches for what it says: that it belongs to "+i.owner()+", bound to "+i.bound()+" and made by "+
			i.text("iss"), i.presented(cert), i.forIssuer(p))
	}
	told := sentences("This token was issued to "+i.owner()+" for "+i.bound(), i.presented(cert))
	switch i.Reason {
	case "":
		return sentences(told, "Over a connection with this certificate "+i.audience()+" accepts it until "+i.date("exp"),
			"Whether it was revoked since, the service knows, and resource servers that follow it: it is not asked here")
	case "expired":
		return sentences(told, "It ended at "+i.date("exp")+" and it is "+stamp(now)+" now: get a new one (certbound token)")
	case "not_yet_valid":
		return sentences(told, "It begins at "+i.date("nbf")+" and it is "+stamp(now)+" now: compare the clocks")
	case "issued_in_future":
		return sentences(told, "It was issued at "+i.date("iat")+" and it is "+stamp(now)+" now: compare the clocks")
	case "certificate_not_valid":
		return sentences(told, fmt.Sprintf("The certificate is valid from %s to %s, and it is %s now",
			stamp(cert.NotBefore), stamp(cert.NotAfter), stamp(now)))
	case "not_bound":
		return sentences(told, "Anybody who finds such a token could use it, so it is not accepted")
	case "thumbprint_mismatch":
		return sentences(told, i.mismatch(p, cert))
	}
	return told
}

// mismatch tells a renewed certificate from a stolen token, as far as that can be seen from here.
func (i *Inspection) mismatch(p *Profile, cert *x509.Certificate) string {
	owner, _ := i.Claims["client_id"].(string)
	const renewed = ": a token does not move to the next certificate, so get a new one (certbound token)"
	holder := holderOf(p, cert)
	switch {
	case p != nil && mtls.ThumbprintOf(p.Certificate()).String() == i.thumbprint():
		return "That one is the certificate of the profile, which may use the token, and not the one that you named"
	case p.had(i.thumbprint()):
		return "That one was this profile's until it was renewed" + renewed
	case holder != "" && holder == owner:
		return "Both are of the same client: it was renewed or enrolled again since" + renewed + ". If it was not, somebody " +
			"else renews with a stolen key: an operator sees that by certbound cert list --client " + printable(owner)
	case holder != "":
		return fmt.Sprintf("Yours is of the client %s: unless you took the wrong profile, the token was stolen from %s, "+
			"and is worth nothing without the key of its certificate", printable(holder), printable(owner))
	}
	return fmt.Sprintf("If yours is the next certificate of %s, it was renewed since%s; if not, the token was stolen, "+
		"and is worth nothing without the key of its certificate", printable(owner), renewed)
}

// presented compares the certificate with the one that the token names.
func (i *Inspection) presented(cert *x509.Certificate) string {
	if cert == nil {
		return ""
	}
	mine := mtls.ThumbprintOf(cert)
	if mine.String() == i.thumbprint() {
		return "Your certificate (" + printable(cert.Subject.String()) + ") is that one"
	}
	return "Your certificate (" + printable(cert.Subject.String()) + ") is " + mine.String()
}

// forIssuer says whose keys it was held against.
func (i *Inspection) forIssuer(p *Profile) string {
	if p == nil {
		return ""
	}
	return "The profile's issuer, " + p.Issuer() + ", did not make it as it stands"
}

func (i *Inspection) owner() string {
	if _, ok := i.Claims["client_id"]; !ok {
		return "nobody"
	}
	return "the client " + i.text("client_id")
}

func (i *Inspection) bound() string {
	if i.thumbprint() == "" {
		return "no certificate at all"
	}
	return "the certificate " + printable(i.thumbprint())
}

// thumbprint is what the token is bound to, as it stands there.
func (i *Inspection) thumbprint() string {
	cnf, _ := i.Claims["cnf"].(map[string]any)
	bound, _ := cnf["x5t#S256"].(string)
	return bound
}

func (i *Inspection) audience() string {
	if one, ok := i.Claims["aud"].(string); ok {
		return printable(one)
	}
	list, _ := i.Claims["aud"].([]any)
	var all []string
	for _, one := range list {
		if text, ok := one.(string); ok {
			all = append(all, printable(text))
		}
	}
	return "each of " + strings.Join(all, ", ")
}

func (i *Inspection) text(name string) string {
	text, ok := i.Claims[name].(string)
	if !ok {
		return "nobody"
	}
	return printable(text)
}

// date is a NumericDate of the token (RFC 7519, Section 2), whose fraction nobody needs here.
func (i *Inspection) date(name string) string {
	number, _ := i.Claims[name].(json.Number)
	seconds, err := number.Float64()
	if err != nil {
		return "a time that it does not tell"
	}
	return stamp(time.Unix(int64(seconds), 0))
}

// holderOf is the client that a certificate belongs to, as far as it can be told: because it is the profile's own, or by
// the name that our CA puts into it. Empty when it cannot.
func holderOf(p *Profile, cert *x509.Certificate) string {
	if p != nil && p.Certificate().Equal(cert) {
		return p.ClientID()
	}
	for _, u := range cert.URIs {
		if id, ok := strings.CutPrefix(u.Path, "/client/"); ok && u.Scheme == "spiffe" {
			return id
		}
	}
	return ""
}

// had reports whether the folder still holds a generation with this certificate.
func (p *Profile) had(thumbprint string) bool {
	if p == nil || thumbprint == "" {
		return false
	}
	older, err := filepath.Glob(filepath.Join(escapeGlob(p.dir), generationPattern, certFile))
	return err == nil && slices.ContainsFunc(older, func(path string) bool {
		certs, err := readCertificates(path)
		return err == nil && mtls.ThumbprintOf(certs[0]).String() == thumbprint
	})
}

// sentences joins what there is to say.
func sentences(parts ...string) string {
	var said []string
	for _, part := range parts {
		if part != "" {
			said = append(said, strings.TrimSuffix(part, ".")+".")
		}
	}
	return strings.Join(said, " ")
}

// printable quotes a text that could steer a terminal.
func printable(s string) string {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r > 0x7e }) {
		return fmt.Sprintf("%+q", s)
	}
	return s
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }
