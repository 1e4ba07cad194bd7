// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// The race detector holds memory of its own for every connection, which is not what is measured here.
//go:build !race

package mtls_test

import (
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
)

const (
	// maxHeld is how many bytes a server may hold for a hostile connection.
	maxHeld = 64 << 10
	// maxTogether is the same for one that uses several bounds to the full at once: the largest chain, of which crypto/tls
	// keeps the record, the buffer and the message, then a record or a frame of 16 KiB that stays incomplete. TLS and
	// HTTP/2 allow no smaller ones.
	maxTogether = 88 << 10
	// crowd is how many connections are held at once to measure what one costs.
	crowd = 200
)

// attackConn counts what is written, and stops at a limit as a client does that goes silent in the middle.
type attackConn struct {
	net.Conn
	limit   int64 // none when zero
	written atomic.Int64
}

var errSilent = errors.New("silent from here on")

func (c *attackConn) Write(b []byte) (int, error) {
	if room := c.limit - c.written.Load(); c.limit > 0 && int64(len(b)) > room {
		n, _ := c.Conn.Write(b[:room])
		c.written.Add(int64(n))
		return n, errSilent
	}
	n, err := c.Conn.Write(b)
	c.written.Add(int64(n))
	return n, err
}

// attack is what a hostile client does on a new connection before it falls silent. Whatever it needed for that is let
// go: what is measured is the server's.
type attack func(c *attackConn) error

// besieged is a server under attack.
type besieged struct {
	addr  string
	read  atomic.Int64 // bytes, of all connections
	taken atomic.Int64 // connections, since the beginning
	alive atomic.Int64 // connections
	busy  atomic.Int64 // handlers that wait for a body
}

func besiege(tb testing.TB, ca *mtlstest.CA) *besieged {
	tb.Helper()
	b := &besieged{}
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	kp, err := mtls.NewKeyPair(ca.Issue(tb, mtlstest.ServerLeaf()))
	if err != nil {
		tb.Fatal(err)
	}
	cfg := mtls.ServerConfig(kp, mtls.ClientCertificatesRequested)
	srv := &http.Server{
		ErrorLog:          log.New(io.Discard, "", 0),
		ReadHeaderTimeout: time.Minute, // longer than the siege: what is cut off holds nothing
		Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if _, err := mtls.PeerFromRequest(r); err == nil {
				b.busy.Add(1)
			}
			_, _ = io.ReadAll(io.LimitReader(r.Body, 1<<10))
		}),
		ConnState: func(_ net.Conn, s http.ConnState) {
			switch s {
			case http.StateNew:
				b.alive.Add(1)
				b.taken.Add(1)
			case http.StateClosed:
				b.alive.Add(-1)
			}
		},
	}
	mtls.ConfigureServer(srv, cfg)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(mtls.NewListener(countingListener{inner, &b.read}, cfg))
	}()
	tb.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
	b.addr = inner.Addr().String()
	return b
}

// siege is what all connections of a crowd do.
type siege struct {
	name   string
	limit  int64 // bytes that each sends, none when zero
	attack attack
	cut    bool // the server is to close the connection
	works  bool // a handler is to wait for the body
	most   int64
}

// hold makes n connections and returns once the server has read all they sent, or has closed them.
func (b *besieged) hold(tb testing.TB, n int, s siege) {
	tb.Helper()
	read, taken, alive, busy := b.read.Load(), b.taken.Load(), b.alive.Load(), b.busy.Load()
	var sent atomic.Int64
	var wg sync.WaitGroup
	turn := make(chan struct{}, 32)
	conns := make([]net.Conn, n)
	tb.Cleanup(func() {
		for _, c := range conns {
			if c != nil {
				_ = c.Close()
			}
		}
	})
	for i := range n {
		wg.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			c, err := net.Dial("tcp", b.addr)
			if err != nil {
				tb.Error(err)
				return
			}
			conns[i] = c
			a := &attackConn{Conn: c, limit: s.limit}
			if err := s.attack(a); err != nil {
				tb.Error(err)
			}
			sent.Add(a.written.Load())
		})
	}
	wg.Wait()
	done := func() bool {
		switch {
		case s.cut:
			return b.taken.Load()-taken == int64(n) && b.alive.Load() == alive
		case s.works && b.busy.Load()-busy != int64(n):
			return false
		default:
			return b.read.Load()-read == sent.Load() && b.alive.Load()-alive == int64(n)
		}
	}
	for deadline := time.Now().Add(30 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if tb.Failed() || time.Now().After(deadline) {
			tb.Fatalf("%d of %d bytes read, %d of %d connections alive, %d at work",
				b.read.Load()-read, sent.Load(), b.alive.Load()-alive, n, b.busy.Load()-busy)
		}
	}
}

// settled returns what is in use once that no longer falls: what was before may be on its way out.
func settled() int64 {
	least := inUse()
	for range 100 {
		now := inUse()
		if now >= least-1<<10 {
			return min(now, least)
		}
		least = now
		time.Sleep(time.Millisecond)
	}
	return least
}

// inUse returns how many bytes are live: of the heap after collection, and of stacks, which shrink by it.
func inUse() int64 {
	for range 3 {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// TLS-12: RFC 8446, Section 4.4.2: what a server holds for a connection is bounded, however its client misbehaves: by
// saying nothing, by falling silent in the middle, by a chain of 60 KiB, which is cut off, or by a body that never ends,
// be it behind the largest chain; and, by a larger bound, by several of these at once.
//
// It does not run beside other tests, whose memory would be counted.
func TestRFC8446_4_4_2_HeldMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("holds hundreds of connections: not with -short")
	}
	ca := mtlstest.NewCA(t, "ca")
	roots := ca.Pool()
	// Each connection has certificates of its own, so that none are shared.
	hostile := func(version uint16, sizes ...int) func() *tls.Config {
		return func() *tls.Config {
			cert := ca.Issue(t, mtlstest.Leaf{})
			for _, size := range sizes {
				cert.Certificate = append(cert.Certificate, padded(t, ca, size))
			}
			cfg := presents(cert, version)
			cfg.RootCAs, cfg.ServerName = roots, "localhost"
			return cfg
		}
	}
	says := func(s string) attack {
		return func(c *attackConn) error {
			_, err := io.WriteString(c, s)
			return err
		}
	}
	whole := func(cfg func() *tls.Config) attack {
		return func(c *attackConn) error {
			_ = tls.Client(c, cfg()).Handshake() // in TLS 1.3 it ends before the server has an opinion
			return nil
		}
	}
	part := func(cfg func() *tls.Config) attack {
		return func(c *attackConn) error {
			if err := tls.Client(c, cfg()).Handshake(); !errors.Is(err, errSilent) {
				return errors.Join(errors.New("the handshake went on"), err)
			}
			return nil
		}
	}
	body := func(cfg func() *tls.Config, more string) attack {
		return func(c *attackConn) error {
			tc := tls.Client(c, cfg())
			_, err := io.WriteString(tc, "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nslow")
			_, moreErr := io.WriteString(c, more)
			return errors.Join(err, moreErr)
		}
	}
	http2 := func(cfg func() *tls.Config, frames string) attack {
		return func(c *attackConn) error {
			cfg := cfg()
			cfg.NextProtos = []string{"h2"}
			_, err := io.WriteString(tls.Client(c, cfg),
				"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"+frames)
			return err
		}
	}
	const (
		record16K = "\x17\x03\x03\x40\x00"                                              // application data
		post      = "\x00\x00\x0e\x01\x04\x00\x00\x00\x01\x83\x87\x84\x01\x09localhost" // HEADERS of stream 1
		data4     = "\x00\x00\x04\x00\x00\x00\x00\x00\x01slow"                          // DATA of stream 1
		data16K   = "\x00\x40\x00\x00\x00\x00\x00\x00\x01slow"
		data1M    = "\x0f\xff\xff\x00\x00\x00\x00\x00\x01slow"
	)
	// A ClientHello of 64 KiB in pieces, so that the buffer for it doubles, and the last piece is not whole.
	pieces := "\x16\x03\x01\x1f\xa4\x01\x00\xff\xfc" + strings.Repeat("x", 0x1fa4-4) +
		"\x16\x03\x01\x00\x64" + strings.Repeat("x", 0x64) + "\x16\x03\x01\x0f\x00\x01"
	sieges := []siege{
		{name: "silent", attack: says(""), most: maxHeld},
		{name: "silent in a record", attack: says("\x16\x03\x01\x2f\x00\x01"), most: maxHeld},
		{name: "silent in pieces", attack: says(pieces), most: maxHeld},
		{name: "record of 16 KiB in the handshake", attack: says("\x16\x03\x01\x3f\xff\x01"), cut: true, most: maxHeld},
	}
	for version, number := range versions {
		long := hostile(number, 20<<10, 20<<10, 20<<10)
		largest := hostile(number, 3200, 3200) // with their names and the leaf about MaxChainBytes
		sieges = append(sieges,
			siege{name: "60 KiB, " + version, attack: whole(long), cut: true, most: maxHeld},
			siege{name: "silent at 50 KiB of 60, " + version, limit: 50 << 10, attack: whole(long), cut: true, most: maxHeld},
			siege{name: "silent at 9 KiB, " + version, limit: 9 << 10, attack: part(hostile(number, 4400, 4400)), most: maxHeld},
			siege{name: "slow body, " + version, attack: body(hostile(number), ""), works: true, most: maxHeld},
			siege{name: "slow body in 16 KiB, " + version, attack: body(hostile(number), record16K), works: true, most: maxHeld},
			siege{name: "slow body, HTTP/2, " + version, attack: http2(hostile(number), post+data4), works: true, most: maxHeld},
			siege{name: "slow body in 16 KiB, HTTP/2, " + version, attack: http2(hostile(number), post+data16K), works: true, most: maxHeld},
			siege{name: "slow body in 1 MiB, HTTP/2, " + version, attack: http2(hostile(number), post+data1M), cut: true, most: maxHeld},
			siege{name: "slow body behind the largest chain, " + version, attack: body(largest, ""), works: true, most: maxHeld},
			siege{name: "slow body in 16 KiB behind the largest chain, " + version, attack: body(largest, record16K), works: true, most: maxTogether},
			siege{name: "slow body behind the largest chain, HTTP/2, " + version, attack: http2(largest, post+data4), works: true, most: maxTogether},
			siege{name: "slow body in 16 KiB behind the largest chain, HTTP/2, " + version, attack: http2(largest, post+data16K), works: true, most: maxTogether},
		)
	}
	idle := runtime.NumGoroutine()
	for _, s := range sieges {
		t.Run(s.name, func(t *testing.T) {
			for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > idle+1 && time.Now().Before(deadline); {
				time.Sleep(time.Millisecond) // those of the siege before are on their way out
			}
			b := besiege(t, ca)
			b.hold(t, 1, s)
			before := settled()
			b.hold(t, crowd, s)
			held := (inUse() - before) / crowd
			for deadline := time.Now().Add(10 * time.Second); held > s.most && time.Now().Before(deadline); {
				time.Sleep(10 * time.Millisecond) // the last of them may be at work still
				held = (inUse() - before) / crowd
			}
			t.Logf("%d bytes held for each connection", held)
			if held > s.most {
				t.Errorf("%d bytes held for each connection, want at most %d", held, s.most)
			}
			if want := int64(crowd + 1); !s.cut && b.alive.Load() != want {
				t.Errorf("%d connections alive, want %d", b.alive.Load(), want)
			}
		})
	}
}
