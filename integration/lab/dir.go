package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The files of a lab's directory. The lock tells whether the lab lives: its supervisor holds it, and only it.
const (
	lockFile   = "lock"
	pidFile    = "supervisor.pid"
	launchFile = "launch.json"
	socketFile = "control.sock"
	logFile    = "supervisor.log"
	hostsFile  = "hosts"
	nodesDir   = "nodes"
	meshdFile  = "meshd.yaml"
)

func nodeDir(dir, node string) string { return filepath.Join(dir, nodesDir, node) }

// dirPrefix is what the directories of this user's labs begin with. XDG_RUNTIME_DIR is the place that the system gives a
// user for such things; it empties it at logout at the latest.
func dirPrefix() string {
	if run := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(run) {
		if fi, err := os.Stat(run); err == nil && fi.IsDir() {
			return filepath.Join(run, "guywire-lab-")
		}
	}
	return fmt.Sprintf("/tmp/guywire-lab-%d-", os.Getuid())
}

// List returns the names of this user's labs, those included that have died and wait for [Down].
func List() []string {
	var names []string
	dirs, _ := filepath.Glob(dirPrefix() + "*") // the pattern is well formed, which is all that can fail
	for _, dir := range dirs {
		names = append(names, strings.TrimPrefix(dir, dirPrefix()))
	}
	return names
}

// dirFor returns the directory of the lab, which need not exist.
func dirFor(name string) (string, error) {
	if len(name) > 40 || !nameRule.MatchString(name) {
		return "", fmt.Errorf("%q is not a name for a lab; use small letters, digits and single dashes", name)
	}
	dir := dirPrefix() + name
	if path := filepath.Join(dir, socketFile); len(path) > 107 {
		return "", fmt.Errorf("the socket %s has more than the 107 bytes that Unix sockets permit; set XDG_RUNTIME_DIR to a shorter path", path)
	}
	return dir, nil
}

// makeDir makes the lab's directory and takes its lock. A directory that a dead lab left is cleared first.
func makeDir(name, dir string) (*os.File, error) {
	for range 3 {
		err := os.Mkdir(dir, 0o700)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		lock, err := takeLock(dir)
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lab %s is %w; end it by `meshlab down --name %s`, or choose another --name", name, ErrRunning, name)
		}
		if err != nil {
			return nil, err
		}
		// Another may have removed the directory between the two steps; then the lock is of a file that nobody sees.
		if held, err := lock.Stat(); err == nil {
			if seen, err := os.Stat(filepath.Join(dir, lockFile)); err == nil && os.SameFile(held, seen) {
				return lock, clearDir(dir)
			}
		}
		_ = lock.Close()
	}
	return nil, fmt.Errorf("%s is made and removed by others all the time; choose another --name", dir)
}

// takeLock takes the lab's lock without waiting; unix.EWOULDBLOCK means that the lab lives.
func takeLock(dir string) (*os.File, error) {
	fi, err := os.Lstat(dir)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return nil, err
	}
	if !fi.IsDir() || fi.Mode().Perm() != 0o700 || int(st.Uid) != os.Geteuid() {
		return nil, fmt.Errorf("%s is not a directory of ours alone; remove it, or choose another --name", dir)
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return lock, nil
}

// clearDir removes everything but the lock.
func clearDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == lockFile {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// removeDir removes the directory, the lock last. Processes that are just being killed may still write: it tries again.
func removeDir(dir string) error {
	var err error
	for range 50 {
		if err = clearDir(dir); err == nil || errors.Is(err, fs.ErrNotExist) {
			if err = os.RemoveAll(dir); err == nil {
				return nil
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	return err
}

// writePID notes the supervisor, with its start time so that a later process of the same number is told apart.
func writePID(dir string, pid int) error {
	start, err := startTime(pid)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, pidFile), fmt.Appendf(nil, "%d %d\n", pid, start), 0o600)
}

// openSupervisor returns a descriptor of the supervisor's process, which stays its own for ever, or ErrNotRunning.
func openSupervisor(dir string) (int, error) {
	data, err := os.ReadFile(filepath.Join(dir, pidFile))
	if err != nil {
		return -1, fmt.Errorf("%w: %w", ErrNotRunning, err)
	}
	var pid int
	var start uint64
	if _, err := fmt.Sscan(string(data), &pid, &start); err != nil {
		return -1, fmt.Errorf("%w: %s says %q", ErrNotRunning, pidFile, data)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1, fmt.Errorf("%w: %w", ErrNotRunning, err)
	}
	// Compared behind the open: the number cannot change hands any more.
	if now, err := startTime(pid); err != nil || now != start {
		_ = unix.Close(fd)
		return -1, ErrNotRunning
	}
	return fd, nil
}

// startTime returns when the process started, in clock ticks since boot (field 22 of proc(5) stat).
func startTime(pid int) (uint64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The second field is the command in parentheses, which may itself hold spaces and parentheses.
	_, rest, _ := strings.Cut(string(data[max(strings.LastIndexByte(string(data), ')'), 0):]), " ")
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return 0, fmt.Errorf("process %d has a strange stat", pid)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}
