// Package bench sets routing/spf beside gonum and beside the Dijkstra of the
// textbooks (container/heap, slices), on one graph in one run:
//
//	go test -modfile=routing/spf/testdata/bench/bench.mod -run='^$' -bench=. ./routing/spf/testdata/bench
//
// It is in testdata, with a module file of its own, so that gonum stays out
// of the product's module graph.
package bench

import (
	"container/heap"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"gonum.org/v1/gonum/graph/path"
	"gonum.org/v1/gonum/graph/simple"

	"guywire/mesh"
	"guywire/routing/spf"
)

// A link joins two nodes, at a cost for each direction.
type link struct {
	a, b        int
	there, back mesh.Cost
}

// A network is one mesh of degree 8 in three forms; numbers are the same in
// all of them.
type network struct {
	links    []link
	spf      *spf.Graph
	gonum    *simple.WeightedDirectedGraph
	textbook [][]edge
}

// newNetwork makes a ring with three random chords for each node. Costs are
// delays of 1 to 100 ms, a little different in each direction.
func newNetwork(rng *rand.Rand, n int) *network {
	w := &network{
		spf:      spf.NewGraph(),
		gonum:    simple.NewWeightedDirectedGraph(0, math.Inf(1)),
		textbook: make([][]edge, n),
	}
	for i := range n {
		w.spf.Node(id(i))
	}
	joined := map[[2]int]bool{}
	for a := range n {
		for _, b := range []int{(a + 1) % n, rng.IntN(n), rng.IntN(n), rng.IntN(n)} {
			if pair := [2]int{min(a, b), max(a, b)}; a != b && !joined[pair] {
				joined[pair] = true
				c := delay(rng)
				w.links = append(w.links, link{a, b, c, c + mesh.Cost(rng.IntN(1000))})
			}
		}
	}
	for _, l := range w.links {
		w.set(l)
		w.arc(l.a, l.b, l.there)
		w.arc(l.b, l.a, l.back)
	}
	return w
}

func id(n int) mesh.NodeID { return mesh.NodeID{byte(n >> 16), byte(n >> 8), byte(n)} }

func delay(rng *rand.Rand) mesh.Cost { return mesh.Cost(1000 + rng.IntN(99_000)) }

func (w *network) set(l link) {
	w.spf.Set(id(l.a), id(l.b), l.there)
	w.spf.Set(id(l.b), id(l.a), l.back)
}

func (w *network) arc(from, to int, c mesh.Cost) {
	w.textbook[from] = append(w.textbook[from], edge{to, c})
	w.gonum.SetWeightedEdge(w.gonum.NewWeightedEdge(simple.Node(from), simple.Node(to), float64(c)))
}

// roots are a node and its neighbours, nine in all.
func (w *network) roots() []int {
	roots := []int{0}
	for _, e := range w.textbook[0] {
		roots = append(roots, e.to)
	}
	for i := 1; len(roots) < 9; i++ {
		if !slices.Contains(roots, i) {
			roots = append(roots, i)
		}
	}
	return roots[:9]
}

// The textbook's algorithm.
type (
	edge struct {
		to   int
		cost mesh.Cost
	}
	queue []edge
)

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].cost < q[j].cost }
func (q queue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)        { *q = append(*q, x.(edge)) }
func (q *queue) Pop() any {
	last := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return last
}

func dijkstra(edges [][]edge, root int) []mesh.Cost {
	dist := slices.Repeat([]mesh.Cost{mesh.Infinite}, len(edges))
	dist[root] = 0
	q := queue{{root, 0}}
	for len(q) > 0 {
		at := heap.Pop(&q).(edge)
		if at.cost > dist[at.to] {
			continue
		}
		for _, e := range edges[at.to] {
			if d := at.cost.Add(e.cost); d < dist[e.to] {
				dist[e.to] = d
				heap.Push(&q, edge{e.to, d})
			}
		}
	}
	return dist
}

// beside runs ours and, for as long in all, each of the peers, which compute
// the trees of the roots from nothing; it reports how many times longer one
// run of theirs takes, and the hundredth part of ours that takes longest.
func (w *network) beside(b *testing.B, roots []int, ours func(run int)) {
	peers := []struct {
		name string
		tree func(root int)
		runs int
		took time.Duration
	}{
		{name: "gonum", tree: func(root int) { path.DijkstraFrom(simple.Node(root), w.gonum) }},
		{name: "textbook", tree: func(root int) { dijkstra(w.textbook, root) }},
	}
	var runs []time.Duration
	var total time.Duration
	for b.Loop() {
		start := time.Now()
		ours(len(runs))
		runs = append(runs, time.Since(start))
		total += runs[len(runs)-1]
		for i := range peers {
			p := &peers[i]
			if p.took >= total {
				continue
			}
			start := time.Now()
			for _, r := range roots {
				p.tree(r)
			}
			p.took += time.Since(start)
			p.runs++
		}
	}
	mean := float64(total) / float64(len(runs))
	slices.Sort(runs)
	b.ReportMetric(mean, "ns/op")
	b.ReportMetric(float64(runs[len(runs)*99/100]), "p99-ns/op")
	for _, p := range peers {
		b.ReportMetric(float64(p.took)/float64(p.runs)/mean, "x-"+p.name)
	}
}

func sizes(b *testing.B, all []int, run func(b *testing.B, rng *rand.Rand, w *network)) {
	for _, n := range all {
		b.Run(fmt.Sprintf("n=%d", n), func(b *testing.B) {
			rng := rand.New(rand.NewPCG(1, 2))
			run(b, rng, newNetwork(rng, n))
		})
	}
}

// One tree from nothing.
func BenchmarkTree(b *testing.B) {
	sizes(b, []int{100, 1000, 5000}, func(b *testing.B, _ *rand.Rand, w *network) {
		w.beside(b, []int{0}, func(int) { spf.NewTree(w.spf, 0) })
	})
}

// The trees of a node and its neighbours from nothing.
func BenchmarkNineTrees(b *testing.B) {
	sizes(b, []int{1000, 5000}, func(b *testing.B, _ *rand.Rand, w *network) {
		roots := w.roots()
		w.beside(b, roots, func(int) {
			for _, r := range roots {
				spf.NewTree(w.spf, r)
			}
		})
	})
}

// The same trees after one link, anywhere, was lost or has another cost; every
// second event takes that back.
func BenchmarkEvent(b *testing.B) {
	sizes(b, []int{1000, 5000}, func(b *testing.B, rng *rand.Rand, w *network) {
		roots := w.roots()
		var trees []*spf.Tree
		for _, r := range roots {
			trees = append(trees, spf.NewTree(w.spf, r))
		}
		var was link
		w.beside(b, roots, func(run int) {
			is := was
			if run%2 == 0 {
				was = w.links[rng.IntN(len(w.links))]
				is = was
				if is.there, is.back = delay(rng), delay(rng); run%4 == 0 {
					is.there, is.back = mesh.Infinite, mesh.Infinite
				}
			}
			w.set(is)
			for _, t := range trees {
				t.Update()
			}
		})
	})
}

// The three compute the same.
func TestAgreement(t *testing.T) {
	w := newNetwork(rand.New(rand.NewPCG(5, 6)), 500)
	tree, shortest, dist := spf.NewTree(w.spf, 7), path.DijkstraFrom(simple.Node(7), w.gonum), dijkstra(w.textbook, 7)
	for n := range dist {
		if a, b, c := tree.Distance(n), mesh.Cost(shortest.WeightTo(int64(n))), dist[n]; a != b || a != c {
			t.Errorf("node %d: %d, gonum %d, textbook %d", n, a, b, c)
		}
	}
}
