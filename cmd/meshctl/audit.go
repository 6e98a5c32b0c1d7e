package main

import (
	"context"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"guywire/mesh/api"
)

// upkeep are the actions that nodes take by themselves, all the time.
var upkeep = []string{"set_control", "register_boot"}

func (a *app) auditCommand() *cobra.Command {
	var whole bool
	var q api.AuditQuery
	c := a.jsonFlag(&cobra.Command{
		Use:   "audit",
		Short: "who changed what in the mesh; checks that nothing of it was altered",
		Long: "Audit prints a line for each entry of the log of the mesh: when, who signed it, what was asked and\n" +
			"what came of it. The records are a chain of hashes; it checks that each continues the one before,\n" +
			"up to the newest that this node knows, and exits with 7 at a break.",
		Args: cobra.NoArgs,
		RunE: a.asking(func(ctx context.Context, client *api.Client) error {
			var first, last api.AuditRecord
			err := client.Audit(ctx, q, func(r api.AuditRecord) error {
				if first.N == 0 {
					first = r
				} else if r.Prev != last.Head || r.N != last.N+1 {
					return api.Errorf(api.CodeCorrupt, "compare with meshctl audit on another voter", "The audit record %d does not continue record %d", r.N, last.N)
				}
				last = r
				if !whole && slices.Contains(upkeep, r.Action) {
					return nil
				}
				return a.auditRecord(r)
			})
			if err == nil && !a.json && last.N > 0 {
				sayTo(a.err, "The records %d to %d are whole; the head of the last is %s.\n", first.N, last.N, last.Head)
			}
			return err
		}),
	})
	c.Flags().BoolVar(&whole, "all", false, "also what nodes say of themselves: where they are reached, which copy of the log they run")
	c.Flags().Uint64Var(&q.From, "from", 0, "number of the first record (default: the oldest that is kept)")
	return c
}

func (a *app) auditRecord(r api.AuditRecord) error {
	if a.json {
		return a.record(r)
	}
	when := unknown
	if !r.Time.IsZero() {
		when = a.clock(r.Time)
	}
	line := strings.TrimRight(strings.ReplaceAll(r.Action, "_", "-")+" "+r.About, " ")
	a.say("%6d  %s  %-16s  %s: %s\n", r.N, when, orUnknown(r.Author), line, r.Outcome)
	return nil
}
