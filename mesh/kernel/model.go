package kernel

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// A Part is one backend's share of a State.
type Part uint8

// The parts.
const (
	PartTunnels    Part = iota // Tunnels
	PartForwarding             // Addrs, NextHops, Routes, Rules
	PartFilter                 // Filter
	PartSysctls                // Sysctls
	Parts                      // how many there are
)

// String gives the name of the part, for people.
func (p Part) String() string {
	return [Parts]string{"tunnels", "forwarding", "filter", "sysctls"}[p]
}

// A Model is a State with indexes, changed by applying operations: the
// kernel as it must be if all that was observed and done is still so.
// It is not safe for concurrent use.
type Model struct {
	tunnels map[string]Tunnel
	addrs   map[netip.Prefix]bool
	hops    map[uint32]NextHop
	routes  table
	rules   map[int]Rule
	filter  Filter
	sysctls map[string]string
}

// NewModel gives the model of s. It shares the slices inside the objects of
// s, which nobody may change any more.
func NewModel(s State) *Model {
	m := &Model{}
	for part := range Parts {
		m.Observe(part, s)
	}
	return m
}

// Observe replaces one part by what was read from the kernel; the rest of s
// is not looked at.
func (m *Model) Observe(part Part, s State) {
	switch part {
	case PartTunnels:
		m.tunnels = make(map[string]Tunnel, len(s.Tunnels))
		for _, t := range s.Tunnels {
			m.tunnels[t.Name] = t
		}
	case PartForwarding:
		m.addrs = make(map[netip.Prefix]bool, len(s.Addrs))
		for _, a := range s.Addrs {
			m.addrs[a] = true
		}
		m.hops = make(map[uint32]NextHop, len(s.NextHops))
		for _, n := range s.NextHops {
			m.hops[n.ID] = n
		}
		m.routes = newTable(s.Routes)
		m.rules = make(map[int]Rule, len(s.Rules))
		for _, r := range s.Rules {
			m.rules[r.Priority] = r
		}
	case PartFilter:
		m.filter = s.Filter
	case PartSysctls:
		m.sysctls = make(map[string]string, len(s.Sysctls))
		for _, c := range s.Sysctls {
			m.sysctls[c.Path] = c.Value
		}
	}
}

// State gives the model as a sorted State. It shares slices with the model's
// objects.
func (m *Model) State() State {
	s := State{
		Tunnels:  slices.SortedFunc(maps.Values(m.tunnels), func(a, b Tunnel) int { return strings.Compare(a.Name, b.Name) }),
		Addrs:    slices.SortedFunc(maps.Keys(m.addrs), netip.Prefix.Compare),
		NextHops: slices.SortedFunc(maps.Values(m.hops), func(a, b NextHop) int { return cmp.Compare(a.ID, b.ID) }),
		Routes:   slices.SortedFunc(m.routes.all(), compareRoutes),
		Rules:    slices.SortedFunc(maps.Values(m.rules), func(a, b Rule) int { return cmp.Compare(a.Priority, b.Priority) }),
		Filter:   m.filter,
	}
	for _, path := range slices.Sorted(maps.Keys(m.sysctls)) {
		s.Sysctls = append(s.Sysctls, Sysctl{path, m.sysctls[path]})
	}
	return s
}

// Apply changes the model as the kernel changes when op succeeds, with the
// silent consequences: a deleted next hop leaves its groups, an empty group
// goes, and the routes of what is gone go too; a deleted device takes its
// next hops and settings along; a deleted IPv4 address takes along the routes that have
// it as source.
func (m *Model) Apply(op Op) {
	switch op := op.(type) {
	case CreateTunnel:
		m.tunnels[op.Tunnel.Name] = op.Tunnel
	case UpdateTunnel:
		m.tunnels[op.Tunnel.Name] = op.Tunnel
	case DeleteTunnel:
		delete(m.tunnels, op.Name)
		m.flushDevice(op.Name)
		maps.DeleteFunc(m.sysctls, func(path, _ string) bool { return Sysctl{Path: path}.device() == op.Name })
	case AddAddr:
		m.addrs[op.Addr] = true
	case DeleteAddr:
		m.deleteAddr(op.Addr)
	case PutNextHop:
		m.hops[op.NextHop.ID] = op.NextHop
	case DeleteNextHop:
		m.deleteHop(op.ID)
	case PutRoute:
		m.routes.put(op.Route)
	case DeleteRoute:
		m.routes.delete(op.Route.Key())
	case PutRule:
		m.rules[op.Rule.Priority] = op.Rule
	case DeleteRule:
		delete(m.rules, op.Rule.Priority)
	case SetFilter:
		m.filter = op.Filter
	case ClearFilter:
		m.filter = Filter{}
	case SetSysctl:
		m.sysctls[op.Sysctl.Path] = op.Sysctl.Value
	case RestoreSysctls:
		clear(m.sysctls)
	}
}

func (m *Model) deleteHop(id uint32) {
	gone := without(m.hops, id)
	for _, r := range m.routesOver(gone) {
		m.routes.delete(r.Key())
	}
}

// routesOver gives the routes that use one of the next hops directly.
func (m *Model) routesOver(ids []uint32) []Route {
	n := 0
	for _, id := range ids {
		n += m.routes.users[id]
	}
	if n == 0 {
		return nil // the common case, and the urgent one
	}
	out := make([]Route, 0, n)
	for r := range m.routes.all() {
		if r.NextHop != 0 && slices.Contains(ids, r.NextHop) {
			out = append(out, r)
		}
	}
	return out
}

// flushDevice is what the kernel does, without a word, when a device goes
// down or away.
func (m *Model) flushDevice(name string) {
	for id, n := range m.hops {
		if n.Device == name {
			m.deleteHop(id)
		}
	}
}

func (m *Model) deleteAddr(a netip.Prefix) {
	delete(m.addrs, a)
	var sourced []Route
	for r := range m.routes.all() {
		if r.Source == a.Addr() {
			sourced = append(sourced, r)
		}
	}
	for _, r := range sourced {
		if a.Addr().Is4() {
			m.routes.delete(r.Key())
			continue
		}
		r.Source = netip.Addr{}
		m.routes.put(r)
	}
}

// without deletes a next hop from hops as the kernel does, and gives the ids
// that are gone: its own and those of groups that lost their last leg.
func without(hops map[uint32]NextHop, id uint32) []uint32 {
	delete(hops, id)
	gone := []uint32{id}
	for gid, g := range hops {
		if !g.has(id) {
			continue
		}
		g.Members = slices.DeleteFunc(slices.Clone(g.Members), func(m Member) bool { return m.ID == id })
		if len(g.Members) == 0 {
			delete(hops, gid)
			gone = append(gone, gid)
		} else {
			hops[gid] = g
		}
	}
	return gone
}

// has reports whether group n has a leg.
func (n NextHop) has(id uint32) bool {
	return slices.ContainsFunc(n.Members, func(m Member) bool { return m.ID == id })
}
