// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"encoding/base64"
	"strconv"
	"unicode/utf8"

	"github.com/certbound/certbound/mtls"
)

// claims is what a token says: RFC 9068, Section 2.2, and the binding of RFC 8705, Section 3.1.
type claims struct {
	issuer     string
	clientID   string
	audience   []string
	scope      []string
	id         string
	issued     int64 // seconds since 1970
	expires    int64
	thumbprint mtls.Thumbprint
}

// size is enough for the claims as JSON unless something in them must be escaped.
func (c *claims) size() int {
	n := 256 + len(c.issuer) + 2*len(c.clientID)
	for _, a := range c.audience {
		n += len(a) + 3
	}
	for _, s := range c.scope {
		n += len(s) + 1
	}
	return n
}

// appendJSON writes by hand what encoding/json would take a reflection and many allocations for.
func (c *claims) appendJSON(b []byte) []byte {
	b = append(b, `{"iss":`...)
	b = appendString(b, c.issuer)
	// Without a user, the subject is the client (RFC 9068, Section 2.2).
	b = append(b, `,"sub":`...)
	b = appendString(b, c.clientID)
	b = append(b, `,"client_id":`...)
	b = appendString(b, c.clientID)
	b = append(b, `,"aud":`...)
	b = appendAudience(b, c.audience)
	b = append(b, `,"iat":`...)
	b = strconv.AppendInt(b, c.issued, 10)
	b = append(b, `,"exp":`...)
	b = strconv.AppendInt(b, c.expires, 10)
	b = append(b, `,"jti":`...)
	b = appendString(b, c.id)
	b = appendScope(b, c.scope)
	b = append(b, `,"cnf":{"x5t#S256":"`...)
	b = base64.RawURLEncoding.AppendEncode(b, c.thumbprint[:])
	return append(b, `"}}`...)
}

// appendAudience writes a string for one audience and an array for several (RFC 7519, Section 4.1.3).
func appendAudience(b []byte, audience []string) []byte {
	if len(audience) == 1 {
		return appendString(b, audience[0])
	}
	b = append(b, '[')
	for i, a := range audience {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, a)
	}
	return append(b, ']')
}

// appendScope writes the member with its leading comma, or nothing: there is no empty scope (RFC 6749,
// Section 3.3).
func appendScope(b []byte, scope []string) []byte {
	if len(scope) == 0 {
		return b
	}
	b = append(b, `,"scope":"`...)
	for i, s := range scope {
		if i > 0 {
			b = append(b, ' ')
		}
		b = appendEscaped(b, s)
	}
	return append(b, '"')
}

// appendString writes s as a JSON string (RFC 8259, Section 7).
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	b = appendEscaped(b, s)
	return append(b, '"')
}

// appendEscaped writes s as the inside of a JSON string. What is not UTF-8 becomes U+FFFD, as encoding/json does it.
func appendEscaped(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && n == 1 {
				b = append(b, s[start:i]...)
				b = append(b, "\ufffd"...)
				start = i + 1
			}
			i += n
			continue
		}
		if c < ' ' || c == '"' || c == '\\' {
			b = append(b, s[start:i]...)
			if c < ' ' {
				b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			} else {
				b = append(b, '\\', c)
			}
			start = i + 1
		}
		i++
	}
	return append(b, s[start:]...)
}
