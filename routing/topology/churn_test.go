package topology

import (
	"fmt"
	"testing"
	"math/rand/v2"

	"guywire/mesh"
)

func diff(a, b *Graph, without mesh.NodeID) (n int, by map[Reason]int) {
	by = map[Reason]int{}
	has := map[[2]mesh.NodeID]Reason{}
	for _, e := range a.Edges() {
		if e.A != without && e.B != without {
			has[[2]mesh.NodeID{e.A, e.B}] = e.Reason
		}
	}
	for _, e := range b.Edges() {
		if e.A == without || e.B == without {
			continue
		}
		k := [2]mesh.NodeID{e.A, e.B}
		if _, ok := has[k]; ok {
			delete(has, k)
		} else {
			n++
			by[e.Reason]++
		}
	}
	for _, r := range has {
		n++
		by[r]++
	}
	return n, by
}

func TestChurn(t *testing.T) {
	for _, dense := range []bool{false, true} {
		for _, n := range []int{30, 100, 300} {
			w := newWorld(uint64(n), n)
			g := Build(w.nodes, Policy{Dense: dense})
			rng := rand.New(rand.NewPCG(1, 2))
			sum, top, move := 0, 0, 0
			by := map[Reason]int{}
			const runs = 20
			for range runs {
				x := rng.IntN(n)
				rest := append(append([]Node{}, w.nodes[:x]...), w.nodes[x+1:]...)
				k, why := diff(g, Build(rest, Policy{Dense: dense}), w.nodes[x].ID)
				sum += k
				for r, c := range why {
					by[r] += c
				}
				top = max(top, k)
				moved := append([]Node{}, w.nodes...)
				for i := range moved[x].Coordinate.Vector[:3] {
					moved[x].Coordinate.Vector[i] += int32(rng.NormFloat64()*10000)
				}
				k, _ = diff(g, Build(moved, Policy{Dense: dense}), mesh.NodeID{})
				move += k
			}
			fmt.Printf("%5d %-5v edges %d leave: mean %.1f max %d, move 10 ms: %.1f  %v\n", n, dense, len(g.Edges()), float64(sum)/runs, top, float64(move)/runs, by)
		}
	}
}
