package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"guywire/mesh"
)

const (
	// MaxPayload is the largest datagram received; larger ones are dropped.
	MaxPayload = 32 << 10
	// receiveBuffer lets the kernel keep what comes while we are not running.
	receiveBuffer = 1 << 20
	// priority puts our datagrams before bulk traffic in the local queue
	// (TC_PRIO_INTERACTIVE, the highest that needs no privilege).
	priority = 6
	// class is the traffic class: DSCP CS6, network control (RFC 4594).
	class = 0xc0
	// latest is the longest that a kernel time stamp is believed to lie back.
	// Beyond it the wall clock was set meanwhile.
	latest = time.Second
)

// A Conn is the socket. Send may be called from any goroutine; one goroutine
// calls Receive.
type Conn struct {
	udp    *net.UDPConn
	raw    syscall.RawConn
	source netip.Addr
}

// Open binds UDP port mesh.ProbePort on all IPv6 addresses of the network
// namespace. source is the node's own link-local address, which every link
// has and all datagrams leave from; invalid: the kernel chooses.
func Open(source netip.Addr) (*Conn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		if ctlErr := raw.Control(func(fd uintptr) { err = prepare(int(fd)) }); ctlErr != nil {
			return ctlErr
		}
		return err
	}}
	pc, err := lc.ListenPacket(context.Background(), "udp6", fmt.Sprintf("[::]:%d", mesh.ProbePort))
	if err != nil {
		return nil, fmt.Errorf("open probe socket: %w", err)
	}
	c := &Conn{udp: pc.(*net.UDPConn), source: source}
	_ = c.udp.SetReadBuffer(receiveBuffer) // the system's limit is good enough
	if c.raw, err = c.udp.SyscallConn(); err != nil {
		return nil, errors.Join(fmt.Errorf("open probe socket: %w", err), c.udp.Close())
	}
	return c, nil
}

func prepare(fd int) error {
	for _, o := range []struct {
		name              string
		level, opt, value int
	}{
		{"IPV6_RECVPKTINFO", unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1},
		{"IPV6_RECVERR", unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1},
		{"IPV6_TCLASS", unix.IPPROTO_IPV6, unix.IPV6_TCLASS, class},
		{"IPV6_UNICAST_HOPS", unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, 1},
		// A datagram larger than the device's MTU is refused, not cut up: the
		// size of a padded probe is what it tries out (RFC 8899). PROBE goes by
		// the device alone, not by what somebody's ICMP claims of the path.
		{"IPV6_MTU_DISCOVER", unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE},
		{"SO_TIMESTAMPNS", unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1},
		{"SO_PRIORITY", unix.SOL_SOCKET, unix.SO_PRIORITY, priority},
	} {
		if err := unix.SetsockoptInt(fd, o.level, o.opt, o.value); err != nil {
			return fmt.Errorf("set %s: %w", o.name, err)
		}
	}
	return nil
}

// Close ends Receive and Send.
func (c *Conn) Close() error { return c.udp.Close() }

// Send sends payload to a neighbour's link-local address on one interface, in
// one packet. It does not block for long. A failure is a *Hint, with TooBig
// for a payload that does not fit the interface, or net.ErrClosed.
func (c *Conn) Send(ifindex int, to netip.Addr, payload []byte) error {
	var space [64]byte
	oob := appendPktinfo(space[:0], c.source, ifindex)
	dst := netip.AddrPortFrom(to.WithZone(""), mesh.ProbePort)
	_, _, err := c.udp.WriteMsgUDPAddrPort(payload, oob, dst)
	if errno, ok := errors.AsType[unix.Errno](err); ok && pending(errno) {
		// Perhaps the pending error of an earlier datagram, on any link, which
		// the attempt has cleared and Receive takes from the error queue.
		_, _, err = c.udp.WriteMsgUDPAddrPort(payload, oob, dst)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, net.ErrClosed):
		return net.ErrClosed
	case errors.Is(err, unix.EMSGSIZE):
		// The kernel says so in the error queue, too, where nothing wakes
		// Receive for it: left there, it would fill the receive buffer.
		c.drain(func(Hint) {})
	}
	return &Hint{Ifindex: ifindex, Addr: to.WithZone(""), Reason: classify(err), Err: cause(err)}
}

// pending reports errors that ICMP leaves on a socket.
func pending(errno unix.Errno) bool {
	switch errno {
	case unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EACCES, unix.EPROTO:
		return true
	}
	return false
}

func cause(err error) error {
	if errno, ok := errors.AsType[unix.Errno](err); ok {
		return errno
	}
	return err
}

// Receive hands each datagram of a neighbour to handle, and each ICMP error to
// hint, until ctx ends or the Conn is closed; it returns nil then. The payload
// is valid during the call only; at has a monotonic reading, and is when the
// kernel got the datagram. Both functions run on the caller's goroutine.
func (c *Conn) Receive(ctx context.Context, handle func(ifindex int, from netip.Addr, payload []byte, at time.Time), hint func(Hint)) error {
	_ = c.udp.SetReadDeadline(time.Time{}) // left by an earlier Receive
	stop := context.AfterFunc(ctx, func() { _ = c.udp.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf, oob := make([]byte, MaxPayload+1), make([]byte, 256)
	for {
		n, oobn, flags, from, err := c.udp.ReadMsgUDPAddrPort(buf, oob)
		switch {
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			// A pending error. What it is about stands in the error queue.
			if errs := c.drain(hint); errs == 0 {
				if _, ok := errors.AsType[unix.Errno](err); !ok {
					return fmt.Errorf("receive probes: %w", err)
				}
			}
			continue
		case n > MaxPayload || flags&unix.MSG_TRUNC != 0 || !fromNeighbour(from):
			continue
		}
		a := parseArrival(oob[:oobn])
		if a.ifindex == 0 {
			continue
		}
		handle(a.ifindex, from.Addr().WithZone(""), buf[:n], arrived(time.Now(), a.stamp))
	}
}

// arrived converts a kernel time stamp, which is wall clock, into a time with
// a monotonic reading.
func arrived(now, stamp time.Time) time.Time {
	// Round strips the monotonic reading: this is a difference of wall clocks.
	age := now.Round(0).Sub(stamp)
	if stamp.IsZero() || age < 0 || age > latest {
		return now
	}
	return now.Add(-age)
}

// drain empties the error queue and counts what it found.
func (c *Conn) drain(hint func(Hint)) int {
	found := 0
	var oob [512]byte
	var payload [64]byte
	_ = c.raw.Control(func(fd uintptr) {
		for range 64 {
			_, oobn, _, from, err := unix.Recvmsg(int(fd), payload[:], oob[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
			if err != nil {
				return
			}
			found++
			to, ok := from.(*unix.SockaddrInet6)
			errno, a := parseError(oob[:oobn])
			if !ok || errno == 0 {
				continue
			}
			if a.ifindex == 0 {
				a.ifindex = int(to.ZoneId)
			}
			hint(Hint{Ifindex: a.ifindex, Addr: netip.AddrFrom16(to.Addr), Reason: classify(errno), Err: errno})
		}
	})
	return found
}
