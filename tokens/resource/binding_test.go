// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package resource_test

import (
	"context"
	"crypto"
	"crypto/tls"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/tokenstest"
)

// bench is a guarded server over TLS whose verifier fetches the issuer's keys and has a clock that can be set.
type bench struct {
	*fixture
	ca       *mtlstest.CA
	server   *mtlstest.Running
	ahead    atomic.Int64 // nanoseconds by which the verifier's clock is ahead
	disabled atomic.Bool  // what Authorize knows
	resumed  atomic.Bool  // whether the last request came over a resumed session
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{fixture: newFixture(t), ca: mtlstest.NewCA(t, "clients")}
	published := b.issuer.KeySetServer(t)
	keys, err := tokens.NewKeySet(tokens.KeySetConfig{URL: published.URL, Client: published.Client})
	if err != nil {
		t.Fatal(err)
	}
	b.config.Verifier, err = tokens.NewVerifier(tokens.VerifierConfig{
		Issuer: tokenstest.URL, Audience: tokenstest.Audience, Keys: keys,
		Now: func() time.Time { return time.Now().Add(time.Duration(b.ahead.Load())) },
	})
	if err != nil {
		t.Fatal(err)
	}
	b.config.Certificate, b.config.Authorize = nil, b.authorize
	guarded := b.protect(t)
	b.server = mtlstest.Server(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.resumed.Store(r.TLS.DidResume)
		guarded.ServeHTTP(w, r)
	}), b.ca.Issue(t, mtlstest.ServerLeaf()), mtls.ClientCertificatesRequested)
	t.Cleanup(func() {
		if n := published.Fetches(); n != 1 {
			t.Errorf("the keys were fetched %d times", n)
		}
	})
	return b
}

func (b *bench) authorize(context.Context, *tokens.Claims, *mtls.Peer) error {
	if !b.disabled.Load() {
		return nil
	}
	return &tokens.Error{
		Code: tokens.CodeInvalidToken, Description: "the access token is not valid on this connection", Reason: "client_disabled",
	}
}

// way is how a client connects.
type way struct {
	protocol string
	version  uint16
}

var ways = map[string]way{
	"HTTP/1.1, TLS 1.2": {"HTTP/1.1", tls.VersionTLS12}, "HTTP/1.1, TLS 1.3": {"HTTP/1.1", tls.VersionTLS13},
	"HTTP/2, TLS 1.2": {"HTTP/2.0", tls.VersionTLS12}, "HTTP/2, TLS 1.3": {"HTTP/2.0", tls.VersionTLS13},
}

// caller returns a client that presents cert, whether its key fits its chain or not, or none when cert is nil; it keeps
// connections, and sessions in the cache.
func (b *bench) caller(t *testing.T, w way, cert *tls.Certificate, cache tls.ClientSessionCache) *http.Client {
	t.Helper()
	cfg := mtls.ClientConfig(nil, b.ca.Pool())
	cfg.MinVersion, cfg.MaxVersion, cfg.ClientSessionCache = w.version, w.version, cache
	if cert != nil {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	transport := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: w.protocol == "HTTP/2.0"}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 30 * time.Second}
}

// accepts checks that a token is good on the client's connection.
func (b *bench) accepts(t *testing.T, about string, hc *http.Client, raw string) {
	t.Helper()
	if got := ask(t, hc, b.server.URL, raw); got.Status != http.StatusOK || got.Body != tokenstest.Client {
		t.Errorf("%s: refused: %+v", about, got)
	}
}

// refuses checks that it is not, for the reason.
func (b *bench) refuses(t *testing.T, about, reason string, hc *http.Client, raw string) {
	t.Helper()
	refusedPlainly(t, about, ask(t, hc, b.server.URL, raw))
	if last := b.events.last(); last != "invalid_token:"+reason {
		t.Errorf("%s: decided as %q, want %s", about, last, reason)
	}
}

// thieves hold certificates that have much in common with the owner's, but not all.
func thieves(t *testing.T, ca *mtlstest.CA, owner tls.Certificate, leaf mtlstest.Leaf) map[string]*tls.Certificate {
	t.Helper()
	leaf.Key = nil
	another := leaf
	another.CommonName = "another"
	renewed, self := leaf, leaf
	renewed.Key = owner.PrivateKey.(crypto.Signer)
	self.Key = renewed.Key
	behind := ca.Issue(t, another)
	behind.Certificate = append(behind.Certificate, owner.Certificate[0])
	certificates := map[string]tls.Certificate{
		"another client of the CA": ca.Issue(t, another), "the same name, another key": ca.Issue(t, leaf),
		"the same name and key, renewed":                     ca.Issue(t, renewed),
		"the same name and key, signed by itself":            mtlstest.SelfSigned(t, self),
		"the same name of a CA of the same name":             mtlstest.NewCA(t, "clients").Issue(t, leaf),
		"the same name and key of a CA of the same name":     mtlstest.NewCA(t, "clients").Issue(t, renewed),
		"the owner's certificate behind one that is its own": behind,
	}
	all := map[string]*tls.Certificate{}
	for name, c := range certificates {
		all[name] = &c
	}
	return all
}

// RS-01, RS-02, RS-04, CB-01, CB-09: RFC 8705, Section 3: a bound token is good on connections of its own certificate
// only, however warm the caches are: on connections that have just carried good tokens of their own, with the keys
// fetched and the very token just verified. Not without a certificate, not with one of the same name, key or issuer's
// name, and not when the owner's is sent along behind another.
func TestRFC8705_3_StolenTokenWithWarmCaches(t *testing.T) {
	t.Parallel()
	for name, w := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			leaf := mtlstest.Leaf{CommonName: "payments", DNSNames: []string{"payments.example"}}
			cert := b.ca.Issue(t, leaf)
			owner := b.caller(t, w, &cert, tls.NewLRUClientSessionCache(8))
			stolen := b.issuer.Token(t, mtlstest.PeerOf(cert))
			b.accepts(t, "owner", owner, stolen)
			for name, theirs := range thieves(t, b.ca, cert, leaf) {
				thief := b.caller(t, w, theirs, tls.NewLRUClientSessionCache(8))
				own := b.issuer.Token(t, mtlstest.PeerOf(*theirs))
				for range 2 {
					b.accepts(t, name, thief, own)
					b.refuses(t, name, "thumbprint_mismatch", thief, stolen)
					b.refuses(t, "owner with the token of "+name, "thumbprint_mismatch", owner, own)
					b.accepts(t, "owner", owner, stolen)
				}
			}
			b.refuses(t, "no certificate", "no_certificate", b.caller(t, w, nil, nil), stolen)
			b.accepts(t, "owner", owner, stolen)
			thumbprint := mtlstest.PeerOf(cert).Thumbprint().String()
			for about, changed := range map[string]string{
				"lower": strings.ToLower(thumbprint[:42]) + thumbprint[42:],
				"upper": strings.ToUpper(thumbprint[:42]) + thumbprint[42:],
			} {
				raw := b.issuer.TokenWith(t, nil, func(claims, _ map[string]any) {
					claims["cnf"] = map[string]any{"x5t#S256": changed}
				})
				b.refuses(t, "thumbprint in "+about+" case", "thumbprint_mismatch", owner, raw)
			}
		})
	}
}

// RS-29, CB-01: RFC 8446, Section 4.4.3: the owner's certificate is public: whoever sends it without its key gets no
// connection, alone or with another certificate and its key behind it.
func TestRFC8446_4_4_3_CertificateWithoutItsKey(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	cert, thief := b.ca.Issue(t, mtlstest.Leaf{CommonName: "payments"}), b.ca.Issue(t, mtlstest.Leaf{CommonName: "thief"})
	stolen := b.issuer.Token(t, mtlstest.PeerOf(cert))
	for name, w := range ways {
		b.accepts(t, name, b.caller(t, w, &cert, nil), stolen)
		for about, chain := range map[string][][]byte{
			"alone": cert.Certificate, "before another": {cert.Certificate[0], thief.Certificate[0]},
		} {
			t.Run(name+", "+about, func(t *testing.T) {
				forged := tls.Certificate{Certificate: chain, PrivateKey: thief.PrivateKey}
				b.unreachable(t, b.caller(t, w, &forged, nil), b.server.URL, stolen)
			})
		}
	}
}

// RS-01, RS-29, TLS-07: RFC 8446, Section 2.2; RFC 8705, Section 3: a resumed session is judged as the first one was, at each
// request: by the certificate it began with, whose dates go on, for a client that may have been disabled since.
func TestRFC8446_2_2_ResumedSessions(t *testing.T) {
	t.Parallel()
	for name, w := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			cert, other := b.ca.Issue(t, mtlstest.Leaf{}), b.ca.Issue(t, mtlstest.Leaf{})
			long := func(claims, _ map[string]any) { claims["exp"] = time.Now().Add(24 * time.Hour).Unix() }
			own := b.issuer.TokenWith(t, mtlstest.PeerOf(cert), long)
			foreign := b.issuer.TokenWith(t, mtlstest.PeerOf(other), long)
			hc := b.caller(t, w, &cert, tls.NewLRUClientSessionCache(8))
			again := func() { // over a new connection of the old session
				t.Helper()
				hc.CloseIdleConnections()
				b.refuses(t, "foreign token, resumed", "thumbprint_mismatch", hc, foreign)
				if !b.resumed.Load() {
					t.Error("the session was not resumed")
				}
			}
			b.accepts(t, "first", hc, own)
			b.refuses(t, "foreign token", "thumbprint_mismatch", hc, foreign)
			again()
			b.accepts(t, "resumed", hc, own)

			b.disabled.Store(true)
			b.refuses(t, "disabled, same connection", "client_disabled", hc, own)
			again()
			b.refuses(t, "disabled, resumed", "client_disabled", hc, own)
			b.disabled.Store(false)
			b.accepts(t, "enabled", hc, own)

			b.ahead.Store(int64(2 * time.Hour)) // past the end of the certificate, which TLS does not look at again
			b.refuses(t, "expired, same connection", "certificate_not_valid", hc, own)
			hc.CloseIdleConnections()
			b.refuses(t, "expired, resumed", "certificate_not_valid", hc, own)
			if !b.resumed.Load() {
				t.Error("the session was not resumed")
			}
		})
	}
}

// CB-01, CB-09, CL-05: RFC 8446, Section 2.2: two certificates that share a session cache show the old one: the token of the
// new one is then refused, and that of the old one is what the connection proves. With a cache for each, it is not so.
func TestRFC8446_2_2_SharedSessionCache(t *testing.T) {
	t.Parallel()
	for name, w := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			before, after := b.ca.Issue(t, mtlstest.Leaf{}), b.ca.Issue(t, mtlstest.Leaf{})
			old, renewed := b.issuer.Token(t, mtlstest.PeerOf(before)), b.issuer.Token(t, mtlstest.PeerOf(after))
			shared := tls.NewLRUClientSessionCache(8)
			b.accepts(t, "old", b.caller(t, w, &before, shared), old)
			b.refuses(t, "new, shared cache", "thumbprint_mismatch", b.caller(t, w, &after, shared), renewed)
			if !b.resumed.Load() {
				t.Error("the session was not resumed")
			}
			b.accepts(t, "new, own cache", b.caller(t, w, &after, tls.NewLRUClientSessionCache(8)), renewed)
			b.refuses(t, "old token, new certificate", "thumbprint_mismatch", b.caller(t, w, &after, nil), old)
		})
	}
}

// RS-01: RFC 8705, Section 3: many clients at once, each with its own token and with that of the next: never a mix-up.
func TestRFC8705_3_ManyClientsAtOnce(t *testing.T) {
	t.Parallel()
	const clients, rounds = 6, 15
	b := newBench(t)
	var callers [clients]*http.Client
	var raws [clients]string
	for i := range clients {
		cert := b.ca.Issue(t, mtlstest.Leaf{CommonName: "payments"})
		callers[i] = b.caller(t, ways["HTTP/2, TLS 1.3"], &cert, nil)
		raws[i] = b.issuer.Token(t, mtlstest.PeerOf(cert))
	}
	for i := range clients {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			for round := range rounds {
				b.accepts(t, "own", callers[i], raws[i])
				refusedPlainly(t, "another's", ask(t, callers[i], b.server.URL, raws[(i+1+round%(clients-1))%clients]))
			}
		})
	}
}

// RS-02: RFC 9440, Section 2.4: a certificate in a header of the request is no certificate, on a connection that has none
// and on one that has another.
func TestRFC9440_2_4_CertificateInAHeader(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	cert, other := b.ca.Issue(t, mtlstest.Leaf{}), b.ca.Issue(t, mtlstest.Leaf{})
	stolen := b.issuer.Token(t, mtlstest.PeerOf(cert))
	for name, presented := range map[string]*tls.Certificate{"none": nil, "another": &other} {
		hc := b.caller(t, ways["HTTP/1.1, TLS 1.3"], presented, nil)
		hc.Transport = forwarding{hc.Transport, cert.Certificate[0]}
		b.accepts(t, "owner", b.caller(t, ways["HTTP/1.1, TLS 1.3"], &cert, nil), stolen)
		refusedPlainly(t, name, ask(t, hc, b.server.URL, stolen))
	}
}

// forwarding says of every request, as proxies do, that it came with a certificate.
type forwarding struct {
	next http.RoundTripper
	der  []byte
}

func (f forwarding) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	encoded := base64.StdEncoding.EncodeToString(f.der)
	escaped := url.QueryEscape(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.der})))
	for name, value := range map[string]string{
		"Client-Cert": ":" + encoded + ":", "Client-Cert-Chain": ":" + encoded + ":",
		"X-Forwarded-Client-Cert": `Cert="` + escaped + `"`,
		"X-Ssl-Client-Cert":       escaped, "Ssl-Client-Cert": escaped, "X-Client-Cert": encoded,
		"X-Amzn-Mtls-Clientcert":      escaped,
		"X-Forwarded-Tls-Client-Cert": encoded,
	} {
		r.Header.Set(name, value)
	}
	return f.next.RoundTrip(r)
}
