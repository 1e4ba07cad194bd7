// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// line is an event as a reader of the journal decodes it.
type line struct {
	Seq         uint64            `json:"seq"`
	Time        time.Time         `json:"time"`
	ID          string            `json:"id"`
	Event       string            `json:"event"`
	Outcome     string            `json:"outcome"`
	Reason      string            `json:"reason"`
	Client      string            `json:"client"`
	Actor       string            `json:"actor"`
	Thumbprint  string            `json:"x5t#S256"`
	Address     string            `json:"address"`
	Correlation string            `json:"correlation"`
	TokenID     string            `json:"jti"`
	Serial      string            `json:"serial"`
	Resource    string            `json:"resource"`
	Scope       []string          `json:"scope"`
	Audience    []string          `json:"aud"`
	Expires     time.Time         `json:"expires"`
	Detail      map[string]string `json:"detail"`
	Count       int               `json:"count"`
	Personal    map[string]string `json:"personal"`
	Sealed      string            `json:"sealed"`
	Truncated   bool              `json:"truncated"`
	Chain       string            `json:"chain"`
	Journal     json.RawMessage   `json:"journal"`
	Checkpoint  json.RawMessage   `json:"checkpoint"`
	Refusals    json.RawMessage   `json:"refusals"`
	Gap         json.RawMessage   `json:"gap"`
	Frame       json.RawMessage   `json:"frame"`
}

func open(t *testing.T, dir string) *Log { return openWith(t, Config{Dir: dir}) }

func openWith(t *testing.T, cfg Config) *Log {
	t.Helper()
	if cfg.Fatal == nil {
		cfg.Fatal = func(err error) { t.Error(err) }
	}
	l, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// read decodes every record of every segment of the decisions, oldest first, but for the journal's own, and fails on a
// line that is none.
func read(t *testing.T, dir string) []line {
	t.Helper()
	return slices.DeleteFunc(readAll(t, dir, streamMain), func(l line) bool { return strings.HasPrefix(l.Event, "journal.") })
}

func readAll(t *testing.T, dir, stream string) []line {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, stream+"-*.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	var out []line
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, decode(t, text)...)
	}
	return out
}

// decode decodes the records of a segment.
func decode(t *testing.T, text []byte) []line {
	t.Helper()
	if len(text) > 0 && text[len(text)-1] != '\n' {
		t.Error("the last line has no end")
	}
	var out []line
	for text := range bytes.Lines(text) {
		if len(text) == 1 {
			continue
		}
		var l line
		d := json.NewDecoder(bytes.NewReader(text))
		d.DisallowUnknownFields()
		if err := d.Decode(&l); err != nil {
			t.Fatalf("%v in line %q", err, text)
		}
		if l.Frame == nil {
			out = append(out, l)
		}
	}
	return out
}

var full = Event{
	Time: time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.FixedZone("", 3600)), ID: "id", Name: "token.issue",
	Outcome: Granted, Reason: "none", Client: "payments", Actor: "admin", Thumbprint: "A4Dt", Address: "192.0.2.1",
	Correlation: "c", TokenID: "t", Serial: "12", Resource: "https://r.example", Scope: []string{"a", "b"},
	Audience: []string{"https://r.example"}, Expires: time.Date(2026, 3, 1, 11, 10, 0, 0, time.UTC),
	Detail: map[string]string{"b": "2", "a": "1"}, Personal: map[string]string{"mail": "x"},
}

func TestRecord(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "audit")
	l := open(t, dir)
	if err := l.Record(t.Context(), full); err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(names) != 1 || filepath.Base(names[0]) != segmentName(streamMain, 1, 1) {
		t.Fatalf("files %v, %v", names, err)
	}
	text, err := os.ReadFile(names[0])
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"seq":2,"time":"2026-03-01T11:00:00.123456Z","id":"id","event":"token.issue","outcome":"granted","reason":"none",` +
		`"client":"payments","actor":"admin","x5t#S256":"A4Dt","correlation":"c","jti":"t","serial":"12",` +
		`"resource":"https://r.example","scope":["a","b"],"aud":["https://r.example"],"expires":"2026-03-01T11:10:00.000000Z",` +
		`"detail":{"a":"1","b":"2"},"address":"192.0.2.1","personal":{"mail":"x"}`
	body, _, ok := splitChain(bytes.Split(text, []byte("\n"))[2]) // behind the start and its frame
	if diff := cmp.Diff(want, string(body)); !ok || diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	for name, want := range map[string]os.FileMode{names[0]: 0o600, dir: os.ModeDir | 0o700} {
		if info, err := os.Stat(name); err != nil || info.Mode() != want {
			t.Errorf("%s has mode %v, %v", name, info.Mode(), err)
		}
	}
}

func TestRecordWithoutOptionalMembers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := open(t, dir)
	before := time.Now().Truncate(time.Microsecond)
	for range 2 {
		if err := l.Record(t.Context(), Event{Name: "client.add"}); err != nil {
			t.Fatal(err)
		}
	}
	got := read(t, dir)
	if len(got) != 2 || got[0].Time.Before(before) || got[0].ID != "" || got[0].Seq != 2 || got[1].Seq != 3 {
		t.Errorf("lines are %+v", got)
	}
}

// A decision whose caller has left is recorded all the same.
func TestRecordAfterCancel(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := open(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Record(ctx, full); err != nil {
		t.Error(err)
	}
	if got := read(t, dir); len(got) != 1 {
		t.Errorf("%d lines", len(got))
	}
}

func TestReopenBeginsASegment(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for range 3 {
		l := open(t, dir)
		if err := l.Record(t.Context(), Event{Name: "x"}); err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	var seqs []uint64
	for _, l := range read(t, dir) {
		seqs = append(seqs, l.Seq)
	}
	if want := []uint64{2, 6, 10}; !slices.Equal(seqs, want) { // between them: stop, checkpoint, start
		t.Errorf("records are %v, not %v", seqs, want)
	}
}

func TestRecordConcurrently(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := open(t, dir)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 50 {
				if err := l.Record(t.Context(), Event{Name: "x", Client: strings.Repeat("é", 100)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := read(t, dir); len(got) != 1000 {
		t.Errorf("%d events", len(got))
	}
}

func TestRecordAfterClose(t *testing.T) {
	t.Parallel()
	l := open(t, t.TempDir())
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Record(t.Context(), full); !errors.Is(err, ErrClosed) {
		t.Errorf("error is %v", err)
	}
}

func TestBounds(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := open(t, dir)
	long := strings.Repeat("x", MaxString-1) + "éé"
	many := strings.Split(strings.Repeat("a,", MaxList), ",")
	detail := map[string]string{}
	for i := range MaxList + 5 {
		detail[string(rune('0'+i))] = "x"
	}
	for _, e := range []Event{{Client: long}, {Scope: many}, {Detail: detail}, {Client: long[:MaxString-1]}} {
		if err := l.Record(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	got := read(t, dir)
	if len(got[0].Client) != MaxString-1 || len(got[1].Scope) != MaxList || len(got[2].Detail) != MaxList {
		t.Errorf("lengths are %d, %d, %d", len(got[0].Client), len(got[1].Scope), len(got[2].Detail))
	}
	for i, truncated := range []bool{true, true, true, false} {
		if got[i].Truncated != truncated {
			t.Errorf("line %d: truncated is %v", i, got[i].Truncated)
		}
	}
}

// FuzzRecord: whatever the strings are, the journal gets one line of JSON that decodes to the same values.
func FuzzRecord(f *testing.F) {
	f.Add("payments", "reason", "key", "value")
	f.Add("\"\\\n\r\t\x00\x7f", "\u2028\u2029\ufeff", "\xff\xc3", "\ufffd")
	f.Add(strings.Repeat("é", MaxString), "</script>", "", "")
	f.Fuzz(func(t *testing.T, a, b, c, d string) {
		in := Event{
			ID: "x" + a, Name: a, Client: b, Address: c, Scope: []string{d, a}, Detail: map[string]string{c: d},
			Personal: map[string]string{d: c},
		}
		w := encoder{b: []byte(`{"seq":1`)}
		w.event(&in)
		w.end()
		body, err := (*sealer)(nil).append(t.Context(), w.b, &in)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := appendChain(body, 0, Head{}.Chain)
		if bytes.Count(text, []byte("\n")) != 1 || bytes.ContainsAny(text, "\x00\r\u2028\u2029\x7f") || len(text) > MaxLine {
			t.Fatalf("more than a line: %q", text)
		}
		if !utf8.Valid(text) {
			t.Fatalf("no UTF-8: %q", text)
		}
		got := decode(t, text)[0]
		want := line{
			Seq: 1, Time: got.Time, ID: kept("x" + a), Event: kept(a), Client: kept(b), Address: kept(c), Chain: got.Chain,
			Scope: []string{kept(d), kept(a)}, Detail: map[string]string{kept(c): kept(d)},
			Personal: map[string]string{kept(d): kept(c)}, Truncated: got.Truncated,
		}
		if len(text) > maxValues {
			return // what was left out for its length is not there
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		if !got.Truncated && max(len(a)+1, len(b), len(c), len(d)) > MaxString {
			t.Error("the line does not say that it is cut")
		}
	})
}

// The longest line that can be made of an event.
func TestLongestLine(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("\x01", 2*MaxString)
	many, detail := slices.Repeat([]string{long}, 2*MaxList), map[string]string{}
	for i := range 2 * MaxList {
		detail[string(rune('0'+i))+long] = long
	}
	in := Event{
		ID: long, Name: long, Outcome: long, Reason: long, Client: long, Actor: long, Thumbprint: long, Address: long,
		Correlation: long, TokenID: long, Serial: long, Resource: long, Scope: many, Audience: many, Detail: detail, Personal: detail,
	}
	dir := t.TempDir()
	l := open(t, dir)
	if err := l.Record(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, segmentName(streamMain, 1, 1)))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(bytes.Split(text, []byte("\n"))[2]); n > MaxLine-(32<<10) || n < MaxLine/4 {
		t.Errorf("the line has %d bytes", n)
	}
	if got := read(t, dir); len(got) != 1 || !got[0].Truncated {
		t.Errorf("records are %+v", got)
	}
}

// kept is what a string becomes: bounded, and valid UTF-8.
func kept(s string) string {
	return string([]rune(new(encoder).cut(s))) // an invalid byte becomes U+FFFD, one by one
}

// A segment that is a link or no file at all is refused by its name and left as it is, as Verify misses it: it must not
// pass for one without records.
func TestOpenOnlyFiles(t *testing.T) {
	t.Parallel()
	for name, replace := range map[string]func(from, to string) error{
		"link": func(from, to string) error { return errors.Join(os.Rename(from, to), os.Symlink(to, from)) },
		"link to nothing": func(from, to string) error {
			return errors.Join(os.Rename(from, to), os.Symlink("/dev/null", from))
		},
		"folder": func(from, to string) error { return errors.Join(os.Rename(from, to), os.Mkdir(from, 0o700)) },
	} {
		dir := t.TempDir()
		l := open(t, dir)
		record(t, l)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		segment := filepath.Join(dir, segmentName(streamMain, 1, 1))
		if err := replace(segment, filepath.Join(t.TempDir(), "away")); err != nil {
			t.Fatal(err)
		}
		l, err := Open(t.Context(), Config{Dir: dir})
		if err == nil {
			_ = l.Close()
		}
		if !errors.Is(err, errNotRegular) || !strings.Contains(err.Error(), segment) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Lstat(segment); err != nil {
			t.Errorf("%s: it was removed: %v", name, err)
		}
	}
}
