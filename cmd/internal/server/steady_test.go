// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto/sha256"
	"errors"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/tokens"
)

// A clock that was set is not gone by for longer than any token or assertion lives; one that only drifts is.
func TestSteadyClock(t *testing.T) {
	t.Parallel()
	start := time.Unix(1_800_000_000, 0)
	var s steady
	for range 2 {
		if !s.goes(time.Now()) {
			t.Fatal("nobody has set the clock")
		}
	}
	s = steady{offset: time.Duration(start.UnixNano())}
	var set time.Duration
	at := func(want bool, ran time.Duration) {
		t.Helper()
		if got := s.judge(start.Add(ran+set), ran); got != want {
			t.Errorf("%s after the start, set by %s: %v", ran, set, got)
		}
	}
	at(true, 0)
	at(true, time.Minute)
	for n := range 10 { // it drifts
		set += time.Second
		at(true, time.Minute+time.Duration(n)*time.Minute)
	}
	for _, by := range []time.Duration{30 * 24 * time.Hour, -30 * 24 * time.Hour, steadySlack + time.Second, -steadySlack - time.Second} {
		began := time.Hour
		s, set = steady{offset: time.Duration(start.UnixNano())}, 0
		at(true, began)
		set = by
		at(false, began+time.Minute)
		at(false, began+time.Minute+steadyAgain-1)
		at(true, began+time.Minute+steadyAgain)
		set = 0 // put right: once more
		at(false, began+time.Hour+steadyAgain)
	}
	if steadyAgain < time.Hour+15*time.Minute { // the longest life of a token, and the slacks of all who verify it
		t.Errorf("%s is too short", steadyAgain)
	}
}

// What has ended is forgotten, in memory and in the database, but not by a clock that was set, and where others share the
// database not without a lease: neither an assertion that was used nor a token that was revoked comes back.
func TestForgetting(t *testing.T) {
	t.Parallel()
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		s := built(t, t.TempDir())
		testForgetting(t, s, func(forget bool) {
			s.clock.from = 0
			if !forget {
				s.clock.from = time.Hour
			}
		})
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		in := newInstallation(t)
		s := built(t, t.TempDir(), func(s *service) { s.cfg = in.config() })
		m := s.member
		testForgetting(t, s, func(forget bool) {
			s.member = m // which has no lease yet
			if forget {
				s.member = nil
			}
		})
		s.member = m
	})
}

func testForgetting(t *testing.T, s *service, allow func(bool)) {
	ctx := t.Context()
	now := time.Now()
	s.cfg.Audit.Retention, s.cfg.Inventory.Keep = 24*time.Hour, 24*time.Hour
	renewedDaily(t, s, "billing", 3, now.AddDate(0, 0, -7))
	digest, used := sha256.Sum256([]byte("assertion")), sha256.Sum256([]byte("another"))
	db := s.folder.store
	for _, d := range [][32]byte{digest, used} {
		if err := db.UseAssertion(ctx, d, now.Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := db.Deny(ctx, tokens.Denial{TokenID: "t", Until: now.Add(time.Minute)}); err != nil {
		t.Fatal(err)
	}
	e := audit.Event{Time: now.AddDate(0, 0, -7), Name: "token.issue", Outcome: audit.Granted, Client: "payments", Address: "192.0.2.1"}
	if err := s.folder.journal.Record(ctx, e); err != nil {
		t.Fatal(err)
	}
	look := func() (denied bool, stored, days, certs int) {
		t.Helper()
		denied, err := s.denials.Denied(ctx, &tokens.Claims{ID: "t", IssuedAt: now}, "")
		if err != nil {
			t.Fatal(err)
		}
		list, _, err := db.Denials(ctx, 0, 10)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.StoredAuditDay(ctx, audit.Day(e.Time)); err == nil {
			days = 1
		} else if !errors.Is(err, store.ErrNotFound) {
			t.Fatal(err)
		}
		return denied, len(list), days, countCertificates(t, s, "billing")
	}
	later := now.Add(365 * 24 * time.Hour)
	forget := func() {
		t.Helper()
		s.forgetAssertions(ctx, later)
		s.forgetDenials(ctx, later)
		if err := errors.Join(s.retain(ctx), s.pruneInventory(ctx, later)); err != nil {
			t.Fatal(err)
		}
	}
	allow(false)
	forget()
	if denied, stored, days, certs := look(); !denied || stored != 1 || days != 1 || certs != 3 {
		t.Errorf("denied %v, %d denials, %d days and %d certificates are left", denied, stored, days, certs)
	}
	if err := db.UseAssertion(ctx, digest, now.Add(time.Minute)); !errors.Is(err, store.ErrAssertionUsed) {
		t.Errorf("the assertion is good once more: %v", err)
	}
	allow(true)
	forget()
	if denied, stored, days, certs := look(); denied || stored != 0 || days != 0 || certs != 2 { // the first of them stays, and the last
		t.Errorf("denied %v, %d denials, %d days and %d certificates are left after all have ended", denied, stored, days, certs)
	}
	if err := db.UseAssertion(ctx, used, now.Add(time.Minute)); err != nil {
		t.Errorf("what has expired is remembered: %v", err)
	}
}
