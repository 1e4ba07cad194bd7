// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/tokens"
)

// duties are who may ask for what, written down once more: a change of the routes must be meant.
var duties = map[string]string{
	"GET /clients":                   "read",
	"GET /clients/{id}":              "read",
	"POST /clients":                  "registry grant",
	"DELETE /clients/{id}":           "registry",
	"POST /clients/{id}/enable":      "registry grant",
	"POST /clients/{id}/disable":     "revoke",
	"POST /clients/{id}/invite":      "enroll grant",
	"POST /clients/{id}/erase":       "keys",
	"PUT /clients/{id}/certificates": "registry grant revoke",
	"GET /resources":                 "read",
	"POST /resources":                "registry",
	"DELETE /resources":              "registry",
	"GET /keys":                      "read",
	"POST /keys/rotate":              "keys",
	"GET /trusts":                    "read",
	"GET /trusts/{id}":               "read",
	"POST /trusts":                   "trust",
	"PUT /trusts/{id}":               "trust",
	"DELETE /trusts/{id}":            "trust",
	"GET /certificates":              "read",
	"POST /certificates/revoke":      "revoke",
	"GET /approvals":                 "read",
	"POST /approvals/{id}/confirm":   "grant trust keys",
	"DELETE /approvals/{id}":         "grant trust keys",
	"GET /audit":                     "read",
	"GET /audit/heads":               "read",
	"GET /status":                    "read",
}

func TestRoutesNeedScopes(t *testing.T) {
	t.Parallel()
	got := make(map[string]string)
	for _, rt := range new(api).routes() {
		scopes := strings.ReplaceAll(strings.Join(rt.scopes, " "), ScopePrefix, "")
		got[rt.method+" "+rt.path] = scopes
	}
	if diff := cmp.Diff(duties, got); diff != "" {
		t.Error(diff)
	}
}

// Every route is asked with every scope: it answers those of its table and certbound:admin, and tells the others what
// they miss.
func TestEveryRouteWithEveryScope(t *testing.T) {
	b := newBench(t)
	for _, rt := range new(api).routes() {
		path := strings.ReplaceAll(rt.path, "{id}", "nobody")
		for _, scope := range append(Scopes(), "ledger:read", "") {
			b.as("bob", scope)
			events := len(b.journal.events)
			w := b.ask(rt.method, path)
			if scope == ScopeAdmin || slices.Contains(rt.scopes, scope) {
				if w.Code == http.StatusForbidden || w.Code == http.StatusMethodNotAllowed {
					t.Errorf("%s %s with %q: %d %s", rt.method, rt.path, scope, w.Code, w.Body)
				}
				continue
			}
			if w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), `"error":"insufficient_scope"`) ||
				!strings.Contains(w.Body.String(), `"scope":"`+rt.scopes[0]+`"`) {
				t.Errorf("%s %s with %q: %d %s", rt.method, rt.path, scope, w.Code, w.Body)
			}
			want := `Bearer realm="` + testIssuer + `", error="insufficient_scope", scope="` + rt.scopes[0] + `"`
			if got := w.Header().Get("WWW-Authenticate"); got != want {
				t.Errorf("%s %s with %q: challenge %s", rt.method, rt.path, scope, got)
			}
			if len(b.journal.events) != events+1 {
				t.Fatalf("%s %s with %q: %d records", rt.method, rt.path, scope, len(b.journal.events)-events)
			}
			if e := b.journal.last(t); e.Name != rt.event || e.Outcome != audit.Refused || e.Reason != "insufficient_scope" || e.Actor != "bob" {
				t.Errorf("recorded %+v", e)
			}
		}
	}
}

// MD-11: RFC 9728, Section 5.1: what the API itself refuses, behind the guard that verified the token, names its metadata as
// the guard does.
func TestRFC9728_5_1_OwnRefusals(t *testing.T) {
	const metadata = "https://auth.example/.well-known/oauth-protected-resource/admin/v1"
	b := newBenchWith(t, Config{ResourceMetadata: metadata}, New)
	b.as("bob", ScopeRead)
	challenge := func() string {
		return b.ask(http.MethodPost, "/clients/nobody/disable").Header().Get("WWW-Authenticate")
	}
	const realm = `Bearer realm="` + testIssuer + `", `
	if diff := cmp.Diff(realm+`error="insufficient_scope", scope="certbound:revoke", resource_metadata="`+metadata+`"`, challenge()); diff != "" {
		t.Error(diff)
	}
	b.as("bob", ScopeRevoke)
	b.lost = &tokens.Error{Code: tokens.CodeInvalidToken, Reason: "client_disabled"}
	if diff := cmp.Diff(realm+`error="invalid_token", resource_metadata="`+metadata+`"`, challenge()); diff != "" {
		t.Error(diff)
	}
	b.lost = nil
	if got := challenge(); got != "" {
		t.Errorf("not found, with the challenge %s", got)
	}
}

// ask sends a request with an empty object where a body belongs.
func (b *bench) ask(method, path string) *httptest.ResponseRecorder {
	body := ""
	if method == http.MethodPost || method == http.MethodPut {
		body = "{}"
	}
	r := httptest.NewRequestWithContext(b.Context(), method, Prefix+path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	b.handler.ServeHTTP(w, r)
	return w
}

// Without a word about scopes the caller has them all: its token was judged before.
func TestScopesDefault(t *testing.T) {
	t.Parallel()
	if diff := cmp.Diff([]string{ScopeAdmin}, new(api).scopes(t.Context())); diff != "" {
		t.Error(diff)
	}
}

// What would make the caller an operator, or another operator, needs certbound:grant, whatever the route.
func TestOperatorsNeedGrant(t *testing.T) {
	b := newBench(t)
	pinned, both := b.pem("pinned"), b.pem("next")
	b.post("/clients", body("client_id", "robot", "scope", "certbound:read", "certificates", []string{pinned, both}), http.StatusCreated, nil)
	b.post("/clients", `{"client_id":"payments"}`, http.StatusCreated, nil)
	b.post("/clients", body("client_id", "machine", "certificates", []string{b.pem("machine")}), http.StatusCreated, nil)
	b.enlist("olga", ScopeRead)
	for _, tt := range []struct {
		scopes, method, path, body string
		missing                    string // of certbound:, or empty
	}{
		{"registry", "POST", "/clients", `{"client_id":"a","scope":"certbound:read"}`, "grant"},
		{"registry", "POST", "/clients", `{"client_id":"a","scope":"ledger:read certbound:read"}`, "grant"},
		{"registry", "POST", "/clients", `{"client_id":"a","scope":"ledger:read"}`, ""},
		{"grant", "POST", "/clients", `{"client_id":"b","scope":"certbound:admin"}`, ""},
		{"grant", "POST", "/clients", `{"client_id":"c"}`, "registry"},
		{"grant", "POST", "/clients", `{"client_id":"c","scope":"certbound:read ledger:read"}`, "registry"},
		{"grant", "POST", "/clients", `{"client_id":"c","scope":"certbound:read","dns_names":["c.example"]}`, "registry"},
		{"grant", "POST", "/clients", `{"client_id":"c","scope":"certbound:read","ip_addresses":["198.51.100.3"]}`, "registry"},
		{"grant", "POST", "/clients", `{"client_id":"c","scope":"certbound:read","uris":["https://c.example"]}`, "registry"},
		{"grant registry", "POST", "/clients", `{"client_id":"c","scope":"certbound:read ledger:read","dns_names":["c.example"]}`, ""},
		{"enroll", "POST", "/clients/payments/invite", "", ""},
		{"grant", "POST", "/clients/payments/invite", "", "enroll"},
		{"enroll", "POST", "/clients/olga/invite", "", "grant"},
		{"grant", "POST", "/clients/olga/invite", "", ""},
		{"registry", "POST", "/clients/payments/enable", "", ""},
		{"grant", "POST", "/clients/payments/enable", "", "registry"},
		{"registry", "POST", "/clients/olga/enable", "", "grant"},
		{"grant", "POST", "/clients/olga/enable", "", ""},
		{"registry", "PUT", "/clients/robot/certificates", body("certificates", []string{b.pem("mine")}), "grant"},
		{"registry", "PUT", "/clients/robot/certificates", body("certificates", []string{pinned, b.pem("mine")}), "grant"},
		{"registry", "PUT", "/clients/robot/certificates", body("certificates", []string{pinned}), "grant"}, // only takes away
		{"grant", "PUT", "/clients/robot/certificates", body("certificates", []string{pinned, both}), ""},
		{"registry", "PUT", "/clients/machine/certificates", body("certificates", []string{b.pem("new")}), ""},
		{"grant", "PUT", "/clients/machine/certificates", body("certificates", []string{b.pem("new")}), "registry"},
	} {
		b.scopes = nil
		for scope := range strings.FieldsSeq(tt.scopes) {
			b.scopes = append(b.scopes, ScopePrefix+scope)
		}
		if tt.missing != "" {
			b.refused(tt.method, tt.path, tt.body, http.StatusForbidden, "insufficient_scope", ScopeGrant)
			if e := b.journal.last(t); e.Outcome != audit.Refused {
				t.Errorf("recorded %+v", e)
			}
			var e ErrorBody
			b.do(tt.method, tt.path, tt.body, http.StatusForbidden, &e)
			if e.Scope != ScopePrefix+tt.missing {
				t.Errorf("%s %s by %s: misses %s, want %s", tt.method, tt.path, tt.scopes, e.Scope, tt.missing)
			}
			continue
		}
		status := http.StatusOK
		if tt.path == "/clients" || strings.HasSuffix(tt.path, "/invite") {
			status = http.StatusCreated
		}
		b.do(tt.method, tt.path, tt.body, status, nil)
	}
}

// A name with a wildcard poses as every host below it, so it needs the scope for trusts.
func TestWildcardNeedsTrust(t *testing.T) {
	b := newBench(t)
	b.trust("partner", mtlstest.NewCA(t, "partner"))
	b.as("bob", ScopeRegistry)
	const request = `{"client_id":"any","trust":"partner","tls_client_auth_san_dns":"*.example"}`
	var e ErrorBody
	b.post("/clients", request, http.StatusForbidden, &e)
	if e.Code != "insufficient_scope" || e.Scope != ScopeTrust {
		t.Errorf("answer %+v", e)
	}
	b.as("bob", ScopeRegistry, ScopeTrust)
	b.post("/clients", request, http.StatusCreated, nil)
}

// Whoever has a name of the service can pose as the service, so that takes more than to register.
func TestReservedNamesNeedGrant(t *testing.T) {
	b := newBench(t)
	cert := func() string { return pemOf(selfSigned(t, mtlstest.Leaf{DNSNames: []string{"localhost"}})) }
	b.post("/clients", body("client_id", "own", "certificates", []string{b.pem("own")}), http.StatusCreated, nil)
	b.trust("partner", mtlstest.NewCA(t, "partner"))
	for _, tt := range []struct{ method, path, body string }{
		{http.MethodPost, "/clients", `{"client_id":"ledger","dns_names":["localhost"],"allow_reserved":true}`},
		{http.MethodPost, "/clients", `{"client_id":"f","trust":"partner","tls_client_auth_san_dns":"www.localhost","allow_reserved":true}`},
		{http.MethodPost, "/clients", body("client_id", "pinned", "certificates", []string{cert()}, "allow_reserved", true)},
		{http.MethodPut, "/clients/own/certificates", body("certificates", []string{cert()}, "allow_reserved", true)},
	} {
		for _, step := range []struct {
			scopes  []string
			missing string
		}{
			{[]string{ScopeRegistry}, ScopeGrant}, {[]string{ScopeRegistry, ScopeTrust, ScopeEnroll}, ScopeGrant},
			{[]string{ScopeGrant}, ScopeRegistry}, {[]string{ScopeGrant, ScopeRegistry}, ""},
		} {
			b.as("bob", step.scopes...)
			if step.missing == "" {
				status := http.StatusOK
				if tt.method == http.MethodPost {
					status = http.StatusCreated
				}
				b.do(tt.method, tt.path, tt.body, status, nil)
				if e := b.journal.last(t); e.Detail["allow_reserved"] != "true" {
					t.Errorf("recorded %+v", e)
				}
				continue
			}
			var e ErrorBody
			b.do(tt.method, tt.path, tt.body, http.StatusForbidden, &e)
			if e.Code != "insufficient_scope" || e.Scope != step.missing {
				t.Errorf("%s by %s: %+v", tt.body, step.scopes, e)
			}
		}
	}
}

// Who only registers does not lock an operator out by taking its certificates away, and who only revokes gives none.
func TestOperatorsCertificatesAreNotStripped(t *testing.T) {
	b := newBench(t)
	one, two, three := b.pem("one"), b.pem("two"), b.pem("three")
	for id, scope := range map[string]string{"robot": "certbound:read", "machine": "ledger:read"} {
		both := []string{b.pem(id), b.pem(id)}
		if id == "robot" {
			both = []string{one, two}
		}
		b.post("/clients", body("client_id", id, "scope", scope, "certificates", both), http.StatusCreated, nil)
		less := body("certificates", both[:1])
		for _, scopes := range [][]string{{ScopeRegistry}, {ScopeRevoke}, {ScopeGrant}} {
			b.as("bob", scopes...)
			if id == "robot" && scopes[0] == ScopeRegistry {
				b.refused(http.MethodPut, "/clients/robot/certificates", less, http.StatusForbidden, "insufficient_scope", "certbound:grant")
				continue
			}
			b.do(http.MethodPut, "/clients/"+id+"/certificates", less, http.StatusOK, nil)
		}
		b.as("bob", ScopeRevoke)
		b.refused(http.MethodPut, "/clients/"+id+"/certificates", body("certificates", []string{three}), http.StatusForbidden, "insufficient_scope", "")
		b.as("alice", ScopeAdmin)
	}
}

// Nor by removing it.
func TestOperatorsAreNotRemovedByRegistrars(t *testing.T) {
	b := newBench(t)
	for _, id := range []string{"one", "two"} {
		b.enlist(id, ScopeRead)
	}
	b.enlist("payments", "ledger:read")
	b.as("bob", ScopeRegistry)
	b.refused(http.MethodDelete, "/clients/one", "", http.StatusForbidden, "insufficient_scope", "certbound:grant")
	b.do(http.MethodDelete, "/clients/payments", "", http.StatusOK, nil)
	b.refused(http.MethodDelete, "/clients/payments", "", http.StatusNotFound, "invalid_request", "client list")
	b.as("bob", ScopeRegistry, ScopeRevoke)
	b.do(http.MethodDelete, "/clients/one", "", http.StatusOK, nil)
	b.as("bob", ScopeRegistry, ScopeGrant)
	b.do(http.MethodDelete, "/clients/two", "", http.StatusOK, nil)
}

// Whoever gets the code of a client with names of the service can pose as the service too.
func TestClientsWithReservedNamesNeedGrant(t *testing.T) {
	b := newBench(t)
	for id, names := range map[string]string{
		"dns": `"dns_names":["localhost"]`, "ip": `"ip_addresses":["127.0.0.1"]`, "uri": `"uris":["https://auth.example/x"]`,
	} {
		b.as("alice", ScopeAdmin)
		b.post("/clients", `{"client_id":"`+id+`","allow_reserved":true,`+names+`}`, http.StatusCreated, nil)
		b.post("/clients/"+id+"/disable", "", http.StatusOK, nil)
		b.as("bob", ScopeRegistry, ScopeEnroll)
		b.refused(http.MethodPost, "/clients/"+id+"/enable", "", http.StatusForbidden, "insufficient_scope", "certbound:grant")
		b.as("bob", ScopeGrant)
		b.post("/clients/"+id+"/enable", "", http.StatusOK, nil)
		b.as("bob", ScopeRegistry, ScopeEnroll)
		b.refused(http.MethodPost, "/clients/"+id+"/invite", "", http.StatusForbidden, "insufficient_scope", "certbound:grant")
		b.as("bob", ScopeGrant)
		b.post("/clients/"+id+"/invite", "", http.StatusCreated, nil)
	}
}
