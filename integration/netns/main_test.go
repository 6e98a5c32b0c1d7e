package netns

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/spf13/cobra"

	"guywire/integration/lab"
	"guywire/integration/lab/flow"
)

// bin holds the programs under test.
var bin string

// insideVerb is how the test binary runs again inside a node.
const insideVerb = "inside"

func TestMain(m *testing.M) {
	_ = os.Setenv("GORACE", "atexit_sleep_ms=0") // or each process inside takes a second to end
	lab.Init()
	if len(os.Args) > 1 && os.Args[1] == insideVerb {
		os.Exit(inside(os.Args[2:]))
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "guywire-netns-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	bin = dir
	build := exec.Command("go", "build", "-o", dir+string(filepath.Separator), "guywire/cmd/meshd", "guywire/cmd/meshctl")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the programs: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// inside runs one of the verbs that work in a node's namespaces.
func inside(args []string) int {
	root := &cobra.Command{Use: insideVerb, SilenceUsage: true, CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true}}
	root.AddCommand(flow.Commands()...)
	root.AddCommand(snapshotCommand(), harmCommand(), plantCommand(), holdCommand(), killCommand(), withoutCommand())
	root.SetArgs(args)
	return flow.Run(root)
}
