package topology

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"os"
	"guywire/mesh"
	"time"
)

// hop is what forwarding adds to a round trip.
const hop = 200 * time.Microsecond

type arc struct {
	to int
	d  time.Duration
}

func arcs(w *world, g *Graph) [][]arc {
	index := w.index()
	out := make([][]arc, len(w.nodes))
	for _, e := range g.Edges() {
		i, j := index[e.A], index[e.B]
		d := w.rtt(i, j) + hop
		out[i] = append(out[i], arc{j, d})
		out[j] = append(out[j], arc{i, d})
	}
	return out
}

const far = time.Duration(1 << 60)

type pq []arc

func (q pq) Len() int           { return len(q) }
func (q pq) Less(i, j int) bool { return q[i].d < q[j].d }
func (q pq) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *pq) Push(x any)        { *q = append(*q, x.(arc)) }
func (q *pq) Pop() any          { o := *q; x := o[len(o)-1]; *q = o[:len(o)-1]; return x }

func spf(g [][]arc, root int) []time.Duration {
	dist := make([]time.Duration, len(g))
	for i := range dist {
		dist[i] = far
	}
	dist[root] = 0
	q := pq{{root, 0}}
	for len(q) > 0 {
		at := heap.Pop(&q).(arc)
		if at.d > dist[at.to] {
			continue
		}
		for _, a := range g[at.to] {
			if d := at.d + a.d; d < dist[a.to] {
				dist[a.to] = d
				heap.Push(&q, arc{a.to, d})
			}
		}
	}
	return dist
}

type figures struct {
	avg       float64
	max, min  int
	mean, p95, p99, top float64
	cover     float64
}

func measure(w *world, g *Graph, rng *rand.Rand, dests int) figures {
	as := arcs(w, g)
	n := len(as)
	var f figures
	f.min = n
	sum := 0
	for _, a := range as {
		sum += len(a)
		f.max = max(f.max, len(a))
		f.min = min(f.min, len(a))
	}
	f.avg = float64(sum) / float64(n)
	var st []float64
	two, all := 0, 0
	for _, d := range rng.Perm(n)[:min(n, dests)] {
		dist := spf(as, d)
		for s := range n {
			if s == d {
				continue
			}
			st = append(st, float64(dist[s])/float64(w.rtt(s, d)+hop))
			hops := 0
			for _, a := range as[s] {
				if dist[a.to] < dist[s] {
					hops++
				}
			}
			all++
			if hops >= 2 {
				two++
			}
		}
	}
	slices.Sort(st)
	for _, x := range st {
		f.mean += x / float64(len(st))
	}
	f.p95, f.p99, f.top = st[len(st)*95/100], st[len(st)*99/100], st[len(st)-1]
	f.cover = float64(two) / float64(all)
	return f
}

func TestProto(t *testing.T) {
	for _, dense := range []bool{false, true} {
		for _, n := range []int{30, 100, 300, 1000} {
			w := newWorld(uint64(n), n)
			if os.Getenv("EXACT") != "" {
				for i := range w.nodes {
					w.nodes[i].RTT = map[mesh.NodeID]time.Duration{}
					for j := range i {
						w.nodes[i].RTT[w.nodes[j].ID] = w.rtt(i, j)
					}
				}
			}
			at := time.Now()
			g := Build(w.nodes, Policy{Dense: dense})
			took := time.Since(at)
			f := measure(w, g, rand.New(rand.NewPCG(1, 1)), 200)
			why := map[Reason]int{}
			for _, e := range g.Edges() {
				why[e.Reason]++
			}
			fmt.Printf("%5d %-5v avg %.2f min %d max %d stretch %.3f p95 %.2f p99 %.2f max %.1f cover %.2f%% %v %v\n", n, dense, f.avg, f.min, f.max, f.mean, f.p95, f.p99, f.top, f.cover*100, took, why)
		}
	}
}
