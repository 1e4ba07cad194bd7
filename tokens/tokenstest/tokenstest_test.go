// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package tokenstest_test

import (
	"net/http"
	"reflect"
	"testing"
	"time"

	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/tokenstest"
)

// A program's own tests need an issuer, a peer and a verifier, with the keys at hand or fetched.
func TestIssuer(t *testing.T) {
	t.Parallel()
	issuer := tokenstest.New(t)
	peer := mtlstest.PeerOf(mtlstest.SelfSigned(t, mtlstest.Leaf{}))
	claims, err := issuer.Verifier(t, "").Verify(t.Context(), issuer.Token(t, peer, "a", "b"), peer)
	if err != nil || !claims.HasScope("a") || !claims.HasScope("b") || claims.ClientID != tokenstest.Client {
		t.Errorf("%+v, %v", claims, err)
	}
	raw := issuer.TokenWith(t, peer, func(claims, _ map[string]any) { claims["aud"] = "https://own.example" })
	if _, err := issuer.Verifier(t, "https://own.example").Verify(t.Context(), raw, peer); err != nil {
		t.Error(err)
	}
	if _, err := issuer.Verifier(t, "").Verify(t.Context(), raw, peer); err == nil {
		t.Error("a token for another audience is accepted")
	}
}

// The key set server answers with the issuers' keys or with the faults it is told to show, and counts.
func TestKeySetServer(t *testing.T) {
	t.Parallel()
	old, next := tokenstest.New(t), tokenstest.New(t)
	server := old.KeySetServer(t)
	server.Serve(t, old, next)
	keys, err := tokens.NewKeySet(tokens.KeySetConfig{URL: server.URL, Client: server.Client})
	if err != nil {
		t.Fatal(err)
	}
	for _, issuer := range []*tokenstest.Issuer{old, next} {
		if _, err := keys.Key(t.Context(), issuer.Keys()[0].ID); err != nil {
			t.Error(err)
		}
	}
	if got := server.Fetches(); got != 1 {
		t.Errorf("%d fetches", got)
	}
	server.Answer(http.StatusTeapot, nil)
	response, err := server.Client.Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	if response.Body.Close(); response.StatusCode != http.StatusTeapot {
		t.Errorf("status %d", response.StatusCode)
	}
}

// The museum is quick to build, has something for every answer, and says of each exhibit what it is.
func TestMuseumIsCheap(t *testing.T) {
	t.Parallel()
	start := time.Now()
	issuer := tokenstest.New(t)
	exhibits := tokenstest.Museum(t, issuer, mtlstest.PeerOf(mtlstest.SelfSigned(t, mtlstest.Leaf{})))
	t.Logf("%d exhibits in %v", len(exhibits), time.Since(start))
	codes, reasons, raws := map[string]int{}, map[string]int{}, map[string]bool{}
	for _, e := range exhibits {
		codes[e.Code]++
		reasons[e.Reason]++
		if e.Name == "" || e.Clause == "" || e.Keys == nil || (e.Code == "") != (e.Reason == "") {
			t.Errorf("%q lacks something: %q, %q, %q", e.Name, e.Clause, e.Code, e.Reason)
		}
		if !reflect.DeepEqual(e.Keys, issuer.Keys()) {
			continue // the same token with other keys is another exhibit
		}
		if raws[e.Raw] {
			t.Errorf("%q is there under another name too", e.Name)
		}
		raws[e.Raw] = true
	}
	for _, code := range []string{"", tokens.CodeInvalidToken, tokens.CodeInvalidRequest} {
		if codes[code] == 0 {
			t.Errorf("nothing for code %q", code)
		}
	}
	for _, reason := range []string{
		"", "malformed", "wrong_type", "algorithm_not_allowed", "unknown_key", "bad_signature", "signature_form", "malformed_claims", "wrong_issuer",
		"wrong_audience", "expired", "not_yet_valid", "issued_in_future", "not_bound", "thumbprint_mismatch",
	} {
		if reasons[reason] == 0 {
			t.Errorf("nothing for reason %q", reason)
		}
	}
}
