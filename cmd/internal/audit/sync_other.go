// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package audit

// Sync implements File.
func (f systemFile) Sync() error { return f.File.Sync() }
