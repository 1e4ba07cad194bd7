// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// line is an event as a reader of the journal decodes it.
type line struct {
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
	Truncated   bool              `json:"truncated"`
}

func open(t *testing.T, dir string) *Log {
	t.Helper()
	l, err := Open(t.Context(), Config{Dir: dir})
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

// read decodes every line of every segment, oldest first, and fails on one that is not an event.
func read(t *testing.T, dir string) []line {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "audit-*.jsonl"))
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

func decode(t *testing.T, text []byte) []line {
	t.Helper()
	if len(text) > 0 && text[len(text)-1] != '\n' {
		t.Error("the last line has no end")
	}
	var out []line
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		var l line
		d := json.NewDecoder(bytes.NewReader(s.Bytes()))
		d.DisallowUnknownFields()
		if err := d.Decode(&l); err != nil {
			t.Fatalf("%v in line %q", err, s.Text())
		}
		out = append(out, l)
	}
	return out
}

var full = Event{
	Time: time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.FixedZone("", 3600)), ID: "id", Name: "token.issue",
	Outcome: Granted, Reason: "none", Client: "payments", Actor: "admin", Thumbprint: "A4Dt", Address: "192.0.2.1",
	Correlation: "c", TokenID: "t", Serial: "12", Resource: "https://r.example", Scope: []string{"a", "b"},
	Audience: []string{"https://r.example"}, Expires: time.Date(2026, 3, 1, 11, 10, 0, 0, time.UTC),
	Detail: map[string]string{"b": "2", "a": "1"},
}

func TestRecord(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "audit")
	l := open(t, dir)
	if err := l.Record(t.Context(), full); err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(names) != 1 {
		t.Fatalf("files %v, %v", names, err)
	}
	text, err := os.ReadFile(names[0])
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"time":"2026-03-01T11:00:00.123456Z","id":"id","event":"token.issue","outcome":"granted","reason":"none",` +
		`"client":"payments","actor":"admin","x5t#S256":"A4Dt","address":"192.0.2.1","correlation":"c","jti":"t","serial":"12",` +
		`"resource":"https://r.example","scope":["a","b"],"aud":["https://r.example"],"expires":"2026-03-01T11:10:00.000000Z",` +
		`"detail":{"a":"1","b":"2"}}` + "\n"
	if diff := cmp.Diff(want, string(text)); diff != "" {
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
	if len(got) != 2 || got[0].Time.Before(before) || !strings.HasSuffix(got[0].ID, "Z-1") || !strings.HasSuffix(got[1].ID, "Z-2") {
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
	torn := filepath.Join(dir, "audit-20200101T000000.000000Z.jsonl")
	if err := os.WriteFile(torn, []byte(`{"time":`), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		l := open(t, dir)
		if err := l.Record(t.Context(), Event{Name: "x"}); err != nil {
			t.Fatal(err)
		}
	}
	if text, err := os.ReadFile(torn); err != nil || string(text) != `{"time":` {
		t.Errorf("the torn segment is now %q, %v", text, err)
	}
	if err := os.Remove(torn); err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{}
	for _, l := range read(t, dir) {
		ids[l.ID] = true
	}
	if len(ids) != 3 {
		t.Errorf("ids are %v", ids)
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
	ids := map[string]bool{}
	for _, l := range read(t, dir) {
		ids[l.ID] = true
	}
	if len(ids) != 1000 {
		t.Errorf("%d events", len(ids))
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

// fullDisk is a file on a disk that takes room more bytes.
type fullDisk struct {
	bytes.Buffer
	room       int
	noTruncate bool
	writes     int
}

func (f *fullDisk) Write(p []byte) (int, error) {
	f.writes++
	n := min(len(p), f.room)
	f.room -= n
	f.Buffer.Write(p[:n])
	if n < len(p) {
		return n, syscall.ENOSPC
	}
	return n, nil
}

func (f *fullDisk) Truncate(size int64) error {
	if f.noTruncate {
		return syscall.EIO
	}
	f.Buffer.Truncate(int(size))
	return nil
}

func (f *fullDisk) Close() error { return nil }

func TestFullDisk(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name       string
		room       int
		noTruncate bool
	}{
		{"no room", 0, false}, {"half a line", 20, false}, {"half a line that stays", 20, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			disk := &fullDisk{room: 1 << 20, noTruncate: test.noTruncate}
			l := &Log{file: disk, prefix: "p-", now: time.Now}
			record := func() error { return l.Record(t.Context(), Event{Name: "x"}) }
			if err := record(); err != nil {
				t.Fatal(err)
			}
			disk.room = test.room
			for range 3 {
				if err := record(); !errors.Is(err, syscall.ENOSPC) {
					t.Fatalf("error is %v", err)
				}
			}
			disk.room = 1 << 20
			if err := record(); err != nil {
				t.Fatal(err)
			}
			if disk.writes != 5 {
				t.Errorf("%d writes for 5 records", disk.writes)
			}
			whole := 0
			for l := range bytes.Lines(disk.Bytes()) {
				if json.Valid(l) {
					whole++
				} else if !test.noTruncate {
					t.Errorf("half a line: %q", l)
				}
			}
			if whole != 2 {
				t.Errorf("%d whole lines in\n%s", whole, disk.Bytes())
			}
		})
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

func TestRecordAllocates(t *testing.T) {
	l := &Log{file: &fullDisk{}, prefix: "20260301T120000.000000Z-", now: time.Now}
	e := full
	e.ID, e.Detail = "", nil
	if n := testing.AllocsPerRun(100, func() {
		disk := l.file.(*fullDisk)
		disk.Reset()
		disk.room = 1 << 20
		l.size = 0
		if err := l.Record(t.Context(), e); err != nil {
			t.Error(err)
		}
	}); n > 1 {
		t.Errorf("%v allocations a record", n)
	}
}

func BenchmarkRecord(b *testing.B) {
	l, err := Open(b.Context(), Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	e := full
	e.ID, e.Detail = "", nil
	b.ReportAllocs()
	for b.Loop() {
		if err := l.Record(b.Context(), e); err != nil {
			b.Fatal(err)
		}
	}
}

// FuzzRecord: whatever the strings are, the journal gets one line of JSON that decodes to the same values.
func FuzzRecord(f *testing.F) {
	f.Add("payments", "reason", "key", "value")
	f.Add("\"\\\n\r\t\x00\x7f", "\u2028\u2029\ufeff", "\xff\xc3", "\ufffd")
	f.Add(strings.Repeat("é", MaxString), "</script>", "", "")
	f.Fuzz(func(t *testing.T, a, b, c, d string) {
		disk := &fullDisk{room: 1 << 20}
		l := &Log{file: disk, prefix: "p-", now: time.Now}
		in := Event{ID: "x" + a, Name: a, Client: b, Address: c, Scope: []string{d, a}, Detail: map[string]string{c: d}}
		if err := l.Record(t.Context(), in); err != nil {
			t.Fatal(err)
		}
		text := disk.Bytes()
		if bytes.Count(text, []byte("\n")) != 1 || bytes.ContainsAny(text, "\x00\r\u2028\u2029\x7f") {
			t.Fatalf("more than a line: %q", text)
		}
		if !utf8.Valid(text) {
			t.Fatalf("no UTF-8: %q", text)
		}
		got := decode(t, text)[0]
		want := line{
			Time: got.Time, ID: kept("x" + a), Event: kept(a), Client: kept(b), Address: kept(c),
			Scope: []string{kept(d), kept(a)}, Detail: map[string]string{kept(c): kept(d)}, Truncated: got.Truncated,
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		if !got.Truncated && max(len(a)+1, len(b), len(c), len(d)) > MaxString {
			t.Error("the line does not say that it is cut")
		}
	})
}

// kept is what a string becomes: bounded, and valid UTF-8.
func kept(s string) string {
	return string([]rune(new(encoder).cut(s))) // an invalid byte becomes U+FFFD, one by one
}
