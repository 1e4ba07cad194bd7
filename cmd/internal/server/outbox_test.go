// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"testing"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/outbox"
	"github.com/certbound/certbound/cmd/internal/store"
)

// testBox is an outbox of a database, with a journal of its own.
func testBox(tb testing.TB, db *store.Store) *outbox.Box {
	tb.Helper()
	journal, err := audit.Open(tb.Context(), audit.Config{Dir: tb.TempDir()})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := journal.Close(); err != nil {
			tb.Error(err)
		}
	})
	box, err := outbox.New(outbox.Config{Store: db, Journal: journal})
	if err != nil {
		tb.Fatal(err)
	}
	return box
}
