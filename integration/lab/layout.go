package lab

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// maxLinks bounds a layout; checking it for overlaps takes the square of it.
const maxLinks = 2000

// layout is a network with everything decided: interfaces, addresses and routes. It is a pure function of the network.
type layout struct {
	net   *Network // with all addresses filled in
	nodes []*nodePlan
	links []*linkPlan

	byName map[string]*nodePlan
	byNode map[string][]*linkPlan
}

// nodePlan is one namespace.
type nodePlan struct {
	name   string
	kind   Kind
	spec   *Node // nil for a LAN host
	routes []routePlan
}

// linkPlan is one cable. For an uplink ends[0] is the machine and ends[1] the router or NAT above it.
type linkPlan struct {
	name   string
	ends   [2]endPlan
	props  Properties
	seed   uint64
	realm  string  // whose private addresses these are: "" is the internet
	uplink *Uplink // what it was made of, or nil
}

// endPlan is one interface.
type endPlan struct {
	node, iface string
	addrs       []netip.Prefix
}

// routePlan is one static route. Metric 0 is the kernel's default.
type routePlan struct {
	dst    netip.Prefix
	via    netip.Addr
	iface  string
	metric int
}

func (e endPlan) addr(v6 bool) (netip.Prefix, bool) {
	for _, p := range e.addrs {
		if p.Addr().Is6() == v6 {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// end returns the index of the node's end.
func (l *linkPlan) end(node string) int {
	if l.ends[1].node == node {
		return 1
	}
	return 0
}

// node returns the plan of the node, or nil.
func (lo *layout) node(name string) *nodePlan { return lo.byName[name] }

// link finds a link by its name, or by NODE:INTERFACE of either end.
func (lo *layout) link(name string) (*linkPlan, error) {
	for _, l := range lo.links {
		if l.name == name {
			return l, nil
		}
	}
	node, iface, ok := strings.Cut(name, ":")
	for _, l := range lo.links {
		for _, e := range l.ends {
			if ok && e.node == node && e.iface == iface {
				return l, nil
			}
		}
	}
	return nil, fmt.Errorf("%w link %q; `meshlab status` lists the links", ErrUnknown, name)
}

// linksOf returns the links that end at the node.
func (lo *layout) linksOf(node string) []*linkPlan { return lo.byNode[node] }

// index makes nodes and links easy to find, once all are there.
func (lo *layout) index() {
	lo.byName, lo.byNode = map[string]*nodePlan{}, map[string][]*linkPlan{}
	for _, n := range lo.nodes {
		lo.byName[n.name] = n
	}
	for _, l := range lo.links {
		for _, e := range l.ends {
			lo.byNode[e.node] = append(lo.byNode[e.node], l)
		}
	}
}

// newLayout decides everything about the network, and finds what does not fit together. It does not change n.
func newLayout(n *Network) (*layout, error) {
	b := &builder{layout: layout{net: n.clone()}, ifaces: map[string]map[string]bool{}}
	n = b.net
	for _, name := range n.names() {
		b.nodes = append(b.nodes, &nodePlan{name: name, kind: n.Nodes[name].Kind, spec: n.Nodes[name]})
	}
	for _, step := range []func() error{b.subnets, b.uplinks, b.peers, b.lans, b.overlaps} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	b.index()
	b.route()
	return &b.layout, nil
}

type builder struct {
	layout
	ifaces map[string]map[string]bool // names in use, by node
}

// iface returns a free interface name on the node, as near to want as 15 bytes allow.
func (b *builder) iface(node, want string) string {
	used := b.ifaces[node]
	if used == nil {
		used = map[string]bool{"lo": true, "lan": true}
		b.ifaces[node] = used
	}
	name := want[:min(len(want), 15)]
	for i := 2; used[name]; i++ {
		suffix := strconv.Itoa(i)
		name = want[:min(len(want), 15-len(suffix))] + suffix
	}
	used[name] = true
	return name
}

func (b *builder) add(l *linkPlan) {
	l.seed = b.net.Seed<<16 + uint64(len(b.links))
	b.links = append(b.links, l)
}

// subnets gives routers and NATs something to give addresses from.
func (b *builder) subnets() error {
	var taken []netip.Prefix
	for _, n := range b.nodes {
		taken = append(taken, n.spec.Subnet, n.spec.Subnet6)
	}
	free := func(format string, from, to int) (netip.Prefix, error) {
		for i := from; i <= to; i++ {
			p := netip.MustParsePrefix(fmt.Sprintf(format, i))
			if !slices.ContainsFunc(taken, func(t netip.Prefix) bool { return t.IsValid() && t.Overlaps(p) }) {
				taken = append(taken, p)
				return p, nil
			}
		}
		return netip.Prefix{}, fault("nodes", "no subnets are left for the routers; give some of them a subnet")
	}
	for _, n := range b.nodes {
		s := n.spec
		var err error
		switch {
		case n.kind == Router, n.kind == NAT && s.Mapping == NoNAT:
			if !s.Subnet.IsValid() && (n.kind == Router || !s.Uplinks[0].NoIPv4) {
				s.Subnet, err = free("198.18.%d.0/24", 1, 255)
			}
		case n.kind == NAT && !s.Subnet.IsValid():
			s.Subnet, err = free("10.200.%d.0/24", 1, 255)
		}
		if err == nil && (n.kind == Router || n.kind == NAT && (s.IPv6 || s.Mapping == NoNAT)) && !s.Subnet6.IsValid() {
			s.Subnet6, err = free("2001:db8:%x::/48", 1, 0xfffe)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// uplinks lays the cables that lead up, and gives both ends addresses.
func (b *builder) uplinks() error {
	// Addresses written by hand come first, so that the automatic ones keep clear of them.
	var taken []netip.Prefix
	for _, n := range b.nodes {
		for _, u := range n.spec.Uplinks {
			b.reserve(n.name, u.Name)
			taken = append(taken, u.Address, u.Address6)
		}
	}
	for _, n := range b.nodes {
		for i, u := range n.spec.Uplinks {
			if len(b.links) >= maxLinks {
				return fault("nodes", "too many links; a lab has %d at most", maxLinks)
			}
			path := fmt.Sprintf("nodes.%s.uplinks[%d]", n.name, i)
			to := b.net.Nodes[u.To]
			if u.Name == "" {
				u.Name = b.iface(n.name, defaultUplink(n.kind, i))
			}
			wants4, wants6 := to.Subnet.IsValid() && !u.NoIPv4, to.Subnet6.IsValid() && !u.NoIPv6
			var err error
			if wants4 || u.Address.IsValid() {
				if u.Address, err = b.take(u.Address, to.Subnet, &taken); err != nil {
					return fault(path, "the subnet of %s is used up; give it a shorter one", u.To)
				}
			}
			if wants6 || u.Address6.IsValid() {
				if u.Address6, err = b.take(u.Address6, to.Subnet6, &taken); err != nil {
					return fault(path, "the subnet6 of %s is used up; give it a shorter one", u.To)
				}
			}
			switch {
			case n.kind == NAT && n.spec.Mapping != NoNAT && !u.Address.IsValid():
				return fault(path, "a nat needs an IPv4 address to translate to; leave out no_ipv4, or make it a firewall by nat: none")
			case !u.Address.IsValid() && !u.Address6.IsValid():
				return fault(path, "the uplink has neither IPv4 nor IPv6; leave out no_ipv4, or give %s ipv6: true", u.To)
			}
			l := &linkPlan{name: n.name + ":" + u.Name, props: u.Properties, uplink: u, realm: b.realm(u.To)}
			l.ends[0] = endPlan{node: n.name, iface: u.Name}
			l.ends[1] = endPlan{node: u.To, iface: b.iface(u.To, "to-"+n.name)}
			for _, p := range []netip.Prefix{u.Address, u.Address6} {
				if p.IsValid() {
					l.ends[0].addrs = append(l.ends[0].addrs, p)
					l.ends[1].addrs = append(l.ends[1].addrs, netip.PrefixFrom(gateway(p), p.Bits()))
				}
			}
			b.add(l)
		}
	}
	return nil
}

func (b *builder) reserve(node, iface string) {
	if iface != "" {
		b.iface(node, iface)
	}
}

func defaultUplink(kind Kind, i int) string {
	switch kind {
	case Site:
		return fmt.Sprintf("isp%d", i+1)
	case NAT:
		return "wan"
	default:
		return fmt.Sprintf("eth%d", i)
	}
}

// realm names the box whose private IPv4 addresses are used below the node to.
func (b *builder) realm(to string) string {
	for n := b.net.Nodes[to]; n.Kind == NAT; n = b.net.Nodes[to] {
		if n.Mapping != NoNAT {
			return to
		}
		to = n.Uplinks[0].To
	}
	return ""
}

// take returns given if it is set, and otherwise the second address of the next free /30 or /64 of the pool.
func (b *builder) take(given, pool netip.Prefix, taken *[]netip.Prefix) (netip.Prefix, error) {
	if given.IsValid() {
		return given, nil
	}
	p, err := nextFree(pool, *taken)
	if err != nil {
		return p, err
	}
	*taken = append(*taken, p)
	return p, nil
}

// nextFree returns the second address of the first /30 or /64 of the pool that overlaps nothing taken.
func nextFree(pool netip.Prefix, taken []netip.Prefix) (netip.Prefix, error) {
	bits, step := 30, 4
	if pool.Addr().Is6() {
		bits, step = 64, 1
	}
	// The taken ones are at most twice maxLinks, so one of the first that many is free, or none is.
	at := pool.Masked().Addr()
	for range 2*maxLinks + 1 {
		if !at.IsValid() || !pool.Contains(at) {
			break
		}
		p := netip.PrefixFrom(at, bits)
		if !slices.ContainsFunc(taken, func(t netip.Prefix) bool { return t.IsValid() && t.Overlaps(p) }) {
			return netip.PrefixFrom(at.Next().Next(), bits), nil
		}
		at = advance(at, step)
	}
	return netip.Prefix{}, fmt.Errorf("%s is used up", pool)
}

// advance moves an IPv4 address by step, an IPv6 address by step times /64.
func advance(a netip.Addr, step int) netip.Addr {
	raw := a.AsSlice()
	i := len(raw) - 1
	if a.Is6() {
		i = 7
	}
	for carry := step; carry > 0 && i >= 0; i-- {
		carry += int(raw[i])
		raw[i] = byte(carry)
		carry >>= 8
	}
	next, _ := netip.AddrFromSlice(raw)
	return next
}

// gateway returns the address of the other end: the first of the subnet, or the second when that is p's own.
func gateway(p netip.Prefix) netip.Addr {
	first := p.Masked().Addr().Next()
	if first == p.Addr() {
		return first.Next()
	}
	return first
}

// peers lays the cables between equals.
func (b *builder) peers() error {
	pool4, pool6 := netip.MustParsePrefix("198.19.0.0/16"), netip.MustParsePrefix("2001:db8:ffff::/48")
	var taken []netip.Prefix
	names := map[string]bool{}
	for _, l := range b.net.Links {
		taken = append(taken, l.AAddr, l.AAddr6)
		names[l.Name] = true
	}
	for i, l := range b.net.Links {
		path := fmt.Sprintf("links[%d]", i)
		if len(b.links) >= maxLinks {
			return fault("links", "too many links; a lab has %d at most", maxLinks)
		}
		if l.Name == "" {
			base := l.Ends[0] + "-" + l.Ends[1]
			l.Name = base
			for j := 2; names[l.Name]; j++ {
				l.Name = fmt.Sprintf("%s-%d", base, j)
			}
			names[l.Name] = true
		}
		for _, f := range []struct {
			a, b *netip.Prefix
			pool netip.Prefix
		}{{&l.AAddr, &l.BAddr, pool4}, {&l.AAddr6, &l.BAddr6, pool6}} {
			if !f.a.IsValid() {
				p, err := nextFree(f.pool, taken)
				if err != nil {
					return fault(path, "no addresses are left for links; give this one a_addr and b_addr")
				}
				taken = append(taken, p)
				*f.a, *f.b = netip.PrefixFrom(gateway(p), p.Bits()), p
			}
		}
		lp := &linkPlan{name: l.Name, props: l.Properties}
		for k, addrs := range [2][]netip.Prefix{{l.AAddr, l.AAddr6}, {l.BAddr, l.BAddr6}} {
			lp.ends[k] = endPlan{node: l.Ends[k], iface: b.iface(l.Ends[k], "to-"+l.Ends[1-k]), addrs: addrs}
		}
		b.add(lp)
	}
	seen := map[string]bool{}
	for _, l := range b.links {
		if seen[l.name] {
			return fault("links", "two links are named %q; choose other names", l.name)
		}
		seen[l.name] = true
	}
	return nil
}

// lans puts a host behind each site that has a LAN.
func (b *builder) lans() error {
	for _, n := range slices.Clone(b.nodes) {
		if n.kind != Site || !n.spec.LAN.IsValid() && !n.spec.LAN6.IsValid() {
			continue
		}
		host := &nodePlan{name: n.name + "-host", kind: Host}
		l := &linkPlan{name: n.name + ":lan", realm: host.name}
		l.ends[0], l.ends[1] = endPlan{node: host.name, iface: "eth0"}, endPlan{node: n.name, iface: "lan"}
		for _, p := range []netip.Prefix{n.spec.LAN, n.spec.LAN6} {
			if !p.IsValid() {
				continue
			}
			site := p.Addr().Next()
			addr := site
			for range 9 {
				addr = addr.Next()
			}
			l.ends[0].addrs = append(l.ends[0].addrs, netip.PrefixFrom(addr, p.Bits()))
			l.ends[1].addrs = append(l.ends[1].addrs, netip.PrefixFrom(site, p.Bits()))
			host.routes = append(host.routes, routePlan{dst: anywhere(p.Addr().Is6()), via: site, iface: "eth0"})
		}
		b.nodes = append(b.nodes, host)
		b.add(l)
	}
	if len(b.nodes) > maxNodes {
		return fault("nodes", "%d nodes with the LAN hosts are too many; a lab has %d at most", len(b.nodes), maxNodes)
	}
	slices.SortFunc(b.nodes, func(x, y *nodePlan) int { return strings.Compare(x.name, y.name) })
	return nil
}

func anywhere(v6 bool) netip.Prefix {
	if v6 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}
