package sim

import (
	"flag"
	"runtime"
	"syscall"
	"testing"
	"time"
)

var (
	nodes = flag.Int("nodes", 0, "nodes of TestScale")
	all   = flag.Bool("all", false, "minutes of faults in TestChaos")
	seed  = flag.Uint64("seed", 0, "the only seed of a test with random worlds")
)

// thin divides seeds and times of random worlds; see race_test.go.
var thin = 1

// TestScale starts a mesh of the topology's own making from nothing: thirty
// nodes, or as many as -nodes says.
func TestScale(t *testing.T) {
	n := 30
	if *nodes > 0 {
		n = *nodes
	}
	w := Geographic(1, n, 0).World(1)
	begun := cpuTime(t)
	w.StartAll()
	limit := 60 * time.Second
	for w.now < limit {
		w.Run(time.Second)
		if pairs, talking := w.Reachable(); talking == pairs && w.Agree() {
			break
		}
	}
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	took := cpuTime(t) - begun
	t.Logf("%d nodes: converged after %v of virtual time, %.1f s of CPU, %d events of %.1f µs, %d kB a node, %d MB of the machine's memory",
		n, w.now, took.Seconds(), w.Events, took.Seconds()*1e6/float64(w.Events), m.HeapAlloc>>10/uint64(n), m.Sys>>20)
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

// cpuTime is what this process has used of all cores.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		t.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
