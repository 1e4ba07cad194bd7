// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/store"
)

// Erasing deletes the secret of one subject, registered or not, and is recorded.
func TestErase(t *testing.T) {
	b := newBench(t)
	const foreign = "spiffe://partner.example/pay"
	for _, id := range []string{"gone", foreign, "other"} {
		_, err := b.store.AuditSubject(t.Context(), id)
		b.must(err)
	}
	for _, id := range []string{"gone", foreign} {
		path := "/clients/" + url.PathEscape(id) + "/erase"
		var done Change
		b.as("alice", ScopeKeys)
		b.post(path, "", http.StatusOK, &done)
		if done.ClientID != id || done.Done != "erased" {
			t.Errorf("answer %+v", done)
		}
		if e := b.journal.last(t); e.Name != "audit.erase" || e.Outcome != audit.Granted || e.Client != id || e.Actor != "alice" {
			t.Errorf("recorded %+v", e)
		}
		if _, err := b.store.StoredAuditSubject(t.Context(), id); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s: %v", id, err)
		}
		b.refused(http.MethodPost, path, "", http.StatusNotFound, "invalid_request", "erased already")
	}
	_, err := b.store.StoredAuditSubject(t.Context(), "other")
	b.must(err)
	b.as("alice", ScopeRevoke, ScopeRegistry, ScopeGrant, ScopeTrust, ScopeRead, ScopeEnroll)
	b.refused(http.MethodPost, "/clients/other/erase", "", http.StatusForbidden, "insufficient_scope", "")
	_, err = b.store.StoredAuditSubject(t.Context(), "other")
	b.must(err)
}

// What an operator names by mistake, a token or a code, is in no record; what can be a name is.
func TestNameable(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"", "payments", "AEVBZGLFFHD76BYY5RMXGXJULW", "spiffe://partner.example/ns/x", "2026-11-23T10:00:00+02:00", "1h", strings.Repeat("a", 63),
	} {
		if nameable(name) != name {
			t.Errorf("%q is not recorded", name)
		}
	}
	for _, secret := range []string{
		strings.Repeat("a", 64), "spiffe://partner.example/" + strings.Repeat("a", 64), "a b", "a/b", "-----BEGIN PRIVATE KEY-----\n", "é",
	} {
		if got := nameable(secret); got != "" {
			t.Errorf("%q is recorded as %q", secret, got)
		}
	}
}
