// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import "time"

// forks lists the serial numbers of the later children, and of their siblings.
func (f *fixture) forks(want ...string) {
	f.t.Helper()
	list, err := f.Forks(f.ctx())
	ok(f.t, err)
	var got []string
	for _, fork := range list {
		sibling, err := f.Certificate(f.ctx(), fork.Sibling)
		ok(f.t, err)
		got = append(got, fork.Certificate.Serial+" beside "+sibling.Serial)
	}
	same(f.t, got, want)
}

// Two live children of one parent with different keys: somebody else holds what the client was given. It stays on the
// list, whatever fails, until somebody says that it was reported.
func testForks(f *fixture) {
	f.client("payments", 1)
	root := f.enroll("payments", 1, 1, 1)
	left := f.renew(root, 2) // 2
	f.renew(root, 2)         // the same again
	f.renew(left, 3)         // 4: a grandchild
	f.enrolled("billing")    // 5
	f.forks()
	right := f.cert("payments", 1, 4) // 6
	right.NotAfter = f.in(time.Hour)
	right, err := f.addRenewal(root.Thumbprint, right)
	ok(f.t, err)
	f.forks("6 beside 2")
	list, err := f.Forks(f.ctx())
	ok(f.t, err)
	same(f.t, list, []Fork{{Certificate: right, Sibling: left.Thumbprint, Address: "192.0.2.9", Correlation: "c9", At: f.clock.now()}})
	client, err := f.Client(f.ctx(), "payments")
	ok(f.t, err)
	same(f.t, client.Disabled, false) // it was not asked for
	same(f.t, f.renew(root, 4).Serial, "6")
	f.forks("6 beside 2") // the repetition finds it, and makes no second one
	checkStamps(f.t, f.Store)
	for range 2 {
		ok(f.t, f.DropFork(f.ctx(), right.Thumbprint))
		f.forks()
	}
	_, err = f.Revoke(f.ctx(), Selection{Serial: left.Serial}, 0, f.clock.now())
	ok(f.t, err)
	f.clock.advance(time.Hour + time.Second)
	f.renew(root, 5) // 9: the others are revoked or have expired
	f.forks()
}

func (f *fixture) enrolled(id string) {
	f.t.Helper()
	ok(f.t, f.add(Client{ID: id}))
	ok(f.t, f.AddCertificate(f.ctx(), f.cert(id, 1, 77)))
}

// Suspension is one with the renewal, and it is not claimed where it did not happen.
func testSuspendingForks(f *fixture) {
	by := Renewer{Suspend: true}
	fork := func(root Certificate, key int) Renewal {
		f.t.Helper()
		renewal, err := f.AddRenewal(f.ctx(), root.Thumbprint, f.cert(root.ClientID, 1, key), by, f.clock.now())
		ok(f.t, err)
		return renewal
	}
	suspensions := func(want ...Suspension) {
		f.t.Helper()
		list, err := f.Forks(f.ctx())
		ok(f.t, err)
		var got []Suspension
		for _, fork := range list {
			got = append(got, fork.Suspension)
		}
		same(f.t, got, want)
	}
	_, err := f.AddClient(f.ctx(), Client{ID: "admin", Scopes: []string{scopeAdmin}}, f.code(1))
	ok(f.t, err)
	root := f.enroll("admin", 1, 1, 1)
	same(f.t, fork(root, 2).Suspended, false)
	same(f.t, fork(root, 3).Suspended, false) // the last one who can grant
	same(f.t, f.disabled("admin"), false)
	suspensions(SuspensionLastGrantor)

	f.client("payments", 2)
	ok(f.t, f.Invite(f.ctx(), "payments", *f.code(3)))
	root = f.enroll("payments", 1, 3, 4)
	ok(f.t, f.Invite(f.ctx(), "payments", *f.code(4)))
	var last Change
	f.OnChange(func(c Change) { last = c })
	f.clock.advance(time.Second)
	same(f.t, fork(root, 5).Suspended, false)
	same(f.t, last.ClientIDs, []string(nil))
	same(f.t, fork(root, 6).Suspended, true)
	same(f.t, last.ClientIDs, []string{"payments"})
	same(f.t, f.disabled("payments"), true)
	suspensions(SuspensionLastGrantor, SuspensionDone)
	code, err := f.Code(f.ctx(), codeIDOf(4))
	ok(f.t, err)
	same(f.t, code.Void, true)
	_, err = f.addRenewal(root.Thumbprint, f.cert("payments", 1, 6))
	want(f.t, err, ErrClientDisabled)
	suspensions(SuspensionLastGrantor, SuspensionDone)
}
