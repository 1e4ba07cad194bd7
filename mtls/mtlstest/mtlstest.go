// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Package mtlstest makes certification authorities, certificates, servers and clients for tests of programs that use
// package mtls. All are thrown away with the test; nothing of it is for production.
//
// Museum has certificates with one defect each, and says of each what must become of it: whoever judges certificates can
// be walked through it.
package mtlstest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/certbound/certbound/mtls"
)

// CA is a certification authority with a P-256 key. It is safe for concurrent use.
type CA struct {
	cert  *x509.Certificate
	key   crypto.Signer
	chain [][]byte // DER of the authorities between a leaf and the root, nearest first
	root  *x509.Certificate
}

// NewCA returns a root that is valid from an hour ago for ten years and issues certificates itself.
func NewCA(tb testing.TB, name string) *CA {
	tb.Helper()
	key := NewKey(tb)
	template := authority(tb, name)
	cert := sign(tb, template, template, key.Public(), key)
	return &CA{cert: cert, key: key, root: cert}
}

// Intermediate returns an authority below ca. What it issues carries its certificate in the chain.
func (ca *CA) Intermediate(tb testing.TB, name string) *CA {
	tb.Helper()
	key := NewKey(tb)
	cert := sign(tb, authority(tb, name), ca.cert, key.Public(), ca.key)
	return &CA{cert: cert, key: key, chain: append([][]byte{cert.Raw}, ca.chain...), root: ca.root}
}

func authority(tb testing.TB, name string) *x509.Certificate {
	tb.Helper()
	now := time.Now()
	return &x509.Certificate{
		SerialNumber:          serial(tb),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.AddDate(10, 0, 0),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
}

// Certificate returns the certificate of the authority.
func (ca *CA) Certificate() *x509.Certificate { return ca.cert }

// Key returns the private key of the authority.
func (ca *CA) Key() crypto.Signer { return ca.key }

// Anchors returns anchors whose only root is the one above ca, with ca and what is between known.
func (ca *CA) Anchors(tb testing.TB) *mtls.Anchors {
	tb.Helper()
	config := mtls.AnchorsConfig{Roots: []*x509.Certificate{ca.root}}
	for _, der := range ca.chain {
		config.Intermediates = append(config.Intermediates, parse(tb, der))
	}
	anchors, err := mtls.NewAnchors(config)
	if err != nil {
		tb.Fatalf("mtlstest: anchors: %v", err)
	}
	return anchors
}

// Pool returns a pool that holds the root above ca.
func (ca *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.root)
	return pool
}

// Leaf says what a certificate shall hold. The zero value gives a client's certificate without any name but the
// common name "test", with a new P-256 key, valid from a minute ago for an hour.
type Leaf struct {
	CommonName  string     // "test" when empty; unused when Subject is given
	Subject     *pkix.Name // the whole subject
	RawSubject  []byte     // its DER, before Subject
	DNSNames    []string
	IPs         []net.IP
	URIs        []string
	Emails      []string
	NotBefore   time.Time          // a minute ago when zero
	NotAfter    time.Time          // an hour from now when zero
	Usage       []x509.ExtKeyUsage // clientAuth when nil; no extension when empty but not nil
	KeyUsage    x509.KeyUsage      // digitalSignature when zero
	IsCA        bool
	SignatureBy x509.SignatureAlgorithm // by the issuer's key when zero
	Key         crypto.Signer           // a new P-256 key when nil
	// ExtraExtensions are added as they are and take the place of those that would be made.
	ExtraExtensions []pkix.Extension
}

func (l Leaf) template(tb testing.TB) *x509.Certificate {
	tb.Helper()
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber:          serial(tb),
		Subject:               pkix.Name{CommonName: "test"},
		RawSubject:            l.RawSubject,
		NotBefore:             now.Add(-time.Minute),
		NotAfter:              now.Add(time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		IsCA:                  l.IsCA,
		DNSNames:              l.DNSNames,
		IPAddresses:           l.IPs,
		EmailAddresses:        l.Emails,
		SignatureAlgorithm:    l.SignatureBy,
		ExtraExtensions:       l.ExtraExtensions,
	}
	if l.CommonName != "" {
		t.Subject.CommonName = l.CommonName
	}
	if l.Subject != nil {
		t.Subject = *l.Subject
	}
	if !l.NotBefore.IsZero() {
		t.NotBefore = l.NotBefore
	}
	if !l.NotAfter.IsZero() {
		t.NotAfter = l.NotAfter
	}
	if l.Usage != nil {
		t.ExtKeyUsage = l.Usage
	}
	if l.KeyUsage != 0 {
		t.KeyUsage = l.KeyUsage
	}
	for _, raw := range l.URIs {
		u, err := url.Parse(raw)
		if err != nil {
			tb.Fatalf("mtlstest: parse URI: %v", err)
		}
		t.URIs = append(t.URIs, u)
	}
	return t
}

// Issue returns a certificate issued by ca, with its private key, its Leaf parsed, and the chain up to but without the
// root.
func (ca *CA) Issue(tb testing.TB, leaf Leaf) tls.Certificate {
	tb.Helper()
	key := leaf.key(tb)
	cert := sign(tb, leaf.template(tb), ca.cert, key.Public(), ca.key)
	return tls.Certificate{
		Certificate: append([][]byte{cert.Raw}, ca.chain...),
		PrivateKey:  key,
		Leaf:        cert,
	}
}

// SelfSigned returns a certificate that vouches for itself, with its private key and its Leaf parsed.
func SelfSigned(tb testing.TB, leaf Leaf) tls.Certificate {
	tb.Helper()
	key := leaf.key(tb)
	template := leaf.template(tb)
	cert := sign(tb, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

// ServerLeaf is a leaf for a server on this machine: localhost, 127.0.0.1 and ::1.
func ServerLeaf() Leaf {
	return Leaf{
		CommonName: "localhost",
		DNSNames:   []string{"localhost"},
		IPs:        []net.IP{net.IPv4(127, 0, 0, 1).To4(), net.IPv6loopback},
		Usage:      []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
}

func (l Leaf) key(tb testing.TB) crypto.Signer {
	tb.Helper()
	if l.Key != nil {
		return l.Key
	}
	return NewKey(tb)
}

// NewKey returns a new P-256 key.
func NewKey(tb testing.TB) crypto.Signer {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatalf("mtlstest: generate key: %v", err)
	}
	return key
}

func serial(tb testing.TB) *big.Int {
	tb.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 126))
	if err != nil {
		tb.Fatalf("mtlstest: serial number: %v", err)
	}
	return n.Add(n, big.NewInt(1))
}

func sign(tb testing.TB, template, parent *x509.Certificate, pub crypto.PublicKey, by crypto.Signer) *x509.Certificate {
	tb.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, by)
	if err != nil {
		tb.Fatalf("mtlstest: create certificate: %v", err)
	}
	return parse(tb, der)
}

func parse(tb testing.TB, der []byte) *x509.Certificate {
	tb.Helper()
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatalf("mtlstest: parse certificate: %v", err)
	}
	return cert
}

// PeerOf returns the peer that presents cert with its chain, as a completed handshake would give it; nil for an empty
// cert. cert.Leaf must be set, as it is by Issue and SelfSigned.
func PeerOf(cert tls.Certificate) *mtls.Peer {
	if len(cert.Certificate) == 0 {
		return nil
	}
	var intermediates []*x509.Certificate
	for _, der := range cert.Certificate[1:] {
		if c, err := x509.ParseCertificate(der); err == nil {
			intermediates = append(intermediates, c)
		}
	}
	return mtls.NewPeer(cert.Leaf, intermediates...)
}

// Running is an HTTPS server that serves.
type Running struct {
	URL    string       // "https://127.0.0.1:PORT", without a slash at the end
	Addr   string       // "127.0.0.1:PORT"
	Config *tls.Config  // what the listener uses
	HTTP   *http.Server // the server, already serving
}

// Server starts a server of handler on a free port of 127.0.0.1, over mtls.NewListener and mtls.ConfigureServer, and
// closes it when the test ends. See ServerLeaf for a certificate that fits.
func Server(tb testing.TB, handler http.Handler, cert tls.Certificate, cc mtls.ClientCertificates) *Running {
	tb.Helper()
	return StartServer(tb, &http.Server{Handler: handler}, cert, cc)
}

// StartServer is Server for a server with settings of its own.
func StartServer(tb testing.TB, srv *http.Server, cert tls.Certificate, cc mtls.ClientCertificates) *Running {
	tb.Helper()
	kp, err := mtls.NewKeyPair(cert)
	if err != nil {
		tb.Fatalf("mtlstest: key pair: %v", err)
	}
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatalf("mtlstest: listen: %v", err)
	}
	cfg := mtls.ServerConfig(kp, cc)
	if srv.ErrorLog == nil {
		srv.ErrorLog = log.New(io.Discard, "", 0)
	}
	mtls.ConfigureServer(srv, cfg)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(mtls.NewListener(inner, cfg)) // always http.ErrServerClosed, by the cleanup below
	}()
	tb.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
	addr := inner.Addr().String()
	return &Running{URL: "https://" + addr, Addr: addr, Config: cfg, HTTP: srv}
}

// Client returns a client that trusts roots, presents cert unless it is nil, speaks HTTP/2 where the server does, and
// closes its connections when the test ends.
func Client(tb testing.TB, roots *x509.CertPool, cert *tls.Certificate) *http.Client {
	tb.Helper()
	var kp *mtls.KeyPair
	if cert != nil {
		var err error
		if kp, err = mtls.NewKeyPair(*cert); err != nil {
			tb.Fatalf("mtlstest: key pair: %v", err)
		}
	}
	transport := &http.Transport{TLSClientConfig: mtls.ClientConfig(kp, roots), ForceAttemptHTTP2: true}
	tb.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 30 * time.Second}
}
