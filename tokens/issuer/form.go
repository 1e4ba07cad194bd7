// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/certbound/certbound/tokens"
)

// Bounds of a request body, well above any honest request.
const (
	MaxBodyBytes  = 16 << 10
	maxParameters = 64
	maxClientID   = 2048 // a SPIFFE ID may be this long
)

// form is a request body of RFC 6749, Appendix B. A value that is empty counts as absent (RFC 6749, Section 3.2).
type form struct {
	grantType string
	clientID  string
	scope     string
	resources []string
	token     string // what an endpoint other than the token endpoint is asked about
	// secret says that another authentication method was tried in the body (RFC 6749, Section 2.3.1).
	secret bool
	// assertion and assertionType are the client's (RFC 7521, Section 4.2).
	assertion, assertionType string
}

// parseForm reads a body more strictly than net/url does: every percent-encoding must be one, the outcome must be UTF-8
// without NUL, and nothing may be said twice, whether we know it or not. Only resource (RFC 8707, Section 2) and
// audience (RFC 8693, Section 2.1; ignored here) may be repeated. Parameters that we do not know are ignored.
func parseForm(body []byte) (form, *tokens.Error) {
	var (
		f      form
		seen   [maxParameters]string
		number int
	)
	for rest := string(body); rest != ""; {
		var pair string
		pair, rest, _ = strings.Cut(rest, "&")
		if pair == "" {
			continue
		}
		rawName, rawValue, _ := strings.Cut(pair, "=")
		name, ok := decodeText(rawName)
		value, ok2 := decodeText(rawValue)
		if !ok || !ok2 {
			return form{}, refusal(tokens.CodeInvalidRequest, "malformed_encoding",
				"the body is not form-urlencoded UTF-8 text")
		}
		if number == maxParameters {
			return form{}, refusal(tokens.CodeInvalidRequest, "too_many_parameters", "too many parameters")
		}
		if name != "resource" && name != "audience" && slices.Contains(seen[:number], name) {
			return form{}, refusal(tokens.CodeInvalidRequest, "repeated_parameter", "a parameter is repeated")
		}
		seen[number] = name
		number++
		f.set(name, value)
	}
	// What outlives the request must not keep the whole body in memory.
	f.clientID = strings.Clone(f.clientID)
	return f, nil
}

func (f *form) set(name, value string) {
	if value == "" {
		return
	}
	switch name {
	case "grant_type":
		f.grantType = value
	case "client_id":
		f.clientID = value
	case "scope":
		f.scope = value
	case "token":
		f.token = value
	case "resource":
		f.resources = append(f.resources, value)
	case "client_assertion":
		f.assertion = value
	case "client_assertion_type":
		f.assertionType = value
	case "client_secret":
		f.secret = true
	}
}

// scopeTokens splits the scope parameter; two spaces in a row make an empty token, which is refused later.
func (f *form) scopeTokens() []string {
	if f.scope == "" {
		return nil
	}
	return strings.Split(f.scope, " ")
}

// isClientID reports whether s can be a client_id at all: printable ASCII (RFC 6749, Appendix A.1), of bounded length.
func isClientID(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return s != "" && len(s) <= maxClientID
}

// decodeText undoes form-urlencoding; it refuses a percent sign without two hexadecimal digits, NUL and what is not
// UTF-8. What stands for itself is returned as it is.
func decodeText(raw string) (string, bool) {
	text := raw
	if strings.ContainsAny(raw, "%+") {
		out := make([]byte, 0, len(raw))
		for i := 0; i < len(raw); i++ {
			switch c := raw[i]; c {
			case '+':
				out = append(out, ' ')
			case '%':
				if i+2 >= len(raw) {
					return "", false
				}
				high, low := unhex(raw[i+1]), unhex(raw[i+2])
				if high < 0 || low < 0 {
					return "", false
				}
				out = append(out, byte(high<<4|low))
				i += 2
			default:
				out = append(out, c)
			}
		}
		text = string(out)
	}
	return text, utf8.ValidString(text) && strings.IndexByte(text, 0) < 0
}

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
