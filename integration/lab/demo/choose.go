package demo

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"guywire/integration/lab"
	"guywire/mesh/api"
)

// A claim is what is promised of one event.
type claim struct {
	limitMs  float64 // of the gap; 0: no limit of its own
	lossless bool    // no packet may be lost
	moves    bool    // the flow must have another way afterwards, or the event did not hit it
}

// directPair chooses two public sites whose traffic takes the one tunnel between them and no other: the pair with the lowest
// cost.
func directPair(sites []*site, routes map[string][]api.Route) (a, b *site, err error) {
	best := 0.0
	for i, x := range sites {
		for _, y := range sites[i+1:] {
			there, ok1 := directRoute(x, y, routes[x.name])
			back, ok2 := directRoute(y, x, routes[y.name])
			if !ok1 || !ok2 || !x.public() || !y.public() {
				continue
			}
			if cost := there + back; a == nil || cost < best {
				a, b, best = x, y, cost
			}
		}
	}
	if a == nil {
		return nil, nil, fmt.Errorf("no two public sites send to each other by exactly one direct tunnel; see `meshctl routes` on each")
	}
	return a, b, nil
}

// directRoute returns the cost of the route from one site to the other's LAN if it has one next hop, the other itself.
func directRoute(from, to *site, routes []api.Route) (cost float64, ok bool) {
	for _, r := range routes {
		if slices.Contains(to.lan, r.Prefix) && r.Prefix.Addr().Is4() {
			if len(r.NextHops) == 1 && r.NextHops[0].Peer == to.name && r.CostMs != nil {
				return *r.CostMs, true
			}
			return 0, false
		}
	}
	return 0, false
}

// A spot is where one tunnel's path can be interrupted and no other's: a router, and the addresses of both ends.
type spot struct {
	router string
	a, b   []netip.Addr
}

// spotFor finds the spot for a tunnel between two public sites.
func spotFor(l leg, sites map[string]*site, status *lab.Status) (spot, error) {
	var s spot
	for i, end := range []struct {
		node, uplink string
		addrs        *[]netip.Addr
	}{{l.Node, l.Local, &s.a}, {l.Peer, l.Remote, &s.b}} {
		iface := sites[end.node].uplinkInterface(end.uplink)
		n, _ := status.Node(end.node)
		for _, it := range n.Interfaces {
			if it.Name != iface {
				continue
			}
			for _, p := range it.Addresses {
				*end.addrs = append(*end.addrs, p.Addr())
			}
		}
		if len(*end.addrs) == 0 {
			return s, fmt.Errorf("uplink %s of %s has no interface in the lab", end.uplink, end.node)
		}
		above, err := across(status, end.node+":"+iface)
		if err != nil {
			return s, err
		}
		if r, _ := status.Node(above); r.Kind != lab.Router {
			return s, fmt.Errorf("%s is behind %s, which is no router: its addresses may change there, so nobody else knows the tunnel by them", end.node, above)
		}
		if i == 0 {
			s.router = above
		}
	}
	return s, nil
}

// across returns the node at the other end of the link that ends at NODE:INTERFACE.
func across(status *lab.Status, end string) (string, error) {
	for _, l := range status.Links {
		for k, e := range l.Ends {
			if e == end {
				node, _, _ := strings.Cut(l.Ends[1-k], ":")
				return node, nil
			}
		}
	}
	return "", fmt.Errorf("the lab has no link at %s", end)
}

// verdict judges a row: "ok"; "slow" when it misses its limit without breaking the demo; "FAIL".
func verdict(r Row, c claim) (v, why string) {
	const failMs = 1000 // the wide margin
	switch {
	case r.Sent == 0:
		return verdictFail, "nothing was sent"
	case r.Open:
		return verdictFail, "the flow did not come back"
	case c.lossless && r.Lost > 0:
		return verdictFail, fmt.Sprintf("%d packets lost where none may be", r.Lost)
	case r.GapMs > failMs:
		return verdictFail, fmt.Sprintf("the gap is longer than %d ms", failMs)
	case c.moves && r.Before == r.After && r.BackBefore == r.BackAfter:
		return verdictFail, "the flow did not move, so the event did not hit it"
	case c.limitMs > 0 && r.GapMs > c.limitMs:
		return verdictSlow, fmt.Sprintf("the gap is longer than the promised %.0f ms", c.limitMs)
	default:
		return verdictOK, ""
	}
}

// The verdicts.
const (
	verdictOK   = "ok"
	verdictSlow = "slow"
	verdictFail = "FAIL"
)

// healthy says what keeps a site from being as it was at first; empty when nothing does. wanted are the links that were up.
func healthy(s api.Status, links []api.Link, wanted []linkKey) string {
	switch {
	case !s.Enrolled || s.Node == nil:
		return "in no mesh"
	case !s.Ready:
		return "its first tunnels and routes are not in the kernel"
	case s.Node.Leader == "":
		return "knows no leader"
	case s.Nodes.Good < s.Nodes.Total:
		return fmt.Sprintf("reaches %d of %d nodes", s.Nodes.Good, s.Nodes.Total)
	case s.Kernel.Applied != s.Kernel.Wanted:
		return strings.TrimSuffix(fmt.Sprintf("revision %d is in the kernel, %d is wanted: %s", s.Kernel.Applied, s.Kernel.Wanted, s.Kernel.Error), ": ")
	}
	up := upLinks(links)
	for _, k := range wanted {
		if !slices.Contains(up, k) {
			return "link " + k.String() + " is " + linkStory(k, links)
		}
	}
	return ""
}

// linkKey names a link of a site.
type linkKey struct{ peer, local, remote string }

func (k linkKey) String() string { return fmt.Sprintf("%s %s → %s", k.peer, k.local, k.remote) }

func keyOf(l api.Link) linkKey { return linkKey{l.Peer, l.Local, l.Remote} }

// upLinks returns the links that can carry traffic.
func upLinks(links []api.Link) []linkKey {
	var up []linkKey
	for _, l := range links {
		if l.State == api.LinkUp || l.State == api.LinkDegraded {
			up = append(up, keyOf(l))
		}
	}
	return up
}

func linkStory(k linkKey, links []api.Link) string {
	for _, l := range links {
		if keyOf(l) == k {
			return string(l.State) + ": " + l.Reason
		}
	}
	return "gone"
}
