// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"net/http"
	"testing"
)

// What an authority signed for its own next key carries its name twice, but is no anchor: it is stored and shown as an
// intermediate, as the service will judge it, and refused alone.
func TestRolloverIsStoredAsIntermediate(t *testing.T) {
	b := newBench(t)
	old, key := authority(t, "partner", nil)
	next, _ := authority(t, "partner", nil)
	der, err := x509.CreateCertificate(rand.Reader, next, old, next.PublicKey, key)
	b.must(err)
	rollover, err := x509.ParseCertificate(der)
	b.must(err)
	b.refused(http.MethodPost, "/trusts", body("name", "p", "ca", pemOf(rollover)), http.StatusBadRequest, "invalid_request",
		"self-signed root")
	var made Trust
	b.post("/trusts", body("name", "p", "ca", pemOf(rollover, old)), http.StatusCreated, &made)
	row, err := b.store.Trust(t.Context(), "p")
	b.must(err)
	if len(row.Anchors) != 1 || !bytes.Equal(row.Anchors[0], old.Raw) || len(row.Intermediates) != 1 ||
		len(made.Anchors) != 1 || len(made.Intermediates) != 1 {
		t.Errorf("%d anchors and %d intermediates stored, shown %+v", len(row.Anchors), len(row.Intermediates), made)
	}
}
