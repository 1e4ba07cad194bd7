// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
)

func TestToken(t *testing.T) {
	t.Parallel()
	s := newService(t)
	p := s.enrolled(t)
	var form url.Values
	s.set(func() {
		s.token = func(w http.ResponseWriter, r *http.Request) {
			_ = r.ParseForm()
			form = r.PostForm
			answerJSON(w, http.StatusOK, map[string]any{"access_token": "abc", "token_type": "Bearer", "expires_in": 60, "scope": "a"})
		}
	})
	token, err := p.Token(t.Context(), []string{"b", "a"}, "https://api.example")
	if err != nil {
		t.Fatal(err)
	}
	var raw map[string]any
	if err := json.Unmarshal(token.Raw, &raw); err != nil || raw["access_token"] != "abc" || token.AccessToken != "abc" {
		t.Errorf("token %q, raw %s", token.AccessToken, token.Raw)
	}
	want := url.Values{
		"grant_type": {"client_credentials"}, "client_id": {clientID}, "scope": {"a b"}, "resource": {"https://api.example"},
	}
	if diff := cmp.Diff(want, form); diff != "" {
		t.Error(diff)
	}
	if _, err := p.Token(t.Context(), nil, ""); err != nil {
		t.Fatal(err)
	}
	if form.Has("scope") || form.Has("resource") {
		t.Errorf("unasked parameters: %v", form)
	}
	s.set(func() {
		s.token = func(w http.ResponseWriter, _ *http.Request) {
			answerJSON(w, http.StatusBadRequest, map[string]any{"error": "invalid_scope", "error_description": "no", "hint": "ask"})
		}
	})
	_, err = p.Token(t.Context(), []string{"x"}, "")
	want2 := &APIError{Status: 400, Code: "invalid_scope", Description: "no", Hint: "ask"}
	if refused, ok := errors.AsType[*APIError](err); !ok || *refused != *want2 {
		t.Errorf("error %#v", err)
	}
}

// A profile that lapses while it is open says so, as Open would.
func TestTokenOfLapsedProfile(t *testing.T) {
	t.Parallel()
	s := newService(t)
	p := s.enrolled(t)
	old := s.ca.Issue(t, mtlstest.Leaf{NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)})
	if err := p.KeyPair().Replace(old); err != nil {
		t.Fatal(err)
	}
	_, err := p.Token(t.Context(), nil, "")
	if _, ok := errors.AsType[*LapsedError](err); !ok {
		t.Errorf("error %v", err)
	}
}

func TestOperator(t *testing.T) {
	t.Parallel()
	s := newService(t)
	type call struct{ Method, Path, Query, Body, Asked string }
	var got call
	s.admin = func(w http.ResponseWriter, r *http.Request) {
		peer, err := mtls.PeerFromRequest(r)
		thumbprint, asked, _ := strings.Cut(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "), ".")
		if err != nil || peer.Thumbprint().String() != thumbprint {
			t.Error("the token is bound to another certificate")
		}
		var body map[string]string
		_ = json.NewDecoder(r.Body).Decode(&body)
		got = call{r.Method, r.URL.Path, r.URL.RawQuery, body["client_id"], asked}
		if r.Method == http.MethodDelete {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		answerJSON(w, http.StatusCreated, map[string]any{"client_id": "new"})
	}
	p := s.enrolled(t)
	o, err := NewOperator(p)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	var out struct {
		ClientID string `json:"client_id"`
	}
	if err := o.Do(t.Context(), http.MethodPost, "/clients?x=y", map[string]string{"client_id": "new"}, &out); err != nil {
		t.Fatal(err)
	}
	got.Asked = decodeForm(t, got.Asked)
	form := url.Values{
		"grant_type": {"client_credentials"}, "client_id": {clientID},
		"resource": {s.public.URL + "/admin/v1"},
	}
	if diff := cmp.Diff(call{http.MethodPost, "/admin/v1/clients", "x=y", "new", form.Encode()}, got); diff != "" {
		t.Error(diff)
	}
	if out.ClientID != "new" {
		t.Errorf("answer %+v", out)
	}
	if err := o.Do(t.Context(), http.MethodDelete, "/clients/new", nil, &out); err != nil {
		t.Error(err)
	}
	if n := s.count("token"); n != 1 {
		t.Errorf("%d token requests for two calls", n)
	}
}

func TestOperatorRenewsFirst(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.admin = func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) }
	s.set(func() { s.leaf = halfOver() })
	p := s.enrolled(t)
	before := p.Certificate()
	o, err := NewOperator(p)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	// The service has trouble: no reason not to go on while the certificate is good.
	s.set(func() { s.drop = 1 })
	if err := o.Do(t.Context(), http.MethodGet, "/status", nil, nil); err != nil || !p.Certificate().Equal(before) {
		t.Errorf("with a failing renewal: %v", err)
	}
	s.set(func() { s.leaf = mtlstest.Leaf{} })
	s.set(func() { clear(s.renewed) })
	if err := o.Do(t.Context(), http.MethodGet, "/status", nil, nil); err != nil {
		t.Fatal(err)
	}
	if p.Certificate().Equal(before) || s.count("renew") != 2 || s.count("token") != 2 {
		t.Errorf("%d renewals and %d tokens, want 2 and 2", s.count("renew"), s.count("token"))
	}
}

func TestOperatorErrors(t *testing.T) {
	t.Parallel()
	s := newService(t)
	o, err := NewOperator(s.enrolled(t))
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	tests := map[string]struct {
		serve http.HandlerFunc
		want  *APIError // nil: another error, which says
		text  string
	}{
		"refusal": {func(w http.ResponseWriter, _ *http.Request) {
			answerJSON(w, http.StatusConflict, map[string]any{"error": "conflict", "error_description": "it\nexists", "hint": "\x1b[1mremove"})
		}, &APIError{Status: 409, Code: "conflict", Description: "itexists", Hint: "[1mremove"}, ""},
		"no json":  {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "boom", 500) }, &APIError{Status: 500}, ""},
		"redirect": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) }, &APIError{Status: 302}, ""},
		"html":     {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }, nil, "JSON"},
		"endless": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write(make([]byte, maxAnswer+2))
		}, nil, "longer"},
	}
	for name, test := range tests {
		s.set(func() { s.admin = test.serve })
		var out map[string]any
		err := o.Do(t.Context(), http.MethodGet, "/clients", nil, &out)
		if test.want == nil {
			if message, _ := wantHint(t, err); !strings.Contains(message, test.text) {
				t.Errorf("%s: error %q", name, message)
			}
			continue
		}
		if refused, ok := errors.AsType[*APIError](err); !ok || *refused != *test.want {
			t.Errorf("%s: error %#v", name, err)
		}
	}
}

// What waits for a second operator is not taken for done.
func TestOperatorAccepted(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.admin = func(w http.ResponseWriter, _ *http.Request) {
		answerJSON(w, http.StatusAccepted, map[string]any{"id": "abc"})
	}
	o, err := NewOperator(s.enrolled(t))
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	err = o.Do(t.Context(), http.MethodPost, "/trusts", map[string]string{}, nil)
	if waits, ok := errors.AsType[*AcceptedError](err); !ok || strings.TrimSpace(string(waits.Body)) != `{"id":"abc"}` {
		t.Errorf("error %v", err)
	}
}
