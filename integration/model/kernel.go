package model

import (
	"fmt"
	"strings"

	"guywire/mesh"
)

// A kernel is what one node's kernel forwards by.
type kernel struct {
	has    set              // prefixes with a route; without next hops it is unreachable
	local  set              // prefixes that are delivered here
	legs   [maxPrefixes]set // next hops
	admits set              // neighbours whose transit the filter lets in

	// rd, kept when World.labels, are the reports on whose strength the next
	// hops are used: the newest with which the router still approves of them.
	rd [maxPrefixes][maxNodes]mesh.Cost
}

// next gives the nodes to which v forwards packets for address a and whose
// filters let them in.
func (w *World) next(v, a int) set {
	k := &w.nodes[v].kernel
	hit := (k.has | k.local) & w.space.matches[a]
	if hit == 0 {
		return 0
	}
	p := hit.first()
	if k.local.has(p) {
		return 0
	}
	return k.legs[p] & w.admitting[v]
}

// returns reports whether a packet for address a that leaves v can come back.
func (w *World) returns(v, a int) bool {
	var seen set
	for todo := w.next(v, a); todo != 0; {
		u := todo.first()
		if u == v {
			return true
		}
		seen = seen.with(u)
		todo = (todo | w.next(u, a)) &^ seen
	}
	return false
}

// changed looks for cycles after v forwards packets to some addresses
// differently. Such a cycle leads through v.
func (w *World) changed(v int, addrs set) {
	w.States++
	for a := range (addrs &^ w.looping).all {
		if w.returns(v, a) {
			w.looping = w.looping.with(a)
			w.loopSince[a] = w.now
			w.Loops++
			if w.opt.Broken == Sound {
				w.fail("packets for %v loop through %s: %s", w.space.addrs[a], w.nodes[v], w.circle(v, a))
			}
		}
	}
	for a := range (addrs & w.looping).all {
		if !w.cyclic(a) {
			w.looping = w.looping.less(a)
			w.LoopTime += w.now - w.loopSince[a]
		}
	}
}

func (w *World) cyclic(a int) bool {
	for v := range w.nodes {
		if w.returns(v, a) {
			return true
		}
	}
	return false
}

// circle describes a shortest loop through v.
func (w *World) circle(v, a int) string {
	from := map[int]int{}
	for ring := w.next(v, a); ring != 0; {
		var wider set
		for u := range ring.all {
			if _, ok := from[u]; !ok {
				from[u] = -1
			}
			for x := range w.next(u, a).all {
				if _, ok := from[x]; !ok && !ring.has(x) {
					from[x] = u
					wider = wider.with(x)
				} else if x == v && !ring.has(v) {
					from[v] = u
				}
			}
			if u == v {
				wider = 0
				break
			}
		}
		ring = wider
	}
	path := []string{w.nodes[v].String()}
	for at, ok := from[v]; ok && at >= 0 && at != v; at, ok = from[at] {
		path = append(path, w.nodes[at].String())
	}
	path = append(path, w.nodes[v].String())
	for i, j := 0, len(path)-1; i < j; i, j = i+1, j-1 {
		path[i], path[j] = path[j], path[i]
	}
	var b strings.Builder
	b.WriteString(strings.Join(path, " → "))
	for i, n := range w.nodes {
		k := &n.kernel
		if hit := (k.has | k.local) & w.space.matches[a]; hit != 0 {
			p := hit.first()
			fmt.Fprintf(&b, "\n  %s: %v local=%v to %v admits %v; %s", n, w.space.prefixes[p], k.local.has(p), names(k.legs[p]), names(k.admits), w.nodes[i].view(p))
		} else {
			fmt.Fprintf(&b, "\n  %s: no route; admits %v", n, names(k.admits))
		}
	}
	return b.String()
}

func names(s set) []string {
	out := []string{}
	for i := range s.all {
		out = append(out, fmt.Sprintf("n%d", i))
	}
	return out
}

// view gives what the node's router thinks of a prefix.
func (n *node) view(p int) string {
	if n.router == nil {
		return "no agent"
	}
	f, ok := n.router.Feasibility(n.w.space.keys[p])
	if !ok {
		return "unknown to the router"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "distance %d reported %d feasible %d, hears", f.Distance, f.Reported, f.Feasible)
	for _, r := range f.Reports {
		fmt.Fprintf(&b, " n%d:%d", n.w.number[r.Peer], r.Distance)
	}
	if !n.router.Settled() {
		b.WriteString(", not settled")
	}
	return b.String()
}

// setRoute puts or takes away one route.
func (n *node) setRoute(p int, has, local bool, legs set, rd *[maxNodes]mesh.Cost) {
	k := &n.kernel
	for u := range (legs &^ k.legs[p]).all {
		k.rd[p][u] = rd[u]
	}
	k.has, k.local = k.has.less(p), k.local.less(p)
	if has {
		k.has = k.has.with(p)
	}
	if local {
		k.local = k.local.with(p)
	}
	k.legs[p] = legs
	n.relabel()
	n.w.changed(n.i, n.w.space.holds[p])
	n.w.lemma(n, p)
}

// refuse drops the transit of neighbours.
func (n *node) refuse(who set) {
	if n.w.opt.Broken == IgnoresHolds {
		return
	}
	n.kernel.admits &^= who
	for u := range who.all {
		n.w.admitting[u] = n.w.admitting[u].less(n.i)
		n.w.changed(u, n.w.every)
	}
}

// admit lets a neighbour's transit in.
func (n *node) admit(u int) {
	n.kernel.admits = n.kernel.admits.with(u)
	n.w.admitting[u] = n.w.admitting[u].with(n.i)
	n.w.changed(u, n.w.every)
	n.w.lemma(n.w.nodes[u], -1)
}

// reboot empties the kernel.
func (n *node) reboot() {
	n.refuseAll()
	n.kernel = kernel{}
}

func (n *node) refuseAll() {
	for u := range n.kernel.admits.all {
		n.w.admitting[u] = n.w.admitting[u].less(n.i)
	}
	n.kernel.admits = 0
	n.w.changed(n.i, n.w.every)
}

// relabel notes the reports behind the next hops in force and those that are
// about to be.
func (n *node) relabel() {
	if !n.w.labels || n.router == nil {
		return
	}
	var planned *kernel
	if p := n.driver.plan; p != nil && !p.filter {
		planned = &p.want
	}
	for p, key := range n.w.space.keys {
		legs := n.kernel.legs[p]
		if planned != nil {
			legs |= planned.legs[p]
		}
		if legs == 0 {
			continue
		}
		f, _ := n.router.Feasibility(key)
		for _, r := range f.Reports {
			if u := n.w.number[r.Peer]; r.Successor && legs.has(u) {
				n.kernel.rd[p][u] = r.Distance
				if planned != nil {
					planned.rd[p][u] = r.Distance
				}
			}
		}
	}
}

// lemma checks the invariant around n for one prefix, or for all (negative):
// along any two edges in force that follow each other the reports fall, and
// nobody sends packets for a prefix to who has no route for it.
func (w *World) lemma(n *node, p int) {
	if !w.labels || w.opt.Broken != Sound {
		return
	}
	if p < 0 {
		for p := range w.space.prefixes {
			w.lemma(n, p)
		}
		return
	}
	w.lemmaFrom(n, p)
	for u := range n.kernel.admits.all {
		if w.nodes[u].kernel.legs[p].has(n.i) {
			w.lemmaFrom(w.nodes[u], p)
		}
	}
}

func (w *World) lemmaFrom(u *node, p int) {
	for i := range (u.kernel.legs[p] & w.admitting[u.i]).all {
		k, believed := w.nodes[i], u.kernel.rd[p][i]
		if k.kernel.local.has(p) {
			continue
		}
		if !k.kernel.has.has(p) {
			w.fail("%s sends packets for %v to %s, which has no route for it\n  %s\n  %s", u, w.space.prefixes[p], k, u.view(p), k.view(p))
		}
		for m := range (k.kernel.legs[p] & w.admitting[i]).all {
			if goes := k.kernel.rd[p][m]; goes >= believed {
				w.fail("%s sends packets for %v to %s on the strength of %d, which sends them to n%d on the strength of %d\n  %s\n  %s",
					u, w.space.prefixes[p], k, believed, m, goes, u.view(p), k.view(p))
			}
		}
	}
}
