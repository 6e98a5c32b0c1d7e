package demo

import (
	"errors"

	"github.com/spf13/cobra"
)

// labName returns the flag --name that the program has for all its verbs, if it has.
func labName(c *cobra.Command) string {
	if f := c.Flag("name"); f != nil {
		return f.Value.String()
	}
	return ""
}

// Command returns the verb demo.
func Command() *cobra.Command {
	var o Options
	c := &cobra.Command{
		Use:   "demo",
		Short: "Join six sites, break things, and print what the traffic felt",
		Long: "Build a small internet, start meshd in six sites, join them by token, send traffic, break things, and print what the\n" +
			"traffic felt. It fails when a pair does not talk or a promise is broken by a wide margin; then the logs are kept.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			o.Out, o.Name = c.OutOrStdout(), labName(c)
			if len(o.Sites) > 0 && !o.Vagrant {
				return errors.New("--sites are those of --vagrant; in namespaces all are there")
			}
			return Main(c.Context(), o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.JSON, "json", "out/demo.json", "write the report here as JSON; empty: nowhere")
	f.StringVar(&o.LogDir, "logs", "out/demo-logs", "keep the logs here after a failure; empty: nowhere")
	f.BoolVar(&o.Keep, "keep", false, "leave the lab running")
	f.IntSliceVar(&o.Only, "only", nil, "of the steps from 3 on only these")
	f.BoolVar(&o.Vagrant, "vagrant", false, "run on the machines that vagrant up has started, in a mesh made anew")
	f.StringSliceVar(&o.Sites, "sites", nil, "of the machines only these, in this order; what they are too few for is left out")
	f.IntVar(&o.Pace, "pace", 1, "of machines that are emulated: how much longer all may take")
	f.BoolVarP(&o.Verbose, "verbose", "v", false, "print every command that runs in the lab")
	return c
}
