// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package replica

import (
	"syscall"
	"time"
	"unsafe"
)

// clockBoottime is CLOCK_BOOTTIME, which counts suspend. Go's own monotonic clock, CLOCK_MONOTONIC, stands still in it.
const clockBoottime = 7

// bootClock is the machine's clocks. It has none of the monotonic readings of package time in its results.
type bootClock struct{}

func machine() Clock { return bootClock{} }

// Boot reads the clock in a quarter of a microsecond. That it cannot be read is impossible since Linux 2.6.39; a clock at
// the end of time lets no lease hold.
func (bootClock) Boot() time.Duration {
	var ts syscall.Timespec
	if _, _, errno := syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clockBoottime, uintptr(unsafe.Pointer(&ts)), 0); errno != 0 {
		return 1<<63 - 1
	}
	return time.Duration(ts.Nano())
}

// Wall is the time of day.
func (bootClock) Wall() time.Time { return time.Now().Round(0) }
