package fib

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"guywire/mesh"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ifaProto is IFA_PROTO: who made the address. Kernels before 5.18 ignore it.
const ifaProto = 11

func ifaddrmsg(p netip.Prefix) raw {
	b := make(raw, unix.SizeofIfAddrmsg)
	b[0], b[1] = familyOf(p.Addr()), byte(p.Bits())
	nl.NativeEndian().PutUint32(b[4:], loopback)
	return b
}

func (c *conn) addAddr(p netip.Prefix) error {
	head := ifaddrmsg(p)
	if p.Addr().Is6() {
		head[2] = unix.IFA_F_NODAD
	}
	a := p.Addr().AsSlice()
	err := c.change(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, head,
		nl.NewRtAttr(unix.IFA_LOCAL, a), nl.NewRtAttr(unix.IFA_ADDRESS, a),
		nl.NewRtAttr(ifaProto, []byte{mesh.RouteProtocol}))
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

func (c *conn) deleteAddr(p netip.Prefix) error {
	a := p.Addr().AsSlice()
	return gone(c.change(unix.RTM_DELADDR, 0, ifaddrmsg(p), nl.NewRtAttr(unix.IFA_LOCAL, a), nl.NewRtAttr(unix.IFA_ADDRESS, a)))
}

// addrs gives the loopback addresses that lie in the pools.
func (c *conn) addrs(pools []netip.Prefix) ([]netip.Prefix, error) {
	msgs, err := c.dump(unix.RTM_GETADDR, unix.RTM_NEWADDR, make(raw, unix.SizeofIfAddrmsg))
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var out []netip.Prefix
	for _, m := range msgs {
		if len(m) < unix.SizeofIfAddrmsg {
			return nil, fmt.Errorf("list addresses: %w", errShort)
		}
		if nl.NativeEndian().Uint32(m[4:]) != loopback {
			continue
		}
		attrs, err := parseAttrs(m[unix.SizeofIfAddrmsg:])
		if err != nil {
			return nil, fmt.Errorf("list addresses: %w", err)
		}
		local := attrs[unix.IFA_LOCAL]
		if local == nil {
			local = attrs[unix.IFA_ADDRESS]
		}
		a := addrOf(local)
		if slices.ContainsFunc(pools, func(pool netip.Prefix) bool { return pool.Contains(a) }) {
			out = append(out, netip.PrefixFrom(a, int(m[1])))
		}
	}
	return out, nil
}
