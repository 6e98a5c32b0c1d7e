package vagrant

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"guywire/integration/lab/flow"
)

// runVerb is the command of this program that runs others in a machine.
const runVerb = "run"

// An order is the first line that run reads. Each further line is the number of a signal for the command; the end of the
// input kills it, so nothing outlives whoever has asked for it.
type order struct {
	Argv  []string `json:"argv"`
	Stdin string   `json:"stdin"`
	Ahead int64    `json:"ahead_ns"` // the clock of the asking machine, see flow.ClockAhead
}

// InsideCommands are what runs in the machines.
func InsideCommands() []*cobra.Command { return []*cobra.Command{runCommand(), clockCommand()} }

// runCommand runs the command that its input names, and ends as that ends.
func runCommand() *cobra.Command {
	return &cobra.Command{Use: runVerb, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		in := bufio.NewReader(c.InOrStdin())
		first, err := in.ReadBytes('\n')
		if err != nil {
			return fmt.Errorf("read the order: %w", err)
		}
		var o order
		if err := json.Unmarshal(first, &o); err != nil || len(o.Argv) == 0 {
			return fmt.Errorf("read the order %q: %w", first, err)
		}
		cmd := exec.CommandContext(c.Context(), o.Argv[0], o.Argv[1:]...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(o.Stdin), os.Stdout, os.Stderr
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", flow.ClockAhead, o.Ahead))
		if err := cmd.Start(); err != nil {
			return err
		}
		go pass(in, cmd.Process) // ends with this process
		err = cmd.Wait()
		if exit, isExit := errors.AsType[*exec.ExitError](err); isExit {
			code := exit.ExitCode()
			if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
				code = 128 + int(status.Signal())
			}
			os.Exit(code)
		}
		return err
	}}
}

// pass sends the signals that arrive, and the last one when no more can.
func pass(in io.Reader, to *os.Process) {
	for {
		var number int
		if _, err := fmt.Fscanln(in, &number); err != nil {
			_ = to.Kill()
			return
		}
		_ = to.Signal(syscall.Signal(number))
	}
}

// clockCommand answers each line by the machine's clock.
func clockCommand() *cobra.Command {
	return &cobra.Command{Use: "clock", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		for lines := bufio.NewScanner(c.InOrStdin()); lines.Scan(); {
			if _, err := fmt.Fprintln(c.OutOrStdout(), int64(flow.Monotonic())); err != nil {
				return err
			}
		}
		return nil
	}}
}
