package fib

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// answerSeconds bounds the wait for the kernel's answer. It answers within
// the system call; only a lost message makes us wait.
const answerSeconds = 5

// dumpTries bounds how often a dump is repeated that changes interrupted.
const dumpTries = 8

// loopback is the index of the loopback device in every namespace.
const loopback = 1

// A conn is one rtnetlink socket; requests on it are serialised.
type conn struct {
	sockets map[int]*nl.SocketHandle
	port    uint32 // by which notifications of our own changes are known
}

func dial() (*conn, error) {
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink socket: %w", err)
	}
	wait := &unix.Timeval{Sec: answerSeconds}
	port, err := s.GetPid()
	if err = errors.Join(err, s.SetSendTimeout(wait), s.SetReceiveTimeout(wait)); err != nil {
		s.Close()
		return nil, fmt.Errorf("open rtnetlink socket: %w", err)
	}
	// Both are conveniences that old kernels lack: errors in words, and
	// dumps that the kernel filters (we filter once more).
	_ = s.SetExtAck(true)
	_ = unix.SetsockoptInt(s.GetFd(), unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	return &conn{sockets: map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}, port: port}, nil
}

func (c *conn) close() { c.sockets[unix.NETLINK_ROUTE].Close() }

// change sends one request and waits for its acknowledgement.
func (c *conn) change(kind, flags int, parts ...nl.NetlinkRequestData) error {
	_, err := c.request(kind, flags|unix.NLM_F_ACK, 0, parts...)
	return err
}

// dump gives the messages of a dump, all of one consistent moment.
func (c *conn) dump(kind int, answer uint16, parts ...nl.NetlinkRequestData) ([][]byte, error) {
	var msgs [][]byte
	var err error
	for range dumpTries {
		msgs, err = c.request(kind, unix.NLM_F_DUMP, answer, parts...)
		if !errors.Is(err, nl.ErrDumpInterrupted) {
			break
		}
	}
	return msgs, err
}

func (c *conn) request(kind, flags int, answer uint16, parts ...nl.NetlinkRequestData) ([][]byte, error) {
	req := nl.NewNetlinkRequest(kind, flags)
	req.Sockets = c.sockets
	for _, p := range parts {
		req.AddData(p)
	}
	return req.Execute(unix.NETLINK_ROUTE, answer)
}

// ifindex gives the index of a device.
func (c *conn) ifindex(name string) (int, error) {
	index, _, err := c.device(name)
	return index, err
}

// device gives the index of a device, and whether it can carry packets.
func (c *conn) device(name string) (index int, up bool, err error) {
	msgs, err := c.request(unix.RTM_GETLINK, 0, 0,
		raw(make([]byte, unix.SizeofIfInfomsg)), nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	if err != nil {
		return 0, false, fmt.Errorf("device %s: %w", name, err)
	}
	if len(msgs) != 1 || len(msgs[0]) < unix.SizeofIfInfomsg {
		return 0, false, fmt.Errorf("device %s: %w", name, errShort)
	}
	return int(int32(binary.NativeEndian.Uint32(msgs[0][4:]))), isUp(msgs[0]), nil
}

// isUp reads from an RTM_NEWLINK message whether the device can carry packets.
func isUp(m []byte) bool {
	const up = unix.IFF_UP | unix.IFF_LOWER_UP
	return binary.NativeEndian.Uint32(m[8:])&up == up
}

// devices gives the names of all devices by index, and which can carry
// packets.
func (c *conn) devices() (names map[int]string, up map[string]bool, err error) {
	msgs, err := c.dump(unix.RTM_GETLINK, unix.RTM_NEWLINK, raw(make([]byte, unix.SizeofIfInfomsg)))
	if err != nil {
		return nil, nil, fmt.Errorf("list devices: %w", err)
	}
	names, up = map[int]string{}, map[string]bool{}
	for _, m := range msgs {
		if len(m) < unix.SizeofIfInfomsg {
			return nil, nil, fmt.Errorf("list devices: %w", errShort)
		}
		attrs, err := parseAttrs(m[unix.SizeofIfInfomsg:])
		if err != nil {
			return nil, nil, fmt.Errorf("list devices: %w", err)
		}
		name := nl.BytesToString(attrs[unix.IFLA_IFNAME])
		names[int(int32(binary.NativeEndian.Uint32(m[4:])))] = name
		up[name] = isUp(m)
	}
	return names, up, nil
}

var errShort = errors.New("short netlink message")

// raw is a fixed header as request data.
type raw []byte

func (r raw) Len() int          { return len(r) }
func (r raw) Serialize() []byte { return r }

func attr32(kind int, v uint32) *nl.RtAttr { return nl.NewRtAttr(kind, nl.Uint32Attr(v)) }

// attrTypeMask cuts the flags off an attribute's type (NLA_TYPE_MASK).
const attrTypeMask = 0x3fff

// parseAttrs splits a list of attributes. Of attributes that repeat, the last
// counts.
func parseAttrs(b []byte) (map[uint16][]byte, error) {
	attrs := map[uint16][]byte{}
	for len(b) >= unix.SizeofRtAttr {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofRtAttr || n > len(b) {
			return nil, errShort
		}
		attrs[binary.NativeEndian.Uint16(b[2:])&attrTypeMask] = b[unix.SizeofRtAttr:n]
		b = b[min(len(b), (n+unix.RTA_ALIGNTO-1)&^(unix.RTA_ALIGNTO-1)):]
	}
	return attrs, nil
}

// uint32Of gives the attribute's value, or 0 if it is missing or malformed.
func uint32Of(b []byte) uint32 {
	if len(b) != 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

// addrOf gives the attribute's address; invalid if it is missing or malformed.
func addrOf(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}

// familyOf gives the address family of a.
func familyOf(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// gone turns "there is none" into success.
func gone(err error) error {
	for _, missing := range []error{unix.ENOENT, unix.ESRCH, unix.ENODEV, unix.EADDRNOTAVAIL} {
		if errors.Is(err, missing) {
			return nil
		}
	}
	return err
}

// unsupported reports whether the kernel does not know the request at all.
func unsupported(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EPFNOSUPPORT)
}
