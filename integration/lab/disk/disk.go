// Package disk makes the disk of a program fail: its fsync and fdatasync calls wait, or end with an error, and go on as
// before when that is over. The program is any binary, unchanged; it needs no privileges.
//
// Each call of the program is held by a seccomp filter that asks this process (seccomp_unotify(2), Linux 5.5). So a disk is
// a little slower for a program started through a [Disk], also while it is healthy: figures are not measured there. All
// that the program starts is held too, for as long as it lives. When this process ends, held calls fail with ENOSYS.
package disk

import (
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Fault is what a disk does.
type Fault string

// The faults.
const (
	Healthy Fault = ""
	Stall   Fault = "stall"  // calls wait until the fault ends, then succeed
	IO      Fault = "EIO"    // calls fail: the data is lost
	Full    Fault = "ENOSPC" // calls fail: there is no room
)

// Faults are all of them, without Healthy.
var Faults = []Fault{Stall, IO, Full}

// Known reports whether there is such a fault.
func (f Fault) Known() bool { return f == Healthy || slices.Contains(Faults, f) }

func (f Fault) errno() unix.Errno {
	switch f {
	case IO:
		return unix.EIO
	case Full:
		return unix.ENOSPC
	default:
		return 0
	}
}

// A Disk is what the programs started through it believe to write to. Its zero value is healthy.
type Disk struct {
	mu      sync.Mutex // guards the fields below
	fault   Fault
	waiting []call
}

// A call is one that a program waits in.
type call struct {
	listener int
	id       uint64
}

// Set changes what the disk does from now on. Calls that wait go on, unless it stalls still.
func (d *Disk) Set(f Fault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fault = f
	if f == Stall {
		return
	}
	for _, c := range d.waiting {
		c.answer(f)
	}
	d.waiting = nil
}

// Fault is what the disk does now.
func (d *Disk) Fault() Fault {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.fault
}

// Waiting is how many calls wait in a stalled disk.
func (d *Disk) Waiting() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.waiting)
}

// Start is cmd.Start for a program whose disk is d.
func (d *Disk) Start(cmd *exec.Cmd) error {
	started := make(chan error, 1)
	go d.start(cmd, started)
	return <-started
}

func (d *Disk) start(cmd *exec.Cmd, started chan<- error) {
	// A filter is a thread's and what it starts inherits it. The thread is never unlocked and ends with this function.
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// But the first thread of a process does not end, and would keep the filter alive: another one, while this waits.
		defer runtime.UnlockOSThread()
		inner := make(chan error, 1)
		go d.start(cmd, inner)
		started <- <-inner
		return
	}
	listener, err := install()
	if err != nil {
		started <- err
		return
	}
	if err := cmd.Start(); err != nil {
		started <- errors.Join(err, unix.Close(listener))
		return
	}
	go d.serve(listener) // ends with the last process that has the filter
	started <- nil
}

// install gives this thread the filter, and the descriptor on which the calls arrive.
func install() (listener int, err error) {
	arch := map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}[runtime.GOARCH]
	if arch == 0 {
		return 0, fmt.Errorf("disk faults are not known on %s; use amd64 or arm64", runtime.GOARCH)
	}
	const offsetNr, offsetArch = 0, 4 // in struct seccomp_data
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	equal := func(k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jt: yes, Jf: no}
	}
	give := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }
	filter := []unix.SockFilter{
		load(offsetArch),
		equal(arch, 0, 3),
		load(offsetNr),
		equal(unix.SYS_FSYNC, 2, 0),
		equal(unix.SYS_FDATASYNC, 1, 0),
		give(unix.SECCOMP_RET_ALLOW),
		give(unix.SECCOMP_RET_USER_NOTIF),
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return 0, fmt.Errorf("give privileges up for good: %w", err)
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	fd, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&program)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		return 0, fmt.Errorf("hold the calls of a program: %w; the kernel must be Linux 5.5 or later with CONFIG_SECCOMP_FILTER, and nobody else may hold them", errno)
	}
	return int(fd), nil
}

// notification and response are struct seccomp_notif and seccomp_notif_resp.
type notification struct {
	id   uint64
	pid  uint32
	_    uint32 // flags
	data [64]byte
}

type response struct {
	id    uint64
	value int64
	err   int32
	flags uint32
}

// serve answers the calls that arrive on the listener.
func (d *Disk) serve(listener int) {
	defer d.forget(listener)
	for {
		fds := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil || fds[0].Revents&unix.POLLIN == 0 {
			return // nobody is left
		}
		var n notification
		switch err := ioctl(listener, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n)); {
		case err == nil:
			d.decide(call{listener, n.id})
		case !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINTR): // those: the caller has died meanwhile
			return
		}
	}
}

func (d *Disk) decide(c call) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fault == Stall {
		d.waiting = append(d.waiting, c)
		return
	}
	c.answer(d.fault)
}

// forget closes a listener; who waited there has died.
func (d *Disk) forget(listener int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.waiting = slices.DeleteFunc(d.waiting, func(c call) bool { return c.listener == listener })
	_ = unix.Close(listener)
}

// answer lets the call go on, or fail. A caller that has died needs no answer.
func (c call) answer(f Fault) {
	r := response{id: c.id, err: -int32(f.errno())}
	if r.err == 0 {
		r.flags = unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE
	}
	_ = ioctl(c.listener, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&r))
}

func ioctl(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}
