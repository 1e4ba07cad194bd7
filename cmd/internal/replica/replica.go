// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Package replica lets several processes serve on one database so that a revocation holds at all of them when it returns.
//
// Each replica holds a short lease and decides nothing without it. A lease is extended by a committed write, never by a
// read: a database that was replaced by another still answers reads. It lasts a fixed time from the moment before the
// write was sent, on the replica's own clock, and only once the version of the state that the write returned is applied
// here. So whoever has committed a change, and waits for a little more than a lease, knows that nobody decides on an older
// state any more; and when every replica's row says that the change is applied, there is nothing to wait for.
//
// A replica says that it has applied a version once its caches have been told of every change up to it, and once every
// decision that passed the gate before that has left. Replicas follow by polling; hints only make them quicker. Clocks of
// two machines are never compared to grant anything: where they differ too much, that only ends a lease.
//
// It is assumed that clocks run within 0.1 % of each other, that the boot clock counts suspend, and that the database loses
// no commit that it has acknowledged; [Config].Durable says whether the last is so.
package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/tokens/issuer"
)

// The times of the protocol.
const (
	// Term is how long a lease lasts, from before its renewal was sent.
	Term = 3 * time.Second
	// Settled is how long whoever committed a change waits until no lease is left that began before: ten times the
	// assumed error of the clocks' rates over a term, and some for reading them.
	Settled = Term + Term/100 + 50*time.Millisecond

	renewEvery   = time.Second
	renewTimeout = Term / 2                               // so that two tries fit into a term
	retryEvery   = 250 * time.Millisecond                 // after a renewal that failed
	tryEvery     = renewEvery + renewTimeout + retryEvery // a process that does not stand still tries at least that often
	spacing      = 50 * time.Millisecond                  // between renewals, at least: at most 20 a second
	pollEvery    = 150 * time.Millisecond
	pollAtMost   = time.Second // while polls fail
	pollTimeout  = time.Second
	batch        = 256 // changes read at once
	lookEvery    = Term
	reapAfter    = 10 * Term
	durableEvery = time.Minute
	sayEvery     = 10 * time.Second
	leaveTimeout = 2 * time.Second // twice what an answer may take into the hands of the system
	endTimeout   = 2 * time.Second

	clockSlack = time.Second     // by which the wall clock may be off before a lease is void
	clockAlarm = 5 * time.Second // by which it may be off before nothing is issued until it was right for a term
)

// Sentinels to branch on with errors.Is.
var (
	// ErrOtherDatabase says that the database is not the one that this replica began on.
	ErrOtherDatabase = errors.New("this is another database than the one that the service was started on")
	// ErrRegressed says that the version of the state went backwards: committed changes, revocations among them, were lost.
	ErrRegressed = errors.New("the database has lost committed changes: restore it or replay the journals (certbound store restore)")
)

// NoLeaseError says why nothing may be decided here now.
type NoLeaseError struct{ Reason string }

// Error says why.
func (e *NoLeaseError) Error() string { return "no lease on the database: " + e.Reason }

// RetryAfter is when to ask again.
func (e *NoLeaseError) RetryAfter() time.Duration { return renewEvery }

// PendingError says that a change is committed, and from when on it is in force at every replica.
type PendingError struct {
	By  time.Time // by the wall clock of this machine
	Err error     // why nobody waited for it
}

// Error says when.
func (e *PendingError) Error() string {
	return "committed, effective by " + e.By.UTC().Format(time.RFC3339Nano)
}

// Unwrap returns why nobody waited.
func (e *PendingError) Unwrap() error { return e.Err }

// Database is what replicas share: a [store.Store].
type Database interface {
	BeginLease(context.Context, store.Lease) error
	RenewLease(context.Context, store.LeaseRenewal) (store.Renewed, error)
	Leases(context.Context) ([]store.Lease, error)
	EndLease(ctx context.Context, replica string, incarnation uint64) error
	ReapLease(context.Context, store.Lease) error
	// ChangesSince returns the changes after a version, in their order and without a gap.
	ChangesSince(ctx context.Context, version int64, limit int) ([]store.Change, error)
	// Announce has everything dropped from memory that a change touched, before it returns. What is read from the database
	// afterwards, and only that, may be remembered again.
	Announce(store.Change)
}

// Config is what a [Replica] is made of. Database, Name and Incarnation are required.
type Config struct {
	Database    Database
	Name        string // of the replica: no other has it
	Incarnation uint64 // counts its starts
	Program     string // its version, for others to see
	Address     string // where it serves, for others to see
	MTLSURL     string // what its metadata names as the base of the mtls listener, for others to see
	// Hints say that there may be a new version. They may come late, twice or never. Nil: none come.
	Hints <-chan struct{}
	// Head returns where the replica's journal stands, to be kept with each renewal; seq 0 for nowhere. It must not block.
	// Nil: nowhere.
	Head func() (seq uint64, chain [32]byte)
	// Durable reports whether a commit outlives the loss of the database's machine. It is asked at the start, each minute
	// and when the database has moved. Nil, or an error: it does not.
	Durable func(context.Context) (bool, error)
	// Moved is told by Begin which server takes the writes, and again when that restarted or was replaced, before anything
	// rests on the new one. When it has returned, no read that begins may be answered by another server, such as the former
	// primary that still talks to whoever is connected. Nil: there is nothing to do.
	Moved func(store.SystemID)
	// Peers is told the rows of all replicas, every few seconds while the lease holds. Nil: nobody asks.
	Peers func([]store.Lease)
	// Clock is the machine's when nil.
	Clock Clock
	// Logger receives alarms; nil discards them.
	Logger *slog.Logger

	reached func(step) // told of each step, by tests
}

// step is a moment at which the rest of the world may get ahead of a replica.
type step string

// The steps.
const (
	stepBegin     step = "begin"     // before its row is written
	stepBegun     step = "begun"     // after that
	stepRenew     step = "renew"     // after the clock was read, before the write is sent
	stepRenewed   step = "renewed"   // after the reply came
	stepMoved     step = "moved"     // after another life of the database was seen
	stepFollow    step = "follow"    // before changes are read
	stepAnnounce  step = "announce"  // after they were read, before the caches hear of them
	stepAnnounced step = "announced" // after that, before decisions rest on them
	stepApplied   step = "applied"   // after that
	stepEnter     step = "enter"     // after a decision was registered, before the lease is judged
	stepPassed    step = "passed"    // after that: the decision is made
	stepWait      step = "wait"      // before the wait for others begins
	stepRead      step = "read"      // before the leases are read
	stepEnd       step = "end"       // after nothing is granted any more
)

// rules are those parts of the protocol that tests exchange for wrong ones, to see that the simulation notices.
type rules struct {
	// stamp says from which moment a lease lasts, of those before the renewal was sent and after its reply came.
	stamp func(before, after time.Duration) time.Duration
	renew func(context.Context, Database, store.LeaseRenewal) (store.Renewed, error)
	// quiet returns the version that may be acknowledged.
	quiet func(older []*generation, now *generation) int64
	// steady reports whether the database has been the same for long enough to believe its rows.
	steady func(now, since time.Duration) bool
}

func sound() rules {
	return rules{
		stamp: func(before, _ time.Duration) time.Duration { return before },
		renew: func(ctx context.Context, db Database, r store.LeaseRenewal) (store.Renewed, error) {
			return db.RenewLease(ctx, r)
		},
		quiet: quiet,
		// A lease that was written to the database's former life may not be among the rows of this one.
		steady: func(now, since time.Duration) bool { return now-since >= Settled },
	}
}

// Replica is this process among those that share the database. It is safe for concurrent use.
type Replica struct {
	cfg   Config
	rules rules
	clock Clock
	gate  gate

	wakeRenewer, wakeFollower, wakeKeeper chan struct{}

	mu sync.Mutex
	state
}

// state is what a Replica knows. Times are of the boot clock.
type state struct {
	begun, running, closed bool
	inserted               bool  // the row was written, or may have been
	failed                 error // why Run ended for good

	applied int64                    // every change up to it was announced
	older   []*generation            // with decisions in them, oldest first
	waiting []promise                // renewals whose version is not applied yet
	live    bool                     // the lease holds, as far as was noted
	reason  string                   // why it does not
	said    map[string]time.Duration // when a complaint was last made

	newest   int64 // version seen
	newestAt time.Time

	sentAt   time.Duration // of the last renewal that was tried
	pause    time.Duration // between that and the one before it
	renewal  promise       // the last that was committed
	took     time.Duration
	acked    int64 // version that it acknowledged
	wanted   int   // how often Effective has asked for another renewal
	failures uint64
	lapses   uint64

	known   bool // system is
	system  store.SystemID
	movedAt time.Duration // when it was first seen to be as it is
	moves   uint64

	offset    time.Duration // the wall clock's lead over the boot clock, at the last renewal
	lead      time.Duration // the database's lead over the wall clock
	drift     time.Duration // of offset since the renewal before
	held      bool          // the wall clock was far off
	rightFrom time.Duration // since when it has been right again, while held
	right     bool

	peers   map[string]sighting
	looked  time.Duration
	durable bool
}

// promise is a lease that holds until a term after at, once version is applied.
type promise struct {
	at      time.Duration
	version int64
	offset  time.Duration
}

// New returns a Replica that holds no lease.
func New(cfg Config) (*Replica, error) {
	if cfg.Database == nil || cfg.Name == "" || cfg.Incarnation == 0 {
		return nil, errors.New("replica: a database, a name and an incarnation are required")
	}
	if cfg.Clock == nil {
		cfg.Clock = machine()
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Head == nil {
		cfg.Head = func() (uint64, [32]byte) { return 0, [32]byte{} }
	}
	r := &Replica{
		cfg: cfg, rules: sound(), clock: cfg.Clock,
		wakeRenewer: make(chan struct{}, 1), wakeFollower: make(chan struct{}, 1), wakeKeeper: make(chan struct{}, 1),
	}
	r.reason = "it was not asked for yet"
	r.peers, r.said = make(map[string]sighting), make(map[string]time.Duration)
	r.gate.current.Store(&generation{wake: r.wakeRenewer})
	return r, nil
}

// Begin makes the replica known, so that everybody who changes something waits for it. The caller loads its state after
// Begin returned, and only then calls Run: what it loaded before could lack a change that nobody waited with.
//
// The error is store.ErrLeaseLost when another process serves as the same or a later incarnation.
func (r *Replica) Begin(ctx context.Context) error {
	r.at(stepBegin)
	if err := r.insert(ctx); err != nil {
		return err
	}
	r.at(stepBegun)
	// A write, because what is loaded next must come from the database that takes writes; and it says which that is.
	got, err := r.cfg.Database.RenewLease(ctx, store.LeaseRenewal{Replica: r.cfg.Name, Incarnation: r.cfg.Incarnation})
	if err != nil {
		return fmt.Errorf("begin replica %q: %w", r.cfg.Name, err)
	}
	if _, err := r.identify(got, 0, read(r.clock)); err != nil {
		return err
	}
	if r.cfg.Moved != nil {
		r.cfg.Moved(got.System)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.begun = true
	r.see(got.Version)
	r.install(got.Version)
	return nil
}

func (r *Replica) row() store.Lease {
	return store.Lease{Replica: r.cfg.Name, Incarnation: r.cfg.Incarnation, Program: r.cfg.Program, Address: r.cfg.Address, MTLSURL: r.cfg.MTLSURL}
}

// see notes a version that the database has. r.mu is held.
func (r *Replica) see(version int64) {
	if version > r.newest {
		r.newest, r.newestAt = version, r.clock.Wall()
	}
}

func (r *Replica) at(s step) {
	if r.cfg.reached != nil {
		r.cfg.reached(s)
	}
}

// warn complains, at most every so often about the same.
func (r *Replica) warn(ctx context.Context, what string, args ...any) {
	now := r.clock.Boot()
	r.mu.Lock()
	at, ok := r.said[what]
	again := !ok || now-at >= sayEvery
	if again {
		r.said[what] = now
	}
	r.mu.Unlock()
	if again && ctx.Err() == nil {
		r.cfg.Logger.WarnContext(ctx, what, args...)
	}
}

func wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Status is what operators want to know of a replica.
type Status struct {
	Name        string
	Incarnation uint64
	// Applied is the version that decisions rest on, Acknowledged the one that others were told of, Newest the highest
	// that the database was seen to have, at NewestAt.
	Applied, Acknowledged, Newest int64
	NewestAt                      time.Time
	// Remaining is what is left of the lease: zero without one. Reason then says why.
	Remaining time.Duration
	Reason    string
	// RenewedAgo is how long ago the last renewal that was committed was sent; negative when there was none. RenewalTook is
	// how long it took.
	RenewedAgo, RenewalTook time.Duration
	Failures                uint64 // renewals that failed
	Lapses                  uint64 // times that a lease ended before the next began
	// DatabaseLead is by how much the database's clock was seen to be ahead of this machine's wall clock, beyond what the
	// time of the answer explains; Drift by how much the wall clock moved against the boot clock between two renewals.
	DatabaseLead, Drift time.Duration
	ClockAlarm          bool  // the wall clock was far off: nothing is issued until it has been right for a term
	Passages            int64 // decisions on their way out
	Durable             bool  // what is committed outlives the loss of the database's machine
	System              store.SystemID
	Err                 error // why the replica has ended for good
}

// Status returns how the replica stands. It does not block.
func (r *Replica) Status() Status {
	live := r.Live()
	now := r.clock.Boot()
	r.mu.Lock()
	defer r.mu.Unlock()
	s := Status{
		Name: r.cfg.Name, Incarnation: r.cfg.Incarnation,
		Applied: r.applied, Acknowledged: r.acked, Newest: r.newest, NewestAt: r.newestAt,
		RenewedAgo: -1, RenewalTook: r.took, Failures: r.failures, Lapses: r.lapses,
		DatabaseLead: r.lead, Drift: r.drift, ClockAlarm: r.held, Durable: r.durable, System: r.system, Err: r.failed,
	}
	if r.renewal.at > 0 {
		s.RenewedAgo = now - r.renewal.at
	}
	if l := r.gate.lease.Load(); l != nil && live == nil {
		s.Remaining = max(0, l.until-now)
	}
	var none *NoLeaseError
	if errors.As(live, &none) {
		s.Reason = none.Reason
	}
	for _, g := range append(r.older, r.gate.current.Load()) {
		s.Passages += g.in.Load()
	}
	return s
}

var _ issuer.Gate = (*Replica)(nil)
var _ Database = (*store.Store)(nil)

// gate is what every decision reads, without a lock.
type gate struct {
	current atomic.Pointer[generation]
	lease   atomic.Pointer[lease] // nil: none
}
