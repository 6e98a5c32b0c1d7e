package sim

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"guywire/mesh/core"
)

// told keeps what the cores tell of, for when a test fails.
func told(w *World) *[]string {
	list := new([]string)
	w.Told = func(n *Node, f core.Fact) {
		*list = append(*list, fmt.Sprintf("%8.3f n%d %s (%s)", f.At.Sub(Epoch).Seconds(), n.Index, f.Sentence, f.Cause))
	}
	return list
}

// reachable asserts that every ordered pair has a way, that no table leads
// astray, and that nothing ever looped.
func reachable(t *testing.T, w *World, among ...int) {
	t.Helper()
	for a := range w.Nodes {
		for b := range w.Nodes {
			if len(among) > 0 && (!slices.Contains(among, a) || !slices.Contains(among, b)) {
				continue
			}
			if ways, problem := w.Trace(a, b); ways == 0 || problem != "" {
				t.Errorf("%.3f s: %d → %d: %d ways, %s", w.now.Seconds(), a, b, ways, problem)
			}
		}
	}
	for _, loop := range w.Loops {
		t.Error(loop)
	}
}

// story shows what was told, of a test that failed.
func story(t *testing.T, list *[]string) {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			t.Log("\n" + strings.Join(*list, "\n"))
		}
	})
}

func TestColdStart(t *testing.T) {
	for _, n := range []int{2, 6, 12, 20} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			w := New(1, Uplinks(n, "isp1"))
			w.Traffic = true
			story(t, told(w))
			w.StartAll()
			w.Run(15 * time.Second)
			reachable(t, w)
		})
	}
}

func TestSameSeedSameRun(t *testing.T) {
	run := func() string {
		w := New(7, Uplinks(8, "isp1", "isp2"))
		list := told(w)
		w.Traffic = true
		w.StartAll()
		w.Run(10 * time.Second)
		w.SetUplink(3, "isp1", false)
		w.Run(5 * time.Second)
		return strings.Join(*list, "\n")
	}
	if a, b := run(), run(); a != b {
		t.Fatalf("two runs differ:\n%s\n---\n%s", a, b)
	}
}

// A silently cut direct link: traffic must take another way within the time
// that detection may take, and come back after.
func TestSilentCut(t *testing.T) {
	w := New(2, Uplinks(6, "isp1"))
	w.Delay = func(a, b End) (time.Duration, bool) {
		return time.Duration(5+a.Node+b.Node) * time.Millisecond, true
	}
	w.Traffic = true
	story(t, told(w))
	w.StartAll()
	w.Run(10 * time.Second)
	reachable(t, w)
	w.Cut(0, 1)
	w.Run(400 * time.Millisecond)
	reachable(t, w)
	w.Heal(0, 1)
	w.Run(5 * time.Second)
	reachable(t, w)
	if next := w.NextHops(0, 1); !slices.Contains(next, 1) {
		t.Errorf("0 → 1 does not go direct again: %v", next)
	}
}

// Losing an uplink with its carrier moves everything before the next probe.
func TestUplinkLost(t *testing.T) {
	w := New(3, Uplinks(4, "isp1", "isp2"))
	w.Traffic = true
	story(t, told(w))
	w.StartAll()
	w.Run(10 * time.Second)
	w.SetUplink(2, "isp1", false)
	w.Run(2 * kernelTime)
	for b := range w.Nodes {
		if ways, problem := w.Trace(2, b); ways == 0 || problem != "" {
			t.Errorf("2 → %d: %d ways, %s", b, ways, problem)
		}
	}
	w.Run(time.Second)
	reachable(t, w)
}

// An agent that is killed and started again changes nobody's reachability at
// any moment: its kernel forwards, its neighbours see that it does.
func TestAgentRestartLosesNothing(t *testing.T) {
	for _, away := range []time.Duration{100 * time.Millisecond, time.Second, 5 * time.Second, 30 * time.Second} {
		t.Run(away.String(), func(t *testing.T) {
			w := New(4, Uplinks(5, "isp1"))
			// Node 0 is the only way from 1 and 2 to 3 and 4.
			w.Delay = func(a, b End) (time.Duration, bool) {
				return 10 * time.Millisecond, a.Node == 0 || b.Node == 0
			}
			w.Traffic = true
			story(t, told(w))
			w.StartAll()
			w.Run(10 * time.Second)
			reachable(t, w)
			w.Check = func(w *World) {
				if !t.Failed() {
					reachable(t, w)
				}
			}
			w.Kill(0)
			w.Run(away)
			w.Start(0)
			w.Run(15 * time.Second)
		})
	}
}

// A node that dies whole is routed around; what it alone reached is refused.
func TestNodeDeath(t *testing.T) {
	w := New(5, Uplinks(6, "isp1"))
	w.Delay = func(a, b End) (time.Duration, bool) {
		if a.Node == 0 || b.Node == 0 {
			return 5 * time.Millisecond, true // everyone's best way leads through 0
		}
		return 60 * time.Millisecond, true
	}
	w.Traffic = true
	story(t, told(w))
	w.StartAll()
	w.Run(10 * time.Second)
	reachable(t, w)
	w.Die(0)
	w.Run(time.Second)
	reachable(t, w, 1, 2, 3, 4, 5)
}
