// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package mtls

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
)

const (
	// MaxChainCertificates is how many certificates a client may present, its own included.
	MaxChainCertificates = 4
	// MaxChainBytes is how many bytes of DER these may have together: a leaf and three intermediates, all with RSA keys of
	// 4096 bits, fit. crypto/tls holds them three times for as long as the connection lives.
	MaxChainBytes = 7680
	// MaxHandshakeBytes is how many bytes NewListener reads from a connection before its handshake has ended.
	MaxHandshakeBytes = 12 << 10
	// MaxHeaderBytes is the bound that ConfigureServer sets on the header of a request.
	MaxHeaderBytes = 8 << 10
)

// sessionCacheSize is how many servers a client's configuration keeps sessions of.
const sessionCacheSize = 64

// ClientCertificates says what a server does about certificates of clients.
type ClientCertificates int

const (
	// ClientCertificatesIgnored never asks for one, so that browsers do not prompt their users.
	ClientCertificatesIgnored ClientCertificates = iota
	// ClientCertificatesRequested asks for one without demanding it in the handshake, so that a client without one gets
	// an answer it can read instead of a broken connection. Whatever is presented is accepted as far as TLS goes, within
	// the limits of this package: the handler judges it.
	ClientCertificatesRequested
)

// ServerConfig returns the configuration of a server that shows kp's current certificate: TLS 1.3 or 1.2, the latter
// with the four ECDHE AES-GCM suites only (RFC 9325, Section 4.2), HTTP/2 and HTTP/1.1. kp must not be nil.
//
// ClientCAs stays nil, so that the request for a certificate names no authorities: clients choose by them, and one
// with a self-signed certificate would send nothing (RFC 8705, Section 6.1). Chains are judged by Peer.VerifiedBy.
//
// What VerifyConnection refuses is only what can be told without state: too many or too large certificates, and keys
// that CheckPublicKey refuses. It runs, in TLS 1.2 and 1.3, before the client has shown that it holds the private key:
// nothing may be concluded, counted or logged there about the owner of a certificate. It also runs for resumed
// sessions, which VerifyPeerCertificate does not; the latter is not used.
//
// Session tickets are on. Their keys are random, live in the returned value and must not outlive a listener or be
// shared between two: make one configuration for each listener, and serve with NewListener, since http.Server.ServeTLS
// works on a copy.
func ServerConfig(kp *KeyPair, cc ClientCertificates) *tls.Config {
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS12,
		CipherSuites: []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
		},
		NextProtos:     []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return kp.Current(), nil },
		ClientAuth:     tls.NoClientCert,
	}
	if cc == ClientCertificatesRequested {
		cfg.ClientAuth = tls.RequestClientCert
		cfg.VerifyConnection = func(cs tls.ConnectionState) error { return checkPresented(cs.PeerCertificates) }
	}
	return cfg
}

// ClientConfig returns the configuration of a client that presents kp's certificate, or none when kp is nil, to
// servers whose chain leads to roots; nil roots mean those of the system. The certificate is sent whatever authorities
// the server names.
//
// It is one generation: the certificate is the one that is current now, and the session cache is its own. A session
// resumes with the certificate it began with, so a cache that outlived a renewal would show the old certificate;
// make a new configuration after a renewal.
func ClientConfig(kp *KeyPair, roots *x509.CertPool) *tls.Config {
	cfg := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		RootCAs:            roots,
		Renegotiation:      tls.RenegotiateNever,
		ClientSessionCache: tls.NewLRUClientSessionCache(sessionCacheSize),
	}
	if kp != nil {
		cert := kp.Current()
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	return cfg
}

// keyPolicy says which public keys are good enough, and cheap enough, to be checked.
type keyPolicy struct {
	curves         []elliptic.Curve
	minRSA, maxRSA int // bits of the modulus
}

// clientKeys leaves out P-521, of which one check costs as much as forty of P-256, and RSA that is slow to check.
var clientKeys = keyPolicy{curves: []elliptic.Curve{elliptic.P256(), elliptic.P384()}, minRSA: 2048, maxRSA: 4096}

// authorityKeys are wider: an operator chose these, not a stranger.
var authorityKeys = keyPolicy{
	curves: []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()}, minRSA: 2048, maxRSA: 8192,
}

// minRSAExponent is the least public exponent that FIPS 186-5, Section A.1.1 allows.
const minRSAExponent = 1<<16 + 1

// CheckPublicKey reports whether pub may be the key of a client: ECDSA on P-256 or P-384, Ed25519, or RSA of 2048 to
// 4096 bits with an odd exponent of at least 65537. Everything else is ErrUnacceptable: it is too weak (RFC 9325,
// Section 4.5) or so costly to check that presenting it would be an attack.
func CheckPublicKey(pub crypto.PublicKey) error {
	return checkKey(pub, clientKeys)
}

func checkKey(pub crypto.PublicKey, policy keyPolicy) error {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if k == nil || !slices.Contains(policy.curves, k.Curve) {
			return fmt.Errorf("%w: ECDSA key on a curve that is not allowed", ErrUnacceptable)
		}
		return nil
	case ed25519.PublicKey:
		if len(k) != ed25519.PublicKeySize {
			return fmt.Errorf("%w: malformed Ed25519 key", ErrUnacceptable)
		}
		return nil
	case *rsa.PublicKey:
		return checkRSA(k, policy)
	default:
		return fmt.Errorf("%w: public key of type %T", ErrUnacceptable, pub)
	}
}

func checkRSA(k *rsa.PublicKey, policy keyPolicy) error {
	if k == nil || k.N == nil {
		return fmt.Errorf("%w: malformed RSA key", ErrUnacceptable)
	}
	if bits := k.N.BitLen(); bits < policy.minRSA || bits > policy.maxRSA {
		return fmt.Errorf("%w: RSA key of %d bits, want %d to %d", ErrUnacceptable, bits, policy.minRSA, policy.maxRSA)
	}
	if k.E < minRSAExponent || k.E%2 == 0 {
		return fmt.Errorf("%w: RSA public exponent %d", ErrUnacceptable, k.E)
	}
	return nil
}
