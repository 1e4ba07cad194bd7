// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// roomy is a configuration that no test breaks by accident.
func roomy() Config {
	return Config{Connections: 1000, AddressConnections: 1000, Handshakes: 1000, HeaderTimeout: 5 * time.Second}
}

func newLimiter(tb testing.TB, c Config) *Limiter {
	tb.Helper()
	l, err := New(c)
	if err != nil {
		tb.Fatal(err)
	}
	return l
}

// fakeConn is a connection from anywhere, which says nothing.
type fakeConn struct {
	net.Conn
	remote net.Addr
	closed int
}

func (f *fakeConn) RemoteAddr() net.Addr { return f.remote }
func (f *fakeConn) Close() error         { f.closed++; return nil }

func from(address string) *fakeConn {
	return &fakeConn{remote: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(address), 4711))}
}

// admitted reports whether a connection from an address gets in.
func admitted(l *Limiter, address string) bool { return l.admit(from(address), nil) != nil }

// mustAdmit is a connection that gets in.
func mustAdmit(tb testing.TB, l *Limiter, address string) *conn {
	tb.Helper()
	c := l.admit(from(address), nil)
	if c == nil {
		tb.Fatalf("a connection from %s was refused: %+v", address, l.Stats())
	}
	return c
}

// makeKnown has a client authenticate from an address, and hang up.
func makeKnown(tb testing.TB, l *Limiter, address string) {
	tb.Helper()
	c := mustAdmit(tb, l, address)
	l.Authenticated(l.ConnContext(tb.Context(), c), "known", [32]byte{1})
	if err := c.Close(); err != nil {
		tb.Fatal(err)
	}
}

func refusals(l *Limiter, k Kind) uint64 { return l.Stats().Refused[k] }

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Config){
		"no connections":     func(c *Config) { c.Connections = 0 },
		"none of an address": func(c *Config) { c.AddressConnections = 0 },
		"no handshakes":      func(c *Config) { c.Handshakes = -1 },
		"no time":            func(c *Config) { c.HeaderTimeout = 0 },
		"negative rate":      func(c *Config) { c.AnonymousTotal = -1 },
	} {
		c := roomy()
		change(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// One address has its share of connections, another one its own; a closed connection is given back, once.
func TestAddressConnections(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, one, same, other string }{
		{"IPv4", "192.0.2.1", "192.0.2.1", "192.0.2.2"},
		{"IPv4 on an IPv6 socket", "192.0.2.1", "::ffff:192.0.2.1", "::ffff:192.0.2.2"},
		{"IPv6", "2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:1::1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := roomy()
			c.AddressConnections = 2
			l := newLimiter(t, c)
			first := mustAdmit(t, l, tt.one)
			mustAdmit(t, l, tt.same)
			third := from(tt.same)
			if l.admit(third, nil) != nil || refusals(l, AddressFull) != 1 {
				t.Error("a third connection of one address got in")
			}
			if third.closed != 1 {
				t.Error("the refused connection was not closed")
			}
			mustAdmit(t, l, tt.other)
			for range 2 {
				_ = first.Close()
			}
			mustAdmit(t, l, tt.one)
			if admitted(l, tt.one) {
				t.Error("closing one connection twice made room for two")
			}
		})
	}
}

func TestExempt(t *testing.T) {
	t.Parallel()
	c := roomy()
	c.AddressConnections, c.HandshakeRate, c.HandshakeTotal = 1, 1, 1
	c.Exempt = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	l := newLimiter(t, c)
	for _, address := range []string{"127.0.0.1", "::1", "::ffff:127.1.2.3"} {
		for range 2 * minBurst / 3 {
			c := mustAdmit(t, l, address)
			if _, refused := l.handshake(c, time.Now()); refused {
				t.Fatalf("a handshake from %s was refused", address)
			}
			_ = c.Close()
		}
		mustAdmit(t, l, address)
		mustAdmit(t, l, address)
	}
	mustAdmit(t, l, "::2")
	if admitted(l, "::2") {
		t.Error("::2 is held to no limit, though only ::1 of its network is exempt")
	}
}

// A quarter of all connections, and of those without a request, is kept for known networks.
func TestReserve(t *testing.T) {
	t.Parallel()
	for _, kind := range []Kind{Connections, HandshakesFull} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			c := roomy()
			if kind == Connections {
				c.Connections = 8
			} else {
				c.Handshakes = 8
			}
			l := newLimiter(t, c)
			makeKnown(t, l, "198.51.100.1")
			for i := range 6 {
				mustAdmit(t, l, fmt.Sprintf("192.0.2.%d", i))
			}
			if admitted(l, "192.0.2.9") || refusals(l, kind) != 1 {
				t.Errorf("strangers got into the reserve: %+v", l.Stats())
			}
			mustAdmit(t, l, "198.51.100.2")
			last := mustAdmit(t, l, "198.51.100.3")
			if admitted(l, "198.51.100.1") {
				t.Error("more connections than there may be at all")
			}
			// A stranger's slot does not come free because a known one does.
			_ = last.Close()
			if admitted(l, "192.0.2.9") {
				t.Error("a stranger took a slot of the reserve")
			}
		})
	}
}

// A connection leaves the strangers' part when a client authenticates on it, and the handshakes when it brings a request.
func TestPromotion(t *testing.T) {
	t.Parallel()
	c := roomy()
	c.Connections, c.Handshakes = 8, 4
	l := newLimiter(t, c)
	var first *conn
	for range 6 {
		first = mustAdmit(t, l, "192.0.2.1")
		l.begin(first) // or the fourth would find no place among the handshakes
	}
	if admitted(l, "203.0.113.1") {
		t.Fatal("strangers got into the reserve")
	}
	l.Authenticated(l.ConnContext(t.Context(), first), "a", [32]byte{1})
	mustAdmit(t, l, "203.0.113.1")
}

// A connection that ends in whatever state leaves nothing behind.
func TestAccounting(t *testing.T) {
	t.Parallel()
	l := newLimiter(t, roomy())
	for i, end := range []func(*conn){
		func(*conn) {},
		func(c *conn) { l.begin(c); l.begin(c) },
		func(c *conn) { l.begin(c); l.Authenticated(l.ConnContext(t.Context(), c), "a", [32]byte{2}) },
		func(c *conn) { _ = c.Close(); l.begin(c) },
		func(c *conn) { _ = c.Close(); l.Authenticated(l.ConnContext(t.Context(), c), "a", [32]byte{2}) },
	} {
		c := mustAdmit(t, l, fmt.Sprintf("192.0.%d.1", i))
		end(c)
		_ = c.Close()
		l.mu.Lock()
		if l.open != (population{}) || l.handshaking != (population{}) || len(l.perAddress) != 0 {
			t.Errorf("case %d leaves open %+v, handshaking %+v, %d addresses", i, l.open, l.handshaking, len(l.perAddress))
		}
		l.mu.Unlock()
	}
}

// A network has its rate of handshakes, after a burst that lets many clients behind one address come back at once.
func TestHandshakeRate(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, one, same, other string }{
		{"IPv4", "192.0.2.1", "192.0.2.200", "192.0.3.1"},
		{"IPv6", "2001:db8::1", "2001:db8:0:ff::1", "2001:db8:0:100::1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := roomy()
				c.HandshakeRate = 7
				l := newLimiter(t, c)
				one, same, other := mustAdmit(t, l, tt.one), mustAdmit(t, l, tt.same), mustAdmit(t, l, tt.other)
				count := func(c *conn, n int) (passed int) {
					for range n {
						if _, refused := l.handshake(c, time.Now()); !refused {
							passed++
						}
					}
					return passed
				}
				if got := count(one, minBurst/2) + count(same, minBurst); got != minBurst {
					t.Errorf("%d handshakes of a network at once, want %d", got, minBurst)
				}
				if admitted(l, tt.same) || refusals(l, HandshakeRate) != 1 {
					t.Error("a connection was accepted whose handshake is bound to be refused")
				}
				if got := count(other, 3); got != 3 {
					t.Errorf("another network had %d of 3 handshakes", got)
				}
				time.Sleep(2 * time.Second)
				mustAdmit(t, l, tt.same)
				if got := count(same, 100); got != 14 {
					t.Errorf("%d handshakes after two seconds, want 14", got)
				}
			})
		})
	}
}

// However many clients come from one network, their handshakes use up nothing: each is given back when its client
// authenticates, once, and only what was taken.
func TestHandshakesOfClientsAreGivenBack(t *testing.T) {
	t.Parallel()
	c := roomy()
	c.HandshakeRate = 1
	l := newLimiter(t, c)
	left := func() float64 { // at one moment, so that nothing is saved up meanwhile
		l.mu.Lock()
		defer l.mu.Unlock()
		r, _ := l.handshakes.get(netip.MustParseAddr("192.0.2.0"))
		return math.Round(r.TokensAt(time.Time{}))
	}
	stranger := mustAdmit(t, l, "192.0.2.9")
	for range 100 {
		l.handshake(stranger, time.Time{})
	}
	before := left()
	for i := range 3 * minBurst {
		client := mustAdmit(t, l, "192.0.2.1")
		if kind, refused := l.handshake(client, time.Time{}); refused {
			t.Fatalf("client %d was refused: %v", i, kind)
		}
		l.note(client, "a", [32]byte{byte(i), byte(i >> 8), 1}, time.Time{})
		l.note(client, "a", [32]byte{byte(i), byte(i >> 8), 1}, time.Time{}) // a minute later
		_ = client.Close()
	}
	resumed := mustAdmit(t, l, "192.0.2.1") // no handshake of its own was counted
	l.note(resumed, "a", [32]byte{1}, time.Time{})
	if after := left(); before != minBurst-100 || after != before {
		t.Errorf("%v handshakes are left to the network, %v before", after, before)
	}
}

// Unknown networks share one rate, which known ones do not need. A day later they are unknown again.
func TestHandshakeTotal(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := roomy()
		c.HandshakeTotal = 10
		l := newLimiter(t, c)
		makeKnown(t, l, "198.51.100.1")
		for i := range minBurst {
			c := mustAdmit(t, l, fmt.Sprintf("10.%d.%d.1", i>>8, i&0xff))
			if _, refused := l.handshake(c, time.Now()); refused {
				t.Fatalf("handshake %d was refused", i)
			}
			_ = c.Close()
		}
		if admitted(l, "192.0.2.1") || refusals(l, HandshakeTotal) != 1 {
			t.Error("a connection of an unknown network was accepted whose handshake is bound to be refused")
		}
		known := mustAdmit(t, l, "198.51.100.200")
		if _, refused := l.handshake(known, time.Now()); refused {
			t.Error("a known network was held to what strangers share")
		}
		time.Sleep(time.Second)
		stranger := mustAdmit(t, l, "192.0.2.1")
		for range 10 {
			if _, refused := l.handshake(stranger, time.Now()); refused {
				t.Error("refused though a second has passed")
			}
		}
		if kind, refused := l.handshake(stranger, time.Now()); !refused || kind != HandshakeTotal {
			t.Error("an eleventh handshake in a second got through")
		}
		time.Sleep(knownFor - time.Second)
		for range minBurst {
			_, _ = l.handshake(stranger, time.Now())
		}
		if admitted(l, "198.51.100.1") {
			t.Error("a network is still known after a day")
		}
	})
}

// 0 is no limit.
func TestNoRates(t *testing.T) {
	t.Parallel()
	l := newLimiter(t, roomy())
	c := mustAdmit(t, l, "192.0.2.1")
	for range 2 * minBurst {
		if _, refused := l.handshake(c, time.Now()); refused {
			t.Fatal("refused without a limit")
		}
		if status := request(t, l, c, nil, anonymous).Code; status != 200 {
			t.Fatalf("answered %d without a limit", status)
		}
	}
}

// Behind a load balancer that does not say for whom it speaks, the limits of an address would be one for all.
func TestDominantAddress(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	c := roomy()
	c.AddressConnections, c.HandshakeRate, c.AnonymousRate = 2, 1, 1
	c.Logger = slog.New(slog.NewTextHandler(&log, nil))
	l := newLimiter(t, c)
	client := func(i int, address string) {
		c := mustAdmit(t, l, address)
		l.Authenticated(l.ConnContext(t.Context(), c), fmt.Sprint("client", i), [32]byte{byte(i), byte(i >> 8), 1})
		_ = c.Close()
	}
	// Strangers, however many, do not switch the limits off.
	stranger := mustAdmit(t, l, "192.0.2.1")
	for range 100 {
		request(t, l, stranger, nil, anonymous)
	}
	_ = stranger.Close()
	client(0, "203.0.113.1")
	// Nor does one client that connects often; and the address used up its rate before.
	for range 2 * dominantClients {
		client(1, "198.51.100.1")
	}
	early := mustAdmit(t, l, "198.51.100.1")
	statuses(t, l, early, nil, anonymous, 20)
	_ = early.Close()
	for i := range dominantClients - 1 {
		client(1+i, "198.51.100.1")
	}
	if l.Stats().SwitchedOff {
		t.Fatalf("%d clients are enough to switch the limits off", dominantClients-1)
	}
	client(dominantClients, "198.51.100.1")
	if !l.Stats().SwitchedOff || strings.Count(log.String(), "level=WARN") != 1 || !strings.Contains(log.String(), "proxy.trusted") {
		t.Fatalf("the limits are not off, or nobody was told:\n%s", &log)
	}
	client(dominantClients, "198.51.100.1") // and not told again
	for range 3 {
		balanced := mustAdmit(t, l, "198.51.100.1")
		for range 2 * minBurst {
			if _, refused := l.handshake(balanced, time.Now()); refused {
				t.Fatal("a handshake through the balancer was refused")
			}
		}
		if served, _ := statuses(t, l, balanced, nil, anonymous, 30); served != 30 {
			t.Errorf("%d of 30 requests through the balancer served", served)
		}
	}
	mustAdmit(t, l, "192.0.2.1")
	mustAdmit(t, l, "192.0.2.1")
	if admitted(l, "192.0.2.1") {
		t.Error("the limits of another address are off too")
	}
	for i := range 2 * dominantClients {
		client(100+i, fmt.Sprintf("10.0.%d.1", i))
	}
	if l.Stats().SwitchedOff || strings.Count(log.String(), "level=WARN") != 1 {
		t.Errorf("the limits are still off, or nobody was told:\n%s", &log)
	}
}

// Many clients behind one address are no load balancer as long as others come from elsewhere.
func TestManyClientsDoNotDominate(t *testing.T) {
	t.Parallel()
	l := newLimiter(t, roomy())
	for i := range 3 * dominantClients {
		address := "198.51.100.1"
		if i%4 == 0 {
			address = fmt.Sprintf("192.0.2.%d", i)
		}
		c := mustAdmit(t, l, address)
		l.Authenticated(l.ConnContext(t.Context(), c), fmt.Sprint("client", i), [32]byte{byte(i), 1})
		if l.Stats().SwitchedOff {
			t.Fatalf("an address with three of four of %d clients dominates", i+1)
		}
	}
}

// A client is one client however often it renews: by renewing it could otherwise have its own limits switched off. It
// counts where it came from last.
func TestOneClientDoesNotDominate(t *testing.T) {
	t.Parallel()
	l := newLimiter(t, roomy())
	authenticate := func(i int, client, address string) {
		c := mustAdmit(t, l, address)
		l.Authenticated(l.ConnContext(t.Context(), c), client, [32]byte{byte(i), byte(i >> 8), 1})
		_ = c.Close()
	}
	for i := range 20 * dominantClients {
		authenticate(i, fmt.Sprint("client", i%(dominantClients-1)), "198.51.100.1")
		if l.Stats().SwitchedOff {
			t.Fatalf("the limits are off after %d certificates of at most %d clients", i+1, dominantClients-1)
		}
	}
	authenticate(0, "client0", "192.0.2.1") // with a certificate that is known
	authenticate(1000, "client1", "192.0.2.1")
	authenticate(1001, "another", "198.51.100.1")
	here, there := l.clientsAt[netip.MustParseAddr("198.51.100.1")], l.clientsAt[netip.MustParseAddr("192.0.2.1")]
	if here != dominantClients-2 || there != 2 || len(l.places) != dominantClients {
		t.Errorf("%d clients here, %d there, %d in all", here, there, len(l.places))
	}
	l.known.remove([32]byte{2, 0, 1}) // one of many that client2 has
	if n := l.clientsAt[netip.MustParseAddr("198.51.100.1")]; n != here || len(l.places) != dominantClients {
		t.Errorf("a client that lost one of its certificates is not counted: %d clients here, %d in all", n, len(l.places))
	}
	for i := range 4 { // 18 here, and the two there with two dozens of certificates
		authenticate(2000+i, fmt.Sprint("more", i), "198.51.100.1")
	}
	if !l.Stats().SwitchedOff {
		t.Error("certificates outweigh clients")
	}
}

// Certificates that have not been seen for a day make way, so that what was renewed long ago does not weigh.
func TestKnownExpire(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, roomy())
		authenticate := func(i int) {
			c := mustAdmit(t, l, "198.51.100.1")
			l.Authenticated(l.ConnContext(t.Context(), c), fmt.Sprint("client", i%100%9), [32]byte{byte(i), 1})
			_ = c.Close()
		}
		for i := range 10 {
			authenticate(i)
		}
		time.Sleep(knownFor)
		for i := range 10 {
			authenticate(100 + i)
		}
		if n, at := l.known.len(), l.clientsAt[addressOf(netip.MustParseAddr("198.51.100.1"))]; n != 10 || at != 9 || len(l.places) != 9 {
			t.Errorf("%d certificates known, %d clients of the address, want the 10 of today and their 9", n, at)
		}
	})
}

// What comes from an exempt address uses up nothing of the others.
func TestExemptIsNotCounted(t *testing.T) {
	t.Parallel()
	c := roomy()
	c.AnonymousRate, c.AnonymousTotal = 1, 10
	c.Exempt = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	l := newLimiter(t, c)
	if served, _ := statuses(t, l, mustAdmit(t, l, "127.0.0.1"), nil, anonymous, 100); served != 100 {
		t.Errorf("%d of 100 served", served)
	}
	if served, _ := statuses(t, l, mustAdmit(t, l, "192.0.2.1"), nil, anonymous, 10); served != 10 {
		t.Errorf("%d of 10 served of an address that had asked nothing", served)
	}
}

// Loopback is exempt anyway: a demonstration warns of nothing.
func TestExemptDoesNotDominate(t *testing.T) {
	t.Parallel()
	c := roomy()
	c.Exempt = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	l := newLimiter(t, c)
	for i := range 2 * dominantClients {
		c := mustAdmit(t, l, "127.0.0.1")
		l.Authenticated(l.ConnContext(t.Context(), c), fmt.Sprint("client", i), [32]byte{byte(i), 1})
	}
	if l.Stats().SwitchedOff {
		t.Error("an exempt address dominates")
	}
}

// Nothing grows with the number of addresses that an attacker has.
func TestMemoryIsBounded(t *testing.T) {
	// Not parallel: it reads how much memory is in use.
	c := roomy()
	c.HandshakeRate, c.HandshakeTotal, c.AnonymousRate, c.AnonymousTotal, c.ClientRate = 1, 1<<30, 1, 1<<30, 1
	l := newLimiter(t, c)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range 100_000 {
		c := mustAdmit(t, l, fmt.Sprintf("%d.%d.%d.1", 11+i>>16, i>>8&0xff, i&0xff))
		if _, refused := l.handshake(c, time.Now()); refused {
			t.Fatal("refused")
		}
		request(t, l, c, nil, anonymous)
		_ = c.Close()
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if l.handshakes.len() != maxNetworks || l.requests.len() != maxAddresses || len(l.perAddress) != 0 || l.networks.len() != 0 {
		t.Errorf("%d networks, %d addresses, %d connections, %d known", l.handshakes.len(), l.requests.len(), len(l.perAddress), l.networks.len())
	}
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 24<<20 {
		t.Errorf("100,000 addresses hold %d KiB", grown>>10)
	}
	runtime.KeepAlive(l)
}

func TestLRU(t *testing.T) {
	t.Parallel()
	var gone []string
	table := newLRU[string, int](2)
	table.evicted = func(k string, _ int) { gone = append(gone, k) }
	if _, _, ok := table.oldest(); ok {
		t.Error("an empty table has an oldest entry")
	}
	table.put("a", 1)
	table.put("b", 2)
	table.get("a")
	table.put("c", 3)
	if _, ok := table.get("b"); ok || !slices.Equal(gone, []string{"b"}) {
		t.Errorf("gone: %q, want b", gone)
	}
	table.put("a", 4)
	if v, ok := table.get("a"); v != 4 || !ok || table.len() != 2 {
		t.Errorf("a is %d, %t", v, ok)
	}
	if k, v, ok := table.oldest(); k != "c" || v != 3 || !ok {
		t.Errorf("the oldest is %q", k)
	}
	table.remove("c")
	table.remove("c")
	if !slices.Equal(gone, []string{"b", "c"}) || table.len() != 1 {
		t.Errorf("gone: %q", gone)
	}
	for i := range 10 { // what was removed makes room
		table.remove(strconv.Itoa(i - 1))
		table.put(strconv.Itoa(i), i)
	}
	if len(table.nodes) > 3 || table.len() != 2 {
		t.Errorf("%d entries take %d places", table.len(), len(table.nodes))
	}
	if k, v, ok := table.oldest(); k != "a" || v != 4 || !ok {
		t.Errorf("the oldest is %q", k)
	}
	table.remove("a")
	if k, v, ok := table.oldest(); k != "9" || v != 9 || !ok {
		t.Errorf("the oldest is %q", k)
	}
}

// An address comes back as it was, none as none.
func TestPacked(t *testing.T) {
	t.Parallel()
	for _, a := range []netip.Addr{
		{}, netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("192.0.2.1"), netip.IPv6Unspecified(), netip.MustParseAddr("2001:db8::1"),
	} {
		if got := packed(a).unpacked(); got != a {
			t.Errorf("%v comes back as %v", a, got)
		}
	}
}

// The listener goes on after refusals and reports what the one below reports.
func TestListener(t *testing.T) {
	t.Parallel()
	c := roomy()
	c.AddressConnections = 1
	l := newLimiter(t, c)
	inner := &scripted{conns: []net.Conn{from("192.0.2.1"), from("192.0.2.1"), from("192.0.2.2")}}
	listener := l.Listener(inner)
	for _, want := range []string{"192.0.2.1:4711", "192.0.2.2:4711"} {
		c, err := listener.Accept()
		if err != nil || c.RemoteAddr().String() != want {
			t.Fatalf("accepted %v, %v, want %s", c, err, want)
		}
	}
	if _, err := listener.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("error is %v", err)
	}
}

// A connection on which a write was out of time is written to no more; another error does not end it.
func TestStuckWrite(t *testing.T) {
	t.Parallel()
	inner := &failingConn{fakeConn: from("192.0.2.1"), errs: []error{nil, io.ErrShortWrite, os.ErrDeadlineExceeded, nil}}
	c := newLimiter(t, roomy()).admit(inner, nil)
	for i, want := range []error{nil, io.ErrShortWrite, os.ErrDeadlineExceeded, os.ErrDeadlineExceeded} {
		if _, err := c.Write([]byte("x")); !errors.Is(err, want) {
			t.Errorf("write %d: error is %v, want %v", i, err, want)
		}
	}
	if len(inner.errs) != 1 {
		t.Error("written to once more")
	}
}

// failingConn fails writes with these errors in turn.
type failingConn struct {
	*fakeConn
	errs []error
}

func (f *failingConn) Write(p []byte) (int, error) {
	err := f.errs[0]
	f.errs = f.errs[1:]
	return len(p), err
}

// scripted is a listener with these connections and no more.
type scripted struct {
	net.Listener
	conns []net.Conn
}

func (s *scripted) Accept() (net.Conn, error) {
	if len(s.conns) == 0 {
		return nil, net.ErrClosed
	}
	c := s.conns[0]
	s.conns = s.conns[1:]
	return c, nil
}
