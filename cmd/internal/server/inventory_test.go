// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto/sha256"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/replica"
	"github.com/certbound/certbound/cmd/internal/store"
)

// renewedDaily gives a client certificates for so many days, each renewed from the one before, the last of which ends at the
// time given.
func renewedDaily(tb testing.TB, s *service, id string, days int, end time.Time) {
	tb.Helper()
	db := s.folder.store
	client, err := db.AddClient(tb.Context(), store.Client{ID: id, AuthMethod: "tls_client_auth", Usage: "client"}, nil)
	if err != nil {
		tb.Fatal(err)
	}
	end = end.UTC().Truncate(time.Second)
	var parent [32]byte
	for day := range days {
		der := fmt.Appendf(nil, "%s on day %d", id, day)
		to := end.AddDate(0, 0, 1+day-days)
		cert := store.Certificate{
			Thumbprint: sha256.Sum256(der), Serial: fmt.Sprintf("%d%d", len(id), 1000+day), ClientID: id, Generation: client.Generation,
			NotBefore: to.AddDate(0, 0, -1), NotAfter: to, KeyHash: sha256.Sum256([]byte(id)), DER: der, CreatedAt: to.AddDate(0, 0, -1),
		}
		if day == 0 {
			err = db.AddCertificate(tb.Context(), cert)
		} else {
			_, err = db.AddRenewal(tb.Context(), parent, cert, false, cert.NotBefore)
		}
		if err != nil {
			tb.Fatal(err)
		}
		parent = cert.Thumbprint
	}
}

// What expired longer ago than the inventory keeps it goes, is counted and recorded; on both databases, and not without a
// lease.
func TestInventoryIsPruned(t *testing.T) {
	t.Parallel()
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		testInventoryIsPruned(t, built(t, t.TempDir()))
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		in := newInstallation(t)
		s := built(t, t.TempDir(), func(s *service) { s.cfg = in.config() })
		renewedDaily(t, s, "billing", 3, time.Now().AddDate(-1, 0, 0))
		if err := s.pruneInventory(t.Context(), time.Now()); err != nil || countCertificates(t, s, "billing") != 3 {
			t.Errorf("without a lease: %d certificates are left, %v", countCertificates(t, s, "billing"), err)
		}
		s.member = nil
		if err := s.pruneInventory(t.Context(), time.Now()); err != nil || countCertificates(t, s, "billing") != 2 {
			t.Errorf("%d certificates are left, %v", countCertificates(t, s, "billing"), err)
		}
		testInventoryIsPruned(t, s)
	})
}

func countCertificates(tb testing.TB, s *service, id string) int {
	tb.Helper()
	certs, err := s.folder.store.Certificates(tb.Context(), id, "", 1000)
	if err != nil {
		tb.Fatal(err)
	}
	return len(certs)
}

// pruned is what the metric says.
func pruned(tb testing.TB, s *service) float64 {
	tb.Helper()
	families, err := s.metrics.registry.Gather()
	if err != nil {
		tb.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "certbound_inventory_pruned_total" {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	tb.Fatal("there is no such metric")
	return 0
}

func testInventoryIsPruned(t *testing.T, s *service) {
	const days, keep = 60, 30
	s.cfg.Inventory.Keep = keep * 24 * time.Hour
	end := time.Now()
	renewedDaily(t, s, "payments", days, end)
	before := pruned(t, s)
	const dropped = days - keep - 1
	prune := func() int {
		if err := s.pruneInventory(t.Context(), end.Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		return countCertificates(t, s, "payments")
	}
	// The first of all stays, and those that expired within the days that are kept, the last of them just now. A slow machine
	// leaves some of the others to the next rounds, as each transaction has its time; each round drops one at least.
	left := prune()
	for round := 1; round < dropped && left > 1+keep; round++ {
		left = prune()
	}
	if again := prune(); left != 1+keep || again != left {
		t.Errorf("%d certificates are left, and then %d, want %d", left, again, 1+keep)
	}
	if n := pruned(t, s) - before; n != dropped {
		t.Errorf("%v are counted, want %d", n, dropped)
	}
	if err := s.folder.journal.Durable(t.Context()); err != nil {
		t.Fatal(err)
	}
	journal, err := readAll(filepath.Join(s.cfg.Data, journalFolder, "*"))
	if err != nil {
		t.Fatal(err)
	}
	recorded := 0
	for line := range strings.Lines(journal) {
		_, rest, ok := strings.Cut(line, `"certificates":"`)
		if !strings.Contains(line, `"inventory.prune"`) || !ok {
			continue
		}
		n := 0
		if _, err := fmt.Sscanf(rest, "%d", &n); err != nil {
			t.Error(err)
		}
		recorded += n
	}
	if recorded != int(pruned(t, s)) {
		t.Errorf("%d are recorded, %v are counted", recorded, pruned(t, s))
	}
	s.cfg.Inventory.Keep = 0
	s.keepInventory(t.Context()) // for ever: it returns
}

// Of the replicas that serve one looks after the inventory, and another when that is gone.
func TestFirstServing(t *testing.T) {
	t.Parallel()
	now := time.Now()
	lease := func(name string, age time.Duration) store.Lease {
		return store.Lease{Replica: name, RenewedAt: now.Add(-age)}
	}
	for want, leases := range map[string][]store.Lease{
		"":  {lease("a", replica.Term+time.Millisecond)},
		"b": {lease("c", 0), lease("b", replica.Term), lease("a", time.Minute)},
		"a": {lease("a", -time.Second), lease("b", 0)},
	} {
		if got := firstServing(leases, now); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
