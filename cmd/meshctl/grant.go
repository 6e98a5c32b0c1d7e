package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/spf13/cobra"

	"guywire/mesh/api"
)

func (a *app) revokeCommand() *cobra.Command {
	var yes bool
	c := a.jsonFlag(&cobra.Command{
		Use:   "revoke NODE",
		Short: "remove a node for ever: lost, stolen or taken over",
		Long: "Revoke removes a node: every other one cuts it off when it hears of that, and its identity is never\n" +
			"let in again. When no majority of the voters can be reached, those that can be cut it off all the same.\n" +
			"When it knew the key that certificates are made with, the mesh changes to another one.\n" +
			"A node that is to go in good order leaves: meshctl leave.",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if !yes {
				if !a.typed {
					return &usageError{errors.New("revoke asks before it acts: say --yes when no one can answer")}
				}
				sayTo(a.err, "%s is cut off from the mesh for ever; to come back it needs an empty state directory and a new token.\n", args[0])
				if err := a.confirm("Revoke?"); err != nil {
					return err
				}
			}
			return listing(a, func(ctx context.Context, client *api.Client) (api.Done, error) {
				return client.Revoke(ctx, args[0])
			}, a.done)(c, args)
		},
	})
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}

func (a *app) grantCommand() *cobra.Command {
	var shared []string
	var none bool
	c := a.jsonFlag(&cobra.Command{
		Use:   "grant NODE [NETWORK ...]",
		Short: "set the networks that a node may announce: these, and no others",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) (err error) {
			r := api.GrantRequest{Node: args[0]}
			if r.Prefixes, err = prefixFlag(args[1:]); err != nil {
				return err
			}
			if r.Shared, err = prefixFlag(shared); err != nil {
				return err
			}
			r.Prefixes = append(r.Prefixes, r.Shared...)
			if none == (len(r.Prefixes) > 0) {
				return &usageError{errors.New("name the networks, or say --none for none")}
			}
			return listing(a, func(ctx context.Context, client *api.Client) (api.Done, error) {
				return client.Grant(ctx, r)
			}, a.done)(c, args)
		},
	})
	c.Flags().StringArrayVar(&shared, "shared", nil, "network that several nodes announce, each with this flag; may be repeated")
	c.Flags().BoolVar(&none, "none", false, "no networks")
	return c
}

func (a *app) reserveCommand() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use:   "reserve [NAME ADDRESS]",
		Short: "keep an address for the node that will join with a name; alone: what is kept",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 0 && len(args) != 2 {
				return errors.New("reserve takes a name and an address, or nothing")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return listing(a, func(ctx context.Context, client *api.Client) (api.Reservations, error) {
					return client.Reservations(ctx)
				}, a.reservations)(c, args)
			}
			addr, err := netip.ParseAddr(args[1])
			if err != nil {
				return &usageError{fmt.Errorf("%q is not an address such as 10.86.0.20", args[1])}
			}
			return listing(a, func(ctx context.Context, client *api.Client) (api.Done, error) {
				return client.Reserve(ctx, api.ReserveRequest{Name: args[0], Addr: addr})
			}, a.done)(c, args)
		},
	})
}

func (a *app) reservations(d api.Reservations) {
	if len(d.Reservations) == 0 {
		a.say("Nothing is kept.\n")
		return
	}
	t := table{columns: []column{{head: "FOR NODE", flex: true}, {head: "ADDRESSES"}}}
	for _, r := range d.Reservations {
		t.add(row{cells: []string{r.Name, all(r.Addrs, ", ")}})
	}
	a.print(&t)
}

func (a *app) unreserveCommand() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use:   "unreserve NAME",
		Short: "give a kept address back",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return listing(a, func(ctx context.Context, client *api.Client) (api.Done, error) {
				return client.Unreserve(ctx, args[0])
			}, a.done)(c, args)
		},
	})
}
