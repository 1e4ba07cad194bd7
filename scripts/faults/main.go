// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Command faults does to the real program what machines do to programs, and holds it to what it promises:
//
//   - it is killed with SIGKILL again and again, under load, while it starts and stops, while it rotates its journal,
//     while an operator's verb is under way;
//   - its disk fills, first by refusals alone and then really, and has space again; its journal becomes read-only;
//   - its data folder is copied while it runs;
//   - its journal is damaged before it starts;
//   - three replicas on PostgreSQL, and PostgreSQL, are killed, cut off from each other, paused, restarted, and a standby is
//     promoted while the old primary still answers; two replicas are restarted one after the other.
//
// Then every token, certificate and change that somebody was told of is on record, once; nothing that was revoked got
// anything after the answer; the journal verifies; and the service serves again with nobody's help. What a caller was
// told is kept in a book (book.go) and held against the journal and the inventory in the end (judge.go).
//
// Everything happens on 127.0.0.1 and in a temporary folder. On failure that folder stays, and is named. The disk that
// fills is a tmpfs in a user and mount namespace of its own, so no privilege is needed where such are permitted.
//
//	go run ./scripts/faults -certbound ./certbound [-short]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/certbound/certbound/scripts/postgres"
)

type options struct {
	certbound string
	kills     int // with audit.sync: always
	lossy     int // with audit.sync: interval
	copies    int
	doses     doses
	rounds    int // of a rolling restart
	only      string
	seed      uint64
}

// A step is one kind of fault. It works in a folder of its own.
type step struct {
	name string
	do   func(ctx context.Context, dir string) error
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if len(os.Args) == 4 && os.Args[1] == insideNamespace {
		err = fillInside(ctx, os.Args[2], os.Args[3])
	} else {
		err = run(ctx, parseFlags())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "faults:", err)
		os.Exit(1)
	}
}

func parseFlags() options {
	o := options{}
	short := flag.Bool("short", false, "a quick look, under a minute")
	flag.StringVar(&o.certbound, "certbound", "./certbound", "the `program` to try")
	flag.IntVar(&o.kills, "kills", 200, "how often to kill it with audit.sync: always")
	flag.IntVar(&o.lossy, "interval-kills", 20, "how often to kill it with audit.sync: interval")
	flag.IntVar(&o.copies, "copies", 10, "how often to copy the data folder")
	flag.IntVar(&o.doses.kills, "replica-kills", 200, "how often to kill one of three replicas or their database")
	failovers := flag.Int("failovers", 6, "how often to promote the standby of their database")
	several := flag.Bool("replicas", false, "only the steps with several replicas on PostgreSQL")
	flag.StringVar(&o.only, "only", "", "only the steps whose names contain this `text`")
	flag.Uint64Var(&o.seed, "seed", rand.Uint64(), "of the choice of moments to kill it at")
	flag.Parse()
	o.doses.cuts, o.doses.alone, o.doses.pauses, o.doses.restarts, o.doses.failover = 30, 6, 20, 10, *failovers
	o.doses.gone, o.doses.quiet = true, 10*time.Second
	o.rounds = 2
	if *short {
		o.kills, o.lossy, o.copies = 8, 3, 2
		o.doses = doses{kills: 5, cuts: 1, pauses: 1, restarts: 1, failover: 1, quiet: time.Second}
		o.rounds = 1
	}
	if *several {
		o.only = "replicas"
	}
	return o
}

func run(ctx context.Context, o options) error {
	ctx, cancel := context.WithTimeout(ctx, time.Hour)
	defer cancel()
	dir, err := os.MkdirTemp("", "certbound-faults-")
	if err != nil {
		return err
	}
	if o.certbound, err = filepath.Abs(o.certbound); err != nil {
		return err
	}
	fmt.Printf("seed %d\n", o.seed)
	chance := rand.New(rand.NewPCG(o.seed, 0))
	steps := []step{
		{"kill, audit.sync: always", func(ctx context.Context, dir string) error {
			return kills(ctx, dir, o.certbound, "always", o.kills, chance)
		}},
		{"kill, audit.sync: interval", func(ctx context.Context, dir string) error {
			return kills(ctx, dir, o.certbound, "interval", o.lossy, chance)
		}},
		{"copy while it runs", func(ctx context.Context, dir string) error { return copies(ctx, dir, o.certbound, o.copies) }},
		{"damaged journal", func(ctx context.Context, dir string) error { return damages(ctx, dir, o.certbound) }},
		{"full disk", func(ctx context.Context, dir string) error { return fill(ctx, dir, o.certbound) }},
		{"replicas: kills, cuts, pauses, a standby promoted", func(ctx context.Context, dir string) error {
			return replicas(ctx, dir, o.certbound, o.doses, chance)
		}},
		{"replicas: rolling restart", func(ctx context.Context, dir string) error { return rolling(ctx, dir, o.certbound, o.rounds) }},
	}
	var failed []string
	begin := time.Now()
	for i, s := range steps {
		if !strings.Contains(s.name, o.only) {
			continue
		}
		fmt.Printf("\n%s\n", s.name)
		here := filepath.Join(dir, fmt.Sprintf("%d", i+1))
		if err := os.Mkdir(here, 0o700); err != nil {
			return err
		}
		err := s.do(ctx, here)
		if errors.Is(err, postgres.ErrNotFound) && os.Getenv("CI") == "" {
			fmt.Printf("  skipped  %v\n", err)
			continue
		}
		if err != nil {
			fmt.Printf("  FAILED  %v\n", err)
			failed = append(failed, s.name)
		}
		if ctx.Err() != nil {
			return errors.Join(context.Cause(ctx), fmt.Errorf("what there is lies in %s", dir))
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("failed: %s; the evidence lies in %s", strings.Join(failed, "; "), dir)
	}
	fmt.Printf("\nEverything held, in %.0f s.\n", time.Since(begin).Seconds())
	return os.RemoveAll(dir)
}

// say prints one line of a step.
func say(format string, args ...any) { fmt.Printf("  "+format+"\n", args...) }
