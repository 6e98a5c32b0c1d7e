package truth

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// maxSniffed bounds what is kept of the packets on a router.
const maxSniffed = 64 << 20

// sniffCommand writes out all packets that the node sends or receives, as they
// are on its wires, until it is stopped.
func sniffCommand() *cobra.Command {
	return &cobra.Command{Use: "sniff", RunE: func(cmd *cobra.Command, _ []string) (err error) {
		const all = unix.ETH_P_ALL>>8 | unix.ETH_P_ALL&0xff<<8 // in network order
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
		if err != nil {
			return fmt.Errorf("open packet socket: %w", err)
		}
		defer func() { err = errors.Join(err, unix.Close(fd)) }()
		tick := unix.Timeval{Usec: 200_000} // how late it notices that it is stopped
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tick); err != nil {
			return fmt.Errorf("set a time limit: %w", err)
		}
		packet := make([]byte, 1<<16)
		for written := 0; written < maxSniffed; {
			n, err := unix.Read(fd, packet)
			switch {
			case cmd.Context().Err() != nil:
				return nil
			case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
				continue
			case err != nil:
				return fmt.Errorf("read packet: %w", err)
			}
			if _, err := cmd.OutOrStdout().Write(packet[:n]); err != nil {
				return err
			}
			written += n
		}
		<-cmd.Context().Done()
		return nil
	}}
}
