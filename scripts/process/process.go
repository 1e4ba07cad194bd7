// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Package process runs programs for those beside it: commands to their end, and servers until they are ended. A server
// says in its first line of standard output, which begins with "ready ", that it serves and where.
package process

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
	"strings"
	"syscall"
	"time"
)

// patience is how long a server may take to get ready.
const patience = 30 * time.Second

// stopTime is how long a server may take to end when it is asked to.
const stopTime = 10 * time.Second

// runTime is how long a command may take.
const runTime = 20 * time.Second

// A Command is what to run.
type Command struct {
	Argv []string // the program and its arguments
	Dir  string   // where it runs
	Env  []string // its environment; nil stands for our own
	Log  string   // file that a server's standard error is appended to
}

// A Result is what a command left behind.
type Result struct {
	Stdout, Stderr string
	Exit           int
}

// Run runs a command to its end. An exit status other than zero is no error: the caller judges it.
func Run(ctx context.Context, c Command, stdin string) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, runTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.Argv[0], c.Argv[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Dir, cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Dir, c.Env, strings.NewReader(stdin), &stdout, &stderr
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() {
		err = nil
	}
	if err != nil {
		return Result{}, fmt.Errorf("%s: %w", strings.Join(c.Argv, " "), err)
	}
	return Result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}, nil
}

// A Process is a server that was launched. Its methods are for one goroutine, but for Kill and Exited.
type Process struct {
	// Line is what the server said when it got ready, and Took how long that took. Both are set by Ready.
	Line string
	Took time.Duration

	name   string
	log    string
	begin  time.Time
	cmd    *exec.Cmd
	first  chan string
	exited chan struct{}
}

// Start launches a server and waits until it is ready. Otherwise it is killed, and the error ends with its last words.
func Start(ctx context.Context, c Command) (*Process, error) {
	p, err := Launch(c)
	if err != nil {
		return nil, err
	}
	if err := p.Ready(ctx); err != nil {
		p.Kill()
		return nil, err
	}
	return p, nil
}

// Launch starts a server and does not wait for it.
func Launch(c Command) (*Process, error) {
	log, err := os.OpenFile(c.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p := &Process{
		name: filepath.Base(c.Argv[0]), log: c.Log, begin: time.Now(), cmd: exec.Command(c.Argv[0], c.Argv[1:]...),
		first: make(chan string, 1), exited: make(chan struct{}),
	}
	p.cmd.Dir, p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = c.Dir, c.Env, write, log
	err = p.cmd.Start()
	write.Close()
	if err != nil {
		read.Close()
		return nil, err
	}
	go func() {
		_ = p.cmd.Wait() // its status is in ProcessState
		close(p.exited)
	}()
	go func() {
		defer read.Close()
		r := bufio.NewReader(read)
		text, _ := r.ReadString('\n')
		p.first <- strings.TrimSpace(text)
		_, _ = io.Copy(io.Discard, r)
	}()
	return p, nil
}

// Ready waits until the server is ready, once, for half a minute at most. It does not end a server that is not.
func (p *Process) Ready(ctx context.Context) error {
	select {
	case line := <-p.first:
		p.Line, p.Took = line, time.Since(p.begin)
	case <-time.After(patience):
		return fmt.Errorf("%s was not ready within %v\n%s", p.name, patience, p.LastWords())
	case <-ctx.Done():
		return ctx.Err()
	}
	if !strings.HasPrefix(p.Line, "ready ") {
		return fmt.Errorf("%s did not get ready: %q\n%s", p.name, p.Line, p.LastWords())
	}
	return nil
}

// Name is the program's file without its folder.
func (p *Process) Name() string { return p.name }

// Pid is the number of the process.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Exited is closed when the process has ended.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Status waits for the end of the process and returns its exit status, -1 when a signal ended it.
func (p *Process) Status() int {
	<-p.exited
	return p.cmd.ProcessState.ExitCode()
}

// Stop asks the server to end and reports whether it did so within ten seconds and without complaint.
func (p *Process) Stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	select {
	case <-p.exited:
	case <-time.After(stopTime):
		return fmt.Errorf("%s did not stop within %v of SIGTERM", p.name, stopTime)
	}
	if code := p.Status(); code != 0 {
		return fmt.Errorf("%s: exit status %d\n%s", p.name, code, p.LastWords())
	}
	return nil
}

// Kill ends the process with SIGKILL, if it has not ended, and waits for that.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // fails only when it has ended
	<-p.exited
}

// LastWords returns the end of what the server wrote to its log.
func (p *Process) LastWords() string {
	data, err := os.ReadFile(p.log)
	if errors.Is(err, os.ErrNotExist) {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}
