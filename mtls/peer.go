// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Package mtls says who is at the other end of a TLS connection, for servers and clients of OAuth 2.0 mutual TLS
// (RFC 8705). It is for authorization servers, resource servers and clients, needs the standard library only, and is
// enough on its own for those who verify their tokens with something else.
//
// A server listens through [NewListener] with [ServerConfig], is prepared by [ConfigureServer], and asks
// [PeerFromRequest] in its handlers. What it gets is a [Peer]: the certificate that was presented and its
// [Thumbprint]. Whether that certificate may act for a client is then judged at every request, because a kept-alive
// connection and a resumed session outlive decisions: [Peer.CheckValidity] for its dates, [Peer.VerifiedBy] for its
// chain, and [Subject.Matches] for the name that a client registered.
//
// It refuses everything below TLS 1.2, the TLS 1.2 cipher suites outside ECDHE with AES-GCM, certificate chains and
// handshakes above a size, and keys that are weak or costly to check. It never looks at a certificate other than the
// first of a chain for an identity, never trusts by name what was not pinned by its bytes, and never falls back to
// the system's roots for a client.
package mtls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

var (
	// ErrNoCertificate says that the other end presented no certificate.
	ErrNoCertificate = errors.New("mtls: no certificate presented")
	// ErrNotTLS says that a request did not arrive on a TLS connection whose handshake this process completed.
	ErrNotTLS = errors.New("mtls: not a TLS connection")
	// ErrExpired says that a certificate, or one of its chain, is past its notAfter.
	ErrExpired = errors.New("mtls: certificate has expired")
	// ErrNotYetValid says that a certificate, or one of its chain, is before its notBefore.
	ErrNotYetValid = errors.New("mtls: certificate is not valid yet")
	// ErrUntrusted says that no acceptable chain leads from a certificate to the given anchors.
	ErrUntrusted = errors.New("mtls: certificate is not trusted")
	// ErrUnacceptable says that what was presented lies outside the limits of this package: see MaxChainCertificates,
	// MaxChainBytes and CheckPublicKey.
	ErrUnacceptable = errors.New("mtls: certificate is not acceptable")
)

// maxMemo bounds how many anchors a Peer remembers to have been verified by.
const maxMemo = 8

// Peer is the certificate that the other end of a connection presented. It lives as long as the connection and is safe
// for concurrent use. A nil *Peer stands for "no certificate": its methods answer so. A Peer says what was presented,
// not that it may be trusted.
type Peer struct {
	leaf          *x509.Certificate
	intermediates []*x509.Certificate
	thumbprint    Thumbprint

	mu      sync.Mutex
	memo    []verified // oldest first, at most maxMemo
	matched Subject    // the last one that the certificate bears; its value says it whole
}

// verified is a chain that was built for some anchors. Only success is remembered, and never its dates.
type verified struct {
	anchors *Anchors
	chain   []*x509.Certificate
}

// NewPeer returns the peer that presented leaf and, as hints, intermediates; nil when leaf is nil or was not parsed
// from DER. The certificates must not be modified afterwards. It says nothing of possession: that the other end holds
// the private key must have been shown by a completed handshake, or vouched for by whoever forwarded the certificate.
func NewPeer(leaf *x509.Certificate, intermediates ...*x509.Certificate) *Peer {
	if leaf == nil || len(leaf.Raw) == 0 {
		return nil
	}
	return &Peer{
		leaf:          leaf,
		intermediates: slices.Clone(intermediates),
		thumbprint:    ThumbprintOf(leaf),
	}
}

// Certificate returns the presented end-entity certificate, nil for a nil peer. It must not be modified.
func (p *Peer) Certificate() *x509.Certificate {
	if p == nil {
		return nil
	}
	return p.leaf
}

// Intermediates returns what was presented after the certificate, in that order: untrusted hints for chain building,
// never an identity. They must not be modified.
func (p *Peer) Intermediates() []*x509.Certificate {
	if p == nil {
		return nil
	}
	return slices.Clone(p.intermediates)
}

// Thumbprint returns the thumbprint of the certificate, the zero Thumbprint for a nil peer.
func (p *Peer) Thumbprint() Thumbprint {
	if p == nil {
		return Thumbprint{}
	}
	return p.thumbprint
}

// Matches reports whether the certificate bears the expected name, as s.Matches does, false for a nil peer. Neither
// changes, so the last name that matched is remembered.
func (p *Peer) Matches(s Subject) bool {
	if p == nil || s.IsZero() {
		return false
	}
	p.mu.Lock()
	known := p.matched.kind == s.kind && p.matched.value == s.value
	p.mu.Unlock()
	if known || !s.Matches(p.leaf) {
		return known
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.matched = s
	return true
}

// CheckValidity judges the dates of the certificate at now, both ends included (RFC 5280, Section 4.1.2.5). It answers
// nil, ErrNoCertificate, ErrExpired or ErrNotYetValid, and is meant for every request: TLS checks no dates again while
// a connection lives or a session is resumed.
func (p *Peer) CheckValidity(now time.Time) error {
	if p == nil {
		return ErrNoCertificate
	}
	return checkDates(p.leaf, now)
}

func checkDates(cert *x509.Certificate, now time.Time) error {
	if now.Before(cert.NotBefore) {
		return ErrNotYetValid
	}
	if now.After(cert.NotAfter) {
		return ErrExpired
	}
	return nil
}

// holder keeps the peer of one connection. ConnContext installs it empty, since it runs before the handshake; the
// first request fills it.
type holder struct {
	conn *limitedConn // nil when the listener is not ours
	once sync.Once
	peer *Peer
	err  error
	made atomic.Pointer[Peer] // the same, once there is one
}

type holderKey struct{}

// ConnContext prepares a connection to remember its peer, so that certificates are hashed and chains are built once
// for a connection and not for every request. It is meant for http.Server.ConnContext; see ConfigureServer.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, holderKey{}, &holder{conn: limited(c)})
}

// PeerFromRequest returns the peer of the connection on which r arrived. It answers ErrNotTLS for plain HTTP and
// before a handshake is complete, ErrNoCertificate when the client presented none, and ErrUnacceptable when what it
// presented is outside the limits of this package (which a server set up by ServerConfig refuses in the handshake
// already). The identity comes from the connection alone: neither Host nor the server name asked for nor any header
// has a say in it.
//
// With ConnContext installed, all requests of a connection share one Peer; otherwise it is made anew for each.
func PeerFromRequest(r *http.Request) (*Peer, error) {
	// Before the handshake ends the other end has shown a certificate, which is public, but not that it holds the key.
	if r.TLS == nil || !r.TLS.HandshakeComplete {
		return nil, ErrNotTLS
	}
	h, ok := r.Context().Value(holderKey{}).(*holder)
	if !ok {
		return peerOf(r.TLS)
	}
	h.once.Do(func() {
		h.conn.lift()
		h.peer, h.err = peerOf(r.TLS)
		h.made.Store(h.peer)
	})
	return h.peer, h.err
}

// SeenPeer returns the peer that PeerFromRequest has found on the connection of a request, given the request's context; nil
// before that, without ConnContext, and where there is none. It is a hint for whoever looks things up ahead; who decides
// something asks PeerFromRequest.
func SeenPeer(ctx context.Context) *Peer {
	if h, ok := ctx.Value(holderKey{}).(*holder); ok {
		return h.made.Load()
	}
	return nil
}

// BreakOff closes the connection on which r arrived without another word, and reports whether it could: whoever writes to
// it or reads from it gets an error at once, also where a write waits for a client that does not read. It is for handlers
// whose answer must not leave any more; closing the TLS connection would wait to say so. It needs ConnContext and
// a connection of NewListener. It may be called at any time, concurrently, and more than once.
func BreakOff(r *http.Request) bool {
	h, ok := r.Context().Value(holderKey{}).(*holder)
	if !ok || h.conn == nil {
		return false
	}
	_ = h.conn.Close()
	return true
}

func peerOf(state *tls.ConnectionState) (*Peer, error) {
	certs := state.PeerCertificates
	if len(certs) == 0 {
		return nil, ErrNoCertificate
	}
	if err := checkPresented(certs); err != nil {
		return nil, err
	}
	// Only the first certificate is the client, whatever else was sent (RFC 8446, Section 4.4.2).
	return NewPeer(certs[0], certs[1:]...), nil
}

// checkPresented is the cheap, stateless refusal: it needs no key operation, no lookup and no clock.
func checkPresented(certs []*x509.Certificate) error {
	if len(certs) == 0 {
		return nil
	}
	if len(certs) > MaxChainCertificates {
		return fmt.Errorf("%w: %d certificates presented, at most %d allowed",
			ErrUnacceptable, len(certs), MaxChainCertificates)
	}
	size := 0
	for _, c := range certs {
		size += len(c.Raw)
	}
	if size > MaxChainBytes {
		return fmt.Errorf("%w: %d bytes of certificates presented, at most %d allowed",
			ErrUnacceptable, size, MaxChainBytes)
	}
	return CheckPublicKey(certs[0].PublicKey)
}
