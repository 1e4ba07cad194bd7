// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !race

package issuer

// allocationsOfRace is nothing without the race detector.
const allocationsOfRace = 0
