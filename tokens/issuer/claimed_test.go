// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"strings"
	"testing"

	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/tokens"
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

// What nobody proved to be a client's id is recorded only where it looks like one; what was proven is recorded as it is.
func TestClaimedIsRecorded(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := "Payments" // an id that a stranger's would not be taken for
	if claimed(id) != "" {
		t.Fatalf("%q is repeated of strangers", id)
	}
	cert := s.enrol(t, id)
	r := Request{GrantType: ClientCredentials, ClientID: id, Peer: mtlstest.PeerOf(cert), Scope: []string{"delete"}}
	_, err := s.Issue(t.Context(), r)
	wantError(t, err, tokens.CodeInvalidScope, "scope_not_granted")
	if got := s.journal.last(t); !got.Authenticated || got.ClientID != id {
		t.Errorf("recorded %+v of the client %q", got, id)
	}
	r.ClientID = "Nobody"
	_, err = s.Issue(t.Context(), r)
	wantError(t, err, tokens.CodeInvalidClient, "unknown_client")
	if got := s.journal.last(t); got.Authenticated || got.ClientID != "" {
		t.Errorf("recorded %+v of a stranger", got)
	}
}
