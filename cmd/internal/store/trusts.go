// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
)

// maxAnchors bounds the certificates of a trust.
const maxAnchors = 100

// check refuses a trust that could vouch for nobody, or of which it is not plain how it revokes.
func (t *Trust) check() error {
	switch {
	case t.Name == "":
		return errors.New("a trust needs a name")
	case len(t.Anchors) == 0:
		return errors.New("a trust needs an anchor")
	case len(t.Anchors)+len(t.Intermediates) > maxAnchors:
		return fmt.Errorf("a trust has at most %d certificates", maxAnchors)
	case slices.ContainsFunc(slices.Concat(t.Anchors, t.Intermediates), func(der []byte) bool { return len(der) == 0 }):
		return errors.New("a certificate is empty")
	case !slices.Contains([]string{"hard", "soft", "off"}, t.Revocation):
		return fmt.Errorf("revocation is %q, not hard, soft or off", t.Revocation)
	}
	return nil
}

// AddTrust registers a foreign CA. The certificates and the list are kept as they are: the caller has judged them.
// Errors: ErrExists, also for a name of Config.FileTrusts.
func (s *Store) AddTrust(ctx context.Context, t Trust) error {
	return s.changeTrust(ctx, "add", t.Name, func(c *change) error {
		if err := t.check(); err != nil {
			return err
		}
		if slices.Contains(s.files, t.Name) {
			return fmt.Errorf("%w: in the configuration", ErrExists)
		}
		t.CreatedAt, t.UpdatedAt = s.now(), s.now()
		return c.writeTrust(insertTrust, t)
	})
}

// ReplaceTrust replaces all of a trust but its name and the time of its creation. The error is ErrNotFound.
func (s *Store) ReplaceTrust(ctx context.Context, t Trust) error {
	return s.changeTrust(ctx, "replace", t.Name, func(c *change) error {
		if err := t.check(); err != nil {
			return err
		}
		old, err := c.lockTrust(t.Name)
		if err != nil {
			return err
		}
		t.CreatedAt, t.UpdatedAt = old.CreatedAt, s.now()
		return c.writeTrust(updateTrust, t)
	})
}

// RemoveTrust removes a trust. Errors: ErrNotFound, and an InUseError while a client, disabled or not, names it.
func (s *Store) RemoveTrust(ctx context.Context, name string) error {
	return s.changeTrust(ctx, "remove", name, func(c *change) error {
		if _, err := c.lockTrust(name); err != nil {
			return err
		}
		users, err := c.users(queryTrustUsers, name)
		if err != nil {
			return err
		}
		if len(users) > 0 {
			return &InUseError{Trust: name, ClientIDs: users}
		}
		_, err = c.exec("trusts", deleteTrust, name)
		return err
	})
}

func (s *Store) changeTrust(ctx context.Context, verb, name string, f func(*change) error) error {
	err := s.change(ctx, func(c *change) error {
		c.what.Trusts = true
		if err := f(c); err != nil {
			return err
		}
		return c.dropTickets() // nobody resumes what began under another trust
	})
	if err != nil {
		return fmt.Errorf("%s trust %q: %w", verb, name, err)
	}
	return nil
}

func (c *change) writeTrust(query string, t Trust) error {
	_, err := c.exec("trusts", query, t.Name, ders(t.Anchors), ders(t.Intermediates), t.CRLURL, t.CRL, t.Revocation,
		moment(t.CreatedAt), moment(t.UpdatedAt))
	return err
}

// lockTrust reads a trust and keeps others from removing it until the transaction ends.
func (c *change) lockTrust(name string) (Trust, error) {
	return scanTrust(c.tx.QueryRowContext(c.ctx, queryTrust, name))
}

// checkTrust refuses a client's trust that there is not.
func (s *Store) checkTrust(c *change, name string) error {
	if name == "" || slices.Contains(s.files, name) {
		return nil
	}
	_, err := c.lockTrust(name)
	if errors.Is(err, ErrNotFound) {
		return fmt.Errorf("%w: %q", ErrUnknownTrust, name)
	}
	return err
}

// Trust returns a trust, or ErrNotFound.
func (s *Store) Trust(ctx context.Context, name string) (Trust, error) {
	if !storable(name) {
		return Trust{}, fmt.Errorf("trust %q: %w", name, ErrNotFound)
	}
	t, err := scanTrust(s.read.QueryRowContext(ctx, queryTrust, name))
	if err != nil {
		return Trust{}, fmt.Errorf("trust %q: %w", name, err)
	}
	return t, nil
}

// Trusts lists all trusts in the order of their names. Those of the configuration's files are not among them.
func (s *Store) Trusts(ctx context.Context) ([]Trust, error) {
	rows, err := s.read.QueryContext(ctx, queryTrusts)
	trusts, err := all(rows, err, scanTrust)
	if err != nil {
		return nil, fmt.Errorf("list trusts: %w", err)
	}
	return trusts, nil
}

func scanTrust(r row) (Trust, error) {
	var t Trust
	err := r.Scan(&t.Name, (*ders)(&t.Anchors), (*ders)(&t.Intermediates), &t.CRLURL, &t.CRL, &t.Revocation,
		(*moment)(&t.CreatedAt), (*moment)(&t.UpdatedAt))
	if errors.Is(err, sql.ErrNoRows) {
		return Trust{}, ErrNotFound
	}
	if len(t.CRL) == 0 {
		t.CRL = nil
	}
	return t, err
}
