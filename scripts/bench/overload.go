// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// The load of known clients in the measurement of floods.
const (
	knownConnections = 32
	newcomerEvery    = 100 * time.Millisecond // a connection from a known and one from an unknown network
	newcomerTimeout  = 2 * time.Second
	leastKept        = 0.5 // of their throughput that known clients must keep
)

// overload measures what known clients get on kept-alive connections, and others on new ones, while a flood goes on. The
// service has one CPU, the clients and the flood the other, where the flood takes what the clients leave.
func overload(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("overload", flag.ContinueOnError)
	certbound := flags.String("certbound", "./certbound", "the `program` to measure")
	round := flags.Duration("round", 6*time.Second, "how long each flood lasts")
	share := flags.Float64("share", 0.7, "what known clients offer, as a share of what they get through when nothing else goes on")
	only := flags.String("only", "", "floods that have this in their names")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *share <= 0 || *share > 1 {
		return errors.New("-share is above 0 and at most 1")
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "certbound-overload-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	program, err := filepath.Abs(*certbound)
	if err != nil {
		return err
	}
	o := &overloaded{bench: bench{options: options{certbound: program, round: *round, only: *only}, dir: dir, pins: newPins()}, share: *share}
	defer o.kill()
	return o.run(ctx)
}

// overloaded is one run.
type overloaded struct {
	bench
	share   float64
	target  *target
	pid     int
	tries   int // newcomers so far; each comes from a network of its own
	offered float64
}

func (o *overloaded) run(ctx context.Context) error {
	if err := o.prepare(ctx); err != nil {
		return err
	}
	if err := o.pins.self(); err != nil {
		return err
	}
	fmt.Printf("%s\n", o.pins)
	capacity, err := o.measure(ctx, 0)
	if err != nil {
		return err
	}
	o.offered = capacity.rate * o.share
	fmt.Printf("known clients on %d kept-alive connections get through %.0f tokens/s; from here on they offer %.0f\n\n",
		knownConnections, capacity.rate, o.offered)
	fmt.Printf("%-44s %9s %6s %9s %5s  %-22s %-22s %s\n", "", "tokens/s", "kept", "p99", "CPU", "new, known network", "new, unknown network", "the flood")
	before, err := o.measure(ctx, o.offered)
	if err != nil {
		return err
	}
	before.print("nothing else", before.rate, "")
	var failed []error
	for _, kind := range floods() {
		if !strings.Contains(kind.name, o.only) {
			continue
		}
		during, counts, err := o.during(ctx, kind)
		if err != nil {
			return err
		}
		during.print(kind.name, before.rate, counts)
		if during.rate < before.rate*leastKept {
			failed = append(failed, fmt.Errorf("%s: known clients keep %.0f %% of their throughput, less than %.0f %%",
				kind.name, 100*during.rate/before.rate, 100*leastKept))
		}
	}
	after, err := o.measure(ctx, o.offered)
	if err != nil {
		return err
	}
	after.print("afterwards", before.rate, "")
	if resident, err := residentKiB(o.pid); err == nil {
		fmt.Printf("\nresident memory of the service, after all of this: %.1f MiB\n", float64(resident)/1024)
	}
	return errors.Join(failed...)
}

// prepare starts the service and enrols a client to be served and one to be refused. No address is exempt, and the debug
// listener is nobody's target.
func (o *overloaded) prepare(ctx context.Context) error {
	p, err := start(ctx, o.pins.server, o.dir, []string{"CERTBOUND_LIMITS_EXEMPT=192.0.2.1"}, o.certbound, "serve", "--data", "data",
		"--public", "127.0.0.1:0", "--mtls", "127.0.0.1:0", "--debug", "off")
	if err != nil {
		return err
	}
	o.running, o.pid = append(o.running, p), p.Pid()
	const operator = " --profile data/admin"
	if err := o.enrol(ctx, &service{dir: o.dir, process: p}); err != nil {
		return err
	}
	code, err := o.certboundRun(ctx, o.dir, "client add refused --scope bench"+operator, "")
	if err != nil {
		return err
	}
	for _, step := range []struct{ line, stdin string }{{"enroll -", code}, {"client disable refused" + operator, ""}} {
		if _, err := o.certboundRun(ctx, o.dir, step.line, step.stdin); err != nil {
			return err
		}
	}
	endpoint, err := tokenEndpoint(p)
	if err != nil {
		return err
	}
	config, err := readClientConfig(o.dir)
	if err != nil {
		return err
	}
	o.target = newTarget("certbound", endpoint.Host, endpoint.Path, form, config, p.Pid())
	return nil
}

// during is measure while a flood goes on, and what the flood says of itself.
func (o *overloaded) during(ctx context.Context, kind flood) (situation, string, error) {
	self, err := os.Executable()
	if err != nil {
		return situation{}, "", err
	}
	var pin []string
	if o.pins.load != nil {
		pin = []string{"taskset", "-c", o.pins.load[len(o.pins.load)-1]}
	}
	if _, err := exec.LookPath("chrt"); err == nil {
		pin = append(pin, "chrt", "--other", "0") // where this whole run was given a real-time policy
	}
	if _, err := exec.LookPath("nice"); err == nil {
		pin = append(pin, "nice", "-n", "15") // or the flood would slow the clients down by itself
	}
	report := filepath.Join(o.dir, "flood.json")
	p, err := start(ctx, pin, o.dir, nil, self, "flood", kind.name, o.target.address, report)
	if err != nil {
		return situation{}, "", err
	}
	o.running = append(o.running, p)
	begin := time.Now()
	s, err := o.measure(ctx, o.offered)
	if err != nil {
		return situation{}, "", err
	}
	elapsed := time.Since(begin)
	if err := p.Stop(); err != nil {
		return situation{}, "", err
	}
	text, err := os.ReadFile(report)
	if err != nil {
		return situation{}, "", err
	}
	var counts map[string]int
	if err := json.Unmarshal(text, &counts); err != nil {
		return situation{}, "", err
	}
	return s, describe(counts, elapsed), nil
}

// describe says how often a second each thing happened to a flood.
func describe(counts map[string]int, elapsed time.Duration) string {
	var parts []string
	for what, n := range counts {
		parts = append(parts, fmt.Sprintf("%.0f %s", float64(n)/elapsed.Seconds(), what))
	}
	slices.Sort(parts)
	return "each second " + strings.Join(parts, ", ")
}

// A situation is how callers fared.
type situation struct {
	rate           float64 // tokens a second of the known clients
	p99            time.Duration
	broken         int     // of their connections
	cpu            float64 // of the service, as part of one CPU
	known, unknown newcomers
}

// newcomers are callers with a connection for one token.
type newcomers struct {
	tries int
	waits []time.Duration // of those that got one
}

func (n newcomers) String() string {
	if len(n.waits) == 0 {
		return fmt.Sprintf("0 of %d", n.tries)
	}
	return fmt.Sprintf("%d of %d, %.0f ms", len(n.waits), n.tries, micros(quantile99(n.waits))/1000)
}

func (s situation) print(name string, before float64, flood string) {
	fmt.Printf("%-44s %9.0f %4.0f %% %6.1f ms %3.0f %%  %-22s %-22s %s\n", name, s.rate, 100*s.rate/before, micros(s.p99)/1000, 100*s.cpu,
		s.known, s.unknown, flood)
	if s.broken > 0 {
		fmt.Printf("    %d connections of known clients broke\n", s.broken)
	}
}

// quantile99 is what a hundredth waited at least.
func quantile99(waits []time.Duration) time.Duration {
	if len(waits) == 0 {
		return 0
	}
	waits = slices.Sorted(slices.Values(waits))
	return waits[len(waits)*99/100]
}

// measure has known clients ask for a round, at a rate or as fast as they are answered if it is 0, and newcomers knock.
func (o *overloaded) measure(ctx context.Context, rate float64) (situation, error) {
	clients := make([]*known, knownConnections)
	for i := range clients {
		clients[i] = &known{target: o.target}
		defer clients[i].close()
		if err := clients[i].ask(ctx); err != nil {
			return situation{}, fmt.Errorf("a known client: %w", err)
		}
	}
	cpu, err := cpuTime(o.pid)
	if err != nil {
		return situation{}, err
	}
	var s situation
	var group sync.WaitGroup
	begin := time.Now()
	until := begin.Add(o.round)
	for i, c := range clients {
		group.Go(func() { c.run(ctx, begin, until, i, rate) })
	}
	if rate > 0 {
		group.Go(func() { s.known = o.knock(ctx, until, func() string { return "127.0.0.2" }) })
		group.Go(func() {
			s.unknown = o.knock(ctx, until, func() string {
				o.tries++
				return fmt.Sprintf("127.%d.%d.1", 128+o.tries>>8&0x7f, o.tries&0xff)
			})
		})
	}
	group.Wait()
	elapsed := time.Since(begin)
	used, err := cpuTime(o.pid)
	if err != nil {
		return situation{}, fmt.Errorf("the service did not live through it: %w", err)
	}
	var waits []time.Duration
	for _, c := range clients {
		waits = append(waits, c.waits...)
		s.broken += c.broken
	}
	s.rate, s.p99 = float64(len(waits))/elapsed.Seconds(), quantile99(waits)
	s.cpu = float64(used-cpu) / float64(elapsed)
	return s, ctx.Err()
}

// known is a client on one connection, which it keeps.
type known struct {
	target *target
	from   string // local address; empty: any
	conn   *tls.Conn
	reader *bufio.Reader
	waits  []time.Duration
	broken int
}

// run asks at its part of the rate. Whoever is answered late asks late: nothing piles up.
func (k *known) run(ctx context.Context, begin, until time.Time, place int, rate float64) {
	var every time.Duration
	if rate > 0 {
		every = time.Duration(knownConnections / rate * float64(time.Second))
	}
	next := begin.Add(every * time.Duration(place) / knownConnections)
	for time.Now().Before(until) && ctx.Err() == nil {
		time.Sleep(time.Until(next))
		asked := time.Now()
		if err := k.ask(ctx); err != nil {
			k.broken++
			k.close()
			time.Sleep(10 * time.Millisecond)
			continue
		}
		k.waits = append(k.waits, time.Since(asked))
		if next = next.Add(every); next.Before(time.Now()) {
			next = time.Now()
		}
	}
}

// ask takes one token, on a new connection if there is none.
func (k *known) ask(ctx context.Context) error {
	if k.conn == nil {
		dialer := tls.Dialer{NetDialer: dialFrom(k.from, newcomerTimeout), Config: k.target.config}
		ctx, cancel := context.WithTimeout(ctx, newcomerTimeout)
		defer cancel()
		c, err := dialer.DialContext(ctx, "tcp", k.target.address)
		if err != nil {
			return err
		}
		k.conn, k.reader = c.(*tls.Conn), bufio.NewReader(c)
	}
	if err := k.conn.SetDeadline(time.Now().Add(newcomerTimeout)); err != nil {
		return err
	}
	if _, err := k.conn.Write(k.target.request); err != nil {
		return err
	}
	status, err := readAnswer(k.reader)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("answered %d", status)
	}
	return err
}

func (k *known) close() {
	if k.conn != nil {
		_ = k.conn.Close()
		k.conn = nil
	}
}

// knock has a newcomer try every so often, from an address each.
func (o *overloaded) knock(ctx context.Context, until time.Time, from func() string) (n newcomers) {
	for ctx.Err() == nil && time.Now().Before(until) {
		begin := time.Now()
		n.tries++
		newcomer := &known{target: o.target, from: from()}
		if newcomer.ask(ctx) == nil {
			n.waits = append(n.waits, time.Since(begin))
		}
		newcomer.close()
		time.Sleep(time.Until(begin.Add(newcomerEvery)))
	}
	return n
}

// dialFrom dials from a local address.
func dialFrom(address string, timeout time.Duration) *net.Dialer {
	d := &net.Dialer{Timeout: timeout, KeepAlive: -1}
	if address != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(address)}
	}
	return d
}

// readAnswer reads one answer and returns its status.
func readAnswer(r *bufio.Reader) (int, error) {
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)); err != nil {
		return 0, err
	}
	if resp.Close {
		return resp.StatusCode, errHungUp
	}
	return resp.StatusCode, nil
}

// errHungUp says that there is no further answer on the connection.
var errHungUp = errors.New("the service closes the connection")
