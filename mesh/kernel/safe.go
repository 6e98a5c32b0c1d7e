package kernel

import (
	"maps"
	"net/netip"
	"slices"

	"guywire/mesh"
)

// Safe reports whether the model forwards nothing that want does not, and
// keeps out all that want keeps out:
//
//   - No packet leaves by a leg that the wanted state does not have for its
//     prefix: not by its route, whatever group that is on, and not by a wider
//     one because its own is missing. Fewer legs, other weights and another
//     MTU are no harm.
//   - Routes of prefixes that are not wanted are gone, or refuse.
//   - The filter is in force as it is wanted, its holds and its sources.
//   - No tunnel of a revoked peer is left.
//
// Whatever is then still to be done only adds legs, or tidies up what carries
// no packets. This, not the full revision, is what a loop-free routing
// acknowledgement has to wait for: a single tunnel that cannot be made must
// not stop the protocol. A state that is not complete does not say what is not
// wanted, and is never safe.
func (m *Model) Safe(want State) bool {
	return want.Complete && m.Filtered(want) && m.beyond(want) == ""
}

// Filtered reports whether the filter is in force as a state wants it. A state
// that is not complete, in its filter at least, wants it to let in no less.
func (m *Model) Filtered(want State) bool {
	return want.Filter.IsZero() || m.filters(want).lift.Equal(m.filter)
}

// beyond names the first thing that forwards where want does not; "" if
// nothing does.
func (m *Model) beyond(want State) string {
	for _, name := range slices.Sorted(maps.Keys(m.tunnels)) {
		if slices.Contains(want.Revoked, m.tunnels[name].Peer) {
			return "tunnel " + name + " to go"
		}
	}
	m.routes.rebase(want.Routes)
	moving := map[uint32]int{} // next hop → routes on it that are wanted otherwise
	cover := m.covers()
	var wrong []RouteKey
	for k, have := range m.routes.over {
		if k.Table != mesh.RouteTable {
			continue
		}
		goal, wanted := find(want.Routes, k)
		switch {
		case have.isZero():
			if c, covered := cover(k.Prefix); covered && c.Kind == Forward && !m.legs(c).within(want.legs(goal)) {
				wrong = append(wrong, k)
			}
		case have.Kind == Unreachable:
		case wanted && have.Kind == Forward && goal.Kind == Forward && m.legs(have).within(want.legs(goal)):
			moving[have.NextHop]++
		default:
			wrong = append(wrong, k)
		}
	}
	if len(wrong) > 0 {
		return slices.MinFunc(wrong, RouteKey.Compare).String() + " to change"
	}
	for _, id := range slices.Sorted(maps.Keys(m.routes.users)) {
		if r := (Route{NextHop: id}); id != 0 && m.routes.users[id] > moving[id] && !m.legs(r).within(want.legs(r)) {
			return hopName(id) + " to change"
		}
	}
	return ""
}

// covers gives a function that finds, for a prefix whose route is missing from
// the mesh table, the route that its packets take there instead.
func (m *Model) covers() func(netip.Prefix) (Route, bool) {
	var wide map[netip.Prefix]Route // built when it is needed, which is rare
	return func(p netip.Prefix) (Route, bool) {
		if wide == nil {
			wide = map[netip.Prefix]Route{}
			for r := range m.routes.all() {
				if other, ok := wide[r.Prefix]; !r.ofUplink() && (!ok || r.Metric < other.Metric) {
					wide[r.Prefix] = r
				}
			}
		}
		for bits := p.Bits(); bits >= 0; bits-- {
			if r, ok := wide[netip.PrefixFrom(p.Addr(), bits).Masked()]; ok {
				return r, true
			}
		}
		return Route{}, false
	}
}

// legs are the devices that a route of the mesh table sends packets to,
// sorted; "?" is one that is not known.
type legs []string

// within reports whether l has no device that others do not have.
func (l legs) within(others legs) bool {
	return !slices.ContainsFunc(l, func(device string) bool { return device == unknown || !slices.Contains(others, device) })
}

// unknown stands for the legs of a route that is not on a next hop of ours.
const unknown = "?"

func (m *Model) legs(r Route) legs {
	return legsOf(r, func(id uint32) (NextHop, bool) { n, ok := m.hops[id]; return n, ok })
}

func (s State) legs(r Route) legs { return legsOf(r, s.nextHop) }

func legsOf(r Route, hop func(uint32) (NextHop, bool)) legs {
	if r.Kind != Forward {
		return nil
	}
	n, ok := hop(r.NextHop)
	switch {
	case !ok:
		return legs{unknown}
	case !n.IsGroup():
		return legs{n.Device}
	}
	out := make(legs, len(n.Members))
	for i, leg := range n.Members {
		single, ok := hop(leg.ID)
		if out[i] = single.Device; !ok || single.IsGroup() {
			out[i] = unknown
		}
	}
	return out
}

// nextHop gives a wanted next hop.
func (s State) nextHop(id uint32) (NextHop, bool) {
	i, ok := slices.BinarySearchFunc(s.NextHops, id, func(n NextHop, id uint32) int { return int(int64(n.ID) - int64(id)) })
	if !ok {
		return NextHop{}, false
	}
	return s.NextHops[i], true
}
