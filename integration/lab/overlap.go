package lab

import "net/netip"

// overlaps refuses addresses that would make two places one. Two NATs may use the same private addresses, and two sites
// the same LAN, as real ones do.
func (b *builder) overlaps() error {
	type pool struct {
		owner string
		p     netip.Prefix
	}
	var pools []pool
	for _, n := range b.nodes {
		if n.spec == nil || n.kind != Router && n.kind != NAT {
			continue
		}
		for _, p := range []netip.Prefix{n.spec.Subnet, n.spec.Subnet6} {
			if p.IsValid() && (p.Addr().Is6() || b.realm(n.name) == "") {
				pools = append(pools, pool{n.name, p})
			}
		}
	}
	for i, x := range pools {
		for _, y := range pools[:i] {
			if x.p.Overlaps(y.p) {
				return fault("nodes."+x.owner, "its subnet %s overlaps %s of %s; choose another", x.p, y.p, y.owner)
			}
		}
		for _, l := range b.links {
			for _, p := range l.ends[1].addrs {
				if l.ends[1].node != x.owner && l.realm == "" && x.p.Overlaps(p) {
					return fault("nodes."+l.ends[0].node, "the address %s of link %s is in the subnet of %s; choose another", p, l.name, x.owner)
				}
			}
		}
	}
	for i, x := range b.links {
		for _, y := range b.links[:i] {
			if !b.mustDiffer(x, y) {
				continue
			}
			for _, p := range x.ends[1].addrs {
				for _, q := range y.ends[1].addrs {
					if p.Overlaps(q) {
						return fault("nodes."+x.ends[0].node, "the addresses of %s (%s) and %s (%s) overlap; choose others", x.name, p.Masked(), y.name, q.Masked())
					}
				}
			}
		}
	}
	return nil
}

// mustDiffer reports whether some machine could see the addresses of both links.
func (b *builder) mustDiffer(x, y *linkPlan) bool {
	for _, e := range x.ends {
		if e.node == y.ends[0].node || e.node == y.ends[1].node {
			return true
		}
	}
	return b.within(x.realm, y.realm) || b.within(y.realm, x.realm)
}

// within reports whether the realm inner is outer or lies behind it. The LAN of a site is a realm by itself.
func (b *builder) within(inner, outer string) bool {
	for inner != outer {
		n := b.net.Nodes[inner]
		if inner == "" || n == nil {
			return false
		}
		inner = b.realm(n.Uplinks[0].To)
	}
	return true
}
