// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"net/url"
	"testing"
	"time"

	gojose "github.com/go-jose/go-jose/v4"

	"github.com/certbound/certbound/mtls/mtlstest"
)

// asserter is a client that signs assertions with another library than ours.
type asserter struct {
	*instance
	id  string
	key crypto.Signer
}

// addAsserter registers a client that signs assertions.
func (in *instance) addAsserter(id string) *asserter {
	in.tb.Helper()
	a := &asserter{instance: in, id: id, key: newKey(in.tb)}
	set := gojose.JSONWebKeySet{Keys: []gojose.JSONWebKey{{Key: a.key.Public(), KeyID: "k1", Algorithm: "ES256", Use: "sig"}}}
	in.mustOperate(http.MethodPost, "/clients", map[string]any{"client_id": id, "scope": write, "jwks": set}, nil)
	return a
}

// assertion is a good one, with the claims changed.
func (a *asserter) assertion(claims map[string]any) string {
	a.tb.Helper()
	all := map[string]any{"iss": a.id, "sub": a.id, "aud": a.issuer, "jti": rand.Text(), "exp": time.Now().Add(time.Minute).Unix()}
	for name, value := range claims {
		all[name] = value
	}
	return signed(a.tb, gojose.ES256, a.key, all)
}

func signed(tb testing.TB, algorithm gojose.SignatureAlgorithm, key crypto.Signer, claims any) string {
	tb.Helper()
	signer, err := gojose.NewSigner(gojose.SigningKey{Algorithm: algorithm, Key: gojose.JSONWebKey{Key: key, KeyID: "k1"}}, nil)
	if err != nil {
		tb.Fatal(err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		tb.Fatal(err)
	}
	object, err := signer.Sign(payload)
	if err != nil {
		tb.Fatal(err)
	}
	text, err := object.CompactSerialize()
	if err != nil {
		tb.Fatal(err)
	}
	return text
}

// ask asks for a token with an assertion.
func (a *asserter) ask(c *http.Client, assertion string) tokenAnswer {
	a.tb.Helper()
	return a.form(c, url.Values{
		"grant_type": {"client_credentials"}, "client_assertion": {assertion},
		"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
	})
}

// form posts a form to the token endpoint.
func (in *instance) form(c *http.Client, form url.Values) tokenAnswer {
	in.tb.Helper()
	res, err := c.PostForm(in.mtls+pathToken, form)
	if err != nil {
		in.tb.Fatal(err)
	}
	defer res.Body.Close()
	answer := tokenAnswer{Status: res.StatusCode, Header: res.Header}
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil {
		in.tb.Fatal(err)
	}
	return answer
}

// CA-29, CB-06, CB-11: RFC 7523, Section 3: a client that signs assertions gets tokens on whichever certificate it shows, and
// none without; an assertion is good once, also after a restart; a certificate that our own CA gave to somebody else, and
// a client that was disabled, get none.
func TestRFC7523_3_AssertionsOfTheService(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t, t.TempDir())
	in := start(t, cfg)
	in.addLedger()
	a := in.addAsserter("reports")
	cert := mtlstest.SelfSigned(t, mtlstest.Leaf{CommonName: "any"})
	c := in.client(&cert)
	used := a.assertion(nil)
	wantRefused(t, a.ask(in.client(nil), used))
	wantToken(t, a.ask(c, used))
	wantRefused(t, a.ask(c, used))
	wantRefused(t, in.token(c, "reports"))
	wantRefused(t, a.ask(c, a.assertion(map[string]any{"aud": []string{in.issuer}})))
	payments := in.enrolled("payments")
	wantToken(t, in.token(in.client(&payments), "payments"))
	wantRefused(t, a.ask(in.client(&payments), a.assertion(nil)))
	if err := in.stop(); err != nil {
		t.Fatal(err)
	}

	again := start(t, cfg)
	a.instance = again
	c = again.client(&cert)
	wantRefused(t, a.ask(c, used))
	wantToken(t, a.ask(c, a.assertion(nil)))
	again.mustOperate(http.MethodPost, "/clients/reports/disable", nil, nil)
	wantRefused(t, a.ask(c, a.assertion(nil)))
	again.mustOperate(http.MethodPost, "/clients/reports/enable", nil, nil)
	wantToken(t, a.ask(c, a.assertion(nil)))
}

// A client that signs assertions may run a resource server: with its token it reads the deny feed, until it is disabled.
func TestDenyFeedOfAssertingClient(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	in.addLedger()
	a := in.addAsserter("reports")
	in.mustOperate(http.MethodPost, "/resources", map[string]any{"resource": "https://reports.test", "scope": "reports:read", "servers": []string{"reports"}}, nil)
	cert := mtlstest.SelfSigned(t, mtlstest.Leaf{CommonName: "any"})
	c := in.client(&cert)
	answer := in.form(c, url.Values{
		"grant_type": {"client_credentials"}, "resource": {in.issuer + pathDenied}, "client_assertion": {a.assertion(nil)},
		"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
	})
	wantToken(t, answer)
	f := &follower{in: in, http: c, token: answer.Token}
	if status, body := f.poll(in, ""); status != http.StatusOK {
		t.Errorf("%d %s", status, body)
	}
	in.mustOperate(http.MethodPost, "/clients/reports/disable", nil, nil)
	if status, body := f.poll(in, ""); status != http.StatusUnauthorized {
		t.Errorf("disabled: %d %s", status, body)
	}
}
