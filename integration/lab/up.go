package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The names under which the calling program runs again.
const (
	roleSupervisor = "meshlab-supervisor"
	roleNode       = "meshlab-node"
)

var initialised bool

// Init must be the first thing that a program does which calls [Up]: when the program was started as a part of a lab, Init
// runs that part and does not return.
func Init() {
	initialised = true
	var err error
	switch os.Args[0] {
	case roleSupervisor:
		err = supervisorMain(os.Args[1])
	case roleNode:
		err = nodeMain()
	default:
		return
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[0], err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Options say how a lab runs. The zero value is a lab that dies with the calling process.
type Options struct {
	Name   string   // default: the network's name, or "lab"
	Detach bool     // the lab outlives the caller; [Down] ends it
	Agents bool     // start meshd in every site
	Path   []string // directories searched for programs before that of the calling program and PATH
	// Processors is how many a program on a node uses, if it is written in Go (default 1). Dozens of programs on few
	// processors spend half of their time on waking idle threads of each other.
	Processors int
	// Faults lets disks and clocks of nodes fail: see [Lab.Disk] and [Lab.Clock]. Programs that [Lab.Start] starts are then
	// slower at fsync. Clocks need programs that package clock has built, in a directory of Path.
	Faults bool
}

// upWait is how long a lab may take to come up.
const upWait = 2 * time.Minute

// Up builds the network and returns when all of it is there. It needs root, or user namespaces. When ctx ends before,
// or anything fails, nothing is left. Unless opts.Detach is set, the lab ends with the calling process, however that
// ends. The caller closes the Lab.
func Up(ctx context.Context, network *Network, opts Options) (*Lab, error) {
	if !initialised {
		return nil, errors.New("the program did not call lab.Init; call it first thing in main")
	}
	if err := network.Validate(); err != nil {
		return nil, err
	}
	name := opts.Name
	for _, fallback := range []string{network.Name, "lab"} {
		if name == "" {
			name = fallback
		}
	}
	dir, err := dirFor(name)
	if err != nil {
		return nil, err
	}
	lock, err := makeDir(name, dir)
	if err != nil {
		return nil, err
	}
	defer lock.Close() // the supervisor has it too
	l := &Lab{name: name, dir: dir}
	if err := l.launch(ctx, network, opts, lock); err != nil {
		l.kill()
		return nil, errors.Join(err, removeDir(dir))
	}
	if opts.Agents {
		if err := l.startAgents(ctx, network); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	if opts.Detach {
		if err := send(l.tie, reply{}); err != nil {
			return nil, errors.Join(fmt.Errorf("detach: %w", err), l.Close())
		}
		_ = l.tie.Close()
		l.tie = nil
	}
	return l, nil
}

// launch starts the supervisor and waits until the network is built.
func (l *Lab) launch(ctx context.Context, network *Network, opts Options, lock *os.File) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	data, err := json.Marshal(launch{Name: l.name, Path: append(opts.Path, filepath.Dir(exe)), Network: network, Processors: max(opts.Processors, 1), Faults: opts.Faults})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(l.dir, launchFile), data, 0o600); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(l.dir, logFile), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	tie, theirs, err := packetPair()
	if err != nil {
		return err
	}
	l.tie = tie
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{roleSupervisor, l.dir}, Dir: "/", Stdout: log, Stderr: log,
		ExtraFiles: []*os.File{theirs, lock}, SysProcAttr: isolation(),
	}
	err = cmd.Start()
	_ = theirs.Close()
	if err != nil {
		return startError(err)
	}
	l.ended = make(chan struct{})
	go func() { // ends with the supervisor
		_ = cmd.Wait()
		close(l.ended)
	}()
	l.process = cmd.Process
	if err := writePID(l.dir, cmd.Process.Pid); err != nil {
		return err
	}
	r, err := l.ready(ctx)
	if err != nil {
		return err
	}
	return r.err()
}

// ready waits for the supervisor's word.
func (l *Lab) ready(ctx context.Context) (reply, error) {
	ctx, cancel := context.WithTimeout(ctx, upWait)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = l.tie.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	data, files, err := receive(l.tie)
	closeAll(files)
	var r reply
	switch {
	case ctx.Err() != nil:
		return r, fmt.Errorf("build lab %s: %w", l.name, context.Cause(ctx))
	case err != nil:
		said, _ := os.ReadFile(filepath.Join(l.dir, logFile))
		return r, fmt.Errorf("build lab %s: the supervisor has died: %s", l.name, said)
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("build lab %s: %w", l.name, err)
	}
	return r, nil
}

// isolation are the namespaces of the supervisor. Without the right to make them directly it gets a user namespace, in
// which the caller is root.
func isolation() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET}
	if privileged() {
		return attr
	}
	attr.Cloneflags |= unix.CLONE_NEWUSER
	attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
	attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	return attr
}

// privileged reports whether the process is root with CAP_SYS_ADMIN and CAP_NET_ADMIN.
func privileged() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if os.Geteuid() != 0 || unix.Capget(&hdr, &caps[0]) != nil {
		return false
	}
	const need = 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_NET_ADMIN
	return caps[0].Effective&need == need
}

const namespaceAdvice = "run as root, or permit user namespaces (sysctl kernel.unprivileged_userns_clone=1, and kernel.apparmor_restrict_unprivileged_userns=0 where AppArmor forbids them)"

func startError(err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("make namespaces: %w; %s", err, namespaceAdvice)
	}
	if errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("make namespaces: the limit is reached (%w); raise sysctl user.max_user_namespaces", err)
	}
	return fmt.Errorf("start the supervisor: %w", err)
}

func (l *Lab) startAgents(ctx context.Context, network *Network) error {
	for _, name := range network.names() {
		if network.Nodes[name].Kind != Site {
			continue
		}
		if _, err := l.Start(ctx, name, "", nil); err != nil {
			return err
		}
	}
	return nil
}

// Attach returns the running lab of that name, or ErrNotRunning.
func Attach(name string) (*Lab, error) {
	dir, err := dirFor(name)
	if err != nil {
		return nil, err
	}
	l := &Lab{name: name, dir: dir}
	conn, err := l.dial()
	if err != nil {
		return nil, err
	}
	_ = conn.Close()
	return l, nil
}

func (l *Lab) dial() (*net.UnixConn, error) {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: filepath.Join(l.dir, socketFile), Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("lab %s is %w; start it by `meshlab up`, or clear its remains by `meshlab down --name %s`", l.name, ErrNotRunning, l.name)
	}
	return conn, nil
}

// Down ends the lab of that name and removes whatever a lab of that name left, also one that was killed or half built.
// It is ErrNotRunning when there is nothing to do.
func Down(name string) error {
	dir, err := dirFor(name)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(dir); err != nil {
		return fmt.Errorf("lab %s is %w; there is nothing to do", name, ErrNotRunning)
	}
	return (&Lab{name: name, dir: dir}).Close()
}
