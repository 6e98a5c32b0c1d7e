package kernel

import (
	"fmt"
	"maps"
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
	case SetSysctl:
		if name := op.Sysctl.device(); name != "" && !m.hasTunnel(name) {
			return "tunnel " + name
		}
	case DeleteNextHop:
		// An object of the wrong kind, made by others, goes with its routes.
		if i := hopIndex(want, op.ID); i >= 0 && want.NextHops[i].IsGroup() != m.hops[op.ID].IsGroup() {
			return ""
		}
		if k, ok := m.carried(want, op.ID); ok {
			return k.String() + " to move"
		}
	case DeleteTunnel:
		return m.tunnelWaits(want, op.Name)
	case DeleteAddr:
		for _, r := range want.Routes {
			if old, ok := m.routes[r.Key()]; ok && old.Source == op.Addr.Addr() && old.Source.Is4() {
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
	if ok && old.IsGroup() != n.IsGroup() {
		return "its earlier object to go"
	}
	if !m.filter.guarded(want.Filter) && !loses(old, n) {
		return "filter"
	}
	if n.Device != "" && !m.isUp(want, n.Device) {
		return "tunnel " + n.Device
	}
	for _, leg := range n.Members {
		if have, ok := m.hops[leg.ID]; !ok || have.IsGroup() {
			return hopName(leg.ID)
		}
	}
	return ""
}

func (m *Model) routeWaits(want State, r Route) string {
	if r.NextHop != 0 {
		if _, ok := m.hops[r.NextHop]; !ok {
			return hopName(r.NextHop)
		}
		if i := hopIndex(want, r.NextHop); i >= 0 && !r.ofUplink() && !m.within(want.NextHops[i]) {
			return hopName(r.NextHop)
		}
	}
	if !r.ofUplink() && !m.filter.guarded(want.Filter) {
		return "filter"
	}
	for _, a := range want.Addrs {
		if a.Addr() == r.Source && !m.addrs[a] {
			return "address " + a.String()
		}
	}
	return ""
}

func hopIndex(s State, id uint32) int {
	i, ok := slices.BinarySearchFunc(s.NextHops, id, func(n NextHop, id uint32) int { return int(int64(n.ID) - int64(id)) })
	if !ok {
		return -1
	}
	return i
}

// within reports whether the next hop as it is forwards nowhere that n does
// not: a route may be put on it before its missing legs are there.
func (m *Model) within(n NextHop) bool {
	have := m.hops[n.ID]
	return have.Device == n.Device && !slices.ContainsFunc(have.Members, func(leg Member) bool { return !n.has(leg.ID) })
}

// carried gives a wanted route that would vanish with a next hop.
func (m *Model) carried(want State, id uint32) (RouteKey, bool) {
	gone := []uint32{id}
	users := m.onHop[id]
	for gid, g := range m.hops {
		if len(g.Members) == 1 && g.has(id) {
			gone = append(gone, gid)
			users += m.onHop[gid]
		}
	}
	if users == 0 {
		return RouteKey{}, false
	}
	for _, r := range want.Routes {
		if old, ok := m.routes[r.Key()]; ok && slices.Contains(gone, old.NextHop) {
			return r.Key(), true
		}
	}
	return RouteKey{}, false
}

func (m *Model) tunnelWaits(want State, name string) string {
	if slices.Contains(want.Revoked, m.tunnels[name].Peer) {
		return ""
	}
	for id, n := range m.hops {
		if n.Device != name {
			continue
		}
		if k, ok := m.carried(want, id); ok {
			return k.String() + " to move"
		}
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

// Safe reports whether the model forwards nothing that want does not: no
// leg, route or tunnel of a revoked peer beyond it, every hold in place.
// Whatever is then still to be done only adds, or tidies up what carries no
// packets. This, not the full revision, is what a loop-free routing
// acknowledgement has to wait for: a single tunnel that cannot be made must
// not stop the protocol.
func (m *Model) Safe(want State) bool {
	if !want.Complete || !m.filter.guarded(want.Filter) {
		return false
	}
	for _, t := range m.tunnels {
		if slices.Contains(want.Revoked, t.Peer) {
			return false
		}
	}
	matched := 0
	for i := range want.Routes {
		r := &want.Routes[i]
		old, ok := m.routes[r.Key()]
		if !ok {
			continue
		}
		matched++
		if !r.ofUplink() && (old.Kind != r.Kind || old.NextHop != r.NextHop) {
			return false
		}
	}
	if matched != len(m.routes) {
		for k, r := range m.routes {
			if !r.ofUplink() && !want.hasRoute(k) {
				return false
			}
		}
	}
	for id, users := range m.onHop {
		if users == 0 {
			continue
		}
		i := hopIndex(want, id)
		if i < 0 || !m.within(want.NextHops[i]) {
			return false
		}
		for _, leg := range m.hops[id].Members {
			if j := hopIndex(want, leg.ID); j < 0 || m.hops[leg.ID].Device != want.NextHops[j].Device {
				return false
			}
		}
	}
	return true
}
