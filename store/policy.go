package store

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"guywire/mesh"
)

// Limits of the operator's policy.
const (
	MaxPairs      = 4096 // pinned and forbidden ones together
	MaxDrains     = 256  // of one node, besides that of the whole node
	maxPairDrains = 16   // of the links of two nodes, by those who are no operators
	MinDegreeCap  = 2    // a ring needs two neighbours
	MaxDegreeCap  = 500  // what one announcement holds, with some to spare
)

// A TopologyMode says how the nodes' neighbours are chosen.
type TopologyMode string

// Modes of the topology.
const (
	TopologyAuto TopologyMode = ""     // a full mesh while it is small, then a partial one
	TopologyFull TopologyMode = "full" // every node is every node's neighbour
	TopologyHub  TopologyMode = "hub"  // every node is a neighbour of the hubs only
)

// A Topology is the operator's choice of which nodes get links to each other.
// Its zero value leaves all to the mesh.
type Topology struct {
	Mode      TopologyMode `json:"mode,omitempty"`
	Hub       string       `json:"hub,omitempty"`   // tag of the hubs; with TopologyHub, and only then
	Dense     bool         `json:"dense,omitempty"` // TopologyAuto: more neighbours for each
	Pinned    []Pair       `json:"pinned,omitempty"`
	Forbidden []Pair       `json:"forbidden,omitempty"` // sorted, as Pinned; none is in both
}

// IsZero reports whether all is left to the mesh.
func (t Topology) IsZero() bool {
	return t.Mode == TopologyAuto && t.Hub == "" && !t.Dense && len(t.Pinned)+len(t.Forbidden) == 0
}

// A Pair is two different nodes, in the order of their ids.
type Pair struct {
	A mesh.NodeID `json:"a"`
	B mesh.NodeID `json:"b"`
}

// MakePair gives the pair of two nodes, named in any order.
func MakePair(a, b mesh.NodeID) Pair {
	if b.Compare(a) < 0 {
		a, b = b, a
	}
	return Pair{a, b}
}

// Compare orders pairs.
func (p Pair) Compare(q Pair) int { return cmp.Or(p.A.Compare(q.A), p.B.Compare(q.B)) }

func (p Pair) has(id mesh.NodeID) bool { return p.A == id || p.B == id }

// A Drain is what an operator took out of use before maintenance: traffic
// goes elsewhere where there is an elsewhere; links stay up, and the node can
// be reached. Without Uplink and Peer it is the whole node, with Uplink that
// uplink, with all three the link from that uplink to the uplink Remote of
// Peer, whose id is the higher one: each link has one end that names it.
type Drain struct {
	Uplink string      `json:"uplink,omitempty"`
	Peer   mesh.NodeID `json:"peer,omitzero"`
	Remote string      `json:"remote,omitempty"`
	By     mesh.NodeID `json:"by"`    // on whose socket the operator sat
	Since  time.Time   `json:"since"` // leader's clock
}

// target orders drains by what they are about.
func (d Drain) target(e Drain) int {
	return cmp.Or(strings.Compare(d.Uplink, e.Uplink), d.Peer.Compare(e.Peer), strings.Compare(d.Remote, e.Remote))
}

func (n Node) drain(target Drain) *Drain {
	if i, drained := slices.BinarySearchFunc(n.Drains, target, Drain.target); drained {
		d := n.Drains[i]
		return &d
	}
	return nil
}

// parts counts the drains of uplinks and links.
func (n Node) parts() int {
	if n.Drained() != nil {
		return len(n.Drains) - 1
	}
	return len(n.Drains)
}

// to counts the drains of links to a peer that are in the record of n.
func (n Node) to(peer mesh.NodeID) (count int) {
	for _, d := range n.Drains {
		if d.Peer == peer {
			count++
		}
	}
	return count
}

// Drained gives the drain of the whole node; nil: it is in use.
func (n Node) Drained() *Drain { return n.drain(Drain{}) }

// UplinkDrain gives the drain of one uplink of the node, not that of the
// whole node; nil: it is in use.
func (n Node) UplinkDrain(uplink string) *Drain {
	if uplink == "" {
		return nil
	}
	return n.drain(Drain{Uplink: uplink})
}

// LinkDrain gives the drain of a link of self: of the uplink at either end,
// or of the link itself, and not that of a whole node. nil: it is in use. Both
// ends of a link get the same answer.
func (s *State) LinkDrain(self mesh.NodeID, l mesh.LinkID) *Drain {
	if d := s.Nodes[self].UplinkDrain(l.Local); d != nil {
		return d
	}
	if d := s.Nodes[l.Peer].UplinkDrain(l.Remote); d != nil {
		return d
	}
	id, target := named(self, Drain{Uplink: l.Local, Peer: l.Peer, Remote: l.Remote})
	return s.Nodes[id].drain(target)
}

// named gives the end of a link that names its drain, and that name.
func named(id mesh.NodeID, d Drain) (mesh.NodeID, Drain) {
	if !d.Peer.IsZero() && d.Peer.Compare(id) < 0 {
		id, d.Uplink, d.Peer, d.Remote = d.Peer, d.Remote, id, d.Uplink
	}
	return id, d
}
