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
		var j judgement
		if !c.proven.Load() {
			j = l.judge(c, r, time.Now())
		} else if client := c.client.Load(); client != nil {
			j = judgement{wait: take(client, time.Now()), kind: ClientRate, taken: true}
		}
		if j.wait > 0 {
			l.count(j.kind)
			tooMany(w, j.wait, j.kind != ClientRate)
			return
		}
		before := c.settled.Load()
		// Counted even when next panics, to cut the connection.
		defer func() {
			if j.of != nil {
				l.done(j.of)
			}
			if c.settled.Load() == before {
				l.anonymousRequest(c, r, time.Now())
				return
			}
			if client := c.client.Load(); client != nil && !j.taken {
				charge(client, time.Now())
			}
			// Spared, which a stranger may know how to bring about.
			if l.anonymous != nil && !c.proven.Load() && !c.exempt {
				charge(l.anonymous, time.Now())
			}
		}()
		next.ServeHTTP(w, r)
	})
}

// asked is what an address has asked without authenticating.
type asked struct {
	rate    *rate.Limiter
	pending int // requests that are being served, of connections that have not authenticated; guarded by the limiter's mu
}

// judgement is what becomes of a request that has just arrived.
type judgement struct {
	wait  time.Duration // 0: it is served
	kind  Kind          // why it has to wait
	taken bool          // it has been taken from its client's rate
	of    *asked        // where it is pending, nil for nowhere
}

// judge judges a request whose connection has not authenticated.
//
// It is taken from its address's rate only when it has been served, and until then may be any number of requests: with
// HTTP/2 a caller begins a hundred on a connection and ends them together. So the pending ones are bounded too.
func (l *Limiter) judge(c *conn, r *http.Request, now time.Time) judgement {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cfg.ClientRate > 0 {
		if known, ok := l.peer(r, now); ok {
			if client, ok := l.clients.get(known.client); ok {
				return judgement{wait: take(client, now), kind: ClientRate, taken: true}
			}
		}
	}
	if l.free(c) {
		return judgement{}
	}
	var own *asked
	if l.cfg.AnonymousRate > 0 {
		own = l.askedBy(c.address)
		wait := untilNext(own.rate, now)
		if wait == 0 && own.pending >= max(minBurst, own.rate.Burst()) {
			wait = time.Second
		}
		if wait > 0 {
			return l.unlessKnown(r, now, wait, AnonymousRate)
		}
	}
	if l.anonymous != nil && l.stranger(c.network, now) {
		if wait := untilNext(l.anonymous, now); wait > 0 {
			return l.unlessKnown(r, now, wait, AnonymousTotal)
		}
	}
	if own != nil {
		own.pending++
	}
	return judgement{of: own}
}

func (l *Limiter) unlessKnown(r *http.Request, now time.Time, wait time.Duration, kind Kind) judgement {
	if _, ok := l.peer(r, now); ok {
		return judgement{}
	}
	return judgement{wait: wait, kind: kind}
}

// askedBy returns what an address has asked, made when it is missing. The caller holds mu.
func (l *Limiter) askedBy(address netip.Addr) *asked {
	a, ok := l.requests.get(address)
	if !ok {
		n := l.cfg.AnonymousRate
		a = &asked{rate: rate.NewLimiter(rate.Limit(n), n*savedSeconds)}
		l.requests.put(address, a)
	}
	return a
}

// done ends what judge let begin.
func (l *Limiter) done(a *asked) {
	l.mu.Lock()
	a.pending--
	l.mu.Unlock()
}

// peer finds the certificate of a request among those that authenticated lately. The caller holds mu. That the other end
// has its key was shown by the handshake.
func (l *Limiter) peer(r *http.Request, now time.Time) (knownPeer, bool) {
	p, err := mtls.PeerFromRequest(r)
	if err != nil {
		return knownPeer{}, false
	}
	known, ok := l.known.get(p.Thumbprint())
	return known, ok && now.Sub(l.began) < known.until
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
	if l.cfg.AnonymousRate > 0 {
		charge(l.askedBy(c.address).rate, now)
	}
	if l.anonymous != nil {
		charge(l.anonymous, now)
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
	client, age := clientKeyOf(clientID), now.Sub(l.began)
	l.networks.put(c.network, age+knownFor)
	l.begun(c)
	l.giveBack(c, now)
	if c.stranger && !c.closed {
		l.open.strangers--
		c.stranger = false
	}
	if l.cfg.ClientRate > 0 && clientID != "" {
		c.client.Store(bucket(l.clients, client, l.cfg.ClientRate, l.cfg.ClientRate*savedSeconds))
	}
	if certificate.IsZero() {
		return
	}
	if before, ok := l.known.get(certificate); ok {
		l.left(before.client)
	}
	l.known.put(certificate, knownPeer{client: client, until: age + knownFor})
	l.came(client, c.address)
	for range 2 { // as many as may come to be, and one more: so they stay few
		if old, p, ok := l.known.oldest(); ok && age >= p.until {
			l.known.remove(old)
		}
	}
	l.weigh(c)
}

// came counts a certificate to a client, and the client to the address that it came from last. It is clients that are
// counted, however many certificates one has: it could otherwise have the limits switched off by renewing. The caller
// holds mu.
func (l *Limiter) came(client clientKey, from netip.Addr) {
	p := l.places[client]
	if p.certificates > 0 {
		l.less(p.address.unpacked())
	}
	l.places[client] = place{address: packed(from), certificates: p.certificates + 1}
	l.clientsAt[from]++
}

// left counts a certificate away from a client, and with its last one the client from its address. The caller holds mu.
func (l *Limiter) left(client clientKey) {
	p := l.places[client]
	if p.certificates--; p.certificates > 0 {
		l.places[client] = p
		return
	}
	delete(l.places, client)
	l.less(p.address.unpacked())
}

// less counts a client away from an address. The caller holds mu.
func (l *Limiter) less(address netip.Addr) {
	if l.clientsAt[address]--; l.clientsAt[address] <= 0 {
		delete(l.clientsAt, address)
	}
}

// weigh judges whether most clients come from one address, that of c being the one that gained. Then it is the address of
// something in front of them, and its limits would be one for all. Only clients that authenticated weigh: a stranger
// could otherwise have the limits switched off by breaking them. The caller holds mu.
func (l *Limiter) weigh(c *conn) {
	all := len(l.places)
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

// take takes one from a limiter, or says how long it takes until that can be done.
func take(r *rate.Limiter, now time.Time) time.Duration {
	if r.AllowN(now, 1) {
		return 0
	}
	return max(1, untilNext(r, now))
}

// charge takes one from a limiter that has been asked before: also when nothing is left, since what was served at once has
// to be paid for. More than savedSeconds' worth of it, or of what may be saved up, nobody owes, so that those who share an
// address with somebody are not kept out for long.
func charge(r *rate.Limiter, now time.Time) {
	if owed := max(minBurst, savedSeconds*float64(r.Limit()), float64(r.Burst())); r.TokensAt(now) > -owed {
		r.ReserveN(now, 1)
	}
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
