// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package mtls_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"sync"
	"testing"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
)

func anchors(tb testing.TB, c mtls.AnchorsConfig) *mtls.Anchors {
	tb.Helper()
	a, err := mtls.NewAnchors(c)
	if err != nil {
		tb.Fatal(err)
	}
	return a
}

func wantErr(tb testing.TB, got, want error) {
	tb.Helper()
	if !errors.Is(got, want) || (want == nil && got != nil) {
		tb.Errorf("error = %v, want %v", got, want)
	}
}

// peer returns the peer that presents leaf and then others.
func peer(leaf tls.Certificate, others ...*x509.Certificate) *mtls.Peer {
	return mtls.NewPeer(leaf.Leaf, others...)
}

// TLS-09: RFC 5280, Section 4.1.2.5: the dates are judged at the time given, which is that of the request and not that
// of the handshake.
func TestRFC5280_4_1_2_5_DatesAtTheRequest(t *testing.T) {
	t.Parallel()
	start := time.Now().Truncate(time.Second)
	end := start.Add(time.Hour)
	ca := mtlstest.NewCA(t, "ca")
	trust := ca.Anchors(t)
	p := mtlstest.PeerOf(ca.Issue(t, mtlstest.Leaf{NotBefore: start, NotAfter: end}))
	for _, tc := range []struct {
		now  time.Time
		want error
	}{
		{start.Add(-time.Nanosecond), mtls.ErrNotYetValid},
		{start, nil},
		{end, nil},
		{end.Add(time.Nanosecond), mtls.ErrExpired},
		{end.Add(24 * time.Hour), mtls.ErrExpired},
		{start, nil}, // nothing of a refusal is remembered
	} {
		wantErr(t, p.CheckValidity(tc.now), tc.want)
		wantErr(t, p.VerifiedBy(trust, tc.now), tc.want)
	}
}

func TestNilPeer(t *testing.T) {
	t.Parallel()
	var p *mtls.Peer
	ca := mtlstest.NewCA(t, "ca")
	wantErr(t, p.CheckValidity(time.Now()), mtls.ErrNoCertificate)
	wantErr(t, p.VerifiedBy(ca.Anchors(t), time.Now()), mtls.ErrNoCertificate)
	if p.Certificate() != nil || p.Intermediates() != nil || !p.Thumbprint().IsZero() {
		t.Error("a nil peer has a certificate")
	}
	if mtls.NewPeer(nil) != nil || mtls.NewPeer(&x509.Certificate{}) != nil {
		t.Error("a peer without a certificate is not nil")
	}
	wantErr(t, mtlstest.PeerOf(ca.Issue(t, mtlstest.Leaf{})).VerifiedBy(nil, time.Now()), mtls.ErrUntrusted)
}

// CA-14: RFC 8705, Section 7.4: a certificate counts only under the anchors it is judged by, whatever other authority
// is known.
func TestRFC8705_7_4_OtherAuthority(t *testing.T) {
	t.Parallel()
	one, two := mtlstest.NewCA(t, "one"), mtlstest.NewCA(t, "two")
	leaf := mtlstest.Leaf{DNSNames: []string{"a.example"}}
	p := mtlstest.PeerOf(two.Issue(t, leaf))
	wantErr(t, p.VerifiedBy(two.Anchors(t), time.Now()), nil)
	wantErr(t, p.VerifiedBy(one.Anchors(t), time.Now()), mtls.ErrUntrusted)
	wantErr(t, mtlstest.PeerOf(mtlstest.SelfSigned(t, leaf)).VerifiedBy(one.Anchors(t), time.Now()), mtls.ErrUntrusted)
}

// CA-15: RFC 5280, Section 4.2.1.12: extended key usage, where given, must allow clientAuth; without the extension, or
// with anyExtendedKeyUsage, a certificate is not limited.
func TestRFC5280_4_2_1_12_ClientAuth(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "ca")
	for name, tc := range map[string]struct {
		usage []x509.ExtKeyUsage
		want  error
	}{
		"client":            {[]x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, nil},
		"client and server": {[]x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, nil},
		"none":              {[]x509.ExtKeyUsage{}, nil},
		"any":               {[]x509.ExtKeyUsage{x509.ExtKeyUsageAny}, nil},
		"server":            {[]x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, mtls.ErrUntrusted},
		"mail":              {[]x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection}, mtls.ErrUntrusted},
	} {
		p := mtlstest.PeerOf(ca.Issue(t, mtlstest.Leaf{Usage: tc.usage}))
		if err := p.VerifiedBy(ca.Anchors(t), time.Now()); !errors.Is(err, tc.want) {
			t.Errorf("%s: error = %v, want %v", name, err, tc.want)
		}
	}
}

// CA-15: RFC 8446, Section 4.4.2.3: where key usage is given, it must allow digital signatures.
func TestRFC8446_4_4_2_3_DigitalSignature(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "ca")
	p := mtlstest.PeerOf(ca.Issue(t, mtlstest.Leaf{KeyUsage: x509.KeyUsageKeyAgreement}))
	wantErr(t, p.VerifiedBy(ca.Anchors(t), time.Now()), mtls.ErrUntrusted)
}

// forged returns a certificate that parent signs with key, of the given template.
func forged(tb testing.TB, template, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	tb.Helper()
	if template.SerialNumber == nil {
		template.SerialNumber = big.NewInt(time.Now().UnixNano())
	}
	if template.NotAfter.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return cert
}

// XP-02: RFC 5280, Section 6.1.4 (k) and (n): who issues must have cA in basicConstraints, and keyCertSign where key
// usage is given; a client's own certificate cannot vouch for another.
func TestRFC5280_6_1_4_IssuerMustBeCA(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "ca")
	trust := anchors(t, mtls.AnchorsConfig{Roots: []*x509.Certificate{ca.Certificate()}, UsePresented: true})
	key := mtlstest.NewKey(t)
	client := pkix.Name{CommonName: "client"}
	for name, tc := range map[string]struct {
		template x509.Certificate
		want     error
	}{
		"authority": {x509.Certificate{BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign}, nil},
		"leaf": {x509.Certificate{BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, mtls.ErrUntrusted},
		"leaf with keyCertSign": {x509.Certificate{BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, mtls.ErrUntrusted},
		"no basicConstraints":   {x509.Certificate{KeyUsage: x509.KeyUsageCertSign}, mtls.ErrUntrusted},
		"no keyCertSign": {x509.Certificate{BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCRLSign},
			mtls.ErrUntrusted},
		"for servers only": {x509.Certificate{BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, mtls.ErrUntrusted},
		"unknown critical extension": {x509.Certificate{BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
			ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}},
			mtls.ErrUntrusted},
		"expired": {x509.Certificate{BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(-time.Minute)}, mtls.ErrUntrusted},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			template := tc.template
			template.Subject = client
			issuer := forged(t, &template, ca.Certificate(), key.Public(), ca.Key())
			leaf := forged(t, &x509.Certificate{Subject: pkix.Name{CommonName: "victim"}}, issuer, mtlstest.NewKey(t).Public(), key)
			wantErr(t, mtls.NewPeer(leaf, issuer).VerifiedBy(trust, time.Now()), tc.want)
		})
	}
}

// XP-02, XP-15: a version 1 certificate has no basicConstraints, so it is no anchor; nor is one that may not sign, nor a
// client's, nor one with a weak key.
func TestRFC5280_6_1_4_AnchorMustBeCA(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "ca")
	key := mtlstest.NewKey(t)
	weak := &x509.Certificate{BasicConstraintsValid: true, IsCA: true}
	noSign := &x509.Certificate{BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCRLSign}
	for name, cert := range map[string]*x509.Certificate{
		"nil":            nil,
		"not parsed":     {BasicConstraintsValid: true, IsCA: true},
		"version 1":      appendixA(t),
		"leaf":           ca.Issue(t, mtlstest.Leaf{}).Leaf,
		"no keyCertSign": forged(t, noSign, noSign, key.Public(), key),
		"weak key":       forged(t, weak, ca.Certificate(), fakeRSA(t, 1024, 65537), ca.Key()),
	} {
		if _, err := mtls.NewAnchors(mtls.AnchorsConfig{Roots: []*x509.Certificate{cert}}); err == nil {
			t.Errorf("%s is a root", name)
		}
		config := mtls.AnchorsConfig{Roots: []*x509.Certificate{ca.Certificate()}, Intermediates: []*x509.Certificate{cert}}
		if _, err := mtls.NewAnchors(config); err == nil {
			t.Errorf("%s is an intermediate", name)
		}
	}
	if _, err := mtls.NewAnchors(mtls.AnchorsConfig{}); err == nil {
		t.Error("no root was accepted")
	}
}

// CA-15: the certificate of an authority does not authenticate a client, the anchor's own included.
func TestVerifiedByRefusesAuthorities(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "ca")
	wantErr(t, mtls.NewPeer(ca.Certificate()).VerifiedBy(ca.Anchors(t), time.Now()), mtls.ErrUntrusted)
	p := mtlstest.PeerOf(ca.Issue(t, mtlstest.Leaf{IsCA: true}))
	wantErr(t, p.VerifiedBy(ca.Anchors(t), time.Now()), mtls.ErrUntrusted)
}

// XP-08: RFC 5280, Section 6.1: an issuer is found by name and key: of two authorities with the same subject the right
// one vouches, in either order, and the other does not.
func TestRFC5280_6_1_SameNameOtherKey(t *testing.T) {
	t.Parallel()
	one, two := mtlstest.NewCA(t, "ca"), mtlstest.NewCA(t, "ca")
	p := func() *mtls.Peer { return mtlstest.PeerOf(two.Issue(t, mtlstest.Leaf{})) }
	for _, roots := range [][]*x509.Certificate{
		{one.Certificate(), two.Certificate()}, {two.Certificate(), one.Certificate()},
	} {
		wantErr(t, p().VerifiedBy(anchors(t, mtls.AnchorsConfig{Roots: roots}), time.Now()), nil)
	}
	wantErr(t, p().VerifiedBy(one.Anchors(t), time.Now()), mtls.ErrUntrusted)
}

// XP-10: RFC 5280, Section 6.1: what a client sends beside its certificate gives no trust: not its own root, and not
// a root of the same name as ours.
func TestRFC5280_6_1_PresentedRootGivesNoTrust(t *testing.T) {
	t.Parallel()
	ours, theirs := mtlstest.NewCA(t, "ca"), mtlstest.NewCA(t, "ca")
	trust := anchors(t, mtls.AnchorsConfig{Roots: []*x509.Certificate{ours.Certificate()}, UsePresented: true})
	for _, chain := range [][]*x509.Certificate{
		{theirs.Certificate()}, {ours.Certificate()}, {theirs.Certificate(), ours.Certificate()},
	} {
		p := peer(theirs.Issue(t, mtlstest.Leaf{}), chain...)
		wantErr(t, p.VerifiedBy(trust, time.Now()), mtls.ErrUntrusted)
	}
}

// XP-10: presented intermediates are hints where asked for, at most three, and are ignored otherwise.
func TestRFC5280_6_1_PresentedIntermediates(t *testing.T) {
	t.Parallel()
	root := mtlstest.NewCA(t, "root")
	sub := root.Intermediate(t, "sub")
	roots := []*x509.Certificate{root.Certificate()}
	leaf := sub.Issue(t, mtlstest.Leaf{})
	known := mtls.AnchorsConfig{Roots: roots, Intermediates: []*x509.Certificate{sub.Certificate()}}
	wantErr(t, peer(leaf).VerifiedBy(anchors(t, known), time.Now()), nil)
	wantErr(t, peer(leaf, sub.Certificate()).VerifiedBy(anchors(t, mtls.AnchorsConfig{Roots: roots}), time.Now()), mtls.ErrUntrusted)

	hints := anchors(t, mtls.AnchorsConfig{Roots: roots, UsePresented: true})
	other := mtlstest.NewCA(t, "other").Certificate()
	wantErr(t, peer(leaf, sub.Certificate()).VerifiedBy(hints, time.Now()), nil)
	wantErr(t, peer(leaf, other, other, sub.Certificate()).VerifiedBy(hints, time.Now()), nil)
	wantErr(t, peer(leaf, other, other, other, sub.Certificate()).VerifiedBy(hints, time.Now()), mtls.ErrUntrusted)
	wantErr(t, peer(leaf, nil, sub.Certificate()).VerifiedBy(hints, time.Now()), nil)
}

// XP-09: RFC 5280, Section 6.1: path building is bounded: a hint whose key is costly to check is not used, since every candidate may cost a signature check.
func TestRFC5280_6_1_CostlyHints(t *testing.T) {
	t.Parallel()
	root := mtlstest.NewCA(t, "root")
	key, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{BasicConstraintsValid: true, IsCA: true, Subject: pkix.Name{CommonName: "sub"}}
	sub := forged(t, template, root.Certificate(), key.Public(), root.Key())
	leaf := forged(t, &x509.Certificate{}, sub, mtlstest.NewKey(t).Public(), key)
	config := mtls.AnchorsConfig{Roots: []*x509.Certificate{root.Certificate()}, UsePresented: true}
	wantErr(t, mtls.NewPeer(leaf, sub).VerifiedBy(anchors(t, config), time.Now()), mtls.ErrUntrusted)
	config.Intermediates = []*x509.Certificate{sub} // chosen by the operator it is fine
	wantErr(t, mtls.NewPeer(leaf, sub).VerifiedBy(anchors(t, config), time.Now()), nil)
}

// XP-15: RFC 9325, Section 4.5: signatures with SHA-1 and weak keys are refused, wherever the certificate came from.
func TestRFC9325_4_5_WeakSignaturesAndKeys(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "ca")
	sha1 := ca.Issue(t, mtlstest.Leaf{SignatureBy: x509.ECDSAWithSHA1})
	wantErr(t, mtlstest.PeerOf(sha1).VerifiedBy(ca.Anchors(t), time.Now()), mtls.ErrUntrusted)
	for name, pub := range unacceptableKeys(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			leaf := forged(t, &x509.Certificate{}, ca.Certificate(), pub, ca.Key())
			wantErr(t, mtls.NewPeer(leaf).VerifiedBy(ca.Anchors(t), time.Now()), mtls.ErrUntrusted)
		})
	}
}

// Remembered chains are judged by their dates at every call, the issuer's too, and only for the anchors they were
// built for.
func TestVerifiedByJudgesTheChainsDates(t *testing.T) {
	t.Parallel()
	root := mtlstest.NewCA(t, "root")
	key := mtlstest.NewKey(t)
	now := time.Now()
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "sub"}, BasicConstraintsValid: true, IsCA: true,
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Minute),
	}
	sub := forged(t, template, root.Certificate(), key.Public(), root.Key())
	leaf := forged(t, &x509.Certificate{}, sub, mtlstest.NewKey(t).Public(), key)
	config := mtls.AnchorsConfig{Roots: []*x509.Certificate{root.Certificate()}, Intermediates: []*x509.Certificate{sub}}
	trust := anchors(t, config)
	p := mtls.NewPeer(leaf)
	wantErr(t, p.VerifiedBy(trust, now), nil)
	wantErr(t, p.VerifiedBy(trust, now.Add(2*time.Minute)), mtls.ErrUntrusted)
	wantErr(t, p.VerifiedBy(trust, now), nil)
	wantErr(t, p.VerifiedBy(mtlstest.NewCA(t, "root").Anchors(t), now), mtls.ErrUntrusted)

	// With a second way to the root the first one's end does not matter.
	template.NotAfter = now.Add(time.Hour)
	template.SerialNumber = nil
	again := forged(t, template, root.Certificate(), key.Public(), root.Key())
	config.Intermediates = append(config.Intermediates, again)
	trust = anchors(t, config)
	for _, at := range []time.Time{now, now.Add(2 * time.Minute), now} {
		wantErr(t, p.VerifiedBy(trust, at), nil)
	}
}

// XP-03: RFC 5280, Section 6.1.4 (l) and (m): a path length is honoured.
func TestRFC5280_6_1_4_PathLength(t *testing.T) {
	t.Parallel()
	root := mtlstest.NewCA(t, "root")
	key := mtlstest.NewKey(t)
	for length, want := range map[int]error{0: mtls.ErrUntrusted, 1: nil} {
		sub := forged(t, &x509.Certificate{
			Subject: pkix.Name{CommonName: "sub"}, BasicConstraintsValid: true, IsCA: true, MaxPathLen: length, MaxPathLenZero: true,
		}, root.Certificate(), key.Public(), root.Key())
		below := forged(t, &x509.Certificate{
			Subject: pkix.Name{CommonName: "below"}, BasicConstraintsValid: true, IsCA: true,
		}, sub, key.Public(), key)
		leaf := forged(t, &x509.Certificate{}, below, mtlstest.NewKey(t).Public(), key)
		config := mtls.AnchorsConfig{Roots: []*x509.Certificate{root.Certificate()}, UsePresented: true}
		wantErr(t, mtls.NewPeer(leaf, below, sub).VerifiedBy(anchors(t, config), time.Now()), want)
	}
}

// XP-04: RFC 5280, Section 4.2: a certificate with a critical extension that nobody here understands is refused.
func TestRFC5280_4_2_UnknownCriticalExtension(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "ca")
	for critical, want := range map[bool]error{true: mtls.ErrUntrusted, false: nil} {
		p := mtlstest.PeerOf(ca.Issue(t, mtlstest.Leaf{ExtraExtensions: []pkix.Extension{
			{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: critical, Value: []byte{5, 0}}}}))
		wantErr(t, p.VerifiedBy(ca.Anchors(t), time.Now()), want)
	}
}

// XP-06: RFC 5280, Section 4.2.1.12: usages nest: an intermediate for servers only cannot vouch for a client, and one
// that names none may.
func TestRFC5280_4_2_1_12_UsageNests(t *testing.T) {
	t.Parallel()
	root := mtlstest.NewCA(t, "root")
	key := mtlstest.NewKey(t)
	for usage, want := range map[x509.ExtKeyUsage]error{
		x509.ExtKeyUsageServerAuth: mtls.ErrUntrusted, x509.ExtKeyUsageClientAuth: nil, x509.ExtKeyUsageAny: nil,
	} {
		sub := forged(t, &x509.Certificate{
			Subject: pkix.Name{CommonName: "sub"}, BasicConstraintsValid: true, IsCA: true, ExtKeyUsage: []x509.ExtKeyUsage{usage},
		}, root.Certificate(), key.Public(), root.Key())
		leaf := forged(t, &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, sub,
			mtlstest.NewKey(t).Public(), key)
		config := mtls.AnchorsConfig{Roots: []*x509.Certificate{root.Certificate()}, Intermediates: []*x509.Certificate{sub}}
		wantErr(t, mtls.NewPeer(leaf).VerifiedBy(anchors(t, config), time.Now()), want)
	}
}

// What is remembered does not grow without bound and stays right beyond the bound.
func TestVerifiedByManyAnchors(t *testing.T) {
	t.Parallel()
	ca, other := mtlstest.NewCA(t, "ca"), mtlstest.NewCA(t, "other")
	p := mtlstest.PeerOf(ca.Issue(t, mtlstest.Leaf{}))
	var good []*mtls.Anchors
	for range 20 {
		good = append(good, ca.Anchors(t))
	}
	bad := other.Anchors(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for _, a := range good {
				wantErr(t, p.VerifiedBy(a, time.Now()), nil)
				wantErr(t, p.VerifiedBy(bad, time.Now()), mtls.ErrUntrusted)
			}
		})
	}
	wg.Wait()
}

func TestAnchorsEqual(t *testing.T) {
	t.Parallel()
	one, two := mtlstest.NewCA(t, "ca").Certificate(), mtlstest.NewCA(t, "ca").Certificate()
	a := anchors(t, mtls.AnchorsConfig{Roots: []*x509.Certificate{one, two, one}})
	b := anchors(t, mtls.AnchorsConfig{Roots: []*x509.Certificate{two, one}})
	c := anchors(t, mtls.AnchorsConfig{Roots: []*x509.Certificate{one}})
	if !a.Equal(b) || a.Equal(c) || a.Equal(nil) || (*mtls.Anchors)(nil).Equal(a) {
		t.Error("anchors are compared wrongly")
	}
	if got := a.Fingerprints(); len(got) != 2 || (*mtls.Anchors)(nil).Fingerprints() != nil {
		t.Errorf("%d fingerprints, want 2", len(got))
	}
}

// fakeRSA returns a public key with a modulus of that many bits of which nobody knows the factors.
func fakeRSA(tb testing.TB, bits, exponent int) *rsa.PublicKey {
	tb.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), uint(bits-1)))
	if err != nil {
		tb.Fatal(err)
	}
	return &rsa.PublicKey{N: n.SetBit(n.SetBit(n, bits-1, 1), 0, 1), E: exponent}
}

func unacceptableKeys(tb testing.TB) map[string]crypto.PublicKey {
	tb.Helper()
	keys := map[string]crypto.PublicKey{
		"RSA-1024":         fakeRSA(tb, 1024, 65537),
		"RSA-2047":         fakeRSA(tb, 2047, 65537),
		"RSA-4097":         fakeRSA(tb, 4097, 65537),
		"RSA-8192":         fakeRSA(tb, 8192, 65537),
		"RSA exponent 3":   fakeRSA(tb, 2048, 3),
		"RSA even, 2^16+2": fakeRSA(tb, 2048, 65538),
	}
	for name, curve := range map[string]elliptic.Curve{"P-224": elliptic.P224(), "P-521": elliptic.P521()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			tb.Fatal(err)
		}
		keys[name] = key.Public()
	}
	return keys
}

// TLS-13: RFC 9325, Section 4.5: keys that are weak or costly to check are not acceptable.
func TestRFC9325_4_5_PublicKeys(t *testing.T) {
	t.Parallel()
	edwards, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, pub := range map[string]crypto.PublicKey{
		"P-256": mtlstest.NewKey(t).Public(), "P-384": p384.Public(), "Ed25519": edwards,
		"RSA-2048": fakeRSA(t, 2048, 65537), "RSA-4096": fakeRSA(t, 4096, 65537),
	} {
		if err := mtls.CheckPublicKey(pub); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	bad := unacceptableKeys(t)
	bad["nil"] = nil
	bad["Ed25519 short"] = edwards[:31]
	bad["ECDSA nil"] = (*ecdsa.PublicKey)(nil)
	bad["RSA nil"] = (*rsa.PublicKey)(nil)
	bad["RSA empty"] = &rsa.PublicKey{}
	bad["private"] = p384
	for name, pub := range bad {
		if err := mtls.CheckPublicKey(pub); !errors.Is(err, mtls.ErrUnacceptable) {
			t.Errorf("%s: error = %v", name, err)
		}
	}
}

// CA-15: RFC 5280, Section 4.2.1.12: which extended key usages suffice is the anchors' own rule, clientAuth unless
// they say otherwise.
func TestRFC5280_4_2_1_12_UsagesOfTheAnchors(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "usages")
	server := mtlstest.PeerOf(ca.Issue(t, mtlstest.Leaf{CommonName: "ledger", Usage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}))
	if err := server.VerifiedBy(ca.Anchors(t), time.Now()); !errors.Is(err, mtls.ErrUntrusted) {
		t.Errorf("a server's certificate for a client: %v, want ErrUntrusted", err)
	}
	either, err := mtls.NewAnchors(mtls.AnchorsConfig{
		Roots:  []*x509.Certificate{ca.Certificate()},
		Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := server.VerifiedBy(either, time.Now()); err != nil {
		t.Errorf("a server's certificate where one suffices: %v", err)
	}
	if _, err := mtls.NewAnchors(mtls.AnchorsConfig{
		Roots: []*x509.Certificate{ca.Certificate()}, Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}); err == nil {
		t.Error("anchors for any usage were accepted")
	}
	signer := mtlstest.PeerOf(ca.Issue(t, mtlstest.Leaf{CommonName: "code", Usage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}}))
	if err := signer.VerifiedBy(either, time.Now()); !errors.Is(err, mtls.ErrUntrusted) {
		t.Errorf("a code signer's certificate: %v, want ErrUntrusted", err)
	}
}

// RFC 5280, Section 6.1: the chain that is handed out is the one that was verified, leaf to pinned root, the same one
// while it is remembered, and none with an error. What else was presented is not in it.
func TestRFC5280_6_1_ChainTo(t *testing.T) {
	t.Parallel()
	root := mtlstest.NewCA(t, "root")
	sub := root.Intermediate(t, "sub")
	leaf := sub.Issue(t, mtlstest.Leaf{})
	trust := anchors(t, mtls.AnchorsConfig{Roots: []*x509.Certificate{root.Certificate()}, UsePresented: true})
	p := peer(leaf, mtlstest.NewCA(t, "other").Certificate(), sub.Certificate())
	now := time.Now()
	chain, err := p.ChainTo(trust, now)
	if err != nil || len(chain) != 3 || chain[0] != leaf.Leaf || !chain[1].Equal(sub.Certificate()) || !chain[2].Equal(root.Certificate()) {
		t.Fatalf("chain of %d, %v", len(chain), err)
	}
	if again, err := p.ChainTo(trust, now); err != nil || &again[0] != &chain[0] {
		t.Errorf("the chain was built again, %v", err)
	}
	for what, f := range map[string]func() ([]*x509.Certificate, error){
		"no peer":       func() ([]*x509.Certificate, error) { return (*mtls.Peer)(nil).ChainTo(trust, now) },
		"no anchors":    func() ([]*x509.Certificate, error) { return p.ChainTo(nil, now) },
		"other anchors": func() ([]*x509.Certificate, error) { return p.ChainTo(mtlstest.NewCA(t, "root").Anchors(t), now) },
		"expired":       func() ([]*x509.Certificate, error) { return p.ChainTo(trust, now.Add(2*time.Hour)) },
		"not yet valid": func() ([]*x509.Certificate, error) { return p.ChainTo(trust, now.Add(-2*time.Hour)) },
	} {
		if chain, err := f(); err == nil || chain != nil {
			t.Errorf("%s: chain of %d, %v", what, len(chain), err)
		}
	}
}
