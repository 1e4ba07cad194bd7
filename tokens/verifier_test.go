// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package tokens_test

import (
	"context"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/tokenstest"
)

// fixture is an issuer, its verifier and two clients that hold certificates.
type fixture struct {
	issuer   *tokenstest.Issuer
	verifier *tokens.Verifier
	peer     *mtls.Peer // whose tokens these are
	thief    *mtls.Peer
}

func newFixture(tb testing.TB) *fixture {
	tb.Helper()
	return newFixtureOf(tb, tokenstest.New(tb))
}

func newFixtureOf(tb testing.TB, issuer *tokenstest.Issuer) *fixture {
	tb.Helper()
	ca := mtlstest.NewCA(tb, "clients")
	return &fixture{
		issuer:   issuer,
		verifier: issuer.Verifier(tb, ""),
		peer:     mtlstest.PeerOf(ca.Issue(tb, mtlstest.Leaf{CommonName: "payments"})),
		thief:    mtlstest.PeerOf(ca.Issue(tb, mtlstest.Leaf{CommonName: "thief"})),
	}
}

// verifierAt returns a verifier whose clock shows now.
func (f *fixture) verifierAt(tb testing.TB, now time.Time, leeway time.Duration) *tokens.Verifier {
	tb.Helper()
	v, err := tokens.NewVerifier(tokens.VerifierConfig{
		Issuer: tokenstest.URL, Audience: tokenstest.Audience, Keys: f.issuer.Keys(), Leeway: leeway,
		Now: func() time.Time { return now },
	})
	if err != nil {
		tb.Fatal(err)
	}
	return v
}

// with returns a token in which one claim is changed.
func (f *fixture) with(tb testing.TB, claim string, value any) string {
	tb.Helper()
	return f.issuer.TokenWith(tb, f.peer, func(claims, _ map[string]any) { claims[claim] = value })
}

func (f *fixture) withHeader(tb testing.TB, member string, value any) string {
	tb.Helper()
	return f.issuer.TokenWith(tb, f.peer, func(_, header map[string]any) { header[member] = value })
}

// refused checks that a token is refused as invalid_token for this reason, with no claims and the one description.
func refused(t *testing.T, v *tokens.Verifier, raw string, peer *mtls.Peer, reason string) {
	t.Helper()
	claims, err := v.Verify(t.Context(), raw, peer)
	if claims != nil {
		t.Errorf("claims beside the error %v", err)
	}
	refusal, ok := errors.AsType[*tokens.Error](err)
	if !ok {
		t.Fatalf("%T %v, want a *tokens.Error", err, err)
	}
	if refusal.Code != tokens.CodeInvalidToken || refusal.Reason != reason {
		t.Errorf("refused as %v, want invalid_token (%s)", refusal, reason)
	}
	if refusal.Description != "the access token is not valid on this connection" || refusal.Scope != "" {
		t.Errorf("tells %q, %q", refusal.Description, refusal.Scope)
	}
}

func accepted(t *testing.T, v *tokens.Verifier, raw string, peer *mtls.Peer) *tokens.Claims {
	t.Helper()
	claims, err := v.Verify(t.Context(), raw, peer)
	if err != nil {
		t.Fatalf("refused: %v", err)
	}
	return claims
}

// AT-02, RS-30: RFC 9068, Sections 2.2 and 4: all claims come out as they were issued, the subject apart from the
// client.
func TestRFC9068_2_2_Claims(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	now := time.Now()
	raw := f.issuer.TokenWith(t, f.peer, func(claims, _ map[string]any) {
		claims["aud"] = []string{"https://other.example", tokenstest.Audience}
		claims["scope"] = "orders:read orders:write"
		claims["jti"] = "1"
		claims["sub"] = "alice"
		claims["iat"] = now.Unix()
		claims["exp"] = now.Unix() + 60
		claims["nbf"] = now.Unix() - 1
		claims["unknown"] = map[string]any{"ISS": 1}
	})
	got := accepted(t, f.verifier, raw, f.peer)
	want := &tokens.Claims{
		Issuer: tokenstest.URL, Subject: "alice", ClientID: tokenstest.Client, ID: "1",
		Audience: []string{"https://other.example", tokenstest.Audience}, Scope: []string{"orders:read", "orders:write"},
		IssuedAt: time.Unix(now.Unix(), 0), Expires: time.Unix(now.Unix()+60, 0), Thumbprint: f.peer.Thumbprint(),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got.ForClient() {
		t.Error("a token of alice passes for the client's own")
	}
	if !got.HasScope("orders:read") || got.HasScope("orders") || got.HasScope("") || got.HasScope("orders:read orders:write") {
		t.Error("HasScope is not exact")
	}
	if own := accepted(t, f.verifier, f.issuer.Token(t, f.peer), f.peer); !own.ForClient() || own.Scope != nil {
		t.Errorf("the client's own token: %+v", own)
	}
}

// AT-02: RFC 9068, Section 2.2: each required claim must be there with its type; a name in other case is another
// name.
func TestRFC9068_2_2_RequiredClaims(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for _, claim := range []string{"iss", "exp", "aud", "sub", "client_id", "iat", "jti"} {
		t.Run(claim, func(t *testing.T) {
			t.Parallel()
			for _, value := range []any{nil, "", true, map[string]any{}} {
				refused(t, f.verifier, f.with(t, claim, value), f.peer, "malformed_claims")
			}
			raw := f.issuer.TokenWith(t, f.peer, func(claims, _ map[string]any) {
				claims[strings.ToUpper(claim)] = claims[claim]
				delete(claims, claim)
			})
			refused(t, f.verifier, raw, f.peer, "malformed_claims")
		})
	}
	for _, scope := range []any{nil, 1, []string{"a"}, "a  b", " a", "a ", "a\tb", `a"b`, `a\b`, "é"} {
		refused(t, f.verifier, f.with(t, "scope", scope), f.peer, "malformed_claims")
	}
}

// RS-01, CB-01, CB-09: RFC 8705, Sections 3.1 and 6.3: the token is for the certificate whose DER has the SHA-256 hash in
// cnf.x5t#S256, and for no other: not one of the same name and CA, not a renewed one with the same key.
func TestRFC8705_3_ThumbprintMismatch(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	hash := sha256.Sum256(f.peer.Certificate().Raw)
	raw := f.with(t, "cnf", map[string]any{"x5t#S256": base64.RawURLEncoding.EncodeToString(hash[:])})
	accepted(t, f.verifier, raw, f.peer)
	refused(t, f.verifier, raw, f.thief, "thumbprint_mismatch")

	ca, key := mtlstest.NewCA(t, "clients"), mtlstest.NewKey(t)
	first := mtlstest.PeerOf(ca.Issue(t, mtlstest.Leaf{CommonName: "payments", Key: key}))
	renewed := mtlstest.PeerOf(ca.Issue(t, mtlstest.Leaf{CommonName: "payments", Key: key}))
	refused(t, f.verifier, f.issuer.Token(t, first), renewed, "thumbprint_mismatch")
}

// CB-01: RFC 8705, Section 3.1: the hash is of the whole DER certificate: not of its key, its PEM form or its
// signed part, and the leaf's: not of the CA above it.
func TestRFC8705_3_1_HashOfCertificate(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	cert := f.peer.Certificate()
	for name, data := range map[string][]byte{
		"key": cert.RawSubjectPublicKeyInfo, "signed part": cert.RawTBSCertificate, "subject": cert.RawSubject,
		"PEM": []byte(base64.StdEncoding.EncodeToString(cert.Raw)),
	} {
		hash := sha256.Sum256(data)
		cnf := map[string]any{"x5t#S256": base64.RawURLEncoding.EncodeToString(hash[:])}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			refused(t, f.verifier, f.with(t, "cnf", cnf), f.peer, "thumbprint_mismatch")
		})
	}
	ca := mtlstest.NewCA(t, "above")
	leaf := ca.Issue(t, mtlstest.Leaf{}).Leaf
	peer := mtls.NewPeer(leaf, ca.Certificate())
	raw := f.issuer.Token(t, mtls.NewPeer(ca.Certificate()))
	refused(t, f.verifier, raw, peer, "thumbprint_mismatch")
}

// RS-02: RFC 8705, Section 3: a bound token on a connection without certificate is refused, and before any work.
func TestRFC8705_3_NoCertificate(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	raw := f.issuer.Token(t, f.peer)
	refused(t, f.verifier, raw, nil, "no_certificate")
	refused(t, f.verifier, raw, &mtls.Peer{}, "no_certificate")
	refused(t, f.verifier, f.with(t, "cnf", nil), nil, "no_certificate")
	zero := base64.RawURLEncoding.EncodeToString(make([]byte, 32))
	refused(t, f.verifier, f.with(t, "cnf", map[string]any{"x5t#S256": zero}), &mtls.Peer{}, "no_certificate")
}

// RS-03: RFC 8705, Section 3.1; RFC 7800, Section 3.1: a token that is not bound, or is bound by another method or
// by two, is refused and not taken for one without binding.
func TestRFC8705_3_1_ExactlyOneConfirmation(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	good := f.peer.Thumbprint().String()
	raw := f.issuer.TokenWith(t, f.peer, func(claims, _ map[string]any) { delete(claims, "cnf") })
	refused(t, f.verifier, raw, f.peer, "not_bound")
	for _, cnf := range []any{
		nil, "x", good, 1, true, []any{}, []any{map[string]any{"x5t#S256": good}}, map[string]any{},
		map[string]any{"jkt": good}, map[string]any{"x5t": good}, map[string]any{"X5T#S256": good},
		map[string]any{"x5t#s256": good}, map[string]any{"x5t#S256": nil}, map[string]any{"x5t#S256": []any{good}},
		map[string]any{"x5t#S256": good, "jkt": good}, map[string]any{"x5t#S256": map[string]any{}},
		map[string]any{"x5t#S256": good, "x5t": ""},
	} {
		refused(t, f.verifier, f.with(t, "cnf", cnf), f.peer, "not_bound")
	}
	both := `{"iss":"https://issuer.example","cnf":{"x5t#S256":"x","x5t#S256":"` + good + `"}}`
	header := `{"alg":"ES256","typ":"at+jwt","kid":"` + f.issuer.Keys()[0].ID + `"}`
	refused(t, f.verifier, f.issuer.Sign(t, header, both), f.peer, "malformed_claims")
}

// RS-04: RFC 8705, Section 3.1: a thumbprint that is padded, hex, of wrong length, in another alphabet or case never
// matches.
func TestRFC8705_3_1_MalformedThumbprint(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	hash := f.peer.Thumbprint()
	good := hash.String()
	swapped := strings.Map(func(r rune) rune {
		if 'a' <= r && r <= 'z' {
			return r - 32
		}
		return r
	}, good)
	for _, value := range []string{
		"", good + "=", good + "\n", " " + good, good[:42], good + "A", hex.EncodeToString(hash[:]), "\x00",
		base64.StdEncoding.EncodeToString(hash[:]), good[:20] + "\n" + good[20:], strings.Repeat("A", 43), "*",
		swapped,
	} {
		claims, err := f.verifier.Verify(t.Context(), f.with(t, "cnf", map[string]any{"x5t#S256": value}), f.peer)
		if refusal, ok := errors.AsType[*tokens.Error](err); !ok || claims != nil || refusal.Code != tokens.CodeInvalidToken {
			t.Errorf("%q: %v", value, err)
		}
	}
}

// RS-29: RFC 8705, Section 6.2: possession of the bound key is what counts, not who signed the certificate; its dates
// do count, for every request, as TLS does not look at them again.
func TestRFC8705_6_2_ChainIsNotJudgedDatesAre(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	self := mtlstest.PeerOf(mtlstest.SelfSigned(t, mtlstest.Leaf{CommonName: "self"}))
	accepted(t, f.verifier, f.issuer.Token(t, self), self)
	now := time.Now()
	lapsed := mtlstest.PeerOf(mtlstest.SelfSigned(t, mtlstest.Leaf{
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(-time.Minute),
	}))
	refused(t, f.verifier, f.issuer.Token(t, lapsed), lapsed, "certificate_not_valid")
	early := mtlstest.PeerOf(mtlstest.SelfSigned(t, mtlstest.Leaf{NotBefore: now.Add(time.Minute), NotAfter: now.Add(time.Hour)}))
	refused(t, f.verifier, f.issuer.Token(t, early), early, "certificate_not_valid")
}

// RS-05, AT-01: RFC 9068, Section 4: "typ" is at+jwt or application/at+jwt in any case; another JWT of the same issuer
// is not an access token.
func TestRFC9068_4_Type(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for _, typ := range []string{"at+jwt", "AT+JWT", "application/at+jwt", "Application/At+Jwt"} {
		accepted(t, f.verifier, f.withHeader(t, "typ", typ), f.peer)
	}
	for _, typ := range []string{
		"JWT", "jwt", "", "token-introspection+jwt", "logout+jwt", "dpop+jwt", "at+jwt ", "application/application/at+jwt",
		"text/at+jwt", "secevent+jwt", "at jwt", "certbound-deny+jwt",
	} {
		refused(t, f.verifier, f.withHeader(t, "typ", typ), f.peer, "wrong_type")
	}
	raw := f.issuer.TokenWith(t, f.peer, func(_, header map[string]any) { delete(header, "typ") })
	refused(t, f.verifier, raw, f.peer, "wrong_type")
	refused(t, f.verifier, f.withHeader(t, "typ", 5), f.peer, "malformed")
}

// RS-06: RFC 9068, Section 4: the issuer is compared as a string, and its tokens verify with its own keys only.
func TestRFC9068_4_Issuer(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for _, iss := range []string{
		tokenstest.URL + "/", "https://ISSUER.example", "https://issuer.example:443", "http://issuer.example",
		"https://issuer.example.attacker.example", "https://other.example",
	} {
		refused(t, f.verifier, f.with(t, "iss", iss), f.peer, "wrong_issuer")
	}
	other := tokenstest.New(t) // says it is the same issuer, with a key and a key id of its own
	refused(t, f.verifier, other.Token(t, f.peer), f.peer, "unknown_key")
	raw := other.TokenWith(t, f.peer, func(_, header map[string]any) { header["kid"] = f.issuer.Keys()[0].ID })
	refused(t, f.verifier, raw, f.peer, "bad_signature")
	// Whoever trusts two issuers has two verifiers: a key of the one never vouches for the other.
	b, err := tokens.NewVerifier(tokens.VerifierConfig{
		Issuer: "https://b.example", Audience: tokenstest.Audience, Keys: other.Keys(),
	})
	if err != nil {
		t.Fatal(err)
	}
	refused(t, b, other.Token(t, f.peer), f.peer, "wrong_issuer")
}

// RS-07: RFC 9068, Section 4; RFC 7519, Section 4.1.3: the audience holds our own identifier, compared exactly, alone or
// among others.
func TestRFC9068_4_Audience(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	own := tokenstest.Audience
	for _, aud := range []any{own, []string{own}, []string{"https://a.example", own}} {
		accepted(t, f.verifier, f.with(t, "aud", aud), f.peer)
	}
	for _, aud := range []any{
		[]string{}, own + "/", own[:len(own)-1], own + ".attacker.example", strings.ToUpper(own), "https://a.example",
		[]string{own + "/"}, own + " " + own, []string{"https://a.example", ""},
	} {
		refused(t, f.verifier, f.with(t, "aud", aud), f.peer, "wrong_audience")
	}
	for _, aud := range []any{[]any{own, 1}, []any{nil, own}, []any{[]string{own}}, 5, map[string]any{"x": own}} {
		refused(t, f.verifier, f.with(t, "aud", aud), f.peer, "malformed_claims")
	}
}

// RS-08: RFC 8725, Section 3.1: only algorithms of the configured list are accepted, each with a key of its own; RS256
// is on no list unless it is put there.
func TestRFC8725_3_1_AllowList(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	verifier := func(keys tokens.Keys, algorithms ...string) *tokens.Verifier {
		v, err := tokens.NewVerifier(tokens.VerifierConfig{
			Issuer: tokenstest.URL, Audience: tokenstest.Audience, Keys: keys, Algorithms: algorithms,
		})
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	pss, ed := tokenstest.NewWithKey(t, rsaKey), tokenstest.NewWithKey(t, edKey)
	for _, issuer := range []*tokenstest.Issuer{f.issuer, pss, ed} {
		accepted(t, verifier(issuer.Keys()), issuer.Token(t, f.peer), f.peer)
	}
	refused(t, verifier(f.issuer.Keys(), tokens.PS256), f.issuer.Token(t, f.peer), f.peer, "algorithm_not_allowed")
	refused(t, verifier(pss.Keys(), tokens.ES256), pss.Token(t, f.peer), f.peer, "algorithm_not_allowed")

	old := pss.Keys()[0]
	old.Algorithm = tokens.RS256
	header := `{"alg":"RS256","typ":"at+jwt","kid":"` + old.ID + `"}`
	refused(t, verifier(tokens.StaticKeys{old}), pss.Sign(t, header, "{}"), f.peer, "algorithm_not_allowed")
	refused(t, verifier(tokens.StaticKeys{old}, tokens.PS256), pss.Token(t, f.peer), f.peer, "bad_signature")
	for _, alg := range []string{"none", "nOnE", "HS256", "ES384", ""} {
		refused(t, f.verifier, f.withHeader(t, "alg", alg), f.peer, "malformed")
	}
	refused(t, f.verifier, f.withHeader(t, "alg", "EdDSA"), f.peer, "bad_signature")
}

// keysFunc answers key ids with a function.
type keysFunc func(ctx context.Context, id string) (tokens.PublicKey, error)

func (f keysFunc) Key(ctx context.Context, id string) (tokens.PublicKey, error) { return f(ctx, id) }

// RS-09, RS-10, RS-25: RFC 8725, Section 3.10: a token that brings a key, says where to fetch one, has a critical
// extension or wraps another token is refused before any key is asked for.
func TestRFC8725_3_10_KeysInHeader(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	v, err := tokens.NewVerifier(tokens.VerifierConfig{
		Issuer: tokenstest.URL, Audience: tokenstest.Audience,
		Keys: keysFunc(func(context.Context, string) (tokens.PublicKey, error) {
			t.Error("a key was asked for")
			return tokens.PublicKey{}, tokens.ErrUnknownKey
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, member := range []string{"jwk", "jku", "x5u", "x5c", "crit", "b64", "zip", "cty", "enc"} {
		refused(t, v, f.withHeader(t, member, []string{"https://attacker.example"}), f.peer, "malformed")
	}
	for _, raw := range []string{"", "x", "a.b.c.d.e", strings.Repeat("A", 1<<20), f.issuer.Token(t, f.peer) + "\n"} {
		refused(t, v, raw, f.peer, "malformed")
	}
	for _, typ := range []string{"JWT", ""} {
		refused(t, v, f.withHeader(t, "typ", typ), f.peer, "wrong_type")
	}
	refused(t, v, f.issuer.Token(t, f.peer), nil, "no_certificate")
}

// RS-11: RFC 7519, Section 4: a claim that stands twice is refused, at any depth, whichever of the two is good.
func TestRFC7519_4_DuplicateClaims(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	now := time.Now().Unix()
	claims := fmt.Sprintf(`"iss":%q,"sub":"a","client_id":"a","aud":%q,"jti":"1","iat":%d,"exp":%d,"cnf":{"x5t#S256":%q}`,
		tokenstest.URL, tokenstest.Audience, now, now+60, f.peer.Thumbprint())
	header := `"alg":"ES256","typ":"at+jwt","kid":"` + f.issuer.Keys()[0].ID + `"`
	accepted(t, f.verifier, f.issuer.Sign(t, "{"+header+"}", "{"+claims+"}"), f.peer)
	for _, extra := range []string{
		`"aud":"https://other.example"`, `"cnf":{"x5t#S256":"x"}`, `"\u0065xp":9999999999`, `"x":{"a":1,"a":1}`,
		`"x":[{"a":1,"a":1}]`,
	} {
		refused(t, f.verifier, f.issuer.Sign(t, "{"+header+"}", "{"+claims+","+extra+"}"), f.peer, "malformed_claims")
		refused(t, f.verifier, f.issuer.Sign(t, "{"+header+"}", "{"+extra+","+claims+"}"), f.peer, "malformed_claims")
	}
	for _, extra := range []string{`"alg":"none"`, `"kid":"x"`, `"typ":"JWT"`} {
		refused(t, f.verifier, f.issuer.Sign(t, "{"+header+","+extra+"}", "{"+claims+"}"), f.peer, "malformed")
	}
	for _, payload := range []string{"", "[]", "null", `"x"`, "{" + claims, "{" + claims + "}{}", "\xff"} {
		refused(t, f.verifier, f.issuer.Sign(t, "{"+header+"}", payload), f.peer, "malformed_claims")
	}
}

// RS-14: RFC 7519, Sections 4.1.4 to 4.1.6: a token is valid from nbf to before exp, give or take the leeway, and was
// not issued more than 60 s ahead of now.
func TestRFC7519_4_1_4_Dates(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	now := time.Unix(time.Now().Unix(), 0)
	v := f.verifierAt(t, now, 10*time.Second)
	at := func(claim string, seconds int64) string { return f.with(t, claim, now.Unix()+seconds) }
	accepted(t, v, at("exp", -9), f.peer)
	refused(t, v, at("exp", -10), f.peer, "expired")
	refused(t, v, at("exp", -11), f.peer, "expired")
	accepted(t, v, at("nbf", 10), f.peer)
	refused(t, v, at("nbf", 11), f.peer, "not_yet_valid")
	accepted(t, v, at("iat", 60), f.peer)
	refused(t, v, at("iat", 61), f.peer, "issued_in_future")
	refused(t, v, at("exp", -now.Unix()), f.peer, "expired")
	accepted(t, v, f.with(t, "exp", int64(999999999999)), f.peer)
	minute := f.verifierAt(t, now, time.Minute)
	accepted(t, minute, at("exp", -59), f.peer)
	refused(t, minute, at("exp", -60), f.peer, "expired")
}

// RS-14: RFC 7519, Section 2: a date is a whole number of seconds. Strings, fractions, exponents, negative and huge
// numbers are refused and not rounded.
func TestRFC7519_2_NumericDate(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	future := time.Now().Unix() + 60
	for _, claim := range []string{"exp", "nbf", "iat"} {
		for _, value := range []string{
			fmt.Sprintf("%q", fmt.Sprint(future)), "1.5", fmt.Sprintf("%d.0", future), "1e400", "1e9", "-1", "-0", "null", "true",
			"9999999999999", "18446744073709551617", "[1]", "1E+2", "1e-400",
		} {
			raw := withRaw(t, f, claim, value)
			refused(t, f.verifier, raw, f.peer, "malformed_claims")
		}
	}
}

// withRaw returns a token with a claim whose JSON is given.
func withRaw(tb testing.TB, f *fixture, claim, value string) string {
	tb.Helper()
	now := time.Now().Unix()
	members := map[string]string{
		"iss": `"` + tokenstest.URL + `"`, "sub": `"a"`, "client_id": `"a"`, "aud": `"` + tokenstest.Audience + `"`, "jti": `"1"`,
		"iat": fmt.Sprint(now), "exp": fmt.Sprint(now + 60), "cnf": `{"x5t#S256":"` + f.peer.Thumbprint().String() + `"}`,
	}
	members[claim] = value
	var list []string
	for name, member := range members {
		list = append(list, `"`+name+`":`+member)
	}
	header := `{"alg":"ES256","typ":"at+jwt","kid":"` + f.issuer.Keys()[0].ID + `"}`
	return f.issuer.Sign(tb, header, "{"+strings.Join(list, ",")+"}")
}

// RS-22: RFC 7515, Section 4.1.4: a key id is an opaque string: it is compared, and nothing else is done with it.
func TestRFC7515_4_1_4_OpaqueKeyID(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	id := f.issuer.Keys()[0].ID
	for _, kid := range []string{
		"../../etc/passwd", "' OR 1=1 --", "https://attacker.example/jwks", "", strings.ToLower(id), id + " ", id[:42], "\x00", "*",
	} {
		refused(t, f.verifier, f.withHeader(t, "kid", kid), f.peer, "unknown_key")
	}
	twice := append(f.issuer.Keys(), tokenstest.New(t).Keys()...)
	twice[1].ID = id
	v, err := tokens.NewVerifier(tokens.VerifierConfig{Issuer: tokenstest.URL, Audience: tokenstest.Audience, Keys: twice})
	if err != nil {
		t.Fatal(err)
	}
	refused(t, v, f.issuer.Token(t, f.peer), f.peer, "unknown_key")
}

// RS-20: keys that cannot be had refuse everything, without saying anything against the token.
func TestKeysUnavailableFailsClosed(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for _, cause := range []error{tokens.ErrKeysUnavailable, context.DeadlineExceeded, errors.New("anything")} {
		v, err := tokens.NewVerifier(tokens.VerifierConfig{
			Issuer: tokenstest.URL, Audience: tokenstest.Audience,
			Keys: keysFunc(func(context.Context, string) (tokens.PublicKey, error) { return f.issuer.Keys()[0], cause }),
		})
		if err != nil {
			t.Fatal(err)
		}
		claims, err := v.Verify(t.Context(), f.issuer.Token(t, f.peer), f.peer)
		refusal, ok := errors.AsType[*tokens.Error](err)
		if !ok || claims != nil || refusal.Code != tokens.CodeTemporarilyUnavailable || refusal.Status() != 503 {
			t.Errorf("%v: %v", cause, err)
		}
		if !errors.Is(err, cause) {
			t.Errorf("%v does not wrap %v", err, cause)
		}
	}
}

// RS-26, RS-28: whatever is wrong, no claims come out, and neither the error nor what it wraps holds a part of the token.
func TestErrorsHoldNothingOfTheToken(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for name, raw := range map[string]string{
		"claim":     f.with(t, "exp", "secret-marker"),
		"issuer":    f.with(t, "iss", "secret-marker"),
		"cnf":       f.with(t, "cnf", map[string]any{"x5t#S256": "secret-marker"}),
		"kid":       f.withHeader(t, "kid", "secret-marker"),
		"alg":       f.withHeader(t, "alg", "secret-marker"),
		"typ":       f.withHeader(t, "typ", "secret-marker"),
		"form":      "secret-marker.secret-marker.secret-marker!",
		"no JSON":   f.issuer.Sign(t, "secret-marker", "{}"),
		"duplicate": f.issuer.Sign(t, `{"secret-marker":1,"secret-marker":1}`, "{}"),
	} {
		claims, err := f.verifier.Verify(t.Context(), raw, f.peer)
		if err == nil || claims != nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		for cause := err; cause != nil; cause = errors.Unwrap(cause) {
			if text := fmt.Sprintf("%v %+v %#v", cause, cause, cause); strings.Contains(text, "secret-marker") {
				t.Errorf("%s: %s", name, text)
			}
		}
	}
}

// RS-12: every token that differs from an issued one in a single place is refused.
func TestEveryByteCounts(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	raw := f.issuer.Token(t, f.peer, "orders:read")
	accepted(t, f.verifier, raw, f.peer)
	for i := range len(raw) {
		changed := []byte(raw)
		if changed[i] ^= 1; changed[i] == '.' {
			continue
		}
		for _, bad := range []string{string(changed), raw[:i] + raw[i+1:], raw[:i] + raw[i:i+1] + raw[i:]} {
			if claims, err := f.verifier.Verify(t.Context(), bad, f.peer); err == nil || claims != nil {
				t.Fatalf("accepted with a change at %d", i)
			}
		}
	}
}

// A Verifier is not made from a configuration that would accept too much or nothing.
func TestNewVerifierRefuses(t *testing.T) {
	t.Parallel()
	keys := tokens.StaticKeys{}
	for name, c := range map[string]tokens.VerifierConfig{
		"no issuer":     {Audience: "a", Keys: keys},
		"http issuer":   {Issuer: "http://a.example", Audience: "a", Keys: keys},
		"query":         {Issuer: "https://a.example?x", Audience: "a", Keys: keys},
		"fragment":      {Issuer: "https://a.example#x", Audience: "a", Keys: keys},
		"no host":       {Issuer: "https:///x", Audience: "a", Keys: keys},
		"no audience":   {Issuer: tokenstest.URL, Keys: keys},
		"no keys":       {Issuer: tokenstest.URL, Audience: "a"},
		"leeway":        {Issuer: tokenstest.URL, Audience: "a", Keys: keys, Leeway: 61 * time.Second},
		"minus":         {Issuer: tokenstest.URL, Audience: "a", Keys: keys, Leeway: -1},
		"none":          {Issuer: tokenstest.URL, Audience: "a", Keys: keys, Algorithms: []string{"none"}},
		"HMAC":          {Issuer: tokenstest.URL, Audience: "a", Keys: keys, Algorithms: []string{tokens.ES256, "HS256"}},
		"one in spaces": {Issuer: tokenstest.URL, Audience: "a", Keys: keys, Algorithms: []string{" ES256"}},
	} {
		if v, err := tokens.NewVerifier(c); err == nil || v != nil {
			t.Errorf("%s: no error", name)
		}
	}
	v, err := tokens.NewVerifier(tokens.VerifierConfig{Issuer: tokenstest.URL, Audience: "a", Keys: keys})
	if err != nil || v.Issuer() != tokenstest.URL || v.Audience() != "a" {
		t.Errorf("%v, %v", v, err)
	}
}

// ParseUnverified shows what a token says, and is as strict about its form.
func TestParseUnverified(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	got, err := tokens.ParseUnverified(f.issuer.Token(t, f.peer, "a", "b"))
	if err != nil || got.Header["typ"] != "at+jwt" || got.Claims["scope"] != "a b" {
		t.Errorf("%v, %v", got, err)
	}
	for _, raw := range []string{
		"", "a.b.c", f.issuer.Sign(t, `{"alg":"ES256"}`, `{"a":1,"a":2}`), f.withHeader(t, "crit", []string{}),
	} {
		got, err := tokens.ParseUnverified(raw)
		if _, ok := errors.AsType[*tokens.Error](err); !ok || got != nil {
			t.Errorf("%v, %v", got, err)
		}
	}
}

// twin returns a token of ES256 with the other s that verifies, n - s; one without such a signature as it is.
func twin(raw string) string {
	cut := strings.LastIndexByte(raw, '.') + 1
	signature, err := base64.RawURLEncoding.DecodeString(raw[cut:])
	if err != nil || len(signature) != 64 {
		return raw
	}
	n, s := elliptic.P256().Params().N, new(big.Int).SetBytes(signature[32:])
	if s.Cmp(n) > 0 {
		return raw
	}
	s.Sub(n, s).FillBytes(signature[32:])
	return raw[:cut] + base64.RawURLEncoding.EncodeToString(signature)
}

// RS-13: RFC 7518, Section 3.4: of the two signatures that verify for every one of ES256 only the one that Certbound writes
// is accepted, unless the verifier is told of an issuer that writes both.
func TestRFC7518_3_4_TwinOfASignature(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	lenient, err := tokens.NewVerifier(tokens.VerifierConfig{
		Issuer: tokenstest.URL, Audience: tokenstest.Audience, Keys: f.issuer.Keys(), AnySignatureForm: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 16 { // half of them are made by turning s round
		raw := f.issuer.Token(t, f.peer)
		accepted(t, f.verifier, raw, f.peer)
		refused(t, f.verifier, twin(raw), f.peer, "signature_form")
		accepted(t, lenient, raw, f.peer)
		accepted(t, lenient, twin(raw), f.peer)
		refused(t, lenient, twin(raw), f.thief, "thumbprint_mismatch")
		wrong := raw[:len(raw)-8] + "AAAAAAAA"
		refused(t, f.verifier, wrong, f.peer, "bad_signature")
		refused(t, f.verifier, twin(wrong), f.peer, "bad_signature")
		refused(t, lenient, wrong, f.peer, "bad_signature")
	}
}

// FuzzVerify: the tokens that are accepted are, byte for byte, those that were issued, from whom they were issued to.
func FuzzVerify(f *testing.F) {
	fix := newFixture(f)
	issued := []string{
		fix.issuer.Token(f, fix.peer), fix.issuer.Token(f, fix.peer, "orders:read"),
		fix.with(f, "aud", []string{tokenstest.Audience, "b"}),
	}
	for i := range issued {
		f.Add(uint8(i), uint16(0), uint16(0), "", false)
		f.Add(uint8(i), uint16(0), uint16(0), "", true)
		f.Add(uint8(i), uint16(20), uint16(1), "\n", false)
		f.Add(uint8(i), uint16(0), uint16(9), "eyJhbGciOiJub25lIn0", true)
	}
	f.Fuzz(func(t *testing.T, which uint8, from, length uint16, insert string, turn bool) {
		raw := issued[int(which)%len(issued)]
		start := int(from) % (len(raw) + 1)
		end := min(start+int(length), len(raw))
		changed := raw[:start] + insert + raw[end:]
		if turn {
			changed = twin(changed)
		}
		claims, err := fix.verifier.Verify(t.Context(), changed, fix.peer)
		if (claims == nil) == (err == nil) {
			t.Fatalf("claims %v beside %v", claims, err)
		}
		if issued := slices.Contains(issued, changed); issued != (err == nil) {
			t.Fatalf("%q was issued: %v; %v", changed, issued, err)
		}
		if claims, err := fix.verifier.Verify(t.Context(), changed, fix.thief); err == nil || claims != nil {
			t.Fatalf("accepted from the thief: %q", changed)
		}
	})
}

// FuzzClaims: whatever stands in a well signed token, the answer is claims or an *Error, and claims satisfy every rule.
func FuzzClaims(f *testing.F) {
	fix := newFixture(f)
	header := `{"alg":"ES256","typ":"at+jwt","kid":"` + fix.issuer.Keys()[0].ID + `"}`
	good := fmt.Sprintf(`{"iss":%q,"sub":"a","client_id":"a","aud":[%q],"jti":"1","iat":1,"exp":99999999999,"cnf":{"x5t#S256":%q}}`,
		tokenstest.URL, tokenstest.Audience, fix.peer.Thumbprint())
	f.Add(good)
	f.Add(strings.Replace(good, `"exp":9`, `"exp":1e400,"exp":9`, 1))
	f.Add(`{"cnf":{}}`)
	f.Fuzz(func(t *testing.T, payload string) {
		claims, err := fix.verifier.Verify(t.Context(), fix.issuer.Sign(t, header, payload), fix.peer)
		if err != nil {
			if _, ok := errors.AsType[*tokens.Error](err); !ok || claims != nil {
				t.Fatalf("%v, %v", claims, err)
			}
			return
		}
		if claims.Issuer != tokenstest.URL || !slices.Contains(claims.Audience, tokenstest.Audience) ||
			!claims.Expires.After(time.Now().Add(-time.Minute)) || !claims.Thumbprint.Equal(fix.peer.Thumbprint()) ||
			claims.ClientID == "" || claims.Subject == "" || claims.ID == "" || slices.Contains(claims.Scope, "") {
			t.Errorf("accepted %+v", claims)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	f := newFixture(b)
	v, err := tokens.NewVerifier(tokens.VerifierConfig{
		Issuer: tokenstest.URL, Audience: tokenstest.Audience, Keys: f.issuer.Keys(), CacheBytes: -1,
	})
	if err != nil {
		b.Fatal(err)
	}
	raw := f.issuer.Token(b, f.peer, "orders:read", "orders:write")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Verify(b.Context(), raw, f.peer); err != nil {
			b.Fatal(err)
		}
	}
}
