package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"guywire/mesh/api"
)

func (a *app) settingsCommand() *cobra.Command {
	var voters int
	var cacheAge time.Duration
	c := a.jsonFlag(&cobra.Command{
		Use:   "settings",
		Short: "settings of the mesh; a flag changes one",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, args []string) error {
			var r api.SettingsRequest
			if c.Flags().Changed("voters") {
				r.Voters = &voters
			}
			if c.Flags().Changed("cache-max-age") {
				if cacheAge < 0 {
					return &usageError{fmt.Errorf("--cache-max-age is %s but must be 1h or more, or 0", plainly(cacheAge))}
				}
				r.CacheMaxAgeMs = new(api.Millis(cacheAge))
			}
			return listing(a, func(ctx context.Context, client *api.Client) (api.Settings, error) {
				if r == (api.SettingsRequest{}) {
					return client.Settings(ctx)
				}
				return client.SetSettings(ctx, r)
			}, a.settings)(c, args)
		},
	})
	c.Flags().IntVar(&voters, "voters", 0, "how many nodes keep the log: 1, 3 or 5; 0: the mesh chooses")
	c.Flags().DurationVar(&cacheAge, "cache-max-age", 0, "how long a node that reaches no voter may start from what it knew, at least 1h; 0: for ever")
	return c
}

func (a *app) settings(s api.Settings) {
	voters, age := "the mesh chooses", "for ever"
	if s.Voters != 0 {
		voters = fmt.Sprint(s.Voters)
	}
	if s.CacheMaxAgeMs != 0 {
		age = (time.Duration(s.CacheMaxAgeMs) * time.Millisecond).String()
	}
	a.say("%-14s %s\n", "voters", voters)
	a.say("%-14s %s\n", "cache-max-age", age)
}
