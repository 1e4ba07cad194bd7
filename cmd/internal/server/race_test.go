// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

//go:build race

package server

// manyTokens is fewer under the race detector, which makes each of them many times slower.
const manyTokens = 5_000

// allocationsOfRace is what the race detector may add: it keeps values on the heap that live on the stack without it.
const allocationsOfRace = 20
