package spf

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// Against a list, over all distances that a path can have.
func TestQueue(t *testing.T) {
	const n = 64
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 2))
		var q queue
		dist := slices.Repeat([]uint64{none}, n)
		last, waiting := uint64(0), 0
		for range 400 {
			if rng.IntN(3) > 0 {
				node := uint32(rng.IntN(n))
				if d := last + rng.Uint64N(1<<rng.IntN(distBits+1)); d <= dist[node] && d < none {
					if dist[node] == none {
						waiting++
					}
					dist[node] = d
					q.push(d, node)
				}
				continue
			}
			node, ok := q.pop(dist)
			if ok != (waiting > 0) {
				t.Fatalf("seed %d: pop says %v with %d nodes waiting", seed, ok, waiting)
			}
			if !ok {
				continue
			}
			if d := dist[node]; d != slices.Min(dist) {
				t.Fatalf("seed %d: popped %d before %d", seed, d, slices.Min(dist))
			}
			last, dist[node] = dist[node], none
			waiting--
		}
	}
}

// An abandoned queue leaves nothing behind, and begins at 0 again.
func TestQueueReset(t *testing.T) {
	var q queue
	dist := []uint64{3, none - 1, none - 9}
	q.push(dist[1], 1)
	q.pop(dist)
	q.push(dist[1], 1)
	q.reset()
	for _, node := range []uint32{2, 0} {
		q.push(dist[node], node)
	}
	for _, want := range []uint32{0, 2} {
		if node, ok := q.pop(dist); !ok || node != want {
			t.Errorf("popped %d, %v, want %d", node, ok, want)
		}
	}
	q.push(dist[1], 1)
	q.reset()
	dist[0] = none - 2
	q.push(dist[0], 0) // into the same bucket
	q.pop(dist)
	if node, ok := q.pop(dist); ok {
		t.Errorf("popped %d from before the reset", node)
	}
}
