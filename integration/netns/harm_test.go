package netns

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"

	"github.com/google/nftables"
	"github.com/spf13/cobra"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"guywire/mesh"
	"guywire/mesh/core"
)

// harms are what others do to the kernel behind the agent's back.
var harms = map[string]func() error{
	"delete a route":       func() error { return deleteRoutes(1) },
	"flush the table":      func() error { return deleteRoutes(1 << 20) },
	"delete the rule":      deleteRule,
	"flush the ruleset":    flushRuleset,
	"delete the next hops": deleteNextHops,
	"delete the tunnel":    func() error { return withTunnel(netlink.LinkDel) },
	"change the MTU":       func() error { return withTunnel(func(l netlink.Link) error { return netlink.LinkSetMTU(l, 1300) }) },
	"switch the tunnel off": func() error {
		return withTunnel(netlink.LinkSetDown)
	},
	"remove the address":  removeAddress,
	"stop the forwarding": func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0) },
	"stop IPv6 forwarding": func() error {
		return os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("0"), 0)
	},
}

func harmCommand() *cobra.Command {
	return &cobra.Command{Use: "harm WHAT", Args: cobra.ExactArgs(1), RunE: func(_ *cobra.Command, args []string) error {
		harm, known := harms[args[0]]
		if !known {
			return fmt.Errorf("nobody knows how to %s", args[0])
		}
		return harm()
	}}
}

// deleteRoutes deletes up to a number of routes in each family of our table.
func deleteRoutes(most int) error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		found, err := netlink.RouteListFiltered(family, &netlink.Route{Table: mesh.RouteTable, Protocol: mesh.RouteProtocol}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
		if err != nil {
			return err
		}
		// Those that lead somewhere first.
		slices.SortStableFunc(found, func(a, b netlink.Route) int { return a.Type - b.Type })
		if len(found) == 0 {
			return fmt.Errorf("table %d has no route of family %d", mesh.RouteTable, family)
		}
		for _, r := range found[:min(most, len(found))] {
			if err := netlink.RouteDel(&netlink.Route{Dst: r.Dst, Table: r.Table, Protocol: r.Protocol, Type: r.Type, Priority: r.Priority}); err != nil {
				return fmt.Errorf("delete %v: %w", r, err)
			}
		}
	}
	return nil
}

func deleteRule() error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		r := netlink.NewRule()
		r.Family, r.Priority, r.Table = family, mesh.RuleMesh, mesh.RouteTable
		if err := netlink.RuleDel(r); err != nil {
			return err
		}
	}
	return nil
}

func flushRuleset() error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	conn.FlushRuleset()
	return conn.Flush()
}

// deleteNextHops deletes all of ours, and with them the kernel deletes the
// routes that use them.
func deleteNextHops() error {
	msgs, err := dump(unix.RTM_GETNEXTHOP, make([]byte, nhSize))
	if err != nil {
		return err
	}
	deleted := 0
	for _, m := range msgs {
		attrs, err := attrsOf(m[nhSize:])
		if err != nil {
			return err
		}
		if id := u32(attrs[nhaID]); m[2] == mesh.RouteProtocol {
			err := changeNextHop(unix.RTM_DELNEXTHOP, 0, make([]byte, nhSize), nl.NewRtAttr(nhaID, nl.Uint32Attr(id)))
			if err != nil && !errors.Is(err, unix.ENOENT) { // a group goes with its last member
				return err
			}
			deleted++
		}
	}
	if deleted == 0 {
		return errors.New("there is no next hop to delete")
	}
	return nil
}

// changeNextHop sends one request; netlink knows nothing of next hops.
func changeNextHop(kind, flags int, header []byte, attrs ...*nl.RtAttr) error {
	req := nl.NewNetlinkRequest(kind, flags|unix.NLM_F_ACK)
	req.AddRawData(header)
	for _, a := range attrs {
		req.AddRawData(a.Serialize())
	}
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

func withTunnel(do func(netlink.Link) error) error {
	found, err := netlink.LinkList()
	if err != nil {
		return err
	}
	for _, l := range found {
		if core.OwnsAlias(l.Attrs().Alias) {
			return do(l)
		}
	}
	return errors.New("there is no tunnel")
}

func removeAddress() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	addrs, err := netlink.AddrList(lo, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	removed := 0
	for _, a := range addrs {
		if a.IP.IsLoopback() {
			continue
		}
		if err := netlink.AddrDel(lo, &a); err != nil {
			return err
		}
		removed++
	}
	if removed == 0 {
		return errors.New("lo has no address of the mesh")
	}
	return nil
}

// plantCommand makes what belongs to somebody else, as near to ours as it can
// be, and prints nothing: the lines that are new in the snapshot are foreign.
func plantCommand() *cobra.Command {
	return &cobra.Command{Use: "plant", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
		lan, err := netlink.LinkByName("lan")
		if err != nil {
			return err
		}
		const theirs = 99 // a routing protocol number
		prefix := func(s string) *net.IPNet {
			_, p, err := net.ParseCIDR(s)
			if err != nil {
				panic(err) // a constant below
			}
			return p
		}
		var failures error
		for _, r := range []netlink.Route{
			{Dst: prefix("203.0.113.0/24"), Table: unix.RT_TABLE_MAIN, Type: unix.RTN_BLACKHOLE, Protocol: theirs},
			{Dst: prefix("203.0.113.0/25"), Table: mesh.RouteTable, LinkIndex: lan.Attrs().Index, Scope: netlink.SCOPE_LINK, Protocol: theirs},
			{Dst: prefix("203.0.113.128/25"), Table: 87, LinkIndex: lan.Attrs().Index, Scope: netlink.SCOPE_LINK, Protocol: mesh.RouteProtocol},
			{Dst: prefix("2001:db8:ffff::/48"), Table: mesh.RouteTable, LinkIndex: lan.Attrs().Index, Protocol: theirs},
		} {
			if err := netlink.RouteAdd(&r); err != nil {
				failures = errors.Join(failures, fmt.Errorf("add route %v: %w", r.Dst, err))
			}
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			for _, priority := range []int{100, 8650} { // one of them between ours
				r := netlink.NewRule()
				r.Family, r.Priority, r.Table, r.Mark, r.Protocol = family, priority, 87, 0x77, theirs
				if err := netlink.RuleAdd(r); err != nil {
					failures = errors.Join(failures, fmt.Errorf("add rule %d: %w", priority, err))
				}
			}
		}
		for _, id := range []uint32{77, mesh.NextHopEnd - 1} { // one of them among ours
			err := changeNextHop(unix.RTM_NEWNEXTHOP, unix.NLM_F_CREATE|unix.NLM_F_EXCL, []byte{unix.AF_INET6, 0, theirs, 0, 0, 0, 0, 0},
				nl.NewRtAttr(nhaID, nl.Uint32Attr(id)), nl.NewRtAttr(nhaOif, nl.Uint32Attr(uint32(lan.Attrs().Index))))
			if err != nil {
				failures = errors.Join(failures, fmt.Errorf("add next hop %#x: %w", id, err))
			}
		}
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		for family, name := range map[nftables.TableFamily]string{nftables.TableFamilyINet: "theirs", nftables.TableFamilyIPv4: mesh.FilterTable} {
			table := conn.AddTable(&nftables.Table{Family: family, Name: name})
			conn.AddChain(&nftables.Chain{Table: table, Name: "input", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter})
		}
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "gw-theirs"}} // named like ours
		return errors.Join(failures, conn.Flush(), netlink.LinkAdd(bridge))
	}}
}
