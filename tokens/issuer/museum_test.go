// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"testing"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/tokens"
)

// visit registers one client for each way in which the exhibit's owner could be known, and returns their ids with the
// reason for which each must be refused; an empty one means that the exhibit is sound and gets a token.
func (s *service) visit(t *testing.T, number int, e mtlstest.Exhibit) map[string]string {
	t.Helper()
	id := func(kind string) string { return fmt.Sprint(kind, "-", number) }
	vouched := Client{ID: id("foreign"), AuthMethod: TLSClientAuth, Anchors: e.Anchors, Subject: e.Subject}
	own := vouched
	own.ID, own.Inventory = id("own"), true
	registered := vouched
	registered.ID, registered.AuthMethod = id("self-signed"), SelfSignedTLSClientAuth
	registered.Certificates = new(set).publish(s.ca.Issue(t, mtlstest.Leaf{}))
	reasons := map[string]string{
		vouched.ID: vouchedReason(e), own.ID: "certificate_unknown", registered.ID: "certificate_not_registered",
	}
	for _, c := range []Client{vouched, own, registered} {
		s.register(c)
		switch { // dates are judged before anything else
		case errors.Is(e.Err, mtls.ErrExpired):
			reasons[c.ID] = "certificate_expired"
		case errors.Is(e.Err, mtls.ErrNotYetValid):
			reasons[c.ID] = "certificate_not_yet_valid"
		}
	}
	return reasons
}

func vouchedReason(e mtlstest.Exhibit) string {
	switch e.Must {
	case mtlstest.Accepted:
		return ""
	case mtlstest.RefusedBySubject:
		return "subject_mismatch"
	}
	return "certificate_untrusted"
}

// CA-14, CA-15, CA-16, CA-17: RFC 8705, Section 2: no certificate of the museum gets a token through a real handshake,
// in TLS 1.2 and 1.3, however its owner is registered, unless it is one that only looks wrong and is vouched for.
func TestRFC8705_2_Museum(t *testing.T) {
	t.Parallel()
	s := newService(t)
	for number, e := range mtlstest.Museum(t) {
		reasons := s.visit(t, number, e)
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			t.Run(e.Name+"/"+tls.VersionName(version), func(t *testing.T) {
				hc := mtlstest.Presenter(t, s.ca.Pool(), e.Chain, version)
				for id, reason := range reasons {
					s.show(t, hc, e, id, reason)
				}
			})
		}
	}
}

func (s *service) show(t *testing.T, hc *http.Client, e mtlstest.Exhibit, id, reason string) {
	t.Helper()
	r := request(t, s.mtlsURL+TokenPath, ask(id))
	if e.Must == mtlstest.RefusedInHandshake {
		before := s.journal.count()
		if res, err := hc.Do(r); err == nil {
			_ = res.Body.Close()
			t.Errorf("%s: answer %s, want a broken handshake", e.Clause, res.Status)
		}
		if n := s.journal.count(); n != before {
			t.Errorf("%s: %d requests were decided", e.Clause, n-before)
		}
		return
	}
	a := do(t, hc, r)
	if s.wantReason(t, reason); reason == "" {
		wantBound(t, a, e.Chain, id)
		return
	}
	a.want(t, http.StatusUnauthorized, tokens.CodeInvalidClient)
}
