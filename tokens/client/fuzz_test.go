// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package client

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
)

// FuzzTokenResponse: whatever a hostile issuer answers to a token request, the client sends nothing elsewhere, and to
// the resource server at most the one token that the answer holds, in one header.
func FuzzTokenResponse(f *testing.F) {
	type response struct {
		status               int
		kind, location, body string
	}
	f.Add(200, "application/json", "", `{"access_token":"a","token_type":"Bearer","expires_in":60}`)
	f.Add(200, "application/json; charset=utf-8", "/", `{"access_token":"a\r\nHost: x","token_type":"bearer"}`)
	f.Add(307, "application/json", "ELSEWHERE", `{"access_token":"a","token_type":"Bearer"}`)
	f.Add(201, "text/html", "ELSEWHERE", `{"access_token":"a","access_token":"b","token_type":"Bearer"}`)
	f.Add(401, "application/json", "", `{"error":"invalid_client","error_description":"\u001b[2J","hint":"x"}`)
	f.Add(200, "application/json", "", `{"Access_Token":"b","access_token":"a","token_type":"Bearer","expires_in":1e99}`)

	w := newWorld(f)
	w.serve = func(rw http.ResponseWriter, _ *http.Request, _ bool) { rw.WriteHeader(http.StatusNoContent) }
	var mu sync.Mutex
	var strays []string
	elsewhere := mtlstest.Server(f, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		strays = append(strays, r.Method+" "+r.URL.String())
	}), w.ca.Issue(f, mtlstest.ServerLeaf()), mtls.ClientCertificatesRequested)
	c := w.config(f)
	c.Metadata = &Metadata{Issuer: w.public.URL, TokenEndpoint: w.token.URL}

	f.Fuzz(func(t *testing.T, status int, kind, location, body string) {
		hostile := response{status, kind, strings.ReplaceAll(location, "ELSEWHERE", elsewhere.URL), body}
		if status < 200 || status > 599 {
			hostile.status = http.StatusOK
		}
		w.mu.Lock()
		w.bearers = nil
		w.respond = func(rw http.ResponseWriter, _ *http.Request, _ string) {
			rw.Header().Set("Content-Type", hostile.kind)
			rw.Header().Set("Location", hostile.location)
			rw.WriteHeader(hostile.status)
			_, _ = rw.Write([]byte(hostile.body))
		}
		w.mu.Unlock()
		tr, err := New(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		defer tr.Close()
		resp, err := tr.RoundTrip(mustRequest(t, w.resource.URL))
		if err == nil {
			resp.Body.Close()
		}
		mu.Lock()
		defer mu.Unlock()
		if len(strays) > 0 {
			t.Fatalf("requests elsewhere: %q", strays)
		}
		for _, bearer := range w.seen() {
			var said struct {
				AccessToken string `json:"access_token"`
			}
			if json.Unmarshal([]byte(hostile.body), &said) != nil || bearer == "" {
				t.Fatalf("a request with %q though the answer is %q", bearer, hostile.body)
			}
			if token := strings.TrimPrefix(bearer, "Bearer "); !strings.Contains(hostile.body, token) && token != said.AccessToken {
				t.Fatalf("sent %q, the answer is %q", bearer, hostile.body)
			}
		}
	})
}
