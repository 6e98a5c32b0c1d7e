package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"guywire/mesh/api"
)

func (a *app) raftCommand() *cobra.Command {
	c := &cobra.Command{Use: "raft", Short: "who keeps the log of the mesh; recover it when most of them are lost", Args: cobra.NoArgs}
	c.AddCommand(a.raftStatusCommand(), a.raftRecoverCommand())
	c.RunE = func(*cobra.Command, []string) error { return &usageError{errors.New("say status or recover")} }
	return c
}

func (a *app) raftStatusCommand() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use:   "status",
		Short: "voters and learners: who leads, who answers, who is behind",
		Args:  cobra.NoArgs,
		RunE:  listing(a, func(ctx context.Context, c *api.Client) (api.RaftStatus, error) { return c.Raft(ctx) }, a.raft),
	})
}

func (a *app) raft(s api.RaftStatus) {
	fact := func(what, format string, args ...any) {
		a.say("%-11s", what)
		a.say(format+"\n", args...)
	}
	leader := orUnknown(s.Leader)
	if s.Term != nil {
		leader += fmt.Sprintf(", term %d", *s.Term)
	}
	fact("leader", "%s", leader)
	known := fmt.Sprintf("index %d", s.Index)
	if s.Lag > 0 {
		known += fmt.Sprintf(", %s behind", plural(int(min(s.Lag, 1<<31)), "write"))
	}
	if s.Confirmed != nil {
		known += ", confirmed " + a.since(s.Confirmed) + " ago"
	}
	fact("this node", "%s, %s", s.Role, known)
	fact("mesh", "version %d, recovered %s", s.Version, times(s.Generation))
	if s.Problem != "" {
		fact("problem", "%s", s.Problem)
	}
	if !s.Complete {
		fact("note", "the leader did not answer; what only it knows is shown as %s", unknown)
	}
	a.say("\n")
	t := table{painted: 5, columns: []column{
		{head: "NODE", flex: true},
		{head: "ADDRESS"},
		{head: "SITE", flex: true},
		{head: "VOTER"},
		{head: "LEADER"},
		{head: "HEALTH"},
		{head: "SINCE"},
		{head: "LAST", right: true},
		{head: "LAG", right: true},
	}}
	for _, m := range s.Members {
		addr, health, p := unknown, unknown, plain
		if m.Addr.IsValid() {
			addr = m.Addr.String()
		}
		switch {
		case m.Connected != nil && !*m.Connected:
			health, p = "silent", red
		case m.Healthy != nil && *m.Healthy:
			health, p = "good", green
		case m.Healthy != nil:
			health, p = "behind", yellow
		}
		t.add(row{paint: p, cells: []string{
			m.Name, addr, orUnknown(m.Site), yesNo(m.Voter), yesNo(m.Leader), health, a.since(m.Since), number(m.Last), number(m.Lag),
		}})
	}
	a.print(&t)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func number(n *uint64) string {
	if n == nil {
		return unknown
	}
	return strconv.FormatUint(*n, 10)
}

func times(n uint64) string {
	switch n {
	case 0:
		return "never"
	case 1:
		return "once"
	default:
		return fmt.Sprintf("%d times", n)
	}
}

func (a *app) raftRecoverCommand() *cobra.Command {
	var yes bool
	c := a.jsonFlag(&cobra.Command{
		Use:   "recover",
		Short: "begin the mesh anew on this node, when most voters are lost for good",
		Long: "Recover is for a mesh whose majority of voters is lost for good: without one nothing can be changed,\n" +
			"while traffic goes on. It asks every node that is reached for the newest state, and prints what it\n" +
			"would do; with --yes it does that. It is refused while any node hears from a leader.\n" +
			"Two or more voters of the old mesh that come back and meet nobody of the new one could go on with\n" +
			"the old mesh: wipe or revoke those that are gone.",
		Args: cobra.NoArgs,
		RunE: a.asking(func(ctx context.Context, client *api.Client) error {
			plan, err := client.Recover(ctx, api.RecoverRequest{})
			if err != nil {
				return err
			}
			if !a.json {
				a.plan(plan)
			}
			if yes {
				if plan, err = client.Recover(ctx, api.RecoverRequest{Plan: plan.Plan}); err != nil {
					return err
				}
			}
			switch {
			case a.json:
				return a.document(plan)
			case yes:
				a.say("\nThe mesh is recovered. This node is its only voter until others are ready.\n    next: meshctl raft status\n")
			default:
				a.say("\nNothing was changed.\n    next: meshctl raft recover --yes\n")
			}
			return nil
		}),
	})
	c.Flags().BoolVar(&yes, "yes", false, "do it")
	return c
}

func (a *app) plan(p api.RecoverPlan) {
	a.say("The mesh would begin anew on this node, as generation %d, with the state of %s at index %d.\n\n", p.Generation, p.Source, p.Index)
	fact := func(what, value string) { a.say("%-10s %s\n", what, value) }
	fact("reached", all(p.Reached, ", "))
	fact("silent", all(p.Silent, ", "))
	fact("lost", all(p.LostVoters, ", "))
	if len(p.LostVoters) > 0 {
		a.say("    what only these voters have is lost\n")
	}
	if !p.Trusted {
		a.say("    this node is neither voter nor operator, so the others will not follow it: each must join anew\n")
	}
	for i, w := range p.Appear {
		if i == 0 {
			a.say("\nWrites that become part of the mesh, though nobody knows whether they were acknowledged:\n")
		}
		a.say("  %d  %s  %s  %s %s\n", w.Index, a.clock(w.Time), orUnknown(w.Author), w.Action, w.About)
	}
}
