// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/certbound/certbound/mtls/mtlstest"
)

// What a hint suggests to type is one word again for the shell.
func TestShellWord(t *testing.T) {
	t.Parallel()
	for _, word := range []string{"payments", "./a/b-c_d.e", "a b", "", "it's", "$(id)", "a;b", "-", "~", "~/x", "a~", `a\b`, "a\"b", "*", "é"} {
		out, err := exec.CommandContext(t.Context(), "sh", "-c", "printf %s "+ShellWord(word)).Output()
		if err != nil || string(out) != word {
			t.Errorf("%q became %q: %v", word, out, err)
		}
	}
	if got := ShellWord("certbound-data/admin"); got != "certbound-data/admin" {
		t.Errorf("a plain word became %s", got)
	}
}

func TestForms(t *testing.T) {
	t.Parallel()
	for id, good := range map[string]bool{"a": true, "a.b_c-1": true, "spiffe://x.example/a": true, "": false, "A": false, "a b": false, "spiffe:///a": false} {
		if (CheckClientID(id) == nil) != good {
			t.Errorf("%q: %v", id, CheckClientID(id))
		}
	}
	if CheckUsage("both") != nil || CheckUsage("root") == nil {
		t.Error("usage")
	}
	if got := strings.Join(Reasons(), " "); !strings.Contains(got, "keyCompromise") {
		t.Errorf("reasons %q", got)
	}
}

// What answers and is not the service is told from what does not answer.
func TestReachHint(t *testing.T) {
	t.Parallel()
	for want, err := range map[string]error{
		"do not vouch":   fmt.Errorf("get: %w", x509.UnknownAuthorityError{}),
		"--host NAME":    fmt.Errorf("get: %w", x509.HostnameError{Certificate: &x509.Certificate{}, Host: "x"}),
		"clocks":         fmt.Errorf("get: %w", x509.CertificateInvalidError{Reason: x509.Expired}),
		"can be reached": errors.New("connection refused"),
	} {
		if hint := reachHint(err); !strings.Contains(hint, want) {
			t.Errorf("%v: %q", err, hint)
		}
	}
	s := newService(t)
	p := s.enrolled(t)
	p.roots = []*x509.Certificate{mtlstest.NewCA(t, "stranger").Certificate()}
	_, err := p.Token(t.Context(), nil, "")
	if _, hint := wantHint(t, err); !strings.Contains(hint, "do not vouch") {
		t.Errorf("a token: hint %q", hint)
	}
	if _, hint := wantHint(t, p.Renew(t.Context(), false)); !strings.Contains(hint, "do not vouch") {
		t.Errorf("a renewal: hint %q", hint)
	}
}

// Where a folder is needed, a file is called one.
func TestProfileIsAFile(t *testing.T) {
	t.Parallel()
	s := newService(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{file, filepath.Join(file, "below")} {
		_, err := Enroll(t.Context(), EnrollOptions{Code: s.invite(), Dir: dir})
		if message, _ := wantHint(t, err); !strings.Contains(message, "is a file") {
			t.Errorf("enroll: %s", message)
		}
		_, err = Open(dir)
		if message, _ := wantHint(t, err); !strings.Contains(message, "is a file") {
			t.Errorf("open: %s", message)
		}
	}
}

// A key that others can read is used, and told of.
func TestExposedKey(t *testing.T) {
	t.Parallel()
	s := newService(t)
	dir := s.enrolled(t).Dir()
	for mode, warns := range map[os.FileMode]bool{0o600: false, 0o400: false, 0o640: true, 0o604: true} {
		if err := os.Chmod(filepath.Join(dir, keyFile), mode); err != nil {
			t.Fatal(err)
		}
		p, err := Open(dir)
		if err != nil || (p.Warning() != "") != warns {
			t.Errorf("mode %04o: %v, warning %q", mode, err, p.Warning())
		}
	}
}

// A lapsed profile can be read by whoever only looks at it.
func TestReadLapsed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca := mtlstest.NewCA(t, "root")
	write(t, dir, files(t, ca, mtlstest.Leaf{NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)}))
	if _, err := Open(dir); err == nil {
		t.Error("it was opened")
	}
	p, err := Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	if p.Lapsed(time.Now()) == nil || p.Lapsed(time.Now().Add(-90*time.Minute)) != nil {
		t.Error("when it lapsed is not told")
	}
}
