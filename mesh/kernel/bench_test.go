package kernel

import (
	"fmt"
	"net/netip"
	"testing"

	"guywire/mesh"
)

// manyRoutes is a node of degree 8 with 10 000 prefixes behind 56 groups of
// two legs.
func manyRoutes(dead string) State {
	s := State{Complete: true, Filter: Filter{Own: prefixes("10.86.0.1/32")}}
	for i := range 8 {
		if name := fmt.Sprintf("gw-%d", i); name != dead {
			s.Tunnels = append(s.Tunnels, Tunnel{Name: name})
			s.NextHops = append(s.NextHops, NextHop{ID: uint32(i + 1), Device: name})
		}
	}
	var groups []uint32
	for i := range uint32(8) {
		for j := i + 1; j < 8; j++ {
			g := NextHop{ID: 100 + 10*i + j}
			for _, leg := range []uint32{i, j} {
				if fmt.Sprintf("gw-%d", leg) != dead {
					g.Members = append(g.Members, Member{leg + 1, 1})
				}
			}
			s.NextHops = append(s.NextHops, g)
			groups = append(groups, g.ID)
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

// BenchmarkPlanCut plans the loss of one link with 10 000 prefixes behind the
// groups that it is in, from a model that is kept as the reconciler does.
func BenchmarkPlanCut(b *testing.B) {
	m, want := NewModel(manyRoutes("")), manyRoutes("gw-3")
	if ops := m.Plan(manyRoutes("")); len(ops) > 0 {
		b.Fatal(ops)
	}
	var ops []Op
	for b.Loop() {
		ops = m.Plan(want)
	}
	if s := fmt.Sprint(ops); s != "[delete next hop 0x4 delete tunnel gw-3]" {
		b.Fatal(s)
	}
}

// BenchmarkPlanCold is the same from a State, with the indexes built anew.
func BenchmarkPlanCold(b *testing.B) {
	have, want := manyRoutes(""), manyRoutes("gw-3")
	for b.Loop() {
		Plan(have, want)
	}
}

func BenchmarkSafe(b *testing.B) {
	m, want := NewModel(manyRoutes("")), manyRoutes("")
	for b.Loop() {
		if !m.Safe(want) {
			b.Fatal("not safe")
		}
	}
}
