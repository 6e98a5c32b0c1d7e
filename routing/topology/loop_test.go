package topology

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"guywire/mesh"
	"guywire/routing/topology/coordinate"
)

func TestLoop(t *testing.T) {
	n := 100
	if s := os.Getenv("N"); s != "" {
		n, _ = strconv.Atoi(s)
	}
	w := newWorld(3, n)
	ideal := measure(w, Build(w.nodes, Policy{}), rand.New(rand.NewPCG(1, 1)), 100)
	rng := rand.New(rand.NewPCG(1, 1))
	nodes := slices.Clone(w.nodes)
	pubs := make([]*coordinate.Publisher, n)
	now := time.Unix(0, 0)
	for i := range nodes {
		nodes[i].Coordinate = coordinate.Published{}
		nodes[i].RTT = nil
		pubs[i] = coordinate.NewPublisher(now, rand.New(rand.NewPCG(uint64(i), 4)), coordinate.Report{})
	}
	index := w.index()
	of := func(id mesh.NodeID) coordinate.Published { return nodes[index[id]].Coordinate }
	g := Build(nodes, Policy{})
	fmt.Println("ideal", ideal)
	count := 0
	for tick := range 6*60*2 {
		now = now.Add(10 * time.Second)
		for i := range nodes {
			for _, id := range g.Neighbours(nodes[i].ID) {
				j := index[id]
				rtt := time.Duration(float64(w.rtt(i, j)) * (1 + math.Abs(rng.NormFloat64())*0.02))
				pubs[i].Observe(now, id, rtt)
			}
			if os.Getenv("PATHS") != "" {
				for range 4 {
					if j := rng.IntN(n); j != i {
						pubs[i].Observe(now, nodes[j].ID, w.rtt(i, j))
					}
				}
			}
			r, changed := pubs[i].Update(now, of)
			nodes[i].Coordinate, nodes[i].RTT = r.Coordinate, r.RTT
			if changed {
				count++
			}
		}
		if tick%6 == 5 {
			next := Build(nodes, Policy{})
			k, _ := diff(g, next, mesh.NodeID{})
			g = next
			if tick%60 == 59 || tick < 120 && tick % 12 == 11 {
				var errs, best []float64
				usable := 0
				for i := range nodes {
					if nodes[i].Coordinate.Settled {
						usable++
					}
				}
				for range 2000 {
					i, j := rng.IntN(n), rng.IntN(n)
					if i != j && !nodes[i].Coordinate.IsZero() && !nodes[j].Coordinate.IsZero() {
						errs = append(errs, math.Abs(float64(nodes[i].Coordinate.Distance(nodes[j].Coordinate)-w.rtt(i, j)))/float64(w.rtt(i, j)))
						best = append(best, math.Abs(float64(w.nodes[i].Coordinate.Distance(w.nodes[j].Coordinate)-w.rtt(i, j)))/float64(w.rtt(i, j)))
					}
				}
				slices.Sort(errs)
				slices.Sort(best)
				f := measure(w, g, rand.New(rand.NewPCG(1, 1)), 100)
				fmt.Printf("%6v published %d usable %d edges changed %d, error median %.2f p90 %.2f (guess %.2f), stretch %.3f cover %.3f deg %.2f\n", now.Sub(time.Unix(0, 0)), count, usable, k, errs[len(errs)/2], errs[len(errs)*9/10], best[len(best)/2], f.mean, f.cover, f.avg)
				count = 0
			}
		}
	}
}
