// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/admin"
	"github.com/certbound/certbound/cmd/internal/audit"
)

// The status warns of replicas whose metadata would name different mtls listeners, and only of those.
func TestStatusComparesMTLSURLs(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		urls []string
		want string // empty: nothing
	}{
		"none":  {},
		"alike": {urls: []string{"https://a.example", "https://a.example"}},
		"different": {urls: []string{"https://b.example", "https://a.example", "https://b.example"},
			want: "warning: the replicas name different mtls URLs in their metadata, https://a.example and https://b.example: give all of them the same --mtls-url\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var status admin.Status
			for _, u := range tt.urls {
				status.Replicas = append(status.Replicas, admin.Replica{MTLSURL: u})
			}
			s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				_ = json.NewEncoder(w).Encode(status) // the client sees to it
			}))
			socket := filepath.Join(t.TempDir(), "s")
			listener, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			s.Listener.Close()
			s.Listener = listener
			s.Start()
			defer s.Close()
			var out, errs strings.Builder
			if exit := run(t.Context(), []string{"status", "--socket", socket}, strings.NewReader(""), &out, &errs, noEnvironment); exit != 0 || errs.String() != tt.want {
				t.Errorf("exit %d, %q\n%s", exit, errs.String(), out.String())
			}
		})
	}
}

// Whoever verifies the journals of some of the replicas is told to name all.
func TestVerifyAsksForAllJournals(t *testing.T) {
	t.Parallel()
	begin := func(replica string) (*audit.Log, string) {
		dir := filepath.Join(t.TempDir(), "audit")
		l, err := audit.Open(t.Context(), audit.Config{Dir: dir, Installation: "i", Replica: replica})
		if err != nil {
			t.Fatal(err)
		}
		return l, dir
	}
	a, dirA := begin("a")
	b, dirB := begin("b")
	a.Witness([]audit.Anchor{{Identity: audit.Identity{Installation: "i", Replica: "gone", Incarnation: 3}, Seen: &audit.Sighting{By: audit.ByDatabase, Time: time.Now()}}})
	for _, l := range []*audit.Log{a, b} {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	verify := func(args ...string) (int, string) {
		var out, errs strings.Builder
		exit := run(t.Context(), append([]string{"audit", "verify", dirA, dirB}, args...), strings.NewReader(""), &out, &errs, noEnvironment)
		return exit, errs.String()
	}
	exit, said := verify()
	if exit != exitFailed || !strings.Contains(said, `a journal is missing: the journal of replica "gone" is not given, but began run 3 on `) ||
		!strings.Contains(said, "name the folders of all replicas") || strings.Contains(said, "not what was written") {
		t.Errorf("exit %d: %s", exit, said)
	}
	if exit, said := verify("--only"); exit != 0 {
		t.Errorf("exit %d: %s", exit, said)
	}
}

// A folder that was mistyped is told from a journal that somebody deleted, also where heads of that journal are known.
func TestVerifyNamesAFolderThatIsNotThere(t *testing.T) {
	t.Parallel()
	data, elsewhere := t.TempDir(), t.TempDir()
	l, err := audit.Open(t.Context(), audit.Config{Dir: filepath.Join(data, "audit"), Installation: "i", Replica: "a"})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	heads := filepath.Join(elsewhere, "heads.json")
	head, ok := l.Checkpoint()
	known, err := audit.KnownHeads{Heads: []audit.Anchor{head}}.Text()
	if !ok || err != nil || os.WriteFile(heads, known, 0o600) != nil {
		t.Fatal(ok, err)
	}
	mistyped := filepath.Join(elsewhere, "cp9")
	for _, folders := range [][]string{{data, mistyped}, {mistyped, data}, {mistyped}, {"--data", mistyped}} {
		var out, errs strings.Builder
		exit := run(t.Context(), append([]string{"audit", "verify", "--heads", heads}, folders...), strings.NewReader(""), &out, &errs, noEnvironment)
		if exit != exitUsage || !strings.Contains(errs.String(), "there is no folder "+mistyped) || out.Len() > 0 {
			t.Errorf("%s: exit %d: %s%s", folders, exit, out.String(), errs.String())
		}
	}
	// A data folder whose journal is gone is there: that is what the heads are for.
	var out, errs strings.Builder
	if exit := run(t.Context(), []string{"audit", "verify", "--heads", heads, elsewhere}, strings.NewReader(""), &out, &errs, noEnvironment); exit != exitFailed ||
		!strings.Contains(errs.String(), "it was deleted") {
		t.Errorf("exit %d: %s", exit, errs.String())
	}
}
