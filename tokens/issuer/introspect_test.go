// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/internal/jose"
)

// serve has a client run resource servers of these resources.
func (s *service) serve(id string, resources ...string) {
	s.servers.change(func(s *servers) { s.of[id] = resources })
}

// about returns the body of a question about a token; further parameters come as name, value, name, value.
func about(id, token string, more ...string) string {
	v := url.Values{"client_id": {id}, "token": {token}}
	for i := 0; i < len(more); i += 2 {
		v.Add(more[i], more[i+1])
	}
	return v.Encode()
}

func accept(types ...string) func(*http.Request) {
	return func(r *http.Request) { r.Header["Accept"] = types }
}

// ask sends a question about a token.
func (s *service) ask(tb testing.TB, cert *tls.Certificate, target, body string, edit ...func(*http.Request)) answer {
	tb.Helper()
	res, err := s.client(tb, cert).Do(request(tb, target, body, edit...))
	if err != nil {
		tb.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		tb.Fatal(err)
	}
	a := answer{status: res.StatusCode, proto: res.Proto, header: res.Header, body: string(raw)}
	if a.status != http.StatusOK {
		a.check(tb)
	}
	return a
}

// introspect asks the introspection endpoint.
func (s *service) introspect(tb testing.TB, cert *tls.Certificate, body string, edit ...func(*http.Request)) answer {
	tb.Helper()
	return s.ask(tb, cert, s.mtlsURL+IntrospectPath, body, edit...)
}

// desk is a service with a client, a token of its, and the client that runs the resource server that the token is for.
type desk struct {
	*service
	payments, guard tls.Certificate
	token           string
}

func newDesk(tb testing.TB, edit ...func(*Config)) *desk {
	tb.Helper()
	d := &desk{service: newService(tb, edit...)}
	d.payments, d.guard = d.enrol(tb, "payments"), d.enrol(tb, "guard")
	d.serve("guard", ledger)
	d.token = d.post(tb, &d.payments, ask("payments")).Token
	return d
}

// members asks as the guard and returns the members of the answer.
func (d *desk) members(tb testing.TB, token string) map[string]any {
	tb.Helper()
	a := d.introspect(tb, &d.guard, about("guard", token))
	if a.status != http.StatusOK {
		tb.Fatalf("answer %d %s", a.status, a.body)
	}
	var m map[string]any
	if err := json.Unmarshal([]byte(a.body), &m); err != nil {
		tb.Fatalf("%s: %v", a.body, err)
	}
	return m
}

func (d *desk) wantActive(tb testing.TB, token string) {
	tb.Helper()
	if m := d.members(tb, token); m["active"] != true {
		tb.Errorf("answer %v, want active", m)
	}
}

// wantInactive demands the one answer about everything that is not active, in both forms.
func (d *desk) wantInactive(tb testing.TB, who string, cert *tls.Certificate, token string) {
	tb.Helper()
	for _, media := range []string{typeJSON, mediaIntrospection} {
		a := d.introspect(tb, cert, about(who, token), accept(media))
		if a.status != http.StatusOK || a.header.Get("Content-Type") != media {
			tb.Fatalf("answer %d %s %s", a.status, a.header.Get("Content-Type"), a.body)
		}
		if got, want := d.names(a), inactiveHeaders; !slices.Equal(got, want) {
			tb.Errorf("headers %q, want %q", got, want)
		}
		told := a.body
		if media == mediaIntrospection {
			if diff := cmp.Diff(map[string]any{"alg": tokens.ES256, "typ": typeIntrospection, "kid": d.keys.signing.ID}, part(tb, a.body, 0)); diff != "" {
				tb.Errorf("header (-want +got):\n%s", diff)
			}
			told = d.payload(tb, a.body)
			iat := string(part(tb, a.body, 1)["iat"].(json.Number))
			told = strings.TrimSuffix(strings.TrimPrefix(told, `{"iss":"`+d.public+`","aud":"`+who+`","iat":`+iat+`,"token_introspection":`), "}")
		}
		if told != `{"active":false}` {
			tb.Errorf("%s: answer %s", media, told)
		}
	}
}

var inactiveHeaders = []string{"Cache-Control", "Content-Length", "Content-Type", "Date", "Pragma", "X-Content-Type-Options"}

// names returns the names of an answer's headers.
func (d *desk) names(a answer) []string { return slices.Sorted(maps.Keys(a.header)) }

// payload returns the payload of a signed answer as it stands there.
func (d *desk) payload(tb testing.TB, raw string) string {
	tb.Helper()
	signed, err := jose.Parse(raw)
	if err != nil {
		tb.Fatal(err)
	}
	k := d.keys.published[0]
	payload, err := signed.Verify(jose.PublicKey{ID: k.ID, Algorithm: jose.Algorithm(k.Algorithm), Key: k.Key})
	if err != nil {
		tb.Fatal(err)
	}
	return string(payload)
}

// signed returns a JWT of the service's own key.
func (d *desk) signed(tb testing.TB, typ, payload string) string {
	tb.Helper()
	h := jose.Header{Algorithm: jose.ES256, KeyID: d.keys.signing.ID, Type: typ}
	raw, err := jose.Sign(h, []byte(payload), d.keys.signing.Signer)
	if err != nil {
		tb.Fatal(err)
	}
	return raw
}

// with returns the desk's token, signed again with some of its text replaced.
func (d *desk) with(tb testing.TB, oldnew ...string) string {
	tb.Helper()
	before := d.payload(tb, d.token)
	after := strings.NewReplacer(oldnew...).Replace(before)
	if before == after && len(oldnew) > 0 {
		tb.Fatalf("%s has no %s", before, oldnew[0])
	}
	return d.signed(tb, accessToken, after)
}

// IN-01: RFC 7662, Section 2.1: introspection is asked by POST with a form, and nothing is taken from the URL.
func TestRFC7662_2_1_PostOnly(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	decided := d.journal.count()
	for _, verb := range []string{"GET", "HEAD", "PUT", "DELETE", "OPTIONS", "post"} {
		r := request(t, d.mtlsURL+IntrospectPath+"?"+about("guard", d.token), "", func(r *http.Request) { r.Method = verb })
		res, err := d.client(t, &d.guard).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusMethodNotAllowed || res.Header.Get("Allow") != "POST" {
			t.Errorf("%s: %s, Allow %q", verb, res.Status, res.Header.Get("Allow"))
		}
	}
	if d.journal.count() != decided {
		t.Error("a request by another method was judged")
	}
	a := d.ask(t, &d.guard, d.mtlsURL+IntrospectPath+"?token="+d.token, about("guard", d.token))
	a.want(t, http.StatusBadRequest, tokens.CodeInvalidRequest)
	a = d.introspect(t, &d.guard, `{"client_id":"guard"}`, func(r *http.Request) { r.Header.Set("Content-Type", "application/json") })
	a.want(t, http.StatusBadRequest, tokens.CodeInvalidRequest)
	// A token of any size that one may have fits beside the rest; what is larger is refused.
	d.introspect(t, &d.guard, about("guard", strings.Repeat("x", jose.MaxTokenBytes))).wantBody(t, inactive)
	d.introspect(t, &d.guard, about("guard", strings.Repeat("x", maxCallBytes))).want(t, http.StatusRequestEntityTooLarge, tokens.CodeInvalidRequest)
}

func (a answer) wantBody(tb testing.TB, body string) {
	tb.Helper()
	if a.status != http.StatusOK || a.body != body {
		tb.Errorf("answer %d %s, want %s", a.status, a.body, body)
	}
}

// IN-02: RFC 7662, Section 2.1: who does not authenticate gets 401 with a challenge, and its refusal is recorded; a client
// that runs no resource server is told nothing.
func TestRFC7662_2_1_CallerAuthenticates(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	other := d.enrol(t, "other")
	for name, a := range map[string]func() answer{
		"no certificate":      func() answer { return d.introspect(t, nil, about("guard", d.token)) },
		"another certificate": func() answer { return d.introspect(t, &other, about("guard", d.token)) },
		"bearer token": func() answer {
			return d.introspect(t, nil, about("guard", d.token), func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+d.token) })
		},
		"public listener": func() answer { return d.ask(t, nil, d.public+IntrospectPath, about("guard", d.token)) },
	} {
		before := d.journal.count()
		got := a()
		got.want(t, http.StatusUnauthorized, tokens.CodeInvalidClient)
		if strings.Contains(got.body, "payments") {
			t.Errorf("%s: %s", name, got.body)
		}
		if last := d.journal.last(t); d.journal.count() != before+1 || last.Event != EventAuthenticate || last.Granted || last.Authenticated {
			t.Errorf("%s: recorded %+v", name, last)
		}
	}
	a := d.ask(t, nil, d.public+IntrospectPath, about("guard", d.token))
	if !strings.HasSuffix(a.Text, d.mtlsURL+IntrospectPath) {
		t.Errorf("the public listener says %q", a.Text)
	}
	do(t, d.client(t, nil), request(t, d.public+TokenPath, ask("guard"))).want(t, http.StatusUnauthorized, tokens.CodeInvalidClient)
	if last := d.journal.last(t); last.Event != EventToken { // which is counted among the tokens refused
		t.Errorf("a token request on the public listener is recorded as %+v", last)
	}
	before := d.journal.count()
	d.wantInactive(t, "other", &other, d.token)
	d.wantActive(t, d.token)
	if d.journal.count() != before {
		t.Error("an answer was recorded")
	}
	if active, inactive := d.events.active.Load(), d.events.inactive.Load(); active != 1 || inactive != 2 {
		t.Errorf("counted %d active and %d inactive answers, want 1 and 2", active, inactive)
	}
}

// CA-25: RFC 7592, Section 2.3: a client that was disabled or removed is refused when it asks about a token, and so is
// one with a revoked certificate.
func TestRFC7592_2_3_DisabledCaller(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.wantActive(t, d.token)
	for reason, change := range map[string]func(c *Client){
		"client_disabled":                   func(c *Client) { c.Disabled = true },
		"certificate_of_another_generation": func(c *Client) { c.Generation++ },
		"method_mismatch":                   func(c *Client) { c.AuthMethod = "none" },
	} {
		var before Client
		d.registry.changeClient("guard", func(c *Client) { before = *c; change(c) })
		d.introspect(t, &d.guard, about("guard", d.token)).want(t, http.StatusUnauthorized, tokens.CodeInvalidClient)
		d.wantReason(t, reason)
		d.registry.changeClient("guard", func(c *Client) { *c = before })
	}
	d.registry.changeCertificate(d.guard, func(c *Certificate) { c.Revoked = true })
	d.introspect(t, &d.guard, about("guard", d.token)).want(t, http.StatusUnauthorized, tokens.CodeInvalidClient)
}

// IN-03, IN-13: RFC 7662, Section 2.2: whatever is not an access token of this server gets the same answer, in JSON and
// signed.
func TestRFC7662_2_2_NoTokenOfOurs(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	foreign := newDesk(t)
	twin := []byte(d.token)
	twin[len(twin)-3] ^= 1
	payload := d.payload(t, d.token)
	d.introspect(t, &d.guard, about("guard", d.token)) // the cache is warm
	for name, token := range map[string]string{
		"text":                     "x",
		"random":                   newTokenID() + "." + newTokenID() + "." + newTokenID(),
		"without signature":        d.token[:strings.LastIndexByte(d.token, '.')+1],
		"truncated":                d.token[:len(d.token)-1],
		"longer":                   d.token + "A",
		"with space":               d.token + " ",
		"changed signature":        string(twin),
		"of another issuer":        foreign.token,
		"for another issuer":       d.with(t, `"iss":"`+d.public, `"iss":"https://elsewhere.example`),
		"signed answer":            d.introspect(t, &d.guard, about("guard", d.token), accept(mediaIntrospection)).body,
		"ID token":                 d.signed(t, "JWT", payload),
		"without type":             d.signed(t, "", payload),
		"assertion":                d.signed(t, "client-authentication+jwt", payload),
		"type in another spelling": d.signed(t, "application/at+jwt", payload),
		"no JSON":                  d.signed(t, accessToken, "x"),
		"no object":                d.signed(t, accessToken, "[]"),
		"without binding":          d.with(t, `"cnf"`, `"xnf"`),
		"binding is no thumbprint": d.with(t, `"x5t#S256":"`, `"x5t#S256":"x`),
		"scope is none":            d.with(t, `"read write"`, `"read  write"`),
		"scope is no text":         d.with(t, `"read write"`, `7`),
		"audience is no text":      d.with(t, `"aud":"`+ledger+`"`, `"aud":7`),
		"audience holds no text":   d.with(t, `"aud":"`+ledger+`"`, `"aud":["`+ledger+`",7]`),
		"key with another name":    resigned(t, d, jose.Header{Algorithm: jose.ES256, KeyID: "another", Type: accessToken}),
		"key without name":         resigned(t, d, jose.Header{Algorithm: jose.ES256, Type: accessToken}),
	} {
		t.Run(name, func(t *testing.T) { d.wantInactive(t, "guard", &d.guard, token) })
	}
	d.wantActive(t, d.with(t))
	d.wantActive(t, d.with(t, `"aud":"`+ledger+`"`, `"aud":["`+ledger+`"]`))
}

func resigned(t *testing.T, d *desk, h jose.Header) string {
	t.Helper()
	raw, err := jose.Sign(h, []byte(d.payload(t, d.token)), d.keys.signing.Signer)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// IN-03, IN-06: RFC 7662, Section 2.2: a token is active only as long as everything holds that it stands on, however often
// it was found active before, and the answer about one that is not is always the same.
func TestRFC7662_2_2_ActiveAsLongAsItStands(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	other := newKeyring(t)
	denial := func(f func(*tokens.Denial)) func(t *testing.T) func() {
		return func(t *testing.T) func() {
			n := tokens.Denial{Until: time.Now().Add(time.Hour)}
			f(&n)
			if err := d.denied.Add(n); err != nil {
				t.Fatal(err)
			}
			return func() { d.denied.Prune(time.Now().Add(2 * time.Hour)) }
		}
	}
	client := func(f func(c *Client)) func(t *testing.T) func() {
		return func(*testing.T) func() {
			var before Client
			d.registry.changeClient("payments", func(c *Client) { before = *c; f(c) })
			return func() { d.registry.changeClient("payments", func(c *Client) { *c = before }) }
		}
	}
	certificate := func(f func(c *Certificate)) func(t *testing.T) func() {
		return func(*testing.T) func() {
			var before Certificate
			d.registry.changeCertificate(d.payments, func(c *Certificate) { before = *c; f(c) })
			return func() { d.registry.changeCertificate(d.payments, func(c *Certificate) { *c = before }) }
		}
	}
	clock := func(ahead time.Duration) func(t *testing.T) func() {
		return func(*testing.T) func() {
			d.advance(ahead)
			return func() { d.advance(-ahead) }
		}
	}
	published := func(k ...tokens.PublicKey) func(t *testing.T) func() {
		return func(*testing.T) func() {
			before := d.keys.published
			d.keys.published = k
			return func() { d.keys.published = before }
		}
	}
	named := other.published[0]
	named.ID = d.keys.published[0].ID
	misnamed := d.keys.published[0]
	misnamed.ID = "another"
	misused := d.keys.published[0]
	misused.Algorithm = tokens.EdDSA
	for _, c := range []struct {
		name   string
		change func(t *testing.T) (undo func())
	}{
		{"token denied", denial(func(n *tokens.Denial) { n.TokenID = part(t, d.token, 1)["jti"].(string) })},
		{"certificate denied", denial(func(n *tokens.Denial) { n.Thumbprint = mtls.ThumbprintOf(d.payments.Leaf) })},
		{"client denied", denial(func(n *tokens.Denial) { n.ClientID, n.IssuedBefore = "payments", time.Now().Add(time.Minute) })},
		{"key denied", denial(func(n *tokens.Denial) { n.KeyID = d.keys.signing.ID })},
		{"client under another name", client(func(c *Client) { c.ID = "other" })},
		{"client disabled", client(func(c *Client) { c.Disabled = true })},
		{"client of another generation", client(func(c *Client) { c.Generation++ })},
		{"method that is not answered", client(func(c *Client) { c.AuthMethod = "none" })},
		{"self-signed without certificates", client(func(c *Client) { c.AuthMethod = SelfSignedTLSClientAuth })},
		{"client removed", func(*testing.T) func() {
			before := d.registry.clients["payments"]
			d.registry.change(func(r *registry) { delete(r.clients, "payments") })
			return func() { d.register(before) }
		}},
		{"certificate revoked", certificate(func(c *Certificate) { c.Revoked = true })},
		{"certificate of another client", certificate(func(c *Certificate) { c.ClientID = "guard" })},
		{"certificate of another generation", certificate(func(c *Certificate) { c.Generation-- })},
		{"certificate ended", certificate(func(c *Certificate) { c.NotAfter = time.Now().Add(-time.Second) })},
		{"certificate unknown", func(*testing.T) func() {
			id := mtls.ThumbprintOf(d.payments.Leaf)
			before := d.registry.certificates[id]
			d.registry.change(func(r *registry) { delete(r.certificates, id) })
			return func() { d.registry.change(func(r *registry) { r.certificates[id] = before }) }
		}},
		{"expired", clock(DefaultLifetime)},
		{"key gone", published()},
		{"another key", published(other.published...)},
		{"another key of the same name", published(named)},
		{"key under another name", published(misnamed)},
		{"key for another algorithm", published(misused)},
		{"not the caller's any more", func(*testing.T) func() {
			d.serve("guard", reports)
			return func() { d.serve("guard", ledger) }
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d.wantActive(t, d.token)
			cold := d.with(t)
			undo := c.change(t)
			a := d.introspect(t, &d.guard, about("guard", d.token))
			a.wantBody(t, inactive)
			d.introspect(t, &d.guard, about("guard", cold)).wantBody(t, inactive)
			signed := d.introspect(t, &d.guard, about("guard", d.token), accept(mediaIntrospection))
			if told := part(t, signed.body, 1)["token_introspection"]; !cmp.Equal(told, map[string]any{"active": false}) {
				t.Errorf("signed answer %v", told)
			}
			if got := d.names(a); !slices.Equal(got, inactiveHeaders) {
				t.Errorf("headers %q", got)
			}
			undo()
			d.wantActive(t, d.token)
		})
	}
}

// IN-06: RFC 7519, Sections 4.1.4 to 4.1.6: a token is active from its first second to its last.
func TestRFC7662_2_2_Dates(t *testing.T) {
	t.Parallel()
	base := time.Now().Truncate(time.Second)
	now := base
	d := newDesk(t, func(c *Config) { c.Now = func() time.Time { return now } })
	if d.members(t, d.token)["iat"] != float64(base.Unix()) {
		t.Fatal("issued at another time")
	}
	issuedAt := func(after int64) string {
		return d.with(t, `"iat":`+string(jsonNumber(base.Unix())), `"iat":`+string(jsonNumber(base.Unix()+after)))
	}
	late := d.with(t, `"exp":`, `"nbf":`+string(jsonNumber(base.Unix()+10))+`,"exp":`)
	for _, c := range []struct {
		token  string
		after  time.Duration
		active bool
	}{
		{d.token, DefaultLifetime - time.Nanosecond, true},
		{d.token, DefaultLifetime, false},
		{issuedAt(60), 0, true},
		{issuedAt(61), 0, false},
		{issuedAt(61), time.Second, true},
		{late, 10 * time.Second, true},
		{late, 10*time.Second - time.Nanosecond, false},
	} {
		now = base.Add(c.after)
		if got := d.members(t, c.token)["active"]; got != c.active {
			t.Errorf("after %v: active %v, want %v", c.after, got, c.active)
		}
	}
}

// IN-06: RFC 8705, Section 2: a token of a client with registered certificates is active as long as its certificate is
// one of them; one of a client that another authority vouches for, as long as it is registered and nothing was denied.
func TestRFC8705_2_ActiveForOtherKindsOfClient(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	pinned := d.enrolSelfSigned(t, "pinned")
	foreign := d.enrolForeign(t, "foreign", d.partner)
	own, theirs := d.post(t, &pinned, ask("pinned")).Token, d.post(t, &foreign, ask("foreign")).Token
	d.wantActive(t, own)
	d.wantActive(t, theirs)
	registered := d.set("pinned")
	d.registry.changeClient("foreign", func(c *Client) { c.Certificates = &set{} }) // which it does not go by
	d.wantActive(t, theirs)
	d.token = theirs
	d.wantInactive(t, "guard", &d.guard, d.with(t, `"x5t#S256":"`, `"x5t#S256":"x`))
	d.wantInactive(t, "guard", &d.guard, d.with(t, `"cnf"`, `"xnf"`))
	asker := d.enrolSelfSigned(t, "asker")
	d.serve("asker", ledger)
	d.registry.change(func(r *registry) { r.inventoryErr = errDown }) // which nobody here is looked up in
	for _, token := range []string{own, theirs} {
		if a := d.introspect(t, &asker, about("asker", token)); !strings.Contains(a.body, `"active":true`) {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	d.registry.change(func(r *registry) { r.inventoryErr = nil })
	registered.publish()
	d.wantInactive(t, "guard", &d.guard, own)
	registered.change(func(s *set) { s.err = errDown })
	d.introspect(t, &d.guard, about("guard", own)).want(t, http.StatusServiceUnavailable, tokens.CodeTemporarilyUnavailable)
	d.wantReason(t, "certificates_unavailable")
	for _, change := range []func(c *Client){func(c *Client) { c.ID = "other" }, func(c *Client) { c.ID, c.Disabled = "foreign", true }} {
		d.registry.changeClient("foreign", change)
		d.wantInactive(t, "guard", &d.guard, theirs)
	}
}

// IN-04: RFC 9701, Section 5; RFC 7662, Section 4: who does not run the resource server that a token is for learns nothing,
// not even that it is genuine.
func TestRFC9701_5_NotForTheCaller(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	neighbour := d.enrol(t, "neighbour")
	d.serve("neighbour", reports, ledger+"/", strings.TrimSuffix(ledger, "i"), strings.ToUpper(ledger))
	d.wantActive(t, d.token)
	d.wantInactive(t, "neighbour", &neighbour, d.token)
	d.wantInactive(t, "payments", &d.payments, d.token) // whose token it is
	// Nor when nobody can know how the token stands.
	cert := d.enrolSelfSigned(t, "pinned")
	token := d.post(t, &cert, ask("pinned")).Token
	d.set("pinned").change(func(s *set) { s.err = errDown })
	d.introspect(t, &d.guard, about("guard", token)).want(t, http.StatusServiceUnavailable, tokens.CodeTemporarilyUnavailable)
	d.wantInactive(t, "neighbour", &neighbour, token)
}

// IN-05: RFC 7662, Section 2.1: token is there, and once.
func TestRFC7662_2_1_TokenRequired(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	for body, reason := range map[string]string{
		"client_id=guard":                             "token_missing",
		"client_id=guard&token=":                      "token_missing",
		about("guard", d.token) + "&token=x":          "repeated_parameter",
		"token=" + d.token:                            "client_id_missing",
		"client_id=%FF&token=" + d.token:              "malformed_encoding",
		"client_id=%0A&token=" + d.token:              "client_id_malformed",
		about("guard", d.token) + "&client_id=x":      "repeated_parameter",
		about("guard", d.token, "client_secret", "x"): "two_methods",
	} {
		d.introspect(t, &d.guard, body).want(t, http.StatusBadRequest, tokens.CodeInvalidRequest)
		d.wantReason(t, reason)
		if last := d.journal.last(t); last.ClientID != "" || last.Event != EventAuthenticate || last.Thumbprint != mtls.ThumbprintOf(d.guard.Leaf) || last.Address == "" {
			t.Errorf("%s: recorded %+v", reason, last)
		}
	}
}

// IN-07, CB-04: RFC 7662, Section 2.2; RFC 8705, Section 3.2: the members of an active answer, with their types, are those
// of the token; cnf is there always, with the thumbprint of the certificate that asked for the token.
func TestRFC8705_3_2_Confirmation(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	claims := part(t, d.token, 1)
	a := d.introspect(t, &d.guard, about("guard", d.token))
	decoder := json.NewDecoder(strings.NewReader(a.body))
	decoder.UseNumber()
	var got map[string]any
	if err := decoder.Decode(&got); err != nil {
		t.Fatal(err)
	}
	want := maps.Clone(claims)
	want["active"], want["token_type"] = true, "Bearer"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("answer (-token +answer):\n%s", diff)
	}
	if cnf := got["cnf"].(map[string]any); cnf["x5t#S256"] != mtls.ThumbprintOf(d.payments.Leaf).String() {
		t.Errorf("cnf %v", cnf)
	}
	if len(got) != 11 {
		t.Errorf("%d members: %s", len(got), a.body)
	}
	// A subject that is not the client comes out as it is; without scope, there is no member.
	m := d.members(t, d.with(t, `"sub":"payments"`, `"sub":"alice"`, `,"scope":"read write"`, ""))
	if _, ok := m["scope"]; ok || m["sub"] != "alice" || m["client_id"] != "payments" {
		t.Errorf("answer %v", m)
	}
}

// CB-03, IN-07: RFC 8705, Section 3.2: the token's response, the token and introspection say the same of type and binding,
// for every kind of client.
func TestRFC8705_3_2_OneTruth(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	for i, kind := range kinds {
		id := "kind-" + string(rune('a'+i))
		cert := kind.enrol(t, d.service, id, d.partner)
		a := d.post(t, &cert, ask(id))
		for range 2 { // cold and warm
			m := d.members(t, a.Token)
			if m["token_type"] != a.Type || !cmp.Equal(m["cnf"], part(t, a.Token, 1)["cnf"]) || m["client_id"] != id {
				t.Errorf("%s: response %s, token %v, introspection %v", kind.name, a.Type, part(t, a.Token, 1), m)
			}
			if m["cnf"].(map[string]any)["x5t#S256"] != mtls.ThumbprintOf(cert.Leaf).String() {
				t.Errorf("%s: bound to another certificate: %v", kind.name, m)
			}
		}
	}
}

// IN-08: RFC 7662, Section 2.1: a hint of the token's type, known or not, changes nothing.
func TestRFC7662_2_1_HintIgnored(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	want := d.introspect(t, &d.guard, about("guard", d.token)).body
	for _, hint := range []string{"access_token", "refresh_token", "foo", ""} {
		d.introspect(t, &d.guard, about("guard", d.token, "token_type_hint", hint)).wantBody(t, want)
	}
}

// IN-09: RFC 9701, Section 5: a signed answer is for its caller alone, says everything inside token_introspection, and is
// no access token for anybody.
func TestRFC9701_5_SignedAnswer(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	a := d.introspect(t, &d.guard, about("guard", d.token), accept(mediaIntrospection))
	if got := a.header.Get("Content-Type"); got != mediaIntrospection {
		t.Fatalf("Content-Type %q: %s", got, a.body)
	}
	if typ := part(t, a.body, 0)["typ"]; typ != "token-introspection+jwt" {
		t.Errorf("typ %v", typ)
	}
	d.payload(t, a.body) // its signature verifies
	claims := part(t, a.body, 1)
	if names := slices.Sorted(maps.Keys(claims)); !slices.Equal(names, []string{"aud", "iat", "iss", "token_introspection"}) {
		t.Errorf("members %q", names)
	}
	if claims["iss"] != d.public || claims["aud"] != "guard" {
		t.Errorf("from %v for %v", claims["iss"], claims["aud"])
	}
	if iat, err := claims["iat"].(json.Number).Int64(); err != nil || time.Since(time.Unix(iat, 0)).Abs() > time.Minute {
		t.Errorf("iat %v", claims["iat"])
	}
	var plain any
	decoder := json.NewDecoder(strings.NewReader(d.introspect(t, &d.guard, about("guard", d.token)).body))
	decoder.UseNumber()
	if err := decoder.Decode(&plain); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(plain, claims["token_introspection"]); diff != "" {
		t.Errorf("the answer in JSON and signed (-JSON +signed):\n%s", diff)
	}
	for _, audience := range []string{"guard", ledger} {
		v, err := tokens.NewVerifier(tokens.VerifierConfig{Issuer: d.public, Audience: audience, Keys: tokens.StaticKeys(d.keys.published)})
		if err != nil {
			t.Fatal(err)
		}
		_, err = v.Verify(t.Context(), a.body, mtlstest.PeerOf(d.payments))
		if e, ok := errors.AsType[*tokens.Error](err); !ok || e.Reason != "wrong_type" {
			t.Errorf("as a token for %s: %v", audience, err)
		}
	}
}

// IN-10: RFC 9701, Section 4: who accepts nothing but a signed answer gets no other, whatever fails.
func TestRFC9701_4_NoPlaintext(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	signing := d.keys.signing
	for name, c := range map[string]struct {
		change func()
		code   string
		status int
	}{
		"no key":            {func() { d.keys.err = errDown }, tokens.CodeTemporarilyUnavailable, 503},
		"key does not sign": {func() { d.keys.signing.Algorithm = tokens.EdDSA }, tokens.CodeServerError, 500},
	} {
		c.change()
		a := d.introspect(t, &d.guard, about("guard", d.token), accept(mediaIntrospection))
		a.want(t, c.status, c.code)
		if last := d.journal.last(t); !last.Authenticated || last.Granted || last.ClientID != "guard" {
			t.Errorf("%s: recorded %+v", name, last)
		}
		d.keys.err, d.keys.signing = nil, signing
	}
	if active := d.events.active.Load(); active != 0 {
		t.Errorf("%d answers counted", active)
	}
	for _, only := range []string{"text/html", mediaIntrospection + ";q=0", mediaIntrospection + ";q=x", "application/jwt"} {
		a := d.introspect(t, &d.guard, about("guard", d.token), accept(only))
		a.want(t, http.StatusNotAcceptable, tokens.CodeInvalidRequest)
	}
}

// IN-11: RFC 7662, Section 2.2: answers are not to be kept, and their type is JSON unless a signed one was asked for.
func TestRFC7662_2_2_NoStore(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	for _, token := range []string{d.token, "x"} {
		for media, accepted := range map[string]func(*http.Request){typeJSON: func(*http.Request) {}, mediaIntrospection: accept(mediaIntrospection)} {
			a := d.introspect(t, &d.guard, about("guard", token), accepted)
			if a.header.Get("Cache-Control") != "no-store" || a.header.Get("Pragma") != "no-cache" || a.header.Get("Content-Type") != media ||
				a.header.Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("headers %v", a.header)
			}
		}
	}
}

// IN-12: RFC 7662, Section 2.2: of a token for several resources, each resource server learns its own part.
func TestRFC7662_2_2_EachItsPart(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	auditor, both := d.enrol(t, "auditor"), d.enrol(t, "both")
	d.serve("auditor", reports)
	d.serve("both", reports, ledger)
	d.grant("payments", Grant{Resource: ledger, Scopes: []string{"read", "write"}}, Grant{Resource: reports, Scopes: []string{"print"}})
	a := d.post(t, &d.payments, ask("payments", "resource", ledger, "resource", reports))
	a.wantToken(t)
	told := func(cert *tls.Certificate, id string) (aud, scope any) {
		var m map[string]any
		if err := json.Unmarshal([]byte(d.introspect(t, cert, about(id, a.Token)).body), &m); err != nil {
			t.Fatal(err)
		}
		return m["aud"], m["scope"]
	}
	for range 2 {
		for id, c := range map[string]struct {
			cert       *tls.Certificate
			aud, scope any
		}{
			"guard":   {&d.guard, ledger, "read write"},
			"auditor": {&auditor, reports, "print"},
			"both":    {&both, []any{ledger, reports}, "read write print"},
		} {
			if aud, scope := told(c.cert, id); !cmp.Equal(aud, c.aud) || scope != c.scope {
				t.Errorf("%s is told %v, %v", id, aud, scope)
			}
		}
	}
	// What the client does not hold there any more is not told.
	d.grant("payments", Grant{Resource: ledger, Scopes: []string{"read"}}, Grant{Resource: reports})
	if aud, scope := told(&d.guard, "guard"); aud != ledger || scope != "read" {
		t.Errorf("after a grant was taken away: %v, %v", aud, scope)
	}
	if aud, scope := told(&auditor, "auditor"); aud != reports || scope != nil {
		t.Errorf("after all was taken away: %v, %v", aud, scope)
	}
}

// IN-14: RFC 7662, Section 4: each client that asks is made known to whoever counts requests, whatever it asks, and nobody
// else is.
func TestRFC7662_4_CallersAreCounted(t *testing.T) {
	t.Parallel()
	type caller struct {
		id string
		t  mtls.Thumbprint
	}
	var seen []caller
	d := newDesk(t, func(c *Config) {
		c.Authenticated = func(ctx context.Context, id string, t mtls.Thumbprint) { seen = append(seen, caller{id, t}) }
	})
	d.wantActive(t, d.token)
	d.introspect(t, &d.guard, about("guard", "x"))
	d.introspect(t, nil, about("guard", "x"))
	d.introspect(t, &d.guard, about("payments", "x"))
	d.introspect(t, &d.guard, "client_id=guard")
	guard := caller{"guard", mtls.ThumbprintOf(d.guard.Leaf)}
	if !slices.Equal(seen, []caller{guard, guard}) {
		t.Errorf("%v", seen)
	}
}

// What cannot be known refuses the question; nothing is taken for inactive, nor for active.
func TestIntrospectionFailsClosed(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.grant("payments", Grant{Resource: ledger, Scopes: []string{"read", "write"}}, Grant{Resource: reports, Scopes: []string{"print"}})
	both := d.post(t, &d.payments, ask("payments", "resource", ledger, "resource", reports)).Token
	fails := &failing{registry: d.registry}
	d.Server.registry = fails
	for reason, change := range map[string]func(on bool){
		"denials_failed": func(on bool) {
			if d.denied.err.Store(nil); on {
				d.denied.err.Store(&errDown)
			}
		},
		"registry_failed":  func(on bool) { fails.client = on },
		"registry_failed ": func(on bool) { fails.certificate = on },
		"registry_failed  ": func(on bool) {
			d.servers.change(func(s *servers) {
				if s.err = nil; on {
					s.err = errDown
				}
			})
		},
	} {
		for _, token := range []string{d.token, both} {
			d.wantActive(t, token)
			change(true)
			for _, media := range []string{typeJSON, mediaIntrospection} {
				d.introspect(t, &d.guard, about("guard", token), accept(media)).want(t, http.StatusServiceUnavailable, tokens.CodeTemporarilyUnavailable)
				d.wantReason(t, strings.TrimSpace(reason))
			}
			change(false)
			d.wantActive(t, token)
		}
	}
	// The scope's part is looked up last.
	fails.mu.Lock()
	fails.after = 2 // the caller, and the token's client once
	fails.mu.Unlock()
	d.introspect(t, &d.guard, about("guard", both)).want(t, http.StatusServiceUnavailable, tokens.CodeTemporarilyUnavailable)
}

// failing is a registry that cannot look up payments, or its certificate.
type failing struct {
	*registry
	client, certificate bool
	mu                  sync.Mutex
	after               int // lookups of a client until they fail
}

func (f *failing) Client(ctx context.Context, id string) (*Client, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.after > 0 {
		if f.after--; f.after == 0 {
			f.client = true
		}
	} else if f.client && id == "payments" {
		return nil, errDown
	}
	return f.registry.Client(ctx, id)
}

func (f *failing) Certificate(ctx context.Context, t mtls.Thumbprint) (*Certificate, error) {
	c, err := f.registry.Certificate(ctx, t)
	if err == nil && f.certificate && c.ClientID == "payments" {
		return nil, errDown
	}
	return c, err
}

// Behind a Gate a question is answered by what is in force when its passage begins, for the token and for the caller, and
// the passage is left whatever becomes of the answer.
func TestIntrospectionBehindAGate(t *testing.T) {
	t.Parallel()
	g := newTurnstile()
	d := newDesk(t, func(c *Config) { c.Gate = g })
	<-g.left // of the token
	passed := 1
	leaves := func() {
		t.Helper()
		passed++
		select {
		case <-g.left:
		case <-time.After(10 * time.Second):
			t.Fatal("a passage was not left")
		}
		g.want(t, passed, 0)
	}
	during := func(f func()) { g.change(func(g *turnstile) { g.passing = f }) }
	for _, media := range []string{typeJSON, mediaIntrospection} {
		if a := d.introspect(t, &d.guard, about("guard", d.token), accept(media)); a.body == inactive || a.status != 200 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		leaves()
	}

	during(func() { d.registry.changeCertificate(d.payments, func(c *Certificate) { c.Revoked = true }) })
	d.introspect(t, &d.guard, about("guard", d.token)).wantBody(t, inactive)
	leaves()
	d.registry.changeCertificate(d.payments, func(c *Certificate) { c.Revoked = false })

	during(func() { d.registry.changeCertificate(d.guard, func(c *Certificate) { c.Revoked = true }) })
	before := d.journal.count()
	d.introspect(t, &d.guard, about("guard", d.token)).want(t, http.StatusUnauthorized, tokens.CodeInvalidClient)
	leaves()
	if last := d.journal.last(t); d.journal.count() != before+1 || last.Reason != "certificate_revoked" || last.Authenticated {
		t.Errorf("recorded %+v", last)
	}
	d.registry.changeCertificate(d.guard, func(c *Certificate) { c.Revoked = false })

	during(func() { d.servers.change(func(s *servers) { s.err = errDown }) })
	d.introspect(t, &d.guard, about("guard", d.token)).want(t, http.StatusServiceUnavailable, tokens.CodeTemporarilyUnavailable)
	leaves()
	d.servers.change(func(s *servers) { s.err = nil })

	during(nil)
	signing := d.keys.signing
	d.keys.signing.Algorithm = tokens.EdDSA
	j := &leftFirst{journal: d.journal, gate: g}
	d.recorder = j
	d.introspect(t, &d.guard, about("guard", d.token), accept(mediaIntrospection)).want(t, http.StatusInternalServerError, tokens.CodeServerError)
	if j.held {
		t.Error("a refusal holds the passage while it is recorded")
	}
	leaves()
	d.recorder, d.keys.signing = d.journal, signing

	// A writer that cannot be given a deadline gets nothing, and a registry that panics holds nobody inside.
	c := &call{form: form{token: d.token}, client: &Client{ID: "guard"}, peer: mtlstest.PeerOf(d.guard)}
	w := httptest.NewRecorder()
	if got := caught(func() { d.serveIntrospection(w, request0(t, ""), c) }); got != http.ErrAbortHandler || w.Body.Len() != 0 {
		t.Errorf("panicked with %v after writing %q", got, w.Body)
	}
	leaves()
	during(func() { d.Server.registry = nil })
	if caught(func() { d.serveIntrospection(w, request0(t, ""), c) }) == nil {
		t.Error("no panic")
	}
	leaves()
	d.Server.registry = d.service.registry

	during(nil)
	g.change(func(g *turnstile) { g.pass = closedFor(2 * time.Second) })
	a := d.introspect(t, &d.guard, about("guard", d.token))
	a.want(t, http.StatusServiceUnavailable, tokens.CodeTemporarilyUnavailable)
	if got := a.header.Get("Retry-After"); got != "2" {
		t.Errorf("Retry-After %q", got)
	}
	g.change(func(g *turnstile) { g.pass, g.live = nil, errDown })
	before = d.journal.count()
	d.introspect(t, &d.guard, about("guard", d.token)).want(t, http.StatusServiceUnavailable, tokens.CodeTemporarilyUnavailable)
	if d.journal.count() != before {
		t.Error("recorded while the gate was closed")
	}
	g.want(t, passed, 0)
}

// A Registry that answers nonsense vouches for nobody.
func TestIntrospectionOfNonsense(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	payments := d.registry.clients["payments"]
	odd := &oddly{Registry: d.registry}
	d.Server.registry = odd
	d.wantActive(t, d.token)
	odd.err, odd.client = ErrNotFound, &payments
	d.wantInactive(t, "guard", &d.guard, d.token)
	odd.err, odd.client = nil, nil
	odd.nonsense = true
	d.wantInactive(t, "guard", &d.guard, d.token)
}

// oddly is a Registry that says of payments what it should not.
type oddly struct {
	Registry
	client   *Client
	err      error
	nonsense bool
}

func (o *oddly) Client(ctx context.Context, id string) (*Client, error) {
	if id == "payments" && (o.nonsense || o.err != nil) {
		return o.client, o.err
	}
	return o.Registry.Client(ctx, id)
}

// Without Servers nobody is told anything, and without Denials nothing is denied.
func TestIntrospectionWithLess(t *testing.T) {
	t.Parallel()
	d := newDesk(t, func(c *Config) { c.Servers = nil })
	d.wantInactive(t, "guard", &d.guard, d.token)
	d = newDesk(t, func(c *Config) { c.Denials = nil })
	d.wantActive(t, d.token)
}

// The record of a refusal has the address that the server knows the caller by.
func TestCallerAddress(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	r := request0(t, about("guard", d.token))
	d.serveCall(httptest.NewRecorder(), r, nil, d.serveIntrospection)
	if got := d.journal.last(t).Address; got != r.RemoteAddr {
		t.Errorf("address %q, want %q", got, r.RemoteAddr)
	}
	for _, body := range []string{about("guard", d.token), "client_id=guard"} {
		r = request0(t, body)
		d.serveCall(httptest.NewRecorder(), r.WithContext(WithAddress(r.Context(), "192.0.2.7")), nil, d.serveIntrospection)
		if got := d.journal.last(t).Address; got != "192.0.2.7" {
			t.Errorf("address %q", got)
		}
	}
	d.keys.err = errDown // of a caller that authenticated, too
	r = request0(t, about("guard", d.token))
	d.serveCall(httptest.NewRecorder(), r, mtlstest.PeerOf(d.guard), d.serveIntrospection)
	if got := d.journal.last(t); got.Address != r.RemoteAddr || got.Reason != "no_signing_key" {
		t.Errorf("recorded %+v, want the address %q", got, r.RemoteAddr)
	}
}

// A token that was found active is spared its signature when it is asked about again; one that was not, is not.
func TestIntrospectionOfAKnownTokenIsCheap(t *testing.T) { // not parallel: it counts allocations
	d := newDesk(t)
	c := &call{form: form{token: d.token}, client: &Client{ID: "guard"}, peer: mtlstest.PeerOf(d.guard)}
	count := func() float64 {
		return testing.AllocsPerRun(50, func() {
			if _, _, refused := d.answerAbout(t.Context(), c); refused != nil {
				t.Fatal(refused)
			}
		})
	}
	const cheap = 8 + allocationsOfRace
	if n := count(); n > cheap {
		t.Errorf("%v allocations, want at most %d", n, cheap)
	}
	c.token = d.with(t)
	d.serve("guard", reports)
	if n := count(); n <= cheap {
		t.Errorf("%v allocations for a token that was never active for the caller", n)
	}
}
