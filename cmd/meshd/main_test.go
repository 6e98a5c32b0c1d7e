package main

import (
	"io"
	"path/filepath"
	"strings"
	"testing"

	"guywire/mesh/api"
)

// TestWrongCommandLines: what a person has to mend ends with the code that keeps
// a supervisor from starting it again, and says what to do.
func TestWrongCommandLines(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none.yaml")
	for _, tt := range []struct{ args, want string }{
		{"--bad", "unknown flag: --bad; see meshd --help"},
		{"--check=maybe", "; see meshd --help"},
		{"start", "unknown command \"start\" for \"meshd\"; see meshd --help"},
		{"dataplane --bad", "unknown flag: --bad; see meshd --help"},
		{"dataplane now", "; see meshd --help"},
		{"teardown --bad", "unknown flag: --bad; see meshd --help"},
		{"teardown now", "; see meshd --help"},
		{"--check --config " + none, "read the configuration: open " + none},
		{"teardown --config " + none, "read the configuration: open " + none},
	} {
		cmd := root()
		cmd.SetArgs(strings.Fields(tt.args))
		cmd.SetOut(io.Discard)
		cmd.SetErr(io.Discard)
		err := cmd.Execute()
		if err == nil || exitCode(err) != api.ExitUsage || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("meshd %s: exit code %d, %v; want %q", tt.args, exitCode(err), err, tt.want)
		}
	}
}
