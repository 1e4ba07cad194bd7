// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package replica

import "time"

// Clock is what a lease is measured with.
type Clock interface {
	// Boot counts from some moment, never goes back, and counts the time that the machine was suspended.
	Boot() time.Duration
	// Wall is the time of day.
	Wall() time.Time
}

// reading is both clocks at one moment.
type reading struct {
	boot   time.Duration
	wall   time.Time
	offset time.Duration // wall as nanoseconds since 1970, less boot
	ok     bool          // they were read so close together that offset means something
}

// read reads both clocks, again where the process stood still in between.
func read(c Clock) (m reading) {
	for range 5 {
		m.boot = c.Boot()
		m.wall = c.Wall()
		m.offset = time.Duration(m.wall.UnixNano()) - m.boot
		if m.ok = c.Boot()-m.boot < clockSlack/20; m.ok {
			return m
		}
	}
	return m
}

func near(a, b, slack time.Duration) bool { return a-b <= slack && b-a <= slack }
