package api

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"guywire/mesh"
)

// A Listener is the daemon's unix socket. Closing it removes the socket file
// if it is still the one that was made.
type Listener struct {
	*net.UnixListener
	path   string
	made   os.FileInfo
	policy policy
	once   sync.Once
}

// Listen makes the socket at path, mode 0660 and, when the group exists, owned
// by group guywire; its directory is made with mode 0755 when missing. A socket
// that no one answers on is replaced. When a daemon answers, the error is
// ErrRunning; what is not a socket is left alone.
//
// The new socket is made under another name, given its owner and mode, and
// renamed into place, so it is never open to more than it should be; a lock on
// the directory keeps two daemons that start together apart.
func Listen(path string, log *slog.Logger) (*Listener, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the directory of the API socket: %w; run meshd as root, or set \"socket:\" to a path that it may write", err)
	}
	unlock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := checkStale(path); err != nil {
		return nil, err
	}

	temp := path + "~"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("make the API socket: %w", err)
	}
	ul, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("make the API socket %s: %w; run meshd as root, or set \"socket:\" to a path that it may write", path, err)
	}
	ul.SetUnlinkOnClose(false)
	l := &Listener{UnixListener: ul, path: path, policy: newPolicy()}
	if err := l.settle(temp, log); err != nil {
		return nil, errors.Join(err, ul.Close(), os.Remove(temp))
	}
	return l, nil
}

// settle gives the socket its owner, mode and final name.
func (l *Listener) settle(temp string, log *slog.Logger) error {
	if l.policy.hasGroup {
		if err := os.Lchown(temp, -1, int(l.policy.group)); err != nil {
			// A plain user who is not in the group, or a user namespace that
			// does not map it: then no one but the owner can connect.
			log.Warn("API socket is for its owner only: cannot give it to the group", "group", GroupName, mesh.LogError, err)
		}
	}
	if err := os.Chmod(temp, 0o660); err != nil {
		return fmt.Errorf("set the mode of the API socket: %w", err)
	}
	var err error
	if l.made, err = os.Lstat(temp); err != nil {
		return fmt.Errorf("make the API socket: %w", err)
	}
	if err := os.Rename(temp, l.path); err != nil {
		return fmt.Errorf("put the API socket in place: %w", err)
	}
	return nil
}

// Accept waits for a connection and reads the peer's credentials.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		peer, err := peerOf(c)
		if err != nil { // gone already, or not to be trusted
			c.Close()
			continue
		}
		return &peerConn{UnixConn: c, access: l.policy.access(peer)}, nil
	}
}

// Close stops listening and removes the socket file. A second call does nothing.
func (l *Listener) Close() error {
	var err error
	l.once.Do(func() {
		err = l.UnixListener.Close()
		if now, e := os.Lstat(l.path); e == nil && os.SameFile(now, l.made) {
			err = errors.Join(err, os.Remove(l.path))
		}
	})
	return err
}

// A peerConn is a connection with what its peer may do.
type peerConn struct {
	*net.UnixConn
	access Access
}

// lockDir holds a lock on a directory until unlock; the kernel frees it when
// the process dies. Anyone who may read the directory can hold such a lock, so
// it waits probeTimeout at most and then goes on without: what is lost is only
// the protection of two daemons that start in the same instant.
func lockDir(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open the directory of the API socket: %w", err)
	}
	for end := time.Now().Add(probeTimeout); ; time.Sleep(probeTimeout / 100) {
		err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) || time.Now().After(end) {
			return func() { d.Close() }, nil
		}
	}
}

// checkStale gives nil when path is free or holds a socket that no one serves.
func checkStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at the API socket: %w", err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is there and not a socket: move it away, or set another path with \"socket:\"", path)
	}
	c, err := net.DialTimeout("unix", path, probeTimeout)
	switch {
	case err == nil:
		defer c.Close()
		return fmt.Errorf("%w on %s%s: stop it first, or give this one its own \"socket:\" and \"state:\"", ErrRunning, path, pidOf(c))
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil
	default: // alive and too busy, or not ours to touch
		return fmt.Errorf("%w on %s, or its socket may not be used: %w", ErrRunning, path, err)
	}
}

// pidOf names the process that listens at the other end, when it can be known.
func pidOf(c net.Conn) string {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return ""
	}
	peer, err := peerOf(uc)
	if err != nil || peer.PID == 0 {
		return ""
	}
	return fmt.Sprintf(" (pid %d)", peer.PID)
}
