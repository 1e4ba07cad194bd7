// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import "time"

func (f *fixture) grantors(want int) {
	f.t.Helper()
	n, err := f.Grantors(f.ctx())
	ok(f.t, err)
	same(f.t, n, want)
}

// Whoever cannot ask for a token now can give nothing.
func testGrantors(f *fixture) {
	f.grantors(0)
	ok(f.t, f.add(Client{ID: "admin", Scopes: []string{scopeAdmin}}))
	f.grantors(0) // never enrolled
	cert := f.cert("admin", 1, 1)
	ok(f.t, f.AddCertificate(f.ctx(), cert))
	f.grantors(1)
	ok(f.t, f.add(Client{ID: "reader", Scopes: []string{"certbound:read"}}))
	ok(f.t, f.AddCertificate(f.ctx(), f.cert("reader", 1, 2)))
	ok(f.t, f.add(Client{ID: "server", Usage: "server", Scopes: []string{scopeGrant}}))
	ok(f.t, f.AddCertificate(f.ctx(), f.cert("server", 1, 3)))
	ok(f.t, f.add(Client{ID: "later", Scopes: []string{scopeGrant}}))
	later := f.cert("later", 1, 4)
	later.NotBefore = f.in(time.Second)
	ok(f.t, f.AddCertificate(f.ctx(), later))
	f.grantors(1)
	f.clock.advance(time.Second)
	f.grantors(2)
	ok(f.t, f.DisableClient(f.ctx(), "later"))
	f.grantors(1)
	_, err := f.Revoke(f.ctx(), Selection{Serial: cert.Serial}, 0, f.clock.now()) // taking away always works
	ok(f.t, err)
	f.grantors(0)
	ok(f.t, f.EnableClient(f.ctx(), "later"))
	f.clock.advance(24 * time.Hour)
	f.grantors(0)
}

// A registered certificate counts while it is valid, and the last valid one of the last grantor stays.
func testPinnedGrantor(f *fixture) {
	key := newOwnKey(f.t)
	short, next := key.certOf(f.t, 1, start, start.Add(time.Hour)), key.certOf(f.t, 2, start.Add(time.Hour), start.AddDate(1, 0, 0))
	own := selfSigned("own", short)
	own.Scopes = []string{scopeGrant}
	ok(f.t, f.add(own))
	f.grantors(1)
	want(f.t, f.SetClientCertificates(f.ctx(), "own", [][]byte{next}), ErrLastGrantor)
	got, err := f.Client(f.ctx(), "own")
	ok(f.t, err)
	same(f.t, got.Certificates, [][]byte{short})
	ok(f.t, f.SetClientCertificates(f.ctx(), "own", [][]byte{short, next}))
	f.clock.advance(time.Hour)
	f.grantors(1)
	want(f.t, f.SetClientCertificates(f.ctx(), "own", [][]byte{short}), ErrLastGrantor)
	ok(f.t, f.SetClientCertificates(f.ctx(), "own", [][]byte{next}))

	ok(f.t, f.add(Client{ID: "admin", Scopes: []string{scopeAdmin}}))
	ok(f.t, f.AddCertificate(f.ctx(), f.cert("admin", 1, 1)))
	ok(f.t, f.SetClientCertificates(f.ctx(), "own", [][]byte{short})) // there is another one
	f.grantors(1)
	want(f.t, f.DisableClient(f.ctx(), "admin"), ErrLastGrantor) // the registered one has lapsed
	want(f.t, f.RemoveClient(f.ctx(), "admin"), ErrLastGrantor)
	ok(f.t, f.SetClientCertificates(f.ctx(), "own", [][]byte{next}))
	ok(f.t, f.RemoveClient(f.ctx(), "admin"))
	f.clock.advance(366 * 24 * time.Hour)
	f.grantors(0)
	ok(f.t, f.SetClientCertificates(f.ctx(), "own", [][]byte{short})) // nothing is lost
}

func (f *fixture) restore(n byte, scopes ...string) (Client, error) {
	f.t.Helper()
	return f.RestoreOperator(f.ctx(), Client{ID: "operator", Usage: "client", Scopes: scopes, DNS: []string{"op.example"}}, *f.code(n))
}

// Break-glass makes the first operator anew, and only when nobody else can.
func testRestoreOperator(f *fixture) {
	ok(f.t, f.add(Client{ID: "operator", Scopes: []string{scopeAdmin}, BuiltIn: true}))
	ok(f.t, f.AddCertificate(f.ctx(), f.cert("operator", 1, 1)))
	_, err := f.restore(1, scopeAdmin)
	want(f.t, err, ErrGrantorLeft)
	ok(f.t, f.add(Client{ID: "mallory", Scopes: []string{scopeGrant}}))
	ok(f.t, f.AddCertificate(f.ctx(), f.cert("mallory", 1, 2)))
	ok(f.t, f.RemoveClient(f.ctx(), "operator"))
	_, err = f.restore(1, scopeAdmin)
	want(f.t, err, ErrGrantorLeft)
	_, err = f.Revoke(f.ctx(), Selection{ClientID: "mallory"}, 0, f.clock.now())
	ok(f.t, err)
	ok(f.t, f.add(Client{ID: "holder", DNS: []string{"op.example"}}))
	_, err = f.restore(1, scopeAdmin)
	want(f.t, err, ErrNameTaken)
	_, err = f.Code(f.ctx(), codeIDOf(1))
	want(f.t, err, ErrNotFound) // a refusal leaves nothing
	ok(f.t, f.RemoveClient(f.ctx(), "holder"))
	for _, bad := range []Client{
		{ID: "operator"}, {ID: "operator", Scopes: []string{"certbound:read"}}, {Scopes: []string{scopeAdmin}},
		{ID: "operator", Scopes: []string{scopeAdmin}, AuthMethod: methodSelfSigned, Certificates: [][]byte{newOwnKey(f.t).cert(f.t, 1)}},
	} {
		if _, err := f.RestoreOperator(f.ctx(), bad, *f.code(1)); err == nil {
			f.t.Errorf("%+v was registered", bad)
		}
	}
	restored, err := f.restore(1, scopeAdmin) // at once, though its id is reserved
	ok(f.t, err)
	got, err := f.Client(f.ctx(), "operator")
	ok(f.t, err)
	same(f.t, got, restored)
	same(f.t, got.Generation, uint64(2))
	same(f.t, got.BuiltIn, true)
	f.grantors(0)
	f.enroll("operator", 2, 1, 3)
	f.grantors(1)
	_, err = f.restore(2, scopeAdmin)
	want(f.t, err, ErrGrantorLeft)
}

// Who is restored is only who redeems the new code: an operator that was disabled had perhaps been robbed.
func testRestoreDisabled(f *fixture) {
	code := f.code(1)
	_, err := f.AddClient(f.ctx(), Client{ID: "operator", Scopes: []string{scopeAdmin}, BuiltIn: true}, code)
	ok(f.t, err)
	stolen := f.enroll("operator", 1, 1, 1)
	ok(f.t, f.add(Client{ID: "mallory", Scopes: []string{scopeGrant}}))
	ok(f.t, f.AddCertificate(f.ctx(), f.cert("mallory", 1, 2)))
	ok(f.t, f.DisableClient(f.ctx(), "operator"))
	_, err = f.Revoke(f.ctx(), Selection{ClientID: "mallory"}, 0, f.clock.now())
	ok(f.t, err)
	var last Change
	f.OnChange(func(c Change) { last = c })
	f.clock.advance(time.Minute)
	restored, err := f.restore(2, scopeGrant) // it stays what it was
	ok(f.t, err)
	same(f.t, last, Change{ClientIDs: []string{"operator"}, Thumbprints: [][32]byte{stolen.Thumbprint}, Revoked: true, Denials: true, Version: last.Version})
	got, err := f.Client(f.ctx(), "operator")
	ok(f.t, err)
	same(f.t, got, restored)
	same(f.t, got.Scopes, []string{scopeAdmin})
	same(f.t, got.Disabled, false)
	f.grantors(0)
	_, err = f.restore(3, scopeAdmin) // the answer was lost: once more
	ok(f.t, err)
	lost, err := f.Code(f.ctx(), codeIDOf(2))
	ok(f.t, err)
	same(f.t, lost.Void, true)
	f.enroll("operator", 1, 3, 4)
	f.grantors(1)
	checkStamps(f.t, f.Store)

	ok(f.t, f.EnableClient(f.ctx(), "mallory"))
	_, err = f.Revoke(f.ctx(), Selection{ClientID: "operator"}, 0, f.clock.now())
	ok(f.t, err)
	_, err = f.RestoreOperator(f.ctx(), Client{ID: "mallory", Scopes: []string{scopeAdmin}}, *f.code(4))
	want(f.t, err, ErrExists) // not built in
}
