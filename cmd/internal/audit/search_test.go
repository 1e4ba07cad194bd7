// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// searchable is a journal of five segments in two incarnations, with records of every kind that is looked for.
func searchable(t testing.TB) *testJournal {
	j := newTestJournal(t)
	j.fill = 10000
	for i := range 50 {
		j.now = j.now.Add(time.Hour)
		client := []string{"payments", "ledger", `a"b\c`}[i%3]
		w := encoder{b: []byte{'{'}}
		w.string("outcome", []string{Granted, Refused}[i%2])
		w.string("reason", []string{"", "unknown_client"}[i%2])
		w.string("client", client)
		w.string("actor", []string{"", "alice"}[i%5/4])
		w.string("x5t#S256", fmt.Sprintf("thumb%d", i))
		w.string("correlation", fmt.Sprintf("corr%d", i))
		w.string("jti", fmt.Sprintf("jti%d", i))
		w.string("serial", fmt.Sprint(1000+i))
		w.object("detail", map[string]string{"client": "ledger", "note": `"client":"payments"`})
		j.add(&j.main, []string{"token.issue", "client.add", "client.disable"}[i%3], string(w.b[1:]))
		if i%4 == 3 {
			j.frame(&j.main)
		}
		if i == 25 {
			j.frame(&j.main)
			j.stop()
			j.begin()
		}
		if i%10 == 9 {
			j.frame(&j.main)
			j.rotate(&j.main)
		}
	}
	j.frame(&j.main)
	j.strangers(5)
	return j
}

func all(t testing.TB, dir string, refusals bool) []*Entry {
	stream := streamMain
	if refusals {
		stream = streamRefusals
	}
	var entries []*Entry
	for _, line := range recordLines(t, dir)[stream] {
		e, err := ParseEntry([]byte(line))
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, e)
	}
	return entries
}

func seqs(entries []*Entry) []uint64 {
	var numbers []uint64
	for _, e := range entries {
		numbers = append(numbers, e.Seq)
	}
	return numbers
}

// pages collects a whole search, page by page, in the order of the records.
func pages(t testing.TB, r *Reader, q Query) []*Entry {
	t.Helper()
	var entries []*Entry
	for range 1000 {
		page, err := r.Search(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		if len(page.Entries) > q.Limit && q.Limit > 0 {
			t.Fatalf("%d records of at most %d", len(page.Entries), q.Limit)
		}
		if q.Forward {
			entries = append(entries, page.Entries...)
			q.After = page.Next
		} else {
			entries = append(page.Entries, entries...)
			q.Before = page.Next
		}
		if page.Done {
			return entries
		}
	}
	t.Fatal("the search does not end")
	return nil
}

// Both directions, in pages of any size, find what looking at every record finds.
func TestSearch(t *testing.T) {
	t.Parallel()
	j := searchable(t)
	r := &Reader{Dir: j.dir}
	begin := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	everything := all(t, j.dir, false)
	for name, tt := range map[string]struct {
		f   Filter
		few bool // exactly one
	}{
		"all":         {},
		"client":      {f: Filter{Client: "payments"}},
		"odd client":  {f: Filter{Client: `a"b\c`}},
		"actor":       {f: Filter{Actor: "alice"}},
		"thumbprint":  {f: Filter{Thumbprint: "thumb7"}, few: true},
		"jti":         {f: Filter{TokenID: "jti30"}, few: true},
		"serial":      {f: Filter{Serial: "1044"}, few: true},
		"correlation": {f: Filter{Correlation: "corr12"}, few: true},
		"event":       {f: Filter{Event: "token.issue"}},
		"events":      {f: Filter{Event: "client.*"}},
		"refused":     {f: Filter{Outcome: Refused}},
		"reason":      {f: Filter{Reason: "unknown_client", Client: "ledger"}},
		"since":       {f: Filter{Since: begin.Add(30 * time.Hour)}},
		"until":       {f: Filter{Until: begin.Add(20 * time.Hour)}},
		"between":     {f: Filter{Since: begin.Add(11 * time.Hour), Until: begin.Add(33 * time.Hour), Client: "ledger"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var want []uint64
			for _, e := range everything {
				if tt.f.fits(e) {
					want = append(want, e.Seq)
				}
			}
			if len(want) == 0 || len(want) == len(everything) != (name == "all") || tt.few != (len(want) == 1) {
				t.Fatalf("%d of %d records: the test tests nothing", len(want), len(everything))
			}
			for _, limit := range []int{0, 1, 2, 7} {
				for _, forward := range []bool{true, false} {
					got := seqs(pages(t, r, Query{Filter: tt.f, Forward: forward, Limit: limit}))
					if diff := cmp.Diff(want, got); diff != "" {
						t.Errorf("forward %v, pages of %d: %s", forward, limit, diff)
					}
				}
			}
		})
	}
	t.Run("refusals", func(t *testing.T) {
		t.Parallel()
		got := pages(t, r, Query{Filter: Filter{Refusals: true}})
		if diff := cmp.Diff(seqs(all(t, j.dir, true)), seqs(got)); diff != "" || len(got) != 7 {
			t.Error(diff, len(got))
		}
	})
	t.Run("newest", func(t *testing.T) {
		t.Parallel()
		page, err := r.Search(t.Context(), Query{Limit: 3})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(seqs(everything[len(everything)-3:]), seqs(page.Entries)); diff != "" {
			t.Error(diff)
		}
	})
}

// Segments whose time does not fit are not read: it does not matter what is in them.
func TestSearchSkipsSegments(t *testing.T) {
	t.Parallel()
	j := searchable(t)
	begin := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	q := Query{Filter: Filter{Since: begin.Add(25 * time.Hour), Until: begin.Add(28 * time.Hour)}}
	want := seqs(pages(t, &Reader{Dir: j.dir}, q))
	main, _, _, err := segmentFiles(j.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []segmentFile{main[0], main[len(main)-1]} {
		edit(t, filepath.Join(j.dir, f.name), func(b []byte) []byte {
			return bytes.Replace(b, []byte("\n"), fmt.Appendf(nil, "\n%s1,\"time\":\"2026-11-24T14:00:00.000000Z\"}\n%s1,", recordStart, frameStart), 1)
		})
	}
	for _, forward := range []bool{true, false} {
		q.Forward = forward
		if diff := cmp.Diff(want, seqs(pages(t, &Reader{Dir: j.dir}, q))); diff != "" || len(want) == 0 {
			t.Error(forward, diff)
		}
	}
}

// Going on after a record does not read the segment from its beginning.
func TestSeekRecord(t *testing.T) {
	t.Parallel()
	j := newTestJournal(t)
	j.fill = 3 << 20
	for range 300 {
		for range 20 {
			j.add(&j.main, "x", `"detail":{"a":"`+strings.Repeat("a", rand.IntN(700))+`"}`)
		}
		f := Frame{Seq: j.main.head.Seq, Records: 20, Bytes: len(j.main.open), Chain: j.main.head.Chain}
		j.main.text = appendFrame(append(j.main.text, j.main.open...), &f, j.main.open)
		j.main.open, j.main.records = nil, 0
	}
	j.write(&j.main)
	file, err := os.Open(filepath.Join(j.dir, j.main.segment))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for number := uint64(0); number <= j.main.head.Seq+1; number += 97 {
		at, err := seekRecord(file, number)
		if err != nil {
			t.Fatal(err)
		}
		seq, ok := recordNumber(j.main.text[at:])
		if !ok || seq > max(number, 1) {
			t.Errorf("record %d: %d at %d", number, seq, at)
		}
		if rest := j.main.text[at:]; number > 0 {
			distance := bytes.Index(rest, fmt.Appendf(nil, "\n%s%d,", recordStart, min(number+1, j.main.head.Seq)))
			if distance > 1<<20 {
				t.Errorf("record %d is %d bytes away", number, distance)
			}
		}
	}
	got := pages(t, &Reader{Dir: j.dir}, Query{Forward: true, After: 5990})
	if len(got) != 11 {
		t.Errorf("%d records", len(got))
	}
}

// A page is bounded in bytes.
func TestSearchPageBytes(t *testing.T) {
	t.Parallel()
	j := newTestJournal(t)
	for range 200 {
		j.add(&j.main, "x", `"detail":{"a":"`+strings.Repeat("a", 60<<10)+`"}`)
	}
	j.frame(&j.main)
	for _, forward := range []bool{true, false} {
		page, err := (&Reader{Dir: j.dir}).Search(t.Context(), Query{Forward: forward})
		if err != nil {
			t.Fatal(err)
		}
		size := 0
		for _, e := range page.Entries {
			size += len(e.Line)
		}
		if size > maxPageText || size < maxPageText/2 || page.Done {
			t.Errorf("forward %v: %d bytes, done %v", forward, size, page.Done)
		}
		if got := pages(t, &Reader{Dir: j.dir}, Query{Forward: forward}); len(got) != 201 {
			t.Errorf("forward %v: %d records", forward, len(got))
		}
	}
}

// Following sees each record once, over new batches, segments and incarnations, and none before its batch is whole.
func TestSearchFollows(t *testing.T) {
	t.Parallel()
	j := newTestJournal(t)
	j.fill = 5000
	r := &Reader{Dir: j.dir}
	var seen []uint64
	last := uint64(0)
	poll := func() {
		for {
			page, err := r.Search(t.Context(), Query{Forward: true, After: last, Limit: 3})
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
	for _, step := range []func(){
		func() { j.tokens(4) }, func() { j.checkpoint() }, func() { j.rotate(&j.main) }, func() { j.tokens(1) },
		func() { j.stop(); j.begin() }, func() { j.tokens(5); j.rotate(&j.main); j.rotate(&j.main); j.tokens(1) },
	} {
		step()
		poll()
		poll()
	}
	if len(seen) != int(j.main.head.Seq) {
		t.Fatalf("%d of %d records: %v", len(seen), j.main.head.Seq, seen)
	}
	for i, seq := range seen {
		if seq != uint64(i+1) {
			t.Fatal(seen)
		}
	}
	j.add(&j.main, "x", "")
	text := append(bytes.Clone(j.main.text), j.main.open...)
	if err := os.WriteFile(filepath.Join(j.dir, j.main.segment), text, 0o600); err != nil {
		t.Fatal(err)
	}
	if poll(); len(seen) != int(j.main.head.Seq)-1 {
		t.Error("a record was seen before its frame")
	}
	j.frame(&j.main)
	if poll(); len(seen) != int(j.main.head.Seq) {
		t.Error("it was not seen after it")
	}
}

// storedKeys has one key for everything.
type storedKeys struct{ err error }

func (k storedKeys) StoredDay(context.Context, string) ([]byte, error) {
	return bytes.Repeat([]byte{1}, 32), nil
}
func (k storedKeys) StoredSubject(context.Context, string) ([]byte, error) {
	return bytes.Repeat([]byte{2}, 32), k.err
}
func (k storedKeys) Day(ctx context.Context, day string) ([]byte, error) {
	return k.StoredDay(ctx, day)
}
func (k storedKeys) Subject(ctx context.Context, id string) ([]byte, error) {
	return k.StoredSubject(ctx, id)
}

// What is sealed is opened for who has the keys, and the line stays JSON.
func TestSearchOpens(t *testing.T) {
	t.Parallel()
	j := newTestJournal(t)
	e := Event{Time: j.now, Client: "payments", Address: `192.0.2.1","x":"`, Personal: map[string]string{"dn": "CN=Alice"}}
	sealed, err := newSealer(storedKeys{}).append(t.Context(), nil, &e)
	if err != nil {
		t.Fatal(err)
	}
	j.add(&j.main, "x", `"client":"payments","detail":{"a":"1"}`+string(sealed)+`,"truncated":true`)
	j.frame(&j.main)
	for name, tt := range map[string]struct {
		opener *Opener
		want   []string
	}{
		"no keys": {nil, []string{`"sealed":"c.`}},
		"keys":    {NewOpener(storedKeys{}), []string{`"detail":{"a":"1"},"address":"192.0.2.1\",\"x\":\"","personal":{"dn":"CN=Alice"},"truncated":true`}},
		"erased":  {NewOpener(storedKeys{err: ErrErased}), []string{`,"sealed":"erased","truncated":true`}},
		"trouble": {NewOpener(storedKeys{err: errors.New("no database")}), []string{`"sealed":"c.`}},
	} {
		page, err := (&Reader{Dir: j.dir, Opener: tt.opener}).Search(t.Context(), Query{Limit: 1})
		if err != nil {
			t.Fatal(err)
		}
		line := page.Entries[0].Line
		for _, want := range tt.want {
			if !json.Valid(line) || !strings.Contains(string(line), want) {
				t.Errorf("%s: %s", name, line)
			}
		}
		if name == "keys" && (page.Entries[0].Address != e.Address || page.Entries[0].Personal["dn"] != "CN=Alice") {
			t.Errorf("%+v", page.Entries[0])
		}
	}
}

// FuzzReadSegment reads a file that anybody wrote: it is read to its end without a panic, and nothing is made up.
func FuzzReadSegment(f *testing.F) {
	j := story(f)
	for _, name := range j.files() {
		text, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text[:min(len(text), 700)], uint64(3)) // short ones: Go takes long to minimise others
	}
	f.Add([]byte(strings.Repeat("\n", 5000)+`{"seq":1,`), uint64(0))
	f.Add(bytes.Repeat([]byte{0}, 100), uint64(1))
	f.Fuzz(func(t *testing.T, text []byte, after uint64) {
		dir := t.TempDir()
		name := segmentName(streamMain, 1, 1)
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Verify(dir, nil); err != nil {
			if _, ok := errors.AsType[*TamperError](err); !ok {
				t.Fatal(err)
			}
		}
		r := &Reader{Dir: dir}
		for _, q := range []Query{{Forward: true, After: after}, {Before: after}, {Filter: Filter{Client: "payments"}}} {
			page, err := r.Search(t.Context(), q)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range page.Entries {
				if !bytes.Contains(text, e.Line) || !json.Valid(e.Line) {
					t.Fatalf("%s", e.Line)
				}
				for _, format := range []Format{FormatJSON, FormatOCSF, FormatCEF} {
					out, err := format.Append(nil, e, "devel")
					if err != nil || bytes.Count(out, []byte("\n")) != 1 || out[len(out)-1] != '\n' {
						t.Fatalf("%s: %v %q", format, err, out)
					}
				}
			}
		}
	})
}
