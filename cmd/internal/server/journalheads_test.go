// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/admin"
	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/replica"
	"github.com/certbound/certbound/cmd/internal/restore"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/pki"
)

// knows waits until the database has a head of each of so many replicas, and returns them.
func (in *instance) knows(replicas int) []audit.Anchor {
	in.tb.Helper()
	var heads admin.AuditHeads
	eventually(in.tb, 20*time.Second, "the database knows the heads of the journals", func() bool {
		in.mustOperate(http.MethodGet, "/audit/heads", nil, &heads)
		return len(heads.Known) == replicas
	})
	return heads.Known
}

// The database learns where a journal stands while it is written, also without a lease, and a service that is idle writes
// nothing.
func TestHeadIsLeftInTheDatabase(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	first := in.knows(1)[0]
	in.addLedger()
	eventually(t, 20*time.Second, "the head moves", func() bool { return in.knows(1)[0].Seen.Head.Seq > first.Seen.Head.Seq })
	last := in.knows(1)[0]
	if last.Seen.By != audit.ByDatabase || last.FirstKey == "" || last.Incarnation != 1 || last.Seen.Time.IsZero() {
		t.Errorf("%+v", last)
	}
	if err := in.stop(); err != nil {
		t.Fatal(err)
	}
	// What it wrote when it stopped is known as well, and the journal agrees with it.
	report, err := audit.Verify(filepath.Join(in.data, journalFolder), []audit.Anchor{last})
	if err != nil || !report.Anchor.Equal(last.Seen.Time) {
		t.Errorf("%v: %+v", err, report)
	}
	s := &service{cfg: testConfig(t, in.data), log: discard()}
	err = s.open(t.Context())
	if err == nil {
		var journals []audit.Anchor
		journals, err = s.knownHeads(t.Context())
		if len(journals) != 1 || journals[0].Seen.Head.Seq != report.Records.Last-1 {
			t.Errorf("%+v is left, and the journal ended at %d", journals, report.Records.Last)
		}
	}
	if err := errors.Join(err, s.close()); err != nil {
		t.Fatal(err)
	}
}

// Replicas that share a database say in their journals where those of the others stand: what is gone of one is named by its
// own next start, and by whoever has the journal of another.
func TestReplicasWatchEachOther(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	cfg := i.config()
	one := start(t, cfg)
	known := one.knows(1)[0]
	two := start(t, i.config())
	dirs := []string{filepath.Join(one.data, journalFolder), filepath.Join(two.data, journalFolder)}
	eventually(t, 20*time.Second, "the journal of the second speaks of the first", func() bool {
		segments, err := filepath.Glob(filepath.Join(dirs[1], "audit-*.jsonl"))
		if err != nil || len(segments) != 1 {
			return false
		}
		text, err := os.ReadFile(segments[0])
		return err == nil && strings.Contains(string(text), `"event":"journal.witness","witness":{"installation":"`+known.Installation+`","replica":"`+known.Replica+`"`)
	})
	for _, in := range []*instance{two, one} {
		if err := in.stop(); err != nil {
			t.Fatal(err)
		}
	}
	reports, err := audit.VerifyAll(dirs, audit.VerifyOptions{})
	if err != nil || len(reports[0].Findings)+len(reports[1].Findings) > 0 || len(reports[0].Anchors) != 1 || reports[0].Anchors[0].By != reports[1].Replica {
		t.Fatalf("%v: %+v", err, reports)
	}
	// All of the first one is deleted.
	segments, err := filepath.Glob(filepath.Join(dirs[0], "*.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	for _, segment := range segments {
		if err := os.Remove(segment); err != nil {
			t.Fatal(err)
		}
	}
	refusal, ok := errors.AsType[*StartError](func() error { _, err := tryStart(t, cfg); return err }())
	if !ok || !strings.Contains(refusal.Message, "it was deleted") || !strings.Contains(refusal.Hint, "--accept-journal-loss") {
		t.Errorf("%+v", refusal)
	}
	reports, err = audit.VerifyAll([]string{dirs[1]}, audit.VerifyOptions{})
	if err != nil || !slices.ContainsFunc(reports[0].Notes, func(f audit.Finding) bool { return strings.Contains(f.What, known.Replica) }) {
		t.Errorf("%v: %+v", err, reports)
	}
}

// A9: a replica that began after the backup and was lost within its first seconds, with all that it took away, is missed by a
// restore that has nothing but another one's journal: that speaks of it since before it decided anything.
func TestLostNewcomerIsMissed(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	one := start(t, i.config())
	one.addLedger()
	payments, code := one.enrolled("payments"), one.addClient("billing")
	kek, err := store.LoadKEK("", "", store.KEKSource{File: i.kek})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	backup := filepath.Join(dir, "backup")
	if _, _, err := i.open().Backup(t.Context(), backup, store.CopyConfig{KEK: kek}); err != nil {
		t.Fatal(err)
	}
	two := start(t, i.config())
	kept := filepath.Join(dir, "one") // all that is kept of the two
	if err := os.CopyFS(kept, os.DirFS(filepath.Join(one.data, journalFolder))); err != nil {
		t.Fatal(err)
	}
	var lost string
	for _, r := range one.status().Replicas {
		if !r.This {
			lost = r.Replica
		}
	}
	request := pki.NewEnrollRequest(code, two.issuer, newCSR(t, newKey(t)))
	if status, _ := two.certify(two.client(nil), two.public()+pathEnroll, request); status != http.StatusOK {
		t.Fatalf("enrolling at the second: %d", status)
	}
	res, err := two.socketClient().Post("http://certbound/admin/v1/certificates/revoke", "application/json",
		strings.NewReader(`{"x5t#S256":"`+thumbprint(payments)+`"}`))
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("revoking at the second: %v, %v", res, err)
	}
	res.Body.Close()
	again := func(target string, journals ...string) (*restore.Report, error) {
		return restore.Run(t.Context(), restore.Config{
			Backup: backup, Target: store.Config{Path: filepath.Join(dir, target), KEK: kek}, Journals: journals, Program: "test",
		})
	}
	_, err = again("refused.db", kept)
	refused, ok := errors.AsType[*restore.LossError](err)
	if !ok || lost == "" || !strings.Contains(refused.Error(), "the journal of the replica "+lost) {
		t.Errorf("without the journal of %s: %v", lost, err)
	}
	for _, in := range []*instance{two, one} {
		if err := in.stop(); err != nil {
			t.Fatal(err)
		}
	}
	report, err := again("whole.db", one.data, two.data)
	if err != nil || len(report.Lost) > 0 || report.Done["cert.revoke"] != 1 {
		t.Errorf("with both: %v, %+v", err, report)
	}
}

// A start waits, before anything is decided, until another live replica's journal speaks of this one; for one that does not
// answer only a while, and for one that is gone not at all.
func TestStartAwaitsItsWitness(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	if err := start(t, i.config()).stop(); err != nil {
		t.Fatal(err)
	}
	db := i.open()
	fake := store.Lease{Replica: "fake", Incarnation: 1}
	if err := db.BeginLease(t.Context(), fake); err != nil {
		t.Fatal(err)
	}
	renewing, stop := context.WithCancel(t.Context())
	defer stop()
	go func() {
		for renewing.Err() == nil {
			if _, err := db.RenewLease(renewing, store.LeaseRenewal{Replica: fake.Replica, Incarnation: fake.Incarnation}); err != nil && renewing.Err() == nil {
				t.Error(err)
				return
			}
			time.Sleep(replica.Term / 20)
		}
	}()
	const complaint = "no other replica's journal speaks of this one"
	// begin opens a service, calls meanwhile with its replica once that is known, and returns what it logged and how long it took.
	begin := func(meanwhile func(opened chan error, name string)) (logged string, took time.Duration) {
		logs := &syncBuffer{}
		s := &service{cfg: i.config(), log: slog.New(slog.NewTextHandler(logs, nil)), fatal: make(chan error, 1)}
		opened := make(chan error, 1)
		began := time.Now()
		go func() {
			err := s.open(t.Context())
			took = time.Since(began)
			opened <- err
		}()
		if meanwhile != nil {
			var name string
			eventually(t, 20*time.Second, "the replica is known", func() bool {
				leases, err := db.Leases(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				for _, l := range leases {
					if l.Replica != fake.Replica {
						name = l.Replica
					}
				}
				return name != ""
			})
			meanwhile(opened, name)
		}
		if err := errors.Join(<-opened, s.close()); err != nil {
			t.Fatal(err)
		}
		return logs.String(), took
	}
	_, took := begin(func(opened chan error, name string) {
		select {
		case err := <-opened:
			opened <- err
		case <-time.After(witnessTimeout / 4):
			if err := db.SetWitnessed(t.Context(), name, 1); err != nil {
				t.Error(err)
			}
		}
	})
	if took < witnessTimeout/4 {
		t.Errorf("it began within %s, and no journal spoke of it", took)
	}
	if logged, took := begin(nil); took < witnessTimeout || !strings.Contains(logged, complaint) {
		t.Errorf("without an answer it took %s: %s", took, logged)
	}
	stop()
	eventually(t, 20*time.Second, "the other's lease ends", func() bool {
		_, others, err := db.Witnessed(t.Context(), "nobody", 1, replica.Term)
		if err != nil {
			t.Fatal(err)
		}
		return !others
	})
	if logged, took := begin(nil); strings.Contains(logged, complaint) {
		t.Errorf("alone it took %s: %s", took, logged)
	}
}
