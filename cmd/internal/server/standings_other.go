// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !unix

package server

// chunk is a piece of memory.
type chunk struct {
	memory []byte // zeroes at first
}

// newChunk returns n bytes.
func newChunk(n int) *chunk { return &chunk{memory: make([]byte, n)} }
