package fib

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"guywire/mesh"
	"guywire/mesh/kernel"
	"guywire/mesh/reconcile"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A rig runs a reconciler on the real forwarding tables; its other parts are a
// fake that has all that is wanted.
type rig struct {
	t       *testing.T
	f       *FIB
	r       *reconcile.Reconciler
	hints   <-chan struct{}
	reports chan reconcile.Report
}

func run(t *testing.T, f *FIB, tunnels []kernel.Tunnel) *rig {
	g := &rig{t: t, f: f, hints: watch(t, f), reports: make(chan reconcile.Report, 100)}
	rest := kernel.NewFake(kernel.State{Tunnels: tunnels})
	g.r = reconcile.New(reconcile.Backends{rest, f, rest, rest}, reconcile.Options{Report: func(rep reconcile.Report) { g.reports <- rep }})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- g.r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	return g
}

// until passes hints on until a report is as asked for.
func (g *rig) until(what string, is func(reconcile.Report) bool) {
	g.t.Helper()
	for deadline := time.After(20 * time.Second); ; {
		select {
		case <-g.hints:
			g.r.Kick(kernel.PartForwarding)
		case rep := <-g.reports:
			if is(rep) {
				return
			}
		case <-deadline:
			g.t.Fatalf("never %s:\n%s\n%+v", what, observe(g.t, g.f), g.r.Status())
		}
	}
}

// untilEqual passes hints on until the kernel holds exactly what is wanted,
// the reconciler says so, and it has repaired something since it had the given
// number of repairs.
func (g *rig) untilEqual(want kernel.State, repairs uint64) {
	g.t.Helper()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for deadline := time.After(20 * time.Second); ; {
		select {
		case <-g.hints:
			g.r.Kick(kernel.PartForwarding)
		case <-g.reports:
		case <-poll.C:
			st := g.r.Status()
			if st.Pending == 0 && st.Parts[kernel.PartForwarding].Repairs > repairs && observe(g.t, g.f).String() == forwarding(want).String() {
				return
			}
		case <-deadline:
			g.t.Fatalf("got\n%s\nwant\n%s\n%+v", observe(g.t, g.f), forwarding(want), g.r.Status())
		}
	}
}

// forwarding gives the part of a state that a FIB holds.
func forwarding(s kernel.State) kernel.State {
	return kernel.State{Addrs: s.Addrs, NextHops: s.NextHops, Routes: s.Routes, Rules: s.Rules}
}

// veth makes a device whose carrier is up as long as far-NAME is.
func veth(t *testing.T, name string) {
	t.Helper()
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "far-" + name}
	if err := netlink.LinkAdd(pair); err != nil {
		t.Fatalf("make %s: %v", name, err)
	}
	up(t, "far-"+name)
	up(t, name)
}

// TestP8KernelEqualsIntent: whatever befalls a device, and whatever others
// delete or change, the tables become what they are to be, by hints of the
// kernel alone. The worst is what it does without a word: when a device goes
// down it drops its next hops, with all groups and routes of their own, and
// brings nothing back.
func TestP8KernelEqualsIntent(t *testing.T) {
	modes(t, func(t *testing.T, f *FIB) {
		//	gw-a ─ far-gw-a    10.1/16, 2001:db8:1::/48  over both
		//	gw-b ─ far-gw-b    10.2/16, 10.2.1/24        over gw-a alone: by a group, and directly
		veth(t, "gw-a")
		veth(t, "gw-b")
		const alone = group + 1
		want := twoLegs()
		want.Revision, want.Complete = 7, true
		want.NextHops = append(want.NextHops, kernel.NextHop{ID: alone, Members: []kernel.Member{{ID: hopA, Weight: 1}}})
		want.Routes = append(want.Routes,
			kernel.Route{Table: mesh.RouteTable, Prefix: pfx("10.2.0.0/16"), NextHop: alone},
			kernel.Route{Table: mesh.RouteTable, Prefix: pfx("10.2.1.0/24"), NextHop: hopA})
		for _, device := range []string{"gw-a", "gw-b"} {
			want.Tunnels = append(want.Tunnels, kernel.Tunnel{Name: device})
		}
		want.Sort()
		g := run(t, f, want.Tunnels)
		g.r.Set(want)
		g.until("done", func(rep reconcile.Report) bool { return rep.Done && rep.Revision == 7 })

		lost := func(rep reconcile.Report) bool {
			return !rep.Done && slices.ContainsFunc(rep.Waiting, func(o reconcile.Object) bool { return o.Name == "next hop 0x86000001" && o.Error != "" })
		}
		raw := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range []struct {
			name    string
			objects bool // only where there are next-hop objects
			harm    func()
		}{
			{"set down and up", false, func() {
				down(t, "gw-a")
				g.until("seen", lost)
				if !g.r.Status().Safe {
					t.Error("lost legs make the state unsafe")
				}
				up(t, "gw-a")
			}},
			{"carrier lost and back", false, func() {
				down(t, "far-gw-a")
				g.until("seen", lost)
				up(t, "far-gw-a")
			}},
			{"both carriers lost and back", false, func() {
				down(t, "far-gw-a")
				down(t, "far-gw-b")
				g.until("seen", lost)
				up(t, "far-gw-b")
				up(t, "far-gw-a")
			}},
			{"down and up at once", false, func() {
				down(t, "gw-a")
				up(t, "gw-a")
			}},
			{"device made anew", false, func() {
				link, err := netlink.LinkByName("gw-a")
				raw(err)
				raw(netlink.LinkDel(link))
				veth(t, "gw-a")
			}},
			{"next hop deleted", true, func() { raw(others(t).deleteNextHop(hopA)) }},
			{"group deleted", true, func() { raw(others(t).deleteNextHop(group)) }},
			{"group changed", true, func() {
				raw(others(t).change(unix.RTM_NEWNEXTHOP, unix.NLM_F_REPLACE, nhmsg(unix.AF_UNSPEC), attr32(unix.NHA_ID, group),
					nl.NewRtAttr(unix.NHA_GROUP, groupData([]kernel.Member{{ID: hopB, Weight: 3}}))))
			}},
			{"route deleted", false, func() { raw(others(t).deleteRoute(want.Routes[0])) }},
			{"IPv6 route deleted", false, func() { raw(others(t).deleteRoute(want.Routes[len(want.Routes)-1])) }},
			{"route led elsewhere", false, func() {
				index, err := others(t).ifindex("far-gw-b")
				raw(err)
				raw(others(t).putRoute(kernel.Route{Table: mesh.RouteTable, Prefix: pfx("10.1.0.0/16"), NextHop: 1}, []leg{{index, 1}}))
			}},
			{"route added", false, func() {
				raw(others(t).putRoute(kernel.Route{Table: mesh.RouteTable, Prefix: pfx("10.9.0.0/16"), Kind: kernel.Throw}, nil))
			}},
			{"rule deleted", false, func() {
				for _, family := range f.families() {
					raw(others(t).change(unix.RTM_DELRULE, 0, ruleParts(family, want.Rules[0])...))
				}
			}},
			{"address deleted", false, func() { raw(others(t).deleteAddr(want.Addrs[0])) }},
		} {
			if c.objects && f.legacy != nil {
				continue // there is no such thing
			}
			repairs := g.r.Status().Parts[kernel.PartForwarding].Repairs
			c.harm()
			g.untilEqual(want, repairs)
			if t.Failed() {
				t.Fatal(c.name)
			}
		}
	})
}

// others gives a socket that is not the backend's, as another program has.
func others(t *testing.T) *conn {
	t.Helper()
	c, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.close)
	return c
}

// TestLegacyFinishes: without next-hop objects a cut is many messages. When
// one of them fails, the same operation done again finishes the rest.
func TestLegacyFinishes(t *testing.T) {
	enterNS(t)
	f := open(t)
	f.legacy = newLegacy()
	tun(t, "gw-a")
	tun(t, "gw-b")
	want := twoLegs()
	want.Routes = nil
	for i := range 16 {
		r := route(i)
		if i%2 == 0 {
			r.Source = want.Addrs[0].Addr()
		}
		want.Routes = append(want.Routes, r)
	}
	apply(t, f, want)
	// Without their source address half of the routes cannot be written.
	if err := others(t).deleteAddr(want.Addrs[0]); err != nil {
		t.Fatal(err)
	}
	cut := kernel.DeleteNextHop{ID: hopA}
	if err := f.Do(t.Context(), cut); err == nil || errors.Is(err, kernel.ErrRefused) {
		t.Fatalf("cut with routes that cannot be written: %v", err)
	}
	for _, op := range []kernel.Op{kernel.AddAddr{Addr: want.Addrs[0]}, cut} {
		if err := f.Do(t.Context(), op); err != nil {
			t.Fatal(err)
		}
	}
	found, err := f.routes(f.read)
	if err != nil {
		t.Fatal(err)
	}
	b, err := f.read.ifindex("gw-b")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range found {
		if !slices.Equal(r.legs, []leg{{b, 1}}) {
			t.Errorf("%s has legs %v", r, r.legs)
		}
	}
	if len(found) != len(want.Routes) {
		t.Errorf("%d routes of %d", len(found), len(want.Routes))
	}
}
