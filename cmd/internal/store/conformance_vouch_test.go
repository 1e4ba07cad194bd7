// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// ownKey is a key with which a client certifies itself.
type ownKey struct{ *ecdsa.PrivateKey }

func newOwnKey(t *testing.T) ownKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ok(t, err)
	return ownKey{key}
}

// cert returns a self-signed certificate with this serial number, DER.
func (k ownKey) cert(t *testing.T, serial int64) []byte {
	t.Helper()
	return k.certOf(t, serial, start, start.AddDate(1, 0, 0))
}

// certOf is cert with these dates.
func (k ownKey) certOf(t *testing.T, serial int64, from, to time.Time) []byte {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "own"}, NotBefore: from, NotAfter: to,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	ok(t, err)
	return der
}

// hash is the hash of the public key.
func (k ownKey) hash(t *testing.T) [32]byte {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(k.Public())
	ok(t, err)
	return sha256.Sum256(spki)
}

// add adds a client and reports the error.
func (f *fixture) add(c Client) error {
	_, err := f.AddClient(f.ctx(), c, nil)
	return err
}

func selfSigned(id string, certs ...[]byte) Client {
	return Client{ID: id, AuthMethod: methodSelfSigned, Certificates: certs}
}

func foreign(id, trust, kind, value string) Client {
	return Client{ID: id, AuthMethod: methodCA, Trust: trust, SubjectKind: kind, SubjectValue: value}
}

// testForeignNames: what our CA certifies for one client is not what another one, of a foreign CA, is recognised by, in
// whatever spelling and whichever came first.
func testForeignNames(f *fixture) {
	f.trust("one")
	f.trust("two")
	taken := func(c Client, name, by string) {
		f.t.Helper()
		for _, err := range []error{f.FreeNames(f.ctx(), c), f.add(c)} {
			taken, is := errors.AsType[*NameTakenError](err)
			if !is || taken.Name != name || taken.ClientID != by {
				f.t.Errorf("%s: %v, want that %s has %s", c.ID, err, by, name)
			}
		}
	}
	free := func(c Client) {
		f.t.Helper()
		ok(f.t, f.FreeNames(f.ctx(), c))
		ok(f.t, f.add(c))
	}
	free(foreign("dns", "one", "tls_client_auth_san_dns", "Pay.Example."))
	free(foreign("ip", "one", "tls_client_auth_san_ip", "2001:db8::1"))
	free(foreign("uri", "one", "tls_client_auth_san_uri", "https://pay.example/x"))
	free(foreign("again", "two", "tls_client_auth_san_dns", "pay.example")) // of another CA
	free(foreign("dn", "one", "tls_client_auth_subject_dn", "CN=dn.example"))
	free(foreign("mail", "one", "tls_client_auth_san_email", "mail.example@x.example"))
	taken(Client{ID: "own", DNS: []string{"own.example", "pay.EXAMPLE"}}, "pay.EXAMPLE", "again")
	taken(Client{ID: "own", IPs: []string{"2001:DB8:0::1"}}, "2001:DB8:0::1", "ip")
	taken(Client{ID: "own", URIs: []string{"https://pay.example/x"}}, "https://pay.example/x", "uri")
	ok(f.t, f.RemoveClient(f.ctx(), "again"))
	taken(Client{ID: "own", DNS: []string{"pay.example"}}, "pay.example", "dns")
	free(Client{ID: "own", DNS: []string{"own.example", "dn.example"}, IPs: []string{"198.51.100.1"}, URIs: []string{"https://Pay.example/x"}})
	taken(foreign("f", "two", "tls_client_auth_san_dns", "OWN.example."), "OWN.example.", "own")
	taken(foreign("f", "two", "tls_client_auth_san_ip", "198.51.100.1"), "198.51.100.1", "own")
	taken(foreign("f", "two", "tls_client_auth_san_uri", "https://Pay.example/x"), "https://Pay.example/x", "own")
	ok(f.t, f.RemoveClient(f.ctx(), "own"))
	ok(f.t, f.RemoveClient(f.ctx(), "dns"))
	free(foreign("f", "two", "tls_client_auth_san_dns", "own.example"))
	free(Client{ID: "own2", DNS: []string{"pay.example"}})
}

func (f *fixture) trust(name string) Trust {
	f.t.Helper()
	t := Trust{Name: name, Anchors: [][]byte{[]byte("anchor of " + name)}, Revocation: "hard"}
	ok(f.t, f.AddTrust(f.ctx(), t))
	t.CreatedAt, t.UpdatedAt = f.clock.now(), f.clock.now()
	return t
}

func testTrusts(f *fixture) {
	partner := Trust{
		Name: "partner", Anchors: [][]byte{[]byte("one"), []byte("two")}, Intermediates: [][]byte{[]byte("three")},
		CRLURL: "http://crl.example/x", CRL: []byte("list"), Revocation: "soft",
	}
	ok(f.t, f.AddTrust(f.ctx(), partner))
	want(f.t, f.AddTrust(f.ctx(), partner), ErrExists)
	partner.CreatedAt, partner.UpdatedAt = start, start
	got, err := f.Trust(f.ctx(), "partner")
	ok(f.t, err)
	same(f.t, got, partner)
	agency := f.trust("agency")
	list, err := f.Trusts(f.ctx())
	ok(f.t, err)
	same(f.t, list, []Trust{agency, partner})

	f.clock.advance(time.Minute)
	next := Trust{Name: "partner", Anchors: [][]byte{[]byte("four")}, Revocation: "off"}
	ok(f.t, f.ReplaceTrust(f.ctx(), next))
	next.CreatedAt, next.UpdatedAt = start, f.clock.now()
	got, err = f.Trust(f.ctx(), "partner")
	ok(f.t, err)
	same(f.t, got, next)
	got, err = f.Trust(f.ctx(), "agency")
	ok(f.t, err)
	same(f.t, got, agency) // the other is left alone

	_, err = f.Trust(f.ctx(), "nobody")
	want(f.t, err, ErrNotFound)
	next.Name = "nobody"
	want(f.t, f.ReplaceTrust(f.ctx(), next), ErrNotFound)
	want(f.t, f.RemoveTrust(f.ctx(), "nobody"), ErrNotFound)
	ok(f.t, f.RemoveTrust(f.ctx(), "agency"))
	_, err = f.Trust(f.ctx(), "agency")
	want(f.t, err, ErrNotFound)
}

// Certificates that cannot be read are an error: an empty list would be another trust.
func testTrustDamaged(f *fixture) {
	f.trust("partner")
	for _, column := range []any{[]byte{0, 0}, []byte{0, 0, 0, 9, 1}, "text"} {
		_, err := f.write.ExecContext(f.ctx(), "UPDATE trusts SET anchors = $1", column)
		ok(f.t, err)
		if _, err := f.Trust(f.ctx(), "partner"); err == nil {
			f.t.Errorf("%v was read", column)
		}
		if _, err := f.Trusts(f.ctx()); err == nil {
			f.t.Errorf("%v was listed", column)
		}
	}
}

func testTrustShape(f *fixture) {
	f.trust("partner")
	anchor := [][]byte{[]byte("x")}
	for name, bad := range map[string]Trust{
		"no name":            {Anchors: anchor, Revocation: "hard"},
		"no anchor":          {Name: "partner", Intermediates: anchor, Revocation: "hard"},
		"empty anchor":       {Name: "partner", Anchors: [][]byte{{}}, Revocation: "hard"},
		"empty intermediate": {Name: "partner", Anchors: anchor, Intermediates: [][]byte{nil}, Revocation: "hard"},
		"no revocation":      {Name: "partner", Anchors: anchor},
		"other revocation":   {Name: "partner", Anchors: anchor, Revocation: "maybe"},
		"too many": {
			Name: "partner", Anchors: slices.Repeat(anchor, 50), Intermediates: slices.Repeat(anchor, 51), Revocation: "hard",
		},
	} {
		if err := f.ReplaceTrust(f.ctx(), bad); err == nil || errors.Is(err, ErrNotFound) {
			f.t.Errorf("replace by one with %s: %v", name, err)
		}
		if bad.Name != "" {
			bad.Name = "another"
		}
		if err := f.AddTrust(f.ctx(), bad); err == nil {
			f.t.Errorf("one with %s was added", name)
		}
	}
	most := Trust{Name: "most", Anchors: slices.Repeat(anchor, 100), Revocation: "hard"}
	ok(f.t, f.AddTrust(f.ctx(), most))
}

func testTrustInUse(f *fixture) {
	f.trust("partner")
	f.trust("agency")
	want(f.t, f.add(foreign("one", "nobody", "tls_client_auth_san_dns", "a")), ErrUnknownTrust)
	if f.count("clients") != 0 {
		f.t.Error("a refused client was stored")
	}
	ok(f.t, f.add(foreign("one", "partner", "tls_client_auth_san_dns", "a")))
	ok(f.t, f.add(foreign("two", "partner", "tls_client_auth_san_dns", "b")))
	ok(f.t, f.DisableClient(f.ctx(), "two"))
	err := f.RemoveTrust(f.ctx(), "partner")
	want(f.t, err, ErrInUse)
	if e, is := errors.AsType[*InUseError](err); !is || e.Trust != "partner" || !slices.Equal(e.ClientIDs, []string{"one", "two"}) {
		f.t.Errorf("error is %v", err)
	}
	ok(f.t, f.RemoveTrust(f.ctx(), "agency"))
	ok(f.t, f.RemoveClient(f.ctx(), "one"))
	want(f.t, f.RemoveTrust(f.ctx(), "partner"), ErrInUse) // a disabled one may be enabled again
	ok(f.t, f.RemoveClient(f.ctx(), "two"))
	ok(f.t, f.RemoveTrust(f.ctx(), "partner"))
	want(f.t, f.add(foreign("three", "partner", "tls_client_auth_san_dns", "a")), ErrUnknownTrust)
}

// A client and the removal of its trust at the same moment: never a client whose trust is gone.
func testTrustRace(f *fixture) {
	for i := range 20 {
		name := fmt.Sprintf("t%d", i)
		f.trust(name)
		var added, removed error
		var wg sync.WaitGroup
		wg.Go(func() { added = f.add(foreign(name, name, "tls_client_auth_san_dns", "a")) })
		wg.Go(func() { removed = f.RemoveTrust(f.ctx(), name) })
		wg.Wait()
		if (added == nil) == (removed == nil) {
			f.t.Fatalf("added: %v, removed: %v", added, removed)
		}
	}
}

func testFileTrusts(f *fixture) {
	f.files = []string{"filed"}
	ok(f.t, f.add(foreign("one", "filed", "tls_client_auth_san_dns", "a")))
	want(f.t, f.add(foreign("two", "filed", "tls_client_auth_san_dns", "a")), ErrNameTaken)
	want(f.t, f.AddTrust(f.ctx(), Trust{Name: "filed", Anchors: [][]byte{{1}}, Revocation: "hard"}), ErrExists)
	want(f.t, f.add(foreign("two", "other", "tls_client_auth_san_dns", "a")), ErrUnknownTrust)
	_, err := f.Trust(f.ctx(), "filed")
	want(f.t, err, ErrNotFound)
}

// RFC 8705, Section 2: one method, and for it exactly one thing that vouches.
func testVouching(f *fixture) {
	f.trust("partner")
	der := newOwnKey(f.t).cert(f.t, 1)
	uri := "https://c.example/jwks"
	dns := "tls_client_auth_san_dns"
	for name, bad := range map[string]Client{
		"unknown method":              {AuthMethod: "client_secret_basic"},
		"unknown method with one":     {AuthMethod: "client_secret_basic", Certificates: [][]byte{der}},
		"kind without value":          {SubjectKind: dns},
		"value without kind":          {SubjectValue: "a"},
		"own CA, own certificate":     {Certificates: [][]byte{der}},
		"own CA, jwks_uri":            {JWKSURI: uri},
		"trust without subject":       {Trust: "partner"},
		"trust, own certificate":      {Trust: "partner", SubjectKind: dns, SubjectValue: "a", Certificates: [][]byte{der}},
		"trust, jwks_uri":             {Trust: "partner", SubjectKind: dns, SubjectValue: "a", JWKSURI: uri},
		"self-signed, nothing":        {AuthMethod: methodSelfSigned},
		"self-signed, both":           {AuthMethod: methodSelfSigned, Certificates: [][]byte{der}, JWKSURI: uri},
		"self-signed, trust":          {AuthMethod: methodSelfSigned, Certificates: [][]byte{der}, Trust: "partner"},
		"self-signed, subject":        {AuthMethod: methodSelfSigned, JWKSURI: uri, SubjectKind: dns, SubjectValue: "a"},
		"self-signed, no certificate": {AuthMethod: methodSelfSigned, Certificates: [][]byte{{}}},
		"self-signed, more bytes":     {AuthMethod: methodSelfSigned, Certificates: [][]byte{append(slices.Clone(der), 0)}},
		"self-signed, twice":          {AuthMethod: methodSelfSigned, Certificates: [][]byte{der, der}},
	} {
		bad.ID = "bad"
		if f.add(bad) == nil {
			f.t.Errorf("%s: added", name)
			ok(f.t, f.RemoveClient(f.ctx(), "bad"))
		}
	}
	if f.count("clients") != 0 || f.count("client_certificates") != 0 || f.count("client_names") != 0 {
		f.t.Error("a refused client left something")
	}
	ok(f.t, f.add(foreign("foreign", "partner", dns, "a")))
	ok(f.t, f.add(selfSigned("own", der)))
	ok(f.t, f.add(Client{ID: "places", AuthMethod: methodSelfSigned, JWKSURI: uri}))
	ok(f.t, f.add(Client{ID: "ours"}))
	got, err := f.Client(f.ctx(), "ours")
	ok(f.t, err)
	same(f.t, got.AuthMethod, methodCA)
	got, err = f.Client(f.ctx(), "places")
	ok(f.t, err)
	same(f.t, got.JWKSURI, uri)
	got, err = f.Client(f.ctx(), "own")
	ok(f.t, err)
	same(f.t, got.Certificates, [][]byte{der})
}

// Our CA gives nothing to a client that it does not vouch for.
func testNotEnrolled(f *fixture) {
	f.trust("partner")
	for _, c := range []Client{
		foreign("foreign", "partner", "tls_client_auth_san_dns", "a"), selfSigned("own", newOwnKey(f.t).cert(f.t, 1)),
		{ID: "places", AuthMethod: methodSelfSigned, JWKSURI: "https://c.example/jwks"},
	} {
		_, err := f.AddClient(f.ctx(), c, f.code(1))
		want(f.t, err, ErrNotEnrolled)
		ok(f.t, f.add(c))
		want(f.t, f.Invite(f.ctx(), c.ID, *f.code(1)), ErrNotEnrolled)
		want(f.t, f.AddCertificate(f.ctx(), f.cert(c.ID, 1, 1)), ErrNotEnrolled)
	}
	if f.count("codes") != 0 {
		f.t.Error("a code was stored")
	}
}

// Administrators' scopes need our CA or a certificate registered by value: neither a foreign CA nor who controls a place
// of certificates may make an administrator.
func testAuthority(f *fixture) {
	f.trust("partner")
	for _, scope := range []string{"certbound:admin", "certbound:read", "certbound:later"} {
		c := foreign("foreign", "partner", "tls_client_auth_san_dns", "a")
		c.Scopes = []string{"x", scope}
		want(f.t, f.add(c), ErrAuthority)
		want(f.t, f.add(Client{ID: "p", AuthMethod: methodSelfSigned, JWKSURI: "https://c.example", Scopes: c.Scopes}), ErrAuthority)
	}
	c := selfSigned("own", newOwnKey(f.t).cert(f.t, 1))
	c.Scopes = []string{scopeGrant}
	ok(f.t, f.add(c))
	want(f.t, f.RemoveClient(f.ctx(), "own"), ErrLastGrantor)
}

// DR-07: two clients do not share a subject under one trust, however it is spelled.
func testSubjects(f *fixture) {
	f.trust("partner")
	f.trust("agency")
	const (
		dns, ip, uri   = "tls_client_auth_san_dns", "tls_client_auth_san_ip", "tls_client_auth_san_uri"
		email, subject = "tls_client_auth_san_email", "tls_client_auth_subject_dn"
	)
	for i, test := range []struct {
		kind, first string
		equal       []string
		other       string
	}{
		{dns, "a.example", []string{"a.example", "A.Example"}, "b.example"},
		{ip, "2001:db8::1", []string{"2001:0db8:0::1"}, "2001:db8::2"},
		{uri, "spiffe://x/a", []string{"spiffe://x/a"}, "spiffe://x/A"},
		{email, "a@m.example", []string{"a@M.example"}, "A@m.example"},
		{subject, "CN=a,O=b", []string{"CN=a,O=b"}, "CN=A,O=b"},
	} {
		first := fmt.Sprintf("first%d", i)
		ok(f.t, f.add(foreign(first, "partner", test.kind, test.first)))
		for _, value := range test.equal {
			err := f.add(foreign("second", "partner", test.kind, value))
			want(f.t, err, ErrNameTaken)
			if e, is := errors.AsType[*NameTakenError](err); !is || e.ClientID != first || e.Name != value {
				f.t.Errorf("error is %v", err)
			}
		}
		ok(f.t, f.add(foreign(first+"-other", "partner", test.kind, test.other)))
		ok(f.t, f.add(foreign(first+"-agency", "agency", test.kind, test.first))) // two CAs are two CAs
		ok(f.t, f.RemoveClient(f.ctx(), first))
		ok(f.t, f.add(foreign(first+"-again", "partner", test.kind, test.first)))
	}
	ok(f.t, f.add(foreign("kind", "partner", uri, "a.example")))
	ok(f.t, f.add(foreign("kind2", "partner", email, "a.example")))
	own := Client{ID: "ours", SubjectKind: uri, SubjectValue: "spiffe://d/client/ours"}
	ok(f.t, f.add(own))
	own.ID = "twin"
	want(f.t, f.add(own), ErrNameTaken)
}

// CA-24: a certificate, and a public key, belongs to one client.
func testRegisteredCertificates(f *fixture) {
	one, two := newOwnKey(f.t), newOwnKey(f.t)
	first, next, other := one.cert(f.t, 1), one.cert(f.t, 2), two.cert(f.t, 3)
	ok(f.t, f.add(selfSigned("one", first)))
	err := f.add(selfSigned("two", other, first))
	want(f.t, err, ErrCertificateTaken)
	if e, is := errors.AsType[*CertificateTakenError](err); !is || e.ClientID != "one" || e.Thumbprint != sha256.Sum256(first) {
		f.t.Errorf("error is %v", err)
	}
	want(f.t, f.add(selfSigned("two", next)), ErrKeyTaken)
	ok(f.t, f.add(selfSigned("two", other)))

	f.clock.advance(time.Minute)
	ok(f.t, f.SetClientCertificates(f.ctx(), "one", [][]byte{first, next}))
	got, err := f.Client(f.ctx(), "one")
	ok(f.t, err)
	same(f.t, got.Certificates, [][]byte{first, next})
	if !got.UpdatedAt.Equal(f.clock.now()) {
		f.t.Errorf("updated at %v", got.UpdatedAt)
	}
	got, err = f.Client(f.ctx(), "two")
	ok(f.t, err)
	same(f.t, got.Certificates, [][]byte{other})
	want(f.t, f.SetClientCertificates(f.ctx(), "one", [][]byte{next, other}), ErrCertificateTaken)
	got, err = f.Client(f.ctx(), "one")
	ok(f.t, err)
	same(f.t, got.Certificates, [][]byte{first, next}) // a refusal changes nothing
	same(f.t, f.count("client_certificates"), 3)

	third := newOwnKey(f.t).cert(f.t, 4)
	ok(f.t, f.SetClientCertificates(f.ctx(), "one", [][]byte{third}))
	ok(f.t, f.SetClientCertificates(f.ctx(), "two", [][]byte{first})) // what one gave up is free
	ok(f.t, f.RemoveClient(f.ctx(), "two"))
	ok(f.t, f.add(selfSigned("three", first)))
	same(f.t, f.count("client_certificates"), 2)
}

func testRegisteredBounds(f *fixture) {
	key := newOwnKey(f.t)
	var certs [][]byte
	for i := range int64(9) {
		certs = append(certs, key.cert(f.t, i+1))
	}
	if f.add(selfSigned("nine", certs...)) == nil {
		f.t.Error("nine certificates were registered")
	}
	ok(f.t, f.add(selfSigned("eight", certs[:8]...)))
	for name, bad := range map[string][][]byte{
		"none": nil, "nine": certs, "no certificate": {[]byte("x")}, "twice": {certs[0], certs[0]},
	} {
		err := f.SetClientCertificates(f.ctx(), "eight", bad)
		if err == nil || errors.Is(err, ErrCertificateTaken) {
			f.t.Errorf("%s: %v", name, err)
		}
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: strings.Repeat("x", maxPinnedSize)}}
	long, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	ok(f.t, err)
	if f.SetClientCertificates(f.ctx(), "eight", [][]byte{long}) == nil {
		f.t.Error("a certificate that no handshake would bring was registered")
	}
	ok(f.t, f.add(Client{ID: "ours"}))
	ok(f.t, f.add(Client{ID: "places", AuthMethod: methodSelfSigned, JWKSURI: "https://c.example/jwks"}))
	free := [][]byte{newOwnKey(f.t).cert(f.t, 1)}
	want(f.t, f.SetClientCertificates(f.ctx(), "ours", free), ErrNotPinned)
	want(f.t, f.SetClientCertificates(f.ctx(), "places", free), ErrNotPinned)
	want(f.t, f.SetClientCertificates(f.ctx(), "nobody", free), ErrNotFound)
}

// The keys of the inventory and those of registered certificates are one space.
func testRegisteredKeys(f *fixture) {
	own, enrolled, stolen := newOwnKey(f.t), newOwnKey(f.t), newOwnKey(f.t)
	ok(f.t, f.add(selfSigned("own", own.cert(f.t, 1))))
	f.client("ours", 1)
	cert := f.cert("ours", 1, 0)
	cert.KeyHash = own.hash(f.t)
	want(f.t, f.AddCertificate(f.ctx(), cert), ErrKeyTaken)
	cert.KeyHash = enrolled.hash(f.t)
	ok(f.t, f.AddCertificate(f.ctx(), cert))
	want(f.t, f.add(selfSigned("two", enrolled.cert(f.t, 1))), ErrKeyTaken)
	for key, client := range map[ownKey]string{own: "own", enrolled: "ours", stolen: ""} {
		owner, err := f.KeyOwner(f.ctx(), key.hash(f.t))
		ok(f.t, err)
		same(f.t, owner, client)
	}
	cert = f.cert("ours", 1, 0)
	cert.KeyHash = stolen.hash(f.t)
	ok(f.t, f.AddCertificate(f.ctx(), cert))
	_, err := f.Revoke(f.ctx(), Selection{Serial: cert.Serial}, keyCompromise, f.clock.now())
	ok(f.t, err)
	want(f.t, f.SetClientCertificates(f.ctx(), "own", [][]byte{stolen.cert(f.t, 1)}), ErrKeyBlocked)
}

func testPlaces(f *fixture) {
	place := func(id string) Client {
		return Client{ID: id, AuthMethod: methodSelfSigned, JWKSURI: "https://c.example/jwks"}
	}
	ok(f.t, f.add(place("one")))
	want(f.t, f.add(place("two")), ErrNameTaken)
	ok(f.t, f.RemoveClient(f.ctx(), "one"))
	ok(f.t, f.add(place("two")))
}

// The tokens of a client that we gave no certificate live on after its removal: so long its id stays reserved.
func testReservedForeign(f *fixture) {
	f.trust("partner")
	key := newOwnKey(f.t)
	for _, c := range []Client{
		foreign("foreign", "partner", "tls_client_auth_san_dns", "a"), selfSigned("own", key.cert(f.t, 1)),
		{ID: "places", AuthMethod: methodSelfSigned, JWKSURI: "https://c.example/jwks"},
	} {
		ok(f.t, f.add(c))
		f.clock.advance(time.Hour)
		ok(f.t, f.RemoveClient(f.ctx(), c.ID))
		err := f.add(c)
		want(f.t, err, ErrReserved)
		if e, is := errors.AsType[*ReservedError](err); !is || !e.Until.Equal(f.in(time.Hour)) {
			f.t.Errorf("error is %v", err)
		}
		f.clock.advance(time.Hour - time.Second)
		want(f.t, f.add(c), ErrReserved)
		f.clock.advance(time.Second)
		again, err := f.AddClient(f.ctx(), c, nil)
		ok(f.t, err)
		same(f.t, again.Generation, uint64(2))
	}
}

func (f *fixture) ask(by string) Pending {
	f.t.Helper()
	p, err := f.AddPending(f.ctx(), Pending{Kind: "trust.add", Payload: []byte(`{"x":1}`), RequestedBy: by})
	ok(f.t, err)
	return p
}

func testPending(f *fixture) {
	first := f.ask("alice")
	if first.ID == "" {
		f.t.Error("no id")
	}
	same(f.t, first, Pending{
		ID: first.ID, Kind: "trust.add", Payload: []byte(`{"x":1}`), RequestedBy: "alice", CreatedAt: start,
		ExpiresAt: start.Add(24 * time.Hour),
	})
	f.clock.advance(time.Second)
	second := f.ask("bob")
	list, err := f.Pending(f.ctx())
	ok(f.t, err)
	same(f.t, list, []Pending{first, second})

	_, err = f.TakePending(f.ctx(), first.ID, "alice")
	want(f.t, err, ErrSamePerson)
	if _, err = f.TakePending(f.ctx(), first.ID, ""); err == nil {
		f.t.Error("nobody confirmed")
	}
	taken, err := f.TakePending(f.ctx(), first.ID, "bob") // the refusals left it there
	ok(f.t, err)
	same(f.t, taken, first)
	_, err = f.TakePending(f.ctx(), first.ID, "bob")
	want(f.t, err, ErrNotFound)
	dropped, err := f.DropPending(f.ctx(), second.ID)
	ok(f.t, err)
	same(f.t, dropped, second)
	_, err = f.DropPending(f.ctx(), second.ID)
	want(f.t, err, ErrNotFound)
	list, err = f.Pending(f.ctx())
	ok(f.t, err)
	same(f.t, list, []Pending(nil))
	for name, bad := range map[string]Pending{
		"no kind": {RequestedBy: "alice"}, "nobody": {Kind: "x"},
		"long": {Kind: "x", RequestedBy: "alice", Payload: bytes.Repeat([]byte{1}, maxPendingPayload+1)},
	} {
		if _, err := f.AddPending(f.ctx(), bad); err == nil {
			f.t.Errorf("%s: kept", name)
		}
	}
}

func testPendingExpires(f *fixture) {
	p := f.ask("alice")
	f.clock.advance(24*time.Hour - time.Microsecond)
	list, err := f.Pending(f.ctx())
	ok(f.t, err)
	same(f.t, list, []Pending{p})
	f.clock.advance(time.Microsecond)
	list, err = f.Pending(f.ctx())
	ok(f.t, err)
	same(f.t, list, []Pending(nil))
	_, err = f.TakePending(f.ctx(), p.ID, "bob")
	want(f.t, err, ErrPendingExpired)
	late := f.ask("alice")
	same(f.t, f.count("pending_requests"), 1)
	f.clock.advance(24*time.Hour - time.Microsecond)
	_, err = f.TakePending(f.ctx(), late.ID, "bob")
	ok(f.t, err)
}

func testPendingBound(f *fixture) {
	for range 100 {
		f.ask("alice")
	}
	_, err := f.AddPending(f.ctx(), Pending{Kind: "x", RequestedBy: "bob"})
	want(f.t, err, ErrTooManyPending)
	same(f.t, f.count("pending_requests"), 100)
	f.clock.advance(24 * time.Hour)
	f.ask("bob") // what expired takes no place
	same(f.t, f.count("pending_requests"), 1)
}

// Of many who confirm one request at the same moment, one carries it out.
func testPendingRace(f *fixture) {
	p := f.ask("alice")
	errs := make([]error, 20)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { _, errs[i] = f.TakePending(f.ctx(), p.ID, "bob") })
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
			continue
		}
		want(f.t, err, ErrNotFound)
	}
	same(f.t, won, 1)
}

// What an operator asked for is void once the operator is disabled or removed: who stole the key asked, perhaps.
func testPendingVoid(f *fixture) {
	f.client("alice", 1)
	f.client("bob", 2)
	f.ask("alice")
	left := f.ask("carol")
	f.ask("bob")
	ok(f.t, f.DisableClient(f.ctx(), "alice"))
	ok(f.t, f.RemoveClient(f.ctx(), "bob"))
	list, err := f.Pending(f.ctx())
	ok(f.t, err)
	same(f.t, list, []Pending{left})
	for _, id := range []string{"alice", "bob"} {
		_, err = f.AddPending(f.ctx(), Pending{Kind: "x", RequestedBy: id})
		want(f.t, err, ErrClientDisabled)
		_, err = f.TakePending(f.ctx(), left.ID, id)
		want(f.t, err, ErrClientDisabled)
	}
	ok(f.t, f.EnableClient(f.ctx(), "alice"))
	_, err = f.TakePending(f.ctx(), left.ID, "alice")
	ok(f.t, err)
}

// Each scope that gives scopes counts, and no other of the separated ones does.
func testGrantorScopes(f *fixture) {
	var ids []string
	for i, scope := range []string{"read", "enroll", "revoke", "registry", "trust", "keys"} {
		ids = append(ids, fmt.Sprintf("op%d", i))
		ok(f.t, f.add(Client{ID: ids[i], Scopes: []string{"certbound:" + scope}}))
	}
	ok(f.t, f.add(Client{ID: "giver", Scopes: []string{scopeGrant}}))
	want(f.t, f.RemoveClient(f.ctx(), "giver"), ErrLastGrantor)
	ok(f.t, f.add(Client{ID: "admin", Scopes: []string{scopeAdmin}}))
	ok(f.t, f.AddCertificate(f.ctx(), f.cert("admin", 1, 1)))
	ok(f.t, f.RemoveClient(f.ctx(), "giver"))
	want(f.t, f.DisableClient(f.ctx(), "admin"), ErrLastGrantor)
	for _, id := range ids {
		ok(f.t, f.DisableClient(f.ctx(), id))
		ok(f.t, f.RemoveClient(f.ctx(), id))
	}
}

// stamp returns the version of the only row of a table.
func (f *fixture) stamp(table string) int64 {
	f.t.Helper()
	var v int64
	ok(f.t, f.read.QueryRowContext(f.ctx(), "SELECT version FROM "+table).Scan(&v))
	return v
}

func testTrustChanges(f *fixture) {
	var last Change
	f.OnChange(func(c Change) { last = c })
	f.trust("partner")
	same(f.t, last, Change{Trusts: true, Tickets: true, Version: 1})
	ok(f.t, f.ReplaceTrust(f.ctx(), Trust{Name: "partner", Anchors: [][]byte{{1}}, Revocation: "off"}))
	same(f.t, last, Change{Trusts: true, Tickets: true, Version: 2})
	same(f.t, f.stamp("trusts"), int64(2))
	key := newOwnKey(f.t)
	ok(f.t, f.add(selfSigned("own", key.cert(f.t, 1))))
	same(f.t, last, Change{ClientIDs: []string{"own"}, Version: 3})
	ok(f.t, f.SetClientCertificates(f.ctx(), "own", [][]byte{key.cert(f.t, 2)}))
	same(f.t, last, Change{ClientIDs: []string{"own"}, Version: 4})
	same(f.t, f.stamp("clients"), int64(4))
	p := f.ask("alice")
	same(f.t, last, Change{Version: 5})
	same(f.t, f.stamp("pending_requests"), int64(5))
	checkStamps(f.t, f.Store)
	_, err := f.TakePending(f.ctx(), p.ID, "bob")
	ok(f.t, err)
	same(f.t, last, Change{Version: 6})
	st, err := f.Stats(f.ctx())
	ok(f.t, err)
	same(f.t, st, Stats{Clients: 1, Trusts: 1, Version: 6})
	ok(f.t, f.RemoveTrust(f.ctx(), "partner"))
	same(f.t, last, Change{Trusts: true, Tickets: true, Version: 7})
	checkStamps(f.t, f.Store)
}

// testTicketKeys: all servers have the same key for a listener and hour, no two listeners the same, none for longer than two
// hours, and none that was reset.
func testTicketKeys(f *fixture) {
	start := f.clock.now().Truncate(time.Hour)
	keys := func(listener string, at time.Duration) []TicketKey {
		f.t.Helper()
		list, err := f.TicketKeys(f.ctx(), listener, start.Add(at))
		ok(f.t, err)
		return list
	}
	version, err := f.Version(f.ctx())
	ok(f.t, err)
	first := keys("mtls", 0)
	if len(first) != 1 || !first[0].StartedAt.Equal(start) || first[0].Key == [32]byte{} {
		f.t.Fatalf("%+v", first)
	}
	same(f.t, keys("mtls", 59*time.Minute), first)
	public := keys("public", 0)
	if public[0].Key == first[0].Key {
		f.t.Error("two listeners have one key")
	}
	second := keys("mtls", time.Hour)
	if len(second) != 2 || second[0].Key == first[0].Key || second[1] != first[0] {
		f.t.Errorf("%+v after %+v", second, first)
	}
	same(f.t, keys("mtls", time.Hour-30*time.Second), second) // who is a little behind knows the next already
	same(f.t, keys("mtls", time.Hour-2*time.Minute), first)   // and does not go by one from further ahead
	same(f.t, keys("mtls", 2*time.Hour-time.Microsecond), second)
	third := keys("mtls", 2*time.Hour)
	if len(third) != 2 || third[1] != second[0] {
		f.t.Errorf("%+v after %+v", third, second)
	}
	if n := f.count("ticket_keys"); n != 2 {
		f.t.Errorf("%d keys are there: the oldest of each listener should be gone", n)
	}
	if after, err := f.Version(f.ctx()); err != nil || after != version {
		f.t.Errorf("version went from %d to %d, %v", version, after, err)
	}

	var told []Change
	f.OnChange(func(c Change) { told = append(told, c) })
	ok(f.t, f.ResetTicketKeys(f.ctx()))
	if len(told) != 1 || !told[0].Tickets || told[0].Version != version+1 || f.count("ticket_keys") != 0 {
		f.t.Errorf("told %+v, %d keys are there", told, f.count("ticket_keys"))
	}
	logged, err := f.ChangesSince(f.ctx(), version, 10)
	ok(f.t, err)
	same(f.t, logged, []Change{{Tickets: true, Version: version + 1}})
	fresh := keys("mtls", 2*time.Hour)
	if len(fresh) != 1 || fresh[0].Key == third[0].Key {
		f.t.Errorf("%+v after a reset, before it %+v", fresh, third)
	}
	// So does each change of a trust.
	row := f.trust("one")
	for _, change := range []func() error{
		func() error { return f.ReplaceTrust(f.ctx(), row) },
		func() error { return f.RemoveTrust(f.ctx(), "one") },
		func() error { return f.AddTrust(f.ctx(), row) },
	} {
		keys("mtls", 2*time.Hour)
		told = nil
		ok(f.t, change())
		if len(told) != 1 || !told[0].Tickets || !told[0].Trusts || f.count("ticket_keys") != 0 {
			f.t.Errorf("told %+v, %d keys are there", told, f.count("ticket_keys"))
		}
	}
}

// testTicketKeysAreSealed: a row that was moved, changed or replaced gives no key, and no new one in its place.
func testTicketKeysAreSealed(f *fixture) {
	start := f.clock.now().Truncate(time.Hour)
	for name, change := range map[string]string{
		"another listener": `UPDATE ticket_keys SET listener = 'public'`,
		"another hour":     `UPDATE ticket_keys SET started_at = started_at - 3600000000`,
		"another version":  `UPDATE ticket_keys SET seal_version = 2`,
		"cut off":          `UPDATE ticket_keys SET sealed = substr(sealed, 1, 40)`,
	} {
		ok(f.t, f.ResetTicketKeys(f.ctx()))
		_, err := f.TicketKeys(f.ctx(), "mtls", start)
		ok(f.t, err)
		_, err = f.write.ExecContext(f.ctx(), change)
		ok(f.t, err)
		listener := "mtls"
		if name == "another listener" {
			listener = "public"
		}
		if list, err := f.TicketKeys(f.ctx(), listener, start); err == nil {
			f.t.Errorf("%s: %d keys", name, len(list))
		}
	}
}

// testParallelTicketKeys: of many servers that come first in an hour, all get one key.
func testParallelTicketKeys(f *fixture) {
	now := f.clock.now()
	lists := make([][]TicketKey, 8)
	var wg sync.WaitGroup
	for i := range lists {
		wg.Go(func() {
			var err error
			if lists[i], err = f.TicketKeys(f.ctx(), "mtls", now); err != nil {
				f.t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, list := range lists {
		same(f.t, list, lists[0])
	}
}
