// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	gojose "github.com/go-jose/go-jose/v4"

	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/pki"
)

// applicant is a client with all that it authenticates by.
type applicant struct {
	*instance
	id   string
	cert tls.Certificate
	sign func() string // nil where the certificate is all
}

// applicants are a client of each method, for an assertion of each algorithm. All run the resource server of the ledger.
func (in *instance) applicants() map[string][]applicant {
	in.tb.Helper()
	pinned := mtlstest.SelfSigned(in.tb, mtlstest.Leaf{CommonName: "feed"})
	own := in.enrolledFor("payments")
	in.mustOperate(http.MethodPost, "/clients", map[string]any{"client_id": "feed", "certificates": []string{certificatePEM(pinned.Leaf)}}, nil)
	list := map[string][]applicant{
		"tls_client_auth":             {{in, "payments", own, nil}},
		"self_signed_tls_client_auth": {{in, "feed", pinned, nil}},
	}
	ids := []string{"payments", "feed"}
	for _, algorithm := range []string{"ES256", "PS256", "EdDSA", "RS256"} {
		id, key := "signs-"+strings.ToLower(algorithm), assertionKeyFor(in.tb, algorithm)
		registered := algorithm
		if registered == "RS256" {
			registered = "PS256" // none can be registered for RS256
		}
		in.mustOperate(http.MethodPost, "/clients", map[string]any{"client_id": id, "jwks": keySet(key.Public(), registered)}, nil)
		list["private_key_jwt"] = append(list["private_key_jwt"], applicant{
			in, id, mtlstest.SelfSigned(in.tb, mtlstest.Leaf{CommonName: id}), func() string {
				return signed(in.tb, gojose.SignatureAlgorithm(algorithm), key, map[string]any{
					"iss": id, "sub": id, "aud": in.issuer, "jti": rand.Text(), "exp": time.Now().Add(time.Minute).Unix(),
				})
			},
		})
		ids = append(ids, id)
	}
	in.mustOperate(http.MethodPost, "/resources", map[string]any{"resource": ledger, "scope": write, "servers": ids}, nil)
	return list
}

// enrolledFor is enrolled for a client without scopes of its own.
func (in *instance) enrolledFor(id string) tls.Certificate {
	in.tb.Helper()
	var added struct {
		Code string `json:"code"`
	}
	in.mustOperate(http.MethodPost, "/clients", map[string]any{"client_id": id}, &added)
	code, err := pki.ParseCode(added.Code)
	if err != nil {
		in.tb.Fatal(err)
	}
	key := newKey(in.tb)
	status, res := in.redeem(code, key)
	if status != http.StatusOK {
		in.tb.Fatalf("enrolling %s: status %d", id, status)
	}
	return pair(in.tb, res, key)
}

func assertionKeyFor(tb testing.TB, algorithm string) crypto.Signer {
	tb.Helper()
	var key crypto.Signer
	var err error
	switch algorithm {
	case "ES256":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "EdDSA":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	default:
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

// post sends a form to an endpoint as the client, and returns status and body.
func (a applicant) post(address string, form url.Values, change ...func(*http.Request)) (int, map[string]any) {
	a.tb.Helper()
	all := maps.Clone(form)
	if all.Get("client_id") == "" {
		all.Set("client_id", a.id)
	}
	if a.sign != nil {
		all.Set("client_assertion", a.sign())
		all.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
	}
	r, err := http.NewRequestWithContext(a.tb.Context(), http.MethodPost, address, strings.NewReader(all.Encode()))
	if err != nil {
		a.tb.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for _, f := range change {
		f(r)
	}
	res, err := a.client(&a.cert).Do(r)
	if err != nil {
		a.tb.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		a.tb.Fatal(err)
	}
	var object map[string]any
	if json.Unmarshal(body, &object) != nil {
		object = map[string]any{"text": string(body), "type": res.Header.Get("Content-Type")}
	}
	return res.StatusCode, object
}

// ordinary is what each endpoint is asked, with a token of a client that it concerns.
func (in *instance) ordinary(name, token string) url.Values {
	in.tb.Helper()
	switch name {
	case "token_endpoint":
		return url.Values{"grant_type": {"client_credentials"}, "scope": {write}}
	case "introspection_endpoint", "revocation_endpoint":
		return url.Values{"token": {token}}
	}
	in.tb.Fatalf("the metadata have %s, which nobody tests", name)
	return nil
}

// MD-06, MD-07, CA-22: RFC 8414, Section 2: the metadata are the truth: every endpoint that they list answers a client of
// every method, with an assertion of every algorithm, and every grant, that they list; what they do not list is refused,
// and the same at each endpoint. A member that this test does not know fails it.
func TestRFC8414_2_MetadataTellTheTruth(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	applicants := in.applicants()
	holder := in.enrolled("holder")
	m := in.metadata()
	known := []string{
		"issuer", "jwks_uri", "scopes_supported", "grant_types_supported", "tls_client_certificate_bound_access_tokens", "mtls_endpoint_aliases",
	}
	endpoints := map[string]string{}
	for name, value := range m {
		base, isEndpoint := strings.CutSuffix(name, "_endpoint")
		if !isEndpoint {
			continue
		}
		address, _ := value.(string)
		endpoints[name] = address
		known = append(known, name, name+"_auth_methods_supported", name+"_auth_signing_alg_values_supported", base+"_signing_alg_values_supported")
	}
	for name := range m {
		if !slices.Contains(known, name) {
			t.Errorf("the metadata have %s, which nobody tests", name)
		}
	}
	aliases, _ := m["mtls_endpoint_aliases"].(map[string]any)
	for name, address := range endpoints {
		if aliases[name] != address {
			t.Errorf("%s has the alias %v", name, aliases[name])
		}
	}
	if len(endpoints) != len(aliases) || len(endpoints) < 3 {
		t.Errorf("endpoints %v, aliases %v", endpoints, aliases)
	}
	for name, address := range endpoints {
		methods, algorithms := texts(m, name+"_auth_methods_supported"), texts(m, name+"_auth_signing_alg_values_supported")
		for method, list := range applicants {
			for _, a := range list {
				algorithm := strings.TrimPrefix(a.id, "signs-")
				listed := slices.Contains(methods, method) &&
					(a.sign == nil || slices.ContainsFunc(algorithms, func(s string) bool { return strings.EqualFold(s, algorithm) }))
				token := in.token(in.client(&holder), "holder").Token
				if name == "revocation_endpoint" { // whose it is not is told to nobody
					token = "x"
				}
				form := in.ordinary(name, token)
				if name == "token_endpoint" {
					form.Del("scope")
				}
				status, body := a.post(address, form)
				authenticated := body["error"] != "invalid_client"
				if authenticated != listed || authenticated && name != "token_endpoint" && status != http.StatusOK {
					t.Errorf("%s, %s, %s: %d %v; listed %t", name, method, a.id, status, body, listed)
				}
				if name == "introspection_endpoint" && listed && body["active"] != true {
					t.Errorf("%s, %s: %v", name, a.id, body)
				}
			}
		}
		for _, method := range methods {
			if applicants[method] == nil {
				t.Errorf("%s lists %s, which nobody tests", name, method)
			}
		}
		// Methods that no client can have.
		own := applicants["tls_client_auth"][0]
		for what, change := range map[string]func(*http.Request){
			"client_secret_basic": func(r *http.Request) { r.SetBasicAuth(own.id, "secret") },
			"bearer":              func(r *http.Request) { r.Header.Set("Authorization", "Bearer x") },
		} {
			if status, body := own.post(address, in.ordinary(name, "x"), change); status != http.StatusUnauthorized || body["error"] != "invalid_client" {
				t.Errorf("%s: %s: %d %v", name, what, status, body)
			}
		}
		form := in.ordinary(name, "x")
		form.Set("client_secret", "secret")
		if status, body := own.post(address, form); status != http.StatusBadRequest {
			t.Errorf("%s: client_secret_post: %d %v", name, status, body)
		}
		for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodDelete} {
			if status, _ := own.post(address, in.ordinary(name, "x"), func(r *http.Request) { r.Method = method }); status != http.StatusMethodNotAllowed {
				t.Errorf("%s: %s: %d", name, method, status)
			}
		}
	}
	in.checkGrants(m, endpoints["token_endpoint"], applicant{in, "holder", holder, nil})
	in.checkSignedAnswers(m, endpoints["introspection_endpoint"], applicants["tls_client_auth"][0], holder)
	for _, path := range []string{"/oauth2/authorize", "/oauth2/par", "/oauth2/register", "/oauth2/device", "/userinfo", "/oauth2/userinfo"} {
		for _, base := range []string{in.issuer, in.mtls} {
			res, err := in.client(nil).Get(base + path)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if res.StatusCode != http.StatusNotFound {
				t.Errorf("%s answers %d and is not in the metadata", path, res.StatusCode)
			}
		}
	}
}

// checkGrants asks for a token by every grant, and for every scope that is listed.
func (in *instance) checkGrants(m map[string]any, address string, a applicant) {
	in.tb.Helper()
	listed := texts(m, "grant_types_supported")
	for _, grant := range append([]string{
		"authorization_code", "implicit", "password", "refresh_token", "urn:ietf:params:oauth:grant-type:token-exchange",
		"urn:ietf:params:oauth:grant-type:jwt-bearer", "urn:ietf:params:oauth:grant-type:device_code", "Client_Credentials",
	}, listed...) {
		status, body := a.post(address, url.Values{"grant_type": {grant}})
		works := status == http.StatusOK && body["access_token"] != nil
		if works != slices.Contains(listed, grant) || !works && body["error"] != "unsupported_grant_type" {
			in.tb.Errorf("grant %s: %d %v; listed %t", grant, status, body, slices.Contains(listed, grant))
		}
	}
	for _, scope := range texts(m, "scopes_supported") {
		if status, body := a.post(address, url.Values{"grant_type": {"client_credentials"}, "scope": {scope}}); status != http.StatusOK {
			in.tb.Errorf("scope %s: %d %v", scope, status, body)
		}
	}
	if len(texts(m, "scopes_supported")) == 0 {
		in.tb.Error("no scope is listed")
	}
}

// checkSignedAnswers asks for a signed answer about a token, and finds its algorithm listed and its key published.
func (in *instance) checkSignedAnswers(m map[string]any, address string, a applicant, holder tls.Certificate) {
	in.tb.Helper()
	token := in.token(in.client(&holder), "holder").Token
	_, body := a.post(address, url.Values{"token": {token}}, func(r *http.Request) { r.Header.Set("Accept", "application/token-introspection+jwt") })
	text, _ := body["text"].(string)
	listed := texts(m, "introspection_signing_alg_values_supported")
	var algorithms []gojose.SignatureAlgorithm
	for _, name := range listed {
		algorithms = append(algorithms, gojose.SignatureAlgorithm(name))
	}
	object, err := gojose.ParseSignedCompact(text, algorithms)
	if err != nil {
		in.tb.Fatalf("an answer of %v: %v, listed are %v", body["type"], err, listed)
	}
	address, _ = m["jwks_uri"].(string)
	res, err := in.client(nil).Get(address)
	if err != nil {
		in.tb.Fatal(err)
	}
	defer res.Body.Close()
	var set gojose.JSONWebKeySet
	if err := json.NewDecoder(res.Body).Decode(&set); err != nil {
		in.tb.Fatal(err)
	}
	if _, err := object.Verify(set); err != nil {
		in.tb.Errorf("no published key has signed the answer: %v", err)
	}
}

// CB-01, CB-03, CB-04, CB-09: RFC 8705, Sections 3, 3.1 and 3.2: the binding holds on every path on which a token is born or
// read: it is there at birth and in introspection, and the token is refused with another certificate, with none, with
// another certificate of the same key, and on another client's resumed connection, whatever was accepted just before.
func TestRFC8705_3_EveryPath(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	all := in.applicants()
	m := in.metadata()
	server := all["tls_client_auth"][0]
	introspection, _ := m["introspection_endpoint"].(string)
	tokenEndpoint, _ := m["token_endpoint"].(string)
	api := in.api()
	births := in.births()
	strangers := newCaller(t, mtlstest.SelfSigned(t, mtlstest.Leaf{CommonName: "stranger"}))
	nobody := newCaller(t, tls.Certificate{})
	for name, a := range births {
		for _, grant := range texts(m, "grant_types_supported") {
			status, body := a.post(tokenEndpoint, url.Values{"grant_type": {grant}})
			token, _ := body["access_token"].(string)
			if status != http.StatusOK || body["token_type"] != "Bearer" {
				t.Errorf("%s, %s: %d %v", name, grant, status, body)
				continue
			}
			want := thumbprint(a.cert)
			if cnf, _ := claimsIn(t, token)["cnf"].(map[string]any); len(cnf) != 1 || cnf["x5t#S256"] != want {
				t.Errorf("%s, %s: born with %v", name, grant, cnf)
			}
			twin := newCaller(t, mtlstest.SelfSigned(t, mtlstest.Leaf{CommonName: a.id, Key: a.cert.PrivateKey.(crypto.Signer)}))
			holder := newCaller(t, a.cert)
			for range 2 { // the second time with caches warm
				_, told := server.post(introspection, url.Values{"token": {token}})
				if cnf, _ := told["cnf"].(map[string]any); told["active"] != true || cnf["x5t#S256"] != want || told["token_type"] != "Bearer" {
					t.Errorf("%s, %s: introspection tells %v", name, grant, told)
				}
				holder.want(t, name+" by its holder", api.URL, token, http.StatusOK)
				for who, caller := range map[string]*caller{"a stranger": strangers, "nobody": nobody, "another certificate of the key": twin} {
					caller.want(t, name+" by "+who, api.URL, token, http.StatusUnauthorized)
				}
			}
			// On connections that resume their sessions.
			for who, caller := range map[string]*caller{"its holder": holder, "a stranger": strangers, "another certificate of the key": twin} {
				status := http.StatusUnauthorized
				if who == "its holder" {
					status = http.StatusOK
				}
				caller.transport.CloseIdleConnections()
				if resumed := caller.want(t, name+" resumed by "+who, api.URL, token, status); !resumed {
					t.Errorf("%s, %s: the connection was not resumed", name, who)
				}
			}
		}
	}
}

// births are clients that get tokens for the ledger, one of each method.
func (in *instance) births() map[string]applicant {
	in.tb.Helper()
	pinned := mtlstest.SelfSigned(in.tb, mtlstest.Leaf{CommonName: "born-pinned"})
	in.mustOperate(http.MethodPost, "/clients", map[string]any{
		"client_id": "born-pinned", "scope": write, "certificates": []string{certificatePEM(pinned.Leaf)},
	}, nil)
	signing := in.addAsserter("born-signing")
	return map[string]applicant{
		"tls_client_auth":             {in, "born-own", in.enrolled("born-own"), nil},
		"self_signed_tls_client_auth": {in, "born-pinned", pinned, nil},
		"private_key_jwt": {in, "born-signing", mtlstest.SelfSigned(in.tb, mtlstest.Leaf{CommonName: "any"}), func() string {
			return signing.assertion(nil)
		}},
	}
}

// caller calls a resource server with its own connections and sessions.
type caller struct{ transport *http.Transport }

func newCaller(tb testing.TB, cert tls.Certificate) *caller {
	tb.Helper()
	cfg := &tls.Config{InsecureSkipVerify: true, ClientSessionCache: tls.NewLRUClientSessionCache(4)} //nolint:gosec // the server is not tested
	if cert.Certificate != nil {
		cfg.Certificates = []tls.Certificate{cert}
	}
	c := &caller{&http.Transport{TLSClientConfig: cfg}}
	tb.Cleanup(c.transport.CloseIdleConnections)
	return c
}

// want calls with the token and reports whether the connection was resumed.
func (c *caller) want(tb testing.TB, what, address, token string, status int) (resumed bool) {
	tb.Helper()
	r, err := http.NewRequestWithContext(tb.Context(), http.MethodGet, address, nil)
	if err != nil {
		tb.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	res, err := (&http.Client{Transport: c.transport, Timeout: 20 * time.Second}).Do(r)
	if err != nil {
		tb.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, res.Body)
	res.Body.Close()
	if res.StatusCode != status {
		tb.Errorf("%s: %d, want %d", what, res.StatusCode, status)
	}
	return res.TLS.DidResume
}
