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
