package sim

import (
	"flag"
	"fmt"
	"runtime"
	"testing"
	"time"
)

var (
	nodes = flag.Int("nodes", 0, "nodes of TestScale")
	seed  = flag.Uint64("seed", 0, "the only seed of a test with random worlds")
)

func TestScale(t *testing.T) {
	n := *nodes
	if n == 0 {
		n = 100
	}
	w := Geographic(1, n, 0).World(1)
	begun := time.Now()
	w.StartAll()
	fmt.Printf("started: %v %d events\n", time.Since(begun), w.Events)
	for w.now < 30*time.Second {
		w.Run(500 * time.Millisecond)
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		ann := 0
		var u Usage
		tun := 0
		for _, x := range w.Nodes {
			ann += x.Announced
			u.Probes += x.Sent.Probes
			u.Control += x.Sent.Control
			for _, t := range x.tunnels {
				if t.installed {
					tun++
				}
			}
		}
		pairs, ok := 0, 0
		if w.now%time.Second == 0 {
			pairs, ok = w.Reachable()
		}
		fmt.Printf("%v: wall %.1fs events %d announced %d agree %v probes %d control %d tunnels %d heap %d MB reach %d/%d queue %d loops %d graphs %d\n", w.now, time.Since(begun).Seconds(), w.Events, ann, w.Agree(), u.Probes, u.Control, tun, m.HeapAlloc>>20, ok, pairs, len(w.queue.list), len(w.Loops), len(w.graphs))
	}
}
