package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func open(t *testing.T, path string) *Dir {
	t.Helper()
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func TestWriteRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lib", "state")
	d := open(t, path)
	sub, err := d.Sub("keys")
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	for _, dir := range []*Dir{d, sub} {
		if _, err := dir.Read("a", 10); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("missing: %v", err)
		}
		for _, content := range []string{"one", "", "1234567890"} {
			if err := dir.Write("a", []byte(content)); err != nil {
				t.Fatal(err)
			}
			if b, err := dir.Read("a", 10); err != nil || string(b) != content {
				t.Errorf("%q, %v", b, err)
			}
		}
		if _, err := dir.Read("a", 9); !errors.Is(err, ErrTooLarge) {
			t.Errorf("too large: %v", err)
		}
		if names, err := dir.List(); err != nil || !slices.Contains(names, "a") || slices.Contains(names, lockName) {
			t.Errorf("%v, %v", names, err)
		}
	}
	// B31: nothing is readable by anyone else.
	err = filepath.WalkDir(path, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", p, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	where, err := d.SetAside("a")
	if err != nil || where != filepath.Join(path, "a.bad") {
		t.Errorf("%s, %v", where, err)
	}
	if _, err := d.Read("a", 10); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
	for range 2 {
		if err := errors.Join(sub.Remove("a"), d.RemoveAll("keys")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
	if _, err := os.Stat(filepath.Join(path, "keys")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("not removed: %v", err)
	}
}

func TestHalfWrittenIsSwept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	d := open(t, path)
	if err := d.Write("a", []byte("whole")); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path, "a"+tempSuffix), []byte("ha"), 0o600); err != nil {
		t.Fatal(err)
	}
	d = open(t, path)
	if _, err := os.Lstat(filepath.Join(path, "a"+tempSuffix)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the half-written file is still there: %v", err)
	}
	if b, err := d.Read("a", 10); err != nil || string(b) != "whole" {
		t.Errorf("%q, %v", b, err)
	}
	// A write that fails leaves the old file and no other.
	if err := os.Mkdir(filepath.Join(path, "b"+tempSuffix), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path, "b"+tempSuffix, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Write("b", nil); err == nil {
		t.Error("written through a directory")
	}
}

func TestUnsafeIsRefused(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		prepare func(path string) error
		want    string
	}{
		"file mode": {func(p string) error { return os.Chmod(filepath.Join(p, "a"), 0o640) }, "chmod 600 "},
		"sub mode":  {func(p string) error { return os.Chmod(filepath.Join(p, "sub"), 0o755) }, "chmod 700 "},
		"dir mode":  {func(p string) error { return os.Chmod(p, 0o750) }, "chmod 700 "},
		"link out":  {func(p string) error { return relink(outside, filepath.Join(p, "a")) }, "not a regular file"},
		"link in":   {func(p string) error { return relink("b", filepath.Join(p, "a")) }, "not a regular file"},
		"fifo": {func(p string) error {
			return errors.Join(os.Remove(filepath.Join(p, "a")), syscall.Mkfifo(filepath.Join(p, "a"), 0o600))
		}, "not a regular file"},
		"directory": {func(p string) error {
			return errors.Join(os.Remove(filepath.Join(p, "a")), os.Mkdir(filepath.Join(p, "a"), 0o700))
		}, "not a regular file"},
		"sub is a link": {func(p string) error { return relink("/", filepath.Join(p, "sub")) }, "not a directory"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state")
			d := open(t, path)
			sub, err := d.Sub("sub")
			if err := errors.Join(err, d.Write("a", []byte("x")), d.Write("b", []byte("y")), sub.Close(), d.Close()); err != nil {
				t.Fatal(err)
			}
			if err := c.prepare(path); err != nil {
				t.Fatal(err)
			}
			err = use(path)
			if !errors.Is(err, ErrUnsafe) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("%v, want …%s…", err, c.want)
			}
		})
	}
}

func relink(target, path string) error {
	return errors.Join(os.Remove(path), os.Symlink(target, path))
}

func use(path string) error {
	d, err := Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	if _, err := d.Read("a", 100); err != nil {
		return err
	}
	sub, err := d.Sub("sub")
	if err != nil {
		return err
	}
	return sub.Close()
}

func TestForeignOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to give a file to another user")
	}
	path := filepath.Join(t.TempDir(), "state")
	d := open(t, path)
	if err := errors.Join(d.Write("a", nil), os.Chown(filepath.Join(path, "a"), 12345, 0)); err != nil {
		if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EPERM) {
			t.Skip("needs a user namespace with more than one user: ", err)
		}
		t.Fatal(err)
	}
	if _, err := d.Read("a", 10); !errors.Is(err, ErrUnsafe) || !strings.Contains(err.Error(), "belongs to uid 12345") || !strings.Contains(err.Error(), "chown 0 ") {
		t.Errorf("%v", err)
	}
}

func TestNothingOutsideIsReached(t *testing.T) {
	d := open(t, filepath.Join(t.TempDir(), "state"))
	for _, name := range []string{"../x", "/etc/passwd", "a/../../x"} {
		if err := d.Write(name, nil); err == nil {
			t.Errorf("wrote %s", name)
		}
		if _, err := d.Read(name, 1<<20); err == nil {
			t.Errorf("read %s", name)
		}
	}
}

// A second process is refused and told the pid of the first; the lock goes
// with the process however it ends.
func TestLock(t *testing.T) {
	path := os.Getenv("DISK_TEST_HOLD")
	if path != "" { // the other process
		d, err := Open(path)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println("locked")
		_, _ = os.Stdin.Read(make([]byte, 1))
		_ = d
		return
	}
	path = filepath.Join(t.TempDir(), "state")
	cmd := exec.Command(os.Args[0], "-test.run=^TestLock$")
	cmd.Env = append(os.Environ(), "DISK_TEST_HOLD="+path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, len("locked\n"))
	if _, err := out.Read(line); err != nil || string(line) != "locked\n" {
		t.Fatalf("%q, %v", line, err)
	}
	_, err = Open(path)
	if want := fmt.Sprintf("another meshd (pid %d) uses %s", cmd.Process.Pid, path); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want …%s…", err, want)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	d := open(t, path)
	if _, err := Open(path); !errors.Is(err, ErrInUse) {
		t.Errorf("locked twice in one process: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, path)
}

func TestKeep(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	d := open(t, path)
	if err := d.Keep("a", "b"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	for i, want := range []string{"0", "1", "2"} {
		if err := d.Write("a", []byte(want)); err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second time both names are of one file
			if err := d.Keep("a", "b"); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.Write("a", []byte("other")); err != nil {
			t.Fatal(err)
		}
		if b, err := d.Read("b", 10); err != nil || string(b) != want {
			t.Errorf("%d: %q %v", i, b, err)
		}
		entries, err := os.ReadDir(path)
		if err != nil || len(entries) != 3 { // the lock is one
			t.Errorf("%d: %v %v", i, entries, err)
		}
	}
}

func TestAppend(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	d := open(t, path)
	var want strings.Builder
	for _, part := range []string{"one\n", "", "two\n"} {
		want.WriteString(part)
		if err := d.Append("a", []byte(part)); err != nil {
			t.Fatal(err)
		}
		if b, err := d.Read("a", 100); err != nil || string(b) != want.String() {
			t.Errorf("%q, %v", b, err)
		}
	}
	if info, err := os.Stat(filepath.Join(path, "a")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	for _, spoilt := range []struct {
		name string
		do   func() error
	}{
		{"wide", func() error { return os.Chmod(filepath.Join(path, "a"), 0o644) }},
		{"linked", func() error { return relink(filepath.Join(path, "b"), filepath.Join(path, "a")) }},
	} {
		if err := spoilt.do(); err != nil {
			t.Fatal(err)
		}
		if err := d.Append("a", []byte("three")); !errors.Is(err, ErrUnsafe) && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", spoilt.name, err)
		}
		if _, err := os.Lstat(filepath.Join(path, "b")); err == nil {
			t.Error("a link was followed")
		}
	}
}
