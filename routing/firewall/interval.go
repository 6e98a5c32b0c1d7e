package firewall

import (
	"net/netip"
	"slices"

	"guywire/mesh/kernel"
)

// An interval is a run of addresses of one family, both ends inside.
type interval struct{ first, last netip.Addr }

// intervals gives the IPv4 or the IPv6 part of ps as sorted intervals that
// neither overlap nor touch, which is what an nft interval set takes.
func intervals(ps []netip.Prefix, v6 bool) []interval {
	var out []interval
	for _, p := range kernel.Aggregate(ps) {
		if p.Addr().Is6() != v6 {
			continue
		}
		next := interval{p.Addr(), lastOf(p)}
		if n := len(out); n > 0 && out[n-1].last.Next() == next.first {
			out[n-1].last = next.last
		} else {
			out = append(out, next)
		}
	}
	return out
}

// covered reports whether one of the sorted intervals holds all of iv.
func covered(iv interval, list []interval) bool {
	i, found := slices.BinarySearchFunc(list, iv.first, func(x interval, a netip.Addr) int { return x.first.Compare(a) })
	if !found {
		i--
	}
	return i >= 0 && iv.last.Compare(list[i].last) <= 0
}

// uncovered gives what is in the sorted intervals of list and in none of kept,
// which are sorted and each within one of them.
func uncovered(list, kept []interval) []interval {
	var out []interval
	for _, iv := range list {
		next := iv.first // the first address that is not decided yet; invalid: none
		for ; len(kept) > 0 && kept[0].last.Compare(iv.last) <= 0; kept = kept[1:] {
			if next.Compare(kept[0].first) < 0 {
				out = append(out, interval{next, kept[0].first.Prev()})
			}
			next = kept[0].last.Next()
		}
		if next.IsValid() && next.Compare(iv.last) <= 0 {
			out = append(out, interval{next, iv.last})
		}
	}
	return out
}

func sorted(list []interval) []interval {
	slices.SortFunc(list, func(a, b interval) int { return a.first.Compare(b.first) })
	return list
}

// lastOf gives the highest address in p.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := range b {
		switch host := p.Bits() - 8*i; {
		case host <= 0:
			b[i] = 0xff
		case host < 8:
			b[i] |= 0xff >> host
		}
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// prefixesOf is the reverse of intervals: the shortest list of prefixes.
func prefixesOf(list []interval) []netip.Prefix {
	var out []netip.Prefix
	for _, iv := range list {
		for first := iv.first; first.IsValid() && first.Compare(iv.last) <= 0; {
			// The largest prefix that begins at first and ends within.
			p := netip.PrefixFrom(first, first.BitLen())
			for bits := p.Bits() - 1; bits >= 0; bits-- {
				wider := netip.PrefixFrom(first, bits)
				if wider.Masked().Addr() != first || lastOf(wider).Compare(iv.last) > 0 {
					break
				}
				p = wider
			}
			out = append(out, p)
			first = lastOf(p).Next()
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return out
}
