package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A lockFile is held by the one data plane of a control socket, from before it
// looks at the socket until after it has removed it. The kernel releases it
// when the process dies, however it dies.
type lockFile struct{ *os.File }

// acquire takes the lock of a control socket, or returns ErrRunning. A holder
// that does not listen is about to, or is dying: that is worth a wait.
func acquire(ctx context.Context, socket string) (lockFile, error) {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		lock, err := tryLock(socket + ".lock")
		if !errors.Is(err, ErrRunning) {
			return lock, err
		}
		if conn, dialErr := net.Dial("unix", socket); dialErr == nil {
			conn.Close()
			return lockFile{}, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return lockFile{}, err
		}
	}
}

func tryLock(path string) (lockFile, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return lockFile{}, fmt.Errorf("lock the data plane: %w", err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			if err == unix.EWOULDBLOCK {
				return lockFile{}, fmt.Errorf("%s: %w", path, ErrRunning)
			}
			return lockFile{}, fmt.Errorf("lock %s: %w", path, err)
		}
		// A predecessor may have removed the file between our open and our
		// lock; then the lock is on a file that nobody else will ever open.
		ours, err1 := f.Stat()
		there, err2 := os.Lstat(path)
		if err1 == nil && err2 == nil && os.SameFile(ours, there) {
			return lockFile{f}, nil
		}
		f.Close()
	}
}

// release removes the file and gives up the lock. Only the first call counts.
func (l lockFile) release() {
	if _, err := l.Stat(); err != nil {
		return // closed: the file at this path may be a successor's
	}
	os.Remove(l.Name())
	l.Close()
}
