package arch

import (
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

// eachTestFile gives the syntax of every test file of the project.
func eachTestFile(t *testing.T, visit func(f *ast.File)) {
	t.Helper()
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && (d.Name() == ".git" || d.Name() == "testdata") {
			if err == nil {
				err = filepath.SkipDir
			}
			return err
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err == nil {
			visit(f)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestEveryBugHasItsTest: the tests that docs/bugs.md names exist, and it names
// all that are made for a bug.
func TestEveryBugHasItsTest(t *testing.T) {
	there := map[string]bool{} // package.Test
	eachTestFile(t, func(f *ast.File) {
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") {
				there[strings.TrimSuffix(f.Name.Name, "_test")+"."+fn.Name.Name] = true
			}
		}
	})
	text, err := os.ReadFile("../../docs/bugs.md")
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != 3 || strings.Contains(cells[0], "---") || strings.TrimSpace(cells[0]) == "bug" {
			continue
		}
		for test := range strings.SplitSeq(cells[2], ",") {
			test = strings.TrimSpace(test)
			named[test] = true
			if !there[test] {
				t.Errorf("bug %s: there is no test %q", strings.TrimSpace(cells[0]), test)
			}
		}
	}
	if len(named) < 30 {
		t.Errorf("docs/bugs.md names %d tests; its table cannot be read", len(named))
	}
	made := regexp.MustCompile(`\.Test(B\d\d|Raft\d\d\d)[A-Z]`)
	for _, test := range slices.Sorted(maps.Keys(there)) {
		if made.MatchString(test) && !named[test] {
			t.Errorf("%s is not in docs/bugs.md", test)
		}
	}
}

// TestB09OnlyLibraryAEADs: nonces are the business of libraries, of which TLS
// and WireGuard are all that we need.
func TestB09OnlyLibraryAEADs(t *testing.T) {
	for _, p := range list(t, "./...") {
		name, _ := short(p.ImportPath)
		if k, _ := kindOf(name); k == lab || k == double {
			continue
		}
		for _, imp := range p.Imports {
			if slices.Contains([]string{"crypto/cipher", "crypto/aes", "crypto/des", "crypto/rc4"}, imp) ||
				strings.HasPrefix(imp, "golang.org/x/crypto/chacha20") || strings.HasPrefix(imp, "golang.org/x/crypto/nacl") {
				t.Errorf("%s imports %s: leave encryption to TLS and WireGuard", name, imp)
			}
		}
	}
}

// secretName is what is called a secret, or proves that somebody knows one. A
// proof that is a signature is verified, not compared.
var secretName = regexp.MustCompile(`(?i)(secret|password|hmac|\bmac|private)`)

// TestB15SecretsComparedInConstantTime: nothing that has the name of a secret
// is compared byte by byte in the packages that talk with strangers. Those that
// compare a key of this machine with that in its kernel or its file tell nobody.
func TestB15SecretsComparedInConstantTime(t *testing.T) {
	found := 0
	for _, p := range list(t, "./discovery/...", "./mesh/api", "./mesh/control", "./mesh/rendezvous", "./mesh/transport", "./store/...") {
		for _, file := range p.GoFiles {
			fset := token.NewFileSet()
			f, err := parser.ParseFile(fset, filepath.Join(p.Dir, file), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			for at, what := range comparisons(fset, f) {
				found++
				if secretName.MatchString(what) {
					t.Errorf("%s compares %s in variable time: use hmac.Equal or crypto/subtle", at, what)
				}
			}
		}
	}
	if found < 100 {
		t.Errorf("only %d comparisons were found", found)
	}
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, "bad.go", "package p\nfunc f() bool { return m.Secret == got || bytes.Equal(a, mac) }", parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	for _, what := range comparisons(fset, f) {
		if !secretName.MatchString(what) {
			t.Errorf("%s is not seen as a secret", what)
		}
	}
}

// comparisons are the values that a file compares, by place; those with nil,
// a constant or a length are none.
func comparisons(fset *token.FileSet, f *ast.File) map[string]string {
	out := map[string]string{}
	add := func(n ast.Node, values ...ast.Expr) {
		var names []string
		for _, v := range values {
			switch v := v.(type) {
			case *ast.BasicLit, *ast.CompositeLit:
				return
			case *ast.CallExpr:
				if fn, ok := v.Fun.(*ast.Ident); ok && fn.Name == "len" {
					return
				}
			case *ast.Ident:
				if v.Name == "nil" || v.Name == "true" || v.Name == "false" {
					return
				}
			}
			ast.Inspect(v, func(n ast.Node) bool {
				if id, ok := n.(*ast.Ident); ok {
					names = append(names, id.Name)
				}
				return true
			})
		}
		out[fset.Position(n.Pos()).String()] = strings.Join(names, " ")
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.BinaryExpr:
			if n.Op == token.EQL || n.Op == token.NEQ {
				add(n, n.X, n.Y)
			}
		case *ast.CallExpr:
			fn, ok := n.Fun.(*ast.SelectorExpr)
			if !ok || len(n.Args) != 2 {
				break
			}
			if x, ok := fn.X.(*ast.Ident); ok && (x.Name == "bytes" || x.Name == "slices") && fn.Sel.Name == "Equal" {
				add(n, n.Args...)
			}
		}
		return true
	})
	return out
}
