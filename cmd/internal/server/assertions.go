// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"time"

	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/tokens/issuer"
)

// assertions remembers in the database which assertions were used, for all servers that share it.
type assertions struct{ store *store.Store }

// Use implements issuer.Assertions.
func (a assertions) Use(ctx context.Context, digest [32]byte, until time.Time) error {
	err := a.store.UseAssertion(ctx, digest, until)
	switch {
	case errors.Is(err, store.ErrAssertionUsed):
		return issuer.ErrUsed
	case err != nil:
		return again{err}
	}
	return nil
}

// How often expired assertions are forgotten, and how long after they have expired on every clock.
const (
	assertionsEvery = time.Minute
	assertionsAfter = time.Minute
)

// pruneAssertions forgets assertions that have expired, until ctx is done. What it could not do it does later.
func (s *service) pruneAssertions(ctx context.Context) {
	ticker := time.NewTicker(assertionsEvery)
	defer ticker.Stop()
	for {
		s.forgetAssertions(ctx, time.Now())
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// forgetAssertions forgets those that have expired by now.
func (s *service) forgetAssertions(ctx context.Context, now time.Time) {
	if !s.mayForget() {
		return
	}
	if err := s.folder.store.PruneAssertions(ctx, now.Add(-assertionsAfter)); err != nil && ctx.Err() == nil {
		s.log.Warn("expired assertions could not be forgotten", "error", err)
	}
}
