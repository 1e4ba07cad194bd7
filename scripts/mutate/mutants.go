// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/token"
	"go/types"
	"slices"
	"strings"
)

// A mutant is the package with one piece of one file replaced.
type mutant struct {
	pkg        *goPackage
	file       *sourceFile
	function   string // as in the source: Name, or (*Type).Name
	start, end int    // offsets of what is replaced
	with       string
	what       string // in words: old => new, of one line
	line       int
	count      int    // 1 for the first of this description in the function, 2 for the second …
	reason     string // why it is equivalent; empty when it is not listed as such

	// How the mutant is compiled together with all others of its package and switched on when the tests run: a call
	// put around the piece, see switches.go. The id is 0 for one that can only be compiled by itself.
	id             int
	prefix, suffix string
	comma          [2]int // offsets of an operator that becomes the comma between the arguments; none when empty
}

func (m *mutant) String() string {
	text := fmt.Sprintf("%s:%d %s: %s", m.file.name, m.line, m.function, m.what)
	if m.count > 1 {
		text += fmt.Sprintf(" #%d", m.count)
	}
	return text
}

// source returns the text of the file with the piece replaced.
func (m *mutant) source() []byte {
	return slices.Concat(m.file.text[:m.start], []byte(m.with), m.file.text[m.end:])
}

// diff returns the lines that differ, as a unified difference without context.
func (m *mutant) diff() string {
	first := strings.LastIndexByte(string(m.file.text[:m.start]), '\n') + 1
	last := len(m.file.text)
	if i := strings.IndexByte(string(m.file.text[m.end:]), '\n'); i >= 0 {
		last = m.end + i
	}
	before := string(m.file.text[first:last])
	after := string(m.file.text[first:m.start]) + m.with + string(m.file.text[m.end:last])
	lines := func(mark, s string) string { return mark + strings.ReplaceAll(s, "\n", "\n"+mark) + "\n" }
	return fmt.Sprintf("--- %s\n+++ %s\n@@ -%d,%d +%d,%d @@\n", m.file.name, m.file.name,
		m.line, 1+strings.Count(before, "\n"), m.line, 1+strings.Count(after, "\n")) + lines("-", before) + lines("+", after)
}

// number tells mutants of one description in one function apart, in the order of the source.
func number(all []*mutant) {
	type key struct{ file, function, what string }
	seen := map[key]int{}
	for _, m := range all {
		k := key{m.file.name, m.function, m.what}
		seen[k]++
		m.count = seen[k]
	}
}

// mutants returns all mutants of the package in the order of the source.
func (p *goPackage) mutants() []*mutant {
	var all []*mutant
	for _, file := range p.files {
		for _, declaration := range file.syntax.Decls {
			function, ok := declaration.(*ast.FuncDecl)
			if !ok || function.Body == nil {
				continue
			}
			b := &breeder{pkg: p, file: file, function: functionName(function)}
			ast.Walk(b, function.Body)
			all = append(all, b.mutants...)
		}
	}
	index := func(m *mutant) int { return slices.Index(p.files, m.file) }
	for i, m := range all {
		if m.prefix != "" {
			m.id = i + 1
		}
	}
	slices.SortStableFunc(all, func(a, b *mutant) int {
		return cmp.Or(cmp.Compare(index(a), index(b)), cmp.Compare(a.start, b.start))
	})
	return all
}

func functionName(f *ast.FuncDecl) string {
	if f.Recv == nil || len(f.Recv.List) == 0 {
		return f.Name.Name
	}
	return "(" + types.ExprString(f.Recv.List[0].Type) + ")." + f.Name.Name
}

// A breeder walks over a function and makes its mutants:
//
//   - each condition of an if, of a case without a tag, and each truth value returned: false and true, or inverted
//     where always true would refuse everything;
//   - each operand of && and ||: left out of the condition;
//   - each ordering comparison: with the bound moved by one;
//   - each value or type of a case: removed;
//   - each return after something else in the body of an if or case: skipped;
//   - each error returned that is not made in the same line: nil instead.
//
// Conditions of loops are left alone, for their mutants mostly never end. What is replaced is evaluated first where it
// can be, so that a mutant lacks a judgement and not what was done on the way to it.
type breeder struct {
	pkg      *goPackage
	file     *sourceFile
	function string
	mutants  []*mutant
}

// Visit makes outer mutants before inner ones; switchedSource relies on it.
func (b *breeder) Visit(n ast.Node) ast.Visitor {
	switch n := n.(type) {
	case *ast.IfStmt:
		b.condition(n.Cond)
		if n.Else == nil {
			b.skippedReturn(n.Body.List)
		}
	case *ast.SwitchStmt:
		b.cases(n.Body, n.Tag == nil)
	case *ast.TypeSwitchStmt:
		b.cases(n.Body, false)
	case *ast.ReturnStmt:
		for _, result := range n.Results {
			b.result(result)
		}
	case *ast.ForStmt:
		if n.Init != nil {
			ast.Walk(b, n.Init)
		}
		ast.Walk(b, n.Body)
		return nil
	case *ast.BinaryExpr:
		b.operands(n)
		b.bound(n)
	}
	return b
}

// add makes a mutant in which the text from start to end is replaced.
func (b *breeder) add(start, end token.Pos, with, what string) *mutant {
	m := &mutant{
		pkg: b.pkg, file: b.file, function: b.function, start: b.offset(start), end: b.offset(end),
		with: with, what: strings.Join(strings.Fields(what), " "), line: b.pkg.fset.Position(start).Line,
	}
	b.mutants = append(b.mutants, m)
	return m
}

func (b *breeder) offset(p token.Pos) int { return b.pkg.fset.Position(p).Offset }

func (b *breeder) text(n ast.Node) string {
	return string(b.file.text[b.offset(n.Pos()):b.offset(n.End())])
}

// force makes the mutant in which a truth value is what it is told to be.
func (b *breeder) force(e ast.Expr, value bool) {
	text := b.text(e)
	if value {
		b.add(e.Pos(), e.End(), "(("+text+") || true)", text+" => true").call("mutantTrue")
		return
	}
	b.add(e.Pos(), e.End(), "(("+text+") && false)", text+" => false").call("mutantFalse")
}

// condition makes the mutants of a whole condition.
func (b *breeder) condition(e ast.Expr) {
	b.force(e, false)
	if text := b.text(e); text == "err != nil" {
		b.add(e.Pos(), e.End(), "err == nil", text+" => inverted").call("mutantInverted")
		return
	}
	b.force(e, true)
}

// operands makes the mutants that leave out one side of && or ||.
func (b *breeder) operands(e *ast.BinaryExpr) {
	if e.Op != token.LAND && e.Op != token.LOR {
		return
	}
	for _, side := range []ast.Expr{e.X, e.Y} {
		if inner, ok := ast.Unparen(side).(*ast.BinaryExpr); ok && inner.Op == e.Op {
			continue // its operands are ours
		}
		b.force(side, e.Op == token.LAND)
	}
}

// bound makes the mutant that moves the bound of a comparison.
func (b *breeder) bound(e *ast.BinaryExpr) {
	moved, ok := map[token.Token]struct{ operator, call string }{
		token.LSS: {"<=", "mutantLess"}, token.LEQ: {"<", "mutantLessOrEqual"},
		token.GTR: {">=", "mutantGreater"}, token.GEQ: {">", "mutantGreaterOrEqual"},
	}[e.Op]
	if !ok {
		return
	}
	with := b.text(e.X) + " " + moved.operator + " " + b.text(e.Y)
	m := b.add(e.Pos(), e.End(), with, b.text(e)+" => "+with)
	m.call(moved.call)
	m.comma = [2]int{b.offset(e.OpPos), b.offset(e.OpPos) + len(e.Op.String())}
}

// cases makes the mutants of a switch. What has no condition of its own can only be removed from the text.
func (b *breeder) cases(body *ast.BlockStmt, conditions bool) {
	for _, statement := range body.List {
		clause := statement.(*ast.CaseClause)
		for i, value := range clause.List {
			what := "case " + b.text(value) + " => removed"
			switch {
			case conditions:
				b.condition(value)
			case len(clause.List) == 1:
				b.add(clause.Pos(), clause.End(), "", what)
			case i == 0:
				b.add(value.Pos(), clause.List[1].Pos(), "", what)
			default:
				b.add(clause.List[i-1].End(), value.End(), "", what)
			}
		}
		if !slices.ContainsFunc(body.List, func(s ast.Stmt) bool { return s.(*ast.CaseClause).List == nil }) {
			b.skippedReturn(clause.Body)
		}
	}
}

// skippedReturn makes the mutant that does all of a body but leave, where that compiles: not where every branch must
// return. A lone return is the condition's own mutant.
func (b *breeder) skippedReturn(body []ast.Stmt) {
	if len(body) < 2 {
		return
	}
	if last, ok := body[len(body)-1].(*ast.ReturnStmt); ok {
		text := b.text(last)
		m := b.add(last.Pos(), last.End(), "if false { "+text+" }", text+" => skipped")
		m.prefix, m.suffix = "if !mutant(%d) { ", " }"
	}
}

// result makes the mutants of one returned value.
func (b *breeder) result(e ast.Expr) {
	text := b.text(e)
	switch {
	case text == "true":
		b.add(e.Pos(), e.End(), "false", "return true => false").call("mutantFalse")
	case text == "false":
		b.add(e.Pos(), e.End(), "true", "return false => true").call("mutantTrue")
	case b.pkg.isBool(e):
		b.condition(e)
	case isNewError(e):
	case b.pkg.isError(e):
		b.add(e.Pos(), e.End(), "/* nil for */ "+text, text+" => nil").call("mutantNil")
	case b.pkg.isErrorPair(e):
		m := b.add(e.Pos(), e.End(), "/* nil for the error of */ "+text, text+" => nil error")
		m.prefix, m.suffix = "mutantNilPair(", ")(%d)"
	}
}

// call puts a call of a function of switches.go around the mutant's piece.
func (m *mutant) call(function string) { m.prefix, m.suffix = function+"(%d, ", ")" }

// isNewError reports whether an expression makes an error where it stands: whether it is reached is another check's.
func isNewError(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.CallExpr:
		text := types.ExprString(e.Fun)
		return text == "fmt.Errorf" || text == "errors.New" || text == "errors.Join"
	case *ast.Ident:
		return e.Name == "nil" || strings.HasPrefix(e.Name, "Err")
	case *ast.SelectorExpr:
		return strings.HasPrefix(e.Sel.Name, "Err")
	case *ast.UnaryExpr:
		return e.Op == token.AND
	}
	return false
}
