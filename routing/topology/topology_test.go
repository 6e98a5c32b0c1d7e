package topology

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"guywire/mesh"
)

func nodes(rng *rand.Rand, n int) []Node {
	out := make([]Node, n)
	for i := range out {
		for j := range out[i].ID {
			out[i].ID[j] = byte(rng.Uint32())
		}
		out[i].Reachable = i < 3 || rng.IntN(2) == 0
	}
	return out
}

func TestSameAnswerEverywhere(t *testing.T) {
	for _, n := range []int{1, 2, 6, 12, 13, 40, 200} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(uint64(n), 1))
			all := nodes(rng, n)
			neighbours := map[mesh.NodeID][]mesh.NodeID{}
			for _, node := range all {
				order := slices.Clone(all)
				rng.Shuffle(n, func(i, j int) { order[i], order[j] = order[j], order[i] })
				neighbours[node.ID] = Neighbours(node.ID, order)
			}
			for a, list := range neighbours {
				if slices.Contains(list, a) {
					t.Fatalf("%s is its own neighbour", a)
				}
				for _, b := range list {
					if !slices.Contains(neighbours[b], a) {
						t.Fatalf("%s wants a link to %s, which does not", a, b)
					}
				}
			}
			if n <= FullMesh {
				for a, list := range neighbours {
					if len(list) != n-1 {
						t.Fatalf("%s has %d neighbours in a full mesh of %d", a, len(list), n)
					}
				}
			}
		})
	}
}

// The worst case for links: no two unreachable nodes can connect at all.
func TestConnectedThoughUnreachablePairsFail(t *testing.T) {
	for seed := range uint64(50) {
		all := nodes(rand.New(rand.NewPCG(seed, 2)), 13+int(seed)*3)
		reachable := map[mesh.NodeID]bool{}
		for _, n := range all {
			reachable[n.ID] = n.Reachable
		}
		seen := map[mesh.NodeID]bool{all[0].ID: true}
		queue := []mesh.NodeID{all[0].ID}
		for len(queue) > 0 {
			at := queue[0]
			queue = queue[1:]
			for _, next := range Neighbours(at, all) {
				if (reachable[at] || reachable[next]) && !seen[next] {
					seen[next] = true
					queue = append(queue, next)
				}
			}
		}
		if len(seen) != len(all) {
			t.Errorf("seed %d: %d of %d nodes connected", seed, len(seen), len(all))
		}
	}
}
