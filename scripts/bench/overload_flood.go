// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/certbound/certbound/mtls"
)

// A flood is one way to keep the service from its work. Many attackers do it at once, each from any address of
// 127.1.0.0/16 to 127.127.0.0/16, as fast as one CPU can.
type flood struct {
	name     string
	disabled bool // with the certificate of the disabled client; otherwise there is none
	// attack is one attempt, from an address. It says what became of it by a.count.
	attack func(a *attacker, ctx context.Context) error
}

const attackers = 64

// maxHeld is how many connections are held open at once in silence; the oldest makes way.
const maxHeld = 4000

func floods() []flood {
	return []flood{
		{"no certificate, kept alive", false, (*attacker).askOn},
		{"no certificate, fresh connections", false, (*attacker).askOnce},
		{"disabled client, kept alive", true, (*attacker).askOn},
		{"disabled client, fresh connections", true, (*attacker).askOnce},
		{"ClientHello, then silence", false, (*attacker).fallSilent},
		{"replayed ClientHello, then close", false, (*attacker).replay},
		{"connections that say nothing", false, (*attacker).connectOnly},
	}
}

// attacker is one of many.
type attacker struct {
	address string
	config  *tls.Config
	hello   []byte // which any client may have sent

	mu     *sync.Mutex
	counts map[string]int
	held   *ring
}

// runFlood floods address until it is told to stop, and writes what became of it to a file.
func runFlood(ctx context.Context, name, address, report string) error {
	dir := filepath.Dir(report)
	roots, err := readRoots(filepath.Join(dir, "bench"))
	if err != nil {
		return err
	}
	profile := filepath.Join(dir, "refused")
	keyPair, err := mtls.LoadKeyPair(filepath.Join(profile, "cert.pem"), filepath.Join(profile, "key.pem"))
	if err != nil {
		return err
	}
	hello, err := clientHello(clientConfig(nil, roots))
	if err != nil {
		return err
	}
	var f *flood
	for _, known := range floods() {
		if known.name == name {
			f = &known
		}
	}
	if f == nil {
		return fmt.Errorf("there is no flood %q", name)
	}
	config := clientConfig(nil, roots)
	if f.disabled {
		config = clientConfig(keyPair, roots)
	}
	runtime.GOMAXPROCS(1)
	fmt.Println("ready", name)
	var mu sync.Mutex
	counts := make(map[string]int)
	held := &ring{conns: make([]net.Conn, maxHeld)}
	var group sync.WaitGroup
	for range attackers {
		group.Go(func() {
			a := &attacker{address: address, config: config, hello: hello, mu: &mu, counts: counts, held: held}
			for ctx.Err() == nil {
				if err := f.attack(a, ctx); err != nil {
					a.count(outcome(err))
				}
			}
		})
	}
	group.Wait()
	text, err := json.Marshal(counts)
	if err != nil {
		return err
	}
	return os.WriteFile(report, text, 0o600)
}

func (a *attacker) count(what string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.counts[what]++
}

// outcome puts an error into few words.
func outcome(err error) string {
	var timeout net.Error
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		return "timed out"
	case errors.Is(err, context.Canceled):
		return "stopped"
	}
	return "cut off"
}

// connect is a TCP connection from a random address.
func (a *attacker) connect(ctx context.Context) (*net.TCPConn, error) {
	from := fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(127), rand.IntN(256), 1+rand.IntN(254))
	c, err := dialFrom(from, newcomerTimeout).DialContext(ctx, "tcp", a.address)
	if err != nil {
		return nil, err
	}
	tcp := c.(*net.TCPConn)
	_ = tcp.SetLinger(0) // leaves nothing behind that would use up ports
	return tcp, tcp.SetDeadline(time.Now().Add(newcomerTimeout))
}

// askOn asks on a connection as long as it is answered.
func (a *attacker) askOn(ctx context.Context) error { return a.ask(ctx, 1<<20) }

// askOnce asks once on a connection.
func (a *attacker) askOnce(ctx context.Context) error { return a.ask(ctx, 1) }

// ask asks for tokens on one connection, so often or until it is closed.
func (a *attacker) ask(ctx context.Context, times int) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	conn := tls.Client(c, a.config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return err
	}
	a.count("handshakes")
	request := newTarget("", a.address, "/oauth2/token", form, a.config, 0).request
	reader := bufio.NewReader(conn)
	for range times {
		if err := conn.SetDeadline(time.Now().Add(newcomerTimeout)); err != nil || ctx.Err() != nil {
			return err
		}
		if _, err := conn.Write(request); err != nil {
			return err
		}
		status, err := readAnswer(reader)
		if status != 0 {
			a.count(fmt.Sprintf("× %d", status))
		}
		if err != nil {
			if errors.Is(err, errHungUp) {
				return nil
			}
			return err
		}
	}
	return nil
}

// clientHello is what a client with this configuration says first.
func clientHello(config *tls.Config) ([]byte, error) {
	client, server := net.Pipe()
	defer server.Close()
	go func() {
		_ = tls.Client(client, config).Handshake() // which the other end breaks off
		_ = client.Close()
	}()
	hello := make([]byte, 16<<10)
	if err := server.SetDeadline(time.Now().Add(newcomerTimeout)); err != nil {
		return nil, err
	}
	n, err := server.Read(hello)
	return hello[:n], err
}

// fallSilent sends a ClientHello, which costs nothing to make, and holds the connection.
func (a *attacker) fallSilent(ctx context.Context) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer a.held.put(c)
	if _, err := c.Write(a.hello); err != nil {
		return err
	}
	a.count("hellos")
	return a.peek(c)
}

// peek waits for the first byte of an answer for a moment, which tells a hello that was taken up from one that was not.
func (a *attacker) peek(c net.Conn) error {
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); err != nil {
		return err
	}
	a.count("answered")
	return nil
}

// replay sends a ClientHello, waits for the answer, which has cost a key exchange and a signature, and is gone.
func (a *attacker) replay(ctx context.Context) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write(a.hello); err != nil {
		return err
	}
	a.count("hellos")
	return a.peek(c)
}

// connectOnly holds connections on which nothing is said.
func (a *attacker) connectOnly(ctx context.Context) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	a.count("connections")
	a.held.put(c)
	return nil
}

// ring holds connections open, the oldest of which makes way.
type ring struct {
	mu    sync.Mutex
	conns []net.Conn
	next  int
}

func (r *ring) put(c net.Conn) {
	r.mu.Lock()
	old := r.conns[r.next]
	r.conns[r.next], r.next = c, (r.next+1)%len(r.conns)
	r.mu.Unlock()
	if old != nil {
		_ = old.Close()
	}
}
