// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/pki/stepca"
)

// Every certificate is what the service itself would have issued, for a key of its own, and is in the inventory.
func TestRun(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	issuing := installation(t, dir)
	o := options{data: dir, clients: 40, revoked: 3, scope: "bench", lifetime: time.Hour, out: filepath.Join(dir, "clients.bin")}
	if err := run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(o.out)
	if err != nil || len(file) != o.clients*slotSize {
		t.Fatalf("%d bytes, %v, want %d", len(file), err, o.clients*slotSize)
	}
	db := open(t, dir)
	m := &mint{trustDomain: "td.example", options: o}
	keys, revoked := make(map[[32]byte]bool), 0
	for number := range o.clients {
		slot := file[number*slotSize:]
		key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), slot[1:1+slotKey])
		if err != nil {
			t.Fatal(err)
		}
		n := int(binary.BigEndian.Uint16(slot[1+slotKey:]))
		cert, err := x509.ParseCertificate(slot[1+slotKey+2:][:n])
		if err != nil {
			t.Fatal(err)
		}
		profile := m.profile(number)
		profile.NotBefore, profile.NotAfter = cert.NotBefore, cert.NotAfter
		if err := profile.Check(cert, key.Public()); err != nil {
			t.Errorf("client %d: %v", number, err)
		}
		if err := cert.CheckSignatureFrom(issuing); err != nil {
			t.Errorf("client %d: %v", number, err)
		}
		row, err := db.CertificateBySerial(t.Context(), cert.SerialNumber.String())
		if err != nil {
			t.Fatal(err)
		}
		if row.ClientID != idOf(number) || row.RevokedAt.IsZero() != (slot[0] == 0) || keys[row.KeyHash] {
			t.Errorf("client %d: the inventory has it for %q, revoked at %v; its key is new: %t", number, row.ClientID, row.RevokedAt, !keys[row.KeyHash])
		}
		keys[row.KeyHash] = true
		if slot[0] == 1 {
			revoked++
		}
		if client, err := db.Client(t.Context(), idOf(number)); err != nil || client.SubjectValue != "spiffe://td.example/client/"+idOf(number) {
			t.Errorf("client %d: %q, %v", number, client.SubjectValue, err)
		}
	}
	if blocked, err := db.BlockedKeys(t.Context()); err != nil || revoked != o.revoked || len(blocked) != o.revoked {
		t.Errorf("%d are revoked, %d keys are blocked, %v, want %d", revoked, len(blocked), err, o.revoked)
	}
}

// installation makes what the first start of a service leaves behind, as far as it is needed, and returns the issuing CA.
func installation(t *testing.T, dir string) *x509.Certificate {
	t.Helper()
	db := open(t, dir)
	if _, err := db.SetOnce(t.Context(), "trust_domain", "td.example"); err != nil {
		t.Fatal(err)
	}
	h, err := stepca.NewHierarchy("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(h.IssuingKey)
	if err != nil {
		t.Fatal(err)
	}
	key := store.Key{ID: "1", Purpose: "ca-issuing", State: "active", Private: private, Chain: [][]byte{h.Issuing.Raw, h.Root.Raw}}
	if err := db.PutKey(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return h.Issuing
}

func open(t *testing.T, dir string) *store.Store {
	t.Helper()
	path := filepath.Join(dir, "certbound.db")
	kek, err := store.LoadKEK(dir, path, store.KEKSource{})
	if err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(t.Context(), store.Config{Path: path, KEK: kek})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() }) // a second time where the test has closed it
	return db
}
