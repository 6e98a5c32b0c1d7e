package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// square is four routers in a ring, with a dual-homed site at one corner.
const square = `
name: square
nodes:
  r1: {kind: router}
  r2: {kind: router}
  r3: {kind: router}
  r4: {kind: router}
  east: {kind: site, lan: 10.1.0.0/24, lan6: "fd86:0:0:1::/64", uplinks: [{to: r1}, {to: r2, mtu: 1400}]}
  west: {kind: site, lan: 10.2.0.0/24, uplinks: [{to: r3, address: 203.0.113.6/29}]}
links:
  - {ends: [r1, r2]}
  - {ends: [r2, r3]}
  - {ends: [r3, r4]}
  - {ends: [r4, r1], name: last}
`

func logOf(t testing.TB, l *Lab, node, process string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(nodeDir(l.Dir(), node), process+".log"))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestRoutes(t *testing.T) {
	l := start(t, parse(t, square))
	west := open(t, l, "west", 7000)
	for _, v6 := range []bool{false, true} {
		east := open(t, l, "east", 0)
		to := netip.AddrPortFrom(address(t, l, "west", "isp1", v6), 7000)
		from := exchange(east, west, to, "across")
		if want := address(t, l, "east", "isp1", v6); from.Addr() != want {
			t.Errorf("seen as %s, want the first uplink's %s", from, want)
		}
		west.send(from, "back")
		east.want("back")
		for _, router := range []string{"r1", "r2", "r3", "r4"} {
			exchange(open(t, l, router, 0), west, to, "from "+router)
		}
	}
	host, site := open(t, l, "east-host", 0), open(t, l, "east", 7001)
	for _, v6 := range []bool{false, true} {
		exchange(host, site, netip.AddrPortFrom(address(t, l, "east", "lan", v6), 7001), "lan")
		// The host's default route leads to the site.
		exchange(host, site, netip.AddrPortFrom(address(t, l, "east", "isp1", v6), 7001), "through")
	}
	for iface, mtu := range map[string]string{"isp1": "1500\n", "isp2": "1400\n"} {
		if got := run(t, l, "east", "read", "/sys/class/net/"+iface+"/mtu"); got != mtu {
			t.Errorf("the MTU of %s is %s", iface, got)
		}
	}
	for node, want := range map[string]string{"r1": "1\n", "east": "0\n", "east-host": "0\n"} {
		if got := run(t, l, node, "read", "/proc/sys/net/ipv4/ip_forward"); got != want {
			t.Errorf("forwarding of %s is %s", node, got)
		}
	}
}

// TestSideBySide checks what one lab must not see of another, or of the host.
func TestSideBySide(t *testing.T) {
	n := parse(t, square)
	one, two := start(t, n), start(t, n)
	to := netip.AddrPortFrom(address(t, one, "west", "isp1", false), 7000)
	var senders, receivers []*socket
	for _, l := range []*Lab{one, two} {
		senders, receivers = append(senders, open(t, l, "east", 7000)), append(receivers, open(t, l, "west", 7000))
	}
	for i := range senders {
		senders[i].send(to, fmt.Sprint("for lab ", i))
	}
	for i := range receivers {
		receivers[i].want(fmt.Sprint("for lab ", i))
	}
	if err := one.Cut(t.Context(), "west:isp1", ""); err != nil {
		t.Fatal(err)
	}
	exchange(senders[1], receivers[1], to, "not cut")
	if _, err := Up(t.Context(), n, Options{Name: one.Name()}); !errors.Is(err, ErrRunning) {
		t.Errorf("a second lab of the same name: %v, want ErrRunning", err)
	}
	if err := one.Close(); err != nil {
		t.Fatal(err)
	}
	exchange(senders[1], receivers[1], to, "still up")
}

const pair = `
nodes:
  r: {kind: router}
  a: {kind: host, uplinks: [{to: r, PROPS}]}
  b: {kind: host, uplinks: [{to: r}]}
`

func TestFaults(t *testing.T) {
	for medium, props := range map[string]string{"veth": "mtu: 1500", "wire": "wire: true"} {
		t.Run(medium, func(t *testing.T) {
			l := start(t, parse(t, strings.Replace(pair, "PROPS", props, 1)))
			ctx := t.Context()
			a, b := open(t, l, "a", 7000), open(t, l, "b", 7000)
			toA, toB := netip.AddrPortFrom(address(t, l, "a", "", false), 7000), netip.AddrPortFrom(address(t, l, "b", "", false), 7000)
			third := open(t, l, "r", 7000) // beyond the cut: what passes it is in order with what does not
			toR := netip.AddrPortFrom(address(t, l, "r", "to-b", false), 7000)
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			fault := func() string {
				t.Helper()
				st, err := l.Status(ctx)
				must(err)
				return strings.Join(st.Links[0].Faults, "; ")
			}
			works := func(text string) {
				t.Helper()
				exchange(a, b, toB, text+" there")
				exchange(b, a, toA, text+" back")
			}
			works("at first")

			must(l.Cut(ctx, "a:eth0", "a"))
			if got := fault(); got != "cut from a" {
				t.Errorf("status says %q", got)
			}
			a.send(toB, "cut")
			a.send(toR, "cut too")
			b.send(toA, "the other way")
			a.want("the other way")
			b.fence(third, toR)
			third.fence(b, toB)
			if got := run(t, l, "a", "read", "/sys/class/net/eth0/carrier"); got != "1\n" {
				t.Errorf("a silent cut changed the carrier to %q", got)
			}
			must(l.Cut(ctx, "a:eth0", ""))
			if got := fault(); got != "cut" {
				t.Errorf("status says %q", got)
			}
			must(l.Heal(ctx, "a:eth0"))
			works("healed")

			must(l.Carrier(ctx, "r:to-a", false)) // the same link by its other end
			eventually(t, "the loss of the carrier", func() bool { return run(t, l, "a", "read", "/sys/class/net/eth0/carrier") == "0\n" })
			if got := fault(); got != "no carrier" {
				t.Errorf("status says %q", got)
			}
			must(l.Heal(ctx, ""))
			works("plugged in")

			must(l.Partition(ctx, []string{"a"}, []string{"r", "b"}))
			if got := fault(); got != "cut" {
				t.Errorf("status says %q", got)
			}
			must(l.Carrier(ctx, "a:eth0", false))
			must(l.Heal(ctx, ""))
			works("united")

			must(l.Reboot(ctx, "r", time.Millisecond))
			works("rebooted")

			now, err := l.Readdress(ctx, "a:eth0")
			must(err)
			if now[0].Addr() == toA.Addr() {
				t.Errorf("the new address %s is the old one", now[0])
			}
			toA = netip.AddrPortFrom(now[0].Addr(), 7000)
			works("moved")
			elsewhere := netip.MustParsePrefix("203.0.113.10/29")
			now, err = l.Readdress(ctx, "a:eth0", elsewhere)
			must(err)
			toA = netip.AddrPortFrom(elsewhere.Addr(), 7000)
			if now[0] != elsewhere {
				t.Errorf("the new address is %s, want %s", now[0], elsewhere)
			}
			works("moved out of the subnet")

			err = l.Impair(ctx, "a:eth0", "", Properties{Loss: 1})
			if medium == "veth" {
				if !errors.Is(err, ErrNotWire) {
					t.Errorf("impairing a veth pair: %v, want ErrNotWire", err)
				}
				return
			}
			must(err)
			if got := fault(); got != "impaired: loss 100%" {
				t.Errorf("status says %q", got)
			}
			must(l.Impair(ctx, "a:eth0", "a", Properties{Delay: 30 * time.Millisecond}))
			must(l.Impair(ctx, "a:eth0", "r", Properties{Delay: 30 * time.Millisecond}))
			exchange(a, b, toB, "arp") // the neighbour entries may be gone
			began := time.Now()
			a.send(toB, "ping")
			b.send(b.want("ping"), "pong")
			a.want("pong")
			if rtt := time.Since(began); rtt < 60*time.Millisecond {
				t.Errorf("the round trip over twice 30 ms took %v", rtt)
			}
			must(l.Heal(ctx, "a:eth0"))
			must(l.Impair(ctx, "a:eth0", "a", Properties{BlackHole: 500}))
			a.send(toB, strings.Repeat("x", 600))
			a.send(toB, "small")
			b.want("small")
		})
	}
}

func TestRequestErrors(t *testing.T) {
	l := start(t, parse(t, square))
	ctx := t.Context()
	for name, tt := range map[string]struct {
		err  error
		kind error // that it wraps, or nil
		says string
	}{
		"no link":         {l.Cut(ctx, "nowhere", ""), ErrUnknown, "meshlab status"},
		"wrong end":       {l.Cut(ctx, "last", "east"), nil, "its ends are r4 and r1"},
		"no node":         {l.Kill(ctx, "nobody", "", 0), ErrUnknown, "meshlab status"},
		"no process":      {l.Kill(ctx, "east", "ghost", 0), ErrNotRunning, "meshlab status"},
		"reboot a site":   {l.Reboot(ctx, "east", 0), nil, "kill --all"},
		"reboot nothing":  {l.Reboot(ctx, "nobody", 0), ErrUnknown, ""},
		"reboot for ever": {l.Reboot(ctx, "r1", time.Hour), nil, "up to 10m"},
		"impair an MTU":   {l.Impair(ctx, "last", "", Properties{MTU: 1400}), ErrNotWire, "wire: true"},
		"no border":       {l.Partition(ctx, []string{"east"}, []string{"west"}), nil, "name the routers"},
		"two sides":       {l.Partition(ctx, []string{"r1"}, []string{"r1", "r2"}), nil, "two groups"},
		"part nobody":     {l.Partition(ctx, []string{"r9"}, []string{"r1"}), ErrUnknown, ""},
	} {
		if tt.err == nil || tt.kind != nil && !errors.Is(tt.err, tt.kind) || !strings.Contains(tt.err.Error(), tt.says) {
			t.Errorf("%s: %v, want %v saying %q", name, tt.err, tt.kind, tt.says)
		}
	}
	for name, addrs := range map[string][]netip.Prefix{
		"taken":    {netip.MustParsePrefix("203.0.113.5/29")},
		"foreign":  {netip.MustParsePrefix("198.18.3.6/30")},
		"no room":  {netip.MustParsePrefix("192.0.2.1/32")},
		"too wide": {netip.MustParsePrefix("10.0.0.1/4")},
	} {
		if _, err := l.Readdress(ctx, "east:isp1", addrs...); err == nil {
			t.Errorf("%s: %s was accepted", name, addrs)
		}
	}
	if _, err := l.Readdress(ctx, "last"); err == nil {
		t.Error("a link between routers was given other addresses")
	}
	if _, err := l.Start(ctx, "r1", "", nil); err == nil || !strings.Contains(err.Error(), "not a site") {
		t.Errorf("starting meshd on a router: %v", err)
	}
	if _, err := l.Start(ctx, "east", "", []string{"no-such-program"}); err == nil || !strings.Contains(err.Error(), "give its path") {
		t.Errorf("starting nothing: %v", err)
	}
	if _, err := l.Exec(ctx, "east", []string{"true", strings.Repeat("x", maxPacket)}, nil, nil, nil); err == nil {
		t.Error("an endless command line was accepted")
	}
}

func TestExec(t *testing.T) {
	l := start(t, parse(t, square))
	ctx := t.Context()

	var out bytes.Buffer
	code, err := l.Exec(ctx, "east", []string{"sh", "-c", "cat; hostname; echo oops >&2; exit 7"}, strings.NewReader("input\n"), &out, &out)
	if err != nil || code != 7 || out.String() != "input\neast\noops\n" {
		t.Errorf("code %d, %v, output %q", code, err, out.String())
	}
	if code, err = l.Exec(ctx, "east", []string{"sh", "-c", "kill -TERM $$"}, nil, nil, nil); err != nil || code != 143 {
		t.Errorf("killed by SIGTERM: code %d, %v, want 143", code, err)
	}

	// Each node has its own /run and its own name for itself, and knows the others.
	run(t, l, "east", "read", "/etc/hosts")
	if code, err = l.Exec(ctx, "east", []string{"sh", "-c", "echo x > /run/mine && grep -q 'west$' /etc/hosts"}, nil, nil, nil); err != nil || code != 0 {
		t.Errorf("write to /run: code %d, %v", code, err)
	}
	if code, err = l.Exec(ctx, "west", []string{"test", "-e", "/run/mine"}, nil, nil, nil); err != nil || code != 1 {
		t.Errorf("west sees the /run of east: code %d, %v", code, err)
	}
	if _, err := os.Stat("/run/mine"); err == nil {
		t.Error("the host sees the /run of east")
	}

	// A signal is passed on, and a client that leaves takes its command with it.
	signals := make(chan os.Signal, 1)
	pr, pw := io.Pipe()
	type result struct {
		code int
		err  error
	}
	ended := make(chan result, 1)
	go func() {
		code, err := l.ExecSignals(ctx, "east", helperArgv(t, "wait"), nil, pw, nil, signals)
		_ = pw.Close()
		ended <- result{code, err}
	}()
	first := make([]byte, len("waiting on east\n"))
	if _, err := io.ReadFull(pr, first); err != nil || string(first) != "waiting on east\n" {
		t.Fatalf("read %q, %v", first, err)
	}
	signals <- unix.SIGTERM
	if rest, _ := io.ReadAll(pr); string(rest) != "got terminated\n" {
		t.Errorf("behind the signal it says %q", rest)
	}
	if r := <-ended; r.err != nil || r.code != 0 {
		t.Errorf("behind the signal: code %d, %v", r.code, r.err)
	}

	short, cancel := context.WithCancel(ctx)
	pr, pw = io.Pipe()
	go func() {
		code, err := l.Exec(short, "east", []string{"sh", "-c", "echo $$; exec sleep 600"}, nil, pw, nil)
		ended <- result{code, err}
	}()
	pid := make([]byte, 16)
	n, err := pr.Read(pid)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if r := <-ended; !errors.Is(r.err, context.Canceled) {
		t.Errorf("cancelled: %v", r.err)
	}
	eventually(t, "the end of the abandoned command", func() bool {
		code, err := l.Exec(ctx, "east", []string{"test", "-e", "/proc/" + strings.TrimSpace(string(pid[:n]))}, nil, nil, nil)
		return err == nil && code == 1
	})
}

func TestProcesses(t *testing.T) {
	l := start(t, parse(t, square))
	ctx := t.Context()
	process := func() Process {
		t.Helper()
		st, err := l.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		n, _ := st.Node("east")
		if len(n.Processes) != 1 {
			t.Fatalf("east has the processes %v, want one", n.Processes)
		}
		return n.Processes[0]
	}
	pid, err := l.Start(ctx, "east", "idler", helperArgv(t, "wait"))
	if err != nil {
		t.Fatal(err)
	}
	if p := process(); p.PID != pid || !p.Running || p.Name != "idler" {
		t.Errorf("status says %+v, want idler running as %d", p, pid)
	}
	if _, err := l.Start(ctx, "east", "idler", helperArgv(t, "wait")); !errors.Is(err, ErrRunning) {
		t.Errorf("starting it twice: %v, want ErrRunning", err)
	}
	eventually(t, "its first words", func() bool { return strings.HasPrefix(logOf(t, l, "east", "idler"), "waiting on east") })
	if err := l.Kill(ctx, "east", "idler", unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its end", func() bool { return !process().Running })
	if p := process(); p.Exit != 0 || !strings.Contains(logOf(t, l, "east", "idler"), "got terminated") {
		t.Errorf("it ended with %d, log %q", p.Exit, logOf(t, l, "east", "idler"))
	}
	if _, err := l.Start(ctx, "east", "idler", helperArgv(t, "wait")); err != nil {
		t.Fatal(err)
	}
	if err := l.Kill(ctx, "east", "idler", 0); err != nil {
		t.Fatal(err)
	}
	if p := process(); p.Running || p.Exit != 137 {
		t.Errorf("behind SIGKILL status says %+v, want it ended with 137", p)
	}

	// What a process leaves behind lives on, until everything of the node is killed; other nodes are spared.
	orphan := strings.TrimSpace(run(t, l, "east", "orphan"))
	other, err := l.Start(ctx, "west", "idler", helperArgv(t, "wait"))
	if err != nil {
		t.Fatal(err)
	}
	alive := func(pid string) bool {
		code, err := l.Exec(ctx, "r1", []string{"test", "-e", "/proc/" + pid}, nil, nil, nil)
		return err == nil && code == 0
	}
	if !alive(orphan) {
		t.Fatal("the orphan ended by itself")
	}
	if err := l.KillAll(ctx, "east", 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the orphan's end", func() bool { return !alive(orphan) })
	st, err := l.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if west, _ := st.Node("west"); len(west.Processes) != 1 || !west.Processes[0].Running || west.Processes[0].PID != other {
		t.Errorf("west has %+v", west.Processes)
	}
}

// TestAgents starts a stand-in for meshd, found by its name, with the settings that the lab wrote.
func TestAgents(t *testing.T) {
	needNamespaces(t)
	bin := t.TempDir()
	exe, err := os.Executable()
	if err == nil {
		err = os.Symlink(exe, filepath.Join(bin, "meshd"))
	}
	if err != nil {
		t.Fatal(err)
	}
	n := parse(t, strings.Replace(square, "lan: 10.2.0.0/24,", "lan: 10.2.0.0/24, meshd: {dataplane: userspace, hint: 7},", 1))
	l, err := Up(t.Context(), n, Options{Name: uniqueName(t), Agents: true, Path: []string{bin}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}()
	for site, want := range map[string][]string{
		"east": {"--config", "name: east\n", "dataplane: auto\n", "- 10.1.0.0/24\n", "- fd86:0:0:1::/64\n", "\n700\n"},
		"west": {"name: west\n", "dataplane: userspace\n", "hint: 7\n", "- 10.2.0.0/24\n", "/west/state\n"},
	} {
		eventually(t, "the start of meshd on "+site, func() bool { return strings.HasSuffix(logOf(t, l, site, "meshd"), "\n700\n") })
		for _, w := range want {
			if got := logOf(t, l, site, "meshd"); !strings.Contains(got, w) {
				t.Errorf("meshd on %s says %q, want %q in it", site, got, w)
			}
		}
	}
	if err := l.Kill(t.Context(), "east", "", 0); err != nil {
		t.Error(err)
	}
	if _, err := Up(t.Context(), n, Options{Name: uniqueName(t), Agents: true, Path: nil}); err == nil || !strings.Contains(err.Error(), "meshd") {
		t.Errorf("without a meshd: %v", err)
	}
}

// TestAsUser runs all of this as a user without rights, in user namespaces.
func TestAsUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become somebody else; the other tests run as a user already")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	// Not below a directory that only root may enter.
	dir, err := os.MkdirTemp("/tmp", "lab-as-user")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "lab.test")
	if err := os.WriteFile(bin, data, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), bin, "-test.v", "-test.run", "^Test(Routes|SideBySide|Faults|Exec|Processes|Agents|NAT|NothingIsLeft|InterruptedBuild)$")
	cmd.Dir = "/tmp"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/tmp", "TMPDIR=/tmp"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("as a user: %v\n%s", err, out)
	}
	if strings.Contains(string(out), "does not let us make namespaces") {
		t.Skip("the kernel does not let users make namespaces")
	}
	if !strings.Contains(string(out), "--- PASS: TestNAT") {
		t.Errorf("as a user the tests did not run:\n%s", out)
	}
}

// TestDemo builds the demo network and checks that its delays are what its file says.
func TestDemo(t *testing.T) {
	n, err := Load("demo")
	if err != nil {
		t.Fatal(err)
	}
	l := start(t, n)
	for _, tt := range []struct {
		from, to string
		rtt      time.Duration
	}{
		{"fra", "lon", 5 * time.Millisecond},
		{"sto", "nyc", 84 * time.Millisecond},
		{"mad", "lon", 19 * time.Millisecond},
		{"syd", "fra", 92 * time.Millisecond},
	} {
		a, b := open(t, l, tt.from, 7000), open(t, l, tt.to, 7000)
		exchange(a, b, netip.AddrPortFrom(address(t, l, tt.to, "", false), 7000), "first")
		began := time.Now()
		a.send(netip.AddrPortFrom(address(t, l, tt.to, "", false), 7000), "ping")
		for {
			p := <-b.mail
			if p.text == "ping" {
				b.send(p.from, "pong")
				break
			}
		}
		a.want("pong")
		if got := time.Since(began); got < tt.rtt {
			t.Errorf("%s to %s and back took %v, the wires alone take %v", tt.from, tt.to, got, tt.rtt)
		}
		// The next pair uses the same port.
		_ = a.in.(io.Closer).Close()
		_ = b.in.(io.Closer).Close()
		for range a.acks {
		}
		for range b.acks {
		}
	}
}
