// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// maxHeaders is how many connections of proxies may be waiting for their header at once.
const maxHeaders = 1024

// Listener returns a listener that hands out those connections of inner that are within the limits. It belongs below
// TLS. The RemoteAddr of a connection that a listed proxy brought is the one that its header names.
//
// Headers are read beside Accept and not in it, so that a slow one delays nobody. Closing the listener ends what it
// started; connections that were handed out stay open.
func (l *Limiter) Listener(inner net.Listener) net.Listener {
	if len(l.cfg.Proxies) == 0 {
		return &listener{Listener: inner, limiter: l}
	}
	return &proxied{
		listener: listener{Listener: inner, limiter: l}, accepted: make(chan accepted), closed: make(chan struct{}),
		reading: make(map[net.Conn]struct{}),
	}
}

// listener is for connections that come from where they seem to come from.
type listener struct {
	net.Listener
	limiter *Limiter
}

// Accept implements net.Listener.
func (a *listener) Accept() (net.Conn, error) {
	for {
		inner, err := a.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if c := a.limiter.admit(inner, nil); c != nil {
			return c, nil
		}
		// In a flood there is always one more to refuse; connections that are open have their turn in between.
		runtime.Gosched()
	}
}

// proxied is for connections some of which begin with a header.
type proxied struct {
	listener
	accepted chan accepted
	start    sync.Once // of pump
	running  sync.WaitGroup
	closed   chan struct{}

	mu      sync.Mutex
	done    bool                  // closed is closed
	reading map[net.Conn]struct{} // connections whose header is being read, at most maxHeaders
}

type accepted struct {
	conn *conn
	err  error
}

// Accept implements net.Listener.
func (p *proxied) Accept() (net.Conn, error) {
	p.start.Do(func() { p.running.Go(p.pump) })
	select {
	case a := <-p.accepted:
		if a.err != nil {
			return nil, a.err
		}
		return a.conn, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. It waits until nothing of the listener runs any more.
func (p *proxied) Close() error {
	p.start.Do(func() {}) // an Accept that comes later begins nothing
	err := p.Listener.Close()
	p.mu.Lock()
	if !p.done {
		p.done = true
		close(p.closed)
	}
	for c := range p.reading {
		reset(c)
	}
	p.mu.Unlock()
	p.running.Wait()
	return err
}

// pump accepts until the listener is closed. Nothing in it waits for a peer.
func (p *proxied) pump() {
	for {
		inner, err := p.Listener.Accept()
		if err != nil {
			if !p.hand(accepted{err: err}) || errors.Is(err, net.ErrClosed) {
				return
			}
			continue
		}
		if !contains(p.limiter.cfg.Proxies, addrPort(inner.RemoteAddr()).Addr()) {
			p.admit(inner, nil)
			continue
		}
		if !p.begin(inner) {
			p.limiter.count(ProxyHeader)
			reset(inner)
			continue
		}
		p.running.Go(func() { p.unwrap(inner) })
	}
}

// begin reports whether there is room for one more connection that waits for its header.
func (p *proxied) begin(inner net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done || len(p.reading) >= maxHeaders {
		return false
	}
	p.reading[inner] = struct{}{}
	return true
}

// unwrap reads the header of a proxy's connection. Without a good one there is no connection: what follows it could
// claim to come from anywhere.
func (p *proxied) unwrap(inner net.Conn) {
	_ = inner.SetReadDeadline(time.Now().Add(p.limiter.cfg.HeaderTimeout))
	source, err := readProxyHeader(inner)
	if err == nil {
		err = inner.SetReadDeadline(time.Time{})
	}
	p.mu.Lock()
	delete(p.reading, inner)
	p.mu.Unlock()
	if err != nil {
		p.limiter.count(ProxyHeader)
		reset(inner)
		return
	}
	var remote net.Addr
	if source.IsValid() {
		remote = net.TCPAddrFromAddrPort(source)
	}
	p.admit(inner, remote)
}

// admit hands a connection to Accept if it is within the limits.
func (p *proxied) admit(inner net.Conn, remote net.Addr) {
	if c := p.limiter.admit(inner, remote); c != nil && !p.hand(accepted{conn: c}) {
		_ = c.Close()
	}
}

// hand reports whether somebody took a before the listener was closed.
func (p *proxied) hand(a accepted) bool {
	select {
	case p.accepted <- a:
		return true
	case <-p.closed:
		return false
	}
}

// conn is a connection that was admitted. It is given back when it is closed.
type conn struct {
	net.Conn
	limiter          *Limiter
	remote           net.Addr   // where a proxy says that it comes from; nil: from where it seems to
	address, network netip.Addr // as they are counted
	exempt           bool

	// These are guarded by the limiter's mu.
	stranger bool // counts against the share of unknown networks
	closed   bool
	counted  bool // its handshake was taken from the rate of its network, and not given back

	stuck   atomic.Bool                  // a write was out of time
	begun   atomic.Bool                  // it has brought a request
	proven  atomic.Bool                  // its last request authenticated
	noted   atomic.Int64                 // when that was last noted, in nanoseconds of Unix time
	settled atomic.Uint32                // requests that are not to be counted as anonymous
	client  atomic.Pointer[rate.Limiter] // of the client that authenticated, if there is a limit
}

// RemoteAddr implements net.Conn.
func (c *conn) RemoteAddr() net.Addr {
	if c.remote != nil {
		return c.remote
	}
	return c.Conn.RemoteAddr()
}

// NetConn returns the connection below.
func (c *conn) NetConn() net.Conn { return c.Conn }

// Write implements net.Conn. Nothing is written any more after one that was out of time: crypto/tls would otherwise wait
// another five seconds to say goodbye to somebody who does not listen.
func (c *conn) Write(p []byte) (int, error) {
	if c.stuck.Load() {
		return 0, os.ErrDeadlineExceeded
	}
	n, err := c.Conn.Write(p)
	if err != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		c.stuck.Store(true)
	}
	return n, err
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.limiter.release(c)
	return c.Conn.Close()
}

// admit counts a connection, or refuses and resets it and returns nil. remote is nil for where it seems to come from.
func (l *Limiter) admit(inner net.Conn, remote net.Addr) *conn {
	c := &conn{Conn: inner, limiter: l, remote: remote}
	from := addrPort(c.RemoteAddr()).Addr()
	c.address, c.network, c.exempt = addressOf(from), networkOf(from), contains(l.cfg.Exempt, from)
	if refused, kind := l.enter(c, time.Now()); refused {
		l.count(kind)
		reset(inner)
		return nil
	}
	return c
}

// enter counts c in, or says which limit it would break. It looks ahead at the limits of handshakes: that the ClientHello
// would be refused can be told before it has been read.
func (l *Limiter) enter(c *conn, now time.Time) (refused bool, kind Kind) {
	l.mu.Lock()
	defer l.mu.Unlock()
	free := l.free(c)
	c.stranger = !free && l.stranger(c.network, now)
	switch {
	case l.open.full(l.cfg.Connections, c.stranger):
		return true, Connections
	case l.handshaking.full(l.cfg.Handshakes, c.stranger):
		return true, HandshakesFull
	case !free && l.perAddress[c.address] >= l.cfg.AddressConnections:
		return true, AddressFull
	case !free && l.spent(c.network, now):
		return true, HandshakeRate
	case c.stranger && exhausted(l.strangers, now):
		return true, HandshakeTotal
	}
	l.open.add(1, c.stranger)
	l.handshaking.add(1, c.stranger)
	if !c.exempt {
		l.perAddress[c.address]++
	}
	return false, 0
}

// spent reports whether a network has no handshake left. The caller holds mu.
func (l *Limiter) spent(network netip.Addr, now time.Time) bool {
	r, _ := l.handshakes.get(network)
	return exhausted(r, now)
}

// begin notes that c has brought a request.
func (l *Limiter) begin(c *conn) {
	if c.begun.Load() {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.begun(c)
}

// begun is begin for a caller that holds mu.
func (l *Limiter) begun(c *conn) {
	if !c.closed && !c.begun.Swap(true) {
		l.handshaking.add(-1, c.stranger)
	}
}

// release counts c out, once.
func (l *Limiter) release(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.closed {
		return
	}
	l.begun(c)
	c.closed = true
	l.open.add(-1, c.stranger)
	if c.exempt {
		return
	}
	if l.perAddress[c.address]--; l.perAddress[c.address] <= 0 {
		delete(l.perAddress, c.address)
	}
}

// reset closes a connection without waiting for anything: what was sent on it is dropped, and nothing of it stays behind
// in the kernel.
func reset(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close()
}

// addrPort is where a connection comes from; the zero value when that is no IP address.
func addrPort(a net.Addr) netip.AddrPort {
	if tcp, ok := a.(*net.TCPAddr); ok {
		p := tcp.AddrPort()
		return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
	}
	return netip.AddrPort{}
}
