package routing

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"guywire/mesh"
	"guywire/routing/wire"
)

// originateDelays, lossDelays, computeDelays and floodDelays space our
// announcements, those of them that something is lost, our computations and the
// announcements that we pass on: the first of a quiet time at once, then later and
// later (the idea of RFC 8405). In a storm many announcements share a segment, and
// fewer cross each other on a link. A loss does not wait for what else there was
// to say, since until then others send us traffic that we cannot pass on.
var (
	originateDelays = []time.Duration{0, 20 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, time.Second}
	lossDelays      = []time.Duration{0, 0, 0, 20 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, time.Second}
	floodDelays     = []time.Duration{0, 0, 2 * time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond, 20 * time.Millisecond}
	computeDelays   = []time.Duration{0, 0, 2 * time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond, 50 * time.Millisecond}
)

// quiet is how long nothing must happen before a pace begins anew.
const quiet = 3 * time.Second

// A Pace spaces repetitions of one action: the n-th delay is what must pass
// after the n-th action of a busy time, the last one after every further.
type Pace struct {
	delays []time.Duration
	count  int
	last   time.Time
}

// NewPace makes a pace of at least one delay.
func NewPace(delays ...time.Duration) Pace { return Pace{delays: delays} }

// Due is the earliest time of the next action.
func (p *Pace) Due(now time.Time) time.Time {
	if p.last.IsZero() || now.Sub(p.last) >= quiet {
		p.count = 0
		return now
	}
	return p.last.Add(p.delays[min(p.count, len(p.delays)-1)])
}

// Ran says that the action was done.
func (p *Pace) Ran(now time.Time) { p.last, p.count = now, p.count+1 }

// An originator makes this node's announcements.
type originator struct {
	epoch, seq uint64
	adj        map[mesh.NodeID]wire.Adjacency
	prefixes   []netip.Prefix
	noTransit  bool
	overload   bool
	stale      bool // what was announced differs from what should be
	lost       bool // it is too good
	pace       Pace
	losses     Pace
}

// due is when to announce.
func (o *originator) due(now time.Time) time.Time {
	at := o.pace.Due(now)
	if o.lost {
		at = earlier(at, o.losses.Due(now))
	}
	return at
}

// ran says that all has been announced.
func (o *originator) ran(now time.Time) {
	o.pace.Ran(now)
	if o.lost {
		o.losses.Ran(now)
	}
	o.stale, o.lost = false, false
}

// heard takes the name of an announcement that bears our name and is not from
// this run: from an earlier life, or a clone. We say something newer
// (RFC 2328 13.4).
func (o *originator) heard(key wire.LSAKey) {
	if key.Epoch > o.epoch || key.Epoch == o.epoch && key.Seq > o.seq {
		o.epoch, o.seq = key.Epoch+1, 0
	}
	o.stale = true
}

// fragments lays the announcement out: adjacencies first, then prefixes, so
// that one change makes one new fragment.
func (o *originator) fragments() []wire.LSA {
	adj := make([]wire.Adjacency, 0, len(o.adj))
	for _, a := range o.adj {
		adj = append(adj, a)
	}
	// Others refuse more: the best adjacencies stay in.
	slices.SortFunc(adj, func(a, b wire.Adjacency) int {
		return cmp.Or(cmp.Compare(a.Cost, b.Cost), a.Peer.Compare(b.Peer))
	})
	adj = adj[:min(len(adj), wire.MaxAdjacencies)]
	slices.SortFunc(adj, func(a, b wire.Adjacency) int { return a.Peer.Compare(b.Peer) })
	prefixes := o.prefixes[:min(len(o.prefixes), wire.MaxPrefixes)]

	out := []wire.LSA{{NoTransit: o.noTransit, Overload: o.overload}}
	out[0].Adjacencies = adj[:min(len(adj), wire.AdjacenciesPerFragment)]
	for part := range slices.Chunk(adj[len(out[0].Adjacencies):], wire.AdjacenciesPerFragment) {
		out = append(out, wire.LSA{Adjacencies: part})
	}
	for part := range slices.Chunk(prefixes, wire.PrefixesPerFragment) {
		out = append(out, wire.LSA{Prefixes: part})
	}
	out[0].Fragments = uint16(len(out))
	return out
}

// originate announces what has changed, the first fragment last: it says how
// many there are.
func (r *Router) originate() {
	list := r.own.fragments()
	for i := len(list) - 1; i >= 0; i-- {
		l := list[i]
		l.Mesh, l.Origin, l.Fragment, l.Epoch = r.cfg.Mesh, r.cfg.Self, uint16(i), r.own.epoch
		name := fragment{r.cfg.Self, l.Fragment}
		if held, ok := r.db.get(name); ok && held.lsa.Epoch == l.Epoch && sameContent(held.lsa, l) {
			continue
		}
		r.own.seq++
		l.Seq = r.own.seq
		s := wire.Sign(l, r.cfg.Sign)
		decoded, err := s.LSA()
		if err != nil {
			panic("routing: own announcement does not decode: " + err.Error())
		}
		r.db.store(newStored(s, decoded))
		r.pass(name, r.cfg.Self)
		r.due = true
	}
}

func sameContent(a, b wire.LSA) bool {
	return a.NoTransit == b.NoTransit && a.Overload == b.Overload && a.Fragments == b.Fragments &&
		slices.Equal(a.Adjacencies, b.Adjacencies) && slices.Equal(a.Prefixes, b.Prefixes)
}

// announce makes our adjacency with a neighbour known, or its end. One whose
// transit we refuse, though it may not know, is announced as drained: others
// shall not come to us through it.
func (r *Router) announce(n *neighbour) {
	if n.usable() || !r.lfi.Settled() && n.up && n.welcome {
		a := n.adjacency
		a.Drain = a.Drain || n.refused
		if said, known := r.own.adj[n.id]; said != a {
			r.own.adj[n.id], r.own.stale = a, true
			r.own.lost = r.own.lost || known && a.Drain && !said.Drain
		}
	} else if _, ok := r.own.adj[n.id]; ok {
		delete(r.own.adj, n.id)
		r.own.stale, r.own.lost = true, true
	}
}
