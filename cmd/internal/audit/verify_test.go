// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestVerifyAccepts(t *testing.T) {
	t.Parallel()
	for name, build := range map[string]func(*testJournal){
		"story":           func(*testJournal) {},
		"filled":          func(j *testJournal) { j.fill = 3 * page; j.write(&j.main); j.write(&j.refusals) },
		"long line":       func(j *testJournal) { j.add(&j.main, "x", `"a":"`+strings.Repeat("x", 60<<10)+`"`); j.checkpoint() },
		"closed":          func(j *testJournal) { j.stop() },
		"begun again":     func(j *testJournal) { j.stop(); j.begin(); j.checkpoint() },
		"killed and away": func(j *testJournal) { j.begin(); j.begin(); j.checkpoint() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			j := story(t)
			build(j)
			r, err := Verify(j.dir, j.known())
			if err != nil {
				t.Fatalf("%v: %+v", err, r)
			}
			if len(r.Notes) != 0 || r.Records.Uncovered != 0 || r.Refusals.Uncovered != 0 {
				t.Errorf("%+v", r)
			}
			if r.Records.Last != j.main.head.Seq || r.Records.Records != j.main.head.Seq || r.Refusals.Records != j.refusals.head.Seq ||
				r.Incarnations != int(j.id.Incarnation) || r.Checkpoint.Seq != j.main.head.Seq-1 || !r.Anchor.Equal(j.anchors[len(j.anchors)-1].Checkpoint.Time) {
				t.Errorf("%+v", r)
			}
			if want := name == "closed"; r.Closed != want {
				t.Errorf("closed: %v", r.Closed)
			}
		})
	}
}

// lines are the lines of a journal's records, by stream, in the order of its files.
func recordLines(t testing.TB, dir string) map[string][]string {
	t.Helper()
	main, refusals, _, err := segmentFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string][]string{}
	for _, f := range slices.Concat(main, refusals) {
		text, err := os.ReadFile(filepath.Join(dir, f.name))
		if err != nil {
			t.Fatal(err)
		}
		for line := range bytes.SplitSeq(text, []byte("\n")) {
			if bytes.HasPrefix(line, []byte(recordStart)) {
				found[f.stream] = append(found[f.stream], string(line))
			}
		}
	}
	return found
}

// unseen fails when a journal was changed and Verify says nothing. The heads are those of the last checkpoint, so what
// it may accept silently has the same records.
func (j *testJournal) unseen(t testing.TB, before map[string][]string, what string) (*Report, error) {
	t.Helper()
	r, err := Verify(j.dir, j.known())
	if err != nil {
		if tampered, ok := errors.AsType[*TamperError](err); !ok || len(tampered.Findings) == 0 {
			t.Errorf("%s: %v", what, err)
		}
		return r, err
	}
	after := recordLines(t, j.dir)
	covered := int(j.anchors[len(j.anchors)-1].Checkpoint.Seq)
	switch {
	case len(after[streamMain]) < covered || !slices.Equal(before[streamMain][:covered], after[streamMain][:covered]):
		t.Errorf("%s: accepted with other records below the known head: %+v", what, r)
	case len(r.Notes) > 0 || r.Records.Uncovered+r.Refusals.Uncovered > 0:
	case !cmp.Equal(before, after):
		t.Errorf("%s: accepted silently with other records", what)
	}
	return r, err
}

// Any byte that is changed is found, and its line named; at the very end, where a batch may be torn, at least noted.
func TestVerifyChangedBytes(t *testing.T) {
	t.Parallel()
	j := story(t)
	before := recordLines(t, j.dir)
	flips := 0
	for f, name := range j.files() {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for at := f % 23; at < len(text); at += 23 {
			for _, with := range []byte{text[at] ^ 1, '\n', 0, '"'} {
				if with == text[at] {
					continue
				}
				flips++
				changed := bytes.Clone(text)
				changed[at] = with
				if err := os.WriteFile(name, changed, 0o600); err != nil {
					t.Fatal(err)
				}
				what := fmt.Sprintf("%s byte %d %q to %q", filepath.Base(name), at, text[at], with)
				r, err := j.unseen(t, before, what)
				if err == nil && len(r.Notes) == 0 {
					continue // the records are the same
				}
				first := slices.Concat(r.Findings, r.Notes)[0]
				line := 1 + bytes.Count(text[:at], []byte("\n"))
				if first.File != filepath.Base(name) || first.Offset > int64(at)+1 || first.Line > line+1 {
					// A line more, because the newline itself may have gone.
					if first.Line > line+batchLines(text, at) || first.File != filepath.Base(name) {
						t.Errorf("%s is line %d, but it says %+v", what, line, first)
					}
				}
			}
		}
		if err := os.WriteFile(name, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if flips < 1200 {
		t.Errorf("only %d bytes were changed", flips)
	}
	if _, err := Verify(j.dir, j.known()); err != nil {
		t.Error("it was not put back:", err)
	}
}

// batchLines is how many lines there are from a byte to the end of its batch, where a changed frame is noticed.
func batchLines(text []byte, at int) int {
	rest := text[at:]
	end := bytes.Index(rest, []byte("\n"+frameStart))
	if end < 0 {
		return 2
	}
	return 2 + bytes.Count(rest[:end+1], []byte("\n"))
}

// Lines that are dropped, doubled or swapped are found, one by one.
func TestVerifyChangedLines(t *testing.T) {
	t.Parallel()
	j := story(t)
	before := recordLines(t, j.dir)
	for _, name := range j.files() {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		lines := bytes.SplitAfter(bytes.TrimSuffix(text, []byte("\n")), []byte("\n"))
		lines[len(lines)-1] = append(bytes.Clone(lines[len(lines)-1]), '\n')
		for i := range lines {
			for kind, changed := range map[string][][]byte{
				"dropped": slices.Delete(slices.Clone(lines), i, i+1),
				"doubled": slices.Insert(slices.Clone(lines), i, lines[i]),
				"swapped": swap(lines, i),
				"blanked": replace(lines, i, bytes.Repeat([]byte("\n"), len(lines[i]))),
				"spaced":  replace(lines, i, append([]byte(" "), lines[i]...)),
				"garbled": replace(lines, i, []byte("{}\n")),
			} {
				if err := os.WriteFile(name, bytes.Join(changed, nil), 0o600); err != nil {
					t.Fatal(err)
				}
				what := fmt.Sprintf("%s line %d %s", filepath.Base(name), i+1, kind)
				r, err := j.unseen(t, before, what)
				isRecord := bytes.HasPrefix(lines[i], []byte(recordStart))
				if err == nil && len(r.Notes) == 0 && isRecord && kind != "swapped" && i < len(lines)-2 {
					t.Errorf("%s: nothing was said", what)
				}
				if err != nil && (r.Findings[0].File != filepath.Base(name) || r.Findings[0].Line > i+batchLines(bytes.Join(lines[i:], nil), 0)+1) {
					if seq, _ := recordNumber(lines[0]); !isRecord || seq == 0 || r.Findings[0].File == "" {
						t.Errorf("%s: %+v", what, r.Findings[0])
					}
				}
			}
		}
		if err := os.WriteFile(name, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func swap(lines [][]byte, i int) [][]byte {
	swapped := slices.Clone(lines)
	if i+1 < len(lines) {
		swapped[i], swapped[i+1] = swapped[i+1], swapped[i]
	}
	return swapped
}

func replace(lines [][]byte, i int, with []byte) [][]byte {
	replaced := slices.Clone(lines)
	replaced[i] = with
	return replaced
}

// What was removed or replaced as a whole is found, and said what it is.
func TestVerifyNames(t *testing.T) {
	t.Parallel()
	remove := func(t *testing.T, names ...string) {
		for _, name := range names {
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, tt := range []struct {
		name    string
		change  func(t *testing.T, j *testJournal)
		file    string // of the first finding
		what    string
		nothing bool // without known heads it cannot be seen
	}{
		{name: "a record changed", what: "the record does not fit its chain", file: "audit-00000001-0000000000000001.jsonl",
			change: func(t *testing.T, j *testJournal) {
				edit(t, j.files()[0], func(b []byte) []byte { return bytes.Replace(b, []byte(`"jti":"j3"`), []byte(`"jti":"x3"`), 1) })
			}},
		{name: "a record removed with its place in the frame", what: "record 3 is missing", file: "audit-00000001-0000000000000001.jsonl",
			change: func(t *testing.T, j *testJournal) {
				edit(t, j.files()[0], func(b []byte) []byte {
					lines := bytes.SplitAfter(b, []byte("\n"))
					return bytes.Join(slices.Delete(lines, 3, 4), nil)
				})
			}},
		{name: "a batch removed", what: "records 2 to 4 are missing", file: "audit-00000001-0000000000000001.jsonl",
			change: func(t *testing.T, j *testJournal) {
				edit(t, j.files()[0], func(b []byte) []byte {
					lines := bytes.SplitAfter(b, []byte("\n"))
					return bytes.Join(slices.Delete(lines, 2, 6), nil)
				})
			}},
		{name: "a batch doubled", what: "it is repeated", file: "audit-00000001-0000000000000001.jsonl",
			change: func(t *testing.T, j *testJournal) {
				edit(t, j.files()[0], func(b []byte) []byte {
					lines := bytes.SplitAfter(b, []byte("\n"))
					return bytes.Join(slices.Insert(lines, 6, lines[2:6]...), nil)
				})
			}},
		{name: "two batches swapped", what: "records 2 to 4 are missing", file: "audit-00000001-0000000000000001.jsonl",
			change: func(t *testing.T, j *testJournal) {
				edit(t, j.files()[0], func(b []byte) []byte {
					lines := bytes.SplitAfter(b, []byte("\n"))
					return bytes.Join(slices.Concat(lines[:2], lines[6:9], lines[2:6], lines[9:]), nil)
				})
			}},
		{name: "the first segment removed", what: "are missing, and no signed record of a retention says so", file: "audit-00000001-0000000000000010.jsonl",
			change: func(t *testing.T, j *testJournal) { remove(t, j.files()[0]) }},
		{name: "a segment removed", what: "are missing", file: "audit-00000002-0000000000000022.jsonl",
			change: func(t *testing.T, j *testJournal) { remove(t, j.files()[1]) }},
		{name: "an incarnation removed", what: "no signed record of a retention", file: "audit-00000002-0000000000000022.jsonl",
			change: func(t *testing.T, j *testJournal) { remove(t, j.files()[:2]...) }},
		{name: "the last segment removed", what: "its end was cut off", file: "audit-00000002-0000000000000022.jsonl",
			change: func(t *testing.T, j *testJournal) { remove(t, j.files()[3]) }},
		{name: "all decisions removed", what: "the journal is missing: only the stream of refusals is there",
			change: func(t *testing.T, j *testJournal) { remove(t, j.files()[:4]...) }},
		{name: "everything removed", what: "it was deleted",
			change: func(t *testing.T, j *testJournal) { remove(t, j.files()...) }},
		{name: "the folder removed", what: "it was deleted",
			change: func(t *testing.T, j *testJournal) {
				if err := os.RemoveAll(j.dir); err != nil {
					t.Fatal(err)
				}
			}},
		{name: "the last incarnation removed", what: "its end was cut off", file: "audit-00000001-0000000000000010.jsonl", nothing: true,
			change: func(t *testing.T, j *testJournal) { remove(t, j.files()[2], j.files()[3], j.files()[6]) }},
		{name: "a segment renamed", what: "the segment is not the one that its name says", file: "audit-00000001-0000000000000011.jsonl",
			change: func(t *testing.T, j *testJournal) {
				if err := os.Rename(j.files()[1], filepath.Join(j.dir, "audit-00000001-0000000000000011.jsonl")); err != nil {
					t.Fatal(err)
				}
			}},
		{name: "a segment under a second name", what: "the segment is not the one that its name says", file: "audit-00000001-0000000000000015.jsonl",
			change: func(t *testing.T, j *testJournal) {
				text, err := os.ReadFile(j.files()[1])
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(j.dir, "audit-00000001-0000000000000015.jsonl"), text, 0o600); err != nil {
					t.Fatal(err)
				}
			}},
		{name: "two segments exchanged", what: "the segment is not the one that its name says", file: "audit-00000001-0000000000000001.jsonl",
			change: func(t *testing.T, j *testJournal) {
				files := j.files()
				for _, names := range [][2]string{{files[0], files[0] + "x"}, {files[1], files[0]}, {files[0] + "x", files[1]}} {
					if err := os.Rename(names[0], names[1]); err != nil {
						t.Fatal(err)
					}
				}
			}},
		{name: "refusals removed", what: "no signed record of a drop says so", file: "refusals-00000001-0000000000000005.jsonl",
			change: func(t *testing.T, j *testJournal) { remove(t, j.files()[4]) }},
		{name: "a closed segment cut off", what: "has no frame", file: "audit-00000001-0000000000000001.jsonl",
			change: func(t *testing.T, j *testJournal) {
				edit(t, j.files()[0], func(b []byte) []byte {
					lines := bytes.SplitAfter(b, []byte("\n"))
					return bytes.Join(lines[:len(lines)-2], nil)
				})
			}},
		{name: "an older copy put back", what: "or an older copy put back", nothing: true,
			change: func(t *testing.T, j *testJournal) {
				old := map[string][]byte{}
				for _, name := range j.files() {
					text, err := os.ReadFile(name)
					if err != nil {
						t.Fatal(err)
					}
					old[name] = text
				}
				j.tokens(2)
				j.checkpoint()
				j.stop()
				j.begin()
				j.checkpoint()
				for _, name := range j.files() {
					if old[name] == nil {
						remove(t, name)
					} else if err := os.WriteFile(name, old[name], 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			j := story(t)
			tt.change(t, j)
			r, err := Verify(j.dir, j.known())
			if err == nil {
				t.Fatalf("accepted: %+v", r)
			}
			if first := r.Findings[0]; !strings.Contains(first.What, tt.what) || tt.file != "" && first.File != tt.file {
				t.Errorf("%+v, want %q in %s", r.Findings, tt.what, tt.file)
			}
			r, err = Verify(j.dir, nil)
			switch {
			case tt.nothing && err != nil:
				t.Errorf("without known heads: %v", err)
			case strings.HasSuffix(tt.what, "deleted") || strings.Contains(tt.what, "its end"):
			case !tt.nothing && err == nil:
				t.Errorf("accepted without known heads: %+v", r)
			}
		})
	}
}

// One cause is one finding: what follows a changed record is not blamed.
func TestVerifyResumes(t *testing.T) {
	t.Parallel()
	j := story(t)
	edit(t, j.files()[0], func(b []byte) []byte { return bytes.Replace(b, []byte(`"jti":"j3"`), []byte(`"jti":"x3"`), 1) })
	edit(t, j.files()[1], func(b []byte) []byte { // its chain, not what it covers
		at := bytes.Index(b, []byte(`"jti":"j12"`))
		chain := at + bytes.Index(b[at:], []byte(chainMember)) + len(chainMember)
		b[chain] = "AB"[b[chain]&1]
		return b
	})
	edit(t, j.files()[3], func(b []byte) []byte { return bytes.Replace(b, []byte("payments"), []byte("paYments"), 1) })
	r, err := Verify(j.dir, j.known())
	if err == nil || len(r.Findings) != 3 {
		t.Fatalf("%v: %+v", err, r)
	}
	for i, want := range []string{"audit-00000001-0000000000000001.jsonl 4", "audit-00000001-0000000000000010.jsonl 4", "audit-00000002-0000000000000027.jsonl 3"} {
		if got := fmt.Sprint(r.Findings[i].File, " ", r.Findings[i].Line); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// A journal cut off anywhere below a known head is found; above it, what is there is accepted.
func TestVerifyCutOff(t *testing.T) {
	t.Parallel()
	j := story(t)
	j.tokens(2) // after the last checkpoint
	j.tokens(1)
	name := filepath.Join(j.dir, j.main.segment)
	text := bytes.Clone(j.main.text)
	known := j.known()
	head := bytes.Index(text, fmt.Appendf(nil, `{"seq":%d,`, j.anchors[len(j.anchors)-1].Checkpoint.Seq+1))
	for end := len(text) - 1; end >= 0; end -= 41 {
		for _, fill := range []int{0, 1, 5000} {
			if err := os.WriteFile(name, append(bytes.Clone(text[:end]), bytes.Repeat([]byte("\n"), fill)...), 0o600); err != nil {
				t.Fatal(err)
			}
			r, err := Verify(j.dir, known)
			if below := end < head-1; below != (err != nil) {
				t.Fatalf("cut off at %d of %d (the known head ends at %d): %v %+v", end, len(text), head, err, r)
			}
			if err != nil && !strings.Contains(err.Error(), "its end was cut off") {
				t.Fatalf("cut off at %d: %v", end, err)
			}
			if _, err := Verify(j.dir, nil); err != nil {
				t.Fatalf("cut off at %d, without known heads: %v", end, err)
			}
		}
	}
}

// Files that are no segments are noted, but for those that the journal makes itself.
func TestVerifyForeignFiles(t *testing.T) {
	t.Parallel()
	j := story(t)
	for _, name := range []string{"audit" + suffixNew, reserveName, "audit-1-1.jsonl", "notes.txt"} {
		if err := os.WriteFile(filepath.Join(j.dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r, err := Verify(j.dir, j.known())
	if err != nil || len(r.Notes) != 2 || !strings.Contains(r.Notes[0].What+r.Notes[1].What, "notes.txt") {
		t.Errorf("%v: %+v", err, r)
	}
}

// A segment that was ended without the journal's own last word was cut off, by somebody or by a start that went no further.
func TestVerifyEndedWithoutStop(t *testing.T) {
	t.Parallel()
	j := story(t)
	edit(t, filepath.Join(j.dir, j.main.segment), func(b []byte) []byte { return append(bytes.TrimRight(b, "\n"), '\n') })
	r, err := Verify(j.dir, j.known())
	if err != nil || len(r.Notes) != 1 || !strings.Contains(r.Notes[0].What, "may have been cut off") || r.Notes[0].File != j.main.segment {
		t.Errorf("%v: %+v", err, r)
	}
}

// A run of which no record is left is noted, also when the next one follows on without a gap: it may have been cut off whole.
func TestVerifyMissingRun(t *testing.T) {
	t.Parallel()
	for gap, want := range map[uint64]string{1: "run 3 of the service left no record", 2: "runs 3 to 4 of the service left no record"} {
		j := story(t)
		j.stop()
		j.id.Incarnation += gap
		j.begin()
		j.checkpoint()
		r, err := Verify(j.dir, nil)
		if err != nil || len(r.Notes) != 1 || !strings.HasPrefix(r.Notes[0].What, want) || r.Notes[0].File != j.main.segment {
			t.Errorf("%v: %+v", err, r)
		}
	}
}

// Whoever has no key cannot chain anew, and whoever makes new ones is betrayed by the ratchet, or by the known head.
func TestVerifyForgers(t *testing.T) {
	t.Parallel()
	t.Run("chained anew without the keys", func(t *testing.T) {
		t.Parallel()
		j := story(t)
		forge(t, j, func(seq uint64, body string) string {
			return strings.Replace(body, `"jti":"j3"`, `"jti":"x3"`, 1)
		}, nil)
		r, err := Verify(j.dir, nil)
		if err == nil || !strings.Contains(err.Error(), "the checkpoint does not say where the chain stands") {
			t.Errorf("%v: %+v", err, r)
		}
	})
	t.Run("chained anew with heads that fit", func(t *testing.T) {
		t.Parallel()
		j := story(t)
		forge(t, j, func(_ uint64, body string) string {
			return strings.Replace(body, `"jti":"j3"`, `"jti":"x3"`, 1)
		}, func(c *Checkpoint) {})
		r, err := Verify(j.dir, nil)
		if err == nil || !strings.Contains(err.Error(), "the signature of the checkpoint is wrong") {
			t.Errorf("%v: %+v", err, r)
		}
	})
	t.Run("signed anew with another key", func(t *testing.T) {
		t.Parallel()
		j := story(t)
		forge(t, j, func(_ uint64, body string) string {
			return strings.Replace(body, `"jti":"j3"`, `"jti":"x3"`, 1)
		}, func(c *Checkpoint) {
			key := j.newKey()
			c.Key = publicText(key)
			c.sign(key)
		})
		r, err := Verify(j.dir, nil)
		if err == nil || !strings.Contains(err.Error(), "another key than the one before it named") {
			t.Errorf("%v: %+v", err, r)
		}
	})
	t.Run("made anew with keys of its own", func(t *testing.T) {
		t.Parallel()
		j := story(t)
		known := j.known()
		other := newTestJournal(t)
		for i := range 20 {
			other.keys += 100 // other ones
			other.tokens(2)
			other.checkpoint()
			if i == 10 {
				other.stop()
				other.begin()
			}
		}
		if _, err := Verify(other.dir, nil); err != nil {
			t.Errorf("nobody could tell: %v", err)
		}
		r, err := Verify(other.dir, known)
		if err == nil {
			t.Errorf("accepted: %+v", r)
		}
		all := fmt.Sprint(r.Findings)
		if !strings.Contains(all, "the journal was made anew") || !strings.Contains(all, "records up to this one were rewritten") {
			t.Error(all)
		}
	})
	t.Run("another service's", func(t *testing.T) {
		t.Parallel()
		j := story(t)
		other := newTestJournal(t)
		other.id.Installation = "other"
		other.id.Incarnation = 0
		other.main.head, other.refusals.head = Head{}, Head{}
		for _, name := range other.files() {
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
		}
		other.begin()
		for range 30 {
			other.tokens(1)
			other.checkpoint()
		}
		if _, err := Verify(other.dir, j.known()); err == nil || !strings.Contains(err.Error(), "it is one of other/r1/1") {
			t.Errorf("%v", err)
		}
	})
}

// forge writes the journal anew: change is given each record's line up to its chain, resign each checkpoint, with its
// head corrected; without resign checkpoints stay as they are.
func forge(t *testing.T, j *testJournal, change func(uint64, string) string, resign func(*Checkpoint)) {
	t.Helper()
	main, _, _, err := segmentFiles(j.dir)
	if err != nil {
		t.Fatal(err)
	}
	var head, previous Head
	var before string
	for _, f := range main {
		name := filepath.Join(j.dir, f.name)
		edit(t, name, func(text []byte) []byte {
			var out, open []byte
			records := 0
			for line := range bytes.SplitSeq(bytes.TrimRight(text, "\n"), []byte("\n")) {
				if isFrame(line) {
					frame := Frame{Seq: head.Seq, Records: records, Bytes: len(open), Chain: head.Chain}
					out = appendFrame(append(out, open...), &frame, open)
					open, records = nil, 0
					continue
				}
				seq, body, _, ok := splitRecord(line)
				if !ok {
					t.Fatalf("%s", line)
				}
				e, err := ParseEntry(line)
				if err != nil {
					t.Fatal(err)
				}
				text := string(body)
				if e.Journal != nil {
					text = strings.Replace(text, chainString(e.Journal.Previous.Chain), chainString(head.Chain), 1)
					if e.Name == eventStart {
						previous, before = head, ""
						head.Chain = e.Journal.Identity.genesis(streamMain, previous)
					}
				}
				if c := e.Checkpoint; c != nil && resign != nil {
					c.Head, c.Previous = chainString(head.Chain), before
					resign(c)
					before = c.Head
					signed, err := json.Marshal(c)
					if err != nil {
						t.Fatal(err)
					}
					text = text[:strings.Index(text, `"checkpoint":`)] + `"checkpoint":` + string(signed)
				}
				start := len(open)
				open = append(open, change(seq, text)...)
				open, head.Chain = appendChain(open, start, head.Chain)
				head.Seq = seq
				records++
			}
			return out
		})
	}
}

// What is chained and signed as it should be is held to what else it says.
func TestVerifyContradictions(t *testing.T) {
	t.Parallel()
	// segment begins a segment whose header says something else.
	segment := func(j *testJournal, change func(), previous Head) {
		j.checkpoint()
		j.end(&j.main)
		change()
		j.main.ended = false
		j.main.segment, j.main.text = segmentName(streamMain, j.id.Incarnation, j.main.head.Seq+1), nil
		j.header(&j.main, eventSegment, previous)
		j.frame(&j.main)
		j.tokens(1)
	}
	for name, tt := range map[string]struct {
		change func(j *testJournal)
		what   string
	}{
		"a checkpoint of another journal": {func(j *testJournal) {
			j.checkpointWith(func(c *Checkpoint) { c.Journal = "inst/r1/9" })
		}, "the checkpoint is another journal's"},
		"a checkpoint that skips one": {func(j *testJournal) {
			j.checkpointWith(func(c *Checkpoint) { c.Previous = "" })
		}, "does not follow the one before it"},
		"a checkpoint of another place": {func(j *testJournal) {
			j.checkpointWith(func(c *Checkpoint) { c.Seq-- })
		}, "does not say where the chain stands"},
		"a segment with another key": {func(j *testJournal) {
			segment(j, func() { j.key = j.newKey() }, j.main.head)
		}, "another key for the next checkpoint"},
		"a segment that follows another record": {func(j *testJournal) {
			j.checkpoint()
			segment(j, func() {}, Head{Seq: j.main.head.Seq})
		}, "the segment does not follow record"},
		"a segment of a run that never began": {func(j *testJournal) {
			j.checkpoint()
			segment(j, func() { j.id.Incarnation++ }, j.main.head)
		}, "whose beginning is missing"},
		"a run that begins twice": {func(j *testJournal) {
			j.stop()
			j.id.Incarnation--
			j.begin()
		}, "the incarnation begins twice"},
		"a run of another installation": {func(j *testJournal) {
			j.stop()
			j.id.Installation = "other"
			j.begin()
		}, "the segment is another journal's"},
		"a segment within another": {func(j *testJournal) {
			j.header(&j.main, eventSegment, j.main.head)
			j.frame(&j.main)
		}, "a segment begins within another"},
		"a refused record": {func(j *testJournal) {
			j.add(&j.main, eventCheckpoint, `"checkpoint":null`)
			j.frame(&j.main)
		}, "no JSON of the journal"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			j := story(t)
			tt.change(j)
			j.tokens(1)
			if r, err := Verify(j.dir, nil); err == nil || !strings.Contains(fmt.Sprint(r.Findings), tt.what) {
				t.Errorf("%v: %+v, want %q", err, r, tt.what)
			}
		})
	}
}

// Segments that the journal says it removed may be missing, and only those.
func TestVerifyRetention(t *testing.T) {
	t.Parallel()
	build := func(t *testing.T, records func(*testJournal, Head, Head)) *testJournal {
		j := newTestJournal(t)
		j.tokens(2)
		j.strangers(2)
		j.rotate(&j.main)
		e, err := ParseEntry(bytes.SplitN(j.main.text, []byte("\n"), 2)[0])
		if err != nil {
			t.Fatal(err)
		}
		last := e.Journal.Previous
		j.rotate(&j.refusals)
		e, err = ParseEntry(bytes.SplitN(j.refusals.text, []byte("\n"), 2)[0])
		if err != nil {
			t.Fatal(err)
		}
		dropped := e.Journal.Previous
		j.tokens(2)
		records(j, last, dropped)
		j.tokens(1)
		return j
	}
	remove := func(j *testJournal) {
		for _, name := range []string{j.files()[0], j.files()[2]} {
			if err := os.Remove(name); err != nil {
				j.t.Fatal(err)
			}
		}
	}
	said := func(j *testJournal, last, dropped Head) {
		j.add(&j.main, eventRetention, headMember("retention", last))
		j.add(&j.main, eventDropped, headMember("dropped", dropped))
	}
	t.Run("said and signed", func(t *testing.T) {
		t.Parallel()
		j := build(t, func(j *testJournal, last, dropped Head) { said(j, last, dropped); j.checkpoint() })
		if _, err := Verify(j.dir, j.known()); err != nil {
			t.Errorf("before the removal: %v", err)
		}
		remove(j)
		r, err := Verify(j.dir, slices.Concat(j.known(), j.anchors[:1]))
		if err != nil || r.Records.Removed == 0 || r.Refusals.Removed == 0 {
			t.Errorf("%v: %+v", err, r)
		}
		other := j.anchors[0]
		other.Installation = "other"
		other.Checkpoint.Journal = other.Identity.String()
		other.Checkpoint.sign(j.newKeyOf(&other.Checkpoint))
		if r, err := Verify(j.dir, []Anchor{other}); err == nil || !strings.Contains(err.Error(), "this is not the journal of the known head") {
			t.Errorf("another installation's head: %v %+v", err, r)
		}
		t.Run("and one segment more", func(t *testing.T) {
			if err := os.Remove(j.files()[0]); err != nil {
				t.Fatal(err)
			}
			if r, err := Verify(j.dir, nil); err == nil {
				t.Errorf("accepted: %+v", r)
			}
		})
	})
	for name, records := range map[string]func(*testJournal, Head, Head){
		"not said":   func(j *testJournal, _, _ Head) { j.checkpoint() },
		"not signed": said,
		"only the refusals are signed": func(j *testJournal, last, dropped Head) {
			j.add(&j.main, eventDropped, headMember("dropped", dropped))
			j.checkpoint()
			j.add(&j.main, eventRetention, headMember("retention", last))
			j.frame(&j.main)
		},
		"only the records are signed": func(j *testJournal, last, dropped Head) {
			j.add(&j.main, eventRetention, headMember("retention", last))
			j.checkpoint()
			j.add(&j.main, eventDropped, headMember("dropped", dropped))
			j.frame(&j.main)
		},
		"another record's": func(j *testJournal, last, dropped Head) { said(j, Head{Seq: last.Seq}, dropped); j.checkpoint() },
		"earlier ones":     func(j *testJournal, last, dropped Head) { said(j, Head{Seq: 2}, dropped); j.checkpoint() },
		"no refusals":      func(j *testJournal, last, dropped Head) { said(j, last, Head{Seq: 1}); j.checkpoint() },
		"other refusals":   func(j *testJournal, last, dropped Head) { said(j, last, Head{Seq: dropped.Seq}); j.checkpoint() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			j := build(t, records)
			remove(j)
			if r, err := Verify(j.dir, nil); err == nil {
				t.Errorf("accepted: %+v", r)
			}
		})
	}
}

// The refusals are held to the heads that the journal states of them.
func TestVerifyRefusalHeads(t *testing.T) {
	t.Parallel()
	build := func(t *testing.T, later time.Duration) (*testJournal, string) {
		j := newTestJournal(t)
		j.strangers(2)
		cut := bytes.Clone(j.refusals.text)
		j.strangers(2)
		j.checkpoint()
		j.now = j.now.Add(later)
		j.tokens(1)
		j.checkpoint()
		name := filepath.Join(j.dir, j.refusals.segment)
		if err := os.WriteFile(name, cut, 0o600); err != nil {
			t.Fatal(err)
		}
		return j, name
	}
	t.Run("cut off long ago", func(t *testing.T) {
		t.Parallel()
		j, _ := build(t, time.Hour)
		if _, err := Verify(j.dir, nil); err == nil || !strings.Contains(err.Error(), "the refusals end at 3, but stood at 5") {
			t.Error(err)
		}
	})
	t.Run("copied before the journal", func(t *testing.T) {
		t.Parallel()
		j, name := build(t, time.Minute)
		cut, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		r, err := Verify(j.dir, nil)
		if err != nil || len(r.Notes) != 1 || !strings.Contains(r.Notes[0].What, "while the service ran") {
			t.Errorf("%v: %+v", err, r)
		}
		j.stop()
		if err := os.WriteFile(name, cut, 0o600); err != nil {
			t.Fatal(err)
		}
		if r, err := Verify(j.dir, nil); err == nil {
			t.Errorf("accepted of a service that ended: %+v", r)
		}
	})
	t.Run("written anew", func(t *testing.T) {
		t.Parallel()
		j, name := build(t, 0)
		j.refusals.head = Head{Seq: 0, Chain: j.id.genesis(streamRefusals, Head{})}
		j.refusals.text = nil
		j.header(&j.refusals, eventStart, Head{})
		j.frame(&j.refusals)
		for range 5 {
			j.add(&j.refusals, "x", "")
		}
		j.frame(&j.refusals)
		if _, err := os.Stat(name); err != nil {
			t.Fatal(err)
		}
		if _, err := Verify(j.dir, nil); err == nil || !strings.Contains(err.Error(), "they were rewritten") {
			t.Error(err)
		}
	})
}

// A batch that was being written is noted, whichever of its pages are there; one that was known to be durable is missed.
func TestVerifyTornEnd(t *testing.T) {
	t.Parallel()
	j := story(t)
	for range 40 { // a batch of several pages
		j.add(&j.main, "token.issue", `"detail":{"a":"`+strings.Repeat("a", 300)+`"}`)
	}
	start := len(j.main.text)
	j.frame(&j.main)
	name := filepath.Join(j.dir, j.main.segment)
	whole := bytes.Clone(j.main.text)
	lost := func(text []byte, pages int, with byte) []byte {
		torn := bytes.Clone(text)
		for p := range (len(torn) + page - 1) / page {
			if pages&(1<<p) == 0 {
				continue
			}
			for i := max(p*page, start); i < min((p+1)*page, len(whole)); i++ {
				torn[i] = with
			}
		}
		return torn
	}
	first := start / page
	cases := 0
	for pages := 1; pages < 16; pages++ {
		for _, with := range []byte{'\n', 0} {
			torn := lost(whole, pages<<first, with)
			if bytes.Equal(torn, whole) {
				continue
			}
			cases++
			if err := os.WriteFile(name, append(torn, bytes.Repeat([]byte("\n"), 5000)...), 0o600); err != nil {
				t.Fatal(err)
			}
			r, err := Verify(j.dir, j.known())
			if err != nil || len(r.Notes) == 0 {
				t.Fatalf("pages %04b of %q: %v %+v", pages, with, err, r)
			}
		}
	}
	if cases < 20 {
		t.Errorf("only %d cases", cases)
	}
	// With a batch after it that was written when this one was durable, it is no torn end.
	j.tokens(1)
	later := bytes.Clone(j.main.text)
	edit(t, name, func([]byte) []byte { // not at a page's end, as no interrupted write leaves it
		torn := bytes.Clone(later)
		copy(torn[start+100:start+700], bytes.Repeat([]byte("\n"), 600))
		return torn
	})
	if r, err := Verify(j.dir, j.known()); err == nil {
		t.Errorf("accepted: %+v", r)
	}
	// A copy that read one page before the write and the next one after it.
	edit(t, name, func([]byte) []byte { return lost(later, 2<<first, '\n') })
	r, err := Verify(j.dir, j.known())
	if err != nil || len(r.Notes) != 1 || r.Notes[0].File != j.main.segment {
		t.Errorf("%v: %+v", err, r)
	}
	// A record of the last batch that was changed, with everything else in place, is no torn end either.
	edit(t, name, func([]byte) []byte { return bytes.Replace(later, []byte("aaa"), []byte("aba"), 1) })
	if r, err := Verify(j.dir, j.known()); err == nil {
		t.Errorf("accepted: %+v", r)
	}
}

// What is known must be what somebody was shown.
func TestVerifyKnownHeads(t *testing.T) {
	t.Parallel()
	j := story(t)
	for name, change := range map[string]func(*Anchor){
		"signature": func(a *Anchor) { a.Checkpoint.Signature = strings.Repeat("A", 86) },
		"number":    func(a *Anchor) { a.Checkpoint.Seq++ },
		"journal":   func(a *Anchor) { a.Incarnation++ },
		"head":      func(a *Anchor) { a.Checkpoint.Head = "" },
	} {
		known := slices.Clone(j.known())
		change(&known[0])
		if _, err := Verify(j.dir, known); err == nil || !strings.Contains(err.Error(), "the known heads") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestVerifyNothing(t *testing.T) {
	t.Parallel()
	if _, err := Verify(t.TempDir(), nil); !errors.Is(err, ErrNoJournal) {
		t.Error(err)
	}
	if _, err := Verify(filepath.Join(t.TempDir(), "none"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, segmentName(streamMain, 1, 1)), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(dir, nil); !errors.Is(err, ErrNoJournal) {
		t.Error("a folder is no segment:", err)
	}
}

// FuzzVerifyJournal changes a journal in any way: that is found, or noted, or what is covered is the same.
func FuzzVerifyJournal(f *testing.F) {
	j := story(f)
	before := recordLines(f, j.dir)
	var names []string
	texts := map[string][]byte{}
	for _, name := range j.files() {
		text, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		names = append(names, filepath.Base(name))
		texts[filepath.Base(name)] = text
	}
	for op := range byte(9) {
		f.Add([]byte{op, 3, 0, 200, 0, 90, 1})
		f.Add([]byte{op, 0, 1, 7, 2, 30, 255, op, 5, 0, 40, 0, 1, 2})
	}
	f.Fuzz(func(t *testing.T, changes []byte) {
		changed := maps.Clone(texts)
		for len(changes) >= 7 {
			c := changes[:7]
			changes = changes[7:]
			name := names[int(c[1])%len(names)]
			text := bytes.Clone(changed[name])
			at := (int(c[2])<<8 | int(c[3])) % (len(text) + 1)
			end := min(at+(int(c[4])<<8|int(c[5])), len(text))
			line := bytes.LastIndexByte(text[:at], '\n') + 1
			next := len(text)
			if n := bytes.IndexByte(text[line:], '\n'); n >= 0 {
				next = line + n + 1
			}
			switch c[0] % 9 {
			case 0: // a byte
				if at < len(text) {
					text[at] ^= c[6]
				}
			case 1: // a piece is gone
				text = slices.Delete(text, at, end)
			case 2: // a piece is there twice
				text = slices.Insert(text, at, bytes.Clone(text[at:end])...)
			case 3: // a line is gone
				text = slices.Delete(text, line, next)
			case 4: // a line is there twice
				text = slices.Insert(text, next, bytes.Clone(text[line:next])...)
			case 5: // the end is gone
				text = text[:at]
			case 6: // newlines instead
				copy(text[at:end], bytes.Repeat([]byte{'\n'}, end-at))
			case 7: // another file's piece
				other := changed[names[int(c[6])%len(names)]]
				text = slices.Insert(text, at, other[min(at, len(other)):min(end, len(other))]...)
			case 8: // the file is gone, or another one
				if c[6]%2 == 0 {
					delete(changed, name)
					continue
				}
				text = changed[names[int(c[6])%len(names)]]
			}
			changed[name] = text[:min(len(text), 1<<20)]
		}
		dir := t.TempDir()
		for name, text := range changed {
			if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		copied := *j
		copied.dir = dir
		copied.unseen(t, before, fmt.Sprint(changes))
		if _, err := Verify(dir, nil); err != nil {
			if _, ok := errors.AsType[*TamperError](err); !ok && !errors.Is(err, ErrNoJournal) {
				t.Error(err)
			}
		}
	})
}
