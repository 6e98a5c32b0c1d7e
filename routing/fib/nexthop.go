package fib

import (
	"encoding/binary"
	"fmt"

	"guywire/mesh"
	"guywire/mesh/kernel"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	sizeofNhmsg      = 8 // struct nhmsg: family, scope, protocol, reserved, flags
	sizeofNexthopGrp = 8 // struct nexthop_grp: id, weight - 1, reserved
)

func nhmsg(family uint8) raw {
	return raw{0: family, 2: mesh.RouteProtocol, sizeofNhmsg - 1: 0}
}

// putNextHop adds or replaces a next hop. A single one is of the IPv6 family
// without gateway, which serves routes of both families.
func (f *FIB) putNextHop(n kernel.NextHop) error {
	const flags = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	id := attr32(unix.NHA_ID, n.ID)
	if n.IsGroup() {
		return f.write.change(unix.RTM_NEWNEXTHOP, flags, nhmsg(unix.AF_UNSPEC), id,
			nl.NewRtAttr(unix.NHA_GROUP, groupData(n.Members)))
	}
	index, err := f.write.ifindex(n.Device)
	if err != nil {
		return err
	}
	family := uint8(unix.AF_INET6)
	if f.noIPv6 {
		family = unix.AF_INET
	}
	return f.write.change(unix.RTM_NEWNEXTHOP, flags, nhmsg(family), id, attr32(unix.NHA_OIF, uint32(index)))
}

func groupData(members []kernel.Member) []byte {
	b := make([]byte, 0, sizeofNexthopGrp*len(members))
	for _, m := range members {
		b = binary.NativeEndian.AppendUint32(b, m.ID)
		b = append(b, m.Weight-1, 0, 0, 0)
	}
	return b
}

func (c *conn) deleteNextHop(id uint32) error {
	return gone(c.change(unix.RTM_DELNEXTHOP, 0, make(raw, sizeofNhmsg), attr32(unix.NHA_ID, id)))
}

// A foundHop is a next hop as the kernel tells it.
type foundHop struct {
	kernel.NextHop
	index int // of the device
}

// nextHops gives the next hops that are ours.
func (c *conn) nextHops() ([]foundHop, error) {
	msgs, err := c.dump(unix.RTM_GETNEXTHOP, unix.RTM_NEWNEXTHOP, make(raw, sizeofNhmsg))
	if err != nil {
		return nil, fmt.Errorf("list next hops: %w", err)
	}
	var out []foundHop
	for _, m := range msgs {
		n, ours, err := parseNextHop(m)
		if err != nil {
			return nil, fmt.Errorf("list next hops: %w", err)
		}
		if ours {
			out = append(out, n)
		}
	}
	return out, nil
}

func parseNextHop(m []byte) (n foundHop, ours bool, err error) {
	if len(m) < sizeofNhmsg {
		return n, false, errShort
	}
	attrs, err := parseAttrs(m[sizeofNhmsg:])
	if err != nil {
		return n, false, err
	}
	n.ID = uint32Of(attrs[unix.NHA_ID])
	n.index = int(uint32Of(attrs[unix.NHA_OIF]))
	for b := attrs[unix.NHA_GROUP]; len(b) >= sizeofNexthopGrp; b = b[sizeofNexthopGrp:] {
		n.Members = append(n.Members, kernel.Member{ID: binary.NativeEndian.Uint32(b), Weight: b[4] + 1})
	}
	return n, m[2] == mesh.RouteProtocol && mesh.NextHopBase <= n.ID && n.ID < mesh.NextHopEnd, nil
}

// nextHops gives our next hops with the names of their devices.
func (f *FIB) nextHops() ([]kernel.NextHop, error) {
	found, err := f.read.nextHops()
	if err != nil {
		return nil, err
	}
	names, _, err := f.read.devices()
	if err != nil {
		return nil, err
	}
	out := make([]kernel.NextHop, 0, len(found))
	for _, n := range found {
		if len(n.Members) == 0 {
			n.Device = names[n.index]
		}
		// A device that went in between took its next hop along.
		if n.Device != "" || len(n.Members) > 0 {
			out = append(out, n.NextHop)
		}
	}
	return out, nil
}
