// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package mtls

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Timeouts that ConfigureServer sets where the server has none.
const (
	defaultReadHeaderTimeout = 10 * time.Second // the handshake included
	defaultIdleTimeout       = 2 * time.Minute
)

// Bounds that ConfigureServer sets on HTTP/2 where the server has none. RFC 9113, Section 6.5.2 allows no smaller
// frames, knows no smaller window of a connection (Section 6.9.2), and advises against fewer streams.
const (
	maxFrameSize = 16 << 10
	maxUnread    = 1<<16 - 1
	maxStreams   = 100
)

// maxBeforeRequest is how many bytes are read before the first request, the handshake included. It leaves room for the
// largest record of TLS behind the largest handshake, since a client may send its header and body in one.
const maxBeforeRequest = 32 << 10

// handshakeGrace is how long a reader beyond the handshake's bound waits for word that the handshake has ended.
const handshakeGrace = 250 * time.Millisecond

// recordHeaderLen is the length of the header of a TLS record: type, version, length (RFC 8446, Section 5.1).
const recordHeaderLen = 5

var (
	errHandshakeSize = errors.New("mtls: too many bytes in the handshake")
	errRequestSize   = errors.New("mtls: too many bytes before the first request")
)

// NewListener returns a listener of TLS connections with cfg on top of inner. Like tls.NewListener it hands out
// *tls.Conn, on which http.Server speaks HTTP/2, and works on cfg itself and not on a copy.
//
// It reads at most MaxHandshakeBytes from a connection until the handshake has ended, and at most 32 KiB until
// ConnState or PeerFromRequest tells that a request is there; a connection that sends more before is broken off. The
// latter bound covers the first request's header too, and an http.Server that serves it must have ConnState or use
// ConfigureServer.
//
// The handshake begins when a connection is accepted, and waits for the client until the connection's deadline or its
// end: a caller other than http.Server must set the one or bring about the other.
func NewListener(inner net.Listener, cfg *tls.Config) net.Listener {
	return &listener{Listener: inner, cfg: cfg}
}

type listener struct {
	net.Listener
	cfg *tls.Config
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	lc := newLimitedConn(c)
	tc := tls.Server(lc, l.cfg)
	// A handshake needs a deep stack, which would stay with the goroutine that serves the connection for as long as
	// that works. So it has a goroutine of its own, which must have begun before anyone else can. Whoever asks for the
	// handshake then waits for this one, and gets its error.
	go shake(tc, lc)
	<-lc.begun
	return tc, nil
}

// shake brings about the handshake. As net/http does, it takes a panic for the end of this connection and not of all.
func shake(tc *tls.Conn, lc *limitedConn) {
	defer lc.begin()
	defer func() {
		if recover() != nil {
			_ = lc.Close()
		}
	}()
	if tc.Handshake() == nil {
		close(lc.shaken)
	}
}

// limitedConn reads a bounded number of bytes until it is lifted: less during the handshake than after it. It must not
// ask the TLS connection above it about the handshake: Read runs under the lock that such a question takes. Calls of
// Read do not overlap, for the same lock.
type limitedConn struct {
	net.Conn
	lifted atomic.Bool
	once   sync.Once
	begun  chan struct{} // closed when the handshake reads, or has ended without
	shaken chan struct{} // closed when the handshake has ended well

	handshake int // bytes left of the handshake's bound
	all       int // bytes left before the first request
	header    [recordHeaderLen]byte
	headerLen int // bytes of header that are there
	record    int // bytes left of the record behind header
}

func newLimitedConn(c net.Conn) *limitedConn {
	return &limitedConn{
		Conn: c, begun: make(chan struct{}), shaken: make(chan struct{}), handshake: MaxHandshakeBytes, all: maxBeforeRequest,
	}
}

func (c *limitedConn) begin() {
	c.once.Do(func() { close(c.begun) })
}

func (c *limitedConn) Read(b []byte) (int, error) {
	if c.lifted.Load() {
		return c.Conn.Read(b)
	}
	select {
	case <-c.shaken:
		return c.readBounded(b)
	default:
		c.begin()
		return c.readRecord(b)
	}
}

// readBounded reads between the handshake and the first request.
func (c *limitedConn) readBounded(b []byte) (int, error) {
	if c.all <= 0 {
		return 0, errRequestSize
	}
	n, err := c.Conn.Read(b[:min(len(b), c.all)])
	c.all -= n
	return n, err
}

// readRecord reads during the handshake, and never beyond the record that it is in: what follows the handshake is not
// counted as its. A record that announces more than what is left is refused before crypto/tls makes room for it.
func (c *limitedConn) readRecord(b []byte) (int, error) {
	if c.handshake <= 0 || c.record > c.handshake {
		// Either the handshake goes on, and has no right to more, or it has just ended and the word of it is on its way.
		// One cannot tell which from here.
		select {
		case <-c.shaken:
			return c.readBounded(b)
		case <-time.After(handshakeGrace):
			return 0, errHandshakeSize
		}
	}
	want := c.record
	if want == 0 {
		want = recordHeaderLen - c.headerLen
	}
	n, err := c.Conn.Read(b[:min(len(b), want, c.handshake)])
	c.handshake -= n
	c.all -= n
	if c.record > 0 {
		c.record -= n
		return n, err
	}
	c.headerLen += copy(c.header[c.headerLen:], b[:n])
	if c.headerLen == recordHeaderLen {
		c.headerLen, c.record = 0, int(binary.BigEndian.Uint16(c.header[3:]))
	}
	return n, err
}

// NetConn returns the connection below, as that of *tls.Conn does.
func (c *limitedConn) NetConn() net.Conn { return c.Conn }

// lift takes the bound away. It may be called on nil and more than once.
func (c *limitedConn) lift() {
	if c != nil {
		c.lifted.Store(true)
	}
}

// limited returns the bounded connection below c, nil when there is none.
func limited(c net.Conn) *limitedConn {
	tc, ok := c.(*tls.Conn)
	if !ok {
		return nil
	}
	lc, _ := tc.NetConn().(*limitedConn)
	return lc
}

// ConnState takes away the bound that NewListener puts on what is read, once c has sent a request. It is meant for
// http.Server.ConnState; connections of other listeners are left alone.
func ConnState(c net.Conn, s http.ConnState) {
	if s == http.StateActive || s == http.StateIdle || s == http.StateHijacked {
		limited(c).lift()
	}
}

// ConfigureServer prepares srv to serve connections of NewListener(l, cfg) with srv.Serve, HTTP/2 included: it adds
// ConnContext and ConnState to what srv has, and sets MaxHeaderBytes, ReadHeaderTimeout (10 s; it bounds the handshake
// too) and IdleTimeout (2 min) where they are zero, and what of HTTP2 is zero so that a connection holds little: frames
// of 16 KiB, 64 KiB of bodies that no handler has read yet, 100 streams. ReadTimeout and WriteTimeout hang on what the handlers do and are
// left to the caller. Call it before srv serves, and only once.
func ConfigureServer(srv *http.Server, cfg *tls.Config) {
	// net/http offers HTTP/2 on a listener that is not its own only if its configuration names it. The copy is for
	// net/http to change; connections are made with cfg itself.
	srv.TLSConfig = cfg.Clone()
	connContext, connState := srv.ConnContext, srv.ConnState
	srv.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if connContext != nil {
			ctx = connContext(ctx, c)
		}
		return ConnContext(ctx, c)
	}
	srv.ConnState = func(c net.Conn, s http.ConnState) {
		ConnState(c, s)
		if connState != nil {
			connState(c, s)
		}
	}
	if srv.MaxHeaderBytes == 0 {
		srv.MaxHeaderBytes = MaxHeaderBytes
	}
	if srv.ReadHeaderTimeout == 0 {
		srv.ReadHeaderTimeout = defaultReadHeaderTimeout
	}
	if srv.IdleTimeout == 0 {
		srv.IdleTimeout = defaultIdleTimeout
	}
	srv.HTTP2 = boundHTTP2(srv.HTTP2)
}

// boundHTTP2 returns a copy of c with bounds where it has none. Those of net/http are made for throughput: it takes
// frames of 1 MiB, and makes room for one as soon as nine bytes announce it.
func boundHTTP2(c *http.HTTP2Config) *http.HTTP2Config {
	bounded := http.HTTP2Config{}
	if c != nil {
		bounded = *c
	}
	if bounded.MaxReadFrameSize == 0 {
		bounded.MaxReadFrameSize = maxFrameSize
	}
	if bounded.MaxReceiveBufferPerConnection == 0 {
		bounded.MaxReceiveBufferPerConnection = maxUnread
	}
	if bounded.MaxReceiveBufferPerStream == 0 {
		bounded.MaxReceiveBufferPerStream = maxUnread
	}
	if bounded.MaxConcurrentStreams == 0 {
		bounded.MaxConcurrentStreams = maxStreams
	}
	return &bounded
}
