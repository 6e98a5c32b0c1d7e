// Package routing is the routing protocol's core: it originates and floods
// this node's signed announcements, keeps everyone else's, computes the best
// paths from them, and lets routing/lfi decide which neighbours may carry
// traffic so that nothing ever loops.
//
// It is pure: time comes in as an argument, datagrams go out as values, the
// next deadline is part of the output. Nothing here knows about links inside
// an adjacency; mesh/core turns neighbours into legs.
package routing

import (
	"bytes"
	"maps"
	"net/netip"
	"slices"
	"time"

	"guywire/mesh"
	"guywire/routing/lfi"
	"guywire/routing/spf"
	"guywire/routing/wire"
)

const (
	// repairAfter is how long two neighbours' databases may differ before
	// everything is offered again.
	repairAfter = 2 * time.Second
	// DrainPenalty is added to the cost of a drained link or node: it carries
	// traffic where nothing else does.
	DrainPenalty mesh.Cost = 50_000_000
	// confirmPatience is how long a route may wait for a neighbour that confirms
	// nothing, because its agent is gone or it does not mean well, before its
	// transit is refused instead.
	confirmPatience = 2 * time.Second
	// agreePatience is how long a restarted node waits for another's agreement to
	// be refused. It does not come from one that lets us in no more.
	agreePatience = 20 * time.Second
	// slackAfter is how long nobody may have lost a path to a destination before
	// more than our distance is told, and slackEvery how exactly that is measured.
	slackAfter = time.Second
	slackEvery = slackAfter / 4
	// collectAfter is how often destinations that nobody knows are freed.
	collectAfter = 10 * time.Second
)

// Config is what a Router is made from.
type Config struct {
	Self  mesh.NodeID
	Mesh  mesh.MeshID
	Epoch uint64                   // larger at every start of this node
	Sign  func(body []byte) []byte // Ed25519 with our identity key
	// Verify checks an announcement's signature; nil: its method of that name.
	// A simulation checks each once for all its nodes.
	Verify func(wire.SignedLSA, mesh.IdentityKey) bool
	// Warm are the neighbours whose transit the kernel was found to let in at
	// the start. With any, the router does not touch what the kernel forwards
	// until Settle.
	Warm []mesh.NodeID
}

// A Router is one node's view of the whole mesh's links, and its part in
// forwarding.
type Router struct {
	cfg        Config
	now        time.Time
	db         lsdb
	lfi        *lfi.Machine
	neighbours map[mesh.NodeID]*neighbour
	order      []*neighbour // by id
	session    uint64       // number of the newest session

	own      originator
	speaking bool

	self    *spf.Tree
	routes  routes
	version uint64      // grows with every change of the table or of admissions
	news    mesh.NodeID // whose links or prefixes changed last; zero: nobody's since asked
	compute Pace
	floods  Pace
	due     bool      // the database or the neighbours changed since the last computation
	shaken  time.Time // when a neighbour last came, went, or fell into doubt
	slackAt time.Time // when slack is to be taken; zero: there is none to take

	holding   bool   // nobody is let in yet
	informed  bool   // the database is known to be complete enough to tell distances
	settledAt uint64 // step of Settle; 0: settled from the start, or not yet
	collected time.Time
	dropped   map[string]uint64
}

// A Message is one datagram for a neighbour, over any link to it.
type Message struct {
	To   mesh.NodeID
	Body wire.Body
}

// New makes a router that knows nobody.
func New(cfg Config) *Router {
	r := &Router{
		cfg:        cfg,
		db:         newLSDB(cfg.Mesh, cfg.Verify),
		lfi:        lfi.New(len(cfg.Warm) == 0),
		neighbours: map[mesh.NodeID]*neighbour{},
		session:    cfg.Epoch,
		own:        originator{epoch: cfg.Epoch, adj: map[mesh.NodeID]wire.Adjacency{}, stale: true},
		dropped:    map[string]uint64{},
		informed:   len(cfg.Warm) == 0,
	}
	r.own.pace, r.own.losses = NewPace(originateDelays...), NewPace(lossDelays...)
	r.compute, r.floods = NewPace(computeDelays...), NewPace(floodDelays...)
	r.self = spf.NewTree(r.db.graph, r.db.graph.Node(cfg.Self))
	for _, id := range cfg.Warm {
		n := r.neighbour(id)
		n.admitted, n.welcome = true, true
		r.begin(n, false)
		r.lfi.SetNeeded(id, true)
	}
	return r
}

// SetMembers replaces what the log says. Announcements of nodes that are no
// longer members are forgotten.
func (r *Router) SetMembers(members map[mesh.NodeID]Member) {
	r.db.setMembers(members)
	for _, n := range r.order {
		maps.DeleteFunc(n.flood, func(f fragment, _ bool) bool {
			_, ok := members[f.origin]
			return !ok
		})
	}
	r.due = true
}

// SetPrefixes says which prefixes this node announces, sorted.
func (r *Router) SetPrefixes(p []netip.Prefix) {
	if !slices.Equal(r.own.prefixes, p) {
		r.own.prefixes, r.own.stale, r.due = slices.Clone(p), true, true
	}
}

// SetTransit says whether others may route through this node, and whether only
// as a last resort: it is drained.
func (r *Router) SetTransit(none, drained bool) {
	if r.own.noTransit != none || r.own.overload != drained {
		r.own.noTransit, r.own.overload, r.own.stale, r.due = none, drained, true, true
	}
}

// SetSpeaking says whether this node announces anything about itself. A
// restarted one lets its old words stand until it knows better.
func (r *Router) SetSpeaking(v bool) { r.speaking = v }

// SetHolding says whether the kernel has none of our routes yet, so that who is
// let in would find none: then nobody new is.
func (r *Router) SetHolding(v bool) { r.holding = v }

// SetNeighbour says that at least one link to peer works, the cost of the best
// one and how long an answer takes; drain: only drained ones are left.
func (r *Router) SetNeighbour(peer mesh.NodeID, cost mesh.Cost, drain bool, rtt time.Duration) {
	n := r.neighbour(peer)
	n.rtt = rtt
	if !n.up {
		n.up = true
		n.session.Nudge()
	}
	a := wire.Adjacency{Peer: peer, Cost: min(max(cost, 1), mesh.Infinite-1), Drain: drain}
	if n.adjacency != a {
		n.adjacency = a
		r.announce(n)
	}
}

// SetDoubt says whether every link to peer is under suspicion. Nobody is told,
// but where there is no other way, one is prepared.
func (r *Router) SetDoubt(peer mesh.NodeID, v bool) {
	if n := r.neighbours[peer]; n != nil && n.doubt != v {
		n.doubt, r.due = v, true
	}
}

// DropNeighbour says that no link to peer works. Everything either end
// promised the other is void; its transit is refused from the next step on.
func (r *Router) DropNeighbour(peer mesh.NodeID) {
	n := r.neighbours[peer]
	if n == nil || !n.up && !n.admitted {
		return
	}
	n.up, n.doubt, n.refused = false, false, false
	r.refuse(n)
	r.forget(n)
	r.begin(n, true)
	r.announce(n)
}

// Refuse drops the transit of a neighbour whose agent is gone for long: it
// cannot confirm anything. Its kernel forwards as before, so it may still be
// used as a next hop.
func (r *Router) Refuse(peer mesh.NodeID) {
	if n := r.neighbours[peer]; n != nil && n.admitted {
		r.refuse(n)
		n.refused = true
		r.announce(n)
	}
}

// Nudge says that the link last used for a neighbour died.
func (r *Router) Nudge(peer mesh.NodeID) {
	if n := r.neighbours[peer]; n != nil {
		n.session.Nudge()
	}
}

// WaitsFor reports whether a route waits for the neighbour's confirmation.
func (r *Router) WaitsFor(peer mesh.NodeID) bool {
	n := r.neighbours[peer]
	return n != nil && (r.lfi.WaitsFor(peer) || !r.lfi.Settled() && n.binding(r) && !r.clean(n))
}

// Admits reports whether the filter should let the neighbour's transit in.
func (r *Router) Admits(peer mesh.NodeID) bool {
	n := r.neighbours[peer]
	return n != nil && n.admitted
}

// Usable reports whether the neighbour may be a next hop: it is up, has told
// us its distances, and lets our transit in.
func (r *Router) Usable(peer mesh.NodeID) bool {
	n := r.neighbours[peer]
	return n != nil && n.usable()
}

// Announced are the neighbours that a node announces.
func (r *Router) Announced(id mesh.NodeID) []mesh.NodeID {
	o := r.db.origins[id]
	if o == nil {
		return nil
	}
	return slices.SortedFunc(maps.Keys(o.adj), mesh.NodeID.Compare)
}

// Step numbers the newest table and admissions; Committed tells it back.
func (r *Router) Step() uint64 { return r.lfi.Step() }

// Committed says that the kernel forwards and filters by step: what that step
// or an earlier one took away is gone.
func (r *Router) Committed(step uint64) {
	if step <= r.lfi.InKernel() {
		return
	}
	r.lfi.Committed(step)
	r.afterCommit()
}

// Settled reports whether the router decides what the kernel forwards.
func (r *Router) Settled() bool { return r.lfi.Settled() }

// Settle ends the time after a start in which the kernel forwards by what an
// earlier run decided. The caller believes the database complete. It is refused
// (false) while a neighbour whose transit the kernel may let in has not
// confirmed what this run told it; it may be that its transit must be refused
// first (Admits).
func (r *Router) Settle() bool {
	if r.lfi.Settled() {
		return true
	}
	if r.due {
		r.recompute() // what this raises has to be confirmed as well
	}
	if !r.informed {
		r.informed = true // from now on neighbours are told our table
		r.recompute()
	}
	waiting, alike := r.obstacles(nil)
	if !waiting {
		r.lfi.Settle()
		r.settledAt = r.lfi.Step()
		r.version++
		return true
	}
	if alike {
		for _, n := range r.order {
			if n.binding(r) && !r.clean(n) {
				r.refuse(n)
			}
		}
	}
	return false
}

// obstacles says whether any neighbour but one keeps this router from settling,
// and whether all those that do are restarted, too, and wait for our word as we
// wait for theirs. Of two that wait for each other the lesser stops relying on
// the greater, whose packets are lost until it is settled as well. So that this
// is soon, the greater agrees first (Welcome): when it waits for nobody who may
// be gone for long, and all that are greater still agreed.
func (r *Router) obstacles(but *neighbour) (waiting, alike bool) {
	alike = true
	for _, n := range r.order {
		if n == but || !n.binding(r) || r.clean(n) {
			continue
		}
		waiting = true
		agrees := n.agrees || n.filled && r.now.Sub(n.filledAt) >= agreePatience
		if n.id.Compare(r.cfg.Self) < 0 {
			agrees = but != nil // it is for the lesser to act
		}
		alike = alike && n.filled && n.ghost != nil && agrees
	}
	return waiting, alike
}

// Poll does what is due and returns the datagrams to send now and the time of
// the next call.
func (r *Router) Poll(now time.Time) (out []Message, deadline time.Time) {
	r.now = now
	late, waiting := r.db.overdue(now)
	for _, s := range late {
		r.take(s, r.cfg.Self)
	}
	if waiting {
		deadline = now.Add(time.Second / verifyRate)
	}
	if r.own.stale && r.speaking {
		if at := r.own.due(now); at.After(now) {
			deadline = earlier(deadline, at)
		} else {
			r.own.ran(now)
			r.originate()
		}
	}
	if !r.slackAt.IsZero() {
		if r.slackAt.After(now) {
			deadline = earlier(deadline, r.slackAt)
		} else {
			r.due = true
		}
	}
	if r.due {
		if at := r.compute.Due(now); at.After(now) {
			deadline = earlier(deadline, at)
		} else {
			r.compute.Ran(now)
			r.recompute()
		}
	}
	flooding, flooded := r.floods.Due(now), false
	for _, n := range r.order {
		if at := r.release(n); !at.IsZero() {
			deadline = earlier(deadline, at)
		}
		r.admit(n)
		if at := r.waited(n); !at.IsZero() {
			deadline = earlier(deadline, at)
		}
		if !n.up {
			continue
		}
		if !flooding.After(now) {
			flooded = r.pump(n, true) || flooded
		} else {
			r.pump(n, false)
			if len(n.flood) > 0 {
				deadline = earlier(deadline, flooding)
			}
		}
		segs, at := n.session.Poll(now, n.rtt)
		for i := range segs {
			out = append(out, Message{n.id, segs[i]})
		}
		if !at.IsZero() {
			deadline = earlier(deadline, at)
		}
	}
	if flooded {
		r.floods.Ran(now)
	}
	if now.Sub(r.collected) > collectAfter {
		r.collected = now
		r.lfi.Collect(r.routes.known)
		if r.routes.retired {
			r.db.replaced, r.due = true, true
		}
		r.order = slices.DeleteFunc(r.order, func(n *neighbour) bool {
			if n.up || n.binding(r) || !n.idle(now) {
				return false
			}
			r.lfi.RemovePeer(n.id)
			delete(r.neighbours, n.id)
			return true
		})
	}
	return out, deadline
}

// Digest stands for the database in probes.
func (r *Router) Digest() uint64 { return r.db.digest }

// News names the other node whose announcement came last, since it was last
// asked: for people, as the cause of what changed.
func (r *Router) News() (origin mesh.NodeID, ok bool) {
	origin, r.news = r.news, mesh.NodeID{}
	return origin, !origin.IsZero()
}

// Version grows whenever the table or the admissions may have changed.
func (r *Router) Version() uint64 { return r.version + r.lfi.Step() }

// Dropped counts refused announcements by reason.
func (r *Router) Dropped() map[string]uint64 { return maps.Clone(r.dropped) }

// Announcements are all that is held, for repair by gossip.
func (r *Router) Announcements() []wire.SignedLSA {
	all := r.db.all()
	slices.SortFunc(all, fragment.compare)
	out := make([]wire.SignedLSA, len(all))
	for i, f := range all {
		s, _ := r.db.get(f)
		out[i] = s.signed
	}
	return out
}

// Learn takes announcements that did not come from a neighbour.
func (r *Router) Learn(now time.Time, list []wire.SignedLSA) {
	r.now = now
	for _, s := range list {
		r.take(s, r.cfg.Self)
	}
}

// take offers an announcement to the database and passes on what is new.
func (r *Router) take(s wire.SignedLSA, from mesh.NodeID) {
	key, dropped := r.db.offer(r.now, s)
	name := fragment{key.Origin, key.Fragment}
	switch dropped {
	case "", DropConflict:
		if dropped != "" {
			r.dropped[dropped]++
		}
		r.due = true
		r.pass(name, from)
		if key.Origin == r.cfg.Self {
			r.own.heard(key)
		} else {
			r.news = key.Origin
		}
	case DropOld:
		// A neighbour that is behind has been sent the newer one in this session,
		// or will be; one that is not need not be sent it any more.
		if n := r.neighbours[from]; n != nil && n.flood[name] {
			if held, ok := r.db.get(name); ok && bytes.Equal(held.signed.Body, s.Body) {
				delete(n.flood, name)
			}
		}
	default:
		r.dropped[dropped]++
	}
}

// pass schedules an announcement for every neighbour but the one it came from.
func (r *Router) pass(name fragment, from mesh.NodeID) {
	for _, n := range r.order {
		if n.id == from {
			delete(n.flood, name) // it has this one or a newer
		} else {
			n.flood[name] = true
		}
	}
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}
