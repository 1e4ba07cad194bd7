// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/certbound/certbound/cmd/internal/admin"
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
	// keyLook is how often is looked for what is due to them, keyComplaint how long nothing is logged after a failure.
	keyLook      = time.Minute
	keyComplaint = 10 * time.Minute
	// keyHeld is how often is looked whether the clock may be believed.
	keyHeld = time.Second
)

// keyringConfig is what a keyring is made of.
type keyringConfig struct {
	Store *store.Store
	Box   *outbox.Box // takes the records of what is done to the keys

	Algorithm        string
	Rotate, Announce time.Duration
	Now              func() time.Time
	// Steady reports whether the clock may be believed: else nothing is done to keys that replicas share, of which one signs.
	// By a clock that is ahead a key would sign before anybody knows it, and one would go whose tokens are still good. Nil: it
	// may.
	Steady func() bool
	Log    *slog.Logger
}

// keyring holds the token signing keys, unsealed. The public ones are computed from the private ones and never read from
// a column that somebody could have changed. After a change of sealed keys, here or at another replica, they are read
// again before anything is signed or verified with them.
//
// It also sees to it that a key is published before it signs, signs for its time, and is published for as long as its last
// token may live. Of the replicas of a database the first who finds something due does it, in one transaction, in which
// what is due is judged again: the others find it done.
type keyring struct {
	store  *store.Store
	box    *outbox.Box
	policy keyPolicy
	now    func() time.Time
	steady func() bool
	log    *slog.Logger
	epoch  atomic.Uint64 // counts changes

	onlyFAPI atomic.Bool // set once: keys of other algorithms than the profile's are a failure

	mu       sync.Mutex // held while they are read
	failed   error      // of the last time, if it failed
	failedAt time.Time
	ring     atomic.Pointer[ring]

	making   sync.Mutex // held while a key is made
	spare    store.Key  // made, and given to nobody yet; zero: none
	complain time.Time
}

// ring is the keys as they were at one moment.
type ring struct {
	epoch   uint64
	current issuer.SigningKey
	public  []tokens.PublicKey
}

// loadKeyring reads the signing keys, does what is due to them, making the first one when there is none, and verifies one
// product of each before any token depends on it.
func loadKeyring(ctx context.Context, cfg keyringConfig) (*keyring, error) {
	k := &keyring{
		store: cfg.Store, box: cfg.Box, now: cfg.Now, steady: cfg.Steady, log: cfg.Log,
		policy: keyPolicy{algorithm: cfg.Algorithm, rotate: cfg.Rotate, announce: cfg.Announce, started: cfg.Now()},
	}
	cfg.Store.OnChange(k.forget) // before they are read, so that no change is missed
	_, undone := k.turn(ctx)
	if _, err := k.keys(ctx); err != nil {
		return nil, errors.Join(err, undone)
	}
	if undone != nil { // there is something to sign with: it can wait
		k.complainOf(ctx, undone)
	}
	return k, nil
}

// turn does what is due to the keys, and returns when the next thing will be; zero says never.
func (k *keyring) turn(ctx context.Context) (time.Time, error) {
	rows, err := k.store.Keys(ctx, purposeSigning)
	if err != nil {
		return time.Time{}, fmt.Errorf("reading the signing keys: %w", err)
	}
	now := k.now()
	plan := k.policy.plan(rows, now)
	if plan.isNothing() {
		return plan.next, nil
	}
	signs := slices.ContainsFunc(rows, func(row store.Key) bool { return row.State == keyActive })
	if signs && k.steady != nil && !k.steady() {
		return now.Add(keyHeld), nil
	}
	if err := k.prepare(plan.make); err != nil {
		return time.Time{}, err
	}
	_, err = k.box.Change(ctx, audit.Decision, func(tx *store.Store) ([]audit.Event, error) {
		rows, err := tx.Keys(ctx, purposeSigning)
		if err != nil {
			return nil, err
		}
		return k.policy.carryOut(ctx, tx, k.policy.plan(rows, now), now, k.take)
	})
	if err != nil {
		return time.Time{}, fmt.Errorf("storing the signing keys: %w", err)
	}
	if rows, err = k.store.Keys(ctx, purposeSigning); err != nil {
		return time.Time{}, fmt.Errorf("reading the signing keys: %w", err)
	}
	after := k.policy.plan(rows, k.now())
	return after.next, nil
}

// prepare makes a key for that algorithm, unless one is there that is not in use; none for the empty one.
func (k *keyring) prepare(algorithm string) error {
	k.making.Lock()
	defer k.making.Unlock()
	if algorithm == "" || k.spare.Algorithm == algorithm {
		return nil
	}
	made, err := newSigningKey(algorithm)
	if err == nil {
		k.spare = made
	}
	return err
}

// take returns the key that prepare has made, for good, or makes one now. No key is given out twice, whatever became of
// the transaction that it was for: one that was taken away must not come back.
func (k *keyring) take(algorithm string) (store.Key, error) {
	k.making.Lock()
	defer k.making.Unlock()
	made := k.spare
	k.spare = store.Key{}
	if made.Algorithm == algorithm {
		return made, nil
	}
	return newSigningKey(algorithm)
}

// run does what is due to the keys until ctx is done.
func (k *keyring) run(ctx context.Context) {
	for {
		next, err := k.turn(ctx)
		if err != nil && ctx.Err() == nil {
			k.complainOf(ctx, err)
		}
		wait := keyLook
		if !next.IsZero() {
			wait = max(time.Millisecond, min(wait, next.Sub(k.now())))
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// complainOf logs that something due was not done. Only run and what comes before it call it.
func (k *keyring) complainOf(ctx context.Context, err error) {
	if now := time.Now(); now.Sub(k.complain) >= keyComplaint {
		k.complain = now
		k.log.ErrorContext(ctx, "what is due to the signing keys was not done: the present ones go on", "error", err)
	}
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
	r := &ring{}
	for _, row := range rows {
		if k.onlyFAPI.Load() && !inFAPI(row.Algorithm) {
			return nil, fmt.Errorf("signing key %s is for %s, which a replica without fapi must have made: fapi is true here, and the profile does not allow it",
				row.ID, row.Algorithm)
		}
		key, err := signingKey(row)
		if err == nil {
			err = key.Probe()
		}
		if err != nil {
			return nil, fmt.Errorf("signing key %s: %w", row.ID, err)
		}
		r.public = append(r.public, tokens.PublicKey{ID: key.ID, Algorithm: key.Algorithm, Key: key.Signer.Public()})
		if r.current.Signer == nil && row.State == keyActive {
			r.current = key
		}
	}
	if r.current.Signer == nil {
		return nil, errors.New("there is no signing key")
	}
	return r, nil
}

// signingKey is a row as the key to sign with. The name of a key is the hash of its public half, so that no two can be
// taken for each other.
func signingKey(row store.Key) (issuer.SigningKey, error) {
	signer, err := decodeSigner(row)
	if err != nil {
		return issuer.SigningKey{}, err
	}
	if id, err := tokens.KeyID(signer.Public()); err != nil || id != row.ID {
		return issuer.SigningKey{}, errors.New("it has the name of another key")
	}
	return issuer.SigningKey{ID: row.ID, Algorithm: row.Algorithm, Signer: signer}, nil
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

// Published implements issuer.Keys. While the keys cannot be read again it gives the last ones, since an empty list would be
// remembered; whoever serves the list looks before whether they can, see publishedKeys.
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

// Signing keys for operators: admin.Keys.

// SigningKeys lists the keys as the transaction or store has them, oldest first.
func (k *keyring) SigningKeys(ctx context.Context, db *store.Store) ([]admin.SigningKey, error) {
	rows, err := db.Keys(ctx, purposeSigning)
	if err != nil {
		return nil, err
	}
	list := make([]admin.SigningKey, len(rows))
	for i, row := range rows {
		list[i] = admin.SigningKey{ID: row.ID, Algorithm: row.Algorithm, State: row.State, CreatedAt: row.CreatedAt, Since: row.Since}
		if !row.Until.IsZero() {
			list[i].Until = &row.Until
		}
	}
	return list, nil
}

// PrepareKey makes the next key, so that no transaction waits for that.
func (k *keyring) PrepareKey(ctx context.Context, db *store.Store) error {
	rows, err := db.Keys(ctx, purposeSigning)
	if err != nil {
		return err
	}
	return k.prepare(k.policy.wanted(rows))
}

// AnnounceKey announces the next key in the transaction tx, or does nothing when one is announced.
func (k *keyring) AnnounceKey(ctx context.Context, tx *store.Store) ([]audit.Event, error) {
	rows, err := tx.Keys(ctx, purposeSigning)
	if err != nil || slices.ContainsFunc(rows, func(row store.Key) bool { return row.State == keyAnnounced }) {
		return nil, err
	}
	return k.policy.carryOut(ctx, tx, keyPlan{make: k.policy.wanted(rows)}, k.now(), k.take)
}

// ReplaceKeys removes every key in the transaction tx, those that are announced and those that retire too, and makes a new
// one that signs at once: whoever has read one of them has read all. They are denied too, for those who have them in memory. The records come in that order.
func (k *keyring) ReplaceKeys(ctx context.Context, tx *store.Store) ([]audit.Event, error) {
	rows, err := tx.Keys(ctx, purposeSigning)
	if err != nil {
		return nil, err
	}
	plan := keyPlan{make: k.policy.wanted(rows), atOnce: true}
	for _, row := range rows {
		plan.drop = append(plan.drop, row.ID)
		if _, err := tx.Deny(ctx, tokens.Denial{KeyID: row.ID}); err != nil {
			return nil, err
		}
	}
	return k.policy.carryOut(ctx, tx, plan, k.now(), k.take)
}
