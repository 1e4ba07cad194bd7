// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/certbound/certbound/cmd/internal/profile"
	"github.com/certbound/certbound/cmd/internal/store"
)

func TestWantsJSON(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]bool{
		"client list":                false,
		"client list -o json":        true,
		"-o json client list":        true,
		"client list -ojson":         true,
		"client list -o=json":        true,
		"client list --output json":  true,
		"client list --output=json":  true,
		"client list -o text":        false,
		"client list -o json -otext": false,
		"client list -- -o json":     false,
		"client list -o":             false,
		"client list --outputjson":   false,
	} {
		if got := wantsJSON(strings.Fields(line)); got != want {
			t.Errorf("%s: %v", line, got)
		}
	}
}

// One thumbprint in 64 begins with a hyphen, and is no flag.
func TestThumbprintThatLooksLikeAFlag(t *testing.T) {
	t.Parallel()
	thumbprint := "-" + strings.Repeat("A", 42)
	got := markThumbprints([]string{"cert", "revoke", thumbprint, "--only"})
	if diff := cmp.Diff([]string{"cert", "revoke", "x5t#S256=" + thumbprint, "--only"}, got); diff != "" {
		t.Error(diff)
	}
	for _, other := range []string{"--reason=" + strings.Repeat("A", 34), "--profile", strings.Repeat("A", 43)} {
		args := []string{"cert", "revoke", other}
		if diff := cmp.Diff(args, markThumbprints(args)); diff != "" {
			t.Error(diff)
		}
	}
	var stderr bytes.Buffer
	code := run(t.Context(), []string{"cert", "revoke", thumbprint, "--profile", t.TempDir()}, nil, nil, &stderr, noEnvironment)
	if code != exitFailed || strings.Contains(stderr.String(), "flag") {
		t.Errorf("exit %d: %s", code, &stderr)
	}
}

func noEnvironment(string) (string, bool) { return "", false }

// Every error is one line that says what was wrong and one that says what to do, whatever it came from.
func TestErrorsAreTwoLines(t *testing.T) {
	t.Parallel()
	for _, err := range []error{
		errors.New("first\nsecond\n\nthird"),
		errors.Join(errors.New("a"), errors.New("b")),
		fmt.Errorf("starting: %w", store.ErrLocked),
		fmt.Errorf("the public listener: %w", syscall.EADDRINUSE),
		&profile.APIError{Status: 502},
		&profile.APIError{Status: 403, Code: "insufficient_scope"},
		&profile.Error{Message: "broken"},
		&profile.LapsedError{Dir: "x", ClientID: "y"},
		usagef("", "wrong"),
	} {
		var stderr bytes.Buffer
		c := &cli{stderr: &stderr}
		if code := c.report(err); code == 0 {
			t.Errorf("%v: exit 0", err)
		}
		lines := strings.Split(strings.TrimSuffix(stderr.String(), "\n"), "\n")
		if len(lines) != 2 || !strings.HasPrefix(lines[0], "error: ") || len(lines[0]) < 8 || !strings.HasPrefix(lines[1], "hint: ") || len(lines[1]) < 10 {
			t.Errorf("%v: %q", err, lines)
		}
		stderr.Reset()
		c.json = true
		c.report(err)
		var body map[string]string
		if json.Unmarshal(stderr.Bytes(), &body) != nil || body["error"] == "" || body["error_description"] == "" || body["hint"] == "" {
			t.Errorf("%v: %s", err, &stderr)
		}
	}
}

// What a stranger wrote into a token does not steer the terminal of who looks at it.
func TestInspectionIsPrintable(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	showInspection(&out, &profile.Inspection{Reason: "unknown_key", Claims: map[string]any{
		"client_id": "a\x1b[2J\nvalid", "\u202eevil": []any{"\x07"}, "exp": json.Number("1e400"), "iat": json.Number("1700000000"),
		"cnf": map[string]any{"x5t#S256": "\u009b31m"},
	}})
	for _, r := range out.String() {
		if r != '\n' && (r < 0x20 || r > 0x7e) {
			t.Errorf("character %U in %q", r, out.String())
		}
	}
	for _, want := range []string{"NOT usable: no key of the profile's issuer signed it", "1700000000 (2023-11-14 22:13:20Z)", `"a\x1b[2J\nvalid"`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in %s", want, &out)
		}
	}
}
