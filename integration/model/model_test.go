package model

import (
	"flag"
	"hash/fnv"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var (
	states = flag.Int("states", 0, "states that TestModel checks at least")
	seed   = flag.Uint64("seed", 0, "first seed of TestModel; without -states the only one, of any test")
	runs   = flag.Int("runs", 0, "runs for each row of TestBrokenModelLoops; 0: until a loop is found")
)

// share is how many states a test checks at least in the usual run.
const share = 25_000

// check runs seeds from first on until enough states are checked, on all
// processors. The failure with the smallest seed is explained.
func check(t *testing.T, first uint64, enough int, opt Options) {
	t.Helper()
	workers := runtime.GOMAXPROCS(0)
	if *seed > 0 && *states == 0 {
		first, enough, workers = *seed, 0, 1
	}
	start := time.Now()
	var (
		mu       sync.Mutex
		group    sync.WaitGroup
		next     atomic.Uint64
		done     int
		found    int
		settling time.Duration
		broken   []uint64
	)
	next.Store(first)
	for range workers {
		group.Go(func() {
			for {
				seed := next.Add(1) - 1
				w := Run(seed, opt)
				mu.Lock()
				done, found, settling = done+1, found+w.States, max(settling, w.Settling)
				if w.Problem != "" {
					broken = append(broken, seed)
				}
				stop := found >= enough || len(broken) > 0
				mu.Unlock()
				if stop {
					return
				}
			}
		})
	}
	group.Wait()
	if len(broken) > 0 {
		bad := slices.Min(broken)
		t.Fatalf("%s\nto repeat: go test ./integration/model -run '%s$' -args -seed %d", Explain(bad, opt), t.Name(), bad)
	}
	t.Logf("%d states in %d runs from seed %d, %.0f a second, no loop; at most %v until all was quiet",
		found, done, first, float64(found)/time.Since(start).Seconds(), settling.Round(time.Millisecond))
}

// With -states, from -seed on, this is the long check; with -seed alone it
// repeats one run. In the usual run it is a short check from a random seed.
func TestModel(t *testing.T) {
	if *states > 0 {
		check(t, max(*seed, 1), *states, Options{})
	} else {
		check(t, rand.Uint64N(1<<40), share, Options{})
	}
}

// Runs that found what others had not.
func TestRunsThatOnceBroke(t *testing.T) {
	for seed, found := range map[uint64]string{
		726057860711: "a new table from a restarted neighbour left a detour in force that nobody needed",
	} {
		if w := Run(seed, Options{}); w.Problem != "" {
			t.Errorf("%s: %s", found, Explain(seed, Options{}))
		}
	}
}

// P2: under whatever happens no packet can loop, after any event.
func TestP2AnyInstant(t *testing.T) { check(t, 1, 2*share, Options{}) }

// P3: neither can it when any next hops are missing at any nodes.
func TestP3AnySubset(t *testing.T) { check(t, 1_000, share, Options{Walk: true}) }

// P6: when nothing happens any more, all feasible distances are the advised
// ones and the best paths are in use. Every run ends with that; these are
// those in which most has to be mended.
func TestP6Liveness(t *testing.T) { check(t, 2_000, share, Options{Graph: &Ring}) }

// P7: nothing is confirmed or promised before the kernel follows it; neither
// do reports rise along an edge in force.
func TestP7AckOrder(t *testing.T) { check(t, 3_000, share, Options{Labels: true}) }

// settled makes a world in which all is quiet.
func settled(t *testing.T, seed uint64, opt Options) *World {
	t.Helper()
	opt.Calm = true
	w := New(seed, opt)
	if wrong := w.Settle(settleWithin); wrong != "" || w.Problem != "" {
		t.Fatalf("seed %d: %s %s", seed, wrong, w.Problem)
	}
	return w
}

// P1: with equal databases and nothing happening, the union of all next hops
// has no cycle, and the feasible distance falls along every one of them.
func TestP1Static(t *testing.T) {
	for seed := range uint64(15) {
		w := settled(t, seed, Options{})
		for p, prefix := range w.space.prefixes {
			for _, n := range w.nodes {
				for k := range n.kernel.legs[p].all {
					to := w.nodes[k]
					if to.kernel.local.has(p) {
						continue
					}
					from, _ := n.router.Feasibility(w.space.keys[p])
					next, _ := to.router.Feasibility(w.space.keys[p])
					if next.Feasible >= from.Feasible {
						t.Errorf("seed %d: %v: %s goes by %d and uses %s, which goes by %d", seed, prefix, n, from.Feasible, to, next.Feasible)
					}
				}
			}
			if left := leftover(w, p); len(left) > 0 {
				t.Errorf("seed %d: %v: there is a cycle among %v", seed, prefix, left)
			}
		}
	}
}

// leftover takes away, again and again, who has no next hop left for a prefix,
// and gives who remains: those on a cycle or before it.
func leftover(w *World, p int) []*node {
	left := slices.Clone(w.nodes)
	for {
		n := len(left)
		left = slices.DeleteFunc(left, func(n *node) bool {
			return n.kernel.local.has(p) || !slices.ContainsFunc(left, func(k *node) bool {
				return n.kernel.legs[p].has(k.i) && k.kernel.admits.has(n.i)
			})
		})
		if len(left) == n {
			return left
		}
	}
}

// P4: one adjacency fails, and only its two ends know. Whatever next hops are
// chosen, a packet arrives or is dropped, and is nowhere twice.
func TestP4SingleFailure(t *testing.T) {
	for seed := range uint64(5) {
		w := settled(t, 100+seed, Options{Graph: &RandomRing})
		for _, p := range w.pairs {
			for _, e := range []*end{p.a, p.b} {
				e.node.router.DropNeighbour(e.peer.id)
				e.up = false
				// What it says stays unheard.
				e.node.router.Poll(w.time())
				plan := e.node.newPlan()
				for _, op := range e.node.operations(plan) {
					op()
				}
				e.node.router.Committed(plan.step)
			}
			for a := range w.every.all {
				for _, n := range w.nodes {
					follow(t, w, n, a, nil)
				}
			}
			for _, e := range []*end{p.a, p.b} {
				e.node.refresh(e)
				e.node.driver.dirty = true
				e.node.wake(0)
			}
			w.Run(w.now + time.Second)
			if wrong := w.Settle(settleWithin); wrong != "" || w.Problem != "" {
				t.Fatalf("seed %d: after %s and %s lost each other: %s%s", w.Seed, p.a.node, p.b.node, wrong, w.Problem)
			}
		}
	}
}

// follow takes a packet along every next hop.
func follow(t *testing.T, w *World, at *node, a int, path []*node) {
	if slices.Contains(path, at) {
		t.Fatalf("seed %d: a packet for %v comes back: %v to %v", w.Seed, w.space.addrs[a], path, at)
	}
	path = append(path, at)
	for k := range w.next(at.i, a).all {
		follow(t, w, w.nodes[k], a, path)
	}
}

// The same seed is the same run, to the last word.
func TestSameSeedSameRun(t *testing.T) {
	run := func(seed uint64) (sum uint64, states int) {
		h := fnv.New64()
		w := Run(seed, Options{Labels: true, Walk: true, Trace: func(line string) { h.Write([]byte(line)) }})
		return h.Sum64(), w.States
	}
	for _, seed := range []uint64{77, 78, 79} {
		a, n := run(seed)
		if b, m := run(seed); a != b || n != m {
			t.Errorf("seed %d: two runs differ, %d and %d states", seed, n, m)
		}
	}
}

// The model sees loops where there are some: it is broken on purpose. With
// -runs this measures how often.
func TestBrokenModelLoops(t *testing.T) {
	for _, m := range []struct {
		name   string
		broken Broken
		first  uint64 // seed; the usual run need not search long
	}{
		{"shortest paths", ShortestPath, 1},
		{"transit of neighbours held down is let in", IgnoresHolds, 11},
		{"steps are reported before the kernel has them", CommitsEarly, 1},
	} {
		t.Run(m.name, func(t *testing.T) {
			const enough = 60
			done, looped, states, looping := 0, 0, 0, 0.0
			for done < *runs || *runs == 0 && looped == 0 && done < enough {
				w := Run(m.first+uint64(done), Options{Broken: m.broken, Graph: &RandomRing, Nodes: 14})
				done++
				states += w.States
				looping += w.LoopShare()
				if w.Loops > 0 {
					looped++
				}
			}
			t.Logf("loops in %d of %d runs (%d states), %.4f %% of the time", looped, done, states, 100*looping/float64(done))
			if looped == 0 {
				t.Error("no loop was found")
			}
		})
	}
}
