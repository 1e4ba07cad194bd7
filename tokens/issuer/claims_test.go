// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	josev4 "github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/tokens"
)

// issue returns the token of one request, or fails the test.
func (s *service) issue(t *testing.T, r Request) *Response {
	t.Helper()
	r.GrantType = ClientCredentials
	response, err := s.Issue(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return response
}

// AT-01: RFC 9068, Section 2.1: the header says at+jwt, the algorithm and the key, and nothing else.
func TestRFC9068_2_1_Header(t *testing.T) {
	t.Parallel()
	s := newService(t)
	peer := mtlstest.PeerOf(s.enrol(t, "payments"))
	got := part(t, s.issue(t, Request{ClientID: "payments", Peer: peer}).AccessToken, 0)
	want := map[string]any{"typ": "at+jwt", "alg": "ES256", "kid": s.keys.signing.ID}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("header (-want +got):\n%s", diff)
	}
}

// AT-02, AT-03, AT-05, AT-06: RFC 9068, Section 2.2: all required claims, of the right types, and no others; the
// subject is the client; the audience is the resource; scope is a string.
func TestRFC9068_2_2_Claims(t *testing.T) {
	t.Parallel()
	s := newService(t)
	now := time.Unix(1_800_000_000, 999_999_999)
	cert := s.enrol(t, "payments", func(l *mtlstest.Leaf) {
		l.NotBefore, l.NotAfter = now.Add(-time.Hour), now.Add(time.Hour)
	})
	s.now = func() time.Time { return now }
	response := s.issue(t, Request{ClientID: "payments", Peer: mtlstest.PeerOf(cert)})
	got := part(t, response.AccessToken, 1)
	if id, _ := got["jti"].(string); len(id) != 22 {
		t.Errorf("jti = %v", got["jti"])
	}
	delete(got, "jti")
	want := map[string]any{
		"iss": s.public, "sub": "payments", "client_id": "payments", "aud": ledger, "scope": "read write",
		"iat": json.Number("1800000000"), "exp": json.Number("1800000600"),
		"cnf": map[string]any{"x5t#S256": mtls.ThumbprintOf(cert.Leaf).String()},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("claims (-want +got):\n%s", diff)
	}
}

// AT-04: RFC 9068, Section 5: there are no subjects besides clients, so that none can be mistaken for one: sub and
// client_id are both the registered id.
func TestRFC9068_5_SubjectIsClient(t *testing.T) {
	t.Parallel()
	s := newService(t)
	for _, id := range []string{"payments", "spiffe://partner.example/ns/a", "a\"b", "root"} {
		peer := mtlstest.PeerOf(s.enrol(t, "x"))
		s.registry.change(func(r *registry) {
			c := r.clients["x"]
			c.ID, c.Inventory = id, false
			r.clients[id] = c
		})
		got := part(t, s.issue(t, Request{ClientID: id, Peer: peer}).AccessToken, 1)
		if got["sub"] != id || got["client_id"] != id {
			t.Errorf("%s: sub %v, client_id %v", id, got["sub"], got["client_id"])
		}
	}
}

// AT-08, AT-09: RFC 7515, Section 3.1; RFC 7518, Section 3.4: another library verifies what we sign, with every
// algorithm; an ES256 signature is 86 characters.
func TestRFC7515_3_1_ForeignLibraryVerifies(t *testing.T) {
	t.Parallel()
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ec := newKeyring(t).signing
	for _, key := range []SigningKey{
		ec, {ID: "ed", Algorithm: tokens.EdDSA, Signer: edKey}, {ID: "rsa", Algorithm: tokens.PS256, Signer: rsaKey},
	} {
		t.Run(key.Algorithm, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			s.keys.signing = key
			peer := mtlstest.PeerOf(s.enrol(t, "payments"))
			raw := s.issue(t, Request{ClientID: "payments", Peer: peer}).AccessToken
			signed, err := josev4.ParseSignedCompact(raw, []josev4.SignatureAlgorithm{josev4.SignatureAlgorithm(key.Algorithm)})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := signed.Verify(key.Signer.Public()); err != nil {
				t.Error(err)
			}
			if n := len(raw) - strings.LastIndexByte(raw, '.') - 1; key.Algorithm == tokens.ES256 && n != 86 {
				t.Errorf("ES256 signature of %d characters", n)
			}
			v, err := tokens.NewVerifier(tokens.VerifierConfig{
				Issuer: s.public, Audience: ledger,
				Keys: tokens.StaticKeys{{ID: key.ID, Algorithm: key.Algorithm, Key: key.Signer.Public()}},
			})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := v.Verify(t.Context(), raw, peer); err != nil {
				t.Errorf("our own verifier: %v", err)
			}
		})
	}
}

// AT-13, AT-14: RFC 9068, Section 2.2; RFC 9700, Section 2.2: a token lives no longer than the client's, the grant's,
// the server's and the certificate's bounds allow, in whole seconds.
func TestRFC9068_2_2_Lifetime(t *testing.T) {
	t.Parallel()
	s := newService(t, func(c *Config) { c.Lifetime, c.MaxLifetime = 5*time.Minute, 30*time.Minute })
	peer := mtlstest.PeerOf(s.enrol(t, "payments"))
	for _, c := range []struct {
		name          string
		client, grant time.Duration
		inventory     time.Duration // from now; 0 for none
		want          time.Duration
	}{
		{"default", 0, 0, 0, 5 * time.Minute},
		{"client shorter", time.Minute, 0, 0, time.Minute},
		{"client longer", 20 * time.Minute, 0, 0, 20 * time.Minute},
		{"client above the bound", 2 * time.Hour, 0, 0, 30 * time.Minute},
		{"grant", 20 * time.Minute, 2 * time.Minute, 0, 2 * time.Minute},
		{"fractions", 1500 * time.Millisecond, 0, 0, time.Second},
		{"inventory", 0, 0, 61 * time.Second, 61 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			now := time.Now().Truncate(time.Second)
			s.now = func() time.Time { return now }
			s.registry.change(func(r *registry) {
				client := r.clients["payments"]
				client.TokenLifetime = c.client
				client.Grants = []Grant{{Resource: ledger, Scopes: []string{"read"}, MaxLifetime: c.grant}}
				r.clients["payments"] = client
				entry := r.certificates[peer.Thumbprint()]
				entry.NotAfter = time.Time{}
				if c.inventory != 0 {
					entry.NotAfter = now.Add(c.inventory)
				}
				r.certificates[peer.Thumbprint()] = entry
			})
			response := s.issue(t, Request{ClientID: "payments", Peer: peer})
			claims := part(t, response.AccessToken, 1)
			if response.ExpiresIn != c.want || claims["exp"] != jsonNumber(now.Add(c.want).Unix()) {
				t.Errorf("expires_in %v, exp %v, want %v", response.ExpiresIn, claims["exp"], c.want)
			}
		})
	}
	s.registry.changeClient("payments", func(c *Client) { c.TokenLifetime = time.Millisecond })
	_, err := s.Issue(t.Context(), Request{GrantType: ClientCredentials, ClientID: "payments", Peer: peer})
	wantError(t, err, tokens.CodeServerError, "lifetime_below_one_second")
}

// AT-05, RI-03: RFC 7519, Section 4.1.3; RFC 8707, Section 2: one audience is a string, several are an array.
func TestRFC7519_4_1_3_Audience(t *testing.T) {
	t.Parallel()
	s := newService(t)
	peer := mtlstest.PeerOf(s.enrol(t, "payments"))
	s.grant("payments", Grant{Resource: ledger, Scopes: []string{"read"}},
		Grant{Resource: reports, Scopes: []string{"print"}})
	one := s.issue(t, Request{ClientID: "payments", Peer: peer, Resources: []string{reports}})
	if got := part(t, one.AccessToken, 1)["aud"]; got != reports {
		t.Errorf("aud = %v, want %s", got, reports)
	}
	two := s.issue(t, Request{ClientID: "payments", Peer: peer, Resources: []string{reports, ledger, reports}})
	claims := part(t, two.AccessToken, 1)
	if diff := cmp.Diff([]any{reports, ledger}, claims["aud"]); diff != "" {
		t.Errorf("aud (-want +got):\n%s", diff)
	}
	if claims["scope"] != "print read" {
		t.Errorf("scope = %v", claims["scope"])
	}
}

// AT-15: RFC 7519, Section 4: no claim name appears twice, and nothing that goes into a claim can make another one:
// what is written by hand is what encoding/json reads back.
func TestRFC7519_4_NoSecondClaim(t *testing.T) {
	t.Parallel()
	for _, hostile := range []string{
		`a","sub":"root`, "line\nfeed\r\t\b\f", "nul\x00", "\x01\x1f\x7f", `back\slash`, "quote\"",
		"é 漢字 😀", "\u2028\u2029",
		"<script>&", "bad\xff\xfeutf8", "\xc3", "\xed\xa0\x80", "",
	} {
		c := claims{
			issuer: hostile, clientID: hostile, audience: []string{hostile, hostile}, scope: []string{hostile},
			id: hostile, issued: -1, expires: 1 << 40,
		}
		b := c.appendJSON(nil)
		valid := strings.ToValidUTF8(hostile, "\ufffd")
		if hostile == "\xed\xa0\x80" || hostile == "bad\xff\xfeutf8" {
			valid = string([]rune(hostile)) // one replacement for each byte, as encoding/json does it
		}
		var got map[string]any
		if err := json.Unmarshal(b, &got); err != nil {
			t.Errorf("%q: %v in %s", hostile, err, b)
			continue
		}
		want := map[string]any{
			"iss": valid, "sub": valid, "client_id": valid, "aud": []any{valid, valid}, "scope": valid, "jti": valid,
			"iat": -1.0, "exp": float64(1 << 40), "cnf": map[string]any{"x5t#S256": strings.Repeat("A", 43)},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", hostile, diff)
		}
		if n := strings.Count(string(b), `":`) - strings.Count(string(b), `\":`); n != 10 {
			t.Errorf("%q: %d member names in %s", hostile, n, b)
		}
	}
}

// FuzzAppendString holds the hand-written escaping to encoding/json.
func FuzzAppendString(f *testing.F) {
	f.Add("plain")
	f.Add("\"\\\x00\xff\u2028")
	f.Fuzz(func(t *testing.T, s string) {
		b := appendString(nil, s)
		var got, want string
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatalf("%q: %v", b, err)
		}
		std, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(std, &want); err != nil {
			t.Fatal(err)
		}
		if got != want || bytes.ContainsFunc(b, func(r rune) bool { return r < ' ' }) {
			t.Errorf("%q became %q, encoding/json has %q", s, got, want)
		}
	})
}

// The size that is set aside for claims is enough, so that they are written without growing.
func TestClaimsSize(t *testing.T) {
	t.Parallel()
	c := claims{
		issuer: strings.Repeat("i", 300), clientID: strings.Repeat("c", 300), audience: slices.Repeat([]string{ledger}, 20),
		scope: slices.Repeat([]string{"read"}, 50), id: newTokenID(), issued: 1 << 40, expires: 1 << 40,
	}
	if n := len(c.appendJSON(nil)); n > c.size() {
		t.Errorf("%d bytes, set aside %d", n, c.size())
	}
}
