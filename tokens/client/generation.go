// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/certbound/certbound/mtls"
)

// maxCachedTokens bounds the distinct scope and resource sets that one generation remembers.
const maxCachedTokens = 64

// generation is one certificate with everything that must not outlive it: the tokens bound to it, the connections
// that presented it, and the TLS sessions made with it. Certificate and pool never change; the tokens are added.
type generation struct {
	chain      [][]byte // the certificates as presented
	thumbprint mtls.Thumbprint
	notAfter   time.Time
	pool       *http.Transport

	mu       sync.Mutex
	requests int // RoundTrips whose response body is still open, and fetches
	retired  bool
	tokens   map[cacheKey]*slot
}

// newGeneration freezes the key pair's current certificate. The TLS configuration, and with it the session cache,
// is made anew: with the cache of an older generation a new connection would resume a session in which the server
// sees the older certificate.
func (t *Transport) newGeneration(source *tls.Certificate) (*generation, error) {
	frozen, err := mtls.NewKeyPair(*source)
	if err != nil {
		return nil, fmt.Errorf("client certificate: %w", err)
	}
	leaf := frozen.Current().Leaf
	return &generation{
		chain:      source.Certificate,
		thumbprint: mtls.ThumbprintOf(leaf),
		notAfter:   leaf.NotAfter,
		pool:       newPool(mtls.ClientConfig(frozen, t.config.Roots), t.config.DialContext),
		tokens:     map[cacheKey]*slot{},
	}, nil
}

// newPool is a connection pool with HTTP/2 and with bounds on what a hostile server can make us hold.
func newPool(c *tls.Config, dial func(context.Context, string, string) (net.Conn, error)) *http.Transport {
	pool := &http.Transport{
		TLSClientConfig:        c,
		DialContext:            dial,
		ForceAttemptHTTP2:      true,
		TLSHandshakeTimeout:    10 * time.Second,
		MaxIdleConns:           128,
		MaxIdleConnsPerHost:    32,
		IdleConnTimeout:        time.Minute,
		MaxResponseHeaderBytes: 256 << 10,
	}
	if dial == nil {
		pool.Proxy = http.ProxyFromEnvironment
	}
	return pool
}

// enter returns the generation of the key pair's current certificate, making it when the certificate has changed, and
// counts the caller in. The caller leaves.
func (t *Transport) enter() (*generation, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, ErrClosed
	}
	if err := t.adopt(); err != nil {
		return nil, err
	}
	g := t.current
	g.mu.Lock()
	g.requests++
	g.mu.Unlock()
	return g, nil
}

// adopt makes a new generation when the key pair holds another certificate. A pair that was read again and is the
// same changes nothing. The caller holds the lock.
func (t *Transport) adopt() error {
	source := t.config.KeyPair.Current()
	if source == t.source {
		return nil
	}
	if t.current == nil || !slices.EqualFunc(source.Certificate, t.current.chain, bytes.Equal) {
		next, err := t.newGeneration(source)
		if err != nil {
			return err
		}
		if t.current != nil {
			t.current.retire()
		}
		t.current = next
	}
	t.source = source
	return nil
}

// leave counts out. The last to leave a retired generation closes what it left idle.
func (g *generation) leave() {
	g.mu.Lock()
	g.requests--
	last := g.retired && g.requests == 0
	g.mu.Unlock()
	if last {
		g.pool.CloseIdleConnections()
	}
}

// retire closes the idle connections; those in use are closed as their requests end.
func (g *generation) retire() {
	g.mu.Lock()
	g.retired = true
	g.mu.Unlock()
	g.pool.CloseIdleConnections()
}

// send puts a request on a connection of this generation. It takes over the caller's place: the generation is left
// when the response body is closed or there is no response.
func (g *generation) send(req *http.Request) (*http.Response, error) {
	resp, err := g.pool.RoundTrip(req)
	if err != nil {
		g.leave()
		return nil, err
	}
	if _, upgraded := resp.Body.(io.Writer); upgraded {
		// An upgraded connection is no longer the pool's and must keep its Write method.
		g.leave()
		return resp, nil
	}
	resp.Body = &body{ReadCloser: resp.Body, leave: sync.OnceFunc(g.leave)}
	return resp, nil
}

// body leaves the generation when it is closed.
type body struct {
	io.ReadCloser
	leave func()
}

// Close closes the body first: only then is its connection idle.
func (b *body) Close() error {
	err := b.ReadCloser.Close()
	b.leave()
	return err
}

// cacheKey is one string of length-prefixed parts, so that no two different tuples have the same key.
type cacheKey string

// key names a token: issuer, client, certificate, scopes and resources, all of them. The first three cannot vary
// inside a generation; they are in the key so that no later change of the cache's place can mix two identities.
func (t *Transport) key(g *generation, want request) cacheKey {
	return newCacheKey(t.config.Issuer, t.config.ClientID, g.thumbprint, want)
}

func newCacheKey(issuer, clientID string, thumbprint mtls.Thumbprint, want request) cacheKey {
	var b []byte
	add := func(s string) {
		b = binary.BigEndian.AppendUint64(b, uint64(len(s)))
		b = append(b, s...)
	}
	add(issuer)
	add(clientID)
	add(string(thumbprint[:]))
	for _, list := range [][]string{want.scopes, want.resources} {
		b = binary.BigEndian.AppendUint64(b, uint64(len(list)))
		for _, s := range list {
			add(s)
		}
	}
	return cacheKey(b)
}
