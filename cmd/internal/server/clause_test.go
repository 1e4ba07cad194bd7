// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"testing"

	"github.com/certbound/certbound/cmd/internal/authority"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/pki"
	"github.com/certbound/certbound/tokens"
)

// TLS-11, TLS-06: RFC 8705, Sections 5 and 6.1: the public listener never asks for a certificate, so that no
// browser prompts; the mtls listener asks without naming authorities, so that no client holds its own back.
func TestRFC8705_5_WhoIsAskedForACertificate(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	for address, want := range map[string]bool{in.issuer + pathKeys: false, in.mtls + pathRoots: true} {
		asked, named := false, 0
		c := in.client(nil, func(cfg *tls.Config) {
			cfg.GetClientCertificate = func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
				asked, named = true, len(r.AcceptableCAs)
				return new(tls.Certificate), nil
			}
		})
		res, err := c.Get(address)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusOK || asked != want || named != 0 {
			t.Errorf("%s: status %d, asked %t, %d authorities named; want 200, %t, none", address, res.StatusCode, asked, named, want)
		}
	}
}

// CB-09: RFC 8705, Section 6.3: a renewed certificate needs a new token: the one from before is refused on
// connections with the new certificate, and so is the new one on those with the old.
func TestRFC8705_6_3_RenewedCertificate(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	in.addLedger()
	parent := in.enrolled("payments")
	key := newKey(t)
	status, res := in.certify(in.client(&parent), in.mtls+pathRenew, pki.NewRenewRequest(newCSR(t, key)))
	if status != http.StatusOK {
		t.Fatalf("renewal: status %d", status)
	}
	child := pair(t, res, key)
	before, after := in.token(in.client(&parent), "payments"), in.token(in.client(&child), "payments")
	wantToken(t, before)
	wantToken(t, after)
	keys, err := tokens.NewKeySet(tokens.KeySetConfig{URL: in.issuer + pathKeys, Client: in.client(nil)})
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := tokens.NewVerifier(tokens.VerifierConfig{Issuer: in.issuer, Audience: ledger, Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, token string
		cert        tls.Certificate
		usable      bool
	}{
		{"old token, old certificate", before.Token, parent, true},
		{"old token, new certificate", before.Token, child, false},
		{"new token, new certificate", after.Token, child, true},
		{"new token, old certificate", after.Token, parent, false},
	} {
		_, err := verifier.Verify(t.Context(), tc.token, mtls.NewPeer(tc.cert.Leaf))
		if refused, ok := errors.AsType[*tokens.Error](err); (err == nil) != tc.usable || !tc.usable && (!ok || refused.Code != "invalid_token") {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

// EC-12: RFC 3647, Section 5.4: every certificate is on record before it leaves: with the journal gone there
// is none, and the same code with the same key gets it once the journal is back.
func TestEnroll_NothingUnrecorded(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	in.addLedger()
	code := in.addClient("payments")
	if err := in.stop(); err != nil {
		t.Fatal(err)
	}
	request := pki.NewEnrollRequest(code, in.issuer, newCSR(t, newKey(t)))
	s := &service{cfg: testConfig(t, in.data), log: discard()}
	if err := errors.Join(s.open(t.Context()), s.build(t.Context())); err != nil {
		t.Fatal(err)
	}
	if err := s.folder.journal.Close(); err != nil {
		t.Fatal(err)
	}
	answer, err := s.authority.Enroll(t.Context(), request, authority.Caller{})
	if refused, ok := errors.AsType[*tokens.Error](err); answer != nil || !ok || refused.Code != "temporarily_unavailable" {
		t.Errorf("without a journal: a certificate %t, %v", answer != nil, err)
	}
	_ = s.close() // the journal is closed already, which was the point

	again := start(t, testConfig(t, in.data))
	if status, _ := again.certify(again.client(nil), again.issuer+pathEnroll, request); status != http.StatusOK {
		t.Errorf("the same request with the journal back: status %d, want 200", status)
	}
	if !bytes.Contains([]byte(again.journal()), []byte(`"cert.enroll"`)) {
		t.Error("no cert.enroll in the journal")
	}
}

// EC-14: RFC 9110, Section 15.5.1: who redeems a code learns nothing from a refusal: the answer to an unknown
// code, a forged one, a used one and one of a disabled client is the same.
func TestEnroll_RefusalsLookAlike(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	in.addLedger()
	used, disabled := in.addClient("payments"), in.addClient("billing")
	unknown, forged := used, used
	unknown.ID[0] ^= 1
	forged.Seed[0] ^= 1
	if status, _ := in.redeem(used, newKey(t)); status != http.StatusOK {
		t.Fatalf("status %d", status)
	}
	in.mustOperate(http.MethodPost, "/clients/billing/disable", nil, nil)
	var first []byte
	for name, code := range map[string]pki.Code{"unknown": unknown, "forged": forged, "used": used, "disabled": disabled} {
		body, err := json.Marshal(pki.NewEnrollRequest(code, in.issuer, newCSR(t, newKey(t))))
		if err != nil {
			t.Fatal(err)
		}
		res, err := in.client(nil).Post(in.issuer+pathEnroll, "application/json", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: status %d, %v", name, res.StatusCode, err)
		}
		if first == nil {
			first = answer
		}
		if !bytes.Equal(answer, first) {
			t.Errorf("%s: %s, another: %s", name, answer, first)
		}
	}
}
