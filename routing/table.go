package routing

import (
	"net/netip"
	"slices"
	"strings"

	"guywire/mesh"
	"guywire/routing/spf"
)

// A Destination is a set of prefixes with the same origins, and the
// neighbours that may carry traffic to them.
type Destination struct {
	Origins    []mesh.NodeID  // sorted; more than one: anycast
	Prefixes   []netip.Prefix // sorted
	Distance   mesh.Cost      // ours, from the database
	Successors []Successor    // by total cost, then id; all are downstream of us
}

// A Successor is a neighbour whose own distance to the destination is below
// ours. Any subset of the successors of every node is free of loops as long
// as the nodes' databases agree.
type Successor struct {
	Peer mesh.NodeID
	// Rest is the neighbour's own distance to the destination; the cost of
	// the leg to it is the caller's to add.
	Rest mesh.Cost
}

// A Table is the outcome of one computation.
type Table struct {
	Destinations []Destination // sorted by origins
	// Behind holds, for each neighbour, the nodes that a path not through us
	// joins to it: whose packets may arrive from there.
	Behind map[mesh.NodeID][]mesh.NodeID
}

// Compute gives the routes that follow from the database now.
func (r *Router) Compute() Table {
	g := spf.NewGraph()
	self := g.Node(r.cfg.Self)
	r.db.twoWay(g.AddEdge)
	for id, s := range r.db.lsas {
		if s.lsa.NoTransit {
			g.SetStub(id)
		}
	}

	fromSelf := g.Distances(self)
	fromPeer := map[mesh.NodeID][]mesh.Cost{}
	t := Table{Behind: map[mesh.NodeID][]mesh.NodeID{}}
	for peer := range r.adj {
		n, ok := g.Lookup(peer)
		if !ok || fromSelf[n] >= mesh.Infinite {
			continue // not yet announced by both ends
		}
		fromPeer[peer] = g.Distances(n)
		for i, d := range g.DistancesWithout(n, self) {
			if d < mesh.Infinite {
				t.Behind[peer] = append(t.Behind[peer], g.ID(i))
			}
		}
		slices.SortFunc(t.Behind[peer], mesh.NodeID.Compare)
	}

	for _, d := range r.destinations() {
		if slices.Contains(d.Origins, r.cfg.Self) {
			continue // ours: the kernel delivers it
		}
		d.Distance = nearest(g, fromSelf, d.Origins)
		for peer, dist := range fromPeer {
			rest := nearest(g, dist, d.Origins)
			transit := !slices.Contains(d.Origins, peer)
			if transit && r.db.lsas[peer].lsa.NoTransit {
				continue
			}
			if rest < d.Distance {
				d.Successors = append(d.Successors, Successor{peer, rest})
			}
		}
		slices.SortFunc(d.Successors, func(a, b Successor) int {
			return compareSuccessors(a, b, r.adj)
		})
		t.Destinations = append(t.Destinations, d)
	}
	return t
}

func compareSuccessors(a, b Successor, adj map[mesh.NodeID]mesh.Cost) int {
	x, y := a.Rest.Add(adj[a.Peer]), b.Rest.Add(adj[b.Peer])
	if x != y {
		return int(x) - int(y)
	}
	return a.Peer.Compare(b.Peer)
}

// nearest is the distance to the nearest of several origins.
func nearest(g *spf.Graph, dist []mesh.Cost, origins []mesh.NodeID) mesh.Cost {
	best := mesh.Infinite
	for _, o := range origins {
		if n, ok := g.Lookup(o); ok {
			best = min(best, dist[n])
		}
	}
	return best
}

// destinations groups all prefixes that count by their set of origins.
func (r *Router) destinations() []Destination {
	origins := map[netip.Prefix][]mesh.NodeID{}
	for _, id := range r.db.origins() { // sorted, so each list is sorted
		for _, p := range r.db.prefixes(id) {
			origins[p] = append(origins[p], id)
		}
	}
	group := map[string]*Destination{}
	var out []*Destination
	for p, ids := range origins {
		var key strings.Builder
		for _, id := range ids {
			key.WriteString(string(id[:]))
		}
		d := group[key.String()]
		if d == nil {
			d = &Destination{Origins: ids}
			group[key.String()] = d
			out = append(out, d)
		}
		d.Prefixes = append(d.Prefixes, p)
	}
	slices.SortFunc(out, func(a, b *Destination) int { return slices.CompareFunc(a.Origins, b.Origins, mesh.NodeID.Compare) })
	dests := make([]Destination, len(out))
	for i, d := range out {
		slices.SortFunc(d.Prefixes, netip.Prefix.Compare)
		dests[i] = *d
	}
	return dests
}
