package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"guywire/mesh/api"
)

func (a *app) pathCommand() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use:   "path [FROM] TO",
		Short: "hop by hop, the way of a packet between two nodes or addresses, as the kernel has it",
		Args:  cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			q := api.PathQuery{To: args[len(args)-1]}
			if len(args) == 2 {
				q.From = args[0]
			}
			client, err := a.dial()
			if err != nil {
				return err
			}
			defer client.Close()
			p, err := client.Path(c.Context(), q)
			if err != nil {
				return err
			}
			if a.json {
				err = a.document(p)
			} else {
				a.path(p)
			}
			if err == nil && !p.Reached {
				err = exitError(api.ExitUnreachable)
			}
			return err
		},
	})
}

func (a *app) path(p api.Path) {
	if p.Reached {
		a.say("%s → %s: reached in %s%s\n\n", p.From, p.To, hops(len(p.Hops)-1), total(p.Hops))
	} else {
		a.say("%s → %s: %s: %s\n\n", p.From, p.To, a.painted(red, "not reached"), p.Why)
	}
	t := table{painted: 6, columns: []column{
		{head: "#", right: true},
		{head: "NODE", flex: true},
		{head: "PREFIX"},
		{head: "NEXT HOP", flex: true},
		{head: "DEVICE"},
		{head: "RTT ms", right: true},
		{head: "KERNEL"},
	}}
	for i, h := range p.Hops {
		prefix, kernel, colour := unknown, unknown, plain
		if h.Prefix != nil {
			prefix = h.Prefix.String()
		}
		switch {
		case h.Agrees == nil:
		case *h.Agrees:
			kernel, colour = "agrees", green
		default:
			kernel, colour = "differs", red
		}
		r := row{paint: colour, cells: []string{
			fmt.Sprint(i + 1), h.Node, prefix, orUnknown(h.Peer), orUnknown(h.Device), ms(h.RTTMs), kernel,
		}}
		if h.Kernel != "" {
			r.notes = append(r.notes, "kernel: "+h.Kernel)
		}
		for _, alt := range h.Alternatives {
			r.notes = append(r.notes, fmt.Sprintf("or %s by %s, %s ms: %s", alt.Peer, alt.Device, ms(alt.CostMs), alt.Why))
		}
		t.add(r)
	}
	a.print(&t)
}

func hops(n int) string {
	if n == 1 {
		return "1 hop"
	}
	return fmt.Sprintf("%d hops", max(n, 0))
}

// total gives the sum of all RTTs, when each is known.
func total(hops []api.Hop) string {
	sum, unknown := 0.0, false
	for _, h := range hops {
		switch {
		case h.Peer == "":
		case h.RTTMs == nil:
			unknown = true
		default:
			sum += *h.RTTMs
		}
	}
	if unknown || sum == 0 {
		return ""
	}
	return ", " + ms(&sum) + " ms there and back"
}
