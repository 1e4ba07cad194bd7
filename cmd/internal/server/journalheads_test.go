// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/admin"
	"github.com/certbound/certbound/cmd/internal/audit"
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
