// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"context"
	"crypto/sha256"
	"errors"
	"testing"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/tokens"
)

// CA-25: RFC 5280, Section 5.3.1: a key that was reported compromised authenticates nobody, whoever vouches for it:
// our own CA, a foreign one, or the client's registration.
func TestRFC5280_5_3_1_CompromisedKey(t *testing.T) {
	t.Parallel()
	blocked := map[[sha256.Size]byte]bool{}
	var unknown error
	s := newService(t, func(c *Config) {
		c.KeyBlocked = func(_ context.Context, key [sha256.Size]byte) (bool, error) { return blocked[key], unknown }
	})
	own := s.enrol(t, "own")
	foreign := s.partner.Issue(t, mtlstest.Leaf{CommonName: "feed", DNSNames: []string{"feed.example"}})
	subject, err := mtls.ParseSubject(mtls.SANDNS, "feed.example")
	if err != nil {
		t.Fatal(err)
	}
	pinned := mtlstest.SelfSigned(t, mtlstest.Leaf{CommonName: "pinned"})
	s.registry.change(func(r *registry) {
		grants := r.clients["own"].Grants
		r.clients["foreign"] = Client{ID: "foreign", AuthMethod: TLSClientAuth, Anchors: s.partner.Anchors(t), Subject: subject, Grants: grants}
		r.clients["pinned"] = Client{
			ID: "pinned", AuthMethod: SelfSignedTLSClientAuth, Grants: grants, Certificates: new(set).publish(pinned),
		}
	})
	for id, cert := range map[string]*mtls.Peer{
		"own": mtlstest.PeerOf(own), "foreign": mtlstest.PeerOf(foreign), "pinned": mtlstest.PeerOf(pinned),
	} {
		if _, err := s.Authenticate(t.Context(), id, cert); err != nil {
			t.Fatalf("%s: %v", id, err)
		}
		blocked[sha256.Sum256(cert.Certificate().RawSubjectPublicKeyInfo)] = true
		_, err := s.Authenticate(t.Context(), id, cert)
		if refused, ok := errors.AsType[*tokens.Error](err); !ok || refused.Code != tokens.CodeInvalidClient || refused.Reason != "key_blocked" {
			t.Errorf("%s with a compromised key: %v", id, err)
		}
	}
	// While nobody knows, nobody is authenticated, and nobody is told that their certificate is bad.
	unknown = errors.New("gone")
	_, err = s.Authenticate(t.Context(), "own", mtlstest.PeerOf(own))
	if refused, ok := errors.AsType[*tokens.Error](err); !ok || refused.Code != tokens.CodeTemporarilyUnavailable || !errors.Is(err, unknown) {
		t.Errorf("while it is not known which keys are compromised: %v", err)
	}
	unknown = nil
	// Without a certificate there is no key to ask about.
	if _, err := s.Authenticate(t.Context(), "own", nil); err == nil {
		t.Error("authenticated without a certificate")
	}
}
