package kernel

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// PartOf says which backend an operation is for.
func PartOf(op Op) Part {
	switch op.(type) {
	case CreateTunnel, UpdateTunnel, DeleteTunnel:
		return PartTunnels
	case SetFilter, ClearFilter:
		return PartFilter
	case SetSysctl, RestoreSysctls:
		return PartSysctls
	default:
		return PartForwarding
	}
}

// Object names the thing that an operation changes, for status and for
// counting failures.
func Object(op Op) string {
	switch op := op.(type) {
	case CreateTunnel:
		return "tunnel " + op.Tunnel.Name
	case UpdateTunnel:
		return "tunnel " + op.Tunnel.Name
	case DeleteTunnel:
		return "tunnel " + op.Name
	case AddAddr:
		return "address " + op.Addr.String()
	case DeleteAddr:
		return "address " + op.Addr.String()
	case PutNextHop:
		return hopName(op.NextHop.ID)
	case DeleteNextHop:
		return hopName(op.ID)
	case PutRoute:
		return op.Route.Key().String()
	case DeleteRoute:
		return op.Route.Key().String()
	case PutRule:
		return ruleName(op.Rule)
	case DeleteRule:
		return ruleName(op.Rule)
	case SetSysctl:
		return "sysctl " + op.Sysctl.Path
	case RestoreSysctls:
		return "sysctls"
	default:
		return "filter"
	}
}

func hopName(id uint32) string { return fmt.Sprintf("next hop %#x", id) }

func ruleName(r Rule) string { return fmt.Sprintf("rule %d", r.Priority) }

// String names the route, for people.
func (k RouteKey) String() string {
	s := fmt.Sprintf("route %s table %d", k.Prefix, k.Table)
	if k.Metric != 0 {
		s += fmt.Sprintf(" metric %d", k.Metric)
	}
	return s
}

// Waits says what op of a plan for want still waits for in the model, or ""
// if it may be done. When all operations of a plan succeed nothing waits;
// when one fails, exactly those that would do harm without it wait.
func (m *Model) Waits(want State, op Op) string {
	switch op := op.(type) {
	case CreateTunnel:
		if !want.Filter.IsZero() && m.filter.IsZero() {
			return "filter"
		}
		if _, ok := m.tunnels[op.Tunnel.Name]; ok {
			return "its earlier device to go"
		}
		for _, r := range want.Rules {
			if r.marked() && r.Mark == op.Tunnel.Mark && m.rules[r.Priority] != r {
				return ruleName(r)
			}
		}
	case PutNextHop:
		return m.hopWaits(want, op.NextHop)
	case PutRoute:
		return m.routeWaits(want, op.Route)
	case SetFilter:
		if want.Complete && m.filter.lifts(op.Filter) {
			return m.beyond(want)
		}
	case SetSysctl:
		if name := op.Sysctl.device(); name != "" && !m.hasTunnel(name) {
			return "tunnel " + name
		}
	case DeleteNextHop:
		// What stands where another object is wanted goes with its routes.
		if goal, ok := want.nextHop(op.ID); ok && !m.hops[op.ID].alike(goal) {
			return ""
		}
		if k, ok := m.carried(want, op.ID); ok {
			return k.String() + " to move"
		}
	case DeleteTunnel:
		return m.tunnelWaits(want, op.Name)
	case DeleteAddr:
		if !op.Addr.Addr().Is4() {
			break
		}
		for _, r := range want.Routes {
			if old, ok := m.routes.get(r.Key()); ok && old.Source == op.Addr.Addr() {
				return r.Key().String() + " to move"
			}
		}
	case DeleteRule:
		return m.markUsed(op.Rule)
	case DeleteRoute:
		return m.tableUsed(op.Route)
	}
	return ""
}

func (m *Model) hasTunnel(name string) bool {
	_, ok := m.tunnels[name]
	return ok
}

// isUp reports whether a device can carry a next hop; see Tunnel.LinkLocal.
func (m *Model) isUp(want State, device string) bool {
	t, ok := m.tunnels[device]
	return ok && (t.LinkLocal.IsValid() || !slices.ContainsFunc(want.Tunnels, func(w Tunnel) bool {
		return w.Name == device && w.LinkLocal.IsValid()
	}))
}

func (m *Model) hopWaits(want State, n NextHop) string {
	old, ok := m.hops[n.ID]
	if ok && !old.alike(n) {
		return "its earlier object to go"
	}
	if !m.filter.guarded(want.Filter) && !loses(old, n) {
		return "filter"
	}
	if n.Device != "" && !m.isUp(want, n.Device) {
		return "tunnel " + n.Device
	}
	for _, leg := range n.Members {
		have, ok := m.hops[leg.ID]
		if goal, wanted := want.nextHop(leg.ID); !ok || have.IsGroup() || wanted && !have.alike(goal) {
			return hopName(leg.ID)
		}
	}
	if ok && m.routes.users[n.ID] > 0 && !n.within(old) {
		m.routes.rebase(want.Routes)
		var leave []RouteKey
		for k, have := range m.routes.over {
			goal, _ := find(want.Routes, k)
			if d := (difference{have, goal}); have.NextHop == n.ID && d.leaves() {
				leave = append(leave, k)
			}
		}
		if len(leave) > 0 {
			return slices.MinFunc(leave, RouteKey.Compare).String() + " to leave it"
		}
	}
	return ""
}

func (m *Model) routeWaits(want State, r Route) string {
	if r.NextHop != 0 {
		if _, ok := m.hops[r.NextHop]; !ok || !r.ofUplink() && !m.legs(r).within(want.legs(r)) {
			return hopName(r.NextHop)
		}
	}
	if !r.ofUplink() && !m.filter.guarded(want.Filter) {
		return "filter"
	}
	if a := m.missingAddr(want, r); a.IsValid() {
		return "address " + a.String()
	}
	if old, _ := m.routes.get(r.Key()); !old.leadsOn() {
		if k := want.exposes(r, func(k RouteKey) bool { _, ok := m.routes.get(k); return ok }); k.Prefix.IsValid() {
			return k.String()
		}
	}
	return ""
}

// leadsOn reports whether there is a route and it forwards.
func (r Route) leadsOn() bool { return r.Table != 0 && r.Kind == Forward }

// exposes gives a wanted route within a new one that is not there, and whose
// packets the new one would take where they may not go; the zero RouteKey if
// there is none such.
func (s State) exposes(r Route, there func(RouteKey) bool) RouteKey {
	if r.ofUplink() || r.Kind != Forward {
		return RouteKey{}
	}
	i, _ := search(s.Routes, r.Key())
	for ; i < len(s.Routes) && s.Routes[i].Table == r.Table && r.Prefix.Contains(s.Routes[i].Prefix.Addr()); i++ {
		if q := s.Routes[i]; q.Prefix != r.Prefix && !there(q.Key()) && !s.legs(r).within(s.legs(q)) {
			return q.Key()
		}
	}
	return RouteKey{}
}

// missingAddr gives the wanted address that a route needs as its source and
// that is not there; the zero Prefix if there is none such.
func (m *Model) missingAddr(want State, r Route) netip.Prefix {
	for _, a := range want.Addrs {
		if a.Addr() == r.Source && !m.addrs[a] {
			return a
		}
	}
	return netip.Prefix{}
}

// carried gives a wanted route that would vanish with next hops.
func (m *Model) carried(want State, ids ...uint32) (RouteKey, bool) {
	gone := slices.Clone(ids)
	for gid, g := range m.hops {
		if g.IsGroup() && !slices.ContainsFunc(g.Members, func(leg Member) bool { return !slices.Contains(ids, leg.ID) }) {
			gone = append(gone, gid)
		}
	}
	users := 0
	for _, id := range gone {
		users += m.routes.users[id]
	}
	m.routes.rebase(want.Routes)
	for k, r := range m.routes.over {
		if _, wanted := find(want.Routes, k); !wanted && slices.Contains(gone, r.NextHop) {
			users--
		}
	}
	if users == 0 {
		return RouteKey{}, false
	}
	for _, r := range want.Routes {
		if old, ok := m.routes.get(r.Key()); ok && slices.Contains(gone, old.NextHop) {
			return r.Key(), true
		}
	}
	return RouteKey{}, false
}

func (m *Model) tunnelWaits(want State, name string) string {
	if slices.Contains(want.Revoked, m.tunnels[name].Peer) {
		return ""
	}
	var hops []uint32
	for id, n := range m.hops {
		if n.Device == name {
			hops = append(hops, id)
		}
	}
	if k, ok := m.carried(want, hops...); ok {
		return k.String() + " to move"
	}
	return ""
}

// markUsed says which tunnel still sends packets that a rule steers.
func (m *Model) markUsed(r Rule) string {
	if !r.marked() {
		return ""
	}
	var names []string
	for name, t := range m.tunnels {
		if t.Mark == r.Mark {
			names = append(names, "tunnel "+name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	slices.Sort(names)
	return strings.Join(names, ", ") + " to go"
}

// tableUsed says which tunnel still sends packets by the uplink table of r.
func (m *Model) tableUsed(r Route) string {
	if !r.ofUplink() {
		return ""
	}
	for _, priority := range slices.Sorted(maps.Keys(m.rules)) {
		if rule := m.rules[priority]; rule.Table == r.Table {
			return m.markUsed(rule)
		}
	}
	return ""
}
