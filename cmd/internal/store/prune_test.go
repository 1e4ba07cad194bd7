// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import "time"

// drop drops all that expired before a time and returns the serial numbers that are left, the oldest first.
func (f *fixture) drop(before time.Time) (left []string) {
	f.t.Helper()
	f.dropAll(before, 1, 100, time.Hour)
	certs, err := f.Certificates(f.ctx(), "", "", 1000)
	ok(f.t, err)
	for _, c := range certs {
		left = append(left, c.Serial)
	}
	return left
}

// dropAll walks in windows and batches, and returns how many each batch dropped.
func (f *fixture) dropAll(before time.Time, window, batch int, atMost time.Duration) (dropped []int) {
	f.t.Helper()
	walk := f.Expired(before)
	walk.window = window
	for more := true; more; {
		if len(dropped) > 1000 {
			f.t.Fatal("the walk does not end")
		}
		var list [][32]byte
		var err error
		list, more, err = walk.Next(f.ctx(), batch)
		ok(f.t, err)
		if len(list) > batch {
			f.t.Fatalf("%d were found, %d were asked for", len(list), batch)
		}
		if len(list) == 0 {
			continue
		}
		n, err := f.DropExpired(f.ctx(), list, before, atMost)
		ok(f.t, err)
		dropped = append(dropped, n)
	}
	return dropped
}

// A renewed certificate goes some time after it expired; who revokes the first one of a family still takes the last.
func testExpired(f *fixture) {
	f.client("payments", 1)
	last := f.enroll("payments", 1, 1, 1) // 1
	for range 4 {                         // 2 to 5, one every twelve hours
		f.clock.advance(12 * time.Hour)
		last = f.renew(last, 1)
	}
	same(f.t, f.drop(last.NotAfter.Add(-12*time.Hour)), []string{"1", "4", "5"}) // 4 expires at that instant, and not before it
	checkStamps(f.t, f.Store)
	four, err := f.CertificateBySerial(f.ctx(), "4")
	ok(f.t, err)
	first, err := f.CertificateBySerial(f.ctx(), "1")
	ok(f.t, err)
	same(f.t, four.RenewedFrom, first.Thumbprint)
	five, err := f.Certificate(f.ctx(), last.Thumbprint)
	ok(f.t, err)
	same(f.t, five.RenewedFrom, four.Thumbprint)
	f.clock.advance(time.Hour)
	same(f.t, f.renew(last, 1).Serial, "6") // nothing of that concerns the living
	revoked, err := f.Revoke(f.ctx(), Selection{Thumbprints: [][32]byte{first.Thumbprint}}, 0, f.clock.now())
	ok(f.t, err)
	same(f.t, serials(revoked.Revoked), []string{"1", "4", "5", "6"})

	var told [][32]byte
	f.OnChange(func(c Change) { told = append(told, c.Thumbprints...) })
	f.clock.advance(48 * time.Hour)
	same(f.t, f.drop(f.clock.now()), []string{"1", "6"}) // revoked or not
	same(f.t, told, [][32]byte{four.Thumbprint, five.Thumbprint})
	_, err = f.Certificate(f.ctx(), five.Thumbprint)
	want(f.t, err, ErrNotFound)
}

// No transaction holds others up for long, and every row is found, also where many expired in one instant.
func testExpiredBounded(f *fixture) {
	f.client("payments", 1)
	first := f.enroll("payments", 1, 1, 1)
	for i := range 9 {
		f.renew(first, 10+i)
	}
	f.clock.advance(time.Hour)
	f.renew(first, 50)
	end := f.in(48 * time.Hour)
	walk := f.Expired(end)
	list, _, err := walk.Next(f.ctx(), 100)
	ok(f.t, err)
	same(f.t, len(list), 9)
	n, err := f.DropExpired(f.ctx(), list, f.in(-time.Hour), time.Hour)
	ok(f.t, err)
	same(f.t, n, 0) // it is judged again
	n, err = f.DropExpired(f.ctx(), [][32]byte{first.Thumbprint, keyOf(99)}, end, time.Hour)
	ok(f.t, err)
	same(f.t, n, 0) // the first of a family, and one that there is not
	same(f.t, f.dropAll(end, 3, 2, 0), []int{1, 1, 1, 1, 1, 1, 1, 1, 1})
	same(f.t, f.count("certificates"), 2)
	same(f.t, f.dropAll(end, 3, 2, time.Hour), []int(nil))
}

// Whose a key is and until when an id is reserved is told by a client's newest certificate, blocked keys by themselves.
func testExpiredKept(f *fixture) {
	f.client("one", 1)
	f.client("two", 9)
	first := f.enroll("one", 1, 1, 1) // 1
	f.clock.advance(time.Hour)
	f.renew(first, 2) // 2
	ok(f.t, f.Invite(f.ctx(), "two", *f.code(2)))
	f.enroll("two", 1, 2, 3) // 3
	f.clock.advance(time.Minute)
	ok(f.t, f.Invite(f.ctx(), "two", *f.code(3)))
	f.enroll("two", 1, 3, 4) // 4: a family of its own
	_, err := f.Revoke(f.ctx(), Selection{Serial: "3"}, keyCompromise, f.clock.now())
	ok(f.t, err)
	f.clock.advance(240 * time.Hour)
	same(f.t, f.drop(f.clock.now()), []string{"1", "2", "4"})
	for key, owner := range map[int]string{1: "one", 2: "one", 3: "", 4: "two"} {
		got, err := f.KeyOwner(f.ctx(), keyOf(key))
		ok(f.t, err)
		same(f.t, got, owner)
	}
	blocked, err := f.KeyBlocked(f.ctx(), keyOf(3))
	ok(f.t, err)
	same(f.t, blocked, true)
}
