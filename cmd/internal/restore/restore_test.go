// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/scripts/postgres"
)

const installation = "here"

var kek = bytes.Repeat([]byte{7}, 32)

// world is an installation that was backed up, and whose database is gone.
type world struct {
	*testing.T
	dir     string
	backup  string
	tag     store.BackupTag
	version int64 // of the next record
	journal *audit.Log
	cert    store.Certificate // of the client a
	pinned  [][]byte          // certificates of the client p
	target  store.Config
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// selfSigned makes a certificate.
func (w *world) selfSigned() []byte {
	w.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.must(err)
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "p"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	w.must(err)
	return der
}

func text(hash [32]byte) string { return base64.RawURLEncoding.EncodeToString(hash[:]) }

func key(n int) [32]byte { return sha256.Sum256(fmt.Appendf(nil, "key %d", n)) }

func code(n byte) [8]byte { return [8]byte{n, n} }

// certificate is a row for the client id.
func certificate(id string, n int) store.Certificate {
	der := fmt.Appendf(nil, "certificate %d", n)
	now := time.Now().Truncate(24 * time.Hour) // the same whenever it is asked for
	return store.Certificate{Thumbprint: sha256.Sum256(der), Serial: fmt.Sprint(1000 + n), ClientID: id, Generation: 1, KeyHash: key(n), DER: der,
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(72 * time.Hour)}
}

func newWorld(t *testing.T) *world {
	t.Helper()
	t.Parallel()
	w := &world{T: t, dir: t.TempDir()}
	w.backup = filepath.Join(w.dir, "backup")
	ctx := t.Context()
	db, err := store.Open(ctx, store.Config{Path: filepath.Join(w.dir, "old.db"), KEK: kek, Replica: "r1"})
	w.must(err)
	for name, value := range map[string]string{"journal_installation": installation, "journal_replica": "r1", "trust_domain": "td.example"} {
		_, err = db.SetOnce(ctx, name, value)
		w.must(err)
	}
	invite := func(n byte) *store.Code {
		return &store.Code{ID: code(n), PublicKey: make([]byte, 32), ExpiresAt: time.Now().Add(time.Hour)}
	}
	for i, id := range []string{"a", "b", "c"} {
		_, err = db.AddClient(ctx, store.Client{ID: id, Usage: "client"}, invite(byte(i+1)))
		w.must(err)
	}
	w.cert, err = db.Redeem(ctx, code(1), key(1), certificate("a", 1), "192.0.2.1", time.Now())
	w.must(err)
	w.pinned = [][]byte{w.selfSigned(), w.selfSigned()}
	_, err = db.AddClient(ctx, store.Client{ID: "p", AuthMethod: byCertificate, Usage: "client", Certificates: w.pinned}, nil)
	w.must(err)
	w.must(db.AddTrust(ctx, store.Trust{Name: "t", Anchors: [][]byte{[]byte("anchor")}, Revocation: "off"}))
	w.must(db.AddResource(ctx, store.Resource{URI: "urn:old", Scopes: []string{"s"}, Servers: []string{"c"}}))
	_, err = db.AddPending(ctx, store.Pending{Kind: "client.add", Payload: []byte("x"), RequestedBy: "b"})
	w.must(err)
	_, err = db.AuditSubject(ctx, "a")
	w.must(err)
	w.must(db.PutKey(ctx, store.Key{Purpose: "signing", ID: "kid", State: "active", Private: []byte("x")}))
	// Another replica has just begun its journal, and has no lease yet; one has stopped at its record 7.
	for _, name := range []string{"newcomer", "stopped"} {
		w.must(db.BeginJournal(ctx, store.Journal{Replica: name, Incarnation: 1, FirstKey: "k", StartedAt: time.Now().Add(-time.Hour)}))
	}
	w.must(db.AdvanceHead(ctx, "stopped", 1, 7, [32]byte{7}))
	w.open(filepath.Join(w.dir, "data", "audit"), installation, "r1", register{db})
	w.must(w.journal.Record(ctx, audit.Event{Name: "client.add", Outcome: audit.Granted, Client: "before", Version: 1}))
	w.tag, _, err = db.Backup(ctx, w.backup, store.CopyConfig{KEK: kek, Program: "v1"})
	w.must(err)
	w.must(db.Close())
	w.version = w.tag.Version
	w.target = store.Config{Path: filepath.Join(w.dir, "data", "certbound.db"), KEK: kek}
	return w
}

// register registers a journal's runs in the database.
type register struct{ db *store.Store }

func (r register) Last(context.Context, string) (audit.Incarnation, error) {
	return audit.Incarnation{}, nil
}

func (r register) Begin(ctx context.Context, i audit.Incarnation) error {
	return r.db.BeginJournal(ctx, store.Journal{Replica: i.Replica, Incarnation: i.Incarnation, FirstKey: i.Key, StartedAt: i.Started})
}

func (w *world) open(dir, of, replica string, r audit.Registrar) {
	w.Helper()
	var err error
	w.journal, err = audit.Open(w.Context(), audit.Config{Dir: dir, Installation: of, Replica: replica, Registrar: r})
	w.must(err)
	journal := w.journal
	w.Cleanup(func() { journal.Close() })
}

// record records a change that was made after the backup.
func (w *world) record(name string, e audit.Event) {
	w.Helper()
	w.version++
	e.Name, e.Version = name, w.version
	if e.Outcome == "" {
		e.Outcome = audit.Granted
	}
	w.must(w.journal.Record(w.Context(), e))
}

// issued is the event of a certificate.
func issued(c store.Certificate, more map[string]string) audit.Event {
	e := audit.Event{Client: c.ClientID, Thumbprint: text(c.Thumbprint), Serial: c.Serial, Expires: c.NotAfter, Detail: map[string]string{
		"generation": fmt.Sprint(c.Generation), "not_before": c.NotBefore.UTC().Format(time.RFC3339), "key": text(c.KeyHash)}}
	for name, value := range more {
		e.Detail[name] = value
	}
	return e
}

func (w *world) config() Config {
	return Config{Backup: w.backup, Target: w.target, Journals: []string{filepath.Join(w.dir, "data")}, Program: "v2"}
}

// restored restores and opens the database as a service does.
func (w *world) restored(cfg Config) (*Report, *store.Store) {
	w.Helper()
	w.must(w.journal.Close())
	report, err := Run(w.Context(), cfg)
	w.must(err)
	at := cfg.Target
	at.Replica = "r1"
	db, err := store.Open(w.Context(), at)
	w.must(err)
	w.Cleanup(func() { db.Close() })
	return report, db
}

func is(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("the error is %v, not %v", err, want)
	}
}

// Each record is done again, and what it took away stays away.
func TestReplay(t *testing.T) {
	ctx := t.Context()
	client := func(w *world, db *store.Store, id string) store.Client {
		w.Helper()
		c, err := db.Client(ctx, id)
		w.must(err)
		return c
	}
	undone := func(w *world, r *Report, what string) {
		w.Helper()
		if !strings.Contains(strings.Join(r.Undone, "\n"), what) {
			w.Errorf("undone: %q, which lacks %q", r.Undone, what)
		}
	}
	for name, test := range map[string]struct {
		records func(w *world)
		check   func(w *world, db *store.Store, r *Report)
	}{
		"revoked": {func(w *world) {
			w.record("cert.revoke", audit.Event{Client: "a", Serial: w.cert.Serial, Detail: map[string]string{
				"reason": "superseded", "x5t#S256": text(w.cert.Thumbprint), "key": text(w.cert.KeyHash)}})
		}, func(w *world, db *store.Store, _ *Report) {
			c, err := db.Certificate(ctx, w.cert.Thumbprint)
			w.must(err)
			blocked, err := db.KeyBlocked(ctx, w.cert.KeyHash)
			w.must(err)
			if c.RevokedAt.IsZero() || c.Reason != 4 || blocked {
				w.Errorf("revoked at %v, reason %d, blocked %t", c.RevokedAt, c.Reason, blocked)
			}
		}},
		"compromised": {func(w *world) {
			w.record("cert.revoke", audit.Event{Client: "a", Serial: w.cert.Serial, Detail: map[string]string{
				"reason": "keyCompromise", "x5t#S256": text(w.cert.Thumbprint), "key": text(w.cert.KeyHash)}})
			w.record("cert.revoke", audit.Event{Client: "a", Detail: map[string]string{"reason": "keyCompromise", "key": text(key(9)), "changed": "blocked"}})
		}, func(w *world, db *store.Store, _ *Report) {
			for _, k := range [][32]byte{w.cert.KeyHash, key(9)} {
				if blocked, err := db.KeyBlocked(ctx, k); err != nil || !blocked {
					w.Errorf("blocked: %t, %v", blocked, err)
				}
			}
		}},
		"a registered certificate revoked": {func(w *world) {
			w.record("cert.revoke", audit.Event{Client: "p", Detail: map[string]string{
				"reason": "unspecified", "x5t#S256": text(sha256.Sum256(w.pinned[0])), "key": text(key(8))}})
		}, func(w *world, db *store.Store, _ *Report) {
			if c := client(w, db, "p"); len(c.Certificates) != 1 || !bytes.Equal(c.Certificates[0], w.pinned[1]) || c.Disabled {
				w.Errorf("%d certificates, disabled %t", len(c.Certificates), c.Disabled)
			}
		}},
		"the last registered certificate revoked": {func(w *world) {
			for _, der := range w.pinned {
				w.record("cert.revoke", audit.Event{Client: "p", Detail: map[string]string{
					"reason": "unspecified", "x5t#S256": text(sha256.Sum256(der)), "key": text(key(8))}})
			}
		}, func(w *world, db *store.Store, _ *Report) {
			if !client(w, db, "p").Disabled {
				w.Error("not disabled")
			}
		}},
		"disabled by a revocation": {func(w *world) {
			w.record("cert.revoke", audit.Event{Client: "p", Detail: map[string]string{"reason": "keyCompromise", "changed": "disabled"}})
		}, func(w *world, db *store.Store, _ *Report) {
			if !client(w, db, "p").Disabled {
				w.Error("not disabled")
			}
		}},
		"disabled, suspended, enabled": {func(w *world) {
			w.record("client.disable", audit.Event{Client: "a"})
			w.record("client.disable", audit.Event{Client: "b"})
			w.record("client.enable", audit.Event{Client: "b"})
			w.record("client.suspend", audit.Event{Client: "c"})
			w.record("client.suspend", audit.Event{Client: "p", Outcome: audit.Refused})
		}, func(w *world, db *store.Store, _ *Report) {
			for id, want := range map[string]bool{"a": true, "b": false, "c": true, "p": false} {
				if got := client(w, db, id).Disabled; got != want {
					w.Errorf("%s: disabled %t", id, got)
				}
			}
		}},
		"removed and added again": {func(w *world) {
			w.record("client.remove", audit.Event{Client: "a"})
			w.record("client.remove", audit.Event{Client: "c"})
			w.record("client.add", audit.Event{Client: "c", Scope: []string{"s"}, Detail: map[string]string{"auth_method": byCA, "usage": "both",
				"dns_names": "c.example d.example", "resources": "urn:old", "token_ttl": "1m0s"}})
		}, func(w *world, db *store.Store, r *Report) {
			_, err := db.Client(ctx, "a")
			is(w.T, err, store.ErrNotFound)
			c, err := db.Certificate(ctx, w.cert.Thumbprint)
			w.must(err)
			if c.RevokedAt.IsZero() {
				w.Error("the certificate of a removed client is not revoked")
			}
			added := client(w, db, "c")
			if added.Generation != 2 || added.Disabled || len(added.DNS) != 2 || added.Usage != "both" || added.TokenTTL != time.Minute ||
				added.SubjectValue != "spiffe://td.example/client/c" || added.Resources[0] != "urn:old" {
				w.Errorf("%+v", added)
			}
			res, err := db.Resource(ctx, "urn:old")
			w.must(err)
			if len(res.Servers) != 0 || len(r.Undone) != 0 {
				w.Errorf("servers %q, undone %q", res.Servers, r.Undone)
			}
		}},
		"added, but not all of it is on record": {func(w *world) {
			w.record("client.add", audit.Event{Client: "self", Detail: map[string]string{"auth_method": byCertificate, "usage": "client", "x5t#S256": "x"}})
			w.record("client.add", audit.Event{Client: "sealed", Detail: map[string]string{"auth_method": byCA, "usage": "client", "trust": "t",
				"sealed_members": "tls_client_auth_subject_dn"}})
			w.record("client.add", audit.Event{Client: "old", Detail: map[string]string{"usage": "client"}})
			w.record("client.add", audit.Event{Client: "keys", Detail: map[string]string{"auth_method": byAssertion, "usage": "client", "jwks": "x"}})
			w.record("client.enable", audit.Event{Client: "self"})
			w.record("client.add", audit.Event{Client: "long", Scope: []string{strings.Repeat("s", 3000)}, Detail: map[string]string{"auth_method": byCA, "usage": "client"}})
		}, func(w *world, db *store.Store, r *Report) {
			for _, id := range []string{"self", "sealed", "old", "long", "keys"} {
				c := client(w, db, id)
				if !c.Disabled || c.AuthMethod != byCertificate || c.Trust != "" || len(c.Scopes)+len(c.Certificates) != 0 {
					w.Errorf("%+v", c)
				}
				undone(w, r, fmt.Sprintf("%q", id))
			}
		}},
		"added, all of it on record": {func(w *world) {
			w.record("client.add", audit.Event{Client: "foreign", Detail: map[string]string{"auth_method": byCA, "usage": "client", "trust": "t", "tls_client_auth_san_dns": "x.example"}})
			w.record("client.add", audit.Event{Client: "jwks", Detail: map[string]string{"auth_method": byCertificate, "usage": "client", "jwks_uri": "https://x.example/jwks"}})
			w.record("client.add", audit.Event{Client: "signs", Detail: map[string]string{"auth_method": byAssertion, "usage": "client", "jwks_uri": "https://y.example/jwks"}})
			w.record("client.add", audit.Event{Client: "ip", Detail: map[string]string{"auth_method": byCA, "usage": "client", "sealed_members": "ip_addresses"},
				Personal: map[string]string{"ip_addresses": "192.0.2.9"}})
			w.record("client.add", audit.Event{Client: "operator", Scope: []string{"certbound:admin"}, Detail: map[string]string{"built_in": "true"}})
		}, func(w *world, db *store.Store, r *Report) {
			if c := client(w, db, "foreign"); c.Disabled || c.SubjectKind != "tls_client_auth_san_dns" || c.SubjectValue != "x.example" || c.Trust != "t" {
				w.Errorf("%+v", c)
			}
			if c := client(w, db, "jwks"); c.Disabled || c.JWKSURI != "https://x.example/jwks" {
				w.Errorf("%+v", c)
			}
			if c := client(w, db, "signs"); c.Disabled || c.AuthMethod != byAssertion || c.JWKSURI != "https://y.example/jwks" {
				w.Errorf("%+v", c)
			}
			if c := client(w, db, "ip"); c.Disabled || len(c.IPs) != 1 || c.IPs[0] != "192.0.2.9" {
				w.Errorf("%+v", c)
			}
			if c := client(w, db, "operator"); c.Disabled || !c.BuiltIn || c.Scopes[0] != "certbound:admin" {
				w.Errorf("%+v", c)
			}
			if len(r.Undone) != 0 {
				w.Errorf("undone %q", r.Undone)
			}
		}},
		"two of one name": {func(w *world) {
			detail := map[string]string{"auth_method": byCA, "usage": "client", "dns_names": "x.example"}
			w.record("client.add", audit.Event{Client: "one", Detail: detail})
			w.record("client.add", audit.Event{Client: "two", Detail: detail})
		}, func(w *world, db *store.Store, r *Report) {
			if client(w, db, "one").Disabled || !client(w, db, "two").Disabled {
				w.Error("the second is not disabled, or the first is")
			}
			undone(w, r, `"two"`)
		}},
		"enrolled and renewed": {func(w *world) {
			w.record("cert.enroll", issued(certificate("b", 2), map[string]string{"code": hex.EncodeToString([]byte{2, 2, 0, 0, 0, 0, 0, 0})}))
			w.record("cert.renew", issued(certificate("b", 3), map[string]string{"renewed_from": text(certificate("b", 2).Thumbprint)}))
			w.record("cert.direct", issued(certificate("c", 4), map[string]string{"renewed_from": text(key(77))}))
			w.record("cert.renew", issued(certificate("nobody", 5), nil))
			w.record("cert.renew", audit.Event{Client: "b", Serial: "99", Thumbprint: text(key(6))})
		}, func(w *world, db *store.Store, r *Report) {
			for n, id := range map[int]string{2: "b", 3: "b", 4: "c"} {
				want := certificate(id, n)
				got, err := db.Certificate(ctx, want.Thumbprint)
				w.must(err)
				if got.ClientID != id || got.Serial != want.Serial || got.KeyHash != want.KeyHash || !got.NotAfter.Equal(want.NotAfter) ||
					!got.NotBefore.Equal(want.NotBefore) || got.Generation != 1 || len(got.DER) != 0 {
					w.Errorf("%+v", got)
				}
			}
			used, err := db.Code(ctx, code(2))
			w.must(err)
			if used.UsedAt.IsZero() || used.UsedKey != key(2) || used.Certificate != certificate("b", 2).Thumbprint {
				w.Errorf("%+v", used)
			}
			// What cannot be handed out again is not: the renewal is signed afresh.
			_, err = db.Child(ctx, certificate("b", 2).Thumbprint, key(3), time.Now())
			is(w.T, err, store.ErrNotFound)
			family, err := db.Revoke(ctx, store.Selection{Thumbprints: [][32]byte{certificate("b", 2).Thumbprint}}, 0, time.Now())
			w.must(err)
			if len(family.Revoked) != 2 {
				w.Errorf("%d of the family were revoked", len(family.Revoked))
			}
			undone(w, r, `"nobody"`)
			undone(w, r, `certificate 99`)
		}},
		"open codes": {func(*world) {}, func(w *world, db *store.Store, _ *Report) {
			c, err := db.Code(ctx, code(3))
			w.must(err)
			used, err := db.Code(ctx, code(1))
			w.must(err)
			if !c.Void || used.Void {
				w.Errorf("void: %t, the used one %t", c.Void, used.Void)
			}
			waiting, err := db.Pending(ctx)
			w.must(err)
			if len(waiting) != 0 {
				w.Errorf("%d requests wait", len(waiting))
			}
		}},
		"resources": {func(w *world) {
			w.record("resource.add", audit.Event{Resource: "urn:new", Scope: []string{"n"}, Detail: map[string]string{"servers": "a b"}})
			w.record("resource.remove", audit.Event{Resource: "urn:old"})
		}, func(w *world, db *store.Store, _ *Report) {
			res, err := db.Resource(ctx, "urn:new")
			w.must(err)
			if len(res.Servers) != 2 || len(res.Scopes) != 1 {
				w.Errorf("%+v", res)
			}
			_, err = db.Resource(ctx, "urn:old")
			is(w.T, err, store.ErrNotFound)
		}},
		"a foreign CA replaced": {func(w *world) {
			w.record("trust.replace", audit.Event{Detail: map[string]string{"trust": "t", "anchors": "x"}})
		}, func(w *world, db *store.Store, r *Report) {
			_, err := db.Trust(ctx, "t")
			is(w.T, err, store.ErrNotFound)
			undone(w, r, `"t"`)
		}},
		"a foreign CA removed": {func(w *world) {
			w.record("trust.remove", audit.Event{Detail: map[string]string{"trust": "t"}})
		}, func(w *world, db *store.Store, r *Report) {
			_, err := db.Trust(ctx, "t")
			is(w.T, err, store.ErrNotFound)
			if len(r.Undone) != 0 {
				w.Errorf("undone %q", r.Undone)
			}
		}},
		"registered certificates replaced": {func(w *world) {
			w.record("client.certificates", audit.Event{Client: "p", Detail: map[string]string{"x5t#S256": text(sha256.Sum256(w.pinned[1])) + " " + text(key(5))}})
		}, func(w *world, db *store.Store, r *Report) {
			if c := client(w, db, "p"); len(c.Certificates) != 1 || !bytes.Equal(c.Certificates[0], w.pinned[1]) {
				w.Errorf("%d certificates", len(c.Certificates))
			}
			undone(w, r, `"p"`)
		}},
		"all registered certificates replaced": {func(w *world) {
			w.record("client.certificates", audit.Event{Client: "p", Detail: map[string]string{"x5t#S256": text(key(5))}})
			w.record("client.enable", audit.Event{Client: "p"})
		}, func(w *world, db *store.Store, _ *Report) {
			if !client(w, db, "p").Disabled {
				w.Error("not disabled")
			}
		}},
		"erased": {func(w *world) {
			w.record("audit.erase", audit.Event{Client: "a"})
		}, func(w *world, db *store.Store, _ *Report) {
			_, err := db.StoredAuditSubject(ctx, "a")
			is(w.T, err, store.ErrNotFound)
		}},
		"settings and keys": {func(w *world) {
			w.record("setting.set", audit.Event{Detail: map[string]string{"admin.paired": "then", "trust_domain": "other"}})
			w.record("key.create", audit.Event{Detail: map[string]string{"kid": "lost"}})
			w.record("key.create", audit.Event{Detail: map[string]string{"kid": "lost too"}})
			w.record("key.create", audit.Event{Detail: map[string]string{"kid": "kid"}})
			w.record("key.retire", audit.Event{Detail: map[string]string{"kid": "kid"}})
		}, func(w *world, db *store.Store, r *Report) {
			paired, err := db.Setting(ctx, "admin.paired")
			w.must(err)
			domain, err := db.Setting(ctx, "trust_domain")
			w.must(err)
			keys, err := db.Keys(ctx, "signing")
			w.must(err)
			if paired != "then" || domain != "td.example" || len(keys) != 0 {
				w.Errorf("%q, %q, %d keys", paired, domain, len(keys))
			}
			if len(r.Undone) != 1 || !strings.Contains(r.Undone[0], "are lost (2): ") || !slices.Equal(r.LostKeys, []string{"lost", "lost too"}) {
				w.Errorf("undone %q, lost keys %q", r.Undone, r.LostKeys)
			}
			entries, err := db.Outbox(ctx, 10)
			w.must(err)
			if event, err := audit.DecodeEvent(entries[0].Body); err != nil || event.Detail["lost_keys"] != "lost lost too" || event.Detail["undone"] != "1" {
				w.Errorf("the record says %+v, %v", event.Detail, err)
			}
		}},
		"a key taken out of use by another that is lost": {func(w *world) {
			w.record("key.create", audit.Event{Detail: map[string]string{"kid": "lost"}})
			w.record("key.activate", audit.Event{Detail: map[string]string{"kid": "lost", "replaces": "kid", "until": "2031-01-02T03:04:05.678901Z"}})
		}, func(w *world, db *store.Store, r *Report) {
			keys, err := db.Keys(ctx, "signing")
			w.must(err)
			until := time.Date(2031, 1, 2, 3, 4, 5, 678901000, time.UTC)
			if len(keys) != 1 || keys[0].State != "retiring" || !keys[0].Until.Equal(until) {
				w.Errorf("the keys are %+v", keys)
			}
		}},
		"keys removed in an emergency": {func(w *world) {
			w.record("key.retire", audit.Event{Detail: map[string]string{"kid": "kid", "emergency": "true"}})
			w.record("key.create", audit.Event{Detail: map[string]string{"kid": "lost", "emergency": "true"}})
		}, func(w *world, db *store.Store, r *Report) {
			keys, err := db.Keys(ctx, "signing")
			w.must(err)
			denials, _, err := db.Denials(ctx, 0, 100)
			w.must(err)
			if len(keys) != 0 || !slices.ContainsFunc(denials, func(d store.Denied) bool { return d.KeyID == "kid" }) {
				w.Errorf("%d keys, denied are %+v", len(keys), denials)
			}
		}},
		"an operator restored": {func(w *world) {
			w.record("client.invite", audit.Event{Client: "a", Detail: map[string]string{"restored": "true"}})
			w.record("client.invite", audit.Event{Client: "b"})
		}, func(w *world, db *store.Store, _ *Report) {
			c, err := db.Certificate(ctx, w.cert.Thumbprint)
			w.must(err)
			if c.RevokedAt.IsZero() {
				w.Error("what the operator had before is not revoked")
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			test.records(w)
			report, db := w.restored(w.config())
			version, err := db.Version(ctx)
			w.must(err)
			if version <= w.version {
				w.Errorf("version %d, and there was %d", version, w.version)
			}
			changes, err := db.ChangesSince(ctx, version-1, 10)
			w.must(err)
			if len(changes) != 1 || !changes[0].Full {
				w.Errorf("%+v", changes)
			}
			test.check(w, db, report)
			number, err := db.NextCRLNumber(ctx)
			w.must(err)
			if number < restoredNumbers {
				w.Errorf("the next revocation list has the number %d", number)
			}
			entries, err := db.Outbox(ctx, 10)
			w.must(err)
			if len(entries) != 1 {
				w.Fatalf("%d records wait", len(entries))
			}
			event, err := audit.DecodeEvent(entries[0].Body)
			w.must(err)
			if event.Name != "store.restore" || event.Detail["backup"] != w.tag.ID {
				w.Errorf("%+v", event)
			}
		})
	}
}

// seen is how far the database knows a journal to have come.
func seen(replica string, incarnation, seq uint64) audit.Anchor {
	a := audit.Anchor{Identity: audit.Identity{Installation: installation, Replica: replica, Incarnation: incarnation},
		Seen: &audit.Sighting{By: audit.ByDatabase, Time: time.Now()}}
	if seq > 0 {
		a.Seen.Head = audit.Head{Seq: seq, Chain: [32]byte{byte(seq)}}
	}
	return a
}

// What ended before the backup was made is not asked for, whoever speaks of it.
func TestEndedJournalIsNoLoss(t *testing.T) {
	w := newWorld(t)
	w.journal.Witness([]audit.Anchor{seen("stopped", 1, 7)})
	w.record("client.disable", audit.Event{Client: "b"})
	cfg := w.config()
	cfg.Heads = []audit.Anchor{seen("stopped", 1, 6)}
	report, _ := w.restored(cfg)
	if len(report.Lost) > 0 {
		t.Errorf("lost: %q", report.Lost)
	}
}

// restoredNumbers is what the numbers of revocation lists are at least, after a restore.
const restoredNumbers = 1 << 32

// Who has read positions of denials, or numbers of revocation lists, is told everything again and never that nothing is new:
// after a restore, and after another one of the same backup, which knows less of what was denied.
func TestRestoredAgain(t *testing.T) {
	ctx := t.Context()
	w := newWorld(t)
	w.record("token.revoke", audit.Event{Client: "b", TokenID: "given back", Expires: time.Now().Add(time.Hour)})
	_, first := w.restored(w.config())
	least, head, err := first.Denials(ctx, 0, 1)
	w.must(err)
	if len(least) != 1 || least[0].Position <= restoredNumbers {
		t.Fatalf("after the first restore %+v, up to %d", least, head)
	}
	for n := range 10 {
		_, err := first.RevokeToken(ctx, "b", fmt.Sprint(n), time.Now().Add(time.Hour))
		w.must(err)
	}
	known, err := first.DenialSeq(ctx)
	w.must(err)
	number, err := first.NextCRLNumber(ctx)
	w.must(err)
	cfg := w.config()
	cfg.Target.Path = filepath.Join(w.dir, "again.db")
	_, second := w.restored(cfg)
	again, _, err := second.Denials(ctx, 0, 1)
	w.must(err)
	if len(again) != 1 || again[0].Position <= known {
		t.Errorf("%+v is no news to whoever knows everything up to %d", again, known)
	}
	if next, err := second.NextCRLNumber(ctx); err != nil || next <= number {
		t.Errorf("the revocation list %d comes after %d, %v", next, number, err)
	}
}

// What would be lost is refused, before anything is there; accepted, it is said.
func TestLoss(t *testing.T) {
	for name, test := range map[string]struct {
		prepare func(w *world, cfg *Config)
		what    string
		filled  bool // the database is there, not to be served
	}{
		"no journal": {func(_ *world, cfg *Config) { cfg.Journals = nil }, "no journal was given", false},
		"forged": {func(w *world, _ *Config) {
			w.record("client.enable", audit.Event{Client: "b"})
			w.must(w.journal.Close())
			names, err := filepath.Glob(filepath.Join(w.dir, "data", "audit", "audit-*.jsonl"))
			w.must(err)
			raw, err := os.ReadFile(names[0])
			w.must(err)
			w.must(os.WriteFile(names[0], bytes.Replace(raw, []byte(`"client":"b"`), []byte(`"client":"a"`), 1), 0o600))
		}, "is not what was written", false},
		"another replica's only": {func(w *world, cfg *Config) {
			w.must(w.journal.Close())
			w.open(filepath.Join(w.dir, "other", "audit"), installation, "r2", nil)
			w.record("client.disable", audit.Event{Client: "a"})
			cfg.Journals = []string{filepath.Join(w.dir, "other")}
		}, "the journal of the replica r1", false},
		"a replica that only a known head speaks of": {func(_ *world, cfg *Config) {
			cfg.Heads = []audit.Anchor{{Identity: audit.Identity{Installation: installation, Replica: "r2", Incarnation: 1}, Checkpoint: audit.Checkpoint{Seq: 7}}}
		}, "the journal of the replica r2", false},
		"a replica that began when the backup was made": {func(_ *world, cfg *Config) {
			cfg.Heads = []audit.Anchor{{Identity: audit.Identity{Installation: installation, Replica: "newcomer", Incarnation: 1}, Checkpoint: audit.Checkpoint{Seq: 2}}}
		}, "the journal of the replica newcomer", false},
		"a replica that another one saw begin": {func(w *world, _ *Config) {
			w.journal.Witness([]audit.Anchor{seen("newcomer", 1, 0), seen("stopped", 1, 7)})
		}, "the journal of the replica newcomer", false},
		"a replica that came back": {func(w *world, _ *Config) {
			w.journal.Witness([]audit.Anchor{seen("stopped", 1, 7)})
			w.journal.Witness([]audit.Anchor{seen("stopped", 2, 0)})
		}, "the journal of the replica stopped", false},
		"a replica that came back as it was": {func(w *world, _ *Config) {
			w.journal.Witness([]audit.Anchor{seen("stopped", 1, 8)})
		}, "the journal of the replica stopped", false},
		"an unknown change": {func(w *world, _ *Config) { w.record("client.bless", audit.Event{Client: "a"}) }, "client.bless", true},
		"a new CA":          {func(w *world, _ *Config) { w.record("ca.create", audit.Event{Serial: "7"}) }, "the CA", true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			cfg := w.config()
			test.prepare(w, &cfg)
			w.must(w.journal.Close())
			_, err := Run(t.Context(), cfg)
			loss, lost := errors.AsType[*LossError](err)
			if !lost || !strings.Contains(loss.Error(), test.what) {
				t.Fatalf("the error is %v", err)
			}
			if test.filled {
				_, err = store.Open(t.Context(), w.target)
				is(t, err, store.ErrNotServable)
			} else if _, err := os.Stat(w.target.Path); !errors.Is(err, fs.ErrNotExist) {
				t.Error("something was made")
			}
			cfg.AcceptLoss = true
			report, err := Run(t.Context(), cfg)
			w.must(err)
			if !strings.Contains(strings.Join(report.Lost, "\n"), test.what) {
				t.Errorf("lost: %q", report.Lost)
			}
			db, err := store.Open(t.Context(), w.target)
			w.must(err)
			w.must(db.Close())
		})
	}
}

// A journal that is not what was written takes away, and gives nothing.
func TestForgedJournalGivesNothing(t *testing.T) {
	w := newWorld(t)
	w.record("client.disable", audit.Event{Client: "a"})
	w.record("client.disable", audit.Event{Client: "b"})
	w.record("client.enable", audit.Event{Client: "b"})
	w.record("client.add", audit.Event{Client: "mallory", Scope: []string{"certbound:admin"}, Detail: map[string]string{"auth_method": byCA, "usage": "client"}})
	w.record("cert.enroll", issued(certificate("c", 6), map[string]string{"code": "0303000000000000"}))
	w.must(w.journal.Close())
	names, err := filepath.Glob(filepath.Join(w.dir, "data", "audit", "audit-*.jsonl"))
	w.must(err)
	raw, err := os.ReadFile(names[0])
	w.must(err)
	w.must(os.WriteFile(names[0], bytes.Replace(raw, []byte(`"before"`), []byte(`"behind"`), 1), 0o600))
	cfg := w.config()
	cfg.AcceptLoss = true
	_, db := w.restored(cfg)
	for _, id := range []string{"a", "b"} {
		c, err := db.Client(t.Context(), id)
		w.must(err)
		if !c.Disabled {
			t.Errorf("%s is enabled", id)
		}
	}
	_, err = db.Client(t.Context(), "mallory")
	is(t, err, store.ErrNotFound)
	_, err = db.Certificate(t.Context(), certificate("c", 6).Thumbprint)
	is(t, err, store.ErrNotFound)
	used, err := db.Code(t.Context(), code(3))
	w.must(err)
	if used.UsedAt.IsZero() {
		t.Error("the code can be used again")
	}
}

// A journal of another installation, a database that is none of ours to fill and a file that is no backup are refused.
func TestRefused(t *testing.T) {
	t.Run("journal", func(t *testing.T) {
		w := newWorld(t)
		w.must(w.journal.Close())
		w.open(filepath.Join(w.dir, "other", "audit"), "elsewhere", "r1", nil)
		w.record("client.disable", audit.Event{Client: "a"})
		w.must(w.journal.Close())
		cfg := w.config()
		cfg.Journals, cfg.AcceptLoss = append(cfg.Journals, filepath.Join(w.dir, "other")), true
		_, err := Run(t.Context(), cfg)
		is(t, err, ErrOtherInstallation)
	})
	t.Run("target", func(t *testing.T) {
		w := newWorld(t)
		w.must(w.journal.Close())
		cfg := w.config()
		cfg.Target.Path = filepath.Join(w.dir, "old.db")
		_, err := Run(t.Context(), cfg)
		is(t, err, store.ErrNotEmpty)
	})
	t.Run("backup", func(t *testing.T) {
		w := newWorld(t)
		w.must(w.journal.Close())
		cfg := w.config()
		cfg.Backup = filepath.Join(w.dir, "old.db")
		_, err := Run(t.Context(), cfg)
		is(t, err, ErrNoBackup)
	})
	t.Run("key", func(t *testing.T) {
		w := newWorld(t)
		w.must(w.journal.Close())
		cfg := w.config()
		cfg.Target.KEK = make([]byte, 32)
		_, err := Run(t.Context(), cfg)
		is(t, err, store.ErrWrongKEK)
	})
	t.Run("another backup half done", func(t *testing.T) {
		w := newWorld(t)
		w.must(w.journal.Close())
		cfg := w.config()
		cfg.reached = func(step string) {
			if step == "filled" {
				panic("stop")
			}
		}
		func() {
			defer func() { _ = recover() }()
			_, _ = Run(t.Context(), cfg)
		}()
		cfg.reached = nil
		old, err := store.Open(t.Context(), store.Config{Path: filepath.Join(w.dir, "old.db"), KEK: kek})
		w.must(err)
		second := filepath.Join(w.dir, "second")
		_, _, err = old.Backup(t.Context(), second, store.CopyConfig{KEK: kek})
		w.must(err)
		w.must(old.Close())
		one := cfg
		one.Backup = second
		_, err = Run(t.Context(), one)
		is(t, err, store.ErrNotServable)
		_, err = Run(t.Context(), cfg)
		w.must(err)
	})
}

// killedVariable says at which step the process of TestKilled kills itself.
const killedVariable = "CERTBOUND_TEST_RESTORE_KILLED"

// Killed anywhere, it is run again, and the end is the same; until then nobody serves what is there.
func TestKilled(t *testing.T) {
	if step, dir, is := strings.Cut(os.Getenv(killedVariable), ":"); is {
		cfg := Config{Backup: filepath.Join(dir, "backup"), Journals: []string{filepath.Join(dir, "data")},
			Target: store.Config{Path: filepath.Join(dir, "data", "certbound.db"), URL: os.Getenv(killedVariable + "_URL"), KEK: kek}}
		if cfg.Target.URL != "" {
			cfg.Target.Path = ""
		}
		cfg.reached = func(reached string) {
			if reached == step {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			}
		}
		_, err := Run(context.Background(), cfg)
		t.Fatal("it was not killed", err)
	}
	for _, kind := range []string{"sqlite", "postgres"} {
		for _, step := range []string{"verified", "filled", "replayed", "soon", "later"} {
			t.Run(kind+"/"+step, func(t *testing.T) {
				w := newWorld(t)
				if kind == "postgres" {
					w.target.Path, w.target.URL = "", postgres.ForTest(t).Database(t)
				}
				w.record("client.disable", audit.Event{Client: "a"})
				w.must(w.journal.Close())
				cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilled$")
				cmd.Env = append(os.Environ(), killedVariable+"="+step+":"+w.dir, killedVariable+"_URL="+w.target.URL)
				w.must(cmd.Start())
				if step == "soon" || step == "later" {
					time.Sleep(map[string]time.Duration{"soon": 60 * time.Millisecond, "later": 150 * time.Millisecond}[step])
					_ = cmd.Process.Kill() // somewhere
				}
				_ = cmd.Wait()
				if state := cmd.ProcessState; state.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL && step != "later" && step != "soon" {
					t.Fatalf("it ended with %v", state)
				}
				if step == "filled" || step == "replayed" {
					_, err := store.Open(t.Context(), w.target)
					is(t, err, store.ErrNotServable)
				}
				_, err := Run(t.Context(), w.config())
				if step != "later" && step != "soon" || !errors.Is(err, store.ErrNotEmpty) { // it was done before it was killed
					w.must(err)
				}
				db, err := store.Open(t.Context(), w.target)
				w.must(err)
				defer db.Close()
				a, err := db.Client(t.Context(), "a")
				w.must(err)
				entries, err := os.ReadDir(filepath.Join(w.dir, "data"))
				w.must(err)
				for _, e := range entries {
					if strings.Contains(e.Name(), "draft") {
						t.Errorf("%s is left", e.Name())
					}
				}
				if !a.Disabled {
					t.Error("what was taken away is back")
				}
			})
		}
	}
}
