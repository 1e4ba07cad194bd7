// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package mtls_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
)

var versions = map[string]uint16{"TLS 1.2": tls.VersionTLS12, "TLS 1.3": tls.VersionTLS13}

// countingListener counts what is read from its connections.
type countingListener struct {
	net.Listener
	read *atomic.Int64
}

type countingConn struct {
	net.Conn
	read *atomic.Int64
}

func (l countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return countingConn{c, l.read}, err
}

func (c countingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.read.Add(int64(n))
	return n, err
}

// handshake is what a server saw of one connection.
type handshake struct {
	err   error // of the handshake
	after error // of the first read after it
	state tls.ConnectionState
	read  int64
}

// accept serves one connection, without HTTP, and delivers what it saw of it.
func accept(tb testing.TB, ca *mtlstest.CA) (addr string, result <-chan handshake) {
	tb.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = inner.Close() })
	kp, err := mtls.NewKeyPair(ca.Issue(tb, mtlstest.ServerLeaf()))
	if err != nil {
		tb.Fatal(err)
	}
	read := new(atomic.Int64)
	l := mtls.NewListener(countingListener{inner, read}, mtls.ServerConfig(kp, mtls.ClientCertificatesRequested))
	results := make(chan handshake, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			results <- handshake{err: err}
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		tc := c.(*tls.Conn)
		h := handshake{err: tc.Handshake(), read: read.Load()}
		if h.err == nil {
			h.state = tc.ConnectionState()
			if _, h.after = io.ReadFull(tc, make([]byte, 1)); h.after == nil {
				_, h.after = tc.Write([]byte("y"))
			}
		}
		results <- h
	}()
	return inner.Addr().String(), results
}

// dial makes one connection with cfg, tries to use it, and returns what either side saw.
func dial(tb testing.TB, cfg *tls.Config) (server handshake, client error) {
	tb.Helper()
	ca := mtlstest.NewCA(tb, "ca")
	addr, result := accept(tb, ca)
	cfg = cfg.Clone()
	cfg.RootCAs = ca.Pool()
	cfg.ServerName = "localhost"
	raw, err := net.Dial("tcp", addr)
	if err != nil {
		tb.Fatal(err)
	}
	c := tls.Client(raw, cfg)
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if client = c.Handshake(); client == nil {
		_, _ = c.Write([]byte("x"))
		_, client = io.ReadFull(c, make([]byte, 1))
	}
	return <-result, client
}

// presents returns the configuration of a client that presents cert, whatever is asked for.
func presents(cert tls.Certificate, version uint16) *tls.Config {
	return &tls.Config{
		MinVersion: version, MaxVersion: version,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil },
	}
}

// TLS-01: RFC 9325, Section 3.1.1 and RFC 8705, Section 7.3: TLS 1.0 and 1.1 are not negotiated.
func TestRFC9325_3_1_1_OldVersions(t *testing.T) {
	t.Parallel()
	for _, version := range []uint16{tls.VersionTLS10, tls.VersionTLS11} {
		server, client := dial(t, &tls.Config{MinVersion: version, MaxVersion: version})
		if server.err == nil || client == nil || !strings.Contains(client.Error(), "protocol version") {
			t.Errorf("%s: server %v, client %v; want protocol_version", tls.VersionName(version), server.err, client)
		}
	}
}

// TLS-02: FAPI 2.0 Security Profile, Section 5.2.2 and RFC 9325, Section 4.2: with TLS 1.2 only the four ECDHE AES-GCM
// suites are negotiated.
func TestFAPI2_5_2_2_CipherSuites(t *testing.T) {
	t.Parallel()
	for _, suite := range slices.Concat(tls.CipherSuites(), tls.InsecureCipherSuites()) {
		if !slices.Contains(suite.SupportedVersions, tls.VersionTLS12) || !strings.Contains(suite.Name, "ECDSA") {
			continue
		}
		t.Run(suite.Name, func(t *testing.T) {
			t.Parallel()
			server, client := dial(t, &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{suite.ID}})
			if strings.Contains(suite.Name, "_GCM_") {
				if server.err != nil || server.state.CipherSuite != suite.ID {
					t.Errorf("refused: %v", server.err)
				}
				return
			}
			if server.err == nil || client == nil || !strings.Contains(client.Error(), "handshake failure") {
				t.Errorf("server %v, client %v; want handshake_failure", server.err, client)
			}
		})
	}
}

// TLS-03: RFC 9325, Section 3.1.1: a client that can do both gets TLS 1.3.
func TestRFC9325_3_1_1_TLS13Preferred(t *testing.T) {
	t.Parallel()
	server, client := dial(t, &tls.Config{MinVersion: tls.VersionTLS12})
	if server.err != nil || client != nil || server.state.Version != tls.VersionTLS13 {
		t.Errorf("version %x, server %v, client %v", server.state.Version, server.err, client)
	}
}

// recorder keeps what was read and written on a connection.
type recorder struct {
	net.Conn
	read, written bytes.Buffer
}

func (r *recorder) Read(b []byte) (int, error) {
	n, err := r.Conn.Read(b)
	r.read.Write(b[:n])
	return n, err
}

func (r *recorder) Write(b []byte) (int, error) {
	r.written.Write(b)
	return r.Conn.Write(b)
}

// TLS-04: RFC 9325, Section 3.5: a client that asks to renegotiate TLS 1.2, and so might change its certificate, is
// refused.
func TestRFC9325_3_5_Renegotiation(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "ca")
	addr, result := accept(t, ca)
	raw, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	rec := &recorder{Conn: raw}
	var keyLog bytes.Buffer
	c := tls.Client(rec, &tls.Config{
		RootCAs: ca.Pool(), ServerName: "localhost", MaxVersion: tls.VersionTLS12, KeyLogWriter: &keyLog,
		CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
	})
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	hello := rec.written.Bytes()
	hello = hello[5 : 5+binary.BigEndian.Uint16(hello[3:5])]
	if _, err := raw.Write(sealTLS12(t, keyLog.String(), rec.read.Bytes()[11:43], hello)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "remote error: tls: unexpected message") {
		t.Errorf("client: %v, want an alert", err)
	}
	if h := <-result; h.err != nil || h.after == nil || errors.Is(h.after, io.EOF) {
		t.Errorf("server: handshake %v, after it %v; want the connection broken off", h.err, h.after)
	}
}

// sealTLS12 returns the record by which a client, after its Finished, sends message under
// TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 (RFC 5246, Section 6; RFC 5288).
func sealTLS12(tb testing.TB, keyLog string, serverRandom, message []byte) []byte {
	tb.Helper()
	fields := strings.Fields(keyLog) // CLIENT_RANDOM, the random, the master secret
	clientRandom, err1 := hex.DecodeString(fields[1])
	master, err2 := hex.DecodeString(fields[2])
	if err1 != nil || err2 != nil {
		tb.Fatal(err1, err2)
	}
	mac := func(parts ...[]byte) []byte {
		h := hmac.New(sha256.New, master)
		h.Write(slices.Concat(parts...))
		return h.Sum(nil)
	}
	seed := slices.Concat([]byte("key expansion"), serverRandom, clientRandom)
	a1 := mac(seed)
	a2 := mac(a1)
	block := slices.Concat(mac(a1, seed), mac(a2, seed)) // client key 16, server key 16, client IV 4, server IV 4
	key, err := aes.NewCipher(block[:16])
	if err != nil {
		tb.Fatal(err)
	}
	aead, err := cipher.NewGCM(key)
	if err != nil {
		tb.Fatal(err)
	}
	sequence := []byte{0, 0, 0, 0, 0, 0, 0, 1}
	head := []byte{22, 3, 3}
	length := func(n int) []byte { return binary.BigEndian.AppendUint16(nil, uint16(n)) }
	sealed := aead.Seal(nil, slices.Concat(block[32:36], sequence), message,
		slices.Concat(sequence, head, length(len(message))))
	return slices.Concat(head, length(len(sequence)+len(sealed)), sequence, sealed)
}

// TLS-05: RFC 8446, Section 2.3 and Appendix E.5: early data is not accepted.
func TestRFC8446_2_3_EarlyData(t *testing.T) {
	t.Parallel()
	near, far := net.Pipe()
	go func() {
		_ = tls.Client(near, &tls.Config{ServerName: "localhost"}).Handshake()
		_ = near.Close()
	}()
	hello := make([]byte, 16<<10)
	n, err := io.ReadAtLeast(far, hello, 5)
	if err != nil {
		t.Fatal(err)
	}
	_ = far.Close()
	hello = slices.Concat(hello[:n], []byte{0, 42, 0, 0}) // the extension early_data, empty
	addLength(hello[3:5], 4)
	addLength(hello[7:9], 4)
	at := 43 + 1 + int(hello[43])
	at += 2 + int(binary.BigEndian.Uint16(hello[at:]))
	at += 1 + int(hello[at])
	addLength(hello[at:at+2], 4)

	addr, result := accept(t, mtlstest.NewCA(t, "ca"))
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write(hello); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 7)
	if _, err := io.ReadFull(c, answer); err != nil {
		t.Fatal(err)
	}
	if want := []byte{21, 3, 3, 0, 2, 2, 110}; answer[0] != 21 || answer[6] != want[6] {
		t.Errorf("answer %x, want the alert unsupported_extension", answer)
	}
	if h := <-result; h.err == nil {
		t.Error("the handshake went through")
	}
}

func addLength(b []byte, n uint16) {
	binary.BigEndian.PutUint16(b, binary.BigEndian.Uint16(b)+n)
}

// whoami answers with the thumbprint of the peer, its address in memory, and whether the session was resumed.
func whoami(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	p, err := mtls.PeerFromRequest(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusUnauthorized)
		return
	}
	fmt.Fprintf(w, "%s %p %t %s", p.Thumbprint(), p, r.TLS.DidResume, r.Proto)
}

// whoamiOf answers as whoami does and keeps every peer until the test ends: the address of one that was collected may
// be given to the next.
func whoamiOf(tb testing.TB) http.Handler {
	var mu sync.Mutex
	var peers []*mtls.Peer
	tb.Cleanup(func() { runtime.KeepAlive(&peers) })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p, err := mtls.PeerFromRequest(r); err == nil {
			mu.Lock()
			peers = append(peers, p)
			mu.Unlock()
		}
		whoami(w, r)
	})
}

type seen struct {
	thumbprint, pointer, resumed, proto string
}

// ask sends a request with a body to whoami.
func ask(tb testing.TB, c *http.Client, url, body string) seen {
	tb.Helper()
	req, err := http.NewRequestWithContext(tb.Context(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		tb.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		tb.Error(err)
		return seen{}
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	fields := strings.Fields(string(answer))
	if err != nil || resp.StatusCode != http.StatusOK || len(fields) != 4 {
		tb.Errorf("%s %q, %v", resp.Status, answer, err)
		return seen{}
	}
	return seen{fields[0], fields[1], fields[2], fields[3]}
}

// client returns a client of one TLS version and, unless http2, of HTTP/1.1.
func client(tb testing.TB, ca *mtlstest.CA, cert tls.Certificate, version uint16, http2 bool) *http.Client {
	tb.Helper()
	c := mtlstest.Client(tb, ca.Pool(), &cert)
	transport := c.Transport.(*http.Transport)
	transport.ForceAttemptHTTP2 = http2
	transport.TLSClientConfig.MinVersion = version
	transport.TLSClientConfig.MaxVersion = version
	return c
}

// TLS-06: RFC 8705, Section 6.1: a client with a self-signed certificate can connect: no authorities are named to it,
// its chain is not judged in the handshake, and the request sees its certificate.
func TestRFC8705_6_1_SelfSigned(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "ca")
	srv := mtlstest.Server(t, http.HandlerFunc(whoami), ca.Issue(t, mtlstest.ServerLeaf()), mtls.ClientCertificatesRequested)
	for name, version := range versions {
		cert := mtlstest.SelfSigned(t, mtlstest.Leaf{NotAfter: time.Now().Add(-time.Second)})
		c := client(t, ca, cert, version, true)
		cfg := c.Transport.(*http.Transport).TLSClientConfig
		get := cfg.GetClientCertificate
		named := -1
		cfg.GetClientCertificate = func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			named = len(info.AcceptableCAs)
			return get(info)
		}
		got := ask(t, c, srv.URL, "")
		if want := mtls.ThumbprintOf(cert.Leaf).String(); got.thumbprint != want || named != 0 {
			t.Errorf("%s: thumbprint %s, want %s; %d authorities named, want 0", name, got.thumbprint, want, named)
		}
	}
}

// padded returns a certificate of about size bytes.
func padded(tb testing.TB, ca *mtlstest.CA, size int) []byte {
	tb.Helper()
	junk, err := asn1.Marshal(make([]byte, size))
	if err != nil {
		tb.Fatal(err)
	}
	leaf := mtlstest.Leaf{ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: junk}}}
	return ca.Issue(tb, leaf).Certificate[0]
}

// TLS-12: RFC 8705, Section 7 and RFC 8446, Section 4.4.2: how many certificates, and how many bytes of them, a client
// may send is bounded, and so is all that is read before a request.
func TestRFC8446_4_4_2_ChainBounds(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "ca")
	leaf := ca.Issue(t, mtlstest.Leaf{})
	small := ca.Certificate().Raw
	chain := func(others ...[]byte) tls.Certificate {
		return tls.Certificate{Certificate: append([][]byte{leaf.Certificate[0]}, others...), PrivateKey: leaf.PrivateKey}
	}
	for name, tc := range map[string]struct {
		cert tls.Certificate
		want error
	}{
		"alone":             {chain(), nil},
		"four":              {chain(small, small, small), nil},
		"7 KiB":             {chain(padded(t, ca, 6<<10)), nil},
		"five":              {chain(small, small, small, small), mtls.ErrUnacceptable},
		"a hundred":         {chain(slices.Repeat([][]byte{{0x30, 0}}, 100)...), errAny},
		"9 KiB":             {chain(padded(t, ca, 8<<10)), mtls.ErrUnacceptable},
		"9 KiB, two":        {chain(padded(t, ca, 4<<10), padded(t, ca, 4<<10)), mtls.ErrUnacceptable},
		"12 KiB":            {chain(padded(t, ca, 12<<10)), errTooMuch},
		"60 KiB":            {chain(padded(t, ca, 60<<10)), errTooMuch},
		"60 KiB, four":      {chain(padded(t, ca, 20<<10), padded(t, ca, 20<<10), padded(t, ca, 20<<10)), errTooMuch},
		"2 MB":              {chain(slices.Repeat([][]byte{padded(t, ca, 40<<10)}, 50)...), errAny},
		"60 KiB as a leaf":  {tls.Certificate{Certificate: [][]byte{padded(t, ca, 60<<10)}, PrivateKey: leaf.PrivateKey}, errTooMuch},
		"9 KiB as a leaf":   {tls.Certificate{Certificate: [][]byte{padded(t, ca, 9<<10)}, PrivateKey: leaf.PrivateKey}, mtls.ErrUnacceptable},
		"not a certificate": {chain([]byte{0x30, 0}), errAny},
	} {
		for version, number := range versions {
			t.Run(name+" "+version, func(t *testing.T) {
				t.Parallel()
				server, clientErr := dial(t, presents(tc.cert, number))
				if server.read > mtls.MaxHandshakeBytes {
					t.Errorf("%d bytes read before the handshake ended", server.read)
				}
				switch tc.want {
				case nil:
					if server.err != nil || clientErr != nil {
						t.Fatalf("server %v, then %v, client %v", server.err, server.after, clientErr)
					}
				case errAny, errTooMuch:
					if server.err == nil || clientErr == nil {
						t.Errorf("server %v, client %v; want both to fail", server.err, clientErr)
					}
				default:
					wantErr(t, server.err, tc.want)
				}
				if tc.want == errAny {
					return
				}
				if tooMuch := server.err != nil && strings.Contains(server.err.Error(), errTooMuch.Error()); tooMuch != (tc.want == errTooMuch) {
					t.Errorf("server %v, want %v", server.err, tc.want)
				}
			})
		}
	}
}

var (
	errAny     = errors.New("any error")
	errTooMuch = errors.New("too many bytes in the handshake")
)

// TLS-13: RFC 9325, Section 4.5: a certificate with a weak key, or one costly to check, is refused in the handshake
// before its key is used. None of these clients could have signed with it.
func TestRFC9325_4_5_KeysInTheHandshake(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "ca")
	keys := unacceptableKeys(t)
	keys["RSA-16384"] = fakeRSA(t, 16384, 65537)
	for name, pub := range keys {
		cert := forged(t, &x509.Certificate{}, ca.Certificate(), pub, ca.Key())
		presented := tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: mtlstest.NewKey(t)}
		for version, number := range versions {
			t.Run(name+" "+version, func(t *testing.T) {
				t.Parallel()
				server, clientErr := dial(t, presents(presented, number))
				if clientErr == nil {
					t.Error("the client noticed nothing")
				}
				if name == "RSA-16384" { // crypto/tls refuses it before we are asked
					wantErr(t, clientErr, clientErr)
					if server.err == nil || !strings.Contains(server.err.Error(), "larger than 8192 bits") {
						t.Errorf("server: %v", server.err)
					}
					return
				}
				wantErr(t, server.err, mtls.ErrUnacceptable)
			})
		}
	}
}

// liar presents a certificate without holding its key: it signs with another.
type liar struct {
	crypto.Signer // what signs
	public        crypto.PublicKey
}

func (l liar) Public() crypto.PublicKey { return l.public }

// CB-01: RFC 8705, Section 3: a certificate is public; who cannot sign with its key does not get past the handshake, and
// is seen before that to be no more than somebody who shows it.
func TestRFC8705_3_Possession(t *testing.T) {
	t.Parallel()
	victim := mtlstest.NewCA(t, "ca").Issue(t, mtlstest.Leaf{})
	stolen := tls.Certificate{
		Certificate: victim.Certificate, PrivateKey: liar{mtlstest.NewKey(t), victim.Leaf.PublicKey},
	}
	for name, version := range versions {
		server, _ := dial(t, presents(stolen, version))
		if server.err == nil || !strings.Contains(server.err.Error(), "signature") {
			t.Errorf("%s: handshake error %v, want a bad signature", name, server.err)
		}
	}
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{victim.Leaf}}
	if p, err := mtls.PeerFromRequest(r); p != nil || !errors.Is(err, mtls.ErrNotTLS) {
		t.Errorf("before the handshake ended: %v, %v", p, err)
	}
}

func TestRSAClient(t *testing.T) {
	t.Parallel()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	cert := mtlstest.SelfSigned(t, mtlstest.Leaf{Key: key})
	for name, version := range versions {
		server, clientErr := dial(t, presents(cert, version))
		if server.err != nil || clientErr != nil || len(server.state.PeerCertificates) != 1 {
			t.Errorf("%s: server %v, client %v", name, server.err, clientErr)
		}
	}
}

// TLS-12: a connection that says nothing, or stops within its handshake, is closed when the time for a header is over,
// and the server goes on.
func TestSilentHandshake(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "ca")
	srv := mtlstest.StartServer(t, &http.Server{Handler: http.HandlerFunc(whoami), ReadHeaderTimeout: 200 * time.Millisecond},
		ca.Issue(t, mtlstest.ServerLeaf()), mtls.ClientCertificatesRequested)
	for name, sent := range map[string]string{"nothing": "", "half a record": "\x16\x03\x01\x01\x00\x01"} {
		c, err := net.Dial("tcp", srv.Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = io.WriteString(c, sent)
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.Copy(io.Discard, c); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Errorf("%s: %v, want the connection closed", name, err)
		}
	}
	cert := mtlstest.SelfSigned(t, mtlstest.Leaf{})
	if got := ask(t, client(t, ca, cert, tls.VersionTLS13, true), srv.URL, ""); got.thumbprint == "" {
		t.Error("the server does not answer any more")
	}
}

// TLS-14: RFC 8705, Section 2: HTTP/1.1 and HTTP/2 give the same identity; requests of interleaved connections each see
// their own certificate, those of one connection share one Peer, and the bound on the handshake does not touch what
// comes after it.
func TestRFC8705_2_IdentityOfEachConnection(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "ca")
	srv := mtlstest.Server(t, whoamiOf(t), ca.Issue(t, mtlstest.ServerLeaf()), mtls.ClientCertificatesRequested)
	body := strings.Repeat("x", 1<<20)
	var wg sync.WaitGroup
	var mu sync.Mutex
	owners := map[string]string{} // Peer to thumbprint
	for i := range 8 {
		cert := mtlstest.SelfSigned(t, mtlstest.Leaf{CommonName: fmt.Sprint(i)})
		version, http2 := uint16(tls.VersionTLS12+i%2), i/2%2 == 0
		c := client(t, ca, cert, version, http2)
		wg.Go(func() {
			var first seen
			for n := range 5 {
				got := ask(t, c, srv.URL, body)
				if n == 0 {
					first = got
				}
				if got != first || got.thumbprint != mtls.ThumbprintOf(cert.Leaf).String() {
					t.Errorf("client %d saw %v and then %v", i, first, got)
				}
				if (got.proto == "HTTP/2.0") != http2 {
					t.Errorf("client %d speaks %s", i, got.proto)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			if other, ok := owners[first.pointer]; ok && other != first.thumbprint {
				t.Errorf("one Peer for two certificates")
			}
			owners[first.pointer] = first.thumbprint
		})
	}
	wg.Wait()
	if len(owners) != 8 {
		t.Errorf("%d peers, want 8", len(owners))
	}
}

// TLS-14: many streams at once on one HTTP/2 connection share one Peer.
func TestHolderIsFilledOnce(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "ca")
	srv := mtlstest.Server(t, whoamiOf(t), ca.Issue(t, mtlstest.ServerLeaf()), mtls.ClientCertificatesRequested)
	c := client(t, ca, mtlstest.SelfSigned(t, mtlstest.Leaf{}), tls.VersionTLS13, true)
	first := ask(t, c, srv.URL, "")
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if got := ask(t, c, srv.URL, ""); got != first {
				t.Errorf("saw %v, want %v", got, first)
			}
		})
	}
	wg.Wait()
}

// TLS-14: a resumed session has the identity of the session it resumes, in TLS 1.2 and 1.3, over HTTP/1.1 and HTTP/2,
// on a connection, and so with a Peer, of its own.
func TestRFC8446_2_2_Resumption(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "ca")
	srv := mtlstest.Server(t, whoamiOf(t), ca.Issue(t, mtlstest.ServerLeaf()), mtls.ClientCertificatesRequested)
	for name, version := range versions {
		for _, http2 := range []bool{false, true} {
			cert := ca.Intermediate(t, "sub").Issue(t, mtlstest.Leaf{})
			c := client(t, ca, cert, version, http2)
			first := ask(t, c, srv.URL, "")
			c.CloseIdleConnections()
			second := ask(t, c, srv.URL, "")
			if first.resumed != "false" || second.resumed != "true" {
				t.Errorf("%s, HTTP/2 %t: resumed %s, then %s", name, http2, first.resumed, second.resumed)
			}
			if first.thumbprint != mtls.ThumbprintOf(cert.Leaf).String() || second.thumbprint != first.thumbprint {
				t.Errorf("%s, HTTP/2 %t: thumbprint %s, then %s", name, http2, first.thumbprint, second.thumbprint)
			}
			if first.pointer == second.pointer {
				t.Errorf("%s, HTTP/2 %t: one Peer for two connections", name, http2)
			}
		}
	}
}

// A renewed certificate is presented by a new configuration only, and its sessions are its own: it never resumes as
// the old certificate.
func TestClientConfigIsOneGeneration(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "ca")
	srv := mtlstest.Server(t, http.HandlerFunc(whoami), ca.Issue(t, mtlstest.ServerLeaf()), mtls.ClientCertificatesRequested)
	before, after := ca.Issue(t, mtlstest.Leaf{}), ca.Issue(t, mtlstest.Leaf{})
	kp, err := mtls.NewKeyPair(before)
	if err != nil {
		t.Fatal(err)
	}
	send := func(cfg *tls.Config) seen {
		transport := &http.Transport{TLSClientConfig: cfg}
		defer transport.CloseIdleConnections()
		return ask(t, &http.Client{Transport: transport}, srv.URL, "")
	}
	one := mtls.ClientConfig(kp, ca.Pool())
	send(one)
	if err := kp.Replace(after); err != nil {
		t.Fatal(err)
	}
	if got := send(one); got.thumbprint != mtls.ThumbprintOf(before.Leaf).String() || got.resumed != "true" {
		t.Errorf("the first generation showed %v", got)
	}
	if got, err := one.GetClientCertificate(nil); err != nil || got.Leaf != nil && got.Leaf.Equal(after.Leaf) {
		t.Errorf("the first generation presents the second's certificate, %v", err)
	}
	if got := send(mtls.ClientConfig(kp, ca.Pool())); got.thumbprint != mtls.ThumbprintOf(after.Leaf).String() || got.resumed != "false" {
		t.Errorf("the second generation showed %v", got)
	}
}

// A server's new certificate is shown from the next handshake on, without a restart.
func TestServerShowsTheCurrentCertificate(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "ca")
	first, second := ca.Issue(t, mtlstest.ServerLeaf()), ca.Issue(t, mtlstest.ServerLeaf())
	kp, err := mtls.NewKeyPair(first)
	if err != nil {
		t.Fatal(err)
	}
	cfg := mtls.ServerConfig(kp, mtls.ClientCertificatesIgnored)
	for _, want := range []tls.Certificate{first, second} {
		if err := kp.Replace(want); err != nil {
			t.Fatal(err)
		}
		got, err := cfg.GetCertificate(nil)
		if err != nil || !slices.Equal(got.Certificate[0], want.Certificate[0]) {
			t.Errorf("another certificate, %v", err)
		}
	}
}

// TLS-15: RFC 9110, Section 7.4: what the request says of host and names has no say in who the peer is, nor have other
// certificates of the chain.
func TestRFC9110_7_4_IdentityIsTheConnections(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "ca")
	srv := mtlstest.Server(t, http.HandlerFunc(whoami), ca.Issue(t, mtlstest.ServerLeaf()), mtls.ClientCertificatesRequested)
	cert := ca.Issue(t, mtlstest.Leaf{})
	cert.Certificate = append(cert.Certificate, ca.Issue(t, mtlstest.Leaf{}).Certificate[0])
	c := client(t, ca, cert, tls.VersionTLS13, false)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "other.example"
	req.Header.Set("Client-Cert", ":AAAA:")
	req.Header.Set("X-Forwarded-Client-Cert", "Hash=00")
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || !strings.HasPrefix(string(answer), mtls.ThumbprintOf(cert.Leaf).String()) {
		t.Errorf("%s, %v", answer, err)
	}
}

func TestPeerFromRequest(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "ca")
	leaf := ca.Issue(t, mtlstest.Leaf{}).Leaf
	state := func(certs ...*x509.Certificate) *tls.ConnectionState {
		return &tls.ConnectionState{HandshakeComplete: true, PeerCertificates: certs}
	}
	weak := forged(t, &x509.Certificate{}, ca.Certificate(), fakeRSA(t, 1024, 65537), ca.Key())
	for name, tc := range map[string]struct {
		state *tls.ConnectionState
		want  error
	}{
		"plain HTTP":       {nil, mtls.ErrNotTLS},
		"no certificate":   {state(), mtls.ErrNoCertificate},
		"certificate":      {state(leaf), nil},
		"chain":            {state(leaf, ca.Certificate()), nil},
		"too many":         {state(leaf, leaf, leaf, leaf, leaf), mtls.ErrUnacceptable},
		"unacceptable key": {state(weak), mtls.ErrUnacceptable},
	} {
		for _, with := range []bool{false, true} {
			r := httptest.NewRequest(http.MethodGet, "/", nil)
			r.TLS = tc.state
			if with {
				r = r.WithContext(mtls.ConnContext(r.Context(), nil))
			}
			p, err := mtls.PeerFromRequest(r)
			again, _ := mtls.PeerFromRequest(r)
			wantErr(t, err, tc.want)
			if (p == nil) != (tc.want != nil) || (p != nil && p.Certificate() != leaf) {
				t.Errorf("%s: peer %v", name, p)
			}
			if with && p != again {
				t.Errorf("%s: the holder was filled twice", name)
			}
			if name == "chain" && (len(p.Intermediates()) != 1 || p.Intermediates()[0] != ca.Certificate()) {
				t.Error("the chain's second certificate is not its intermediate")
			}
		}
	}
}

// A server that ignores client certificates does not ask for one.
func TestClientCertificatesIgnored(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "ca")
	srv := mtlstest.Server(t, http.HandlerFunc(whoami), ca.Issue(t, mtlstest.ServerLeaf()), mtls.ClientCertificatesIgnored)
	c := client(t, ca, ca.Issue(t, mtlstest.Leaf{}), tls.VersionTLS13, true)
	c.Transport.(*http.Transport).TLSClientConfig.GetClientCertificate =
		func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			t.Error("a certificate was asked for")
			return &tls.Certificate{}, nil
		}
	resp, err := c.Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusUnauthorized || !strings.Contains(string(body), "no certificate") {
		t.Errorf("%s %s", resp.Status, body)
	}
}

// A client without roots of its own trusts the system's, and without a key pair presents nothing.
func TestClientConfigWithoutKeyPair(t *testing.T) {
	t.Parallel()
	cfg := mtls.ClientConfig(nil, nil)
	if cfg.GetClientCertificate != nil || cfg.Certificates != nil || cfg.RootCAs != nil || cfg.InsecureSkipVerify {
		t.Error("unexpected settings")
	}
	if cfg.MinVersion != tls.VersionTLS12 || cfg.ClientSessionCache == mtls.ClientConfig(nil, nil).ClientSessionCache {
		t.Error("old versions, or one session cache for two")
	}
}

// TLS-12: a header above the bound is refused, and a long one below it goes through behind a long chain.
func TestHeaderBound(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "ca")
	srv := mtlstest.Server(t, http.HandlerFunc(whoami), ca.Issue(t, mtlstest.ServerLeaf()), mtls.ClientCertificatesRequested)
	cert := ca.Issue(t, mtlstest.Leaf{})
	cert.Certificate = append(cert.Certificate, padded(t, ca, 6<<10))
	for _, http2 := range []bool{false, true} {
		for size, want := range map[int]int{mtls.MaxHeaderBytes - 1024: http.StatusOK, 3 * mtls.MaxHeaderBytes: http.StatusRequestHeaderFieldsTooLarge} {
			c := client(t, ca, cert, tls.VersionTLS13, http2)
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL, strings.NewReader(strings.Repeat("x", 1<<20)))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("X-Long", strings.Repeat("x", size))
			resp, err := c.Do(req)
			if err != nil {
				if want == http.StatusOK || !http2 {
					t.Errorf("HTTP/2 %t, %d bytes: %v", http2, size, err)
				}
				continue
			}
			_ = resp.Body.Close()
			if resp.StatusCode != want {
				t.Errorf("HTTP/2 %t, %d bytes: %s, want %d", http2, size, resp.Status, want)
			}
		}
	}
}

// What a server has set of its own stays, and is called beside ours.
func TestConfigureServerKeepsWhatIsSet(t *testing.T) {
	t.Parallel()
	type key struct{}
	var states atomic.Int64
	srv := &http.Server{
		MaxHeaderBytes: 1, ReadHeaderTimeout: 2, IdleTimeout: 3,
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context { return context.WithValue(ctx, key{}, true) },
		ConnState:   func(net.Conn, http.ConnState) { states.Add(1) },
	}
	kp, err := mtls.NewKeyPair(mtlstest.SelfSigned(t, mtlstest.ServerLeaf()))
	if err != nil {
		t.Fatal(err)
	}
	mtls.ConfigureServer(srv, mtls.ServerConfig(kp, mtls.ClientCertificatesRequested))
	if srv.MaxHeaderBytes != 1 || srv.ReadHeaderTimeout != 2 || srv.IdleTimeout != 3 {
		t.Error("settings were overwritten")
	}
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	if srv.ConnContext(t.Context(), near).Value(key{}) == nil {
		t.Error("the server's ConnContext is not called")
	}
	srv.ConnState(near, http.StateActive)
	if states.Load() != 1 {
		t.Error("the server's ConnState is not called")
	}
	unset := &http.Server{}
	mtls.ConfigureServer(unset, mtls.ServerConfig(kp, mtls.ClientCertificatesRequested))
	if !slices.Contains(unset.TLSConfig.NextProtos, "h2") {
		t.Error("net/http is not told of HTTP/2")
	}
	if unset.MaxHeaderBytes != mtls.MaxHeaderBytes || unset.ReadHeaderTimeout <= 0 || unset.IdleTimeout <= 0 {
		t.Error("bounds are missing")
	}
}
