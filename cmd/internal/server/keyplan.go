// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/mldsa"
)

// The states of a signing key, in their order. All of them are published; what is over is deleted.
const (
	keyAnnounced = "announced" // it will sign, once whoever verifies has had the time to hear of it
	keyActive    = "active"    // it signs
	keyRetiring  = "retiring"  // it has signed, and its last token may still be good
)

// longestToken is how long after a key's last signature its last token may be accepted somewhere: the longest life that can
// be configured, so that nobody's shorter one counts, and 2 min for the clocks, for the leeway of whoever verifies (1 min at
// most) and for the replicas that learn of the change last.
const longestToken = time.Hour + 2*time.Minute

// rsaBits is the size of RSA keys, of about the strength of P-256.
const rsaBits = 3072

// keyPolicy says which keys there should be.
type keyPolicy struct {
	algorithm string        // of the key that signs
	rotate    time.Duration // how long a key signs; 0: until somebody changes it
	announce  time.Duration // how long it is published before
	started   time.Time     // when this process began to want that algorithm
}

// keyPlan is what is to be done to the keys. Its zero value is nothing.
type keyPlan struct {
	make     string   // algorithm of a key to be made
	atOnce   bool     // and to sign at once, since there is none that does
	activate string   // id of the announced key that is to sign
	drop     []string // ids of the keys that nobody needs any more
	next     time.Time
}

func (p *keyPlan) isNothing() bool { return p.make == "" && p.activate == "" && len(p.drop) == 0 }

// later notes that something will be due at that time.
func (p *keyPlan) later(at time.Time) {
	if p.next.IsZero() || at.Before(p.next) {
		p.next = at
	}
}

// wanted is the algorithm to sign with: what the configuration says, unless a key was made since this process has read it.
// Whoever made that has a later word, so that two replicas with different configurations do not change it for ever.
func (p keyPolicy) wanted(rows []store.Key) string {
	var newest store.Key
	for _, row := range rows {
		if row.CreatedAt.After(newest.CreatedAt) {
			newest = row
		}
	}
	if newest.CreatedAt.After(p.started) {
		return newest.Algorithm
	}
	return p.algorithm
}

// plan says what is due now, by the keys that there are, oldest first.
func (p keyPolicy) plan(rows []store.Key, now time.Time) keyPlan {
	var plan keyPlan
	var active, next *store.Key
	for i := range rows {
		switch row := &rows[i]; {
		case row.State == keyActive && active == nil:
			active = row
		case row.State == keyAnnounced && next == nil:
			next = row
		case row.State == keyRetiring && now.Before(row.Until):
			plan.later(row.Until)
		case row.State == keyRetiring:
			plan.drop = append(plan.drop, row.ID)
		}
	}
	wanted := p.wanted(rows)
	if next != nil && next.Algorithm != wanted {
		plan.drop, next = append(plan.drop, next.ID), nil // nothing was signed with it
	}
	switch {
	case active == nil && next != nil:
		plan.activate = next.ID
	case active == nil:
		plan.make, plan.atOnce = wanted, true
	case next != nil && now.Before(next.Until):
		plan.later(next.Until)
	case next != nil:
		plan.activate = next.ID
	default:
		plan.announceWhenDue(p, active, wanted, now)
	}
	return plan
}

// announceWhenDue has the successor of a key announced in time.
func (p *keyPlan) announceWhenDue(policy keyPolicy, active *store.Key, wanted string, now time.Time) {
	due := active.Since.Add(policy.rotate - policy.announce)
	switch {
	case active.Algorithm != wanted, policy.rotate > 0 && !now.Before(due):
		p.make = wanted
	case policy.rotate > 0:
		p.later(due)
	}
}

// carryOut does what a plan says, in the transaction tx, and returns the records of it. fresh makes a key, or returns one
// that was made before: an RSA key takes seconds.
func (p *keyPolicy) carryOut(ctx context.Context, tx *store.Store, plan keyPlan, now time.Time, fresh func(algorithm string) (store.Key, error)) ([]audit.Event, error) {
	var events []audit.Event
	for _, id := range plan.drop {
		if err := tx.DeleteKey(ctx, purposeSigning, id); err != nil {
			return nil, err
		}
		events = append(events, keyEvent("key.retire", id))
	}
	if plan.activate != "" {
		more, err := activate(ctx, tx, plan.activate, now)
		if err != nil {
			return nil, err
		}
		events = append(events, more...)
	}
	if plan.make != "" {
		key, err := fresh(plan.make)
		if err != nil {
			return nil, err
		}
		key.State, key.CreatedAt, key.Since, key.Until = keyAnnounced, now, now, now.Add(p.announce)
		if plan.atOnce {
			key.State, key.Until = keyActive, time.Time{}
		}
		if err := tx.PutKey(ctx, key); err != nil {
			return nil, err
		}
		events = append(events, created(key))
	}
	return events, nil
}

// activate has an announced key sign, and those that did retire.
func activate(ctx context.Context, tx *store.Store, id string, now time.Time) ([]audit.Event, error) {
	rows, err := tx.Keys(ctx, purposeSigning)
	if err != nil {
		return nil, err
	}
	event := keyEvent("key.activate", id)
	for _, row := range rows {
		if row.State != keyActive {
			continue
		}
		until := now.Add(longestToken)
		if err := tx.SetKeyState(ctx, purposeSigning, row.ID, keyRetiring, now, until); err != nil {
			return nil, err
		}
		event.Detail["replaces"], event.Detail["until"] = row.ID, until.UTC().Format(time.RFC3339Nano)
	}
	return []audit.Event{event}, tx.SetKeyState(ctx, purposeSigning, id, keyActive, now, time.Time{})
}

func keyEvent(name, id string) audit.Event {
	return audit.Event{Name: name, Outcome: audit.Granted, Detail: map[string]string{"kid": id}}
}

func created(key store.Key) audit.Event {
	e := keyEvent("key.create", key.ID)
	e.Detail["alg"], e.Detail["state"] = key.Algorithm, key.State
	return e
}

// newSigningKey makes a key for an algorithm. One of RSA takes up to some seconds.
func newSigningKey(algorithm string) (store.Key, error) {
	signer, err := makeSigner(algorithm)
	if err != nil {
		return store.Key{}, fmt.Errorf("making a signing key: %w", err)
	}
	id, err := tokens.KeyID(signer.Public())
	if err != nil {
		return store.Key{}, err
	}
	private, err := encodeSigner(signer)
	if err != nil {
		return store.Key{}, fmt.Errorf("encoding a signing key: %w", err)
	}
	return store.Key{ID: id, Purpose: purposeSigning, Algorithm: algorithm, Private: private}, nil
}

// encodeSigner is a private key as it is sealed: in PKCS #8, and the seed of one of ML-DSA.
func encodeSigner(signer crypto.Signer) ([]byte, error) {
	if key, ok := signer.(*mldsa.PrivateKey); ok {
		return key.Seed(), nil
	}
	return x509.MarshalPKCS8PrivateKey(signer)
}

// decodeSigner reads what encodeSigner wrote.
func decodeSigner(row store.Key) (crypto.Signer, error) {
	if isMLDSA(row.Algorithm) {
		key, err := mldsa.NewPrivateKey(row.Algorithm, row.Private)
		if err != nil {
			return nil, err
		}
		return key, nil
	}
	return parseSigner(row.Private)
}

func isMLDSA(algorithm string) bool {
	return algorithm == tokens.MLDSA44 || algorithm == tokens.MLDSA65
}

// signingAlgorithms are all that a key of ours may have: who verifies our own tokens goes by the keys.
func signingAlgorithms() []string {
	return []string{tokens.ES256, tokens.EdDSA, tokens.PS256, tokens.RS256, tokens.MLDSA44, tokens.MLDSA65}
}

func makeSigner(algorithm string) (crypto.Signer, error) {
	switch algorithm {
	case tokens.ES256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case tokens.EdDSA:
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	case tokens.PS256, tokens.RS256:
		return rsa.GenerateKey(rand.Reader, rsaBits)
	case tokens.MLDSA44, tokens.MLDSA65:
		return mldsa.GenerateKey(algorithm)
	}
	return nil, fmt.Errorf("the algorithm %q is not known", algorithm)
}
