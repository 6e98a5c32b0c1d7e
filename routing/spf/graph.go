// Package spf keeps shortest-path distances over the mesh's graph current
// while the graph changes. It is pure; its distances are advice about cost
// and the potential that next hops must lower (downstream criterion, RFC 5286
// inequality 2).
//
// A Graph is edited; each Tree on it then catches up, at a price that grows
// with what the edits moved and not with the graph. One goroutine owns a
// Graph and its trees: they share memory to work in.
package spf

import (
	"slices"

	"guywire/mesh"
)

// Penalty is what a path pays for each LastResort node that it leads through.
// It outweighs every path of less than 67 s, and a path that leads through 31
// such nodes still has a distance that can be told from that of 32. The
// distances from such a node do not hold it: who reaches others by a leg to the
// node and the node's own distance adds it.
const Penalty mesh.Cost = 1 << 26

// Transit says what a node does for the paths of others. As the first or the
// last node of a path, every node is the same.
type Transit uint8

const (
	Full       Transit = iota // paths lead through
	Stub                      // no path leads through
	LastResort                // each path that leads through pays Penalty (drained, overloaded)
)

// none is the distance of no path. Inside, distances are exact sums, wider
// than a Cost: where sums saturate, nodes in a circle would support each other.
// A sum of none (12 days) or more counts as no path.
const none uint64 = 1<<distBits - 1

// A Graph is directed and weighted, with at most one edge from a node to
// another. Nodes are small integers, at most 1<<24 of them, so that the inner
// loops touch slices only. A number belongs to its id as long as the graph
// lives. NewGraph makes one.
type Graph struct {
	ids   []mesh.NodeID
	index map[mesh.NodeID]int
	adj   [][]neighbour // of each node, by number
	toll  []uint64      // what a path pays for leading through each node; none: forbidden

	log   []edit // the latest ones, for trees to follow
	edits uint64 // how many there were ever

	scratch scratch
}

// A neighbour is a node at the other end of an edge from or to a node.
type neighbour struct {
	node    uint32
	out, in mesh.Cost // of the edge to it and of the one from it; Infinite: no such edge
}

// An edit is a change to the edge from → to, or to all edges that leave from.
type edit struct{ from, to uint32 }

const all = ^uint32(0)

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
	g.adj = append(g.adj, nil)
	g.toll = append(g.toll, 0)
	return n
}

// Lookup gives the number of id if the graph has ever had it.
func (g *Graph) Lookup(id mesh.NodeID) (int, bool) {
	n, ok := g.index[id]
	return n, ok
}

// ID is the inverse of Node.
func (g *Graph) ID(n int) mesh.NodeID { return g.ids[n] }

// Len is how many numbers are given: every node is below it.
func (g *Graph) Len() int { return len(g.ids) }

// Set makes cost the cost of the edge from → to, adding nodes and edge when
// new. Infinite removes the edge. Zero counts as 1, because every hop must
// lower the distance. An edge from a node to itself changes nothing.
func (g *Graph) Set(from, to mesh.NodeID, cost mesh.Cost) {
	if cost >= mesh.Infinite {
		g.Remove(from, to)
		return
	}
	if from == to {
		return
	}
	f, t := uint32(g.Node(from)), uint32(g.Node(to))
	e := g.link(f, t)
	if cost = max(cost, 1); e.out == cost {
		return
	}
	e.out = cost
	g.link(t, f).in = cost
	g.record(edit{f, t})
}

// Remove takes the edge from → to away, if there is one. The nodes stay.
func (g *Graph) Remove(from, to mesh.NodeID) {
	f, okFrom := g.index[from]
	t, okTo := g.index[to]
	if okFrom && okTo {
		g.cut(uint32(f), uint32(t))
	}
}

// SetTransit says what id does for the paths of others, adding it when new, and
// reports whether that is another than before. Nodes begin as Full.
func (g *Graph) SetTransit(id mesh.NodeID, mode Transit) (changed bool) {
	var toll uint64
	switch mode {
	case Stub:
		toll = none
	case LastResort:
		toll = uint64(Penalty)
	}
	n := g.Node(id)
	if changed = g.toll[n] != toll; changed {
		g.toll[n] = toll
		g.record(edit{uint32(n), all})
	}
	return changed
}

// RemoveNode takes all edges of id away and makes it Full again. Its number
// stays with it, so that no tree takes another node for it.
func (g *Graph) RemoveNode(id mesh.NodeID) {
	n, ok := g.index[id]
	if !ok {
		return
	}
	for _, e := range slices.Backward(g.adj[n]) { // the last goes for nothing, the first would move all others
		g.cut(uint32(n), e.node)
		g.cut(e.node, uint32(n))
	}
	g.SetTransit(id, Full)
}

// Islands labels the parts into which the graph falls without the node
// removed (negative: with all nodes): two nodes have the same label when
// edges, in whichever direction, join them. Labels count from 0 in the order
// of the lowest node; the removed one has -1. Transit modes do not count.
func (g *Graph) Islands(removed int) []int {
	const unseen = -2
	label := make([]int, len(g.ids))
	for n := range label {
		label[n] = unseen
	}
	if removed >= 0 {
		label[removed] = -1
	}
	next := 0
	var reached []uint32
	for n := range label {
		if label[n] != unseen {
			continue
		}
		label[n] = next
		reached = append(reached, uint32(n))
		for len(reached) > 0 {
			u := reached[len(reached)-1]
			reached = reached[:len(reached)-1]
			for _, e := range g.adj[u] {
				if label[e.node] == unseen {
					label[e.node] = next
					reached = append(reached, e.node)
				}
			}
		}
		next++
	}
	return label
}

func (g *Graph) find(n, neigh uint32) (int, bool) {
	return slices.BinarySearchFunc(g.adj[n], neigh, func(e neighbour, n uint32) int { return int(e.node) - int(n) })
}

// link gives what n knows of neigh, as its neighbour.
func (g *Graph) link(n, neigh uint32) *neighbour {
	i, ok := g.find(n, neigh)
	if !ok {
		g.adj[n] = slices.Insert(g.adj[n], i, neighbour{neigh, mesh.Infinite, mesh.Infinite})
	}
	return &g.adj[n][i]
}

func (g *Graph) cut(from, to uint32) {
	i, ok := g.find(from, to)
	if !ok || g.adj[from][i].out == mesh.Infinite {
		return
	}
	j, _ := g.find(to, from)
	g.adj[from][i].out, g.adj[to][j].in = mesh.Infinite, mesh.Infinite
	if g.adj[from][i].in == mesh.Infinite {
		g.adj[from] = slices.Delete(g.adj[from], i, i+1)
		g.adj[to] = slices.Delete(g.adj[to], j, j+1)
	}
	g.record(edit{from, to})
}

// record keeps an edit for the trees, but never more of them than a tree would
// repair: one that lags behind further computes all distances anew.
func (g *Graph) record(e edit) {
	if len(g.log) >= repairable(len(g.ids)) {
		g.log = g.log[:0]
	}
	g.log = append(g.log, e)
	g.edits++
}

// since gives the edits that followed the first seen ones, unless some of
// them are not kept any more.
func (g *Graph) since(seen uint64) ([]edit, bool) {
	missing := g.edits - seen
	if missing > uint64(len(g.log)) {
		return nil, false
	}
	return g.log[uint64(len(g.log))-missing:], true
}
