// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import "runtime"

// ballastBytes is how much more than its live heap the service lets pile up before it collects garbage.
const ballastBytes = 16 << 20

// ballast returns memory to be held, and never touched, while the service runs. The collector begins when as much has
// been allocated as is live, and with a live heap of a few MiB that is a thousand times a minute under load, for a tenth
// of all the time that tokens take. With the ballast in it, the live heap looks larger. The pages that nobody writes to
// take no memory; what does is the garbage, ballastBytes more of it at the most, however many connections there are:
// a higher GOGC would multiply what an attacker makes us hold. Whoever sets GOGC or GOMEMLIMIT knows better, and gets none.
func ballast(env func(string) (string, bool)) []byte {
	for _, name := range []string{"GOGC", "GOMEMLIMIT"} {
		if _, given := env(name); given {
			return nil
		}
	}
	return make([]byte, ballastBytes)
}

// processors returns how many processors the runtime is to use, 0 for as many as it does. The thread that waits in
// fdatasync counts as running until the runtime notices, which takes up to 10 ms: with a journal that is flushed before
// each answer, one processor would stand still for that long again and again. A second one, even where the system gives
// us time on one only, goes on with everything else. Whoever sets GOMAXPROCS knows better.
func processors(env func(string) (string, bool), syncs bool, used int) int {
	if _, given := env("GOMAXPROCS"); given || !syncs || used > 1 {
		return 0
	}
	return 2
}

// prepareRuntime sets what the runtime cannot know about a service, of which syncs says that its journal is flushed
// before each answer. What it returns is to be held while the service runs.
func prepareRuntime(env func(string) (string, bool), syncs bool) []byte {
	runtime.GOMAXPROCS(processors(env, syncs, runtime.GOMAXPROCS(0))) // 0 changes nothing
	return ballast(env)
}
