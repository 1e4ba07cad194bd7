// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !race

package audit

import (
	"testing"
)

// Under the race detector pools forget at random.
func TestRecordAllocates(t *testing.T) {
	for sync, bound := range map[Sync]float64{Always: 2, Interval: 1} { // alone, a record is a group of its own
		l := openWith(t, Config{Dir: t.TempDir(), Sync: sync, Keys: newMemoryKeys()})
		e := granted()
		if n := testing.AllocsPerRun(500, func() {
			if err := l.Record(t.Context(), e); err != nil {
				t.Error(err)
			}
		}); n > bound {
			t.Errorf("sync %d: %v allocations a record", sync, n)
		}
	}
}
