// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

//go:build race

package issuer

// allocationsOfRace is what the race detector may add: it keeps values on the heap that live on the stack without it.
const allocationsOfRace = 4
