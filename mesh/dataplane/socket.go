package dataplane

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A socket is a listening unix socket of ours: mode 0600, and only processes
// of our own uid or root are served.
type socket struct {
	*net.UnixListener
	path string
	file os.FileInfo // to know ours from a successor's at the same path

	mu     sync.Mutex
	conns  map[*net.UnixConn]struct{}
	closed chan struct{}
}

// listen makes the socket at path. A socket file that nobody listens on is
// replaced; one that answers is an error.
func listen(path string) (*socket, error) {
	if err := removeStale(path); err != nil {
		return nil, err
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	ln.SetUnlinkOnClose(false) // the path may have become someone else's by then
	s := &socket{UnixListener: ln, path: path, conns: map[*net.UnixConn]struct{}{}, closed: make(chan struct{})}
	// Whoever connects before the chmod meets the check of credentials.
	err = os.Chmod(path, 0o600)
	if err == nil {
		s.file, err = os.Lstat(path)
	}
	if err != nil {
		ln.Close()
		os.Remove(path)
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return s, nil
}

// removeStale removes the socket file at path if no process listens on it.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("%s exists and is no socket; remove it", path)
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err == nil {
		conn.Close()
		return fmt.Errorf("%s is in use by another process", path)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("try %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// present reports whether the socket can still be reached by its path.
func (s *socket) present() bool {
	now, err := os.Lstat(s.path)
	return err == nil && os.SameFile(now, s.file)
}

// serve runs handle for each connection, at most limit at a time, until close
// is called. It returns when the last handle has returned.
func (s *socket) serve(limit int, handle func(*net.UnixConn)) {
	var handlers sync.WaitGroup
	defer handlers.Wait()
	slots := make(chan struct{}, limit)
	for {
		select {
		case slots <- struct{}{}:
		case <-s.closed:
			return
		}
		conn, err := s.AcceptUnix()
		if err != nil {
			<-slots
			select {
			case <-s.closed:
				return
			case <-time.After(logInterval): // out of descriptors: it passes, or it does not
				continue
			}
		}
		if !s.admit(conn) {
			conn.Close()
			<-slots
			continue
		}
		handlers.Go(func() {
			defer func() { <-slots }()
			defer s.dismiss(conn)
			handle(conn)
		})
	}
}

func (s *socket) admit(conn *net.UnixConn) bool {
	if uid, err := peerUID(conn); err != nil || uid != 0 && int(uid) != os.Getuid() {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.closed:
		return false
	default:
		s.conns[conn] = struct{}{}
		return true
	}
}

func (s *socket) dismiss(conn *net.UnixConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, conn)
	conn.Close()
}

// close ends serve and all connections, and removes the file. It may be
// called more than once.
func (s *socket) close() {
	s.stop()
	s.hangUp()
}

// stop removes the file and takes no more connections.
func (s *socket) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.closed:
		return
	default:
	}
	close(s.closed)
	if s.present() {
		os.Remove(s.path)
	}
	s.UnixListener.Close()
}

// hangUp closes the connections; after stop no more are added.
func (s *socket) hangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for conn := range s.conns {
		conn.Close()
	}
}

func peerUID(conn *net.UnixConn) (uint32, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var sockErr error
	if err := raw.Control(func(fd uintptr) {
		cred, sockErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if sockErr != nil {
		return 0, sockErr
	}
	return cred.Uid, nil
}

// An idleConn gives up when a read waits longer than the limit.
type idleConn struct {
	*net.UnixConn
	limit time.Duration
}

func (c idleConn) Read(b []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.limit)); err != nil {
		return 0, err
	}
	return c.UnixConn.Read(b)
}

func (c idleConn) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.limit)); err != nil {
		return 0, err
	}
	return c.UnixConn.Write(b)
}

// A rightsConn also takes a descriptor that comes along (SCM_RIGHTS, unix(7)):
// the newest one, until somebody asks for it.
type rightsConn struct {
	idleConn
	held *os.File
}

// Read implements io.Reader.
func (c *rightsConn) Read(b []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.limit)); err != nil {
		return 0, err
	}
	var rights [unix.SizeofCmsghdr + 8]byte // room for one; the kernel closes what does not fit
	n, size, _, _, err := c.ReadMsgUnix(b, rights[:])
	if err != nil {
		return 0, err
	}
	messages, err := unix.ParseSocketControlMessage(rights[:size])
	if err != nil {
		return 0, err
	}
	for _, m := range messages {
		fds, _ := unix.ParseUnixRights(&m) // of another kind: there are none
		for _, fd := range fds {
			c.drop()
			c.held = os.NewFile(uintptr(fd), "handed over")
		}
	}
	return n, nil
}

// drop closes what nobody has asked for.
func (c *rightsConn) drop() {
	if c.held != nil {
		c.held.Close()
		c.held = nil
	}
}

// take gives the TCP connection that came along.
func (c *rightsConn) take() (*net.TCPConn, error) {
	if c.held == nil {
		return nil, fmt.Errorf("%w: no connection came along", ErrInvalid)
	}
	defer c.drop() // what net makes of it is a copy
	conn, err := net.FileConn(c.held)
	if err != nil {
		return nil, fmt.Errorf("%w: what came along: %w", ErrInvalid, err)
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		conn.Close()
		return nil, fmt.Errorf("%w: what came along is no TCP connection", ErrInvalid)
	}
	return tcp, nil
}
