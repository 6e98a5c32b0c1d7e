package store

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"guywire/mesh"
)

// prefix keeps signatures on one line.
type prefix = netip.Prefix

// Sizes of pools: at least 14 nodes, and not a part of the internet.
const (
	minPool4, maxPool4 = 8, 28
	minPool6, maxPool6 = 16, 112
)

// special are the ranges that never belong to a node or a site: this host,
// loopback, link-local, multicast, and IPv4 inside IPv6 in all its spellings.
var special = []prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("255.255.255.255/32"),
	netip.MustParsePrefix("::/8"),
	netip.MustParsePrefix("fe80::/10"),
	netip.MustParsePrefix("ff00::/8"),
}

// RandomULA gives the /48 of RFC 4193 (section 3.2.2: the global ID is
// random) for 40 fresh random bits.
func RandomULA(seed [5]byte) netip.Prefix {
	a := [16]byte{0: 0xfd}
	copy(a[1:], seed[:])
	return netip.PrefixFrom(netip.AddrFrom16(a), 48)
}

// CheckPools reports why the pools cannot serve a mesh, or clash with a
// prefix that this machine is connected to: packets for one would go to the
// other. Init and join both ask, each with its own machine's locals, without
// those of the mesh's own interfaces. The error is a *Refusal.
func CheckPools(pool4, pool6 netip.Prefix, locals []netip.Prefix) error {
	if refused := checkPools(pool4, pool6); refused != nil {
		return refused
	}
	for _, local := range locals {
		for _, pool := range []prefix{pool4, pool6} {
			if pool.Overlaps(local) {
				return refuse(CodePoolRefused, "the mesh's pool %s overlaps %s, which this machine is connected to; use another pool at meshctl init, or renumber that network", pool, local.Masked())
			}
		}
	}
	return nil
}

func checkPools(pool4, pool6 prefix) *Refusal {
	for _, c := range []struct {
		pool     prefix
		family   string
		is       bool
		min, max int
		example  string
	}{
		{pool4, "IPv4", pool4.Addr().Is4(), minPool4, maxPool4, "10.86.0.0/16"},
		{pool6, "IPv6", pool6.Addr().Is6(), minPool6, maxPool6, "fd12:3456:789a::/48"},
	} {
		switch {
		case !c.pool.IsValid() || !c.is:
			return refuse(CodePoolRefused, "the %s pool %s is not an %s prefix; give one such as %s", c.family, c.pool, c.family, c.example)
		case c.pool != c.pool.Masked():
			return refuse(CodePoolRefused, "the %s pool %s has bits after its length; write %s", c.family, c.pool, c.pool.Masked())
		case c.pool.Bits() < c.min || c.pool.Bits() > c.max:
			return refuse(CodePoolRefused, "the %s pool %s must have a length from /%d to /%d; give one such as %s", c.family, c.pool, c.min, c.max, c.example)
		}
		if i := slices.IndexFunc(special, c.pool.Overlaps); i >= 0 {
			return refuse(CodePoolRefused, "the %s pool %s is in the reserved range %s; give one such as %s", c.family, c.pool, special[i], c.example)
		}
	}
	return nil
}

// allocate gives the lowest host number that is free in both pools, so a
// node's two addresses end alike. Tombstones and reservations keep theirs, so
// none is ever given twice.
func (s *State) allocate() (netip.Addr, netip.Addr, *Refusal) {
	for host, taken := range s.taken() {
		if !taken && s.usable(uint64(host)) {
			return nth(s.Mesh.Pool4, uint64(host)), nth(s.Mesh.Pool6, uint64(host)), nil
		}
	}
	return netip.Addr{}, netip.Addr{}, refuse(CodePoolEmpty, "no address is left in %s and %s; make a new mesh with larger pools", s.Mesh.Pool4, s.Mesh.Pool6)
}

// lastHost is the highest number that both pools have: below the broadcast
// address of IPv4 and below the 128 highest of IPv6, which are reserved for
// anycast (RFC 2526). Number 0 is the network, and the subnet-router anycast.
func lastHost(pool4, pool6 prefix) uint64 {
	last := uint64(1)<<(32-pool4.Bits()) - 2
	if bits6 := 128 - pool6.Bits(); bits6 < 32 {
		last = min(last, uint64(1)<<bits6-129)
	}
	return last
}

// nth is the address with the host number in the pool; the caller keeps the
// number within the pool and below 2^32.
func nth(pool prefix, host uint64) netip.Addr {
	if pool.Addr().Is4() {
		a := pool.Addr().As4()
		binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(a[:])|uint32(host))
		return netip.AddrFrom4(a)
	}
	a := pool.Addr().As16()
	binary.BigEndian.PutUint64(a[8:], binary.BigEndian.Uint64(a[8:])|host)
	return netip.AddrFrom16(a)
}

// claim checks the prefixes that node wants granted against the rules and
// against everyone else's, and gives them sorted. Several origins of one
// prefix are refused, because traffic would be split between places that
// differ, unless it is equal and each has it as shared.
func (s *State) claim(id mesh.NodeID, prefixes, shared []prefix) ([]prefix, *Refusal) {
	if len(prefixes) > MaxPrefixes {
		return nil, refuse(CodePrefixRefused, "a node may have %d prefixes, not %d; aggregate them", MaxPrefixes, len(prefixes))
	}
	for _, p := range prefixes {
		if refused := s.checkPrefix(p); refused != nil {
			return nil, refused
		}
		var holder Node // the one with the lowest id: the sentence is part of the result
		var held prefix
		for other, n := range s.Nodes {
			if other == id || !holder.ID.IsZero() && holder.ID.Compare(other) < 0 {
				continue
			}
			overlaps := func(q prefix) bool {
				return p.Overlaps(q) && (p != q || !slices.Contains(shared, p) || !slices.Contains(n.Shared, q))
			}
			if i := slices.IndexFunc(n.Prefixes, overlaps); i >= 0 {
				holder, held = n, n.Prefixes[i]
			}
		}
		switch {
		case holder.ID.IsZero():
		case held == p && (slices.Contains(shared, p) || slices.Contains(holder.Shared, p)):
			return nil, refuse(CodePrefixTaken, "the prefix %s is also of %s, and not every one of the two has it as shared; say --shared for each of its nodes, one after the other", p, holder.Name)
		default:
			return nil, refuse(CodePrefixTaken, "the prefix %s overlaps %s of %s; leave it out, or take it from %s first (meshctl nodes shows who has what)", p, held, holder.Name, holder.Name)
		}
	}
	sorted := sortedPrefixes(prefixes)
	if len(sorted) != len(prefixes) {
		return nil, refuse(CodePrefixRefused, "a prefix is named twice; leave one out")
	}
	for i, p := range shared {
		if !slices.Contains(prefixes, p) || slices.Contains(shared[:i], p) {
			return nil, refuse(CodePrefixRefused, "the shared prefix %s is not one of the node's, or named twice; grant it, too", p)
		}
	}
	return sorted, nil
}

// checkPrefix refuses what no site may own.
func (s *State) checkPrefix(p prefix) *Refusal {
	switch {
	case !p.IsValid():
		return refuse(CodePrefixRefused, "a prefix is malformed; write it such as 192.168.5.0/24")
	case p != p.Masked():
		return refuse(CodePrefixRefused, "the prefix %s has bits after its length; write %s", p, p.Masked())
	case p.Bits() == 0:
		return refuse(CodePrefixRefused, "%s is the whole internet, which no site owns; name the site's own prefixes", p)
	}
	if slices.ContainsFunc(special, p.Overlaps) || p.Addr().Is4In6() {
		return refuse(CodePrefixRefused, "the prefix %s is in or around a reserved range (loopback, link-local, multicast); name the site's own prefixes", p)
	}
	for _, pool := range []prefix{s.Mesh.Pool4, s.Mesh.Pool6} {
		if p.Overlaps(pool) {
			return refuse(CodePrefixRefused, "the prefix %s overlaps the mesh's own pool %s; leave it out, or renumber that network", p, pool)
		}
	}
	return nil
}

// contains reports whether p lies in outer.
func contains(outer, p prefix) bool {
	return outer.IsValid() && p.IsValid() && outer.Bits() <= p.Bits() && outer.Contains(p.Addr())
}

func sortedPrefixes(in []prefix) []prefix {
	out := clone(in)
	slices.SortFunc(out, prefix.Compare)
	return slices.Compact(out)
}

func checkControl(addrs []netip.AddrPort) *Refusal {
	if len(addrs) > MaxControl {
		return refuse(CodeInvalid, "a node may have %d control addresses, not %d; leave some out", MaxControl, len(addrs))
	}
	for i, ap := range addrs {
		a := ap.Addr()
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.Is4In6() || a.Zone() != "" || ap.Port() == 0 {
			return refuse(CodeInvalid, "%s cannot be a control address; give an address and a port that other nodes reach", ap)
		}
		if slices.Contains(addrs[:i], ap) {
			return refuse(CodeInvalid, "the control address %s is named twice; leave one out", ap)
		}
	}
	return nil
}
