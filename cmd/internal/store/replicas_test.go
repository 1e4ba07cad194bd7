// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

// What one replica changes, others follow in the order of the versions.
func testChangesSince(f *fixture) {
	t, ctx := f.t, f.ctx()
	var told []Change
	f.OnChange(func(c Change) { told = append(told, c) })
	since := func(version int64, limit int) []Change {
		t.Helper()
		list, err := f.ChangesSince(ctx, version, limit)
		ok(t, err)
		return list
	}
	same(t, len(since(0, 10)), 0)
	f.client("a", 1)
	f.enroll("a", 1, 1, 1)
	ok(t, f.PutKey(ctx, Key{ID: "k", Purpose: "signing", Private: []byte("private")}))
	ok(t, f.AddResource(ctx, Resource{URI: "urn:r"}))
	_, err := f.Revoke(ctx, Selection{ClientID: "a"}, keyCompromise, f.clock.now())
	ok(t, err)
	ok(t, f.DisableClient(ctx, "a"))
	same(t, since(0, 10), told)
	same(t, since(2, 2), told[2:4])
	same(t, len(since(6, 10)), 0)
	if !told[2].Keys || told[3].Keys || !told[4].Revoked || len(told[4].Blocked) != 1 {
		t.Errorf("told %+v", told)
	}
	var heard []Change
	f.OnChange(func(c Change) { heard = append(heard, c) })
	f.Announce(told[4])
	same(t, heard, told[4:5])

	// One that touched more than may be listed says that everything may have changed.
	for n, full := range map[int]bool{maxListed: false, maxListed + 1: true} {
		version, err := f.Version(ctx)
		ok(t, err)
		ok(t, f.change(ctx, func(c *change) error {
			for i := range n {
				c.changedClient(fmt.Sprint(i))
			}
			return s1(c.exec("clients", setClientDisabled, "a", n == maxListed, moment(f.clock.now())))
		}))
		list := since(version, 10)
		if len(list) != 1 || list[0].Full != full || full != (len(list[0].ClientIDs) == 0) || list[0].Version != version+1 {
			t.Errorf("of %d clients: %+v", n, list)
		}
	}

	// So do a gap, words that are not understood, and no memory at all.
	exec := func(statement string) {
		t.Helper()
		_, err := f.writer.ExecContext(ctx, statement)
		ok(t, err)
	}
	exec("UPDATE changes SET body = '[' WHERE version = 6")
	same(t, since(5, 1), []Change{{Full: true, Version: 6}})
	exec("DELETE FROM changes WHERE version = 3")
	same(t, since(1, 3), []Change{{Full: true, Version: 5}})
	same(t, since(2, 10), []Change{{Full: true, Version: 8}})
	same(t, since(3, 2), told[3:5])
	exec("DELETE FROM changes")
	same(t, since(3, 10), []Change{{Full: true, Version: 8}})
	same(t, len(since(8, 10)), 0)
}

// s1 drops the count of a statement.
func s1(_ int64, err error) error { return err }

// Old versions are forgotten, those that followers need are not.
func testChangesPruned(f *fixture) {
	_, err := f.writer.ExecContext(f.ctx(), "UPDATE state SET version = $1", int64(keptChanges+5))
	ok(f.t, err)
	for _, v := range []int64{1, 5, 6, 7} {
		_, err := f.writer.ExecContext(f.ctx(), insertChange, v, "{}")
		ok(f.t, err)
	}
	f.client("a", 1) // version keptChanges + 6
	same(f.t, f.count("changes"), 2)
}

func testLeases(f *fixture) {
	t, ctx := f.t, f.ctx()
	renew := func(incarnation uint64, applied int64) (Renewed, error) {
		return f.RenewLease(ctx, LeaseRenewal{Replica: "a", Incarnation: incarnation, Applied: applied})
	}
	lease := func() Lease {
		t.Helper()
		list, err := f.Leases(ctx)
		ok(t, err)
		if len(list) != 1 {
			t.Fatalf("leases are %+v", list)
		}
		return list[0]
	}
	_, err := renew(1, 0)
	want(t, err, ErrLeaseLost)
	ok(t, f.BeginLease(ctx, Lease{Replica: "a", Incarnation: 2, Applied: 1, Program: "v1", Address: "x:1"}))
	got := lease()
	if got.Incarnation != 2 || got.Renewals != 0 || got.Applied != 1 || got.Program != "v1" || got.Address != "x:1" || got.StartedAt.IsZero() || !got.RenewedAt.Equal(got.StartedAt) {
		t.Errorf("lease is %+v", got)
	}
	// Only a later incarnation takes it over.
	for _, incarnation := range []uint64{1, 2} {
		want(t, f.BeginLease(ctx, Lease{Replica: "a", Incarnation: incarnation}), ErrLeaseLost)
	}
	f.client("x", 1)
	for n := range int64(3) {
		renewed, err := renew(2, n)
		ok(t, err)
		if renewed.Version != 1 || renewed.Now.IsZero() {
			t.Errorf("renewed %+v", renewed)
		}
		if got := lease(); got.Renewals != n+1 || got.Applied != n || got.Incarnation != 2 {
			t.Errorf("lease is %+v", got)
		}
	}
	seen := lease()
	for _, incarnation := range []uint64{1, 3} {
		_, err := renew(incarnation, 9)
		want(t, err, ErrLeaseLost)
	}
	same(t, lease(), seen)

	// Seen unchanged for long it may go, but not when it was renewed meanwhile.
	_, err = renew(2, 3)
	ok(t, err)
	ok(t, f.ReapLease(ctx, seen))
	seen = lease()
	ok(t, f.BeginLease(ctx, Lease{Replica: "a", Incarnation: 3}))
	ok(t, f.ReapLease(ctx, seen))
	_, err = renew(2, 4)
	want(t, err, ErrLeaseLost) // taken over
	ok(t, f.EndLease(ctx, "a", 2))
	seen = lease()
	same(t, []any{seen.Incarnation, seen.Renewals}, []any{uint64(3), int64(0)})
	ok(t, f.ReapLease(ctx, seen))
	_, err = renew(3, 4)
	want(t, err, ErrLeaseLost)
	ok(t, f.BeginLease(ctx, Lease{Replica: "a", Incarnation: 4}))
	ok(t, f.BeginLease(ctx, Lease{Replica: "b", Incarnation: 1}))
	ok(t, f.EndLease(ctx, "a", 4))
	same(t, lease().Replica, "b")
	version, err := f.Version(ctx)
	ok(t, err)
	same(t, version, int64(1)) // leases decide nothing
}

// The head of a journal rides in the renewal of the lease, and only grows.
func testHeads(f *fixture) {
	t, ctx := f.t, f.ctx()
	ok(t, f.BeginJournal(ctx, Journal{Replica: "a", Incarnation: 1, FirstKey: "k", StartedAt: f.clock.now()}))
	ok(t, f.BeginLease(ctx, Lease{Replica: "a", Incarnation: 1}))
	for _, test := range []struct {
		seq   uint64
		chain int
		want  uint64
	}{{0, 0, 0}, {5, 5, 5}, {3, 3, 5}, {5, 6, 5}, {0, 0, 5}, {6, 6, 6}} {
		r := LeaseRenewal{Replica: "a", Incarnation: 1, HeadSeq: test.seq}
		if test.seq > 0 {
			r.HeadChain = keyOf(test.chain)
		}
		_, err := f.RenewLease(ctx, r)
		ok(t, err)
		got, err := f.LastJournal(ctx, "a")
		ok(t, err)
		chain := [32]byte{}
		if test.want > 0 {
			chain = keyOf(int(test.want))
		}
		if got.HeadSeq != test.want || got.HeadChain != chain || got.HeadAt.IsZero() != (test.want == 0) {
			t.Errorf("after head %d the journal stands at %d, %x", test.seq, got.HeadSeq, got.HeadChain)
		}
	}
	// Nor does the database let anybody else take one back.
	for _, statement := range []string{"UPDATE journals SET head_seq = 5", "UPDATE journals SET head_chain = first_key", "UPDATE journals SET head_chain = NULL",
		"UPDATE journals SET head_seq = 0, head_chain = NULL"} {
		if statement == "UPDATE journals SET head_chain = first_key" && f.Dialect() == "postgres" {
			statement = "UPDATE journals SET head_chain = first_key::bytea"
		}
		if _, err := f.writer.ExecContext(ctx, statement); err == nil {
			t.Errorf("%s was done", statement)
		}
	}
	got, err := f.LastJournal(ctx, "a")
	ok(t, err)
	same(t, []any{got.HeadSeq, got.HeadChain}, []any{uint64(6), keyOf(6)})
}

// What a replica could not write into its journal before it went passes to another.
func testAdoptOutbox(f *fixture) {
	t, ctx := f.t, f.ctx()
	for _, replica := range []string{"a", "b", "c"} {
		f.replica = replica
		ok(t, f.addNoted(replica, replica+"1", replica+"2"))
	}
	ids := func() (out []string) {
		t.Helper()
		list, err := f.Outbox(ctx, 100)
		ok(t, err)
		for _, e := range list {
			out = append(out, e.ID)
		}
		return out
	}
	ok(t, f.BeginLease(ctx, Lease{Replica: "a", Incarnation: 1}))
	same(t, ids(), []string{"c1", "c2"})
	n, err := f.AdoptOutbox(ctx)
	ok(t, err)
	same(t, n, int64(2))
	same(t, ids(), []string{"b1", "b2", "c1", "c2"})
	n, err = f.AdoptOutbox(ctx)
	ok(t, err)
	same(t, n, int64(0))
	f.replica = "a"
	same(t, ids(), []string{"a1", "a2"})
	ok(t, f.EndLease(ctx, "a", 1))
	f.replica = "c"
	n, err = f.AdoptOutbox(ctx)
	ok(t, err)
	same(t, n, int64(2))
	n, _, err = f.Waiting(ctx)
	ok(t, err)
	same(t, n, int64(6))
	checkStamps(t, f.Store)
}

// A text that the database could not hold is one that it does not hold.
func testOddTexts(f *fixture) {
	t, ctx := f.t, f.ctx()
	for _, text := range []string{"a\x00b", "\x00", "\xff", "a\xc3"} {
		_, err := f.Client(ctx, text)
		want(t, err, ErrNotFound)
		_, err = f.Resource(ctx, text)
		want(t, err, ErrNotFound)
		_, err = f.Trust(ctx, text)
		want(t, err, ErrNotFound)
		_, err = f.CertificateBySerial(ctx, text)
		want(t, err, ErrNotFound)
		_, err = f.TakePending(ctx, text, "x")
		want(t, err, ErrNotFound)
		want(t, f.DisableClient(ctx, text), ErrNotFound)
		if _, err := f.AddClient(ctx, Client{ID: text}, nil); err == nil {
			t.Errorf("a client %q was added", text)
		}
	}
	_, err := f.AddClient(ctx, Client{ID: "é-\u202e'\"\\%_"}, nil)
	ok(t, err)
}

// Lists have one order, whatever language the database speaks.
func testOrder(f *fixture) {
	ids := []string{"B", "Z", "_", "a", "a-b", "a.b", "aB", "ab", "b", "z", "ä"}
	for _, i := range []int{3, 10, 0, 7, 5, 1, 9, 2, 4, 8, 6} {
		ok(f.t, f.add(Client{ID: ids[i]}))
		ok(f.t, f.AddResource(f.ctx(), Resource{URI: ids[i]}))
	}
	var got, uris []string
	for after := ""; ; after = got[len(got)-1] {
		page, err := f.Clients(f.ctx(), after, 2)
		ok(f.t, err)
		if len(page) == 0 {
			break
		}
		for _, c := range page {
			got = append(got, c.ID)
		}
	}
	same(f.t, got, ids)
	resources, err := f.Resources(f.ctx())
	ok(f.t, err)
	for _, r := range resources {
		uris = append(uris, r.URI)
	}
	same(f.t, uris, ids)
}

// A pair of Stores works on one database, as two replicas do. Their clocks are one.
type pair struct {
	*fixture
	other *Store
}

// both runs f on either Store at once, and returns what each said.
func (p *pair) both(f func(s *Store, n int) error) [2]error {
	var errs [2]error
	var wg sync.WaitGroup
	for n, s := range []*Store{p.Store, p.other} {
		wg.Go(func() { errs[n] = f(s, n) })
	}
	wg.Wait()
	return errs
}

// oneOf checks that one of the two succeeded, and the other was refused with an error.
func (p *pair) oneOf(errs [2]error, refusal error) {
	p.t.Helper()
	if (errs[0] == nil) == (errs[1] == nil) || !errors.Is(errors.Join(errs[:]...), refusal) {
		p.t.Errorf("errors are %v, want one %v", errs, refusal)
	}
}

// TestTwoReplicas has each rule judged by two replicas at once.
func TestTwoReplicas(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		run  func(p *pair, round int)
	}{
		{"last grantor", pairLastGrantor},
		{"one code, one key", pairCode},
		{"names", pairNames},
		{"resource in use", pairResource},
		{"trust in use", pairTrust},
		{"revoke while renewing", pairRevoke},
		{"one key, one client", pairKey},
		{"settings", pairSettings},
		{"confirmations", pairPending},
		{"adopted outbox", pairOutbox},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			url := pgDatabase(t)
			f := newFixture(t, func(t *testing.T, now func() time.Time) *Store { return openURL(t, url, now) })
			p := &pair{f, openURL(t, url, f.clock.now)}
			var mu sync.Mutex
			versions := make(map[int64]int)
			for _, s := range []*Store{p.Store, p.other} {
				last := int64(0)
				s.OnChange(func(c Change) {
					mu.Lock()
					defer mu.Unlock()
					if c.Version == 0 {
						return // of what has no version
					}
					versions[c.Version]++
					if c.Version <= last {
						t.Errorf("version %d was told after %d", c.Version, last)
					}
					last = c.Version
				})
			}
			for round := range 15 {
				test.run(p, round)
			}
			// Each version is one transaction's, of one of the two.
			newest, err := p.Version(t.Context())
			ok(t, err)
			for v := int64(1); v <= newest; v++ {
				if versions[v] != 1 {
					t.Errorf("version %d was made %d times", v, versions[v])
				}
			}
			list, err := p.ChangesSince(t.Context(), 0, 10_000)
			ok(t, err)
			if len(list) != int(newest) || len(list) > 0 && list[0].Full {
				t.Errorf("%d changes until version %d", len(list), newest)
			}
			checkStamps(t, p.Store)
		})
	}
}

func pairLastGrantor(p *pair, round int) {
	ids := [2]string{fmt.Sprint("g", round, "-0"), fmt.Sprint("g", round, "-1")}
	for i, id := range ids {
		_, err := p.AddClient(p.ctx(), Client{ID: id, Scopes: []string{scopeGrant}}, nil)
		ok(p.t, err)
		ok(p.t, p.AddCertificate(p.ctx(), p.cert(id, 1, 2*round+i)))
	}
	// The one that the round before left.
	clients, err := p.Clients(p.ctx(), "", 100)
	ok(p.t, err)
	for _, c := range clients {
		if !slices.Contains(ids[:], c.ID) && !c.Disabled {
			ok(p.t, p.DisableClient(p.ctx(), c.ID))
		}
	}
	errs := p.both(func(s *Store, n int) error {
		if round%2 == 0 {
			return s.DisableClient(p.ctx(), ids[n])
		}
		return s.RemoveClient(p.ctx(), ids[n])
	})
	p.oneOf(errs, ErrLastGrantor)
	n, err := p.Grantors(p.ctx())
	ok(p.t, err)
	same(p.t, n, 1)
}

func pairCode(p *pair, round int) {
	id := fmt.Sprint("c", round)
	p.client(id, byte(round))
	certs := [2]Certificate{p.cert(id, 1, 2*round), p.cert(id, 1, 2*round+1)}
	errs := p.both(func(s *Store, n int) error {
		_, err := s.Redeem(p.ctx(), codeIDOf(byte(round)), certs[n].KeyHash, certs[n], "192.0.2.7", p.clock.now())
		return err
	})
	p.oneOf(errs, ErrCodeUsed)
	list, err := p.Certificates(p.ctx(), id, "", 10)
	ok(p.t, err)
	same(p.t, len(list), 1)
}

func pairNames(p *pair, round int) {
	p.oneOf(p.both(func(s *Store, n int) error {
		_, err := s.AddClient(p.ctx(), Client{ID: fmt.Sprint("n", round, "-", n), DNS: []string{fmt.Sprint("n", round, ".example")}}, nil)
		return err
	}), ErrNameTaken)
	p.oneOf(p.both(func(s *Store, n int) error {
		_, err := s.AddClient(p.ctx(), Client{ID: fmt.Sprint("same", round)}, nil)
		return err
	}), ErrExists)
}

func pairResource(p *pair, round int) {
	uri := fmt.Sprint("urn:r", round)
	ok(p.t, p.AddResource(p.ctx(), Resource{URI: uri, Scopes: []string{uri}}))
	errs := p.both(func(s *Store, n int) error {
		if n == 0 {
			return s.RemoveResource(p.ctx(), uri)
		}
		// As the operators' API adds a client: what it names must be there.
		return s.Transact(p.ctx(), func(tx *Store) error {
			if _, err := tx.Resource(p.ctx(), uri); err != nil {
				return err
			}
			_, err := tx.AddClient(p.ctx(), Client{ID: fmt.Sprint("r", round), Resources: []string{uri}, Scopes: []string{uri}}, nil)
			return err
		})
	})
	if errs[0] == nil {
		want(p.t, errs[1], ErrNotFound)
	} else {
		want(p.t, errs[0], ErrInUse)
		ok(p.t, errs[1])
	}
}

func pairTrust(p *pair, round int) {
	name := fmt.Sprint("t", round)
	p.trust(name)
	errs := p.both(func(s *Store, n int) error {
		if n == 0 {
			return s.RemoveTrust(p.ctx(), name)
		}
		_, err := s.AddClient(p.ctx(), foreign(fmt.Sprint("t", round), name, "tls_client_auth_san_dns", "x.example"), nil)
		return err
	})
	if errs[0] == nil {
		want(p.t, errs[1], ErrUnknownTrust)
	} else {
		want(p.t, errs[0], ErrInUse)
		ok(p.t, errs[1])
	}
}

func pairRevoke(p *pair, round int) {
	id := fmt.Sprint("c", round)
	p.client(id, byte(round))
	parent := p.enroll(id, 1, byte(round), 2*round)
	child := p.cert(id, 1, 2*round+1)
	errs := p.both(func(s *Store, n int) error {
		if n == 0 {
			_, err := s.Revoke(p.ctx(), Selection{Thumbprints: [][32]byte{parent.Thumbprint}}, 0, p.clock.now())
			return err
		}
		_, err := s.AddRenewal(p.ctx(), parent.Thumbprint, child, false, p.clock.now())
		return err
	})
	ok(p.t, errs[0])
	if errs[1] != nil {
		want(p.t, errs[1], ErrRevoked)
	}
	list, err := p.Certificates(p.ctx(), id, "", 10)
	ok(p.t, err)
	for _, c := range list {
		if c.RevokedAt.IsZero() {
			p.t.Errorf("round %d: a certificate outlived its ancestor's revocation", round)
		}
	}
}

func pairKey(p *pair, round int) {
	ids := [2]string{fmt.Sprint("k", round, "-0"), fmt.Sprint("k", round, "-1")}
	for i, id := range ids {
		p.client(id, byte(2*round+i))
	}
	certs := [2]Certificate{p.cert(ids[0], 1, round), p.cert(ids[1], 1, round)}
	p.oneOf(p.both(func(s *Store, n int) error {
		_, err := s.Redeem(p.ctx(), codeIDOf(byte(2*round+n)), certs[n].KeyHash, certs[n], "192.0.2.7", p.clock.now())
		return err
	}), ErrKeyTaken)
}

func pairSettings(p *pair, round int) {
	var got [2]string
	var keys [2][]byte
	name := fmt.Sprint("s", round)
	errs := p.both(func(s *Store, n int) (err error) {
		got[n], err = s.SetOnce(p.ctx(), name, fmt.Sprint(n))
		if err == nil {
			keys[n], err = s.AuditSubject(p.ctx(), name)
		}
		return err
	})
	ok(p.t, errors.Join(errs[:]...))
	same(p.t, got[0], got[1])
	same(p.t, keys[0], keys[1])
	var numbers [2]int64
	errs = p.both(func(s *Store, n int) (err error) {
		numbers[n], err = s.NextCRLNumber(p.ctx())
		return err
	})
	ok(p.t, errors.Join(errs[:]...))
	if slices.Sort(numbers[:]); numbers != [2]int64{int64(2*round + 1), int64(2*round + 2)} {
		p.t.Errorf("numbers are %v", numbers)
	}
}

func pairPending(p *pair, round int) {
	request := p.ask("somebody")
	p.oneOf(p.both(func(s *Store, n int) error {
		_, err := s.TakePending(p.ctx(), request.ID, fmt.Sprint("other", n))
		return err
	}), ErrNotFound)
}

func pairOutbox(p *pair, round int) {
	p.replica, p.other.replica = "gone", "gone"
	ok(p.t, p.addNoted(fmt.Sprint("c", round), fmt.Sprint("e", round)))
	p.replica, p.other.replica = "a", "b"
	for i, s := range []*Store{p.Store, p.other} {
		if round == 0 {
			ok(p.t, s.BeginLease(p.ctx(), Lease{Replica: []string{"a", "b"}[i], Incarnation: 1}))
		}
	}
	var adopted [2]int64
	errs := p.both(func(s *Store, n int) (err error) {
		adopted[n], err = s.AdoptOutbox(p.ctx())
		return err
	})
	ok(p.t, errors.Join(errs[:]...))
	same(p.t, adopted[0]+adopted[1], int64(1))
}
