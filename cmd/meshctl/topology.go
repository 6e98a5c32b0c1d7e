package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"guywire/mesh/api"
)

func (a *app) topologyCommand() *cobra.Command {
	var node string
	c := a.jsonFlag(&cobra.Command{
		Use:   "topology",
		Short: "who should have links to whom and why; set, pin, unpin, forbid, allow change it",
		Args:  cobra.NoArgs,
		RunE: listing(a, func(ctx context.Context, c *api.Client) (api.Topology, error) {
			d, err := c.Topology(ctx)
			if err != nil || node == "" {
				return d, err
			}
			d.Nodes = slices.DeleteFunc(d.Nodes, func(n api.TopologyNode) bool { return n.Name != node && n.ID.String() != node })
			if len(d.Nodes) == 0 {
				err = api.Errorf(api.CodeNotFound, "meshctl nodes lists all nodes", "There is no node %s", node)
			}
			return d, err
		}, a.topology),
	})
	c.Flags().StringVar(&node, "node", "", "only this node")
	c.AddCommand(
		a.topologySetCommand(),
		a.pairCommand("pin", "always keep links between two nodes", func(r *api.PairsRequest, p []api.Pair) { r.Pin = p }),
		a.pairCommand("unpin", "leave it to the topology again whether two nodes have links", func(r *api.PairsRequest, p []api.Pair) { r.Unpin = p }),
		a.pairCommand("forbid", "never make links between two nodes", func(r *api.PairsRequest, p []api.Pair) { r.Forbid = p }),
		a.pairCommand("allow", "take a forbid back", func(r *api.PairsRequest, p []api.Pair) { r.Allow = p }),
	)
	return c
}

func (a *app) topologySetCommand() *cobra.Command {
	var r api.TopologyRequest
	c := a.jsonFlag(&cobra.Command{
		Use:   "set auto|full|hub",
		Short: "choose how neighbours are chosen; pinned and forbidden pairs stay",
		Long: "auto  all nodes are neighbours while they are few, then each has a ring, the nearest and some\n" +
			"      far ones; --dense gives each more of them\n" +
			"full  all nodes are neighbours\n" +
			"hub   all nodes are neighbours of those with the tag that --tag names, and of no others",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			r.Mode = args[0]
			return listing(a, func(ctx context.Context, client *api.Client) (api.Done, error) {
				return client.SetTopology(ctx, r)
			}, a.done)(c, args)
		},
	})
	f := c.Flags()
	f.StringVar(&r.Hub, "tag", "", "with hub: the tag of the hubs")
	f.BoolVar(&r.Dense, "dense", false, "with auto: more neighbours for each node")
	return c
}

// pairCommand makes a command that changes the rule of one pair.
func (a *app) pairCommand(name, short string, set func(*api.PairsRequest, []api.Pair)) *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use:   name + " NODE NODE",
		Short: short,
		Args:  cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			var r api.PairsRequest
			set(&r, []api.Pair{{A: args[0], B: args[1]}})
			return listing(a, func(ctx context.Context, client *api.Client) (api.Done, error) {
				return client.SetPairs(ctx, r)
			}, a.done)(c, args)
		},
	})
}

func (a *app) topology(d api.Topology) {
	mode := d.Mode
	switch {
	case d.Hub != "":
		mode += ", hubs have the tag " + d.Hub
	case d.Dense:
		mode += ", dense"
	}
	a.say("%-10s %s\n", "mode", mode)
	for _, rule := range []struct {
		name  string
		pairs []api.Pair
	}{{"pinned", d.Pinned}, {"forbidden", d.Forbidden}} {
		for i, p := range rule.pairs {
			if i > 0 {
				rule.name = ""
			}
			a.say("%-10s %s – %s\n", rule.name, p.A, p.B)
		}
	}
	a.say("\n")
	t := table{columns: []column{
		{head: "NODE", flex: true},
		{head: "DEGREE", right: true},
		{head: "CAP", right: true},
		{head: "TRANSIT"},
		{head: "DRAINED"},
		{head: "TAGS", flex: true},
	}}
	for _, n := range d.Nodes {
		degree, limit, transit, drained := unknown, unknown, "yes", unknown
		if n.Degree != nil {
			degree = fmt.Sprint(*n.Degree)
		}
		if n.MaxDegree != 0 {
			limit = fmt.Sprint(n.MaxDegree)
		}
		if !n.Transit {
			transit = "no"
		}
		if n.Drain != nil {
			drained = a.since(&n.Drain.Since)
		}
		r := row{cells: []string{n.Name, degree, limit, transit, drained, all(n.Tags, ",")}}
		if words := neighbours(n.Neighbours); words != "" {
			r.notes = []string{words}
		}
		t.add(r)
	}
	a.print(&t)
}

// neighbours gives each wanted neighbour and the reason for it.
func neighbours(list []api.Neighbour) string {
	words := make([]string, len(list))
	for i, n := range list {
		words[i] = n.Node + " (" + n.Reason + ")"
	}
	return strings.Join(words, ", ")
}
