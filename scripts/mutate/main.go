// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Command mutate asks of the tests whether they would notice: it deletes and inverts the checks of packages, one at a
// time, and runs the package's own tests on each mutant. A mutant that they pass is a survivor: a check that nothing
// tests. It is for the packages on which security depends.
//
//	go run ./scripts/mutate                            # every mutant of the security packages; takes a while
//	go run ./scripts/mutate -packages ./mtls -match ChainTo
//	go run ./scripts/mutate -sample 40 -seed 7         # what continuous integration does, with another seed each time
//
// Mutants are compiled through an overlay, so that the tree is not touched and runs do not get into each other's way, and
// nearly all of a package at once, each to be switched on when its tests run. Only the tests that run into a mutant are
// asked, in their short form (go test -short).
// It prints each survivor with its place and difference, and exits 1 when there is one, or when an entry of the list
// of equivalent mutants (equivalent.txt beside this file) names a mutant that does not exist or that the tests notice.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// securityPackages decide who is who and who gets what.
var securityPackages = strings.Join([]string{
	"./mtls", "./tokens", "./tokens/internal/jose", "./tokens/resource", "./tokens/issuer",
}, ",")

type options struct {
	dir      string // of the module
	packages []string
	match    *regexp.Regexp
	run      *regexp.Regexp
	sample   int
	seed     uint64
	jobs     int
	list     bool
	patience time.Duration // for a test, beyond a multiple of what it takes without a mutant
	allow    string        // file of equivalent mutants
}

func main() {
	o := options{dir: "."}
	packages := flag.String("packages", securityPackages, "comma separated `patterns` of packages, as for go list")
	match := flag.String("match", "", "only mutants whose line in -list matches this `regexp`")
	tests := flag.String("run", "", "only ask the tests whose name matches this `regexp`")
	flag.IntVar(&o.sample, "sample", 0, "only `n` mutants, chosen by -seed; 0 means all")
	flag.Uint64Var(&o.seed, "seed", 1, "what the sample is chosen by")
	flag.IntVar(&o.jobs, "jobs", runtime.GOMAXPROCS(0), "mutants tested at a time")
	flag.DurationVar(&o.patience, "patience", 15*time.Second, "how long a test may take beyond five times what it should")
	flag.BoolVar(&o.list, "list", false, "list the mutants and test none")
	flag.StringVar(&o.allow, "equivalent", "scripts/mutate/equivalent.txt", "`file` of the mutants that change nothing")
	flag.Parse()

	var err error
	o.packages = strings.Split(*packages, ",")
	o.match, err = regexp.Compile(*match)
	if err == nil {
		o.run, err = regexp.Compile(*tests)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, o); err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(1)
	}
}

// errSurvivors ends a run after its report.
var errSurvivors = errors.New("the tests do not notice every mutant, or the list of equivalent ones is not true")

func run(ctx context.Context, out io.Writer, o options) error {
	packages, err := load(ctx, o.dir, o.packages)
	if err != nil {
		return err
	}
	var all []*mutant
	for _, p := range packages {
		all = append(all, p.mutants()...)
	}
	number(all)
	allowed, err := readEquivalent(o.allow)
	if err != nil {
		return err
	}
	stale := allowed.apply(all, packages)
	chosen := choose(all, o)
	if o.list {
		for _, m := range chosen {
			fmt.Fprintln(out, m)
		}
		return nil
	}
	r := &report{out: out, begun: time.Now()}
	for _, entry := range stale {
		r.complain("%s:%d: there is no such mutant: %s", o.allow, entry.line, entry.text)
	}
	j, err := newJudge(ctx, o, packages, all, chosen)
	if err != nil {
		return err
	}
	defer j.close()
	if err := j.all(ctx, chosen, r.verdict); err != nil {
		return err
	}
	return r.end()
}

// choose applies -match and -sample. The order stays that of the source.
func choose(all []*mutant, o options) []*mutant {
	chosen := slices.DeleteFunc(slices.Clone(all), func(m *mutant) bool { return !o.match.MatchString(m.String()) })
	if o.sample <= 0 || o.sample >= len(chosen) {
		return chosen
	}
	picked := rand.New(rand.NewPCG(o.seed, 0)).Perm(len(chosen))[:o.sample]
	slices.Sort(picked)
	sample := make([]*mutant, 0, len(picked))
	for _, i := range picked {
		sample = append(sample, chosen[i])
	}
	return sample
}

// A report prints what is worth a look at once, and the sums at the end.
type report struct {
	out    io.Writer
	begun  time.Time
	counts [verdicts]int
	failed bool
}

func (r *report) complain(format string, args ...any) {
	r.failed = true
	fmt.Fprintf(r.out, format+"\n", args...)
}

func (r *report) verdict(m *mutant, v verdict) {
	r.counts[v]++
	switch {
	case v == survived && m.reason == "":
		r.complain("survived %s\n%s", m, m.diff())
	case (v == killed || v == timedOut) && m.reason != "":
		r.complain("listed as equivalent, but the tests notice it: %s", m)
	}
}

func (r *report) end() error {
	total := 0
	for _, n := range r.counts {
		total += n
	}
	fmt.Fprintf(r.out, "%d mutants in %v: %d noticed, %d ran out of time or memory, %d did not compile, %d survived\n", total,
		time.Since(r.begun).Round(time.Second), r.counts[killed], r.counts[timedOut], r.counts[stillborn], r.counts[survived])
	if r.failed {
		return errSurvivors
	}
	return nil
}
