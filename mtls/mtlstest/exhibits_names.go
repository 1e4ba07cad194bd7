// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package mtlstest

func (m *museum) keys()             {}
func (m *museum) encodings()        {}
func (m *museum) alternativeNames() {}
func (m *museum) subjects()         {}
