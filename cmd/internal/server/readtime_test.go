// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
)

// silent are rows of a database that neither answers nor fails.
type silent struct{}

func (silent) Client(ctx context.Context, _ string) (c store.Client, _ error) {
	<-ctx.Done()
	return c, ctx.Err()
}

func (silent) Certificate(ctx context.Context, _ [32]byte) (c store.Certificate, _ error) {
	<-ctx.Done()
	return c, ctx.Err()
}

func (silent) Holder(ctx context.Context, _ string, _ [32]byte) (h *store.Holder, _ error) {
	<-ctx.Done()
	return h, ctx.Err()
}

func (silent) Resources(ctx context.Context) ([]store.Resource, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (silent) BlockedKeys(ctx context.Context) ([][32]byte, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// Nobody waits for long for a database that is silent, and whoever did is told to come back.
func TestRegistry_SilentDatabase(t *testing.T) {
	t.Parallel()
	for name, read := range map[string]func(ctx context.Context, r *registry) error{
		"client": func(ctx context.Context, r *registry) error { _, err := r.Client(ctx, "payments"); return err },
		"certificate": func(ctx context.Context, r *registry) error {
			_, err := r.Certificate(ctx, mtls.Thumbprint{1})
			return err
		},
		"holder": func(ctx context.Context, r *registry) error {
			_, err := r.holder(ctx, "payments", mtls.Thumbprint{1}, 0)
			return err
		},
		"resources": func(ctx context.Context, r *registry) error {
			_, err := r.client(ctx, &store.Client{ID: "payments"}, 0)
			return err
		},
		"compromised keys": func(ctx context.Context, r *registry) error { return r.loadBlocked(ctx) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := &registry{store: timely{silent{}}, clients: make(map[string]*remembered), standings: newStandings(1)}
				begin := time.Now()
				err := read(t.Context(), r)
				if took := time.Since(begin); took != readTime || !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%v after %v", err, took)
				}
				if _, ok := errors.AsType[again](err); !ok {
					t.Errorf("%v does not say when to come back", err)
				}
			})
		})
	}
}
