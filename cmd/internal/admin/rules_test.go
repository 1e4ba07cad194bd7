// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/certbound/certbound/cmd/internal/store"
)

const (
	testIssuer      = "https://auth.example:8443"
	testTrustDomain = "abcdefgh.auth.example"
)

func testRules(tb testing.TB) rules {
	tb.Helper()
	r, err := newRules(Config{
		Issuer: testIssuer, TrustDomain: "abcdefgh.auth.example",
		Reserved: []string{"Auth-Alias.example.", "192.0.2.7"}, Endpoints: []string{"https://auth.example:9443/oauth2"},
	})
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// No client gets a life of its tokens that the service would cut without a word.
func TestTokenTTLWithinTheBoundOfTheService(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		bound   time.Duration
		seconds int64
		refused bool
	}{{15 * time.Minute, 900, false}, {15 * time.Minute, 901, true}, {0, 3600, false}, {2 * time.Hour, 3601, true}} {
		r, err := newRules(Config{Issuer: testIssuer, TrustDomain: testTrustDomain, MaxTokenTTL: tt.bound})
		if err != nil {
			t.Fatal(err)
		}
		c, err := r.client(&ClientRequest{ID: "a", TokenTTLSeconds: &tt.seconds}, nil, time.Now())
		if refused := err != nil; refused != tt.refused || !refused && c.TokenTTL != time.Duration(tt.seconds)*time.Second {
			t.Errorf("bound %s: %d seconds: %s, %v", tt.bound, tt.seconds, c.TokenTTL, err)
		}
		if e, ok := errors.AsType[*Error](err); tt.bound == 15*time.Minute && tt.refused && (!ok || e.Code != codeMetadata ||
			!strings.Contains(e.Hint, "at most 15m0s, which is token.max_lifetime")) {
			t.Errorf("refused with %v", err)
		}
	}
}

func testResources() []store.Resource {
	return []store.Resource{
		{URI: testIssuer + Prefix, Scopes: []string{"certbound:admin"}, BuiltIn: true},
		{URI: "https://ledger.example", Scopes: []string{"ledger:read", "ledger:write"}},
		{URI: "https://mail.example", Scopes: []string{"send"}},
	}
}

func seconds(n int64) *int64 { return &n }

func TestClientAccepted(t *testing.T) {
	t.Parallel()
	got, err := testRules(t).client(&ClientRequest{
		ID: "payments", Scope: "ledger:write ledger:read  ledger:write", Resources: []string{"https://ledger.example"},
		DNSNames: []string{"Pay.Example", "pay.example"}, IPAddresses: []string{"198.51.100.1", "2001:DB8:0::1"},
		URIs: []string{"https://pay.example/a"}, Usage: "both", TokenTTLSeconds: seconds(90),
	}, testResources(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	want := store.Client{
		ID: "payments", AuthMethod: "tls_client_auth",
		SubjectKind: "tls_client_auth_san_uri", SubjectValue: "spiffe://abcdefgh.auth.example/client/payments",
		DNS: []string{"pay.example"}, IPs: []string{"198.51.100.1", "2001:db8::1"}, URIs: []string{"https://pay.example/a"},
		Usage: "both", Scopes: []string{"ledger:write", "ledger:read"}, Resources: []string{"https://ledger.example"}, TokenTTL: 90 * time.Second,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestClientRefused(t *testing.T) {
	t.Parallel()
	many := make([]string, maxNames+1)
	for i := range many {
		many[i] = fmt.Sprintf("h%d.example", i)
	}
	for name, tt := range map[string]struct {
		req  ClientRequest
		code string
		hint string // part of it
	}{
		"no id":                    {ClientRequest{}, codeMetadata, "begins with"},
		"upper case id":            {ClientRequest{ID: "Payments"}, codeMetadata, "begins with"},
		"id of 64":                 {ClientRequest{ID: strings.Repeat("a", 64)}, codeMetadata, "begins with"},
		"our own SPIFFE id":        {ClientRequest{ID: "spiffe://abcdefgh.auth.example/client/x"}, codeMetadata, "begins with"},
		"id with a line break":     {ClientRequest{ID: "a\nb"}, codeMetadata, "begins with"},
		"self-signed":              {ClientRequest{ID: "a", AuthMethod: "self_signed_tls_client_auth"}, codeMetadata, "--cert FILE"},
		"usage":                    {ClientRequest{ID: "a", Usage: "ca"}, codeMetadata, "client, server or both"},
		"ttl 0":                    {ClientRequest{ID: "a", TokenTTLSeconds: seconds(0)}, codeMetadata, "an hour"},
		"ttl over an hour":         {ClientRequest{ID: "a", TokenTTLSeconds: seconds(3601)}, codeMetadata, "an hour"},
		"negative ttl":             {ClientRequest{ID: "a", TokenTTLSeconds: seconds(-1)}, codeMetadata, "an hour"},
		"too many names":           {ClientRequest{ID: "a", DNSNames: many}, codeMetadata, "at most 100"},
		"wildcard":                 {ClientRequest{ID: "a", DNSNames: []string{"*.example"}}, codeMetadata, "name each host"},
		"wildcard, insisted":       {ClientRequest{ID: "a", DNSNames: []string{"*.example"}, AllowReserved: true}, codeMetadata, "name each host"},
		"name with a NUL":          {ClientRequest{ID: "a", DNSNames: []string{"a\x00.example"}}, codeMetadata, "host name"},
		"empty label":              {ClientRequest{ID: "a", DNSNames: []string{"a..example"}}, codeMetadata, "host name"},
		"trailing dot":             {ClientRequest{ID: "a", DNSNames: []string{"a.example."}}, codeMetadata, "host name"},
		"address as DNS name":      {ClientRequest{ID: "a", DNSNames: []string{"198.51.100.1"}}, codeMetadata, "--ip"},
		"localhost":                {ClientRequest{ID: "a", DNSNames: []string{"LOCALHOST"}}, codeMetadata, "--allow-reserved"},
		"below localhost":          {ClientRequest{ID: "a", DNSNames: []string{"x.localhost"}}, codeMetadata, "--allow-reserved"},
		"issuer's host":            {ClientRequest{ID: "a", DNSNames: []string{"Auth.example"}}, codeMetadata, "--allow-reserved"},
		"service's other name":     {ClientRequest{ID: "a", DNSNames: []string{"auth-alias.example"}}, codeMetadata, "--allow-reserved"},
		"loopback":                 {ClientRequest{ID: "a", IPAddresses: []string{"127.0.0.53"}}, codeMetadata, "--allow-reserved"},
		"loopback, v6":             {ClientRequest{ID: "a", IPAddresses: []string{"::1"}}, codeMetadata, "--allow-reserved"},
		"service's address":        {ClientRequest{ID: "a", IPAddresses: []string{"192.0.2.7"}}, codeMetadata, "--allow-reserved"},
		"v4 as v6":                 {ClientRequest{ID: "a", IPAddresses: []string{"::ffff:127.0.0.1"}}, codeMetadata, "address"},
		"with a zone":              {ClientRequest{ID: "a", IPAddresses: []string{"fe80::1%eth0"}}, codeMetadata, "address"},
		"no address":               {ClientRequest{ID: "a", IPAddresses: []string{"0.0.0.0"}}, codeMetadata, "address"},
		"many hosts":               {ClientRequest{ID: "a", IPAddresses: []string{"224.0.0.1"}}, codeMetadata, "address"},
		"a network":                {ClientRequest{ID: "a", IPAddresses: []string{"10.0.0.0/8"}}, codeMetadata, "address"},
		"URI of the service":       {ClientRequest{ID: "a", URIs: []string{testIssuer + "/x"}}, codeMetadata, "--allow-reserved"},
		"URI of loopback":          {ClientRequest{ID: "a", URIs: []string{"https://127.0.0.1/x"}}, codeMetadata, "--allow-reserved"},
		"another's SPIFFE id":      {ClientRequest{ID: "a", URIs: []string{"spiffe://abcdefgh.auth.example/client/b"}}, codeMetadata, "every client gets its own"},
		"SPIFFE id, insisted":      {ClientRequest{ID: "a", URIs: []string{"SPIFFE://other/x"}, AllowReserved: true}, codeMetadata, "every client gets its own"},
		"relative URI":             {ClientRequest{ID: "a", URIs: []string{"/x"}}, codeMetadata, "absolute"},
		"URI with user":            {ClientRequest{ID: "a", URIs: []string{"https://u@x.example"}}, codeMetadata, "without user"},
		"malformed scope":          {ClientRequest{ID: "a", Scope: `a"b`}, codeScope, "printable"},
		"tab in scope":             {ClientRequest{ID: "a", Scope: "ledger:read\tsend"}, codeScope, "printable"},
		"undeclared scope":         {ClientRequest{ID: "a", Scope: "send fax"}, codeScope, "certbound resource add URI --scope fax"},
		"unknown resource":         {ClientRequest{ID: "a", Scope: "fax", Resources: []string{"https://fax.example"}}, codeTarget, "certbound resource add https://fax.example --scope fax"},
		"unknown resource, quoted": {ClientRequest{ID: "a", Resources: []string{"https://x/;rm"}}, codeTarget, "certbound resource add 'https://x/;rm' --scope SCOPE"},
		"resource of other spelling": {
			ClientRequest{ID: "a", Resources: []string{"https://LEDGER.example"}}, codeTarget, "certbound resource add https://LEDGER.example"},
		"scope of another resource": {
			ClientRequest{ID: "a", Scope: "send", Resources: []string{"https://ledger.example"}}, codeScope, "add --resource https://mail.example"},
		"undeclared authority": {ClientRequest{ID: "a", Scope: "certbound:root"}, codeScope, "the scopes of the operators' API are certbound:admin"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := testRules(t).client(&tt.req, testResources(), time.Now())
			checkRefusal(t, err, tt.code, tt.hint)
		})
	}
}

func checkRefusal(t *testing.T, err error, code, hint string) {
	t.Helper()
	if err == nil {
		t.Fatal("accepted")
	}
	refused := asError(err)
	if refused.Code != code || !strings.Contains(refused.Hint, hint) {
		t.Errorf("refused with %s, hint %q; want %s, hint with %q", refused.Code, refused.Hint, code, hint)
	}
	if strings.ContainsFunc(refused.Description, func(r rune) bool { return r < 0x20 || r > 0x7e || r == '"' || r == '\\' }) {
		t.Errorf("description %q has characters that RFC 6749, Section 5.2 forbids", refused.Description)
	}
}

// The operator may insist on a reserved name, for demonstrations on loopback.
func TestReservedNamesPermitted(t *testing.T) {
	t.Parallel()
	got, err := testRules(t).client(&ClientRequest{
		ID: "ledger", DNSNames: []string{"localhost"}, IPAddresses: []string{"127.0.0.1"}, AllowReserved: true,
	}, nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got.DNS, []string{"localhost"}) || !slices.Equal(got.IPs, []string{"127.0.0.1"}) {
		t.Errorf("names %q %q", got.DNS, got.IPs)
	}
}

// An operator needs no --resource beside the scope, and may be a client of other resources too.
func TestOperatorAccepted(t *testing.T) {
	t.Parallel()
	_, err := testRules(t).client(&ClientRequest{
		ID: "alice", Scope: "certbound:admin send", Resources: []string{"https://mail.example"},
	}, testResources(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
}

// Only what we can take away may hold authority: clients of our own CA, or with a certificate registered by value.
func TestAuthorityOnlyForOwnCA(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		client  store.Client
		refused bool
	}{
		"own CA":          {store.Client{AuthMethod: byCA}, false},
		"foreign CA":      {store.Client{AuthMethod: byCA, Trust: "partner"}, true},
		"own certificate": {store.Client{AuthMethod: byCertificate, Certificates: [][]byte{{1}}}, false},
		"jwks_uri":        {store.Client{AuthMethod: byCertificate, JWKSURI: "https://a.example/jwks"}, true},
	} {
		tt.client.Scopes = []string{ScopeAdmin}
		if err := declared(tt.client, testResources()); (err != nil) != tt.refused {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A resource covers the service also where one spelling has the port that the other leaves out.
func TestCovers(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		resource, service string
		want              bool
	}{
		{"https://auth.example:4", "https://auth.example:443/t1", true},
		{"https://auth.example:443", "https://auth.example/t1", true},
		{"https://auth.example", "https://auth.example:443/t1", true},
		{"https://auth.example/t1/", "https://auth.example/t1", true},
		{"https://auth.example.:8443", "https://auth.example:8443", true},
		{"https://AUTH.example:08443/", "https://auth.example:8443", true},
		{"https://auth.example/t2", "https://auth.example/t1", false},
		{"https://auth.example/t1/x", "https://auth.example/t1", false},
	} {
		u, err := absoluteURI(tt.resource)
		if err != nil {
			t.Fatal(err)
		}
		if got := (rules{}).covers(u, tt.service); got != tt.want {
			t.Errorf("covers(%s, %s) = %v", tt.resource, tt.service, got)
		}
	}
}

func TestResourceAccepted(t *testing.T) {
	t.Parallel()
	for _, uri := range []string{
		"https://ledger.example", "https://ledger.example/v1?tenant=a", "urn:example:ledger", "https://auth.example.evil",
		testIssuer + "/api", "https://auth.example:8444", "https://[2001:db8::1]:443/", "https://localhost:8444", "https://127.0.0.1:9444/", "spiffe://other.example/ledger",
	} {
		got, err := testRules(t).resource(&ResourceRequest{Resource: uri, Scope: "b a b", Servers: []string{"l", "l"}})
		if err != nil {
			t.Errorf("%s: %v", uri, err)
			continue
		}
		if diff := cmp.Diff(store.Resource{URI: uri, Scopes: []string{"b", "a"}, Servers: []string{"l"}}, got); diff != "" {
			t.Errorf("%s: %s", uri, diff)
		}
	}
}

func TestResourceRefused(t *testing.T) {
	t.Parallel()
	const own, form = "own address", "absolute URI"
	for name, tt := range map[string]struct {
		uri, scope string
		code, hint string
	}{
		"empty":                   {"", "a", codeTarget, form},
		"relative":                {"/ledger", "a", codeTarget, form},
		"no host":                 {"https:///x", "a", codeTarget, form},
		"only a scheme":           {"https:", "a", codeTarget, form},
		"opaque https":            {"https:ledger.example", "a", codeTarget, form},
		"fragment":                {"https://ledger.example/#x", "a", codeTarget, form},
		"empty fragment":          {"https://ledger.example/#", "a", codeTarget, form},
		"user":                    {"https://u:p@ledger.example", "a", codeTarget, form},
		"space":                   {"https://ledger.example/a b", "a", codeTarget, form},
		"quote":                   {`https://ledger.example/"`, "a", codeTarget, form},
		"not ASCII":               {"https://l\u00e9dger.example", "a", codeTarget, form},
		"too long":                {"https://ledger.example/" + strings.Repeat("a", maxURI), "a", codeTarget, form},
		"issuer":                  {testIssuer, "a", codeTarget, own},
		"issuer with a slash":     {testIssuer + "/", "a", codeTarget, own},
		"issuer in capitals":      {"HTTPS://AUTH.example:8443", "a", codeTarget, own},
		"issuer by http":          {"http://auth.example:8443", "a", codeTarget, own},
		"issuer with a query":     {testIssuer + "?x=1", "a", codeTarget, own},
		"issuer with dots":        {testIssuer + "/x/..", "a", codeTarget, own},
		"issuer with escapes":     {testIssuer + "/%61dmin", "a", codeTarget, own},
		"text before the issuer":  {"https://auth.example:84", "a", codeTarget, own},
		"host before the issuer":  {"https://auth.example", "a", codeTarget, own},
		"start of its host":       {"https://auth", "a", codeTarget, own},
		"before the admin API":    {testIssuer + "/admin", "a", codeTarget, own},
		"the admin API":           {testIssuer + "/admin/v1", "a", codeTarget, own},
		"an endpoint":             {"https://auth.example:9443/oauth2", "a", codeTarget, own},
		"before an endpoint":      {"https://auth.example:9443/", "a", codeTarget, own},
		"port with zeros":         {"https://auth.example:08443/admin/v1", "a", codeTarget, own},
		"host with a dot":         {"https://auth.example.:8443/admin/v1", "a", codeTarget, own},
		"host with a dot, alone":  {"https://auth.example./", "a", codeTarget, own},
		"host with escapes":       {"https://%61uth.example:8443", "a", codeTarget, form},
		"host with another dot":   {"https://auth%E3%80%82example:8443", "a", codeTarget, form},
		"by another name":         {"https://Auth-Alias.example:8443/admin/v1", "a", codeTarget, own},
		"by an address":           {"https://192.0.2.7:8443", "a", codeTarget, own},
		"by a mapped address":     {"https://[::ffff:192.0.2.7]:8443/admin", "a", codeTarget, own},
		"by loopback":             {"https://127.0.0.1:08443/admin/v1", "a", codeTarget, own},
		"by another loopback":     {"https://[0:0::1]:8443", "a", codeTarget, own},
		"by localhost":            {"http://localhost.:8443/", "a", codeTarget, own},
		"endpoint by an address":  {"https://192.0.2.7:9443/oauth2", "a", codeTarget, own},
		"no scope":                {"https://ledger.example", " ", codeScope, "certbound resource add https://ledger.example --scope SCOPE"},
		"malformed scope":         {"https://ledger.example", `a\b`, codeScope, "printable"},
		"scope not ASCII":         {"https://ledger.example", "l\u00e9", codeScope, "printable"},
		"scope of operators":      {"https://ledger.example", "a certbound:admin", codeScope, "certbound:"},
		"too many scopes":         {"https://ledger.example", manyScopes(), codeScope, "at most"},
		"scope longer than usual": {"https://ledger.example", strings.Repeat("a", maxScope+1), codeScope, "printable"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := testRules(t).resource(&ResourceRequest{Resource: tt.uri, Scope: tt.scope})
			checkRefusal(t, err, tt.code, tt.hint)
		})
	}
}

func TestTooManyServers(t *testing.T) {
	t.Parallel()
	_, err := testRules(t).resource(&ResourceRequest{Resource: "urn:x", Scope: "a", Servers: make([]string, maxServers+1)})
	checkRefusal(t, err, codeMetadata, "at most")
}

func manyScopes() string {
	var b strings.Builder
	for i := range maxScopes + 1 {
		fmt.Fprintf(&b, "s%d ", i)
	}
	return b.String()
}

func TestDecodeStrict(t *testing.T) {
	t.Parallel()
	deep := strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth)
	for name, tt := range map[string]struct{ body, want string }{
		"good":             {`{"resource":"urn:x","scope":"a","servers":["b"]}`, ""},
		"unknown member":   {`{"resource":"urn:x","tenant":"y"}`, "unknown member 'tenant'"},
		"other case":       {`{"Resource":"urn:x"}`, "unknown member 'Resource'"},
		"twice":            {`{"resource":"urn:x","resource":"urn:y"}`, "member 'resource' occurs twice"},
		"twice, escaped":   {`{"resource":"urn:x","\u0072esource":"urn:y"}`, "member 'resource' occurs twice"},
		"wrong type":       {`{"resource":7}`, "member 'resource' has the wrong type"},
		"array":            {`[]`, "not a JSON object"},
		"empty":            {``, "not a JSON object"},
		"null":             {`null`, "not a JSON object"},
		"cut off":          {`{"resource":"urn:x"`, "not valid JSON"},
		"two objects":      {`{"resource":"urn:x"} {}`, "something follows"},
		"not UTF-8":        {"{\"resource\":\"\xff\"}", "not UTF-8"},
		"deep":             {`{"servers":` + deep + `}`, "nested too deeply"},
		"twice, inside":    {`{"servers":[{"a":1,"a":2}]}`, "member 'a' occurs twice"},
		"name not ASCII":   {"{\"\u202eevil\":1}", "unknown member '?evil'"},
		"number of a list": {`{"servers":[1]}`, "has the wrong type"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := Decode([]byte(tt.body), new(ResourceRequest))
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(asError(err).Description, tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestShellWord(t *testing.T) {
	t.Parallel()
	for word, want := range map[string]string{
		"https://a.example:1/x": "https://a.example:1/x", "": "''", "a b": "'a b'", "$(x)": "'$(x)'", "it's": `'it'\''s'`,
	} {
		if got := shellWord(word); got != want {
			t.Errorf("%q: %s, want %s", word, got, want)
		}
	}
}
