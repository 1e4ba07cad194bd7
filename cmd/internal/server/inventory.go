// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/replica"
	"github.com/certbound/certbound/cmd/internal/store"
)

const (
	// inventoryInterval is how often the inventory is looked through for what expired long ago.
	inventoryInterval = time.Hour
	// inventoryBatch is how many certificates one transaction deletes at most, and inventoryTurn for how long it goes on.
	inventoryBatch = 256
	inventoryTurn  = 20 * time.Millisecond
	// inventoryRest is the pause between two transactions, in which others write.
	inventoryRest = 100 * time.Millisecond
)

// keepInventory removes from the inventory what expired long ago, every hour, until ctx ends.
func (s *service) keepInventory(ctx context.Context) {
	if s.cfg.Inventory.Keep == 0 {
		return
	}
	tick := time.NewTicker(inventoryInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := s.pruneInventory(ctx, time.Now()); err != nil && ctx.Err() == nil {
			s.log.ErrorContext(ctx, "what expired long ago could not be removed from the inventory", "error", err)
		}
	}
}

// pruneInventory deletes, little by little, the certificates that expired longer ago than the inventory keeps them and that
// it can do without, and records how many. Cut short anywhere, it is finished by the next one. Of several replicas one does
// it; that two do it at once for a moment does no harm.
func (s *service) pruneInventory(ctx context.Context, now time.Time) error {
	before := now.Add(-s.cfg.Inventory.Keep)
	walk := s.folder.store.Expired(before)
	total := 0
	for more := true; more; {
		if mine, err := s.prunes(ctx); err != nil || !mine {
			return err
		}
		list, next, err := walk.Next(ctx, inventoryBatch)
		if err != nil {
			return err
		}
		if more = next; len(list) == 0 {
			continue
		}
		n, err := s.dropExpired(ctx, list, before)
		if err != nil {
			return err
		}
		total += n
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(inventoryRest):
		}
	}
	if total > 0 {
		s.log.InfoContext(ctx, "certificates that expired long ago were removed from the inventory", "certificates", total, "before", before.UTC())
	}
	return nil
}

// dropExpired is one transaction, with its record.
func (s *service) dropExpired(ctx context.Context, list [][32]byte, before time.Time) (n int, err error) {
	_, err = s.folder.outbox.Change(ctx, audit.Decision, func(tx *store.Store) ([]audit.Event, error) {
		if n, err = tx.DropExpired(ctx, list, before, inventoryTurn); err != nil || n == 0 {
			return nil, err
		}
		return []audit.Event{{Name: "inventory.prune", Outcome: audit.Granted, Detail: map[string]string{
			"certificates": strconv.Itoa(n), "expired_before": before.UTC().Format(time.RFC3339),
		}}}, nil
	})
	if err != nil {
		return 0, fmt.Errorf("removing expired certificates from the inventory: %w", err)
	}
	s.metrics.pruned.Add(float64(n))
	return n, nil
}

// prunes reports whether this is the replica that looks after the inventory: of those that serve, the first by name.
func (s *service) prunes(ctx context.Context) (bool, error) {
	if !s.mayForget() {
		return false, nil // it decides nothing now, or its clock may be wrong
	}
	if s.member == nil {
		return true, nil
	}
	leases, err := s.folder.store.Leases(ctx)
	if err != nil {
		return false, err
	}
	return firstServing(leases, time.Now().Add(s.member.Status().DatabaseLead)) == s.replica.Replica, nil
}

// firstServing is the first replica, by name, whose lease has not lapsed by the database's time; "" when there is none.
func firstServing(leases []store.Lease, now time.Time) string {
	first := ""
	for _, l := range leases {
		if now.Sub(l.RenewedAt) <= replica.Term && (first == "" || l.Replica < first) {
			first = l.Replica
		}
	}
	return first
}
