// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"context"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
)

func TestWriteKeepsOnePreviousGeneration(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "root")
	dir := filepath.Join(t.TempDir(), "with [brackets]")
	for range 4 {
		write(t, dir, files(t, ca, mtlstest.Leaf{}))
	}
	got, err := filepath.Glob(filepath.Join(escapeGlob(dir), "gen-*"))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{filepath.Join(dir, "gen-000003"), filepath.Join(dir, "gen-000004")}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if link, err := os.Readlink(filepath.Join(dir, "current")); err != nil || link != "gen-000004" {
		t.Errorf("current -> %s, %v", link, err)
	}
	if left, _ := filepath.Glob(filepath.Join(escapeGlob(dir), ".tmp-*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// Readers beside a writer never see a certificate with another's key.
func TestReadersNeverSeeAMismatch(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "root")
	dir := t.TempDir()
	write(t, dir, files(t, ca, mtlstest.Leaf{}))
	stop := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		defer close(stop)
		for range 15 {
			if err := Write(t.Context(), dir, files(t, ca, mtlstest.Leaf{})); err != nil {
				t.Error(err)
			}
		}
	})
	for range 2 {
		done.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := Open(dir); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	done.Wait()
}

// A stop between any two steps of a write leaves the old profile or the new one, and the next write succeeds.
func TestInterruptedWrite(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "root")
	dir := t.TempDir()
	first := files(t, ca, mtlstest.Leaf{})
	write(t, dir, first)
	// What a crash leaves: a generation without content or half of it, temporary files, a temporary link.
	for _, err := range []error{
		os.Mkdir(filepath.Join(dir, "gen-000002"), 0o700),
		os.WriteFile(filepath.Join(dir, "gen-000002", "key.pem"), []byte("half"), 0o600),
		os.WriteFile(filepath.Join(dir, ".tmp-123"), []byte("half"), 0o600),
		os.Symlink("gen-000002", filepath.Join(dir, ".tmp-current")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	p, err := Open(dir)
	if err != nil || !p.Certificate().Equal(first.Chain[0]) {
		t.Fatalf("after the crash: %v", err)
	}
	second := files(t, ca, mtlstest.Leaf{})
	write(t, dir, second)
	if p, err = Open(dir); err != nil || !p.Certificate().Equal(second.Chain[0]) {
		t.Errorf("after the next write: %v", err)
	}
}

func TestWriteRefuses(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "root")
	dir := t.TempDir()
	good := files(t, ca, mtlstest.Leaf{})
	write(t, dir, good)
	for name, spoil := range map[string]func(*Files){
		"another key":    func(f *Files) { f.Key = mtlstest.NewKey(t) },
		"no key":         func(f *Files) { f.Key = nil },
		"no certificate": func(f *Files) { f.Chain = nil },
		"no roots":       func(f *Files) { f.Roots = nil },
		"no issuer":      func(f *Files) { f.Issuer = "" },
		"another client": func(f *Files) { f.ClientID = "other" },
		"another issuer": func(f *Files) { f.Issuer = "https://other.example" },
		"another root":   func(f *Files) { f.Roots = []*x509.Certificate{mtlstest.NewCA(t, "root").Certificate()} },
	} {
		f := good
		spoil(&f)
		if err := Write(t.Context(), dir, f); err == nil {
			t.Errorf("%s: written", name)
		}
	}
	if p, err := Open(dir); err != nil || !p.Certificate().Equal(good.Chain[0]) {
		t.Errorf("the profile changed: %v", err)
	}
	other := good
	other.ClientID, other.Replace = "other", true
	write(t, dir, other)
}

// Whatever is wrong with a file, the error names it and says what to do.
func TestOpenNamesTheBadFile(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "root")
	overwrite := func(name, content string) func(string) error {
		return func(dir string) error { return os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600) }
	}
	truncate := func(name string) func(string) error {
		return func(dir string) error {
			path := filepath.Join(dir, name)
			data, err := os.ReadFile(path)
			return errors.Join(err, os.WriteFile(path, data[:len(data)/2], 0o600))
		}
	}
	remove := func(name string) func(string) error {
		return func(dir string) error { return os.Remove(filepath.Join(dir, name)) }
	}
	key, err := encodeKey(mtlstest.NewKey(t))
	if err != nil {
		t.Fatal(err)
	}
	const cert, private = "gen-000001/cert.pem", "gen-000001/key.pem"
	tests := map[string]struct {
		spoil func(string) error
		file  string
	}{
		"no profile":        {remove("profile.json"), ""},
		"empty profile":     {overwrite("profile.json", ""), "profile.json"},
		"truncated profile": {truncate("profile.json"), "profile.json"},
		"profile without":   {overwrite("profile.json", "{}"), "profile.json"},
		"http in profile": {overwrite("profile.json",
			`{"issuer":"http://h","client_id":"a","mtls_url":"https://h","token_endpoint":"https://h"}`), "profile.json"},
		"no roots":           {remove("roots.pem"), "roots.pem"},
		"empty roots":        {overwrite("roots.pem", ""), "roots.pem"},
		"truncated roots":    {truncate("roots.pem"), "roots.pem"},
		"no link":            {remove("current"), "current"},
		"no certificate":     {remove(cert), cert},
		"truncated cert":     {truncate(cert), cert},
		"key as certificate": {overwrite(cert, string(key)), cert},
		"no key":             {remove(private), private},
		"empty key":          {overwrite(private, ""), private},
		"truncated key":      {truncate(private), private},
		"another key":        {overwrite(private, string(key)), private},
		"two keys":           {overwrite(private, string(key)+string(key)), private},
		"huge key":           {overwrite(private, strings.Repeat("x", maxFile+1)), private},
		"link out of the folder": {func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "current")), os.Symlink("../x", filepath.Join(dir, "current")))
		}, "current"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			write(t, dir, files(t, ca, mtlstest.Leaf{}))
			if err := test.spoil(dir); err != nil {
				t.Fatal(err)
			}
			_, err := Open(dir)
			message, _ := wantHint(t, err)
			if !strings.Contains(message, filepath.Join(dir, test.file)) {
				t.Errorf("error %q does not name %s", message, test.file)
			}
			if strings.Contains(message, "BEGIN") {
				t.Errorf("error %q shows content", message)
			}
		})
	}
}

func TestLapsedProfile(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "root")
	dir := t.TempDir()
	now := time.Now()
	write(t, dir, files(t, ca, mtlstest.Leaf{NotBefore: now.Add(-2 * time.Hour), NotAfter: now.Add(-time.Hour)}))
	_, err := Open(dir)
	if _, ok := errors.AsType[*LapsedError](err); !ok {
		t.Fatalf("error %v", err)
	}
	message, hint := wantHint(t, err)
	if !strings.Contains(message, "lapsed") || !strings.Contains(message, dir) ||
		!strings.Contains(hint, "certbound client invite "+clientID) || !strings.Contains(hint, "certbound enroll - --profile "+dir) {
		t.Errorf("error %q, hint %q", message, hint)
	}
	future := t.TempDir()
	write(t, future, files(t, ca, mtlstest.Leaf{NotBefore: now.Add(time.Hour), NotAfter: now.Add(2 * time.Hour)}))
	_, err = Open(future)
	if _, hint := wantHint(t, err); !strings.Contains(hint, "clock") {
		t.Errorf("hint %q", hint)
	}
}

func TestPendingKeyStays(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "pending", "key.pem")
	first, err := pendingKey(path)
	if err != nil {
		t.Fatal(err)
	}
	again, err := pendingKey(path)
	if err != nil || !sameKey(first.Public(), again.Public()) {
		t.Errorf("the second call made another key: %v", err)
	}
	if i, err := os.Stat(path); err != nil || i.Mode() != 0o600 {
		t.Errorf("mode %v, %v", i.Mode(), err)
	}
	if err := os.WriteFile(path, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = pendingKey(path)
	if message, _ := wantHint(t, err); !strings.Contains(message, path) {
		t.Errorf("error %q", message)
	}
}

func TestLock(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "profile")
	unlock, err := lock(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = lock(ctx, dir)
	if message, _ := wantHint(t, err); !strings.Contains(message, dir) || !errors.Is(err, context.Canceled) {
		t.Errorf("error %q", message)
	}
	// Whoever waits for a folder that goes away gets the lock of the new one, not of the old.
	next := make(chan error)
	go func() {
		unlock, err := lock(t.Context(), dir)
		if err == nil {
			defer unlock()
			_, err = os.Stat(filepath.Join(dir, lockFile))
		}
		next <- err
	}()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	unlock()
	if err := <-next; err != nil {
		t.Error(err)
	}
}

func TestUnwritableFolder(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := Write(t.Context(), filepath.Join(file, "profile"), files(t, mtlstest.NewCA(t, "root"), mtlstest.Leaf{}))
	if message, _ := wantHint(t, err); !strings.Contains(message, file) {
		t.Errorf("error %q", message)
	}
}

func TestResolve(t *testing.T) {
	t.Parallel()
	for _, test := range [][4]string{{"f", "e", "d", "f"}, {"", "e", "d", "e"}, {"", "", "d", "d"}, {"", "", "", ""}} {
		if got := Resolve(test[0], test[1], test[2]); got != test[3] {
			t.Errorf("%q: %q", test, got)
		}
	}
}

func TestAccessors(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "root")
	dir := t.TempDir()
	f := files(t, ca, mtlstest.Leaf{})
	write(t, dir, f)
	p, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := mtls.ThumbprintOf(p.KeyPair().Current().Leaf), mtls.ThumbprintOf(f.Chain[0]); got != want {
		t.Errorf("key pair of %s, want %s", got, want)
	}
	if !p.Roots().Equal(ca.Pool()) {
		t.Error("other roots")
	}
}
