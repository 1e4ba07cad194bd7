// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"crypto/sha256"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A client that was loaded leaves the rows that one leaves behind which was added, enrolled and revoked.
func testLoad(f *fixture) {
	t, now := f.t, f.clock.now()
	made, loaded := f.Store, newFixture(t, f.open).Store
	var l Loaded
	l.Client = Client{ID: "svc", SubjectKind: "tls_client_auth_san_uri", SubjectValue: "spiffe://td/client/svc", Usage: "client", Scopes: []string{"b", "a"}}
	key := [32]byte{5}
	l.Code = Code{ID: [8]byte{1}, PublicKey: []byte("public"), CreatedAt: now, ExpiresAt: now.Add(time.Hour)}
	der := []byte("a certificate")
	l.Certificate = Certificate{
		Thumbprint: sha256.Sum256(der), Serial: "1234", ClientID: "svc", Generation: 1,
		NotBefore: now, NotAfter: now.Add(time.Hour), KeyHash: key, DER: der, CreatedAt: now,
	}
	l.Library = []LibraryRow{{"x509_certs", []byte("1234"), der}}

	ctx := t.Context()
	err := made.Transact(ctx, func(tx *Store) error {
		if _, err := tx.AddClient(ctx, l.Client, &l.Code); err != nil {
			return err
		}
		if _, err := tx.Redeem(ctx, l.Code.ID, key, l.Certificate, "192.0.2.1", now); err != nil {
			return err
		}
		_, err := tx.Revoke(ctx, Selection{Serial: "1234"}, keyCompromise, now)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := made.AuditSubject(ctx, "svc"); err != nil {
		t.Fatal(err)
	}
	if _, err := made.DB().ExecContext(ctx, "INSERT INTO ca_kv (bucket, nkey, nvalue) VALUES ($1, $2, $3)", "x509_certs", []byte("1234"), der); err != nil {
		t.Fatal(err)
	}

	l.Client.AuthMethod = methodCA
	l.Code.UsedAt, l.Code.UsedKey, l.Code.Certificate, l.Code.UsedFrom = now, key, l.Certificate.Thumbprint, "192.0.2.1"
	l.Certificate.RevokedAt, l.Certificate.Reason = now, keyCompromise
	if err := loaded.Load(ctx, []Loaded{l}); err != nil {
		t.Fatal(err)
	}
	if secret, err := loaded.StoredAuditSubject(ctx, "svc"); err != nil || len(secret) != auditKeySize {
		t.Errorf("the subject's secret: %d bytes, %v", len(secret), err)
	}
	for _, table := range []string{"clients", "client_names", "client_refs", "codes", "certificates", "blocked_keys", "audit_subjects", "ca_kv", "pending_requests", "client_certificates"} {
		if diff := cmp.Diff(dump(t, made, table), dump(t, loaded, table)); diff != "" {
			t.Errorf("%s: added one by one (-), loaded (+)\n%s", table, diff)
		}
	}
}

// Load makes rows for clients of our CA only, and all of a list or none.
func testLoadRefuses(f *fixture) {
	t, s := f.t, f.Store
	good := func(id string) Loaded {
		return Loaded{
			Client:      Client{ID: id, AuthMethod: methodCA, SubjectKind: "tls_client_auth_san_uri", SubjectValue: "spiffe://td/client/" + id},
			Code:        Code{ID: [8]byte([]byte(id + "       ")), PublicKey: []byte("k"), CreatedAt: time.Now(), ExpiresAt: time.Now()},
			Certificate: Certificate{Thumbprint: sha256.Sum256([]byte(id)), Serial: id, KeyHash: sha256.Sum256([]byte(id + "key")), DER: []byte(id), NotBefore: time.Now(), NotAfter: time.Now(), CreatedAt: time.Now()},
		}
	}
	for name, change := range map[string]func(*Loaded){
		"foreign":        func(l *Loaded) { l.Client.Trust = "partner" },
		"self-signed":    func(l *Loaded) { l.Client.AuthMethod = methodSelfSigned },
		"a name":         func(l *Loaded) { l.Client.DNS = []string{"a.example"} },
		"no certificate": func(l *Loaded) { l.Certificate = Certificate{} },
		"no code":        func(l *Loaded) { l.Code = Code{} },
		"known serial":   func(l *Loaded) { l.Certificate.Serial = "a" },
	} {
		bad := good("b")
		change(&bad)
		if err := s.Load(t.Context(), []Loaded{good("a"), bad}); err == nil {
			t.Errorf("%s: loaded", name)
		}
		if clients, err := s.Clients(t.Context(), "", 10); err != nil || len(clients) != 0 {
			t.Fatalf("%s: %d clients were loaded all the same, %v", name, len(clients), err)
		}
	}
	if err := s.Load(t.Context(), []Loaded{good("a"), good("b")}); err != nil {
		t.Error(err)
	}
}

// dump returns the rows of a table as text, without what is random: sealed values.
func dump(t *testing.T, s *Store, table string) []string {
	t.Helper()
	rows, err := s.reader.QueryContext(t.Context(), "SELECT * FROM "+table)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for rows.Next() {
		values := make([]any, len(columns))
		for i := range values {
			values[i] = &sql.RawBytes{}
		}
		if err := rows.Scan(values...); err != nil {
			t.Fatal(err)
		}
		var line []string
		for i, name := range columns {
			raw := *values[i].(*sql.RawBytes)
			if name == "sealed" || name == "created_at" && table == "ca_kv" {
				raw = fmt.Appendf(nil, "%t", len(raw) > 0)
			}
			line = append(line, fmt.Sprintf("%s=%q", name, raw))
		}
		out = append(out, strings.Join(line, " "))
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return out
}
