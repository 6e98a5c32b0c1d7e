package main

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/spf13/cobra"

	"guywire/mesh/api"
)

func (a *app) drainCommand() *cobra.Command {
	var r api.DrainRequest
	var wait time.Duration
	var yes bool
	c := a.jsonFlag(&cobra.Command{
		Use:   "drain [NODE | UPLINK | NODE/UPLINK | UPLINK:NODE/UPLINK]",
		Short: "lead traffic around a node, an uplink or a link before maintenance; alone: what is drained",
		Long: "Drain leads traffic around a node, an uplink of this node, an uplink of another node, or one link\n" +
			"by its two ends, and waits until this node sends nothing over it. Links stay up and nodes stay\n" +
			"reachable; what has no other way stays where it is. It holds, also across restarts, until undrain.\n" +
			"On a terminal it says what would move and asks. It exits with 7 when something still goes over it.\n" +
			"Without a target it lists what is drained.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return listing(a, func(ctx context.Context, c *api.Client) (api.Drains, error) { return c.Drains(ctx) }, a.drains)(c, args)
			}
			if wait < 0 || wait > api.MaxDrainMs*time.Millisecond {
				return &usageError{fmt.Errorf("drain can wait for 0s to %s", api.MaxDrainMs*time.Millisecond)}
			}
			r.Target, r.WaitMs = args[0], api.Millis(wait)
			client, err := a.dial()
			if err != nil {
				return err
			}
			defer client.Close()
			if a.typed && !yes && !r.DryRun {
				if err := a.confirmDrain(c.Context(), client, r); err != nil {
					return err
				}
			}
			return a.drain(c.Context(), client, r)
		},
	})
	f := c.Flags()
	f.DurationVar(&wait, "wait", 10*time.Second, "how long to wait for traffic to move")
	f.BoolVar(&r.DryRun, "dry-run", false, "change nothing, only say what goes over it")
	f.BoolVar(&yes, "yes", false, "do not ask")
	return c
}

func (a *app) undrainCommand() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use:   "undrain NODE | UPLINK | NODE/UPLINK | UPLINK:NODE/UPLINK",
		Short: "take what was drained back into use",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return listing(a, func(ctx context.Context, client *api.Client) (api.Done, error) {
				return client.Undrain(ctx, args[0])
			}, a.done)(c, args)
		},
	})
}

func (a *app) drain(ctx context.Context, client *api.Client, r api.DrainRequest) error {
	d, err := client.Drain(ctx, r)
	switch {
	case err != nil:
		return err
	case a.json:
		err = a.document(d)
	case r.DryRun:
		a.say("%s\n", wouldMove(d.Draining))
	default:
		a.drained(d)
	}
	if err == nil && !r.DryRun && r.WaitMs > 0 && len(d.Draining.Carries) > 0 {
		err = exitError(api.ExitDegraded)
	}
	return err
}

// confirmDrain says what would move and asks.
func (a *app) confirmDrain(ctx context.Context, client *api.Client, r api.DrainRequest) error {
	r.DryRun, r.WaitMs = true, 0
	d, err := client.Drain(ctx, r)
	if err != nil {
		return err
	}
	sayTo(a.err, "%s\n", wouldMove(d.Draining))
	return a.confirm("Drain?")
}

// wouldMove says in a sentence what goes over a target before it is drained.
func wouldMove(d api.Draining) string {
	if len(d.Carries) == 0 {
		return fmt.Sprintf("This node sends nothing over %s.", d.Drain.Target)
	}
	s := fmt.Sprintf("This node sends %s over %s: %s.", plural(len(d.Carries), "network"), d.Drain.Target, some(d.Carries))
	if len(d.NoOtherWay) > 0 {
		s += fmt.Sprintf(" Nothing stands by for %s: that stays unless another way is found.", some(d.NoOtherWay))
	}
	return s
}

// drained says what came of a drain.
func (a *app) drained(d api.Drained) {
	target := d.Draining.Drain
	a.say("%s is drained: ", target.Target)
	switch {
	case !d.Done:
		a.say("%s still on the way to other links.\n    next: look again with meshctl drain\n", plural(len(d.Draining.Carries), "network"))
	case len(d.Draining.NoOtherWay) > 0:
		a.say("no other way leads to %s; that stays on it.\n    next: make another way first\n", some(d.Draining.NoOtherWay))
	case target.Uplink == "":
		a.say("others are reached around it, and it stays reachable.\n    next: meshctl undrain %s after the work\n", target.Target)
	default:
		a.say("nothing goes over it, and it can be unplugged.\n    next: meshctl undrain %s after the work\n", target.Target)
	}
}

// drains lists what is drained.
func (a *app) drains(d api.Drains) {
	if len(d.Drains) == 0 {
		a.say("Nothing is drained.\n")
		return
	}
	t := table{columns: []column{
		{head: "DRAINED", flex: true},
		{head: "SINCE"},
		{head: "BY", flex: true},
		{head: "STILL CARRIES", right: true},
	}}
	for _, d := range d.Drains {
		r := row{cells: []string{d.Drain.Target, a.since(&d.Drain.Since), d.Drain.By, fmt.Sprint(len(d.Carries))}}
		if len(d.NoOtherWay) > 0 {
			r.notes = []string{"no other way leads to " + some(d.NoOtherWay)}
		}
		t.add(r)
	}
	a.print(&t)
}

// sinceDrain gives by whom and since when something is drained, for a note.
func (a *app) sinceDrain(d *api.Drain) string {
	return fmt.Sprintf("%s is drained since %s by %s", d.Target, a.since(&d.Since), d.By)
}

// plural gives a number of things.
func plural(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// some gives the first few of a list and how many more there are.
func some(list []netip.Prefix) string {
	const shown = 4
	if len(list) <= shown {
		return all(list, ", ")
	}
	return fmt.Sprintf("%s and %d more", all(list[:shown], ", "), len(list)-shown)
}
