// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package resource_test

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/client"
	"github.com/certbound/certbound/tokens/resource"
	"github.com/certbound/certbound/tokens/tokenstest"
)

// gallery is a server with one guarded handler for each exhibit, at a path of its own, over TLS.
type gallery struct {
	*fixture
	ca       *mtlstest.CA
	owner    tls.Certificate // whose tokens the exhibits would be
	exhibits []tokenstest.Exhibit
	guarded  []http.Handler
	events   []*events
	server   *mtlstest.Running
}

func newGallery(t *testing.T) *gallery {
	t.Helper()
	g := &gallery{fixture: newFixture(t), ca: mtlstest.NewCA(t, "clients")}
	g.owner = g.ca.Issue(t, mtlstest.Leaf{CommonName: "payments"})
	g.peer = mtlstest.PeerOf(g.owner)
	g.exhibits = tokenstest.Museum(t, g.issuer, g.peer)
	g.config.Certificate = nil // the connection's
	for _, e := range g.exhibits {
		told := &events{}
		g.config.Verifier, g.config.Events = e.Verifier(t), told
		g.guarded, g.events = append(g.guarded, g.protect(t)), append(g.events, told)
	}
	g.server = mtlstest.StartServer(t, &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			number, err := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/"))
			if err != nil {
				t.Errorf("path %q", r.URL.Path)
				return
			}
			g.guarded[number].ServeHTTP(w, r)
		}),
		MaxHeaderBytes: 4 << 20, // so that the guard itself meets the largest exhibits
	}, g.ca.Issue(t, mtlstest.ServerLeaf()), mtls.ClientCertificatesRequested)
	return g
}

// target is where the exhibit of this number is judged.
func (g *gallery) target(number int) string { return fmt.Sprintf("%s/%d", g.server.URL, number) }

// all returns what was told so far.
func (e *events) all() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.told)
}

// last returns what was told last; empty when nothing was.
func (e *events) last() string {
	told := e.all()
	if len(told) == 0 {
		return ""
	}
	return told[len(told)-1]
}

// answer is all that a client can tell one refusal from another by.
type answer struct {
	Status int
	Header http.Header
	Body   string
}

// ask sends the token, and requires a correlation id and then forgets it with the date.
func ask(t *testing.T, hc *http.Client, target, raw string) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, target, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+raw)
	resp, err := hc.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if (resp.Header.Get(resource.CorrelationHeader) == "") != (resp.StatusCode == http.StatusOK) {
		t.Errorf("correlation id %q beside %d", resp.Header.Get(resource.CorrelationHeader), resp.StatusCode)
	}
	resp.Header.Del(resource.CorrelationHeader)
	resp.Header.Del("Date")
	return answer{resp.StatusCode, resp.Header, string(body)}
}

// plainRefusal is the one answer to every token that is not valid on its connection.
func plainRefusal() answer {
	body := `{"error":"invalid_token","error_description":"the access token is not valid on this connection"}` + "\n"
	return answer{http.StatusUnauthorized, http.Header{
		"Www-Authenticate": {notValid}, "Cache-Control": {"no-store"}, "Content-Type": {"application/json"},
		"Content-Length": {fmt.Sprint(len(body))},
	}, body}
}

// refusedPlainly checks that an answer is that refusal, to the byte.
func refusedPlainly(t *testing.T, about string, got answer) {
	t.Helper()
	if diff := cmp.Diff(plainRefusal(), got); diff != "" {
		t.Errorf("%s: %s", about, diff)
	}
}

// RS-01, RS-03, RS-04, RS-05, RS-06, RS-07, RS-08, RS-09, RS-10, RS-11, RS-12, RS-13, RS-14, RS-16, RS-18, RS-22, RS-25,
// RS-27: RFC 6750, Section 3.1: over HTTP/1.1 and HTTP/2, on connections that good tokens are used on in between, every
// token of the museum is refused: with the very same bytes as every other, or as a malformed request where it is no
// token at all; the log knows why.
func TestRFC6750_3_1_Museum(t *testing.T) {
	t.Parallel()
	g := newGallery(t)
	for protocol, hc := range map[string]*http.Client{
		"HTTP/1.1": mtlstest.Presenter(t, g.ca.Pool(), g.owner, 0),
		"HTTP/2.0": mtlstest.Client(t, g.ca.Pool(), &g.owner),
	} {
		if transport, ok := hc.Transport.(*http.Transport); ok {
			transport.DisableKeepAlives = false
		}
		t.Run(protocol, func(t *testing.T) {
			for number, e := range g.exhibits {
				if e.Unsendable {
					continue
				}
				g.meet(t, hc, number)
				if number%10 == 0 {
					if got := ask(t, hc, g.target(0), g.exhibits[0].Raw); got.Status != http.StatusOK {
						t.Fatalf("%s: the good token is refused afterwards: %+v", e.Name, got)
					}
				}
			}
		})
	}
}

func (g *gallery) meet(t *testing.T, hc *http.Client, number int) {
	t.Helper()
	e, told := g.exhibits[number], g.events[number]
	got := ask(t, hc, g.target(number), e.Raw)
	reason := e.Reason
	switch e.Code {
	case "":
		reason = "allowed"
		if got.Status != http.StatusOK || got.Body != tokenstest.Client {
			t.Errorf("%s: %s: refused: %+v", e.Name, e.Clause, got)
		}
	case tokens.CodeInvalidToken:
		refusedPlainly(t, e.Name, got)
	default:
		reason = "malformed_credentials"
		if len(e.Raw) >= 20<<10 {
			reason = "credentials_too_large"
		}
		if got.Status != http.StatusBadRequest || !strings.Contains(got.Body, `"error":"`+e.Code+`"`) {
			t.Errorf("%s: %s: %+v", e.Name, e.Clause, got)
		}
	}
	if last := told.last(); last != e.Code+":"+reason {
		t.Errorf("%s: %s: decided as %q, want %q", e.Name, e.Clause, last, e.Code+":"+reason)
	}
}

// RS-02: RFC 8705, Section 3: without a certificate no token of the museum is good, not even the good ones, and each is
// refused as plainly as with one.
func TestRFC8705_3_MuseumWithoutCertificate(t *testing.T) {
	t.Parallel()
	g := newGallery(t)
	hc := mtlstest.Client(t, g.ca.Pool(), nil)
	for number, e := range g.exhibits {
		if e.Unsendable || e.Code == tokens.CodeInvalidRequest {
			continue
		}
		refusedPlainly(t, e.Name, ask(t, hc, g.target(number), e.Raw))
		if last := g.events[number].last(); last != "invalid_token:no_certificate" {
			t.Errorf("%s: decided as %q", e.Name, last)
		}
	}
}

// RS-12, RS-18: RFC 9112, Section 5: what no client would send is sent byte for byte. It is refused, by the server's
// parser or by the guard; what is left of it when whitespace at the end of a field has gone may be a good token.
func TestRFC9112_5_MuseumByteForByte(t *testing.T) {
	t.Parallel()
	g := newGallery(t)
	for number, e := range g.exhibits {
		if !e.Unsendable {
			continue
		}
		status := g.write(t, number, e.Raw)
		trimmed := !strings.ContainsAny(strings.TrimRight(e.Raw, " \t\r\n"), " \t\r\n\x00\v")
		if status != http.StatusBadRequest && !(trimmed && status == http.StatusOK) {
			t.Errorf("%s: %s: status %d", e.Name, e.Clause, status)
		}
		g.config.Certificate = func(*http.Request) (*mtls.Peer, error) { return g.peer, nil }
		g.config.Verifier = e.Verifier(t)
		g.handler = g.protect(t)
		if got := refusalOf(t, g.do("/", "Bearer "+e.Raw)); got.Status != http.StatusBadRequest || got.Error != e.Code {
			t.Errorf("%s: %s: the guard answers %+v", e.Name, e.Clause, got)
		}
	}
}

// write sends a request with the token as it is and returns the status.
func (g *gallery) write(t *testing.T, number int, raw string) int {
	t.Helper()
	conn, err := tls.Dial("tcp", g.server.Addr,
		&tls.Config{RootCAs: g.ca.Pool(), Certificates: []tls.Certificate{g.owner}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /%d HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer %s\r\n\r\n", number, raw)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

// CL-06, CL-07, RS-18: RFC 6750, Section 2.1: our client, given a token of the museum by the token endpoint, uses it as it
// is or not at all: what is no token, or longer than it should be, never leaves the client. A refused one is replaced once.
func TestRFC6750_2_1_MuseumFromTheIssuer(t *testing.T) {
	t.Parallel()
	g := newGallery(t)
	var asked atomic.Int64
	issuer := mtlstest.Server(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		number, err := strconv.Atoi(r.PostFormValue("client_id"))
		if err != nil {
			t.Error(err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{
			"access_token": g.exhibits[number].Raw, "token_type": "Bearer", "expires_in": 600,
		})
	}), g.ca.Issue(t, mtlstest.ServerLeaf()), mtls.ClientCertificatesRequested)
	pair, err := mtls.NewKeyPair(g.owner)
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]bool{}
	for number, e := range g.exhibits {
		if kind := e.Clause + e.Reason; !kinds[kind] || e.Code == tokens.CodeInvalidRequest {
			kinds[kind] = true
			g.receive(t, client.Config{
				Issuer: issuer.URL, ClientID: strconv.Itoa(number), KeyPair: pair, Roots: g.ca.Pool(),
				Origins: []string{g.server.URL}, Metadata: &client.Metadata{Issuer: issuer.URL, TokenEndpoint: issuer.URL},
			}, number)
		}
	}
	if asked.Load() < int64(len(kinds)) {
		t.Errorf("the issuer was asked %d times", asked.Load())
	}
}

func (g *gallery) receive(t *testing.T, c client.Config, number int) {
	t.Helper()
	e := g.exhibits[number]
	transport, err := client.New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer transport.Close()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, g.target(number), nil)
	if err != nil {
		t.Fatal(err)
	}
	status := 0
	resp, err := transport.RoundTrip(r)
	if err == nil {
		resp.Body.Close()
		status = resp.StatusCode
	}
	want := http.StatusOK
	switch {
	case e.Code == tokens.CodeInvalidRequest || len(e.Raw) > 16<<10:
		want = 0
	case e.Code == tokens.CodeInvalidToken:
		want = http.StatusUnauthorized
	}
	if told := g.events[number].all(); status != want || (len(told) == 0) != (want == 0) || len(told) > 2 {
		t.Errorf("%s: %s: status %d, want %d; the resource server decided %q; %v", e.Name, e.Clause, status, want, told, err)
	}
	if err != nil && len(e.Raw) >= 16 && strings.Contains(err.Error(), e.Raw[:16]) {
		t.Errorf("%s: the error holds the token: %v", e.Name, err)
	}
}

// RS-01, RS-03, RS-29, CB-01: RFC 8705, Sections 3 and 6.2: whatever certificate of the museum gets through
// a handshake, its holder can use the tokens bound to its leaf while it is within its dates, and no other token: not the
// victim's, not one bound to another certificate of the chain it sent, not one that is not bound.
func TestRFC8705_6_2_MuseumOfCertificates(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.config.Certificate = nil
	ca := mtlstest.NewCA(t, "servers")
	server := mtlstest.Server(t, f.protect(t), ca.Issue(t, mtlstest.ServerLeaf()), mtls.ClientCertificatesRequested)
	victims, unbound := f.issuer.Token(t, f.peer), f.issuer.TokenWith(t, nil, func(_, _ map[string]any) {})
	for _, e := range mtlstest.Museum(t) {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			t.Run(e.Name+"/"+tls.VersionName(version), func(t *testing.T) {
				hc := mtlstest.Presenter(t, ca.Pool(), e.Chain, version)
				if e.Must == mtlstest.RefusedInHandshake {
					f.unreachable(t, hc, server.URL, victims)
					return
				}
				refusedPlainly(t, e.Clause, ask(t, hc, server.URL, victims))
				refusedPlainly(t, e.Clause, ask(t, hc, server.URL, unbound))
				for _, der := range e.Chain.Certificate[1:] {
					above, err := x509.ParseCertificate(der)
					if err != nil || above.Equal(e.Chain.Leaf) {
						continue
					}
					others := f.issuer.Token(t, mtls.NewPeer(above))
					refusedPlainly(t, "bound to another of the chain", ask(t, hc, server.URL, others))
				}
				own := ask(t, hc, server.URL, f.issuer.Token(t, e.Peer()))
				if e.Now.Before(e.Chain.Leaf.NotBefore) || e.Now.After(e.Chain.Leaf.NotAfter) {
					refusedPlainly(t, "outside its dates", own)
				} else if own.Status != http.StatusOK {
					t.Errorf("%s: the holder's own token is refused: %+v", e.Clause, own)
				}
			})
		}
	}
}

// unreachable checks that the handshake breaks and no request is decided.
func (f *fixture) unreachable(t *testing.T, hc *http.Client, target, raw string) {
	t.Helper()
	before := len(f.events.all())
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, target, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+raw)
	if resp, err := hc.Do(r); err == nil {
		resp.Body.Close()
		t.Errorf("answer %s, want a broken handshake", resp.Status)
	}
	if told := f.events.all(); len(told) != before {
		t.Errorf("a request was decided: %q", told[before:])
	}
}
