// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A verdict is what became of a mutant.
type verdict int

const (
	killed    verdict = iota // a test failed
	timedOut                 // the tests did not end, or asked for too much memory
	stillborn                // it did not compile
	survived
	verdicts // how many there are
)

// maxMemoryKiB bounds the address space of a test: a mutant without its bound may ask for all there is.
const maxMemoryKiB = 8 << 20

// A judge compiles mutants and runs the tests of their packages.
type judge struct {
	options
	work  string // a temporary folder
	suite map[*goPackage]*suite
}

// A suite is the compiled tests of a package with all its mutants, none of them switched on.
type suite struct {
	file  string
	tests []namedTest // the quickest first
}

type namedTest struct {
	name    string
	took    time.Duration
	reaches map[int]bool // ids of mutants that it runs into
}

// newJudge compiles each package that has a mutant with all of them, and runs each of its tests once with none switched
// on: they must pass, and tell which mutants they can notice.
func newJudge(ctx context.Context, o options, packages []*goPackage, all, chosen []*mutant) (*judge, error) {
	work, err := os.MkdirTemp("", "mutate-")
	if err != nil {
		return nil, err
	}
	j := &judge{options: o, work: work, suite: map[*goPackage]*suite{}}
	for _, p := range packages {
		if !slices.ContainsFunc(chosen, func(m *mutant) bool { return m.pkg == p }) {
			continue
		}
		own := slices.DeleteFunc(slices.Clone(all), func(m *mutant) bool { return m.pkg != p })
		if j.suite[p], err = j.measure(ctx, p, own); err != nil {
			j.close()
			return nil, fmt.Errorf("%s without a mutant: %w", p.path, err)
		}
	}
	return j, nil
}

func (j *judge) close() { os.RemoveAll(j.work) }

func (j *judge) measure(ctx context.Context, p *goPackage, mutants []*mutant) (*suite, error) {
	work, err := os.MkdirTemp(j.work, "")
	if err != nil {
		return nil, err
	}
	s := &suite{}
	var output []byte
	if s.file, output, err = j.compile(ctx, p, work, switchedFiles(p, mutants)); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, output)
	}
	cmd := exec.CommandContext(ctx, s.file, "-test.list", "^(Test|Fuzz|Example)")
	cmd.Dir = p.dir
	if output, err = cmd.Output(); err != nil {
		return nil, err
	}
	for name := range strings.FieldsSeq(string(output)) {
		if j.run.MatchString(name) {
			s.tests = append(s.tests, namedTest{name: name, reaches: map[int]bool{}})
		}
	}
	err = j.each(ctx, len(s.tests), func(ctx context.Context, i int) error { return j.reach(ctx, p, s.file, &s.tests[i]) })
	slices.SortStableFunc(s.tests, func(a, b namedTest) int { return cmp.Compare(a.took, b.took) })
	return s, err
}

// reach runs a test by itself and notes what it runs into.
func (j *judge) reach(ctx context.Context, p *goPackage, file string, t *namedTest) error {
	work, err := os.MkdirTemp(j.work, "")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	reached := filepath.Join(work, "reached")
	begun := time.Now()
	output, err := j.test(ctx, p, file, work, []namedTest{{name: t.name, took: time.Minute}}, "MUTATE_REACHED="+reached)
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", t.name, err, output)
	}
	t.took = time.Since(begun)
	ids, err := os.ReadFile(reached)
	if err != nil {
		return err
	}
	for id := range strings.FieldsSeq(string(ids)) {
		n, err := strconv.Atoi(id)
		if err != nil {
			return err
		}
		t.reaches[n] = true
	}
	return nil
}

// each does something for 0 to n-1, several at a time, up to the first error.
func (j *judge) each(ctx context.Context, n int, do func(context.Context, int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan int)
	var workers sync.WaitGroup
	for range max(j.jobs, 1) {
		workers.Go(func() {
			for i := range next {
				if err := do(ctx, i); err != nil {
					cancel(err)
				}
			}
		})
	}
	for i := 0; i < n && ctx.Err() == nil; i++ {
		select {
		case next <- i:
		case <-ctx.Done():
		}
	}
	close(next)
	workers.Wait()
	return context.Cause(ctx)
}

// all judges the mutants and tells each verdict, in their order.
func (j *judge) all(ctx context.Context, mutants []*mutant, tell func(*mutant, verdict)) error {
	var mu sync.Mutex
	found := map[int]verdict{}
	told := 0
	return j.each(ctx, len(mutants), func(ctx context.Context, i int) error {
		v, err := j.one(ctx, mutants[i])
		if err != nil {
			return fmt.Errorf("%s: %w", mutants[i], err)
		}
		mu.Lock()
		defer mu.Unlock()
		found[i] = v
		for ; told < len(mutants); told++ {
			v, ok := found[told]
			if !ok {
				break
			}
			tell(mutants[told], v)
		}
		return nil
	})
}

// firstTests is how many of the quickest tests a mutant meets before it meets the others.
const firstTests = 8

func (j *judge) one(ctx context.Context, m *mutant) (verdict, error) {
	work, err := os.MkdirTemp(j.work, "")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(work)
	s := j.suite[m.pkg]
	file, tests := s.file, slices.Clone(s.tests)
	if m.id == 0 {
		if file, _, err = j.compile(ctx, m.pkg, work, map[string][]byte{m.file.path: m.source()}); err != nil {
			return stillborn, ctx.Err()
		}
	} else {
		tests = slices.DeleteFunc(tests, func(t namedTest) bool { return !t.reaches[m.id] })
	}
	first := min(firstTests, len(tests))
	for _, some := range [][]namedTest{tests[:first], tests[first:]} {
		if len(some) == 0 {
			continue
		}
		_, err := j.test(ctx, m.pkg, file, work, some, "MUTATE_ON="+strconv.Itoa(m.id))
		switch {
		case ctx.Err() != nil:
			return 0, ctx.Err()
		case errors.Is(err, errUnbounded):
			return timedOut, nil
		case err != nil:
			return killed, nil
		}
	}
	return survived, nil
}

// compile makes the tests of a package, with files laid over those of their paths, and returns their file's name.
func (j *judge) compile(ctx context.Context, p *goPackage, work string, files map[string][]byte) (string, []byte, error) {
	replace := map[string]string{}
	for path, text := range files {
		replace[path] = filepath.Join(work, filepath.Base(path))
		if err := os.WriteFile(replace[path], text, 0o600); err != nil {
			return "", nil, err
		}
	}
	text, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", nil, err
	}
	overlay, tests := filepath.Join(work, "overlay.json"), filepath.Join(work, "tests")
	if err := os.WriteFile(overlay, text, 0o600); err != nil {
		return "", nil, err
	}
	cmd := exec.CommandContext(ctx, "go", "test", "-c", "-vet=off", "-o", tests, "-overlay", overlay, p.path)
	cmd.Dir = j.dir
	output, err := cmd.CombinedOutput()
	return tests, output, err
}

// errUnbounded reports tests that did not end by themselves in their bounds.
var errUnbounded = errors.New("the tests ran out of time or memory")

// test runs some of the compiled tests in the package's folder, up to the first failure, in a multiple of the time that
// they took.
func (j *judge) test(ctx context.Context, p *goPackage, file, work string, tests []namedTest, environment string) ([]byte, error) {
	timeout := j.patience
	names := make([]string, 0, len(tests))
	for _, t := range tests {
		timeout += 5 * t.took
		names = append(names, t.name)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout+5*time.Second) // for those that hang in their own timeout
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", `ulimit -v "$1" && shift && exec "$@"`, "sh", strconv.Itoa(maxMemoryKiB),
		file, "-test.short", "-test.failfast", "-test.timeout", timeout.String(), "-test.run", "^("+strings.Join(names, "|")+")$")
	cmd.Dir = p.dir
	cmd.Env = append(os.Environ(), environment, "TMPDIR="+work) // leftovers go with the folder
	cmd.WaitDelay = time.Second
	output, err := cmd.CombinedOutput()
	if err == nil {
		return output, nil
	}
	for _, sign := range []string{"panic: test timed out after", "runtime: out of memory", "cannot allocate memory"} {
		if bytes.Contains(output, []byte(sign)) {
			return output, errUnbounded
		}
	}
	if ctx.Err() != nil {
		return output, errUnbounded
	}
	return output, err
}
