// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Package outbox joins changes of the database with their records in the journal, so that neither is there without the
// other. It is for the program's parts that change who may do what: the authority, the operators' API, the first start.
//
// The order is always the same. One transaction holds the change and, sealed, its records; then the records go into the
// journal; then the answer leaves; later the outbox's rows are deleted. A process that dies before the commit has changed
// nothing. One that dies after it has its records written by the next start, each once: a record has an id, and one that
// the journal has already is not written again.
//
// It refuses what gives authority while the journal cannot take the record, before anything is touched. What takes
// authority away is done all the same, and its record waits.
package outbox

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/store"
)

// Sentinels to branch on with errors.Is.
var (
	// ErrNotReady says that the journal can take no record of this class: nothing was changed.
	ErrNotReady = errors.New("the journal takes no records now")
	// ErrUnsettled says that a change that takes authority away was made, and that it is not known yet that every replica
	// has applied it; see UnsettledError for when each has, or serves nobody.
	ErrUnsettled = errors.New("the change was made, and is not known to be in force everywhere yet")
	// ErrPending says that a change that gives authority was made, but its record waits: the caller must be refused, and
	// may repeat its request once the journal works again.
	ErrPending = errors.New("the change was made, but its record waits for the journal")
)

// UnsettledError says from when on a change that takes authority away is in force everywhere. It is ErrUnsettled.
type UnsettledError struct {
	By  time.Time
	Err error
}

// Error says when.
func (e *UnsettledError) Error() string {
	return fmt.Sprintf("%v: committed, effective by %s", ErrUnsettled, e.By.UTC().Format(time.RFC3339Nano))
}

// Is reports whether target is ErrUnsettled.
func (e *UnsettledError) Is(target error) bool { return target == ErrUnsettled }

// Unwrap returns why it is not known.
func (e *UnsettledError) Unwrap() error { return e.Err }

// Bounds of the work behind.
const (
	// adoptEvery is how often rows are looked for that replicas left which serve no more.
	adoptEvery = 10 * time.Second
	// courtesy is how long a change that gives authority waits until other replicas know of it, at most.
	courtesy = time.Second
	maxPass  = 1000        // rows of one look at the outbox
	dropAt   = 256         // rows that are deleted without waiting for more
	interval = time.Second // between looks, while there is something to do
	logAgain = time.Minute // between two complaints about the same
	// syncTimeout bounds the wait for records to be durable; what is not by then is looked at again later.
	syncTimeout = 5 * time.Second
	scanSlack   = time.Hour // how far clocks may have been set while a row waited
)

// Journal is where records go for good: an [audit.Log].
type Journal interface {
	// Ready returns nil when an event of the class can be recorded.
	Ready(audit.Class) error
	// Record writes one event. An error says that the event may not be in the journal.
	Record(context.Context, audit.Event) error
}

// Point is a moment of a change at which a process may die.
type Point string

// The points, in their order.
const (
	Noted     Point = "noted"     // before the commit
	Committed Point = "committed" // before the journal
	Recorded  Point = "recorded"  // before the answer
	Dropping  Point = "dropping"  // before the rows are deleted
)

// Config is what a [Box] is made of. Store and Journal are required.
type Config struct {
	Store   *store.Store
	Journal Journal
	// Known returns which of the ids are those of records that the journal has, of all that were written since the time
	// given. It is asked for rows that may have been recorded before the process died. Nil: none is known.
	Known func(ctx context.Context, since time.Time, ids map[string]bool) (map[string]bool, error)
	// Sync returns when all that was recorded before is durable. Nil: it is when Record returns.
	Sync func(context.Context) error
	// Effective waits until every replica has applied a version of the state, or serves nobody any more. An UnsettledError
	// says when that will be. Nil: there is no other replica.
	Effective func(ctx context.Context, version int64) error
	// Adopt has the rows recorded here that replicas left which serve no more.
	Adopt bool
	// MakeRoom frees what is kept back for taking authority away, once the disk is full. Nil: nothing is.
	MakeRoom func() error
	// NoteFull is told that the database found no room. Nil: nobody is.
	NoteFull func()
	// Reached, when not nil, is told of each point of each change with the name of its first event, for tests.
	Reached func(p Point, event string)
	// Logger is told of records that wait. Nil discards. Now is the clock; nil is time.Now.
	Logger *slog.Logger
	Now    func() time.Time
}

// Box is the outbox. It is safe for concurrent use.
type Box struct {
	cfg Config

	// behind is held while rows are flushed or deleted: a row that was read is not deleted by another before it is judged.
	behind sync.Mutex

	mu       sync.Mutex
	underWay map[string]bool      // rows that a Change will record itself
	done     map[string]bool      // rows that are recorded and not yet deleted
	waiting  map[string]time.Time // rows that are neither, as far as known, and since when
	absent   map[string]bool      // rows that the journal surely does not have
	look     bool                 // whether rows may be there that are in none of these
	wake     chan struct{}
	saidAt   time.Time
}

// Stats says what waits for the journal.
type Stats struct {
	Waiting int       // records
	Oldest  time.Time // when the oldest was noted; zero when none waits
}

// New returns a Box. Before the first Change, Flush must have looked for what an earlier process left.
func New(cfg Config) (*Box, error) {
	if cfg.Store == nil || cfg.Journal == nil {
		return nil, errors.New("outbox: a store and a journal are required")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Reached == nil {
		cfg.Reached = func(Point, string) {}
	}
	return &Box{
		cfg: cfg, look: true, wake: make(chan struct{}, 1),
		underWay: make(map[string]bool), done: make(map[string]bool), waiting: make(map[string]time.Time),
		absent: make(map[string]bool),
	}, nil
}

// Ready returns nil when an event of the class can be recorded now, or an ErrNotReady. It is asked before work that a
// Change would find useless.
func (b *Box) Ready(class audit.Class) error {
	if err := b.cfg.Journal.Ready(class); err != nil {
		return fmt.Errorf("%w: %w", ErrNotReady, err)
	}
	return nil
}

// Change makes a change and records it. f makes it through tx, in one transaction, and returns its events, of which the
// ids, the classes and times that are zero are set here; an error of f undoes all and is returned as it is. f may be
// called twice, and must not use the store past tx.
//
// With the class audit.Decision, the journal is asked first, and ErrNotReady is returned before anything is touched. When
// it fails after the commit the error is ErrPending: the change holds, its record waits, and the caller must be refused.
// With audit.Takeaway the change is made also while the journal cannot take the record; then pending is true. A change
// that touched nothing is recorded all the same; that it could not be is an error for a Decision.
//
// What takes authority away is in force at every replica when this returns nil; an UnsettledError says that it was made
// and from when on it is in force. That it was made already is no reason not to wait: whoever repeats it wants to know. An
// error that is store.ErrUnknown leaves open whether the change was made: it may be repeated.
func (b *Box) Change(ctx context.Context, class audit.Class, f func(tx *store.Store) ([]audit.Event, error)) (pending bool, err error) {
	return b.change(ctx, class, 0, f)
}

// Courteous is a Box whose changes that give authority wait a moment until other replicas know of them too, so that whoever
// made one may go on with it anywhere. It promises nothing.
type Courteous struct{ *Box }

// Change is Box.Change.
func (c Courteous) Change(ctx context.Context, class audit.Class, f func(tx *store.Store) ([]audit.Event, error)) (pending bool, err error) {
	return c.change(ctx, class, courtesy, f)
}

func (b *Box) change(ctx context.Context, class audit.Class, patience time.Duration, f func(tx *store.Store) ([]audit.Event, error)) (pending bool, err error) {
	if class != audit.Takeaway {
		if err := b.Ready(class); err != nil {
			return false, err
		}
	} else if b.cfg.Journal.Ready(class) != nil {
		b.makeRoom(ctx)
	}
	batch, err := b.commit(ctx, class, f)
	if errors.Is(err, store.ErrFull) && b.cfg.NoteFull != nil {
		b.cfg.NoteFull()
	}
	if class == audit.Takeaway && errors.Is(err, store.ErrFull) && b.makeRoom(ctx) {
		batch, err = b.commit(ctx, class, f)
	}
	if err != nil {
		return false, b.madeBefore(ctx, class, err)
	}
	ctx = context.WithoutCancel(ctx)
	pending, err = b.record(ctx, class, batch)
	if b.cfg.Effective == nil || err != nil {
		return pending, err
	}
	if class == audit.Takeaway {
		return pending, b.cfg.Effective(ctx, batch.version)
	}
	if patience > 0 && batch.noted {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		_ = b.cfg.Effective(ctx, batch.version) // nobody was promised anything
	}
	return pending, nil
}

// madeBefore returns the error of a change that was refused. That of one that takes authority away may say that there is
// nothing to take any more: also that is answered only when it is so everywhere.
func (b *Box) madeBefore(ctx context.Context, class audit.Class, refused error) error {
	if class != audit.Takeaway || b.cfg.Effective == nil || errors.Is(refused, store.ErrUnknown) {
		return refused
	}
	ctx = context.WithoutCancel(ctx)
	version, err := b.cfg.Store.Version(ctx)
	if err != nil {
		return refused
	}
	if err := b.cfg.Effective(ctx, version); err != nil {
		return err
	}
	return refused
}

// batch is what one change has to record.
type batch struct {
	version int64 // from which on it holds
	events  []audit.Event
	noted   bool // in the outbox, since something was changed
	at      time.Time
}

func (c *batch) name() string {
	if len(c.events) == 0 {
		return ""
	}
	return c.events[0].Name
}

// commit makes the change with its rows. From before the commit on, the rows are under way: nobody else records them.
func (b *Box) commit(ctx context.Context, class audit.Class, f func(tx *store.Store) ([]audit.Event, error)) (*batch, error) {
	made := &batch{at: b.cfg.Now()}
	var err error
	made.version, err = b.cfg.Store.TransactAt(ctx, func(tx *store.Store) error {
		events, err := f(tx)
		if err != nil {
			return err
		}
		made.events, made.noted = events, tx.Touched()
		var version int64
		if made.noted {
			if version, err = tx.NextVersion(ctx); err != nil {
				return err
			}
		}
		for i := range events {
			e := &events[i]
			e.ID, e.Class, e.Version = rand.Text(), class, version
			if e.Time.IsZero() {
				e.Time = made.at
			}
		}
		if !made.noted {
			return nil
		}
		if err := note(tx, events); err != nil {
			return err
		}
		b.begin(events)
		b.cfg.Reached(Noted, made.name())
		return nil
	})
	if err != nil {
		b.unknown(made.events)
		return nil, err
	}
	return made, nil
}

func note(tx *store.Store, events []audit.Event) error {
	for _, e := range events {
		body, err := audit.EncodeEvent(e)
		if err != nil {
			return err
		}
		if err := tx.Note(store.Entry{ID: e.ID, Body: body}); err != nil {
			return err
		}
	}
	return nil
}

// record writes the records of a change that is committed.
func (b *Box) record(ctx context.Context, class audit.Class, made *batch) (pending bool, err error) {
	b.cfg.Reached(Committed, made.name())
	failed := each(len(made.events), func(i int) error {
		e := made.events[i]
		err := b.cfg.Journal.Record(ctx, e)
		if made.noted {
			b.settle(e.ID, err, made.at)
		} else if err != nil && class == audit.Takeaway {
			b.keep(ctx, e)
		}
		if err != nil {
			return fmt.Errorf("recording %s: %w", e.Name, err)
		}
		return nil
	})
	if failed == nil {
		b.cfg.Reached(Recorded, made.name())
		return false, nil
	}
	b.cfg.Logger.ErrorContext(ctx, "a record waits for the journal", "event", made.name(), "error", failed)
	switch {
	case class == audit.Takeaway:
		return true, nil
	case made.noted:
		return true, fmt.Errorf("%w: %w", ErrPending, failed)
	}
	return false, failed
}

// each calls f with the numbers below n, and returns an error of one of the calls. A few are called in their order. Many,
// as when a client with hundreds of certificates is revoked, are called at once, so that their records share the syncs.
func each(n int, f func(i int) error) error {
	const few, atOnce = 4, 64
	var failed error
	if n <= few {
		for i := range n {
			if err := f(i); err != nil && failed == nil {
				failed = err
			}
		}
		return failed
	}
	var next atomic.Int64
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range min(n, atOnce) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if err := f(i); err != nil {
					mu.Lock()
					failed = err
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return failed
}

// Record writes the event of what changed nothing in the database, and returns why that failed. The record of something
// that took authority away then waits in the outbox.
func (b *Box) Record(ctx context.Context, e audit.Event) error {
	ctx = context.WithoutCancel(ctx)
	if e.Time.IsZero() {
		e.Time = b.cfg.Now()
	}
	err := b.cfg.Journal.Record(ctx, e)
	if err != nil && e.Class == audit.Takeaway {
		e.ID = rand.Text()
		b.keep(ctx, e)
	}
	return err
}

// keep puts into the outbox what the journal did not take.
func (b *Box) keep(ctx context.Context, e audit.Event) {
	err := b.cfg.Store.Transact(ctx, func(tx *store.Store) error { return note(tx, []audit.Event{e}) })
	if err != nil {
		b.cfg.Logger.ErrorContext(ctx, "a record is lost: neither the journal nor the database took it", "event", e.Name, "error", err)
	}
	b.mu.Lock()
	b.look = true
	b.mu.Unlock()
	b.rouse()
}

func (b *Box) makeRoom(ctx context.Context) bool {
	if b.cfg.MakeRoom == nil {
		return false
	}
	if err := b.cfg.MakeRoom(); err != nil {
		b.cfg.Logger.ErrorContext(ctx, "what is kept back for taking authority away could not be freed", "error", err)
		return false
	}
	return true
}

func (b *Box) begin(events []audit.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range events {
		b.underWay[e.ID], b.absent[e.ID] = true, true
	}
}

// unknown gives rows up whose commit failed: they may be there, and then nobody else will record them.
func (b *Box) unknown(events []audit.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range events {
		if b.underWay[e.ID] {
			delete(b.underWay, e.ID)
			delete(b.absent, e.ID) // there may be no such row, and then nothing would
			b.look = true
		}
	}
	if b.look {
		b.rouse()
	}
}

// settle notes that a row was recorded and may go, or why it waits.
func (b *Box) settle(id string, err error, since time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.underWay, id)
	if err == nil {
		delete(b.waiting, id)
		b.done[id] = true
	} else {
		b.waiting[id] = since
	}
	if err == nil || !errors.Is(err, ErrNotReady) && !errors.Is(err, audit.ErrFull) {
		delete(b.absent, id) // it may be in the journal all the same
	}
	b.rouse()
}

// rouse has Run look after the rows.
func (b *Box) rouse() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}
