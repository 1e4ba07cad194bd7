// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"io"
	"testing"

	"github.com/certbound/certbound/tokens"
)

// mixed is a key whose halves are of two, or that makes signatures of its own.
type mixed struct {
	crypto.Signer
	public crypto.PublicKey
	sign   func() ([]byte, error)
}

func (m mixed) Public() crypto.PublicKey { return m.public }

func (m mixed) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if m.sign != nil {
		return m.sign()
	}
	return m.Signer.Sign(random, digest, opts)
}

// A key that makes tokens nobody can verify is found out before it signs one, for every algorithm.
func TestProbe(t *testing.T) {
	t.Parallel()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	must(err)
	_, otherEd, err := ed25519.GenerateKey(rand.Reader)
	must(err)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	otherEC, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	must(err)
	otherRSA, err := rsa.GenerateKey(rand.Reader, 2048)
	must(err)
	cannot := errors.New("no")
	for name, test := range map[string]struct {
		algorithm string
		signer    crypto.Signer
		good      bool
	}{
		"ES256":                  {tokens.ES256, ec, true},
		"EdDSA":                  {tokens.EdDSA, ed, true},
		"PS256":                  {tokens.PS256, r, true},
		"RS256":                  {tokens.RS256, r, true},
		"ES256 with Ed25519":     {tokens.ES256, ed, false},
		"EdDSA with RSA":         {tokens.EdDSA, r, false},
		"no algorithm":           {"none", ec, false},
		"halves of P-256":        {tokens.ES256, mixed{Signer: ec, public: otherEC.Public()}, false},
		"halves of Ed25519":      {tokens.EdDSA, mixed{Signer: ed, public: otherEd.Public()}, false},
		"halves of RSA":          {tokens.PS256, mixed{Signer: r, public: otherRSA.Public()}, false},
		"it cannot":              {tokens.EdDSA, mixed{public: ed.Public(), sign: func() ([]byte, error) { return nil, cannot }}, false},
		"a signature of nothing": {tokens.EdDSA, mixed{public: ed.Public(), sign: func() ([]byte, error) { return []byte{}, nil }}, false},
		"one that is too large":  {tokens.EdDSA, mixed{public: ed.Public(), sign: func() ([]byte, error) { return make([]byte, 1<<15), nil }}, false},
	} {
		if err := (SigningKey{Algorithm: test.algorithm, Signer: test.signer}).Probe(); (err == nil) != test.good {
			t.Errorf("%s: %v", name, err)
		}
	}
	refuses := mixed{public: ed.Public(), sign: func() ([]byte, error) { return nil, cannot }}
	if err := (SigningKey{Algorithm: tokens.EdDSA, Signer: refuses}).Probe(); !errors.Is(err, cannot) {
		t.Errorf("why it cannot: %v", err)
	}
}
