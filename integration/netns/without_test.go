package netns

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// holdCommand keeps a port from others until a signal.
func holdCommand() *cobra.Command {
	return &cobra.Command{Use: "hold tcp|udp ADDR", Args: cobra.ExactArgs(2), RunE: func(c *cobra.Command, args []string) error {
		var err error
		var taken interface{ Close() error }
		if args[0] == "tcp" {
			taken, err = net.Listen("tcp", args[1])
		} else {
			taken, err = net.ListenPacket("udp", args[1])
		}
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintln(c.OutOrStdout(), "held")
		<-c.Context().Done()
		return taken.Close()
	}}
}

// killCommand kills the data plane of this network namespace.
func killCommand() *cobra.Command {
	return &cobra.Command{Use: "kill WORD", Args: cobra.ExactArgs(1), RunE: func(_ *cobra.Command, args []string) error {
		found, err := programs()
		if err != nil {
			return err
		}
		for pid, line := range found {
			if strings.Contains(line, " "+args[0]+" ") {
				return unix.Kill(pid, unix.SIGKILL)
			}
		}
		return fmt.Errorf("none of %v is %s", found, args[0])
	}}
}

// withoutCommand becomes another program that lacks something.
func withoutCommand() *cobra.Command {
	return &cobra.Command{
		Use: "without net-admin|tun COMMAND...", Args: cobra.MinimumNArgs(2), DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			runtime.LockOSThread() // to its end: the exec
			var err error
			switch args[0] {
			case "net-admin":
				err = dropNetAdmin()
			case "tun":
				err = hideTun()
			default:
				err = errors.New("only net-admin and tun can be missing")
			}
			if err != nil {
				return err
			}
			path, err := exec.LookPath(args[1])
			if err != nil {
				return err
			}
			return syscall.Exec(path, args[1:], os.Environ())
		},
	}
}

// dropNetAdmin gives the capability up for good: with it out of the bounding
// set no exec brings it back.
func dropNetAdmin() error {
	return unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_NET_ADMIN, 0, 0, 0)
}

// hideTun covers the directory of the device, for this process alone.
func hideTun() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", "/dev/net", "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("cover /dev/net: %w", err)
	}
	return nil
}
