package sim

import (
	"fmt"
	"net/netip"
	"slices"

	"guywire/mesh/kernel"
)

// Trace follows a packet from node from to the prefix of node to along every
// next hop that the installed tables allow, and says how many ways lead there
// and what is wrong with the first one that does not.
func (w *World) Trace(from, to int) (ways int, problem string) {
	return w.trace(from, to, w.Nodes[from].Prefix, nil)
}

func (w *World) trace(at, to int, source netip.Prefix, visited []int) (ways int, problem string) {
	if at == to {
		return 1, ""
	}
	if slices.Contains(visited, at) {
		return 0, fmt.Sprintf("loop: %v back to %d", visited, at)
	}
	n := w.Nodes[at]
	visited = append(slices.Clone(visited), at)
	devices, ok := lookup(n.Kernel, w.Nodes[to].Prefix)
	if !ok {
		return 0, fmt.Sprintf("%v: no route", visited)
	}
	for _, device := range devices {
		peer, here, there, ok := n.ends(device)
		if !ok {
			return 0, fmt.Sprintf("%v: device %s leads nowhere", visited, device)
		}
		if _, passes := w.Delay(here, there); !passes || !n.up(here.Uplink) || !peer.up(there.Uplink) {
			problem = fmt.Sprintf("%v: link to %d by %s is cut", visited, peer.Index, device)
			continue
		}
		if why := peer.refuses(n, here, there, source); why != "" {
			problem = fmt.Sprintf("%v: %d %s", visited, peer.Index, why)
			continue
		}
		more, p := w.trace(peer.Index, to, source, visited)
		ways += more
		if p != "" {
			problem = p
		}
	}
	return ways, problem
}

func (n *Node) up(uplink string) bool {
	for _, u := range n.host.Uplinks {
		if u.Name == uplink {
			return u.Up
		}
	}
	return false
}

// refuses says why the filter drops a packet that arrives from a neighbour.
func (n *Node) refuses(from *Node, here, there End, source netip.Prefix) string {
	for _, r := range n.records {
		if r.Link.Peer != from.ID || r.Link.Local != there.Uplink || r.Link.Remote != here.Uplink {
			continue
		}
		for _, l := range n.Kernel.Filter.Links {
			if l.Device != r.Device {
				continue
			}
			if l.Held {
				return "holds the neighbour down"
			}
			if !slices.ContainsFunc(l.Sources, func(p netip.Prefix) bool { return p.Overlaps(source) }) {
				return "refuses the source"
			}
			return ""
		}
	}
	return "does not know the link"
}

// lookup gives the devices to which a kernel spreads traffic to a prefix.
func lookup(k kernel.State, prefix netip.Prefix) (devices []string, ok bool) {
	hops := map[uint32]kernel.NextHop{}
	for _, h := range k.NextHops {
		hops[h.ID] = h
	}
	for _, r := range k.Routes {
		if r.Prefix != prefix || r.Kind != kernel.Forward {
			continue
		}
		for _, m := range hops[r.NextHop].Members {
			devices = append(devices, hops[m.ID].Device)
		}
		return devices, len(devices) > 0
	}
	return nil, false
}
