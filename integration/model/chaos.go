package model

import (
	"crypto/ed25519"
	"net/netip"
	"slices"
	"time"

	"guywire/mesh"
	"guywire/routing"
)

// Chaos disturbs the mesh for some time and then lets everything heal. It
// returns at the moment from which all is well outside of the routers.
func (w *World) Chaos() {
	lasts := time.Duration(2+w.rng.IntN(10)) * time.Second
	pace := []time.Duration{30, 100, 300}[w.rng.IntN(3)] * time.Millisecond
	if w.long {
		lasts, pace = 150*time.Second, 3*time.Second
	}
	some := w.nodes
	if w.rng.IntN(2) == 0 { // it always hits the same two
		n := w.nodes[w.rng.IntN(len(w.nodes))]
		some = []*node{n, n.ends[w.rng.IntN(len(n.ends))].peer}
	}
	themes := disturbances // all, or two of them
	if w.rng.IntN(2) == 0 {
		i, j := w.rng.IntN(len(disturbances)), w.rng.IntN(len(disturbances))
		themes = []disturbance{disturbances[i], disturbances[j]}
	}
	w.quiet = false
	end := w.now + lasts
	var next func()
	next = func() {
		if w.quiet {
			return
		}
		w.States++
		d := themes[w.rng.IntN(len(themes))]
		n := some[w.rng.IntN(len(some))]
		e := n.ends[w.rng.IntN(len(n.ends))]
		if w.rng.IntN(2) == 0 {
			e = e.other
		}
		lasting := []time.Duration{20 * time.Millisecond, 100 * time.Millisecond, time.Second, 5 * time.Second}[w.rng.IntN(4)]
		if w.long {
			lasting *= 16
		}
		d(n, e, w.upTo(lasting))
		w.after(w.upTo(2*pace), next)
	}
	w.after(w.upTo(2*pace), next)
	w.Run(end)
	if !w.stopped {
		w.heal()
	}
}

// A disturbance happens to a node, or to one of its adjacencies, seen from
// either end. What passes lasts for the given time.
type disturbance func(n *node, e *end, lasting time.Duration)

var disturbances = []disturbance{
	(*node).linkFails, (*node).linksFail, (*node).isolate,
	(*node).falseAlarm, (*node).falseAlarm, (*node).suspect, (*node).suspect,
	(*node).reprice, (*node).drain, (*node).transit,
	(*node).crash, (*node).crash, (*node).crashBoth,
	(*node).relog, (*node).relog, (*node).writeFails, (*node).gossip,
}

// linkFails lets one link fail.
func (n *node) linkFails(e *end, lasting time.Duration) {
	l := n.w.rng.IntN(len(e.seen))
	e.cut(l)
	n.w.after(lasting, func() { e.restore(l) })
}

// linksFail lets all links to a neighbour fail.
func (n *node) linksFail(e *end, lasting time.Duration) {
	for l := range e.seen {
		e.cut(l)
		n.w.after(lasting, func() { e.restore(l) })
	}
}

// isolate lets all links of a node fail.
func (n *node) isolate(_ *end, lasting time.Duration) {
	for _, e := range n.ends {
		n.linksFail(e, lasting)
	}
}

// falseAlarm makes one end believe that all links to the other failed.
// Sometimes the other end is told so.
func (n *node) falseAlarm(e *end, lasting time.Duration) {
	w := n.w
	w.trace("%s gives %s up for nothing", e.node, e.peer)
	told := w.rng.IntN(3) == 0
	for l := range e.seen {
		e.wrong(l, lasting)
		if told {
			w.after(w.upTo(w.delay), func() { e.other.wrong(l, lasting) })
		}
	}
}

// suspect makes one end doubt all its links to the other.
func (n *node) suspect(e *end, lasting time.Duration) {
	doubt := func(v bool) {
		e.doubt = v
		n.w.trace("%s doubts %s: %v", e.node, e.peer, v)
		if e.up {
			e.node.refresh(e)
		}
	}
	doubt(true)
	n.w.after(lasting, func() { doubt(false) })
}

// reprice changes what some links cost, in one direction.
func (n *node) reprice(e *end, _ time.Duration) {
	for range 1 + n.w.rng.IntN(3) {
		l := n.w.rng.IntN(len(e.cost))
		e.cost[l] = n.w.cost()
		n.w.trace("link %d of %s to %s costs %d", l, e.node, e.peer, e.cost[l])
	}
	if e.up {
		e.node.refresh(e)
	}
}

// drain makes an end use an adjacency as the last resort, or ends that.
func (n *node) drain(e *end, _ time.Duration) {
	e.drain = !e.drain
	n.w.trace("%s drains its links to %s: %v", e.node, e.peer, e.drain)
	if e.up {
		e.node.refresh(e)
	}
}

// transit changes whether a node lets others through.
func (n *node) transit(*end, time.Duration) {
	if n.w.rng.IntN(4) == 0 {
		n.noTransit = !n.noTransit
	} else {
		n.drained = !n.drained
	}
	n.w.trace("%s: transit none=%v drained=%v", n, n.noTransit, n.drained)
	if n.router != nil {
		n.router.SetTransit(n.noTransit, n.drained)
		n.wake(0)
	}
}

// writeFails makes writing a kernel fail, every other time.
func (n *node) writeFails(_ *end, lasting time.Duration) {
	n.failing = n.w.now + lasting
	n.w.trace("%s cannot write its kernel until %v", n, n.failing)
}

// gossip brings announcements from anywhere.
func (n *node) gossip(*end, time.Duration) {
	from := n.w.nodes[n.w.rng.IntN(len(n.w.nodes))]
	if n.router != nil && from.router != nil {
		n.router.Learn(n.w.time(), from.router.Announcements())
		n.wake(0)
	}
}

// crash ends an agent, or its whole machine, for some time.
func (n *node) crash(_ *end, lasting time.Duration) {
	w := n.w
	if n.router == nil || w.quiet {
		return
	}
	reboot := w.rng.IntN(4) == 0
	w.trace("%s stops, reboot=%v", n, reboot)
	n.kill()
	if reboot {
		n.reboot()
	}
	w.after(lasting, func() {
		switch {
		case n.router != nil:
		case reboot:
			w.trace("%s boots", n)
			n.boot()
		default:
			n.restart()
			if w.rng.IntN(3) == 0 { // it does not last
				w.after(w.upTo(w.trust+200*time.Millisecond), func() { n.crash(nil, w.upTo(100*time.Millisecond)) })
			}
		}
	})
}

// crashBoth ends two neighbours' agents.
func (n *node) crashBoth(e *end, lasting time.Duration) {
	n.crash(nil, lasting)
	e.peer.crash(nil, n.w.upTo(2*lasting))
}

// heal ends all that is wrong outside of the routers.
func (w *World) heal() {
	w.trace("everything heals")
	w.quiet = true
	if w.expelled >= 0 {
		w.expelled = -1
		w.commitLog(w.history[len(w.history)-1])
	}
	for _, p := range w.pairs {
		for l := range p.alive {
			p.alive[l] = true
			p.notice(l)
		}
	}
	for _, n := range w.nodes {
		n.failing = 0
		if n.router == nil {
			n.restart()
		}
	}
}

// cut makes a link fail; each end notices in its own time.
func (e *end) cut(l int) {
	p := e.pair
	if !p.alive[l] {
		return
	}
	p.alive[l] = false
	e.node.w.trace("link %d of %s and %s fails", l, p.a.node, p.b.node)
	p.notice(l)
}

// restore makes a link work again.
func (e *end) restore(l int) {
	p := e.pair
	if p.alive[l] {
		return
	}
	p.alive[l] = true
	e.node.w.trace("link %d of %s and %s works", l, p.a.node, p.b.node)
	p.notice(l)
}

func (p *pair) notice(l int) {
	w := p.a.node.w
	for _, e := range []*end{p.a, p.b} {
		w.after(w.upTo(w.detect), func() { e.detect(l) })
	}
}

// wrong makes an end believe for a while that a link failed.
func (e *end) wrong(l int, lasting time.Duration) {
	if !e.seen[l] {
		return
	}
	e.seen[l] = false
	e.saw(l)
	e.node.w.after(lasting, func() { e.detect(l) })
}

// firstLog grants each prefix to one node or to some.
func (w *World) firstLog() {
	origins := make([]set, len(w.space.prefixes))
	for p := len(w.nodes); p < len(origins); p++ {
		origins[p] = w.someNodes()
	}
	w.expelled = -1
	w.commitLog(origins)
}

// relog changes who is granted a prefix, or who is a member.
func (n *node) relog(*end, time.Duration) {
	w := n.w
	origins := slices.Clone(w.history[len(w.history)-1])
	p := len(w.nodes) + w.rng.IntN(len(origins)-len(w.nodes))
	switch w.rng.IntN(5) {
	case 0:
		origins[p] = 0
	case 1:
		origins[p] |= w.someNodes()
	case 2:
		if w.expelled < 0 {
			w.expelled = w.rng.IntN(len(w.nodes))
		} else {
			w.expelled = -1
		}
	default:
		origins[p] = w.someNodes()
	}
	w.commitLog(origins)
}

// someNodes draws one node, or up to three.
func (w *World) someNodes() (s set) {
	for s = s.with(w.rng.IntN(len(w.nodes))); w.rng.IntN(3) == 0 && s.len() < 3; {
		s = s.with(w.rng.IntN(len(w.nodes)))
	}
	return s
}

// commitLog puts a new version into the log. Every node follows in its own
// time, except one that is no member any more: it hears nothing of it.
func (w *World) commitLog(origins []set) {
	members := map[mesh.NodeID]routing.Member{}
	for i, n := range w.nodes {
		if i == w.expelled {
			continue
		}
		m := routing.Member{
			Identity: mesh.IdentityKey(identities()[i].Public().(ed25519.PublicKey)),
			Addrs:    []netip.Prefix{w.space.prefixes[i]},
		}
		for p, o := range origins {
			if o.has(i) {
				m.Prefixes = append(m.Prefixes, w.space.prefixes[p])
			}
		}
		slices.SortFunc(m.Prefixes, netip.Prefix.Compare)
		members[n.id] = m
	}
	v := len(w.history)
	w.history, w.members = append(w.history, origins), append(w.members, members)
	w.trace("log %d: grants %v, without n%d", v, origins[len(w.nodes):], w.expelled)
	for _, n := range w.nodes {
		w.after(w.upTo(2*time.Second), func() { n.follow(v) })
	}
}

// granted are the prefixes that a version of the log grants to anybody.
func (w *World) granted(version int) set {
	var out set
	for i, n := range w.nodes {
		if _, ok := w.members[version][n.id]; ok {
			out = out.with(i)
		}
	}
	for p, o := range w.history[version] {
		if o != 0 {
			out = out.with(p)
		}
	}
	return out
}
