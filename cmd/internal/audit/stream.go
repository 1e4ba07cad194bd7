// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// When what is gathered goes to the disk.
const (
	groupFlush      = 2 * time.Millisecond   // somebody waits for it
	lazyFlush       = 100 * time.Millisecond // nobody does
	fullRetry       = time.Second            // a full disk is asked again
	checkpointEvery = time.Second
)

// The sizes of what is written beforehand.
const (
	headroom    = 1 << 20   // kept for what takes authority away
	fillChunk   = 1 << 20   // newlines written at a time
	frameRoom   = 512       // for a frame, and more
	notesRoom   = 4 << 10   // for the journal's own records at the end of a segment
	flushBytes  = 32 << 10  // gathered in interval mode before the 2 ms are over
	refusalFill = 256 << 10 // newlines written at a time to the stream of refusals
)

// streamConfig is what a stream is made of.
type streamConfig struct {
	fs       FS
	dir      string
	name     string // streamMain or streamRefusals
	identity Identity
	header   func() journalMember // what the stream does not know of a segment's first record

	waits        bool          // a group is synced before its callers go on
	flush        time.Duration // how long lines wait for their write
	interval     time.Duration // how long what was written waits for its sync; unused when waits
	segmentBytes int64
	segmentAge   time.Duration // zero: any
	headroom     int64
	chunk        int64

	inFlight func() int               // nil: unknown
	touched  func()                   // a record came; the stream is locked
	durable  func(seq uint64)         // records up to seq are durable; the stream is locked
	closing  func(*stream)            // a segment ends: the last records go in; the stream is locked
	noRoom   func()                   // the disk is full; the stream is locked
	rotated  func()                   // a segment was ended; called without the lock, from a goroutine of its own
	synced   func(int, time.Duration) // a group was made durable
	fatal    func(error)              // the stream failed for good; called without the lock
	logger   *slog.Logger
	now      func() time.Time
}

// group is the callers that wait for one batch.
type group struct {
	done   chan struct{} // nil: nobody waits
	err    error         // set before done is closed
	n      int
	newest uint64 // record of whoever came last
}

// stream is one chain of records and the segments they go to. Records are chained as they come, into a batch that is
// gathered; whoever commits takes the batch and writes it, while the next one is gathered.
type stream struct {
	cfg streamConfig

	mu      sync.Mutex
	changed sync.Cond // a commit has ended
	timer   *time.Timer
	wakeAt  time.Time // when the timer fires; zero: it does not

	head    Head   // of the last record taken in
	last    Head   // of the last record durable
	written uint64 // of the last record written
	started bool   // this incarnation's first record was taken in
	base    Head   // before the batch that is gathered

	batch   []byte // gathered
	spare   []byte // the buffer of the batch before
	records int    // in batch
	group   *group // who waits for batch
	flushAt time.Time
	flushIs time.Duration // how far away flushAt was when it was set
	syncAt  time.Time     // zero: all that was written is durable

	committing bool

	out          *output // nil: no segment could be made yet
	opened       time.Time
	next         *output // made ready to follow
	preparing    bool
	prepareAfter time.Time // it failed: not before
	wanted       int64     // room that a record did not find
	retryAt      time.Time // zero: the disk has room
	noRoom       error     // why it has not
	lost         uint64    // refusals left out since it has not

	absent error // why it is not launched yet
	failed error // for good
	closed bool
	stats  Stats
}

// newStream returns a stream that is to be launched.
func newStream() *stream {
	s := &stream{group: &group{}, absent: ErrFull}
	s.changed.L = &s.mu
	s.timer = stopped(s.tick)
	return s
}

// launch has the stream go on from where it was found.
func (s *stream) launch(cfg streamConfig, head Head) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cfg, s.absent = cfg, nil
	s.head, s.last, s.base, s.written = head, head, head, head.Seq
}

// ended returns why nothing can be recorded any more. The stream is locked.
func (s *stream) ended() error {
	if s.failed != nil {
		return s.failed
	}
	if s.closed {
		return ErrClosed
	}
	return s.absent
}

// put takes a record in, whose line without its sequence number and chain is body, and waits as its class says.
func (s *stream) put(body []byte, class Class) error {
	s.mu.Lock()
	if err := s.admit(len(body), class); err != nil {
		s.mu.Unlock()
		return err
	}
	s.append(body)
	if class >= Refusal || !s.cfg.waits {
		s.gathered()
		s.mu.Unlock()
		return nil
	}
	g := s.group
	if g.done == nil {
		g.done = make(chan struct{})
		s.flushIn(groupFlush)
	}
	g.n++
	s.stats.Waiting++
	mine := s.head.Seq
	g.newest = mine
	lead := s.leads(mine)
	s.mu.Unlock()
	if lead {
		// Whoever else was woken together with us comes first, and the newest of us leads: else groups would be of one.
		runtime.Gosched()
		s.mu.Lock()
		if s.leads(mine) {
			s.commit(true)
		}
		s.mu.Unlock()
	}
	<-g.done
	return g.err
}

// leads reports whether the caller whose record is mine is to write the batch: it is the newest, nobody else is at it, and
// nobody is on the way who could join.
func (s *stream) leads(mine uint64) bool {
	return !s.committing && s.group.n > 0 && s.group.newest == mine && (s.cfg.inFlight == nil || s.group.n >= s.cfg.inFlight())
}

// gathered sees to it that a record is written that nobody waits for.
func (s *stream) gathered() {
	if s.cfg.waits {
		s.flushIn(lazyFlush)
		return
	}
	if len(s.batch) >= flushBytes {
		s.flushIn(0)
		return
	}
	s.flushIn(s.cfg.flush)
}

// flushIn sees to it that the batch is written within d.
func (s *stream) flushIn(d time.Duration) {
	if !s.flushAt.IsZero() && d >= s.flushIs { // it is sooner already: no need to ask for the time, for every record
		return
	}
	at := time.Now().Add(d)
	if s.flushAt.IsZero() || at.Before(s.flushAt) {
		s.flushAt, s.flushIs = at, d
		s.armAt(at)
	}
}

// arm has the timer fire within d.
func (s *stream) arm(d time.Duration) { s.armAt(time.Now().Add(d)) }

func (s *stream) armAt(at time.Time) {
	if s.wakeAt.IsZero() || at.Before(s.wakeAt) {
		s.wakeAt = at
		s.timer.Reset(time.Until(at))
	}
}

// admit waits until there is room for a record, or says why there is none.
func (s *stream) admit(size int, class Class) error {
	for {
		if err := s.ended(); err != nil {
			return err
		}
		if s.fits(size, class) {
			return nil
		}
		s.wanted = max(s.wanted, int64(size)+s.needed())
		switch full := !s.retryAt.IsZero(); {
		case class >= Refusal:
			s.lost++
			s.stats.Dropped++
			s.flushIn(0)
			return ErrFull
		case full:
			return fmt.Errorf("%w: %w", ErrFull, s.noRoom)
		case s.committing:
			s.changed.Wait()
		default:
			s.commit(s.cfg.waits) // it makes room, or finds that there is none
		}
	}
}

// reaches has the disk take what was recorded up to a record, waits for it, and reports whether it is durable. The stream is
// locked.
func (s *stream) reaches(seq uint64) bool {
	for s.last.Seq < seq {
		switch {
		case s.ended() != nil || !s.retryAt.IsZero():
			return false
		case s.committing:
			s.changed.Wait()
		default:
			s.commit(true)
		}
	}
	return true
}

// leaveOut counts refusals that are not recorded for want of room.
func (s *stream) leaveOut(n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost += n
	s.stats.Dropped += n
}

// fits reports whether a record can be taken in, so that the batch surely goes into what was filled beforehand.
func (s *stream) fits(size int, class Class) bool {
	if len(s.batch) > 0 && len(s.batch)+size > MaxBatch {
		return false
	}
	if s.out == nil { // it is made by the next commit, as large as it must be
		return s.cfg.headroom == 0 && s.retryAt.IsZero()
	}
	return int64(size)+s.needed() <= s.roomFor(class)
}

// needed is the room that the batch takes with what may have to follow it.
func (s *stream) needed() int64 { return int64(len(s.batch)) + frameRoom + notesRoom + 256 }

// roomFor is the room that records of a class may use.
func (s *stream) roomFor(class Class) int64 {
	if s.out == nil {
		return 0
	}
	if class == Takeaway {
		return s.out.room()
	}
	return s.out.room() - s.cfg.headroom
}

// low is the room below which more is made: some records can always be taken in while that is on its way.
func (s *stream) low() int64 { return s.cfg.headroom + max(s.cfg.chunk/16, s.wanted) }

// roomForNotes reports whether there is room for the journal's own records.
func (s *stream) roomForNotes() bool {
	return s.out != nil && s.needed()+notesRoom <= s.out.room()-s.cfg.headroom/2
}

// append chains a record to the stream.
func (s *stream) append(body []byte) {
	if !s.started {
		s.started = true
		s.begin(eventStart)
	}
	start := len(s.batch)
	s.head.Seq++
	b := append(s.batch, recordStart...)
	b = strconv.AppendUint(b, s.head.Seq, 10)
	b = append(b, body...)
	s.batch, s.head.Chain = appendChain(b, start, s.head.Chain)
	s.records++
	if s.cfg.touched != nil {
		s.cfg.touched()
	}
}

// note puts a record of the journal itself in: members are what it says, as JSON without braces, or nothing.
func (s *stream) note(event string, members []byte) {
	w := encoder{}
	w.event(&Event{Name: event, Time: s.cfg.now()})
	if len(members) > 0 {
		w.b = append(append(w.b, ','), members...)
	}
	s.append(w.b)
}

// begin puts the first record of a segment in.
func (s *stream) begin(event string) {
	member := s.cfg.header()
	member.Identity, member.Previous = s.cfg.identity, s.head
	if event == eventStart {
		s.head.Chain = s.cfg.identity.genesis(s.cfg.name, s.head)
	} else {
		member.Recovered, member.Loss = nil, nil
	}
	text, err := json.Marshal(struct {
		Journal journalMember `json:"journal"`
	}{member})
	if err != nil { // strings and numbers: it cannot be
		s.fail(err)
		return
	}
	s.note(event, text[1:len(text)-1])
}

// tick runs when the timer fires.
func (s *stream) tick() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wakeAt = time.Time{}
	if s.committing || s.ended() != nil {
		return // whoever commits sets the timer again
	}
	now := time.Now()
	isDue := func(t time.Time) bool { return !t.IsZero() && !now.Before(t) }
	flush, syncs := isDue(s.flushAt), isDue(s.syncAt) || isDue(s.retryAt)
	if flush || syncs || s.leads(s.group.newest) {
		s.commit(s.cfg.waits || syncs)
		return
	}
	s.rearm()
}

// rearm sets the timer for whatever comes next.
func (s *stream) rearm() {
	if s.ended() != nil {
		return
	}
	for _, at := range []time.Time{s.flushAt, s.syncAt, s.retryAt} {
		if !at.IsZero() {
			s.armAt(at)
		}
	}
	if s.leads(s.group.newest) {
		s.arm(0)
	}
}

// batchWrite is one batch on its way to the disk.
type batchWrite struct {
	text    []byte // records and frame
	off     int64
	records int
	upTo    Head
	base    Head // before its first record
	group   *group
	sync    bool

	out    *output // nil: the first segment is made of it
	fillTo int64   // newlines are written up to here as well
	ended  *output // the segment that ends with this batch

	filled  int64 // how far they came
	noRoom  error // why no further
	took    time.Duration
	created *output
}

// commit takes what is gathered to the disk. The stream is locked, and unlocked while the disk works.
func (s *stream) commit(sync bool) {
	s.committing = true
	w := s.take(sync)
	s.mu.Unlock()
	err := w.run(s)
	s.mu.Lock()
	s.settle(&w, err)
	if w.ended != nil && err == nil {
		s.mu.Unlock()
		// Nothing goes into the new segment before its name and the end of the old one are durable.
		err = errors.Join(w.ended.trim(), s.cfg.fs.SyncDir(s.cfg.dir))
		s.mu.Lock()
		if err != nil {
			s.fail(err)
		} else if s.cfg.rotated != nil {
			go s.cfg.rotated()
		}
	}
	s.committing = false
	s.changed.Broadcast()
	s.rearm()
}

// take ends the batch that is gathered and begins the next one.
func (s *stream) take(sync bool) batchWrite {
	w := batchWrite{sync: sync, out: s.out}
	if s.rotationDue() {
		if s.next == nil {
			s.prepare()
		} else {
			w.ended = s.rotate()
		}
	}
	if s.records == 0 && s.out == nil && !s.started {
		s.started = true
		s.begin(eventStart)
	}
	if s.lost > 0 && s.retryAt.IsZero() && w.ended == nil && s.roomForNotes() {
		s.note(eventGap, fmt.Appendf(nil, `"gap":{"refusals":%d}`, s.lost))
		s.lost = 0
	}
	if s.records > 0 {
		text := s.batch
		f := Frame{Seq: s.head.Seq, Records: s.records, Bytes: len(text), Synced: s.last.Seq, Chain: s.head.Chain}
		w.text, w.records = appendFrame(text, &f, text), s.records
		w.base = s.base
	}
	w.upTo, w.group, s.base = s.head, s.group, s.head
	s.batch, s.spare = s.spare[:0], nil
	s.records, s.group, s.flushAt = 0, &group{}, time.Time{}
	if o := w.out; o != nil {
		w.off = o.end
		o.end += int64(len(w.text))
		// What came while the first segment was made may reach beyond what is filled.
		w.filled = max(o.filled, o.end)
		w.fillTo = w.filled
		if retry := s.retryAt.IsZero() || !time.Now().Before(s.retryAt); w.ended == nil && retry && !s.closed {
			if o.room() < s.low() {
				w.fillTo = o.end + s.cfg.headroom + s.cfg.chunk + s.wanted
				w.sync = true // it is room only when it is durable
			}
		}
	}
	if w.ended != nil {
		w.sync = true
		s.out, s.opened, s.next = s.next, s.cfg.now(), nil
		s.begin(eventSegment)
		s.flushIn(s.cfg.flush)
	}
	return w
}

// rotationDue reports whether the segment is large or old enough to end.
func (s *stream) rotationDue() bool {
	if s.out == nil || s.closed {
		return false
	}
	now := s.cfg.now()
	age := now.Sub(s.opened)
	if age < 0 { // the clock was set back: the age counts from now
		s.opened = now
	}
	full := !s.retryAt.IsZero() && s.next != nil
	return s.out.end+int64(len(s.batch)) >= s.cfg.segmentBytes || s.cfg.segmentAge > 0 && age >= s.cfg.segmentAge || full
}

// prepare makes the next segment's file ready, in the background.
func (s *stream) prepare() {
	if s.preparing || time.Now().Before(s.prepareAfter) {
		return
	}
	s.preparing = true
	size := s.cfg.headroom + s.cfg.chunk
	go func() {
		o, err := createFilled(s.cfg.fs, s.cfg.dir, nextName(s.cfg.name)+suffixNew, nil, size)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.preparing = false
		s.changed.Broadcast()
		switch {
		case err == nil && s.ended() == nil:
			s.next = o
		case err == nil:
			s.discard(o)
		case isFull(err):
			s.prepareAfter = time.Now().Add(fullRetry) // until then the segment that there is goes on
			s.cfg.logger.Warn("the journal goes on in its segment: there is no room for another", "error", err)
		default:
			s.fail(err)
		}
	}()
}

// discard removes a file that was made ready and is not needed.
func (s *stream) discard(o *output) {
	if err := errors.Join(o.file.Close(), s.cfg.fs.Remove(filepath.Join(s.cfg.dir, o.name))); err != nil {
		s.cfg.logger.Warn("a file of the journal could not be removed", "file", o.name, "error", err)
	}
}

// rotate puts the last records into the segment and gives the next one its name. It returns the one that ends, or nil
// when the disk has no room for the name.
func (s *stream) rotate() *output {
	if s.cfg.closing != nil {
		s.cfg.closing(s)
	}
	name := segmentName(s.cfg.name, s.cfg.identity.Incarnation, s.head.Seq+1)
	err := s.cfg.fs.Rename(filepath.Join(s.cfg.dir, s.next.name), filepath.Join(s.cfg.dir, name))
	if err != nil && !isFull(err) {
		s.fail(err)
	}
	if err != nil {
		return nil
	}
	s.next.name = name
	return s.out
}

// run does what a batch needs of the disk.
func (w *batchWrite) run(s *stream) error {
	if w.out == nil {
		return w.create(s)
	}
	if len(w.text) > 0 {
		if _, err := w.out.file.WriteAt(w.text, w.off); err != nil {
			return fmt.Errorf("write to %s: %w", w.out.name, err)
		}
	}
	if w.fillTo > w.filled {
		filled, err := fill(w.out.file, w.filled, w.fillTo)
		if err != nil && !isFull(err) {
			return err
		}
		w.filled, w.noRoom = filled, err
	}
	if !w.sync {
		return nil
	}
	begun := time.Now()
	if err := w.out.file.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", w.out.name, err)
	}
	w.took = time.Since(begun)
	return nil
}

// create makes the first segment of the incarnation, with the batch in it. It has its name only when all that is durable.
func (w *batchWrite) create(s *stream) error {
	w.sync = true
	dir, name := s.cfg.dir, segmentName(s.cfg.name, s.cfg.identity.Incarnation, w.base.Seq+1)
	begun := time.Now()
	// Little is written beforehand, so that a start is quick: the next batch brings more.
	o, err := createFilled(s.cfg.fs, dir, name+suffixNew, w.text, int64(len(w.text))+s.cfg.headroom+s.cfg.chunk/8)
	if err != nil {
		return err
	}
	err = s.cfg.fs.Rename(filepath.Join(dir, name+suffixNew), filepath.Join(dir, name))
	if err != nil {
		return errors.Join(fmt.Errorf("name a segment: %w", err), o.file.Close(), s.cfg.fs.Remove(filepath.Join(dir, name+suffixNew)))
	}
	if err := s.cfg.fs.SyncDir(dir); err != nil {
		// Whether the name lasts is unknown: as final as a failed sync of records.
		return &finalError{errors.Join(fmt.Errorf("name a segment: %w", err), o.file.Close())}
	}
	o.name, w.created, w.took = name, o, time.Since(begun)
	return nil
}

// finalError is a failure that must not be taken for a full disk.
type finalError struct{ err error }

// Error says what failed.
func (e *finalError) Error() string { return e.err.Error() }

// Unwrap returns what failed.
func (e *finalError) Unwrap() error { return e.err }

// settle tells everybody what became of a batch.
func (s *stream) settle(w *batchWrite, err error) {
	s.spare = w.text[:0]
	if cap(s.spare) > 2*MaxBatch {
		s.spare = nil
	}
	if err == nil {
		s.settled(w)
	} else if final := (*finalError)(nil); w.out == nil && !errors.As(err, &final) && isInaccessible(err) {
		s.takeBack(w, err)
	} else {
		s.fail(err)
	}
	g := w.group
	s.stats.Waiting -= g.n
	if s.failed != nil {
		g.err = s.failed
	}
	if g.done != nil {
		close(g.done)
	}
}

// settled notes a batch that was written.
func (s *stream) settled(w *batchWrite) {
	if w.created != nil {
		s.out, s.opened = w.created, s.cfg.now()
	} else if w.ended == nil && w.sync && w.filled > w.out.filled {
		w.out.filled, s.wanted = w.filled, 0
	}
	s.written = w.upTo.Seq
	s.stats.Records += uint64(w.records)
	s.stats.Bytes += uint64(len(w.text))
	if w.records > 0 {
		s.stats.Groups++
	}
	if !w.sync {
		if s.syncAt.IsZero() {
			s.syncAt = time.Now().Add(s.cfg.interval)
		}
		return
	}
	s.stats.Syncs++
	records := int(w.upTo.Seq - s.last.Seq)
	s.last, s.syncAt = w.upTo, time.Time{}
	if s.cfg.durable != nil {
		s.cfg.durable(s.last.Seq)
	}
	if s.cfg.synced != nil && records > 0 {
		s.cfg.synced(records, w.took)
	}
	if w.noRoom != nil {
		s.full(w.noRoom)
	} else if w.created != nil || w.fillTo > 0 && w.out == s.out && s.out.room() >= s.low() {
		s.roomy()
	}
}

// full notes that the disk has no room.
func (s *stream) full(err error) {
	if s.retryAt.IsZero() {
		s.cfg.logger.Error("the disk of the journal is full: only what takes authority away is recorded, once its room is used up",
			"stream", s.cfg.name, "error", err)
	}
	s.retryAt, s.noRoom = time.Now().Add(fullRetry), err
	if s.cfg.noRoom != nil {
		s.cfg.noRoom()
	}
}

// tryAgain asks a full disk at once whether it has room.
func (s *stream) tryAgain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.committing {
		s.changed.Wait()
	}
	if s.ended() == nil && !s.retryAt.IsZero() {
		s.retryAt = time.Now()
		s.commit(true)
	}
}

// roomy notes that the disk has room.
func (s *stream) roomy() {
	if s.retryAt.IsZero() {
		return
	}
	s.cfg.logger.Info("the disk of the journal has room again", "stream", s.cfg.name, "left_out", s.lost)
	s.retryAt, s.noRoom = time.Time{}, nil
	if s.lost > 0 {
		s.flushIn(lazyFlush) // which says so
	}
}

// takeBack forgets a batch for which no segment could be made, and all that came after it.
func (s *stream) takeBack(w *batchWrite, err error) {
	s.lost += uint64(w.records+s.records) - 1 // but for the first, which is the journal's own
	s.stats.Dropped += uint64(w.records+s.records) - 1
	s.head, s.base, s.started = w.base, w.base, false
	s.batch, s.records, s.flushAt = s.batch[:0], 0, time.Time{}
	w.group.err = ErrFull
	s.full(err)
}

// fail ends the stream for good.
func (s *stream) fail(err error) {
	if s.failed != nil {
		return
	}
	s.failed = fmt.Errorf("%w: %w", ErrFailed, err)
	s.batch, s.records = s.batch[:0], 0
	if g := s.group; g.done != nil {
		g.err = s.failed
		s.stats.Waiting -= g.n
		close(g.done)
	}
	s.group = &group{}
	s.timer.Stop()
	s.changed.Broadcast()
	go s.cfg.fatal(s.failed)
}

// stop ends the stream with a last record. Nobody is at the stream any more when it returns.
func (s *stream) stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	for s.committing || s.preparing {
		s.changed.Wait()
	}
	s.timer.Stop()
	if s.next != nil {
		s.discard(s.next)
		s.next = nil
	}
	if s.absent != nil || s.out == nil && s.records == 0 {
		return nil
	}
	if s.failed == nil {
		if s.lost > 0 {
			s.note(eventGap, fmt.Appendf(nil, `"gap":{"refusals":%d}`, s.lost))
			s.lost = 0
		}
		s.note(eventStop, nil)
		if s.cfg.closing != nil {
			s.cfg.closing(s)
		}
		s.commit(true)
	}
	o := s.out
	if o == nil {
		return fmt.Errorf("%w: %w", ErrFull, s.noRoom) // no segment could be made for the last records
	}
	s.out = nil
	if s.failed != nil { // not trimmed: the next start must not believe what it reads back
		_ = o.file.Close()
		return nil
	}
	return o.trim()
}

// failure is why the stream ended for good, or nil.
func (s *stream) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// abandon ends the stream because another one failed on the same disk.
func (s *stream) abandon(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = cmp.Or(s.failed, err)
	s.batch, s.records = s.batch[:0], 0
}

// position is where the stream stands durably.
func (s *stream) position() Head {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// isFull reports whether an error says that there is no room.
func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG)
}

// isInaccessible reports whether an error says that nothing can be written to the disk, be it full or read-only.
func isInaccessible(err error) bool {
	return isFull(err) || errors.Is(err, syscall.EROFS) || errors.Is(err, syscall.EIO)
}
