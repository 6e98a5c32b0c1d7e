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
	focus := w.rng.IntN(2) == 0 // it always hits the same nodes
	w.quiet = false
	end := w.now + lasts
	some := w.nodes
	if focus {
		i := w.rng.IntN(len(w.nodes))
		some = []*node{w.nodes[i], w.nodes[i].ends[w.rng.IntN(len(w.nodes[i].ends))].peer}
	}
	var next func()
	next = func() {
		if w.quiet {
			return
		}
		w.States++
		w.disturb(some[w.rng.IntN(len(some))])
		w.after(w.upTo(2*pace), next)
	}
	w.after(w.upTo(2*pace), next)
	w.Run(end)
	if !w.stopped {
		w.heal()
	}
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
			p.a.restore(l)
		}
	}
	for _, n := range w.nodes {
		n.failing = 0
		if n.router == nil {
			n.restart()
		}
	}
}

// disturb lets one thing happen at a node.
func (w *World) disturb(n *node) {
	e := n.ends[w.rng.IntN(len(n.ends))]
	if w.rng.IntN(2) == 0 {
		e = e.other
	}
	p := e.pair
	link := w.rng.IntN(len(p.alive))
	lasting := w.upTo([]time.Duration{50 * time.Millisecond, 500 * time.Millisecond, 5 * time.Second}[w.rng.IntN(3)])
	switch w.rng.IntN(15) {
	case 0, 1:
		e.cut(link)
		w.after(lasting, func() { e.restore(link) })
	case 2:
		for l := range p.alive {
			e.cut(l)
			w.after(lasting, func() { e.restore(l) })
		}
	case 3:
		for _, e := range n.ends { // all links of a node at once
			for l := range e.seen {
				e.cut(l)
				w.after(lasting, func() { e.restore(l) })
			}
		}
	case 4, 5, 6:
		e.alarm(lasting)
	case 7, 8:
		for range 1 + w.rng.IntN(3) {
			e.reprice(w.rng.IntN(len(p.alive)))
		}
	case 9:
		e.drain = !e.drain
		w.trace("%s drains its links to %s: %v", e.node, e.peer, e.drain)
		if e.up {
			e.node.refresh(e)
		}
	case 10:
		switch w.rng.IntN(4) {
		case 0:
			n.noTransit = !n.noTransit
		default:
			n.drained = !n.drained
		}
		w.trace("%s: transit none=%v drained=%v", n, n.noTransit, n.drained)
		if n.router != nil {
			n.router.SetTransit(n.noTransit, n.drained)
			n.wake(0)
		}
	case 11:
		w.crash(n, lasting)
		if w.rng.IntN(4) == 0 { // not alone
			w.crash(n.ends[w.rng.IntN(len(n.ends))].peer, w.upTo(lasting))
		}
	case 12, 13:
		w.relog()
	case 14:
		n.failing = w.now + lasting
		w.trace("%s cannot write its kernel until %v", n, n.failing)
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

// alarm makes one end believe that all links to the other failed. Sometimes
// the other end is told so.
func (e *end) alarm(lasting time.Duration) {
	w := e.node.w
	e.node.trace("gives %s up for nothing", e.peer)
	told := w.rng.IntN(3) == 0
	for l := range e.seen {
		e.wrong(l, lasting)
		if told {
			w.after(w.upTo(w.delay), func() { e.other.wrong(l, lasting) })
		}
	}
}

func (e *end) wrong(l int, lasting time.Duration) {
	if !e.seen[l] {
		return
	}
	e.seen[l] = false
	e.saw(l)
	e.node.w.after(lasting, func() { e.detect(l) })
}

// reprice changes what a link costs in one direction.
func (e *end) reprice(l int) {
	e.cost[l] = e.node.w.cost()
	e.node.trace("link %d to %s costs %d", l, e.peer, e.cost[l])
	if e.up {
		e.node.refresh(e)
	}
}

// crash ends an agent, or its whole machine, for some time.
func (w *World) crash(n *node, lasting time.Duration) {
	if n.router == nil || w.quiet {
		return
	}
	reboot := w.rng.IntN(3) == 0
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
			if !w.quiet && w.rng.IntN(3) == 0 { // it does not last
				w.after(w.upTo(w.trust), func() { w.crash(n, w.upTo(time.Second)) })
			}
		}
	})
}

func (n *node) trace(format string, args ...any) {
	n.w.trace("%s "+format, append([]any{n}, args...)...)
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
func (w *World) relog() {
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
