// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/certbound/certbound/cmd/internal/admin"
	"github.com/certbound/certbound/cmd/internal/profile"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls/mtlstest"
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
		fmt.Errorf("starting: %w", &store.KEKError{Err: errors.New("the key is damaged"), Hint: "put it back"}),
		fmt.Errorf("the public listener: %w", syscall.EADDRINUSE),
		&profile.APIError{Status: 502},
		&profile.APIError{Status: 403, Code: "insufficient_scope"},
		&profile.APIError{Status: 403, Code: "insufficient_scope", Scope: "certbound:read"},
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

// An error that knows what to do about itself is not given a general hint.
func TestOwnHints(t *testing.T) {
	t.Parallel()
	for want, err := range map[string]error{
		"chmod 600 x": fmt.Errorf("a: %w", &store.KEKError{Err: fs.ErrPermission, Hint: "chmod 600 x"}),
		"an operator with certbound:grant may give the scope certbound:read": &profile.APIError{
			Status: 403, Code: "insufficient_scope", Scope: "certbound:read"},
		"told": &profile.APIError{Status: 403, Code: "insufficient_scope", Scope: "certbound:read", Hint: "told"},
	} {
		if got := explain(err).hint; got != want {
			t.Errorf("%v: hint %q, want %q", err, got, want)
		}
		if got := explain(startFailure(err)).hint; got != want {
			t.Errorf("%v at the start: hint %q, want %q", err, got, want)
		}
	}
}

// What waits for a second operator is not printed as if it were done: nothing stands where a code would.
func TestWaitingForAnotherOperator(t *testing.T) {
	t.Parallel()
	accepted := &profile.AcceptedError{Body: []byte(`{"id":"abc","kind":"client.add","target":"alice"}`)}
	for name, asJSON := range map[string]bool{"text": false, "json": true} {
		var stdout, stderr bytes.Buffer
		c := &cli{stdout: &stdout, stderr: &stderr, json: asJSON}
		if code := c.report(c.waits(accepted)); code != 0 {
			t.Errorf("%s: exit %d", name, code)
		}
		if asJSON != strings.Contains(stdout.String(), `"id": "abc"`) || asJSON == strings.Contains(stderr.String(), "certbound approval confirm abc") {
			t.Errorf("%s: %q, %q", name, &stdout, &stderr)
		}
	}
	var stderr bytes.Buffer
	c := &cli{stderr: &stderr}
	if code := c.report(c.waits(&profile.AcceptedError{Body: []byte(`nonsense`)})); code != exitFailed {
		t.Errorf("exit %d", code)
	}
}

// A file that holds a key beside the certificates is not sent.
func TestOnlyCertificatesAreSent(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert := mtlstest.SelfSigned(t, mtlstest.Leaf{})
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Leaf.Raw})
	both := append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), block...)
	file := filepath.Join(dir, "both.pem")
	if err := os.WriteFile(file, both, 0o600); err != nil {
		t.Fatal(err)
	}
	var req admin.TrustRequest
	if err := readTrust(&req, file, ""); err == nil || !strings.Contains(err.Error(), file) || req.CA != "" {
		t.Errorf("%v: the request holds %q", err, req.CA)
	}
	if pinned, err := readPinned([]string{file}); err == nil || pinned != nil {
		t.Errorf("the request holds %q", pinned)
	}
	if err := os.WriteFile(file, append(block, block...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readPinned([]string{file}); err == nil || !strings.Contains(err.Error(), "2 certificates") {
		t.Errorf("a chain: %v", err)
	}
	if err := readTrust(&req, file, "http://crl.example/x"); err != nil || req.CRLURL != "http://crl.example/x" || req.CRL != nil {
		t.Errorf("%v: %q %q", err, req.CRLURL, req.CRL)
	}
	if err := readTrust(&req, file, file); err != nil || len(req.CRL) != 2*len(block) {
		t.Errorf("%v: a list of %d bytes", err, len(req.CRL))
	}
}

// A client may have tokens for what it names, or for all that declares its scopes, and for the operators' API in any case.
func TestReach(t *testing.T) {
	t.Parallel()
	resources := []admin.Resource{
		{Resource: "own", Scope: admin.ScopeAdmin + " " + admin.ScopeRead, BuiltIn: true}, {Resource: "a", Scope: "r w"}, {Resource: "b", Scope: "r"},
	}
	for want, client := range map[string]admin.Client{
		"own":   {Scope: admin.ScopeRead},
		"a b":   {Scope: "r"},
		"a":     {Scope: "w"},
		"b":     {Scope: "r", Resources: []string{"b"}},
		"b own": {Scope: "r " + admin.ScopeAdmin, Resources: []string{"b"}},
		"":      {},
	} {
		if got := strings.Join(reach(client, resources), " "); got != want {
			t.Errorf("%+v reaches %q, want %q", client, got, want)
		}
	}
}

// full is an output without room.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

// Whatever prints, it is noticed in one place that it could not; a lost code can be replaced.
func TestLostOutput(t *testing.T) {
	t.Parallel()
	for name, asJSON := range map[string]bool{"text": false, "json": true} {
		out := &output{to: full{}}
		c := &cli{stdout: out, stderr: &bytes.Buffer{}, json: asJSON}
		answer := json.RawMessage(`{"client_id":"alice","auth_method":"tls_client_auth","code":"cb1.x"}`)
		_ = c.printConfirmed("abc", answer) // what it says is not what counts
		if !errors.Is(out.err, syscall.ENOSPC) || !strings.Contains(c.remedy, "certbound client invite alice") {
			t.Errorf("%s: %v, remedy %q", name, out.err, c.remedy)
		}
	}
	out := &output{to: full{}}
	c := &cli{stdout: out}
	table(out, "A B", [][]string{{"1", "2"}})
	if f := explain(c.unwritten(out.err)); f.exit != exitFailed || !strings.Contains(f.hint, "run it again") {
		t.Errorf("%+v", f)
	}
}

// What is in force while its record waits is said so, on standard error, and machines have it in their JSON.
func TestAuditPending(t *testing.T) {
	t.Parallel()
	for pending, want := range map[bool]string{false: "", true: "note: effective, audit pending: "} {
		stderr := &bytes.Buffer{}
		c := &cli{stderr: stderr}
		c.pending(pending)
		if got := stderr.String(); !strings.HasPrefix(got, want) || want == "" && got != "" {
			t.Errorf("%t: %q", pending, got)
		}
	}
}
