package lab

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The test binary is also the program that runs inside the labs: `lab.test lab-helper VERB …`.
const helperVerb = "lab-helper"

func TestMain(m *testing.M) {
	// Or each process under the race detector takes a second to end.
	_ = os.Setenv("GORACE", "atexit_sleep_ms=0")
	Init()
	if filepath.Base(os.Args[0]) == "meshd" {
		if err := fakeMeshd(os.Args); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) > 2 && os.Args[1] == helperVerb {
		if err := helper(os.Args[2], os.Args[3:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// fakeMeshd says how it was started, opens the agent's socket as the real one does, and waits to be killed.
func fakeMeshd(args []string) error {
	config, err := os.ReadFile(args[2])
	if err != nil {
		return err
	}
	state := ""
	for line := range strings.Lines(string(config)) {
		if rest, ok := strings.CutPrefix(line, "state: "); ok {
			state = strings.TrimSpace(rest)
		}
	}
	info, err := os.Stat(state)
	if err != nil {
		return err
	}
	fmt.Printf("%s\n%s%o\n", strings.Join(args, " "), config, info.Mode().Perm())
	if err := os.MkdirAll(filepath.Dir(agentSocket), 0o755); err != nil {
		return err
	}
	l, err := net.Listen("unix", agentSocket)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		c.Close()
	}
}

// helperArgv is the command line of a helper.
func helperArgv(t testing.TB, args ...string) []string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return append([]string{exe, helperVerb}, args...)
}

func helper(verb string, args []string) error {
	switch verb {
	case "udp": // ADDR:PORT: a socket driven by lines
		return udpSocket(args[0])
	case "serve": // ADDR:PORT: accepts TCP connections and says hello
		l, err := net.Listen("tcp", args[0])
		if err != nil {
			return err
		}
		fmt.Println("ok")
		for {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			_, _ = io.WriteString(c, "hello\n")
			_ = c.Close()
		}
	case "dial": // ADDR:PORT: reads what a TCP server says
		c, err := net.DialTimeout("tcp", args[0], 10*time.Second)
		if err != nil {
			return err
		}
		_, err = io.Copy(os.Stdout, c)
		return err
	case "refused": // ADDR:PORT: says whether a TCP server answers at all
		c, err := net.DialTimeout("tcp", args[0], time.Second)
		if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
			fmt.Println("no answer")
			return nil
		}
		if err == nil {
			fmt.Println("an answer")
			return c.Close()
		}
		return err
	case "read": // FILE
		data, err := os.ReadFile(args[0])
		if err != nil {
			return err
		}
		_, err = os.Stdout.Write(data)
		return err
	case "conntrack": // PORT: counts the flows with that original source port
		flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
		if err != nil {
			return err
		}
		n := 0
		for _, f := range flows {
			if fmt.Sprint(f.Forward.SrcPort) == args[0] {
				n++
			}
		}
		fmt.Println(n)
		return nil
	case "wait": // until a signal; says what it sees first
		c := make(chan os.Signal, 1)
		signal.Notify(c, unix.SIGTERM, unix.SIGINT)
		host, _ := os.Hostname()
		fmt.Println("waiting on", host)
		fmt.Println("got", <-c)
		return nil
	case "sync": // writes to its disk again and again, and says what came of it
		f, err := os.CreateTemp("", "sync")
		if err != nil {
			return err
		}
		if err := os.Remove(f.Name()); err != nil {
			return err
		}
		for range time.Tick(5 * time.Millisecond) {
			errno, _ := errors.AsType[unix.Errno](f.Sync())
			fmt.Println(cmp.Or(unix.ErrnoName(errno), "ok"))
		}
		return nil
	case "orphan": // leaves a process that nobody waits for
		exe, err := os.Executable()
		if err != nil {
			return err
		}
		p, err := os.StartProcess(exe, []string{exe, helperVerb, "wait"}, &os.ProcAttr{Files: []*os.File{nil, nil, nil}})
		if err != nil {
			return err
		}
		fmt.Println(p.Pid)
		return nil
	case "hold": // NAME detach|attached: starts a lab, says so, and hangs
		n, err := Load("two-sites")
		if err != nil {
			return err
		}
		if _, err := Up(context.Background(), n, Options{Name: args[0], Detach: args[1] == "detach"}); err != nil {
			return err
		}
		fmt.Println("up")
		time.Sleep(10 * time.Minute)
		return errors.New("nobody has ended this process")
	}
	return fmt.Errorf("no helper %q", verb)
}

// udpSocket prints what it receives, as "from ADDR TEXT", and sends what it is told to, as "ADDR TEXT".
func udpSocket(local string) error {
	c, err := net.ListenPacket("udp", local)
	if err != nil {
		return err
	}
	fmt.Println("ok")
	go func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				continue // an ICMP error about something sent before
			}
			ap := from.(*net.UDPAddr).AddrPort()
			fmt.Println("from", netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), string(buf[:n]))
		}
	}()
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		to, text, _ := strings.Cut(in.Text(), " ")
		dst, err := netip.ParseAddrPort(to)
		if err != nil {
			return err
		}
		// An error about an earlier packet, such as port unreachable, is reported once by the next call.
		for range 2 {
			if _, err = c.WriteTo([]byte(text), net.UDPAddrFromAddrPort(dst)); err == nil {
				break
			}
		}
		if err != nil {
			fmt.Println("error", err)
		} else {
			fmt.Println("ok")
		}
	}
	return in.Err()
}

// socket is a UDP socket on a node.
type socket struct {
	t     testing.TB
	node  string
	in    io.Writer
	acks  chan string
	mail  chan packet
	local uint16
}

type packet struct {
	from netip.AddrPort
	text string
}

// patience is how long a test waits for what must happen. It is never the measure of anything.
const patience = 20 * time.Second

// open opens a UDP socket on the node; port 0 is any.
func open(t testing.TB, l *Lab, node string, port uint16) *socket {
	t.Helper()
	s := &socket{t: t, node: node, acks: make(chan string, 16), mail: make(chan packet, 1024), local: port}
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	s.in = inW
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, err := l.Exec(ctx, node, helperArgv(t, "udp", fmt.Sprintf(":%d", port)), inR, outW, os.Stderr)
		_ = outW.CloseWithError(err)
	}()
	go func() {
		lines := bufio.NewScanner(outR)
		for lines.Scan() {
			kind, rest, _ := strings.Cut(lines.Text(), " ")
			if kind != "from" {
				s.acks <- lines.Text()
				continue
			}
			from, text, _ := strings.Cut(rest, " ")
			s.mail <- packet{netip.MustParseAddrPort(from), text}
		}
		close(s.acks)
	}()
	t.Cleanup(func() {
		cancel()
		_ = inW.Close()
		_ = outR.Close()
		<-done
	})
	if ack := s.ack(); ack != "ok" {
		t.Fatalf("open a socket on %s: %q", node, ack)
	}
	return s
}

func (s *socket) ack() string {
	s.t.Helper()
	select {
	case a := <-s.acks:
		return a
	case <-time.After(patience):
		s.t.Fatalf("%s does not answer", s.node)
		return ""
	}
}

// trySend sends and returns the error's text.
func (s *socket) trySend(to netip.AddrPort, text string) string {
	s.t.Helper()
	if _, err := fmt.Fprintln(s.in, to, text); err != nil {
		s.t.Fatal(err)
	}
	return s.ack()
}

func (s *socket) send(to netip.AddrPort, text string) {
	s.t.Helper()
	if a := s.trySend(to, text); a != "ok" {
		s.t.Fatalf("%s: send to %s: %s", s.node, to, a)
	}
}

// want receives a packet, which must have the text, and returns its sender.
func (s *socket) want(text string) netip.AddrPort {
	s.t.Helper()
	for timeout := time.After(patience); ; {
		select {
		case p := <-s.mail:
			if strings.Contains(p.text, "#") {
				continue // a late one of exchange
			}
			if p.text != text {
				s.t.Fatalf("%s: got %q from %s, want %q", s.node, p.text, p.from, text)
			}
			return p.from
		case <-timeout:
			s.t.Fatalf("%s: %q did not arrive", s.node, text)
		}
	}
}

// fence proves that nothing else is on its way to the socket: what s sends to it arrives first.
func (s *socket) fence(to *socket, dst netip.AddrPort) {
	s.t.Helper()
	s.send(dst, "fence")
	to.want("fence")
}

// answered is exchange, and then a fence the other way. It is made again while a box that was just switched on may still
// forget: the kernel drops masqueraded flows of a link that was down a moment later.
func answered(from, to *socket, dst netip.AddrPort, text string) {
	from.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		to.send(exchange(from, to, dst, text), "fence")
		select {
		case p := <-from.mail:
			if p.text != "fence" {
				from.t.Fatalf("%s got %q", from.node, p.text)
			}
			return
		case <-time.After(time.Second):
		}
	}
	from.t.Fatalf("%s to %s: no answer arrives", from.node, to.node)
}

// exchange sends to the other socket until that gets it, and returns where it came from.
func exchange(from, to *socket, dst netip.AddrPort, text string) netip.AddrPort {
	from.t.Helper()
	deadline := time.After(patience)
	for i := 0; ; i++ {
		tagged := fmt.Sprintf("%s#%d", text, i)
		_ = from.trySend(dst, tagged) // unreachable at first, perhaps
		for again := time.After(200 * time.Millisecond); again != nil; {
			select {
			case p := <-to.mail:
				if strings.HasPrefix(p.text, text+"#") {
					return p.from
				}
			case <-again:
				again = nil
			case <-deadline:
				from.t.Fatalf("%s to %s at %s: %q did not arrive", from.node, to.node, dst, text)
			}
		}
	}
}

// start brings a lab up for the test.
func start(t testing.TB, n *Network) *Lab {
	t.Helper()
	needNamespaces(t)
	if needsTAP(n) {
		needTAP(t)
	}
	l, err := Up(t.Context(), n, Options{Name: uniqueName(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

var labCount int

// uniqueName names a lab of this run of the tests.
func uniqueName(testing.TB) string {
	labCount++
	return fmt.Sprintf("test-%d-%d", os.Getpid(), labCount)
}

func needNamespaces(t testing.TB) {
	t.Helper()
	cmd := isolation()
	p, err := os.StartProcess("/proc/self/exe", []string{"lab.test", helperVerb, "read", "/dev/null"}, &os.ProcAttr{Sys: cmd, Files: []*os.File{nil, nil, nil}})
	if err != nil {
		t.Skipf("the kernel does not let us make namespaces: %v", err)
	}
	if _, err := p.Wait(); err != nil {
		t.Fatal(err)
	}
}

func needTAP(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("wires need a /dev/net/tun that we may open: %v", err)
	}
	_ = f.Close()
}

func needsTAP(n *Network) bool {
	for _, node := range n.Nodes {
		for _, u := range node.Uplinks {
			if u.Properties.NeedsWire() {
				return true
			}
		}
	}
	for _, l := range n.Links {
		if l.Properties.NeedsWire() {
			return true
		}
	}
	return false
}

// run runs a helper on the node and returns what it prints.
func run(t testing.TB, l *Lab, node string, args ...string) string {
	t.Helper()
	var out, errOut strings.Builder
	code, err := l.Exec(t.Context(), node, helperArgv(t, args...), nil, &out, &errOut)
	if err != nil || code != 0 {
		t.Fatalf("run %v on %s: code %d, %v, %s", args, node, code, err, errOut.String())
	}
	return out.String()
}

// eventually waits until the condition holds.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s does not happen", what)
		}
	}
}

// address returns an address of the node, on the interface or on any but lan.
func address(t testing.TB, l *Lab, node, iface string, v6 bool) netip.Addr {
	t.Helper()
	st, err := l.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	n, _ := st.Node(node)
	a, ok := n.Addr(iface, v6)
	if !ok {
		t.Fatalf("%s has no such address", node)
	}
	return a
}

func parse(t testing.TB, text string) *Network {
	t.Helper()
	n, err := Parse(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return n
}
