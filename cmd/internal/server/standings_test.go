// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"math"
	mathrand "math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
)

// standingOf is a client in good standing, the n-th with that certificate.
func standingOf(id string, n int) *store.Holder {
	print := sha256.Sum256([]byte(id + strconv.Itoa(n)))
	return &store.Holder{
		Client: store.Client{
			ID: id, Generation: uint64(1 + n), AuthMethod: "tls_client_auth", Scopes: []string{"a", "b"}, Resources: []string{"urn:r"}, TokenTTL: time.Minute,
		},
		Certificate: store.Certificate{Thumbprint: print, ClientID: id, Generation: uint64(1 + n), NotAfter: time.UnixMicro(1790000000123456 + int64(n)).UTC()},
		Secret:      print[:],
	}
}

// What is remembered is to the last member what the database says.
func TestStandings_AreWhatTheDatabaseSays(t *testing.T) {
	t.Parallel()
	_, db := testRegistry(t)
	client := store.Client{
		ID: "full", AuthMethod: "tls_client_auth", Usage: "client", Scopes: []string{write, "ledger:read"}, Resources: []string{ledger}, TokenTTL: 7 * time.Minute,
	}
	if _, err := db.AddClient(t.Context(), client, nil); err != nil {
		t.Fatal(err)
	}
	s := newStandings(10)
	for _, id := range []string{"payments", "full"} {
		print := addCertificate(t, db.Store, id, "certificate of "+id)
		for _, secret := range []bool{false, true} {
			if secret {
				if _, err := db.AuditSubject(t.Context(), id); err != nil {
					t.Fatal(err)
				}
			}
			want, err := db.Holder(t.Context(), id, print)
			if err != nil || (want.Secret != nil) != secret {
				t.Fatalf("%+v, %v", want, err)
			}
			s.put(want)
			got := s.get(id, print)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s: database (-), memory (+)\n%s", id, diff)
			}
			if secret {
				got.Secret[0]++
				if again := s.get(id, print); !bytes.Equal(again.Secret, want.Secret) {
					t.Error("who was given a secret can change it")
				}
			}
		}
		if s.get("alice", print) != nil || s.get(id, mtls.Thumbprint{1}) != nil {
			t.Error("another client's certificate, or another certificate, will do")
		}
	}
}

// Who may not have a token, or does not fit, is not remembered, and what was known of the client before is gone.
func TestStandings_GoodOnly(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(h *store.Holder){
		"disabled":                 func(h *store.Holder) { h.Client.Disabled = true },
		"revoked":                  func(h *store.Holder) { h.Certificate.RevokedAt = time.Now() },
		"of another client":        func(h *store.Holder) { h.Certificate.ClientID = "b" },
		"no certificate":           func(h *store.Holder) { h.Certificate = store.Certificate{} },
		"of an earlier generation": func(h *store.Holder) { h.Certificate.Generation-- },
		"a generation beyond the record": func(h *store.Holder) {
			h.Client.Generation, h.Certificate.Generation = math.MaxUint32+1, math.MaxUint32+1
		},
	} {
		s := newStandings(10)
		before, h := standingOf("a", 0), standingOf("a", 1)
		s.put(before)
		change(h)
		s.put(h)
		if s.len() != 0 || s.get("a", h.Certificate.Thumbprint) != nil || s.get("a", before.Certificate.Thumbprint) != nil {
			t.Errorf("%s: remembered", name)
		}
	}
	s := newStandings(10)
	h := standingOf("a", 0)
	h.Client.Generation, h.Certificate.Generation = math.MaxUint32, math.MaxUint32
	if s.put(h); s.get("a", h.Certificate.Thumbprint) == nil {
		t.Error("the last generation that fits is not remembered")
	}
}

// A secret that is learned later is remembered with its client and nobody else, one of another length is not.
func TestStandings_Learn(t *testing.T) {
	t.Parallel()
	s := newStandings(10)
	h := standingOf("a", 0)
	secret := h.Secret
	h.Secret = nil
	s.put(h)
	s.learn("b", secret)
	s.learn("a", secret[:31])
	if got := s.get("a", h.Certificate.Thumbprint); got == nil || got.Secret != nil || s.len() != 1 {
		t.Errorf("%+v, of %d", got, s.len())
	}
	s.learn("a", secret)
	if got := s.get("a", h.Certificate.Thumbprint); got == nil || !bytes.Equal(got.Secret, secret) {
		t.Errorf("%+v", got)
	}
}

// Against a plain map: whatever comes, goes and is dropped in any order, what is remembered is the last that was put, nothing
// that was forgotten is found, and there are never more than there may be, of clients and of what they have in common.
func TestStandings_Model(t *testing.T) {
	t.Parallel()
	seed := [32]byte{}
	rand.Read(seed[:])
	t.Logf("seed %x", seed)
	random := mathrand.New(mathrand.NewChaCha8(seed))
	for _, most := range []int{1, 7, 300, chunkStandings + 50} {
		s := newStandings(most)
		s.clear()
		model := map[string]*store.Holder{}
		clients := most + most/3 + 2
		for step := range 20*clients + 2000 {
			id := strconv.Itoa(random.IntN(clients))
			switch what := random.IntN(100); {
			case what < 70:
				h := standingOf(id, random.IntN(3))
				h.Client.Scopes = []string{strconv.Itoa(random.IntN(50))}
				s.put(h)
				model[id] = h
			case what < 85:
				s.forgetClient(id)
				delete(model, id)
			case what < 99:
				h := standingOf(id, random.IntN(3))
				s.forgetCertificate(h.Certificate.Thumbprint)
				if known := model[id]; known != nil && known.Certificate.Thumbprint == h.Certificate.Thumbprint {
					delete(model, id)
				}
			case random.IntN(most) == 0:
				s.clear()
				clear(model)
			}
			if n := s.len(); n > most {
				t.Fatalf("step %d: %d of at most %d", step, n, most)
			}
		}
		found, users := 0, 0
		for i := range clients {
			id := strconv.Itoa(i)
			for n := range 3 {
				print := standingOf(id, n).Certificate.Thumbprint
				got, want := s.get(id, print), model[id]
				if got == nil {
					continue // it was dropped for another, or never there
				}
				found++
				if want == nil || cmp.Diff(want, got) != "" {
					t.Fatalf("of %d: client %s is %+v, want %+v", most, id, got, want)
				}
			}
		}
		for _, e := range s.entitlements {
			users += e.users
		}
		if found != s.len() || users != found || len(s.entitlements)-len(s.unused) != len(s.entitled) || len(s.entitled) > 50 {
			t.Errorf("of %d: %d are found and %d remembered, with %d users of %d entitlements", most, found, s.len(), users, len(s.entitled))
		}
		if len(model) <= most/2 || found < min(len(model), most)/2 {
			t.Errorf("of %d: only %d were put last and %d found: this shows little", most, len(model), found)
		}
		for _, p := range []*places{&s.clients, &s.certificates} {
			slots, used := 0, 0
			for _, part := range p.parts {
				slots += len(part.slots)
				used += part.used
			}
			if used != found || most > 1000 && slots > 8*most {
				t.Errorf("of %d: %d of %d places are used", most, used, slots)
			}
		}
		if want := (most + chunkStandings - 1) / chunkStandings; len(s.chunks) > want {
			t.Errorf("of %d: %d pieces of memory", most, len(s.chunks))
		}
		for _, slot := range s.spare {
			if !bytes.Equal(s.record(slot), make([]byte, standingBytes)) {
				t.Fatal("what was forgotten is still in memory")
			}
		}
	}
}

// One that is dropped for another is the one that was known longest.
func TestStandings_Bound(t *testing.T) {
	t.Parallel()
	s := newStandings(3)
	for i := range 5 {
		s.put(standingOf(strconv.Itoa(i), 0))
	}
	for i := range 5 {
		if got := s.get(strconv.Itoa(i), standingOf(strconv.Itoa(i), 0).Certificate.Thumbprint); (got != nil) != (i >= 2) {
			t.Errorf("client %d is remembered: %t", i, got != nil)
		}
	}
}

// Clients that have nothing in common cost no more than so many that do.
func TestStandings_Entitlements(t *testing.T) {
	t.Parallel()
	s := newStandings(2 * mostEntitlements)
	various := func(n int) *store.Holder {
		h := standingOf(strconv.Itoa(n), 0)
		h.Client.TokenTTL = time.Duration(n) * time.Microsecond
		return h
	}
	for i := range mostEntitlements + 10 {
		s.put(various(i))
	}
	if s.len() != mostEntitlements {
		t.Errorf("%d are remembered, want %d", s.len(), mostEntitlements)
	}
	s.forgetClient("0")
	late := various(mostEntitlements + 5)
	if s.put(late); s.get(late.Client.ID, late.Certificate.Thumbprint) == nil {
		t.Error("the place of one that is gone is not used")
	}
	// Lists that look alike when written behind each other are different, and so are times.
	s.clear()
	one, other := standingOf("one", 0), standingOf("other", 0)
	one.Client.Scopes, one.Client.Resources = []string{"a"}, []string{"b"}
	other.Client.Scopes, other.Client.Resources = []string{"a", "b"}, nil
	s.put(one)
	s.put(other)
	for _, h := range []*store.Holder{one, other} {
		if got := s.get(h.Client.ID, h.Certificate.Thumbprint); got == nil || !slices.Equal(got.Client.Scopes, h.Client.Scopes) || !slices.Equal(got.Client.Resources, h.Client.Resources) {
			t.Errorf("%+v, want %+v", got, h)
		}
	}
}

// A client that the registry had no room for costs no second search in the database, nor for its secret, until something of it
// changes: then the database is asked, and what it says is in force.
func TestRegistry_RemembersStandings(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]struct {
		of    func(ctx context.Context, db *store.Store, print mtls.Thumbprint) error
		stays bool
	}{
		"nothing": {func(context.Context, *store.Store, mtls.Thumbprint) error { return nil }, true},
		"a resource": {func(ctx context.Context, db *store.Store, _ mtls.Thumbprint) error {
			return db.AddResource(ctx, store.Resource{URI: "urn:new", Scopes: []string{write}})
		}, true},
		"another client": {func(ctx context.Context, db *store.Store, _ mtls.Thumbprint) error {
			_, err := db.AddClient(ctx, store.Client{ID: "billing", AuthMethod: "tls_client_auth", Usage: "client", Scopes: []string{write}}, nil)
			return errors.Join(err, db.DisableClient(ctx, "billing"))
		}, true},
		"disabled": {func(ctx context.Context, db *store.Store, _ mtls.Thumbprint) error {
			return db.DisableClient(ctx, "payments")
		}, false},
		"revoked": {func(ctx context.Context, db *store.Store, print mtls.Thumbprint) error {
			_, err := db.Revoke(ctx, store.Selection{Thumbprints: [][32]byte{print}}, 0, time.Now())
			return err
		}, false},
		"erased": {func(ctx context.Context, db *store.Store, _ mtls.Thumbprint) error {
			return db.DeleteAuditSubject(ctx, "payments")
		}, false},
		"everything": {func(_ context.Context, db *store.Store, _ mtls.Thumbprint) error {
			db.Announce(store.Change{Full: true})
			return nil
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, db := testRegistry(t)
			ctx, print, der := presented(t)
			addCertificate(t, db.Store, "payments", string(der))
			if _, err := r.Client(ctx, "payments"); err != nil {
				t.Fatal(err)
			}
			secret, learned := r.secret("payments")
			if secret != nil {
				t.Fatal("there is a secret already")
			}
			secret, err := db.AuditSubject(ctx, "payments")
			if err != nil {
				t.Fatal(err)
			}
			learned(secret)
			crowd := func() { // others take the room
				r.mu.Lock()
				defer r.mu.Unlock()
				clear(r.clients)
				clear(r.certificates)
			}
			crowd()
			before := db.held
			if err := change.of(ctx, db.Store, print); err != nil {
				t.Fatal(err)
			}
			c, err := r.Client(ctx, "payments")
			if err != nil {
				t.Fatal(err)
			}
			if (db.held == before) != change.stays {
				t.Errorf("searched %d times, want none: %t", db.held-before, change.stays)
			}
			cert, err := r.Certificate(ctx, print)
			if err != nil {
				t.Fatal(err)
			}
			if c.Disabled != (name == "disabled") || cert.Revoked != (name == "revoked") {
				t.Errorf("%+v, %+v", c, cert)
			}
			if got, _ := r.secret("payments"); bytes.Equal(got, secret) != (name != "erased") {
				t.Errorf("the secret is the one before: %t", bytes.Equal(got, secret))
			}
		})
	}
}

// A secret that is learned after it was deleted is not remembered.
func TestRegistry_LearnsNothingDeleted(t *testing.T) {
	t.Parallel()
	r, db := testRegistry(t)
	ctx, _, der := presented(t)
	addCertificate(t, db.Store, "payments", string(der))
	if _, err := r.Client(ctx, "payments"); err != nil {
		t.Fatal(err)
	}
	_, learned := r.secret("payments")
	secret, err := db.AuditSubject(ctx, "payments")
	if err != nil {
		t.Fatal(err)
	}
	if err := db.DeleteAuditSubject(ctx, "payments"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Client(ctx, "payments"); err != nil { // is remembered once more
		t.Fatal(err)
	}
	learned(secret)
	if got, _ := r.secret("payments"); got != nil {
		t.Error("a secret that was deleted is handed out")
	}
	r.mu.Lock()
	clear(r.clients)
	r.mu.Unlock()
	if _, err := r.Client(ctx, "payments"); err != nil {
		t.Fatal(err)
	}
	if got, _ := r.secret("payments"); got != nil {
		t.Error("a secret that was deleted is remembered with the client's standing")
	}
}
