// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

// A goPackage is a package to mutate, parsed and with its types known.
type goPackage struct {
	path  string // import path
	dir   string
	fset  *token.FileSet
	types types.Info
	files []*sourceFile
}

type sourceFile struct {
	path   string // absolute
	name   string // relative to the module, with slashes
	syntax *ast.File
	text   []byte
}

// listed is what is read of go list.
type listed struct {
	ImportPath string
	Dir        string
	Export     string
	DepOnly    bool
	GoFiles    []string
	Module     *struct{ Dir string }
}

// load reads the packages in the order of go list. Types of what they import come from the compiler's export data.
func load(ctx context.Context, dir string, patterns []string) ([]*goPackage, error) {
	args := append([]string{"list", "-export", "-deps", "-json=ImportPath,Dir,Export,DepOnly,GoFiles,Module", "--"}, patterns...)
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	text, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	var wanted []listed
	exports := map[string]string{}
	for d := json.NewDecoder(bytes.NewReader(text)); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		exports[p.ImportPath] = p.Export
		if !p.DepOnly {
			wanted = append(wanted, p)
		}
	}
	var packages []*goPackage
	for _, p := range wanted {
		loaded, err := p.parse(exports)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.ImportPath, err)
		}
		packages = append(packages, loaded)
	}
	return packages, nil
}

func (l listed) parse(exports map[string]string) (*goPackage, error) {
	if l.Module == nil {
		return nil, errors.New("not of a module")
	}
	p := &goPackage{path: l.ImportPath, dir: l.Dir, fset: token.NewFileSet()}
	p.types.Types = map[ast.Expr]types.TypeAndValue{}
	var syntax []*ast.File
	for _, name := range l.GoFiles {
		f := &sourceFile{path: filepath.Join(l.Dir, name)}
		relative, err := filepath.Rel(l.Module.Dir, f.path)
		if err != nil {
			return nil, err
		}
		f.name = filepath.ToSlash(relative)
		if f.text, err = os.ReadFile(f.path); err != nil {
			return nil, err
		}
		if f.syntax, err = parser.ParseFile(p.fset, f.path, f.text, parser.SkipObjectResolution); err != nil {
			return nil, err
		}
		p.files, syntax = append(p.files, f), append(syntax, f.syntax)
	}
	config := types.Config{Importer: importer.ForCompiler(p.fset, "gc", func(path string) (io.ReadCloser, error) {
		return os.Open(exports[path])
	})}
	_, err := config.Check(l.ImportPath, p.fset, syntax, &p.types)
	return p, err
}

var errorType = types.Universe.Lookup("error").Type().Underlying().(*types.Interface)

func (p *goPackage) isBool(e ast.Expr) bool {
	basic, ok := underlying(p.types.TypeOf(e)).(*types.Basic)
	return ok && basic.Info()&types.IsBoolean != 0
}

// isError reports whether an expression is of an error type of which nil means none.
func (p *goPackage) isError(e ast.Expr) bool { return isErrorType(p.types.TypeOf(e)) }

// isErrorPair reports whether an expression is a call that returns a value and an error.
func (p *goPackage) isErrorPair(e ast.Expr) bool {
	pair, ok := p.types.TypeOf(e).(*types.Tuple)
	return ok && pair.Len() == 2 && isErrorType(pair.At(1).Type())
}

func isErrorType(t types.Type) bool {
	switch underlying(t).(type) {
	case *types.Pointer, *types.Interface:
		return types.Implements(t, errorType)
	}
	return false
}

func underlying(t types.Type) types.Type {
	if t == nil {
		return nil
	}
	return t.Underlying()
}
