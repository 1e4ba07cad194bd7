// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package jose

import (
	"crypto/elliptic"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const rfc7638N = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3o" +
	"knjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL" +
	"5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"

// AT-12: RFC 7638, Section 3.1: the thumbprint of the example key, of required members only; also the Ed25519 key of
// RFC 8037, Appendix A.3.
func TestRFC7638_3_1_KeyID(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, entry, want string }{
		{"RSA", `{"kty":"RSA","n":"` + rfc7638N + `","e":"AQAB","alg":"RS256","kid":"2011-04-29"}`,
			"NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"},
		{"Ed25519", rfc8037A2Key, "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"},
	} {
		got, err := KeyID(oneKey(t, tc.entry).Key)
		if err != nil || got != tc.want {
			t.Errorf("%s: %q, %v", tc.name, got, err)
		}
	}
	if id, err := KeyID(newES256(t)); err == nil {
		t.Errorf("a private key has the id %q", id)
	}
}

// AT-10: RFC 7517, Sections 4.2, 4.4 and 4.5: each published key has an id of its own, alg and use, and no private
// member, whatever was passed in.
func TestRFC7517_5_PublishedKeys(t *testing.T) {
	t.Parallel()
	ec, rsaKey, ed := newES256(t), newRSA(t, 2048), newEd25519(t)
	keys := []PublicKey{
		{ID: "a", Algorithm: ES256, Key: ec.Public()},
		{ID: "b", Algorithm: PS256, Key: rsaKey.Public()},
		{ID: "c", Algorithm: EdDSA, Key: ed.Public()},
		{ID: "d", Algorithm: RS256, Key: rsaKey.Public()},
	}
	data, err := MarshalKeySet(keys)
	if err != nil {
		t.Fatal(err)
	}
	var set struct{ Keys []map[string]string }
	if err := json.Unmarshal(data, &set); err != nil {
		t.Fatal(err)
	}
	public := map[string][]string{
		"EC": {"alg", "crv", "kid", "kty", "use", "x", "y"}, "RSA": {"alg", "e", "kid", "kty", "n", "use"},
		"OKP": {"alg", "crv", "kid", "kty", "use", "x"},
	}
	for i, entry := range set.Keys {
		if entry["use"] != "sig" || entry["kid"] != keys[i].ID || entry["alg"] != string(keys[i].Algorithm) {
			t.Errorf("entry %v", entry)
		}
		var names []string
		for name := range entry {
			names = append(names, name)
		}
		slices.Sort(names)
		if diff := cmp.Diff(public[entry["kty"]], names); diff != "" {
			t.Error(diff)
		}
	}
	got, err := ParseKeySet(data)
	if diff := cmp.Diff(keys, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
	for name, bad := range map[string][]PublicKey{
		"private key":     {{ID: "a", Algorithm: ES256, Key: ec}},
		"ed private key":  {{ID: "a", Algorithm: EdDSA, Key: ed}},
		"no id":           {{Algorithm: ES256, Key: ec.Public()}},
		"id twice":        {keys[0], {ID: "a", Algorithm: EdDSA, Key: ed.Public()}},
		"wrong algorithm": {{ID: "a", Algorithm: EdDSA, Key: ec.Public()}},
	} {
		if data, err := MarshalKeySet(bad); err == nil {
			t.Errorf("%s: published %s", name, data)
		}
	}
	if data, err := MarshalKeySet(nil); err != nil || string(data) != `{"keys":[]}` {
		t.Errorf("no keys: %s, %v", data, err)
	}
}

// RS-21, FA-03: RFC 7517, Section 5: entries we cannot or must not use are skipped one by one and never spoil the others.
func TestRFC7517_5_KeySetHygiene(t *testing.T) {
	t.Parallel()
	ec := strings.TrimSuffix(strings.Replace(rfc7515A3Key, `"kid":"a3",`, "", 1), "}")
	p384, err := newEC(t, elliptic.P384()).PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	coordinate := base64.RawURLEncoding.EncodeToString
	rsaEntry := func(n, e string) string { return `{"kty":"RSA","kid":"k","n":"` + n + `","e":"` + e + `"}` }
	encoded := func(i *big.Int) string { return base64.RawURLEncoding.EncodeToString(i.Bytes()) }
	small := new(big.Int).SetBit(big.NewInt(1), 2046, 1)
	large := new(big.Int).SetBit(big.NewInt(1), 8191, 1)
	for _, tc := range []struct{ name, entry string }{
		{"unknown kty", `{"kty":"AKP","kid":"k","pub":"AA"}`},
		{"no kty", `{"kid":"k"}`},
		{"kty in capitals", strings.Replace(ec, "kty", "KTY", 1) + `,"kid":"k"}`},
		{"unknown use", ec + `,"kid":"k","use":"tls"}`},
		{"use=enc", ec + `,"kid":"k","use":"enc"}`},
		{"use not a string", ec + `,"kid":"k","use":["sig"]}`},
		{"key_ops without verify", ec + `,"kid":"k","key_ops":["sign"]}`},
		{"key_ops not an array", ec + `,"kid":"k","key_ops":"verify"}`},
		{"unknown alg", ec + `,"kid":"k","alg":"ES512"}`},
		{"alg of another type", ec + `,"kid":"k","alg":"PS256"}`},
		{"alg not a string", ec + `,"kid":"k","alg":7}`},
		{"alg none", ec + `,"kid":"k","alg":"none"}`},
		{"alg HS256", ec + `,"kid":"k","alg":"HS256"}`},
		{"no kid", ec + `}`},
		{"empty kid", ec + `,"kid":""}`},
		{"kid not a string", ec + `,"kid":5}`},
		{"long kid", ec + `,"kid":"` + strings.Repeat("k", 257) + `"}`},
		{"private part", ec + `,"kid":"k","d":"jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI"}`},
		{"null private part", ec + `,"kid":"k","d":null}`},
		{"symmetric", `{"kty":"oct","kid":"k","k":"AAAA"}`},
		{"symmetric named EC", ec + `,"kid":"k","k":"AAAA"}`},
		{"P-384", `{"kty":"EC","crv":"P-384","kid":"k","x":"` + coordinate(p384[1:49]) + `","y":"` + coordinate(p384[49:]) + `"}`},
		{"not on the curve", strings.Replace(ec, "f83O", "f83P", 1) + `,"kid":"k"}`},
		{"short coordinate", strings.Replace(ec, "f83O", "", 1) + `,"kid":"k"}`},
		{"X25519", `{"kty":"OKP","crv":"X25519","kid":"k","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`},
		{"short Ed25519", `{"kty":"OKP","crv":"Ed25519","kid":"k","x":"11qYAYKxCrfVS"}`},
		{"RSA 2047", rsaEntry(encoded(small), "AQAB")},
		{"RSA 8192", rsaEntry(encoded(large), "AQAB")},
		{"e=1", rsaEntry(rfc7638N, "AQ")},
		{"e=3", rsaEntry(rfc7638N, "Aw")},
		{"even e", rsaEntry(rfc7638N, "AQAC")},
		{"e cut off to 65537", rsaEntry(rfc7638N, encoded(new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), 64), big.NewInt(65537))))},
		{"no e", `{"kty":"RSA","kid":"k","n":"` + rfc7638N + `"}`},
		{"not an object", `"k"`},
		{"null", `null`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			keys, err := ParseKeySet([]byte(`{"keys":[` + tc.entry + `,` + rfc7515A3Key + `]}`))
			if err != nil || len(keys) != 1 || keys[0].ID != "a3" {
				t.Errorf("%v, %v", keys, err)
			}
		})
	}
	for name, entry := range map[string]string{
		"bare":          ec + `,"kid":"k"}`,
		"all members":   ec + `,"kid":"k","use":"sig","alg":"ES256","key_ops":["verify"],"x5t":"AA","x5u":"http://x"}`,
		"bad x5c":       ec + `,"kid":"k","x5c":["no certificate"]}`,
		"unknown extra": ec + `,"kid":"k","D":1,"exp":5}`,
	} {
		if keys, err := ParseKeySet([]byte(`{"keys":[` + entry + `]}`)); err != nil || len(keys) != 1 {
			t.Errorf("%s: %v, %v", name, keys, err)
		}
	}
}

// RS-21, FA-03: RFC 7517, Section 4.5: where two entries have one key id, neither is used, even if one of them could not be.
func TestRFC7517_4_5_DuplicateKeyID(t *testing.T) {
	t.Parallel()
	twin := strings.Replace(rfc8037A2Key, `"a2"`, `"a3"`, 1)
	keys, err := ParseKeySet([]byte(`{"keys":[` + rfc7515A3Key + `,` + twin + `,` + rfc8037A2Key + `]}`))
	if err != nil || len(keys) != 1 || keys[0].ID != "a2" {
		t.Errorf("%v, %v", keys, err)
	}
	keys, err = ParseKeySet([]byte(`{"keys":[` + rfc7515A3Key + `,{"kty":"oct","kid":"a3","k":"AA"}]}`))
	if err != nil || len(keys) != 0 {
		t.Errorf("%v, %v", keys, err)
	}
}

// RS-19, RS-21: what is not a key set, or is larger than one, is an error and not an empty set.
func TestKeySetBounds(t *testing.T) {
	t.Parallel()
	for name, data := range map[string]string{
		"empty":          "",
		"no keys":        `{}`,
		"keys in caps":   `{"Keys":[]}`,
		"keys twice":     `{"keys":[],"keys":[]}`,
		"member twice":   `{"keys":[{"kid":"a","kid":"b"}]}`,
		"not an array":   `{"keys":{}}`,
		"array":          `[]`,
		"truncated":      `{"keys":[` + rfc7515A3Key,
		"too large":      `{"keys":[],"x":"` + strings.Repeat("x", MaxKeySetBytes) + `"}`,
		"too many":       `{"keys":[` + strings.Repeat("1,", MaxKeys) + `1]}`,
		"nested":         `{"keys":[` + strings.Repeat("[", 9) + strings.Repeat("]", 9) + `]}`,
		"html in answer": "<!doctype html>",
	} {
		if keys, err := ParseKeySet([]byte(data)); !errors.Is(err, ErrKeySet) {
			t.Errorf("%s: %v, %v", name, keys, err)
		}
	}
	if keys, err := ParseKeySet([]byte(fmt.Sprintf(`{"keys":[%s1]}`, strings.Repeat("1,", MaxKeys-1)))); err != nil || len(keys) != 0 {
		t.Errorf("a full set of nonsense: %v, %v", keys, err)
	}
}
