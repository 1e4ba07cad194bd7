// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Command demo tells the story of Certbound on the terminal, against real processes in a temporary folder: a service
// enrols, gets a token, calls a resource server, and a thief of the token gets nowhere. Each step prints what was
// done, what came of it, and whether that is what should have come. It exits 0 only if every step did what it should,
// within two minutes, and it stops every process that it started.
//
//	go run ./scripts/demo -certbound ./certbound
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	binary := flag.String("certbound", "./certbound", "the `program` to show")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := run(ctx, *binary); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, binary string) (err error) {
	binary, err = filepath.Abs(binary)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "certbound-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	ledger := filepath.Join(dir, "ledger-server")
	build := exec.CommandContext(ctx, "go", "build", "-o", ledger, "./scripts/examples/ledger")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("building the resource server: %w", err)
	}

	shell := &shell{dir: dir, programs: map[string]string{"certbound": binary, "ledger-server": ledger}}
	defer shell.kill()
	return tell(ctx, newScreen(os.Stdout), &story{shell: shell, dir: dir})
}
