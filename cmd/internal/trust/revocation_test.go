// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package trust_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/cmd/internal/trust"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/tokens/issuer"
)

// The outcomes of a judgement.
const (
	good    = "good"
	revoked = "revoked"
	unknown = "unknown"
)

func outcome(err error) string {
	switch {
	case err == nil:
		return good
	case errors.Is(err, issuer.ErrRevoked):
		return revoked
	}
	return unknown
}

// partner is a foreign authority with a file of lists.
type partner struct {
	*world
	ca                *mtlstest.CA
	path              string // of the lists
	honest, withdrawn tls.Certificate
}

func newPartner(t *testing.T, mode string, lists []byte) *partner {
	t.Helper()
	c, w := config(t)
	ca := mtlstest.NewCA(t, "partner")
	p := &partner{world: w, ca: ca, path: file(t, lists), honest: ca.Issue(t, mtlstest.Leaf{}), withdrawn: ca.Issue(t, mtlstest.Leaf{})}
	c.Files = []trust.FileTrust{{Name: "partner", CAFile: file(t, certs(ca.Certificate())), CRLFile: p.path, Revocation: mode}}
	w.start(t, c)
	return p
}

// put replaces the lists and reads them.
func (p *partner) put(t *testing.T, lists []byte) error {
	t.Helper()
	replace(t, p.path, lists)
	return p.Reload(t.Context())
}

func (p *partner) expect(t *testing.T, honest, withdrawn string) {
	t.Helper()
	for cert, want := range map[*tls.Certificate]string{&p.honest: honest, &p.withdrawn: withdrawn} {
		if err := p.judge(t, "partner", *cert); outcome(err) != want {
			t.Errorf("%s (error %v), want %s", outcome(err), err, want)
		}
	}
}

// XP-11: RFC 5280, Section 6.3: with a list, what is on it is refused and the rest is not; without one everything is
// unknown, which refuses when revocation is hard, as it is where nothing else was said.
func TestRFC5280_6_3_Hard(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"", trust.Hard} {
		p := newPartner(t, mode, nil)
		p.expect(t, unknown, unknown)
		p.health(t, "trust:partner", "there is no revocation list yet")
		if len(p.alarms.with("no revocation list")) != 1 {
			t.Errorf("alarms: %v", p.alarms.with(""))
		}
		if err := p.put(t, p.list(t, p.ca, crl{revoked: []*x509.Certificate{p.withdrawn.Leaf}})); err != nil {
			t.Fatal(err)
		}
		p.expect(t, good, revoked)
		p.health(t, "trust:partner", "ok")
		if err := p.Reload(t.Context()); err != nil || p.changes.Load() != 1 { // again, and nothing new
			t.Errorf("%v, %d changes announced", err, p.changes.Load())
		}
	}
}

// XP-11: RFC 5280, Section 6.3: soft lets the unknown through, with one alarm however many come, but nothing that is
// known to be revoked.
func TestRFC5280_6_3_Soft(t *testing.T) {
	t.Parallel()
	p := newPartner(t, trust.Soft, nil)
	for range 3 {
		p.expect(t, good, good)
	}
	p.health(t, "trust:partner", "let through")
	if n := len(p.alarms.with("let through")); n != 1 {
		t.Errorf("%d alarms", n)
	}
	if err := p.put(t, p.list(t, p.ca, crl{revoked: []*x509.Certificate{p.withdrawn.Leaf}})); err != nil {
		t.Fatal(err)
	}
	p.expect(t, good, revoked)
	p.health(t, "trust:partner", "ok")
}

// XP-11: RFC 5280, Section 6.3: a stale list says no longer who is not revoked. Who was on it stays refused, softly
// too.
func TestRFC5280_6_3_Stale(t *testing.T) {
	t.Parallel()
	for mode, want := range map[string]string{trust.Hard: unknown, trust.Soft: good} {
		p := newPartner(t, mode, nil)
		if err := p.put(t, p.list(t, p.ca, crl{revoked: []*x509.Certificate{p.withdrawn.Leaf}})); err != nil {
			t.Fatal(err)
		}
		p.clock.move(time.Hour - time.Second) // to within a second of nextUpdate
		p.expect(t, good, revoked)
		p.clock.move(3 * time.Second)
		p.honest, p.withdrawn = p.again(t, p.honest), p.again(t, p.withdrawn)
		p.expect(t, want, revoked)
		if err := p.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		p.health(t, "trust:partner", "is stale since")
		if n := len(p.alarms.with("is stale since")); n != 1 {
			t.Errorf("%d alarms", n)
		}
		p.clock.move(-2 * time.Hour) // before thisUpdate
		if err := p.judgeChain(t, p.honest); outcome(err) != want {
			t.Errorf("%s, list not valid yet: %v", mode, err)
		}
	}
}

// again issues the same serial number with later dates, since what is tested is the list and not the certificate.
func (p *partner) again(t *testing.T, cert tls.Certificate) tls.Certificate {
	t.Helper()
	template := *cert.Leaf
	template.NotBefore, template.NotAfter = p.clock.now().Add(-24*time.Hour), p.clock.now().Add(24*time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, &template, p.ca.Certificate(), cert.Leaf.PublicKey, p.ca.Key())
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, Leaf: leaf}
}

// judgeChain judges revocation alone, whatever the certificates' dates are.
func (p *partner) judgeChain(t *testing.T, cert tls.Certificate) error {
	t.Helper()
	_, revocation, err := p.Anchors(t.Context(), "partner")
	if err != nil {
		t.Fatal(err)
	}
	return revocation.Check([]*x509.Certificate{cert.Leaf, p.ca.Certificate()}, p.clock.now())
}

// XP-11, XP-12, XP-13: RFC 5280, Section 6.3: lists that must not be believed: at the start they count for nothing, and
// later they leave the last good one in use, with an alarm.
func TestRFC5280_6_3_BadLists(t *testing.T) {
	t.Parallel()
	critical := []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}}
	for name, make := range map[string]func(*partner, *x509.Certificate) []byte{
		"empty":    func(*partner, *x509.Certificate) []byte { return nil },
		"no list":  func(*partner, *x509.Certificate) []byte { return []byte("<html>not found</html>") },
		"no DER":   func(*partner, *x509.Certificate) []byte { return []byte{0x30, 3, 1, 2} },
		"cut off":  func(p *partner, c *x509.Certificate) []byte { l := p.good(t, c); return l[:len(l)-1] },
		"appended": func(p *partner, c *x509.Certificate) []byte { return append(p.good(t, c), 0) },
		"PEM cut off": func(p *partner, c *x509.Certificate) []byte {
			l := listPEM(p.good(t, c))
			return l[:len(l)-10]
		},
		"second cut off": func(p *partner, c *x509.Certificate) []byte {
			l := listPEM(p.good(t, c))
			return append(l[:len(l):len(l)], l[:len(l)/2]...)
		},
		"other PEM too": func(p *partner, c *x509.Certificate) []byte {
			return append(listPEM(p.good(t, c)), certs(p.ca.Certificate())...)
		},
		"other label": func(p *partner, c *x509.Certificate) []byte {
			return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.good(t, c)})
		},
		"damaged signature": func(p *partner, c *x509.Certificate) []byte {
			l := p.good(t, c)
			l[len(l)-1] ^= 1
			return l
		},
		"another authority": func(p *partner, c *x509.Certificate) []byte {
			return p.list(t, mtlstest.NewCA(t, "other"), crl{number: 9, revoked: []*x509.Certificate{c}})
		},
		"sibling of the same name": func(p *partner, c *x509.Certificate) []byte {
			return p.list(t, mtlstest.NewCA(t, "partner"), crl{number: 9, revoked: []*x509.Certificate{c}})
		},
		"an authority below, not in the file": func(p *partner, c *x509.Certificate) []byte {
			return p.list(t, p.ca.Intermediate(t, "below"), crl{number: 9, revoked: []*x509.Certificate{c}})
		},
		"good and another's": func(p *partner, c *x509.Certificate) []byte {
			return listPEM(p.good(t, c), p.list(t, mtlstest.NewCA(t, "other"), crl{number: 9}))
		},
		"unknown critical extension": func(p *partner, c *x509.Certificate) []byte {
			return p.list(t, p.ca, crl{number: 9, revoked: []*x509.Certificate{c}, extensions: critical})
		},
		"unknown critical extension of an entry": func(p *partner, c *x509.Certificate) []byte {
			return p.list(t, p.ca, crl{number: 9, revoked: []*x509.Certificate{c}, entry: critical})
		},
		"for some certificates only": func(p *partner, c *x509.Certificate) []byte {
			idp := []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 28}, Critical: true, Value: []byte{0x30, 3, 0x81, 1, 0xff}}}
			return p.list(t, p.ca, crl{number: 9, revoked: []*x509.Certificate{c}, extensions: idp})
		},
		"not yet valid": func(p *partner, c *x509.Certificate) []byte {
			return p.list(t, p.ca, crl{number: 9, revoked: []*x509.Certificate{c}, thisUpdate: p.clock.now().Add(time.Minute)})
		},
		"too many": func(p *partner, c *x509.Certificate) []byte {
			l := listPEM(p.good(t, c))
			var all []byte
			for range 65 {
				all = append(all, l...)
			}
			return all
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPartner(t, trust.Hard, nil)
			bad := make(p, p.honest.Leaf)
			replace(t, p.path, bad)
			if err := p.Reload(t.Context()); err == nil || !strings.Contains(err.Error(), p.path) {
				t.Errorf("error is %v", err)
			}
			p.expect(t, unknown, unknown)
			if err := p.put(t, p.list(t, p.ca, crl{number: 5, revoked: []*x509.Certificate{p.withdrawn.Leaf}})); err != nil {
				t.Fatal(err)
			}
			before := len(p.alarms.with(p.path))
			if err := p.put(t, bad); err == nil {
				t.Error("it was accepted")
			}
			_ = p.Reload(t.Context())
			p.expect(t, good, revoked)
			p.health(t, "trust:partner", p.path)
			if n := len(p.alarms.with(p.path)); n != before+1 {
				t.Errorf("%d new alarms", n-before)
			}
		})
	}
}

// good is a list that would be believed, with a number above the others'.
func (p *partner) good(t *testing.T, c *x509.Certificate) []byte {
	t.Helper()
	return p.list(t, p.ca, crl{number: 9, revoked: []*x509.Certificate{c}})
}

// XP-11: RFC 5280, Section 6.3: an authority whose certificate does not let it sign lists signs none.
func TestRFC5280_6_3_SignerMayNotSignLists(t *testing.T) {
	t.Parallel()
	c, w := config(t)
	ca := mtlstest.NewCA(t, "ca")
	template := *ca.Certificate()
	template.KeyUsage = x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, ca.Key().Public(), ca.Key())
	if err != nil {
		t.Fatal(err)
	}
	limited, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	list := file(t, w.list(t, ca, crl{}))
	c.Files = []trust.FileTrust{ // the second one believes the list, which changes nothing for the first
		{Name: "p", CAFile: file(t, certs(limited)), CRLFile: list}, {Name: "q", CAFile: file(t, certs(ca.Certificate())), CRLFile: list},
	}
	w.start(t, c)
	if err := w.judge(t, "p", ca.Issue(t, mtlstest.Leaf{})); outcome(err) != unknown {
		t.Errorf("error is %v", err)
	}
}

// XP-11: RFC 5280, Section 5.2.3: a list of a lower number cannot take the place of the one in use, whatever it says.
func TestRFC5280_5_2_3_OlderList(t *testing.T) {
	t.Parallel()
	p := newPartner(t, trust.Hard, nil)
	if err := p.put(t, p.list(t, p.ca, crl{number: 5, revoked: []*x509.Certificate{p.withdrawn.Leaf}})); err != nil {
		t.Fatal(err)
	}
	if err := p.put(t, p.list(t, p.ca, crl{number: 4})); err == nil || !strings.Contains(err.Error(), "older") {
		t.Errorf("error is %v", err)
	}
	p.expect(t, good, revoked)
	if err := p.put(t, p.list(t, p.ca, crl{number: 6})); err != nil {
		t.Error(err)
	}
	p.expect(t, good, good)
	// Of two in one file the newer counts, wherever it stands.
	newer, older := p.list(t, p.ca, crl{number: 8, revoked: []*x509.Certificate{p.withdrawn.Leaf}}), p.list(t, p.ca, crl{number: 7})
	for _, file := range [][]byte{listPEM(newer, older), listPEM(older, newer)} {
		if err := p.put(t, file); err != nil {
			t.Error(err)
		}
		p.expect(t, good, revoked)
	}
}

// XP-13: RFC 5280, Section 6.3: a serial number means something only together with its issuer.
func TestRFC5280_6_3_SerialOfAnotherIssuer(t *testing.T) {
	t.Parallel()
	root := mtlstest.NewCA(t, "root")
	a, b := root.Intermediate(t, "a"), root.Intermediate(t, "b")
	ofA := a.Issue(t, mtlstest.Leaf{})
	ofB := sameSerial(t, b, ofA.Leaf.SerialNumber)
	c, w := config(t)
	lists := listPEM(w.list(t, root, crl{}), w.list(t, a, crl{revoked: []*x509.Certificate{ofA.Leaf}}), w.list(t, b, crl{}))
	c.Files = []trust.FileTrust{{
		Name: "p", CAFile: file(t, certs(root.Certificate(), a.Certificate(), b.Certificate())), CRLFile: file(t, lists),
	}}
	w.start(t, c)
	if err := w.judge(t, "p", ofA); outcome(err) != revoked || !strings.Contains(fmt.Sprint(err), ofA.Leaf.SerialNumber.String()) {
		t.Errorf("error is %v", err)
	}
	if err := w.judge(t, "p", ofB); outcome(err) != good {
		t.Errorf("error is %v", err)
	}
}

func sameSerial(t *testing.T, ca *mtlstest.CA, serial *big.Int) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "twin"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.Certificate(), key.Public(), ca.Key())
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// XP-11: RFC 5280, Section 6.3: every certificate of the chain but the root is judged: a revoked authority takes with
// it all that it issued, and one whose status is unknown leaves all of it unknown.
func TestRFC5280_6_3_WholeChain(t *testing.T) {
	t.Parallel()
	root := mtlstest.NewCA(t, "root")
	below := root.Intermediate(t, "below")
	client := below.Issue(t, mtlstest.Leaf{})
	for name, tt := range map[string]struct {
		lists func(w *world) []byte
		want  string
	}{
		"both":                    {func(w *world) []byte { return listPEM(w.list(t, root, crl{}), w.list(t, below, crl{})) }, good},
		"the authority's missing": {func(w *world) []byte { return w.list(t, below, crl{}) }, unknown},
		"the client's missing":    {func(w *world) []byte { return w.list(t, root, crl{}) }, unknown},
		"authority revoked": {func(w *world) []byte {
			return listPEM(w.list(t, root, crl{revoked: []*x509.Certificate{below.Certificate()}}), w.list(t, below, crl{}))
		}, revoked},
		"authority revoked, client's missing": {func(w *world) []byte {
			return w.list(t, root, crl{revoked: []*x509.Certificate{below.Certificate()}})
		}, revoked},
		"client revoked, authority's missing": {func(w *world) []byte {
			return w.list(t, below, crl{revoked: []*x509.Certificate{client.Leaf}})
		}, revoked},
	} {
		c, w := config(t)
		c.Files = []trust.FileTrust{{
			Name: "p", CAFile: file(t, certs(root.Certificate(), below.Certificate())), CRLFile: file(t, tt.lists(w)),
		}}
		w.start(t, c)
		if err := w.judge(t, "p", client); outcome(err) != tt.want {
			t.Errorf("%s: %s (error %v), want %s", name, outcome(err), err, tt.want)
		}
	}
}

// A chain that is none is not judged by lists that say nothing of it.
func TestNoChain(t *testing.T) {
	t.Parallel()
	p := newPartner(t, trust.Hard, nil)
	if err := p.put(t, p.list(t, p.ca, crl{})); err != nil {
		t.Fatal(err)
	}
	_, revocation, _ := p.Anchors(t.Context(), "partner")
	for _, chain := range [][]*x509.Certificate{nil, {p.honest.Leaf}} {
		if err := revocation.Check(chain, p.clock.now()); outcome(err) != unknown {
			t.Errorf("%d certificates: %v", len(chain), err)
		}
	}
}

// A missing list file is like a damaged one.
func TestListFileMissing(t *testing.T) {
	t.Parallel()
	p := newPartner(t, trust.Hard, nil)
	if err := p.put(t, p.list(t, p.ca, crl{})); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(p.path); err != nil {
		t.Fatal(err)
	}
	if err := p.Reload(t.Context()); err == nil {
		t.Error("not noticed")
	}
	p.expect(t, good, good)
	p.health(t, "trust:partner", filepath.Base(p.path))
}

// New certificates of the authority make a list good or worthless, without a change of the list.
func TestListsFollowCertificates(t *testing.T) {
	t.Parallel()
	old, next := mtlstest.NewCA(t, "ca"), mtlstest.NewCA(t, "ca")
	c, w := config(t)
	path := file(t, certs(old.Certificate()))
	client := next.Issue(t, mtlstest.Leaf{})
	c.Files = []trust.FileTrust{{Name: "p", CAFile: path, CRLFile: file(t, w.list(t, next, crl{revoked: []*x509.Certificate{client.Leaf}}))}}
	w.start(t, c)
	replace(t, path, certs(old.Certificate(), next.Certificate()))
	if err := w.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := w.judge(t, "p", client); outcome(err) != revoked {
		t.Errorf("error is %v", err)
	}
	_, revocation, _ := w.Anchors(t.Context(), "p")
	replace(t, path, certs(old.Certificate()))
	if err := w.Reload(t.Context()); err == nil {
		t.Error("the list is still good")
	}
	if err := revocation.Check([]*x509.Certificate{client.Leaf, next.Certificate()}, w.clock.now()); outcome(err) != unknown {
		t.Errorf("error is %v", err)
	}
}

// A fetched list: none before the first fetch, which is no alarm; then fetched before it is stale, and the last good
// one kept through failures, forgeries and old copies.
func TestFetchedList(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "partner")
	withdrawn := ca.Issue(t, mtlstest.Leaf{})
	lists := func(t *testing.T, fromFile bool) {
		c, w := config(t)
		if fromFile {
			c.Files = []trust.FileTrust{{Name: "p", CAFile: file(t, certs(ca.Certificate())), CRLURL: w.site.url}}
		}
		w.start(t, c)
		if !fromFile {
			w.add(t, store.Trust{Name: "p", Anchors: [][]byte{ca.Certificate().Raw}, CRLURL: w.site.url, Revocation: "hard"})
		}
		expect := func(what, want string) {
			t.Helper()
			if err := w.judge(t, "p", withdrawn); outcome(err) != want {
				t.Errorf("%s: %v, want %s", what, err, want)
			}
		}
		expect("before the first fetch", unknown)
		w.health(t, "trust:p", "no revocation list yet")
		if w.site.hits.Load() != 0 || len(w.alarms.with("")) != 0 {
			t.Errorf("%d fetches, alarms %v", w.site.hits.Load(), w.alarms.with(""))
		}
		w.site.fail()
		if err := w.Reload(t.Context()); err == nil || !strings.Contains(err.Error(), "503") {
			t.Errorf("error is %v", err)
		}
		expect("after a failed fetch", unknown)
		w.health(t, "trust:p", "503")
		w.site.show(w.list(t, ca, crl{number: 5, revoked: []*x509.Certificate{withdrawn.Leaf}}))
		if err := w.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		expect("with a list", revoked)
		w.health(t, "trust:p", "ok")
		changes := w.changes.Load()
		for what, body := range map[string][]byte{
			"forged": w.list(t, mtlstest.NewCA(t, "partner"), crl{number: 9}),
			"old":    w.list(t, ca, crl{number: 4}),
			"page":   []byte("<html>"),
		} {
			w.site.show(body)
			if err := w.Reload(t.Context()); err == nil {
				t.Errorf("%s: it was accepted", what)
			}
			expect(what, revoked)
			w.health(t, "trust:p", "cannot be fetched")
		}
		w.site.show(listPEM(w.list(t, ca, crl{number: 6})))
		if err := w.Reload(t.Context()); err != nil || w.changes.Load() != changes+1 {
			t.Errorf("%v, %d changes", err, w.changes.Load()-changes)
		}
		expect("with a newer list", good)
	}
	t.Run("file", func(t *testing.T) { t.Parallel(); lists(t, true) })
	t.Run("row", func(t *testing.T) { t.Parallel(); lists(t, false) })
}

// A list by value and one by address: the newer counts.
func TestGivenAndFetched(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "partner")
	withdrawn := ca.Issue(t, mtlstest.Leaf{})
	on := []*x509.Certificate{withdrawn.Leaf}
	for _, tt := range []struct {
		given, fetched crl
		want           string
	}{
		{crl{number: 1}, crl{number: 2, revoked: on}, revoked},
		{crl{number: 3}, crl{number: 2, revoked: on}, good},
		{crl{number: 3, revoked: on}, crl{number: 2}, revoked},
	} {
		c, w := config(t)
		w.site.show(w.list(t, ca, tt.fetched))
		w.start(t, c)
		w.add(t, store.Trust{Name: "p", Anchors: [][]byte{ca.Certificate().Raw}, CRL: w.list(t, ca, tt.given), CRLURL: w.site.url, Revocation: "hard"})
		if err := w.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := w.judge(t, "p", withdrawn); outcome(err) != tt.want {
			t.Errorf("%v, want %s", err, tt.want)
		}
	}
}

// A row's mode, list and address count from the moment at which they are changed; the newest list that was there stays
// in use, whatever place it came from.
func TestRowChangesRevocation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ca, other := mtlstest.NewCA(t, "ca"), mtlstest.NewCA(t, "other")
	withdrawn := ca.Issue(t, mtlstest.Leaf{})
	row := store.Trust{Name: "p", Anchors: [][]byte{ca.Certificate().Raw}, Revocation: "off"}
	w.add(t, row)
	step := func(what, want string, change func()) {
		t.Helper()
		change()
		if err := w.store.ReplaceTrust(t.Context(), row); err != nil {
			t.Fatal(err)
		}
		if err := w.judge(t, "p", withdrawn); outcome(err) != want {
			t.Errorf("%s: %v, want %s", what, err, want)
		}
	}
	step("off", good, func() {})
	step("hard, a list to be fetched", unknown, func() { row.Revocation, row.CRLURL = "hard", w.site.url })
	step("soft", good, func() { row.Revocation = "soft" })
	step("a list instead", revoked, func() {
		row.Revocation, row.CRLURL = "hard", ""
		row.CRL = w.list(t, ca, crl{revoked: []*x509.Certificate{withdrawn.Leaf}})
	})
	older := row.CRL
	step("a newer list", good, func() { row.CRL = w.list(t, ca, crl{number: 2}) })
	step("an address instead", good, func() { row.CRL, row.CRLURL = nil, w.site.url })
	w.site.show(w.list(t, ca, crl{number: 3, revoked: []*x509.Certificate{withdrawn.Leaf}}))
	if err := w.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	step("fetched", revoked, func() {})
	step("another address", revoked, func() { row.CRLURL = w.site.url + "2" })
	step("softly too", revoked, func() { row.Revocation = "soft" })
	step("a bad list", revoked, func() { row.CRL = []byte("x") })
	w.health(t, "trust:p", "in the database is not used")
	step("an older list", revoked, func() { row.CRL = older })
	w.health(t, "trust:p", "is older than one that was there before")
	step("without a list", revoked, func() { row.CRL = nil })
	w.health(t, "trust:p", "ok")
	row.Anchors = [][]byte{other.Certificate().Raw}
	if err := w.store.ReplaceTrust(t.Context(), row); err != nil {
		t.Fatal(err)
	}
	_, _, _ = w.Anchors(t.Context(), "p") // the signer has left, and its list with it
	step("an old list of who comes back", good, func() {
		row.Anchors, row.CRL = [][]byte{ca.Certificate().Raw}, w.list(t, ca, crl{number: 2})
	})
	w.health(t, "trust:p", `let through: revocation status unknown: there is no list of "CN=ca"`)
	step("its list again", revoked, func() {
		row.CRL = w.list(t, ca, crl{number: 3, revoked: []*x509.Certificate{withdrawn.Leaf}})
	})
}

// XP-11: RFC 5280, Section 5.2.3: lists are remembered signer by signer: one that is missing from what is there now stays
// in use, and an older one cannot come back when it was missing for a while.
func TestRFC5280_5_2_3_SignerMissingForAWhile(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{trust.Hard, trust.Soft} {
		c, w := config(t)
		root := mtlstest.NewCA(t, "root")
		below := root.Intermediate(t, "below")
		honest, withdrawn := below.Issue(t, mtlstest.Leaf{}), below.Issue(t, mtlstest.Leaf{})
		c.Files = []trust.FileTrust{{
			Name: "p", CAFile: file(t, certs(root.Certificate(), below.Certificate())), CRLURL: w.site.url, Revocation: mode,
		}}
		w.start(t, c)
		on := []*x509.Certificate{withdrawn.Leaf}
		for _, step := range []struct {
			what string
			body []byte
			good bool
		}{
			{"both lists", listPEM(w.list(t, root, crl{}), w.list(t, below, crl{number: 5, revoked: on})), true},
			{"one is missing", w.list(t, root, crl{number: 2}), true},
			{"the other one", w.list(t, below, crl{number: 5, revoked: on}), true},
			{"missing again", w.list(t, root, crl{number: 2}), true},
			{"an older one comes back", listPEM(w.list(t, root, crl{number: 2}), w.list(t, below, crl{number: 4})), false},
			{"and alone", w.list(t, below, crl{number: 4}), false},
		} {
			w.site.show(step.body)
			if err := w.Reload(t.Context()); (err == nil) != step.good {
				t.Errorf("%s, %s: %v", mode, step.what, err)
			}
			if err := w.judge(t, "p", withdrawn); outcome(err) != revoked {
				t.Errorf("%s, %s: %v, want it revoked", mode, step.what, err)
			}
			if err := w.judge(t, "p", honest); err != nil {
				t.Errorf("%s, %s: %v", mode, step.what, err)
			}
		}
	}
}

// XP-11: RFC 5280, Section 5.2.3: a list older than one that this process has seen is not believed in a trust that is
// added anew either, under its old name or another, and the newest one serves every trust with its signer.
func TestRFC5280_5_2_3_OlderListOfAnotherTrust(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ca := mtlstest.NewCA(t, "ca")
	withdrawn := ca.Issue(t, mtlstest.Leaf{})
	old, newer := w.list(t, ca, crl{number: 4}), w.list(t, ca, crl{number: 5, revoked: []*x509.Certificate{withdrawn.Leaf}})
	row := func(name string, list []byte) store.Trust {
		return store.Trust{Name: name, Anchors: [][]byte{ca.Certificate().Raw}, CRL: list, Revocation: "soft"}
	}
	expect := func(name, want string) {
		t.Helper()
		if err := w.judge(t, name, withdrawn); outcome(err) != want {
			t.Errorf("%s: %v, want %s", name, err, want)
		}
	}
	w.add(t, row("a", old))
	expect("a", good)
	_, revocation, _ := w.Anchors(t.Context(), "a")
	w.add(t, row("b", newer))
	expect("b", revoked)
	if err := revocation.Check([]*x509.Certificate{withdrawn.Leaf, ca.Certificate()}, w.clock.now()); outcome(err) != revoked {
		t.Errorf("the first trust is judged by the older list still: %v", err)
	}
	expect("a", revoked)
	for _, name := range []string{"a", "b"} {
		if err := w.store.RemoveTrust(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	_, _, _ = w.Anchors(t.Context(), "a") // nobody has the signer now
	w.add(t, store.Trust{Name: "c", Anchors: [][]byte{ca.Certificate().Raw}, CRL: old, Revocation: "hard"})
	expect("c", unknown)
	w.health(t, "trust:c", `there is no revocation list yet of "CN=ca"`)
}

// XP-11: RFC 5280, Section 6.3: every authority of a trust that has no list is named in Health and in one alarm, since it
// leaves the status of all that it signed unknown. Softly, a root without one is none.
func TestRFC5280_6_3_MissingListIsNamed(t *testing.T) {
	t.Parallel()
	root := mtlstest.NewCA(t, "root")
	one, two := root.Intermediate(t, "one"), root.Intermediate(t, "two")
	for mode, rootNamed := range map[string]bool{trust.Hard: true, trust.Soft: false} {
		c, w := config(t)
		c.Files = []trust.FileTrust{{
			Name: "p", CAFile: file(t, certs(root.Certificate(), one.Certificate(), two.Certificate())),
			CRLFile: file(t, w.list(t, two, crl{})), CRLURL: w.site.url, Revocation: mode,
		}}
		w.start(t, c)
		w.health(t, "trust:p", `"CN=one" (not fetched yet)`)
		if n := len(w.alarms.with("no revocation list")); n != 0 {
			t.Errorf("%d alarms before the first fetch", n)
		}
		w.site.show(w.list(t, two, crl{}))
		for range 3 {
			if err := w.Reload(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		text := w.Health()["trust:p"]
		if !strings.Contains(text, `"CN=one"`) || strings.Contains(text, "two") || strings.Contains(text, "root") != rootNamed {
			t.Errorf("%s: health is %q", mode, text)
		}
		if n := len(w.alarms.with(text)); n != 1 {
			t.Errorf("%s: %d alarms", mode, n)
		}
		w.site.show(listPEM(w.list(t, root, crl{}), w.list(t, one, crl{}), w.list(t, two, crl{})))
		if err := w.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.health(t, "trust:p", "ok")
	}
}

// A fetched list is dropped with its signer, and one of the new signer is fetched at once and not when it is due.
func TestFetchedListFollowsCertificates(t *testing.T) {
	t.Parallel()
	old, next := mtlstest.NewCA(t, "ca"), mtlstest.NewCA(t, "ca")
	c, w := config(t)
	path := file(t, certs(old.Certificate()))
	former, client := old.Issue(t, mtlstest.Leaf{}), next.Issue(t, mtlstest.Leaf{})
	c.Files = []trust.FileTrust{{Name: "p", CAFile: path, CRLURL: w.site.url}}
	w.start(t, c)
	w.site.show(w.list(t, old, crl{}))
	if err := w.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, revocation, _ := w.Anchors(t.Context(), "p")
	chain := []*x509.Certificate{former.Leaf, old.Certificate()}
	if err := revocation.Check(chain, w.clock.now()); err != nil {
		t.Fatal(err)
	}
	w.site.show(w.list(t, next, crl{revoked: []*x509.Certificate{client.Leaf}}))
	replace(t, path, certs(next.Certificate()))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		w.Run(ctx)
		close(done)
	}()
	chain = []*x509.Certificate{client.Leaf, next.Certificate()}
	for outcome(revocation.Check(chain, w.clock.now())) != revoked {
		select {
		case <-t.Context().Done():
			t.Fatal("the new list is not fetched")
		case <-time.After(10 * time.Millisecond):
		}
	}
	cancel()
	<-done
	w.site.fail()
	replace(t, path, certs(old.Certificate()))
	if err := w.Reload(t.Context()); err == nil {
		t.Error("the fetch did not fail")
	}
	if err := revocation.Check(chain, w.clock.now()); outcome(err) != unknown {
		t.Errorf("a former signer's list still counts: %v", err)
	}
}

// XP-13: RFC 5280, Section 6.3: authorities of one name in one trust have a list each.
func TestRFC5280_6_3_SiblingsOfOneName(t *testing.T) {
	t.Parallel()
	a, b := mtlstest.NewCA(t, "Same Name"), mtlstest.NewCA(t, "Same Name")
	ofA, ofB := a.Issue(t, mtlstest.Leaf{}), b.Issue(t, mtlstest.Leaf{})
	c, w := config(t)
	lists := listPEM(w.list(t, a, crl{revoked: []*x509.Certificate{ofA.Leaf}}), w.list(t, b, crl{}))
	c.Files = []trust.FileTrust{{Name: "p", CAFile: file(t, certs(a.Certificate(), b.Certificate())), CRLFile: file(t, lists)}}
	w.start(t, c)
	if err := w.judge(t, "p", ofA); outcome(err) != revoked {
		t.Errorf("error is %v", err)
	}
	if err := w.judge(t, "p", ofB); outcome(err) != good {
		t.Errorf("error is %v", err)
	}
}
