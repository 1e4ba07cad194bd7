// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"crypto/sha256"
	"net/netip"
)

// lru is a map of at most max entries that makes room by forgetting the one that was used longest ago. It is not safe
// for concurrent use.
//
// Its entries are linked by their places and not by pointers, so that the garbage collector need not look at a table whose
// keys and values have none.
type lru[K comparable, V any] struct {
	max     int
	places  map[K]int32
	nodes   []node[K, V] // the first is no entry: its next was used last, its prev longest ago
	free    []int32      // places of what was removed
	evicted func(K, V)   // told of what was forgotten to make room or removed; may be nil
}

type node[K comparable, V any] struct {
	prev, next int32
	key        K
	value      V
}

func newLRU[K comparable, V any](max int) *lru[K, V] {
	return &lru[K, V]{max: max, places: make(map[K]int32), nodes: make([]node[K, V], 1)}
}

func (t *lru[K, V]) len() int { return len(t.places) }

// get returns the value of a key, and counts as its use.
func (t *lru[K, V]) get(key K) (value V, ok bool) {
	i, ok := t.places[key]
	if !ok {
		return value, false
	}
	t.unlink(i)
	t.link(i)
	return t.nodes[i].value, true
}

// put sets the value of a key, and counts as its use.
func (t *lru[K, V]) put(key K, value V) {
	i, ok := t.places[key]
	if ok {
		t.nodes[i].value = value
		t.unlink(i)
		t.link(i)
		return
	}
	if len(t.places) >= t.max {
		t.remove(t.nodes[t.nodes[0].prev].key)
	}
	if last := len(t.free) - 1; last >= 0 {
		i, t.free = t.free[last], t.free[:last]
	} else {
		i, t.nodes = int32(len(t.nodes)), append(t.nodes, node[K, V]{})
	}
	t.nodes[i].key, t.nodes[i].value = key, value
	t.places[key] = i
	t.link(i)
}

func (t *lru[K, V]) remove(key K) {
	i, ok := t.places[key]
	if !ok {
		return
	}
	t.unlink(i)
	gone := t.nodes[i]
	t.nodes[i] = node[K, V]{}
	t.free = append(t.free, i)
	delete(t.places, key)
	if t.evicted != nil {
		t.evicted(gone.key, gone.value)
	}
}

// oldest returns what was used longest ago.
func (t *lru[K, V]) oldest() (key K, value V, ok bool) {
	i := t.nodes[0].prev
	return t.nodes[i].key, t.nodes[i].value, i != 0
}

func (t *lru[K, V]) link(i int32) {
	n := &t.nodes[i]
	n.prev, n.next = 0, t.nodes[0].next
	t.nodes[n.next].prev, t.nodes[0].next = i, i
}

func (t *lru[K, V]) unlink(i int32) {
	n := &t.nodes[i]
	t.nodes[n.prev].next, t.nodes[n.next].prev = n.next, n.prev
}

// Of what is known of many, there are no pointers: see lru.

// clientKey stands for a client's id.
type clientKey [sha256.Size]byte

func clientKeyOf(id string) clientKey { return sha256.Sum256([]byte(id)) }

// address is an IP address, not IPv4 in IPv6 and without a zone, or none.
type address struct {
	bytes [16]byte
	is    bool
}

func packed(a netip.Addr) address {
	if !a.IsValid() {
		return address{}
	}
	return address{bytes: a.As16(), is: true}
}

func (a address) unpacked() netip.Addr {
	if !a.is {
		return netip.Addr{}
	}
	return netip.AddrFrom16(a.bytes).Unmap()
}

// addressOf is what counts as one address: all of IPv4, and of IPv6 the /64, within which a host takes as many as it
// likes.
func addressOf(a netip.Addr) netip.Addr { return truncated(a, 32, 64) }

// networkOf is what counts as one network.
func networkOf(a netip.Addr) netip.Addr { return truncated(a, 24, 56) }

// truncated keeps the first bits of an address, which is not IPv4 in IPv6, and drops a zone.
func truncated(a netip.Addr, bits4, bits6 int) netip.Addr {
	bits := bits6
	if a.Is4() {
		bits = bits4
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Addr{} // no IP address: all such share one entry
	}
	return p.Addr()
}

func contains(prefixes []netip.Prefix, a netip.Addr) bool {
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
