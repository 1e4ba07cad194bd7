// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package mtls

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// sent is a connection from which b can be read.
type sent struct {
	net.Conn
	*bytes.Reader
}

func (s sent) Read(b []byte) (int, error) { return s.Reader.Read(b) }

func received(b []byte) *limitedConn { return newLimitedConn(sent{Reader: bytes.NewReader(b)}) }

// record returns a TLS record of n bytes behind its header.
func record(n int) []byte {
	return append([]byte{0x16, 3, 1, byte(n >> 8), byte(n)}, bytes.Repeat([]byte{0xff}, n)...)
}

// During the handshake no record is read that would not fit, and none beyond the one that is asked for.
func TestHandshakeIsReadByRecords(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		records [][]byte
		want    int // bytes read
		err     error
	}{
		"one that just fits":    {[][]byte{record(MaxHandshakeBytes - 5)}, MaxHandshakeBytes, errHandshakeSize},
		"one too large":         {[][]byte{record(MaxHandshakeBytes - 4)}, 5, errHandshakeSize},
		"second too large":      {[][]byte{record(100), record(MaxHandshakeBytes - 109)}, 110, errHandshakeSize},
		"second just fits":      {[][]byte{record(100), record(MaxHandshakeBytes - 110)}, MaxHandshakeBytes, errHandshakeSize},
		"empty ones":            {[][]byte{record(0), record(0), record(7)}, 22, io.EOF},
		"as many as there are":  {[][]byte{bytes.Repeat(record(0), MaxHandshakeBytes)}, MaxHandshakeBytes, errHandshakeSize},
		"less than a header":    {[][]byte{{0x16, 3, 1}}, 3, io.EOF},
		"ends inside of a body": {[][]byte{record(10)[:8]}, 8, io.EOF},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := received(bytes.Join(tc.records, nil))
			got, err := 0, error(nil)
			for buf := make([]byte, 1<<14); err == nil; {
				var n int
				n, err = c.Read(buf)
				got += n
			}
			if got != tc.want || !errors.Is(err, tc.err) {
				t.Errorf("%d bytes, then %v; want %d, then %v", got, err, tc.want, tc.err)
			}
		})
	}
	c := received(append(record(100), record(50)...))
	for i := range 160 { // in pieces of a byte
		if n, err := c.Read(make([]byte, 1)); n != 1 || err != nil {
			t.Fatalf("byte %d: %d bytes, %v", i, n, err)
		}
	}
	c = received(record(MaxHandshakeBytes))
	for range recordHeaderLen {
		if n, err := c.Read(make([]byte, 1)); n != 1 || err != nil {
			t.Fatalf("%d bytes, %v", n, err)
		}
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, errHandshakeSize) {
		t.Errorf("a record too large behind a header in pieces: %v", err)
	}
	c = received(append(record(100), record(50)...))
	for _, want := range []int{5, 100, 5, 50} {
		if n, err := c.Read(make([]byte, 1000)); n != want || err != nil {
			t.Errorf("%d bytes, %v; want %d", n, err, want)
		}
	}
}

// After the handshake a record of any size may come, within the bound before the first request, and then without one.
func TestBoundsAfterTheHandshake(t *testing.T) {
	t.Parallel()
	c := received(make([]byte, 2*maxBeforeRequest))
	if _, err := io.ReadFull(c, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	close(c.shaken)
	if n, err := c.Read(make([]byte, 1000)); n != 1000 || err != nil {
		t.Errorf("%d bytes, %v; want what is there", n, err)
	}
	if n, err := io.Copy(io.Discard, c); n != maxBeforeRequest-1100 || !errors.Is(err, errRequestSize) {
		t.Errorf("%d bytes, then %v", n, err)
	}
	c.lift()
	if n, err := io.Copy(io.Discard, c); n != maxBeforeRequest || err != nil {
		t.Errorf("%d bytes, then %v", n, err)
	}
}

// The end of a connection is told in every phase.
func TestEndIsToldInEveryPhase(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(*limitedConn){
		"handshake": func(*limitedConn) {},
		"after it":  func(c *limitedConn) { close(c.shaken) },
		"lifted":    func(c *limitedConn) { c.lift() },
	} {
		c := received(nil)
		prepare(c)
		if n, err := c.Read(make([]byte, 10)); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("%s: %d bytes, %v", name, n, err)
		}
	}
}

// A reader behind the handshake that comes before the word that it has ended waits for that.
func TestReaderWaitsForTheEndOfTheHandshake(t *testing.T) {
	t.Parallel()
	large := record(16 << 10)
	c := received(large)
	if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(time.Millisecond, func() { close(c.shaken) })
	if _, err := io.ReadFull(c, make([]byte, 16<<10)); err != nil {
		t.Error(err)
	}
}

// A panic in a handshake ends its connection and nothing else.
func TestPanicInHandshake(t *testing.T) {
	t.Parallel()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	l := NewListener(inner, &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { panic("here") }})
	for range 2 {
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := l.Accept(); err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		var dead net.Error
		if err := tls.Client(c, &tls.Config{InsecureSkipVerify: true}).Handshake(); err == nil || errors.As(err, &dead) && dead.Timeout() {
			t.Errorf("the connection was not closed: %v", err)
		}
	}
}

// What a server has not set of HTTP/2 is bounded, and what it has set stays.
func TestHTTP2IsBounded(t *testing.T) {
	t.Parallel()
	unset := &http.Server{}
	ConfigureServer(unset, &tls.Config{})
	if got := *unset.HTTP2; got.MaxReadFrameSize != 16<<10 || got.MaxReceiveBufferPerConnection != 1<<16-1 ||
		got.MaxReceiveBufferPerStream != 1<<16-1 || got.MaxConcurrentStreams != 100 {
		t.Errorf("%+v", got)
	}
	own := http.HTTP2Config{
		MaxReadFrameSize: 1 << 20, MaxReceiveBufferPerConnection: 1 << 20, MaxReceiveBufferPerStream: 1 << 19, MaxConcurrentStreams: 7,
	}
	set := &http.Server{HTTP2: &own}
	ConfigureServer(set, &tls.Config{})
	if got := set.HTTP2; got.MaxReadFrameSize != own.MaxReadFrameSize || got.MaxConcurrentStreams != own.MaxConcurrentStreams ||
		got.MaxReceiveBufferPerConnection != own.MaxReceiveBufferPerConnection ||
		got.MaxReceiveBufferPerStream != own.MaxReceiveBufferPerStream {
		t.Errorf("%+v, want %+v", got, own)
	}
}

// A read that waits for word of the handshake's end is bounded as every one after it.
func TestBoundOfAReadThatWaitedForTheHandshake(t *testing.T) {
	t.Parallel()
	c := received(make([]byte, 10))
	c.handshake, c.all = 0, 0
	close(c.shaken)
	if n, err := c.readRecord(make([]byte, 1)); n != 0 || !errors.Is(err, errRequestSize) {
		t.Errorf("%d bytes, %v, want %v", n, err, errRequestSize)
	}
}

// panicking is a connection that has the handshake panic, and a listener of it.
type panicking struct {
	net.Listener
	net.Conn
	closed chan struct{}
}

func (p panicking) Accept() (net.Conn, error) { return p, nil }
func (panicking) Read([]byte) (int, error)    { panic("in the handshake") }
func (p panicking) Close() error              { close(p.closed); return nil }
func (panicking) Addr() net.Addr              { return nil }

// A handshake that panics closes its connection, which is not left to the garbage collector.
func TestPanicClosesTheConnection(t *testing.T) {
	t.Parallel()
	p := panicking{closed: make(chan struct{})}
	if _, err := NewListener(p, &tls.Config{MinVersion: tls.VersionTLS13}).Accept(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.closed:
	case <-time.After(10 * time.Second):
		t.Error("the connection was left open")
	}
}
