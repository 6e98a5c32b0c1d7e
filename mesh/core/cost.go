package core

import (
	"slices"

	"guywire/discovery"
	"guywire/mesh"
	"guywire/mesh/link"
	"guywire/routing"
)

const (
	// meteredPenalty makes a link with a metered uplink at either end carry
	// traffic only where nothing else does.
	meteredPenalty mesh.Cost = 500_000
	// dampedPenalty makes a link that has failed again and again do so, too,
	// until it has stayed for a while.
	dampedPenalty mesh.Cost = 500_000
	// carrierPenalty keeps transit off links that carry packets in a stream.
	carrierPenalty mesh.Cost = 50_000
)

// worth is what routes depend on, besides a link's state.
type worth struct {
	cost mesh.Cost
	mtu  int
}

// weigh looks whether a link is worth more or less to the routes than before.
func (n *Node) weigh(e *entry) {
	w := worth{cost: n.legCost(e)}
	size, searched := e.judge.MTU()
	switch u, ok := n.uplink(e.rec.Link.Local); {
	case searched || e.seen.mtu == 0 && !e.rec.Alive:
		w.mtu = size
	case e.seen.mtu != 0:
		w.mtu = e.seen.mtu // as before, until the search says otherwise
	case ok:
		w.mtu = n.mtu(u) // found carrying traffic: as large as its device
	}
	if w == e.seen {
		return
	}
	e.seen, n.routes.stale, n.ready.Dirty = w, true, true
}

// announce tells the router which neighbours we have and at which cost.
func (n *Node) announce() {
	for links := n.sorted(); len(links) > 0; {
		id, end := links[0].rec.Link.Peer, 1
		for end < len(links) && links[end].rec.Link.Peer == id {
			end++
		}
		n.announceNeighbour(id, links[:end])
		links = links[end:]
	}
}

func (n *Node) announceNeighbour(id mesh.NodeID, links []*entry) {
	var (
		best    *entry
		cost    mesh.Cost
		drained bool
		sure    bool // a link to it is beyond suspicion
	)
	for _, e := range links {
		if e.judge == nil || !e.judge.Usable() {
			continue
		}
		if c, d := n.linkCost(e), n.drained(e); best == nil || drained && !d || drained == d && c < cost {
			best, cost, drained = e, c, d
		}
		sure = sure || e.judge.State() != link.Suspect
	}
	if best == nil {
		n.router.DropNeighbour(id)
		return
	}
	n.router.SetNeighbour(id, cost, drained, best.judge.RTT())
	n.router.SetDoubt(id, !sure)
}

// legCost is linkCost with the operator's drains.
func (n *Node) legCost(e *entry) mesh.Cost {
	if n.drained(e) {
		return n.linkCost(e).Add(routing.DrainPenalty)
	}
	return n.linkCost(e)
}

// linkCost is the cost of one link with the operator's wishes for its uplinks.
func (n *Node) linkCost(e *entry) mesh.Cost {
	c := e.judge.Cost(n.now)
	if u, ok := n.uplink(e.rec.Link.Local); ok {
		c = c.Add(u.Bias)
	}
	if n.metered(e.rec.Link) {
		c = c.Add(meteredPenalty)
	}
	if e.rec.Class == discovery.ClassCarrier {
		c = c.Add(carrierPenalty)
	}
	if e.judge.Damped(n.now) {
		c = c.Add(dampedPenalty)
	}
	return c
}

// drained reports whether the operator has drained the link, or an uplink that
// it uses at either end, or the mesh has another shape now, or a better tunnel
// takes over.
func (n *Node) drained(e *entry) bool {
	id := e.rec.Link
	return e.retires || slices.Contains(n.shape.retire, id.Peer) || n.state != nil && n.state.LinkDrain(n.cfg.Self, id) != nil
}

// metered reports whether an uplink at either end of the link is.
func (n *Node) metered(id mesh.LinkID) bool {
	u, ok := n.uplink(id.Local)
	return ok && u.Metered || slices.ContainsFunc(n.facts[id.Peer].Uplinks, func(f discovery.Uplink) bool {
		return f.Name == id.Remote && f.Metered
	})
}
