// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
)

// longestSocketPath is what fits into a socket address, its final NUL included.
const longestSocketPath = 107

// listenUnix listens at name, also where the path is longer than a socket address holds: then through the open folder.
func listenUnix(name string) (net.Listener, error) {
	if len(name) <= longestSocketPath {
		return unlinkLater(net.Listen("unix", name))
	}
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return unlinkLater(net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(name))))
}

// unlinkLater leaves the file to its owner: the address may be a way to it that is gone when the listener closes.
func unlinkLater(l net.Listener, err error) (net.Listener, error) {
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	return l, err
}

// peerUID asks the kernel whose process connected.
func peerUID(c net.Conn) (int, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return 0, errors.New("not a unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *syscall.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err = errors.Join(err, credErr); err != nil {
		return 0, err
	}
	return int(cred.Uid), nil
}
