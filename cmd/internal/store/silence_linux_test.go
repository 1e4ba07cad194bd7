// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"net"
	"syscall"
	"testing"
	"time"
)

// A connection to the database does not outlive its other side by a quarter of an hour.
func TestSilence(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	defer l.Close()
	p, err := newPostgres(Config{URL: "postgres://someone@" + l.Addr().String() + "/x"})
	ok(t, err)
	c, err := p.config.DialFunc(t.Context(), "tcp", l.Addr().String())
	ok(t, err)
	defer c.Close()
	raw, err := c.(*net.TCPConn).SyscallConn()
	ok(t, err)
	ok(t, raw.Control(func(fd uintptr) {
		ms, err := syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout)
		if err != nil || time.Duration(ms)*time.Millisecond != silenceAtMost {
			t.Errorf("it stands for %d ms in silence, %v; want %s", ms, err, silenceAtMost)
		}
	}))
}
