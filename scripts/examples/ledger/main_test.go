// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"reflect"
	"testing"

	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/tokenstest"
)

func serve(t *testing.T, audience string) func(method, path string) *httptest.ResponseRecorder {
	t.Helper()
	keys := tokenstest.New(t).Keys()
	feed, err := tokens.NewDenyFeed(tokens.DenyFeedConfig{
		Issuer: tokenstest.URL, URL: tokenstest.DenyFeed, Keys: keys, Client: http.DefaultClient, Stale: tokens.StaleRefuse,
	})
	if err != nil {
		t.Fatal(err)
	}
	handler, err := newHandler(tokenstest.URL, options{audience: audience, scope: "ledger:write"}, keys, feed)
	if err != nil {
		t.Fatal(err)
	}
	return func(method, path string) *httptest.ResponseRecorder {
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, httptest.NewRequest(method, path, nil))
		return answer
	}
}

// Who is refused is told where it says which issuer's tokens it takes, and finds that there (RFC 9728, Sections 3 and 5).
func TestMetadata(t *testing.T) {
	t.Parallel()
	ask := serve(t, "https://ledger.example")
	const path = "/.well-known/oauth-protected-resource"
	refused := ask(http.MethodPost, "/entries")
	want := `Bearer realm="ledger", resource_metadata="https://ledger.example` + path + `"`
	if got := refused.Header().Get("WWW-Authenticate"); refused.Code != http.StatusUnauthorized || got != want {
		t.Errorf("%d, the challenge is %s, want %s", refused.Code, got, want)
	}
	found := ask(http.MethodGet, path)
	var got map[string]any
	if err := json.Unmarshal(found.Body.Bytes(), &got); err != nil || found.Code != http.StatusOK {
		t.Fatalf("%d %s: %v", found.Code, found.Body, err)
	}
	if want := (map[string]any{
		"resource": "https://ledger.example", "authorization_servers": []any{tokenstest.URL}, "scopes_supported": []any{"ledger:write"},
		"bearer_methods_supported": []any{"header"}, "tls_client_certificate_bound_access_tokens": true,
	}); !reflect.DeepEqual(got, want) {
		t.Errorf("the metadata is %v, want %v", got, want)
	}
}

// A URN has no place where metadata could be, and is an audience all the same.
func TestNoMetadata(t *testing.T) {
	t.Parallel()
	ask := serve(t, "urn:ledger")
	if got := ask(http.MethodPost, "/entries").Header().Get("WWW-Authenticate"); got != `Bearer realm="ledger"` {
		t.Errorf("the challenge is %s", got)
	}
}
