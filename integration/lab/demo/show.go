package demo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"guywire/integration/lab/screen"
	"guywire/integration/lab/world"
	"guywire/mesh/api"
)

// show is step 2.
func (d *demo) show(ctx context.Context) error {
	d.Screen.Heading(2, "The mesh", "Nodes as the first site sees them, all tunnels, and pings between all LAN hosts.")
	if err := d.Settle(ctx); err != nil {
		return err
	}
	var nodes api.Nodes
	voters := d.voters()
	if err := d.Until(ctx, fmt.Sprintf("%d voters", voters), world.TalkLimit, func(ctx context.Context) (string, error) {
		if err := d.Ctl(ctx, d.Sites[0], &nodes, "nodes"); err != nil {
			return world.OneLine(err), nil
		}
		if v := votersOf(nodes); len(v) != voters {
			return fmt.Sprintf("%d are: %s", len(v), strings.Join(v, ", ")), nil
		}
		return "", nil
	}); err != nil {
		return err
	}
	nodeTable(nodes).Print(d.Screen)
	d.Screen.Say("")
	linkTable(d.Links).Print(d.Screen)
	d.Screen.Say("")
	for _, way := range d.transits(ctx) {
		d.Screen.Note("%s", way)
	}
	if why := misplaced(d.Sites, d.Links); why != "" {
		return errors.New(why)
	}
	m, err := d.Matrix(ctx, 3)
	if err != nil {
		return err
	}
	d.report.Matrix = m
	matrixTable(m).Print(d.Screen)
	d.Screen.Note("%d of %d pairs talk by IPv4, %d of %d by IPv6; milliseconds there and back.", m.Pairs.Good, m.Pairs.Total, m.Pair6.Good, m.Pair6.Total)
	if text := m.Missing(); text != "" {
		return fmt.Errorf("not all pairs talk: %s", text)
	}
	return nil
}

// voters returns how many there must be: a log of two is none.
func (d *demo) voters() int {
	public := 0
	for _, s := range d.Sites {
		if s.Public() {
			public++
		}
	}
	if public < maxVoters {
		return 1
	}
	return maxVoters
}

func matrixTable(m world.Matrix) *screen.Table {
	t := &screen.Table{Heads: []string{"FROM HOST OF"}}
	for _, h := range m.Hosts {
		t.Heads = append(t.Heads, ">"+h)
	}
	for i, row := range m.RTTMs {
		cells := []string{m.Hosts[i]}
		for _, rtt := range row {
			cells = append(cells, ms(rtt))
		}
		t.Add(cells...)
	}
	return t
}

// ms writes milliseconds; nil is unknown.
func ms(v *float64) string {
	if v == nil {
		return "–"
	}
	return fmt.Sprintf("%.1f", *v)
}

func votersOf(n api.Nodes) (names []string) {
	for _, node := range n.Nodes {
		if node.Voter {
			names = append(names, node.Name)
		}
	}
	return names
}

func nodeTable(n api.Nodes) *screen.Table {
	t := &screen.Table{Heads: []string{"NODE", "ADDRESS", "NETWORKS", "REACHED", ">RTT ms", ">COST ms", "ROLE"}}
	for _, node := range n.Nodes {
		var addr string
		if a, found := world.IPv4Of(node.Addrs); found {
			addr = a.String()
		}
		var networks []string
		for _, p := range node.Prefixes {
			networks = append(networks, p.String())
		}
		reach := node.Reach
		if reach == api.ReachTransit {
			reach = "via " + node.Via
		}
		role := "follower"
		if node.Voter {
			role = "voter"
		}
		t.Add(node.Name, addr, strings.Join(networks, " "), reach, ms(node.RTTMs), ms(node.CostMs), role)
	}
	return t
}

// linkTable lists the tunnels of all sites, each once: from the end that knows its round trip better, the first by name.
func linkTable(links map[string][]api.Link) *screen.Table {
	type end struct{ node, uplink string }
	type row struct {
		a, b  end
		state api.LinkState
		rtt   *float64
	}
	var rows []row
	for node, list := range links {
		for _, l := range list {
			r := row{end{node, l.Local}, end{l.Peer, l.Remote}, l.State, l.RTTMs}
			if r.b.node < r.a.node && slices.ContainsFunc(links[l.Peer], func(o api.Link) bool {
				return o.Peer == node && o.Local == l.Remote && o.Remote == l.Local
			}) {
				continue // the other end lists it
			}
			rows = append(rows, r)
		}
	}
	slices.SortFunc(rows, func(x, y row) int {
		return cmp.Or(strings.Compare(x.a.node, y.a.node), strings.Compare(x.b.node, y.b.node),
			strings.Compare(x.a.uplink, y.a.uplink), strings.Compare(x.b.uplink, y.b.uplink))
	})
	t := &screen.Table{Heads: []string{"LINK", "UPLINKS", "STATE", ">RTT ms"}}
	for _, r := range rows {
		t.Add(r.a.node+" – "+r.b.node, r.a.uplink+" – "+r.b.uplink, string(r.state), ms(r.rtt))
	}
	return t
}

// direct reports whether a has a link to b that is up.
func direct(a, b *world.Site, links map[string][]api.Link) bool {
	return slices.ContainsFunc(links[a.Name], func(l api.Link) bool {
		return l.Peer == b.Name && (l.State == api.LinkUp || l.State == api.LinkDegraded)
	})
}

// misplaced names a pair of sites that has not the link that its NATs allow, or has one that they do not: the two sites of the
// demo that are behind NATs cannot meet, since one NAT gives each peer another port and the other looks at ports.
func misplaced(sites []*world.Site, links map[string][]api.Link) string {
	for i, a := range sites {
		for _, b := range sites[i+1:] {
			switch met, can := direct(a, b, links), a.Public() || b.Public(); {
			case can && !met:
				return fmt.Sprintf("%s (%s) and %s (%s) have no direct link, although one is public; see `meshctl links`", a.Name, a.NAT(), b.Name, b.NAT())
			case met && !can:
				return fmt.Sprintf("%s (%s) and %s (%s) have a direct link, although their NATs allow none: is a NAT of the lab not what it says?", a.Name, a.NAT(), b.Name, b.NAT())
			}
		}
	}
	return ""
}

// transits tells the way, as the agents compute it, of those pairs that have no direct link.
func (d *demo) transits(ctx context.Context) (ways []string) {
	for i, a := range d.Sites {
		for _, b := range d.Sites[i+1:] {
			if direct(a, b, d.Links) {
				continue
			}
			var p api.Path
			err := d.Ctl(ctx, a, &p, "path", a.Name, b.Name)
			switch {
			case err != nil:
				ways = append(ways, fmt.Sprintf("%s and %s have no direct link; meshctl path: %v", a.Name, b.Name, err))
			case !p.Reached:
				ways = append(ways, fmt.Sprintf("%s and %s have no direct link, and meshctl path ends on the way: %s", a.Name, b.Name, p.Why))
			default:
				ways = append(ways, fmt.Sprintf("%s and %s have no direct link (%s, %s); their way is %s.", a.Name, b.Name, a.NAT(), b.NAT(), pathText(p)))
			}
		}
	}
	return ways
}

// pathText writes a path as the agents compute it.
func pathText(p api.Path) string {
	var names []string
	for _, h := range p.Hops {
		names = append(names, h.Node)
	}
	return strings.Join(names, " → ")
}
