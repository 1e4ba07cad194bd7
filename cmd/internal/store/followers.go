// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// maxFollowerRows bounds the rows of one statement: PostgreSQL takes no more than 65,535 arguments.
const maxFollowerRows = 1000

const (
	insertFollowers = `INSERT INTO followers (client_id, certificate, address, position, seen_at) VALUES `
	updateFollowers = ` ON CONFLICT (client_id, certificate, address) DO UPDATE SET position = excluded.position, seen_at = excluded.seen_at
		WHERE followers.seen_at <= excluded.seen_at`
	queryFollowers = `SELECT client_id, certificate, address, position, seen_at FROM followers WHERE seen_at >= $1`
	pruneFollowers = `DELETE FROM followers WHERE seen_at < $1`
)

// Follower is a resource server that follows what is denied: it has everything up to the position.
type Follower struct {
	ClientID    string
	Certificate [32]byte // thumbprint
	Address     string
	Position    int64
	SeenAt      time.Time // when it said so
}

// SaveFollowers stores how far they are, for other replicas. An older word of one does not replace a newer one. They have no
// version: nothing is decided by them.
func (s *Store) SaveFollowers(ctx context.Context, list []Follower) error {
	for len(list) > 0 {
		n := min(len(list), maxFollowerRows)
		if err := s.saveFollowers(ctx, list[:n]); err != nil {
			return fmt.Errorf("keep who follows the denials: %w", err)
		}
		list = list[n:]
	}
	return nil
}

func (s *Store) saveFollowers(ctx context.Context, list []Follower) error {
	var query strings.Builder
	query.WriteString(insertFollowers)
	args := make([]any, 0, 5*len(list))
	for i, f := range list {
		if i > 0 {
			query.WriteString(", ")
		}
		n := len(args)
		fmt.Fprintf(&query, "($%d, $%d, $%d, $%d, $%d)", n+1, n+2, n+3, n+4, n+5)
		args = append(args, f.ClientID, f.Certificate[:], f.Address, f.Position, moment(f.SeenAt))
	}
	query.WriteString(updateFollowers)
	return s.direct(ctx, func(ctx context.Context, w conn) error {
		_, err := w.ExecContext(ctx, query.String(), args...)
		return err
	})
}

// Followers returns those that were heard of since a time.
func (s *Store) Followers(ctx context.Context, since time.Time) ([]Follower, error) {
	rows, err := s.read.QueryContext(ctx, queryFollowers, moment(since))
	list, err := all(rows, err, func(r row) (f Follower, err error) {
		return f, r.Scan(&f.ClientID, (*digest)(&f.Certificate), &f.Address, &f.Position, (*moment)(&f.SeenAt))
	})
	if err != nil {
		return nil, fmt.Errorf("read who follows the denials: %w", err)
	}
	return list, nil
}

// PruneFollowers forgets those that were last heard of before a time.
func (s *Store) PruneFollowers(ctx context.Context, before time.Time) error {
	err := s.direct(ctx, func(ctx context.Context, w conn) error {
		_, err := w.ExecContext(ctx, pruneFollowers, moment(before))
		return err
	})
	if err != nil {
		return fmt.Errorf("forget who followed the denials: %w", err)
	}
	return nil
}
