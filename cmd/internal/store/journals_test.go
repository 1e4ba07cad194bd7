// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import "time"

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
	// Heads only grow, and belong to one incarnation.
	heads, err := f.JournalHeads(f.ctx(), 10)
	ok(f.t, err)
	same(f.t, len(heads), 0)
	ok(f.t, f.AdvanceHead(f.ctx(), "a", 1, 5, keyOf(5)))
	ok(f.t, f.AdvanceHead(f.ctx(), "b", 3, 50, keyOf(50)))
	for _, stale := range []uint64{5, 4, 0} {
		ok(f.t, f.AdvanceHead(f.ctx(), "a", 1, stale, keyOf(9)))
	}
	ok(f.t, f.AdvanceHead(f.ctx(), "nobody", 1, 5, keyOf(5)))
	got, err = f.LastJournal(f.ctx(), "a")
	ok(f.t, err)
	same(f.t, got, second)
	first.HeadSeq, first.HeadChain, first.HeadAt = 5, keyOf(5), f.clock.now()
	third := Journal{Replica: "b", Incarnation: 3, FirstKey: "k3", StartedAt: f.clock.now(), HeadSeq: 50, HeadChain: keyOf(50), HeadAt: f.clock.now()}
	heads, err = f.JournalHeads(f.ctx(), 10)
	ok(f.t, err)
	same(f.t, heads, []Journal{first, third})
	f.clock.advance(time.Second)
	ok(f.t, f.AdvanceHead(f.ctx(), "a", 2, 8, keyOf(8)))
	second.HeadSeq, second.HeadChain, second.HeadAt = 8, keyOf(8), f.clock.now()
	heads, err = f.JournalHeads(f.ctx(), 1)
	ok(f.t, err)
	same(f.t, heads, []Journal{second})
	got, err = f.LastJournal(f.ctx(), "a")
	ok(f.t, err)
	same(f.t, got, second)
	// Whoever writes to the database in another way is held to that too.
	for _, change := range []string{"head_seq = 7", "head_seq = 0", "head_chain = previous_chain", "head_chain = NULL", "head_seq = 7, head_chain = previous_chain"} {
		if _, err := f.write.ExecContext(f.ctx(), "UPDATE journals SET "+change+" WHERE replica = 'a' AND incarnation = 2"); err == nil {
			f.t.Errorf("%s was taken", change)
		}
	}
	if _, err := f.write.ExecContext(f.ctx(), "UPDATE journals SET head_seq = 9, head_chain = previous_chain WHERE replica = 'a' AND incarnation = 2"); err != nil {
		f.t.Error("a head does not grow:", err)
	}
	version, err := f.Version(f.ctx())
	ok(f.t, err)
	same(f.t, version, int64(0)) // they decide nothing
}
