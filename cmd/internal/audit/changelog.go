// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// ChangeLog finds in the journals of several replicas the records of what changed the database, and gives them in the order
// of those changes. It keeps where they are, about 50 bytes for each, and reads them again. It does not verify the
// journals: Verify has done that before. It is for one goroutine; the folders must stay as they are.
type ChangeLog struct {
	files []string
	found []changeAt
}

// changeAt is where a record lies.
type changeAt struct {
	version int64
	seq     uint64
	offset  int64
	length  int32
	file    int32
}

// ChangeFolder is what Add saw in a folder.
type ChangeFolder struct {
	Changes int    // records that were taken
	Newest  int64  // the highest version that any record is of
	Last    uint64 // sequence number of the last record
	// Missing and Contradicted are the heads, of those that were asked for, that the journal does not reach, and those
	// where it has another chain.
	Missing, Contradicted []Head
	// Witnessed are the heads of other replicas' journals that this one speaks of, the newest of each.
	Witnessed []WitnessedHead
}

// WitnessedHead is how far another replica's journal is known to have come.
type WitnessedHead struct {
	Identity
	Seq uint64 // zero: its incarnation was begun
}

var (
	versionMember = []byte(`,"version":`)
	witnessEvent  = []byte(`"event":"journal.witness"`)
)

// Add takes in, of the journal in a folder, the records of changes that want says yes to. heads are records that the
// journal is known to have had; those that it begins after are not missing. It reads all of it.
func (c *ChangeLog) Add(ctx context.Context, dir string, heads []Head, want func(*Entry) bool) (ChangeFolder, error) {
	var out ChangeFolder
	main, _, _, err := segmentFiles(dir)
	if err != nil {
		return out, fmt.Errorf("read the journal: %w", err)
	}
	open := make(map[uint64][32]byte)
	for _, h := range heads {
		open[h.Seq] = h.Chain
	}
	if len(main) > 0 {
		for seq := range open {
			if seq < main[0].first {
				delete(open, seq)
			}
		}
	}
	for _, f := range main {
		if err := c.scan(ctx, dir, f, want, open, &out); err != nil {
			return out, fmt.Errorf("read %s: %w", filepath.Join(dir, f.name), err)
		}
	}
	for seq, chain := range open {
		out.Missing = append(out.Missing, Head{seq, chain})
	}
	slices.SortFunc(out.Missing, func(a, b Head) int { return cmp.Compare(a.Seq, b.Seq) })
	return out, nil
}

// scan reads one segment. What no frame closes was torn off by a crash, and nobody was told that it is durable.
func (c *ChangeLog) scan(ctx context.Context, dir string, f segmentFile, want func(*Entry) bool, open map[uint64][32]byte, out *ChangeFolder) error {
	file, err := openSegment(dir, f)
	if err != nil {
		return err
	}
	defer file.Close()
	c.files = append(c.files, filepath.Join(dir, f.name))
	at := int32(len(c.files) - 1)
	var batch []changeAt
	lines := newLineReader(file, 0, 0)
	for {
		line, whole, err := lines.next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, errLongLine):
			continue
		case err != nil:
			return err
		case whole && len(line) == 0:
			if more, err := lines.skipBlank(); !more || err != nil {
				return err
			}
			continue
		case whole && isFrame(line):
			c.found, batch = append(c.found, batch...), batch[:0]
			if err := ctx.Err(); err != nil {
				return err
			}
			continue
		}
		seq, _, chain, ok := splitRecord(line)
		if !ok || !whole {
			continue
		}
		out.Last = seq
		if expected, is := open[seq]; is {
			delete(open, seq)
			if expected != chain {
				out.Contradicted = append(out.Contradicted, Head{seq, expected})
			}
		}
		if bytes.Contains(line, witnessEvent) {
			out.witness(line)
		}
		if !bytes.Contains(line, versionMember) {
			continue
		}
		e, err := ParseEntry(line)
		if err != nil || e.Version <= 0 {
			continue
		}
		out.Newest = max(out.Newest, e.Version)
		if want(e) {
			out.Changes++
			batch = append(batch, changeAt{e.Version, seq, lines.offset, int32(len(line)), at})
		}
	}
}

// witness notes whose journal a record speaks of.
func (out *ChangeFolder) witness(line []byte) {
	var record struct {
		Witness struct {
			Identity
			Head struct {
				Seq uint64 `json:"seq"`
			} `json:"head"`
		} `json:"witness"`
	}
	if json.Unmarshal(line, &record) != nil || record.Witness.Replica == "" {
		return
	}
	said := WitnessedHead{record.Witness.Identity, record.Witness.Head.Seq}
	for i := range out.Witnessed {
		w := &out.Witnessed[i]
		if w.Installation != said.Installation || w.Replica != said.Replica {
			continue
		}
		if said.Incarnation > w.Incarnation || said.Incarnation == w.Incarnation && said.Seq > w.Seq {
			*w = said
		}
		return
	}
	out.Witnessed = append(out.Witnessed, said)
}

// Each gives f the records that were taken in, in the order of the versions that they made. A record that two journals have
// is given once. File says where one lies.
func (c *ChangeLog) Each(ctx context.Context, f func(e *Entry, file string) error) error {
	slices.SortFunc(c.found, func(a, b changeAt) int {
		return cmp.Or(cmp.Compare(a.version, b.version), cmp.Compare(a.file, b.file), cmp.Compare(a.seq, b.seq))
	})
	opened := make(map[int32]*os.File)
	defer func() {
		for _, file := range opened {
			file.Close()
		}
	}()
	given := make(map[string]bool) // of one version
	for i, at := range c.found {
		if i == 0 || c.found[i-1].version != at.version {
			clear(given)
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		file := opened[at.file]
		if file == nil {
			if len(opened) == maxOpened {
				for n, other := range opened {
					other.Close()
					delete(opened, n)
				}
			}
			var err error
			if file, err = os.Open(c.files[at.file]); err != nil {
				return fmt.Errorf("read the journal again: %w", err)
			}
			opened[at.file] = file
		}
		line := make([]byte, at.length)
		if _, err := file.ReadAt(line, at.offset); err != nil {
			return fmt.Errorf("read %s again: %w", c.files[at.file], err)
		}
		e, err := ParseEntry(line)
		if err != nil || e.Seq != at.seq {
			return &fs.PathError{Op: "read", Path: c.files[at.file], Err: errors.New("it was changed meanwhile")}
		}
		if e.ID != "" && given[e.ID] {
			continue
		}
		given[e.ID] = true
		if err := f(e, c.files[at.file]); err != nil {
			return err
		}
	}
	return nil
}

// maxOpened bounds the segments that are open at once.
const maxOpened = 64
