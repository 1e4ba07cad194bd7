// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/outbox"
	"github.com/certbound/certbound/cmd/internal/store"
)

// openOutbox records what an earlier process changed and died before it was recorded. A journal that takes no records yet
// does not keep the service from starting: then it serves what takes authority away.
func (s *service) openOutbox(ctx context.Context) error {
	box, err := outbox.New(outbox.Config{
		Store: s.folder.store, Journal: s.folder.journal, Known: outbox.Known(filepath.Join(s.cfg.Data, "audit")),
		Effective: s.effective(), Adopt: s.shares(),
		MakeRoom: s.folder.journal.MakeRoom, NoteFull: s.reserve.NoteFull, Sync: s.folder.journal.Durable, Reached: s.reached, Logger: s.log,
	})
	if err != nil {
		return err
	}
	s.folder.outbox = box
	if s.shares() {
		if err := box.AdoptLeft(ctx); err != nil {
			return fmt.Errorf("taking over what other replicas left: %w", err)
		}
	}
	s.onClose(func() error {
		if err := box.Close(); err != nil {
			s.log.Warn("the next start will look for records that are written already", "error", err)
		}
		return nil
	})
	err = box.Flush(ctx)
	if errors.Is(err, outbox.ErrNotReady) {
		s.log.Error("records of an earlier run wait for the journal", "records", box.Stats().Waiting, "error", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("recording what an earlier run changed: %w", err)
	}
	return nil
}

// watchOutbox tells how many records wait in the database and for how long: more than none for a while means that the
// journal fails.
func (m *metrics) watchOutbox(stats func() outbox.Stats) {
	m.registry.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "certbound_audit_outbox_records", Help: "Records of changes that wait in the database for the journal."},
			func() float64 { return float64(stats().Waiting) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "certbound_audit_outbox_oldest_timestamp_seconds", Help: "When the oldest waiting record was made, in Unix time; 0 when none waits."},
			func() float64 {
				if oldest := stats().Oldest; !oldest.IsZero() {
					return float64(oldest.UnixMilli()) / 1000
				}
				return 0
			}))
}

// changeOnce makes a change that the service itself makes at its start, together with its record. f looks first whether
// it was made already, since another replica may start at the same moment: then it changes nothing and says so.
func changeOnce(ctx context.Context, box *outbox.Box, event audit.Event, f func(tx *store.Store) (first bool, err error)) error {
	event.Outcome = audit.Granted
	_, err := box.Change(ctx, audit.Decision, func(tx *store.Store) ([]audit.Event, error) {
		first, err := f(tx)
		if err != nil || !first {
			return nil, err
		}
		return []audit.Event{event}, nil
	})
	return err
}
