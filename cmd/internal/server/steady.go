// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"sync"
	"time"
)

const (
	// steadySlack is by how much the wall clock may be set at once before nothing is forgotten by it for a while.
	steadySlack = 5 * time.Second
	// steadyAgain is that while. Whatever token was there before the clock was set has expired by then, and so has every
	// assertion, whichever of the clock's two times was right.
	steadyAgain = 2 * longestLife
	longestLife = time.Hour // of a token
)

// steady tells whether the wall clock goes on evenly. What has ended by a clock that was set ahead may be needed again once
// that is put right: a token that was revoked would be good again, and an assertion that was used. It is safe for
// concurrent use.
type steady struct {
	mu     sync.Mutex
	began  time.Time     // when it was first asked, with the reading of the monotonic clock
	offset time.Duration // the wall clock, since 1970, less the monotonic one, since it began, when it was last asked
	from   time.Duration // of the monotonic clock: before it, nothing is forgotten
}

// goes reports whether the wall clock was not set for long, as far as was seen. Where the monotonic clock stands still while
// the machine is suspended, that counts as if the wall clock was set.
func (s *steady) goes(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.began.IsZero() {
		s.began, s.offset = now, time.Duration(now.UnixNano())
	}
	return s.judge(now, now.Sub(s.began))
}

// judge is goes for the monotonic reading ran. s.mu is held.
func (s *steady) judge(wall time.Time, ran time.Duration) bool {
	offset := time.Duration(wall.UnixNano()) - ran
	if (offset - s.offset).Abs() > steadySlack {
		s.from = ran + steadyAgain
	}
	s.offset = offset
	return ran >= s.from
}

// mayForget reports whether what has ended by the wall clock may be forgotten, here and in a database that others share, and
// whether what is due by it may be done there: neither without a lease, which nobody holds whose clock is wrong, nor soon
// after the clock was set.
func (s *service) mayForget() bool { return s.clock.goes(time.Now()) && s.live() == nil }
