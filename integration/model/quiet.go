package model

import (
	"fmt"
	"time"

	"guywire/mesh"
	"guywire/routing"
	"guywire/routing/spf"
)

// Settle lets time pass until all is quiet and as it should be, at most limit.
// It gives what is still wrong.
func (w *World) Settle(limit time.Duration) (wrong string) {
	from := w.now
	for {
		wrong = w.unquiet()
		if wrong == "" || w.stopped || w.now-from >= limit {
			w.Settling = w.now - from
			return wrong
		}
		w.Run(w.now + 250*time.Millisecond)
	}
}

// unquiet says what is not as it should be when nothing has happened for a
// while: in every database the same, every session open, every feasible
// distance the advised one, the best path in every kernel.
func (w *World) unquiet() string {
	for _, n := range w.nodes {
		if n.router == nil {
			return n.String() + " has no agent"
		}
		if n.driver.plan != nil || n.driver.looking || n.driver.dirty || n.router.Version() != n.driver.version {
			return n.String() + " is still writing its kernel"
		}
		if !n.router.Settled() {
			return n.String() + " is not settled"
		}
		if n.log != len(w.history)-1 {
			return n.String() + " does not follow the log"
		}
		if a, b := n.router.Digest(), w.nodes[0].router.Digest(); a != b {
			return fmt.Sprintf("%s has another database than n0", n)
		}
		for _, e := range n.ends {
			switch {
			case !e.up:
				return fmt.Sprintf("%s has no link to %s", n, e.peer)
			case !n.router.Usable(e.peer.id):
				return fmt.Sprintf("%s cannot use %s", n, e.peer)
			case !n.router.Admits(e.peer.id) || !n.kernel.admits.has(e.peer.i):
				return fmt.Sprintf("%s does not let %s in", n, e.peer)
			case n.router.WaitsFor(e.peer.id):
				return fmt.Sprintf("%s waits for %s", n, e.peer)
			}
		}
	}
	best := w.oracle()
	for _, n := range w.nodes {
		if wrong := n.wrong(best); wrong != "" {
			return wrong
		}
	}
	return ""
}

// wrong compares a node with the shortest distances of all nodes.
func (n *node) wrong(best [][]mesh.Cost) string {
	w := n.w
	distance := map[int]mesh.Cost{}
	for _, d := range n.router.Table().Destinations {
		for _, prefix := range d.Prefixes {
			distance[w.space.index[prefix]] = d.Distance
		}
	}
	for p, prefix := range w.space.prefixes {
		if n.kernel.local.has(p) {
			continue
		}
		f, ok := n.router.Feasibility(w.space.keys[p])
		if !ok && best[p][n.i] >= mesh.Infinite {
			continue
		}
		if f.Reported != f.Distance || f.Feasible != f.Distance || f.Active {
			return fmt.Sprintf("%s: %v: %s", n, prefix, n.view(p))
		}
		d, listed := distance[p]
		if !listed {
			d = mesh.Infinite
		}
		if d != best[p][n.i] {
			return fmt.Sprintf("%s is %d from %v and believes %d", n, best[p][n.i], prefix, d)
		}
		if d >= mesh.Infinite {
			continue
		}
		onBest := false
		for _, e := range n.ends {
			if n.kernel.legs[p].has(e.peer.i) && e.best().Add(w.through(e.peer, p, best)) == d {
				onBest = true
			}
		}
		if !onBest {
			return fmt.Sprintf("%s does not use its best path to %v but %v; %s", n, prefix, names(n.kernel.legs[p]), n.view(p))
		}
		for k := range n.kernel.legs[p].all {
			if kernel := &w.nodes[k].kernel; !kernel.local.has(p) && kernel.legs[p] == 0 {
				return fmt.Sprintf("%s sends packets for %v to n%d, where they end", n, prefix, k)
			}
		}
	}
	return ""
}

// best is what the end's direction counts for: either end drains both.
func (e *end) best() mesh.Cost {
	c := e.works()
	if (e.drain || e.other.drain) && c < mesh.Infinite {
		c = min(c.Add(routing.DrainPenalty), mesh.Infinite-1)
	}
	return c
}

// through is what a path pays from n on when it leads through n.
func (w *World) through(n *node, p int, best [][]mesh.Cost) mesh.Cost {
	if w.history[n.log][p].has(n.i) || p == n.i {
		return 0
	}
	switch {
	case n.noTransit:
		return mesh.Infinite
	case n.drained:
		return best[p][n.i].Add(spf.Penalty)
	}
	return best[p][n.i]
}

// oracle gives the distance of every node to every prefix, by repeating what
// Bellman and Ford do until nothing changes.
func (w *World) oracle() [][]mesh.Cost {
	best := make([][]mesh.Cost, len(w.space.prefixes))
	for p := range best {
		best[p] = make([]mesh.Cost, len(w.nodes))
		for i := range best[p] {
			best[p][i] = mesh.Infinite
			if w.history[len(w.history)-1][p].has(i) || p == i {
				best[p][i] = 0
			}
		}
		for again := true; again; {
			again = false
			for _, n := range w.nodes {
				for _, e := range n.ends {
					if d := e.best().Add(w.through(e.peer, p, best)); d < best[p][n.i] {
						best[p][n.i], again = d, true
					}
				}
			}
		}
	}
	return best
}
