package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"guywire/mesh/api"
)

// exitCodes explains each exit code; docs/cli.md has the same table.
var exitCodes = []struct {
	code    int
	meaning string
}{
	{api.ExitOK, "done; for status: all is well"},
	{api.ExitUnexpected, "unexpected: a fault of ours, an interruption, or no at a question"},
	{api.ExitUsage, "the command line or a value in it makes no sense"},
	{api.ExitNotRunning, "meshd is not running here"},
	{api.ExitRefused, "refused: a token that is wrong, used or expired; a missing right or privilege"},
	{api.ExitNotFound, "there is no such node, uplink, link or token"},
	{api.ExitUnreachable, "no answer in time: a node, the mesh's leader, or meshd itself"},
	{api.ExitDegraded, "status: something is degraded or down; --check: not ready; drain: something still goes over it; audit: the trail is broken"},
	{api.ExitConflict, "conflict: already in a mesh, in none, a name or prefix is taken, a port is in use, a rule of the topology against another"},
}

// exitCodesTopic is a help topic: meshctl help exit-codes.
func exitCodesTopic() *cobra.Command {
	var b strings.Builder
	b.WriteString("Exit codes of meshctl:\n\n")
	for _, e := range exitCodes {
		fmt.Fprintf(&b, "  %d  %s\n", e.code, e.meaning)
	}
	return &cobra.Command{Use: "exit-codes", Short: "what the exit codes mean", Long: strings.TrimSuffix(b.String(), "\n")}
}
