package dataplane

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestCreateListDelete(t *testing.T) {
	c := spawn(t).Client
	ctx := t.Context()
	mustCreate(t, c, "gw-b")
	mustCreate(t, c, "gw-a")
	if names, err := c.List(ctx); err != nil || !slices.Equal(names, []string{"gw-a", "gw-b"}) {
		t.Fatalf("list: %v, %v", names, err)
	}
	if err := c.Create(ctx, "gw-a", 1420); !errors.Is(err, ErrExists) {
		t.Errorf("create again: %v", err)
	}
	if err := c.Delete(ctx, "gw-a"); err != nil {
		t.Fatal(err)
	}
	if linkExists("gw-a") || fileExists(uapiPath("gw-a")) {
		t.Error("delete returned before the device was gone")
	}
	if err := c.Delete(ctx, "gw-a"); !errors.Is(err, ErrNoDevice) {
		t.Errorf("delete again: %v", err)
	}
	if v, err := c.Version(ctx); err != nil || v != "test" {
		t.Errorf("version: %q, %v", v, err)
	}
	if err := c.Shutdown(ctx, false); !errors.Is(err, ErrBusy) {
		t.Errorf("shutdown with a device: %v", err)
	}
	if err := c.Shutdown(ctx, true); err != nil {
		t.Fatal(err)
	}
	if linkExists("gw-b") || fileExists(uapiPath("gw-b")) || fileExists(c.Socket) || fileExists(c.Socket+".lock") {
		t.Error("shutdown left something")
	}
	if err := c.Ensure(ctx); !errors.Is(err, ErrNotRunning) {
		t.Errorf("after shutdown: %v", err)
	}
}

func TestForeignLinkIsNotTaken(t *testing.T) {
	c := spawn(t).Client
	foreign := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "gw-foreign"}, Mode: netlink.TUNTAP_MODE_TUN}
	if err := netlink.LinkAdd(foreign); err != nil {
		t.Fatal(err)
	}
	for _, fd := range foreign.Fds {
		fd.Close()
	}
	t.Cleanup(func() { netlink.LinkDel(foreign) })
	if err := c.Create(t.Context(), "gw-foreign", 1420); !errors.Is(err, ErrExists) {
		t.Errorf("create: %v", err)
	}
	if fileExists(uapiPath("gw-foreign")) {
		t.Error("left a socket")
	}
}

func TestLinkDeletionEndsDevice(t *testing.T) {
	c := spawn(t).Client
	mustCreate(t, c, "gw-a")
	link, err := netlink.LinkByName("gw-a")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkDel(link); err != nil {
		t.Fatal(err)
	}
	// At once, without waiting for the first to be cleared away.
	mustCreate(t, c, "gw-a")
	if link, err = netlink.LinkByName("gw-a"); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkDel(link); err != nil {
		t.Fatal(err)
	}
	goneEventually(t, c, "gw-a")
}

func TestSocketRemovalEndsDevice(t *testing.T) {
	c := spawn(t).Client
	mustCreate(t, c, "gw-a")
	if err := os.Chmod(uapiPath("gw-a"), 0o660); err != nil { // no removal
		t.Fatal(err)
	}
	if err := os.Remove(uapiPath("gw-a")); err != nil {
		t.Fatal(err)
	}
	goneEventually(t, c, "gw-a")

	mustCreate(t, c, "gw-a")
	if err := os.RemoveAll(UAPIDir); err != nil {
		t.Fatal(err)
	}
	goneEventually(t, c, "gw-a")
	mustCreate(t, c, "gw-a")
	if err := os.Remove(uapiPath("gw-a")); err != nil {
		t.Fatal(err)
	}
	goneEventually(t, c, "gw-a")
}

func TestSignals(t *testing.T) {
	s := spawn(t)
	process := pid(t, s.Client)
	if sid, err := unix.Getsid(process); err != nil || sid != process {
		t.Errorf("session %d of process %d, %v", sid, process, err)
	}
	mustCreate(t, s.Client, "gw-a")
	signalTo(t, process, unix.SIGHUP)
	signalTo(t, process, unix.SIGPIPE)
	// Signals are handled in order of number before the process runs on: it
	// answers only if it has survived both.
	if err := s.Client.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	if in, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/0", process)); err != nil || in != os.DevNull {
		t.Errorf("standard input is %q, %v", in, err)
	}
	out, err1 := os.Readlink(fmt.Sprintf("/proc/%d/fd/1", process))
	errs, err2 := os.Readlink(fmt.Sprintf("/proc/%d/fd/2", process))
	if err1 != nil || err2 != nil || out != errs {
		t.Errorf("standard error %q is not standard output %q: %v, %v", errs, out, err1, err2)
	}
	signalTo(t, process, unix.SIGTERM)
	eventually(t, "SIGTERM cleans up", func() bool {
		return !linkExists("gw-a") && !fileExists(uapiPath("gw-a")) && !fileExists(s.Socket) && !fileExists(s.Socket+".lock")
	})
}

func TestKilledPredecessor(t *testing.T) {
	s := spawn(t)
	mustCreate(t, s.Client, "gw-a")
	live, err := listen(uapiPath("gw-live")) // another process's device
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(live.close)
	signalTo(t, pid(t, s.Client), unix.SIGKILL)
	eventually(t, "the link goes with the process", func() bool { return !linkExists("gw-a") })
	if !fileExists(uapiPath("gw-a")) || !fileExists(s.Socket) {
		t.Fatal("the test expects stale sockets")
	}
	if err := s.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	if fileExists(uapiPath("gw-a")) {
		t.Error("stale UAPI socket left")
	}
	if !live.present() {
		t.Error("removed the socket of a living process")
	}
	mustCreate(t, s.Client, "gw-a")
}

func TestSecondInstance(t *testing.T) {
	s := spawn(t)
	mustCreate(t, s.Client, "gw-a")
	err := Run(t.Context(), Config{Socket: s.Socket})
	if !errors.Is(err, ErrRunning) {
		t.Fatalf("second instance: %v", err)
	}
	if names, err := s.List(t.Context()); err != nil || len(names) != 1 {
		t.Errorf("the first was disturbed: %v, %v", names, err)
	}
}

func TestSpawnersAgree(t *testing.T) {
	s := spawn(t)
	for range 5 {
		if err := s.Shutdown(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if err := s.Ensure(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
}

func TestSpawnFailure(t *testing.T) {
	needDevices(t)
	if err := spawner(t, "run-broken").Ensure(t.Context()); err == nil || !strings.Contains(err.Error(), "broken on purpose") {
		t.Errorf("broken: %v", err)
	}
	if err := spawner(t, "run-mute").Ensure(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("mute: %v", err)
	}
	missing := spawner(t, "")
	missing.Exe = "/nonexistent/meshd"
	if err := missing.Ensure(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	// A process that neither serves nor ends.
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	silent := Spawner{Client: Client{"/run/silent.sock"}, Exe: "/bin/sleep", Args: []string{"2"}}
	if err := silent.Ensure(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("silent: %v", err)
	}
}

func TestSocketPermissions(t *testing.T) {
	s := spawn(t)
	mustCreate(t, s.Client, "gw-a")
	for _, path := range []string{s.Socket, uapiPath("gw-a")} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", path, info.Mode(), err)
		}
	}
	if os.Getuid() != 0 {
		t.Skip("needs a second uid to try as")
	}
	// Even with the file open to all, another uid gets no answer.
	try := func(path string) error {
		cmd := exec.Command("/proc/self/exe", "try-socket", path)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	if err := try(s.Socket); err == nil || !strings.Contains(err.Error(), "permission denied") {
		if uidMapped(65534) {
			t.Errorf("another uid could connect: %v", err)
		} else {
			t.Skip("needs a user namespace with a second uid")
		}
	}
	for _, path := range []string{s.Socket, uapiPath("gw-a")} {
		if err := os.Chmod(path, 0o666); err != nil {
			t.Fatal(err)
		}
		if dir := s.Socket[:strings.LastIndexByte(s.Socket, '/')]; os.Chmod(dir, 0o755) != nil {
			t.Fatal(dir)
		}
		if err := try(path); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func uidMapped(uid int) bool {
	f, err := os.Open("/proc/self/uid_map")
	if err != nil {
		return false
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var first, host, n int
		if _, err := fmt.Sscan(lines.Text(), &first, &host, &n); err == nil && uid >= first && uid-first < n {
			return true
		}
	}
	return false
}

func TestPortInUseFailsAtOnce(t *testing.T) {
	c := spawn(t).Client
	taken, err := net.ListenUDP("udp4", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	mustCreate(t, c, "gw-a")
	port := taken.LocalAddr().(*net.UDPAddr).Port
	if got := uapi(t, "gw-a", fmt.Sprintf("set=1\nlisten_port=%d", port)); got != fmt.Sprint(-int(unix.EADDRINUSE)) {
		t.Errorf("errno %s", got)
	}
	if got := uapi(t, "gw-a", "set=1\nlisten_port=51987"); got != "0" {
		t.Errorf("errno %s for a free port", got)
	}
}

func TestLinkDownClosesPort(t *testing.T) {
	c := spawn(t).Client
	mustCreate(t, c, "gw-a")
	link, err := netlink.LinkByName("gw-a")
	if err != nil {
		t.Fatal(err)
	}
	if got := uapi(t, "gw-a", "set=1\nlisten_port=51986"); got != "0" {
		t.Fatalf("errno %s", got)
	}
	// Trying to bind it would be in the way of the device doing so.
	free := func() bool {
		table, err := os.ReadFile("/proc/net/udp")
		if err != nil {
			t.Fatal(err)
		}
		return !strings.Contains(string(table), fmt.Sprintf(":%04X ", 51986))
	}
	if free() {
		t.Fatal("device does not listen before its link is up")
	}
	set := func(change func(netlink.Link) error) {
		t.Helper()
		if err := change(link); err != nil {
			t.Fatal(err)
		}
	}
	// An up that is over before the data plane looks is none, so try again.
	eventually(t, "the port closes with the link", func() bool {
		set(netlink.LinkSetUp)
		set(netlink.LinkSetDown)
		return free()
	})
	set(netlink.LinkSetUp)
	eventually(t, "the port opens with the link", func() bool { return !free() })
}

func TestStuckClientDoesNotHoldDelete(t *testing.T) {
	c := spawn(t).Client
	mustCreate(t, c, "gw-a")
	conn, err := net.Dial("unix", uapiPath("gw-a"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Fprint(conn, "set=1\n"); err != nil { // and no more: the configuration stays locked
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), uapiIdle/2)
	defer cancel()
	if err := c.Delete(ctx, "gw-a"); err != nil {
		t.Fatal(err)
	}
}

func TestNoLeak(t *testing.T) {
	needDevices(t)
	socket := spawner(t, "").Socket
	ctx, stop := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- Run(ctx, Config{Socket: socket}) }()
	c := Client{socket}
	eventually(t, "the data plane serves", func() bool { return c.Ensure(t.Context()) == nil })
	cycle := func(n int) {
		for range n {
			mustCreate(t, c, "gw-a")
			if err := c.Delete(t.Context(), "gw-a"); err != nil {
				t.Fatal(err)
			}
		}
	}
	cycle(3)
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	cycle(100)
	eventually(t, "all goroutines of 100 devices have ended", func() bool { return runtime.NumGoroutine() <= goroutines })
	eventually(t, "all descriptors of 100 devices are closed", func() bool { return openFiles(t) <= files })
	stop()
	if err := <-ran; err != nil {
		t.Error(err)
	}
}

func openFiles(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
