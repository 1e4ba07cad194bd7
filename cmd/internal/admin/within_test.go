// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
)

// late is a Recorder before whose next change something happens.
type late struct {
	Recorder
	b *bench
}

func (l *late) Change(ctx context.Context, class audit.Class, f func(tx *store.Store) ([]audit.Event, error)) (bool, error) {
	if act := l.b.meanwhile; act != nil {
		l.b.meanwhile = nil
		act()
	}
	return l.Recorder.Change(ctx, class, f)
}

// another opens the bench's database once more, as another replica has it.
func (b *bench) another() *store.Store {
	b.Helper()
	other, err := store.Open(b.Context(), store.Config{Path: b.path, KEK: make([]byte, 32)})
	b.must(err)
	b.Cleanup(func() {
		if err := other.Close(); err != nil {
			b.Error(err)
		}
	})
	return other
}

func exec(t *testing.T, s *store.Store, query string, args ...any) {
	t.Helper()
	if _, err := s.DB().ExecContext(t.Context(), query, args...); err != nil {
		t.Fatal(err)
	}
}

// newReplica is a bench whose callers are judged in the transaction as the service does it. Its alice asks with the
// certificate 700; root could replace her.
func newReplica(t *testing.T, route string, asks mtls.Thumbprint) *bench {
	t.Helper()
	var b *bench
	cfg := Config{ResetTickets: func() {}, InForce: func(ctx context.Context, tx *store.Store) ([]string, error) {
		client, err := InForce(ctx, tx, b.who, asks, time.Now())
		return client.Scopes, err
	}}
	if strings.Contains(route, "/approvals") {
		cfg.Approvals = 2
	}
	b = newBenchWith(t, cfg, New)
	b.certify("alice", "700")
	b.enlist("root", ScopeAdmin)
	b.certify("root", "701")
	return b
}

// Whoever loses its authority through another replica, when this one has let it in and judged it already, changes nothing,
// by whatever route: what it may do is judged in the transaction that changes.
func TestAuthorityIsJudgedInTheTransaction(t *testing.T) {
	t.Parallel()
	alice := mtls.Thumbprint(sha256.Sum256([]byte("700")))
	type loss struct {
		lose   func(b *bench, other *store.Store)
		status int
		code   string
	}
	revoke := func(b *bench, other *store.Store, reason int) {
		_, err := other.Revoke(b.Context(), store.Selection{Serial: "700"}, reason, time.Now())
		b.must(err)
	}
	losses := map[string]loss{
		"disabled": {func(b *bench, other *store.Store) { b.must(other.DisableClient(b.Context(), "alice")) }, http.StatusUnauthorized, codeToken},
		"removed":  {func(b *bench, other *store.Store) { b.must(other.RemoveClient(b.Context(), "alice")) }, http.StatusUnauthorized, codeToken},
		"registered again": {func(b *bench, other *store.Store) {
			exec(b.T, other, `UPDATE clients SET generation = 2 WHERE id = 'alice'`)
		}, http.StatusUnauthorized, codeToken},
		"of another client": {func(b *bench, other *store.Store) {
			exec(b.T, other, `UPDATE certificates SET client_id = 'root' WHERE serial = '700'`)
		}, http.StatusUnauthorized, codeToken},
		"revoked": {func(b *bench, other *store.Store) { revoke(b, other, 0) }, http.StatusUnauthorized, codeToken},
		"expired": {func(b *bench, other *store.Store) {
			exec(b.T, other, `UPDATE certificates SET not_after = $1 WHERE serial = '700'`, time.Now().Add(-time.Minute).UnixMicro())
		}, http.StatusUnauthorized, codeToken},
		"unknown": {func(b *bench, other *store.Store) {
			exec(b.T, other, `UPDATE certificates SET thumbprint = randomblob(32) WHERE serial = '700'`)
		}, http.StatusUnauthorized, codeToken},
		"key blocked": {func(b *bench, other *store.Store) {
			hash := sha256.Sum256([]byte("key700"))
			exec(b.T, other, `INSERT INTO blocked_keys (key_hash, created_at) VALUES ($1, 1)`, hash[:])
		}, http.StatusUnauthorized, codeToken},
		"scopes": {func(b *bench, other *store.Store) {
			exec(b.T, other, `UPDATE clients SET scopes = '["certbound:read"]' WHERE id = 'alice'`)
		}, http.StatusForbidden, codeInsufficient},
	}
	try := func(name string, l loss, rt route) {
		path := rt.method + " " + rt.path
		t.Run(name+" "+path, func(t *testing.T) {
			b := newReplica(t, path, alice)
			other := b.another()
			target, request := b.aChange(path)
			if b.who != "alice" { // the second one confirms
				b.as("alice", ScopeAdmin)
			}
			var before string
			b.meanwhile = func() { l.lose(b, other); before = b.contents() }
			b.refused(rt.method, target, request, l.status, l.code, "operator")
			if after := b.contents(); before == "" || after != before {
				t.Errorf("changed:\n%s\n%s", before, after)
			}
			if e := b.journal.last(t); e.Name != rt.event || e.Outcome != audit.Refused || e.Reason != l.code || e.Actor != "alice" {
				t.Errorf("recorded %+v", e)
			}
		})
	}
	for _, rt := range new(api).routes() {
		if rt.method != http.MethodGet {
			try("disabled", losses["disabled"], rt)
		}
	}
	for name, l := range losses {
		for _, rt := range new(api).routes() {
			if name != "disabled" && rt.event == "cert.revoke" {
				try(name, l, rt)
			}
		}
	}
}

// An operator with a certificate of its own is held to what is registered in the transaction.
func TestRegisteredOperatorIsJudgedInTheTransaction(t *testing.T) {
	t.Parallel()
	old, next := selfSigned(t, mtlstest.Leaf{CommonName: "old"}), selfSigned(t, mtlstest.Leaf{CommonName: "next"})
	for name, tt := range map[string]struct {
		lose func(b *bench, other *store.Store)
		done bool
	}{
		"nothing": {func(*bench, *store.Store) {}, true},
		"two": {func(b *bench, other *store.Store) {
			b.must(other.SetClientCertificates(b.Context(), "robot", [][]byte{next.Raw, old.Raw}))
		}, true},
		"replaced": {func(b *bench, other *store.Store) {
			b.must(other.SetClientCertificates(b.Context(), "robot", [][]byte{next.Raw}))
		}, false},
		"disabled": {func(b *bench, other *store.Store) { b.must(other.DisableClient(b.Context(), "robot")) }, false},
		"blocked": {func(b *bench, other *store.Store) {
			hash := sha256.Sum256(old.RawSubjectPublicKeyInfo)
			exec(b.T, other, `INSERT INTO blocked_keys (key_hash, created_at) VALUES ($1, 1)`, hash[:])
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			b := newReplica(t, "", mtls.ThumbprintOf(old))
			other := b.another()
			_, err := b.store.AddClient(t.Context(), store.Client{
				ID: "robot", AuthMethod: byCertificate, Usage: "client", Scopes: []string{ScopeRegistry}, Certificates: [][]byte{old.Raw},
			}, nil)
			b.must(err)
			b.as("robot", ScopeRegistry)
			b.meanwhile = func() { tt.lose(b, other) }
			if tt.done {
				b.post("/resources", `{"resource":"urn:x","scope":"a"}`, http.StatusCreated, nil)
				return
			}
			b.refused(http.MethodPost, "/resources", `{"resource":"urn:x","scope":"a"}`, http.StatusUnauthorized, codeToken, "operator")
			if _, err := b.store.Resource(t.Context(), "urn:x"); err == nil {
				t.Error("the resource is there")
			}
		})
	}
}

// Who judges scopes must judge them in the transaction too, and the other way round.
func TestScopesNeedInForce(t *testing.T) {
	b := newBench(t)
	for name, change := range map[string]func(c *Config){
		"no InForce": func(c *Config) { c.InForce = nil }, "no Scopes": func(c *Config) { c.Scopes = nil },
	} {
		cfg := b.cfg
		change(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	cfg := b.cfg
	cfg.Scopes, cfg.InForce = nil, nil
	_, err := New(cfg)
	b.must(err)
}

// A certificate that was registered is in force until it expires.
func TestRegisteredCertificateExpires(t *testing.T) {
	b := newBench(t)
	cert := selfSigned(t, mtlstest.Leaf{CommonName: "robot"})
	_, err := b.store.AddClient(t.Context(), store.Client{
		ID: "robot", AuthMethod: byCertificate, Usage: "client", Scopes: []string{ScopeRegistry}, Certificates: [][]byte{cert.Raw},
	}, nil)
	b.must(err)
	for at, want := range map[time.Time]error{cert.NotAfter: nil, cert.NotAfter.Add(time.Nanosecond): store.ErrExpired} {
		b.must(b.store.Transact(t.Context(), func(tx *store.Store) error {
			if _, err := InForce(t.Context(), tx, "robot", mtls.ThumbprintOf(cert), at); !errors.Is(err, want) {
				t.Errorf("at %v: %v, want %v", at, err, want)
			}
			return nil
		}))
	}
}

// A database that cannot tell refuses, and not as if the caller were at fault.
func TestInForceThatCannotTell(t *testing.T) {
	b := newReplica(t, "", mtls.Thumbprint(sha256.Sum256([]byte("700"))))
	exec(t, b.store, `UPDATE certificates SET not_after = 'x' WHERE serial = '700'`)
	b.refused(http.MethodPost, "/resources", `{"resource":"urn:x","scope":"a"}`, http.StatusServiceUnavailable, codeUnavailable, "try again")
}

// What others register meanwhile counts: a change is judged by what the transaction sees, and not by what was there before.
func TestRulesAreJudgedInTheTransaction(t *testing.T) {
	t.Parallel()
	foreign := store.Client{
		ID: "f", AuthMethod: byCA, Usage: "client", Trust: "one", SubjectKind: string(mtls.SANDNS), SubjectValue: "Pay.example.",
	}
	own := store.Client{ID: "o", AuthMethod: byCA, Usage: "client", DNS: []string{"pay.example"}}
	add := func(c store.Client) func(b *bench, other *store.Store) {
		return func(b *bench, other *store.Store) {
			_, err := other.AddClient(b.Context(), c, nil)
			b.must(err)
		}
	}
	for name, tt := range map[string]struct {
		meanwhile    func(b *bench, other *store.Store)
		method, path string
		body         string
		status       int
		code         string
	}{
		"a foreign client has the name": {add(foreign), http.MethodPost, "/clients", `{"client_id":"o","dns_names":["pay.example"]}`, http.StatusConflict, codeMetadata},
		"a client of ours has the name": {add(own), http.MethodPost, "/clients",
			`{"client_id":"f","trust":"one","tls_client_auth_san_dns":"pay.example"}`, http.StatusConflict, codeMetadata},
		"the scope is declared no more": {func(b *bench, other *store.Store) {
			b.must(other.RemoveResource(b.Context(), "https://ledger.example"))
		}, http.MethodPost, "/clients", `{"client_id":"o","scope":"ledger:read"}`, http.StatusBadRequest, codeScope},
		"the server is no client any more": {func(b *bench, other *store.Store) {
			b.must(other.RemoveClient(b.Context(), "server"))
		}, http.MethodPost, "/resources", `{"resource":"urn:x","scope":"a","servers":["server"]}`, http.StatusBadRequest, codeMetadata},
		"only operators are left to grant": {func(b *bench, other *store.Store) {
			exec(b.T, other, `UPDATE clients SET scopes = '["certbound:read"]' WHERE id = 'server'`)
		}, http.MethodPost, "/clients/server/invite", "", http.StatusForbidden, codeInsufficient},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			other := b.another()
			b.trust("one", mtlstest.NewCA(t, "one"))
			b.enlist("server")
			b.as("alice", ScopeRegistry, ScopeEnroll)
			var before string
			b.meanwhile = func() { tt.meanwhile(b, other); before = b.contents() }
			b.refused(tt.method, tt.path, tt.body, tt.status, tt.code, "")
			if after := b.contents(); before == "" || after != before {
				t.Errorf("changed:\n%s\n%s", before, after)
			}
		})
	}
}

// When the second operator comes in between, what waits does wait, and that there are two is kept with it.
func TestTheSecondOperatorMeanwhile(t *testing.T) {
	b := newBenchWith(t, Config{Approvals: 2}, New)
	b.certify("alice", "801")
	b.enlist("bob", ScopeGrant)
	b.meanwhile = func() { b.certify("bob", "802") }
	b.held(http.MethodPost, "/clients", `{"client_id":"olga","scope":"certbound:read"}`)
	if _, err := b.store.Setting(t.Context(), pairedSetting); err != nil {
		t.Errorf("it is not kept that there are two: %v", err)
	}
	names := make([]string, 0, 2)
	for _, e := range b.journal.events {
		names = append(names, e.Name)
	}
	if !slices.Equal(names, []string{"setting.set", "approval.request"}) {
		t.Errorf("recorded %q", names)
	}
}

// That there were two is kept also by the change that takes the second away.
func TestTheSecondOperatorTakenMeanwhile(t *testing.T) {
	b := newBenchWith(t, Config{Approvals: 2}, New)
	b.certify("alice", "801")
	b.enlist("bob", ScopeGrant)
	b.meanwhile = func() { b.certify("bob", "802") }
	b.post("/clients/bob/disable", "", http.StatusOK, nil)
	b.held(http.MethodPost, "/clients", `{"client_id":"olga","scope":"certbound:read"}`)
}

// What only took away when it was judged first, and gives in the transaction, is judged anew as what gives.
func TestOtherwiseInTheTransaction(t *testing.T) {
	b := newBench(t)
	other := b.another()
	old, next := selfSigned(t, mtlstest.Leaf{CommonName: "old"}), selfSigned(t, mtlstest.Leaf{CommonName: "next"})
	b.post("/clients", body("client_id", "robot", "certificates", []string{pemOf(old), pemOf(next)}), http.StatusCreated, nil)
	b.as("alice", ScopeRevoke)
	drop := func() { b.must(other.SetClientCertificates(t.Context(), "robot", [][]byte{old.Raw})) }
	b.meanwhile = drop
	b.refused(http.MethodPut, "/clients/robot/certificates", body("certificates", []string{pemOf(next)}), http.StatusForbidden, codeInsufficient, "operator")
	if e := b.journal.last(t); e.Outcome != audit.Refused {
		t.Errorf("recorded %+v", e)
	}
	client, err := b.store.Client(t.Context(), "robot")
	b.must(err)
	if !slices.EqualFunc(client.Certificates, [][]byte{old.Raw}, slices.Equal) {
		t.Error("the certificate is back")
	}
	// Who finds it otherwise each time is told so.
	b.as("alice", ScopeAdmin)
	b.must(other.SetClientCertificates(t.Context(), "robot", [][]byte{old.Raw, next.Raw}))
	turns := 0
	var turn func()
	turn = func() {
		certificates := [][]byte{old.Raw}
		if turns%2 == 1 {
			certificates = append(certificates, next.Raw)
		}
		turns++
		b.must(other.SetClientCertificates(t.Context(), "robot", certificates))
		b.meanwhile = turn
	}
	b.meanwhile = turn
	b.refused(http.MethodPut, "/clients/robot/certificates", body("certificates", []string{pemOf(next)}), http.StatusConflict, codeRequest, "try again")
	if turns != maxJudgements {
		t.Errorf("judged %d times", turns)
	}
}
