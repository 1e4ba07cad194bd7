// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// contents is what lies in a folder.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		found[e.Name()] = string(text)
	}
	return found
}

// registered is a registrar that knows a journal's newest head.
func (j *testJournal) registered(head Head) *memoryRegister {
	return &memoryRegister{all: []Incarnation{{Identity: j.id, Key: j.firstKey, Started: j.now, Head: head, HeadAt: j.now}}}
}

func (j *testJournal) config(r Registrar) Config {
	return Config{Dir: j.dir, Installation: j.id.Installation, Replica: j.id.Replica, Registrar: r}
}

// A journal that does not reach the head that the database knows, or has another record there, is refused at the start with
// its place, and nothing is touched; one that goes beyond it is taken.
func TestStartHoldsTheKnownHead(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		change func(t *testing.T, j *testJournal) // after the head was kept
		what   string                             // empty: it starts
		file   func(j *testJournal) string
		lost   bool
	}{
		{name: "untouched", change: func(*testing.T, *testJournal) {}},
		{name: "it went on", change: func(_ *testing.T, j *testJournal) { j.tokens(3) }},
		{name: "it went on in another segment", change: func(_ *testing.T, j *testJournal) { j.rotate(&j.main); j.tokens(3) }},
		{name: "it went on in two more", change: func(_ *testing.T, j *testJournal) { j.rotate(&j.main); j.rotate(&j.main) }},
		{name: "a later run that the database forgot", change: func(_ *testing.T, j *testJournal) { j.stop(); j.begin(); j.tokens(2) }},
		{name: "the tail cut off", what: "its end was cut off", lost: true,
			file: func(j *testJournal) string { return filepath.Join(j.dir, j.main.segment) },
			change: func(t *testing.T, j *testJournal) {
				edit(t, filepath.Join(j.dir, j.main.segment), func(b []byte) []byte {
					lines := bytes.SplitAfter(b, []byte("\n"))
					return append(bytes.Join(lines[:2], nil), "\n\n\n"...) // one batch, and what a crash leaves
				})
			}},
		{name: "cut off within a batch", what: "its end was cut off", lost: true,
			file: func(j *testJournal) string { return filepath.Join(j.dir, j.main.segment) },
			change: func(t *testing.T, j *testJournal) {
				edit(t, filepath.Join(j.dir, j.main.segment), func(b []byte) []byte {
					lines := bytes.SplitAfter(b, []byte("\n"))
					return append(bytes.Join(lines[:3], nil), "{\n\n\n"...) // which is torn, and would be written anew
				})
				if err := os.WriteFile(filepath.Join(j.dir, nextName(streamMain)+suffixNew), []byte("\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}},
		{name: "the newest segment deleted", what: "its end was cut off", lost: true,
			file: func(j *testJournal) string { return j.files()[2] },
			change: func(t *testing.T, j *testJournal) {
				if err := os.Remove(filepath.Join(j.dir, j.main.segment)); err != nil {
					t.Fatal(err)
				}
			}},
		{name: "the whole journal deleted", what: "it was deleted", lost: true,
			file: func(j *testJournal) string { return j.dir },
			change: func(t *testing.T, j *testJournal) {
				if err := os.RemoveAll(j.dir); err != nil {
					t.Fatal(err)
				}
			}},
		{name: "rewritten", what: "the journal was rewritten",
			file: func(j *testJournal) string { return filepath.Join(j.dir, j.main.segment) },
			change: func(t *testing.T, j *testJournal) {
				forge(t, j, func(_ uint64, body string) string { return strings.Replace(body, `"jti":"j29"`, `"jti":"x29"`, 1) }, nil)
			}},
		{name: "rewritten, and gone on since", what: "the journal was rewritten",
			file: func(j *testJournal) string { return j.files()[3] },
			change: func(t *testing.T, j *testJournal) {
				j.rotate(&j.main)
				j.rotate(&j.main)
				forge(t, j, func(_ uint64, body string) string { return strings.Replace(body, `"jti":"j29"`, `"jti":"x29"`, 1) }, nil)
			}},
		{name: "the segment after it replaced", what: "it or what was before it was replaced",
			file: func(j *testJournal) string { return j.files()[4] },
			change: func(t *testing.T, j *testJournal) {
				before := j.main
				j.tokens(3)
				j.rotate(&j.main)
				name := j.main.segment
				honest, err := os.ReadFile(filepath.Join(j.dir, before.segment))
				if err != nil {
					t.Fatal(err)
				}
				j.main = before
				j.tokens(3) // at another time
				j.rotate(&j.main)
				if j.main.segment != name {
					t.Fatalf("%s is not %s", j.main.segment, name)
				}
				if err := os.WriteFile(filepath.Join(j.dir, before.segment), honest, 0o600); err != nil {
					t.Fatal(err)
				}
			}},
		{name: "the run deleted and begun anew", what: "no segment holds record",
			file: func(j *testJournal) string { return j.files()[0] },
			change: func(t *testing.T, j *testJournal) {
				for _, name := range j.files() {
					if err := os.Remove(name); err != nil {
						t.Fatal(err)
					}
				}
				j.main, j.refusals = testStream{name: streamMain}, testStream{name: streamRefusals}
				j.begin()
				j.tokens(50)
			}},
		{name: "the run deleted and gone on without it", what: "the journal was rewritten",
			file: func(j *testJournal) string { return j.files()[1] },
			change: func(t *testing.T, j *testJournal) {
				kept := previousOf(t, j)
				for _, name := range j.files()[2:4] {
					if err := os.Remove(name); err != nil {
						t.Fatal(err)
					}
				}
				j.main.head, j.main.segment = kept, ""
				j.begin()
				j.tokens(50)
			}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			j := story(t)
			head := j.main.head
			register := j.registered(head)
			register.all[0].Previous = previousOf(t, j)
			tt.change(t, j)
			before := contents(t, j.dir)
			l, err := Open(t.Context(), j.config(register))
			if tt.what == "" {
				if err != nil {
					t.Fatal(err)
				}
				mustClose(t, l)
				if last := register.all[len(register.all)-1]; len(register.all) != 2 || last.Previous.Seq < head.Seq {
					t.Errorf("registered is %+v", register.all)
				}
				return
			}
			damage, ok := errors.AsType[*DamageError](err)
			if !ok || !strings.Contains(damage.What, tt.what) || damage.File != tt.file(j) || (damage.Lost == head.Seq) != tt.lost {
				t.Errorf("error is %#v", err)
			}
			if ok && !strings.Contains(damage.What, fmt.Sprint(head.Seq)) && !strings.Contains(damage.What, "replaced") {
				t.Errorf("%q does not say what was expected", damage.What)
			}
			if diff := cmp.Diff(before, contents(t, j.dir)); diff != "" || len(register.all) != 1 {
				t.Errorf("it was touched: %s", diff)
			}
		})
	}
}

// previousOf reads what the newest incarnation follows.
func previousOf(t *testing.T, j *testJournal) Head {
	t.Helper()
	for _, name := range j.files() {
		if _, incarnation, _, ok := parseSegmentName(filepath.Base(name)); ok && incarnation == j.id.Incarnation && strings.Contains(name, streamMain+"-") {
			s, err := scan(systemFS{}, j.dir, filepath.Base(name))
			if err != nil {
				t.Fatal(err)
			}
			return s.header.Previous
		}
	}
	t.Fatal("there is none")
	return Head{}
}

// A loss goes on only by the number of the record that was known, and leaves its trace in the first record before anything
// is registered.
func TestAcceptedLoss(t *testing.T) {
	t.Parallel()
	j := story(t)
	head := j.main.head
	register := j.registered(head)
	register.all[0].Previous = previousOf(t, j)
	lost := filepath.Join(j.dir, j.main.segment)
	if err := os.Remove(lost); err != nil {
		t.Fatal(err)
	}
	cfg := j.config(register)
	for _, n := range []uint64{0, head.Seq - 1, head.Seq + 1} {
		cfg.AcceptLoss = n
		if _, err := Open(t.Context(), cfg); err == nil {
			t.Fatalf("%d was accepted", n)
		}
	}
	cfg.AcceptLoss = head.Seq
	register.fails = errors.New("the database is away")
	if _, err := Open(t.Context(), cfg); !errors.Is(err, register.fails) {
		t.Fatal(err)
	}
	register.fails = nil
	// The journal says it, and the database does not know the run: it is asked for again.
	cfg.AcceptLoss = 0
	if damage, ok := errors.AsType[*DamageError](openError(t, cfg)); !ok || damage.Lost != head.Seq {
		t.Fatalf("%+v", damage)
	}
	cfg.AcceptLoss = head.Seq
	l, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
	last := register.all[len(register.all)-1]
	if len(register.all) != 2 || last.Incarnation != j.id.Incarnation+2 || last.Previous.Seq >= head.Seq {
		t.Errorf("registered is %+v", register.all)
	}
	var losses []Loss
	for _, line := range recordLines(t, j.dir)[streamMain] {
		e, err := ParseEntry([]byte(line))
		if err != nil {
			t.Fatal(err)
		}
		if e.Journal != nil && e.Journal.Loss != nil {
			losses = append(losses, *e.Journal.Loss)
		}
	}
	if len(losses) != 2 || losses[1].Known != head || losses[1].Found.Seq >= head.Seq || losses[1].Incarnation != j.id.Incarnation || losses[1].KnownAt == "" {
		t.Errorf("%+v", losses)
	}
	// The same command line does no harm to a later start.
	l, err = Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
	if n := len(register.all); n != 3 {
		t.Errorf("%d were registered", n)
	}
}

func openError(t *testing.T, cfg Config) error {
	t.Helper()
	l, err := Open(t.Context(), cfg)
	if err == nil {
		mustClose(t, l)
	}
	return err
}

// On a disk that has no room for the record of a loss, the loss is not registered either.
func TestAcceptedLossOnAFullDisk(t *testing.T) {
	t.Parallel()
	f := newFaultFS(4096)
	register := &memoryRegister{all: []Incarnation{{Identity: Identity{"i", "r", 3}, Head: Head{Seq: 50}}}}
	full := true
	f.before = func(op, _ string) error {
		if full && op == "write" {
			return syscall.ENOSPC
		}
		return nil
	}
	l, err := Open(t.Context(), Config{Dir: "j", FS: f, Installation: "i", Replica: "r", Registrar: register, AcceptLoss: 50})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Err(); !errors.Is(err, ErrFull) || len(register.all) != 1 {
		t.Fatalf("%v, registered %+v", err, register.all)
	}
	f.mu.Lock()
	full = false
	f.mu.Unlock()
	if err := l.MakeRoom(); err != nil {
		t.Fatal(err)
	}
	if err := l.Record(t.Context(), granted()); err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
	if lines := chained(t, f, streamMain); !bytes.Contains(lines[0], []byte(`"loss":{"incarnation":3,"known":{"seq":50,`)) || len(register.all) != 2 {
		t.Errorf("%s", lines[0])
	}
}

// The head that is given out is signed and durable, in both modes, and follows what was recorded, but for other journals'
// heads.
func TestSignedHead(t *testing.T) {
	t.Parallel()
	for _, mode := range []Sync{Always, Interval} {
		f := newFaultFS(4096)
		l := openFault(t, f, Config{Sync: mode, SyncInterval: time.Hour})
		if seq, chain := l.SignedHead(); seq != 0 || chain != [32]byte{} {
			t.Errorf("%d before anything was signed", seq)
		}
		if err := l.Record(t.Context(), granted()); err != nil {
			t.Fatal(err)
		}
		s := l.main
		sign := func(sync bool) {
			s.mu.Lock()
			for s.committing {
				s.changed.Wait()
			}
			l.checkpoint(s)
			s.commit(sync)
			s.mu.Unlock()
		}
		if mode == Interval {
			sign(false)
			if seq, _ := l.SignedHead(); seq != 0 {
				t.Error("a head was given out that a crash would take back")
			}
		}
		sign(true)
		seq, chain := l.SignedHead()
		a, ok := l.Checkpoint()
		if !ok || seq < 2 || mode == Always && (seq != a.Checkpoint.Seq || chainString(chain) != a.Checkpoint.Head) {
			t.Errorf("%d, signed is %+v", seq, a)
		}
		if n, alarms := l.Witness([]Anchor{seenOf("b", 1, 7)}); n != 1 || len(alarms) > 0 {
			t.Errorf("%d recorded, %v", n, alarms)
		}
		sign(true)
		if again, _ := l.SignedHead(); again != seq {
			t.Errorf("another journal's head moved it from %d to %d", seq, again)
		}
		if err := l.Record(t.Context(), granted()); err != nil {
			t.Fatal(err)
		}
		sign(true)
		if again, _ := l.SignedHead(); again <= seq {
			t.Error("it does not move")
		}
		mustClose(t, l)
		if again, _ := l.SignedHead(); again != chainedHead(t, f)-1 { // the last record is the checkpoint itself
			t.Errorf("closed at %d", again)
		}
		f.crash()
	}
}

func chainedHead(t *testing.T, f *faultFS) uint64 {
	t.Helper()
	lines := chained(t, f, streamMain)
	seq, _ := recordNumber(lines[len(lines)-1])
	return seq
}

// seenOf is a head of another replica's journal.
func seenOf(replica string, incarnation, seq uint64) Anchor {
	return Anchor{
		Identity: Identity{"i", replica, incarnation}, FirstKey: "k",
		Seen: &Sighting{By: ByDatabase, Head: Head{Seq: seq, Chain: [32]byte{byte(seq)}}, Time: noon},
	}
}

// Other journals' heads are recorded when they move, each at most every 30 seconds; what goes back is an alarm, and one's own
// is nobody's business.
func TestWitness(t *testing.T) {
	t.Parallel()
	f := newFaultFS(4096)
	clock := &handClock{}
	l := openFault(t, f, Config{Installation: "i", Replica: "a", Now: clock.now})
	want := func(n, alarmed int, heads ...Anchor) {
		t.Helper()
		if got, alarms := l.Witness(heads); got != n || len(alarms) != alarmed {
			t.Errorf("%d recorded, %v", got, alarms)
		}
	}
	want(0, 0)
	want(2, 0, seenOf("a", 1, 3), seenOf("b", 1, 5), seenOf("c", 4, 50))
	clock.advance(witnessEvery - 1)
	want(0, 0, seenOf("b", 1, 6))
	clock.advance(1)
	want(1, 0, seenOf("b", 1, 7), seenOf("c", 4, 50))
	clock.advance(time.Hour)
	want(0, 0, seenOf("b", 1, 7), seenOf("c", 4, 50))
	want(0, 2, seenOf("b", 1, 6), seenOf("c", 3, 90))
	want(1, 0, seenOf("b", 2, 2))
	mustClose(t, l)
	var seen []string
	for _, line := range chained(t, f, streamMain) {
		if bytes.Contains(line, []byte(`"event":"`+eventWitness+`"`)) {
			_, member, _ := strings.Cut(string(line), `"witness":`)
			seen = append(seen, member[:strings.Index(member, `"chain"`)])
		}
	}
	var wanted []string
	for _, w := range []Anchor{seenOf("b", 1, 5), seenOf("c", 4, 50), seenOf("b", 1, 7), seenOf("b", 2, 2)} {
		wanted = append(wanted, fmt.Sprintf(`{"installation":"i","replica":%q,"incarnation":%d,"first_key":"k","head":{"seq":%d,`, w.Replica, w.Incarnation, w.Seen.Head.Seq))
	}
	if diff := cmp.Diff(wanted, seen); diff != "" {
		t.Error(diff)
	}
	verified(t, f)
}

// A run of another replica that nothing was recorded of is recorded at once, and that it was begun once; what was known of
// the one before it goes on to count.
func TestWitnessOfTheBegun(t *testing.T) {
	t.Parallel()
	f := newFaultFS(4096)
	clock := &handClock{}
	l := openFault(t, f, Config{Installation: "i", Replica: "a", Now: clock.now})
	begun := func(replica string, incarnation uint64) Anchor { return seenOf(replica, incarnation, 0) }
	want := func(n int, heads ...Anchor) {
		t.Helper()
		if got, alarms := l.Witness(heads); got != n || len(alarms) > 0 {
			t.Errorf("%d recorded, %v", got, alarms)
		}
	}
	is := func(witnessed bool, replica string, incarnation uint64) {
		t.Helper()
		if l.Witnesses(Identity{"i", replica, incarnation}) != witnessed {
			t.Errorf("run %d of %s: %t is wrong", incarnation, replica, !witnessed)
		}
	}
	is(false, "b", 1)
	want(1, begun("b", 1), begun("a", 7))
	is(true, "b", 1)
	is(false, "b", 0)
	is(false, "c", 1)
	want(0, begun("b", 1), seenOf("b", 1, 3)) // its head has time
	clock.advance(witnessEvery)
	want(1, begun("b", 1), seenOf("b", 1, 4))
	want(2, seenOf("b", 2, 9), begun("b", 3)) // these have not
	want(0, seenOf("b", 2, 9), begun("b", 3), begun("b", 2))
	is(false, "b", 1) // the newest are remembered
	is(true, "b", 2)
	is(true, "b", 3)
	clock.advance(witnessEvery)
	want(1, seenOf("b", 2, 10), begun("b", 3)) // what it left when it ended
	mustClose(t, l)
	is(true, "b", 3)
	var seen []string
	for _, line := range chained(t, f, streamMain) {
		if _, member, ok := strings.Cut(string(line), `"witness":{"installation":"i","replica":"b",`); ok {
			seen = append(seen, member[:strings.Index(member, `}`)])
		}
	}
	if len(seen) != 5 || !strings.HasPrefix(seen[0], `"incarnation":1,"first_key":"k","begun":true,"time":"`) ||
		!strings.HasPrefix(seen[1], `"incarnation":1,"first_key":"k","head":{"seq":4,`) {
		t.Errorf("%q", seen)
	}
	verified(t, f)
}

// Whoever is told that there is a witness may rely on the disk having it, in both modes; what the disk did not take is none.
func TestWitnessIsDurable(t *testing.T) {
	t.Parallel()
	for _, mode := range []Sync{Always, Interval} {
		f := newFaultFS(4096)
		l := openFault(t, f, Config{Installation: "i", Replica: "a", Sync: mode, SyncInterval: time.Hour})
		l.Witness([]Anchor{seenOf("b", 1, 0)})
		if !l.Witnesses(Identity{"i", "b", 1}) {
			t.Fatal("there is no witness")
		}
		if kept := chained(t, f.clone(), streamMain); !bytes.Contains(bytes.Join(kept, nil), []byte(`"replica":"b","incarnation":1,"first_key":"k","begun":true`)) {
			t.Errorf("mode %d: the disk has %s", mode, kept)
		}
		l.Witness([]Anchor{seenOf("b", 2, 0)})
		f.before = func(op, _ string) error {
			if op == "sync" {
				return syscall.EIO
			}
			return nil
		}
		if l.Witnesses(Identity{"i", "b", 2}) {
			t.Error("what the disk refused is a witness")
		}
		_ = l.Close() // it failed
	}
}
