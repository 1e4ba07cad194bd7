// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/scripts/process"
)

// again is how long a service may take, once it is ready, to be serving as before.
const again = 10 * time.Second

// A service is the program with a data folder, started and ended many times.
type service struct {
	certbound string
	dir       string // where commands run; the data folder is data in it
	log       string
	settings  []string // variables of the environment
	known     *service // what callers know it by when it is one of several; nil: itself
	public    string   // addresses
	mtls      string
	debug     string

	process *process.Process
	starts  []time.Duration // from launch to ready

	mu    sync.Mutex
	up    chan struct{} // closed while it serves
	ended int           // how often it was about to end
}

// newService chooses addresses and settings for a service with its data in dir. Settings are like audit.sync=always.
func newService(certbound, dir string, settings ...string) (*service, error) {
	s := &service{certbound: certbound, dir: dir, log: filepath.Join(dir, "serve.log"), up: make(chan struct{})}
	for _, setting := range settings {
		key, value, _ := strings.Cut(setting, "=")
		s.settings = append(s.settings, "CERTBOUND_"+strings.ToUpper(strings.ReplaceAll(key, ".", "_"))+"="+value)
	}
	for _, address := range []*string{&s.public, &s.mtls, &s.debug} {
		var err error
		if *address, err = freeAddress(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// freeAddress returns an address on which nobody listens. Its port is below those that Linux gives away unasked, so that
// nobody else gets it while the service is down.
func freeAddress() (string, error) {
	for range 100 {
		address := "127.0.0.1:" + strconv.Itoa(20000+rand.IntN(12000))
		listener, err := net.Listen("tcp", address)
		if err == nil {
			return address, listener.Close()
		}
	}
	return "", errors.New("no free port")
}

func (s *service) data(elements ...string) string {
	return filepath.Join(append([]string{s.dir, "data"}, elements...)...)
}

// environment is ours without what would configure the service.
func (s *service) environment() []string {
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "CERTBOUND_") {
			env = append(env, v)
		}
	}
	return append(env, s.settings...)
}

// launch starts the service and does not wait.
func (s *service) launch() (err error) {
	argv := []string{
		s.certbound, "serve", "--data", "data", "--issuer", s.issuer(), "--public", s.public, "--mtls", s.mtls, "--debug", s.debug,
	}
	if s.known != nil {
		argv = append(argv, "--mtls-url", s.known.mtlsURL())
	}
	s.process, err = process.Launch(process.Command{Argv: argv, Dir: s.dir, Env: s.environment(), Log: s.log})
	return err
}

// ready waits for what launch started.
func (s *service) ready(ctx context.Context) error {
	if err := s.process.Ready(ctx); err != nil {
		return err
	}
	s.starts = append(s.starts, s.process.Took)
	s.resume()
	return nil
}

// resume lets those who wait for the service go on.
func (s *service) resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.up)
}

func (s *service) start(ctx context.Context) error {
	if err := s.launch(); err != nil {
		return err
	}
	return s.ready(ctx)
}

// down makes those who wait for the service wait from now on.
func (s *service) down() {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.up:
		s.up = make(chan struct{})
		s.ended++
	default:
	}
}

// ends says how often the service, while it served, was about to end.
func (s *service) ends() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended
}

// kill ends the service with SIGKILL. A service that ended by itself before that is an error, unless it ended well, as
// one does that was asked to stop.
func (s *service) kill() error {
	s.down()
	select {
	case <-s.process.Exited():
		if s.process.Status() == 0 {
			return nil
		}
		return fmt.Errorf("the service ended by itself, with exit status %d\n%s", s.process.Status(), s.process.LastWords())
	default:
	}
	s.process.Kill()
	return nil
}

// end kills what may still run.
func (s *service) end() {
	if s.process != nil {
		s.process.Kill()
	}
}

func (s *service) stop() error {
	s.down()
	return s.process.Stop()
}

// serving waits until the service is up.
func (s *service) serving(ctx context.Context) error {
	s.mu.Lock()
	up := s.up
	s.mu.Unlock()
	select {
	case <-up:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run runs a verb as an operator would.
func (s *service) run(ctx context.Context, line, stdin string) (process.Result, error) {
	return process.Run(ctx, process.Command{
		Argv: append([]string{s.certbound}, strings.Fields(line)...), Dir: s.dir, Env: s.environment(),
	}, stdin)
}

// must runs a verb that has to succeed.
func (s *service) must(ctx context.Context, line, stdin string) (string, error) {
	r, err := s.run(ctx, line, stdin)
	if err == nil && r.Exit != 0 {
		err = fmt.Errorf("certbound %s: exit status %d: %s", line, r.Exit, strings.TrimSpace(r.Stderr))
	}
	return r.Stdout, err
}

// verify has the program check a data folder's journal.
func (s *service) verify(ctx context.Context, data string) error {
	_, err := s.must(ctx, "audit verify --data "+data, "")
	return err
}

// monitored asks the listener for monitoring: the status of the answer, and its text.
func (s *service) monitored(ctx context.Context, path string) (int, string, error) {
	c := &caller{http: &http.Client{Timeout: requestTimeout}}
	defer c.close()
	a, err := c.do(ctx, http.MethodGet, "http://"+s.debug+path, "", "", nil)
	return a.status, string(a.body), err
}

// awaitRecords waits until no record waits in the database for the journal.
func (s *service) awaitRecords(ctx context.Context, within time.Duration) error {
	const none = "\ncertbound_audit_outbox_records 0\n"
	for begin := time.Now(); time.Since(begin) < within; {
		if _, text, err := s.monitored(ctx, "/metrics"); err != nil || strings.Contains(text, none) {
			return err
		}
		if !pause(ctx, 20*time.Millisecond) {
			return ctx.Err()
		}
	}
	return fmt.Errorf("records still wait for the journal after %v", within)
}

// awaitReadiness waits until the service says what is wanted of its readiness.
func (s *service) awaitReadiness(ctx context.Context, want int, within time.Duration) error {
	var status int
	var text string
	var err error
	for begin := time.Now(); time.Since(begin) < within; {
		if status, text, err = s.monitored(ctx, "/readyz"); err == nil && status == want {
			return nil
		}
		if !pause(ctx, 10*time.Millisecond) {
			return ctx.Err()
		}
	}
	return errors.Join(err, fmt.Errorf("readiness is %d for %v, want %d: %s", status, within, want, text))
}

// roots are what verifies the service's certificate.
func (s *service) roots() (*x509.CertPool, error) {
	data, err := os.ReadFile(s.base().data("admin", "roots.pem"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, errors.New("roots.pem holds no certificate")
	}
	return pool, nil
}

// base is what holds the profiles of the operator and of clients.
func (s *service) base() *service { return cmp.Or(s.known, s) }

func (s *service) issuer() string { return s.base().publicURL() }
func (s *service) publicURL() string {
	return "https://localhost" + s.public[strings.LastIndexByte(s.public, ':'):]
}
func (s *service) mtlsURL() string {
	return "https://localhost" + s.mtls[strings.LastIndexByte(s.mtls, ':'):]
}
func (s *service) tokenURL() string { return s.mtlsURL() + "/oauth2/token" }
func (s *service) adminURL() string { return s.mtlsURL() + "/admin/v1" }

// caller makes requests with the certificate of a profile in the service's folder.
func (s *service) caller(profile string) (*caller, error) {
	dir := filepath.Join(s.base().dir, profile)
	pair, err := mtls.LoadKeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		return nil, err
	}
	roots, err := s.roots()
	if err != nil {
		return nil, err
	}
	return newCaller(pair, roots), nil
}

// populate starts a new service and fills it.
func (s *service) populate(ctx context.Context, clients int) error {
	if err := s.start(ctx); err != nil {
		return err
	}
	return s.fill(ctx, clients)
}

// fill registers a resource and so many clients that may have tokens for it: load-0, load-1, …
func (s *service) fill(ctx context.Context, clients int) error {
	const operator = " --profile data/admin"
	for _, line := range []string{
		"client add server --usage both --dns localhost --allow-reserved" + operator,
		"resource add " + resource + " --scope " + scope + " --server server" + operator,
	} {
		if _, err := s.must(ctx, line, ""); err != nil {
			return err
		}
	}
	for i := range clients {
		id := fmt.Sprintf("load-%d", i)
		code, err := s.must(ctx, "client add "+id+" --scope "+scope+operator, "")
		if err != nil {
			return err
		}
		if _, err := s.must(ctx, "enroll - --profile "+id, code); err != nil {
			return err
		}
	}
	return nil
}

// inventory is what the service says that it holds.
type inventory struct {
	clients map[string]bool // id -> whether it is disabled
	certs   []inventoryCertificate
}

type inventoryCertificate struct {
	Serial     string `json:"serial"`
	Thumbprint string `json:"x5t#S256"`
	Client     string `json:"client_id"`
	Status     string `json:"status"`
}

func (s *service) inventory(ctx context.Context) (*inventory, error) {
	inv := &inventory{clients: make(map[string]bool)}
	var clients []struct {
		ID       string `json:"client_id"`
		Disabled bool   `json:"disabled"`
	}
	for _, list := range []struct {
		verb string
		into any
	}{{"client list", &clients}, {"cert list", &inv.certs}} {
		out, err := s.must(ctx, list.verb+" --profile data/admin -o json", "")
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal([]byte(out), list.into); err != nil {
			return nil, fmt.Errorf("certbound %s: %w", list.verb, err)
		}
	}
	for _, c := range clients {
		inv.clients[c.ID] = c.Disabled
	}
	return inv, nil
}

// pause waits, and says false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}
