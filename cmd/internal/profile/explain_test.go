// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"crypto/x509"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/pki"
)

// Whose token it is, for which certificate, which one was presented, and what that means.
func TestExplanation(t *testing.T) {
	t.Parallel()
	s := newService(t)
	p := s.enrolled(t)
	before := p.Certificate()
	if err := p.Renew(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	now := p.Certificate()
	named := func(id string) *x509.Certificate {
		return s.ca.Issue(t, mtlstest.Leaf{CommonName: id, URIs: []string{pki.ClientURI("x.example", id)}}).Leaf
	}
	foreign := mtlstest.SelfSigned(t, mtlstest.Leaf{CommonName: "stranger"}).Leaf
	thumbprint := func(c *x509.Certificate) string { return mtls.ThumbprintOf(c).String() }
	bound := func(c *x509.Certificate) map[string]any {
		return map[string]any{
			"client_id": clientID, "iss": "https://issuer.example", "aud": "https://api.example",
			"exp": json.Number("1700000000"), "nbf": json.Number("1700000001"), "iat": json.Number("1700000002.5"),
			"cnf": map[string]any{"x5t#S256": thumbprint(c)},
		}
	}
	lone := bound(before)
	delete(lone, "cnf")
	for name, tt := range map[string]struct {
		reason string
		claims map[string]any
		p      *Profile
		cert   *x509.Certificate
		want   []string
		not    string
	}{
		"usable": {"", bound(now), p, now, []string{
			"issued to the client payments for the certificate " + thumbprint(now), "(CN=payments) is that one",
			"https://api.example accepts it until 2023-11-14 22:13:20Z", "Whether it was revoked since"}, "stolen"},
		"renewed": {"thumbprint_mismatch", bound(before), p, now, []string{
			"issued to the client payments for the certificate " + thumbprint(before),
			"Your certificate (CN=payments) is " + thumbprint(now), "this profile's until it was renewed", "get a new one"}, "stolen"},
		"same client": {"thumbprint_mismatch", bound(foreign), p, now, []string{"of the same client", "get a new one", "somebody else renews with a stolen key"}, "until it was renewed"},
		"same client by its name": {"thumbprint_mismatch", bound(foreign), p, named(clientID), []string{
			"of the same client", "certbound cert list --client payments"}, "worth nothing"},
		"another client": {"thumbprint_mismatch", bound(foreign), p, named("thief"), []string{
			"(CN=thief) is ", "Yours is of the client thief", "stolen from payments", "worth nothing"}, "renewed"},
		"the profile's own": {"thumbprint_mismatch", bound(now), p, foreign, []string{"the certificate of the profile"}, "stolen"},
		"no telling": {"thumbprint_mismatch", bound(named("x")), p, foreign, []string{
			"(CN=stranger) is " + thumbprint(foreign), "If yours is the next certificate of payments", "if not, the token was stolen"}, ""},
		"expired, of another": {"expired", bound(before), p, now, []string{
			"for the certificate " + thumbprint(before), "is " + thumbprint(now), "ended at 2023-11-14 22:13:20Z"}, ""},
		"too early":            {"not_yet_valid", bound(now), p, now, []string{"begins at 2023-11-14 22:13:21Z", "clocks"}, ""},
		"from the future":      {"issued_in_future", bound(now), p, now, []string{"issued at 2023-11-14 22:13:22Z", "clocks"}, ""},
		"certificate too old":  {"certificate_not_valid", bound(now), p, now, []string{"valid from " + stamp(now.NotBefore)}, ""},
		"bound to none":        {"not_bound", lone, p, now, []string{"for no certificate at all", "Anybody who finds"}, ""},
		"forged":               {"bad_signature", bound(now), p, now, []string{"Nobody vouches", "that it belongs to the client payments", p.Issuer()}, "issued to"},
		"with the twin of s":   {"signature_form", bound(now), p, now, []string{"Nobody vouches", "that it belongs to the client payments", p.Issuer()}, "issued to"},
		"of another issuer":    {"wrong_issuer", bound(now), p, now, []string{"made by https://issuer.example", p.Issuer()}, "issued to"},
		"not verified":         {ReasonUnverified, bound(now), nil, foreign, []string{"Nobody vouches", "is " + thumbprint(foreign)}, "issued to"},
		"not verified, alone":  {ReasonUnverified, bound(now), nil, nil, []string{"Nobody vouches"}, "Your certificate"},
		"nothing in it":        {ReasonUnverified, nil, nil, nil, []string{"belongs to nobody"}, ""},
		"hostile":              {ReasonUnverified, map[string]any{"client_id": "a\x1b[2J\u202e"}, nil, nil, []string{`"a\x1b[2J\u202e"`}, "\x1b"},
		"several audiences":    {"", map[string]any{"aud": []any{"a", "b"}, "cnf": bound(now)["cnf"]}, p, now, []string{"each of a, b accepts it"}, ""},
		"no token":             {ReasonMalformed, nil, p, now, nil, "."},
		"claims of odd shapes": {"", map[string]any{"client_id": 1, "aud": 2, "cnf": 3, "exp": "x"}, p, now, []string{"no certificate at all"}, ""},
	} {
		i := &Inspection{Reason: tt.reason, Claims: tt.claims}
		got := i.explanation(tt.p, tt.cert, time.Now())
		for _, want := range tt.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s: no %q in %q", name, want, got)
			}
		}
		if tt.not != "" && strings.Contains(got, tt.not) {
			t.Errorf("%s: %q in %q", name, tt.not, got)
		}
	}
}
