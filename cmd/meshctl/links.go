package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"guywire/mesh/api"
)

func (a *app) linksCommand() *cobra.Command {
	var wide bool
	c := a.jsonFlag(&cobra.Command{
		Use:   "links [NODE]",
		Short: "one row per link: a neighbour over one uplink pair, measured",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return listing(a, func(ctx context.Context, client *api.Client) (api.Links, error) {
				d, err := client.Links(ctx)
				if err != nil || len(args) == 0 {
					return d, err
				}
				d.Links = slices.DeleteFunc(d.Links, func(l api.Link) bool { return l.Peer != args[0] && l.PeerID.String() != args[0] })
				if len(d.Links) == 0 {
					err = api.Errorf(api.CodeNotFound, "meshctl nodes lists all nodes", "There is no link to %s", args[0])
				}
				return d, err
			}, func(d api.Links) {
				if len(d.Links) == 0 {
					a.say("There are no links.\n")
					return
				}
				a.print(a.linksTable(d.Links, wide))
			})(c, args)
		},
		ValidArgsFunction: a.completeNodes,
	})
	c.Flags().BoolVarP(&wide, "wide", "w", false, "also device, port, endpoint, bytes and reason; wider than a screen")
	return c
}

func (a *app) linksTable(links []api.Link, wide bool) *table {
	t := &table{wide: wide, painted: 2, columns: []column{
		{head: "PEER", flex: true},
		{head: "UPLINKS", flex: true},
		{head: "STATE"},
		{head: "RTT ms", right: true},
		{head: "JITTER", right: true},
		{head: "LOSS % out/in", right: true},
		{head: "SHARE %", right: true},
		{head: "MTU", right: true},
		{head: "FOR"},
	}}
	if wide {
		t.columns = append(t.columns, column{head: "DEVICE"}, column{head: "PORT", right: true}, column{head: "ENDPOINT"},
			column{head: "SENT", right: true}, column{head: "RECEIVED", right: true}, column{head: "REASON"})
	}
	for _, l := range links {
		mtu, endpoint := unknown, unknown
		if l.MTU > 0 {
			mtu = fmt.Sprint(l.MTU)
		}
		if l.Endpoint.IsValid() {
			endpoint = l.Endpoint.String()
		}
		state, colour := string(l.State), linkPaint(l.State)
		why := l.Reason
		if l.Path == "carrier" {
			why = "over TLS, as UDP does not pass; " + why
		}
		if l.NextTry != nil {
			why += "; next try " + a.until(*l.NextTry)
		}
		if l.Drain != nil {
			why += "; " + a.sinceDrain(l.Drain)
			if l.State == api.LinkUp || l.State == api.LinkDegraded {
				state, colour = "drained", yellow
			}
		}
		r := row{paint: colour, cells: []string{
			l.Peer, flow(l), state, ms(l.RTTMs), ms(l.JitterMs), percent(l.LossOut) + "/" + percent(l.LossIn),
			share(l.Share), mtu, a.since(&l.Since),
		}}
		switch {
		case wide:
			r.cells = append(r.cells, l.Device, fmt.Sprint(l.LocalPort), endpoint, size(l.TxBytes), size(l.RxBytes), why)
		case l.State != api.LinkUp || l.Drain != nil || l.Path == "carrier":
			r.notes = []string{why}
		}
		t.add(r)
	}
	return t
}

func linkPaint(s api.LinkState) paint {
	switch s {
	case api.LinkUp:
		return green
	case api.LinkDown:
		return red
	default:
		return yellow
	}
}
