package wg

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"guywire/mesh"
	"guywire/mesh/kernel"
)

// TestManyTunnels makes several hundred tunnels on one node, as many as a hub
// of a large mesh has, adopts them, and removes them without a trace.
func TestManyTunnels(t *testing.T) {
	a, b := newSite(t, Auto, 8), newSite(t, Auto, 16)
	cable(a, b, "up0", "198.18.0.1/24", "198.18.0.2/24")
	n := 256
	if a.call(ask{Call: "observe"}).Maker == Userspace {
		n = 32 // each is a device with goroutines and buffers of its own
	}
	clean, err := a.nl.LinkList()
	must(t, err)
	tunnel := func(i int) kernel.Tunnel {
		want := a.tunnelTo(b, "198.18.0.2")
		want.Name, want.Alias, want.ListenPort = fmt.Sprintf("gw-%d", i), fmt.Sprintf("guywire test %d", i), uint16(20000+i)
		if i > 0 { // of peers that never answer
			want.Peer = mesh.WireGuardKey{0: byte(i), 1: byte(i >> 8), 31: 0x40}
			want.Endpoint = netip.AddrPortFrom(netip.MustParseAddr("198.18.0.2"), uint16(30000+i))
		}
		return want
	}
	var want []kernel.Tunnel
	start := time.Now()
	for i := range n {
		want = append(want, tunnel(i))
		a.create(want[i])
	}
	t.Logf("%d tunnels of the %s after %v", n, a.call(ask{Call: "observe"}).Maker, time.Since(start).Round(time.Millisecond))
	byName := func(x, y kernel.Tunnel) int { return int(x.ListenPort) - int(y.ListenPort) }
	sorted := func() []kernel.Tunnel {
		got := a.observe()
		slices.SortFunc(got, byName)
		return got
	}
	diff(t, sorted(), want)

	// The one with a peer works among all the others.
	back := b.tunnelTo(a, "198.18.0.1")
	back.Endpoint = netip.MustParseAddrPort("198.18.0.1:20000")
	b.create(back)
	b.overlay(a)
	a.addr("lo", a.overlayAddr()+"/32")
	a.route("gw-0", b.overlayAddr()+"/32", unix.RT_TABLE_MAIN)
	connected(a, b)

	// Another agent finds them all, and changes one.
	a.killAgent()
	a.startAgent(Auto)
	diff(t, sorted(), want)
	want[n-1].MTU = 1300
	a.call(ask{Call: "update", Tunnel: want[n-1]})
	diff(t, sorted(), want)
	if stats := a.call(ask{Call: "stats"}).Stats; len(stats) != n || stats["gw-0"].LastHandshake.IsZero() {
		t.Errorf("stats of %d tunnels, of the first %+v", len(stats), stats["gw-0"])
	}
	for _, w := range want {
		a.call(ask{Call: "delete", Tunnel: kernel.Tunnel{Name: w.Name}})
	}
	left, err := a.nl.LinkList()
	must(t, err)
	if len(a.observe()) != 0 || len(left) != len(clean) {
		t.Errorf("%d links before, %d after; observed %v", len(clean), len(left), a.observe())
	}
}

// TestImpairments: what a bad network does to the packets of a tunnel, its
// user never sees but as loss and delay. The network is the kernel's netem.
func TestImpairments(t *testing.T) {
	a, b := pair(t, Auto)
	connected(a, b)
	const n = 200
	for _, tt := range []struct {
		name    string
		netem   netlink.NetemQdiscAttrs
		atLeast int
		atMost  int
	}{
		{"delay", netlink.NetemQdiscAttrs{Latency: 50_000}, n, n},
		{"loss", netlink.NetemQdiscAttrs{Loss: 30}, 1, n - 1},
		{"duplicates", netlink.NetemQdiscAttrs{Duplicate: 100}, n, n},
		{"reordering", netlink.NetemQdiscAttrs{Latency: 10_000, ReorderProb: 50}, n, n},
		{"corruption", netlink.NetemQdiscAttrs{CorruptProb: 50}, 1, n - 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			up := a.link("up0")
			qdisc := netlink.NewNetem(netlink.QdiscAttrs{LinkIndex: up.Attrs().Index, Parent: netlink.HANDLE_ROOT, Handle: netlink.MakeHandle(1, 0)}, tt.netem)
			err := a.nl.QdiscAdd(qdisc)
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
				t.Skip("needs the kernel's sch_netem")
			}
			must(t, err)
			defer func() { must(t, a.nl.QdiscDel(qdisc)) }()

			from, to := sockets(a, b, "udp4", a.overlayAddr(), b.overlayAddr(), "7003")
			defer from.Close()
			defer to.Close()
			must(t, to.SetReadBuffer(4<<20))
			sent, seen := make([]time.Time, n), map[uint32]int{}
			for i := range n {
				sent[i] = time.Now()
				if _, err := from.Write(binary.BigEndian.AppendUint32(make([]byte, 96), uint32(i))); err != nil {
					t.Fatal(err)
				}
			}
			buf := make([]byte, 2000)
			soonest := time.Hour
			for { // until nothing comes any more
				to.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
				size, err := to.Read(buf)
				if err != nil {
					break
				}
				if size != 100 || slices.ContainsFunc(buf[:96], func(c byte) bool { return c != 0 }) {
					t.Fatalf("got %x", buf[:size])
				}
				i := binary.BigEndian.Uint32(buf[96:])
				if i >= n {
					t.Fatalf("got datagram %d of %d", i, n)
				}
				seen[i]++
				soonest = min(soonest, time.Since(sent[i]))
			}
			for i, times := range seen {
				if times != 1 {
					t.Errorf("datagram %d arrived %d times", i, times)
				}
			}
			if len(seen) < tt.atLeast || len(seen) > tt.atMost {
				t.Errorf("%d of %d arrived", len(seen), n)
			}
			if tt.name == "delay" && soonest < 50*time.Millisecond {
				t.Errorf("one arrived after %v", soonest)
			}
		})
	}
}

// TestFragments: a tunnel whose packets are larger than the network's carries
// them in fragments, also where a router in between has to make them, and a
// datagram larger than the tunnel is fragmented inside it.
func TestFragments(t *testing.T) {
	a, r, b := newSite(t, Auto, 8), newSite(t, Auto, 24), newSite(t, Auto, 16)
	cable(a, r, "up0", "198.18.0.1/24", "198.18.0.254/24")
	cable(b, r, "up1", "198.18.1.2/24", "198.18.1.254/24")
	r.do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) })
	must(t, a.nl.RouteReplace(&netlink.Route{LinkIndex: a.link("up0").Attrs().Index, Gw: netip.MustParseAddr("198.18.0.254").AsSlice()}))
	must(t, b.nl.RouteReplace(&netlink.Route{LinkIndex: b.link("up1").Attrs().Index, Gw: netip.MustParseAddr("198.18.1.254").AsSlice()}))
	a.create(a.tunnelTo(b, "198.18.1.2"))
	b.create(b.tunnelTo(a, "198.18.0.1"))
	a.overlay(b)
	b.overlay(a)
	connected(a, b)
	for _, s := range []*site{b, r} {
		must(t, s.nl.LinkSetMTU(s.link("up1"), 1300))
	}
	for _, tt := range []struct {
		name     string
		from, to *site
	}{{"made by a router", a, b}, {"made by the sender", b, a}} {
		for _, size := range []int{1200, 1372, 4000} { // of UDP payload: small, the whole tunnel's MTU, more
			before := r.fragmentsMade()
			eventually(t, fmt.Sprintf("%d bytes arrive, in fragments %s", size, tt.name), func() bool {
				return burst(tt.from, tt.to, 1, size) == 1
			})
			if made := r.fragmentsMade() != before; made != (tt.from == a && size > 1200) && a.call(ask{Call: "observe"}).Maker == Kernel {
				t.Errorf("%d bytes, fragments %s: the router made some: %v", size, tt.name, made)
			}
		}
	}
}

// fragmentsMade gives the kernel's counter of IPv4 fragments that it made.
func (s *site) fragmentsMade() (count string) {
	s.t.Helper()
	s.do(func() error {
		table, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		lines := strings.Split(string(table), "\n") // names, then values
		at := slices.Index(strings.Fields(lines[0]), "FragCreates")
		if at < 0 {
			return fmt.Errorf("no FragCreates in %q", lines[0])
		}
		count = strings.Fields(lines[1])[at]
		return nil
	})
	return count
}
