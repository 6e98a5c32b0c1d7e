package core

import (
	"net/netip"
	"time"

	"guywire/mesh"
	"guywire/mesh/link"
	"guywire/routing"
	"guywire/routing/wire"
)

// A LinkView is one wanted link as people see it.
type LinkView struct {
	Record  Record
	Tunnel  bool // it has, or should have, a device
	State   link.State
	Since   time.Time
	Reason  string
	NextTry time.Time // of a new attempt; zero: none is due
	Trying  bool
	Usable  bool
	RTT     time.Duration
	Jitter  time.Duration
	LossIn  float64 // 0 to 1, what the far end sent
	LossOut float64 // what we sent
	Cost    mesh.Cost
	MTU     int
	Share   float64 // 0 to 1, of the traffic to its neighbour
	Traffic Traffic
	Roamed  time.Time // when the endpoint in Traffic was first seen
	Effort  Effort
}

// Links views all wanted links, in order.
func (n *Node) Links() []LinkView {
	share := map[mesh.LinkID]float64{}
	for _, d := range n.routes.dests {
		if len(d.Origins) != 1 {
			continue
		}
		carry, _ := used(n.routes.groups[d.group].legs)
		for i, s := range shares(carry) {
			if id := carry[i].e.rec.Link; id.Peer == d.Origins[0] {
				share[id] = s
			}
		}
	}
	var out []LinkView
	for _, e := range n.sorted() {
		id := e.rec.Link
		v := LinkView{Record: e.rec, Trying: e.attempting, Share: share[id], Since: e.wanted, Reason: e.why, Traffic: e.traffic, Roamed: e.roamed, Effort: e.effort}
		if e.judge != nil {
			v.Tunnel, v.State, v.Since, v.Reason = true, e.judge.State(), e.judge.Since(), e.judge.Reason()
			v.Usable = e.judge.Usable() && n.router.Usable(id.Peer)
			v.RTT, v.Jitter = e.judge.RTT(), e.judge.Jitter()
			v.MTU, _ = e.judge.MTU()
			v.LossIn, v.LossOut = e.judge.Loss()
			v.Cost = n.legCost(e)
			if v.State == link.Down && e.why != "" {
				v.Reason += "; " + e.why
			}
		}
		if (e.judge == nil || v.State == link.Down) && e.retry.After(n.now) {
			v.NextTry = e.retry
		}
		out = append(out, v)
	}
	return out
}

// A RouteView is one destination and its next hops as people see them.
type RouteView struct {
	Origins  []mesh.NodeID
	Prefixes []netip.Prefix
	Group    uint32    // its next-hop object in the kernel, if anything carries
	Cost     mesh.Cost // of the best path; Infinite: none
	Carry    []LegView
	Armed    []LegView // in the order in which they would take over
	// Why each neighbour may or may not carry traffic there.
	Feasibility routing.Feasibility
}

// A LegView is one leg of a route.
type LegView struct {
	Link   mesh.LinkID
	Device string
	Weight int
	Share  float64 // 0 to 1
	Cost   mesh.Cost
	Sure   bool // its link is up, not merely not given up
}

// Routes views all destinations.
func (n *Node) Routes() []RouteView {
	var out []RouteView
	for _, d := range n.routes.dests {
		carry, armed := used(n.routes.groups[d.group].legs)
		v := RouteView{Origins: d.Origins, Prefixes: d.Prefixes, Group: n.routes.groups[d.group].id, Cost: mesh.Infinite}
		v.Feasibility, _ = n.router.Feasibility(d.Key)
		s := shares(carry)
		for i, l := range carry {
			v.Carry = append(v.Carry, legView(l, int(l.weight), s[i]))
			v.Cost = min(v.Cost, l.total)
		}
		for _, l := range armed {
			v.Armed = append(v.Armed, legView(l, 0, 0))
		}
		out = append(out, v)
	}
	return out
}

func legView(l leg, weight int, share float64) LegView {
	return LegView{Link: l.e.rec.Link, Device: l.e.rec.Device, Weight: weight, Share: share, Cost: l.total, Sure: l.sure()}
}

// shares gives each leg's part of the flows.
func shares(carry []leg) []float64 {
	sum := 0
	for _, l := range carry {
		sum += int(l.weight)
	}
	out := make([]float64, len(carry))
	for i, l := range carry {
		out[i] = float64(l.weight) / float64(sum)
	}
	return out
}

// Host is the machine as last seen.
func (n *Node) Host() Host { return n.host }

// Digest stands for the link-state database; Announcements are what is in it.
func (n *Node) Digest() uint64                  { return n.router.Digest() }
func (n *Node) Announcements() []wire.SignedLSA { return n.router.Announcements() }

// Adjacent gives the neighbours of another node, as it announces them.
func (n *Node) Adjacent(node mesh.NodeID) (peers []mesh.NodeID) {
	for _, s := range n.router.Announcements() {
		if key, ok := s.Key(); !ok || key.Origin != node {
			continue
		}
		if lsa, err := s.LSA(); err == nil {
			for _, a := range lsa.Adjacencies {
				peers = append(peers, a.Peer)
			}
		}
	}
	return peers
}

// Settled reports whether the first complete desired state exists.
func (n *Node) Settled() bool { return n.settled }

// Dropped counts refused announcements by reason.
func (n *Node) Dropped() map[string]uint64 { return n.router.Dropped() }
