// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Durability is what a commit that returned survives.
type Durability string

// The durabilities.
const (
	SingleNode Durability = "single node" // a restart, but not the loss of the machine
	Quorum     Durability = "quorum"      // a failover to a standby that the server waits for
)

// Durability asks what a commit survives, as the server is set up now.
func (s *Store) Durability(ctx context.Context) (Durability, error) {
	d, err := s.dialect.durability(ctx, s.write)
	if err != nil {
		return SingleNode, fmt.Errorf("ask how commits are kept: %w", err)
	}
	return d, nil
}

// Listen calls f, one call at a time, soon after some replica has made a new version, until ctx ends; also now and then
// without reason, and after each time that it could not listen. It is a hint, which may get lost: whoever follows must look
// for changes by time as well. It never fails; on SQLite it only waits for the end.
func (s *Store) Listen(ctx context.Context, f func()) { s.dialect.listen(ctx, s, f) }

const (
	listenPing     = 15 * time.Second // a connection on which nothing came is tried
	listenMinPause = 100 * time.Millisecond
	listenMaxPause = 10 * time.Second
)

func (p *postgresql) listen(ctx context.Context, s *Store, f func()) {
	pause := listenMinPause
	for ctx.Err() == nil {
		began := time.Now()
		err := p.listenOnce(ctx, f)
		if ctx.Err() != nil {
			return
		}
		s.logger.WarnContext(ctx, "not told of changes now: they are found by looking", "error", err)
		if time.Since(began) > listenMaxPause {
			pause = listenMinPause
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, listenMaxPause)
	}
}

// listenOnce listens on a connection of its own until that fails.
func (p *postgresql) listenOnce(ctx context.Context, f func()) error {
	c, err := pgx.ConnectConfig(ctx, p.config.Copy())
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		c.Close(ctx)
	}()
	if _, err := c.Exec(ctx, "LISTEN "+channel); err != nil {
		return err
	}
	f() // what came before it listened
	for {
		wait, cancel := context.WithTimeout(ctx, listenPing)
		_, err := c.WaitForNotification(wait)
		cancel()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			f()
		case c.IsClosed() || !errors.Is(err, context.DeadlineExceeded):
			return err
		default:
			ping, cancel := context.WithTimeout(ctx, connectTimeout)
			err := c.Ping(ping)
			cancel()
			if err != nil {
				return err
			}
		}
	}
}
