package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"guywire/integration/lab"
)

func (a *app) execCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "exec NODE -- COMMAND…",
		Short:   "Run a command on a node",
		Long:    "Run a command in the namespaces of a node, with this terminal and in this directory, and end with its exit code.",
		Example: "  meshlab exec fra -- meshctl status\n  meshlab exec fra-host -- sh",
		Args:    wants(2, -1, "a node and a command"),
		RunE: func(c *cobra.Command, args []string) error {
			argv := args[1:]
			if argv[0] == "--" {
				argv = argv[1:]
			}
			l, err := a.attach()
			if err != nil {
				return err
			}
			// The command decides what an interrupt means; until it has ended we only pass it on.
			signals := make(chan os.Signal, 8)
			signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
			defer signal.Stop(signals)
			code, err := l.ExecSignals(context.WithoutCancel(c.Context()), args[0], argv, os.Stdin, os.Stdout, os.Stderr, signals)
			if err != nil {
				return &exitError{exitNotRun, err}
			}
			if code != 0 {
				return &exitError{code, nil}
			}
			return nil
		},
	}
	c.Flags().SetInterspersed(false) // flags behind the node are the command's
	return c
}

func (a *app) startCommand() *cobra.Command {
	var as string
	c := &cobra.Command{
		Use:     "start NODE [-- COMMAND…]",
		Short:   "Start meshd on a site, or a program on any node, and leave it running",
		Long:    "Start meshd with the site's settings, or COMMAND, and leave it running. Its output goes to a log file that `meshlab status` names.",
		Example: "  meshlab start fra\n  meshlab start fra-host --as web -- python3 -m http.server",
		Args:    wants(1, -1, "a node"),
		RunE: a.inLab(func(c *cobra.Command, l *lab.Lab, args []string) error {
			pid, err := l.Start(c.Context(), args[0], as, args[1:])
			if err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "Process %d.\n", pid)
			return nil
		}),
	}
	c.Flags().StringVar(&as, "as", "", "call the process so (default: the program's name)")
	return c
}

func (a *app) killCommand() *cobra.Command {
	var (
		sigName string
		all     bool
	)
	c := &cobra.Command{
		Use:     "kill NODE [PROCESS]",
		Short:   "Kill the agent of a site, or another process",
		Long:    "Send SIGKILL, or another signal, to a process that `start` or `up` started. Without PROCESS that is the site's agent; its data plane lives on.",
		Example: "  meshlab kill fra\n  meshlab kill fra --signal STOP\n  meshlab kill fra --all",
		Args:    wants(1, 2, "a node and at most one process"),
		RunE: func(c *cobra.Command, args []string) error {
			sig, err := parseSignal(sigName)
			if err != nil {
				return &exitError{exitUsage, err}
			}
			if all && len(args) > 1 {
				return &exitError{exitUsage, fmt.Errorf("--all and a process exclude each other; keep one")}
			}
			l, err := a.attach()
			if err != nil {
				return err
			}
			if all {
				return l.KillAll(c.Context(), args[0], sig)
			}
			return l.Kill(c.Context(), args[0], strings.Join(args[1:], ""), sig)
		},
	}
	c.Flags().StringVar(&sigName, "signal", "KILL", "the signal, by name or number")
	c.Flags().BoolVar(&all, "all", false, "every process of the node, the data plane included")
	return c
}

func parseSignal(s string) (unix.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil && n > 0 && n <= 64 {
		return unix.Signal(n), nil
	}
	if sig := unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(s), "SIG")); sig != 0 {
		return sig, nil
	}
	return 0, fmt.Errorf("there is no signal %q; write one like KILL, TERM or STOP", s)
}
