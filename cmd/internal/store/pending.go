// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
)

// AddPending keeps a request until another operator confirms it, and returns it with its ID and times.
func (s *Store) AddPending(ctx context.Context, p Pending) (Pending, error) {
	return Pending{}, errors.ErrUnsupported
}

// Pending lists the requests that wait and have not expired, oldest first.
func (s *Store) Pending(ctx context.Context) ([]Pending, error) { return nil, errors.ErrUnsupported }

// TakePending removes a request that confirmer confirms, and returns it for the caller to carry out.
func (s *Store) TakePending(ctx context.Context, id, confirmer string) (Pending, error) {
	return Pending{}, errors.ErrUnsupported
}

// DropPending removes a request that is rejected or withdrawn, and returns it.
func (s *Store) DropPending(ctx context.Context, id string) (Pending, error) {
	return Pending{}, errors.ErrUnsupported
}
