package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A machine is one that QEMU can boot.
type machine struct {
	kernel  string // path of the image
	initrd  string // path of the archive
	console string // where the kernel's messages go
	memory  int    // MiB
	cpus    int
}

// errNoHello is returned when nothing in a machine says that it runs.
var errNoHello = errors.New("the machine does not come up")

// helloWithin is how long a machine may take to come up: about 6 s in
// emulation when nothing else runs, and much more on a machine that is busy.
var helloWithin = map[string]time.Duration{"kvm": 20 * time.Second, "tcg": 15 * time.Minute}

// boot runs the machine until it ends, or until ctx does, and gives each line
// of its second serial port to line, after the one that greets. It returns how
// much processor time that took.
func (m machine) boot(ctx context.Context, accel string, line func(string)) (busy time.Duration, err error) {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	came := afterAwake(helloWithin[accel], func() { stop(errNoHello) })
	defer came()

	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none", "-no-reboot",
		"-accel", accel, "-cpu", "max", "-smp", strconv.Itoa(m.cpus), "-m", fmt.Sprintf("%dM", m.memory),
		"-kernel", m.kernel, "-initrd", m.initrd,
		"-append", "console=ttyS0 panic=-1 quiet tsc=reliable mitigations=off cryptomgr.notests",
		"-serial", "file:" + m.console, "-serial", "stdio",
	}
	if accel == "tcg" {
		// The machine's clocks count its instructions, one a nanosecond, and jump
		// when it has nothing to do: what is late inside does not depend on how
		// fast it is emulated, nor on what else this machine does, and waiting
		// costs nothing. Processors take turns, so there is only one.
		args = append(args, "-icount", "shift=0,sleep=off", "-rtc", "clock=vm", "-smp", "1")
	}
	cmd := exec.CommandContext(ctx, emulator, args...)
	var said strings.Builder
	cmd.Stderr, cmd.WaitDelay = &said, 5*time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	up := false
	lines := bufio.NewReader(out)
	for {
		text, err := lines.ReadString('\n')
		if text = strings.TrimRight(text, "\r\n"); err == nil {
			if up {
				line(text)
			} else if text == greeting {
				up = true
				came()
			}
		}
		if err != nil {
			break
		}
	}
	err = cmd.Wait()
	busy = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if !up {
		return busy, fmt.Errorf("%w with %s: %v: %s", errNoHello, accel, err, firstLine(said.String()))
	}
	return busy, err
}

// afterAwake calls f in a goroutine after d, unless it is called off first. A
// time in which this program did not run does not count, as when it and the
// machines are stopped by SIGSTOP or a lid that is closed: a ticker makes up for
// nothing.
func afterAwake(d time.Duration, f func()) (callOff func()) {
	off := make(chan struct{})
	go func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for range d / time.Second {
			select {
			case <-tick.C:
			case <-off:
				return
			}
		}
		f()
	}()
	return sync.OnceFunc(func() { close(off) })
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}

// accelerators gives what to try, best first.
func accelerators(asked string) []string {
	if asked != "auto" {
		return []string{asked}
	}
	if f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err == nil {
		_ = f.Close()
		return []string{"kvm", "tcg"}
	}
	return []string{"tcg"}
}
