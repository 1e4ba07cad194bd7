// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package mtls

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// signer is an authority of these tests.
type signer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// issue returns a certificate by s, or one that signed itself when s is nil, of a CA when that is asked for.
func (s *signer) issue(t *testing.T, name string, isCA bool, from, until time.Time) *signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: from, NotAfter: until, Subject: pkix.Name{CommonName: name},
		BasicConstraintsValid: true, IsCA: isCA,
	}
	parent := signer{template, key}
	if s != nil {
		parent = *s
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent.cert, key.Public(), parent.key)
	if err != nil {
		t.Fatal(err)
	}
	return &signer{parsed(t, der), key}
}

// parsed reads DER anew, as each connection does.
func parsed(t *testing.T, der []byte) *x509.Certificate {
	t.Helper()
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// connect returns a peer as a new connection makes it.
func connect(t *testing.T, presented ...*x509.Certificate) *Peer {
	t.Helper()
	again := make([]*x509.Certificate, len(presented))
	for i, cert := range presented {
		again[i] = parsed(t, cert.Raw)
	}
	return NewPeer(again[0], again[1:]...)
}

func anchored(t *testing.T, c AnchorsConfig) *Anchors {
	t.Helper()
	a, err := NewAnchors(c)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// verify reports what ChainTo answers, and whether it did so without building a chain. It runs in a bubble.
func verify(a *Anchors, p *Peer, now time.Time) (err error, remembered bool) {
	for range cap(a.building) {
		a.building <- struct{}{}
	}
	done := make(chan error, 1)
	go func() { done <- p.VerifiedBy(a, now) }()
	synctest.Wait()
	remembered = len(done) == 1
	for range cap(a.building) {
		<-a.building
	}
	return <-done, remembered
}

// CA-30: RFC 5280, Section 6.1.3 (a)(2): a chain that another connection had built spares the signatures and not the
// dates: those of every certificate in it, the root's included, are judged at the time of the request.
func TestRFC5280_6_1_3_DatesOfARememberedChain(t *testing.T) {
	t.Parallel()
	for _, first := range []string{"leaf", "intermediate", "root"} {
		for _, many := range []int{0, 100} {
			t.Run(fmt.Sprintf("%s, remember %d", first, many), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) { testRememberedDates(t, first, many) })
			})
		}
	}
}

// testRememberedDates is for anchors that remember many certificates, or but chains.
func testRememberedDates(t *testing.T, first string, many int) {
	now := time.Now()
	// The one that is named begins later and ends earlier than the two others.
	from := func(name string) (time.Time, time.Time) {
		if name == first {
			return now.Add(-time.Minute), now.Add(time.Minute)
		}
		return now.Add(-time.Hour), now.Add(time.Hour)
	}
	begin, end := from("root")
	root := (*signer)(nil).issue(t, "root", true, begin, end)
	begin, end = from("intermediate")
	intermediate := root.issue(t, "intermediate", true, begin, end)
	begin, end = from("leaf")
	leaf := intermediate.issue(t, "leaf", false, begin, end)
	a := anchored(t, AnchorsConfig{
		Roots: []*x509.Certificate{root.cert}, Intermediates: []*x509.Certificate{intermediate.cert},
		Remember: many,
	})
	for i, tc := range []struct {
		at time.Time
		ok bool
	}{
		{now, true}, {now, true}, {now.Add(time.Minute), true}, {now.Add(-time.Minute), true},
		{now.Add(time.Minute + 1), false}, {now.Add(-time.Minute - 1), false}, {now, true},
	} {
		p := connect(t, leaf.cert)
		err, remembered := verify(a, p, tc.at)
		if (err == nil) != tc.ok {
			t.Errorf("at %v: %v", tc.at.Sub(now), err)
		}
		if tc.ok && remembered != (i > 0) {
			t.Errorf("connection %d: remembered is %t", i, remembered)
		}
		if chain, err := p.ChainTo(a, tc.at); err == nil && (len(chain) != 3 || chain[0] != p.leaf) {
			t.Errorf("the chain has %d certificates, or begins with another connection's", len(chain))
		}
	}
}

// CA-31: RFC 5280, Section 6.1: what was built for one certificate under one set of anchors says nothing of another
// certificate, of other presented intermediates, or of other anchors, and a failure is not remembered at all.
func TestRFC5280_6_1_RememberedForTheSameOnly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		begin, end := now.Add(-time.Hour), now.Add(time.Hour)
		root := (*signer)(nil).issue(t, "root", true, begin, end)
		other := (*signer)(nil).issue(t, "root", true, begin, end)
		one, two := root.issue(t, "one", true, begin, end), other.issue(t, "one", true, begin, end)
		leaf := one.issue(t, "leaf", false, begin, end)
		sameName := two.issue(t, "leaf", false, begin, end)
		a := anchored(t, AnchorsConfig{Roots: []*x509.Certificate{root.cert}, UsePresented: true})
		again := anchored(t, AnchorsConfig{Roots: []*x509.Certificate{root.cert}, UsePresented: true})
		others := anchored(t, AnchorsConfig{Roots: []*x509.Certificate{other.cert}, UsePresented: true})
		for i, tc := range []struct {
			anchors    *Anchors
			presented  []*x509.Certificate
			ok         bool
			remembered bool
		}{
			{a, []*x509.Certificate{leaf.cert}, false, false},
			{a, []*x509.Certificate{leaf.cert, one.cert}, true, false},
			{a, []*x509.Certificate{leaf.cert, one.cert}, true, true},
			{a, []*x509.Certificate{leaf.cert}, false, false},
			{a, []*x509.Certificate{leaf.cert, two.cert}, false, false},
			{a, []*x509.Certificate{leaf.cert, two.cert, one.cert}, true, false},
			{a, []*x509.Certificate{leaf.cert, one.cert, two.cert}, true, false},
			{a, []*x509.Certificate{sameName.cert, one.cert}, false, false},
			{a, []*x509.Certificate{sameName.cert, two.cert}, false, false},
			{again, []*x509.Certificate{leaf.cert, one.cert}, true, false},
			{others, []*x509.Certificate{leaf.cert, one.cert}, false, false},
			{others, []*x509.Certificate{leaf.cert, one.cert}, false, false},
		} {
			err, remembered := verify(tc.anchors, connect(t, tc.presented...), now)
			if (err == nil) != tc.ok || err != nil && !errors.Is(err, ErrUntrusted) || remembered != tc.remembered {
				t.Errorf("connection %d: %v, remembered %t; want %t, %t", i, err, remembered, tc.ok, tc.remembered)
			}
		}
		if len(a.chains.byKey) != 3 || len(others.chains.byKey) != 0 {
			t.Errorf("%d and %d chains are kept", len(a.chains.byKey), len(others.chains.byKey))
		}
	})
}

// Where presented intermediates are not used they make no difference: a client must not make us keep a chain for each
// of its inventions.
func TestUnusedIntermediatesMakeNoOtherChain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		authority, leaf := issue(t, now)
		a := anchored(t, AnchorsConfig{Roots: []*x509.Certificate{authority}})
		for i, p := range []*Peer{connect(t, leaf), connect(t, leaf, authority)} {
			if err, remembered := verify(a, p, now); err != nil || remembered != (i == 1) {
				t.Errorf("connection %d: %v, remembered %t", i, err, remembered)
			}
		}
	})
}

// The memory of chains is bounded in bytes, presented certificates weigh what they hold, and what was not used for the
// longest time goes first.
func TestRememberedChainsAreBounded(t *testing.T) {
	t.Parallel()
	now := time.Now()
	authority, leaf := issue(t, now)
	presented, _ := issue(t, now)
	key := func(i int) (k chainKey) {
		binary.BigEndian.PutUint64(k[:], uint64(i))
		return k
	}
	for name, tc := range map[string]struct {
		chain []*x509.Certificate
		fit   int
	}{
		"ours":      {[]*x509.Certificate{leaf, authority}, maxChainBytes / chainBytes},
		"presented": {[]*x509.Certificate{leaf, presented, authority}, maxChainBytes / (chainBytes + certificateBytes + 2*len(presented.Raw))},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newChains([]*x509.Certificate{authority}, 0)
			for i := range tc.fit + 2 {
				c.put(key(i), tc.chain)
				c.put(key(i), tc.chain) // in place of the first, and weighs once
				if got := c.get(key(0), leaf); !slices.Equal(got, tc.chain) {
					t.Fatalf("what is used all the time is lost after %d", i)
				}
			}
			if len(c.byKey) != tc.fit || c.order.Len() != tc.fit || c.bytes > maxChainBytes {
				t.Errorf("%d chains, %d in order, %d bytes; want %d", len(c.byKey), c.order.Len(), c.bytes, tc.fit)
			}
			for i, want := range []bool{true, false, false, true} {
				if got := c.get(key(i), leaf) != nil; got != want {
					t.Errorf("chain %d is there: %t", i, got)
				}
			}
		})
	}
}

// The name that matched is remembered by its kind and value, and only that one matches without being looked for.
func TestPeerMatches(t *testing.T) {
	t.Parallel()
	now := time.Now()
	_, leaf := issue(t, now)
	subject := func(kind SubjectKind, value string) Subject {
		s, err := ParseSubject(kind, value)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	p := NewPeer(leaf)
	for i, tc := range []struct {
		subject Subject
		want    bool
	}{
		{Subject{}, false},
		{subject(SubjectDN, "CN=authority"), false},
		{subject(SubjectDN, "CN=leaf"), true},
		{subject(SubjectDN, "CN=leaf"), true},
		{subject(SubjectDN, "CN=authority"), false},
		{subject(SANDNS, "CN=leaf"), false},
		{Subject{}, false},
	} {
		if got := p.Matches(tc.subject); got != tc.want {
			t.Errorf("%d: %q matches: %t", i, tc.subject.Value(), got)
		}
		// Whoever remembers looks no more: another certificate's name would be found now.
		if got := (&Peer{leaf: leaf, matched: tc.subject}).Matches(tc.subject); got != !tc.subject.IsZero() {
			t.Errorf("%d: %q is remembered: %t", i, tc.subject.Value(), got)
		}
	}
	if (*Peer)(nil).Matches(subject(SubjectDN, "CN=leaf")) {
		t.Error("a nil peer has a name")
	}
}
