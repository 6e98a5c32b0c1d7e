package core

import (
	"encoding/binary"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"guywire/discovery"
	"guywire/mesh"
	"guywire/mesh/link"
	"guywire/routing"
	"guywire/routing/topology"
	"guywire/routing/wire"
	"guywire/store"
)

const (
	// stallSlack is how late the outside may call Step before the node
	// concludes that it was starved and excuses its neighbours' silence.
	stallSlack = 20 * time.Millisecond
	// adoptPatience bounds the wait for adopted links to be measured before
	// the node speaks about itself; settlePatience bounds the wait for the
	// neighbours' databases before it touches the routes it found.
	adoptPatience  = 3 * time.Second
	settlePatience = 6 * time.Second
	// meteredPenalty makes a link with a metered uplink at either end carry
	// traffic only where nothing else does.
	meteredPenalty mesh.Cost = 500_000
	// idleTick is the longest time between two looks at everything.
	idleTick = time.Second
)

// Config is what a Node is made from.
type Config struct {
	Self mesh.NodeID
	Mesh mesh.MeshID
	// Incarnation is larger at every start of this node: its clock in
	// microseconds is.
	Incarnation uint64
	Sign        func(message []byte) []byte // with the identity key
	Rand        *rand.Rand                  // jitter of retries
	Records     []Record                    // of links known before
	MTU         int                         // of tunnels; 0: from the uplink
	NoTransit   bool
}

// A Node is one member of the mesh, as a value that events change. It is not
// safe for concurrent use.
type Node struct {
	cfg     Config
	now     time.Time
	started time.Time
	phase   time.Duration // of our probes, different from node to node

	state  *store.State
	host   Host
	facts  map[mesh.NodeID]discovery.Facts
	router *routing.Router

	entries  map[mesh.LinkID]*entry
	byDevice map[string]*entry
	peers    map[mesh.NodeID]*peer

	table        routing.Table
	tableVersion uint64
	chosen       map[string]string // destination → next hops in words, to see changes
	lastCause    string

	revision, inKernel uint64
	adopted            bool // tunnels were found at start
	speaking           bool // we originate announcements
	settled            bool // the database is believed complete once

	deadline time.Time
	ready    Ready
}

// peer is what the node keeps about a neighbour as a whole.
type peer struct {
	incarnation uint64
	// admitted is the revision in which the filter first let its transit in;
	// 0 while it is held down.
	admitted uint64
}

// New makes a node. It does nothing until the first Step.
func New(now time.Time, cfg Config) *Node {
	n := &Node{
		cfg: cfg, now: now, started: now,
		phase:    time.Duration(binary.BigEndian.Uint32(cfg.Self[:4])) % link.Interval,
		facts:    map[mesh.NodeID]discovery.Facts{},
		entries:  map[mesh.LinkID]*entry{},
		byDevice: map[string]*entry{},
		peers:    map[mesh.NodeID]*peer{},
		chosen:   map[string]string{},
		router: routing.New(routing.Config{
			Self: cfg.Self, Mesh: cfg.Mesh, Epoch: cfg.Incarnation, Sign: cfg.Sign,
		}),
	}
	n.router.SetNoTransit(cfg.NoTransit)
	for _, r := range cfg.Records {
		n.restore(r)
	}
	n.speaking = !n.adopted
	return n
}

// Step feeds one event to the node and returns what the outside must do next.
func (n *Node) Step(now time.Time, ev Event) Ready {
	n.excuse(now)
	n.now = now
	urgent := true
	switch ev := ev.(type) {
	case Tick:
	case StateChanged:
		n.setState(ev.State)
	case HostChanged:
		n.setHost(ev.Host)
	case FactsChanged:
		if ev.Facts.Node != n.cfg.Self && ev.Facts.Serial >= n.facts[ev.Facts.Node].Serial {
			n.facts[ev.Facts.Node] = ev.Facts
			n.plan()
		}
	case Received:
		urgent = n.receive(ev)
	case Echoed:
		if e := n.byDevice[ev.Device]; e != nil {
			e.judge.Echoed(ev.At)
		}
		urgent = false
	case AttemptDone:
		n.attempted(ev)
	case KernelDone:
		n.inKernel = max(n.inKernel, ev.Revision)
	case TunnelFailed:
		if e := n.byDevice[ev.Device]; e != nil {
			n.judged(e, func() { e.judge.Fail(now, ev.Reason) })
		}
	case Measured:
		n.measured(ev.Tunnels)
	case Stopping:
		n.goodbye()
	}
	if urgent || !now.Before(n.deadline) {
		n.advance()
	}
	n.ready.Deadline = n.deadline
	out := n.ready
	n.ready = Ready{}
	return out
}

// excuse notices that the outside called late and gives every link the lost
// time, so that a starving agent does not take its neighbours down.
func (n *Node) excuse(now time.Time) {
	if n.deadline.IsZero() {
		return
	}
	stall := now.Sub(n.deadline)
	if stall < stallSlack {
		return
	}
	for _, e := range n.entries {
		if e.judge != nil {
			e.judge.Excuse(now, stall)
		}
	}
	n.deadline = now
	if stall > 500*time.Millisecond {
		n.fact(Fact{Kind: Starved, Sentence: "this agent did not run for " + stall.Round(time.Millisecond).String(), Cause: "the machine is overloaded or was suspended"})
	}
}

// advance does everything that is due and sets the next deadline.
func (n *Node) advance() {
	n.deadline = n.now.Add(idleTick)
	n.speakIfReady()
	digest := n.router.Digest()
	for _, id := range n.sorted() {
		e := n.entries[id]
		if e.judge != nil {
			n.judged(e, func() { e.judge.Tick(n.now) })
			if e.judge.Echo(n.now) {
				n.ready.Echo = append(n.ready.Echo, e.target())
			}
			if p, due := e.judge.Probe(n.now, n.admits(id.Peer), digest); due {
				n.send(e, p)
			}
			n.due(e.judge.Deadline(n.now))
		}
		n.attemptIfDue(e)
	}
	n.announce()
	if n.speaking {
		messages, deadline := n.router.Poll(n.now)
		for _, m := range messages {
			n.sendTo(m.To, m.Body)
		}
		if !deadline.IsZero() {
			n.due(deadline)
		}
	}
	if v := n.router.Version(); v != n.tableVersion {
		n.tableVersion = v
		n.table = n.router.Compute()
		n.ready.Dirty = true
	}
}

// speakIfReady ends the two waits after a start: for adopted links to be
// measured, then for the database to be complete.
func (n *Node) speakIfReady() {
	if !n.speaking {
		measured := true
		for _, e := range n.entries {
			measured = measured && (e.judge == nil || !e.rec.Alive || e.judge.RTT() > 0)
		}
		if measured || n.now.Sub(n.started) > adoptPatience {
			n.speaking = true
		}
	}
	if n.settled || n.state == nil {
		return
	}
	alone := len(n.state.Nodes) == 1
	// Far ends without an agent cannot tell us the routes. As long as they
	// forward, what an earlier run left is better than an empty table.
	headless := slices.ContainsFunc(slices.Collect(maps.Values(n.entries)), func(e *entry) bool {
		return e.rec.Alive && e.judge != nil && e.judge.State() == link.Headless
	})
	if alone || n.now.Sub(n.started) > settlePatience && !headless {
		n.settle()
	}
}

func (n *Node) settle() {
	if n.speaking && !n.settled {
		n.settled, n.ready.Dirty = true, true
	}
}

// announce tells the router which neighbours we have and at which cost.
func (n *Node) announce() {
	best := map[mesh.NodeID]mesh.Cost{}
	for id, e := range n.entries {
		if e.judge == nil || !e.judge.Usable() {
			continue
		}
		c := n.legCost(e)
		if old, ok := best[id.Peer]; !ok || c < old {
			best[id.Peer] = c
		}
	}
	for id := range n.peers {
		cost, up := best[id]
		if up {
			n.router.SetAdjacency(id, cost)
		} else {
			n.router.DropAdjacency(id)
		}
	}
}

// legCost is the cost of one link with the operator's wishes for its uplinks.
func (n *Node) legCost(e *entry) mesh.Cost {
	c := e.judge.Cost(n.now)
	u, ok := n.uplink(e.rec.Link.Local)
	if ok {
		c = c.Add(u.Bias)
	}
	metered := ok && u.Metered || slices.ContainsFunc(n.facts[e.rec.Link.Peer].Uplinks, func(f discovery.Uplink) bool {
		return f.Name == e.rec.Link.Remote && f.Metered
	})
	if metered {
		c = c.Add(meteredPenalty)
	}
	return c
}

func (n *Node) receive(ev Received) (urgent bool) {
	e := n.byDevice[ev.Device]
	if e == nil {
		return false
	}
	id := e.rec.Link.Peer
	p := n.peers[id]
	if ev.Message.Incarnation != p.incarnation {
		if p.incarnation != 0 {
			n.router.Resync(id) // its agent restarted and has lost its database
		}
		p.incarnation = ev.Message.Incarnation
	}
	switch body := ev.Message.Body.(type) {
	case wire.Probe:
		before := e.judge.Usable()
		n.judged(e, func() { e.judge.Receive(ev.At, ev.Message.Incarnation, body) })
		n.due(e.judge.Deadline(n.now)) // the first probe of a link makes us answer
		n.router.PeerDigest(n.now, id, body.Digest)
		if e.judge.Usable() && body.Digest == n.router.Digest() {
			n.settle()
		}
		return before != e.judge.Usable()
	case wire.Goodbye:
		for _, other := range n.entries {
			if other.rec.Link.Peer == id && other.judge != nil {
				n.judged(other, func() { other.judge.Fail(n.now, "the far end said goodbye") })
			}
		}
	default:
		for _, m := range n.router.Receive(id, body) {
			n.sendTo(m.To, m.Body)
		}
	}
	return true
}

// setState takes a newer view of the log.
func (n *Node) setState(s *store.State) {
	if n.state != nil && s.Index < n.state.Index {
		return
	}
	if n.state != nil {
		for id, node := range s.Nodes {
			if _, known := n.state.Nodes[id]; !known {
				n.fact(Fact{Kind: NodeJoined, Node: id, Sentence: node.Name + " joined the mesh"})
			}
		}
	}
	if n.state != nil {
		for id, node := range n.state.Nodes {
			if _, still := s.Nodes[id]; !still {
				n.fact(Fact{Kind: NodeRemoved, Node: id, Sentence: node.Name + " is no member any more"})
			}
		}
	}
	n.state = s
	for id := range s.Removed {
		delete(n.facts, id)
	}
	members := make(map[mesh.NodeID]routing.Member, len(s.Nodes))
	for id, node := range s.Nodes {
		members[id] = routing.Member{Identity: node.Identity, Addrs: hostPrefixes(node), Prefixes: node.Prefixes}
	}
	n.router.SetMembers(members)
	if self, ok := s.Nodes[n.cfg.Self]; ok {
		n.router.SetPrefixes(self.Prefixes)
	}
	n.plan()
	n.ready.Dirty = true
}

func hostPrefixes(node store.Node) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range []netip.Addr{node.Addr4, node.Addr6} {
		if a.IsValid() {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return out
}

// setHost takes what the machine looks like now.
func (n *Node) setHost(h Host) {
	old := n.host
	n.host = h
	for _, u := range h.Uplinks {
		i := slices.IndexFunc(old.Uplinks, func(o mesh.Uplink) bool { return o.Name == u.Name })
		switch {
		case u.Up && (i < 0 || !old.Uplinks[i].Up):
			n.fact(Fact{Kind: UplinkUp, Sentence: "uplink " + u.Name + " is up", To: u.Name})
			for _, e := range n.entries {
				if e.rec.Link.Local == u.Name {
					e.retry, e.failures = n.now, 0
				}
			}
		case !u.Up && i >= 0 && old.Uplinks[i].Up:
			n.fact(Fact{Kind: UplinkDown, Sentence: "uplink " + u.Name + " is down", Cause: "no carrier, or switched off", From: u.Name})
		}
		if !u.Up {
			for _, id := range n.sorted() {
				if e := n.entries[id]; id.Local == u.Name && e.judge != nil {
					n.judged(e, func() { e.judge.Fail(n.now, "uplink "+u.Name+" is down") })
				}
			}
		}
	}
	n.plan()
	n.ready.Dirty = true
}

func (n *Node) uplink(name string) (mesh.Uplink, bool) {
	i := slices.IndexFunc(n.host.Uplinks, func(u mesh.Uplink) bool { return u.Name == name })
	if i < 0 {
		return mesh.Uplink{}, false
	}
	return n.host.Uplinks[i], true
}

// neighbours is who deserves a link from us.
func (n *Node) neighbours() []mesh.NodeID {
	nodes := make([]topology.Node, 0, len(n.state.Nodes))
	for id, node := range n.state.Nodes {
		nodes = append(nodes, topology.Node{ID: id, Reachable: len(node.Control) > 0})
	}
	return topology.Neighbours(n.cfg.Self, nodes)
}

// goodbye tells every neighbour over every link.
func (n *Node) goodbye() {
	for _, id := range n.sorted() {
		if e := n.entries[id]; e.judge != nil {
			n.send(e, wire.Goodbye{})
		}
	}
}

func (n *Node) send(e *entry, body wire.Body) {
	n.ready.Send = append(n.ready.Send, Datagram{
		Target:  e.target(),
		Payload: wire.Encode(wire.Message{Incarnation: n.cfg.Incarnation, Body: body}),
	})
}

// sendTo sends over the best link of a neighbour.
func (n *Node) sendTo(id mesh.NodeID, body wire.Body) {
	var best *entry
	for _, link := range n.sorted() {
		e := n.entries[link]
		if link.Peer != id || e.judge == nil {
			continue
		}
		if best == nil || rank(e) < rank(best) || rank(e) == rank(best) && n.legCost(e) < n.legCost(best) {
			best = e
		}
	}
	if best != nil {
		n.send(best, body)
	}
}

func (n *Node) due(t time.Time) {
	if t.Before(n.deadline) {
		n.deadline = t
	}
}

func (n *Node) fact(f Fact) {
	f.At = n.now
	n.ready.Facts = append(n.ready.Facts, f)
}

func (n *Node) sorted() []mesh.LinkID {
	return slices.SortedFunc(maps.Keys(n.entries), mesh.LinkID.Compare)
}

// name is a node's name, or its id when the log does not know it.
func (n *Node) name(id mesh.NodeID) string {
	if n.state != nil {
		if node, ok := n.state.Nodes[id]; ok {
			return node.Name
		}
	}
	return id.String()
}

// admits reports whether the kernel lets transit from the neighbour in.
func (n *Node) admits(id mesh.NodeID) bool {
	p := n.peers[id]
	return p != nil && p.admitted != 0 && n.inKernel >= p.admitted
}
