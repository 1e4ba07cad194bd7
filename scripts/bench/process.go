// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/certbound/certbound/scripts/process"
)

// pins says how processes are kept to a CPU each, so that the load does not disturb what is measured.
type pins struct {
	server, load []string // put before a command line; empty: not pinned
}

func newPins() pins {
	cpus := allowedCPUs()
	if _, err := exec.LookPath("taskset"); err != nil || len(cpus) < 2 {
		return pins{}
	}
	return pins{server: []string{"taskset", "-c", cpus[0]}, load: []string{"taskset", "-a", "-p", "-c", cpus[1]}}
}

// allowedCPUs returns the first CPU of each range that this process may run on and, of a range, the second.
func allowedCPUs() []string {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return nil
	}
	_, list, _ := strings.Cut(string(data), "Cpus_allowed_list:")
	list, _, _ = strings.Cut(list, "\n")
	var cpus []string
	for item := range strings.SplitSeq(strings.TrimSpace(list), ",") {
		first, _, isRange := strings.Cut(item, "-")
		n, err := strconv.Atoi(first)
		if err != nil {
			return nil
		}
		cpus = append(cpus, first)
		if isRange {
			cpus = append(cpus, strconv.Itoa(n+1))
		}
	}
	return cpus
}

// self moves this process, the source of the load, to its own CPU.
func (p pins) self() error {
	if p.load == nil {
		return nil
	}
	out, err := exec.Command(p.load[0], append(p.load[1:], strconv.Itoa(os.Getpid()))...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(p.load, " "), err, out)
	}
	runtime.GOMAXPROCS(1)
	return nil
}

func (p pins) String() string {
	if p.server == nil {
		return "the server and the load share the CPUs (no taskset, or one CPU only)"
	}
	return fmt.Sprintf("the server has CPU %s to itself, the load comes from CPU %s", p.server[2], p.load[4])
}

// start starts a server in the folder dir, kept to a CPU by pin, with env added to its environment.
func start(ctx context.Context, pin []string, dir string, env []string, argv ...string) (*process.Process, error) {
	return process.Start(ctx, process.Command{
		Argv: append(pin[:len(pin):len(pin)], argv...), Dir: dir, Env: append(os.Environ(), env...),
		Log: filepath.Join(dir, filepath.Base(argv[0])+".log"),
	})
}

// clockTick is the unit of CPU times in /proc, which Linux fixes for programs at 1/100 s.
const clockTick = 10 * time.Millisecond

// cpuTime returns the user and system time that a process has used.
func cpuTime(pid int) (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The second field is the program's name in brackets, and may hold anything. The third is the first one behind it.
	_, rest, ok := bytes.Cut(data, []byte(") "))
	fields := strings.Fields(string(rest))
	if !ok || len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat is not as proc(5) says", pid)
	}
	user, err := strconv.ParseInt(fields[11], 10, 64)
	if err != nil {
		return 0, err
	}
	system, err := strconv.ParseInt(fields[12], 10, 64)
	if err != nil {
		return 0, err
	}
	return time.Duration(user+system) * clockTick, nil
}

// residentKiB returns the resident memory of a process.
func residentKiB(pid int) (int, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			return strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")))
		}
	}
	return 0, errors.New("/proc names no resident memory")
}
