// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/tokens"
)

// get fetches a public document.
func (s *service) get(t *testing.T, target string, edit ...func(*http.Request)) (*http.Response, []byte) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, target, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range edit {
		e(r)
	}
	res, err := s.client(t, nil).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, body
}

func (s *service) document(t *testing.T) map[string]any {
	t.Helper()
	_, body := s.get(t, s.public+s.MetadataPaths()[0])
	var m map[string]any
	if err := json.Unmarshal(body, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// MD-01: RFC 8414, Sections 3.1 and 5: the well-known part is inserted between host and path, without the slash at the
// end of the identifier; OpenID Connect Discovery appends instead.
func TestRFC8414_3_1_PathInsertion(t *testing.T) {
	t.Parallel()
	plain := []string{"/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"}
	inserted := []string{
		"/.well-known/oauth-authorization-server/t1", "/.well-known/openid-configuration/t1",
		"/t1/.well-known/openid-configuration",
	}
	for issuer, want := range map[string][]string{
		"https://h": plain, "https://h/": plain, "https://h:8443": plain, "https://h/t1": inserted, "https://h/t1/": inserted,
	} {
		s := newService(t, func(c *Config) { c.Issuer = issuer })
		if diff := cmp.Diff(want, s.MetadataPaths()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", issuer, diff)
		}
		for _, path := range want {
			if res, _ := s.get(t, s.public+path); res.StatusCode != http.StatusOK {
				t.Errorf("%s: %s answers %s", issuer, path, res.Status)
			}
		}
		if res, _ := s.get(t, s.public+"/t1/.well-known/oauth-authorization-server"); res.StatusCode != http.StatusNotFound {
			t.Errorf("%s: appended form answers %s", issuer, res.Status)
		}
	}
}

// MD-02: RFC 8414, Section 3.3: issuer is the configured identifier, character for character, in the metadata and in
// tokens.
func TestRFC8414_3_3_IssuerIdentical(t *testing.T) {
	t.Parallel()
	for _, issuer := range []string{"https://Auth.Example", "https://auth.example/", "https://auth.example:443/T1/"} {
		s := newService(t, func(c *Config) { c.Issuer = issuer })
		cert := s.enrol(t, "payments")
		if got := s.document(t)["issuer"]; got != issuer {
			t.Errorf("metadata has %v, want %s", got, issuer)
		}
		if got := s.post(t, &cert, ask("payments")).wantToken(t)["iss"]; got != issuer {
			t.Errorf("token has %v, want %s", got, issuer)
		}
	}
}

// MD-03: RFC 8414, Section 2: the issuer is an https URL without query and fragment, or the server does not start.
func TestRFC8414_2_IssuerForm(t *testing.T) {
	t.Parallel()
	good := Config{
		Issuer: "https://auth.example", MTLSURL: "https://auth.example:9443", Registry: &registry{},
		Keys: newKeyring(t), Recorder: &journal{},
	}
	if _, err := New(good); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{
		"", "auth.example", "http://auth.example", "https://", "https:///x", "https://auth.example?",
		"https://auth.example?a=b",
		"https://auth.example#", "https://auth.example#f", "https://u@auth.example", "https://auth.example/%74", "https://a b",
		"https://auth.example//t1", "https://auth.example/t1/../t2", "https://auth.example/\"", "ftp://auth.example",
		"https://:8443",
	} {
		c := good
		c.Issuer = bad
		if _, err := New(c); err == nil {
			t.Errorf("issuer %q is taken", bad)
		}
		c = good
		c.MTLSURL = bad
		if _, err := New(c); err == nil {
			t.Errorf("mutual-TLS URL %q is taken", bad)
		}
	}
	for name, edit := range map[string]func(*Config){
		"no registry":                func(c *Config) { c.Registry = nil },
		"no keys":                    func(c *Config) { c.Keys = nil },
		"no recorder":                func(c *Config) { c.Recorder = nil },
		"path in the mutual-TLS URL": func(c *Config) { c.MTLSURL += "/t1" },
		"negative lifetime":          func(c *Config) { c.Lifetime = -1 },
		"fraction of a second":       func(c *Config) { c.Lifetime = 1500e6 },
		"fraction in the bound":      func(c *Config) { c.MaxLifetime = 1500e6 },
		"lifetime above its bound":   func(c *Config) { c.Lifetime, c.MaxLifetime = 2e9, 1e9 },
		"lifetime above the default": func(c *Config) { c.Lifetime = 2 * DefaultMaxLifetime },
	} {
		c := good
		edit(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

// MD-04, MD-05, CB-05, CB-08: RFC 8414, Sections 2 and 3.2; RFC 8705, Sections 3.3 and 5: what would default to something
// untrue is explicit and of its type, arrays without elements are left out, and aliases repeat top-level endpoints.
func TestRFC8414_2_Metadata(t *testing.T) {
	t.Parallel()
	s := newService(t, func(c *Config) { c.Issuer, c.MTLSURL = "https://auth.example/t1", "https://auth.example:9443/" })
	res, body := s.get(t, s.public+s.MetadataPaths()[0])
	if res.Header.Get("Content-Type") != "application/json" || res.Header.Get("Cache-Control") != publicCaching {
		t.Errorf("headers %v", res.Header)
	}
	golden(t, "metadata.json", indent(t, body))

	s.scopes = func() []string { return []string{`not a scope`, ""} }
	if got, ok := s.document(t)["scopes_supported"]; ok {
		t.Errorf("scopes_supported = %v without any", got)
	}
	m := s.document(t)
	if bound, ok := m["tls_client_certificate_bound_access_tokens"].(bool); !ok || !bound {
		t.Errorf("bound tokens: %v", m["tls_client_certificate_bound_access_tokens"])
	}
	for name, value := range m["mtls_endpoint_aliases"].(map[string]any) {
		if m[name] != value || !strings.HasSuffix(name, "_endpoint") {
			t.Errorf("alias %s = %v, top level %v", name, value, m[name])
		}
	}
}

// MD-06, MD-07, MD-09: RFC 8414, Section 2: what is advertised answers, with the methods that are advertised, and nothing
// else is advertised; nothing is said a second time as signed_metadata.
func TestRFC8414_2_AdvertisedIsActual(t *testing.T) {
	t.Parallel()
	s := newService(t)
	cert := s.enrol(t, "payments")
	m := s.document(t)
	names := slices.Sorted(maps.Keys(m))
	want := []string{
		"grant_types_supported", "introspection_endpoint", "introspection_endpoint_auth_methods_supported",
		"introspection_signing_alg_values_supported", "issuer", "jwks_uri", "mtls_endpoint_aliases", "scopes_supported",
		"tls_client_certificate_bound_access_tokens", "token_endpoint", "token_endpoint_auth_methods_supported",
	}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("members (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]any{TLSClientAuth, SelfSignedTLSClientAuth}, m["token_endpoint_auth_methods_supported"]); diff != "" {
		t.Errorf("methods (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(m["token_endpoint_auth_methods_supported"], m["introspection_endpoint_auth_methods_supported"]); diff != "" {
		t.Errorf("methods at introspection (-token +introspection):\n%s", diff)
	}
	var token string
	for _, grant := range m["grant_types_supported"].([]any) {
		body := url.Values{"grant_type": {grant.(string)}, "client_id": {"payments"}}.Encode()
		a := do(t, s.client(t, &cert), request(t, m["token_endpoint"].(string), body))
		a.wantToken(t)
		token = a.Token
	}
	s.serve("payments", ledger)
	answered := s.ask(t, &cert, m["introspection_endpoint"].(string), about("payments", token), accept(mediaIntrospection))
	alg := part(t, answered.body, 0)["alg"]
	if diff := cmp.Diff([]any{alg}, m["introspection_signing_alg_values_supported"]); diff != "" {
		t.Errorf("algorithms (-used +advertised):\n%s", diff)
	}
	if res, _ := s.get(t, m["jwks_uri"].(string)); res.StatusCode != http.StatusOK {
		t.Errorf("jwks_uri answers %s", res.Status)
	}
	for _, path := range s.MetadataPaths() {
		if _, body := s.get(t, s.public+path); !bytes.Contains(body, []byte(`"issuer":"`+s.public+`"`)) {
			t.Errorf("%s is another document: %s", path, body)
		}
	}
}

// MD-06: RFC 8414, Section 2: where introspection is not offered, it is not advertised; and every algorithm of a key that
// may sign is.
func TestRFC8414_2_IntrospectionNotOffered(t *testing.T) {
	t.Parallel()
	s := newService(t, func(c *Config) { c.Servers = nil })
	m := s.document(t)
	for name := range m {
		if strings.HasPrefix(name, "introspection_") {
			t.Errorf("%s is advertised", name)
		}
	}
	if aliases := m["mtls_endpoint_aliases"].(map[string]any); len(aliases) != 1 {
		t.Errorf("aliases %v", aliases)
	}

	s = newService(t)
	key := s.keys.published[0]
	s.keys.published = append(s.keys.published, tokens.PublicKey{ID: "e", Algorithm: tokens.EdDSA}, key)
	want := []any{tokens.ES256, tokens.EdDSA}
	if diff := cmp.Diff(want, s.document(t)["introspection_signing_alg_values_supported"]); diff != "" {
		t.Errorf("algorithms (-want +got):\n%s", diff)
	}
}

// MD-08, AT-10: RFC 7517, Sections 4 and 8.5.2: the key set is cacheable, served over TLS, has unique key ids, the
// algorithm and the use of each key, and public members only; a key that cannot be published fails the whole.
func TestRFC7517_5_KeySet(t *testing.T) {
	t.Parallel()
	s := newService(t)
	next := newKeyring(t)
	s.keys.published = append(s.keys.published, next.published...)
	res, body := s.get(t, s.public+KeysPath)
	if got := res.Header.Get("Content-Type"); got != "application/jwk-set+json" {
		t.Errorf("Content-Type %q", got)
	}
	if got := res.Header.Get("Cache-Control"); got != publicCaching {
		t.Errorf("Cache-Control %q", got)
	}
	var set struct{ Keys []map[string]any }
	if err := json.Unmarshal(body, &set); err != nil {
		t.Fatal(err)
	}
	seen := map[any]bool{}
	for _, k := range set.Keys {
		if k["use"] != "sig" || k["alg"] != "ES256" || k["kid"] == "" || seen[k["kid"]] {
			t.Errorf("key %v", k)
		}
		seen[k["kid"]] = true
		for _, private := range []string{"d", "p", "q", "dp", "dq", "qi", "k", "oth"} {
			if _, ok := k[private]; ok {
				t.Errorf("private member %s", private)
			}
		}
	}
	if len(set.Keys) != 2 {
		t.Errorf("%d keys, want 2", len(set.Keys))
	}

	s.keys.published[0].Key = s.keys.signing.Signer // the private one
	r := httptest.NewRecorder()
	s.KeysHandler().ServeHTTP(r, httptest.NewRequestWithContext(t.Context(), http.MethodGet, KeysPath, nil))
	if r.Code != http.StatusInternalServerError || strings.Contains(r.Body.String(), `"d"`) {
		t.Errorf("a private key: %d %s", r.Code, r.Body)
	}
}

// MD-13: RFC 9110, Section 7.2: nothing of the request shapes the URLs in the metadata.
func TestRFC9110_7_2_HostIsNotTrusted(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, want := s.get(t, s.public+s.MetadataPaths()[0])
	_, got := s.get(t, s.public+s.MetadataPaths()[0]+"?issuer=https://evil.example", func(r *http.Request) {
		r.Host = "evil.example"
		r.Header.Set("X-Forwarded-Host", "evil.example")
		r.Header.Set("X-Forwarded-Proto", "http")
		r.Header.Set("Forwarded", "host=evil.example;proto=http")
	})
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("changed (-want +got):\n%s", diff)
	}
}

// Public documents answer GET and HEAD only, and HEAD without a body (RFC 9110, Section 9.3.2).
func TestPublicDocumentMethods(t *testing.T) {
	t.Parallel()
	s := newService(t)
	for _, path := range []string{s.MetadataPaths()[0], KeysPath} {
		res, body := s.get(t, s.public+path, func(r *http.Request) { r.Method = http.MethodHead })
		if res.StatusCode != http.StatusOK || len(body) != 0 || res.ContentLength <= 0 {
			t.Errorf("HEAD %s: %s, %d bytes of %d", path, res.Status, len(body), res.ContentLength)
		}
		a := do(t, s.client(t, nil), request(t, s.public+path, "x"))
		a.want(t, http.StatusMethodNotAllowed, tokens.CodeInvalidRequest)
		if got := a.header.Get("Allow"); got != "GET, HEAD" {
			t.Errorf("Allow %q", got)
		}
	}
}

// Every refusal of the token endpoint as it goes over the wire: status, challenge, body.
func TestErrorBodies(t *testing.T) {
	t.Parallel()
	s := newService(t, func(c *Config) { c.Issuer, c.MTLSURL = "https://auth.example", "https://auth.example:9443" })
	s.enrol(t, "orders")
	cert := s.enrol(t, "payments")
	s.grant("payments", Grant{Resource: ledger, Scopes: []string{"read", "write"}},
		Grant{Resource: reports, Scopes: []string{"read", "print"}})
	s.grant("orders")
	noEdit := func(*http.Request) {}
	var got strings.Builder
	record := func(name string, r *httptest.ResponseRecorder) {
		got.WriteString("# " + name + "\n" + http.StatusText(r.Code) + "\n")
		if c := r.Header().Get("WWW-Authenticate"); c != "" {
			got.WriteString("WWW-Authenticate: " + c + "\n")
		}
		got.WriteString(r.Body.String() + "\n")
	}
	for _, c := range []struct {
		name, body string
		edit       func(*http.Request)
	}{
		{"method", "", func(r *http.Request) { r.Method = "GET" }},
		{"query", ask("payments"), func(r *http.Request) { r.URL.RawQuery = "a=b" }},
		{"authorization header", ask("payments"), func(r *http.Request) { r.Header.Set("Authorization", "Basic YTpi") }},
		{"content type", ask("payments"), func(r *http.Request) { r.Header.Set("Content-Type", "application/json") }},
		{"body too large", strings.Repeat("a", MaxBodyBytes+1), noEdit},
		{"encoding", "%zz", noEdit},
		{"too many parameters", strings.Repeat("resource=a&", maxParameters+1), noEdit},
		{"repeated parameter", "scope=a&scope=b", noEdit},
		{"two methods", ask("payments", "client_secret", "x"), noEdit},
		{"no grant type", "client_id=payments", noEdit},
		{"no client_id", "grant_type=client_credentials", noEdit},
		{"malformed client_id", "grant_type=client_credentials&client_id=%0a", noEdit},
		{"grant type", "grant_type=password&client_id=payments", noEdit},
		{"wrong certificate", ask("orders"), noEdit},
		{"unknown client", ask("unknown"), noEdit},
		{"malformed scope", ask("payments", "scope", " "), noEdit},
		{"scope not granted", ask("payments", "scope", "delete"), noEdit},
		{"several resources fit", ask("payments"), noEdit},
		{"no single resource fits", ask("payments", "scope", "print write"), noEdit},
		{"malformed resource", ask("payments", "resource", "x"), noEdit},
		{"resource not granted", ask("payments", "resource", "https://x.example"), noEdit},
		{"ambiguous scope", ask("payments", "resource", ledger, "resource", reports), noEdit},
		{"resource without scope", ask("payments", "resource", ledger, "resource", reports, "scope", "print"), noEdit},
	} {
		w := httptest.NewRecorder()
		s.serveToken(w, request(t, TokenPath, c.body, c.edit), mtlstest.PeerOf(cert))
		record(c.name, w)
	}
	w := httptest.NewRecorder()
	s.serveToken(w, request(t, TokenPath, ask("payments")), nil)
	record("no certificate", w)
	w = httptest.NewRecorder()
	s.serveToken(w, request(t, TokenPath, ask("payments", "client_secret", "x")), nil)
	record("secret instead of certificate", w)
	w = httptest.NewRecorder()
	s.MisdirectedHandler(TokenPath).ServeHTTP(w, request(t, TokenPath, ask("payments")))
	record("wrong listener", w)
	s.journal.fail(errDown)
	w = httptest.NewRecorder()
	s.serveToken(w, request(t, TokenPath, ask("payments", "scope", "print")), mtlstest.PeerOf(cert))
	record("journal down", w)
	s.keys.signing.Algorithm = "HS256"
	w = httptest.NewRecorder()
	s.serveToken(w, request(t, TokenPath, ask("payments", "scope", "print")), mtlstest.PeerOf(cert))
	record("no usable key", w)
	golden(t, "errors.txt", got.String())
}

// WriteError shows nothing of an error that is not made for the wire, and carries the correlation id.
func TestWriteError(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name      string
		err       error
		status    int
		challenge string
		body      string
	}{
		{"foreign", errors.New("sql: secret"), 500, "", `{"error":"server_error","error_description":"the server failed"}`},
		{
			"hostile description", &tokens.Error{Code: tokens.CodeInvalidRequest, Description: "a\"b\\c\r\nd\u00e9"}, 400, "",
			`{"error":"invalid_request","error_description":"abcd"}`,
		},
		{
			"no description", &tokens.Error{Code: tokens.CodeInvalidToken, Err: errDown}, 401, `Bearer realm="r\"\\"`,
			`{"error":"invalid_token"}`,
		},
		{
			"too large", &tokens.Error{Code: tokens.CodeInvalidRequest, Err: &http.MaxBytesError{}}, 413, "",
			`{"error":"invalid_request"}`,
		},
		{"too large but refused for more", &tokens.Error{Code: tokens.CodeTemporarilyUnavailable, Err: &http.MaxBytesError{}},
			503, "", `{"error":"temporarily_unavailable"}`},
	} {
		w := httptest.NewRecorder()
		r := httptest.NewRequestWithContext(WithCorrelationID(t.Context(), "c-1"), http.MethodPost, "/x", nil)
		WriteError(w, r, "r\"\\\r\n\u00e9", c.err)
		if w.Code != c.status || w.Body.String() != c.body+"\n" || w.Header().Get("WWW-Authenticate") != c.challenge {
			t.Errorf("%s: %d %q %s", c.name, w.Code, w.Header().Get("WWW-Authenticate"), w.Body)
		}
		if got := w.Header().Get(CorrelationHeader); got != "c-1" {
			t.Errorf("%s: correlation id %q", c.name, got)
		}
	}
}

func indent(t *testing.T, body []byte) string {
	t.Helper()
	var b bytes.Buffer
	if err := json.Indent(&b, body, "", "  "); err != nil {
		t.Fatal(err)
	}
	return b.String() + "\n"
}
