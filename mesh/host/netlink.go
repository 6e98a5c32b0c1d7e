package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"guywire/mesh"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// answerSeconds bounds the wait for the kernel's answer.
const answerSeconds = 5

// dumpTries bounds how often a dump is repeated that changes interrupted.
const dumpTries = 8

const (
	rtaNhID     = 30 // RTA_NH_ID
	rtaVia      = 18 // RTA_VIA: a gateway of the other family
	sizeofNhmsg = 8  // struct nhmsg
	sizeofLeg   = 8  // struct nexthop_grp
)

// A conn is one rtnetlink socket.
type conn struct{ sockets map[int]*nl.SocketHandle }

func dial() (*conn, error) {
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink socket: %w", err)
	}
	wait := &unix.Timeval{Sec: answerSeconds}
	if err := errors.Join(s.SetSendTimeout(wait), s.SetReceiveTimeout(wait)); err != nil {
		s.Close()
		return nil, fmt.Errorf("open rtnetlink socket: %w", err)
	}
	// Lets the kernel filter dumps by table; old ones cannot, so we do too.
	_ = unix.SetsockoptInt(s.GetFd(), unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	return &conn{map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}}, nil
}

func (c *conn) close() { c.sockets[unix.NETLINK_ROUTE].Close() }

// get asks and gives the answers; head is how long each answer's header is.
func (c *conn) get(kind, flags, head int, request []byte) ([][]byte, error) {
	var msgs [][]byte
	var err error
	for range dumpTries {
		req := nl.NewNetlinkRequest(kind, flags)
		req.Sockets = c.sockets
		req.AddRawData(request)
		if msgs, err = req.Execute(unix.NETLINK_ROUTE, 0); !errors.Is(err, nl.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	for _, m := range msgs {
		if len(m) < head {
			return nil, errMalformed
		}
	}
	return msgs, nil
}

// attributes are the values of a message by kind.
type attributes map[uint16][]byte

// attrTypeMask cuts the flags off an attribute's type (NLA_TYPE_MASK).
const attrTypeMask = 0x3fff

// parseAttrs splits a list of attributes. Of attributes that repeat, the last
// counts.
func parseAttrs(b []byte) (attributes, error) {
	attrs := attributes{}
	for len(b) >= unix.SizeofRtAttr {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofRtAttr || n > len(b) {
			return nil, errMalformed
		}
		attrs[binary.NativeEndian.Uint16(b[2:])&attrTypeMask] = b[unix.SizeofRtAttr:n]
		b = b[min(len(b), (n+unix.RTA_ALIGNTO-1)&^(unix.RTA_ALIGNTO-1)):]
	}
	return attrs, nil
}

func number(attrs attributes, kind uint16) uint32 {
	if b := attrs[kind]; len(b) == 4 {
		return binary.NativeEndian.Uint32(b)
	}
	return 0
}

func address(attrs attributes, kind uint16) netip.Addr {
	a, _ := netip.AddrFromSlice(attrs[kind])
	return a
}

// links gives the interfaces that are not ours, by index.
func (c *conn) links() (map[int]*link, error) {
	msgs, err := c.get(unix.RTM_GETLINK, unix.NLM_F_DUMP, unix.SizeofIfInfomsg, make([]byte, unix.SizeofIfInfomsg))
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	out := map[int]*link{}
	for _, m := range msgs {
		attrs, err := parseAttrs(m[unix.SizeofIfInfomsg:])
		if err != nil {
			return nil, fmt.Errorf("list interfaces: %w", err)
		}
		flags := binary.NativeEndian.Uint32(m[8:])
		l := &link{
			name: nl.BytesToString(attrs[unix.IFLA_IFNAME]), mtu: int(number(attrs, unix.IFLA_MTU)),
			up: flags&unix.IFF_UP != 0, carrier: flags&unix.IFF_LOWER_UP != 0, loopback: flags&unix.IFF_LOOPBACK != 0,
		}
		if !strings.HasPrefix(l.name, mesh.InterfacePrefix) {
			out[int(binary.NativeEndian.Uint32(m[4:]))] = l
		}
	}
	return out, nil
}

// addrs adds to the links their usable global addresses, sorted.
func (c *conn) addrs(links map[int]*link) error {
	msgs, err := c.get(unix.RTM_GETADDR, unix.NLM_F_DUMP, unix.SizeofIfAddrmsg, make([]byte, unix.SizeofIfAddrmsg))
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	const unusable = unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED | unix.IFA_F_DEPRECATED
	for _, m := range msgs {
		attrs, err := parseAttrs(m[unix.SizeofIfAddrmsg:])
		if err != nil {
			return fmt.Errorf("list addresses: %w", err)
		}
		a := address(attrs, unix.IFA_LOCAL)
		if !a.IsValid() {
			a = address(attrs, unix.IFA_ADDRESS)
		}
		l := links[int(binary.NativeEndian.Uint32(m[4:]))]
		if l == nil || !a.IsGlobalUnicast() || number(attrs, unix.IFA_FLAGS)&unusable != 0 {
			continue
		}
		l.addrs = append(l.addrs, a)
	}
	for _, l := range links {
		slices.SortFunc(l.addrs, netip.Addr.Compare)
	}
	return nil
}

// routes gives the legs of the main table's unicast routes that are either
// default routes or on link, without ours.
func (c *conn) routes() ([]route, error) {
	var out []route
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		head := &nl.RtMsg{RtMsg: unix.RtMsg{Family: family, Table: unix.RT_TABLE_MAIN}}
		msgs, err := c.get(unix.RTM_GETROUTE, unix.NLM_F_DUMP, unix.SizeofRtMsg, head.Serialize())
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) {
			continue // no such family, or no such table yet
		}
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, m := range msgs {
			legs, err := c.legs(m)
			if err != nil {
				return nil, fmt.Errorf("list routes: %w", err)
			}
			out = append(out, legs...)
		}
	}
	return out, nil
}

// legs reads one route message; nothing if it does not concern us.
func (c *conn) legs(m []byte) ([]route, error) {
	head := nl.DeserializeRtMsg(m)
	if head.Type != unix.RTN_UNICAST || head.Protocol == mesh.RouteProtocol || head.Flags&unix.RTM_F_CLONED != 0 {
		return nil, nil
	}
	attrs, err := parseAttrs(m[unix.SizeofRtMsg:])
	if err != nil {
		return nil, err
	}
	if table := number(attrs, unix.RTA_TABLE); table != 0 && table != unix.RT_TABLE_MAIN || table == 0 && head.Table != unix.RT_TABLE_MAIN {
		return nil, nil
	}
	r := route{metric: number(attrs, unix.RTA_PRIORITY)}
	dst := address(attrs, unix.RTA_DST)
	switch {
	case dst.IsValid():
	case head.Family == unix.AF_INET:
		dst = netip.IPv4Unspecified()
	default:
		dst = netip.IPv6Unspecified()
	}
	r.prefix = netip.PrefixFrom(dst, int(head.Dst_len))
	if id := number(attrs, rtaNhID); id != 0 && attrs[unix.RTA_OIF] == nil {
		// With nexthop_compat_mode 0 the kernel tells only the id.
		if r.prefix.Bits() != 0 {
			return nil, nil
		}
		return c.object(r, id, true)
	}
	if _, multi := attrs[unix.RTA_MULTIPATH]; multi {
		return multipath(r, attrs[unix.RTA_MULTIPATH])
	}
	return leg(r, int(number(attrs, unix.RTA_OIF)), attrs), nil
}

// leg completes a route; an IPv4 gateway behind IPv6 is nothing that an
// uplink can use.
func leg(r route, index int, attrs attributes) []route {
	if _, via := attrs[rtaVia]; via {
		return nil
	}
	r.index, r.gateway = index, address(attrs, unix.RTA_GATEWAY)
	if r.prefix.Bits() != 0 && r.gateway.IsValid() {
		return nil
	}
	return []route{r}
}

// multipath reads legs that stand in the route.
func multipath(r route, b []byte) ([]route, error) {
	var out []route
	for len(b) >= unix.SizeofRtNexthop {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofRtNexthop || n > len(b) {
			return nil, errMalformed
		}
		attrs, err := parseAttrs(b[unix.SizeofRtNexthop:n])
		if err != nil {
			return nil, err
		}
		out = append(out, leg(r, int(binary.NativeEndian.Uint32(b[4:])), attrs)...)
		b = b[min(len(b), (n+unix.RTA_ALIGNTO-1)&^(unix.RTA_ALIGNTO-1)):]
	}
	return out, nil
}

// object reads the legs of a next-hop object of others. One that has gone in
// between has none.
func (c *conn) object(r route, id uint32, group bool) ([]route, error) {
	request := binary.NativeEndian.AppendUint32(append(make([]byte, sizeofNhmsg), 8, 0, unix.NHA_ID, 0), id)
	msgs, err := c.get(unix.RTM_GETNEXTHOP, 0, sizeofNhmsg, request)
	if errors.Is(err, unix.ENOENT) || err == nil && len(msgs) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	attrs, err := parseAttrs(msgs[0][sizeofNhmsg:])
	if err != nil {
		return nil, err
	}
	members := attrs[unix.NHA_GROUP]
	if len(members) == 0 {
		r.index, r.gateway = int(number(attrs, unix.NHA_OIF)), address(attrs, unix.NHA_GATEWAY)
		return []route{r}, nil
	}
	var out []route
	for ; group && len(members) >= sizeofLeg; members = members[sizeofLeg:] {
		legs, err := c.object(r, binary.NativeEndian.Uint32(members), false)
		if err != nil {
			return nil, err
		}
		out = append(out, legs...)
	}
	return out, nil
}
