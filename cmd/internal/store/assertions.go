// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// ErrAssertionUsed says that an assertion was used before.
var ErrAssertionUsed = errors.New("the assertion was used before")

// UseAssertion notes that the assertion with this digest was used; until says when it has expired wherever clocks may
// stand. It returns when that is committed. Of many callers with one digest, here and at every other replica, one gets nil
// and the others ErrAssertionUsed. After ErrUnknown it may be noted or not. The state's version stays as it is: nobody
// holds assertions in memory.
func (s *Store) UseAssertion(ctx context.Context, digested [32]byte, until time.Time) error {
	err := s.direct(ctx, func(ctx context.Context, w conn) error {
		result, err := w.ExecContext(ctx, insertAssertion, digest(digested), moment(until))
		if err != nil {
			return err
		}
		if n, err := result.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, ErrAssertionUsed)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("use an assertion: %w", err)
	}
	return nil
}

// PruneAssertions forgets assertions that had expired before the time.
func (s *Store) PruneAssertions(ctx context.Context, before time.Time) error {
	err := s.direct(ctx, func(ctx context.Context, w conn) error {
		_, err := w.ExecContext(ctx, pruneAssertions, moment(before))
		return err
	})
	if err != nil {
		return fmt.Errorf("forget expired assertions: %w", err)
	}
	return nil
}
