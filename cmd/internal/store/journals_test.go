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

// Whoever begins a journal asks the others to speak of it, and is told when one of them does.
func testWitnesses(f *fixture) {
	begun := Journal{Replica: "new", Incarnation: 2, FirstKey: "k2", StartedAt: f.clock.now()}
	ok(f.t, f.BeginJournal(f.ctx(), Journal{Replica: "new", Incarnation: 1, FirstKey: "k1", StartedAt: f.clock.now()}))
	ok(f.t, f.BeginJournal(f.ctx(), begun))
	ok(f.t, f.BeginJournal(f.ctx(), Journal{Replica: "known", Incarnation: 1, FirstKey: "k", StartedAt: f.clock.now()}))
	ok(f.t, f.AdvanceHead(f.ctx(), "known", 1, 5, keyOf(5)))
	list, err := f.BegunJournals(f.ctx(), 10)
	ok(f.t, err)
	same(f.t, list, []Journal{begun})

	var heard []Change
	f.OnChange(func(c Change) { heard = append(heard, c) })
	ok(f.t, f.AskWitness(f.ctx()))
	same(f.t, heard, []Change{{Journals: true, Version: 1}})
	others, err := f.ChangesSince(f.ctx(), 0, 10)
	ok(f.t, err)
	same(f.t, others, []Change{{Journals: true, Version: 1}})

	is := func(incarnation uint64, witnessed, others bool) {
		f.t.Helper()
		gotWitnessed, gotOthers, err := f.Witnessed(f.ctx(), "new", incarnation, time.Minute)
		ok(f.t, err)
		same(f.t, []bool{gotWitnessed, gotOthers}, []bool{witnessed, others})
	}
	ok(f.t, f.BeginLease(f.ctx(), Lease{Replica: "new", Incarnation: 2}))
	is(2, false, false) // its own lease is not another's
	ok(f.t, f.BeginLease(f.ctx(), Lease{Replica: "known", Incarnation: 1}))
	is(2, false, true)
	ok(f.t, f.SetWitnessed(f.ctx(), "new", 2))
	ok(f.t, f.SetWitnessed(f.ctx(), "new", 2))
	is(2, true, true)
	is(1, false, true)
	if f.Dialect() == "sqlite" { // the other one goes by its own clock
		f.clock.advance(2 * time.Minute)
		is(2, true, false)
	}
	_, gone, err := f.Witnessed(f.ctx(), "new", 2, -time.Hour)
	ok(f.t, err)
	same(f.t, gone, false)
}
