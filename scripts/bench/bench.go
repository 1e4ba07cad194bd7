// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/scripts/process"
)

const (
	resourceURI = "https://bench.example"
	form        = "grant_type=client_credentials&client_id=bench&scope=bench"
)

// A bench is one run: the folder with the services' data and profiles, and what it has started.
type bench struct {
	options
	dir     string
	pins    pins
	running []*process.Process
}

// A service is the program under one value of audit.sync, with a folder, a CA and clients of its own.
type service struct {
	sync    string
	dir     string
	process *process.Process
	env     []string // more of it
	// size asks how large the database is; nil: it is the files in dir.
	size func() (int64, error)
}

func (b *bench) kill() {
	for _, p := range b.running {
		p.Kill()
	}
}

func (b *bench) run(ctx context.Context) error {
	fmt.Printf("%s %s/%s, %d CPUs; %s\n", runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), b.pins)
	services, err := b.services(ctx)
	if err != nil {
		return err
	}
	targets, err := b.targets(ctx, services)
	if err != nil {
		return err
	}
	if err := b.pins.self(); err != nil {
		return err
	}
	compared := b.compare(ctx, targets)
	// The service whose tokens are cheapest, which is the hardest to be beside.
	if err := b.introspection(ctx, services[len(services)-1], targets[len(targets)-1]); err != nil {
		compared = errors.Join(compared, err)
	}
	if err := b.grow(ctx, services[0], targets[1]); err != nil {
		return errors.Join(compared, err)
	}
	return errors.Join(compared, b.restart(ctx, services[0]))
}

// services starts the program under each value of audit.sync.
func (b *bench) services(ctx context.Context) ([]*service, error) {
	var services []*service
	for _, sync := range []string{"always", "interval"} {
		if !b.knows(ctx, sync) {
			fmt.Printf("this program does not know audit.sync: %s\n", sync)
			continue
		}
		s := &service{sync: sync, dir: filepath.Join(b.dir, sync)}
		if err := os.Mkdir(s.dir, 0o700); err != nil {
			return nil, err
		}
		if err := b.start(ctx, s, b.pins.server); err != nil {
			return nil, err
		}
		if err := b.enrol(ctx, s); err != nil {
			return nil, err
		}
		services = append(services, s)
	}
	return services, nil
}

// knows reports whether the program, which may be an older one, takes this value of audit.sync.
func (b *bench) knows(ctx context.Context, sync string) bool {
	cmd := exec.CommandContext(ctx, b.certbound, "config", "check")
	cmd.Env = append(os.Environ(), "CERTBOUND_AUDIT_SYNC="+sync)
	return cmd.Run() == nil
}

func (b *bench) start(ctx context.Context, s *service, pin []string) error {
	p, err := start(ctx, pin, s.dir, append([]string{"CERTBOUND_AUDIT_SYNC=" + s.sync}, s.env...), b.certbound, "serve", "--data", "data",
		"--public", "127.0.0.1:0", "--mtls", "127.0.0.1:0", "--debug", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.process = p
	b.running = append(b.running, p)
	return nil
}

// enrol gives certificates of the service to the client that asks and to the reference.
func (b *bench) enrol(ctx context.Context, s *service) error {
	const operator = "--profile data/admin"
	lines := []string{
		"client add reference --usage both --dns localhost --allow-reserved " + operator,
		"resource add " + resourceURI + " --scope bench --server reference " + operator,
		"client add bench --scope bench " + operator,
	}
	for _, line := range lines {
		code, err := b.certboundRun(ctx, s.dir, line, "")
		if err != nil {
			return err
		}
		if !strings.HasPrefix(line, "client add") {
			continue
		}
		if _, err := b.certboundRun(ctx, s.dir, "enroll -", code); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) certboundRun(ctx context.Context, dir, line, stdin string) (string, error) {
	r, err := process.Run(ctx, process.Command{Argv: append([]string{b.certbound}, strings.Fields(line)...), Dir: dir}, stdin)
	if err == nil && r.Exit != 0 {
		err = fmt.Errorf("certbound %s: exit status %d: %s", line, r.Exit, r.Stderr)
	}
	return r.Stdout, err
}

// targets returns the reference, which it starts with certificates of the first service, and the services.
func (b *bench) targets(ctx context.Context, services []*service) ([]*target, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p, err := start(ctx, b.pins.server, services[0].dir, nil, self, "reference", "reference")
	if err != nil {
		return nil, err
	}
	b.running = append(b.running, p)
	config, err := readClientConfig(services[0].dir)
	if err != nil {
		return nil, err
	}
	address, _ := strings.CutPrefix(p.Line, "ready address=")
	targets := []*target{newTarget("reference", address, "/token", form, config, p.Pid())}
	for _, s := range services {
		if config, err = readClientConfig(s.dir); err != nil {
			return nil, err
		}
		endpoint, err := tokenEndpoint(s.process)
		if err != nil {
			return nil, err
		}
		targets = append(targets, newTarget(s.sync, endpoint.Host, endpoint.Path, form, config, s.process.Pid()))
	}
	return targets, nil
}

// readClientConfig shows the certificate of the profile "bench" in dir.
func readClientConfig(dir string) (*tls.Config, error) { return readClientConfigOf(dir, "bench") }

// readClientConfigOf shows the certificate of a client's profile in dir.
func readClientConfigOf(dir, client string) (*tls.Config, error) {
	profile := filepath.Join(dir, client)
	keyPair, err := mtls.LoadKeyPair(filepath.Join(profile, "cert.pem"), filepath.Join(profile, "key.pem"))
	if err != nil {
		return nil, err
	}
	roots, err := readRoots(profile)
	if err != nil {
		return nil, err
	}
	return clientConfig(keyPair, roots), nil
}

// clientConfig is for HTTP/1.1 requests written by hand. Sessions are the workers' affair.
func clientConfig(keyPair *mtls.KeyPair, roots *x509.CertPool) *tls.Config {
	config := mtls.ClientConfig(keyPair, roots)
	config.ServerName = "localhost"
	config.NextProtos = []string{"http/1.1"}
	config.ClientSessionCache = nil
	return config
}

// tokenEndpoint reads it out of the line that the service prints when it is ready.
func tokenEndpoint(service *process.Process) (*url.URL, error) {
	_, base, ok := strings.Cut(service.Line, " mtls=")
	base, _, _ = strings.Cut(base, " ")
	endpoint, err := url.Parse(base)
	if !ok || err != nil {
		return nil, fmt.Errorf("the service does not say where it is: %q", service.Line)
	}
	return endpoint.ResolveReference(&url.URL{Path: "/oauth2/token"}), nil
}

// compare measures every mode in rounds that alternate between the targets, of which the first is the reference, and
// prints medians. A ratio is the median of the rounds' ratios: what disturbs the machine for a while disturbs both sides.
func (b *bench) compare(ctx context.Context, targets []*target) error {
	fmt.Printf("\nserver CPU per token, median of %d rounds of %v\n\n", b.rounds, b.round)
	fmt.Printf("%-31s %-10s %12s %6s %8s %10s %10s\n", "", "", "CPU", "ratio", "promised", "tokens/s", "p99")
	var tooMuch []error
	for _, m := range modes() {
		if !strings.Contains(m.name, b.only) {
			continue
		}
		samples := make([][]sample, len(targets))
		for range b.rounds {
			for i, t := range targets {
				s, err := load(ctx, t, m, b.round, 0)
				if err != nil {
					return err
				}
				samples[i] = append(samples[i], s)
			}
		}
		for i, t := range targets {
			s := medianSample(samples[i])
			beside := fmt.Sprintf("%6s %8s", "", "")
			if bound := m.bounds[t.name]; bound > 0 {
				ratio := medianRatio(samples[i], samples[0])
				beside = fmt.Sprintf("%6.2f %8.2f", ratio, bound)
				if ratio > bound {
					tooMuch = append(tooMuch, fmt.Errorf("%s, %s: %.2f times the reference, promised is %.2f", m.name, t.name, ratio, bound))
				}
			}
			fmt.Printf("%-31s %-10s %9.1f µs %s %10.0f %7.2f ms\n", m.name, t.name, micros(s.cpu), beside, s.rate, micros(s.p99)/1000)
		}
	}
	if !b.strict {
		return nil
	}
	return errors.Join(tooMuch...)
}

// What the database grows by without any token: each headEvery the service leaves there where its journal stands, if that
// has moved, which writes a few pages of 4 KiB into the write-ahead log.
const (
	headEvery = 3 * time.Second
	headBytes = 4 * (4<<10 + 24)
)

// grow takes tokens and requires the database to grow by no more than time brings. A row for each token would be far more.
func (b *bench) grow(ctx context.Context, of *service, t *target) error {
	before, err := of.databaseSize()
	if err != nil {
		return err
	}
	began := time.Now()
	s, err := load(ctx, t, modes()[0], 5*time.Minute, b.tokens)
	if err != nil {
		return err
	}
	after, err := of.databaseSize()
	if err != nil {
		return err
	}
	resident, err := residentKiB(t.pid)
	if err != nil {
		return err
	}
	fmt.Printf("\n%-46s %d bytes before, %d after %d more tokens\n", "database (file and write-ahead log)", before, after, s.tokens)
	fmt.Printf("%-46s %.1f MiB\n", "resident memory, after all of this", float64(resident)/1024)
	if most := int64(time.Since(began)/headEvery+2) * headBytes; after-before > most {
		return fmt.Errorf("the database grew by %d bytes with %d tokens, more than the %d that time explains", after-before, s.tokens, most)
	}
	return nil
}

func (s *service) databaseSize() (int64, error) {
	if s.size != nil {
		return s.size()
	}
	var size int64
	for _, name := range []string{"certbound.db", "certbound.db-wal"} {
		info, err := os.Stat(filepath.Join(s.dir, "data", name))
		if errors.Is(err, os.ErrNotExist) && name != "certbound.db" {
			continue
		}
		if err != nil {
			return 0, err
		}
		size += info.Size()
	}
	return size, nil
}

// restart measures how long the service takes to be ready on the data folder that it has, and its memory when idle.
func (b *bench) restart(ctx context.Context, s *service) error {
	var started []time.Duration
	for range b.starts {
		if err := s.process.Stop(); err != nil {
			return err
		}
		if err := b.start(ctx, s, nil); err != nil {
			return err
		}
		started = append(started, s.process.Took)
	}
	fmt.Printf("%-46s %d ms, median of %d\n", "start to ready, existing data folder", median(started).Milliseconds(), b.starts)
	select {
	case <-time.After(2 * time.Second): // what start-up left over has been collected or will stay
	case <-ctx.Done():
		return ctx.Err()
	}
	resident, err := residentKiB(s.process.Pid())
	if err != nil {
		return err
	}
	fmt.Printf("%-46s %.1f MiB\n", "resident memory, idle after start", float64(resident)/1024)
	return s.process.Stop()
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// medianSample returns the median of each figure by itself.
func medianSample(samples []sample) sample {
	var cpu, p99 []time.Duration
	var rate []float64
	for _, s := range samples {
		cpu, rate, p99 = append(cpu, s.cpu), append(rate, s.rate), append(p99, s.p99)
	}
	return sample{cpu: median(cpu), rate: median(rate), p99: median(p99)}
}

// medianRatio returns the median of the ratios of the CPU times of each round.
func medianRatio(ours, theirs []sample) float64 {
	ratios := make([]float64, len(ours))
	for i := range ours {
		ratios[i] = float64(ours[i].cpu) / float64(theirs[i].cpu)
	}
	return median(ratios)
}

func median[T cmp.Ordered](values []T) T {
	values = slices.Sorted(slices.Values(values))
	return values[len(values)/2]
}
