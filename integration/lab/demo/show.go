package demo

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"guywire/integration/lab/flow"
	"guywire/mesh/api"
)

// A Matrix is who talks to whom: rows and columns in the order of Hosts, each pair by UDP and ICMP.
type Matrix struct {
	Hosts []string     `json:"hosts"`
	RTTMs [][]*float64 `json:"rtt_ms"` // IPv4; null: no answer
	Pairs api.Count    `json:"pairs"`  // IPv4
	Pair6 api.Count    `json:"pairs_ipv6"`
}

// show is step 2.
func (d *demo) show(ctx context.Context) error {
	d.screen.heading(2, "The mesh", "Nodes as the first site sees them, all tunnels, and pings between all LAN hosts.")
	if err := d.startEchoes(ctx); err != nil {
		return err
	}
	if err := d.until(ctx, "all pairs talk", talkLimit, func(ctx context.Context) (string, error) {
		m, err := d.matrix(ctx, 1)
		return m.missing(), err
	}); err != nil {
		return err
	}
	if err := d.untilHealthy(ctx, "all sites well", d.sites); err != nil {
		return err
	}
	var nodes api.Nodes
	if err := d.until(ctx, fmt.Sprintf("%d voters", voters), talkLimit, func(ctx context.Context) (string, error) {
		if err := d.ctl(ctx, d.first, &nodes, "nodes"); err != nil {
			return oneLine(err), nil
		}
		if v := votersOf(nodes); len(v) != voters {
			return fmt.Sprintf("%d are: %s", len(v), strings.Join(v, ", ")), nil
		}
		return "", nil
	}); err != nil {
		return err
	}
	if silent := d.look(ctx); len(silent) > 0 {
		return fmt.Errorf("no links from %s", strings.Join(silent, ", "))
	}
	for _, s := range d.sites {
		d.baseline[s.name] = upLinks(d.links[s.name])
	}
	nodeTable(nodes).print(d.screen)
	d.screen.say("")
	linkTable(d.links).print(d.screen)
	d.screen.say("")
	for _, way := range d.transits(ctx) {
		d.screen.note("%s", way)
	}
	m, err := d.matrix(ctx, 3)
	if err != nil {
		return err
	}
	d.report.Matrix = m
	matrixTable(m).print(d.screen)
	d.screen.note("%d of %d pairs talk by IPv4, %d of %d by IPv6; milliseconds there and back.", m.Pairs.Good, m.Pairs.Total, m.Pair6.Good, m.Pair6.Total)
	if text := m.missing(); text != "" {
		return fmt.Errorf("not all pairs talk: %s", text)
	}
	return nil
}

// startEchoes starts what answers the pings, on all hosts.
func (w *world) startEchoes(ctx context.Context) error {
	return w.each(w.sites, func(s *site) error {
		_, err := w.lab.Start(ctx, s.host, "echo", []string{w.exe, "flow", "echo", "--listen", fmt.Sprintf(":%d", echoPort)})
		return err
	})
}

// family6 marks the IPv6 targets of a row.
const family6 = "/6"

// matrix pings between all hosts.
func (w *world) matrix(ctx context.Context, count int) (Matrix, error) {
	reports := make([]flow.PingReport, len(w.sites))
	err := w.each(w.sites, func(s *site) error {
		argv := []string{w.exe, "flow", "ping", "--from", s.name, "--count", fmt.Sprint(count)}
		for _, to := range w.sites {
			argv = append(argv, "--target", to.name+"="+netip.AddrPortFrom(to.host4, echoPort).String(),
				"--target", to.name+family6+"="+netip.AddrPortFrom(to.host6, echoPort).String())
		}
		out, err := w.run(ctx, s.host, "", argv...)
		if err != nil {
			return err
		}
		return json.Unmarshal(out, &reports[slices.Index(w.sites, s)])
	})
	if err != nil {
		return Matrix{}, err
	}
	var hosts []string
	for _, s := range w.sites {
		hosts = append(hosts, s.name)
	}
	return matrixOf(hosts, reports), nil
}

// matrixOf puts the rows together; reports are in the order of hosts.
func matrixOf(hosts []string, reports []flow.PingReport) Matrix {
	m := Matrix{Hosts: hosts, RTTMs: make([][]*float64, len(hosts))}
	for i, r := range reports {
		m.RTTMs[i] = make([]*float64, len(hosts))
		for _, c := range r.Cells {
			name, v6 := strings.CutSuffix(c.Name, family6)
			count := &m.Pairs
			if v6 {
				count = &m.Pair6
			}
			count.Total++
			if !c.Reached {
				continue
			}
			count.Good++
			if k := slices.Index(hosts, name); k >= 0 && !v6 && c.UDP != nil {
				m.RTTMs[i][k] = new(float64(c.UDP.Min) / float64(time.Millisecond))
			}
		}
	}
	return m
}

// missing says who does not talk; empty when all do.
func (m Matrix) missing() string {
	want := len(m.Hosts) * len(m.Hosts)
	var s []string
	if m.Pairs.Good < want {
		var pairs []string
		for i, row := range m.RTTMs {
			for k, rtt := range row {
				if rtt == nil {
					pairs = append(pairs, m.Hosts[i]+"→"+m.Hosts[k])
				}
			}
		}
		s = append(s, fmt.Sprintf("IPv4 %d of %d, without %s", m.Pairs.Good, want, strings.Join(pairs, " ")))
	}
	if m.Pair6.Good < want {
		s = append(s, fmt.Sprintf("IPv6 %d of %d", m.Pair6.Good, want))
	}
	return strings.Join(s, "; ")
}

func matrixTable(m Matrix) *table {
	t := &table{heads: []string{"FROM HOST OF"}}
	for _, h := range m.Hosts {
		t.heads = append(t.heads, ">"+h)
	}
	for i, row := range m.RTTMs {
		cells := []string{m.Hosts[i]}
		for _, rtt := range row {
			cells = append(cells, ms(rtt))
		}
		t.add(cells...)
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

func nodeTable(n api.Nodes) *table {
	t := &table{heads: []string{"NODE", "ADDRESS", "NETWORKS", "REACHED", ">RTT ms", ">COST ms", "ROLE"}}
	for _, node := range n.Nodes {
		var addr string
		if a, found := ipv4Of(node.Addrs); found {
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
		t.add(node.Name, addr, strings.Join(networks, " "), reach, ms(node.RTTMs), ms(node.CostMs), role)
	}
	return t
}

// linkTable lists the tunnels of all sites, each once: from the end that knows its round trip better, the first by name.
func linkTable(links map[string][]api.Link) *table {
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
	t := &table{heads: []string{"LINK", "UPLINKS", "STATE", ">RTT ms"}}
	for _, r := range rows {
		t.add(r.a.node+" – "+r.b.node, r.a.uplink+" – "+r.b.uplink, string(r.state), ms(r.rtt))
	}
	return t
}

// transits tells the way, as the agents compute it, of those pairs that have no direct link.
func (d *demo) transits(ctx context.Context) (ways []string) {
	for i, a := range d.sites {
		for _, b := range d.sites[i+1:] {
			if slices.ContainsFunc(d.links[a.name], func(l api.Link) bool { return l.Peer == b.name && l.State == api.LinkUp }) {
				continue
			}
			var p api.Path
			err := d.ctl(ctx, a, &p, "path", a.name, b.name)
			switch {
			case err != nil:
				ways = append(ways, fmt.Sprintf("%s and %s have no direct link; meshctl path: %v", a.name, b.name, err))
			case !p.Reached:
				ways = append(ways, fmt.Sprintf("%s and %s have no direct link, and meshctl path ends on the way: %s", a.name, b.name, p.Why))
			default:
				ways = append(ways, fmt.Sprintf("%s and %s have no direct link (%s, %s); their way is %s.", a.name, b.name, a.nat(), b.nat(), pathText(p)))
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

// untilHealthy waits until the sites are well and have the links of the baseline.
func (d *demo) untilHealthy(ctx context.Context, what string, sites []*site) error {
	return d.until(ctx, what, healLimit, func(ctx context.Context) (string, error) {
		states := make([]string, len(sites))
		_ = d.each(sites, func(s *site) error { // what goes wrong is the state
			var st api.Status
			var links api.Links
			state := &states[slices.Index(sites, s)]
			if err := d.ctl(ctx, s, &st, "status"); err != nil {
				*state = oneLine(err)
			} else if err := d.ctl(ctx, s, &links, "links"); err != nil {
				*state = oneLine(err)
			} else if why := healthy(st, links.Links, d.baseline[s.name]); why != "" {
				*state = s.name + ": " + why
			}
			return nil
		})
		states = slices.DeleteFunc(states, func(s string) bool { return s == "" })
		return strings.Join(states, "; "), nil
	})
}
