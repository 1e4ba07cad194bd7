// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Package tokenstest is an issuer for tests: it makes good tokens, and bad ones on request, and serves its keys
// over TLS with the faults one wants to see handled. It is for the tests of programs that verify tokens, and must
// not be used in a program: it signs whatever it is told to.
package tokenstest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/internal/jose"
)

// What tokens say unless they are changed.
const (
	URL      = "https://issuer.example"   // URL is the issuer.
	Audience = "https://resource.example" // Audience is the resource server.
	Client   = "payments"                 // Client is the client and the subject.
	Lifetime = 10 * time.Minute           // Lifetime is how long a token is valid.
)

// Issuer makes tokens with an ES256 key of its own. Safe for concurrent use.
type Issuer struct {
	key    crypto.Signer
	public tokens.PublicKey
}

// New returns an Issuer with a fresh key.
func New(tb testing.TB) *Issuer {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatalf("generate a signing key: %v", err)
	}
	return NewWithKey(tb, key)
}

// NewWithKey returns an Issuer that signs with the key, as ES256, EdDSA or PS256 by its type. Its key id is the
// key's RFC 7638 thumbprint.
func NewWithKey(tb testing.TB, key crypto.Signer) *Issuer {
	tb.Helper()
	id, err := tokens.KeyID(key.Public())
	if err != nil {
		tb.Fatalf("key id: %v", err)
	}
	algorithm := string(jose.AlgorithmFor(key.Public()))
	return &Issuer{key: key, public: tokens.PublicKey{ID: id, Algorithm: algorithm, Key: key.Public()}}
}

// Keys returns the issuer's public key.
func (i *Issuer) Keys() tokens.StaticKeys { return tokens.StaticKeys{i.public} }

// Verifier returns a Verifier of the issuer's tokens for an audience; "" means Audience.
func (i *Issuer) Verifier(tb testing.TB, audience string) *tokens.Verifier {
	tb.Helper()
	if audience == "" {
		audience = Audience
	}
	v, err := tokens.NewVerifier(tokens.VerifierConfig{Issuer: URL, Audience: audience, Keys: i.Keys()})
	if err != nil {
		tb.Fatalf("new verifier: %v", err)
	}
	return v
}

// Token returns a good token for Audience that is bound to the peer's certificate.
func (i *Issuer) Token(tb testing.TB, peer *mtls.Peer, scopes ...string) string {
	tb.Helper()
	return i.TokenWith(tb, peer, func(claims, _ map[string]any) {
		if len(scopes) > 0 {
			claims["scope"] = strings.Join(scopes, " ")
		}
	})
}

// TokenWith returns a token whose claims and header were changed before it was signed. Values are what
// encoding/json makes of them. The signature is good, whatever the header says.
func (i *Issuer) TokenWith(tb testing.TB, peer *mtls.Peer, change func(claims, header map[string]any)) string {
	tb.Helper()
	now := time.Now()
	claims := map[string]any{
		"iss":       URL,
		"sub":       Client,
		"client_id": Client,
		"aud":       Audience,
		"jti":       rand.Text(),
		"iat":       now.Unix(),
		"exp":       now.Add(Lifetime).Unix(),
	}
	if peer != nil {
		claims["cnf"] = map[string]any{"x5t#S256": peer.Thumbprint().String()}
	}
	header := map[string]any{"alg": i.public.Algorithm, "typ": tokens.TokenType, "kid": i.public.ID}
	change(claims, header)
	return i.Sign(tb, marshal(tb, header), marshal(tb, claims))
}

func marshal(tb testing.TB, members map[string]any) string {
	tb.Helper()
	data, err := json.Marshal(members)
	if err != nil {
		tb.Fatalf("marshal: %v", err)
	}
	return string(data)
}

// Sign returns the compact serialisation of any header and payload with a good signature of the issuer's key.
func (i *Issuer) Sign(tb testing.TB, header, payload string) string {
	tb.Helper()
	token, err := jose.SignSerialized([]byte(header), jose.Algorithm(i.public.Algorithm), []byte(payload), i.key)
	if err != nil {
		tb.Fatalf("sign: %v", err)
	}
	return token
}

// KeySetServer serves a JSON Web Key Set over TLS until the test ends. Its methods are safe for concurrent use.
type KeySetServer struct {
	URL    string       // where the key set is
	Client *http.Client // trusts the server

	status  atomic.Int64
	body    atomic.Pointer[[]byte]
	fetches atomic.Int64
}

// KeySetServer starts a server of the issuer's key.
func (i *Issuer) KeySetServer(tb testing.TB) *KeySetServer {
	tb.Helper()
	s := &KeySetServer{}
	s.Serve(tb, i)
	server := httptest.NewTLSServer(http.HandlerFunc(s.serve))
	tb.Cleanup(server.Close)
	s.URL, s.Client = server.URL+"/.well-known/jwks.json", server.Client()
	return s
}

// Serve makes the server answer with the keys of these issuers from now on, as after a rotation.
func (s *KeySetServer) Serve(tb testing.TB, issuers ...*Issuer) {
	tb.Helper()
	var keys []jose.PublicKey
	for _, i := range issuers {
		keys = append(keys, jose.PublicKey{
			ID: i.public.ID, Algorithm: jose.Algorithm(i.public.Algorithm), Key: i.public.Key,
		})
	}
	body, err := jose.MarshalKeySet(keys)
	if err != nil {
		tb.Fatalf("marshal key set: %v", err)
	}
	s.Answer(http.StatusOK, body)
}

// Answer makes the server answer with a status and a body from now on.
func (s *KeySetServer) Answer(status int, body []byte) {
	s.body.Store(&body)
	s.status.Store(int64(status))
}

// Fetches returns how often the key set was asked for.
func (s *KeySetServer) Fetches() int { return int(s.fetches.Load()) }

func (s *KeySetServer) serve(w http.ResponseWriter, _ *http.Request) {
	s.fetches.Add(1)
	w.Header().Set("Content-Type", "application/jwk-set+json")
	w.WriteHeader(int(s.status.Load()))
	_, _ = w.Write(*s.body.Load()) // the fetcher may have gone
}
