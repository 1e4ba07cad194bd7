// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens"
)

// endpoint is a row of the matrix: everything that this package answers.
type endpoint struct {
	name     string
	verb     string
	path     string
	mtls     bool // served on the listener that asks for certificates, otherwise on the other one
	document bool // answers anyone the same, whoever they are
	silent   bool // what it grants is not recorded
	// body holds the parameters of an ordinary request but for those that identify the client.
	body url.Values
	// granted judges an answer of 200 to the client id with this certificate.
	granted func(t *testing.T, body string, id string, cert *tls.Certificate)
}

func (x *matrix) endpoints() []endpoint {
	ask, about := url.Values{"grant_type": {ClientCredentials}}, url.Values{"token": {x.bearer}}
	rows := []endpoint{
		{name: "token", verb: "POST", path: TokenPath, mtls: true, body: ask, granted: grantedToken},
		{name: "token, public", verb: "POST", path: TokenPath, body: ask, granted: grantedToken},
		{name: "introspect", verb: "POST", path: IntrospectPath, mtls: true, body: about, granted: x.grantedAnswer, silent: true},
		{name: "introspect, public", verb: "POST", path: IntrospectPath, body: about, granted: x.grantedAnswer, silent: true},
	}
	documents := append(x.MetadataPaths(), KeysPath)
	for _, path := range documents {
		for _, verb := range []string{"GET", "POST"} {
			rows = append(rows, endpoint{
				name: strings.TrimPrefix(path, "/.well-known/") + ", " + verb, verb: verb, path: path, document: true,
				body: ask, granted: grantedDocument,
			})
		}
	}
	return rows
}

func grantedToken(t *testing.T, body, id string, cert *tls.Certificate) {
	t.Helper()
	a := answer{status: http.StatusOK, body: body}
	if err := json.Unmarshal([]byte(body), &a); err != nil {
		t.Fatal(err)
	}
	wantBound(t, a, *cert, id)
}

// grantedAnswer demands the truth about the token of another client.
func (x *matrix) grantedAnswer(t *testing.T, body, _ string, _ *tls.Certificate) {
	t.Helper()
	var got struct {
		Active   bool
		ClientID string `json:"client_id"`
		Binding  struct {
			Thumbprint string `json:"x5t#S256"`
		} `json:"cnf"`
	}
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	if !got.Active || got.ClientID != "other-0" || got.Binding.Thumbprint != mtls.ThumbprintOf(x.others[0].Leaf).String() {
		t.Errorf("answer %s", body)
	}
}

func grantedDocument(t *testing.T, body, _ string, _ *tls.Certificate) {
	t.Helper()
	if strings.Contains(body, "access_token\"") || !json.Valid([]byte(body)) {
		t.Errorf("the document is %s", body)
	}
}

// method is how the client of a request is registered, if at all.
type method struct {
	name string
	live bool // its own certificate authenticates it
	// own is its certificate: of a client that is not registered, one that our CA issued in its name.
	own tls.Certificate
	id  string
}

func (s *service) methods(t *testing.T) []method {
	t.Helper()
	disable := func(id string) { s.registry.changeClient(id, func(c *Client) { c.Disabled = true }) }
	var list []method
	for i, kind := range kinds {
		live, dead := fmt.Sprint("live-", i), fmt.Sprint("disabled-", i)
		list = append(list,
			method{name: kind.name, live: true, own: kind.enrol(t, s, live, s.partner), id: live},
			method{name: kind.name + ", disabled", own: kind.enrol(t, s, dead, s.partner), id: dead})
		disable(dead)
	}
	unknown := method{name: "unknown", own: s.enrol(t, "unknown"), id: "unknown"}
	s.registry.change(func(r *registry) { delete(r.clients, "unknown") })
	foreign := method{name: "method that is not answered", own: s.enrol(t, "secretive"), id: "secretive"}
	s.registry.changeClient("secretive", func(c *Client) { c.AuthMethod = "client_secret_basic" })
	return append(list, unknown, foreign)
}

// shown says whose certificate a request's connection shows.
type shown int

const (
	none  shown = iota
	right       // the client's own
	wrong       // another client's
)

// credential is what a request presents.
type credential struct {
	name          string
	anonymous     bool // it names no client
	shows         shown
	other         int    // which of the other clients, where their certificate plays a part
	authorization string // the scheme of an Authorization header
	parameter     string // another authentication method, tried in the body
	forwards      shown  // whose certificate a header claims to have been shown
	elsewhere     bool   // it comes to the other listener
}

func credentials() []credential {
	list := []credential{
		{name: "none", anonymous: true},
		{name: "id only"},
		{name: "secret", parameter: "client_secret"},
		{name: "Basic", authorization: "Basic"},
		{name: "bearer", authorization: "Bearer"},
		{name: "assertion", parameter: "client_assertion"},
		{name: "right certificate", shows: right},
		{name: "right certificate, no id", shows: right, anonymous: true},
		{name: "right certificate on the other listener", shows: right, elsewhere: true},
		{name: "right certificate and secret", shows: right, parameter: "client_secret"},
		{name: "right certificate and assertion", shows: right, parameter: "client_assertion"},
		{name: "right certificate and Basic", shows: right, authorization: "Basic"},
		{name: "right certificate and bearer", shows: right, authorization: "Bearer"},
		{name: "no certificate, right one forwarded", forwards: right},
	}
	for i, kind := range kinds {
		list = append(list,
			credential{name: "wrong certificate, " + kind.name, shows: wrong, other: i},
			credential{name: "wrong certificate, right one forwarded, " + kind.name, shows: wrong, other: i, forwards: right},
			credential{name: "right certificate, wrong one forwarded, " + kind.name, shows: right, other: i, forwards: wrong},
		)
	}
	return list
}

// expected is the oracle: the whole policy in one place, written without looking at how it is enforced.
func expected(e endpoint, m method, c credential) (status int, code string) {
	switch {
	case e.document && c.elsewhere:
		return 404, "" // a document is on one listener only
	case e.document && e.verb != "GET":
		return 405, tokens.CodeInvalidRequest
	case e.document:
		return 200, ""
	case e.mtls == c.elsewhere: // arrives where no certificate is asked for
		return 401, tokens.CodeInvalidClient
	case c.authorization != "" || c.parameter != "" && c.shows == none: // another method, instead or besides
		return 401, tokens.CodeInvalidClient
	case c.parameter != "": // two methods
		return 400, tokens.CodeInvalidRequest
	case c.anonymous:
		return 400, tokens.CodeInvalidRequest
	case m.live && c.shows == right:
		return 200, ""
	}
	return 401, tokens.CodeInvalidClient
}

// matrix holds what the requests of the matrix are made of.
type matrix struct {
	*service
	others  []tls.Certificate // of live clients, one of each kind
	bearer  string            // a token of one of them
	clients map[string]*http.Client
}

func newMatrix(t *testing.T) *matrix {
	t.Helper()
	x := &matrix{service: newService(t), clients: map[string]*http.Client{}}
	for i, kind := range kinds {
		id := fmt.Sprint("other-", i)
		cert := kind.enrol(t, x.service, id, x.partner)
		x.wantServed(t, cert, id)
		x.others = append(x.others, cert)
	}
	x.bearer = x.post(t, &x.others[0], ask("other-0")).Token
	x.servers.change(func(s *servers) { // nothing but who they are keeps any of these from asking
		for i := range kinds {
			s.of[fmt.Sprint("live-", i)], s.of[fmt.Sprint("disabled-", i)] = []string{ledger}, []string{ledger}
			s.of[fmt.Sprint("other-", i)] = []string{ledger}
		}
		s.of["unknown"], s.of["secretive"] = []string{ledger}, []string{ledger}
	})
	return x
}

func (x *matrix) certificate(who shown, m method, c credential) *tls.Certificate {
	switch who {
	case right:
		return &m.own
	case wrong:
		return &x.others[c.other]
	}
	return nil
}

// connect returns the client that shows this certificate in this version; it is kept for further requests.
func (x *matrix) connect(t *testing.T, cert *tls.Certificate, version uint16) *http.Client {
	t.Helper()
	key := fmt.Sprint(version)
	var kp *mtls.KeyPair
	if cert != nil {
		var err error
		if kp, err = mtls.NewKeyPair(*cert); err != nil {
			t.Fatal(err)
		}
		key += mtls.ThumbprintOf(cert.Leaf).String()
	}
	if hc, ok := x.clients[key]; ok {
		return hc
	}
	cfg := mtls.ClientConfig(kp, x.ca.Pool())
	cfg.MinVersion, cfg.MaxVersion = version, version
	transport := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	x.clients[key] = &http.Client{Transport: transport, Timeout: 30 * time.Second}
	return x.clients[key]
}

// request spells the credential out.
func (x *matrix) request(t *testing.T, e endpoint, m method, c credential) *http.Request {
	t.Helper()
	base, body := x.public, url.Values{}
	if e.mtls != c.elsewhere {
		base = x.mtlsURL
	}
	for name, values := range e.body {
		body[name] = values
	}
	if !c.anonymous {
		body.Set("client_id", m.id)
	}
	switch c.parameter {
	case "client_secret":
		body.Set("client_secret", "secret")
	case "client_assertion":
		body.Set("client_assertion", x.bearer)
		body.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
	}
	r := request(t, base+e.path, body.Encode(), func(r *http.Request) { r.Method = e.verb })
	switch c.authorization {
	case "Basic":
		r.SetBasicAuth(m.id, "secret")
	case "Bearer":
		r.Header.Set("Authorization", "Bearer "+x.bearer)
	}
	if cert := x.certificate(c.forwards, m, c); cert != nil {
		der := base64.StdEncoding.EncodeToString(cert.Certificate[0])
		r.Header.Set("Client-Cert", ":"+der+":") // RFC 9440, Section 2.1
		r.Header.Set("X-Forwarded-Client-Cert", "Cert="+der)
		r.Header.Set("X-SSL-Client-Cert", der)
	}
	return r
}

// CA-21, CA-22, CB-10: RFC 8705, Section 2; RFC 6749, Section 2.3: at every endpoint, whatever method a client is
// registered for and whatever is presented, in TLS 1.2 and 1.3, the answer is what one small table says: only the
// client's own certificate on the connection authenticates it, on the listener that asks for one, and alone.
func TestRFC8705_2_Matrix(t *testing.T) {
	t.Parallel()
	x := newMatrix(t)
	methods := x.methods(t)
	granted := 0
	for _, e := range x.endpoints() {
		for _, m := range methods {
			for _, c := range credentials() {
				for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
					name := fmt.Sprintf("%s/%s/%s/%s", e.name, m.name, c.name, tls.VersionName(version))
					t.Run(name, func(t *testing.T) {
						if x.try(t, e, m, c, version) && !e.document {
							granted++
						}
					})
				}
			}
		}
	}
	// The right certificate, alone and with three headers that mean nothing, and once more by the row that went to the
	// wrong listener of the wrong listener, for three kinds of client, in two versions, at two endpoints.
	if want := 3 * (4 + 1) * 2 * 2; granted != want {
		t.Errorf("%d requests granted, want %d: the matrix has lost rows, or its oracle is wrong", granted, want)
	}
}

// try sends one request of the matrix, compares with the oracle, and reports whether it was granted.
func (x *matrix) try(t *testing.T, e endpoint, m method, c credential, version uint16) bool {
	t.Helper()
	cert := x.certificate(c.shows, m, c)
	decided := x.journal.count()
	res, err := x.connect(t, cert, version).Do(x.request(t, e, m, c))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if res.TLS.Version != version {
		t.Fatalf("%s", tls.VersionName(res.TLS.Version))
	}
	status, code := expected(e, m, c)
	var got struct {
		Code  string `json:"error"`
		Token string `json:"access_token"`
	}
	if status != http.StatusNotFound { // which the router of the test wrote
		if err := json.Unmarshal(body, &got); err != nil {
			t.Fatalf("%s: %v", body, err)
		}
	}
	if res.StatusCode != status || got.Code != code || status != http.StatusOK && got.Token != "" {
		t.Fatalf("answer %d %s, want %d %s", res.StatusCode, body, status, code)
	}
	challenge := res.Header.Get("WWW-Authenticate")
	if want := c.authorization; status == http.StatusUnauthorized &&
		!strings.HasPrefix(challenge, max(want, "B")) || status != http.StatusUnauthorized && challenge != "" {
		t.Errorf("status %d with challenge %q", status, challenge)
	}
	if status == http.StatusOK {
		e.granted(t, string(body), m.id, cert)
	}
	x.recorded(t, e, decided, status)
	return status == http.StatusOK
}

// recorded demands that a decision about a client was recorded, once, as what it was, and nothing else.
func (x *matrix) recorded(t *testing.T, e endpoint, before, status int) {
	t.Helper()
	want := 1
	if e.document || e.silent && status == http.StatusOK {
		want = 0
	}
	if n := x.journal.count() - before; n != want {
		t.Fatalf("%d decisions recorded, want %d", n, want)
	}
	if want == 0 {
		return
	}
	if d := x.journal.last(t); d.Granted != (status == http.StatusOK) || d.Authenticated != d.Granted ||
		d.Granted != (d.Reason == "") {
		t.Errorf("status %d recorded as %+v", status, d)
	}
}

// CA-26: RFC 6749, Section 5.2: a client that is known and one that is not get the same bytes for the same wrong
// credential, so that nobody finds out who is registered, and how.
func TestRFC6749_5_2_MatrixTellsNothing(t *testing.T) {
	t.Parallel()
	x := newMatrix(t)
	methods := x.methods(t)
	for _, e := range x.endpoints()[:4] {
		for _, c := range credentials() {
			if c.shows == right {
				continue
			}
			bodies := map[string]string{}
			for _, m := range methods {
				a := do(t, x.connect(t, x.certificate(c.shows, m, c), tls.VersionTLS13), x.request(t, e, m, c))
				bodies[fmt.Sprint(a.status, a.header["Www-Authenticate"], a.body)] = m.name
			}
			if len(bodies) != 1 {
				t.Errorf("%s, %s: answers differ: %v", e.name, c.name, bodies)
			}
		}
	}
}
