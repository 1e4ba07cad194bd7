// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"crypto/sha256"
	"slices"
	"time"
)

func thumbprintsOf(certs []Certificate) [][32]byte {
	var out [][32]byte
	for _, c := range certs {
		out = append(out, c.Thumbprint)
	}
	return out
}

// blocked checks which of the keys are blocked.
func (f *fixture) blocked(key [32]byte, isBlocked bool) {
	f.t.Helper()
	got, err := f.KeyBlocked(f.ctx(), key)
	ok(f.t, err)
	same(f.t, got, isBlocked)
	list, err := f.BlockedKeys(f.ctx())
	ok(f.t, err)
	same(f.t, slices.Contains(list, key), isBlocked)
}

func (f *fixture) disabled(id string) bool {
	f.t.Helper()
	client, err := f.Client(f.ctx(), id)
	ok(f.t, err)
	return client.Disabled
}

// Of clients that our CA does not vouch for, revocation takes away what it can, or says that it cannot: also from the
// last grantor.
func testRevokeOthers(f *fixture) {
	f.trust("partner")
	one, two := newOwnKey(f.t), newOwnKey(f.t)
	certs := [][]byte{one.cert(f.t, 1), two.cert(f.t, 2)}
	own := selfSigned("own", certs...)
	own.Scopes = []string{scopeAdmin}
	clients := []Client{
		own, foreign("foreign", "partner", "tls_client_auth_san_dns", "a"),
		{ID: "places", AuthMethod: methodSelfSigned, JWKSURI: "https://c.example/jwks"},
	}
	for _, c := range clients {
		ok(f.t, f.add(c))
		_, err := f.Revoke(f.ctx(), Selection{ClientID: c.ID}, 0, f.clock.now())
		want(f.t, err, ErrNotRevocable)
		same(f.t, f.disabled(c.ID), false)
	}
	waiting := f.ask("own")
	var last Change
	f.OnChange(func(c Change) { last = c })
	for _, c := range clients {
		done, err := f.Revoke(f.ctx(), Selection{ClientID: c.ID}, keyCompromise, f.clock.now())
		ok(f.t, err)
		same(f.t, done.Disabled, []string{c.ID})
		same(f.t, len(done.Revoked), len(c.Certificates))
		same(f.t, f.disabled(c.ID), true)
		same(f.t, last.ClientIDs, []string{c.ID})
		if c.ID == "own" {
			same(f.t, last.Blocked, [][32]byte{one.hash(f.t), two.hash(f.t)})
			same(f.t, thumbprintsOf(done.Revoked), [][32]byte{sha256.Sum256(certs[0]), sha256.Sum256(certs[1])})
		}
	}
	f.blocked(one.hash(f.t), true)
	f.blocked(two.hash(f.t), true)
	_, err := f.TakePending(f.ctx(), waiting.ID, "another")
	want(f.t, err, ErrNotFound)
	want(f.t, f.add(selfSigned("new", one.cert(f.t, 3))), ErrKeyBlocked)
	again, err := f.Revoke(f.ctx(), Selection{ClientID: "own"}, keyCompromise, f.clock.now())
	ok(f.t, err)
	same(f.t, thumbprintsOf(again.Already), [][32]byte{sha256.Sum256(certs[0]), sha256.Sum256(certs[1])})
	same(f.t, len(again.Revoked)+len(again.Disabled), 0)
	ok(f.t, f.EnableClient(f.ctx(), "own"))
	f.grantors(0) // with blocked keys it can give nothing
	checkStamps(f.t, f.Store)

	ok(f.t, f.RemoveClient(f.ctx(), "foreign"))
	_, err = f.Revoke(f.ctx(), Selection{ClientID: "foreign"}, keyCompromise, f.clock.now())
	want(f.t, err, ErrNotFound)

	// Its keys can still be blocked once it was removed.
	late := newOwnKey(f.t)
	ok(f.t, f.add(selfSigned("late", late.cert(f.t, 1))))
	ok(f.t, f.RemoveClient(f.ctx(), "late"))
	_, err = f.Revoke(f.ctx(), Selection{ClientID: "late"}, 0, f.clock.now())
	want(f.t, err, ErrNotFound)
	done, err := f.Revoke(f.ctx(), Selection{ClientID: "late"}, keyCompromise, f.clock.now())
	ok(f.t, err)
	same(f.t, len(done.Revoked), 1)
	same(f.t, len(done.Disabled), 0)
	f.blocked(late.hash(f.t), true)
}

// A registered certificate that is named is taken off its client, and the last one disables it.
func testRevokeRegistered(f *fixture) {
	one, two := newOwnKey(f.t), newOwnKey(f.t)
	first, second, third, fourth := one.cert(f.t, 1), one.cert(f.t, 2), two.cert(f.t, 3), two.cert(f.t, 4)
	own := selfSigned("own", first, second, third, fourth)
	own.Scopes = []string{scopeGrant}
	ok(f.t, f.add(own))
	f.client("payments", 1)
	issued := f.enroll("payments", 1, 1, 1)
	revoke := func(reason int, thumbprints ...[32]byte) Revocation {
		f.t.Helper()
		done, err := f.Revoke(f.ctx(), Selection{Thumbprints: thumbprints}, reason, f.clock.now())
		ok(f.t, err)
		return done
	}
	has := func(certs ...[]byte) {
		f.t.Helper()
		client, err := f.Client(f.ctx(), "own")
		ok(f.t, err)
		same(f.t, client.Certificates, certs)
		same(f.t, f.count("client_certificates"), len(certs))
	}
	_, err := f.Revoke(f.ctx(), Selection{Thumbprints: [][32]byte{sha256.Sum256(first), {9}}}, 0, f.clock.now())
	want(f.t, err, ErrNotFound)
	has(first, second, third, fourth)
	done := revoke(4, sha256.Sum256(third), issued.Thumbprint, sha256.Sum256(fourth), sha256.Sum256(third))
	same(f.t, thumbprintsOf(done.Revoked), [][32]byte{sha256.Sum256(third), sha256.Sum256(fourth), issued.Thumbprint})
	same(f.t, done.Revoked[0].Reason, 4)
	same(f.t, len(done.Disabled), 0)
	has(first, second)
	f.blocked(two.hash(f.t), false)
	ok(f.t, f.SetClientCertificates(f.ctx(), "own", [][]byte{first, second, third}))

	done = revoke(keyCompromise, sha256.Sum256(first)) // the key is one
	same(f.t, thumbprintsOf(done.Revoked), [][32]byte{sha256.Sum256(first), sha256.Sum256(second)})
	has(third)
	f.blocked(one.hash(f.t), true)
	same(f.t, f.disabled("own"), false)
	f.grantors(1)
	done = revoke(0, sha256.Sum256(third))
	same(f.t, done.Disabled, []string{"own"})
	same(f.t, len(done.Revoked), 1)
	same(f.t, f.disabled("own"), true)
	f.grantors(0)
	done = revoke(0, sha256.Sum256(third), sha256.Sum256(third))
	same(f.t, len(done.Already), 1)
	same(f.t, len(done.Revoked)+len(done.Disabled), 0)
	done = revoke(keyCompromise, sha256.Sum256(third)) // now for a reason that blocks
	same(f.t, len(done.Revoked), 1)
	f.blocked(two.hash(f.t), true)
	checkStamps(f.t, f.Store)
}

// What is left of a client is not judged again, and what our CA issued is revoked too where it was registered.
func testBlockedKeys(f *fixture) {
	key, other := newOwnKey(f.t), newOwnKey(f.t)
	der, spare := key.cert(f.t, 1), other.cert(f.t, 3)
	cert := f.cert("old", 1, 0)
	cert.DER, cert.Thumbprint, cert.KeyHash = der, sha256.Sum256(der), key.hash(f.t)
	f.client("old", 1)
	_, err := f.Redeem(f.ctx(), codeIDOf(1), cert.KeyHash, cert, "", f.clock.now())
	ok(f.t, err)
	ok(f.t, f.RemoveClient(f.ctx(), "old"))
	f.clock.advance(25 * time.Hour)
	ok(f.t, f.add(selfSigned("old", der, other.cert(f.t, 2), spare)))
	var last Change
	f.OnChange(func(c Change) { last = c })
	// The key of the issued one is blocked; the registered certificate with it stays, useless.
	_, err = f.Revoke(f.ctx(), Selection{Serial: cert.Serial}, keyCompromise, f.clock.now())
	ok(f.t, err)
	same(f.t, last.Blocked, [][32]byte{key.hash(f.t)})
	done, err := f.Revoke(f.ctx(), Selection{Thumbprints: [][32]byte{sha256.Sum256(spare)}}, 0, f.clock.now())
	ok(f.t, err)
	same(f.t, len(done.Revoked), 1)
	done, err = f.Revoke(f.ctx(), Selection{Thumbprints: [][32]byte{cert.Thumbprint}}, 0, f.clock.now())
	ok(f.t, err)
	same(f.t, thumbprintsOf(done.Revoked), [][32]byte{cert.Thumbprint}) // off the client
	same(f.t, thumbprintsOf(done.Already), [][32]byte{cert.Thumbprint}) // in the inventory
}
