// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package outbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/store"
)

// Run looks after the rows until ctx is done: it deletes those that are recorded, and records, at most a second after the
// journal works again, those that wait. With Config.Adopt it records those too that other replicas left.
func (b *Box) Run(ctx context.Context) {
	var adopt <-chan time.Time
	if b.cfg.Adopt {
		tick := time.NewTicker(adoptEvery)
		defer tick.Stop()
		adopt = tick.C
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-b.wake:
		case <-adopt:
			if err := b.AdoptLeft(ctx); err != nil && ctx.Err() == nil {
				b.complain(ctx, err)
			}
		}
		// Not at once: others come, and go with one transaction.
		for b.busy() {
			select {
			case <-ctx.Done():
				return
			case <-time.After(interval):
			}
			if err := b.Flush(ctx); err != nil && ctx.Err() == nil {
				b.complain(ctx, err)
			}
		}
	}
}

// AdoptLeft takes over the rows of replicas that have no lease any more, which nobody else would record. They are recorded
// by the next Flush.
func (b *Box) AdoptLeft(ctx context.Context) error {
	n, err := b.cfg.Store.AdoptOutbox(ctx)
	if err != nil || n == 0 {
		return err
	}
	b.cfg.Logger.InfoContext(ctx, "records are taken over that another replica left", "records", n)
	b.mu.Lock()
	b.look = true
	b.mu.Unlock()
	b.rouse()
	return nil
}

// busy reports whether there is anything to look after.
func (b *Box) busy() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.look || len(b.waiting) > 0 || len(b.done) > 0
}

func (b *Box) complain(ctx context.Context, err error) {
	b.mu.Lock()
	now := b.cfg.Now()
	quiet := now.Sub(b.saidAt) < logAgain && !now.Before(b.saidAt)
	if !quiet {
		b.saidAt = now
	}
	b.mu.Unlock()
	if !quiet {
		b.cfg.Logger.ErrorContext(ctx, "records wait in the database for the journal", "error", err)
	}
}

// Stats says what waits.
func (b *Box) Stats() Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := Stats{Waiting: len(b.waiting)}
	for _, since := range b.waiting {
		if s.Oldest.IsZero() || since.Before(s.Oldest) {
			s.Oldest = since
		}
	}
	return s
}

// Close deletes the rows that are recorded, so that the next start need not look for them. Nothing is lost when it fails.
func (b *Box) Close() error {
	b.behind.Lock()
	defer b.behind.Unlock()
	return b.drop(context.Background())
}

// Flush records what waits and deletes what is recorded. It is called at the start, before anything is served, and by
// Run. It returns an ErrNotReady when something waits that the journal does not take yet; other errors are the
// database's, or those of a row that cannot be read.
func (b *Box) Flush(ctx context.Context) error {
	b.behind.Lock()
	defer b.behind.Unlock()
	err := b.flush(ctx)
	return errors.Join(err, b.drop(ctx))
}

// row is a record that waits.
type row struct {
	event audit.Event
	since time.Time
}

func (b *Box) flush(ctx context.Context) error {
	for {
		b.mu.Lock()
		needed := b.look || len(b.waiting) > 0
		b.mu.Unlock()
		if !needed {
			return nil
		}
		rows, more, err := b.left(func() ([]store.Entry, error) { return b.cfg.Store.Outbox(ctx, maxPass) })
		if err != nil {
			return err
		}
		if err := b.recordAll(ctx, rows); err != nil || !more {
			return err
		}
		// Those that were recorded make room for the next.
		if err := b.drop(ctx); err != nil {
			return err
		}
	}
}

// left returns those of the rows in the outbox that nobody is about to record, and says whether there are more.
func (b *Box) left(read func() ([]store.Entry, error)) (rows []row, more bool, _ error) {
	b.mu.Lock()
	b.look = false // whoever adds a row from here on sets it again
	before := maps.Clone(b.waiting)
	b.mu.Unlock()
	entries, err := read()
	if err == nil {
		rows, err = b.decode(entries)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil || len(entries) == maxPass {
		b.look = true
	}
	if err != nil {
		return nil, false, err
	}
	// Judged after they were read: what is not under way any more now is done or waits, and what is done is still there.
	rows = slices.DeleteFunc(rows, func(r row) bool { return b.underWay[r.event.ID] || b.done[r.event.ID] })
	// What was there before and is not any more waits no longer; what came meanwhile does.
	maps.DeleteFunc(b.waiting, func(id string, _ time.Time) bool { _, old := before[id]; return old })
	for _, r := range rows {
		b.waiting[r.event.ID] = r.since
	}
	return rows, len(entries) == maxPass && len(rows) > 0, nil
}

func (b *Box) decode(entries []store.Entry) ([]row, error) {
	rows := make([]row, 0, len(entries))
	for _, entry := range entries {
		event, err := audit.DecodeEvent(entry.Body)
		if err == nil && event.ID != entry.ID {
			err = errors.New("it has another id than its row")
		}
		if err != nil {
			return nil, fmt.Errorf("the record %q in the outbox: %w", entry.ID, err)
		}
		rows = append(rows, row{event: event, since: entry.NotedAt})
	}
	return rows, nil
}

// recordAll records the rows that the journal does not have, as far as it takes them.
func (b *Box) recordAll(ctx context.Context, rows []row) error {
	if !slices.ContainsFunc(rows, func(r row) bool { return b.cfg.Journal.Ready(r.event.Class) == nil }) {
		if len(rows) == 0 {
			return nil
		}
		return b.Ready(rows[0].event.Class)
	}
	known, err := b.known(ctx, rows)
	if err != nil {
		return err
	}
	return each(len(rows), func(i int) error {
		r := rows[i]
		if known[r.event.ID] {
			b.settle(r.event.ID, nil, r.since)
			return nil
		}
		err := b.Ready(r.event.Class)
		if err == nil {
			err = b.cfg.Journal.Record(context.WithoutCancel(ctx), r.event)
		}
		b.settle(r.event.ID, err, r.since)
		return err
	})
}

// known asks which of the rows were recorded before. What the journal surely does not have is not asked for: to look through
// it takes long, and while it fails that would be done again and again.
func (b *Box) known(ctx context.Context, rows []row) (map[string]bool, error) {
	ids := make(map[string]bool)
	var oldest time.Time
	b.mu.Lock()
	for _, r := range rows {
		if b.absent[r.event.ID] {
			continue
		}
		ids[r.event.ID] = true
		if oldest.IsZero() || r.since.Before(oldest) {
			oldest = r.since
		}
	}
	b.mu.Unlock()
	if b.cfg.Known == nil || len(ids) == 0 {
		return nil, nil
	}
	known, err := b.cfg.Known(ctx, oldest.Add(-scanSlack), ids)
	if err != nil {
		return nil, fmt.Errorf("looking for records in the journal: %w", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for id := range ids {
		if !known[id] {
			b.absent[id] = true
		}
	}
	return known, nil
}

// drop deletes the rows that are recorded, once their records are durable.
func (b *Box) drop(ctx context.Context) error {
	b.mu.Lock()
	ids := slices.Sorted(maps.Keys(b.done))
	b.mu.Unlock()
	if len(ids) == 0 {
		return nil
	}
	if b.cfg.Sync != nil {
		ctx, cancel := context.WithTimeout(ctx, syncTimeout)
		defer cancel()
		if err := b.cfg.Sync(ctx); err != nil {
			return fmt.Errorf("syncing the journal: %w", err)
		}
	}
	for chunk := range slices.Chunk(ids, dropAt) {
		b.cfg.Reached(Dropping, "")
		if err := b.cfg.Store.DropOutbox(ctx, chunk...); err != nil {
			return err
		}
		b.mu.Lock()
		for _, id := range chunk {
			delete(b.done, id)
		}
		b.mu.Unlock()
	}
	return nil
}
