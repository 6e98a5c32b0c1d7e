package model

import (
	"flag"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var (
	states = flag.Int("states", 0, "states that TestModel checks at least")
	seed   = flag.Uint64("seed", 0, "first seed of TestModel; without -states the only one")
)

// budget says how much a test of the usual run checks.
const budget = 60_000

// total is the outcome of many runs.
type total struct {
	runs, states int
	settling     time.Duration
	failed       uint64
	problem      string
}

// check runs seeds from first on until enough states are checked, on all
// processors. The failure with the smallest seed is explained.
func check(t *testing.T, first uint64, enough int, opt Options) {
	t.Helper()
	start := time.Now()
	var sum total
	var mu sync.Mutex
	var next atomic.Uint64
	var group sync.WaitGroup
	next.Store(first)
	for range runtime.GOMAXPROCS(0) {
		group.Go(func() {
			for {
				mu.Lock()
				done := sum.states >= enough || sum.problem != ""
				mu.Unlock()
				if done {
					return
				}
				seed := next.Add(1) - 1
				w := Run(seed, opt)
				mu.Lock()
				sum.runs++
				sum.states += w.States
				sum.settling = max(sum.settling, w.Settling)
				if w.Problem != "" && (sum.problem == "" || seed < sum.failed) {
					sum.failed, sum.problem = seed, w.Problem
				}
				mu.Unlock()
			}
		})
	}
	group.Wait()
	if sum.problem != "" {
		t.Fatal(Explain(sum.failed, opt))
	}
	t.Logf("%d states in %d runs from seed %d, %.0f a second, no loop; at most %v until all was quiet",
		sum.states, sum.runs, first, float64(sum.states)/time.Since(start).Seconds(), sum.settling.Round(time.Millisecond))
}

// With -states and -seed this is the long check; otherwise a short one from a
// random seed.
func TestModel(t *testing.T) {
	switch {
	case *states > 0:
		check(t, *seed, *states, Options{})
	case *seed > 0:
		check(t, *seed, 1, Options{})
	default:
		check(t, rand.Uint64N(1<<40), budget, Options{})
	}
}
