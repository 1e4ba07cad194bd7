// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"encoding/json"
	"fmt"
)

const (
	// maxListed bounds how many rows a change names for other replicas; one that touched more has them drop everything.
	maxListed = 1000
	// keptChanges is how many versions are remembered for replicas that are behind.
	keptChanges = 10_000
)

// log writes what the transaction changed for other replicas, beside its version.
func (c *change) log() error {
	what := c.what
	if len(what.ClientIDs)+len(what.Thumbprints)+len(what.Blocked)+len(what.AuditSubjects) > maxListed {
		what = Change{Full: true}
	}
	what.Version = 0 // it is the row's key
	body, err := json.Marshal(what)
	if err != nil {
		return fmt.Errorf("describe the change: %w", err)
	}
	if _, err := c.tx.ExecContext(c.ctx, insertChange, c.what.Version, string(body)); err != nil {
		return fmt.Errorf("log the change: %w", err)
	}
	if _, err := c.tx.ExecContext(c.ctx, pruneChanges, c.what.Version-keptChanges); err != nil {
		return fmt.Errorf("forget old changes: %w", err)
	}
	return nil
}

// ChangesSince returns what was changed after a version, in the order of the versions and without a gap, at most limit of
// them. Where some are not remembered any more it is one change that says Full, for all of them together. None means that
// there is none newer than version.
func (s *Store) ChangesSince(ctx context.Context, version int64, limit int) ([]Change, error) {
	list, err := s.changesSince(ctx, version, limit)
	if err != nil || len(list) > 0 {
		return list, err
	}
	newest, err := s.Version(ctx)
	if err != nil || newest <= version {
		return nil, err
	}
	// It was made since, or nothing of it is remembered.
	if list, err = s.changesSince(ctx, version, limit); err != nil || len(list) > 0 {
		return list, err
	}
	return []Change{{Full: true, Version: newest}}, nil
}

func (s *Store) changesSince(ctx context.Context, version int64, limit int) ([]Change, error) {
	rows, err := s.read.QueryContext(ctx, queryChanges, version, limit)
	list, err := all(rows, err, func(r row) (c Change, err error) {
		var v int64
		var body string
		if err := r.Scan(&v, &body); err != nil {
			return c, err
		}
		if err := json.Unmarshal([]byte(body), &c); err != nil {
			c = Change{Full: true} // a newer program's words: whatever they say, nothing may be believed any more
		}
		c.Version = v
		return c, nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the changes: %w", err)
	}
	for i, c := range list {
		if c.Version != version+1+int64(i) {
			return []Change{{Full: true, Version: list[len(list)-1].Version}}, nil
		}
	}
	return list, nil
}

// Announce tells those who registered with OnChange what another replica has changed.
func (s *Store) Announce(what Change) { s.announce(what) }
