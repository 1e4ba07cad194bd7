// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

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
