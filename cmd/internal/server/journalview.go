// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"path/filepath"

	"github.com/certbound/certbound/cmd/internal/audit"
)

// maxSearches is how many operators look through the journal at once; others wait.
const maxSearches = 2

// journalView is what operators may look at of the journal.
type journalView struct {
	known  func(context.Context) ([]audit.Anchor, error)
	log    *audit.Log
	reader audit.Reader
	slots  chan struct{}
}

func (s *service) newJournalView() *journalView {
	keys := newJournalKeys(s.folder.store, 0) // it only reads them
	return &journalView{
		known:  s.knownHeads,
		log:    s.folder.journal,
		reader: audit.Reader{Dir: filepath.Join(s.cfg.Data, journalFolder), Opener: audit.NewOpener(keys)},
		slots:  make(chan struct{}, maxSearches),
	}
}

// Search implements admin.Journal.
func (v *journalView) Search(ctx context.Context, q audit.Query) (*audit.Page, error) {
	select {
	case v.slots <- struct{}{}:
		defer func() { <-v.slots }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return v.reader.Search(ctx, q)
}

// Checkpoint implements admin.Journal.
func (v *journalView) Checkpoint() (audit.Anchor, bool) { return v.log.Checkpoint() }

// Known implements admin.Journal.
func (v *journalView) Known(ctx context.Context) ([]audit.Anchor, error) { return v.known(ctx) }
