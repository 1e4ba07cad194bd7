// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import "strings"

// maxClaimed bounds a client id that nobody is known by, and each segment of one that is a SPIFFE ID: shorter than the
// signature of any token and than any enrolment code.
const maxClaimed = 63

// claimed is what may be repeated of a client_id that was not proven: what looks like a client's id. Anything else can be
// what was meant for another field, a token or an enrolment code, and belongs into no log and no journal.
func claimed(id string) string {
	path, spiffe := strings.CutPrefix(id, "spiffe://")
	if !spiffe {
		if len(id) > maxClaimed || strings.ContainsFunc(id, func(c rune) bool { return !isIDRune(c) }) {
			return ""
		}
		return id
	}
	for segment := range strings.SplitSeq(path, "/") {
		if len(segment) > maxClaimed || strings.ContainsFunc(segment, func(c rune) bool { return !isIDRune(c) && (c < 'A' || c > 'Z') }) {
			return ""
		}
	}
	return id
}

// isIDRune reports whether a client id may hold the character.
func isIDRune(c rune) bool {
	return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == '-'
}
