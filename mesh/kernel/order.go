package kernel

import (
	"bytes"
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"guywire/mesh"
)

// A RouteKey is what the kernel knows a route by.
type RouteKey struct {
	Table  int
	Prefix netip.Prefix
	Metric uint32
}

// Key gives the route's key.
func (r Route) Key() RouteKey { return RouteKey{r.Table, r.Prefix, r.Metric} }

// Compare orders keys by table, prefix, metric.
func (k RouteKey) Compare(l RouteKey) int {
	if order := cmp.Compare(k.Table, l.Table); order != 0 {
		return order
	}
	if order := k.Prefix.Compare(l.Prefix); order != 0 {
		return order
	}
	return cmp.Compare(k.Metric, l.Metric)
}

func compareRoutes(a, b Route) int { return a.Key().Compare(b.Key()) }

// IsGroup reports whether n is a group.
func (n NextHop) IsGroup() bool { return n.Device == "" }

// Equal reports whether n and o are the same object.
func (n NextHop) Equal(o NextHop) bool {
	return n.ID == o.ID && n.Device == o.Device && slices.Equal(n.Members, o.Members)
}

// Equal reports whether t needs no change to be u. Port and endpoint count
// only through the alias: WireGuard follows a peer that roams.
func (t Tunnel) Equal(u Tunnel) bool {
	t.Endpoint, u.Endpoint = netip.AddrPort{}, netip.AddrPort{}
	t.ListenPort, u.ListenPort = 0, 0
	return t == u
}

// IsZero reports whether f is no table at all.
func (f Filter) IsZero() bool {
	return len(f.Own) == 0 && len(f.Mesh) == 0 && len(f.Links) == 0 && !f.Foreign
}

// Equal reports whether f and g are the same table.
func (f Filter) Equal(g Filter) bool {
	return f.Foreign == g.Foreign && samePrefixes(f.Own, g.Own) && samePrefixes(f.Mesh, g.Mesh) &&
		slices.EqualFunc(f.Links, g.Links, func(a, b FilterLink) bool {
			return a.Device == b.Device && a.Held == b.Held && samePrefixes(a.Sources, b.Sources)
		})
}

// samePrefixes is slices.Equal with a short cut: successive desired states
// share most of their lists.
func samePrefixes(a, b []netip.Prefix) bool { return sameList(a, b) || slices.Equal(a, b) }

// Sort brings the slices of s into the order that equal states share. It
// sorts in place.
func (s *State) Sort() {
	slices.SortFunc(s.Tunnels, func(a, b Tunnel) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(s.Addrs, netip.Prefix.Compare)
	slices.SortFunc(s.NextHops, func(a, b NextHop) int { return cmp.Compare(a.ID, b.ID) })
	for _, n := range s.NextHops {
		slices.SortFunc(n.Members, func(a, b Member) int { return cmp.Compare(a.ID, b.ID) })
	}
	slices.SortFunc(s.Routes, compareRoutes)
	slices.SortFunc(s.Rules, func(a, b Rule) int { return cmp.Compare(a.Priority, b.Priority) })
	slices.SortFunc(s.Filter.Links, func(a, b FilterLink) int { return strings.Compare(a.Device, b.Device) })
	slices.SortFunc(s.Sysctls, func(a, b Sysctl) int { return strings.Compare(a.Path, b.Path) })
	slices.SortFunc(s.Revoked, func(a, b mesh.WireGuardKey) int { return bytes.Compare(a[:], b[:]) })
}
