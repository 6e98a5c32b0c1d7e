package core

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"guywire/mesh"
	"guywire/mesh/kernel"
	"guywire/mesh/link"
	"guywire/routing"
)

const (
	// A leg begins to carry traffic when its cost is at most joinSpread percent
	// of the best one's, and carries until it is beyond spread, which is v; a full
	// share, not half of one, between the other two. So noise is no change of the
	// group. The rest are backups.
	joinSpread, spread         = 125, 140
	joinFullSpread, fullSpread = 115, 130
	// alike is a difference of costs that is none: where paths are short, jitter
	// is more than v allows.
	alike mesh.Cost = 2_500
	// groupBase is the first id of groups, above those of single next hops.
	groupBase = mesh.NextHopBase + 1<<16
)

// routes is the plan of the mesh's routes. It is made when what the router or
// the links say has changed, and holds every leg that a destination may use.
// Between two plans only the members of its groups follow the links' states:
// a dead link costs one message, however many prefixes lay behind it.
type routes struct {
	stale  bool      // the plan is to be made anew
	urgent bool      // a link that may carry traffic went: members first
	until  time.Time // when the plan is to be made, the rest after an urgent change; zero: nothing waits
	pace   routing.Pace

	made    bool
	step    uint64 // of the router
	table   routing.Table
	dests   []planned
	groups  []group
	sources map[mesh.NodeID][]netip.Prefix // what may arrive from whom

	list []kernel.Route    // of the mesh
	dead string            // which groups had no member when list was made
	ids  map[string]uint32 // of the groups of this plan and the one before, by content
	had  map[share]uint8   // weights of the plan before, where they are not 0
}

// planDelays space the plans (the idea of RFC 8405): the first after a quiet time
// at once, so that one failure is answered at once, and fewer in a storm.
var planDelays = []time.Duration{0, 0, 2 * time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond, 20 * time.Millisecond}

// A share is what one link has of one destination's traffic.
type share struct {
	destination string // as named in facts
	link        mesh.LinkID
}

// planned is one destination of the plan.
type planned struct {
	routing.Destination
	group int
	named string // what it is called in facts
}

// A group is the legs that some destinations share, best first, and which of
// them carry traffic now.
type group struct {
	id     uint32
	legs   []leg
	carry  []leg
	choice choice // carry, as last told
}

// A leg is one link as part of a path.
type leg struct {
	e      *entry
	total  mesh.Cost
	weight uint8 // its share while all is well; 0: armed
}

// sure reports whether the leg's link is up, not merely not given up.
func (l leg) sure() bool { return l.e.judge.State() == link.Up }

// changed takes a change of a link's state.
func (r *routes) changed(before, after link.State) {
	if before == link.Up {
		r.urgent = true
	}
	if after == link.Down || before == link.Down || before == link.Probing {
		r.stale = true
	}
}

// legs gives every link over which the destination may be reached without a
// loop, best first.
func (n *Node) legs(d routing.Destination, links map[mesh.NodeID][]leg) []leg {
	var out []leg
	for _, s := range d.Successors {
		for _, l := range links[s.Peer] {
			out = append(out, leg{e: l.e, total: l.total.Add(s.Rest)})
		}
	}
	slices.SortFunc(out, func(a, b leg) int {
		return cmp.Or(cmp.Compare(a.total, b.total), a.e.rec.Link.Compare(b.e.rec.Link))
	})
	return out
}

// used splits legs into those that carry traffic, best first, and the armed
// rest in the order in which it would take over. Links that are up come before
// others, and the last path is used however bad it is.
func used(legs []leg) (carry, armed []leg) {
	live, peers := make([]leg, 0, len(legs)), 0
	for _, sure := range []bool{true, false} {
		for _, l := range legs {
			if l.e.judge.Usable() && l.sure() == sure {
				live = append(live, l)
			}
		}
		if peers == 0 {
			peers = len(live)
		}
	}
	if peers > 0 && live[0].weight == 0 {
		// Those that were to carry cannot: the next ones share anew.
		weigh(live[:peers], func(l leg) uint8 { return l.weight })
	}
	for i, l := range live {
		if i < peers && l.weight > 0 {
			carry = append(carry, l)
		} else {
			armed = append(armed, l)
		}
	}
	return carry, armed
}

// weigh gives each leg, best first, its share of the traffic; had tells the
// one that it has now.
func weigh(legs []leg, had func(leg) uint8) {
	for i := range legs {
		l := &legs[i]
		before := had(*l)
		within := func(join, stay uint64, member bool) bool {
			if member {
				join = stay
			}
			return l.total-legs[0].total <= alike || 100*uint64(l.total) <= join*uint64(legs[0].total)
		}
		switch {
		case within(joinFullSpread, fullSpread, before == 2):
			l.weight = 2
		case within(joinSpread, spread, before > 0):
			l.weight = 1
		default:
			l.weight = 0
		}
	}
}

// replan makes the plan anew.
func (n *Node) replan() {
	r := &n.routes
	r.table = n.router.Table()
	r.step, r.made, r.stale, r.urgent, r.until = r.table.Step, true, false, false, time.Time{}
	r.pace.Ran(n.now)
	r.list = nil

	links := map[mesh.NodeID][]leg{}
	for _, e := range n.sorted() {
		if e.judge != nil && e.judge.Usable() {
			links[e.rec.Link.Peer] = append(links[e.rec.Link.Peer], leg{e: e, total: n.legCost(e)})
		}
	}
	r.groups, r.dests = nil, nil
	// An id must not come to mean other legs while routes may be on it.
	before := r.ids
	r.ids = map[string]uint32{}
	taken := map[uint32]bool{}
	for _, id := range before {
		taken[id] = true
	}
	had := r.had
	r.had = map[share]uint8{}
	index := map[string]int{}
	names := map[string]bool{}
	for _, d := range r.table.Destinations {
		legs, named := n.legs(d, links), n.nameOf(d, names)
		weigh(legs, func(l leg) uint8 { return had[share{named, l.e.rec.Link}] })
		for _, l := range legs {
			if l.weight > 0 {
				r.had[share{named, l.e.rec.Link}] = l.weight
			}
		}
		key := content(legs)
		i, ok := index[key]
		if !ok {
			i = len(r.groups)
			index[key] = i
			id, known := before[key]
			if !known {
				id = groupID(key, taken)
			}
			r.ids[key] = id
			r.groups = append(r.groups, group{id: id, legs: legs})
		}
		r.dests = append(r.dests, planned{Destination: d, group: i, named: named})
	}
	n.planSources()
}

// content is equal for legs that the kernel would treat alike while all their
// links are well: the same order, the same ones carrying, the same weights.
func content(legs []leg) string {
	var b []byte
	for _, l := range legs {
		b = append(binary.BigEndian.AppendUint32(b, l.e.nextHop()), l.weight)
	}
	return string(b)
}

// groupID is an id that the same legs keep over restarts, unless it is taken.
func groupID(content string, taken map[uint32]bool) uint32 {
	h := fnv.New32a()
	h.Write([]byte(content))
	const span = mesh.NextHopEnd - groupBase
	id := groupBase + h.Sum32()%span
	for taken[id] {
		if id++; id == mesh.NextHopEnd {
			id = groupBase
		}
	}
	taken[id] = true
	return id
}

// meshRoutes puts next hops, routes and the filter into a desired state.
func (n *Node) meshRoutes(want *kernel.State) {
	r := &n.routes
	switch {
	case !n.settled:
		n.firstFilter(want)
		return
	case r.made && r.urgent:
		r.urgent = false
		if r.stale {
			r.until = n.now.Add(urgentPatience)
		}
	case r.stale || !r.made:
		n.replan()
	}
	n.steps = append(n.steps, step{n.revision, r.step})

	live, only := map[*entry]bool{}, map[*entry]bool{}
	var dead []byte
	for i := range r.groups {
		g := &r.groups[i]
		g.carry, _ = used(slices.DeleteFunc(slices.Clone(g.legs), func(l leg) bool { return n.entries[l.e.rec.Link] != l.e }))
		if len(g.carry) == 0 {
			dead = binary.BigEndian.AppendUint32(dead, g.id)
			continue
		}
		nh := kernel.NextHop{ID: g.id}
		for _, l := range g.carry {
			hop := kernel.Member{ID: l.e.nextHop(), Weight: l.weight}
			if len(g.legs) == 1 {
				hop.ID = l.e.onlyHop()
				only[l.e] = true
			} else {
				live[l.e] = true
			}
			nh.Members = append(nh.Members, hop)
		}
		if allEqual(nh.Members) {
			for i := range nh.Members {
				nh.Members[i].Weight = 1
			}
		}
		want.NextHops = append(want.NextHops, nh)
	}
	// A link that is not well and carries nothing that could go elsewhere has no
	// next hop: its removal is what heals every group at once. Where it is the
	// only way, it is used through an object of its own, so that it can stay.
	for _, e := range n.entries {
		if e.judge == nil || !n.hasTunnel(e) {
			continue
		}
		if live[e] || e.judge.State() == link.Up {
			want.NextHops = append(want.NextHops, kernel.NextHop{ID: e.nextHop(), Device: e.rec.Device})
		}
		if only[e] {
			want.NextHops = append(want.NextHops, kernel.NextHop{ID: e.onlyHop(), Device: e.rec.Device})
		}
	}
	if r.list == nil || r.dead != string(dead) {
		r.dead = string(dead)
		r.list = n.meshList()
	}
	want.Routes = r.list
	want.Rules = append(want.Rules, kernel.Rule{Priority: mesh.RuleMesh, Table: mesh.RouteTable})
	n.filter(want)
	n.tellChoices()
}

// hasTunnel reports whether the desired state holds the link's device.
func (n *Node) hasTunnel(e *entry) bool {
	_, ok := n.uplink(e.rec.Link.Local)
	return ok
}

// meshList gives the routes of the mesh.
func (n *Node) meshList() []kernel.Route {
	r, self := &n.routes, n.state.Nodes[n.cfg.Self]
	var out []kernel.Route
	routed := map[netip.Prefix]bool{}
	for _, d := range r.dests {
		g := &r.groups[d.group]
		if len(g.carry) == 0 {
			// Refused, even if the log does not know it any more: a shorter prefix
			// could lead back to where the packet came from.
			for _, p := range d.Prefixes {
				routed[p] = true
				out = append(out, kernel.Route{Table: mesh.RouteTable, Prefix: p, Kind: kernel.Unreachable})
			}
			continue
		}
		// The smallest MTU of all legs, armed ones included: a failover must
		// not have to touch the routes.
		mtu := 0
		for _, l := range g.legs {
			if m := l.e.seen.mtu; m != 0 && (mtu == 0 || m < mtu) {
				mtu = m
			}
		}
		for _, p := range d.Prefixes {
			source := self.Addr4
			if p.Addr().Is6() {
				source = self.Addr6
			}
			routed[p] = true
			out = append(out, kernel.Route{Table: mesh.RouteTable, Prefix: p, NextHop: g.id, Source: source, MTU: mtu})
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
				out = append(out, kernel.Route{Table: mesh.RouteTable, Prefix: p, Kind: kernel.Unreachable})
				routed[p] = true
			}
		}
	}
	// Should a device go down, the kernel drops its routes before anybody can
	// react: what belongs to the mesh is refused meanwhile as well.
	for _, p := range n.meshPrefixes() {
		out = append(out, kernel.Route{Table: mesh.RouteTable, Prefix: p, Metric: unreachableMetric, Kind: kernel.Unreachable})
		routed[p] = true
	}
	return n.throws(out, routed)
}

// throws makes what this machine reaches itself win over the mesh: attached
// prefixes, and granted ones that lie behind a router of the site.
func (n *Node) throws(routes []kernel.Route, routed map[netip.Prefix]bool) []kernel.Route {
	local := slices.Clone(n.state.Nodes[n.cfg.Self].Prefixes)
	for _, a := range n.host.Attached {
		local = append(local, a.Prefix)
	}
	slices.SortFunc(local, netip.Prefix.Compare)
	thrown := map[netip.Prefix]bool{}
	for _, p := range slices.Compact(local) {
		for r := range routed {
			if r.Overlaps(p) {
				thrown[p] = true
				break
			}
		}
	}
	routes = slices.DeleteFunc(routes, func(r kernel.Route) bool { return thrown[r.Prefix] })
	for p := range thrown {
		routes = append(routes, kernel.Route{Table: mesh.RouteTable, Prefix: p, Kind: kernel.Throw})
	}
	return routes
}

func allEqual(m []kernel.Member) bool {
	return !slices.ContainsFunc(m, func(x kernel.Member) bool { return x.Weight != m[0].Weight })
}

// planSources says whose packets may arrive from which neighbour.
func (n *Node) planSources() {
	n.routes.sources = map[mesh.NodeID][]netip.Prefix{}
	shared := map[*mesh.NodeID][]netip.Prefix{}
	for id := range n.peers {
		behind := n.routes.table.Behind[id]
		if !slices.Contains(behind, id) {
			behind = append(slices.Clone(behind), id)
		}
		if n.routes.sources[id] = shared[&behind[0]]; n.routes.sources[id] != nil {
			continue
		}
		var list []netip.Prefix
		for _, b := range behind {
			if node, ok := n.state.Nodes[b]; ok && b != n.cfg.Self {
				list = append(append(list, hostPrefixes(node)...), node.Prefixes...)
			}
		}
		n.routes.sources[id] = kernel.Aggregate(list)
		shared[&behind[0]] = n.routes.sources[id]
	}
}

// firstFilter gives the filter while the routes are not ours to decide. A
// filter that is in force from before the start is better than one of half a
// view, but it must follow when a neighbour's transit is to be refused.
func (n *Node) firstFilter(want *kernel.State) {
	refused := false
	for id := range n.peers {
		refused = refused || !n.router.Admits(id)
	}
	if n.adopted && !(n.complete && refused) {
		return
	}
	n.routes.table = routing.Table{Step: n.router.Step(), Behind: n.router.Behind()}
	n.routes.pace.Ran(n.now)
	n.planSources()
	n.filter(want)
	want.FilterComplete = true
	n.steps = append(n.steps, step{n.revision, n.routes.table.Step})
}

// meshPrefixes is everything that belongs to the mesh, but for what this
// machine reaches itself: without owning it, that may enter from there.
func (n *Node) meshPrefixes() []netip.Prefix {
	if n.pools == nil {
		for _, node := range n.state.Nodes {
			n.pools = append(append(n.pools, hostPrefixes(node)...), node.Prefixes...)
		}
		n.pools = kernel.Aggregate(slices.DeleteFunc(n.pools, func(p netip.Prefix) bool {
			return slices.ContainsFunc(n.host.Attached, func(a Attached) bool { return a.Prefix.Overlaps(p) })
		}))
	}
	return n.pools
}

// filter says what may arrive over each tunnel.
func (n *Node) filter(want *kernel.State) {
	self := n.state.Nodes[n.cfg.Self]
	f := kernel.Filter{Own: kernel.Aggregate(append(hostPrefixes(self), self.Prefixes...)), Mesh: n.meshPrefixes()}
	for id, e := range n.entries {
		if e.judge != nil {
			f.Links = append(f.Links, kernel.FilterLink{Device: e.rec.Device, Sources: n.routes.sources[id.Peer], Held: !n.router.Admits(id.Peer)})
		}
	}
	want.Filter = f
}

// nameOf is what a destination is called in facts: its origins, and a prefix
// where several destinations have the same.
func (n *Node) nameOf(d routing.Destination, taken map[string]bool) string {
	names := make([]string, len(d.Origins))
	for i, o := range d.Origins {
		names[i] = n.name(o)
	}
	what := strings.Join(names, "+")
	if taken[what] && len(d.Prefixes) > 0 {
		what += " " + d.Prefixes[0].String()
	}
	taken[what] = true
	return what
}

// A choice is the next hops of a destination.
type choice struct {
	links []mesh.LinkID // in order
	said  string        // in words, with shares
}

// tellChoices records changes of destinations' next hops for the event log.
// Another order or other shares among the same next hops are no news.
func (n *Node) tellChoices() {
	before := n.chosen
	n.chosen = make(map[string]choice, len(before))
	for i := range n.routes.groups {
		g := &n.routes.groups[i]
		g.choice = choice{said: n.describe(g.carry)}
		for _, l := range g.carry {
			g.choice.links = append(g.choice.links, l.e.rec.Link)
		}
		slices.SortFunc(g.choice.links, mesh.LinkID.Compare)
	}
	for _, d := range n.routes.dests {
		now := n.routes.groups[d.group].choice
		was, known := before[d.named]
		n.chosen[d.named] = now
		if slices.Equal(was.links, now.links) && (known || len(now.links) == 0) {
			continue
		}
		f := Fact{Node: d.Origins[0], From: was.said, To: now.said, Cause: n.lastCause}
		switch {
		case len(now.links) == 0:
			f.Kind, f.Sentence = RouteLost, "no path to "+d.named
		case len(was.links) == 0:
			f.Kind, f.Sentence = RouteFound, "path to "+d.named+" by "+now.said
		default:
			f.Kind, f.Sentence = RouteMoved, "path to "+d.named+" moved to "+now.said
		}
		n.fact(f)
	}
	for _, key := range slices.Sorted(maps.Keys(before)) {
		if _, still := n.chosen[key]; !still && len(before[key].links) > 0 {
			n.fact(Fact{Kind: RouteLost, Sentence: "no path to " + key + " any more", Cause: "it is announced no longer", From: before[key].said})
		}
	}
}

// describe names the next hops of a choice, with shares when there are several:
// neighbour, and our uplink and theirs where they have more than one.
func (n *Node) describe(carry []leg) string {
	parts := make([]string, len(carry))
	part := shares(carry)
	for i, l := range carry {
		parts[i] = n.linkName(l.e.rec.Link)
		if len(carry) > 1 {
			parts[i] += fmt.Sprintf(" %.0f %%", 100*part[i])
		}
	}
	return strings.Join(parts, ", ")
}
