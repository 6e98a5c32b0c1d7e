package fib

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"guywire/mesh"
	"guywire/mesh/kernel"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// defaultMetric6 is what the kernel makes of metric 0 in IPv6 (IP6_RT_PRIO_USER).
const defaultMetric6 = 1024

// rtaNhID is RTA_NH_ID: the next-hop object of a route.
const rtaNhID = 30

var routeTypes = map[kernel.RouteKind]uint8{
	kernel.Forward:     unix.RTN_UNICAST,
	kernel.Throw:       unix.RTN_THROW,
	kernel.Unreachable: unix.RTN_UNREACHABLE,
}

func rtmsg(r kernel.Route) *nl.RtMsg {
	m := nl.NewRtMsg()
	m.Family = familyOf(r.Prefix.Addr())
	m.Dst_len = uint8(r.Prefix.Bits())
	m.Table = unix.RT_TABLE_UNSPEC
	m.Protocol = mesh.RouteProtocol
	m.Type = routeTypes[r.Kind]
	return m
}

// routeKey gives the attributes that a route is known by.
func routeKey(r kernel.Route) []nl.NetlinkRequestData {
	metric := r.Metric
	if metric == 0 && r.Prefix.Addr().Is6() {
		metric = defaultMetric6
	}
	return []nl.NetlinkRequestData{
		nl.NewRtAttr(unix.RTA_DST, r.Prefix.Addr().AsSlice()),
		attr32(unix.RTA_TABLE, uint32(r.Table)),
		attr32(unix.RTA_PRIORITY, metric),
	}
}

// A leg is one next hop written into the route itself, for kernels without
// next-hop objects.
type leg struct {
	index  int
	weight uint8
}

// putRoute adds or replaces a route. With legs, they stand for r.NextHop.
func (c *conn) putRoute(r kernel.Route, legs []leg) error {
	head := rtmsg(r)
	parts := append([]nl.NetlinkRequestData{head}, routeKey(r)...)
	switch {
	case r.Kind != kernel.Forward:
	case legs != nil:
		head.Scope = unix.RT_SCOPE_LINK
		parts = append(parts, legData(head.Family, legs))
	case r.NextHop != 0:
		parts = append(parts, attr32(rtaNhID, r.NextHop))
	default:
		index, err := c.ifindex(r.Device)
		if err != nil {
			return err
		}
		parts = append(parts, attr32(unix.RTA_OIF, uint32(index)))
		if r.Gateway.IsValid() {
			// The gateway need not be on a connected prefix: clouds and DHCP
			// hand out such, and the uplink's own default route works with it.
			head.Flags |= unix.RTNH_F_ONLINK
			parts = append(parts, nl.NewRtAttr(unix.RTA_GATEWAY, r.Gateway.WithZone("").AsSlice()))
		} else {
			head.Scope = unix.RT_SCOPE_LINK
		}
	}
	if r.Source.IsValid() {
		parts = append(parts, nl.NewRtAttr(unix.RTA_PREFSRC, r.Source.AsSlice()))
	}
	if r.MTU != 0 {
		metrics := nl.NewRtAttr(unix.RTA_METRICS, nil)
		metrics.AddRtAttr(unix.RTAX_MTU, nl.Uint32Attr(uint32(r.MTU)))
		parts = append(parts, metrics)
	}
	return c.change(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, parts...)
}

// legData writes legs as a multipath attribute; IPv6 forms no multipath of
// legs without gateway, so there only the heaviest is used.
func legData(family uint8, legs []leg) nl.NetlinkRequestData {
	if family == unix.AF_INET6 || len(legs) == 1 {
		return attr32(unix.RTA_OIF, uint32(heaviest(legs).index))
	}
	var b []byte
	for _, l := range legs {
		b = binary.NativeEndian.AppendUint16(b, unix.SizeofRtNexthop)
		b = append(b, 0, l.weight-1)
		b = binary.NativeEndian.AppendUint32(b, uint32(l.index))
	}
	return nl.NewRtAttr(unix.RTA_MULTIPATH, b)
}

// deleteRoute deletes the route with r's key and kind, whatever it leads to.
func (c *conn) deleteRoute(r kernel.Route) error {
	head := rtmsg(r)
	head.Scope = unix.RT_SCOPE_NOWHERE
	return gone(c.change(unix.RTM_DELROUTE, 0, append([]nl.NetlinkRequestData{head}, routeKey(r)...)...))
}

// A foundRoute is a route as the kernel tells it.
type foundRoute struct {
	kernel.Route
	legs []leg
}

// routes gives the routes that are ours: by protocol, in our tables.
func (f *FIB) routes(c *conn) ([]foundRoute, error) {
	var out []foundRoute
	var devices map[int]string
	for _, family := range f.families() {
		head := &nl.RtMsg{RtMsg: unix.RtMsg{Family: family, Protocol: mesh.RouteProtocol}}
		msgs, err := c.dump(unix.RTM_GETROUTE, unix.RTM_NEWROUTE, head)
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, m := range msgs {
			r, ours, err := parseRoute(m)
			if err != nil {
				return nil, fmt.Errorf("list routes: %w", err)
			}
			if !ours {
				continue
			}
			if r.NextHop == 0 && len(r.legs) == 1 {
				if devices == nil {
					if devices, _, err = c.devices(); err != nil {
						return nil, err
					}
				}
				r.Device = devices[r.legs[0].index]
			}
			out = append(out, r)
		}
	}
	return out, nil
}

func ourTable(table int) bool {
	return table == mesh.RouteTable || mesh.UplinkTableBase < table && table <= mesh.UplinkTableBase+mesh.MaxUplinks
}

// parseRoute reads an RTM_NEWROUTE message, and whether the route is ours.
func parseRoute(m []byte) (r foundRoute, ours bool, err error) {
	if len(m) < unix.SizeofRtMsg {
		return r, false, errShort
	}
	head := nl.DeserializeRtMsg(m)
	attrs, err := parseAttrs(m[unix.SizeofRtMsg:])
	if err != nil {
		return r, false, err
	}
	r.Table = int(head.Table)
	if t := attrs[unix.RTA_TABLE]; t != nil {
		r.Table = int(uint32Of(t))
	}
	if head.Protocol != mesh.RouteProtocol || !ourTable(r.Table) || head.Flags&unix.RTM_F_CLONED != 0 {
		return r, false, nil
	}
	dst := addrOf(attrs[unix.RTA_DST])
	if attrs[unix.RTA_DST] == nil {
		dst = netip.IPv4Unspecified()
		if head.Family == unix.AF_INET6 {
			dst = netip.IPv6Unspecified()
		}
	}
	r.Prefix = netip.PrefixFrom(dst, int(head.Dst_len))
	r.Metric = uint32Of(attrs[unix.RTA_PRIORITY])
	if head.Family == unix.AF_INET6 && r.Metric == defaultMetric6 {
		r.Metric = 0
	}
	known := false
	for kind, t := range routeTypes {
		if t == head.Type {
			r.Kind, known = kind, true
		}
	}
	r.Source = addrOf(attrs[unix.RTA_PREFSRC])
	if metrics, err := parseAttrs(attrs[unix.RTA_METRICS]); err == nil {
		r.MTU = int(uint32Of(metrics[unix.RTAX_MTU]))
	}
	if r.Kind == kernel.Forward {
		r.NextHop = uint32Of(attrs[rtaNhID])
		if r.NextHop == 0 {
			r.Gateway = addrOf(attrs[unix.RTA_GATEWAY])
			r.legs, err = parseLegs(attrs)
		}
	}
	return r, known && r.Prefix.IsValid(), err
}

func parseLegs(attrs map[uint16][]byte) ([]leg, error) {
	if oif := attrs[unix.RTA_OIF]; oif != nil {
		return []leg{{int(uint32Of(oif)), 1}}, nil
	}
	var legs []leg
	for b := attrs[unix.RTA_MULTIPATH]; len(b) > 0; {
		if len(b) < unix.SizeofRtNexthop {
			return nil, errShort
		}
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofRtNexthop || n > len(b) {
			return nil, errShort
		}
		legs = append(legs, leg{int(int32(binary.NativeEndian.Uint32(b[4:]))), b[3] + 1})
		b = b[min(len(b), (n+unix.RTA_ALIGNTO-1)&^(unix.RTA_ALIGNTO-1)):]
	}
	return legs, nil
}
