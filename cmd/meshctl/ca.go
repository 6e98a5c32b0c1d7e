package main

import (
	"context"

	"github.com/spf13/cobra"

	"guywire/mesh/api"
)

func (a *app) caCommand() *cobra.Command {
	c := a.jsonFlag(&cobra.Command{
		Use:   "ca",
		Short: "the keys that certificates of nodes are made with; rotate changes to a new one",
		Args:  cobra.NoArgs,
		RunE: listing(a, func(ctx context.Context, c *api.Client) (api.Authorities, error) { return c.Authorities(ctx) }, func(d api.Authorities) {
			t := table{columns: []column{{head: "STATE"}, {head: "PIN"}}}
			for _, ca := range d.Authorities {
				t.add(row{cells: []string{ca.State, ca.Pin}})
			}
			a.print(&t)
			for _, ca := range d.Authorities {
				if ca.From != nil {
					a.say("The next one takes over %s, when the tokens that know only the current one have expired.\n", a.until(*ca.From))
				}
			}
			if d.Due {
				a.say("A node that knew a key was removed; the mesh is changing to a new one.\n")
			}
		}),
	})
	c.AddCommand(a.jsonFlag(&cobra.Command{
		Use:   "rotate",
		Short: "change to a new one; nodes renew their certificates by themselves",
		Args:  cobra.NoArgs,
		RunE:  listing(a, func(ctx context.Context, c *api.Client) (api.Done, error) { return c.RotateCA(ctx) }, a.done),
	}))
	return c
}
