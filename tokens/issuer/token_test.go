// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/tokens"
)

// TE-01: RFC 6749, Section 3.2: the token endpoint answers POST only; nothing is taken from the URL of another method.
func TestRFC6749_3_2_PostOnly(t *testing.T) {
	t.Parallel()
	s := newService(t)
	cert := s.enrol(t, "payments")
	for _, method := range []string{"GET", "PUT", "DELETE", "PATCH", "OPTIONS"} {
		t.Run(method, func(t *testing.T) {
			a := s.post(t, &cert, ask("payments"), func(r *http.Request) {
				r.Method, r.URL.RawQuery = method, ask("payments")
			})
			a.want(t, http.StatusMethodNotAllowed, tokens.CodeInvalidRequest)
			if got := a.header.Get("Allow"); got != "POST" {
				t.Errorf("Allow = %q, want POST", got)
			}
		})
	}
	if n := s.journal.count(); n != 0 {
		t.Errorf("%d decisions were made", n)
	}
}

// TE-02, FA-05: RFC 6749, Sections 2.3.1 and 3.2: parameters count in the body only; a query is refused.
func TestRFC6749_3_2_ParametersOnlyFromBody(t *testing.T) {
	t.Parallel()
	s := newService(t)
	cert := s.enrol(t, "payments")
	query := func(q string) func(*http.Request) { return func(r *http.Request) { r.URL.RawQuery = q } }
	s.post(t, &cert, "", query(ask("payments"))).want(t, 400, tokens.CodeInvalidRequest)
	s.post(t, &cert, ask("payments"), query("scope=read")).want(t, 400, tokens.CodeInvalidRequest)
	s.post(t, &cert, "grant_type=client_credentials", query("client_id=payments")).want(t, 400, tokens.CodeInvalidRequest)
	s.post(t, &cert, ask("payments"), query("trace=1")).want(t, 400, tokens.CodeInvalidRequest)
}

// TE-03: RFC 6749, Section 3.2: a parameter appears once, whatever its value; resource may be repeated.
func TestRFC6749_3_2_RepeatedParameter(t *testing.T) {
	t.Parallel()
	s := newService(t)
	cert := s.enrol(t, "payments")
	for _, body := range []string{
		ask("payments") + "&client_id=payments",
		ask("payments") + "&grant_type=client_credentials",
		ask("payments") + "&scope=read&scope=write",
		ask("payments") + "&scope=&scope=read",
		ask("payments") + "&%73cope=read&scope=read",
		ask("payments") + "&unknown=1&unknown=1",
	} {
		s.post(t, &cert, body).want(t, 400, tokens.CodeInvalidRequest)
	}
	s.post(t, &cert, ask("payments", "resource", ledger, "resource", ledger)).wantToken(t)
	s.post(t, &cert, ask("payments")+"&audience=a&audience=b").wantToken(t)
}

// TE-04: RFC 6749, Section 3.2: a parameter without a value counts as absent.
func TestRFC6749_3_2_EmptyIsOmitted(t *testing.T) {
	t.Parallel()
	s := newService(t)
	cert := s.enrol(t, "payments")
	a := s.post(t, &cert, ask("payments")+"&scope=&resource=&client_secret=&client_assertion")
	if claims := a.wantToken(t); claims["scope"] != "read write" {
		t.Errorf("scope = %v, want all of the client's", claims["scope"])
	}
	s.post(t, &cert, "grant_type=client_credentials&client_id=").want(t, 400, tokens.CodeInvalidRequest)
	s.post(t, &cert, "grant_type=&client_id=payments").want(t, 400, tokens.CodeInvalidRequest)
}

// TE-05: RFC 6749, Section 3.2: unknown parameters are ignored.
func TestRFC6749_3_2_UnknownParametersIgnored(t *testing.T) {
	t.Parallel()
	s := newService(t)
	cert := s.enrol(t, "payments")
	s.post(t, &cert, ask("payments", "foo", "1", "authorization", "x")).wantToken(t)
	s.post(t, &cert, "&&"+ask("payments")+"&bare&=nameless&").wantToken(t)
}

// TE-06: RFC 6749, Section 4.4.2: the body is application/x-www-form-urlencoded and says so, once.
func TestRFC6749_4_4_2_ContentType(t *testing.T) {
	t.Parallel()
	s := newService(t)
	cert := s.enrol(t, "payments")
	contentType := func(values ...string) func(*http.Request) {
		return func(r *http.Request) { r.Header["Content-Type"] = values }
	}
	for _, values := range [][]string{
		nil,
		{""},
		{"application/json"},
		{"text/plain"},
		{"multipart/form-data; boundary=x"},
		{"application/x-www-form-urlencoded; charset=iso-8859-1"},
		{"application/x-www-form-urlencoded, application/json"},
		{"application/x-www-form-urlencoded", "application/json"},
	} {
		s.post(t, &cert, ask("payments"), contentType(values...)).want(t, 400, tokens.CodeInvalidRequest)
	}
	s.post(t, &cert, ask("payments"), contentType("Application/X-WWW-Form-URLencoded; charset=UTF-8")).wantToken(t)
}

// TE-07: RFC 6749, Section 5.1: neither tokens nor refusals may be cached. Every answer of every test is held to the
// headers by answer.check; this one shows it for 200, 400, 401, 405, 413 and 503.
func TestRFC6749_5_1_NoStore(t *testing.T) {
	t.Parallel()
	s := newService(t)
	cert := s.enrol(t, "payments")
	s.post(t, &cert, ask("payments")).wantToken(t)
	s.post(t, &cert, ask("payments", "scope", "nothing")).want(t, 400, tokens.CodeInvalidScope)
	s.post(t, nil, ask("payments")).want(t, 401, tokens.CodeInvalidClient)
	s.post(t, &cert, "", func(r *http.Request) { r.Method = "GET" }).want(t, 405, tokens.CodeInvalidRequest)
	s.post(t, &cert, strings.Repeat("a", MaxBodyBytes+1)).want(t, 413, tokens.CodeInvalidRequest)
	s.journal.fail(errDown)
	s.post(t, &cert, ask("payments")).want(t, 503, tokens.CodeTemporarilyUnavailable)
}

// TE-08, TE-13: RFC 6749, Sections 4.4.3 and 5.1: access_token, token_type Bearer, expires_in as a number that is exp
// minus iat, and no refresh_token.
func TestRFC6749_5_1_Response(t *testing.T) {
	t.Parallel()
	s := newService(t)
	cert := s.enrol(t, "payments")
	a := s.post(t, &cert, ask("payments"))
	claims := a.wantToken(t)
	issued, _ := claims["iat"].(json.Number).Int64()
	expires, _ := claims["exp"].(json.Number).Int64()
	if a.Type != "Bearer" || a.Expiry == nil || *a.Expiry != expires-issued || *a.Expiry != 600 {
		t.Errorf("answer %s for a token from %d to %d", a.body, issued, expires)
	}
	var members map[string]any
	if err := json.Unmarshal([]byte(a.body), &members); err != nil {
		t.Fatal(err)
	}
	if _, ok := members["refresh_token"]; ok || len(members) != 4 {
		t.Errorf("members %v", members)
	}
}

// TE-09, TE-23: RFC 6749, Sections 3.3 and 5.1: scope is always returned. Asked for none, a client gets what is granted
// to it at the one resource and nothing of resources that must be named; asked for more than that, it gets nothing.
func TestRFC6749_5_1_ScopeReturned(t *testing.T) {
	t.Parallel()
	s := newService(t)
	cert := s.enrol(t, "payments")
	s.grant("payments", Grant{Resource: ledger, Scopes: []string{"read", "write"}},
		Grant{Resource: admin, Scopes: []string{"certbound:admin"}, Explicit: true})
	for asked, want := range map[string]string{
		"": "read write", "read": "read", "write read": "write read", "read read": "read",
	} {
		a := s.post(t, &cert, ask("payments", "scope", asked))
		if claims := a.wantToken(t); a.Scope != want || claims["scope"] != want {
			t.Errorf("asked %q: answer %q, token %q, want %q", asked, a.Scope, claims["scope"], want)
		}
	}
	s.post(t, &cert, ask("payments", "scope", "read delete")).want(t, 400, tokens.CodeInvalidScope)
}

// TE-10: RFC 6749, Section 3.3: scope is a list of scope-tokens with single spaces between them.
func TestRFC6749_3_3_ScopeSyntax(t *testing.T) {
	t.Parallel()
	s := newService(t)
	cert := s.enrol(t, "payments")
	for _, scope := range []string{
		`a"b`, `a\b`, "read\twrite", "read  write", " read", "read ", " ", "read\nwrite", "lösch", "\x7f",
	} {
		a := s.post(t, &cert, ask("payments", "scope", scope))
		a.want(t, 400, tokens.CodeInvalidScope)
		if got := s.journal.last(t).Reason; got != "malformed_scope" {
			t.Errorf("%q: reason %s, want malformed_scope", scope, got)
		}
	}
}

// TE-12: RFC 6749, Section 5.2; RFC 9700, Section 2.4: a grant that is not offered is unsupported_grant_type.
func TestRFC6749_5_2_UnsupportedGrantType(t *testing.T) {
	t.Parallel()
	s := newService(t)
	cert := s.enrol(t, "payments")
	for _, grant := range []string{
		"password", "authorization_code", "refresh_token", "implicit", "Client_Credentials", "client_credentials ",
		"urn:ietf:params:oauth:grant-type:token-exchange", "urn:ietf:params:oauth:grant-type:jwt-bearer", "x",
	} {
		body := strings.Replace(ask("payments"), "client_credentials", strings.ReplaceAll(grant, " ", "+"), 1)
		s.post(t, &cert, body+"&username=a&password=b").want(t, 400, tokens.CodeUnsupportedGrantType)
	}
}

// CB-07: RFC 8705, Section 4: no token is ever bound anew: what could be refreshed or exchanged is not, whichever
// certificate asks, so that nobody carries a binding over.
func TestRFC8705_4_NothingIsBoundAnew(t *testing.T) {
	t.Parallel()
	s := newService(t)
	cert, other := s.enrol(t, "payments"), s.enrol(t, "billing")
	token := s.post(t, &cert, ask("payments")).Token
	const exchange = "urn:ietf:params:oauth:grant-type:token-exchange"
	for _, shown := range []struct {
		id   string
		cert tls.Certificate
	}{{"payments", cert}, {"billing", other}} {
		for _, form := range []url.Values{
			{"grant_type": {"refresh_token"}, "refresh_token": {token}},
			{"grant_type": {exchange}, "subject_token": {token}, "subject_token_type": {"urn:ietf:params:oauth:token-type:access_token"}},
		} {
			form.Set("client_id", shown.id)
			a := s.post(t, &shown.cert, form.Encode())
			a.want(t, 400, tokens.CodeUnsupportedGrantType)
			if strings.Contains(a.body, "access_token\":") {
				t.Errorf("%s: %s", shown.id, a.body)
			}
		}
	}
}

// TE-14: RFC 6749, Section 5.2; RFC 9110, Section 15.5.2: a failed authentication is 401 with a challenge, which names
// the scheme that the request tried.
func TestRFC6749_5_2_Challenge(t *testing.T) {
	t.Parallel()
	s := newService(t, func(c *Config) { c.Issuer = "https://auth.example" })
	cert := s.enrol(t, "payments")
	var got strings.Builder
	for _, tried := range []string{
		"", "Basic cGF5bWVudHM6eA==", "basic cGF5bWVudHM6eA==", "Bearer abc", "DPoP abc", "Negotiate", "<script> x",
		`Basic", evil="1 x`, strings.Repeat("A", 33) + " x",
	} {
		a := s.post(t, nil, ask("payments"), func(r *http.Request) {
			if tried != "" {
				r.Header.Set("Authorization", tried)
			}
		})
		a.want(t, 401, tokens.CodeInvalidClient)
		fmt.Fprintf(&got, "%-32.32s  %s\n", tried, a.header.Get("WWW-Authenticate"))
	}
	golden(t, "challenges.txt", got.String())
	s.post(t, &cert, ask("payments")).wantToken(t)
}

// TE-15: RFC 6749, Section 5.2: descriptions keep to their characters and never repeat what the caller sent.
func TestRFC6749_5_2_NothingReflected(t *testing.T) {
	t.Parallel()
	s := newService(t)
	cert := s.enrol(t, "payments")
	const mark = "zqxmark"
	for _, hostile := range []string{
		mark, mark + "\"\\", mark + "\r\nSet-Cookie: a=b", "<b>" + mark, mark + "é", mark + "\x00",
	} {
		for _, name := range []string{"client_id", "grant_type", "scope", "resource", "client_secret", mark} {
			v := map[string]string{"grant_type": ClientCredentials, "client_id": "payments", name: hostile}
			var pairs []string
			for n, value := range v {
				pairs = append(pairs, formPair(n, value))
			}
			a := s.post(t, &cert, strings.Join(pairs, "&"))
			if strings.Contains(a.body, mark) || strings.Contains(fmt.Sprint(a.header), mark) {
				t.Errorf("%s=%q is reflected: %s %v", name, hostile, a.body, a.header)
			}
			if a.status >= 500 {
				t.Errorf("%s=%q: %d", name, hostile, a.status)
			}
		}
	}
}

// TE-16, TE-17: RFC 6749, Section 5.2: a body that is too large is refused as JSON, early, and so are too many
// parameters.
func TestRFC6749_5_2_Bounds(t *testing.T) {
	t.Parallel()
	s := newService(t)
	cert := s.enrol(t, "payments")
	fits := ask("payments") + "&pad="
	fits += strings.Repeat("a", MaxBodyBytes-len(fits))
	s.post(t, &cert, fits).wantToken(t)
	s.post(t, &cert, fits+"a").want(t, 413, tokens.CodeInvalidRequest)
	s.post(t, &cert, strings.Repeat("a", 10<<20)).want(t, 413, tokens.CodeInvalidRequest)
	s.post(t, &cert, fits+"a", func(r *http.Request) { r.ContentLength = -1 }).want(t, 413, tokens.CodeInvalidRequest)
	if got := s.journal.last(t); got.Reason != "body_too_large" || got.ClientID != "" {
		t.Errorf("recorded %+v", got)
	}

	// What announces its size is refused without a look at it.
	w := httptest.NewRecorder()
	r := request(t, TokenPath, "", func(r *http.Request) {
		r.ContentLength, r.Body = MaxBodyBytes+1, io.NopCloser(iotest.ErrReader(errors.New("read")))
	})
	if s.serveToken(w, r, mtlstest.PeerOf(cert)); w.Code != http.StatusRequestEntityTooLarge {
		t.Errorf("unread body: %d %s", w.Code, w.Body)
	}
	r.ContentLength = -1
	w = httptest.NewRecorder()
	if s.serveToken(w, r, mtlstest.PeerOf(cert)); w.Code != http.StatusBadRequest {
		t.Errorf("unreadable body: %d %s", w.Code, w.Body)
	}

	many := ask("payments")
	for i := range maxParameters - 2 {
		many += fmt.Sprintf("&p%d=", i)
	}
	s.post(t, &cert, many).wantToken(t)
	s.post(t, &cert, many+"&one").want(t, 400, tokens.CodeInvalidRequest)
}

// TE-18, FA-06: RFC 6749, Section 10.10: the token id is 128 random bits, and no two tokens share one.
func TestRFC6749_10_10_TokenIDs(t *testing.T) {
	t.Parallel()
	seen := make(map[string]bool)
	var ones [128]int
	const number = 100_000
	for range number {
		id := newTokenID()
		raw, err := base64.RawURLEncoding.Strict().DecodeString(id)
		if err != nil || len(raw) != 16 || seen[id] {
			t.Fatalf("id %q: %v", id, err)
		}
		seen[id] = true
		for bit := range ones {
			ones[bit] += int(raw[bit/8] >> (bit % 8) & 1)
		}
	}
	for bit, n := range ones { // 10 standard deviations off is not chance
		if n < number/2-1600 || n > number/2+1600 {
			t.Errorf("bit %d is set %d times in %d", bit, n, number)
		}
	}
}

// TE-19: RFC 6749, Appendix B: percent-encoding and UTF-8 are strict, plus is a space, NUL is refused.
func TestRFC6749_B_StrictDecoding(t *testing.T) {
	t.Parallel()
	s := newService(t)
	cert := s.enrol(t, "payments")
	for _, body := range []string{
		"client_id=%zz", "client_id=%", "client_id=payments%4", "client_id=%ff", "client_id=\xff", "client_id=pay%00ments",
		"%zz=1&client_id=payments", "%ff=1&client_id=payments", "x=%c3%28&client_id=payments", "x=%u0041&client_id=payments",
		"x=%00&client_id=payments", "x=%g1%80%80%80&client_id=payments", "client_id=pay%0Aments", "client_id=p%C3%A9",
		"client_id=" + strings.Repeat("a", maxClientID+1),
	} {
		s.post(t, &cert, "grant_type=client_credentials&"+body).want(t, 400, tokens.CodeInvalidRequest)
	}
	s.post(t, &cert, "grant%5ftype=client%5Fcredentials&client_id=%70ayments&scope=read+write&x=%C3%A9").wantToken(t)
	s.post(t, &cert, "grant_type=client_credentials&client_id=payments;scope=x").want(t, 401, tokens.CodeInvalidClient)
}

// TE-20: RFC 9700, Section 2.6: services need no CORS; a preflight gets none, and neither does an answer.
func TestRFC9700_2_6_NoCORS(t *testing.T) {
	t.Parallel()
	s := newService(t)
	cert := s.enrol(t, "payments")
	origin := func(r *http.Request) { r.Header.Set("Origin", "https://evil.example") }
	preflight := func(r *http.Request) {
		origin(r)
		r.Method = http.MethodOptions
		r.Header.Set("Access-Control-Request-Method", "POST")
	}
	for _, edit := range []func(*http.Request){origin, preflight} {
		a := s.post(t, &cert, ask("payments"), edit)
		for name := range a.header {
			if strings.HasPrefix(name, "Access-Control-") {
				t.Errorf("header %s", name)
			}
		}
	}
}

// TE-21: RFC 6749, Section 10.10: strangers who fail under a client's id do not lock the client out.
func TestRFC6749_10_10_NoLockout(t *testing.T) {
	t.Parallel()
	s := newService(t)
	cert := s.enrol(t, "payments")
	stranger := mtlstest.PeerOf(s.ca.Issue(t, mtlstest.Leaf{CommonName: "payments"}))
	for range 1000 {
		_, err := s.Issue(t.Context(), Request{GrantType: ClientCredentials, ClientID: "payments", Peer: stranger})
		wantError(t, err, tokens.CodeInvalidClient, "certificate_unknown")
	}
	s.post(t, &cert, ask("payments")).wantToken(t)
}

// TE-22: RFC 6749, Section 5.2: without the registry, a signing key or the journal there is no token, and the refusal
// tells nothing of the cause.
func TestRFC6749_5_2_FailsClosed(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(*service){
		"registry":    func(s *service) { s.registry.change(func(r *registry) { r.clientErr = errDown }) },
		"journal":     func(s *service) { s.journal.fail(errDown) },
		"signing key": func(s *service) { s.keys.err = errDown },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			cert := s.enrol(t, "payments")
			fail(s)
			a := s.post(t, &cert, ask("payments"))
			a.want(t, 503, tokens.CodeTemporarilyUnavailable)
			if strings.Contains(a.body, errDown.Error()) {
				t.Errorf("the cause shows: %s", a.body)
			}
			if s.events.issued.Load() != 0 || s.events.refused.Load() != 1 {
				t.Errorf("counted %d tokens, %d refusals", s.events.issued.Load(), s.events.refused.Load())
			}
		})
	}
	t.Run("inventory", func(t *testing.T) {
		t.Parallel()
		s := newService(t)
		cert := s.enrol(t, "payments")
		s.registry.change(func(r *registry) { r.inventoryErr = errDown })
		s.post(t, &cert, ask("payments")).want(t, 503, tokens.CodeTemporarilyUnavailable)
		s.post(t, &cert, ask("unknown")).want(t, 503, tokens.CodeTemporarilyUnavailable)
	})
	t.Run("key of another kind", func(t *testing.T) {
		t.Parallel()
		s := newService(t)
		cert := s.enrol(t, "payments")
		s.keys.signing.Algorithm = tokens.EdDSA
		s.post(t, &cert, ask("payments")).want(t, 500, tokens.CodeServerError)
	})
}

// CA-01: RFC 8705, Section 2: client_id is required although the certificate would tell.
func TestRFC8705_2_ClientIDRequired(t *testing.T) {
	t.Parallel()
	s := newService(t)
	cert := s.enrol(t, "payments")
	s.post(t, &cert, "grant_type=client_credentials").want(t, 400, tokens.CodeInvalidRequest)
	if got := s.journal.last(t).Reason; got != "client_id_missing" {
		t.Errorf("reason %s", got)
	}
}

// CA-02: RFC 8705, Section 2.1: the certificate must be that client's, not just anybody's.
func TestRFC8705_2_1_CertificateOfAnotherClient(t *testing.T) {
	t.Parallel()
	s := newService(t)
	payments, orders := s.enrol(t, "payments"), s.enrol(t, "orders")
	s.post(t, &payments, ask("orders")).want(t, 401, tokens.CodeInvalidClient)
	if got := s.journal.last(t); got.Reason != "certificate_of_another_client" || got.Authenticated || got.Granted {
		t.Errorf("recorded %+v", got)
	}
	s.post(t, &orders, ask("orders")).wantToken(t)

	// Without an inventory, the registered subject alone keeps them apart.
	for _, id := range []string{"payments", "orders"} {
		s.registry.changeClient(id, func(c *Client) { c.Inventory = false })
	}
	s.post(t, &payments, ask("orders")).want(t, 401, tokens.CodeInvalidClient)
	if got := s.journal.last(t).Reason; got != "subject_mismatch" {
		t.Errorf("reason %s, want subject_mismatch", got)
	}
	s.post(t, &orders, ask("orders")).wantToken(t)
}

// CA-03, TLS-10: RFC 8705, Section 2; RFC 6749, Section 5.2: without a certificate the handshake succeeds and the
// answer is invalid_client as JSON.
func TestRFC8705_2_NoCertificate(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.enrol(t, "payments")
	a := s.post(t, nil, ask("payments"))
	a.want(t, 401, tokens.CodeInvalidClient)
	if b := s.post(t, nil, ask("nobody")); a.body != b.body {
		t.Errorf("a known client is told from an unknown one: %s, %s", a.body, b.body)
	}
}

// CA-14: RFC 8705, Section 7.4: the right name from an authority that is not this client's is a stranger's.
func TestRFC8705_7_4_AnchorsPerClient(t *testing.T) {
	t.Parallel()
	s := newService(t)
	ours := s.enrol(t, "payments")
	other := mtlstest.NewCA(t, "ours") // the same name
	forged := other.Issue(t, mtlstest.Leaf{CommonName: "payments", URIs: []string{ours.Leaf.URIs[0].String()}})
	s.registry.changeClient("payments", func(c *Client) { c.Inventory = false })
	s.post(t, &forged, ask("payments")).want(t, 401, tokens.CodeInvalidClient)
	if got := s.journal.last(t).Reason; got != "certificate_untrusted" {
		t.Errorf("reason %s, want certificate_untrusted", got)
	}
	s.post(t, &ours, ask("payments")).wantToken(t)
	s.registry.changeClient("payments", func(c *Client) { c.Anchors = nil })
	s.post(t, &ours, ask("payments")).want(t, 401, tokens.CodeInvalidClient)
	s.registry.changeClient("payments", func(c *Client) { c.Anchors, c.Subject = s.ca.Anchors(t), mtls.Subject{} })
	s.post(t, &ours, ask("payments")).want(t, 401, tokens.CodeInvalidClient)
}

// CA-15: RFC 5280, Section 4.2.1.12: a certificate that is not for client authentication does not authenticate one.
func TestRFC5280_4_2_1_12_ClientAuth(t *testing.T) {
	t.Parallel()
	s := newService(t)
	cert := s.enrol(t, "payments", func(l *mtlstest.Leaf) { l.Usage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
	s.post(t, &cert, ask("payments")).want(t, 401, tokens.CodeInvalidClient)
	if got := s.journal.last(t).Reason; got != "certificate_untrusted" {
		t.Errorf("reason %s, want certificate_untrusted", got)
	}
}

// CA-21: RFC 6749, Section 2.3: the certificate is the one authentication method; a second one is refused.
func TestRFC6749_2_3_TwoMethods(t *testing.T) {
	t.Parallel()
	s := newService(t)
	cert := s.enrol(t, "payments")
	for _, parameter := range []string{"client_secret=x", "client_assertion=x", "client_assertion_type=x"} {
		s.post(t, &cert, ask("payments")+"&"+parameter).want(t, 400, tokens.CodeInvalidRequest)
		s.post(t, nil, ask("payments")+"&"+parameter).want(t, 401, tokens.CodeInvalidClient)
	}
	for _, value := range []string{"Basic cGF5bWVudHM6", "Bearer x", ""} {
		a := s.post(t, &cert, ask("payments"), func(r *http.Request) { r.Header["Authorization"] = []string{value} })
		a.want(t, 401, tokens.CodeInvalidClient)
	}
}

// CA-22: RFC 8705, Section 2: only the registered method authenticates.
func TestRFC8705_2_RegisteredMethodOnly(t *testing.T) {
	t.Parallel()
	s := newService(t)
	cert := s.enrol(t, "payments")
	for _, method := range []string{"", "none", "client_secret_basic", "TLS_CLIENT_AUTH", "private_key_jwt"} {
		s.registry.changeClient("payments", func(c *Client) { c.AuthMethod = method })
		s.post(t, &cert, ask("payments")).want(t, 401, tokens.CodeInvalidClient)
		if got := s.journal.last(t).Reason; got != "method_mismatch" {
			t.Errorf("%s: reason %s", method, got)
		}
	}
}

// CA-25: RFC 7592, Section 2.3: a disabled or removed client is refused at once.
func TestRFC7592_2_3_DisabledClient(t *testing.T) {
	t.Parallel()
	s := newService(t)
	cert := s.enrol(t, "payments")
	s.post(t, &cert, ask("payments")).wantToken(t)
	s.registry.changeClient("payments", func(c *Client) { c.Disabled = true })
	s.post(t, &cert, ask("payments")).want(t, 401, tokens.CodeInvalidClient)
	if _, err := s.Authenticate(t.Context(), "payments", mtlstest.PeerOf(cert)); err == nil {
		t.Error("Authenticate takes a disabled client")
	}
	s.registry.changeClient("payments", func(c *Client) { c.Disabled = false })
	s.post(t, &cert, ask("payments")).wantToken(t)
	// Registered again under the same id, the old certificate is worthless.
	s.registry.changeClient("payments", func(c *Client) { c.Generation++ })
	s.post(t, &cert, ask("payments")).want(t, 401, tokens.CodeInvalidClient)
	s.registry.change(func(r *registry) { delete(r.clients, "payments") })
	s.post(t, &cert, ask("payments")).want(t, 401, tokens.CodeInvalidClient)
}

// CA-26: RFC 6749, Section 5.2: a failed authentication does not show whether the client exists: the same bytes, and
// the same look-ups.
func TestRFC6749_5_2_UnknownClientLooksLikeWrongCertificate(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.enrol(t, "payments")
	disabled := s.enrol(t, "disabled")
	s.registry.changeClient("disabled", func(c *Client) { c.Disabled = true })
	stranger := s.ca.Issue(t, mtlstest.Leaf{CommonName: "payments"})
	lookups := func() int {
		s.registry.mu.Lock()
		defer s.registry.mu.Unlock()
		return s.registry.lookups
	}
	type outcome struct {
		status    int
		body      string
		challenge string
		lookups   int
	}
	try := func(cert tls.Certificate, id string) outcome {
		before := lookups()
		a := s.post(t, &cert, ask(id))
		return outcome{a.status, a.body, a.header.Get("WWW-Authenticate"), lookups() - before}
	}
	want := try(stranger, "payments")
	if diff := cmp.Diff(want, try(stranger, "unknown"), cmp.AllowUnexported(outcome{})); diff != "" {
		t.Errorf("unknown client (-wrong certificate +unknown):\n%s", diff)
	}
	if diff := cmp.Diff(want, try(disabled, "disabled"), cmp.AllowUnexported(outcome{})); diff != "" {
		t.Errorf("disabled client (-wrong certificate +disabled):\n%s", diff)
	}
	if got := s.journal.last(t).Reason; got != "client_disabled" {
		t.Errorf("reason %s; the journal must know", got)
	}
}

// A certificate minted with the real issuing key outside the service is in no inventory, and gets no token.
func TestMintedOutsideTheInventory(t *testing.T) {
	t.Parallel()
	s := newService(t)
	issued := s.enrol(t, "payments")
	minted := s.ca.Issue(t, mtlstest.Leaf{CommonName: "payments", URIs: []string{issued.Leaf.URIs[0].String()}})
	s.post(t, &minted, ask("payments")).want(t, 401, tokens.CodeInvalidClient)
	if got := s.journal.last(t).Reason; got != "certificate_unknown" {
		t.Errorf("reason %s, want certificate_unknown", got)
	}
}

// A Registry that is laxer about spelling than RFC 6749, Section 2.2, does not make two ids one client.
func TestClientIDIsExact(t *testing.T) {
	t.Parallel()
	s := newService(t)
	cert := s.enrol(t, "payments")
	s.registry.change(func(r *registry) { r.clients["PAYMENTS"] = r.clients["payments"] })
	s.post(t, &cert, ask("PAYMENTS")).want(t, 401, tokens.CodeInvalidClient)
}

// CB-01, CB-02, CB-03: RFC 8705, Section 3.1: every token carries the SHA-256 of the DER of the certificate that was
// presented, as 43 characters of base64url.
func TestRFC8705_3_1_Confirmation(t *testing.T) {
	t.Parallel()
	s := newService(t)
	intermediate := s.ca.Intermediate(t, "issuing")
	s.ca = intermediate
	cert := s.enrol(t, "payments")
	claims := s.post(t, &cert, ask("payments")).wantToken(t)
	sum := sha256.Sum256(cert.Certificate[0])
	want := map[string]any{"x5t#S256": base64.RawURLEncoding.EncodeToString(sum[:])}
	if diff := cmp.Diff(any(want), claims["cnf"]); diff != "" {
		t.Errorf("cnf (-want +got):\n%s", diff)
	}
}

// CB-10: RFC 8705, Section 6.5: no header and no parameter stands for a certificate.
func TestRFC8705_6_5_ForwardedCertificateIgnored(t *testing.T) {
	t.Parallel()
	s := newService(t)
	victim, thief := s.enrol(t, "payments"), s.enrol(t, "orders")
	pem := base64.StdEncoding.EncodeToString(victim.Certificate[0])
	forward := func(r *http.Request) {
		r.Header.Set("Client-Cert", ":"+pem+":")
		r.Header.Set("X-Forwarded-Client-Cert", "Cert=\""+pem+"\"")
		r.Header.Set("X-SSL-Client-Cert", pem)
	}
	s.post(t, nil, ask("payments", "client_certificate", pem), forward).want(t, 401, tokens.CodeInvalidClient)
	s.post(t, &thief, ask("payments"), forward).want(t, 401, tokens.CodeInvalidClient)
	claims := s.post(t, &thief, ask("orders"), forward).wantToken(t)
	if got := claims["cnf"].(map[string]any)["x5t#S256"]; got != mtls.ThumbprintOf(thief.Leaf).String() {
		t.Errorf("bound to %v, want the connection's certificate", got)
	}
}

// The listener without certificates sends clients to the one with them (RFC 8705, Section 5).
func TestMisdirected(t *testing.T) {
	t.Parallel()
	s := newService(t)
	cert := s.enrol(t, "payments")
	a := do(t, s.client(t, &cert), request(t, s.public+TokenPath, ask("payments")))
	a.want(t, 401, tokens.CodeInvalidClient)
	if !strings.Contains(a.Text, s.mtlsURL+TokenPath) {
		t.Errorf("description %q does not name the token endpoint", a.Text)
	}
	if got := s.journal.last(t); got.Granted || got.Reason != "wrong_listener" {
		t.Errorf("recorded %+v", got)
	}
	a = do(t, s.client(t, nil), request(t, s.public+TokenPath, "", func(r *http.Request) { r.Method = "GET" }))
	a.want(t, 405, tokens.CodeInvalidRequest)
}

// What is granted and what is refused is recorded before the answer leaves, with all that an auditor asks.
func TestRecords(t *testing.T) {
	t.Parallel()
	s := newService(t)
	cert := s.enrol(t, "payments")
	ctx := WithAddress(WithCorrelationID(t.Context(), "c-1"), "192.0.2.1")
	r := Request{
		GrantType: ClientCredentials, ClientID: "payments", Peer: mtlstest.PeerOf(cert), Scope: []string{"read"},
		Address: "192.0.2.1", CorrelationID: "c-1",
	}
	response, err := s.Issue(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	got := s.journal.last(t)
	claims := part(t, response.AccessToken, 1)
	if got.Time.IsZero() || got.Expires.Unix() != got.Time.Unix()+600 || got.TokenID != claims["jti"] {
		t.Errorf("recorded %+v for %v", got, claims)
	}
	got.Time, got.Expires, got.TokenID = time.Time{}, time.Time{}, ""
	want := Decision{
		Event: EventToken, Granted: true, Authenticated: true, ClientID: "payments",
		Thumbprint: mtls.ThumbprintOf(cert.Leaf), Address: "192.0.2.1", CorrelationID: "c-1",
		Scope: []string{"read"}, Audience: []string{ledger},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("grant (-want +got):\n%s", diff)
	}

	_, err = s.Authenticate(ctx, "orders", r.Peer)
	wantError(t, err, tokens.CodeInvalidClient, "unknown_client")
	got = s.journal.last(t)
	got.Time = time.Time{}
	want = Decision{
		Event: EventAuthenticate, Reason: "unknown_client", ClientID: "orders",
		Thumbprint: mtls.ThumbprintOf(cert.Leaf), Address: "192.0.2.1", CorrelationID: "c-1",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("refusal (-want +got):\n%s", diff)
	}

	n := s.journal.count()
	if c, err := s.Authenticate(ctx, "payments", r.Peer); err != nil || c.ID != "payments" {
		t.Errorf("Authenticate = %v, %v", c, err)
	}
	if s.journal.count() != n {
		t.Error("a successful authentication was recorded: that is for the caller, who knows what it is for")
	}

	// A refusal that cannot be recorded is still the refusal that it was.
	s.journal.fail(errDown)
	r.Scope = []string{"delete"}
	_, err = s.Issue(ctx, r)
	wantError(t, err, tokens.CodeInvalidScope, "scope_not_granted")
}

// wantError fails the test unless err is a *tokens.Error of this code and reason.
func wantError(t *testing.T, err error, code, reason string) {
	t.Helper()
	e, ok := err.(*tokens.Error)
	if !ok || e.Code != code || e.Reason != reason {
		t.Errorf("error = %v, want %s (%s)", err, code, reason)
	}
}
