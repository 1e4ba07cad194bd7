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
	"sync"
	"sync/atomic"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/outbox"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/issuer"
)

// purposeSigning names the token signing keys among the sealed keys.
const purposeSigning = "signing"

const (
	// keysTimeout bounds reading the signing keys again, keysAgain how long a failure of that stands.
	keysTimeout = 2 * time.Second
	keysAgain   = 250 * time.Millisecond
)

// keyring holds the token signing keys, unsealed. The public ones are computed from the private ones and never read from
// a column that somebody could have changed. After a change of sealed keys, here or at another replica, they are read
// again before anything is signed or verified with them.
type keyring struct {
	store *store.Store
	epoch atomic.Uint64 // counts changes

	mu       sync.Mutex // held while they are read
	failed   error      // of the last time, if it failed
	failedAt time.Time
	ring     atomic.Pointer[ring]
}

// ring is the keys as they were at one moment.
type ring struct {
	epoch   uint64
	current issuer.SigningKey
	public  []tokens.PublicKey
}

// loadKeyring reads the signing keys, making the first one when there is none, and verifies one product
// of each before any token depends on it.
func loadKeyring(ctx context.Context, box *outbox.Box, db *store.Store, now time.Time) (*keyring, error) {
	k := &keyring{store: db}
	db.OnChange(k.forget) // before they are read, so that no change is missed
	rows, err := db.Keys(ctx, purposeSigning)
	if err != nil {
		return nil, fmt.Errorf("reading the signing keys: %w", err)
	}
	if len(rows) == 0 {
		row, err := newSigningKey(now)
		if err != nil {
			return nil, err
		}
		err = changeOnce(ctx, box, audit.Event{Name: "key.create", Detail: map[string]string{"kid": row.ID, "alg": row.Algorithm}},
			func(tx *store.Store) (bool, error) {
				if have, err := tx.Keys(ctx, purposeSigning); err != nil || len(have) > 0 {
					return false, err
				}
				return true, tx.PutKey(ctx, row)
			})
		if err != nil {
			return nil, fmt.Errorf("storing a signing key: %w", err)
		}
	}
	_, err = k.keys(ctx)
	if err != nil {
		return nil, err
	}
	return k, nil
}

// forget has the keys read again after a change.
func (k *keyring) forget(c store.Change) {
	if c.Keys || c.Full {
		k.epoch.Add(1)
	}
}

// keys returns the keys as they are now. It blocks only after a change.
func (k *keyring) keys(ctx context.Context) (*ring, error) {
	if r := k.ring.Load(); r != nil && r.epoch == k.epoch.Load() {
		return r, nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	epoch := k.epoch.Load()
	if r := k.ring.Load(); r != nil && r.epoch == epoch {
		return r, nil
	}
	if k.failed != nil && time.Since(k.failedAt) < keysAgain {
		return nil, k.failed
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keysTimeout)
	defer cancel()
	r, err := k.read(ctx)
	if k.failed = err; err != nil {
		k.failedAt = time.Now()
		return nil, err
	}
	r.epoch = epoch // a change meanwhile has it read once more
	k.ring.Store(r)
	return r, nil
}

// read unseals and probes the keys.
func (k *keyring) read(ctx context.Context) (*ring, error) {
	rows, err := k.store.Keys(ctx, purposeSigning)
	if err != nil {
		return nil, fmt.Errorf("reading the signing keys: %w", err)
	}
	if len(rows) == 0 {
		return nil, errors.New("there is no signing key")
	}
	r := &ring{}
	for _, row := range rows {
		signer, err := parseSigner(row.Private)
		if err != nil {
			return nil, fmt.Errorf("signing key %s: %w", row.ID, err)
		}
		if err := probe(signer); err != nil {
			return nil, fmt.Errorf("signing key %s: %w", row.ID, err)
		}
		key := issuer.SigningKey{ID: row.ID, Algorithm: row.Algorithm, Signer: signer}
		r.public = append(r.public, tokens.PublicKey{ID: key.ID, Algorithm: key.Algorithm, Key: signer.Public()})
		if r.current.Signer == nil {
			r.current = key
		}
	}
	return r, nil
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
func (k *keyring) Signing() (issuer.SigningKey, error) {
	r, err := k.keys(context.Background())
	if err != nil {
		return issuer.SigningKey{}, err
	}
	return r.current, nil
}

// Published implements issuer.Keys. While the keys cannot be read again it gives the last ones: who verifies may remember
// those anyway, and an empty list would be remembered as well.
func (k *keyring) Published() []tokens.PublicKey {
	r, err := k.keys(context.Background())
	if err != nil {
		r = k.ring.Load()
	}
	return r.public
}

// Key implements tokens.Keys for the operators' API, which verifies our own tokens without asking
// ourselves over the network.
func (k *keyring) Key(ctx context.Context, kid string) (tokens.PublicKey, error) {
	r, err := k.keys(ctx)
	if err != nil {
		return tokens.PublicKey{}, err
	}
	for _, p := range r.public {
		if p.ID == kid {
			return p, nil
		}
	}
	return tokens.PublicKey{}, tokens.ErrUnknownKey
}
