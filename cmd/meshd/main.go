// Command meshd is Guywire's agent: it brings this server into the mesh, keeps
// its tunnels and routes right, and answers meshctl. It also is, in another
// mode, the data-plane process that holds userspace tunnels and outlives it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"guywire/cmd/internal/man"
	"guywire/mesh"
	"guywire/mesh/agent"
	"guywire/mesh/api"
	"guywire/mesh/config"
	"guywire/mesh/dataplane"
	"guywire/mesh/keyring"
	"guywire/store/cache"
	"guywire/store/disk"
)

const defaultConfig = "/etc/guywire/meshd.yaml"

func main() {
	if err := root().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "meshd: "+strings.TrimRight(err.Error(), "\n"))
		os.Exit(exitCode(err))
	}
}

func root() *cobra.Command {
	var file string
	var check, example bool
	cmd := &cobra.Command{
		Use:   "meshd",
		Short: "The agent of a Guywire mesh",
		Long: "meshd runs on every site server. Without a mesh it waits on its socket for\n" +
			"meshctl init or meshctl join. It ends on SIGTERM and leaves tunnels and routes\n" +
			"in place, so that a restart loses no packet; meshd teardown removes them.",
		Args:          noArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       api.BuildVersion().String(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if example {
				_, err := io.WriteString(cmd.OutOrStdout(), config.Example())
				return err
			}
			c, err := load(file, cmd.Flags().Changed("config"))
			if err != nil {
				return err
			}
			if check {
				fmt.Fprintln(cmd.OutOrStdout(), "the configuration is good")
				return nil
			}
			return run(c)
		},
	}
	cmd.SetVersionTemplate("{{.Version}}\n")
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage(err) })
	cmd.CompletionOptions.DisableDefaultCmd = true
	cmd.PersistentFlags().StringVarP(&file, "config", "c", defaultConfig, "configuration file; the default one may be missing")
	cmd.Flags().BoolVar(&check, "check", false, "read the configuration, say what is wrong with it, and end")
	cmd.Flags().BoolVar(&example, "example", false, "print a minimal configuration file")
	cmd.AddCommand(dataplaneCommand(), teardownCommand(&file), man.Command("meshctl(8)"))
	return cmd
}

// usage makes a wrong command line a configuration that cannot be used: a
// supervisor must not start it again and again.
func usage(err error) error { return &configError{fmt.Errorf("%w; see meshd --help", err)} }

func noArgs(cmd *cobra.Command, args []string) error {
	if err := cobra.NoArgs(cmd, args); err != nil {
		return usage(err)
	}
	return nil
}

// load reads the configuration; a missing default file is an empty one.
func load(file string, named bool) (config.Config, error) {
	f, err := os.Open(file)
	if errors.Is(err, os.ErrNotExist) && !named {
		return config.Default(), nil
	}
	if err != nil {
		return config.Config{}, &configError{fmt.Errorf("read the configuration: %w", err)}
	}
	defer f.Close()
	c, err := config.Parse(f)
	if err != nil {
		return config.Config{}, &configError{fmt.Errorf("%s: %w", file, err)}
	}
	return c, nil
}

// run is the agent. Below the line it touches the system.
func run(c config.Config) error {
	syscall.Umask(0o077)
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level(c.LogLevel)}))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal kills

	prioritise(agentNice)
	hide(log)
	a, err := agent.New(agent.Options{Config: c, Log: log, Version: api.BuildVersion().Version, Outside: outside(c, log)})
	if err != nil {
		return err
	}
	return errors.Join(a.Run(ctx, func() { supervised(ctx, log, a.Alive) }), a.Close())
}

// Priorities as in nice(1): packets first, then the agent that watches over
// them, then ordinary programs. A probe that leaves late looks like a path that
// fails; but an agent that has much to do must not starve its data plane, so
// neither is real-time.
const (
	agentNice     = -10
	dataplaneNice = -15
)

// prioritise sets the priority of this process, and of its session if it leads
// one: where the kernel shares the processors among sessions first (the
// autogroups of sched(7)), the value of a process counts within its session
// only. Without the privilege they stay as they are.
func prioritise(nice int) {
	threads, err := os.ReadDir("/proc/self/task") // Linux keeps the value per thread; new ones inherit it
	if err != nil {
		return
	}
	for _, t := range threads {
		if id, err := strconv.Atoi(t.Name()); err == nil {
			_ = syscall.Setpriority(syscall.PRIO_PROCESS, id, nice)
		}
	}
	if sid, err := unix.Getsid(0); err == nil && sid == os.Getpid() {
		_ = os.WriteFile("/proc/self/autogroup", strconv.AppendInt(nil, int64(nice), 10), 0) // no such file: no autogroups
	}
}

// hide keeps the memory of this process, which holds keys, out of core files and
// away from other processes of its user. It comes after prioritise, because
// what is written in /proc/self is root's from here on.
func hide(log *slog.Logger) {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		log.Warn("a core file of this process would hold keys; forbid core files with ulimit -c 0", mesh.LogError, err)
	}
}

func level(l config.LogLevel) slog.Level {
	switch l {
	case config.Debug:
		return slog.LevelDebug
	case config.Warn:
		return slog.LevelWarn
	case config.Error:
		return slog.LevelError
	default:
		return slog.LevelInfo
	}
}

func dataplaneCommand() *cobra.Command {
	var c dataplane.Config
	cmd := &cobra.Command{
		Use:   "dataplane",
		Short: "Hold userspace WireGuard tunnels and carriers for the agent, and nothing else",
		Long: "meshd dataplane is started by the agent, or by a service unit of its own, where\n" +
			"the kernel has no WireGuard or UDP does not pass. It serves the standard WireGuard\n" +
			"control sockets, and carries tunnels over TLS where nothing else gets through.\n" +
			"It outlives the agent, so that restarting the agent loses no packet.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
			c.Version = api.BuildVersion().Version
			prioritise(dataplaneNice)
			hide(c.Log)
			if !c.Detach { // else the agent started it, and systemd would not listen
				c.Ready = func() { notify(c.Log, daemon.SdNotifyReady) }
			}
			return dataplane.Run(cmd.Context(), c)
		},
	}
	cmd.SetContext(context.Background())
	cmd.Flags().StringVar(&c.Socket, "socket", dataplane.DefaultSocket, "control socket")
	cmd.Flags().BoolVar(&c.Detach, "detach", false, "let go of standard error once it serves")
	return cmd
}

func teardownCommand(file *string) *cobra.Command {
	return &cobra.Command{
		Use:   "teardown",
		Short: "Remove tunnels, routes, rules and filter of a stopped agent from the kernel",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := load(*file, cmd.Flags().Changed("config"))
			if err != nil {
				return err
			}
			log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
			a, err := agent.New(agent.Options{Config: c, Log: log, Version: api.BuildVersion().Version, Outside: outside(c, log)})
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			return errors.Join(a.Unload(ctx, nil), a.Close())
		},
	}
}

// configError is a configuration that cannot be used.
type configError struct{ err error }

func (e *configError) Error() string { return e.err.Error() }
func (e *configError) Unwrap() error { return e.err }

// Exit codes, as docs/cli.md lists them for meshd; others are those of the API.
const (
	exitConfig   = api.ExitUsage
	exitState    = api.ExitRefused
	exitConflict = api.ExitConflict
)

func exitCode(err error) int {
	if _, ok := errors.AsType[*configError](err); ok {
		return exitConfig
	}
	for _, c := range []struct {
		is   error
		code int
	}{
		{disk.ErrUnsafe, exitState},
		{keyring.ErrCorrupt, exitState},
		{cache.ErrOtherMesh, exitState},
		{disk.ErrInUse, exitConflict},
		{api.ErrRunning, exitConflict},
		{dataplane.ErrRunning, exitConflict},
		{syscall.EADDRINUSE, exitConflict},
	} {
		if errors.Is(err, c.is) {
			return c.code
		}
	}
	return api.ExitCode(err)
}
