package topology

import (
	"math"
	"slices"
	"time"
)

// choices is how many candidates of a kind a node asks in turn for room.
const choices = 16

// distances fills row with the round trip times from i, µs: measured, else
// predicted, else unknown.
func (b *builder) distances(i int, row []uint32) {
	for j := range b.nodes {
		row[j] = unknown
		if b.placed[i] && b.placed[j] {
			row[j] = uint32(b.nodes[i].Coordinate.Distance(b.nodes[j].Coordinate) / time.Microsecond)
		}
	}
	for _, m := range b.measured[i] {
		row[m.to] = m.rtt
	}
}

// wish is whom a node would like links to, the dearest first.
type wish struct {
	near   []int32
	strata [][]int32
}

// wishes ranks, for every node, the transit nodes by distance.
func (b *builder) wishes() []wish {
	n := len(b.transit)
	// In units of 2^-16 ranks: rounding hides what processors disagree on.
	bounds := make([]uint64, b.strata+1)
	for s := range bounds {
		bounds[s] = uint64(math.Round(math.Pow(float64(n), float64(s)/float64(b.strata)) * (1 << 16)))
	}
	all := make([]wish, len(b.nodes))
	row := make([]uint32, len(b.nodes))
	var known []uint64 // distance and number
	for i := range all {
		strata := make([]best, b.strata)
		// Each node shifts the bounds by a fraction of a rank, else one join
		// would move all nodes' bounds at once.
		shift := b.key[i] >> 48
		put := func(rank, j int) {
			for s := range strata {
				if at := uint64(rank)<<16 + shift; at >= bounds[s] && at < bounds[s+1] {
					strata[s].put(b.score(i, j, forStratum+uint64(s)), int32(j))
				}
			}
		}
		var strangers best
		known = known[:0]
		b.distances(i, row)
		for _, j := range b.transit {
			switch {
			case j == i:
			case row[j] != unknown:
				known = append(known, uint64(row[j])<<32|uint64(j))
			default:
				put(int(b.draw(i, j, forRank)%uint64(n)), j)
				strangers.put(b.score(i, j, forNearest), int32(j))
			}
		}
		slices.Sort(known)
		for rank, x := range known {
			if rank < choices {
				all[i].near = append(all[i].near, int32(uint32(x)))
			}
			put(rank*n/len(known), int(uint32(x)))
		}
		all[i].near = append(all[i].near, strangers.to...)
		for _, s := range strata {
			all[i].strata = append(all[i].strata, s.to)
		}
	}
	return all
}

// best holds the nodes with the highest scores, the highest first.
type best struct {
	score []uint64
	to    []int32
}

func (t *best) put(score uint64, to int32) {
	at := len(t.score)
	for at > 0 && (t.score[at-1] < score || t.score[at-1] == score && t.to[at-1] > to) {
		at--
	}
	if at < choices {
		t.score = slices.Insert(t.score, at, score)
		t.to = slices.Insert(t.to, at, to)
		t.score, t.to = t.score[:min(len(t.score), choices)], t.to[:min(len(t.to), choices)]
	}
}
