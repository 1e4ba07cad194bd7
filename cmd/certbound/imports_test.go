// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	goversion "go/version"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	module = "github.com/certbound/certbound"
	// moduleRoot is where go.mod lies, seen from this package.
	moduleRoot = "../.."
)

// allowance is what the non-test files of one package may import besides the standard library: packages of ours and
// packages of others. A name that ends in /... stands for the package before it and all below.
type allowance struct{ ours, outside []string }

// importTable says who may import whom; later rows do not widen earlier ones. A package that is not in it may not exist.
func importTable() map[string]allowance {
	public := []string{"mtls/...", "pki/...", "tokens", "tokens/issuer", "tokens/resource/...", "tokens/client/..."}
	and := func(more ...string) []string { return append(slices.Clone(public), more...) }
	const jose = "github.com/go-jose/go-jose/v4/..."
	router := "github.com/gorilla/mux"
	return map[string]allowance{
		"mtls":          {},
		"mtls/mtlstest": {ours: []string{"mtls"}},
		"pki":           {},
		"pki/stepca": {ours: []string{"pki"}, outside: []string{
			"github.com/smallstep/...", "go.step.sm/crypto/...", "github.com/go-chi/chi/...", jose}},

		"tokens/internal/jose":         {outside: []string{jose}},
		"tokens":                       {ours: []string{"mtls", "tokens/internal/jose"}},
		"tokens/issuer":                {ours: []string{"tokens", "mtls", "tokens/internal/jose"}},
		"tokens/resource":              {ours: []string{"tokens", "mtls"}},
		"tokens/client":                {ours: []string{"mtls"}},
		"tokens/tokenstest":            {ours: []string{"tokens/...", "mtls/..."}},
		"tokens/mldsa":                 {ours: []string{"tokens"}, outside: []string{"filippo.io/mldsa/..."}},
		"tokens/resource/grpcresource": {ours: []string{"tokens", "tokens/resource", "mtls"}, outside: []string{"google.golang.org/grpc/..."}},
		"tokens/client/oauth2client":   {ours: []string{"tokens/client", "mtls"}, outside: []string{"golang.org/x/oauth2"}},

		"cmd/internal/config":    {outside: []string{"github.com/goccy/go-yaml/..."}},
		"cmd/internal/audit":     {},
		"cmd/internal/store":     {ours: public, outside: []string{"modernc.org/sqlite/...", "github.com/jackc/pgx/v5/..."}},
		"cmd/internal/profile":   {ours: []string{"pki", "mtls", "tokens", "tokens/client", "tokens/mldsa"}},
		"cmd/internal/fetch":     {},
		"cmd/internal/leaktest":  {ours: []string{"pki"}},
		"cmd/internal/admission": {ours: []string{"mtls"}, outside: []string{"golang.org/x/time/rate"}},
		"cmd/internal/trust":     {ours: and("cmd/internal/store", "cmd/internal/fetch")},
		"cmd/internal/outbox":    {ours: []string{"cmd/internal/store", "cmd/internal/audit"}},
		"cmd/internal/replica":   {ours: []string{"cmd/internal/store", "tokens/issuer"}},
		"cmd/internal/authority": {ours: and("cmd/internal/store", "cmd/internal/audit", "cmd/internal/outbox")},
		"cmd/internal/restore":   {ours: []string{"cmd/internal/store", "cmd/internal/audit", "mtls", "pki"}},
		"cmd/internal/move":      {ours: []string{"cmd/internal/store", "cmd/internal/audit", "cmd/internal/replica", "cmd/internal/restore"}},
		"cmd/internal/admin":     {ours: and("cmd/internal/store", "cmd/internal/audit", "cmd/internal/outbox", "cmd/internal/trust"), outside: []string{router}},
		"cmd/internal/scale":     {ours: []string{"cmd/internal/store", "mtls", "pki", "pki/stepca"}}, // for scripts/bench
		"cmd/internal/server": {ours: and("cmd/internal/...", "tokens/mldsa"), outside: []string{
			router, "github.com/prometheus/client_golang/...", "go.opentelemetry.io/otel/...", "golang.org/x/sync/..."}},

		"cmd/certbound": {ours: []string{"cmd/internal/..."}, outside: []string{"github.com/spf13/cobra"}},
		"scripts/...":   {ours: and("scripts/process", "scripts/postgres")},
	}
}

// listed is a package as `go list -json` describes it.
type listed struct {
	ImportPath                         string
	Standard                           bool
	Imports, TestImports, XTestImports []string
	Doc                                string
	Module                             *struct{ Path, Version string }
}

// goList runs go list at the root of the module and decodes its stream of JSON objects.
func goList(t *testing.T, args ...string) []listed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list"}, args...)...)
	cmd.Dir, cmd.Stderr = moduleRoot, os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %s: %v", strings.Join(args, " "), err)
	}
	var list []listed
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
}

// checkImports returns what the table forbids, one line each.
func checkImports(table map[string]allowance, packages []listed) []string {
	var wrong []string
	for _, p := range packages {
		name := strings.TrimPrefix(p.ImportPath, module+"/")
		allowed, ok := allowanceOf(table, name)
		if !ok {
			wrong = append(wrong, name+" is not in the table of packages")
			continue
		}
		for _, imported := range p.Imports {
			ours, mine := strings.CutPrefix(imported, module+"/")
			switch {
			case mine && !matches(allowed.ours, ours):
				wrong = append(wrong, name+" may not import "+ours)
			case !mine && strings.Contains(strings.Split(imported, "/")[0], ".") && !matches(allowed.outside, imported):
				wrong = append(wrong, name+" may not import "+imported)
			}
		}
		for _, imported := range append(p.TestImports, p.XTestImports...) {
			if ours, mine := strings.CutPrefix(imported, module+"/"); mine && isPublic(name) && strings.HasPrefix(ours, "cmd/") {
				wrong = append(wrong, "tests of "+name+" may not import "+ours)
			}
		}
	}
	return wrong
}

func isPublic(name string) bool {
	first, _, _ := strings.Cut(name, "/")
	return slices.Contains([]string{"mtls", "pki", "tokens"}, first)
}

func allowanceOf(table map[string]allowance, name string) (allowance, bool) {
	if a, ok := table[name]; ok {
		return a, true
	}
	for pattern, a := range table {
		if strings.HasSuffix(pattern, "/...") && matches([]string{pattern}, name) {
			return a, true
		}
	}
	return allowance{}, false
}

// matches reports whether a name is in the list, or below an entry that ends in /...
func matches(list []string, name string) bool {
	return slices.ContainsFunc(list, func(pattern string) bool {
		base, tree := strings.CutSuffix(pattern, "/...")
		return name == base || tree && strings.HasPrefix(name, base+"/")
	})
}

func TestImports(t *testing.T) {
	t.Parallel()
	for _, wrong := range checkImports(importTable(), goList(t, "-json=ImportPath,Imports,TestImports,XTestImports", "./...")) {
		t.Error(wrong)
	}
}

// The checker finds what it is for.
func TestImportsChecker(t *testing.T) {
	t.Parallel()
	pkg := func(name string, imports ...string) listed {
		return listed{ImportPath: module + "/" + name, Imports: imports}
	}
	for name, tt := range map[string]struct {
		pkg  listed
		want []string
	}{
		"good":               {pkg("tokens", "crypto", module+"/mtls"), nil},
		"good, below":        {pkg("tokens/internal/jose", "github.com/go-jose/go-jose/v4/json"), nil},
		"unlisted":           {pkg("tokens/common"), []string{"tokens/common is not in the table of packages"}},
		"unlisted, internal": {pkg("cmd/internal/util"), []string{"cmd/internal/util is not in the table of packages"}},
		"upwards":            {pkg("mtls", module+"/tokens"), []string{"mtls may not import tokens"}},
		"library to program": {pkg("tokens/issuer", module+"/cmd/internal/store"), []string{"tokens/issuer may not import cmd/internal/store"}},
		"a JOSE library":     {pkg("tokens", "github.com/go-jose/go-jose/v4"), []string{"tokens may not import github.com/go-jose/go-jose/v4"}},
		"the CA library":     {pkg("cmd/internal/server", "github.com/smallstep/certificates/authority"), []string{"cmd/internal/server may not import github.com/smallstep/certificates/authority"}},
		"a sibling":          {pkg("cmd/internal/store", module+"/cmd/internal/audit"), []string{"cmd/internal/store may not import cmd/internal/audit"}},
		"internal JOSE":      {pkg("cmd/internal/admin", module+"/tokens/internal/jose"), []string{"cmd/internal/admin may not import tokens/internal/jose"}},
		"similar name":       {pkg("tokens/internal/jose", "github.com/go-jose/go-jose/v40"), []string{"tokens/internal/jose may not import github.com/go-jose/go-jose/v40"}},
		"script":             {pkg("scripts/demo", module+"/cmd/internal/config"), []string{"scripts/demo may not import cmd/internal/config"}},
		"test of a library": {listed{ImportPath: module + "/pki", XTestImports: []string{module + "/cmd/internal/store"}},
			[]string{"tests of pki may not import cmd/internal/store"}},
	} {
		if diff := cmp.Diff(tt.want, checkImports(importTable(), []listed{tt.pkg})); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// What is compiled into those who import us: nothing of others beyond what stands here, and of ours no more than this.
func TestCompiledIntoOthers(t *testing.T) {
	t.Parallel()
	const jose = "github.com/go-jose/go-jose/v4"
	for _, tt := range []struct {
		name          string
		outside, ours []string
	}{
		{"mtls", nil, []string{"mtls"}},
		{"pki", nil, []string{"pki"}},
		{"tokens/client", nil, []string{"mtls", "tokens/client"}},
		{"tokens", []string{jose}, []string{"mtls", "tokens", "tokens/internal/jose"}},
		{"tokens/resource", []string{jose}, []string{"mtls", "tokens", "tokens/internal/jose", "tokens/resource"}},
		{"tokens/issuer", []string{jose}, []string{"mtls", "tokens", "tokens/internal/jose", "tokens/issuer"}},
	} {
		var outside, ours []string
		for _, p := range goList(t, "-deps", "-json=ImportPath,Standard,Module", "./"+tt.name) {
			name, mine := strings.CutPrefix(p.ImportPath, module+"/")
			switch {
			case p.Standard:
			case mine:
				ours = append(ours, name)
			case !slices.Contains(outside, p.Module.Path):
				outside = append(outside, p.Module.Path)
			}
		}
		slices.Sort(ours)
		if diff := cmp.Diff(tt.outside, outside); diff != "" {
			t.Errorf("modules compiled into importers of %s: %s", tt.name, diff)
		}
		if diff := cmp.Diff(tt.ours, ours); diff != "" {
			t.Errorf("packages of ours compiled into importers of %s: %s", tt.name, diff)
		}
	}
}

// Every package says what it is, and none is called after nothing in particular.
func TestPackages(t *testing.T) {
	t.Parallel()
	for _, p := range goList(t, "-json=ImportPath,Doc", "./...") {
		if p.Doc == "" {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
		if slices.Contains([]string{"util", "utils", "common", "helper", "helpers"}, path.Base(p.ImportPath)) {
			t.Errorf("%s has a name that says nothing", p.ImportPath)
		}
	}
}

// lint returns what the source rules forbid in one file, one line each. name is its path from the root of the module.
func lint(name string, source []byte) []string {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, name, source, parser.ParseComments)
	if err != nil {
		return []string{err.Error()}
	}
	var wrong []string
	report := func(at ast.Node, what string) {
		wrong = append(wrong, fmt.Sprintf("%s:%d: %s", name, fset.Position(at.Pos()).Line, what))
	}
	const header = "// Copyright The Certbound Authors\n// SPDX-License-Identifier: Apache-2.0\n"
	if !strings.HasPrefix(string(source), header) {
		report(file, "no licence header")
	}
	if strings.HasSuffix(name, "_test.go") {
		return wrong
	}
	inMTLS := strings.HasPrefix(name, "mtls/")
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			if n.Name.Name == "init" && n.Recv == nil {
				report(n, "func init runs unasked")
			}
		case *ast.SelectorExpr:
			// The connection's certificate reaches a decision by one way only, which is mtls. The configuration has a
			// section called TLS too.
			section := strings.HasPrefix(name, "cmd/internal/config/") || strings.HasSuffix(rendered(n.X), "cfg")
			if n.Sel.Name == "TLS" && !inMTLS && !section {
				report(n, rendered(n)+" is read outside mtls")
			}
		case *ast.Ident:
			switch n.Name {
			case "PeerCertificates", "VerifiedChains":
				if !inMTLS {
					report(n, n.Name+" is read outside mtls")
				}
			case "VerifyPeerCertificate":
				report(n, "VerifyPeerCertificate is not called on resumed connections")
			case "InsecureSkipVerify":
				// The first fetch of a root has nothing to verify with; what it brings is checked against the code.
				if name != "cmd/internal/profile/enroll.go" && name != "cmd/internal/profile/call.go" {
					report(n, "InsecureSkipVerify")
				}
			}
		}
		return true
	})
	return wrong
}

// rendered is a chain of identifiers as it was written; anything else is a question mark.
func rendered(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return rendered(e.X) + "." + e.Sel.Name
	}
	return "?"
}

func TestSourceRules(t *testing.T) {
	t.Parallel()
	root := os.DirFS(moduleRoot)
	unverified := 0
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && name != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
			return fs.SkipDir
		}
		if d.IsDir() || filepath.Ext(name) != ".go" {
			return nil
		}
		source, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		if strings.Contains(string(source), "InsecureSkipVerify: true") && !strings.HasSuffix(name, "_test.go") {
			unverified++
		}
		for _, wrong := range lint(name, source) {
			t.Error(wrong)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if unverified > 1 {
		t.Errorf("%d files switch the verification of the server's certificate off; the first fetch of a root is the one that may", unverified)
	}
}

// The rules find what they are for.
func TestSourceRulesChecker(t *testing.T) {
	t.Parallel()
	const header = "// Copyright The Certbound Authors\n// SPDX-License-Identifier: Apache-2.0\n\npackage x\n"
	for name, tt := range map[string]struct {
		file, code string
		want       string // part of the one complaint; empty for none
	}{
		"request":              {"cmd/internal/server/x.go", "func f(r *http.Request) { _ = r.TLS }", "r.TLS is read outside mtls"},
		"request by any name":  {"tokens/resource/x.go", "func f(in *http.Request) { _ = in.TLS.ServerName }", "in.TLS is read outside mtls"},
		"request in a field":   {"tokens/issuer/x.go", "func f(c *call) { _ = c.request.TLS }", "c.request.TLS is read outside mtls"},
		"result of a call":     {"tokens/issuer/x.go", "func f() { _ = g().TLS }", "?.TLS is read outside mtls"},
		"in mtls":              {"mtls/x.go", "func f(r *http.Request) { _ = r.TLS.PeerCertificates }", ""},
		"in a test":            {"tokens/issuer/x_test.go", "func f(r *http.Request) { _ = r.TLS.PeerCertificates }", ""},
		"a configuration":      {"cmd/internal/server/x.go", "func f(s *service) { _ = s.cfg.TLS.HandshakeTimeout }", ""},
		"peer certificates":    {"tokens/client/x.go", "func f(s tls.ConnectionState) { _ = s.PeerCertificates }", "PeerCertificates is read outside mtls"},
		"verified chains":      {"pki/x.go", "func f(s tls.ConnectionState) { _ = s.VerifiedChains }", "VerifiedChains is read outside mtls"},
		"verification hook":    {"mtls/x.go", "var c = tls.Config{VerifyPeerCertificate: nil}", "VerifyPeerCertificate"},
		"no verification":      {"scripts/demo/x.go", "var c = tls.Config{InsecureSkipVerify: true}", "InsecureSkipVerify"},
		"no verification, set": {"tokens/client/x.go", "func f(c *tls.Config) { c.InsecureSkipVerify = true }", "InsecureSkipVerify"},
		"init":                 {"cmd/certbound/x.go", "func init() {}", "func init"},
		"method called init":   {"cmd/certbound/x.go", "func (t) init() {}", ""},
		"comment":              {"tokens/x.go", "// r.TLS and VerifyPeerCertificate are not used.\nvar x int", ""},
	} {
		got := lint(tt.file, []byte(header+tt.code))
		switch {
		case tt.want == "" && len(got) > 0:
			t.Errorf("%s: complains: %q", name, got)
		case tt.want != "" && (len(got) != 1 || !strings.Contains(got[0], tt.want)):
			t.Errorf("%s: got %q, want one with %q", name, got, tt.want)
		}
	}
	if got := lint("mtls/x.go", []byte("package x\n")); len(got) != 1 {
		t.Errorf("a file without the licence's header: %q", got)
	}
}

// Versions below these have known holes: TLS resumption and chain building in Go, enrolment protocols in the CA library,
// a crash in the JOSE library.
func TestVersionFloors(t *testing.T) {
	t.Parallel()
	const goFloor = "go1.26.6"
	cmd := exec.CommandContext(t.Context(), "go", "mod", "edit", "-json")
	cmd.Dir = moduleRoot
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var mod struct {
		Go, Toolchain string
		Require       []struct{ Path, Version string }
	}
	if err := json.Unmarshal(out, &mod); err != nil {
		t.Fatal(err)
	}
	if goversion.Compare("go"+mod.Go, goFloor) < 0 && goversion.Compare(mod.Toolchain, goFloor) < 0 {
		t.Errorf("go.mod is content with go %s and toolchain %q, want at least %s", mod.Go, mod.Toolchain, goFloor)
	}
	if goversion.Compare(runtime.Version(), goFloor) < 0 {
		t.Errorf("built with %s, want at least %s", runtime.Version(), goFloor)
	}
	floors := map[string]string{
		"github.com/smallstep/certificates": "v0.30.2",
		"github.com/go-jose/go-jose/v4":     "v4.1.4",
	}
	for _, required := range mod.Require {
		floor, ok := floors[required.Path]
		delete(floors, required.Path)
		if ok && olderThan(required.Version, floor) {
			t.Errorf("%s %s is older than %s", required.Path, required.Version, floor)
		}
	}
	for missing := range floors {
		t.Errorf("%s is not required any more: take its floor out", missing)
	}
}

// olderThan compares two versions of the form v1.2.3; go/version compares numbers the same way.
func olderThan(a, b string) bool {
	return goversion.Compare("go"+strings.TrimPrefix(a, "v"), "go"+strings.TrimPrefix(b, "v")) < 0
}

func TestOlderThan(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		a, b string
		want bool
	}{{"v0.30.1", "v0.30.2", true}, {"v0.30.2", "v0.30.2", false}, {"v0.31.0", "v0.30.2", false}, {"v4.1.10", "v4.1.4", false}, {"v4.0.9", "v4.1.4", true}} {
		if got := olderThan(tt.a, tt.b); got != tt.want {
			t.Errorf("olderThan(%s, %s) = %v", tt.a, tt.b, got)
		}
	}
}
