package stun

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// A conn is one UDP socket of one address family that knows to which local
// address each packet came, and can answer from there.
type conn struct {
	*net.UDPConn
	six bool
}

// listen binds addr. A mark of zero leaves packets unmarked.
func listen(addr netip.AddrPort, mark uint32) (conn, error) {
	six := addr.Addr().Is6()
	network := "udp4"
	if six {
		network = "udp6" // the net package makes it IPv6 only
	}
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		if ctlErr := raw.Control(func(fd uintptr) { err = prepare(int(fd), six, mark) }); ctlErr != nil {
			return ctlErr
		}
		return err
	}}
	pc, err := lc.ListenPacket(context.Background(), network, addr.String())
	if err != nil {
		return conn{}, err
	}
	return conn{pc.(*net.UDPConn), six}, nil
}

func prepare(fd int, six bool, mark uint32) error {
	if mark != 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark)); errors.Is(err, unix.EPERM) {
			return ErrPermission
		} else if err != nil {
			return fmt.Errorf("set mark %#x: %w", mark, err)
		}
	}
	if six {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
}

// read waits for a packet and gives its sender and the local address that it
// was sent to.
func (c conn) read(buf []byte) (n int, from netip.AddrPort, via netip.Addr, err error) {
	var oob [128]byte
	n, oobn, _, from, err := c.ReadMsgUDPAddrPort(buf, oob[:])
	if err != nil {
		return 0, netip.AddrPort{}, netip.Addr{}, err
	}
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	var dst net.IP
	if c.six {
		var cm ipv6.ControlMessage
		if cm.Parse(oob[:oobn]) == nil {
			dst = cm.Dst
		}
	} else {
		var cm ipv4.ControlMessage
		if cm.Parse(oob[:oobn]) == nil {
			dst = cm.Dst
		}
	}
	via, _ = netip.AddrFromSlice(dst)
	return n, from, via.Unmap(), nil
}

// write sends b, from the local address via unless it is invalid, and with another
// time to live than the kernel's unless ttl is zero.
func (c conn) write(b []byte, to netip.AddrPort, via netip.Addr, ttl int) error {
	var oob []byte
	if via.IsValid() {
		if c.six {
			oob = (&ipv6.ControlMessage{Src: via.AsSlice()}).Marshal()
		} else {
			oob = (&ipv4.ControlMessage{Src: via.AsSlice()}).Marshal()
		}
	}
	if ttl > 0 {
		oob = append(oob, hops(c.six, ttl)...)
	}
	_, _, err := c.WriteMsgUDPAddrPort(b, oob, to)
	return err
}

// hops is the control message that sets one packet's time to live (ip(7) IP_TTL,
// ipv6(7) IPV6_HOPLIMIT).
func hops(six bool, ttl int) []byte {
	b := make([]byte, unix.CmsgSpace(4))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = unix.IPPROTO_IP, unix.IP_TTL
	if six {
		h.Level, h.Type = unix.IPPROTO_IPV6, unix.IPV6_HOPLIMIT
	}
	h.SetLen(unix.CmsgLen(4))
	binary.NativeEndian.PutUint32(b[unix.CmsgLen(0):], uint32(ttl))
	return b
}
