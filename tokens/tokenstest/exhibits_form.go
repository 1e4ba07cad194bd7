// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package tokenstest

import (
	"encoding/base64"
	"fmt"
	"strings"
)

// parts is RS-12 and RS-25: not three parts, or another serialisation.
func (m *museum) parts() {
	const clause = "RS-12: RFC 7515, Section 7.1"
	part := strings.Split(m.good(), ".")
	header, payload, signature := part[0], part[1], part[2]
	for name, raw := range sorted(map[string]string{
		"one part": header, "two parts": header + "." + payload, "four parts": m.good() + "." + signature,
		"one dot": ".", "two dots": "..",
		"ten dots": "..........", "dot before": "." + m.good(), "dot behind": m.good() + ".",
		"header empty": "." + payload + "." + signature, "one letter": "x",
		"two tokens with a dot between":   m.good() + "." + m.good(),
		"two tokens with nothing between": m.good() + m.good(),
	}) {
		m.token(name, clause, malformed, raw)
	}
	m.token("payload empty", clause, badSignature, header+".."+signature)
	m.token("payload empty and signed", clause, malformedClaims, m.signed(header+"."))
	const other = "RS-12: RFC 7515, Section 7.2"
	m.noToken("JSON serialisation, flattened", other,
		fmt.Sprintf(`{"protected":%q,"payload":%q,"signature":%q}`, header, payload, signature))
	m.noToken("JSON serialisation, general", other,
		fmt.Sprintf(`{"payload":%q,"signatures":[{"protected":%q,"signature":%q}]}`, payload, header, signature))
	m.noToken("JSON serialisation with good parts", other, fmt.Sprintf(`{"x":"%s"}`, m.good()))
	const wrapped = "RS-25: RFC 7516, Section 7.1; RFC 7519, Section 5.2"
	m.token("five parts", wrapped, malformed, strings.Join([]string{header, "", payload, signature, signature}, "."))
	m.token("five parts with the header of an encrypted token", wrapped, malformed, strings.Join([]string{
		encode(`{"alg":"dir","enc":"A256GCM","typ":"at+jwt"}`), "", payload, signature, signature}, "."))
	m.payload("token within a token", wrapped, malformedClaims, m.good())
	m.token("encrypted header on three parts", wrapped, malformed,
		m.signed(m.input(with("alg", `"dir"`), with("enc", `"A256GCM"`))))
}

// alphabets is the rest of RS-12: base64url as it must not be. Where it could be read nevertheless, it is signed.
func (m *museum) alphabets() {
	const clause = "RS-12: RFC 7515, Section 2; RFC 4648, Sections 3.2, 3.3 and 3.5"
	part := strings.Split(m.good(), ".")
	header, payload, signature := part[0], part[1], part[2]
	m.noToken("padding behind the header, signed", clause, m.signed(header+"=."+payload))
	m.noToken("padding behind the payload, signed", clause, m.signed(header+"."+payload+"=="))
	m.token("padding behind the signature", clause, malformed, m.good()+"==")
	m.token("padding behind the signature, more than there can be", clause, malformed, m.good()+"========")
	m.token("padding alone", clause, malformed, "..=")
	for name, space := range sorted(map[string]string{
		"space": " ", "tab": "\t", "newline": "\n", "carriage return": "\r", "CRLF": "\r\n", "NUL": "\x00",
		"vertical tab":   "\v",
		"no-break space": "\u00a0", "byte order mark": "\ufeff", "byte that is not UTF-8": "\xff", "comma": ",",
		"percent":        "%20",
		"quotation mark": `"`, "semicolon": ";", "backslash": `\`, "non-ASCII letter": "é", "other dot": "。",
	}) {
		m.noToken(name+" before", clause, space+m.good())
		m.noToken(name+" behind", clause, m.good()+space)
		m.noToken(name+" within the signature", clause, header+"."+payload+"."+signature[:40]+space+signature[40:])
		m.noToken(name+" within the header, signed", clause, m.signed(header[:8]+space+header[8:]+"."+payload))
		m.noToken(name+" within the payload, signed", clause, m.signed(header+"."+payload[:8]+space+payload[8:]))
		m.noToken(name+" between two tokens", clause, m.good()+space+m.good())
	}
	m.noToken("dots as per cent", clause, strings.ReplaceAll(m.good(), ".", "%2E"))
	m.noToken("the scheme once more", clause, "Bearer "+m.good())
	m.noToken("in quotation marks", clause, `"`+m.good()+`"`)
	m.noToken("as a parameter", clause, `token="`+m.good()+`"`)
	m.standardBase64(clause)
	m.trailingBits(clause)
}

// standardBase64 writes + and / for - and _ where there are any.
func (m *museum) standardBase64(clause string) {
	standard := strings.NewReplacer("-", "+", "_", "/")
	raw := m.good()
	for !strings.ContainsAny(raw[strings.LastIndex(raw, "."):], "-_") { // one signature in sixteen has none
		raw = m.good()
	}
	last := strings.LastIndex(raw, ".")
	m.token("standard base64 in the signature", clause, malformed, raw[:last]+standard.Replace(raw[last:]))
	header := base64.RawStdEncoding.EncodeToString([]byte(m.goodHeader().text([]edit{with("x", `"???>>>"`)})))
	m.token("standard base64 in the header, signed", clause, malformed,
		m.signed(header+"."+encode(m.goodClaims().text(nil))))
	claims := base64.RawStdEncoding.EncodeToString([]byte(m.goodClaims().text([]edit{with("x", `"???>>>"`)})))
	m.token("standard base64 in the payload, signed", clause, malformed,
		m.signed(encode(m.goodHeader().text(nil))+"."+claims))
}

// trailingBits sets the bits behind the last byte, which decoders tend to throw away.
func (m *museum) trailingBits(clause string) {
	raw := m.good()
	m.token("trailing bits of the signature not zero", clause, malformed, nextLetter(raw))
	header, claims := m.goodHeader(), m.goodClaims()
	for len(encode(header.text(nil)))%4 == 0 {
		header = header.longer()
	}
	for len(encode(claims.text(nil)))%4 == 0 {
		claims = claims.longer()
	}
	h, c := encode(header.text(nil)), encode(claims.text(nil))
	m.token("parts of a length that has trailing bits, all zero", clause, "", m.signed(h+"."+c))
	m.token("trailing bits of the header not zero, signed", clause, malformed, m.signed(nextLetter(h)+"."+c))
	m.token("trailing bits of the payload not zero, signed", clause, malformed, m.signed(h+"."+nextLetter(c)))
	m.token("length of the header that base64 does not have, signed", clause, malformed, m.signed(h[:len(h)/4*4]+"A."+c))
	m.token("length of the signature that base64 does not have", clause, malformed, raw[:len(raw)-1])
}

// longer makes the last member a digit or a letter longer, so that the text is one byte longer.
func (o members) longer() members {
	if last := o[len(o)-1]; last.name == "x" {
		return with("x", last.value+"1")(o)
	}
	return append(o, member{"x", "1"})
}

// nextLetter replaces the last letter, whose lowest bit must be zero, by the one with that bit set.
func nextLetter(s string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := len(s) - 1
	return s[:last] + string(alphabet[strings.IndexByte(alphabet, s[last])|1])
}

// cuts are tokens that are truncated or extended anywhere. The header is read before the signature is verified: without
// a header that can be read, a token is malformed.
func (m *museum) cuts() {
	const clause = "RS-12: RFC 7515, Section 5.2"
	raw := m.good()
	first, last := strings.Index(raw, "."), strings.LastIndex(raw, ".")
	end := len(raw) - 2 // behind it there would be trailing bits
	add := func(n int, what, reason, raw string) {
		m.token(fmt.Sprintf("%d letters %s", n, what), clause, reason, raw)
	}
	for _, n := range []int{1, 2, 3, 4, 8, 40} {
		add(n, "of the header cut off before", malformed, raw[n:])
		add(n, "of the header cut off behind", malformed, raw[:first-n]+raw[first:])
		add(n, "written before", malformed, strings.Repeat("e", n)+raw)
	}
	for _, n := range []int{4, 8, 40} {
		letters := strings.Repeat("A", n)
		add(n, "of the payload cut off before", badSignature, raw[:first+1]+raw[first+1+n:])
		add(n, "written before the payload", badSignature, raw[:first+1]+letters+raw[first+1:])
		add(n, "of the signature cut off before", badSignature, raw[:last+1]+raw[last+1+n:])
		add(n, "written before the signature", badSignature, raw[:last+1]+letters+raw[last+1:])
		add(n, "of the signature replaced", badSignature, raw[:end-n]+letters+raw[end:])
		add(n, "written within the signature", badSignature, raw[:end]+letters+raw[end:])
	}
	for eighth := range 8 {
		cut := max(1, min(last, eighth*len(raw)/8))
		m.token(fmt.Sprintf("cut off after %d eighths", eighth), clause, malformed, raw[:cut])
	}
}

// sizes is RS-27: what must be refused for its size, before it costs anything.
func (m *museum) sizes() {
	const clause = "RS-27: RFC 8725, Section 3.2"
	for name, size := range sorted(map[string]int{"a million": 1e6, "1 MiB": 1 << 20, "20 KiB": 20 << 10}) {
		m.noToken(name+" dots", clause, strings.Repeat(".", size))
		m.noToken(name+" letters", clause, strings.Repeat("A", size))
		long := with("x", quote(strings.Repeat("x", size)))
		m.noToken(name+" in the header, signed", clause, m.signed(m.input(long)))
		m.noToken(name+" in the payload, signed", clause,
			m.issuer.Sign(m.tb, m.goodHeader().text(nil), m.goodClaims().text([]edit{long})))
		m.noToken(name+" in the signature", clause, m.good()+strings.Repeat("A", size))
	}
	for _, size := range []int{14 << 10, 16<<10 + 1} {
		m.token(fmt.Sprintf("%d dots", size), clause, malformed, strings.Repeat(".", size))
		m.token(fmt.Sprintf("%d letters", size), clause, malformed, strings.Repeat("A", size))
	}
	m.header("header of more than 2 KiB", clause, malformed, with("x", quote(strings.Repeat("x", 2<<10))))
	m.header("header of 1 KiB", clause, "", with("x", quote(strings.Repeat("x", 1<<10))))
	m.claims("token of more than 16 KiB", clause, malformed, with("x", quote(strings.Repeat("x", 12<<10))))
	m.claims("token of 14 KiB", clause, "", with("x", quote(strings.Repeat("x", 10<<10))))
	const deep = "RS-27: RFC 8259, Section 9"
	arrays := func(depth int) edit { return with("x", strings.Repeat("[", depth)+strings.Repeat("]", depth)) }
	objects := func(depth int) edit {
		return with("x", strings.Repeat(`{"":`, depth)+"1"+strings.Repeat("}", depth))
	}
	for _, depth := range []int{8, 200} {
		m.header(fmt.Sprintf("%d arrays within the header", depth), deep, malformed, arrays(depth))
		m.header(fmt.Sprintf("%d objects within the header", depth), deep, malformed, objects(depth))
		m.claims(fmt.Sprintf("%d arrays within the claims", depth), deep, malformedClaims, arrays(depth))
		m.claims(fmt.Sprintf("%d objects within the claims", depth), deep, malformedClaims, objects(depth))
	}
	m.claims("5000 arrays within the claims", deep, malformedClaims, arrays(5000))
	m.claims("5000 arrays that are not closed", deep, malformedClaims, with("x", strings.Repeat("[", 5000)))
	m.claims("7 arrays within the claims", deep, "", arrays(7))
	m.header("7 objects within the header", deep, "", objects(7))
}

// documents are headers and payloads that are not a JSON object in UTF-8.
func (m *museum) documents() {
	const clause = "RFC 7519, Section 7.2; RFC 8725, Section 3.7"
	good, header := m.goodClaims().text(nil), m.goodHeader().text(nil)
	for name, change := range sorted(map[string]func(string) string{
		"nothing":                 func(string) string { return "" },
		"null":                    func(string) string { return "null" },
		"a number":                func(string) string { return "1" },
		"a string":                func(s string) string { return fmt.Sprintf("%q", s) },
		"an array":                func(s string) string { return "[" + s + "]" },
		"two objects":             func(s string) string { return s + "{}" },
		"letters behind":          func(s string) string { return s + "x" },
		"NUL behind":              func(s string) string { return s + "\x00" },
		"not closed":              func(s string) string { return s[:len(s)-1] },
		"a comma too many":        func(s string) string { return s[:len(s)-1] + ",}" },
		"a comment":               func(s string) string { return s[:len(s)-1] + "/**/}" },
		"apostrophes":             func(s string) string { return strings.ReplaceAll(s, `"`, "'") },
		"names without quotes":    func(s string) string { return s[:len(s)-1] + `,x:1}` },
		"a byte order mark":       func(s string) string { return "\ufeff" + s },
		"UTF-16":                  func(s string) string { return strings.Join(strings.Split(s, ""), "\x00") + "\x00" },
		"a value not in UTF-8":    func(s string) string { return s[:len(s)-1] + `,"x":"` + "\xff" + `"}` },
		"a name not in UTF-8":     func(s string) string { return s[:len(s)-1] + `,"` + "\xc3\x28" + `":1}` },
		"an overlong encoding":    func(s string) string { return s[:len(s)-1] + `,"x":"` + "\xc0\xaf" + `"}` },
		"a surrogate in UTF-8":    func(s string) string { return s[:len(s)-1] + `,"x":"` + "\xed\xa0\x80" + `"}` },
		"NUL within a string":     func(s string) string { return s[:len(s)-1] + `,"x":"` + "\x00" + `"}` },
		"newline within a string": func(s string) string { return s[:len(s)-1] + `,"x":"` + "\n" + `"}` },
		"NaN":                     func(s string) string { return s[:len(s)-1] + `,"x":NaN}` },
		"a number with a plus":    func(s string) string { return s[:len(s)-1] + `,"x":+1}` },
		"a number in hexadecimal": func(s string) string { return s[:len(s)-1] + `,"x":0x1}` },
	}) {
		m.payload("claims: "+name, clause, malformedClaims, change(good))
		m.token("header: "+name, clause, malformed, m.issuer.Sign(m.tb, change(header), good))
	}
	m.token("whitespace within header and claims, signed", "RFC 7519, Section 3: any whitespace that JSON allows", "",
		m.issuer.Sign(m.tb, " {\r\n"+header[1:]+"\t", " {\n"+good[1:]+"\n"))
}
