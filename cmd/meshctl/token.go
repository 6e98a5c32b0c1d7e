package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"guywire/mesh/api"
)

func (a *app) tokenCommand() *cobra.Command {
	c := &cobra.Command{Use: "token", Short: "create, list and revoke tokens, which admit nodes", Args: cobra.NoArgs}
	c.AddCommand(a.tokenCreateCommand(), a.tokenListCommand(), a.tokenRevokeCommand())
	c.RunE = func(*cobra.Command, []string) error {
		return &usageError{fmt.Errorf("say create, list or revoke")}
	}
	return c
}

func (a *app) tokenCreateCommand() *cobra.Command {
	var r api.TokenRequest
	var ttl time.Duration
	var prefixes []string
	c := a.jsonFlag(&cobra.Command{
		Use:   "create",
		Short: "make a token; it is shown once, alone on standard output",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if err := within("ttl", ttl, time.Second, api.MaxTokenTTL); err != nil {
				return err
			}
			if r.Uses < 1 || r.Uses > api.MaxTokenUses {
				return &usageError{fmt.Errorf("--uses is %d but must be 1 to %d", r.Uses, api.MaxTokenUses)}
			}
			if slices.Equal(prefixes, []string{anyPrefix}) {
				r.AnyPrefix = true
			} else if r.Prefixes, err = prefixFlag(prefixes); err != nil {
				return err
			}
			r.TTLMs = api.Millis(ttl)
			client, err := a.dial()
			if err != nil {
				return err
			}
			defer client.Close()
			t, err := client.CreateToken(c.Context(), r)
			if err != nil {
				return err
			}
			if a.json {
				return a.document(t)
			}
			a.say("%s\n", t.Text)
			uses := "once"
			if t.Token.Uses > 1 {
				uses = fmt.Sprintf("%d times", t.Token.Uses)
			}
			sayTo(a.err, "Token %s admits %s, until %s, with %s.\n", t.Token.ID, uses, a.clock(t.Token.Expires), allowed(t.Token))
			if !r.AnyPrefix && len(r.Prefixes) == 0 {
				sayTo(a.err, "A node that has networks behind it needs a token that allows them: --prefix NETWORK, or --prefix any.\n")
			}
			join := "meshctl join"
			if t.Token.Name != "" {
				join += " --name " + t.Token.Name // else it comes by the name of its host and is refused
			}
			sayTo(a.err, "On the new node: %s, and paste it.\n", join)
			return nil
		},
	})
	f := c.Flags()
	f.StringVar(&r.Name, "name", "", "name that the new node must have")
	f.StringArrayVar(&prefixes, "prefix", nil, "network that the new node may announce, or any; may be repeated (default: none)")
	f.StringArrayVar((*[]string)(&r.Tags), "tag", nil, "tag that the new node gets; may be repeated")
	f.StringArrayVar((*[]string)(&r.Roles), "role", nil, "operator or no-vote: role that the new node gets; may be repeated")
	f.StringVar(&r.Site, "site", "", "place where the new node is; voters are spread over places")
	f.IntVar(&r.Uses, "uses", 1, "how many nodes it admits")
	f.DurationVar(&ttl, "ttl", api.DefaultTokenTTL, "how long it is valid")
	return c
}

func (a *app) tokenListCommand() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use:   "list",
		Short: "tokens that are not used up and have not expired, without their secrets",
		Args:  cobra.NoArgs,
		RunE: listing(a, func(ctx context.Context, c *api.Client) (api.Tokens, error) { return c.Tokens(ctx) }, func(d api.Tokens) {
			if len(d.Tokens) == 0 {
				a.say("There are no tokens.\n")
				return
			}
			t := table{columns: []column{
				{head: "ID"},
				{head: "FOR NODE", flex: true},
				{head: "PREFIXES", flex: true},
				{head: "TAGS", flex: true},
				{head: "ROLES"},
				{head: "SITE", flex: true},
				{head: "USES LEFT", right: true},
				{head: "EXPIRES"},
			}}
			for _, k := range d.Tokens {
				name := "any"
				if k.Name != "" {
					name = k.Name
				}
				prefixes := "none"
				switch {
				case k.AnyPrefix:
					prefixes = anyPrefix
				case len(k.Prefixes) > 0:
					prefixes = all(k.Prefixes, ",")
				}
				expires := a.until(k.Expires)
				if k.Unusable != "" {
					expires = "unusable"
				}
				t.add(row{cells: []string{k.ID, name, prefixes, all(k.Tags, ","), all(k.Roles, ","), orUnknown(k.Site), fmt.Sprint(k.Uses), expires}})
			}
			a.print(&t)
			for _, k := range d.Tokens {
				if k.Unusable != "" {
					a.say("Token %s is unusable: %s. Make a new one: meshctl token create\n", k.ID, k.Unusable)
				}
			}
		}),
	})
}

func (a *app) tokenRevokeCommand() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use:   "revoke ID",
		Short: "make a token unusable; nodes that it admitted stay",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return listing(a, func(ctx context.Context, client *api.Client) (api.Done, error) {
				return client.RevokeToken(ctx, args[0])
			}, a.done)(c, args)
		},
	})
}

// anyPrefix is what --prefix says for every network that is free.
const anyPrefix = "any"

// allowed says in words what networks a token allows.
func allowed(t api.Token) string {
	switch {
	case t.AnyPrefix:
		return "any network that is free"
	case len(t.Prefixes) == 0:
		return "no networks"
	default:
		return "networks in " + all(t.Prefixes, ", ")
	}
}

// done prints the sentence of a change.
func (a *app) done(d api.Done) { a.say("%s\n", d.Sentence) }
