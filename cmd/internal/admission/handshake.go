// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"time"
)

var errTooManyHandshakes = errors.New("admission: too many handshakes")

// ConfigureTLS has every handshake under cfg judged when its ClientHello has been read, and before a key is touched for
// it. Connections must come from Listener. cfg itself stays the configuration in use, its session ticket keys included.
func (l *Limiter) ConfigureTLS(cfg *tls.Config) {
	next := cfg.GetConfigForClient
	cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if c := connOf(hello.Conn); c != nil {
			if kind, refused := l.handshake(c, time.Now()); refused {
				l.count(kind)
				// Reset here, so that crypto/tls has nowhere to send its alert to: it costs more than the refusal. c is
				// given back when the server closes it.
				reset(c.Conn)
				return nil, errTooManyHandshakes
			}
		}
		if next != nil {
			return next(hello)
		}
		return nil, nil
	}
}

// handshake takes one from the rates that c is held to, or says which is used up.
func (l *Limiter) handshake(c *conn, now time.Time) (kind Kind, refused bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.free(c) {
		return 0, false
	}
	if n := l.cfg.HandshakeRate; n > 0 && !bucket(l.handshakes, c.network, n, max(minBurst, n*savedSeconds)).AllowN(now, 1) {
		return HandshakeRate, true
	}
	// Judged anew: the network may have become known since the connection was accepted.
	if l.strangers != nil && l.stranger(c.network, now) && !l.strangers.AllowN(now, 1) {
		return HandshakeTotal, true
	}
	c.counted = l.cfg.HandshakeRate > 0
	return 0, false
}

// giveBack gives a network the handshake of c back: a client authenticated on it. Many of them may come from one network,
// as from behind one address, and are not held to what strangers there are held to. The caller holds mu.
func (l *Limiter) giveBack(c *conn, now time.Time) {
	if !c.counted {
		return
	}
	c.counted = false
	if r, ok := l.handshakes.get(c.network); ok {
		r.AllowN(now, -1)
	}
}

// connKey is for the connection in the context of its requests.
type connKey struct{}

// ConnContext puts a connection of Listener, whatever was put on top of it, into the context of its requests. It is meant
// for http.Server.ConnContext.
func (l *Limiter) ConnContext(ctx context.Context, c net.Conn) context.Context {
	if c := connOf(c); c != nil {
		return context.WithValue(ctx, connKey{}, c)
	}
	return ctx
}

// connOf finds the connection of ours below another, nil when there is none.
func connOf(c net.Conn) *conn {
	for {
		if ours, ok := c.(*conn); ok {
			return ours
		}
		above, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return nil
		}
		c = above.NetConn()
	}
}
