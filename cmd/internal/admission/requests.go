// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"context"
	"io"
	"math"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/time/rate"

	"github.com/certbound/certbound/mtls"
)

// Handler serves requests with next as long as they are within the limits, and answers the others with 429 and
// Retry-After (RFC 6585, Section 4). The server must have ConnContext; requests of connections that are not of Listener
// are not judged.
//
// Whether a request authenticated shows only when it has been served: next says so by Authenticated. Every other one is
// taken from the rate of its address, and from that of all. Once these are used up, requests are refused unseen and their
// connection is closed, so that going on costs the caller a handshake. That does not concern connections whose last request
// authenticated, nor certificates that did lately: no limit of an address keeps out a client that shares it with a flood.
func (l *Limiter) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, ok := r.Context().Value(connKey{}).(*conn)
		if !ok {
			next.ServeHTTP(w, r)
			return
		}
		l.begin(c)
		if !c.proven.Load() {
			if wait, kind := l.judge(c, r, time.Now()); wait > 0 {
				l.count(kind)
				tooMany(w, wait, kind != ClientRate)
				return
			}
		} else if wait := overdrawn(c.client.Load()); wait > 0 {
			l.count(ClientRate)
			tooMany(w, wait, false)
			return
		}
		before := c.settled.Load()
		// Counted even when next panics, to cut the connection.
		defer func() {
			if c.settled.Load() == before {
				l.anonymousRequest(c, r, time.Now())
				return
			}
			if client := c.client.Load(); client != nil {
				client.AllowN(time.Now(), 1)
			}
			// Spared, which a stranger may know how to bring about.
			if l.anonymous != nil && !c.proven.Load() && !c.exempt {
				l.anonymous.AllowN(time.Now(), 1)
			}
		}()
		next.ServeHTTP(w, r)
	})
}

// judge says how long a request has to wait, and for which limit, when its connection has not authenticated; 0: it need
// not.
func (l *Limiter) judge(c *conn, r *http.Request, now time.Time) (time.Duration, Kind) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cfg.ClientRate > 0 {
		if known, ok := l.peer(r, now); ok {
			if client, ok := l.clients.get(known.client); ok {
				return untilNext(client, now), ClientRate
			}
		}
	}
	if l.free(c) {
		return 0, 0
	}
	if own, ok := l.requests.get(c.address); ok {
		if wait := untilNext(own, now); wait > 0 {
			return l.unlessKnown(r, now, wait, AnonymousRate)
		}
	}
	if l.anonymous != nil && l.stranger(c.network, now) {
		if wait := untilNext(l.anonymous, now); wait > 0 {
			return l.unlessKnown(r, now, wait, AnonymousTotal)
		}
	}
	return 0, 0
}

func (l *Limiter) unlessKnown(r *http.Request, now time.Time, wait time.Duration, kind Kind) (time.Duration, Kind) {
	if _, ok := l.peer(r, now); ok {
		return 0, 0
	}
	return wait, kind
}

// peer finds the certificate of a request among those that authenticated lately. The caller holds mu. That the other end
// has its key was shown by the handshake.
func (l *Limiter) peer(r *http.Request, now time.Time) (knownPeer, bool) {
	p, err := mtls.PeerFromRequest(r)
	if err != nil {
		return knownPeer{}, false
	}
	known, ok := l.known.get(p.Thumbprint())
	return known, ok && now.Before(known.until)
}

// anonymousRequest takes a request that did not authenticate from the rates.
func (l *Limiter) anonymousRequest(c *conn, r *http.Request, now time.Time) {
	c.proven.Store(false)
	l.mu.Lock()
	defer l.mu.Unlock()
	if p, err := mtls.PeerFromRequest(r); err == nil {
		l.known.remove(p.Thumbprint())
	}
	if l.free(c) {
		return
	}
	if n := l.cfg.AnonymousRate; n > 0 {
		bucket(l.requests, c.address, n, n*savedSeconds).AllowN(now, 1)
	}
	if l.anonymous != nil {
		l.anonymous.AllowN(now, 1)
	}
}

// Authenticated says that the request of ctx was made by this client, as the certificate of its connection proves: it
// counts against no limit of its address, and its network and certificate are known from now on. Whoever serves a request
// under Handler calls it, whatever else becomes of the request.
func (l *Limiter) Authenticated(ctx context.Context, clientID string, certificate mtls.Thumbprint) {
	c, ok := ctx.Value(connKey{}).(*conn)
	if !ok {
		return
	}
	c.settled.Add(1)
	now := time.Now()
	if c.proven.Load() && now.Sub(time.Unix(0, c.noted.Load())) < noteEvery {
		return
	}
	c.noted.Store(now.UnixNano())
	l.note(c, clientID, certificate, now)
	c.proven.Store(true)
}

// Spare says that the request of ctx counts against no limit of its address, though no certificate vouched for it: that it
// was not answered is not the caller's fault, or it proved itself otherwise. It counts against that of all.
func (l *Limiter) Spare(ctx context.Context) {
	if c, ok := ctx.Value(connKey{}).(*conn); ok {
		c.settled.Add(1)
	}
}

// note remembers that a client authenticated.
func (l *Limiter) note(c *conn, clientID string, certificate mtls.Thumbprint, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.networks.put(c.network, now.Add(knownFor))
	l.begun(c)
	if c.stranger && !c.closed {
		l.open.strangers--
		c.stranger = false
	}
	if l.cfg.ClientRate > 0 && clientID != "" {
		c.client.Store(bucket(l.clients, clientID, l.cfg.ClientRate, l.cfg.ClientRate*savedSeconds))
	}
	if certificate.IsZero() {
		return
	}
	if before, ok := l.known.get(certificate); ok {
		l.left(before.address)
	}
	l.known.put(certificate, knownPeer{client: clientID, address: c.address, until: now.Add(knownFor)})
	l.clientsAt[c.address]++
	for range 2 { // as many as may come to be, and one more: so they stay few
		if old, p, ok := l.known.oldest(); ok && !now.Before(p.until) {
			l.known.remove(old)
		}
	}
	l.weigh(c)
}

// left counts a client away from an address. The caller holds mu.
func (l *Limiter) left(address netip.Addr) {
	if l.clientsAt[address]--; l.clientsAt[address] <= 0 {
		delete(l.clientsAt, address)
	}
}

// weigh judges whether most clients come from one address, that of c being the one that gained. Then it is the address of
// something in front of them, and its limits would be one for all. Only clients that authenticated weigh: a stranger
// could otherwise have the limits switched off by breaking them. The caller holds mu.
func (l *Limiter) weigh(c *conn) {
	all := l.known.len()
	if l.dominant.IsValid() && l.clientsAt[l.dominant]*10 < all*nondominantOfTen {
		l.log.Info("limits of an address hold for all again: no single one brings most clients any more", "address", l.dominant)
		l.dominant = netip.Addr{}
	}
	at := l.clientsAt[c.address]
	if c.exempt || c.address == l.dominant || at < dominantClients || at*10 < all*dominantOfTen {
		return
	}
	l.dominant = c.address
	l.log.Warn("most clients come from one address, as behind a load balancer: its limits of connections, handshakes and requests"+
		" are off; let the balancer speak the PROXY protocol and name it in proxy.trusted", "address", c.address, "clients", at, "of", all)
}

// untilNext says how long it takes until a limiter lets the next one through.
func untilNext(r *rate.Limiter, now time.Time) time.Duration {
	missing := 1 - r.TokensAt(now)
	if missing <= 0 {
		return 0
	}
	return max(1, time.Duration(missing/float64(r.Limit())*float64(time.Second)))
}

// overdrawn is untilNext of a limiter that may be nil.
func overdrawn(r *rate.Limiter) time.Duration {
	if r == nil {
		return 0
	}
	return untilNext(r, time.Now())
}

// tooManyBody has the code that RFC 6749, Section 4.1.2.1, gives to a server that cannot answer for now because of
// overload. slow_down would tell a client of RFC 8628, Section 3.5, that its user has yet to decide.
const tooManyBody = `{"error":"temporarily_unavailable","error_description":"too many requests: try again after the time in Retry-After"}` + "\n"

// tooMany refuses a request (RFC 6585, Section 4).
func tooMany(w http.ResponseWriter, wait time.Duration, hangUp bool) {
	h := w.Header()
	h["Content-Type"] = []string{"application/json"}
	h["Cache-Control"] = []string{"no-store"}
	h["Retry-After"] = []string{strconv.Itoa(int(math.Ceil(wait.Seconds())))}
	if hangUp {
		h["Connection"] = []string{"close"} // with HTTP/2: GOAWAY
	}
	w.WriteHeader(http.StatusTooManyRequests)
	_, _ = io.WriteString(w, tooManyBody)
}
