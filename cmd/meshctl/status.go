package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"guywire/mesh/api"
)

// statusNodes is how many nodes the status screen lists.
const statusNodes = 20

func (a *app) statusCommand() *cobra.Command {
	var check string
	c := a.jsonFlag(&cobra.Command{
		Use:   "status",
		Short: "one screen: what is wrong and what to do, this node, all nodes",
		Long: "Status says first what is wrong and what to do about it. It exits with 7 when something is\n" +
			"degraded or down. --check live exits with 0 when meshd answers, --check ready when the node is\n" +
			"in a mesh and its tunnels and routes are in the kernel, else with 7.",
		Args: cobra.NoArgs,
		RunE: a.asking(func(ctx context.Context, client *api.Client) error {
			switch check {
			case "":
				return a.status(ctx, client)
			case "live":
				if _, err := client.Version(ctx); err != nil {
					return err
				}
				a.say("live\n")
				return nil
			case "ready":
				return a.ready(ctx, client)
			default:
				return &usageError{fmt.Errorf("--check is %q but must be live or ready", check)}
			}
		}),
	})
	c.Flags().StringVar(&check, "check", "", "only check: live or ready")
	return c
}

// ready prints one line; exit code 7 when the node is not ready.
func (a *app) ready(ctx context.Context, client *api.Client) error {
	s, err := client.Status(ctx)
	if err != nil {
		return err
	}
	if s.Ready {
		a.say("ready\n")
		return nil
	}
	why := "the first complete state is not in the kernel yet"
	switch {
	case !s.Enrolled:
		why = "this node is in no mesh"
	case s.Kernel.Error != "":
		why = s.Kernel.Error
	}
	a.say("not ready: %s\n", why)
	return exitError(api.ExitDegraded)
}

func (a *app) status(ctx context.Context, client *api.Client) error {
	s, err := client.Status(ctx)
	if err != nil {
		return err
	}
	var nodes api.Nodes
	if s.Enrolled && !a.json {
		if nodes, err = client.Nodes(ctx, api.NodesQuery{}); err != nil {
			return err
		}
	}
	if a.json {
		err = a.document(s)
	} else {
		a.health(s)
		a.aboutNode(s)
		a.fewNodes(nodes)
	}
	if err == nil && s.Health.Level != api.OK {
		err = exitError(api.ExitDegraded)
	}
	return err
}

// health prints the findings, or that there are none.
func (a *app) health(s api.Status) {
	if len(s.Health.Findings) == 0 {
		switch {
		case !s.Enrolled:
			a.say("%s: meshd runs; this node is in no mesh\n    next: meshctl init makes one, meshctl join enters one\n", a.painted(green, "ok"))
		default:
			a.say("%s: %d of %d other nodes reached, %d of %d links up\n", a.painted(green, "ok"), s.Nodes.Good, s.Nodes.Total, s.Links.Good, s.Links.Total)
		}
	}
	a.findings(s.Health.Findings)
	a.say("\n")
}

// findings prints what is wrong, each with its next step.
func (a *app) findings(list []api.Finding) {
	for _, f := range list {
		lines := wrap(clean(string(f.Level)+": "+f.Sentence), screen)
		head, rest, _ := strings.Cut(lines[0], ":")
		a.say("%s:%s\n", a.painted(levelPaint(f.Level), head), rest)
		for _, line := range lines[1:] {
			a.say("    %s\n", line)
		}
		if f.Next != "" {
			a.say("    next: %s\n", f.Next)
		}
	}
}

// aboutNode prints this node, one fact a line.
func (a *app) aboutNode(s api.Status) {
	fact := func(what, format string, args ...any) {
		a.say("%-11s", what)
		a.say(format+"\n", args...)
	}
	if n := s.Node; n != nil && s.Mesh != nil {
		leader := "no leader is known"
		switch n.Leader {
		case "":
		case n.Name:
			leader = "leader"
		default:
			leader = "leader " + n.Leader
		}
		fact("node", "%s in mesh %s, %s, %s", n.Name, s.Mesh.Name, n.Role, leader)
		fact("addresses", "%s", all(n.Addrs, ", "))
		fact("networks", "%s", all(n.Prefixes, ", "))
		fact("nodes", "%d of %d others reached", s.Nodes.Good, s.Nodes.Total)
		fact("links", "%d of %d up", s.Links.Good, s.Links.Total)
	}
	for i, u := range s.Uplinks {
		what := ""
		if i == 0 {
			what = "uplinks"
		}
		fact(what, "%s", a.uplink(u))
	}
	if s.Dataplane != "" {
		fact("dataplane", "%s WireGuard, %s", s.Dataplane, a.revision(s.Kernel))
	}
	if e := s.LastEvent; e != nil {
		fact("last event", "%s ago: %s (%s)", a.since(&e.Time), e.Sentence, e.Cause)
	}
	fact("meshd", "%s, runs for %s", s.Version, a.since(&s.Started))
}

// uplink gives an uplink in words.
func (a *app) uplink(u api.Uplink) string {
	words := []string{fmt.Sprintf("%s (%s)", u.Name, u.Interface)}
	if u.Up {
		words[0] += " up"
	} else {
		words[0] += " down"
	}
	if u.Metered {
		words = append(words, "metered")
	}
	if u.Drain != nil {
		words = append(words, "drained since "+a.since(&u.Drain.Since))
	}
	words = append(words, u.Outside())
	if len(u.Reflexive) > 0 {
		words = append(words, "seen as "+all(u.Reflexive, " and "))
	} else if len(u.Addrs) > 0 {
		words = append(words, all(u.Addrs, " and "))
	}
	return strings.Join(words, ", ")
}

func (a *app) revision(r api.Revision) string {
	switch {
	case r.Error != "":
		return fmt.Sprintf("revision %d fails for %s: %s", r.Wanted, a.since(r.Since), r.Error)
	case r.Wanted != r.Applied:
		return fmt.Sprintf("revision %d pending for %s, %d in the kernel", r.Wanted, a.since(r.Since), r.Applied)
	default:
		return fmt.Sprintf("revision %d in the kernel", r.Applied)
	}
}

// fewNodes prints the nodes, those in trouble first.
func (a *app) fewNodes(d api.Nodes) {
	if len(d.Nodes) == 0 {
		return
	}
	a.say("\n")
	worst := []string{api.ReachNone, api.ReachTransit, api.ReachDirect, api.ReachSelf}
	nodes := slices.Clone(d.Nodes)
	slices.SortStableFunc(nodes, func(m, n api.Node) int {
		return cmp.Compare(slices.Index(worst, m.Reach), slices.Index(worst, n.Reach))
	})
	more := len(nodes) - statusNodes
	a.print(a.nodesTable(nodes[:min(len(nodes), statusNodes)], false))
	if more > 0 {
		a.say("and %d more: meshctl nodes\n", more)
	}
}
