package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"guywire/mesh/api"
)

func (a *app) netcheckCommand() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use:   "netcheck [NODE]",
		Short: "what the networks of this node let through, and which direct links that allows",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return listing(a, func(ctx context.Context, client *api.Client) (api.Netcheck, error) {
				d, err := client.Netcheck(ctx)
				if err != nil || len(args) == 0 {
					return d, err
				}
				if err := known(ctx, client, args[0]); err != nil {
					return d, err
				}
				d.Pairs = slices.DeleteFunc(d.Pairs, func(p api.PairCheck) bool { return p.Peer != args[0] && p.PeerID.String() != args[0] })
				return d, nil
			}, a.netcheck)(c, args)
		},
		ValidArgsFunction: a.completeNodes,
	})
}

// known fails when the mesh has no node of that name or id.
func known(ctx context.Context, client *api.Client, name string) error {
	d, err := client.Nodes(ctx, api.NodesQuery{})
	if err == nil && !slices.ContainsFunc(d.Nodes, func(n api.Node) bool { return n.Name == name || n.ID.String() == name }) {
		err = api.Errorf(api.CodeNotFound, "meshctl nodes lists all nodes", "There is no node %s", name)
	}
	return err
}

// completeNodes gives the shell the names of all nodes, for the first argument.
func (a *app) completeNodes(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var names []string
	if len(args) == 0 {
		_ = a.asking(func(ctx context.Context, client *api.Client) error { // without an answer there is nothing to offer
			d, err := client.Nodes(ctx, api.NodesQuery{})
			for _, n := range d.Nodes {
				names = append(names, n.Name)
			}
			return err
		})(c, nil)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) netcheck(d api.Netcheck) {
	a.findings(d.Advice)
	if len(d.Advice) == 0 {
		a.say("%s: nothing stands in the way of direct links\n", a.painted(green, "ok"))
	}
	a.say("\ncontrol  %s\n", reached(d.Control, "others reach this node at", "others do not reach this node from outside"))
	a.say("STUN     %s\n\n", reached(d.STUN, "others may ask at", "others cannot ask this node for their outside address"))
	a.print(a.uplinkChecks(d.Uplinks))
	if len(d.Pairs) > 0 {
		a.say("\nNeighbours without a direct link:\n")
		a.print(a.pairChecks(d.Pairs))
	}
}

func reached(at []netip.AddrPort, somewhere, nowhere string) string {
	if len(at) == 0 {
		return nowhere
	}
	return somewhere + " " + all(at, " and ")
}

func (a *app) uplinkChecks(uplinks []api.UplinkCheck) *table {
	t := &table{painted: 4, columns: []column{
		{head: "UPLINK", flex: true},
		{head: "ADDRESSES", flex: true},
		{head: "IPv4"},
		{head: "IPv6"},
		{head: "UDP"},
		{head: "SEEN AS", flex: true},
		{head: "MEASURED"},
	}}
	for _, u := range uplinks {
		var seen []netip.Addr
		for _, e := range u.Uplink.Reflexive {
			if !slices.Contains(seen, e.Addr()) {
				seen = append(seen, e.Addr())
			}
		}
		r := row{paint: udpPaint(u.UDP), cells: []string{
			u.Uplink.Name, few(u.Uplink.Addrs), api.NATInWords(u.Uplink.NAT), api.NATInWords(u.Uplink.NAT6), u.UDP, few(seen), a.since(u.Checked),
		}}
		if len(u.Forwarded) > 0 {
			note := "tunnels are let in at " + all(u.Forwarded, " and ")
			if u.Mapping != "" {
				note += "; the gateway maps ports by " + u.Mapping
			}
			r.notes = append(r.notes, note)
		}
		for _, l := range []struct{ family, lifetime string }{{"IPv4", u.Lifetime}, {"IPv6", u.Lifetime6}} {
			if note := lifetimeNote(l.family, l.lifetime); note != "" {
				r.notes = append(r.notes, note)
			}
		}
		for _, s := range u.Servers {
			note := fmt.Sprintf("%s at %s does not answer", orUnknown(s.Node), s.Server)
			if s.RTTMs != nil {
				note = fmt.Sprintf("%s at %s answers in %s ms, sees %s", orUnknown(s.Node), s.Server, ms(s.RTTMs), s.Seen)
			}
			r.notes = append(r.notes, note)
		}
		t.add(r)
	}
	return t
}

// lifetimeNote says what an uplink lets in; nothing where that was not measured.
func lifetimeNote(family, lifetime string) string {
	switch lifetime {
	case "", "unknown":
		return ""
	case "endless":
		return family + " packets come in unasked: tunnels need not be kept open"
	case "short":
		return family + " tunnels close in less than 25 s of silence: kept open every 10 s"
	}
	return fmt.Sprintf("%s tunnels stay open for %s s of silence or more", family, strings.TrimSuffix(lifetime, "s"))
}

func udpPaint(udp string) paint {
	switch udp {
	case "passes":
		return green
	case "blocked":
		return red
	default:
		return yellow
	}
}

func (a *app) pairChecks(pairs []api.PairCheck) *table {
	t := &table{painted: 2, columns: []column{
		{head: "NODE", flex: true},
		{head: "UPLINKS", flex: true},
		{head: "DIRECT LINK"},
		{head: "REACHED"},
		{head: "NEXT TRY"},
	}}
	for _, p := range pairs {
		verdict, colour, reach, next := "should work", yellow, "no", unknown
		switch p.Expected {
		case api.ExpectPerhaps:
			verdict = "may work"
		case api.ExpectNever:
			verdict, colour = "cannot work", plain
		}
		if p.Via != "" {
			reach = "via " + p.Via
		}
		if p.NextTry != nil {
			next = a.until(*p.NextTry)
		}
		r := row{paint: colour, cells: []string{p.Peer, p.Local + " → " + p.Remote, verdict, reach, next}}
		if p.Why != "" {
			r.notes = append(r.notes, p.Why)
		}
		if p.Reason != "" {
			r.notes = append(r.notes, "last try: "+p.Reason)
		}
		t.add(r)
	}
	return t
}
