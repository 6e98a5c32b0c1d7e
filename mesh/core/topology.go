package core

import (
	"maps"
	"slices"
	"time"

	"guywire/mesh"
	"guywire/mesh/link"
	"guywire/routing/topology"
	"guywire/routing/topology/coordinate"
	"guywire/store"
)

const (
	// locateEvery is how often round trip times move our coordinate.
	locateEvery = 5 * time.Second
	// rebuildEvery is how often coordinates alone may change who is linked.
	rebuildEvery = 45 * time.Second
)

// shape is the wanted mesh and our part in the way there.
type shape struct {
	graph   *topology.Graph
	built   time.Time
	members bool // the log changed since
	rewire  topology.Rewire
	wanted  []mesh.NodeID // as last planned
	retire  []mesh.NodeID // neighbours whose links are being drained
	next    time.Time     // when to plan again; zero: when something changes

	publisher *coordinate.Publisher
	located   time.Time
}

// wanted gives the nodes that the mesh wants linked to us. While nothing is
// known of distances yet, rings and hashes choose; coordinates refine that
// slowly.
func (n *Node) wanted() []mesh.NodeID {
	s := &n.shape
	if s.graph == nil || s.members || n.now.Sub(s.built) >= rebuildEvery {
		nodes := make([]topology.Node, 0, len(n.state.Nodes))
		for _, id := range slices.SortedFunc(maps.Keys(n.state.Nodes), mesh.NodeID.Compare) {
			node := n.state.Nodes[id]
			t := topology.Node{
				ID: id, Reachable: len(node.Control) > 0, Transit: !node.NoTransit, Cap: node.MaxDegree, Tags: node.Tags,
			}
			said := n.facts[id].Distances
			if id == n.cfg.Self {
				said = n.distances
			}
			t.Coordinate, t.RTT = said.Coordinate, said.RTT
			nodes = append(nodes, t)
		}
		s.graph, s.built, s.members = n.cfg.Build(nodes, policy(n.state.Mesh)), n.now, false
	}
	return s.graph.Neighbours(n.cfg.Self)
}

// rewire gives the nodes to have links with now: those that are wanted, and
// those that were and are needed until the others work.
func (n *Node) rewire() []mesh.NodeID {
	s := &n.shape
	s.wanted = n.wanted()
	present := map[mesh.NodeID]*topology.Present{}
	for id, e := range n.entries {
		p := present[id.Peer]
		if p == nil {
			p = &topology.Present{ID: id.Peer}
			present[id.Peer] = p
		}
		if e.judge == nil || !e.judge.Usable() || !n.router.Usable(id.Peer) {
			continue
		}
		if since := e.judge.Since(); p.Since.IsZero() || since.Before(p.Since) {
			p.Since = since
		}
		p.Busy = p.Busy || e.judge.Busy(n.now)
	}
	have := make([]topology.Present, 0, len(present))
	keep := slices.Clone(s.wanted)
	for _, id := range slices.SortedFunc(maps.Keys(present), mesh.NodeID.Compare) {
		p := present[id]
		if !slices.Contains(s.wanted, id) {
			p.Needed = slices.Contains(s.graph.Spared(id, n.router.Announced(id)), n.cfg.Self)
			keep = append(keep, id)
		}
		have = append(have, *p)
	}
	_, drain, remove, deadline := s.rewire.Step(n.now, s.wanted, have)
	if !slices.Equal(s.retire, drain) {
		s.retire, n.routes.stale, n.ready.Dirty = drain, true, true
	}
	s.next = deadline
	if s.next.IsZero() || s.next.After(s.built.Add(rebuildEvery)) {
		s.next = s.built.Add(rebuildEvery)
	}
	return slices.DeleteFunc(keep, func(id mesh.NodeID) bool { return slices.Contains(remove, id) })
}

// policy is what the operator decided about the mesh's shape.
func policy(s store.Settings) topology.Policy {
	p := topology.Policy{Salt: s.ID, Dense: s.Topology.Dense, HubTag: s.Topology.Hub}
	switch s.Topology.Mode {
	case store.TopologyFull:
		p.Mode = topology.Full
	case store.TopologyHub:
		p.Mode = topology.Hub
	}
	for _, pair := range s.Topology.Pinned {
		p.Pins = append(p.Pins, [2]mesh.NodeID{pair.A, pair.B})
	}
	for _, pair := range s.Topology.Forbidden {
		p.Forbids = append(p.Forbids, [2]mesh.NodeID{pair.A, pair.B})
	}
	return p
}

// locate moves our coordinate by what the links measure, and publishes it when
// what others know of it has become wrong.
func (n *Node) locate() {
	s := &n.shape
	if n.state == nil || n.now.Sub(s.located) < locateEvery {
		return
	}
	s.located = n.now
	rtt := map[mesh.NodeID]time.Duration{}
	for id, e := range n.entries {
		if e.judge != nil && e.judge.State() == link.Up && e.judge.RTT() > 0 {
			if old, ok := rtt[id.Peer]; !ok || e.judge.RTT() < old {
				rtt[id.Peer] = e.judge.RTT()
			}
		}
	}
	for id, d := range rtt {
		s.publisher.Observe(n.now, id, d)
	}
	said, changed := s.publisher.Update(n.now, func(id mesh.NodeID) coordinate.Published { return n.facts[id].Distances.Coordinate })
	if changed {
		n.distances, n.ready.Distances = said, &said
	}
}

// Topology is the mesh that is wanted; nil before anything is known.
func (n *Node) Topology() *topology.Graph { return n.shape.graph }
