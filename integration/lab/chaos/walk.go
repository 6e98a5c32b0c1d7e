package chaos

import (
	"maps"
	"net/netip"
	"slices"
)

// A view is what the kernel of one site does with packets in transit, read at one moment.
type view struct {
	// Self are the public keys of the site's tunnels.
	Self []string `json:"self"`
	// Ways are the neighbours, by their public keys, that packets for a destination may be sent to.
	Ways map[netip.Addr][]string `json:"ways"`
	// Deaf are the neighbours whose packets in transit are dropped, on every tunnel.
	Deaf []string `json:"deaf"`
	// Expired counts the packets that died here of their hop limit, since the site came to be.
	Expired expired `json:"expired"`
}

// expired are counters of one site. The first two are of ICMP messages, which are limited per second; the others are of the
// packets, of which some may have had a bad header instead.
type expired struct {
	Told4   uint64 `json:"icmp_out_time_excds"`
	Told6   uint64 `json:"icmp6_out_time_excds"`
	Headers uint64 `json:"ip_in_hdr_errors"`
	Header6 uint64 `json:"ip6_in_hdr_errors"`
}

func (e expired) since(o expired) expired {
	return expired{e.Told4 - o.Told4, e.Told6 - o.Told6, e.Headers - o.Headers, e.Header6 - o.Header6}
}

// edges are the sites that each site sends packets for one destination to, without those that would drop them.
type edges map[string][]string

// union puts the views of all sites together for one destination.
func union(views map[string]view, to netip.Addr) edges {
	owner := map[string]string{}
	for site, v := range views {
		for _, key := range v.Self {
			owner[key] = site
		}
	}
	e := edges{}
	for site, v := range views {
		for _, key := range v.Ways[to] {
			next, known := owner[key]
			if known && !deaf(views[next], v.Self) && !slices.Contains(e[site], next) {
				e[site] = append(e[site], next)
			}
		}
		slices.Sort(e[site])
	}
	return e
}

// deaf reports whether a site drops what it gets in transit from the owner of the keys.
func deaf(v view, keys []string) bool {
	return slices.ContainsFunc(keys, func(k string) bool { return slices.Contains(v.Deaf, k) })
}

// cycle returns the sites of a cycle, each with an edge to the next and the last to the first; none if there is no cycle.
func (e edges) cycle() []string {
	const (
		open = iota + 1
		done
	)
	state := map[string]int{}
	var path []string
	var visit func(string) []string
	visit = func(at string) []string {
		state[at] = open
		path = append(path, at)
		for _, next := range e[at] {
			switch state[next] {
			case open:
				return slices.Clone(path[slices.Index(path, next):])
			case 0:
				if c := visit(next); c != nil {
					return c
				}
			}
		}
		state[at] = done
		path = path[:len(path)-1]
		return nil
	}
	for _, site := range slices.Sorted(maps.Keys(e)) {
		if state[site] == 0 {
			if c := visit(site); c != nil {
				return c
			}
		}
	}
	return nil
}

// count returns how many there are.
func (e edges) count() (n int) {
	for _, next := range e {
		n += len(next)
	}
	return n
}

// has reports whether all edges of a cycle are there.
func (e edges) has(cycle []string) bool {
	for i, site := range cycle {
		if !slices.Contains(e[site], cycle[(i+1)%len(cycle)]) {
			return false
		}
	}
	return true
}
