// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Package audit writes the journal of decisions: what was granted or refused, to whom and why, one JSON object a line,
// in files that are only appended to. It is for the program, which hands every decision here before the answer leaves.
//
// An event that could not be written is an error, and the caller refuses what it was about to grant. A line is whole,
// or it is not there. The package is given identifiers only: no tokens, codes or keys.
package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
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
	File   string // the segment, with its folder
	Offset int64  // of the first byte that is wrong
	What   string
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
}

// segment is what the journal needs of an *os.File.
type segment interface {
	Write(p []byte) (int, error)
	Truncate(size int64) error
	Close() error
}

// Log is an open journal. It is safe for concurrent use.
type Log struct {
	mu     sync.Mutex
	file   segment // nil once closed
	size   int64   // of the file, up to the end of its last whole line
	torn   bool    // the file ends with half a line that could not be taken back
	prefix string  // of the ids of this segment's events
	next   uint64
	line   []byte // reused: only one line is built at a time
	failed error  // of the last Record; nil after one that succeeded
	now    func() time.Time

	reserve *Reserve
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
}

// Anchor is what somebody else keeps of a journal, to hold it to that later: its newest checkpoint that is durable.
type Anchor struct {
	Identity
	FirstKey   string     `json:"first_key"` // public key of the incarnation's first checkpoint, base64url
	Checkpoint Checkpoint `json:"checkpoint"`
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
	Retention    time.Duration // zero: kept for ever

	Keys      Keys       // nil: personal members are written plain
	Registrar Registrar  // nil: incarnations are counted from the files
	Reserve   *Reserve   // given up for a Takeaway on a full disk, which is full until it is back; nil: none
	InFlight  func() int // requests that may still record and wait, those that wait included; nil: unknown
	// Fatal is called once, when the journal must not be used any more, from a goroutine of its own: the process ends
	// and begins anew. nil: nobody is told.
	Fatal func(error)
	// Synced is told of each group of records that was made durable, from within: it must return at once. nil: nobody.
	Synced func(records int, d time.Duration)

	FS     FS // nil: the operating system's
	Logger *slog.Logger
	Now    func() time.Time // nil: time.Now
}

// Open begins a new segment, audit-<start>.jsonl (0600), in the folder.
// Earlier segments are left as they are: a line that a crash cut off stays the last of its file.
func Open(_ context.Context, cfg Config) (*Log, error) {
	dir := cfg.Dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the journal: %w", err)
	}
	start := time.Now().UTC()
	for {
		prefix := start.Format("20060102T150405.000000Z")
		f, err := os.OpenFile(filepath.Join(dir, "audit-"+prefix+".jsonl"), os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o600)
		if errors.Is(err, os.ErrExist) {
			start = start.Add(time.Microsecond) // a clock that was set back, or a coarse one
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("open the journal: %w", err)
		}
		if err := syncFolder(dir); err != nil {
			return nil, errors.Join(fmt.Errorf("open the journal: %w", err), f.Close())
		}
		return &Log{file: f, prefix: prefix + "-", now: time.Now, reserve: cfg.Reserve}, nil
	}
}

// syncFolder makes the new file's name survive a crash.
func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Record appends the event as one line, with one write. It does not wait for the disk. It ignores ctx's end: a decision
// that was made is recorded even when its caller has left. After an error nothing of the event is in the journal, and
// the caller must refuse; the next Record tries again.
func (l *Log) Record(_ context.Context, e Event) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return fmt.Errorf("record %s: %w", e.Name, ErrClosed)
	}
	l.line = l.line[:0]
	if l.torn {
		l.line = append(l.line, '\n')
	}
	l.line = l.appendEvent(l.line, &e)
	n, err := l.file.Write(l.line)
	l.failed = err
	if err == nil {
		l.size += int64(n)
		l.torn = false
		return nil
	}
	l.takeBack(n)
	return fmt.Errorf("record %s: %w", e.Name, err)
}

// Ready returns nil when an event of the class can be recorded, and otherwise why not. It is asked before what cannot be
// taken back is done; Record may fail all the same.
func (l *Log) Ready(c Class) error {
	if c != Takeaway {
		if err := l.reserve.Full(); err != nil {
			return err
		}
	}
	return l.Err()
}

// Err returns why the last Record failed, or nil: for readiness. A closed journal is ErrClosed.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return ErrClosed
	}
	return l.failed
}

// MakeRoom makes room for a Takeaway in a full journal. It returns nil when there is room, and ErrFull when none could be
// made.
func (l *Log) MakeRoom() error { return l.reserve.Release() }

// Head is where the main stream stands, as far as it is durable.
func (l *Log) Head() Head { return Head{} }

// Checkpoint returns the newest durable checkpoint, and false before there is one.
func (l *Log) Checkpoint() (Anchor, bool) { return Anchor{}, false }

// Stats returns how the journal stands.
func (l *Log) Stats() Stats { return Stats{} }

// takeBack removes the n bytes of a line that could not be written whole. If even that fails, the next line begins on
// a line of its own, and readers find one line that is no JSON.
func (l *Log) takeBack(n int) {
	if n <= 0 || l.file.Truncate(l.size) == nil {
		return
	}
	l.size += int64(n)
	l.torn = true
}

// Close closes the segment; Record fails from then on. Closing twice is no error.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}

// appendEvent appends the line of e, newline included.
func (l *Log) appendEvent(b []byte, e *Event) []byte {
	if e.Time.IsZero() {
		e.Time = l.now()
	}
	w := encoder{b: append(b, '{')}
	w.time("time", e.Time)
	if e.ID != "" {
		w.string("id", e.ID)
	} else {
		l.next++
		w.member("id")
		w.b = append(append(w.b, '"'), l.prefix...)
		w.b = append(strconv.AppendUint(w.b, l.next, 10), '"')
	}
	w.string("event", e.Name)
	w.string("outcome", e.Outcome)
	w.string("reason", e.Reason)
	w.string("client", e.Client)
	w.string("actor", e.Actor)
	w.string("x5t#S256", e.Thumbprint)
	w.string("address", e.Address)
	w.string("correlation", e.Correlation)
	w.string("jti", e.TokenID)
	w.string("serial", e.Serial)
	w.string("resource", e.Resource)
	w.list("scope", e.Scope)
	w.list("aud", e.Audience)
	if !e.Expires.IsZero() {
		w.time("expires", e.Expires)
	}
	w.object("detail", e.Detail)
	w.count("count", e.Count)
	if w.truncated {
		w.member("truncated")
		w.b = append(w.b, "true"...)
	}
	return append(w.b, '}', '\n')
}
