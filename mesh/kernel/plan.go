package kernel

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"guywire/mesh"
)

// Plan gives the operations that turn have into want, in the order of the
// package comment. It gives none if nothing has to change. Slices of want
// must be sorted (State.Sort).
func Plan(have, want State) []Op { return NewModel(have).Plan(want) }

// Plan gives the operations that turn the model into want; see the function
// Plan. What the model says is not changed; it may keep want.Routes to compare
// faster the next time.
func (m *Model) Plan(want State) []Op {
	p := newPlanner(m, want)
	filters := m.filters(want)

	if want.Complete {
		p.revoke()
		p.findDead()
		p.deleteDead()
	}
	p.filter(m.filter, filters.guard)
	p.heal()
	p.shrink()
	p.forward()
	p.putRoutes(Route.ofUplink)
	p.putRules(true)
	p.putSysctls(false)
	p.putTunnels()
	p.putSysctls(true)
	p.putAddrs()
	p.made = true
	p.forward()
	p.force()
	p.putRules(false)
	p.filter(filters.guard, filters.admit)
	if want.Complete {
		p.deleteRules(false)
		p.deleteRoutes(false)
		p.deleteHops()
	}
	p.filter(filters.admit, filters.lift)
	if want.Complete {
		p.deleteAddrs()
		p.deleteTunnels()
		p.deleteRules(true)
		p.deleteRoutes(true)
		p.clear()
	}
	return p.ops
}

// A planner collects operations. It follows their effect on next hops, the
// only objects that disappear on their own.
type planner struct {
	have *Model
	want State
	ops  []Op

	hops     map[uint32]NextHop // as the operations so far leave them
	goal     map[uint32]NextHop // the wanted ones
	wanted   map[uint32]int     // how many wanted routes and groups use an id
	carries  map[uint32]int     // how many routes now on an id are to stay, on it or on another
	leaving  map[uint32]int     // how many routes on an id are to leave it, and are still on it
	vanished map[uint32]bool    // ids that went, and their routes with them
	missed   bool               // routes that are to stay vanished, and are not in put yet
	put      []difference       // routes that are missing or differ, and were not put so far
	gone     []difference       // routes that are not wanted
	placed   map[RouteKey]bool  // routes that were put
	revoked  map[string]bool    // tunnels already deleted
	made     bool               // the wanted tunnels and addresses are there
	groups   map[uint32]int     // how many groups had a single next hop at first
	dead     map[uint32]bool    // single next hops to delete, see findDead
	needy    []uint32           // groups that need wanted legs before that
}

func newPlanner(m *Model, want State) *planner {
	p := &planner{
		have: m, want: want,
		hops:     maps.Clone(m.hops),
		goal:     make(map[uint32]NextHop, len(want.NextHops)),
		wanted:   maps.Clone(m.routes.users),
		carries:  maps.Clone(m.routes.users),
		leaving:  map[uint32]int{},
		vanished: map[uint32]bool{},
		placed:   map[RouteKey]bool{},
		revoked:  map[string]bool{},
		groups:   map[uint32]int{},
		dead:     map[uint32]bool{},
	}
	for _, n := range want.NextHops {
		p.goal[n.ID] = n
		for _, leg := range n.Members {
			p.wanted[leg.ID]++
		}
	}
	m.routes.rebase(want.Routes)
	p.put, p.gone = m.routes.differences()
	for _, list := range [][]difference{p.put, p.gone} {
		for _, d := range list {
			if d.leaves() {
				p.leaving[d.have.NextHop]++
			}
			p.wanted[d.have.NextHop]--
			p.wanted[d.want.NextHop]++
		}
	}
	for _, d := range p.gone {
		p.carries[d.have.NextHop]--
	}
	return p
}

func (p *planner) emit(op Op) { p.ops = append(p.ops, op) }

func (p *planner) filter(from, to Filter) {
	if !from.Equal(to) && !to.IsZero() {
		p.emit(SetFilter{to})
	}
}

func (p *planner) putHop(n NextHop) {
	p.hops[n.ID] = n
	p.emit(PutNextHop{n})
}

func (p *planner) deleteHop(id uint32) {
	p.lose(id)
	p.emit(DeleteNextHop{id})
}

// lose notes that a next hop goes away, with what the kernel takes along.
func (p *planner) lose(id uint32) {
	for _, gone := range without(p.hops, id) {
		p.vanished[gone] = true
		p.missed = p.missed || p.carries[gone] > 0
	}
}

// sortedHops gives the ids of the groups, or of the single next hops, that
// exist at this point of the plan.
func (p *planner) sortedHops(groups bool) []uint32 {
	var ids []uint32
	for id, n := range p.hops {
		if n.IsGroup() == groups {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// revoke deletes the tunnels of revoked peers, whatever still uses them.
func (p *planner) revoke() {
	for _, name := range slices.Sorted(maps.Keys(p.have.tunnels)) {
		if !slices.Contains(p.want.Revoked, p.have.tunnels[name].Peer) {
			continue
		}
		for _, id := range p.sortedHops(false) {
			if p.hops[id].Device == name {
				p.lose(id)
			}
		}
		p.revoked[name] = true
		p.emit(DeleteTunnel{name})
	}
}

// findDead finds the single next hops that are to be deleted at once: nothing
// wanted uses them, or their id is to stand for another device. One message
// then heals all their groups. A next hop that stays as a spare is deleted and
// made again when that is cheaper than to reshape its groups.
//
// It also finds the groups whose routes are to stay and which the kernel would
// drop, or leave without any leg they are to have. They are given wanted legs
// before; where there is none yet, or routes are on the group that may not use
// them, its legs are not dead so far.
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
	for _, id := range groups {
		if p.bereft(id) && (len(p.possible(id).Members) == 0 || p.leaving[id] > 0) {
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

// heal gives needy groups their legs, as far as these exist, and deletes the
// dead next hops that waited for that.
func (p *planner) heal() {
	for _, id := range p.needy {
		p.putHop(p.possible(id))
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
		}
		p.placed[d.want.Key()] = true
		p.emit(PutRoute{d.want})
	}
	p.put = slices.DeleteFunc(p.put, func(d difference) bool { return p.placed[d.want.Key()] })
}

func (r Route) ofUplink() bool { return r.Table != mesh.RouteTable }

// putRules adds and replaces mark rules, or those for all packets.
func (p *planner) putRules(marked bool) {
	for _, r := range p.want.Rules {
		if old, ok := p.have.rules[r.Priority]; r.marked() == marked && (!ok || old != r) {
			p.emit(PutRule{r})
		}
	}
}

func (r Rule) marked() bool { return r.Mark != 0 }

// putSysctls writes the settings of tunnel devices, or all others.
func (p *planner) putSysctls(ofTunnels bool) {
	for _, c := range p.want.Sysctls {
		if value, ok := p.have.sysctls[c.Path]; (c.device() != "") == ofTunnels && (!ok || value != c.Value) {
			p.emit(SetSysctl{c})
		}
	}
}

// device gives the tunnel device that the setting belongs to, or "".
func (c Sysctl) device() string {
	for element := range strings.SplitSeq(c.Path, "/") {
		if strings.HasPrefix(element, mesh.InterfacePrefix) {
			return element
		}
	}
	return ""
}

func (p *planner) putTunnels() {
	for _, t := range p.want.Tunnels {
		if _, ok := p.have.tunnels[t.Name]; !ok || p.revoked[t.Name] {
			p.emit(CreateTunnel{t})
		}
	}
	for _, t := range p.want.Tunnels {
		if old, ok := p.have.tunnels[t.Name]; ok && !p.revoked[t.Name] && !old.Equal(t) {
			p.emit(UpdateTunnel{Tunnel: t, Reseat: old.Alias != t.Alias})
		}
	}
}

func (p *planner) putAddrs() {
	for _, a := range p.want.Addrs {
		if !p.have.addrs[a] {
			p.emit(AddAddr{a})
		}
	}
}

func (p *planner) deleteRules(marked bool) {
	for _, priority := range slices.Sorted(maps.Keys(p.have.rules)) {
		r := p.have.rules[priority]
		if r.marked() == marked && !slices.ContainsFunc(p.want.Rules, func(w Rule) bool { return w.Priority == priority }) {
			p.emit(DeleteRule{r})
		}
	}
}

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

func (p *planner) deleteAddrs() {
	for _, a := range slices.SortedFunc(maps.Keys(p.have.addrs), netip.Prefix.Compare) {
		if !slices.Contains(p.want.Addrs, a) {
			p.emit(DeleteAddr{a})
		}
	}
}

func (p *planner) deleteTunnels() {
	for _, name := range slices.Sorted(maps.Keys(p.have.tunnels)) {
		if !p.revoked[name] && !slices.ContainsFunc(p.want.Tunnels, func(t Tunnel) bool { return t.Name == name }) {
			p.emit(DeleteTunnel{name})
		}
	}
}

// clear removes what stands alone, when nothing is wanted any more.
func (p *planner) clear() {
	if p.want.Filter.IsZero() && !p.have.filter.IsZero() {
		p.emit(ClearFilter{})
	}
	if len(p.want.Sysctls) == 0 && len(p.have.sysctls) > 0 {
		p.emit(RestoreSysctls{})
	}
}
