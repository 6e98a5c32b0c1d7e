package peers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/spf13/cobra"

	"guywire/integration/lab"
	"guywire/integration/lab/flow"
	"guywire/integration/lab/screen"
	"guywire/integration/lab/world"
	"guywire/mesh/dataplane"
)

// The test binary is also the programs that run in the lab: meshd, of which only the data plane is needed, and what works
// inside the nodes.
func TestMain(m *testing.M) {
	_ = os.Setenv("GORACE", "atexit_sleep_ms=0") // or each process inside takes a second to end
	lab.Init()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	switch {
	case filepath.Base(os.Args[0]) == "meshd":
		exitOn(dataplane.Run(ctx, dataplane.Config{}))
	case len(os.Args) > 1 && (os.Args[1] == "flow" || os.Args[1] == world.InsideVerb):
		flows := &cobra.Command{Use: "flow"}
		flows.AddCommand(flow.Commands()...)
		root := &cobra.Command{SilenceUsage: true, SilenceErrors: true}
		root.AddCommand(flows, world.InsideCommand(InsideCommand()))
		exitOn(root.ExecuteContext(ctx))
	}
	stop()
	os.Exit(m.Run())
}

func exitOn(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// TestContenders: each system that is installed routes between two sites, and is gone when it was stopped.
func TestContenders(t *testing.T) {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("tunnels need a /dev/net/tun that we may open: %v", err)
	}
	_ = f.Close()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	programs := t.TempDir()
	if err := os.Symlink(exe, filepath.Join(programs, "meshd")); err != nil {
		t.Fatal(err)
	}
	for _, c := range All() {
		if c.daemons == nil {
			continue // the mesh has tests of its own
		}
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			if why := c.Missing(); why != "" {
				t.Skip(why)
			}
			n, err := lab.Load("two-sites")
			if err != nil {
				t.Fatal(err)
			}
			w, err := world.Open(t.Context(), screen.New(io.Discard, false), n,
				lab.Options{Name: fmt.Sprintf("%s-%d", c.Name, os.Getpid()), Path: []string{programs}}, []string{"fra", "lon"})
			if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.ENOSPC) {
				t.Skipf("the machine lets us make no namespaces: %v", err)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := w.Lab.Close(); err != nil {
					t.Error(err)
				}
			}()
			if err := c.Start(t.Context(), w, Tunnels{Kind: "userspace", MTU: 1420}); err != nil {
				t.Fatal(err)
			}
			if err := c.Stop(t.Context(), w); err != nil {
				t.Fatal(err)
			}
			status, err := w.Lab.Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range w.Sites {
				node, _ := status.Node(s.Name)
				if len(node.Processes) < 2 {
					t.Errorf("%s ran only %+v", s.Name, node.Processes)
				}
				for _, p := range node.Processes {
					if p.Running {
						t.Errorf("%s still runs on %s", p.Name, s.Name)
					}
				}
			}
		})
	}
}
