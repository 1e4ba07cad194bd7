// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Finding is a place where a journal is not what was written, or where it ends early.
type Finding struct {
	File   string `json:"file,omitempty"`   // the segment's name; empty where a whole one is missing
	Offset int64  `json:"offset"`           // of the first byte that is wrong
	Line   int    `json:"line,omitempty"`   // its number, from 1
	Record uint64 `json:"record,omitempty"` // its sequence number, where that is known
	What   string `json:"what"`
	// Missing is the replica whose whole journal is not among those given; empty: the finding is another.
	Missing string `json:"missing,omitempty"`

	by string // the replica whose journal it rests on
}

// String is the finding in one line.
func (f Finding) String() string {
	if f.File == "" {
		return f.What
	}
	return fmt.Sprintf("%s, line %d (byte %d): %s", f.File, f.Line, f.Offset, f.What)
}

// maxFindings is how many findings, and how many notes, are kept; maxNames how many names of foreign files.
const (
	maxFindings = 50
	maxNames    = 10
)

// StreamReport is how much of a stream there is.
type StreamReport struct {
	Segments  int       `json:"segments"`
	Records   uint64    `json:"records"`
	First     uint64    `json:"first,omitempty"` // sequence numbers
	Last      uint64    `json:"last,omitempty"`
	FirstTime time.Time `json:"first_time,omitzero"`
	LastTime  time.Time `json:"last_time,omitzero"`
	// Removed is up to which record the journal says that its segments were removed: at the end of their retention, or
	// of the refusals for want of room.
	Removed uint64 `json:"removed,omitempty"`
	// Uncovered are the records at the end that no checkpoint signs yet.
	Uncovered uint64 `json:"uncovered"`
}

// Report is what Verify found.
type Report struct {
	Installation string       `json:"installation"`
	Replica      string       `json:"replica"`
	Incarnations int          `json:"incarnations"` // runs of the service
	Closed       bool         `json:"closed"`       // the last one ended in order
	Records      StreamReport `json:"records"`
	Refusals     StreamReport `json:"refusals"`
	Checkpoints  uint64       `json:"checkpoints"`
	// Checkpoint is the last one.
	Checkpoint *Checkpoint `json:"checkpoint,omitempty"`
	// Known is how many known heads were compared, Anchor the time of the newest that the journal agrees with.
	Known  int       `json:"known"`
	Anchor time.Time `json:"anchor,omitzero"`
	// Anchors are the newest of whoever keeps such heads, newest first.
	Anchors []AnchorReport `json:"anchors,omitempty"`
	// Losses are what starts went on without because they were told to.
	Losses []Loss `json:"losses,omitempty"`
	// Notes are what is no damage but not covered either: a torn end, files that are no segments.
	Notes []Finding `json:"notes"`
	// Findings are what is wrong, the first 50.
	Findings []Finding `json:"findings"`

	witnessed []Anchor // the newest that the journal says of each incarnation of other replicas
	elsewhere []Anchor // those known heads that are about other replicas
}

// AnchorReport is a head that somebody keeps of the journal.
type AnchorReport struct {
	By      string    `json:"by"` // "operator", ByDatabase, or the replica whose journal says so
	Journal string    `json:"journal"`
	Record  uint64    `json:"record"`
	Time    time.Time `json:"time"`
	Agrees  bool      `json:"agrees"`
}

// TamperError says that a journal is not what was written.
type TamperError struct{ Findings []Finding }

// Error names the first place.
func (e *TamperError) Error() string {
	if n := len(e.Findings) - 1; n > 0 {
		return fmt.Sprintf("%s (and %d more)", e.Findings[0], n)
	}
	return e.Findings[0].String()
}

// ErrNoJournal says that a folder holds no journal.
var ErrNoJournal = errors.New("there is no journal")

// Verify reads the whole journal in a folder, which may be a copy of a running service's, and holds every record to its
// chain, every batch to its frame, every checkpoint to its signature and to the key that the one before it named, the
// refusals to the heads that the journal states of them, what is missing to the records of its removal, and all of it to
// the heads that somebody kept. It needs the same memory for a folder of any size, changes nothing, and returns what it
// saw; a *TamperError when that is not what was written, ErrNoJournal where there is nothing and nothing is known.
//
// It cannot see that records were cut off, or a whole copy put back, after the newest known head; nor that whoever held
// the key of the last checkpoint made up what follows it.
func Verify(dir string, known []Anchor) (*Report, error) {
	return verify(dir, known, VerifyOptions{})
}

// verify is Verify, and reads again what a running service changed while it was read.
func verify(dir string, known []Anchor, opt VerifyOptions) (*Report, error) {
	const attempts = 3
	for attempt := 1; ; attempt++ {
		report, moved, err := verifyOnce(dir, known, opt)
		if moved && attempt < attempts {
			continue
		}
		// A running service may have removed, at the end of its retention, what was listed.
		if errors.Is(err, fs.ErrNotExist) && attempt < attempts {
			if _, missing := os.Stat(dir); missing == nil {
				continue
			}
		}
		return report, err
	}
}

// verifyOnce reads the journal once. It says moved when something is wrong and was found in a segment that was written to
// meanwhile: then the next segment may go on from where nothing was yet when this one was read.
func verifyOnce(dir string, known []Anchor, opt VerifyOptions) (_ *Report, moved bool, _ error) {
	main, refusals, others, err := segmentFiles(dir)
	if errors.Is(err, fs.ErrNotExist) && len(known) > 0 {
		err = nil // it was deleted: the heads say what is missing
	}
	if err != nil {
		return nil, false, fmt.Errorf("verify the journal: %w", err)
	}
	if len(main)+len(refusals)+len(known) == 0 {
		return nil, false, fmt.Errorf("verify %s: %w", dir, ErrNoJournal)
	}
	v := &verifier{report: &Report{Notes: []Finding{}, Findings: []Finding{}}, opt: opt, anchors: map[string]AnchorReport{}, witnessed: map[Identity]Anchor{}}
	v.report.Records.Segments, v.report.Refusals.Segments = len(main), len(refusals)
	v.main = newWalker(v, dir, main, &v.report.Records)
	v.refusals = newWalker(v, dir, refusals, &v.report.Refusals)
	defer v.main.close()
	defer v.refusals.close()
	if err := v.expect(known); err != nil {
		return nil, false, err
	}
	v.foreign(others)
	if len(main) == 0 && len(refusals) > 0 { // the refusals are never begun before the journal is
		v.find(Finding{What: "the journal is missing: only the stream of refusals is there"})
	}
	if err := v.run(); err != nil {
		return nil, v.moved, fmt.Errorf("verify the journal: %w", err)
	}
	if len(v.report.Findings) > 0 {
		return v.report, v.moved, &TamperError{Findings: v.report.Findings}
	}
	return v.report, false, nil
}

// verifier holds the streams to each other and to what is signed.
type verifier struct {
	report         *Report
	opt            VerifyOptions
	main, refusals *walker
	moved          bool // a segment was written to, or removed, while something wrong was found in it or behind it

	installation, replica string // of the first segment

	// Of the incarnation that is read:
	incarnation uint64
	firstKey    string // of its first checkpoint; empty when its beginning was removed
	key         string // that has to sign the next checkpoint; empty when nothing says so
	previous    string // head of the last checkpoint; empty for none
	signed      bool   // there was a checkpoint

	covered  uint64      // the last record that a checkpoint signs
	removed  promise     // what the records since the last checkpoint say of removed segments
	dropped  promise     // … of dropped refusals
	removedC promise     // the same, signed
	droppedC promise     //
	stated   statedHeads // what the journal states of the refusals

	known     []Anchor                // those still to come, by sequence number
	begun     []Anchor                // incarnations of which nothing but their beginning is known
	anchors   map[string]AnchorReport // by who keeps them
	witnessed map[Identity]Anchor
}

// promise is what the journal says of segments that are gone.
type promise struct {
	head Head
	said bool
}

// statedHeads remembers which head of the refusals was stated last and not met.
type statedHeads struct {
	missing Finding // the first one that was not met
	short   bool
	at      time.Time // when it was stated
	last    uint64    // the last one that was stated
	covered uint64    // and the last one that a checkpoint signs
}

func (v *verifier) find(f Finding) {
	if len(v.report.Findings) < maxFindings {
		v.report.Findings = append(v.report.Findings, f)
		v.moved = v.moved || v.main.moved() || v.refusals.moved()
	}
}

func (v *verifier) note(f Finding) {
	if len(v.report.Notes) < maxFindings {
		v.report.Notes = append(v.report.Notes, f)
	}
}

// foreign notes files that are no segments: one that lost its name is missing where it belongs.
func (v *verifier) foreign(names []string) {
	names = slices.DeleteFunc(names, func(name string) bool { return strings.HasSuffix(name, suffixNew) || name == reserveName })
	for i, name := range names {
		if i == maxNames {
			v.note(Finding{What: fmt.Sprintf("and %d more files that are no segments", len(names)-i)})
			return
		}
		v.note(Finding{What: fmt.Sprintf("the file %q is no segment of the journal", name)})
	}
}

// expect takes what somebody kept of the journal's heads.
func (v *verifier) expect(known []Anchor) error {
	for i := range known {
		if err := known[i].check(); err != nil {
			return fmt.Errorf("the known heads: %w", err)
		}
	}
	for _, k := range known {
		if k.begun() {
			v.begun = append(v.begun, k)
		} else {
			v.known = append(v.known, k)
		}
	}
	slices.SortStableFunc(v.known, func(a, b Anchor) int { return cmp.Compare(a.seq(), b.seq()) })
	v.report.Known = len(v.known)
	return nil
}

func (v *verifier) run() error {
	for {
		r, err := v.main.next()
		if err != nil {
			return err
		}
		if r == nil {
			break
		}
		if err := v.record(r); err != nil {
			return err
		}
	}
	// What is left of the refusals was written after the last head.
	for {
		r, err := v.refusals.next()
		if err != nil {
			return err
		}
		if r == nil {
			break
		}
	}
	v.finish()
	return nil
}

// record looks at one record of the journal that the chain has accepted.
func (v *verifier) record(r *walked) error {
	if r.journal != nil {
		if v.replica == "" {
			v.sort(r.journal.Identity)
		}
		if r.journal.Loss != nil && r.event == eventStart {
			v.loss(r)
		}
	}
	v.compare(r)
	switch r.event {
	case eventStop:
		v.report.Closed = true
	case eventCheckpoint, eventRefusals: // what ends a stopped journal
	default:
		v.report.Closed = false
	}
	switch r.event {
	case eventStart, eventSegment:
		v.begin(r)
	case eventCheckpoint:
		v.checkpoint(r)
	case eventRefusals:
		return v.refusalHead(r)
	case eventRetention:
		v.removed = v.promised(r, v.removed)
	case eventDropped:
		v.dropped = v.promised(r, v.dropped)
	case eventWitness:
		v.witness(r)
	}
	return nil
}

// sort leaves those known heads out that are about other replicas: they are for those. Where there is none about this one,
// all stay, since this is not the journal that was looked for, unless it is one of several.
func (v *verifier) sort(id Identity) {
	other := func(k Anchor) bool { return k.Installation == id.Installation && k.Replica != id.Replica }
	mine := func(k Anchor) bool { return k.Installation == id.Installation && k.Replica == id.Replica }
	if !v.opt.several && !slices.ContainsFunc(v.known, mine) {
		return
	}
	for _, k := range v.known {
		if other(k) {
			v.report.elsewhere = append(v.report.elsewhere, k)
		}
	}
	v.known = slices.DeleteFunc(v.known, other)
}

// loss takes a record that says what the run that it begins went on without. What was known of earlier runs beyond that is
// not asked for any more.
func (v *verifier) loss(r *walked) {
	id, loss := r.journal.Identity, r.journal.Loss
	v.known = slices.DeleteFunc(v.known, func(k Anchor) bool {
		return k.Installation == id.Installation && k.Replica == id.Replica && k.Incarnation < id.Incarnation && k.seq() > loss.Found.Seq
	})
	if len(v.report.Losses) < maxFindings {
		v.report.Losses = append(v.report.Losses, *loss)
	}
	f := r.finding(fmt.Sprintf("records %d to %d of run %d, and what came after them before this run began, are lost: the service was told to go on without them",
		loss.Found.Seq+1, loss.Known.Seq, loss.Incarnation))
	switch {
	case loss.Found != r.journal.Previous || loss.Known.Seq <= loss.Found.Seq:
		v.find(r.finding("what this record says to be lost does not fit where the journal ended"))
	case v.opt.AcceptLoss:
		v.note(f)
	default:
		v.find(f)
	}
}

// maxWitnessed bounds the journals of others that are remembered.
const maxWitnessed = 10_000

// witness takes what the journal says of another one.
func (v *verifier) witness(r *walked) {
	w := r.witness
	if before, ok := v.witnessed[w.Identity]; ok && before.Seen.Head.Seq >= w.Head.Seq || !ok && len(v.witnessed) >= maxWitnessed {
		return
	}
	v.witnessed[w.Identity] = Anchor{Identity: w.Identity, FirstKey: w.FirstKey, Seen: &Sighting{
		By: v.main.identity.Replica, Head: w.Head, Time: w.Time, record: r.seq, recorded: r.time,
	}}
}

// begin notes whose journal it is from here on.
func (v *verifier) begin(r *walked) {
	id := r.journal.Identity
	if v.installation == "" && v.replica == "" {
		v.installation, v.replica = id.Installation, id.Replica
		v.report.Installation, v.report.Replica = id.Installation, id.Replica
	} else if id.Installation != v.installation || id.Replica != v.replica {
		v.find(r.finding("the segment is another journal's: " + id.String()))
	}
	if r.event == eventSegment && v.report.Incarnations > 0 {
		if v.key != r.journal.Key {
			v.find(r.finding("the segment names another key for the next checkpoint than the last one did"))
		}
		return
	}
	// Numbers are given before anything is written, so that a run which is ended at once leaves none of its records: only
	// a known head tells that from one whose records were all cut off before the next run began.
	switch before := v.incarnation; {
	case v.report.Incarnations == 0 || id.Incarnation <= before+1:
	case id.Incarnation == before+2:
		v.note(r.finding(fmt.Sprintf("run %d of the service left no record: it was ended before its first, or all of them were cut off", before+1)))
	default:
		v.note(r.finding(fmt.Sprintf("runs %d to %d of the service left no record: they were ended before their first, or all of them were cut off", before+1, id.Incarnation-1)))
	}
	v.incarnation = id.Incarnation
	v.report.Incarnations++
	v.previous, v.signed, v.firstKey, v.key = "", false, "", r.journal.Key
	if r.event == eventStart {
		v.firstKey = r.journal.Key
	}
	for _, k := range slices.Concat(v.known, v.begun) {
		if k.Identity == id && v.firstKey != "" && k.FirstKey != "" && k.FirstKey != v.firstKey {
			v.find(k.accuse(r.finding("the key of the first checkpoint is not the one that " + k.who() + " names: the journal was made anew")))
		}
	}
}

// compare holds a record to the known heads that are about it.
func (v *verifier) compare(r *walked) {
	for len(v.known) > 0 && v.known[0].seq() <= r.seq {
		k := v.known[0]
		v.known = v.known[1:]
		seq, chain, at := k.Head()
		if seq < r.seq {
			v.beforeBase(&k, r)
			continue
		}
		switch {
		case k.Identity != v.main.identity:
			v.contradicted(&k, r.finding(fmt.Sprintf("%s says that this record was its own, but it is one of %s: the journal was put back or made anew", k.who(), v.main.identity)))
		case chain != chainString(r.chain):
			v.contradicted(&k, r.finding(fmt.Sprintf("%s, seen at %s, has another chain here: records up to this one were rewritten", k.who(), at.UTC().Format(time.RFC3339))))
		default:
			v.agree(&k)
		}
	}
}

// beforeBase is for a known head of which the record is not there: it was removed, or skipped.
func (v *verifier) beforeBase(k *Anchor, r *walked) {
	id := v.main.identity
	switch {
	case k.Installation != id.Installation || k.Replica != id.Replica:
		v.contradicted(k, r.finding(fmt.Sprintf("this is not the journal of %s, but %s", k.who(), id)))
		return
	case k.seq() <= v.main.base.Seq:
		return // whether it may be missing, the records of its removal say
	}
	v.contradicted(k, r.finding(fmt.Sprintf("record %d, which %s names, is missing", k.seq(), k.who())))
}

// contradicted is for a known head that the journal does not agree with.
func (v *verifier) contradicted(k *Anchor, f Finding) {
	v.count(k, false)
	v.find(k.accuse(f))
}

func (v *verifier) agree(k *Anchor) {
	v.count(k, true)
	if _, _, at := k.Head(); at.After(v.report.Anchor) {
		v.report.Anchor = at
	}
}

// count keeps the newest of those that agree, for each who keeps them, or else of those that do not.
func (v *verifier) count(k *Anchor, agrees bool) {
	by := k.keeper()
	seq, _, at := k.Head()
	if before, ok := v.anchors[by]; !ok || agrees && !before.Agrees || agrees == before.Agrees && at.After(before.Time) {
		v.anchors[by] = AnchorReport{By: by, Journal: k.Identity.String(), Record: seq, Time: at, Agrees: agrees}
	}
}

// checkpoint holds a checkpoint to the chain, to the ratchet and to its signature.
func (v *verifier) checkpoint(r *walked) {
	c := r.checkpoint
	v.report.Checkpoints++
	switch wrong := v.wrong(r, c); wrong {
	case "":
		v.covered = c.Seq
		v.report.Checkpoint = c
		v.removedC, v.droppedC = v.removed, v.dropped
		v.stated.covered = v.stated.last
	default:
		v.find(r.finding(wrong))
	}
	v.key, v.previous, v.signed = c.Next, c.Head, true
}

func (v *verifier) wrong(r *walked, c *Checkpoint) string {
	switch {
	case c.Journal != v.main.identity.String():
		return "the checkpoint is another journal's: " + printable(c.Journal)
	case c.Seq != r.before.Seq || c.Head != chainString(r.before.Chain):
		return "the checkpoint does not say where the chain stands"
	case v.key != "" && c.Key != v.key:
		return "the checkpoint is signed with another key than the one before it named"
	case (v.signed || v.firstKey != "") && c.Previous != v.previous:
		return "the checkpoint does not follow the one before it"
	}
	if err := c.Verify(); err != nil {
		return err.Error()
	}
	return ""
}

// promised reads a record of removed segments.
func (v *verifier) promised(r *walked, before promise) promise {
	if r.head.Seq < before.head.Seq {
		return before
	}
	return promise{head: *r.head, said: true}
}

// refusalHead reads the refusals up to the head that the journal states of them.
func (v *verifier) refusalHead(r *walked) error {
	v.stated.last = max(v.stated.last, r.head.Seq)
	w := v.refusals
	for w.head.Seq < r.head.Seq {
		read, err := w.next()
		if err != nil {
			return err
		}
		if read == nil {
			break
		}
	}
	switch {
	case w.head.Seq < r.head.Seq:
		if !v.stated.short {
			v.stated.short, v.stated.at = true, r.time
			v.stated.missing = r.finding(fmt.Sprintf("the refusals end at %d, but stood at %d when this was written", w.head.Seq, r.head.Seq))
		}
	case w.head.Seq == r.head.Seq && w.head.Chain != r.head.Chain, w.base.Seq == r.head.Seq && w.base.Chain != r.head.Chain:
		v.find(r.finding(fmt.Sprintf("the refusals up to %d are not those that the journal states: they were rewritten", r.head.Seq)))
	}
	return nil
}

// copyTime is how long the copying of a folder may take: refusals that were stated that shortly before the journal's end
// may be missing from a copy of a running service.
const copyTime = 15 * time.Minute

// finish judges what only the end can tell.
func (v *verifier) finish() {
	r, main, refusals := v.report, v.main, v.refusals
	r.Records.Removed, r.Refusals.Removed = v.removedC.head.Seq, v.droppedC.head.Seq
	if main.head.Seq > v.covered {
		r.Records.Uncovered = main.head.Seq - max(v.covered, main.base.Seq)
		if r.Checkpoint != nil && v.covered+1 == main.head.Seq {
			r.Records.Uncovered = 0 // the checkpoint itself, which its signature covers
		}
	}
	if refusals.head.Seq > v.stated.covered {
		r.Refusals.Uncovered = refusals.head.Seq - max(v.stated.covered, refusals.base.Seq)
	}
	v.missing(main, v.removedC, "retention")
	v.missing(refusals, v.droppedC, "drop")
	if v.stated.short {
		if !r.Closed && !v.stated.at.Before(r.Records.LastTime.Add(-copyTime)) && v.report.Records.Last > 0 {
			note := v.stated.missing
			note.What += ": the folder was copied while the service ran, or the machine stopped"
			v.note(note)
		} else {
			v.find(v.stated.missing)
		}
	}
	for i := range v.known {
		v.lost(&v.known[i])
	}
	for _, a := range v.anchors {
		r.Anchors = append(r.Anchors, a)
	}
	slices.SortFunc(r.Anchors, func(a, b AnchorReport) int { return cmp.Or(b.Time.Compare(a.Time), cmp.Compare(a.By, b.By)) })
	for _, w := range v.witnessed {
		r.witnessed = append(r.witnessed, w)
	}
}

// missing demands that segments before the first one are missing for a reason that the journal states.
func (v *verifier) missing(w *walker, said promise, why string) {
	if !w.based || w.base.Seq == 0 {
		return
	}
	where := w.firstFinding
	switch {
	case !said.said || said.head.Seq < w.base.Seq:
		where.What = fmt.Sprintf("the records up to %d are missing, and no signed record of a %s says so", w.base.Seq, why)
		v.find(where)
	case said.head.Seq == w.base.Seq && said.head.Chain != w.base.Chain:
		where.What = fmt.Sprintf("the record of the %s names another record %d than the one this segment follows", why, w.base.Seq)
		v.find(where)
	}
}

// lost is for a known head that the journal does not reach.
func (v *verifier) lost(k *Anchor) {
	seq, _, at := k.Head()
	says := ""
	if k.Seen != nil {
		says = ", as " + k.source() + " says"
	}
	seen := at.UTC().Format(time.RFC3339) + says
	if v.main.head.Seq == 0 {
		v.contradicted(k, Finding{Record: seq, What: fmt.Sprintf("the journal %s is not here, but stood at record %d on %s: it was deleted", k.Identity, seq, seen)})
		return
	}
	f := v.main.newest // behind it is what was filled beforehand, or nothing
	f.What = fmt.Sprintf("the journal ends with record %d, but %s stood at record %d on %s: its end was cut off, or an older copy put back", v.main.head.Seq, k.Identity, seq, seen)
	f.Record = seq
	if k.Seen != nil && k.Seen.late && !v.report.Closed {
		f.What += ", or it was copied before that"
		v.note(f)
		return
	}
	v.contradicted(k, f)
}

// ownEvent stands in the line of each of them; what a caller says is escaped, and cannot hold it.
const ownEvent = `"event":"journal.`

// walked is a record that was read.
type walked struct {
	seq    uint64
	chain  [32]byte
	before Head // what it is chained to
	time   time.Time
	file   string
	offset int64
	line   int

	// event is empty but for the journal's own events.
	event      string
	journal    *journalMember
	checkpoint *Checkpoint
	witness    *witnessMember
	head       *Head // that journal.retention, journal.dropped and journal.refusals name
}

func (r *walked) finding(what string) Finding {
	return Finding{File: r.file, Offset: r.offset, Line: r.line, Record: r.seq, What: what}
}

// walker reads the records of a stream and holds them to chain, frames, names and order.
type walker struct {
	v      *verifier
	dir    string
	files  []segmentFile
	report *StreamReport
	stream string
	ends   bool // the last of files holds something: those behind it, which did not, were left off

	at    int // the segment that is read is files[at-1]
	file  *os.File
	found [2]fs.FileInfo // of that segment and of the one before it, when each was opened
	lines *lineReader
	first bool // its first record is still to come
	grows bool // newlines follow what it holds: it was not ended
	tears int  // how often the rest of it was looked at for a torn end
	batch batch

	head     Head
	computed [32]byte // what the chain at head should have been, when that is not what the record says
	doubtful bool     // computed differs
	lost     bool     // what follows is not chained to head: the line between cannot be read
	identity Identity

	base         Head // what the first record that is there follows
	based        bool
	firstFinding Finding // where that record is
	newest       Finding // where the one at head is
}

func newWalker(v *verifier, dir string, files []segmentFile, report *StreamReport) *walker {
	w := &walker{v: v, dir: dir, files: files, report: report}
	if len(files) > 0 {
		w.stream = files[0].stream
	}
	return w
}

func (w *walker) close() {
	if w.file != nil {
		_ = w.file.Close() // it was only read
		w.file = nil
	}
}

// moved reports whether the segment that is read, or the one before it, is not as it was when it was opened.
func (w *walker) moved() bool {
	for _, before := range w.found {
		if before == nil {
			continue
		}
		now, err := os.Lstat(filepath.Join(w.dir, before.Name()))
		if err != nil || now.Size() != before.Size() || !now.ModTime().Equal(before.ModTime()) {
			return true
		}
	}
	return false
}

// here is a finding about the line that was read last.
func (w *walker) here(what string) Finding {
	f := Finding{What: what}
	if w.at > 0 {
		f.File = w.files[w.at-1].name
	}
	if w.lines != nil {
		f.Offset, f.Line = w.lines.offset, w.lines.number
	}
	return f
}

// last says whether the segment that is read is the stream's last.
func (w *walker) last() bool { return w.at == len(w.files) }

// mayTear says whether the segment that is read may end anywhere: the last one, since it may be a copy that ended early,
// and whichever recovery would take for torn, that was not ended and behind which nothing was written. Then what is behind
// it is not read, since a running service may begin the next segment just now, after a batch that was missed here.
func (w *walker) mayTear() (bool, error) {
	if w.last() {
		return true, nil
	}
	info, err := w.file.Stat()
	if err != nil {
		return false, err
	}
	if ended, err := wasEnded(w.file, info.Size()); ended || err != nil {
		return false, err
	}
	for !w.ends && !w.last() {
		f, err := openSegment(w.dir, w.files[len(w.files)-1])
		if err != nil {
			return false, err
		}
		empty, err := unwritten(f)
		if err = errors.Join(err, f.Close()); err != nil {
			return false, err
		}
		if empty {
			w.files = w.files[:len(w.files)-1]
		} else {
			w.ends = true // looked for once, however often the stream is broken
		}
	}
	return w.last(), nil
}

// next returns the next record that is there, nil at the end. Its error is one of reading.
func (w *walker) next() (*walked, error) {
	for {
		if w.file == nil {
			more, err := w.open()
			if !more || err != nil {
				return nil, err
			}
		}
		line, whole, err := w.lines.next()
		switch {
		case errors.Is(err, io.EOF):
			if err := w.end(); err != nil {
				return nil, err
			}
			continue
		case errors.Is(err, errLongLine):
			line, whole = nil, true // no record is that long
		case err != nil:
			return nil, err
		case whole && len(line) == 0:
			if err := w.blank(); err != nil {
				return nil, err
			}
			continue
		case isFrame(line) && whole:
			if err := w.frame(line); err != nil {
				return nil, err
			}
			continue
		}
		seq, body, chain, ok := splitRecord(line)
		if !ok || !whole {
			if err := w.unreadable(whole); err != nil {
				return nil, err
			}
			continue
		}
		r, err := w.take(seq, body, chain, line)
		if r != nil || err != nil {
			return r, err
		}
	}
}

// open goes on with the next segment.
func (w *walker) open() (bool, error) {
	if w.last() {
		return false, nil
	}
	if w.v.opt.reached != nil {
		w.v.opt.reached(w.files[w.at].name, false)
	}
	f, err := openSegment(w.dir, w.files[w.at])
	if err != nil {
		return false, err
	}
	info, err := f.Stat()
	if err != nil {
		return false, errors.Join(err, f.Close())
	}
	if w.v.opt.reached != nil {
		w.v.opt.reached(w.files[w.at].name, true)
	}
	w.found = [2]fs.FileInfo{info, w.found[0]}
	w.at++
	w.file, w.first, w.grows, w.tears, w.batch = f, true, false, 0, batch{}
	if w.lines == nil {
		w.lines = newLineReader(f, 0, 0)
	} else {
		w.lines.reset(f)
	}
	return true, nil
}

// end closes a segment that was read to its end.
func (w *walker) end() error {
	defer w.close()
	switch {
	case w.batch.records > 0 && !w.batch.bad:
		mayTear, err := w.mayTear()
		if err != nil {
			return err
		}
		f := w.here(fmt.Sprintf("the last batch, from record %d, has no frame", w.batch.first))
		f.Offset, f.Line, f.Record = w.batch.start, w.batch.line, w.batch.first
		if mayTear {
			f.What += ": the service was writing it, or was ended"
			w.v.note(f)
		} else {
			w.v.find(f)
		}
	case w.first && w.last():
		w.v.note(w.here("the segment holds no record yet"))
	case w.stream == streamMain && w.last() && !w.grows && !w.v.report.Closed:
		w.v.note(w.here("the segment was ended, and nothing says that the service was: its end may have been cut off"))
	}
	return nil
}

// blank is for an empty line: what was written ends there, unless something follows.
func (w *walker) blank() error {
	hole := w.here("there are empty lines before more of the journal")
	more, err := w.lines.skipBlank()
	if err != nil || !more {
		w.grows = true
		return err
	}
	return w.broken(hole)
}

// unreadable is for a line that is neither a record nor a frame.
func (w *walker) unreadable(whole bool) error {
	what := "this is no record"
	if !whole {
		what = "the line is cut off"
	}
	w.lost = true
	return w.broken(w.here(what))
}

// broken is for a place where the segment is not what was written. At the end of a stream that may be a batch that was
// being written: then it is noted, and the segment ends there.
func (w *walker) broken(f Finding) error {
	if w.tears++; w.tears <= maxFindings {
		torn, err := w.mayTear()
		if torn && err == nil {
			torn, err = w.torn()
		}
		if err != nil {
			return err
		}
		if torn {
			f.What = fmt.Sprintf("the end is torn after record %d: the service was writing it, or was ended", w.head.Seq)
			w.v.note(f)
			w.close()
			w.lost = false
			return nil
		}
	}
	if !w.batch.bad {
		w.v.find(f)
	}
	w.batch.bad = true
	return nil
}

// page is what a disk writes at once, at least; the kernel's pages are made of them.
const page = 512

// torn says whether what follows the last whole batch is what an interrupted write leaves, or a copy of a segment that
// was being written: a batch in which pages are missing, and after which nothing was known to be durable. A batch that is
// there whole and wrong was changed.
func (w *walker) torn() (bool, error) {
	f, err := openSegment(w.dir, w.files[w.at-1])
	if err != nil {
		return false, err
	}
	defer f.Close()
	start, bad := w.batch.start, w.batch.first // of the batch that is not whole
	if w.batch.records == 0 {
		start, bad = w.lines.offset, w.head.Seq+1
	}
	if _, err := f.Seek(start, io.SeekStart); err != nil {
		return false, err
	}
	lines := newLineReader(f, start, 0)
	hole := false    // a page is missing
	skipped := false // and the copy went on at a page's beginning, with what was written later
	for {
		line, whole, err := lines.next()
		switch {
		case errors.Is(err, io.EOF):
			return true, nil
		case errors.Is(err, errLongLine):
			hole = true
			continue
		case err != nil:
			return false, err
		case len(line) == 0:
			more, err := lines.skipBlank()
			if err != nil || !more {
				return err == nil, err
			}
			hole, skipped = true, skipped || lines.end%page == 0
		case bytes.IndexByte(line, 0) >= 0:
			hole = true
		case whole && line[len(line)-1] != '}' && lines.end%page == 0:
			hole, skipped = true, true // the newline is what was there before
		case isFrame(line) && whole:
			frame, ok := readFrame(line)
			if ok && (!hole || frame.Synced >= bad && !skipped) {
				return false, nil
			}
		}
	}
}

// frame takes a frame's line.
func (w *walker) frame(line []byte) error {
	defer func() { w.batch = batch{} }()
	if w.batch.bad || w.batch.closedBy(line, w.head) {
		return nil
	}
	f := w.here("the frame does not fit its batch")
	if w.batch.records > 0 {
		f.What = fmt.Sprintf("the frame does not fit its batch, from record %d", w.batch.first)
	}
	return w.broken(f)
}

// take takes a record's line apart and holds it to the chain. It returns nil for a record that was there before.
func (w *walker) take(seq uint64, body []byte, chain [32]byte, line []byte) (*walked, error) {
	r := &walked{seq: seq, chain: chain, file: w.files[w.at-1].name, offset: w.lines.offset, line: w.lines.number}
	if w.batch.records == 0 && !w.batch.bad {
		w.batch.start, w.batch.line = r.offset, r.line
	}
	readable := r.read(line)
	if !readable {
		r.event = ""
	}
	expected, wrong := w.expected(r)
	if !readable {
		wrong = "the record is no JSON of the journal"
	}
	if wrong == "" && !w.linked(expected, body, chain) {
		wrong = "the record does not fit its chain: it was changed"
	}
	if wrong != "" {
		before := w.head
		if err := w.broken(r.finding(wrong)); err != nil {
			return nil, err
		}
		if w.file == nil { // torn
			return nil, nil
		}
		if seq <= before.Seq {
			return nil, nil // read once already
		}
	}
	w.computed, w.doubtful = link(expected.Chain, body), wrong != ""
	r.before = expected
	w.head, w.lost, w.newest = Head{Seq: seq, Chain: chain}, false, r.finding("")
	w.batch.add(seq, line)
	if w.report.Records == 0 {
		w.report.First, w.report.FirstTime = seq, r.time
	}
	w.report.Records++
	w.report.Last, w.report.LastTime = seq, r.time
	return r, nil
}

// expected returns what the record has to be chained to, and what is wrong with its place.
func (w *walker) expected(r *walked) (Head, string) {
	own := r.event == eventStart || r.event == eventSegment
	if !w.first {
		switch {
		case own:
			return w.head, "a segment begins within another"
		case w.lost && r.seq > w.head.Seq:
			return w.head, ""
		}
		return w.head, w.misplaced(r.seq)
	}
	w.first = false
	file := w.files[w.at-1]
	if !own {
		w.adopt(r, Head{Seq: r.seq - 1})
		return w.head, "the segment does not begin as segments do"
	}
	previous, id := r.journal.Previous, r.journal.Identity
	switch {
	case id.Incarnation != file.incarnation || r.seq != file.first:
		return w.head, fmt.Sprintf("the segment is not the one that its name says, but that of record %d of incarnation %d", r.seq, id.Incarnation)
	case r.event == eventSegment && w.based && id != w.identity:
		return w.head, "the segment goes on with " + printable(id.String()) + ", whose beginning is missing"
	case r.event == eventStart && w.based && id.Incarnation <= w.identity.Incarnation:
		return w.head, "the incarnation begins twice"
	}
	w.identity = id
	if !w.based {
		w.adopt(r, previous)
	}
	expected := w.head
	wrong := w.misplaced(r.seq)
	if wrong == "" && previous != w.head && !(w.doubtful && previous.Chain == w.computed) {
		wrong = fmt.Sprintf("the segment does not follow record %d: it or what was before it was replaced", w.head.Seq)
	}
	if r.event == eventStart {
		expected = Head{Seq: previous.Seq, Chain: id.genesis(w.stream, previous)}
	}
	return expected, wrong
}

// adopt takes what the first record says that it follows: what is before it is not there.
func (w *walker) adopt(r *walked, previous Head) {
	w.head, w.base, w.based = previous, previous, true
	w.firstFinding = r.finding("")
}

// misplaced says what is wrong with a record's number.
func (w *walker) misplaced(seq uint64) string {
	switch {
	case seq == w.head.Seq+1:
		return ""
	case seq <= w.head.Seq:
		return fmt.Sprintf("record %d stands after record %d: it is repeated, or out of its order", seq, w.head.Seq)
	case seq == w.head.Seq+2:
		return fmt.Sprintf("record %d is missing", seq-1)
	}
	return fmt.Sprintf("records %d to %d are missing", w.head.Seq+1, seq-1)
}

// linked says whether a record is chained to what is expected. After a record that was changed that is what it says, or
// what its chain should have been; after a line that cannot be read nobody knows.
func (w *walker) linked(expected Head, body []byte, chain [32]byte) bool {
	return w.lost || link(expected.Chain, body) == chain || w.doubtful && link(w.computed, body) == chain
}

// read reads the time of a record, and what the journal says of itself.
func (r *walked) read(line []byte) bool {
	own := bytes.Contains(line, []byte(ownEvent))
	if !own {
		r.time = lineTime(line)
		return true
	}
	var e struct {
		Time       time.Time      `json:"time"`
		Name       string         `json:"event"`
		Journal    *journalMember `json:"journal"`
		Checkpoint *Checkpoint    `json:"checkpoint"`
		Witness    *witnessMember `json:"witness"`
		Refusals   *Head          `json:"refusals"`
		Retention  *Head          `json:"retention"`
		Dropped    *Head          `json:"dropped"`
	}
	if json.Unmarshal(line, &e) != nil {
		return false
	}
	r.time, r.event = e.Time, e.Name
	r.journal, r.checkpoint, r.witness = e.Journal, e.Checkpoint, e.Witness
	switch e.Name {
	case eventStart, eventSegment:
		return r.journal != nil
	case eventCheckpoint:
		return r.checkpoint != nil
	case eventWitness:
		return r.witness.says()
	case eventRefusals:
		r.head = e.Refusals
	case eventRetention:
		r.head = e.Retention
	case eventDropped:
		r.head = e.Dropped
	default:
		return true
	}
	return r.head != nil
}

// lineTime reads the time of a record's line, which follows its number; the zero time when it does not.
func lineTime(line []byte) time.Time {
	const member = `,"time":"`
	at := bytes.IndexByte(line, ',')
	if at < 0 || !bytes.HasPrefix(line[at:], []byte(member)) || len(line) < at+len(member)+len(timeFormat) {
		return time.Time{}
	}
	t, err := time.Parse(timeFormat, string(line[at+len(member):at+len(member)+len(timeFormat)]))
	if err != nil {
		return time.Time{}
	}
	return t
}

// printable keeps a text that a file holds from steering a terminal.
func printable(s string) string {
	if len(s) > 200 {
		s = s[:200]
	}
	return fmt.Sprintf("%q", s)
}

// Dir finds the folder of the segments: DATA/audit of a data folder, or the folder itself where it holds some.
func Dir(data string) string {
	main, refusals, _, err := segmentFiles(data)
	if err == nil && len(main)+len(refusals) > 0 {
		return data
	}
	return filepath.Join(data, "audit")
}
