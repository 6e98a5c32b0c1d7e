package topology

import (
	"fmt"
	"testing"
)

func BenchmarkBuild(b *testing.B) {
	for _, n := range []int{100, 500, 1000, 5000} {
		for _, dense := range []bool{false, true} {
			b.Run(fmt.Sprintf("nodes=%d/dense=%v", n, dense), func(b *testing.B) {
				nodes := newWorld(1, n).nodes
				for b.Loop() {
					Build(nodes, Policy{Dense: dense})
				}
			})
		}
	}
}
