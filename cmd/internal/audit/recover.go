// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"path/filepath"
	"strings"
	"time"
)

// suffixNew ends the names of files that are not segments yet. A start removes what it finds of them.
const suffixNew = ".new"

// tail is how a start found a stream.
type tail struct {
	names       []string // of the segments that hold something, oldest first
	last        string   // the newest of them; empty: the stream has none
	incarnation uint64   // of that segment
	header      journalMember
	first       bool  // that segment is the incarnation's first
	end         int64 // what it holds ends here
	whole       bool  // and it was trimmed there
	head        Head
	empty       []string   // segments behind it that hold nothing, newest first
	recovered   *Recovered // nil: nothing is to be dropped
}

// inspect reads the newest segment of a stream, and touches nothing.
func inspect(fs FS, dir, stream string) (tail, error) {
	names, err := segments(fs, dir, stream)
	if err != nil {
		return tail{}, err
	}
	var t tail
	for i := len(names) - 1; i >= 0; i-- {
		s, err := scan(fs, dir, names[i])
		if err != nil {
			return tail{}, err
		}
		if s.dropped != nil && t.recovered != nil { // a segment is begun when the one before it is durable
			what := "the end of a batch is missing, and the next segment was begun"
			return tail{}, &DamageError{File: filepath.Join(dir, names[i]), Offset: s.dropped.Offset, What: what}
		}
		if s.dropped != nil {
			t.recovered = s.dropped
		}
		if s.good == 0 {
			t.empty = append(t.empty, names[i])
			continue
		}
		t.names, t.last, t.incarnation, t.head = names[:i+1], names[i], s.header.Incarnation, s.head
		t.header, t.first, t.end, t.whole = s.header, s.starts, s.good, s.trimmed
		break
	}
	return t, nil
}

// repair makes durable what a stream holds: what a crash has torn off is dropped, and a segment that was not ended is written
// anew, since what reads back may be in the page cache only.
func (t *tail) repair(fs FS, dir string) error {
	if t.last != "" && !t.whole {
		if err := rewrite(fs, dir, t.last, t.end); err != nil {
			return err
		}
	}
	if len(t.empty) == 0 {
		return nil
	}
	for _, name := range t.empty {
		if err := fs.Remove(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("remove a segment without records: %w", err)
		}
	}
	if err := fs.SyncDir(dir); err != nil {
		return fmt.Errorf("remove a segment without records: %w", err)
	}
	return nil
}

// holds holds the stream, which reaches the head that is known of an incarnation, to that: the record has to be there, with
// its chain. What lies between it and the newest segment only Verify reads, and a record that is older than the first
// segment was removed at the end of its retention, of which Verify knows more.
func (t *tail) holds(fs FS, dir string, known Incarnation) error {
	at := -1
	for i, name := range t.names {
		if _, incarnation, first, _ := parseSegmentName(name); incarnation <= known.Incarnation && first <= known.Head.Seq {
			at = i
		}
	}
	when := known.HeadAt.UTC().Format(time.RFC3339)
	if at < 0 {
		if _, _, first, _ := parseSegmentName(t.names[0]); first > known.Head.Seq {
			return nil
		}
		return &DamageError{File: filepath.Join(dir, t.names[0]),
			What: fmt.Sprintf("no segment holds record %d of run %d, which the database saw on %s", known.Head.Seq, known.Incarnation, when)}
	}
	s, err := scanFor(fs, dir, t.names[at], known.Head.Seq)
	if err != nil {
		return err
	}
	file := filepath.Join(dir, t.names[at])
	switch {
	case s.met.Head != known.Head: // the chain says whose record it is, too
		return &DamageError{File: file, Offset: s.met.at,
			What: fmt.Sprintf("record %d is not the one of run %d that the database saw on %s: the journal was rewritten", known.Head.Seq, known.Incarnation, when)}
	case at == len(t.names)-2 && t.header.Previous != s.head:
		return &DamageError{File: filepath.Join(dir, t.last),
			What: fmt.Sprintf("the segment does not follow record %d: it or what was before it was replaced", s.head.Seq)}
	}
	return nil
}

// segments returns the names of a stream's segments, oldest first.
func segments(fs FS, dir, stream string) ([]string, error) {
	all, err := fs.Names(dir)
	if errors.Is(err, iofs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the journal's folder: %w", err)
	}
	var names []string
	for _, name := range all {
		if of, _, _, ok := parseSegmentName(name); ok && of == stream {
			names = append(names, name)
		}
	}
	return names, nil
}

// removeUnfinished removes what a crash has left of segments in the making.
func removeUnfinished(fs FS, dir string) error {
	all, err := fs.Names(dir)
	if err != nil {
		return fmt.Errorf("read the journal's folder: %w", err)
	}
	for _, name := range all {
		base, unfinished := strings.CutSuffix(name, suffixNew)
		if _, _, _, segment := parseSegmentName(base); unfinished && (segment || base == nextName(streamMain) || base == nextName(streamRefusals)) {
			if err := fs.Remove(filepath.Join(dir, name)); err != nil {
				return fmt.Errorf("remove an unfinished segment: %w", err)
			}
		}
	}
	return nil
}

// nextName is what the segment that is made ready is called, before suffixNew.
func nextName(stream string) string { return stream + "-next" }

// rewrite puts the first size bytes of a segment into a new file in its place.
func rewrite(fs FS, dir, name string, size int64) error {
	path := filepath.Join(dir, name)
	from, err := fs.Open(path)
	if err != nil {
		return fmt.Errorf("recover %s: %w", name, err)
	}
	to, err := fs.Create(path + suffixNew)
	if err != nil {
		return errors.Join(fmt.Errorf("recover %s: %w", name, err), from.Close())
	}
	buf := make([]byte, 256<<10)
	for off := int64(0); off < size && err == nil; {
		part := buf[:min(int64(len(buf)), size-off)]
		if _, err = io.ReadFull(io.NewSectionReader(from, off, int64(len(part))), part); err == nil {
			_, err = to.WriteAt(part, off)
		}
		off += int64(len(part))
	}
	if err == nil {
		err = to.Sync()
	}
	err = errors.Join(err, from.Close(), to.Close())
	if err == nil {
		err = fs.Rename(path+suffixNew, path)
	}
	if err == nil {
		err = fs.SyncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("recover %s: %w", name, err)
	}
	return nil
}

// scanned is what a segment holds.
type scanned struct {
	header  journalMember
	starts  bool       // its first record is the incarnation's
	head    Head       // the last record of the last whole batch
	good    int64      // bytes up to the end of that batch
	trimmed bool       // nothing is behind it: the segment was ended
	dropped *Recovered // what is behind it, unless that is empty
	met     place      // of the record that was asked for
}

// place is where a record lies, and its chain.
type place struct {
	Head
	at int64
}

// scanner reads a segment from its start.
type scanner struct {
	stream string
	first  uint64
	want   uint64 // a record whose place is asked for; 0: none
	at     int64  // of the line to be read
	head   Head   // of the last record read
	batch  []byte
	count  int
	scanned
}

// scan reads a segment up to the first place that is not what a writer leaves. That place is a torn end when nothing
// behind it says that it was durable; otherwise it is a DamageError. So a change in the very last batch of a journal that
// was not closed passes for a torn end, until a later frame speaks of that batch: within about a second, while there are
// records. What heads or a copy say of it, Verify holds against it.
func scan(fs FS, dir, name string) (scanned, error) { return scanFor(fs, dir, name, 0) }

// scanFor is scan, and notes where a record lies.
func scanFor(fs FS, dir, name string, want uint64) (_ scanned, err error) {
	path := filepath.Join(dir, name)
	stream, incarnation, first, ok := parseSegmentName(name)
	if !ok {
		return scanned{}, fmt.Errorf("%s is no segment", path)
	}
	f, err := fs.Open(path)
	if err != nil {
		return scanned{}, fmt.Errorf("read the journal: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size, err := f.Size()
	if err != nil {
		return scanned{}, fmt.Errorf("read the journal: %w", err)
	}
	s := scanner{stream: stream, first: first, want: want, head: Head{Seq: first - 1}}
	r := bufio.NewReaderSize(io.NewSectionReader(f, 0, size), MaxLine+1)
	what := ""
	for what == "" {
		line, err := r.ReadSlice('\n')
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, bufio.ErrBufferFull) {
			return scanned{}, fmt.Errorf("read %s: %w", path, err)
		}
		if err != nil || len(line) == 1 {
			break // the end of the file, of its records, or of all sense
		}
		if what = s.line(line[:len(line)-1]); what == "" {
			s.at += int64(len(line))
		}
	}
	if s.good > 0 && s.header.Incarnation != incarnation {
		return scanned{}, &DamageError{File: path, What: "its first record is of another incarnation than its name"}
	}
	end, sum, err := content(f, s.good, size)
	if err != nil {
		return scanned{}, fmt.Errorf("read %s: %w", path, err)
	}
	// Trimmed is what ends in a frame: a segment that still grows has a newline more.
	s.trimmed = size == s.good && s.good > 0
	if end == s.good {
		return s.scanned, nil
	}
	if what == "" {
		what = "the end of a batch is missing"
	}
	damage := &DamageError{File: path, Offset: s.at, What: what}
	ended, err := wasEnded(f, size)
	if err != nil {
		return scanned{}, fmt.Errorf("read %s: %w", path, err)
	}
	if ended {
		return scanned{}, damage
	}
	promised, err := s.promised(f, size)
	if err != nil {
		return scanned{}, fmt.Errorf("read %s: %w", path, err)
	}
	if promised {
		return scanned{}, damage
	}
	s.dropped = &Recovered{Segment: name, Offset: s.good, Bytes: end - s.good, SHA256: sum}
	return s.scanned, nil
}

// line takes the next line in and returns what is wrong with it.
func (s *scanner) line(line []byte) string {
	if isFrame(line) {
		f, err := parseFrame(line, s.batch)
		if err != nil || f.Bytes != len(s.batch) || f.Records != s.count || f.Seq != s.head.Seq || f.Chain != s.head.Chain {
			return errFrame.Error()
		}
		s.good = s.at + int64(len(line)) + 1
		s.scanned.head = s.head
		s.batch, s.count = s.batch[:0], 0
		return ""
	}
	if len(s.batch)+len(line) > 2*MaxBatch {
		return "a batch is too long"
	}
	seq, ok := recordNumber(line)
	if !ok {
		return "a line is no record"
	}
	if seq != s.head.Seq+1 {
		return fmt.Sprintf("record %d stands where %d belongs", seq, s.head.Seq+1)
	}
	if seq == s.first {
		if what := s.begin(line); what != "" {
			return what
		}
	}
	body, chain, ok := splitChain(line)
	if !ok || link(s.head.Chain, body) != chain {
		return "the chain is broken: a record was changed, or is missing"
	}
	s.head = Head{Seq: seq, Chain: chain}
	if seq == s.want {
		s.met = place{s.head, s.at}
	}
	s.batch = append(append(s.batch, line...), '\n')
	s.count++
	return ""
}

// begin reads the segment's first record, which says what it is chained to.
func (s *scanner) begin(line []byte) string {
	var record struct {
		Event   string         `json:"event"`
		Journal *journalMember `json:"journal"`
	}
	if err := json.Unmarshal(line, &record); err != nil || record.Journal == nil || record.Journal.Previous.Seq+1 != s.first {
		return "the first record does not say whose journal this is"
	}
	s.header = *record.Journal
	switch record.Event {
	case eventStart:
		s.starts = true
		s.head.Chain = s.header.genesis(s.stream, s.header.Previous)
	case eventSegment:
		s.head.Chain = s.header.Previous.Chain
	default:
		return "the first record does not say whose journal this is"
	}
	return ""
}

// promised reports whether a valid frame behind the last whole batch says that the batch after that was durable.
func (s *scanner) promised(f File, size int64) (bool, error) {
	r := bufio.NewReaderSize(io.NewSectionReader(f, s.good, size-s.good), MaxLine)
	at, fresh := s.good, true // fresh: at is the start of a line
	for {
		line, err := r.ReadSlice('\n')
		if fresh && err == nil && isFrame(line) {
			ok, err := s.attests(f, at, line[:len(line)-1])
			if ok || err != nil {
				return ok, err
			}
		}
		at, fresh = at+int64(len(line)), err == nil
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return false, err
		}
	}
}

// attests reports whether the frame at an offset is a valid one and says that the first batch that is not there was durable.
func (s *scanner) attests(f File, at int64, line []byte) (bool, error) {
	claimed, ok := readFrame(line)
	size := int64(claimed.Bytes)
	if !ok || size > min(at, 2*MaxBatch) {
		return false, nil
	}
	batch := make([]byte, size)
	if _, err := io.ReadFull(io.NewSectionReader(f, at-size, size), batch); err != nil {
		return false, err
	}
	frame, err := parseFrame(line, batch)
	return err == nil && frame.Synced > s.scanned.head.Seq && frame.Synced >= s.first, nil
}

// filling is what a segment holds where nothing was written: newlines, and the zeros that some file systems show of blocks
// that never reached the disk.
const filling = "\n\x00"

// unwritten reports whether a segment holds nothing but its filling. A segment has its name before the last batch of the one
// before is durable, and its own first batch only after that: what lies before one that was written to is whole.
func unwritten(r io.Reader) (bool, error) {
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		if len(bytes.TrimLeft(buf[:n], filling)) > 0 {
			return false, nil
		}
		if errors.Is(err, io.EOF) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
	}
}

// wasEnded reports whether no filling follows what a segment holds: it was trimmed, so that all of it was durable.
func wasEnded(f io.ReaderAt, size int64) (bool, error) {
	last := make([]byte, min(size, 2))
	if _, err := f.ReadAt(last, size-int64(len(last))); err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	held := len(bytes.TrimRight(last, filling))
	// The newline of the last line is its own.
	return held > 0 && (held == len(last) || last[held] == '\n'), nil
}

// content returns where what is behind from ends, its filling left aside, and its hash.
func content(f File, from, size int64) (end int64, sum string, err error) {
	end = from
	h := sha256.New()
	var blank []byte
	buf := make([]byte, 64<<10)
	for off := from; off < size; {
		part := buf[:min(int64(len(buf)), size-off)]
		if _, err := io.ReadFull(io.NewSectionReader(f, off, int64(len(part))), part); err != nil {
			return 0, "", err
		}
		if n := len(bytes.TrimRight(part, filling)); n > 0 {
			h.Write(blank)
			h.Write(part[:n])
			blank = append(blank[:0], part[n:]...)
			end = off + int64(n)
		} else {
			blank = append(blank, part...)
		}
		off += int64(len(part))
	}
	// The newline of a last whole line is its own.
	if end > from && len(blank) > 0 && blank[0] == '\n' {
		h.Write(blank[:1])
		end++
	}
	return end, base64.RawURLEncoding.EncodeToString(h.Sum(nil)), nil
}
