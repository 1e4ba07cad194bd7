// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"context"
	"errors"
	"testing"
	"time"
)

// Durable waits for the sync of what was recorded, and for nothing else.
func TestDurable(t *testing.T) {
	t.Parallel()
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	always := openWith(t, Config{Dir: t.TempDir()})
	interval := openWith(t, Config{Dir: t.TempDir(), Sync: Interval, SyncInterval: time.Minute})
	for _, l := range []*Log{always, interval} {
		if err := l.Record(t.Context(), Event{Name: "client.add", Outcome: Granted}); err != nil {
			t.Fatal(err)
		}
	}
	if err := always.Durable(t.Context()); err != nil {
		t.Errorf("what is synced: %v", err)
	}
	if err := interval.Durable(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("what is not synced: %v", err)
	}
	if err := interval.Close(); err != nil {
		t.Fatal(err)
	}
	if err := interval.Durable(gone); err != nil {
		t.Errorf("what a clean stop synced: %v", err)
	}
}
