package peers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

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
	// Await is a socket that has to be there before the program starts; empty: none. FRR's daemons ask for zebra's once
	// in ten seconds.
	Await string
}

// sealedVerb is the verb below world.InsideVerb.
const sealedVerb = "sealed"

func (s sealed) argv(exe string, command ...string) []string {
	argv := []string{exe, world.InsideVerb, sealedVerb, "--user", s.User, "--make", s.Make, "--hide", s.Hide, "--copy", s.Copy}
	if s.Await != "" {
		argv = append(argv, "--await", s.Await)
	}
	return append(append(argv, "--"), command...)
}

// InsideCommand returns what the package needs inside nodes.
func InsideCommand() *cobra.Command {
	var s sealed
	c := &cobra.Command{Use: sealedVerb, Args: cobra.MinimumNArgs(1), RunE: func(c *cobra.Command, argv []string) error { return s.exec(c.Context(), argv) }}
	f := c.Flags()
	f.StringVar(&s.User, "user", "", "owner of the files")
	f.StringVar(&s.Make, "make", "", "directory to make")
	f.StringVar(&s.Hide, "hide", "", "directory to hide under an empty one")
	f.StringVar(&s.Copy, "copy", "", "file to copy into the first")
	f.StringVar(&s.Await, "await", "", "socket to wait for")
	return c
}

// exec becomes the program.
func (s sealed) exec(ctx context.Context, argv []string) error {
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
	if err := s.await(ctx); err != nil {
		return err
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

// awaitLimit is how long the socket may take to be there.
const awaitLimit = 20 * time.Second

func (s sealed) await(ctx context.Context) error {
	if s.Await == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, awaitLimit)
	defer cancel()
	for {
		conn, err := net.Dial("unix", s.Await)
		if err == nil {
			return conn.Close()
		}
		if world.Pause(ctx, 20*time.Millisecond) != nil {
			return fmt.Errorf("wait for %s: %w", s.Await, err)
		}
	}
}
