package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"guywire/mesh/api"
)

func (a *app) nodeCommand() *cobra.Command {
	c := &cobra.Command{Use: "node", Short: "set what operators decide about one node", Args: cobra.NoArgs}
	c.AddCommand(a.nodeSetCommand())
	c.RunE = func(*cobra.Command, []string) error { return &usageError{errors.New("say set")} }
	return c
}

func (a *app) nodeSetCommand() *cobra.Command {
	var transit string
	var degree int
	var tags []string
	var roles []string
	var noTags, noRoles bool
	var site string
	c := a.jsonFlag(&cobra.Command{
		Use:   "set NODE",
		Short: "set transit, cap, tags, roles and site of a node; what is not named stays",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			r := api.NodeRequest{Node: args[0]}
			switch transit {
			case "":
			case "yes", "no":
				r.Transit = new(transit == "yes")
			default:
				return &usageError{fmt.Errorf("--transit is %q but must be yes or no", transit)}
			}
			if c.Flags().Changed("cap") {
				r.MaxDegree = &degree
			}
			switch {
			case noTags && len(tags) > 0:
				return &usageError{errors.New("give --tag or --no-tags, not both")}
			case noTags || len(tags) > 0:
				r.Tags = new(api.List[string](tags))
			}
			switch {
			case noRoles && len(roles) > 0:
				return &usageError{errors.New("give --role or --no-roles, not both")}
			case noRoles || len(roles) > 0:
				r.Roles = new(api.List[string](roles))
			}
			if c.Flags().Changed("site") {
				r.Site = &site
			}
			if r.Transit == nil && r.MaxDegree == nil && r.Tags == nil && r.Roles == nil && r.Site == nil {
				return &usageError{errors.New("there is nothing to set: say --transit, --cap, --tag, --no-tags, --role, --no-roles or --site")}
			}
			return listing(a, func(ctx context.Context, client *api.Client) (api.Done, error) {
				return client.SetNode(ctx, r)
			}, a.done)(c, args)
		},
	})
	f := c.Flags()
	f.StringVar(&transit, "transit", "", "yes or no: whether others may be reached through it")
	f.IntVar(&degree, "cap", 0, "how many neighbours it may have at most; 0: the default")
	f.StringArrayVar(&tags, "tag", nil, "tag that it has in place of all others; may be repeated")
	f.BoolVar(&noTags, "no-tags", false, "it has no tags")
	f.StringArrayVar(&roles, "role", nil, "operator or no-vote: role that it has in place of all others; may be repeated")
	f.BoolVar(&noRoles, "no-roles", false, "it has no roles")
	f.StringVar(&site, "site", "", "place where it is; voters are spread over places")
	return c
}
