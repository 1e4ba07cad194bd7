// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A journal that was changed, or is gone, is named at the start with file and place, and nothing of it is touched.
func TestStart_JournalIsNotWhatWasWritten(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(t *testing.T, segment string){
		"byte 200": func(t *testing.T, segment string) {
			text, err := os.ReadFile(segment)
			if err != nil {
				t.Fatal(err)
			}
			text[200] ^= 1
			if err := os.WriteFile(segment, text, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"it had": func(t *testing.T, segment string) {
			if err := os.Remove(segment); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := testConfig(t, t.TempDir())
			for range 2 { // what the first one wrote is known to the database by the second
				if err := start(t, cfg).stop(); err != nil {
					t.Fatal(err)
				}
			}
			segments, err := filepath.Glob(filepath.Join(cfg.Data, journalFolder, "audit-*"))
			if err != nil || len(segments) != 2 {
				t.Fatalf("segments are %v, %v", segments, err)
			}
			last := segments[1]
			damage(t, last)
			if strings.HasPrefix(name, "it had") {
				damage(t, segments[0])
			}
			before, _ := os.ReadFile(last)
			_, err = tryStart(t, cfg)
			refusal, ok := errors.AsType[*StartError](err)
			if !ok || !strings.Contains(refusal.Message, filepath.Join(cfg.Data, journalFolder)) || refusal.Hint == "" {
				t.Errorf("error is %v", err)
			}
			if ok && name == "byte 200" && !strings.Contains(refusal.Message, last+", byte ") {
				t.Errorf("%q does not name the place", refusal.Message)
			}
			if after, _ := os.ReadFile(last); !bytes.Equal(before, after) {
				t.Error("the journal was touched")
			}
		})
	}
}

// What an operator would alert on is in the metrics.
func TestJournalMetrics(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	in.addLedger()
	for _, name := range []string{
		"certbound_journal_records_total ", "certbound_journal_bytes_total ", "certbound_journal_waiting 0", "certbound_journal_dropped_total 0",
		"certbound_journal_full 0", "certbound_journal_room_bytes ",
		"certbound_journal_sync_duration_seconds_count ", "certbound_journal_group_size_sum ",
	} {
		if metrics := in.awaitMetric(name); strings.Contains(metrics, strings.TrimSpace(name)+" 0\n") && !strings.HasSuffix(name, "0") {
			t.Errorf("%s is 0", name)
		}
	}
	signed := false
	for range 100 { // within a second
		if signed = strings.Contains(in.awaitMetric("certbound_journal_checkpoint_seconds "), "certbound_journal_checkpoint_seconds 1"); signed {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if !signed {
		t.Error("no checkpoint was signed")
	}
}

// A journal that failed for good ends the service, with an error.
func TestFailedJournalEndsTheService(t *testing.T) {
	t.Parallel()
	s := built(t, t.TempDir(), func(s *service) { s.fatal = make(chan error, 1) })
	failure := errors.New("the disk failed")
	s.mustEnd(failure)
	s.mustEnd(errors.New("another"))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := s.serve(ctx, nil); !errors.Is(err, failure) || ctx.Err() != nil {
		t.Errorf("it ended with %v", err)
	}
}
