package world

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"guywire/integration/lab"
	"guywire/mesh/api"
)

// directPair chooses two public sites whose traffic takes the one tunnel between them and no other: the pair with the lowest
// cost.
func directPair(sites []*Site, routes map[string][]api.Route) (a, b *Site, err error) {
	best := 0.0
	for i, x := range sites {
		for _, y := range sites[i+1:] {
			there, ok1 := directRoute(x, y, routes[x.Name])
			back, ok2 := directRoute(y, x, routes[y.Name])
			if !ok1 || !ok2 || !x.Public() || !y.Public() {
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
func directRoute(from, to *Site, routes []api.Route) (cost float64, ok bool) {
	for _, r := range routes {
		if slices.Contains(to.LAN, r.Prefix) && r.Prefix.Addr().Is4() {
			if len(r.NextHops) == 1 && r.NextHops[0].Peer == to.Name && r.CostMs != nil {
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
func spotFor(l Leg, sites map[string]*Site, status *lab.Status) (spot, error) {
	var s spot
	for i, end := range []struct {
		node, uplink string
		addrs        *[]netip.Addr
	}{{l.Node, l.Local, &s.a}, {l.Peer, l.Remote, &s.b}} {
		iface := sites[end.node].UplinkInterface(end.uplink)
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
