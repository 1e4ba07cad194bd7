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

func TestProcessors(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		given bool
		syncs bool
		used  int
		want  int
	}{
		{"one processor", false, true, 1, 2},
		{"two are enough", false, true, 2, 0},
		{"many are not made fewer", false, true, 16, 0},
		{"nothing is waited for", false, false, 1, 0},
		{"the environment decides", true, true, 1, 0},
	} {
		env := func(name string) (string, bool) { return "1", tc.given && name == "GOMAXPROCS" }
		if got := processors(env, tc.syncs, tc.used); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.name, got, tc.want)
		}
	}
}
