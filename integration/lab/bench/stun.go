package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	pion "github.com/pion/stun/v3"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"guywire/discovery"
	"guywire/discovery/stun"
	"guywire/integration/lab/world"
)

// stunVerb is the verb below world.InsideVerb that serves STUN.
const stunVerb = "stun"

const (
	stunSpan  = 10 * time.Second
	stunStart = 10 * time.Second // for a server to answer
	// A server answers 2 000 requests a second, and 20 of one source. The load stays below that: a burst of one request from
	// each source, so that the server is busy while it lasts.
	stunSources = 190
	stunEvery   = 100 * time.Millisecond
	// stunPeer is the program that the figures are compared with.
	stunPeer = "turnserver"
)

var stunKey = []byte("a key of the mesh that members know")

// stunCommand serves STUN at an address until a signal ends it.
func stunCommand() *cobra.Command {
	var at string
	c := &cobra.Command{Use: stunVerb, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		addr, err := netip.ParseAddrPort(at)
		if err != nil {
			return err
		}
		s, err := stun.Listen([]netip.AddrPort{addr}, func() [][]byte { return [][]byte{stunKey} })
		if err != nil {
			return err
		}
		ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		_, _ = fmt.Fprintln(c.ErrOrStderr(), world.Ready)
		return s.Run(ctx)
	}}
	c.Flags().StringVar(&at, "at", "", "address and port")
	return c
}

// stun measures what an answer costs a server of the mesh, and another program.
func (b *bench) stun(ctx context.Context) error {
	b.heading("One server, and %d sources on the loopback that each send it a request every %s, for %s: the processor time that it takes, and so "+
		"how many requests a second one processor answers. Ours proves that the sender is a member; the other one answers anybody.", stunSources, stunEvery, stunSpan)
	request, err := stunRequest(ctx)
	if err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	ours, err := b.serve(ctx, request, func(at netip.AddrPort) []string {
		return []string{exe, world.InsideVerb, stunVerb, "--at", at.String()}
	})
	if err != nil {
		return err
	}
	figures := []figure{
		{What: "requests a second, one processor", Value: ours.rate()},
		figure{What: fmt.Sprintf("answer / request (%d / %d bytes)", ours.answer, len(request)), Value: float64(ours.answer) / float64(len(request))}.most(1),
		{What: fmt.Sprintf("requests without an answer, of %d", ours.sent), Value: float64(ours.sent - ours.answered)},
	}
	program, err := exec.LookPath(stunPeer)
	if err != nil {
		b.tell(figures...)
		b.screen.Note("coturn was left out: its program %s is not installed (Debian package coturn).", stunPeer)
		return nil
	}
	plain := pion.MustBuild(pion.TransactionID, pion.BindingRequest).Raw
	dir, err := os.MkdirTemp("", "guywire-coturn-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	theirs, err := b.serve(ctx, plain, func(at netip.AddrPort) []string {
		return []string{
			program, "-n", "--stun-only", "--no-tls", "--no-dtls", "--no-tcp", "--no-cli", "--no-stdout-log", "--log-file", filepath.Join(dir, "log"),
			"--pidfile", filepath.Join(dir, "pid"), "--userdb", filepath.Join(dir, "db"),
			"--listening-ip", at.Addr().String(), "--listening-port", fmt.Sprint(at.Port()),
		}
	})
	if err != nil {
		return fmt.Errorf("coturn: %w", err)
	}
	b.tell(append(figures,
		figure{What: "coturn: requests a second, one processor", Value: theirs.rate()},
		figure{What: fmt.Sprintf("coturn: answer / request (%d / %d bytes)", theirs.answer, len(plain)), Value: float64(theirs.answer) / float64(len(plain))},
		figure{What: "ours / coturn's, requests a second", Value: ours.rate() / theirs.rate()},
	)...)
	return nil
}

// stunRequest is what a socket of the mesh asks a server.
func stunRequest(ctx context.Context) ([]byte, error) {
	server, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	defer server.Close()
	socket, err := stun.Open(stun.OpenConfig{First: 1024, Last: 65535, Key: stunKey})
	if err != nil {
		return nil, err
	}
	defer socket.Close()
	if !socket.Ask(discovery.Query{Server: server.LocalAddr().(*net.UDPAddr).AddrPort()}) {
		return nil, errors.New("the request cannot be sent")
	}
	deadline := time.Now().Add(stunStart)
	if d, limited := ctx.Deadline(); limited && d.Before(deadline) {
		deadline = d
	}
	if err := server.SetReadDeadline(deadline); err != nil {
		return nil, err
	}
	buf := make([]byte, 1500)
	n, err := server.Read(buf)
	return buf[:n], err
}

// served is what a server did.
type served struct {
	sent, answered int
	answer         int           // bytes
	busy           time.Duration // processor time
}

// rate is how many requests one processor answers in a second.
func (s served) rate() float64 { return float64(s.answered) / s.busy.Seconds() }

// serve starts a server at a free port and sends it requests.
func (b *bench) serve(ctx context.Context, request []byte, command func(at netip.AddrPort) []string) (s served, err error) {
	at, err := freePort()
	if err != nil {
		return s, err
	}
	argv := command(at)
	name := filepath.Base(argv[0])
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var said strings.Builder
	server := exec.CommandContext(ctx, argv[0], argv[1:]...)
	server.Env = append(os.Environ(), "GOMAXPROCS=1")
	server.Stderr = &said
	if err := server.Start(); err != nil {
		return s, err
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Wait() }() // ends with ctx
	defer func() {
		stop()
		<-ended
	}()
	sources, err := dialAll(at)
	defer func() {
		for _, c := range sources {
			_ = c.Close()
		}
	}()
	if err != nil {
		return s, err
	}
	for deadline := time.Now().Add(stunStart); ; {
		b.screen.Progress("%s starts", name)
		if s.answer = ask(sources[0], request); s.answer > 0 {
			break
		}
		if time.Now().After(deadline) {
			return s, fmt.Errorf("%s does not answer: %s", name, said.String())
		}
		if err := world.Pause(ctx, stunEvery); err != nil {
			return s, err
		}
	}
	// What the first source has asked already is forgotten by then.
	if err := world.Pause(ctx, time.Second); err != nil {
		return s, err
	}
	var answered atomic.Int64
	for _, c := range sources {
		_ = c.SetReadDeadline(time.Time{})
		go func() { // ends when its source is closed
			for buf := make([]byte, 1500); ; answered.Add(1) {
				if _, err := c.Read(buf); err != nil {
					return
				}
			}
		}()
	}
	before, err := processorTime(server.Process.Pid)
	if err != nil {
		return s, err
	}
	b.screen.Progress("%s answers", name)
	every := time.NewTicker(stunEvery)
	defer every.Stop()
	for end := time.Now().Add(stunSpan); time.Now().Before(end); {
		for _, c := range sources {
			if _, err := c.Write(request); err != nil {
				return s, err
			}
			s.sent++
		}
		select {
		case <-every.C:
		case <-ctx.Done():
			return s, context.Cause(ctx)
		}
	}
	if err := world.Pause(ctx, time.Second); err != nil { // for the last answers
		return s, err
	}
	after, err := processorTime(server.Process.Pid)
	s.busy, s.answered = after-before, int(answered.Load())
	if err == nil && s.answered == 0 {
		err = fmt.Errorf("%s answers nothing", name)
	}
	return s, err
}

// freePort finds a port on the loopback that nobody has just now.
func freePort() (netip.AddrPort, error) {
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return netip.AddrPort{}, err
	}
	return c.LocalAddr().(*net.UDPAddr).AddrPort(), c.Close()
}

// dialAll makes sockets to a server, each of an address of its own.
func dialAll(to netip.AddrPort) (all []*net.UDPConn, err error) {
	for i := range stunSources {
		c, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 86, 0, byte(i+1))}, net.UDPAddrFromAddrPort(to))
		if err != nil {
			return all, err
		}
		all = append(all, c)
	}
	return all, nil
}

// ask sends a request and gives the length of its answer; 0: there is none within a moment.
func ask(c *net.UDPConn, request []byte) int {
	if _, err := c.Write(request); err != nil {
		return 0
	}
	_ = c.SetReadDeadline(time.Now().Add(stunEvery))
	buf := make([]byte, 1500)
	n, err := c.Read(buf)
	if err != nil {
		return 0
	}
	return n
}

// processorTime is what a process has used so far, see clock_getcpuclockid(3).
func processorTime(pid int) (time.Duration, error) {
	const perProcess = 2 // CPUCLOCK_SCHED of linux/posix-timers.h
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|perProcess), &t); err != nil {
		return 0, fmt.Errorf("read the processor time of process %d: %w", pid, err)
	}
	return time.Duration(t.Nano()), nil
}
