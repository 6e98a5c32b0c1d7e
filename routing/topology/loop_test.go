package topology

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"guywire/mesh"
	"guywire/routing/topology/coordinate"
)

// Coordinates choose links and links measure coordinates. From nothing, the loop
// comes to rest at paths nearly as short as with the best of guesses, and the
// noise of measurements moves nothing any more.
func TestCoordinatesAndLinksComeToRest(t *testing.T) {
	const n = 40
	w, rng := newWorld(3, n), rand.New(rand.NewPCG(1, 1))
	ideal := w.measure(Build(w.nodes, Policy{}))
	index := w.index()
	nodes, publishers := slices.Clone(w.nodes), make([]*coordinate.Publisher, n)
	start := time.Unix(1000, 0)
	for i := range nodes {
		nodes[i].Coordinate = coordinate.Published{}
		publishers[i] = coordinate.NewPublisher(start, rand.New(rand.NewPCG(uint64(i), 4)), coordinate.Report{})
	}
	published := func(id mesh.NodeID) coordinate.Published { return nodes[index[id]].Coordinate }
	g := Build(nodes, Policy{})
	news, changes := 0, 0
	for now := start; now.Before(start.Add(30 * time.Minute)); now = now.Add(10 * time.Second) {
		minute := int(now.Sub(start).Minutes())
		if minute < 20 {
			news, changes = 0, 0
		}
		for i := range nodes {
			for _, id := range g.Neighbours(nodes[i].ID) {
				noise := 1 + 0.03*math.Abs(rng.NormFloat64())
				publishers[i].Observe(now, id, time.Duration(float64(w.rtt(i, index[id]))*noise))
			}
			report, changed := publishers[i].Update(now, published)
			nodes[i].Coordinate, nodes[i].RTT = report.Coordinate, report.RTT
			if changed {
				news++
			}
		}
		if now.Sub(start)%time.Minute == 0 {
			next := Build(nodes, Policy{})
			changes += difference(g, next, mesh.NodeID{})
			g = next
			if minute%5 == 0 {
				t.Logf("minute %2d: %v", minute, w.measure(g))
			}
		}
	}
	f := w.measure(g)
	var wrong []float64
	for i := range n {
		for j := range i {
			direct := w.rtt(i, j).Seconds()
			wrong = append(wrong, math.Abs(nodes[i].Coordinate.Distance(nodes[j].Coordinate).Seconds()-direct)/direct)
		}
	}
	slices.Sort(wrong)
	t.Logf("median error of predictions %.2f; ideal: %v", wrong[len(wrong)/2], ideal)
	if wrong[len(wrong)/2] > 0.3 || f.mean > 1.1*ideal.mean || f.covered < 0.92 || f.degree > 9.5 {
		t.Errorf("median error %.2f, %v", wrong[len(wrong)/2], f)
	}
	if news > n/5 || changes > n/2 {
		t.Errorf("in the last ten minutes %d reports were news and %d links changed", news, changes)
	}
}
