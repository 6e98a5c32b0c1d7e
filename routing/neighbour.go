package routing

import (
	"maps"
	"slices"
	"time"

	"guywire/mesh"
	"guywire/routing/session"
	"guywire/routing/spf"
	"guywire/routing/wire"
)

const (
	// entriesPerNote keeps a note of distances to about one segment.
	entriesPerNote = 100
	// maxDestinations bounds the numbers under which one neighbour may tell
	// distances.
	maxDestinations = 1 << 16
	// keepFor is how long a neighbour that is down is remembered.
	keepFor = time.Minute
)

// neighbour is the state towards one adjacent node.
type neighbour struct {
	id        mesh.NodeID
	up        bool // at least one link to it works,
	doubt     bool // though none for sure
	downAt    time.Time
	adjacency wire.Adjacency
	rtt       time.Duration
	session   *session.Session
	tree      *spf.Tree

	// What it may do with us. admitted is wanted of the filter since
	// admittedAt; refusedAt is the step that took it away.
	admitted   bool
	admittedAt uint64
	refusedAt  uint64
	refused    bool   // it may not know that it is not admitted any more
	courted    bool   // not admitted yet, but no distance is raised without it
	base       uint64 // serial of the end of our first table in this session

	// What we have told it in this session.
	flood    map[fragment]bool // announcements to send
	queue    []fragment        // those of them that come first, in order
	told     bool              // the whole first table
	welcomed bool
	settled  bool

	// What it has told us. Until the first table of a session is filled, what
	// it tells is gathered in table and not confirmed. Until it says that its kernel forwards by
	// that, it may only raise what an earlier run of its agent told, the ghost;
	// it is empty when we know of no such run.
	complete   bool                           // we have a whole table, of this session or of the earlier run
	welcome    bool                           // its kernel lets our transit in
	names      []wire.Destination             // by their numbers; zero: not known
	table      map[wire.Destination]mesh.Cost // nil: what it tells counts as it comes
	filled     bool
	filledAt   time.Time
	agrees     bool                           // it is not settled, and may be refused so that we can be
	ghost      map[wire.Destination]mesh.Cost // nil: its kernel forwards by what it tells
	acks       []ack
	held       map[int]mesh.Cost // raises by destination that do not count yet, see hold,
	heldTill   time.Time         // and until when at most
	waiting    time.Time         // since when a route waits for its confirmation of anything
	heardOf    uint64            // what it had confirmed then
	differ     time.Time         // since when its digest differs from ours by difference; zero: equal
	difference uint64
}

// An ack is what to confirm once the kernel follows step.
type ack struct{ step, serial uint64 }

// usable reports whether routing may count on the neighbour.
func (n *neighbour) usable() bool { return n.up && n.welcome && n.complete }

// binding reports whether the neighbour's transit may get through our kernel.
func (n *neighbour) binding(r *Router) bool { return n.admitted || n.refusedAt > r.lfi.InKernel() }

func (n *neighbour) idle(now time.Time) bool { return now.Sub(n.downAt) > keepFor }

// neighbour gives the state of peer, made anew when there is none.
func (r *Router) neighbour(peer mesh.NodeID) *neighbour {
	n := r.neighbours[peer]
	if n == nil {
		n = &neighbour{id: peer}
		r.neighbours[peer] = n
		i, _ := slices.BinarySearchFunc(r.order, peer, func(n *neighbour, id mesh.NodeID) int { return n.id.Compare(id) })
		r.order = slices.Insert(r.order, i, n)
		r.lfi.AddPeer(peer)
		r.begin(n, true)
	}
	return n
}

// begin starts a session that knows nothing of earlier ones. It is cold unless
// only our agent is new and the kernel forwards as before.
func (r *Router) begin(n *neighbour, cold bool) {
	r.session++
	n.session = session.New(r.session)
	n.session.SetCold(cold)
	n.courted = false
	n.downAt = r.now
	n.ghost = map[wire.Destination]mesh.Cost{}
	n.listen()
	r.restream(n)
	r.lfi.Disconnect(n.id)
	if !n.binding(r) {
		r.lfi.SetNeeded(n.id, false)
	}
}

// listen makes ready for the first table of a session.
func (n *neighbour) listen() {
	n.names, n.table, n.acks = nil, map[wire.Destination]mesh.Cost{}, nil
	n.held = map[int]mesh.Cost{}
	n.filled, n.agrees = false, false
}

// restream forgets what we have told: the stream to the neighbour begins anew.
func (r *Router) restream(n *neighbour) {
	n.told, n.welcomed, n.settled = false, false, false
	n.flood = map[fragment]bool{}
	for _, f := range r.db.all() {
		n.flood[f] = true
	}
}

// forget makes void what the neighbour has told us.
func (r *Router) forget(n *neighbour) {
	n.complete, n.welcome, n.ghost = false, false, map[wire.Destination]mesh.Cost{}
	r.lfi.SetUsable(n.id, false)
	r.lfi.Forget(n.id)
	r.due = true
}

// refuse takes the neighbour's admission away.
func (r *Router) refuse(n *neighbour) {
	if n.admitted {
		n.admitted, n.welcomed = false, false
		n.session.SetCold(true)
		n.refusedAt = r.lfi.Touch()
	}
}

// clean reports whether the neighbour's kernel uses what we have told in this
// session, and nothing else.
func (r *Router) clean(n *neighbour) bool { return n.told && r.lfi.Clean(n.id) }

// admit lets the neighbour's transit in when it goes by our newest words.
//
// It goes by them, too, when it has confirmed the first table of a session in
// which no distance was raised without it.
func (r *Router) admit(n *neighbour) {
	if n.admitted || !n.up || r.holding || !r.lfi.Settled() || !n.session.Open() || !n.told {
		return
	}
	if r.clean(n) || n.courted && n.session.Committed() >= n.base {
		n.admitted, n.refused, n.courted = true, false, false
		r.announce(n)
		n.session.SetCold(false) // should its agent restart now, it may go on counting on us
		n.admittedAt = r.lfi.Touch()
		r.lfi.SetNeeded(n.id, true)
	}
}

// waited refuses the transit of a neighbour on whose confirmation a route has
// waited for too long, and says when that would be so. Its kernel forwards as
// before, so it may still be a next hop.
func (r *Router) waited(n *neighbour) (deadline time.Time) {
	confirmed := n.session.Committed()
	if !n.admitted && !n.courted || !r.lfi.WaitsFor(n.id) {
		n.waiting = time.Time{}
		return time.Time{}
	}
	if n.waiting.IsZero() || n.heardOf != confirmed {
		n.waiting, n.heardOf = r.now, confirmed
	}
	deadline = n.waiting.Add(confirmPatience)
	if !r.now.Before(deadline) {
		r.dropped["no confirmation"]++
		r.refuse(n)
		n.refused = true
		r.begin(n, true) // should it be there after all, it learns that we let nothing in
		r.announce(n)
		return time.Time{}
	}
	return deadline
}

// afterCommit does what waited for the kernel.
func (r *Router) afterCommit() {
	at := r.lfi.InKernel()
	for _, n := range r.order {
		if !n.admitted && !n.courted && n.refusedAt <= at {
			r.lfi.SetNeeded(n.id, false)
		}
		r.confirm(n)
	}
}

// confirmLater confirms once the kernel follows, and nothing is held.
func (r *Router) confirmLater(n *neighbour, serial uint64) {
	r.released(n)
	a := ack{r.lfi.Step(), serial}
	if len(n.held) > 0 {
		a.step = onRelease
	}
	if last := len(n.acks) - 1; last >= 0 && n.acks[last].step == a.step {
		n.acks[last] = a
	} else {
		n.acks = append(n.acks, a)
	}
}

// confirm tells the neighbour how far the kernel goes by its words: not at all
// while it forwards by what an earlier run was told.
func (r *Router) confirm(n *neighbour) {
	if !r.lfi.Settled() || r.settledAt > r.lfi.InKernel() {
		return
	}
	for len(n.acks) > 0 && n.acks[0].step <= r.lfi.InKernel() {
		n.session.Commit(n.acks[0].serial)
		n.acks = n.acks[1:]
	}
}

// Header is the session's part of a probe to peer.
func (r *Router) Header(peer mesh.NodeID) wire.Header {
	if n := r.neighbours[peer]; n != nil {
		return n.session.Header()
	}
	return wire.Header{}
}

// Hear takes the session's part of a probe, and the neighbour's digest.
func (r *Router) Hear(now time.Time, peer mesh.NodeID, h wire.Header, digest uint64) {
	n := r.neighbours[peer]
	if n == nil || !n.up {
		return
	}
	r.now = now
	r.receive(n, h, nil)
	// What both have learned since does not change the difference of the two
	// sums: as long as it changes, something is on its way.
	switch difference := r.db.digest - digest; {
	case difference == 0 || len(n.flood) > 0:
		n.differ = time.Time{}
	case n.differ.IsZero() || difference != n.difference:
		n.differ, n.difference = now, difference
	case now.Sub(n.differ) >= repairAfter:
		n.differ = time.Time{}
		for _, f := range r.db.all() {
			n.flood[f] = true
		}
	}
}

// Receive takes a segment from a neighbour.
func (r *Router) Receive(now time.Time, peer mesh.NodeID, seg wire.Segment) {
	if n := r.neighbours[peer]; n != nil && n.up {
		r.now = now
		r.receive(n, seg.Header, &seg)
	}
}

func (r *Router) receive(n *neighbour, h wire.Header, seg *wire.Segment) {
	if h.To > n.session.Local() {
		// The neighbour remembers a session of ours with a higher number: our
		// clock went back before this run.
		r.session = max(r.session, h.To)
		r.begin(n, n.session.Header().Cold)
	}
	in, err := n.session.Receive(r.now, h, seg)
	if err != nil {
		r.dropped["bad segment"]++
		r.refuse(n)
		r.forget(n)
		r.begin(n, true)
		r.announce(n)
		return
	}
	if in.Restarted {
		r.restarted(n, in.Cold)
	}
	if in.Restarted || in.Opened {
		r.restream(n)
		r.lfi.Connect(n.id)
		if r.lfi.Settled() && !n.admitted {
			n.courted = true
			r.lfi.SetNeeded(n.id, true)
		}
	}
	for _, note := range in.Notes {
		decoded, err := wire.DecodeNote(note.Body)
		if err != nil {
			r.dropped["bad note"]++
		} else {
			r.note(n, decoded)
		}
		if _, ok := decoded.(wire.Flood); n.filled && !ok { // nobody waits for the kernel to follow an announcement
			r.confirmLater(n, note.Serial)
		}
	}
	r.lfi.Confirmed(n.id, n.session.Committed())
	r.confirm(n)
}

// restarted takes the news that the other end's session began anew: cold, when
// it has forgotten us and lets nothing of ours in; otherwise its agent was
// restarted and its kernel forwards as before.
func (r *Router) restarted(n *neighbour, cold bool) {
	n.listen()
	switch {
	case cold:
		r.forget(n)
		r.announce(n)
	default:
		n.ghost = r.lfi.Reports(n.id) // with what an earlier ghost made of them
	}
}

func (r *Router) note(n *neighbour, note wire.Note) {
	switch note := note.(type) {
	case wire.Flood:
		r.take(note.SignedLSA, n.id)
	case wire.Distances:
		for _, e := range note.Entries {
			if e.Index >= maxDestinations {
				break // and so are all that follow
			}
			if e.Key != (wire.Destination{}) {
				if missing := int(e.Index) + 1 - len(n.names); missing > 0 {
					n.names = append(n.names, make([]wire.Destination, missing)...)
				}
				n.names[e.Index] = e.Key
			}
			if int(e.Index) < len(n.names) && n.names[e.Index] != (wire.Destination{}) {
				r.heard(n, n.names[e.Index], e.Distance, e.Patient)
			}
		}
	case wire.Complete:
		n.filled, n.filledAt = true, r.now
		r.apply(n)
		r.ready(n)
	case wire.Welcome:
		n.welcome, n.agrees = true, n.ghost != nil
		r.ready(n)
	case wire.Settled:
		n.ghost = nil
		r.apply(n)
		r.ready(n)
	}
}

// heard takes one reported distance.
func (r *Router) heard(n *neighbour, key wire.Destination, d mesh.Cost, patient bool) {
	if n.table != nil {
		n.table[key] = d
	}
	switch {
	case n.table == nil && patient && r.hold(n, key, d):
		r.readvise(key)
	case n.table == nil:
		r.count(n, key, d)
	case n.filled:
		r.count(n, key, max(d, reported(n.ghost, key)))
	}
}

// apply makes a filled table count.
func (r *Router) apply(n *neighbour) {
	if !n.filled || n.table == nil {
		return
	}
	known := r.lfi.Reports(n.id)
	for key := range n.table {
		known[key] = mesh.Infinite
	}
	for _, key := range slices.SortedFunc(maps.Keys(known), wire.Destination.Compare) {
		d := reported(n.table, key)
		if n.ghost != nil {
			d = max(d, reported(n.ghost, key))
		}
		r.count(n, key, d)
	}
	if n.ghost == nil {
		n.table = nil
	}
}

// reported is what a table says of a destination that it may not have.
func reported(table map[wire.Destination]mesh.Cost, key wire.Destination) mesh.Cost {
	if d, ok := table[key]; ok {
		return d
	}
	return mesh.Infinite
}

// ready makes the neighbour a next hop once it is usable.
func (r *Router) ready(n *neighbour) {
	n.complete = n.complete || n.filled && n.ghost == nil
	if n.usable() {
		r.lfi.SetUsable(n.id, true)
		if n.tree == nil {
			n.tree = spf.NewTree(r.db.graph, r.db.graph.Node(n.id))
		}
		r.due = true
	}
	r.announce(n)
}

// pump fills the session with what there is to tell, announcements only if flood
// says so, as far as it has room, and reports whether there were any. What
// changes meanwhile is told once, as it is then.
func (r *Router) pump(n *neighbour, flood bool) (flooded bool) {
	for n.session.Open() && n.session.Room() {
		note, sent := r.next(n, flood)
		if note == nil {
			break
		}
		if _, ok := note.(wire.Flood); ok {
			flooded = true
		}
		sent(n.session.Send(wire.EncodeNote(note)))
	}
	return flooded
}

// next gives the next thing to tell a neighbour, and what to do once it has a
// serial. What makes us a next hop comes before the announcements: a neighbour
// with our table alone may take us for one that has just restarted, too.
func (r *Router) next(n *neighbour, flood bool) (note wire.Note, sent func(serial uint64)) {
	nothing := func(uint64) {}
	switch {
	case !n.told:
	case !n.settled && r.lfi.Settled() && r.settledAt <= r.lfi.InKernel():
		n.settled = true
		return wire.Settled{}, nothing
	case !n.welcomed && n.admitted && n.admittedAt <= r.lfi.InKernel() && r.welcomes(n):
		n.welcomed = true
		return wire.Welcome{}, nothing
	}
	if flood && (n.told || !r.informed) {
		if s, ok := r.nextFlood(n); ok {
			return wire.Flood{SignedLSA: s.signed}, nothing
		}
	}
	if !r.informed {
		return nil, nil // what we know too little of would be told as unreachable
	}
	if entries := r.lfi.Due(n.id, entriesPerNote); len(entries) > 0 {
		for i := range entries {
			entries[i].Patient = r.serves(int(entries[i].Index))
		}
		return wire.Distances{Entries: entries}, func(serial uint64) { r.lfi.Sent(n.id, entries, serial) }
	}
	if !n.told {
		return wire.Complete{}, func(serial uint64) {
			n.told, n.base = true, serial
			r.lfi.SentComplete(n.id, serial)
		}
	}
	return nil, nil
}

// welcomes reports whether the neighbour is to know that we let it in: as long
// as we are not settled, this says that it may refuse us.
func (r *Router) welcomes(n *neighbour) bool {
	if r.lfi.Settled() {
		return true
	}
	_, alike := r.obstacles(n)
	return alike
}

// nextFlood gives the next announcement to send to a neighbour.
func (r *Router) nextFlood(n *neighbour) (stored, bool) {
	for len(n.flood) > 0 {
		if len(n.queue) == 0 {
			n.queue = slices.SortedFunc(maps.Keys(n.flood), fragment.compare)
		}
		f := n.queue[0]
		n.queue = n.queue[1:]
		if n.flood[f] {
			delete(n.flood, f)
			if s, ok := r.db.get(f); ok {
				return s, true
			}
		}
	}
	return stored{}, false
}
