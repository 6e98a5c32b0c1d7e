package topology

import (
	"cmp"
	"slices"
	"time"

	"guywire/mesh"
)

const (
	// settle is how long a new neighbour is up before old ones may go.
	settle = 10 * time.Second
	// hold is how long a neighbour is unwanted before it may go, so that a
	// topology which cannot make up its mind moves nothing.
	hold = time.Minute
	// giveUp is how long a wanted neighbour that does not come up keeps all old
	// ones in place. After that it keeps one in its own place, for good.
	giveUp = 2 * time.Minute
	// A drain ends when the traffic has been gone this long, or at last.
	drainMin = 2 * time.Second
	drainMax = 30 * time.Second
)

// Present is a neighbour to which there are links.
type Present struct {
	ID    mesh.NodeID
	Since time.Time // up without a break since then; zero: not up
	Busy  bool      // carries traffic
	// Needed says that the other end must not lose us yet: we are among
	// Graph.Spared of it and of the neighbours it announces.
	Needed bool
}

// Rewire leads from the neighbours a node has to those it wants, make before
// break. The zero value is ready.
type Rewire struct {
	wanted   map[mesh.NodeID]time.Time // since when
	unwanted map[mesh.NodeID]time.Time // since when, of those present
	leaving  mesh.NodeID               // zero: nobody
	drained  time.Time                 // since when leaving drains
	removing bool                      // leaving has drained
}

// Step takes what is wanted and what there is, and gives what to do now: links
// to which neighbours to make, whose links to drain (announce as a last resort,
// but forward over), whose to remove, and when to call again at the latest; the
// deadline is zero when only news can change the answer. All answers are states,
// not events: a neighbour stays in its list until it is there, or gone.
//
// New neighbours are made at once. Old ones go one at a time, those that carry
// no traffic first, each when it has been unwanted for a minute, when all wanted
// ones have been up for ten seconds or missing for two minutes, and when neither
// end still lacks a wanted neighbour in its place. A drain takes until the
// traffic is gone, 30 s at most, and is called off when one of this ends.
func (r *Rewire) Step(now time.Time, want []mesh.NodeID, have []Present) (create, drain, remove []mesh.NodeID, deadline time.Time) {
	r.wanted = since(r.wanted, now, want)
	wake := func(t time.Time) {
		if t.After(now) && (deadline.IsZero() || t.Before(deadline)) {
			deadline = t
		}
	}
	var spare []mesh.NodeID
	var counts []mesh.NodeID // neighbours to rely on: settled, or spare and up
	here := map[mesh.NodeID]Present{}
	for _, p := range have {
		here[p.ID] = p
		if !slices.Contains(want, p.ID) {
			spare = append(spare, p.ID)
			if !p.Since.IsZero() {
				counts = append(counts, p.ID)
			}
		}
	}
	r.unwanted = since(r.unwanted, now, spare)
	pending := false
	for _, id := range want {
		p, ok := here[id]
		if !ok {
			create = append(create, id)
		}
		if !p.Since.IsZero() && now.Sub(p.Since) >= settle {
			counts = append(counts, id)
			continue
		}
		pending = pending || now.Sub(r.wanted[id]) < giveUp
		if len(spare) > 0 {
			wake(r.wanted[id].Add(giveUp))
			wake(p.Since.Add(settle))
		}
	}

	kept := spared(want, counts)
	mayGo := func(id mesh.NodeID) bool {
		_, old := r.unwanted[id]
		p := here[id]
		needed := !p.Since.IsZero() && (p.Needed || slices.Contains(kept, id))
		return old && !pending && !needed && now.Sub(r.unwanted[id]) >= hold
	}
	for _, id := range spare {
		wake(r.unwanted[id].Add(hold))
	}
	if !mayGo(r.leaving) {
		r.leaving, r.removing = mesh.NodeID{}, false
	}
	if r.leaving.IsZero() {
		spare = slices.DeleteFunc(spare, func(id mesh.NodeID) bool { return !mayGo(id) })
		if len(spare) == 0 {
			return create, nil, nil, deadline
		}
		r.leaving, r.drained = slices.MinFunc(spare, func(a, b mesh.NodeID) int {
			return cmp.Or(here[a].cost()-here[b].cost(), a.Compare(b))
		}), now
	}
	p, gone := here[r.leaving], now.Sub(r.drained)
	if p.Since.IsZero() || gone >= drainMax || gone >= drainMin && !p.Busy {
		r.removing = true
	}
	if r.removing {
		return create, nil, []mesh.NodeID{r.leaving}, deadline
	}
	wake(now.Add(drainMin))
	wake(r.drained.Add(drainMax))
	return create, []mesh.NodeID{r.leaving}, nil, deadline
}

// cost orders neighbours by what it costs to lose them.
func (p Present) cost() int {
	switch {
	case p.Since.IsZero():
		return 0
	case !p.Busy:
		return 1
	}
	return 2
}

// since gives the times from when each of ids has been in the set.
func since(before map[mesh.NodeID]time.Time, now time.Time, ids []mesh.NodeID) map[mesh.NodeID]time.Time {
	after := make(map[mesh.NodeID]time.Time, len(ids))
	for _, id := range ids {
		t, ok := before[id]
		if !ok {
			t = now
		}
		after[id] = t
	}
	return after
}
