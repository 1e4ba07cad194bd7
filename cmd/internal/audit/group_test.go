// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// openFault opens a journal on a file system in memory, in a bubble of synctest.
func openFault(t *testing.T, f *faultFS, cfg Config) *Log {
	t.Helper()
	cfg.Dir, cfg.FS = "j", f
	l, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func mustClose(t *testing.T, l *Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// A group is closed as soon as every request in flight waits for it; when one does not come, after 2 ms.
func TestGroupCloses(t *testing.T) {
	t.Parallel()
	for missing, want := range map[int64]time.Duration{0: 0, 1: groupFlush} {
		synctest.Test(t, func(t *testing.T) {
			var inFlight atomic.Int64
			l := openFault(t, newFaultFS(4096), Config{InFlight: func() int { return int(inFlight.Load()) }})
			before, begun := l.Stats(), time.Now()
			inFlight.Store(64 + missing)
			var wg sync.WaitGroup
			for range 64 {
				wg.Go(func() {
					if err := l.Record(t.Context(), granted()); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if took := time.Since(begun); took != want {
				t.Errorf("%d missing: it took %v, not %v", missing, took, want)
			}
			if after := l.Stats(); after.Records-before.Records != 64 || after.Groups-before.Groups != 1 || after.Syncs-before.Syncs != 1 {
				t.Errorf("%d missing: %+v", missing, after)
			}
			mustClose(t, l)
		})
	}
}

// Whoever records at the same time shares a sync.
func TestGroupSizes(t *testing.T) {
	t.Parallel()
	var inFlight atomic.Int64
	l := openWith(t, Config{Dir: t.TempDir(), InFlight: func() int { return int(inFlight.Load()) }})
	before := l.Stats()
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for range 30 {
				inFlight.Add(1)
				if err := l.Record(t.Context(), granted()); err != nil {
					t.Error(err)
				}
				inFlight.Add(-1)
			}
		})
	}
	wg.Wait()
	after := l.Stats()
	if size := float64(after.Records-before.Records) / float64(after.Groups-before.Groups); size < 8 {
		t.Errorf("groups are of %.1f records", size)
	}
	if after.Waiting != 0 {
		t.Errorf("%d wait", after.Waiting)
	}
}

// In interval mode nobody waits; lines are in the file within 2 ms and durable within the interval.
func TestInterval(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFaultFS(4096)
		l := openFault(t, f, Config{Sync: Interval, SyncInterval: 50 * time.Millisecond})
		name := filepath.Join("j", segmentName(streamMain, 1, 1))
		in := func() (written, durable bool) {
			f.mu.Lock()
			defer f.mu.Unlock()
			n := f.names[name]
			return bytes.Contains(n.data, []byte("token.issue")), bytes.Contains(n.durable, []byte("token.issue"))
		}
		begun := time.Now()
		if err := l.Record(t.Context(), granted()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); took != 0 {
			t.Errorf("it took %v", took)
		}
		time.Sleep(groupFlush)
		synctest.Wait()
		if written, durable := in(); !written || durable {
			t.Errorf("after 2 ms: written %t, durable %t", written, durable)
		}
		time.Sleep(50 * time.Millisecond)
		synctest.Wait()
		if _, durable := in(); !durable {
			t.Error("not durable after the interval")
		}
		f.mu.Lock()
		f.before = func(op, _ string) error {
			if op == "sync" {
				return syscall.EIO
			}
			return nil
		}
		f.mu.Unlock()
		if err := l.Record(t.Context(), granted()); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		if err := l.Record(t.Context(), granted()); !errors.Is(err, ErrFailed) {
			t.Errorf("after a failed sync: %v", err)
		}
		mustClose(t, l)
	})
}

// Every record is covered by a durable checkpoint within about a second, and idle time costs none.
func TestCheckpoints(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFaultFS(4096)
		l := openFault(t, f, Config{Installation: "i", Replica: "r"})
		if _, ok := l.Checkpoint(); ok {
			t.Error("a checkpoint before there was one")
		}
		time.Sleep(10 * time.Second)
		first, ok := l.Checkpoint()
		if !ok || first.Checkpoint.Seq != 1 || first.Checkpoint.Key != first.FirstKey || first.Identity != (Identity{"i", "r", 1}) {
			t.Errorf("the first checkpoint is %+v", first)
		}
		records := l.Stats().Records
		time.Sleep(time.Hour)
		if n := l.Stats().Records; n != records {
			t.Errorf("an idle journal grew by %d records", n-records)
		}
		if err := l.Record(t.Context(), granted()); err != nil {
			t.Fatal(err)
		}
		head := l.Head()
		time.Sleep(checkpointEvery + lazyFlush)
		synctest.Wait()
		second, _ := l.Checkpoint()
		c := second.Checkpoint
		if err := c.Verify(); err != nil || c.Seq != head.Seq || c.Head != base64.RawURLEncoding.EncodeToString(head.Chain[:]) ||
			c.Key != first.Checkpoint.Next || c.Previous != first.Checkpoint.Head {
			t.Errorf("%v: the second checkpoint is %+v of %+v", err, c, head)
		}
		if s := l.Stats(); !s.Checkpoint.Equal(c.Time) {
			t.Errorf("stats: %+v", s)
		}
		mustClose(t, l)
		last, _ := l.Checkpoint()
		if last.Checkpoint.Seq != l.Head().Seq-1 {
			t.Errorf("the last checkpoint is of %d, and the head is %d", last.Checkpoint.Seq, l.Head().Seq)
		}
		verified(t, f)
	})
}

// A checkpoint is shown to nobody before it is durable: a crash would make an honest journal look rolled back.
func TestCheckpointIsDurableFirst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFaultFS(4096)
		l := openFault(t, f, Config{Sync: Interval, SyncInterval: time.Minute})
		time.Sleep(30 * time.Second)
		if a, ok := l.Checkpoint(); ok {
			t.Errorf("shown before its sync: %+v", a)
		}
		time.Sleep(time.Minute)
		if _, ok := l.Checkpoint(); !ok {
			t.Error("never shown")
		}
		mustClose(t, l)
	})
}

// Where the refusals stand is stated in the signed stream, within a minute also when nothing else happens.
func TestRefusalsAreAnchored(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFaultFS(4096)
		l := openFault(t, f, Config{})
		time.Sleep(10 * time.Second)
		for range 5 {
			if err := l.Record(t.Context(), Event{Class: Stranger, Name: "token.issue", Outcome: Refused, Reason: "x"}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(refusalsEvery + 5*time.Second)
		synctest.Wait()
		stated := false
		for _, line := range chained(t, f, streamMain) {
			var r struct{ Refusals *Head }
			if err := json.Unmarshal(line, &r); err != nil {
				t.Fatal(err)
			}
			stated = stated || r.Refusals != nil && *r.Refusals == l.refusals.position()
		}
		if !stated || l.refusals.position().Seq != 2 {
			t.Errorf("stated %t, position %d", stated, l.refusals.position().Seq)
		}
		mustClose(t, l)
		verified(t, f)
	})
}

// Segments end by size and by age, and the clock may jump.
func TestRotation(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFaultFS(4096)
		var jump atomic.Int64
		cfg := Config{
			SegmentBytes: minSegmentBytes, SegmentAge: time.Hour, headroom: 16 << 10, chunk: 16 << 10,
			Now: func() time.Time { return time.Now().Add(time.Duration(jump.Load())).Round(0) },
		}
		l := openFault(t, f, cfg)
		count := func() int {
			synctest.Wait()
			names, err := segments(f, "j", streamMain)
			if err != nil {
				t.Fatal(err)
			}
			return len(names)
		}
		record := func(n int) {
			for range n {
				if err := l.Record(t.Context(), granted()); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
			}
		}
		record(800) // about 400 KiB
		if n := count(); n < 5 || n > 9 {
			t.Errorf("%d segments by size", n)
		}
		for name, n := range f.names {
			if len(n.data) > minSegmentBytes+48<<10 {
				t.Errorf("%s has %d bytes", name, len(n.data))
			}
		}
		before := count()
		time.Sleep(time.Hour + time.Minute)
		if n := count(); n != before {
			t.Error("an idle segment ended")
		}
		record(3)
		if n := count(); n != before+1 {
			t.Errorf("by age there are %d segments, not %d", n, before+1)
		}
		jump.Store(int64(-48 * time.Hour))
		record(3)
		if n := count(); n != before+1 {
			t.Errorf("after the clock went back there are %d segments", n)
		}
		time.Sleep(time.Hour + time.Minute)
		record(3)
		if n := count(); n != before+2 {
			t.Errorf("an hour after the clock went back there are %d segments", n)
		}
		jump.Store(int64(1000 * 24 * time.Hour))
		record(3)
		if n := count(); n != before+3 {
			t.Errorf("after the clock went on there are %d segments", n)
		}
		mustClose(t, l)
		verified(t, f)
	})
}

// A full disk refuses what gives authority once its room is used up, takes what takes it away, counts the refusals that it
// leaves out, and goes on by itself when there is room.
func TestFull(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFaultFS(4096)
		f.space = 4 << 20
		l := openFault(t, f, Config{})
		n := 0
		for ; ; n++ {
			err := l.Record(t.Context(), granted())
			if errors.Is(err, ErrFull) && errors.Is(err, syscall.ENOSPC) {
				break
			}
			if err != nil || n > 20000 {
				t.Fatalf("record %d: %v", n, err)
			}
		}
		if n < 3000 { // of about 500 bytes, in what was left of 4 MiB
			t.Errorf("full after %d records", n)
		}
		if err := l.Err(); !errors.Is(err, ErrFull) {
			t.Errorf("ready: %v", err)
		}
		if s := l.Stats(); !s.Full {
			t.Errorf("stats: %+v", s)
		}
		for i := range 500 {
			e := granted()
			e.Name, e.Class = "cert.revoke", Takeaway
			if err := l.Record(t.Context(), e); err != nil {
				t.Fatalf("takeaway %d: %v", i, err)
			}
		}
		if err := l.Ready(Takeaway); err != nil {
			t.Errorf("ready to take away: %v", err)
		}
		if err := l.Record(t.Context(), Event{Class: Refusal, Name: "x", Client: "c", Outcome: Refused}); err != nil {
			t.Error(err)
		}
		if s := l.Stats(); s.Dropped != 1 {
			t.Errorf("%d dropped", s.Dropped)
		}
		time.Sleep(10 * time.Second)
		f.mu.Lock()
		f.space = 64 << 20
		f.mu.Unlock()
		time.Sleep(fullRetry + lazyFlush)
		synctest.Wait()
		if err := l.Err(); err != nil {
			t.Errorf("with room again: %v", err)
		}
		if err := l.Record(t.Context(), granted()); err != nil {
			t.Errorf("with room again: %v", err)
		}
		mustClose(t, l)
		gap := false
		for _, line := range chained(t, f, streamMain) {
			gap = gap || bytes.Contains(line, []byte(`"gap":{"refusals":1}`))
		}
		if !gap {
			t.Error("what was left out is not on record")
		}
		verified(t, f)
	})
}

// A journal that cannot be started is full, says why, and starts when it can.
func TestAbsent(t *testing.T) {
	t.Parallel()
	for name, failure := range map[string]error{"full": syscall.ENOSPC, "read-only": syscall.EROFS, "failing": syscall.EIO} {
		synctest.Test(t, func(t *testing.T) {
			f := newFaultFS(4096)
			l := openFault(t, f, Config{})
			if err := l.Record(t.Context(), granted()); err != nil {
				t.Fatal(err)
			}
			f.crash()
			_ = l.Close()
			f = f.reboot(rand.New(rand.NewPCG(1, 1)))
			f.before = func(op, _ string) error {
				if op == "create" {
					return failure
				}
				return nil
			}
			fatal := make(chan error, 1)
			l = openFault(t, f, Config{Fatal: func(err error) { fatal <- err }})
			for _, c := range []Class{Decision, Takeaway} {
				if err := l.Ready(c); !errors.Is(err, ErrFull) || !errors.Is(err, failure) {
					t.Errorf("%s: ready: %v", name, err)
				}
				e := granted()
				e.Class = c
				if err := l.Record(t.Context(), e); !errors.Is(err, ErrFull) {
					t.Errorf("%s: recorded: %v", name, err)
				}
			}
			if s := l.Stats(); !s.Full {
				t.Errorf("%s: %+v", name, s)
			}
			time.Sleep(5 * time.Second)
			f.mu.Lock()
			f.before = nil
			f.mu.Unlock()
			time.Sleep(fullRetry)
			synctest.Wait()
			if err := l.Record(t.Context(), granted()); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if len(fatal) != 0 {
				t.Errorf("%s: %v", name, <-fatal)
			}
			mustClose(t, l)
			verified(t, f)
		})
	}
}

// A new incarnation goes on with the numbers, and is chained to the end of the one before it.
func TestIncarnations(t *testing.T) {
	t.Parallel()
	f := newFaultFS(4096)
	register := &memoryRegister{}
	for i := range 3 {
		l := openFault(t, f, Config{Installation: "i", Replica: "r", Registrar: register})
		if err := l.Record(t.Context(), Event{ID: fmt.Sprint(i), Name: "x"}); err != nil {
			t.Fatal(err)
		}
		if i == 1 { // this one dies
			f.crash()
			_ = l.Close()
			f = f.reboot(rand.New(rand.NewPCG(1, 1)))
		} else {
			mustClose(t, l)
		}
	}
	if got := ids(t, chained(t, f, streamMain)); len(got) != 3 {
		t.Errorf("records are %v", got)
	}
	verified(t, f)
	last := register.all[2]
	if len(register.all) != 3 || last.Incarnation != 3 || last.Key == "" || last.Key == register.all[1].Key || last.Previous.Seq < 6 {
		t.Errorf("registered are %+v", register.all)
	}
}

// memoryRegister keeps what was registered.
type memoryRegister struct {
	all   []Incarnation
	fails error // of Begin
}

func (m *memoryRegister) Last(context.Context, string) (Incarnation, error) {
	if len(m.all) == 0 {
		return Incarnation{}, nil
	}
	return m.all[len(m.all)-1], nil
}

func (m *memoryRegister) Begin(_ context.Context, i Incarnation) error {
	if m.fails != nil {
		return m.fails
	}
	m.all = append(m.all, i)
	return nil
}

// A journal that is not the one that the database knows is refused: deleted, put back from an older copy, or another's.
// One whose incarnation died before its first record is not.
func TestRegistrarKnows(t *testing.T) {
	t.Parallel()
	register := &memoryRegister{}
	live := func(f *faultFS) {
		l := openFault(t, f, Config{Installation: "i", Replica: "r", Registrar: register})
		if err := l.Record(t.Context(), granted()); err != nil {
			t.Fatal(err)
		}
		mustClose(t, l)
	}
	f := newFaultFS(4096)
	live(f)
	copied := f.clone()
	live(f)
	refused := func(name, what string, f *faultFS) {
		t.Helper()
		n := len(register.all)
		_, err := Open(t.Context(), Config{Dir: "j", FS: f, Installation: "i", Replica: "r", Registrar: register})
		var damage *DamageError
		if !errors.As(err, &damage) || !strings.Contains(damage.What, what) || len(register.all) != n {
			t.Errorf("%s: %v", name, err)
		}
	}
	refused("deleted", "but it had", newFaultFS(4096))
	register.all = append(register.all, Incarnation{Identity: Identity{"i", "r", 3}, Key: "k", Previous: register.all[1].Previous})
	refused("put back", "as the database knows it", f)
	register.all = register.all[:2]
	other := &memoryRegister{}
	g := copied.clone()
	l := openFault(t, g, Config{Installation: "i", Replica: "r", Registrar: other})
	mustClose(t, l)
	refused("forked", "not the one that the database knows", g)
	// It was registered, and died before its first record.
	register.all = register.all[:2]
	var log bytes.Buffer
	l = openFault(t, copied, Config{Installation: "i", Replica: "r", Registrar: register, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err := l.Record(t.Context(), granted()); err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
	if !strings.Contains(log.String(), "left no record") || !strings.Contains(log.String(), "incarnation=2") {
		t.Errorf("nobody is told that it may have been cut off: %s", &log)
	}
	if last := register.all[len(register.all)-1]; last.Incarnation != 3 {
		t.Errorf("the incarnation is %d", last.Incarnation)
	}
	_, err := Open(t.Context(), Config{Dir: "j", FS: f, Installation: "another", Replica: "r"})
	var damage *DamageError
	if !errors.As(err, &damage) || !strings.Contains(damage.What, "i/r/2") {
		t.Errorf("another installation's: %v", err)
	}
}
