package kernel

import (
	"cmp"
	"maps"
	"slices"

	"guywire/mesh"
)

// findDead finds the single next hops that are to be deleted at once: nothing
// wanted uses them, or their id is to stand for another device. One message
// then heals all their groups. A next hop that stays as a spare is deleted and
// made again when that is cheaper than to reshape its groups.
//
// It also finds the groups whose routes are to stay and which the kernel would
// drop, or leave without any leg they are to have. Before that, the routes that
// are to leave such a group leave, and it is given its wanted legs. Where that
// cannot be, or takes longer than to reshape the other groups, its legs are
// not dead so far.
func (p *planner) findDead() {
	groups := p.sortedHops(true)
	for _, id := range groups {
		for _, leg := range p.hops[id].Members {
			p.groups[leg.ID]++
		}
	}
	for _, id := range p.sortedHops(false) {
		_, spare := p.goal[id]
		if p.unwanted(id) && p.carries[id] <= 0 && (!spare || p.displaced(id) || p.groups[id] > 2) {
			p.dead[id] = true
		}
	}
	moves := map[uint32]int{} // group → routes that can leave it now; those that cannot count as too many
	for _, d := range p.put {
		if d.leaves() && p.bereft(d.have.NextHop) {
			moves[d.have.NextHop]++
			if !p.ready(d.want) {
				moves[d.have.NextHop] += evacuateMax
			}
		}
	}
	for _, id := range groups {
		if !p.bereft(id) {
			continue
		}
		stay := p.have.routes.users[id] - p.leaving[id]
		heals := len(p.possible(id).Members) > 0 && p.leaving[id] == moves[id]
		if moves[id] >= evacuateMax || stay > 0 && !heals {
			for _, leg := range p.hops[id].Members {
				delete(p.dead, leg.ID)
			}
		}
	}
	for _, id := range groups {
		if p.bereft(id) {
			p.needy = append(p.needy, id)
		}
	}
}

// evacuateMax bounds how many routes are moved off a group before its dead
// legs go: a route takes the kernel about 20 us, to reshape a group 100 to 200.
const evacuateMax = 100

// unwanted reports whether no route or group is to use a single next hop as it
// is now.
func (p *planner) unwanted(id uint32) bool { return p.wanted[id] <= 0 || p.displaced(id) }

// displaced reports whether an existing id is to stand for something else:
// another device, or an object of the other kind. It is deleted before it is
// made anew, lest its groups forward where nobody wants them to.
func (p *planner) displaced(id uint32) bool {
	have, exists := p.hops[id]
	goal, ok := p.goal[id]
	return exists && ok && !have.alike(goal)
}

// alike reports whether n and o are groups, or single next hops of one device.
func (n NextHop) alike(o NextHop) bool { return n.Device == o.Device }

// bereft reports whether a group carries routes that are to stay, and without
// its dead legs has none that anything, or the group itself, is to have.
func (p *planner) bereft(id uint32) bool {
	if p.carries[id] <= 0 || !slices.ContainsFunc(p.hops[id].Members, func(leg Member) bool { return p.dead[leg.ID] }) {
		return false
	}
	goal, ok := p.goal[id]
	return !slices.ContainsFunc(p.hops[id].Members, func(leg Member) bool {
		return !p.unwanted(leg.ID) && (!ok || goal.has(leg.ID))
	})
}

// possible gives a wanted group with those of its legs that exist by now; the
// zero NextHop if it is not wanted.
func (p *planner) possible(id uint32) NextHop {
	goal := p.goal[id]
	goal.Members = slices.DeleteFunc(slices.Clone(goal.Members), func(leg Member) bool { return !p.exists(leg.ID) })
	return goal
}

// exists reports whether a single next hop is there as it is wanted.
func (p *planner) exists(id uint32) bool {
	n, ok := p.hops[id]
	return ok && !n.IsGroup() && n.Equal(p.goal[id])
}

// complete reports whether n is a group all of whose legs exist.
func (p *planner) complete(n NextHop) bool {
	return n.IsGroup() && !slices.ContainsFunc(n.Members, func(leg Member) bool { return !p.exists(leg.ID) })
}

// deleteDead deletes the dead next hops that no needy group has, the one with
// the most groups first.
func (p *planner) deleteDead() {
	keep := map[uint32]bool{}
	for _, id := range p.needy {
		for _, leg := range p.hops[id].Members {
			keep[leg.ID] = true
		}
	}
	for _, id := range slices.SortedFunc(maps.Keys(p.dead), func(a, b uint32) int {
		return cmp.Or(cmp.Compare(p.groups[b], p.groups[a]), cmp.Compare(a, b))
	}) {
		if !keep[id] {
			delete(p.dead, id)
			p.deleteHop(id)
		}
	}
}

// heal moves routes off needy groups, gives these their legs, as far as they
// exist, and deletes the dead next hops that waited for that.
func (p *planner) heal() {
	if len(p.needy) == 0 {
		return
	}
	p.putRoutes(func(r Route) bool {
		old, _ := p.have.routes.get(r.Key())
		return old.NextHop != 0 && slices.Contains(p.needy, old.NextHop) && old.NextHop != r.NextHop
	})
	for _, id := range p.needy {
		if p.carries[id] > 0 {
			p.putHop(p.possible(id))
		}
	}
	p.needy = nil
	p.deleteDead()
}

// shrink takes legs out of the groups that lose some and win none, and legs
// that nothing wants out of all groups, where no deletion did.
func (p *planner) shrink() {
	for _, id := range p.sortedHops(true) {
		group := p.hops[id]
		goal, ok := p.goal[id]
		if ok && group.Equal(goal) {
			continue
		}
		if ok && loses(group, goal) && p.complete(goal) {
			p.putHop(goal)
			continue
		}
		if p.carries[id] <= 0 || !p.want.Complete {
			continue
		}
		rest := group
		rest.Members = slices.DeleteFunc(slices.Clone(group.Members), func(leg Member) bool { return p.unwanted(leg.ID) })
		switch {
		case len(rest.Members) == len(group.Members) || len(rest.Members) == 0:
		case ok && p.complete(goal) && p.leaving[id] == 0:
			p.putHop(goal)
		default:
			p.putHop(rest)
		}
	}
}

// loses reports whether the legs of to are a true subset of those of from.
func loses(from, to NextHop) bool {
	return len(to.Members) < len(from.Members) &&
		!slices.ContainsFunc(to.Members, func(leg Member) bool { return !from.has(leg.ID) })
}

// forward puts what can be put of next hops, groups and routes of the mesh
// table. It comes early, for no path shall wait until a device is made, and
// again when the devices are there.
func (p *planner) forward() {
	for again := false; ; again = true {
		before := len(p.ops)
		for _, groups := range []bool{false, true} {
			for _, n := range p.want.NextHops {
				if n.IsGroup() == groups {
					p.putWanted(n)
				}
			}
		}
		if p.missed {
			p.missed = false
			for _, r := range p.want.Routes {
				if old, ok := p.have.routes.get(r.Key()); ok && old == r && p.vanished[r.NextHop] {
					p.put = append(p.put, difference{want: r})
				}
			}
		}
		if again && before == len(p.ops) {
			return
		}
		p.putRoutes(func(r Route) bool { return !r.ofUplink() && p.ready(r) })
	}
}

// putWanted adds or replaces one wanted next hop, if that is possible.
func (p *planner) putWanted(n NextHop) {
	old, ok := p.hops[n.ID]
	switch {
	case ok && old.Equal(n), p.displaced(n.ID):
	case !n.IsGroup():
		if p.made || !p.revoked[n.Device] && p.have.isUp(p.want, n.Device) {
			p.putHop(n)
		}
	case !p.complete(n):
	case !ok || p.leaving[n.ID] == 0 || n.within(old):
		p.putHop(n)
	case !old.within(n):
		// Other routes wait for it to be theirs, and may do with less.
		n.Members = slices.DeleteFunc(slices.Clone(n.Members), func(leg Member) bool { return !old.has(leg.ID) })
		if len(n.Members) > 0 {
			p.putHop(n)
		}
	}
}

// within reports whether a next hop has no leg that another does not have.
func (n NextHop) within(o NextHop) bool {
	return n.alike(o) && !slices.ContainsFunc(n.Members, func(leg Member) bool { return !o.has(leg.ID) })
}

// ready reports whether a route of the mesh table needs nothing that is still
// to be made.
func (p *planner) ready(r Route) bool {
	if r.Kind == Forward {
		n, ok := p.hops[r.NextHop]
		goal := p.goal[r.NextHop]
		if !ok || !n.within(goal) || !n.IsGroup() && !p.exists(n.ID) || n.IsGroup() && !p.complete(n) {
			return false
		}
		old, _ := p.have.routes.get(r.Key())
		if exposed := p.want.exposes(r, p.there); exposed.Prefix.IsValid() && (!old.leadsOn() || p.vanished[old.NextHop]) {
			return false
		}
	}
	return p.made || !p.have.missingAddr(p.want, r).IsValid()
}

// there reports whether a route has a key at this point of the plan.
func (p *planner) there(k RouteKey) bool {
	r, ok := p.have.routes.get(k)
	return p.placed[k] || ok && !p.vanished[r.NextHop]
}

// force does what forward could not, at the price of packets: it frees
// displaced ids, and makes routes refuse that stand in the way of a group they
// are to leave. That happens only when ids change their meaning.
func (p *planner) force() {
	if !p.want.Complete {
		return // nothing is taken away so far
	}
	for _, n := range p.want.NextHops {
		if p.displaced(n.ID) {
			p.deleteHop(n.ID)
		}
	}
	for _, n := range p.want.NextHops {
		if old, ok := p.hops[n.ID]; ok && !old.Equal(n) && p.leaving[n.ID] > 0 {
			p.refuse(p.put, n.ID)
			p.refuse(p.gone, n.ID)
		}
	}
	p.forward()
	// What is left cannot be right, as a group whose leg is not wanted: it
	// has to show among what waits.
	for _, n := range p.want.NextHops {
		if old, ok := p.hops[n.ID]; !ok || !old.Equal(n) {
			p.putHop(n)
		}
	}
	p.putRoutes(func(r Route) bool { return !r.ofUplink() })
}

// refuse makes the routes of a list that are still on a next hop unreachable.
func (p *planner) refuse(list []difference, id uint32) {
	for i, d := range list {
		if d.have.NextHop == id && d.leaves() {
			p.leaving[id]--
			if !d.want.isZero() {
				p.carries[id]--
			}
			list[i].have = Route{Table: d.have.Table, Prefix: d.have.Prefix, Metric: d.have.Metric, Kind: Unreachable}
			p.emit(PutRoute{list[i].have})
		}
	}
}

// putRoutes puts those of the routes that are still to be put. Routes that
// refuse or step aside come first, then the narrow before the wide: neither an
// uplink's traffic, nor that of a connected prefix or of a prefix of its own
// path, may leave by a wider route.
func (p *planner) putRoutes(which func(Route) bool) {
	order := make([]int, len(p.put))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, j int) int {
		a, b := p.put[i].want, p.put[j].want
		return cmp.Or(-cmp.Compare(min(a.Kind, 1), min(b.Kind, 1)), -cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
	})
	for _, i := range order {
		d := p.put[i]
		if !which(d.want) {
			continue
		}
		if d.leaves() {
			p.leaving[d.have.NextHop]--
			p.carries[d.have.NextHop]--
		}
		p.placed[d.want.Key()] = true
		p.emit(PutRoute{d.want})
	}
	p.put = slices.DeleteFunc(p.put, func(d difference) bool { return p.placed[d.want.Key()] })
}

func (r Route) ofUplink() bool { return r.Table != mesh.RouteTable }

// deleteRoutes deletes what is not wanted, forward routes first, the reverse
// of putRoutes.
func (p *planner) deleteRoutes(uplinks bool) {
	var gone []Route
	for _, d := range p.gone {
		if d.have.ofUplink() == uplinks && !p.vanished[d.have.NextHop] {
			gone = append(gone, d.have)
		}
	}
	slices.SortFunc(gone, func(a, b Route) int {
		return cmp.Or(cmp.Compare(min(a.Kind, 1), min(b.Kind, 1)), compareRoutes(a, b))
	})
	for _, r := range gone {
		p.emit(DeleteRoute{r})
	}
}

// deleteHops deletes unwanted groups, then unwanted single next hops.
func (p *planner) deleteHops() {
	for _, groups := range []bool{true, false} {
		for _, id := range p.sortedHops(groups) {
			if _, ok := p.goal[id]; !ok {
				p.deleteHop(id)
			}
		}
	}
}
