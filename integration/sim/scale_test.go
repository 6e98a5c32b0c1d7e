package sim

import (
	"flag"
	"runtime"
	"testing"
	"time"
)

var (
	nodes = flag.Int("nodes", 0, "nodes of TestScale")
	all   = flag.Bool("all", false, "minutes of faults in TestChaos")
	seed  = flag.Uint64("seed", 0, "the only seed of a test with random worlds")
)

// TestScale starts a mesh of the topology's own making from nothing: thirty
// nodes, or as many as -nodes says.
func TestScale(t *testing.T) {
	n := 30
	if *nodes > 0 {
		n = *nodes
	}
	w := Geographic(1, n, 0).World(1)
	begun := time.Now()
	w.StartAll()
	limit := 60 * time.Second
	for w.now < limit {
		w.Run(time.Second)
		if pairs, talking := w.Reachable(); talking == pairs && w.Agree() {
			break
		}
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	t.Logf("%d nodes: converged after %v of virtual time, %.1f s of ours, %d events, %d kB a node",
		n, w.now, time.Since(begun).Seconds(), w.Events, m.HeapAlloc>>10/uint64(n))
	if pairs, talking := w.Reachable(); talking < pairs {
		t.Errorf("%d of %d pairs can talk", talking, pairs)
	}
	if !w.Agree() {
		t.Error("databases differ")
	}
	for _, loop := range w.Loops {
		t.Error(loop)
	}
}
