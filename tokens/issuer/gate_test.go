// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/tokens"
)

// slowJournal is a Recorder that takes its time to write a grant, and lets something happen meanwhile.
type slowJournal struct {
	*journal
	writing chan struct{} // gets a value when a grant is being written
	written chan struct{} // lets it end
}

func (j *slowJournal) Record(ctx context.Context, d Decision) error {
	if d.Granted {
		j.writing <- struct{}{}
		<-j.written
	}
	return j.journal.Record(ctx, d)
}

// gated is a service with a slow journal and one client that is about to get a token.
type gated struct {
	*service
	slow    *slowJournal
	cert    tls.Certificate
	blocked atomic.Bool // the client's key
}

func newGated(t *testing.T, enrol func(s *service) tls.Certificate) *gated {
	t.Helper()
	g := &gated{slow: &slowJournal{writing: make(chan struct{}), written: make(chan struct{})}}
	g.service = newService(t, func(c *Config) {
		g.slow.journal = c.Recorder.(*journal)
		c.Recorder = g.slow
		c.KeyBlocked = func(_ context.Context, key [sha256.Size]byte) (bool, error) {
			return g.blocked.Load() && key == sha256.Sum256(g.cert.Leaf.RawSubjectPublicKeyInfo), nil
		}
	})
	g.cert = enrol(g.service)
	return g
}

// issue asks for a token, and has a change take place while the grant is being written.
func (g *gated) issue(t *testing.T, change func(g *gated)) (*Response, error) {
	t.Helper()
	var response *Response
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		response, err = g.Issue(t.Context(), Request{GrantType: ClientCredentials, ClientID: "feed", Peer: mtlstest.PeerOf(g.cert)})
	}()
	<-g.slow.writing
	change(g)
	close(g.slow.written)
	<-done
	return response, err
}

// TE-24: RFC 8705, Section 2: whether the certificate is the client's, and what the client may have, is judged again
// when the record of a grant has been written: what was revoked, disabled or taken away while it waited is in force. The
// token is dropped, and the record of the refusal names it.
func TestRFC8705_2_JudgedAgainAfterTheRecord(t *testing.T) {
	t.Parallel()
	own := func(s *service) tls.Certificate { return s.enrol(t, "feed") }
	foreign := func(s *service) tls.Certificate { return s.enrolForeign(t, "feed", s.partner) }
	pinned := func(s *service) tls.Certificate { return s.enrolSelfSigned(t, "feed") }
	client := func(f func(c *Client)) func(g *gated) {
		return func(g *gated) { g.registry.changeClient("feed", f) }
	}
	for name, tc := range map[string]struct {
		enrol  func(s *service) tls.Certificate
		change func(g *gated)
		code   string // empty: the token stands
		reason string
	}{
		"nothing":           {enrol: own, change: func(*gated) {}},
		"nothing, foreign":  {enrol: foreign, change: func(*gated) {}},
		"nothing, pinned":   {enrol: pinned, change: func(*gated) {}},
		"another client":    {enrol: own, change: func(g *gated) { g.service.enrol(t, "another") }},
		"what is not asked": {enrol: own, change: client(func(c *Client) { c.TokenLifetime = time.Minute })},
		"certificate revoked": {own, func(g *gated) {
			g.registry.changeCertificate(g.cert, func(c *Certificate) { c.Revoked = true })
		}, tokens.CodeInvalidClient, "certificate_revoked"},
		"certificate expired": {own, func(g *gated) { g.advance(time.Until(g.cert.Leaf.NotAfter) + time.Minute) },
			tokens.CodeInvalidClient, "certificate_expired"},
		"certificate on a list": {foreign, func(g *gated) {
			g.lists("feed").publish(t, g.partner, time.Hour, g.cert.Leaf)
		}, tokens.CodeInvalidClient, "certificate_revoked"},
		"no list any more": {foreign, func(g *gated) { g.lists("feed").withdraw() },
			tokens.CodeInvalidClient, "revocation_unknown"},
		"other authority": {foreign, client(func(c *Client) { c.Anchors = nil }),
			tokens.CodeInvalidClient, "certificate_untrusted"},
		"certificate withdrawn": {pinned, func(g *gated) { g.set("feed").publish() },
			tokens.CodeInvalidClient, "certificate_not_registered"},
		"key compromised": {own, func(g *gated) { g.blocked.Store(true) }, tokens.CodeInvalidClient, "key_blocked"},
		"client disabled": {own, client(func(c *Client) { c.Disabled = true }), tokens.CodeInvalidClient, "client_disabled"},
		"client removed": {own, func(g *gated) { g.registry.change(func(r *registry) { delete(r.clients, "feed") }) },
			tokens.CodeInvalidClient, "unknown_client"},
		"client registered again": {own, client(func(c *Client) { c.Generation++ }),
			tokens.CodeInvalidClient, "certificate_of_another_generation"},
		"registry down": {own, func(g *gated) { g.registry.change(func(r *registry) { r.clientErr = errDown }) },
			tokens.CodeTemporarilyUnavailable, "registry_failed"},
		"scope taken away": {own, client(func(c *Client) { c.Grants = []Grant{{Resource: ledger, Scopes: []string{"read"}}} }),
			tokens.CodeTemporarilyUnavailable, "grants_changed"},
		"resource changed": {own, client(func(c *Client) { c.Grants = []Grant{{Resource: reports, Scopes: []string{"read", "write"}}} }),
			tokens.CodeTemporarilyUnavailable, "grants_changed"},
		"grants taken away": {own, client(func(c *Client) { c.Grants = nil }), tokens.CodeInvalidTarget, "resource_missing"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGated(t, tc.enrol)
			response, err := g.issue(t, tc.change)
			granted := g.journal.decisions[0]
			if !granted.Granted || granted.TokenID == "" {
				t.Fatalf("the first record is %+v", granted)
			}
			issued, counted := g.events.issued.Load(), g.events.refused.Load()
			if tc.code == "" {
				if err != nil || response == nil || g.journal.count() != 1 || issued != 1 || counted != 0 {
					t.Errorf("%v, %v after %d records; counted as %d issued, %d refused", response, err, g.journal.count(), issued, counted)
				}
				return
			}
			refused, ok := errors.AsType[*tokens.Error](err)
			if response != nil || !ok || refused.Code != tc.code || refused.Reason != tc.reason {
				t.Fatalf("%v, %v, want %s for %s", response, err, tc.code, tc.reason)
			}
			last := g.journal.last(t)
			if g.journal.count() != 2 || last.Granted || last.Reason != tc.reason || last.TokenID != granted.TokenID ||
				last.ClientID != "feed" || !last.Authenticated || !last.Thumbprint.Equal(granted.Thumbprint) {
				t.Errorf("%d records, the last is %+v", g.journal.count(), last)
			}
			if issued != 0 || counted != 1 {
				t.Errorf("counted as %d issued, %d refused", issued, counted)
			}
		})
	}
}
