// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package jose

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"io"
	"strconv"
	"strings"
	"testing"
)

// The tests of this file stand for checks that no other test missed when they were deleted (scripts/mutate).

// RFC 8725, Section 3.1: the algorithm is known where the header is read, before any key is looked for.
func TestRFC8725_3_1_UnknownAlgorithmIsNotParsed(t *testing.T) {
	t.Parallel()
	for _, alg := range []Algorithm{"none", "", "HS256", "ES384", "es256"} {
		if alg.Supported() {
			t.Errorf("%q is supported", alg)
		}
		raw := encode(`{"alg":`+strconv.Quote(string(alg))+`}`) + ".e30.AAAA"
		if _, err := Parse(raw); !errors.Is(err, ErrToken) {
			t.Errorf("%q: %v", alg, err)
		}
	}
}

// RFC 8725, Section 3.1: a signature that is good by the key's algorithm does not help a header that names
// another, and an RSA key is of no other family.
func TestRFC8725_3_1_HeaderNamesAnotherAlgorithm(t *testing.T) {
	t.Parallel()
	key := newRSA(t, 2048)
	for _, tc := range []struct{ header, signed Algorithm }{{RS256, PS256}, {PS256, RS256}, {ES256, PS256}, {EdDSA, RS256}} {
		token, err := SignSerialized([]byte(`{"alg":"`+string(tc.header)+`"}`), tc.signed, []byte(`{}`), key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := verifyAll(token, PublicKey{Algorithm: tc.signed, Key: key.Public()}); !errors.Is(err, ErrSignature) {
			t.Errorf("%s signed with %s: %v", tc.header, tc.signed, err)
		}
	}
	for _, a := range []Algorithm{ES256, EdDSA, ""} {
		if err := (PublicKey{Algorithm: a, Key: key.Public()}).Check(); !errors.Is(err, ErrKey) {
			t.Errorf("an RSA key for %q: %v", a, err)
		}
	}
}

// RFC 7515, Section 5.2: in every algorithm a signature of other bytes, or by another key, does not verify.
func TestRFC7515_5_2_ForgedSignature(t *testing.T) {
	t.Parallel()
	rsaKey, rsaOther := newRSA(t, 2048), newRSA(t, 2048)
	for _, tc := range []struct {
		algorithm  Algorithm
		key, other crypto.Signer
	}{
		{ES256, newES256(t), newES256(t)},
		{EdDSA, newEd25519(t), newEd25519(t)},
		{PS256, rsaKey, rsaOther},
		{RS256, rsaKey, rsaOther},
	} {
		public := PublicKey{Algorithm: tc.algorithm, Key: tc.key.Public()}
		token, err := Sign(Header{Algorithm: tc.algorithm}, []byte(`{"sub":"a"}`), tc.key)
		if err != nil {
			t.Fatal(err)
		}
		header, rest, _ := strings.Cut(token, ".")
		_, signature, _ := strings.Cut(rest, ".")
		if _, err := verifyAll(header+"."+encode(`{"sub":"b"}`)+"."+signature, public); !errors.Is(err, ErrSignature) {
			t.Errorf("%s, other bytes: %v", tc.algorithm, err)
		}
		forged, err := Sign(Header{Algorithm: tc.algorithm}, []byte(`{"sub":"a"}`), tc.other)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := verifyAll(forged, public); !errors.Is(err, ErrSignature) {
			t.Errorf("%s, another key: %v", tc.algorithm, err)
		}
	}
}

// RFC 7515, Section 4: the header has the members that were asked for and no others, and values that would need
// escaping are refused.
func TestRFC7515_4_WrittenHeader(t *testing.T) {
	t.Parallel()
	key := newES256(t)
	for _, tc := range []struct {
		header Header
		want   string
	}{
		{Header{Algorithm: ES256}, `{"alg":"ES256"}`},
		{Header{Algorithm: ES256, Type: "at+jwt"}, `{"alg":"ES256","typ":"at+jwt"}`},
		{Header{Algorithm: ES256, KeyID: "k ~"}, `{"alg":"ES256","kid":"k ~"}`},
		{Header{Algorithm: ES256, Type: "t", KeyID: "k"}, `{"alg":"ES256","typ":"t","kid":"k"}`},
		{Header{Algorithm: ES256, KeyID: "\x7f"}, ""},
		{Header{Algorithm: ES256, KeyID: "\x1f"}, ""},
		{Header{Algorithm: ES256, KeyID: "é"}, ""},
		{Header{Algorithm: ES256, KeyID: `\u0041`}, ""},
	} {
		token, err := Sign(tc.header, []byte(`{}`), key)
		encoded, _, _ := strings.Cut(token, ".")
		got, _ := base64.RawURLEncoding.DecodeString(encoded)
		if string(got) != tc.want || (err != nil) != (tc.want == "") {
			t.Errorf("%+v: %s, %v", tc.header, got, err)
		}
	}
}

// RFC 7515, Section 4: whoever asks for the header that was written gets a token with these bytes, not one that only means
// the same, though the right key signed it and Parse would take it.
func TestRFC7515_4_OnlyTheWrittenHeader(t *testing.T) {
	t.Parallel()
	key := newES256(t)
	public := PublicKey{Algorithm: ES256, Key: key.Public()}
	h := Header{Algorithm: ES256, Type: "at+jwt", KeyID: "k"}
	written, err := Sign(h, []byte(`{"a":1}`), key)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := ParseWritten(written, h)
	if err != nil || signed.Header() != h {
		t.Fatalf("%+v: %v", signed, err)
	}
	if payload, err := signed.Verify(public); string(payload) != `{"a":1}` {
		t.Errorf("%s, %v", payload, err)
	}
	if signed, err = ParseWritten(written[:len(written)-4]+"AAAA", h); err != nil {
		t.Errorf("another signature: %v", err)
	} else if _, err := signed.Verify(public); !errors.Is(err, ErrSignature) {
		t.Errorf("another signature: %v", err)
	}
	for _, header := range []string{
		`{"typ":"at+jwt","alg":"ES256","kid":"k"}`, `{"alg":"ES256","typ":"at+jwt","kid":"k" }`, `{"alg":"ES256","typ":"at+jwt","kid":"\u006b"}`,
		`{"alg":"ES256","typ":"at+jwt","kid":"k","x":1}`, `{"alg":"ES256","typ":"AT+JWT","kid":"k"}`, `{"alg":"ES256","typ":"at+jwt"}`,
	} {
		raw, err := SignSerialized([]byte(header), ES256, []byte(`{"a":1}`), key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(raw); err != nil {
			t.Errorf("%s is not to be read at all: %v", header, err)
		}
		if _, err := ParseWritten(raw, h); !errors.Is(err, ErrToken) {
			t.Errorf("%s: %v", header, err)
		}
	}
	for name, other := range map[string]Header{
		"algorithm": {Algorithm: EdDSA, Type: "at+jwt", KeyID: "k"}, "type": {Algorithm: ES256, Type: "JWT", KeyID: "k"},
		"key": {Algorithm: ES256, Type: "at+jwt", KeyID: "l"}, "longer": {Algorithm: ES256, Type: "at+jwt", KeyID: strings.Repeat("k", 200)},
		"unwritten": {Algorithm: ES256, Type: "at+jwt", KeyID: `"`},
	} {
		if _, err := ParseWritten(written, other); err == nil {
			t.Errorf("another %s is taken", name)
		}
	}
	header, rest, _ := strings.Cut(written, ".")
	payload, signature, _ := strings.Cut(rest, ".")
	for _, raw := range []string{
		"", header, header + ".", header + payload, header + "." + payload, header + "..", written + ".", written + ".AA", "." + written, " " + written,
		header + "x" + payload + "." + signature, header + "." + payload + "=." + signature, header + "." + payload + "." + signature + "\n",
		header + "." + strings.Repeat("A", MaxTokenBytes) + "." + signature,
	} {
		if signed, err := ParseWritten(raw, h); err == nil && raw != header+".." || err != nil && !errors.Is(err, ErrToken) {
			t.Errorf("%.200q: %+v, %v", raw, signed, err)
		}
	}
	if _, err := ParseWritten(".e30.AAAA", Header{Algorithm: ES256, KeyID: `"`}); err == nil {
		t.Error("a header that is never written is taken for none")
	}
	room := MaxTokenBytes - len(header) - len("..AA")
	largest := header + "." + strings.Repeat("A", room-room%4) + ".AA" + strings.Repeat("A", room%4)
	if _, err := ParseWritten(largest, h); err != nil || len(largest) != MaxTokenBytes {
		t.Errorf("the largest, of %d bytes: %v", len(largest), err)
	}
}

// failingSigner has a key and cannot sign.
type failingSigner struct {
	crypto.Signer
}

var errSigner = errors.New("the device is gone")

func (failingSigner) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errSigner
}

// A signer that fails gives its error and no token, in every algorithm.
func TestSignerFails(t *testing.T) {
	t.Parallel()
	rsaKey := newRSA(t, 2048)
	for _, tc := range []struct {
		algorithm Algorithm
		key       crypto.Signer
	}{{ES256, newES256(t)}, {EdDSA, newEd25519(t)}, {PS256, rsaKey}, {RS256, rsaKey}} {
		token, err := Sign(Header{Algorithm: tc.algorithm}, []byte(`{}`), failingSigner{tc.key})
		if !errors.Is(err, errSigner) || token != "" {
			t.Errorf("%s: %q, %v", tc.algorithm, token, err)
		}
	}
}

// RFC 7518, Section 3.4: what a signer returns is an ECDSA signature of two numbers of 32 bytes, or an error.
func TestRFC7518_3_4_MalformedDER(t *testing.T) {
	t.Parallel()
	for name, der := range map[string]string{
		"outer length": "\x30\x05\x02\x01\x01\x02\x01\x01",
		"other tag":    "\x30\x06\x04\x01\x01\x02\x01\x01",
		"33 bytes":     "\x30\x26\x02\x21\x01" + strings.Repeat("a", 32) + "\x02\x01\x01",
		"empty S":      "\x30\x05\x02\x01\x01\x02\x00",
	} {
		if raw, err := rawSignature([]byte(der)); err == nil {
			t.Errorf("%s: read as %x", name, raw)
		}
	}
}

// The bounds themselves are within bounds.
func TestLargestAccepted(t *testing.T) {
	t.Parallel()
	key := newES256(t)
	sign := func(header string, payload int) string {
		t.Helper()
		token, err := SignSerialized([]byte(header), ES256, []byte(strings.Repeat("a", payload)), key)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	const header = `{"alg":"ES256"}`
	payload := base64.RawURLEncoding.DecodedLen(MaxTokenBytes - len(sign(header, 0)))
	padding := base64.RawURLEncoding.DecodedLen(MaxHeaderBytes) - len(`{"alg":"ES256","x":""}`)
	for name, tc := range map[string]struct {
		raw       string
		got, want int
	}{
		"token":  {raw: sign(header, payload), got: len(sign(header, payload)), want: MaxTokenBytes},
		"header": {raw: sign(`{"alg":"ES256","x":"`+strings.Repeat("a", padding)+`"}`, 0), want: MaxHeaderBytes},
		"kid":    {raw: sign(`{"alg":"ES256","kid":"`+strings.Repeat("a", maxKeyIDBytes)+`"}`, 0)},
	} {
		if name == "header" {
			tc.got = strings.IndexByte(tc.raw, '.')
		}
		if tc.got != tc.want {
			t.Errorf("%s: the test makes %d bytes, not %d", name, tc.got, tc.want)
		}
		if _, err := Parse(tc.raw); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The bounds of a key set are within bounds too.
func TestLargestKeySet(t *testing.T) {
	t.Parallel()
	set, err := MarshalKeySet([]PublicKey{
		{ID: strings.Repeat("k", maxKeyIDBytes), Algorithm: ES256, Key: newES256(t).Public()},
	})
	if err != nil {
		t.Fatal(err)
	}
	set = append(set, strings.Repeat(" ", MaxKeySetBytes-len(set))...)
	if keys, err := ParseKeySet(set); err != nil || len(keys) != 1 {
		t.Errorf("%d keys, %v", len(keys), err)
	}
}

// A nil key of any kind, and a key by value, fit no algorithm.
func TestNilKeys(t *testing.T) {
	t.Parallel()
	for _, k := range []PublicKey{
		{Algorithm: ES256, Key: (*ecdsa.PublicKey)(nil)},
		{Algorithm: PS256, Key: (*rsa.PublicKey)(nil)},
		{Algorithm: EdDSA, Key: ed25519.PublicKey(nil)},
		{Algorithm: PS256, Key: rsa.PublicKey{}},
	} {
		if err := k.Check(); !errors.Is(err, ErrKey) {
			t.Errorf("%T: %v", k.Key, err)
		}
	}
}
