// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !race

package audit

import (
	"context"
	"testing"
)

// Under the race detector pools forget at random.
func TestSealAllocates(t *testing.T) {
	s := newSealer(newMemoryKeys())
	e := tokenEvent()
	buf := make([]byte, 0, 1024)
	got := testing.AllocsPerRun(1000, func() {
		var err error
		if buf, err = s.append(context.Background(), buf[:0], &e); err != nil {
			t.Fatal(err)
		}
	})
	if got > 0 {
		t.Errorf("%v allocations", got)
	}
}
