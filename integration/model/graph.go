package model

import "slices"

// A Graph says which nodes are neighbours.
type Graph struct {
	Name  string
	Edges func(n int, random func(int) int) [][2]int
}

// The graphs of random worlds.
var (
	RandomRing = Graph{"ring and two random links per node", func(n int, random func(int) int) (out [][2]int) {
		for i := range n {
			out = append(out, [2]int{i, (i + 1) % n}, [2]int{i, random(n)}, [2]int{i, random(n)})
		}
		return out
	}}
	Line = Graph{"line", func(n int, _ func(int) int) (out [][2]int) {
		for i := range n - 1 {
			out = append(out, [2]int{i, i + 1})
		}
		return out
	}}
	Ring = Graph{"ring", func(n int, _ func(int) int) (out [][2]int) {
		for i := range n {
			out = append(out, [2]int{i, (i + 1) % n})
		}
		return out
	}}
	Grid = Graph{"grid", func(n int, _ func(int) int) (out [][2]int) {
		width := 2
		for width*width < n {
			width++
		}
		for i := range n {
			if (i+1)%width != 0 && i+1 < n {
				out = append(out, [2]int{i, i + 1})
			}
			if i+width < n {
				out = append(out, [2]int{i, i + width})
			}
		}
		return out
	}}
	Complete = Graph{"complete", func(n int, _ func(int) int) (out [][2]int) {
		for i := range n {
			for j := range i {
				out = append(out, [2]int{j, i})
			}
		}
		return out
	}}
)

// graph draws how many nodes there are and which are neighbours.
func (w *World) graph() (nodes int, edges [][2]int) {
	g := []Graph{RandomRing, RandomRing, RandomRing, Line, Ring, Grid, Complete}[w.rng.IntN(7)]
	if w.opt.Graph != nil {
		g = *w.opt.Graph
	}
	nodes = 3 + w.rng.IntN(12)
	switch {
	case g.Name == Complete.Name, w.rng.IntN(3) == 0:
		nodes = 3 + w.rng.IntN(4)
	case w.rng.IntN(25) == 0:
		nodes = maxNodes
	}
	if w.opt.Nodes > 0 {
		nodes = w.opt.Nodes
	}
	for _, e := range g.Edges(nodes, w.rng.IntN) {
		e = [2]int{min(e[0], e[1]), max(e[0], e[1])}
		if e[0] != e[1] && !slices.Contains(edges, e) {
			edges = append(edges, e)
		}
	}
	return nodes, edges
}
