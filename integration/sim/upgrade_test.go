package sim

import (
	"testing"
	"time"

	"guywire/discovery"
	"guywire/mesh/core"
)

// tunnelsBetween counts the installed tunnels of one node to another.
func tunnelsBetween(w *World, from, to int) (n int) {
	for _, t := range w.Nodes[from].tunnels {
		if t.peer == w.Nodes[to] && t.installed {
			n++
		}
	}
	return n
}

// pathHolds runs for a time, and fails when there is no way from 0 to 1 or back at
// any moment.
func pathHolds(t *testing.T, w *World, d time.Duration) (most int) {
	t.Helper()
	for end := w.now + d; w.now < end; {
		w.Run(time.Millisecond)
		for i := range 2 {
			if ways, why := w.Trace(i, 1-i); ways == 0 {
				t.Fatalf("%s: no way from %d: %s", w.now, i, why)
			}
		}
		most = max(most, tunnelsBetween(w, 0, 1))
	}
	return most
}

// A better path takes over without a moment in which there is none: the new tunnel
// stands before the old one goes, at both ends.
func TestUpgradeMakesBeforeBreak(t *testing.T) {
	for seed := range uint64(10 / thin) {
		w := New(seed, Uplinks(2, "isp1"))
		list := told(w)
		story(t, list)
		class := discovery.ClassCarrier
		w.Class = func(End, End) discovery.PathClass { return class }
		w.KernelTime = func(*Node) time.Duration { return time.Duration(2+w.rng.IntN(60)) * time.Millisecond }
		w.StartAll()
		w.Run(20 * time.Second)
		w.Nodes[0].step(core.Surveyed{Uplink: discovery.Uplink{Name: "isp1", NAT: discovery.NATSymmetric}})
		if most := pathHolds(t, w, 90*time.Second); most != 1 {
			t.Errorf("seed %d: %d tunnels although nothing better is there", seed, most)
		}
		class = discovery.ClassDirect
		if most := pathHolds(t, w, 90*time.Second); most != 2 {
			t.Errorf("seed %d: at most %d tunnels stood side by side", seed, most)
		}
		for i := range 2 {
			links := w.Nodes[i].Core.Links()
			if len(links) != 1 || links[0].Record.Class != discovery.ClassDirect || links[0].Record.Link.Lane != 1 {
				t.Errorf("seed %d: node %d has %+v", seed, i, links)
			}
		}
		// And back to the first lane, when there is yet something better.
		class = discovery.ClassLAN
		w.Nodes[0].step(core.Surveyed{Uplink: discovery.Uplink{Name: "isp1", NAT: discovery.NATEasy}})
		pathHolds(t, w, 30*time.Second)
		if links := w.Nodes[1].Core.Links(); len(links) != 1 || links[0].Record.Class != discovery.ClassLAN || links[0].Record.Link.Lane != 0 {
			t.Errorf("seed %d: %+v", seed, links)
		}
	}
}

// A better path that does not hold is given up, and nothing is lost by it: the old
// tunnel stays.
func TestUpgradeThatDies(t *testing.T) {
	w := New(3, Uplinks(2, "isp1"))
	list := told(w)
	story(t, list)
	class := discovery.ClassCarrier
	w.Class = func(End, End) discovery.PathClass { return class }
	w.StartAll()
	w.Run(20 * time.Second)
	class = discovery.ClassDirect
	old := w.Nodes[0].tunnels[0]
	w.Silenced = func(t *tunnel) bool { return t.link.Lane == 1 }
	if most := pathHolds(t, w, 3*time.Minute); most != 2 {
		t.Errorf("at most %d tunnels", most)
	}
	w.Run(15 * time.Second)
	if links := w.Nodes[0].Core.Links(); len(links) != 1 || links[0].Record.Device != old.device {
		t.Errorf("%+v", links)
	}
	w.Silenced = nil
	pathHolds(t, w, 3*time.Minute)
	if links := w.Nodes[0].Core.Links(); len(links) != 1 || links[0].Record.Class != discovery.ClassDirect {
		t.Errorf("%+v", links)
	}
}
