// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"
)

// This file takes certificates away that are not our CA's. There is no list on which they could be put: they are taken
// off the client that registered them, their keys are blocked, or the client is disabled.

// revokeOther takes away what a client has for which our CA does not vouch; of others it does nothing.
func (s *Store) revokeOther(c *change, id string, reason int, now time.Time, out *Revocation) error {
	client, err := c.lockClient(id)
	switch {
	case err != nil:
		return fmt.Errorf("client %q: %w", id, err)
	case client.enrols():
		return nil
	case !client.RemovedAt.IsZero() && (reason != keyCompromise || len(client.Certificates) == 0):
		return fmt.Errorf("client %q: %w", id, ErrNotFound) // it has nothing any more
	case reason == keyCompromise:
		return s.takeRegistered(c, client, nil, reason, now, out)
	}
	return fmt.Errorf("client %q: %w", id, ErrNotRevocable)
}

// revokeRegistered takes those of the thumbprints away that clients registered by value, and returns those that our
// inventory must know.
func (s *Store) revokeRegistered(c *change, thumbprints [][32]byte, reason int, now time.Time, out *Revocation) ([][32]byte, error) {
	var issued [][32]byte
	seen := make(map[[32]byte]bool) // named twice, or taken with another of its key
	for _, t := range thumbprints {
		if seen[t] {
			continue
		}
		seen[t] = true
		var user string
		err := c.tx.QueryRowContext(c.ctx, queryPinnedUser, digest(t)).Scan(&user)
		if errors.Is(err, sql.ErrNoRows) {
			issued = append(issued, t)
			continue
		}
		if err != nil {
			return nil, err
		}
		client, err := c.lockClient(user)
		if err != nil {
			return nil, err
		}
		if err := s.takeRegistered(c, client, &t, reason, now, out); err != nil {
			return nil, err
		}
		for _, cert := range out.Revoked {
			seen[cert.Thumbprint] = true
		}
		// A client whose id was one of our CA's before can have registered what that one was issued.
		if _, err := scanCertificate(c.tx.QueryRowContext(c.ctx, queryCertificate, digest(t))); err == nil {
			issued = append(issued, t)
		} else if !errors.Is(err, ErrNotFound) {
			return nil, err
		}
	}
	return issued, nil
}

// takeRegistered takes the registered certificate with a thumbprint off its client, or all of them when it is nil, and
// disables the client when none is left.
func (s *Store) takeRegistered(c *change, client Client, thumbprint *[32]byte, reason int, now time.Time, out *Revocation) error {
	taken, left, err := split(client, thumbprint, reason)
	if err != nil {
		return err
	}
	blocked := make(map[[32]byte]bool)
	for _, cert := range taken {
		if reason != keyCompromise {
			break
		}
		isNew, err := c.block(cert.KeyHash, now)
		if err != nil {
			return err
		}
		blocked[cert.KeyHash] = blocked[cert.KeyHash] || isNew
		if isNew {
			out.Blocked = append(out.Blocked, cert.KeyHash)
		}
	}
	changed := false
	switch {
	case len(left) > 0:
		changed, err = true, s.keepRegistered(c, client.ID, taken, left)
	case client.RemovedAt.IsZero() && !client.Disabled:
		changed, err = true, s.disable(c, client.ID)
		out.Disabled = append(out.Disabled, client.ID)
	}
	if err != nil {
		return err
	}
	for _, cert := range taken {
		cert.RevokedAt, cert.Reason = asStored(now), reason
		if changed || blocked[cert.KeyHash] {
			if err := c.denyCertificate(cert.Thumbprint, cert.NotAfter, now); err != nil {
				return err
			}
			out.Revoked = append(out.Revoked, cert)
		} else {
			out.Already = append(out.Already, cert)
		}
	}
	return nil
}

// split divides a client's registered certificates into those to take, as rows, and those to leave. A key that is
// compromised is so in every certificate.
func split(client Client, thumbprint *[32]byte, reason int) (taken []Certificate, left [][]byte, _ error) {
	var rows []Certificate
	for _, der := range client.Certificates {
		cert, err := registeredRow(client, der)
		if err != nil {
			return nil, nil, err
		}
		rows = append(rows, cert)
	}
	for _, row := range rows {
		if thumbprint == nil || slices.ContainsFunc(rows, func(named Certificate) bool {
			return named.Thumbprint == *thumbprint &&
				(named.Thumbprint == row.Thumbprint || reason == keyCompromise && named.KeyHash == row.KeyHash)
		}) {
			taken = append(taken, row)
		} else {
			left = append(left, row.DER)
		}
	}
	return taken, left, nil
}

// registeredRow is a registered certificate in the form of the inventory.
func registeredRow(client Client, der []byte) (Certificate, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return Certificate{}, fmt.Errorf("a registered certificate of client %q: %w", client.ID, err)
	}
	return Certificate{
		Thumbprint: sha256.Sum256(der), Serial: cert.SerialNumber.String(), ClientID: client.ID, Generation: client.Generation,
		NotBefore: cert.NotBefore, NotAfter: cert.NotAfter, KeyHash: sha256.Sum256(cert.RawSubjectPublicKeyInfo), DER: der,
		CreatedAt: client.UpdatedAt,
	}, nil
}

// keepRegistered leaves a client these certificates only. Unlike what is registered anew they are not judged again: a
// blocked key among them must not keep another from being taken away.
func (s *Store) keepRegistered(c *change, id string, taken []Certificate, left [][]byte) error {
	for _, cert := range taken {
		if _, err := c.link(deletePinnedOne, digest(cert.Thumbprint)); err != nil {
			return err
		}
	}
	_, err := c.exec("clients", setCertificates, id, ders(left), moment(s.now()))
	c.changedClient(id)
	return err
}

// disable disables a client, the last grantor too.
func (s *Store) disable(c *change, id string) error {
	if err := c.void(id); err != nil {
		return err
	}
	if err := c.denyClient(id, s.now()); err != nil {
		return err
	}
	return s.setDisabled(c, id, true)
}
