package lab

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"guywire/integration/lab/clock"
	"guywire/integration/lab/disk"
)

// clockFile is a node's clock, in the node's directory.
const clockFile = "clock"

// faults are what is wrong with a node itself, rather than with its links.
type faults struct {
	disk   disk.Disk
	ended  chan struct{}       // closed, and made anew, when the faults are undone
	paused map[string]struct{} // processes that were stopped

	suspended bool // all were
}

func (n *nodeServer) clock() string { return filepath.Join(nodeDir(n.cfg.Dir, n.cfg.Name), clockFile) }

// fault begins one of the faults of the request, and ends it after the request's duration; with none, heal ends it.
func (n *nodeServer) fault(req request) error {
	var undo func() error
	switch {
	case req.Op == opPause:
		name := req.Process
		if name == "" {
			name = agentProcess
		}
		if err := n.pause(name); err != nil {
			return err
		}
		undo = func() error { return n.resume(name) }
	case req.Op == opSuspend && (req.Offset == 0 || n.cfg.Faults):
		if err := n.suspend(); err != nil {
			return err
		}
		if err := n.jump(req.Offset); err != nil {
			return errors.Join(err, n.wake())
		}
		undo = n.wake
	case !n.cfg.Faults:
		return fmt.Errorf("the lab is %w of disks and clocks; start it by `meshlab up --faults`", ErrNoFaults)
	case req.Op == opDisk:
		n.faults.disk.Set(req.Disk)
		undo = func() error {
			n.faults.disk.Set(disk.Healthy)
			return nil
		}
	default:
		if err := n.setClock(req.Offset); err != nil {
			return err
		}
		undo = func() error { return clock.Set(n.clock(), 0) }
	}
	if req.Duration == 0 {
		return nil
	}
	n.mu.Lock()
	ended := n.faults.ended
	n.mu.Unlock()
	select {
	case <-ended: // healed meanwhile
		return nil
	case <-time.After(req.Duration):
		return undo()
	}
}

// pause stops a background process as if its machine were suspended.
func (n *nodeServer) pause(name string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.procs[name]
	if p == nil || !p.running() {
		return fmt.Errorf("%s is %w on %s; `meshlab status` lists the processes", name, ErrNotRunning, n.cfg.Name)
	}
	if err := unix.Kill(p.PID, unix.SIGSTOP); err != nil {
		return fmt.Errorf("pause %s on %s: %w", name, n.cfg.Name, err)
	}
	n.faults.paused[name] = struct{}{}
	return nil
}

func (n *nodeServer) resume(name string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.faults.paused, name)
	p := n.procs[name]
	if p == nil || !p.running() {
		return nil // it was killed meanwhile
	}
	if err := unix.Kill(p.PID, unix.SIGCONT); err != nil {
		return fmt.Errorf("resume %s on %s: %w", name, n.cfg.Name, err)
	}
	return nil
}

// suspend stops every process of the node, once and again: one may just have started another.
func (n *nodeServer) suspend() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.faults.suspended = true
	return errors.Join(n.killAll(unix.SIGSTOP), n.killAll(unix.SIGSTOP))
}

// wake lets all processes of a suspended node go on, but those that are paused.
func (n *nodeServer) wake() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.faults.suspended {
		return nil
	}
	n.faults.suspended = false
	err := n.killAll(unix.SIGCONT)
	for name := range n.faults.paused {
		if p := n.procs[name]; p.running() {
			err = errors.Join(err, unix.Kill(p.PID, unix.SIGSTOP))
		}
	}
	return err
}

// jump steps the node's clock on from where it is.
func (n *nodeServer) jump(by time.Duration) error {
	if by == 0 {
		return nil
	}
	offset, err := clock.Get(n.clock())
	if err != nil {
		return err
	}
	return n.setClock(offset + by)
}

// setClock steps the node's clock. An agent that would not notice is an error: whoever steps clocks must not believe that
// nothing came of it.
func (n *nodeServer) setClock(offset time.Duration) error {
	n.mu.Lock()
	agent := n.procs[agentProcess]
	n.mu.Unlock()
	if agent != nil && agent.running() {
		follows, err := clock.Followed(n.clock(), agent.PID)
		if err != nil {
			return err
		}
		if !follows {
			return fmt.Errorf("meshd on %s is %w of its clock; `meshlab up --faults` builds one that is, clock.Build does", n.cfg.Name, ErrNoFaults)
		}
	}
	return clock.Set(n.clock(), offset)
}

// heal undoes the faults of the node.
func (n *nodeServer) heal() error {
	n.mu.Lock()
	close(n.faults.ended)
	n.faults.ended = make(chan struct{})
	var paused []string
	for name := range n.faults.paused {
		paused = append(paused, name)
	}
	n.mu.Unlock()
	n.faults.disk.Set(disk.Healthy)
	errs := []error{n.wake()}
	for _, name := range paused {
		errs = append(errs, n.resume(name))
	}
	if n.cfg.Faults {
		errs = append(errs, clock.Set(n.clock(), 0))
	}
	return errors.Join(errs...)
}

// found lists what is wrong with the node now.
func (n *nodeServer) found() (out []string) {
	n.mu.Lock()
	for name := range n.faults.paused {
		if n.procs[name].running() {
			out = append(out, name+" paused")
		}
	}
	if n.faults.suspended {
		out = append(out, "suspended")
	}
	n.mu.Unlock()
	switch f := n.faults.disk.Fault(); f {
	case disk.Healthy:
	case disk.Stall:
		out = append(out, "disk stalls")
	default:
		out = append(out, "disk fails with "+string(f))
	}
	if offset, err := clock.Get(n.clock()); err == nil && offset != 0 {
		out = append(out, "clock off by "+offset.String())
	}
	return out
}
