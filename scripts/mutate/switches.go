// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// switches is the file that is laid into a package of which all mutants are compiled at once: the one whose number is
// in the environment is on. Where a file is named there, the number of each mutant that is reached is written to it.
const switches = `package %s

import (
	"cmp"
	"os"
	"strconv"
	"sync/atomic"
)

var (
	mutantOn, _   = strconv.Atoi(os.Getenv("MUTATE_ON"))
	mutantFile, _ = os.OpenFile(os.Getenv("MUTATE_REACHED"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	mutantSeen    [1 << 16]atomic.Bool // an array, for tests that count allocations
)

func mutant(id int) bool {
	if mutantFile != nil && !mutantSeen[id].Load() && !mutantSeen[id].Swap(true) {
		mutantFile.WriteString(strconv.Itoa(id) + "\n")
	}
	return mutantOn == id
}

func mutantFalse[B ~bool](id int, b B) B    { return B(!mutant(id)) && b }
func mutantTrue[B ~bool](id int, b B) B     { return B(mutant(id)) || b }
func mutantInverted[B ~bool](id int, b B) B { return B(mutant(id)) != b }

func mutantLess[T cmp.Ordered](id int, a, b T) bool           { return mutant(id) && a == b || a < b }
func mutantLessOrEqual[T cmp.Ordered](id int, a, b T) bool    { return !mutant(id) && a == b || a < b }
func mutantGreater[T cmp.Ordered](id int, a, b T) bool        { return mutant(id) && a == b || a > b }
func mutantGreaterOrEqual[T cmp.Ordered](id int, a, b T) bool { return !mutant(id) && a == b || a > b }

func mutantNil[T any](id int, v T) T {
	if mutant(id) {
		return *new(T)
	}
	return v
}

func mutantNilPair[A, T any](a A, v T) func(int) (A, T) {
	return func(id int) (A, T) { return a, mutantNil(id, v) }
}
`

// switchedSource returns the text of a file with all of its mutants that can be switched on.
func switchedSource(f *sourceFile, mutants []*mutant) []byte {
	type piece struct {
		at, until int // replaced: none of the text, but for an operator
		text      string
		order     int // among the pieces at one place: ends from the innermost mutant on, then beginnings from the outermost
	}
	var pieces []piece
	numbered := func(s string, id int) string { return strings.Replace(s, "%d", strconv.Itoa(id), 1) }
	for _, m := range mutants {
		if m.file != f || m.id == 0 {
			continue
		}
		pieces = append(pieces,
			piece{m.start, m.start, numbered(m.prefix, m.id), m.id},
			piece{m.end, m.end, numbered(m.suffix, m.id), -m.id})
		if m.comma[1] > 0 {
			pieces = append(pieces, piece{m.comma[0], m.comma[1], ",", 0})
		}
	}
	slices.SortFunc(pieces, func(a, b piece) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.order, b.order)) })
	var out bytes.Buffer
	done := 0
	for _, p := range pieces {
		out.Write(f.text[done:p.at])
		out.WriteString(p.text)
		done = p.until
	}
	out.Write(f.text[done:])
	return out.Bytes()
}

// switchedFiles returns the files of a package with all its mutants, by the path that each is laid over.
func switchedFiles(p *goPackage, mutants []*mutant) map[string][]byte {
	files := map[string][]byte{}
	for _, f := range p.files {
		files[f.path] = switchedSource(f, mutants)
	}
	files[p.dir+"/zz_mutate_switches.go"] = fmt.Appendf(nil, switches, p.files[0].syntax.Name.Name)
	return files
}
