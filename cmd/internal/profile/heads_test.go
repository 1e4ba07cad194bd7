// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestKeepHeads(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := &Profile{dir: dir}
	keep := func(want, text string, fails error) error {
		return p.KeepHeads(t.Context(), func(old []byte) ([]byte, error) {
			if string(old) != want {
				t.Errorf("it was %q, want %q", old, want)
			}
			return []byte(text), fails
		})
	}
	if err := keep("", "one", nil); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, HeadsFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	if err := keep("one", "one", nil); err != nil {
		t.Error(err)
	}
	if again, err := os.Stat(filepath.Join(dir, HeadsFile)); err != nil || !os.SameFile(info, again) {
		t.Error("what did not change was written")
	}
	if err := keep("one", "two", nil); err != nil {
		t.Error(err)
	}
	wrong := errors.New("wrong")
	if err := keep("two", "three", wrong); !errors.Is(err, wrong) {
		t.Error(err)
	}
	if text, err := Heads(dir); string(text) != "two" || err != nil {
		t.Errorf("%q %v", text, err)
	}
	// What is damaged is somebody's only memory: it is not written over.
	if err := os.WriteFile(filepath.Join(dir, HeadsFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := keep("", "four", nil); err == nil || !strings.Contains(err.Error(), HeadsFile) {
		t.Error(err)
	}
	if text, err := Heads(t.TempDir()); text != nil || err != nil {
		t.Errorf("%q %v", text, err)
	}
}
