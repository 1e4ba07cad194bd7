// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"
)

// Bounds of one call of Search.
const (
	MaxPage     = 1000      // records of one page
	maxPageText = 4 << 20   // bytes of their lines
	maxScan     = 256 << 20 // bytes of segments that are read for one page
)

// clockSkew is how far the clock may have been set back: segments are skipped by the time of their first record, and
// records in one that was written meanwhile are still found.
const clockSkew = time.Hour

// Filter says which records are looked for. Empty members do not matter; all others have to fit.
type Filter struct {
	Client, Actor, Thumbprint, TokenID, Serial string
	Event, Outcome, Reason, Correlation        string    // Event may end in an asterisk: client.*
	Since, Until                               time.Time // Until is not included
	Refusals                                   bool      // look through the refusals of strangers instead
}

// Query asks for one page of records.
type Query struct {
	Filter
	// After asks for the records after that number, in their order. Otherwise the newest ones are looked for, of those
	// before Before, where that is not zero.
	Forward       bool
	After, Before uint64
	Limit         int // at most MaxPage; zero: MaxPage
}

// Page answers a Query: records in their order.
type Page struct {
	Entries []*Entry
	// Next is where to go on, After or Before of the next query. Done says that there is nothing more there now; a page
	// may be empty and not the last, because one call looks through a bounded number of bytes.
	Next uint64
	Done bool
}

// Reader looks through the segments of a journal, that of a running service or a copy, changing nothing. It does not
// verify them. It is safe for concurrent use.
type Reader struct {
	// Dir is the folder of the segments.
	Dir string
	// Opener opens what is sealed; nil leaves it as it is.
	Opener *Opener
}

// needles are texts that a line has to hold to fit; they save parsing most lines.
func (f *Filter) needles() [][]byte {
	var needles [][]byte
	for name, value := range map[string]string{
		"client": f.Client, "actor": f.Actor, "x5t#S256": f.Thumbprint, "jti": f.TokenID, "serial": f.Serial,
		"event": f.Event, "outcome": f.Outcome, "reason": f.Reason, "correlation": f.Correlation,
	} {
		if value == "" {
			continue
		}
		w := encoder{b: []byte{'{'}}
		prefix, open := strings.CutSuffix(value, "*")
		if name == "event" && open {
			w.member(name)
			w.value(prefix)
			w.b = w.b[:len(w.b)-1]
		} else {
			w.string(name, value)
		}
		needles = append(needles, w.b[1:])
	}
	// The longest is the rarest.
	slices.SortFunc(needles, func(a, b []byte) int { return len(b) - len(a) })
	return needles
}

// fits says whether a record is one that is looked for.
func (f *Filter) fits(e *Entry) bool {
	for _, pair := range [][2]string{
		{f.Client, e.Client}, {f.Actor, e.Actor}, {f.Thumbprint, e.Thumbprint}, {f.TokenID, e.TokenID}, {f.Serial, e.Serial},
		{f.Outcome, e.Outcome}, {f.Reason, e.Reason}, {f.Correlation, e.Correlation},
	} {
		if pair[0] != "" && pair[0] != pair[1] {
			return false
		}
	}
	if prefix, open := strings.CutSuffix(f.Event, "*"); f.Event != "" && f.Event != e.Name && !(open && strings.HasPrefix(e.Name, prefix)) {
		return false
	}
	return (f.Since.IsZero() || !e.Time.Before(f.Since)) && (f.Until.IsZero() || e.Time.Before(f.Until))
}

// search is one call of Search.
type search struct {
	*Reader
	q       Query
	needles [][]byte
	read    int64 // bytes
	page    Page
	text    int // bytes of the page's lines
}

// Search returns one page. It blocks for reading at most 256 MiB. Segments whose records are all too old, or too young,
// are not read; within the others every line is looked at, at several hundred megabytes a second. A record is found once
// its batch is whole.
func (r *Reader) Search(ctx context.Context, q Query) (*Page, error) {
	if q.Limit <= 0 || q.Limit > MaxPage {
		q.Limit = MaxPage
	}
	s := &search{Reader: r, q: q, needles: q.needles()}
	const attempts = 3
	var err error
	for attempt := 1; ; attempt++ {
		s.page, s.text, s.read = Page{}, 0, 0
		err = s.run(ctx)
		if errors.Is(err, fs.ErrNotExist) && attempt < attempts {
			if _, missing := os.Stat(r.Dir); missing == nil {
				continue // a segment was removed at the end of its retention
			}
		}
		if err != nil {
			return nil, fmt.Errorf("search the journal: %w", err)
		}
		break
	}
	entries := s.page.Entries[:0]
	for _, e := range s.page.Entries {
		if e.Name == "" { // it was not looked into yet
			if e, err = ParseEntry(e.Line); err != nil {
				continue // what is no JSON is none
			}
		}
		r.open(ctx, e)
		entries = append(entries, e)
	}
	s.page.Entries = entries
	return &s.page, nil
}

func (s *search) run(ctx context.Context) error {
	main, refusals, _, err := segmentFiles(s.Dir)
	if err != nil {
		return err
	}
	files := main
	if s.q.Refusals {
		files = refusals
	}
	if s.q.Forward {
		return s.forward(ctx, files)
	}
	return s.backward(ctx, files)
}

// forward takes records after q.After until the page is full.
func (s *search) forward(ctx context.Context, files []segmentFile) error {
	s.page.Next = s.q.After
	begin := 0
	for i, f := range files {
		if f.first <= s.q.After+1 {
			begin = i
		}
	}
	for i := begin; i < len(files); i++ {
		if skip, err := s.skipped(files, i); err != nil {
			return err
		} else if skip {
			s.page.Next = max(s.page.Next, after(files, i))
			continue
		}
		full, err := s.scan(ctx, files[i], func(seq uint64, e *Entry) bool {
			if seq <= s.q.After {
				return true
			}
			if e != nil {
				if len(s.page.Entries) == s.q.Limit || s.text > 0 && s.text+len(e.Line) > maxPageText {
					return false
				}
				s.page.Entries = append(s.page.Entries, e)
				s.text += len(e.Line)
			}
			s.page.Next = seq
			return s.read < maxScan
		})
		if full || err != nil {
			return err
		}
	}
	s.page.Done = true
	return nil
}

// after is the last record of a segment that another one follows, else 0.
func after(files []segmentFile, i int) uint64 {
	if i+1 < len(files) {
		return files[i+1].first - 1
	}
	return 0
}

// backward takes the newest records before q.Before.
func (s *search) backward(ctx context.Context, files []segmentFile) error {
	for i := len(files) - 1; i >= 0; i-- {
		if s.q.Before != 0 && files[i].first >= s.q.Before {
			continue
		}
		if skip, err := s.skipped(files, i); err != nil {
			return err
		} else if skip {
			continue
		}
		var newest []*Entry // of this segment
		room, text, cut := s.q.Limit-len(s.page.Entries), s.text, false
		_, err := s.scan(ctx, files[i], func(seq uint64, e *Entry) bool {
			if s.q.Before != 0 && seq >= s.q.Before {
				return false
			}
			if e == nil {
				return true
			}
			newest = append(newest, e)
			text += len(e.Line)
			for len(newest) > room || text > maxPageText && len(newest)+len(s.page.Entries) > 1 {
				text -= len(newest[0].Line)
				newest, cut = newest[1:], true
			}
			return true
		})
		if err != nil {
			return err
		}
		s.text = text
		s.page.Entries = append(slices.Clone(newest), s.page.Entries...)
		switch {
		case cut || len(s.page.Entries) == s.q.Limit:
			s.page.Next = s.page.Entries[0].Seq
			return nil
		case s.read >= maxScan:
			s.page.Next, s.page.Done = files[i].first, i == 0
			return nil
		}
	}
	s.page.Done = true
	return nil
}

// skipped says whether a segment holds nothing of the time that is looked for.
func (s *search) skipped(files []segmentFile, i int) (bool, error) {
	if !s.q.Until.IsZero() {
		begins, err := s.begins(files[i])
		if err != nil || !begins.IsZero() && begins.After(s.q.Until.Add(clockSkew)) {
			return err == nil, err
		}
	}
	if !s.q.Since.IsZero() && i+1 < len(files) {
		ends, err := s.begins(files[i+1])
		if err != nil || !ends.IsZero() && ends.Before(s.q.Since.Add(-clockSkew)) {
			return err == nil, err
		}
	}
	return false, nil
}

// begins reads the time of a segment's first record, zero when it has none.
func (s *search) begins(f segmentFile) (time.Time, error) {
	file, err := openSegment(s.Dir, f)
	if err != nil {
		return time.Time{}, err
	}
	defer file.Close()
	start := make([]byte, 256)
	n, err := file.ReadAt(start, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return time.Time{}, err
	}
	return lineTime(start[:n]), nil
}

// scan reads a segment and gives take every record of whole batches, as nil unless it is one that is looked for, until
// take says false: then it returns true.
func (s *search) scan(ctx context.Context, f segmentFile, take func(seq uint64, e *Entry) bool) (bool, error) {
	file, err := openSegment(s.Dir, f)
	if err != nil {
		return false, err
	}
	defer file.Close()
	start := int64(0)
	if s.q.Forward && s.q.After >= f.first {
		if start, err = seekRecord(file, s.q.After); err != nil {
			return false, err
		}
	}
	if _, err := file.Seek(start, io.SeekStart); err != nil {
		return false, err
	}
	type found struct {
		seq   uint64
		entry *Entry
	}
	var batch []found // records whose frame is still to come
	lines := newLineReader(file, start, 0)
	for {
		line, whole, err := lines.next()
		switch {
		case errors.Is(err, io.EOF):
			return false, nil
		case errors.Is(err, errLongLine):
			continue
		case err != nil:
			return false, err
		case whole && len(line) == 0: // behind a damaged place there may be more
			if more, err := lines.skipBlank(); !more || err != nil {
				return false, err
			}
			continue
		}
		s.read += int64(len(line)) + 1
		if whole && isFrame(line) {
			for _, b := range batch {
				if !take(b.seq, b.entry) {
					return true, nil
				}
			}
			batch = batch[:0]
			if err := ctx.Err(); err != nil {
				return false, err
			}
			continue
		}
		seq, ok := recordNumber(line)
		if !ok || !whole || len(batch) > MaxBatch/2 { // no record takes less than two bytes
			continue
		}
		batch = append(batch, found{seq, s.look(seq, line)})
	}
}

// look returns the record of a line when it is one that is looked for. What is no JSON is none. Where every record is looked
// for, most of them may not be in the page: then it is the line alone.
func (s *search) look(seq uint64, line []byte) *Entry {
	for _, needle := range s.needles {
		if !bytes.Contains(line, needle) {
			return nil
		}
	}
	if len(s.needles) == 0 && line[len(line)-1] == '}' {
		at := lineTime(line)
		switch {
		case at.IsZero():
		case !s.q.Since.IsZero() && at.Before(s.q.Since), !s.q.Until.IsZero() && !at.Before(s.q.Until):
			return nil
		default:
			return &Entry{Seq: seq, Time: at, Line: bytes.Clone(line)}
		}
	}
	e, err := ParseEntry(bytes.Clone(line))
	if err != nil || !s.q.fits(e) {
		return nil
	}
	return e
}

// seekRecord returns the offset of a line at or before the record after that number, near it where the segment is whole.
func seekRecord(f *os.File, number uint64) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	const near = 512 << 10
	window := make([]byte, 2*maxLine)
	low, high := int64(0), info.Size() // what lies at low is at or before number
	for high-low > near {
		middle := low + (high-low)/2
		n, err := f.ReadAt(window, middle)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		at, seq := recordIn(window[:n])
		if at < 0 || seq > number {
			high = middle
			continue
		}
		low = middle + int64(at)
	}
	return low, nil
}

// recordIn finds the first line in a piece of a segment that begins a record, -1 for none.
func recordIn(piece []byte) (int, uint64) {
	for at := 0; ; {
		next := bytes.Index(piece[at:], []byte("\n"+recordStart))
		if next < 0 {
			return -1, 0
		}
		at += next + 1
		if seq, ok := recordNumber(piece[at:]); ok {
			return at, seq
		}
	}
}

// open replaces what is sealed in a record by what it says, or by why that cannot be told.
func (r *Reader) open(ctx context.Context, e *Entry) {
	if r.Opener == nil || e.Sealed == "" {
		return
	}
	sealed := append(append([]byte(`,"sealed":"`), e.Sealed...), '"')
	at := bytes.LastIndex(e.Line, sealed)
	if at < 0 {
		return
	}
	w := encoder{b: []byte{'{'}}
	p, err := r.Opener.Open(ctx, e.Sealed, e.Time, e.Client, e.Actor)
	switch {
	case err == nil:
		e.Address, e.Personal, e.Sealed = p.Address, p.Members, ""
		w.string("address", p.Address)
		w.object("personal", p.Members)
	case errors.Is(err, ErrErased):
		e.Sealed = "erased"
		w.string("sealed", e.Sealed)
	default:
		return
	}
	opened := slices.Clone(e.Line[:at])
	if len(w.b) > 1 {
		opened = append(append(opened, ','), w.b[1:]...)
	}
	e.Line = append(opened, e.Line[at+len(sealed):]...)
}
