// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/certbound/certbound/scripts/postgres"
)

// What is promised of an installation with a million clients, a million certificates and 50,000 live revocations.
const (
	mostResident  = 300 << 10 // KiB
	mostStart     = time.Second
	mostCacheCost = 1.1 // CPU per token beside that with fewClients, of clients that are remembered
	mostDrawnCost = 1.1 // and of clients drawn from all, with a full handshake for each
	fewClients    = 100
)

type scaleOptions struct {
	builder          string // of cmd/internal/scale
	clients, revoked int
	warm             int // how many clients come before it is measured what they cost when they come again
	renewals         int
	postgres         bool
	keep             string // folder that the installations are left in, or found
}

// scale measures what a large installation costs beside a small one: two services, one with fewClients clients, the other
// with a million, each asked for tokens in turn. Full handshakes are measured apart for clients that this process has never
// seen and for those that came before.
func scale(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("scale", flag.ContinueOnError)
	o, l := options{}, scaleOptions{}
	flags.StringVar(&o.certbound, "certbound", "./certbound", "the `program` to measure")
	flags.StringVar(&l.builder, "builder", "bin/scale", "the `program` of cmd/internal/scale")
	flags.IntVar(&l.clients, "clients", 1_000_000, "how many clients the large installation has")
	flags.IntVar(&l.revoked, "revoked", 50_000, "how many of their certificates are revoked")
	flags.IntVar(&l.warm, "warm", 150_000, "how many clients come before it is measured what they cost when they come again")
	flags.IntVar(&l.renewals, "renewals", 2_000, "how many certificates are renewed")
	flags.IntVar(&o.rounds, "rounds", 9, "rounds of each installation in each mode")
	flags.DurationVar(&o.round, "round", 2*time.Second, "how long a round lasts")
	flags.IntVar(&o.starts, "starts", 7, "starts on the existing data folder")
	flags.BoolVar(&l.postgres, "postgres", false, "keep the state in a throwaway PostgreSQL, and go on with two replicas")
	flags.StringVar(&l.keep, "keep", "", "a `folder` to leave the installations in, or to find them, for as long as their certificates live (7 days)")
	flags.StringVar(&o.only, "only", "", "measure only the tokens whose mode has this `text` in its name")
	flags.BoolVar(&o.strict, "strict", false, "fail when something is above what is promised")
	short := flags.Bool("short", false, "few clients and rounds; nothing is judged")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *short {
		l.clients, l.revoked, l.warm, l.renewals = 20_000, 1_000, 2_000, 100
		o.rounds, o.round, o.starts, o.strict = 3, 500*time.Millisecond, 3, false
	}
	if l.postgres && l.keep != "" {
		return errors.New("a throwaway PostgreSQL cannot be kept: -postgres or -keep")
	}
	ctx, cancel := context.WithTimeout(ctx, time.Hour)
	defer cancel()
	var err error
	for _, program := range []*string{&o.certbound, &l.builder} {
		if *program, err = filepath.Abs(*program); err != nil {
			return err
		}
	}
	dir := l.keep
	if dir == "" {
		if dir, err = os.MkdirTemp("", "certbound-scale-"); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
	} else if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	s := &scaled{scaleOptions: l, bench: bench{options: o, dir: dir, pins: newPins()}}
	defer s.kill()
	if l.postgres {
		if s.cluster, err = postgres.New(ctx, postgres.Config{Fsync: true}); err != nil {
			return err
		}
		defer s.cluster.Close()
	}
	return s.run(ctx)
}

// scaled is one run.
type scaled struct {
	scaleOptions
	bench
	cluster      *postgres.Cluster // nil: SQLite
	small, large *installation
	broken       []error // promises
}

// An installation is a service and those who ask it.
type installation struct {
	service
	population *population
}

func (s *scaled) run(ctx context.Context) error {
	fmt.Printf("%s %s/%s, %d CPUs; %s\n\n", runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), s.pins)
	var err error
	if s.small, err = s.install(ctx, "small", fewClients, fewClients/20); err != nil {
		return err
	}
	defer s.small.population.file.Close()
	if s.large, err = s.install(ctx, "large", s.clients, s.revoked); err != nil {
		return err
	}
	defer s.large.population.file.Close()
	steps := []func(context.Context) error{s.restarts, s.tokens, s.renew, s.answers, s.replicas, s.afterwards}
	if s.only != "" {
		steps = steps[1:2]
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	if s.strict {
		return errors.Join(s.broken...)
	}
	return nil
}

// promise notes whether something is kept, and says it in a word.
func (s *scaled) promise(kept bool, what string) string {
	if kept {
		return "kept"
	}
	s.broken = append(s.broken, errors.New(what))
	return "BROKEN"
}

// install makes an installation with so many clients, unless it is there from an earlier run, and starts it.
func (s *scaled) install(ctx context.Context, name string, clients, revoked int) (*installation, error) {
	i := &installation{service: service{sync: "always", dir: filepath.Join(s.dir, fmt.Sprintf("%s-%d-%d", name, clients, revoked))}}
	file := filepath.Join(i.dir, "clients.bin")
	if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) {
		if err := s.build(ctx, i, file, clients, revoked); err != nil {
			return nil, err
		}
	}
	if err := s.start(ctx, &i.service, s.pins.server); err != nil {
		return nil, err
	}
	var err error
	i.population, err = openPopulation(file, filepath.Join(i.dir, "data", "ca", "issuing.pem"), filepath.Join(i.dir, "data", "admin"))
	return i, err
}

func (s *scaled) build(ctx context.Context, i *installation, file string, clients, revoked int) error {
	if err := os.MkdirAll(i.dir, 0o700); err != nil {
		return err
	}
	if err := s.share(ctx, i); err != nil {
		return err
	}
	if err := s.start(ctx, &i.service, nil); err != nil {
		return err
	}
	const operator = " --server operator --profile data/admin"
	if _, err := s.certboundRun(ctx, i.dir, "resource add "+resourceURI+" --scope bench"+operator, ""); err != nil {
		return err
	}
	if err := i.process.Stop(); err != nil {
		return err
	}
	before, err := i.databaseSize()
	if err != nil {
		return err
	}
	begin := time.Now()
	cmd := exec.CommandContext(ctx, s.builder, "-data", "data", "-scope", "bench",
		"-clients", strconv.Itoa(clients), "-revoked", strconv.Itoa(revoked), "-out", file+".new")
	cmd.Dir, cmd.Env = i.dir, append(os.Environ(), i.env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", s.builder, err, out)
	}
	after, err := i.databaseSize()
	if err != nil {
		return err
	}
	fmt.Printf("%-58s %10d, %d revoked; made in %.0f s\n", filepath.Base(i.dir)+": clients with a certificate each", clients, revoked, time.Since(begin).Seconds())
	fmt.Printf("%-58s %10d (%d MiB in all)\n", "    database bytes per client", (after-before)/int64(clients), after>>20)
	return os.Rename(file+".new", file)
}

// share gives an installation a database of its own in PostgreSQL, if that is where the state is kept.
func (s *scaled) share(ctx context.Context, i *installation) error {
	if s.cluster == nil {
		return nil
	}
	name := strings.ReplaceAll(filepath.Base(i.dir), "-", "_")
	if err := s.cluster.CreateDatabase(ctx, name, ""); err != nil {
		return err
	}
	i.env = []string{"CERTBOUND_DATABASE=" + s.cluster.URL(name)}
	i.size = func() (int64, error) {
		answer, err := s.cluster.Query(ctx, name, "SELECT pg_database_size(current_database())")
		if err != nil {
			return 0, err
		}
		return strconv.ParseInt(answer, 10, 64)
	}
	return nil
}

// replicas starts a second replica of the large installation, and has both asked at once, by clients that came before. A
// machine of two CPUs cannot show that two serve twice as many, but that a token costs no more.
func (s *scaled) replicas(ctx context.Context) error {
	if s.cluster == nil {
		return nil
	}
	second := &installation{service: service{sync: s.large.sync, dir: s.large.dir + "-2", env: s.large.env}, population: s.large.population}
	data := filepath.Join(second.dir, "data")
	if err := os.MkdirAll(data, 0o700); err != nil {
		return err
	}
	kek, err := os.ReadFile(filepath.Join(s.large.dir, "data", "kek"))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(data, "kek"), kek, 0o600); err != nil {
		return err
	}
	if err := s.start(ctx, &second.service, s.pins.server); err != nil {
		return err
	}
	fmt.Println()
	m := modes()[2]
	for _, together := range [][]*installation{{s.large}, {second}, {s.large, second}} {
		samples, errs := make([]sample, len(together)), make([]error, len(together))
		var group sync.WaitGroup
		for n, i := range together {
			t, err := s.targetOf(i, s.large.population.known(s.large.population.drawn))
			if err != nil {
				return err
			}
			if _, err := load(ctx, t, m, time.Minute, 2*fewClients); err != nil {
				return err
			}
			group.Go(func() { samples[n], errs[n] = load(ctx, t, m, 2*s.round, 0) })
		}
		group.Wait()
		if err := errors.Join(errs...); err != nil {
			return err
		}
		for n, i := range together {
			fmt.Printf("%-58s %10.1f µs a token, %.0f a second\n", filepath.Base(i.dir)+fmt.Sprintf(": full handshake, %d of 2 replicas asked", len(together)),
				micros(samples[n].cpu), samples[n].rate)
		}
	}
	return nil
}

// restarts measures how long the large service takes to be ready, and its memory then, and leaves both running.
func (s *scaled) restarts(ctx context.Context) error {
	for _, i := range []*installation{s.small, s.large} {
		var took []time.Duration
		for range s.starts {
			if err := i.process.Stop(); err != nil {
				return err
			}
			if err := s.start(ctx, &i.service, s.pins.server); err != nil {
				return err
			}
			took = append(took, i.process.Took)
		}
		verdict := ""
		if i == s.large {
			verdict = s.promise(median(took) <= mostStart, fmt.Sprintf("start to ready takes %v, at most %v is promised", median(took), mostStart))
		}
		fmt.Printf("%-58s %10d ms  %s\n", filepath.Base(i.dir)+": start to ready, one CPU", median(took).Milliseconds(), verdict)
	}
	select {
	case <-time.After(3 * time.Second): // for what the start sets going
	case <-ctx.Done():
		return ctx.Err()
	}
	return s.resident("resident memory, idle after start")
}

func (s *scaled) resident(when string) error {
	for _, i := range []*installation{s.small, s.large} {
		kib, err := residentKiB(i.process.Pid())
		if err != nil {
			return err
		}
		verdict := ""
		if i == s.large {
			verdict = s.promise(kib <= mostResident, fmt.Sprintf("%s: %d MiB, at most %d is promised", when, kib>>10, mostResident>>10))
		}
		fmt.Printf("%-58s %10.1f MiB %s\n", filepath.Base(i.dir)+": "+when, float64(kib)/1024, verdict)
	}
	return nil
}

func (s *scaled) targetOf(i *installation, d draw) (*target, error) {
	endpoint, err := tokenEndpoint(i.process)
	if err != nil {
		return nil, err
	}
	return &target{
		name: filepath.Base(i.dir), address: endpoint.Host, pid: i.process.Pid(), callers: i.population.callers(endpoint, d),
	}, nil
}

// tokens compares the two installations in every mode.
func (s *scaled) tokens(ctx context.Context) error {
	if err := s.pins.self(); err != nil {
		return err
	}
	fmt.Printf("\nserver CPU per token, median of %d rounds of %v\n\n", s.rounds, s.round)
	fmt.Printf("%-58s %10s %10s %7s %s\n", "", "small", "large", "ratio", "promised")
	full, kept := modes()[2], modes()[0]
	type comparison struct {
		what  string
		mode  mode
		of    draw
		bound float64
		warm  bool
	}
	working := s.large.population.known(fewClients - fewClients/20)
	for range fewClients { // they come once
		if _, err := s.large.population.fresh(); err != nil {
			return err
		}
	}
	for _, c := range []comparison{
		{"kept alive, 64 connections", kept, working, mostCacheCost, false},
		{"full handshake, clients that come all the time", full, working, mostCacheCost, false},
		{"full handshake, clients that never came before", full, s.large.population.fresh, 0, false},
		{"full handshake, drawn from all that ever came", full, s.large.population.known(0), mostDrawnCost, true},
	} {
		if !strings.Contains(c.what, s.only) {
			continue
		}
		if c.warm {
			if err := s.warmUp(ctx, full); err != nil {
				return err
			}
		}
		if err := s.against(ctx, c.what, c.mode, c.of, c.bound); err != nil {
			return err
		}
	}
	return s.resident("resident memory, after all of these")
}

// warmUp has so many clients come that those who came before are many more than are asked about in one round.
func (s *scaled) warmUp(ctx context.Context, m mode) error {
	missing := min(s.warm, len(s.large.population.order)) - s.large.population.drawn
	if missing <= m.connections {
		return nil
	}
	t, err := s.targetOf(s.large, s.large.population.fresh)
	if err != nil {
		return err
	}
	_, err = load(ctx, t, m, time.Hour, missing-2*m.connections)
	return err
}

func (s *scaled) against(ctx context.Context, what string, m mode, of draw, bound float64) error {
	small, err := s.targetOf(s.small, s.small.population.known(len(s.small.population.order)))
	if err != nil {
		return err
	}
	large, err := s.targetOf(s.large, of)
	if err != nil {
		return err
	}
	if _, err := load(ctx, small, m, time.Minute, 2*fewClients); err != nil {
		return err
	}
	if bound > 0 {
		if _, err := load(ctx, large, m, time.Minute, 2*fewClients); err != nil {
			return err
		}
	}
	var samples [2][]sample
	for range s.rounds {
		for i, t := range []*target{small, large} {
			sample, err := load(ctx, t, m, s.round, 0)
			if err != nil {
				return err
			}
			samples[i] = append(samples[i], sample)
		}
	}
	ratio, verdict := medianRatio(samples[1], samples[0]), ""
	if bound > 0 {
		verdict = fmt.Sprintf("%.2f %s", bound, s.promise(ratio <= bound, fmt.Sprintf("%s: %.2f times the small one, at most %.2f is promised", what, ratio, bound)))
	}
	fmt.Printf("%-58s %7.1f µs %7.1f µs %7.2f %s\n", what, micros(medianSample(samples[0]).cpu), micros(medianSample(samples[1]).cpu), ratio, verdict)
	return nil
}

// renew measures what it costs to renew a certificate.
func (s *scaled) renew(ctx context.Context) error {
	before, err := s.large.databaseSize()
	if err != nil {
		return err
	}
	t, err := s.targetOf(s.large, nil)
	if err != nil {
		return err
	}
	endpoint, err := tokenEndpoint(s.large.process)
	if err != nil {
		return err
	}
	t.callers, t.answer = s.large.population.renewals(endpoint, s.large.population.fresh), renewalAnswer
	m := modes()[2]
	m.name, m.connections = "renewal", 8
	result, err := load(ctx, t, m, 5*time.Minute, s.renewals)
	if err != nil {
		return err
	}
	after, err := s.large.databaseSize()
	if err != nil {
		return err
	}
	fmt.Printf("\n%-58s %10.0f µs CPU, %.0f a second, p99 %v\n", "large: renewal of a certificate, with its handshake", micros(result.cpu), result.rate, result.p99.Round(time.Millisecond))
	if s.cluster != nil { // the log of SQLite grows and shrinks by more than that
		fmt.Printf("%-58s %10d\n", "    database bytes per renewal", (after-before)/int64(result.tokens))
	}
	return nil
}

// answers measures what grows with the number of clients and is asked for now and then.
func (s *scaled) answers(ctx context.Context) error {
	_, rest, _ := strings.Cut(s.large.process.Line, "issuer=")
	issuer, _, _ := strings.Cut(rest, " ")
	public, err := url.Parse(issuer)
	if err != nil {
		return err
	}
	hc := &http.Client{Transport: &http.Transport{TLSClientConfig: s.large.population.base.Clone()}, Timeout: time.Minute}
	defer hc.CloseIdleConnections()
	fmt.Println()
	for range 2 { // the second one was made for the first
		cpu, err := cpuTime(s.large.process.Pid())
		if err != nil {
			return err
		}
		begin := time.Now()
		size, err := fetch(ctx, hc, public.ResolveReference(&url.URL{Path: "/crl"}).String())
		if err != nil {
			return err
		}
		took := time.Since(begin)
		after, err := cpuTime(s.large.process.Pid())
		if err != nil {
			return err
		}
		fmt.Printf("%-58s %10d ms, %v of CPU, %d KiB\n", "large: revocation list", took.Milliseconds(), after-cpu, size>>10)
	}
	for _, line := range []string{"status", "client show svc-00000007", "client show svc-00000007"} {
		begin := time.Now()
		if _, err := s.certboundRun(ctx, s.large.dir, line+" --profile data/admin", ""); err != nil {
			return err
		}
		fmt.Printf("%-58s %10d ms\n", "large: certbound "+line, time.Since(begin).Milliseconds())
	}
	return nil
}

func fetch(ctx context.Context, hc *http.Client, address string) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return 0, err
	}
	resp, err := hc.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", address, resp.Status)
	}
	return n, err
}

func (s *scaled) afterwards(context.Context) error {
	return s.resident("resident memory, after everything")
}
