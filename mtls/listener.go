// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package mtls

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// Timeouts that ConfigureServer sets where the server has none.
const (
	defaultReadHeaderTimeout = 10 * time.Second // the handshake included
	defaultIdleTimeout       = 2 * time.Minute
)

var errHandshakeSize = errors.New("mtls: too many bytes before the first request")

// NewListener returns a listener of TLS connections with cfg on top of inner. Like tls.NewListener it hands out
// *tls.Conn, on which http.Server speaks HTTP/2, and works on cfg itself and not on a copy.
//
// It reads at most MaxHandshakeBytes from a connection until ConnState or PeerFromRequest tells that a request is
// there; a connection that sends more before is broken off. The bound therefore covers the handshake and the first
// request's header, and an http.Server that serves it must have ConnState or use ConfigureServer.
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
	lc := &limitedConn{Conn: c}
	lc.left.Store(MaxHandshakeBytes)
	return tls.Server(lc, l.cfg), nil
}

// limitedConn reads a bounded number of bytes until it is lifted. It must not ask the TLS connection above it about
// the handshake: Read runs under the lock that such a question takes.
type limitedConn struct {
	net.Conn
	lifted atomic.Bool
	left   atomic.Int64
}

func (c *limitedConn) Read(b []byte) (int, error) {
	if c.lifted.Load() {
		return c.Conn.Read(b)
	}
	left := c.left.Load()
	if left <= 0 {
		return 0, errHandshakeSize
	}
	n, err := c.Conn.Read(b[:min(int64(len(b)), left)])
	c.left.Add(-int64(n))
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
// too) and IdleTimeout (2 min) where they are zero. ReadTimeout and WriteTimeout hang on what the handlers do and are
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
}
