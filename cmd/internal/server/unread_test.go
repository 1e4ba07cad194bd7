// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"log/slog"
	"net/http"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/config"
)

// With other replicas, a connection that takes nothing is closed within a second, whatever else is configured.
func TestUnreadAnswersWithReplicas(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		member     *member
		configured time.Duration
		want       time.Duration
	}{
		"alone":               {nil, 15 * time.Second, 15 * time.Second},
		"with others":         {&member{}, 15 * time.Second, time.Second},
		"with others, sooner": {&member{}, 500 * time.Millisecond, 500 * time.Millisecond},
	} {
		s := &service{log: slog.New(slog.DiscardHandler), member: tc.member, cfg: config.Config{HTTP: config.HTTP{WriteTimeout: tc.configured}}}
		if got := s.httpServer(http.NotFoundHandler()).HTTP2.WriteByteTimeout; got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}
