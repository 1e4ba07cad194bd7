// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package authority

import (
	"errors"
	"sync"
	"testing"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens"
)

var wantSuspended = tokens.Error{Code: "invalid_client", Reason: "suspended_on_fork"}

// named counts the events of that name.
func (j *journal) named(name string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := 0
	for _, e := range j.events {
		if e.Name == name {
			n++
		}
	}
	return n
}

// failing runs f while the journal fails.
func (j *journal) failing(f func()) {
	j.set(true)
	defer j.set(false)
	f()
}

func (j *journal) set(fails bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.fails = fails
}

func (b *bench) disabled(id string) bool {
	b.tb.Helper()
	client, err := b.store.Client(b.tb.Context(), id)
	b.must(err)
	return client.Disabled
}

// reports checks how often a fork and a suspension are on record.
func (b *bench) reports(forks, suspensions int) {
	b.tb.Helper()
	if f, s := b.journal.named("renew.fork"), b.journal.named("client.suspend"); f != forks || s != suspensions {
		b.tb.Errorf("%d forks and %d suspensions on record, want %d and %d", f, s, forks, suspensions)
	}
}

// An alarm that could not be recorded is raised at once and recorded later, once, by the same process or by the next; the
// suspension holds meanwhile.
func TestFork_JournalFails(t *testing.T) {
	t.Parallel()
	for _, suspend := range []bool{false, true} {
		for _, died := range []bool{false, true} {
			b := newBench(t)
			told := 0
			b.authority.cfg.SuspendOnFork, b.authority.cfg.Forked = suspend, func() { told++ }
			parent, thief := b.enrolled("payments", newKey(t)), newKey(t)
			first, err := b.renew("payments", parent, newKey(t))
			b.must(err)
			b.journal.failing(func() {
				for range 2 {
					res, err := b.renew("payments", parent, thief)
					if e, _ := errors.AsType[*tokens.Error](err); res != nil || e == nil {
						t.Errorf("suspend %t: an answer without a record: %v", suspend, err)
					}
				}
			})
			if b.disabled("payments") != suspend {
				t.Errorf("suspend %t: disabled %t while the journal fails", suspend, !suspend)
			}
			b.reports(0, 0)
			if told != 1 {
				t.Errorf("suspend %t: told %d times, want 1", suspend, told)
			}
			if died {
				b.reopen()
				b.authority, err = New(b.config())
				b.must(err)
				b.authority.cfg.SuspendOnFork = suspend
			}
			suspensions := 0
			if suspend {
				suspensions = 1
			}
			for range 2 {
				b.must(b.box.Flush(t.Context()))
				b.reports(1, suspensions)
			}
			e := b.journal.last(t, "renew.fork")
			if e.Class != audit.Decision || e.Client != "payments" || e.Address != "192.0.2.2" ||
				e.Detail["renewed_from"] != mtls.ThumbprintOf(parent).String() || e.Detail["sibling"] != mtls.ThumbprintOf(leaf(t, first)).String() {
				t.Errorf("on record: %+v", e)
			}
			res, err := b.renew("payments", parent, thief)
			if suspend {
				b.refused("cert.renew", wantParent, b.inventory(), res, err)
			} else {
				b.must(err)
				if e := b.journal.last(t, "cert.renew"); e.Reason != "repeated" || e.Thumbprint == mtls.ThumbprintOf(leaf(t, first)).String() {
					t.Errorf("on record: %+v", e)
				}
			}
			b.reports(1, suspensions) // once
		}
	}
}

// A suspended client is told the same at once and later, and the journal says why.
func TestFork_Suspends(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.authority.cfg.SuspendOnFork = true
	parent := b.enrolled("payments", newKey(t))
	_, err := b.renew("payments", parent, newKey(t))
	b.must(err)
	thief := newKey(t)
	res, err := b.renew("payments", parent, thief)
	b.refused("cert.renew", wantSuspended, 3, res, err)
	if e := b.journal.last(t, "client.suspend"); e.Outcome != "granted" || e.Reason != "renew_fork" || e.Client != "payments" ||
		e.Address != "192.0.2.2" || !b.disabled("payments") {
		t.Errorf("on record: %+v", e)
	}
	res, err = b.renew("payments", parent, thief)
	b.refused("cert.renew", wantParent, 3, res, err)
	b.reports(1, 1)
}

// The last one who can give operators' rights is not suspended: the journal must not say so, and the renewal stands,
// the first time as at its repetition.
func TestFork_LastGrantor(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.authority.cfg.SuspendOnFork = true
	code, row := b.code("operator")
	_, err := b.store.AddClient(t.Context(), store.Client{ID: "operator", Usage: "client", Scopes: []string{"certbound:admin"}}, &row)
	b.must(err)
	enrolled, err := b.enroll(code, newKey(t))
	b.must(err)
	parent, second := leaf(t, enrolled), newKey(t)
	_, err = b.renew("operator", parent, newKey(t))
	b.must(err)
	forked, err := b.renew("operator", parent, second)
	b.must(err)
	if e := b.journal.last(t, "client.suspend"); e.Outcome != "refused" || e.Reason != "last_grantor" || b.disabled("operator") {
		t.Errorf("on record: %+v; disabled %t", e, b.disabled("operator"))
	}
	again, err := b.renew("operator", parent, second)
	b.must(err)
	if *again != *forked {
		t.Error("the repetition got another certificate")
	}
	b.reports(1, 1)
}

// Many forks at once are each on record once, whatever failed meanwhile.
func TestFork_ReportedOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	parent := b.enrolled("payments", newKey(t))
	_, err := b.renew("payments", parent, newKey(t))
	b.must(err)
	const forks = 10
	b.journal.failing(func() {
		for range forks {
			if _, err := b.renew("payments", parent, newKey(t)); err == nil {
				t.Error("an answer without a record")
			}
		}
	})
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if err := b.box.Flush(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	b.reports(forks, 0)
}
