package sim

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"guywire/mesh"
	"guywire/mesh/kernel"
)

// A fib is the mesh's routes in a kernel, by column of the world. The prefixes
// of a world do not overlap, so the longest match is the only one.
type fib struct {
	routes []kernel.Route
	places []int32  // the column of each route; negative: not a route of the mesh to anywhere
	hop    []uint32 // by column, its group; 0: none
	groups map[uint32][]leg
}

type leg struct {
	tunnel *tunnel
	weight uint32
}

// legs are the ways to a column; none: nothing is forwarded there.
func (f *fib) legs(column int32) []leg {
	if int(column) >= len(f.hop) {
		return nil
	}
	return f.groups[f.hop[column]]
}

// compile makes a fib of the node's routes and next hops, and says how many
// routes differ from what is installed. Both lists are sorted.
func (n *Node) compile(routes []kernel.Route, hops []kernel.NextHop) (f *fib, changed int) {
	w := n.world
	f = &fib{routes: routes, places: make([]int32, len(routes)), hop: make([]uint32, len(w.columns)), groups: make(map[uint32][]leg, len(hops))}
	devices := make(map[uint32]*tunnel, len(n.tunnels))
	for _, h := range hops {
		if !h.IsGroup() {
			devices[h.ID] = n.byDevice[h.Device]
			f.groups[h.ID] = []leg{{n.byDevice[h.Device], 1}}
		}
	}
	for _, h := range hops {
		if !h.IsGroup() {
			continue
		}
		legs := make([]leg, 0, len(h.Members))
		for _, m := range h.Members {
			if t := devices[m.ID]; t != nil {
				legs = append(legs, leg{t, uint32(m.Weight)})
			}
		}
		f.groups[h.ID] = legs
	}
	old, at := n.fib, 0
	for i := range routes {
		r := &routes[i]
		for at < len(old.routes) && old.routes[at].Prefix != r.Prefix && old.routes[at].Key().Compare(r.Key()) < 0 {
			at++
			changed++
		}
		known := at < len(old.routes) && old.routes[at].Prefix == r.Prefix && old.routes[at].Table == r.Table
		switch {
		case r.Table != mesh.RouteTable || r.Kind != kernel.Forward:
			f.places[i] = -1
		case known && old.places[at] >= 0:
			f.places[i] = old.places[at]
		default:
			f.places[i] = w.columnOf[r.Prefix]
		}
		if known {
			if !sameRoute(&old.routes[at], r) {
				changed++
			}
			at++
		} else {
			changed++
		}
		if f.places[i] >= 0 {
			f.hop[f.places[i]] = r.NextHop
		}
	}
	return f, changed + len(old.routes) - at
}

func sameRoute(a, b *kernel.Route) bool {
	return a.NextHop == b.NextHop && a.Kind == b.Kind && a.MTU == b.MTU && a.Device == b.Device
}

// install puts a state into the node's kernel, and looks whether anything can
// loop now that could not before.
func (n *Node) install(s kernel.State, f *fib) {
	w, old := n.world, n.fib
	w.changed = true
	made, admitted := n.installTunnels(s)
	n.kernel, n.fib = s, f
	if n.Dead {
		return
	}

	// Legs that were not there before.
	type change struct{ old, new uint32 }
	grown := map[change]bool{}
	for _, c := range f.places {
		if c < 0 {
			continue
		}
		was := uint32(0)
		if int(c) < len(old.hop) {
			was = old.hop[c]
		}
		key := change{was, f.hop[c]}
		more, known := grown[key]
		if !known {
			more = slices.ContainsFunc(f.groups[key.new], func(l leg) bool {
				return slices.Contains(made, l.tunnel) || !slices.ContainsFunc(old.groups[was], func(o leg) bool { return o.tunnel == l.tunnel })
			})
			grown[key] = more
		}
		if more {
			w.search(n, c)
		}
	}
	// What neighbours send here, and is let in only now.
	for _, t := range append(made, admitted...) {
		if t.far == nil || t.node.Dead {
			continue
		}
		from := t.peer
		through := map[uint32]bool{}
		for id, legs := range from.fib.groups {
			if slices.ContainsFunc(legs, func(l leg) bool { return l.tunnel == t.far }) {
				through[id] = true
			}
		}
		for c, id := range from.fib.hop {
			if through[id] {
				w.search(from, int32(c))
			}
		}
	}
}

// admits reports whether a packet from a node is let in: transit, or for the
// node itself.
func (t *tunnel) admits(source *Node, transit bool) bool {
	if !t.listed || t.held && transit {
		return false
	}
	return t.covered()[source.Index/64]>>(source.Index%64)&1 != 0
}

// search looks whether a packet can come back to where it is now.
func (w *World) search(from *Node, column int32) {
	c := &w.columns[column]
	if c.owner == from {
		return
	}
	w.mark++
	if cycle := from.returns(from, column, c.owner); cycle != nil {
		slices.Reverse(cycle)
		w.Loops = append(w.Loops, w.describe(cycle, c))
	}
}

// returns gives the nodes on a way back to start, the last one first, along
// everything that kernels forward and filters let in, whether the paths
// between work or not; nil: there is none.
func (n *Node) returns(start *Node, column int32, owner *Node) []*Node {
	n.mark = n.world.mark
	for _, l := range n.fib.legs(column) {
		t := l.tunnel
		if !t.installed || t.far == nil || !t.far.installed || !t.far.listed || t.far.held {
			continue
		}
		switch p := t.peer; {
		case p == start:
			return []*Node{n}
		case p == owner || p.mark == n.world.mark:
		default:
			if cycle := p.returns(start, column, owner); cycle != nil {
				return append(cycle, n)
			}
		}
	}
	return nil
}

// describe says what there is to say about a loop.
func (w *World) describe(cycle []*Node, c *column) string {
	var s strings.Builder
	fmt.Fprintf(&s, "%.4f s: a packet for %v of node %d goes round", w.now.Seconds(), c.prefix, c.owner.Index)
	for _, n := range cycle {
		fmt.Fprintf(&s, "\n  node %d, running %t, settled %t, forwards to", n.Index, n.Running, n.Core.Settled())
		for _, l := range n.fib.legs(w.columnOf[c.prefix]) {
			fmt.Fprintf(&s, " %d", l.tunnel.peer.Index)
		}
		for _, r := range n.Core.Routes() {
			if !slices.Contains(r.Prefixes, c.prefix) {
				continue
			}
			f := r.Feasibility
			fmt.Fprintf(&s, "; distance %d reported %d feasible %d;", f.Distance, f.Reported, f.Feasible)
			for _, p := range f.Reports {
				fmt.Fprintf(&s, " %d says %d", w.byID[p.Peer].Index, p.Distance)
			}
		}
	}
	return s.String()
}

// covered is the nodes all of whose prefixes the filter lets in from the
// tunnel, as bits by index.
func (t *tunnel) covered() []uint64 {
	w := t.node.world
	if t.covers != nil && len(t.covers) == (len(w.Nodes)+63)/64 {
		return t.covers
	}
	for _, o := range t.node.tunnels {
		if o != t && o.covers != nil && identical(o.sources, t.sources) && len(o.covers) == (len(w.Nodes)+63)/64 {
			t.covers = o.covers
			return t.covers
		}
	}
	t.covers = make([]uint64, (len(w.Nodes)+63)/64)
	missing := make([]uint64, len(t.covers))
	for _, c := range w.columns {
		i := c.owner.Index
		at, exact := slices.BinarySearchFunc(t.sources, c.prefix, netip.Prefix.Compare)
		if !exact && (at == 0 || !t.sources[at-1].Contains(c.prefix.Addr())) {
			missing[i/64] |= 1 << (i % 64)
		}
	}
	for i := range w.Nodes {
		if missing[i/64]>>(i%64)&1 == 0 {
			t.covers[i/64] |= 1 << (i % 64)
		}
	}
	return t.covers
}
