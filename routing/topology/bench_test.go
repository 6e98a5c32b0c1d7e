package topology

import (
	"fmt"
	"testing"
)

func BenchmarkBuild(b *testing.B) {
	for _, n := range []int{30, 100, 500, 1000, 5000} {
		for _, dense := range []bool{false, true} {
			b.Run(fmt.Sprintf("nodes=%d/dense=%v", n, dense), func(b *testing.B) {
				w := newWorld(1, n)
				var g *Graph
				for b.Loop() {
					g = Build(w.nodes, Policy{Dense: dense})
				}
				f := w.measure(g)
				b.ReportMetric(f.degree, "degree")
				b.ReportMetric(f.mean, "stretch")
				b.ReportMetric(f.p99, "p99-stretch")
				b.ReportMetric(100*f.covered, "%-two-next-hops")
			})
		}
	}
}
