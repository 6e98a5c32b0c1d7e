package chaos

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/spf13/cobra"

	"guywire/integration/lab/world"
)

// Command returns the verb chaos. The program must also have what package world asks for, with InsideCommands.
func Command() *cobra.Command {
	o := options{}
	c := &cobra.Command{
		Use:   "chaos",
		Short: "Break a mesh at random and look for packets that go round in circles",
		Long: "Join six sites, half of them behind NATs, break cables, paths and agents at random under many flows, and look for\n" +
			"forwarding loops: in the counters of packets that died of their hop limit, and in the kernels' real tables.",
		Example: "  meshlab chaos --for 5m\n  meshlab chaos --seed 42 --verbose",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if o.span < shortestFault+firstFault {
				return fmt.Errorf("--for %s is too short to break anything; give it some seconds", o.span)
			}
			if err := world.Built(); err != nil {
				return err
			}
			if !c.Flags().Changed("seed") {
				o.seed = rand.Uint64N(1e6)
			}
			o.out, o.list = c.OutOrStdout(), o.verbose
			_, err := run(c.Context(), o)
			return err
		},
	}
	f := c.Flags()
	f.DurationVar(&o.span, "for", time.Minute, "how long to break things")
	f.Uint64Var(&o.seed, "seed", 0, "what to break (default: random)")
	f.StringVar(&o.json, "json", "", "write the report here as JSON")
	f.StringVar(&o.logs, "logs", "out/chaos-logs", "keep the logs here after a failure; empty: nowhere")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "print every fault, and every command that runs in the lab")
	return c
}

// InsideCommands returns what the package needs inside nodes.
func InsideCommands() []*cobra.Command { return []*cobra.Command{viewsCommand(), chatterCommand()} }
