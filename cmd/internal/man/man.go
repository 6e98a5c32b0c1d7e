// Package man makes a program's manual page from its own commands, their
// descriptions and flags, so that there is no second text to keep true.
package man

import (
	"cmp"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Command is the hidden subcommand man of a program, which prints its page: one
// for all its subcommands, of section 8. see names what else to read, such as
// meshd(8).
func Command(see ...string) *cobra.Command {
	return &cobra.Command{
		Use:    "man",
		Short:  "Print the manual page",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := io.WriteString(c.OutOrStdout(), page(c.Root(), see))
			return err
		},
	}
}

// page is the source of a page, in the man macros of groff_man(7).
func page(root *cobra.Command, see []string) string {
	w := &roff{}
	w.macro("TH", strings.ToUpper(root.Name()), "8", "", "Guywire "+root.Version, "Guywire")
	w.macro("SH", "NAME")
	w.line(root.Name() + " - " + root.Short)
	w.macro("SH", "SYNOPSIS")
	w.macro("B", root.Name())
	w.line("[flags] [command]")
	if root.Long != "" {
		w.macro("SH", "DESCRIPTION")
		w.prose(root.Long)
	}
	root.InitDefaultVersionFlag()
	w.macro("SH", "OPTIONS")
	w.flags(root.LocalFlags())
	w.macro("SH", "COMMANDS")
	for _, c := range root.Commands() {
		w.commands(c)
	}
	for _, c := range root.Commands() {
		if c.IsAdditionalHelpTopicCommand() {
			w.macro("SH", strings.ToUpper(strings.ReplaceAll(c.Name(), "-", " ")))
			w.prose(c.Long)
		}
	}
	w.macro("SH", "SEE ALSO")
	w.line(strings.Join(see, ", "))
	return w.String()
}

// roff is the source of a page that is being written.
type roff struct{ strings.Builder }

// commands writes a command and those below it.
func (w *roff) commands(c *cobra.Command) {
	if !c.IsAvailableCommand() || c.Name() == "help" {
		return
	}
	w.macro("SS", c.UseLine())
	w.prose(cmp.Or(c.Long, c.Short))
	w.flags(c.LocalNonPersistentFlags())
	for _, sub := range c.Commands() {
		w.commands(sub)
	}
}

// flags writes a list of flags, without --help, which every command has.
func (w *roff) flags(all *pflag.FlagSet) {
	all.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		value, usage := pflag.UnquoteUsage(f)
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		if value != "" {
			name += " " + value
		}
		switch {
		case f.DefValue == "", f.DefValue == "false", f.DefValue == "0", f.DefValue == "0s", f.DefValue == "[]", strings.Contains(usage, "(default"):
		default:
			usage += fmt.Sprintf(" (default %s)", f.DefValue)
		}
		w.macro("TP")
		w.macro("B", name)
		w.line(usage)
	})
}

// prose writes paragraphs: filled, or as they are if they are tables, whose
// columns two spaces keep apart.
func (w *roff) prose(text string) {
	for i, paragraph := range strings.Split(text, "\n\n") {
		if i > 0 {
			w.macro("PP")
		}
		table := strings.Contains(paragraph, "  ")
		if table {
			w.macro("nf")
		}
		for l := range strings.Lines(paragraph) {
			w.line(strings.TrimSuffix(l, "\n"))
		}
		if table {
			w.macro("fi")
		}
	}
}

var escape = strings.NewReplacer(`\`, `\e`, `-`, `\-`)

// line writes a line of text, of which nothing is taken for a request.
func (w *roff) line(text string) {
	text = escape.Replace(text)
	if strings.HasPrefix(text, ".") || strings.HasPrefix(text, "'") {
		text = `\&` + text
	}
	w.WriteString(text + "\n")
}

// macro writes a request with its arguments.
func (w *roff) macro(name string, args ...string) {
	w.WriteString("." + name)
	for _, a := range args {
		w.WriteString(` "` + strings.ReplaceAll(escape.Replace(a), `"`, `\(dq`) + `"`)
	}
	w.WriteString("\n")
}
