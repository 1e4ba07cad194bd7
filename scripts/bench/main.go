// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Command bench measures what a token costs: the CPU time of the server process (user and system) over the requests
// that it answered with a token, on kept-alive connections, with a full handshake for each token and with a resumed
// one. Beside it, in the same run and in alternating rounds, it measures a bare reference: net/http and one ES256
// signature, with the same certificates, and no database, registry or record (reference.go). The ratio of the two is
// what the service adds; beside it stands the ratio that we promise. The service runs twice, with each value of
// audit.sync. Introspection stands beside a token request without its signature (introspect.go). It goes on to measure start, memory, and that tokens do not grow the database.
//
// The server under load has one CPU to itself where taskset is at hand and the machine has two, and the load comes
// from another. CPU time is read from /proc, so it runs on Linux only.
//
// "bench overload" measures instead what known clients get while others flood the service (overload.go), "bench scale"
// what the service costs with a million clients beside a hundred (scale.go), "bench denied" how soon a revoked token is
// refused where the deny feed is followed (denied.go).
//
//	go run ./scripts/bench -certbound ./certbound [-short]
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

type options struct {
	certbound string
	rounds    int           // of each server in each mode
	round     time.Duration // how long one lasts
	starts    int
	tokens    int    // that must leave the database as large as it was
	only      string // modes that have this in their names
	strict    bool   // fail when a ratio is above its target
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if len(os.Args) == 3 && os.Args[1] == "reference" {
		err = serveReference(ctx, os.Args[2])
	} else if len(os.Args) == 5 && os.Args[1] == "flood" {
		err = runFlood(ctx, os.Args[2], os.Args[3], os.Args[4])
	} else if len(os.Args) > 1 && os.Args[1] == "overload" {
		err = overload(ctx, os.Args[2:])
	} else if len(os.Args) > 1 && os.Args[1] == "scale" {
		err = scale(ctx, os.Args[2:])
	} else if len(os.Args) > 1 && os.Args[1] == "denied" {
		err = denied(ctx, os.Args[2:])
	} else {
		err = run(ctx, parseFlags())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parseFlags() options {
	o := options{}
	short := flag.Bool("short", false, "about 40 seconds, coarse figures")
	flag.StringVar(&o.certbound, "certbound", "./certbound", "the `program` to measure")
	flag.IntVar(&o.rounds, "rounds", 9, "rounds of each server in each mode")
	flag.DurationVar(&o.round, "round", 2*time.Second, "how long a round lasts")
	flag.IntVar(&o.starts, "starts", 7, "starts on the existing data folder")
	flag.IntVar(&o.tokens, "tokens", 100_000, "tokens that must not grow the database")
	flag.StringVar(&o.only, "only", "", "measure only the modes whose names contain this `text`")
	flag.BoolVar(&o.strict, "strict", false, "fail when a token costs more, beside the reference's, than is promised")
	flag.Parse()
	if *short {
		o.rounds, o.round, o.starts, o.tokens = 3, 500*time.Millisecond, 3, 2_000
	}
	return o
}

func run(ctx context.Context, o options) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "certbound-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	o.certbound, err = filepath.Abs(o.certbound)
	if err != nil {
		return err
	}
	b := &bench{options: o, dir: dir, pins: newPins()}
	defer b.kill()
	return b.run(ctx)
}
