// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/certbound/certbound/cmd/internal/admin"
)

// MD-10, MD-11, MD-12: RFC 9728, Sections 3 and 5.1: the operators' API is a resource server like any other: its challenge
// names the metadata, and that is found on the issuer's host, by the same name that tokens have for it.
func TestRFC9728_5_1_OperatorsAPI(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	c := in.client(nil)
	res, err := c.Get(in.mtls + "/admin/v1/clients")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	_, named, _ := strings.Cut(res.Header.Get("WWW-Authenticate"), `resource_metadata="`)
	named = strings.TrimSuffix(named, `"`)
	issuer, err := url.Parse(in.issuer)
	if err != nil {
		t.Fatal(err)
	}
	if want := "https://" + issuer.Host + "/.well-known/oauth-protected-resource/admin/v1"; named != want || res.StatusCode != http.StatusUnauthorized {
		t.Fatalf("status %d, metadata at %q, want %q", res.StatusCode, named, want)
	}
	if res, err = c.Get(named); err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var got, want map[string]any
	if err := json.NewDecoder(res.Body).Decode(&got); err != nil || res.StatusCode != http.StatusOK {
		t.Fatal(res.StatusCode, err)
	}
	scopes, err := json.Marshal(admin.Scopes())
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(`{"resource":"`+in.issuer+`/admin/v1","authorization_servers":["`+in.issuer+`"],
		"bearer_methods_supported":["header"],"tls_client_certificate_bound_access_tokens":true,"scopes_supported":`+string(scopes)+`}`), &want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(sortedScopes(want), sortedScopes(got)); diff != "" {
		t.Error(diff)
	}
}

// MD-10, MD-11: RFC 9728, Section 5.1: so is the deny feed.
func TestRFC9728_5_1_DenyFeed(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	c := in.client(nil)
	res, err := c.Get(in.mtls + pathDenied)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	named := in.issuer + "/.well-known/oauth-protected-resource" + pathDenied
	if got := res.Header.Get("WWW-Authenticate"); res.StatusCode != http.StatusUnauthorized || !strings.HasSuffix(got, `, resource_metadata="`+named+`"`) {
		t.Fatalf("status %d, %s", res.StatusCode, got)
	}
	m := in.document(named)
	if m["resource"] != in.issuer+pathDenied || m["tls_client_certificate_bound_access_tokens"] != true {
		t.Errorf("the metadata are %v", m)
	}
}

// sortedScopes makes a set of a document's scopes.
func sortedScopes(document map[string]any) map[string]any {
	set := map[string]bool{}
	list, _ := document["scopes_supported"].([]any)
	for _, scope := range list {
		text, _ := scope.(string)
		set[text] = true
	}
	document["scopes_supported"] = set
	return document
}
