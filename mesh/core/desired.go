package core

import (
	"net/netip"
	"time"

	"guywire/discovery"
	"guywire/mesh"
	"guywire/mesh/kernel"
)

const (
	// wireGuardOverhead is what a tunnel takes of the uplink's MTU: 40 IPv6 +
	// 8 UDP + 32 WireGuard, so that it fits whichever family carries it.
	wireGuardOverhead = 80
	minMTU            = 1280 // IPv6 needs it (RFC 8200 5)
	// unreachableMetric keeps the last-resort route of an uplink table behind
	// its default route.
	unreachableMetric = 1 << 20
)

// Desired is what the kernel should look like. Until the routes are believed
// complete it holds the tunnels only, and leaves everything else as found.
func (n *Node) Desired() kernel.State {
	n.revision++
	want := kernel.State{Revision: n.revision, Complete: n.settled}
	if n.state == nil {
		return kernel.State{Revision: n.revision}
	}
	self, ok := n.state.Nodes[n.cfg.Self]
	if !ok {
		return kernel.State{Revision: n.revision} // not, or not any more, a member
	}
	for _, gone := range n.state.Removed {
		for _, k := range gone.Keys {
			want.Revoked = append(want.Revoked, k.Public)
		}
	}
	want.Addrs = hostPrefixes(self)
	n.tunnels(&want)
	n.sysctls(&want)
	n.meshRoutes(&want)
	n.uplinkRoutes(&want)
	want.Sort()
	return want
}

func (n *Node) tunnels(want *kernel.State) {
	self := n.state.Nodes[n.cfg.Self]
	for _, e := range n.entries {
		if e.judge == nil {
			continue
		}
		local, ok := n.uplink(e.rec.Link.Local)
		if !ok {
			continue
		}
		t := kernel.Tunnel{
			Name: e.rec.Device, Alias: e.rec.Alias(), Epoch: e.rec.Epoch,
			ListenPort: e.rec.Port, Mark: local.Mark(), MTU: n.mtu(local),
			LinkLocal: n.cfg.Self.LinkLocal(), Overlay4: self.Addr4, Peer: e.rec.Peer,
			Endpoint: e.rec.Endpoint,
		}
		if e.judge.EverUp() {
			t.Keepalive = n.keepalive(e.rec) // before, it would begin a handshake from the wrong end
		}
		for _, k := range self.Keys {
			if k.Epoch == e.rec.Epoch {
				t.PublicKey = k.Public
			}
		}
		want.Tunnels = append(want.Tunnels, t)
	}
}

// keepalive, in seconds, holds what stands before both ends open while no agent
// probes: the tunnel outlives it. What carries a stream looks after that itself, but
// may not be known to.
func (n *Node) keepalive(r Record) uint16 {
	ours, theirs := discovery.LifetimeUnknown, discovery.LifetimeUnknown
	if to := r.Endpoint.Addr(); r.Class != discovery.ClassCarrier {
		ours = n.outside[r.Link.Local].LifetimeOf(to)
		for _, u := range n.facts[r.Link.Peer].Uplinks {
			if u.Name == r.Link.Remote {
				theirs = u.LifetimeOf(to)
			}
		}
	}
	return uint16(discovery.Keepalive(ours, theirs) / time.Second)
}

// nextHop is the object of a link that shares groups with others, onlyHop the
// one where it is the only way.
func (e *entry) nextHop() uint32 { return mesh.NextHopBase + uint32(e.rec.Slot) }
func (e *entry) onlyHop() uint32 { return mesh.NextHopBase + 1<<15 + uint32(e.rec.Slot) }

func (n *Node) mtu(u mesh.Uplink) int {
	if n.cfg.MTU != 0 {
		return n.cfg.MTU
	}
	mtu := u.MTU
	if mtu == 0 {
		mtu = 1500
	}
	return max(mtu-wireGuardOverhead, minMTU)
}

// uplinkRoutes gives every uplink a table of its own, selected by its mark,
// from which nothing falls through to another uplink.
func (n *Node) uplinkRoutes(want *kernel.State) {
	for _, u := range n.host.Uplinks {
		for _, family := range []struct {
			all     netip.Prefix
			has     bool
			gateway netip.Addr
		}{
			{netip.PrefixFrom(netip.IPv4Unspecified(), 0), u.Default4, u.Gateway4},
			{netip.PrefixFrom(netip.IPv6Unspecified(), 0), u.Default6, u.Gateway6},
		} {
			if family.has && u.Up {
				want.Routes = append(want.Routes, kernel.Route{Table: u.Table(), Prefix: family.all, Metric: 1, Device: u.Interface, Gateway: family.gateway})
			}
			want.Routes = append(want.Routes, kernel.Route{Table: u.Table(), Prefix: family.all, Metric: unreachableMetric, Kind: kernel.Unreachable})
		}
		for _, a := range n.host.Attached {
			if a.Device == u.Interface && u.Up {
				want.Routes = append(want.Routes, kernel.Route{Table: u.Table(), Prefix: a.Prefix, Metric: 1, Device: u.Interface})
			}
		}
		want.Rules = append(want.Rules, kernel.Rule{Priority: mesh.RuleUplinkBase + int(u.Slot), Mark: u.Mark(), Table: u.Table()})
	}
}

func (n *Node) sysctls(want *kernel.State) {
	for path, value := range map[string]string{
		"net/ipv4/ip_forward":                "1",
		"net/ipv6/conf/all/forwarding":       "1",
		"net/ipv4/fib_multipath_hash_policy": "1", // ports too, or two hosts share one path
		"net/ipv6/fib_multipath_hash_policy": "1",
		"net/ipv4/nexthop_compat_mode":       "0", // else a group change costs time per route
		"net/ipv4/conf/all/rp_filter":        "2", // paths are asymmetric; the nft table checks sources
		"net/ipv4/conf/all/src_valid_mark":   "1",
		"net/ipv4/conf/all/send_redirects":   "0", // set by the kernel's WireGuard, unasked; noted here, so that it is undone
	} {
		want.Sysctls = append(want.Sysctls, kernel.Sysctl{Path: path, Value: value})
	}
	for _, dev := range n.host.AcceptRA {
		// A forwarding host ignores router advertisements unless told twice.
		want.Sysctls = append(want.Sysctls, kernel.Sysctl{Path: "net/ipv6/conf/" + dev + "/accept_ra", Value: "2"})
	}
}
