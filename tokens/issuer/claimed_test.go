// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"strings"
	"testing"
)

// What a stranger calls itself is repeated only where it can be an id, so that a token or a code in the wrong field
// reaches neither journal nor log.
func TestClaimedClientID(t *testing.T) {
	t.Parallel()
	for _, id := range []string{"", "payments", "a.b-c_9", strings.Repeat("a", 63), "spiffe://partner.example/ns/Prod/sa/x",
		"az09", "spiffe://partner.example/AZ/" + strings.Repeat("a", 63),
	} {
		if claimed(id) != id {
			t.Errorf("%q is not repeated", id)
		}
	}
	signature := strings.Repeat("aB3-_x", 15)[:86]
	for _, secret := range []string{
		strings.Repeat("a", 64), "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0." + signature, signature, "cb1.AbCd", "Payments", "a b", "é",
		"spiffe://partner.example/" + signature, "spiffe://partner.example/a?b", "spiffe://partner.example/x y", "spiffe://partner.example/a@b",
		"spiffe://partner.example/a[b", "spiffe://partner.example/a{b", "a/b", "a{b", "spiffe://partner.example/" + strings.Repeat("a", 64),
		"-----BEGIN PRIVATE KEY-----",
	} {
		if got := claimed(secret); got != "" {
			t.Errorf("%q is repeated as %q", secret, got)
		}
	}
}
