package api

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// GroupName is the group whose members may read.
const GroupName = "guywire"

// A Right is what a peer may do. Each includes those below it.
type Right uint8

// Rights.
const (
	NoRight Right = iota
	Member        // to be told the version: any node of the mesh
	Read
	Change
)

// String gives the right in lower case.
func (r Right) String() string { return [...]string{"none", "member", "read", "change"}[r] }

// An Access is what somebody may do. For those who call from elsewhere it is
// asked at each request, so that it ends with the right and not with the
// connection.
type Access struct {
	Who   string // for the log and for refusals
	Right Right
	Until time.Time // when the right ends; zero: no end is known
	// Refused says why somebody who is known has no right; nil, with NoRight:
	// nobody proved to be anyone.
	Refused *Error

	remote bool
}

// A Peer is the process at the other end of a connection, as the kernel knows
// it from the moment it connected.
type Peer struct {
	PID      int32
	UID, GID uint32
	Groups   []uint32 // supplementary
}

// A policy turns credentials into rights.
type policy struct {
	self     uint32 // effective uid of the daemon
	overflow uint32 // what the kernel reports for uids outside our user namespace
	group    uint32 // gid of GroupName
	hasGroup bool
}

// newPolicy asks the system for what a policy needs.
func newPolicy() policy {
	p := policy{self: uint32(os.Geteuid()), overflow: 65534}
	if b, err := os.ReadFile("/proc/sys/kernel/overflowuid"); err == nil {
		if n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 32); err == nil {
			p.overflow = uint32(n)
		}
	}
	if g, err := user.LookupGroup(GroupName); err == nil {
		if n, err := strconv.ParseUint(g.Gid, 10, 32); err == nil {
			p.group, p.hasGroup = uint32(n), true
		}
	}
	return p
}

// right decides. Everyone from outside our user namespace looks like the
// overflow uid, so that uid is never taken for the daemon's own.
func (p policy) right(peer Peer) Right {
	switch {
	case peer.UID == 0, peer.UID == p.self && peer.UID != p.overflow:
		return Change
	case p.hasGroup && (peer.GID == p.group || slices.Contains(peer.Groups, p.group)):
		return Read
	default:
		return NoRight
	}
}

// peerOf asks the kernel who is at the other end.
func peerOf(c *net.UnixConn) (Peer, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var peer Peer
	var failed error
	err = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			failed = fmt.Errorf("read peer credentials: %w", err)
			return
		}
		peer = Peer{PID: cred.Pid, UID: cred.Uid, GID: cred.Gid}
		peer.Groups, failed = peerGroups(fd)
	})
	if err != nil {
		return Peer{}, err
	}
	return peer, failed
}

// peerGroups reads SO_PEERGROUPS (Linux 4.13), for which x/sys/unix has no
// function. Reading /proc/PID/status instead would race with a reused pid.
func peerGroups(fd uintptr) ([]uint32, error) {
	groups := make([]uint32, 64)
	for {
		size := uint32(len(groups) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return groups[:size/4], nil
		case errno == unix.ERANGE && int(size/4) > len(groups): // size says how much there is
			groups = make([]uint32, size/4)
		default:
			return nil, fmt.Errorf("read peer groups: %w", errno)
		}
	}
}

// access turns the credentials of a local process into what it may do.
func (p policy) access(peer Peer) Access {
	return Access{Who: fmt.Sprintf("User id %d", peer.UID), Right: p.right(peer)}
}

type accessKey struct{}

// withAccess attaches to the context of a connection how to ask what its other
// end may do.
func withAccess(ctx context.Context, ask func() Access) context.Context {
	return context.WithValue(ctx, accessKey{}, ask)
}

// accessOf asks what withAccess attached; without it, no right.
func accessOf(ctx context.Context) Access {
	ask, ok := ctx.Value(accessKey{}).(func() Access)
	if !ok {
		return Access{Who: "nobody"}
	}
	return ask()
}
