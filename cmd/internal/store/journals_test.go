// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

func testJournals(f *fixture) {
	_, err := f.LastJournal(f.ctx(), "a")
	want(f.t, err, ErrNotFound)
	first := Journal{Replica: "a", Incarnation: 1, FirstKey: "k1", StartedAt: f.clock.now()}
	ok(f.t, f.BeginJournal(f.ctx(), first))
	second := Journal{Replica: "a", Incarnation: 2, FirstKey: "k2", PreviousSeq: 7, PreviousChain: keyOf(7), StartedAt: f.clock.now()}
	ok(f.t, f.BeginJournal(f.ctx(), second))
	ok(f.t, f.BeginJournal(f.ctx(), Journal{Replica: "b", Incarnation: 3, FirstKey: "k3", StartedAt: f.clock.now()}))
	again := second
	again.FirstKey = "another"
	want(f.t, f.BeginJournal(f.ctx(), again), ErrExists) // what was registered is never replaced
	got, err := f.LastJournal(f.ctx(), "a")
	ok(f.t, err)
	same(f.t, got, second)
	version, err := f.Version(f.ctx())
	ok(f.t, err)
	same(f.t, version, int64(0)) // they decide nothing
}
