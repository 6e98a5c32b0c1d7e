package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// space is the network namespace of a node, held open, with a netlink socket inside it.
type space struct {
	node string
	ns   *os.File
	nl   *netlink.Handle
}

// openSpace takes hold of the network namespace that the process is in.
func openSpace(node string, pid int) (*space, error) {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, fmt.Errorf("open the namespace of %s: %w", node, err)
	}
	nl, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER)
	if err != nil {
		_ = ns.Close()
		return nil, fmt.Errorf("open netlink in %s: %w", node, err)
	}
	return &space{node: node, ns: ns, nl: nl}, nil
}

func (s *space) fd() int { return int(s.ns.Fd()) }

// do calls f on a thread that is in the namespace, for what has no netlink message: device files and sysctls.
func (s *space) do(f func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open own namespace: %w", err)
	}
	defer home.Close()
	if err := unix.Setns(s.fd(), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter the namespace of %s: %w", s.node, err)
	}
	err = f()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		// The thread stays locked, so the runtime throws it away instead of running others in a foreign namespace.
		return errors.Join(err, fmt.Errorf("leave the namespace of %s: %w", s.node, back))
	}
	runtime.UnlockOSThread()
	return err
}

// sysctl sets a setting of the namespace, named as "net.ipv4.ip_forward".
func (s *space) sysctl(key, value string) error {
	return s.do(func() error {
		if err := os.WriteFile("/proc/sys/"+strings.ReplaceAll(key, ".", "/"), []byte(value), 0o644); err != nil {
			return fmt.Errorf("set %s in %s: %w", key, s.node, err)
		}
		return nil
	})
}

// nft sends one batch of nftables messages: all of it happens, or nothing.
func (s *space) nft(build func(c *nftables.Conn)) error {
	c, err := nftables.New(nftables.WithNetNSFd(s.fd()))
	if err != nil {
		return fmt.Errorf("open nftables in %s: %w", s.node, err)
	}
	build(c)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("set nftables in %s: %w", s.node, err)
	}
	return nil
}

func (s *space) setUp(iface string, up bool) error {
	link, err := s.nl.LinkByName(iface)
	if err != nil {
		return fmt.Errorf("find %s in %s: %w", iface, s.node, err)
	}
	verb, set := "down", s.nl.LinkSetDown
	if up {
		verb, set = "up", s.nl.LinkSetUp
	}
	if err := set(link); err != nil {
		return fmt.Errorf("set %s %s in %s: %w", iface, verb, s.node, err)
	}
	return nil
}

func (s *space) addAddr(iface string, p netip.Prefix) error {
	link, err := s.nl.LinkByName(iface)
	if err != nil {
		return fmt.Errorf("find %s in %s: %w", iface, s.node, err)
	}
	addr := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		// The lab gave the address out: looking for its double would only keep it unusable for a second.
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := s.nl.AddrReplace(link, addr); err != nil {
		return fmt.Errorf("add %s to %s in %s: %w", p, iface, s.node, err)
	}
	return nil
}

// delAddr removes an address; one that is not there is fine.
func (s *space) delAddr(iface string, p netip.Prefix) error {
	link, err := s.nl.LinkByName(iface)
	if err != nil {
		return fmt.Errorf("find %s in %s: %w", iface, s.node, err)
	}
	if err := s.nl.AddrDel(link, &netlink.Addr{IPNet: ipNet(p)}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("remove %s from %s in %s: %w", p, iface, s.node, err)
	}
	return nil
}

func (s *space) addRoute(r routePlan) error {
	nr, err := s.netlinkRoute(r)
	if err != nil {
		return err
	}
	if err := s.nl.RouteReplace(nr); err != nil {
		return fmt.Errorf("add route %s via %s in %s: %w", r.dst, r.via, s.node, err)
	}
	return nil
}

// delRoute removes a route; one that is not there is fine.
func (s *space) delRoute(r routePlan) error {
	nr, err := s.netlinkRoute(r)
	if err != nil {
		return err
	}
	if err := s.nl.RouteDel(nr); err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove route %s via %s in %s: %w", r.dst, r.via, s.node, err)
	}
	return nil
}

func (s *space) netlinkRoute(r routePlan) (*netlink.Route, error) {
	link, err := s.nl.LinkByName(r.iface)
	if err != nil {
		return nil, fmt.Errorf("find %s in %s: %w", r.iface, s.node, err)
	}
	return &netlink.Route{
		LinkIndex: link.Attrs().Index, Dst: ipNet(r.dst), Gw: r.via.AsSlice(), Priority: r.metric,
		Protocol: unix.RTPROT_STATIC,
	}, nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
