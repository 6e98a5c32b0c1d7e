package grid

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/spf13/cobra"

	"guywire/integration/lab"
	"guywire/integration/lab/flow"
	"guywire/integration/lab/world"
)

var (
	all     = flag.Bool("all", false, "measure all cells, not only those of expected.txt that are marked test")
	only    = flag.String("cells", "", "measure the cells that this regular expression matches, as in easy~port")
	jsonOut = flag.String("json", "", "write the results to this file")
)

// bin holds the programs under test.
var bin string

// The test binary is also what measures inside the nodes.
func TestMain(m *testing.M) {
	lab.Init()
	if len(os.Args) > 1 && slices.Contains([]string{"flow", world.InsideVerb}, os.Args[1]) {
		root := &cobra.Command{SilenceUsage: true, CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true}}
		flows := &cobra.Command{Use: "flow"}
		flows.AddCommand(flow.Commands()...)
		root.AddCommand(flows, world.InsideCommand(InsideCommands()...))
		os.Exit(flow.Run(root))
	}
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "guywire-grid-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	bin = filepath.Join(dir, "bin")
	build := exec.Command("go", "build", "-trimpath", "-o", bin+string(filepath.Separator), "guywire/cmd/meshd", "guywire/cmd/meshctl")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the programs: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}
