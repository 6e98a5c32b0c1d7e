// Package clock gives programs a wall clock that can be stepped while they run, one for each node of a lab: Linux has one
// for the whole machine. The programs are built from the same sources as always, against a package time of which one
// function is changed: Now adds what the lab says. The monotonic clock, and with it every timer, goes on as it is.
//
// Programs built so are for faults of the clock only; a program from elsewhere sees the machine's time.
package clock

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Env is the environment variable that names the file of a program's clock. It is read once, at the program's start.
const Env = "LAB_CLOCK"

// fileSize is that of the file: one number of seconds, in the machine's byte order, that programs have mapped.
const fileSize = 8

// Create makes the file of a clock that is right, or leaves the one that is there.
func Create(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, fileSize))
	return errors.Join(err, f.Close())
}

// Set steps a clock to offset from the machine's time, in whole seconds. Programs see it at once.
func Set(path string, offset time.Duration) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	// In place: a mapping is of the file, not of the name.
	_, err = f.WriteAt(binary.NativeEndian.AppendUint64(nil, uint64(int64(offset/time.Second))), 0)
	return errors.Join(err, f.Close())
}

// Get reads what Set wrote.
func Get(path string) (time.Duration, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	if len(b) != fileSize {
		return 0, fmt.Errorf("%s is not the file of a clock: it has %d bytes", path, len(b))
	}
	return time.Duration(int64(binary.NativeEndian.Uint64(b))) * time.Second, nil
}

// Followed reports whether the process has the clock mapped: it was built by [Build] and started with [Env].
func Followed(path string, pid int) (bool, error) {
	maps, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/maps")
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(maps)) {
		if strings.HasSuffix(strings.TrimSuffix(line, "\n"), " "+path) {
			return true, nil
		}
	}
	return false, nil
}

// Build builds programs, given by import path, into the directory dir, under their usual names and static. It runs `go
// build` in the directory of the calling process, which must be inside the module. Again, without changes, it takes no
// time: what go build made is in its cache.
func Build(ctx context.Context, dir string, packages ...string) error {
	work, err := os.MkdirTemp("", "lab-clock-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	overlay, err := writeOverlay(ctx, work)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	args := append([]string{"build", "-trimpath", "-overlay", overlay, "-o", dir + string(filepath.Separator)}, packages...)
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build with a clock of the lab: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// writeOverlay writes the changed files into work and gives the file that names them, for go build.
func writeOverlay(ctx context.Context, work string) (string, error) {
	dir, err := timeDir(ctx)
	if err != nil {
		return "", err
	}
	source, err := os.ReadFile(filepath.Join(dir, "time.go"))
	if err != nil {
		return "", err
	}
	if source, err = patch(source); err != nil {
		return "", err
	}
	replace := map[string]string{}
	for name, content := range map[string][]byte{"time.go": source, "lab_offset.go": []byte(offsetSource)} {
		replace[filepath.Join(dir, name)] = filepath.Join(work, name)
		if err := os.WriteFile(filepath.Join(work, name), content, 0o600); err != nil {
			return "", err
		}
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	path := filepath.Join(work, "overlay.json")
	return path, os.WriteFile(path, b, 0o600)
}

// timeDir is where the sources of package time are.
func timeDir(ctx context.Context) (string, error) {
	root, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return "", fmt.Errorf("find Go's own sources: %w; install Go, or start the lab without faults", err)
	}
	return filepath.Join(string(bytes.TrimSpace(root)), "src", "time"), nil
}

// The one place in package time where the wall clock is read for programs.
const (
	nowFunction = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	nowAddition = "\tsec += labOffset()\n"
)

// patch changes Now. It fails on a package time that is not the one it knows.
func patch(source []byte) ([]byte, error) {
	if n := bytes.Count(source, []byte(nowFunction)); n != 1 {
		return nil, fmt.Errorf("package time of this Go has %d functions Now that begin as expected, not 1; look at the constants beside this error and at time.go", n)
	}
	return bytes.Replace(source, []byte(nowFunction), []byte(nowFunction+nowAddition), 1), nil
}

// offsetSource is part of package time, so it imports only what that may.
const offsetSource = `package time

import (
	"sync/atomic"
	"syscall"
	"unsafe"
)

// labSeconds is in a file that is mapped; nil: there is no clock of a lab.
var labSeconds = func() *int64 {
	path, ok := syscall.Getenv("` + Env + `")
	if !ok {
		return nil
	}
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer syscall.Close(fd)
	var st syscall.Stat_t
	if syscall.Fstat(fd, &st) != nil || st.Size < 8 {
		return nil
	}
	b, err := syscall.Mmap(fd, 0, 8, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return nil
	}
	return (*int64)(unsafe.Pointer(&b[0]))
}()

func labOffset() int64 {
	if labSeconds == nil {
		return 0
	}
	return atomic.LoadInt64(labSeconds)
}
`
