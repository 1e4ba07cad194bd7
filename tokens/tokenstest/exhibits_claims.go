// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package tokenstest

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
	"time"
	"unicode"
)

// required is AT-02: claims that must be there with their types.
func (m *museum) required() {
	const clause = "AT-02: RFC 9068, Section 2.2"
	for _, claim := range []string{"iss", "sub", "client_id", "aud", "jti", "iat", "exp"} {
		m.claims(claim+" missing", clause, malformedClaims, without(claim))
		m.claims(claim+" in capitals", clause, malformedClaims, renamed(claim, strings.ToUpper(claim)))
		for _, value := range []string{"null", `""`, "true", "{}"} {
			m.claims(claim+" "+value, clause, malformedClaims, with(claim, value))
		}
	}
	for _, claim := range []string{"iss", "sub", "client_id", "jti"} {
		m.claims(claim+" an array", clause, malformedClaims, with(claim, `["x"]`))
		m.claims(claim+" a number", clause, malformedClaims, with(claim, "1"))
	}
	for name, scope := range sorted(map[string]string{
		"null": "null", "a number": "1", "an array": `["a"]`, "two spaces": `"a  b"`, "a space before": `" a"`,
		"a space behind": `"a "`,
		"a tab":          `"a\tb"`, "a quotation mark": `"a\"b"`, "a backslash": `"a\\b"`, "a letter beyond ASCII": `"é"`,
		"NUL": `"a\u0000"`,
	}) {
		m.claims("scope with "+name, "RFC 6749, Section 3.3", malformedClaims, with("scope", scope))
	}
}

// issuers is RS-06.
func (m *museum) issuers() {
	const clause = "RS-06: RFC 9068, Section 4"
	for name, iss := range sorted(map[string]string{
		"with a slash": URL + "/", "in other case": strings.Replace(URL, "issuer", "Issuer", 1),
		"with its port": URL + ":443",
		"over http":     strings.Replace(URL, "https", "http", 1), "prolonged": URL + ".attacker.example",
		"cut off": URL[:len(URL)-1],
		"another": "https://other.example", "with a user": strings.Replace(URL, "//", "//issuer@", 1),
		"with a query": URL + "?x",
		"with a space": URL + " ", "with NUL": URL + `\u0000`, "with a path": URL + "/tenant",
		"without scheme": strings.TrimPrefix(URL, "https://"),
		"the client":     Client, "the audience": Audience,
	}) {
		m.claims("issuer "+name, clause, "wrong_issuer", with("iss", quote(iss)))
	}
	m.token("key of another issuer, with its kid", clause, unknownKey, m.stranger.Sign(m.tb,
		m.goodHeader().text([]edit{with("kid", quote(m.stranger.public.ID))}), m.goodClaims().text(nil)))
	theirs := m.stranger.Sign(m.tb, m.goodHeader().text([]edit{with("kid", quote(m.stranger.public.ID))}),
		m.goodClaims().text([]edit{with("iss", `"https://other.example"`)}))
	m.published("issuer another, whose key is known here too", clause, "wrong_issuer", theirs, m.issuer.public, m.stranger.public)
}

// audiences is RS-07.
func (m *museum) audiences() {
	const clause = "RS-07: RFC 7519, Section 4.1.3; RFC 9068, Section 4"
	for name, aud := range sorted(map[string]string{
		"with a slash": quote(Audience + "/"), "cut off": quote(Audience[:len(Audience)-1]),
		"prolonged":   quote(Audience + ".attacker.example"),
		"in capitals": quote(strings.ToUpper(Audience)), "another": `"https://other.example"`, "an empty array": "[]",
		"the issuer": quote(URL), "the client": quote(Client), "a prefix": `"https://"`, "a wildcard": `"*"`,
		"twice in one string": quote(Audience + " " + Audience),
		"with a comma":        quote(Audience + ",https://other.example"), "with a space": quote(" " + Audience),
		"with NUL":                       quote(Audience + `\u0000`),
		"an array of others":             `["https://other.example","https://third.example"]`,
		"an array with the empty string": `[""]`,
		"a longer one in an array":       "[" + quote(Audience+"/x") + "]", "with a port": quote(Audience + ":443"),
	}) {
		m.claims("audience "+name, clause, "wrong_audience", with("aud", aud))
	}
	for name, aud := range sorted(map[string]string{
		"number": "[" + quote(Audience) + ",1]", "null": "[null," + quote(Audience) + "]",
		"array":  "[[" + quote(Audience) + "]]",
		"object": "[" + quote(Audience) + ",{}]", "boolean": "[true," + quote(Audience) + "]",
	}) {
		m.claims("audience with an element that is a "+name, clause, malformedClaims, with("aud", aud))
	}
	m.claims("audience as a name", clause, malformedClaims, with("aud", "{"+quote(Audience)+":1}"))
}

// dates is RS-14.
func (m *museum) dates() {
	const clause = "RS-14: RFC 7519, Sections 4.1.4 to 4.1.6"
	for name, exp := range sorted(map[string]string{
		"an hour ago": m.after(-time.Hour), "at the epoch": "0", "one second after the epoch": "1",
		"a minute ago": m.after(-time.Minute),
	}) {
		m.claims("exp "+name, clause, "expired", with("exp", exp))
	}
	for name, ahead := range sorted(map[string]time.Duration{
		"in five minutes": 5 * time.Minute, "in an hour": time.Hour, "in a hundred years": 100 * 365 * 24 * time.Hour,
	}) {
		m.claims("nbf "+name, clause, "not_yet_valid", with("nbf", m.after(ahead)))
		m.claims("iat "+name, clause, "issued_in_future", with("iat", m.after(ahead)))
	}
	const numbers = "RS-14: RFC 7519, Section 2"
	later := m.after(Lifetime)
	for name, value := range sorted(map[string]string{
		"a string": quote(later), "a date": `"2099-01-01T00:00:00Z"`, "a fraction": "1.5",
		"a fraction of nothing": later + ".0",
		"with an exponent":      "1e9", "too large for a float": "1e400", "too small for a float": "1e-400",
		"negative":      "-1",
		"minus nothing": "-0", "larger than 64 bits": "18446744073709551617",
		"the largest of 64 bits": "9223372036854775807",
		"in milliseconds":        later + "000", "an array": "[" + later + "]", "false": "false",
		"of 1000 digits": "1" + strings.Repeat("0", 999),
	}) {
		for _, claim := range []string{"exp", "nbf", "iat"} {
			m.claims(claim+" "+name, numbers, malformedClaims, with(claim, value))
		}
	}
	for name, value := range sorted(map[string]string{"with a zero before": "0" + later, "Infinity": "Infinity", "in octal": "0o17"}) {
		m.claims("exp "+name, numbers, malformedClaims, with("exp", value))
	}
	m.claims("nbf null", numbers, malformedClaims, with("nbf", "null"))
}

// confirmations is RS-03: not bound, or not by exactly one certificate.
func (m *museum) confirmations() {
	const clause = "RS-03: RFC 8705, Section 3.1; RFC 7800, Section 3.1"
	good := quote(m.peer.Thumbprint().String())
	for name, cnf := range sorted(map[string]string{
		"empty": "{}", "null": "null", "a string": `"x"`, "the thumbprint itself": good, "a number": "1",
		"true": "true", "an array": "[]",
		"an array with a good one": `[{"x5t#S256":` + good + "}]", "jkt only": `{"jkt":` + good + "}",
		"x5t only": `{"x5t":` + good + "}",
		"kid only": `{"kid":` + good + "}", "jwk only": `{"jwk":{"kty":"EC"}}`,
		"jku only":            `{"jku":"https://attacker.invalid"}`,
		"unknown method only": `{"x":1}`, "name in capitals": `{"X5T#S256":` + good + "}",
		"name in lower case": `{"x5t#s256":` + good + "}",
		"of SHA-512":         `{"x5t#S512":` + good + "}", "two methods, jkt": `{"x5t#S256":` + good + `,"jkt":` + good + "}",
		"two methods, x5t":     `{"x5t":"","x5t#S256":` + good + "}",
		"two methods, unknown": `{"x5t#S256":` + good + `,"x":null}`,
		"one level too deep":   `{"cnf":{"x5t#S256":` + good + "}}", "thumbprint null": `{"x5t#S256":null}`,
		"thumbprint a number":    `{"x5t#S256":1}`,
		"thumbprint in an array": `{"x5t#S256":[` + good + "]}", "thumbprint an object": `{"x5t#S256":{}}`,
		"thumbprint true": `{"x5t#S256":true}`,
	}) {
		m.claims("cnf "+name, clause, notBound, with("cnf", cnf))
	}
	m.claims("cnf missing", clause, notBound, without("cnf"))
	m.claims("cnf in capitals", clause, notBound, renamed("cnf", "CNF"))
	m.claims("cnf missing, thumbprint among the claims", clause, notBound, without("cnf"), with("x5t#S256", good))
	header := m.goodHeader().text([]edit{with("cnf", `{"x5t#S256":`+good+"}"), with("x5t#S256", good)})
	m.token("cnf in the header", clause, notBound,
		m.issuer.Sign(m.tb, header, m.goodClaims().text([]edit{without("cnf")})))
}

// thumbprints is RS-04: the right method with a wrong value.
func (m *museum) thumbprints() {
	const clause = "RS-04: RFC 8705, Section 3.1"
	thumbprint := m.peer.Thumbprint()
	good := thumbprint.String()
	bound := func(name, reason, value string) {
		m.claims("thumbprint "+name, clause, reason, with("cnf", `{"x5t#S256":`+quote(value)+"}"))
	}
	for name, value := range sorted(map[string]string{
		"empty": "", "padded": good + "=", "in hexadecimal": hex.EncodeToString(thumbprint[:]),
		"cut off": good[:42], "too long": good + "A",
		"of 20 bytes":           base64.RawURLEncoding.EncodeToString(thumbprint[:20]),
		"of 64 bytes":           base64.RawURLEncoding.EncodeToString(make([]byte, 64)),
		"with a newline behind": good + `\n`, "with a newline within": good[:20] + `\n` + good[20:],
		"with a space before": " " + good,
		"with a space behind": good + " ", "with NUL behind": good + `\u0000`, "a wildcard": "*",
		"all zero":           strings.Repeat("A", 43),
		"with trailing bits": nextLetter(good), "with its method": "sha-256:" + good, "twice": good + good,
		"with colons":                colons(thumbprint[:]),
		"in standard base64, padded": base64.StdEncoding.EncodeToString(thumbprint[:]),
		"beyond ASCII":               "é" + good[2:], "cut to one letter": good[:1],
	}) {
		bound(name, notBound, value)
	}
	bound("in standard base64", notBound, "+/"+good[2:])
	certificate := m.peer.Certificate()
	for name, data := range sorted(map[string][]byte{
		"of the key alone":   certificate.RawSubjectPublicKeyInfo,
		"of the signed part": certificate.RawTBSCertificate, "of the subject": certificate.RawSubject,
		"of nothing": nil, "of its base64": []byte(base64.StdEncoding.EncodeToString(certificate.Raw)),
		"of the thumbprint": thumbprint[:],
	}) {
		bound(name, mismatch, hashed(data))
	}
	turned := thumbprint
	turned[31] ^= 1
	bound("of which one bit is turned", mismatch, turned.String())
	bound("in other case, one letter", mismatch, otherCase(good, 1))
	bound("in other case, all letters", mismatch, otherCase(good[:42], 42)+good[42:])
	bound("in lower case", mismatch, strings.ToLower(good[:42])+good[42:])
	bound("in upper case", mismatch, strings.ToUpper(good[:42])+good[42:])
}

// otherCase changes the case of the first letters, so many as there are.
func otherCase(s string, letters int) string {
	return strings.Map(func(r rune) rune {
		switch {
		case letters == 0 || !unicode.IsLetter(r):
			return r
		case unicode.IsUpper(r):
			letters--
			return unicode.ToLower(r)
		}
		letters--
		return unicode.ToUpper(r)
	}, s)
}

func colons(data []byte) string {
	list := make([]string, len(data))
	for i, b := range data {
		list[i] = fmt.Sprintf("%02X", b)
	}
	return strings.Join(list, ":")
}
