// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package tokens

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens/internal/jose"
)

// TokenType is the "typ" of the tokens we issue and accept (RFC 9068, Section 2.1).
const TokenType = "at+jwt"

// Claims are the claims of an access token (RFC 9068, Section 2.2) that is bound to a certificate (RFC 8705,
// Section 3.1). Where Verifier.Verify returns them, every check has passed.
type Claims struct {
	Issuer     string
	Subject    string // whom the token speaks for; the client itself when it equals ClientID
	ClientID   string
	ID         string // "jti"
	Audience   []string
	Scope      []string
	IssuedAt   time.Time // whole seconds
	Expires    time.Time // whole seconds
	Thumbprint mtls.Thumbprint
}

// HasScope reports whether the token carries the scope, compared exactly (RFC 6749, Section 3.3).
func (c *Claims) HasScope(scope string) bool { return slices.Contains(c.Scope, scope) }

// ForClient reports whether the token speaks for the client itself and not for somebody else, so that a client's
// token is not taken for a user's (RFC 9068, Section 5).
func (c *Claims) ForClient() bool { return c.Subject == c.ClientID }

// payload is a claims set as it stands in the token: the types are right, nothing else has been judged.
type payload struct {
	Claims
	notBefore time.Time // zero without "nbf"
	cnf       any       // the "cnf" member whatever its type; nil without one
}

// decodeClaims reads a claims set strictly: the members that RFC 9068, Section 2.2 requires must be there with
// their types, names are exact and not repeated, times are whole seconds. Members we do not know are ignored
// (RFC 7519, Section 4). The error names a claim but never its value.
func decodeClaims(data []byte) (*payload, error) {
	object, err := jose.DecodeObject(data)
	if err != nil {
		return nil, err
	}
	r := reader{object: object}
	p := &payload{cnf: object["cnf"]}
	p.Issuer = r.text("iss")
	p.Subject = r.text("sub")
	p.ClientID = r.text("client_id")
	p.ID = r.text("jti")
	p.Audience = r.audience()
	p.Scope = r.scope()
	p.IssuedAt = r.date("iat", true)
	p.Expires = r.date("exp", true)
	p.notBefore = r.date("nbf", false)
	return p, r.err
}

// reader takes typed members out of an object and keeps the first error.
type reader struct {
	object jose.Object
	err    error
}

func (r *reader) fail(name, problem string) {
	if r.err == nil {
		r.err = fmt.Errorf("claim %s %s", name, problem)
	}
}

func (r *reader) text(name string) string {
	value, ok := r.object[name].(string)
	if !ok || value == "" {
		r.fail(name, "is not a non-empty string")
	}
	return value
}

// audience reads "aud": a string or an array of strings (RFC 7519, Section 4.1.3).
func (r *reader) audience() []string {
	if list, ok := r.object["aud"].([]any); ok {
		audience := make([]string, 0, len(list))
		for _, element := range list {
			value, ok := element.(string)
			if !ok {
				r.fail("aud", "has an element that is not a string")
			}
			audience = append(audience, value)
		}
		return audience
	}
	return []string{r.text("aud")}
}

func (r *reader) scope() []string {
	member, present := r.object["scope"]
	if !present {
		return nil
	}
	value, ok := member.(string)
	if !ok {
		r.fail("scope", "is not a string")
		return nil
	}
	scope, err := ParseScope(value)
	if err != nil {
		r.fail("scope", "does not follow its grammar")
	}
	return scope
}

// date reads a NumericDate. RFC 7519, Section 2 allows fractions; nobody issues them, and whole seconds of at most
// 12 digits leave no room for numbers that overflow or round. Fractions, exponents, signs and strings are refused.
func (r *reader) date(name string, required bool) time.Time {
	member, present := r.object[name]
	if !present && !required {
		return time.Time{}
	}
	number, ok := member.(json.Number)
	if !ok || len(number) > 12 || strings.Trim(string(number), "0123456789") != "" {
		r.fail(name, "is not a whole number of seconds")
		return time.Time{}
	}
	seconds, err := strconv.ParseInt(string(number), 10, 64)
	if err != nil {
		r.fail(name, "is not a whole number of seconds")
	}
	return time.Unix(seconds, 0)
}

// binding returns the thumbprint of a "cnf" that confirms by certificate and by nothing else. A token that names a
// second proof, for example "jkt", asks for a check that we do not make, so it is refused and not half checked
// (RFC 7800, Section 3.1; RFC 8705, Section 3.1).
func binding(cnf any) (mtls.Thumbprint, error) {
	object, ok := cnf.(jose.Object)
	if !ok {
		return mtls.Thumbprint{}, errors.New("claim cnf is not an object")
	}
	value, ok := object["x5t#S256"].(string)
	if !ok || len(object) != 1 {
		return mtls.Thumbprint{}, errors.New("claim cnf is not exactly an x5t#S256")
	}
	return mtls.ParseThumbprint(value)
}

// ParseScope splits a scope value into its tokens (RFC 6749, Section 3.3: one space between tokens of printable
// ASCII without quotes and backslashes). An empty value has no tokens. Tokens may repeat; order is kept.
func ParseScope(value string) ([]string, error) {
	if value == "" {
		return nil, nil
	}
	scope := strings.Split(value, " ")
	for _, token := range scope {
		if !ValidScope(token) {
			return nil, errors.New("tokens: malformed scope")
		}
	}
	return scope, nil
}

// ValidScope reports whether s is one scope-token of RFC 6749, Section 3.3.
func ValidScope(s string) bool {
	for i := range len(s) {
		if s[i] <= 0x20 || s[i] > 0x7e || s[i] == '"' || s[i] == '\\' {
			return false
		}
	}
	return s != ""
}
