package model

import (
	"flag"
	"fmt"
	"testing"
	"time"
)

var seedFlag = flag.Uint64("seed", 0, "")
var nFlag = flag.Int("n", 20, "")
var traceFlag = flag.Bool("tr", false, "")
var labelsFlag = flag.Bool("labels", true, "")

func TestTry(t *testing.T) {
	start := time.Now()
	states := 0
	bad := 0
	for i := range *nFlag {
		seed := *seedFlag + uint64(i)
		opt := Options{Labels: *labelsFlag}
		if *traceFlag {
			opt.Trace = func(l string) { fmt.Println(l) }
		}
		w := New(seed, opt)
		w.Chaos(10*time.Second, 200*time.Millisecond)
		wrong := ""
		if !w.stopped {
			wrong = w.Settle(60 * time.Second)
		}
		states += w.States
		if w.Problem != "" || wrong != "" {
			bad++
			t.Errorf("seed %d: n=%d states %d\n%s\nliveness: %s", seed, len(w.nodes), w.States, w.Problem, wrong)
		} else {
			t.Logf("seed %d n=%d states %d settling %v", seed, len(w.nodes), w.States, w.Settling)
		}
	}
	t.Logf("%d bad; %d states, %.0f/s", bad, states, float64(states)/time.Since(start).Seconds())
}
