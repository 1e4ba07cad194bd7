// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// AddRenewal adds at the time now cert, which the certificate with the thumbprint parent authenticated, and returns
// the certificate that the caller must hand out: cert, or an earlier child of the same parent with the same key that
// is valid and not revoked, so that a repeated renewal changes nothing.
//
// Whether the parent may still renew is judged in this transaction, so that a revocation under way either finds the
// child or prevents it. So is whether another child with another key is alive: then the answer has a Fork, and with
// suspend the client is disabled, unless it is the last grantor. Errors: ErrNotFound (the parent), ErrRevoked, ErrExpired,
// ErrClientDisabled, ErrGeneration, ErrKeyBlocked, ErrKeyTaken, ErrExists.
func (s *Store) AddRenewal(ctx context.Context, parent [32]byte, cert Certificate, suspend bool, now time.Time) (Renewal, error) {
	var renewal Renewal
	err := s.change(ctx, func(c *change) error {
		var err error
		renewal, err = s.renew(c, parent, cert, suspend, now)
		return err
	})
	if err != nil {
		return Renewal{}, fmt.Errorf("renew: %w", err)
	}
	return renewal, nil
}

func (s *Store) renew(c *change, parent [32]byte, cert Certificate, suspend bool, now time.Time) (Renewal, error) {
	if err := c.entitled(cert.ClientID, cert.Generation); err != nil {
		return Renewal{}, err
	}
	old, err := scanCertificate(c.tx.QueryRowContext(c.ctx, queryCertificate, digest(parent)))
	switch {
	case err != nil:
		return Renewal{}, err
	case !old.RevokedAt.IsZero():
		return Renewal{}, ErrRevoked
	case now.After(old.NotAfter):
		return Renewal{}, ErrExpired
	case old.ClientID != cert.ClientID || old.Generation != cert.Generation:
		return Renewal{}, ErrGeneration
	}
	// Also the key that asks must not be blocked: it could name itself anew.
	for _, key := range [][32]byte{old.KeyHash, cert.KeyHash} {
		if err := c.checkKey(key, cert.ClientID); err != nil {
			return Renewal{}, err
		}
	}
	child, err := scanCertificate(c.tx.QueryRowContext(c.ctx, queryChild, digest(parent), digest(cert.KeyHash), moment(now)))
	if !errors.Is(err, ErrNotFound) {
		return Renewal{Certificate: child}, err
	}
	cert.RenewedFrom = parent
	if cert, err = s.insertCertificate(c, cert); err != nil {
		return Renewal{}, err
	}
	fork, err := s.findFork(c, cert, suspend, now)
	return Renewal{Certificate: cert, Fork: fork, Suspended: fork != nil && fork.Suspension == SuspensionDone}, err
}

// findFork returns a fork when another live child of the same parent has another key, and suspends the client if asked: in
// the transaction that adds the child, so that nothing that fails later can keep it back.
func (s *Store) findFork(c *change, child Certificate, suspend bool, now time.Time) (*Fork, error) {
	sibling, err := scanCertificate(c.tx.QueryRowContext(c.ctx, querySibling, digest(child.RenewedFrom),
		digest(child.KeyHash), moment(now)))
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	fork := &Fork{Sibling: sibling.Thumbprint}
	if suspend {
		fork.Suspension, err = s.suspend(c, child.ClientID)
	}
	return fork, err
}

func (s *Store) suspend(c *change, id string) (Suspension, error) {
	client, err := c.liveClient(id)
	if err != nil {
		return SuspensionNone, err
	}
	err = c.keepGrantor(client, s.now())
	if errors.Is(err, ErrLastGrantor) {
		return SuspensionLastGrantor, nil
	}
	if err != nil {
		return SuspensionNone, err
	}
	return SuspensionDone, s.disable(c, id)
}
