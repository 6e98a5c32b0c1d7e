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

	p.filter(m.filter, filters.guard)
	if want.Complete {
		p.revoke()
		p.cutDead()
	}
	p.shrink()
	p.putRoutes(true)
	p.putRules(true)
	p.putSysctls(false)
	p.putTunnels()
	p.putSysctls(true)
	p.putAddrs()
	p.putHops()
	p.putRoutes(false)
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
	vanished map[uint32]bool    // ids that went, and their routes with them
	put      []Route            // wanted routes that are missing or differ
	gone     []Route            // routes that are not wanted
	revoked  map[string]bool    // tunnels already deleted
}

func newPlanner(m *Model, want State) *planner {
	p := &planner{
		have: m, want: want,
		hops:     maps.Clone(m.hops),
		goal:     make(map[uint32]NextHop, len(want.NextHops)),
		wanted:   maps.Clone(m.onHop),
		carries:  maps.Clone(m.onHop),
		vanished: map[uint32]bool{},
		revoked:  map[string]bool{},
	}
	for _, n := range want.NextHops {
		p.goal[n.ID] = n
		for _, leg := range n.Members {
			p.wanted[leg.ID]++
		}
	}
	p.diffRoutes()
	return p
}

// diffRoutes finds the routes to put and those that are gone from want. In
// the common case the model equals the routes of an earlier desired state,
// and ten thousand of them are compared as two sorted lists.
func (p *planner) diffRoutes() {
	if p.have.agreed != nil {
		p.diffSorted(p.have.agreed, p.want.Routes)
	} else {
		p.diffIndexed()
	}
	if len(p.put)+len(p.gone) == 0 && len(p.want.Routes) > 0 {
		p.have.agreed = p.want.Routes
	}
}

func (p *planner) diffSorted(have, want []Route) {
	if len(have) == len(want) && &have[0] == &want[0] {
		return
	}
	for len(have) > 0 && len(want) > 0 {
		if have[0] == want[0] {
			have, want = have[1:], want[1:]
			continue
		}
		switch order := compareRoutes(have[0], want[0]); {
		case order < 0:
			p.drop(have[0])
			have = have[1:]
		case order > 0:
			p.add(want[0])
			want = want[1:]
		default:
			p.change(have[0], want[0])
			have, want = have[1:], want[1:]
		}
	}
	for _, r := range have {
		p.drop(r)
	}
	for _, r := range want {
		p.add(r)
	}
}

func (p *planner) diffIndexed() {
	matched := 0
	for i := range p.want.Routes {
		r := &p.want.Routes[i]
		old, ok := p.have.routes[r.Key()]
		if ok {
			matched++
		}
		switch {
		case !ok:
			p.add(*r)
		case old != *r:
			p.change(old, *r)
		}
	}
	if matched == len(p.have.routes) {
		return
	}
	for k, r := range p.have.routes {
		if !p.want.hasRoute(k) {
			p.drop(r)
		}
	}
}

func (p *planner) add(r Route) {
	p.put = append(p.put, r)
	p.wanted[r.NextHop]++
}

func (p *planner) change(from, to Route) {
	p.add(to)
	p.wanted[from.NextHop]--
}

func (p *planner) drop(r Route) {
	p.gone = append(p.gone, r)
	p.wanted[r.NextHop]--
	p.carries[r.NextHop]--
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

// groupsWith gives the existing groups that have a leg, by id.
func (p *planner) groupsWith(leg uint32) []uint32 {
	return slices.DeleteFunc(p.sortedHops(true), func(id uint32) bool { return !p.hops[id].has(leg) })
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

// cutDead deletes the single next hops that nothing wanted uses, the one with
// the most groups first: one message heals them all. A next hop that stays as
// a spare is deleted and made again when that is cheaper than to reshape its
// groups.
func (p *planner) cutDead() {
	type leg struct {
		id     uint32
		groups int
	}
	var dead []leg
	for _, id := range p.sortedHops(false) {
		if p.wanted[id] > 0 {
			continue
		}
		n := len(p.groupsWith(id))
		if _, spare := p.goal[id]; !spare || n > 2 {
			dead = append(dead, leg{id, n})
		}
	}
	slices.SortStableFunc(dead, func(a, b leg) int { return cmp.Compare(b.groups, a.groups) })
	for _, d := range dead {
		if p.freed(d.id) {
			p.deleteHop(d.id)
		}
	}
}

// freed reports whether deleting the next hop takes no wanted route along. A
// group of which it is the last leg is given its wanted legs before, if they
// exist.
func (p *planner) freed(id uint32) bool {
	if p.carries[id] > 0 {
		return false
	}
	for _, gid := range p.groupsWith(id) {
		if len(p.hops[gid].Members) > 1 || p.carries[gid] <= 0 {
			continue
		}
		goal, ok := p.goal[gid]
		if !ok || !p.legsExist(goal) {
			return false
		}
		p.putHop(goal)
	}
	return true
}

// legsExist reports whether n is a group that could be made now.
func (p *planner) legsExist(n NextHop) bool {
	for _, leg := range n.Members {
		if have, ok := p.hops[leg.ID]; !ok || have.IsGroup() || have.Device != p.goal[leg.ID].Device {
			return false
		}
	}
	return n.IsGroup()
}

// shrink takes legs out of the groups that lose some and win none, and legs
// that nothing wants out of all groups, where cutDead could not.
func (p *planner) shrink() {
	for _, id := range p.sortedHops(true) {
		group := p.hops[id]
		goal, ok := p.goal[id]
		if ok && group.Equal(goal) {
			continue
		}
		if ok && loses(group, goal) && p.legsExist(goal) {
			p.putHop(goal)
			continue
		}
		if p.carries[id] <= 0 || !p.want.Complete {
			continue
		}
		rest := group
		rest.Members = slices.DeleteFunc(slices.Clone(group.Members), func(leg Member) bool { return p.wanted[leg.ID] <= 0 })
		switch {
		case len(rest.Members) == len(group.Members) || len(rest.Members) == 0:
		case ok && p.legsExist(goal):
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

// putRoutes adds and replaces the routes of the uplink tables, or those of
// the mesh table. Routes that refuse or step aside come first: neither an
// uplink's traffic nor a connected prefix may leave by a wider route.
func (p *planner) putRoutes(uplinks bool) {
	put := slices.DeleteFunc(slices.Clone(p.put), func(r Route) bool { return r.ofUplink() != uplinks })
	if len(p.vanished) > 0 && !uplinks {
		for _, r := range p.want.Routes {
			if old, ok := p.have.routes[r.Key()]; ok && old == r && p.vanished[r.NextHop] {
				put = append(put, r)
			}
		}
	}
	slices.SortStableFunc(put, func(a, b Route) int { return -cmp.Compare(min(a.Kind, 1), min(b.Kind, 1)) })
	for _, r := range put {
		p.emit(PutRoute{r})
	}
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

// putHops adds and replaces single next hops, then groups. An id that others
// gave to an object of the other kind is freed first; its routes are made
// again.
func (p *planner) putHops() {
	for _, groups := range []bool{false, true} {
		for _, n := range p.want.NextHops {
			if n.IsGroup() != groups {
				continue
			}
			old, ok := p.hops[n.ID]
			if ok && old.Equal(n) {
				continue
			}
			if ok && old.IsGroup() != groups {
				p.deleteHop(n.ID)
			}
			p.putHop(n)
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
	gone := slices.DeleteFunc(slices.Clone(p.gone), func(r Route) bool {
		return r.ofUplink() != uplinks || p.vanished[r.NextHop]
	})
	slices.SortFunc(gone, func(a, b Route) int {
		return cmp.Or(cmp.Compare(min(a.Kind, 1), min(b.Kind, 1)), compareRoutes(a, b))
	})
	for _, r := range gone {
		p.emit(DeleteRoute{r})
	}
}

func (s State) hasRoute(k RouteKey) bool {
	_, ok := slices.BinarySearchFunc(s.Routes, k, func(r Route, k RouteKey) int { return r.Key().Compare(k) })
	return ok
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
