// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package tokens

import (
	"cmp"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var updateConformance = flag.Bool("update-conformance", false, "write the rows of CONFORMANCE.md from the tests' comments, keeping clause and status of rows that are there")

// conformanceRow is one line of the table: an id, where it comes from, how it stands, and the tests that show it.
type conformanceRow struct {
	clause, status string
	tests          []string
}

var (
	// A clause test's comment begins with the ids of its rows: "RS-01, RS-02: RFC 8705, Section 3: …".
	clauseComment = regexp.MustCompile(`^([A-Z]{2,3}-[0-9]{2}(?:, [A-Z]{2,3}-[0-9]{2})*): *(RFC [^:]{1,90}: )?`)
	tableRow      = regexp.MustCompile(`^\| ([A-Z]{2,3}-[0-9]{2}) \| (.*) \| (.*) \| (.*) \|$`)
	testName      = regexp.MustCompile("`([a-z]+\\.(?:Test|Fuzz)[A-Za-z0-9_]+)`")
)

// The table of conformance and the tests say the same: every test that is listed exists, every clause test is
// listed under its ids, and no row claims to be met without a test.
func TestConformanceTableMatchesTests(t *testing.T) {
	t.Parallel()
	document, err := os.ReadFile("CONFORMANCE.md")
	if err != nil {
		t.Fatal(err)
	}
	listed := readTable(string(document))
	all, clauses := readTests(t, "..")
	if *updateConformance {
		writeTable(t, string(document), listed, clauses)
		return
	}
	for id, row := range listed {
		if row.status == "met" && len(row.tests) == 0 {
			t.Errorf("%s is said to be met, but no test is named", id)
		}
		if row.status == "open" && len(row.tests) > 0 {
			t.Errorf("%s is said to be open, but %v shows it", id, row.tests)
		}
		if row.clause == "" {
			t.Errorf("%s has no clause", id)
		}
		for _, name := range row.tests {
			if !all[name] {
				t.Errorf("%s names %s, which does not exist", id, name)
			}
		}
	}
	for id, row := range clauses {
		for _, name := range row.tests {
			if !slices.Contains(listed[id].tests, name) {
				t.Errorf("%s says that it shows %s, but the table does not list it (go test ./tokens -run Conformance -update-conformance)", name, id)
			}
		}
	}
}

func readTable(document string) map[string]conformanceRow {
	rows := make(map[string]conformanceRow)
	for line := range strings.Lines(document) {
		m := tableRow.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		row := conformanceRow{clause: strings.TrimSpace(m[2]), status: strings.TrimSpace(m[3])}
		for _, name := range testName.FindAllStringSubmatch(m[4], -1) {
			row.tests = append(row.tests, name[1])
		}
		rows[m[1]] = row
	}
	return rows
}

// readTests finds every test below root, and what the comments of clause tests claim.
func readTests(t *testing.T, root string) (all map[string]bool, clauses map[string]conformanceRow) {
	t.Helper()
	all, clauses = make(map[string]bool), make(map[string]conformanceRow)
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, decl := range file.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok || f.Recv != nil || !strings.HasPrefix(f.Name.Name, "Test") && !strings.HasPrefix(f.Name.Name, "Fuzz") {
				continue
			}
			name := filepath.Base(filepath.Dir(mustAbs(t, path))) + "." + f.Name.Name
			all[name] = true
			m := clauseComment.FindStringSubmatch(strings.ReplaceAll(f.Doc.Text(), "\n", " "))
			if m == nil {
				continue
			}
			for id := range strings.SplitSeq(m[1], ", ") {
				row := clauses[id]
				row.clause = cmp.Or(row.clause, strings.TrimSuffix(m[2], ": "))
				row.tests = append(row.tests, name)
				clauses[id] = row
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 20 {
		t.Fatalf("only %d tests found below %s", len(all), root)
	}
	return all, clauses
}

func mustAbs(t *testing.T, path string) string {
	t.Helper()
	abs, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return abs
}

// writeTable replaces the rows of the document.
func writeTable(t *testing.T, document string, listed, clauses map[string]conformanceRow) {
	t.Helper()
	rows := maps.Clone(listed)
	for id, row := range listed {
		row.tests = nil
		rows[id] = row
	}
	for id, found := range clauses {
		row := rows[id]
		row.clause, row.status = cmp.Or(row.clause, found.clause), cmp.Or(row.status, "met")
		slices.Sort(found.tests)
		row.tests = slices.Compact(found.tests)
		if row.status == "open" {
			row.status = "met"
		}
		rows[id] = row
	}
	var out strings.Builder
	for line := range strings.Lines(document) {
		if tableRow.MatchString(strings.TrimSpace(line)) {
			continue
		}
		out.WriteString(line)
		if strings.TrimSpace(line) != "|---|---|---|---|" {
			continue
		}
		for _, id := range slices.Sorted(maps.Keys(rows)) {
			row := rows[id]
			names := make([]string, len(row.tests))
			for i, name := range row.tests {
				names[i] = "`" + name + "`"
			}
			fmt.Fprintf(&out, "| %s | %s | %s | %s |\n", id, row.clause, row.status, strings.Join(names, ", "))
		}
	}
	if err := os.WriteFile("CONFORMANCE.md", []byte(out.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}
