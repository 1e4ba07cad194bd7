// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A public key of P-256 (RFC 7515, Appendix A.3), and its private part.
const (
	assertionKey = `{"kty":"EC","crv":"P-256","kid":"a","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}`
	privatePart  = `"jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI"`
)

// CA-18, CA-24, CA-29: RFC 7591, Section 2: a client of private_key_jwt registers its public keys or the place of them, and nothing
// else that could authenticate it; it is given no code, and shown with its keys.
func TestRFC7591_2_AssertingClients(t *testing.T) {
	b := newBench(t)
	b.post("/resources", body("resource", "https://signed.example", "scope", "signed:read"), http.StatusCreated, nil)
	keys := json.RawMessage(`{ "keys": [ ` + assertionKey + ` ] }`)
	var invited Invitation
	b.post("/clients", body("client_id", "reports", "jwks", keys, "scope", "signed:read"), http.StatusCreated, &invited)
	if diff := cmp.Diff(Invitation{ClientID: "reports", AuthMethod: "private_key_jwt"}, invited); diff != "" {
		t.Error(diff)
	}
	var shown Client
	b.do(http.MethodGet, "/clients/reports", "", http.StatusOK, &shown)
	if shown.AuthMethod != "private_key_jwt" || string(shown.JWKS) != `{"keys":[`+assertionKey+`]}` {
		t.Errorf("shown as %+v", shown)
	}
	b.post("/clients", body("client_id", "placed", "token_endpoint_auth_method", "private_key_jwt", "jwks_uri", "https://keys.example/"), http.StatusCreated, nil)

	private := json.RawMessage(`{"keys":[` + strings.TrimSuffix(assertionKey, "}") + `,"d":` + privatePart + `}]}`)
	const uri = "https://more.example/"
	for name, members := range map[string][]any{
		"private key": {"jwks", private},
		"no key":      {"jwks", json.RawMessage(`{"keys":[]}`)},
		"no set":      {"jwks", "text"},
		"null":        {"jwks", nil, "token_endpoint_auth_method", "private_key_jwt"},

		"RS256":             {"jwks", json.RawMessage(`{"keys":[` + strings.TrimSuffix(assertionKey, "}") + `,"alg":"RS256"}]}`)},
		"too large":         {"jwks", json.RawMessage(`{"keys":[` + assertionKey + `],"x":"` + strings.Repeat("x", maxJWKS) + `"}`)},
		"keys and place":    {"jwks", keys, "jwks_uri", uri},
		"neither":           {"token_endpoint_auth_method", "private_key_jwt"},
		"another method":    {"jwks", keys, "token_endpoint_auth_method", "tls_client_auth"},
		"self-signed":       {"jwks", keys, "token_endpoint_auth_method", "self_signed_tls_client_auth"},
		"certificate":       {"jwks", keys, "certificates", []string{b.pem("x")}},
		"trust":             {"jwks", keys, "trust", "partner", "tls_client_auth_san_dns", "a.example"},
		"a name":            {"jwks", keys, "tls_client_auth_san_dns", "a.example"},
		"names of our CA":   {"jwks", keys, "dns_names", []string{"a.example"}},
		"plain HTTP":        {"jwks_uri", "http://keys.example/", "token_endpoint_auth_method", "private_key_jwt"},
		"malformed id":      {"jwks", keys, "client_id", "Reports"},
		"secret":            {"jwks", keys, "token_endpoint_auth_method", "client_secret_jwt"},
		"operator's scopes": {"jwks", keys, "scope", ScopeRead},
	} {
		var refused ErrorBody
		b.post("/clients", body(append([]any{"client_id", "odd"}, members...)...), http.StatusBadRequest, &refused)
		if strings.Contains(refused.Description+refused.Hint, strings.Trim(privatePart, `"`)) {
			t.Errorf("%s: the answer has the key: %+v", name, refused)
		}
		if refused.Code != codeMetadata && refused.Code != codeScope {
			t.Errorf("%s: %+v", name, refused)
		}
	}
	var refused ErrorBody
	b.post("/clients", body("client_id", "odd", "jwks", private), http.StatusBadRequest, &refused)
	if !strings.Contains(refused.Description, "private part") {
		t.Errorf("%+v", refused)
	}
	b.post("/clients", body("client_id", "other", "token_endpoint_auth_method", "private_key_jwt", "jwks_uri", "https://keys.example/"), http.StatusConflict, nil)
	b.post("/clients/reports/invite", "", http.StatusConflict, nil)
	b.post("/clients", body("client_id", "odd", "jwks", json.RawMessage(`{"keys":[`+strings.Replace(assertionKey, `"kid":"a",`, "", 1)+`]}`)), http.StatusBadRequest, &refused)
	if refused.Description != "jwks: key 0 has no kid, by which each assertion names the key that signed it" {
		t.Errorf("a key without a kid: %+v", refused)
	}
	// One key, whatever it is called, is one client's.
	again := json.RawMessage(`{"keys":[` + strings.Replace(assertionKey, `"kid":"a"`, `"kid":"b"`, 1) + `]}`)
	b.post("/clients", body("client_id", "twin", "jwks", again, "scope", "signed:read"), http.StatusConflict, &refused)
	if refused.Code != codeMetadata || refused.Description != "client 'reports' signs its assertions with the key 'b'" {
		t.Errorf("a key of two clients: %+v", refused)
	}
	b.do(http.MethodDelete, "/clients/reports", "", http.StatusOK, nil)
	b.post("/clients", body("client_id", "twin", "jwks", again, "scope", "signed:read"), http.StatusCreated, nil)
}
