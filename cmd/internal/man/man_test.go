package man

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func nothing(*cobra.Command, []string) error { return nil }

// TestPage: a page holds what a person could ask --help for, no request is made
// by accident, and what is hidden stays so.
func TestPage(t *testing.T) {
	root := &cobra.Command{Use: "prog", Short: "do things", Long: "First - line\n.not a request\n'nor this\n\na  b\\c", Version: "1"}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.PersistentFlags().StringP("socket", "s", "/run/x", "the `PATH` to it")
	group := &cobra.Command{Use: "group", Short: "more", RunE: nothing}
	sub := &cobra.Command{Use: `sub "X"`, Short: "short of sub", RunE: nothing}
	sub.Flags().Int("n", 0, "how many")
	sub.Flags().Bool("secret", false, "nobody knows")
	_ = sub.Flags().MarkHidden("secret")
	group.AddCommand(sub)
	root.AddCommand(group, &cobra.Command{Use: "exit-codes", Short: "topic", Long: "  0  fine"}, Command("other(8)"))
	root.SetArgs([]string{"man"})
	var out strings.Builder
	root.SetOut(&out)
	if err := root.Execute(); err != nil {
		t.Fatal(err)
	}
	const want = `.TH "PROG" "8" "" "Guywire 1" "Guywire"
.SH "NAME"
prog \- do things
.SH "SYNOPSIS"
.B "prog"
[flags] [command]
.SH "DESCRIPTION"
First \- line
\&.not a request
\&'nor this
.PP
.nf
a  b\ec
.fi
.SH "OPTIONS"
.TP
.B "\-s, \-\-socket PATH"
the PATH to it (default /run/x)
.TP
.B "\-v, \-\-version"
version for prog
.SH "COMMANDS"
.SS "prog group"
more
.SS "prog group sub \(dqX\(dq [flags]"
short of sub
.TP
.B "\-\-n int"
how many
.SH "EXIT CODES"
.nf
  0  fine
.fi
.SH "SEE ALSO"
other(8)
`
	if out.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", out.String(), want)
	}
}
