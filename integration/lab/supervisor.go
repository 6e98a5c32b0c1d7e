package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/goccy/go-yaml"
	"golang.org/x/sys/unix"
)

// The descriptors that the supervisor finds at its start.
const (
	parentFD = 3 // the connection to whoever called Up
	lockFD   = 4 // the lab's lock, held as long as the supervisor lives
)

// launch is what the supervisor is told, in a file of the lab's directory.
type launch struct {
	Name       string   `json:"name"`
	Path       []string `json:"path"`
	Network    *Network `json:"network"`
	Processors int      `json:"processors"`
	Faults     bool     `json:"faults"`
}

// supervisor is process 1 of a lab: it starts the nodes, builds and changes the network, and answers clients. Its end is
// the end of everything in the lab.
type supervisor struct {
	name, dir string
	log       *slog.Logger
	nodes     map[string]*net.UnixConn // to each node's process; safe for concurrent use
	stop      chan struct{}            // closed when a client asks to stop
	stopOnce  sync.Once

	mu     sync.Mutex
	fabric *fabric // guarded by mu
}

// supervisorMain is the life of the supervisor.
func supervisorMain(dir string) error {
	prioritise(physics)
	unix.CloseOnExec(parentFD)
	unix.CloseOnExec(lockFD)
	parent, err := packetConn(os.NewFile(parentFD, "parent"))
	if err != nil {
		return err
	}
	s := &supervisor{
		dir: dir, log: slog.New(slog.NewTextHandler(os.Stderr, nil)), nodes: map[string]*net.UnixConn{}, stop: make(chan struct{}),
	}
	orphaned := make(chan struct{})
	go func() { // ends when the parent says that it may leave, or leaves
		_, files, err := receive(parent)
		closeAll(files)
		if err == nil {
			return
		}
		close(orphaned)
	}()
	go reap()
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, unix.SIGTERM, unix.SIGINT)

	built := make(chan error, 1)
	go func() { built <- s.build() }() // ends with the build; the process may exit before
	select {
	case err = <-built:
	case <-orphaned:
		err = errors.New("the program that started the lab is gone")
	case <-terminated:
		err = errors.New("interrupted")
	}
	if err == nil {
		err = s.listen()
	}
	if err != nil {
		_ = send(parent, failure(err))
		s.log.Error("lab did not come up", "lab", s.name, "err", err)
		s.end()
		return err
	}
	if err := send(parent, reply{PID: os.Getpid()}); err != nil {
		s.log.Info("parent has left", "lab", s.name, "err", err)
	}
	select {
	case <-s.stop:
	case <-orphaned:
	case <-terminated:
	}
	s.end()
	return nil
}

// end kills every process of the lab and removes its directory.
func (s *supervisor) end() {
	// In a PID namespace this reaches all but process 1, which is us.
	if os.Getpid() == 1 {
		_ = unix.Kill(-1, unix.SIGKILL)
	}
	if err := removeDir(s.dir); err != nil {
		s.log.Warn("lab directory is left", "dir", s.dir, "err", err)
	}
}

// reap collects the children of process 1: nodes, and whatever lost its parent in the lab. It runs for ever.
func reap() {
	child := make(chan os.Signal, 1) // one is enough: each wake collects all that have ended
	signal.Notify(child, unix.SIGCHLD)
	for range child {
		for {
			if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); pid <= 0 && !errors.Is(err, unix.EINTR) {
				break
			}
		}
	}
}

// build makes the whole lab.
func (s *supervisor) build() error {
	data, err := os.ReadFile(filepath.Join(s.dir, launchFile))
	if err != nil {
		return err
	}
	var l launch
	if err := json.Unmarshal(data, &l); err != nil {
		return fmt.Errorf("decode %s: %w", launchFile, err)
	}
	s.name = l.Name
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w; %s", err, namespaceAdvice)
	}
	// Without this /proc would show the processes of the host under their numbers there.
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w; a container must be allowed to, for instance by --privileged", err)
	}
	lo, err := newLayout(l.Network)
	if err != nil {
		return err
	}
	if err := s.writeFiles(lo); err != nil {
		return err
	}
	spaces := map[string]*space{}
	for _, n := range lo.nodes {
		if spaces[n.name], err = s.startNode(nodeConfig{Name: n.name, Dir: s.dir, Path: l.Path, Processors: l.Processors, Faults: l.Faults}); err != nil {
			return err
		}
	}
	f, err := newFabric(lo, spaces)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.fabric = f
	s.mu.Unlock()
	return nil
}

// writeFiles writes what nodes read: host names, and a meshd file per site.
func (s *supervisor) writeFiles(lo *layout) error {
	hosts := &strings.Builder{}
	hosts.WriteString("127.0.0.1 localhost\n::1 localhost\n")
	for _, n := range lo.nodes {
		if err := os.MkdirAll(nodeDir(s.dir, n.name), 0o700); err != nil {
			return err
		}
		for _, l := range lo.linksOf(n.name) {
			for _, p := range l.ends[l.end(n.name)].addrs {
				fmt.Fprintf(hosts, "%s %s\n", p.Addr(), n.name)
			}
		}
		if n.kind == Site {
			if err := s.writeMeshd(n); err != nil {
				return err
			}
		}
	}
	return os.WriteFile(filepath.Join(s.dir, hostsFile), []byte(hosts.String()), 0o644)
}

// writeMeshd writes the settings of a site's agent: what follows from the network, then what its file says.
func (s *supervisor) writeMeshd(n *nodePlan) error {
	dir := nodeDir(s.dir, n.name)
	prefixes := []string{}
	for _, p := range []netip.Prefix{n.spec.LAN, n.spec.LAN6} {
		if p.IsValid() {
			prefixes = append(prefixes, p.String())
		}
	}
	config := map[string]any{"name": n.name, "state": filepath.Join(dir, "state"), "prefixes": prefixes, "dataplane": "auto"}
	maps.Copy(config, n.spec.Meshd)
	data, err := yaml.Marshal(config)
	if err != nil {
		return fmt.Errorf("write the settings of %s: %w", n.name, err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "state"), 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, meshdFile), data, 0o600)
}

// startNode starts the process of a node in new namespaces and waits until it is ready.
func (s *supervisor) startNode(cfg nodeConfig) (*space, error) {
	conn, theirs, err := packetPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	p, err := os.StartProcess("/proc/self/exe", []string{roleNode, cfg.Name}, &os.ProcAttr{
		Dir: "/", Env: os.Environ(), Files: []*os.File{nil, os.Stderr, os.Stderr, theirs},
		Sys: &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS},
	})
	if err != nil {
		return nil, fmt.Errorf("start node %s: %w", cfg.Name, err)
	}
	pid := p.Pid
	_ = p.Release() // reap collects it
	if err := send(conn, cfg); err != nil {
		return nil, fmt.Errorf("start node %s: %w", cfg.Name, err)
	}
	data, files, err := receive(conn)
	closeAll(files)
	if err != nil {
		return nil, fmt.Errorf("start node %s: %w", cfg.Name, err)
	}
	var r reply
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("start node %s: %w", cfg.Name, err)
	}
	if err := r.err(); err != nil {
		return nil, fmt.Errorf("start node %s: %w", cfg.Name, err)
	}
	s.nodes[cfg.Name] = conn
	return openSpace(cfg.Name, pid)
}
