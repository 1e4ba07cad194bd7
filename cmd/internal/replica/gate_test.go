// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package replica

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/store"
)

// open returns a replica of which only the gate is used, with a lease for the term to come.
func open(tb testing.TB) *Replica {
	tb.Helper()
	r, err := New(Config{Database: struct{ Database }{}, Name: "a", Incarnation: 1})
	if err != nil {
		tb.Fatal(err)
	}
	m := read(r.clock)
	r.gate.lease.Store(&lease{until: m.boot + time.Hour, offset: m.offset})
	return r
}

// A decision costs some hundred nanoseconds and no memory.
func BenchmarkPass(b *testing.B) {
	r := open(b)
	b.ReportAllocs()
	for b.Loop() {
		p, err := r.Pass()
		if err != nil {
			b.Fatal(err)
		}
		p.Leave()
	}
}

func BenchmarkLive(b *testing.B) {
	r := open(b)
	b.ReportAllocs()
	for b.Loop() {
		if err := r.Live(); err != nil {
			b.Fatal(err)
		}
	}
}

func TestGateNeedsNoMemory(t *testing.T) {
	r := open(t)
	if n := testing.AllocsPerRun(1000, func() {
		p, err := r.Pass()
		if r.Live() != nil || err != nil {
			t.Error("no lease")
			return
		}
		p.Leave()
	}); n != 0 {
		t.Errorf("%v allocations for a decision", n)
	}
}

// Whoever saw nobody in an older generation never sees anybody decide under it.
func TestPassUnderTheNewestVersion(t *testing.T) {
	t.Parallel()
	r := open(t)
	var group sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		group.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				p, err := r.Pass()
				if err != nil {
					t.Error(err)
					return
				}
				r.mu.Lock()
				ack := r.acknowledgeable()
				r.mu.Unlock()
				if mine := p.(*generation).version; ack > mine {
					t.Errorf("version %d could be acknowledged while a decision under %d was on its way out", ack, mine)
					p.Leave()
					return
				}
				p.Leave()
			}
		})
	}
	const versions = 100_000
	for v := range int64(versions) {
		r.mu.Lock()
		r.install(v + 1)
		r.mu.Unlock()
	}
	close(stop)
	group.Wait()
	if len(r.older) > 8 || r.acknowledgeable() != versions {
		t.Errorf("%d generations left, version %d acknowledgeable", len(r.older), r.acknowledgeable())
	}
}

// A decision that saw a generation before it was retired, and registers after that, is none of that generation.
func TestPassOfARetiredGeneration(t *testing.T) {
	t.Parallel()
	r := open(t)
	seen := r.gate.current.Load()
	r.install(1)
	if r.gate.join(seen) || seen.in.Load() != 0 {
		t.Errorf("it decides on a state that was acknowledged to be gone; %d in there", seen.in.Load())
	}
}

func TestNoLease(t *testing.T) {
	t.Parallel()
	r := open(t)
	r.gate.lease.Store(nil)
	p, err := r.Pass()
	var none *NoLeaseError
	if p != nil || !errors.As(err, &none) || none.RetryAfter() != time.Second || none.Reason == "" {
		t.Errorf("without a lease Pass returned %v, %v", p, err)
	}
	if n := r.passages(); n != 0 {
		t.Errorf("%d passages after a refusal", n)
	}
	m := read(r.clock)
	for name, l := range map[string]*lease{
		"over":                     {until: m.boot, offset: m.offset},
		"wall clock set forwards":  {until: m.boot + time.Hour, offset: m.offset - 1100*time.Millisecond},
		"wall clock set backwards": {until: m.boot + time.Hour, offset: m.offset + 1100*time.Millisecond},
	} {
		r.gate.lease.Store(l)
		if err := r.Live(); !errors.As(err, &none) {
			t.Errorf("%s: %v", name, err)
		}
		if name != "over" && r.gate.lease.Load() != nil {
			t.Errorf("%s: the lease was kept", name)
		}
	}
	r.gate.lease.Store(&lease{until: m.boot + time.Hour, offset: m.offset + 900*time.Millisecond})
	if err := r.Live(); err != nil {
		t.Errorf("the wall clock moved by less than a second: %v", err)
	}
}

// script is a clock that shows one reading after the other, and the last one for ever.
type script struct {
	boot, wall []time.Duration
}

func next(list *[]time.Duration) time.Duration {
	d := (*list)[0]
	if len(*list) > 1 {
		*list = (*list)[1:]
	}
	return d
}

func (s *script) Boot() time.Duration { return next(&s.boot) }
func (s *script) Wall() time.Time     { return time.Unix(0, int64(next(&s.wall))) }

func seconds(list ...float64) (out []time.Duration) {
	for _, s := range list {
		out = append(out, time.Duration(s*float64(time.Second)))
	}
	return out
}

// A process that stood still between two readings of its clocks looks again, and does not take that for a jump.
func TestReadTogether(t *testing.T) {
	t.Parallel()
	if m := read(&script{boot: seconds(1, 3, 4, 4.01), wall: seconds(102, 104)}); !m.ok || m.offset != 100*time.Second || m.boot != 4*time.Second {
		t.Errorf("after a pause: %+v", m)
	}
	if m := read(&script{boot: seconds(1, 2, 3, 4, 5, 6, 7, 8, 9, 10), wall: seconds(100)}); m.ok {
		t.Errorf("of clocks that never stand together: %+v", m)
	}
	for name, tt := range map[string]struct {
		boot, wall []time.Duration
		live       bool
	}{
		"together":                {seconds(5), seconds(105), true},
		"a pause":                 {seconds(8, 8), seconds(105, 108), true},
		"a pause to the end":      {seconds(8, 10), seconds(105, 110), false},
		"a jump":                  {seconds(5), seconds(110), false},
		"no two readings at once": {seconds(8, 2, 3, 4, 5, 6, 7, 8, 9, 9.1), seconds(105, 102), false},
	} {
		r := open(t)
		r.clock = &script{boot: tt.boot, wall: tt.wall}
		r.gate.lease.Store(&lease{until: 10 * time.Second, offset: 100 * time.Second})
		if err := r.Live(); (err == nil) != tt.live {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Rows are believed when all of them say so, this replica's own among them, and the database was asked after the commit.
func TestBelieved(t *testing.T) {
	t.Parallel()
	r := open(t)
	own := store.Lease{Replica: "a", Incarnation: 1, Applied: 7}
	for name, tt := range map[string]struct {
		rows []store.Lease
		want bool
	}{
		"none":            {nil, false},
		"own":             {[]store.Lease{own}, true},
		"both":            {[]store.Lease{own, {Replica: "b", Incarnation: 1, Applied: 8}}, true},
		"one is behind":   {[]store.Lease{own, {Replica: "b", Incarnation: 1, Applied: 6}}, false},
		"own is missing":  {[]store.Lease{{Replica: "b", Incarnation: 1, Applied: 8}}, false},
		"own of a former": {[]store.Lease{{Replica: "a", Incarnation: 2, Applied: 8}}, false},
	} {
		if got := r.all(tt.rows, 7); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	now := r.clock.Boot()
	r.applied, r.acked = 7, 7
	r.renewal = promise{at: now, version: 7}
	if _, ok, err := r.confirmed(7, now); !ok || err != nil {
		t.Errorf("after a renewal: %v, %v", ok, err)
	}
	if _, ok, err := r.confirmed(7, now+1); ok || err != nil {
		t.Errorf("before any renewal: %v, %v", ok, err)
	}
	r.movedAt = now - Settled + time.Second
	if _, ok, err := r.confirmed(7, now); ok || err != nil {
		t.Errorf("on a database that was just replaced: %v, %v", ok, err)
	}
}

// told is a database that remembers what it was told.
type told struct {
	Database
	changes  []store.Change
	renewals []store.LeaseRenewal
}

func (d *told) Announce(c store.Change) { d.changes = append(d.changes, c) }

func (d *told) RenewLease(_ context.Context, l store.LeaseRenewal) (store.Renewed, error) {
	d.renewals = append(d.renewals, l)
	return store.Renewed{Version: 3, Now: time.Now()}, nil
}

// Changes are announced in their order, and those that are in none are not.
func TestApply(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		versions []int64
		applied  int64
	}{
		"in order": {[]int64{4, 5, 9}, 9}, "backwards": {[]int64{4, 6, 5}, 3}, "again": {[]int64{4, 4}, 3}, "from before": {[]int64{3, 4}, 3},
	} {
		r := open(t)
		db := &told{}
		r.cfg.Database, r.applied = db, 3
		var list []store.Change
		for _, v := range tt.versions {
			list = append(list, store.Change{Version: v})
		}
		err := r.apply(3, list)
		if refused := tt.applied == 3; (err != nil) != refused || r.applied != tt.applied || (len(db.changes) == len(list)) == refused {
			t.Errorf("%s: %v, version %d, announced %+v", name, err, r.applied, db.changes)
		}
	}
	r := open(t)
	r.see(5)
	r.see(3)
	if r.newest != 5 {
		t.Errorf("the newest version seen is %d", r.newest)
	}
}

// A renewal carries the journal's head, and after the end it grants nothing.
func TestRenewal(t *testing.T) {
	t.Parallel()
	db := &told{}
	r, err := New(Config{Database: db, Name: "a", Incarnation: 4, Head: func() (uint64, [32]byte) { return 17, [32]byte{1} }})
	if err != nil {
		t.Fatal(err)
	}
	r.applied = 3
	if err := r.renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []store.LeaseRenewal{{Replica: "a", Incarnation: 4, HeadSeq: 17, HeadChain: [32]byte{1}}}
	if !slices.Equal(db.renewals, want) || r.Live() != nil {
		t.Errorf("renewed by %+v, lease %v", db.renewals, r.Live())
	}
	r.close(nil)
	if err := r.renew(t.Context()); err != nil || r.Live() == nil {
		t.Errorf("a lease after the end (%v)", err)
	}
}

// A row counts as unchanged from when it was first seen like that.
func TestSight(t *testing.T) {
	t.Parallel()
	r := open(t)
	clock := &script{boot: seconds(100), wall: seconds(100)}
	r.clock = clock
	row := store.Lease{Replica: "b", Incarnation: 1, Renewals: 9}
	at := func(s float64, row store.Lease) int {
		clock.boot = seconds(s)
		return len(r.sight([]store.Lease{row, {Replica: "a"}}, clock.boot[0]))
	}
	for s := 100.0; s < 130; s += 3 {
		if n := at(s, row); n != 0 {
			t.Fatalf("gone after %v s", s-100)
		}
	}
	for _, changed := range []store.Lease{{Replica: "b", Incarnation: 2, Renewals: 9}, {Replica: "b", Incarnation: 1, Renewals: 10}} {
		r.peers["b"] = sighting{row: row, since: seconds(100)[0]}
		if n := at(130, changed); n != 0 {
			t.Errorf("%+v is gone, though it was seen for the first time", changed)
		}
	}
	r.peers["b"] = sighting{row: row, since: seconds(100)[0]}
	if n := at(130, row); n != 1 {
		t.Error("not gone after ten terms")
	}
	if n := at(137, row); n != 0 {
		t.Error("gone, after nobody had looked for a while")
	}
}

// taken is a database that has a row of this replica's name already.
type taken struct {
	Database
	rows []store.Lease
	err  error
}

func (d taken) BeginLease(context.Context, store.Lease) error { return store.ErrLeaseLost }
func (d taken) Leases(context.Context) ([]store.Lease, error) { return d.rows, d.err }

// That there is a row is final when another process wrote it; the own one may have been written by a try whose answer was lost.
func TestInsertAgain(t *testing.T) {
	t.Parallel()
	away := errors.New("away")
	for name, tt := range map[string]struct {
		db   taken
		lost bool
		want bool // that it is there
	}{
		"own":            {taken{rows: []store.Lease{{Replica: "b", Incarnation: 9}, {Replica: "a", Incarnation: 1}}}, false, true},
		"a later one":    {taken{rows: []store.Lease{{Replica: "a", Incarnation: 2}}}, true, false},
		"gone again":     {taken{rows: []store.Lease{{Replica: "b", Incarnation: 1}, {Replica: "c", Incarnation: 9}}}, false, false},
		"cannot be read": {taken{err: away}, false, false},
	} {
		r := open(t)
		r.cfg.Database = tt.db
		if err := r.insert(t.Context()); !errors.Is(err, store.ErrLeaseLost) {
			t.Errorf("%s, at first: %v", name, err)
		}
		if err := r.insert(t.Context()); (err == nil) != tt.want || errors.Is(err, store.ErrLeaseLost) != tt.lost {
			t.Errorf("%s, again: %v", name, err)
		}
	}
}

// Clocks that could not be read together grant nothing.
func TestClocksNotRead(t *testing.T) {
	t.Parallel()
	for name, ok := range map[string][2]bool{"before": {false, true}, "after": {true, false}, "neither": {false, false}, "both": {true, true}} {
		r := open(t)
		before, after := read(r.clock), read(r.clock)
		before.ok, after.ok = ok[0], ok[1]
		right := r.promise(t.Context(), store.Renewed{Now: time.Now()}, 0, before, after)
		if want := name == "both"; right != want || (r.Live() == nil) != want {
			t.Errorf("%s: right %v, lease %v", name, right, r.Live())
		}
	}
}
