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
	c.Files = []trust.FileTrust{{Name: "p", CAFile: file(t, certs(limited)), CRLFile: file(t, w.list(t, ca, crl{}))}}
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

// A row's mode, list and address count from the moment at which they are changed.
func TestRowChangesRevocation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ca := mtlstest.NewCA(t, "ca")
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
	step("hard", revoked, func() {
		row.Revocation, row.CRL = "hard", w.list(t, ca, crl{revoked: []*x509.Certificate{withdrawn.Leaf}})
	})
	step("a newer list", good, func() { row.CRL = w.list(t, ca, crl{number: 2}) })
	step("an address instead", unknown, func() { row.CRL, row.CRLURL = nil, w.site.url })
	w.site.show(w.list(t, ca, crl{number: 3, revoked: []*x509.Certificate{withdrawn.Leaf}}))
	if err := w.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	step("fetched", revoked, func() {})
	step("another address", unknown, func() { row.CRLURL = w.site.url + "2" })
	step("soft", good, func() { row.Revocation = "soft" })
	step("a bad list", good, func() { row.CRL = []byte("x") })
	w.health(t, "trust:p", "in the database is not used")
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
