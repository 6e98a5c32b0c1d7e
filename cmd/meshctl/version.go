package main

import (
	"context"

	"github.com/spf13/cobra"

	"guywire/mesh/api"
)

// versions is the document of meshctl version.
type versions struct {
	Schema  api.Schema       `json:"schema"`
	Meshctl api.VersionInfo  `json:"meshctl"`
	Meshd   *api.VersionInfo `json:"meshd"` // null: not running, or may not be asked
}

func (a *app) versionCommand() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use:   "version",
		Short: "versions of meshctl and of the meshd that runs here",
		Args:  cobra.NoArgs,
		RunE: a.asking(func(ctx context.Context, client *api.Client) error {
			v := versions{Meshctl: api.BuildVersion()}
			daemon, err := client.Version(ctx)
			if err == nil {
				v.Meshd = &daemon
			}
			if a.json {
				return a.document(v)
			}
			a.say("meshctl  %s\n", v.Meshctl.String())
			if err != nil {
				a.say("meshd    %s (%s)\n", unknown, err.Error())
			} else {
				a.say("meshd    %s\n", daemon.String())
			}
			return nil
		}),
	})
}
