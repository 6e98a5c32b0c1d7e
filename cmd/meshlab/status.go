package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"guywire/integration/lab"
)

// statusSchema is the version of the JSON that status prints.
const statusSchema = 1

func (a *app) statusCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "status",
		Short: "Show nodes, addresses, processes, links and faults",
		Args:  wants(0, 0, "no arguments"),
		RunE: a.inLab(func(c *cobra.Command, l *lab.Lab, _ []string) error {
			st, err := l.Status(c.Context())
			if err != nil {
				return err
			}
			if asJSON {
				e := json.NewEncoder(c.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(struct {
					Schema int `json:"schema"`
					*lab.Status
				}{statusSchema, st})
			}
			return printStatus(c.OutOrStdout(), st)
		}),
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func printStatus(out io.Writer, st *lab.Status) error {
	fmt.Fprintf(out, "lab %s in %s\n\n", st.Name, st.Dir)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NODE\tKIND\tSTATE\tADDRESSES\tPROCESSES")
	for _, n := range st.Nodes {
		var addrs, procs []string
		for _, i := range n.Interfaces {
			var a []string
			for _, p := range i.Addresses {
				a = append(a, p.String())
			}
			addrs = append(addrs, i.Name+" "+strings.Join(a, " "))
		}
		for _, p := range n.Processes {
			state := fmt.Sprintf("%d", p.PID)
			if !p.Running {
				state = fmt.Sprintf("ended with %d", p.Exit)
			}
			procs = append(procs, fmt.Sprintf("%s (%s)", p.Name, state))
		}
		// Routers have an interface per customer: one line each keeps the table narrow.
		for k := 0; k == 0 || k < max(len(addrs), len(procs)); k++ {
			name, kind, state := n.Name, string(n.Kind), strings.Join(append([]string{n.State}, n.Faults...), "; ")
			if k > 0 {
				name, kind, state = "", "", ""
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", name, kind, state, at(addrs, k), at(procs, k))
		}
	}
	fmt.Fprintln(w)
	fmt.Fprintln(w, "LINK\tENDS\tMEDIUM\tPROPERTIES\tFAULTS")
	for _, l := range st.Links {
		fmt.Fprintf(w, "%s\t%s %s\t%s\t%s\t%s\n", l.Name, l.Ends[0], l.Ends[1], l.Medium, l.Properties, strings.Join(l.Faults, "; "))
	}
	return w.Flush()
}

func at(s []string, i int) string {
	if i < len(s) {
		return s[i]
	}
	return ""
}
