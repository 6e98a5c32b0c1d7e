package routing

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"guywire/mesh"
	"guywire/routing/lfi"
	"guywire/routing/spf"
	"guywire/routing/wire"
)

// A Destination is a set of prefixes with the same origins and the same
// neighbours that may carry traffic to them.
type Destination struct {
	Key        wire.Destination // of the first of them
	Origins    []mesh.NodeID    // sorted; more than one: anycast
	Prefixes   []netip.Prefix   // sorted
	Distance   mesh.Cost        // ours, from the database
	Successors []Successor      // sorted by id; any subset of them, at any node, is free of loops
}

// A Successor is a neighbour that may carry traffic to a destination.
type Successor struct {
	Peer mesh.NodeID
	// Rest is the neighbour's own distance to the destination; the cost of
	// the leg to it is the caller's to add.
	Rest mesh.Cost
}

// A Table is what the kernel should forward by.
type Table struct {
	Step         uint64                        // for Committed
	Destinations []Destination                 // in an order that depends on the database alone
	Behind       map[mesh.NodeID][]mesh.NodeID // as of Router.Behind
}

// routes is what is computed from the database.
type routes struct {
	dests   []known
	index   map[wire.Destination]int
	retired bool          // some are
	of      map[int][]int // node in the graph → destinations that it is an origin of
	seen    surroundings  // at the last computation
}

// surroundings is what every destination's advice depends on, besides its own
// distances.
type surroundings struct {
	near                []nearby
	noTransit, overload bool
}

// nearby is a neighbour that may be a next hop.
type nearby struct {
	n     *neighbour
	tree  *spf.Tree
	doubt bool
	// towards us, what it announces; Infinite: nothing.
	toUs mesh.Cost
}

// known is one destination that the database tells of, or told of. Such a
// retired one stays until no neighbour's kernel sends us anything for it: a
// packet must not meet a shorter prefix that leads back to where it came from.
type known struct {
	key      wire.Destination
	number   int // in lfi
	origins  []mesh.NodeID
	nodes    []int // of origins, in the graph; none: retired
	ours     bool
	prefixes []netip.Prefix
	dist     mesh.Cost
	lost     time.Time // when we or a neighbour may last have lost a path
}

func (r *routes) known(key wire.Destination) bool {
	_, ok := r.index[key]
	return ok
}

// recompute brings the advice up to the database.
func (r *Router) recompute() {
	r.due = false
	r.version++
	rebuilt := r.db.replaced || r.routes.index == nil
	if rebuilt {
		r.db.replaced = false
		r.rebuild()
	}
	moved := r.self.Update()
	now := surroundings{noTransit: r.own.noTransit}
	if self := r.db.origins[r.cfg.Self]; self != nil {
		now.overload = self.overload
	}
	for _, n := range r.order {
		if n.tree == nil {
			continue
		}
		moved = append(moved, n.tree.Update()...)
		if n.usable() {
			toUs, ok := r.db.towards(n.id, r.cfg.Self)
			if !ok {
				toUs = mesh.Infinite
			}
			now.near = append(now.near, nearby{n, n.tree, n.doubt, toUs})
		}
	}
	all := rebuilt || !r.routes.seen.equal(now)
	if !r.routes.seen.alike(now) {
		r.shaken = r.now
	}
	r.routes.seen = now
	if r.db.lost {
		r.db.lost = false
		for _, node := range moved {
			for _, i := range r.routes.of[node] {
				r.routes.dests[i].lost = r.now
			}
		}
	}
	if !r.slackAt.IsZero() && !r.now.Before(r.slackAt) {
		r.slackAt, all = time.Time{}, true
	}
	if all {
		for i := range r.routes.dests {
			r.advise(&r.routes.dests[i])
		}
		return
	}
	for _, node := range moved {
		for _, i := range r.routes.of[node] {
			r.advise(&r.routes.dests[i])
		}
	}
}

// alike reports whether the same neighbours may be next hops, with no other doubts.
func (s surroundings) alike(o surroundings) bool {
	return s.noTransit == o.noTransit && s.overload == o.overload &&
		slices.EqualFunc(s.near, o.near, func(a, b nearby) bool { return a.n == b.n && a.doubt == b.doubt })
}

func (s surroundings) equal(o surroundings) bool {
	return s.noTransit == o.noTransit && s.overload == o.overload && slices.Equal(s.near, o.near)
}

// advise brings the advice for one destination up to the trees.
func (r *Router) advise(d *known) {
	d.dist = d.nearest(r.self)
	switch {
	case d.ours:
		r.lfi.Advise(d.number, 0)
	case r.own.noTransit:
		r.lfi.Advise(d.number, mesh.Infinite) // nobody comes through here, so any neighbour will do
	default:
		r.lfi.Advise(d.number, r.potential(d))
	}
}

// potential is what to go by for a destination: more than our distance only as
// slack gives it. It grows with the distance at once and to take slack when
// nobody has lost a path to this destination for a while: a neighbour that just
// did may be using us. What moves elsewhere, and costs that breathe, are no matter:
// in a large mesh something always does.
//
// Where all that tell less are in doubt or about to tell more, it grows to what
// makes the next one usable: neighbours agree faster than a link is given up. And
// where those that are nearer do not tell less, to what makes one of them usable.
func (r *Router) potential(d *known) mesh.Cost {
	p, now := r.slack(d), r.lfi.View(d.number).Distance
	calm := d.lost
	if r.shaken.After(calm) {
		calm = r.shaken
	}
	if at := calm.Add(slackAfter); now < mesh.Infinite && p > max(now, d.dist) && r.now.Before(at) {
		// Those that wait are looked at together.
		if at = at.Truncate(slackEvery).Add(slackEvery); r.slackAt.IsZero() || at.Before(r.slackAt) {
			r.slackAt = at
		}
		p = max(now, d.dist)
	}
	return max(p, r.detour(d, p))
}

// detour is just more than the least that a neighbour tells or will tell soon who
// is not in doubt, when none of those tells less than p; 0 otherwise. It must be
// nearer than we are or, when there is doubt, at least not go through us: who climbs
// on others that have no way either counts to infinity.
func (r *Router) detour(d *known, p mesh.Cost) mesh.Cost {
	doubt, nearer, other := false, mesh.Infinite, mesh.Infinite
	for _, n := range r.routes.seen.near {
		told, held := r.told(n.n, d.number)
		doubt = doubt || held || n.doubt && told < p
		switch rest := d.nearest(n.tree); {
		case n.doubt:
		case told < p:
			return 0
		case rest < d.dist:
			nearer = min(nearer, max(told, rest))
		case !r.through(d, n):
			other = min(other, max(told, rest))
		}
	}
	if doubt {
		nearer = min(nearer, other)
	}
	if d.dist >= mesh.Infinite || nearer >= mesh.Infinite-1 {
		return 0
	}
	return nearer + 1
}

// through reports whether a neighbour's best path leads through us.
func (r *Router) through(d *known, n nearby) bool {
	here := d.dist
	if r.routes.seen.overload {
		here = min(here.Add(spf.Penalty), mesh.Infinite-1)
	}
	return n.toUs < mesh.Infinite && d.nearest(n.tree) == here.Add(n.toUs)
}

// rebuild lists the destinations anew: each node, and each prefix of its own.
// Prefixes are not grouped by origin here: two nodes may know different
// origins of one prefix for a while, and what is safe for each of two groups
// need not be safe for a packet that passes from one to the other. For the same
// reason a new destination is a step: neighbours may send us packets for it
// when the kernel has its prefixes, as unreachable if need be.
func (r *Router) rebuild() {
	old, added := r.routes, false
	r.routes = routes{index: map[wire.Destination]int{}, of: map[int][]int{}}
	add := func(k known) {
		k.number = r.lfi.Destination(k.key)
		k.ours = slices.Contains(k.origins, r.cfg.Self)
		for _, o := range k.origins {
			node := r.db.graph.Node(o)
			k.nodes = append(k.nodes, node)
			r.routes.of[node] = append(r.routes.of[node], len(r.routes.dests))
		}
		r.routes.index[k.key] = len(r.routes.dests)
		if i, ok := old.index[k.key]; ok {
			k.lost = old.dests[i].lost
		} else {
			added = true
		}
		r.routes.dests = append(r.routes.dests, k)
	}
	for _, id := range slices.SortedFunc(maps.Keys(r.db.members), mesh.NodeID.Compare) {
		add(known{key: wire.Destination{Node: id}, origins: []mesh.NodeID{id}, prefixes: slices.SortedFunc(slices.Values(r.db.members[id].Addrs), netip.Prefix.Compare)})
	}
	origins, foreign := r.db.prefixOrigins()
	if foreign > 0 {
		r.dropped[DropForeignPrefix] = uint64(foreign)
	}
	for _, p := range slices.SortedFunc(maps.Keys(origins), netip.Prefix.Compare) {
		add(known{key: wire.Destination{Prefix: p}, origins: origins[p], prefixes: []netip.Prefix{p}})
	}
	if added {
		r.lfi.Touch()
	}
	for _, d := range old.dests {
		if r.routes.known(d.key) {
			continue
		}
		r.lfi.Advise(d.number, mesh.Infinite)
		if v := r.lfi.View(d.number); v.Reported < mesh.Infinite || v.Feasible < mesh.Infinite {
			d.nodes, d.ours, d.dist = nil, false, mesh.Infinite
			r.routes.index[d.key] = len(r.routes.dests)
			r.routes.dests = append(r.routes.dests, d)
			r.routes.retired = true
		}
	}
}

// nearest is the distance to the nearest origin.
func (d *known) nearest(t *spf.Tree) mesh.Cost {
	best := mesh.Infinite
	for _, n := range d.nodes {
		best = min(best, t.Distance(n))
	}
	return best
}

// slack is the potential to go by: our distance, or, where only one neighbour
// is nearer, as much more as makes a second one usable, but not so much that a
// neighbour whose best path leads through us could not use us any more
// (routing by any potential is safe; this one covers more single failures).
func (r *Router) slack(d *known) mesh.Cost {
	if d.dist >= mesh.Infinite {
		return d.dist
	}
	downstream, second, limit := 0, mesh.Infinite, mesh.Infinite
	for _, n := range r.routes.seen.near {
		switch rest := d.nearest(n.tree); {
		case rest < d.dist:
			downstream++
		case r.through(d, n):
			limit = min(limit, rest)
		default:
			second = min(second, rest)
		}
	}
	if downstream == 1 && second < mesh.Infinite && second+1 < limit {
		return second + 1
	}
	return d.dist
}

// Table gives what the kernel should forward by now.
func (r *Router) Table() Table {
	t := Table{Step: r.lfi.Step(), Behind: r.Behind(), Destinations: make([]Destination, 0, len(r.routes.dests))}
	// The destinations made so far from those with the same first origin: the
	// newest of each, by node, and the one before it.
	newest := make([]int32, r.db.graph.Len())
	before := make([]int32, 0, len(r.routes.dests))
	successors := make([]Successor, 0, len(r.routes.dests)*4)
	drained := make([]bool, len(r.order))
	for i, n := range r.order {
		if o := r.db.origins[n.id]; o != nil {
			drained[i] = o.overload
		}
	}
	for i := range r.routes.dests {
		d := &r.routes.dests[i]
		if r.delivers(d) {
			continue
		}
		made := Destination{Key: d.key, Origins: d.origins, Distance: d.dist, Prefixes: d.prefixes[:len(d.prefixes):len(d.prefixes)]}
		if len(d.nodes) == 0 {
			t.Destinations, before = append(t.Destinations, made), append(before, 0)
			continue // retired: refused, until nobody sends us anything for it
		}
		start := len(successors)
		successors = r.successors(successors, d, drained)
		made.Successors = successors[start:len(successors):len(successors)]
		same := newest[d.nodes[0]]
		for same != 0 && !t.Destinations[same-1].joins(&made) {
			same = before[same-1]
		}
		if same != 0 {
			successors = successors[:start]
			group := &t.Destinations[same-1]
			group.Prefixes = append(group.Prefixes, d.prefixes...)
			slices.SortFunc(group.Prefixes, netip.Prefix.Compare)
			continue
		}
		t.Destinations, before = append(t.Destinations, made), append(before, newest[d.nodes[0]])
		newest[d.nodes[0]] = int32(len(t.Destinations))
	}
	return t
}

// joins reports whether prefixes of e behave like those of d.
func (d *Destination) joins(e *Destination) bool {
	return slices.Equal(d.Origins, e.Origins) && slices.Equal(d.Successors, e.Successors)
}

// delivers reports whether the kernel has a place of its own for a
// destination. One that we just gave up still comes to us for a while.
func (r *Router) delivers(d *known) bool {
	if d.key.Node == r.cfg.Self {
		return true
	}
	_, ok := slices.BinarySearchFunc(r.own.prefixes, d.key.Prefix, netip.Prefix.Compare)
	return ok
}

// successors appends the neighbours that may carry traffic to a destination.
// drained are those, in the order of neighbours, that are a last resort as transit.
func (r *Router) successors(out []Successor, d *known, drained []bool) []Successor {
	i := 0
	for id, rest := range r.lfi.Successors(d.number) {
		for r.order[i].id != id { // both are in order of ids
			i++
		}
		if tree := r.order[i].tree; tree != nil {
			if known := d.nearest(tree); known < mesh.Infinite {
				rest = known
			}
		}
		if drained[i] && !slices.Contains(d.origins, id) {
			rest = min(rest.Add(DrainPenalty), mesh.Infinite-1)
		}
		out = append(out, Successor{id, rest})
	}
	return out
}

// Behind gives, for each neighbour, the nodes that a path not through us joins
// to it: whose packets may arrive from there. Sorted; lists are shared.
func (r *Router) Behind() map[mesh.NodeID][]mesh.NodeID {
	label := r.db.graph.Islands(r.db.graph.Node(r.cfg.Self))
	members := map[int][]mesh.NodeID{}
	for i := range r.routes.dests {
		// Nodes come in order of their ids.
		if d := &r.routes.dests[i]; !d.key.Node.IsZero() && len(d.nodes) == 1 {
			members[label[d.nodes[0]]] = append(members[label[d.nodes[0]]], d.key.Node)
		}
	}
	out := map[mesh.NodeID][]mesh.NodeID{}
	// A neighbour that is down for a moment is no reason to write the filter anew,
	// just when the routes have to be.
	for _, peer := range r.order {
		if n, ok := r.db.graph.Lookup(peer.id); ok {
			out[peer.id] = members[label[n]]
		}
	}
	return out
}

// A Feasibility is one destination's state in routing/lfi, for people.
type Feasibility struct {
	lfi.View
	Reports []Report // sorted by id
}

// A Report is a neighbour's word on a destination.
type Report struct {
	Peer      mesh.NodeID
	Distance  mesh.Cost
	Successor bool
}

// Feasibility tells why each neighbour may or may not carry traffic to a
// destination.
func (r *Router) Feasibility(key wire.Destination) (Feasibility, bool) {
	i, ok := r.lfi.Lookup(key)
	if !ok {
		return Feasibility{}, false
	}
	f := Feasibility{View: r.lfi.View(i)}
	for _, n := range r.order {
		d := r.lfi.Reported(n.id, i)
		f.Reports = append(f.Reports, Report{n.id, d, n.usable() && d < f.Feasible})
	}
	return f, true
}
