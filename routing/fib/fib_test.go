package fib

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"guywire/mesh"
	"guywire/mesh/kernel"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	hopA  = mesh.NextHopBase + 1
	hopB  = mesh.NextHopBase + 2
	group = mesh.NextHopBase + 100
)

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// apply brings the kernel to want, and fails the test unless it gets there.
func apply(t testing.TB, f *FIB, want kernel.State) []kernel.Op {
	t.Helper()
	want.Complete = true
	want.Sort()
	have := observe(t, f)
	have.Tunnels = want.Tunnels
	ops := kernel.Plan(have, want)
	for _, op := range ops {
		if err := f.Do(t.Context(), op); err != nil {
			t.Fatal(err)
		}
	}
	if got := observe(t, f); got.String() != want.String() {
		t.Fatalf("got\n%s\nwant\n%s", got, want)
	}
	return ops
}

func observe(t testing.TB, f *FIB) kernel.State {
	t.Helper()
	s, err := f.Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// twoLegs routes v4 and v6 over a group of both devices.
func twoLegs() kernel.State {
	return kernel.State{
		Addrs: []netip.Prefix{pfx("10.86.0.1/32"), pfx("2001:db8:86::1/128")},
		NextHops: []kernel.NextHop{
			{ID: hopA, Device: "gw-a"},
			{ID: hopB, Device: "gw-b"},
			{ID: group, Members: []kernel.Member{{ID: hopA, Weight: 1}, {ID: hopB, Weight: 1}}},
		},
		Routes: []kernel.Route{
			{Table: mesh.RouteTable, Prefix: pfx("10.1.0.0/16"), NextHop: group, Source: netip.MustParseAddr("10.86.0.1"), MTU: 1380},
			{Table: mesh.RouteTable, Prefix: pfx("2001:db8:1::/48"), NextHop: group, Source: netip.MustParseAddr("2001:db8:86::1"), MTU: 1380},
		},
		Rules: []kernel.Rule{{Priority: mesh.RuleMesh, Table: mesh.RouteTable}},
	}
}

// modes runs a test with next-hop objects and without.
func modes(t *testing.T, test func(t *testing.T, f *FIB)) {
	for _, mode := range []string{"objects", "legacy"} {
		t.Run(mode, func(t *testing.T) {
			enterNS(t)
			f := open(t)
			switch {
			case mode == "legacy":
				f.legacy = newLegacy()
			case f.legacy != nil:
				t.Skip("this kernel has no next-hop objects")
			}
			test(t, f)
		})
	}
}

func randomState(r *rand.Rand) kernel.State {
	var s kernel.State
	for _, a := range []string{"10.86.0.1/32", "10.86.0.2/32", "2001:db8:86::1/128"} {
		if r.IntN(3) > 0 {
			s.Addrs = append(s.Addrs, pfx(a))
		}
	}
	var singles, targets []uint32
	for i, device := range []string{"gw-a", "gw-b", "gw-c"} {
		if r.IntN(4) > 0 {
			id := uint32(mesh.NextHopBase + 1 + i)
			s.NextHops = append(s.NextHops, kernel.NextHop{ID: id, Device: device})
			singles = append(singles, id)
		}
	}
	targets = slices.Clone(singles)
	for id := uint32(group); id < group+3; id++ {
		n := kernel.NextHop{ID: id}
		for _, leg := range singles {
			if r.IntN(2) == 0 {
				n.Members = append(n.Members, kernel.Member{ID: leg, Weight: uint8(1 + r.IntN(255))})
			}
		}
		if len(n.Members) > 0 {
			s.NextHops = append(s.NextHops, n)
			targets = append(targets, id)
		}
	}
	for i := range 10 {
		route := kernel.Route{
			Table: mesh.RouteTable, Metric: uint32(10 * r.IntN(2)), MTU: 1380 * r.IntN(2), Kind: kernel.RouteKind(r.IntN(3)),
			Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i)}), 16),
		}
		if i%2 == 0 {
			route.Prefix = netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0, byte(i + 1)}), 48)
		}
		if len(targets) == 0 {
			route.Kind = kernel.Unreachable
		}
		if route.Kind == kernel.Forward {
			route.NextHop = targets[r.IntN(len(targets))]
			if len(s.Addrs) > 0 && s.Addrs[0].Addr().Is4() == route.Prefix.Addr().Is4() {
				route.Source = s.Addrs[0].Addr()
			}
		}
		s.Routes = append(s.Routes, route)
	}
	for slot := 1; slot <= 2; slot++ {
		table := mesh.UplinkTableBase + slot
		for _, p := range []string{"0.0.0.0/0", "::/0"} {
			s.Routes = append(s.Routes, kernel.Route{Table: table, Prefix: pfx(p), Metric: 4096, Kind: kernel.Unreachable})
			up := kernel.Route{Table: table, Prefix: pfx(p), Device: []string{"eth0", "eth1"}[r.IntN(2)]}
			if r.IntN(2) == 0 {
				up.Gateway = netip.MustParseAddr(map[bool]string{true: "203.0.113.1", false: "fe80::1"}[p == "0.0.0.0/0"])
			}
			s.Routes = append(s.Routes, up)
		}
		if r.IntN(3) > 0 {
			s.Rules = append(s.Rules, kernel.Rule{Priority: mesh.RuleUplinkBase + slot, Mark: mesh.MarkBase + uint32(1+r.IntN(2)), Table: table})
		}
	}
	if r.IntN(2) == 0 {
		s.Rules = append(s.Rules, kernel.Rule{Priority: mesh.RuleMesh, Table: mesh.RouteTable})
	}
	return s
}

// TestRandomStates goes from state to state and to nothing again: what is
// observed is always what was wanted, by the plan alone.
func TestRandomStates(t *testing.T) {
	modes(t, func(t *testing.T, f *FIB) {
		for _, name := range []string{"gw-a", "gw-b", "gw-c", "eth0", "eth1"} {
			tun(t, name)
		}
		for seed := range uint64(30) {
			want := randomState(rand.New(rand.NewPCG(seed, 1)))
			apply(t, f, want)
			if again := apply(t, f, want); len(again) > 0 {
				t.Fatalf("seed %d: changes of a settled state: %v", seed, again)
			}
		}
		apply(t, f, kernel.State{})
	})
}

// TestMultipath sends real packets: both legs carry, and after one message
// only the one that is left does, while no route has gone.
func TestMultipath(t *testing.T) {
	modes(t, func(t *testing.T, f *FIB) {
		a, b := tun(t, "gw-a"), tun(t, "gw-b")
		want := twoLegs()
		apply(t, f, want)
		sockets := map[bool]int{true: udp(t, unix.AF_INET), false: udp(t, unix.AF_INET6)}
		port := uint16(9000)
		burst := func() (onA, onB map[bool]int) {
			onA, onB = map[bool]int{}, map[bool]int{}
			for _, v4 := range []bool{true, false} {
				port++
				for i := range 200 {
					to := netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0, 1, 15: byte(i)})
					if v4 {
						to = netip.AddrFrom4([4]byte{10, 1, byte(i), byte(7 * i)})
					}
					if err := send(sockets[v4], netip.AddrPortFrom(to, port)); err != nil {
						t.Fatal(err)
					}
				}
				onA[v4], onB[v4] = packets(t, a, port), packets(t, b, port)
				if onA[v4]+onB[v4] != 200 {
					t.Errorf("ipv4 %v: %d + %d of 200 packets arrived", v4, onA[v4], onB[v4])
				}
			}
			return onA, onB
		}
		onA, onB := burst()
		for _, v4 := range []bool{true, false} {
			if f.legacy != nil && !v4 {
				continue // one leg only, as documented
			}
			if onA[v4] < 50 || onB[v4] < 50 {
				t.Errorf("ipv4 %v: %d and %d packets on equal legs", v4, onA[v4], onB[v4])
			}
		}
		if err := f.Do(t.Context(), kernel.DeleteNextHop{ID: hopA}); err != nil {
			t.Fatal(err)
		}
		if onA, _ := burst(); onA[true]+onA[false] > 0 {
			t.Errorf("%d and %d packets on the leg that was cut", onA[true], onA[false])
		}
		if s := observe(t, f); len(s.Routes) != 2 || len(s.NextHops) != 2 {
			t.Errorf("after the cut:\n%s", s)
		}
	})
}

// TestReplaceLosesNothing sends without pause while everything that can be
// replaced is.
func TestReplaceLosesNothing(t *testing.T) {
	modes(t, func(t *testing.T, f *FIB) {
		tun(t, "gw-a")
		tun(t, "gw-b")
		both := twoLegs()
		apply(t, f, both)
		one := twoLegs()
		one.NextHops = one.NextHops[:1]
		for i := range one.Routes {
			one.Routes[i].NextHop = hopA
			one.Routes[i].MTU = 0
		}
		fd := udp(t, unix.AF_INET)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		result := make(chan error, 1)
		go func() {
			for ctx.Err() == nil {
				if err := send(fd, netip.MustParseAddrPort("10.1.2.3:9000")); err != nil && !errors.Is(err, unix.ENOBUFS) {
					result <- err
					return
				}
			}
			result <- nil
		}()
		for range 20 {
			apply(t, f, one)
			apply(t, f, both)
		}
		cancel()
		if err := <-result; err != nil {
			t.Errorf("a packet found no route: %v", err)
		}
	})
}

// TestDeviceDown checks what the kernel does silently, and that a hint and one
// look are enough to repair it.
func TestDeviceDown(t *testing.T) {
	modes(t, func(t *testing.T, f *FIB) {
		tun(t, "gw-a")
		tun(t, "gw-b")
		hints := watch(t, f)
		want := twoLegs()
		want.Routes = append(want.Routes, kernel.Route{Table: mesh.RouteTable, Prefix: pfx("10.2.0.0/16"), NextHop: hopA})
		apply(t, f, want)
		down(t, "gw-a")
		<-hints
		if s := observe(t, f); len(s.NextHops) != 2 {
			t.Errorf("next hops on a dead device:\n%s", s)
		}
		up(t, "gw-a")
		<-hints
		if ops := apply(t, f, want); len(ops) < 2 {
			t.Errorf("only %v to repair", ops)
		}
	})
}

// watch runs Watch in the namespace of the test; the channel holds one hint.
func watch(t *testing.T, f *FIB) <-chan struct{} {
	t.Helper()
	ns, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	hints := make(chan struct{}, 1)
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer close(ended)
		// This thread is never unlocked either: it ends with the goroutine.
		if err := lockedSetns(ns); err != nil {
			ended <- err
			return
		}
		ended <- f.Watch(ctx, func() {
			select {
			case hints <- struct{}{}:
			default:
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		unix.Close(ns)
	})
	// Watching has begun when a change of others is seen.
	for i := 0; ; i++ {
		name := fmt.Sprintf("probe%d", i)
		tun(t, name)
		select {
		case <-hints:
			return hints
		case err := <-ended:
			t.Fatal(err)
		default:
		}
		if i > 2000 {
			t.Fatal("no hint for new devices")
		}
	}
}

// TestConcern checks that own changes and those of the main table give no
// hint, and changes of ours by others do.
func TestConcern(t *testing.T) {
	enterNS(t)
	f := open(t)
	tun(t, "gw-a")
	tun(t, "gw-b")
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, watched...)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	apply(t, f, twoLegs())
	apply(t, f, kernel.State{})
	if err := netlink.RouteAdd(&netlink.Route{Dst: ipnet("198.18.0.0/24"), LinkIndex: 1}); err != nil {
		t.Fatal(err)
	}
	marker := netip.MustParsePrefix("203.0.113.0/24")
	if err := netlink.RouteAdd(&netlink.Route{Table: mesh.RouteTable, Dst: ipnet(marker.String()), LinkIndex: 1}); err != nil {
		t.Fatal(err)
	}
	for own := 0; ; {
		msgs, _, err := s.Receive()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range msgs {
			concern := f.concern([]syscall.NetlinkMessage{m})
			attrs, err := parseAttrs(m.Data[min(len(m.Data), unix.SizeofRtMsg):])
			isRoute := m.Header.Type == unix.RTM_NEWROUTE && err == nil
			switch {
			case m.Header.Pid == f.write.port:
				own++
				if concern {
					t.Errorf("own message of type %d gives a hint", m.Header.Type)
				}
			case isRoute && addrOf(attrs[unix.RTA_DST]) == netip.MustParseAddr("198.18.0.0") && concern:
				t.Error("a route of the main table gives a hint")
			case isRoute && addrOf(attrs[unix.RTA_DST]) == marker.Addr():
				if !concern {
					t.Error("a foreign route in our table gives no hint")
				}
				if own == 0 {
					t.Error("own messages were not seen")
				}
				return
			}
		}
	}
}

// TestForeign checks that teardown leaves alone what is not ours, even in the
// same table, priority range and device.
func TestForeign(t *testing.T) {
	enterNS(t)
	f := open(t)
	tun(t, "gw-a")
	tun(t, "gw-b")
	other, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	defer other.close()
	index, err := other.ifindex("gw-a")
	if err != nil {
		t.Fatal(err)
	}
	rule := netlink.NewRule()
	rule.Priority, rule.Table, rule.Family = 8650, 100, unix.AF_INET
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		netlink.RouteAdd(&netlink.Route{Table: mesh.RouteTable, Dst: ipnet("10.77.0.0/16"), LinkIndex: index}),
		netlink.RouteAdd(&netlink.Route{Dst: ipnet("10.78.0.0/16"), LinkIndex: index, Protocol: mesh.RouteProtocol}),
		netlink.RuleAdd(rule),
		netlink.AddrAdd(lo, &netlink.Addr{IPNet: ipnet("198.18.0.1/32")}),
		other.change(unix.RTM_NEWNEXTHOP, unix.NLM_F_CREATE, raw{0: unix.AF_INET, 2: 4, 7: 0}, attr32(unix.NHA_ID, 7), attr32(unix.NHA_OIF, uint32(index))),
		other.change(unix.RTM_NEWNEXTHOP, unix.NLM_F_CREATE, raw{0: unix.AF_INET, 2: 4, 7: 0}, attr32(unix.NHA_ID, mesh.NextHopBase+9), attr32(unix.NHA_OIF, uint32(index))),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	before := snapshot(t)
	apply(t, f, twoLegs())
	apply(t, f, kernel.State{})
	if after := snapshot(t); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
}

// snapshot prints routes, rules and addresses as an unrelated reader sees
// them, and the number of next hops.
func snapshot(t *testing.T) string {
	t.Helper()
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		t.Fatal(err)
	}
	rules, err := netlink.RuleList(netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	c, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	hops, err := c.dump(unix.RTM_GETNEXTHOP, unix.RTM_NEWNEXTHOP, make(raw, sizeofNhmsg))
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, r := range routes {
		lines = append(lines, r.String())
	}
	for _, r := range rules {
		lines = append(lines, r.String())
	}
	for _, a := range addrs {
		lines = append(lines, a.String())
	}
	// The kernel adds link-local ones when it is done detecting duplicates.
	lines = slices.DeleteFunc(lines, func(l string) bool { return strings.Contains(l, "fe80::") })
	slices.Sort(lines)
	return fmt.Sprintf("%d next hops\n%q", len(hops), lines)
}

// TestRuleRepair checks that rules that others changed are seen, made right,
// and removed.
func TestRuleRepair(t *testing.T) {
	enterNS(t)
	f := open(t)
	want := kernel.State{Rules: []kernel.Rule{{Priority: mesh.RuleUplinkBase + 1, Mark: mesh.MarkBase + 1, Table: mesh.UplinkTableBase + 1}}}
	for _, damage := range []func(*netlink.Rule) error{
		netlink.RuleDel, // in one family only
		func(r *netlink.Rule) error { r.IifName = "lo"; return netlink.RuleAdd(r) },
		func(r *netlink.Rule) error { r.Table = 77; return netlink.RuleAdd(r) },
	} {
		for _, end := range []kernel.State{want, {}} {
			apply(t, f, want)
			r := netlink.NewRule()
			r.Priority, r.Mark, r.Table, r.Family, r.Protocol = mesh.RuleUplinkBase+1, mesh.MarkBase+1, mesh.UplinkTableBase+1, unix.AF_INET6, mesh.RouteProtocol
			mask := uint32(mesh.MarkMask)
			r.Mask = &mask
			if err := damage(r); err != nil {
				t.Fatal(err)
			}
			if s := observe(t, f); s.String() == want.String() {
				t.Error("damage not seen")
			}
			apply(t, f, end)
		}
	}
}

// TestIdempotent repeats every operation, in the order of adding and deleting.
func TestIdempotent(t *testing.T) {
	modes(t, func(t *testing.T, f *FIB) {
		tun(t, "gw-a")
		tun(t, "gw-b")
		want := twoLegs()
		want.Complete = true
		for _, plan := range [][]kernel.Op{kernel.Plan(kernel.State{}, want), kernel.Plan(want, kernel.State{Complete: true})} {
			for _, op := range plan {
				for range 2 {
					if err := f.Do(t.Context(), op); err != nil {
						t.Error(err)
					}
				}
			}
		}
		if s := observe(t, f); s.String() != "" {
			t.Errorf("left over:\n%s", s)
		}
	})
}

func TestErrors(t *testing.T) {
	enterNS(t)
	f := open(t)
	for _, op := range []kernel.Op{
		kernel.PutNextHop{NextHop: kernel.NextHop{ID: hopA, Device: "gw-none"}},
		kernel.PutNextHop{NextHop: kernel.NextHop{ID: group, Members: []kernel.Member{{ID: hopA, Weight: 1}}}},
		kernel.PutRoute{Route: kernel.Route{Table: mesh.RouteTable, Prefix: pfx("10.1.0.0/16"), NextHop: group}},
		kernel.PutRoute{Route: kernel.Route{Table: mesh.UplinkTableBase + 1, Prefix: pfx("0.0.0.0/0"), Device: "eth9"}},
		kernel.ClearFilter{},
	} {
		if err := f.Do(t.Context(), op); err == nil {
			t.Errorf("%s: no error", op)
		}
	}
	if err := f.Do(t.Context(), kernel.ClearFilter{}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("an operation of another backend: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Observe(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Observe after cancel: %v", err)
	}
}

// FuzzParse feeds what a kernel might say to all parsers.
func FuzzParse(f *testing.F) {
	f.Add([]byte{2, 16, 0, 0, 86, 86, 0, 1, 0, 0, 0, 0, 8, 0, 1, 0, 10, 1, 0, 0, 8, 0, 30, 0, 1, 0, 0, 0x86})
	f.Add([]byte{2, 0, 0, 0, 254, 86, 0, 1, 0, 0, 0, 0, 20, 0, 9, 0, 8, 0, 0, 1, 1, 0, 0, 0, 8, 0, 0, 1, 2, 0, 0, 0})
	f.Add([]byte{0, 0, 86, 0, 0, 0, 0, 0, 8, 0, 1, 0, 1, 0, 0, 0x86, 12, 0, 2, 0, 1, 0, 0, 0x86, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, m []byte) {
		if r, ours, err := parseRoute(m); err == nil && ours && (!r.Prefix.IsValid() || !ourTable(r.Table)) {
			t.Errorf("route %+v is not ours", r)
		}
		if n, ours, err := parseNextHop(m); err == nil && ours && n.ID < mesh.NextHopBase {
			t.Errorf("next hop %+v is not ours", n)
		}
		if r, ours, err := parseRule(m); err == nil && ours && (r.Priority < ruleFirst || r.Priority > ruleLast) {
			t.Errorf("rule %+v is not ours", r)
		}
	})
}
