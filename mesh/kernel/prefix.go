package kernel

import (
	"net/netip"
	"slices"
)

// Aggregate gives the shortest sorted list of prefixes that covers the same
// addresses as ps: covered ones are left out, two halves become their whole.
// The list is unique, so two sets of addresses are equal if their aggregates
// are. Invalid prefixes are left out; ps is not changed.
func Aggregate(ps []netip.Prefix) []netip.Prefix {
	sorted := make([]netip.Prefix, 0, len(ps))
	for _, p := range ps {
		if p.IsValid() {
			sorted = append(sorted, p.Masked())
		}
	}
	// A covering prefix sorts directly before all that it covers.
	slices.SortFunc(sorted, netip.Prefix.Compare)
	out := sorted[:0]
	for _, p := range sorted {
		if n := len(out); n > 0 && out[n-1].Overlaps(p) {
			continue
		}
		out = append(out, p)
		for n := len(out); n > 1; n = len(out) {
			whole, ok := join(out[n-2], out[n-1])
			if !ok {
				break
			}
			out = append(out[:n-2], whole)
		}
	}
	return slices.Clip(out)
}

// join gives the prefix of which a and b are the two halves.
func join(a, b netip.Prefix) (netip.Prefix, bool) {
	if a.Bits() != b.Bits() || a.Bits() == 0 || a == b {
		return netip.Prefix{}, false
	}
	whole := netip.PrefixFrom(a.Addr(), a.Bits()-1).Masked()
	return whole, whole.Contains(b.Addr())
}
