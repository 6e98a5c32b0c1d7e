package truth

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"guywire/integration/lab"
	"guywire/integration/lab/clock"
	"guywire/integration/lab/flow"
)

var (
	span = flag.Duration("span", 45*time.Second, "how long TestTruth breaks things; longer than a round is several rounds")
	seed = flag.Uint64("seed", 1, "of the faults of the first round; each further round has the next")
)

// bin holds the programs under test, clocked the same with a clock of the lab.
var bin, clocked string

// insideVerb is how the test binary runs again inside a node.
const insideVerb = "inside"

func TestMain(m *testing.M) {
	lab.Init()
	if len(os.Args) > 1 && os.Args[1] == insideVerb {
		os.Exit(inside(os.Args[2:]))
	}
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "guywire-truth-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	bin, clocked = filepath.Join(dir, "bin"), filepath.Join(dir, "clocked")
	build := exec.Command("go", "build", "-o", bin+string(filepath.Separator), "guywire/cmd/meshd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build meshd: %v\n%s", err, out)
		return 1
	}
	if err := clock.Build(context.Background(), clocked, "guywire/cmd/meshd"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// inside runs one of the verbs that work in a node's namespaces.
func inside(args []string) int {
	root := &cobra.Command{Use: insideVerb, SilenceUsage: true, CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true}}
	root.AddCommand(flow.Commands()...)
	root.AddCommand(foundCommand(), joinCommand(), clientCommand(), askCommand(), changeCommand(), sniffCommand(), usageCommand(), walkCommand(), revokeCommand())
	root.SetArgs(args)
	return flow.Run(root)
}
