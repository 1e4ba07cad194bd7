// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Package admission decides who is let in when more arrive than can be served: connections, TLS handshakes and requests
// that no client's certificate vouches for. It is for cmd/internal/server, which puts it below TLS (Limiter.Listener,
// Limiter.ConfigureTLS) and around its handlers (Limiter.Handler).
//
// What it protects are clients that have proved themselves: a request on a connection that authenticated before is held
// to no limit of its address and takes no lock. Everybody else is judged as early and as cheaply as can be: by address
// when a connection is accepted, by network when the ClientHello has been read and no key has been touched, by address
// before a request is looked at. Networks where a client authenticated within a day have a share of their own,
// because before its handshake a known client cannot be told from a stranger. That is all that holds in a flood: kept-alive
// connections go on, new connections from known networks get in, and those from elsewhere take their chance.
//
// It refuses without a word: a connection that is over a limit is reset, a request gets 429. Nothing of it is recorded,
// since nobody was judged; it is counted (Limiter.Stats). All tables are bounded and forget what was used longest ago.
package admission

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/certbound/certbound/mtls"
)

// The bounds of the tables. An entry takes about 250 bytes.
const (
	maxNetworks  = 1 << 15 // networks and addresses that used up some of their rate
	maxAddresses = 1 << 15
	maxKnown     = 1 << 16 // networks and certificates of clients: strangers cannot fill these
)

// knownFor is how long a network or a certificate stays known after a client authenticated with it.
const knownFor = 24 * time.Hour

// noteEvery is how often a connection that goes on authenticating is noted again.
const noteEvery = time.Minute

// savedSeconds is how much of a rate may be saved up: whoever asked nothing for so long may ask it all at once.
const savedSeconds = 10

// minBurst is what a network may always do at once. Many clients may share one address, and all of them come back at
// the same time when a service starts again.
const minBurst = 512

// reserved is the part of all connections that is kept for known networks: one in so many.
const reserved = 4

// One address is taken for that of a load balancer when so many clients come from it, and so many of ten.
const (
	dominantClients  = 16
	dominantOfTen    = 9
	nondominantOfTen = 5
)

// Config is what a Limiter needs. The rates are per second; 0 sets no limit.
type Config struct {
	// Exempt are addresses that are held to no limit of an address or a network, and count as known.
	Exempt []netip.Prefix
	// Proxies are the peers that must begin every connection with a header of the PROXY protocol, version 2.
	Proxies []netip.Prefix
	// HeaderTimeout is the time for that header. It must be positive.
	HeaderTimeout time.Duration
	// Connections bounds the open connections, AddressConnections those of one address (IPv6: a /64), and Handshakes
	// those that have not brought a request yet. They must be positive.
	Connections, AddressConnections, Handshakes int
	// HandshakeRate is for one network, a /24 or with IPv6 a /56; HandshakeTotal for all unknown networks together.
	HandshakeRate, HandshakeTotal int
	// AnonymousRate is how many requests that did not authenticate one address may make; AnonymousTotal is for all
	// addresses together.
	AnonymousRate, AnonymousTotal int
	// ClientRate is how many authenticated requests one client may make.
	ClientRate int
	// Logger is told when limits of an address are switched off; nil: nobody is.
	Logger *slog.Logger
}

// Limiter holds the limits of all listeners of a service. It is safe for concurrent use, and never blocks on a network.
type Limiter struct {
	cfg     Config
	log     *slog.Logger
	refused [kinds]atomic.Uint64

	// strangers is the handshakes of all unknown networks, anonymous the requests of all that did not authenticate.
	// nil: no limit.
	strangers, anonymous *rate.Limiter

	mu          sync.Mutex
	open        population                       // connections
	handshaking population                       // of these, the ones that have not brought a request
	perAddress  map[netip.Addr]int               // open connections, no zeros: as large as open at most
	handshakes  *lru[netip.Addr, *rate.Limiter]  // by network
	requests    *lru[netip.Addr, *asked]         // by address
	began       time.Time                        // what the times below are counted from
	networks    *lru[netip.Addr, time.Duration]  // known ones, and until when
	known       *lru[mtls.Thumbprint, knownPeer] // certificates that authenticated
	clients     *lru[clientKey, *rate.Limiter]
	places      map[clientKey]place // of the clients in known
	clientsAt   map[netip.Addr]int  // how many of these came last from an address
	dominant    netip.Addr          // the address that most clients come from; invalid: there is none
}

// population counts connections. Only strangers are kept off the reserved part.
type population struct{ all, strangers int }

// full reports whether one more does not fit below max.
func (p population) full(max int, stranger bool) bool {
	return p.all >= max || stranger && p.strangers >= max-max/reserved
}

func (p *population) add(n int, stranger bool) {
	p.all += n
	if stranger {
		p.strangers += n
	}
}

// knownPeer is a certificate that authenticated.
type knownPeer struct {
	client clientKey
	until  time.Duration
}

// place is where a client came from last, and how many of its certificates are known: at least one.
type place struct {
	address      address
	certificates int
}

// New returns a Limiter, or an error that says which member of c cannot be.
func New(c Config) (*Limiter, error) {
	for name, n := range map[string]int{
		"Connections": c.Connections, "AddressConnections": c.AddressConnections, "Handshakes": c.Handshakes,
		"HeaderTimeout": int(c.HeaderTimeout),
	} {
		if n <= 0 {
			return nil, fmt.Errorf("admission: %s must be positive", name)
		}
	}
	if min(c.HandshakeRate, c.HandshakeTotal, c.AnonymousRate, c.AnonymousTotal, c.ClientRate) < 0 {
		return nil, errors.New("admission: a rate is negative")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	l := &Limiter{
		cfg: c, log: c.Logger, began: time.Now(),
		perAddress: make(map[netip.Addr]int),
		handshakes: newLRU[netip.Addr, *rate.Limiter](maxNetworks),
		requests:   newLRU[netip.Addr, *asked](maxAddresses),
		networks:   newLRU[netip.Addr, time.Duration](maxKnown),
		known:      newLRU[mtls.Thumbprint, knownPeer](maxKnown),
		clients:    newLRU[clientKey, *rate.Limiter](maxKnown),
		places:     make(map[clientKey]place),
		clientsAt:  make(map[netip.Addr]int),
	}
	l.known.evicted = func(_ mtls.Thumbprint, p knownPeer) { l.left(p.client) }
	// Of these, no more is saved up than a second's worth, or what clients that all come back at once need: done at once, it
	// is work that everybody else waits for.
	if c.HandshakeTotal > 0 {
		l.strangers = rate.NewLimiter(rate.Limit(c.HandshakeTotal), max(c.HandshakeTotal, minBurst))
	}
	if c.AnonymousTotal > 0 {
		l.anonymous = rate.NewLimiter(rate.Limit(c.AnonymousTotal), c.AnonymousTotal)
	}
	return l, nil
}

// free reports whether a connection is held to no limit of an address or a network: it is configured so, or comes from
// what seems to be a load balancer. The caller holds mu.
func (l *Limiter) free(c *conn) bool {
	return c.exempt || c.address == l.dominant && l.dominant.IsValid()
}

// stranger reports whether no client has authenticated in a network lately. The caller holds mu.
func (l *Limiter) stranger(network netip.Addr, now time.Time) bool {
	until, ok := l.networks.get(network)
	return !ok || now.Sub(l.began) >= until
}

// exhausted reports whether a limiter would let nothing more through now. nil lets everything through.
func exhausted(r *rate.Limiter, now time.Time) bool {
	return r != nil && r.TokensAt(now) < 1
}

// bucket returns the limiter of a key, made when it is missing.
func bucket[K comparable](table *lru[K, *rate.Limiter], key K, perSecond, burst int) *rate.Limiter {
	r, ok := table.get(key)
	if !ok {
		r = rate.NewLimiter(rate.Limit(perSecond), burst)
		table.put(key, r)
	}
	return r
}

// Kind says which limit refused something.
type Kind int

// The limits, in the order of Stats.Refused.
const (
	Connections    Kind = iota // all connections, or those of unknown networks
	AddressFull                // the connections of one address
	HandshakesFull             // connections that have not brought a request
	HandshakeRate              // handshakes of one network
	HandshakeTotal             // handshakes of unknown networks
	ProxyHeader                // a listed proxy sent no header, a wrong one, or too late
	AnonymousRate              // requests of one address
	AnonymousTotal             // requests of all addresses
	ClientRate                 // requests of one client
	kinds
)

// String is the kind as a metric's label.
func (k Kind) String() string {
	return [kinds]string{
		"connections", "address_connections", "handshakes", "handshake_rate", "handshake_total", "proxy_header",
		"anonymous_rate", "anonymous_total", "client_rate",
	}[k]
}

// OfRequests reports whether it is requests that the limit refuses, and not connections.
func (k Kind) OfRequests() bool { return k >= AnonymousRate }

// Stats is what a Limiter has counted.
type Stats struct {
	Connections int           // open now
	Handshakes  int           // of these, the ones that have not brought a request yet
	Refused     [kinds]uint64 // since the start, by Kind
	SwitchedOff bool          // one address dominates and is held to no limit
}

// Stats returns the counters as they are.
func (l *Limiter) Stats() Stats {
	l.mu.Lock()
	s := Stats{Connections: l.open.all, Handshakes: l.handshaking.all, SwitchedOff: l.dominant.IsValid()}
	l.mu.Unlock()
	for k := range s.Refused {
		s.Refused[k] = l.refused[k].Load()
	}
	return s
}

func (l *Limiter) count(k Kind) { l.refused[k].Add(1) }
