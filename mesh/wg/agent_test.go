package wg

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"guywire/mesh"
	"guywire/mesh/dataplane"
	"guywire/mesh/kernel"
)

// An ask is one call of a Backend in another process, an answer what it returned.
type ask struct {
	Call   string
	Tunnel kernel.Tunnel
	Reseat bool
	Limit  time.Duration
}

type answer struct {
	Error   string
	InUse   bool
	Foreign bool
	Stuck   bool
	Tunnels []kernel.Tunnel
	Stats   map[string]Stats
	Maker   Mode
}

func runAgent(args []string) error {
	seed, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	b, err := New(Options{
		Mode: Mode(args[0]),
		Keys: func(e mesh.Epoch) ([32]byte, error) { return privateKey(seed, e), nil },
		Epochs: func() map[mesh.Epoch]mesh.WireGuardKey {
			return map[mesh.Epoch]mesh.WireGuardKey{1: publicKey(seed, 1)}
		},
		Owns: func(alias string) bool { return strings.HasPrefix(alias, "guywire") },
		Dataplane: dataplane.Spawner{
			Client: dataplane.Client{Socket: controlSocket},
			Exe:    "/proc/self/exe", Args: []string{"run-dataplane"},
		},
	})
	if err != nil {
		return err
	}
	defer b.Close()
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var q ask
		if err := in.Decode(&q); err != nil {
			return nil // the test closed the pipe
		}
		if err := out.Encode(serve(b, q)); err != nil {
			return err
		}
	}
}

func serve(b *Backend, q ask) answer {
	ctx, cancel := context.WithTimeout(context.Background(), max(q.Limit, time.Millisecond))
	if q.Limit == 0 {
		ctx = context.Background()
	}
	defer cancel()
	a := answer{Maker: b.Maker()}
	var err error
	switch q.Call {
	case "create":
		err = b.Do(ctx, kernel.CreateTunnel{Tunnel: q.Tunnel})
	case "update":
		err = b.Do(ctx, kernel.UpdateTunnel{Tunnel: q.Tunnel, Reseat: q.Reseat})
	case "delete":
		err = b.Do(ctx, kernel.DeleteTunnel{Name: q.Tunnel.Name})
	case "rule":
		err = b.Do(ctx, kernel.PutRule{})
	case "observe":
		var s kernel.State
		s, err = b.Observe(ctx)
		a.Tunnels = s.Tunnels
	case "stats":
		a.Stats, err = b.Stats(ctx)
	}
	if err != nil {
		a.Error = err.Error()
		a.InUse, a.Foreign, a.Stuck = errors.Is(err, syscall.EADDRINUSE), errors.Is(err, ErrForeign), errors.Is(err, ErrStuck)
	}
	return a
}

// An agent is a process with a Backend.
type agent struct {
	cmd *exec.Cmd
	in  *json.Encoder
	out *json.Decoder
}

func (s *site) startAgent(mode Mode) {
	s.t.Helper()
	cmd := exec.Command("/proc/self/exe", "run-agent", string(mode), strconv.Itoa(s.seed))
	var said strings.Builder
	cmd.Stderr = &said
	cmd.WaitDelay = time.Second
	stdin, err := cmd.StdinPipe()
	must(s.t, err)
	stdout, err := cmd.StdoutPipe()
	must(s.t, err)
	must(s.t, s.enter(cmd.Start, "net", "mnt"))
	s.agent = &agent{cmd, json.NewEncoder(stdin), json.NewDecoder(stdout)}
	if a, err := s.try(ask{Call: "observe"}); err != nil {
		cmd.Wait()
		if mode == Kernel && strings.Contains(said.String(), ErrNoMaker.Error()) {
			s.agent = nil
			s.t.Skip("needs the kernel's wireguard module")
		}
		s.t.Fatalf("agent: %v, %s", err, said.String())
	} else if a.Error != "" {
		s.t.Fatal(a.Error)
	}
}

func (s *site) killAgent() {
	if s.agent != nil {
		s.agent.cmd.Process.Kill()
		s.agent.cmd.Wait()
		s.agent = nil
	}
}

func (s *site) try(q ask) (answer, error) {
	var a answer
	if err := s.agent.in.Encode(q); err != nil {
		return a, err
	}
	err := s.agent.out.Decode(&a)
	return a, err
}

func (s *site) ask(q ask) answer {
	s.t.Helper()
	a, err := s.try(q)
	must(s.t, err)
	return a
}

// call is ask for what must succeed.
func (s *site) call(q ask) answer {
	s.t.Helper()
	a := s.ask(q)
	if a.Error != "" {
		s.t.Fatal(a.Error)
	}
	return a
}

func (s *site) create(tunnels ...kernel.Tunnel) {
	s.t.Helper()
	for _, t := range tunnels {
		s.call(ask{Call: "create", Tunnel: t})
	}
}

func (s *site) observe() []kernel.Tunnel {
	s.t.Helper()
	return s.call(ask{Call: "observe"}).Tunnels
}
