// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package tokens

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens/internal/jose"
)

// DenyType is the "typ" of a page of the deny feed. It tells the page from every token that the same keys sign
// (RFC 8725, Section 3.11).
const DenyType = "certbound-deny+jwt"

const (
	// MaxDenyPageEntries bounds the entries of a page, MaxDenyPageBytes their JSON; whoever makes one ends it before.
	MaxDenyPageEntries = 1500
	MaxDenyPageBytes   = 192 << 10
	// maxDenyDocument bounds a signed page: base64, and what stands beside the entries.
	maxDenyDocument = 320 << 10
)

// DenyPage is a page of the deny feed, the payload of a JWT: all that was denied behind From and up to Seq.
type DenyPage struct {
	Issuer   string    // "iss"
	Audience string    // "aud": the feed's own identifier
	IssuedAt time.Time // "iat", whole seconds
	// From and Seq are positions. A page says everything about those behind From up to and including Seq that has not ended,
	// and nothing about others.
	From, Seq int64
	// Head is the newest position when the page was made: more pages follow until Seq is Head.
	Head    int64
	Entries []Denial
}

// AppendJSON appends the page as JSON. Times are whole seconds, an end and a moment before which are rounded up.
func (p *DenyPage) AppendJSON(b []byte) []byte {
	b = append(b, `{"iss":`...)
	b = appendText(b, p.Issuer)
	b = append(b, `,"aud":`...)
	b = appendText(b, p.Audience)
	b = appendInt(b, `,"iat":`, p.IssuedAt.Unix())
	b = appendInt(b, `,"from":`, p.From)
	b = appendInt(b, `,"seq":`, p.Seq)
	b = appendInt(b, `,"head":`, p.Head)
	b = append(b, `,"entries":[`...)
	for i := range p.Entries {
		if i > 0 {
			b = append(b, ',')
		}
		b = p.Entries[i].AppendJSON(b)
	}
	return append(b, `]}`...)
}

// AppendJSON appends the denial as it stands in a page.
func (d *Denial) AppendJSON(b []byte) []byte {
	switch {
	case d.TokenID != "":
		b = appendText(append(b, `{"jti":`...), d.TokenID)
	case d.KeyID != "":
		b = appendText(append(b, `{"kid":`...), d.KeyID)
	case d.ClientID != "":
		b = appendText(append(b, `{"client_id":`...), d.ClientID)
		b = appendInt(b, `,"iat_before":`, secondsUp(d.IssuedBefore))
	default:
		b = appendText(append(b, `{"x5t#S256":`...), d.Thumbprint.String())
	}
	b = appendInt(b, `,"until":`, secondsUp(d.Until))
	return append(b, '}')
}

func appendInt(b []byte, name string, n int64) []byte {
	return strconv.AppendInt(append(b, name...), n, 10)
}

func appendText(b []byte, s string) []byte {
	text, _ := json.Marshal(s) // a string cannot fail
	return append(b, text...)
}

func secondsUp(t time.Time) int64 {
	if t.Nanosecond() > 0 {
		return t.Unix() + 1
	}
	return t.Unix()
}

// readDenyPage reads a page. Everything in it must be understood: a page of which a part were passed over could say less
// than it means. Members beside those of DenyPage are ignored, entries and their members are not.
func readDenyPage(payload []byte) (*DenyPage, error) {
	object, err := jose.DecodeObject(payload)
	if err != nil {
		return nil, err
	}
	r := reader{object: object}
	p := &DenyPage{Issuer: r.text("iss"), Audience: r.text("aud"), IssuedAt: r.date("iat", true)}
	p.From, p.Seq, p.Head = r.position("from"), r.position("seq"), r.position("head")
	list, ok := object["entries"].([]any)
	if !ok || len(list) > MaxDenyPageEntries {
		r.fail("entries", "is not a list, or too long a one")
	}
	if r.err != nil {
		return nil, r.err
	}
	if p.From > p.Seq || p.Seq > p.Head {
		return nil, errors.New("the positions are in no order")
	}
	p.Entries = make([]Denial, 0, len(list))
	for i, member := range list {
		d, err := readDenial(member)
		if err != nil {
			return nil, fmt.Errorf("entry %d: %w", i, err)
		}
		p.Entries = append(p.Entries, d)
	}
	return p, nil
}

// position reads a number that is not negative and fits an int64.
func (r *reader) position(name string) int64 {
	number, _ := r.object[name].(json.Number) // anything else is an empty one
	n, err := strconv.ParseUint(string(number), 10, 63)
	if err != nil {
		r.fail(name, "is not a position")
	}
	return int64(n)
}

func readDenial(member any) (Denial, error) {
	object, ok := member.(jose.Object)
	if !ok {
		return Denial{}, errors.New("not an object")
	}
	var d Denial
	r := reader{object: object}
	for name := range object {
		switch name {
		case "jti":
			d.TokenID = r.text(name)
		case "kid":
			d.KeyID = r.text(name)
		case "client_id":
			d.ClientID = r.text(name)
		case "x5t#S256":
			t, err := mtls.ParseThumbprint(r.text(name))
			if err != nil {
				r.fail(name, "is not a thumbprint")
			}
			d.Thumbprint = t
		case "iat_before":
			d.IssuedBefore = r.date(name, true)
		case "until":
			d.Until = r.date(name, true)
		default:
			r.fail(name, "is not known here")
		}
	}
	if r.err != nil {
		return Denial{}, r.err
	}
	return d, d.Check()
}
