// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func openLog(t *testing.T, dir string) *Log {
	t.Helper()
	l, err := Open(t.Context(), Config{
		Dir: dir, Installation: "inst", Replica: "r1", Sync: Interval, SyncInterval: time.Millisecond,
		SegmentBytes: minSegmentBytes, Fatal: func(err error) { t.Error(err) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// busy records decisions and refusals of strangers from several goroutines, which pause between them, until n decisions
// were recorded or stop says so.
func busy(t *testing.T, l *Log, n int, pause time.Duration, stop <-chan struct{}) {
	t.Helper()
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for i := range n / 4 {
				select {
				case <-stop:
					return
				case <-time.After(pause):
				}
				err := l.Record(t.Context(), Event{Name: "token", Outcome: Granted, Client: fmt.Sprint("c", worker), TokenID: fmt.Sprint(worker, "-", i),
					Detail: map[string]string{"x": strings.Repeat("x", i%500)}})
				if err != nil {
					t.Error(err)
					return
				}
				if i%5 == 0 {
					_ = l.Record(t.Context(), Event{Class: Stranger, Name: "token", Outcome: Refused, Reason: fmt.Sprint("r", i%50), Address: fmt.Sprintf("10.%d.%d.1", worker, i%250)})
				}
			}
		})
	}
	wg.Wait()
}

// anchored waits until a journal has a checkpoint past a record.
func anchored(t *testing.T, l *Log, seq uint64) Anchor {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		if a, ok := l.Checkpoint(); ok && a.Checkpoint.Seq >= seq {
			return a
		}
		if time.Now().After(deadline) {
			t.Fatalf("no checkpoint of record %d", seq)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// What the journal's writer writes is what its verifier accepts, over segments and runs, and held to its own heads.
func TestVerifyWritten(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var known []Anchor
	for range 3 {
		l := openLog(t, dir)
		busy(t, l, 800, 0, nil)
		known = append(known, anchored(t, l, l.Head().Seq-1))
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	r, err := Verify(dir, known)
	if err != nil {
		t.Fatalf("%v %+v", err, r)
	}
	if !r.Closed || len(r.Notes) > 0 || r.Incarnations != 3 || r.Records.Segments < 6 || r.Records.Records < 2400 || r.Refusals.Records == 0 ||
		r.Records.Uncovered+r.Refusals.Uncovered > 0 || !r.Anchor.Equal(known[2].Checkpoint.Time) {
		t.Errorf("%+v", r)
	}
	if entries := pages(t, &Reader{Dir: dir}, Query{Filter: Filter{Event: "token", Client: "c1"}}); len(entries) != 600 {
		t.Errorf("%d records", len(entries))
	}
}

// A folder that is copied while the service writes to it, in whatever pieces, is accepted up to its last checkpoint, and
// that is no older than what was durable when the copying began.
func TestVerifyCopyOfRunning(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := openLog(t, dir)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		busy(t, l, 20_000, 4*time.Millisecond, stop)
	}()
	defer func() {
		close(stop)
		<-stopped
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}()
	anchored(t, l, 1)
	torn := 0
	for i := range 12 {
		known, _ := l.Checkpoint()
		copied := filepath.Join(t.TempDir(), "copy")
		copyFolder(t, dir, copied, []int{512, 4096, 64 << 10}[i%3])
		r, err := Verify(copied, []Anchor{known})
		if err != nil {
			t.Fatalf("copy %d: %v %+v", i, err, r)
		}
		if r.Checkpoint == nil || r.Checkpoint.Seq < known.Checkpoint.Seq || r.Closed {
			t.Errorf("copy %d: %+v, known %d", i, r, known.Checkpoint.Seq)
		}
		torn += len(r.Notes)
		if r, err := Verify(dir, []Anchor{known}); err != nil {
			t.Fatalf("where it is written: %v %+v", err, r)
		}
	}
	t.Logf("%d notes", torn)
}

// copyFolder copies as cp does: what is there when it begins, one file after the other, in pieces.
func copyFolder(t *testing.T, from, to string, piece int) {
	t.Helper()
	entries, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(to, 0o700); err != nil {
		t.Fatal(err)
	}
	slices.Reverse(entries) // the refusals first, so that the journal states more of them than are there
	for _, entry := range entries {
		if !strings.HasSuffix(entry.Name(), ".jsonl") {
			continue
		}
		source, err := os.Open(filepath.Join(from, entry.Name()))
		if err != nil {
			t.Fatal(err)
		}
		target, err := os.Create(filepath.Join(to, entry.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyBuffer(struct{ io.Writer }{target}, struct{ io.Reader }{source}, make([]byte, piece)); err != nil {
			t.Fatal(err)
		}
		if err := source.Close(); err != nil {
			t.Fatal(err)
		}
		if err := target.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Following a journal that is written, rotated and begun anew sees each of its records once.
func TestSearchFollowsRunning(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := &Reader{Dir: dir}
	var seen []uint64
	last := uint64(0)
	poll := func() {
		for {
			page, err := r.Search(t.Context(), Query{Forward: true, After: last, Filter: Filter{Event: "token"}, Limit: 37})
			if err != nil {
				t.Fatal(err)
			}
			seen = append(seen, seqs(page.Entries)...)
			last = page.Next
			if page.Done {
				return
			}
		}
	}
	for run := range 2 {
		l := openLog(t, dir)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 100 { // segments are made in the background
				busy(t, l, 400, 0, nil)
				if main, _, _, err := segmentFiles(dir); err != nil || len(main) > 2*run+2 {
					return
				}
			}
			t.Error("it does not rotate")
		}()
		for running := true; running; {
			select {
			case <-done:
				running = false
			case <-time.After(time.Millisecond):
			}
			poll()
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		poll()
	}
	want := seqs(pages(t, r, Query{Filter: Filter{Event: "token"}}))
	if diff := cmp.Diff(want, seen); diff != "" || len(want) < 800 {
		t.Errorf("%d of %d records: %s", len(seen), len(want), diff)
	}
}

// What the journal removes, it says, and then it may be missing: nothing else may.
func TestVerifyRetained(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := openLog(t, dir)
	busy(t, l, 1600, 0, nil)
	known := []Anchor{anchored(t, l, l.Head().Seq-1)}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = openLog(t, dir)
	before, _, _, err := segmentFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Retain(t.Context(), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	main, _, _, err := segmentFiles(dir)
	if err != nil || len(main) >= len(before) || len(before) < 3 {
		t.Fatalf("%d of %d segments are left: %v", len(main), len(before), err)
	}
	busy(t, l, 400, 0, nil)
	known = append(known, anchored(t, l, l.Head().Seq-1))
	if r, err := Verify(dir, known); err != nil || r.Records.Removed == 0 || r.Records.First != r.Records.Removed+1 {
		t.Errorf("%v: %+v", err, r)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	main, _, _, err = segmentFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, main[0].name)); err != nil {
		t.Fatal(err)
	}
	if r, err := Verify(dir, nil); err == nil {
		t.Errorf("accepted without one that was not removed: %+v", r)
	}
}

// What strangers were refused in the last second before a journal is closed is in it, also where nothing of the kind was
// before.
func TestCloseKeepsRefusals(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := openLog(t, dir)
	if err := l.Record(t.Context(), Event{Class: Stranger, Name: "token", Outcome: Refused, Reason: "x", Address: "10.0.0.1"}); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if got := pages(t, &Reader{Dir: dir}, Query{Filter: Filter{Refusals: true, Reason: "x"}}); len(got) != 1 {
		t.Errorf("%d refusals", len(got))
	}
	if r, err := Verify(dir, nil); err != nil || !r.Closed || r.Refusals.Uncovered > 0 {
		t.Errorf("%v: %+v", err, r)
	}
}
