package world

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"guywire/integration/lab"
	"guywire/integration/lab/flow"
	"guywire/integration/lab/screen"
	"guywire/mesh/dataplane"
)

// The test binary is also the programs that run in the lab: meshd, of which only the data plane is needed, and this
// package's own commands.
func TestMain(m *testing.M) {
	lab.Init()
	if filepath.Base(os.Args[0]) == "meshd" {
		exitOn(dataplane.Run(context.Background(), dataplane.Config{}))
	}
	if len(os.Args) > 1 && slices.Contains([]string{"flow", InsideVerb}, os.Args[1]) {
		root := &cobra.Command{SilenceUsage: true, SilenceErrors: true}
		flows := &cobra.Command{Use: "flow"}
		flows.AddCommand(flow.Commands()...)
		root.AddCommand(flows)
		root.AddCommand(InsideCommand())
		exitOn(root.Execute())
	}
	os.Exit(m.Run())
}

func exitOn(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// needLab skips a test where labs or tunnels cannot be made.
func needLab(t *testing.T) {
	t.Helper()
	attr := &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if os.Geteuid() != 0 {
		attr.Cloneflags |= unix.CLONE_NEWUSER
	}
	if err := (&exec.Cmd{Path: "/proc/self/exe", Args: []string{"x", "-test.list=^$"}, SysProcAttr: attr}).Run(); err != nil {
		t.Skipf("namespaces cannot be made here: %v", err)
	}
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("TUN devices cannot be made here: %v", err)
	}
	_ = f.Close()
}

// TestMeasuring takes everything that measures and breaks, but no agent: two sites joined by a tunnel made by hand.
func TestMeasuring(t *testing.T) {
	for _, kind := range []string{"userspace", "kernel"} {
		t.Run(kind, func(t *testing.T) { measure(t, kind) })
	}
}

func measure(t *testing.T, kind string) {
	needLab(t)
	ctx := t.Context()
	n, err := lab.Load("two-sites")
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	programs := t.TempDir()
	if err := os.Symlink(exe, filepath.Join(programs, "meshd")); err != nil {
		t.Fatal(err)
	}
	w, err := Open(ctx, screen.New(io.Discard, false), n, lab.Options{Name: fmt.Sprintf("test-world-%d", os.Getpid()), Path: []string{programs}}, []string{"fra", "lon"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Lab.Close(); err != nil {
			t.Error(err)
		}
	})
	err = w.ConnectByHand(ctx, kind, 1420, true, w.AllPairs()...)
	if kind == "kernel" && err != nil && strings.Contains(err.Error(), unix.EOPNOTSUPP.Error()) {
		t.Skipf("the kernel has no WireGuard: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := w.UntilTalk(ctx, true); err != nil {
		t.Fatal(err)
	}
	if err := w.UntilRouted(ctx); err != nil {
		t.Fatal(err)
	}
	fra, lon := w.Sites[0], w.Sites[1]

	m, err := w.Matrix(ctx, 1)
	if err != nil || m.Pairs.Good != 4 || m.Pair6.Good != 4 {
		t.Errorf("pings: %+v, %v", m, err)
	}
	if ms, err := w.RoundTrip(ctx, 3); err != nil || ms <= 0 {
		t.Errorf("round trip: %v ms, %v", ms, err)
	}
	if mbps, err := w.Transfer(ctx, 2, 300*time.Millisecond); err != nil || mbps <= 0 {
		t.Errorf("transfer: %v Mbit/s, %v", mbps, err)
	}

	for to, answers := range map[string]bool{lon.Host4.String(): true, lon.Host4.Next().String(): false} {
		out, err := w.Run(ctx, fra.Host, "", w.Exe, InsideVerb, "await", "--to", to, "--limit", "1s")
		var first arrival
		if answers {
			err = errors.Join(err, json.Unmarshal(out, &first))
		}
		if answers != (err == nil) || answers != (first.At > 0) {
			t.Errorf("await %s: %s, %v", to, out, err)
		}
	}

	var heal func(context.Context) error
	cut := Strike{
		A: fra, B: lon, Linger: time.Second,
		Act: func(ctx context.Context, ways [2]Trace) (event string, at time.Duration, err error) {
			heal, at, err = w.Silence(ctx, ways[0][0])
			return "silent", at, err
		},
	}
	row, err := w.Hit(ctx, cut)
	if err != nil {
		t.Fatal(err)
	}
	// There is no other way: both directions are silent to the end.
	if !row.Open || row.Astray == "" || row.Before != "fra → lon" || row.After != "none" || row.Lost < 500 {
		t.Errorf("cut: %+v", row)
	}
	if err := heal(ctx); err != nil {
		t.Fatal(err)
	}
	nothing := cut
	nothing.Act = func(context.Context, [2]Trace) (string, time.Duration, error) {
		return "nothing", flow.Monotonic(), nil
	}
	row, err = w.Hit(ctx, nothing)
	if err != nil {
		t.Fatal(err)
	}
	if row.Open || row.Lost > 0 || row.Before != "fra → lon" || row.After != row.Before || row.Sent < 800 {
		t.Errorf("after the cut: %+v", row)
	}
}
