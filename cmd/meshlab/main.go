// Meshlab builds whole networks on one machine from Linux namespaces, breaks them, and runs programs inside. It is a thin
// layer over package lab.
//
// Exit codes: 0 done, 1 failed, 2 wrong arguments, 3 no such lab or process is running. Of exec: the command's own code,
// 128 and the signal's number when a signal ended it, and 125 when it could not be run.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"guywire/integration/grid"
	"guywire/integration/lab"
	"guywire/integration/lab/bench"
	"guywire/integration/lab/chaos"
	"guywire/integration/lab/demo"
	"guywire/integration/lab/flow"
	"guywire/integration/lab/peers"
	"guywire/integration/lab/world"
	"guywire/integration/vagrant"
)

// The exit codes.
const (
	exitFailed     = 1
	exitUsage      = 2
	exitNotRunning = 3
	exitNotRun     = 125
)

// exitError ends the program with a code of its own; a nil err prints nothing.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func main() {
	lab.Init()
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	root := newRoot()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	code := exitFailed
	if e, ok := errors.AsType[*exitError](err); ok {
		if code = e.code; e.err == nil {
			return code
		}
	} else if errors.Is(err, lab.ErrNotRunning) {
		code = exitNotRunning
	}
	fmt.Fprintln(os.Stderr, "meshlab:", err)
	return code
}

// app is what the verbs share.
type app struct {
	name string // of the lab; empty means the only one
}

func newRoot() *cobra.Command {
	a := &app{}
	root := &cobra.Command{
		Use:           "meshlab",
		Short:         "Networks of namespaces on one machine: build them, break them, run programs in them",
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          unknownVerb,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.PersistentFlags().StringVar(&a.name, "name", "", "the lab (default: the only one that runs)")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return &exitError{exitUsage, fmt.Errorf("%w; see `%s --help`", err, c.CommandPath())}
	})
	root.AddCommand(a.upCommand(), a.downCommand(), a.statusCommand(), a.execCommand(), a.startCommand(), a.killCommand(),
		a.cutCommand(), a.healCommand(), a.impairCommand(), a.partitionCommand(), a.rebootCommand(), a.readdressCommand(),
		a.natCommand(), a.udpCommand(), a.stallCommand(), a.clockCommand(), a.pauseCommand(), a.suspendCommand())
	flows := &cobra.Command{Use: "flow", Short: "Generate and measure traffic, inside a node", Hidden: true}
	flows.AddCommand(flow.Commands()...)
	root.AddCommand(flows)
	root.AddCommand(demo.Command(), bench.Command(), chaos.Command(), world.InsideCommand(slices.Concat(bench.InsideCommands(), chaos.InsideCommands(), grid.InsideCommands(), vagrant.InsideCommands(), []*cobra.Command{peers.InsideCommand()})...))
	return root
}

// wants checks the number of arguments, with an error of the right exit code.
func wants(least, most int, what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) < least || most >= 0 && len(args) > most {
			return &exitError{exitUsage, fmt.Errorf("%s wants %s; see `%s --help`", c.Name(), what, c.CommandPath())}
		}
		return nil
	}
}

// chosen returns the name of the lab that is meant.
func (a *app) chosen() (string, error) {
	if a.name != "" {
		return a.name, nil
	}
	switch names := lab.List(); len(names) {
	case 0:
		return "", fmt.Errorf("no lab is there: %w; start one by `meshlab up demo`", lab.ErrNotRunning)
	case 1:
		return names[0], nil
	default:
		return "", &exitError{exitUsage, fmt.Errorf("there are several labs (%s); choose one by --name", strings.Join(names, ", "))}
	}
}

// attach returns the lab that is meant.
func (a *app) attach() (*lab.Lab, error) {
	name, err := a.chosen()
	if err != nil {
		return nil, err
	}
	return lab.Attach(name)
}

// inLab is what a command does that works in the lab that is meant.
func (a *app) inLab(do func(c *cobra.Command, l *lab.Lab, args []string) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, args []string) error {
		l, err := a.attach()
		if err != nil {
			return err
		}
		return do(c, l, args)
	}
}

func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	var v strings.Builder
	v.WriteString(info.Main.Version)
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			v.WriteString(" " + s.Value)
		}
	}
	return v.String() + " " + info.GoVersion
}

func unknownVerb(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return &exitError{exitUsage, fmt.Errorf("there is no verb %q; see `%s --help`", args[0], c.Name())}
	}
	return nil
}
