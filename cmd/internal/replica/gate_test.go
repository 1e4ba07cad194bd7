// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package replica

import (
	"errors"
	"sync"
	"testing"
	"time"
)

// open returns a replica of which only the gate is used, with a lease for the term to come.
func open(tb testing.TB) *Replica {
	tb.Helper()
	r, err := New(Config{Database: struct{ Database }{}, Name: "a", Incarnation: 1})
	if err != nil {
		tb.Fatal(err)
	}
	m := read(r.clock)
	r.gate.lease.Store(&lease{until: m.boot + time.Hour, offset: m.offset})
	return r
}

// A decision costs some hundred nanoseconds and no memory.
func BenchmarkPass(b *testing.B) {
	r := open(b)
	b.ReportAllocs()
	for b.Loop() {
		p, err := r.Pass()
		if err != nil {
			b.Fatal(err)
		}
		p.Leave()
	}
}

func BenchmarkLive(b *testing.B) {
	r := open(b)
	b.ReportAllocs()
	for b.Loop() {
		if err := r.Live(); err != nil {
			b.Fatal(err)
		}
	}
}

func TestGateNeedsNoMemory(t *testing.T) {
	r := open(t)
	if n := testing.AllocsPerRun(1000, func() {
		p, err := r.Pass()
		if r.Live() != nil || err != nil {
			t.Error("no lease")
			return
		}
		p.Leave()
	}); n != 0 {
		t.Errorf("%v allocations for a decision", n)
	}
}

// Whoever saw nobody in an older generation never sees anybody decide under it.
func TestPassUnderTheNewestVersion(t *testing.T) {
	t.Parallel()
	r := open(t)
	var group sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		group.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				p, err := r.Pass()
				if err != nil {
					t.Error(err)
					return
				}
				r.mu.Lock()
				ack := r.acknowledgeable()
				r.mu.Unlock()
				if mine := p.(*generation).version; ack > mine {
					t.Errorf("version %d could be acknowledged while a decision under %d was on its way out", ack, mine)
					p.Leave()
					return
				}
				p.Leave()
			}
		})
	}
	for v := range int64(2000) {
		r.mu.Lock()
		r.install(v + 1)
		r.mu.Unlock()
	}
	close(stop)
	group.Wait()
	if len(r.older) > 8 || r.acknowledgeable() != 2000 {
		t.Errorf("%d generations left, version %d acknowledgeable", len(r.older), r.acknowledgeable())
	}
}

func TestNoLease(t *testing.T) {
	t.Parallel()
	r := open(t)
	r.gate.lease.Store(nil)
	p, err := r.Pass()
	var none *NoLeaseError
	if p != nil || !errors.As(err, &none) || none.RetryAfter() != time.Second || none.Reason == "" {
		t.Errorf("without a lease Pass returned %v, %v", p, err)
	}
	if n := r.passages(); n != 0 {
		t.Errorf("%d passages after a refusal", n)
	}
	m := read(r.clock)
	for name, l := range map[string]*lease{
		"over":                     {until: m.boot, offset: m.offset},
		"wall clock set forwards":  {until: m.boot + time.Hour, offset: m.offset - 1100*time.Millisecond},
		"wall clock set backwards": {until: m.boot + time.Hour, offset: m.offset + 1100*time.Millisecond},
	} {
		r.gate.lease.Store(l)
		if err := r.Live(); !errors.As(err, &none) {
			t.Errorf("%s: %v", name, err)
		}
		if name != "over" && r.gate.lease.Load() != nil {
			t.Errorf("%s: the lease was kept", name)
		}
	}
	r.gate.lease.Store(&lease{until: m.boot + time.Hour, offset: m.offset + 900*time.Millisecond})
	if err := r.Live(); err != nil {
		t.Errorf("the wall clock moved by less than a second: %v", err)
	}
}
