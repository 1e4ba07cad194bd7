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
	"strings"
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

// FuzzIntrospection: whatever is asked, however an answer is wanted, it is never a 5xx; nothing is active but a token of
// ours for the client that runs its resource server; everything else gets the same bytes; and without a certificate, or
// for another client than the certificate's, there is no answer at all.
func FuzzIntrospection(f *testing.F) {
	d := newDesk(f)
	stranger := d.enrol(f, "stranger")
	signed := d.signed(f, accessToken, `{"iss":"x"}`)
	for _, token := range []string{"", "x", "..", d.token, d.token[1:], d.token + "=", signed, d.with(f, `"jti"`, `"jti":"x","jti"`)} {
		for _, media := range []string{"", typeJSON, mediaIntrospection, mediaIntrospection + ";q=0", "*/*;q=0.1"} {
			f.Add([]byte(about("guard", token)), media)
		}
	}
	f.Add([]byte(about("stranger", d.token)), "")
	f.Add([]byte("client_id=guard&token=%zz"), mediaIntrospection)
	peers := map[string]*mtls.Peer{"": nil, "guard": mtlstest.PeerOf(d.guard), "stranger": mtlstest.PeerOf(stranger)}
	f.Fuzz(func(t *testing.T, body []byte, media string) {
		for who, peer := range peers {
			w := httptest.NewRecorder()
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, IntrospectPath, bytes.NewReader(body))
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			r.Header["Accept"] = []string{media}
			d.serveCall(w, r, peer, d.serveIntrospection)
			if w.Code != http.StatusOK {
				var refused struct {
					Code string `json:"error"`
				}
				if err := json.Unmarshal(w.Body.Bytes(), &refused); err != nil || w.Code >= 500 || !slices.Contains(registered, refused.Code) {
					t.Errorf("%d %s", w.Code, w.Body)
				}
				continue
			}
			told := w.Body.String()
			if w.Header().Get("Content-Type") == mediaIntrospection {
				_, told, _ = strings.Cut(strings.TrimSuffix(d.payload(t, told), "}"), `"token_introspection":`)
			}
			form, err := url.ParseQuery(string(body))
			switch {
			case err != nil && !bytes.Contains(body, []byte(";")) || who == "" || err == nil && form.Get("client_id") != who:
				t.Errorf("%q is answered %s about %q", who, told, body)
			case told == inactive:
			case who != "guard" || !strings.HasPrefix(told, `{"active":true,"iss":"`+d.public+`","sub":"payments"`) ||
				!strings.Contains(told, `"cnf":{"x5t#S256":"`+mtls.ThumbprintOf(d.payments.Leaf).String()+`"}`):
				t.Errorf("%q is told %s", who, told)
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
