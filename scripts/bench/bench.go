// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
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
)

const (
	resourceURI = "https://bench.example"
	form        = "grant_type=client_credentials&client_id=bench&scope=bench"
)

// A bench is one run: the folder with the service's data and the profiles, and what it has started.
type bench struct {
	options
	dir     string
	pins    pins
	running []*process
}

func (b *bench) kill() {
	for _, p := range b.running {
		p.kill()
	}
}

func (b *bench) run(ctx context.Context) error {
	fmt.Printf("%s %s/%s, %d CPUs; %s\n", runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), b.pins)
	service, err := b.startService(ctx, b.pins.server)
	if err != nil {
		return err
	}
	if err := b.enrol(ctx); err != nil {
		return err
	}
	targets, err := b.targets(ctx, service)
	if err != nil {
		return err
	}
	if err := b.pins.self(); err != nil {
		return err
	}
	if err := b.compare(ctx, targets); err != nil {
		return err
	}
	if err := b.grow(ctx, targets[0]); err != nil {
		return err
	}
	return b.restart(ctx, service)
}

func (b *bench) startService(ctx context.Context, pin []string) (*process, error) {
	p, err := start(ctx, pin, b.dir, b.certbound, "serve", "--data", "data",
		"--public", "127.0.0.1:0", "--mtls", "127.0.0.1:0", "--debug", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	b.running = append(b.running, p)
	return p, nil
}

// enrol gives certificates of the service to the client that asks and to the reference.
func (b *bench) enrol(ctx context.Context) error {
	const operator = "--profile data/admin"
	lines := []string{
		"client add reference --usage both --dns localhost --allow-reserved " + operator,
		"resource add " + resourceURI + " --scope bench --server reference " + operator,
		"client add bench --scope bench " + operator,
	}
	for _, line := range lines {
		code, err := b.certboundRun(ctx, line, "")
		if err != nil {
			return err
		}
		if !strings.HasPrefix(line, "client add") {
			continue
		}
		if _, err := b.certboundRun(ctx, "enroll -", code); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) certboundRun(ctx context.Context, line, stdin string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, b.certbound, strings.Fields(line)...)
	var stdout, stderr bytes.Buffer
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = b.dir, strings.NewReader(stdin), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("certbound %s: %w: %s", line, err, stderr.Bytes())
	}
	return stdout.String(), nil
}

// targets returns the service and the reference, which it starts.
func (b *bench) targets(ctx context.Context, service *process) ([]*target, error) {
	config, err := b.readClientConfig()
	if err != nil {
		return nil, err
	}
	endpoint, err := tokenEndpoint(service)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p, err := start(ctx, b.pins.server, b.dir, self, "reference", "reference")
	if err != nil {
		return nil, err
	}
	b.running = append(b.running, p)
	address, _ := strings.CutPrefix(p.ready, "ready address=")
	return []*target{
		newTarget("certbound", endpoint.Host, endpoint.Path, form, config, service),
		newTarget("reference", address, "/token", form, config, p),
	}, nil
}

// readClientConfig shows the certificate of the profile "bench".
func (b *bench) readClientConfig() (*tls.Config, error) {
	profile := filepath.Join(b.dir, "bench")
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
func tokenEndpoint(service *process) (*url.URL, error) {
	_, base, ok := strings.Cut(service.ready, " mtls=")
	base, _, _ = strings.Cut(base, " ")
	endpoint, err := url.Parse(base)
	if !ok || err != nil {
		return nil, fmt.Errorf("the service does not say where it is: %q", service.ready)
	}
	return endpoint.ResolveReference(&url.URL{Path: "/oauth2/token"}), nil
}

// compare measures every mode in rounds that alternate between the targets, and prints medians.
func (b *bench) compare(ctx context.Context, targets []*target) error {
	fmt.Printf("\nserver CPU per token, median of %d rounds of %v\n\n", b.rounds, b.round)
	fmt.Printf("%-28s %12s %12s %7s %14s %14s\n", "", "certbound", "reference", "ratio", "certbound /s", "reference /s")
	var tooMuch []error
	for _, m := range modes {
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
		ours, theirs := medianSample(samples[0]), medianSample(samples[1])
		ratio := float64(ours.cpu) / float64(theirs.cpu)
		fmt.Printf("%-28s %9.1f µs %9.1f µs %7.2f %14.0f %14.0f\n", m.name, micros(ours.cpu), micros(theirs.cpu), ratio,
			ours.rate, theirs.rate)
		if b.maxRatio > 0 && !m.dial && ratio > b.maxRatio {
			tooMuch = append(tooMuch, fmt.Errorf("%s: %.2f times the reference, more than %.2f", m.name, ratio, b.maxRatio))
		}
	}
	return errors.Join(tooMuch...)
}

// grow takes tokens and requires the database to stay as large as it was.
func (b *bench) grow(ctx context.Context, t *target) error {
	before, err := b.databaseSize()
	if err != nil {
		return err
	}
	s, err := load(ctx, t, modes[0], 5*time.Minute, b.tokens)
	if err != nil {
		return err
	}
	after, err := b.databaseSize()
	if err != nil {
		return err
	}
	resident, err := residentKiB(t.process.pid())
	if err != nil {
		return err
	}
	fmt.Printf("\n%-46s %d bytes before, %d after %d more tokens\n", "database (file and write-ahead log)", before, after, s.tokens)
	fmt.Printf("%-46s %.1f MiB\n", "resident memory, after all of this", float64(resident)/1024)
	if after != before {
		return errors.New("tokens change the size of the database")
	}
	return nil
}

func (b *bench) databaseSize() (int64, error) {
	var size int64
	for _, name := range []string{"certbound.db", "certbound.db-wal"} {
		info, err := os.Stat(filepath.Join(b.dir, "data", name))
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
func (b *bench) restart(ctx context.Context, service *process) error {
	var started []time.Duration
	for range b.starts {
		if err := service.stop(); err != nil {
			return err
		}
		var err error
		service, err = b.startService(ctx, nil)
		if err != nil {
			return err
		}
		started = append(started, service.started)
	}
	fmt.Printf("%-46s %d ms, median of %d\n", "start to ready, existing data folder", median(started).Milliseconds(), b.starts)
	select {
	case <-time.After(2 * time.Second): // what start-up left over has been collected or will stay
	case <-ctx.Done():
		return ctx.Err()
	}
	resident, err := residentKiB(service.pid())
	if err != nil {
		return err
	}
	fmt.Printf("%-46s %.1f MiB\n", "resident memory, idle after start", float64(resident)/1024)
	return service.stop()
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// medianSample returns the median of each figure by itself.
func medianSample(samples []sample) sample {
	var cpu []time.Duration
	var rate []float64
	for _, s := range samples {
		cpu, rate = append(cpu, s.cpu), append(rate, s.rate)
	}
	return sample{cpu: median(cpu), rate: median(rate)}
}

func median[T cmp.Ordered](values []T) T {
	values = slices.Sorted(slices.Values(values))
	return values[len(values)/2]
}
