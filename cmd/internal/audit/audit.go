// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Package audit writes the journal of decisions: what was granted or refused, to whom and why, one JSON object a line,
// in files that are only appended to. It is for the program, which hands every decision here before the answer leaves.
//
// Every record is chained to the one before it, and the chain is signed once a second with a key that is then wiped: what
// was recorded cannot be changed afterwards without being seen. Records are written and synced in groups, so that the
// many requests that are answered at one time wait for the disk once.
//
// An event that could not be written is an error, and the caller refuses what it was about to grant. The package is given
// identifiers only: no tokens, codes or keys.
package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// The two outcomes of a decision.
const (
	Granted = "granted"
	Refused = "refused"
)

// The bounds of one line.
const (
	MaxString = 2048 // bytes of a string; what is longer is cut at a character
	MaxList   = 64   // entries of a list or of Detail
)

// Errors that callers branch on.
var (
	// ErrClosed says that the journal was closed.
	ErrClosed = errors.New("the journal is closed")
	// ErrFull says that the disk has no room for this class of event.
	ErrFull = errors.New("the journal is full")
	// ErrFailed says that the disk failed a write or a sync. It is final: the process must end.
	ErrFailed = errors.New("the journal's disk failed")
)

// DamageError says that a journal is not what was written: it was changed, or the disk lost what it had promised to keep.
type DamageError struct {
	File   string // the segment, with its folder; the folder where there is none
	Offset int64  // of the first byte that is wrong
	What   string
	Lost   uint64 // the record that the registrar knows and the journal does not reach; 0: something else is wrong
}

// Error names the place.
func (e *DamageError) Error() string {
	return fmt.Sprintf("the journal is damaged: %s, byte %d: %s", e.File, e.Offset, e.What)
}

// Class says what becomes of an event's record, and of the decision when there can be none.
type Class uint8

const (
	// Decision gives authority, or is an alarm: Record returns when the record is durable, as Config.Sync says, or with
	// an error, and then the caller refuses.
	Decision Class = iota
	// Takeaway takes authority away: like a Decision, and taken also while the journal is full. When it fails all the
	// same, the change holds, and its record waits in the outbox.
	Takeaway
	// Refusal refuses a client that authenticated itself. It is recorded singly, up to a rate for each client, and never
	// waited for.
	Refusal
	// Stranger refuses somebody who could not be told. Such refusals are counted by reason, network and second, with one
	// sample, and never waited for; they have room of their own.
	Stranger
)

// Event is one decision. Empty members are left out of its line. What exceeds MaxString or MaxList is cut, and the line
// says "truncated":true; bytes that are no UTF-8 become U+FFFD.
type Event struct {
	Class       Class
	Time        time.Time         // zero: now
	ID          string            // empty: made by the journal from its start and a sequence number
	Name        string            // what was decided: token.issue, client.add, cert.renew, …
	Outcome     string            // Granted or Refused
	Reason      string            // machine reason of a refusal, such as thumbprint_mismatch
	Client      string            // the client that the decision is about
	Actor       string            // the client that asked, where that is another one
	Thumbprint  string            // of the certificate presented, base64url
	Address     string            // remote address of the caller
	Correlation string            // X-Correlation-Id of the request
	TokenID     string            // jti
	Serial      string            // of the certificate issued or revoked, decimal
	Resource    string            // URI of the resource that the decision is about
	Scope       []string          // granted or asked for
	Audience    []string          // of the token
	Expires     time.Time         // of the token, code or certificate
	Detail      map[string]string // anything else; written in the order of its keys
	Personal    map[string]string // like Detail, what concerns a person: sealed with Address
	Count       int               // how many decisions alike this one stands for; 0: itself
	Version     int64             // of the database, which the decision changed; 0: it did not. By it, what a backup lacks is made again
}

// Log is an open journal. It is safe for concurrent use.
type Log struct {
	cfg      Config
	identity Identity
	firstKey string
	main     *stream
	refusals *stream
	sealer   *sealer
	counts   *refusals   // those that are not recorded singly
	counter  *time.Timer // has them recorded, once a second

	// Guarded by the main stream's lock.
	ratchet   *ratchet
	anchored  Head       // of the refusals, as the main stream knows it
	unsigned  bool       // there are records that no checkpoint covers, and signer runs
	proposed  []proposal // checkpoints that are not durable yet
	idle      bool       // what comes now is of heads that were seen, and does not move the head that is given out
	moved     bool       // something else came since the last checkpoint
	witnessed map[string]sighting

	signer        *time.Timer // signs what was recorded
	refusalSigner *time.Timer // has the main stream take in where the refusals stand
	refusalsMoved atomic.Bool // and refusalSigner runs
	counting      atomic.Bool // counter runs
	anchor        atomic.Pointer[Anchor]
	signed        atomic.Pointer[Head]
	fatal         sync.Once
	bodies        sync.Pool

	removing sync.Mutex // held while segments are removed
	saidKeys string     // up to which day the journal says that keys are deleted

	loss     *Loss       // that was accepted; guarded by starting
	starting sync.Mutex  // held while the journal is started
	starter  *time.Timer // tries again to start it; nil: it is started
	closed   bool
}

// Sync says when a record is durable for whoever waits for it.
type Sync uint8

const (
	Always   Sync = iota // before Record returns
	Interval             // up to Config.SyncInterval after Record returned: a crash of the machine loses that much
)

// Keys keeps the keys that personal members are sealed under. It must be safe for concurrent use.
type Keys interface {
	// Day returns the 32 bytes of a day such as 2026-11-23, made when there are none. It returns ErrErased for a day
	// whose key was deleted.
	Day(ctx context.Context, day string) ([]byte, error)
	// Subject returns the 32 bytes of a client, made when there are none.
	Subject(ctx context.Context, id string) ([]byte, error)
}

// ErrErased is what Keys returns for a key that was deleted on purpose.
var ErrErased = errors.New("the key was erased")

// Registrar keeps outside the journal what whoever holds the journal's disk must not rewrite.
type Registrar interface {
	// Last returns the newest incarnation of a replica, the zero value when there is none.
	Last(ctx context.Context, replica string) (Incarnation, error)
	// Begin registers an incarnation, durably before it returns.
	Begin(ctx context.Context, i Incarnation) error
}

// Incarnation is one run of a process over a journal.
type Incarnation struct {
	Identity
	Key      string // public key of the first checkpoint, base64url
	Previous Head   // where the incarnation before it ended
	Started  time.Time
	// Head is the newest of what SignedHead returned that the registrar was told, and HeadAt when; zero: none. Begin does
	// not look at them.
	Head   Head
	HeadAt time.Time
}

// Stats is what a journal did and how it stands. Counts begin with Open.
type Stats struct {
	Records, Bytes uint64 // written to both streams, frames included
	Groups, Syncs  uint64 // batches written, and how often the disk was waited for
	Waiting        int    // callers that wait for the disk now
	Dropped        uint64 // refusals for which there was no room
	Full           bool   // the disk has no room: only what takes authority away is recorded
	Room           int64  // bytes filled beforehand and not used yet
	Checkpoint     time.Time
}

// Config is what Open needs.
type Config struct {
	Dir          string // the folder of the segments, created (0700) when it is missing
	Installation string // whose journal it is
	Replica      string

	Sync         Sync
	SyncInterval time.Duration // zero: 100 ms
	SegmentBytes int64         // zero: 64 MiB; at least 64 KiB
	SegmentAge   time.Duration // zero: 24 h
	RefusalBytes int64         // quota of the refusals; zero: 64 MiB

	Keys      Keys      // nil: personal members are written plain
	Registrar Registrar // nil: incarnations are counted from the files
	// AcceptLoss is the record that a DamageError has said to be Lost: Open goes on without it and what was before it, in
	// a new incarnation whose first record says so. It accepts nothing else. 0: no loss.
	AcceptLoss uint64
	Reserve    *Reserve   // given up for a Takeaway on a full disk, which is full until it is back; nil: none
	InFlight   func() int // requests that may still record and wait, those that wait included; nil: unknown
	// Fatal is called once, when the journal must not be used any more, from a goroutine of its own: the process ends
	// and begins anew. nil: nobody is told.
	Fatal func(error)
	// Synced is told of each group of records that was made durable, from within: it must return at once. nil: nobody.
	Synced func(records int, d time.Duration)

	FS     FS // nil: the operating system's
	Logger *slog.Logger
	Now    func() time.Time // nil: time.Now

	headroom, chunk int64 // zero: the usual ones; tests make them small
}

// The bounds and defaults of Config.
const (
	minSegmentBytes     = 64 << 10
	defaultSegmentBytes = 64 << 20
	defaultSegmentAge   = 24 * time.Hour
	defaultRefusalBytes = 64 << 20
	defaultSyncInterval = 100 * time.Millisecond
	refusalSegments     = 8 // the quota's, so that one can go
	refusalsEvery       = time.Minute
	countEvery          = time.Second
	startTimeout        = 30 * time.Second // of what is asked of the registrar
)

// setDefaults fills in what was left out and refuses what cannot be.
func (c *Config) setDefaults() error {
	c.Installation, c.Replica = cmp.Or(c.Installation, "local"), cmp.Or(c.Replica, "local")
	c.SyncInterval, c.SegmentAge = cmp.Or(c.SyncInterval, defaultSyncInterval), cmp.Or(c.SegmentAge, defaultSegmentAge)
	c.SegmentBytes, c.RefusalBytes = cmp.Or(c.SegmentBytes, defaultSegmentBytes), cmp.Or(c.RefusalBytes, defaultRefusalBytes)
	if c.Dir == "" || c.SegmentBytes < minSegmentBytes || c.RefusalBytes < minSegmentBytes || c.SyncInterval < 0 || c.SegmentAge < 0 {
		return errors.New("open the journal: the configuration is not usable")
	}
	if c.FS == nil {
		c.FS = systemFS{}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return nil
}

// Open goes on with the journal in the folder, as a new incarnation with a segment of its own. It reads the newest segment
// of each stream, and the one with the newest record that the registrar knows, and drops what a crash has torn off. When
// more is wrong, or the registrar knows of records that are not there, it returns a DamageError and touches nothing.
//
// When the disk has no room for a segment, or fails to take one, Open succeeds all the same: the journal is full then,
// records nothing, and tries again each second.
func Open(ctx context.Context, cfg Config) (*Log, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	l := &Log{cfg: cfg, bodies: sync.Pool{New: func() any { return new([]byte) }}}
	l.main, l.refusals = newStream(), newStream()
	l.sealer, l.counts, l.counter = newSealer(cfg.Keys), newRefusals(), stopped(l.countRefusals)
	l.signer, l.refusalSigner = stopped(l.signDue), stopped(l.signDue)
	var err error
	if l.ratchet, err = newRatchet(); err != nil {
		return nil, err
	}
	l.firstKey = l.ratchet.public()
	l.starting.Lock()
	defer l.starting.Unlock()
	if err := l.start(ctx); err != nil {
		err = fmt.Errorf("open the journal: %w", err)
		if !mayPass(err) {
			return nil, err
		}
		l.absent(err)
		l.starter = time.AfterFunc(fullRetry, l.startAgain)
	}
	return l, nil
}

// stopped is a timer that runs when it is reset.
func stopped(f func()) *time.Timer {
	t := time.AfterFunc(time.Hour, f)
	t.Stop()
	return t
}

// mayPass reports whether what kept the journal from starting may be over a second later.
func mayPass(err error) bool {
	_, damaged := errors.AsType[*DamageError](err)
	return !damaged && !errors.Is(err, ErrFailed) && isInaccessible(err)
}

// absent notes why the journal could not be started.
func (l *Log) absent(err error) {
	l.cfg.Logger.Error("the journal cannot be written: only what takes authority away is served", "error", err)
	for _, s := range []*stream{l.main, l.refusals} {
		s.mu.Lock()
		s.absent = fmt.Errorf("%w: %w", ErrFull, err)
		s.mu.Unlock()
	}
}

// startAgain tries once more to start a journal whose disk could not be used.
func (l *Log) startAgain() {
	l.starting.Lock()
	defer l.starting.Unlock()
	if l.closed || l.starter == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	err := l.start(ctx)
	switch {
	case err == nil:
		l.starter = nil
		l.cfg.Logger.Info("the journal can be written again")
	case mayPass(err):
		l.starter.Reset(fullRetry)
	default:
		l.failedForGood(fmt.Errorf("open the journal: %w", err))
	}
}

// start recovers the streams and begins an incarnation.
func (l *Log) start(ctx context.Context) error {
	fs, dir := l.cfg.FS, l.cfg.Dir
	var last Incarnation
	if l.cfg.Registrar != nil {
		var err error
		if last, err = l.cfg.Registrar.Last(ctx, l.cfg.Replica); err != nil {
			return fmt.Errorf("read what is known of it: %w", err)
		}
	}
	main, err := inspect(fs, dir, streamMain)
	if err != nil {
		return err
	}
	refusals, err := inspect(fs, dir, streamRefusals)
	if err != nil {
		return err
	}
	l.identity = Identity{l.cfg.Installation, l.cfg.Replica, max(main.incarnation, refusals.incarnation, last.Incarnation) + 1}
	for _, t := range []tail{main, refusals} {
		if h := t.header.Identity; t.last != "" && (h.Installation != l.identity.Installation || h.Replica != l.identity.Replica) {
			return &DamageError{File: filepath.Join(dir, t.last), What: "it is the journal of " + h.String() + ", not of this service"}
		}
	}
	loss, err := l.hold(main, last)
	if err != nil {
		return err
	}
	// Only now is anything changed.
	err = fs.MkdirAll(dir)
	if err == nil {
		err = removeUnfinished(fs, dir)
	}
	for _, t := range []tail{main, refusals} {
		if err == nil {
			err = t.repair(fs, dir)
		}
	}
	if err == nil && loss == nil {
		err = l.register(ctx, main)
	}
	if err != nil {
		return err
	}
	return l.launch(ctx, main, refusals, loss)
}

// launch has the streams go on from where they were found.
func (l *Log) launch(ctx context.Context, main, refusals tail, loss *Loss) error {
	s := l.main
	s.launch(l.mainConfig(main.recovered, loss), main.head)
	s.mu.Lock()
	s.commit(true) // the segment is made before anybody asks for it
	failed := s.failed
	if failed == nil && loss != nil && s.out == nil {
		failed, s.absent = s.noRoom, ErrFull
	}
	s.mu.Unlock()
	if failed == nil && loss != nil {
		// Once it is registered nobody asks for what is lost any more, so the journal has said it before.
		if failed = l.register(ctx, main); failed != nil {
			s.abandon(failed)
			_ = s.stop() // a stream that failed is only closed
		}
	}
	if failed == nil {
		l.loss = loss
		l.refusals.launch(l.refusalConfig(refusals.recovered), refusals.head)
	}
	return failed
}

// hold holds the journal to what the registrar knows of it. Where it ends too early and Config.AcceptLoss says that it may,
// it returns the loss.
func (l *Log) hold(main tail, last Incarnation) (*Loss, error) {
	known, at := last.Previous, last.Started
	if last.Head.Seq > 0 {
		known, at = last.Head, last.HeadAt
	}
	damage := DamageError{File: filepath.Join(l.cfg.Dir, main.last), Offset: main.end}
	when := at.UTC().Format(time.RFC3339)
	switch {
	case main.head.Seq < known.Seq && l.cfg.AcceptLoss == known.Seq:
		loss := &Loss{Incarnation: last.Incarnation, Known: known, KnownAt: at.UTC().Format(timeFormat), Found: main.head}
		l.cfg.Logger.Error("the journal goes on without records that it had, as was asked for", "known_record", known.Seq, "known_at", when,
			"ends_at", main.head.Seq)
		return loss, nil
	case main.head.Seq < known.Seq:
		damage.Lost = known.Seq
		damage.What = fmt.Sprintf("the journal ends at record %d, but it had %d when the database saw it last, on %s: its end was cut off, or an older copy put back",
			main.head.Seq, known.Seq, when)
		if main.last == "" {
			damage.What = fmt.Sprintf("the journal is not here, but it had %d records when the database saw it last, on %s: it was deleted", known.Seq, when)
		}
		return nil, &damage
	case main.incarnation < last.Incarnation && main.head != last.Previous: // it began and died before its first record
		damage.What = fmt.Sprintf("the journal does not end in record %d as the database knows it", last.Previous.Seq)
		return nil, &damage
	case main.incarnation == last.Incarnation && main.first &&
		(main.header.Previous != last.Previous || main.header.Key != last.Key):
		damage.Offset, damage.What = 0, "the journal is not the one that the database knows"
		return nil, &damage
	}
	if last.Head.Seq > 0 {
		if err := main.holds(l.cfg.FS, l.cfg.Dir, last); err != nil {
			return nil, err
		}
	}
	if main.incarnation < last.Incarnation { // or somebody cut off all that it wrote, which only a known head shows
		l.cfg.Logger.Warn("the last run of the service left no record in the journal: it was ended before its first, or all of them were cut off",
			"incarnation", last.Incarnation, "ends_at", main.head.Seq, "verify", "certbound audit verify, with an operator's heads.json from another machine")
	}
	if l.cfg.AcceptLoss > 0 {
		l.cfg.Logger.Warn("no such loss of records was found that was to be accepted", "record", l.cfg.AcceptLoss, "ends_at", main.head.Seq)
	}
	return nil, nil
}

// register registers the new incarnation.
func (l *Log) register(ctx context.Context, main tail) error {
	if l.cfg.Registrar == nil {
		return nil
	}
	err := l.cfg.Registrar.Begin(ctx, Incarnation{Identity: l.identity, Key: l.firstKey, Previous: main.head, Started: l.cfg.Now()})
	if err != nil {
		return fmt.Errorf("register it: %w", err)
	}
	return nil
}

// mainConfig is how decisions are recorded.
func (l *Log) mainConfig(recovered *Recovered, loss *Loss) streamConfig {
	return streamConfig{
		fs: l.cfg.FS, dir: l.cfg.Dir, name: streamMain, identity: l.identity,
		header: func() journalMember { return journalMember{Key: l.ratchet.public(), Recovered: recovered, Loss: loss} },
		waits:  l.cfg.Sync == Always, flush: groupFlush, interval: l.cfg.SyncInterval,
		segmentBytes: l.cfg.SegmentBytes, segmentAge: l.cfg.SegmentAge, headroom: cmp.Or(l.cfg.headroom, headroom), chunk: cmp.Or(l.cfg.chunk, fillChunk),
		inFlight: l.cfg.InFlight, touched: l.touched, durable: l.durable, closing: l.checkpoint,
		noRoom: func() { go l.cfg.Reserve.NoteFull() },
		synced: l.cfg.Synced, fatal: l.failedForGood, logger: l.cfg.Logger, now: l.cfg.Now,
	}
}

// refusalConfig is how refusals of strangers are: nobody waits for them, and they have their own room.
func (l *Log) refusalConfig(recovered *Recovered) streamConfig {
	return streamConfig{
		fs: l.cfg.FS, dir: l.cfg.Dir, name: streamRefusals, identity: l.identity,
		header: func() journalMember { return journalMember{Recovered: recovered} },
		flush:  lazyFlush, interval: time.Second,
		segmentBytes: max(l.cfg.RefusalBytes/refusalSegments, minSegmentBytes/2), chunk: min(refusalFill, l.cfg.RefusalBytes/refusalSegments),
		durable: func(uint64) {
			if l.refusalsMoved.CompareAndSwap(false, true) {
				l.refusalSigner.Reset(refusalsEvery)
			}
		},
		rotated: l.holdQuota,
		fatal:   l.failedForGood, logger: l.cfg.Logger, now: l.cfg.Now,
	}
}

// failedForGood tells whoever can end the process.
func (l *Log) failedForGood(err error) {
	l.fatal.Do(func() {
		l.cfg.Logger.Error("the journal cannot be written any more", "error", err)
		if l.cfg.Fatal != nil {
			l.cfg.Fatal(err)
		}
	})
}

// Record takes an event in and, when its class is waited for, returns when its record is durable as Config.Sync says. It
// ignores ctx's end: a decision that was made is recorded even when its caller has left. After an error the caller must
// refuse what it was about to give: ErrFull, ErrFailed or ErrClosed. What failed with ErrFailed may be found in the journal
// all the same.
func (l *Log) Record(ctx context.Context, e Event) error {
	if e.Time.IsZero() {
		e.Time = l.cfg.Now()
	}
	if e.Class >= Refusal && !l.counts.single(&e) {
		if l.counting.CompareAndSwap(false, true) {
			l.counter.Reset(countEvery)
		}
		return nil
	}
	if e.Class != Takeaway {
		err := l.cfg.Reserve.Full()
		if err != nil && e.Class == Decision && e.Outcome != Refused { // an alarm gives nothing
			return fmt.Errorf("record %s: %w", e.Name, err)
		}
		if err != nil && e.Class != Decision { // what was made room for is not for refusals
			l.main.leaveOut(1)
			return nil
		}
	}
	err := l.put(ctx, l.main, &e, e.Class)
	switch {
	case err == nil, e.Class >= Refusal && errors.Is(err, ErrFull): // counted
		return nil
	default:
		return fmt.Errorf("record %s: %w", e.Name, err)
	}
}

// put writes an event's line and hands it to a stream.
func (l *Log) put(ctx context.Context, s *stream, e *Event, class Class) error {
	buf := l.bodies.Get().(*[]byte)
	defer l.bodies.Put(buf)
	w := encoder{b: (*buf)[:0]}
	w.event(e)
	w.end()
	var err error
	if w.b, err = l.sealer.append(ctx, w.b, e); err != nil {
		return err
	}
	*buf = w.b
	return s.put(w.b, class)
}

// countRefusals records the counts of what was not recorded singly.
func (l *Log) countRefusals() {
	l.counting.Store(false)
	full := l.cfg.Reserve.Full() != nil
	for _, e := range l.counts.flush(l.cfg.Now()) {
		if full {
			l.refusals.leaveOut(uint64(max(e.Count, 1)))
			continue
		}
		// What there is no room for is counted, and when the stream failed the process ends.
		_ = l.put(context.Background(), l.refusals, &e, Stranger)
	}
}

// Ready returns nil when an event of the class can be recorded, and otherwise why not. It is asked before what cannot be
// taken back is done; Record may fail all the same.
func (l *Log) Ready(c Class) error {
	if c != Takeaway {
		if err := l.cfg.Reserve.Full(); err != nil {
			return err
		}
	}
	s := l.main
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.ended(); err != nil {
		return err
	}
	if c < Refusal && !s.retryAt.IsZero() && (s.out == nil || s.roomFor(c) < s.needed()+typicalLine) {
		return fmt.Errorf("%w: %w", ErrFull, s.noRoom)
	}
	return nil
}

// typicalLine is more than the line of most events.
const typicalLine = 4 << 10

// Err returns why decisions cannot be recorded, or nil: for readiness. A closed journal is ErrClosed.
func (l *Log) Err() error { return l.Ready(Decision) }

// MakeRoom makes room for a Takeaway in a full journal. It returns nil when there is room, and ErrFull when none could be
// made.
func (l *Log) MakeRoom() error {
	released := l.cfg.Reserve.Release()
	l.starting.Lock()
	absent := l.starter != nil
	l.starting.Unlock()
	if absent {
		l.startAgain()
	}
	l.main.tryAgain()
	return cmp.Or(released, l.Ready(Takeaway))
}

// Head is where the main stream stands, as far as it is durable.
func (l *Log) Head() Head { return l.main.position() }

// Checkpoint returns the newest durable checkpoint, and false before there is one.
func (l *Log) Checkpoint() (Anchor, bool) {
	if a := l.anchor.Load(); a != nil {
		return *a, true
	}
	return Anchor{}, false
}

// Incarnation is the number of this run, 0 before the journal could be started.
func (l *Log) Incarnation() uint64 {
	l.starting.Lock()
	defer l.starting.Unlock()
	if l.starter != nil {
		return 0
	}
	return l.identity.Incarnation
}

// Loss is what this run went on without because Config.AcceptLoss said so, or nil.
func (l *Log) Loss() *Loss {
	l.starting.Lock()
	defer l.starting.Unlock()
	return l.loss
}

// SignedHead is the record that the newest durable checkpoint covers, and its chain; zero before there is one. Checkpoints of
// nothing but other journals' heads do not count, or those who watch each other would never be done. It costs next to
// nothing.
func (l *Log) SignedHead() (seq uint64, chain [32]byte) {
	if h := l.signed.Load(); h != nil {
		return h.Seq, h.Chain
	}
	return 0, chain
}

// Stats returns how the journal stands.
func (l *Log) Stats() Stats {
	var sum Stats
	for _, s := range []*stream{l.refusals, l.main} {
		s.mu.Lock()
		sum.Records += s.stats.Records
		sum.Bytes += s.stats.Bytes
		sum.Groups += s.stats.Groups
		sum.Syncs += s.stats.Syncs
		sum.Waiting += s.stats.Waiting
		sum.Dropped += s.stats.Dropped
		if s == l.main {
			sum.Full, sum.Room = s.absent != nil || !s.retryAt.IsZero(), max(0, s.roomFor(Decision))
		}
		s.mu.Unlock()
	}
	sum.Full = sum.Full || l.cfg.Reserve.Full() != nil
	if a := l.anchor.Load(); a != nil {
		sum.Checkpoint = a.Checkpoint.Time
	}
	return sum
}

// Close records that the journal ends, signs it, and waits until all of it is durable; Record fails from then on. Closing
// twice is no error.
func (l *Log) Close() error {
	l.removing.Lock()
	defer l.removing.Unlock()
	l.starting.Lock()
	l.closed = true
	if l.starter != nil {
		l.starter.Stop()
	}
	l.starting.Unlock()
	l.counter.Stop()
	l.refusalSigner.Stop()
	l.signer.Stop()
	if failed := l.main.failure(); failed != nil { // nothing is written any more
		l.refusals.abandon(failed)
	}
	l.countRefusals()
	err := l.refusals.stop()
	return errors.Join(err, l.main.stop())
}
