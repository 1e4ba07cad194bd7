// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import "time"

// fork renews and checks beside which serial number, or "", the new certificate stands.
func (f *fixture) fork(parent, cert Certificate, suspend bool, sibling string) Renewal {
	f.t.Helper()
	renewal, err := f.AddRenewal(f.ctx(), parent.Thumbprint, cert, suspend, f.clock.now())
	ok(f.t, err)
	got := ""
	if renewal.Fork != nil {
		cert, err := f.Certificate(f.ctx(), renewal.Fork.Sibling)
		ok(f.t, err)
		got = cert.Serial
	}
	same(f.t, got, sibling)
	return renewal
}

// Two live children of one parent with different keys: somebody else holds what the client was given.
func testForks(f *fixture) {
	f.client("payments", 1)
	root := f.enroll("payments", 1, 1, 1)
	cert := func(key int) Certificate { return f.cert("payments", 1, key) }
	left := f.fork(root, cert(2), false, "").Certificate // 2
	f.fork(root, cert(2), false, "")                     // the same again
	f.fork(left, cert(3), false, "")                     // 4: a grandchild
	f.enrolled("billing")                                // 5
	right := cert(4)                                     // 6
	right.NotAfter = f.in(time.Hour)
	forked := f.fork(root, right, false, "2")
	same(f.t, *forked.Fork, Fork{Sibling: left.Thumbprint})
	same(f.t, forked.Suspended, false)
	same(f.t, forked.Certificate.Serial, "6")
	client, err := f.Client(f.ctx(), "payments")
	ok(f.t, err)
	same(f.t, client.Disabled, false)                                  // it was not asked for
	same(f.t, f.fork(root, cert(4), true, "").Certificate.Serial, "6") // the repetition finds it, and is no second one
	same(f.t, f.disabled("payments"), false)
	checkStamps(f.t, f.Store)
	_, err = f.Revoke(f.ctx(), Selection{Serial: left.Serial}, 0, f.clock.now())
	ok(f.t, err)
	f.clock.advance(time.Hour + time.Second)
	f.fork(root, cert(5), false, "") // 8: the others are revoked or have expired
}

func (f *fixture) enrolled(id string) {
	f.t.Helper()
	ok(f.t, f.add(Client{ID: id}))
	ok(f.t, f.AddCertificate(f.ctx(), f.cert(id, 1, 77)))
}

// Suspension is one with the renewal, and it is not claimed where it did not happen.
func testSuspendingForks(f *fixture) {
	fork := func(root Certificate, key int, sibling string) Renewal {
		f.t.Helper()
		return f.fork(root, f.cert(root.ClientID, 1, key), true, sibling)
	}
	_, err := f.AddClient(f.ctx(), Client{ID: "admin", Scopes: []string{scopeAdmin}}, f.code(1))
	ok(f.t, err)
	root := f.enroll("admin", 1, 1, 1)
	same(f.t, fork(root, 2, "").Suspended, false) // 2
	last := fork(root, 3, "2")                    // the last one who can grant
	same(f.t, last.Suspended, false)
	same(f.t, last.Fork.Suspension, SuspensionLastGrantor)
	same(f.t, f.disabled("admin"), false)

	f.client("payments", 2)
	ok(f.t, f.Invite(f.ctx(), "payments", *f.code(3)))
	root = f.enroll("payments", 1, 3, 4)
	ok(f.t, f.Invite(f.ctx(), "payments", *f.code(4)))
	var told Change
	f.OnChange(func(c Change) { told = c })
	f.clock.advance(time.Second)
	first := fork(root, 5, "")
	same(f.t, first.Suspended, false)
	same(f.t, told.ClientIDs, []string(nil))
	done := fork(root, 6, first.Certificate.Serial)
	same(f.t, done.Suspended, true)
	same(f.t, done.Fork.Suspension, SuspensionDone)
	same(f.t, told.ClientIDs, []string{"payments"})
	same(f.t, f.disabled("payments"), true)
	code, err := f.Code(f.ctx(), codeIDOf(4))
	ok(f.t, err)
	same(f.t, code.Void, true)
	_, err = f.addRenewal(root.Thumbprint, f.cert("payments", 1, 6))
	want(f.t, err, ErrClientDisabled)
}
