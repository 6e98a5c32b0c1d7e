package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"guywire/integration/lab"
	"guywire/integration/lab/clock"
)

func (a *app) upCommand() *cobra.Command {
	var (
		noAgents, check, faults bool
		path                    []string
	)
	c := &cobra.Command{
		Use:   "up FILE",
		Short: "Build a network and start meshd in its sites",
		Long: "Build the network that FILE describes and start meshd in each of its sites. The lab runs until `meshlab down`.\n" +
			"FILE may also be the name of a built-in network: " + strings.Join(lab.BuiltIn(), ", ") + ".",
		Example: "  meshlab up demo\n  meshlab exec fra -- meshctl status\n  meshlab down",
		Args:    wants(1, 1, "one network file"),
		RunE: func(c *cobra.Command, args []string) error {
			network, err := lab.Load(args[0])
			if err != nil || check {
				return err
			}
			if faults {
				dir, err := faultyPrograms(c.Context())
				if err != nil {
					return err
				}
				path = append(path, dir)
			}
			l, err := lab.Up(c.Context(), network, lab.Options{Name: a.name, Detach: true, Agents: !noAgents, Path: path, Faults: faults})
			if err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "Lab %s is up. `meshlab status` shows it, `meshlab down` ends it; logs are below %s.\n", l.Name(), l.Dir())
			return nil
		},
	}
	c.Flags().BoolVar(&noAgents, "no-agents", false, "start no meshd")
	c.Flags().BoolVar(&check, "check", false, "read the file, and build nothing")
	c.Flags().BoolVar(&faults, "faults", false, "let disks and clocks fail: see stall and clock; builds a meshd for it, so run it in the sources")
	c.Flags().StringSliceVar(&path, "path", nil, "directories to search for programs first")
	return c
}

// faultyPrograms builds a meshd with a clock of the lab beside this program, and gives the directory.
func faultyPrograms(ctx context.Context) (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(filepath.Dir(exe), "faults")
	return dir, clock.Build(ctx, dir, "guywire/cmd/meshd")
}

func (a *app) downCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "End a lab, or clear what a dead one left",
		Args:  wants(0, 0, "no arguments"),
		RunE: func(*cobra.Command, []string) error {
			name, err := a.chosen()
			if err != nil {
				return err
			}
			return lab.Down(name)
		},
	}
}
