package chaos

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"guywire/integration/lab"
	"guywire/integration/lab/flow"
	"guywire/integration/lab/world"
)

var (
	seed = flag.Uint64("seed", 0, "seed of TestP10NoTTLExceeded (default: random)")
	span = flag.Duration("for", 12*time.Second, "how long TestP10NoTTLExceeded breaks things")
)

// The test binary is also the program that works inside the nodes.
func TestMain(m *testing.M) {
	_ = os.Setenv("GORACE", "atexit_sleep_ms=0") // or each process inside takes a second to end
	lab.Init()
	if len(os.Args) > 1 && (os.Args[1] == "flow" || os.Args[1] == world.InsideVerb) {
		flows := &cobra.Command{Use: "flow"}
		flows.AddCommand(flow.Commands()...)
		root := &cobra.Command{SilenceUsage: true, SilenceErrors: true}
		root.AddCommand(flows, world.InsideCommand(InsideCommands()...))
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
		err := root.ExecuteContext(ctx)
		stop()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestP10NoTTLExceeded: through random breaks and repairs no packet goes round in circles, by the kernels' counters and by
// their tables.
func TestP10NoTTLExceeded(t *testing.T) {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("tunnels need a /dev/net/tun that we may open: %v", err)
	}
	_ = f.Close()
	bin := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin+string(filepath.Separator), "guywire/cmd/meshd", "guywire/cmd/meshctl")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the programs: %v\n%s", err, out)
	}
	if *seed == 0 {
		*seed = 1 + rand.Uint64N(1e6)
	}
	t.Logf("seed %d; again by: go test ./integration/lab/chaos -run P10 -seed %d -for %s", *seed, *seed, *span)
	r, err := run(t.Context(), options{out: t.Output(), span: *span, seed: *seed, path: []string{bin}, list: true})
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.ENOSPC) {
		t.Skipf("the machine lets us make no namespaces: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if r.Walks == 0 || r.NextHops == 0 || r.Sent == 0 || r.Delivered == 0 {
		t.Errorf("nothing was watched: %+v", r)
	}
}
