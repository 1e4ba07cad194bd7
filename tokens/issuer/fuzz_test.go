// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"testing"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/tokens"
)

// FuzzTokenRequest: whatever the body, the answer is a registered error or a token, never a 5xx, and never a token
// without a certificate or for another client than the certificate's.
func FuzzTokenRequest(f *testing.F) {
	s := newService(f)
	cert := s.enrol(f, "payments")
	s.enrol(f, "orders")
	peer := mtlstest.PeerOf(cert)
	for _, body := range []string{
		"", ask("payments"), ask("orders"), ask("unknown"), ask("payments", "scope", "read write", "resource", ledger),
		ask("payments", "client_secret", "x"), "grant_type=password&client_id=payments", "%zz=%ff&;&==&+%00",
		"grant_type=client_credentials&client_id=payments&resource=a&resource=b&audience=c&audience=d",
	} {
		f.Add([]byte(body))
	}
	good := ask("payments")
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, p := range []*mtls.Peer{nil, peer} {
			w := httptest.NewRecorder()
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, TokenPath, bytes.NewReader(body))
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			s.serveToken(w, r, p)
			a := answer{status: w.Code, header: w.Header(), body: w.Body.String()}
			a.check(t)
			if string(body) == good && p != nil && w.Code != http.StatusOK {
				t.Errorf("%d %s for a good request", w.Code, a.body)
			}
			if w.Code == http.StatusOK {
				if claims := part(t, a.Token, 1); p == nil || claims["sub"] != "payments" {
					t.Errorf("token for %v with certificate %v", claims["sub"], p != nil)
				}
				continue
			}
			if w.Code >= 500 || !slices.Contains(registered, a.Code) {
				t.Errorf("%d %s", w.Code, a.body)
			}
		}
	})
}

// registered are the codes of RFC 6749, Section 5.2, and RFC 8707, Section 2, that a wrong request may get.
var registered = []string{
	tokens.CodeInvalidRequest, tokens.CodeInvalidClient, tokens.CodeUnsupportedGrantType, tokens.CodeInvalidScope,
	tokens.CodeInvalidTarget,
}

// FuzzForm: what parseForm accepts, net/url reads the same way.
func FuzzForm(f *testing.F) {
	f.Add([]byte("grant_type=client_credentials&client_id=payments&scope=a+b&resource=x&resource=y"))
	f.Add([]byte("scope=%e9&client_id=%41"))
	f.Fuzz(func(t *testing.T, body []byte) {
		got, refused := parseForm(body)
		if refused != nil {
			return
		}
		want, err := url.ParseQuery(string(bytes.ReplaceAll(body, []byte(";"), []byte("%3B"))))
		if err != nil {
			t.Fatalf("net/url refuses %q: %v", body, err)
		}
		resources := slices.DeleteFunc(want["resource"], func(s string) bool { return s == "" })
		if got.grantType != want.Get("grant_type") || got.clientID != want.Get("client_id") ||
			got.scope != want.Get("scope") || !slices.Equal(got.resources, resources) {
			t.Errorf("%q: %+v, net/url reads %v", body, got, want)
		}
	})
}

// FuzzWriteError: whatever an error says, the answer is JSON within the characters of RFC 6749, Section 5.2.
func FuzzWriteError(f *testing.F) {
	f.Add("invalid_request", "text", "https://auth.example", "Basic x")
	f.Add("invalid_client", "\"\\\r\n\x00\xff", "\"\r\n", "\"a\" x")
	f.Fuzz(func(t *testing.T, code, description, realm, authorization string) {
		w := httptest.NewRecorder()
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, TokenPath, nil)
		r.Header["Authorization"] = []string{authorization}
		WriteError(w, r, realm, &tokens.Error{Code: code, Description: description})
		a := answer{status: w.Code, header: w.Header(), body: w.Body.String()}
		if code != "" {
			a.check(t)
		}
		if !json.Valid(w.Body.Bytes()) {
			t.Errorf("body %s", w.Body)
		}
		for _, v := range w.Header()["Www-Authenticate"] {
			if slices.ContainsFunc([]byte(v), func(c byte) bool { return c < ' ' || c > '~' }) {
				t.Errorf("challenge %q", v)
			}
		}
	})
}
