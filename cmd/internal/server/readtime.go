// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"time"

	"github.com/certbound/certbound/cmd/internal/store"
)

// readTime bounds one reading of the database for a request. A database that is cut off may be silent instead of failing,
// and after this time there is no lease any more, so whoever asked is better told to come back.
const readTime = 3 * time.Second

// timely are rows that are read within readTime or not at all.
type timely struct{ rows }

// Client implements rows.
func (t timely) Client(ctx context.Context, id string) (store.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, readTime)
	defer cancel()
	return t.rows.Client(ctx, id)
}

// Certificate implements rows.
func (t timely) Certificate(ctx context.Context, thumbprint [32]byte) (store.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, readTime)
	defer cancel()
	return t.rows.Certificate(ctx, thumbprint)
}

// Holder implements rows.
func (t timely) Holder(ctx context.Context, id string, thumbprint [32]byte) (*store.Holder, error) {
	ctx, cancel := context.WithTimeout(ctx, readTime)
	defer cancel()
	return t.rows.Holder(ctx, id, thumbprint)
}

// Resources implements rows.
func (t timely) Resources(ctx context.Context) ([]store.Resource, error) {
	ctx, cancel := context.WithTimeout(ctx, readTime)
	defer cancel()
	return t.rows.Resources(ctx)
}

// BlockedKeys implements rows.
func (t timely) BlockedKeys(ctx context.Context) ([][32]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, readTime)
	defer cancel()
	return t.rows.BlockedKeys(ctx)
}
