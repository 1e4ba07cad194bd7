// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package resource_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/resource"
	"github.com/certbound/certbound/tokens/tokenstest"
)

// described is a Guard with metadata for a resource of this identifier.
func described(tb testing.TB, identifier string, scopes ...string) (*resource.Guard, error) {
	tb.Helper()
	return resource.New(resource.Config{
		Verifier: tokenstest.New(tb).Verifier(tb, identifier), Realm: "orders", Metadata: &resource.Metadata{Scopes: scopes},
	})
}

// MD-10: RFC 9728, Sections 3 and 3.1: the well-known part stands between the host and the path of the identifier; a slash
// that is the whole path goes. The document is answered there and nowhere beside it, and its resource is the identifier,
// byte for byte.
func TestRFC9728_3_1_PathInsertion(t *testing.T) {
	t.Parallel()
	const wellKnown = "/.well-known/oauth-protected-resource"
	for identifier, want := range map[string]string{
		"https://orders.example":            wellKnown,
		"https://orders.example/":           wellKnown,
		"https://orders.example:8443":       wellKnown,
		"https://orders.example/api":        wellKnown + "/api",
		"https://orders.example/api/":       wellKnown + "/api/",
		"https://orders.example:8443/a/b":   wellKnown + "/a/b",
		"https://orders.example/%7Ea":       wellKnown + "/%7Ea",
		"https://[2001:db8::1]:8443/api/v1": wellKnown + "/api/v1",
	} {
		g, err := described(t, identifier)
		if err != nil {
			t.Errorf("%s: %v", identifier, err)
			continue
		}
		if g.MetadataPath() != want {
			t.Errorf("%s: at %s, want %s", identifier, g.MetadataPath(), want)
		}
		guarded := g.Protect(http.NotFoundHandler())
		for _, path := range []string{want, wellKnown, wellKnown + "/", want + "/", want + "x", "/api" + wellKnown, "/"} {
			w := httptest.NewRecorder()
			guarded.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
			if (w.Code == http.StatusOK) != (path == want) || w.Code != http.StatusOK && w.Code != http.StatusUnauthorized {
				t.Errorf("%s: GET %s: %d", identifier, path, w.Code)
			}
			if w.Code != http.StatusOK {
				continue
			}
			var said struct {
				Resource string `json:"resource"`
			}
			if err := json.Unmarshal(w.Body.Bytes(), &said); err != nil || said.Resource != identifier {
				t.Errorf("%s: resource %q, %v", identifier, said.Resource, err)
			}
		}
	}
}

// MD-10, MD-12: RFC 9728, Sections 2 and 3.2: the members, all of them and no others; without scopes the member is left
// out. It may be read by anyone and kept a while; other methods than GET and HEAD are refused.
func TestRFC9728_2_Metadata(t *testing.T) {
	t.Parallel()
	g, err := described(t, "https://orders.example/api", "orders:write", "orders:read", "orders:write")
	if err != nil {
		t.Fatal(err)
	}
	for name, h := range map[string]http.Handler{"Protect": g.Protect(http.NotFoundHandler(), "orders:read"), "MetadataHandler": g.MetadataHandler()} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, g.MetadataPath(), nil))
		want := `{"resource":"https://orders.example/api","authorization_servers":["` + tokenstest.URL + `"],` +
			`"scopes_supported":["orders:read","orders:write"],"bearer_methods_supported":["header"],` +
			`"tls_client_certificate_bound_access_tokens":true}` + "\n"
		if diff := cmp.Diff(want, w.Body.String()); diff != "" || w.Code != http.StatusOK {
			t.Errorf("%s: %d %s", name, w.Code, diff)
		}
		for header, want := range map[string]string{
			"Content-Type": "application/json", "Cache-Control": "public, max-age=300", "X-Content-Type-Options": "nosniff",
		} {
			if got := w.Header().Get(header); got != want {
				t.Errorf("%s: %s: %q, want %q", name, header, got, want)
			}
		}
		if w.Header().Get("Content-Length") == "" || w.Header().Get("WWW-Authenticate") != "" {
			t.Errorf("%s: %v", name, w.Header())
		}
		for method, want := range map[string]int{"HEAD": 200, "POST": 405, "PUT": 405, "OPTIONS": 405} {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(method, g.MetadataPath(), nil))
			allow, caching := "", "public, max-age=300"
			if want == 405 {
				allow, caching = "GET, HEAD", "no-store"
			}
			if w.Code != want || w.Header().Get("Allow") != allow || w.Header().Get("Cache-Control") != caching {
				t.Errorf("%s: %s: %d %v", name, method, w.Code, w.Header())
			}
		}
	}
	bare, err := described(t, "https://orders.example")
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	bare.MetadataHandler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	if strings.Contains(w.Body.String(), "scopes_supported") {
		t.Errorf("no scopes, but %s", w.Body)
	}
}

// MD-11: RFC 9728, Section 5.1: every challenge names the URL of the metadata, with an error or without one; a Guard
// without metadata names none, publishes none, and guards the path as any other.
func TestRFC9728_5_1_Challenge(t *testing.T) {
	t.Parallel()
	const told = `, resource_metadata="https://orders.example:8443/.well-known/oauth-protected-resource/api"`
	f := newFixture(t)
	f.config.Verifier = f.issuer.Verifier(t, "https://orders.example:8443/api")
	f.config.Metadata = &resource.Metadata{}
	f.handler = f.protect(t, "orders:read")
	token := f.issuer.TokenWith(t, f.peer, func(claims, _ map[string]any) { claims["aud"] = "https://orders.example:8443/api" })
	for name, w := range map[string]*httptest.ResponseRecorder{
		"none": f.do("/"), "bad": f.do("/", "Bearer x"), "twice": f.do("/", "Bearer x", "Bearer x"),
		"no scope": f.do("/", "Bearer "+token), "other host": f.do("https://evil.example/"),
	} {
		challenge := w.Header().Get("WWW-Authenticate")
		if !strings.HasPrefix(challenge, `Bearer realm="orders"`) || !strings.HasSuffix(challenge, told) || w.Code < 400 {
			t.Errorf("%s: %d %s", name, w.Code, challenge)
		}
	}
	f.config.Metadata = nil
	f.handler = f.protect(t)
	if w := f.do("/.well-known/oauth-protected-resource/api"); w.Code != 401 || strings.Contains(w.Header().Get("WWW-Authenticate"), "metadata") {
		t.Errorf("without metadata: %d %v", w.Code, w.Header())
	}
	g, err := resource.New(f.config)
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	g.MetadataHandler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	if g.MetadataPath() != "" || w.Code != http.StatusNotFound {
		t.Errorf("without metadata: path %q, status %d", g.MetadataPath(), w.Code)
	}
}

// MD-13: RFC 9110, Section 7.2: what the request says of hosts shapes neither the document nor the challenge.
func TestRFC9728_3_HostIsNotTrusted(t *testing.T) {
	t.Parallel()
	g, err := described(t, "https://orders.example/api")
	if err != nil {
		t.Fatal(err)
	}
	h := g.Protect(http.NotFoundHandler())
	for _, path := range []string{g.MetadataPath(), "/"} {
		r := httptest.NewRequest(http.MethodGet, "https://evil.example"+path, nil)
		r.Header.Set("X-Forwarded-Host", "evil.example")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if all := w.Body.String() + w.Header().Get("WWW-Authenticate"); strings.Contains(all, "evil") || !strings.Contains(all, "orders.example") {
			t.Errorf("%s: %s", path, all)
		}
	}
}

// An identifier that is no plain https URL has no place for metadata, and a malformed scope no meaning; both show at the
// start.
func TestRFC9728_1_2_Identifier(t *testing.T) {
	t.Parallel()
	for _, identifier := range []string{
		"orders", "urn:orders", "http://orders.example", "HTTPS://orders.example", "https://", "https:///api", "https://:8443/api",
		"https://orders.example?tenant=1", "https://orders.example/api?", "https://orders.example#a", "https://orders.example/#",
		"https://user@orders.example", "https://orders.example/\"", "https://orders.example/a b", "https://orders.example/\\", "https://orders.example/é",
		"https://orders.example/%zz",
	} {
		if resource.CheckIdentifier(identifier) == nil {
			t.Errorf("%q passes", identifier)
		}
		if _, err := described(t, identifier); err == nil {
			t.Errorf("%q: no error", identifier)
		}
	}
	if err := resource.CheckIdentifier("https://orders.example/a"); err != nil {
		t.Error(err)
	}
	if _, err := described(t, "https://orders.example", "a b"); err == nil {
		t.Error("a malformed scope passes")
	}
	// Without metadata any audience does.
	v, err := tokens.NewVerifier(tokens.VerifierConfig{Issuer: tokenstest.URL, Audience: "urn:orders", Keys: tokens.StaticKeys{}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := resource.New(resource.Config{Verifier: v}); err != nil {
		t.Error(err)
	}
}
