// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/outbox"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/issuer"
)

// purposeSigning names the token signing keys among the sealed keys.
const purposeSigning = "signing"

// keyring holds the token signing keys, unsealed. The public ones are computed from the private ones and
// never read from a column that somebody could have changed.
type keyring struct {
	current issuer.SigningKey
	public  []tokens.PublicKey
}

// loadKeyring reads the signing keys, making the first one when there is none, and verifies one product
// of each before any token depends on it.
func loadKeyring(ctx context.Context, box *outbox.Box, db *store.Store, now time.Time) (*keyring, error) {
	rows, err := db.Keys(ctx, purposeSigning)
	if err != nil {
		return nil, fmt.Errorf("reading the signing keys: %w", err)
	}
	if len(rows) == 0 {
		row, err := newSigningKey(now)
		if err != nil {
			return nil, err
		}
		err = change(ctx, box, audit.Event{Name: "key.create", Detail: map[string]string{"kid": row.ID, "alg": row.Algorithm}},
			func(tx *store.Store) error { return tx.PutKey(ctx, row) })
		if err != nil {
			return nil, fmt.Errorf("storing a signing key: %w", err)
		}
		rows = []store.Key{row}
	}
	ring := &keyring{}
	for _, row := range rows {
		signer, err := parseSigner(row.Private)
		if err != nil {
			return nil, fmt.Errorf("signing key %s: %w", row.ID, err)
		}
		if err := probe(signer); err != nil {
			return nil, fmt.Errorf("signing key %s: %w", row.ID, err)
		}
		key := issuer.SigningKey{ID: row.ID, Algorithm: row.Algorithm, Signer: signer}
		ring.public = append(ring.public, tokens.PublicKey{ID: key.ID, Algorithm: key.Algorithm, Key: signer.Public()})
		if ring.current.Signer == nil {
			ring.current = key
		}
	}
	return ring, nil
}

func newSigningKey(now time.Time) (store.Key, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return store.Key{}, fmt.Errorf("making a signing key: %w", err)
	}
	id, err := tokens.KeyID(key.Public())
	if err != nil {
		return store.Key{}, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return store.Key{}, fmt.Errorf("encoding a signing key: %w", err)
	}
	return store.Key{ID: id, Purpose: purposeSigning, State: "active", Algorithm: "ES256", Private: der, CreatedAt: now}, nil
}

// probe signs and verifies once: a key whose halves do not belong together must not sign a token that
// nobody can verify.
func probe(signer crypto.Signer) error {
	digest := sha256.Sum256([]byte("certbound signing key probe"))
	sig, err := signer.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		return fmt.Errorf("it does not sign: %w", err)
	}
	public, ok := signer.Public().(*ecdsa.PublicKey)
	if !ok || !ecdsa.VerifyASN1(public, digest[:], sig) {
		return errors.New("its signature does not verify")
	}
	return nil
}

func parseSigner(pkcs8 []byte) (crypto.Signer, error) {
	key, err := x509.ParsePKCS8PrivateKey(pkcs8)
	if err != nil {
		return nil, fmt.Errorf("the sealed private key does not parse: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("the sealed private key cannot sign")
	}
	return signer, nil
}

// Signing implements issuer.Keys.
func (k *keyring) Signing() (issuer.SigningKey, error) { return k.current, nil }

// Published implements issuer.Keys.
func (k *keyring) Published() []tokens.PublicKey { return k.public }

// Key implements tokens.Keys for the operators' API, which verifies our own tokens without asking
// ourselves over the network.
func (k *keyring) Key(_ context.Context, kid string) (tokens.PublicKey, error) {
	for _, p := range k.public {
		if p.ID == kid {
			return p, nil
		}
	}
	return tokens.PublicKey{}, tokens.ErrUnknownKey
}
