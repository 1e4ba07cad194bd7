// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
)

// AddTrust registers a foreign CA. Errors: ErrExists.
func (s *Store) AddTrust(ctx context.Context, t Trust) error { return errors.ErrUnsupported }

// ReplaceTrust replaces all of a trust but its name and the time of its creation, or returns ErrNotFound.
func (s *Store) ReplaceTrust(ctx context.Context, t Trust) error { return errors.ErrUnsupported }

// RemoveTrust removes a trust. Errors: ErrNotFound, and an InUseError while a client names it.
func (s *Store) RemoveTrust(ctx context.Context, name string) error { return errors.ErrUnsupported }

// Trust returns a trust, or ErrNotFound.
func (s *Store) Trust(ctx context.Context, name string) (Trust, error) {
	return Trust{}, errors.ErrUnsupported
}

// Trusts lists all trusts in the order of their names.
func (s *Store) Trusts(ctx context.Context) ([]Trust, error) { return nil, errors.ErrUnsupported }
