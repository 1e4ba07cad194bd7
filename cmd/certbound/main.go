// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Certbound is a mutual-TLS certificate-bound token service (RFC 8705): certificate authority, token service, client and
// operators' tools in one program. This package only dispatches to one file per verb; what a verb does lies in
// cmd/internal and in the public packages.
//
// The rules of its user interface: what was asked for goes to standard output and nothing else does, so that every verb
// can stand in a pipe; explanations go to standard error. An error is one line that says what was wrong and one that says
// what to do about it, never a page of usage. With -o json both streams carry JSON (but the log of serve). The exit code is 0 when it was done,
// 1 when it was refused or failed or its output could not be written, 2 when the command line was wrong and nothing was sent.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// version is set by the linker: -X main.version=v1.2.3.
var version = "devel"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	// A reader that is gone is an error like a full disk: whoever asked for a code has to learn that it is lost, and a
	// service outlives whoever read its log.
	signal.Ignore(syscall.SIGPIPE)
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.LookupEnv))
}
