package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The tests run in a network and a mount namespace of their own, with an empty
// /run: TestMain runs the test binary again inside. The binary is also each
// of the programs that the tests need.
const inside = "GUYWIRE_TEST_INSIDE"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		if program, ok := programs[os.Args[1]]; ok {
			if err := program(os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	if os.Getenv(inside) != "" {
		if err := privateRun(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = isolated()
	err := cmd.Run()
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) {
		// No namespaces: the tests that need one say so and skip.
		os.Exit(m.Run())
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func isolated() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	if os.Getuid() != 0 {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	return attr
}

func privateRun() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// needDevices skips a test that cannot make TUN devices here.
func needDevices(t testing.TB) {
	t.Helper()
	if os.Getenv(inside) == "" {
		t.Skip("needs to make network and mount namespaces")
	}
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skip(tunError(err))
	}
	unix.Close(fd)
}

var programs = map[string]func(args []string) error{
	// run-dataplane SOCKET
	"run-dataplane": func(args []string) error {
		log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
		return Run(context.Background(), Config{Socket: args[0], Version: "test", Log: log, Detach: true})
	},
	// run-tunless SOCKET: run-dataplane where the kernel has no TUN devices
	"run-tunless": func(args []string) error {
		runtime.LockOSThread() // only this thread is in the new namespace, until it becomes the process
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := unix.Mount("tmpfs", filepath.Dir(tunPath), "tmpfs", 0, ""); err != nil {
			return err
		}
		return unix.Exec("/proc/self/exe", []string{os.Args[0], "run-dataplane", args[0]}, os.Environ())
	},
	// run-doorman SOCKET: hands over what connects, after saying where
	"run-doorman": func(args []string) error {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		fmt.Println(ln.Addr())
		for {
			conn, err := ln.Accept()
			if err != nil {
				return err
			}
			_ = Client{args[0]}.HandOver(context.Background(), conn.(*net.TCPConn)) // refused: the far end hears of it
			conn.Close()
		}
	},
	// run-broken: says why it cannot start
	"run-broken": func([]string) error { return errors.New("broken on purpose") },
	// run-mute: ends without a word
	"run-mute": func([]string) error { os.Exit(3); return nil },
	// try-socket PATH: exits 0 if the other end closes without an answer
	"try-socket": func(args []string) error {
		conn, err := net.Dial("unix", args[0])
		if err != nil {
			return err
		}
		defer conn.Close()
		fmt.Fprint(conn, "{\"op\":\"version\"}\n")
		if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
			return errors.New("answered")
		}
		return nil
	},
}

// spawn starts a data plane process on a socket of the test's own and stops
// it when the test ends.
func spawn(t testing.TB) Spawner {
	t.Helper()
	needDevices(t)
	s := spawner(t, "run-dataplane")
	if err := s.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Shutdown(context.Background(), true); err != nil && !errors.Is(err, ErrNotRunning) {
			t.Error(err)
		}
	})
	return s
}

func spawner(t testing.TB, program string) Spawner {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "test")
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "dataplane.sock")
	return Spawner{Client: Client{socket}, Exe: "/proc/self/exe", Args: []string{program, socket}, Output: os.Stderr}
}

// pid gives the process that listens on the control socket.
func pid(t testing.TB, c Client) int {
	t.Helper()
	conn, err := net.Dial("unix", c.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var cred *unix.Ucred
	if err := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return int(cred.Pid)
}

func signalTo(t testing.TB, pid int, sig unix.Signal) {
	t.Helper()
	if err := unix.Kill(pid, sig); err != nil {
		t.Fatal(err)
	}
}

// eventually waits for a condition that another process or the kernel makes true.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(30 * time.Second)
	for !cond() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

func linkExists(name string) bool {
	_, err := net.InterfaceByName(name)
	return err == nil
}

func fileExists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func mustCreate(t testing.TB, c Client, name string) {
	t.Helper()
	if err := c.Create(t.Context(), name, 1420); err != nil {
		t.Fatal(err)
	}
	if !linkExists(name) || !fileExists(uapiPath(name)) {
		t.Fatalf("after create: link %v, socket %v", linkExists(name), fileExists(uapiPath(name)))
	}
}

func goneEventually(t testing.TB, c Client, name string) {
	t.Helper()
	eventually(t, name+" is gone", func() bool {
		names, err := c.List(t.Context())
		return err == nil && len(names) == 0 && !linkExists(name) && !fileExists(uapiPath(name))
	})
}
