package vagrant

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"guywire/integration/lab"
)

// The test binary is also this package's commands.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "inside" {
		c := &cobra.Command{Use: "inside", SilenceUsage: true}
		c.AddCommand(InsideCommands()...)
		c.SetArgs(os.Args[2:])
		if c.Execute() != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// running starts run with an order; what is sent later goes to the writer.
func running(t *testing.T, o order) (cmd *exec.Cmd, out *bytes.Buffer, in io.WriteCloser) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	cmd, out = exec.CommandContext(ctx, os.Args[0], "inside", runVerb), new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = out, out
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := json.NewEncoder(in).Encode(o); err != nil {
		t.Fatal(err)
	}
	return cmd, out, in
}

func TestRun(t *testing.T) {
	t.Parallel()
	cmd, out, _ := running(t, order{Argv: []string{"sh", "-c", `cat; echo "$FLOW_CLOCK_AHEAD"; exit 7`}, Stdin: "a token\n", Ahead: -5})
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 7 || out.String() != "a token\n-5\n" {
		t.Errorf("code %d (%v), output %q; want 7, the input and the clock", cmd.ProcessState.ExitCode(), err, out)
	}
	// The pipe says when the trap is set: an earlier signal would kill.
	ready := filepath.Join(t.TempDir(), "ready")
	if err := syscall.Mkfifo(ready, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd, out, in := running(t, order{Argv: []string{"sh", "-c", `trap "exit 3" USR1; : >"$0"; while :; do sleep 0.01; done`, ready}})
	if _, err := os.ReadFile(ready); err != nil {
		t.Fatal(err)
	}
	_, _ = fmt.Fprintln(in, int(syscall.SIGUSR1))
	if _ = cmd.Wait(); cmd.ProcessState.ExitCode() != 3 {
		t.Errorf("after SIGUSR1: code %d, %s; want 3", cmd.ProcessState.ExitCode(), out)
	}
	cmd, _, in = running(t, order{Argv: []string{"sleep", "1000"}})
	_ = in.Close()
	if _ = cmd.Wait(); cmd.ProcessState.ExitCode() != 128+9 {
		t.Errorf("after the end of the input: code %d, want that of SIGKILL", cmd.ProcessState.ExitCode())
	}
}

// Vagrantfile takes addresses and names from the file as they are written.
func TestNetwork(t *testing.T) {
	t.Parallel()
	n, err := lab.Load("vagrant")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Describe(); err != nil {
		t.Fatal(err)
	}
	m := &Machines{network: n}
	for name, node := range n.Nodes {
		if node.Kind == lab.Site {
			m.sites = append(m.sites, name)
		}
		for _, u := range node.Uplinks {
			if !u.Address.IsValid() || u.Address.Masked().Addr().Next().Next() != u.Address.Addr() {
				t.Errorf("%s: the address %s is not written, or not the second of its subnet", name, u.Address)
			}
			if u.Address6.IsValid() && u.Address6.Masked().Addr().Next().Next() != u.Address6.Addr() {
				t.Errorf("%s: the address %s is not the second of its subnet", name, u.Address6)
			}
		}
	}
	for link, want := range map[string]string{"fra:isp1": "router fra-isp1", "sto:isp2": "sto-nat2 sto-isp2"} {
		if node, iface, err := m.cable(link); err != nil || node+" "+iface != want {
			t.Errorf("%s is %s %s, %v; want %s", link, node, iface, err, want)
		}
	}
	for node, want := range map[string]string{"fra": "fra ", "fra-host": "fra host", "router": "router ", "sto-nat2": "router sto-nat2"} {
		if machine, space, err := m.place(node); err != nil || machine+" "+space != want {
			t.Errorf("%s is at %s %s, %v; want %s", node, machine, space, err, want)
		}
	}
	for _, bad := range []string{"fra", "fra:lan", "mad-nat:wan", "nowhere:isp1"} {
		if _, _, err := m.cable(bad); err == nil {
			t.Errorf("%s is a cable", bad)
		}
	}
}

func TestProviders(t *testing.T) {
	t.Parallel()
	const list = ` Interface   Type      Source             Model    MAC
----------------------------------------------------------
 vnet4       network   vagrant-libvirt    virtio   52:54:00:ee:02:bb
 vnet5       network   guywire-sto-isp1   virtio   02:86:00:04:01:01
 vnet6       network   guywire-sto-isp2   virtio   02:86:00:05:01:01
`
	if mac, err := libvirtMAC(list, "guywire-sto-isp2"); err != nil || mac != "02:86:00:05:01:01" {
		t.Errorf("libvirt: %q, %v", mac, err)
	}
	if _, err := libvirtMAC(list, "guywire-sto"); err == nil {
		t.Error("libvirt: a part of a name is enough")
	}
	info := strings.Join([]string{`nic1="nat"`, `intnet2="guywire-sto-isp1"`, `nic3="intnet"`, `intnet3="guywire-sto-isp2"`, ""}, "\n")
	if n, err := virtualBoxAdapter(info, "guywire-sto-isp2"); err != nil || n != "3" {
		t.Errorf("VirtualBox: %q, %v", n, err)
	}
	if _, err := virtualBoxAdapter(info, "guywire-sto"); err == nil {
		t.Error("VirtualBox: a part of a name is enough")
	}
}
