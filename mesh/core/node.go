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
	"guywire/routing/topology/coordinate"
	"guywire/routing/wire"
	"guywire/store"
)

const (
	// stallSlack is how late the outside may call Step before that is noticed
	// in front of everything else.
	stallSlack = 20 * time.Millisecond
	// adoptPatience bounds the wait for adopted links to be measured before
	// the node speaks about itself; settlePatience bounds the wait for the
	// neighbours' databases before it touches the routes it found.
	adoptPatience  = 3 * time.Second
	settlePatience = 6 * time.Second
	// foundPatience bounds how long the routes that were found are kept because
	// a neighbour confirms nothing: then its transit is refused. As long as they
	// forward, that would only do harm; once a link that they may use is down,
	// lostPatience is enough.
	foundPatience = time.Minute
	lostPatience  = 500 * time.Millisecond
	// urgentPatience bounds the wait for an urgent change to be in the kernel
	// before the rest follows it.
	urgentPatience = 100 * time.Millisecond
	// causeLasts is how long what happened to our own links is held to be the cause
	// of what follows: both ends of a link that failed announce it.
	causeLasts = time.Second
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
	Distances   coordinate.Report           // as last published; zero: never
	// SpreadAfter is how long attempts for a link have been hopeless, at least, when a
	// path is looked for by chance ports; zero: never.
	SpreadAfter time.Duration
	// Build makes the wanted mesh; nil: topology.Build. A simulation shares one
	// answer among all its nodes.
	Build func([]topology.Node, topology.Policy) *topology.Graph
	// Verify checks an announcement's signature; nil: it does so itself. A
	// simulation checks each once for all its nodes.
	Verify func(wire.SignedLSA, mesh.IdentityKey) bool
}

// A Node is one member of the mesh, as a value that events change. It is not
// safe for concurrent use.
type Node struct {
	cfg     Config
	now     time.Time
	started time.Time
	phase   time.Duration // of our probes, different from node to node

	state   *store.State
	banned  map[mesh.NodeID]string // whom state is without ahead of the log, and by whose word
	host    Host
	facts   map[mesh.NodeID]discovery.Facts
	outside map[string]discovery.Uplink // our uplinks, as seen from there
	pools   []netip.Prefix              // of the whole mesh, aggregated; nil: to be gathered
	router  *routing.Router
	guard   link.Guard

	shape     shape
	distances coordinate.Report // as published

	entries  map[mesh.LinkID]*entry
	order    []*entry     // by link; nil: to be sorted
	judges   []*link.Link // of entries, for a moment
	byDevice map[string]*entry
	peers    map[mesh.NodeID]bool   // neighbours: those with a wanted link
	digests  map[mesh.NodeID]uint64 // of their databases, as last heard

	routes    routes
	version   uint64            // of the router, as last looked at
	chosen    map[string]choice // by destination, to see changes
	lastCause string            // of changes of routes, in words,
	causedAt  time.Time

	slot     uint16  // of next hops, given last
	alarms   float64 // suspicions taken back, as of alarmed
	alarmed  time.Time
	revision uint64
	steps    []step    // revisions on their way to the kernel
	adopted  bool      // tunnels were found at start
	speaking bool      // we originate announcements
	complete bool      // the database is believed complete once
	settling time.Time // since when only confirmations are missing to be so
	settled  bool      // the routes are ours to decide

	countEvery time.Duration // as in Ready
	deadline   time.Time
	ready      Ready
}

// A step says which of the router's steps a revision holds.
type step struct{ revision, step uint64 }

// New makes a node. It does nothing until the first Step.
func New(now time.Time, cfg Config) *Node {
	n := &Node{
		cfg: cfg, now: now, started: now,
		phase:      time.Duration(binary.BigEndian.Uint32(cfg.Self[:4])),
		facts:      map[mesh.NodeID]discovery.Facts{},
		outside:    map[string]discovery.Uplink{},
		entries:    map[mesh.LinkID]*entry{},
		byDevice:   map[string]*entry{},
		peers:      map[mesh.NodeID]bool{},
		digests:    map[mesh.NodeID]uint64{},
		countEvery: time.Second,
		chosen:     map[string]choice{},
		routes:     routes{pace: routing.NewPace(planDelays...)},
	}
	var warm []mesh.NodeID
	for _, r := range cfg.Records {
		n.restore(r)
		if r.Alive && !slices.Contains(warm, r.Link.Peer) {
			warm = append(warm, r.Link.Peer)
		}
	}
	n.router = routing.New(routing.Config{
		Self: cfg.Self, Mesh: cfg.Mesh, Epoch: cfg.Incarnation, Sign: cfg.Sign, Verify: cfg.Verify, Warm: warm,
	})
	n.speaking = !n.adopted
	if n.cfg.Build == nil {
		n.cfg.Build = topology.Build
	}
	n.distances = cfg.Distances
	n.shape.publisher = coordinate.NewPublisher(now, cfg.Rand, cfg.Distances)
	return n
}

// Step feeds events to the node and returns what the outside must do next. Those that
// wait should come together: what they call for is then done, and said to neighbours,
// once.
func (n *Node) Step(now time.Time, evs ...Event) Ready {
	n.now = now
	if !n.deadline.IsZero() && now.Sub(n.deadline) > stallSlack {
		n.watch(now)
		n.deadline = now
	}
	urgent := false
	for _, ev := range evs {
		urgent = n.take(ev) || urgent
	}
	if urgent || !now.Before(n.deadline) {
		n.advance()
	}
	n.ready.Deadline, n.ready.CountEvery = n.deadline, n.countEvery
	out := n.ready
	n.ready = Ready{}
	return out
}

// take feeds one event, and reports whether anything has to be done about it before the
// next deadline.
func (n *Node) take(ev Event) (urgent bool) {
	urgent = true
	switch ev := ev.(type) {
	case Tick:
	case StateChanged:
		n.setState(ev.State, ev.Banned)
	case HostChanged:
		n.setHost(ev.Host)
	case FactsChanged:
		if ev.Facts.Node != n.cfg.Self && ev.Facts.Serial >= n.facts[ev.Facts.Node].Serial {
			n.compareFacts(n.facts[ev.Facts.Node], ev.Facts)
			n.facts[ev.Facts.Node] = ev.Facts
			if slices.Contains(n.shape.wanted, ev.Facts.Node) || n.peers[ev.Facts.Node] {
				n.plan()
			} else {
				urgent = false
			}
		}
	case Received:
		urgent = n.receive(ev)
	case Echoed:
		if e := n.byDevice[ev.Device]; e != nil {
			e.judge.Echoed(ev.At)
			e.due = time.Time{}
			n.due(e.judge.Deadline(n.now))
		}
		urgent = false
	case AttemptDone:
		n.attempted(ev)
	case Surveyed:
		n.seenOutside(ev)
	case KernelDone:
		n.kernelDone(ev.Revision)
	case TunnelFailed:
		if e := n.byDevice[ev.Device]; e != nil {
			n.fail([]*entry{e}, ev.Reason)
		}
	case Measured:
		n.measured(ev.Tunnels)
		urgent = false
	case Learned:
		n.router.Learn(n.now, ev.Announcements)
	case Counted:
		n.counted(ev.Devices)
		urgent = false
	case Stopping:
		n.goodbye()
	}
	return urgent
}

// watch notices that the outside called late, or that all neighbours fell
// silent at once: then it is this node that did not run.
func (n *Node) watch(now time.Time) {
	late := time.Duration(0)
	if !n.deadline.IsZero() {
		late = now.Sub(n.deadline)
	}
	n.judges = n.judges[:0]
	for _, e := range n.sorted() {
		if e.judge != nil {
			n.judges = append(n.judges, e.judge)
		}
	}
	if n.guard.Watch(now, late, n.judges) {
		n.touch()
	}
	if late > 500*time.Millisecond {
		n.fact(Fact{Kind: Starved, Sentence: "this agent did not run for " + late.Round(time.Millisecond).String(), Cause: "the machine is overloaded or was suspended"})
	}
}

// advance does everything that is due and sets the next deadline.
func (n *Node) advance() {
	n.watch(n.now)
	n.deadline = n.now.Add(idleTick)
	n.speakIfReady()
	looked := false
	for _, e := range n.sorted() {
		if !n.now.Before(e.due) && n.entries[e.rec.Link] == e { // else it went a moment ago
			n.look(e)
			looked = true
		}
		n.due(e.due)
	}
	if looked { // what is announced depends on what look looks at
		n.announce()
	}
	n.settle()
	n.router.SetSpeaking(n.speaking)
	n.router.SetHolding(!n.settled)
	n.locate()
	if n.state != nil {
		if !n.now.Before(n.shape.next) {
			n.plan()
		}
		n.due(n.shape.next)
	}
	messages, deadline := n.router.Poll(n.now)
	for _, m := range messages {
		n.sendTo(m.To, m.Body)
	}
	if !deadline.IsZero() {
		n.due(deadline)
	}
	if origin, ok := n.router.News(); ok && n.now.Sub(n.causedAt) > causeLasts {
		n.lastCause = "links of " + n.name(origin) + " changed"
	}
	if v := n.router.Version(); v != n.version {
		n.version, n.routes.stale = v, true
		if n.routes.until.IsZero() {
			n.routes.until = n.routes.pace.Due(n.now)
		}
	}
	if n.routes.stale && !n.routes.until.IsZero() {
		// In a storm, or only what had to be quick is on its way to the kernel.
		if n.now.Before(n.routes.until) {
			n.due(n.routes.until)
		} else {
			n.routes.until, n.ready.Dirty = time.Time{}, true
		}
	}
}

// kernelDone takes the news that a revision is in the kernel.
func (n *Node) kernelDone(revision uint64) {
	for len(n.steps) > 0 && n.steps[0].revision <= revision {
		n.router.Committed(n.steps[0].step)
		n.steps = n.steps[1:]
	}
	if n.routes.stale && !n.routes.until.IsZero() && n.revision <= revision {
		n.routes.until = n.routes.pace.Due(n.now)
	}
}

// look does what is due for one link, and says when to look again.
func (n *Node) look(e *entry) {
	if e.judge == nil {
		e.due = n.now.Add(idleTick)
		n.attemptIfDue(e)
		return
	}
	n.judged(e, func() { e.judge.Tick(n.now) })
	if e.judge.Echo(n.now) {
		n.ready.Echo = append(n.ready.Echo, e.target())
	}
	if p, due := e.judge.Probe(n.now, n.router.Digest(), n.router.Header(e.rec.Link.Peer)); due {
		n.send(e, p)
		n.judged(e, func() { e.judge.Tick(n.now) }) // by what was asked just now, it may have been silent for too long
	}
	e.due = n.now.Add(idleTick)
	e.dueBy(e.judge.Deadline(n.now))
	n.tellSilence(e)
	n.weigh(e)
	n.attemptIfDue(e)
	n.improveIfDue(e)
	n.takeOver(e)
}

// touch makes the next advance look at every link: something that all depend on
// has changed.
func (n *Node) touch() {
	for _, e := range n.sorted() {
		e.due = time.Time{}
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
	if n.complete || n.state == nil {
		return
	}
	// Where nothing was left in the kernel, nothing is lost by routes of a database
	// that still grows: a newcomer reaches its first neighbour at once. Else far
	// ends without an agent cannot tell us the routes, and as long as they forward,
	// what an earlier run left is better than an empty table.
	headless := func(e *entry) bool { return e.rec.Alive && e.judge != nil && e.judge.State() == link.Headless }
	n.complete = !n.adopted || len(n.state.Nodes) == 1 || n.now.Sub(n.started) > settlePatience && !slices.ContainsFunc(n.sorted(), headless)
}

// settle takes the routes over from what an earlier run left in the kernel.
func (n *Node) settle() {
	if n.settled || !n.complete || !n.speaking {
		return
	}
	if n.settling.IsZero() {
		n.settling = n.now
	}
	patience := foundPatience
	for _, e := range n.entries {
		if e.rec.Alive && (e.judge == nil || !e.judge.Usable()) {
			patience = lostPatience
		}
	}
	if end := n.settling.Add(patience); n.now.Before(end) {
		n.due(end)
	} else {
		for _, id := range slices.SortedFunc(maps.Keys(n.peers), mesh.NodeID.Compare) {
			if n.router.WaitsFor(id) {
				n.router.Refuse(id)
			}
		}
	}
	if n.router.Settle() {
		n.settled, n.ready.Dirty = true, true
	}
}

func (n *Node) receive(ev Received) (urgent bool) {
	e := n.byDevice[ev.Device]
	if e == nil {
		return false
	}
	id := e.rec.Link.Peer
	switch body := ev.Message.Body.(type) {
	case wire.Probe:
		before := e.judge.Usable()
		n.judged(e, func() { e.judge.Receive(ev.At, ev.Message.Incarnation, body) })
		n.due(e.judge.Deadline(n.now)) // the first probe of a link makes us answer
		step := n.router.Version()
		n.router.Hear(n.now, id, body.Session, body.Digest)
		n.digests[id] = body.Digest
		n.complete = n.complete || n.agreed()
		return before != e.judge.Usable() || step != n.router.Version() || !n.settled
	case wire.Silence:
		for _, l := range body.Links {
			if other := n.only(mesh.LinkID{Peer: id, Local: l.Remote, Remote: l.Local}); other != nil {
				n.judged(other, func() { other.judge.Silent(n.now) })
			}
		}
	case wire.Sight:
		n.hearSight(e, body)
		return false
	case wire.Goodbye:
		for _, other := range n.entries {
			if other.rec.Link.Peer == id && other.judge != nil {
				n.judged(other, func() { other.judge.Fail(n.now, "the far end said goodbye") })
			}
		}
	case wire.Segment:
		e.judge.Control(wire.ProbeLen + len(body.Data)) // its header is no longer than a probe
		n.router.Receive(n.now, id, body)
	}
	return true
}

// agreed reports whether every neighbour that has spoken since we started, and
// works, knows the same announcements as we do.
func (n *Node) agreed() bool {
	if !n.speaking {
		return false
	}
	heard := false
	for id, e := range n.entries {
		if digest, ok := n.digests[id.Peer]; ok && e.judge != nil && e.judge.State() == link.Up {
			if digest != n.router.Digest() {
				return false
			}
			heard = true
		}
	}
	return heard
}

// setState takes a newer view of the log.
func (n *Node) setState(s *store.State, banned map[mesh.NodeID]string) {
	if n.state != nil && n.state.Newer(s) {
		return
	}
	if n.state != nil {
		n.membersChanged(s, banned)
	}
	n.state, n.banned = s, banned
	for id := range s.Removed {
		delete(n.facts, id)
	}
	members := make(map[mesh.NodeID]routing.Member, len(s.Nodes))
	for id, node := range s.Nodes {
		members[id] = routing.Member{Identity: node.Identity, Addrs: hostPrefixes(node), Prefixes: node.Prefixes}
	}
	n.shape.members = true
	n.router.SetMembers(members)
	if self, ok := s.Nodes[n.cfg.Self]; ok {
		n.router.SetPrefixes(self.Prefixes)
		n.router.SetTransit(self.NoTransit, self.Drained() != nil)
	}
	n.plan()
	n.pools, n.routes.stale, n.ready.Dirty = nil, true, true
}

// membersChanged says who came, who went, and who is cut off by an operator's
// word and not yet by the log.
func (n *Node) membersChanged(s *store.State, banned map[mesh.NodeID]string) {
	for id, node := range s.Nodes {
		_, known := n.state.Nodes[id]
		by, was := n.banned[id]
		switch {
		case was:
			n.fact(Fact{Kind: BanEnded, Node: id, Sentence: node.Name + " is a member again", Cause: "the log did not confirm the word of " + by})
		case !known:
			n.fact(Fact{Kind: NodeJoined, Node: id, Sentence: node.Name + " joined the mesh"})
		}
	}
	for id, node := range n.state.Nodes {
		_, still := s.Nodes[id]
		by, ban := banned[id]
		switch {
		case ban:
			n.fact(Fact{Kind: NodeBanned, Node: id, Sentence: node.Name + " is cut off", Cause: "banned by word of " + by + ", not yet in the log"})
		case !still:
			n.fact(Fact{Kind: NodeRemoved, Node: id, Sentence: node.Name + " is no member any more"})
		}
	}
	for id, by := range n.banned {
		gone, removed := s.Removed[id]
		if _, still := banned[id]; removed && !still {
			n.fact(Fact{Kind: NodeRemoved, Node: id, Sentence: gone.Name + " is no member any more", Cause: "the log confirms the word of " + by})
		}
	}
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
			n.networkChanged(u.Name, i < 0)
		case u.Up && !slices.Equal(old.Uplinks[i].Addrs, u.Addrs):
			n.networkChanged(u.Name, false)
		case !u.Up && i >= 0 && old.Uplinks[i].Up:
			n.fact(Fact{Kind: UplinkDown, Sentence: "uplink " + u.Name + " is down", Cause: "no carrier, or switched off", From: u.Name})
		}
		if !u.Up {
			var lost []*entry
			for _, e := range n.sorted() {
				if e.rec.Link.Local == u.Name && e.judge != nil {
					lost = append(lost, e)
				}
			}
			n.fail(lost, "uplink "+u.Name+" is down")
		}
	}
	n.plan()
	n.pools, n.routes.stale, n.ready.Dirty = nil, true, true
}

func (n *Node) uplink(name string) (mesh.Uplink, bool) {
	i := slices.IndexFunc(n.host.Uplinks, func(u mesh.Uplink) bool { return u.Name == name })
	if i < 0 {
		return mesh.Uplink{}, false
	}
	return n.host.Uplinks[i], true
}

// goodbye tells every neighbour over every link.
func (n *Node) goodbye() {
	for _, e := range n.sorted() {
		if e.judge != nil {
			n.send(e, wire.Goodbye{})
		}
	}
}

func (n *Node) send(e *entry, body wire.Body) {
	payload := wire.Encode(wire.Message{Incarnation: n.cfg.Incarnation, Body: body})
	if _, probe := body.(wire.Probe); !probe {
		e.judge.Control(len(payload))
	}
	n.ready.Send = append(n.ready.Send, Datagram{e.target(), payload})
}

// sendTo sends over the best link of a neighbour.
func (n *Node) sendTo(id mesh.NodeID, body wire.Body) {
	var best *entry
	for _, e := range n.sorted() {
		if e.rec.Link.Peer != id || e.judge == nil {
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

// sorted is the wanted links in order. The slice is not to be changed, and
// stays as it is while links come and go.
func (n *Node) sorted() []*entry {
	if n.order == nil {
		n.order = slices.SortedFunc(maps.Values(n.entries), func(a, b *entry) int { return a.rec.Link.Compare(b.rec.Link) })
	}
	return n.order
}

// name is a node's name, or its id when the log does not know it.
func (n *Node) name(id mesh.NodeID) string {
	if n.state != nil {
		if node, ok := n.state.Nodes[id]; ok {
			return node.Name
		}
		if gone, ok := n.state.Removed[id]; ok {
			return gone.Name
		}
	}
	return id.String()
}

// linkName is what a link is called in sentences: its neighbour, and the two
// uplinks where either end has more than one.
func (n *Node) linkName(id mesh.LinkID) string {
	if len(n.host.Uplinks) > 1 || len(n.facts[id.Peer].Uplinks) > 1 {
		return n.name(id.Peer) + " (" + id.Local + " → " + id.Remote + ")"
	}
	return n.name(id.Peer)
}
