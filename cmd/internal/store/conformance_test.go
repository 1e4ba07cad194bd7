// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
)

// start is the time at which the tests' clocks begin.
var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// clock is a clock that a test moves.
type clock struct{ offset atomic.Int64 }

func (c *clock) now() time.Time                 { return start.Add(time.Duration(c.offset.Load())) }
func (c *clock) advance(d time.Duration)        { c.offset.Add(int64(d)) }
func (f *fixture) ctx() context.Context         { return f.t.Context() }
func (f *fixture) in(d time.Duration) time.Time { return f.clock.now().Add(d) }

// fixture is a store with a clock and the shortcuts of the tests.
type fixture struct {
	*Store
	t      *testing.T
	open   opener
	clock  *clock
	serial atomic.Int64
}

// opener opens an empty store with a clock.
type opener func(t *testing.T, now func() time.Time) *Store

func newFixture(t *testing.T, open opener) *fixture {
	c := new(clock)
	return &fixture{Store: open(t, c.now), t: t, open: open, clock: c}
}

// client adds a client with an enrolment code whose id repeats n.
func (f *fixture) client(id string, n byte) Client {
	f.t.Helper()
	client, err := f.AddClient(f.ctx(), Client{ID: id, AuthMethod: "tls_client_auth"}, f.code(n))
	if err != nil {
		f.t.Fatal(err)
	}
	return client
}

func (f *fixture) code(n byte) *Code {
	return &Code{ID: codeIDOf(n), PublicKey: make([]byte, 32), ExpiresAt: f.in(time.Hour)}
}

func codeIDOf(n byte) [8]byte { return [8]byte{n, n, n, n} }

func keyOf(n int) [32]byte { return sha256.Sum256(fmt.Appendf(nil, "key %d", n)) }

// cert makes a certificate of a client for key n that is valid for a day.
func (f *fixture) cert(id string, generation uint64, n int) Certificate {
	serial := strconv.FormatInt(f.serial.Add(1), 10)
	der := []byte("certificate " + serial)
	return Certificate{
		Thumbprint: sha256.Sum256(der), Serial: serial, ClientID: id, Generation: generation,
		NotBefore: f.clock.now(), NotAfter: f.in(24 * time.Hour), KeyHash: keyOf(n), DER: der,
	}
}

func (f *fixture) enroll(id string, generation uint64, code byte, key int) Certificate {
	f.t.Helper()
	cert, err := f.Redeem(f.ctx(), codeIDOf(code), keyOf(key), f.cert(id, generation, key), "192.0.2.7", f.clock.now())
	if err != nil {
		f.t.Fatal(err)
	}
	return cert
}

// addRenewal renews and returns the certificate to hand out.
func (f *fixture) addRenewal(parent [32]byte, cert Certificate) (Certificate, error) {
	renewal, err := f.AddRenewal(f.ctx(), parent, cert, false, f.clock.now())
	return renewal.Certificate, err
}

func (f *fixture) renew(parent Certificate, key int) Certificate {
	f.t.Helper()
	cert, err := f.addRenewal(parent.Thumbprint, f.cert(parent.ClientID, parent.Generation, key))
	if err != nil {
		f.t.Fatal(err)
	}
	return cert
}

// count counts the rows of a table.
func (f *fixture) count(table string) int {
	f.t.Helper()
	var n int
	if err := f.read.QueryRowContext(f.ctx(), "SELECT count(*) FROM "+table).Scan(&n); err != nil {
		f.t.Fatal(err)
	}
	return n
}

func want(t *testing.T, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Errorf("error is %v, want %v", err, target)
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func same(t *testing.T, got, want any) {
	t.Helper()
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// testStore is what every database must do.
func testStore(t *testing.T, open opener) {
	for _, test := range []struct {
		name string
		run  func(*fixture)
	}{
		{"client round trip", testClientRoundTrip},
		{"client names are unique", testNames},
		{"names of clients of other CAs", testForeignNames},
		{"keys of session tickets", testTicketKeys},
		{"keys of session tickets are sealed", testTicketKeysAreSealed},
		{"keys of session tickets for many", testParallelTicketKeys},
		{"removed ids stay reserved", testReserved},
		{"last grantor stays", testLastGrantor},
		{"who can grant", testGrantors},
		{"registered certificates of grantors", testPinnedGrantor},
		{"an operator is restored", testRestoreOperator},
		{"a disabled operator is restored", testRestoreDisabled},
		{"clients are listed", testClientList},
		{"clients that publish certificates", testPublishers},
		{"a holder", testHolder},
		{"loading", testLoad},
		{"what cannot be loaded", testLoadRefuses},
		{"parallel redemptions", testParallelRedemptions},
		{"parallel redemptions with one key", testParallelSameKey},
		{"redeem again", testRedeemAgain},
		{"redeem refusals", testRedeemRefusals},
		{"invite", testInvite},
		{"certificate keys", testCertificateKeys},
		{"renew", testRenew},
		{"renew refusals", testRenewRefusals},
		{"revoke descendants", testRevokeDescendants},
		{"revoke selections", testRevokeSelections},
		{"revoke while renewing", testRevokeWhileRenewing},
		{"removal revokes", testRemovalRevokes},
		{"key compromise", testKeyCompromise},
		{"key compromise takes every certificate of the key", testKeyCompromiseTwins},
		{"compromised keys of others", testRevokeOthers},
		{"registered certificates are revoked", testRevokeRegistered},
		{"blocked keys", testBlockedKeys},
		{"assertions", testAssertions},
		{"clients that sign assertions", testAssertingClients},
		{"denials", testDenials},
		{"denials that say more", testDenialsSayMore},
		{"denials that move while they are read", testDenialsMoveWhileRead},
		{"what takes away denies", testTakeawaysDeny},
		{"a compromised key denies its registered certificates", testCompromisedKeyDenies},
		{"tokens given back", testRevokeToken},
		{"followers of the denials", testFollowers},
		{"certificates are listed", testCertificateList},
		{"expired certificates", testExpired},
		{"expired certificates, little by little", testExpiredBounded},
		{"what an expired certificate still tells", testExpiredKept},
		{"resources", testResources},
		{"keys", testKeys},
		{"settings", testSettings},
		{"outbox", testOutbox},
		{"outbox order", testOutboxOrder},
		{"outbox bounds", testOutboxBounds},
		{"transactions", testTransact},
		{"transactions that fail in a part", testTransactFailedPart},
		{"transactions without a version", testTransactUnversioned},
		{"changes and versions", testChanges},
		{"stats", testStats},
		{"reads do not wait for writers", testReadsDoNotWait},
		{"a cancelled caller", testCancelled},
		{"trusts", testTrusts},
		{"the shape of a trust", testTrustShape},
		{"a damaged trust", testTrustDamaged},
		{"a trust in use stays", testTrustInUse},
		{"a client while its trust is removed", testTrustRace},
		{"trusts of files", testFileTrusts},
		{"one thing vouches for a client", testVouching},
		{"our CA serves its own clients", testNotEnrolled},
		{"authority", testAuthority},
		{"subjects are unique", testSubjects},
		{"registered certificates are unique", testRegisteredCertificates},
		{"registered certificates are bounded", testRegisteredBounds},
		{"keys of registered certificates", testRegisteredKeys},
		{"places of certificates are unique", testPlaces},
		{"removed foreign ids stay reserved", testReservedForeign},
		{"requests wait for another operator", testPending},
		{"requests expire", testPendingExpires},
		{"requests are bounded", testPendingBound},
		{"parallel confirmations", testPendingRace},
		{"requests of who is disabled are void", testPendingVoid},
		{"forks", testForks},
		{"forks that suspend", testSuspendingForks},
		{"separated scopes", testGrantorScopes},
		{"changes of trusts", testTrustChanges},
		{"keys of the journal", testAuditKeys},
		{"journals", testJournals},
		{"parallel keys of the journal", testAuditKeysRace},
		{"keys of the journal in a transaction", testAuditKeysTransact},
		{"changes for others", testChangesSince},
		{"old changes", testChangesPruned},
		{"leases", testLeases},
		{"heads of journals", testHeads},
		{"witnesses of journals", testWitnesses},
		{"adopted outbox", testAdoptOutbox},
		{"odd texts", testOddTexts},
		{"one order", testOrder},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.run(newFixture(t, open))
		})
	}
}

func testClientRoundTrip(f *fixture) {
	f.trust("partner")
	in := Client{
		ID: "payments", AuthMethod: "tls_client_auth", SubjectKind: "tls_client_auth_san_uri",
		SubjectValue: "spiffe://d/client/payments", DNS: []string{"a.example"}, IPs: []string{"192.0.2.1"},
		URIs: []string{"https://a.example/x"}, Usage: "both", Scopes: []string{"a", "b"},
		Resources: []string{"https://r.example"}, TokenTTL: 90 * time.Second, Trust: "partner", BuiltIn: true,
	}
	added, err := f.AddClient(f.ctx(), in, nil)
	ok(f.t, err)
	in.Generation, in.CreatedAt, in.UpdatedAt = 1, start, start
	same(f.t, added, in)
	got, err := f.Client(f.ctx(), "payments")
	ok(f.t, err)
	same(f.t, got, in)
	_, err = f.AddClient(f.ctx(), Client{ID: "payments"}, nil)
	want(f.t, err, ErrExists)
	_, err = f.Client(f.ctx(), "nobody")
	want(f.t, err, ErrNotFound)
	_, err = f.AddClient(f.ctx(), Client{}, nil)
	if err == nil {
		f.t.Error("a client without an id was added")
	}
	f.clock.advance(time.Minute)
	ok(f.t, f.DisableClient(f.ctx(), "payments"))
	got, err = f.Client(f.ctx(), "payments")
	ok(f.t, err)
	if !got.Disabled || !got.UpdatedAt.Equal(f.clock.now()) {
		f.t.Errorf("disabled %v at %v", got.Disabled, got.UpdatedAt)
	}
	ok(f.t, f.EnableClient(f.ctx(), "payments"))
	got, err = f.Client(f.ctx(), "payments")
	ok(f.t, err)
	if got.Disabled {
		f.t.Error("still disabled")
	}
	for _, change := range []func(context.Context, string) error{f.DisableClient, f.EnableClient, f.RemoveClient} {
		want(f.t, change(f.ctx(), "nobody"), ErrNotFound)
	}
}

func testNames(f *fixture) {
	add := func(id string, c Client) error {
		c.ID = id
		_, err := f.AddClient(f.ctx(), c, nil)
		return err
	}
	ok(f.t, add("one", Client{DNS: []string{"a.example", "A.example."}, IPs: []string{"2001:db8::1"}, URIs: []string{"x:y"}}))
	for _, c := range []Client{
		{DNS: []string{"b.example", "A.EXAMPLE"}}, {DNS: []string{"a.example."}},
		{IPs: []string{"2001:0db8:0::1"}}, {URIs: []string{"x:y"}},
	} {
		err := add("two", c)
		want(f.t, err, ErrNameTaken)
		if taken, is := errors.AsType[*NameTakenError](err); !is || taken.ClientID != "one" {
			f.t.Errorf("error is %v", err)
		}
	}
	_, err := f.Client(f.ctx(), "two")
	want(f.t, err, ErrNotFound) // nothing of a refused client is stored
	ok(f.t, add("two", Client{DNS: []string{"b.example"}, URIs: []string{"X:y"}, IPs: []string{"::ffff:192.0.2.1"}}))
	ok(f.t, add("three", Client{IPs: []string{"192.0.2.1"}}))
	ok(f.t, f.RemoveClient(f.ctx(), "one"))
	ok(f.t, add("four", Client{DNS: []string{"a.example"}}))
}

func testReserved(f *fixture) {
	f.client("idle", 1)
	ok(f.t, f.RemoveClient(f.ctx(), "idle"))
	_, err := f.Client(f.ctx(), "idle")
	want(f.t, err, ErrNotFound)
	again, err := f.AddClient(f.ctx(), Client{ID: "idle"}, nil)
	ok(f.t, err) // it never had a certificate
	if again.Generation != 2 {
		f.t.Errorf("generation %d, want 2", again.Generation)
	}

	f.client("busy", 2)
	f.enroll("busy", 1, 2, 1)
	ok(f.t, f.RemoveClient(f.ctx(), "busy"))
	_, err = f.AddClient(f.ctx(), Client{ID: "busy"}, nil)
	want(f.t, err, ErrReserved)
	if e, is := errors.AsType[*ReservedError](err); !is || !e.Until.Equal(start.Add(25*time.Hour)) {
		f.t.Errorf("error is %v", err)
	}
	f.clock.advance(25*time.Hour - time.Second)
	_, err = f.AddClient(f.ctx(), Client{ID: "busy"}, nil)
	want(f.t, err, ErrReserved)
	f.clock.advance(time.Second)
	_, err = f.AddClient(f.ctx(), Client{ID: "busy", Scopes: []string{"new"}}, f.code(3))
	ok(f.t, err)
	code, err := f.Code(f.ctx(), codeIDOf(3))
	ok(f.t, err)
	if code.Generation != 2 || code.ClientID != "busy" {
		f.t.Errorf("code of %s, generation %d", code.ClientID, code.Generation)
	}

}

func testLastGrantor(f *fixture) {
	for id, scope := range map[string]string{"admin": scopeAdmin, "giver": scopeGrant, "reader": "certbound:read"} {
		_, err := f.AddClient(f.ctx(), Client{ID: id, Scopes: []string{"x", scope}}, nil)
		ok(f.t, err)
	}
	// One who never enrolled can give nothing, so it is not another one.
	want(f.t, f.DisableClient(f.ctx(), "admin"), ErrLastGrantor)
	ok(f.t, f.AddCertificate(f.ctx(), f.cert("admin", 1, 1)))
	giver := f.cert("giver", 1, 2)
	giver.NotAfter = f.in(time.Hour)
	ok(f.t, f.AddCertificate(f.ctx(), giver))
	ok(f.t, f.DisableClient(f.ctx(), "admin"))
	want(f.t, f.DisableClient(f.ctx(), "giver"), ErrLastGrantor)
	want(f.t, f.RemoveClient(f.ctx(), "giver"), ErrLastGrantor)
	ok(f.t, f.EnableClient(f.ctx(), "admin"))
	f.clock.advance(time.Hour) // the giver's certificate has lapsed
	want(f.t, f.RemoveClient(f.ctx(), "admin"), ErrLastGrantor)
	ok(f.t, f.AddCertificate(f.ctx(), f.cert("giver", 1, 3)))
	ok(f.t, f.DisableClient(f.ctx(), "admin"))
	ok(f.t, f.EnableClient(f.ctx(), "admin"))
	_, err := f.Revoke(f.ctx(), Selection{ClientID: "giver"}, 0, f.clock.now())
	ok(f.t, err)
	want(f.t, f.DisableClient(f.ctx(), "admin"), ErrLastGrantor)
	ok(f.t, f.RemoveClient(f.ctx(), "giver"))
	want(f.t, f.RemoveClient(f.ctx(), "admin"), ErrLastGrantor)
	ok(f.t, f.RemoveClient(f.ctx(), "reader"))
}

// What a removed client held goes onto the revocation list.
func testRemovalRevokes(f *fixture) {
	f.client("payments", 1)
	f.client("billing", 2)
	first := f.enroll("payments", 1, 1, 1)
	second := f.renew(first, 2)
	f.enroll("billing", 1, 2, 3)
	ok(f.t, f.RemoveClient(f.ctx(), "payments"))
	list, err := f.Revoked(f.ctx(), f.clock.now())
	ok(f.t, err)
	same(f.t, listed(list), []string{first.Serial, second.Serial})
	same(f.t, list[0].At.IsZero(), false)
	same(f.t, list[0].Reason, cessationOfOperation)
}

func testClientList(f *fixture) {
	for _, id := range []string{"c", "a", "b", "d"} {
		f.client(id, id[0])
	}
	ok(f.t, f.RemoveClient(f.ctx(), "b"))
	var ids []string
	for after := ""; ; {
		page, err := f.Clients(f.ctx(), after, 2)
		ok(f.t, err)
		if len(page) == 0 {
			break
		}
		for _, c := range page {
			ids = append(ids, c.ID)
		}
		after = ids[len(ids)-1]
	}
	same(f.t, ids, []string{"a", "c", "d"})
}

// What is read at once is what is read one by one, and only of clients of our CA.
func testHolder(f *fixture) {
	f.client("payments", 1)
	f.client("billing", 2)
	cert := f.enroll("payments", 1, 1, 1)
	ok(f.t, f.add(Client{ID: "own", AuthMethod: methodSelfSigned, JWKSURI: "https://own.example/jwks.json"}))
	read := func(id string, t [32]byte) *Holder {
		f.t.Helper()
		h, err := f.Holder(f.ctx(), id, t)
		ok(f.t, err)
		return h
	}
	h := read("payments", cert.Thumbprint)
	same(f.t, h.Certificate, Certificate{Thumbprint: cert.Thumbprint, ClientID: "payments", Generation: 1, NotAfter: cert.NotAfter})
	same(f.t, h.Client, Client{ID: "payments", Generation: 1, AuthMethod: methodCA})
	same(f.t, len(h.Secret), 0)
	secret, err := f.AuditSubject(f.ctx(), "payments")
	ok(f.t, err)
	same(f.t, read("payments", cert.Thumbprint).Secret, secret)
	same(f.t, read("payments", [32]byte{1}).Certificate, Certificate{})
	same(f.t, read("billing", cert.Thumbprint).Certificate.ClientID, "payments")
	same(f.t, len(read("billing", cert.Thumbprint).Secret), 0)
	_, err = f.Revoke(f.ctx(), Selection{Thumbprints: [][32]byte{cert.Thumbprint}}, 0, f.clock.now())
	ok(f.t, err)
	same(f.t, read("payments", cert.Thumbprint).Certificate.RevokedAt, f.clock.now())
	ok(f.t, f.Transact(f.ctx(), func(tx *Store) error {
		ok(f.t, tx.DisableClient(f.ctx(), "payments"))
		h, err := tx.Holder(f.ctx(), "payments", cert.Thumbprint)
		same(f.t, h.Client.Disabled, true)
		return err
	}))
	same(f.t, read("payments", cert.Thumbprint).Client.Disabled, true)
	ok(f.t, f.RemoveClient(f.ctx(), "payments"))
	for _, id := range []string{"payments", "own", "nobody"} {
		_, err := f.Holder(f.ctx(), id, cert.Thumbprint)
		want(f.t, err, ErrNotFound)
	}
	_, err = f.AddClient(f.ctx(), Client{ID: "full", Scopes: []string{"a", "b"}, Resources: []string{"https://r.example"}, TokenTTL: time.Minute}, nil)
	ok(f.t, err)
	got := read("full", [32]byte{}).Client
	same(f.t, got, Client{ID: "full", Generation: 1, AuthMethod: methodCA, Scopes: []string{"a", "b"}, Resources: []string{"https://r.example"}, TokenTTL: time.Minute})
}

// Who looks for what clients publish is given nobody else, in pages.
func testPublishers(f *fixture) {
	f.client("c", 1)
	for _, id := range []string{"d", "b", "a", "e"} {
		ok(f.t, f.add(Client{ID: id, AuthMethod: methodSelfSigned, JWKSURI: "https://" + id + ".example/jwks.json"}))
	}
	ok(f.t, f.RemoveClient(f.ctx(), "b"))
	ok(f.t, f.DisableClient(f.ctx(), "d"))
	for after, want := range map[string][]string{"": {"a", "d"}, "a": {"d", "e"}, "d": {"e"}, "e": nil} {
		page, err := f.Publishers(f.ctx(), after, 2)
		ok(f.t, err)
		var ids []string
		for _, c := range page {
			ids = append(ids, c.ID)
		}
		same(f.t, ids, want)
	}
}

// EC-07: an enrolment code is used once, however many redeem it at the same moment.
func testParallelRedemptions(f *fixture) {
	f.client("payments", 1)
	const n = 50
	type result struct {
		cert Certificate
		err  error
	}
	results := make([]result, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			cert, err := f.Redeem(f.ctx(), codeIDOf(1), keyOf(i), f.cert("payments", 1, i), "192.0.2.7", f.clock.now())
			results[i] = result{cert, err}
		})
	}
	wg.Wait()
	winner := -1
	for i, r := range results {
		if r.err == nil {
			if winner >= 0 {
				f.t.Fatalf("both %d and %d won", winner, i)
			}
			winner = i
			continue
		}
		want(f.t, r.err, ErrCodeUsed)
	}
	if winner < 0 {
		f.t.Fatal("nobody won")
	}
	if got := f.count("certificates"); got != 1 {
		f.t.Errorf("%d certificates in the inventory", got)
	}
	code, err := f.Code(f.ctx(), codeIDOf(1))
	ok(f.t, err)
	if code.UsedFrom != "192.0.2.7" {
		f.t.Errorf("used from %q", code.UsedFrom)
	}
	if code.UsedKey != keyOf(winner) || code.Certificate != results[winner].cert.Thumbprint || !code.UsedAt.Equal(start) {
		f.t.Errorf("code is %+v", code)
	}
}

func testParallelSameKey(f *fixture) {
	f.client("payments", 1)
	const n = 50
	thumbprints := make([][32]byte, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			cert, err := f.Redeem(f.ctx(), codeIDOf(1), keyOf(7), f.cert("payments", 1, 7), "192.0.2.7", f.clock.now())
			if err != nil {
				f.t.Error(err)
			}
			thumbprints[i] = cert.Thumbprint
		})
	}
	wg.Wait()
	if len(slices.CompactFunc(thumbprints, func(a, b [32]byte) bool { return a == b })) != 1 {
		f.t.Error("the callers have different certificates")
	}
	if got := f.count("certificates"); got != 1 {
		f.t.Errorf("%d certificates in the inventory", got)
	}
}

func testRedeemAgain(f *fixture) {
	f.client("payments", 1)
	first := f.enroll("payments", 1, 1, 1)
	version, err := f.Version(f.ctx())
	ok(f.t, err)
	f.clock.advance(time.Minute)
	same(f.t, f.enroll("payments", 1, 1, 1), first)
	_, err = f.Redeem(f.ctx(), codeIDOf(1), keyOf(2), f.cert("payments", 1, 2), "192.0.2.7", f.clock.now())
	want(f.t, err, ErrCodeUsed)
	same(f.t, f.enroll("payments", 1, 1, 1), first) // the other key burnt nothing
	if after, err := f.Version(f.ctx()); err != nil || after != version {
		f.t.Errorf("version went from %d to %d, %v", version, after, err)
	}
	_, err = f.Revoke(f.ctx(), Selection{Serial: first.Serial}, 0, f.clock.now())
	ok(f.t, err)
	_, err = f.Redeem(f.ctx(), codeIDOf(1), keyOf(1), f.cert("payments", 1, 1), "192.0.2.7", f.clock.now())
	want(f.t, err, ErrRevoked)
	f.clock.advance(time.Hour)
	_, err = f.Redeem(f.ctx(), codeIDOf(1), keyOf(1), f.cert("payments", 1, 1), "192.0.2.7", f.clock.now())
	want(f.t, err, ErrCodeExpired)
}

func testRedeemRefusals(f *fixture) {
	redeem := func(n byte, id string, generation uint64) error {
		_, err := f.Redeem(f.ctx(), codeIDOf(n), keyOf(int(n)), f.cert(id, generation, int(n)), "192.0.2.7", f.clock.now())
		return err
	}
	before, err := f.Version(f.ctx())
	ok(f.t, err)
	want(f.t, redeem(99, "nobody", 1), ErrNotFound)
	if after, err := f.Version(f.ctx()); err != nil || after != before || f.count("codes") != 0 || f.count("certificates") != 0 {
		f.t.Error("a wrong code stored something")
	}

	f.client("late", 1)
	f.client("disabled", 2)
	ok(f.t, f.DisableClient(f.ctx(), "disabled"))
	want(f.t, redeem(2, "disabled", 1), ErrCodeVoid)
	ok(f.t, f.EnableClient(f.ctx(), "disabled"))
	want(f.t, redeem(2, "disabled", 1), ErrCodeVoid) // it stays void
	ok(f.t, f.Invite(f.ctx(), "disabled", *f.code(3)))
	f.enroll("disabled", 1, 3, 3)
	ok(f.t, f.DisableClient(f.ctx(), "disabled"))
	want(f.t, redeem(3, "disabled", 1), ErrClientDisabled) // a used code hands out nothing either

	f.client("gone", 4)
	ok(f.t, f.RemoveClient(f.ctx(), "gone"))
	want(f.t, redeem(4, "gone", 1), ErrCodeVoid)
	_, err = f.AddClient(f.ctx(), Client{ID: "gone"}, f.code(5))
	ok(f.t, err)
	want(f.t, redeem(4, "gone", 1), ErrCodeVoid)
	if redeem(5, "gone", 1) == nil {
		f.t.Error("a certificate of the earlier generation was stored")
	}
	if redeem(5, "late", 1) == nil {
		f.t.Error("a certificate of another client was stored")
	}
	f.enroll("gone", 2, 5, 5)

	// A generation that differs although the code is not void: the check must not lean on the voiding alone.
	f.client("moved", 6)
	_, err = f.write.ExecContext(f.ctx(), "UPDATE clients SET generation = 2 WHERE id = 'moved'")
	ok(f.t, err)
	want(f.t, redeem(6, "moved", 1), ErrGeneration)

	f.clock.advance(time.Hour)
	want(f.t, redeem(1, "late", 1), ErrCodeExpired)
	code, err := f.Code(f.ctx(), codeIDOf(1))
	ok(f.t, err)
	if !code.UsedAt.IsZero() {
		f.t.Error("a refusal burnt the code")
	}
}

func testInvite(f *fixture) {
	f.client("payments", 1)
	ok(f.t, f.Invite(f.ctx(), "payments", *f.code(2)))
	_, err := f.Redeem(f.ctx(), codeIDOf(1), keyOf(1), f.cert("payments", 1, 1), "192.0.2.7", f.clock.now())
	want(f.t, err, ErrCodeVoid)
	f.enroll("payments", 1, 2, 2)
	ok(f.t, f.Invite(f.ctx(), "payments", *f.code(3)))
	f.enroll("payments", 1, 2, 2) // what was used before is not void
	want(f.t, f.Invite(f.ctx(), "payments", *f.code(3)), ErrExists)
	if code, err := f.Code(f.ctx(), codeIDOf(3)); err != nil || code.Void {
		f.t.Error("a refused invitation voided the open code")
	}
	wrong := *f.code(4)
	wrong.Generation = 2
	want(f.t, f.Invite(f.ctx(), "payments", wrong), ErrGeneration)
	want(f.t, f.Invite(f.ctx(), "nobody", *f.code(4)), ErrNotFound)
	ok(f.t, f.DisableClient(f.ctx(), "payments"))
	want(f.t, f.Invite(f.ctx(), "payments", *f.code(4)), ErrClientDisabled)
}

// EC-09: a public key of one client is refused for every other, and one reported compromised for all.
func testCertificateKeys(f *fixture) {
	f.client("one", 1)
	f.client("two", 2)
	first := f.enroll("one", 1, 1, 1)
	_, err := f.Redeem(f.ctx(), codeIDOf(2), keyOf(1), f.cert("two", 1, 1), "192.0.2.7", f.clock.now())
	want(f.t, err, ErrKeyTaken)
	owner, err := f.KeyOwner(f.ctx(), keyOf(1))
	ok(f.t, err)
	same(f.t, owner, "one")
	owner, err = f.KeyOwner(f.ctx(), keyOf(2))
	ok(f.t, err)
	same(f.t, owner, "")
	two := f.enroll("two", 1, 2, 2)
	_, err = f.addRenewal(two.Thumbprint, f.cert("two", 1, 1))
	want(f.t, err, ErrKeyTaken)
	want(f.t, f.AddCertificate(f.ctx(), f.cert("two", 1, 1)), ErrKeyTaken)
	want(f.t, f.AddCertificate(f.ctx(), f.cert("two", 2, 2)), ErrGeneration)
	want(f.t, f.AddCertificate(f.ctx(), f.cert("nobody", 1, 3)), ErrGeneration)
	repeated := f.cert("one", 1, 1)
	repeated.Serial = first.Serial
	want(f.t, f.AddCertificate(f.ctx(), repeated), ErrExists)
	forged := f.cert("one", 1, 1)
	forged.Thumbprint[0]++
	if f.AddCertificate(f.ctx(), forged) == nil {
		f.t.Error("a wrong thumbprint was stored")
	}
	ok(f.t, f.AddCertificate(f.ctx(), f.cert("one", 1, 1)))
	ok(f.t, f.DisableClient(f.ctx(), "one"))
	want(f.t, f.AddCertificate(f.ctx(), f.cert("one", 1, 1)), ErrClientDisabled)
}

// EC-08: a renewal repeated from one parent gives the same child.
func testRenew(f *fixture) {
	f.client("payments", 1)
	parent := f.enroll("payments", 1, 1, 1)
	in := f.cert("payments", 1, 2)
	child, err := f.addRenewal(parent.Thumbprint, in)
	ok(f.t, err)
	in.RenewedFrom, in.CreatedAt = parent.Thumbprint, start
	same(f.t, child, in)
	got, err := f.Certificate(f.ctx(), child.Thumbprint)
	ok(f.t, err)
	same(f.t, got, in)
	got, err = f.CertificateBySerial(f.ctx(), child.Serial)
	ok(f.t, err)
	same(f.t, got, in)
	same(f.t, f.renew(parent, 2), child)
	got, err = f.Child(f.ctx(), parent.Thumbprint, keyOf(2), f.clock.now())
	ok(f.t, err)
	same(f.t, got, child)
	_, err = f.Child(f.ctx(), parent.Thumbprint, keyOf(3), f.clock.now())
	want(f.t, err, ErrNotFound)
	if f.renew(parent, 3).Thumbprint == child.Thumbprint {
		f.t.Error("another key has the same child")
	}
	_, err = f.Revoke(f.ctx(), Selection{Serial: child.Serial}, 0, f.clock.now())
	ok(f.t, err)
	if f.renew(parent, 2).Thumbprint == child.Thumbprint {
		f.t.Error("a revoked child was handed out")
	}
	brief := f.cert("payments", 1, 5)
	brief.NotAfter = f.in(time.Minute)
	brief, err = f.addRenewal(parent.Thumbprint, brief)
	ok(f.t, err)
	f.clock.advance(time.Minute)
	same(f.t, f.renew(parent, 5), brief)
	f.clock.advance(time.Second)
	if f.renew(parent, 5).Thumbprint == brief.Thumbprint {
		f.t.Error("an expired child was handed out")
	}
	thumbprints := make([][32]byte, 20)
	var wg sync.WaitGroup
	for i := range thumbprints {
		wg.Go(func() {
			cert, err := f.addRenewal(parent.Thumbprint, f.cert("payments", 1, 4))
			if err != nil {
				f.t.Error(err)
			}
			thumbprints[i] = cert.Thumbprint
		})
	}
	wg.Wait()
	if len(slices.CompactFunc(thumbprints, func(a, b [32]byte) bool { return a == b })) != 1 {
		f.t.Error("parallel renewals with one key have different children")
	}
}

// EC-08: a certificate that is revoked or expired, or whose client may not have it, renews nothing.
func testRenewRefusals(f *fixture) {
	f.client("payments", 1)
	f.client("other", 2)
	parent := f.enroll("payments", 1, 1, 1)
	renew := func(thumbprint [32]byte, id string, generation uint64) error {
		_, err := f.addRenewal(thumbprint, f.cert(id, generation, 1))
		return err
	}
	want(f.t, renew([32]byte{1}, "payments", 1), ErrNotFound)
	want(f.t, renew(parent.Thumbprint, "payments", 2), ErrGeneration)
	want(f.t, renew(parent.Thumbprint, "other", 1), ErrGeneration)
	ok(f.t, f.DisableClient(f.ctx(), "payments"))
	want(f.t, renew(parent.Thumbprint, "payments", 1), ErrClientDisabled)
	ok(f.t, f.EnableClient(f.ctx(), "payments"))
	// The reservation of ids keeps this from happening; the check must not lean on it.
	f.client("moved", 3)
	moved := f.enroll("moved", 1, 3, 3)
	_, err := f.write.ExecContext(f.ctx(), "UPDATE clients SET generation = 2 WHERE id = 'moved'")
	ok(f.t, err)
	_, err = f.addRenewal(moved.Thumbprint, f.cert("moved", 2, 3))
	want(f.t, err, ErrGeneration)
	// A blocked key asks for nothing, and its certificate is not handed out again, even where that was not revoked with it.
	blocked, err := f.Code(f.ctx(), f.code(3).ID)
	ok(f.t, err)
	_, err = f.write.ExecContext(f.ctx(), "INSERT INTO blocked_keys (key_hash, created_at) VALUES ($1, 1)", digest(moved.KeyHash))
	ok(f.t, err)
	_, err = f.write.ExecContext(f.ctx(), "UPDATE clients SET generation = 1 WHERE id = 'moved'")
	ok(f.t, err)
	_, err = f.addRenewal(moved.Thumbprint, f.cert("moved", 1, 4))
	want(f.t, err, ErrKeyBlocked)
	_, err = f.Redeem(f.ctx(), blocked.ID, moved.KeyHash, f.cert("moved", 1, 5), "192.0.2.1", f.clock.now())
	want(f.t, err, ErrKeyBlocked)
	f.clock.advance(24 * time.Hour)
	ok(f.t, renew(parent.Thumbprint, "payments", 1)) // the last second counts, as in crypto/x509
	f.clock.advance(time.Second)
	want(f.t, renew(parent.Thumbprint, "payments", 1), ErrExpired)
	_, err = f.Revoke(f.ctx(), Selection{Serial: parent.Serial, Only: true}, 0, f.clock.now())
	ok(f.t, err)
	want(f.t, renew(parent.Thumbprint, "payments", 1), ErrRevoked)
	ok(f.t, f.RemoveClient(f.ctx(), "payments"))
	want(f.t, renew(parent.Thumbprint, "payments", 1), ErrGeneration)
	f.clock.advance(48 * time.Hour)
	_, err = f.AddClient(f.ctx(), Client{ID: "payments"}, nil)
	ok(f.t, err)
	want(f.t, renew(parent.Thumbprint, "payments", 1), ErrGeneration)
	want(f.t, renew(parent.Thumbprint, "payments", 2), ErrRevoked)
}

// listed are the serial numbers of entries, sorted.
func listed(entries []Revoked) []string {
	var certs []Certificate
	for _, e := range entries {
		certs = append(certs, Certificate{Serial: e.Serial})
	}
	return serials(certs)
}

func serials(certs []Certificate) []string {
	var out []string
	for _, c := range certs {
		out = append(out, c.Serial)
	}
	slices.SortFunc(out, func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) })
	return out
}

// A stolen certificate renews for ever: revoking it takes all that came from it, and nothing else.
func testRevokeDescendants(f *fixture) {
	f.client("payments", 1)
	root := f.enroll("payments", 1, 1, 1) // 1
	left := f.renew(root, 2)              // 2
	thief := f.renew(root, 3)             // 3
	deep := f.renew(f.renew(thief, 4), 5) // 4, 5
	f.clock.advance(time.Minute)
	done, err := f.Revoke(f.ctx(), Selection{Thumbprints: [][32]byte{thief.Thumbprint}, Only: true}, 4, f.clock.now())
	ok(f.t, err)
	same(f.t, serials(done.Revoked), []string{"3"})
	if !done.Revoked[0].RevokedAt.Equal(f.clock.now()) || done.Revoked[0].Reason != 4 {
		f.t.Errorf("revoked at %v for %d", done.Revoked[0].RevokedAt, done.Revoked[0].Reason)
	}
	f.clock.advance(time.Minute)
	done, err = f.Revoke(f.ctx(), Selection{Thumbprints: [][32]byte{thief.Thumbprint, deep.Thumbprint}}, 0, f.clock.now())
	ok(f.t, err)
	same(f.t, serials(done.Revoked), []string{"4", "5"})
	same(f.t, serials(done.Already), []string{"3"})
	if got := done.Already[0]; got.Reason != 4 || !got.RevokedAt.Equal(start.Add(time.Minute)) {
		f.t.Errorf("the first revocation was changed: %v for %d", got.RevokedAt, got.Reason)
	}
	done, err = f.Revoke(f.ctx(), Selection{Serial: root.Serial}, 0, f.clock.now())
	ok(f.t, err)
	same(f.t, serials(done.Revoked), []string{"1", "2"})
	same(f.t, serials(done.Already), []string{"3", "4", "5"})
	got, err := f.Certificate(f.ctx(), left.Thumbprint)
	ok(f.t, err)
	if got.RevokedAt.IsZero() {
		f.t.Error("the child is not revoked")
	}
}

func testRevokeSelections(f *fixture) {
	f.client("one", 1)
	f.client("two", 2)
	old := f.enroll("one", 1, 1, 1)
	f.clock.advance(20 * time.Hour)
	f.renew(old, 1)
	f.clock.advance(10 * time.Hour)
	ok(f.t, f.Invite(f.ctx(), "two", *f.code(3)))
	f.enroll("two", 1, 3, 2)
	for _, sel := range []Selection{
		{}, {Only: true}, {Serial: "1", ClientID: "one"}, {ClientID: "one", Thumbprints: [][32]byte{old.Thumbprint}},
	} {
		if _, err := f.Revoke(f.ctx(), sel, 0, f.clock.now()); err == nil {
			f.t.Errorf("%+v was accepted", sel)
		}
	}
	for _, sel := range []Selection{
		{Serial: "77"}, {ClientID: "nobody"}, {Thumbprints: [][32]byte{old.Thumbprint, {9}}},
	} {
		_, err := f.Revoke(f.ctx(), sel, 0, f.clock.now())
		want(f.t, err, ErrNotFound)
	}
	done, err := f.Revoke(f.ctx(), Selection{ClientID: "one"}, 0, f.clock.now())
	ok(f.t, err)
	same(f.t, serials(done.Revoked), []string{"2"}) // what expired needs no revocation
	done, err = f.Revoke(f.ctx(), Selection{ClientID: "one"}, 0, f.clock.now())
	ok(f.t, err)
	same(f.t, serials(done.Already), []string{"2"})
	done, err = f.Revoke(f.ctx(), Selection{Serial: old.Serial}, 0, f.clock.now())
	ok(f.t, err)
	same(f.t, serials(done.Revoked), []string{"1"}) // named itself, it is
	revoked, err := f.Revoked(f.ctx(), f.clock.now())
	ok(f.t, err)
	same(f.t, listed(revoked), []string{"2"})
	for want := range int64(3) {
		n, err := f.NextCRLNumber(f.ctx())
		ok(f.t, err)
		same(f.t, n, want+1)
	}
}

// Whichever comes first, a revocation leaves no child of the revoked certificate that is not revoked.
func testRevokeWhileRenewing(f *fixture) {
	f.client("payments", 1)
	root := f.enroll("payments", 1, 1, 1)
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			_, err := f.addRenewal(root.Thumbprint, f.cert("payments", 1, 100+i))
			if err != nil && !errors.Is(err, ErrRevoked) {
				f.t.Error(err)
			}
		})
		if i == 15 {
			wg.Go(func() {
				_, err := f.Revoke(f.ctx(), Selection{Serial: root.Serial}, 0, f.clock.now())
				if err != nil {
					f.t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	certs, err := f.Certificates(f.ctx(), "payments", "", 100)
	ok(f.t, err)
	for _, c := range certs {
		if c.RevokedAt.IsZero() {
			f.t.Errorf("certificate %s survived", c.Serial)
		}
	}
}

func testKeyCompromise(f *fixture) {
	f.client("payments", 1)
	root := f.enroll("payments", 1, 1, 1)
	f.renew(root, 2)
	_, err := f.Revoke(f.ctx(), Selection{Serial: root.Serial, Only: true}, 4, f.clock.now())
	ok(f.t, err)
	blocked, err := f.KeyBlocked(f.ctx(), keyOf(1))
	ok(f.t, err)
	same(f.t, blocked, false)
	// One that is revoked already is blocked all the same.
	_, err = f.Revoke(f.ctx(), Selection{Serial: root.Serial}, keyCompromise, f.clock.now())
	ok(f.t, err)
	for n, isBlocked := range map[int]bool{1: true, 2: true, 3: false} {
		blocked, err := f.KeyBlocked(f.ctx(), keyOf(n))
		ok(f.t, err)
		same(f.t, blocked, isBlocked)
	}
	ok(f.t, f.Invite(f.ctx(), "payments", *f.code(2)))
	_, err = f.Redeem(f.ctx(), codeIDOf(2), keyOf(2), f.cert("payments", 1, 2), "192.0.2.7", f.clock.now())
	want(f.t, err, ErrKeyBlocked)
	next := f.enroll("payments", 1, 2, 3)
	_, err = f.addRenewal(next.Thumbprint, f.cert("payments", 1, 1))
	want(f.t, err, ErrKeyBlocked)
	want(f.t, f.AddCertificate(f.ctx(), f.cert("payments", 1, 1)), ErrKeyBlocked)
}

func testKeyCompromiseTwins(f *fixture) {
	f.client("payments", 1)
	first := f.enroll("payments", 1, 1, 1)
	child := f.renew(first, 1) // a renewal keeps its key unless it is told not to
	ok(f.t, f.Invite(f.ctx(), "payments", *f.code(2)))
	twin := f.enroll("payments", 1, 2, 1) // the same key by another code
	grandchild := f.renew(twin, 2)
	ok(f.t, f.Invite(f.ctx(), "payments", *f.code(3)))
	other := f.enroll("payments", 1, 3, 3)

	// Another reason takes the one and, with Only, nothing else.
	done, err := f.Revoke(f.ctx(), Selection{Serial: child.Serial, Only: true}, 4, f.clock.now())
	ok(f.t, err)
	same(f.t, serials(done.Revoked), []string{child.Serial})
	// A compromised key is so in all its certificates, Only or not; what was renewed from them is spared by Only alone.
	done, err = f.Revoke(f.ctx(), Selection{Serial: first.Serial, Only: true}, keyCompromise, f.clock.now())
	ok(f.t, err)
	same(f.t, serials(done.Revoked), []string{first.Serial, twin.Serial})
	same(f.t, serials(done.Already), []string{child.Serial})
	done, err = f.Revoke(f.ctx(), Selection{Serial: first.Serial}, keyCompromise, f.clock.now())
	ok(f.t, err)
	same(f.t, serials(done.Revoked), []string{grandchild.Serial})
	still, err := f.Certificate(f.ctx(), other.Thumbprint)
	ok(f.t, err)
	same(f.t, still.RevokedAt.IsZero(), true)
}

func testCertificateList(f *fixture) {
	f.client("one", 1)
	f.client("two", 2)
	for i, id := range []string{"one", "two", "one", "one"} {
		ok(f.t, f.AddCertificate(f.ctx(), f.cert(id, 1, 10+len(id)*100+int(id[0]))))
		if i != 1 {
			f.clock.advance(time.Second) // two of them have the same time
		}
	}
	page, err := f.Certificates(f.ctx(), "one", "", 2)
	ok(f.t, err)
	same(f.t, serials(page), []string{"1", "3"})
	page, err = f.Certificates(f.ctx(), "one", page[1].Serial, 2)
	ok(f.t, err)
	same(f.t, serials(page), []string{"4"})
	page, err = f.Certificates(f.ctx(), "", "2", 10)
	ok(f.t, err)
	same(f.t, serials(page), []string{"3", "4"})
	page, err = f.Certificates(f.ctx(), "", "unknown", 10)
	ok(f.t, err)
	same(f.t, serials(page), []string(nil))
	_, err = f.Certificate(f.ctx(), [32]byte{1})
	want(f.t, err, ErrNotFound)
	_, err = f.CertificateBySerial(f.ctx(), "77")
	want(f.t, err, ErrNotFound)
}

func testResources(f *fixture) {
	orders := Resource{URI: "https://orders.example", Scopes: []string{"read", "write"}, Servers: []string{"ledger"}}
	shared := Resource{URI: "https://shared.example", Scopes: []string{"read"}, Servers: []string{"other", "ledger"}}
	admin := Resource{URI: "https://i.example/admin/v1", Scopes: []string{scopeAdmin}, BuiltIn: true}
	for _, r := range []Resource{orders, shared, admin} {
		ok(f.t, f.AddResource(f.ctx(), r))
	}
	want(f.t, f.AddResource(f.ctx(), orders), ErrExists)
	orders.CreatedAt, shared.CreatedAt, admin.CreatedAt = start, start, start
	got, err := f.Resource(f.ctx(), orders.URI)
	ok(f.t, err)
	same(f.t, got, orders)
	list, err := f.Resources(f.ctx())
	ok(f.t, err)
	same(f.t, list, []Resource{admin, orders, shared})
	_, err = f.Resource(f.ctx(), "https://nothing.example")
	want(f.t, err, ErrNotFound)
	want(f.t, f.RemoveResource(f.ctx(), "https://nothing.example"), ErrNotFound)
	want(f.t, f.RemoveResource(f.ctx(), admin.URI), ErrBuiltIn)

	_, err = f.AddClient(f.ctx(), Client{ID: "writer", Scopes: []string{"write"}}, nil)
	ok(f.t, err)
	_, err = f.AddClient(f.ctx(), Client{ID: "reader", Scopes: []string{"read"}, Resources: []string{shared.URI}}, nil)
	ok(f.t, err)
	_, err = f.AddClient(f.ctx(), Client{ID: "ledger"}, nil)
	ok(f.t, err)
	err = f.RemoveResource(f.ctx(), orders.URI)
	want(f.t, err, ErrInUse)
	if e, is := errors.AsType[*InUseError](err); !is || !slices.Equal(e.ClientIDs, []string{"writer"}) {
		f.t.Errorf("error is %v", err)
	}
	want(f.t, f.RemoveResource(f.ctx(), shared.URI), ErrInUse)
	ok(f.t, f.RemoveClient(f.ctx(), "writer"))
	ok(f.t, f.RemoveResource(f.ctx(), orders.URI)) // "read" is declared elsewhere

	ok(f.t, f.RemoveClient(f.ctx(), "ledger"))
	got, err = f.Resource(f.ctx(), shared.URI)
	ok(f.t, err)
	same(f.t, got.Servers, []string{"other"})
}

func testKeys(f *fixture) {
	one := Key{
		ID: "k1", Purpose: "signing", State: "active", Chain: [][]byte{[]byte("leaf"), []byte("issuing")},
		Private: []byte("secret one"), Algorithm: "ES256", CreatedAt: start.Add(-time.Hour),
	}
	two := Key{ID: "k2", Purpose: "signing", State: "next", Private: []byte("secret two"), Algorithm: "ES256"}
	root := Key{ID: "k1", Purpose: "root", Private: []byte("secret root")}
	for _, k := range []Key{two, one, root} {
		ok(f.t, f.PutKey(f.ctx(), k))
	}
	two.CreatedAt, two.Since, one.Since = start, start, one.CreatedAt
	got, err := f.Keys(f.ctx(), "signing")
	ok(f.t, err)
	same(f.t, got, []Key{one, two})
	one.State, one.Private = "retired", []byte("secret three")
	ok(f.t, f.PutKey(f.ctx(), one))
	got, err = f.Keys(f.ctx(), "signing")
	ok(f.t, err)
	same(f.t, got, []Key{one, two})
	one.State, one.Since, one.Until = "retiring", start, start.Add(time.Hour)
	ok(f.t, f.SetKeyState(f.ctx(), "signing", "k1", one.State, one.Since, one.Until))
	want(f.t, f.SetKeyState(f.ctx(), "signing", "k3", one.State, one.Since, one.Until), ErrNotFound)
	got, err = f.Keys(f.ctx(), "signing")
	ok(f.t, err)
	same(f.t, got, []Key{one, two})
	ok(f.t, f.DeleteKey(f.ctx(), "signing", "k1"))
	want(f.t, f.DeleteKey(f.ctx(), "signing", "k1"), ErrNotFound)
	got, err = f.Keys(f.ctx(), "root")
	ok(f.t, err)
	if len(got) != 1 || string(got[0].Private) != "secret root" {
		f.t.Errorf("root keys are %v", got)
	}
	for _, bad := range []Key{{ID: "x", Private: []byte("x")}, {Purpose: "x", Private: []byte("x")}, {ID: "x", Purpose: "x"}} {
		if f.PutKey(f.ctx(), bad) == nil {
			f.t.Errorf("%+v was stored", bad)
		}
	}
}

func testSettings(f *fixture) {
	_, err := f.Setting(f.ctx(), "issuer")
	want(f.t, err, ErrNotFound)
	const n = 20
	stored := make([]string, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			value, err := f.SetOnce(f.ctx(), "issuer", strconv.Itoa(i))
			if err != nil {
				f.t.Error(err)
			}
			stored[i] = value
		})
	}
	wg.Wait()
	value, err := f.Setting(f.ctx(), "issuer")
	ok(f.t, err)
	if slices.ContainsFunc(stored, func(s string) bool { return s != value }) {
		f.t.Errorf("callers have %v, stored is %s", stored, value)
	}
}

func testChanges(f *fixture) {
	var mu sync.Mutex
	var seen []Change
	f.OnChange(func(c Change) {
		version, err := f.Version(f.ctx()) // committed, and readable from here
		if err != nil || version != c.Version {
			f.t.Errorf("version %d during change %d, %v", version, c.Version, err)
		}
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, c)
	})
	last := func() Change {
		mu.Lock()
		defer mu.Unlock()
		return seen[len(seen)-1]
	}
	f.client("payments", 1)
	same(f.t, last(), Change{ClientIDs: []string{"payments"}, Version: 1})
	cert := f.enroll("payments", 1, 1, 1)
	same(f.t, last(), Change{Thumbprints: [][32]byte{cert.Thumbprint}, Version: 2})
	_, err := f.Revoke(f.ctx(), Selection{Serial: cert.Serial}, 0, f.clock.now())
	ok(f.t, err)
	same(f.t, last(), Change{Thumbprints: [][32]byte{cert.Thumbprint}, Revoked: true, Denials: true, Version: 3})
	ok(f.t, f.AddResource(f.ctx(), Resource{URI: "https://r.example"}))
	same(f.t, last(), Change{Resources: true, Version: 4})
	ok(f.t, f.RemoveResource(f.ctx(), "https://r.example"))
	same(f.t, last(), Change{Resources: true, Version: 5})
	ok(f.t, f.DisableClient(f.ctx(), "payments"))
	same(f.t, last(), Change{ClientIDs: []string{"payments"}, Denials: true, Version: 6})
	ok(f.t, f.DisableClient(f.ctx(), "payments"))
	same(f.t, last().Version, int64(6)) // nothing to change, nothing to tell

	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if _, err := f.AddClient(f.ctx(), Client{ID: "c" + strconv.Itoa(i)}, nil); err != nil {
				f.t.Error(err)
			}
		})
	}
	wg.Wait()
	for i, c := range seen {
		if c.Version != int64(i+1) {
			f.t.Errorf("change %d has version %d", i, c.Version)
		}
	}
	checkStamps(f.t, f.Store)
}

// checkStamps checks that every row has the version of a change that was committed.
func checkStamps(t *testing.T, s *Store) {
	t.Helper()
	for _, table := range []string{"clients", "codes", "certificates", "resources", "sealed_keys", "blocked_keys", "denials",
		"trusts", "pending_requests", "outbox"} {
		var unstamped, ahead int
		err := s.read.QueryRowContext(t.Context(), `SELECT
			(SELECT count(*) FROM `+table+` WHERE version IS NULL),
			(SELECT count(*) FROM `+table+` WHERE version > (SELECT version FROM state))`).Scan(&unstamped, &ahead)
		if err != nil || unstamped != 0 || ahead != 0 {
			t.Errorf("%s: %d rows without a version, %d ahead of the state, %v", table, unstamped, ahead, err)
		}
	}
}

func testStats(f *fixture) {
	f.client("one", 1)
	f.client("two", 2)
	f.client("three", 3)
	cert := f.enroll("one", 1, 1, 1)
	f.renew(cert, 2)
	_, err := f.Revoke(f.ctx(), Selection{Serial: cert.Serial, Only: true}, 0, f.clock.now())
	ok(f.t, err)
	ok(f.t, f.DisableClient(f.ctx(), "two"))
	ok(f.t, f.AddResource(f.ctx(), Resource{URI: "https://r.example"}))
	got, err := f.Stats(f.ctx())
	ok(f.t, err)
	same(f.t, got, Stats{Clients: 2, Disabled: 1, Resources: 1, Certificates: 1, Revoked: 1, OpenCodes: 1, Version: 8})
}

func testReadsDoNotWait(f *fixture) {
	f.client("payments", 1)
	err := f.change(f.ctx(), func(c *change) error {
		if _, err := c.exec("clients", setClientDisabled, "payments", true, moment(f.clock.now())); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(f.ctx(), 5*time.Second)
		defer cancel()
		got, err := f.Client(ctx, "payments")
		if err != nil || got.Disabled {
			f.t.Errorf("while a transaction is open: %v, disabled %v", err, got.Disabled)
		}
		return errors.New("roll back")
	})
	if err == nil {
		f.t.Error("the error was lost")
	}
	got, err := f.Client(f.ctx(), "payments")
	ok(f.t, err)
	if got.Disabled {
		f.t.Error("the transaction was not rolled back")
	}
}

func testCancelled(f *fixture) {
	ctx, cancel := context.WithCancel(f.ctx())
	// A caller that leaves in the middle does not undo what was decided.
	f.OnChange(func(Change) {
		if ctx.Err() == nil {
			f.t.Error("the caller was not cancelled")
		}
	})
	err := f.change(ctx, func(c *change) error {
		cancel()
		return c.writeClient(f.newClient(Client{ID: "payments"}, 1))
	})
	ok(f.t, err)
	_, err = f.Client(f.ctx(), "payments")
	ok(f.t, err)
	// One that left before does not begin.
	_, err = f.AddClient(ctx, Client{ID: "late"}, nil)
	want(f.t, err, context.Canceled)
}
