package demo

import (
	"strings"

	"github.com/spf13/cobra"
)

// Commands returns the verbs demo and bench, and the hidden one by which this program works inside nodes. The program must
// also have the verb `flow` with the commands of package flow below it.
func Commands() []*cobra.Command {
	return []*cobra.Command{demoCommand(), benchCommand(), insideCommand()}
}

// labName returns the flag --name that the program has for all its verbs, if it has.
func labName(c *cobra.Command) string {
	if f := c.Flag("name"); f != nil {
		return f.Value.String()
	}
	return ""
}

func demoCommand() *cobra.Command {
	var o Options
	c := &cobra.Command{
		Use:   "demo",
		Short: "Join six sites, break things, and print what the traffic felt",
		Long: "Build a small internet, start meshd in six sites, join them by token, send traffic, break things, and print what the\n" +
			"traffic felt. It fails when a pair does not talk or a promise is broken by a wide margin; then the logs are kept.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			o.Out, o.Name = c.OutOrStdout(), labName(c)
			return Main(c.Context(), o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.JSON, "json", "out/demo.json", "write the report here as JSON; empty: nowhere")
	f.StringVar(&o.LogDir, "logs", "out/demo-logs", "keep the logs here after a failure; empty: nowhere")
	f.BoolVar(&o.Keep, "keep", false, "leave the lab running")
	f.IntSliceVar(&o.Only, "only", nil, "of the steps from 3 on only these")
	f.BoolVarP(&o.Verbose, "verbose", "v", false, "print every command that runs in the lab")
	return c
}

func benchCommand() *cobra.Command {
	o := BenchOptions{}
	names := strings.Join(benchNames(), ", ")
	c := &cobra.Command{
		Use:   "bench",
		Short: "Measure throughput against hand-made tunnels, join times and failover gaps",
		Long: "Measure real processes: throughput through one link of the mesh against the same devices configured by hand, in\n" +
			"alternation; the time to join; the gaps of silent cuts. Benchmarks: " + names + ".",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			o.Out = c.OutOrStdout()
			return Bench(c.Context(), o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.JSON, "json", "", "write the report here as JSON")
	f.StringSliceVar(&o.Only, "only", nil, "only these benchmarks")
	f.IntVar(&o.Rounds, "rounds", 5, "rounds of the throughput benchmark")
	f.DurationVar(&o.Transfer, "transfer", defaultTransfer, "length of each transfer")
	f.IntVar(&o.Cuts, "cuts", 10, "silent cuts of the failover benchmark")
	f.BoolVarP(&o.Verbose, "verbose", "v", false, "print every command that runs in the lab")
	return c
}
