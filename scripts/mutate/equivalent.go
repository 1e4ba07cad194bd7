// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
)

// equivalents are the mutants that change nothing that a test could see, each with the reason why that is so.
type equivalents []equivalent

type equivalent struct {
	line   int
	text   string // file function: what, as in the list of mutants but for the line
	reason string
}

// readEquivalent reads the list: an entry is two lines, the mutant as -list shows it without the number of its line,
// and under it, indented, the reason. Empty lines and lines that begin with # are skipped.
func readEquivalent(name string) (equivalents, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var list equivalents
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimRight(lines.Text(), " \t")
		reason := strings.TrimLeft(line, " \t")
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case reason == line:
			list = append(list, equivalent{line: n, text: line})
		case len(list) == 0:
			return nil, fmt.Errorf("%s:%d: a reason without a mutant", name, n)
		default:
			last := &list[len(list)-1]
			last.reason = strings.TrimSpace(last.reason + " " + reason)
		}
	}
	if i := slices.IndexFunc(list, func(e equivalent) bool { return e.reason == "" }); i >= 0 {
		return nil, fmt.Errorf("%s:%d: an entry without a reason under it", name, list[i].line)
	}
	return list, lines.Err()
}

// apply notes the reasons with the mutants and returns the entries of these packages that no mutant answers to.
func (list equivalents) apply(all []*mutant, packages []*goPackage) []equivalent {
	byText := map[string]*mutant{}
	for _, m := range all {
		place, rest, _ := strings.Cut(m.String(), " ")
		file, _, _ := strings.Cut(place, ":")
		byText[file+" "+rest] = m
	}
	folders := map[string]bool{}
	for _, p := range packages {
		for _, f := range p.files {
			folders[path.Dir(f.name)] = true
		}
	}
	var stale []equivalent
	for _, e := range list {
		file, _, _ := strings.Cut(e.text, " ")
		m, ok := byText[e.text]
		switch {
		case ok && m.reason == "":
			m.reason = e.reason
		case folders[path.Dir(file)]:
			stale = append(stale, e) // also the second of two entries for one mutant
		}
	}
	return stale
}
