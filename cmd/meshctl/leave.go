package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"guywire/mesh/api"
)

func (a *app) leaveCommand() *cobra.Command {
	var yes bool
	c := a.jsonFlag(&cobra.Command{
		Use:   "leave",
		Short: "take this node out of the mesh and remove all that was made here",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, args []string) error {
			client, err := a.dial()
			if err != nil {
				return err
			}
			defer client.Close()
			if !yes {
				if err := a.confirmLeave(c.Context(), client); err != nil {
					return err
				}
			}
			return listing(a, func(ctx context.Context, client *api.Client) (api.Done, error) { return client.Leave(ctx) }, a.done)(c, args)
		},
	})
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}

// confirmLeave says what would be lost and asks.
func (a *app) confirmLeave(ctx context.Context, client *api.Client) error {
	if !a.typed {
		return &usageError{errors.New("leave asks before it acts: say --yes when no one can answer")}
	}
	s, err := client.Status(ctx)
	if err != nil {
		return err
	}
	if s.Enrolled && s.Mesh != nil && s.Node != nil {
		sayTo(a.err, "%s leaves mesh %s: its tunnels, routes, keys and addresses go, and no one reaches %s through it.\n",
			s.Node.Name, s.Mesh.Name, networks(s.Node))
	}
	return a.confirm("Leave?")
}

// confirm asks the person at the terminal; an exitError is no.
func (a *app) confirm(question string) error {
	sayTo(a.err, "%s [y/N] ", question)
	answer, err := bufio.NewReader(io.LimitReader(a.in, 64)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	sayTo(a.err, "Nothing was changed.\n")
	return exitError(api.ExitUnexpected)
}

// networks names what is behind a node.
func networks(n *api.SelfInfo) string {
	if len(n.Prefixes) == 0 {
		return "this host"
	}
	return all(n.Prefixes, ", ")
}
