// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// The bounds of requests that wait for confirmation.
const (
	pendingLife       = 24 * time.Hour
	maxPending        = 100
	maxPendingPayload = 4 << 20
)

// AddPending keeps a request until another operator confirms it, and returns it with its ID and times, which are set
// here. Errors: ErrTooManyPending while 100 wait, ErrClientDisabled for an operator who is disabled or removed; that deletes
// what the operator asked for, too.
func (s *Store) AddPending(ctx context.Context, p Pending) (Pending, error) {
	if p.Kind == "" || p.RequestedBy == "" {
		return Pending{}, errors.New("a request needs a kind and somebody who asks")
	}
	if len(p.Payload) > maxPendingPayload {
		return Pending{}, fmt.Errorf("a request of %d bytes is longer than %d", len(p.Payload), maxPendingPayload)
	}
	p.ID = rand.Text()
	p.CreatedAt = asStored(s.now())
	p.ExpiresAt = p.CreatedAt.Add(pendingLife)
	err := s.change(ctx, func(c *change) error {
		if err := c.checkOperator(p.RequestedBy); err != nil {
			return err
		}
		if _, err := c.exec("pending_requests", expirePending, moment(p.CreatedAt)); err != nil {
			return err
		}
		var n int
		if err := c.tx.QueryRowContext(c.ctx, countPending).Scan(&n); err != nil {
			return err
		}
		if n >= maxPending {
			return ErrTooManyPending
		}
		_, err := c.exec("pending_requests", insertPending, p.ID, p.Kind, p.Payload, p.RequestedBy, moment(p.CreatedAt),
			moment(p.ExpiresAt))
		return err
	})
	if err != nil {
		return Pending{}, fmt.Errorf("keep a request for confirmation: %w", err)
	}
	return p, nil
}

// Pending lists the requests that wait and have not expired, oldest first: at most 100.
func (s *Store) Pending(ctx context.Context) ([]Pending, error) {
	rows, err := s.read.QueryContext(ctx, queryPendings, moment(s.now()))
	list, err := all(rows, err, scanPending)
	if err != nil {
		return nil, fmt.Errorf("list requests: %w", err)
	}
	return list, nil
}

// TakePending removes a request that confirmer, a client id, confirms, and returns it for the caller to carry out: of
// many callers, one gets it. Errors: ErrNotFound, ErrPendingExpired, ErrClientDisabled, and ErrSamePerson for who asked;
// then it stays.
func (s *Store) TakePending(ctx context.Context, id, confirmer string) (Pending, error) {
	return s.takePending(ctx, "confirm", id, func(c *change, p Pending) error {
		switch {
		case confirmer == "":
			return errors.New("nobody confirms it")
		case confirmer == p.RequestedBy:
			return ErrSamePerson
		case !s.now().Before(p.ExpiresAt):
			return ErrPendingExpired
		}
		return c.checkOperator(confirmer)
	})
}

// DropPending removes a request that somebody rejects, or that who asked withdraws, and returns it. The error is
// ErrNotFound.
func (s *Store) DropPending(ctx context.Context, id string) (Pending, error) {
	return s.takePending(ctx, "reject", id, func(*change, Pending) error { return nil })
}

func (s *Store) takePending(ctx context.Context, verb, id string, judge func(*change, Pending) error) (Pending, error) {
	if !storable(id) {
		return Pending{}, fmt.Errorf("%s request %q: %w", verb, id, ErrNotFound)
	}
	var p Pending
	err := s.change(ctx, func(c *change) error {
		var err error
		if p, err = scanPending(c.tx.QueryRowContext(c.ctx, queryPending, id)); err != nil {
			return err
		}
		if err := judge(c, p); err != nil {
			return err
		}
		_, err = c.exec("pending_requests", deletePending, id)
		return err
	})
	if err != nil {
		return Pending{}, fmt.Errorf("%s request %q: %w", verb, id, err)
	}
	return p, nil
}

// checkOperator refuses a client that is disabled or was removed: since its request was let in, perhaps. Whether somebody
// else is an operator is the caller's to know.
func (c *change) checkOperator(id string) error {
	client, err := c.lockClient(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if client.Disabled || !client.RemovedAt.IsZero() {
		return ErrClientDisabled
	}
	return nil
}

func scanPending(r row) (Pending, error) {
	var p Pending
	err := r.Scan(&p.ID, &p.Kind, &p.Payload, &p.RequestedBy, (*moment)(&p.CreatedAt), (*moment)(&p.ExpiresAt))
	if errors.Is(err, sql.ErrNoRows) {
		return Pending{}, ErrNotFound
	}
	if len(p.Payload) == 0 {
		p.Payload = nil
	}
	return p, err
}
