// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/admin"
	"github.com/certbound/certbound/cmd/internal/profile"
	"github.com/certbound/certbound/cmd/internal/replica"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/pki"
)

// relay stands between a replica and its database, and can cut the two off from each other.
type relay struct {
	listener net.Listener
	target   string

	mu     sync.Mutex
	silent bool // nothing passes, and nobody is told
	closed bool // connections are ended, and refused
	wake   chan struct{}
	conns  map[net.Conn]bool
}

func newRelay(tb testing.TB, target string) *relay {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	r := &relay{listener: l, target: target, wake: make(chan struct{}), conns: make(map[net.Conn]bool)}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { r.serve(c) })
		}
	})
	tb.Cleanup(func() {
		l.Close()
		r.set(false, true)
		wg.Wait()
	})
	return r
}

// set makes the relay silent, or closes it, or opens it again.
func (r *relay) set(silent, closed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.silent, r.closed = silent, closed
	if closed {
		for c := range r.conns {
			c.Close()
		}
	}
	close(r.wake)
	r.wake = make(chan struct{})
}

// pass waits until something may pass, and reports whether it ever will.
func (r *relay) pass() bool {
	for {
		r.mu.Lock()
		silent, closed, wake := r.silent, r.closed, r.wake
		r.mu.Unlock()
		if closed || !silent {
			return !closed
		}
		<-wake
	}
}

func (r *relay) serve(c net.Conn) {
	defer c.Close()
	if !r.pass() {
		return
	}
	d, err := net.Dial("tcp", r.target)
	if err != nil {
		return
	}
	defer d.Close()
	r.mu.Lock()
	r.conns[c], r.conns[d] = true, true
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.conns, c)
		delete(r.conns, d)
	}()
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{c, d}, {d, c}} {
		both.Go(func() {
			defer way[0].Close()
			defer way[1].Close()
			buf := make([]byte, 32<<10)
			for {
				n, err := way[0].Read(buf)
				if n > 0 && (!r.pass() || write1(way[1], buf[:n]) != nil) || err != nil {
					return
				}
			}
		})
	}
	both.Wait()
}

func write1(w io.Writer, b []byte) error {
	_, err := w.Write(b)
	return err
}

// keySet asks for the key set.
func (in *instance) keySet() (int, http.Header) {
	in.tb.Helper()
	res, err := in.client(nil).Get(in.public() + pathKeys)
	if err != nil {
		in.tb.Fatal(err)
	}
	res.Body.Close()
	return res.StatusCode, res.Header
}

// A replica that is cut off from the database serves until its lease is over, then nothing but its monitoring, and comes
// back by itself. Nobody waits longer for it than its lease.
func TestReplicas_CutOff(t *testing.T) {
	t.Parallel()
	for name, cut := range map[string]func(*relay){
		"silently": func(r *relay) { r.set(true, false) },
		"loudly":   func(r *relay) { r.set(false, true) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			i := newInstallation(t)
			u, err := url.Parse(i.url)
			if err != nil {
				t.Fatal(err)
			}
			wire := newRelay(t, u.Host)
			u.Host = wire.listener.Addr().String()
			one := start(t, i.config())
			two := start(t, i.configAt(t.TempDir(), u.String()))
			one.addLedger()
			cert, other := one.enrolled("payments"), one.enrolled("billing")
			stranger, code := one.enrolled("ledger"), one.addClient("late")
			c, d := two.client(&cert), two.client(&other)
			wantToken(t, two.token(c, "payments"))
			wantToken(t, two.token(d, "billing"))

			cut(wire)
			began := time.Now()
			wantToken(t, two.token(c, "payments")) // from memory, under the lease
			if name == "loudly" {
				// Who is not in memory is told to come back, and not that it is nobody.
				if a := two.token(two.client(&stranger), "ledger"); a.Status != http.StatusServiceUnavailable || a.Header.Get("Retry-After") == "" {
					t.Errorf("a client that is not in memory: %+v", a)
				}
				status, _ := two.certify(two.client(nil), two.public()+pathEnroll, pki.NewEnrollRequest(code, two.issuer, newCSR(t, newKey(t))))
				if status != http.StatusServiceUnavailable {
					t.Errorf("enrolling while the database is gone: %d", status)
				}
			}
			eventually(t, 3*replica.Term, "the lease is over", func() bool {
				return two.token(c, "payments").Status == http.StatusServiceUnavailable
			})
			if took := time.Since(began); took > replica.Term+time.Second {
				t.Errorf("it served for %s after it was cut off", took)
			}
			answer := two.token(c, "payments")
			if answer.Error != "temporarily_unavailable" || answer.Header.Get("Retry-After") == "" {
				t.Errorf("without a lease: %+v", answer)
			}
			// A key may have been removed meanwhile: who verifies must not be told anew that it is there.
			if status, header := two.keySet(); status != http.StatusServiceUnavailable || header.Get("Retry-After") == "" || header.Get("Cache-Control") != "no-store" {
				t.Errorf("its keys without a lease: %d, %v", status, header)
			}
			if status, _ := one.keySet(); status != http.StatusOK {
				t.Errorf("the other replica's keys: %d", status)
			}
			if status, checks := two.readyz(); status != http.StatusServiceUnavailable || checks["lease"] == "ok" || checks["lease"] == "" {
				t.Errorf("without a lease: %d, %v", status, checks)
			}
			if status, checks := one.readyz(); status != http.StatusOK {
				t.Errorf("the other replica: %v", checks)
			}

			// What is revoked meanwhile waits for the lease at most, and is refused when the replica is back.
			began = time.Now()
			var done admin.Revocation
			one.mustOperate(http.MethodPost, "/certificates/revoke", map[string]any{"client_id": "payments"}, &done)
			if took := time.Since(began); took > replica.Settled+2*time.Second || len(done.Revoked) != 1 {
				t.Errorf("the revocation took %s: %+v", took, done)
			}
			wire.set(false, false)
			eventually(t, 40*time.Second, "the replica serves again", func() bool { return two.token(d, "billing").Status == http.StatusOK })
			wantRefused(t, two.token(c, "payments"))
			if status, checks := two.readyz(); status != http.StatusOK {
				t.Errorf("after it came back: %v", checks)
			}
			if status, _ := two.keySet(); status != http.StatusOK {
				t.Errorf("its keys after it came back: %d", status)
			}
		})
	}
}

// A replica that died is waited for as long as its lease could last, also by who repeats the request, and no longer.
func TestReplicas_DeadOne(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	one := start(t, i.config())
	one.addLedger()
	cert := one.enrolled("payments")
	db := i.open()
	socket := profile.NewSocket(filepath.Join(one.data, socketName))
	defer socket.Close()
	disable := func() time.Duration {
		t.Helper()
		began := time.Now()
		if err := socket.Do(t.Context(), http.MethodPost, "/clients/payments/disable", nil, nil); err != nil {
			t.Fatal(err)
		}
		return time.Since(began)
	}
	// None may be shorter. How long the machine takes for the rest is its affair: one of several tries is not longer.
	var disabled, before time.Duration
	for try := range uint64(5) {
		if try > 0 {
			one.mustOperate(http.MethodPost, "/clients/payments/enable", nil, nil)
		}
		if err := db.BeginLease(t.Context(), store.Lease{Replica: "dead", Incarnation: try + 1}); err != nil {
			t.Fatal(err)
		}
		disabled, before = disable(), disable()
		if min(disabled, before) < replica.Term {
			t.Errorf("with a dead replica it took %s, and %s where it was disabled before, want a little over %s", disabled, before, replica.Term)
		}
		if max(disabled, before) <= replica.Settled+2*time.Second {
			break
		}
	}
	if max(disabled, before) > replica.Settled+2*time.Second {
		t.Errorf("with a dead replica it took %s, and %s where it was disabled before, want a little over %s", disabled, before, replica.Term)
	}
	wantRefused(t, one.token(one.client(&cert), "payments"))
	var lapsed bool
	for _, r := range one.status().Replicas {
		lapsed = lapsed || r.Replica == "dead" && r.Lease == "lapsed"
	}
	if !lapsed {
		t.Error("the status does not say that the dead one's lease has lapsed")
	}
	// Who cannot wait until it is removed has it removed.
	var change admin.Change
	if err := socket.Do(t.Context(), http.MethodPost, "/leases/reset", nil, &change); err != nil || !strings.HasSuffix(change.Done, ": dead") {
		t.Errorf("resetting the leases: %+v, %v", change, err)
	}
	took := disable()
	for try := 0; try < 5 && took >= replica.Term; try++ { // whoever waits for the dead one always does
		took = disable()
	}
	if took >= replica.Term {
		t.Errorf("with the dead replica removed it took %s", took)
	}
}
