// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package server

import (
	"runtime"
	"syscall"
)

// chunk is memory of its own, given back when nobody refers to the chunk any more: who uses memory must hold the chunk.
type chunk struct {
	memory []byte // zeroes at first
}

// newChunk returns n bytes, or nil when the system has none. What nobody has written to takes no memory. The garbage collector
// lets as much garbage pile up as it counts that is live: what it does not count takes its own size, and not twice that.
func newChunk(n int) *chunk {
	memory, err := syscall.Mmap(-1, 0, n, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		return nil
	}
	c := &chunk{memory: memory}
	runtime.AddCleanup(c, func(memory []byte) { _ = syscall.Munmap(memory) }, memory)
	return c
}
