// Package arch holds the project's architecture as tests: who may import
// whom, what pure code must not do, which packages there are.
package arch

import (
	"bytes"
	"encoding/json"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the committed dependency lists")

type kind string

const (
	vocabulary kind = "vocabulary" // names of things; imports std only
	pure       kind = "pure"       // decides; imports vocabulary and pure
	adapter    kind = "adapter"    // one outside system; imports its library, vocabulary, pure
	shell      kind = "shell"      // goroutines, queues, the clock
	program    kind = "program"    // wires
	double     kind = "double"     // stands in for an adapter in tests; nothing that ships imports it
	lab        kind = "lab"        // may import anything; nothing that ships imports it
)

// kinds is the one list of packages; a package that is not in it fails.
var kinds = map[string]kind{
	"mesh":                        vocabulary,
	"mesh/core":                   pure,
	"mesh/link":                   pure,
	"mesh/kernel":                 pure,
	"mesh/config":                 pure,
	"discovery":                   pure,
	"discovery/invite":            pure,
	"discovery/attempt":           pure,
	"mesh/carrier":                pure,
	"routing":                     pure,
	"routing/lfi":                 pure,
	"routing/session":             pure,
	"routing/spf":                 pure,
	"routing/topology":            pure,
	"routing/topology/coordinate": pure,
	"routing/wire":                pure,
	"store":                       pure,

	"cmd/internal/man":             adapter,
	"mesh/api":                     adapter,
	"mesh/icmp":                    adapter,
	"mesh/host":                    adapter,
	"mesh/keyring":                 adapter,
	"mesh/probe":                   adapter,
	"mesh/transport":               adapter,
	"mesh/transport/transporttest": double,
	"mesh/wg":                      adapter,
	"discovery/gossip":             adapter,
	"discovery/portmap":            adapter,
	"discovery/stun":               adapter,
	"routing/fib":                  adapter,
	"routing/firewall":             adapter,
	"store/audit":                  adapter,
	"store/cache":                  adapter,
	"store/disk":                   adapter,
	"store/raftstore":              adapter,

	"mesh/agent":      shell,
	"mesh/control":    shell,
	"mesh/dataplane":  shell,
	"mesh/reconcile":  shell,
	"mesh/rendezvous": shell,

	"discovery/gossip/gossiptest": double,
	"discovery/nattest":           double,
	"mesh/api/apitest":            double,

	"cmd/meshd":   program,
	"cmd/meshctl": program,
	"cmd/meshlab": lab,
}

func kindOf(path string) (kind, bool) {
	if strings.HasPrefix(path, "integration/") {
		return lab, true
	}
	k, ok := kinds[path]
	return k, ok
}

// mayImport says which kinds a kind may import, among our own packages.
var mayImport = map[kind][]kind{
	vocabulary: {},
	pure:       {vocabulary, pure},
	adapter:    {vocabulary, pure},
	shell:      {vocabulary, pure, shell},
	program:    {vocabulary, pure, adapter, shell},
	double:     {vocabulary, pure, adapter},
	lab:        {vocabulary, pure, adapter, shell, double, lab},
}

// exceptions are single imports across the rule, each with its reason.
var exceptions = map[[2]string]string{
	{"mesh/control", "mesh/transport"}:  "the control plane is what composes TLS, Raft, keys and cache",
	{"mesh/control", "mesh/keyring"}:    "as above",
	{"mesh/control", "store/raftstore"}: "as above",
	{"mesh/control", "store/audit"}:     "as above",
	{"mesh/control", "store/cache"}:     "as above",
	{"mesh/control", "store/disk"}:      "as above",
	{"mesh/agent", "mesh/api"}:          "the agent answers the API and speaks its types",
	{"mesh/agent", "mesh/keyring"}:      "the agent owns the state directory",
	{"mesh/agent", "store/disk"}:        "the agent owns the state directory",
	{"mesh/agent", "store/cache"}:       "the agent keeps link records in the cache",
	{"mesh/agent", "store/raftstore"}:   "the API shows the control plane's status, which holds that of the log",
	{"mesh/keyring", "store/disk"}:      "store/disk is the one way to write files durably",
	{"store/audit", "store/disk"}:       "as above",
	{"store/cache", "store/disk"}:       "as above",
}

// forbidden are direct imports that make a package impure.
var forbidden = map[string]string{
	"net": "I/O", "os": "I/O", "log": "logging", "log/slog": "logging", "sync": "no concurrency in decisions",
	"crypto/rand": "randomness comes in as an argument", "net/http": "I/O",
}

// impureCalls are functions of time that read the clock.
var impureCalls = []string{"Now", "Since", "Until", "After", "AfterFunc", "Sleep", "NewTimer", "NewTicker", "Tick"}

// replacements are the only replace directives allowed in go.mod.
var replacements = map[string]string{
	"github.com/hashicorp/go-metrics": "raft-boltdb/v2 v2.3.1 imports a package that go-metrics v0.7.0 dropped",
}

type pkg struct {
	ImportPath string
	Dir        string
	Imports    []string
	GoFiles    []string
	Deps       []string
	Standard   bool
}

func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-json"}, args...)...)
	cmd.Dir = "../.."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var pkgs []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); d.More(); {
		var p pkg
		if err := d.Decode(&p); err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	return pkgs
}

func short(path string) (string, bool) { return strings.CutPrefix(path, "guywire/") }

func TestImports(t *testing.T) {
	used := map[[2]string]bool{}
	for _, p := range list(t, "./...") {
		from, _ := short(p.ImportPath)
		k, ok := kindOf(from)
		if !ok {
			t.Errorf("%s is of no kind: add it to the table, or put its content where it belongs", from)
			continue
		}
		for _, imp := range p.Imports {
			if why, bad := forbidden[imp]; bad && (k == pure || k == vocabulary) {
				t.Errorf("%s (%s) imports %s: %s", from, k, imp, why)
			}
			if k == vocabulary && strings.Contains(strings.SplitN(imp, "/", 2)[0], ".") {
				t.Errorf("%s (%s) imports %s: the vocabulary needs the standard library only", from, k, imp)
			}
			to, ours := short(imp)
			if !ours {
				continue
			}
			toKind, _ := kindOf(to)
			if slices.Contains(mayImport[k], toKind) {
				continue
			}
			if _, excepted := exceptions[[2]string{from, to}]; excepted {
				used[[2]string{from, to}] = true
				continue
			}
			t.Errorf("%s (%s) imports %s (%s)", from, k, to, toKind)
		}
	}
	for e, why := range exceptions {
		if !used[e] {
			t.Errorf("exception %s → %s (%s) is not needed any more", e[0], e[1], why)
		}
	}
}

func TestDataplaneImportsNothingOfOurs(t *testing.T) {
	for _, p := range list(t, "./mesh/dataplane") {
		for _, imp := range p.Deps {
			if to, ours := short(imp); ours && to != "mesh/carrier" {
				t.Errorf("mesh/dataplane depends on %s: it holds tunnels and nothing else, so that it never needs a restart", to)
			}
		}
	}
}

// ctlImports is all of ours that meshctl imports: what the API is, an operator's
// key, and the TLS that it proves it with; and what prints its manual page.
var ctlImports = []string{"cmd/internal/man", "mesh", "mesh/api", "mesh/keyring", "mesh/transport"}

func TestCtlTalksToTheAPIOnly(t *testing.T) {
	for _, p := range list(t, "./cmd/meshctl") {
		for _, imp := range p.Imports {
			if to, ours := short(imp); ours && !slices.Contains(ctlImports, to) {
				t.Errorf("cmd/meshctl imports %s", to)
			}
		}
	}
}

func TestPureCode(t *testing.T) {
	for _, p := range list(t, "./...") {
		name, _ := short(p.ImportPath)
		if k, _ := kindOf(name); k != pure && k != vocabulary {
			continue
		}
		for _, file := range p.GoFiles {
			fset := token.NewFileSet()
			f, err := parser.ParseFile(fset, filepath.Join(p.Dir, file), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.GoStmt:
					t.Errorf("%s: a goroutine in pure code", fset.Position(n.Pos()))
				case *ast.SelectorExpr:
					x, ok := n.X.(*ast.Ident)
					if ok && x.Name == "time" && slices.Contains(impureCalls, n.Sel.Name) {
						t.Errorf("%s: time.%s in pure code", fset.Position(n.Pos()), n.Sel.Name)
					}
					if ok && x.Name == "rand" && !slices.Contains([]string{"Rand", "New", "NewPCG", "ChaCha8", "NewChaCha8", "Source"}, n.Sel.Name) {
						t.Errorf("%s: rand.%s is global randomness", fset.Position(n.Pos()), n.Sel.Name)
					}
				}
				return true
			})
		}
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	for _, p := range list(t, "./...") {
		comments := 0
		for _, file := range p.GoFiles {
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, file), nil, parser.ParseComments|parser.PackageClauseOnly)
			if err != nil {
				t.Fatal(err)
			}
			if f.Doc != nil {
				comments++
			}
		}
		if comments != 1 && len(p.GoFiles) > 0 {
			t.Errorf("%s has %d package comments, not one", p.ImportPath, comments)
		}
	}
}

func TestNothingThatShipsImportsTheLab(t *testing.T) {
	for _, p := range list(t, "./cmd/meshd", "./cmd/meshctl") {
		for _, d := range p.Deps {
			name, ours := short(d)
			if k, _ := kindOf(name); ours && (k == lab || k == double) {
				t.Errorf("%s depends on %s", p.ImportPath, d)
			}
		}
	}
}

func TestReplacements(t *testing.T) {
	mod, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mod)) {
		fields := strings.Fields(line)
		if len(fields) > 1 && fields[0] == "replace" {
			if _, ok := replacements[fields[1]]; !ok {
				t.Errorf("go.mod replaces %s without a reason in this test", fields[1])
			}
		}
	}
}

// The modules in each binary are committed, so that a new dependency shows in
// review. go test ./integration/arch -rewrite writes the lists anew.
func TestDependencies(t *testing.T) {
	for _, binary := range []string{"meshd", "meshctl"} {
		var modules []string
		cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", "./cmd/"+binary)
		cmd.Dir = "../.."
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		for m := range strings.FieldsSeq(string(out)) {
			if m != "guywire" && !slices.Contains(modules, m) {
				modules = append(modules, m)
			}
		}
		slices.Sort(modules)
		got := strings.Join(modules, "\n") + "\n"
		file := filepath.Join("testdata", binary+".modules")
		if *rewrite {
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("modules in %s changed; if that is wanted: go test ./integration/arch -rewrite\ngot:\n%swant:\n%s", binary, got, want)
		}
	}
}
