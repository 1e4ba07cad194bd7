// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/certbound/certbound/scripts/postgres"
)

// balancer gives each connection to the next of the backends that takes it, and knows nothing else of them.
type balancer struct {
	net.Listener
	mu       sync.Mutex
	backends []string
	next     int
}

func newBalancer(t *testing.T) *balancer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &balancer{Listener: l}
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { b.serve(ctx, c) })
		}
	})
	t.Cleanup(func() {
		cancel()
		l.Close()
		wg.Wait()
	})
	return b
}

func (b *balancer) add(backend string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.backends = append(b.backends, backend)
}

// dial tries each backend once.
func (b *balancer) dial() (net.Conn, error) {
	b.mu.Lock()
	b.next++
	order := append(b.backends[b.next%len(b.backends):len(b.backends):len(b.backends)], b.backends[:b.next%len(b.backends)]...)
	b.mu.Unlock()
	var c net.Conn
	err := error(nil)
	for _, backend := range order {
		if c, err = net.Dial("tcp", backend); err == nil {
			return c, nil
		}
	}
	return nil, err
}

func (b *balancer) serve(ctx context.Context, c net.Conn) {
	defer c.Close()
	d, err := b.dial()
	if err != nil {
		return
	}
	defer d.Close()
	defer context.AfterFunc(ctx, func() { c.Close(); d.Close() })()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(d, c)
		_ = d.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(c, d)
	_ = c.(*net.TCPConn).CloseWrite()
	c.Close()
	<-done
}

// node is one replica as a process of the real program.
type node struct {
	t    *testing.T
	data string
	args []string
	env  []string
	cmd  *exec.Cmd
	err  stderr
}

// stderr keeps what several processes say.
type stderr struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements io.Writer.
func (s *stderr) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

// Reset forgets what was said so far.
func (s *stderr) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text.Reset()
}

// String is all that was said so far.
func (s *stderr) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// run runs the real program and returns what it printed.
func (n *node) run(args ...string) string {
	n.t.Helper()
	cmd := n.command(args...)
	out, err := cmd.Output()
	if err != nil {
		n.t.Fatalf("certbound %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (n *node) command(args ...string) *exec.Cmd {
	n.t.Helper()
	self, err := os.Executable()
	if err != nil {
		n.t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Args[0] = "certbound" // by which the binary knows what it is
	cmd.Env, cmd.Stderr = append(os.Environ(), n.env...), &n.err
	return cmd
}

// start begins to serve, and returns when it is ready.
func (n *node) start() {
	n.t.Helper()
	n.cmd = n.command(append([]string{"serve", "--data", n.data}, n.args...)...)
	out, err := n.cmd.StdoutPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "ready ") {
		_ = n.cmd.Wait()
		n.t.Fatalf("it is not ready: %q, %v\n%s", line, err, n.err.String())
	}
}

// stop ends it as an operator would, and demands that it ends cleanly.
func (n *node) stop() {
	n.t.Helper()
	if n.cmd == nil {
		return
	}
	if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		n.t.Error(err)
	}
	if err := n.cmd.Wait(); err != nil {
		n.t.Errorf("it did not end cleanly: %v\n%s", err, n.err.String())
	}
	n.cmd = nil
}

// addresses are where it listens.
func (n *node) addresses() (public, mtls string) {
	n.t.Helper()
	doc, err := os.ReadFile(filepath.Join(n.data, "serve.json"))
	if err != nil {
		n.t.Fatal(err)
	}
	var about struct{ Public, MTLS string }
	if err := json.Unmarshal(doc, &about); err != nil {
		n.t.Fatal(err)
	}
	return about.Public, about.MTLS
}

// caller asks for tokens on connections of its own, and asks once more when one was closed.
type caller struct {
	client         *http.Client
	endpoint, id   string
	asked, retried atomic.Int64
}

func (c *caller) ask() error {
	err := c.once()
	if _, closed := err.(*url.Error); closed {
		c.retried.Add(1)
		err = c.once()
	}
	c.asked.Add(1)
	return err
}

func (c *caller) once() error {
	res, err := c.client.PostForm(c.endpoint, url.Values{"grant_type": {"client_credentials"}, "client_id": {c.id}})
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return &url.Error{Op: "read", URL: c.endpoint, Err: err} // the connection was closed too
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d: %s", res.StatusCode, body)
	}
	return nil
}

// Two replicas behind a plain TCP balancer are restarted one after the other under load. No client that asks once more when
// its connection was closed is refused anything.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	database := postgres.ForTest(t).Database(t)
	public, mtls := newBalancer(t), newBalancer(t)
	at := func(b *balancer) string { return fmt.Sprintf("https://localhost:%d", b.Addr().(*net.TCPAddr).Port) }
	key := make([]byte, 32)
	rand.Read(key)
	var nodes []*node
	for range 2 {
		n := &node{
			t: t, data: t.TempDir(), env: []string{"CERTBOUND_KEK=" + base64.StdEncoding.EncodeToString(key), "CERTBOUND_DATABASE=" + database},
			args: []string{"--issuer", at(public), "--mtls-url", at(mtls), "--public", "127.0.0.1:0", "--mtls", "127.0.0.1:0", "--debug", "127.0.0.1:0"},
		}
		n.start()
		t.Cleanup(n.stop)
		p, m := n.addresses()
		public.add(p)
		mtls.add(m)
		nodes = append(nodes, n)
	}
	operator := []string{"--profile", filepath.Join(nodes[0].data, "admin")}
	nodes[0].run(append([]string{"resource", "add", "https://ledger.test", "--scope", "ledger:read"}, operator...)...)
	code := nodes[0].run(append([]string{"client", "add", "payments", "--scope", "ledger:read"}, operator...)...)
	profile := filepath.Join(t.TempDir(), "payments")
	nodes[0].run("enroll", strings.TrimSpace(code), "--profile", profile)

	pair, err := tls.LoadX509KeyPair(filepath.Join(profile, "cert.pem"), filepath.Join(profile, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	roots, err := os.ReadFile(filepath.Join(profile, "roots.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(roots)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var load sync.WaitGroup
	var callers []*caller
	for k := range 6 {
		transport := &http.Transport{
			TLSClientConfig:   &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}},
			ForceAttemptHTTP2: k%2 == 0,
			DisableKeepAlives: k == 5, // a new connection for each
		}
		t.Cleanup(transport.CloseIdleConnections)
		c := &caller{client: &http.Client{Transport: transport, Timeout: 20 * time.Second}, endpoint: at(mtls) + "/oauth2/token", id: "payments"}
		callers = append(callers, c)
		load.Go(func() {
			pace := time.NewTicker(8 * time.Millisecond)
			defer pace.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-pace.C:
				}
				if err := c.ask(); err != nil && ctx.Err() == nil {
					t.Errorf("caller %d: %v", k, err)
					return
				}
			}
		})
	}
	for range 2 {
		for _, n := range nodes {
			n.stop()
			n.start()
		}
	}
	cancel()
	load.Wait()
	status := nodes[1].run(append([]string{"status"}, operator...)...)
	for _, want := range []string{"postgresql", "single node", "REPLICA", "live"} {
		if !strings.Contains(status, want) {
			t.Errorf("the status does not say %q:\n%s", want, status)
		}
	}
	if strings.Count(status, "live") != 2 || strings.Count(status, "* ") != 1 {
		t.Errorf("the status does not show two replicas, one of which answered:\n%s", status)
	}
	nodes[0].err.Reset()
	nodes[0].run(append([]string{"cert", "revoke", "--client", "payments"}, operator...)...)
	if said := nodes[0].err.String(); !strings.Contains(said, "durability: single node") {
		t.Errorf("the revocation says nothing of the database: %s", said)
	}
	for range 4 { // at both replicas
		c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}}, DisableKeepAlives: true}}
		if err := (&caller{client: c, endpoint: at(mtls) + "/oauth2/token", id: "payments"}).ask(); err == nil || !strings.Contains(err.Error(), "status 401") {
			t.Errorf("after the revocation: %v", err)
		}
	}
	var asked, retried int64
	for _, c := range callers {
		asked += c.asked.Load()
		retried += c.retried.Load()
	}
	t.Logf("%d requests, %d asked once more", asked, retried)
	if asked < 100 {
		t.Errorf("only %d requests: this shows nothing", asked)
	}
}
