// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
)

// behaviour is what a handler does about a request.
type behaviour func(*Limiter, *http.Request)

func anonymous(*Limiter, *http.Request) {}

func spared(l *Limiter, r *http.Request) { l.Spare(r.Context()) }

// as authenticates the certificate of the request as a client.
func as(client string) behaviour {
	return func(l *Limiter, r *http.Request) {
		peer, _ := mtls.PeerFromRequest(r)
		l.Authenticated(r.Context(), client, peer.Thumbprint())
	}
}

// request is one request on c, with a certificate or nil.
func request(tb testing.TB, l *Limiter, c *conn, cert *x509.Certificate, do behaviour) *httptest.ResponseRecorder {
	tb.Helper()
	r := httptest.NewRequest(http.MethodPost, "/oauth2/token", nil)
	r = r.WithContext(l.ConnContext(tb.Context(), c))
	r.TLS = &tls.ConnectionState{HandshakeComplete: true}
	if cert != nil {
		r.TLS.PeerCertificates = []*x509.Certificate{cert}
	}
	w := httptest.NewRecorder()
	l.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { do(l, r) })).ServeHTTP(w, r)
	return w
}

func certificate(tb testing.TB, ca *mtlstest.CA, name string) *x509.Certificate {
	tb.Helper()
	return ca.Issue(tb, mtlstest.Leaf{CommonName: name}).Leaf
}

// statuses counts the answers to n requests.
func statuses(tb testing.TB, l *Limiter, c *conn, cert *x509.Certificate, do behaviour, n int) (served, limited int) {
	tb.Helper()
	for range n {
		switch request(tb, l, c, cert, do).Code {
		case http.StatusOK:
			served++
		case http.StatusTooManyRequests:
			limited++
		}
	}
	return served, limited
}

// RFC 6585, Section 4: 429 with Retry-After; RFC 6749, Section 5.2, for the form. The connection ends.
func TestAnonymousRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := roomy()
		c.AnonymousRate = 2
		l := newLimiter(t, c)
		one := mustAdmit(t, l, "192.0.2.1")
		if served, limited := statuses(t, l, one, nil, anonymous, 21); served != 20 || limited != 1 {
			t.Errorf("%d served, %d limited, want ten seconds' worth, 20, and 1", served, limited)
		}
		w := request(t, l, mustAdmit(t, l, "192.0.2.1"), nil, anonymous)
		var body struct {
			Error, ErrorDescription string
		}
		if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || body.Error != "temporarily_unavailable" {
			t.Errorf("body is %q", w.Body)
		}
		seconds, err := strconv.Atoi(w.Header().Get("Retry-After"))
		if w.Code != http.StatusTooManyRequests || err != nil || seconds != 1 {
			t.Errorf("answered %d, Retry-After %q", w.Code, w.Header().Get("Retry-After"))
		}
		if w.Header().Get("Connection") != "close" || w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("headers are %v", w.Header())
		}
		if got := refusals(l, AnonymousRate); got != 2 {
			t.Errorf("%d refusals counted, want 2", got)
		}
		if served, _ := statuses(t, l, mustAdmit(t, l, "192.0.2.2"), nil, anonymous, 20); served != 20 {
			t.Errorf("another address of the network: %d served, want 20", served)
		}
		time.Sleep(time.Duration(seconds) * time.Second)
		if served, _ := statuses(t, l, one, nil, anonymous, 10); served != 2 {
			t.Errorf("%d served after one second, want 2", served)
		}
	})
}

// Authenticated requests count against no limit of the address, and are held to none.
func TestAuthenticatedIsNotCounted(t *testing.T) {
	t.Parallel()
	c := roomy()
	c.AnonymousRate, c.AnonymousTotal = 1, 10
	l := newLimiter(t, c)
	cert := certificate(t, mtlstest.NewCA(t, "ca"), "payments")
	proven := mustAdmit(t, l, "192.0.2.1")
	if served, _ := statuses(t, l, proven, cert, as("payments"), 1000); served != 1000 {
		t.Fatalf("%d of 1000 authenticated requests served", served)
	}
	flood := mustAdmit(t, l, "192.0.2.1")
	if served, limited := statuses(t, l, flood, nil, anonymous, 20); served != 10 || limited != 10 {
		t.Errorf("%d served, %d limited: authenticated requests were counted", served, limited)
	}
	if served, _ := statuses(t, l, proven, cert, as("payments"), 10); served != 10 {
		t.Error("a flood from its address keeps a client out that is connected")
	}
	fresh := mustAdmit(t, l, "192.0.2.1")
	if served, _ := statuses(t, l, fresh, cert, as("payments"), 10); served != 10 {
		t.Error("a flood from its address keeps a client out that connects anew")
	}
}

// A client that is refused loses what its certificate earned.
func TestRefusedIsForgotten(t *testing.T) {
	t.Parallel()
	c := roomy()
	c.AnonymousRate = 1
	l := newLimiter(t, c)
	cert := certificate(t, mtlstest.NewCA(t, "ca"), "payments")
	connection := mustAdmit(t, l, "192.0.2.1")
	request(t, l, connection, cert, as("payments"))
	if served, limited := statuses(t, l, connection, cert, anonymous, 15); served != 10 || limited != 5 {
		t.Errorf("on the proven connection: %d served, %d limited", served, limited)
	}
	if served, limited := statuses(t, l, mustAdmit(t, l, "192.0.2.1"), cert, as("payments"), 5); served != 0 || limited != 5 {
		t.Errorf("on a new connection: %d served, %d limited", served, limited)
	}
}

// What is our failure, or was proved otherwise, is not counted; what panics is.
func TestSpareAndPanic(t *testing.T) {
	t.Parallel()
	c := roomy()
	c.AnonymousRate = 1
	l := newLimiter(t, c)
	connection := mustAdmit(t, l, "192.0.2.1")
	if served, _ := statuses(t, l, connection, nil, spared, 100); served != 100 {
		t.Errorf("%d of 100 spared requests served", served)
	}
	for range 10 {
		func() {
			defer func() { _ = recover() }()
			request(t, l, connection, nil, func(*Limiter, *http.Request) { panic(http.ErrAbortHandler) })
		}()
	}
	if served, _ := statuses(t, l, connection, nil, anonymous, 1); served != 0 {
		t.Error("requests that panicked were not counted")
	}
}

// What was spared still counts against the rate of all addresses, as long as nobody authenticated on the connection.
func TestSpareCountsForAll(t *testing.T) {
	t.Parallel()
	c := roomy()
	c.AnonymousTotal = 10
	l := newLimiter(t, c)
	cert := certificate(t, mtlstest.NewCA(t, "ca"), "payments")
	proven := mustAdmit(t, l, "198.51.100.1")
	request(t, l, proven, cert, as("payments"))
	if served, _ := statuses(t, l, proven, cert, spared, 100); served != 100 {
		t.Errorf("of a known client %d of 100 served", served)
	}
	if served, limited := statuses(t, l, mustAdmit(t, l, "192.0.2.1"), nil, spared, 15); served != 10 || limited != 5 {
		t.Errorf("%d served, %d limited, want 10 and 5", served, limited)
	}
}

// All addresses together have a rate too; known networks and certificates go on.
func TestAnonymousTotal(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := roomy()
		c.AnonymousTotal = 30
		l := newLimiter(t, c)
		ca := mtlstest.NewCA(t, "ca")
		cert, other := certificate(t, ca, "payments"), certificate(t, ca, "other")
		makeKnown(t, l, "198.51.100.1")
		request(t, l, mustAdmit(t, l, "203.0.113.1"), cert, as("payments"))
		served, limited := 0, 0
		for _, address := range []string{"192.0.2.1", "192.0.3.1", "192.0.4.1"} {
			s, n := statuses(t, l, mustAdmit(t, l, address), nil, anonymous, 20)
			served, limited = served+s, limited+n
		}
		if served != 30 || limited != 30 || refusals(l, AnonymousTotal) != 30 {
			t.Errorf("%d served, %d limited, want 30 and 30", served, limited)
		}
		if request(t, l, mustAdmit(t, l, "192.0.5.1"), other, as("other")).Code != http.StatusTooManyRequests {
			t.Error("an unknown certificate from an unknown network was served")
		}
		if request(t, l, mustAdmit(t, l, "192.0.5.1"), cert, as("payments")).Code != http.StatusOK {
			t.Error("a known certificate from an unknown network was kept out")
		}
		if request(t, l, mustAdmit(t, l, "198.51.100.9"), other, as("other")).Code != http.StatusOK {
			t.Error("a known network was kept out")
		}
		time.Sleep(knownFor)
		statuses(t, l, mustAdmit(t, l, "192.0.2.1"), nil, anonymous, 40)
		if request(t, l, mustAdmit(t, l, "192.0.6.1"), cert, as("payments")).Code != http.StatusTooManyRequests {
			t.Error("a certificate is still known after a day")
		}
	})
}

// The rate of a client holds over all of its connections and certificates; its connection stays.
func TestClientRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := roomy()
		c.ClientRate = 3
		l := newLimiter(t, c)
		ca := mtlstest.NewCA(t, "ca")
		cert, renewed, other := certificate(t, ca, "a"), certificate(t, ca, "a"), certificate(t, ca, "b")
		connection := mustAdmit(t, l, "192.0.2.1")
		if served, limited := statuses(t, l, connection, cert, as("a"), 35); served != 30 || limited != 5 {
			t.Errorf("%d served, %d limited, want ten seconds' worth, 30, and 5", served, limited)
		}
		w := request(t, l, connection, cert, as("a"))
		if w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") != "1" || w.Header().Get("Connection") != "" {
			t.Errorf("answered %d, %v", w.Code, w.Header())
		}
		if w := request(t, l, mustAdmit(t, l, "192.0.2.1"), cert, as("a")); w.Code != http.StatusTooManyRequests {
			t.Errorf("on a new connection: answered %d", w.Code)
		}
		// Whose a certificate is that was never seen shows when it is judged; from then on it shares the rate.
		anew := mustAdmit(t, l, "192.0.2.1")
		if served, limited := statuses(t, l, anew, renewed, as("a"), 5); served != 1 || limited != 4 {
			t.Errorf("with another certificate: %d served, %d limited, want 1 and 4", served, limited)
		}
		if served, _ := statuses(t, l, mustAdmit(t, l, "192.0.2.1"), other, as("b"), 30); served != 30 {
			t.Errorf("another client: %d of 30 served", served)
		}
		time.Sleep(time.Second)
		if served, _ := statuses(t, l, connection, cert, as("a"), 10); served != 2 {
			t.Errorf("%d served after a second, want 3, less the one of the certificate that was never seen", served)
		}
		if refusals(l, ClientRate) == 0 || refusals(l, AnonymousRate) != 0 {
			t.Errorf("counted %+v", l.Stats())
		}
	})
}

// together makes n requests that are all being served at once, and returns how many were.
func together(tb testing.TB, l *Limiter, n int, connect func(i int) *conn, cert *x509.Certificate, do behaviour) (served int) {
	tb.Helper()
	var all sync.WaitGroup
	var count atomic.Int32
	release := make(chan struct{})
	for i := range n {
		c := connect(i)
		all.Go(func() {
			w := request(tb, l, c, cert, func(l *Limiter, r *http.Request) {
				<-release
				do(l, r)
			})
			if w.Code == http.StatusOK {
				count.Add(1)
			}
		})
	}
	synctest.Wait()
	close(release)
	all.Wait()
	return int(count.Load())
}

// Whether a request authenticated shows only when it has been served. Those that are begun together, as the streams of
// HTTP/2 are, get no more than those that come one by one: so many at once, and they are paid for afterwards.
func TestAnonymousRateHoldsTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := roomy()
		c.AnonymousRate = 1
		l := newLimiter(t, c)
		cert := certificate(t, mtlstest.NewCA(t, "ca"), "payments")
		request(t, l, mustAdmit(t, l, "203.0.113.1"), cert, as("payments"))
		here := mustAdmit(t, l, "192.0.2.1")
		connect := func(int) *conn { return here }
		if served := together(t, l, 3*minBurst, connect, nil, func(l *Limiter, r *http.Request) {
			anonymous(l, r)
			if request(t, l, mustAdmit(t, l, "192.0.2.1"), cert, as("payments")).Code != http.StatusOK {
				t.Error("a known certificate was kept out by what others have pending")
			}
		}); served != minBurst {
			t.Errorf("%d served together, want %d", served, minBurst)
		}
		if served := together(t, l, 10, connect, nil, anonymous); served != 0 {
			t.Errorf("%d more served, and nothing is left", served)
		}
		time.Sleep((minBurst - savedSeconds) * time.Second) // as long as it takes to pay
		if served := together(t, l, 10, connect, nil, anonymous); served != 0 {
			t.Errorf("%d more served before the others were paid for", served)
		}
		time.Sleep(time.Second)
		if served := together(t, l, 10, connect, nil, anonymous); served == 0 {
			t.Error("nothing is served again after all was paid for")
		}
		// Nothing stays pending, and nobody owes more and more.
		time.Sleep(time.Hour)
		if served := together(t, l, minBurst, connect, nil, spared); served != minBurst {
			t.Errorf("%d served together an hour later, want %d", served, minBurst)
		}
	})
}

func TestAnonymousTotalHoldsTogether(t *testing.T) {
	t.Parallel()
	for name, do := range map[string]behaviour{"anonymous": anonymous, "spared": spared} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := roomy()
				c.AnonymousTotal = 10
				l := newLimiter(t, c)
				connect := func(i int) *conn { return mustAdmit(t, l, fmt.Sprintf("192.0.%d.1", i)) }
				if served := together(t, l, 110, connect, nil, do); served != 110 {
					t.Fatalf("%d of 110 served", served)
				}
				time.Sleep(10 * time.Second)
				if served := together(t, l, 1, connect, nil, do); served != 0 {
					t.Error("one more served before the others were paid for")
				}
				time.Sleep(time.Second)
				if served := together(t, l, 1, connect, nil, do); served != 1 {
					t.Error("nothing is served again after all was paid for")
				}
				// However many there were, they are paid for after a time that can be told.
				time.Sleep(time.Minute)
				many := mustAdmit(t, l, "198.51.100.1")
				together(t, l, 10*minBurst, func(int) *conn { return many }, nil, do)
				time.Sleep((minBurst/10 + 1) * time.Second)
				if served := together(t, l, 1, connect, nil, do); served != 1 {
					t.Error("strangers are kept out for longer than the most that they can owe")
				}
			})
		})
	}
}

// The rate of a client holds for what it begins together too, on connections that authenticated and on new ones.
func TestClientRateHoldsTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := roomy()
		c.ClientRate = 3
		l := newLimiter(t, c)
		cert := certificate(t, mtlstest.NewCA(t, "ca"), "a")
		proven := mustAdmit(t, l, "192.0.2.1")
		request(t, l, proven, cert, as("a"))
		if served := together(t, l, 200, func(int) *conn { return proven }, cert, as("a")); served != 29 {
			t.Errorf("%d served together, want the 29 that are left of 30", served)
		}
		time.Sleep(time.Minute)
		anew := func(int) *conn { return mustAdmit(t, l, "192.0.2.1") }
		if served := together(t, l, 200, anew, cert, as("a")); served != 30 {
			t.Errorf("%d served together on new connections, want 30", served)
		}
	})
}

// A request that did not come through our listener is not ours to judge.
func TestForeignConnection(t *testing.T) {
	t.Parallel()
	c := roomy()
	c.AnonymousRate = 1
	l := newLimiter(t, c)
	for range 100 {
		w := httptest.NewRecorder()
		l.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			l.Authenticated(r.Context(), "a", mtls.Thumbprint{1})
			l.Spare(r.Context())
		})).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		if w.Code != http.StatusOK {
			t.Fatalf("answered %d", w.Code)
		}
	}
}

// What a known client's request costs on its connection: no allocation, and no lock that others want.
func TestKnownClientCostsNothing(t *testing.T) {
	l := newLimiter(t, roomy())
	c := mustAdmit(t, l, "192.0.2.1")
	r := httptest.NewRequest(http.MethodPost, "/oauth2/token", nil)
	r = r.WithContext(l.ConnContext(t.Context(), c))
	h := l.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		l.Authenticated(r.Context(), "a", mtls.Thumbprint{1})
	}))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	l.mu.Lock() // whoever asks for it now waits for ever
	defer l.mu.Unlock()
	if n := testing.AllocsPerRun(1000, func() { h.ServeHTTP(w, r) }); n != 0 {
		t.Errorf("%.1f allocations", n)
	}
}

func BenchmarkKnownClient(b *testing.B) {
	l := newLimiter(b, roomy())
	c := mustAdmit(b, l, "192.0.2.1")
	r := httptest.NewRequest(http.MethodPost, "/oauth2/token", nil)
	r = r.WithContext(l.ConnContext(b.Context(), c))
	h := l.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		l.Authenticated(r.Context(), "a", mtls.Thumbprint{1})
	}))
	w := httptest.NewRecorder()
	for b.Loop() {
		h.ServeHTTP(w, r)
	}
}
