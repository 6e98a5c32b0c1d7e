package topology

import (
	"math"
	"math/rand/v2"
	"time"

	"guywire/mesh"
	"guywire/routing/topology/coordinate"
)

// A world is a synthetic internet: cities in clusters on a sphere, the popular
// ones with most of the sites; light in fibre at 200 km a millisecond along
// detours of 1.3 to 3 times the great circle, drawn per pair of cities; 1 to
// 15 ms of access line.
type world struct {
	nodes  []Node
	city   []int
	access []float64 // ms
	places [][3]float64
	detour [][]float64
	seed   uint64
}

func newWorld(seed uint64, n int) *world {
	rng := rand.New(rand.NewPCG(seed, 7))
	const regions, cities = 12, 240
	w := &world{seed: seed}
	point := func() (p [3]float64) {
		for i := range p {
			p[i] = rng.NormFloat64()
		}
		return p
	}
	unit := func(p [3]float64) [3]float64 {
		l := math.Sqrt(p[0]*p[0] + p[1]*p[1] + p[2]*p[2])
		return [3]float64{p[0] / l, p[1] / l, p[2] / l}
	}
	var centres [regions][3]float64
	for i := range centres {
		centres[i] = unit(point())
	}
	weights := make([]float64, cities)
	total := 0.0
	for c := range cities {
		p, off := centres[rng.IntN(regions)], point()
		for i := range p {
			p[i] += 0.2 * off[i]
		}
		w.places = append(w.places, unit(p))
		weights[c] = 1 / float64(c+3)
		total += weights[c]
	}
	w.detour = make([][]float64, cities)
	for a := range cities {
		w.detour[a] = make([]float64, cities)
		for b := range a + 1 {
			w.detour[a][b] = 1.3 + 1.7*rng.Float64()
			w.detour[b][a] = w.detour[a][b]
		}
	}
	for range n {
		x, c := rng.Float64()*total, 0
		for ; x > weights[c] && c < cities-1; c++ {
			x -= weights[c]
		}
		var node Node
		for i := range node.ID {
			node.ID[i] = byte(rng.Uint32())
		}
		node.Reachable, node.Transit = true, true
		w.nodes = append(w.nodes, node)
		w.city = append(w.city, c)
		w.access = append(w.access, 1+14*rng.Float64())
	}
	for i := range w.nodes {
		w.nodes[i].Coordinate = w.guess(i)
	}
	return w
}

// rtt is the true round trip between two nodes on the direct path.
func (w *world) rtt(i, j int) time.Duration {
	a, b := w.city[i], w.city[j]
	p, q := w.places[a], w.places[b]
	dot := p[0]*q[0] + p[1]*q[1] + p[2]*q[2]
	km := 6371 * math.Acos(min(max(dot, -1), 1))
	ms := 2*km/200*w.detour[a][b] + w.access[i] + w.access[j]
	return time.Duration(ms * float64(time.Millisecond))
}

// guess is a coordinate that knows the place and the access line but nothing
// of detours, as good as coordinates get.
func (w *world) guess(i int) coordinate.Published {
	const earth = 6371.0 * 2 / 200 * 2.1 * 1000 // µs of round trip per radius
	p := coordinate.Published{Height: int32(w.access[i] * 1000), Error: 20, Settled: true}
	for k, x := range w.places[w.city[i]] {
		p.Vector[k] = int32(x * earth)
	}
	return p
}

func (w *world) index() map[mesh.NodeID]int {
	m := map[mesh.NodeID]int{}
	for i, n := range w.nodes {
		m[n.ID] = i
	}
	return m
}
