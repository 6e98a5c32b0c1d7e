package sim

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func same(n int, uplinks ...string) [][]string {
	out := make([][]string, n)
	for i := range out {
		out[i] = uplinks
	}
	return out
}

// reachable asserts that every ordered pair has a way and no table leads astray.
func reachable(t *testing.T, w *World) {
	t.Helper()
	for a := range w.Nodes {
		for b := range w.Nodes {
			if ways, problem := w.Trace(a, b); ways == 0 || problem != "" {
				t.Errorf("%d → %d: %d ways, %s", a, b, ways, problem)
			}
		}
	}
	if t.Failed() {
		t.Log("\n" + strings.Join(w.Facts, "\n"))
		t.FailNow()
	}
}

func TestColdStart(t *testing.T) {
	for _, n := range []int{2, 6, 12, 40} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			w := New(1, same(n, "isp1"))
			w.Traffic = true
			w.StartAll()
			w.Run(15 * time.Second)
			reachable(t, w)
		})
	}
}

func TestSameSeedSameRun(t *testing.T) {
	run := func() string {
		w := New(7, same(8, "isp1", "isp2"))
		w.Traffic = true
		w.StartAll()
		w.Run(10 * time.Second)
		w.SetUplink(3, "isp1", false)
		w.Run(5 * time.Second)
		return strings.Join(w.Facts, "\n")
	}
	if a, b := run(), run(); a != b {
		t.Fatalf("two runs differ:\n%s\n---\n%s", a, b)
	}
}

// A silently cut direct link: traffic must take another way within the time
// that detection may take, and come back after.
func TestSilentCut(t *testing.T) {
	w := New(2, same(6, "isp1"))
	cut := false
	w.Delay = func(a, b End) (time.Duration, bool) {
		pair := a.Node+b.Node == 1 // 0–1
		return time.Duration(5+a.Node+b.Node) * time.Millisecond, !cut || !pair
	}
	w.Traffic = true
	w.StartAll()
	w.Run(10 * time.Second)
	reachable(t, w)
	cut = true
	w.Run(400 * time.Millisecond)
	reachable(t, w)
	cut = false
	w.Run(5 * time.Second)
	reachable(t, w)
	if devices, _ := lookup(w.Nodes[0].Kernel, w.Nodes[1].Prefix); len(devices) == 0 || !strings.Contains(devices[0], "n1") {
		t.Errorf("0 → 1 does not go direct again: %v", devices)
	}
}

// Losing an uplink with its carrier moves everything before the next probe.
func TestUplinkLost(t *testing.T) {
	w := New(3, same(4, "isp1", "isp2"))
	w.Traffic = true
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
			w := New(4, same(5, "isp1"))
			// Node 0 is the only way from 1 and 2 to 3 and 4.
			w.Delay = func(a, b End) (time.Duration, bool) {
				return 10 * time.Millisecond, a.Node == 0 || b.Node == 0
			}
			w.Traffic = true
			w.StartAll()
			w.Run(10 * time.Second)
			reachable(t, w)
			w.Check = func(w *World) { reachable(t, w) }
			w.Kill(0)
			w.Run(away)
			w.Start(0)
			w.Run(15 * time.Second)
		})
	}
}

// A node that dies whole is routed around; what it alone reached is refused.
func TestNodeDeath(t *testing.T) {
	w := New(5, same(6, "isp1"))
	dead := -1
	w.Delay = func(a, b End) (time.Duration, bool) {
		d := 60 * time.Millisecond
		if a.Node == 0 || b.Node == 0 {
			d = 5 * time.Millisecond // everyone's best way leads through 0
		}
		return d, a.Node != dead && b.Node != dead
	}
	w.Traffic = true
	w.StartAll()
	w.Run(10 * time.Second)
	reachable(t, w)
	dead = 0
	w.Kill(0)
	w.Run(time.Second)
	for a := 1; a < 6; a++ {
		for b := 1; b < 6; b++ {
			if ways, problem := w.Trace(a, b); ways == 0 || problem != "" {
				t.Errorf("%d → %d: %d ways, %s", a, b, ways, problem)
			}
		}
	}
	if t.Failed() {
		t.Log("\n" + strings.Join(w.Facts, "\n"))
	}
}
