// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/certbound/certbound/cmd/internal/config"
)

// A start that was refused early takes back what it alone has made in the data folder, and nothing else.
func TestLeaveNothing(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		what, had, made, left string
		started               bool
	}{
		{what: "an empty folder", made: "lock reserve"},
		{what: "a key alone", had: "kek", made: "lock reserve", left: "kek"},
		{what: "a key that was made", made: "kek lock reserve", left: "kek"},
		{what: "what was there before", had: "lock reserve", left: "lock reserve"},
		{what: "a file of somebody", had: "notes", made: "lock reserve", left: "notes"},
		{what: "a database", made: "certbound.db kek lock reserve", left: "certbound.db kek lock reserve"},
		{what: "one that came further", made: "lock reserve", left: "lock reserve", started: true},
	} {
		for _, fresh := range []bool{true, false} {
			if fresh && c.had != "" {
				continue
			}
			dir := filepath.Join(t.TempDir(), "data")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			write := func(names string) {
				for _, name := range strings.Fields(names) {
					if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
			write(c.had)
			had, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			write(c.made)
			s := &service{cfg: config.Config{Data: dir}}
			if c.started {
				s.folder = &folder{}
			}
			if err := s.leaveNothing(fresh, had); err != nil {
				t.Errorf("%s: %v", c.what, err)
			}
			left, err := os.ReadDir(dir)
			if fresh && c.left == "" {
				if !os.IsNotExist(err) {
					t.Errorf("%s: the folder is left: %v", c.what, err)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, e := range left {
				names = append(names, e.Name())
			}
			if got := strings.Join(names, " "); got != c.left {
				t.Errorf("%s: %q is left, not %q", c.what, got, c.left)
			}
		}
	}
}
