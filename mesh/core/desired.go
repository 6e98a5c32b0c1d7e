package core

import (
	"hash/fnv"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"guywire/mesh"
	"guywire/mesh/kernel"
	"guywire/mesh/link"
	"guywire/routing"
)

const (
	// wireGuardOverhead is what a tunnel takes of the uplink's MTU: 40 IPv6 +
	// 8 UDP + 32 WireGuard, so that it fits whichever family carries it.
	wireGuardOverhead = 80
	minMTU            = 1280 // IPv6 needs it (RFC 8200 5)
	// spreadNum/spreadDen is v: successors within v of the best cost carry
	// traffic, the rest are backups.
	spreadNum, spreadDen = 14, 10
	// groupBase is the first id of groups, above those of single next hops.
	groupBase = mesh.NextHopBase + 1<<16
	// unreachableMetric keeps the last-resort route of an uplink table behind
	// its default route.
	unreachableMetric = 1 << 20
)

// keepalive, in seconds, holds NAT mappings open while no agent probes: the
// tunnel outlives it.
const keepalive = 20

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
	n.uplinkRoutes(&want)
	n.sysctls(&want)
	if n.settled {
		n.meshRoutes(&want)
	}
	if n.settled || !n.adopted {
		// Without this no neighbour may count on us; but a filter that is in
		// force from before the start is better than one of half a view.
		n.filter(&want)
	}
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
			t.Keepalive = keepalive // before, it would begin a handshake from the wrong end
		}
		for _, k := range self.Keys {
			if k.Epoch == e.rec.Epoch {
				t.PublicKey = k.Public
			}
		}
		want.Tunnels = append(want.Tunnels, t)
		want.NextHops = append(want.NextHops, kernel.NextHop{ID: e.nextHop(), Device: e.rec.Device})
	}
}

func (e *entry) nextHop() uint32 { return mesh.NextHopBase + uint32(e.rec.Slot) }

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
	} {
		want.Sysctls = append(want.Sysctls, kernel.Sysctl{Path: path, Value: value})
	}
	for _, dev := range n.host.AcceptRA {
		// A forwarding host ignores router advertisements unless told twice.
		want.Sysctls = append(want.Sysctls, kernel.Sysctl{Path: "net/ipv6/conf/" + dev + "/accept_ra", Value: "2"})
	}
}

// A leg is one link as part of a path.
type leg struct {
	e     *entry
	total mesh.Cost
	sure  bool // up, not merely not yet given up
}

// legs gives every link over which the destination may be reached without a
// loop, best first: certain ones before suspects.
func (n *Node) legs(d routing.Destination) []leg {
	var out []leg
	for _, s := range d.Successors {
		for id, e := range n.entries {
			if id.Peer == s.Peer && e.judge != nil && e.judge.Usable() {
				out = append(out, leg{e, n.legCost(e).Add(s.Rest), e.judge.State() == link.Up})
			}
		}
	}
	slices.SortFunc(out, func(a, b leg) int {
		switch {
		case a.sure != b.sure:
			if a.sure {
				return -1
			}
			return 1
		case a.total != b.total:
			return int(a.total) - int(b.total)
		}
		return a.e.rec.Link.Compare(b.e.rec.Link)
	})
	return out
}

// used splits legs into those that carry traffic and the armed rest. The last
// path is used however bad it is.
func used(legs []leg) (carry, armed []leg) {
	for i, l := range legs {
		if l.sure != legs[0].sure || uint64(l.total)*spreadDen > uint64(legs[0].total)*spreadNum {
			return legs[:i], legs[i:]
		}
	}
	return legs, nil
}

// weight quantises a leg's share, so that small changes of cost are no change
// of the group.
func weight(l, best leg) uint8 {
	if uint64(l.total)*10 <= uint64(best.total)*12 {
		return 2
	}
	return 1
}

func (n *Node) meshRoutes(want *kernel.State) {
	self := n.state.Nodes[n.cfg.Self]
	taken := map[uint32]bool{}
	routed := map[netip.Prefix]bool{}
	before := n.chosen
	n.chosen = make(map[string]string, len(before))
	for _, d := range n.table.Destinations {
		carry, _ := used(n.legs(d))
		n.noteChoice(d, carry, before)
		if len(carry) == 0 {
			continue
		}
		group := kernel.NextHop{ID: groupID(d, taken)}
		mtu := 0
		for _, l := range carry {
			group.Members = append(group.Members, kernel.Member{ID: l.e.nextHop(), Weight: weight(l, carry[0])})
			if u, ok := n.uplink(l.e.rec.Link.Local); ok && (mtu == 0 || n.mtu(u) < mtu) {
				mtu = n.mtu(u)
			}
		}
		if allEqual(group.Members) {
			for i := range group.Members {
				group.Members[i].Weight = 1
			}
		}
		want.NextHops = append(want.NextHops, group)
		for _, p := range d.Prefixes {
			source := self.Addr4
			if p.Addr().Is6() {
				source = self.Addr6
			}
			routed[p] = true
			want.Routes = append(want.Routes, kernel.Route{Table: mesh.RouteTable, Prefix: p, NextHop: group.ID, Source: source, MTU: mtu})
		}
	}
	for key, by := range before {
		if _, still := n.chosen[key]; !still && by != "" {
			n.fact(Fact{Kind: RouteLost, Sentence: "no path to " + key + " any more", Cause: "it is announced no longer", From: by})
		}
	}
	// What belongs to the mesh but has no path now is refused: it must not
	// leave by the default route in the clear.
	for id, node := range n.state.Nodes {
		if id == n.cfg.Self {
			continue
		}
		for _, p := range append(hostPrefixes(node), node.Prefixes...) {
			if !routed[p] {
				want.Routes = append(want.Routes, kernel.Route{Table: mesh.RouteTable, Prefix: p, Kind: kernel.Unreachable})
				routed[p] = true
			}
		}
	}
	n.throws(want, routed)
	want.Rules = append(want.Rules, kernel.Rule{Priority: mesh.RuleMesh, Table: mesh.RouteTable})
}

// throws makes what this machine reaches itself win over the mesh: attached
// prefixes, and granted ones that lie behind a router of the site.
func (n *Node) throws(want *kernel.State, routed map[netip.Prefix]bool) {
	local := slices.Clone(n.state.Nodes[n.cfg.Self].Prefixes)
	for _, a := range n.host.Attached {
		local = append(local, a.Prefix)
	}
	slices.SortFunc(local, netip.Prefix.Compare)
	for _, p := range slices.Compact(local) {
		covered := false
		for r := range routed {
			covered = covered || r.Overlaps(p)
		}
		if covered {
			want.Routes = slices.DeleteFunc(want.Routes, func(r kernel.Route) bool { return r.Table == mesh.RouteTable && r.Prefix == p })
			want.Routes = append(want.Routes, kernel.Route{Table: mesh.RouteTable, Prefix: p, Kind: kernel.Throw})
		}
	}
}

// groupID is a number that the same destination keeps over restarts.
func groupID(d routing.Destination, taken map[uint32]bool) uint32 {
	h := fnv.New32a()
	for _, o := range d.Origins {
		h.Write(o[:])
	}
	const span = mesh.NextHopEnd - groupBase
	id := h.Sum32() % span
	for taken[id] {
		id = (id + 1) % span
	}
	taken[id] = true
	return groupBase + id
}

func allEqual(m []kernel.Member) bool {
	return !slices.ContainsFunc(m, func(x kernel.Member) bool { return x.Weight != m[0].Weight })
}

// filter says what may arrive over each tunnel.
func (n *Node) filter(want *kernel.State) {
	self := n.state.Nodes[n.cfg.Self]
	f := kernel.Filter{Own: kernel.Aggregate(append(hostPrefixes(self), self.Prefixes...))}
	var all []netip.Prefix
	for _, node := range n.state.Nodes {
		all = append(append(all, hostPrefixes(node)...), node.Prefixes...)
	}
	// What this machine reaches itself without owning it may enter from there.
	foreign := func(p netip.Prefix) bool {
		return slices.ContainsFunc(n.host.Attached, func(a Attached) bool { return a.Prefix.Overlaps(p) })
	}
	f.Mesh = kernel.Aggregate(slices.DeleteFunc(all, foreign))
	sources := map[mesh.NodeID][]netip.Prefix{}
	admit := map[mesh.NodeID]bool{}
	for id, e := range n.entries {
		admit[id.Peer] = admit[id.Peer] || e.judge != nil && e.judge.Admits()
	}
	for id := range n.peers {
		behind := n.table.Behind[id]
		if !slices.Contains(behind, id) {
			behind = append(slices.Clone(behind), id)
		}
		var list []netip.Prefix
		for _, b := range behind {
			if node, ok := n.state.Nodes[b]; ok && b != n.cfg.Self {
				list = append(append(list, hostPrefixes(node)...), node.Prefixes...)
			}
		}
		sources[id] = kernel.Aggregate(list)
		switch p := n.peers[id]; {
		case !admit[id]:
			p.admitted = 0
		case p.admitted == 0:
			p.admitted = want.Revision
		}
	}
	for id, e := range n.entries {
		if e.judge != nil {
			f.Links = append(f.Links, kernel.FilterLink{Device: e.rec.Device, Sources: sources[id.Peer], Held: !admit[id.Peer]})
		}
	}
	want.Filter = f
}

// noteChoice records a change of a destination's next hops for the event log.
func (n *Node) noteChoice(d routing.Destination, carry []leg, previous map[string]string) {
	names := make([]string, len(d.Origins))
	for i, o := range d.Origins {
		names[i] = n.name(o)
	}
	what := strings.Join(names, "+")
	now := n.describe(carry)
	before, known := previous[what]
	n.chosen[what] = now
	if before == now {
		return
	}
	f := Fact{Node: d.Origins[0], From: before, To: now, Cause: n.lastCause}
	switch {
	case now == "":
		f.Kind, f.Sentence = RouteLost, "no path to "+what
	case !known || before == "":
		f.Kind, f.Sentence = RouteFound, "path to "+what+" by "+now
	default:
		f.Kind, f.Sentence = RouteMoved, "path to "+what+" moved from "+before+" to "+now
	}
	n.fact(f)
}

// describe names the next hops of a choice: neighbour (uplink → uplink), with
// shares when there are several.
func (n *Node) describe(carry []leg) string {
	parts := make([]string, len(carry))
	for i, l := range carry {
		parts[i] = n.name(l.e.rec.Link.Peer) + " (" + l.e.rec.Link.Local + " → " + l.e.rec.Link.Remote + ")"
		if len(carry) > 1 {
			parts[i] += " ×" + strconv.Itoa(int(weight(l, carry[0])))
		}
	}
	return strings.Join(parts, ", ")
}
