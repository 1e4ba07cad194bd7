// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/certbound/certbound/cmd/internal/leaktest"
	"github.com/certbound/certbound/cmd/internal/profile"
	"github.com/certbound/certbound/pki"
)

// mislaid are the places where a secret ends up by mistake: each is a request with it.
func mislaid(in *instance, secret string) []*http.Request {
	in.tb.Helper()
	var all []*http.Request
	add := func(method, address, contentType, body string, change ...func(*http.Request)) {
		r, err := http.NewRequestWithContext(in.tb.Context(), method, address, strings.NewReader(body))
		if err != nil {
			in.tb.Fatal(err)
		}
		if contentType != "" {
			r.Header.Set("Content-Type", contentType)
		}
		for _, f := range change {
			f(r)
		}
		all = append(all, r)
	}
	const form, jsonType = "application/x-www-form-urlencoded", "application/json"
	header := func(name, value string) func(*http.Request) {
		line := strings.ReplaceAll(value, "\n", "")
		return func(r *http.Request) { r.Header.Set(name, line) }
	}
	right := url.Values{"grant_type": {"client_credentials"}, "client_id": {"payments"}}
	for _, name := range []string{"grant_type", "client_id", "scope", "resource", "client_secret", "client_assertion", "unknown"} {
		wrong := url.Values{"grant_type": right["grant_type"], "client_id": right["client_id"]}
		wrong.Set(name, secret)
		add(http.MethodPost, in.mtls+pathToken, form, wrong.Encode())
	}
	add(http.MethodPost, in.mtls+pathToken, form, url.Values{secret: {"x"}}.Encode())
	add(http.MethodPost, in.mtls+pathToken, form, "client_id=%zz&"+secret)
	add(http.MethodPost, in.mtls+pathToken, form, secret)
	add(http.MethodPost, in.mtls+pathToken, "application/x-pem-file", secret)
	add(http.MethodPost, in.mtls+pathToken, form+"; x="+base64.RawURLEncoding.EncodeToString([]byte(secret)), right.Encode())
	add(http.MethodPost, in.mtls+pathToken+"?access_token="+url.QueryEscape(secret), form, right.Encode())
	add(http.MethodPost, in.mtls+pathToken, form, right.Encode(), header("Authorization", "Bearer "+secret))
	add(http.MethodPost, in.mtls+pathToken, form, right.Encode(), func(r *http.Request) { r.SetBasicAuth("payments", secret) })
	add(http.MethodPost, in.mtls+pathToken, form, right.Encode(), header("X-Correlation-Id", secret), header("User-Agent", secret),
		header("Referer", in.mtls+"/?"+url.QueryEscape(secret)), header("X-Forwarded-For", secret))
	for _, base := range []string{in.issuer, in.mtls} {
		add(http.MethodGet, base+"/"+url.PathEscape(secret), "", "")
		add(http.MethodGet, base+pathWhoami+"?token="+url.QueryEscape(secret), "", "", header("Authorization", "Bearer "+secret))
		add(http.MethodPost, base+pathToken+"/"+url.PathEscape(secret), form, right.Encode())
		for _, path := range []string{pathEnroll, pathRenew} {
			add(http.MethodPost, base+path, jsonType, secret)
			add(http.MethodPost, base+path+"?code="+url.QueryEscape(secret), "text/plain", secret)
			for _, member := range []string{"id", "code", "csr", "signature", secret} {
				body, err := json.Marshal(map[string]string{"id": "AAAAAAAAAAA", "csr": "AAAA", "signature": "AAAA", member: secret})
				if err != nil {
					in.tb.Fatal(err)
				}
				add(http.MethodPost, base+path, jsonType, string(body), header("Authorization", "Bearer "+secret))
			}
		}
	}
	for _, path := range []string{"/clients", "/clients/" + url.PathEscape(secret), "/audit?jti=" + url.QueryEscape(secret), "/" + url.PathEscape(secret)} {
		add(http.MethodGet, in.mtls+"/admin/v1"+path, "", "", header("Authorization", "Bearer "+secret))
	}
	return all
}

// misasked are mistakes of an operator: requests that name a secret.
func misasked(secret string) map[string]any {
	segment := url.PathEscape(secret)
	return map[string]any{
		"POST /clients":                                    map[string]any{"client_id": secret, "scope": secret, "dns_names": []string{secret}, "usage": secret},
		"POST /clients ":                                   map[string]any{"client_id": "x", "certificates": []string{secret}},
		"POST /clients  ":                                  map[string]any{secret: secret},
		"POST /clients   ":                                 map[string]any{"client_id": "x", "scope": secret},
		"POST /resources":                                  map[string]any{"resource": secret, "scope": "a"},
		"POST /trusts":                                     map[string]any{"name": secret, "ca": secret},
		"POST /trusts ":                                    map[string]any{"name": "x", "ca": secret},
		"GET /clients/" + segment:                          nil,
		"POST /clients/" + segment + "/disable":            nil,
		"POST /clients/" + segment + "/invite":             nil,
		"POST /clients/" + segment + "/erase":              nil,
		"DELETE /clients/" + segment:                       nil,
		"DELETE /trusts/" + segment:                        nil,
		"POST /approvals/" + segment + "/confirm":          nil,
		"DELETE /resources?uri=" + url.QueryEscape(secret): nil,
		"POST /certificates/revoke":                        map[string]any{"serial": secret},
		"POST /certificates/revoke ":                       map[string]any{"client_id": secret, "reason": secret},
		"GET /audit?jti=" + url.QueryEscape(secret):        nil,
		"GET /audit?client=" + url.QueryEscape(secret):     nil,
		"GET /audit?unknown=" + url.QueryEscape(secret):    nil,
	}
}

// No token, code or key is ever in the journal, a log, a metric or an answer to whoever could not be told, also when it was
// sent where it does not belong; and no address stands in the journal as it is.
func TestNothingSecretIsWritten(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t, t.TempDir())
	in := start(t, cfg)
	in.addLedger()
	var secrets leaktest.Secrets
	add := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	code, unused := in.addClient("payments"), in.addClient("orders")
	key, renewedKey := newKey(t), newKey(t)
	_, answer := in.redeem(code, key)
	cert := pair(t, answer, key)
	token := in.token(in.client(&cert), "payments")
	wantToken(t, token)
	operator := operatorPair(t, filepath.Join(in.data, "admin"))
	admin := in.adminToken(in.client(operator), "operator", url.Values{"resource": {in.issuer + "/admin/v1"}})
	status, renewed := in.certify(in.client(&cert), in.mtls+pathRenew, pki.NewRenewRequest(newCSR(t, renewedKey)))
	if status != http.StatusOK || renewed.Certificate == "" || admin.token == "" {
		t.Fatalf("the story does not go on: renewal %d, operator's token %+v", status, admin)
	}
	in.redeem(code, newKey(t)) // a conflict
	for _, text := range []string{token.Token, admin.token} {
		secrets.Token(text)
	}
	for _, c := range []pki.Code{code, unused} {
		add(secrets.Code(c.String()))
	}
	for _, k := range []any{key, renewedKey, operator.PrivateKey} {
		add(secrets.Key(k))
	}
	kek, err := os.ReadFile(filepath.Join(in.data, "kek"))
	add(err)
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(kek)))
	add(err)
	secrets.Text("key-encryption key", strings.TrimSpace(string(kek)))
	secrets.Bytes("key-encryption key", raw)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	add(err)

	var answers bytes.Buffer
	send := func(c *http.Client, r *http.Request) {
		res, err := c.Do(r)
		if err != nil {
			t.Fatalf("%s %s: %v", r.Method, r.URL.Path, err)
		}
		defer res.Body.Close()
		into := io.Writer(&answers)
		if res.StatusCode == http.StatusOK { // the mistake was one that nobody reads
			into = io.Discard
		}
		if _, err := io.Copy(into, res.Body); err != nil {
			t.Fatal(err)
		}
		if err := res.Header.Write(&answers); err != nil {
			t.Fatal(err)
		}
	}
	signature := token.Token[strings.LastIndexByte(token.Token, '.')+1:]
	p, err := profile.Open(filepath.Join(in.data, "admin"))
	add(err)
	op, err := profile.NewOperator(p)
	add(err)
	for _, secret := range []string{
		token.Token, signature, admin.token, code.String(), unused.String(), "spiffe://partner.example/" + signature,
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), base64.RawURLEncoding.EncodeToString(der),
	} {
		for _, c := range []*http.Client{in.client(&cert), in.client(nil), in.client(&tls.Certificate{})} {
			for _, r := range mislaid(in, secret) {
				if r.Header.Get("Authorization") == "Bearer "+admin.token && strings.HasPrefix(r.URL.Path, "/admin/") {
					continue // where it belongs
				}
				send(c, r)
			}
		}
		for request, body := range misasked(secret) {
			if strings.Contains(request, "/resources") && strings.HasPrefix(secret, "spiffe:") {
				continue // it can be a resource's name, which everybody may know
			}
			method, path, _ := strings.Cut(strings.TrimSpace(request), " ")
			err := op.Do(t.Context(), method, path, body, nil)
			if _, refused := errors.AsType[*profile.APIError](err); err != nil && !refused {
				t.Errorf("%.20s: %v", request, err)
			}
		}
	}
	metrics, err := http.Get(in.debug + "/metrics")
	if err != nil && !strings.HasPrefix(in.debug, "http") {
		metrics, err = http.Get("http://" + in.debug + "/metrics")
	}
	add(err)
	measured, err := io.ReadAll(metrics.Body)
	add(errors.Join(err, metrics.Body.Close()))
	about, err := os.ReadFile(filepath.Join(in.data, "serve.json"))
	add(err)
	add(in.stop())
	for _, purpose := range []string{"root", "issuing", "signing", "server"} {
		keys, err := inspectStore(t, in.data).Keys(t.Context(), purpose)
		add(err)
		for _, k := range keys {
			secrets.Bytes(purpose+" key", k.Private)
			if parsed, err := x509.ParsePKCS8PrivateKey(k.Private); err == nil {
				add(secrets.Key(parsed))
			}
		}
	}
	if secrets.Len() < 12 {
		t.Errorf("only %d secrets are looked for", secrets.Len())
	}
	journal := in.journal()
	for place, text := range map[string]string{
		"the journal": journal, "the log": in.logs.String(), "the metrics": string(measured), "serve.json": string(about), "an answer": answers.String(),
	} {
		if len(text) < 100 {
			t.Errorf("%s says %q", place, text)
		}
		for _, found := range secrets.Find(place, []byte(text)) {
			t.Error(found)
		}
	}
	if strings.Contains(journal, "127.0.0.1") {
		t.Error("an address stands in the journal as it is")
	}
}
