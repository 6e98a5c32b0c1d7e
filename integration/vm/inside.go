package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Lines on the second serial port that are not what a test prints. Tests do
// not begin lines with a control character of this kind.
const (
	mark     = "\x02"
	greeting = mark + "up"
	begins   = mark + "begin " // name
	ends     = mark + "end "   // name, exit status, seconds
	notes    = mark + "note "  // a sentence
	finished = mark + "finished"
)

const (
	suiteFile   = "/suite.json"
	moduleOrder = "/modules/order"
	runnerName  = "suite" // how this program is called that runs the suite
	testPort    = "/dev/ttyS1"
)

// boot is process 1: it starts the suite, buries the orphans of tests, and
// switches the machine off.
func boot() error {
	defer func() {
		unix.Sync()
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}()
	for _, m := range []struct{ kind, at, options string }{
		{"devtmpfs", "/dev", ""},
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"devpts", "/dev/pts", "ptmxmode=666"},
		{"tmpfs", "/dev/shm", ""},
		{"tmpfs", "/run", "mode=755"},
		{"tmpfs", "/tmp", "mode=1777"},
		{"cgroup2", "/sys/fs/cgroup", ""},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, m.options); err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.kind, m.at, err)
		}
	}
	port, err := openPort()
	if err != nil {
		return err
	}
	runner, err := os.StartProcess("/proc/self/exe", []string{runnerName}, &os.ProcAttr{
		Dir: "/", Files: []*os.File{nil, port, port},
		Env: []string{"PATH=/programs:/bin:/sbin:/usr/bin:/usr/sbin", "HOME=/root", "TMPDIR=/tmp", "USER=root", "TERM=dumb"},
	})
	if err != nil {
		return err
	}
	for {
		pid, err := unix.Wait4(-1, nil, 0, nil)
		if pid == runner.Pid || err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// openPort opens the second serial port, and lets it pass bytes as they are.
func openPort() (*os.File, error) {
	port, err := os.OpenFile(testPort, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	settings, err := unix.IoctlGetTermios(int(port.Fd()), unix.TCGETS)
	if err != nil {
		return nil, err
	}
	settings.Oflag &^= unix.OPOST
	settings.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG
	settings.Cflag = settings.Cflag&^unix.CBAUD | unix.B115200
	return port, unix.IoctlSetTermios(int(port.Fd()), unix.TCSETS, settings)
}

// runSuite loads the modules and runs the parts one after the other.
func runSuite() error {
	fmt.Println(greeting)
	defer fmt.Println(finished)
	order, err := os.ReadFile(moduleOrder)
	if err != nil {
		return err
	}
	for file := range strings.FieldsSeq(string(order)) {
		if err := insert(file); err != nil {
			fmt.Printf("%smodule %s: %v\n", notes, filepath.Base(file), err)
		}
	}
	if err := os.Chmod("/dev/net/tun", 0o666); err != nil { // as udev does
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	data, err := os.ReadFile(suiteFile)
	if err != nil {
		return err
	}
	var parts []part
	if err := json.Unmarshal(data, &parts); err != nil {
		return err
	}
	for _, p := range parts {
		p.run()
	}
	return nil
}

// insert gives a module to the kernel.
func insert(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// run runs a part with its output on the port, and says how it ended.
func (p part) run() {
	fmt.Println(begins + p.Name)
	start := time.Now()
	cmd := exec.Command(p.Argv[0], p.Argv[1:]...)
	cmd.Dir, cmd.Env = p.Dir, append(os.Environ(), p.Env...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr // as they are: nobody waits for orphans that hold them
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err := cmd.Start()
	if err == nil {
		limit := time.AfterFunc(p.Limit, func() {
			fmt.Printf("\n%s%s took longer than %s and is killed\n", notes, p.Name, p.Limit)
			_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		})
		err = cmd.Wait()
		limit.Stop()
	}
	code := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = max(exit.ExitCode(), 1)
	} else if err != nil {
		fmt.Println(err)
		code = 1
	}
	fmt.Printf("\n%s%s %d %.3f\n", ends, p.Name, code, time.Since(start).Seconds())
}

// standIn is the go command inside: `go build -o DIR/ PACKAGES` puts programs
// there that were built outside.
func standIn(args []string) error {
	at := slices.Index(args, "-o")
	if len(args) == 0 || args[0] != "build" || at < 0 || at+1 >= len(args) || !strings.HasSuffix(args[at+1], "/") {
		return fmt.Errorf("there is no Go in this machine, and what was built outside answers only `go build -o DIR/ PACKAGES`, not %q", args)
	}
	dir := args[at+1]
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, pkg := range args[at+2:] {
		if err := copyFile(filepath.Join(dir, path.Base(pkg)), filepath.Join("/programs", path.Base(pkg))); err != nil {
			return err
		}
	}
	return nil
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s was not built for this machine", path.Base(from))
	}
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
