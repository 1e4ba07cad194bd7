// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package resource

// Open returns how many requests are under way.
func (g *Guard) Open() int {
	g.open.mu.Lock()
	defer g.open.mu.Unlock()
	n := 0
	for e := g.open.ring.after; e != &g.open.ring; e = e.after {
		n++
	}
	if n != g.open.count {
		return -1
	}
	return n
}

// LimitOpen sets how many may be.
func (g *Guard) LimitOpen(n int) { g.open.limit = n }
