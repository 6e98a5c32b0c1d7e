package model

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"guywire/mesh"
	"guywire/routing"
	"guywire/routing/wire"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// Broken says what is wrong with the model, to show that it notices.
type Broken uint8

// Ways to be broken.
const (
	Sound        Broken = iota
	IgnoresHolds        // kernels let the transit of neighbours in that are held down
	CommitsEarly        // drivers report a step when they begin with it
	ShortestPath        // kernels forward along shortest paths, as OSPF would
)

// Options choose what a run is like. The zero Options leave it to the seed.
type Options struct {
	Broken Broken
	Graph  *Graph
	Nodes  int
	Calm   bool              // nothing is lost until Chaos
	Labels bool              // check the lemma and the order of acknowledgements as well
	Walk   bool              // follow packets as well
	Trace  func(line string) // what happens, in words
}

// A World is a mesh of routers and what surrounds them.
type World struct {
	Seed     uint64
	States   int           // states searched for cycles
	Loops    int           // cycles that appeared
	LoopTime time.Duration // in sum over all addresses
	Problem  string        // the first broken promise
	Settling time.Duration // from the last disturbance until all was quiet

	opt     Options
	rng     *rand.Rand
	now     time.Duration
	queue   queue
	stopped bool

	nodes  []*node
	pairs  []*pair
	number map[mesh.NodeID]int
	space  *space
	every  set // all addresses

	history  [][]set                          // of the log: the origins of each prefix
	expelled int                              // the node that is no member; negative: none
	members  []map[mesh.NodeID]routing.Member // the same for routers
	streams  map[[4]uint64]*stream            // see ack.go

	admitting []set // of each node: who lets its transit in
	looping   set
	loopSince [64]time.Duration

	// What the world is like.
	loss, doubled float64
	delay         time.Duration // at most
	fifo          bool          // datagrams of one direction stay in order
	probeEvery    time.Duration
	detect        time.Duration // at most
	patience      time.Duration // with a neighbour that has no agent
	trust         time.Duration // of a restarted agent in what it finds
	disorder      bool          // kernels are written in any order
	mindful       bool          // drivers install all that the log grants
	labels        bool
	long          bool // little happens for minutes
	cruel         bool // a restarted agent dies when it has settled
	quiet         bool // nothing more goes wrong
}

// A pair is two neighbouring nodes and the parallel links between them.
type pair struct {
	a, b  *end
	alive []bool // links
}

// An end is one node's side of a pair.
type end struct {
	node, peer *node
	other      *end
	pair       *pair
	seen       []bool      // links that this end thinks work
	cost       []mesh.Cost // of links, in this direction
	drain      bool
	doubt      bool // none of its links is beyond suspicion
	up         bool // as the router was told
	heard      time.Duration
	arrival    time.Duration // of the datagram sent last
}

// A node is a router, its driver and its kernel.
type node struct {
	w      *World
	i      int
	id     mesh.NodeID
	router *routing.Router // nil: there is no agent
	life   int             // grows with every start and end of the agent
	ends   []*end
	kernel kernel
	driver driver
	log    int // the version that it follows
	// settled: the kernel follows a plan of this agent, or was empty.
	settled bool

	noTransit, drained bool
	started            time.Duration // of the agent
	wakeAt             time.Duration
	wakeID             uint64
	spins              int

	lazy, slow, failing time.Duration // of the driver: before it looks, for writing, until
	busy                time.Duration // at most, of the agent before it does anything
}

func (n *node) String() string { return fmt.Sprintf("n%d", n.i) }

// identities are made once: they cost more than a small run.
var identities = sync.OnceValue(func() (out [maxNodes]ed25519.PrivateKey) {
	for i := range out {
		out[i] = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{byte(i + 1)}, 32))
	}
	return out
})

// New makes a world from a seed, with all agents running.
func New(seed uint64, opt Options) *World {
	w := &World{
		Seed: seed, opt: opt, rng: rand.New(rand.NewPCG(seed, 86)), number: map[mesh.NodeID]int{},
		streams: map[[4]uint64]*stream{}, quiet: opt.Calm,
	}
	w.character()
	nodes, edges := w.graph()
	var ids []mesh.NodeID
	for i := range nodes {
		id := mesh.IdentityKey(identities()[i].Public().(ed25519.PublicKey)).NodeID()
		ids = append(ids, id)
		w.number[id] = i
		w.nodes = append(w.nodes, &node{w: w, i: i, id: id, wakeAt: never})
	}
	w.space = newSpace(w.rng, ids)
	w.every = 1<<len(w.space.addrs) - 1
	w.admitting = make([]set, nodes)
	for _, e := range edges {
		w.join(e[0], e[1])
	}
	w.firstLog()
	for _, n := range w.nodes {
		n.temper()
		n.boot()
		for _, e := range n.ends {
			w.after(w.upTo(w.probeEvery), e.probe)
		}
		w.after(time.Second, n.lookAround)
	}
	return w
}

const never = time.Duration(1<<63 - 1)

// character draws what the world is like.
func (w *World) character() {
	w.delay = time.Duration(1+w.rng.IntN(40)) * time.Millisecond
	w.fifo = w.rng.IntN(2) == 0
	if w.rng.IntN(3) > 0 {
		w.loss, w.doubled = 0.15*w.rng.Float64(), 0.1*w.rng.Float64()
	}
	w.probeEvery = time.Duration(40+w.rng.IntN(60)) * time.Millisecond
	w.detect = 150 * time.Millisecond
	w.patience = time.Duration(500+w.rng.IntN(9500)) * time.Millisecond
	w.trust = w.upTo([]time.Duration{0, 300 * time.Millisecond, 3 * time.Second}[w.rng.IntN(3)])
	w.disorder, w.mindful = w.rng.IntN(4) == 0, w.rng.IntN(3) == 0
	w.labels = w.opt.Labels
	w.cruel = w.rng.IntN(6) == 0
	if w.long = w.rng.IntN(25) == 0; w.long {
		w.probeEvery = time.Second
	}
	if w.opt.Walk {
		w.after(0, w.walk)
	}
}

// temper draws what a node's agent and driver are like.
func (n *node) temper() {
	rng := n.w.rng
	n.lazy = []time.Duration{0, time.Millisecond, 10 * time.Millisecond, 100 * time.Millisecond}[rng.IntN(4)]
	n.slow = []time.Duration{0, 5 * time.Millisecond, 50 * time.Millisecond, 300 * time.Millisecond}[rng.IntN(4)]
	if rng.IntN(4) == 0 {
		n.busy = time.Duration(rng.IntN(50)) * time.Millisecond
	}
}

func (w *World) join(i, j int) {
	p := &pair{a: &end{node: w.nodes[i], peer: w.nodes[j]}, b: &end{node: w.nodes[j], peer: w.nodes[i]}}
	p.a.other, p.b.other, p.a.pair, p.b.pair = p.b, p.a, p, p
	links, symmetric := 1, w.rng.IntN(2) == 0
	if w.rng.IntN(3) == 0 {
		links += 1 + w.rng.IntN(2)
	}
	for range links {
		c, d := w.cost(), w.cost()
		if symmetric {
			d = c
		}
		p.alive = append(p.alive, true)
		p.a.seen, p.a.cost = append(p.a.seen, true), append(p.a.cost, c)
		p.b.seen, p.b.cost = append(p.b.seen, true), append(p.b.cost, d)
	}
	w.pairs = append(w.pairs, p)
	w.nodes[i].ends, w.nodes[j].ends = append(w.nodes[i].ends, p.a), append(w.nodes[j].ends, p.b)
}

// cost draws one of few costs or of many: ties are special.
func (w *World) cost() mesh.Cost {
	if w.rng.IntN(3) == 0 {
		return mesh.Cost(1000 * (1 + w.rng.IntN(4)))
	}
	return mesh.Cost(1000 + w.rng.IntN(50_000))
}

func (w *World) upTo(d time.Duration) time.Duration { return time.Duration(w.rng.Int64N(int64(d) + 1)) }

func (w *World) time() time.Time { return epoch.Add(w.now) }

func (w *World) after(d time.Duration, run func()) { w.queue.push(w.now+d, run) }

// later runs something unless the agent has ended by then.
func (n *node) later(d time.Duration, run func()) {
	life := n.life
	n.w.after(d, func() {
		if n.life == life {
			run()
		}
	})
}

func (w *World) trace(format string, args ...any) {
	if w.opt.Trace != nil {
		w.opt.Trace(fmt.Sprintf("%10.3f ms ", float64(w.now)/1e6) + fmt.Sprintf(format, args...))
	}
}

// fail notes a broken promise and ends the run.
func (w *World) fail(format string, args ...any) {
	if w.Problem == "" {
		w.Problem = fmt.Sprintf("at %.3f ms: ", float64(w.now)/1e6) + fmt.Sprintf(format, args...)
		w.trace("%s", w.Problem)
	}
	w.stopped = true
}

// Run lets time pass until the given moment.
func (w *World) Run(until time.Duration) {
	for !w.stopped && len(w.queue.heap) > 0 && w.queue.heap[0].at <= until {
		e := w.queue.pop()
		w.now = e.at
		e.run()
	}
	if !w.stopped {
		w.now = until
	}
}

// boot starts an agent on an empty kernel.
func (n *node) boot() {
	n.reboot()
	n.start(nil)
	n.router.SetSpeaking(true)
}

// start starts an agent that found the transit of some neighbours let in.
func (n *node) start(warm []mesh.NodeID) {
	w := n.w
	n.life++
	n.started, n.settled = w.now, warm == nil
	key := identities()[n.i]
	n.router = routing.New(routing.Config{
		Self: n.id, Mesh: mesh.MeshID{1}, Epoch: n.clock(), Warm: warm,
		Sign: func(b []byte) []byte { return ed25519.Sign(key, b) },
	})
	n.driver = driver{}
	n.wakeAt = never
	for _, e := range n.ends {
		e.up, e.heard = false, w.now
		for l := range e.seen {
			e.seen[l] = e.pair.alive[l] || slices.Contains(warm, e.peer.id)
		}
		for l, alive := range e.pair.alive {
			if e.seen[l] != alive {
				n.later(w.upTo(w.detect), func() { e.detect(l) })
			}
		}
	}
	n.follow(n.log)
	if last := len(w.history) - 1; n.log < last {
		n.later(w.upTo(2*time.Second), func() { n.follow(last) })
	}
	n.router.SetTransit(n.noTransit, n.drained)
	for _, e := range n.ends {
		n.refresh(e)
	}
}

// clock gives the number of a run of the agent. Sometimes the node's clock
// went back.
func (n *node) clock() uint64 {
	now := n.w.now
	if n.w.rng.IntN(20) == 0 {
		now = n.w.upTo(now)
	}
	return uint64(now.Microseconds()) + 1
}

// restart starts an agent on the kernel as it is.
func (n *node) restart() {
	var warm []mesh.NodeID
	for u := range n.kernel.admits.all {
		warm = append(warm, n.w.nodes[u].id)
	}
	n.w.trace("%s restarts, finds %v let in", n, names(n.kernel.admits))
	n.start(warm)
	if len(warm) == 0 {
		n.router.SetSpeaking(true)
	} else {
		n.later(n.w.trust, func() { n.wake(0) })
	}
}

// kill ends the agent.
func (n *node) kill() {
	n.router = nil
	n.life++
	n.driver = driver{}
}

// follow makes the agent follow the log up to a version.
func (n *node) follow(version int) {
	if n.router == nil || version < n.log || !n.member(version, n) {
		return
	}
	n.log = version
	n.router.SetMembers(n.w.members[version])
	for _, e := range n.ends {
		if e.up != (e.works() < mesh.Infinite) {
			n.refresh(e)
		}
	}
	var own []netip.Prefix
	for p := range n.delivers().less(n.i).all {
		own = append(own, n.w.space.prefixes[p])
	}
	slices.SortFunc(own, netip.Prefix.Compare)
	n.router.SetPrefixes(own)
	n.driver.dirty = true
	n.wake(0)
}

// wake has the agent do what is due after some time.
func (n *node) wake(d time.Duration) {
	if n.router == nil {
		return
	}
	if n.busy > 0 {
		d += n.pause(n.busy)
	}
	at := n.w.now + d
	if at >= n.wakeAt {
		return
	}
	n.wakeAt = at
	n.wakeID++
	id := n.wakeID
	n.later(d, func() {
		if n.wakeID == id {
			n.wakeAt = never
			n.poll()
		}
	})
}

// poll does what is due.
func (n *node) poll() {
	w := n.w
	out, deadline := n.router.Poll(w.time())
	w.States++
	n.relabel()
	for _, m := range out {
		n.send(m)
	}
	if !n.router.Settled() && w.now-n.started >= w.trust {
		if n.router.Settle() {
			w.trace("%s settles", n)
			n.wake(0)
		} else {
			n.later(50*time.Millisecond, func() { n.wake(0) })
		}
		n.router.SetSpeaking(true)
	}
	if !deadline.IsZero() {
		wait := deadline.Sub(w.time())
		if wait > 0 {
			n.spins = 0
		} else if n.spins++; n.spins > 1000 {
			w.fail("%s asks to be polled at once, for ever", n)
			return
		}
		n.wake(max(wait, 0))
	}
	n.notice()
}

// refresh tells the router what an end of a pair looks like.
func (n *node) refresh(e *end) {
	if n.router == nil {
		return
	}
	best := e.works()
	if e.up = best < mesh.Infinite; e.up {
		n.router.SetNeighbour(e.peer.id, best, e.drain, n.w.delay)
		n.router.SetDoubt(e.peer.id, e.doubt)
	} else {
		n.router.DropNeighbour(e.peer.id)
	}
	n.wake(0)
}

// works gives the cost of the best link that seems to work; Infinite: none
// does, or the other end is no member.
func (e *end) works() mesh.Cost {
	best := mesh.Infinite
	if e.node.member(e.node.log, e.peer) {
		for l, seen := range e.seen {
			if seen {
				best = min(best, e.cost[l])
			}
		}
	}
	return best
}

func (n *node) member(version int, who *node) bool {
	_, ok := n.w.members[version][who.id]
	return ok
}

// detect makes an end see a link as it is.
func (e *end) detect(l int) {
	if e.seen[l] == e.pair.alive[l] {
		return
	}
	e.seen[l] = e.pair.alive[l]
	e.node.w.trace("%s sees link %d to %s up=%v", e.node, l, e.peer, e.seen[l])
	e.saw(l)
}

// saw acts on a link that looks different now.
func (e *end) saw(l int) {
	if e.node.router == nil {
		return
	}
	if !e.seen[l] && e.up && slices.Contains(e.seen, true) {
		e.node.router.Nudge(e.peer.id)
	}
	e.node.refresh(e)
}

// send puts a datagram on a link that looks well.
func (n *node) send(m routing.Message) {
	i := slices.IndexFunc(n.ends, func(e *end) bool { return e.peer.id == m.To })
	seg := m.Body.(wire.Segment)
	e := n.ends[i]
	e.observe(seg.Header, &seg)
	e.transmit(e.seen, func(to *end) {
		to.node.router.Receive(n.w.time(), n.id, seg)
		to.node.relabel()
		n.w.States++
	})
}

// probe sends a probe over any link, and the next one later.
func (e *end) probe() {
	n, w := e.node, e.node.w
	if n.router != nil {
		h, digest := n.router.Header(e.peer.id), n.router.Digest()
		e.observe(h, nil)
		e.transmit(e.pair.alive, func(to *end) {
			to.heard = w.now
			to.node.router.Hear(w.time(), n.id, h, digest)
			to.node.relabel()
		})
	}
	w.after(w.probeEvery/2+w.upTo(w.probeEvery), e.probe)
}

// transmit sends something to the other end over one of some links.
func (e *end) transmit(links []bool, arrive func(to *end)) {
	w := e.node.w
	l := w.rng.IntN(len(links))
	for range links {
		if links[l] {
			break
		}
		l = (l + 1) % len(links)
	}
	copies := 1
	if !w.quiet && w.rng.Float64() < w.doubled {
		copies = 2
	}
	for range copies {
		if !e.pair.alive[l] || !w.quiet && w.rng.Float64() < w.loss {
			continue
		}
		at := w.now + time.Millisecond + w.upTo(w.delay)
		if w.fifo {
			at = max(at, e.arrival)
			e.arrival = at
		}
		w.queue.push(at, func() {
			if to := e.other; to.node.router != nil && e.pair.alive[l] {
				arrive(to)
				to.node.wake(0)
			}
		})
	}
}

// lookAround refuses neighbours for whose agents a route has waited too long.
func (n *node) lookAround() {
	for _, e := range n.ends {
		if n.router != nil && e.up && n.w.now-e.heard > n.w.patience && n.router.WaitsFor(e.peer.id) {
			n.w.trace("%s refuses %s, which has no agent", n, e.peer)
			n.router.Refuse(e.peer.id)
			n.wake(0)
		}
	}
	n.w.after(300*time.Millisecond, n.lookAround)
}
