// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !race

package server

// manyTokens is how many tokens a database must not notice.
const manyTokens = 100_000

// allocationsOfRace is nothing without the race detector.
const allocationsOfRace = 0
