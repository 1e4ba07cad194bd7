// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	gojose "github.com/go-jose/go-jose/v4"

	"github.com/certbound/certbound/cmd/internal/config"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/resource"
)

// fapiConfig is testConfig in FAPI mode.
func fapiConfig(tb testing.TB, data string) config.Config {
	tb.Helper()
	cfg := testConfig(tb, data)
	cfg.FAPI, cfg.Token.MaxLifetime = true, config.MaxFAPILifetime
	return cfg
}

// document reads a JSON object that anyone may read.
func (in *instance) document(address string) map[string]any {
	in.tb.Helper()
	res, err := in.client(nil).Get(address)
	if err != nil {
		in.tb.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK || res.Header.Get("Content-Type") != "application/json" {
		in.tb.Fatalf("%s: status %d, %s", address, res.StatusCode, res.Header.Get("Content-Type"))
	}
	var object map[string]any
	if err := json.NewDecoder(res.Body).Decode(&object); err != nil {
		in.tb.Fatal(err)
	}
	return object
}

// metadata reads the authorization server metadata.
func (in *instance) metadata() map[string]any {
	in.tb.Helper()
	return in.document(in.issuer + "/.well-known/oauth-authorization-server")
}

// texts is a member of metadata that lists strings.
func texts(m map[string]any, name string) []string {
	list, _ := m[name].([]any)
	var out []string
	for _, element := range list {
		text, _ := element.(string)
		out = append(out, text)
	}
	return out
}

// MD-04, CB-08: RFC 8414, Sections 2 and 3.3; RFC 8705, Sections 3.3 and 5: what the conformance module of FAPI 2.0 for
// discovery looks at.
func TestRFC8414_3_3_FAPIDiscovery(t *testing.T) {
	t.Parallel()
	in := start(t, fapiConfig(t, t.TempDir()))
	in.addLedger()
	m := in.metadata()
	if m["issuer"] != in.issuer {
		t.Errorf("issuer %v, want %s", m["issuer"], in.issuer)
	}
	u, err := url.Parse(in.issuer)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.RawQuery+u.Fragment != "" || u.User != nil {
		t.Errorf("issuer %v: %v", u, err)
	}
	if bound, ok := m["tls_client_certificate_bound_access_tokens"].(bool); !ok || !bound {
		t.Error("tokens are not said to be bound")
	}
	methods := texts(m, "token_endpoint_auth_methods_supported")
	for _, want := range []string{"tls_client_auth", "self_signed_tls_client_auth", "private_key_jwt"} {
		if !slices.Contains(methods, want) {
			t.Errorf("methods %v lack %s", methods, want)
		}
	}
	if len(methods) != 3 {
		t.Errorf("methods %v", methods)
	}
	for name := range m {
		if !strings.HasSuffix(name, "_alg_values_supported") {
			continue
		}
		for _, algorithm := range texts(m, name) {
			if !slices.Contains([]string{"PS256", "ES256", "EdDSA"}, algorithm) {
				t.Errorf("%s has %s", name, algorithm)
			}
		}
		if len(texts(m, name)) == 0 {
			t.Errorf("%s is empty", name)
		}
	}
	if !slices.Contains(texts(m, "grant_types_supported"), "client_credentials") {
		t.Error("no client_credentials")
	}
	for _, scope := range texts(m, "scopes_supported") {
		if !tokens.ValidScope(scope) {
			t.Errorf("scope %q", scope)
		}
	}
	for name, value := range m {
		if text, ok := value.(string); strings.HasSuffix(name, "_endpoint") && (!ok || !strings.HasPrefix(text, "https://")) {
			t.Errorf("%s is %v", name, value)
		}
	}
	aliases, ok := m["mtls_endpoint_aliases"].(map[string]any)
	if !ok {
		t.Fatal("the aliases are no object")
	}
	for name := range aliases {
		if !strings.HasSuffix(name, "_endpoint") || name == "authorization_endpoint" || m[name] == nil {
			t.Errorf("alias %s", name)
		}
	}
	if m["authorization_endpoint"] != nil {
		t.Error("there is no authorization endpoint")
	}
}

// api is a resource server behind our middleware, which knows the service by its key set alone.
func (in *instance) api() *mtlstest.Running {
	in.tb.Helper()
	keys, err := tokens.NewKeySet(tokens.KeySetConfig{URL: in.issuer + pathKeys, Client: in.client(nil)})
	if err != nil {
		in.tb.Fatal(err)
	}
	v, err := tokens.NewVerifier(tokens.VerifierConfig{Issuer: in.issuer, Audience: ledger, Keys: keys})
	if err != nil {
		in.tb.Fatal(err)
	}
	guard, err := resource.New(resource.Config{Verifier: v, Metadata: &resource.Metadata{Scopes: []string{write}}})
	if err != nil {
		in.tb.Fatal(err)
	}
	ca := mtlstest.NewCA(in.tb, "web")
	return mtlstest.Server(in.tb, guard.Protect(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "{}")
	}), write), ca.Issue(in.tb, mtlstest.ServerLeaf()), mtls.ClientCertificatesRequested)
}

// call calls the API with an Authorization header, on a connection of its own that shows the certificate.
func call(tb testing.TB, api *mtlstest.Running, cert *tls.Certificate, authorization string, change ...func(*http.Request)) *http.Response {
	tb.Helper()
	r, err := http.NewRequestWithContext(tb.Context(), http.MethodGet, api.URL, nil)
	if err != nil {
		tb.Fatal(err)
	}
	if authorization != "" {
		r.Header.Set("Authorization", authorization)
	}
	for _, f := range change {
		f(r)
	}
	cfg := &tls.Config{InsecureSkipVerify: true} //nolint:gosec // whose certificate the API has is not what is tested
	if cert != nil {
		cfg.Certificates = []tls.Certificate{*cert}
	}
	transport := &http.Transport{TLSClientConfig: cfg}
	tb.Cleanup(transport.CloseIdleConnections)
	res, err := (&http.Client{Transport: transport, Timeout: 20 * time.Second}).Do(r)
	if err != nil {
		tb.Fatal(err)
	}
	res.Body.Close()
	return res
}

// CB-03, FA-04, FA-06: RFC 8705, Section 3; RFC 6750: the conformance modules of FAPI 2.0 for the happy flow and for the
// letter case of the token type, with every method of authentication: tokens of high entropy that expire soon, accepted in
// the header alone, whatever the scheme's case; refused with another client's certificate.
func TestRFC8705_3_FAPIHappyFlow(t *testing.T) {
	t.Parallel()
	in := start(t, fapiConfig(t, t.TempDir()))
	in.addLedger()
	api := in.api()
	first, second := in.enrolled("payments"), in.enrolled("invoices")
	pinned := mtlstest.SelfSigned(t, mtlstest.Leaf{CommonName: "feed"})
	in.mustOperate(http.MethodPost, "/clients", map[string]any{
		"client_id": "feed", "scope": write, "certificates": []string{certificatePEM(pinned.Leaf)},
	}, nil)
	signing, someones := in.addAsserter("reports"), mtlstest.SelfSigned(t, mtlstest.Leaf{})
	for name, of := range map[string]struct {
		cert *tls.Certificate
		ask  func() tokenAnswer
	}{
		"payments": {&first, func() tokenAnswer { return in.token(in.client(&first), "payments") }},
		"invoices": {&second, func() tokenAnswer { return in.token(in.client(&second), "invoices") }},
		"feed":     {&pinned, func() tokenAnswer { return in.token(in.client(&pinned), "feed") }},
		"reports":  {&someones, func() tokenAnswer { return signing.ask(in.client(&someones), signing.assertion(nil)) }},
	} {
		answer := of.ask()
		wantToken(t, answer)
		claims := claimsIn(t, answer.Token)
		life := number(claims["exp"]) - number(claims["iat"])
		if life <= 0 || life > config.MaxFAPILifetime.Seconds() {
			t.Errorf("%s: a life of %v s", name, life)
		}
		if id, _ := claims["jti"].(string); entropy(answer.Token) <= 96 || len(id) < 22 {
			t.Errorf("%s: token of entropy %.0f, jti %q", name, entropy(answer.Token), id)
		}
		if cnf, _ := claims["cnf"].(map[string]any); cnf["x5t#S256"] != thumbprint(*of.cert) {
			t.Errorf("%s: cnf %v", name, cnf)
		}
		if claims["aud"] != ledger {
			t.Errorf("%s: aud %v", name, claims["aud"])
		}
		for _, scheme := range []string{"Bearer", "bEARER", "BEARER"} {
			res := call(t, api, of.cert, scheme+" "+answer.Token)
			date, err := http.ParseTime(res.Header.Get("Date"))
			if res.StatusCode != http.StatusOK || err != nil || time.Since(date).Abs() > 5*time.Minute {
				t.Errorf("%s: %s: %d, %v", name, scheme, res.StatusCode, err)
			}
		}
		for _, accept := range []string{"application/json; charset=UTF-8", "text/html, application/json;q=0.5, */*;q=0.1"} {
			if res := call(t, api, of.cert, "Bearer "+answer.Token, func(r *http.Request) {
				r.Header.Set("Accept", accept)
				r.Header.Set("X-FAPI-Interaction-ID", "c770aef3-6784-41f7-8e0e-ff5f97bddb3a")
			}); res.StatusCode != http.StatusOK {
				t.Errorf("%s: Accept %s: %d", name, accept, res.StatusCode)
			}
		}
		inQuery := func(r *http.Request) { r.URL.RawQuery = "access_token=" + answer.Token }
		if res := call(t, api, of.cert, "", inQuery); res.StatusCode != 400 && res.StatusCode != 401 {
			t.Errorf("%s: in the query: %d", name, res.StatusCode)
		}
		for whose, other := range map[string]*tls.Certificate{"payments": &first, "invoices": &second, "feed": &pinned, "reports": &someones, "nobody": nil} {
			if whose == name {
				continue
			}
			res := call(t, api, other, "Bearer "+answer.Token)
			if res.StatusCode != http.StatusUnauthorized || !strings.Contains(res.Header.Get("WWW-Authenticate"), `error="invalid_token"`) {
				t.Errorf("%s with the certificate of %s: %d %s", name, whose, res.StatusCode, res.Header.Get("WWW-Authenticate"))
			}
		}
	}
}

// CA-02, CA-03: RFC 8705, Section 2; RFC 6749, Section 5.2: the conformance modules of FAPI 2.0 for the client_id at the
// token endpoint and for the holder of the key, and those for assertions: each defect is invalid_client, as JSON, with
// nothing but printable ASCII.
func TestRFC6749_5_2_FAPINegatives(t *testing.T) {
	t.Parallel()
	in := start(t, fapiConfig(t, t.TempDir()))
	in.addLedger()
	first, second := in.enrolled("payments"), in.enrolled("invoices")
	signing, cert := in.addAsserter("reports"), mtlstest.SelfSigned(t, mtlstest.Leaf{})
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	in.mustOperate(http.MethodPost, "/clients", map[string]any{"client_id": "rsa", "scope": write, "jwks": keySet(key.Public(), "PS256")}, nil)
	old := &asserter{instance: in, id: "rsa", key: key}
	rs256 := func(algorithm gojose.SignatureAlgorithm) string {
		return signed(t, algorithm, key, map[string]any{"iss": "rsa", "sub": "rsa", "aud": in.issuer, "jti": rand.Text(), "exp": time.Now().Add(time.Minute).Unix()})
	}
	wantToken(t, old.ask(in.client(&cert), rs256(gojose.PS256)))
	for name, answer := range map[string]tokenAnswer{
		"another client's id":      in.token(in.client(&first), "invoices"),
		"the other's":              in.token(in.client(&second), "payments"),
		"no certificate":           in.token(in.client(nil), "payments"),
		"on the other listener":    elsewhere(in).token(in.client(nil), "payments"),
		"RS256":                    old.ask(in.client(&cert), rs256(gojose.RS256)),
		"no assertion":             in.token(in.client(&cert), "reports"),
		"five minutes in the past": signing.ask(in.client(&cert), signing.assertion(map[string]any{"exp": time.Now().Add(-5 * time.Minute).Unix()})),
		"wrong audience":           signing.ask(in.client(&cert), signing.assertion(map[string]any{"aud": "https://other.example"})),
		"token endpoint":           signing.ask(in.client(&cert), signing.assertion(map[string]any{"aud": in.mtls + pathToken})),
		"no subject":               signing.ask(in.client(&cert), signing.assertion(map[string]any{"sub": nil})),
		"no holder of a key":       signing.ask(in.client(nil), signing.assertion(nil)),
	} {
		if name == "no subject" { // it names no client at all
			if answer.Status != http.StatusBadRequest || answer.Error != "invalid_request" {
				t.Errorf("%s: %d %s", name, answer.Status, answer.Error)
			}
			continue
		}
		wantRefused(t, answer)
	}
	// By name it is another's.
	wantRefused(t, in.form(in.client(&cert), url.Values{
		"grant_type": {"client_credentials"}, "client_id": {"reports"}, "client_assertion": {signing.assertion(map[string]any{"sub": nil})},
		"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
	}))
}

// elsewhere is the service with the listener that asks for no certificate in the place of the other.
func elsewhere(in *instance) *instance {
	other := *in
	other.mtls = in.issuer
	return &other
}

// FA-01: RFC 9700, Section 2.5: no client with a secret, or without any, can be registered, and a signing key that the profile
// does not allow keeps the service from starting.
func TestRFC9700_2_5_FAPIAlgorithmsAndMethods(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	cfg := testConfig(t, data)
	cfg.Signing.Algorithm = "RS256"
	in := start(t, cfg)
	in.addLedger()
	if err := in.stop(); err != nil {
		t.Fatal(err)
	}
	again := fapiConfig(t, data)
	_, err := tryStart(t, again)
	var refused *StartError
	if !errors.As(err, &refused) || !strings.Contains(refused.Message, "RS256") || refused.Hint == "" {
		t.Errorf("with a key for RS256 the start says %v", err)
	}
	fresh := start(t, fapiConfig(t, t.TempDir()))
	fresh.addLedger()
	// No client is given a life of its tokens that this mode cuts.
	ttl := map[string]any{"client_id": "long", "scope": write, "token_ttl_seconds": 1800}
	if err := fresh.operate(http.MethodPost, "/clients", ttl, nil); err == nil || !strings.Contains(err.Error(), "a token cannot live 30m0s here") {
		t.Errorf("tokens of 30m: %v", err)
	}
	for _, method := range []string{"client_secret_basic", "client_secret_post", "client_secret_jwt", "none"} {
		if err := fresh.operate(http.MethodPost, "/clients", map[string]any{"client_id": "odd", "scope": write, "token_endpoint_auth_method": method}, nil); err == nil {
			t.Errorf("a client of %s was registered", method)
		}
	}
}

// FA-01: RFC 9700, Section 2.5: nor does a key that another replica made without this mode sign or verify anything here.
func TestRFC9700_2_5_FAPIKeyOfAnotherReplica(t *testing.T) {
	t.Parallel()
	w := newKeyWorld(t)
	s := &service{keys: w.start(tokens.ES256)}
	if err := s.checkFAPI(); err != nil { // not in the mode
		t.Error(err)
	}
	s.cfg.FAPI = true
	if err := s.checkFAPI(); err != nil {
		t.Fatal(err)
	}
	signing := w.signs(s.keys)
	made, err := newSigningKey(tokens.RS256)
	if err != nil {
		t.Fatal(err)
	}
	made.State = keyAnnounced
	if err := w.db.PutKey(t.Context(), made); err != nil {
		t.Fatal(err)
	}
	if _, err := s.keys.Signing(); err == nil || !strings.Contains(err.Error(), "RS256") {
		t.Errorf("beside a key for RS256: %v", err)
	}
	if _, err := s.keys.Key(t.Context(), signing); err == nil || errors.Is(err, tokens.ErrUnknownKey) {
		t.Errorf("beside a key for RS256 tokens are verified: %v", err)
	}
}

// keySet is a key as a client registers it.
func keySet(key crypto.PublicKey, algorithm string) gojose.JSONWebKeySet {
	return gojose.JSONWebKeySet{Keys: []gojose.JSONWebKey{{Key: key, KeyID: "k1", Algorithm: algorithm, Use: "sig"}}}
}

// claimsIn decodes the claims of a token.
func claimsIn(tb testing.TB, token string) map[string]any {
	tb.Helper()
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err != nil {
		tb.Fatal(err)
	}
	var claims map[string]any
	if err := json.Unmarshal(payload, &claims); err != nil {
		tb.Fatal(err)
	}
	return claims
}

func number(v any) float64 {
	n, _ := v.(float64)
	return n
}

// entropy is Shannon's, in bits, of a text by the frequency of its characters.
func entropy(text string) float64 {
	var of [256]float64
	for i := range len(text) {
		of[text[i]]++
	}
	bits := 0.0
	for _, n := range of {
		if n > 0 {
			bits -= n * math.Log2(n/float64(len(text)))
		}
	}
	return bits
}

// TLS-01, TLS-02, TLS-03: RFC 9325, Sections 3.1.1 and 4.2: what the conformance suite of FAPI 2.0 probes on every listener:
// TLS 1.0 and 1.1 are refused, TLS 1.3 is preferred, and in TLS 1.2 every suite but ECDHE with AES-GCM is refused, each by
// itself and all together; a client with those, and without a certificate, gets its ServerHello.
func TestRFC9325_4_2_FAPISuites(t *testing.T) {
	t.Parallel()
	in := start(t, fapiConfig(t, t.TempDir()))
	recommended := []uint16{
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	}
	var others []uint16
	for _, block := range [][2]uint16{{0x0001, 0x00ff}, {0xc001, 0xc0b4}, {0xcca8, 0xccae}, {0xd001, 0xd005}} {
		for suite := block[0]; suite <= block[1]; suite++ {
			if !slices.Contains(recommended, suite) {
				others = append(others, suite)
			}
		}
	}
	for _, address := range []string{in.issuer, in.mtls} {
		host := strings.TrimPrefix(address, "https://")
		for version := uint16(tls.VersionTLS10); version <= tls.VersionTLS11; version++ {
			if got := hello(t, host, version, recommended...); got != "alert protocol_version" {
				t.Errorf("%s: version %x: %s", address, version, got)
			}
		}
		if got := hello(t, host, tls.VersionTLS12, recommended...); got != "ServerHello" {
			t.Errorf("%s: the recommended suites: %s", address, got)
		}
		if got := hello(t, host, tls.VersionTLS12, others...); got != "alert handshake_failure" {
			t.Errorf("%s: all others together: %s", address, got)
		}
		for _, suite := range []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA, tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA,
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256, tls.TLS_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_RSA_WITH_AES_128_CBC_SHA,
			tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA, tls.TLS_ECDHE_ECDSA_WITH_RC4_128_SHA, 0x009e /* DHE_RSA_WITH_AES_128_GCM_SHA256 */, 0x0000,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
		} {
			if got := hello(t, host, tls.VersionTLS12, suite); got != "alert handshake_failure" {
				t.Errorf("%s: suite %04x: %s", address, suite, got)
			}
		}
		dialer := tls.Dialer{Config: &tls.Config{RootCAs: in.roots(), MinVersion: tls.VersionTLS12}}
		conn, err := dialer.DialContext(t.Context(), "tcp", host)
		if err != nil {
			t.Fatal(err)
		}
		if got := conn.(*tls.Conn).ConnectionState().Version; got != tls.VersionTLS13 {
			t.Errorf("%s: version %x where both speak 1.3", address, got)
		}
		conn.Close()
	}
}

// hello sends a ClientHello of a version, with these suites and without the extension that offers TLS 1.3, and tells what
// the server's first record is.
func hello(t *testing.T, host string, version uint16, suites ...uint16) string {
	t.Helper()
	var dialer net.Dialer
	conn, err := dialer.DialContext(t.Context(), "tcp", host)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Write(clientHello(version, suites)); err != nil {
		t.Fatal(err)
	}
	var record [7]byte
	if _, err := io.ReadFull(conn, record[:]); err != nil {
		return err.Error()
	}
	switch {
	case record[0] == 22 && record[5] == 2:
		return "ServerHello"
	case record[0] == 21 && record[6] == 40:
		return "alert handshake_failure"
	case record[0] == 21 && record[6] == 70:
		return "alert protocol_version"
	}
	return "another record"
}

// clientHello is a record with the message of RFC 5246, Section 7.4.1.2, that offers P-256, its signatures, and RSA's.
func clientHello(version uint16, suites []uint16) []byte {
	prefixed := func(size int, content []byte) []byte {
		length := make([]byte, 8)
		binary.BigEndian.PutUint64(length, uint64(len(content)))
		return append(length[8-size:], content...)
	}
	extension := func(kind uint16, content []byte) []byte {
		return append(binary.BigEndian.AppendUint16(nil, kind), prefixed(2, content)...)
	}
	var list []byte
	for _, s := range suites {
		list = binary.BigEndian.AppendUint16(list, s)
	}
	body := binary.BigEndian.AppendUint16(nil, version)
	body = append(body, make([]byte, 32)...) // random
	body = append(body, 0)                   // no session
	body = append(body, prefixed(2, list)...)
	body = append(body, 1, 0) // no compression
	extensions := slices.Concat(
		extension(10, prefixed(2, []byte{0, 23, 0, 29})),                 // groups: P-256, X25519
		extension(11, prefixed(1, []byte{0})),                            // points: uncompressed
		extension(13, prefixed(2, []byte{4, 3, 4, 1, 8, 4, 2, 3, 2, 1})), // signatures
	)
	body = append(body, prefixed(2, extensions)...)
	message := append([]byte{1}, prefixed(3, body)...)
	return append([]byte{22, 3, 1}, prefixed(2, message)...)
}
