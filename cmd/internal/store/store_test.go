// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"path/filepath"
	"testing"
	"time"
)

// testKEK is a key-encryption key for tests.
var testKEK = bytes.Repeat([]byte{7}, kekSize)

// openAt opens the database in dir with a clock, and closes it at the end of the test.
func openAt(t *testing.T, dir string, now func() time.Time) *Store {
	t.Helper()
	s, err := Open(t.Context(), Config{Path: filepath.Join(dir, "certbound.db"), KEK: testKEK, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// TestSQLite runs the conformance suite on SQLite.
func TestSQLite(t *testing.T) {
	t.Parallel()
	testStore(t, func(t *testing.T, now func() time.Time) *Store { return openAt(t, t.TempDir(), now) })
}
