package peers

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"guywire/integration/lab/world"
)

// A sealed program keeps its files in places that were compiled into it, as a user of its own. It gets those places in a
// node, where nobody outside sees them.
type sealed struct {
	User string // who owns the files; the program itself starts as root
	Make string // directory for its sockets, seen by the whole node
	Hide string // directory that is empty at first and the program's alone
	Copy string // file that it finds in Make
}

// sealedVerb is the verb below world.InsideVerb.
const sealedVerb = "sealed"

func (s sealed) argv(exe string, command ...string) []string {
	return append([]string{exe, world.InsideVerb, sealedVerb, "--user", s.User, "--make", s.Make, "--hide", s.Hide, "--copy", s.Copy, "--"}, command...)
}

// InsideCommand returns what the package needs inside nodes.
func InsideCommand() *cobra.Command {
	var s sealed
	c := &cobra.Command{Use: sealedVerb, Args: cobra.MinimumNArgs(1), RunE: func(_ *cobra.Command, argv []string) error { return s.exec(argv) }}
	f := c.Flags()
	f.StringVar(&s.User, "user", "", "owner of the files")
	f.StringVar(&s.Make, "make", "", "directory to make")
	f.StringVar(&s.Hide, "hide", "", "directory to hide under an empty one")
	f.StringVar(&s.Copy, "copy", "", "file to copy into the first")
	return c
}

// exec becomes the program.
func (s sealed) exec(argv []string) error {
	owner, err := user.Lookup(s.User)
	if err != nil {
		return fmt.Errorf("find the user of %s: %w", argv[0], err)
	}
	uid, err1 := strconv.Atoi(owner.Uid)
	gid, err2 := strconv.Atoi(owner.Gid)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	data, err := os.ReadFile(s.Copy)
	if err != nil {
		return err
	}
	file := filepath.Join(s.Make, filepath.Base(s.Copy))
	if err := errors.Join(os.MkdirAll(s.Make, 0o755), os.Chown(s.Make, uid, gid), os.WriteFile(file, data, 0o644), os.Chown(file, uid, gid)); err != nil {
		return fmt.Errorf("make %s: %w", s.Make, err)
	}
	runtime.LockOSThread() // the thread that leaves the others' mounts is the one that becomes the program
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("leave the node's mounts: %w", err)
	}
	if err := unix.Mount("tmpfs", s.Hide, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"); err != nil {
		return fmt.Errorf("hide %s: %w", s.Hide, err)
	}
	return unix.Exec(argv[0], argv, os.Environ())
}
