// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package tokenstest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/base64"
	"fmt"
	"iter"
	"maps"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens"
)

// Exhibit is a token with one defect. Everything else about it is good: issuer, audience, dates, and a signature of
// the issuer over exactly what is written, as far as the defect leaves that possible.
type Exhibit struct {
	// Name is the defect.
	Name string
	// Clause is what the defect offends, or what lets it pass.
	Clause string
	// Raw is what stands after "Bearer ".
	Raw string
	// Keys are what the verifier knows as the issuer's keys: its one key, unless the defect is in the keys.
	Keys tokens.StaticKeys
	// Code is what a guard of Audience must answer to the peer for which the museum was made: invalid_token; or
	// invalid_request, where Raw is no token by its characters or its size; or nothing, where the token is to be
	// accepted: these look wrong and are not, or show that those beside them are refused for their defect alone.
	Code string
	// Reason is the reason of the tokens.Error of a Verifier, whose code is invalid_token whatever Code is; empty
	// where the token is to be accepted.
	Reason string
	// Unsendable means that no header field of HTTP holds Raw as it is (RFC 9110, Section 5.5): it has control
	// characters, or whitespace at its end.
	Unsendable bool
}

// Verifier returns a Verifier for Audience that knows the exhibit's keys and nothing else.
func (e Exhibit) Verifier(tb testing.TB) *tokens.Verifier {
	tb.Helper()
	v, err := tokens.NewVerifier(tokens.VerifierConfig{Issuer: URL, Audience: Audience, Keys: e.Keys})
	if err != nil {
		tb.Fatalf("verifier for %q: %v", e.Name, err)
	}
	return v
}

// Museum returns tokens with one defect each, and some that only look like it, of an issuer that signs with ES256,
// bound to peer's certificate. All are made anew at every call, in a fraction of a second, and are good for as long as
// other tokens of this package. Names are unique.
func Museum(tb testing.TB, issuer *Issuer, peer *mtls.Peer) []Exhibit {
	tb.Helper()
	if issuer.public.Algorithm != tokens.ES256 || peer.Thumbprint().IsZero() {
		tb.Fatal("tokenstest: the museum needs an issuer with ES256 and a peer with a certificate")
	}
	m := &museum{
		tb: tb, issuer: issuer, peer: peer, stranger: New(tb), now: time.Now().Unix(), known: map[string]bool{},
	}
	m.sound()
	m.algorithms()
	m.confusedKeys()
	m.publishedKeys()
	m.keysInHeader()
	m.critical()
	m.duplicates()
	m.types()
	m.keyIDs()
	m.signatures()
	m.parts()
	m.alphabets()
	m.cuts()
	m.sizes()
	m.documents()
	m.required()
	m.issuers()
	m.audiences()
	m.dates()
	m.confirmations()
	m.thumbprints()
	return m.exhibits
}

// museum is under construction.
type museum struct {
	tb       testing.TB
	issuer   *Issuer
	stranger *Issuer // whose key nobody knows
	peer     *mtls.Peer
	now      int64
	known    map[string]bool
	exhibits []Exhibit
}

// Reasons of a Verifier.
const (
	malformed       = "malformed"
	wrongType       = "wrong_type"
	notAllowed      = "algorithm_not_allowed"
	unknownKey      = "unknown_key"
	badSignature    = "bad_signature"
	signatureForm   = "signature_form"
	malformedClaims = "malformed_claims"
	notBound        = "not_bound"
	mismatch        = "thumbprint_mismatch"
)

func (m *museum) add(e Exhibit) {
	m.tb.Helper()
	if m.known[e.Name] {
		m.tb.Fatalf("tokenstest: two exhibits are named %q", e.Name)
	}
	m.known[e.Name] = true
	if e.Keys == nil {
		e.Keys = m.issuer.Keys()
	}
	e.Unsendable = strings.ContainsFunc(e.Raw, isControl) || strings.TrimRight(e.Raw, " \t") != e.Raw
	m.exhibits = append(m.exhibits, e)
}

func isControl(r rune) bool { return r < 0x20 && r != '\t' || r == 0x7f }

// token adds one that a guard takes for a token: it is answered with invalid_token unless there is no reason to.
func (m *museum) token(name, clause, reason, raw string) {
	m.tb.Helper()
	e := Exhibit{Name: name, Clause: clause, Raw: raw, Reason: reason, Code: tokens.CodeInvalidToken}
	if reason == "" {
		e.Code = ""
	}
	m.add(e)
}

// noToken adds one that a guard does not take for a token at all.
func (m *museum) noToken(name, clause, raw string) {
	m.tb.Helper()
	m.add(Exhibit{Name: name, Clause: clause, Raw: raw, Reason: malformed, Code: tokens.CodeInvalidRequest})
}

// header adds a token whose header was edited and then signed.
func (m *museum) header(name, clause, reason string, edits ...edit) {
	m.tb.Helper()
	m.token(name, clause, reason, m.issuer.Sign(m.tb, m.goodHeader().text(edits), m.goodClaims().text(nil)))
}

// claims adds a token whose claims were edited and then signed.
func (m *museum) claims(name, clause, reason string, edits ...edit) {
	m.tb.Helper()
	m.payload(name, clause, reason, m.goodClaims().text(edits))
}

// payload adds a token with a payload that need not be JSON.
func (m *museum) payload(name, clause, reason, payload string) {
	m.tb.Helper()
	m.token(name, clause, reason, m.issuer.Sign(m.tb, m.goodHeader().text(nil), payload))
}

// published adds a token of another key than the issuer's, which is among the issuer's keys all the same.
func (m *museum) published(name, clause, reason, raw string, keys ...tokens.PublicKey) {
	m.tb.Helper()
	e := Exhibit{Name: name, Clause: clause, Raw: raw, Reason: reason, Code: tokens.CodeInvalidToken, Keys: keys}
	m.add(e)
}

// good returns a token without defect, a new one each time.
func (m *museum) good() string {
	m.tb.Helper()
	return m.issuer.Sign(m.tb, m.goodHeader().text(nil), m.goodClaims().text(nil))
}

// input returns the first two parts of a token without defect: what is signed (RFC 7515, Section 5.1).
func (m *museum) input(headerEdits ...edit) string {
	return encode(m.goodHeader().text(headerEdits)) + "." + encode(m.goodClaims().text(nil))
}

// signed returns the input and its signature, which is good even where the input is not a token's.
func (m *museum) signed(input string) string {
	m.tb.Helper()
	return input + "." + encode(string(ecdsaSignature(m.tb, m.issuer.key, input, 32)))
}

func (m *museum) goodHeader() members {
	return members{{"alg", `"ES256"`}, {"typ", quote(tokens.TokenType)}, {"kid", quote(m.issuer.public.ID)}}
}

func (m *museum) goodClaims() members {
	return members{
		{"iss", quote(URL)}, {"sub", quote(Client)}, {"client_id", quote(Client)}, {"aud", quote(Audience)},
		{"jti", quote(rand.Text())}, {"iat", fmt.Sprint(m.now)}, {"exp", m.after(Lifetime)},
		{"cnf", `{"x5t#S256":` + quote(m.peer.Thumbprint().String()) + `}`},
	}
}

// after returns the NumericDate that long from now.
func (m *museum) after(d time.Duration) string { return fmt.Sprint(m.now + int64(d/time.Second)) }

// members is a JSON object in the order in which it is written, valid or not.
type members []member

// member is a name as it stands between its quotes, and the JSON of its value.
type member struct{ name, value string }

// edit changes an object.
type edit func(members) members

func (o members) text(edits []edit) string {
	for _, e := range edits {
		o = e(o)
	}
	list := make([]string, len(o))
	for i, member := range o {
		list[i] = `"` + member.name + `":` + member.value
	}
	return "{" + strings.Join(list, ",") + "}"
}

// with replaces a member, or adds it behind the others.
func with(name, value string) edit {
	return func(o members) members {
		for i := range o {
			if o[i].name == name {
				o[i].value = value
				return o
			}
		}
		return append(o, member{name, value})
	}
}

func without(name string) edit {
	return func(o members) members {
		return slices.DeleteFunc(o, func(m member) bool { return m.name == name })
	}
}

// behind adds a member behind the others, though there may be one of this name.
func behind(name, value string) edit {
	return func(o members) members { return append(o, member{name, value}) }
}

// before adds a member before the others, though there may be one of this name.
func before(name, value string) edit {
	return func(o members) members { return append(members{{name, value}}, o...) }
}

// renamed changes a name and nothing else.
func renamed(from, to string) edit {
	return func(o members) members {
		for i := range o {
			if o[i].name == from {
				o[i].name = to
			}
		}
		return o
	}
}

// sorted gives the elements of a map in the order of their names.
func sorted[V any](all map[string]V) iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		for _, name := range slices.Sorted(maps.Keys(all)) {
			if !yield(name, all[name]) {
				return
			}
		}
	}
}

// quote writes a JSON string of characters that need no escaping.
func quote(s string) string { return `"` + s + `"` }

func encode(data string) string { return base64.RawURLEncoding.EncodeToString([]byte(data)) }

// ecdsaNumbers signs the SHA-256 of the input, whatever the curve.
func ecdsaNumbers(tb testing.TB, key crypto.Signer, input string) (r, s *big.Int) {
	tb.Helper()
	digest := sha256.Sum256([]byte(input))
	der, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		tb.Fatalf("tokenstest: sign: %v", err)
	}
	var pair struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &pair); err != nil {
		tb.Fatalf("tokenstest: signature: %v", err)
	}
	// The lower s of two, as Certbound writes it.
	if other := new(big.Int).Sub(key.Public().(*ecdsa.PublicKey).Params().N, pair.S); pair.S.Cmp(other) > 0 {
		pair.S = other
	}
	return pair.R, pair.S
}

// ecdsaSignature is R || S with numbers of so many bytes (RFC 7518, Section 3.4).
func ecdsaSignature(tb testing.TB, key crypto.Signer, input string, size int) []byte {
	tb.Helper()
	return joined(size)(ecdsaNumbers(tb, key, input))
}

func joined(size int) func(r, s *big.Int) []byte {
	return func(r, s *big.Int) []byte {
		raw := make([]byte, 2*size)
		r.FillBytes(raw[:size])
		s.FillBytes(raw[size:])
		return raw
	}
}

// hashed is the SHA-256 of data as a thumbprint is written.
func hashed(data []byte) string {
	hash := sha256.Sum256(data)
	return encode(string(hash[:]))
}
