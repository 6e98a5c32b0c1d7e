package main

import (
	"context"

	"github.com/spf13/cobra"

	"guywire/mesh/api"
)

func (a *app) routesCommand() *cobra.Command {
	var successors bool
	c := a.jsonFlag(&cobra.Command{
		Use:   "routes",
		Short: "one row per prefix: next hops with their shares, and who would take over",
		Args:  cobra.NoArgs,
		RunE: listing(a, func(ctx context.Context, c *api.Client) (api.Routes, error) { return c.Routes(ctx) }, func(d api.Routes) {
			if len(d.Routes) == 0 {
				a.say("There are no routes.\n")
				return
			}
			if successors {
				a.print(successorsTable(d.Routes))
			} else {
				a.print(routesTable(d.Routes))
			}
		}),
	})
	c.Flags().BoolVarP(&successors, "successors", "s", false, "each neighbour's distance, and whether it is a loop-free next hop")
	return c
}

// successorsTable has one row per neighbour of each destination.
func successorsTable(routes []api.Route) *table {
	t := &table{painted: 9, columns: []column{
		{head: "PREFIX"},
		{head: "ORIGIN", flex: true},
		{head: "STATE"},
		{head: "COST ms", right: true},
		{head: "RD", right: true},
		{head: "FD", right: true},
		{head: "NEIGHBOUR", flex: true},
		{head: "ITS RD", right: true},
		{head: "THROUGH IT", right: true},
		{head: "USE"},
	}}
	for _, r := range routes {
		f := r.Feasibility
		if f == nil {
			t.add(row{cells: []string{r.Prefix.String(), all(r.Origins, ","), unknown, ms(r.CostMs), unknown, unknown, unknown, unknown, unknown, unknown}})
			continue
		}
		state := "passive"
		if f.Active {
			state = "active"
		}
		cells := []string{r.Prefix.String(), all(r.Origins, ","), state, ms(f.DistanceMs), ms(f.ReportedMs), ms(f.FeasibleMs)}
		if len(f.Neighbours) == 0 {
			t.add(row{cells: append(cells, unknown, unknown, unknown, unknown)})
		}
		for _, s := range f.Neighbours {
			use, colour := s.Use, green
			switch {
			case !s.Successor:
				use, colour = "not closer", plain
			case s.Use == api.UseNone:
				use, colour = "not used", yellow
			}
			t.add(row{paint: colour, cells: append(cells, s.Peer, ms(s.ReportedMs), ms(s.ThroughMs), use)})
			cells = make([]string, len(cells))
		}
	}
	return t
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
