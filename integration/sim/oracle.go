package sim

import (
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strings"
	"time"

	"guywire/routing/wire"
)

const (
	// healBound is how long a path must have been there for its ends to talk,
	// failureBound how long they may be interrupted while there is one,
	// silentBound while an agent does not run, whose kernel forwards by what it
	// was told last, and deathBound how long after a node was switched off.
	healBound    = 10 * time.Second
	failureBound = 2 * time.Second
	silentBound  = 5 * time.Second
	deathBound   = 3 * time.Second
	// quietBound is how long after the last announcement all know the same.
	quietBound = 2 * time.Second
	// lossy is the loss beyond which a path is no path.
	lossy = 0.2
)

// An Oracle watches a world from outside and computes what ought to be.
type Oracle struct {
	// Violations are what was wrong, a few lines each.
	Violations []string
	// Worst is the longest time for which a pair could not talk although some
	// path had been there for ten seconds, Interrupted how often that began.
	Worst       time.Duration
	Interrupted int
	// Looks counts how often everything was looked at.
	Looks int

	w       *World
	every   time.Duration
	down    map[[2]int]*outage
	talking map[[2]int]bool // the pairs that matter; nil: all
	silent  time.Duration   // when an agent last did not run
	blamed  bool            // for different databases, until they are equal again
}

// outage is a pair that cannot talk.
type outage struct {
	since   time.Duration
	covered bool // a path was there
	blamed  bool
}

// Watch lets an oracle look at the world regularly from now on. When there is
// traffic between some pairs only, it is they that must be able to talk: an
// idle link is not known to be cut before somebody tries it.
func (w *World) Watch(every time.Duration) *Oracle {
	o := &Oracle{w: w, every: every, down: map[[2]int]*outage{}}
	if len(w.Flows) > 0 && !w.Traffic {
		o.talking = map[[2]int]bool{}
		for _, f := range w.Flows {
			o.talking[[2]int{f.From, f.To}], o.talking[[2]int{f.To, f.From}] = true, true
		}
	}
	w.After(0, o.look)
	return o
}

func (o *Oracle) violation(format string, args ...any) {
	o.Violations = append(o.Violations, fmt.Sprintf("%.3f s: ", o.w.now.Seconds())+fmt.Sprintf(format, args...))
}

func (o *Oracle) look() {
	w := o.w
	w.After(o.every, o.look)
	o.Looks++
	w.judge()
	stable := w.joinedFor(healBound)
	lost := time.Duration(-deathBound)
	for _, n := range w.Nodes {
		switch {
		case n.Dead:
			lost = max(lost, n.diedAt)
		case !n.Running:
			o.silent = w.now
		}
	}
	for b, reach := range w.everyone() {
		for a := range w.Nodes {
			key := [2]int{a, b.Index}
			if o.talking != nil && !o.talking[key] || a == b.Index {
				continue
			}
			out := o.down[key]
			switch {
			case !w.Nodes[a].Running || !b.Running || reach.has(a):
				delete(o.down, key)
				continue
			case out == nil:
				out = &outage{since: w.now}
				o.down[key] = out
			}
			if !stable[a].has(b.Index) {
				continue
			}
			if !out.covered {
				out.covered = true
				o.Interrupted++
			}
			o.Worst = max(o.Worst, w.now-out.since)
			if w.now > max(out.since+failureBound, lost+deathBound, min(out.since+silentBound, o.silent+failureBound)) && !out.blamed {
				out.blamed = true
				_, problem := w.Trace(a, b.Index)
				o.violation("%d cannot talk to %d since %.3f s, though a path is there: %s", a, b.Index, out.since.Seconds(), problem)
			}
		}
	}
	if w.now-w.announced <= quietBound {
		return
	}
	blamed := false
	for _, a := range w.Nodes {
		for b := range stable[a.Index].all {
			different := w.differences(a, w.Nodes[b], stable)
			if different == "" {
				continue
			}
			if !o.blamed {
				o.violation("%d and %d know different things %v after the last announcement: %s", a.Index, b, w.now-w.announced, different)
			}
			o.blamed, blamed = true, true
		}
	}
	o.blamed = blamed
}

// differences names what only one of two nodes knows of those from which a path
// to both has been there: what others have announced cannot have come.
func (w *World) differences(a, b *Node, joined []set) string {
	if a.Core.Digest() == b.Core.Digest() {
		return ""
	}
	known := map[wire.LSAKey]int{}
	for i, n := range []*Node{a, b} {
		for _, s := range n.Core.Announcements() {
			if key, ok := s.Key(); ok {
				known[key] += 1 + i
			}
		}
	}
	var list []string
	for key, who := range known {
		if origin := w.byID[key.Origin].Index; who < 3 && joined[origin].has(a.Index) && joined[origin].has(b.Index) {
			list = append(list, fmt.Sprintf("%d has %d.%d of %d", []*Node{a, b}[who-1].Index, key.Fragment, key.Seq, origin))
		}
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}

// A set is nodes, as bits by index.
type set []uint64

func (w *World) newSet() set { return make(set, (len(w.Nodes)+63)/64) }
func (s set) has(i int) bool { return s[i/64]>>(i%64)&1 != 0 }
func (s set) add(i int)      { s[i/64] |= 1 << (i % 64) }
func (s set) all(yield func(i int) bool) {
	for at, word := range s {
		for ; word != 0; word &= word - 1 {
			if !yield(at*64 + bits.TrailingZeros64(word)) {
				return
			}
		}
	}
}

// judge looks which links could work now: both agents run, have taken the
// routes over and want the link, and packets get through in both directions.
func (w *World) judge() {
	for _, n := range w.Nodes {
		for _, t := range n.tunnels {
			good := t.wanted && t.far != nil && t.far.wanted && n.ready() && t.peer.ready()
			if good {
				_, good = w.path(t.here, t.there)
			}
			if good {
				_, good = w.path(t.there, t.here)
			}
			good = good && w.faults.loss(n.Index, t.peer.Index) < lossy && w.faults.loss(t.peer.Index, n.Index) < lossy
			if good && !t.isGood {
				t.good = w.now
			}
			t.isGood = good
		}
	}
}

// ready reports whether a node's agent runs and decides what its kernel does.
func (n *Node) ready() bool { return n.Running && n.Core.Settled() }

// joinedFor gives, for every node, those to which there has been a path for
// some time, the node itself included. It goes by the true state of the world
// alone, and by who may forward for others.
func (w *World) joinedFor(d time.Duration) []set {
	all := make([]set, len(w.Nodes))
	var queue []*Node
	for i, from := range w.Nodes {
		s := w.newSet()
		s.add(i)
		all[i] = s
		queue = append(queue[:0], from)
		for len(queue) > 0 {
			n := queue[len(queue)-1]
			queue = queue[:len(queue)-1]
			if n != from && w.state.Nodes[n.ID].NoTransit {
				continue
			}
			for _, t := range n.tunnels {
				if t.isGood && w.now-t.good >= d && !s.has(t.peer.Index) {
					s.add(t.peer.Index)
					queue = append(queue, t.peer)
				}
			}
		}
	}
	return all
}

// everyone gives, for every member, the nodes whose packets arrive there now,
// whatever legs they take and whichever of its prefixes they are for.
func (w *World) everyone() func(yield func(*Node, set) bool) {
	return func(yield func(*Node, set) bool) {
		t := newTracer(w)
		for _, n := range w.Nodes {
			if _, member := w.state.Nodes[n.ID]; !member {
				continue
			}
			all := w.newSet()
			for i := range all {
				all[i] = ^uint64(0)
			}
			for _, p := range n.prefixes() {
				t.to(w.columnOf[p])
				for i := range w.Nodes {
					if !t.arrives(i) {
						all[i/64] &^= 1 << (i % 64)
					}
				}
			}
			if !yield(n, all) {
				return
			}
		}
	}
}

// A tracer follows packets to one destination from everywhere at once. For
// each node it computes from whom packets there would arrive, by every leg.
type tracer struct {
	w     *World
	words int
	from  []uint64 // words for each node: whose packets arrive
	seen  []uint8  // 0: not yet, 1: being looked at, 2: done
}

func newTracer(w *World) *tracer {
	words := (len(w.Nodes) + 63) / 64
	return &tracer{w: w, words: words, from: make([]uint64, words*len(w.Nodes)), seen: make([]uint8, len(w.Nodes))}
}

func (t *tracer) set(i int) set { return t.from[i*t.words : (i+1)*t.words] }

func (t *tracer) arrives(i int) bool { return t.set(i).has(i) }

func (t *tracer) to(column int32) {
	clear(t.from)
	clear(t.seen)
	c := &t.w.columns[column]
	home := t.set(c.owner.Index)
	for i := range home {
		home[i] = ^uint64(0)
	}
	t.seen[c.owner.Index] = 2
	for _, n := range t.w.Nodes {
		t.visit(n, column, c)
	}
}

func (t *tracer) visit(n *Node, column int32, c *column) {
	if t.seen[n.Index] != 0 {
		return // or it is a loop
	}
	t.seen[n.Index] = 1
	mine := t.set(n.Index)
	for i, l := range n.fib.legs(column) {
		p := l.tunnel.peer
		if !l.tunnel.works() || !l.tunnel.far.listed || l.tunnel.far.held && (p != c.owner || !c.local) {
			clear(mine)
			break
		}
		if t.visit(p, column, c); t.seen[p.Index] == 1 {
			clear(mine)
			break
		}
		lets, theirs := l.tunnel.far.covered(), t.set(p.Index)
		for k := range mine {
			if i == 0 {
				mine[k] = theirs[k] & lets[k]
			} else {
				mine[k] &= theirs[k] & lets[k]
			}
		}
	}
	t.seen[n.Index] = 2
}

// prefixes are the node's.
func (n *Node) prefixes() []netip.Prefix {
	return []netip.Prefix{n.Prefix, netip.PrefixFrom(n.addr4, 32), netip.PrefixFrom(n.addr6, 128)}
}

// Trace follows packets from one node to the site of another along every leg
// that the kernels have, and says how many ways lead there and what is wrong
// with the first that does not.
func (w *World) Trace(from, to int) (ways int, problem string) {
	return w.trace(w.Nodes[from], w.Nodes[to], w.Nodes[from], nil)
}

func (w *World) trace(at, to, source *Node, visited []int) (ways int, problem string) {
	if at == to {
		return 1, ""
	}
	if slices.Contains(visited, at.Index) {
		return 0, fmt.Sprintf("loop: %v back to %d", visited, at.Index)
	}
	visited = append(slices.Clone(visited), at.Index)
	legs := at.fib.legs(w.columnOf[to.Prefix])
	if len(legs) == 0 {
		return 0, fmt.Sprintf("%v: no route", visited)
	}
	for _, l := range legs {
		t, why := l.tunnel, ""
		switch {
		case !t.joined():
			why = "has no such tunnel"
		case !t.works():
			why = "is cut off"
		case !t.far.listed:
			why = "does not know the link"
		case t.far.held:
			why = "holds the neighbour down"
		case !set(t.far.covered()).has(source.Index):
			why = "refuses the source"
		}
		if why != "" {
			problem = fmt.Sprintf("%v: %d by %s %s", visited, t.peer.Index, t.device, why)
			continue
		}
		more, p := w.trace(t.peer, to, source, visited)
		ways += more
		if p != "" {
			problem = p
		}
	}
	return ways, problem
}

// Agree reports whether all agents that run know the same announcements.
func (w *World) Agree() bool {
	var digest *uint64
	for _, n := range w.Nodes {
		if !n.Running {
			continue
		}
		d := n.Core.Digest()
		if digest != nil && *digest != d {
			return false
		}
		digest = &d
	}
	return true
}

// Reachable counts the ordered pairs of members that run, and those of them
// that can talk.
func (w *World) Reachable() (pairs, talking int) {
	for b, reach := range w.everyone() {
		for _, a := range w.Nodes {
			if a == b || !a.Running || !b.Running {
				continue
			}
			pairs++
			if reach.has(a.Index) {
				talking++
			}
		}
	}
	return pairs, talking
}

// NextHops are the nodes to which a node's kernel sends packets for the site
// of another.
func (w *World) NextHops(at, to int) (next []int) {
	for _, l := range w.Nodes[at].fib.legs(w.columnOf[w.Nodes[to].Prefix]) {
		next = append(next, l.tunnel.peer.Index)
	}
	return next
}
