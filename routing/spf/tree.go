package spf

import (
	"slices"

	"guywire/mesh"
)

// A Tree is the distances from one node, its root, to all others.
//
// Update repairs them after edits in the manner of Ramalingam and Reps, "An
// Incremental Algorithm for a Generalization of the Shortest-Path Problem",
// J. Algorithms 21 (1996), here for batches: first it finds, in the order of
// their distances, exactly the nodes whose distance nothing supports any more;
// then Dijkstra's algorithm runs over those and over what came nearer. The
// price depends on these nodes and their edges, not on the size of the graph.
type Tree struct {
	g    *Graph
	root uint32
	seen uint64   // number of the last edit that dist follows
	dist []uint64 // of each node, by number
}

// scratch is what one Update works in, shared by the trees of a graph.
type scratch struct {
	queue   queue
	touched []uint32 // the nodes whose distance was written
	before  []uint64 // their distances before; untouched for all other nodes
}

// untouched is no distance.
const untouched = ^uint64(0)

// repairable is how many edits, and how many nodes without support, a tree of
// n nodes repairs one by one; with more of them recompute is quicker (measured
// at degree 8, n = 20 to 5000).
func repairable(n int) int { return n / 2 }

// NewTree computes the distances from the node with number root.
func NewTree(g *Graph, root int) *Tree {
	t := &Tree{g: g, root: uint32(root), seen: g.edits}
	t.grow()
	t.recompute()
	t.changes() // against no tree at all
	return t
}

// Distance gives the cost of the cheapest path from the root to n, as of the
// last Update. It is Infinite when there is no path, and less, however dear,
// when there is one.
func (t *Tree) Distance(n int) mesh.Cost {
	if n >= len(t.dist) {
		return mesh.Infinite
	}
	return saturate(t.dist[n])
}

func saturate(dist uint64) mesh.Cost {
	if dist == none {
		return mesh.Infinite
	}
	return mesh.Cost(min(dist, uint64(mesh.Infinite-1)))
}

// Update follows all edits of the graph and gives the nodes whose Distance is
// another than after the last Update, in no order. The slice is the caller's.
func (t *Tree) Update() []int {
	if t.seen == t.g.edits {
		return nil
	}
	edits, kept := t.g.since(t.seen)
	t.seen = t.g.edits
	t.grow()
	if !kept || !t.repair(edits) {
		t.recompute()
	}
	return t.changes()
}

// grow makes room for the nodes that are new in the graph.
func (t *Tree) grow() {
	n, s := len(t.g.ids), &t.g.scratch
	t.dist = slices.Grow(t.dist, n-len(t.dist))
	for len(t.dist) < n {
		t.dist = append(t.dist, none)
	}
	for len(s.before) < n {
		s.before = append(s.before, untouched)
	}
}

// repair follows the edits; false: too much is without support, and dist is
// good for nothing but recompute.
func (t *Tree) repair(edits []edit) bool {
	g, s := t.g, &t.g.scratch

	// What nothing supports has no distance. Every edge costs something, so
	// in the order of distances a node is judged after all its supporters.
	s.queue.reset()
	for _, e := range edits {
		if e.to != all {
			t.doubt(e.from, e.to)
			continue
		}
		for _, to := range g.adj[e.from] {
			t.doubt(e.from, to.node)
		}
	}
	for n, ok := s.queue.pop(t.dist); ok; n, ok = s.queue.pop(t.dist) {
		if t.support(n) <= t.dist[n] {
			continue
		}
		if len(s.touched) > repairable(len(t.dist)) {
			return false
		}
		through := t.through(n)
		t.write(n, none)
		for _, e := range g.adj[n] {
			if e.out != mesh.Infinite && t.dist[e.node] == through+uint64(e.out) {
				s.queue.push(t.dist[e.node], e.node)
			}
		}
	}

	// Offer what may have become possible, and settle.
	s.queue.reset()
	for _, n := range s.touched {
		if d := t.support(n); d < none {
			t.lower(n, d)
		}
	}
	for _, e := range edits {
		if e.to == all {
			t.spread(e.from, g.adj[e.from])
		} else if i, ok := g.find(e.from, e.to); ok {
			t.spread(e.from, g.adj[e.from][i:i+1])
		}
	}
	t.settle()
	return true
}

// recompute is Dijkstra's algorithm, from nothing.
func (t *Tree) recompute() {
	s := &t.g.scratch
	for n := range t.dist {
		t.write(uint32(n), none)
	}
	s.queue.reset()
	t.lower(t.root, 0)
	t.settle()
}

// settle is the loop of Dijkstra's algorithm.
func (t *Tree) settle() {
	q := &t.g.scratch.queue
	for n, ok := q.pop(t.dist); ok; n, ok = q.pop(t.dist) {
		t.spread(n, t.g.adj[n])
	}
}

// spread offers paths through from to some of its neighbours.
func (t *Tree) spread(from uint32, to []neighbour) {
	through := t.through(from)
	if through >= none {
		return
	}
	for _, e := range to {
		if d := through + uint64(e.out); d < t.dist[e.node] && e.out != mesh.Infinite {
			t.lower(e.node, d)
		}
	}
}

// lower gives n a distance that is less than what it has.
func (t *Tree) lower(n uint32, d uint64) {
	t.write(n, d)
	t.g.scratch.queue.push(d, n)
}

// doubt queues the node to if an edge from → to may have supported it.
func (t *Tree) doubt(from, to uint32) {
	if d := t.dist[to]; d != none && t.dist[from] < d {
		t.g.scratch.queue.push(d, to)
	}
}

// support is the least distance that the neighbours of n can give it.
func (t *Tree) support(n uint32) uint64 {
	least := none
	for _, e := range t.g.adj[n] {
		if e.in != mesh.Infinite {
			least = min(least, t.through(e.node)+uint64(e.in))
		}
	}
	return least
}

// through is the distance of n and the toll for going on from there.
func (t *Tree) through(n uint32) uint64 {
	if n == t.root {
		return 0
	}
	return t.dist[n] + t.g.toll[n]
}

func (t *Tree) write(n uint32, d uint64) {
	s := &t.g.scratch
	if s.before[n] == untouched {
		s.before[n] = t.dist[n]
		s.touched = append(s.touched, n)
	}
	t.dist[n] = d
}

// changes gives the touched nodes that were moved, and forgets all of them.
func (t *Tree) changes() []int {
	s := &t.g.scratch
	moved := make([]int, 0, len(s.touched))
	for _, n := range s.touched {
		if saturate(s.before[n]) != saturate(t.dist[n]) {
			moved = append(moved, int(n))
		}
		s.before[n] = untouched
	}
	s.touched = s.touched[:0]
	return moved
}
