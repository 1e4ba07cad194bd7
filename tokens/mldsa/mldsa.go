// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Package mldsa lets tokens be signed and verified with ML-DSA-44 and ML-DSA-65 (FIPS 204) as RFC 9964 has it for JOSE:
// signatures that a quantum computer does not forge, of 2420 and 3309 bytes. It is for issuers that sign so and for the
// resource servers that verify their tokens; nobody else links the code:
//
//	keys, err := tokens.NewKeySet(tokens.KeySetConfig{URL: url, KeyTypes: mldsa.Types()})
//	v, err := tokens.NewVerifier(tokens.VerifierConfig{…, Keys: keys, Algorithms: []string{tokens.MLDSA44}})
//
// Where the issuer's deny feed is followed, its pages are signed with the same keys: tokens.DenyFeedConfig.Algorithms names
// the algorithm too, else the feed is refused, and stays stale.
//
// It refuses ML-DSA-87, keys of another size than their algorithm's, and private keys that are no seed. The code is no
// part of Go's FIPS 140-3 module: where that is demanded, see Allowed.
package mldsa

import (
	"crypto"
	"crypto/fips140"
	"errors"
	"fmt"
	"io"

	"filippo.io/mldsa"

	"github.com/certbound/certbound/tokens"
)

// SeedSize is the length of a private key, in bytes: the seed that everything else follows from (RFC 9964, Section 4).
const SeedSize = mldsa.PrivateKeySize

// ErrFIPS says that only the validated module may be used, which has no ML-DSA.
var ErrFIPS = errors.New("mldsa: ML-DSA is not part of the FIPS 140-3 module, and FIPS mode is on")

// Allowed returns ErrFIPS in FIPS 140-3 mode. No key is made or read there.
func Allowed() error {
	if fips140.Enabled() {
		return ErrFIPS
	}
	return nil
}

// parameters returns the parameter set of an algorithm.
func parameters(algorithm string) (mldsa.Parameters, error) {
	if err := Allowed(); err != nil {
		return mldsa.Parameters{}, err
	}
	switch algorithm {
	case tokens.MLDSA44:
		return mldsa.MLDSA44(), nil
	case tokens.MLDSA65:
		return mldsa.MLDSA65(), nil
	}
	return mldsa.Parameters{}, fmt.Errorf("mldsa: the algorithm %q is not known", algorithm)
}

// PublicKey is a public key of ML-DSA-44 or ML-DSA-65. It is immutable, and safe for concurrent use.
type PublicKey struct {
	algorithm string
	key       *mldsa.PublicKey
}

// NewPublicKey reads a public key of the algorithm, tokens.MLDSA44 or tokens.MLDSA65, in the encoding of FIPS 204.
func NewPublicKey(algorithm string, encoded []byte) (*PublicKey, error) {
	set, err := parameters(algorithm)
	if err != nil {
		return nil, err
	}
	key, err := mldsa.NewPublicKey(set, encoded)
	if err != nil {
		return nil, fmt.Errorf("mldsa: public key: %w", err)
	}
	return &PublicKey{algorithm, key}, nil
}

// JWA returns the name of the key's algorithm; empty for a nil key.
func (k *PublicKey) JWA() string {
	if k == nil {
		return ""
	}
	return k.algorithm
}

// Bytes returns the encoding of FIPS 204, 1312 or 1952 bytes.
func (k *PublicKey) Bytes() []byte { return k.key.Bytes() }

// Equal reports whether other is the same key.
func (k *PublicKey) Equal(other crypto.PublicKey) bool {
	o, ok := other.(*PublicKey)
	return ok && k != nil && o != nil && k.key.Equal(o.key)
}

// Verify reports whether the signature is this key's, of the message, with an empty context (RFC 9964, Section 5).
func (k *PublicKey) Verify(message, signature []byte) bool {
	return mldsa.Verify(k.key, message, signature, nil) == nil
}

// PrivateKey signs. It is a crypto.Signer that is given the message itself, and is safe for concurrent use.
type PrivateKey struct {
	key    *mldsa.PrivateKey
	public *PublicKey
}

// GenerateKey makes a key for the algorithm, tokens.MLDSA44 or tokens.MLDSA65.
func GenerateKey(algorithm string) (*PrivateKey, error) {
	set, err := parameters(algorithm)
	if err != nil {
		return nil, err
	}
	key, err := mldsa.GenerateKey(set)
	if err != nil {
		return nil, fmt.Errorf("mldsa: make a key: %w", err)
	}
	return private(algorithm, key), nil
}

// NewPrivateKey makes the key that a seed of SeedSize bytes stands for.
func NewPrivateKey(algorithm string, seed []byte) (*PrivateKey, error) {
	set, err := parameters(algorithm)
	if err != nil {
		return nil, err
	}
	key, err := mldsa.NewPrivateKey(set, seed)
	if err != nil {
		return nil, fmt.Errorf("mldsa: private key: %w", err)
	}
	return private(algorithm, key), nil
}

func private(algorithm string, key *mldsa.PrivateKey) *PrivateKey {
	return &PrivateKey{key, &PublicKey{algorithm, key.PublicKey()}}
}

// Seed returns the private key. Whoever has it signs.
func (k *PrivateKey) Seed() []byte { return k.key.Bytes() }

// Public returns the *PublicKey.
func (k *PrivateKey) Public() crypto.PublicKey { return k.public }

// Sign signs the message itself: opts must not name a hash. The signature is made anew each time, from randomness of the
// system's own, whatever random is.
func (k *PrivateKey) Sign(random io.Reader, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts != nil && opts.HashFunc() != 0 {
		return nil, errors.New("mldsa: the message is signed itself, not a hash of it")
	}
	return k.key.Sign(random, message, nil)
}

// keyType reads public keys of one algorithm.
type keyType string

func (t keyType) JWA() string { return string(t) }

func (t keyType) ParsePublicKey(pub []byte) (crypto.PublicKey, error) {
	key, err := NewPublicKey(string(t), pub)
	if err != nil {
		return nil, err
	}
	return key, nil
}

// Types are what a tokens.KeySet needs to read keys of both algorithms.
func Types() []tokens.KeyType {
	return []tokens.KeyType{keyType(tokens.MLDSA44), keyType(tokens.MLDSA65)}
}
