package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"guywire/mesh/api"
)

// maxToken bounds what is read as a token, in bytes.
const maxToken = 16 << 10

func (a *app) joinCommand() *cobra.Command {
	var r api.JoinRequest
	var file string
	var prefixes []string
	c := a.jsonFlag(&cobra.Command{
		Use:   "join [TOKEN | -]",
		Short: "bring this host into a mesh",
		Long: "Join brings this host into the mesh that made the token, and prints what happens as it happens.\n" +
			"The token is read from standard input unless it is an argument or in --file; an argument\n" +
			"shows in ps and in the shell's history. With --json each step is one line.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) (err error) {
			if r.Prefixes, err = prefixFlag(prefixes); err != nil {
				return err
			}
			if r.Token, err = a.token(args, file); err != nil {
				return err
			}
			client, err := a.dial()
			if err != nil {
				return err
			}
			defer client.Close()
			err = client.Join(c.Context(), r, a.joinStep)
			if c.Context().Err() != nil {
				return api.Errorf(api.CodeInternal, "meshctl status shows what became of it", "interrupted; the join goes on in meshd")
			}
			return err
		},
	})
	c.Flags().StringVar(&file, "file", "", "file that holds the token")
	c.Flags().StringVar(&r.Name, "name", "", "name of this node (default: configured, else the host name)")
	c.Flags().StringArrayVar(&prefixes, "prefix", nil, "network behind this node; may be repeated")
	return c
}

// joinStep prints one line of the transcript, and with the last what to do next.
func (a *app) joinStep(s api.JoinStep) error {
	if a.json {
		return a.record(s)
	}
	if s.Result == nil {
		a.say("%7.2f s  %s\n", s.ElapsedMs/1000, s.Sentence)
		return nil
	}
	e := s.Result
	a.say("%7.2f s  in mesh %s as %s\n\n", s.ElapsedMs/1000, e.Mesh.Name, e.Node.Name)
	if e.NeighbourMs != nil {
		a.say("First neighbour %s after %.2f s. Next:\n  meshctl ping %s\n  meshctl status\n", e.Neighbour, *e.NeighbourMs/1000, e.Neighbour)
	} else {
		a.say("No neighbour is connected yet. Next:\n  meshctl links    says why, and when it tries again\n")
	}
	return nil
}

// token finds the token: argument, file, standard input.
func (a *app) token(args []string, file string) (string, error) {
	argument := len(args) == 1 && args[0] != "-"
	switch {
	case argument && file != "":
		return "", &usageError{errors.New("give the token as an argument or in --file, not both")}
	case argument:
		sayTo(a.err, "note: an argument shows in ps and in the shell's history; meshctl join without one asks for the token\n")
		return firstLine(strings.NewReader(args[0]), "the argument")
	case file != "":
		f, err := os.Open(file)
		if err != nil {
			return "", &usageError{fmt.Errorf("read the token: %w", err)}
		}
		defer f.Close()
		return firstLine(f, file)
	}
	if a.typed && len(args) == 0 {
		sayTo(a.err, "Token: ")
	}
	return firstLine(a.in, "standard input")
}

// firstLine gives the first line with something in it.
func firstLine(r io.Reader, where string) (string, error) {
	lines := bufio.NewScanner(io.LimitReader(r, maxToken))
	lines.Buffer(nil, maxToken)
	for lines.Scan() {
		if s := strings.TrimSpace(lines.Text()); s != "" {
			return s, nil
		}
	}
	if err := lines.Err(); err != nil {
		return "", &usageError{fmt.Errorf("read the token from %s: %w", where, err)}
	}
	return "", &usageError{fmt.Errorf("there is no token in %s", where)}
}
