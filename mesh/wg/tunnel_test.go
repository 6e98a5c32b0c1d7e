package wg

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"guywire/mesh/kernel"
)

func diff(t testing.TB, got, want any) {
	t.Helper()
	if d := cmp.Diff(want, got, cmp.Comparer(func(x, y netip.Addr) bool { return x == y }), cmp.Comparer(func(x, y netip.AddrPort) bool { return x == y })); d != "" {
		t.Errorf("- want, + got:\n%s", d)
	}
}

func TestTunnel(t *testing.T) {
	for _, mode := range []Mode{Userspace, Kernel} {
		t.Run(string(mode), func(t *testing.T) {
			a, b := pair(t, mode)
			connected(a, b)
			sees(b, a, "udp6", b.local().String()+"%"+device, a.local().String()+"%"+device)
			diff(t, a.observe(), []kernel.Tunnel{a.tunnelTo(b, "198.18.0.2")})
			diff(t, b.observe(), []kernel.Tunnel{b.tunnelTo(a, "198.18.0.1")})

			s := a.call(ask{Call: "stats"}).Stats[device]
			if s.Sent == 0 || s.Received == 0 || s.LastHandshake.IsZero() || s.Endpoint != a.tunnelTo(b, "198.18.0.2").Endpoint {
				t.Errorf("stats %+v", s)
			}
			addrs, err := a.nl.AddrList(a.link(device), netlink.FAMILY_V6)
			must(t, err)
			if len(addrs) != 1 || addrs[0].IP.String() != a.local().String() || addrs[0].Flags&unix.IFA_F_TENTATIVE != 0 {
				t.Errorf("addresses %v", addrs)
			}
			a.do(func() error {
				for _, s := range sysctls {
					got, err := os.ReadFile("/proc/sys/" + fmt.Sprintf(s.path, device))
					if err != nil || strings.TrimSpace(string(got)) != s.value {
						t.Errorf("%s is %q, %v", s.path, got, err)
					}
				}
				return nil
			})
			// What is true already stays as it is.
			a.create(a.tunnelTo(b, "198.18.0.2"))
			a.call(ask{Call: "update", Tunnel: a.tunnelTo(b, "198.18.0.2")})
			diff(t, a.observe(), []kernel.Tunnel{a.tunnelTo(b, "198.18.0.2")})
			a.call(ask{Call: "delete", Tunnel: kernel.Tunnel{Name: device}})
			a.call(ask{Call: "delete", Tunnel: kernel.Tunnel{Name: device}})
			if a.hasLink(device) || len(a.observe()) != 0 {
				t.Error("left after delete")
			}
		})
	}
}

func TestAuto(t *testing.T) {
	s := newSite(t, Auto, 8)
	maker := s.call(ask{Call: "observe"}).Maker
	err := s.nl.LinkAdd(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: "wg0"}})
	if want := map[bool]Mode{true: Kernel, false: Userspace}[err == nil]; maker != want {
		t.Errorf("chose %s; the kernel says %v", maker, err)
	}
	if s.hasLink(probeName) {
		t.Error("left the probe")
	}
}

// flow sends a datagram every millisecond from a to b while f runs, and returns
// how many were sent and how many of them arrived.
func flow(a, b *site, f func()) (sent, arrived int) {
	a.t.Helper()
	from, to := sockets(a, b, "udp4", a.overlayAddr(), b.overlayAddr(), "7001")
	defer from.Close()
	defer to.Close()
	// What arrives is taken at once: no system's limit of a socket's buffer is
	// known to hold all of it.
	arrivals := make(chan int)
	go func() {
		seen, buf := make(map[uint32]bool), make([]byte, 100)
		for {
			n, err := to.Read(buf)
			if err != nil {
				arrivals <- len(seen)
				return
			}
			seen[binary.BigEndian.Uint32(buf[:n])] = true
		}
	}()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			if _, err := from.Write(binary.BigEndian.AppendUint32(nil, uint32(sent))); err == nil {
				sent++
			}
		}
	}()
	f()
	close(stop)
	<-stopped
	must(a.t, to.SetReadDeadline(time.Now().Add(2*time.Second))) // what is on its way arrives
	return sent, <-arrivals
}

// TestAgentRestartLosesNothing: an agent that was killed finds its tunnels,
// takes them as they are, and no packet has noticed.
func TestAgentRestartLosesNothing(t *testing.T) {
	for _, mode := range []Mode{Userspace, Kernel} {
		t.Run(string(mode), func(t *testing.T) {
			a, b := pair(t, mode)
			connected(a, b)
			before, index := a.observe(), a.link(device).Attrs().Index
			sent, arrived := flow(a, b, func() {
				for range 3 {
					for _, s := range []*site{a, b} {
						s.killAgent()
						s.startAgent(mode)
						s.observe()
					}
					a.create(a.tunnelTo(b, "198.18.0.2"))
				}
			})
			if sent == 0 || arrived != sent {
				t.Errorf("%d sent, %d arrived", sent, arrived)
			}
			diff(t, a.observe(), before)
			if got := a.link(device).Attrs().Index; got != index {
				t.Errorf("device %d has become device %d", index, got)
			}
		})
	}
}

func (s *site) dataplanePID() int {
	s.t.Helper()
	conn, err := net.Dial("unix", s.path(controlSocket))
	must(s.t, err)
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	must(s.t, err)
	var cred *unix.Ucred
	var credErr error
	must(s.t, raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}))
	must(s.t, credErr)
	return int(cred.Pid)
}

func TestDataplaneKilled(t *testing.T) {
	a, b := pair(t, Userspace)
	connected(a, b)
	must(t, unix.Kill(a.dataplanePID(), unix.SIGKILL))
	eventually(t, "the device goes with its process", func() bool { return !a.hasLink(device) })
	if got := a.observe(); len(got) != 0 {
		t.Errorf("observed %v", got)
	}
	a.create(a.tunnelTo(b, "198.18.0.2"))
	a.route(device, b.overlayAddr()+"/32", unix.RT_TABLE_MAIN)
	connected(a, b)
}

func TestDataplaneTerminated(t *testing.T) {
	a, _ := pair(t, Userspace)
	socket := a.path("/run/wireguard/" + device + ".sock")
	info, err := os.Stat(socket)
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("UAPI socket has mode %v", info.Mode())
	}
	must(t, unix.Kill(a.dataplanePID(), unix.SIGTERM))
	eventually(t, "nothing is left", func() bool {
		_, err1 := os.Lstat(socket)
		_, err2 := os.Lstat(a.path(controlSocket))
		return !a.hasLink(device) && os.IsNotExist(err1) && os.IsNotExist(err2)
	})
}

func TestDataplaneHangs(t *testing.T) {
	a, b := pair(t, Userspace)
	pid := a.dataplanePID()
	must(t, unix.Kill(pid, unix.SIGSTOP))
	t.Cleanup(func() { unix.Kill(pid, unix.SIGCONT) })
	eventually(t, "all threads have stopped", func() bool {
		stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		must(t, err)
		for _, file := range stats {
			stat, err := os.ReadFile(file)
			if err != nil || !strings.Contains(string(stat), ") T ") {
				return false
			}
		}
		return len(stats) > 0
	})
	for range 2 { // the second finds the first still stuck
		if got := a.ask(ask{Call: "observe", Limit: 50 * time.Millisecond}); !got.Stuck {
			t.Errorf("observe: %+v", got)
		}
	}
	must(t, unix.Kill(pid, unix.SIGCONT))
	diff(t, a.observe(), []kernel.Tunnel{a.tunnelTo(b, "198.18.0.2")})
}

func TestMarkSteers(t *testing.T) {
	a, b := newSite(t, Auto, 8), newSite(t, Auto, 16)
	cable(a, b, "up0", "198.18.0.1/24", "198.18.0.2/24")
	cable(a, b, "up1", "198.18.1.1/24", "198.18.1.2/24")
	b.addr("lo", "203.0.113.2/32")
	for slot, up := range []string{"up0", "up1"} {
		a.route(up, "0.0.0.0/0", 8600+slot)
		rule := netlink.NewRule()
		rule.Priority, rule.Mark, rule.Mask, rule.Table, rule.Family = 8600+slot, uint32(0x8600+slot), new(uint32(0xffff)), 8600+slot, unix.AF_INET
		must(t, a.nl.RuleAdd(rule))
	}
	want := a.tunnelTo(b, "203.0.113.2")
	back := b.tunnelTo(a, "198.18.0.1")
	back.Endpoint, back.Keepalive = netip.AddrPort{}, 0 // learnt from a's packets
	b.create(back)
	for slot, up := range []string{"up0", "up1", "up0"} {
		want.Mark = uint32(0x8600 + slot%2)
		if slot == 0 {
			a.create(want)
			a.overlay(b)
			b.overlay(a)
		} else {
			a.call(ask{Call: "update", Tunnel: want})
		}
		diff(t, a.observe(), []kernel.Tunnel{want})
		other := map[string]string{"up0": "up1", "up1": "up0"}[up]
		connected(a, b)
		before := a.link(other).Attrs().Statistics.TxBytes
		const n, size = 100, 1000
		if arrived := burst(a, b, n, size); arrived != n {
			t.Errorf("with mark %#x, %d of %d datagrams arrived", want.Mark, arrived, n)
		}
		// What else there may be is a handful of neighbour discovery.
		if got := a.link(other).Attrs().Statistics.TxBytes - before; got > n*size/10 {
			t.Errorf("with mark %#x, %s sent %d bytes", want.Mark, other, got)
		}
	}
}

// burst sends n datagrams from a to b and returns how many arrived.
func burst(a, b *site, n, size int) (arrived int) {
	a.t.Helper()
	from, to := sockets(a, b, "udp4", a.overlayAddr(), b.overlayAddr(), "7002")
	defer from.Close()
	defer to.Close()
	must(a.t, to.SetReadBuffer(4<<20))
	buf := make([]byte, size)
	for range n {
		if _, err := from.Write(buf); err != nil {
			a.t.Fatal(err)
		}
	}
	for arrived < n {
		to.SetReadDeadline(time.Now().Add(2 * time.Second))
		if _, err := to.Read(buf); err != nil {
			break
		}
		arrived++
	}
	return arrived
}

func TestRoaming(t *testing.T) {
	a, b := pair(t, Auto)
	connected(a, b)
	b.addr("up0", "198.18.0.3/24")
	b.dropAddr("up0", "198.18.0.2/24")
	b.addr("up0", "198.18.0.3/24") // dropping the first address drops the others of its prefix
	want := a.tunnelTo(b, "198.18.0.2")
	moved := want
	moved.Endpoint = netip.MustParseAddrPort("198.18.0.3:51816")
	connected(b, a)
	eventually(t, "the new endpoint is seen", func() bool { return slices.Contains(a.observe(), moved) })
	if got := a.call(ask{Call: "stats"}).Stats[device].Endpoint; got != moved.Endpoint {
		t.Errorf("stats say %s", got)
	}
	// An update for another reason leaves the endpoint where the peer is.
	want.MTU, moved.MTU = 1380, 1380
	a.call(ask{Call: "update", Tunnel: want})
	diff(t, a.observe(), []kernel.Tunnel{moved})
	// A new alias says that the endpoint is to be set.
	want.Alias, want.ListenPort = "guywire test 2", 51999
	must(t, b.nl.LinkSetDown(b.link("up0")))
	a.call(ask{Call: "update", Tunnel: want, Reseat: true})
	diff(t, a.observe(), []kernel.Tunnel{want})
}

func TestPeerReplaced(t *testing.T) {
	a, b := pair(t, Auto)
	connected(a, b)
	next := a.tunnelTo(b, "198.18.0.2")
	next.Peer = publicKey(24, 1)
	a.call(ask{Call: "update", Tunnel: next})
	diff(t, a.observe(), []kernel.Tunnel{next})
	before := b.call(ask{Call: "stats"}).Stats[device].Received
	if arrived := burst(a, b, 10, 100); arrived != 0 {
		t.Errorf("%d datagrams reached the old peer", arrived)
	}
	if after := b.call(ask{Call: "stats"}).Stats[device].Received; after != before {
		t.Errorf("old peer counted %d bytes, then %d", before, after)
	}
}

func TestDeleteUnderTraffic(t *testing.T) {
	a, b := pair(t, Auto)
	connected(a, b)
	flow(a, b, func() {
		for range 5 {
			b.call(ask{Call: "delete", Tunnel: kernel.Tunnel{Name: device}})
			if b.hasLink(device) {
				t.Error("there after delete")
			}
			b.create(b.tunnelTo(a, "198.18.0.1"))
		}
	})
	b.overlay(a)
	connected(b, a)
}

func TestPortInUse(t *testing.T) {
	s := newSite(t, Auto, 8)
	peer := &site{seed: 16}
	want := s.tunnelTo(peer, "198.18.0.2")
	for _, network := range []string{"udp4", "udp6"} {
		var taken *net.UDPConn
		s.do(func() (err error) {
			taken, err = net.ListenUDP(network, &net.UDPAddr{Port: int(want.ListenPort)})
			return err
		})
		got := s.ask(ask{Call: "create", Tunnel: want})
		if !got.InUse || !strings.Contains(got.Error, device) || !strings.Contains(got.Error, fmt.Sprint(want.ListenPort)) {
			t.Errorf("create: %+v", got)
		}
		if s.hasLink(device) {
			t.Error("left a half-made device")
		}
		other := want
		other.ListenPort++
		s.create(other)
		if got := s.ask(ask{Call: "update", Tunnel: want, Reseat: true}); !got.InUse {
			t.Errorf("update: %+v", got)
		}
		diff(t, s.observe(), []kernel.Tunnel{other})
		// It listens on the old port still.
		s.do(func() error {
			if c, err := net.ListenUDP(network, &net.UDPAddr{Port: int(other.ListenPort)}); err == nil {
				c.Close()
				t.Error("the old port was lost")
			}
			return nil
		})
		taken.Close()
		s.call(ask{Call: "update", Tunnel: want, Reseat: true})
		diff(t, s.observe(), []kernel.Tunnel{want})
		s.call(ask{Call: "delete", Tunnel: want})
	}
}

func TestForeignChangesAreSeenAndUndone(t *testing.T) {
	a, b := pair(t, Auto)
	want := a.tunnelTo(b, "198.18.0.2")
	stranger, err := netlink.ParseAddr("fe80::bad/64")
	must(t, err)
	for what, change := range map[string]func() error{
		"link down":       func() error { return a.nl.LinkSetDown(a.link(device)) },
		"MTU":             func() error { return a.nl.LinkSetMTU(a.link(device), 1300) },
		"address removed": func() error { a.dropAddr(device, a.local().String()+"/64"); return nil },
		"address added":   func() error { return a.nl.AddrAdd(a.link(device), stranger) },
	} {
		must(t, change())
		if what != "address added" && slices.Contains(a.observe(), want) {
			t.Errorf("%s is not seen", what)
		}
		a.call(ask{Call: "update", Tunnel: want})
		diff(t, a.observe(), []kernel.Tunnel{want})
	}
	addrs, err := a.nl.AddrList(a.link(device), netlink.FAMILY_V6)
	must(t, err)
	if len(addrs) != 1 {
		t.Errorf("addresses %v", addrs)
	}
	a.overlay(b)
	connected(a, b)
}

func TestRefused(t *testing.T) {
	s := newSite(t, Auto, 8)
	good := s.tunnelTo(&site{seed: 16}, "198.18.0.2")
	for want, spoil := range map[string]func(*kernel.Tunnel){
		"begin with gw-":  func(t *kernel.Tunnel) { t.Name = "eth0" },
		"at most 15":      func(t *kernel.Tunnel) { t.Name = "gw-3456789012345" },
		"alias":           func(t *kernel.Tunnel) { t.Alias = "someone" },
		"MTU":             func(t *kernel.Tunnel) { t.MTU = 1279 },
		"link-local":      func(t *kernel.Tunnel) { t.LinkLocal = netip.MustParseAddr("10.0.0.1") },
		"without a peer":  func(t *kernel.Tunnel) { t.Peer = [32]byte{} },
		"does not belong": func(t *kernel.Tunnel) { t.Epoch = 2 },
	} {
		bad := good
		spoil(&bad)
		if got := s.ask(ask{Call: "create", Tunnel: bad}); !strings.Contains(got.Error, want) {
			t.Errorf("%s: %+v", want, got)
		}
	}
	if got := s.ask(ask{Call: "update", Tunnel: good}); got.Error == "" {
		t.Error("updated what does not exist")
	}
	if got := s.ask(ask{Call: "rule"}); got.Error == "" {
		t.Error("did what is not its own")
	}
	if got := s.observe(); len(got) != 0 {
		t.Errorf("left %v", got)
	}
}
