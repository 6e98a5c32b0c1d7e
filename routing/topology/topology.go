// Package topology chooses which nodes deserve links to each other: the same
// answer on every node, from what the log says alone. It is pure.
package topology

import (
	"crypto/sha256"
	"slices"

	"guywire/mesh"
)

// FullMesh is the number of nodes up to which everyone is everyone's
// neighbour.
const FullMesh = 12

// anchors is how many reachable nodes a node that cannot be reached from
// outside links to, besides its ring neighbours: two such nodes may be unable
// to form a link, and the graph must not depend on it.
const anchors = 3

// A Node is a member as topology sees it.
type Node struct {
	ID        mesh.NodeID
	Reachable bool // others can open a connection to it
}

// Neighbours gives self's neighbours, sorted by id. Up to FullMesh nodes these
// are all others. Beyond, nodes stand on a ring by the hash of their id, and
// node i links to those at distance 1, 2, 4, 8 … in both directions (the
// finger distances of Chord, Stoica et al. 2001, made symmetric), which gives
// degree and diameter of about log2 n; nodes that are not reachable also link
// to the nearest reachable ones on the ring.
func Neighbours(self mesh.NodeID, nodes []Node) []mesh.NodeID {
	var out []mesh.NodeID
	if len(nodes) <= FullMesh {
		for _, n := range nodes {
			if n.ID != self {
				out = append(out, n.ID)
			}
		}
		slices.SortFunc(out, mesh.NodeID.Compare)
		return out
	}
	ring := slices.SortedFunc(slices.Values(nodes), func(a, b Node) int {
		x, y := position(a.ID), position(b.ID)
		return slices.Compare(x[:], y[:])
	})
	at := slices.IndexFunc(ring, func(n Node) bool { return n.ID == self })
	if at < 0 {
		return nil
	}
	chosen := map[mesh.NodeID]bool{}
	for _, other := range lists(ring, at) {
		chosen[ring[other].ID] = true
	}
	for i := range ring {
		if i != at && !ring[i].Reachable && slices.Contains(lists(ring, i), at) {
			chosen[ring[i].ID] = true // it anchors itself here
		}
	}
	delete(chosen, self)
	for id := range chosen {
		out = append(out, id)
	}
	slices.SortFunc(out, mesh.NodeID.Compare)
	return out
}

// lists gives the ring positions that the node at position i asks for.
func lists(ring []Node, i int) []int {
	n := len(ring)
	var out []int
	for step := 1; step <= n/2; step *= 2 {
		out = append(out, (i+step)%n, (i-step+n)%n)
	}
	if !ring[i].Reachable {
		found := 0
		for step := 1; step < n && found < anchors; step++ {
			if j := (i + step) % n; ring[j].Reachable {
				out = append(out, j)
				found++
			}
		}
	}
	return out
}

func position(id mesh.NodeID) [32]byte {
	return sha256.Sum256(append([]byte("guywire ring 1\x00"), id[:]...))
}
