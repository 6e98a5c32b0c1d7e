package flow

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// Commands returns the subcommands udp-send, udp-recv, tcp-send, tcp-recv, echo and ping. Each runs until its duration is
// over or SIGINT or SIGTERM comes, and then prints its report as one JSON document on standard output, also when it
// fails on the way. Those that listen say "listening ADDRESS" on standard error as soon as they do.
func Commands() []*cobra.Command {
	return []*cobra.Command{udpSend(), udpRecv(), tcpSend(), tcpRecv(), echo(), ping()}
}

// Run runs a command with the arguments that it was given until SIGINT or SIGTERM comes, and returns the exit code.
func Run(root *cobra.Command) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := root.ExecuteContext(ctx); err != nil {
		return 1
	}
	return 0
}

// command makes a command that runs run until the signal or the duration, if any, and prints its report.
func command[T any](use, short string, duration *time.Duration, run func(ctx context.Context, cmd *cobra.Command) (T, error)) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: cobra.NoArgs, SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			if duration != nil && *duration > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, *duration)
				defer cancel()
			}
			report, err := run(ctx, cmd)
			out := json.NewEncoder(cmd.OutOrStdout())
			out.SetIndent("", "  ")
			return errors.Join(err, out.Encode(report))
		},
	}
}

func announce(cmd *cobra.Command) func(netip.AddrPort) {
	return func(at netip.AddrPort) { _, _ = fmt.Fprintln(cmd.ErrOrStderr(), "listening", at) }
}

func udpSend() *cobra.Command {
	var cfg SendConfig
	var to, from string
	// The duration is a number of packets here, not a time-out.
	cmd := command("udp-send", "send UDP packets at a constant rate", nil,
		func(ctx context.Context, _ *cobra.Command) (_ SendReport, err error) {
			if cfg.To, cfg.From, err = parseEnds(to, from); err != nil {
				return SendReport{}, err
			}
			return SendUDP(ctx, cfg)
		})
	f := cmd.Flags()
	f.StringVar(&to, "to", "", "address and port of the receiver")
	f.StringVar(&from, "from", "", "source address (default: the kernel's choice)")
	f.Uint32Var(&cfg.Flow, "flow", 1, "number of the flow, unique at its receiver")
	f.IntVar(&cfg.PPS, "pps", 500, "packets per second")
	f.IntVar(&cfg.Size, "size", 200, "UDP payload in bytes")
	f.DurationVar(&cfg.Duration, "duration", 0, "how long to send (default: until a signal)")
	return required(cmd, "to")
}

func udpRecv() *cobra.Command {
	var cfg RecvConfig
	var duration time.Duration
	cmd := command("udp-recv", "receive flows of udp-send and account for every packet", &duration,
		func(ctx context.Context, cmd *cobra.Command) (RecvReport, error) {
			cfg.Listening = announce(cmd)
			return RecvUDP(ctx, cfg)
		})
	f := cmd.Flags()
	f.StringVar(&cfg.Listen, "listen", ":7000", "address and port to receive at")
	f.IntVar(&cfg.GapIntervals, "gap-intervals", 3, "list silences longer than this many intervals of the flow")
	f.DurationVar(&duration, "duration", 0, "how long to receive (default: until a signal)")
	return cmd
}

func tcpSend() *cobra.Command {
	var cfg TCPSendConfig
	var to, from string
	cmd := command("tcp-send", "send TCP streams as fast as they go", nil,
		func(ctx context.Context, _ *cobra.Command) (_ TCPSendReport, err error) {
			if cfg.To, cfg.From, err = parseEnds(to, from); err != nil {
				return TCPSendReport{}, err
			}
			return SendTCP(ctx, cfg)
		})
	f := cmd.Flags()
	f.StringVar(&to, "to", "", "address and port of the receiver")
	f.StringVar(&from, "from", "", "source address (default: the kernel's choice)")
	f.IntVar(&cfg.Streams, "streams", 1, "parallel streams")
	f.DurationVar(&cfg.Duration, "duration", 0, "how long to send (default: until a signal)")
	return required(cmd, "to")
}

func tcpRecv() *cobra.Command {
	var cfg TCPRecvConfig
	var duration time.Duration
	cmd := command("tcp-recv", "receive TCP streams and measure their throughput", &duration,
		func(ctx context.Context, cmd *cobra.Command) (TCPRecvReport, error) {
			cfg.Listening = announce(cmd)
			return RecvTCP(ctx, cfg)
		})
	f := cmd.Flags()
	f.StringVar(&cfg.Listen, "listen", ":7001", "address and port to receive at")
	f.DurationVar(&cfg.Interval, "interval", 100*time.Millisecond, "resolution of the throughput series")
	f.IntVar(&cfg.Streams, "streams", 0, "stop when this many streams have ended (default: never)")
	f.DurationVar(&duration, "duration", 0, "how long to receive (default: until a signal)")
	return cmd
}

func echo() *cobra.Command {
	var cfg EchoConfig
	var duration time.Duration
	cmd := command("echo", "answer the UDP pings of ping", &duration,
		func(ctx context.Context, cmd *cobra.Command) (EchoReport, error) {
			cfg.Listening = announce(cmd)
			return Echo(ctx, cfg)
		})
	f := cmd.Flags()
	f.StringVar(&cfg.Listen, "listen", ":7002", "address and port to answer at")
	f.DurationVar(&duration, "duration", 0, "how long to answer (default: until a signal)")
	return cmd
}

func ping() *cobra.Command {
	var cfg PingConfig
	var targets []string
	var duration time.Duration
	cmd := command("ping", "ping a list of hosts side by side, by UDP and by ICMP", &duration,
		func(ctx context.Context, _ *cobra.Command) (PingReport, error) {
			for _, s := range targets {
				t, err := ParseTarget(s)
				if err != nil {
					return PingReport{From: cfg.From, Cells: []PingCell{}}, err
				}
				cfg.Targets = append(cfg.Targets, t)
			}
			return Ping(ctx, cfg)
		})
	f := cmd.Flags()
	f.StringVar(&cfg.From, "from", "", "name of this host in the report")
	f.StringArrayVar(&targets, "target", nil, "NAME=ADDRESS:PORT of an echo server, or NAME=ADDRESS for ICMP only; repeat")
	f.IntVar(&cfg.Count, "count", 3, "pings per target and method")
	f.DurationVar(&cfg.Timeout, "timeout", time.Second, "how long to wait for each answer")
	f.BoolVar(&cfg.NoICMP, "no-icmp", false, "ping by UDP only")
	f.DurationVar(&duration, "duration", 0, "stop after this long, finished or not")
	return required(cmd, "target")
}

// ParseTarget reads NAME=ADDRESS:PORT, NAME=[ADDRESS]:PORT or NAME=ADDRESS.
func ParseTarget(s string) (Target, error) {
	name, where, found := strings.Cut(s, "=")
	if !found || name == "" {
		return Target{}, fmt.Errorf("target %s: want NAME=ADDRESS:PORT or NAME=ADDRESS", strconv.Quote(s))
	}
	if addr, err := netip.ParseAddr(where); err == nil {
		return Target{Name: name, Addr: addr}, nil
	}
	ap, err := netip.ParseAddrPort(where)
	if err != nil {
		return Target{}, fmt.Errorf("target %s: want NAME=ADDRESS:PORT or NAME=ADDRESS: %w", strconv.Quote(s), err)
	}
	return Target{Name: name, Addr: ap.Addr(), Port: ap.Port()}, nil
}

// parseEnds reads the flags --to and --from.
func parseEnds(to, from string) (dst netip.AddrPort, src netip.Addr, err error) {
	if dst, err = netip.ParseAddrPort(to); err != nil {
		return dst, src, fmt.Errorf("--to: want ADDRESS:PORT: %w", err)
	}
	if from != "" {
		if src, err = netip.ParseAddr(from); err != nil {
			return dst, src, fmt.Errorf("--from: %w", err)
		}
	}
	return dst, src, nil
}

func required(cmd *cobra.Command, flag string) *cobra.Command {
	if err := cmd.MarkFlagRequired(flag); err != nil {
		panic(err) // the flag is defined a few lines above the call
	}
	return cmd
}
