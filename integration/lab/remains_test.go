package lab

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// inmates returns the processes of the lab and their network namespaces, seen from outside.
func inmates(t testing.TB, dir string) (pids []string, spaces map[string]bool) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, pidFile))
	if err != nil {
		t.Fatal(err)
	}
	supervisor, _, _ := strings.Cut(string(data), " ")
	prison, err := os.Readlink("/proc/" + supervisor + "/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	spaces = map[string]bool{}
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		if ns, err := os.Readlink(p + "/ns/pid"); err != nil || ns != prison {
			continue
		}
		pids = append(pids, p)
		if ns, err := os.Readlink(p + "/ns/net"); err == nil {
			spaces[ns] = true
		}
	}
	return pids, spaces
}

// gone waits until nothing of the lab is left: no process, no namespace, no mount, no directory.
func gone(t testing.TB, dir string, pids []string, spaces map[string]bool) {
	t.Helper()
	eventually(t, "the end of the lab's processes", func() bool {
		for _, p := range pids {
			if _, err := os.Readlink(p + "/ns/net"); err == nil {
				return false
			}
		}
		return true
	})
	// A namespace without a process needs an open file or a mount to live on.
	procs, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	files, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, f := range append(procs, files...) {
		if ns, err := os.Readlink(f); err == nil && spaces[ns] {
			t.Errorf("%s still holds %s", f, ns)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(mounts, []byte(dir)) {
		t.Error("a mount of the lab is left")
	}
	eventually(t, "the end of "+dir, func() bool {
		_, err := os.Lstat(dir)
		return errors.Is(err, os.ErrNotExist)
	})
}

// hold starts a lab in a process of its own.
func hold(t testing.TB, name, how string) *exec.Cmd {
	t.Helper()
	argv := helperArgv(t, "hold", name, how)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	up := make([]byte, 3)
	if _, err := io.ReadFull(out, up); err != nil {
		t.Fatalf("the lab did not come up: %v", err)
	}
	return cmd
}

func TestNothingIsLeft(t *testing.T) {
	needNamespaces(t)
	mountsBefore, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, how string
		end       func(t *testing.T, parent *os.Process, name, dir string)
	}{
		{"parent killed", "attached", func(t *testing.T, parent *os.Process, _, _ string) { _ = parent.Kill() }},
		{"parent interrupted", "attached", func(t *testing.T, parent *os.Process, _, _ string) { _ = parent.Signal(unix.SIGINT) }},
		{"down", "detach", func(t *testing.T, parent *os.Process, name, _ string) {
			_ = parent.Kill()
			_, _ = parent.Wait()
			l, err := Attach(name)
			if err != nil {
				t.Fatalf("the lab did not outlive its parent: %v", err)
			}
			if st, err := l.Status(t.Context()); err != nil || st.Name != name {
				t.Fatalf("status says %+v, %v", st, err)
			}
			if err := Down(name); err != nil {
				t.Error(err)
			}
		}},
		{"supervisor killed", "detach", func(t *testing.T, parent *os.Process, name, dir string) {
			kill(t, dir, unix.SIGKILL)
			eventually(t, "the end of the control socket", func() bool {
				_, err := Attach(name)
				return errors.Is(err, ErrNotRunning)
			})
			if err := Down(name); err != nil {
				t.Error(err)
			}
			_ = parent.Kill()
		}},
		{"supervisor hangs", "detach", func(t *testing.T, parent *os.Process, name, dir string) {
			kill(t, dir, unix.SIGSTOP)
			if err := Down(name); err != nil {
				t.Error(err)
			}
			_ = parent.Kill()
		}},
		{"restart over remains", "detach", func(t *testing.T, parent *os.Process, name, dir string) {
			kill(t, dir, unix.SIGKILL)
			_ = parent.Kill()
			_, _ = parent.Wait()
			var l *Lab
			eventually(t, "a new start", func() bool { // the kernel may still be ending the old one
				n, err := Load("two-sites")
				if err != nil {
					t.Fatal(err)
				}
				l, err = Up(t.Context(), n, Options{Name: name})
				return err == nil
			})
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			if err := l.Close(); err != nil {
				t.Errorf("closing twice: %v", err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			name := uniqueName(t)
			dir, err := dirFor(name)
			if err != nil {
				t.Fatal(err)
			}
			parent := hold(t, name, tt.how)
			defer func() {
				_ = parent.Process.Kill()
				_ = parent.Wait()
			}()
			pids, spaces := inmates(t, dir)
			if len(pids) != 6 || len(spaces) != 6 {
				t.Fatalf("the lab has %d processes in %d network namespaces, want 6: a supervisor and 5 nodes", len(pids), len(spaces))
			}
			tt.end(t, parent.Process, name, dir)
			gone(t, dir, pids, spaces)
			if err := Down(name); !errors.Is(err, ErrNotRunning) {
				t.Errorf("down again: %v, want ErrNotRunning", err)
			}
		})
	}
	mountsAfter, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(mountsBefore, mountsAfter) {
		t.Errorf("the mounts changed from\n%s\nto\n%s", mountsBefore, mountsAfter)
	}
}

// kill signals the supervisor of the lab.
func kill(t testing.TB, dir string, sig syscall.Signal) {
	t.Helper()
	fd, err := openSupervisor(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil {
		t.Fatal(err)
	}
}

func TestInterruptedBuild(t *testing.T) {
	needNamespaces(t)
	n, err := Load("nats")
	if err != nil {
		t.Fatal(err)
	}
	name := uniqueName(t)
	dir, err := dirFor(name)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		// As soon as the supervisor has begun.
		for ctx.Err() == nil {
			if _, err := os.Stat(filepath.Join(dir, hostsFile)); err == nil {
				cancel()
			}
		}
	}()
	if l, err := Up(ctx, n, Options{Name: name}); err == nil {
		t.Log("the build was faster than the interrupt")
		_ = l.Close()
	} else if !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	cancel()
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", dir, err)
	}
}
