// Package routing is the link-state protocol's core: it originates and floods
// this node's signed announcement, keeps everyone else's, and computes which
// neighbours may carry traffic to which prefixes.
//
// It is pure: time comes in as an argument, datagrams go out as values, the
// next deadline is part of the output. Nothing here knows about links inside
// an adjacency; mesh/core turns neighbours into legs.
package routing

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"guywire/mesh"
	"guywire/routing/wire"
)

const (
	// resendAfter is when an unacknowledged announcement is sent again: a
	// little over the largest round trip of a sane path.
	resendAfter = 250 * time.Millisecond
	// floodBatch bounds the announcements in one datagram, batchBytes their
	// size, so that all but the largest announcement fit a tunnel's MTU.
	floodBatch = 16
	batchBytes = 1100
	// repairAfter is how long two neighbours' databases may differ before
	// everything is offered again.
	repairAfter = 2 * time.Second
	// originateAfter spaces our own announcements; the first change of a quiet
	// period leaves at once (the idea of RFC 8405).
	originateAfter = 100 * time.Millisecond
)

// Config is what a Router is made from.
type Config struct {
	Self  mesh.NodeID
	Mesh  mesh.MeshID
	Epoch uint64                   // larger at every start of this node
	Sign  func(body []byte) []byte // Ed25519 with our identity key
}

// A Router is one node's view of the whole mesh's links.
type Router struct {
	cfg        Config
	db         lsdb
	own        wire.LSA // as last originated
	adj        map[mesh.NodeID]mesh.Cost
	prefixes   []netip.Prefix
	noTransit  bool
	stale      bool // own differs from what should be announced
	originated time.Time
	neighbours map[mesh.NodeID]*neighbour
	version    uint64 // of the database: grows with every change that may move routes
	dropped    map[string]uint64
}

// neighbour is the flooding state towards one adjacent node.
type neighbour struct {
	unacked map[mesh.NodeID]pending
	differ  time.Time // since when its digest differs from ours; zero: equal
}

type pending struct {
	key  wire.LSAKey
	next time.Time
}

// A Message is one datagram for a neighbour, over any link to it.
type Message struct {
	To   mesh.NodeID
	Body wire.Body
}

// New makes a router that knows nobody.
func New(cfg Config) *Router {
	return &Router{
		cfg:        cfg,
		db:         lsdb{mesh: cfg.Mesh, members: map[mesh.NodeID]Member{}, lsas: map[mesh.NodeID]stored{}},
		adj:        map[mesh.NodeID]mesh.Cost{},
		neighbours: map[mesh.NodeID]*neighbour{},
		dropped:    map[string]uint64{},
		stale:      true,
	}
}

// SetMembers replaces what the log says. Announcements of nodes that are no
// longer members are forgotten.
func (r *Router) SetMembers(members map[mesh.NodeID]Member) {
	r.db.members = members
	for id := range r.db.lsas {
		if _, ok := members[id]; !ok {
			delete(r.db.lsas, id)
			for _, n := range r.neighbours {
				delete(n.unacked, id)
			}
		}
	}
	r.version++
}

// SetPrefixes says which prefixes this node announces.
func (r *Router) SetPrefixes(p []netip.Prefix) {
	if !slices.Equal(r.prefixes, p) {
		r.prefixes, r.stale = p, true
	}
}

// SetNoTransit says whether others may route through this node.
func (r *Router) SetNoTransit(v bool) {
	if r.noTransit != v {
		r.noTransit, r.stale = v, true
	}
}

// SetAdjacency says that peer is a neighbour at this cost.
func (r *Router) SetAdjacency(peer mesh.NodeID, cost mesh.Cost) {
	if old, ok := r.adj[peer]; ok && old == cost {
		return
	}
	r.adj[peer], r.stale = cost, true
	if r.neighbours[peer] == nil {
		n := &neighbour{unacked: map[mesh.NodeID]pending{}}
		for id, s := range r.db.lsas {
			n.unacked[id] = pending{key: s.lsa.Key()}
		}
		r.neighbours[peer] = n
	}
}

// DropAdjacency says that peer is a neighbour no more.
func (r *Router) DropAdjacency(peer mesh.NodeID) {
	if _, ok := r.adj[peer]; ok {
		delete(r.adj, peer)
		delete(r.neighbours, peer)
		r.stale = true
	}
}

// Receive takes a Flood or Ack from a neighbour and returns what to answer.
func (r *Router) Receive(from mesh.NodeID, body wire.Body) []Message {
	switch m := body.(type) {
	case wire.Ack:
		if n := r.neighbours[from]; n != nil {
			for _, k := range m.Keys {
				if p, ok := n.unacked[k.Origin]; ok && !p.key.Newer(k) {
					delete(n.unacked, k.Origin)
				}
			}
		}
	case wire.Flood:
		var ack wire.Ack
		for _, s := range m.LSAs {
			key, dropped := r.db.offer(s)
			switch dropped {
			case "":
				r.version++
				r.pass(key, from)
				ack.Keys = append(ack.Keys, key)
				if key.Origin == r.cfg.Self {
					// Our own words from an earlier life, or from a clone: say
					// something newer (RFC 2328 13.4).
					r.cfg.Epoch = max(r.cfg.Epoch, key.Epoch)
					r.own.Seq = max(r.own.Seq, key.Seq)
					r.stale = true
				}
			case DropOld:
				ack.Keys = append(ack.Keys, key)
				if held := r.db.lsas[key.Origin].lsa.Key(); held.Newer(key) {
					r.offerTo(from, held) // the neighbour is behind
				}
			case DropUnknownOrigin:
				// Not acknowledged: our log is behind, the neighbour will send again.
				r.dropped[dropped]++
			default:
				r.dropped[dropped]++
				ack.Keys = append(ack.Keys, key) // sending it again would not help
			}
		}
		if len(ack.Keys) > 0 {
			return []Message{{from, ack}}
		}
	}
	return nil
}

// PeerDigest compares a neighbour's database digest with ours and, when they
// stay different, offers it everything again.
func (r *Router) PeerDigest(now time.Time, peer mesh.NodeID, digest uint64) {
	n := r.neighbours[peer]
	switch {
	case n == nil:
	case digest == r.Digest() || len(n.unacked) > 0:
		n.differ = time.Time{}
	case n.differ.IsZero():
		n.differ = now
	case now.Sub(n.differ) >= repairAfter:
		r.Resync(peer)
	}
}

// Resync offers a neighbour everything again: its agent restarted.
func (r *Router) Resync(peer mesh.NodeID) {
	n := r.neighbours[peer]
	if n == nil {
		return
	}
	n.differ = time.Time{}
	for id, s := range r.db.lsas {
		n.unacked[id] = pending{key: s.lsa.Key()}
	}
}

// Poll originates what is due and returns the datagrams to send now and the
// time of the next call.
func (r *Router) Poll(now time.Time) (out []Message, deadline time.Time) {
	if r.stale {
		if due := r.originated.Add(originateAfter); r.originated.IsZero() || !now.Before(due) {
			r.originate(now)
		} else {
			deadline = due
		}
	}
	for _, to := range slices.SortedFunc(maps.Keys(r.neighbours), mesh.NodeID.Compare) {
		n := r.neighbours[to]
		var batch wire.Flood
		size := 0
		for _, id := range slices.SortedFunc(maps.Keys(n.unacked), mesh.NodeID.Compare) {
			p := n.unacked[id]
			if now.Before(p.next) {
				deadline = earlier(deadline, p.next)
				continue
			}
			s := r.db.lsas[id].signed
			if len(batch.LSAs) == floodBatch || size > 0 && size+len(s.Body)+len(s.Signature) > batchBytes {
				out = append(out, Message{to, batch})
				batch, size = wire.Flood{}, 0
			}
			batch.LSAs = append(batch.LSAs, s)
			size += len(s.Body) + len(s.Signature)
			p.next = now.Add(resendAfter)
			n.unacked[id] = p
			deadline = earlier(deadline, p.next)
		}
		if len(batch.LSAs) > 0 {
			out = append(out, Message{to, batch})
		}
	}
	return out, deadline
}

func (r *Router) originate(now time.Time) {
	r.own = wire.LSA{
		Mesh: r.cfg.Mesh, Origin: r.cfg.Self, Epoch: r.cfg.Epoch, Seq: r.own.Seq + 1,
		NoTransit: r.noTransit, Prefixes: slices.Clone(r.prefixes),
	}
	for peer, cost := range r.adj {
		r.own.Adjacencies = append(r.own.Adjacencies, wire.Adjacency{Peer: peer, Cost: min(max(cost, 1), mesh.Infinite-1)})
	}
	// Others refuse a longer announcement: the best adjacencies stay in.
	slices.SortFunc(r.own.Adjacencies, func(a, b wire.Adjacency) int {
		return cmp.Or(cmp.Compare(a.Cost, b.Cost), a.Peer.Compare(b.Peer))
	})
	r.own.Adjacencies = r.own.Adjacencies[:min(len(r.own.Adjacencies), wire.MaxAdjacencies)]
	r.own.Prefixes = r.own.Prefixes[:min(len(r.own.Prefixes), wire.MaxPrefixes)]
	signed := wire.Sign(r.own, r.cfg.Sign)
	lsa, err := signed.LSA()
	if err != nil {
		panic("routing: own announcement does not decode: " + err.Error())
	}
	r.own = lsa
	r.db.lsas[r.cfg.Self] = stored{signed, lsa}
	r.stale, r.originated = false, now
	r.version++
	r.pass(lsa.Key(), r.cfg.Self)
}

// pass schedules an announcement for every neighbour but the one it came from.
func (r *Router) pass(key wire.LSAKey, from mesh.NodeID) {
	for id := range r.neighbours {
		if id != from {
			r.offerTo(id, key)
		}
	}
	if n := r.neighbours[from]; n != nil {
		delete(n.unacked, key.Origin) // it has this one or a newer
	}
}

func (r *Router) offerTo(id mesh.NodeID, key wire.LSAKey) {
	if n := r.neighbours[id]; n != nil {
		n.unacked[key.Origin] = pending{key: key}
	}
}

// Digest stands for the database in probes.
func (r *Router) Digest() uint64 { return r.db.digest() }

// Version grows whenever routes may have changed.
func (r *Router) Version() uint64 { return r.version }

// Dropped counts refused announcements by reason.
func (r *Router) Dropped() map[string]uint64 { return maps.Clone(r.dropped) }

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}
