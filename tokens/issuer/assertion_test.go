// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/internal/jose"
)

// usedAssertions is the Assertions of the tests.
type usedAssertions struct {
	mu   sync.Mutex
	seen map[[sha256.Size]byte]time.Time
	err  error
}

func (u *usedAssertions) Use(_ context.Context, digest [sha256.Size]byte, until time.Time) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.err != nil {
		return u.err
	}
	if _, used := u.seen[digest]; used {
		return ErrUsed
	}
	u.seen[digest] = until
	return nil
}

func (u *usedAssertions) fail(err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.err = err
}

func (u *usedAssertions) untils() []time.Time {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Collect(maps.Values(u.seen))
}

// asserting is a service that takes assertions.
func asserting(tb testing.TB, edit ...func(*Config)) (*service, *usedAssertions) {
	tb.Helper()
	used := &usedAssertions{seen: map[[sha256.Size]byte]time.Time{}}
	return newService(tb, append([]func(*Config){func(c *Config) { c.Assertions = used }}, edit...)...), used
}

// signer is what a client signs its assertions with.
type signer struct {
	kid       string
	algorithm jose.Algorithm
	key       crypto.Signer
}

func newSigner(tb testing.TB, algorithm jose.Algorithm) *signer {
	tb.Helper()
	var key crypto.Signer
	var err error
	switch algorithm {
	case jose.EdDSA:
		_, key, err = ed25519.GenerateKey(rand.Reader)
	case jose.PS256, jose.RS256:
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	default:
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return &signer{kid: "key-1", algorithm: algorithm, key: key}
}

func (g *signer) public() tokens.PublicKey {
	return tokens.PublicKey{ID: g.kid, Algorithm: string(g.algorithm), Key: g.key.Public()}
}

// sign makes an assertion of these claims; typ is left out of the header when it is empty.
func (g *signer) sign(tb testing.TB, typ string, claims map[string]any) string {
	tb.Helper()
	payload, err := json.Marshal(claims)
	if err != nil {
		tb.Fatal(err)
	}
	raw, err := jose.Sign(jose.Header{Algorithm: g.algorithm, KeyID: g.kid, Type: typ}, payload, g.key)
	if err != nil {
		tb.Fatal(err)
	}
	return raw
}

// claimsOf are those of a good assertion at a time.
func claimsOf(id, audience string, now time.Time) map[string]any {
	return map[string]any{
		"iss": id, "sub": id, "aud": audience, "jti": rand.Text(), "iat": now.Unix(), "exp": now.Add(time.Minute).Unix(),
	}
}

// enrolSigner registers a client that signs assertions. The certificate is nobody's.
func (s *service) enrolSigner(tb testing.TB, id string, algorithm jose.Algorithm) (tls.Certificate, *signer) {
	tb.Helper()
	g := newSigner(tb, algorithm)
	client := Client{
		ID: id, Generation: 1, AuthMethod: PrivateKeyJWT, Keys: tokens.StaticKeys{g.public()}, Anchors: s.ca.Anchors(tb),
		Grants: []Grant{{Resource: ledger, Scopes: []string{"read", "write"}}},
	}
	s.registry.change(func(r *registry) { r.clients[id] = client })
	return mtlstest.SelfSigned(tb, mtlstest.Leaf{CommonName: "holder of " + id}), g
}

// asserted returns the body of an ordinary token request with an assertion.
func asserted(id, assertion string, more ...string) string {
	return ask(id, append([]string{"client_assertion_type", assertionType, "client_assertion", assertion}, more...)...)
}

// CB-11: RFC 8705, Section 3: a client that authenticates by an assertion gets a token that is bound to the certificate
// of its connection, whoever issued it, with every algorithm that is listed; client_id may be left out.
func TestRFC7523_2_2_TokenIsBound(t *testing.T) {
	t.Parallel()
	s, _ := asserting(t)
	for _, algorithm := range assertionAlgorithms() {
		id := "client-" + strings.ToLower(algorithm)
		selfSigned, g := s.enrolSigner(t, id, jose.Algorithm(algorithm))
		for i, cert := range []tls.Certificate{selfSigned, s.partner.Issue(t, mtlstest.Leaf{CommonName: "anyone"})} {
			name := id
			if i == 1 {
				name = "" // RFC 7521, Section 4.2
			}
			claims := s.post(t, &cert, asserted(name, g.sign(t, "", claimsOf(id, s.issuer, time.Now())))).wantToken(t)
			want := map[string]any{"x5t#S256": mtls.ThumbprintOf(cert.Leaf).String()}
			if diff := cmp.Diff(want, claims["cnf"]); diff != "" || claims["sub"] != id || claims["client_id"] != id {
				t.Errorf("%s: claims %v", algorithm, claims)
			}
			if d := s.journal.last(t); !d.Granted || !d.Authenticated || d.ClientID != id {
				t.Errorf("%s: recorded %+v", algorithm, d)
			}
		}
	}
}

// CB-06: RFC 8705, Section 3.4: without a certificate there is no token, never an unbound one, and the assertion is not
// used up.
func TestRFC8705_3_4_AssertionWithoutCertificate(t *testing.T) {
	t.Parallel()
	s, _ := asserting(t)
	cert, g := s.enrolSigner(t, "reports", jose.ES256)
	body := asserted("reports", g.sign(t, "", claimsOf("reports", s.issuer, time.Now())))
	a := s.post(t, nil, body)
	a.want(t, 401, tokens.CodeInvalidClient)
	if !strings.HasPrefix(a.Text, "no client certificate") {
		t.Errorf("told %q", a.Text)
	}
	if d := s.journal.last(t); d.Reason != "no_certificate" || d.Authenticated {
		t.Errorf("recorded %+v", d)
	}
	s.post(t, &cert, body).wantToken(t)
}

// change alters the claims of an assertion.
type alteration func(map[string]any)

func with(name string, value any) alteration { return func(m map[string]any) { m[name] = value } }
func without(name string) alteration         { return func(m map[string]any) { delete(m, name) } }
func in(name string, d time.Duration) alteration {
	return func(m map[string]any) { m[name] = time.Now().Add(d).Unix() }
}

// CA-27: RFC 7523, Section 3; FAPI 2.0, Section 5.3.2.1: aud is the issuer identifier as a string: not the token endpoint,
// not a list, not another spelling.
func TestRFC7523_3_Audience(t *testing.T) {
	t.Parallel()
	s, used := asserting(t)
	cert, g := s.enrolSigner(t, "reports", jose.ES256)
	for _, audience := range []any{
		s.tokenURL, s.issuer + "/", strings.ToUpper(s.issuer), []string{s.issuer}, []string{s.issuer, s.tokenURL}, "", nil, 1, true,
		map[string]any{s.issuer: s.issuer},
	} {
		s.wantRefusedAssertion(t, cert, g, with("aud", audience), "assertion_audience")
	}
	s.wantRefusedAssertion(t, cert, g, without("aud"), "assertion_audience")
	if len(used.untils()) != 0 {
		t.Error("a refused assertion was noted")
	}
}

// wantRefusedAssertion sends an assertion with one change and expects the one answer, and this reason in the journal.
func (s *service) wantRefusedAssertion(t *testing.T, cert tls.Certificate, g *signer, c alteration, reason string) {
	t.Helper()
	claims := claimsOf("reports", s.issuer, time.Now())
	c(claims)
	s.wantRefusedBody(t, cert, asserted("reports", g.sign(t, "", claims)), reason)
}

func (s *service) wantRefusedBody(t *testing.T, cert tls.Certificate, body, reason string) {
	t.Helper()
	a := s.post(t, &cert, body)
	a.want(t, 401, tokens.CodeInvalidClient)
	if a.Text != assertedDescription {
		t.Errorf("%s: %s", reason, a.body)
	}
	if d := s.journal.last(t); d.Reason != reason || d.Authenticated {
		t.Errorf("recorded %q, authenticated %t; want %q", d.Reason, d.Authenticated, reason)
	}
}

// CA-28: RFC 7519, Sections 4.1.4 to 4.1.6; FAPI 2.0, Section 5.3.2.1: iat and nbf may be some seconds ahead, and not more
// than a minute; an assertion that has expired, or lives for longer than its jti is remembered, is refused.
func TestRFC7523_3_Dates(t *testing.T) {
	t.Parallel()
	s, used := asserting(t)
	cert, g := s.enrolSigner(t, "reports", jose.ES256)
	for _, member := range []string{"iat", "nbf"} {
		for _, ahead := range []time.Duration{-time.Hour, 0, 8 * time.Second, 10 * time.Second, 50 * time.Second} {
			claims := claimsOf("reports", s.issuer, time.Now())
			in(member, ahead)(claims)
			s.post(t, &cert, asserted("reports", g.sign(t, "", claims))).wantToken(t)
		}
		for _, ahead := range []time.Duration{62 * time.Second, time.Hour, 1000 * time.Hour} {
			s.wantRefusedAssertion(t, cert, g, in(member, ahead), "assertion_not_yet_valid")
		}
		for _, odd := range []any{"1", 1.5, -1, 1e15, nil, true, json.Number("1e3"), []int{1}} {
			s.wantRefusedAssertion(t, cert, g, with(member, odd), "assertion_dates")
		}
	}
	for _, ahead := range []time.Duration{-5 * time.Minute, -time.Second, 0} {
		s.wantRefusedAssertion(t, cert, g, in("exp", ahead), "assertion_expired")
	}
	for _, ahead := range []time.Duration{11*time.Minute + 2*time.Second, time.Hour, 1000 * time.Hour} {
		s.wantRefusedAssertion(t, cert, g, in("exp", ahead), "assertion_lives_too_long")
	}
	claims := claimsOf("reports", s.issuer, time.Now())
	in("exp", 10*time.Minute)(claims)
	s.post(t, &cert, asserted("reports", g.sign(t, "", claims))).wantToken(t)
	s.wantRefusedAssertion(t, cert, g, with("exp", 100000000000), "assertion_lives_too_long")
	s.wantRefusedAssertion(t, cert, g, with("exp", 1000000000000), "assertion_dates")
	s.wantRefusedAssertion(t, cert, g, without("exp"), "assertion_dates")
	for _, odd := range []any{"1", 9999999999.5, -1, nil, true} {
		s.wantRefusedAssertion(t, cert, g, with("exp", odd), "assertion_dates")
	}
	for _, until := range used.untils() { // another server's clock may be behind
		if left := time.Until(until); left < 100*time.Second || left > 12*time.Minute {
			t.Errorf("an assertion is remembered for %v", left)
		}
	}
}

// CA-29: RFC 7523, Section 3: iss and sub are the client, exp and jti must be there.
func TestRFC7523_3_RequiredClaims(t *testing.T) {
	t.Parallel()
	s, used := asserting(t)
	cert, g := s.enrolSigner(t, "reports", jose.ES256)
	for member, reason := range map[string]string{"iss": "assertion_issuer", "sub": "assertion_subject", "jti": "assertion_id"} {
		s.wantRefusedAssertion(t, cert, g, without(member), reason)
		for _, odd := range []any{"", nil, 1, []string{"reports"}} {
			s.wantRefusedAssertion(t, cert, g, with(member, odd), reason)
		}
	}
	for _, member := range []string{"iss", "sub"} {
		s.wantRefusedAssertion(t, cert, g, with(member, "Reports"), map[string]string{"iss": "assertion_issuer", "sub": "assertion_subject"}[member])
	}
	s.wantRefusedAssertion(t, cert, g, with("jti", strings.Repeat("j", maxAssertionID+1)), "assertion_id")
	if len(used.untils()) != 0 {
		t.Error("a refused assertion was noted")
	}
	claims := claimsOf("reports", s.issuer, time.Now())
	with("jti", strings.Repeat("j", maxAssertionID))(claims)
	s.post(t, &cert, asserted("reports", g.sign(t, "", claims))).wantToken(t)
	// Claims that we do not know are no harm.
	claims = claimsOf("reports", s.issuer, time.Now())
	with("htm", "POST")(claims)
	s.post(t, &cert, asserted("reports", g.sign(t, "", claims))).wantToken(t)
}

// CA-29: RFC 7523, Section 3: an assertion is good for one request, of many at once too, on any connection; its jti is
// used up whatever else it says, and for this client only.
func TestRFC7523_3_SingleUse(t *testing.T) {
	t.Parallel()
	s, _ := asserting(t)
	cert, g := s.enrolSigner(t, "reports", jose.ES256)
	other, h := s.enrolSigner(t, "other", jose.ES256)
	claims := claimsOf("reports", s.issuer, time.Now())
	body := asserted("reports", g.sign(t, "", claims))
	hc := s.client(t, &cert)
	var granted, refused int
	answers := make(chan answer)
	for range 10 {
		go func() { answers <- do(t, hc, request(t, s.mtlsURL+TokenPath, body)) }()
	}
	for range 10 {
		switch a := <-answers; a.status {
		case 200:
			granted++
		default:
			a.want(t, 401, tokens.CodeInvalidClient)
			refused++
		}
	}
	if granted != 1 || refused != 9 {
		t.Errorf("one assertion: %d tokens, %d refusals", granted, refused)
	}
	s.wantRefusedBody(t, cert, body, "assertion_used")
	s.wantRefusedBody(t, other, body, "assertion_used") // a thief with a certificate of his own
	in("exp", 2*time.Minute)(claims)
	s.wantRefusedBody(t, cert, asserted("reports", g.sign(t, "JWT", claims)), "assertion_used")
	with("iss", "other")(claims)
	with("sub", "other")(claims)
	s.post(t, &other, asserted("other", h.sign(t, "", claims))).wantToken(t)
}

// CA-29: RFC 7523, Section 3: nothing is noted for a request that is refused for another reason, and where it cannot be
// noted, or it is not known whether it was, there is no token.
func TestRFC7523_3_NothingStoredForRefused(t *testing.T) {
	t.Parallel()
	s, used := asserting(t)
	cert, g := s.enrolSigner(t, "reports", jose.ES256)
	assertion := g.sign(t, "", claimsOf("reports", s.issuer, time.Now()))
	s.post(t, &cert, asserted("reports", assertion, "scope", "nothing")).want(t, 400, tokens.CodeInvalidScope)
	s.post(t, &cert, asserted("reports", assertion, "resource", "https://other.example")).want(t, 400, tokens.CodeInvalidTarget)
	s.post(t, &cert, asserted("reports", assertion, "grant_type", "password")).want(t, 400, tokens.CodeInvalidRequest)
	if len(used.untils()) != 0 {
		t.Error("a refused request was noted")
	}
	used.fail(errDown)
	s.post(t, &cert, asserted("reports", assertion)).want(t, 503, tokens.CodeTemporarilyUnavailable)
	if d := s.journal.last(t); d.Reason != "assertions_unavailable" || d.Granted {
		t.Errorf("recorded %+v", d)
	}
	used.fail(nil)
	s.post(t, &cert, asserted("reports", assertion)).wantToken(t)
}

// CA-29: RFC 8725, Section 3.11: a JWT of another kind that the client's key signed is no assertion; none, JWT and the one
// that names the purpose are.
func TestRFC7523_3_Type(t *testing.T) {
	t.Parallel()
	s, _ := asserting(t)
	cert, g := s.enrolSigner(t, "reports", jose.ES256)
	body := func(typ string) string {
		return asserted("reports", g.sign(t, typ, claimsOf("reports", s.issuer, time.Now())))
	}
	for _, typ := range []string{"", "JWT", "jwt", "application/jwt", "client-authentication+jwt", "application/client-authentication+jwt"} {
		s.post(t, &cert, body(typ)).wantToken(t)
	}
	for _, typ := range []string{"at+jwt", "application/at+jwt", "dpop+jwt", "logout+jwt", "token-introspection+jwt", "application/", "JOSE", "application/application/jwt"} {
		s.wantRefusedBody(t, cert, body(typ), "assertion_type")
	}
}

// CA-29: RFC 8725, Sections 3.1 and 3.2; FAPI 2.0, Section 5.4: PKCS #1 v1.5, none and HMAC are refused, and so are a key
// with another algorithm than its own, an unknown or no kid, a header that brings its own key, and a changed signature.
func TestRFC7523_3_Algorithm(t *testing.T) {
	t.Parallel()
	s, used := asserting(t)
	cert, g := s.enrolSigner(t, "reports", jose.PS256)
	claims := func() map[string]any { return claimsOf("reports", s.issuer, time.Now()) }
	old := &signer{kid: g.kid, algorithm: jose.RS256, key: g.key}
	s.wantRefusedBody(t, cert, asserted("reports", old.sign(t, "", claims())), "assertion_algorithm")
	// Also where somebody registered the key for it.
	s.registry.changeClient("reports", func(c *Client) { c.Keys = tokens.StaticKeys{old.public()} })
	s.wantRefusedBody(t, cert, asserted("reports", old.sign(t, "", claims())), "assertion_algorithm")
	s.registry.changeClient("reports", func(c *Client) { c.Keys = tokens.StaticKeys{g.public()} })

	stranger := newSigner(t, jose.PS256)
	s.wantRefusedBody(t, cert, asserted("reports", stranger.sign(t, "", claims())), "assertion_signature")
	elliptic := newSigner(t, jose.ES256)
	s.wantRefusedBody(t, cert, asserted("reports", elliptic.sign(t, "", claims())), "assertion_signature")
	for kid, reason := range map[string]string{
		"": "assertion_key_missing", "key-2": "assertion_key_unknown", "../key-1": "assertion_key_unknown",
	} {
		renamed := &signer{kid: kid, algorithm: g.algorithm, key: g.key}
		s.wantRefusedBody(t, cert, asserted("reports", renamed.sign(t, "", claims())), reason)
	}
	good := g.sign(t, "", claims())
	parts := strings.Split(good, ".")
	encode := func(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }
	for name, raw := range map[string]string{
		"none":           encode(`{"alg":"none","kid":"key-1"}`) + "." + parts[1] + ".",
		"HS256":          encode(`{"alg":"HS256","kid":"key-1"}`) + "." + parts[1] + "." + parts[2],
		"own key":        encode(`{"alg":"PS256","kid":"key-1","jwk":{}}`) + "." + parts[1] + "." + parts[2],
		"key at":         encode(`{"alg":"PS256","kid":"key-1","jku":"https://evil.example"}`) + "." + parts[1] + "." + parts[2],
		"critical":       encode(`{"alg":"PS256","kid":"key-1","crit":["exp"],"exp":1}`) + "." + parts[1] + "." + parts[2],
		"duplicate":      encode(`{"alg":"PS256","alg":"PS256","kid":"key-1"}`) + "." + parts[1] + "." + parts[2],
		"kid a number":   encode(`{"alg":"PS256","kid":1}`) + "." + parts[1] + "." + parts[2],
		"two parts":      parts[0] + "." + parts[1],
		"not base64url":  good + "=",
		"text":           "x",
		"JSON":           `{"payload":"x"}`,
		"encrypted-like": good + ".x.y",
	} {
		s.wantRefusedBody(t, cert, asserted("reports", raw), "assertion_malformed")
		_ = name
		s.wantRefusedBody(t, cert, asserted("", raw), "assertion_malformed") // nor is a client_id what is wrong with it
	}
	s.wantRefusedBody(t, cert, asserted("reports", parts[0]+"."+encode(`{"iss":"reports"}`)+"."+parts[2]), "assertion_signature")
	duplicate, err := jose.Sign(jose.Header{Algorithm: jose.PS256, KeyID: g.kid}, []byte(`{"iss":"reports","iss":"reports"}`), g.key)
	if err != nil {
		t.Fatal(err)
	}
	s.wantRefusedBody(t, cert, asserted("reports", duplicate), "assertion_claims")
	// Unpadded base64 has no length of 4n+1, so two lengths of the kid are tried.
	largest := ""
	for _, kid := range []string{"key-1", "key-10"} {
		named := &signer{kid: kid, algorithm: g.algorithm, key: g.key}
		s.registry.changeClient("reports", func(c *Client) { c.Keys = append(tokens.StaticKeys{named.public()}, g.public()) })
		fits := claims()
		for n := 2000; len(largest) != maxAssertionBytes && n < maxAssertionBytes; n++ {
			with("x", strings.Repeat("x", n))(fits)
			if payload, err := json.Marshal(fits); err != nil || base64.RawURLEncoding.EncodedLen(len(payload)) < maxAssertionBytes-500 {
				continue
			}
			if largest = named.sign(t, "", fits); len(largest) > maxAssertionBytes {
				break
			}
		}
		if len(largest) == maxAssertionBytes {
			if kid == g.kid {
				s.registry.changeClient("reports", func(c *Client) { c.Keys = tokens.StaticKeys{g.public()} })
			}
			break
		}
	}
	if len(largest) != maxAssertionBytes {
		t.Fatalf("%d bytes", len(largest))
	}
	s.post(t, &cert, asserted("reports", largest)).wantToken(t)
	s.registry.changeClient("reports", func(c *Client) { c.Keys = tokens.StaticKeys{g.public()} })
	used.mu.Lock()
	clear(used.seen)
	used.mu.Unlock()
	long := claims()
	with("x", strings.Repeat("x", maxAssertionBytes))(long)
	s.wantRefusedBody(t, cert, asserted("reports", g.sign(t, "", long)), "assertion_too_large")
	s.wantRefusedBody(t, cert, asserted("", g.sign(t, "", long)), "assertion_too_large")
	// One that can be read and names nobody stands for no client_id.
	for _, nobody := range []alteration{without("sub"), with("sub", 1), with("sub", "")} {
		unnamed := claims()
		nobody(unnamed)
		s.post(t, &cert, asserted("", g.sign(t, "", unnamed))).want(t, 400, tokens.CodeInvalidRequest)
		if d := s.journal.last(t); d.Reason != "client_id_missing" {
			t.Errorf("recorded %q", d.Reason)
		}
	}
	if len(used.untils()) != 0 {
		t.Error("a refused assertion was noted")
	}
	s.post(t, &cert, asserted("reports", good)).wantToken(t)
}

// CA-29: RFC 7518, Section 3.4: an ES256 signature may have either form, as libraries write both; the assertion is used
// up with the first.
func TestRFC7518_3_4_EitherFormOfAssertion(t *testing.T) {
	t.Parallel()
	s, _ := asserting(t)
	cert, g := s.enrolSigner(t, "reports", jose.ES256)
	low := g.sign(t, "", claimsOf("reports", s.issuer, time.Now()))
	at := strings.LastIndexByte(low, '.') + 1
	signature, err := base64.RawURLEncoding.DecodeString(low[at:])
	if err != nil {
		t.Fatal(err)
	}
	order := elliptic.P256().Params().N.FillBytes(make([]byte, 32))
	borrow := 0
	for i := 31; i >= 0; i-- { // s becomes n - s
		digit := int(order[i]) - int(signature[32+i]) - borrow
		borrow = 0
		if digit < 0 {
			digit, borrow = digit+256, 1
		}
		signature[32+i] = byte(digit)
	}
	high := low[:at] + base64.RawURLEncoding.EncodeToString(signature)
	s.post(t, &cert, asserted("reports", high)).wantToken(t)
	s.wantRefusedBody(t, cert, asserted("reports", low), "assertion_used")
}

// CA-21, CA-22: RFC 6749, Section 2.3; RFC 8705, Section 2: a client authenticates by the method that it registered: one
// with a certificate by no assertion beside it, one with assertions by no certificate alone; and whoever is not
// authenticated cannot tell which of them it named, or whether there is such a client.
func TestRFC6749_2_3_AssertionOfAnotherMethod(t *testing.T) {
	t.Parallel()
	s, used := asserting(t)
	cert := s.enrol(t, "payments")
	pinned := mtlstest.SelfSigned(t, mtlstest.Leaf{CommonName: "pinned"})
	s.registry.change(func(r *registry) {
		r.clients["pinned"] = Client{ID: "pinned", AuthMethod: SelfSignedTLSClientAuth, Certificates: anyCertificate{}, Grants: r.clients["payments"].Grants}
	})
	holder, g := s.enrolSigner(t, "reports", jose.ES256)
	sign := func(id string) string { return g.sign(t, "", claimsOf(id, s.issuer, time.Now())) }

	s.post(t, &cert, ask("payments")).wantToken(t)
	s.post(t, &pinned, ask("pinned")).wantToken(t)
	for id, shown := range map[string]tls.Certificate{"payments": cert, "pinned": pinned, "unknown": holder} {
		// Also where the key is the client's: the other method's parts are not looked at.
		s.registry.changeClient("payments", func(c *Client) { c.Keys = tokens.StaticKeys{g.public()} })
		reason := "method_mismatch"
		if id == "unknown" {
			reason = "unknown_client"
			s.registry.change(func(r *registry) { delete(r.clients, "unknown") })
		}
		s.wantRefusedBody(t, shown, asserted(id, sign(id)), reason)
	}
	s.post(t, &holder, ask("reports")).want(t, 401, tokens.CodeInvalidClient)
	if d := s.journal.last(t); d.Reason != "method_mismatch" {
		t.Errorf("no assertion: recorded %q", d.Reason)
	}
	s.post(t, &cert, ask("reports")).want(t, 401, tokens.CodeInvalidClient)
	// One client's assertion is no other's, and of two names the one in the form counts.
	s.wantRefusedBody(t, holder, asserted("reports", sign("payments")), "assertion_issuer")
	s.wantRefusedBody(t, cert, asserted("payments", sign("reports")), "method_mismatch")
	good := sign("reports")
	for body, want := range map[string]int{
		asserted("reports", good) + "&client_secret=x":                                                                          400,
		ask("reports", "client_assertion", good):                                                                                400,
		ask("reports", "client_assertion_type", assertionType):                                                                  400,
		ask("reports", "client_assertion", good, "client_assertion_type", ""):                                                   400,
		asserted("reports", good) + "&client_assertion=" + good:                                                                 400,
		ask("reports", "client_assertion", good, "client_assertion_type", assertionType+"x"):                                    401,
		ask("reports", "client_assertion", good, "client_assertion_type", "urn:x:saml2-bearer"):                                 401,
		ask("", "client_assertion", "x", "client_assertion_type", assertionType):                                                401,
		ask("", "client_assertion", good+"x", "client_assertion_type", assertionType, "a", "b"):                                 401,
		ask("Reports", "client_assertion", good, "client_assertion_type", assertionType):                                        401,
		ask("payments", "client_assertion", good, "client_assertion_type", assertionType):                                       401,
		ask("", "client_assertion", g.sign(t, "", claimsOf("é", s.issuer, time.Now())), "client_assertion_type", assertionType): 400,
	} {
		if a := s.post(t, &holder, body); a.status != want {
			t.Errorf("%.80s: %d %s, want %d", body, a.status, a.body, want)
		}
	}
	a := s.post(t, &holder, asserted("reports", good), func(r *http.Request) { r.Header.Set("Authorization", "Basic eA==") })
	a.want(t, 401, tokens.CodeInvalidClient)
	if len(used.untils()) != 0 {
		t.Error("a refused assertion was noted")
	}
	s.post(t, &holder, asserted("reports", good)).wantToken(t)
}

// anyCertificate holds every certificate.
type anyCertificate struct{}

func (anyCertificate) Contains(context.Context, mtls.Thumbprint) (bool, error) { return true, nil }

// CA-22: RFC 8705, Section 2: a server that takes no assertions takes none, whatever clients are registered, and says so.
func TestRFC7523_2_2_OffByDefault(t *testing.T) {
	t.Parallel()
	s := newService(t)
	cert, g := s.enrolSigner(t, "reports", jose.ES256)
	s.post(t, &cert, asserted("reports", g.sign(t, "", claimsOf("reports", s.issuer, time.Now())))).want(t, 400, tokens.CodeInvalidRequest)
	s.post(t, &cert, ask("reports")).want(t, 401, tokens.CodeInvalidClient)
	if slices.Contains(s.metadata().AuthMethods, PrivateKeyJWT) || s.metadata().AuthAlgorithms != nil {
		t.Errorf("the metadata say %v", s.metadata())
	}
}

// MD-06: RFC 8414, Section 2: who takes assertions lists the method and its algorithms, and never none or RS256.
func TestRFC8414_2_AssertionAlgorithms(t *testing.T) {
	t.Parallel()
	s, _ := asserting(t)
	m := s.document(t)
	if diff := cmp.Diff([]any{TLSClientAuth, SelfSignedTLSClientAuth, PrivateKeyJWT}, m["token_endpoint_auth_methods_supported"]); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]any{"ES256", "PS256", "EdDSA"}, m["token_endpoint_auth_signing_alg_values_supported"]); diff != "" {
		t.Error(diff)
	}
}

// CB-11, CA-25: RFC 8705, Section 3: the certificate that a token will be bound to is valid now, of an acceptable key that
// is not blocked, and if our own CA issued it, in the inventory as this client's. The client's own key may be blocked too.
func TestRFC8705_3_CertificateOfAnAssertion(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	blocked := map[[sha256.Size]byte]bool{}
	var down error
	s, used := asserting(t, func(c *Config) {
		c.KeyBlocked = func(_ context.Context, key [sha256.Size]byte) (bool, error) {
			mu.Lock()
			defer mu.Unlock()
			if blocked[key] && down != nil {
				return false, down
			}
			return blocked[key], nil
		}
	})
	cert, g := s.enrolSigner(t, "reports", jose.ES256)
	body := func() string { return asserted("reports", g.sign(t, "", claimsOf("reports", s.issuer, time.Now()))) }
	hour := time.Hour
	for reason, shown := range map[string]tls.Certificate{
		"certificate_expired":       mtlstest.SelfSigned(t, mtlstest.Leaf{NotBefore: time.Now().Add(-2 * hour), NotAfter: time.Now().Add(-hour)}),
		"certificate_not_yet_valid": mtlstest.SelfSigned(t, mtlstest.Leaf{NotBefore: time.Now().Add(hour), NotAfter: time.Now().Add(2 * hour)}),
		// Minted with the issuing key, outside the service.
		"certificate_unknown":           s.ca.Issue(t, mtlstest.Leaf{CommonName: "reports"}),
		"certificate_of_another_client": s.enrol(t, "payments"),
	} {
		s.wantRefusedBody(t, shown, body(), reason)
	}
	own := s.enrol(t, "borrowed") // an entry of the inventory
	s.registry.changeCertificate(own, func(c *Certificate) { c.ClientID, c.Generation = "reports", 1 })
	s.post(t, &own, body()).wantToken(t)
	s.registry.changeCertificate(own, func(c *Certificate) { c.Generation = 2 })
	s.wantRefusedBody(t, own, body(), "certificate_of_another_generation")
	s.registry.changeCertificate(own, func(c *Certificate) { c.Generation, c.Revoked = 1, true })
	s.wantRefusedBody(t, own, body(), "certificate_revoked")

	spki, err := x509.MarshalPKIXPublicKey(g.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	for reason, key := range map[string][sha256.Size]byte{
		"key_blocked": sha256.Sum256(cert.Leaf.RawSubjectPublicKeyInfo), "assertion_key_blocked": sha256.Sum256(spki),
	} {
		mu.Lock()
		clear(blocked)
		blocked[key] = true
		mu.Unlock()
		s.wantRefusedBody(t, cert, body(), reason)
	}
	for _, key := range [][sha256.Size]byte{sha256.Sum256(cert.Leaf.RawSubjectPublicKeyInfo), sha256.Sum256(spki)} {
		mu.Lock()
		clear(blocked)
		blocked[key], down = true, errDown // it is not known
		mu.Unlock()
		s.post(t, &cert, body()).want(t, 503, tokens.CodeTemporarilyUnavailable)
	}
	mu.Lock()
	clear(blocked)
	mu.Unlock()
	s.registry.changeClient("reports", func(c *Client) { c.Disabled = true })
	s.wantRefusedBody(t, cert, body(), "client_disabled")
	s.registry.changeClient("reports", func(c *Client) { c.Disabled = false })
	s.registry.change(func(r *registry) { r.inventoryErr = errDown })
	a := s.post(t, &cert, body())
	a.want(t, 503, tokens.CodeTemporarilyUnavailable)
	if a.Text != unavailableDescription {
		t.Errorf("told %q", a.Text)
	}
	s.registry.change(func(r *registry) { r.inventoryErr = nil })
	if n := len(used.untils()); n != 1 {
		t.Errorf("%d assertions noted, want 1", n)
	}
	// Without anchors only the inventory knows a certificate of ours.
	s.registry.changeClient("reports", func(c *Client) { c.Anchors = nil })
	minted := s.ca.Issue(t, mtlstest.Leaf{CommonName: "reports"})
	s.post(t, &minted, body()).wantToken(t)
}

// A peer that no listener of ours has seen is held to the bounds of keys all the same.
func TestAssertionWithUnacceptableKey(t *testing.T) {
	t.Parallel()
	s, _ := asserting(t)
	_, g := s.enrolSigner(t, "reports", jose.ES256)
	key, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	weak := mtlstest.SelfSigned(t, mtlstest.Leaf{CommonName: "weak", Key: key})
	_, err = s.Issue(t.Context(), Request{
		GrantType: ClientCredentials, ClientID: "reports", Peer: mtlstest.PeerOf(weak),
		Assertion: g.sign(t, "", claimsOf("reports", s.issuer, time.Now())),
	})
	if e, ok := errors.AsType[*tokens.Error](err); !ok || e.Reason != "key_unacceptable" {
		t.Errorf("got %v", err)
	}
}

// IN-06: RFC 7662, Section 2.2: a token of a client that signs assertions is active, and not any more when its certificate,
// which our own CA had issued, was revoked, or the client disabled.
func TestRFC7662_2_2_TokenOfAnAssertion(t *testing.T) {
	t.Parallel()
	s, _ := asserting(t)
	s.enrolSigner(t, "reports", jose.ES256)
	c, err := s.registry.Client(t.Context(), "reports")
	if err != nil {
		t.Fatal(err)
	}
	cert := s.enrol(t, "borrowed")
	foreign := mtlstest.SelfSigned(t, mtlstest.Leaf{})
	want := func(want string, cert tls.Certificate) {
		t.Helper()
		got, refused := s.standingOf(t.Context(), c, mtls.ThumbprintOf(cert.Leaf), time.Now())
		if got != want || refused != nil {
			t.Errorf("%q, %v; want %q", got, refused, want)
		}
	}
	want("", foreign)
	want("certificate_of_another_client", cert)
	s.registry.changeCertificate(cert, func(c *Certificate) { c.ClientID = "reports" })
	want("", cert)
	s.registry.changeCertificate(cert, func(c *Certificate) { c.Revoked = true })
	want("certificate_revoked", cert)
	c.Disabled = true
	want("client_disabled", foreign)
}

// CA-22, CA-29: RFC 7523, Section 3; RFC 7662, Section 2.1: introspection takes the same assertions as the token endpoint,
// each once, wherever it was used; a refused question uses none up.
func TestRFC7662_2_1_AssertionOfTheCaller(t *testing.T) {
	t.Parallel()
	used := &usedAssertions{seen: map[[sha256.Size]byte]time.Time{}}
	d := newDesk(t, func(c *Config) { c.Assertions = used })
	cert, g := d.enrolSigner(t, "reports", jose.ES256)
	d.serve("reports", ledger)
	sign := func() string { return g.sign(t, "", claimsOf("reports", d.issuer, time.Now())) }
	question := func(assertion, token string) string {
		return about("reports", token, "client_assertion_type", assertionType, "client_assertion", assertion)
	}
	first := sign()
	d.introspect(t, &cert, question(first, "")).want(t, 400, tokens.CodeInvalidRequest)
	d.introspect(t, nil, question(first, d.token)).want(t, 401, tokens.CodeInvalidClient)
	d.introspect(t, &cert, about("reports", d.token)).want(t, 401, tokens.CodeInvalidClient)
	if len(used.untils()) != 0 {
		t.Error("a refused question was noted")
	}
	if a := d.introspect(t, &cert, question(first, d.token)); a.status != http.StatusOK || !strings.Contains(a.body, `"active":true`) {
		t.Fatalf("%d %s", a.status, a.body)
	}
	d.introspect(t, &cert, question(first, d.token)).want(t, 401, tokens.CodeInvalidClient)
	d.post(t, &cert, asserted("reports", first)).want(t, 401, tokens.CodeInvalidClient)
	second := sign()
	d.post(t, &cert, asserted("reports", second)).wantToken(t)
	d.introspect(t, &cert, question(second, d.token)).want(t, 401, tokens.CodeInvalidClient)
	used.fail(errDown)
	d.introspect(t, &cert, question(sign(), d.token)).want(t, 503, tokens.CodeTemporarilyUnavailable)
}

// A token of a client that signs assertions goes on to stand for it where the server itself is the resource, as long as the
// client and the certificate do; without a token there is no way round the assertion.
func TestStillHolds(t *testing.T) {
	t.Parallel()
	s, used := asserting(t)
	cert, _ := s.enrolSigner(t, "reports", jose.ES256)
	own := s.enrol(t, "payments")
	claims := func(id string) *tokens.Claims { return &tokens.Claims{ClientID: id} }
	if _, err := s.Authenticate(t.Context(), "reports", mtlstest.PeerOf(cert)); err == nil {
		t.Error("authenticated without an assertion")
	}
	for id, shown := range map[string]tls.Certificate{"reports": cert, "payments": own} {
		if c, err := s.StillHolds(t.Context(), claims(id), mtlstest.PeerOf(shown)); err != nil || c.ID != id {
			t.Errorf("%s: %v", id, err)
		}
		if _, err := s.StillHolds(t.Context(), claims(id), nil); err == nil {
			t.Errorf("%s holds without a certificate", id)
		}
	}
	if _, err := s.StillHolds(t.Context(), claims("payments"), mtlstest.PeerOf(cert)); err == nil {
		t.Error("a client holds with another's certificate")
	}
	for _, id := range []string{"reports", "payments"} {
		s.registry.changeClient(id, func(c *Client) { c.Disabled = true })
	}
	for id, shown := range map[string]tls.Certificate{"reports": cert, "payments": own} {
		if _, err := s.StillHolds(t.Context(), claims(id), mtlstest.PeerOf(shown)); err == nil {
			t.Errorf("%s holds although it is disabled", id)
		}
	}
	if len(used.untils()) != 0 {
		t.Error("an assertion was noted")
	}
}

// failingKeys are keys that cannot be had.
type failingKeys struct{ err error }

func (f failingKeys) Key(context.Context, string) (tokens.PublicKey, error) {
	return tokens.PublicKey{}, f.err
}

// A client without keys is nobody, and keys that cannot be had refuse for the moment; an odd key is none.
func TestAssertionKeys(t *testing.T) {
	t.Parallel()
	s, _ := asserting(t, func(c *Config) {
		c.KeyBlocked = func(context.Context, [sha256.Size]byte) (bool, error) { return false, nil }
	})
	cert, g := s.enrolSigner(t, "reports", jose.ES256)
	body := func() string { return asserted("reports", g.sign(t, "", claimsOf("reports", s.issuer, time.Now()))) }
	keys := func(k tokens.Keys) { s.registry.changeClient("reports", func(c *Client) { c.Keys = k }) }
	keys(nil)
	s.wantRefusedBody(t, cert, body(), "assertion_key_unknown")
	keys(failingKeys{fmt.Errorf("nothing: %w", tokens.ErrUnknownKey)})
	s.wantRefusedBody(t, cert, body(), "assertion_key_unknown")
	keys(tokens.StaticKeys{{ID: g.kid, Algorithm: tokens.ES256, Key: "no key"}})
	s.wantRefusedBody(t, cert, body(), "assertion_key_unknown")
	keys(failingKeys{errDown})
	s.post(t, &cert, body()).want(t, 503, tokens.CodeTemporarilyUnavailable)
	keys(tokens.StaticKeys{g.public()})
	s.post(t, &cert, body()).wantToken(t)
}

// A client whose key was taken back while its token was being recorded gets none: the decision is judged again.
func TestAssertionIsJudgedAgain(t *testing.T) {
	t.Parallel()
	s, _ := asserting(t)
	cert, g := s.enrolSigner(t, "reports", jose.ES256)
	s.recorder = &taking{journal: s.journal, take: func() {
		s.registry.changeClient("reports", func(c *Client) { c.Keys = nil })
	}}
	s.post(t, &cert, asserted("reports", g.sign(t, "", claimsOf("reports", s.issuer, time.Now())))).want(t, 401, tokens.CodeInvalidClient)
	if d := s.journal.last(t); d.Reason != "assertion_key_unknown" || d.TokenID == "" {
		t.Errorf("recorded %+v", d)
	}
}

// The inventory is asked once about a certificate that it does not have, and again about one that it has: what is revoked
// while the token is being recorded gets none.
func TestAssertionAsksTheInventoryOnce(t *testing.T) {
	t.Parallel()
	s, _ := asserting(t)
	cert, g := s.enrolSigner(t, "reports", jose.ES256)
	body := func() string { return asserted("reports", g.sign(t, "", claimsOf("reports", s.issuer, time.Now()))) }
	s.recorder = &taking{journal: s.journal, take: func() { s.registry.change(func(r *registry) { r.inventoryErr = errDown }) }}
	s.post(t, &cert, body()).wantToken(t)
	s.registry.change(func(r *registry) { r.inventoryErr = nil })
	own := s.enrol(t, "borrowed")
	s.registry.changeCertificate(own, func(c *Certificate) { c.ClientID = "reports" })
	s.recorder = &taking{journal: s.journal, take: func() { s.registry.changeCertificate(own, func(c *Certificate) { c.Revoked = true }) }}
	s.post(t, &own, body()).want(t, 401, tokens.CodeInvalidClient)
	if d := s.journal.last(t); d.Reason != "certificate_revoked" || d.TokenID == "" {
		t.Errorf("recorded %+v", d)
	}
}

// taking is a journal while whose first record is written something is taken away.
type taking struct {
	*journal
	take func()
}

func (r *taking) Record(ctx context.Context, d Decision) error {
	if d.Granted {
		r.take()
	}
	return r.journal.Record(ctx, d)
}

// CA-29: RFC 7517, Sections 4 and 5: what a client registers is a set of public keys for the algorithms that are taken,
// each with an id of its own; a private part is named, since whoever sent it has given the key away.
func TestRFC7517_5_RegisteredAssertionKeys(t *testing.T) {
	t.Parallel()
	entry := func(algorithm jose.Algorithm, kid string) string {
		data, err := jose.MarshalKeySet([]jose.PublicKey{{ID: kid, Algorithm: algorithm, Key: newSigner(t, algorithm).key.Public()}})
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSuffix(strings.TrimPrefix(string(data), `{"keys":[`), `]}`)
	}
	ec, ed, ps, rs := entry(jose.ES256, "a"), entry(jose.EdDSA, "b"), entry(jose.PS256, "c"), entry(jose.RS256, "d")
	set := func(entries ...string) string { return `{"keys":[` + strings.Join(entries, ",") + `]}` }
	keys, err := ParseAssertionKeys([]byte(set(ec, ed, ps)))
	if err != nil || len(keys) != 3 || keys[0].ID != "a" || keys[1].Algorithm != tokens.EdDSA || keys[2].Algorithm != tokens.PS256 {
		t.Errorf("%v, %v", keys, err)
	}
	many := make([]string, maxAssertionKeys+1)
	for i := range many {
		many[i] = strings.Replace(ec, `"a"`, fmt.Sprintf(`"a%d"`, i), 1)
	}
	if keys, err := ParseAssertionKeys([]byte(set(many[1:]...))); err != nil || len(keys) != maxAssertionKeys {
		t.Errorf("%d keys: %v", maxAssertionKeys, err)
	}
	private := strings.TrimSuffix(ec, "}") + `,"d":"secretsecret"}`
	for name, data := range map[string]string{
		"nothing": "", "no set": "[]", "no keys": "{}", "empty": set(), "too many": set(many...), "no object": set("1"),
		"RS256": set(ec, rs), "same id": set(ec, ec), "symmetric": set(`{"kty":"oct","kid":"x","k":"c2VjcmV0"}`), "private": set(ed, private),
		"no id": set(strings.Replace(ec, `"kid":"a",`, "", 1)), "for encryption": set(strings.Replace(ec, `"sig"`, `"enc"`, 1)),
		"duplicate member": `{"keys":[],` + set(ec)[1:], "not JSON": set(ec) + "x",
	} {
		if keys, err := ParseAssertionKeys([]byte(data)); err == nil || keys != nil {
			t.Errorf("%s: %d keys, %v", name, len(keys), err)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ParseAssertionKeys([]byte(set(ed, private))); err == nil || !strings.Contains(err.Error(), "private part") {
		t.Errorf("private part: %v", err)
	}
	if _, err := ParseAssertionKeys([]byte(set(ed, strings.Replace(ec, `"kid":"a",`, "", 1)))); err == nil || !strings.Contains(err.Error(), "key 1 has no kid") {
		t.Errorf("no kid: %v", err)
	}
	published, err := PublishedAssertionKeys([]byte(set(ec, rs, private, ps, `{"kty":"future"}`)))
	if err != nil || len(published) != 1 || published[0].ID != "c" {
		t.Errorf("published: %v, %v", published, err) // the private one shares its id with the first
	}
	if _, err := PublishedAssertionKeys([]byte("x")); err == nil {
		t.Error("published: no error")
	}
}

// FuzzClientAssertion: whatever stands for an assertion, the answer is a registered error and nothing is noted, but for
// the one that the client signed, which is good once.
func FuzzClientAssertion(f *testing.F) {
	s, used := asserting(f)
	cert, g := s.enrolSigner(f, "reports", jose.EdDSA)
	peer := mtlstest.PeerOf(cert)
	claims := claimsOf("reports", s.issuer, time.Now())
	in("exp", 10*time.Minute)(claims)
	good := g.sign(f, "", claims)
	parts := strings.Split(good, ".")
	f.Add(good)
	f.Add(parts[0] + "." + parts[1] + ".")
	f.Add("e30." + parts[1] + "." + parts[2])
	f.Add(good[:len(good)-1])
	f.Add(strings.Repeat("a", maxAssertionBytes+1))
	f.Fuzz(func(t *testing.T, raw string) {
		w := httptest.NewRecorder()
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, TokenPath, strings.NewReader(asserted("", raw)))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		before := len(used.untils())
		s.serveToken(w, r, peer)
		a := answer{status: w.Code, header: w.Header(), body: w.Body.String()}
		a.check(t)
		noted := len(used.untils()) - before
		switch {
		case raw == good:
			if w.Code == http.StatusOK && noted != 1 {
				t.Errorf("a token, and %d noted", noted)
			}
		case w.Code == http.StatusOK || noted != 0:
			t.Errorf("%q: %d, %d noted", raw, w.Code, noted)
		case w.Code >= 500 || !slices.Contains(registered, a.Code):
			t.Errorf("%d %s", w.Code, a.body)
		}
	})
}
