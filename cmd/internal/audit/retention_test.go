// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// handClock is a clock that a test moves.
type handClock struct{ offset atomic.Int64 }

func (c *handClock) now() time.Time          { return noon.Add(time.Duration(c.offset.Load())) }
func (c *handClock) advance(d time.Duration) { c.offset.Add(int64(d)) }

// failingFS fails the n-th of the calls that it counts, and all after it.
type failingFS struct {
	systemFS
	counting atomic.Bool
	left     atomic.Int64
}

func (f *failingFS) count() error {
	if f.counting.Load() && f.left.Add(-1) < 0 {
		return syscall.EIO
	}
	return nil
}

func (f *failingFS) Remove(name string) error {
	return errors.Join(f.count(), f.then(func() error { return f.systemFS.Remove(name) }))
}

func (f *failingFS) SyncDir(dir string) error {
	return errors.Join(f.count(), f.then(func() error { return f.systemFS.SyncDir(dir) }))
}

// then does what has not failed.
func (f *failingFS) then(do func() error) error {
	if f.counting.Load() && f.left.Load() < 0 {
		return nil
	}
	return do()
}

// longJournal is a journal of several days, with a segment a day at least.
func longJournal(t *testing.T, fs FS, clock *handClock, days int) (*Log, string) {
	t.Helper()
	dir := t.TempDir()
	l, err := Open(t.Context(), Config{Dir: dir, SegmentAge: 12 * time.Hour, Now: clock.now, InFlight: func() int { return 1 }, FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	for range days {
		record(t, l)
		clock.advance(24 * time.Hour)
		grown(t, l, dir)
	}
	clock.advance(time.Hour)
	l.main.mu.Lock()
	defer l.main.mu.Unlock()
	for l.main.committing {
		l.main.changed.Wait()
	}
	return l, dir
}

// grown records until a segment more is there.
func grown(t *testing.T, l *Log, dir string) {
	t.Helper()
	before := len(namesOf(t, dir, streamMain))
	for range 1000 {
		record(t, l)
		if len(namesOf(t, dir, streamMain)) > before {
			return
		}
	}
	t.Fatal("no segment was ended")
}

func record(t *testing.T, l *Log) {
	t.Helper()
	if err := l.Record(t.Context(), Event{Name: "token.issue", Outcome: Granted, Client: "payments"}); err != nil {
		t.Fatal(err)
	}
}

func namesOf(t *testing.T, dir, stream string) []string {
	t.Helper()
	names, err := segments(systemFS{}, dir, stream)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// claim is what the newest record of an event says is gone.
type claim struct {
	Seq        uint64 `json:"seq"`
	Chain      string `json:"chain"`
	Last       string `json:"last"`
	Records    uint64 `json:"records"`
	Segments   int    `json:"segments"`
	KeysBefore string `json:"keys_before"`
}

// claims are what the records of an event say that a checkpoint covers, in their order.
func claims(t *testing.T, dir, event string) (out []claim) {
	t.Helper()
	var open []claim
	for _, name := range namesOf(t, dir, streamMain) {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		for line := range bytes.Lines(text) {
			var record struct {
				Event     string `json:"event"`
				Retention *claim `json:"retention"`
				Dropped   *claim `json:"dropped"`
				Keys      string `json:"keys_before"`
			}
			if len(bytes.TrimSpace(line)) == 0 {
				continue
			}
			if err := json.Unmarshal(line, &record); err != nil {
				t.Fatalf("%v in %s", err, line)
			}
			switch {
			case record.Event == eventCheckpoint:
				out = append(out, open...)
				open = nil
			case record.Event != event:
			case record.Retention != nil:
				open = append(open, *record.Retention)
			case record.Dropped != nil:
				open = append(open, *record.Dropped)
			default:
				open = append(open, claim{KeysBefore: record.Keys})
			}
		}
	}
	return out
}

// whole demands that the segments of a stream follow one another, and that what lacks before them is what the journal says,
// signed, to be gone. It returns how many segments there are.
func whole(t *testing.T, dir, stream, event string) int {
	t.Helper()
	report, err := Verify(dir, nil)
	if err != nil || len(report.Findings) > 0 {
		t.Errorf("the journal does not verify: %+v, %v", report, err)
	}
	names := namesOf(t, dir, stream)
	next := uint64(0)
	for _, name := range names {
		s, err := scan(systemFS{}, dir, name)
		if err != nil {
			t.Fatal(err)
		}
		_, _, first, _ := parseSegmentName(name)
		if next == 0 && first > 1 {
			said := claims(t, dir, event)
			if !slices.ContainsFunc(said, func(c claim) bool {
				return c.Seq >= first-1 && (c.Seq != first-1 || c.Chain == chainText64(s.header.Previous))
			}) {
				t.Errorf("the records before %d are missing, and what is said to be gone is %+v", first, said)
			}
		} else if next != 0 && first != next {
			t.Errorf("%s does not follow record %d", name, next-1)
		}
		next = s.head.Seq + 1
	}
	return len(names)
}

func chainText64(h Head) string {
	var text headText
	b, err := json.Marshal(h)
	if err == nil {
		err = json.Unmarshal(b, &text)
	}
	if err != nil {
		return err.Error()
	}
	return text.Chain
}

func TestRetention(t *testing.T) {
	t.Parallel()
	clock := new(handClock)
	l, dir := longJournal(t, nil, clock, 5)
	before := namesOf(t, dir, streamMain)
	cut := noon.Add(60 * time.Hour) // in the third day
	if err := l.Retain(t.Context(), cut); err != nil {
		t.Fatal(err)
	}
	after := namesOf(t, dir, streamMain)
	gone := len(before) - len(after)
	if gone < 1 || len(after) < 2 || !slices.Equal(before[gone:], after) {
		t.Fatalf("of %v there are %v", before, after)
	}
	for i, name := range after {
		end, err := endOf(systemFS{}, dir, name)
		if i == len(after)-1 {
			break // it is written to
		}
		if err != nil || end.time.Before(cut) {
			t.Errorf("%s ends at %v, %v", name, end.time, err)
		}
	}
	_, _, first, _ := parseSegmentName(after[0])
	said := claims(t, dir, eventRetention)
	if len(said) != 1 || said[0].Seq != first-1 || said[0].Records != first-1 || said[0].Segments != gone ||
		said[0].KeysBefore != "2026-11-26" || !strings.HasPrefix(said[0].Last, "2026-11-2") {
		t.Errorf("said %+v", said)
	}
	whole(t, dir, streamMain, eventRetention)

	// Nothing more to remove: only the keys of another day, once.
	for range 2 {
		if err := l.Retain(t.Context(), cut); err != nil {
			t.Fatal(err)
		}
		if err := l.Retain(t.Context(), cut.Add(-72*time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	if got := len(claims(t, dir, eventRetention)); got != 1 {
		t.Errorf("%d times", got)
	}
	if got := claims(t, dir, eventKeys); len(got) == 0 || got[0].KeysBefore != "2026-11-23" {
		t.Errorf("of the keys is said %+v", got)
	}

	// The next incarnation goes on, and the newest segment stays however old it is.
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	clock.advance(1000 * time.Hour)
	l, err := Open(t.Context(), Config{Dir: dir, Now: clock.now})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Retain(t.Context(), clock.now()); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if n := whole(t, dir, streamMain, eventRetention); n != 1 {
		t.Errorf("%d segments are left", n)
	}
	if err := l.Retain(t.Context(), clock.now()); err != nil && !errors.Is(err, ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
}

// Wherever a removal is cut short, what is left follows from one record to the next, what lacks was said to be gone before
// it was, and the next attempt finishes it.
func TestRetentionIsCutShort(t *testing.T) {
	t.Parallel()
	for n := range int64(9) {
		t.Run(fmt.Sprint("after ", n), func(t *testing.T) {
			t.Parallel()
			clock := new(handClock)
			fs := new(failingFS)
			l, dir := longJournal(t, fs, clock, 5)
			before := len(namesOf(t, dir, streamMain))
			fs.left.Store(n)
			fs.counting.Store(true)
			err := l.Retain(t.Context(), clock.now())
			fs.counting.Store(false)
			left := whole(t, dir, streamMain, eventRetention)
			if want := before - int((n+1)/2); n < 2*int64(before-1) && (err == nil || left != want) {
				t.Errorf("%d of %d segments are left, want %d: %v", left, before, want, err)
			}
			if err := l.Retain(t.Context(), clock.now()); err != nil {
				t.Fatal(err)
			}
			if n := whole(t, dir, streamMain, eventRetention); n != 1 {
				t.Errorf("%d segments are left", n)
			}
		})
	}
}

// What cannot be said is not done.
func TestRetentionIsSaidFirst(t *testing.T) {
	t.Parallel()
	clock := new(handClock)
	l, dir := longJournal(t, nil, clock, 3)
	before := namesOf(t, dir, streamMain)
	l.main.mu.Lock()
	failed := l.main.failed
	l.main.failed = ErrFailed
	l.main.mu.Unlock()
	if err := l.Retain(t.Context(), clock.now()); !errors.Is(err, ErrFailed) {
		t.Errorf("error is %v", err)
	}
	if !slices.Equal(before, namesOf(t, dir, streamMain)) {
		t.Error("segments were removed without a record")
	}
	l.main.mu.Lock()
	l.main.failed = failed
	l.main.mu.Unlock()
}

func TestRetentionMeetsDamage(t *testing.T) {
	t.Parallel()
	clock := new(handClock)
	l, dir := longJournal(t, nil, clock, 4)
	names := namesOf(t, dir, streamMain)
	if err := os.Truncate(filepath.Join(dir, names[0]), 10); err != nil {
		t.Fatal(err)
	}
	err := l.Retain(t.Context(), clock.now())
	if damage, is := errors.AsType[*DamageError](err); !is || filepath.Base(damage.File) != names[0] {
		t.Errorf("error is %v", err)
	}
	if !slices.Equal(names, namesOf(t, dir, streamMain)) {
		t.Error("a journal that is damaged lost segments")
	}
}

// Refusals beyond their quota push the oldest out, and the journal says how many; decisions lose nothing.
func TestRefusalQuota(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	clock := new(handClock)
	const quota = 512 << 10
	l, err := Open(t.Context(), Config{Dir: dir, RefusalBytes: quota, Now: clock.now, Keys: newMemoryKeys()})
	if err != nil {
		t.Fatal(err)
	}
	record(t, l)
	refused := 0
	for round := range 60 {
		for i := range 200 {
			e := stranger(fmt.Sprintf("10.%d.%d.1", round, i), "unknown_client")
			e.Time = clock.now()
			if err := l.Record(t.Context(), e); err != nil {
				t.Fatal(err)
			}
			refused++
		}
		l.countRefusals()
		clock.advance(time.Second)
		l.refusals.mu.Lock()
		for l.refusals.committing {
			l.refusals.changed.Wait()
		}
		l.refusals.commit(true) // nobody is to be lost for want of time
		l.refusals.mu.Unlock()
	}
	var total int64
	settled := func() bool {
		l.holdQuota()
		_, sizes, err := l.sized(l.refusals)
		if err != nil {
			t.Fatal(err)
		}
		total = 0
		for _, n := range sizes {
			total += n
		}
		return total <= quota+quota/refusalSegments+refusalFill
	}
	if !settled() {
		t.Errorf("the refusals take %d bytes of %d", total, quota)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if n := whole(t, dir, streamRefusals, eventDropped); n < 1 {
		t.Errorf("%d segments of refusals", n)
	}
	said := claims(t, dir, eventDropped)
	var dropped uint64
	for _, c := range said {
		dropped += c.Records
	}
	if len(said) == 0 || dropped != said[len(said)-1].Seq || dropped >= uint64(refused) {
		t.Errorf("said %+v", said)
	}
	if n := whole(t, dir, streamMain, eventRetention); n != 1 {
		t.Errorf("%d segments of decisions", n)
	}
}
