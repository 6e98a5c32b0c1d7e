package kernel

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"guywire/mesh"
)

// manyRoutes is a node of degree 8 with 10 000 prefixes behind the groups of
// every two legs, and behind groups of one leg that another backs up.
func manyRoutes() State {
	s := State{Complete: true, Filter: Filter{Own: prefixes("10.86.0.1/32")}}
	for i := range uint32(8) {
		name := fmt.Sprintf("gw-%d", i)
		s.Tunnels = append(s.Tunnels, Tunnel{Name: name})
		s.Filter.Links = append(s.Filter.Links, FilterLink{Device: name})
		s.NextHops = append(s.NextHops, NextHop{ID: i + 1, Device: name})
	}
	var groups []uint32
	for i := range uint32(8) {
		for j := range uint32(8) {
			switch g := (NextHop{ID: 100 + 10*i + j, Members: []Member{{i + 1, 1}}}); {
			case i < j:
				g.Members = append(g.Members, Member{j + 1, 1})
				fallthrough
			case i == j+1:
				s.NextHops = append(s.NextHops, g)
				groups = append(groups, g.ID)
			}
		}
	}
	for i := range 10_000 {
		s.Routes = append(s.Routes, Route{
			Table: mesh.RouteTable, Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24),
			NextHop: groups[i%len(groups)], MTU: 1400,
		})
	}
	s.Sort()
	return s
}

// without takes a leg out as the core does: its next hop and its memberships
// go, a group that it was all of gets another. All else is shared.
func (s State) without(id uint32) State {
	backup := Member{id%8 + 1, 1}
	hops := s.NextHops
	s.NextHops = nil
	for _, n := range hops {
		if n.ID == id {
			continue
		}
		if n.has(id) {
			n.Members = slices.DeleteFunc(slices.Clone(n.Members), func(leg Member) bool { return leg.ID == id })
			if len(n.Members) == 0 {
				n.Members = []Member{backup}
			}
		}
		s.NextHops = append(s.NextHops, n)
	}
	return s
}

// run does what the reconciler does, all but the kernel.
func run(m *Model, want State) (ops []Op) {
	for {
		more := m.Plan(want)
		if len(more) == 0 {
			return ops
		}
		for _, op := range more {
			if m.Waits(want, op) != "" {
				panic(op)
			}
			m.Apply(op)
		}
		ops = append(ops, more...)
	}
}

// BenchmarkFailover10kPrefixes is the loss of one of 8 links under 10 000
// prefixes, from the desired state to the knowledge that nothing is left to
// do: all that the reconciler computes. The routes are shared with the state
// before, or are a copy.
func BenchmarkFailover10kPrefixes(b *testing.B) {
	have := manyRoutes()
	for _, shared := range []bool{true, false} {
		b.Run(map[bool]string{true: "shared", false: "copied"}[shared], func(b *testing.B) {
			m := NewModel(have)
			var ops []Op
			for b.Loop() {
				b.StopTimer()
				run(m, have)
				want := have.without(4)
				if !shared {
					want.Routes = slices.Clone(want.Routes)
				}
				b.StartTimer()
				ops = run(m, want)
				if !m.Safe(want) {
					b.Fatal("not safe")
				}
			}
			if s := fmt.Sprint(ops); s != "[put next hop 0x84 0x5*1 delete next hop 0x4]" {
				b.Fatal(s)
			}
		})
	}
}

// BenchmarkPlanCold plans the same from a State as it was observed, with
// nothing shared.
func BenchmarkPlanCold(b *testing.B) {
	have, want := manyRoutes(), manyRoutes().without(4)
	for b.Loop() {
		Plan(have, want)
	}
}

// BenchmarkPlanAll plans everything for an empty kernel.
func BenchmarkPlanAll(b *testing.B) {
	want := manyRoutes()
	for b.Loop() {
		Plan(State{}, want)
	}
}
