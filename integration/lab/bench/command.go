package bench

import (
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// Command returns the verb bench. The program must also have what package world asks for, with InsideCommands and the commands
// of package peers.
func Command() *cobra.Command {
	o := options{}
	c := &cobra.Command{
		Use:   "bench",
		Short: "Measure gaps, throughput, false alarms, idle traffic, the log and NATs, beside other routing systems",
		Long: "Measure real processes and print each figure with its target: throughput through one link of the mesh against the\n" +
			"same devices configured by hand; gaps of silent cuts in the demo network, and beside FRR, BIRD and babeld on tunnels of\n" +
			"the same kind; lost carriers; grey failures; false alarms on a busy machine; two uplinks against one; idle traffic;\n" +
			"writes and joins with three voters, and the time without writes when the leader dies or its disk stalls; how pairs of\n" +
			"sites behind all kinds of NAT find each other, joins from there, networks that change, a mesh of thirty sites behind many\n" +
			"kinds, and a STUN server.\n\n" +
			"Benchmarks: " + strings.Join(names(), ", ") + ".",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			o.out = c.OutOrStdout()
			return run(c.Context(), o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.json, "json", "", "write the report here as JSON")
	f.StringSliceVar(&o.only, "only", nil, "only these benchmarks")
	f.IntVar(&o.rounds, "rounds", 5, "rounds of transfers, each one both ways of doing it")
	f.DurationVar(&o.transfer, "transfer", 3*time.Second, "length of each transfer")
	f.IntVar(&o.cuts, "cuts", 20, "events of each kind: silent cuts, lost carriers, dead leaders; half as many NATs that change")
	f.Float64Var(&o.minutes, "minutes", 10, "how long to watch for false alarms")
	f.StringSliceVar(&o.systems, "systems", nil, "of the routing systems of the peers benchmark only these: "+strings.Join(systems(), ", "))
	f.StringVar(&o.pairs, "pairs", "", "of the nat benchmark the pairs that this regular expression matches, as in easy~port (default those of `make test`; all: '.*')")
	f.StringVar(&o.logs, "logs", "", "keep the logs of all labs here")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "print every command that runs in the lab")
	return c
}
