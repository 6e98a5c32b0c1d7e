package host

import (
	"context"
	"errors"
	"fmt"
	"os"

	"guywire/mesh"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Privileges reports whether this process may configure the network, by
// asking the kernel for something that only needs the right: to delete a
// route of ours that cannot be there. The error is or wraps ErrPrivilege if
// it may not.
func Privileges(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c, err := dial()
	if err != nil {
		return err
	}
	defer c.close()
	// A host route in one of our tables, to an address that nobody may route.
	request := (&nl.RtMsg{RtMsg: unix.RtMsg{
		Family: unix.AF_INET, Dst_len: 32, Table: mesh.RouteTable, Protocol: mesh.RouteProtocol, Type: unix.RTN_THROW, Scope: unix.RT_SCOPE_NOWHERE,
	}}).Serialize()
	request = append(request, 8, 0, unix.RTA_DST, 0, 0, 0, 0, 1)
	_, err = c.get(unix.RTM_DELROUTE, unix.NLM_F_ACK, 0, request)
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return ErrPrivilege
	case err == nil, errors.Is(err, unix.ESRCH), errors.Is(err, unix.ENOENT):
		return nil
	default:
		return fmt.Errorf("try the right to configure the network: %w", err)
	}
}

// HasTun reports whether TUN devices can be made, which userspace WireGuard
// needs.
func HasTun() bool {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	f.Close()
	return true
}
