package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"guywire/mesh/api"
)

func (a *app) nodesCommand() *cobra.Command {
	var wide bool
	var q api.NodesQuery
	c := a.jsonFlag(&cobra.Command{
		Use:   "nodes",
		Short: "one row per member: how it is reached from here",
		Args:  cobra.NoArgs,
		RunE: listing(a, func(ctx context.Context, c *api.Client) (api.Nodes, error) { return c.Nodes(ctx, q) }, func(d api.Nodes) {
			a.print(a.nodesTable(d.Nodes, wide))
		}),
	})
	c.Flags().BoolVar(&q.Consistent, "consistent", false, "wait until this node knows all that was acknowledged to anybody")
	c.Flags().BoolVarP(&wide, "wide", "w", false, "all addresses and networks, tags, ids; wider than a screen")
	return c
}

func (a *app) nodesTable(nodes []api.Node, wide bool) *table {
	t := &table{wide: wide, painted: 3, columns: []column{
		{head: "NODE", flex: true},
		{head: "ADDRESS"},
		{head: "NETWORKS"},
		{head: "REACHED", flex: true},
		{head: "RTT ms", right: true},
		{head: "COST ms", right: true},
		{head: "LINKS", right: true},
		{head: "ROLE"},
		{head: "CHANGED"},
	}}
	if wide {
		t.columns = append(t.columns, column{head: "TAGS"}, column{head: "ROLES"}, column{head: "SITE"}, column{head: "ID"})
	}
	for _, n := range nodes {
		reached, p := reach(n)
		addrs, networks := unknown, few(n.Prefixes)
		if len(n.Addrs) > 0 {
			addrs = n.Addrs[0].String()
		}
		if wide {
			addrs, networks = all(n.Addrs, ","), all(n.Prefixes, ",")
		}
		links := count(n.Links)
		if n.Links.Total == 0 {
			links = unknown
		}
		cells := []string{
			n.Name, addrs, networks, reached, ms(n.RTTMs), ms(n.CostMs), links, role(n), a.since(n.LastChange),
		}
		if wide {
			cells = append(cells, all(n.Tags, ","), all(n.Roles, ","), orUnknown(n.Site), n.ID.String())
		}
		r := row{cells: cells, paint: p}
		if n.Drain != nil {
			r.notes = []string{a.sinceDrain(n.Drain)}
		}
		if n.Banned != nil {
			r.notes = append(r.notes, fmt.Sprintf("banned since %s by word of %s, not yet in the log", a.since(&n.Banned.Since), n.Banned.By))
		}
		t.add(r)
	}
	return t
}

// role gives what a node does for others; a stub carries no traffic of theirs.
func role(n api.Node) string {
	switch {
	case n.Voter && !n.Transit:
		return "voter, stub"
	case n.Voter:
		return "voter"
	case !n.Transit:
		return "stub"
	default:
		return unknown
	}
}

// reach gives how a node is reached, in words.
func reach(n api.Node) (string, paint) {
	switch n.Reach {
	case api.ReachSelf:
		return "this node", plain
	case api.ReachDirect:
		return "direct", green
	case api.ReachTransit:
		return "via " + n.Via, yellow
	default:
		return "no", red
	}
}
