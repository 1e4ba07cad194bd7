// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"net/url"
	"strings"

	"github.com/certbound/certbound/pki"
)

// ShellWord returns s as one word of a POSIX shell, for the commands that hints suggest.
func ShellWord(s string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~:/@%+=,"
	if s != "" && s[0] != '~' && strings.Trim(s, plain) == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// CheckClientID refuses what no client can be registered by. It permits, besides ids of our own kind, the SPIFFE ids of
// clients of foreign CAs.
func CheckClientID(id string) error {
	if u, err := url.Parse(id); err == nil && u.Scheme == "spiffe" && u.Host != "" && len(id) <= 2048 {
		return nil
	}
	return pki.CheckClientID(id)
}

// CheckUsage refuses what is not a usage of a certificate; the error lists them.
func CheckUsage(name string) error {
	_, err := pki.ParseUsage(name)
	return err
}

// Reasons lists the reasons to revoke for, as RFC 5280 spells them; upper or lower case does not matter.
func Reasons() []string {
	var names []string
	for _, reason := range pki.Reasons() {
		names = append(names, reason.String())
	}
	return names
}
