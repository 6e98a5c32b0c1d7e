package api_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"guywire/mesh/api"
	"guywire/mesh/api/apitest"
)

func TestListenModes(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "run", "guywire", "meshd.sock")
	l, err := api.Listen(socket, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if info, err := os.Lstat(socket); err != nil || info.Mode() != os.ModeSocket|0o660 {
		t.Errorf("socket: %v, %v", info.Mode(), err)
	}
	if info, err := os.Stat(filepath.Dir(socket)); err != nil || info.Mode().Perm()&0o022 != 0 {
		t.Errorf("directory: %v, %v", info.Mode(), err)
	}
	entries, err := os.ReadDir(filepath.Dir(socket))
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestListenRefusesALiveSocket(t *testing.T) {
	socket := apitest.Serve(t, apitest.New())
	_, err := api.Listen(socket, quiet)
	if !errors.Is(err, api.ErrRunning) || !strings.Contains(err.Error(), fmt.Sprintf("(pid %d)", os.Getpid())) {
		t.Errorf("got %v", err)
	}
	c := api.Dial(socket)
	defer c.Close()
	if _, err := c.Status(t.Context()); err != nil {
		t.Errorf("the first daemon was disturbed: %v", err)
	}
}

func TestListenReplacesAStaleSocket(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	for _, name := range []string{socket, socket + "~"} { // also what a crash in the middle of Listen leaves
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		l.Close()
	}
	c := api.Dial(socket)
	defer c.Close()
	_, err := c.Status(t.Context())
	if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.CodeNotRunning || api.ExitCode(err) != api.ExitNotRunning {
		t.Errorf("a stale socket: %v", err)
	}
	apitest.ServeAt(t, apitest.New(), socket)
	if _, err := c.Status(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestListenLeavesOtherFilesAlone(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	if err := os.WriteFile(socket, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := api.Listen(socket, quiet); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("got %v", err)
	}
	if b, err := os.ReadFile(socket); err != nil || string(b) != "precious" {
		t.Errorf("the file is now %q, %v", b, err)
	}
}

// Two daemons that start in the same instant: one wins.
func TestListenTogether(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	const n = 8
	got := make(chan *api.Listener, n)
	for range n {
		go func() {
			l, err := api.Listen(socket, quiet)
			if err != nil && !errors.Is(err, api.ErrRunning) {
				t.Errorf("got %v", err)
			}
			got <- l
		}()
	}
	winners := 0
	for range n {
		if l := <-got; l != nil {
			winners++
			defer l.Close()
		}
	}
	if winners != 1 {
		t.Errorf("%d listeners", winners)
	}
}

// Close leaves the socket of a successor alone.
func TestCloseKeepsAnothersSocket(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	first, err := api.Listen(socket, quiet)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}
	second, err := api.Listen(socket, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(socket); err != nil {
		t.Errorf("the successor's socket is gone: %v", err)
	}
}

func TestNotRunning(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "none")
	_, err := api.Dial(socket).Status(t.Context())
	if api.ExitCode(err) != api.ExitNotRunning || !strings.HasPrefix(err.Error(), "meshd is not running here (no socket "+socket+")") {
		t.Errorf("got %v", err)
	}
}

// The kernel's credentials decide on a real socket: another user's process is
// refused, root's may do all.
func TestPeerCredentials(t *testing.T) {
	b := apitest.New()
	socket := apitest.Serve(t, b)
	c := api.Dial(socket)
	defer c.Close()
	if _, err := c.Leave(t.Context()); err != nil {
		t.Errorf("the owner: %v", err)
	}
	if os.Geteuid() != 0 || !mapped(65533) {
		t.Skip("needs root and a second user id, to connect as another user")
	}
	if err := os.Chmod(socket, 0o666); err != nil { // as if an administrator had opened it
		t.Fatal(err)
	}
	before := len(b.Calls())
	resp := askAs(t, 65533, socket, "GET /v1/status HTTP/1.0\r\n\r\n")
	if !strings.Contains(resp, "403 Forbidden") || !strings.Contains(resp, "User id 65533 may not ask meshd") {
		t.Errorf("another user's read: %s", resp)
	}
	resp = askAs(t, 65533, socket, "POST /v1/leave HTTP/1.0\r\n\r\n")
	if !strings.Contains(resp, "403 Forbidden") || len(b.Calls()) != before {
		t.Errorf("another user's change: %s", resp)
	}
}

// mapped reports whether our user namespace has the id.
func mapped(id int) bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		first, _ := strconv.Atoi(f[0])
		count, _ := strconv.Atoi(f[2])
		if id >= first && id-first < count {
			return true
		}
	}
	return false
}

// askAs connects as another user: on a thread of its own that gives up its ids
// and ends afterwards.
func askAs(t *testing.T, uid int, socket, request string) string {
	t.Helper()
	// The way to the socket must be open to that user.
	for dir := filepath.Dir(socket); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	type result struct {
		fd  int
		err error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies with the goroutine
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			done <- result{-1, err}
			return
		}
		none := 0
		_, _, e1 := unix.RawSyscall(unix.SYS_SETGROUPS, 0, uintptr(none), 0)
		_, _, e2 := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(uid), uintptr(uid), uintptr(uid))
		_, _, e3 := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid))
		if e1 != 0 || e2 != 0 || e3 != 0 {
			done <- result{fd, fmt.Errorf("become user %d: %w %w %w", uid, e1, e2, e3)}
			return
		}
		done <- result{fd, unix.Connect(fd, &unix.SockaddrUnix{Name: socket})}
	}()
	r := <-done
	f := os.NewFile(uintptr(r.fd), "socket")
	defer f.Close()
	if r.err != nil {
		t.Fatal(r.err)
	}
	conn, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if _, err := conn.Write([]byte(request)); err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		all.Write(buf[:n])
		if err != nil {
			return all.String()
		}
	}
}
