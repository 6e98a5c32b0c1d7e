package kernel

import (
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
