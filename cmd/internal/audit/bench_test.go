// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// granted is a token's event, as most of a journal's are.
func granted() Event {
	return Event{
		Name: "token.issue", Outcome: Granted, Client: "payments", Thumbprint: "A4DtL2JmUMhAsvJj5tKyn64SqzmuXbMrJa0n761y5v0",
		Address: "192.0.2.1", Correlation: "YlaGcgE__9z1_0xt", TokenID: "5pYLcTf-RE7KxDOOi9DpNx", Scope: []string{"ledger:write"},
		Audience: []string{"https://ledger.example"}, Expires: time.Date(2026, 3, 1, 11, 10, 0, 0, time.UTC),
	}
}

// cpu is the processor time that this process has used.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkRecord prints, beside Go's own figures, processor time per record and its ratio to that of a bare append with a
// sync of its own (the reference is measured in the same run), and how many records were synced together.
func BenchmarkRecord(b *testing.B) {
	bare := bareAppend(b)
	for _, test := range []struct {
		sync      Sync
		recorders int
	}{{Always, 1}, {Always, 8}, {Always, 64}, {Interval, 1}, {Interval, 64}} {
		b.Run(fmt.Sprintf("%s/%d", map[Sync]string{Always: "always", Interval: "interval"}[test.sync], test.recorders), func(b *testing.B) {
			var inFlight atomic.Int64
			l, err := Open(b.Context(), Config{Dir: b.TempDir(), Sync: test.sync, InFlight: func() int { return int(inFlight.Load()) }})
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			before, begun := l.Stats(), cpu()
			b.ReportAllocs()
			b.ResetTimer()
			var left atomic.Int64
			left.Store(int64(b.N))
			var wg sync.WaitGroup
			for range test.recorders {
				wg.Go(func() {
					e := granted()
					for left.Add(-1) >= 0 {
						inFlight.Add(1)
						if err := l.Record(b.Context(), e); err != nil {
							b.Error(err)
						}
						inFlight.Add(-1)
					}
				})
			}
			wg.Wait()
			each := (cpu() - begun) / time.Duration(b.N)
			after := l.Stats()
			b.ReportMetric(float64(each.Nanoseconds()), "cpu-ns/op")
			b.ReportMetric(float64(each)/float64(bare), "x-bare")
			b.ReportMetric(float64(after.Records-before.Records)/float64(max(1, after.Groups-before.Groups)), "records/group")
		})
	}
}

// bareAppend is the processor time of appending a line to a file and syncing it, nothing else.
func bareAppend(b *testing.B) time.Duration {
	b.Helper()
	f, err := systemFS{}.Create(filepath.Join(b.TempDir(), "bare"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	line := make([]byte, 512)
	const n = 300
	begun := cpu()
	for i := range n {
		if _, err := f.WriteAt(line, int64(i*len(line))); err != nil {
			b.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
	}
	return (cpu() - begun) / n
}

func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	for b.Loop() {
		l, err := Open(b.Context(), Config{Dir: dir})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := l.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
