// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package replica

import "time"

// startClock is the machine's clocks where we know of none that counts suspend: Go's monotonic clock, which may stand
// still in it. A suspend is then seen by the wall clock only, and one of less than a second not at all: replicas that
// share a database with others belong on Linux, or on machines that do not sleep.
type startClock struct{ start time.Time }

func machine() Clock { return startClock{start: time.Now()} }

// Boot is the time since the process has started.
func (c startClock) Boot() time.Duration { return time.Since(c.start) }

// Wall is the time of day.
func (startClock) Wall() time.Time { return time.Now().Round(0) }
