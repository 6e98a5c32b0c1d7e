package routing

import (
	"maps"
	"math"
	"slices"
	"time"

	"guywire/mesh"
	"guywire/routing/wire"
)

// holdFor bounds how long a raise is held: about as long as neighbours' answers
// need.
const holdFor = 300 * time.Millisecond

// onRelease is the step of a confirmation that waits for the end of a hold.
const onRelease = math.MaxUint64

// hold reports whether a raise does not count yet. When the only neighbour
// not in doubt through which we reach a destination raises its distance above our
// feasible one, we would be without a way until our own raise is confirmed. Where it forwards as
// before until we confirm, we first raise ours, and take its word, and confirm it,
// when it costs nothing: to the invariants that is a message that arrives late.
// For one destination who waits for whom follows the paths, which have no loop; but
// one confirmation covers all destinations, so that the time has to be bounded.
func (r *Router) hold(n *neighbour, key wire.Destination, d mesh.Cost) bool {
	k, known := r.routes.index[key]
	if !known || d >= mesh.Infinite {
		return false
	}
	i := r.routes.dests[k].number
	if len(n.held) > 0 && !r.now.Before(n.heldTill) || !r.restsOn(n, i, d) {
		return false
	}
	if len(n.held) == 0 {
		n.heldTill = r.now.Add(holdFor)
	}
	n.held[i] = d
	return true
}

// restsOn reports whether a destination's only way that is not in doubt ends when
// the neighbour's raise counts.
func (r *Router) restsOn(n *neighbour, i int, d mesh.Cost) bool {
	return r.lfi.RestsOn(n.id, i, d, func(id mesh.NodeID) bool { return !r.neighbours[id].doubt })
}

// release lets the raises of a neighbour count that need not be held any more,
// and says when to look again.
func (r *Router) release(n *neighbour) (deadline time.Time) {
	over := !r.now.Before(n.heldTill)
	for _, i := range slices.Sorted(maps.Keys(n.held)) {
		if d := n.held[i]; over || !r.restsOn(n, i, d) {
			r.count(n, r.lfi.Key(i), d)
		}
	}
	if len(n.held) > 0 {
		return n.heldTill
	}
	r.released(n)
	r.confirm(n)
	return time.Time{}
}

// released ends the wait of the confirmations when nothing is held any more.
func (r *Router) released(n *neighbour) {
	if last := len(n.acks) - 1; last >= 0 && len(n.held) == 0 && n.acks[last].step == onRelease {
		n.acks[last].step = r.lfi.Step()
	}
}

// count lets what a neighbour tells count.
func (r *Router) count(n *neighbour, key wire.Destination, d mesh.Cost) {
	delete(n.held, r.lfi.Destination(key))
	r.lfi.Hear(n.id, key, d)
	r.readvise(key)
}

// readvise looks at a destination again of which somebody tells something else.
func (r *Router) readvise(key wire.Destination) {
	if k, known := r.routes.index[key]; known && len(r.routes.dests[k].nodes) > 0 {
		r.advise(&r.routes.dests[k])
	}
}

// serves reports whether a destination has a successor that is not in doubt, so
// that others may take their time with what we tell of it.
func (r *Router) serves(i int) bool {
	for id := range r.lfi.Successors(i) {
		if n := r.neighbours[id]; !n.doubt {
			return true
		}
	}
	return false
}

// told is what a neighbour tells of a destination, and whether it is held.
func (r *Router) told(n *neighbour, i int) (d mesh.Cost, held bool) {
	if d, held = n.held[i]; held {
		return d, true
	}
	return r.lfi.Reported(n.id, i), false
}
