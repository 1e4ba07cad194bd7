// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package client

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
)

// CL-01: RFC 8705, Section 5: a client with a certificate goes to the token endpoint in mtls_endpoint_aliases when
// there is one, and to token_endpoint otherwise.
func TestRFC8705_5_UsesTokenEndpointAlias(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.public = mtlstest.Server(t, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		writeJSON(rw, http.StatusOK, map[string]any{
			"issuer":                w.public.URL,
			"token_endpoint":        w.public.URL + "/wrong",
			"mtls_endpoint_aliases": map[string]any{"token_endpoint": w.token.URL + "/right"},
		})
	}), w.ca.Issue(t, mtlstest.ServerLeaf()), mtls.ClientCertificatesIgnored)
	var path atomic.Value
	w.respond = func(rw http.ResponseWriter, r *http.Request, issued string) {
		path.Store(r.URL.Path)
		answer(600)(rw, r, issued)
	}
	if _, err := start(t, w.config(t)).Token(t.Context()); err != nil {
		t.Fatal(err)
	}
	if path.Load() != "/right" {
		t.Errorf("token request went to %v", path.Load())
	}
}

// CL-02: RFC 8705, Section 2: the token request carries client_id; and nothing that a second method of client
// authentication would take for a secret (RFC 6749, Section 2.3: one method per request).
func TestRFC8705_2_SendsClientIDAndNoSecret(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.config(t)
	c.Scopes, c.Resources = []string{"b", "a"}, []string{"https://r2.example", "https://r1.example"}
	if _, err := start(t, c).Token(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := url.Values{
		"grant_type": {"client_credentials"}, "client_id": {"payments"}, "scope": {"a b"},
		"resource": {"https://r1.example", "https://r2.example"},
	}
	if got := w.forms[0]; !maps.EqualFunc(got, want, slices.Equal[[]string]) {
		t.Errorf("form %v, want %v", got, want)
	}
	if got := w.headers[0].Get("Authorization"); got != "" {
		t.Errorf("the token request has Authorization %q", got)
	}
}

// CL-02: RFC 6749, Section 3.2 and RFC 8414, Section 2: issuer, token endpoint and alias are https, and so is whoever
// receives the token (RFC 6750, Section 5.3).
func TestRFC6749_3_2_RefusesPlainHTTP(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	plain := strings.Replace(w.token.URL, "https:", "http:", 1)
	tests := map[string]func(*Config){
		"issuer": func(c *Config) {
			c.Issuer = strings.Replace(c.Issuer, "https:", "http:", 1)
			c.Metadata = &Metadata{Issuer: c.Issuer, TokenEndpoint: w.token.URL}
		},
		"endpoint": func(c *Config) { c.Metadata = &Metadata{Issuer: c.Issuer, TokenEndpoint: plain} },
		"alias": func(c *Config) {
			c.Metadata = &Metadata{Issuer: c.Issuer, TokenEndpoint: w.token.URL, Aliases: Endpoints{TokenEndpoint: plain}}
		},
		"no endpoint": func(c *Config) { c.Metadata = &Metadata{Issuer: c.Issuer} },
		"origin":      func(c *Config) { c.Origins = []string{plain} },
	}
	for name, spoil := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := w.config(t)
			spoil(&c)
			if tr, err := New(t.Context(), c); err == nil {
				tr.Close()
				t.Error("accepted")
			}
		})
	}
	if _, err := Discover(t.Context(), http.DefaultClient, plain); err == nil {
		t.Error("Discover accepted an http issuer")
	}
}

// CL-03: RFC 8414, Section 3.3: metadata whose issuer is not byte for byte the one asked for must not be used.
func TestRFC8414_3_3_IssuerMismatch(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, named := range map[string]string{
		"other":   "https://other.example",
		"slash":   w.public.URL + "/",
		"case":    strings.Replace(w.public.URL, "https", "HTTPS", 1),
		"missing": "",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var mine *mtlstest.Running
			mine = mtlstest.Server(t, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
				said := strings.Replace(named, w.public.Addr, mine.Addr, 1)
				writeJSON(rw, http.StatusOK, map[string]any{"issuer": said, "token_endpoint": w.token.URL})
			}), w.ca.Issue(t, mtlstest.ServerLeaf()), mtls.ClientCertificatesIgnored)
			c := w.config(t)
			c.Issuer = mine.URL
			if tr, err := New(t.Context(), c); err == nil {
				tr.Close()
				t.Error("discovered metadata accepted")
			}
			c.Metadata = &Metadata{Issuer: strings.Replace(named, w.public.Addr, mine.Addr, 1), TokenEndpoint: w.token.URL}
			if tr, err := New(t.Context(), c); err == nil {
				tr.Close()
				t.Error("given metadata accepted")
			}
		})
	}
}

// CL-03: RFC 8414, Section 3.1: the well-known part goes between host and path, a trailing slash of the issuer goes.
func TestRFC8414_3_1_PathInsertion(t *testing.T) {
	t.Parallel()
	for issuer, want := range map[string]string{
		"https://h":            "https://h/.well-known/oauth-authorization-server",
		"https://h/":           "https://h/.well-known/oauth-authorization-server",
		"https://h:8443/t1":    "https://h:8443/.well-known/oauth-authorization-server/t1",
		"https://h/t1/":        "https://h/.well-known/oauth-authorization-server/t1",
		"https://h/a%2Fb/c":    "https://h/.well-known/oauth-authorization-server/a%2Fb/c",
		"https://[::1]:8443/x": "https://[::1]:8443/.well-known/oauth-authorization-server/x",
	} {
		if got, err := wellKnown(issuer); err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", issuer, got, err, want)
		}
	}
}

// CL-04: RFC 6749, Section 5.1: token_type is compared without case; Section 7.1: a token of an unknown type must not
// be used.
func TestRFC6749_7_1_TokenType(t *testing.T) {
	t.Parallel()
	for kind, ok := range map[string]bool{
		`"Bearer"`: true, `"bearer"`: true, `"BEARER"`: true,
		`"mac"`: false, `"DPoP"`: false, `"N_A"`: false, `""`: false, `null`: false, `7`: false, `"Bearer "`: false,
	} {
		_, err := parseToken([]byte(`{"access_token":"a","expires_in":60,"token_type":`+kind+`}`), time.Now())
		if (err == nil) != ok {
			t.Errorf("token_type %s: %v", kind, err)
		}
	}
	if _, err := parseToken([]byte(`{"access_token":"a","expires_in":60}`), time.Now()); err == nil {
		t.Error("no token_type: accepted")
	}
}

// CL-05: RFC 8705, Sections 3 and 6.3: token request and use present the same certificate; after the certificate is
// renewed a new token is fetched, and nothing of the old generation is used.
func TestRFC8705_3_RenewedCertificateGetsNewToken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.config(t)
	tr := start(t, c)
	for i := range 3 {
		if i > 0 {
			w.rotate(t, c.KeyPair)
		}
		for range 2 {
			if got := do(t, tr, http.MethodGet, w.resource.URL, nil); got != http.StatusNoContent {
				t.Fatalf("generation %d: status %d", i, got)
			}
		}
		if want := c.KeyPair.Current().Leaf; !strings.HasPrefix(w.seen()[2*i], "Bearer "+mtls.ThumbprintOf(want).String()) {
			t.Errorf("generation %d: the token is bound to another certificate", i)
		}
		if n := w.fetches(); n != i+1 {
			t.Errorf("generation %d: %d token requests, want %d", i, n, i+1)
		}
	}
	if len(w.violations) > 0 {
		t.Errorf("tokens on foreign connections: %v", w.violations)
	}
}

// CL-05: one fetch is in flight however many wait for it (RFC 8705, Section 6.3 sends all of them there at once when
// the certificate is renewed), also when the one who caused it gives up.
func TestRFC8705_6_3_OneFetchInFlight(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	gate := make(chan struct{})
	w.respond = func(rw http.ResponseWriter, r *http.Request, issued string) {
		<-gate
		answer(600)(rw, r, issued)
	}
	tr := start(t, w.config(t))
	var done sync.WaitGroup
	for range 50 {
		done.Go(func() {
			if _, err := tr.Token(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	close(gate)
	done.Wait()
	if n := w.fetches(); n != 1 {
		t.Errorf("%d token requests, want 1", n)
	}
}

// CL-06: RFC 6750, Section 3.1: after invalid_token the client may ask for a new token and repeat the request; it does
// so once, only for a request that can be repeated, and only for that error.
func TestRFC6750_3_1_InvalidTokenRetriedOnce(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		challenge string
		rewind    bool
		refuseAll bool
		status    int
		requests  int
		fetches   int
	}{
		"repeatable":     {`Bearer realm="a, b", error="invalid_token"`, true, false, 204, 2, 2},
		"second refusal": {`Bearer error=invalid_token`, true, true, 401, 2, 2},
		"not repeatable": {`Bearer error="invalid_token"`, false, false, 401, 1, 1},
		"other error":    {`Bearer error="insufficient_scope"`, true, false, 401, 1, 1},
		"other scheme":   {`DPoP error="invalid_token"`, true, false, 401, 1, 1},
		"no challenge":   {``, true, false, 401, 1, 1},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			var requests atomic.Int32
			w.serve = func(rw http.ResponseWriter, r *http.Request, _ bool) {
				if requests.Add(1) == 1 || test.refuseAll {
					rw.Header().Set("WWW-Authenticate", test.challenge)
					rw.WriteHeader(http.StatusUnauthorized)
					return
				}
				rw.WriteHeader(http.StatusNoContent)
			}
			tr := start(t, w.config(t))
			var content interface{ Read([]byte) (int, error) } = strings.NewReader("hello")
			if !test.rewind {
				content = watched("hello")
			}
			if got := do(t, tr, http.MethodPost, w.resource.URL, content); got != test.status {
				t.Errorf("status %d, want %d", got, test.status)
			}
			if n := int(requests.Load()); n != test.requests {
				t.Errorf("%d requests, want %d", n, test.requests)
			}
			if n := w.fetches(); n != test.fetches {
				t.Errorf("%d token requests, want %d", n, test.fetches)
			}
		})
	}
}

// CL-06: RFC 6750, Section 3.1: a resource server that refuses every token does not make the client fetch one for
// every request, and where no new token can be had the refusal reaches the caller untouched.
func TestRFC6750_3_1_RefusalsDoNotHammerTheIssuer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.serve = func(rw http.ResponseWriter, _ *http.Request, _ bool) { refuse(rw) }
	tr := start(t, w.config(t))
	for range 20 {
		if got := do(t, tr, http.MethodGet, w.resource.URL, nil); got != http.StatusUnauthorized {
			t.Fatalf("status %d", got)
		}
	}
	if n := w.fetches(); n != 2 {
		t.Errorf("%d token requests, want 2", n)
	}

	v := newWorld(t)
	v.serve = w.serve
	tr = start(t, v.config(t))
	if _, err := tr.Token(t.Context()); err != nil {
		t.Fatal(err)
	}
	v.mu.Lock()
	v.respond = func(rw http.ResponseWriter, _ *http.Request, _ string) {
		rw.WriteHeader(http.StatusInternalServerError)
	}
	v.mu.Unlock()
	if got := do(t, tr, http.MethodGet, v.resource.URL, nil); got != http.StatusUnauthorized {
		t.Errorf("status %d, want the resource server's 401", got)
	}
}

// CL-07: RFC 6750, Sections 2.1 and 5.3: the token goes into the header, only to the origins that were named, and not
// along a redirect to another origin, named or not.
func TestRFC6750_5_3_NoTokenAcrossRedirect(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var mu sync.Mutex
	var got []string
	elsewhere := mtlstest.Server(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, r.Header.Get("Authorization"))
	}), w.ca.Issue(t, mtlstest.ServerLeaf()), mtls.ClientCertificatesRequested)
	w.serve = func(rw http.ResponseWriter, r *http.Request, authorized bool) {
		if strings.Contains(r.URL.String(), "access_token") || !authorized {
			t.Errorf("request %s, authorized %t", r.URL, authorized)
		}
		target := map[string]string{"/out": elsewhere.URL, "/in": w.resource.URL + "/end", "/hop": w.resource.URL + "/out"}
		if to, ok := target[r.URL.Path]; ok {
			http.Redirect(rw, r, to, http.StatusFound)
		}
	}
	unlisted := w.config(t)
	listed := w.config(t)
	listed.Origins = append(listed.Origins, elsewhere.URL)
	for _, c := range []Config{unlisted, listed} {
		tr := start(t, c)
		for _, path := range []string{"/out", "/hop", "/in"} {
			if status := do(t, tr, http.MethodGet, w.resource.URL+path, nil); status != http.StatusOK {
				t.Errorf("%s: status %d", path, status)
			}
		}
	}
	do(t, start(t, unlisted), http.MethodGet, elsewhere.URL, nil)
	mu.Lock()
	defer mu.Unlock()
	if want := slices.Repeat([]string{""}, 5); !slices.Equal(got, want) {
		t.Errorf("the other origin saw %q", got)
	}
}

// CL-07: RFC 6454, Section 4: an origin is scheme, host and port; the default port counts, upper case does not.
func TestRFC6454_4_Origins(t *testing.T) {
	t.Parallel()
	origins, err := parseOrigins([]string{"https://API.example", "https://b.example:8443/", "https://[::1]:9443"})
	if err != nil {
		t.Fatal(err)
	}
	tr := &Transport{origins: origins}
	for location, want := range map[string]bool{
		"https://api.example/x":            true,
		"https://api.example:443/x":        true,
		"https://API.EXAMPLE":              true,
		"https://b.example:8443":           true,
		"https://[::1]:9443/":              true,
		"http://api.example":               false,
		"http://api.example:443":           false,
		"https://api.example:8443":         false,
		"https://b.example":                false,
		"https://api.example.evil":         false,
		"https://evil/https://api.example": false,
		"https://api.example@evil/":        false,
		"https://api.example.":             false,
	} {
		u, err := url.Parse(location)
		if err != nil {
			t.Fatal(err)
		}
		if got := tr.mayBear(&http.Request{URL: u}); got != want {
			t.Errorf("%s: %t", location, got)
		}
	}
	if tr.mayBear(&http.Request{}) {
		t.Error("a request without an URL may bear")
	}
}

// CL-08: RFC 9525, Section 6 and RFC 6749, Section 3.2: issuer, token endpoint and resource server must show a
// certificate for their name from the given roots; nothing is sent to one that does not.
func TestRFC9525_6_ServerCertificateVerified(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	foreign := mtlstest.NewCA(t, "foreign")
	otherName := mtlstest.ServerLeaf()
	otherName.IPs, otherName.DNSNames = nil, []string{"other.example"}
	noServer := mtlstest.ServerLeaf()
	noServer.Usage = nil // clientAuth
	expired := mtlstest.ServerLeaf()
	expired.NotBefore, expired.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	bad := map[string]func() *mtlstest.Running{}
	var touched atomic.Int32
	add := func(name string, ca *mtlstest.CA, leaf mtlstest.Leaf) {
		bad[name] = func() *mtlstest.Running {
			return mtlstest.Server(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { touched.Add(1) }),
				ca.Issue(t, leaf), mtls.ClientCertificatesRequested)
		}
	}
	add("foreign root", foreign, mtlstest.ServerLeaf())
	add("other name", w.ca, otherName)
	add("not a server's", w.ca, noServer)
	add("expired", w.ca, expired)
	for name, server := range bad {
		s := server()
		c := w.config(t)
		c.Issuer = s.URL
		if tr, err := New(t.Context(), c); err == nil {
			tr.Close()
			t.Errorf("%s: metadata accepted", name)
		}
		c.Metadata = &Metadata{Issuer: s.URL, TokenEndpoint: s.URL}
		c.Origins = []string{s.URL}
		tr := start(t, c)
		if _, err := tr.Token(t.Context()); err == nil {
			t.Errorf("%s: token endpoint accepted", name)
		}
		d := w.config(t)
		d.Origins = []string{s.URL}
		if resp, err := start(t, d).RoundTrip(mustRequest(t, s.URL)); err == nil {
			resp.Body.Close()
			t.Errorf("%s: resource server accepted", name)
		}
	}
	if n := touched.Load(); n != 0 {
		t.Errorf("%d requests reached a server that should not be trusted", n)
	}
}

func mustRequest(tb testing.TB, location string) *http.Request {
	tb.Helper()
	req, err := http.NewRequestWithContext(tb.Context(), http.MethodGet, location, nil)
	if err != nil {
		tb.Fatal(err)
	}
	return req
}

// CL-04, CL-06: RFC 6749, Section 5.1: what may stand in a token response, and what a hostile one may not.
func TestRFC6749_5_1_TokenResponse(t *testing.T) {
	t.Parallel()
	sent := time.Now()
	lives := map[string]time.Duration{
		`{"access_token":"a.b-c_d~e+f/g==","token_type":"Bearer","expires_in":60}`:       time.Minute,
		`{"access_token":"a","token_type":"Bearer"}`:                                     assumedLifetime,
		`{"access_token":"a","token_type":"Bearer","expires_in":6e2}`:                    10 * time.Minute,
		`{"access_token":"a","token_type":"Bearer","expires_in":9e99}`:                   maxLifetime,
		`{"access_token":"a","token_type":"Bearer","expires_in":60,"unknown":{"a":[1]}}`: time.Minute,
		`{"access_token":"a","token_type":"Bearer","expires_in":60,"Expires_In":1}`:      time.Minute,
	}
	for body, life := range lives {
		token, err := parseToken([]byte(body), sent)
		if err != nil || !token.Expires.Equal(sent.Add(life)) {
			t.Errorf("%s: %v, %v", body, token, err)
		}
	}
	for _, body := range []string{
		``, `null`, `[]`, `"x"`, `{`, `{"access_token":"a","token_type":"Bearer"} x`,
		`{"token_type":"Bearer","expires_in":60}`,
		`{"Access_Token":"a","token_type":"Bearer","expires_in":60}`,
		`{"access_token":"a","access_token":"b","token_type":"Bearer","expires_in":60}`,
		`{"access_token":"","token_type":"Bearer","expires_in":60}`,
		`{"access_token":"a b","token_type":"Bearer","expires_in":60}`,
		`{"access_token":"a\r\nX: y","token_type":"Bearer","expires_in":60}`,
		`{"access_token":"=","token_type":"Bearer","expires_in":60}`,
		`{"access_token":"a=b","token_type":"Bearer","expires_in":60}`,
		`{"access_token":["a"],"token_type":"Bearer","expires_in":60}`,
		`{"access_token":"` + strings.Repeat("a", maxAccessToken+1) + `","token_type":"Bearer","expires_in":60}`,
		`{"access_token":"a","token_type":"Bearer","expires_in":0}`,
		`{"access_token":"a","token_type":"Bearer","expires_in":-5}`,
		`{"access_token":"a","token_type":"Bearer","expires_in":1.5}`,
		`{"access_token":"a","token_type":"Bearer","expires_in":"60"}`,
		`{"access_token":"a","token_type":"Bearer","expires_in":null}`,
		`{"access_token":"a","token_type":"Bearer","expires_in":1e999}`,
	} {
		if _, err := parseToken([]byte(body), sent); err == nil {
			t.Errorf("%.80s: accepted", body)
		}
	}
}

// CL-02: RFC 6749, Section 5.2: a refusal keeps its registered code; hostile answers are cut and read as no code.
func TestRFC6749_5_2_RefusalKeepsItsCode(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		respond func(http.ResponseWriter)
		want    Error
		text    string // part of the error when it is no *Error
	}{
		"registered": {func(rw http.ResponseWriter) {
			rw.Header().Set("Retry-After", "7")
			writeJSON(rw, 400, map[string]any{"error": "invalid_scope", "error_description": "no\n\x1b[31m such", "hint": "h"})
		}, Error{Status: 400, Code: "invalid_scope", Description: "no[31m such", Hint: "h", RetryAfter: 7 * time.Second}, ""},
		"not json": {func(rw http.ResponseWriter) { http.Error(rw, `{"error":"x"}`, http.StatusBadGateway) }, Error{Status: 502}, ""},
		"redirect": {func(rw http.ResponseWriter) {
			rw.Header().Set("Location", "https://elsewhere.invalid/")
			rw.WriteHeader(307)
		}, Error{Status: 307}, ""},
		"wrong type": {func(rw http.ResponseWriter) {
			rw.Header().Set("Content-Type", "text/html")
			fmt.Fprint(rw, `{"access_token":"a","token_type":"Bearer"}`)
		}, Error{}, "application/json"},
		"too long": {func(rw http.ResponseWriter) {
			writeJSON(rw, 200, map[string]any{"access_token": "a", "token_type": "Bearer", "x": strings.Repeat("x", maxTokenBytes)})
		}, Error{}, "longer"},
		"endless retry-after": {func(rw http.ResponseWriter) {
			rw.Header().Set("Retry-After", "4000000000")
			rw.WriteHeader(503)
		}, Error{Status: 503, RetryAfter: maxRetryAfter}, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.respond = func(rw http.ResponseWriter, _ *http.Request, _ string) { test.respond(rw) }
			tr := start(t, w.config(t))
			_, err := tr.Token(t.Context())
			if err == nil {
				t.Fatal("accepted")
			}
			if test.text != "" {
				if !strings.Contains(err.Error(), test.text) {
					t.Errorf("error %q", err)
				}
				return
			}
			if got, ok := errors.AsType[*Error](err); !ok || *got != test.want {
				t.Errorf("error %#v, want %#v", err, test.want)
			}
			if tr.Err() == nil {
				t.Error("Err does not show the failure")
			}
		})
	}
}

// CL-03: RFC 8414, Section 3.2: metadata is a 200 with a JSON object, found without redirects and within bounds.
func TestRFC8414_3_2_BadMetadata(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "root")
	tests := map[string]func(rw http.ResponseWriter, issuer string){
		"redirect": func(rw http.ResponseWriter, _ string) {
			rw.Header().Set("Location", "/elsewhere")
			rw.WriteHeader(302)
		},
		"not found": func(rw http.ResponseWriter, issuer string) {
			writeJSON(rw, 404, map[string]any{"issuer": issuer, "token_endpoint": "https://t"})
		},
		"html": func(rw http.ResponseWriter, issuer string) {
			rw.Header().Set("Content-Type", "text/html")
			fmt.Fprintf(rw, `{"issuer":%q,"token_endpoint":"https://t"}`, issuer)
		},
		"list": func(rw http.ResponseWriter, _ string) { writeJSON(rw, 200, []string{"x"}) },
		"long": func(rw http.ResponseWriter, issuer string) {
			writeJSON(rw, 200, map[string]any{"issuer": issuer, "token_endpoint": "https://t", "x": strings.Repeat("x", maxMetadataBytes)})
		},
		"twice": func(rw http.ResponseWriter, issuer string) {
			rw.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(rw, `{"issuer":%q,"token_endpoint":"https://a","token_endpoint":"https://b"}`, issuer)
		},
		"aliases are no object": func(rw http.ResponseWriter, issuer string) {
			writeJSON(rw, 200, map[string]any{"issuer": issuer, "token_endpoint": "https://t", "mtls_endpoint_aliases": "x"})
		},
		"other case": func(rw http.ResponseWriter, issuer string) {
			writeJSON(rw, 200, map[string]any{"ISSUER": issuer, "token_endpoint": "https://t"})
		},
	}
	for name, respond := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var s *mtlstest.Running
			s = mtlstest.Server(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/elsewhere" {
					t.Error("the redirect was followed")
				}
				respond(rw, s.URL)
			}), ca.Issue(t, mtlstest.ServerLeaf()), mtls.ClientCertificatesIgnored)
			if m, err := Discover(t.Context(), mtlstest.Client(t, ca.Pool(), nil), s.URL); err == nil {
				t.Errorf("accepted %+v", m)
			}
		})
	}
	if _, err := Discover(t.Context(), nil, "https://h"); err == nil {
		t.Error("Discover without a client")
	}
}

// CL-06: RFC 9110, Section 11.6.1: challenges of several schemes may stand in one field; only Bearer's error counts.
func TestRFC9110_11_6_1_Challenges(t *testing.T) {
	t.Parallel()
	for header, want := range map[string]string{
		`Bearer error="invalid_token"`:                                   "invalid_token",
		`bearer realm="a", ERROR=invalid_token`:                          "invalid_token",
		`Basic realm="x", Bearer realm="y", error="invalid_token"`:       "invalid_token",
		`Negotiate abc==, Bearer error="invalid_token"`:                  "invalid_token",
		`Bearer realm="error=\"invalid_token\"", error="invalid_reques"`: "invalid_reques",
		`Bearer realm="x, Bearer error=invalid_token"`:                   "",
		`Bearer error="invalid_token`:                                    "",
		`DPoP error="invalid_token"`:                                     "",
		`Bearer realm="x", DPoP error="invalid_token"`:                   "",
		`Bearer`: "",
		``:       "",
		`,,,`:    "",
		`=`:      "",
		`"`:      "",
	} {
		if got := bearerError(header); got != want {
			t.Errorf("%s: %q, want %q", header, got, want)
		}
	}
}
