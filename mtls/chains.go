// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package mtls

import (
	"container/list"
	"crypto/sha256"
	"crypto/x509"
	"slices"
	"sync"
)

const (
	// maxChainBytes bounds what the chains of one Anchors hold in memory: some 30,000 of one's own CA.
	maxChainBytes = 8 << 20
	// chainBytes is what an entry takes beside the certificates that only it holds: key, map, list, slice.
	chainBytes = 256
	// certificateBytes is what a parsed certificate takes beside its DER and the key taken out of it.
	certificateBytes = 4 << 10
)

// chainKey is a digest of everything that a client contributes to its chain, see Anchors.chainKey.
type chainKey [sha256.Size]byte

// chains are the chains that one Anchors value built, so that a client that connects again costs no signature checks.
// It lives and dies with that value: other trust is another value, which starts without any. Only success is kept, and
// never as a judgement: who takes a chain out judges the dates of all its certificates at that moment, and its
// revocation. It is safe for concurrent use.
type chains struct {
	own []*x509.Certificate // held by the Anchors anyway

	mu     sync.Mutex
	proven *proven // those with issuers of own alone; nil: they are kept with the others
	byKey  map[chainKey]*list.Element
	order  list.List // of *keptChain, the one last used first
	bytes  int       // at most maxChainBytes
}

type keptChain struct {
	key     chainKey
	issuers []*x509.Certificate // after the client's own certificate, which is not kept
	bytes   int
}

func newChains(own []*x509.Certificate, remember int) *chains {
	return &chains{own: own, proven: newProven(remember), byKey: make(map[chainKey]*list.Element)}
}

// chainKey stands for the certificate's DER and, where chain building may use them, that of the presented
// intermediates, in their order. It never stands for a pointer: certificates are parsed anew for every connection.
func (a *Anchors) chainKey(p *Peer) chainKey {
	if !a.usePresented {
		return chainKey(p.thumbprint)
	}
	h := sha256.New()
	h.Write(p.thumbprint[:])
	for _, cert := range a.hints(p) {
		print := sha256.Sum256(cert.Raw)
		h.Write(print[:])
	}
	return chainKey(h.Sum(nil))
}

// get returns the chain from leaf to a root, nil when there is none. The caller judges its dates.
func (c *chains) get(key chainKey, leaf *x509.Certificate) []*x509.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	var issuers []*x509.Certificate
	if c.proven != nil {
		issuers = c.proven.get(&key)
	}
	if e, ok := c.byKey[key]; ok && issuers == nil {
		c.order.MoveToFront(e)
		issuers = e.Value.(*keptChain).issuers
	}
	if issuers == nil {
		return nil
	}
	return append(append(make([]*x509.Certificate, 0, len(issuers)+1), leaf), issuers...)
}

// put keeps a chain that was just built, in place of the one that it had, and drops those that were longest unused.
func (c *chains) put(key chainKey, chain []*x509.Certificate) {
	if c.prove(key, chain[1:]) {
		return
	}
	kept := &keptChain{key: key, issuers: slices.Clone(chain[1:]), bytes: chainBytes}
	for _, cert := range kept.issuers {
		if !slices.Contains(c.own, cert) {
			kept.bytes += certificateBytes + 2*len(cert.Raw)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.byKey[key]; ok {
		c.drop(e)
	}
	c.byKey[key] = c.order.PushFront(kept)
	c.bytes += kept.bytes
	for c.bytes > maxChainBytes {
		c.drop(c.order.Back())
	}
}

// prove keeps a chain in the memory for many, if there is one and it is whole without what the client presented.
func (c *chains) prove(key chainKey, issuers []*x509.Certificate) bool {
	if c.proven == nil {
		return false
	}
	for _, cert := range issuers {
		if !slices.Contains(c.own, cert) {
			return false
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.proven.put(&key, issuers)
}

// drop removes an entry; the caller holds mu.
func (c *chains) drop(e *list.Element) {
	kept := c.order.Remove(e).(*keptChain)
	delete(c.byKey, kept.key)
	c.bytes -= kept.bytes
}
