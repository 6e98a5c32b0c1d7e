package flow

import (
	"context"
	"errors"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// maxInterval is the longest interval between packets of a flow.
const maxInterval = time.Hour

// ClockAhead is the environment variable that says by how many nanoseconds the clock of those who read the reports is ahead
// of this machine's. It is 0 but where several machines are measured together.
const ClockAhead = "FLOW_CLOCK_AHEAD"

var ahead = func() time.Duration {
	ns, _ := strconv.ParseInt(os.Getenv(ClockAhead), 10, 64)
	return time.Duration(ns)
}()

// Monotonic returns CLOCK_MONOTONIC, the clock of all _mono_ns fields. It is the same in all processes and namespaces of
// the machine, and with [ClockAhead] about the same as on another one.
func Monotonic() time.Duration { return read(unix.CLOCK_MONOTONIC) + ahead }

// wallZero returns the wall-clock time at monotonic zero, by the wall clock of now.
func wallZero() time.Time { return time.Now().Round(0).Add(-Monotonic()) }

func read(clock int32) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(clock, &ts); err != nil {
		panic("read clock: " + err.Error()) // cannot fail for the clocks that Linux always has
	}
	return time.Duration(ts.Nano())
}

// sleepUntil returns at at, or when ctx is done, then with its error, at most a twentieth of a second later. It sleeps in
// the kernel because the runtime's timers wait in whole milliseconds.
func sleepUntil(ctx context.Context, at time.Duration) error {
	const longest = 50 * time.Millisecond
	for ctx.Err() == nil {
		now := Monotonic()
		if now >= at {
			return nil
		}
		ts := unix.NsecToTimespec(int64(min(at, now+longest) - ahead))
		err := unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &ts, nil)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return ctx.Err()
}
