package topology

import (
	"cmp"
	"slices"

	"guywire/mesh"
)

// A Graph is the wanted links of a mesh.
type Graph struct {
	ids     []mesh.NodeID // sorted; a node's number is its place here
	transit []bool
	adj     [][]half // sorted by to
}

// half is an edge as one end sees it.
type half struct {
	to  int32
	why Reason
}

// Neighbours gives the nodes that id is to have a link to, sorted; none for a
// stranger.
func (g *Graph) Neighbours(id mesh.NodeID) []mesh.NodeID {
	i, ok := slices.BinarySearchFunc(g.ids, id, mesh.NodeID.Compare)
	if !ok {
		return nil
	}
	out := make([]mesh.NodeID, len(g.adj[i]))
	for k, h := range g.adj[i] {
		out[k] = g.ids[h.to]
	}
	return out
}

// Edges gives all wanted links, sorted.
func (g *Graph) Edges() []Edge {
	var out []Edge
	for i, list := range g.adj {
		for _, h := range list {
			if int(h.to) > i {
				out = append(out, Edge{g.ids[i], g.ids[h.to], h.why})
			}
		}
	}
	return out
}

// Parts gives the sets of nodes that can reach each other once every wanted
// link is up, each sorted, the largest first. There is one, unless forbidden
// pairs cut the mesh. Only transit nodes tie others together: a node that is
// none and is linked to two parts is counted in the larger.
func (g *Graph) Parts() [][]mesh.NodeID {
	u := newUnion(len(g.ids))
	for i, list := range g.adj {
		for _, h := range list {
			if g.transit[i] && g.transit[h.to] {
				u.join(i, int(h.to))
			}
		}
	}
	size := make([]int, len(g.ids))
	for i := range g.ids {
		size[u.find(i)]++
	}
	alone := make([]bool, len(g.ids)) // not transit, and no neighbour that is
	for i, list := range g.adj {
		if g.transit[i] {
			continue
		}
		best := -1
		for _, h := range list {
			if root := u.find(int(h.to)); g.transit[h.to] && (best < 0 || size[root] > size[best]) {
				best = root
			}
		}
		if best >= 0 {
			u.parent[i] = best
		}
		alone[i] = best < 0
	}
	for i, list := range g.adj {
		for _, h := range list {
			if alone[i] && alone[h.to] {
				u.join(i, int(h.to))
			}
		}
	}
	members := map[int][]mesh.NodeID{}
	for i, id := range g.ids {
		members[u.find(i)] = append(members[u.find(i)], id)
	}
	var out [][]mesh.NodeID
	for _, part := range members {
		out = append(out, part)
	}
	slices.SortFunc(out, func(a, b []mesh.NodeID) int {
		return cmp.Or(len(b)-len(a), a[0].Compare(b[0]))
	})
	return out
}

// union is a disjoint-set forest with path halving (Tarjan, van Leeuwen 1984).
type union struct{ parent []int }

func newUnion(n int) *union {
	u := &union{make([]int, n)}
	for i := range u.parent {
		u.parent[i] = i
	}
	return u
}

func (u *union) find(i int) int {
	for u.parent[i] != i {
		u.parent[i] = u.parent[u.parent[i]]
		i = u.parent[i]
	}
	return i
}

// join reports whether i and j were apart.
func (u *union) join(i, j int) bool {
	i, j = u.find(i), u.find(j)
	u.parent[i] = j
	return i != j
}
