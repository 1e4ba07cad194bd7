// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"syscall"
	"time"
)

// tcpUserTimeout is the option TCP_USER_TIMEOUT of Linux, which package syscall does not name.
const tcpUserTimeout = 18

// silence bounds how long a connection stands on which the other side confirms nothing of what was sent. Probes of a quiet
// connection do not help there: none is sent while something is on its way, and the system alone would try for a quarter
// of an hour.
func silence(network, _ string, c syscall.RawConn) error {
	if network != "tcp4" && network != "tcp6" {
		return nil
	}
	var failed error
	err := c.Control(func(fd uintptr) {
		failed = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(silenceAtMost/time.Millisecond))
	})
	return errors.Join(err, failed)
}
