// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/pki"
)

// inspectStore opens the database of a stopped service.
func inspectStore(tb testing.TB, data string) *store.Store {
	tb.Helper()
	name := filepath.Join(data, "certbound.db")
	kek, err := store.LoadKEK(data, name, store.KEKSource{})
	if err != nil {
		tb.Fatal(err)
	}
	db, err := store.Open(tb.Context(), store.Config{Path: name, KEK: kek})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := db.Close(); err != nil {
			tb.Error(err)
		}
	})
	return db
}

// EC-07: RFC 6749, Section 4.1.2 (for codes): an enrolment code is single use under concurrency: of fifty redemptions with different keys one
// gets a certificate, and it alone is in the inventory. The same key gets the same certificate again,
// another key is refused, and neither burns anything.
func TestEnroll_OneCodeFiftyKeys(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	in.addLedger()
	code := in.addClient("payments")

	const parallel = 50
	type result struct {
		status int
		answer pki.EnrollResponse
	}
	results := make([]result, parallel)
	requests := make([]pki.EnrollRequest, parallel)
	keys := make([]crypto.Signer, parallel)
	for i := range requests {
		key := newKey(t)
		keys[i] = key
		requests[i] = pki.NewEnrollRequest(code, in.issuer, newCSR(t, key))
	}
	client := in.client(nil)
	var wg sync.WaitGroup
	for i := range requests {
		wg.Go(func() { results[i].status, results[i].answer = in.certify(client, in.issuer+pathEnroll, requests[i]) })
	}
	wg.Wait()
	winner := -1
	for i, r := range results {
		switch {
		case r.status == http.StatusOK && winner >= 0:
			t.Fatalf("redemptions %d and %d both got a certificate", winner, i)
		case r.status == http.StatusOK:
			winner = i
		case r.status != http.StatusBadRequest:
			t.Errorf("redemption %d: status %d, want 400", i, r.status)
		}
	}
	if winner < 0 {
		t.Fatal("nobody got a certificate")
	}
	status, again := in.certify(client, in.issuer+pathEnroll, requests[winner])
	if status != http.StatusOK || again.Certificate != results[winner].answer.Certificate {
		t.Errorf("the same code with the same key again: status %d, same certificate %t", status, again.Certificate == results[winner].answer.Certificate)
	}
	if status, _ := in.redeem(code, newKey(t)); status != http.StatusBadRequest {
		t.Errorf("the used code with another key: status %d, want 400", status)
	}
	cert := pair(t, results[winner].answer, keys[winner])
	wantToken(t, in.token(in.client(&cert), "payments"))

	if err := in.stop(); err != nil {
		t.Fatal(err)
	}
	rows, err := inspectStore(t, in.data).Certificates(t.Context(), "payments", "", 100)
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != 1 || rows[0].Thumbprint != mtls.ThumbprintOf(cert.Leaf) {
		t.Errorf("the inventory has %d certificates of the client, want the one that was returned", len(rows))
	}
	// The signal that two parties hold one code names both of them.
	if !slices.ContainsFunc(in.events(), func(e event) bool {
		return e.Event == "enroll.conflict" && e.Address == "127.0.0.1" && e.Personal["first_address"] == "127.0.0.1"
	}) {
		t.Error("no enroll.conflict with the first address in the journal")
	}
}

// journal is everything that was recorded. While it is read a new segment may get its name: then all is read again, for what
// was just recorded may be in that one.
func (in *instance) journal() string {
	in.tb.Helper()
	const tries = 100
	var err error
	for range tries {
		var all string
		if all, err = readAll(filepath.Join(in.data, "audit", "*")); err == nil {
			return all
		}
		if !errors.Is(err, os.ErrNotExist) {
			break
		}
	}
	in.tb.Fatal(err)
	return ""
}

// readAll joins the contents of the files that match a pattern.
func readAll(pattern string) (string, error) {
	names, err := filepath.Glob(pattern)
	if err != nil {
		return "", err
	}
	var all strings.Builder
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			return "", err
		}
		all.Write(data)
	}
	return all.String(), nil
}

// recorded waits until the journal holds a text: refusals are not waited for by whoever is refused.
func (in *instance) recorded(text string) bool {
	in.tb.Helper()
	for range 100 {
		if strings.Contains(in.journal(), text) {
			return true
		}
		time.Sleep(50 * time.Millisecond)
	}
	return false
}

// A forged code stores nothing and burns nothing: neither one of an unknown id, nor one of a genuine id
// whose seed was guessed.
func TestEnroll_ForgedCodeStoresNothing(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	in.addLedger()
	code := in.addClient("payments")
	before := in.stats()

	unknown, guessed := code, code
	unknown.ID[0] ^= 1
	guessed.Seed[0] ^= 1
	for name, forged := range map[string]pki.Code{"unknown id": unknown, "guessed seed": guessed} {
		for range 3 {
			if status, _ := in.redeem(forged, newKey(t)); status != http.StatusBadRequest {
				t.Errorf("%s: status %d, want 400", name, status)
			}
		}
	}
	if after := in.stats(); after != before {
		t.Errorf("forged codes changed the database: %v, then %v", before, after)
	}
	if status, _ := in.redeem(code, newKey(t)); status != http.StatusOK {
		t.Errorf("the genuine code after the forged ones: status %d, want 200", status)
	}
}

// stats are counts of what the database holds, as the operators' API tells them.
func (in *instance) stats() string {
	in.tb.Helper()
	var all json.RawMessage
	in.mustOperate(http.MethodGet, "/certificates", nil, &all)
	var clients json.RawMessage
	in.mustOperate(http.MethodGet, "/clients", nil, &clients)
	return string(all) + string(clients)
}

// A certificate minted with the genuine issuing key, but not by the service, is not in the inventory and
// gets no token: who steals the issuing key gains nothing here.
func TestRFC8705_2_MintedOutside(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	in.addLedger()
	genuine := in.enrolled("payments")
	wantToken(t, in.token(in.client(&genuine), "payments"))
	if err := in.stop(); err != nil {
		t.Fatal(err)
	}
	rows, err := inspectStoreKeys(t, in.data)
	if err != nil {
		t.Fatal(err)
	}
	h, err := parseHierarchy(rows[0])
	if err != nil {
		t.Fatal(err)
	}
	key := newKey(t)
	forged := *genuine.Leaf
	forged.SerialNumber = big.NewInt(0).Add(genuine.Leaf.SerialNumber, big.NewInt(1))
	der, err := x509.CreateCertificate(rand.Reader, &forged, h.issuing, key.Public(), h.issuingKey)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	if err := leaf.CheckSignatureFrom(h.issuing); err != nil {
		t.Fatalf("the forged certificate should chain to the genuine issuing CA: %v", err)
	}

	again := start(t, testConfig(t, in.data))
	minted := tls.Certificate{Certificate: [][]byte{der, h.issuing.Raw}, PrivateKey: key, Leaf: leaf}
	wantRefused(t, again.token(again.client(&minted), "payments"))
	wantToken(t, again.token(again.client(&genuine), "payments"))
	status, _ := again.certify(again.client(&minted), again.mtls+pathRenew, pki.NewRenewRequest(newCSR(t, newKey(t))))
	if status != http.StatusUnauthorized {
		t.Errorf("renewing with the minted certificate: status %d, want 401", status)
	}
}

func inspectStoreKeys(tb testing.TB, data string) ([]store.Key, error) {
	tb.Helper()
	db := inspectStore(tb, data)
	rows, err := db.Keys(tb.Context(), purposeIssuing)
	if closeErr := db.Close(); err == nil {
		err = closeErr
	}
	return rows, err
}

// EC-08: RFC 4210, Section 5.3.5: renewal over mTLS keeps the identity and signs afresh from the registry; repeated from the same
// parent with the same key it returns the same child; a revoked certificate cannot renew.
func TestRenewal(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	in.addLedger()
	parent := in.enrolled("payments")
	c := in.client(&parent)
	key := newKey(t)
	renew := pki.NewRenewRequest(newCSR(t, key))
	status, first := in.certify(c, in.mtls+pathRenew, renew)
	if status != http.StatusOK {
		t.Fatalf("renewal: status %d", status)
	}
	child := pair(t, first, key)
	if got, want := child.Leaf.URIs[0].String(), parent.Leaf.URIs[0].String(); got != want || child.Leaf.Subject.CommonName != "payments" {
		t.Errorf("the child is %s (%s), the parent %s", got, child.Leaf.Subject, want)
	}
	if _, second := in.certify(c, in.mtls+pathRenew, renew); second.Certificate != first.Certificate {
		t.Error("the same parent with the same key got a second certificate")
	}
	wantToken(t, in.token(in.client(&child), "payments"))

	in.mustOperate(http.MethodPost, "/certificates/revoke", map[string]any{"serial": parent.Leaf.SerialNumber.String()}, nil)
	if status, _ := in.certify(c, in.mtls+pathRenew, pki.NewRenewRequest(newCSR(t, newKey(t)))); status != http.StatusUnauthorized {
		t.Errorf("renewing with a revoked certificate: status %d, want 401", status)
	}
	if status, _ := in.certify(in.client(nil), in.mtls+pathRenew, renew); status != http.StatusUnauthorized {
		t.Errorf("renewing without a certificate: status %d, want 401", status)
	}
	// Steal, renew, revoke the original: the thief's certificate gets no token.
	wantRefused(t, in.token(in.client(&child), "payments"))
}

// EC-09: RFC 5280, Section 5.3.1: a key that was reported compromised, or that another client's certificate holds, is not
// certified again.
func TestEnroll_KeysThatAreRefused(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	in.addLedger()
	key := newKey(t)
	status, res := in.redeem(in.addClient("payments"), key)
	if status != http.StatusOK {
		t.Fatalf("status %d", status)
	}
	cert := pair(t, res, key)
	billing := in.addClient("billing")
	if status, _ := in.redeem(billing, key); status != http.StatusBadRequest {
		t.Errorf("another client's key: status %d, want 400", status)
	}
	in.mustOperate(http.MethodPost, "/certificates/revoke",
		map[string]any{"x5t#S256": thumbprint(cert), "reason": "keyCompromise"}, nil)
	var invited struct {
		Code string `json:"code"`
	}
	in.mustOperate(http.MethodPost, "/clients/payments/invite", nil, &invited)
	code, err := pki.ParseCode(invited.Code)
	if err != nil {
		t.Fatal(err)
	}
	if status, _ := in.redeem(code, key); status != http.StatusBadRequest {
		t.Errorf("a compromised key: status %d, want 400", status)
	}
	if status, _ := in.redeem(code, newKey(t)); status != http.StatusOK {
		t.Errorf("a new key with the same code: status %d, want 200: the refusal must burn nothing", status)
	}
	if status, _ := in.redeem(billing, newKey(t)); status != http.StatusOK {
		t.Errorf("billing with its own key: status %d, want 200", status)
	}
}

// EC-02: RFC 2986, Section 3: names in a certificate request are never taken over: such a request is refused.
func TestEnroll_NamesInTheRequest(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	in.addLedger()
	code := in.addClient("payments")
	key := newKey(t)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"admin.internal"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	if status, _ := in.certify(in.client(nil), in.issuer+pathEnroll, pki.NewEnrollRequest(code, in.issuer, der)); status != http.StatusBadRequest {
		t.Errorf("a request with a foreign name: status %d, want 400", status)
	}
	if status, _ := in.redeem(code, key); status != http.StatusOK {
		t.Errorf("the code afterwards: status %d, want 200", status)
	}
}

// EC-10: RFC 5280, Section 5: a revoked certificate is on the next revocation list, which is ours, fresh, and numbered higher
// than the one before.
func TestRFC5280_5_CRL(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	in.addLedger()
	cert := in.enrolled("payments")
	fetch := func() *x509.RevocationList {
		t.Helper()
		res, err := in.client(nil).Get(in.issuer + pathCRL)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		var body bytes.Buffer
		if _, err := body.ReadFrom(res.Body); err != nil {
			t.Fatal(err)
		}
		list, err := x509.ParseRevocationList(body.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		issuing, err := x509.ParseCertificate(cert.Certificate[1])
		if err != nil {
			t.Fatal(err)
		}
		if err := list.CheckSignatureFrom(issuing); err != nil {
			t.Fatal(err)
		}
		if now := time.Now(); now.Before(list.ThisUpdate) || now.After(list.NextUpdate) {
			t.Errorf("the list is for %s to %s", list.ThisUpdate, list.NextUpdate)
		}
		return list
	}
	before := fetch()
	if n := len(before.RevokedCertificateEntries); n != 0 {
		t.Fatalf("%d entries before anything was revoked", n)
	}
	in.mustOperate(http.MethodPost, "/certificates/revoke", map[string]any{"serial": cert.Leaf.SerialNumber.String(), "reason": "superseded"}, nil)
	after := fetch()
	if len(after.RevokedCertificateEntries) != 1 || after.RevokedCertificateEntries[0].SerialNumber.Cmp(cert.Leaf.SerialNumber) != 0 {
		t.Errorf("the list has %d entries, want the revoked certificate", len(after.RevokedCertificateEntries))
	}
	if after.Number.Cmp(before.Number) <= 0 {
		t.Errorf("list number %s after %s", after.Number, before.Number)
	}
}

// The paths that take JSON refuse everything else with a registered error and without a Go error text.
func TestEnroll_MalformedRequests(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	c := in.client(nil)
	for name, tc := range map[string]struct {
		contentType, body string
		want              int
	}{
		"not JSON":        {"application/json", "{", 400},
		"form":            {"application/x-www-form-urlencoded", "id=1", 400},
		"unknown member":  {"application/json", `{"id":"","csr":"","signature":"","x":1}`, 400},
		"empty":           {"application/json", `{}`, 400},
		"two objects":     {"application/json", `{}{}`, 400},
		"null":            {"application/json", `null`, 400},
		"padded base64":   {"application/json", `{"id":"AAAAAAAAAAA=","csr":"AA","signature":"AA"}`, 400},
		"oversized":       {"application/json", `{"id":"` + strings.Repeat("A", 200<<10) + `"}`, 400},
		"deeply nested":   {"application/json", strings.Repeat("[", 10000), 400},
		"wrong type":      {"application/json", `{"id":7}`, 400},
		"no content type": {"", `{}`, 400},
	} {
		res, err := c.Post(in.issuer+pathEnroll, tc.contentType, strings.NewReader(tc.body))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var answer struct {
			Error       string `json:"error"`
			Description string `json:"error_description"`
		}
		if err := json.NewDecoder(res.Body).Decode(&answer); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		res.Body.Close()
		if res.StatusCode != tc.want || answer.Error != "invalid_request" {
			t.Errorf("%s: status %d, error %q", name, res.StatusCode, answer.Error)
		}
		if strings.Contains(answer.Description, "json:") || strings.Contains(answer.Description, "base64") && strings.Contains(answer.Description, "illegal") {
			t.Errorf("%s: a Go error text in the description: %q", name, answer.Description)
		}
		if res.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: Cache-Control %q", name, res.Header.Get("Cache-Control"))
		}
	}
	res, err := c.PostForm(in.mtls+pathEnroll, url.Values{})
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusBadRequest {
		t.Errorf("a form at the enrolment path: status %d", res.StatusCode)
	}
}
