// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/pki"
	"github.com/certbound/certbound/tokens"
)

// set is the CertificateSet of the tests.
type set struct {
	mu           sync.Mutex
	certificates map[mtls.Thumbprint]bool
	err          error
	asked        int
}

func (s *set) Contains(_ context.Context, t mtls.Thumbprint) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	return s.certificates[t], s.err
}

func (s *set) change(f func(s *set)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s)
}

// publish replaces the certificates, as the document behind a jwks_uri would.
func (s *set) publish(certs ...tls.Certificate) *set {
	s.change(func(s *set) {
		s.certificates = map[mtls.Thumbprint]bool{}
		for _, c := range certs {
			s.certificates[mtls.ThumbprintOf(c.Leaf)] = true
		}
	})
	return s
}

func (s *set) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

// lists is the Revocation of the tests: real revocation lists, one for each authority, none of which may be missing.
type lists struct {
	mu     sync.Mutex
	lists  map[string]*pki.CRL // by the DER of the authority's certificate
	chains [][]*x509.Certificate
}

// publish replaces the list of ca, which goes stale after life.
func (l *lists) publish(tb testing.TB, ca *mtlstest.CA, life time.Duration, revoked ...*x509.Certificate) *lists {
	tb.Helper()
	now := time.Now().Add(-time.Minute)
	var entries []pki.Revoked
	for _, c := range revoked {
		entries = append(entries, pki.Revoked{Serial: c.SerialNumber, At: now})
	}
	der, err := pki.CreateCRL(ca.Certificate(), ca.Key(), big.NewInt(now.UnixNano()), now, now.Add(life), entries)
	if err != nil {
		tb.Fatal(err)
	}
	list, err := pki.ParseCRL(der)
	if err != nil {
		tb.Fatal(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lists == nil {
		l.lists = map[string]*pki.CRL{}
	}
	l.lists[string(ca.Certificate().Raw)] = list
	return l
}

func (l *lists) Check(chain []*x509.Certificate, now time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.chains = append(l.chains, chain)
	for i, cert := range chain[:len(chain)-1] {
		list, ok := l.lists[string(chain[i+1].Raw)]
		if !ok {
			return errors.New("no revocation list")
		}
		if err := list.Check(chain[i+1], now); err != nil {
			return err
		}
		if _, revoked, err := list.Revoked(cert); revoked || err != nil {
			return errors.Join(ErrRevoked, err)
		}
	}
	return nil
}

// withdraw takes every list away.
func (l *lists) withdraw() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lists = nil
}

func (l *lists) seen() [][]*x509.Certificate {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.chains)
}

// dnsName is what a client of a foreign authority is known by.
func dnsName(id string) string { return id + ".partner.example" }

func subjectOf(tb testing.TB, kind mtls.SubjectKind, value string) mtls.Subject {
	tb.Helper()
	subject, err := mtls.ParseSubject(kind, value)
	if err != nil {
		tb.Fatal(err)
	}
	return subject
}

// register adds a client of the resource ledger.
func (s *service) register(c Client) {
	c.Generation, c.Grants = 1, []Grant{{Resource: ledger, Scopes: []string{"read", "write"}}}
	s.registry.change(func(r *registry) { r.clients[c.ID] = c })
}

// enrolForeign registers a client that ca vouches for by a DNS name and returns its certificate. The lists of ca are
// fresh and empty.
func (s *service) enrolForeign(tb testing.TB, id string, ca *mtlstest.CA) tls.Certificate {
	tb.Helper()
	s.register(Client{
		ID: id, AuthMethod: TLSClientAuth, Subject: subjectOf(tb, mtls.SANDNS, dnsName(id)), Anchors: ca.Anchors(tb),
		Revocation: new(lists).publish(tb, ca, time.Hour),
	})
	return ca.Issue(tb, mtlstest.Leaf{CommonName: id, DNSNames: []string{dnsName(id)}})
}

// enrolSelfSigned registers a client by its own certificate and returns that.
func (s *service) enrolSelfSigned(tb testing.TB, id string, edit ...func(*mtlstest.Leaf)) tls.Certificate {
	tb.Helper()
	leaf := mtlstest.Leaf{CommonName: id, DNSNames: []string{dnsName(id)}}
	for _, e := range edit {
		e(&leaf)
	}
	cert := mtlstest.SelfSigned(tb, leaf)
	s.register(Client{ID: id, AuthMethod: SelfSignedTLSClientAuth, Certificates: new(set).publish(cert)})
	return cert
}

func (s *service) lists(id string) *lists {
	c, _ := s.registry.Client(context.Background(), id)
	return c.Revocation.(*lists)
}

func (s *service) set(id string) *set {
	c, _ := s.registry.Client(context.Background(), id)
	return c.Certificates.(*set)
}

// kinds are the ways in which a client can be registered.
var kinds = []struct {
	name  string
	enrol func(tb testing.TB, s *service, id string, ca *mtlstest.CA) tls.Certificate
}{
	{"our own CA", func(tb testing.TB, s *service, id string, _ *mtlstest.CA) tls.Certificate { return s.enrol(tb, id) }},
	{"foreign CA", func(tb testing.TB, s *service, id string, ca *mtlstest.CA) tls.Certificate {
		return s.enrolForeign(tb, id, ca)
	}},
	{"self-signed", func(tb testing.TB, s *service, id string, _ *mtlstest.CA) tls.Certificate {
		return s.enrolSelfSigned(tb, id)
	}},
}

// wantReason fails the test unless the last decision was refused for this reason, or granted when it is empty.
func (s *service) wantReason(tb testing.TB, reason string) {
	tb.Helper()
	s.journal.mu.Lock()
	defer s.journal.mu.Unlock()
	if len(s.journal.decisions) == 0 {
		tb.Fatal("nothing was recorded")
	}
	if d := s.journal.decisions[len(s.journal.decisions)-1]; d.Reason != reason || d.Granted != (reason == "") {
		tb.Errorf("granted %v, reason %q, want %q", d.Granted, d.Reason, reason)
	}
}

// wantRefused posts for the client and demands invalid_client for this reason.
func (s *service) wantRefused(tb testing.TB, cert tls.Certificate, id, reason string) {
	tb.Helper()
	s.post(tb, &cert, ask(id)).want(tb, 401, tokens.CodeInvalidClient)
	s.wantReason(tb, reason)
}

// wantServed posts for the client and demands a token of its own, bound to the certificate.
func (s *service) wantServed(tb testing.TB, cert tls.Certificate, id string) {
	tb.Helper()
	wantBound(tb, s.post(tb, &cert, ask(id)), cert, id)
}

func wantBound(tb testing.TB, a answer, cert tls.Certificate, id string) {
	tb.Helper()
	claims := a.wantToken(tb)
	cnf, _ := claims["cnf"].(map[string]any)
	if claims["sub"] != id || claims["client_id"] != id || cnf["x5t#S256"] != mtls.ThumbprintOf(cert.Leaf).String() {
		tb.Errorf("the token is for %v, bound to %v; want %s, %s", claims["sub"], cnf, id, mtls.ThumbprintOf(cert.Leaf))
	}
}

// mint returns a certificate that is as much like another as its issuer wants: same serial number, same names, same key
// where key is nil. It has no authority key identifier, so that only names lead to an issuer. Without ca it signs itself.
func mint(tb testing.TB, ca *mtlstest.CA, like tls.Certificate, key crypto.Signer, edit func(*x509.Certificate)) tls.Certificate {
	tb.Helper()
	if key == nil {
		key = like.PrivateKey.(crypto.Signer)
	}
	template := &x509.Certificate{
		SerialNumber: like.Leaf.SerialNumber, RawSubject: like.Leaf.RawSubject,
		NotBefore: like.Leaf.NotBefore, NotAfter: like.Leaf.NotAfter,
		KeyUsage: like.Leaf.KeyUsage, ExtKeyUsage: like.Leaf.ExtKeyUsage, BasicConstraintsValid: true,
		DNSNames: like.Leaf.DNSNames, URIs: like.Leaf.URIs,
	}
	if edit != nil {
		edit(template)
	}
	parent, by := template, key
	if ca != nil {
		copied := *ca.Certificate()
		copied.SubjectKeyId = nil
		parent, by = &copied, ca.Key()
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), by)
	if err != nil {
		tb.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// CA-05: RFC 8705, Section 2.1.2: the names of tls_client_auth mean nothing for a client of another method, and the
// registered certificates of self_signed_tls_client_auth nothing for a client of tls_client_auth.
func TestRFC8705_2_1_2_SubjectOfAnotherMethod(t *testing.T) {
	t.Parallel()
	s := newService(t)
	partner := mtlstest.NewCA(t, "partner")
	vouched := s.enrolForeign(t, "payments", partner)
	own := s.enrolSelfSigned(t, "batch")
	s.wantServed(t, vouched, "payments")
	s.wantServed(t, own, "batch")

	s.registry.changeClient("payments", func(c *Client) { c.AuthMethod = SelfSignedTLSClientAuth })
	s.wantRefused(t, vouched, "payments", "certificate_not_registered")
	const forOneToken = 2 // before its record and after it
	if n := len(s.lists("payments").seen()); n != forOneToken {
		t.Errorf("revocation was judged %d times, want only under the method it belongs to", n)
	}
	s.registry.changeClient("payments", func(c *Client) { c.Certificates = new(set).publish(own) })
	s.wantRefused(t, vouched, "payments", "certificate_not_registered")
	s.wantServed(t, own, "payments") // its subject and anchors are not this certificate's, and have no say

	s.registry.changeClient("batch", func(c *Client) { c.AuthMethod = TLSClientAuth })
	s.wantRefused(t, own, "batch", "certificate_untrusted")
	if n := s.set("batch").count(); n != forOneToken {
		t.Errorf("registered certificates were looked at %d times, want only under the method they belong to", n)
	}
}

// CA-14: RFC 8705, Section 7.4: two authorities of one name are two authorities: each vouches only for the client that is
// tied to it by its bytes, whatever else the two certificates have in common.
func TestRFC8705_7_4_TwoAuthoritiesOfOneName(t *testing.T) {
	t.Parallel()
	s := newService(t)
	first, second := mtlstest.NewCA(t, "partner"), mtlstest.NewCA(t, "partner")
	for _, order := range []struct {
		id              string
		anchor, another *mtlstest.CA
	}{{"payments", first, second}, {"orders", second, first}} {
		good := s.enrolForeign(t, order.id, order.anchor)
		s.registry.changeClient(order.id, func(c *Client) {
			c.Revocation, c.Anchors = nil, hinted(t, order.anchor) // what is presented may help building
		})
		s.wantServed(t, mint(t, order.anchor, good, nil, nil), order.id)
		forged := mint(t, order.another, good, nil, nil)
		s.wantRefused(t, forged, order.id, "certificate_untrusted")
		forged.Certificate = append(forged.Certificate, order.another.Certificate().Raw)
		s.wantRefused(t, forged, order.id, "certificate_untrusted")
		forged.Certificate = append(forged.Certificate, order.anchor.Certificate().Raw)
		s.wantRefused(t, forged, order.id, "certificate_untrusted")
	}
}

// hinted returns anchors of ca alone, for which also counts what a client presents.
func hinted(tb testing.TB, ca *mtlstest.CA) *mtls.Anchors {
	tb.Helper()
	a, err := mtls.NewAnchors(mtls.AnchorsConfig{Roots: []*x509.Certificate{ca.Certificate()}, UsePresented: true})
	if err != nil {
		tb.Fatal(err)
	}
	return a
}

// CA-14: RFC 8705, Section 7.4: an authority with the key of the client's under another name is another one, and one
// that another authority has certified as well vouches only for those that are tied to that other one.
func TestRFC8705_7_4_CrossSignedAuthority(t *testing.T) {
	t.Parallel()
	s := newService(t)
	partner, other := mtlstest.NewCA(t, "partner"), mtlstest.NewCA(t, "other")
	cert := s.enrolForeign(t, "payments", partner)
	authority := tls.Certificate{PrivateKey: partner.Key(), Leaf: partner.Certificate()}
	asCA := func(c *x509.Certificate) {
		c.IsCA, c.KeyUsage, c.ExtKeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign, nil
	}
	renamed := mint(t, nil, authority, nil, func(c *x509.Certificate) {
		asCA(c)
		c.RawSubject, c.Subject = nil, pkix.Name{CommonName: "partner, renamed"}
	})
	crossed := mint(t, other, authority, nil, asCA)
	for _, c := range []struct {
		name, reason string
		config       mtls.AnchorsConfig
	}{
		{"same key, other name", "certificate_untrusted", mtls.AnchorsConfig{
			Roots: []*x509.Certificate{renamed.Leaf}, UsePresented: true}},
		{"cross-signed, nothing presented counts", "certificate_untrusted", mtls.AnchorsConfig{
			Roots: []*x509.Certificate{other.Certificate()}}},
		{"cross-signed by the client's authority", "", mtls.AnchorsConfig{
			Roots: []*x509.Certificate{other.Certificate()}, UsePresented: true}},
		{"its own authority", "", mtls.AnchorsConfig{Roots: []*x509.Certificate{partner.Certificate()}, UsePresented: true}},
	} {
		anchors, err := mtls.NewAnchors(c.config)
		if err != nil {
			t.Fatal(err)
		}
		s.registry.changeClient("payments", func(c *Client) { c.Anchors, c.Revocation = anchors, nil })
		shown := cert
		shown.Certificate = [][]byte{cert.Certificate[0], crossed.Certificate[0]}
		a := s.post(t, &shown, ask("payments"))
		if s.wantReason(t, c.reason); t.Failed() {
			t.Fatalf("%s: %s", c.name, a.body)
		}
	}
}

// CA-16: RFC 8705, Section 2.2: the certificate is the registered one, byte for byte; who issued it, for what and
// whether that one is still trusted has no say.
func TestRFC8705_2_2_RegisteredCertificate(t *testing.T) {
	t.Parallel()
	s := newService(t)
	own := s.enrolSelfSigned(t, "payments", func(l *mtlstest.Leaf) {
		l.IsCA = true // as openssl req -x509 makes them
		l.Usage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	})
	s.wantServed(t, own, "payments")
	if got := s.journal.last(t); !got.Authenticated || got.Thumbprint != mtls.ThumbprintOf(own.Leaf) {
		t.Errorf("recorded %+v", got)
	}

	nobody := mtlstest.NewCA(t, "nobody trusts it")
	issued := nobody.Issue(t, mtlstest.Leaf{CommonName: "payments"})
	s.set("payments").publish(own, issued)
	s.wantServed(t, issued, "payments")

	for name, cert := range map[string]tls.Certificate{
		"same key, other certificate":           mint(t, nil, own, nil, nil),
		"same key and names, of an authority":   mint(t, s.ca, own, nil, nil),
		"same names, other key":                 mint(t, nil, own, mtlstest.NewKey(t), nil),
		"same names, other key, of our own CA":  mint(t, s.ca, own, mtlstest.NewKey(t), nil),
		"same names, other key, of that issuer": mint(t, nobody, issued, mtlstest.NewKey(t), nil),
	} {
		t.Run(name, func(t *testing.T) { s.wantRefused(t, cert, "payments", "certificate_not_registered") })
	}
	behind := mtlstest.SelfSigned(t, mtlstest.Leaf{CommonName: "payments"})
	behind.Certificate = append(behind.Certificate, own.Certificate[0])
	s.wantRefused(t, behind, "payments", "certificate_not_registered")

	s.registry.changeClient("payments", func(c *Client) { c.Certificates = nil })
	s.wantRefused(t, own, "payments", "certificate_not_registered")
}

// CA-17: RFC 8705, Section 2.2: the specification is silent on the dates of a registered certificate; we hold it to
// them, and do not look further.
func TestRFC8705_2_2_RegisteredCertificateExpired(t *testing.T) {
	t.Parallel()
	s := newService(t)
	for reason, edit := range map[string]func(*mtlstest.Leaf){
		"certificate_expired":       func(l *mtlstest.Leaf) { l.NotAfter = time.Now().Add(-time.Second) },
		"certificate_not_yet_valid": func(l *mtlstest.Leaf) { l.NotBefore = time.Now().Add(time.Minute) },
	} {
		cert := s.enrolSelfSigned(t, "payments", edit)
		s.wantRefused(t, cert, "payments", reason)
		if n := s.set("payments").count(); n != 0 {
			t.Errorf("%s: the set was asked %d times: a stranger could make us fetch", reason, n)
		}
	}
	cert := s.enrolSelfSigned(t, "payments")
	s.wantServed(t, cert, "payments")
	s.advance(2 * time.Hour)
	s.wantRefused(t, cert, "payments", "certificate_expired")
}

// The key of a registered certificate is held to the limits also where no handshake did it.
func TestRegisteredKeyIsHeldToLimits(t *testing.T) {
	t.Parallel()
	s := newService(t)
	key, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := s.enrolSelfSigned(t, "payments", func(l *mtlstest.Leaf) { l.Key = key })
	_, err = s.Authenticate(t.Context(), "payments", mtlstest.PeerOf(cert))
	wantError(t, err, tokens.CodeInvalidClient, "key_unacceptable")
}

// CA-20: RFC 8705, Section 2.2: what is registered now counts: the next certificate from the moment it is published,
// both while they overlap, and the one before no longer once it is gone.
func TestRFC8705_2_2_RegisteredCertificateRotation(t *testing.T) {
	t.Parallel()
	s := newService(t)
	old := s.enrolSelfSigned(t, "payments")
	next := mtlstest.SelfSigned(t, mtlstest.Leaf{CommonName: "payments"})
	s.wantServed(t, old, "payments")
	s.wantRefused(t, next, "payments", "certificate_not_registered")
	s.set("payments").publish(old, next)
	s.wantServed(t, old, "payments")
	s.wantServed(t, next, "payments")
	s.set("payments").publish(next)
	s.wantRefused(t, old, "payments", "certificate_not_registered")
	s.wantServed(t, next, "payments")

	// Nothing is refused for good because the set cannot be read, and nothing is granted.
	s.set("payments").change(func(s *set) { s.err = errDown })
	for _, cert := range []tls.Certificate{old, next} {
		s.post(t, &cert, ask("payments")).want(t, 503, tokens.CodeTemporarilyUnavailable)
		s.wantReason(t, "certificates_unavailable")
	}
	s.set("payments").change(func(s *set) { s.err = nil })
	s.wantServed(t, next, "payments")
}

// CA-24: RFC 8705, Section 2.2: the certificate of one client is not that of another. Should two have registered the same
// one, the token is the one's that was asked for and never a mixture.
func TestRFC8705_2_2_CertificateOfAnotherClient(t *testing.T) {
	t.Parallel()
	s := newService(t)
	one, two := s.enrolSelfSigned(t, "one"), s.enrolSelfSigned(t, "two")
	s.wantRefused(t, one, "two", "certificate_not_registered")
	s.wantRefused(t, two, "one", "certificate_not_registered")
	s.set("two").publish(one)
	s.grant("two", Grant{Resource: reports, Scopes: []string{"list"}})
	s.wantServed(t, one, "one")
	s.wantServed(t, one, "two")
	s.post(t, &one, ask("two", "scope", "read")).want(t, 400, tokens.CodeInvalidScope)
	s.post(t, &one, ask("one", "resource", reports)).want(t, 400, tokens.CodeInvalidTarget)
	s.wantRefused(t, two, "two", "certificate_not_registered")
}

// XP-11: RFC 5280, Section 6.3: what the foreign authority has revoked authenticates nobody, whether it is the
// certificate or one above it, and neither does a certificate of which that cannot be known.
func TestRFC5280_6_3_RevokedByForeignAuthority(t *testing.T) {
	t.Parallel()
	s := newService(t)
	root := mtlstest.NewCA(t, "partner")
	issuing := root.Intermediate(t, "partner, issuing")
	cert := s.enrolForeign(t, "payments", issuing)
	sibling := issuing.Issue(t, mtlstest.Leaf{CommonName: "payments", DNSNames: []string{dnsName("payments")}})
	list := s.lists("payments")

	s.wantRefused(t, cert, "payments", "revocation_unknown") // the root's list is missing
	list.publish(t, root, time.Hour)
	s.wantServed(t, cert, "payments")
	want := []mtls.Thumbprint{
		mtls.ThumbprintOf(cert.Leaf), mtls.ThumbprintOf(issuing.Certificate()), mtls.ThumbprintOf(root.Certificate()),
	}
	chains := list.seen()
	var got []mtls.Thumbprint
	for _, c := range chains[len(chains)-1] {
		got = append(got, mtls.ThumbprintOf(c))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("chain judged (-want +got):\n%s", diff)
	}

	list.publish(t, issuing, time.Hour, cert.Leaf)
	s.wantRefused(t, cert, "payments", "certificate_revoked")
	s.wantServed(t, sibling, "payments")
	unknown, revoked := s.post(t, &cert, ask("nobody")), s.post(t, &cert, ask("payments"))
	if unknown.body != revoked.body {
		t.Errorf("a revoked certificate is told from an unknown client: %s, %s", revoked.body, unknown.body)
	}
	list.publish(t, issuing, time.Hour).publish(t, root, time.Hour, issuing.Certificate())
	s.wantRefused(t, sibling, "payments", "certificate_revoked")

	list.publish(t, root, time.Hour).publish(t, issuing, 20*time.Minute)
	s.wantServed(t, cert, "payments")
	s.advance(30 * time.Minute)
	s.wantRefused(t, cert, "payments", "revocation_unknown") // stale
	list.publish(t, issuing, time.Hour)
	s.wantServed(t, cert, "payments")
	list.withdraw()
	s.wantRefused(t, cert, "payments", "revocation_unknown")
	s.registry.changeClient("payments", func(c *Client) { c.Revocation = nil })
	s.wantServed(t, cert, "payments")
}

// Why a chain is not trusted or its status unknown is for the operator's log, and for nobody else.
func TestCauseIsLogged(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	s := newService(t, func(c *Config) {
		c.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	peer := mtlstest.PeerOf(s.enrolForeign(t, "payments", s.partner))
	s.lists("payments").withdraw()
	refused := func(reason, cause string) {
		log.Reset()
		_, err := s.Authenticate(t.Context(), "payments", peer)
		wantError(t, err, tokens.CodeInvalidClient, reason)
		if !strings.Contains(log.String(), cause) {
			t.Errorf("logged %s, want %q", log.String(), cause)
		}
		w := httptest.NewRecorder()
		WriteError(w, request(t, s.mtlsURL, ""), s.issuer, err)
		if body := w.Body.String(); strings.Contains(body, cause) || strings.Contains(body, reason) {
			t.Errorf("told %s", body)
		}
	}
	refused("revocation_unknown", "no revocation list")
	anchors := s.ca.Anchors(t)
	s.registry.changeClient("payments", func(c *Client) { c.Anchors = anchors })
	refused("certificate_untrusted", "unknown authority")
}

// XP-11: RFC 5280, Section 6.3: revocation is judged of a chain that is trusted, and of nothing that a stranger made up.
func TestRFC5280_6_3_RevocationAfterTrust(t *testing.T) {
	t.Parallel()
	s := newService(t)
	cert := s.enrolForeign(t, "payments", mtlstest.NewCA(t, "partner"))
	s.wantRefused(t, mint(t, mtlstest.NewCA(t, "partner"), cert, nil, nil), "payments", "certificate_untrusted")
	s.wantRefused(t, mint(t, nil, cert, nil, nil), "payments", "certificate_untrusted")
	if got := s.lists("payments").seen(); len(got) != 0 {
		t.Errorf("%d chains judged for revocation that lead to nobody", len(got))
	}
}

// CB-01: RFC 8705, Section 3.1: whatever follows the first certificate of a chain, genuine or forged, is nobody's
// identity; and a certificate whose key the caller does not hold gets no connection.
func TestRFC8705_3_1_SecondCertificateIsNobody(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			ca := mtlstest.NewCA(t, "partner")
			mine, victim := kind.enrol(t, s, "mine", ca), kind.enrol(t, s, "victim", ca)
			s.registry.changeClient("mine", func(c *Client) { c.Revocation = nil })
			forged := mint(t, nil, victim, mtlstest.NewKey(t), nil)
			for _, behind := range []tls.Certificate{victim, forged} {
				shown := mine
				shown.Certificate = [][]byte{mine.Certificate[0], behind.Certificate[0]}
				s.wantServed(t, shown, "mine")
				a := s.post(t, &shown, ask("victim"))
				a.want(t, 401, tokens.CodeInvalidClient)

				shown.Certificate = [][]byte{behind.Certificate[0], mine.Certificate[0]}
				shown.Leaf = behind.Leaf
				s.wantNoConnection(t, shown)
			}
			shown := forged
			shown.Certificate = [][]byte{forged.Certificate[0], victim.Certificate[0]}
			a := s.post(t, &shown, ask("victim"))
			a.want(t, 401, tokens.CodeInvalidClient)
		})
	}
}

// wantNoConnection demands that no request gets through with a certificate whose key is another one.
func (s *service) wantNoConnection(tb testing.TB, cert tls.Certificate) {
	tb.Helper()
	before := s.journal.count()
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		cfg := &tls.Config{
			RootCAs: s.ca.Pool(), MinVersion: version, MaxVersion: version,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil },
		}
		transport := &http.Transport{TLSClientConfig: cfg}
		res, err := (&http.Client{Transport: transport}).Do(request(tb, s.mtlsURL+TokenPath, ask("victim")))
		if err == nil {
			body, _ := io.ReadAll(res.Body)
			_ = res.Body.Close()
			tb.Errorf("TLS %x: %s %s, want a broken handshake", version, res.Status, body)
		}
		transport.CloseIdleConnections()
	}
	if n := s.journal.count(); n != before {
		tb.Errorf("%d requests were decided", n-before)
	}
}

// lookalikes have most in common with a client's certificate, each all but one thing.
var lookalikes = []struct {
	name string
	mint func(tb testing.TB, cert tls.Certificate, own, other *mtlstest.CA) tls.Certificate
	// reasons by the name of the kind; a client of a foreign authority is its name, not its certificate.
	reasons map[string]string
}{
	{"same serial number and names, other issuer",
		func(tb testing.TB, cert tls.Certificate, _, other *mtlstest.CA) tls.Certificate {
			return mint(tb, other, cert, nil, nil)
		},
		map[string]string{
			"our own CA": "certificate_unknown", "foreign CA": "certificate_untrusted",
			"self-signed": "certificate_not_registered",
		}},
	{"same key, other names",
		func(tb testing.TB, cert tls.Certificate, own, _ *mtlstest.CA) tls.Certificate {
			return mint(tb, own, cert, nil, func(c *x509.Certificate) {
				c.RawSubject, c.Subject = nil, pkix.Name{CommonName: "other"}
				c.DNSNames, c.URIs = []string{dnsName("other")}, []*url.URL{{Scheme: "spiffe", Host: "other", Path: "/other"}}
			})
		},
		map[string]string{
			"our own CA": "certificate_unknown", "foreign CA": "subject_mismatch",
			"self-signed": "certificate_not_registered",
		}},
	{"same names, other key",
		func(tb testing.TB, cert tls.Certificate, own, _ *mtlstest.CA) tls.Certificate {
			return mint(tb, own, cert, mtlstest.NewKey(tb), nil)
		},
		map[string]string{
			"our own CA": "certificate_unknown", "foreign CA": "", "self-signed": "certificate_not_registered",
		}},
	{"sibling: same names and key, other serial number",
		func(tb testing.TB, cert tls.Certificate, own, _ *mtlstest.CA) tls.Certificate {
			return mint(tb, own, cert, nil, func(c *x509.Certificate) {
				c.SerialNumber = new(big.Int).Add(c.SerialNumber, big.NewInt(1))
			})
		},
		map[string]string{
			"our own CA": "certificate_unknown", "foreign CA": "", "self-signed": "certificate_not_registered",
		}},
	{"same serial number, names and key, self-signed",
		func(tb testing.TB, cert tls.Certificate, _, _ *mtlstest.CA) tls.Certificate {
			return mint(tb, nil, cert, nil, nil)
		},
		map[string]string{
			"our own CA": "certificate_unknown", "foreign CA": "certificate_untrusted",
			"self-signed": "certificate_not_registered",
		}},
}

// CA-16: RFC 8705, Sections 2.1 and 2.2: a certificate is compared whole, and an authority's by chain and
// registered name: never by serial number, key or subject alone.
func TestRFC8705_2_Lookalikes(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		for _, l := range lookalikes {
			t.Run(kind.name+"/"+l.name, func(t *testing.T) {
				t.Parallel()
				s := newService(t)
				own, other := mtlstest.NewCA(t, "partner"), mtlstest.NewCA(t, "partner")
				if kind.name == "our own CA" {
					own, other = s.ca, mtlstest.NewCA(t, "ours")
				}
				cert := kind.enrol(t, s, "payments", own)
				issuer := own
				if kind.name == "self-signed" {
					issuer = nil
				}
				s.wantServed(t, cert, "payments")
				alike := l.mint(t, cert, issuer, other)
				if reason := l.reasons[kind.name]; reason != "" {
					s.wantRefused(t, alike, "payments", reason)
				} else {
					s.wantServed(t, alike, "payments")
				}
			})
		}
	}
}

// Explain decides as Authenticate does, and leaves no trace.
func TestExplain(t *testing.T) {
	t.Parallel()
	for _, c := range changes {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			cert := c.enrolled(t, s)
			peer := mtlstest.PeerOf(cert)
			client, reason := s.Explain(t.Context(), "payments", peer)
			if reason != "" || client == nil || client.ID != "payments" {
				t.Fatalf("explained as %v, %q before the change", client, reason)
			}
			c.change(t, s, cert)
			client, reason = s.Explain(t.Context(), "payments", peer)
			if reason != c.reason || client != nil {
				t.Errorf("explained as %v, %q, want nil, %q", client, reason, c.reason)
			}
			if s.journal.count() != 0 || s.events.refused.Load() != 0 {
				t.Error("an explanation left a trace")
			}
			_, err := s.Authenticate(t.Context(), "payments", peer)
			wantError(t, err, tokens.CodeInvalidClient, c.reason)
		})
	}
	s := newService(t)
	peer := mtlstest.PeerOf(s.enrolSelfSigned(t, "payments"))
	if client, reason := s.Explain(t.Context(), "payments", nil); client != nil || reason != "no_certificate" {
		t.Errorf("without a certificate: %v, %q", client, reason)
	}
	s.set("payments").change(func(s *set) { s.err = errDown })
	if client, reason := s.Explain(t.Context(), "payments", peer); client != nil || reason != "certificates_unavailable" {
		t.Errorf("without its certificates: %v, %q", client, reason)
	}
	s.registry.change(func(r *registry) { r.clientErr = errDown })
	if client, reason := s.Explain(t.Context(), "payments", peer); client != nil || reason != "registry_failed" {
		t.Errorf("without the registry: %v, %q", client, reason)
	}
}

// Strangers cannot fill the log with failures of ours, whatever is down: each kind is an error once in a while. What a
// client meets after it was authenticated always is one.
func TestStrangersDoNotFillTheLog(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	now := time.Now()
	s := newService(t, func(c *Config) {
		c.Logger = slog.New(slog.NewTextHandler(&log, nil))
		c.Now = func() time.Time { return now }
	})
	mine := mtlstest.PeerOf(s.enrolSelfSigned(t, "payments"))
	errorsOf := func(times int) int {
		log.Reset()
		for range times {
			if _, err := s.Issue(t.Context(), Request{GrantType: ClientCredentials, ClientID: "payments", Peer: mine}); err == nil {
				t.Error("not refused")
			}
		}
		return strings.Count(log.String(), "level=ERROR")
	}
	want := func(what string, times, lines int) {
		t.Helper()
		if n := errorsOf(times); n != lines {
			t.Errorf("%s: %d lines, want %d: %s", what, n, lines, log.String())
		}
	}
	s.set("payments").change(func(s *set) { s.err = errDown })
	want("the set is down", 20, 1)
	now = now.Add(59 * time.Second)
	want("still", 20, 0)
	now = now.Add(time.Second)
	want("a minute later", 20, 1)
	s.journal.fail(errDown)
	want("the journal too", 20, 1)
	now = now.Add(-10 * time.Second)
	want("after the clock was set back", 20, 2)
	s.registry.change(func(r *registry) { r.clientErr = errDown })
	want("something else", 20, 1)
	s.registry.change(func(r *registry) { r.clientErr = nil })
	s.set("payments").change(func(s *set) { s.err = nil })
	want("authenticated", 3, 3)
}
