package model

import (
	"net/netip"
	"slices"
	"time"
)

// walk follows packets at one instant, again and again: from anywhere, to
// anywhere, at each node along any next hop that a random part of those in
// force has. It shares nothing with the search for cycles but the kernels.
func (w *World) walk() {
	for range 4 {
		at := w.nodes[w.rng.IntN(len(w.nodes))]
		addr := w.space.addrs[w.rng.IntN(len(w.space.addrs))]
		var path []string
		seen := map[*node]bool{}
		for at != nil && !w.stopped {
			path = append(path, at.String())
			if seen[at] {
				w.fail("a packet for %v comes back: %v", addr, path)
				return
			}
			seen[at] = true
			at = at.forward(addr)
		}
	}
	w.after(w.upTo(20*time.Millisecond), w.walk)
}

// forward gives the node that takes a packet over, or nil.
func (n *node) forward(addr netip.Addr) *node {
	route := n.lookup(addr)
	if route < 0 || n.kernel.local.has(route) {
		return nil
	}
	legs := slices.DeleteFunc(slices.Clone(n.ends), func(e *end) bool {
		return !n.kernel.legs[route].has(e.peer.i) || n.w.rng.IntN(3) == 0
	})
	if len(legs) == 0 {
		return nil
	}
	to := legs[n.w.rng.IntN(len(legs))].peer
	if !to.kernel.admits.has(n.i) {
		return nil // it is for the node itself, or not let in
	}
	return to
}

// lookup gives the longest prefix that matches an address; negative: none.
func (n *node) lookup(addr netip.Addr) int {
	route := -1
	for p, prefix := range n.w.space.prefixes {
		if (n.kernel.has.has(p) || n.kernel.local.has(p)) && prefix.Contains(addr) &&
			(route < 0 || prefix.Bits() > n.w.space.prefixes[route].Bits()) {
			route = p
		}
	}
	return route
}
