// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	// readmeTimeout is for one command of the README; the slowest compiles the program.
	readmeTimeout = 5 * time.Minute
	repository    = "../.."
)

// readmePorts are the ports that the README names. The test uses free ones in their place, so that it disturbs nothing
// that runs on this machine.
var readmePorts = []string{"8443", "9443", "9090", "7443"}

// What the README shows as Go is code that compiles.
func TestReadmeGo(t *testing.T) {
	t.Parallel()
	source, err := os.ReadFile("readme_example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	blocks := readmeBlocks(t, "go")
	if len(blocks) != 2 {
		t.Errorf("the README has %d blocks of Go, want 2", len(blocks))
	}
	for _, block := range blocks {
		indented := "\t" + strings.ReplaceAll(block, "\n", "\n\t")
		if !strings.Contains(string(source), strings.TrimRight(strings.ReplaceAll(indented, "\t\n", "\n"), "\t")) {
			t.Errorf("this Go of the README is not in readme_example_test.go:\n%s", block)
		}
	}
}

// What the README shows as a terminal session does what it shows. The commands of all console blocks run in one shell,
// in order, in a copy of the sources; in the output, "…" stands for any text, and for any lines where it stands alone.
func TestReadmeConsole(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("compiles the program again")
	}
	for _, tool := range []string{"bash", "make", "curl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("the README's commands need %s", tool)
		}
	}
	dir := copySources(t)
	env, ports := readmeEnvironment(t)
	shell := startShell(t, dir, env)
	for _, block := range readmeBlocks(t, "console") {
		for _, step := range readmeSteps(t, ports.Replace(block)) {
			shell.run(step)
		}
	}
}

func readmeBlocks(t *testing.T, language string) []string {
	t.Helper()
	readme, err := os.ReadFile(filepath.Join(repository, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	var blocks []string
	for _, m := range regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```$").FindAllSubmatch(readme, -1) {
		blocks = append(blocks, string(m[1]))
	}
	return blocks
}

// A readmeStep is a command of a console block and the output shown below it.
type readmeStep struct {
	command string
	output  []string
}

func readmeSteps(t *testing.T, block string) []readmeStep {
	t.Helper()
	var steps []readmeStep
	continued := false
	for line := range strings.Lines(block) {
		line = strings.TrimSuffix(line, "\n")
		command, isCommand := strings.CutPrefix(line, "$ ")
		switch {
		case isCommand:
			steps = append(steps, readmeStep{command: command})
		case len(steps) == 0:
			t.Fatalf("a console block begins with output: %s", line)
		case continued:
			steps[len(steps)-1].command += "\n" + line
		default:
			steps[len(steps)-1].output = append(steps[len(steps)-1].output, line)
		}
		continued = (isCommand || continued) && strings.HasSuffix(line, `\`)
	}
	return slices.DeleteFunc(steps, func(s readmeStep) bool { return s.command == "make test" })
}

// pattern matches the output that the step shows.
func (s readmeStep) pattern() *regexp.Regexp {
	var text strings.Builder
	for _, line := range s.output {
		if line == "…" {
			text.WriteString(`(?:.*\n)*?`)
			continue
		}
		text.WriteString(strings.ReplaceAll(regexp.QuoteMeta(line), "…", ".*") + `\n`)
	}
	return regexp.MustCompile(`\A` + text.String() + `\z`)
}

// copySources returns an empty folder with what a fresh clone holds.
func copySources(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"Makefile", "go.mod", "go.sum", "cmd", "mtls", "pki", "scripts", "tokens"} {
		copyTree(t, filepath.Join(dir, name), filepath.Join(repository, name))
	}
	return dir
}

func copyTree(t *testing.T, to, from string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rest, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rest)
		if entry.IsDir() {
			return os.MkdirAll(target, 0o755)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(target, data, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// readmeEnvironment returns an environment in which the service uses free ports, and what puts these into the text.
func readmeEnvironment(t *testing.T) ([]string, *strings.Replacer) {
	t.Helper()
	port := map[string]string{}
	var swap []string
	for _, shown := range readmePorts {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close() // all four are held until all are chosen
		_, port[shown], _ = net.SplitHostPort(listener.Addr().String())
		swap = append(swap, ":"+shown, ":"+port[shown])
	}
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "CERTBOUND_") })
	env = append(env,
		"CERTBOUND_ISSUER=https://localhost:"+port["8443"],
		"CERTBOUND_PUBLIC=127.0.0.1:"+port["8443"],
		"CERTBOUND_MTLS=127.0.0.1:"+port["9443"],
		"CERTBOUND_DEBUG=127.0.0.1:"+port["9090"],
	)
	return env, strings.NewReplacer(swap...)
}

// A readmeShell is a bash that is given one command after the other, as a person would.
type readmeShell struct {
	t     *testing.T
	stdin io.Writer
	lines <-chan string
}

func startShell(t *testing.T, dir string, env []string) *readmeShell {
	t.Helper()
	cmd := exec.Command("bash", "--norc", "--noprofile")
	cmd.Dir, cmd.Env = dir, env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // so that what it started in the background ends with it
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = write, write
	err = cmd.Start()
	write.Close()
	if err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 1000)
	go func() {
		defer close(lines)
		for scanner := bufio.NewScanner(read); scanner.Scan(); {
			lines <- scanner.Text()
		}
	}()
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // fails when all of them have ended
		_ = cmd.Wait()                                      // was killed
		for range lines {
		}
		read.Close()
	})
	return &readmeShell{t, stdin, lines}
}

// run types a command and compares what it prints. Of one that goes on in the background it awaits the output shown.
func (s *readmeShell) run(step readmeStep) {
	s.t.Helper()
	const done = "--- done ---"
	if _, err := fmt.Fprintf(s.stdin, "%s\necho '%s'\n", step.command, done); err != nil {
		s.t.Fatalf("%s: %v", step.command, err)
	}
	want, background := step.pattern(), strings.HasSuffix(step.command, "&")
	var output strings.Builder
	deadline := time.After(readmeTimeout)
	for ended := false; !ended || background && !want.MatchString(output.String()); {
		select {
		case line, ok := <-s.lines:
			switch {
			case !ok:
				s.t.Fatalf("$ %s\nended the shell after:\n%s", step.command, output.String())
			case line == done:
				ended = true
			default:
				output.WriteString(line + "\n")
			}
		case <-deadline:
			s.t.Fatalf("$ %s\ntook longer than %v, after:\n%s", step.command, readmeTimeout, output.String())
		}
	}
	if !want.MatchString(output.String()) {
		s.t.Fatalf("$ %s\nprints\n%s\nand the README shows\n%s", step.command, output.String(), strings.Join(step.output, "\n"))
	}
	s.t.Logf("$ %s\n%s", step.command, output.String())
}

// The README stays short, and says of every direct dependency why it is there.
func TestReadmeShape(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile(filepath.Join(repository, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(readme), "\n"); n > 300 {
		t.Errorf("the README has %d lines, want at most 300", n)
	}
	mod, err := os.ReadFile(filepath.Join(repository, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	var needed, explained []string
	for _, m := range regexp.MustCompile(`(?m)^(?:require )?\t?(\S+) v\S+$`).FindAllSubmatch(mod, -1) {
		needed = append(needed, string(m[1]))
	}
	for _, m := range regexp.MustCompile(`(?m)^\| (\S+\.\S+/\S+) \| .+ \|$`).FindAllSubmatch(readme, -1) {
		explained = append(explained, string(m[1]))
	}
	slices.Sort(needed)
	slices.Sort(explained)
	if diff := cmp.Diff(needed, explained); diff != "" {
		t.Errorf("direct dependencies of go.mod (-) and those that the README explains (+):\n%s", diff)
	}
}
