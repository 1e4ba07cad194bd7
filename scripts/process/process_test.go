// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package process

import (
	"path/filepath"
	"strings"
	"testing"
)

func script(t *testing.T, text string) Command {
	t.Helper()
	dir := t.TempDir()
	return Command{Argv: []string{"/bin/sh", "-c", text}, Dir: dir, Log: filepath.Join(dir, "log")}
}

// A server is ready when it says so, and no earlier; what it said before it failed is in the error.
func TestStart(t *testing.T) {
	t.Parallel()
	p, err := Start(t.Context(), script(t, "echo ready here; exec sleep 60"))
	if err != nil {
		t.Fatal(err)
	}
	if p.Line != "ready here" || p.Took <= 0 {
		t.Errorf("it said %q after %v", p.Line, p.Took)
	}
	p.Kill()
	if got := p.Status(); got != -1 {
		t.Errorf("exit status %d after SIGKILL", got)
	}
	_, err = Start(t.Context(), script(t, "echo cannot bind >&2; echo not today; exit 1"))
	if err == nil || !strings.Contains(err.Error(), "not today") || !strings.Contains(err.Error(), "cannot bind") {
		t.Errorf("a server that fails: %v", err)
	}
}

// A server that complains while it stops is not taken for one that stopped well.
func TestStop(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"trap 'exit 0' TERM; echo ready here; while :; do sleep 0.05; done":                   "",
		"trap 'echo lost it >&2; exit 3' TERM; echo ready here; while :; do sleep 0.05; done": "exit status 3\nlost it",
	} {
		p, err := Start(t.Context(), script(t, text))
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Stop(); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestRun(t *testing.T) {
	t.Parallel()
	got, err := Run(t.Context(), script(t, "cat; echo bad >&2; exit 2"), "in")
	if want := (Result{Stdout: "in", Stderr: "bad\n", Exit: 2}); err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
}
