// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
)

// The records that a journal writes about itself.
const (
	eventStart      = "journal.start"      // the first of an incarnation
	eventSegment    = "journal.segment"    // the first of every further segment
	eventStop       = "journal.stop"       // of a clean end
	eventCheckpoint = "journal.checkpoint" // carries a Checkpoint
	eventRefusals   = "journal.refusals"   // says where the stream of refusals stands
	eventGap        = "journal.gap"        // says how many refusals were left out, for want of room
	eventWitness    = "journal.witness"    // says where another replica's journal stood
)

// The bounds of what a segment holds.
const (
	MaxLine  = 128 << 10 // bytes of a record's line
	MaxBatch = 1 << 20   // bytes of the records between two frames
)

// journalMember is the member "journal" of a segment's first record, by which a segment can be checked alone.
type journalMember struct {
	Identity
	Previous  Head       `json:"previous"`      // where the stream stood before this record
	Key       string     `json:"key,omitempty"` // that the next checkpoint is signed with; none in the stream of refusals
	Recovered *Recovered `json:"recovered,omitempty"`
	Loss      *Loss      `json:"loss,omitempty"`
}

// Recovered says what a start dropped: the end of a segment that a crash had torn and that was never said to be durable.
type Recovered struct {
	Segment string `json:"segment"`
	Offset  int64  `json:"offset"`
	Bytes   int64  `json:"dropped_bytes"`
	SHA256  string `json:"dropped_sha256"` // base64url
}

// Loss says what a start went on without because it was told to: records that were known outside the journal.
type Loss struct {
	Incarnation uint64 `json:"incarnation"` // that was the newest known
	Known       Head   `json:"known"`       // where it stood
	KnownAt     string `json:"known_at"`    // and when
	Found       Head   `json:"found"`       // where the journal ended
}

// headText is a Head in JSON.
type headText struct {
	Seq   uint64 `json:"seq"`
	Chain string `json:"chain"`
}

// MarshalJSON writes the chain as base64url.
func (h Head) MarshalJSON() ([]byte, error) {
	return json.Marshal(headText{h.Seq, chainString(h.Chain)})
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (h *Head) UnmarshalJSON(b []byte) error {
	var text headText
	if err := json.Unmarshal(b, &text); err != nil {
		return err
	}
	chain, ok := parseChain([]byte(text.Chain))
	if !ok {
		return errors.New("the chain of a head is malformed")
	}
	h.Seq, h.Chain = text.Seq, chain
	return nil
}

// output is a segment that is written to.
type output struct {
	file   File
	name   string // without the folder
	end    int64  // where the next batch goes
	filled int64  // newlines reach to here, durably
}

// newlines is what segments are filled with.
var newlines = bytes.Repeat([]byte{'\n'}, 64<<10)

// fill writes newlines from off up to target and returns how far it came.
func fill(f File, off, target int64) (int64, error) {
	for off < target {
		n, err := f.WriteAt(newlines[:min(int64(len(newlines)), target-off)], off)
		off += int64(n)
		if err != nil {
			return off, fmt.Errorf("fill a segment: %w", err)
		}
	}
	return off, nil
}

// room is how many bytes of records and frames can go into the segment. A newline always stays behind them: by that one
// sees that it was not trimmed.
func (o *output) room() int64 { return o.filled - 1 - o.end }

// createFilled makes a file of newlines under a name that is no segment's, with text before them, and syncs it.
func createFilled(fs FS, dir, name string, text []byte, size int64) (*output, error) {
	path := filepath.Join(dir, name)
	f, err := fs.Create(path)
	if err != nil {
		return nil, fmt.Errorf("create a segment: %w", err)
	}
	o := &output{file: f, name: name, end: int64(len(text)), filled: max(size, int64(len(text))+1)}
	_, err = f.WriteAt(text, 0)
	if err == nil {
		_, err = fill(f, o.end, o.filled)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create a segment: %w", err), f.Close(), fs.Remove(path))
	}
	return o, nil
}

// trim ends a segment behind its last frame. All of it must be durable: whoever finds it trimmed relies on that.
func (o *output) trim() error {
	err := o.file.Truncate(o.end)
	if err == nil {
		err = o.file.Sync()
	}
	if err = errors.Join(err, o.file.Close()); err != nil {
		return fmt.Errorf("end the segment %s: %w", o.name, err)
	}
	return nil
}
