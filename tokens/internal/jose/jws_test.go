// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package jose

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"slices"
	"strings"
	"testing"

	gojose "github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
)

// rfc7515A3 is the worked example of RFC 7515, Appendix A.3.
const (
	rfc7515A3 = "eyJhbGciOiJFUzI1NiJ9" +
		".eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ" +
		".DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"
	rfc7515A3Key = `{"kty":"EC","crv":"P-256","kid":"a3","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",` +
		`"y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}`
)

// rfc8037A4 is the worked example of RFC 8037, Appendices A.2 and A.4.
const (
	rfc8037A4 = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc" +
		".hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
	rfc8037A2Key = `{"kty":"OKP","crv":"Ed25519","kid":"a2","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`
)

func newES256(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	return newEC(tb, elliptic.P256())
}

func newEC(tb testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func newRSA(tb testing.TB, bits int) *rsa.PrivateKey {
	tb.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func newEd25519(tb testing.TB) ed25519.PrivateKey {
	tb.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

// oneKey reads a key set of one entry.
func oneKey(tb testing.TB, entry string) PublicKey {
	tb.Helper()
	keys, err := ParseKeySet([]byte(`{"keys":[` + entry + `]}`))
	if err != nil || len(keys) != 1 {
		tb.Fatalf("ParseKeySet: %d keys, %v", len(keys), err)
	}
	return keys[0]
}

func encode(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

func verifyAll(raw string, k PublicKey) ([]byte, error) {
	signed, err := Parse(raw)
	if err != nil {
		return nil, err
	}
	return signed.Verify(k)
}

// verifyAnyForm is verifyAll for what others signed.
func verifyAnyForm(raw string, k PublicKey) ([]byte, error) {
	signed, err := Parse(raw)
	if err != nil {
		return nil, err
	}
	return signed.VerifyAnyForm(k)
}

// AT-08: RFC 7515, Appendix A.3 and RFC 8037, Appendix A.4: the worked examples verify to their payloads.
func TestRFC7515_A_3_WorkedExamples(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, token, key, payload string }{
		{"ES256", rfc7515A3, rfc7515A3Key,
			"{\"iss\":\"joe\",\r\n \"exp\":1300819380,\r\n \"http://example.com/is_root\":true}"},
		{"EdDSA", rfc8037A4, rfc8037A2Key, "Example of Ed25519 signing"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			payload, err := verifyAnyForm(tc.token, oneKey(t, tc.key))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.payload, string(payload)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// AT-08: RFC 7518, Section 3.4: an ES256 signature is 64 bytes R || S, 86 characters. Another library reads what we
// write and we read what it writes, in every algorithm.
func TestRFC7518_3_ForeignLibrary(t *testing.T) {
	t.Parallel()
	rsaKey := newRSA(t, 2048)
	for _, tc := range []struct {
		algorithm Algorithm
		signer    crypto.Signer
		size      int
	}{
		{ES256, newES256(t), 64},
		{EdDSA, newEd25519(t), 64},
		{PS256, rsaKey, 256},
		{RS256, rsaKey, 256},
	} {
		t.Run(string(tc.algorithm), func(t *testing.T) {
			t.Parallel()
			header := Header{Algorithm: tc.algorithm, KeyID: "k1", Type: "at+jwt"}
			for range 50 { // short R or S come up in one of 128 signatures
				checkForeign(t, header, tc.signer, tc.size)
			}
		})
	}
}

func checkForeign(t *testing.T, header Header, signer crypto.Signer, size int) {
	t.Helper()
	payload := []byte(`{"sub":"x"}`)
	ours, err := Sign(header, payload, signer)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := gojose.ParseSignedCompact(ours, []gojose.SignatureAlgorithm{gojose.SignatureAlgorithm(header.Algorithm)})
	if err != nil {
		t.Fatal(err)
	}
	if got := len(theirs.Signatures[0].Signature); got != size {
		t.Errorf("signature of %d bytes, want %d", got, size)
	}
	if got, err := theirs.Verify(signer.Public()); err != nil || !bytes.Equal(got, payload) {
		t.Fatalf("the other library: %q, %v", got, err)
	}
	other, err := gojose.NewSigner(gojose.SigningKey{
		Algorithm: gojose.SignatureAlgorithm(header.Algorithm), Key: signer,
	}, (&gojose.SignerOptions{}).WithType("at+jwt").WithHeader("kid", "k1"))
	if err != nil {
		t.Fatal(err)
	}
	object, err := other.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	compact, err := object.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	signed, err := Parse(compact)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(header, signed.Header()); diff != "" {
		t.Error(diff)
	}
	got, err := signed.VerifyAnyForm(PublicKey{Algorithm: header.Algorithm, Key: signer.Public()})
	if err != nil || !bytes.Equal(got, payload) {
		t.Fatalf("we: %q, %v", got, err)
	}
}

// fixedSigner returns a signature made by hand.
type fixedSigner struct {
	*ecdsa.PrivateKey
	der []byte
}

func (f fixedSigner) Sign(_ io.Reader, _ []byte, _ crypto.SignerOpts) ([]byte, error) {
	return f.der, nil
}

// AT-08: RFC 7518, Section 3.4: short R and S are padded on the left; what a signer returns that is not an ECDSA
// signature becomes an error and no token.
func TestRFC7518_3_4_RawSignature(t *testing.T) {
	t.Parallel()
	type pair struct{ R, S *big.Int }
	large := new(big.Int).Lsh(big.NewInt(1), 255)
	for _, tc := range []pair{
		{big.NewInt(1), big.NewInt(2)}, {big.NewInt(128), big.NewInt(255)}, {big.NewInt(127), big.NewInt(0)}, {big.NewInt(1 << 40), big.NewInt(1)},
		{large, new(big.Int).Sub(large, big.NewInt(1))}, {new(big.Int).Rsh(large, 8), new(big.Int).Rsh(large, 1)},
	} {
		der, err := asn1.Marshal(tc)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := rawSignature(der)
		if err != nil {
			t.Fatal(err)
		}
		want := append(tc.R.FillBytes(make([]byte, 32)), tc.S.FillBytes(make([]byte, 32))...)
		if !bytes.Equal(raw, want) {
			t.Errorf("%d, %d: %x", tc.R, tc.S, raw)
		}
		if again := derSignature(raw); !bytes.Equal(again, der) {
			t.Errorf("%d, %d: %x is written as %x", tc.R, tc.S, der, again)
		}
	}
	for _, der := range []string{
		"", "\x30", "\x30\x00", "\x30\x06\x02\x01\x01", "\x30\x03\x02\x01\x01", "\x30\x06\x02\x01\x01\x02\x02\x01",
		"\x30\x06\x02\x00\x02\x02\x01\x01", "\x30\x07\x02\x01\x01\x02\x01\x01\x00", "\x31\x06\x02\x01\x01\x02\x01\x01",
		"\x30\x29\x02\x22\x01" + strings.Repeat("a", 33) + "\x02\x03abc", strings.Repeat("x", 64),
	} {
		signer := fixedSigner{newES256(t), []byte(der)}
		if token, err := Sign(Header{Algorithm: ES256}, nil, signer); err == nil {
			t.Errorf("%x: signed as %q", der, token)
		}
	}
}

// RS-13: RFC 7518, Section 3.4: of the two s that verify, Sign writes the one of at most n/2, and Verify refuses the other.
func TestRFC7518_3_4_LowS(t *testing.T) {
	t.Parallel()
	n := elliptic.P256().Params().N
	half := new(big.Int).Rsh(n, 1)
	if new(big.Int).SetBytes([]byte(order)).Cmp(n) != 0 || new(big.Int).SetBytes([]byte(halfOrder)).Cmp(half) != 0 {
		t.Fatal("wrong constants")
	}
	one := big.NewInt(1)
	key := newES256(t)
	for _, tc := range []struct{ s, want *big.Int }{
		{one, one}, {half, half}, {new(big.Int).Add(half, one), half}, {new(big.Int).Sub(n, one), one},
		{new(big.Int).Sub(n, big.NewInt(255)), big.NewInt(255)},
	} {
		der, err := asn1.Marshal(struct{ R, S *big.Int }{one, tc.s})
		if err != nil {
			t.Fatal(err)
		}
		raw, err := Sign(Header{Algorithm: ES256}, nil, fixedSigner{key, der})
		if err != nil {
			t.Fatal(err)
		}
		signature, err := base64.RawURLEncoding.DecodeString(raw[strings.LastIndexByte(raw, '.')+1:])
		if err != nil || new(big.Int).SetBytes(signature[:32]).Cmp(one) != 0 || new(big.Int).SetBytes(signature[32:]).Cmp(tc.want) != 0 {
			t.Errorf("s %x: %x, %v", tc.s, signature, err)
		}
		if high := highS(join(one, tc.s)); high != (tc.s.Cmp(half) > 0) {
			t.Errorf("s %x: high: %t", tc.s, high)
		}
	}
	public := PublicKey{Algorithm: ES256, Key: key.Public()}
	for range 16 { // half of the signatures are turned
		raw, err := Sign(Header{Algorithm: ES256}, []byte("{}"), key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := verifyAll(raw, public); err != nil {
			t.Error(err)
		}
		cut := strings.LastIndexByte(raw, '.') + 1
		signature, err := base64.RawURLEncoding.DecodeString(raw[cut:])
		if err != nil {
			t.Fatal(err)
		}
		r, s := new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])
		twin := raw[:cut] + encode(string(join(r, s.Sub(n, s))))
		payload, err := verifyAll(twin, public)
		if payload != nil || !errors.Is(err, ErrSignatureForm) || errors.Is(err, ErrSignature) {
			t.Errorf("twin: %q, %v", payload, err)
		}
		parsed, err := Parse(twin)
		if err != nil {
			t.Fatal(err)
		}
		if payload, err := parsed.VerifyAnyForm(public); err != nil || string(payload) != "{}" {
			t.Errorf("twin in any form: %q, %v", payload, err)
		}
	}
}

// join is R || S.
func join(r, s *big.Int) []byte {
	raw := make([]byte, 64)
	r.FillBytes(raw[:32])
	s.FillBytes(raw[32:])
	return raw
}

// RS-13: RFC 8032, Section 5.1.7 and RFC 8017, Section 8.1.2: no other signature can be made of one of EdDSA or RSA
// either: S of EdDSA must be below the order, and an RSA signature as long as the modulus and below it.
func TestRFC8032_5_1_7_NoTwins(t *testing.T) {
	t.Parallel()
	l, _ := new(big.Int).SetString("7237005577332262213973186563042994240857116359379907606001950938285454250989", 10)
	rsaKey := newRSA(t, 2048)
	for _, tc := range []struct {
		algorithm Algorithm
		signer    crypto.Signer
		twins     map[string]func(signature []byte) []byte
	}{
		{EdDSA, newEd25519(t), map[string]func([]byte) []byte{
			"S plus the order": func(b []byte) []byte {
				s := slices.Clone(b[32:])
				slices.Reverse(s)
				s = new(big.Int).Add(new(big.Int).SetBytes(s), l).FillBytes(make([]byte, 32))
				slices.Reverse(s)
				return append(slices.Clone(b[:32]), s...)
			},
		}},
		{PS256, rsaKey, rsaTwins(rsaKey.N)},
		{RS256, rsaKey, rsaTwins(rsaKey.N)},
	} {
		raw, err := Sign(Header{Algorithm: tc.algorithm}, []byte("{}"), tc.signer)
		if err != nil {
			t.Fatal(err)
		}
		public := PublicKey{Algorithm: tc.algorithm, Key: tc.signer.Public()}
		if _, err := verifyAll(raw, public); err != nil {
			t.Fatal(err)
		}
		cut := strings.LastIndexByte(raw, '.') + 1
		signature, err := base64.RawURLEncoding.DecodeString(raw[cut:])
		if err != nil {
			t.Fatal(err)
		}
		for name, twin := range tc.twins {
			if _, err := verifyAll(raw[:cut]+encode(string(twin(signature))), public); !errors.Is(err, ErrSignature) {
				t.Errorf("%s, %s: %v", tc.algorithm, name, err)
			}
		}
	}
}

func rsaTwins(n *big.Int) map[string]func([]byte) []byte {
	return map[string]func([]byte) []byte{
		"a zero in front": func(b []byte) []byte { return append([]byte{0}, b...) },
		"a zero behind":   func(b []byte) []byte { return append(slices.Clone(b), 0) },
		"plus the modulus": func(b []byte) []byte {
			sum := new(big.Int).Add(new(big.Int).SetBytes(b), n)
			return sum.FillBytes(make([]byte, max(len(b), (sum.BitLen()+7)/8)))
		},
	}
}

// RS-08: RFC 8725, Section 3.1: a key signs with its own algorithm only.
func TestSignRefusesWrongKey(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		header Header
		signer crypto.Signer
	}{
		{"P-384", Header{Algorithm: ES256}, newEC(t, elliptic.P384())},
		{"EdDSA with EC", Header{Algorithm: EdDSA}, newES256(t)},
		{"ES256 with RSA", Header{Algorithm: ES256}, newRSA(t, 2048)},
		{"none", Header{Algorithm: "none"}, newES256(t)},
		{"quote in kid", Header{Algorithm: ES256, KeyID: `a","alg":"none`}, newES256(t)},
		{"control in typ", Header{Algorithm: ES256, Type: "a\n"}, newES256(t)},
	} {
		if token, err := Sign(tc.header, []byte("{}"), tc.signer); err == nil || token != "" {
			t.Errorf("%s: signed", tc.name)
		}
	}
}

// RS-08: RFC 8725, Section 3.1: an algorithm is one we know and the key's own: not none in any spelling, not HMAC
// with the public key as secret, not another curve or hash.
func TestRFC8725_3_1_AlgorithmIsTheKeys(t *testing.T) {
	t.Parallel()
	ec, rsaKey := newES256(t), newRSA(t, 2048)
	p384 := newEC(t, elliptic.P384())
	verifyWith := func(header string, k PublicKey, signature []byte) error {
		_, err := verifyAll(encode(header)+"."+encode("{}")+"."+encode(string(signature)), k)
		return err
	}
	mac := hmac.New(sha256.New, rsaKey.N.Bytes())
	fmt.Fprintf(mac, "%s.%s", encode(`{"alg":"HS256"}`), encode("{}"))
	rsaPublic := PublicKey{Algorithm: PS256, Key: rsaKey.Public()}
	for _, alg := range []string{"none", "nOnE", "NONE", "", "HS256", "ES384", "es256", "RS256", "Ed448", "ES256K"} {
		if verifyWith(`{"alg":"`+alg+`"}`, rsaPublic, mac.Sum(nil)) == nil {
			t.Errorf("%q: accepted", alg)
		}
	}
	rs256, err := Sign(Header{Algorithm: RS256}, []byte("{}"), rsaKey)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := verifyAll(rs256, rsaPublic); !errors.Is(err, ErrSignature) {
		t.Errorf("RS256 with a PS256 key: %v", err)
	}
	es256, err := Sign(Header{Algorithm: ES256}, []byte("{}"), ec)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []PublicKey{
		{Algorithm: ES256, Key: p384.Public()},
		{Algorithm: ES256, Key: rsaKey.Public()},
		{Algorithm: ES256, Key: newEd25519(t).Public()},
		{Algorithm: ES256, Key: nil},
		{Algorithm: ES256, Key: (*ecdsa.PublicKey)(nil)},
		{Algorithm: ES256, Key: ec}, // a private key is not a public one
		{Algorithm: EdDSA, Key: ec.Public()},
		{Algorithm: "", Key: ec.Public()},
	} {
		if payload, err := verifyAll(es256, k); err == nil || payload != nil {
			t.Errorf("%s with %T: accepted", k.Algorithm, k.Key)
		}
	}
}

// RS-08: RFC 8725, Section 3.5: keys that are too weak, or so large that they cost the verifier, are refused.
func TestRFC8725_3_5_KeyBounds(t *testing.T) {
	t.Parallel()
	good := newRSA(t, 2048).PublicKey
	exponent := func(e int) *rsa.PublicKey { return &rsa.PublicKey{N: good.N, E: e} }
	largest := math.MaxInt32
	modulus := func(bits uint) *rsa.PublicKey {
		return &rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), int(bits)-1, 1), E: 65537}
	}
	for _, tc := range []struct {
		name string
		key  *rsa.PublicKey
		ok   bool
	}{
		{"2048", &good, true},
		{"4096", modulus(4096), true},
		{"2047", modulus(2047), false},
		{"4097", modulus(4097), false},
		{"e=1", exponent(1), false},
		{"e=3", exponent(3), false},
		{"even e", exponent(65538), false},
		{"largest e", exponent(largest), true},
		{"larger e", exponent(largest + 2), false},
		{"no modulus", &rsa.PublicKey{E: 65537}, false},
		{"nil", nil, false},
	} {
		if err := (PublicKey{Algorithm: PS256, Key: tc.key}).Check(); (err == nil) != tc.ok {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	if (PublicKey{Algorithm: EdDSA, Key: ed25519.PublicKey("short")}).Check() == nil {
		t.Error("a short Ed25519 key passes")
	}
}

// RS-09, RS-10, RS-25: RFC 7515, Sections 4.1.2 to 4.1.11; RFC 8725, Section 3.10: a token brings no key, names no
// place to fetch one, has no critical extension (we understand none), is not compressed and wraps no other token.
func TestRFC7515_4_1_RefusedHeaderMembers(t *testing.T) {
	t.Parallel()
	key := newES256(t)
	for _, member := range []string{
		`"crit":[]`, `"crit":["exp"]`, `"crit":["alg"]`, `"crit":["b64","b64"]`, `"crit":["b64"],"b64":false`, `"b64":false`,
		`"b64":true`, `"jwk":{"kty":"EC"}`, `"jku":"https://attacker.example"`, `"x5u":"https://attacker.example"`,
		`"x5c":["MIIB"]`, `"zip":"DEF"`, `"enc":"A128GCM"`, `"cty":"JWT"`, `"epk":{}`, `"crit":null`,
	} {
		raw, err := SignSerialized([]byte(`{"alg":"ES256",`+member+`}`), ES256, []byte("{}"), key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(raw); !errors.Is(err, ErrToken) {
			t.Errorf("%s: %v", member, err)
		}
	}
	for _, header := range []string{
		`{"alg":1}`, `{}`, `{"ALG":"ES256"}`, `{"alg":"ES256","kid":7}`, `{"alg":"ES256","typ":["at+jwt"]}`,
		`{"alg":"ES256","kid":"` + strings.Repeat("k", 257) + `"}`, `["ES256"]`, `"ES256"`, `null`, ``,
		`{"alg":["ES256"]}`, `{"alg":"ES256","x":{"a":1,"a":1}}`, `{"alg":"ES256"} {}`,
	} {
		raw, err := SignSerialized([]byte(header), ES256, []byte("{}"), key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(raw); !errors.Is(err, ErrToken) {
			t.Errorf("%s: %v", header, err)
		}
	}
}

// RS-11: RFC 7515, Section 4; RFC 7519, Section 4: a member name stands once, in any part of an object, however it is
// escaped, and names that differ in case are different names.
func TestRFC7515_4_DuplicateMembers(t *testing.T) {
	t.Parallel()
	for _, object := range []string{
		`{"alg":"ES256","alg":"none"}`, `{"alg":"ES256","\u0061lg":"none"}`, `{"a":{"b":1,"b":1}}`,
		`{"a":[{"b":1},{"c":1,"c":2}]}`, `{"":1,"":2}`, "{\"a\xff\":1}", "{\"a\":\"\xc3\x28\"}",
		`{"a":1}{}`, `{"a":1} x`, `{"a":1,}`, `{,}`, `{"a" 1}`, `{a:1}`, `{"a":01}`, `{"a":NaN}`, `[]`, `1`, `"a"`, ``,
		`{"a":` + strings.Repeat("[", 8) + strings.Repeat("]", 8) + `}`,
		strings.Repeat(`{"a":`, 9) + "1" + strings.Repeat("}", 9),
		strings.Repeat(`{"a":`, 20000),
	} {
		if err := CheckMembers([]byte(object)); !errors.Is(err, ErrObject) {
			t.Errorf("%.40q: %v", object, err)
		}
	}
	got, err := DecodeObject([]byte(` {"alg":"x","ALG":1e400,"a":{"b":[true,null,{"b":-0.5}]}} `))
	want := Object{
		"alg": "x", "ALG": json.Number("1e400"),
		"a": Object{"b": []any{true, nil, Object{"b": json.Number("-0.5")}}},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

// RS-12, RS-25: RFC 7515, Sections 2 and 7.1: three parts of base64url without padding, line breaks, white space or
// stray bits; encrypted tokens (five parts) and the JSON serialisation are something else.
func TestRFC7515_7_1_StrictCompactForm(t *testing.T) {
	t.Parallel()
	token, err := Sign(Header{Algorithm: ES256}, []byte(`{"a":1}`), newES256(t))
	if err != nil {
		t.Fatal(err)
	}
	header, rest, _ := strings.Cut(token, ".")
	payload, signature, _ := strings.Cut(rest, ".")
	last := signature[len(signature)-1]
	stray := signature[:len(signature)-1] + string(byte(nextInAlphabet(last)))
	for name, raw := range map[string]string{
		"empty":              "",
		"dots":               "..",
		"two parts":          header + "." + payload,
		"four parts":         token + ".",
		"five parts":         token + ".." + payload,
		"million dots":       strings.Repeat(".", 1_000_000),
		"no header":          "." + payload + "." + signature,
		"newline in header":  header[:4] + "\n" + header[4:] + "." + payload + "." + signature,
		"newline in payload": header + "." + payload[:4] + "\r\n" + payload[4:] + "." + signature,
		"newline at end":     token + "\n",
		"newline in sig":     header + "." + payload + "." + signature[:9] + "\n" + signature[9:],
		"leading space":      " " + token,
		"padding":            token + "==",
		"stray bits":         header + "." + payload + "." + stray,
		"standard alphabet":  header + "." + payload + "." + strings.NewReplacer("-", "+", "_", "/").Replace(signature+"-_"),
		"JSON":               `{"protected":"` + header + `","payload":"` + payload + `","signature":"` + signature + `"}`,
		"one character":      header + "." + payload + ".A",
	} {
		if _, err := Parse(raw); !errors.Is(err, ErrToken) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Parse(token); err != nil {
		t.Errorf("the good token: %v", err)
	}
}

// nextInAlphabet returns a character that differs from c in the lowest bit only.
func nextInAlphabet(c byte) byte {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return alphabet[strings.IndexByte(alphabet, c)^1]
}

// RS-13: RFC 7518, Section 3.4: an ES256 signature has exactly 64 bytes, with 0 < R, S < n; DER is refused.
func TestRFC7518_3_4_SignatureForm(t *testing.T) {
	t.Parallel()
	key := newES256(t)
	public := PublicKey{Algorithm: ES256, Key: key.Public()}
	token, err := Sign(Header{Algorithm: ES256}, []byte(`{}`), key)
	if err != nil {
		t.Fatal(err)
	}
	input := token[:strings.LastIndexByte(token, '.')]
	good, err := base64.RawURLEncoding.DecodeString(token[len(input)+1:])
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte(input))
	der, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	n := elliptic.P256().Params().N
	number := func(i *big.Int) []byte { return i.FillBytes(make([]byte, 32)) }
	join := func(r, s []byte) []byte { return append(bytes.Clone(r), s...) }
	zero, one := number(new(big.Int)), number(big.NewInt(1))
	for name, signature := range map[string][]byte{
		"none":     {},
		"DER":      der,
		"short":    good[:63],
		"long":     join(good, []byte{0}),
		"padded":   join([]byte{0}, good),
		"padded S": join(good[:32], join([]byte{0}, good[32:])),
		"R = 0":    join(zero, good[32:]),
		"S = 0":    join(good[:32], zero),
		"zeros":    join(zero, zero),
		"R = n":    join(number(n), good[32:]),
		"S = n":    join(good[:32], number(n)),
		"S = -1":   join(good[:32], bytes.Repeat([]byte{0xff}, 32)),
		"ones":     join(one, one),
		"swapped":  join(good[32:], good[:32]),
		"bit flip": append([]byte{good[0] ^ 1}, good[1:]...),
	} {
		if _, err := verifyAll(input+"."+encode(string(signature)), public); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := verifyAll(token, public); err != nil {
		t.Errorf("the good token: %v", err)
	}
}

// RS-27: the size of a token is judged before anything in it is decoded, so that a refusal costs nothing.
func TestSizeBound(t *testing.T) { // not parallel: it counts allocations
	huge := strings.Repeat("a", 1<<20)
	for name, raw := range map[string]string{
		"huge":         huge + "." + huge + "." + huge,
		"one over":     encode(`{"alg":"ES256"}`) + "." + strings.Repeat("A", MaxTokenBytes-len(encode(`{"alg":"ES256"}`))-3) + ".AA",
		"large header": encode(`{"alg":"ES256","x":"`+strings.Repeat("a", MaxHeaderBytes)+`"}`) + ".e30.AAAA",
	} {
		if _, err := Parse(raw); !errors.Is(err, ErrToken) || !strings.Contains(err.Error(), "too large") {
			t.Errorf("%s: %v", name, err)
		}
		// Many runs, because pools forget at random under the race detector.
		if n := testing.AllocsPerRun(1000, func() { _, _ = Parse(raw) }); n > 3 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// FuzzParse: what is accepted is written in exactly one way: its parts encode again to the same bytes.
func FuzzParse(f *testing.F) {
	f.Add(rfc7515A3)
	f.Add(rfc8037A4)
	f.Add("eyJhbGciOiJFUzI1NiJ9\n.e30.AAAA")
	f.Add("..")
	f.Fuzz(func(t *testing.T, raw string) {
		signed, err := Parse(raw)
		if err != nil {
			return
		}
		_, payload := signed.Unverified()
		header, _, _ := strings.Cut(raw, ".")
		if again := header + "." + encode(string(payload)) + "." + encode(string(signed.signature)); again != raw {
			t.Errorf("%q reads as %q", raw, again)
		}
		written, err := ParseWritten(raw, signed.Header())
		if err == nil && (written.Header() != signed.Header() || string(written.payload) != string(payload) ||
			string(written.signature) != string(signed.signature) || written.input != signed.input) {
			t.Errorf("%q is read in two ways", raw)
		}
	})
}

// FuzzDecodeObject: what is accepted encodes to JSON that decodes to the same.
func FuzzDecodeObject(f *testing.F) {
	f.Add([]byte(`{"a":{"b":[1,2,{"c":null}]},"A":1e400}`))
	f.Add([]byte(`{"a":1,"a":1}`))
	f.Add([]byte(`{"\ud800":1,"\udfff":2}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		object, err := DecodeObject(data)
		if err != nil {
			return
		}
		again, err := json.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeObject(again)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(object, got); diff != "" {
			t.Error(diff)
		}
	})
}

func BenchmarkSign(b *testing.B) {
	payload := bytes.Repeat([]byte("x"), 350)
	for _, tc := range []struct {
		algorithm Algorithm
		signer    crypto.Signer
	}{{ES256, newES256(b)}, {EdDSA, newEd25519(b)}} {
		b.Run(string(tc.algorithm), func(b *testing.B) {
			b.ReportAllocs()
			header := Header{Algorithm: tc.algorithm, KeyID: "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs", Type: "at+jwt"}
			for b.Loop() {
				if _, err := Sign(header, payload, tc.signer); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
