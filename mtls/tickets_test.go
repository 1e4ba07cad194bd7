// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package mtls_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
)

// seal returns a session ticket under the key that cfg seals with now.
func seal(tb testing.TB, cfg *tls.Config) []byte {
	tb.Helper()
	state, err := tls.ParseSessionState(slices.Concat(
		[]byte{3, 4, 1, 0x13, 1}, make([]byte, 8), // TLS 1.3, of a server, the suite, the time
		[]byte{1, 's'},    // the secret
		make([]byte, 3+2), // nothing extra
		make([]byte, 3+3), // no certificates and no chains
	))
	if err != nil {
		tb.Fatal(err)
	}
	ticket, err := cfg.EncryptTicket(tls.ConnectionState{}, state)
	if err != nil {
		tb.Fatal(err)
	}
	return ticket
}

// opens reports whether a session with the ticket would be resumed, as far as keys go.
func opens(tb testing.TB, cfg *tls.Config, ticket []byte) bool {
	tb.Helper()
	state, err := cfg.DecryptTicket(ticket, tls.ConnectionState{})
	if err != nil {
		tb.Fatal(err)
	}
	return state != nil
}

func wantOpens(tb testing.TB, what string, cfg *tls.Config, ticket []byte, want bool) {
	tb.Helper()
	if got := opens(tb, cfg, ticket); got != want {
		tb.Errorf("%s: the ticket is accepted: %t, want %t", what, got, want)
	}
}

// TLS-07: RFC 5077, Section 5.5: a rotation keeps the key before it for tickets that are about, and none older; a reset
// keeps none.
func TestRFC5077_5_5_TicketKeys(t *testing.T) {
	t.Parallel()
	cfg := &tls.Config{}
	auto := seal(t, cfg) // under the key that crypto/tls makes itself
	tickets := mtls.NewTickets(cfg)
	wantOpens(t, "before there were Tickets", cfg, auto, false)

	first := seal(t, cfg)
	wantOpens(t, "at once", cfg, first, true)
	tickets.Rotate()
	second := seal(t, cfg)
	wantOpens(t, "after one rotation", cfg, first, true)
	wantOpens(t, "new", cfg, second, true)
	tickets.Rotate()
	wantOpens(t, "after two rotations", cfg, first, false)
	wantOpens(t, "after one rotation, second", cfg, second, true)

	third := seal(t, cfg)
	tickets.Reset()
	wantOpens(t, "before, after a reset", cfg, second, false)
	wantOpens(t, "current, after a reset", cfg, third, false)
	fourth := seal(t, cfg)
	wantOpens(t, "new, after a reset", cfg, fourth, true)
	tickets.Rotate()
	wantOpens(t, "after a reset and a rotation", cfg, fourth, true)
	wantOpens(t, "before the reset, after a rotation", cfg, third, false)
}

// Each listener has keys of its own, and random ones: no two of any that were made seal alike, all zeros included.
func TestTicketKeysAreTheListenersOwn(t *testing.T) {
	t.Parallel()
	zero := &tls.Config{}
	zero.SetSessionTicketKeys([][32]byte{{}})
	configs := []*tls.Config{zero}
	for range 3 {
		cfg := &tls.Config{}
		mtls.NewTickets(cfg)
		configs = append(configs, cfg)
	}
	for i, from := range configs {
		ticket := seal(t, from)
		for j, to := range configs {
			wantOpens(t, fmt.Sprintf("of %d at %d", i, j), to, ticket, i == j)
		}
	}
}

// The rotation of crypto/tls is off: it would make a new key after a day, and drop it after seven, by itself.
func TestTicketsRotateOnlyWhenTold(t *testing.T) {
	t.Parallel()
	now := time.Now()
	clock := func() time.Time { return now }
	auto, ours := &tls.Config{Time: clock}, &tls.Config{Time: clock}
	tickets := mtls.NewTickets(ours)
	ofAuto, of := seal(t, auto), seal(t, ours)
	now = now.AddDate(0, 0, 6)
	seal(t, auto)
	now = now.AddDate(0, 0, 2)
	seal(t, auto)
	wantOpens(t, "crypto/tls by itself", auto, ofAuto, false)
	wantOpens(t, "ours", ours, of, true)
	tickets.Reset()
	wantOpens(t, "ours after a reset", ours, of, false)
}

func TestTicketsRun(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cfg := &tls.Config{}
		tickets := mtls.NewTickets(cfg)
		ctx, cancel := context.WithCancel(t.Context())
		done := false
		go func() {
			tickets.Run(ctx, time.Hour)
			done = true
		}()
		ticket := seal(t, cfg)
		time.Sleep(90 * time.Minute)
		wantOpens(t, "after one and a half intervals", cfg, ticket, true)
		time.Sleep(time.Hour)
		wantOpens(t, "after two and a half intervals", cfg, ticket, false)
		ticket = seal(t, cfg)
		cancel()
		synctest.Wait()
		if !done {
			t.Error("Run does not end with its context")
		}
		time.Sleep(24 * time.Hour)
		wantOpens(t, "after Run has ended", cfg, ticket, true)
	})
}

func TestTicketsConcurrently(t *testing.T) {
	t.Parallel()
	cfg := &tls.Config{}
	tickets := mtls.NewTickets(cfg)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 50 {
				tickets.Rotate()
				tickets.Reset()
				opens(t, cfg, seal(t, cfg))
			}
		})
	}
	wg.Wait()
	wantOpens(t, "in the end", cfg, seal(t, cfg), true)
}

// every runs f for HTTP/1.1 and HTTP/2 over TLS 1.2 and 1.3.
func every(t *testing.T, f func(t *testing.T, version uint16, http2 bool)) {
	for name, version := range versions {
		for _, http2 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, HTTP/2 %t", name, http2), func(t *testing.T) {
				t.Parallel()
				f(t, version, http2)
			})
		}
	}
}

// TLS-07: RFC 5077, Section 5.5: on the wire, a session of one listener is not resumed on another that shows the same
// certificate, nor after a reset, nor after two rotations; it costs a full handshake then, and nothing more.
func TestRFC5077_5_5_ResumptionFollowsTheKeys(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "ca")
	every(t, func(t *testing.T, version uint16, http2 bool) {
		shown := ca.Issue(t, mtlstest.ServerLeaf())
		one := mtlstest.Server(t, http.HandlerFunc(whoami), shown, mtls.ClientCertificatesRequested)
		two := mtlstest.Server(t, http.HandlerFunc(whoami), shown, mtls.ClientCertificatesRequested)
		tickets := mtls.NewTickets(one.Config)
		mtls.NewTickets(two.Config)
		cert := ca.Issue(t, mtlstest.Leaf{})
		c := client(t, ca, cert, version, http2)
		for _, step := range []struct {
			name    string
			before  func()
			url     string
			resumed string
		}{
			{"first", func() {}, one.URL, "false"},
			{"again", func() {}, one.URL, "true"},
			{"other listener", func() {}, two.URL, "false"},
			{"back", func() {}, one.URL, "false"}, // its session was replaced by the other listener's
			{"one rotation", tickets.Rotate, one.URL, "true"},
			{"two rotations", func() { tickets.Rotate(); tickets.Rotate() }, one.URL, "false"},
			{"again, rotated", func() {}, one.URL, "true"},
			{"reset", tickets.Reset, one.URL, "false"},
			{"again, reset", func() {}, one.URL, "true"},
		} {
			step.before()
			got := ask(t, c, step.url, "")
			if got.resumed != step.resumed || got.thumbprint != mtls.ThumbprintOf(cert.Leaf).String() {
				t.Errorf("%s: resumed %s as %s, want %s", step.name, got.resumed, got.thumbprint, step.resumed)
			}
			c.CloseIdleConnections()
		}
	})
}

// TLS-07, TLS-08, TLS-09: RFC 8446, Section 2.2: a session resumes with the certificate it began with, and a connection
// outlives decisions: at every request, whether kept alive or resumed, the certificate is judged anew by the anchors and
// the time of that request.
func TestRFC8446_2_2_JudgedAtEveryRequest(t *testing.T) {
	t.Parallel()
	ca, other := mtlstest.NewCA(t, "ca"), mtlstest.NewCA(t, "ca")
	every(t, func(t *testing.T, version uint16, http2 bool) {
		var trust atomic.Pointer[mtls.Anchors]
		var late atomic.Int64
		trust.Store(ca.Anchors(t))
		judging := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			p, err := mtls.PeerFromRequest(r)
			if err == nil {
				err = p.VerifiedBy(trust.Load(), time.Now().Add(time.Duration(late.Load())))
			}
			w.Header().Set("Resumed", fmt.Sprint(r.TLS.DidResume))
			if err != nil {
				w.WriteHeader(http.StatusForbidden)
			}
		})
		srv := mtlstest.Server(t, judging, ca.Issue(t, mtlstest.ServerLeaf()), mtls.ClientCertificatesRequested)
		c := client(t, ca, ca.Intermediate(t, "sub").Issue(t, mtlstest.Leaf{}), version, http2)
		trust.Store(anchorsFor(t, ca))
		get := func(what string, status int, resumed string) {
			t.Helper()
			resp, err := c.Get(srv.URL)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if resp.StatusCode != status || resp.Header.Get("Resumed") != resumed {
				t.Errorf("%s: %s, resumed %s, want %d, %s", what, resp.Status, resp.Header.Get("Resumed"), status, resumed)
			}
		}
		get("trusted", http.StatusOK, "false")
		trust.Store(anchorsFor(t, other))
		get("anchors gone, kept alive", http.StatusForbidden, "false")
		c.CloseIdleConnections()
		get("anchors gone, resumed", http.StatusForbidden, "true")
		trust.Store(anchorsFor(t, ca))
		get("anchors back", http.StatusOK, "true")
		late.Store(int64(2 * time.Hour))
		get("expired, kept alive", http.StatusForbidden, "true")
		c.CloseIdleConnections()
		get("expired, resumed", http.StatusForbidden, "true")
	})
}

// anchorsFor trusts ca alone, with presented intermediates as hints.
func anchorsFor(tb testing.TB, ca *mtlstest.CA) *mtls.Anchors {
	tb.Helper()
	return anchors(tb, mtls.AnchorsConfig{Roots: []*x509.Certificate{ca.Certificate()}, UsePresented: true})
}

// Keys that are set are those that count, the first of them for new tickets; none, or one that nobody has drawn, is a reset.
func TestTicketsSet(t *testing.T) {
	t.Parallel()
	one, two := &tls.Config{}, &tls.Config{}
	first, second := mtls.NewTickets(one), mtls.NewTickets(two)
	k, l := [32]byte{1}, [32]byte{2}
	own := seal(t, one)
	first.Set(k)
	second.Set(l, k)
	wantOpens(t, "its own of before", one, own, false)
	ofK, ofL := seal(t, one), seal(t, two)
	wantOpens(t, "the second key", two, ofK, true)
	wantOpens(t, "a key that is not set", one, ofL, false)
	first.Rotate()
	wantOpens(t, "after a rotation", one, ofK, true)
	second.Set(l)
	wantOpens(t, "a key that was dropped", two, ofK, false)
	wantOpens(t, "the one that stays", two, ofL, true)
	second.Set()
	wantOpens(t, "after none", two, ofL, false)
	zero := &tls.Config{}
	zero.SetSessionTicketKeys([][32]byte{{}})
	for _, keys := range [][][32]byte{{{}}, {l, {}}} {
		second.Set(keys...)
		wantOpens(t, "under zeros", two, seal(t, zero), false)
		wantOpens(t, "beside zeros", two, ofL, false)
	}
}
