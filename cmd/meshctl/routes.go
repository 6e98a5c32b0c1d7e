package main

import (
	"context"

	"github.com/spf13/cobra"

	"guywire/mesh/api"
)

func (a *app) routesCommand() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use:   "routes",
		Short: "one row per prefix: next hops with their shares, and who would take over",
		Args:  cobra.NoArgs,
		RunE: listing(a, func(ctx context.Context, c *api.Client) (api.Routes, error) { return c.Routes(ctx) }, func(d api.Routes) {
			if len(d.Routes) == 0 {
				a.say("There are no routes.\n")
				return
			}
			a.print(routesTable(d.Routes))
		}),
	})
}

// routesTable has one row per prefix, and one more for each further next hop.
func routesTable(routes []api.Route) *table {
	t := &table{painted: 7, columns: []column{
		{head: "PREFIX"},
		{head: "ORIGIN", flex: true},
		{head: "COST ms", right: true},
		{head: "NEXT HOP", flex: true},
		{head: "DEVICE"},
		{head: "SHARE %", right: true},
		{head: "RUNNER-UP", flex: true},
		{head: "KERNEL"},
	}}
	for _, r := range routes {
		first := api.NextHop{Peer: unknown, Device: unknown}
		carries, runner := unknown, unknown
		if len(r.NextHops) > 0 {
			first = r.NextHops[0]
			carries = share(first.Share)
		}
		if r.RunnerUp != nil {
			runner = r.RunnerUp.Peer + " " + r.RunnerUp.Device
		}
		installed, p := "yes", green
		if !r.Installed {
			installed, p = "no", red
		}
		rows := []row{{paint: p, cells: []string{
			r.Prefix.String(), all(r.Origins, ","), ms(r.CostMs), first.Peer, first.Device, carries, runner, installed,
		}}}
		for i := 1; i < len(r.NextHops); i++ {
			h := r.NextHops[i]
			rows = append(rows, row{cells: []string{"", "", "", h.Peer, h.Device, share(h.Share), "", ""}})
		}
		if !r.Installed {
			rows[len(rows)-1].notes = []string{r.Why}
		}
		for _, row := range rows {
			t.add(row)
		}
	}
	return t
}
