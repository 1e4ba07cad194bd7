// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/certbound/certbound/scripts/process"
)

// A shell runs programs in one folder, the way the text on the screen says that they are run.
type shell struct {
	dir      string
	programs map[string]string // name on the screen -> file
	running  []*process.Process
}

func (s *shell) command(line string) process.Command {
	words := strings.Fields(line)
	return process.Command{
		Argv: append([]string{s.programs[words[0]]}, words[1:]...), Dir: s.dir, Log: filepath.Join(s.dir, words[0]+".log"),
		Env: slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "CERTBOUND_") }),
	}
}

// run runs a line of words without quoting, to its end. An exit status other than zero is no error: the caller judges it.
func (s *shell) run(ctx context.Context, line, stdin string) (process.Result, error) {
	return process.Run(ctx, s.command(line), stdin)
}

// start starts a line that goes on running, and waits until that is ready.
func (s *shell) start(ctx context.Context, line string) (*process.Process, error) {
	p, err := process.Start(ctx, s.command(line))
	if err != nil {
		return nil, err
	}
	s.running = append(s.running, p)
	return p, nil
}

// kill ends what still runs.
func (s *shell) kill() {
	for _, p := range s.running {
		p.Kill()
	}
}
