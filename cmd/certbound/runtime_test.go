// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import "testing"

func TestBallast(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]int{"": ballastBytes, "GOGC": 0, "GOMEMLIMIT": 0} {
		if got := len(ballast(func(name string) (string, bool) { return "", name == given })); got != want {
			t.Errorf("with %q in the environment the ballast is %d bytes, want %d", given, got, want)
		}
	}
}
