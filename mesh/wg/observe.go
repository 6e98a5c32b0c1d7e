package wg

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"guywire/mesh"
	"guywire/mesh/kernel"
)

// Stats are the counters of one tunnel.
type Stats struct {
	Received      uint64         // bytes of tunnel packets, from the peer
	Sent          uint64         // bytes, to the peer
	LastHandshake time.Time      // zero: none yet
	Endpoint      netip.AddrPort // where the peer is now; invalid: not known
}

// Stats gives the counters of all devices of ours, by name. It is cheap enough
// to be called every second.
func (b *Backend) Stats(ctx context.Context) (map[string]Stats, error) {
	stats, err := run(ctx, b, func(ctx context.Context) (map[string]Stats, error) {
		stats := map[string]Stats{}
		err := b.eachDevice(ctx, func(_ netlink.Link, dev *wgtypes.Device) {
			s := Stats{}
			if len(dev.Peers) == 1 {
				p := dev.Peers[0]
				s = Stats{uint64(p.ReceiveBytes), uint64(p.TransmitBytes), p.LastHandshakeTime, addrPort(p.Endpoint)}
			}
			stats[dev.Name] = s
		})
		return stats, err
	})
	if err != nil {
		return nil, fmt.Errorf("read tunnel counters: %w", err)
	}
	return stats, nil
}

func (b *Backend) observe(ctx context.Context) ([]kernel.Tunnel, error) {
	addrs, err := dump(func() ([]netlink.Addr, error) { return b.nl.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	epochs := map[mesh.WireGuardKey]mesh.Epoch{}
	for epoch, key := range b.opt.Epochs() {
		epochs[key] = epoch
	}
	var tunnels []kernel.Tunnel
	err = b.eachDevice(ctx, func(link netlink.Link, dev *wgtypes.Device) {
		t := describe(link, dev, addrs)
		t.Epoch = epochs[t.PublicKey]
		tunnels = append(tunnels, t)
	})
	slices.SortFunc(tunnels, func(x, y kernel.Tunnel) int { return strings.Compare(x.Name, y.Name) })
	return tunnels, err
}

// eachDevice calls f for each device of ours.
func (b *Backend) eachDevice(ctx context.Context, f func(netlink.Link, *wgtypes.Device)) error {
	links, err := dump(b.nl.LinkList)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	for _, link := range links {
		if !strings.HasPrefix(link.Attrs().Name, mesh.InterfacePrefix) {
			continue
		}
		if ours, err := b.ours(ctx, link); err != nil {
			return err
		} else if !ours {
			continue
		}
		dev, err := b.device(link)
		if err != nil {
			return err
		}
		if dev != nil {
			f(link, dev)
		}
	}
	return nil
}

// ours reports whether the link is a device that we made: of the right kind,
// with our alias. A device in our data plane that has no alias yet is one that
// an agent was killed over.
func (b *Backend) ours(ctx context.Context, link netlink.Link) (bool, error) {
	alias := link.Attrs().Alias
	switch link.(type) {
	case *netlink.Wireguard:
		return b.owns(alias), nil
	case *netlink.Tuntap:
		if b.owns(alias) {
			return true, nil
		}
		if alias != "" || b.opt.Dataplane == nil {
			return false, nil
		}
		names, err := b.opt.Dataplane.List(ctx)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return slices.Contains(names, link.Attrs().Name), err
	}
	return false, nil
}

func (b *Backend) owns(alias string) bool {
	return alias != "" && (b.opt.Owns == nil || b.opt.Owns(alias))
}

// device reads a link's WireGuard side; nil if it has none, or is gone by now.
func (b *Backend) device(link netlink.Link) (*wgtypes.Device, error) {
	name := link.Attrs().Name
	dev, err := b.wg.Device(name)
	if err == nil {
		return dev, nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if now, findErr := b.find(name); findErr == nil && now == nil {
		return nil, nil
	}
	return nil, fmt.Errorf("read %s: %w", name, configError(err))
}

// find gives the link of that name, nil if there is none.
func (b *Backend) find(name string) (netlink.Link, error) {
	link, err := b.nl.LinkByName(name)
	if _, none := errors.AsType[netlink.LinkNotFoundError](err); none {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find link %s: %w", name, err)
	}
	return link, nil
}

// dump repeats a netlink dump that was overtaken by changes.
func dump[T any](list func() ([]T, error)) ([]T, error) {
	for range 5 {
		if all, err := list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	return nil, netlink.ErrDumpInterrupted
}

// describe puts what was read into the form of what is desired, less the epoch.
func describe(link netlink.Link, dev *wgtypes.Device, addrs []netlink.Addr) kernel.Tunnel {
	attrs := link.Attrs()
	t := kernel.Tunnel{
		Name:       attrs.Name,
		Alias:      attrs.Alias,
		ListenPort: uint16(dev.ListenPort),
		Mark:       uint32(dev.FirewallMark),
		MTU:        attrs.MTU,
	}
	if dev.PrivateKey != (wgtypes.Key{}) {
		t.PublicKey = mesh.WireGuardKey(dev.PublicKey)
	}
	if len(dev.Peers) == 1 && allowsAll(dev.Peers[0]) {
		p := dev.Peers[0]
		t.Peer = mesh.WireGuardKey(p.PublicKey)
		t.Endpoint = addrPort(p.Endpoint)
		t.Keepalive = uint16(p.PersistentKeepaliveInterval / time.Second)
	}
	if locals := linkLocals(attrs.Index, addrs); len(locals) > 0 && attrs.Flags&net.FlagUp != 0 {
		t.LinkLocal = locals[0]
	}
	if overlay := overlays(attrs.Index, addrs); len(overlay) > 0 {
		t.Overlay4 = overlay[0]
	}
	return t
}

// linkLocals gives the link-local addresses of a link, sorted.
func linkLocals(index int, addrs []netlink.Addr) []netip.Addr {
	var locals []netip.Addr
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		ones, _ := a.Mask.Size()
		if a.LinkIndex == index && ok && ip.Is6() && ip.IsLinkLocalUnicast() && ones == 64 && a.Flags&unix.IFA_F_DADFAILED == 0 {
			locals = append(locals, ip)
		}
	}
	slices.SortFunc(locals, netip.Addr.Compare)
	return locals
}

// overlays gives the IPv4 host addresses of a link, sorted.
func overlays(index int, addrs []netlink.Addr) []netip.Addr {
	var found []netip.Addr
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP.To4())
		if ones, _ := a.Mask.Size(); a.LinkIndex == index && ok && ones == 32 {
			found = append(found, ip)
		}
	}
	slices.SortFunc(found, netip.Addr.Compare)
	return found
}

// everything is what a peer may send and receive: one peer has the device for
// itself, and the nft table decides what may arrive (design D1).
var everything = []net.IPNet{
	{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
	{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)},
}

func allowsAll(p wgtypes.Peer) bool {
	var v4, v6 bool
	for _, n := range p.AllowedIPs {
		ones, bits := n.Mask.Size()
		v4 = v4 || ones == 0 && bits == 32
		v6 = v6 || ones == 0 && bits == 128
	}
	return v4 && v6
}

func addrPort(a *net.UDPAddr) netip.AddrPort {
	if a == nil {
		return netip.AddrPort{}
	}
	ap := a.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
