// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package replica

import (
	"context"
	"flag"
	"slices"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/store"
)

var (
	simSeeds = flag.Int("simulate.seeds", 220, "how many worlds TestSimulation simulates")
	simFirst = flag.Uint64("simulate.first", 0, "the seed of the first of them")
)

// Whatever goes wrong, nothing is decided in favour of a certificate whose revocation has returned; and when nothing is
// wrong any more, everybody serves again.
func TestSimulation(t *testing.T) {
	t.Parallel()
	seeds := *simSeeds
	if testing.Short() {
		seeds = min(seeds, 44)
	}
	began := time.Now()
	var decisions, revocations, early, refused, reaped int
	ended := make(map[error]int)
	for i := range seeds {
		w := simulate(t, *simFirst+uint64(i), mistake{})
		wrongs := append(w.unsafe, w.wrong...)
		for _, wrong := range wrongs[:min(3, len(wrongs))] {
			t.Error(wrong)
		}
		decisions, revocations, refused, reaped = decisions+len(w.decisions), revocations+len(w.revocations), refused+w.refused, reaped+int(w.reaped.Load())
		for _, r := range w.revocations {
			if r.early {
				early++
			}
		}
		for err, n := range w.fatal {
			ended[err] += n
		}
	}
	t.Logf("%d worlds in %v: %d tokens, %d refused for want of a lease, %d revocations (%d early), %d rows removed, ended: %v",
		seeds, time.Since(began).Round(time.Millisecond), decisions, refused, revocations, early, reaped, ended)
	if seeds >= len(flavours()) && (early == 0 || early == revocations || refused == 0 || reaped == 0 || ended[ErrRegressed] == 0) {
		t.Error("the worlds are too much alike: some of that never happened")
	}
}

// The oracle notices each of these mistakes.
func TestSimulationKillsMutants(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		flavour string // of the worlds that are searched
		mistake
	}{
		"t0 after the reply": {"slow answers", mistake{rules: func(r *rules) {
			r.stamp = func(_, after time.Duration) time.Duration { return after }
		}}},
		"renewal by read": {"split brain", mistake{rules: func(r *rules) {
			r.renew = func(ctx context.Context, db Database, _ store.LeaseRenewal) (store.Renewed, error) {
				return db.(database).readRenewal(ctx)
			}
		}}},
		"load before insert": {"crashes", mistake{loadFirst: true}},
		"acknowledge before quiescence": {"pauses", mistake{rules: func(r *rules) {
			r.quiet = func(_ []*generation, now *generation) int64 { return now.version }
		}}},
		"version from a sequence":   {"pauses", mistake{sequence: true}},
		"retry not waiting":         {"network", mistake{noRetry: true}},
		"wall clock":                {"clocks", mistake{wallClock: true}},
		"a clock that stands still": {"naps", mistake{stands: true}},
		"early return after failover": {"failover without quorum", mistake{rules: func(r *rules) {
			r.steady = func(time.Duration, time.Duration) bool { return true }
		}}},
		"connections that stay": {"split brain", mistake{stay: true}},
	} {
		t.Run(name, func(t *testing.T) {
			kinds := flavours()
			first := slices.IndexFunc(kinds, func(f faults) bool { return f.flavour == tt.flavour })
			const tries = 200
			for i := range tries {
				if w := simulate(t, uint64(first+i*len(kinds)), tt.mistake); len(w.unsafe) > 0 {
					t.Logf("killed after %d worlds: %s", i+1, w.unsafe[0])
					return
				}
			}
			t.Errorf("%d worlds did not notice it", tries)
		})
	}
}
