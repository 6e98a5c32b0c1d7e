package wire

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// timer wakes one goroutine at a moment of CLOCK_MONOTONIC. It is a timerfd in the runtime's poller, because the
// runtime's own timers wait in whole milliseconds while the process is idle.
type timer struct {
	fd   int
	file *os.File
}

func newTimer() (*timer, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create timer: %w", err)
	}
	return &timer{fd, os.NewFile(uintptr(fd), "timerfd")}, nil
}

// arm makes wait return at at, or at once if that has passed. It replaces what was armed before. It must not be called
// after or during close.
func (t *timer) arm(at time.Duration) error {
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(max(int64(at), 1))} // zero would disarm
	return unix.TimerfdSettime(t.fd, unix.TFD_TIMER_ABSTIME, &spec, nil)
}

// wait blocks until the timer fires, or fails when it is closed.
func (t *timer) wait() error {
	var expirations [8]byte
	_, err := t.file.Read(expirations[:])
	return err
}

func (t *timer) close() error { return t.file.Close() }

// The runtime reads CLOCK_MONOTONIC without a system call but hides its origin, so tie the two together once.
var (
	clockStart  = time.Now()
	clockOrigin = func() time.Duration {
		var ts unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
			panic("read CLOCK_MONOTONIC: " + err.Error()) // cannot fail on Linux
		}
		return time.Duration(ts.Nano())
	}()
)

// monotonic returns CLOCK_MONOTONIC.
func monotonic() time.Duration { return clockOrigin + time.Since(clockStart) }
