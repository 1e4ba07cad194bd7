// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// linesOf are the lines of a text, without their newlines and the empty ones.
func linesOf(text []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for l := range bytes.Lines(text) {
			if l = bytes.TrimSuffix(l, []byte("\n")); len(l) > 0 && !yield(l) {
				return
			}
		}
	}
}

// ids counts the ids of the records.
func ids(t *testing.T, lines [][]byte) map[string]int {
	t.Helper()
	seen := map[string]int{}
	for _, l := range lines {
		var r struct {
			ID string `json:"id"`
		}
		if err := json.Unmarshal(l, &r); err != nil {
			t.Fatalf("%v in %q", err, l)
		}
		if r.ID != "" {
			seen[r.ID]++
		}
	}
	return seen
}

// promises is what callers were told.
type promises struct {
	mu   sync.Mutex
	kept []string // ids whose Record returned nil
}

func (p *promises) keep(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.kept = append(p.kept, id)
}

// broken returns the ids that are not in the journal exactly once.
func (p *promises) broken(t *testing.T, f FS) []string {
	t.Helper()
	seen := ids(t, chained(t, f, streamMain))
	var broken []string
	for _, id := range p.kept {
		if seen[id] != 1 {
			broken = append(broken, fmt.Sprintf("%s %d times", id, seen[id]))
		}
	}
	for id, n := range seen {
		if n > 1 {
			broken = append(broken, fmt.Sprintf("%s %d times", id, n))
		}
	}
	return broken
}

// load records from several goroutines until the journal fails or each has recorded n.
func load(t *testing.T, l *Log, p *promises, name string, n int) {
	t.Helper()
	var wg sync.WaitGroup
	for g := range 5 {
		wg.Go(func() {
			pad := strings.Repeat("x", 100+400*g)
			for i := range n {
				id := fmt.Sprintf("%s-%d-%d", name, g, i)
				if l.Record(t.Context(), Event{ID: id, Name: "x", Outcome: Granted, Correlation: pad}) != nil {
					return
				}
				p.keep(id)
				if g == 0 {
					_ = l.Record(t.Context(), Event{Class: Stranger, Name: "y", Outcome: Refused, Reason: id})
				}
			}
		})
	}
	wg.Wait()
}

// The machine crashes at any point, five times over one journal: each time the journal opens again, it holds every record
// that somebody was told of and the head that was given out last, its chain is whole, and it goes on.
func TestCrash(t *testing.T) {
	t.Parallel()
	seeds := 100
	if testing.Short() {
		seeds = 20
	}
	var torn, heads sync.Map
	t.Run("seeds", func(t *testing.T) {
		for seed := range seeds {
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				t.Parallel()
				crashes(t, rand.New(rand.NewPCG(uint64(seed), 1)), func() { torn.Store(seed, true) }, func() { heads.Store(seed, true) })
			})
		}
	})
	n := 0
	torn.Range(func(any, any) bool { n++; return true })
	if n < seeds/10 {
		t.Errorf("only %d of %d seeds tore a segment: this test shows nothing", n, seeds)
	}
	n = 0
	heads.Range(func(any, any) bool { n++; return true })
	if n < seeds/4 {
		t.Errorf("only %d of %d seeds gave a head out: this test shows nothing", n, seeds)
	}
}

func crashes(t *testing.T, rng *rand.Rand, torn, given func()) {
	f := newFaultFS([]int{512, 4096}[rng.IntN(2)])
	register := &memoryRegister{}
	var p promises
	mode := Sync(rng.IntN(4) / 3)
	for life := range 5 {
		fuse := rng.IntN(400)
		if life == 0 {
			fuse += 50
		}
		f.before = func(string, string) error {
			if fuse--; fuse < 0 {
				f.dead = true
				return errCrashed
			}
			return nil
		}
		l, err := Open(t.Context(), Config{
			Dir: "j", FS: f, SegmentBytes: minSegmentBytes, RefusalBytes: minSegmentBytes, headroom: 16 << 10, chunk: 16 << 10,
			Sync: mode, SyncInterval: 3 * time.Millisecond, Registrar: register,
		})
		if err == nil {
			load(t, l, &p, fmt.Sprint(life), 60)
			if rng.IntN(4) == 0 {
				_ = l.Close() // the crash may come while it ends
			}
			f.crash()
			_ = l.Close()
			if seq, chain := l.SignedHead(); seq > 0 {
				register.all[len(register.all)-1].Head = Head{Seq: seq, Chain: chain}
				given()
			}
			if mode == Interval {
				p.kept = nil // they were not promised for good
			}
		} else if !errors.Is(err, errCrashed) {
			t.Fatalf("life %d: %v", life, err)
		}
		if rng.IntN(3) == 0 {
			f = f.restart() // only the process died: what reads back may be in memory only
			continue
		}
		f = f.reboot(rng)
		if broken := p.broken(t, f); len(broken) > 0 {
			t.Fatalf("life %d, of %d records: %v", life, len(p.kept), broken)
		}
		chained(t, f, streamRefusals)
	}
	f = f.reboot(rng)
	verified(t, f)
	l, err := Open(t.Context(), Config{Dir: "j", FS: f, Registrar: register})
	if err != nil {
		t.Fatal(err)
	}
	load(t, l, &p, "last", 5)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	verified(t, f)
	if broken := p.broken(t, f); len(broken) > 0 {
		t.Fatal(broken)
	}
	for _, l := range chained(t, f, streamMain) {
		if bytes.Contains(l, []byte(`"recovered"`)) {
			torn()
		}
	}
}

// The machine crashes when the next segment has its name, and the last batch of the one before it was not synced yet. Any
// page of that may be missing: who verifies notes it, who recovers drops that batch. Once the segment is trimmed, or
// something stands in the next one, all of it was durable: then it is damage to both.
func TestCrashInRotation(t *testing.T) {
	t.Parallel()
	f := newFaultFS(page)
	var p promises
	old, next := "", filepath.Join("j", segmentName(streamMain, 1, 1))
	f.before = func(op, name string) error {
		switch _, _, first, segment := parseSegmentName(name); {
		case op == "rename" && segment && first > 1:
			old, next = next, filepath.Join("j", name)
		case op == "sync" && old != "" && len(f.names[old].dirty) > 2: // the batch is of several pages
			f.dead = true
			return errCrashed
		case op == "sync":
			old = ""
		}
		return nil
	}
	l, err := Open(t.Context(), Config{Dir: "j", FS: f, SegmentBytes: minSegmentBytes, headroom: 16 << 10, chunk: 16 << 10})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5000 {
		id := fmt.Sprint(i)
		if l.Record(t.Context(), Event{ID: id, Name: "x", Outcome: Granted, Correlation: strings.Repeat("x", 1000)}) != nil {
			break
		}
		p.keep(id)
	}
	_ = l.Close()
	if old == "" {
		t.Fatal("no segment was ended")
	}
	f.persist(len(f.changes))
	node := f.names[old]
	start := slices.Min(slices.Collect(maps.Keys(node.dirty))) * page // of the page in which the batch begins
	var images [][]byte
	for lost := range node.dirty {
		for _, others := range []bool{true, false} {
			image := bytes.Clone(node.durable)
			for written := range node.dirty {
				if (written != lost) == others {
					copy(image[written*page:], node.data[written*page:min(len(node.data), (written+1)*page)])
				}
			}
			// They are the same when the frame's newline is the only byte in its page.
			if !bytes.Equal(image, node.durable) && !bytes.Equal(image, node.data) {
				images = append(images, image)
			}
		}
	}
	frame := bytes.LastIndex(node.data, []byte(frameStart)) // which may have a page of its own
	images = append(images, append(bytes.Clone(node.data[:frame]), node.durable[frame:]...))
	if len(images) < 5 {
		t.Errorf("only %d cases", len(images))
	}
	for _, image := range images {
		torn := f.clone()
		copy(torn.names[old].data, image)
		recovers(t, torn, &p, old)
		begun := f.clone()
		copy(begun.names[old].data, image)
		copy(begun.names[next].data, recordStart)
		refuses(t, begun, old, int64(start))
		ended := f.clone()
		ended.names[old].data = append(bytes.TrimRight(image, filling), '\n')
		refuses(t, ended, old, int64(start))
	}
}

// recovers fails unless the segment's torn end is noted, and dropped by the next start.
func recovers(t *testing.T, f *faultFS, p *promises, segment string) {
	t.Helper()
	r, err := Verify(folder(t, f), nil)
	if err != nil || len(r.Notes) != 1 || r.Notes[0].File != filepath.Base(segment) {
		t.Errorf("%v: %+v", err, r)
	}
	l, err := Open(t.Context(), Config{Dir: "j", FS: f})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	verified(t, f)
	if broken := p.broken(t, f); len(broken) > 0 {
		t.Error(broken)
	}
}

// refuses fails unless the segment's torn end is found, and stops the next start, which names it and touches nothing. The
// batch begins in the page at start.
func refuses(t *testing.T, f *faultFS, segment string, start int64) {
	t.Helper()
	r, err := Verify(folder(t, f), nil)
	if err == nil || len(r.Findings) == 0 || r.Findings[0].File != filepath.Base(segment) {
		t.Errorf("verified: %v: %+v", err, r)
	}
	files, before := len(f.names), bytes.Clone(f.names[segment].data)
	var damage *DamageError
	_, err = Open(t.Context(), Config{Dir: "j", FS: f})
	if !errors.As(err, &damage) || damage.File != segment || damage.Offset < start {
		t.Fatalf("opened: %v", err)
	}
	if len(f.names) != files || !bytes.Equal(f.names[segment].data, before) {
		t.Error("the journal was touched")
	}
}

// verified holds what is there to Verify, which reads it in its own way.
func verified(t *testing.T, f *faultFS) {
	t.Helper()
	if _, err := Verify(folder(t, f), nil); err != nil && !errors.Is(err, ErrNoJournal) {
		t.Fatal(err)
	}
}

// folder puts what is there into a folder of the system.
func folder(t *testing.T, f *faultFS) string {
	t.Helper()
	dir := t.TempDir()
	for name, n := range f.names {
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(name)), n.data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// A byte that changes in what was synced is found by the next start, with its file and place, and nothing is touched.
func TestDamage(t *testing.T) {
	t.Parallel()
	for seed := range 60 {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(uint64(seed), 2))
			f := newFaultFS(4096)
			var p promises
			l, err := Open(t.Context(), Config{Dir: "j", FS: f})
			if err != nil {
				t.Fatal(err)
			}
			if rng.IntN(2) == 0 {
				load(t, l, &p, "a", 5)
			} else { // batches of one record
				for range 15 {
					if err := l.Record(t.Context(), Event{Name: "x"}); err != nil {
						t.Fatal(err)
					}
				}
			}
			clean := seed%2 == 0
			if clean {
				err = l.Close()
			}
			f.crash()
			if !clean {
				_ = l.Close()
			}
			if err != nil {
				t.Fatal(err)
			}
			f = f.reboot(rng)
			name := filepath.Join("j", segmentName(streamMain, 1, 1))
			node := f.names[name]
			end := len(bytes.TrimRight(node.data, "\n")) + 1
			if !clean { // what no later frame speaks of cannot be told from what a crash left
				end = lastSynced(t, node.data)
			}
			at := rng.IntN(end)
			if clean && seed%4 == 0 { // also in the last batch, of which no later frame speaks
				at = end - 1 - rng.IntN(700)
			}
			if seed == 0 {
				at = end - 1
			}
			node.data[at] ^= byte(1 + rng.IntN(255))
			before, files := bytes.Clone(node.data), len(f.names)
			_, err = Open(t.Context(), Config{Dir: "j", FS: f})
			var damage *DamageError
			if !errors.As(err, &damage) || damage.File != name || damage.What == "" {
				t.Fatalf("byte %d of %d: %v", at, end, err)
			}
			if damage.Offset > int64(at) && damage.Offset != 0 || damage.Offset < int64(at)-8192 {
				t.Errorf("byte %d is damaged, and the error says %d", at, damage.Offset)
			}
			if len(f.names) != files || !bytes.Equal(f.names[name].data, before) {
				t.Error("the journal was touched")
			}
		})
	}
}

// lastSynced is where the batches end that a later frame says were durable.
func lastSynced(t *testing.T, data []byte) int {
	t.Helper()
	var ends []struct {
		seq uint64
		at  int
	}
	at, synced := 0, uint64(0)
	var batch []byte
	for l := range bytes.Lines(data) {
		at += len(l)
		if !isFrame(l) {
			batch = append(batch, l...)
			continue
		}
		f, err := parseFrame(bytes.TrimSuffix(l, []byte("\n")), batch)
		if err != nil {
			break
		}
		batch = batch[:0]
		ends, synced = append(ends, struct {
			seq uint64
			at  int
		}{f.Seq, at}), f.Synced
	}
	end := 0
	for _, e := range ends {
		if e.seq <= synced {
			end = e.at
		}
	}
	if end == 0 {
		t.Fatal("nothing is promised")
	}
	return end
}

// A sync that fails is final: one call, every waiter is told, nothing is written afterwards, and the next start has every
// record that somebody was told of.
func TestFailedSync(t *testing.T) {
	t.Parallel()
	f := newFaultFS(4096)
	fatal := make(chan error, 2)
	l, err := Open(t.Context(), Config{Dir: "j", FS: f, Fatal: func(err error) { fatal <- err }})
	if err != nil {
		t.Fatal(err)
	}
	var p promises
	load(t, l, &p, "a", 5)
	fails := 0
	f.mu.Lock()
	f.before = func(op, _ string) error {
		if op == "sync" {
			fails++
			return syscall.EIO
		}
		if fails > 0 && (op == "write" || op == "truncate" || op == "rename") {
			t.Errorf("%s after the failure", op)
		}
		return nil
	}
	f.mu.Unlock()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := l.Record(t.Context(), Event{Name: "x"}); !errors.Is(err, ErrFailed) || !errors.Is(err, syscall.EIO) {
				t.Errorf("error is %v", err)
			}
		})
	}
	wg.Wait()
	select {
	case err := <-fatal:
		if !errors.Is(err, ErrFailed) {
			t.Errorf("fatal error is %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("nobody was told")
	}
	for _, c := range []Class{Decision, Takeaway} {
		if err := l.Ready(c); !errors.Is(err, ErrFailed) {
			t.Errorf("ready: %v", err)
		}
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if fails != 1 || len(fatal) != 0 {
		t.Errorf("%d syncs, %d more calls of Fatal", fails, len(fatal))
	}
	f.before = nil
	f = f.reboot(rand.New(rand.NewPCG(1, 1)))
	l, err = Open(t.Context(), Config{Dir: "j", FS: f})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if broken := p.broken(t, f); len(broken) > 0 {
		t.Error(broken)
	}
}

// One operation of the disk fails, each in turn: whatever happens, nobody is told of a record that is not there, and a new
// start serves again.
func TestEveryOperationFails(t *testing.T) {
	t.Parallel()
	for _, failure := range []error{syscall.ENOSPC, syscall.EIO} {
		for n := 0; ; n += 3 {
			failed := failAt(t, n, failure)
			if !failed {
				if n < 50 {
					t.Errorf("%v: only %d operations", failure, n)
				}
				break
			}
		}
	}
}

// failAt has the n-th operation fail and reports whether there was one.
func failAt(t *testing.T, n int, failure error) bool {
	t.Helper()
	f := newFaultFS(4096)
	f.short = true
	at := n
	failed := false
	f.before = func(op, _ string) error {
		if op == "names" || op == "mkdir" || op == "open" || op == "read" || op == "size" {
			return nil
		}
		if at--; at == -1 {
			failed = true
			return failure
		}
		return nil
	}
	var p promises
	for _, life := range []string{"a", "b"} {
		l, err := Open(t.Context(), Config{Dir: "j", FS: f, SegmentBytes: minSegmentBytes, headroom: 16 << 10, chunk: 16 << 10})
		if errors.Is(err, ErrFailed) {
			continue // the next start may succeed
		}
		if err != nil {
			t.Fatalf("operation %d: %v", n, err)
		}
		load(t, l, &p, life, 15)
		_ = l.Close()
	}
	f.mu.Lock()
	f.before = nil
	f.mu.Unlock()
	f = f.reboot(rand.New(rand.NewPCG(uint64(n), 3)))
	l, err := Open(t.Context(), Config{Dir: "j", FS: f})
	if err != nil {
		t.Fatalf("operation %d: %v", n, err)
	}
	if err := l.Record(t.Context(), Event{ID: "last", Name: "x"}); err != nil {
		t.Fatalf("operation %d: %v", n, err)
	}
	p.keep("last")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if broken := p.broken(t, f); len(broken) > 0 {
		t.Fatalf("operation %d: %v", n, broken)
	}
	return failed
}
