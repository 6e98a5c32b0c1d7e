package sim

import (
	"math"
	"math/rand/v2"
	"time"

	"guywire/store"
)

// A Map describes an internet: how many nodes there are, and which of them can
// connect, with what one-way delay.
type Map struct {
	Nodes int
	Delay func(a, b int) (time.Duration, bool)
	// Roads are pairs between which there must be a link; nil: the mesh
	// chooses. Where few can connect at all, its choice would leave gaps.
	Roads [][2]int
}

// World makes a world of the map, its nodes having the same uplinks.
func (m Map) World(seed uint64, uplinks ...string) *World {
	if len(uplinks) == 0 {
		uplinks = []string{"isp1"}
	}
	w := New(seed, Uplinks(m.Nodes, uplinks...))
	w.Delay = func(a, b End) (time.Duration, bool) { return m.Delay(a.Node, b.Node) }
	var policy store.Topology
	for _, r := range m.Roads {
		policy.Pinned = append(policy.Pinned, store.MakePair(w.Nodes[r[0]].ID, w.Nodes[r[1]].ID))
	}
	w.SetTopology(policy)
	return w
}

// hop is the delay between two nodes of a regular map.
const hop = 5 * time.Millisecond

// roads makes a map in which only some pairs can connect.
func roads(n int, roads [][2]int) Map {
	joined := map[[2]int]bool{}
	for _, r := range roads {
		joined[r], joined[[2]int{r[1], r[0]}] = true, true
	}
	return Map{Nodes: n, Roads: roads, Delay: func(a, b int) (time.Duration, bool) { return hop, joined[[2]int{a, b}] }}
}

// Line is n nodes in a row.
func Line(n int) Map {
	var list [][2]int
	for i := range n - 1 {
		list = append(list, [2]int{i, i + 1})
	}
	return roads(n, list)
}

// Ring is n nodes in a circle.
func Ring(n int) Map {
	var list [][2]int
	for i := range n {
		list = append(list, [2]int{i, (i + 1) % n})
	}
	return roads(n, list)
}

// Grid is width × height nodes, each joined to those beside, above and below.
func Grid(width, height int) Map {
	var list [][2]int
	for i := range width * height {
		if (i+1)%width != 0 {
			list = append(list, [2]int{i, i + 1})
		}
		if i+width < width*height {
			list = append(list, [2]int{i, i + width})
		}
	}
	return roads(width*height, list)
}

// Geographic is n nodes in the towns of a globe. Towns stand in a few regions,
// and the larger ones have most of the nodes. Delays are those of light in
// fibre along a detour of 1.3 to 3 times the great circle, another for each
// pair of towns, and of two access lines of 0.5 to 7 ms. A share of the nodes
// is behind a NAT that no two of them can connect through.
func Geographic(seed uint64, n int, hidden float64) Map {
	const (
		regions, towns = 10, 150
		radius         = 6371.0 // km
		speed          = 200.0  // km in a millisecond
	)
	rng := rand.New(rand.NewPCG(seed, 6371))
	var centres, places [][3]float64
	for range regions {
		centres = append(centres, direction(rng, [3]float64{}, 1))
	}
	for range towns {
		places = append(places, direction(rng, centres[rng.IntN(regions)], 0.25))
	}
	town, access, behind := make([]int, n), make([]float64, n), make([]bool, n)
	for i := range n {
		town[i] = int(float64(towns) * math.Pow(rng.Float64(), 2.5))
		access[i] = 0.5 + 6.5*rng.Float64()
		behind[i] = rng.Float64() < hidden
	}
	delays := make([]time.Duration, towns*towns)
	for a := range towns {
		for b := range a + 1 {
			p, q := places[a], places[b]
			angle := math.Acos(min(max(p[0]*q[0]+p[1]*q[1]+p[2]*q[2], -1), 1))
			d := time.Duration(angle * radius / speed * (1.3 + 1.7*rng.Float64()) * float64(time.Millisecond))
			delays[a*towns+b], delays[b*towns+a] = d, d
		}
	}
	m := Map{Nodes: n, Delay: func(a, b int) (time.Duration, bool) {
		a, b = a%n, b%n // who joins later lives where another does
		last := time.Duration((access[a] + access[b]) * float64(time.Millisecond))
		return delays[town[a]*towns+town[b]] + last, !behind[a] || !behind[b]
	}}
	return m
}

// direction draws a point on the unit sphere about a centre.
func direction(rng *rand.Rand, centre [3]float64, spread float64) [3]float64 {
	length := 0.0
	for i := range centre {
		centre[i] += spread * rng.NormFloat64()
		length += centre[i] * centre[i]
	}
	for i := range centre {
		centre[i] /= math.Sqrt(length)
	}
	return centre
}
