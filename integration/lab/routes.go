package lab

import (
	"net/netip"
	"slices"
	"time"
)

// defaultMetric is the metric of a node's first default route; each further uplink has this much more.
const defaultMetric = 100

// hopCost is what a hop without a delay counts in the search for shortest paths.
const hopCost = time.Millisecond

// route gives every node its static routes: the default routes of the edge, and shortest paths inside the internet.
func (b *builder) route() {
	for _, n := range b.nodes {
		metric := 0
		for _, l := range b.linksOf(n.name) {
			if l.uplink == nil || l.ends[0].node != n.name {
				continue
			}
			metric += defaultMetric
			for _, p := range l.ends[1].addrs {
				n.routes = append(n.routes, routePlan{dst: anywhere(p.Addr().Is6()), via: p.Addr(), iface: l.ends[0].iface, metric: metric})
			}
		}
	}
	announced := b.announced()
	for _, n := range b.nodes {
		if n.kind != Router && n.kind != NAT {
			continue
		}
		for _, v6 := range []bool{false, true} {
			first := b.firstHops(n.name, v6)
			for _, a := range announced {
				l := first[a.owner]
				if a.p.Addr().Is6() != v6 || l == nil || b.attached(n.name, a.p) {
					continue
				}
				k := l.end(n.name)
				if l.uplink != nil && k == 0 {
					continue // the default route leads there
				}
				gw, _ := l.ends[1-k].addr(v6)
				n.routes = append(n.routes, routePlan{dst: a.p, via: gw.Addr(), iface: l.ends[k].iface})
			}
		}
	}
}

type announcement struct {
	owner string
	p     netip.Prefix
}

// announced lists the prefixes that the internet carries, each with the node that is nearest to it.
func (b *builder) announced() []announcement {
	var out []announcement
	for _, n := range b.nodes {
		if n.spec == nil || n.kind != Router && n.kind != NAT {
			continue
		}
		for _, p := range []netip.Prefix{n.spec.Subnet, n.spec.Subnet6} {
			if p.IsValid() && (p.Addr().Is6() || b.realm(n.name) == "") {
				out = append(out, announcement{n.name, p})
			}
		}
	}
	for _, l := range b.links {
		upper := b.node(l.ends[1].node)
		if upper.kind != Router && upper.kind != NAT || l.uplink == nil && b.node(l.ends[0].node).kind != Router {
			continue
		}
		for _, p := range l.ends[1].addrs {
			inside := slices.ContainsFunc(out, func(a announcement) bool { return a.owner == upper.name && a.p.Overlaps(p) })
			if !inside && (p.Addr().Is6() || l.realm == "") {
				out = append(out, announcement{upper.name, p.Masked()})
			}
		}
	}
	return out
}

// attached reports whether the node has an address in exactly this prefix.
func (b *builder) attached(node string, p netip.Prefix) bool {
	for _, l := range b.linksOf(node) {
		for _, a := range l.ends[l.end(node)].addrs {
			if a.Masked() == p {
				return true
			}
		}
	}
	return false
}

// firstHops returns, for every router and NAT that the node reaches in the family, the first link of the shortest path.
// It is Dijkstra's algorithm; ties go to the link that comes first in the layout.
func (b *builder) firstHops(from string, v6 bool) map[string]*linkPlan {
	dist := map[string]time.Duration{from: 0}
	first := map[string]*linkPlan{}
	done := map[string]bool{}
	for {
		at, found := "", false
		for _, n := range b.nodes {
			if d, seen := dist[n.name]; seen && !done[n.name] && (!found || d < dist[at]) {
				at, found = n.name, true
			}
		}
		if !found {
			return first
		}
		done[at] = true
		for _, l := range b.linksOf(at) {
			next := l.ends[1-l.end(at)]
			if _, has := next.addr(v6); !has {
				continue
			}
			if k := b.node(next.node).kind; k != Router && k != NAT {
				continue
			}
			d := dist[at] + hopCost + l.props.Delay
			if old, seen := dist[next.node]; seen && old <= d {
				continue
			}
			dist[next.node] = d
			first[next.node] = first[at]
			if at == from {
				first[next.node] = l
			}
		}
	}
}
