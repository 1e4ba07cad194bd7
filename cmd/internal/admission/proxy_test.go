// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// proxyHeader writes a header. The length is that of the rest unless the test says otherwise.
func proxyHeader(command, family byte, rest ...byte) []byte {
	h := append([]byte(proxySignature), command, family)
	h = binary.BigEndian.AppendUint16(h, uint16(len(rest)))
	return append(h, rest...)
}

// fromClient is the header of a connection from an address and port.
func fromClient(address string, port uint16, extensions ...byte) []byte {
	a := netip.MustParseAddr(address)
	family, to := byte(proxyTCP4), netip.MustParseAddr("203.0.113.9")
	if a.Is6() {
		family, to = proxyTCP6, netip.MustParseAddr("2001:db8::9")
	}
	rest := append(a.AsSlice(), to.AsSlice()...)
	rest = binary.BigEndian.AppendUint16(rest, port)
	rest = binary.BigEndian.AppendUint16(rest, 9443)
	return proxyHeader(proxyProxied, family, append(rest, extensions...)...)
}

// withChecksum appends the extension with the checksum of all of it.
func withChecksum(header []byte) []byte {
	size := binary.BigEndian.Uint16(header[proxyFixed-2:]) + 7
	header = append(bytes.Clone(header), proxyChecksum, 0, 4, 0, 0, 0, 0)
	binary.BigEndian.PutUint16(header[proxyFixed-2:], size)
	sum := crc32.Checksum(header, crc32.MakeTable(crc32.Castagnoli))
	binary.BigEndian.PutUint32(header[len(header)-4:], sum)
	return header
}

func damaged(header []byte, at int) []byte {
	header = bytes.Clone(header)
	header[at] ^= 1
	return header
}

func TestProxyHeader(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		header []byte
		want   string // empty: the connection's own address
	}{
		"IPv4":                    {fromClient("192.0.2.1", 4711), "192.0.2.1:4711"},
		"IPv6":                    {fromClient("2001:db8::1", 65535), "[2001:db8::1]:65535"},
		"IPv4 in IPv6":            {fromClient("::ffff:192.0.2.1", 1), "192.0.2.1:1"},
		"extensions":              {fromClient("192.0.2.1", 4711, 0xea, 0, 3, 1, 2, 3, 4, 0, 0), "192.0.2.1:4711"},
		"checksum":                {withChecksum(fromClient("192.0.2.1", 4711, 4, 0, 1, 9)), "192.0.2.1:4711"},
		"local":                   {proxyHeader(proxyLocal, proxyUnspecified), ""},
		"local, with a family":    {proxyHeader(proxyLocal, proxyTCP4, 1, 2, 3), ""},
		"unspecified":             {proxyHeader(proxyProxied, proxyUnspecified, 1, 2, 3), ""},
		"the longest that may be": {fromClient("192.0.2.1", 1, append([]byte{4, 1, 249}, make([]byte, 505)...)...), "192.0.2.1:1"},
	} {
		after := "what follows"
		r := bytes.NewReader(append(bytes.Clone(tt.header), after...))
		got, err := readProxyHeader(r)
		if err != nil || got.IsValid() != (tt.want != "") || got.IsValid() && got.String() != tt.want {
			t.Errorf("%s: got %v, %v, want %s", name, got, err, tt.want)
		}
		if rest, _ := io.ReadAll(r); string(rest) != after {
			t.Errorf("%s: it leaves %q", name, rest)
		}
	}
}

func TestProxyHeaderRefused(t *testing.T) {
	t.Parallel()
	good := fromClient("192.0.2.1", 4711)
	for name, header := range map[string][]byte{
		"nothing":                          nil,
		"version 1":                        []byte("PROXY TCP4 192.0.2.1 192.0.2.2 4711 9443\r\n"),
		"a ClientHello":                    append([]byte{22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3}, make([]byte, 600)...),
		"signature":                        damaged(good, 5),
		"ends early":                       good[:len(good)-1],
		"version 3":                        proxyHeader(0x31, proxyTCP4, good[proxyFixed:]...),
		"unknown command":                  proxyHeader(0x22, proxyTCP4, good[proxyFixed:]...),
		"UDP":                              proxyHeader(proxyProxied, 0x12, good[proxyFixed:]...),
		"UNIX":                             proxyHeader(proxyProxied, 0x31, make([]byte, 216)...),
		"unknown protocol":                 proxyHeader(proxyProxied, 0x01, 1, 2, 3),
		"too short for IPv4":               proxyHeader(proxyProxied, proxyTCP4, make([]byte, 11)...),
		"too short for IPv6":               proxyHeader(proxyProxied, proxyTCP6, good[proxyFixed:]...),
		"unspecified address":              fromClient("0.0.0.0", 1),
		"unspecified address, IPv6":        fromClient("::", 1),
		"multicast":                        fromClient("224.0.0.1", 1),
		"too long":                         fromClient("192.0.2.1", 1, append([]byte{4, 1, 250}, make([]byte, 506)...)...),
		"as long as can be said":           proxyHeader(proxyProxied, proxyTCP4, make([]byte, 65535)...),
		"half an extension":                fromClient("192.0.2.1", 1, 4, 0),
		"extension beyond the end":         fromClient("192.0.2.1", 1, 4, 0, 2, 9),
		"checksum of another size":         fromClient("192.0.2.1", 1, proxyChecksum, 0, 3, 1, 2, 3),
		"checksum of another header":       damaged(withChecksum(good), proxyFixed+3),
		"checksum":                         damaged(withChecksum(good), len(good)+6),
		"two checksums, the second is bad": damaged(withChecksum(withChecksum(good)), len(good)+13),
	} {
		if got, err := readProxyHeader(bytes.NewReader(header)); !errors.Is(err, errProxyHeader) || got.IsValid() {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
	}
}

// Whatever comes, exactly the header is read, never more than its bound; what is believed is what a proxy that says the
// same writes; and with a checksum no other address is.
func FuzzProxyHeader(f *testing.F) {
	f.Add(fromClient("192.0.2.1", 4711))
	f.Add(fromClient("2001:db8::1", 4711, 4, 0, 1, 9))
	f.Add(withChecksum(fromClient("192.0.2.1", 4711)))
	f.Add(proxyHeader(proxyLocal, proxyUnspecified, 1, 2, 3))
	f.Add([]byte(proxySignature))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		got, err := readProxyHeader(r)
		read := len(data) - r.Len()
		if read > maxProxyHeader {
			t.Fatalf("%d bytes read", read)
		}
		if err != nil {
			if got.IsValid() {
				t.Fatal("refused, and yet an address")
			}
			return
		}
		if want := proxyFixed + int(binary.BigEndian.Uint16(data[proxyFixed-2:])); read != want {
			t.Fatalf("%d bytes read of a header of %d", read, want)
		}
		if !got.IsValid() {
			return
		}
		if got.Addr().Is4In6() || got.Addr().Zone() != "" || got.Addr().IsUnspecified() || got.Addr().IsMulticast() {
			t.Fatalf("a connection from %v", got)
		}
		again, err := readProxyHeader(bytes.NewReader(fromClient(got.Addr().String(), got.Port())))
		if err != nil || again != got {
			t.Fatalf("%v is written and read as %v, %v", got, again, err)
		}
		sealed := withChecksum(data[:read])
		if len(sealed) > maxProxyHeader {
			return
		}
		if _, err := readProxyHeader(bytes.NewReader(sealed)); err != nil && !hasChecksum(data[:read]) {
			t.Fatalf("with a checksum: %v", err)
		}
		// Not beyond the addresses: a wrong length there may hide the checksum, which is free to be absent.
		size := 12
		if data[proxyFixed-3] == proxyTCP6 {
			size = 36
		}
		for at := proxyFixed; at < proxyFixed+size; at++ {
			if _, err := readProxyHeader(bytes.NewReader(damaged(sealed, at))); err == nil {
				t.Fatalf("believed with a wrong byte at %d", at)
			}
		}
	})
}

// hasChecksum reports whether a header may have a checksum already, which a longer header breaks.
func hasChecksum(header []byte) bool { return bytes.IndexByte(header[proxyFixed:], proxyChecksum) >= 0 }

// behindProxy is a listener on loopback whose peers are trusted, or not.
func behindProxy(t *testing.T, l *Limiter) net.Listener {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener := l.Listener(inner)
	t.Cleanup(func() { _ = listener.Close() })
	return listener
}

func dial(t *testing.T, listener net.Listener, first []byte) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write(first); err != nil {
		t.Fatal(err)
	}
	return c
}

func trusting(networks ...string) Config {
	c := roomy()
	for _, n := range networks {
		c.Proxies = append(c.Proxies, netip.MustParsePrefix(n))
	}
	return c
}

// isReset reports whether the other end closed a connection without a word.
func isReset(t *testing.T, c net.Conn) bool {
	t.Helper()
	n, err := c.Read(make([]byte, 1))
	timeout, ok := errors.AsType[net.Error](err)
	return n == 0 && err != nil && !(ok && timeout.Timeout())
}

func TestProxyListener(t *testing.T) {
	t.Parallel()
	c := trusting("127.0.0.0/8")
	c.AddressConnections = 1
	l := newLimiter(t, c)
	listener := behindProxy(t, l)
	slow := dial(t, listener, fromClient("192.0.2.77", 1)[:10]) // delays nobody
	dial(t, listener, append(fromClient("192.0.2.1", 4711), "hello"...))
	first, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	text := make([]byte, 5)
	if _, err := io.ReadFull(first, text); err != nil || string(text) != "hello" || first.RemoteAddr().String() != "192.0.2.1:4711" {
		t.Fatalf("%v said %q, %v", first.RemoteAddr(), text, err)
	}
	// The limits are those of the client and not of the proxy.
	if again := dial(t, listener, fromClient("192.0.2.1", 4712)); !isReset(t, again) || refusals(l, AddressFull) != 1 {
		t.Errorf("a second connection of the client got in: %+v", l.Stats())
	}
	dial(t, listener, fromClient("192.0.2.2", 4711))
	if second, err := listener.Accept(); err != nil || second.RemoteAddr().String() != "192.0.2.2:4711" {
		t.Errorf("another client behind the proxy: %v, %v", second, err)
	}
	local := dial(t, listener, proxyHeader(proxyLocal, proxyUnspecified))
	if itself, err := listener.Accept(); err != nil || itself.RemoteAddr().String() != local.LocalAddr().String() {
		t.Errorf("the proxy itself: %v, %v", itself, err)
	}
	// Without a header there is no connection.
	if without := dial(t, listener, []byte(strings.Repeat("GET / HTTP/1.1\r\n", 5))); !isReset(t, without) || refusals(l, ProxyHeader) != 1 {
		t.Error("a proxy's connection without a header got in")
	}
	if _, err := slow.Write(fromClient("192.0.2.77", 1)[10:]); err != nil {
		t.Fatal(err)
	}
	if late, err := listener.Accept(); err != nil || late.RemoteAddr().String() != "192.0.2.77:1" {
		t.Errorf("the slow header: %v, %v", late, err)
	}
}

// Only listed peers are asked for a header, and only theirs is read.
func TestProxySpoofed(t *testing.T) {
	t.Parallel()
	listener := behindProxy(t, newLimiter(t, trusting("192.0.2.0/24")))
	header := fromClient("198.51.100.1", 4711)
	spoofed := dial(t, listener, header)
	c, err := listener.Accept()
	if err != nil || c.RemoteAddr().String() != spoofed.LocalAddr().String() {
		t.Fatalf("%v, %v, want a connection from %v", c, err, spoofed.LocalAddr())
	}
	got := make([]byte, len(header))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, header) {
		t.Errorf("what a stranger sent was read before it came to TLS: %q, %v", got, err)
	}
}

func TestProxyHeaderTimeout(t *testing.T) {
	t.Parallel()
	c := trusting("127.0.0.0/8")
	c.HeaderTimeout = 50 * time.Millisecond
	l := newLimiter(t, c)
	listener := behindProxy(t, l)
	accepted := make(chan error, 1)
	go func() {
		_, err := listener.Accept()
		accepted <- err
	}()
	for _, begin := range [][]byte{nil, fromClient("192.0.2.1", 1)[:20]} {
		if slow := dial(t, listener, begin); !isReset(t, slow) {
			t.Error("a connection without its header stays")
		}
	}
	if got := refusals(l, ProxyHeader); got != 2 {
		t.Errorf("%d refusals, want 2", got)
	}
	_ = listener.Close()
	if err := <-accepted; !errors.Is(err, net.ErrClosed) {
		t.Errorf("error is %v", err)
	}
}

// The time for the header is not that of the connection.
func TestProxyHeaderTimeoutEnds(t *testing.T) {
	t.Parallel()
	p := &proxied{
		listener: listener{limiter: newLimiter(t, roomy())},
		accepted: make(chan accepted, 1), closed: make(chan struct{}), reading: make(map[net.Conn]struct{}),
	}
	c := &headedConn{fakeConn: from("127.0.0.1"), text: bytes.NewReader(fromClient("192.0.2.1", 1))}
	p.unwrap(c)
	if a := <-p.accepted; a.conn == nil || len(c.deadlines) != 2 || c.deadlines[0].IsZero() || !c.deadlines[1].IsZero() {
		t.Errorf("the deadlines were %v, want one for the header and then none", c.deadlines)
	}
}

// headedConn has something to say, and remembers its deadlines.
type headedConn struct {
	*fakeConn
	text      io.Reader
	deadlines []time.Time
}

func (h *headedConn) Read(p []byte) (int, error) { return h.text.Read(p) }
func (h *headedConn) SetReadDeadline(t time.Time) error {
	h.deadlines = append(h.deadlines, t)
	return nil
}

// So many connections may wait for their header, and closing the listener ends them all.
func TestProxyHeadersBounded(t *testing.T) {
	t.Parallel()
	p := &proxied{
		listener: listener{Listener: &scripted{}, limiter: newLimiter(t, roomy())},
		closed:   make(chan struct{}), reading: make(map[net.Conn]struct{}),
	}
	var waiting []*fakeConn
	for range maxHeaders {
		waiting = append(waiting, from("127.0.0.1"))
		if !p.begin(waiting[len(waiting)-1]) {
			t.Fatal("no room")
		}
	}
	if p.begin(from("127.0.0.1")) {
		t.Error("one more than there may be")
	}
	p.Listener = closer{}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range waiting {
		if c.closed != 1 {
			t.Fatal("a connection stays open")
		}
	}
	clear(p.reading)
	if p.begin(from("127.0.0.1")) {
		t.Error("begun after Close")
	}
}

type closer struct{ net.Listener }

func (closer) Close() error { return nil }

// Closing ends what the listener started, also when nobody accepts any more.
func TestProxyClose(t *testing.T) {
	t.Parallel()
	l := newLimiter(t, trusting("127.0.0.1/32"))
	listener := behindProxy(t, l)
	dial(t, listener, fromClient("192.0.2.1", 1))
	if _, err := listener.Accept(); err != nil {
		t.Fatal(err)
	}
	unheard := dial(t, listener, fromClient("192.0.2.2", 1))
	silent := dial(t, listener, nil)
	for l.Stats().Connections != 2 { // the one that nobody takes has been admitted
		time.Sleep(time.Millisecond)
	}
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	if !isReset(t, unheard) || !isReset(t, silent) {
		t.Error("a connection outlives the listener that should hand it out")
	}
	if got := l.Stats().Connections; got != 1 {
		t.Errorf("%d connections counted, want the one that was handed out", got)
	}
	if _, err := listener.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("error is %v", err)
	}
	_ = listener.Close() // and again does no harm
}
