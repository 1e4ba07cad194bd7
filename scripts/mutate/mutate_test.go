// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const judged = `package judged

import (
	"errors"
	"strings"
)

var ErrLong = errors.New("long")

func Check(s string, most int) error {
	if s == "" || strings.HasPrefix(s, "-") {
		return errors.New("name")
	}
	if len(s) > most {
		return ErrLong
	}
	for i := 0; i < len(s); i++ {
		if s[i] == ' ' {
			return errors.New("space")
		}
	}
	return kind(s)
}

func kind(s string) error {
	switch s {
	case "root", "admin":
		return errors.New("reserved")
	}
	return nil
}

type list []string

func (l *list) add(s string) (bool, error) {
	if err := Check(s, 8); err != nil {
		*l = nil
		return false, err
	}
	*l = append(*l, s)
	return len(*l) > 0, nil
}
`

// module writes a module of one package and returns its folder.
func module(t *testing.T, tests string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod":                "module example.com/m\n\ngo 1.26\n",
		"judged/judged.go":      judged,
		"judged/judged_test.go": "package judged\n\nimport \"testing\"\n\n" + tests,
		"equivalent.txt":        "# none\n",
	} {
		file := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func optionsFor(dir string) options {
	return options{
		dir: dir, packages: []string{"./..."}, match: regexp.MustCompile(""), run: regexp.MustCompile(""), seed: 1, jobs: 2,
		allow: filepath.Join(dir, "equivalent.txt"), patience: 15 * time.Second,
	}
}

// runOn runs the tool and returns its lines without the sums, which are in the last.
func runOn(t *testing.T, o options) (lines []string, sums string, err error) {
	t.Helper()
	var out strings.Builder
	err = run(t.Context(), &out, o)
	lines = strings.Split(strings.TrimSpace(out.String()), "\n")
	return lines[:len(lines)-1], lines[len(lines)-1], err
}

// The mutants of the example, which has one of each kind.
func TestMutants(t *testing.T) {
	t.Parallel()
	o := optionsFor(module(t, "func TestNothing(t *testing.T) {}\n"))
	o.list = true
	lines, last, err := runOn(t, o)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`judged/judged.go:11 Check: s == "" || strings.HasPrefix(s, "-") => false`,
		`judged/judged.go:11 Check: s == "" || strings.HasPrefix(s, "-") => true`,
		`judged/judged.go:11 Check: s == "" => false`,
		`judged/judged.go:11 Check: strings.HasPrefix(s, "-") => false`,
		`judged/judged.go:14 Check: len(s) > most => false`,
		`judged/judged.go:14 Check: len(s) > most => true`,
		`judged/judged.go:14 Check: len(s) > most => len(s) >= most`,
		`judged/judged.go:18 Check: s[i] == ' ' => false`,
		`judged/judged.go:18 Check: s[i] == ' ' => true`,
		`judged/judged.go:22 Check: kind(s) => nil`,
		`judged/judged.go:27 kind: case "root" => removed`,
		`judged/judged.go:27 kind: case "admin" => removed`,
		`judged/judged.go:36 (*list).add: err != nil => false`,
		`judged/judged.go:36 (*list).add: err != nil => inverted`,
		`judged/judged.go:38 (*list).add: return false, err => skipped`,
		`judged/judged.go:38 (*list).add: return false => true`,
		`judged/judged.go:38 (*list).add: err => nil`,
		`judged/judged.go:41 (*list).add: len(*l) > 0 => false`,
		`judged/judged.go:41 (*list).add: len(*l) > 0 => true`,
		`judged/judged.go:41 (*list).add: len(*l) > 0 => len(*l) >= 0`,
	}
	if diff := cmp.Diff(want, append(lines, last)); diff != "" {
		t.Error(diff)
	}
}

// Tests that notice everything but four mutants: what they miss is shown with its difference, and the run fails. Once the
// list of equivalent mutants has them it passes.
func TestSurvivors(t *testing.T) {
	t.Parallel()
	dir := module(t, `func TestCheck(t *testing.T) {
	for s, ok := range map[string]bool{
		"a": true, "eight888": true, "nine99999": false, "": false, "a b": false, "root": false,
	} {
		if err := Check(s, 8); (err == nil) != ok {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestAdd(t *testing.T) {
	var l list
	if ok, err := l.add(""); ok || err == nil {
		t.Error(ok, err)
	}
	if ok, err := l.add("a"); !ok || err != nil || len(l) != 1 {
		t.Error(ok, err, l)
	}
}
`)
	lines, sums, err := runOn(t, optionsFor(dir))
	if err == nil {
		t.Error("the run passes")
	}
	if !strings.HasPrefix(sums, "20 mutants in ") || !strings.HasSuffix(sums, ": 16 noticed, 0 ran out of time or memory, 0 did not compile, 4 survived") {
		t.Error(sums)
	}
	diff := strings.Join(lines[:5], "\n")
	want := `survived judged/judged.go:11 Check: strings.HasPrefix(s, "-") => false
--- judged/judged.go
+++ judged/judged.go
@@ -11,1 +11,1 @@
-	if s == "" || strings.HasPrefix(s, "-") {`
	if diff := cmp.Diff(want, diff); diff != "" {
		t.Error(diff)
	}

	list := `# comment
judged/judged.go Check: strings.HasPrefix(s, "-") => false
	One reason,
	of two lines.
judged/judged.go kind: case "admin" => removed
	Another.

judged/judged.go (*list).add: len(*l) > 0 => true
	It has just been appended to.
judged/judged.go (*list).add: len(*l) > 0 => len(*l) >= 0
	The same.
`
	allow := filepath.Join(dir, "equivalent.txt")
	if err := os.WriteFile(allow, []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	if lines, _, err := runOn(t, optionsFor(dir)); err != nil || len(lines) > 0 {
		t.Error(err, lines)
	}

	// An entry for a mutant that does not exist, and one that the tests notice.
	list += `judged/judged.go Check: s == "x" => false
	It was there once.
judged/judged.go Check: s == "" => false
	Not so.
`
	if err := os.WriteFile(allow, []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	o := optionsFor(dir)
	o.match, o.run = regexp.MustCompile(`Check: s == `), regexp.MustCompile("Check")
	lines, _, err = runOn(t, o)
	if diff := cmp.Diff([]string{
		allow + `:12: there is no such mutant: judged/judged.go Check: s == "x" => false`,
		`listed as equivalent, but the tests notice it: judged/judged.go:11 Check: s == "" => false`,
	}, lines); diff != "" || err == nil {
		t.Error(err, diff)
	}
}

// Tests that fail by themselves say nothing about mutants.
func TestFailsWithoutMutant(t *testing.T) {
	t.Parallel()
	o := optionsFor(module(t, "func TestNothing(t *testing.T) { t.Error(\"always\") }\n"))
	if err := run(t.Context(), new(strings.Builder), o); err == nil || !strings.Contains(err.Error(), "without a mutant") {
		t.Error(err)
	}
}

// A mutant that never ends is ended.
func TestEndless(t *testing.T) {
	t.Parallel()
	o := optionsFor(module(t, `func TestEndless(t *testing.T) {
	for Check("-", 1) == nil {
	}
}
`))
	o.match, o.patience = regexp.MustCompile("Check: strings.HasPrefix.*false$"), time.Second
	_, sums, err := runOn(t, o)
	if err != nil || !strings.Contains(sums, ": 0 noticed, 1 ran out of time") {
		t.Error(sums, err)
	}
}

// A sample is the same for the same seed, another for another, and in the order of the source.
func TestSample(t *testing.T) {
	t.Parallel()
	o := optionsFor(module(t, "func TestNothing(t *testing.T) {}\n"))
	o.list = true
	whole, last, err := runOn(t, o)
	if err != nil {
		t.Fatal(err)
	}
	whole = append(whole, last)
	seen := map[string]bool{}
	for o.seed = range 8 {
		o.sample = 5
		var texts [2]string
		for i := range texts {
			lines, last, err := runOn(t, o)
			if err != nil || len(lines) != 4 {
				t.Fatal(lines, err)
			}
			texts[i] = strings.Join(append(lines, last), "\n")
		}
		if texts[0] != texts[1] {
			t.Errorf("seed %d: %s", o.seed, cmp.Diff(texts[0], texts[1]))
		}
		rest := whole
		for line := range strings.SplitSeq(texts[0], "\n") {
			for len(rest) > 0 && rest[0] != line {
				rest = rest[1:]
			}
			if len(rest) == 0 {
				t.Errorf("seed %d: not in the order of the source: %s", o.seed, line)
				break
			}
		}
		seen[texts[0]] = true
	}
	if len(seen) < 4 {
		t.Errorf("8 seeds choose %d samples", len(seen))
	}
}

// A list that gives no reason, or a reason for nothing, is refused.
func TestReadEquivalentRefuses(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"no reason":  "a.go F: x => false\nb.go F: x => false\n\treason\n",
		"no mutant":  "\treason\n",
		"end of all": "a.go F: x => false\n",
	} {
		file := filepath.Join(t.TempDir(), "list")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if list, err := readEquivalent(file); err == nil {
			t.Errorf("%s: %v", name, list)
		}
	}
}
