// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package mtls

import (
	"crypto/x509"
	"encoding/binary"
	"math/bits"
	"slices"
)

const (
	// provenPerBucket is how many certificates share a bucket when as many are remembered as were asked for; the share of
	// buckets that would hold more than mostPerBucket is then one in a hundred.
	provenPerBucket = 16
	mostPerBucket   = 20
	// bucketStep is by how many a bucket grows.
	bucketStep = 4
	// maxIssuers is how many different chains behind the client's certificate are told apart.
	maxIssuers = 255
)

// proven remembers of many certificates that a chain was built for them, each in 33 bytes without a pointer: the whole
// digest of the certificate, and which of the few lists of issuers stands behind it. It grows as certificates come, up to
// a bound, and forgets one at random where a new one finds no place. The caller locks.
type proven struct {
	buckets [][]provenLeaf // by the first bits of the key; a power of two of them
	issuers [][]*x509.Certificate
}

type provenLeaf struct {
	key     chainKey
	issuers uint8 // place in proven.issuers
}

// newProven returns an empty memory for about n certificates, nil when n is not positive.
func newProven(n int) *proven {
	if n <= 0 {
		return nil
	}
	return &proven{buckets: make([][]provenLeaf, 1<<bits.Len(uint((n-1)/provenPerBucket)))}
}

// bucket returns where a key belongs. Keys are digests, which nobody can choose.
func (p *proven) bucket(key *chainKey) *[]provenLeaf {
	return &p.buckets[int(binary.BigEndian.Uint32(key[:]))&(len(p.buckets)-1)]
}

// get returns the issuers behind a certificate, nil when it is not remembered.
func (p *proven) get(key *chainKey) []*x509.Certificate {
	leaves := *p.bucket(key)
	for i := range leaves {
		if leaves[i].key == *key {
			return p.issuers[leaves[i].issuers]
		}
	}
	return nil
}

// put remembers a certificate, or reports that it cannot.
func (p *proven) put(key *chainKey, issuers []*x509.Certificate) bool {
	place := slices.IndexFunc(p.issuers, func(known []*x509.Certificate) bool { return slices.Equal(known, issuers) })
	if place < 0 {
		if len(p.issuers) == maxIssuers {
			return false
		}
		place = len(p.issuers)
		p.issuers = append(p.issuers, slices.Clone(issuers))
	}
	bucket, leaf := p.bucket(key), provenLeaf{*key, uint8(place)}
	leaves := *bucket
	for i := range leaves {
		if leaves[i].key == *key {
			leaves[i] = leaf
			return true
		}
	}
	switch {
	case len(leaves) == mostPerBucket:
		leaves[int(key[len(key)-1])%mostPerBucket] = leaf
		return true
	case len(leaves) == cap(leaves):
		leaves = append(make([]provenLeaf, 0, len(leaves)+bucketStep), leaves...)
	}
	*bucket = append(leaves, leaf)
	return true
}
