package probe

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"guywire/mesh"
)

// A Reason says what an error tells about a link.
type Reason uint8

const (
	// Other: an error that says nothing known about the link.
	Other Reason = iota
	// NoKey: WireGuard has no peer, or no handshake, for the address.
	NoKey
	// NoEndpoint: WireGuard does not know where the peer is.
	NoEndpoint
	// DeviceGone: the interface no longer exists.
	DeviceGone
	// DeviceDown: the interface is down, or has no usable address.
	DeviceDown
	// Unreachable: a router or the host says that the address is not reached.
	Unreachable
	// Refused: the neighbour's host answers, its agent does not listen. The
	// tunnel works.
	Refused
	// TooBig: the datagram exceeds the interface's MTU.
	TooBig
	// Busy: the local queue is full; nothing is said about the link.
	Busy

	reasonEnd
)

var reasonNames = [reasonEnd]string{
	"error", "no key", "no endpoint", "device gone", "device down", "unreachable", "refused by the neighbour's host", "too big", "local queue full",
}

// String gives the reason in words.
func (r Reason) String() string {
	if r < reasonEnd {
		return reasonNames[r]
	}
	return fmt.Sprintf("Reason(%d)", uint8(r))
}

// A Hint is bad news about a link, from the kernel: the error of a Send, or
// an ICMP error that came later.
type Hint struct {
	Ifindex int        // zero: the kernel does not say
	Addr    netip.Addr // of the neighbour, without zone
	Reason  Reason
	Err     error
}

// Error makes a Hint the error of Send.
func (h *Hint) Error() string {
	return fmt.Sprintf("send to %s on interface %d: %s: %v", h.Addr, h.Ifindex, h.Reason, h.Err)
}

// Unwrap gives the system's error.
func (h *Hint) Unwrap() error { return h.Err }

func classify(err error) Reason {
	errno, ok := errors.AsType[unix.Errno](err)
	if !ok {
		return Other
	}
	switch errno {
	case unix.ENOKEY:
		return NoKey
	case unix.EDESTADDRREQ:
		return NoEndpoint
	case unix.ENODEV, unix.ENXIO:
		return DeviceGone
	case unix.ENETDOWN, unix.EADDRNOTAVAIL, unix.EINVAL:
		// EINVAL: our source address is not on the interface, as when it has
		// been set down and lost its IPv6 addresses.
		return DeviceDown
	case unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EHOSTDOWN, unix.EACCES:
		return Unreachable
	case unix.ECONNREFUSED:
		return Refused
	case unix.EMSGSIZE:
		return TooBig
	case unix.ENOBUFS, unix.EAGAIN, unix.ENOMEM:
		return Busy
	}
	return Other
}

// fromNeighbour reports whether a datagram can be a neighbour's: from its
// link-local address and its own socket.
func fromNeighbour(from netip.AddrPort) bool {
	a := from.Addr()
	return a.Is6() && a.IsLinkLocalUnicast() && from.Port() == mesh.ProbePort
}
