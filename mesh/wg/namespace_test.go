package wg

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"guywire/mesh"
	"guywire/mesh/dataplane"
	"guywire/mesh/kernel"
)

// Each site of a test is a process that holds a network and a mount namespace
// with an empty /run; agents and data planes run in there as processes of
// their own. All of it happens below one more namespace, into which TestMain
// puts the test itself. The test binary is every one of these programs.
const inside = "GUYWIRE_TEST_INSIDE"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		if program, ok := programs[os.Args[1]]; ok {
			if err := program(os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	if os.Getenv(inside) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	err := cmd.Run()
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) {
		os.Exit(m.Run()) // tests that need namespaces say so and skip
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

const controlSocket = "/run/guywire/dataplane.sock"

var programs = map[string]func(args []string) error{
	"hold": func([]string) error {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("make mounts private: %w", err)
		}
		if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("mount /run: %w", err)
		}
		fmt.Println("ready")
		_, err := io.Copy(io.Discard, os.Stdin) // until the test ends
		return err
	},
	"run-dataplane": func([]string) error {
		return dataplane.Run(context.Background(), dataplane.Config{Socket: controlSocket, Detach: true})
	},
	// run-agent MODE SEED: answers asks on standard input
	"run-agent": runAgent,
}

// privateKey is the same in the test and in its agents.
func privateKey(seed int, epoch mesh.Epoch) wgtypes.Key {
	k := wgtypes.Key{0: byte(seed), 1: byte(epoch), 31: 0x40}
	k[0] &= 248
	return k
}

func publicKey(seed int, epoch mesh.Epoch) mesh.WireGuardKey {
	return mesh.WireGuardKey(privateKey(seed, epoch).PublicKey())
}

// A site is a pair of namespaces with an agent in it.
type site struct {
	t     testing.TB
	pid   int
	seed  int // of its keys
	nl    *netlink.Handle
	agent *agent
}

// newSite makes a site whose agent makes devices in the given mode.
func newSite(t testing.TB, mode Mode, seed int) *site {
	t.Helper()
	if os.Getenv(inside) == "" {
		t.Skip("needs to make network and mount namespaces")
	}
	if f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err != nil {
		t.Skip("needs TUN devices: ", err)
	} else {
		f.Close()
	}
	cmd := exec.Command("/proc/self/exe", "hold")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS}
	stdin, err := cmd.StdinPipe()
	must(t, err)
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		stdin.Close()
		cmd.Wait()
	})
	_, err = bufio.NewReader(stdout).ReadString('\n')
	must(t, err)

	s := &site{t: t, pid: cmd.Process.Pid, seed: seed}
	ns, err := netns.GetFromPid(s.pid)
	must(t, err)
	defer ns.Close()
	s.nl, err = netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	must(t, err)
	t.Cleanup(s.nl.Close)
	must(t, s.nl.LinkSetUp(s.link("lo")))
	t.Cleanup(func() {
		err := s.dataplane().Shutdown(context.Background(), true)
		if err != nil && !errors.Is(err, dataplane.ErrNotRunning) {
			t.Error(err)
		}
	})
	s.startAgent(mode)
	t.Cleanup(s.killAgent)
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// path is where a file of the site's /run is for the test.
func (s *site) path(p string) string { return fmt.Sprintf("/proc/%d/root%s", s.pid, p) }

func (s *site) dataplane() dataplane.Client { return dataplane.Client{Socket: s.path(controlSocket)} }

// do runs f in the site's network namespace, start a program in all its
// namespaces: on a thread that is thrown away afterwards.
func (s *site) do(f func() error) {
	s.t.Helper()
	must(s.t, s.enter(f, "net"))
}

func (s *site) enter(f func() error, namespaces ...string) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return err
			}
			for _, name := range namespaces {
				fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/%s", s.pid, name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
				if err != nil {
					return err
				}
				err = unix.Setns(fd, 0)
				unix.Close(fd)
				if err != nil {
					return fmt.Errorf("enter %s: %w", name, err)
				}
			}
			return f()
		}()
	}()
	return <-done
}

func (s *site) link(name string) netlink.Link {
	s.t.Helper()
	l, err := s.nl.LinkByName(name)
	must(s.t, err)
	return l
}

func (s *site) hasLink(name string) bool {
	_, err := s.nl.LinkByName(name)
	return err == nil
}

func (s *site) addr(device, prefix string) {
	s.t.Helper()
	a, err := netlink.ParseAddr(prefix)
	must(s.t, err)
	must(s.t, s.nl.AddrReplace(s.link(device), a))
}

func (s *site) dropAddr(device, prefix string) {
	s.t.Helper()
	a, err := netlink.ParseAddr(prefix)
	must(s.t, err)
	must(s.t, s.nl.AddrDel(s.link(device), a))
}

func (s *site) route(device, prefix string, table int) {
	s.t.Helper()
	dst, err := netlink.ParseIPNet(prefix)
	must(s.t, err)
	must(s.t, s.nl.RouteReplace(&netlink.Route{LinkIndex: s.link(device).Attrs().Index, Dst: dst, Table: table, Scope: netlink.SCOPE_LINK}))
}

// cable joins two sites by a veth pair of that name at both.
func cable(a, b *site, name, addrA, addrB string) {
	a.t.Helper()
	must(a.t, a.nl.LinkAdd(&netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: name},
		PeerName:      name,
		PeerNamespace: netlink.NsPid(b.pid),
	}))
	for _, end := range []struct {
		s    *site
		addr string
	}{{a, addrA}, {b, addrB}} {
		end.s.addr(name, end.addr)
		must(a.t, end.s.nl.LinkSetUp(end.s.link(name)))
	}
}

const device = "gw-test"

// tunnelTo is the tunnel at s towards peer, whose underlay address is to.
func (s *site) tunnelTo(peer *site, to string) kernel.Tunnel {
	return kernel.Tunnel{
		Name:       device,
		Alias:      "guywire test 1",
		Epoch:      1,
		PublicKey:  publicKey(s.seed, 1),
		ListenPort: uint16(51800 + s.seed),
		MTU:        1400,
		LinkLocal:  s.local(),
		Peer:       publicKey(peer.seed, 1),
		Endpoint:   netip.AddrPortFrom(netip.MustParseAddr(to), uint16(51800+peer.seed)),
		Keepalive:  25,
	}
}

func (s *site) local() netip.Addr { return netip.MustParseAddr(fmt.Sprintf("fe80::%d", s.seed)) }

// overlay gives the site 10.0.0.SEED and a route to its peer.
func (s *site) overlay(peer *site) {
	s.t.Helper()
	s.addr("lo", fmt.Sprintf("10.0.0.%d/32", s.seed))
	s.route(device, fmt.Sprintf("10.0.0.%d/32", peer.seed), unix.RT_TABLE_MAIN)
}

// pair makes two sites with a cable, a tunnel and overlay addresses.
func pair(t testing.TB, mode Mode) (a, b *site) {
	t.Helper()
	a, b = newSite(t, mode, 8), newSite(t, mode, 16)
	cable(a, b, "up0", "198.18.0.1/24", "198.18.0.2/24")
	a.create(a.tunnelTo(b, "198.18.0.2"))
	b.create(b.tunnelTo(a, "198.18.0.1"))
	a.overlay(b)
	b.overlay(a)
	return a, b
}

// sockets opens a UDP socket at each site: to sends to from.
func sockets(a, b *site, network, addrA, addrB, port string) (from, to *net.UDPConn) {
	a.t.Helper()
	b.do(func() error {
		local, err := udpAddr(addrB, port)
		if err == nil {
			to, err = net.ListenUDP(network, local)
		}
		return err
	})
	a.do(func() error {
		remote, err := udpAddr(addrB, port)
		if err != nil {
			return err
		}
		local, err := udpAddr(addrA, "0")
		if err == nil {
			from, err = net.DialUDP(network, local, remote)
		}
		return err
	})
	return from, to
}

// udpAddr gives an address with the number of its device in the thread's
// namespace; package net would remember that of another one.
func udpAddr(addr, port string) (*net.UDPAddr, error) {
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return nil, err
	}
	if a.Zone() != "" {
		link, err := netlink.LinkByName(a.Zone())
		if err != nil {
			return nil, err
		}
		a = a.WithZone(strconv.Itoa(link.Attrs().Index))
	}
	return net.ResolveUDPAddr("udp", net.JoinHostPort(a.String(), port))
}

// sees waits until a datagram of a over its tunnel has reached b.
func sees(a, b *site, network, addrA, addrB string) {
	a.t.Helper()
	from, to := sockets(a, b, network, addrA, addrB, "7000")
	defer from.Close()
	defer to.Close()
	buf := make([]byte, 100)
	eventually(a.t, "a datagram from "+addrA+" reaches "+addrB, func() bool {
		from.Write([]byte("hello"))
		to.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		n, err := to.Read(buf)
		return err == nil && string(buf[:n]) == "hello"
	})
}

func (s *site) overlayAddr() string { return fmt.Sprintf("10.0.0.%d", s.seed) }

func connected(a, b *site) {
	a.t.Helper()
	sees(a, b, "udp4", a.overlayAddr(), b.overlayAddr())
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(60 * time.Second)
	for !cond() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("not within 60 s: %s", what)
		}
	}
}
