// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens"
)

// denials are all of them as they would be sent to who knows none, in their order.
func (f *fixture) denials() []tokens.Denial {
	f.t.Helper()
	list, _, err := f.Denials(f.ctx(), 0, 1000)
	ok(f.t, err)
	var out []tokens.Denial
	for _, d := range list {
		out = append(out, d.Denial)
	}
	return out
}

// sameDenials compares by ==: two zero thumbprints are not Equal.
func (f *fixture) sameDenials(got, want []tokens.Denial) {
	f.t.Helper()
	if !slices.Equal(got, want) {
		f.t.Errorf("%+v, want %+v", got, want)
	}
}

// deny denies, and checks how many denials said something new.
func (f *fixture) deny(added int, denials ...tokens.Denial) {
	f.t.Helper()
	n, err := f.Deny(f.ctx(), denials...)
	ok(f.t, err)
	same(f.t, n, added)
}

// Each kind comes back as it was given, in pages, each once, and tells who follows.
func testDenials(f *fixture) {
	until := f.in(time.Hour)
	all := []tokens.Denial{
		{TokenID: "t", Until: until}, {Thumbprint: mtls.Thumbprint{1}, Until: until}, {KeyID: "k", Until: until},
		{ClientID: "c", IssuedBefore: f.in(-time.Minute), Until: until}, {TokenID: "c", Until: until},
	}
	var last Change
	f.OnChange(func(c Change) { last = c })
	f.deny(4, all[:4]...)
	same(f.t, last, Change{Denials: true, Version: 1})
	f.deny(1, all[3:]...)
	f.sameDenials(f.denials(), all)
	var paged []tokens.Denial
	for after, pages := int64(0), 0; ; pages++ {
		list, upTo, err := f.Denials(f.ctx(), after, 2)
		ok(f.t, err)
		if len(list) < 2 {
			same(f.t, pages, 2)
			same(f.t, upTo, int64(5))
		} else {
			same(f.t, upTo, list[1].Position)
		}
		for _, d := range list {
			paged = append(paged, d.Denial)
		}
		if len(list) == 0 {
			f.t.Fatal("an empty page")
		}
		if after = upTo; len(list) < 2 {
			break
		}
	}
	f.sameDenials(paged, all)
	list, upTo, err := f.Denials(f.ctx(), 5, 2)
	ok(f.t, err)
	same(f.t, len(list), 0)
	same(f.t, upTo, int64(5))
	for _, d := range []tokens.Denial{{}, {TokenID: "t", KeyID: "k"}, {KeyID: "\xff"}, {TokenID: "a\x00"}} {
		if _, err := f.Deny(f.ctx(), d); err == nil {
			f.t.Errorf("%+v was stored", d)
		}
	}
	same(f.t, f.count("denials"), 5)
	checkStamps(f.t, f.Store)
	// A kind that this program does not know must not be passed over.
	_, err = f.writer.ExecContext(f.ctx(), "UPDATE denials SET kind = 'new' WHERE position = 1")
	ok(f.t, err)
	if _, _, err := f.Denials(f.ctx(), 0, 10); err == nil {
		f.t.Error("an unknown kind of denial is no error")
	}
}

// Of two denials for the same, whatever denies more is kept, at a new position; what says nothing new is no row and no
// version.
func testDenialsSayMore(f *fixture) {
	at := f.clock.now()
	f.deny(2, tokens.Denial{TokenID: "t", Until: at.Add(time.Hour)}, tokens.Denial{ClientID: "c", IssuedBefore: at, Until: at.Add(time.Minute)})
	f.deny(0, tokens.Denial{TokenID: "t", Until: at.Add(time.Minute)}, tokens.Denial{ClientID: "c", IssuedBefore: at.Add(-time.Hour), Until: at.Add(time.Minute)})
	version, err := f.Version(f.ctx())
	ok(f.t, err)
	same(f.t, version, int64(1))
	f.deny(2, tokens.Denial{TokenID: "t", Until: at.Add(2 * time.Hour)}, tokens.Denial{ClientID: "c", IssuedBefore: at.Add(-time.Hour), Until: at.Add(time.Hour)})
	f.deny(1, tokens.Denial{ClientID: "c", IssuedBefore: at.Add(time.Second), Until: at.Add(time.Minute)})
	f.sameDenials(f.denials(), []tokens.Denial{
		{TokenID: "t", Until: at.Add(2 * time.Hour)}, {ClientID: "c", IssuedBefore: at.Add(time.Second), Until: at.Add(time.Hour)},
	})
	list, upTo, err := f.Denials(f.ctx(), 2, 10)
	ok(f.t, err)
	same(f.t, len(list), 2) // who had read the older rows reads them again
	same(f.t, upTo, int64(5))
	checkStamps(f.t, f.Store)
	for id, want := range map[string]time.Time{"c": at.Add(time.Second), "t": {}} {
		got, err := f.DeniedBefore(f.ctx(), id)
		ok(f.t, err)
		same(f.t, got, want)
	}
	// Without an end, and without saying before when, it lasts as long as anything that it could mean.
	f.deny(2, tokens.Denial{ClientID: "d"}, tokens.Denial{KeyID: "k"})
	stored := f.denials()
	since := at.Add(time.Second)
	if f.dialect.name() == postgresKind {
		since = since.Add(5 * time.Second)
	}
	same(f.t, stored[2].IssuedBefore, since)
	if !stored[2].Until.After(at.Add(time.Hour+time.Minute+5*time.Second)) || !stored[3].Until.After(at.Add(24*time.Hour)) {
		f.t.Errorf("%+v", stored[2:])
	}
}

// between does something between the reading of the end of the denials and that of the rows.
type between struct {
	conn
	f func()
}

func (b between) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	b.f()
	return b.conn.QueryContext(ctx, query, args...)
}

// A denial that gets a new position while they are read is not missing at both: whoever is told that the rows are all up to a
// position has all that are denied at it.
func testDenialsMoveWhileRead(f *fixture) {
	at := f.clock.now()
	f.deny(2, tokens.Denial{ClientID: "c", IssuedBefore: at, Until: at.Add(time.Hour)}, tokens.Denial{TokenID: "t", Until: at.Add(time.Hour)})
	reader := &Store{core: f.core, write: f.write, read: between{f.read, func() {
		f.deny(1, tokens.Denial{ClientID: "c", IssuedBefore: at.Add(time.Minute), Until: at.Add(time.Hour)})
	}}}
	for _, limit := range []int{1, 2, 10} {
		at = at.Add(time.Hour)
		list, upTo, err := reader.Denials(f.ctx(), 0, limit)
		ok(f.t, err)
		if len(list) != min(limit, 2) || limit > 1 && list[1].ClientID != "c" || upTo != list[len(list)-1].Position {
			f.t.Errorf("with at most %d, up to %d: %+v", limit, upTo, list)
		}
	}
}

// Whatever takes a certificate or a client away denies the tokens that they have: in the same transaction.
func testTakeawaysDeny(f *fixture) {
	f.client("payments", 1)
	f.client("billing", 2)
	f.client("reports", 3)
	first := f.enroll("payments", 1, 1, 1)
	second := f.renew(first, 2)
	brief := f.cert("billing", 1, 3)
	brief.NotAfter = f.in(time.Minute)
	_, err := f.Redeem(f.ctx(), codeIDOf(2), keyOf(3), brief, "192.0.2.7", f.clock.now())
	ok(f.t, err)
	last := f.enroll("reports", 1, 3, 4)
	same(f.t, len(f.denials()), 0)
	want := func(what string, d ...tokens.Denial) {
		f.t.Helper()
		all := f.denials()
		if len(all) < len(d) {
			f.t.Fatalf("%s: %+v", what, all)
		}
		for i, got := range all[len(all)-len(d):] {
			if got.Thumbprint != d[i].Thumbprint || got.ClientID != d[i].ClientID {
				f.t.Errorf("%s: %+v, want %+v", what, got, d[i])
			}
			if slack := got.Until.Sub(d[i].Until); slack < time.Minute+5*time.Second || slack > time.Hour {
				f.t.Errorf("%s: until %v, want some more than %v", what, got.Until, d[i].Until)
			}
		}
	}
	revoke := func(sel Selection) {
		f.t.Helper()
		_, err := f.Revoke(f.ctx(), sel, 0, f.clock.now())
		ok(f.t, err)
	}
	revoke(Selection{Serial: first.Serial})
	hour := f.in(time.Hour)
	want("revoke", tokens.Denial{Thumbprint: first.Thumbprint, Until: hour}, tokens.Denial{Thumbprint: second.Thumbprint, Until: hour})
	revoke(Selection{Serial: first.Serial})
	same(f.t, len(f.denials()), 2)
	revoke(Selection{Serial: brief.Serial})
	want("a certificate that expires soon", tokens.Denial{Thumbprint: brief.Thumbprint, Until: brief.NotAfter})
	ok(f.t, f.DisableClient(f.ctx(), "billing"))
	want("disable", tokens.Denial{ClientID: "billing", Until: hour})
	ok(f.t, f.DisableClient(f.ctx(), "billing"))
	same(f.t, len(f.denials()), 4)
	ok(f.t, f.RemoveClient(f.ctx(), "reports"))
	want("remove", tokens.Denial{ClientID: "reports", Until: hour}, tokens.Denial{Thumbprint: last.Thumbprint, Until: hour})
	f.clock.advance(25 * time.Hour)
	f.client("late", 4)
	old := f.cert("late", 1, 5)
	old.NotAfter = f.in(time.Second)
	_, err = f.Redeem(f.ctx(), codeIDOf(4), keyOf(5), old, "192.0.2.7", f.clock.now())
	ok(f.t, err)
	f.clock.advance(time.Hour)
	before := len(f.denials())
	revoke(Selection{Serial: old.Serial})
	same(f.t, len(f.denials()), before) // no token is bound to it any more
	checkStamps(f.t, f.Store)
}

// A key that is compromised is so in every certificate, in one that a client registered by itself too.
func testCompromisedKeyDenies(f *fixture) {
	one, two := newOwnKey(f.t), newOwnKey(f.t)
	certs := [][]byte{one.cert(f.t, 1), one.cert(f.t, 2), two.cert(f.t, 3)}
	ok(f.t, f.add(selfSigned("own", certs...)))
	_, err := f.Revoke(f.ctx(), Selection{Thumbprints: [][32]byte{sha256.Sum256(certs[2])}}, 0, f.clock.now())
	ok(f.t, err)
	same(f.t, len(f.denials()), 1)
	same(f.t, [32]byte(f.denials()[0].Thumbprint), sha256.Sum256(certs[2]))
	ok(f.t, f.change(f.ctx(), func(c *change) error {
		var key []byte
		if err := c.tx.QueryRowContext(f.ctx(), "SELECT key_hash FROM client_certificates LIMIT 1").Scan(&key); err != nil {
			return err
		}
		_, err := c.block([32]byte(key), f.clock.now())
		return err
	}))
	denied := make(map[mtls.Thumbprint]bool)
	for _, d := range f.denials() {
		denied[d.Thumbprint] = true
	}
	for i, cert := range certs {
		if !denied[sha256.Sum256(cert)] {
			f.t.Errorf("certificate %d is not denied", i)
		}
	}
	_, err = f.Revoke(f.ctx(), Selection{ClientID: "own"}, keyCompromise, f.clock.now())
	ok(f.t, err)
	all := f.denials()
	same(f.t, all[len(all)-1].ClientID, "own") // nothing is left to it

	// An entry of the inventory, by whatever way its key came to be blocked.
	f.client("payments", 1)
	f.client("billing", 2)
	held, other := f.enroll("payments", 1, 1, 7), f.enroll("billing", 1, 2, 8)
	ok(f.t, f.change(f.ctx(), func(c *change) error {
		_, err := c.block(held.KeyHash, f.clock.now())
		return err
	}))
	all = f.denials()
	same(f.t, [32]byte(all[len(all)-1].Thumbprint), held.Thumbprint)
	for _, d := range all {
		if d.Thumbprint == mtls.Thumbprint(other.Thumbprint) {
			f.t.Error("a certificate of another key is denied")
		}
	}
}

// RV-07: RFC 7009, Section 2: what was revoked stays so for as long as anything could use it, whatever is pruned and after a
// restore, and no longer.
func TestRFC7009_2_RevokedUntilTheEnd(t *testing.T) {
	everyDatabase(t, func(t *testing.T, open opener) {
		t.Run("pruned", func(t *testing.T) { testPruneDenials(newFixture(t, open)) })
		t.Run("restored", func(t *testing.T) { testReplayDenies(newFixture(t, open)) })
	})
}

// A restored database denies what its backup did not know yet, and whoever followed the former
// one is told of everything.
func testReplayDenies(f *fixture) {
	f.client("payments", 1)
	cert := f.enroll("payments", 1, 1, 1)
	f.deny(1, tokens.Denial{TokenID: "before", Until: f.in(time.Hour)})
	_, seen, err := f.Denials(f.ctx(), 0, 10)
	ok(f.t, err)
	seen += 1000 // of what the lost database had
	ok(f.t, f.SetRestoring(f.ctx(), f.clock.now()))
	ok(f.t, f.Replay(f.ctx(), func(r *Replay) ([]Entry, error) {
		ok(f.t, r.RevokeToken("payments", "after", f.in(time.Hour), f.in(-time.Minute)))
		ok(f.t, r.RevokeToken("payments", "long ago", f.in(-time.Hour), f.in(-2*time.Hour)))
		ok(f.t, r.RevokeToken("billing", "", time.Time{}, f.in(-time.Minute)))
		ok(f.t, r.RevokeToken("billing", "", time.Time{}, f.in(-2*time.Hour)))
		if found, err := r.Revoke(cert.Thumbprint, 0, f.in(-time.Minute)); err != nil || !found {
			f.t.Error(found, err)
		}
		found, err := r.Disable("payments")
		if err != nil || !found {
			f.t.Error(found, err)
		}
		return nil, nil
	}))
	list, upTo, err := f.Denials(f.ctx(), seen, 10)
	ok(f.t, err)
	if len(list) != 5 || list[0].TokenID != "before" || list[1].TokenID != "after" || list[2].ClientID != "billing" ||
		list[3].Thumbprint != mtls.Thumbprint(cert.Thumbprint) || list[4].ClientID != "payments" {
		f.t.Fatalf("%+v", list)
	}
	if upTo < list[4].Position {
		f.t.Errorf("%d is before %d", upTo, list[4].Position)
	}
	f.deny(1, tokens.Denial{TokenID: "next", Until: f.in(time.Hour)})
	list, _, err = f.Denials(f.ctx(), upTo, 10)
	ok(f.t, err)
	same(f.t, len(list), 1)
	checkStamps(f.t, f.Store)
}

// A record goes some time after nothing can use it any more, no other goes with it, and what
// is denied later comes behind it all the same.
func testPruneDenials(f *fixture) {
	prune := func(n int64) {
		f.t.Helper()
		got, err := f.PruneDenials(f.ctx(), f.clock.now())
		ok(f.t, err)
		same(f.t, got, n)
	}
	f.deny(2, tokens.Denial{TokenID: "long", Until: f.in(time.Hour)}, tokens.Denial{TokenID: "short", Until: f.in(time.Minute)})
	f.clock.advance(time.Minute + time.Second)
	prune(0)
	f.clock.advance(5 * time.Minute)
	prune(1)
	same(f.t, f.denials()[0].TokenID, "long")
	f.clock.advance(2 * time.Hour)
	prune(1)
	prune(0)
	same(f.t, len(f.denials()), 0)
	f.deny(1, tokens.Denial{TokenID: "new", Until: f.in(time.Hour)})
	list, upTo, err := f.Denials(f.ctx(), 2, 10)
	ok(f.t, err)
	same(f.t, len(list), 1)
	same(f.t, upTo, int64(3))
}

// A token that its client gives back is one row, however often, and so many of them are all that the client has.
func testRevokeToken(f *fixture) {
	revoke := func(client, token string, want TokenRevocation) {
		f.t.Helper()
		got, err := f.RevokeToken(f.ctx(), client, token, f.in(10*time.Minute))
		ok(f.t, err)
		same(f.t, got, want)
	}
	revoke("c", "t", RevokedOne)
	version, err := f.Version(f.ctx())
	ok(f.t, err)
	revoke("c", "t", RevokedBefore)
	f.clock.advance(time.Second)
	revoke("c", "t", RevokedBefore)
	again, err := f.Version(f.ctx())
	ok(f.t, err)
	same(f.t, again, version)
	same(f.t, f.count("denials"), 1)
	if until := f.denials()[0].Until; until.Before(f.in(10 * time.Minute)) {
		f.t.Errorf("it ends %v, before the token", until)
	}
	const together = 256 // a transaction has its time, also where all is slow
	for i := 0; i < maxGivenBack-1; i += together {
		ok(f.t, f.Transact(f.ctx(), func(tx *Store) error {
			for n := i; n < min(i+together, maxGivenBack-1); n++ {
				if _, err := tx.RevokeToken(f.ctx(), "c", fmt.Sprint("t", n), f.in(10*time.Minute)); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	revoke("d", "other", RevokedOne)
	revoke("c", "too many", RevokedAll)
	revoke("c", "t", RevokedBefore)
	list, _, err := f.Denials(f.ctx(), maxGivenBack+1, 10)
	ok(f.t, err)
	same(f.t, len(list), 1)
	same(f.t, list[0].ClientID, "c")
	if !list[0].IssuedBefore.After(f.clock.now()) {
		f.t.Errorf("tokens of now, %v, are not before %v", f.clock.now(), list[0].IssuedBefore)
	}
}

// Who follows is kept with the newest word of each, in one statement for many.
func testFollowers(f *fixture) {
	var list []Follower
	for i := range maxFollowerRows + 5 {
		list = append(list, Follower{ClientID: "c", Certificate: [32]byte{byte(i), byte(i >> 8), 1}, Address: "a", Position: int64(i), SeenAt: f.clock.now()})
	}
	ok(f.t, f.SaveFollowers(f.ctx(), list))
	same(f.t, f.count("followers"), len(list))
	one := list[7]
	one.Position, one.SeenAt = 1000, f.in(time.Minute)
	ok(f.t, f.SaveFollowers(f.ctx(), []Follower{one}))
	ok(f.t, f.SaveFollowers(f.ctx(), list[7:8]))
	got, err := f.Followers(f.ctx(), f.in(time.Second))
	ok(f.t, err)
	same(f.t, got, []Follower{one})
	ok(f.t, f.PruneFollowers(f.ctx(), f.in(time.Second)))
	same(f.t, f.count("followers"), 1)
	version, err := f.Version(f.ctx())
	ok(f.t, err)
	same(f.t, version, int64(0))
}
