package topology

import (
	"cmp"
	"maps"
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
// none counts to the largest part it has a link to, and is a part of its own
// when it has links to its like only.
func (g *Graph) Parts() [][]mesh.NodeID {
	n, links := len(g.ids), 0
	u := newUnion(n)
	for i, list := range g.adj {
		links += len(list)
		for _, h := range list {
			if g.transit[i] && g.transit[h.to] {
				u.join(i, int(h.to))
			}
		}
	}
	if n > 0 && links == n*(n-1) {
		return [][]mesh.NodeID{slices.Clone(g.ids)} // a full mesh needs no transit
	}
	size := make([]int, n)
	for i := range g.ids {
		size[u.find(i)]++
	}
	for i, list := range g.adj {
		largest := i
		for _, h := range list {
			if root := u.find(int(h.to)); !g.transit[i] && g.transit[h.to] && (largest == i || size[root] > size[largest]) {
				largest = root
			}
		}
		if !g.transit[i] {
			u.parent[i] = largest
		}
	}
	members := map[int][]mesh.NodeID{}
	for i, id := range g.ids {
		members[u.find(i)] = append(members[u.find(i)], id)
	}
	return slices.SortedFunc(maps.Values(members), func(a, b []mesh.NodeID) int {
		return cmp.Or(len(b)-len(a), a[0].Compare(b[0]))
	})
}

// Spared gives those of id's present neighbours that it does not want and
// must not lose yet: one for every wanted neighbour that it lacks. Every node
// that knows the neighbours which id announces gets the same answer, so both
// ends of a link agree on whether one may go, and no two neighbours leave
// because each counts on the other to stay.
func (g *Graph) Spared(id mesh.NodeID, present []mesh.NodeID) []mesh.NodeID {
	return spared(g.Neighbours(id), present)
}

func spared(want, present []mesh.NodeID) []mesh.NodeID {
	lacking := 0
	for _, id := range want {
		if !slices.Contains(present, id) {
			lacking++
		}
	}
	var spare []mesh.NodeID
	for _, id := range present {
		if !slices.Contains(want, id) {
			spare = append(spare, id)
		}
	}
	slices.SortFunc(spare, mesh.NodeID.Compare)
	return spare[:min(lacking, len(spare))]
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
