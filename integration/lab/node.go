package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"guywire/integration/lab/clock"
)

// nodeConfig is what a node's process is told at its start.
type nodeConfig struct {
	Name       string   `json:"name"`
	Dir        string   `json:"dir"`        // of the lab
	Path       []string `json:"path"`       // searched for programs before PATH
	Processors int      `json:"processors"` // as in [Options]
	Faults     bool     `json:"faults"`     // as in [Options]
}

// nodeFD is the descriptor on which a node's process finds its connection to the supervisor.
const nodeFD = 3

// nodeServer runs commands inside the namespaces of a node. It is a process of its own because mount namespaces belong
// to processes.
type nodeServer struct {
	cfg nodeConfig

	mu     sync.Mutex // guards the fields below, but for faults.disk
	procs  map[string]*background
	faults faults
}

// background is a process that outlives the request that started it.
type background struct {
	Process
	done chan struct{} // closed when it has ended
}

// nodeMain is the life of a node's process.
func nodeMain() error {
	unix.CloseOnExec(nodeFD)
	sup, err := packetConn(os.NewFile(nodeFD, "supervisor"))
	if err != nil {
		return err
	}
	data, files, err := receive(sup)
	closeAll(files)
	if err != nil {
		return err
	}
	n := &nodeServer{procs: map[string]*background{}, faults: faults{ended: make(chan struct{}), paused: map[string]struct{}{}}}
	if err := json.Unmarshal(data, &n.cfg); err != nil {
		return fmt.Errorf("decode node settings: %w", err)
	}
	if err := n.furnish(); err != nil {
		_ = send(sup, failure(err))
		return err
	}
	if err := send(sup, reply{}); err != nil {
		return err
	}
	slots := make(chan struct{}, maxSessions)
	for {
		data, files, err := receive(sup)
		if errors.Is(err, io.EOF) {
			return nil // the supervisor is gone, and with it the lab
		}
		if err != nil {
			return err
		}
		if len(files) == 0 {
			continue // a request without a connection has nobody to answer
		}
		conn, err := packetConn(files[0])
		if err != nil {
			closeAll(files[1:])
			continue
		}
		select {
		case slots <- struct{}{}:
			go func() { // ends with the request
				n.serve(conn, data, files[1:])
				<-slots
			}()
		default:
			_ = answer(conn, failure(fmt.Errorf("%d commands run on %s, which is the most; wait for one to end", maxSessions, n.cfg.Name)))
			closeAll(files[1:])
			_ = conn.Close()
		}
	}
}

// furnish makes the file system that the node's programs see.
func (n *nodeServer) furnish() error {
	if err := unix.Sethostname([]byte(n.cfg.Name)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := n.freshRun(); err != nil {
		return err
	}
	// So that /sys/class/net shows this namespace. A container may forbid it; then it shows another one's.
	_ = unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	if err := unix.Mount(filepath.Join(n.cfg.Dir, hostsFile), "/etc/hosts", "", unix.MS_BIND, ""); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("mount /etc/hosts: %w", err)
	}
	if n.cfg.Faults {
		if err := errors.Join(clock.Create(n.clock()), os.Setenv(clock.Env, n.clock())); err != nil {
			return fmt.Errorf("give the node a clock: %w", err)
		}
	}
	path := append(slices.Clone(n.cfg.Path), os.Getenv("PATH"))
	return os.Setenv("PATH", strings.Join(path, string(os.PathListSeparator)))
}

// freshRun gives the node a /run of its own, where sites keep their sockets, and keeps the lab's directory reachable if it
// lies there.
func (n *nodeServer) freshRun() error {
	lab, err := unix.Open(n.cfg.Dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", n.cfg.Dir, err)
	}
	defer unix.Close(lab)
	for _, dir := range []string{"/run", "/var/run"} {
		if fi, err := os.Lstat(dir); err != nil || !fi.IsDir() {
			continue
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	if _, err := os.Stat(n.cfg.Dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(n.cfg.Dir, 0o700); err != nil {
		return err
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", lab), n.cfg.Dir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s: %w", n.cfg.Dir, err)
	}
	return nil
}

func (n *nodeServer) serve(conn *net.UnixConn, data []byte, files []*os.File) {
	defer conn.Close()
	defer closeAll(files)
	req, err := decodeRequest(data)
	if err != nil {
		_ = answer(conn, failure(err))
		return
	}
	var r reply
	switch req.Op {
	case opExec:
		r, err = n.exec(req, conn, files)
	case opStart:
		r, err = n.start(req)
	case opKill:
		err = n.kill(req)
	case opDisk, opClock, opPause, opSuspend:
		err = n.fault(req)
	case opHeal:
		err = n.heal()
	case opProcesses:
		r.Processes, r.Faults = n.list(), n.found()
	default:
		err = fmt.Errorf("a node cannot %s", req.Op)
	}
	if err != nil {
		r = failure(err)
	}
	_ = answer(conn, r) // a client that left needs none
}

// command prepares argv in a session of its own, so that a signal reaches all it starts in the foreground.
func (n *nodeServer) command(argv []string) (*exec.Cmd, error) {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return nil, fmt.Errorf("find %s on %s: %w; build it beside meshlab, or give its path", argv[0], n.cfg.Name, errors.Unwrap(err))
	}
	return &exec.Cmd{Path: path, Args: argv, Env: append(os.Environ(), fmt.Sprintf("GOMAXPROCS=%d", n.cfg.Processors)), SysProcAttr: &syscall.SysProcAttr{Setsid: true}}, nil
}

// exec runs a command with the client's files until it ends; it is killed when the client goes away.
func (n *nodeServer) exec(req request, conn *net.UnixConn, files []*os.File) (reply, error) {
	cmd, err := n.command(req.Argv)
	if err != nil {
		return reply{}, err
	}
	if len(files) != 3 {
		return reply{}, errors.New("exec needs three files")
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = files[0], files[1], files[2]
	if req.Term != "" {
		cmd.Env = append(cmd.Env, "TERM="+req.Term)
	}
	cmd.Dir = "/"
	if fi, err := os.Stat(req.Dir); err == nil && fi.IsDir() {
		cmd.Dir = req.Dir
	}
	if err := cmd.Start(); err != nil {
		return reply{}, fmt.Errorf("run %s on %s: %w", req.Argv[0], n.cfg.Name, err)
	}
	prioritiseChild(cmd.Process.Pid, running)
	closeAll(files) // or the reader of a pipe would wait for us
	var (
		mu    sync.Mutex
		ended bool // guarded by mu: behind it the process id may belong to another
		group sync.WaitGroup
	)
	signal := func(sig int) {
		mu.Lock()
		defer mu.Unlock()
		if !ended {
			_ = unix.Kill(-cmd.Process.Pid, unix.Signal(sig))
		}
	}
	group.Go(func() {
		for {
			data, extra, err := receive(conn)
			closeAll(extra)
			if err != nil {
				signal(int(unix.SIGKILL))
				return
			}
			if req, err := decodeRequest(data); err == nil && req.Op == opSignal {
				signal(req.Signal)
			}
		}
	})
	err = cmd.Wait()
	mu.Lock()
	ended = true
	mu.Unlock()
	_ = conn.SetReadDeadline(time.Unix(1, 0)) // wakes the reader
	group.Wait()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		return reply{}, fmt.Errorf("wait for %s: %w", req.Argv[0], err)
	}
	return reply{Exit: exitCode(cmd.ProcessState)}, nil
}

// exitCode is the code as a shell would say it: 128 and the signal when one killed the process.
func exitCode(s *os.ProcessState) int {
	if ws, ok := s.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return s.ExitCode()
}

// agentProcess is a site's meshd, and agentSocket where it answers; agentWait is how long start waits for it.
const (
	agentProcess = "meshd"

	agentSocket = "/run/guywire/meshd.sock"
	agentWait   = 20 * time.Second
)

// start runs a program in the background. A site's own meshd has opened its socket, or has ended, when start returns.
func (n *nodeServer) start(req request) (reply, error) {
	p, err := n.launch(req)
	if err != nil {
		return reply{}, err
	}
	if len(req.Argv) > 0 {
		return reply{PID: p.PID}, nil
	}
	timeout := time.After(agentWait)
	for {
		if c, err := net.Dial("unix", agentSocket); err == nil {
			return reply{PID: p.PID}, c.Close()
		}
		select {
		case <-p.done:
			return reply{}, fmt.Errorf("meshd on %s ended at once with code %d; see %s", n.cfg.Name, p.Exit, p.Log)
		case <-timeout:
			return reply{}, fmt.Errorf("meshd on %s does not open its socket; see %s", n.cfg.Name, p.Log)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (n *nodeServer) launch(req request) (*background, error) {
	argv := req.Argv
	dir := nodeDir(n.cfg.Dir, n.cfg.Name)
	if len(argv) == 0 {
		config := filepath.Join(dir, meshdFile)
		if _, err := os.Stat(config); err != nil {
			return nil, fmt.Errorf("%s is not a site and runs no meshd; give a command behind --", n.cfg.Name)
		}
		argv = []string{"meshd", "--config", config}
	}
	name := req.Process
	if name == "" {
		name = filepath.Base(argv[0])
	}
	if name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return nil, fmt.Errorf("%q is not a name for a process", name)
	}
	cmd, err := n.command(argv)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if p := n.procs[name]; p != nil && p.running() {
		return nil, fmt.Errorf("%s on %s is %w as process %d; kill it first", name, n.cfg.Name, ErrRunning, p.PID)
	}
	log, err := os.OpenFile(filepath.Join(dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, dir
	begin := cmd.Start
	if n.cfg.Faults {
		begin = func() error { return n.faults.disk.Start(cmd) }
	}
	if err := begin(); err != nil {
		return nil, fmt.Errorf("start %s on %s: %w", name, n.cfg.Name, err)
	}
	prioritiseChild(cmd.Process.Pid, running)
	p := &background{done: make(chan struct{}), Process: Process{
		Name: name, PID: cmd.Process.Pid, Argv: argv, Log: log.Name(), Started: time.Now(), Running: true,
	}}
	n.procs[name] = p
	delete(n.faults.paused, name)
	go func() { // ends with the process
		_ = cmd.Wait()
		n.mu.Lock()
		p.Running, p.Exit = false, exitCode(cmd.ProcessState)
		n.mu.Unlock()
		close(p.done)
	}()
	return p, nil
}

func (p *background) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

func (n *nodeServer) list() []Process {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []Process
	for _, p := range n.procs {
		out = append(out, p.Process)
	}
	slices.SortFunc(out, func(a, b Process) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// killWait is how long kill waits for a killed process to be gone.
const killWait = 5 * time.Second

// kill signals one background process, or with All everything in the node. After SIGKILL it waits until they are gone.
func (n *nodeServer) kill(req request) error {
	sig := unix.Signal(req.Signal)
	if sig == 0 {
		sig = unix.SIGKILL
	}
	if req.All {
		return n.killAll(sig)
	}
	name := req.Process
	if name == "" {
		name = agentProcess
	}
	n.mu.Lock()
	p := n.procs[name]
	if p == nil || !p.running() {
		n.mu.Unlock()
		return fmt.Errorf("%s is %w on %s; `meshlab status` lists the processes", name, ErrNotRunning, n.cfg.Name)
	}
	err := unix.Kill(p.PID, sig)
	n.mu.Unlock()
	if err != nil {
		return fmt.Errorf("kill %s on %s: %w", name, n.cfg.Name, err)
	}
	if sig != unix.SIGKILL {
		return nil
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(killWait):
		return fmt.Errorf("%s on %s does not end", name, n.cfg.Name)
	}
}

// killAll signals every process of the node but this one, whoever started it: that is what belongs to this network
// namespace. With SIGKILL it repeats until none is left.
func (n *nodeServer) killAll(sig unix.Signal) error {
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return err
	}
	deadline := time.Now().Add(killWait)
	for {
		alive := 0
		entries, err := os.ReadDir("/proc")
		if err != nil {
			return err
		}
		for _, e := range entries {
			var pid int
			if _, err := fmt.Sscan(e.Name(), &pid); err != nil || pid == os.Getpid() {
				continue
			}
			// A process that has ended, reaped or not, has no namespaces.
			if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)); err != nil || ns != own {
				continue
			}
			alive++
			_ = unix.Kill(pid, sig)
		}
		switch {
		case sig != unix.SIGKILL:
			return nil
		case alive == 0:
			n.reaped()
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("%d processes on %s do not end", alive, n.cfg.Name)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// reaped waits until the end of every process that was started here is noted, so that it can be started again. All have ended.
func (n *nodeServer) reaped() {
	n.mu.Lock()
	procs := slices.Collect(maps.Values(n.procs))
	n.mu.Unlock()
	for _, p := range procs {
		<-p.done
	}
}
