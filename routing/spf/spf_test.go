package spf

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"guywire/mesh"
)

func id(n int) mesh.NodeID { return mesh.NodeID{byte(n >> 16), byte(n >> 8), byte(n)} }

// random is a ring with chords, as sparse as a mesh.
func random(rng *rand.Rand, n, chords int) *Graph {
	g := NewGraph()
	both := func(a, b int) {
		g.AddEdge(id(a), id(b), mesh.Cost(1+rng.IntN(100)))
		g.AddEdge(id(b), id(a), mesh.Cost(1+rng.IntN(100)))
	}
	for i := range n {
		both(i, (i+1)%n)
	}
	for range chords * n {
		if a, b := rng.IntN(n), rng.IntN(n); a != b {
			both(a, b)
		}
	}
	for i := range n {
		if rng.IntN(8) == 0 {
			g.SetStub(id(i))
		}
	}
	return g
}

// bellmanFord is the slow, obvious reference.
func bellmanFord(g *Graph, root, removed int) []mesh.Cost {
	dist := make([]mesh.Cost, g.Len())
	for i := range dist {
		dist[i] = mesh.Infinite
	}
	if root == removed {
		return dist
	}
	dist[root] = 0
	for range g.Len() {
		for from, edges := range g.edges {
			if from == removed || g.stub[from] && from != root {
				continue
			}
			for _, e := range edges {
				if e.to != removed {
					dist[e.to] = min(dist[e.to], dist[from].Add(e.cost))
				}
			}
		}
	}
	return dist
}

func TestDistancesEqualBellmanFord(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		g := random(rng, 3+rng.IntN(30), rng.IntN(3))
		root, removed := rng.IntN(g.Len()), rng.IntN(g.Len())
		for _, without := range []int{-1, removed} {
			got, want := g.distances(root, without), bellmanFord(g, root, without)
			for i := range want {
				if got[i] != want[i] {
					t.Fatalf("seed %d: root %d without %d: node %d: %d, want %d", seed, root, without, i, got[i], want[i])
				}
			}
		}
	}
}

func BenchmarkDistances(b *testing.B) {
	for _, n := range []int{100, 1000, 5000} {
		b.Run(fmt.Sprintf("n=%d", n), func(b *testing.B) {
			g := random(rand.New(rand.NewPCG(1, 2)), n, 3)
			for b.Loop() {
				g.Distances(0)
			}
		})
	}
}
