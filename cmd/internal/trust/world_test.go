// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package trust_test

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/fetch"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/cmd/internal/trust"
	"github.com/certbound/certbound/mtls/mtlstest"
)

// clock is a clock that stands until it is moved.
type clock struct{ nanos atomic.Int64 }

func newClock() *clock {
	c := new(clock)
	c.nanos.Store(time.Now().UnixNano())
	return c
}

func (c *clock) now() time.Time        { return time.Unix(0, c.nanos.Load()) }
func (c *clock) move(by time.Duration) { c.nanos.Add(int64(by)) }

// alarms keeps what was reported.
type alarms struct {
	mu   sync.Mutex
	list []string
}

func (a *alarms) TrustAlarm(name, what string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.list = append(a.list, name+": "+what)
}

// with returns the alarms that hold text.
func (a *alarms) with(text string) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(a.list), func(s string) bool { return !strings.Contains(s, text) })
}

// site is a web site with TLS whose content changes.
type site struct {
	url  string
	ca   *mtlstest.CA
	hits atomic.Int64

	mu     sync.Mutex
	body   []byte
	status int
	wait   chan struct{} // answers wait until it is closed
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{ca: mtlstest.NewCA(t, "web"), status: http.StatusNotFound}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.hits.Add(1)
		s.mu.Lock()
		body, status, wait := s.body, s.status, s.wait
		s.mu.Unlock()
		if wait != nil {
			select {
			case <-wait:
			case <-r.Context().Done():
			}
		}
		w.WriteHeader(status)
		_, _ = w.Write(body)
	}))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{s.ca.Issue(t, mtlstest.ServerLeaf())}}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	s.url = srv.URL + "/x"
	return s
}

func (s *site) show(body []byte) { s.set(http.StatusOK, body, nil) }
func (s *site) fail()            { s.set(http.StatusServiceUnavailable, nil, nil) }

func (s *site) set(status int, body []byte, wait chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status, s.body, s.wait = status, body, wait
}

// world is a Manager with all that it depends on: a database, a site and a clock.
type world struct {
	*trust.Manager
	store   *store.Store
	site    *site
	clock   *clock
	alarms  *alarms
	changes atomic.Int64
}

func config(t *testing.T) (trust.Config, *world) {
	t.Helper()
	w := &world{clock: newClock(), alarms: new(alarms), site: newSite(t)}
	db, err := store.Open(t.Context(), store.Config{
		Path: filepath.Join(t.TempDir(), "certbound.db"), KEK: bytes.Repeat([]byte{7}, 32), Now: w.clock.now,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	w.store = db
	fetcher := fetch.New(fetch.Config{AllowPrivate: []string{"127.0.0.1"}, Roots: w.site.ca.Pool()})
	return trust.Config{Store: db, Fetcher: fetcher, Events: w.alarms, Now: w.clock.now}, w
}

func (w *world) start(t *testing.T, c trust.Config) *world {
	t.Helper()
	m, err := trust.New(c)
	if err != nil {
		t.Fatal(err)
	}
	w.Manager = m
	m.OnChange(func() { w.changes.Add(1) })
	return w
}

// newWorld has the trusts of these files.
func newWorld(t *testing.T, files ...trust.FileTrust) *world {
	t.Helper()
	c, w := config(t)
	c.Files = files
	return w.start(t, c)
}

// certs is certificates in PEM.
func certs(list ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range list {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// file writes a file and returns its name.
func file(t *testing.T, content []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	replace(t, name, content)
	return name
}

func replace(t *testing.T, name string, content []byte) {
	t.Helper()
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// crl says what a revocation list shall hold. It is valid for an hour from a minute ago.
type crl struct {
	number     int64
	revoked    []*x509.Certificate
	thisUpdate time.Time
	nextUpdate time.Time
	extensions []pkix.Extension
	entry      []pkix.Extension // on each entry
}

// list signs a revocation list.
func (w *world) list(t *testing.T, ca *mtlstest.CA, c crl) []byte {
	t.Helper()
	return signList(t, ca, w.clock.now(), c)
}

func signList(t *testing.T, ca *mtlstest.CA, now time.Time, c crl) []byte {
	t.Helper()
	template := &x509.RevocationList{
		Number: big.NewInt(max(c.number, 1)), ThisUpdate: now.Add(-time.Minute), NextUpdate: now.Add(time.Hour), ExtraExtensions: c.extensions,
	}
	if !c.thisUpdate.IsZero() {
		template.ThisUpdate = c.thisUpdate
	}
	if !c.nextUpdate.IsZero() {
		template.NextUpdate = c.nextUpdate
	}
	for _, cert := range c.revoked {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries, x509.RevocationListEntry{
			SerialNumber: cert.SerialNumber, RevocationTime: now, ExtraExtensions: c.entry,
		})
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, ca.Certificate(), ca.Key())
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func listPEM(lists ...[]byte) []byte {
	var out []byte
	for _, der := range lists {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})...)
	}
	return out
}

// judge runs a certificate through what the token service does with it: the chain, then its revocations.
func (w *world) judge(t *testing.T, name string, cert tls.Certificate) error {
	t.Helper()
	anchors, revocation, err := w.Anchors(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := mtlstest.PeerOf(cert).ChainTo(anchors, w.clock.now())
	if err != nil {
		t.Fatal(err)
	}
	if revocation == nil {
		return nil
	}
	return revocation.Check(chain, w.clock.now())
}

func (w *world) health(t *testing.T, name, want string) {
	t.Helper()
	if got := w.Health()[name]; got != want && (want == "ok" || !strings.Contains(got, want)) {
		t.Errorf("health of %s is %q, want %q", name, got, want)
	}
}
