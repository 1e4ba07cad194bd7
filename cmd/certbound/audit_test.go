// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/profile"
)

func TestMoment(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"": {}, "2026-11-23T11:00:00Z": now.Add(-time.Hour), "2026-11-23T12:30:00+01:30": now.Add(-time.Hour),
		"2026-11-22": time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC), "1h": now.Add(-time.Hour), "90m": now.Add(-90 * time.Minute), "7d": now.AddDate(0, 0, -7),
	} {
		if got, err := moment("--since", text, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v %v", text, got, err)
		}
	}
	for _, text := range []string{"x", "-1h", "d", "-1d", "1e9d", "2026-13-01", "h"} {
		if got, err := moment("--since", text, now); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
}

// What a caller wrote into the journal does not steer the terminal of who looks at it, nor make up another member.
func TestRecordsArePrintable(t *testing.T) {
	t.Parallel()
	hostile := "a b\x1b[2J\nclient=root\u202e\u009b\"\\"
	line := describe(&audit.Entry{
		Seq: 1, Name: hostile, Outcome: hostile, Reason: hostile, Client: hostile, Actor: hostile, Address: hostile, Correlation: hostile,
		TokenID: hostile, Serial: hostile, Resource: hostile, Thumbprint: hostile, Scope: []string{hostile}, Audience: []string{hostile},
		Detail: map[string]string{hostile: hostile}, Personal: map[string]string{hostile: hostile}, Sealed: hostile,
	})
	for _, r := range line {
		if r < 0x20 || r > 0x7e {
			t.Errorf("character %U in %q", r, line)
		}
	}
	if strings.Contains(line, " client=root") || !strings.Contains(line, ` client="a b\x1b[2J\nclient=root\u202e`) {
		t.Error(line)
	}
}

// A refusal that stands for many says for how many.
func TestCountsAreShown(t *testing.T) {
	t.Parallel()
	e, err := audit.ParseEntry([]byte(`{"seq":2,"time":"2026-11-23T12:00:00.000001Z","event":"token","outcome":"refused","reason":"unknown_client","count":4711}`))
	if err != nil {
		t.Fatal(err)
	}
	if line := describe(e); !strings.Contains(line, " count=4711") {
		t.Error(line)
	}
	if line := describe(&audit.Entry{Name: "token"}); strings.Contains(line, "count") {
		t.Error(line)
	}
}

// tape is a source of records that grows, and fails when it is told to, while it is read.
type tape struct {
	mu      sync.Mutex
	entries []*audit.Entry
	fails   error
	asked   int
}

func (s *tape) add(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range n {
		s.entries = append(s.entries, &audit.Entry{Seq: uint64(len(s.entries) + 1), Name: "x"})
	}
}

func (s *tape) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fails = err
}

func (s *tape) page(_ context.Context, q audit.Query) (*audit.Page, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	if s.fails != nil {
		return nil, s.fails
	}
	limit := q.Limit
	if limit == 0 {
		limit = 3
	}
	page := &audit.Page{Next: q.After}
	if q.Forward {
		from := min(int(q.After), len(s.entries))
		page.Entries = s.entries[from:min(from+limit, len(s.entries))]
		if n := len(page.Entries); n > 0 {
			page.Next = page.Entries[n-1].Seq
		}
		page.Done = page.Next == uint64(len(s.entries))
		return page, nil
	}
	end := len(s.entries)
	if q.Before > 0 {
		end = min(int(q.Before)-1, end)
	}
	begin := max(0, end-min(limit, 3))
	page.Entries, page.Next, page.Done = s.entries[begin:end], uint64(begin+1), begin == 0
	return page, nil
}

func (s *tape) Close() {}

func TestSearchTail(t *testing.T) {
	t.Parallel()
	for total := range 12 {
		for limit := 1; limit < 13; limit++ {
			s := &tape{}
			s.add(total)
			var notes strings.Builder
			l := &lookup{c: &cli{stderr: &notes}, limit: limit}
			var got []uint64
			last, err := l.tail(t.Context(), s, func(e *audit.Entry) error {
				got = append(got, e.Seq)
				return nil
			})
			var want []uint64
			for seq := max(1, total-limit+1); seq <= total; seq++ {
				want = append(want, uint64(seq))
			}
			if diff := cmp.Diff(want, got); err != nil || diff != "" || last != uint64(total) {
				t.Fatalf("%d of %d: %v %d %s", limit, total, err, last, diff)
			}
			if more := notes.Len() > 0; more != (total > limit) {
				t.Errorf("%d of %d: note %q", limit, total, &notes)
			}
		}
	}
}

// Following outlives a service that is away, gives every record once, and ends when it is interrupted or refused.
func TestFollowing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &tape{}
		s.add(5)
		var notes strings.Builder
		l := &lookup{c: &cli{stderr: &notes}}
		ctx, stop := context.WithCancel(t.Context())
		var got []uint64
		ended := make(chan error)
		go func() {
			ended <- l.following(ctx, s, 3, func(e *audit.Entry) error {
				got = append(got, e.Seq)
				return nil
			})
		}()
		wait := func() { time.Sleep(3 * followEvery); synctest.Wait() }
		wait()
		s.fail(&profile.APIError{Status: 503})
		s.add(4)
		wait()
		s.fail(errors.New("connection refused"))
		wait()
		s.fail(nil)
		wait()
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if want := []uint64{4, 5, 6, 7, 8, 9}; !slices.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
		if n := strings.Count(notes.String(), "is waited for"); n != 1 {
			t.Errorf("%d notes: %s", n, &notes)
		}
		for _, err := range []error{&profile.APIError{Status: 403}, &profile.LapsedError{}} {
			s.fail(err)
			if got := l.following(t.Context(), s, 0, nil); !errors.Is(got, err) {
				t.Errorf("%v: %v", err, got)
			}
		}
		s.fail(nil)
		full := errors.New("the disk is full")
		if got := l.following(t.Context(), s, 0, func(*audit.Entry) error { return full }); !errors.Is(got, full) {
			t.Error(got)
		}
	})
}

func TestListing(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		json, endless bool
		n             int
		want          string
	}{
		{true, false, 0, "[]\n"},
		{true, false, 2, "[\n  {\"seq\":1},\n  {\"seq\":2}\n]\n"},
		{true, true, 2, "{\"seq\":1}\n{\"seq\":2}\n"},
		{false, false, 1, "0001-01-01 00:00:00Z 1 x\n"},
	} {
		var out strings.Builder
		c := &cli{stdout: io.Writer(&out), json: tt.json}
		emit, end := c.listing(tt.endless)
		for i := range tt.n {
			if err := emit(&audit.Entry{Seq: uint64(i + 1), Name: "x", Line: fmt.Appendf(nil, `{"seq":%d}`, i+1)}); err != nil {
				t.Fatal(err)
			}
		}
		if err := end(); err != nil || out.String() != tt.want {
			t.Errorf("%+v: %v %q", tt, err, out.String())
		}
	}
}
