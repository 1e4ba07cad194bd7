// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"errors"
	"os"
	"syscall"
)

// Sync implements File. fdatasync leaves out times: over blocks that were written before, it touches no metadata.
func (f systemFile) Sync() error {
	for {
		if err := syscall.Fdatasync(int(f.Fd())); !errors.Is(err, syscall.EINTR) {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}
