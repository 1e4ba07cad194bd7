// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package trust_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/certbound/certbound/cmd/internal/fetch"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/cmd/internal/trust"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
)

// badFiles are CA files that must not be used, each with one defect. The empty name is a file that is not there.
func badFiles(t *testing.T) map[string][]byte {
	t.Helper()
	ca := mtlstest.NewCA(t, "ca")
	good := certs(ca.Certificate())
	leaf := mtlstest.SelfSigned(t, mtlstest.Leaf{})
	key, err := x509.MarshalPKCS8PrivateKey(ca.Key())
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{
		"empty":                     {},
		"white space":               []byte("\n\n"),
		"truncated":                 good[:len(good)/2],
		"truncated in the second":   append(bytes.Clone(good), good[:len(good)/2]...),
		"end missing":               good[:len(good)-20],
		"no CA":                     certs(leaf.Leaf),
		"a CA and no CA":            append(bytes.Clone(good), certs(leaf.Leaf)...),
		"a private key too":         append(bytes.Clone(good), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...),
		"a private key before":      append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), good...),
		"DER":                       ca.Certificate().Raw,
		"not a certificate":         pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}),
		"an intermediate alone":     certs(ca.Intermediate(t, "below").Certificate()),
		"longer than a file may be": append(bytes.Clone(good), bytes.Repeat([]byte("#\n"), 1<<19)...),
		"more than it may hold":     bytes.Repeat(good, 257),
	}
}

// A CA file that cannot be used keeps the program from starting, and never means the system's roots or nobody's.
func TestBadFileAtStart(t *testing.T) {
	t.Parallel()
	c, _ := config(t)
	try := func(name, path string) {
		c.Files = []trust.FileTrust{{Name: "partner", CAFile: path}}
		m, err := trust.New(c)
		if err == nil || m != nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), `"partner"`) {
			t.Errorf("%s: error is %v", name, err)
		}
	}
	for name, content := range badFiles(t) {
		try(name, file(t, content))
	}
	try("missing", filepath.Join(t.TempDir(), "missing.pem"))
	try("a folder", t.TempDir())
}

// The same later on: the last good one stays, there is one alarm, Health tells it, and all is well when the file is.
func TestBadFileAtReload(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "partner")
	client := ca.Issue(t, mtlstest.Leaf{})
	bad := badFiles(t)
	bad["missing"] = nil
	for name, content := range bad {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := file(t, certs(ca.Certificate()))
			w := newWorld(t, trust.FileTrust{Name: "partner", CAFile: path})
			before, _, _ := w.Anchors(t.Context(), "partner")
			if name == "missing" {
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
			} else {
				replace(t, path, content)
			}
			for range 3 {
				if err := w.Reload(t.Context()); err == nil || !strings.Contains(err.Error(), path) {
					t.Errorf("error is %v", err)
				}
			}
			if after, _, err := w.Anchors(t.Context(), "partner"); err != nil || after != before || before == nil {
				t.Errorf("the last good anchors did not stay: %v", err)
			}
			if err := w.judge(t, "partner", client); err != nil {
				t.Error(err)
			}
			w.health(t, "trust:partner", path)
			w.health(t, "trust:partner", "the last good one is in use")
			if n := len(w.alarms.with("trust:partner")); n != 1 {
				t.Errorf("%d alarms: %v", n, w.alarms.with(""))
			}
			if w.changes.Load() != 0 {
				t.Error("a change was announced")
			}
			replace(t, path, certs(ca.Certificate()))
			if err := w.Reload(t.Context()); err != nil {
				t.Error(err)
			}
			w.health(t, "trust:partner", "ok")
		})
	}
}

// Anchors are another value exactly when their bytes changed, since connections remember chains by it.
func TestAnchorsPointer(t *testing.T) {
	t.Parallel()
	one, two := mtlstest.NewCA(t, "one"), mtlstest.NewCA(t, "two")
	path := file(t, certs(one.Certificate()))
	w := newWorld(t, trust.FileTrust{Name: "partner", CAFile: path})
	first, revocation, err := w.Anchors(t.Context(), "partner")
	if err != nil || revocation != nil {
		t.Fatalf("%v, %v", revocation, err)
	}
	replace(t, path, certs(one.Certificate()))
	if err := w.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if same, _, _ := w.Anchors(t.Context(), "partner"); same != first || w.changes.Load() != 0 {
		t.Error("the anchors changed, though their bytes did not")
	}
	replace(t, path, certs(two.Certificate()))
	if err := w.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	second, _, _ := w.Anchors(t.Context(), "partner")
	if second == first || w.changes.Load() != 1 {
		t.Errorf("the anchors did not change, or %d changes were announced", w.changes.Load())
	}
	peer := mtlstest.PeerOf(one.Issue(t, mtlstest.Leaf{}))
	if peer.VerifiedBy(first, w.clock.now()) != nil || !errors.Is(peer.VerifiedBy(second, w.clock.now()), mtls.ErrUntrusted) {
		t.Error("the former authority still vouches, or never did")
	}
}

// CA-14: RFC 8705, Section 7.4: two authorities of the same name are two, and each vouches for its own clients only.
func TestRFC8705_7_4_AuthoritiesOfOneName(t *testing.T) {
	t.Parallel()
	a, b := mtlstest.NewCA(t, "Same Name"), mtlstest.NewCA(t, "Same Name")
	w := newWorld(t, trust.FileTrust{Name: "a", CAFile: file(t, certs(a.Certificate()))})
	w.add(t, store.Trust{Name: "b", Anchors: [][]byte{b.Certificate().Raw}, Revocation: "off"})
	for name, want := range map[string]map[*mtlstest.CA]bool{"a": {a: true, b: false}, "b": {a: false, b: true}} {
		anchors, _, err := w.Anchors(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		for ca, vouches := range want {
			err := mtlstest.PeerOf(ca.Issue(t, mtlstest.Leaf{})).VerifiedBy(anchors, w.clock.now())
			if (err == nil) != vouches {
				t.Errorf("%s: error is %v, want success %v", name, err, vouches)
			}
		}
	}
	if _, _, err := w.Anchors(t.Context(), "c"); !errors.Is(err, trust.ErrUnknown) {
		t.Errorf("error is %v", err)
	}
}

func (w *world) add(t *testing.T, row store.Trust) {
	t.Helper()
	if err := w.store.AddTrust(t.Context(), row); err != nil {
		t.Fatal(err)
	}
}

// Intermediates of the file, and those that a client presents, may stand between; none of them is an anchor.
func TestIntermediates(t *testing.T) {
	t.Parallel()
	root := mtlstest.NewCA(t, "root")
	known, unknown := root.Intermediate(t, "known"), root.Intermediate(t, "unknown")
	w := newWorld(t, trust.FileTrust{Name: "p", CAFile: file(t, certs(known.Certificate(), root.Certificate()))})
	anchors, _, _ := w.Anchors(t.Context(), "p")
	if n := len(anchors.Fingerprints()); n != 1 {
		t.Errorf("%d anchors", n)
	}
	alone := known.Issue(t, mtlstest.Leaf{})
	alone.Certificate = alone.Certificate[:1]
	if err := w.judge(t, "p", alone); err != nil {
		t.Error(err)
	}
	if err := w.judge(t, "p", unknown.Issue(t, mtlstest.Leaf{})); err != nil {
		t.Error(err)
	}
}

// Rows are read when they are asked for, and again when they changed; what was removed is unknown at once.
func TestRows(t *testing.T) {
	t.Parallel()
	one, two, other := mtlstest.NewCA(t, "one"), mtlstest.NewCA(t, "two"), mtlstest.NewCA(t, "other")
	w := newWorld(t)
	row := store.Trust{Name: "p", Anchors: [][]byte{one.Certificate().Raw}, Revocation: "off"}
	w.add(t, row)
	if w.changes.Load() != 1 {
		t.Errorf("%d changes announced", w.changes.Load())
	}
	first, _, err := w.Anchors(t.Context(), "p")
	if err != nil {
		t.Fatal(err)
	}
	w.add(t, store.Trust{Name: "q", Anchors: [][]byte{other.Certificate().Raw}, Revocation: "off"})
	if same, _, _ := w.Anchors(t.Context(), "p"); same != first {
		t.Error("the anchors changed with another row")
	}
	row.Anchors = [][]byte{two.Certificate().Raw}
	if err := w.store.ReplaceTrust(t.Context(), row); err != nil {
		t.Fatal(err)
	}
	second, _, err := w.Anchors(t.Context(), "p")
	if err != nil || second == first || second.Equal(first) {
		t.Errorf("the anchors did not change: %v", err)
	}
	row.Intermediates = [][]byte{other.Certificate().Raw}
	if err := w.store.ReplaceTrust(t.Context(), row); err != nil {
		t.Fatal(err)
	}
	if third, _, err := w.Anchors(t.Context(), "p"); err != nil || third == second {
		t.Errorf("the anchors did not change with the intermediates: %v", err)
	}
	row.Anchors, row.Intermediates = append(row.Anchors, row.Intermediates...), nil
	if err := w.store.ReplaceTrust(t.Context(), row); err != nil {
		t.Fatal(err)
	}
	if fourth, _, err := w.Anchors(t.Context(), "p"); err != nil || len(fourth.Fingerprints()) != 2 {
		t.Errorf("the intermediate did not become an anchor: %v", err)
	}
	w.health(t, "trust:p", "ok")
	if err := w.store.RemoveTrust(t.Context(), "p"); err != nil {
		t.Fatal(err)
	}
	if a, _, err := w.Anchors(t.Context(), "p"); !errors.Is(err, trust.ErrUnknown) || a != nil {
		t.Errorf("a removed trust: %v", err)
	}
	if _, there := w.Health()["trust:p"]; there {
		t.Error("a removed trust is in Health")
	}
	if w.changes.Load() != 6 {
		t.Errorf("%d changes announced, want 6", w.changes.Load())
	}
}

// counted is a database that counts how often its trusts are read.
type counted struct {
	*store.Store
	reads atomic.Int64
}

func (c *counted) Trusts(ctx context.Context) ([]store.Trust, error) {
	c.reads.Add(1)
	return c.Store.Trusts(ctx)
}

// The database is read once for each change of its trusts, not for each question, nor for other changes.
func TestRowsAreRemembered(t *testing.T) {
	t.Parallel()
	c, w := config(t)
	db := &counted{Store: w.store}
	c.Store = db
	w.start(t, c)
	row := store.Trust{Name: "p", Anchors: [][]byte{mtlstest.NewCA(t, "ca").Certificate().Raw}, Revocation: "off"}
	w.add(t, row)
	ask := func(want int64) {
		t.Helper()
		for range 3 {
			if _, _, err := w.Anchors(t.Context(), "p"); err != nil {
				t.Fatal(err)
			}
		}
		if n := db.reads.Load(); n != want {
			t.Errorf("%d readings, want %d", n, want)
		}
	}
	ask(1)
	if err := w.store.AddResource(t.Context(), store.Resource{URI: "https://api.example", Scopes: []string{"read"}}); err != nil {
		t.Fatal(err)
	}
	ask(1)
	if n := w.changes.Load(); n != 1 {
		t.Errorf("%d changes announced", n)
	}
	if err := w.store.ReplaceTrust(t.Context(), row); err != nil {
		t.Fatal(err)
	}
	ask(2)
}

// A damaged row vouches for nobody, and says so.
func TestDamagedRow(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "ca")
	leaf := mtlstest.SelfSigned(t, mtlstest.Leaf{})
	good := ca.Certificate().Raw
	for name, row := range map[string]store.Trust{
		"no DER":           {Anchors: [][]byte{[]byte("x")}, Revocation: "off"},
		"no CA":            {Anchors: [][]byte{leaf.Certificate[0]}, Revocation: "off"},
		"intermediate":     {Anchors: [][]byte{good}, Intermediates: [][]byte{[]byte("x")}, Revocation: "off"},
		"nothing to judge": {Anchors: [][]byte{good}, Revocation: "hard"},
	} {
		w := newWorld(t)
		row.Name = "p"
		w.add(t, store.Trust{Name: "p", Anchors: [][]byte{good}, Revocation: "off"})
		if _, _, err := w.Anchors(t.Context(), "p"); err != nil {
			t.Fatal(err)
		}
		if err := w.store.ReplaceTrust(t.Context(), row); err != nil {
			t.Fatal(err)
		}
		if a, _, err := w.Anchors(t.Context(), "p"); err == nil || a != nil {
			t.Errorf("%s: error is %v", name, err)
		}
		w.health(t, "trust:p", "damaged")
		if err := w.store.RemoveTrust(t.Context(), "p"); err != nil {
			t.Fatal(err)
		}
		_, _, _ = w.Anchors(t.Context(), "p")
		if _, there := w.Health()["trust:p"]; there {
			t.Errorf("%s: it is in Health though it was removed", name)
		}
		w.add(t, row)
		_, _, _ = w.Anchors(t.Context(), "p")
		if err := w.store.ReplaceTrust(t.Context(), store.Trust{Name: "p", Anchors: [][]byte{good}, Revocation: "off"}); err != nil {
			t.Fatal(err)
		}
		if _, _, err := w.Anchors(t.Context(), "p"); err != nil {
			t.Errorf("%s, mended: %v", name, err)
		}
		w.health(t, "trust:p", "ok")
	}
}

// When the database cannot be read nobody is vouched for by what may have been removed; files still do.
func TestDatabaseFails(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "ca")
	w := newWorld(t, trust.FileTrust{Name: "f", CAFile: file(t, certs(ca.Certificate()))})
	w.add(t, store.Trust{Name: "p", Anchors: [][]byte{ca.Certificate().Raw}, Revocation: "off"})
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Anchors(t.Context(), "p"); err == nil || errors.Is(err, trust.ErrUnknown) {
		t.Errorf("error is %v", err)
	}
	w.health(t, "trusts", "cannot be read")
	if _, _, err := w.Anchors(t.Context(), "f"); err != nil {
		t.Error(err)
	}
}

// A file stands over a row of its name, which is said.
func TestFileStandsOverRow(t *testing.T) {
	t.Parallel()
	ca, other := mtlstest.NewCA(t, "ca"), mtlstest.NewCA(t, "other")
	w := newWorld(t, trust.FileTrust{Name: "p", CAFile: file(t, certs(ca.Certificate()))})
	w.add(t, store.Trust{Name: "p", Anchors: [][]byte{other.Certificate().Raw}, Revocation: "off"})
	if err := w.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := w.judge(t, "p", ca.Issue(t, mtlstest.Leaf{})); err != nil {
		t.Error(err)
	}
	w.health(t, "trust:p", "not used")
}

// Our own CA vouches only for what is in the inventory, so it is no foreign authority, under whatever certificate.
func TestOwnCAIsNoForeignOne(t *testing.T) {
	t.Parallel()
	own, foreign := mtlstest.NewCA(t, "own"), mtlstest.NewCA(t, "foreign")
	for name, content := range map[string][]byte{
		"itself":       certs(own.Certificate()),
		"among others": certs(foreign.Certificate(), own.Certificate()),
		"its key":      certs(foreign.Certificate(), signedBy(t, foreign, own.Certificate())),
		"below":        certs(foreign.Certificate(), own.Intermediate(t, "issuing").Certificate()),
	} {
		c, _ := config(t)
		c.OwnCAs = []*x509.Certificate{own.Certificate()}
		c.Files = []trust.FileTrust{{Name: "p", CAFile: file(t, content)}}
		if _, err := trust.New(c); err == nil || !strings.Contains(err.Error(), "our own CA") {
			t.Errorf("%s: error is %v", name, err)
		}
	}
}

// signedBy returns a certificate of the same name and key that another authority signed.
func signedBy(t *testing.T, ca *mtlstest.CA, cert *x509.Certificate) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, cert, ca.Certificate(), cert.PublicKey, ca.Key())
	if err != nil {
		t.Fatal(err)
	}
	signed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// A certificate by which an authority signs its next key has its name twice, but is no anchor: neither in a file nor in a
// row that calls it one, where alone it makes no trust at all.
func TestRolloverIsNoAnchor(t *testing.T) {
	t.Parallel()
	old, next := mtlstest.NewCA(t, "ca"), mtlstest.NewCA(t, "ca")
	rollover := signedBy(t, old, next.Certificate())
	w := newWorld(t, trust.FileTrust{Name: "f", CAFile: file(t, certs(old.Certificate(), rollover))})
	w.add(t, store.Trust{Name: "r", Anchors: [][]byte{rollover.Raw, old.Certificate().Raw}, Revocation: "off"})
	w.add(t, store.Trust{Name: "i", Anchors: [][]byte{rollover.Raw}, Intermediates: [][]byte{old.Certificate().Raw}, Revocation: "off"})
	for _, name := range []string{"f", "r", "i"} {
		anchors, _, err := w.Anchors(t.Context(), name)
		if err != nil || len(anchors.Fingerprints()) != 1 || anchors.Fingerprints()[0] != mtls.ThumbprintOf(old.Certificate()) {
			t.Errorf("%s: %v", name, err)
		}
		if err := w.judge(t, name, next.Issue(t, mtlstest.Leaf{})); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.add(t, store.Trust{Name: "alone", Anchors: [][]byte{rollover.Raw}, Revocation: "off"})
	if anchors, _, err := w.Anchors(t.Context(), "alone"); err == nil || anchors != nil {
		t.Errorf("error is %v", err)
	}
	w.health(t, "trust:alone", "no certificate is self-signed")
}

// An anchor has signed itself under its own name; everything else stands between, and nothing else makes one.
func TestSplitAuthorities(t *testing.T) {
	t.Parallel()
	root, sibling := mtlstest.NewCA(t, "root"), mtlstest.NewCA(t, "root")
	below := root.Intermediate(t, "below").Certificate()
	rollover := signedBy(t, root, sibling.Certificate())
	forged := *root.Certificate()
	forged.Signature = bytes.Clone(forged.Signature)
	forged.Signature[len(forged.Signature)-1] ^= 1
	otherName := sameKeyOtherName(t, root)
	for name, tt := range map[string]struct{ certs, anchors, intermediates []*x509.Certificate }{
		"a root":            {[]*x509.Certificate{root.Certificate()}, []*x509.Certificate{root.Certificate()}, nil},
		"in whatever order": {[]*x509.Certificate{below, root.Certificate()}, []*x509.Certificate{root.Certificate()}, []*x509.Certificate{below}},
		"two roots": {[]*x509.Certificate{root.Certificate(), sibling.Certificate()},
			[]*x509.Certificate{root.Certificate(), sibling.Certificate()}, nil},
		"a rollover": {[]*x509.Certificate{rollover, root.Certificate()}, []*x509.Certificate{root.Certificate()}, []*x509.Certificate{rollover}},
		"its key under another name": {[]*x509.Certificate{root.Certificate(), otherName},
			[]*x509.Certificate{root.Certificate()}, []*x509.Certificate{otherName}},
		"a rollover alone":     {[]*x509.Certificate{rollover}, nil, nil},
		"in the middle":        {[]*x509.Certificate{below}, nil, nil},
		"a damaged signature":  {[]*x509.Certificate{&forged}, nil, nil},
		"nothing":              {nil, nil, nil},
		"another's name alone": {[]*x509.Certificate{otherName}, nil, nil},
	} {
		anchors, intermediates, err := trust.SplitAuthorities(tt.certs)
		if !slices.Equal(anchors, tt.anchors) || !slices.Equal(intermediates, tt.intermediates) || (err == nil) != (tt.anchors != nil) {
			t.Errorf("%s: %d anchors, %d intermediates, %v", name, len(anchors), len(intermediates), err)
		}
	}
}

// sameKeyOtherName returns a certificate of ca's own key for another name, signed by that key.
func sameKeyOtherName(t *testing.T, ca *mtlstest.CA) *x509.Certificate {
	t.Helper()
	template := *ca.Certificate()
	template.Subject, template.RawSubject = pkix.Name{CommonName: "another name"}, nil
	return signedBy(t, ca, &template)
}

func TestBadConfig(t *testing.T) {
	t.Parallel()
	good := file(t, certs(mtlstest.NewCA(t, "ca").Certificate()))
	for name, change := range map[string]func(*trust.Config){
		"no store":   func(c *trust.Config) { c.Store = nil },
		"no fetcher": func(c *trust.Config) { c.Fetcher = nil },
		"no name":    func(c *trust.Config) { c.Files = []trust.FileTrust{{CAFile: good}} },
		"one name twice": func(c *trust.Config) {
			c.Files = []trust.FileTrust{{Name: "a", CAFile: good}, {Name: "a", CAFile: good}}
		},
		"unknown mode":     func(c *trust.Config) { c.Files = []trust.FileTrust{{Name: "a", CAFile: good, Revocation: "firm"}} },
		"nothing to judge": func(c *trust.Config) { c.Files = []trust.FileTrust{{Name: "a", CAFile: good, Revocation: "hard"}} },
		"nor softly":       func(c *trust.Config) { c.Files = []trust.FileTrust{{Name: "a", CAFile: good, Revocation: "soft"}} },
	} {
		c, _ := config(t)
		change(&c)
		if _, err := trust.New(c); err == nil {
			t.Errorf("%s: it was accepted", name)
		}
	}
}

// noRows is a database without trusts, for a bubble in which a real one would never come to rest.
type noRows struct{}

func (noRows) Trusts(context.Context) ([]store.Trust, error) { return nil, nil }
func (noRows) OnChange(func(store.Change))                   {}
func (noRows) Client(context.Context, string) (store.Client, error) {
	return store.Client{}, store.ErrNotFound
}
func (noRows) Publishers(context.Context, string, int) ([]store.Client, error) { return nil, nil }

// Run notices an exchanged symbolic link, as mounted secrets have it, within two seconds; and it ends.
func TestRunNoticesFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	one, two := mtlstest.NewCA(t, "one"), mtlstest.NewCA(t, "two")
	link := filepath.Join(dir, "data")
	point := func(ca *mtlstest.CA, folder string) {
		if err := os.MkdirAll(filepath.Join(dir, folder), 0o700); err != nil {
			t.Fatal(err)
		}
		replace(t, filepath.Join(dir, folder, "ca.pem"), certs(ca.Certificate()))
		if err := os.Symlink(folder, link+".new"); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(link+".new", link); err != nil {
			t.Fatal(err)
		}
	}
	point(one, "1")
	synctest.Test(t, func(t *testing.T) {
		m, err := trust.New(trust.Config{
			Store: noRows{}, Fetcher: fetch.New(fetch.Config{}),
			Files: []trust.FileTrust{{Name: "p", CAFile: filepath.Join(link, "ca.pem")}},
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			m.Run(ctx)
			close(done)
		}()
		synctest.Wait()
		first, _, _ := m.Anchors(ctx, "p")
		point(two, "2")
		time.Sleep(2*time.Second + time.Millisecond)
		synctest.Wait()
		if second, _, _ := m.Anchors(ctx, "p"); second == first || second.Equal(first) {
			t.Error("the exchange was not noticed")
		}
		cancel()
		<-done
	})
}
