package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"guywire/integration/lab/disk"
)

// Lab is a running lab. Its methods may be called from several goroutines at once; each is one request to the lab's
// supervisor and returns when that has done it.
type Lab struct {
	name, dir string

	// Only in the process that started the lab:
	tie     *net.UnixConn // the supervisor ends when it breaks; nil when detached
	process *os.Process
	ended   chan struct{} // closed when the supervisor is gone
}

// Name returns the lab's name.
func (l *Lab) Name() string { return l.name }

// Dir returns the lab's directory: agents' settings, state and logs are in nodes/NODE below it. It is removed with the lab.
func (l *Lab) Dir() string { return l.dir }

// Logs returns Dir: all logs are there.
func (l *Lab) Logs(context.Context) (dir string, err error) { return l.dir, nil }

// call makes one request.
func (l *Lab) call(ctx context.Context, req request, files ...*os.File) (reply, error) {
	conn, err := l.dial()
	if err != nil {
		return reply{}, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	r, err := l.ask(conn, req, files)
	if err != nil && ctx.Err() != nil {
		return reply{}, context.Cause(ctx)
	}
	return r, err
}

func (l *Lab) ask(conn *net.UnixConn, req request, files []*os.File) (reply, error) {
	if err := send(conn, req, files...); err != nil {
		return reply{}, fmt.Errorf("ask lab %s: %w", l.name, err)
	}
	r, err := readReply(conn)
	if err != nil {
		return reply{}, fmt.Errorf("lab %s ended while it was asked: %w", l.name, err)
	}
	return r, r.err()
}

// copyWait is how long Exec waits for the rest of the output once the command has ended: something that it left running
// may hold the pipe open for ever.
const copyWait = 5 * time.Second

// Exec runs a command on the node and returns its exit code, 128 and the signal's number when a signal ended it. A nil
// stdin, stdout or stderr is /dev/null; files are passed as they are, others are copied. When ctx ends, the command is
// killed. An error means that the command did not run, or that its end is unknown.
func (l *Lab) Exec(ctx context.Context, node string, argv []string, stdin io.Reader, stdout, stderr io.Writer) (int, error) {
	return l.exec(ctx, node, argv, stdin, stdout, stderr, nil)
}

// ExecSignals is Exec that passes the signals on to the command.
func (l *Lab) ExecSignals(ctx context.Context, node string, argv []string, stdin io.Reader, stdout, stderr io.Writer, signals <-chan os.Signal) (int, error) {
	return l.exec(ctx, node, argv, stdin, stdout, stderr, signals)
}

func (l *Lab) exec(ctx context.Context, node string, argv []string, stdin io.Reader, stdout, stderr io.Writer, signals <-chan os.Signal) (int, error) {
	var p plumbing
	defer p.close()
	in, err := p.reader(stdin)
	if err != nil {
		return 0, err
	}
	out, err := p.writer(stdout)
	if err != nil {
		return 0, err
	}
	errOut := out
	if !sameWriter(stdout, stderr) {
		if errOut, err = p.writer(stderr); err != nil {
			return 0, err
		}
	}
	conn, err := l.dial()
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	wd, err := os.Getwd()
	if err != nil {
		wd = "/"
	}
	req := request{Op: opExec, Node: node, Argv: argv, Dir: wd, Term: os.Getenv("TERM")}
	if err := send(conn, req, in, out, errOut); err != nil {
		return 0, fmt.Errorf("ask lab %s: %w", l.name, err)
	}
	p.handedOver()
	over := make(chan struct{})
	defer close(over)
	go func() { // ends with the command
		for {
			select {
			case <-over:
				return
			case sig, open := <-signals:
				if !open {
					signals = nil
				}
				if s, ok := sig.(syscall.Signal); ok {
					_ = send(conn, request{Op: opSignal, Signal: int(s)})
				}
			}
		}
	}()
	r, err := readReply(conn)
	switch {
	case ctx.Err() != nil:
		return 0, context.Cause(ctx)
	case err != nil:
		return 0, fmt.Errorf("lab %s ended while %s ran on %s: %w", l.name, argv[0], node, err)
	}
	p.drain()
	return r.Exit, r.err()
}

func sameWriter(a, b io.Writer) (same bool) {
	defer func() { _ = recover() }() // of types that cannot be compared
	return a == b
}

// Start starts a program on the node and leaves it running, with its output in Dir()/nodes/NODE/NAME.log. An empty
// process takes the program's name; an empty argv starts the site's meshd. It returns the process id inside the lab.
func (l *Lab) Start(ctx context.Context, node, process string, argv []string) (int, error) {
	r, err := l.call(ctx, request{Op: opStart, Node: node, Process: process, Argv: argv})
	return r.PID, err
}

// Kill sends a signal to a process that Start started; an empty name means meshd, signal 0 means SIGKILL. After SIGKILL it
// returns when the process is gone. Other processes of the node live on, the data plane among them.
func (l *Lab) Kill(ctx context.Context, node, process string, sig syscall.Signal) error {
	_, err := l.call(ctx, request{Op: opKill, Node: node, Process: process, Signal: int(sig)})
	return err
}

// KillAll sends a signal, SIGKILL when 0, to every process of the node, whoever started it.
func (l *Lab) KillAll(ctx context.Context, node string, sig syscall.Signal) error {
	_, err := l.call(ctx, request{Op: opKill, Node: node, Signal: int(sig), All: true})
	return err
}

// Cut makes packets on the link vanish while its carrier stays up; with a node in from only those that it sends. A link is
// named as in [Status], or by NODE:INTERFACE of either end, here and below.
func (l *Lab) Cut(ctx context.Context, link, from string) error {
	_, err := l.call(ctx, request{Op: opCut, Link: link, From: from})
	return err
}

// Disk makes the node's disk fail for as long as it says, and returns when that is over; 0 is until it is healed. What
// is affected are the fsync calls of programs that Start started, in a lab with Options.Faults; else it is ErrNoFaults.
func (l *Lab) Disk(ctx context.Context, node string, fault disk.Fault, d time.Duration) error {
	_, err := l.call(ctx, request{Op: opDisk, Node: node, Disk: fault, Duration: d})
	return err
}

// Clock steps the wall clock of the node's programs to offset from the machine's, in whole seconds, for as long as it says,
// and returns when that is over; 0 is until it is healed. The programs are those that package clock has built, and
// the lab is one with Options.Faults; an agent that would not notice is ErrNoFaults.
func (l *Lab) Clock(ctx context.Context, node string, offset, d time.Duration) error {
	_, err := l.call(ctx, request{Op: opClock, Node: node, Offset: offset, Duration: d})
	return err
}

// Pause stops a process that Start started, an empty name means meshd, for as long as it says, and returns when it runs
// again; 0 is until the node is healed. Its data plane lives on.
func (l *Lab) Pause(ctx context.Context, node, process string, d time.Duration) error {
	_, err := l.call(ctx, request{Op: opPause, Node: node, Process: process, Duration: d})
	return err
}

// Suspend stops every process of the node, its data plane among them, for as long as it says, and returns when they run
// again; 0 is until the node is healed. Its network stays: what arrives meanwhile waits in the buffers of its sockets. With a
// jump, which needs what Clock needs, its wall clock is that much later from then on, as if it had slept longer.
func (l *Lab) Suspend(ctx context.Context, node string, d, jump time.Duration) error {
	_, err := l.call(ctx, request{Op: opSuspend, Node: node, Duration: d, Offset: jump})
	return err
}

// HealNode undoes every fault of the node itself: of its disk and its clock, and it resumes what is paused or suspended.
func (l *Lab) HealNode(ctx context.Context, node string) error {
	_, err := l.call(ctx, request{Op: opHeal, Node: node})
	return err
}

// Heal undoes every fault of the link; an empty link means all of them, and of all nodes too.
func (l *Lab) Heal(ctx context.Context, link string) error {
	_, err := l.call(ctx, request{Op: opHeal, Link: link})
	return err
}

// Impair replaces what a wire does to packets, or with a node in from to those that it sends. Links that are veth pairs
// are ErrNotWire.
func (l *Lab) Impair(ctx context.Context, link, from string, p Properties) error {
	_, err := l.call(ctx, request{Op: opImpair, Link: link, From: from, Props: p})
	return err
}

// Carrier unplugs the link, or plugs it in again. On a veth pair the far end's interface (the router's) goes down, and the
// near end loses its carrier; on a wire both ends lose it.
func (l *Lab) Carrier(ctx context.Context, link string, up bool) error {
	_, err := l.call(ctx, request{Op: opCarrier, Link: link, Up: up})
	return err
}

// Partition cuts every link between nodes of different groups, silently. Nodes in no group keep all their links.
func (l *Lab) Partition(ctx context.Context, groups ...[]string) error {
	_, err := l.call(ctx, request{Op: opPartition, Groups: groups})
	return err
}

// Reboot switches a router or NAT off, for a second when downtime is 0, and on again: its neighbours lose their carrier, and
// a NAT forgets its mappings. It returns when the node is back.
func (l *Lab) Reboot(ctx context.Context, node string, downtime time.Duration) error {
	_, err := l.call(ctx, request{Op: opReboot, Node: node, Duration: downtime})
	return err
}

// Translate makes another kind of box of a NAT, such as a symmetric one. Flows that it knows keep their mappings until they
// expire; Reboot makes it forget them. A firewall cannot become a NAT, nor a NAT a firewall.
func (l *Lab) Translate(ctx context.Context, node string, to Mapping) error {
	_, err := l.call(ctx, request{Op: opTranslate, Node: node, Mapping: to})
	return err
}

// UDP makes a NAT or firewall pass UDP, or drop all of it, known flows too.
func (l *Lab) UDP(ctx context.Context, node string, passes bool) error {
	_, err := l.call(ctx, request{Op: opUDP, Node: node, Up: passes})
	return err
}

// Readdress gives an uplink the addresses, or the next free ones when there are none, and changes all routes that follow.
// It returns the uplink's new addresses.
func (l *Lab) Readdress(ctx context.Context, link string, addrs ...netip.Prefix) ([]netip.Prefix, error) {
	r, err := l.call(ctx, request{Op: opReaddress, Link: link, Addresses: addrs})
	return r.Addresses, err
}

// Status describes the lab as it is now.
func (l *Lab) Status(ctx context.Context) (*Status, error) {
	r, err := l.call(ctx, request{Op: opStatus})
	return r.Status, err
}

const (
	stopWait = 2 * time.Second  // for the supervisor to end by itself
	killEnd  = 10 * time.Second // for the kernel to end what was killed
)

// Close ends the lab, whoever started it and whatever state it is in, and removes its directory. Closing twice is harmless.
func (l *Lab) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopWait)
	defer cancel()
	if l.tie != nil {
		_ = l.tie.Close()
	}
	fd, err := openSupervisor(l.dir)
	if err == nil {
		defer unix.Close(fd)
		_, _ = l.call(ctx, request{Op: opStop}) // one that does not answer is killed
		if deadline, _ := ctx.Deadline(); !waitPidfd(fd, time.Until(deadline)) {
			if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
				return fmt.Errorf("kill the supervisor of lab %s: %w", l.name, err)
			}
			if !waitPidfd(fd, killEnd) {
				return fmt.Errorf("the supervisor of lab %s does not end though it was killed; see its process in ps", l.name)
			}
		}
	}
	if l.ended != nil {
		<-l.ended
	}
	// The lock is free now, unless the lab is just being built, or somebody has started another one since.
	lock, err := takeLock(l.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, unix.EWOULDBLOCK):
		return fmt.Errorf("lab %s is just being built; try again", l.name)
	case err != nil:
		return err
	}
	defer lock.Close()
	return removeDir(l.dir)
}

// kill ends a supervisor that this process started, without asking.
func (l *Lab) kill() {
	if l.tie != nil {
		_ = l.tie.Close()
	}
	if l.process != nil {
		_ = l.process.Kill()
		<-l.ended
	}
}

// waitPidfd waits until the process has ended, and reports whether it did.
func waitPidfd(fd int, wait time.Duration) bool {
	deadline := time.Now().Add(wait)
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(max(time.Until(deadline), 0)/time.Millisecond))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return err == nil && n > 0
	}
}

// plumbing turns readers and writers into files that another process can have.
type plumbing struct {
	given  []*os.File // ours only until the command has them
	pipes  []*os.File // our ends
	copies sync.WaitGroup
}

func (p *plumbing) null() (*os.File, error) {
	f, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err == nil {
		p.given = append(p.given, f)
	}
	return f, err
}

func (p *plumbing) reader(r io.Reader) (*os.File, error) {
	if r == nil {
		return p.null()
	}
	if f, ok := r.(*os.File); ok {
		return f, nil
	}
	theirs, ours, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p.given, p.pipes = append(p.given, theirs), append(p.pipes, ours)
	go func() { // ends with the reader, or with the command when the reader gives something
		_, _ = io.Copy(ours, r)
		_ = ours.Close()
	}()
	return theirs, nil
}

func (p *plumbing) writer(w io.Writer) (*os.File, error) {
	if w == nil {
		return p.null()
	}
	if f, ok := w.(*os.File); ok {
		return f, nil
	}
	ours, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p.given, p.pipes = append(p.given, theirs), append(p.pipes, ours)
	p.copies.Go(func() { _, _ = io.Copy(w, ours) })
	return theirs, nil
}

// handedOver closes what the command has now.
func (p *plumbing) handedOver() {
	closeAll(p.given)
	p.given = nil
}

// drain waits for the rest of the output.
func (p *plumbing) drain() {
	for _, f := range p.pipes {
		_ = f.SetReadDeadline(time.Now().Add(copyWait))
	}
	p.copies.Wait()
}

func (p *plumbing) close() {
	closeAll(p.given)
	closeAll(p.pipes)
	p.copies.Wait()
}
