// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
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

// The database knows where the journal ended: what is gone of it is refused at the next start, and gone on without only by
// the number that the refusal names, which is on record then.
func TestStart_JournalLost(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(t *testing.T, dir, before string){
		"put back": func(t *testing.T, dir, before string) {
			if err := errors.Join(os.RemoveAll(dir), os.CopyFS(dir, os.DirFS(before))); err != nil {
				t.Fatal(err)
			}
		},
		"newest segment": func(t *testing.T, dir, _ string) {
			segments, err := filepath.Glob(filepath.Join(dir, "audit-*"))
			if err != nil || len(segments) != 2 {
				t.Fatal(segments, err)
			}
			if err := os.Remove(segments[1]); err != nil {
				t.Fatal(err)
			}
		},
		"all": func(t *testing.T, dir, _ string) {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := testConfig(t, t.TempDir())
			dir, before := filepath.Join(cfg.Data, journalFolder), t.TempDir()
			if err := start(t, cfg).stop(); err != nil {
				t.Fatal(err)
			}
			if err := os.CopyFS(before, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			if err := start(t, cfg).stop(); err != nil { // what it wrote, no start has seen
				t.Fatal(err)
			}
			lose(t, dir, before)
			_, err := tryStart(t, cfg)
			refusal, ok := errors.AsType[*StartError](err)
			if !ok || !strings.Contains(refusal.Message, dir) {
				t.Fatalf("error is %v", err)
			}
			const flag = "--accept-journal-loss "
			_, number, _ := strings.Cut(refusal.Hint, flag)
			number, _, _ = strings.Cut(number, " ")
			known, err := strconv.ParseUint(number, 10, 64)
			if err != nil || !strings.Contains(refusal.Message, number) {
				t.Fatalf("%q does not name the record of %q", refusal.Hint, refusal.Message)
			}
			accept := func(n uint64) error {
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				return Run(ctx, cfg, Options{Logger: discard(), AcceptJournalLoss: n, Stdout: whenWritten(stop)})
			}
			if err := accept(known - 1); err == nil {
				t.Error("another record's loss was taken for it")
			}
			if err := accept(known); err != nil {
				t.Fatal(err)
			}
			var text []byte
			segments, err := filepath.Glob(filepath.Join(dir, "audit-*"))
			for _, segment := range segments {
				b, readErr := os.ReadFile(segment)
				text, err = append(text, b...), errors.Join(err, readErr)
			}
			if err != nil || !bytes.Contains(text, []byte(`"loss":{"incarnation":2,"known":{"seq":`+number)) ||
				!bytes.Contains(text, []byte(`"event":"audit.loss"`)) || !bytes.Contains(text, []byte(`"known":"`+number+`"`)) {
				t.Errorf("the loss is not on record: %v", err)
			}
			if err := start(t, cfg).stop(); err != nil {
				t.Error("it is still missed:", err)
			}
		})
	}
}

// whenWritten is told when the service is ready.
type whenWritten func()

// Write implements io.Writer.
func (f whenWritten) Write(p []byte) (int, error) {
	f()
	return len(p), nil
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

// A journal that contradicts the database comes of a copied folder as well, and a replica has a way on without it.
func TestDamageHint(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t, t.TempDir())
	for database, wantReplica := range map[string]bool{"": false, "postgres://certbound@db.example/certbound": true} {
		cfg.Database = database
		hint := (&service{cfg: cfg}).damageHint(&audit.DamageError{})
		if !strings.Contains(hint, "if a copy of this data folder ran meanwhile") || strings.Contains(hint, "as a new replica") != wantReplica {
			t.Errorf("%q: hint is %q", database, hint)
		}
	}
}
