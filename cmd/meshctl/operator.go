package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"guywire/mesh/api"
	"guywire/mesh/keyring"
)

func (a *app) operatorCommand() *cobra.Command {
	c := &cobra.Command{Use: "operator", Short: "create, list and remove operators, who change the mesh from a machine that is no node", Args: cobra.NoArgs}
	c.AddCommand(a.operatorCreateCommand(), a.operatorListCommand(), a.operatorRemoveCommand())
	c.RunE = func(*cobra.Command, []string) error {
		return &usageError{errors.New("say create, list or remove")}
	}
	return c
}

func (a *app) operatorCreateCommand() *cobra.Command {
	var file string
	var read bool
	var ttl time.Duration
	c := a.jsonFlag(&cobra.Command{
		Use:   "create NAME",
		Short: "make somebody without a node an operator; their key is written to a file and nowhere else",
		Long: "Create makes a key, writes it to a file that only you can read, and has the mesh accept it. With\n" +
			"that file meshctl works from any machine that reaches a node: meshctl --identity FILE status.",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			r := api.OperatorRequest{Name: args[0], Right: api.RightChange, TTLMs: api.Millis(ttl)}
			if read {
				r.Right = api.RightRead
			}
			if file == "" {
				file = args[0] + ".key"
			}
			if c.Flags().Changed("ttl") && ttl != 0 {
				if err := within("ttl", ttl, time.Second, api.MaxOperatorTTL); err != nil {
					return err
				}
			}
			client, err := a.dial()
			if err != nil {
				return err
			}
			defer client.Close()
			return a.createOperator(c.Context(), client, r, file)
		},
	})
	c.Flags().StringVarP(&file, "file", "o", "", "where the key goes (default NAME.key)")
	c.Flags().BoolVar(&read, "read", false, "may look and not change")
	c.Flags().DurationVar(&ttl, "ttl", 0, "for how long, such as 720h; 0: until it is removed")
	return c
}

func (a *app) createOperator(ctx context.Context, client *api.Client, r api.OperatorRequest, file string) error {
	known, err := client.Operators(ctx)
	if err != nil {
		return err
	}
	pins := make([][32]byte, len(known.Pins))
	for i, pin := range known.Pins {
		if n, err := hex.Decode(pins[i][:], []byte(pin)); err != nil || n != len(pins[i]) || len(pin) != hex.EncodedLen(n) {
			return fmt.Errorf("read the answer of meshd: %q is no pin", pin)
		}
	}
	key, err := keyring.NewCredential(r.Name, known.Mesh, pins, known.Servers)
	if err != nil {
		return err
	}
	// The file comes first: a key that the mesh accepts must not get lost.
	if err := key.Write(file); err != nil {
		return &usageError{err}
	}
	r.Key = key.Identity()
	done, err := client.SetOperator(ctx, r)
	if err != nil {
		return errors.Join(err, os.Remove(file))
	}
	if a.json {
		return a.document(done)
	}
	a.say("%s. The key is in %s; keep it secret.\n    next: meshctl --identity %s status\n", done.Sentence, file, file)
	return nil
}

func (a *app) operatorListCommand() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use:   "list",
		Short: "who may change the mesh: nodes with that role, and operators without a node",
		Args:  cobra.NoArgs,
		RunE: listing(a, func(ctx context.Context, c *api.Client) (api.Operators, error) { return c.Operators(ctx) }, func(d api.Operators) {
			t := table{columns: []column{{head: "NAME", flex: true}, {head: "KIND"}, {head: "RIGHT"}, {head: "SINCE"}, {head: "EXPIRES"}}}
			for _, o := range d.Operators {
				kind, expires := "key", "never"
				if o.Node {
					kind = "node"
				}
				if o.Expires != nil {
					expires = a.until(*o.Expires)
				}
				t.add(row{cells: []string{o.Name, kind, o.Right, a.since(&o.Created), expires}})
			}
			a.print(&t)
		}),
	})
}

func (a *app) operatorRemoveCommand() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use:   "remove NAME",
		Short: "end what an operator without a node may do",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return listing(a, func(ctx context.Context, client *api.Client) (api.Done, error) {
				return client.RemoveOperator(ctx, args[0])
			}, a.done)(c, args)
		},
	})
}
