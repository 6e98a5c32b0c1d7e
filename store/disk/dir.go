package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

const (
	lockName   = "lock"
	tempSuffix = ".tmp" // of a file that is being written
	badSuffix  = ".bad" // of a file that was set aside
)

// A Dir is an open directory of the state directory. Different names may be
// used by different goroutines at the same time; one name by one at a time.
type Dir struct {
	root *os.Root
	path string   // for errors
	lock *os.File // of the state directory itself; nil in a Sub
}

// Open opens the state directory and locks it until Close, or until the
// process ends in whatever way. A missing directory is made. What a crash
// left half written is removed. Errors wrap ErrInUse or ErrUnsafe.
func Open(path string) (*Dir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open state directory: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make state directory: %w; run meshd as a user that may write there, or set another state directory", err)
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make state directory: %w; run meshd as a user that may write there, or set another state directory", err)
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("open state directory: %w", err)
	}
	d := &Dir{root: root, path: path}
	if err := d.checkSelf(); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	if err := d.takeLock(); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	if err := d.sweep(); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// Sub opens a directory below d, and makes it when it is missing. Close it
// before d; it is covered by the lock of d.
func (d *Dir) Sub(name string) (*Dir, error) {
	err := d.root.Mkdir(name, 0o700)
	switch {
	case err == nil:
		if err := d.sync(); err != nil {
			return nil, err
		}
	case !errors.Is(err, fs.ErrExist):
		return nil, fmt.Errorf("make directory %s: %w", d.Path(name), err)
	}
	if info, err := d.root.Lstat(name); err != nil {
		return nil, fmt.Errorf("open directory %s: %w", d.Path(name), err)
	} else if !info.IsDir() {
		return nil, fmt.Errorf("%w: %s is not a directory; move it away", ErrUnsafe, d.Path(name))
	}
	root, err := d.root.OpenRoot(name)
	if err != nil {
		return nil, fmt.Errorf("open directory %s: %w", d.Path(name), err)
	}
	sub := &Dir{root: root, path: d.Path(name)}
	if err := sub.checkSelf(); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	if err := sub.sweep(); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return sub, nil
}

// Path names a file of the directory for people.
func (d *Dir) Path(name string) string { return filepath.Join(d.path, name) }

// Close releases the directory and its lock.
func (d *Dir) Close() error {
	err := d.root.Close()
	if d.lock != nil {
		err = errors.Join(err, d.lock.Close())
	}
	return err
}

// List gives the names of the files in the directory, sorted, without those
// of the package itself.
func (d *Dir) List() ([]string, error) {
	entries, err := fs.ReadDir(d.root.FS(), ".")
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", d.path, err)
	}
	var names []string
	for _, e := range entries {
		if n := e.Name(); n != lockName && !strings.HasSuffix(n, badSuffix) && !strings.HasSuffix(n, tempSuffix) {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	return names, nil
}

// Read reads a whole file of at most limit bytes. A missing one is
// fs.ErrNotExist; one that others can read is ErrUnsafe.
func (d *Dir) Read(name string, limit int64) ([]byte, error) {
	f, err := d.open(name, os.O_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", d.Path(name), err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", d.Path(name), err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("read %s: %w: it has more than %d bytes", d.Path(name), ErrTooLarge, limit)
	}
	return b, nil
}

// open opens a private regular file.
func (d *Dir) open(name string, flags int) (*os.File, error) {
	// os.Root follows links that stay inside; compare what was named with
	// what was opened to follow none. Not blocking is for a planted FIFO.
	named, err := d.root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !named.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: it is not a regular file; move it away", ErrUnsafe)
	}
	f, err := d.root.OpenFile(name, flags|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !os.SameFile(named, info) {
		err = fmt.Errorf("%w: it was exchanged while it was opened", ErrUnsafe)
	}
	if err == nil {
		err = checkPrivate(info, d.Path(name), "600")
	}
	if err != nil {
		_ = f.Close() // nothing was written
		return nil, err
	}
	return f, nil
}

// Append adds data to the end of a file, which is made when it is missing. When
// it returns nil the data survives a power cut; otherwise, or after a crash,
// the file may end with a part of it.
func (d *Dir) Append(name string, data []byte) error {
	f, err := d.open(name, os.O_WRONLY|os.O_APPEND)
	if errors.Is(err, fs.ErrNotExist) {
		return d.Write(name, data)
	}
	if err != nil {
		return fmt.Errorf("append to %s: %w", d.Path(name), err)
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("append to %s: %w", d.Path(name), err)
	}
	return nil
}

// Write puts data in place of the file, or leaves the old one untouched. When
// it returns nil the new content survives a power cut.
func (d *Dir) Write(name string, data []byte) error {
	temp := name + tempSuffix
	if err := d.writeTemp(temp, data); err != nil {
		_ = d.root.Remove(temp)
		return fmt.Errorf("write %s: %w", d.Path(name), err)
	}
	if err := d.root.Rename(temp, name); err != nil {
		_ = d.root.Remove(temp)
		return fmt.Errorf("write %s: %w", d.Path(name), err)
	}
	return d.sync()
}

func (d *Dir) writeTemp(temp string, data []byte) error {
	if err := d.root.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := d.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// Keep gives the content that a file has now a second name, under which it
// stays when Write replaces the file; what had that name before is gone. A
// missing file is fs.ErrNotExist. It is durable as soon as a later Write is.
func (d *Dir) Keep(name, as string) error {
	temp := as + tempSuffix
	_ = d.root.Remove(temp) // what a crash left
	err := d.root.Link(name, temp)
	if err == nil {
		err = d.root.Rename(temp, as)
		_ = d.root.Remove(temp) // it is there still when both names were of one file
	}
	if err != nil {
		return fmt.Errorf("keep %s as %s: %w", d.Path(name), as, err)
	}
	return nil
}

// Remove removes a file for good; a missing one is no error.
func (d *Dir) Remove(name string) error {
	if err := d.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", d.Path(name), err)
	}
	return d.sync()
}

// RemoveAll removes a directory with all that is in it; a missing one is no error.
func (d *Dir) RemoveAll(name string) error {
	if err := d.root.RemoveAll(name); err != nil {
		return fmt.Errorf("remove %s: %w", d.Path(name), err)
	}
	return d.sync()
}

// SetAside renames a file that cannot be used, for a person to look at, and
// gives its new path. An earlier one set aside is replaced, so they do not pile up.
func (d *Dir) SetAside(name string) (string, error) {
	if err := d.root.Rename(name, name+badSuffix); err != nil {
		return "", fmt.Errorf("set %s aside: %w", d.Path(name), err)
	}
	return d.Path(name + badSuffix), d.sync()
}

// sweep removes what a crash left half written.
func (d *Dir) sweep() error {
	entries, err := fs.ReadDir(d.root.FS(), ".")
	if err != nil {
		return fmt.Errorf("list %s: %w", d.path, err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), tempSuffix) && !e.IsDir() {
			if err := d.Remove(e.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}

// sync makes names durable: a rename is not on the disk before its directory is.
func (d *Dir) sync() error {
	f, err := d.root.Open(".")
	if err != nil {
		return fmt.Errorf("sync %s: %w", d.path, err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", d.path, err)
	}
	return nil
}

func (d *Dir) checkSelf() error {
	info, err := d.root.Stat(".")
	if err != nil {
		return fmt.Errorf("open %s: %w", d.path, err)
	}
	return checkPrivate(info, d.path, "700")
}

// checkPrivate refuses what others can use, with the command that repairs it.
func checkPrivate(info fs.FileInfo, path, mode string) error {
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%w: %s belongs to uid %d and meshd runs as uid %d; run: chown %d %s", ErrUnsafe, path, st.Uid, os.Geteuid(), os.Geteuid(), path)
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return fmt.Errorf("%w: %s can be used by others (mode %04o); run: chmod %s %s", ErrUnsafe, path, perm, mode, path)
	}
	return nil
}
