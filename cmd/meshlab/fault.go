package main

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"guywire/integration/lab"
)

const linkHelp = "\nLINK is a name that `meshlab status` lists, or NODE:INTERFACE of either end."

func (a *app) cutCommand() *cobra.Command {
	var (
		from    string
		carrier bool
	)
	c := &cobra.Command{
		Use:     "cut LINK",
		Short:   "Cut a link, silently or by pulling the plug",
		Long:    "Make everything on a link vanish. Nobody is told, unless --carrier pulls the plug." + linkHelp,
		Example: "  meshlab cut sto:isp1\n  meshlab cut sto:isp1 --from sto\n  meshlab cut sto:isp1 --carrier",
		Args:    wants(1, 1, "one link"),
		RunE: func(c *cobra.Command, args []string) error {
			if carrier && from != "" {
				return &exitError{exitUsage, fmt.Errorf("a carrier is lost in both directions; leave out --from or --carrier")}
			}
			l, err := a.attach()
			if err != nil {
				return err
			}
			if carrier {
				return l.Carrier(c.Context(), args[0], false)
			}
			return l.Cut(c.Context(), args[0], from)
		},
	}
	c.Flags().StringVar(&from, "from", "", "cut only what this node sends")
	c.Flags().BoolVar(&carrier, "carrier", false, "pull the plug: interfaces lose their carrier")
	return c
}

func (a *app) healCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "heal [LINK]",
		Short: "Undo every fault of a link, or of all links",
		Long:  "Undo cuts, lost carriers and impairments." + linkHelp,
		Args:  wants(0, 1, "at most one link"),
		RunE: func(c *cobra.Command, args []string) error {
			l, err := a.attach()
			if err != nil {
				return err
			}
			return l.Heal(c.Context(), strings.Join(args, ""))
		},
	}
}

func (a *app) impairCommand() *cobra.Command {
	var (
		p                              lab.Properties
		from, loss, reorder, dup, rate string
	)
	c := &cobra.Command{
		Use:     "impair LINK",
		Short:   "Change what a wire does to packets",
		Long:    "Replace the impairments of a wire: what is not given is none. Links that are veth pairs need `wire: true` in the network file." + linkHelp,
		Example: "  meshlab impair core-isp3 --delay 80ms --loss 2%\n  meshlab impair fra:isp1 --from fra --rate 10mbit",
		Args:    wants(1, 1, "one link"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := parseAll(&p, loss, reorder, dup, rate); err != nil {
				return &exitError{exitUsage, err}
			}
			l, err := a.attach()
			if err != nil {
				return err
			}
			return l.Impair(c.Context(), args[0], from, p)
		},
	}
	f := c.Flags()
	f.DurationVar(&p.Delay, "delay", 0, "one way")
	f.DurationVar(&p.Jitter, "jitter", 0, "added to the delay, random per packet")
	f.StringVar(&loss, "loss", "0", "share of packets, such as 2%")
	f.StringVar(&reorder, "reorder", "0", "share of packets")
	f.StringVar(&dup, "duplicate", "0", "share of packets")
	f.StringVar(&rate, "rate", "", "such as 10mbit (default unlimited)")
	f.IntVar(&p.BlackHole, "black-hole", 0, "larger IP packets vanish")
	f.StringVar(&from, "from", "", "impair only what this node sends")
	return c
}

func parseAll(p *lab.Properties, loss, reorder, dup, rate string) error {
	for _, r := range []struct {
		out  *lab.Ratio
		text string
	}{{&p.Loss, loss}, {&p.Reorder, reorder}, {&p.Duplicate, dup}} {
		var err error
		if *r.out, err = lab.ParseRatio(r.text); err != nil {
			return err
		}
	}
	if rate == "" {
		return nil
	}
	var err error
	p.Rate, err = lab.ParseRate(rate)
	return err
}

func (a *app) partitionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "partition NODES NODES…",
		Short:   "Cut every link between groups of nodes",
		Long:    "Cut, silently, every link between nodes of different groups. Each group is a list with commas.",
		Example: "  meshlab partition core,isp1,isp2 isp3,isp4",
		Args:    wants(2, -1, "at least two groups"),
		RunE: func(c *cobra.Command, args []string) error {
			l, err := a.attach()
			if err != nil {
				return err
			}
			var groups [][]string
			for _, g := range args {
				groups = append(groups, strings.Split(g, ","))
			}
			return l.Partition(c.Context(), groups...)
		},
	}
}

func (a *app) rebootCommand() *cobra.Command {
	var down time.Duration
	c := &cobra.Command{
		Use:   "reboot NODE",
		Short: "Switch a router or NAT off and on again",
		Long:  "Switch a router or NAT off and on again, and return when it is back. Its neighbours lose their carrier, a NAT forgets its mappings.",
		Args:  wants(1, 1, "one node"),
		RunE: func(c *cobra.Command, args []string) error {
			l, err := a.attach()
			if err != nil {
				return err
			}
			return l.Reboot(c.Context(), args[0], down)
		},
	}
	c.Flags().DurationVar(&down, "down", time.Second, "how long it is off")
	return c
}

func (a *app) readdressCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "readdress LINK [ADDRESS/LENGTH…]",
		Short:   "Give an uplink other addresses",
		Long:    "Give an uplink other addresses, by default the next free ones, and change all routes that follow." + linkHelp,
		Example: "  meshlab readdress fra:isp1",
		Args:    wants(1, 3, "a link and at most an address of each family"),
		RunE: func(c *cobra.Command, args []string) error {
			var addrs []netip.Prefix
			for _, s := range args[1:] {
				p, err := netip.ParsePrefix(s)
				if err != nil {
					return &exitError{exitUsage, fmt.Errorf("%q is not an address with its length, such as 198.18.1.6/30", s)}
				}
				addrs = append(addrs, p)
			}
			l, err := a.attach()
			if err != nil {
				return err
			}
			now, err := l.Readdress(c.Context(), args[0], addrs...)
			if err != nil {
				return err
			}
			fmt.Fprintln(c.OutOrStdout(), now)
			return nil
		},
	}
}
