package main

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"guywire/integration/lab"
	"guywire/integration/lab/disk"
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
	var node string
	c := &cobra.Command{
		Use:   "heal [LINK]",
		Short: "Undo every fault of a link or a node, or all faults",
		Long:  "Undo cuts, lost carriers and impairments of a link, or with --node the faults of a node's disk, clock and processes; or all of all." + linkHelp,
		Args:  wants(0, 1, "at most one link"),
		RunE: func(c *cobra.Command, args []string) error {
			if node != "" && len(args) > 0 {
				return &exitError{exitUsage, fmt.Errorf("--node and a link exclude each other; keep one")}
			}
			l, err := a.attach()
			if err != nil {
				return err
			}
			if node != "" {
				return l.HealNode(c.Context(), node)
			}
			return l.Heal(c.Context(), strings.Join(args, ""))
		},
	}
	c.Flags().StringVar(&node, "node", "", "undo the faults of this node itself")
	return c
}

const forHelp = "end the fault after this time, and return then (default: when it is healed)"

func (a *app) stallCommand() *cobra.Command {
	var (
		fails string
		d     time.Duration
	)
	c := &cobra.Command{
		Use:     "stall NODE",
		Short:   "Stall the disk of a node, or make it fail",
		Long:    "Make fsync calls on a node wait until the disk is healed, or fail. It needs a lab that was started by `meshlab up --faults`.",
		Example: "  meshlab stall fra --for 30s\n  meshlab stall fra --error EIO\n  meshlab heal --node fra",
		Args:    wants(1, 1, "one node"),
		RunE: func(c *cobra.Command, args []string) error {
			fault := disk.Stall
			if fails != "" {
				if fault = disk.Fault(strings.ToUpper(fails)); !fault.Known() || fault == disk.Stall {
					return &exitError{exitUsage, fmt.Errorf("a disk cannot fail with %q; write EIO or ENOSPC", fails)}
				}
			}
			l, err := a.attach()
			if err != nil {
				return err
			}
			return l.Disk(c.Context(), args[0], fault, d)
		},
	}
	c.Flags().StringVar(&fails, "error", "", "fail at once, with EIO or ENOSPC")
	c.Flags().DurationVar(&d, "for", 0, forHelp)
	return c
}

func (a *app) clockCommand() *cobra.Command {
	var d time.Duration
	c := &cobra.Command{
		Use:     "clock NODE OFFSET|TIME",
		Short:   "Step the wall clock of a node",
		Long:    "Step the wall clock of a node's agent to OFFSET from the machine's, or to TIME as of RFC 3339. It needs a lab that was started by `meshlab up --faults`.",
		Example: "  meshlab clock fra 1h\n  meshlab clock fra -- -1h\n  meshlab clock fra 1970-01-01T00:00:00Z --for 30s\n  meshlab heal --node fra",
		Args:    wants(2, 2, "a node and an offset or a time"),
		RunE: func(c *cobra.Command, args []string) error {
			offset, err := parseOffset(args[1], time.Now())
			if err != nil {
				return &exitError{exitUsage, err}
			}
			l, err := a.attach()
			if err != nil {
				return err
			}
			return l.Clock(c.Context(), args[0], offset, d)
		},
	}
	c.Flags().DurationVar(&d, "for", 0, forHelp)
	return c
}

func parseOffset(s string, now time.Time) (time.Duration, error) {
	if d, err := time.ParseDuration(s); err == nil {
		return d, nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return 0, fmt.Errorf("%q is no offset such as 1h or -90s, and no time such as 1970-01-01T00:00:00Z", s)
	}
	return t.Sub(now), nil
}

func (a *app) pauseCommand() *cobra.Command {
	var d time.Duration
	c := &cobra.Command{
		Use:     "pause NODE [PROCESS]",
		Short:   "Stop the agent of a site for a while, or another process",
		Long:    "Stop a process that `start` or `up` started, as if its machine were suspended. Without PROCESS that is the site's agent; its data plane lives on.",
		Example: "  meshlab pause fra --for 5s\n  meshlab heal --node fra",
		Args:    wants(1, 2, "a node and at most one process"),
		RunE: a.inLab(func(c *cobra.Command, l *lab.Lab, args []string) error {
			return l.Pause(c.Context(), args[0], strings.Join(args[1:], ""), d)
		}),
	}
	c.Flags().DurationVar(&d, "for", 0, forHelp)
	return c
}

func (a *app) suspendCommand() *cobra.Command {
	var d, jump time.Duration
	c := &cobra.Command{
		Use:     "suspend NODE",
		Short:   "Stop everything on a node for a while, as if the machine slept",
		Long:    "Stop every process of a node, its data plane too. With --jump its wall clock is later from then on, as if it had slept longer; that needs a lab that was started by `meshlab up --faults`.",
		Example: "  meshlab suspend fra --for 30s\n  meshlab suspend fra --for 5s --jump 8h\n  meshlab heal --node fra",
		Args:    wants(1, 1, "one node"),
		RunE: a.inLab(func(c *cobra.Command, l *lab.Lab, args []string) error {
			return l.Suspend(c.Context(), args[0], d, jump)
		}),
	}
	c.Flags().DurationVar(&d, "for", 0, forHelp)
	c.Flags().DurationVar(&jump, "jump", 0, "step the wall clock on by this")
	return c
}

func (a *app) natCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "nat NODE KIND",
		Short:   "Make another kind of box of a NAT",
		Long:    "Make another kind of box of a NAT: eim, eim-random-port, adf, full-cone or symmetric. Flows that it knows keep their mappings; `meshlab reboot` makes it forget them.",
		Example: "  meshlab nat mad-nat symmetric",
		Args:    wants(2, 2, "a nat and a kind"),
		RunE: a.inLab(func(c *cobra.Command, l *lab.Lab, args []string) error {
			return l.Translate(c.Context(), args[0], lab.Mapping(args[1]))
		}),
	}
}

func (a *app) udpCommand() *cobra.Command {
	return &cobra.Command{
		Use:       "udp NODE on|off",
		Short:     "Let UDP through a NAT or firewall, or not",
		Long:      "Let UDP through a NAT or firewall, or drop all of it, known flows too.",
		Example:   "  meshlab udp mad-nat off",
		Args:      wants(2, 2, "a nat, and on or off"),
		ValidArgs: []string{"on", "off"},
		RunE: a.inLab(func(c *cobra.Command, l *lab.Lab, args []string) error {
			if args[1] != "on" && args[1] != "off" {
				return &exitError{exitUsage, fmt.Errorf("%q is neither on nor off", args[1])}
			}
			return l.UDP(c.Context(), args[0], args[1] == "on")
		}),
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
		RunE: a.inLab(func(c *cobra.Command, l *lab.Lab, args []string) error {
			var groups [][]string
			for _, g := range args {
				groups = append(groups, strings.Split(g, ","))
			}
			return l.Partition(c.Context(), groups...)
		}),
	}
}

func (a *app) rebootCommand() *cobra.Command {
	var down time.Duration
	c := &cobra.Command{
		Use:   "reboot NODE",
		Short: "Switch a router or NAT off and on again",
		Long:  "Switch a router or NAT off and on again, and return when it is back. Its neighbours lose their carrier, a NAT forgets its mappings.",
		Args:  wants(1, 1, "one node"),
		RunE: a.inLab(func(c *cobra.Command, l *lab.Lab, args []string) error {
			return l.Reboot(c.Context(), args[0], down)
		}),
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
