// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package outbox

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/store"
)

// journal is a journal in memory that can be made to fail.
type journal struct {
	mu     sync.Mutex
	events []audit.Event
	full   bool               // it takes no Decision, and says so
	closed bool               // it takes nothing, and says so
	fails  func(string) error // it fails without warning
}

func (j *journal) Ready(c audit.Class) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed || j.full && c != audit.Takeaway {
		return audit.ErrFull
	}
	return nil
}

func (j *journal) Record(ctx context.Context, e audit.Event) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if j.closed || j.full && e.Class != audit.Takeaway {
		return audit.ErrFull
	}
	if j.fails != nil {
		if err := j.fails(e.Name); err != nil {
			return err
		}
	}
	j.events = append(j.events, e)
	return nil
}

func (j *journal) set(f func(*journal)) {
	j.mu.Lock()
	defer j.mu.Unlock()
	f(j)
}

// names are what was recorded, in order.
func (j *journal) names() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	names := []string{}
	for _, e := range j.events {
		names = append(names, e.Name)
	}
	return names
}

// bench is an outbox over a real database.
type bench struct {
	*testing.T
	store   *store.Store
	journal *journal
	box     *Box
	cfg     Config
	points  []string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	t.Parallel()
	db, err := store.Open(t.Context(), store.Config{Path: filepath.Join(t.TempDir(), "certbound.db"), KEK: make([]byte, 32)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	b := &bench{T: t, store: db, journal: &journal{}}
	b.cfg = Config{Store: db, Journal: b.journal, Reached: func(p Point, event string) { b.points = append(b.points, string(p)+" "+event) }}
	b.reopen()
	b.must(b.box.Flush(t.Context()))
	return b
}

// reopen is the outbox of a new process.
func (b *bench) reopen() {
	b.Helper()
	var err error
	b.box, err = New(b.cfg)
	b.must(err)
}

func (b *bench) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func (b *bench) same(got, want any) {
	b.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		b.Errorf("(-want +got)\n%s", diff)
	}
}

func (b *bench) is(err, want error) {
	b.Helper()
	if !errors.Is(err, want) {
		b.Errorf("error is %v, want %v", err, want)
	}
}

// add registers a resource, with an event for each name.
func (b *bench) add(class audit.Class, uri string, names ...string) (bool, error) {
	return b.box.Change(b.Context(), class, func(tx *store.Store) ([]audit.Event, error) {
		var events []audit.Event
		for _, name := range names {
			events = append(events, audit.Event{Name: name, Resource: uri, Address: "192.0.2.1"})
		}
		return events, tx.AddResource(b.Context(), store.Resource{URI: uri})
	})
}

// nothing is a change that touches nothing.
func (b *bench) nothing(class audit.Class, name string) (bool, error) {
	return b.box.Change(b.Context(), class, func(*store.Store) ([]audit.Event, error) {
		return []audit.Event{{Name: name}}, nil
	})
}

// state checks which resources there are, how many rows, and what is on record.
func (b *bench) state(resources string, rows int64, recorded ...string) {
	b.Helper()
	list, err := b.store.Resources(b.Context())
	b.must(err)
	var uris []string
	for _, r := range list {
		uris = append(uris, r.URI)
	}
	b.same(strings.Join(uris, " "), resources)
	n, _, err := b.store.Waiting(b.Context())
	b.must(err)
	b.same(n, rows)
	b.same(b.journal.names(), append([]string{}, recorded...))
}

// A change, then its record, then the answer, and only then the row goes.
func TestOrder(t *testing.T) {
	b := newBench(t)
	var at []string
	reached := b.box.cfg.Reached
	b.box.cfg.Reached = func(p Point, event string) {
		reached(p, event)
		list, err := b.store.Resources(t.Context())
		b.must(err)
		n, _, err := b.store.Waiting(t.Context())
		b.must(err)
		at = append(at, fmt.Sprintf("%s: %d changed, %d rows, %d recorded", p, len(list), n, len(b.journal.names())))
	}
	pending, err := b.add(audit.Decision, "urn:a", "one", "two")
	b.must(err)
	b.same(pending, false)
	b.must(b.box.Flush(t.Context()))
	b.same(at, []string{
		"noted: 0 changed, 0 rows, 0 recorded", "committed: 1 changed, 2 rows, 0 recorded",
		"recorded: 1 changed, 2 rows, 2 recorded", "dropping: 1 changed, 2 rows, 2 recorded",
	})
	b.same(b.points[:3], []string{"noted one", "committed one", "recorded one"})
	b.state("urn:a", 0, "one", "two")
	changed, err := b.store.Version(t.Context())
	b.must(err)
	for _, e := range b.journal.events {
		if len(e.ID) != 26 || e.Class != audit.Decision || e.Time.IsZero() || e.Address != "192.0.2.1" || e.Version != changed {
			t.Errorf("recorded %+v", e)
		}
	}
	if b.journal.events[0].ID == b.journal.events[1].ID {
		t.Error("two events have one id")
	}
}

// What gives authority is not begun while the journal takes nothing.
func TestDecisionNeedsTheJournal(t *testing.T) {
	b := newBench(t)
	b.journal.full = true
	called := false
	pending, err := b.box.Change(t.Context(), audit.Decision, func(*store.Store) ([]audit.Event, error) {
		called = true
		return nil, nil
	})
	b.is(err, ErrNotReady)
	b.is(err, audit.ErrFull)
	if pending || called {
		t.Errorf("pending %t, called %t", pending, called)
	}
	b.is(b.box.Ready(audit.Decision), ErrNotReady)
	b.must(b.box.Ready(audit.Takeaway))
}

// A refusal undoes all, and is the caller's own.
func TestRefusalLeavesNothing(t *testing.T) {
	b := newBench(t)
	refused := errors.New("refused")
	_, err := b.box.Change(t.Context(), audit.Decision, func(tx *store.Store) ([]audit.Event, error) {
		b.must(tx.AddResource(t.Context(), store.Resource{URI: "urn:a"}))
		return []audit.Event{{Name: "one"}}, refused
	})
	if err != refused { // the same, not wrapped
		t.Errorf("error is %v", err)
	}
	b.state("", 0)
}

// A journal that fails after the commit: the change holds, its records wait and are written once, in order.
func TestJournalFailsAfterTheCommit(t *testing.T) {
	for class, want := range map[audit.Class]error{audit.Decision: ErrPending, audit.Takeaway: nil} {
		t.Run(fmt.Sprint(class), func(t *testing.T) {
			for _, failing := range []string{"one", "two"} {
				for _, died := range []bool{false, true} {
					t.Run(fmt.Sprint(failing, died), func(t *testing.T) {
						b := newBench(t)
						b.journal.fails = func(name string) error {
							if name == failing {
								return audit.ErrFailed
							}
							return nil
						}
						pending, err := b.add(class, "urn:a", "one", "two", "three")
						if !pending || !errors.Is(err, want) {
							t.Fatalf("pending %t, %v", pending, err)
						}
						if s := b.box.Stats(); s.Waiting != 1 || s.Oldest.IsZero() {
							t.Errorf("%+v", s)
						}
						before := b.journal.names()
						if !slices.Equal(before, slices.DeleteFunc([]string{"one", "two", "three"}, func(n string) bool { return n == failing })) {
							t.Errorf("recorded %v", before)
						}
						b.is(b.box.Flush(t.Context()), audit.ErrFailed)
						b.state("urn:a", 1, before...)
						b.journal.fails = nil
						if died {
							b.reopen()
						}
						for range 2 {
							b.must(b.box.Flush(t.Context()))
						}
						b.state("urn:a", 0, append(before, failing)...)
						b.same(b.box.Stats(), Stats{})
						for _, e := range b.journal.events {
							b.same(e.Class, class)
						}
					})
				}
			}
		})
	}
}

// What takes authority away is done while the journal takes nothing, once room was asked for, and recorded later. Other
// records do not wait for those that have no room.
func TestTakeawayWithoutTheJournal(t *testing.T) {
	b := newBench(t)
	asked := 0
	b.box.cfg.MakeRoom = func() error { asked++; return audit.ErrFull }
	b.journal.closed = true
	pending, err := b.add(audit.Takeaway, "urn:a", "gone")
	b.must(err)
	b.same(pending, true)
	b.same(asked, 1)
	b.is(b.box.Flush(t.Context()), ErrNotReady)
	b.state("urn:a", 1)

	b.journal.closed = false
	b.journal.fails = func(string) error { return errors.New("broken") }
	_, err = b.add(audit.Decision, "urn:b", "given")
	b.is(err, ErrPending)
	b.journal.fails, b.journal.full = nil, true
	b.is(b.box.Flush(t.Context()), ErrNotReady)
	b.state("urn:a urn:b", 1, "gone")
	b.same(b.box.Stats().Waiting, 1)
	b.journal.full = false
	b.must(b.box.Flush(t.Context()))
	b.state("urn:a urn:b", 0, "gone", "given")
	b.same(asked, 1)
}

// A full database is noted; room is made in it for what takes authority away, and for nothing else.
func TestDatabaseFull(t *testing.T) {
	b := newBench(t)
	asked, noted := 0, 0
	b.box.cfg.MakeRoom = func() error { asked++; return nil }
	b.box.cfg.NoteFull = func() { noted++ }
	change := func(class audit.Class) error {
		calls := 0
		_, err := b.box.Change(t.Context(), class, func(tx *store.Store) ([]audit.Event, error) {
			if calls++; calls == 1 {
				return nil, fmt.Errorf("write: %w", store.ErrFull)
			}
			return []audit.Event{{Name: "gone"}}, tx.AddResource(t.Context(), store.Resource{URI: "urn:a"})
		})
		return err
	}
	b.is(change(audit.Decision), store.ErrFull)
	b.same([]int{asked, noted}, []int{0, 1})
	b.state("", 0)
	b.must(change(audit.Takeaway))
	b.same([]int{asked, noted}, []int{1, 2})
	b.state("urn:a", 1, "gone")
}

// What changed nothing has no row, and is recorded all the same.
func TestNothingChanged(t *testing.T) {
	b := newBench(t)
	pending, err := b.nothing(audit.Decision, "same")
	b.must(err)
	b.same(pending, false)
	b.state("", 0, "same")
	b.journal.fails = func(string) error { return audit.ErrFailed }
	pending, err = b.nothing(audit.Decision, "same")
	b.is(err, audit.ErrFailed)
	b.same(pending, false)
	b.state("", 0, "same")
	pending, err = b.nothing(audit.Takeaway, "gone")
	b.must(err)
	b.same(pending, true)
	b.state("", 1, "same")
	b.is(b.box.Record(t.Context(), audit.Event{Name: "reset", Class: audit.Takeaway}), audit.ErrFailed)
	b.is(b.box.Record(t.Context(), audit.Event{Name: "refused", Class: audit.Refusal}), audit.ErrFailed)
	b.state("", 2, "same")
	b.journal.fails = nil
	b.must(b.box.Flush(t.Context()))
	b.state("", 0, "same", "gone", "reset")
	b.must(b.box.Record(t.Context(), audit.Event{Name: "direct"}))
	b.state("", 0, "same", "gone", "reset", "direct")
	for _, e := range b.journal.events {
		if e.Time.IsZero() {
			t.Errorf("no time: %+v", e)
		}
	}
}

// A caller that leaves while the change is made does not keep it from being recorded.
func TestCallerLeaves(t *testing.T) {
	b := newBench(t)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := b.box.Change(ctx, audit.Decision, func(tx *store.Store) ([]audit.Event, error) {
		defer cancel()
		return []audit.Event{{Name: "one"}}, tx.AddResource(ctx, store.Resource{URI: "urn:a"})
	})
	b.must(err)
	b.state("urn:a", 1, "one")
	b.must(b.box.Record(ctx, audit.Event{Name: "two"}))
	b.state("urn:a", 1, "one", "two")
}

// A row whose change is about to record it is left to that.
func TestFlushDuringAChange(t *testing.T) {
	b := newBench(t)
	b.journal.fails = func(string) error { return audit.ErrFailed }
	_, err := b.add(audit.Decision, "urn:a", "one")
	b.is(err, ErrPending)
	b.journal.fails = nil
	b.box.cfg.Reached = func(p Point, _ string) {
		if p == Committed {
			b.must(b.box.Flush(t.Context()))
			b.state("urn:a urn:b", 1, "one")
		}
	}
	_, err = b.add(audit.Decision, "urn:b", "two")
	b.must(err)
	b.must(b.box.Flush(t.Context()))
	b.state("urn:a urn:b", 0, "one", "two")
}

// A row that comes and is left while the outbox is read, and so is not among what was read, is not forgotten.
func TestRowComesDuringALook(t *testing.T) {
	b := newBench(t)
	b.journal.fails = func(string) error { return audit.ErrFailed }
	rows, more, err := b.box.left(func() ([]store.Entry, error) {
		entries, err := b.store.Outbox(t.Context(), maxPass)
		_, failed := b.add(audit.Decision, "urn:a", "one")
		b.is(failed, ErrPending)
		return entries, err
	})
	b.must(err)
	if len(rows) != 0 || more || b.box.Stats().Waiting != 1 || !b.box.busy() {
		t.Errorf("%d rows, more %t, %+v", len(rows), more, b.box.Stats())
	}
}

// A commit that failed may have been one: its rows are looked for.
func TestUnknownCommit(t *testing.T) {
	b := newBench(t)
	events := []audit.Event{{ID: "row", Name: "one"}}
	b.box.begin(events)
	b.must(b.store.Transact(t.Context(), func(tx *store.Store) error { return note(tx, events) }))
	b.must(b.box.Flush(t.Context()))
	b.state("", 1)
	b.box.unknown(events)
	if !b.box.busy() {
		t.Error("nobody looks")
	}
	b.must(b.box.Flush(t.Context()))
	b.state("", 0, "one")
}

// A process that died has its records written by the next, but not those that the journal has.
func TestKnown(t *testing.T) {
	b := newBench(t)
	b.journal.fails = func(name string) error {
		if name == "two" {
			return audit.ErrFailed
		}
		return nil
	}
	start := time.Now()
	_, err := b.add(audit.Decision, "urn:a", "one", "two")
	b.is(err, ErrPending)
	b.journal.fails = nil
	b.cfg.Known = func(_ context.Context, since time.Time, ids map[string]bool) (map[string]bool, error) {
		if since.After(start) || since.Before(start.Add(-2*scanSlack)) || len(ids) != 2 {
			t.Errorf("asked since %s for %v", since, ids)
		}
		return map[string]bool{b.journal.events[0].ID: true, "other": true}, nil
	}
	b.reopen()
	b.must(b.box.Flush(t.Context()))
	b.state("urn:a", 0, "one", "two")

	b.cfg.Known = func(context.Context, time.Time, map[string]bool) (map[string]bool, error) {
		return nil, os.ErrPermission
	}
	_, err = b.add(audit.Decision, "urn:b", "three")
	b.must(err)
	b.reopen()
	b.is(b.box.Flush(t.Context()), os.ErrPermission)
	b.state("urn:a urn:b", 1, "one", "two", "three") // rather late than twice
}

// The journal is looked through for what it may have, once, and not for what it refused.
func TestKnownIsAskedOnce(t *testing.T) {
	b := newBench(t)
	var asked []int
	b.cfg.Known = func(_ context.Context, _ time.Time, ids map[string]bool) (map[string]bool, error) {
		asked = append(asked, len(ids))
		return nil, nil
	}
	b.reopen()
	fail := func(err error) { b.journal.fails = func(string) error { return err } }
	fail(audit.ErrFull)
	_, err := b.add(audit.Decision, "urn:a", "full")
	b.is(err, ErrPending)
	fail(errors.New("who knows"))
	_, err = b.add(audit.Decision, "urn:b", "uncertain")
	b.is(err, ErrPending)
	fail(audit.ErrFull)
	for range 3 {
		b.is(b.box.Flush(t.Context()), audit.ErrFull)
	}
	b.same(asked, []int{1})
	b.reopen()
	for range 3 {
		b.is(b.box.Flush(t.Context()), audit.ErrFull)
	}
	b.same(asked, []int{1, 2})
	b.journal.fails = nil
	b.must(b.box.Flush(t.Context()))
	b.same(asked, []int{1, 2})
	b.state("urn:a urn:b", 0, "full", "uncertain")
	if len(b.box.absent)+len(b.box.waiting)+len(b.box.done)+len(b.box.underWay) != 0 {
		t.Errorf("left: %v %v %v %v", b.box.absent, b.box.waiting, b.box.done, b.box.underWay)
	}
}

// Known finds ids of records, and not what looks like them, in files that are not too old.
func TestKnownInFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string, age time.Duration) {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(-age)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	long := strings.Repeat("x", maxLine)
	write("audit-1-1.jsonl", `{"seq":1,"id":"A","event":"x"}`+"\n"+`{"detail":{"id":"B","x":"\"id\":\"C\""}}`+"\n"+`{"id":"D","x":"`+long+"\"}\n"+`{"id":"E"}`+"\n\n\n", 0)
	write("audit-1-2.jsonl", `{"id":"F"}`, time.Minute)
	write("audit-1-0.jsonl", `{"id":"G"}`, 3*time.Hour)
	write("refusals-1-1.jsonl", `{"id":"H"}`, 0)
	ids := make(map[string]bool)
	for _, id := range strings.Split("ABCDEFGH", "") {
		ids[id] = true
	}
	got, err := Known(dir)(t.Context(), time.Now().Add(-time.Hour), ids)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]bool{"A": true, "E": true, "F": true}, got); diff != "" {
		t.Error(diff)
	}
	if got, err := Known(filepath.Join(dir, "none"))(t.Context(), time.Time{}, ids); err != nil || len(got) != 0 {
		t.Errorf("%v, %v", got, err)
	}
}

// A row that cannot be read is an error, and stays.
func TestUnreadableRow(t *testing.T) {
	for name, body := range map[string]string{"no event": "x", "another's": `{"ID":"another"}`} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.must(b.store.Transact(t.Context(), func(tx *store.Store) error { return tx.Note(store.Entry{ID: "row", Body: []byte(body)}) }))
			b.reopen()
			if err := b.box.Flush(t.Context()); err == nil || !strings.Contains(err.Error(), `"row"`) {
				t.Errorf("error is %v", err)
			}
			b.state("", 1)
		})
	}
}

// More rows than one look takes are all recorded, each once, at once.
func TestManyRows(t *testing.T) {
	b := newBench(t)
	var want []string
	for i := range maxPass*2 + 10 {
		want = append(want, fmt.Sprint("e", i))
	}
	b.journal.closed = true
	_, err := b.add(audit.Takeaway, "urn:a", want...)
	b.must(err)
	b.reopen()
	b.journal.closed = false
	b.must(b.box.Flush(t.Context()))
	slices.SortFunc(b.journal.events, func(x, y audit.Event) int { return strings.Compare(x.Name, y.Name) })
	slices.Sort(want)
	b.state("urn:a", 0, want...)
}

// Many records of one change are each tried, and those that failed wait.
func TestManyEvents(t *testing.T) {
	b := newBench(t)
	var names []string
	for i := range 100 {
		names = append(names, fmt.Sprint("e", i))
	}
	b.journal.fails = func(name string) error {
		if strings.HasSuffix(name, "7") {
			return audit.ErrFailed
		}
		return nil
	}
	pending, err := b.add(audit.Takeaway, "urn:a", names...)
	b.must(err)
	if !pending || b.box.Stats().Waiting != 10 || len(b.journal.names()) != 90 {
		t.Errorf("pending %t, %+v, %d recorded", pending, b.box.Stats(), len(b.journal.names()))
	}
	b.journal.fails = nil
	b.must(b.box.Flush(t.Context()))
	if len(b.journal.names()) != 100 {
		t.Errorf("%d recorded", len(b.journal.names()))
	}
}

// Rows are deleted once their records are durable, not before.
func TestSyncBeforeDropping(t *testing.T) {
	b := newBench(t)
	synced := errors.New("not yet")
	b.box.cfg.Sync = func(context.Context) error { return synced }
	_, err := b.add(audit.Decision, "urn:a", "one")
	b.must(err)
	b.is(b.box.Flush(t.Context()), synced)
	b.is(b.box.Close(), synced)
	b.state("urn:a", 1, "one")
	synced = nil
	b.must(b.box.Close())
	b.state("urn:a", 0, "one")
}

// Run records what waits once the journal works again, and deletes what is recorded.
func TestRun(t *testing.T) {
	b := newBench(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { b.box.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	await := func(what string, done func() bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal(what)
			}
		}
	}
	rows := func() int64 {
		n, _, err := b.store.Waiting(t.Context())
		b.must(err)
		return n
	}
	_, err := b.add(audit.Decision, "urn:a", "one")
	b.must(err)
	await("the row of what is recorded stays", func() bool { return rows() == 0 })
	b.journal.set(func(j *journal) { j.closed = true })
	_, err = b.add(audit.Takeaway, "urn:b", "two")
	b.must(err)
	b.same(b.box.Stats().Waiting, 1)
	b.journal.set(func(j *journal) { j.closed = false })
	await("what waits is not recorded", func() bool { return len(b.journal.names()) == 2 && rows() == 0 })
	b.same(b.box.Stats(), Stats{})
}

// Whatever fails and however it meets, each change has each of its records once, and nothing else is on record.
func TestExactlyOnce(t *testing.T) {
	b := newBench(t)
	b.box.cfg.Reached = func(Point, string) {}
	random := rand.New(rand.NewPCG(1, 2))
	b.journal.fails = func(string) error {
		if random.IntN(3) == 0 {
			return audit.ErrFailed
		}
		return nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	var flushing, changing sync.WaitGroup
	for range 2 {
		flushing.Go(func() {
			for ctx.Err() == nil {
				_ = b.box.Flush(t.Context()) // it may fail: the journal does
			}
		})
	}
	const workers, each = 4, 25
	for w := range workers {
		changing.Go(func() {
			for i := range each {
				uri := fmt.Sprintf("urn:%d:%d", w, i)
				if _, err := b.add(audit.Class(i%2), uri, uri+" first", uri+" second"); err != nil && !errors.Is(err, ErrPending) {
					t.Error(err)
				}
			}
		})
	}
	changing.Wait()
	cancel()
	flushing.Wait()
	b.journal.set(func(j *journal) { j.fails = nil })
	b.must(b.box.Flush(t.Context()))
	counts, ids := make(map[string]int), make(map[string]int)
	for _, e := range b.journal.events {
		counts[e.Name]++
		ids[e.ID]++
	}
	if len(counts) != workers*each*2 || len(ids) != len(b.journal.events) || len(ids) != len(counts) {
		t.Errorf("%d events, %d names, %d ids", len(b.journal.events), len(counts), len(ids))
	}
	if n, _, err := b.store.Waiting(t.Context()); n != 0 || err != nil {
		t.Errorf("%d rows, %v", n, err)
	}
}

func TestNew_Refuses(t *testing.T) {
	t.Parallel()
	for _, cfg := range []Config{{}, {Store: &store.Store{}}, {Journal: &journal{}}} {
		if _, err := New(cfg); err == nil {
			t.Errorf("made from %+v", cfg)
		}
	}
}
