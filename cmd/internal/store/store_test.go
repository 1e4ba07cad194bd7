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

// openSQLite opens an empty database.
func openSQLite(t *testing.T, now func() time.Time) *Store { return openAt(t, t.TempDir(), now) }

// TestSQLite runs the conformance suite on SQLite.
func TestSQLite(t *testing.T) {
	t.Parallel()
	testStore(t, openSQLite)
}

// CA-24: RFC 8705, Section 2.2: a registered certificate, and its public key, identifies one client and no second one.
func TestRFC8705_2_2_CertificateOfOneClient(t *testing.T) {
	t.Parallel()
	testRegisteredCertificates(newFixture(t, openSQLite))
}

// DR-07: RFC 8705, Section 2.1.2: what a certificate of one CA is recognised by names one client and no second one.
func TestRFC8705_2_1_2_SubjectOfOneClient(t *testing.T) {
	t.Parallel()
	testSubjects(newFixture(t, openSQLite))
}
