// Command meshctl asks and changes the meshd of this host through its socket.
// It holds no logic of the mesh: each verb is one file that makes one or two
// calls of mesh/api and prints the answer, as a table for people or, with
// --json, as the document itself.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"guywire/cmd/internal/man"
	"guywire/mesh/api"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	a := &app{
		in: os.Stdin, out: os.Stdout, err: os.Stderr, now: time.Now, zone: time.Local,
		typed: isTerminal(os.Stdin), colour: isTerminal(os.Stdout),
	}
	code := a.run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// An app is one run of meshctl and all it touches of the outside.
type app struct {
	in       io.Reader
	out, err io.Writer
	now      func() time.Time
	zone     *time.Location
	typed    bool // a person sits at in
	colour   bool // out is a terminal

	socket string
	on     string // node that is to answer; empty: this one
	// identity is the file of an operator's key, with which server, or one that
	// the file names, is asked in place of the socket; empty: the socket.
	identity, server string

	json  bool
	began bool // the command line was understood
}

const defaultSocket = "/run/guywire/meshd.sock"

// run executes a command line and gives the exit code.
func (a *app) run(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return api.ExitOK
	}
	if !a.began {
		err = &usageError{err}
	}
	return a.report(ctx, err)
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:               "meshctl",
		Short:             "ask and change the Guywire node of this host",
		Version:           api.BuildVersion().String(),
		SilenceUsage:      true,
		SilenceErrors:     true,
		PersistentPreRun:  func(*cobra.Command, []string) { a.began = true },
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SetVersionTemplate("meshctl {{.Version}}\n")
	root.PersistentFlags().StringVar(&a.socket, "socket", defaultSocket, "unix socket of meshd")
	root.PersistentFlags().StringVar(&a.identity, "identity", "", "file of an operator's key: ask a node from elsewhere")
	root.PersistentFlags().StringVar(&a.server, "server", "", "with --identity: node to ask, HOST or HOST:PORT (default: those in the file)")
	root.PersistentFlags().StringVar(&a.on, "on", "", "node that is to answer in place of this one, which must be an operator")
	root.AddCommand(
		a.initCommand(), a.tokenCommand(), a.joinCommand(), a.leaveCommand(),
		a.statusCommand(), a.nodesCommand(), a.linksCommand(), a.netcheckCommand(), a.routesCommand(),
		a.pingCommand(), a.pathCommand(), a.eventsCommand(),
		a.drainCommand(), a.undrainCommand(), a.topologyCommand(), a.nodeCommand(), a.revokeCommand(), a.grantCommand(),
		a.reserveCommand(), a.unreserveCommand(), a.operatorCommand(), a.settingsCommand(),
		a.raftCommand(), a.auditCommand(), a.caCommand(),
		a.versionCommand(), exitCodesTopic(), man.Command("meshd(8)"),
	)
	return root
}

// jsonFlag adds --json to a command.
func (a *app) jsonFlag(c *cobra.Command) *cobra.Command {
	c.Flags().BoolVar(&a.json, "json", false, "print the document (schema "+fmt.Sprint(api.SchemaNumber)+") instead of text")
	return c
}

// listing makes the body of a command that prints one document: as JSON, or as
// text makes of it.
func listing[D any](a *app, get func(context.Context, *api.Client) (D, error), text func(D)) func(*cobra.Command, []string) error {
	return a.asking(func(ctx context.Context, client *api.Client) error {
		doc, err := get(ctx, client)
		if err != nil {
			return err
		}
		if a.json {
			return a.document(doc)
		}
		text(doc)
		return nil
	})
}

// asking is what a command without arguments does that asks meshd.
func (a *app) asking(do func(ctx context.Context, client *api.Client) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, _ []string) error {
		client, err := a.dial()
		if err != nil {
			return err
		}
		defer client.Close()
		return do(c.Context(), client)
	}
}

// document prints a whole document, indented.
func (a *app) document(doc any) error {
	e := json.NewEncoder(a.out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(doc)
}

// record prints one record of a stream on one line.
func (a *app) record(doc any) error {
	e := json.NewEncoder(a.out)
	e.SetEscapeHTML(false)
	return e.Encode(doc)
}

// A usageError is a command line that makes no sense.
type usageError struct{ error }

// An exitError ends with a code and prints nothing more.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// report prints what went wrong and gives the exit code.
func (a *app) report(ctx context.Context, err error) int {
	if code, ok := errors.AsType[exitError](err); ok {
		return int(code)
	}
	told, code := api.Error{Code: api.CodeInternal, Message: err.Error()}, api.ExitCode(err)
	if usage, ok := errors.AsType[*usageError](err); ok {
		told = api.Error{Code: api.CodeInvalid, Message: usage.Error(), Next: "see meshctl --help"}
		code = api.ExitUsage
	} else if e, ok := errors.AsType[*api.Error](err); ok {
		told = *e
	} else if ctx.Err() != nil {
		told.Message = "interrupted"
	}
	if a.json {
		_ = json.NewEncoder(a.err).Encode(map[string]api.Error{"error": told})
		return code
	}
	sayTo(a.err, "meshctl: %s\n", told.Message)
	if told.Next != "" {
		sayTo(a.err, "  next: %s\n", told.Next)
	}
	return code
}
