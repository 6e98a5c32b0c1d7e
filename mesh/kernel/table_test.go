package kernel

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// TestTable compares a table with a map, over random changes and other bases.
func TestTable(t *testing.T) {
	for seed := range *seeds {
		r := rand.New(rand.NewPCG(seed, 5))
		some := func() Route {
			return Route{
				Table: 1 + r.IntN(2), Metric: uint32(r.IntN(2)), NextHop: uint32(r.IntN(3)),
				Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(r.IntN(4))}), 16),
			}
		}
		list := func() (out []Route) {
			for range r.IntN(12) {
				out = append(out, some())
			}
			return out
		}
		// Also in disorder, and with several of one key: the last one counts.
		first := list()
		model := map[RouteKey]Route{}
		for _, x := range first {
			model[x.Key()] = x
		}
		tab := newTable(first)
		for range 30 {
			switch x := some(); r.IntN(3) {
			case 0:
				tab.put(x)
				model[x.Key()] = x
			case 1:
				tab.delete(x.Key())
				delete(model, x.Key())
			default:
				base := ordered(list())
				tab.rebase(base)
				put, gone := tab.differences()
				want := map[RouteKey]Route{}
				for _, b := range base {
					want[b.Key()] = b
				}
				for _, d := range slices.Concat(put, gone) {
					key := d.have.Key()
					if d.have.isZero() {
						key = d.want.Key()
					}
					if d.have != model[key] || d.want != want[key] || d.have == d.want || d.want.isZero() != slices.Contains(gone, d) {
						t.Fatalf("seed %d: difference %+v", seed, d)
					}
					if d.want.isZero() {
						delete(want, key)
					}
					want[key] = d.have
				}
				maps.DeleteFunc(want, func(_ RouteKey, r Route) bool { return r.isZero() })
				if !maps.Equal(want, model) {
					t.Fatalf("seed %d: the differences do not explain\n%v\nbut\n%v", seed, model, want)
				}
			}
			got, users := map[RouteKey]Route{}, map[uint32]int{}
			for x := range tab.all() {
				if _, twice := got[x.Key()]; twice {
					t.Fatalf("seed %d: %s twice", seed, x)
				}
				got[x.Key()] = x
				users[x.NextHop]++
			}
			maps.DeleteFunc(tab.users, func(_ uint32, n int) bool { return n == 0 })
			if !maps.Equal(got, model) || !maps.Equal(users, tab.users) {
				t.Fatalf("seed %d: got %v %v, want %v %v", seed, got, tab.users, model, users)
			}
			for k := range model {
				if x, ok := tab.get(k); !ok || x != model[k] {
					t.Fatalf("seed %d: %v gives %s", seed, k, x)
				}
			}
		}
	}
}
