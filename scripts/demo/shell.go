// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A shell runs programs in one folder, the way the text on the screen says that they are run.
type shell struct {
	dir      string
	programs map[string]string // name on the screen -> file
	running  []*process
}

// A result is what a finished program left behind.
type result struct {
	stdout, stderr string
	exit           int
}

// A process is a program that goes on running.
type process struct {
	name   string
	log    string // file with its standard error
	cmd    *exec.Cmd
	exited chan struct{} // closed once cmd.Wait has returned
}

func (s *shell) command(ctx context.Context, line string) *exec.Cmd {
	words := strings.Fields(line)
	cmd := exec.CommandContext(ctx, s.programs[words[0]], words[1:]...)
	cmd.Dir = s.dir
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "CERTBOUND_") })
	return cmd
}

// run runs a line of words without quoting, to its end. An exit status other than zero is no error: the caller judges it.
func (s *shell) run(ctx context.Context, line, stdin string) (result, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cmd := s.command(ctx, line)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() {
		err = nil
	}
	if err != nil {
		return result{}, fmt.Errorf("%s: %w", line, err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}, nil
}

// start starts a line that goes on running and returns its first line of standard output, which says that it is ready.
func (s *shell) start(ctx context.Context, line string) (*process, string, error) {
	name, _, _ := strings.Cut(line, " ")
	p := &process{name: name, log: filepath.Join(s.dir, name+".log"), exited: make(chan struct{})}
	p.cmd = s.command(context.WithoutCancel(ctx), line)
	log, err := os.Create(p.log)
	if err != nil {
		return nil, "", err
	}
	defer log.Close()
	read, write, err := os.Pipe()
	if err != nil {
		return nil, "", err
	}
	p.cmd.Stdout, p.cmd.Stderr = write, log
	err = p.cmd.Start()
	write.Close()
	if err != nil {
		read.Close()
		return nil, "", err
	}
	s.running = append(s.running, p)
	go func() {
		_ = p.cmd.Wait() // what it exited with is in ProcessState
		close(p.exited)
	}()

	first := make(chan string, 1)
	go func() {
		defer read.Close()
		r := bufio.NewReader(read)
		text, _ := r.ReadString('\n')
		first <- strings.TrimSpace(text)
		_, _ = io.Copy(io.Discard, r)
	}()
	select {
	case text := <-first:
		if !strings.HasPrefix(text, "ready ") {
			return nil, "", fmt.Errorf("%s did not get ready: %q\n%s", name, text, p.lastWords())
		}
		return p, text, nil
	case <-time.After(30 * time.Second):
		return nil, "", fmt.Errorf("%s was not ready within 30 s\n%s", name, p.lastWords())
	case <-ctx.Done():
		return nil, "", ctx.Err()
	}
}

// stop asks a process to end and reports whether it did so within ten seconds and without complaint.
func (p *process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	select {
	case <-p.exited:
	case <-time.After(10 * time.Second):
		return fmt.Errorf("%s did not stop within 10 s of SIGTERM", p.name)
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("%s: exit status %d\n%s", p.name, code, p.lastWords())
	}
	return nil
}

// kill ends what still runs.
func (s *shell) kill() {
	for _, p := range s.running {
		_ = p.cmd.Process.Kill() // fails only when it has ended
		<-p.exited
	}
}

// lastWords returns the end of what the process wrote to its log.
func (p *process) lastWords() string {
	data, _ := os.ReadFile(p.log)
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}
