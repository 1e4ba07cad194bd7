// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package authority

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/outbox"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/pki"
	"github.com/certbound/certbound/pki/stepca"
	"github.com/certbound/certbound/tokens"
)

const testIssuer = "https://auth.test"

// journal is an outbox's journal that can be made to fail.
type journal struct {
	mu     sync.Mutex
	events []audit.Event
	full   bool // it says so when it is asked
	fails  bool // it fails without warning
}

// Ready implements outbox.Journal.
func (j *journal) Ready(audit.Class) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.full {
		return errors.New("the journal is full")
	}
	return nil
}

// Record implements outbox.Journal.
func (j *journal) Record(_ context.Context, e audit.Event) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.full || j.fails {
		return errors.New("the journal is full")
	}
	j.events = append(j.events, e)
	return nil
}

// last is the newest event of that name.
func (j *journal) last(tb testing.TB, name string) audit.Event {
	tb.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range slices.Backward(j.events) {
		if e.Name == name {
			return e
		}
	}
	tb.Fatalf("no %s on record", name)
	return audit.Event{}
}

// signer is the real CA, counted, with a gap after each signature in which a test lets others act.
type signer struct {
	Signer
	calls int
	after func() // once
	fails error
}

// Sign implements Signer.
func (s *signer) Sign(ctx context.Context, csr *x509.CertificateRequest, p pki.Profile) ([]*x509.Certificate, error) {
	s.calls++
	if s.fails != nil {
		return nil, s.fails
	}
	chain, err := s.Signer.Sign(ctx, csr, p)
	if after := s.after; after != nil {
		s.after = nil
		after()
	}
	return chain, err
}

// bench is an authority over a real store and a real CA, with a clock of its own.
type bench struct {
	tb        testing.TB
	path      string // of the database
	store     *store.Store
	hierarchy *stepca.Hierarchy
	ca        *signer
	journal   *journal
	box       *outbox.Box
	authority *Authority
	now       time.Time
	ahead     time.Duration // of the store's clock, for ids that are reserved no longer
}

func newBench(tb testing.TB) *bench {
	tb.Helper()
	b := &bench{tb: tb}
	b.path = filepath.Join(tb.TempDir(), "certbound.db")
	db, err := store.Open(tb.Context(), store.Config{
		Path: b.path, KEK: make([]byte, 32),
		Now: func() time.Time { return time.Now().Add(b.ahead) },
	})
	if err != nil {
		tb.Fatal(err)
	}
	h, err := stepca.NewHierarchy("Test", time.Now())
	if err != nil {
		tb.Fatal(err)
	}
	ca, err := stepca.New(stepca.Config{Root: h.Root, Issuing: h.Issuing, IssuingKey: h.IssuingKey, DB: db.DB(), Dialect: "sqlite"})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := errors.Join(ca.Close(), db.Close()); err != nil {
			tb.Error(err)
		}
	})
	b.store, b.hierarchy, b.ca, b.journal, b.now = db, h, &signer{Signer: ca}, &journal{}, time.Now()
	b.reopen()
	b.authority, err = New(b.config())
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// reopen makes the outbox of a new process.
func (b *bench) reopen() {
	b.tb.Helper()
	var err error
	b.box, err = outbox.New(outbox.Config{Store: b.store, Journal: b.journal})
	if err != nil {
		b.tb.Fatal(err)
	}
}

func (b *bench) config() Config {
	return Config{
		Store: b.store, CA: b.ca, Recorder: b.box,
		Root: b.hierarchy.Root, Issuing: b.hierarchy.Issuing, IssuingKey: b.hierarchy.IssuingKey,
		Issuer: testIssuer, TrustDomain: "test.internal",
		MTLSURL: "https://mtls.test", TokenEndpoint: "https://mtls.test/oauth2/token",
		CertificateLifetime: 10 * time.Minute, CodeLifetime: time.Hour,
		Now: func() time.Time { return b.now },
	}
}

// client registers a client with an open code.
func (b *bench) client(id string) pki.Code {
	b.tb.Helper()
	code, row := b.code(id)
	_, err := b.store.AddClient(b.tb.Context(), store.Client{ID: id, AuthMethod: "tls_client_auth", Usage: "client"}, &row)
	if err != nil {
		b.tb.Fatal(err)
	}
	return code
}

func (b *bench) code(id string) (pki.Code, store.Code) {
	b.tb.Helper()
	text, row, err := b.authority.NewCode(id)
	if err != nil {
		b.tb.Fatal(err)
	}
	code, err := pki.ParseCode(text)
	if err != nil {
		b.tb.Fatal(err)
	}
	return code, row
}

func (b *bench) invite(id string) pki.Code {
	b.tb.Helper()
	code, row := b.code(id)
	b.must(b.store.Invite(b.tb.Context(), id, row))
	return code
}

func (b *bench) must(err error) {
	b.tb.Helper()
	if err != nil {
		b.tb.Fatal(err)
	}
}

func (b *bench) enroll(code pki.Code, key crypto.Signer) (*pki.EnrollResponse, error) {
	b.tb.Helper()
	return b.authority.Enroll(b.tb.Context(), pki.NewEnrollRequest(code, testIssuer, request(b.tb, key)), Caller{Address: "192.0.2.1", Correlation: "c1"})
}

// enrolled enrols a client and returns its certificate.
func (b *bench) enrolled(id string, key crypto.Signer) *x509.Certificate {
	b.tb.Helper()
	res, err := b.enroll(b.client(id), key)
	b.must(err)
	return leaf(b.tb, res)
}

func (b *bench) renew(id string, parent *x509.Certificate, key crypto.Signer) (*pki.EnrollResponse, error) {
	b.tb.Helper()
	return b.authority.Renew(b.tb.Context(), id, mtls.NewPeer(parent), pki.NewRenewRequest(request(b.tb, key)), Caller{Address: "192.0.2.2"})
}

func (b *bench) revoke(reason pki.Reason, only bool, certs ...*x509.Certificate) {
	b.tb.Helper()
	sel := store.Selection{Only: only}
	for _, c := range certs {
		sel.Thumbprints = append(sel.Thumbprints, mtls.ThumbprintOf(c))
	}
	b.must(b.take(sel, reason))
}

// take revokes a selection.
func (b *bench) take(sel store.Selection, reason pki.Reason) error {
	return b.store.Transact(b.tb.Context(), func(tx *store.Store) error {
		_, err := b.authority.Revoke(b.tb.Context(), tx, sel, reason)
		return err
	})
}

// another removes the client and gives its id to another one, at once.
func (b *bench) another(id string) {
	b.tb.Helper()
	b.must(b.store.RemoveClient(b.tb.Context(), id))
	b.ahead = 100 * time.Hour
	b.client(id)
	b.ahead = 0
}

// inventory counts the certificates of the inventory.
func (b *bench) inventory() int {
	b.tb.Helper()
	rows, err := b.store.Certificates(b.tb.Context(), "", "", 1000)
	b.must(err)
	return len(rows)
}

// refused checks that a request gave nothing but this refusal, that it is on record under name, and that the
// inventory is as it was.
func (b *bench) refused(name string, want tokens.Error, inventory int, res *pki.EnrollResponse, err error) {
	b.tb.Helper()
	got, ok := errors.AsType[*tokens.Error](err)
	if res != nil || !ok || got.Code != want.Code || got.Reason != want.Reason {
		b.tb.Errorf("answer %t, error %v (%+v); want none, %s %s", res != nil, err, got, want.Code, want.Reason)
		return
	}
	if want.Code == errCode.Code && got.Description != errCode.Description {
		b.tb.Errorf("the description %q tells this refusal from others of a code", got.Description)
	}
	if n := b.inventory(); n != inventory {
		b.tb.Errorf("the inventory has %d certificates, had %d", n, inventory)
	}
	if e := b.journal.last(b.tb, name); e.Outcome != "refused" || e.Reason != want.Reason {
		b.tb.Errorf("on record: %s %s, want refused %s", e.Outcome, e.Reason, want.Reason)
	}
}

var (
	wantCode     = tokens.Error{Code: "invalid_grant", Reason: "code_refused"}
	wantConflict = tokens.Error{Code: "invalid_grant", Reason: "code_used_with_another_key"}
	wantBlocked  = tokens.Error{Code: "invalid_request", Reason: "key_blocked"}
	wantTaken    = tokens.Error{Code: "invalid_request", Reason: "key_of_another_client"}
	wantParent   = tokens.Error{Code: "invalid_client", Reason: "parent_not_valid"}
	wantFailure  = tokens.Error{Code: "temporarily_unavailable", Reason: "internal_failure"}
)

func newKey(tb testing.TB) crypto.Signer {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func request(tb testing.TB, key crypto.Signer) []byte {
	tb.Helper()
	der, err := pki.CreateRequest(key)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

func leaf(tb testing.TB, res *pki.EnrollResponse) *x509.Certificate {
	tb.Helper()
	certs, err := mtls.ParseCertificates([]byte(res.Certificate))
	if err != nil {
		tb.Fatal(err)
	}
	return certs[0]
}

// A code is refused when it is over, void, forged or its client is gone, on its first use and on every
// repetition; nothing is stored, and all these refusals look the same.
func TestEnroll_CodesThatAreRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	start := b.now
	for name, spoil := range map[string]func(id string, code *pki.Code){
		"expired":  func(string, *pki.Code) { b.now = start.Add(time.Hour) },
		"void":     func(id string, _ *pki.Code) { b.invite(id) },
		"disabled": func(id string, _ *pki.Code) { b.must(b.store.DisableClient(t.Context(), id)) },
		"removed":  func(id string, _ *pki.Code) { b.must(b.store.RemoveClient(t.Context(), id)) },
		"unknown":  func(_ string, code *pki.Code) { code.ID[0] ^= 1 },
		"forged":   func(_ string, code *pki.Code) { code.Seed[0] ^= 1 },
		"enabled again": func(id string, _ *pki.Code) {
			b.must(errors.Join(b.store.DisableClient(t.Context(), id), b.store.EnableClient(t.Context(), id)))
		},
	} {
		id := strings.ReplaceAll(name, " ", "-")
		code := b.client(id)
		before, signed := b.inventory(), b.ca.calls
		spoil(id, &code)
		res, err := b.enroll(code, newKey(t))
		t.Log(name)
		b.refused("cert.enroll", wantCode, before, res, err)
		e := b.journal.last(t, "cert.enroll")
		if named := name != "unknown" && name != "forged"; (e.Client == id) != named || e.Client != "" != named {
			t.Errorf("the client on record is %q", e.Client)
		}
		if e.Address != "192.0.2.1" || e.Correlation != "c1" {
			t.Errorf("on record: address %q, correlation %q", e.Address, e.Correlation)
		}
		if b.ca.calls != signed {
			t.Error("the CA was asked before the checks were done")
		}
		b.now = start
	}
	for name, spoil := range map[string]func(id string, cert *x509.Certificate){
		"code expired":        func(string, *x509.Certificate) { b.now = start.Add(time.Hour) },
		"certificate expired": func(_ string, cert *x509.Certificate) { b.now = cert.NotAfter },
		"certificate revoked": func(_ string, cert *x509.Certificate) { b.revoke(pki.Unspecified, false, cert) },
		"disabled":            func(id string, _ *x509.Certificate) { b.must(b.store.DisableClient(t.Context(), id)) },
		"removed":             func(id string, _ *x509.Certificate) { b.must(b.store.RemoveClient(t.Context(), id)) },
		"added again":         func(id string, _ *x509.Certificate) { b.another(id) },
	} {
		id := "used-" + strings.ReplaceAll(name, " ", "-")
		// A certificate that outlives its code, so that the code's end alone is what refuses.
		if b.authority.cfg.CertificateLifetime = 10 * time.Minute; name == "code expired" {
			b.authority.cfg.CertificateLifetime = 2 * time.Hour
		}
		code, key := b.client(id), newKey(t)
		res, err := b.enroll(code, key)
		b.must(err)
		before := b.inventory()
		spoil(id, leaf(t, res))
		res, err = b.enroll(code, key)
		t.Log(name)
		b.refused("cert.enroll", wantCode, before, res, err)
		if e := b.journal.last(t, "cert.enroll"); e.Client != id {
			t.Errorf("the client on record is %q", e.Client)
		}
		b.now = start
	}
}

// The state of a code is judged by itself too, whatever else would refuse it.
func TestEnroll_InvitedJudgesTheCode(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	code := b.client("payments")
	row, err := b.store.Code(t.Context(), code.ID)
	b.must(err)
	if _, err := b.authority.invited(t.Context(), row); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*store.Code){
		"void":               func(c *store.Code) { c.Void = true },
		"expired":            func(c *store.Code) { c.ExpiresAt = b.now },
		"earlier generation": func(c *store.Code) { c.Generation-- },
		"later generation":   func(c *store.Code) { c.Generation++ },
		"unknown client":     func(c *store.Code) { c.ClientID = "nobody" },
	} {
		spoiled := row
		spoil(&spoiled)
		if _, err := b.authority.invited(t.Context(), spoiled); !errors.Is(err, errCode) {
			t.Errorf("%s: %v", name, err)
		}
		spoiled.UsedAt, spoiled.UsedKey = b.now, [32]byte{1}
		if name == "void" || name == "expired" {
			if _, err := b.authority.again(t.Context(), spoiled, [32]byte{1}, Caller{}); !errors.Is(err, errCode) {
				t.Errorf("%s, used: %v", name, err)
			}
		}
	}
	row.UsedAt, row.UsedKey, row.Certificate = b.now, [32]byte{1}, [32]byte{2}
	if _, err := b.authority.again(t.Context(), row, row.UsedKey, Caller{}); !errors.Is(err, errCode) {
		t.Errorf("used for a certificate that the inventory has forgotten: %v", err)
	}
}

// A lost answer burns nothing: the same key gets the same certificate, without a second signature. Another key
// is a conflict that names both addresses.
func TestEnroll_Repetition(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	code, key := b.client("payments"), newKey(t)
	first, err := b.enroll(code, key)
	b.must(err)
	if e := b.journal.last(t, "cert.enroll"); e.Outcome != "granted" || e.Reason != "" || e.Client != "payments" ||
		e.Thumbprint != mtls.ThumbprintOf(leaf(t, first)).String() || e.Address != "192.0.2.1" || e.Serial == "" || e.Expires.IsZero() {
		t.Errorf("on record: %+v", e)
	}
	signed := b.ca.calls
	second, err := b.enroll(code, key)
	b.must(err)
	if *second != *first {
		t.Error("the repetition was answered differently")
	}
	if e := b.journal.last(t, "cert.enroll"); e.Outcome != "granted" || e.Reason != "repeated" {
		t.Errorf("the repetition on record: %s %s", e.Outcome, e.Reason)
	}
	res, err := b.enroll(code, newKey(t))
	b.refused("cert.enroll", wantConflict, 1, res, err)
	if e := b.journal.last(t, "enroll.conflict"); e.Personal["first_address"] != "192.0.2.1" || e.Address != "192.0.2.1" || e.Client != "payments" {
		t.Errorf("the conflict on record: %+v", e)
	}
	if b.ca.calls != signed {
		t.Error("a used code was signed for again")
	}
	if first.ClientID != "payments" || first.Issuer != testIssuer || first.Roots != b.authority.RootsPEM() ||
		first.MTLSURL != "https://mtls.test" || first.TokenEndpoint != "https://mtls.test/oauth2/token" {
		t.Errorf("the answer is %+v", first)
	}
	if block, _ := pem.Decode([]byte(first.Roots)); block == nil || !slices.Equal(block.Bytes, b.hierarchy.Root.Raw) {
		t.Error("the root handed out is not the root")
	}
}

// What is not a redemption of this code, for this issuer, with this request, is refused before anything else.
func TestEnroll_Malformed(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	code := b.client("payments")
	der := request(t, newKey(t))
	named, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"auth.test"}}, newKey(t))
	b.must(err)
	swapped := pki.NewEnrollRequest(code, testIssuer, der)
	swapped.CSR = pki.NewEnrollRequest(code, testIssuer, request(t, newKey(t))).CSR
	for name, tc := range map[string]struct {
		request pki.EnrollRequest
		want    tokens.Error
	}{
		"empty":          {pki.EnrollRequest{}, tokens.Error{Code: "invalid_request", Reason: "malformed_member"}},
		"another issuer": {pki.NewEnrollRequest(code, "https://evil.test", der), wantCode},
		"swapped key":    {swapped, wantCode},
		"names":          {pki.NewEnrollRequest(code, testIssuer, named), tokens.Error{Code: "invalid_request", Reason: "csr_refused"}},
		"garbage":        {pki.NewEnrollRequest(code, testIssuer, []byte("no request")), tokens.Error{Code: "invalid_request", Reason: "csr_refused"}},
	} {
		res, err := b.authority.Enroll(t.Context(), tc.request, Caller{})
		t.Log(name)
		b.refused("cert.enroll", tc.want, 0, res, err)
	}
	if b.ca.calls != 0 {
		t.Error("the CA was asked")
	}
	if _, err := b.enroll(code, newKey(t)); err != nil {
		t.Errorf("the refusals burnt the code: %v", err)
	}
}

// A compromised key, and a key of another client, is certified for nobody: neither at first nor on a repetition
// nor by renewal.
func TestKeysThatAreRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	key, twice := newKey(t), newKey(t)
	parent := b.enrolled("payments", newKey(t))
	compromised := b.enrolled("billing", key)
	doubled := b.enrolled("shipping", twice)
	code := b.invite("shipping")
	_, err := b.enroll(code, twice) // one client may use one key twice
	b.must(err)
	_, err = b.renew("payments", parent, newKey(t))
	b.must(err)
	second := b.enrolled("stock", newKey(t))
	stocked, err := b.renew("stock", second, newKey(t))
	b.must(err)
	other, inventory, signed := b.client("other"), b.inventory(), b.ca.calls

	res, err := b.enroll(other, key)
	b.refused("cert.enroll", wantTaken, inventory, res, err)
	res, err = b.renew("payments", parent, key)
	b.refused("cert.renew", wantTaken, inventory, res, err)
	b.revoke(pki.KeyCompromise, false, compromised)
	b.revoke(pki.KeyCompromise, true, doubled)
	res, err = b.enroll(other, key)
	b.refused("cert.enroll", wantBlocked, inventory, res, err)
	res, err = b.renew("payments", parent, key)
	b.refused("cert.renew", wantBlocked, inventory, res, err)
	res, err = b.enroll(b.invite("billing"), key)
	b.refused("cert.enroll", wantBlocked, inventory, res, err)
	res, err = b.enroll(code, twice)
	if e, _ := errors.AsType[*tokens.Error](err); res != nil || e == nil || e.Code != "invalid_request" && e.Code != "invalid_grant" {
		t.Errorf("a repetition with a key that was compromised since: answer %t, %v", res != nil, err)
	}
	if b.ca.calls != signed {
		t.Error("the CA was asked to certify a key that is refused")
	}
	if leaf(t, stocked).Equal(second) {
		t.Error("a renewal returned its parent")
	}
}

// What changes between the signature and the transaction is judged by the transaction, and its answer is the one
// that the same state gets before.
func TestChangesWhileSigning(t *testing.T) {
	t.Parallel()
	t.Run("by this replica", func(t *testing.T) {
		t.Parallel()
		b := newBench(t)
		testChangesWhileSigning(t, b, b)
	})
	t.Run("by another replica", func(t *testing.T) {
		t.Parallel()
		b := newBench(t)
		testChangesWhileSigning(t, b, b.replica())
	})
}

// replica is another authority with a store of its own on the same database.
func (b *bench) replica() *bench {
	b.tb.Helper()
	db, err := store.Open(b.tb.Context(), store.Config{Path: b.path, KEK: make([]byte, 32)})
	b.must(err)
	b.tb.Cleanup(func() {
		if err := db.Close(); err != nil {
			b.tb.Error(err)
		}
	})
	other := *b
	other.store, other.ca = db, &signer{Signer: b.ca.Signer}
	other.reopen()
	other.authority, err = New(other.config())
	b.must(err)
	return &other
}

// testChangesWhileSigning has other change what b has just signed for.
func testChangesWhileSigning(t *testing.T, b, other *bench) {
	ctx := t.Context()
	block := func(key crypto.Signer, id string) { other.revoke(pki.KeyCompromise, false, other.enrolled(id, key)) }
	for name, tc := range map[string]struct {
		meanwhile func(id string, code pki.Code, key crypto.Signer)
		enrol     tokens.Error
		renew     tokens.Error
	}{
		"disabled": {func(id string, _ pki.Code, _ crypto.Signer) { b.must(other.store.DisableClient(ctx, id)) }, wantCode, wantParent},
		"removed":  {func(id string, _ pki.Code, _ crypto.Signer) { b.must(other.store.RemoveClient(ctx, id)) }, wantCode, wantParent},
		"invited":  {func(id string, _ pki.Code, _ crypto.Signer) { other.invite(id) }, wantCode, tokens.Error{}},
		"used": {func(_ string, code pki.Code, _ crypto.Signer) {
			_, err := other.enroll(code, newKey(t))
			b.must(err)
		}, wantConflict, tokens.Error{}},
		"taken":   {func(id string, _ pki.Code, key crypto.Signer) { other.enrolled(id+"-x", key) }, wantTaken, wantTaken},
		"blocked": {func(id string, _ pki.Code, key crypto.Signer) { block(key, id+"-x") }, wantBlocked, wantBlocked},
	} {
		id, key := "enrol-"+name, newKey(t)
		code := b.client(id)
		var inventory int
		b.ca.after = func() {
			tc.meanwhile(id, code, key)
			inventory = b.inventory()
		}
		res, err := b.enroll(code, key)
		t.Log(name)
		b.refused("cert.enroll", tc.enrol, inventory, res, err)
		if name == "used" {
			if e := b.journal.last(t, "enroll.conflict"); e.Personal["first_address"] != "192.0.2.1" {
				t.Errorf("the conflict on record: %+v", e)
			}
		}
		if tc.renew.Code == "" {
			continue
		}
		id, key = "renew-"+name, newKey(t)
		parent := b.enrolled(id, newKey(t))
		b.ca.after = func() {
			tc.meanwhile(id, code, key)
			inventory = b.inventory()
		}
		res, err = b.renew(id, parent, key)
		b.refused("cert.renew", tc.renew, inventory, res, err)
	}

	parent := b.enrolled("revoked", newKey(t))
	inventory := b.inventory()
	b.ca.after = func() { other.revoke(pki.Unspecified, false, parent) }
	res, err := b.renew("revoked", parent, newKey(t))
	b.refused("cert.renew", wantParent, inventory, res, err)

	// The same key twice at once is a repetition: both get the one certificate of the inventory.
	code, key := b.client("twice"), newKey(t)
	var first *pki.EnrollResponse
	b.ca.after = func() {
		var err error
		first, err = other.enroll(code, key)
		b.must(err)
	}
	second, err := b.enroll(code, key)
	b.must(err)
	if *first != *second {
		t.Error("two redemptions at once with one key got two certificates")
	}
	if e := b.journal.last(t, "cert.enroll"); e.Reason != "repeated" {
		t.Errorf("the slower one is on record as %q", e.Reason)
	}
}

// A renewal is for the client whose certificate asks, as long as client and certificate stand; repeated, it
// returns the child that there is, but only as long as they stand.
func TestRenew(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	start := b.now
	for name, spoil := range map[string]func(id string, parent *x509.Certificate){
		"disabled": func(id string, _ *x509.Certificate) { b.must(b.store.DisableClient(t.Context(), id)) },
		"removed":  func(id string, _ *x509.Certificate) { b.must(b.store.RemoveClient(t.Context(), id)) },
		"another":  func(id string, _ *x509.Certificate) { b.another(id) },
		"revoked":  func(_ string, parent *x509.Certificate) { b.revoke(pki.Unspecified, true, parent) },
		"expired": func(_ string, parent *x509.Certificate) {
			b.now = parent.NotAfter.Add(time.Second)
		},
	} {
		parent, key := b.enrolled(name, newKey(t)), newKey(t)
		b.authority.cfg.CertificateLifetime = time.Hour // the child outlives the parent
		first, err := b.renew(name, parent, key)
		b.must(err)
		e := b.journal.last(t, "cert.renew")
		if e.Outcome != "granted" || e.Reason != "" || e.Client != name || e.Detail["renewed_from"] != mtls.ThumbprintOf(parent).String() ||
			e.Thumbprint != mtls.ThumbprintOf(leaf(t, first)).String() || e.Address != "192.0.2.2" {
			t.Errorf("on record: %+v", e)
		}
		signed := b.ca.calls
		again, err := b.renew(name, parent, key)
		b.must(err)
		if *again != *first || b.ca.calls != signed {
			t.Error("the same parent with the same key got another child")
		}
		if e := b.journal.last(t, "cert.renew"); e.Reason != "repeated" {
			t.Errorf("the repetition on record: %q", e.Reason)
		}
		inventory := b.inventory()
		spoil(name, parent)
		t.Log(name)
		res, err := b.renew(name, parent, key)
		b.refused("cert.renew", wantParent, inventory, res, err)
		res, err = b.renew(name, parent, newKey(t))
		b.refused("cert.renew", wantParent, inventory, res, err)
		if b.ca.calls != signed {
			t.Error("the CA was asked")
		}
		b.now = start
		b.authority.cfg.CertificateLifetime = 10 * time.Minute
	}
	parent, key := b.enrolled("payments", newKey(t)), newKey(t)
	res, err := b.renew("payments", parent, key)
	b.must(err)
	if row, err := b.store.Certificate(t.Context(), mtls.ThumbprintOf(leaf(t, res))); err != nil || row.RenewedFrom != mtls.ThumbprintOf(parent) {
		t.Errorf("the child in the inventory is renewed from %x, %v", row.RenewedFrom, err)
	}
	b.enrolled("billing", newKey(t))
	inventory, signed := b.inventory(), b.ca.calls
	res, err = b.renew("billing", parent, newKey(t))
	b.refused("cert.renew", wantParent, inventory, res, err)
	if b.ca.calls != signed {
		t.Error("the CA was asked")
	}
	res, err = b.renew("billing", parent, key) // the other's child is not handed out
	if e, _ := errors.AsType[*tokens.Error](err); res != nil || e == nil || b.ca.calls != signed {
		t.Errorf("answer %t, %v", res != nil, err)
	}
	res, err = b.renew("nobody", parent, newKey(t))
	b.refused("cert.renew", wantParent, inventory, res, err)
	res, err = b.renew("payments", b.hierarchy.Issuing, newKey(t))
	b.refused("cert.renew", wantParent, inventory, res, err)
	res, err = b.authority.Renew(t.Context(), "payments", nil, pki.NewRenewRequest(request(t, newKey(t))), Caller{})
	b.refused("cert.renew", wantParent, inventory, res, err)
	res, err = b.authority.Renew(t.Context(), "payments", mtls.NewPeer(parent), pki.RenewRequest{}, Caller{})
	b.refused("cert.renew", tokens.Error{Code: "invalid_request", Reason: "malformed_member"}, inventory, res, err)
	res, err = b.authority.Renew(t.Context(), "payments", mtls.NewPeer(parent), pki.NewRenewRequest([]byte("x")), Caller{})
	b.refused("cert.renew", tokens.Error{Code: "invalid_request", Reason: "csr_refused"}, inventory, res, err)
}

// A child of one parent with the same key is not returned once its key was reported compromised elsewhere.
func TestRenew_RepetitionWithABlockedKey(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	key := newKey(t)
	other := b.enrolled("payments", key)
	res, err := b.enroll(b.invite("payments"), newKey(t))
	b.must(err)
	parent := leaf(t, res)
	_, err = b.renew("payments", parent, key)
	b.must(err)
	b.revoke(pki.KeyCompromise, true, other)
	inventory := b.inventory()
	res, err = b.renew("payments", parent, key)
	if e, _ := errors.AsType[*tokens.Error](err); res != nil || e == nil || e.Reason != "key_blocked" {
		t.Errorf("answer %t, %v", res != nil, err)
	}
	if n := b.inventory(); n != inventory {
		t.Errorf("the inventory grew to %d", n)
	}
}

// Nothing leaves unrecorded, and a refusal stays the refusal that it was. What fails inside is told to nobody.
func TestJournalAndSignerFail(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	parent, key := b.enrolled("payments", newKey(t)), newKey(t)
	code := b.client("billing")
	unavailable := func(what string, answered bool, err error) {
		t.Helper()
		e, _ := errors.AsType[*tokens.Error](err)
		if answered || e == nil || e.Code != wantFailure.Code {
			t.Errorf("%s: answer %t, %v", what, answered, err)
			return
		}
		if strings.Contains(e.Description, "full") || strings.Contains(e.Description, "broken") {
			t.Errorf("%s: the description tells the inner failure: %q", what, e.Description)
		}
	}
	b.journal.fails = true
	for _, what := range []string{"first", "repeated"} {
		res, err := b.enroll(code, key)
		unavailable("enrolment, "+what, res != nil, err)
		res, err = b.renew("payments", parent, newKey(t))
		unavailable("renewal, "+what, res != nil, err)
	}
	res, err := b.enroll(code, newKey(t))
	unavailable("a conflict that cannot be recorded", res != nil, err)
	_, err = b.authority.ServerCertificate(t.Context(), "auth.test", []string{"auth.test"}, nil, time.Hour)
	unavailable("server certificate", false, err)
	_, err = b.authority.IssueDirectly(t.Context(), "payments")
	unavailable("direct certificate", false, err)
	if res, err := b.renew("nobody", parent, newKey(t)); res != nil || !strings.Contains(err.Error(), "invalid_client") {
		t.Errorf("a refusal without a journal: %v", err)
	}
	b.journal.fails = false
	b.ca.fails = errors.New("the CA is broken")
	res, err = b.renew("payments", parent, newKey(t))
	unavailable("renewal without a CA", res != nil, err)
	res, err = b.enroll(b.invite("payments"), newKey(t))
	unavailable("enrolment without a CA", res != nil, err)
	_, err = b.authority.ServerCertificate(t.Context(), "auth.test", []string{"auth.test"}, nil, time.Hour)
	if err == nil {
		t.Error("a server certificate without a CA")
	}
	if _, err = b.authority.IssueDirectly(t.Context(), "payments"); err == nil {
		t.Error("a direct certificate without a CA")
	}
}

// While the journal is full, nothing is signed and nothing is stored, and what was refused is given afterwards.
func TestJournalFull(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	parent, key, next := b.enrolled("payments", newKey(t)), newKey(t), newKey(t)
	code := b.client("billing")
	version, err := b.store.Version(t.Context())
	b.must(err)
	signed := b.ca.calls
	b.journal.full = true
	for what, ask := range map[string]func() error{
		"enrolment": func() error { _, err := b.enroll(code, key); return err },
		"renewal":   func() error { _, err := b.renew("payments", parent, next); return err },
		"direct":    func() error { _, err := b.authority.IssueDirectly(t.Context(), "payments"); return err },
		"server": func() error {
			_, err := b.authority.ServerCertificate(t.Context(), "auth.test", []string{"auth.test"}, nil, time.Hour)
			return err
		},
	} {
		if e, _ := errors.AsType[*tokens.Error](ask()); e == nil || e.Code != wantFailure.Code || !errors.Is(e, outbox.ErrNotReady) {
			t.Errorf("%s: %v", what, e)
		}
	}
	now, err := b.store.Version(t.Context())
	b.must(err)
	if b.ca.calls != signed || now != version {
		t.Errorf("%d certificates were signed, version %d after %d", b.ca.calls-signed, now, version)
	}
	b.journal.full = false
	_, err = b.enroll(code, key)
	b.must(err)
	_, err = b.renew("payments", parent, next)
	b.must(err)
}

// A grant whose record failed after it was made is not answered; its repetition is, and both are on record, once each.
func TestJournalFailsAfterTheCommit(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	parent, key, next := b.enrolled("payments", newKey(t)), newKey(t), newKey(t)
	code := b.client("billing")
	inventory := b.inventory()
	asks := map[string]func() (*pki.EnrollResponse, error){
		"cert.enroll": func() (*pki.EnrollResponse, error) { return b.enroll(code, key) },
		"cert.renew":  func() (*pki.EnrollResponse, error) { return b.renew("payments", parent, next) },
	}
	counts := make(map[string]int)
	for name, ask := range asks {
		counts[name] = b.journal.named(name)
		b.journal.failing(func() {
			if res, err := ask(); res != nil || !errors.Is(err, outbox.ErrPending) {
				t.Errorf("%s: answer %t, %v", name, res != nil, err)
			}
		})
	}
	if b.inventory() != inventory+2 || b.box.Stats().Waiting != 2 {
		t.Errorf("%d certificates, %+v", b.inventory()-inventory, b.box.Stats())
	}
	for name, ask := range asks {
		res, err := ask()
		b.must(err)
		if e := b.journal.last(t, name); e.Reason != "repeated" || e.Thumbprint != mtls.ThumbprintOf(leaf(t, res)).String() {
			t.Errorf("%s: on record %+v", name, e)
		}
		b.must(b.box.Flush(t.Context()))
		if n := b.journal.named(name) - counts[name]; n != 2 {
			t.Errorf("%s: %d on record, want the first and its repetition", name, n)
		}
	}
	if b.inventory() != inventory+2 {
		t.Errorf("%d certificates more", b.inventory()-inventory-2)
	}
}

// Who could be told is refused singly, strangers are counted together, and alarms are neither.
func TestClassesOfRefusals(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	code := b.client("billing")
	class := func(name string, want audit.Class) {
		t.Helper()
		if e := b.journal.last(t, name); e.Class != want || e.Outcome != audit.Refused {
			t.Errorf("%s: %+v", name, e)
		}
	}
	unknown, _ := b.code("nobody")
	if _, err := b.enroll(unknown, newKey(t)); err == nil {
		t.Error("an unknown code was redeemed")
	}
	class("cert.enroll", audit.Stranger)
	_, err := b.enroll(code, newKey(t))
	b.must(err)
	if _, err := b.enroll(code, newKey(t)); err == nil {
		t.Error("a code was redeemed twice")
	}
	class("cert.enroll", audit.Refusal)
	class("enroll.conflict", audit.Decision)
	if _, err := b.renew("billing", b.hierarchy.Issuing, newKey(t)); err == nil {
		t.Error("renewed from another certificate")
	}
	class("cert.renew", audit.Refusal)
}

// The service's own certificate is no client's: it is not in the inventory and carries no client's name. What is
// issued directly is, and never for a client that is disabled or unknown.
func TestOwnCertificates(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	own, err := b.authority.ServerCertificate(t.Context(), "auth.test", []string{"auth.test"}, []netip.Addr{netip.MustParseAddr("192.0.2.9")}, time.Hour)
	b.must(err)
	if b.inventory() != 0 || len(own.Leaf.URIs) != 0 || slices.Contains(own.Leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) {
		t.Errorf("the service's certificate can pass for a client's: %v %v", own.Leaf.URIs, own.Leaf.ExtKeyUsage)
	}
	if err := errors.Join(own.Leaf.VerifyHostname("auth.test"), own.Leaf.VerifyHostname("192.0.2.9")); err != nil {
		t.Error(err)
	}
	if e := b.journal.last(t, "cert.server"); e.Outcome != "granted" || e.Thumbprint != mtls.ThumbprintOf(own.Leaf).String() {
		t.Errorf("on record: %+v", e)
	}
	b.client("payments")
	direct, err := b.authority.IssueDirectly(t.Context(), "payments")
	b.must(err)
	row, err := b.store.Certificate(t.Context(), mtls.ThumbprintOf(direct.Leaf))
	if err != nil || row.ClientID != "payments" || row.Generation != 1 {
		t.Errorf("in the inventory: %+v, %v", row, err)
	}
	if e := b.journal.last(t, "cert.direct"); e.Outcome != "granted" || e.Client != "payments" {
		t.Errorf("on record: %+v", e)
	}
	b.must(b.store.DisableClient(t.Context(), "payments"))
	signed := b.ca.calls
	for _, id := range []string{"payments", "nobody"} {
		if _, err := b.authority.IssueDirectly(t.Context(), id); err == nil || b.ca.calls != signed {
			t.Errorf("%s: %v, %d signatures", id, err, b.ca.calls-signed)
		}
	}
}

// No certificate outlives the one that signs it, and none begins in the future.
func TestLifetimes(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	end := b.hierarchy.Issuing.NotAfter
	for name, tc := range map[string]struct {
		now  time.Time
		want time.Time
	}{
		"long before": {end.Add(-time.Hour), end.Add(-time.Hour).Add(10 * time.Minute)},
		"at the end":  {end.Add(-time.Minute), end},
	} {
		if got := b.authority.notAfter(tc.now, 10*time.Minute); !got.Equal(tc.want) {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
	cert := b.enrolled("payments", newKey(t))
	if !cert.NotBefore.Before(b.now) || cert.NotBefore.Before(b.now.Add(-2*time.Minute)) || cert.NotAfter.After(b.now.Add(10*time.Minute)) {
		t.Errorf("valid from %s to %s at %s", cert.NotBefore, cert.NotAfter, b.now)
	}
}

// A code carries the root's hash and the issuer to whoever redeems it, and lives as long as it should; the row has
// nothing that redeems it.
func TestNewCode(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	code, row := b.code("payments")
	if code.Root != sha256.Sum256(b.hierarchy.Root.Raw) || code.URL != testIssuer || row.ClientID != "payments" || row.ID != code.ID {
		t.Errorf("the code is for %s and root %x, the row for %s", code.URL, code.Root, row.ClientID)
	}
	if !row.CreatedAt.Equal(b.now) || !row.ExpiresAt.Equal(b.now.Add(time.Hour)) {
		t.Errorf("from %s to %s at %s", row.CreatedAt, row.ExpiresAt, b.now)
	}
	if !slices.Equal(row.PublicKey, code.PublicKey()) || len(row.PublicKey) != 32 {
		t.Error("the row does not hold the code's public key")
	}
}

// The list is signed anew after a revocation, when an hour has passed and when the clock was set back, and not
// otherwise; its number rises; what has expired is not on it.
func TestCRL(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	fetch := func() (*pki.CRL, []byte) {
		t.Helper()
		der, err := b.authority.CRL(t.Context())
		b.must(err)
		list, err := pki.ParseCRL(der)
		b.must(err)
		if err := list.Check(b.hierarchy.Issuing, b.now); err != nil {
			t.Error(err)
		}
		if life := list.NextUpdate().Sub(b.now); life < crlLife-crlRefresh || life > crlLife {
			t.Errorf("good for another %s", life)
		}
		return list, der
	}
	kept, renewed := b.enrolled("payments", newKey(t)), b.enrolled("billing", newKey(t))
	res, err := b.renew("billing", renewed, newKey(t))
	b.must(err)
	child := leaf(t, res)
	first, der := fetch()
	if first.Len() != 0 {
		t.Errorf("%d entries before anything was revoked", first.Len())
	}
	b.now = b.now.Add(crlRefresh - time.Second)
	if _, again := fetch(); !slices.Equal(der, again) {
		t.Error("signed anew though nothing changed")
	}
	b.now = b.now.Add(time.Second)
	second, _ := fetch()
	if second.Number().Cmp(first.Number()) <= 0 {
		t.Error("not signed anew after an hour")
	}
	b.now = b.now.Add(-2 * crlRefresh)
	third, _ := fetch()
	if third.Number().Cmp(second.Number()) <= 0 {
		t.Error("not signed anew after the clock was set back")
	}
	b.now = b.now.Add(crlRefresh) // the certificates are good at this time
	fetch()
	b.revoke(pki.Superseded, false, renewed)
	after, _ := fetch()
	for cert, want := range map[*x509.Certificate]bool{kept: false, renewed: true, child: true} {
		entry, listed, err := after.Revoked(cert)
		if err != nil || listed != want || want && (entry.Reason != pki.Superseded || entry.At.Sub(b.now).Abs() > time.Second) {
			t.Errorf("serial %s: listed %t, %+v, %v", cert.SerialNumber, listed, entry, err)
		}
	}
	b.now = child.NotAfter.Add(time.Hour)
	if late, _ := fetch(); late.Len() != 0 {
		t.Errorf("%d expired certificates on the list", late.Len())
	}
	before, _ := fetch()
	if err := b.take(store.Selection{Serial: "1"}, pki.Unspecified); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("revoking what is not there: %v", err)
	}
	if list, _ := fetch(); list.Number().Cmp(before.Number()) != 0 {
		t.Error("signed anew though nothing was revoked")
	}
}

// An authority that lacks something is not made.
func TestNew_Refuses(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for name, spoil := range map[string]func(*Config){
		"store":         func(c *Config) { c.Store = nil },
		"CA":            func(c *Config) { c.CA = nil },
		"recorder":      func(c *Config) { c.Recorder = nil },
		"root":          func(c *Config) { c.Root = nil },
		"issuing":       func(c *Config) { c.Issuing = nil },
		"issuing key":   func(c *Config) { c.IssuingKey = nil },
		"lifetime":      func(c *Config) { c.CertificateLifetime = 0 },
		"code lifetime": func(c *Config) { c.CodeLifetime = -1 },
	} {
		cfg := b.config()
		spoil(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("made without %s", name)
		}
	}
	cfg := b.config()
	cfg.Now, cfg.Logger = nil, nil
	if a, err := New(cfg); err != nil || a.cfg.Now == nil || a.cfg.Logger == nil {
		t.Errorf("the defaults: %v", err)
	}
}

// Whatever the transaction finds out is answered as the check before it would answer.
func TestTransactionErrors(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	inner := errors.New("disk I/O")
	for err, want := range map[error][2]tokens.Error{
		store.ErrNotFound:       {wantCode, wantParent},
		store.ErrRevoked:        {wantCode, wantParent},
		store.ErrClientDisabled: {wantCode, wantParent},
		store.ErrGeneration:     {wantCode, wantParent},
		store.ErrCodeExpired:    {wantCode, wantFailure},
		store.ErrCodeVoid:       {wantCode, wantFailure},
		store.ErrExpired:        {wantFailure, wantParent},
		store.ErrCodeUsed:       {wantConflict, wantFailure},
		store.ErrKeyBlocked:     {wantBlocked, wantBlocked},
		store.ErrKeyTaken:       {wantTaken, wantTaken},
		inner:                   {wantFailure, wantFailure},
	} {
		wrapped := fmt.Errorf("transaction: %w", err)
		for i, got := range []error{b.authority.redeemError(t.Context(), wrapped, store.Code{ClientID: "payments"}, Caller{}), renewError(wrapped)} {
			if e, ok := errors.AsType[*tokens.Error](got); !ok || e.Code != want[i].Code || e.Reason != want[i].Reason {
				t.Errorf("%v, %d: %v, want %s %s", err, i, got, want[i].Code, want[i].Reason)
			}
		}
	}
}
