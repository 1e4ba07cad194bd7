// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/internal/jose"
	"github.com/certbound/certbound/tokens/mldsa"
)

// discard is a Recorder that costs nothing.
type discard struct{}

func (discard) Record(context.Context, Decision) error { return nil }

// fixed is a Registry of one client that costs nothing.
type fixed struct {
	client      *Client
	certificate *Certificate
}

func (f fixed) Client(context.Context, string) (*Client, error) { return f.client, nil }

func (f fixed) Certificate(context.Context, mtls.Thumbprint) (*Certificate, error) {
	return f.certificate, nil
}

// allocationsOfIssue is how much Issue may allocate beside what signing does: the chosen grant, audience, scope, token
// id, claims and response.
const allocationsOfIssue = 6

// The decision itself stays cheap: everything but the signature is a handful of allocations.
func TestIssueAllocations(t *testing.T) {
	s, r := benchmark(t)
	ctx := t.Context()
	issue := testing.AllocsPerRun(200, func() {
		if _, err := s.Issue(ctx, r); err != nil {
			t.Fatal(err)
		}
	})
	payload := []byte(strings.Repeat("x", 400))
	header := jose.Header{Algorithm: jose.ES256, KeyID: "k", Type: "at+jwt"}
	key := s.keys.(*keyring).signing.Signer
	sign := testing.AllocsPerRun(200, func() {
		if _, err := jose.Sign(header, payload, key); err != nil {
			t.Fatal(err)
		}
	})
	t.Logf("Issue allocates %v times, %v of them to sign", issue, sign)
	if bound := float64(allocationsOfIssue + allocationsOfRace); issue-sign > bound {
		t.Errorf("Issue allocates %v times beside the signature, want at most %v", issue-sign, bound)
	}
}

// BenchmarkIssue measures one decision with its signature, without HTTP and without storage.
func BenchmarkIssue(b *testing.B) {
	s, r := benchmark(b)
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Issue(ctx, r); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkAlgorithms measures, for each algorithm, a decision with its signature beside the signature alone, in tokens and
// in signatures per second.
func BenchmarkAlgorithms(b *testing.B) {
	r, err := rsa.GenerateKey(rand.Reader, 3072)
	if err != nil {
		b.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	signers := map[string]crypto.Signer{tokens.EdDSA: ed, tokens.PS256: r, tokens.RS256: r}
	for _, algorithm := range []string{tokens.MLDSA44, tokens.MLDSA65} {
		if signers[algorithm], err = mldsa.GenerateKey(algorithm); err != nil {
			b.Fatal(err)
		}
	}
	for _, algorithm := range []string{tokens.ES256, tokens.EdDSA, tokens.PS256, tokens.RS256, tokens.MLDSA44, tokens.MLDSA65} {
		s, ready := benchmark(b)
		ring := s.keys.(*keyring)
		if signer := signers[algorithm]; signer != nil {
			ring.signing = SigningKey{ID: ring.signing.ID, Algorithm: algorithm, Signer: signer}
		}
		b.Run(algorithm+"/token", func(b *testing.B) {
			for b.Loop() {
				if _, err := s.Issue(b.Context(), ready); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tokens/s")
		})
		b.Run(algorithm+"/signature", func(b *testing.B) {
			message, opts := make([]byte, 500), crypto.SignerOpts(crypto.Hash(0))
			switch algorithm {
			case tokens.ES256, tokens.RS256:
				message, opts = message[:32], crypto.SHA256
			case tokens.PS256:
				message, opts = message[:32], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
			}
			for b.Loop() {
				if _, err := ring.signing.Signer.Sign(rand.Reader, message, opts); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "signatures/s")
		})
	}
}

// BenchmarkGate is the part of BenchmarkIssue that judges again after the record.
func BenchmarkGate(b *testing.B) {
	s, r := benchmark(b)
	ctx := b.Context()
	client, err := s.registry.Client(ctx, r.ClientID)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if refused := s.judgeAgain(ctx, &r, client, &target{}, s.now()); refused != nil {
			b.Fatal(refused)
		}
	}
}

// BenchmarkTokenRequest adds the endpoint's own reading and writing.
func BenchmarkTokenRequest(b *testing.B) {
	s, ready := benchmark(b)
	r := request(b, TokenPath, "")
	body := ask("payments", "scope", "read")
	b.ReportAllocs()
	for b.Loop() {
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
		w := httptest.NewRecorder()
		if s.serveToken(w, r, ready.Peer); w.Code != http.StatusOK {
			b.Fatal(w.Body)
		}
	}
}

// BenchmarkSign is the part of BenchmarkIssue that no decision can save.
func BenchmarkSign(b *testing.B) {
	s, _ := benchmark(b)
	key := s.keys.(*keyring).signing
	payload := []byte(strings.Repeat("x", 400))
	b.ReportAllocs()
	for b.Loop() {
		h := jose.Header{Algorithm: jose.ES256, KeyID: key.ID, Type: "at+jwt"}
		if _, err := jose.Sign(h, payload, key.Signer); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkIntrospectKnown is an answer about a token that was asked about before, the endpoint's reading and writing
// included.
func BenchmarkIntrospectKnown(b *testing.B) {
	d := newDesk(b)
	benchmarkIntrospection(b, d, func(int) string { return d.token })
}

// BenchmarkIntrospectNew is an answer about a token that was never asked about.
func BenchmarkIntrospectNew(b *testing.B) {
	d := newDesk(b)
	tokens := make([]string, 2000)
	for i := range tokens {
		tokens[i] = d.with(b)
	}
	d.introspected = jose.NewCache[*ownToken](0)
	benchmarkIntrospection(b, d, func(i int) string { return tokens[i%len(tokens)] })
}

// BenchmarkBareVerify is the part of BenchmarkIntrospectNew that nobody can save.
func BenchmarkBareVerify(b *testing.B) {
	key := newKeyring(b).signing.Signer.(*ecdsa.PrivateKey)
	digest := sha256.Sum256([]byte("x"))
	signature, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if !ecdsa.VerifyASN1(&key.PublicKey, digest[:], signature) {
			b.Fatal("does not verify")
		}
	}
}

func benchmarkIntrospection(b *testing.B, d *desk, token func(i int) string) {
	b.Helper()
	peer := mtlstest.PeerOf(d.guard)
	r := request(b, IntrospectPath, "")
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		body := "client_id=guard&token=" + token(i)
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
		w := httptest.NewRecorder()
		if d.serveCall(w, r, peer, d.serveIntrospection); w.Body.Len() < 100 {
			b.Fatal(w.Body)
		}
	}
}

func benchmark(tb testing.TB) (*Server, Request) {
	tb.Helper()
	s := newService(tb)
	cert := s.enrol(tb, "payments")
	peer := mtlstest.PeerOf(cert)
	client, err := s.registry.Client(tb.Context(), "payments")
	if err != nil {
		tb.Fatal(err)
	}
	entry, err := s.registry.Certificate(tb.Context(), peer.Thumbprint())
	if err != nil {
		tb.Fatal(err)
	}
	server, err := New(Config{
		Issuer: s.public, MTLSURL: s.mtlsURL, Registry: fixed{client, entry}, Keys: s.keys, Recorder: discard{},
	})
	if err != nil {
		tb.Fatal(err)
	}
	return server, Request{GrantType: ClientCredentials, ClientID: "payments", Peer: peer, Scope: []string{"read"}}
}
