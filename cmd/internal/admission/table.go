// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admission

import "net/netip"

// lru is a map of at most max entries that makes room by forgetting the one that was used longest ago. It is not safe
// for concurrent use.
type lru[K comparable, V any] struct {
	max     int
	nodes   map[K]*node[K, V]
	ring    node[K, V] // ring.next was used last, ring.prev longest ago
	evicted func(K, V) // told of what was forgotten to make room or removed; may be nil
}

type node[K comparable, V any] struct {
	prev, next *node[K, V]
	key        K
	value      V
}

func newLRU[K comparable, V any](max int) *lru[K, V] {
	t := &lru[K, V]{max: max, nodes: make(map[K]*node[K, V])}
	t.ring.prev, t.ring.next = &t.ring, &t.ring
	return t
}

func (t *lru[K, V]) len() int { return len(t.nodes) }

// get returns the value of a key, and counts as its use.
func (t *lru[K, V]) get(key K) (value V, ok bool) {
	n, ok := t.nodes[key]
	if !ok {
		return value, false
	}
	n.unlink()
	t.link(n)
	return n.value, true
}

// put sets the value of a key, and counts as its use.
func (t *lru[K, V]) put(key K, value V) {
	if n, ok := t.nodes[key]; ok {
		n.value = value
		n.unlink()
		t.link(n)
		return
	}
	if len(t.nodes) >= t.max {
		t.remove(t.ring.prev.key)
	}
	n := &node[K, V]{key: key, value: value}
	t.nodes[key] = n
	t.link(n)
}

func (t *lru[K, V]) remove(key K) {
	n, ok := t.nodes[key]
	if !ok {
		return
	}
	n.unlink()
	delete(t.nodes, key)
	if t.evicted != nil {
		t.evicted(n.key, n.value)
	}
}

// oldest returns what was used longest ago.
func (t *lru[K, V]) oldest() (key K, value V, ok bool) {
	n := t.ring.prev
	return n.key, n.value, n != &t.ring
}

func (t *lru[K, V]) link(n *node[K, V]) {
	n.prev, n.next = &t.ring, t.ring.next
	n.prev.next, n.next.prev = n, n
}

func (n *node[K, V]) unlink() {
	n.prev.next, n.next.prev = n.next, n.prev
	n.prev, n.next = nil, nil
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
