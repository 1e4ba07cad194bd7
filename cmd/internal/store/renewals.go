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
// child or prevents it. So is whether another child with another key is alive: then Forks lists the renewal until
// DropFork, and with by.Suspend the client is disabled. Errors: ErrNotFound (the parent), ErrRevoked, ErrExpired,
// ErrClientDisabled, ErrGeneration, ErrKeyBlocked, ErrKeyTaken, ErrExists.
func (s *Store) AddRenewal(ctx context.Context, parent [32]byte, cert Certificate, by Renewer, now time.Time) (Renewal, error) {
	var renewal Renewal
	err := s.change(ctx, func(c *change) error {
		var err error
		renewal, err = s.renew(c, parent, cert, by, now)
		return err
	})
	if err != nil {
		return Renewal{}, fmt.Errorf("renew: %w", err)
	}
	return renewal, nil
}

func (s *Store) renew(c *change, parent [32]byte, cert Certificate, by Renewer, now time.Time) (Renewal, error) {
	if err := c.entitled(cert.ClientID, cert.Generation); err != nil {
		return Renewal{}, err
	}
	old, err := scanCertificate(c.tx.QueryRowContext(c.ctx, queryCertificate+forUpdate, digest(parent)))
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
	if err := c.checkKey(cert.KeyHash, cert.ClientID); err != nil {
		return Renewal{}, err
	}
	child, err := scanCertificate(c.tx.QueryRowContext(c.ctx, queryChild, digest(parent), digest(cert.KeyHash), moment(now)))
	if !errors.Is(err, ErrNotFound) {
		return Renewal{Certificate: child}, err
	}
	cert.RenewedFrom = parent
	if cert, err = s.insertCertificate(c, cert); err != nil {
		return Renewal{}, err
	}
	suspension, err := s.watchFork(c, cert, by, now)
	return Renewal{Certificate: cert, Suspended: suspension == SuspensionDone}, err
}

// watchFork notes when another live child of the same parent has another key, and suspends the client if asked: in the
// transaction that adds the child, so that nothing that fails later can keep it back.
func (s *Store) watchFork(c *change, child Certificate, by Renewer, now time.Time) (Suspension, error) {
	sibling, err := scanCertificate(c.tx.QueryRowContext(c.ctx, querySibling, digest(child.RenewedFrom),
		digest(child.KeyHash), moment(now)))
	if errors.Is(err, ErrNotFound) {
		return SuspensionNone, nil
	}
	if err != nil {
		return SuspensionNone, err
	}
	suspension := SuspensionNone
	if by.Suspend {
		if suspension, err = s.suspend(c, child.ClientID); err != nil {
			return SuspensionNone, err
		}
	}
	_, err = c.exec("forks", insertFork, digest(child.Thumbprint), digest(sibling.Thumbprint), by.Address, by.Correlation,
		string(suspension), moment(now))
	return suspension, err
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

// Forks lists the forks whose alarm was not raised yet, oldest first, at most 100.
func (s *Store) Forks(ctx context.Context) ([]Fork, error) {
	rows, err := s.read.QueryContext(ctx, queryForks)
	forks, err := all(rows, err, func(r row) (f Fork, err error) {
		return f, r.Scan(append(f.Certificate.columns(), (*digest)(&f.Sibling), &f.Address, &f.Correlation,
			(*string)(&f.Suspension), (*moment)(&f.At))...)
	})
	if err != nil {
		return nil, fmt.Errorf("list forks: %w", err)
	}
	return forks, nil
}

// DropFork notes that the alarm about the fork with this later child was raised. Once more it changes nothing.
func (s *Store) DropFork(ctx context.Context, child [32]byte) error {
	err := s.change(ctx, func(c *change) error {
		_, err := c.exec("forks", deleteFork, digest(child))
		return err
	})
	if err != nil {
		return fmt.Errorf("drop a fork: %w", err)
	}
	return nil
}
