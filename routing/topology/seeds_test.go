package topology

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

func TestSeeds(t *testing.T) {
	for _, dense := range []bool{false, true} {
		for _, n := range []int{30, 60, 100, 200, 400} {
			var avg, cov, st, lo, hi, p99 float64
			lo = 1
			const runs = 8
			for s := range uint64(runs) {
				w := newWorld(s*77+5, n)
				f := measure(w, Build(w.nodes, Policy{Dense: dense}), rand.New(rand.NewPCG(1, 1)), 100)
				avg += f.avg / runs
				cov += f.cover / runs
				st += f.mean / runs
				p99 += f.p99 / runs
				lo = min(lo, f.cover)
				hi = max(hi, f.avg)
			}
			fmt.Printf("%4d %-5v avg %.2f (max %.2f) cover %.2f%% (min %.2f) stretch %.3f p99 %.2f\n", n, dense, avg, hi, cov*100, lo*100, st, p99)
		}
	}
}
