// Package spf computes shortest-path distances over the mesh's graph. It is
// pure; its distances are advice about cost and the potential that next hops
// must lower (downstream criterion, RFC 5286 inequality 2).
package spf

import (
	"container/heap"

	"guywire/mesh"
)

// A Graph is directed and weighted. Nodes are small integers given by Node,
// so that the inner loop touches slices only.
type Graph struct {
	ids   []mesh.NodeID
	index map[mesh.NodeID]int
	edges [][]edge
	stub  []bool // reachable, but no path leads through
}

type edge struct {
	to   int
	cost mesh.Cost
}

// NewGraph makes an empty graph.
func NewGraph() *Graph { return &Graph{index: make(map[mesh.NodeID]int)} }

// Node gives the number of id, adding it when new.
func (g *Graph) Node(id mesh.NodeID) int {
	if n, ok := g.index[id]; ok {
		return n
	}
	n := len(g.ids)
	g.index[id] = n
	g.ids = append(g.ids, id)
	g.edges = append(g.edges, nil)
	g.stub = append(g.stub, false)
	return n
}

// Lookup gives the number of id if the graph has it.
func (g *Graph) Lookup(id mesh.NodeID) (int, bool) {
	n, ok := g.index[id]
	return n, ok
}

// ID is the inverse of Node.
func (g *Graph) ID(n int) mesh.NodeID { return g.ids[n] }

// Len is the number of nodes.
func (g *Graph) Len() int { return len(g.ids) }

// AddEdge adds the direction from → to. Costs are positive and below Infinite.
func (g *Graph) AddEdge(from, to mesh.NodeID, cost mesh.Cost) {
	f, t := g.Node(from), g.Node(to)
	g.edges[f] = append(g.edges[f], edge{t, cost})
}

// SetStub says that no path may lead through id.
func (g *Graph) SetStub(id mesh.NodeID) { g.stub[g.Node(id)] = true }

// Distances gives the cost from root to every node, Infinite where there is
// no path (Dijkstra 1959 with a binary heap, O(E log V)).
func (g *Graph) Distances(root int) []mesh.Cost { return g.distances(root, -1) }

// DistancesWithout is Distances in the graph without the node removed.
func (g *Graph) DistancesWithout(root, removed int) []mesh.Cost { return g.distances(root, removed) }

func (g *Graph) distances(root, removed int) []mesh.Cost {
	dist := make([]mesh.Cost, len(g.ids))
	for i := range dist {
		dist[i] = mesh.Infinite
	}
	if root == removed {
		return dist
	}
	dist[root] = 0
	q := queue{{root, 0}}
	for len(q) > 0 {
		at := heap.Pop(&q).(item)
		if at.cost > dist[at.node] || g.stub[at.node] && at.node != root {
			continue
		}
		for _, e := range g.edges[at.node] {
			if e.to == removed {
				continue
			}
			if d := at.cost.Add(e.cost); d < dist[e.to] {
				dist[e.to] = d
				heap.Push(&q, item{e.to, d})
			}
		}
	}
	return dist
}

type item struct {
	node int
	cost mesh.Cost
}

type queue []item

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].cost < q[j].cost }
func (q queue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)        { *q = append(*q, x.(item)) }
func (q *queue) Pop() any {
	old := *q
	x := old[len(old)-1]
	*q = old[:len(old)-1]
	return x
}
