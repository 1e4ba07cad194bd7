// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"context"
	"time"
)

// durablePoll is how often Durable looks.
const durablePoll = 5 * time.Millisecond

// Durable returns when everything is on the disk that Record took in before, except what was counted: whoever keeps a copy
// of a record needs it no longer then. It is an error when ctx ends before, or the journal.
func (l *Log) Durable(ctx context.Context) error {
	s := l.main
	s.mu.Lock()
	newest := s.head.Seq
	s.mu.Unlock()
	ticker := time.NewTicker(durablePoll)
	defer ticker.Stop()
	for {
		s.mu.Lock()
		done, ended := s.last.Seq >= newest, s.ended()
		s.mu.Unlock()
		if done {
			return nil
		}
		if ended != nil {
			return ended
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}
