// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package mtls

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"testing"
	"testing/synctest"
	"time"
)

// issue returns an authority and a certificate below it, valid around now.
func issue(t *testing.T, now time.Time) (authority, leaf *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	create := func(name string, parent *x509.Certificate) *x509.Certificate {
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
			Subject: pkix.Name{CommonName: name}, BasicConstraintsValid: true, IsCA: parent == nil,
		}
		if parent == nil {
			parent = template
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	authority = create("authority", nil)
	return authority, create("leaf", authority)
}

// Chains are built by a bounded number at once; what is remembered needs no turn.
func TestBuildingIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		authority, leaf := issue(t, now)
		a, err := NewAnchors(AnchorsConfig{Roots: []*x509.Certificate{authority}})
		if err != nil {
			t.Fatal(err)
		}
		_, other := issue(t, now)
		known, unknown := NewPeer(leaf), NewPeer(other)
		if err := known.VerifiedBy(a, now); err != nil {
			t.Fatal(err)
		}
		for range cap(a.building) {
			a.building <- struct{}{}
		}
		if err := known.VerifiedBy(a, now); err != nil {
			t.Errorf("remembered: %v", err)
		}
		done := false
		go func() {
			if err := unknown.VerifiedBy(a, now); !errors.Is(err, ErrUntrusted) {
				t.Error(err)
			}
			done = true
		}()
		synctest.Wait()
		if done {
			t.Error("a chain was built beyond the bound")
		}
		<-a.building
		synctest.Wait()
		if !done {
			t.Error("no chain was built with room for one")
		}
		if len(a.building) != cap(a.building)-1 {
			t.Error("the turn was not given back")
		}
	})
}

// What a Peer remembers is bounded, and only success is in it.
func TestMemoIsBounded(t *testing.T) {
	t.Parallel()
	now := time.Now()
	authority, leaf := issue(t, now)
	other, _ := issue(t, now)
	p := NewPeer(leaf)
	for range 3 * maxMemo {
		for _, root := range []*x509.Certificate{authority, other} {
			a, err := NewAnchors(AnchorsConfig{Roots: []*x509.Certificate{root}})
			if err != nil {
				t.Fatal(err)
			}
			if err := p.VerifiedBy(a, now); (err == nil) != (root == authority) {
				t.Fatal(err)
			}
			if known := p.remembered(a) != nil; known != (root == authority) {
				t.Errorf("remembered: %t", known)
			}
		}
	}
	if len(p.memo) > maxMemo {
		t.Errorf("%d anchors remembered, at most %d allowed", len(p.memo), maxMemo)
	}
}
