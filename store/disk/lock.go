package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"
)

// takeLock holds an exclusive flock, which the kernel drops with the process,
// so there is never a stale one. The pid in the file is for the error only.
func (d *Dir) takeLock() error {
	f, err := d.root.OpenFile(lockName, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("lock %s: %w", d.path, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return fmt.Errorf("lock %s: %w", d.path, err)
		}
		return fmt.Errorf("%w: another meshd%s uses %s; stop it first, or give this one a state directory of its own", ErrInUse, holder(f), d.path)
	}
	if err := errors.Join(f.Truncate(0), writePID(f)); err != nil {
		return errors.Join(fmt.Errorf("lock %s: %w", d.path, err), f.Close())
	}
	d.lock = f
	return nil
}

func writePID(f *os.File) error {
	_, err := f.WriteAt(strconv.AppendInt(nil, int64(os.Getpid()), 10), 0)
	return err
}

// holder gives " (pid N)", or nothing while the other one is still writing it.
func holder(f *os.File) string {
	b, err := io.ReadAll(io.LimitReader(f, 20))
	pid, atoi := strconv.Atoi(string(bytes.TrimSpace(b)))
	if err != nil || atoi != nil || pid <= 0 {
		return ""
	}
	return fmt.Sprintf(" (pid %d)", pid)
}
