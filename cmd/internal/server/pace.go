// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"net/http"
	"sync"
	"time"
)

// returnsWithin is how soon after its answer a caller must ask again for the journal to wait for it.
const returnsWithin = time.Millisecond

// pace says how many token requests the journal may expect to record, so that it syncs them together. These are the ones
// being answered, and as many more as have just been answered and did not come back yet: callers that wait for one sync
// together ask again together, and the first of them would otherwise get a sync for itself. How long the journal waits
// for those who do not come is the journal's own bound. It is safe for concurrent use.
type pace struct {
	mu        sync.Mutex
	inFlight  int
	returning int       // answered since, less those that came after
	since     time.Time // when the first of these was answered
}

// begin notes a request.
func (p *pace) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inFlight++
	p.returning = max(p.returning-1, 0)
}

// end notes an answer.
func (p *pace) end() {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inFlight--
	if p.returning == 0 || now.Sub(p.since) >= returnsWithin {
		p.returning, p.since = 0, now
	}
	p.returning++
}

// expected returns how many requests may still be recorded, those that wait for their record included.
func (p *pace) expected() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.returning == 0 || time.Since(p.since) >= returnsWithin {
		return p.inFlight
	}
	return p.inFlight + p.returning
}

// wrap has the requests of a handler counted.
func (p *pace) wrap(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.begin()
		defer p.end()
		h.ServeHTTP(w, r)
	})
}
