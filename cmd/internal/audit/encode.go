// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"maps"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"
)

// encoder appends the members of one JSON object. It is written by hand because it runs for every token: it allocates
// nothing but the order of Detail's keys.
type encoder struct {
	b         []byte
	truncated bool
}

// maxValues is how long an object may become before the strings that follow are left out, so that a line is at most
// MaxLine whatever it is given: what is added to it by one more string is less than what remains.
const maxValues = MaxLine / 4

// event appends the members of a record behind its sequence number, each with its comma.
func (w *encoder) event(e *Event) {
	w.b = append(w.b, `,"time":`...)
	w.moment(e.Time)
	w.string("id", e.ID)
	w.string("event", e.Name)
	w.string("outcome", e.Outcome)
	w.string("reason", e.Reason)
	w.string("client", e.Client)
	w.string("actor", e.Actor)
	w.string("x5t#S256", e.Thumbprint)
	w.string("correlation", e.Correlation)
	w.string("jti", e.TokenID)
	w.string("serial", e.Serial)
	w.string("resource", e.Resource)
	w.list("scope", e.Scope)
	w.list("aud", e.Audience)
	if !e.Expires.IsZero() {
		w.time("expires", e.Expires)
	}
	w.object("detail", e.Detail)
	w.count("count", e.Count)
	w.count("version", int(e.Version))
}

// end appends whether something was cut.
func (w *encoder) end() {
	if w.truncated {
		w.member("truncated")
		w.b = append(w.b, "true"...)
	}
}

// member begins a member.
func (w *encoder) member(name string) {
	if w.b[len(w.b)-1] != '{' {
		w.b = append(w.b, ',')
	}
	w.b = append(w.b, '"')
	w.b = append(w.b, name...)
	w.b = append(w.b, '"', ':')
}

// string appends a member unless it is empty. Its name is one of ours and needs no escapes.
func (w *encoder) string(name, value string) {
	if value == "" {
		return
	}
	w.member(name)
	w.value(value)
}

// time appends a member in RFC 3339 with microseconds, UTC. The year is kept in four digits.
func (w *encoder) time(name string, t time.Time) {
	w.member(name)
	w.moment(t)
}

// moment appends a time as timeFormat has it. It is done by hand because there are two in the record of every token.
func (w *encoder) moment(t time.Time) {
	t = t.UTC()
	year, month, day := t.Date()
	if year < 0 || year > 9999 {
		t = time.Time{}
		year, month, day = t.Date()
	}
	hour, minute, second := t.Clock()
	w.b = append(w.b, '"')
	w.digits(year, 4)
	w.b = append(w.b, '-')
	w.digits(int(month), 2)
	w.b = append(w.b, '-')
	w.digits(day, 2)
	w.b = append(w.b, 'T')
	w.digits(hour, 2)
	w.b = append(w.b, ':')
	w.digits(minute, 2)
	w.b = append(w.b, ':')
	w.digits(second, 2)
	w.b = append(w.b, '.')
	w.digits(t.Nanosecond()/1000, 6)
	w.b = append(w.b, 'Z', '"')
}

// digits appends a number in n digits, at most eight.
func (w *encoder) digits(v, n int) {
	var text [8]byte
	for i := n - 1; i >= 0; i-- {
		text[i] = byte('0' + v%10)
		v /= 10
	}
	w.b = append(w.b, text[:n]...)
}

// count appends a number unless it is 0.
func (w *encoder) count(name string, n int) {
	if n != 0 {
		w.member(name)
		w.b = strconv.AppendInt(w.b, int64(n), 10)
	}
}

func (w *encoder) list(name string, values []string) {
	if len(values) == 0 {
		return
	}
	w.member(name)
	w.b = append(w.b, '[')
	for i, v := range values[:w.bound(len(values))] {
		if len(w.b) > maxValues {
			w.truncated = true
			break
		}
		if i > 0 {
			w.b = append(w.b, ',')
		}
		w.value(v)
	}
	w.b = append(w.b, ']')
}

func (w *encoder) object(name string, values map[string]string) {
	if len(values) == 0 {
		return
	}
	w.member(name)
	w.b = append(w.b, '{')
	keys := slices.Sorted(maps.Keys(values))
	for i, k := range keys[:w.bound(len(keys))] {
		if len(w.b) > maxValues {
			w.truncated = true
			break
		}
		if i > 0 {
			w.b = append(w.b, ',')
		}
		w.value(k)
		w.b = append(w.b, ':')
		w.value(values[k])
	}
	w.b = append(w.b, '}')
}

// bound returns how many of n entries are written.
func (w *encoder) bound(n int) int {
	if n > MaxList {
		w.truncated = true
	}
	return min(n, MaxList)
}

const hexDigits = "0123456789abcdef"

// value appends a JSON string (RFC 8259, Section 7). U+2028 and U+2029 are escaped as well, since some readers take
// them for the end of a line; so is U+007F, for terminals.
func (w *encoder) value(s string) {
	s = w.cut(s)
	if len(w.b) > maxValues && s != "" {
		s, w.truncated = "", true
	}
	w.b = append(w.b, '"')
	done := 0 // s[:done] is written
	for i := 0; i < len(s); {
		size := 1
		c := rune(s[i])
		if ' ' <= c && c < 0x7f && c != '"' && c != '\\' { // as nearly everything is
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			c, size = utf8.DecodeRuneInString(s[i:])
		}
		if plain(c, size) {
			i += size
			continue
		}
		w.b = append(w.b, s[done:i]...)
		w.escape(c)
		i += size
		done = i
	}
	w.b = append(w.b, s[done:]...)
	w.b = append(w.b, '"')
}

// plain reports whether a character stands for itself; an invalid byte decodes to RuneError of size 1.
func plain(c rune, size int) bool {
	switch c {
	case '"', '\\', 0x7f, '\u2028', '\u2029':
		return false
	case utf8.RuneError:
		return size > 1
	}
	return c >= ' '
}

func (w *encoder) escape(c rune) {
	switch c {
	case '"', '\\':
		w.b = append(w.b, '\\', byte(c))
	default:
		w.b = append(w.b, '\\', 'u', hexDigits[c>>12&0xf], hexDigits[c>>8&0xf], hexDigits[c>>4&0xf], hexDigits[c&0xf])
	}
}

// cut bounds a string, at a character.
func (w *encoder) cut(s string) string {
	if len(s) <= MaxString {
		return s
	}
	w.truncated = true
	end := MaxString
	for back := 0; back < utf8.UTFMax && !utf8.RuneStart(s[end]); back++ {
		end--
	}
	return s[:end]
}
