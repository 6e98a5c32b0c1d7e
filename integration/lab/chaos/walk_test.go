package chaos

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// reaches is the slow oracle: whether some way of at least one step leads from a site to itself.
func (e edges) reaches(site string) bool {
	at, seen := slices.Clone(e[site]), map[string]bool{}
	for len(at) > 0 {
		s := at[0]
		at = at[1:]
		if s == site {
			return true
		}
		if !seen[s] {
			seen[s] = true
			at = append(at, e[s]...)
		}
	}
	return false
}

func TestCycle(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	with := 0
	for range 3000 {
		e := edges{}
		n := 1 + rng.IntN(6)
		for i := range n {
			for j := range n {
				if i != j && rng.IntN(n+1) == 0 {
					e[fmt.Sprint(i)] = append(e[fmt.Sprint(i)], fmt.Sprint(j))
				}
			}
		}
		c := e.cycle()
		is := false
		for site := range e {
			is = is || e.reaches(site)
		}
		if (c != nil) != is || c != nil && !e.has(c) {
			t.Fatalf("%v: cycle %v, there is one: %v", e, c, is)
		}
		if is {
			with++
			without := edges{}
			for site, next := range e {
				without[site] = slices.DeleteFunc(slices.Clone(next), func(s string) bool { return s == c[0] })
			}
			if without.has(c) {
				t.Fatalf("%v has the cycle %v", without, c)
			}
		}
	}
	if with < 500 {
		t.Errorf("only %d graphs had a cycle", with)
	}
}

// TestUnion: sites are known by the keys of their tunnels, and nobody forwards what he does not let in.
func TestUnion(t *testing.T) {
	to := netip.MustParseAddr("10.1.0.10")
	views := map[string]view{
		"a": {Self: []string{"A"}, Ways: map[netip.Addr][]string{to: {"B", "C", "B"}}},
		"b": {Self: []string{"B", "B2"}, Ways: map[netip.Addr][]string{to: {"C", "unknown"}}},
		"c": {Self: []string{"C"}, Ways: map[netip.Addr][]string{to: {"A"}}},
	}
	if got := union(views, to); fmt.Sprint(got) != "map[a:[b c] b:[c] c:[a]]" || got.count() != 4 {
		t.Errorf("%v", got)
	}
	if c := union(views, to).cycle(); len(c) == 0 {
		t.Error("no cycle")
	}
	a := views["a"]
	a.Deaf = []string{"C"}
	views["a"] = a
	if c := union(views, to).cycle(); c != nil {
		t.Errorf("the cycle %v goes through a, which drops it", c)
	}
	if got := union(views, netip.MustParseAddr("10.2.0.10")); got.count() != 0 {
		t.Errorf("of another destination: %v", got)
	}
}
