// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// maxLine bounds a line that is read, and is how much of a file is read at once.
const maxLine = 2 * MaxLine

// segmentFile is a file of the journal.
type segmentFile struct {
	name, stream       string
	incarnation, first uint64
}

// segmentFiles lists a stream's segments in the order of their records, and what else lies in the folder.
func segmentFiles(dir string) (main, refusals []segmentFile, others []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, nil, err
	}
	for _, entry := range entries {
		f := segmentFile{name: entry.Name()}
		var ok bool
		f.stream, f.incarnation, f.first, ok = parseSegmentName(f.name)
		switch {
		case !ok || !entry.Type().IsRegular():
			others = append(others, f.name)
		case f.stream == streamMain:
			main = append(main, f)
		default:
			refusals = append(refusals, f)
		}
	}
	for _, files := range [][]segmentFile{main, refusals} {
		slices.SortFunc(files, func(a, b segmentFile) int {
			return cmp.Or(cmp.Compare(a.incarnation, b.incarnation), cmp.Compare(a.first, b.first))
		})
	}
	return main, refusals, others, nil
}

var errLongLine = errors.New("the line is longer than any record")

// lineReader reads the lines of a segment with bounded memory, and knows where each one is.
type lineReader struct {
	r      *bufio.Reader
	offset int64 // where the line returned last begins
	number int   // its number, from 1
	end    int64 // where the one after it begins
}

// newLineReader reads r, of which offset is the first byte and follows that many lines.
func newLineReader(r io.Reader, offset int64, lines int) *lineReader {
	return &lineReader{r: bufio.NewReaderSize(r, maxLine), end: offset, number: lines}
}

// reset has it read r from its beginning, with the memory it has.
func (l *lineReader) reset(r io.Reader) {
	l.r.Reset(r)
	l.offset, l.number, l.end = 0, 0, 0
}

// next returns the next line without its newline, valid until the next call, and whether it had one. At the end it
// returns io.EOF, for a line that is too long, of which nothing is kept, errLongLine.
func (l *lineReader) next() (line []byte, whole bool, err error) {
	l.offset = l.end
	l.number++
	line, err = l.r.ReadSlice('\n')
	l.end += int64(len(line))
	long := false
	for errors.Is(err, bufio.ErrBufferFull) {
		long = true
		line, err = l.r.ReadSlice('\n')
		l.end += int64(len(line))
	}
	switch {
	case long && (err == nil || errors.Is(err, io.EOF)):
		return nil, true, errLongLine
	case err == nil:
		return line[:len(line)-1], true, nil
	case errors.Is(err, io.EOF) && len(line) > 0:
		return line, false, nil
	}
	return nil, false, err
}

// skipBlank skips newlines and returns whether anything follows them.
func (l *lineReader) skipBlank() (more bool, err error) {
	for {
		if _, err := l.r.Peek(1); err != nil { // it fills the buffer
			if errors.Is(err, io.EOF) {
				return false, nil
			}
			return false, err
		}
		ahead, err := l.r.Peek(l.r.Buffered())
		if err != nil {
			return false, err
		}
		n := len(ahead) - len(bytes.TrimLeft(ahead, "\n"))
		if _, err := l.r.Discard(n); err != nil {
			return false, err
		}
		l.end += int64(n)
		l.number += n
		if n < len(ahead) {
			return true, nil
		}
	}
}

// splitRecord takes a record's line apart: its number, what its chain covers, and the chain. It says false for what is
// no record.
func splitRecord(line []byte) (seq uint64, body []byte, chain [32]byte, ok bool) {
	seq, ok = recordNumber(line)
	if !ok {
		return 0, nil, chain, false
	}
	body, chain, ok = splitChain(line)
	return seq, body, chain, ok && !bytes.ContainsRune(line, 0)
}

// batch is what was read of a batch whose frame is still to come.
type batch struct {
	start   int64  // where it begins
	line    int    // the number of its first line, from 1
	first   uint64 // its first record; 0 when there is none
	records int
	bytes   int
	sum     uint32 // CRC-32C of its lines
	bad     bool   // something in it was found wrong and said
}

func (b *batch) add(seq uint64, line []byte) {
	if b.records == 0 {
		b.first = seq
	}
	table := crc32.MakeTable(crc32.Castagnoli)
	b.sum = crc32.Update(crc32.Update(b.sum, table, line), table, []byte{'\n'})
	b.bytes += len(line) + 1
	b.records++
}

// closedBy says whether the line is the frame of this batch, whose last record stands at head.
func (b *batch) closedBy(line []byte, head Head) bool {
	f, ok := readFrame(line)
	if !ok || f.Records != b.records || f.Bytes != b.bytes || f.Seq != head.Seq || f.Chain != head.Chain {
		return false
	}
	want := appendFrame(nil, &f, nil)
	body := want[:bytes.LastIndex(want, []byte(crcMember))]
	sum := crc32.Update(b.sum, crc32.MakeTable(crc32.Castagnoli), body)
	return string(line) == fmt.Sprintf("%s%s%08x\"}}", body, crcMember, sum)
}

// Entry is a record as readers see it.
type Entry struct {
	Seq         uint64            `json:"seq"`
	Time        time.Time         `json:"time"`
	ID          string            `json:"id"`
	Name        string            `json:"event"`
	Outcome     string            `json:"outcome"`
	Reason      string            `json:"reason"`
	Client      string            `json:"client"`
	Actor       string            `json:"actor"`
	Thumbprint  string            `json:"x5t#S256"`
	Address     string            `json:"address"`
	Correlation string            `json:"correlation"`
	TokenID     string            `json:"jti"`
	Serial      string            `json:"serial"`
	Resource    string            `json:"resource"`
	Scope       []string          `json:"scope"`
	Audience    []string          `json:"aud"`
	Expires     time.Time         `json:"expires"`
	Count       int               `json:"count"`   // how many decisions alike this one stands for; 0: itself
	Version     int64             `json:"version"` // of the database, which the decision changed; 0: it did not
	Truncated   bool              `json:"truncated"`
	Detail      map[string]string `json:"detail"`
	Personal    map[string]string `json:"personal"`
	Sealed      string            `json:"sealed"`

	Journal    *journalMember `json:"journal"`
	Checkpoint *Checkpoint    `json:"checkpoint"`

	// Line is the record's line without its newline.
	Line []byte `json:"-"`
}

// ParseEntry reads a record's line. The entry keeps the line.
func ParseEntry(line []byte) (*Entry, error) {
	if len(line) > maxLine {
		return nil, errLongLine
	}
	e := new(Entry)
	if err := json.Unmarshal(line, e); err != nil {
		return nil, fmt.Errorf("a record of the journal: %w", err)
	}
	e.Line = line
	return e, nil
}

// openSegment opens a segment for reading.
func openSegment(dir string, f segmentFile) (*os.File, error) {
	file, err := os.Open(filepath.Join(dir, f.name))
	if err != nil {
		return nil, err
	}
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(&fs.PathError{Op: "read", Path: f.name, Err: errNotRegular}, err, file.Close())
	}
	return file, nil
}
