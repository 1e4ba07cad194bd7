// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package mtls

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func provenKey(i int) chainKey {
	return sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(i)))
}

// What is remembered is found by the whole digest, and with the issuers that it was put in with.
func TestProven(t *testing.T) {
	t.Parallel()
	now := time.Now()
	one, _ := issue(t, now)
	two, _ := issue(t, now)
	p := newProven(100)
	issuers := [][]*x509.Certificate{{one}, {two, one}}
	for i := range 40 {
		key := provenKey(i)
		if p.get(&key) != nil || !p.put(&key, issuers[i%2]) || !p.put(&key, issuers[i%2]) {
			t.Fatalf("key %d was there, or could not be remembered", i)
		}
	}
	for i := range 40 {
		key := provenKey(i)
		if got := p.get(&key); !slices.Equal(got, issuers[i%2]) {
			t.Errorf("key %d: %d issuers, want %d", i, len(got), len(issuers[i%2]))
		}
		for at := range key {
			other := key
			other[at] ^= 1
			if p.get(&other) != nil {
				t.Errorf("a key that differs from key %d at %d is found", i, at)
			}
		}
	}
	if len(p.issuers) != 2 {
		t.Errorf("%d lists of issuers, want 2", len(p.issuers))
	}
	kept := 0
	for _, leaves := range p.buckets {
		kept += len(leaves)
	}
	if kept != 40 {
		t.Errorf("%d are remembered, want 40", kept)
	}
	key := provenKey(0)
	if !p.put(&key, issuers[1]) || !slices.Equal(p.get(&key), issuers[1]) {
		t.Error("a later chain does not take the place of the former")
	}
}

// However many come, the memory stays within its bound, and for as many as were asked for there is room.
func TestProvenIsBounded(t *testing.T) {
	t.Parallel()
	const n = 1 << 14
	p := newProven(n)
	issuers := []*x509.Certificate{{}}
	if len(p.buckets) != n/provenPerBucket {
		t.Fatalf("%d buckets", len(p.buckets))
	}
	for i := range 8 * n {
		key := provenKey(i)
		p.put(&key, issuers)
		if p.get(&key) == nil {
			t.Fatal("what came last is not remembered")
		}
		if i != n-1 {
			continue
		}
		found := 0
		for j := range n {
			if key := provenKey(j); p.get(&key) != nil {
				found++
			}
		}
		if found < n*97/100 {
			t.Errorf("of %d, %d are remembered", n, found)
		}
	}
	for _, leaves := range p.buckets {
		if cap(leaves) > mostPerBucket {
			t.Fatalf("a bucket has room for %d", cap(leaves))
		}
	}
	for i := range 2 * maxIssuers {
		key := provenKey(i)
		if got, want := p.put(&key, []*x509.Certificate{{}}), i < maxIssuers-1; got != want {
			t.Errorf("list of issuers %d: kept %t, want %t", i, got, want)
		}
	}
}

// A chain with a presented certificate in it is none of those that are remembered in short, and who presents
// certificates cannot fill that memory.
func TestRememberOursOnly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		authority, leaf := issue(t, now)
		if _, err := NewAnchors(AnchorsConfig{Roots: []*x509.Certificate{authority}, UsePresented: true, Remember: 1}); err == nil {
			t.Error("certificates are remembered where presented ones are used")
		}
		a := anchored(t, AnchorsConfig{Roots: []*x509.Certificate{authority}, Remember: 10})
		for i := range 2 {
			if err, remembered := verify(a, connect(t, leaf), now); err != nil || remembered != (i == 1) {
				t.Errorf("connection %d: %v, remembered %t", i, err, remembered)
			}
		}
		if a.chains.order.Len() != 0 {
			t.Error("the chain is kept twice")
		}
		stranger, _ := issue(t, now)
		key := provenKey(1)
		a.chains.put(key, []*x509.Certificate{leaf, stranger, authority})
		if a.chains.proven.get(&key) != nil || len(a.chains.get(key, leaf)) != 3 {
			t.Error("a chain with a certificate that is not of the anchors is remembered in short")
		}
		a.chains.put(key, []*x509.Certificate{leaf, authority})
		if len(a.chains.get(key, leaf)) != 2 {
			t.Error("a later chain does not take the place of the former")
		}
		// What finds no place there is kept with the others.
		a.chains.proven.issuers = make([][]*x509.Certificate, maxIssuers)
		key = provenKey(2)
		a.chains.put(key, []*x509.Certificate{leaf, authority, authority})
		if a.chains.proven.get(&key) != nil || len(a.chains.get(key, leaf)) != 3 {
			t.Error("a chain that finds no place among those in short is not kept")
		}
	})
}
