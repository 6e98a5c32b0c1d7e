package firewall

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"guywire/mesh/kernel"
)

// FuzzIntervals compares with asking every address near the ends, at the
// beginning, in the middle and at the very end of the address space.
func FuzzIntervals(f *testing.F) {
	f.Add([]byte{0, 0, 24, 0, 128, 25, 1, 7, 32, 2, 255, 32})
	f.Add([]byte{2, 0, 24, 2, 255, 31, 0, 0, 0})
	f.Add([]byte{130, 0, 24, 130, 255, 31, 129, 3, 30, 129, 4, 32})
	f.Fuzz(func(t *testing.T, data []byte) {
		bases4 := [][4]byte{{}, {10, 1, 2}, {255, 255, 255}}
		bases6 := [][16]byte{{}, {0xfd, 1}, {}}
		for i := range 15 {
			bases6[2][i] = 0xff
		}
		var ps []netip.Prefix
		for i := 0; i+2 < len(data) && i < 96; i += 3 {
			base, bits := int(data[i]&0x7f)%3, int(data[i+2])%9
			if data[i]&0x80 == 0 {
				a := bases4[base]
				a[3] = data[i+1]
				ps = append(ps, netip.PrefixFrom(netip.AddrFrom4(a), 24+bits))
			} else {
				a := bases6[base]
				a[15] = data[i+1]
				ps = append(ps, netip.PrefixFrom(netip.AddrFrom16(a), 120+bits))
			}
			if data[i+2] == 0 {
				ps = append(ps, netip.PrefixFrom(ps[len(ps)-1].Addr(), 0))
			}
		}
		both := append(intervals(ps, false), intervals(ps, true)...)
		for _, a := range sample(bases4, bases6) {
			want := slices.ContainsFunc(ps, func(p netip.Prefix) bool { return p.Contains(a) })
			got := slices.ContainsFunc(both, func(iv interval) bool {
				return iv.first.Is4() == a.Is4() && iv.first.Compare(a) <= 0 && a.Compare(iv.last) <= 0
			})
			if got != want {
				t.Fatalf("%v as %v: %s: %v, want %v", ps, both, a, got, want)
			}
		}
		for i := 1; i < len(both); i++ {
			if a, b := both[i-1], both[i]; a.first.Is4() == b.first.Is4() && a.last.Next().Compare(b.first) >= 0 {
				t.Fatalf("%v: %v and %v overlap or touch", ps, a, b)
			}
		}
		if back, want := prefixesOf(both), kernel.Aggregate(ps); !slices.Equal(back, want) {
			t.Fatalf("%v back from intervals: %v, want %v", ps, back, want)
		}
	})
}

// What stays and what is added make up what is wanted, and nothing that could
// stay is taken away.
func TestUncovered(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	at := func(n int) netip.Addr { return netip.AddrFrom4([4]byte{255, 255, 255, byte(n)}) }
	random := func() []interval {
		var ps []netip.Prefix
		for range r.IntN(12) {
			ps = append(ps, netip.PrefixFrom(at(r.IntN(256)), 24+r.IntN(9)).Masked())
		}
		return intervals(ps, false)
	}
	has := func(list []interval, a netip.Addr) (n int) {
		for _, iv := range list {
			if iv.first.Compare(a) <= 0 && a.Compare(iv.last) <= 0 {
				n++
			}
		}
		return n
	}
	parts := random()
	for range 5000 {
		wanted := random()
		var kept []interval
		for _, iv := range parts {
			whole := true
			for a := iv.first; whole && a.IsValid() && a.Compare(iv.last) <= 0; a = a.Next() {
				whole = has(wanted, a) == 1
			}
			if covered(iv, wanted) != whole {
				t.Fatalf("%v in %v: covered %t", iv, wanted, !whole)
			}
			if whole {
				kept = append(kept, iv)
			}
		}
		now := sorted(append(slices.Clone(kept), uncovered(wanted, kept)...))
		for n := range 256 {
			if a := at(n); has(now, a) != has(wanted, a) {
				t.Fatalf("%v of %v, wanted %v: %s is in %d", now, parts, wanted, a, has(now, a))
			}
		}
		parts = now
	}
}

func sample(bases4 [][4]byte, bases6 [][16]byte) []netip.Addr {
	var out []netip.Addr
	for i := range 256 {
		for _, b := range bases4 {
			b[3] = byte(i)
			out = append(out, netip.AddrFrom4(b))
		}
		for _, b := range bases6 {
			b[15] = byte(i)
			out = append(out, netip.AddrFrom16(b))
		}
	}
	return out
}
