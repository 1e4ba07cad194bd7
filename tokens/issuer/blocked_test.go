// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
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

// keyedSet is a set that knows the keys of its certificates.
type keyedSet struct {
	*set
	keys map[mtls.Thumbprint][sha256.Size]byte
}

func (k keyedSet) KeyHash(t mtls.Thumbprint) (key [sha256.Size]byte, known bool) {
	key, known = k.keys[t]
	return key, known
}

// IN-06: RFC 7662, Section 2.2; RFC 5280, Section 5.3.1: a token that is bound to a certificate which the client still has
// registered is not active any more once its key was reported compromised, as far as the set knows it.
func TestRFC7662_2_2_TokenOfACompromisedKey(t *testing.T) {
	t.Parallel()
	blocked := map[[sha256.Size]byte]bool{}
	var unknown error
	d := newDesk(t, func(c *Config) {
		c.KeyBlocked = func(_ context.Context, key [sha256.Size]byte) (bool, error) {
			if blocked[key] {
				return unknown == nil, unknown
			}
			return false, nil
		}
	})
	cert := d.enrolSelfSigned(t, "pinned")
	token := d.post(t, &cert, ask("pinned")).Token
	key := sha256.Sum256(cert.Leaf.RawSubjectPublicKeyInfo)
	published := keyedSet{d.set("pinned"), map[mtls.Thumbprint][sha256.Size]byte{mtls.ThumbprintOf(cert.Leaf): key}}
	blocked[key] = true
	d.wantActive(t, token) // the set tells no keys, and nothing was denied
	delete(blocked, key)
	d.registry.changeClient("pinned", func(c *Client) { c.Certificates = published })
	d.wantActive(t, token)
	blocked[key] = true
	d.wantInactive(t, "guard", &d.guard, token)
	unknown = errDown
	d.introspect(t, &d.guard, about("guard", token)).want(t, http.StatusServiceUnavailable, tokens.CodeTemporarilyUnavailable)
	d.wantReason(t, "registry_failed")
	delete(blocked, key)
	d.wantActive(t, token)
	delete(published.keys, mtls.ThumbprintOf(cert.Leaf)) // taken back between the two questions
	d.wantInactive(t, "guard", &d.guard, token)
}

// A set that knows its keys is asked for none where none is ever blocked.
func TestKeysOfASetWithoutBlockedKeys(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	cert := d.enrolSelfSigned(t, "pinned")
	token := d.post(t, &cert, ask("pinned")).Token
	d.registry.changeClient("pinned", func(c *Client) { c.Certificates = keyedSet{set: c.Certificates.(*set)} })
	d.wantActive(t, token)
}
