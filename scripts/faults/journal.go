// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A record is what of a journal's record is held against the book.
type record struct {
	Seq         uint64    `json:"seq"`
	Time        time.Time `json:"time"`
	ID          string    `json:"id"`
	Event       string    `json:"event"`
	Outcome     string    `json:"outcome"`
	Reason      string    `json:"reason"`
	Client      string    `json:"client"`
	Thumbprint  string    `json:"x5t#S256"`
	Correlation string    `json:"correlation"`
	TokenID     string    `json:"jti"`
	Serial      string    `json:"serial"`
	Detail      struct {
		Changed string `json:"changed"`
	} `json:"detail"`
}

// A journal is the main stream of a data folder, whose service has ended, by what is looked for in it.
type journal struct {
	segments, records int
	all               []record
	tokens            map[string][]record // by jti
	certs             map[string][]record // what issued a certificate, by serial number
	revoked           map[string]int      // by serial number
	changes           map[[2]string]int   // granted, by event and correlation
	clients           map[[2]string]int   // granted, by event and client
	ids               map[string]int
	twice             int // events that stand in several journals which were merged
	last              uint64
	problems          []string
}

func newJournal() *journal {
	return &journal{
		tokens: make(map[string][]record), certs: make(map[string][]record), revoked: make(map[string]int),
		changes: make(map[[2]string]int), clients: make(map[[2]string]int), ids: make(map[string]int),
	}
}

// merge adds what another replica's journal holds. A replica that takes over what a dead one had not brought to its
// journal, or had and did not live to say so, may record an event again: the same number, one event.
func (j *journal) merge(other *journal, name string) {
	j.segments += other.segments
	for _, r := range other.all {
		if r.ID != "" && j.ids[r.ID] > 0 {
			j.twice++
			continue
		}
		j.take(r)
	}
	for id, n := range other.ids {
		if n > 1 {
			j.problems = append(j.problems, fmt.Sprintf("%sevent %s is on record %d times", name, id, n))
		}
	}
	for _, problem := range other.problems {
		j.problems = append(j.problems, name+problem)
	}
}

// segments lists a journal's files, in the order of their records.
func segments(dir string) ([]string, error) {
	names, err := filepath.Glob(filepath.Join(dir, "audit-*.jsonl"))
	slices.Sort(names)
	if err == nil && len(names) == 0 {
		err = fmt.Errorf("no journal in %s", dir)
	}
	return names, err
}

func readJournal(dir string) (*journal, error) {
	names, err := segments(dir)
	if err != nil {
		return nil, err
	}
	j := newJournal()
	for _, name := range names {
		if err := j.readSegment(name); err != nil {
			return nil, err
		}
	}
	j.segments = len(names)
	return j, nil
}

// readSegment reads the records of a file. Frames are lines of their own, and what was filled beforehand is empty lines.
func (j *journal) readSegment(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 1<<20)
	for number := 1; ; number++ {
		line, err := r.ReadSlice('\n')
		if errors.Is(err, io.EOF) && len(line) == 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s, line %d: %w", name, number, err)
		}
		line = bytes.TrimSuffix(line, []byte("\n"))
		if len(line) == 0 || bytes.HasPrefix(line, []byte(`{"frame":`)) {
			continue
		}
		var rec record
		if err := json.Unmarshal(line, &rec); err != nil {
			return fmt.Errorf("%s, line %d: %w", name, number, err)
		}
		j.add(rec)
	}
}

func (j *journal) add(r record) {
	if r.Seq != j.last+1 {
		j.problems = append(j.problems, fmt.Sprintf("record %d follows record %d", r.Seq, j.last))
	}
	j.last = r.Seq
	j.take(r)
}

// take files a record, wherever it stands.
func (j *journal) take(r record) {
	j.records++
	j.all = append(j.all, r)
	if r.ID != "" {
		j.ids[r.ID]++
	}
	if r.Outcome != "granted" {
		return
	}
	noun, _, _ := strings.Cut(r.Event, ".")
	switch {
	case r.TokenID != "":
		j.tokens[r.TokenID] = append(j.tokens[r.TokenID], r)
	case noun == "cert" && r.Event != revokeEvent && r.Reason != "repeated":
		j.certs[r.Serial] = append(j.certs[r.Serial], r)
	case r.Event == revokeEvent && r.Detail.Changed != "nothing":
		j.revoked[r.Serial]++
	}
	j.changes[[2]string{r.Event, r.Correlation}]++
	j.clients[[2]string{r.Event, r.Client}]++
}
