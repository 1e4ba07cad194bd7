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
	"testing"
	"time"
)

// trio are the journals of three replicas that have watched each other.
type trio struct{ a, b, c *testJournal }

func newTrio(t testing.TB) *trio {
	w := &trio{storyOf(t, "a"), storyOf(t, "b"), storyOf(t, "c")}
	all := []*testJournal{w.a, w.b, w.c}
	for _, j := range all[:2] { // one recorded it for the other, which had died: it is one event
		j.add(&j.main, "client.add", `"id":"adopted","outcome":"granted"`)
		j.frame(&j.main)
	}
	for range 2 {
		for _, j := range all {
			for _, other := range all {
				if j != other {
					j.witness(other)
				}
			}
			j.tokens(2)
			j.checkpoint()
		}
	}
	for _, j := range all {
		j.stop()
	}
	return w
}

func (w *trio) dirs() []string { return []string{w.a.dir, w.b.dir, w.c.dir} }

// verdictOf is what is said of a folder, findings and notes.
func verdictOf(t *testing.T, dirs []string, opt VerifyOptions) (found, noted []string) {
	t.Helper()
	reports, err := VerifyAll(dirs, opt)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range reports {
		for _, f := range r.Findings {
			found = append(found, filepath.Base(dirs[i])+" "+f.String())
		}
		for _, f := range r.Notes {
			noted = append(noted, filepath.Base(dirs[i])+" "+f.String())
		}
	}
	return found, noted
}

// Journals that nobody touched agree with what the others say of them, and whoever says it is named with its age.
func TestVerifyAllAccepts(t *testing.T) {
	t.Parallel()
	w := newTrio(t)
	known := slices.Concat(w.a.known(), w.c.known()) // of b the operator has seen nothing
	database := w.b.anchors[len(w.b.anchors)-1]
	head, _ := parseChain([]byte(database.Checkpoint.Head))
	known = append(known, Anchor{Identity: w.b.id, FirstKey: w.b.firstKey,
		Seen: &Sighting{By: ByDatabase, Head: Head{database.Checkpoint.Seq, head}, Time: database.Checkpoint.Time}})
	reports, err := VerifyAll(w.dirs(), VerifyOptions{Known: known})
	if err != nil {
		t.Fatal(err)
	}
	want := [][]string{{"b", "c", "operator"}, {"a", "c", ByDatabase}, {"a", "b", "operator"}}
	for i, r := range reports {
		var by []string
		for _, a := range r.Anchors {
			if !a.Agrees || a.Time.IsZero() || a.Record == 0 || a.Time.After(r.Anchor) {
				t.Errorf("%+v", a)
			}
			by = append(by, a.By)
		}
		slices.Sort(by)
		if len(r.Findings)+len(r.Notes) > 0 || !slices.Equal(by, want[i]) {
			t.Errorf("%d: held to %q: %+v", i, by, r)
		}
	}
	// One that the operator has seen nothing of is one of several. Alone, it is not the one that was looked for.
	seen := slices.Concat(w.a.known(), w.c.known())
	if found, noted := verdictOf(t, w.dirs(), VerifyOptions{Known: seen}); len(found)+len(noted) > 0 {
		t.Errorf("%q, %q", found, noted)
	}
	if _, err := Verify(w.b.dir, seen); err == nil || !strings.Contains(err.Error(), "the known head of inst/") {
		t.Error(err)
	}
	if found, _ := verdictOf(t, []string{w.b.dir}, VerifyOptions{Known: seen, Only: true}); len(found) > 0 {
		t.Errorf("%q", found)
	}
	// Alone, a journal says of which others it speaks.
	found, noted := verdictOf(t, w.dirs()[:1], VerifyOptions{Known: known})
	if len(found) > 0 || len(noted) != 2 || !strings.Contains(noted[0], `replica "b" is not given, but stood at record`) {
		t.Errorf("%q, %q", found, noted)
	}
}

// What is done to one replica's journal is found by what the others say of it, where its own cannot tell; and named.
func TestVerifyAllWitnesses(t *testing.T) {
	t.Parallel()
	remove := func(t *testing.T, names ...string) {
		for _, name := range names {
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, tt := range []struct {
		name   string
		change func(t *testing.T, w *trio)
		what   []string // all in one finding
		alone  bool     // it is found without witnesses as well
	}{
		{name: "tail cut", what: []string{"the journal ends with record", "inst/a/2 stood at record", "as record", `of replica "b" says: its end was cut off`},
			change: func(t *testing.T, w *trio) {
				edit(t, filepath.Join(w.a.dir, w.a.main.segment), func(b []byte) []byte {
					lines := bytes.SplitAfter(b, []byte("\n"))
					return append(bytes.Join(lines[:2], nil), '\n')
				})
			}},
		{name: "newest segment and its refusals deleted", what: []string{"its end was cut off"},
			change: func(t *testing.T, w *trio) {
				remove(t, filepath.Join(w.a.dir, w.a.main.segment), filepath.Join(w.a.dir, w.a.refusals.segment))
			}},
		{name: "newest run deleted", what: []string{"its end was cut off"},
			change: func(t *testing.T, w *trio) { remove(t, w.a.files()[2], w.a.files()[3], w.a.files()[6]) }},
		{name: "oldest segment deleted", what: []string{"no signed record of a retention says so"}, alone: true,
			change: func(t *testing.T, w *trio) { remove(t, w.a.files()[0]) }},
		{name: "a record changed", what: []string{"does not fit its chain"}, alone: true,
			change: func(t *testing.T, w *trio) {
				edit(t, w.a.files()[0], func(b []byte) []byte { return bytes.Replace(b, []byte(`"jti":"j3"`), []byte(`"jti":"x3"`), 1) })
			}},
		{name: "two batches swapped", what: []string{"records 2 to 4 are missing"}, alone: true,
			change: func(t *testing.T, w *trio) {
				edit(t, w.a.files()[0], func(b []byte) []byte {
					lines := bytes.SplitAfter(b, []byte("\n"))
					return bytes.Join(slices.Concat(lines[:2], lines[6:9], lines[2:6], lines[9:]), nil)
				})
			}},
		{name: "made anew", what: []string{"the head of", "that record", `of replica "b" names`},
			change: func(t *testing.T, w *trio) {
				anew := newTestReplica(t, "a")
				anew.tokens(100)
				anew.stop()
				if err := errors.Join(os.RemoveAll(w.a.dir), os.CopyFS(w.a.dir, os.DirFS(anew.dir))); err != nil {
					t.Fatal(err)
				}
			}},
		{name: "made anew with its first key", what: []string{"has another chain here"},
			change: func(t *testing.T, w *trio) {
				kept := w.a.main.head
				*w.a = *newTestReplica(t, "a")
				w.a.begin() // the keys are the folder's, and the witness knows no other
				for w.a.main.head.Seq < kept.Seq+5 {
					w.a.tokens(1)
				}
				w.a.stop()
				w.b.witnessHead(w.a.id, "", Head{Seq: kept.Seq, Chain: kept.Chain})
				w.b.checkpoint()
			}},
		{name: "not given", what: []string{`the journal of replica "a" is not given, but stood at record`, "in run 2"},
			change: func(t *testing.T, w *trio) { w.a.dir = "" }},
		{name: "of another installation", what: []string{"this is a journal of the installation inst"},
			change: func(t *testing.T, w *trio) {
				other := newTestReplica(t, "a")
				other.id.Installation = "elsewhere"
				other.begin()
				remove(t, other.files()[0], other.files()[2])
				*w.a = *other
			}, alone: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newTrio(t)
			tt.change(t, w)
			dirs := slices.DeleteFunc(w.dirs(), func(dir string) bool { return dir == "" })
			found, _ := verdictOf(t, dirs, VerifyOptions{})
			if !slices.ContainsFunc(found, func(f string) bool {
				return !slices.ContainsFunc(tt.what, func(what string) bool { return !strings.Contains(f, what) })
			}) {
				t.Errorf("not found: %q", found)
			}
			if w.a.dir == "" {
				return
			}
			if _, err := Verify(w.a.dir, nil); (err != nil) != tt.alone {
				t.Errorf("without witnesses: %v", err)
			}
		})
	}
}

// A copy that is older than what others say of it is found, unless it was said that the services ran meanwhile, and then
// only for what they said just before the end of theirs.
func TestVerifyAllCopies(t *testing.T) {
	t.Parallel()
	w := newTrio(t)
	copied, stopped := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "a")
	if err := os.CopyFS(stopped, os.DirFS(w.a.dir)); err != nil {
		t.Fatal(err)
	}
	w.a.begin()
	w.a.tokens(2)
	if err := os.CopyFS(copied, os.DirFS(w.a.dir)); err != nil {
		t.Fatal(err)
	}
	w.a.tokens(9)
	for _, j := range []*testJournal{w.b, w.c} {
		j.begin()
		j.witness(w.a) // it is the last that the one says
	}
	w.c.now = w.c.now.Add(time.Hour)
	w.c.checkpoint()
	dirs := []string{copied, w.b.dir, w.c.dir}
	count := func(opt VerifyOptions) int {
		found, _ := verdictOf(t, dirs, opt)
		return len(found)
	}
	if n := count(VerifyOptions{}); n != 2 {
		t.Errorf("%d findings", n)
	}
	if n := count(VerifyOptions{CopiedWithin: time.Minute}); n != 1 {
		t.Errorf("%d findings, and what c said an hour before its end is one", n)
	}
	if n := count(VerifyOptions{CopiedWithin: 2 * time.Hour}); n != 0 {
		t.Errorf("%d findings", n)
	}
	dirs[0] = stopped // that journal had ended: nothing was cut off by copying
	if n := count(VerifyOptions{CopiedWithin: 2 * time.Hour}); n != 2 {
		t.Errorf("%d findings: an older copy of a journal that had ended is accepted", n)
	}
}

// That a copy ends too early is said of its last record, and not of the newlines behind it that were written beforehand.
func TestVerifyEndsAtARecord(t *testing.T) {
	t.Parallel()
	for _, filled := range []int{0, 3 * page} {
		j := newTestJournal(t)
		j.fill = filled
		j.tokens(3)
		j.tokens(2)
		j.write(&j.main)
		head := j.main.head.Seq
		text, err := os.ReadFile(filepath.Join(j.dir, j.main.segment))
		if err != nil {
			t.Fatal(err)
		}
		at := bytes.LastIndex(text, fmt.Appendf(nil, "\n"+recordStart+"%d,", head)) + 1
		line := bytes.Count(text[:at], []byte("\n")) + 1
		later := Anchor{Identity: j.id, Seen: &Sighting{By: ByDatabase, Head: Head{Seq: head + 9}, Time: j.now}}
		report, err := Verify(j.dir, []Anchor{later})
		if err == nil || len(report.Findings) != 1 {
			t.Fatalf("%v: %+v", err, report)
		}
		f := report.Findings[0]
		if f.File != j.main.segment || f.Offset != int64(at) || f.Line != line || f.Record != head+9 {
			t.Errorf("%+v; record %d is in line %d, byte %d", f, head, line, at)
		}
	}
}

// Whoever forges what a journal says of another breaks that journal, and the accused is told so.
func TestVerifyAllLyingWitness(t *testing.T) {
	t.Parallel()
	w := newTrio(t)
	changed := 0
	for _, name := range w.b.files() {
		edit(t, name, func(b []byte) []byte {
			const from, to = `"witness":{"installation":"inst","replica":"a","incarnation":2,"first_key":`, `"witness":{"installation":"inst","replica":"a","incarnation":9,"first_key":`
			changed += bytes.Count(b, []byte(from))
			return bytes.ReplaceAll(b, []byte(from), []byte(to))
		})
	}
	found, _ := verdictOf(t, w.dirs(), VerifyOptions{})
	text := strings.Join(found, "\n")
	if changed == 0 || !strings.Contains(text, "does not fit its chain") || !strings.Contains(text, "but that journal is not what was written itself") {
		t.Errorf("%d forged: %s", changed, text)
	}
}

// What a journal said first of a record that another one never reached counts, whatever it says later; and a record that says
// nothing of anybody is none.
func TestVerifyAllWitnessRecords(t *testing.T) {
	t.Parallel()
	w := newTrio(t)
	w.b.begin()
	w.b.witnessHead(w.a.id, w.a.firstKey, Head{Seq: w.a.main.head.Seq + 9})
	w.b.witness(w.a)
	w.b.stop()
	if found, _ := verdictOf(t, w.dirs(), VerifyOptions{}); len(found) != 1 || !strings.Contains(found[0], "its end was cut off") {
		t.Errorf("%q", found)
	}
	for _, member := range []string{"", `"witness":{}`, `"witness":{"installation":"inst","replica":"a","incarnation":1,"head":{"seq":0,"chain":"` + chainString([32]byte{}) + `"}}`,
		`"witness":{"installation":"inst","replica":"a","incarnation":1,"begun":true,"head":{"seq":5,"chain":"` + chainString([32]byte{}) + `"}}`} {
		j := story(t)
		j.add(&j.main, eventWitness, member)
		j.frame(&j.main)
		j.tokens(1)
		if _, err := Verify(j.dir, nil); err == nil || !strings.Contains(err.Error(), "the record is no JSON of the journal") {
			t.Errorf("%s: %v", member, err)
		}
	}
}

// Those that are left out on purpose are noted.
func TestVerifyAllOnly(t *testing.T) {
	t.Parallel()
	w := newTrio(t)
	dirs := w.dirs()[1:]
	if found, _ := verdictOf(t, dirs, VerifyOptions{}); len(found) != 1 {
		t.Errorf("%q", found)
	}
	found, noted := verdictOf(t, dirs, VerifyOptions{Only: true})
	if len(found) != 0 || len(noted) != 1 || !strings.Contains(noted[0], `the journal of replica "a" is not given`) {
		t.Errorf("%q, %q", found, noted)
	}
	// The operator's heads of it as well; and one that a journal never spoke of.
	alone := storyOf(t, "d")
	alone.stop()
	if found, _ := verdictOf(t, []string{w.b.dir, w.c.dir, w.a.dir}, VerifyOptions{Known: alone.known()}); len(found) != 1 || !strings.Contains(found[0], `replica "d"`) {
		t.Errorf("%q", found)
	}
	if found, noted := verdictOf(t, []string{w.a.dir, w.a.dir, w.b.dir, w.c.dir}, VerifyOptions{}); len(found) != 0 || len(noted) != 1 || !strings.Contains(noted[0], "of the same replica") {
		t.Errorf("%q, %q", found, noted)
	}
}

// A loss that a start was told to accept is found all the same, and noted when whoever verifies says so; what was known of
// the lost records is not asked for then, and everything else is.
func TestVerifyLoss(t *testing.T) {
	t.Parallel()
	j := story(t)
	known := j.known()
	register := j.registered(j.main.head)
	register.all[0].Previous = previousOf(t, j)
	lost := j.main.head
	if err := os.Remove(filepath.Join(j.dir, j.main.segment)); err != nil {
		t.Fatal(err)
	}
	cfg := j.config(register)
	cfg.AcceptLoss = lost.Seq
	l, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Record(t.Context(), granted()); err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
	found, _ := verdictOf(t, []string{j.dir}, VerifyOptions{Known: known})
	if len(found) != 1 || !strings.Contains(found[0], "the service was told to go on without them") {
		t.Errorf("%q", found)
	}
	found, noted := verdictOf(t, []string{j.dir}, VerifyOptions{Known: known, AcceptLoss: true})
	if len(found) != 0 || len(noted) != 1 {
		t.Errorf("%q, %q", found, noted)
	}
	// Of a run that came after the loss nothing is excused.
	later := Anchor{Identity: Identity{j.id.Installation, j.id.Replica, j.id.Incarnation + 1}, Seen: &Sighting{By: ByDatabase, Head: Head{Seq: 1000}, Time: j.now}}
	if found, _ := verdictOf(t, []string{j.dir}, VerifyOptions{Known: append(known, later), AcceptLoss: true}); len(found) != 1 || !strings.Contains(found[0], "its end was cut off") {
		t.Errorf("%q", found)
	}
	// Nor of what was there before it.
	before := Anchor{Identity: j.id, Seen: &Sighting{By: ByDatabase, Head: Head{Seq: 24}, Time: j.now}}
	if found, _ := verdictOf(t, []string{j.dir}, VerifyOptions{Known: append(known, before), AcceptLoss: true}); len(found) != 1 || !strings.Contains(found[0], "were rewritten") {
		t.Errorf("%q", found)
	}
}

// A record of a loss that nothing was lost by, or that is of another place, excuses nothing.
func TestVerifyLossFits(t *testing.T) {
	t.Parallel()
	for name, loss := range map[string]func(Head) Loss{
		"fits": func(h Head) Loss { return Loss{Incarnation: 2, Known: Head{Seq: h.Seq + 5}, Found: h} },
		"another place": func(h Head) Loss {
			return Loss{Incarnation: 2, Known: Head{Seq: h.Seq + 5}, Found: Head{Seq: h.Seq - 1}}
		},
		"nothing is lost": func(h Head) Loss { return Loss{Incarnation: 2, Known: h, Found: h} },
	} {
		j := story(t)
		j.stop()
		text, err := json.Marshal(loss(j.main.head))
		if err != nil {
			t.Fatal(err)
		}
		j.loss = string(text)
		j.begin()
		j.checkpoint()
		found, _ := verdictOf(t, []string{j.dir}, VerifyOptions{AcceptLoss: true})
		if fits := name == "fits"; fits != (len(found) == 0) || !fits && !strings.Contains(found[0], "does not fit") {
			t.Errorf("%s: %q", name, found)
		}
	}
}

// A running service may write a segment's last batch, and begin the next one, after the one was read and before the other
// is: that is read again, and no finding.
func TestVerifyReadsAgain(t *testing.T) {
	t.Parallel()
	for _, torn := range []bool{false, true} {
		j := newTestJournal(t)
		j.fill = 3 * page
		j.tokens(3)
		old := j.main
		j.tokens(2)
		j.rotate(&j.main)
		next := j.main
		name := filepath.Join(j.dir, old.segment)
		whole, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		// The next segment has its name, and nothing is in it yet.
		early := append(bytes.Clone(old.text), bytes.Repeat([]byte("\n"), 3*page)...)
		if torn {
			copy(early[len(old.text):], whole[len(old.text):len(old.text)+40])
		}
		if err := errors.Join(os.WriteFile(name, early, 0o600),
			os.WriteFile(filepath.Join(j.dir, next.segment), bytes.Repeat([]byte("\n"), page), 0o600)); err != nil {
			t.Fatal(err)
		}
		times := 0
		reached := func(segment string, open bool) {
			switch {
			case open != torn:
			case !torn && segment == next.segment && times == 0:
				times++
				if err := os.WriteFile(name, whole, 0o600); err != nil {
					t.Fatal(err)
				}
				j.write(&next)
			case torn && segment == old.segment && times == 0: // it is read as it was when the next one was begun
				times++
				j.write(&next)
				if err := os.Chtimes(name, time.Time{}, time.Now().Add(time.Second)); err != nil {
					t.Fatal(err)
				}
			case torn && segment == old.segment:
				times++
				if err := os.WriteFile(name, whole, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		reports, err := VerifyAll([]string{j.dir}, VerifyOptions{reached: reached})
		if err != nil || len(reports[0].Findings) > 0 || times == 0 || reports[0].Records.Last != next.head.Seq {
			t.Errorf("torn %t: %v, %d times: %+v", torn, err, times, reports[0])
		}
	}
}

// A journal of which another one says only that it was begun is missed when it is not given, and held to its first key.
func TestVerifyAllBegun(t *testing.T) {
	t.Parallel()
	w := newTrio(t)
	w.b.begin()
	w.b.witnessHead(Identity{"inst", "new", 4}, "key", Head{})
	next := w.a.id
	next.Incarnation++
	w.b.witnessHead(next, "key", Head{}) // it was ended before its first record
	w.b.stop()
	found, noted := verdictOf(t, w.dirs(), VerifyOptions{})
	if len(found) != 1 || len(noted) != 0 || !strings.Contains(found[0], `the journal of replica "new" is not given, but began run 4 on `) {
		t.Errorf("%q, %q", found, noted)
	}
	w.a.begin() // with another key
	w.a.stop()
	found, _ = verdictOf(t, w.dirs(), VerifyOptions{})
	if len(found) != 2 || !strings.Contains(found[0], "the key of the first checkpoint is not the one that the beginning of") || !strings.Contains(found[0], "made anew") {
		t.Errorf("%q", found)
	}
	// Nobody but a journal says that one was begun.
	if _, err := Verify(w.c.dir, []Anchor{seenOf("c", 1, 0)}); err == nil || !strings.Contains(err.Error(), "malformed") {
		t.Error(err)
	}
}
