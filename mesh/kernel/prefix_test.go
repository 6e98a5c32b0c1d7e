package kernel

import (
	"net/netip"
	"slices"
	"testing"
)

// FuzzAggregate compares with counting addresses one by one in an /24 and an
// /120.
func FuzzAggregate(f *testing.F) {
	f.Add([]byte{0, 24, 1, 25, 128, 25, 7, 32})
	f.Add([]byte{4, 30, 8, 29, 0x85, 32, 0x84, 31, 0, 26})
	f.Fuzz(func(t *testing.T, data []byte) {
		var in []netip.Prefix
		for i := 0; i+1 < len(data) && i < 64; i += 2 {
			bits := 24 + int(data[i+1])%9
			if data[i+1]&0x80 == 0 {
				in = append(in, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, data[i]}), bits))
			} else {
				in = append(in, netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 15: data[i]}), bits+96))
			}
		}
		before := slices.Clone(in)
		out := Aggregate(in)
		if !slices.Equal(before, in) {
			t.Fatal("the argument was changed")
		}
		if !slices.IsSortedFunc(out, netip.Prefix.Compare) {
			t.Fatalf("%v is not sorted", out)
		}
		for i := range 256 {
			for _, a := range []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), netip.AddrFrom16([16]byte{0xfd, 15: byte(i)})} {
				contains := func(p netip.Prefix) bool { return p.Contains(a) }
				if got, want := slices.ContainsFunc(out, contains), slices.ContainsFunc(in, contains); got != want {
					t.Fatalf("%v of %v: %s: %v, want %v", out, in, a, got, want)
				}
			}
		}
		for i, p := range out {
			for _, q := range out[i+1:] {
				if _, ok := join(p, q); ok || p.Overlaps(q) {
					t.Fatalf("%v: %s and %s are not the shortest form", out, p, q)
				}
			}
		}
	})
}
